"""The synthetic sensor does what its options say, faults included."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.records import Chunk
from sensors.synthetic import SyntheticDriver


def opened(**options: object) -> SyntheticDriver:
    driver = SyntheticDriver("s", options)
    driver.now_ns = lambda: 0
    driver.epoch_ns = 0
    driver.open()
    driver.now_ns = lambda: 10**15
    return driver


def some(driver: SyntheticDriver, n: int) -> list[Chunk]:
    return [c for c in (driver.read(0.0) for _ in range(n)) if c is not None]


def test_sine() -> None:
    chunks = some(opened(rate_hz=100.0, channels=2, chunk=25, frequency_hz=4.0), 4)
    data = np.concatenate([c.data for c in chunks])
    t = np.arange(100) / 100
    assert data.dtype == np.float32
    assert np.allclose(data[:, 0], np.sin(2 * np.pi * 4 * t), atol=1e-5)
    assert [c.t_ns for c in chunks] == [0, NS // 4, NS // 2, 3 * NS // 4]


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (some(opened(kind="noise", seed=s), 3) for s in (1, 1, 2))
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].data, other[0].data)


def test_images_and_feature_vectors() -> None:
    [image] = some(opened(kind="image", channels=3, height=8, width=6, chunk=1, rate_hz=30), 1)
    assert (image.data.shape, image.data.dtype) == ((1, 3, 8, 6), np.uint8)
    [vector] = some(opened(kind="feature", channels=74, chunk=2), 1)
    assert vector.data.shape == (2, 74)


def test_drift_and_jitter() -> None:
    chunks = some(opened(drift_ppm=1000.0, rate_hz=100.0, chunk=100), 11)
    assert chunks[-1].t_ns == pytest.approx(10 * NS / 1.001, abs=2)
    jittered = some(opened(jitter_s=0.01, rate_hz=100.0, chunk=100), 50)
    off = np.array([c.t_ns - i * NS for i, c in enumerate(jittered)])
    assert np.abs(off).max() <= 1e7
    assert off.std() > 3e6
    assert all(c.t_err_ns == 10_000_000 for c in jittered)


def test_gaps() -> None:
    chunks = some(opened(rate_hz=100.0, chunk=10, gap_every_s=1.0, gap_s=0.3), 40)
    starts = np.array([c.t_ns for c in chunks])
    gaps = np.flatnonzero(np.diff(starts) > 150_000_000) + 1
    assert len(gaps) >= 3
    assert [i for i, c in enumerate(chunks) if c.gap_before] == gaps.tolist()
    assert set(np.diff(starts)[gaps - 1].tolist()) == {400_000_000}


def test_end() -> None:
    driver = opened(rate_hz=100.0, chunk=64, duration_s=1.0)
    assert [len(c.data) for c in some(driver, 2)] == [64, 36]
    with pytest.raises(EOFError):
        driver.read(0.0)


def test_failures() -> None:
    driver = SyntheticDriver("s", {"fail_opens": 2, "fail_after_s": 1.0})
    now = 0
    driver.now_ns = lambda: now
    for _ in range(2):
        with pytest.raises(SensorUnavailable, match="as asked"):
            driver.open()
    driver.open()
    now = NS
    assert driver.read(0.0) is not None
    now = NS + 1
    with pytest.raises(SensorUnavailable, match="fails after"):
        driver.read(0.0)
    driver.close()
    now = 5 * NS
    driver.open()
    now = 5 * NS + NS // 2
    after = driver.read(0.0)
    assert after is not None
    assert after.t_ns >= 5 * NS - 20_000_000  # its time went on while it was closed


def test_unknown_option() -> None:
    with pytest.raises(ConfigError, match="rate"):
        SyntheticDriver("s", {"rate": 3})
