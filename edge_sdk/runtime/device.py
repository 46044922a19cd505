"""A device: small coroutines that sense, predict, train and talk to the coordinator, each going on without the others.

The same code runs in the field and in simulation. It is handed a clock, a compute, a transport and, in simulation,
a source of round sets in place of sensors; it never asks which it got.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.tasks import TaskReader
from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import Compute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import ConfigError, WireFormatError
from edge_sdk.core.events import Observer, ignore
from edge_sdk.core.interfaces import Connected, Disconnected, Message, RoundSource, Transport, TransportEvent
from edge_sdk.core.messages import Fetch, Head, LabelMessage, Reply, SpecMessage, Status
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.budget import Ask
from edge_sdk.runtime.desk import Desk
from edge_sdk.runtime.events import LinkChanged, SpecLearnt
from edge_sdk.runtime.link import Link
from edge_sdk.runtime.session import Parts, Session
from edge_sdk.runtime.state import DeviceState
from edge_sdk.runtime.subscriber import REPLY
from edge_sdk.runtime.upload import Uploader
from edge_sdk.transport.topics import Topics

if TYPE_CHECKING:  # what costs a phase is known by those who have torch
    from edge_sdk.learn.records import PhaseJob

_FAREWELL_S = 1.0

log = logging.getLogger(__name__)


def free(job: PhaseJob) -> int:
    """The cost function of the field: nothing is modelled there."""
    return 0


def unlimited() -> str:
    """The budget of those who have none."""
    return ""


def status_of(
    config: DeviceConfig, state: DeviceState, *, online: bool, spec: FederationSpec | None = None,
    notes: tuple[str, ...] = (),
) -> Status:  # fmt: skip
    """Returns what a device says of itself."""
    return Status(
        device=config.device.id,
        state="online" if online else "offline",
        incarnation=state.outbox.incarnation,
        spec_digest="" if spec is None else spec.digest,
        modalities=tuple(config.sensors) if spec is None else own_modalities(config, spec),
        software=_software(),
        notes=notes,
    )


def last_will(config: DeviceConfig, state: DeviceState) -> tuple[str, bytes, bool]:
    """Returns topic, payload and retain flag of the last will, for the transport."""
    topic = Topics(config.device.federation).status(config.device.id)
    return topic, wire.encode(status_of(config, state, online=False)), True


def own_modalities(config: DeviceConfig, spec: FederationSpec) -> tuple[str, ...]:
    """Returns the modalities of the spec that this device has; all of them where it has no sensors of its own.

    Raises:
        ConfigError: it has sensors, and none is of this federation.
    """
    unknown = [m for m in config.sensors if m not in spec.modality_names]
    mine = tuple(m for m in spec.modality_names if m in config.sensors or not config.sensors)
    if not mine:
        raise ConfigError(
            f"federation {spec.name!r} has the modalities {', '.join(spec.modality_names)}; this device has sensors "
            f"for {', '.join(unknown)}; name a section [sensors.<modality>] after a modality of the federation"
        )
    if unknown:
        log.warning(
            "%s: no modality %s in federation %r; these sensors are not used",
            config.device.id, ", ".join(unknown), spec.name,
        )  # fmt: skip
    return mine


class Device:
    """One device of a federation.

    Args:
        config: its configuration.
        transport: how to reach the broker; None: it works by itself and needs `spec`.
        clock: what everything but the sensors is timed on.
        compute: where blocking work goes.
        stream_clock: what the sensors' data are timed on; None: the same clock.
        rounds: where the trainer gets its data; None: the device's own sensors and reservoir.
        cost: modelled duration of a phase, ns.
        budget: returns what training may take, or why it must wait.
        observer: gets the events of `runtime.events`.
        state: what is kept between two starts, closed by who opened it; None: opened in the configured directory.
        spec: the federation's spec where it is known already; None: the stored one, then the coordinator's.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        transport: Transport | None,
        clock: Clock,
        compute: Compute,
        stream_clock: Clock | None = None,
        rounds: RoundSource | None = None,
        cost: Callable[[PhaseJob], int] = free,
        budget: Ask = unlimited,
        observer: Observer | None = None,
        state: DeviceState | None = None,
        spec: FederationSpec | None = None,
    ) -> None:
        self.id = config.device.id
        self._own_state = state is None
        self.state = state or DeviceState.open(config.device.state_dir, config.device.federation, self.id)
        self.spec = spec or self.state.spec()
        self.session: Session | None = None
        self._config = config
        self._clock = clock
        self._compute = compute
        self._emit = observer or ignore
        self._head: Head | None = None
        self._renewed = asyncio.Event()  # the spec has changed
        self._wish = asyncio.Event()  # there is something to say or to ask
        self._announce = True  # our status has to be published
        self._asking = config.training.enabled  # a task has to be asked for
        self.desk = Desk(self.id, clock)
        self._tasks = TaskReader()
        self._link: Link | None = None
        self._uploader: Uploader | None = None
        if transport is not None:
            self._link = Link(transport, config.device.federation, self.id, clock)
            self._uploader = Uploader(
                self._link, self.state.outbox, clock=clock, compute=compute, emit=self._emit, settled=self._settled
            )
        elif self.spec is None:
            raise ConfigError(
                f"{self.id}: a device without a coordinator needs the federation's spec; name its file with --spec"
            )
        self._parts = Parts(
            config=config, clock=clock, stream_clock=stream_clock or clock, compute=compute, state=self.state,
            rounds=rounds, cost=cost, budget=budget, emit=self._emit, desk=self.desk, link=self._link,
            uploader=self._uploader, ask=self._want_task, announce=self._status_changed,
        )  # fmt: skip
        self._kinds: dict[str, Callable[[bytes], None]] = {
            "spec": self._spec_message,
            "head": self._head_message,
            "task": self._task,
            "reply": self._reply,
            "label": self._label,
        }

    async def run(self) -> None:
        """Lives until it is cancelled."""
        try:
            async with self._clock.group() as group:
                if self._link is not None and self._uploader is not None:
                    if not self._config.inference.enabled:  # a head only matters to the next task then
                        self._link.transport.defer(self._link.topics.head)
                    await self._link.transport.start()
                    await self._link.transport.subscribe(*self._link.topics.device_filters(self.id))
                    group.start(self._listen(self._link), name=f"{self.id} listen")
                    group.start(self._speak(self._link), name=f"{self.id} speak")
                    group.start(self._uploader.run(), name=f"{self.id} upload")
                group.start(self._live(), name=f"{self.id} live")
        finally:
            await self._leave()

    async def _leave(self) -> None:
        if self._link is not None:
            try:
                async with self._clock.deadline(_FAREWELL_S):
                    if self._link.connected:
                        status = status_of(self._config, self.state, online=False, spec=self.spec)
                        await self._link.send(self._link.topics.status(self.id), status, retain=True)
            except TimeoutError:
                log.info("%s: left without a farewell; the broker publishes the last will", self.id)
            await self._link.transport.aclose()
        if self._own_state:
            self.state.close()

    async def _live(self) -> None:
        """Runs one session per spec."""
        while True:
            self._renewed.clear()
            spec = self.spec
            if spec is None:
                log.info("%s: waits for the spec of federation %r", self.id, self._config.device.federation)
                await self._renewed.wait()
                continue
            async with self._clock.group() as group:
                self.session = Session(self._parts, spec, own_modalities(self._config, spec))
                self._emit(SpecLearnt(self.id, spec.name, spec.digest, self.session.modalities))
                if self._head is not None:
                    self.session.head(self._head)
                group.start(self.session.run(), name=f"{self.id} session")
                self._status_changed()
                await self._renewed.wait()
                group.cancel()

    async def _listen(self, link: Link) -> None:
        async for event in link.transport.events():
            self._happened(link, event)

    def _happened(self, link: Link, event: TransportEvent) -> None:
        if isinstance(event, Message):
            self._message(link, event)
            return
        link.changed()
        if isinstance(event, Connected):
            self._emit(LinkChanged(self.id, connected=True))
            self._tasks.forget()
            self._announce = True
            self._want_task()
            self._nudge()
        elif isinstance(event, Disconnected):
            self._emit(LinkChanged(self.id, connected=False, detail=event.reason))

    def _message(self, link: Link, message: Message) -> None:
        """Takes a message; one that breaks the format is said and passed over."""
        try:
            topic = link.topics.parse(message.topic)
            if topic.kind == "model":
                self._chunk(message.payload, topic.slot)
            elif topic.kind in self._kinds:
                self._kinds[topic.kind](message.payload)
            if topic.kind == "spec" and not message.retained:  # a coordinator that tells its spec has just (re)started
                self._want_task()
                self._nudge()
        except WireFormatError as error:
            log.warning("%s: a message on %s is passed over: %s", self.id, message.topic, error)

    def _nudge(self) -> None:
        if self._uploader is not None:
            self._uploader.nudge()
        if self.session is not None:
            self.session.nudge()

    def _spec_message(self, payload: bytes) -> None:
        message = wire.decode(SpecMessage, payload)
        try:
            spec = FederationSpec.model_validate_json(message.spec)
        except ValueError as error:
            raise WireFormatError(f"spec: {error}") from error
        if spec.digest != message.digest:
            raise WireFormatError("spec: wrong digest; coordinator and device are of different releases")
        if self.spec is not None and spec.digest == self.spec.digest:
            return
        if self.spec is not None and self.spec.shape_digest != spec.shape_digest and self.session is not None:
            log.warning("%s: federation %r now has other shapes or classes; beginning anew", self.id, spec.name)
        self.spec = spec
        self._renewed.set()

    def _head_message(self, payload: bytes) -> None:
        self._head = _head(payload)
        if self.session is not None:
            self.session.head(self._head)

    def _chunk(self, payload: bytes, slot: int = REPLY) -> None:
        if self.session is not None:
            self.session.chunk(payload, slot)

    def _task(self, payload: bytes) -> None:
        task = self._tasks.read(payload, self._clock.now_ns())
        if task is not None:
            self.desk.offer(task)

    def _reply(self, payload: bytes) -> None:
        if chunks.is_chunk(payload):
            self._chunk(payload)
            return
        reply = wire.decode(Reply, payload)
        if reply.key is not None and self._uploader is not None:
            self._uploader.heard(reply)
        elif reply.kind == "unknown" and self.session is not None:
            self.session.heard(reply)

    def _label(self, payload: bytes) -> None:
        message = wire.decode(LabelMessage, payload)
        if self.session is not None:
            self.session.label(message)

    def _settled(self, task: str, accepted: bool) -> None:  # noqa: FBT001  a callback of the uploader
        self.desk.settled(task, accepted=accepted)
        self._want_task()

    def _status_changed(self) -> None:
        self._announce = True
        self._wish.set()

    def _want_task(self) -> None:
        self._asking = self._config.training.enabled
        self._wish.set()

    async def _speak(self, link: Link) -> None:
        """Publishes our status and asks for work; nothing is asked before we know the spec."""
        while True:
            await self._wish.wait()
            self._wish.clear()
            await link.up()
            if self._announce:
                self._announce = False
                notes = () if self.session is None else self.session.notes
                status = status_of(self._config, self.state, online=True, spec=self.spec, notes=notes)
                self._announce = not await link.send(link.topics.status(self.id), status, retain=True)
            if self._asking and self.spec is not None:
                self._asking = False
                self._asking = not await link.send(link.topics.fetch(self.id), Fetch("task"))


@lru_cache(maxsize=256)
def _head(payload: bytes) -> Head:
    """Returns the head; every device of a simulation hears the same ones, some later than others."""
    return wire.decode(Head, payload)


def _software() -> str:
    from edge_sdk import __version__

    return f"edge-sdk {__version__}"


__all__ = ["Device", "free", "last_will", "own_modalities", "status_of", "unlimited"]
