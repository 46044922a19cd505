"""What a device still owes the coordinator: encoded updates and the residual of error feedback.

One pending update per task. Until its first chunk is sent it may be replaced (the device trained on while off-line);
it is deleted only on the coordinator's reply, in the same transaction that moves the residual:

    accepted                            the residual made with the update is kept
    base_expired, rate                  what was sent returns whole: the residual is the uncompressed update
    norm, non_finite, rolled_back_base  both are thrown away
    another lineage                     cleared
    anything else                       see `settlement`
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from edge_sdk.core.errors import Reason
from edge_sdk.core.records import Float32, UpdateKey, VersionId

Residual = Mapping[str, Float32]  # module → float32 (P,)


class Settlement(Enum):
    """What becomes of the residual when the coordinator has answered."""

    KEEP = "keep"  # the update is in the model; what the codec left out waits for the next one
    RETURN = "return"  # the update is not in the model, but was good: all of it waits for the next one
    DROP = "drop"  # neither the update nor the residual can be trusted
    IGNORE = "ignore"  # the update is gone; the residual stays what it was before it


_BY_REASON = {
    Reason.BASE_EXPIRED: Settlement.RETURN,
    Reason.RATE: Settlement.RETURN,
    Reason.STALE: Settlement.RETURN,
    Reason.UNKNOWN_TASK: Settlement.RETURN,  # the task lapsed while it was trained
    Reason.STORE: Settlement.RETURN,  # the coordinator's disk, not our update
    Reason.SEQUENCE_REUSED: Settlement.RETURN,
    Reason.NORM: Settlement.DROP,
    Reason.NON_FINITE: Settlement.DROP,
    Reason.ROLLED_BACK_BASE: Settlement.DROP,
    Reason.UNKNOWN_BASE: Settlement.DROP,  # trained from a version that this coordinator never had
}


def settlement(reason: str) -> Settlement:
    """Returns what a rejection does to the residual."""
    try:
        return _BY_REASON.get(Reason(reason), Settlement.IGNORE)
    except ValueError:
        return Settlement.IGNORE  # a newer coordinator's reason


@dataclass(frozen=True, slots=True)
class Pending:
    """An encoded update that waits for its reply."""

    key: UpdateKey
    task: str
    base: VersionId
    digest: str  # blake2b-128 of data, 32 hex digits
    data: bytes  # the encoded object
    residual: Residual  # what the codec left out, per module
    whole: Residual  # what went into the codec: the trained change with the residual before it
    sent: bool = False  # a chunk of it has left


class Outbox(ABC):
    """The outbox of one device. Blocking: in the field it is called through an ordered lane of Compute.

    Every method raises StoreError where the disk refuses.

    Args:
        device: id that update keys carry.
        incarnation: 64 bits that name this outbox's life.
    """

    def __init__(self, device: str, incarnation: int) -> None:
        self.device = device
        self.incarnation = incarnation

    @abstractmethod
    def renew(self) -> None:
        """Begins a new life: another program has used our sequence numbers (a copied disk)."""

    @abstractmethod
    def next_key(self) -> UpdateKey:
        """Returns a key that was never used before; committed before it is returned."""

    @abstractmethod
    def residual(self, lineage: str) -> Residual:
        """Returns the residual for updates against this lineage; another lineage's is cleared."""

    @abstractmethod
    def put(self, update: Pending, replacing: UpdateKey | None = None) -> bool:
        """Stores an update and returns True.

        Args:
            update: the update.
            replacing: takes the place of this one; False, and nothing stored, if a chunk of that one has left.
        """

    @abstractmethod
    def mark_sent(self, key: UpdateKey) -> bool:
        """Fixes an update before its first chunk leaves; False if it is no longer there (it was replaced)."""

    @abstractmethod
    def oldest(self) -> Pending | None:
        """Returns the update that has waited longest; None: nothing is pending."""

    @abstractmethod
    def waiting(self) -> int:
        """Returns how many updates are pending."""

    @abstractmethod
    def settle(self, key: UpdateKey, outcome: Settlement) -> bool:
        """Deletes an update and moves the residual as its outcome says; False if there is no such update."""

    def close(self) -> None:  # noqa: B027  nothing to close unless there is a file
        """Closes what is open."""


class MemoryOutbox(Outbox):
    """An outbox that ends with the process: a simulation has thousands, and no power to lose.

    Args:
        device: id that update keys carry.
        incarnation: 64 bits that name its life; None: drawn at random.
    """

    def __init__(self, device: str, incarnation: int | None = None) -> None:
        super().__init__(device, secrets.randbits(64) if incarnation is None else incarnation)
        self._sequence = 0
        self._pending: dict[str, Pending] = {}  # by task, oldest first
        self._residual: tuple[str, Residual] = ("", {})  # lineage, what is owed

    def renew(self) -> None:
        self.incarnation, self._sequence = secrets.randbits(64), 0

    def next_key(self) -> UpdateKey:
        self._sequence += 1
        return UpdateKey(self.device, self.incarnation, self._sequence)

    def residual(self, lineage: str) -> Residual:
        if self._residual[0] != lineage:
            self._residual = (lineage, {})
        return self._residual[1]

    def put(self, update: Pending, replacing: UpdateKey | None = None) -> bool:
        if replacing is not None:
            gone = self._find(replacing)
            if gone is None or gone.sent:
                return False
            del self._pending[gone.task]
        self._pending.pop(update.task, None)  # whoever takes another's place comes last
        self._pending[update.task] = update
        return True

    def mark_sent(self, key: UpdateKey) -> bool:
        found = self._find(key)
        if found is not None:
            self._pending[found.task] = replace(found, sent=True)
        return found is not None

    def oldest(self) -> Pending | None:
        return next(iter(self._pending.values()), None)

    def waiting(self) -> int:
        return len(self._pending)

    def settle(self, key: UpdateKey, outcome: Settlement) -> bool:
        found = self._find(key)
        if found is None:
            return False
        del self._pending[found.task]
        if outcome is not Settlement.IGNORE:
            lineage, before = self._residual
            kept = before if lineage == found.base.lineage else {}
            self._residual = (found.base.lineage, residual_after(kept, found.residual, found.whole, outcome))
        return True

    def _find(self, key: UpdateKey) -> Pending | None:
        return next((p for p in self._pending.values() if p.key == key), None)


def residual_after(before: Residual, residual: Residual, whole: Residual, outcome: Settlement) -> Residual:
    """Returns what is owed after an update has its reply.

    Args:
        before: what was owed until then, of the same lineage; modules that the update did not carry stay as they are.
        residual: the update's.
        whole: the update's.
        outcome: what the reply says.
    """
    if outcome in (Settlement.DROP, Settlement.IGNORE):
        return {}
    return {**before, **(residual if outcome is Settlement.KEEP else whole)}


__all__ = ["MemoryOutbox", "Outbox", "Pending", "Residual", "Settlement", "residual_after", "settlement"]
