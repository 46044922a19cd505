"""What an update has to satisfy before it may touch the model.

Cheapest first: the header alone (`check_header`, `check_base`, `check_task`), the tensors (`inspect`, a job for
`Compute`), and what only the fleet as a whole can tell (`check_norm`). Every failure is an `UpdateRejected` with its
reason. The base comes before the task: a device that missed a restored backup or a rollback should hear of that.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.config import AdmissionConfig
from coordinator.fleet import Member
from coordinator.store import Entry, Journal, OpenTask, Receipt, Received, Rollback
from edge_sdk.codecs.chain import Chain, finite
from edge_sdk.codecs.headers import UpdateHeader
from edge_sdk.core.clock import NS
from edge_sdk.core.errors import Reason, UpdateRejected
from edge_sdk.core.messages import QUERY, Reply
from edge_sdk.core.records import ModelLayout, ModelTensors, Update, UpdateKey, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.methods.base import Method

NORMS = 101  # accepted updates that the running median looks at
_FEWEST_NORMS = 10  # before so many there is nothing to compare with
_REMEMBERED = 4096  # refusals that can be repeated
_RECEIPTS = 4  # per device


@dataclass(frozen=True, slots=True)
class Inspected:
    """An update whose tensors have been looked at."""

    update: Update
    norm: float  # root mean square of the change, over params
    norms: Mapping[str, float]  # module → Euclidean norm of its change, over params


def inspect(chain: Chain, layout: ModelLayout, data: bytes, base: ModelTensors) -> Inspected:
    """Returns the decoded update.

    Raises:
        CodecError: the bytes break the format, or do not fit the model.
        UpdateRejected: values that no model may take in.
    """
    update = chain.decode_update(data)
    if not finite(update):
        raise UpdateRejected(Reason.NON_FINITE, "it holds NaN or infinite values")
    for name, segments in update.tensors.items():
        for tensor in layout[name].tensors:
            if tensor.segment == "stats" and tensor.name.endswith("running_var"):
                size = int(np.prod(tensor.shape, dtype=np.int64))
                if (segments.stats[tensor.offset : tensor.offset + size] < 0).any():
                    raise UpdateRejected(Reason.NON_FINITE, f"{name}.{tensor.name}: a variance is negative")
    squares = {name: _square(update, base, name) for name in update.tensors}
    count = sum(segments.params.size for segments in update.tensors.values())
    norms = {name: float(np.sqrt(square)) for name, square in squares.items()}
    return Inspected(update, float(np.sqrt(sum(squares.values()) / max(1, count))), norms)


def _square(update: Update, base: ModelTensors, name: str) -> float:
    params = update.tensors[name].params
    change = params if update.kind == "delta" else params - base[name].params
    with np.errstate(over="ignore"):
        square = float(np.dot(change, change))
    return square if np.isfinite(square) else float(np.square(change, dtype=np.float64).sum())


class Admission:
    """The checks, and what they have to remember.

    Args:
        config: the [admission] section.
        spec: the federation's spec.
        method: declares the payload.
        journal: what earlier runs left.
    """

    def __init__(self, config: AdmissionConfig, spec: FederationSpec, method: Method, journal: Journal) -> None:
        self._config = config
        self._spec = spec
        self._chain = "".join(spec.codec.up.split())  # as headers have it
        self._method = method
        self._norms = deque(journal.norms, NORMS)
        self._rollbacks: tuple[Rollback, ...] = journal.rollbacks
        self._sequences = dict(journal.sequences)
        self._receipts: dict[str, deque[Receipt]] = {}
        self._refusals: OrderedDict[tuple[UpdateKey, str], Reply] = OrderedDict()
        self._buckets: dict[str, tuple[float, int]] = {}  # device → tokens, when counted
        for receipt in journal.receipts:
            self._remember(receipt)

    def known(self, key: UpdateKey, digest: str) -> Reply | None:
        """Returns the reply that this update has been given already.

        Raises:
            UpdateRejected: SEQUENCE_REUSED: another update had this key; DUPLICATE: too long ago to say what it was.
        """
        if (key, digest) in self._refusals:
            return self._refusals[key, digest]
        for receipt in self._receipts.get(key.device, ()):
            if receipt.key == key and receipt.digest == digest:
                return accepted(receipt)
            if receipt.key == key:
                raise UpdateRejected(
                    Reason.SEQUENCE_REUSED,
                    f"sequence {key.sequence} was another update (version {receipt.version}); draw a new incarnation",
                )
        highest = self._sequences.get((key.device, key.incarnation), -1)
        if key.sequence <= highest:
            raise UpdateRejected(Reason.DUPLICATE, f"sequence {key.sequence} is older than {highest}, applied long ago")
        return None

    def check_sender(self, key: UpdateKey, member: Member) -> None:
        """Checks that an update comes from the device that its key and the topic name, and from no namesake."""
        if key.device != member.device:
            raise UpdateRejected(Reason.UNKNOWN_DEVICE, f"it says it is from {key.device!r}")
        if member.incarnation not in (None, key.incarnation) and member.online:
            raise UpdateRejected(
                Reason.UNKNOWN_DEVICE, f"another device uses the id {member.device!r}; give this one an id of its own"
            )

    def check_header(self, header: UpdateHeader) -> None:
        """Checks for which federation an update was made."""
        if header.spec_digest != self._spec.digest:
            raise UpdateRejected(Reason.SPEC_CHANGED, f"made for spec {header.spec_digest}, now {self._spec.digest}")
        if header.chain != self._chain:
            raise UpdateRejected(Reason.MALFORMED, f"codec {header.chain!r}, expected {self._chain!r}")

    def check_task(self, header: UpdateHeader, task: OpenTask | None, *, now_ns: int) -> OpenTask:
        """Returns the task, found to be open, of this device, answered with sane numbers, and not too often."""
        if task is None or task.device != header.key.device:
            raise UpdateRejected(Reason.UNKNOWN_TASK, f"task {header.task!r} is not open; ask for a new one")
        if header.base != task.base:
            raise UpdateRejected(Reason.UNKNOWN_BASE, f"the task starts from version {task.base.number}")
        self._check_numbers(header, task)
        self._check_modules(header, task)
        self._check_rate(task.device, now_ns)
        return task

    def _check_numbers(self, header: UpdateHeader, task: OpenTask) -> None:
        if not 1 <= header.num_samples <= self._config.max_samples:
            raise UpdateRejected(Reason.MALFORMED, f"num_samples {header.num_samples} is not 1 to the allowed most")
        if not 0 <= header.num_steps <= self._config.max_steps:
            raise UpdateRejected(Reason.MALFORMED, f"num_steps {header.num_steps} is not 0 to the allowed most")
        strange = sorted(set(header.modalities) - set(task.modalities))
        if strange:
            raise UpdateRejected(Reason.MALFORMED, f"modalities {strange} are not in the task")

    def _check_modules(self, header: UpdateHeader, task: OpenTask) -> None:
        if task.kind == QUERY and header.modules:
            raise UpdateRejected(Reason.MALFORMED, "an answer to a query carries tensors; it has a payload alone")
        if not header.modules and (self._method.mode == "async" or not header.payload):
            raise UpdateRejected(Reason.MALFORMED, "no module was trained")  # in rounds a payload alone may do

    def _check_rate(self, device: str, now_ns: int) -> None:
        """A bucket that fills at `updates_per_minute` and holds as many, at least one."""
        per_minute = self._config.updates_per_minute
        if not per_minute:
            return
        most = max(1.0, per_minute)
        tokens, then_ns = self._buckets.get(device, (most, now_ns))
        tokens = min(most, tokens + (now_ns - then_ns) / NS / 60 * per_minute)
        if tokens < 1:
            self._buckets[device] = (tokens, now_ns)
            raise UpdateRejected(Reason.RATE, f"more than {per_minute:g} updates a minute")
        self._buckets[device] = (tokens - 1, now_ns)

    def check_base(self, base: VersionId, held: VersionId | None, *, lineage: str, number: int) -> int:
        """Returns the staleness of an update from this base.

        Args:
            base: what the update says.
            held: the version with its number that can be mixed against; None: there is none any more.
            lineage: of this store.
            number: of the model now.
        """
        if base.lineage != lineage:
            raise UpdateRejected(Reason.UNKNOWN_BASE, f"lineage {base.lineage[:8]}…, here {lineage[:8]}…")
        for rollback in self._rollbacks:
            if rollback.target < base.number < rollback.made:
                raise UpdateRejected(Reason.ROLLED_BACK_BASE, f"version {base.number} was undone by {rollback.made}")
        if base.number > number:
            raise UpdateRejected(Reason.UNKNOWN_BASE, f"version {base.number} does not exist; the newest is {number}")
        if held is None:
            raise UpdateRejected(Reason.BASE_EXPIRED, f"version {base.number} is not held any more")
        if held != base:
            raise UpdateRejected(Reason.UNKNOWN_BASE, f"version {base.number} has another digest")
        staleness = number - base.number
        if 0 < self._config.max_staleness < staleness:
            raise UpdateRejected(Reason.STALE, f"staleness {staleness}, at most {self._config.max_staleness}")
        return staleness

    def check_payload(self, update: Update, task: OpenTask) -> None:
        """Checks the payload against what the method declares for updates, or for answers."""
        declared = self._method.answers if task.kind == QUERY else self._method.uploads
        declared.check(update.payload, self._spec)

    def check_norm(self, norm: float) -> None:
        """Refuses a change that is far larger than what the fleet sends: more than the factor times the median."""
        if not self._config.norm_factor or len(self._norms) < _FEWEST_NORMS:
            return
        usual = statistics.median(self._norms)
        if norm > self._config.norm_factor * usual > 0:
            raise UpdateRejected(
                Reason.NORM, f"change {norm:.3g} (rms), {norm / usual:.1f} times the median; check this device's data"
            )

    def applied(self, entry: Entry | Received, lineage: str) -> Reply:
        """Remembers an accepted update; returns its reply."""
        line = (entry.key.device, entry.key.incarnation)
        self._sequences[line] = max(entry.key.sequence, self._sequences.get(line, -1))
        if entry.norm:  # an answer has none
            self._norms.append(entry.norm)
        receipt = Receipt(entry.key, entry.digest, entry.version, lineage)
        self._remember(receipt)
        return accepted(receipt)

    def _remember(self, receipt: Receipt) -> None:
        self._receipts.setdefault(receipt.key.device, deque(maxlen=_RECEIPTS)).append(receipt)

    def refused(self, key: UpdateKey, digest: str, reply: Reply) -> None:
        """Remembers a refusal: the device has acted on it, so the same update must not be accepted later."""
        self._refusals[key, digest] = reply
        if len(self._refusals) > _REMEMBERED:
            self._refusals.popitem(last=False)


def accepted(receipt: Receipt) -> Reply:
    """Returns the reply to an accepted update; its version was not necessarily published, so it has no digest."""
    return Reply("accepted", receipt.key, version=VersionId(receipt.lineage, receipt.version, ""))


__all__ = ["Admission", "Inspected", "accepted", "inspect"]
