"""Records what the sensors of a device deliver, without windows, models or a broker."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import DeviceConfig, SensorConfig
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Reader, Writer, chunk_end_ns
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.streams.pump import Pump, State
from edge_sdk.streams.sources import sources


async def record(config: DeviceConfig, folder: Path, *, clock: Clock, seconds: float) -> dict[str, int]:
    """Records every sensor until the time is up, all sources are exhausted, or it is cancelled.

    Args:
        config: names the sensors.
        folder: where the recording goes.
        clock: the stream clock.
        seconds: at most so long; inf: until cancelled.

    Returns:
        stream → samples written.

    Raises:
        SensorUnavailable: no sensor delivered anything; nothing is left behind.
    """
    if not config.sensors:
        raise ConfigError("nothing to record: the configuration has no section [sensors.<modality>]")
    samples = dict.fromkeys(config.sensors, 0)
    start = StreamTime(clock, clock).record
    epoch_ns = start.stream_ns
    with Writer(folder, start_ns=epoch_ns, start_utc_ns=start.utc_ns, utc_err_ns=start.err_ns) as writer:

        def take(chunk: Chunk) -> None:
            writer.append(chunk)
            samples[chunk.stream] += len(chunk.data)

        pumps = [
            Pump(source.driver, source.config, clock, source.sink(take), epoch_ns=epoch_ns)
            for source in sources(config.sensors)
        ]
        try:
            for pump in pumps:
                await pump.start()
            end_ns = epoch_ns + seconds * NS
            while clock.now_ns() < end_ns and not all(pump.exhausted for pump in pumps):
                await clock.sleep(min(0.2, (end_ns - clock.now_ns()) / NS))
        finally:
            for pump in pumps:
                await pump.aclose()
    if not any(samples.values()):
        (folder / "meta.json").unlink()
        why = "; ".join(f"sensors.{pump.stream}: {pump.error or 'delivered nothing'}" for pump in pumps)
        raise SensorUnavailable(f"nothing was recorded: {why}")
    return samples


def describe(folder: Path) -> dict[str, Any]:
    """Returns what a recording holds, as plain data."""
    reader = Reader(folder)
    streams = {}
    for stream in reader.streams:
        chunks = samples = gaps = 0
        first_ns = last_ns = reader.start_ns
        shape: tuple[int, ...] = ()
        digest = Digest()
        for chunk in reader.chunks(stream):
            digest.add(chunk)
            first_ns = chunk.t_ns if not chunks else first_ns
            chunks, samples, gaps = chunks + 1, samples + len(chunk.data), gaps + chunk.gap_before
            last_ns, shape = chunk_end_ns(chunk), chunk.data.shape[1:]
        seconds = (last_ns - first_ns) / NS
        streams[stream] = {
            "chunks": chunks, "samples": samples, "gaps": gaps, "shape": list(shape), "seconds": seconds,
            "rate_hz": samples / seconds if seconds else 0.0, "digest": digest.hex(),
        }  # fmt: skip
    return {"streams": streams, "labels": len(reader.labels()), "seconds": reader.duration_ns / NS}


class Digest:
    """blake2b-128 of a stream: data, dtypes, shapes, times from its first sample on, periods, errors, gaps, flags.

    Where on the clock the stream lies is left out, and whether anything came before its first chunk.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._first_ns: int | None = None

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        begins = self._first_ns is None
        first_ns = self._first_ns = chunk.t_ns if self._first_ns is None else self._first_ns
        layout = (
            chunk.data.shape, chunk.data.dtype.str, chunk.t_ns - first_ns, chunk.period_ns, chunk.t_err_ns,
            chunk.gap_before and not begins, chunk.flags, chunk.times_ns is not None,
        )  # fmt: skip
        self._hash.update(repr(layout).encode())
        self._hash.update(np.ascontiguousarray(chunk.data).tobytes())
        if chunk.times_ns is not None:
            self._hash.update((chunk.times_ns - first_ns).astype("<i8").tobytes())

    def hex(self) -> str:
        """Returns the digest so far, 32 hex digits."""
        return self._hash.hexdigest()


async def replayed(folder: Path, *, clock: Clock) -> dict[str, str]:
    """Plays a recording through the driver `replay`; returns the digest of each stream, as `describe` gives them.

    Args:
        folder: of the recording.
        clock: the stream clock; a fast one saves time.
    """
    options = {"path": str(folder)}
    sensors = {s: SensorConfig(driver="replay", drop="block", options=options) for s in Reader(folder).streams}
    digests = {stream: Digest() for stream in sensors}
    epoch_ns = clock.now_ns()
    pumps = [
        Pump(source.driver, source.config, clock, digests[stream].add, epoch_ns=epoch_ns)
        for source in sources(sensors)
        for stream in source.modalities
    ]
    try:
        for pump in pumps:
            await pump.start()
        while not all(pump.exhausted or pump.state is State.FAILED for pump in pumps):
            await clock.sleep(1.0)
    finally:
        for pump in pumps:
            await pump.aclose()
    if broken := "; ".join(f"{pump.stream}: {pump.error}" for pump in pumps if not pump.exhausted):
        raise SensorUnavailable(f"{folder}: cannot be replayed: {broken}")
    return {stream: digest.hex() for stream, digest in digests.items()}


__all__ = ["Digest", "describe", "record", "replayed"]
