"""Runs every benchmark beside this file and writes `bench.json`.

Each `bench_<topic>.py` has `run() -> list[dict]` with rows {name, value, unit, reference, ratio}: `ratio` compares
`value` with a limit or a peer that was measured in the same run, and `reference` says which. Machines are noisy; ratios
mostly carry over, absolute times do not.

    python tests/bench/run.py --out bench.json [--only mixing,codecs]
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

COLUMNS = ("name", "value", "unit", "reference", "ratio")


def topics() -> list[str]:
    """Names of all benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def measure(topic: str) -> list[dict[str, Any]]:
    """Runs one benchmark and checks the form of its rows; what it set in torch (threads, determinism) is put back."""
    threads = torch.get_num_threads()
    try:
        rows: list[dict[str, Any]] = importlib.import_module(f"tests.bench.bench_{topic}").run()
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode("default")
    check(topic, rows)
    return rows


def check(topic: str, rows: list[dict[str, Any]]) -> None:
    """Ends the program unless every row has the columns, finite figures and a name of its own."""
    names = set()
    for row in rows:
        if set(row) != set(COLUMNS):
            raise SystemExit(f"bench_{topic}: a row must have exactly {COLUMNS}, found {tuple(row)}")
        if not (math.isfinite(row["value"]) and math.isfinite(row["ratio"])):
            raise SystemExit(f"bench_{topic}: {row['name']}: value and ratio must be finite, found {row}")
        if row["name"] in names:
            raise SystemExit(f"bench_{topic}: two rows are called {row['name']!r}")
        names.add(row["name"])
    if not rows:
        raise SystemExit(f"bench_{topic}: no rows")


def main(arguments: list[str] | None = None) -> int:
    """Measures what was asked for and writes the file after every topic, so that a break loses little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--only", default="", help="comma-separated topics; default: all")
    asked = parser.parse_args(arguments)
    chosen = asked.only.split(",") if asked.only else topics()
    unknown = sorted(set(chosen) - set(topics()))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(topics())}")
    rows: list[dict[str, Any]] = []
    for topic in chosen:
        start = time.perf_counter()
        for row in measure(topic):
            rows.append(row)
            print(
                f"{row['name']:<58} {row['value']:>12.4g} {row['unit']:<10} {row['ratio']:>9.3g} × {row['reference']}"
            )
        print(f"-- {topic}: {time.perf_counter() - start:.0f} s", flush=True)
        asked.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
