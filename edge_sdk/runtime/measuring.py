"""How fast is an engine, how much memory does it take, what does a prediction cost in energy?

Every engine is measured in a process of its own: memory that another has left behind is not counted, and one that dies
takes nothing with it. Latency is from windows in hand to logits in hand, as the device's runtime calls the engine.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_sdk.core import boards, registry
from edge_sdk.core.boards import Board
from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.interfaces import Engine, EngineOptions
from edge_sdk.core.records import Float32, ModelTensors
from edge_sdk.core.sysfs import Tree

_WARM = 5  # predictions that are not counted: the first ones prepare kernels
_LEAST = 20  # predictions that are timed, however long they take
_POWER_NS = NS // 20  # between two readings of the board's power


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be measured."""

    engine: str  # plug-in, or "standalone" for a file with its weights inside
    options: EngineOptions
    graph: Path
    tensors: ModelTensors
    x: Mapping[str, Float32]  # modality → (B, *shape)
    seconds: float  # to predict for
    root: Path = field(default_factory=lambda: Path("/"))  # of the board's files


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found."""

    engine: str
    provider: str  # what really ran it
    precision: str
    batch: int
    runs: int
    p50_ms: float
    p99_ms: float
    per_s: float  # windows a second
    open_ms: float  # graph and weights in hand → ready to predict
    swap_ms: float | None  # other weights in hand → ready to predict; None: it takes no others
    memory_mb: float  # that it added to its process
    peak_mb: float  # of the process, all libraries included
    energy_mj: float | None  # of the whole board, per window; None: the board does not tell
    degraded: str = ""


def measure(case: Case) -> Figures:
    """Opens an engine and predicts for a while; a job of the train lane.

    Raises:
        EdgeError: the engine cannot be made or run.
    """
    before_mb = resident_mb()
    start_ns = monotonic_ns()
    engine = _opened(case)
    open_ms = (monotonic_ns() - start_ns) / 1e6
    batch = len(next(iter(case.x.values())))
    mask = np.ones((batch, len(engine.info.modalities)), np.float32)
    for _ in range(_WARM):
        engine.run(case.x, mask)
    times_ns, power_mw = _timed(engine, case, mask)
    memory_mb = resident_mb() - before_mb
    total_s = times_ns.sum() / NS
    return Figures(
        engine=case.engine,
        provider=engine.provider,
        precision=case.options.precision,
        batch=batch,
        runs=len(times_ns),
        p50_ms=float(np.percentile(times_ns, 50)) / 1e6,
        p99_ms=float(np.percentile(times_ns, 99)) / 1e6,
        per_s=batch * len(times_ns) / total_s,
        open_ms=open_ms,
        swap_ms=None if case.engine == STANDALONE else _swap_ms(engine, case.tensors),
        memory_mb=memory_mb,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        energy_mj=None if power_mw is None else power_mw * total_s / (batch * len(times_ns)),
        degraded=engine.degraded,
    )


STANDALONE = "standalone"


def _opened(case: Case) -> Engine:
    if case.engine == STANDALONE:
        alone: Engine = registry.load("exporters", "standalone_engine")(case.graph)
        return alone
    engine: Engine = registry.load("engines", case.engine).open(case.graph, case.tensors, case.options)
    return engine


def _timed(engine: Engine, case: Case, mask: Float32) -> tuple[np.ndarray, float | None]:
    """Returns what every prediction took, ns, and the mean power meanwhile, mW."""
    board = boards.find(Tree(case.root))
    times: list[int] = []
    readings: list[float] = []
    end_ns, read_ns = monotonic_ns() + round(case.seconds * NS), 0
    while len(times) < _LEAST or monotonic_ns() < end_ns:
        start_ns = monotonic_ns()
        engine.run(case.x, mask)
        done_ns = monotonic_ns()
        times.append(done_ns - start_ns)
        if done_ns >= read_ns:
            readings += _power(board)
            read_ns = done_ns + _POWER_NS
    return np.array(times, np.int64), float(np.mean(readings)) if readings else None


def _power(board: Board) -> list[float]:
    power_mw = board.readings().power_mw
    return [] if power_mw is None else [power_mw]


def _swap_ms(engine: Engine, tensors: ModelTensors) -> float:
    times = []
    for _ in range(3):
        start_ns = monotonic_ns()
        engine.with_tensors(tensors)
        times.append(monotonic_ns() - start_ns)
    return float(np.median(times)) / 1e6


def resident_mb() -> float:
    """Returns the memory that this process holds now, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


__all__ = ["STANDALONE", "Case", "Figures", "measure", "resident_mb"]
