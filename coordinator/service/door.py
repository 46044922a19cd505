"""Who comes in: enrolment, and the statuses that devices give of themselves."""

from __future__ import annotations

import logging

from coordinator import events
from coordinator.fleet import Fleet
from coordinator.publish import STORE
from coordinator.service.mail import Mail
from coordinator.store import Store
from edge_sdk.codecs import wire
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import Compute
from edge_sdk.core.errors import Reason, WireFormatError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import Reply, Status

_AGAIN_NS = 2 * NS  # the list is read again at most this often

log = logging.getLogger(__name__)


class Door:
    """Lets devices in.

    Args:
        fleet: the devices.
        store: knows who was enrolled by hand.
        mail: to those who are refused.
        compute: reads the store.
        clock: bounds how often the list is read.
        emit: the observer.
    """

    def __init__(
        self, fleet: Fleet, *, store: Store, mail: Mail, compute: Compute, clock: Clock, emit: Observer
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._store = store
        self._mail = mail
        self._compute = compute
        self._clock = clock
        self._emit = emit
        self._read_ns = 0
        self._noted: dict[str, frozenset[str]] = {}  # device → what it noted last

    async def read_list(self) -> None:
        """Lets in whom the store has enrolled."""
        self._read_ns = self._clock.now_ns()
        self._fleet.enrol(await self._compute.run(STORE, 0, self._store.enrolled))

    async def welcome(self, device: str) -> bool:
        """Says whether a device may take part; a stranger's word makes us read the list again."""
        if self._fleet.allowed(device):
            return True
        new = self._fleet.suspicious(device)
        if new or self._clock.now_ns() - self._read_ns >= _AGAIN_NS:
            await self.read_list()
        allowed = self._fleet.allowed(device)
        if new and not allowed:
            self._refuse(device, f"{device!r} is not enrolled; `edge-coordinator enroll {device}` lets it in")
        return allowed

    async def status(self, device: str, payload: bytes) -> None:
        """Takes a device's status."""
        status = wire.decode(Status, payload)
        if status.device != device:
            raise WireFormatError(f"status of {status.device!r} came under the id {device!r}")
        problem = self._fleet.heard(status)
        if problem:
            self._refuse(device, problem)
        else:
            log.info("%s: %s, has %s", device, status.state, ", ".join(status.modalities) or "no modality")
            for note in sorted(set(status.notes) - self._noted.get(device, frozenset())):
                log.warning("%s: %s", device, note)
            self._noted[device] = frozenset(status.notes)
            self._emit(
                events.DeviceSeen(
                    device, status.state, status.modalities, status.software, status.board, status.notes
                )
            )  # fmt: skip

    def _refuse(self, device: str, problem: str) -> None:
        log.warning("%s", problem)
        self._emit(events.DeviceRefused(device, problem))
        self._mail.reply(device, Reply("rejected", None, Reason.UNKNOWN_DEVICE.value, problem[:1000]))


__all__ = ["Door"]
