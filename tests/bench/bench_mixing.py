"""Mixing updates into a model of 11.7 million parameters (a ResNet-18), in process and in place.

Limits measured in the same run, on the same memory and with as many threads: for a full update every in-place lerp we
know (torch, blocked numpy, numba), for a delta update numba's parallel loop over the same formula, and
`torch.addcmul_`, another formula with the same traffic: three vectors read, one written. Each peer runs right beside
ours, in alternating order; the ratio is the median of the pairs' (peer's time / our time), so that other work on the
machine meets both. On one thread, which waits for nobody, it is CPU time: wall time on a busy machine says how often
the core was lost. The lowest ratio counts for full updates; a delta update has one row per kernel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_sdk.core.records import Segments, Update, UpdateKey, VersionId
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.learn import blending
from edge_sdk.learn.records import Rates, UpdateView
from edge_sdk.methods.base import find

SIZE = 11_689_512
RATE = 0.3
PAIRS = 30
UPDATES = 500

Run = Callable[[], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Ours beside one peer."""

    ours_s: float  # median time of ours
    ratio: float  # median of the pairs' peer's time / our time


def run() -> list[dict[str, Any]]:
    """Returns the rows of this benchmark."""
    return [*_mixing(), *_devices()]


def _mixing() -> list[dict[str, Any]]:
    """Ours beside the kernels, on all threads and on one: a barrier per call waits for whoever else has a core."""
    rng = np.random.default_rng(0)
    theta, base, new = (rng.standard_normal(SIZE, dtype=np.float32) for _ in range(3))
    change = 0.01 * new
    model, bases, rates = {"m": Segments(theta)}, {"m": Segments(base)}, Rates({"m": RATE})
    full, delta = _update(new, "full"), _update(change, "delta")
    lerps, triples = _lerps(theta, new), _triples(theta, base, change)
    kernels = blending.kernels(SIZE)
    most = torch.get_num_threads()
    rows = []
    for threads in dict.fromkeys((most, 1)):
        _set_threads(threads)
        clock = time.perf_counter if threads > 1 else time.process_time
        where = f"{threads} thread{'s' if threads > 1 else ''}"
        beside = _beside(lambda: blending.blend(model, None, full, rates, kernels), lerps, clock)
        name = min(beside, key=lambda name: beside[name].ratio)
        rows.append(_kernel_row(f"mixing.full_11.7M, {where}", beside[name], f"best in-place lerp: {name}"))
        beside = _beside(lambda: blending.blend(model, bases, delta, rates, kernels), triples, clock)
        rows += [
            _kernel_row(f"mixing.delta_11.7M, {where}, beside {name}", pair, "bare three-operand kernel")
            for name, pair in beside.items()
        ]
    _set_threads(most)
    return rows


def _kernel_row(name: str, pair: Pair, what: str) -> dict[str, Any]:
    return _row(name, 1e3 * pair.ours_s, "ms", f"{what}; at least 0.8", pair.ratio)


def _set_threads(threads: int) -> None:
    """Gives torch and numba the same number of threads; both use OpenMP, so torch's comes last."""
    try:
        import numba
    except ImportError:
        pass
    else:
        numba.set_num_threads(threads)
    torch.set_num_threads(threads)


def _lerps(theta: np.ndarray, new: np.ndarray) -> dict[str, Run]:
    t, n = torch.from_numpy(theta), torch.from_numpy(new)
    kernels: dict[str, Run] = {"torch.lerp_": lambda: t.lerp_(n, RATE), "numpy blocked": lambda: _numpy(theta, new)}
    numba = _numba()
    if numba:
        kernels["numba"] = lambda: numba[0](theta, new, np.float32(RATE))
    return kernels


def _triples(theta: np.ndarray, base: np.ndarray, change: np.ndarray) -> dict[str, Run]:
    t, b, d = (torch.from_numpy(a) for a in (theta, base, change))
    kernels: dict[str, Run] = {"addcmul_": lambda: t.addcmul_(b, d, value=1e-6)}  # another formula, same traffic
    numba = _numba()
    if numba:
        kernels["numba"] = lambda: numba[1](theta, base, change, np.float32(RATE))
    return kernels


def _numpy(theta: np.ndarray, new: np.ndarray, block: int = 1 << 17) -> None:
    scratch = np.empty(block, np.float32)
    for i in range(0, SIZE, block):
        t = theta[i : i + block]
        x = scratch[: t.size]
        np.subtract(new[i : i + block], t, out=x)
        np.multiply(x, np.float32(RATE), out=x)
        np.add(t, x, out=t)


def _numba() -> tuple[Any, Any] | None:
    """Returns a lerp and a three-operand kernel, or None where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None

    @numba.njit(nogil=True, parallel=True)
    def lerp(theta: np.ndarray, new: np.ndarray, rate: float) -> None:
        for i in numba.prange(theta.size):
            theta[i] += rate * (new[i] - theta[i])

    @numba.njit(nogil=True, parallel=True)
    def triple(theta: np.ndarray, base: np.ndarray, change: np.ndarray, rate: float) -> None:
        for i in numba.prange(theta.size):
            theta[i] += rate * (base[i] + change[i] - theta[i])

    return lerp, triple


def _devices() -> list[dict[str, Any]]:
    """Cost of a rule plus a small blend, per update, with few and with many known devices."""
    spec = FederationSpec(
        name="bench", modalities=tuple(ModalitySpec(name=m, shape=(8,)) for m in ("acc", "gyro")), classes=("a", "b")
    )
    few = _updates(spec, 10)
    rows = []
    for devices in (1_000, 100_000):
        pair = _beside(_updates(spec, devices), {"10": few})["10"]
        us = 1e6 * pair.ours_s / UPDATES
        rows.append(_row(f"mixing.mba_update_{devices}_devices_us", us, "us", "10 devices; 0.8 to 1.25", pair.ratio))
    return rows


def _updates(spec: FederationSpec, devices: int) -> Run:
    """Returns UPDATES updates against a server that knows this many devices."""
    rule = find("mba").server_rule({}, spec)
    modules = ("encoder.acc", "encoder.gyro", "fusion")
    rng = np.random.default_rng(0)
    theta = {m: Segments(rng.standard_normal(2000, dtype=np.float32)) for m in modules}
    update = Update(
        UpdateKey("d", 0, 0), "t", VersionId("", 0, ""), "", "full",
        {m: Segments(s.params.copy()) for m, s in theta.items()}, num_samples=1, num_steps=1, modalities=(),
    )  # fmt: skip
    state: dict[str, Any] = {}
    views = [_view(int(d), modules) for d in rng.integers(0, devices, UPDATES)]
    for d in range(devices):
        state.update(rule.rates(state, _view(d, modules))[1])

    def go() -> None:
        for view in views:
            rates, patch = rule.rates(state, view)
            state.update(patch)
            blending.blend(theta, None, update, rates)

    return go


def _view(device: int, modules: tuple[str, ...]) -> UpdateView:
    payload = {("distance.acc", "distance.gyro")[device % 2]: np.asarray(0.3, np.float32)}
    return UpdateView(
        f"device-{device}", version=7, staleness=3, modules=modules, modalities=("acc", "gyro"), num_samples=1,
        num_steps=1, payload=payload,
    )  # fmt: skip


def _update(values: np.ndarray, kind: str) -> Update:
    key, base = UpdateKey("d", 0, 0), VersionId("", 0, "")
    return Update(key, "t", base, "", kind, {"m": Segments(values)}, num_samples=1, num_steps=1, modalities=())


def _beside(ours: Run, peers: Mapping[str, Run], clock: Clock = time.perf_counter) -> dict[str, Pair]:
    """Returns ours beside each peer, measured in pairs whose order alternates."""
    for go in (ours, *peers.values()):
        go()
        go()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for i in range(PAIRS):
        for name, peer in peers.items():
            first, second = (ours, peer) if i % 2 else (peer, ours)
            pair = (_time(first, clock), _time(second, clock))
            times[name].append(pair if i % 2 else pair[::-1])
    return {
        name: Pair(statistics.median(m for m, _ in pairs), statistics.median(t / m for m, t in pairs))
        for name, pairs in times.items()
    }


def _time(go: Run, clock: Clock) -> float:
    start = clock()
    go()
    return clock() - start


def _row(name: str, value: float, unit: str, reference: str, ratio: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


__all__ = ["run"]
