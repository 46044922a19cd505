"""What every store promises, on disk or in memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.store import (
    About,
    Checkpoint,
    Entry,
    MemoryStore,
    OpenRound,
    OpenTask,
    Received,
    Rollback,
    RoundEntry,
    SqliteStore,
    Store,
    Stored,
)  # fmt: skip
from edge_sdk.core import registry
from edge_sdk.core.errors import StoreError
from edge_sdk.core.messages import Published
from edge_sdk.core.records import ModelTensors, Segments, UpdateKey, VersionId

Make = Callable[[str], Store]

ABOUT = About("test", "{}", "0" * 32, "kernel-1", "cpu-1")
L = "a" * 32


def tensors(value: float) -> dict[str, Segments]:
    params = np.full(5, value, np.float32)
    params[0] = np.float32(np.pi) * np.float32(value)
    return {
        "encoder.a": Segments(params, np.full(2, value, np.float32), np.array([7], np.int64)),
        "fusion": Segments(params[:3].copy()),
    }


def equal(a: ModelTensors, b: ModelTensors) -> bool:
    pairs = [(getattr(a[m], s), getattr(b[m], s)) for m in a for s in ("params", "stats", "counters")]
    return sorted(a) == sorted(b) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def state(value: float) -> dict[str, np.ndarray]:
    return {"sum/a": np.array([value, 1 / 3]), "cell/a/ü": np.array(float(value)), "empty": np.zeros(0)}


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(number, number, tensors(number), state(number))


def base(number: int) -> VersionId:
    return VersionId(L, number, f"{number:032x}")


def entry(version: int, *, device: str = "d1", sequence: int | None = None, based_on: int = 0) -> Entry:
    sequence = version - 1 if sequence is None else sequence
    return Entry(
        version=version, key=UpdateKey(device, 2**64 - 1, sequence), task=f"t{version}", base=base(based_on),
        digest=f"{version:032x}", chain="delta|int8", kernel="kernel-1", op="mix",
        rates={"fusion": 1 / 3, "encoder.a": 0.1 + 0.2}, patch={"sum/a": np.array([1 / 7, 2.0]), "one": np.array(3.0)},
        staleness=version, num_samples=10, num_steps=2, modalities=("a",), norm=0.5 * version, utc_ns=version,
        body=bytes([version]) * 100,
    )  # fmt: skip


def task(name: str, device: str, number: int, *, based_on: int = 0) -> OpenTask:
    return OpenTask(name, device, number, base(based_on), 5, ("a",), 2, 0.1 + 0.2, 16)


def stored(number: int, lineage: str = L) -> Stored:
    version = replace(base(number), lineage=lineage)
    return Stored(Published(version, 10, 1, number % 4, "0" * 32, "fp32"), number, number)


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a store; the same one again when called again, as after a restart."""
    made: list[Store] = []
    memory: dict[str, MemoryStore] = {}

    def build(keep: str = "recovery") -> Store:
        for store in made:
            store.close()
        if request.param == "sqlite":
            made.append(SqliteStore(tmp_path / "store", keep=keep))
        else:
            made.append(memory.setdefault(keep, MemoryStore(keep=keep)))
        return made[-1]

    yield build
    for store in made:
        store.close()


def fresh(make: Make, keep: str = "recovery") -> Store:
    store = make(keep)
    assert store.open() is None
    store.create(ABOUT, checkpoint(0))
    return store


def again(make: Make, keep: str = "recovery") -> Store:
    store = make(keep)
    assert store.open() == ABOUT
    return store


def test_the_store_on_disk_is_registered() -> None:
    assert registry.load("stores", "sqlite") is SqliteStore


def test_a_checkpoint_comes_back_bit_for_bit_with_memory_of_its_own(make: Make) -> None:
    store = fresh(make)
    lineage = store.lineage
    store.checkpoint(checkpoint(3))
    store = again(make)
    found = store.newest_checkpoint()
    assert (found.number, found.updates, store.lineage) == (3, 3, lineage)
    assert equal(found.tensors, tensors(3))
    assert {k: v.tolist() for k, v in found.state.items()} == {k: v.tolist() for k, v in state(3).items()}
    assert all(v.dtype == np.float64 for v in found.state.values())
    found.tensors["fusion"].params[:] = 0
    found.state["sum/a"][:] = 0
    assert equal(store.newest_checkpoint().tensors, tensors(3))


def test_entries_come_back_in_order_and_exactly(make: Make) -> None:
    store = fresh(make)
    for version in (1, 2, 3):
        store.commit(entry(version))
    found = list(again(make).entries(1))
    assert [e.version for e in found] == [2, 3]
    assert replace(found[0], patch={}) == replace(entry(2), patch={})
    assert {k: v.tolist() for k, v in found[0].patch.items()} == {k: v.tolist() for k, v in entry(2).patch.items()}
    assert all(v.dtype == np.float64 for v in found[0].patch.values())


def test_a_commit_closes_the_task_and_leaves_receipt_sequence_and_norm(make: Make) -> None:
    store = fresh(make)
    store.open_tasks((task("t1", "d1", 0), task("t2", "d2", 4)))
    store.commit(entry(1))
    journal = again(make).journal()
    assert list(journal.tasks) == [task("t2", "d2", 4)]
    assert [(r.key, r.digest, r.version) for r in journal.receipts] == [(entry(1).key, entry(1).digest, 1)]
    assert journal.task_numbers == {"d1": 1, "d2": 5}
    assert journal.sequences == {("d1", 2**64 - 1): 0}
    assert journal.norms == (0.5,)


def test_only_the_newest_receipts_of_a_device_stay_but_its_highest_sequence_does(make: Make) -> None:
    store = fresh(make)
    for version in range(1, 10):
        store.commit(entry(version))
    store.commit(entry(10, device="d2", sequence=3))
    journal = again(make).journal()
    assert sorted(r.version for r in journal.receipts) == [6, 7, 8, 9, 10]
    assert journal.sequences["d1", 2**64 - 1] == 8


def test_a_version_cannot_be_made_twice(make: Make) -> None:
    store = fresh(make)
    store.commit(entry(1))
    with pytest.raises(StoreError):
        store.commit(entry(1, device="d2"))
    assert [e.key.device for e in store.entries(0)] == ["d1"]
    assert len(store.journal().receipts) == 1


@pytest.mark.parametrize(
    ("keep", "headers", "bodies"),
    [
        ("recovery", [3, 4, 5], [3, 4, 5]),
        ("audit", [1, 2, 3, 4, 5], [3, 4, 5]),
        ("all", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ],
)
def test_what_is_kept_after_checkpoints(make: Make, keep: str, headers: list[int], bodies: list[int]) -> None:
    store = fresh(make, keep)
    for version in range(1, 6):
        store.commit(entry(version))
        if version in (2, 4):
            store.checkpoint(checkpoint(version))
    found = list(again(make, keep).entries(0))
    assert [e.version for e in found] == headers
    assert [e.version for e in found if e.body] == bodies


def test_published_versions_come_back_with_their_accuracy(make: Make) -> None:
    store = fresh(make)
    store.save_version(replace(stored(4), published=stored(4, store.lineage).published), tensors(4), b"object")
    store.save_accuracy(4, 0.75)
    store = again(make)
    (found,) = store.journal().versions
    assert (found.id.number, found.acc, found.order) == (4, 0.75, 4)
    assert equal(store.tensors(found.id), tensors(4))
    assert store.data(found.id) == b"object"
    with pytest.raises(StoreError):
        store.data(base(5))


def _publish(store: Store, count: int) -> None:
    for number in range(count):
        store.save_version(stored(number, store.lineage), tensors(number), b"x" * 1000)


def test_pruning_keeps_the_newest_the_named_and_what_the_journal_needs(make: Make) -> None:
    store = fresh(make)
    _publish(store, 8)
    store.commit(replace(entry(1), base=stored(2, store.lineage).id))
    held, full = store.prune(frozenset({4}), newest=2, budget_bytes=10**9)
    assert (sorted(held), full) == ([2, 4, 6, 7], False)
    assert [v.id.number for v in again(make).journal().versions] == [2, 4, 6, 7]


def test_a_run_that_nobody_takes_up_again_holds_what_is_in_use_and_no_more() -> None:
    store = MemoryStore(keep="nothing")
    store.open()
    store.create(ABOUT, checkpoint(0))
    for number in range(1, 21):
        store.commit(entry(number, based_on=number - 1))
        store.save_version(stored(number), tensors(number), b"x" * 10)
        store.checkpoint(checkpoint(number))
    assert list(store.entries(0)) == []
    assert store.newest_checkpoint().number == 0
    assert store.prune(frozenset({7}), newest=1, budget_bytes=10**9) == (frozenset({7, 20}), False)
    assert store.journal().sequences == {("d1", 2**64 - 1): 19}  # replies are repeated all the same


def test_pruning_over_budget_drops_what_is_only_named_and_says_when_the_journal_is_in_the_way(make: Make) -> None:
    store = fresh(make)
    _publish(store, 8)
    store.commit(replace(entry(1), base=stored(2, store.lineage).id))
    held, full = store.prune(frozenset({4, 5}), newest=2, budget_bytes=100)
    assert (sorted(held), full) == ([2, 6, 7], True)
    assert equal(store.tensors(stored(2, store.lineage).id), tensors(2))


def test_a_rollback_counts_from_now_on(make: Make) -> None:
    store = fresh(make)
    for version in (1, 2):
        store.commit(entry(version))
    store.open_tasks((task("old", "d1", 0, based_on=1), task("newer", "d2", 0, based_on=2)))
    store.roll_back(Rollback(3, 1), replace(checkpoint(3), tensors=tensors(1)))
    store = again(make)
    assert store.newest_checkpoint().number == 3
    assert equal(store.newest_checkpoint().tensors, tensors(1))
    assert store.journal().rollbacks == (Rollback(3, 1),)
    assert [t.id for t in store.journal().tasks] == ["old"]
    assert list(store.entries(3)) == []


def test_a_store_in_use_is_refused(make: Make, tmp_path: Path) -> None:
    store = fresh(make)
    other = SqliteStore(tmp_path / "store") if isinstance(store, SqliteStore) else store
    with pytest.raises(StoreError, match="in use"):
        other.open()
    assert store.journal().tasks == ()  # the first one goes on


def received(device: str, version: int = 1, *, kind: str = "train", based_on: int = 0) -> Received:
    return Received(
        version=version, kind=kind, key=UpdateKey(device, 7, version), task=f"{kind}-{device}", base=base(based_on),
        digest=f"{version:032x}", chain="delta|int8", num_samples=10, num_steps=2, modalities=("a",), norm=0.5,
        utc_ns=version, body=device.encode() * 10,
    )  # fmt: skip


def round_entry(version: int, *members: Received, replaced: ModelTensors | None = None) -> RoundEntry:
    return RoundEntry(
        version=version, base=members[0].base, kernel="mean-1",
        weights={"fusion": {m.key.device: 1 / 3 for m in members}}, keep={"fusion": 0.1 + 0.2},
        replaced=replaced or {}, patch={"seen": np.array([1 / 7])}, utc_ns=version, members=members,
    )  # fmt: skip


def stage_of(version: int = 1, kind: str = "train") -> OpenRound:
    return OpenRound(version, "f" * 32, kind, {"asked": np.array([1 / 9])})


def same(a: OpenRound | None, b: OpenRound) -> bool:
    return a is not None and replace(a, patch={}) == replace(b, patch={}) and a.patch.keys() == b.patch.keys()


def test_a_round_and_what_it_received_survive_a_restart(make: Make) -> None:
    store = fresh(make)
    tasks = (replace(task("train-d1", "d1", 0), phase="multi"), task("train-d2", "d2", 0))
    store.open_tasks(tasks, stage_of())
    store.admit(received("d1"))
    journal = again(make).journal()
    assert same(journal.round, stage_of())
    assert np.array_equal(journal.round.patch["asked"], np.array([1 / 9]))  # type: ignore[union-attr]
    assert journal.received == (received("d1"),)
    assert journal.tasks == (tasks[1],)
    assert [(r.key, r.version) for r in journal.receipts] == [(received("d1").key, 1)]
    assert journal.sequences == {("d1", 7): 1}


def test_answers_and_updates_of_one_round_are_told_apart(make: Make) -> None:
    store = fresh(make)
    store.open_tasks((replace(task("query-d1", "d1", 0), kind="query"),), stage_of(kind="query"))
    store.admit(received("d1", kind="query"))
    assert again(make).journal().received == (received("d1", kind="query"),)
    store = again(make)
    store.open_tasks((task("train-d1", "d1", 1),), stage_of())
    assert store.journal().received == ()
    store.admit(replace(received("d1"), key=UpdateKey("d1", 7, 2)))
    assert [r.key.sequence for r in store.journal().received] == [2]
    assert {r.key.sequence for r in store.journal().receipts} == {1, 2}


def test_a_decision_about_a_cohort_comes_back_with_its_members(make: Make) -> None:
    store = fresh(make)
    members = tuple(received(d) for d in ("d1", "d2"))
    store.open_tasks((), stage_of())
    for member in members:
        store.admit(member)
    entry_made = round_entry(1, *members, replaced={"fusion": tensors(3)["fusion"]})
    store.commit_round(entry_made)
    store = again(make)
    (found,) = store.entries(0)
    assert isinstance(found, RoundEntry)
    assert equal(found.replaced, entry_made.replaced)
    assert np.array_equal(found.patch["seen"], entry_made.patch["seen"])
    assert replace(found, replaced={}, patch={}) == replace(entry_made, replaced={}, patch={})
    assert store.journal().round is None
    assert store.journal().received == ()
    assert store.journal().norms == (0.5,)


def _large(seed: int) -> dict[str, np.ndarray]:
    """Returns entries of which two lie outside a header: one of float32 values, one that needs all of float64."""
    rng = np.random.default_rng(seed)
    halved = rng.normal(size=(90, 400)).astype(np.float32).astype(np.float64)
    return {
        "block/a": halved,
        "block/b": rng.normal(size=30_000),
        "small": rng.normal(size=3),
        "far": np.full(9_000, 1e300),
    }


def _same_patch(found: object, expected: dict[str, np.ndarray]) -> bool:
    assert isinstance(found, dict)
    return found.keys() == expected.keys() and all(
        value.dtype == np.float64
        and value.shape == expected[name].shape
        and value.tobytes() == expected[name].tobytes()
        for name, value in found.items()
    )


def test_large_entries_of_a_patch_come_back_bit_for_bit(make: Make) -> None:
    store = fresh(make)
    _publish(store, 1)
    store.commit(replace(entry(1), patch=_large(1)))
    members = tuple(received(d, 2) for d in ("d1", "d2"))
    store.open_tasks((), replace(stage_of(2), patch=_large(2)))
    store = again(make)
    assert _same_patch(store.journal().round.patch, _large(2))  # type: ignore[union-attr]
    for member in members:
        store.admit(member)
    store.commit_round(replace(round_entry(2, *members), patch={**_large(2), **_large(3)}))
    found = list(again(make).entries(0))
    assert _same_patch(found[0].patch, _large(1))
    assert _same_patch(found[1].patch, _large(3))


def test_large_entries_of_a_state_come_back_from_a_checkpoint_bit_for_bit(make: Make) -> None:
    store = fresh(make)
    whole = {**state(1), **_large(4), "zeros": -np.zeros(2_000), "unknown": np.array([np.nan] * 2_000)}
    store.checkpoint(replace(checkpoint(1), state=whole))
    assert _same_patch(dict(again(make).newest_checkpoint().state), whole)


def test_large_entries_go_with_the_decisions_that_recovery_does_not_read(make: Make) -> None:
    store = fresh(make)
    for version in (1, 2, 3):
        store.commit(replace(entry(version), patch=_large(version)))
        store.checkpoint(checkpoint(version))
    (left,) = again(make).entries(0)
    assert left.version == 3
    assert _same_patch(left.patch, _large(3))


def test_a_first_stage_forgets_what_an_abandoned_attempt_received(make: Make) -> None:
    store = fresh(make)
    store.open_tasks((), stage_of(kind="query"))
    store.admit(received("d1", kind="query"))
    store.open_tasks((), stage_of(kind="query"))
    assert again(make).journal().received == ()


def test_a_device_is_in_a_stage_once(make: Make) -> None:
    store = fresh(make)
    store.open_tasks((), stage_of())
    store.admit(received("d1"))
    with pytest.raises(StoreError):
        store.admit(replace(received("d1"), key=UpdateKey("d1", 7, 9)))
    assert len(store.journal().receipts) == 1


def _round(store: Store, version: int) -> None:
    members = tuple(replace(received(d, version), base=stored(0, store.lineage).id) for d in ("d1", "d2"))
    store.open_tasks((), stage_of(version))
    for member in members:
        store.admit(member)
    store.commit_round(round_entry(version, *members))


@pytest.mark.parametrize(
    ("keep", "headers", "bodies"),
    [("recovery", [2, 3], [2, 3]), ("audit", [1, 2, 3], [2, 3]), ("all", [1, 2, 3], [1, 2, 3])],
)
def test_what_is_kept_of_rounds_after_checkpoints(make: Make, keep: str, headers: list[int], bodies: list[int]) -> None:
    store = fresh(make, keep)
    _publish(store, 3)
    for version in (1, 2, 3):
        _round(store, version)
        if version in (1, 2):
            store.checkpoint(checkpoint(version))
    held, _ = store.prune(frozenset(), newest=1, budget_bytes=10**9)
    assert 0 in held  # a replay needs it
    found = [e for e in again(make, keep).entries(0) if isinstance(e, RoundEntry)]
    assert [e.version for e in found] == headers
    assert [e.version for e in found if all(m.body for m in e.members) and e.members] == bodies


def test_a_rollback_ends_the_round(make: Make) -> None:
    store = fresh(make)
    store.commit(entry(1))
    store.open_tasks((task("train-d1", "d1", 0, based_on=1),), stage_of(2))
    store.admit(received("d1", 2, based_on=1))
    store.roll_back(Rollback(2, 0), replace(checkpoint(2), tensors=tensors(0)))
    assert again(make).journal().round is None
    assert again(make).journal().received == ()
