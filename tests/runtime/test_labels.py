"""Labels find their windows by time, late or early, from files, messages and keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.core.clock import NS, VirtualClock, run_virtual
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.messages import LabelMessage
from edge_sdk.core.records import Label
from edge_sdk.core.spec import WindowSpec
from edge_sdk.recording import Writer
from edge_sdk.runtime.labels import FileLabels, KeyLabels, LabelJoiner, MqttLabels, Refusal
from edge_sdk.runtime.timebase import StreamTime
from tests.helpers.streams import chunk

GRID = WindowSpec(length_s=2.0, hop_s=1.0)
UTC0 = 1_600_000_000 * NS


def label(start_s: float, end_s: float, name: str) -> Label:
    return Label(round(start_s * NS), round(end_s * NS), name)


def joiner() -> LabelJoiner:
    return LabelJoiner(GRID, ("sit", "walk"), horizon_s=100)


@pytest.mark.parametrize(
    ("start_s", "end_s", "windows"),
    [
        (10.0, 12.0, [9, 10, 11]),
        (10.0, 11.0, [9, 10]),  # exactly half
        (10.0, 10.999, []),
        (10.5, 11.6, [10]),
        (10.0, 15.0, [9, 10, 11, 12, 13, 14]),
        (-1.0, 1.0, [-2, -1, 0]),
    ],
)
def test_half_of_the_window(start_s: float, end_s: float, windows: list[int]) -> None:
    assert joiner().add(label(start_s, end_s, "walk")) == [(k, 1) for k in windows]


def test_pieces_of_one_label_add_up_and_repeats_do_not() -> None:
    join = joiner()
    assert join.add(label(10.0, 10.6, "sit")) == []
    assert join.add(label(10.0, 10.6, "sit")) == []
    assert join.add(label(10.5, 11.1, "sit")) == [(9, 0), (10, 0)]
    assert join.add(label(10.0, 11.1, "sit")) == []
    assert join.counters.refused == {}


def test_the_longer_of_two_wins_and_is_counted() -> None:
    join = joiner()
    assert join.add(label(10.0, 11.0, "sit")) == [(9, 0), (10, 0)]
    assert join.add(label(11.0, 12.0, "walk")) == [(11, 1)]  # 10 is covered half and half: the first stays
    assert join.counters.refused == {Refusal.CONFLICT: 1}
    assert join.add(label(10.5, 11.0, "walk")) == [(10, 1)]  # now the longer one
    assert join.counters.refused == {Refusal.CONFLICT: 2}


def test_unknown_classes_and_impossible_spans_are_counted() -> None:
    join = joiner()
    assert join.add(label(0, 10, "fly")) == []
    assert join.add(label(5, 5, "sit")) == []
    assert join.add(label(0, 90_000, "sit")) == []
    assert join.counters.refused == {Refusal.UNKNOWN_CLASS: 1, Refusal.SPAN: 2}
    assert join.counters.received == 3


def test_memory_of_the_joiner_is_bounded() -> None:
    join = joiner()
    for k in range(5000):
        join.add(label(k, k + 1, "sit"))
    assert len(join._spans) <= 101
    assert len(join._given) <= 101


def recording(folder: Path) -> Path:
    with Writer(folder, start_ns=77 * NS) as writer:
        writer.append(chunk("acc", 77 * 50, 10 * 50))
        writer.label(0.0, 4.0, "sit")
        writer.label(4.0, 10.0, "walk")
    return folder


def from_file(folder: Path, n: int, *, start_s: float, epoch_s: float, **options: object) -> list[tuple[float, Label]]:
    async def main(clock: VirtualClock) -> list[tuple[float, Label]]:
        await clock.sleep(start_s)
        source = FileLabels({"path": str(folder), **options}, clock, epoch_ns=round(epoch_s * NS))
        got = []
        async for found in source.labels():
            got.append((clock.now_ns() / NS, found))
            if len(got) == n:
                break
        return got

    return run_virtual(main)


def test_file_labels_come_when_their_span_is_over(tmp_path: Path) -> None:
    got = from_file(recording(tmp_path / "r"), 9, start_s=1.0, epoch_s=1.0, align_s=2.56)
    assert got == [(6.56, label(2.56, 6.56, "sit")), (12.56, label(6.56, 12.56, "walk"))]


def test_file_labels_loop_like_the_replay(tmp_path: Path) -> None:
    got = from_file(recording(tmp_path / "r"), 3, start_s=0.5, epoch_s=0.0, align_s=2.56, loop=True)
    assert [found for _, found in got] == [label(0, 4, "sit"), label(4, 10, "walk"), label(10.24, 14.24, "sit")]


def test_file_labels_with_a_later_start(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> list[Label]:
        source = FileLabels({"path": str(recording(tmp_path / "r")), "start_s": 3.0}, clock, epoch_ns=0)
        return [found async for found in source.labels()]

    assert run_virtual(main) == [label(0, 1, "sit"), label(1, 7, "walk")]


def test_message_is_placed_on_the_stream_clock() -> None:
    async def main(clock: VirtualClock) -> None:
        source, time = MqttLabels({}, clock), StreamTime(clock, clock)
        await clock.sleep(100)
        assert source.feed(LabelMessage("sit", UTC0 + 90 * NS, UTC0 + 95 * NS), time) is None
        async for found in source.labels():
            assert found == label(90, 95, "sit")
            break

    run_virtual(main)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (LabelMessage("sit", UTC0 + 95 * NS, UTC0 + 90 * NS), Refusal.SPAN),
        (LabelMessage("sit", 0, UTC0 + 90 * NS), Refusal.SPAN),
        (LabelMessage("sit", UTC0 + 90 * NS, UTC0 + 95 * NS, NS), Refusal.UNPLACED),
        (LabelMessage("sit", UTC0 + 90 * NS, UTC0 + 95 * NS, -1), Refusal.UNPLACED),
        (LabelMessage("sit", UTC0 + 2000 * NS, UTC0 + 2001 * NS), Refusal.UNPLACED),
        (LabelMessage("sit", UTC0 + 1 * NS, UTC0 + 2 * NS), Refusal.TOO_OLD),
    ],
)
def test_message_that_cannot_be_placed_is_refused(message: LabelMessage, reason: Refusal) -> None:
    async def main(clock: VirtualClock) -> None:
        source, time = MqttLabels({"max_age_s": 95.0}, clock), StreamTime(clock, clock)
        await clock.sleep(100)
        assert source.feed(message, time) is reason
        assert source.counters.refused == {reason: 1}

    run_virtual(main)


def test_messages_that_nobody_reads_are_bounded() -> None:
    async def main(clock: VirtualClock) -> None:
        source, time = MqttLabels({"queue": 2}, clock), StreamTime(clock, clock)
        await clock.sleep(100)
        for i in range(5):
            source.feed(LabelMessage("sit", UTC0 + (90 + i) * NS, UTC0 + (91 + i) * NS), time)
        async for found in source.labels():
            assert found.start_ns == 93 * NS
            break

    run_virtual(main)


def test_keys_tell_long_activities_in_pieces() -> None:
    async def main(clock: VirtualClock) -> list[Label]:
        source = KeyLabels({"piece_s": 5.0}, clock)
        got: list[Label] = []

        async def read() -> None:
            async for found in source.labels():
                got.append(found)  # noqa: PERF401 - the source never ends

        async with clock.group() as group:
            group.start(read(), name="read")
            await clock.sleep(2)
            source.press("sit")
            await clock.sleep(12)
            source.press("walk")
            await clock.sleep(1)
            source.press(None)
            await clock.sleep(100)
            group.cancel()
        return got

    assert run_virtual(main) == [
        label(2, 7, "sit"), label(7, 12, "sit"), label(12, 14, "sit"), label(14, 15, "walk"),
    ]  # fmt: skip


def test_unknown_options_are_named(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> None:
        for source, options in ((FileLabels, {"path": "x"}), (MqttLabels, {}), (KeyLabels, {})):
            with pytest.raises(ConfigError, match="colour"):
                source({**options, "colour": 1}, clock)

    run_virtual(main)
