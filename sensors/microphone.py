"""Microphones through PortAudio (sounddevice): chosen by name, opened at their own rate, resampled to another.

Numbers of audio devices change with every plug, and a microphone opened at a rate it does not have overflows or fails.
PortAudio's time stamps are wall-clock time with ALSA: they jump with NTP. And its status flags stay silent when samples
are lost. So positions are counted samples, `AdcTimeline` maps them to the host's monotonic clock, takes jumps of the
wall clock out, and notices when more time has passed than samples came.
"""

from __future__ import annotations

import atexit
import json
import logging
import queue
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from pydantic import Field

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.config import parse
from edge_sdk.core.errors import PluginError, SensorTimeout, SensorUnavailable
from edge_sdk.core.interfaces import Driver, Found
from edge_sdk.core.records import Array, Chunk
from edge_sdk.core.spec import Model
from edge_sdk.features import Resampler

logger = logging.getLogger(__name__)

CLOSE_S = 2.0  # how long close() waits for PortAudio, which may hang for ever when PulseAudio dies under a stream
QUEUE_S = 10.0  # audio between PortAudio's thread and read(); more is lost and counted
_JUMP_S = 0.25  # the two clocks come apart by more within one block: one of them jumped
_SLACK_S = 0.25  # time that may pass without samples before they count as lost
_SETTLE_S = 0.1  # an age further from the line than this is no jitter
_CARD = re.compile(r"\s*\(hw:\d+,\d+\)$")
_INVALID_RATE = -9997  # PortAudio's paInvalidSampleRate
_KEEP = 400  # blocks in the regression
_MIN_SPAN_S = 5.0  # below this a rate cannot be told from jitter
_YOUNG_ERR_NS = 20_000_000  # PulseAudio's ages wander by so much

# PortAudio lists the devices of a process once. It may list them anew only while none of its streams is open.
_LIST = threading.Lock()
_OPEN: set[int] = set()  # numbers of the streams that are open
_NUMBERS = count(1)


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    device: str = ""  # part of the device's name; "": the system's default
    rate_hz: int = Field(default=16_000, ge=1_000)  # delivered
    native_hz: int = Field(default=0, ge=0)  # opened at; 0: what the device says it has
    block_s: float = Field(default=0.02, gt=0)  # length of a chunk, about
    silent_s: float = Field(default=5.0, gt=0)  # open, but no samples for so long: opened again


@dataclass(frozen=True, slots=True)
class Block:
    """What one callback of PortAudio brought."""

    data: Array  # int16 (n,)
    adc_s: float  # when its first sample was taken, on the stream's own clock, s
    stream_s: float  # the stream's clock at the callback, s
    t_ns: int  # the host's monotonic clock at the callback, ns


class AdcTimeline:
    """Host time of a sample number: a line through (sample number, ADC time) of the last blocks.

    The ADC time is used only as an age against the stream's clock in the same callback, so that whatever clock that is,
    and however it jumps between callbacks, the sum with the host's monotonic clock is right. An age that is negative or
    absurd (a jump inside the callback) counts as the stream's typical one.

    Args:
        rate_hz: nominal rate.
        since_ns: when the stream was opened, host monotonic; no sample is older.
    """

    def __init__(self, rate_hz: float, since_ns: int = -(2**62)) -> None:
        self.samples = 0  # pushed since the last restart
        self.jumps = 0  # of the stream's clock against the monotonic clock
        self.lost_s = 0.0  # audio that never came, s
        self._nominal_ns = NS / rate_hz
        self._since_ns = since_ns
        self._points: deque[tuple[int, int, int]] = deque(maxlen=_KEEP)  # (sample number, host time ns, lateness ns)
        self._delay_ns: float | None = None  # typical age of a block's last sample at its callback
        self._offset_ns: int | None = None  # stream clock − monotonic clock, last seen
        self._line: tuple[float, int, float] = (0.0, 0, self._nominal_ns)  # sample, its time ns, period ns

    def push(self, block: Block) -> bool:
        """Takes the next block; True: the line begins anew with it, because samples were lost or the age settled."""
        offset_ns = round(block.stream_s * NS) - block.t_ns
        if self._offset_ns is not None and abs(offset_ns - self._offset_ns) > _JUMP_S * NS:
            self.jumps += 1
        self._offset_ns = offset_ns
        at_ns = max(block.t_ns - round(self._age(block)), self._since_ns)
        count = self.samples + len(block.data)
        late_ns = block.t_ns - round(count * self._nominal_ns)  # callback against the count of samples
        off_ns = at_ns - self.time_ns(self.samples) if self._points else 0
        # A callback that is late but brings old samples lost nothing; samples that seem young but came on time neither:
        # PulseAudio takes a second to find its own latency.
        lost = off_ns > _SLACK_S * NS and late_ns - min(late for *_, late in self._points) > _SLACK_S * NS
        anew = lost or abs(off_ns) > _SETTLE_S * NS
        if lost:
            self.lost_s += off_ns / NS
        if anew:
            self._points.clear()
        self._points.append((self.samples, at_ns, late_ns))
        self._fit()
        self.samples = count
        return anew

    def time_ns(self, sample: float) -> int:
        """Returns the host's monotonic time of a sample number, ns."""
        reference, t_ns, period_ns = self._line
        return t_ns + round((sample - reference) * period_ns)

    @property
    def period_ns(self) -> float:
        """Measured sample period, ns; the nominal one at first."""
        return self._line[2]

    @property
    def err_ns(self) -> int:
        """How far the line may be off, ns: the spread of the points around it, and where it is short, of their ages."""
        if not self._points:
            return round(_SLACK_S * NS)
        off = [t - self.time_ns(n) for n, t, _ in self._points]
        young = (self.samples - self._points[0][0]) * self._nominal_ns < _MIN_SPAN_S * NS
        return round(float(np.std(off))) + (_YOUNG_ERR_NS if young else 100_000)

    def _age(self, block: Block) -> float:
        """Returns the age of a block's first sample at the callback, ns: no less than the block is long."""
        duration_ns = len(block.data) * self._nominal_ns
        delay_ns = (block.stream_s - block.adc_s) * NS - duration_ns
        if not -duration_ns <= delay_ns <= _JUMP_S * 4 * NS:
            return duration_ns + (self._delay_ns or 0.0)
        delay_ns = max(0.0, delay_ns)  # PulseAudio's are shorter, and a host API without ADC times says 0
        self._delay_ns = delay_ns if self._delay_ns is None else 0.95 * self._delay_ns + 0.05 * delay_ns
        return duration_ns + delay_ns

    def _fit(self) -> None:
        numbers = np.array([n for n, *_ in self._points], np.float64)
        base_ns = self._points[0][1]
        times = np.array([t - base_ns for _, t, _ in self._points], np.float64)
        middle, mean = float(numbers.mean()), float(times.mean())
        period_ns = self._nominal_ns
        if (numbers[-1] - numbers[0]) * self._nominal_ns > _MIN_SPAN_S * NS:
            centred = numbers - middle
            period_ns = float(centred @ (times - mean) / (centred @ centred))
        self._line = (middle, base_ns + round(mean), period_ns)


class MicrophoneDriver(Driver):
    """Delivers float32 (n, 1), full scale ±1, at `rate_hz`."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._options = o = parse(options, Options, f"sensors.{stream}.options")
        self._sounddevice = import_sounddevice(stream)
        self._blocks: queue.Queue[Block] = queue.Queue(maxsize=max(1, round(QUEUE_S / o.block_s)))
        self._input: Any = None
        self._native_hz = 0
        self._number = 0  # of the stream
        self._next: Block | None = None  # of the burst that comes next
        self._reopened = False  # open() was called before
        self._heard_ns = 0  # when the newest block came, host monotonic
        self._seq = 0
        self._next_ns = -(2**62)  # chunks begin here at the earliest
        self._gap = False
        self._origin = 0  # number of the native sample with which the run began
        self._delivered = 0  # output samples of this run
        self._timeline = AdcTimeline(o.rate_hz)
        self._resampler = Resampler(o.rate_hz, o.rate_hz)

    def open(self) -> None:
        self.close()
        sd, o = self._sounddevice, self._options
        with _LIST:
            if self._reopened and not _OPEN:  # a microphone that was unplugged is not where it was
                sd._terminate()
                sd._initialize()
            self._number = next(_NUMBERS)
            _OPEN.add(self._number)
        self._reopened = True
        index, native_hz = self._device()
        self._native_hz = o.native_hz or native_hz
        self._begin(monotonic_ns())
        try:
            self._input = sd.RawInputStream(
                device=index, samplerate=self._native_hz, channels=1, dtype="int16",
                blocksize=round(self._native_hz * o.block_s), callback=self._take,
            )  # fmt: skip
            self._input.start()
        except sd.PortAudioError as error:
            raise SensorUnavailable(self._explain(error, native_hz)) from error

    def read(self, timeout_s: float) -> Chunk | None:
        try:
            block = self._burst(timeout_s)
        except queue.Empty:
            if monotonic_ns() - self._heard_ns > self._options.silent_s * NS:
                raise SensorTimeout(
                    f"microphone {self._options.device or '(default)'}: open, but no samples for "
                    f"{self._options.silent_s:g} s; is it muted or unplugged?"
                ) from None
            return None
        self._heard_ns = block.t_ns
        return self.convert(block)

    def _burst(self, timeout_s: float) -> Block:
        """Returns the blocks that came together as one: PulseAudio brings many at once, with the age of the last."""
        block = self._next or self._blocks.get(timeout=timeout_s)
        self._next, parts = None, [block.data]
        apart_s = len(block.data) / self._native_hz / 2
        with suppress(queue.Empty):
            while True:
                more = self._blocks.get(timeout=apart_s)
                if more.t_ns - block.t_ns > apart_s * NS:
                    self._next = more
                    break
                block = more
                parts.append(block.data)
        early_s = sum(map(len, parts[:-1])) / self._native_hz
        return Block(np.concatenate(parts), block.adc_s - early_s, block.stream_s, block.t_ns)

    def convert(self, block: Block) -> Chunk | None:
        """Returns the resampled chunk of a block; None: the resampler waits for more."""
        if self._timeline.push(block):
            self._restart(self._timeline.samples - len(block.data))
        data = self._resampler.push(block.data.astype(np.float32) / 32768)
        if not len(data):
            return None
        ratio = self._native_hz / self._options.rate_hz
        host_ns = self._timeline.time_ns(self._origin + self._delivered * ratio)
        t_ns = self.now_ns() - round((monotonic_ns() - host_ns) * self.speed)
        period_ns = round(self._timeline.period_ns * ratio * self.speed)
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=max(t_ns, self._next_ns),  # a line fitted anew may step back by some microseconds
            data=data[:, None],
            period_ns=period_ns,
            t_err_ns=round(self._timeline.err_ns * self.speed),
            gap_before=self._gap,
        )
        self._next_ns = chunk.t_ns + (len(data) - 1) * period_ns + 1
        self._delivered += len(data)
        self._seq += 1
        self._gap = False
        return chunk

    def close(self) -> None:
        stream, self._input = self._input, None
        number, self._number = self._number, 0
        sd = self._sounddevice
        if stream is None:
            with _LIST:
                _OPEN.discard(number)
            return

        def end() -> None:
            with suppress(sd.PortAudioError):  # a device that is gone does not object
                stream.close()
            with _LIST:
                _OPEN.discard(number)

        closing = threading.Thread(target=end, name=f"edge-close-{self.stream}", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            atexit.unregister(sd._exit_handler)  # it would wait for the same stream, and the program never end
            logger.warning("sensor %s: PortAudio does not let go of a device that went away; left behind", self.stream)

    @property
    def jumps(self) -> int:
        """Jumps of PortAudio's clock against the monotonic one since open(), which were taken out."""
        return self._timeline.jumps

    @staticmethod
    def detect() -> list[Found]:
        sd = import_sounddevice("microphone")
        return inputs([d for d in sd.query_devices() if d["max_input_channels"] > 0])

    def _begin(self, now_ns: int) -> None:
        self._heard_ns = now_ns
        self._seq = 0
        self._next_ns = -(2**62)
        self._timeline = AdcTimeline(self._native_hz or self._options.rate_hz, now_ns)
        self._next = None
        while not self._blocks.empty():
            self._blocks.get_nowait()
        self._restart(0)
        self._gap = False

    def _restart(self, sample: int) -> None:
        """Begins a run without samples missing inside; its first sample has this number."""
        self._origin = sample
        self._delivered = 0
        self._resampler = Resampler(self._native_hz or self._options.rate_hz, self._options.rate_hz)
        self._gap = True

    def _take(self, data: Any, frames: int, time: Any, status: Any) -> None:
        """PortAudio's thread: copies, stamps, and never waits."""
        block = Block(np.frombuffer(data, np.int16).copy(), time.inputBufferAdcTime, time.currentTime, monotonic_ns())
        with suppress(queue.Full):  # the timeline sees the hole and counts it
            self._blocks.put_nowait(block)

    def _explain(self, error: Any, native_hz: int) -> str:
        """Returns why PortAudio did not open the device, and what to do."""
        name = f"microphone {self._options.device or '(default)'}"
        key = f"sensors.{self.stream}.options.native_hz"
        if _INVALID_RATE in error.args and self._native_hz != native_hz:
            return f"{name}: cannot do {self._native_hz} Hz; its own rate is {native_hz} Hz: leave {key} out"
        if _INVALID_RATE in error.args:
            return f"{name}: says {native_hz} Hz is its own rate, but cannot do it; set {key} to 48000, 44100 or 16000"
        return f"{name} at {self._native_hz} Hz: {error}; is another program recording from it, or was it unplugged?"

    def _device(self) -> tuple[int | None, int]:
        """Returns the number of the named device now (None: default), and its own rate."""
        sd, wanted = self._sounddevice, self._options.device.lower()
        inputs = [(i, d) for i, d in enumerate(sd.query_devices()) if d["max_input_channels"] > 0]
        if not wanted:
            try:
                return None, round(sd.query_devices(kind="input")["default_samplerate"])
            except (sd.PortAudioError, ValueError) as error:
                raise SensorUnavailable(
                    "no microphone is connected; if one is, add the user to the group audio"
                ) from error
        for index, device in inputs:
            if wanted in device["name"].lower():
                return index, round(device["default_samplerate"])
        here = ", ".join(d["name"] for _, d in inputs) or "none"
        raise SensorUnavailable(
            f"no microphone called {self._options.device!r} (sensors.{self.stream}.options.device); connected: {here}"
        )


def inputs(devices: Sequence[Mapping[str, Any]]) -> list[Found]:
    """Returns PortAudio's input devices by names that last: without the number of the card, which a plug changes."""
    short = [_CARD.sub("", d["name"]) for d in devices]
    found = []
    for device, name in zip(devices, short, strict=True):
        lasting = name if sum(name in other for other in short) == 1 else device["name"]
        toml = f'[sensors.audio]\ndriver = "microphone"\noptions = {{ device = {json.dumps(lasting)} }}'
        said = f"{device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz"
        found.append(Found("microphone", lasting, said, toml))
    return found


def import_sounddevice(stream: str) -> Any:
    """Returns the library; PluginError says what to install."""
    try:
        import sounddevice
    except ImportError as error:
        raise PluginError(f"sensors.{stream}: a microphone needs sounddevice: pip install 'edge-sdk[mic]'") from error
    except OSError as error:  # the Python half is there, the library of the system is not
        raise PluginError(f"sensors.{stream}: {error}: apt install libportaudio2") from error
    return sounddevice


__all__ = ["AdcTimeline", "Block", "MicrophoneDriver", "import_sounddevice"]
