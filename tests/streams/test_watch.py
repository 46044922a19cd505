"""Faults of sensors are told from what people do: on recordings of people, with faults put in."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from edge_sdk.core.config import HealthConfig
from edge_sdk.core.feature import Frames, LogSpectrogram
from edge_sdk.core.records import Array, Chunk, LatePart, Window
from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec
from edge_sdk.streams.summary import of_images, of_series
from edge_sdk.streams.watch import Watch, Watches, read_notes
from edge_sdk.streams.window import Windower
from tests.helpers.streams import chunk, inertial_spec

ROOT = Path(__file__).parents[2]
HAR = np.load(ROOT / "edge_sdk" / "datasets" / "data" / "uci_har_excerpt.npz")
UTD = np.load(ROOT / "tests" / "data" / "utd_mhad_small.npz")
PEOPLE = sorted({int(p) for p in HAR["subject"]})
LEARN = 64


def person(number: int, modality: str, *, rounds: int = 1) -> Array:
    """The windows of one person in the order of the day, (n, 3, 128): walking, stairs, sitting, standing, lying."""
    rows = np.flatnonzero(HAR["subject"] == number)
    windows = HAR[modality][rows].astype(np.float32) * np.float32(HAR[f"{modality}_step"])
    return np.concatenate([windows] * rounds)


def watched(windows: Array, **config: Any) -> tuple[Watch, list[dict[str, list[int]]], list[float]]:
    """Returns the watch, the faults after every window, and the trust in every window."""
    watch = Watch(HealthConfig(**{"learn_windows": LEARN, **config}))
    faults, trust = [], []
    for window in windows:
        trust.append(watch.assess(of_series(window)))
        faults.append(dict(watch.faults))
    return watch, faults, trust


@pytest.mark.parametrize("modality", ["acc", "gyro"])
@pytest.mark.parametrize("learn", [8, LEARN])
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_what_people_do_is_no_fault(modality: str, learn: int, order: int) -> None:
    """Also of somebody who has only been seen walking, or only lying, when the learning ends."""
    for number in PEOPLE[::5]:
        _, faults, trust = watched(person(number, modality, rounds=3)[::order], learn_windows=learn, drift_windows=64)
        assert not any(faults)
        assert set(trust) == {1.0}


def test_jogging_bowling_and_serving_after_a_walk_are_no_fault() -> None:
    for kind in ("acc", "gyro"):
        names = [f"{kind}_{name}" for name in ("a23_s5_t2", "a22_s1_t1", "a12_s3_t1", "a17_s8_t4")]  # the walk first
        windows = [UTD[name].T[:, at : at + 64] for name in names for at in range(0, len(UTD[name]) - 64, 8)]
        _, faults, _ = watched(np.stack(windows), learn_windows=8)
        assert not any(faults)


def test_a_stuck_axis() -> None:
    windows = person(1, "acc", rounds=2)
    windows[100:, 1] = windows[99, 1, -1]
    _, faults, trust = watched(windows)
    assert faults[101] == {}  # it has to last
    assert all(f == {"stuck": [1]} for f in faults[102:])
    assert trust[102] == pytest.approx(2 / 3)


def test_a_stuck_axis_that_moves_again() -> None:
    windows = person(1, "acc", rounds=2)
    windows[100:110, 1] = 0.5
    _, faults, trust = watched(windows)
    assert faults[109] == {"stuck": [1]}
    assert faults[110] == {}
    assert trust[110] == 1.0


@pytest.mark.parametrize("modality", ["acc", "gyro"])
def test_a_saturated_axis(modality: str) -> None:
    windows = person(2, modality, rounds=2)
    moving = np.flatnonzero(windows[:, 0].std(axis=1) > windows[:, 0].std(axis=1).max() / 3)
    chosen = moving[moving >= LEARN][:12]
    sequence = np.concatenate([windows[:LEARN], windows[chosen]])
    limit = np.quantile(sequence[LEARN:, 0], 0.8)
    sequence[LEARN:, 0] = np.minimum(sequence[LEARN:, 0], limit)  # a range that is too small
    _, faults, _ = watched(sequence)
    assert faults[LEARN + 1] == {}
    assert faults[-1] == {"saturated": [0]}


def test_a_noise_floor_that_rises() -> None:
    windows = person(3, "acc")
    still = windows[windows[:, 0].std(axis=1) < 0.05]
    sequence = np.concatenate([still, still])[: 2 * LEARN]
    sequence[LEARN + 20 :, 2] += np.random.default_rng(0).normal(0, 0.1, sequence[LEARN + 20 :, 2].shape)
    _, faults, _ = watched(sequence)
    assert not any(faults[: LEARN + 20])
    assert all(f == {"noise": [2]} for f in faults[LEARN + 22 :])


@pytest.mark.parametrize("modality", ["acc", "gyro"])
def test_a_drifting_axis(modality: str) -> None:
    """A bias that creeps by four times the spread of what was learned over two hours of one person's day."""
    windows = person(5, modality, rounds=10)
    spread = windows[:LEARN].mean(axis=2)[:, 0].std()
    ramp = np.zeros(len(windows), np.float32)
    ramp[200:] = np.linspace(0, 30 * spread, len(windows) - 200)
    windows[:, 0] += ramp[:, None]
    watch, faults, _ = watched(windows)
    assert not any(faults[:250])
    assert faults[-1] == {"drifting": [0]}
    stays = windows[-60:].copy()
    for window in stays:  # it has stopped, far from home: still wrong
        watch.assess(of_series(window))
    assert watch.faults == {"drifting": [0]}
    for window in person(5, modality, rounds=2):  # repaired
        watch.assess(of_series(window))
    assert watch.faults == {}


def test_faulty_windows_are_not_learned_from() -> None:
    windows = person(3, "acc")
    still = windows[windows[:, 0].std(axis=1) < 0.05]
    loud = np.concatenate([still, still, still])[: 3 * LEARN].copy()
    loud[LEARN:] += np.random.default_rng(0).normal(0, 0.1, loud[LEARN:].shape)
    watch, faults, _ = watched(loud)
    assert faults[-1] == {"noise": [0, 1, 2]}
    assert watch.reference is not None
    assert watch.reference.noise.max() < 0.02


def test_the_summary_of_a_window() -> None:
    rng = np.random.default_rng(1)
    t = np.arange(4000) / 50
    x = np.stack(
        [rng.normal(0, 0.2, 4000), 5 + np.sin(2 * np.pi * t), np.sin(2 * np.pi * t) + rng.normal(0, 0.2, 4000)]
    )
    s = of_series(x)
    assert s.noise == pytest.approx([0.2, 0, 0.2], abs=0.02)
    assert s.white == pytest.approx([1, 0, 0.04 / 0.54], abs=0.05)
    assert s.mean == pytest.approx([0, 5, 0], abs=0.02)
    assert (s.low[1], s.high[1]) == pytest.approx((4, 6), abs=3e-3)
    assert of_series(np.clip(x, -0.9, 0.9)[2:]).clipped[0] > 0.05
    assert of_series(np.clip(x, -9, 9)[2:]).clipped[0] < 0.001
    single = of_series(np.array([[3.0], [4.0]]))
    assert not single.std.any()
    assert not single.noise.any()


def test_the_summary_of_images() -> None:
    pixels = np.zeros((2, 8, 4), np.float32)
    pixels[0, 4:] = 10
    pixels[1] = np.arange(32).reshape(8, 4)
    s = of_images(pixels, 2)
    assert (s.mean.tolist(), s.std.tolist()) == ([5.0, 15.5], [5.0, 8.0])
    assert (s.low.tolist(), s.high.tolist()) == ([0, 0], [10, 31])


def windows_of(windower: Windower, chunks: Iterator[Chunk]) -> list[Window]:
    windower.advance(0)
    items = []
    for c in chunks:
        windower.push(c)
        items += [windower.assessed(item) for item in windower.advance(c.t_ns)]
    return [item for item in items if isinstance(item, Window)]


def test_a_late_part_is_assessed_too() -> None:
    windower = Windower(
        inertial_spec("acc", "gyro", hop_s=2.56), watches=Watches(HealthConfig(learn_windows=4, persist_windows=1))
    )
    rng = np.random.default_rng(0)
    late: list[LatePart] = []
    windower.advance(0)
    for k in range(9):
        acc, gyro = chunk("acc", 128 * k, 128), chunk("gyro", 128 * k, 128)
        shown = rng.normal(size=(128, 3)).astype(np.float32)
        shown[:, 0] *= k != 8
        windower.push(Chunk("acc", k, acc.t_ns, rng.normal(size=(128, 3)).astype(np.float32), period_ns=acc.period_ns))
        windower.advance(acc.t_ns + 100 * NS)
        windower.push(Chunk("gyro", k, gyro.t_ns, shown, period_ns=gyro.period_ns))
        found = [windower.assessed(item) for item in windower.advance(acc.t_ns + 100 * NS)]
        late += [item for item in found if isinstance(item, LatePart)]
    assert [part.quality for part in late] == [*[1.0] * 8, pytest.approx(2 / 3)]


def watching(feature: Any, shape: tuple[int, ...], **config: Any) -> Windower:
    modality = ModalitySpec(name="m", shape=shape, feature=feature)
    window = WindowSpec(length_s=1.0, hop_s=1.0)
    spec = FederationSpec(name="t", modalities=(modality,), classes=("a", "b"), window=window)
    return Windower(spec, watches=Watches(HealthConfig(**{"learn_windows": 8, **config})))


SOUND = LogSpectrogram(rate_hz=1000, seconds=1.0, n_fft=64, hop=20, frames=48)


@pytest.mark.parametrize("kind", ["stuck", "saturated"])
def test_a_microphone(kind: str) -> None:
    """What a spectrogram, standardised per window, would not show."""

    def heard() -> Iterator[Chunk]:
        rng = np.random.default_rng(0)
        for second in range(24):
            wave = rng.normal(0, 0.05 if second % 2 else 0.2, (1000, 1)).astype(np.float32)  # quiet and loud
            if second >= 16:
                wave = wave * 0 if kind == "stuck" else (wave * 40).clip(-1, 1)
            yield Chunk("m", second, second * NS, wave, period_ns=NS // 1000)

    windower = watching(SOUND, SOUND.shape)
    found = windows_of(windower, heard())
    assert {w.quality["m"] for w in found[:16]} == {1.0}
    assert found[-1].quality["m"] == 0.0
    assert windower.watches.faults["m"][kind] == [0]


def test_a_camera_that_is_frozen_and_one_that_looks_into_the_sun() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 200, (3, 12, 12))

    def filmed(fault: str) -> Iterator[Chunk]:
        frame = scene
        for k in range(240):  # ten frames a second
            if k < 160 or fault == "saturated":
                frame = scene + rng.integers(0, 6, scene.shape) + (k // 40)
            if k >= 160 and fault == "saturated":
                frame = (frame * 3).clip(0, 255)
            yield Chunk("m", k, k * NS // 10, frame[None].astype(np.uint8))

    for fault in ("stuck", "saturated"):
        windower = watching(Frames(count=3, size=12), (3, 36, 12))
        found = windows_of(windower, filmed(fault))
        assert {w.quality["m"] for w in found[:16]} == {1.0}
        assert found[-1].quality["m"] == 0.0
        assert windower.watches.faults == {"m": {fault: [0, 1, 2]}}


def test_windows_notes_and_the_one_who_wants_to_know(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, ...]] = []
    watches = Watches(HealthConfig(learn_windows=4, persist_windows=1), lambda: told.append(watches.notes))
    windower = Windower(inertial_spec("acc", hop_s=2.56), watches=watches)
    rng = np.random.default_rng(0)

    def worn() -> Iterator[Chunk]:
        for k in range(10):
            c = chunk("acc", 128 * k, 128)
            data = rng.normal(size=(128, 3)).astype(np.float32)
            if 6 <= k < 8:
                data[:, 1:] = 9.0
            yield Chunk("acc", k, c.t_ns, data, period_ns=c.period_ns)

    with caplog.at_level(logging.INFO):
        found = windows_of(windower, worn())
    assert [round(w.quality["acc"], 3) for w in found] == [1, 1, 1, 1, 1, 1, 0.333, 0.333, 1, 1]
    sentence = "modality acc: stuck: channels 1, 2 do not move"
    assert told == [(sentence,), ()]
    assert caplog.messages == [f"{sentence}; its windows count less until it looks again as learned",
                               "modality acc: stuck: over"]  # fmt: skip


@pytest.mark.parametrize("config", [{"enabled": False}, {"ignore": ("acc",)}])
def test_nobody_watches(config: dict[str, Any]) -> None:
    watches = Watches(HealthConfig(learn_windows=2, persist_windows=1, **config))
    windows = person(1, "acc")[:20]
    windows[10:] = 0
    assert {watches.assess("acc", partial(of_series, w)) for w in windows} == {1.0}
    assert watches.assess("note", None) == 1.0


def test_what_was_learned_outlives_a_restart(tmp_path: Path) -> None:
    path, windows = tmp_path / "statistics.json", person(1, "acc")
    first = Watches(HealthConfig(learn_windows=32, persist_windows=1))
    first.keep(path, "spec")
    for window in windows[:40]:
        first.assess("acc", partial(of_series, window))
    first.save()
    second = Watches(HealthConfig(learn_windows=32, persist_windows=1))
    second.keep(path, "spec")
    assert second.assess("acc", partial(of_series, windows[41])) == 1.0
    assert (
        second.assess("acc", partial(of_series, windows[0] * 0)) < 1.0
    )  # no need to learn again, and not from a broken sensor
    assert read_notes(path) == ("modality acc: stuck: channels 0, 1, 2 do not move",)
    other = Watches(HealthConfig(learn_windows=32, persist_windows=1))
    other.keep(path, "another spec")
    assert other.assess("acc", partial(of_series, windows[0] * 0)) == 1.0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": "spec", "learned": {"acc": {"count": 1}}}', "\x00"])
def test_a_damaged_file_is_learned_anew(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(content)
    watches = Watches(HealthConfig())
    watches.keep(path, "spec")
    assert "learned anew" in caplog.text
    assert read_notes(path) == ()
    assert watches.assess("acc", partial(of_series, person(1, "acc")[0])) == 1.0
    watches.save()
    assert json.loads(path.read_text())["learned"]["acc"]["count"] == 1


def test_a_disk_that_takes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watches = Watches(HealthConfig())
    watches.keep(tmp_path / "gone" / "statistics.json", "spec")
    watches.assess("acc", partial(of_series, person(1, "acc")[0]))
    watches.save()
    watches.save()
    assert caplog.text.count("cannot be written") == 1
