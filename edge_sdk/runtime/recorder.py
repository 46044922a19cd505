"""Records what the sensors of a device deliver, without windows, models or a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Reader, Writer, chunk_end_ns
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.streams.pump import Pump
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
        for chunk in reader.chunks(stream):
            first_ns = chunk.t_ns if not chunks else first_ns
            chunks, samples, gaps = chunks + 1, samples + len(chunk.data), gaps + chunk.gap_before
            last_ns, shape = chunk_end_ns(chunk), chunk.data.shape[1:]
        seconds = (last_ns - first_ns) / NS
        streams[stream] = {
            "chunks": chunks, "samples": samples, "gaps": gaps, "shape": list(shape), "seconds": seconds,
            "rate_hz": samples / seconds if seconds else 0.0,
        }  # fmt: skip
    return {"streams": streams, "labels": len(reader.labels()), "seconds": reader.duration_ns / NS}


__all__ = ["describe", "record"]
