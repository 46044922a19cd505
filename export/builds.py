"""Building an engine in a process of its own, with progress and a time limit.

Building tries many kernels on the board and takes minutes; it may also run out of memory. In a process of its own it
disturbs nobody, can be stopped, and what kills it kills nothing else. The child is a module with a `main(folder)`: it
is handed a folder with `model.onnx` and `order.json`, and says how far it is on stdout, one JSON object per line.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.errors import EngineError

MODEL, ORDER, LOG = "model.onnx", "order.json", "stderr"
_TAIL = 600  # characters of what a child said that are repeated
_NICENESS = 10  # predictions come first
_PR_SET_PDEATHSIG = 1

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """For those who do not want to hear how far a build is."""


def run(module: str, folder: Path, *, leaves: str, limit_s: float, progress: Progress = silent) -> None:
    """Runs a child until it ends.

    Args:
        module: the child.
        folder: what it is handed, and where it leaves what it built.
        leaves: file in the folder that says that it is done.
        limit_s: after which it is stopped.
        progress: is told how far it is.

    Raises:
        EngineError: it told a trouble, died, or took too long.
    """
    with (folder / LOG).open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", module, str(folder)], stdout=subprocess.PIPE, stderr=log)
        try:
            trouble = _follow(child, limit_s, progress)
        finally:
            child.kill()
            code = child.wait()
            if child.stdout is not None:
                child.stdout.close()
    if trouble or not (folder / leaves).is_file():
        raise EngineError(f"TensorRT built no engine: {trouble or _death(code, folder)}")


def serve(build: Callable[[], None]) -> int:
    """Builds in the calling process as a child that gives way, and tells what went wrong; returns the exit code."""
    os.nice(_NICENESS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # Linux: nobody waits for the engine any more
    try:
        build()
    except MemoryError as error:
        say(error=f"out of memory: {error}; add swap, or make max_batch smaller")
        return 1
    except EngineError as error:
        say(error=str(error))
        return 1
    return 0


def say(**what: str) -> None:
    """Tells the parent: progress="parsing", or error="why"."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _follow(child: subprocess.Popen[bytes], limit_s: float, progress: Progress) -> str:
    """Passes on what the child says until it ends; returns its trouble, "" if it told none."""
    end_ns = monotonic_ns() + round(limit_s * 1e9)
    trouble = ""
    for line in _lines(child, end_ns):
        if line is None:
            return f"it took longer than {limit_s:g} s (inference.build_limit_s)"
        try:
            said = json.loads(line)
        except ValueError:  # libraries print what they like
            continue
        trouble = said.get("error", trouble)
        if "progress" in said:
            progress(said["progress"])
    child.wait()
    return trouble


def _lines(child: subprocess.Popen[bytes], end_ns: int) -> Iterator[bytes | None]:
    """Yields lines until the child closes its output; None: the time is up."""
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left_s = (end_ns - monotonic_ns()) / 1e9
            if left_s <= 0 or not selector.select(left_s):
                yield None
                return
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from whole


def _death(code: int, folder: Path) -> str:
    """Returns what can be said of a child that ended without a word."""
    said = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()
    if code == -signal.SIGKILL:
        return f"its process was killed: the board is out of memory; add swap, or build on a bigger one. {said}"
    return f"its process ended with {code}. {said}"


__all__ = ["LOG", "MODEL", "ORDER", "Progress", "run", "say", "serve", "silent"]
