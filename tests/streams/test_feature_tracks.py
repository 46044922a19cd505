"""Features on their way into windows: equal to the batch, each hop once, every sample has a fate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import features
from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.feature import Feature, Frames, Inertial, LogSpectrogram, Text
from edge_sdk.core.records import Array, Chunk, LatePart, Window
from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec
from edge_sdk.streams.counters import Drop
from edge_sdk.streams.sound import SpectrogramTrack
from edge_sdk.streams.window import Windower
from tests.helpers.tokenizer_folder import WORDS, save_tokenizer

RATE = 1000
SOUND = LogSpectrogram(rate_hz=RATE, seconds=0.5, n_fft=64, hop=20, frames=24)


def windower(
    feature: Feature | None, shape: tuple[int, ...], *, length_s: float = 0.5, hop_s: float = 0.1, rate_hz: float = 0.0,
    **more: Any,
) -> Windower:  # fmt: skip
    modality = ModalitySpec(name="m", shape=shape, rate_hz=rate_hz, feature=feature)
    window = WindowSpec(length_s=length_s, hop_s=hop_s, deadline_s=0.2, **more)
    return Windower(FederationSpec(name="t", modalities=(modality,), classes=("a", "b"), window=window))


def sound(**more: Any) -> Windower:
    return windower(SOUND, SOUND.shape, **more)


def waveform(n: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(n) * 0.3).astype(np.float32)


def heard(wave: Array, start: int = 0, *, period_ns: int = NS // RATE, **more: Any) -> Chunk:
    """A chunk of a waveform whose sample `start` was taken at start / RATE."""
    return Chunk("m", 0, start * NS // RATE, wave[:, None], period_ns=period_ns, **more)


def parts(windows: Windower, now_ns: int = 10**15) -> dict[int, Window | LatePart]:
    return {item.index: item for item in windows.advance(now_ns)}


def data(item: Window | LatePart) -> Array:
    return item.data if isinstance(item, LatePart) else item.data["m"]


def quality(item: Window | LatePart) -> float:
    return item.quality if isinstance(item, LatePart) else item.quality["m"]


def fates(windows: Windower) -> dict[str, int]:
    """Checks that every sample is used, dropped or pending; returns the drops."""
    counters = windows.counters["m"]
    assert counters.samples == counters.used + sum(counters.dropped.values()) + windows.pending("m")
    return {reason.value: n for reason, n in counters.dropped.items()}


def frames_computed(windows: Windower) -> int:
    track = windows._tracks["m"]
    assert isinstance(track, SpectrogramTrack)
    return track.computed


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_spectrograms_are_those_of_their_samples_however_the_sound_is_cut(sizes: list[int]) -> None:
    windows, wave, at = sound(), waveform(sum(sizes)), 0
    for size in sizes:
        windows.push(heard(wave[at : at + size], at))
        at += size
    got = parts(windows)
    assert sorted(got) == list(range(max(0, (len(wave) - 500) // 100 + 1)))
    for index, item in got.items():
        expected = features.spectrogram(wave[100 * index : 100 * index + 500], SOUND)
        assert np.abs(data(item) - expected).max() < 1e-5
    assert fates(windows) == {}


def test_each_hop_is_transformed_once() -> None:
    """Ten seconds, windows that overlap by four fifths: what one by one takes 24 frames per window."""
    windows, wave = sound(), waveform(10 * RATE)
    for at in range(0, len(wave), 20):
        windows.push(heard(wave[at : at + 20], at))
    count = len(parts(windows))
    assert count == 96
    hops, edges = len(wave) // SOUND.hop, 2  # the first two frames of a window look before it
    assert frames_computed(windows) <= hops + edges * count
    assert frames_computed(windows) < 0.3 * SOUND.frames * count


def test_a_short_window_is_tiled_and_still_shares_its_hops() -> None:
    windows, wave = sound(length_s=0.3, hop_s=0.1), waveform(4 * RATE)
    windows.push(heard(wave))
    got = parts(windows)
    for index, item in got.items():
        assert np.abs(data(item) - features.spectrogram(wave[100 * index : 100 * index + 300], SOUND)).max() < 1e-5
    tiled = SOUND.frames - (300 - 32) // SOUND.hop - 1  # frames that look at the repetition
    assert frames_computed(windows) <= len(wave) // SOUND.hop + (2 + tiled) * len(got)


def test_a_window_between_two_hops_is_moved_by_half_a_hop_at_most() -> None:
    windows, wave = sound(hop_s=0.033), waveform(2 * RATE)
    windows.push(heard(wave))
    for index, item in parts(windows).items():
        start = round(33 * index / SOUND.hop) * SOUND.hop
        assert np.abs(data(item) - features.spectrogram(wave[start : start + 500], SOUND)).max() < 1e-5
        assert abs(start - 33 * index) <= SOUND.hop / 2


def test_a_drifting_sound_card_is_followed() -> None:
    """100 ppm over an hour are 360 ms: windows are cut where the time says, not where the count does."""
    windows = sound(hop_s=0.5)
    period_ns, n = NS / RATE * 1.0001, 500
    for k in range(7200):
        wave = np.zeros(n, np.float32)
        wave[:: n // 2] = 0.5
        windows.push(Chunk("m", k, round(k * n * period_ns), wave, period_ns=round(period_ns), t_err_ns=NS // 1000))
        for index, item in parts(windows, round(k * n * period_ns)).items():
            if index > 7000 and isinstance(item, Window):
                assert abs(item.age_s["m"] - 0.2) < 0.03
    counters = windows.counters["m"]
    assert counters.dropped == {}
    assert counters.used + windows.pending("m") == 7200 * n
    assert windows.windows + windows.late_parts == pytest.approx(7200 * 1.0001, abs=3)


def test_holes_are_silence_that_lowers_the_quality_and_long_ones_end_the_run() -> None:
    wave = waveform(5 * RATE)
    windows = sound(min_quality=0.8)
    windows.push(heard(wave[:1000], 0))
    windows.push(heard(wave[1060:2500], 1060))  # 60 of 500 samples: bridged
    windows.push(heard(wave[2800:5000], 2800))  # 300: not
    got = parts(windows)
    silent = np.concatenate([wave[:1000], np.zeros(60, np.float32), wave[1060:2500]])
    assert np.abs(data(got[8]) - features.spectrogram(silent[800:1300], SOUND)).max() < 1e-5
    assert quality(got[8]) == pytest.approx(0.88)
    assert quality(got[4]) == quality(got[20]) == 1.0
    assert sorted(got) == [*range(21), *range(28, 46)]
    assert fates(windows) == {}


def test_a_gap_that_the_driver_tells_begins_a_new_run() -> None:
    windows = sound()
    windows.push(heard(waveform(450)))
    windows.push(heard(waveform(700), 450, gap_before=True))
    assert sorted(parts(windows)) == [5, 6]  # the first that begins after 0.45 s
    assert fates(windows) == {"gap": 450, "unmatched": 40}  # two hops: the window begins at the nearest


def test_what_came_before_is_not_heard_twice() -> None:
    windows, wave = sound(), waveform(1500)
    windows.push(heard(wave[:1000]))
    windows.push(heard(wave[800:1500], 800))
    got = parts(windows)
    assert sorted(got) == list(range(11))
    assert np.abs(data(got[8]) - features.spectrogram(wave[800:1300], SOUND)).max() < 1e-5
    assert fates(windows) == {"overlap": 200}


def test_too_many_filled_samples() -> None:
    windows, wave = sound(min_quality=0.8), waveform(3 * RATE)
    for start in (0, 160, 320, 480, 640, 800, 960):  # a third is missing
        windows.push(heard(wave[start : start + 110], start))
    assert parts(windows) == {}
    assert fates(windows)["low_quality"] > 0


def test_samples_too_late_for_anything() -> None:
    windows = sound()
    windows.advance(2000 * NS)
    windows.push(heard(waveform(1000)))
    assert parts(windows) == {}
    assert fates(windows)["too_late"] > 500


def test_what_is_no_sound_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    windows = sound()
    stereo = Chunk("m", 0, 0, np.zeros((50, 2), np.float32), period_ns=NS // RATE)
    windows.push(stereo)
    with caplog.at_level(logging.WARNING):
        for at in (0, 1):
            windows.push(heard(waveform(100), 100 * at, period_ns=NS // 44_100))
    windows.push(heard(np.full(30, np.nan, np.float32)))
    assert fates(windows) == {"malformed": 250, "non_finite": 30}
    assert caplog.messages == [
        "modality m: its sensor delivers 44101 Hz, its feature takes 1000; set sensors.m.options.rate_hz = 1000"
    ]


def test_integers_are_full_scale() -> None:
    wave = (waveform(600) * 20_000).clip(-32768, 32767).astype(np.int16)
    windows = sound()
    windows.push(heard(wave))
    assert np.abs(data(parts(windows)[0]) - features.spectrogram(wave[:500] / 32768, SOUND)).max() < 1e-5


CLIP = Frames(count=3, size=6)


def image(shade: int, *, size: tuple[int, int] = (8, 10), channels: int = 3) -> Array:
    return np.full((channels, *size), shade, np.uint8)


def filmed(times_s: list[float], shades: list[int] | None = None, **more: Any) -> Chunk:
    times = np.array([round(t * NS) for t in times_s], np.int64)
    frames = np.stack([image(s, **more) for s in shades or range(len(times))])
    return Chunk("m", 0, int(times[0]), frames, times_ns=times)


def clips(length_s: float = 1.0, hop_s: float = 1.0, **more: Any) -> Windower:
    return windower(CLIP, (3, 18, 6), length_s=length_s, hop_s=hop_s, **more)


def shades(item: Window | LatePart) -> list[float]:
    return [float(v) for v in data(item)[0, 3::6, 3]]


def test_a_clip_is_its_middles() -> None:
    windows = clips()
    windows.push(filmed([i / 30 for i in range(31)]))
    item = parts(windows, NS)[0]
    assert data(item).shape == (3, 18, 6)
    assert shades(item) == [5, 15, 25]
    assert quality(item) == 1.0
    stacked = features.stack_frames(np.stack([np.moveaxis(image(i), 0, 2) for i in range(30)]), size=6)
    assert np.array_equal(data(item), stacked)
    assert fates(windows) == {"superseded": 27}
    assert windows.pending("m") == 1


def test_overlapping_clips_choose_their_own_frames_and_each_is_counted_once() -> None:
    windows = clips(hop_s=0.5)
    for i in range(120):
        windows.push(filmed([i / 30], [i]))
    got = parts(windows)
    assert shades(got[0]) == [5, 15, 25]
    assert shades(got[1]) == [20, 30, 40]
    assert shades(got[5]) == [80, 90, 100]
    assert "unmatched" not in fates(windows)
    assert windows.counters["m"].used >= 21


def test_few_frames_and_a_window_of_which_a_part_is_missing() -> None:
    windows = clips(min_quality=0.6)
    windows.push(filmed([0.1, 0.9, 1.6, 2.1, 2.5, 2.9]))
    got = parts(windows)
    assert shades(got[0]) == [0, 0, 1]  # the frame at 0.1 s is nearer to the middle than the one at 0.9 s
    assert quality(got[0]) == pytest.approx(2 / 3)
    assert 1 not in got  # one frame for three parts
    assert shades(got[2]) == [3, 4, 5]
    assert fates(windows) == {"low_quality": 1}


def test_clips_at_the_deadline_and_late() -> None:
    windows = clips()
    windows.advance(0)
    windows.push(filmed([0.1, 0.5, 0.9]))
    assert windows.next_deadline_ns == 1.2 * NS
    assert parts(windows, NS) == {}
    assert isinstance(parts(windows, round(1.2 * NS))[0], Window)
    windows.advance(60 * NS)
    windows.push(filmed([1.1, 1.5, 1.9, 2.0]))
    assert isinstance(parts(windows, 61 * NS)[1], LatePart)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 1, 8, 8), np.uint8), np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 3), np.uint8)]
)
def test_what_is_no_image(frames: Array) -> None:
    windows = clips()
    windows.push(Chunk("m", 0, 0, frames, period_ns=NS // 30))
    assert fates(windows) == {"malformed": 2}


def shaken(rate_hz: float, seconds: float, *, jitter: float = 0.0) -> tuple[Array, Array]:
    """Times and three channels of a movement at 3 Hz under a vibration at 47 Hz."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    t = t + np.random.default_rng(0).uniform(-jitter, jitter, len(t)) / rate_hz
    movement = np.sin(2 * np.pi * 3 * t) + 0.8 * np.sin(2 * np.pi * 47 * t)
    return np.rint(t * NS).astype(np.int64), np.stack([movement, 0 * t, 9.81 + 0 * t], axis=1).astype(np.float32)


def inertial(feature: Feature | None, **more: Any) -> Windower:
    return windower(feature, (3, 100), length_s=2.0, hop_s=1.0, rate_hz=50.0, **more)


@pytest.mark.parametrize("rate_hz", [100.0, 119.0, 200.0, 417.0, 1000.0])
def test_a_faster_sensor_is_filtered(rate_hz: float) -> None:
    """A vibration at 47 Hz looks like 3 Hz at 50 Hz: it must go, the movement must stay."""
    times, values = shaken(rate_hz, 6.0)
    grid = np.arange(100) / 50
    outcome = {}
    for name, feature in (("filtered", Inertial()), ("plain", None)):
        windows = inertial(feature)
        for at in range(0, len(times), 10):
            windows.push(Chunk("m", 0, int(times[at]), values[at : at + 10], times_ns=times[at : at + 10]))
        got = parts(windows)
        assert sorted(got) == [0, 1, 2, 3] or sorted(got) == [0, 1, 2, 3, 4]
        expected = np.sin(2 * np.pi * 3 * (grid + 1))
        outcome[name] = float(np.abs(data(got[1])[0] - expected)[10:-10].max())
        assert np.allclose(data(got[1])[2], 9.81, atol=1e-4)
        assert quality(got[1]) == 1.0
        fates(windows)
    assert outcome["filtered"] < 0.08
    assert outcome["plain"] > 0.3


def test_the_same_windows_from_a_slow_and_a_fast_sensor() -> None:
    got = []
    for rate_hz in (50.0, 200.0):
        windows = windower(Inertial(), (3, 100), length_s=2.0, hop_s=0.77, rate_hz=50.0)  # starts off the grid
        times = np.rint(np.arange(round(8 * rate_hz)) / rate_hz * NS).astype(np.int64)
        wave = np.sin(2 * np.pi * 2 * times / NS)[:, None].repeat(3, axis=1).astype(np.float32)
        windows.push(Chunk("m", 0, 0, wave, period_ns=round(NS / rate_hz)))
        got.append(parts(windows))
    assert got[0].keys() == got[1].keys()
    for index in got[0]:
        assert np.abs(data(got[0][index]) - data(got[1][index]))[:, 8:-8].max() < 5e-3


def test_sensors_that_say_their_period_in_different_ways() -> None:
    times, values = shaken(200.0, 4.0)
    chunks = {
        "period": [Chunk("m", 0, 0, values, period_ns=5_000_000)],
        "times": [Chunk("m", 0, 0, values, times_ns=times)],
        "one by one": [Chunk("m", i, int(t), values[i : i + 1]) for i, t in enumerate(times)],
    }
    results = {}
    for name, pushed in chunks.items():
        windows = inertial(Inertial())
        for chunk in pushed:
            windows.push(chunk)
        results[name] = parts(windows)
        fates(windows)
    for name in ("times", "one by one"):
        assert np.allclose(data(results[name][1]), data(results["period"][1]), atol=1e-5)
    told = inertial(Inertial(source_hz=200.0))
    assert told.pending("m") == 0
    told.push(chunks["one by one"][0])
    assert (told.pending("m"), told.counters["m"].samples) == (1, 1)


def test_a_sample_without_a_period_waits_for_the_next() -> None:
    windows = inertial(Inertial())
    windows.push(Chunk("m", 0, 0, np.zeros((1, 3), np.float32)))
    assert windows.pending("m") == 1
    assert fates(windows) == {}


def test_a_slower_sensor_counts_as_measured_and_its_lost_samples_do_not() -> None:
    times, values = shaken(20.0, 6.0)
    windows = inertial(Inertial())
    windows.push(Chunk("m", 0, 0, values, times_ns=times))
    assert quality(parts(windows)[1]) == 1.0
    windows = inertial(Inertial(), min_quality=0.5)
    keep = np.ones(len(times), bool)
    keep[30:34] = False
    windows.push(Chunk("m", 0, 0, values[keep], times_ns=times[keep]))
    assert 0.8 < quality(parts(windows)[1]) < 0.95


def test_gravity_is_turned_up() -> None:
    times, values = shaken(100.0, 4.0)
    windows = inertial(Inertial(gravity=True))
    windows.push(Chunk("m", 0, 0, values[:, [2, 0, 1]], times_ns=times))  # the sensor lies on its side
    mean = data(parts(windows)[1]).mean(axis=1)
    assert mean == pytest.approx([0, 0, 9.81], abs=1e-3)


def lines(*said: tuple[float, str], padding: int = 0) -> list[Chunk]:
    out = []
    for t, text in said:
        tokens = np.array([[*features.byte_tokens(text), *[0] * padding]], np.int32)
        out.append(Chunk("m", 0, round(t * NS), tokens))
    return out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def words(item: Window | LatePart) -> list[str]:
    tokens, there = data(item)
    assert not tokens[there == 0].any()
    return [WORDS[int(n)] for n in tokens[there == 1]]


def test_the_lines_of_a_window_become_tokens(tokenizer: Path) -> None:
    windows = windower(Text(tokenizer=str(tokenizer), length=6), (2, 6), length_s=1.0, hop_s=1.0)
    windows.prepare()
    windows.advance(0)
    for chunk in lines((0.2, "one two"), (0.7, "three"), (1.5, "two"), (3.5, "one two three one two three"), padding=3):
        windows.push(chunk)
    got = parts(windows)
    assert words(got[0]) == ["[CLS]", "one", "two", "three", "[SEP]"]
    assert words(got[1]) == ["[CLS]", "two", "[SEP]"]
    assert 2 not in got  # nothing was said
    assert words(got[3]) == ["[CLS]", "one", "two", "three", "one", "[SEP]"]
    assert data(got[0]).dtype == np.float32
    assert fates(windows) == {}
    assert windows.counters["m"].used == 4


def test_a_line_in_two_windows_is_used_once(tokenizer: Path) -> None:
    windows = windower(Text(tokenizer=str(tokenizer), length=6), (2, 6), length_s=1.0, hop_s=0.5)
    for chunk in lines((0.7, "one"), (5.0, "two")):
        windows.push(chunk)
    got = parts(windows)
    assert words(got[0]) == words(got[1]) == ["[CLS]", "one", "[SEP]"]
    assert fates(windows) == {}
    assert windows.counters["m"].used == 2


def test_numbers_that_are_no_text_are_counted(tokenizer: Path) -> None:
    windows = windower(Text(tokenizer=str(tokenizer), length=6), (2, 6), length_s=1.0, hop_s=1.0)
    windows.push(Chunk("m", 0, 0, np.zeros((1, 4), np.float32)))
    assert fates(windows) == {Drop.MALFORMED.value: 1}


def test_a_tokenizer_that_is_not_there_is_told_before_anything_is_sensed() -> None:
    windows = windower(Text(tokenizer="/no/such/folder", length=6), (2, 6), length_s=1.0, hop_s=1.0)
    with pytest.raises(ConfigError, match=r"modality m: feature.tokenizer: there is no folder '/no/such/folder'"):
        windows.prepare()
