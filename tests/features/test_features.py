"""Features: against librosa, against definitions worked out another way, and under arbitrary input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import features
from edge_sdk.core.errors import DataError
from edge_sdk.core.feature import LogSpectrogram
from edge_sdk.core.records import Array, Float32
from edge_sdk.features import PAPER, Resampler, SpectrogramStream

RATE = PAPER.rate_hz
SMALL = LogSpectrogram(rate_hz=1000, seconds=0.5, n_fft=64, hop=20, frames=24)


def tone(hz: float, seconds: float, rate: int = RATE) -> Float32:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(n: int, seed: int = 0, scale: float = 0.3) -> Float32:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


WAVES = {
    "noise": noise(3 * RATE),
    "quiet noise": noise(3 * RATE, scale=1e-5),
    "tone": tone(440.0, 3.0),
    "short": noise(7001),
    "long and clipped": noise(5 * RATE, scale=2.0),
    "click": np.eye(1, 3 * RATE, 20_000, dtype=np.float32)[0],
    "half silent": np.concatenate([np.zeros(RATE, np.float32), noise(2 * RATE)]),
}


@pytest.mark.parametrize("wave", WAVES.values(), ids=WAVES)
def test_spectrogram_is_librosas(wave: Array) -> None:
    librosa = pytest.importorskip("librosa", reason="librosa is not installed (extra `audio`)")
    repeated = np.clip(np.tile(wave, -(-3 * RATE // len(wave)))[: 3 * RATE], -1, 1)
    expected = np.log(np.abs(librosa.stft(repeated, n_fft=512, hop_length=159)) + 1e-7)[:, :300]
    expected = (expected - expected.mean()) / expected.std()
    got = features.spectrogram(wave)
    assert (got.shape, got.dtype) == ((1, 257, 300), np.float32)
    assert np.abs(got[0] - expected).max() < 1e-4


def test_a_frame_by_the_definition_of_the_transform() -> None:
    wave = noise(SMALL.length)
    centre, n = 5 * SMALL.hop, np.arange(SMALL.n_fft)
    part = wave[centre - 32 : centre + 32] * np.sin(np.pi * n / SMALL.n_fft) ** 2
    magnitude = [abs((part * np.exp(-2j * np.pi * k * n / SMALL.n_fft)).sum()) for k in range(33)]
    column = features.spectrogram(wave, SMALL)[0, :, 5]
    a, b = np.polyfit(np.log(np.array(magnitude) + 1e-7), column, 1)  # standardising is one straight line
    assert np.allclose(a * np.log(np.array(magnitude) + 1e-7) + b, column, atol=1e-4)


def test_a_tone_is_in_its_bin() -> None:
    got = features.spectrogram(tone(1000.0, 3.0))[0]
    assert (got[:, 5:-5].argmax(axis=0) == round(1000 * 512 / RATE)).all()


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_no_contrast_is_zeros(level: float) -> None:
    silent = features.spectrogram(np.full(100, level, np.float32) * 0)
    assert not silent.any()


@pytest.mark.parametrize("wave", [np.zeros(0), np.zeros((2, 100))])
def test_what_is_no_waveform_is_refused(wave: Array) -> None:
    with pytest.raises(DataError, match="waveform"):
        features.spectrogram(wave)


def test_more_frames_than_there_are() -> None:
    with pytest.raises(ValueError, match="302 frames"):
        LogSpectrogram(frames=303)


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.floats(1e-6, 10))
@settings(max_examples=50, deadline=None)
def test_standardised_whatever_comes(n: int, seed: int, scale: float) -> None:
    got = features.spectrogram(noise(n, seed, scale), SMALL)
    assert got.shape == SMALL.shape
    assert np.isfinite(got).all()
    assert abs(got.mean(dtype=np.float64)) < 1e-4
    assert got.any() == (abs(float(got.std()) - 1) < 1e-3)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_stream_equals_the_batch_however_it_is_cut(sizes: list[int], seed: int) -> None:
    stream, wave = SpectrogramStream(SMALL, keep_s=10.0), noise(sum(sizes), seed)
    for part in np.split(wave, np.cumsum(sizes)[:-1]):
        stream.push(part)
    assert stream.position == len(wave)
    for start in range(0, len(wave), 3 * SMALL.hop):
        got, piece = stream.window(start), wave[start : start + SMALL.length]
        if len(piece) == SMALL.length:
            assert got is not None
        if got is not None and len(piece) == SMALL.length:
            assert np.abs(got - features.spectrogram(piece, SMALL)).max() < 1e-5


def test_a_stream_computes_each_hop_once() -> None:
    stream, wave = SpectrogramStream(), noise(10 * RATE)
    windows = 0
    for at in range(0, len(wave), 320):
        stream.push(wave[at : at + 320])
        start = 50 * PAPER.hop * windows  # a window every half second, overlapping by 5/6
        if (got := stream.window(start)) is not None:
            expected = features.spectrogram(wave[start : start + PAPER.length])
            assert np.abs(got - expected).max() < 1e-5
            windows += 1
    assert windows >= 14
    frames = (len(wave) - 256) // PAPER.hop + 1
    assert stream.computed <= frames + 2 * windows
    assert stream.computed < 0.3 * 300 * windows


@pytest.mark.parametrize("pad", ["constant", "reflect", "none"])
def test_padding_is_librosas(pad: str) -> None:
    librosa = pytest.importorskip("librosa", reason="librosa is not installed (extra `audio`)")
    config = LogSpectrogram(pad=pad, frames=299)  # 299: what there is without padding
    wave = noise(3 * RATE).clip(-1, 1)
    how = {"center": False} if pad == "none" else {"pad_mode": pad}
    expected = np.log(np.abs(librosa.stft(wave, n_fft=512, hop_length=159, **how)) + 1e-7)[:, :299]
    expected = (expected - expected.mean()) / expected.std()
    assert np.abs(features.spectrogram(wave, config)[0] - expected).max() < 1e-4


@given(st.integers(70, 500), st.integers(0, 40), st.sampled_from(["constant", "reflect", "none"]))
@settings(max_examples=40, deadline=None)
def test_a_streams_short_window_is_tiled_as_the_batch_is(samples: int, hops: int, pad: str) -> None:
    config = LogSpectrogram(rate_hz=1000, seconds=0.5, n_fft=64, hop=20, frames=22, pad=pad)
    stream, wave = SpectrogramStream(config), noise(40 * config.hop + 600)
    for part in np.array_split(wave, 7):
        stream.push(part)
    start = hops * config.hop
    got, expected = stream.window(start, samples), features.spectrogram(wave[start : start + samples], config)
    assert got is not None
    assert np.abs(got - expected).max() < 1e-5


def test_a_stream_forgets_and_says_so() -> None:
    stream = SpectrogramStream(SMALL, keep_s=1.0)
    for _ in range(20):
        stream.push(noise(500))
    assert stream.window(0) is None
    assert stream.window(10_000) is None
    assert stream.window(10_000 - SMALL.length) is not None
    assert len(stream._wave) < 5 * SMALL.rate_hz


@pytest.mark.parametrize(("rate_in", "rate_out"), [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000,) * 2])
def test_resampled_tones_keep_their_time_and_height(rate_in: int, rate_out: int) -> None:
    wave = tone(440.0, 1.0, rate_in)
    resampler = Resampler(rate_in, rate_out)
    got = np.concatenate([resampler.push(part) for part in np.array_split(wave, 37)])
    expected = tone(440.0, 1.0, rate_out)[: len(got)]
    assert len(got) >= rate_out * (1 - 0.01)
    assert np.abs(got - expected)[100:-100].max() < 1e-3


def test_resampling_keeps_out_what_the_lower_rate_cannot_hold() -> None:
    got = Resampler(48_000, 16_000).push(tone(11_000.0, 1.0, 48_000))
    assert np.abs(got[200:]).max() < 0.5e-3


def test_resampling_against_scipy() -> None:
    signal = pytest.importorskip("scipy.signal", reason="scipy is not installed (extra `test`)")
    t = np.arange(44_100) / 44_100
    wave = (0.3 * np.sin(2 * np.pi * 300 * t) + 0.3 * np.sin(2 * np.pi * 3100 * t + 1)).astype(np.float32)
    got = Resampler(44_100, 16_000).push(wave)
    expected = signal.resample_poly(wave, 160, 441)[: len(got)]
    assert np.abs(got - expected)[300:-300].max() < 5e-3


@given(st.lists(st.integers(0, 300), min_size=1, max_size=10), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_resampling_has_no_seams(sizes: list[int], rate_in: int, rate_out: int) -> None:
    wave = noise(sum(sizes))
    whole, parts = Resampler(rate_in, rate_out), Resampler(rate_in, rate_out)
    expected = whole.push(wave)
    got = np.concatenate([parts.push(part) for part in np.split(wave, np.cumsum(sizes)[:-1])])
    assert np.allclose(got, expected, atol=1e-6)
    if len(wave) > whole.wait and rate_in != rate_out:
        assert len(got) == pytest.approx((len(wave) - whole.wait) * rate_out / rate_in, abs=1.01)


@pytest.mark.parametrize("factor", [1, 2, 4, 7])
def test_decimation_keeps_what_fits_and_nothing_else(factor: int) -> None:
    rate, n = 50, 128
    t = np.arange(n * factor) / (rate * factor)
    slow = np.sin(2 * np.pi * 7 * t + 1)
    fast = np.sin(2 * np.pi * 33 * t) if factor > 1 else 0 * t  # at 50 Hz it would look like 17 Hz
    got = features.decimate(np.stack([slow + fast, 9.81 + 0 * t, 3 * t]), factor)
    assert (got.shape, got.dtype) == ((3, n), np.float32)
    assert np.abs(got[0] - slow[::factor])[16:-16].max() < 2e-3
    assert np.allclose(got[1], 9.81, atol=1e-5)  # neither a level nor a slope is bent, ends included
    assert np.allclose(got[2], 3 * t[::factor], atol=1e-4)


def test_decimation_against_scipy() -> None:
    signal = pytest.importorskip("scipy.signal", reason="scipy is not installed (extra `test`)")
    t = np.arange(800) / 200
    wave = np.sin(2 * np.pi * 3 * t) + 0.5 * np.sin(2 * np.pi * 11 * t + 1)
    expected = signal.resample_poly(wave, 1, 4)
    assert np.abs(features.decimate(wave[None], 4)[0] - expected)[20:-20].max() < 5e-3


@pytest.mark.parametrize(("values", "factor"), [(np.zeros(5), 2), (np.zeros((2, 0)), 2), (np.zeros((2, 5)), 0)])
def test_what_cannot_be_decimated(values: Array, factor: int) -> None:
    with pytest.raises(DataError, match="series"):
        features.decimate(values, factor)


def test_a_constant_stays_what_it_is() -> None:
    got = Resampler(44_100, 16_000).push(np.full(20_000, 0.25, np.float32))
    assert np.allclose(got[100:], 0.25, atol=1e-6)


def test_impossible_rates() -> None:
    with pytest.raises(DataError, match="at least 1 Hz"):
        Resampler(0, 16_000)


@pytest.mark.parametrize(("total", "expected"), [(3, [0, 1, 2]), (30, [5, 15, 25]), (1, [0, 0, 0]), (2, [0, 1, 1])])
def test_uniform_frames(total: int, expected: list[int]) -> None:
    assert features.uniform_indices(total, 3).tolist() == expected


def test_no_frames() -> None:
    with pytest.raises(DataError, match="out of 0"):
        features.uniform_indices(0, 3)


def test_sides_are_cropped_evenly() -> None:
    image = np.arange(4 * 10).reshape(4, 10)
    assert features.side_crop(image).tolist() == image[:, 3:7].tolist()
    assert features.side_crop(image.T).tolist() == image.T[3:7].tolist()


def test_resize_by_two_of_a_checkerboard_is_grey_and_of_a_ramp_is_a_ramp() -> None:
    board = np.indices((16, 16)).sum(axis=0)[..., None] % 2 * 200
    assert np.allclose(features.resize(board, 8, 8)[1:-1, 1:-1], 100)
    ramp = np.repeat(np.arange(40.0)[:, None, None], 5, axis=1)
    assert np.allclose(features.resize(ramp, 20, 5)[2:-2, 0, 0], np.arange(20)[2:-2] * 2 + 0.5)
    assert np.array_equal(features.resize(board, 16, 16), board.astype(np.float32))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_resize_stays_between_darkest_and_brightest(h: int, w: int, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
    got = features.resize(image, height, width)
    assert got.shape == (height, width, 3)
    assert got.min() >= image.min() - 1e-3
    assert got.max() <= image.max() + 1e-3
    assert np.allclose(features.resize(np.full_like(image, 77), height, width), 77, atol=1e-3)


def test_clip_becomes_one_tall_image() -> None:
    clip = np.zeros((30, 240, 320, 3), np.uint8)
    clip[5], clip[15], clip[25] = 255, 51, 102
    clip[:, :, :40] = clip[:, :, -40:] = 9  # the sides are cropped away
    got = features.stack_frames(clip)
    assert (got.shape, got.dtype) == ((3, 672, 224), np.float32)
    assert np.allclose(got[:, 5:219], 255, atol=1e-3)
    assert np.allclose(got[:, 229:443], 51, atol=1e-3)
    assert np.allclose(got[:, 453:667], 102, atol=1e-3)
    with pytest.raises(DataError, match="uint8"):
        features.stack_frames(clip.astype(np.float32))


def test_images_that_fit_are_not_resampled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 1), np.uint8)
    assert np.array_equal(features.stack([image] * 2, 24)[0, 24:], image[:, 4:28, 0])


def test_series_on_a_grid() -> None:
    times = np.array([0, 10, 40, 50], np.int64) * 1_000_000
    values = np.stack([times / 1e6, -times / 1e6], axis=1)
    got = features.resample_series(times, values, rate_hz=50.0, start_ns=0, length=4)
    assert got.tolist() == [[0, 20, 40, 50], [-0.0, -20, -40, -50]]


def test_series_far_from_zero_keep_their_nanoseconds() -> None:
    far = 10 * 365 * 86400 * 10**9
    times = far + np.arange(100, dtype=np.int64) * 1_000_001
    got = features.resample_series(times, np.arange(100.0)[:, None], rate_hz=1000.0, start_ns=far, length=99)
    assert np.allclose(got[0], np.arange(99) / 1.000001, atol=1e-4)


@pytest.mark.parametrize(
    ("times", "values"), [([0, 0], [[1.0], [2.0]]), ([0], [[1.0], [2.0]]), ([], np.zeros((0, 1))), ([0], [1.0])]
)
def test_series_that_are_none(times: list[int], values: Array) -> None:
    with pytest.raises(DataError, match="series"):
        features.resample_series(np.array(times, np.int64), np.array(values), rate_hz=1.0, start_ns=0, length=1)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_gravity_ends_up_along_z_and_lengths_stay(mean: list[float], seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((6, 50))
    values[:3] += np.array(mean)[:, None]
    got = features.align_gravity(values)
    gravity = got[:3].mean(axis=1)
    assert np.allclose(gravity[:2], 0, atol=1e-4)
    assert gravity[2] == pytest.approx(float(np.linalg.norm(values[:3].mean(axis=1))), abs=1e-4)
    for part in (slice(0, 3), slice(3, 6)):
        assert np.allclose(np.linalg.norm(got[part], axis=0), np.linalg.norm(values[part], axis=0), atol=1e-3)
    dot = np.einsum("ct,ct->t", values[:3], values[3:])  # both were turned the same way
    assert np.allclose(np.einsum("ct,ct->t", got[:3], got[3:]), dot, atol=1e-2)


def test_gravity_at_its_corners() -> None:
    level = np.repeat([[0.0], [0.0], [9.81]], 4, axis=1)
    assert np.allclose(features.align_gravity(level), level)
    assert np.allclose(features.align_gravity(-level), level)
    assert not features.align_gravity(level * 0).any()
    with pytest.raises(DataError, match="3 channels"):
        features.align_gravity(np.zeros((4, 10)))
