"""The microphone: its sense of time without hardware, and the real path through a PulseAudio that has none either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError, SensorTimeout
from edge_sdk.core.records import Array, Chunk
from sensors import microphone
from sensors.microphone import AdcTimeline, Block, MicrophoneDriver
from tests.helpers.virtual_microphone import MARK, ROOT, Sound, missing

RATE = 48_000
REPLUG = """
from sensors.microphone import MicrophoneDriver
from edge_sdk.core.errors import SensorError

driver = MicrophoneDriver("audio", {"device": "pulse", "silent_s": 3.0})

def first():
    for _ in range(50):
        if (chunk := driver.read(0.2)) is not None:
            return chunk

driver.open()
first()
print("hears", flush=True)
try:
    while True:
        driver.read(0.2)
except SensorError as error:
    print(type(error).__name__, error, flush=True)
driver.close()
input()
driver.open()
print("seq", first().seq, flush=True)
driver.close()
"""
N = 960  # samples per block
LATENCY_S = 0.030


def blocks(
    count: int,
    *,
    ppm: float = 0.0,
    jitter_s: float = 0.0,
    wall: Callable[[int], float] = lambda i: 1e9,
    lost: Callable[[int], float] = lambda i: 0.0,
    data: Array | None = None,
) -> list[Block]:
    """Returns what PortAudio would bring.

    Args:
        count: blocks.
        ppm: the sound card's clock is slow by this much.
        jitter_s: callbacks come late by up to this.
        wall: block → wall clock minus monotonic clock, s.
        lost: block → audio that was lost before it, s, in total.
        data: samples; None: zeros.
    """
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        first_s = 5.0 + i * N / RATE * (1 + ppm * 1e-6) + lost(i)  # monotonic time of its first sample
        called_s = first_s + N / RATE + LATENCY_S + rng.uniform(0, jitter_s)
        part = np.zeros(N, np.int16) if data is None else data[i * N : (i + 1) * N]
        made.append(Block(part, first_s + wall(i), called_s + wall(i), round(called_s * NS)))
    return made


def fed(made: list[Block]) -> AdcTimeline:
    timeline = AdcTimeline(RATE)
    for block in made:
        timeline.push(block)
    return timeline


def test_samples_have_the_time_at_which_they_were_taken() -> None:
    timeline = fed(blocks(300, jitter_s=0.02))  # late callbacks move nothing
    assert timeline.time_ns(0) == pytest.approx(5 * NS, abs=1000)
    assert timeline.time_ns(timeline.samples) == pytest.approx(11 * NS, abs=1000)
    assert (timeline.jumps, timeline.lost_s) == (0, 0)
    assert timeline.err_ns < 200_000


@pytest.mark.parametrize("ppm", [-80.0, 150.0])
def test_the_sound_cards_own_rate_is_found(ppm: float) -> None:
    timeline = fed(blocks(1000, ppm=ppm, jitter_s=0.01))
    assert (timeline.period_ns * RATE / NS - 1) * 1e6 == pytest.approx(ppm, abs=1)
    true_ns = (5.0 + timeline.samples / RATE * (1 + ppm * 1e-6)) * NS
    assert timeline.time_ns(timeline.samples) == pytest.approx(true_ns, abs=20_000)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 0.4])
def test_a_wall_clock_that_jumps_is_counted_and_moves_nothing(jump_s: float) -> None:
    timeline = fed(blocks(200, wall=lambda i: 1e9 + (jump_s if i >= 100 else 0)))
    assert timeline.jumps == 1
    assert timeline.lost_s == 0
    assert timeline.time_ns(timeline.samples) == pytest.approx(9 * NS, abs=1000)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_jump_between_the_two_stamps_of_one_block(jump_s: float) -> None:
    made = blocks(200)
    broken = made[100]
    made[100] = Block(broken.data, broken.adc_s, broken.stream_s + jump_s, broken.t_ns)
    timeline = fed(made)
    assert timeline.lost_s == 0
    assert timeline.time_ns(timeline.samples) == pytest.approx(9 * NS, abs=100_000)


def test_a_host_without_adc_times_is_stamped_by_the_callback() -> None:
    made = [Block(b.data, b.stream_s, b.stream_s, b.t_ns) for b in blocks(100)]
    assert fed(made).time_ns(0) == pytest.approx((5.0 + LATENCY_S) * NS, abs=1000)


def test_lost_samples_begin_a_new_line() -> None:
    timeline = AdcTimeline(RATE)
    lost = [timeline.push(block) for block in blocks(200, lost=lambda i: 1.5 if i >= 120 else 0.0)]
    assert [i for i, was in enumerate(lost) if was] == [120]
    assert timeline.lost_s == pytest.approx(1.5, abs=1e-3)
    assert timeline.time_ns(timeline.samples) == pytest.approx((9 + 1.5) * NS, abs=1000)


def test_a_latency_that_settles_loses_nothing() -> None:
    """PulseAudio reports an age of 0.65 s at first and of 0.25 s after a second, while blocks keep coming evenly."""
    made = [Block(b.data, b.adc_s - (0.4 if i < 50 else 0.0), b.stream_s, b.t_ns) for i, b in enumerate(blocks(200))]
    timeline = AdcTimeline(RATE)
    anew = [timeline.push(block) for block in made]
    assert [i for i, was in enumerate(anew) if was] == [50]
    assert timeline.lost_s == 0
    assert timeline.time_ns(timeline.samples) == pytest.approx(9 * NS, abs=1000)


def test_a_callback_that_stood_still_loses_nothing() -> None:
    made = blocks(200)
    for i in range(100, 130):  # they all come together when the machine goes on
        behind_s = max(0.0, (130 - i) * N / RATE)
        b = made[i]
        made[i] = Block(b.data, b.adc_s, b.stream_s + behind_s, b.t_ns + round(behind_s * NS))
    timeline = AdcTimeline(RATE)
    assert not any(timeline.push(block) for block in made)
    assert timeline.lost_s == 0


def converted(driver: MicrophoneDriver, made: list[Block], native_hz: int = RATE) -> list[Chunk]:
    driver._native_hz = native_hz
    driver._begin(0)
    return [chunk for chunk in map(driver.convert, made) if chunk is not None]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> MicrophoneDriver:
    monkeypatch.setattr(microphone, "import_sounddevice", lambda stream: None)  # the hardware is not needed
    return MicrophoneDriver("audio", {})


def test_chunks_are_resampled_scaled_and_seamless(driver: MicrophoneDriver) -> None:
    t = np.arange(100 * N) / RATE
    tone = np.round(16384 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    chunks = converted(driver, blocks(100, data=tone))
    assert [c.seq for c in chunks] == list(range(len(chunks)))
    assert not any(c.gap_before for c in chunks)
    got = np.concatenate([c.data[:, 0] for c in chunks])
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(got)) / 16_000)
    assert np.abs(got - expected)[100:].max() < 1e-3
    at = 0
    for chunk in chunks:
        assert chunk.data.dtype == np.float32
        assert chunk.t_ns == pytest.approx(5 * NS + at / 16_000 * NS, abs=200_000)
        at += len(chunk.data)
    assert abs(chunks[-1].period_ns - 62_500) <= 1


def test_times_never_run_back(driver: MicrophoneDriver) -> None:
    chunks = converted(driver, blocks(300, jitter_s=0.1, ppm=100))
    ends = [c.t_ns + (len(c.data) - 1) * c.period_ns for c in chunks]
    assert all(end < c.t_ns for end, c in zip(ends, chunks[1:], strict=False))


def test_a_hole_is_a_gap_in_the_stream(driver: MicrophoneDriver) -> None:
    chunks = converted(driver, blocks(200, lost=lambda i: 1.0 if i >= 100 else 0.0))
    gaps = [i for i, c in enumerate(chunks) if c.gap_before]
    assert len(gaps) == 1
    assert chunks[gaps[0]].t_ns == pytest.approx((5 + 2 + 1) * NS, abs=300_000)


def test_blocks_that_come_in_bursts_are_no_gaps(driver: MicrophoneDriver) -> None:
    """PulseAudio with a long latency: twelve blocks at once, and each claims to be as young as the last."""
    driver._native_hz = RATE
    driver._begin(0)
    chunks = []
    for burst in range(20):
        called_s = 5.0 + (burst + 1) * 12 * N / RATE + LATENCY_S
        for i in range(12):
            t_ns = round(called_s * NS) + i * 100_000
            driver._blocks.put(Block(np.zeros(N, np.int16), called_s - 0.01, called_s, t_ns))
        chunks += [c for c in (driver.read(0.0),) if c is not None]
    assert len(chunks) == 20
    assert not any(c.gap_before for c in chunks)
    delivered = 0
    for chunk in chunks:
        assert chunk.t_ns == pytest.approx((5 + delivered / 16_000) * NS, abs=(LATENCY_S + 0.005) * NS)
        delivered += len(chunk.data)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_an_hour_that_the_wall_clock_jumps_moves_no_chunk(driver: MicrophoneDriver, jump_s: float) -> None:
    chunks = converted(driver, blocks(200, wall=lambda i: 1e9 + (jump_s if i >= 100 else 0)))
    assert driver.jumps == 1
    assert not any(c.gap_before for c in chunks)
    starts = [c.t_ns - round(sum(len(b.data) for b in chunks[:i]) / 16_000 * NS) for i, c in enumerate(chunks)]
    assert max(starts) - min(starts) < 300_000


def test_a_microphone_that_opens_and_never_delivers(driver: MicrophoneDriver) -> None:
    converted(driver, [])
    with pytest.raises(SensorTimeout, match=r"microphone \(default\): open, but no samples for 5 s; is it muted"):
        driver.read(0.0)


def test_microphones_are_listed_by_names_that_last() -> None:
    names = ["USB PnP Sound Device: Audio (hw:2,0)", "Twin: - (hw:3,0)", "Twin: - (hw:4,0)", "pulse"]
    found = microphone.inputs([{"name": n, "max_input_channels": 1, "default_samplerate": 48_000.0} for n in names])
    assert [f.id for f in found] == ["USB PnP Sound Device: Audio", "Twin: - (hw:3,0)", "Twin: - (hw:4,0)", "pulse"]
    assert 'device = "USB PnP Sound Device: Audio"' in found[0].toml


def test_detect_says_how_to_install_what_is_missing() -> None:
    code = "import sys; sys.modules['sounddevice'] = None; from edge_sdk import cli; sys.exit(cli.main(['detect']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a microphone needs sounddevice: pip install 'edge-sdk[mic]'" in done.stderr


def test_options(driver: MicrophoneDriver) -> None:
    with pytest.raises(ConfigError, match="rate_hz"):
        MicrophoneDriver("audio", {"rate_hz": 5})


@pytest.fixture
def sound(tmp_path: Path) -> Iterator[Sound]:
    if reason := missing():
        pytest.skip(reason)
    with Sound(tmp_path) as running:
        yield running


def test_noise_arrives_through_portaudio(sound: Sound) -> None:
    """Asserted on the correlation, not on equality: a busy machine may drop a block, and says so nowhere."""
    played = np.random.default_rng(0).integers(-12_000, 12_000, 2 * 16_000).astype(np.int16)
    got = sound.record("pulse", 4.5, played)
    heard, chunks = got["samples"], got["chunks"]
    size = 1 << 17
    product = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played / 32768, size))
    peak = np.fft.irfft(product, size).max()
    assert peak > 0.5 * np.sum((played / 32768) ** 2)
    ends = chunks[:, 0] + (chunks[:, 1] - 1) * chunks[:, 2]
    assert (chunks[1:, 0] > ends[:-1]).all()
    steady = chunks[len(chunks) // 2 :]  # by then PulseAudio knows its latency
    assert steady[:-1, 1].sum() * NS / (steady[-1, 0] - steady[0, 0]) == pytest.approx(16_000, rel=0.05)


def test_an_unknown_name_lists_what_is_there(sound: Sound) -> None:
    with pytest.raises(RuntimeError, match=r"no microphone called 'no such thing'.*connected: .*pulse"):
        sound.record("no such thing", 1.0, np.zeros(10, np.int16))


def test_a_rate_that_it_cannot_do_names_the_one_that_it_can(sound: Sound) -> None:
    with pytest.raises(RuntimeError, match=r"microphone pulse: cannot do 500000 Hz; its own rate is \d+ Hz: leave"):
        sound.record("pulse", 1.0, np.zeros(10, np.int16), native_hz=500_000)


def test_unplugged_and_plugged_in_again(sound: Sound) -> None:
    """The server goes away under an open stream, and comes back: the driver says so, and opens it again."""
    with sound.start(REPLUG) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "hears\n"
        sound.unplug()
        said = child.stdout.readline()
        sound.plug()
        rest, _ = child.communicate("plugged in\n", timeout=30)
    assert said.startswith(("SensorTimeout microphone pulse: open, but no samples", "SensorUnavailable microphone"))
    assert rest == "seq 0\n"


def test_contract_and_faults_of_drivers_on_portaudio(sound: Sound) -> None:
    files = ["tests/contract/test_drivers.py", "tests/sensors/test_faults.py"]
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "microphone"]
    env = {**sound.env, MARK: "1", "PULSE_LATENCY_MSEC": "60"}
    done = subprocess.run([sys.executable, *suite], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert " passed" in done.stdout
