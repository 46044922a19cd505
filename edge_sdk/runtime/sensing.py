"""The sensing side of a device: windows to predictions and into the reservoir, labels to their windows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from edge_sdk.core import registry
from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.config import LabelConfig
from edge_sdk.core.interfaces import LabelSource
from edge_sdk.core.messages import LabelMessage, Prediction
from edge_sdk.core.records import LatePart, Window
from edge_sdk.runtime.inference import Predictor
from edge_sdk.runtime.labels import LabelJoiner, MqttLabels, Refusal
from edge_sdk.runtime.link import Link
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.reservoir import Reservoir

_WAITING = 64  # predictions that wait to be published

_MEANING = {
    Refusal.SPAN: "it ends before it starts, or lasts longer than a day",
    Refusal.UNPLACED: "its time is too uncertain for the stream clock (max_err_s), or lies in the future; "
    "set the clocks of both machines by NTP",
    Refusal.TOO_OLD: "it ended too long ago (max_age_s)",
}

log = logging.getLogger(__name__)


class Sensing:
    """Moves windows from the streams to where they are used.

    Args:
        streams: the device's sensors.
        reservoir: keeps windows for training.
        predictor: predicts them; None: inference is off.
        publish: where predictions go; None: nowhere.
        refine: predict a window again when more of it comes after its deadline.
        device: our id.
        compute: where the features' libraries are loaded.
    """

    def __init__(
        self,
        streams: Streams,
        reservoir: Reservoir,
        predictor: Predictor | None,
        *,
        publish: Link | None,
        refine: bool,
        device: str,
        compute: Compute,
    ) -> None:
        self.streams = streams
        self.reservoir = reservoir
        self.unpublished = 0  # predictions that were dropped: nobody was there, or they came too fast
        self.overtaken = 0  # windows that were not predicted: they became old while another one was
        self._predictor = predictor
        self._publish = publish
        self._refine = refine
        self._device = device
        self._compute = compute
        self._queue: asyncio.Queue[Prediction] = asyncio.Queue(_WAITING)

    async def run(self) -> None:
        """Senses until every source is exhausted."""
        await self._compute.run(SHORT, 0, self.streams.windower.prepare)
        await self.streams.start()
        try:
            async for item in self.streams.items():
                if isinstance(item, Window):
                    self._window(item)
                else:
                    self._late(item)
            log.info("%s: every sensor is exhausted; nothing more to sense", self._device)
        finally:
            await self.streams.aclose()
            self.streams.windower.watches.save()
            self.reservoir.close()

    def _window(self, window: Window) -> None:
        old = self.streams.behind and self._predictor is not None
        self.overtaken += old
        prediction = None if self._predictor is None or old else self._predictor.predict(window)
        if old and self.overtaken == 1:
            log.warning(
                "%s: a prediction takes longer than window.hop_s; windows that are ready meanwhile are kept "
                "for training, but not predicted (counted): lengthen the hop, or take a faster engine or encoder",
                self._device,
            )
        self._say(prediction)
        self.reservoir.add(self.streams.windower.assessed(window))

    def _late(self, part: LatePart) -> None:
        joined = self.reservoir.add_late(self.streams.windower.assessed(part))
        data = self.reservoir.parts(part.index) if joined and self._refine else {}
        if self._predictor is not None and data:
            self._say(self._predictor.refine(part, data))

    def _say(self, prediction: Prediction | None) -> None:
        if prediction is None or self._publish is None:
            return
        if self._publish.connected and not self._queue.full():
            self._queue.put_nowait(prediction)
        else:
            self.unpublished += 1

    async def publish(self, link: Link) -> None:
        """Publishes predictions, for ever."""
        topic = link.topics.prediction(self._device)
        while True:
            if not await link.send(topic, await self._queue.get()):
                self.unpublished += 1


class Labelling:
    """Joins labels of all sources to windows of the reservoir.

    Args:
        configs: name → label source.
        joiner: finds the windows.
        reservoir: takes the labels.
        clock: the stream clock.
        epoch_ns: where replayed time begins.
        time: where the stream clock lies in the time of day.
        device: our id.
        compute: where sources do what may block.
    """

    def __init__(
        self,
        configs: Mapping[str, LabelConfig],
        joiner: LabelJoiner,
        reservoir: Reservoir,
        *,
        clock: Clock,
        epoch_ns: int,
        time: StreamTime,
        device: str,
        compute: Compute,
    ) -> None:
        self.joiner = joiner
        self.sources: dict[str, LabelSource] = {
            name: registry.load("labels", config.source)(config.options, clock, epoch_ns=epoch_ns)
            for name, config in configs.items()
        }
        for source in self.sources.values():
            source.compute = compute
        self._reservoir = reservoir
        self._time = time
        self._device = device
        self._said: set[Refusal | None] = set()

    def feed(self, message: LabelMessage) -> None:
        """Takes a label from the wire."""
        fed = [source for source in self.sources.values() if isinstance(source, MqttLabels)]
        if not fed:
            self._say(None, 'there is no [labels.<name>] with source = "mqtt" in the configuration')
        for source in fed:
            refusal = source.feed(message, self._time)
            if refusal is not None:
                self._say(refusal, _MEANING[refusal])

    def _say(self, refusal: Refusal | None, why: str) -> None:
        """Says each kind of trouble once; all of it is counted."""
        level = logging.DEBUG if refusal in self._said else logging.WARNING
        self._said.add(refusal)
        log.log(level, "%s: a label that came by MQTT is not used: %s", self._device, why)

    async def run(self, source: LabelSource) -> None:
        """Labels windows as one source tells, until it ends."""
        async for label in source.labels():
            for index, number in self.joiner.add(label):
                self._reservoir.label(index, number)


__all__ = ["Labelling", "Sensing"]
