"""Mixing updates into a model of 11.7 million parameters (a ResNet-18), in process and in place.

Limits measured in the same run: the best in-place lerp among torch, blocked numpy and numba, and the best bare kernel
that reads three vectors and writes one, among torch and numba (where installed). Ratio = limit's time / our
time, each the tenth percentile of runs taken in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
ROUNDS = 81

Run = Callable[[], None]


def run() -> list[dict[str, Any]]:
    """Returns the rows of this benchmark."""
    return [*_mixing(), *_devices()]


def _mixing() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    theta, base, new = (rng.standard_normal(SIZE, dtype=np.float32) for _ in range(3))
    change = 0.01 * new
    model, rates = {"m": Segments(theta)}, Rates({"m": RATE})
    full, delta = _update(new, "full"), _update(change, "delta")
    ours = {
        "full": lambda: blending.blend(model, None, full, rates),
        "delta": lambda: blending.blend(model, {"m": Segments(base)}, delta, rates),
    }
    limits = {"full": _lerps(theta, new), "delta": _triples(theta, base, change)}
    rows = []
    for kind, blend in ours.items():
        times = _alternate({"ours": blend, **limits[kind]})
        mine = times.pop("ours")
        best = min(times, key=lambda name: times[name])
        what = "best in-place lerp" if kind == "full" else "bare three-operand kernel"
        rows.append(_row(f"mixing.{kind}_11.7M_ms", 1e3 * mine, "ms", f"{what}: {best}", times[best] / mine))
    return rows


def _lerps(theta: np.ndarray, new: np.ndarray) -> dict[str, Run]:
    t, n = torch.from_numpy(theta), torch.from_numpy(new)
    kernels: dict[str, Run] = {"torch.lerp_": lambda: t.lerp_(n, RATE), "numpy blocked": lambda: _numpy(theta, new)}
    numba = _numba()
    if numba:
        kernels["numba"] = lambda: numba[0](theta, new, np.float32(RATE))
    return kernels


def _triples(theta: np.ndarray, base: np.ndarray, change: np.ndarray) -> dict[str, Run]:
    t, b, d = (torch.from_numpy(a) for a in (theta, base, change))
    kernels: dict[str, Run] = {"torch.addcmul_": lambda: t.addcmul_(b, d, value=1e-6)}  # same traffic, other formula
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
    """Returns a lerp and a three-operand kernel, compiled for as many threads as torch uses."""
    try:
        import numba
    except ImportError:
        return None
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))

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
    sizes = (10, 1_000, 100_000)
    runs = {str(n): _updates(spec, n) for n in sizes}
    times = _alternate(runs)
    few = times[str(sizes[0])]
    return [
        _row(
            f"mixing.mba_update_{n}_devices_us", 1e6 * times[str(n)] / 500, "us",
            "10 devices (time ratio)", times[str(n)] / few,
        )
        for n in sizes
    ]  # fmt: skip


def _updates(spec: FederationSpec, devices: int) -> Run:
    """Returns 500 updates against a server that knows this many devices."""
    rule = find("mba").server_rule({}, spec)
    modules = ("encoder.acc", "encoder.gyro", "fusion")
    rng = np.random.default_rng(0)
    theta = {m: Segments(rng.standard_normal(2000, dtype=np.float32)) for m in modules}
    update = Update(
        UpdateKey("d", 0, 0), "t", VersionId("", 0, ""), "", "full",
        {m: Segments(s.params.copy()) for m, s in theta.items()}, num_samples=1, num_steps=1, modalities=(),
    )  # fmt: skip
    state: dict[str, Any] = {}
    views = [_view(int(d), modules) for d in rng.integers(0, devices, 500)]
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


def _alternate(runs: dict[str, Run]) -> dict[str, float]:
    """Returns the tenth percentile of each one's times, s; taken in turns, so that a disturbance hits all alike."""
    for go in runs.values():
        go()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, go in runs.items():
            start = time.perf_counter()
            go()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.percentile(t, 10)) for name, t in times.items()}


def _row(name: str, value: float, unit: str, reference: str, ratio: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


__all__ = ["run"]
