from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import edge_sdk.learn
from edge_sdk.core.errors import ShapeMismatch
from edge_sdk.core.records import Segments, Update, UpdateKey, VersionId
from edge_sdk.learn import blending
from edge_sdk.learn.blending import TORCH, Kernels
from edge_sdk.learn.records import Rates

BASE = VersionId("0" * 32, 0, "0" * 32)


def segments(rng: np.random.Generator, size: int = 100, stats: int = 3) -> Segments:
    return Segments(
        rng.normal(size=size).astype(np.float32),
        rng.normal(size=stats).astype(np.float32) ** 2,
        rng.integers(0, 100, 2),
    )


def update(tensors: dict[str, Segments], kind: str) -> Update:
    return Update(UpdateKey("d", 1, 1), "t", BASE, "s", kind, tensors, num_samples=1, num_steps=1, modalities=())


def world(size: int = 100) -> tuple[dict[str, Segments], dict[str, Segments], dict[str, Segments]]:
    rng = np.random.default_rng(0)
    names = ("encoder.acc", "fusion")
    theta, base, new = ({n: segments(rng, size) for n in names} for _ in range(3))
    return theta, base, new


RATES = Rates({"encoder.acc": 0.3, "fusion": 0.9})
RATE = Rates({"m": 0.3})


def expected(theta: Segments, base: Segments, new: Segments, *, rate: float, op: str, kind: str) -> np.ndarray:
    t, b, n = (s.params.astype(np.float64) for s in (theta, base, new))
    change = n - b if kind == "full" else n
    return t + rate * (b + change - t) if op == "mix" else t + rate * change


@pytest.mark.parametrize("op", ["mix", "add"])
@pytest.mark.parametrize("kind", ["full", "delta"])
def test_formulas(op: str, kind: str) -> None:
    theta, base, new = world(size=blending.BLOCK + 17)
    wanted = {n: expected(theta[n], base[n], new[n], rate=RATES.by_module[n], op=op, kind=kind) for n in theta}
    blending.blend(theta, base, update(new, kind), Rates(RATES.by_module, op))
    for name, values in wanted.items():
        assert np.abs(theta[name].params - values).max() < 2e-6


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_stats_are_values_and_counters_are_the_newest(kind: str) -> None:
    theta, base, new = world()
    old = theta["fusion"].stats.copy()
    blending.blend(theta, base, update(new, kind), RATES)
    assert np.allclose(theta["fusion"].stats, old + 0.9 * (new["fusion"].stats - old), atol=1e-6)
    assert np.array_equal(theta["fusion"].counters, new["fusion"].counters)


def test_in_place_and_only_modules_of_the_update() -> None:
    theta, base, new = world()
    buffer, untouched = theta["fusion"].params, theta["encoder.acc"].params.copy()
    blending.blend(theta, base, update({"fusion": new["fusion"]}, "delta"), RATES)
    assert theta["fusion"].params is buffer
    assert np.array_equal(theta["encoder.acc"].params, untouched)


def test_rate_one_takes_the_update_and_rate_zero_nothing() -> None:
    theta, _, new = world()
    before = theta["fusion"].params.copy()
    blending.blend(theta, None, update(new, "full"), Rates({"encoder.acc": 1.0, "fusion": 0.0}))
    assert np.array_equal(theta["encoder.acc"].params, new["encoder.acc"].params)
    assert np.array_equal(theta["fusion"].params, before)
    assert np.array_equal(theta["fusion"].counters, theta["fusion"].counters)


def test_update_and_base_are_only_read_and_may_be_read_only() -> None:
    theta, base, new = world()
    kept = [s.params.copy() for s in (base["fusion"], new["fusion"])]
    for tensors in (base, new):
        for values in tensors.values():
            for array in (values.params, values.stats, values.counters):
                array.flags.writeable = False
    blending.blend(theta, base, update(new, "delta"), RATES)
    assert np.array_equal(base["fusion"].params, kept[0])
    assert np.array_equal(new["fusion"].params, kept[1])
    assert not base["fusion"].params.flags.writeable


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fusion": Segments(np.zeros(99, np.float32))}, r"fusion: params: expected float32 \(100,\)"),
        ({"fusion": Segments(np.zeros(100, np.float64))}, "found float64"),
        ({"head.acc": Segments(np.zeros(1, np.float32))}, "unknown module 'head.acc'"),
    ],
)
def test_what_does_not_fit_changes_nothing(tensors: dict[str, Segments], message: str) -> None:
    theta, _, new = world()
    before = {n: s.params.copy() for n, s in theta.items()}
    with pytest.raises(ShapeMismatch, match=message):
        blending.blend(theta, None, update({"encoder.acc": new["encoder.acc"], **tensors}, "full"), RATES)
    assert all(np.array_equal(before[n], theta[n].params) for n in before)


def test_delta_needs_its_base() -> None:
    theta, base, new = world()
    with pytest.raises(ShapeMismatch, match=r"needs its base version's encoder.acc, fusion"):
        blending.blend(theta, None, update(new, "delta"), RATES)
    with pytest.raises(ShapeMismatch, match=r"needs its base version's fusion"):
        blending.blend(theta, {"encoder.acc": base["encoder.acc"]}, update(new, "delta"), RATES)


def mixed(
    theta: np.ndarray, base: np.ndarray, new: np.ndarray, *, rates: Rates, kind: str, threads: int = 1,
    kernels: Kernels = TORCH,
) -> np.ndarray:  # fmt: skip
    """Mixes copies on this many threads."""
    before, mine = torch.get_num_threads(), {"m": Segments(theta.copy())}
    try:
        torch.set_num_threads(threads)
        blending.blend(mine, {"m": Segments(base)}, update({"m": Segments(new)}, kind), rates, kernels)
    finally:
        torch.set_num_threads(before)
    return mine["m"].params


@given(
    size=st.integers(1, 200_000),
    rate=st.floats(0, 1, width=32),
    op=st.sampled_from(["mix", "add"]),
    kind=st.sampled_from(["full", "delta"]),
    seed=st.integers(0, 1000),
)
def test_bits_do_not_depend_on_the_number_of_threads(size: int, rate: float, op: str, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, base, new = (rng.standard_normal(size, dtype=np.float32) for _ in range(3))
    results = [
        mixed(theta, base, new, rates=Rates({"m": rate}, op), kind=kind, threads=threads) for threads in (1, 2, 3, 7)
    ]
    assert all(np.array_equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_bits_of_several_blocks_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    rng = np.random.default_rng(1)
    theta, base, new = (rng.standard_normal(2 * blending.BLOCK + 17, dtype=np.float32) for _ in range(3))
    one, two, five = (mixed(theta, base, new, rates=Rates({"m": 0.37}), kind=kind, threads=n) for n in (1, 2, 5))
    assert np.array_equal(one, two)
    assert np.array_equal(one, five)
    assert not np.array_equal(one, theta)


@given(cut=st.integers(1, 4999), rate=st.floats(0, 1, width=32), seed=st.integers(0, 1000))
def test_bits_do_not_depend_on_where_memory_is_cut(cut: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, base, new = (rng.standard_normal(5000, dtype=np.float32) for _ in range(3))
    whole = {"m": Segments(theta.copy())}
    blending.blend(whole, {"m": Segments(base)}, update({"m": Segments(new)}, "delta"), Rates({"m": rate}))
    parts = []
    for part in (slice(None, cut), slice(cut, None)):
        mine = {"m": Segments(theta[part].copy())}
        blending.blend(
            mine, {"m": Segments(base[part])}, update({"m": Segments(new[part])}, "delta"), Rates({"m": rate})
        )
        parts.append(mine["m"].params)
    assert np.array_equal(whole["m"].params, np.concatenate(parts))


@pytest.fixture(scope="module")
def fused() -> Kernels:
    pytest.importorskip("numba", reason="one-pass mixing needs numba: install the extra `fused`")
    kernels = blending.kernels(blending.FUSED_FROM)
    assert kernels is not TORCH
    return kernels


@given(
    size=st.integers(1, 5000),
    rate=st.one_of(st.floats(-2, 2), st.sampled_from([0.5, -0.5, 1.0, 1e-30])),
    op=st.sampled_from(["mix", "add"]),
    kind=st.sampled_from(["full", "delta"]),
    scale=st.sampled_from([1e-38, 1.0, 1e30]),
    seed=st.integers(0, 1000),
)
def test_one_pass_gives_the_bits_of_two(
    fused: Kernels, size: int, rate: float, op: str, kind: str, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    theta, base, new = (np.float32(scale) * rng.standard_normal(size, dtype=np.float32) for _ in range(3))
    two, one = (mixed(theta, base, new, rates=Rates({"m": rate}, op), kind=kind, kernels=k) for k in (TORCH, fused))
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("op", ["mix", "add"])
@pytest.mark.parametrize("kind", ["full", "delta"])
def test_one_pass_gives_the_same_bits_whoever_helps(fused: Kernels, op: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    theta, base, new = (rng.standard_normal(2 * blending.SHARED_FROM + 17, dtype=np.float32) for _ in range(3))
    rates = Rates({"m": 0.37}, op)
    wanted = mixed(theta, base, new, rates=rates, kind=kind)
    for threads in (1, 2, 5):
        one = mixed(theta, base, new, rates=rates, kind=kind, threads=threads, kernels=fused)
        assert np.array_equal(one, wanted), threads


def test_several_models_are_mixed_at_the_same_time(fused: Kernels) -> None:
    rng = np.random.default_rng(2)
    theta, base, new = (rng.standard_normal(blending.SHARED_FROM, dtype=np.float32) for _ in range(3))
    mine = [{"m": Segments(theta.copy())} for _ in range(4)]

    def mix(model: dict[str, Segments]) -> None:
        torch.set_num_threads(2)  # of this thread: a helper at every call
        for _ in range(5):
            blending.blend(model, {"m": Segments(base)}, update({"m": Segments(new)}, "delta"), RATE, fused)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(mix, mine))
    one = {"m": Segments(theta)}
    for _ in range(5):
        blending.blend(one, {"m": Segments(base)}, update({"m": Segments(new)}, "delta"), RATE)
    assert all(np.array_equal(model["m"].params, one["m"].params) for model in mine)


def test_memory_that_one_pass_cannot_read_is_mixed_in_two(fused: Kernels) -> None:
    theta, base, new = np.random.default_rng(3).standard_normal((3, 100), dtype=np.float32)
    odd = np.frombuffer(b"." + new.tobytes(), np.float32, offset=1)
    assert not odd.flags.aligned
    wanted = mixed(theta, base, new, rates=RATE, kind="delta")
    assert np.array_equal(mixed(theta, base, odd, rates=RATE, kind="delta", kernels=fused), wanted)
    strided = np.repeat(new, 2)[::2]
    assert np.array_equal(mixed(theta, base, strided, rates=RATE, kind="delta", kernels=fused), wanted)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next use of the one-pass kernels import them again."""
    monkeypatch.delitem(sys.modules, "edge_sdk.learn.fused", raising=False)
    monkeypatch.delattr(edge_sdk.learn, "fused", raising=False)


def test_small_models_load_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "numba", None)
    forget(monkeypatch)
    assert blending.kernels(blending.FUSED_FROM - 1) is TORCH
    assert not caplog.records


def test_without_numba_torch_mixes_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    forget(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert blending.kernels(blending.FUSED_FROM) is TORCH
    assert "two passes" in caplog.text
    assert "numba" in caplog.text


def test_kernels_that_round_otherwise_are_not_used(
    fused: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from edge_sdk.learn import fused as module

    def twice(_claimed: np.ndarray, theta: np.ndarray, new: np.ndarray, base: np.ndarray, rate: float) -> None:
        theta += np.float32(rate) * (base - theta) + np.float32(rate) * new

    monkeypatch.setitem(module.LOOPS, ("mix", "delta"), twice)
    with caplog.at_level(logging.INFO):
        assert blending.kernels(blending.FUSED_FROM) is TORCH
    assert "rounds unlike torch" in caplog.text
