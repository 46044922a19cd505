"""The devices a coordinator knows: who is on line, what they have, and whether an id is used twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edge_sdk.core.messages import Status
from edge_sdk.core.spec import FederationSpec

_TRIES = 32  # random picks before we look at everybody


@dataclass(slots=True)
class Member:
    """One device as the coordinator sees it."""

    device: str
    online: bool = False
    incarnation: int | None = None  # of the outbox that holds this id; None: never heard
    rival: Status | None = None  # another outbox claims the id while its holder is on line
    may_renew: bool = False  # it was told sequence_reused: its next status brings a new incarnation
    modalities: tuple[str, ...] = ()  # in the order of the spec
    spec_digest: str = ""


class Fleet:
    """Known devices by id.

    Args:
        spec: the federation's spec; its order of modalities counts.
        listed: devices that may take part; None: everybody.
    """

    def __init__(self, spec: FederationSpec, listed: Iterable[str] | None) -> None:
        self._spec = spec
        self._listed = None if listed is None else set(listed)
        self._members: dict[str, Member] = {}
        self._waiting: dict[str, int] = {}  # device → place in the queue
        self._queue: list[Member] = []  # those that wait, in no order: the last one fills a gap
        self._untold: dict[str, None] = {}
        self._online = 0
        self._suspects: set[str] = set()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def online(self) -> int:
        """How many devices are on line."""
        return self._online

    @property
    def waiting(self) -> tuple[Member, ...]:
        """Devices on line that wait for a task."""
        return tuple(self._queue)

    def draw(self, rng: np.random.Generator, fits: Callable[[Member], bool]) -> Member | None:
        """Returns one of the waiting devices that fit, each as likely; what it costs does not grow with the fleet."""
        for _ in range(_TRIES):
            if not self._queue:
                return None
            member = self._queue[int(rng.integers(len(self._queue)))]
            if fits(member):
                return member
        fitting = [member for member in self._queue if fits(member)]
        return fitting[int(rng.integers(len(fitting)))] if fitting else None

    @property
    def waits(self) -> bool:
        """Says whether any device waits for a task."""
        return bool(self._waiting)

    def untold(self) -> list[Member]:
        """Returns the devices that have not heard that there is no task for them now, as told from here on."""
        news = [self._members[device] for device in self._untold if device in self._waiting]
        self._untold.clear()
        return news

    def members(self) -> tuple[Member, ...]:
        """All devices ever heard of, in that order."""
        return tuple(self._members.values())

    def allowed(self, device: str) -> bool:
        """Says whether a device may take part."""
        return self._listed is None or device in self._listed

    def enrol(self, devices: Iterable[str]) -> None:
        """Lets more devices take part."""
        if self._listed is not None:
            self._listed.update(devices)

    def suspicious(self, device: str) -> bool:
        """Says whether a refusal is news: True once per device."""
        new = device not in self._suspects and len(self._suspects) < 10_000
        self._suspects.add(device) if new else None
        return new

    def member(self, device: str) -> Member:
        """Returns a device, made known if it was not."""
        return self._members.setdefault(device, Member(device))

    def heard(self, status: Status) -> str:
        """Takes a device's status; returns "" or why it was refused.

        An id belongs to the outbox (incarnation) that used it first for as long as that is on line. Another one that
        claims it waits until then: a reinstalled device takes over as soon as the broker knows the old one is gone.
        """
        member = self.member(status.device)
        if self._is_rival(member, status):
            member.rival = status if status.state != "offline" else None
            return (
                f"another device uses the id {status.device!r} (outbox {member.incarnation:016x}); "
                f"give the one with outbox {status.incarnation:016x} an id of its own"
            )
        self._take(member, status)
        if not member.online and member.rival is not None:
            rival, member.rival = member.rival, None
            self._take(member, rival)
        return ""

    def _is_rival(self, member: Member, status: Status) -> bool:
        if member.incarnation in (None, status.incarnation):
            return False
        if member.may_renew and status.state != "offline":
            return False
        return member.online or status.state == "offline"

    def _take(self, member: Member, status: Status) -> None:
        online = status.state != "offline"
        self._online += int(online) - int(member.online)
        member.online = online
        if status.incarnation != member.incarnation:
            member.incarnation, member.may_renew = status.incarnation, False
        if online:
            member.modalities = tuple(m for m in self._spec.modality_names if m in status.modalities)
            member.spec_digest = status.spec_digest
        if status.state != "online":
            self.served(member)

    def asks(self, device: str) -> Member:
        """A device asks for a task; it waits for one from now on."""
        member = self.member(device)
        if device not in self._waiting:
            self._waiting[device] = len(self._queue)
            self._queue.append(member)
        self._untold[device] = None
        return member

    def served(self, member: Member) -> None:
        """A device does not wait for a task any more."""
        place = self._waiting.pop(member.device, None)
        if place is not None:
            last = self._queue.pop()
            if last is not member:
                self._queue[place] = last
                self._waiting[last.device] = place


__all__ = ["Fleet", "Member"]
