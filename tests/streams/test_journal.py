"""What survives a restart: rows, labels, their indices within one life of the stream clock, and bounded files."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import NS, Clock, VirtualClock, VirtualLoop
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.spec import FederationSpec
from edge_sdk.recording import FrameWriter
from edge_sdk.streams.reservoir import Reservoir
from tests.helpers.streams import inertial_spec
from tests.streams.test_reservoir import SPEC, part, window


def clock_at(t_s: float, *, boot_utc_s: int = 1_600_000_000) -> Clock:
    loop = VirtualLoop()
    loop.now_ns = round(t_s * NS)
    loop.close()
    return VirtualClock(loop, boot_utc_s * NS)


class Lives:
    """Opens reservoirs on one folder; each is left as if it had been killed until the test is over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[Reservoir] = []

    def begin(
        self, t_s: float, *, spec: FederationSpec = SPEC, boot_utc_s: int = 1_600_000_000, **config: Any
    ) -> Reservoir:
        settings = ReservoirConfig.model_validate({"min_windows": 1, **config})
        self.opened.append(Reservoir(spec, settings, clock_at(t_s, boot_utc_s=boot_utc_s), self.path))
        return self.opened[-1]

    def write(self, n: int = 6, **config: Any) -> Mapping[str, Any]:
        """A reservoir writes `n` windows, all but the last two labelled, and is killed."""
        first = self.begin(n * 2.56, **config)
        for index in range(n):
            first.add(window(index, "acc"))
            if index < n - 2:
                first.label(index, index % 3)
        first.add_late(part(1, "gyro"))
        return first.status()


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path / "reservoir")
    yield lives
    for reservoir in lives.opened:
        reservoir.close()


def test_the_same_life_goes_on(lives: Lives) -> None:
    lives.write()
    second = lives.begin(20.0)
    got = second.recent(99)
    assert got.indices.tolist() == list(range(6))
    assert got.y.tolist() == [0, 1, 2, 0, -1, -1]
    assert got.has["gyro"].tolist() == [False, True, False, False, False, False]
    assert all(np.array_equal(got.x["acc"][i], window(i, "acc").data["acc"]) for i in range(6))
    second.label(5, 2)
    second.add_late(part(5, "gyro"))
    third = lives.begin(21.0).recent(1)
    assert (third.indices.tolist(), third.y.tolist(), third.has["gyro"].tolist()) == ([5], [2], [True])


def test_another_life_makes_old_windows_negative(lives: Lives) -> None:
    """After a reboot the stream clock begins anew: nothing new may join the old windows by its index."""
    lives.write()
    second = lives.begin(100.0, boot_utc_s=1_600_100_000)
    got = second.recent(99)
    assert got.indices.tolist() == [-4, -3, -2, -1]  # nobody can label the other two any more
    assert got.y.tolist() == [0, 1, 2, 0]
    second.add(window(38, "acc"))
    second.label(38, 1)
    third = lives.begin(50.0, boot_utc_s=1_600_200_000).recent(99)
    assert third.indices.tolist() == [-5, -4, -3, -2, -1]
    assert third.y.tolist() == [0, 1, 2, 0, 1]


def test_a_clock_that_went_back_is_another_life(lives: Lives) -> None:
    lives.write()
    assert lives.begin(1.0).recent(99).indices.tolist() == [-4, -3, -2, -1]


def test_expired_windows_do_not_come_back_unlabelled(lives: Lives) -> None:
    lives.write()
    assert lives.begin(700.0).recent(99).indices.tolist() == [0, 1, 2, 3]


def test_torn_tail_and_damage_are_counted(lives: Lives) -> None:
    lives.write()
    [file] = lives.path.glob("*.seg")
    data = bytearray(file.read_bytes())
    data[400] ^= 1  # in the first window
    file.write_bytes(data[:-5])
    second = lives.begin(20.0)
    got = second.recent(99)
    assert got.indices.tolist() == [1, 2, 3, 4, 5]
    assert not got.has["gyro"].any()
    disk = second.status()["disk"]
    assert disk["damaged"] == 1
    assert disk["lost_bytes"] > 1000


def test_a_file_that_lies_is_left_out(lives: Lives) -> None:
    lives.write()
    [file] = lives.path.glob("*.seg")
    writer = FrameWriter(file)
    writer.append(
        {"kind": "part", "index": 9, "t_ns": 0, "since_ns": 0, "modality": "acc", "dtype": "<f4", "shape": [2]},
        memoryview(bytes(8)),
    )
    writer.close()
    (lives.path / "00000007.seg").write_bytes(b"not a segment")
    second = lives.begin(20.0)
    assert second.recent(99).indices.tolist() == list(range(6))
    assert second.status()["disk"]["damaged"] == 2


def test_windows_of_another_grid_are_not_read(lives: Lives) -> None:
    lives.write()
    second = lives.begin(20.0, spec=inertial_spec(hop_s=1.28))
    assert len(second) == 0
    assert second.status()["disk"]["other_spec"] == 1


def test_disk_is_bounded_and_the_newest_stay(lives: Lives) -> None:
    disk = lives.write(n=2000, disk_mb=1.2, join_horizon_s=1e6, label_wait_s=1e6)["disk"]
    size = sum(p.stat().st_size for p in lives.path.glob("*.seg"))
    assert size <= 1.2e6
    assert disk["megabytes"] == pytest.approx(size / 1e6)
    assert disk["files_deleted"] > 5
    got = lives.begin(2000 * 2.56 + 1).recent(9999)
    assert got.indices[-1] == 1999
    assert len(got.indices) > 300


def test_memory_bound_holds_after_a_restart(lives: Lives) -> None:
    lives.write(n=500, join_horizon_s=1e6, label_wait_s=1e6)
    second = lives.begin(500 * 2.56 + 1, memory_mb=0.1)
    assert second.status()["memory_mb"] <= 0.1
    assert second.recent(1).indices.tolist() == [499]


def test_full_disk_costs_the_survival_and_nothing_else(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = lives.begin(100.0)
    first.add(window(0, "acc"))
    monkeypatch.setattr(FrameWriter, "append", full)
    for index in range(1, 10):
        first.add(window(index, "acc"))
    assert len(first) == 10
    assert "No space left" in first.status()["disk"]["error"]
    assert len([r for r in caplog.records if "in memory only" in r.getMessage()]) == 1


def test_after_closing_it_goes_on_in_memory(lives: Lives) -> None:
    first = lives.begin(100.0)
    first.add(window(0, "acc"))
    first.close()
    first.close()
    first.label(0, 1)
    assert first.recent(1).y.tolist() == [1]
    assert lives.begin(101.0).recent(1).y.tolist() == [-1]


def test_persist_can_be_switched_off(lives: Lives) -> None:
    lives.write(persist=False)
    assert not lives.path.exists()


def test_quality_survives(lives: Lives) -> None:
    first = lives.begin(6.0)
    first.add(replace(window(0, "acc"), quality={"acc": 0.25}))
    first.add_late(replace(part(0, "gyro"), quality=0.5))
    got = lives.begin(7.0).recent(1)
    assert {m: q.tolist() for m, q in got.quality.items()} == {"acc": [0.25], "gyro": [0.5]}
