"""Windows: once per index, at the deadline or when complete; late parts; segments; every sample has a fate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Chunk, LatePart, Window
from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec
from edge_sdk.streams.counters import Drop
from edge_sdk.streams.lateness import LOOK_AT
from edge_sdk.streams.window import Windower
from tests.helpers.streams import PERIOD_NS, chunk, inertial_spec

FOREVER = 10**15


def s(seconds: float) -> int:
    return round(seconds * NS)


def windows(items: list[Window | LatePart]) -> list[Window]:
    return [item for item in items if isinstance(item, Window)]


def late(items: list[Window | LatePart]) -> list[LatePart]:
    return [item for item in items if isinstance(item, LatePart)]


def test_complete_windows_come_at_once() -> None:
    windower = Windower(inertial_spec())
    windower.advance(0)
    windower.push(chunk("acc", 0, 128))
    assert windower.advance(s(2.55)) == []
    windower.push(chunk("gyro", 0, 128))
    assert windower.next_deadline_ns == s(2.55)
    [window] = windows(windower.advance(s(2.56)))
    assert window.index == 0
    assert (window.t_ns, window.length_ns) == (0, s(2.56))
    assert list(window.data) == ["acc", "gyro"]
    assert window.data["acc"].dtype == np.float32
    assert window.data["acc"].shape == (3, 128)
    assert window.data["acc"].flags.c_contiguous
    assert np.array_equal(window.data["gyro"][2], np.arange(128))
    assert window.quality == {"acc": 1.0, "gyro": 1.0}
    assert window.age_s["acc"] == pytest.approx(2.56 + 0.25 - 127 * 0.02)


def test_at_the_deadline_with_what_is_there() -> None:
    windower = Windower(inertial_spec())
    windower.advance(0)
    windower.push(chunk("gyro", 0, 128))
    windower.push(chunk("acc", 0, 127))
    assert windower.next_deadline_ns == s(2.81)
    assert windower.advance(s(2.81) - 1) == []
    [window] = windows(windower.advance(s(2.81)))
    assert list(window.data) == ["gyro"]
    windower.push(chunk("acc", 127, 1))
    [part] = late(windower.advance(s(3)))
    assert (part.index, part.t_ns, part.modality) == (0, 0, "acc")
    assert np.array_equal(part.data[0], np.arange(128))


def test_a_window_of_which_nothing_came_in_time_exists_only_as_late_parts() -> None:
    windower = Windower(inertial_spec())
    assert windower.advance(s(60)) == []
    windower.push(chunk("gyro", 0, 192))
    items = windower.advance(s(61))
    assert [(p.index, p.modality) for p in late(items)] == [(0, "gyro"), (1, "gyro")]
    assert windows(items) == []


def test_minutes_late_costs_no_memory() -> None:
    """The gyroscope comes 60 s after its event time, for ten minutes: every part of it joins late, none is lost."""
    windower = Windower(inertial_spec())
    items: list[Window | LatePart] = []
    waiting = 0
    for second in range(660):
        if second < 600:
            windower.push(chunk("acc", second * 50, 50))
        if second >= 60:
            windower.push(chunk("gyro", (second - 60) * 50, 50))
        items += windower.advance(s(second + 1))
        waiting = max(waiting, windower.pending("gyro"))
    assert [w.index for w in windows(items)] == list(range(467))
    assert all(list(w.data) == ["acc"] for w in windows(items))
    assert [p.index for p in late(items)] == list(range(467))
    assert waiting < 256
    assert windower.counters["gyro"].lost == 0


def test_later_than_the_horizon_is_dropped_and_counted() -> None:
    windower = Windower(inertial_spec(hop_s=2.56), join_horizon_s=100)
    windower.advance(s(200))
    windower.push(chunk("acc", 0, 128))
    assert windower.advance(s(201)) == []
    assert windower.counters["acc"].dropped == {Drop.TOO_LATE: 128}


@pytest.mark.parametrize("hop_s", [2.56, 1.28, 0.64, 0.2])
@pytest.mark.parametrize("piece", [128, 16, 7])
def test_segments_give_exactly_one_window_each(hop_s: float, piece: int) -> None:
    """Windows out = windows in, never a mixed one: sample values name their segment."""
    spec = inertial_spec("acc", hop_s=hop_s)
    windower = Windower(spec)
    items: list[Window | LatePart] = []
    step = round(2.56 / hop_s) if hop_s != 0.2 else None
    for segment in range(25):
        for at in range(0, 128, piece):
            n = min(piece, 128 - at)
            data = np.full((n, 3), segment, np.float32)
            t_ns = (segment * 128 + at) * PERIOD_NS
            windower.push(Chunk("acc", 0, t_ns, data, period_ns=PERIOD_NS, gap_before=at == 0))
            items += windower.advance(t_ns + n * PERIOD_NS)
    items += windower.advance(FOREVER)
    values = [np.unique(w.data["acc"]).tolist() for w in windows(items)]
    if step is None:  # this hop does not divide the segment: only every fifth segment begins on the window grid
        assert values == [[float(segment)] for segment in range(0, 25, 5)]
        return
    assert values == [[float(segment)] for segment in range(25)]
    assert [w.index for w in windows(items)] == [segment * step for segment in range(25)]
    assert windower.counters["acc"].used == 25 * 128
    assert late(items) == []


def test_low_quality_is_left_out() -> None:
    windower = Windower(inertial_spec("acc", hop_s=2.56))
    rows = np.array([i for i in range(256) if not (i < 128 and i % 8 == 3)])
    data = np.repeat(rows[:, None], 3, 1).astype(np.float32)
    windower.push(Chunk("acc", 0, 0, data, times_ns=rows * PERIOD_NS))
    [window] = windows(windower.advance(FOREVER))
    assert window.index == 1
    assert windower.counters["acc"].dropped == {Drop.LOW_QUALITY: 112}


def test_a_few_bridged_samples_lower_the_quality() -> None:
    windower = Windower(inertial_spec("acc", hop_s=2.56))
    windower.push(chunk("acc", 0, 60))
    windower.push(chunk("acc", 64, 64))
    [window] = windows(windower.advance(FOREVER))
    assert window.quality["acc"] == 124 / 128
    assert np.array_equal(window.data["acc"][0], np.arange(128))


def test_hop_longer_than_length_counts_what_lies_between() -> None:
    windower = Windower(inertial_spec("acc", length_s=1.0, hop_s=2.0))
    windower.push(chunk("acc", 0, 400))
    items = windows(windower.advance(FOREVER))
    assert [w.index for w in items] == [0, 1, 2, 3]
    assert windower.counters["acc"].used == 200
    assert windower.counters["acc"].dropped == {Drop.UNMATCHED: 150}
    assert windower.pending("acc") == 50


def test_chunks_far_ahead_of_the_clock_are_dropped() -> None:
    windower = Windower(inertial_spec("acc"), buffer_s=10)
    windower.advance(s(1))
    windower.push(chunk("acc", 50 * 12, 10))
    assert windower.counters["acc"].dropped == {Drop.FUTURE: 10}


def test_unknown_streams_are_counted() -> None:
    windower = Windower(inertial_spec("acc"))
    windower.push(chunk("mag", 0, 10))
    assert windower.unknown_chunks == 1


def test_one_huge_chunk_gives_every_window() -> None:
    windower = Windower(inertial_spec("acc"))
    windower.push(chunk("acc", 0, 50 * 600))
    items = windows(windower.advance(FOREVER))
    assert [w.index for w in items] == list(range(467))
    assert all(np.array_equal(w.data["acc"][0], np.arange(128) + 64 * w.index) for w in items)


@pytest.mark.parametrize(
    ("modality", "says"),
    [
        (ModalitySpec(name="acc", shape=(3, 100), rate_hz=50), "has length 128"),
        (ModalitySpec(name="acc", shape=(3, 128)), "rate_hz = 0"),
    ],
)
def test_contradicting_spec(modality: ModalitySpec, says: str) -> None:
    spec = FederationSpec(name="f", modalities=(modality,), classes=("a", "b"))
    with pytest.raises(ConfigError, match=says):
        Windower(spec)


def test_modalities_have_to_be_of_the_spec() -> None:
    with pytest.raises(ConfigError, match="mag"):
        Windower(inertial_spec(), modalities=("acc", "mag"))
    with pytest.raises(ConfigError, match="none"):
        Windower(inertial_spec(), modalities=())


def image_spec(hop_s: float = 1.0) -> FederationSpec:
    return FederationSpec(
        name="f",
        modalities=(ModalitySpec(name="camera", shape=(1, 2, 2)), ModalitySpec(name="text", shape=(4,))),
        classes=("a", "b"),
        window=WindowSpec(length_s=1.0, hop_s=hop_s, deadline_s=0.2),
    )


def frame(t_s: float, value: int) -> Chunk:
    return Chunk("camera", 0, s(t_s), np.full((1, 1, 2, 2), value, np.uint8))


def test_newest_frame_of_a_window() -> None:
    windower = Windower(image_spec(), modalities=("camera",))
    windower.advance(0)
    for number, t_s in enumerate((0.1, 0.5, 0.9)):
        windower.push(frame(t_s, number))
    assert windower.next_deadline_ns == s(1.2)
    windower.push(frame(1.1, 3))  # nothing newer can come for window 0
    [window] = windows(windower.advance(s(1.1)))
    assert window.data["camera"].dtype == np.float32
    assert window.data["camera"].tolist() == [[[2, 2], [2, 2]]]
    assert window.age_s["camera"] == pytest.approx(0.3)
    [window] = windows(windower.advance(s(2.2)))
    assert (window.index, window.data["camera"][0, 0, 0]) == (1, 3)
    counters = windower.counters["camera"]
    assert (counters.samples, counters.used, counters.dropped) == (4, 2, {Drop.SUPERSEDED: 2})


def test_one_frame_serves_all_windows_that_hold_it() -> None:
    windower = Windower(image_spec(hop_s=0.25), modalities=("camera",))
    windower.advance(0)
    windower.push(frame(0.9, 7))
    assert [w.index for w in windows(windower.advance(FOREVER))] == [0, 1, 2, 3]
    assert windower.counters["camera"].used == 1


def test_late_frame_waits_for_its_successors_and_is_told_once() -> None:
    windower = Windower(image_spec(), modalities=("camera",))
    windower.advance(s(10))
    windower.push(frame(0.3, 1))
    assert windower.next_deadline_ns == s(10.2)
    windower.push(frame(0.6, 2))
    [part] = late(windower.advance(s(10.2)))
    assert (part.index, part.data[0, 0, 0]) == (0, 2)
    windower.push(frame(0.8, 3))
    assert windower.advance(FOREVER) == []


def test_newest_feature_vector_and_its_faults() -> None:
    windower = Windower(image_spec(), modalities=("text",))
    rows = np.arange(12, dtype=np.float64).reshape(3, 4)
    windower.push(Chunk("text", 0, s(0.2), rows, times_ns=np.array([s(0.2), s(0.4), s(1.5)])))
    windower.push(Chunk("text", 1, s(1.5), rows[:1]))  # not newer
    windower.push(Chunk("text", 2, s(1.6), rows[:1] * np.nan))
    windower.push(Chunk("text", 3, s(1.7), rows[:1, :3]))
    items = windows(windower.advance(FOREVER))
    assert [w.data["text"].tolist() for w in items] == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert windower.counters["text"].dropped == {
        Drop.SUPERSEDED: 1,
        Drop.OVERLAP: 1,
        Drop.NON_FINITE: 1,
        Drop.MALFORMED: 1,
    }


step = st.tuples(st.sampled_from(["acc", "gyro"]), st.integers(-20, 200), st.integers(1, 300), st.booleans())


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(step, max_size=14),
    hop_s=st.sampled_from([0.5, 1.0, 1.28, 3.0]),
    speed=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_conservation(steps: list[tuple[str, int, int, bool]], hop_s: float, speed: float) -> None:
    """received = used + dropped by reason + pending; each (index, modality) comes once; windows hold right samples."""
    windower = Windower(inertial_spec(hop_s=hop_s), join_horizon_s=20)
    at = {"acc": 0, "gyro": 0}
    now, items = 0, []
    for stream, skip, n, gap in steps:
        at[stream] = max(0, at[stream] + skip)
        windower.push(replace(chunk(stream, at[stream], n), gap_before=gap))
        at[stream] += n
        now = max(now, int(at[stream] * PERIOD_NS * speed))
        items += windower.advance(now)
    items += windower.advance(now + s(20))
    for name, counters in windower.counters.items():
        assert counters.samples == counters.used + sum(counters.dropped.values()) + windower.pending(name)
    told = [(w.index, m) for w in windows(items) for m in w.data] + [(p.index, p.modality) for p in late(items)]
    assert len(told) == len(set(told))
    assert len({w.index for w in windows(items)}) == len(windows(items))
    first = round(hop_s / 0.02)
    arrays = [(w.index, a) for w in windows(items) for a in w.data.values()] + [(p.index, p.data) for p in late(items)]
    assert all(np.allclose(a[1], np.arange(128) + i * first, atol=1e-3) for i, a in arrays)


def test_a_modality_that_is_always_late_is_said_once_with_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    """Blocks of 0.3 s against a deadline of 0.25: the end of each window comes 50 ms after it."""
    windower = Windower(inertial_spec(hop_s=2.56))
    windower.advance(0)

    def windows_of(first: int, count: int, late_s: float) -> None:
        for i in range(first, first + count):
            windower.push(chunk("acc", i * 128, 128))
            windower.advance(s(2.56 * (i + 1)))
            if late_s:
                windower.advance(s(2.56 * (i + 1) + 0.25))
            windower.push(chunk("gyro", i * 128, 128))
            windower.advance(s(2.56 * (i + 1) + 0.25 + late_s))

    windows_of(0, LOOK_AT + 4, 0.05)
    gyro = windower.lateness["gyro"]
    assert gyro.late == LOOK_AT + 4
    assert windower.lateness["acc"].note == ""
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == gyro.note
    assert said.startswith("gyro comes too late for nearly every window (32 of 32, 0.05 s after the deadline")
    assert "set window.deadline_s of the federation to 0.31 (now 0.25)" in said
    assert "sensors.gyro.options.block_s" in said
    windows_of(LOOK_AT + 4, 5, 0.0)
    assert gyro.note == ""  # and the device's status no longer says it
