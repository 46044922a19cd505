from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import Reason, StoreError
from edge_sdk.core.records import UpdateKey, VersionId
from edge_sdk.runtime.outbox import MemoryOutbox, Outbox, Pending, Settlement, settlement
from edge_sdk.runtime.outbox_file import FileOutbox

BASE = VersionId("ab" * 16, 3, "cd" * 16)
OTHER = VersionId("ef" * 16, 3, "cd" * 16)


def pending(key: UpdateKey, task: str = "t", *, base: VersionId = BASE, size: int = 10, value: float = 1.0) -> Pending:
    residual = {"fusion": np.full(4, value, np.float32)}
    whole = {"fusion": np.full(4, 10 * value, np.float32)}
    return Pending(key, task, base, "00" * 16, b"x" * size, residual, whole)


@pytest.fixture(params=["memory", "file"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Outbox:
    return FileOutbox(tmp_path / "outbox.sqlite", "d1") if request.param == "file" else MemoryOutbox("d1")


def test_keys_are_never_used_twice(outbox: Outbox) -> None:
    keys = [outbox.next_key() for _ in range(3)]
    assert [k.sequence for k in keys] == [1, 2, 3]
    assert {k.incarnation for k in keys} == {outbox.incarnation}


def test_keeps_everything_over_a_restart(tmp_path: Path) -> None:
    first = FileOutbox(tmp_path / "o", "d1")
    key = first.next_key()
    first.put(pending(key))
    first.mark_sent(key)
    first.close()
    again = FileOutbox(tmp_path / "o", "d1")
    found = again.oldest()
    assert found is not None
    assert (found.key, found.sent, found.base, found.data) == (key, True, BASE, b"x" * 10)
    assert np.array_equal(found.whole["fusion"], np.full(4, 10, np.float32))
    assert again.next_key().sequence == 2


def test_survives_sigkill(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from edge_sdk.runtime.outbox_file import FileOutbox
from tests.runtime.test_outbox import pending
o = FileOutbox(Path({str(tmp_path / "o")!r}), "d1")
for _ in range(5):
    o.put(pending(o.next_key(), f"t{{_}}"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2], env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    outbox = FileOutbox(tmp_path / "o", "d1")
    assert outbox.waiting() == 5
    assert outbox.next_key().sequence == 6


def test_replaces_until_the_first_chunk_is_sent(outbox: Outbox) -> None:
    first, second, third = (outbox.next_key() for _ in range(3))
    assert outbox.put(pending(first))
    assert outbox.put(pending(second), first)
    assert outbox.waiting() == 1
    assert not outbox.mark_sent(first)
    assert outbox.mark_sent(second)
    assert not outbox.put(pending(third), second)
    found = outbox.oldest()
    assert found is not None
    assert found.key == second


def test_does_not_bring_back_a_settled_update(outbox: Outbox) -> None:
    first, second = outbox.next_key(), outbox.next_key()
    outbox.put(pending(first))
    outbox.mark_sent(first)
    outbox.settle(first, Settlement.KEEP)
    assert not outbox.put(pending(second), first)
    assert outbox.oldest() is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("", 1.0),
        ("base_expired", 10.0),
        ("rate", 10.0),
        ("norm", None),
        ("non_finite", None),
        ("rolled_back_base", None),
        ("shape", 5.0),
        ("a reason of the future", 5.0),
    ],
)
def test_outcome_moves_the_residual(outbox: Outbox, reason: str, expected: float | None) -> None:
    before = outbox.next_key()
    outbox.put(pending(before, "before", value=5.0))
    outbox.settle(before, Settlement.KEEP)
    key = outbox.next_key()
    outbox.put(pending(key))
    assert outbox.settle(key, settlement(reason) if reason else Settlement.KEEP)
    residual = outbox.residual(BASE.lineage)
    if expected is None:
        assert residual == {}
    else:
        assert np.array_equal(residual["fusion"], np.full(4, expected, np.float32))
    assert outbox.oldest() is None
    assert not outbox.settle(key, Settlement.KEEP)


def test_every_reason_has_a_settlement() -> None:
    assert all(isinstance(settlement(reason.value), Settlement) for reason in Reason)


def test_residual_of_modules_that_were_not_sent_stays(outbox: Outbox) -> None:
    key = outbox.next_key()
    outbox.put(pending(key))
    outbox.settle(key, Settlement.KEEP)
    other = outbox.next_key()
    alone = {"encoder.acc": np.ones(2, np.float32)}
    outbox.put(Pending(other, "t2", BASE, "00" * 16, b"x", alone, alone))
    outbox.settle(other, Settlement.KEEP)
    assert sorted(outbox.residual(BASE.lineage)) == ["encoder.acc", "fusion"]


def test_another_lineage_clears_the_residual(outbox: Outbox) -> None:
    key = outbox.next_key()
    outbox.put(pending(key))
    outbox.settle(key, Settlement.KEEP)
    assert outbox.residual(OTHER.lineage) == {}
    assert outbox.residual(BASE.lineage) == {}


def test_new_life_has_other_keys(outbox: Outbox) -> None:
    before = outbox.next_key()
    outbox.renew()
    after = outbox.next_key()
    assert after.incarnation != before.incarnation
    assert after.sequence == 1


def test_full_disk_says_what_to_do_and_loses_nothing(tmp_path: Path) -> None:
    outbox = FileOutbox(tmp_path / "o", "d1", limit_mb=0.1)
    small = outbox.next_key()
    outbox.put(pending(small, "small"))
    large = outbox.next_key()
    with pytest.raises(StoreError, match="make room"):
        outbox.put(pending(large, "large", size=1 << 20))
    found = outbox.oldest()
    assert found is not None
    assert found.key == small
    assert outbox.settle(small, Settlement.KEEP)
    assert outbox.put(pending(outbox.next_key(), "next"))


def test_no_place_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="outbox"):
        FileOutbox(tmp_path / "file" / "o", "d1")


def test_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreError, match="remove the file"):
        FileOutbox(tmp_path / "o", "d1")
