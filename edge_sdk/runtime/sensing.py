"""The sensing side of a device: windows to predictions and into the reservoir, labels to their windows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from edge_sdk.core import registry
from edge_sdk.core.clock import Clock
from edge_sdk.core.config import LabelConfig
from edge_sdk.core.interfaces import LabelSource
from edge_sdk.core.messages import LabelMessage, Prediction
from edge_sdk.core.records import Window
from edge_sdk.runtime.inference import Predictor
from edge_sdk.runtime.labels import LabelJoiner, MqttLabels
from edge_sdk.runtime.link import Link
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.reservoir import Reservoir

_WAITING = 64  # predictions that wait to be published

log = logging.getLogger(__name__)


class Sensing:
    """Moves windows from the streams to where they are used.

    Args:
        streams: the device's sensors.
        reservoir: keeps windows for training.
        predictor: predicts them; None: inference is off.
        publish: where predictions go; None: nowhere.
        device: our id.
    """

    def __init__(
        self,
        streams: Streams,
        reservoir: Reservoir,
        predictor: Predictor | None,
        *,
        publish: Link | None,
        device: str,
    ) -> None:
        self.streams = streams
        self.reservoir = reservoir
        self.unpublished = 0  # predictions that were dropped: nobody was there, or they came too fast
        self._predictor = predictor
        self._publish = publish
        self._device = device
        self._queue: asyncio.Queue[Prediction] = asyncio.Queue(_WAITING)

    async def run(self) -> None:
        """Senses until every source is exhausted."""
        await self.streams.start()
        try:
            async for item in self.streams.items():
                if isinstance(item, Window):
                    self._window(item)
                else:
                    self.reservoir.add_late(item)
            log.info("%s: every sensor is exhausted; nothing more to sense", self._device)
        finally:
            await self.streams.aclose()
            self.reservoir.close()

    def _window(self, window: Window) -> None:
        prediction = None if self._predictor is None else self._predictor.predict(window)
        self.reservoir.add(window)
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
    """

    def __init__(
        self,
        configs: Mapping[str, LabelConfig],
        joiner: LabelJoiner,
        reservoir: Reservoir,
        *,
        clock: Clock,
        epoch_ns: int,
    ) -> None:
        self.joiner = joiner
        self.sources: dict[str, LabelSource] = {
            name: registry.load("labels", config.source)(config.options, clock, epoch_ns=epoch_ns)
            for name, config in configs.items()
        }
        self._reservoir = reservoir

    def feed(self, message: LabelMessage) -> None:
        """Takes a label from the wire."""
        fed = [source for source in self.sources.values() if isinstance(source, MqttLabels)]
        if not fed:
            log.warning('a label came by MQTT, but the configuration has no [labels.<name>] with source = "mqtt"')
        for source in fed:
            source.feed(message)

    async def run(self, source: LabelSource) -> None:
        """Labels windows as one source tells, until it ends."""
        async for label in source.labels():
            for index, number in self.joiner.add(label):
                self._reservoir.label(index, number)


__all__ = ["Labelling", "Sensing"]
