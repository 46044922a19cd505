from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.records import Segments
from edge_sdk.learn import deltas


def model(*sizes: int, seed: int | None = None) -> dict[str, Segments]:
    rng = np.random.default_rng(seed)
    return {
        f"m{i}": Segments(np.zeros(n, np.float32) if seed is None else rng.normal(size=n).astype(np.float32))
        for i, n in enumerate(sizes)
    }


def test_a_small_model_is_its_own_vector() -> None:
    start, trained = model(3, 2), {"m1": Segments(np.array([1, -2], np.float32))}
    found = deltas.sketch(trained, start, ["m0", "m1"])
    assert found.shape == (deltas.SIZE,)
    assert found[:5].tolist() == [0, 0, 0, -1, 2]
    assert not found[5:].any()
    assert deltas.sketch(trained, start, ["m1"])[:2].tolist() == [-1, 2]


@pytest.mark.parametrize("sizes", [(3, 2), (70_000, 30_000)])
def test_the_vector_of_all_modules_is_the_sum_of_theirs(sizes: tuple[int, int]) -> None:
    start, trained, names = model(*sizes, seed=0), model(*sizes, seed=1), ["m0", "m1"]
    parts = [deltas.sketch({name: trained[name]}, start, names) for name in names]
    np.testing.assert_allclose(parts[0] + parts[1], deltas.sketch(trained, start, names), atol=1e-9)


def test_distances_between_changes_survive_the_projection() -> None:
    n = 200_000
    start = model(n)
    changes = [model(n, seed=seed)["m0"].params for seed in range(5)]
    changes.append(changes[0] + 0.1 * changes[1])
    vectors = [deltas.sketch({"m0": Segments(-c)}, start, ["m0"]) for c in changes]
    for i in range(6):
        for j in range(i):
            true = float(np.linalg.norm(changes[i] - changes[j]))
            assert np.linalg.norm(vectors[i] - vectors[j]) == pytest.approx(true, rel=0.06)  # five standard deviations


def test_places_and_signs_are_spread_evenly_and_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 100 * deltas.SIZE
    start, trained = model(n), {"m0": Segments(-np.ones(n, np.float32))}
    found = deltas.sketch(trained, start, ["m0"])  # sums of about 100 random signs
    assert abs(found.mean()) < 1
    assert found.std() == pytest.approx(10, rel=0.1)
    monkeypatch.setattr(deltas, "_BLOCK", 1000)
    np.testing.assert_allclose(deltas.sketch(trained, start, ["m0"]), found, atol=1e-9)


def test_the_projection_is_written_down() -> None:
    """Devices and servers of different releases must agree: splitmix64 of the coordinate, low bits and top bit."""
    start = model(5000)
    for i in (0, 1, 4321):
        trained = np.zeros(5000, np.float32)
        trained[i] = -1.0
        z = (i * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z ^= z >> 31
        found = deltas.sketch({"m0": Segments(trained)}, start, ["m0"])
        assert np.flatnonzero(found).tolist() == [z % 4096]
        assert found[z % 4096] == (-1.0 if z >> 63 else 1.0)
