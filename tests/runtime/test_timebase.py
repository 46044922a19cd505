"""Where the stream clock lies in the time of day, how surely, and what labels and predictions make of it."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.messages import LabelMessage
from edge_sdk.core.records import Float32, Window
from edge_sdk.runtime.inference import Predictor, Serving
from edge_sdk.runtime.labels import MqttLabels, Refusal
from edge_sdk.runtime.timebase import STEP_NS, Record, StreamTime
from tests.runtime.test_inference import FIRST, SPEC, Linear, tensors

UTC0 = 1_600_000_000 * NS
SLOW_NS = 3000  # what one reading of the clock takes


class Slow(WallClock):
    """A clock by hand whose every reading takes a while, so that nobody can read two clocks at one instant."""

    def __init__(self, speed: float = 1.0) -> None:
        super().__init__()
        self.host_ns = 0
        self.set_by_ns = 0
        self.rate = speed

    def now_ns(self) -> int:
        self.host_ns += SLOW_NS
        return round(self.host_ns * self.rate)

    def utc_ns(self) -> int:
        self.host_ns += SLOW_NS
        return UTC0 + self.host_ns + self.set_by_ns


def test_uncertainty_is_the_width_of_the_bracket() -> None:
    clock = Slow()
    time = StreamTime(clock, clock)
    assert time.record.err_ns == 2 * SLOW_NS
    utc_ns, err_ns = time.utc(5 * NS)
    assert err_ns == 2 * SLOW_NS
    assert abs(utc_ns - UTC0 - 5 * NS) <= err_ns


def test_the_narrowest_of_several_readings_counts() -> None:
    class Disturbed(Slow):
        """Is interrupted in the middle of the first readings."""

        readings = 0

        def utc_ns(self) -> int:
            self.readings += 1
            if self.readings < 4:
                self.host_ns += 50_000_000
            return super().utc_ns()

    clock = Disturbed()
    assert StreamTime(clock, clock).record.err_ns == 2 * SLOW_NS


@pytest.mark.parametrize("speed", [1.0, 0.5, 20.0])
def test_both_ways_at_every_speed(speed: float) -> None:
    record = Record(stream_ns=7 * NS, utc_ns=UTC0, err_ns=10, speed=speed)
    assert record.utc(7 * NS + round(speed * NS)) == UTC0 + NS
    assert record.stream(UTC0 + NS) == 7 * NS + round(speed * NS)
    assert record.stream(record.utc(123_456_789)) == pytest.approx(123_456_789, abs=speed)


def test_whole_nanoseconds_stay_exact_for_a_century() -> None:
    record = Record(stream_ns=3, utc_ns=UTC0 + 1, err_ns=0, speed=1.0)
    far = 100 * 365 * 86_400 * NS + 7
    assert record.utc(far) == UTC0 + far - 2
    assert record.stream(record.utc(far)) == far


def test_a_fast_replay_has_its_uncertainty_on_each_side() -> None:
    clock = Slow(speed=20.0)
    time = StreamTime(clock, clock, speed=20.0)
    assert time.utc(0)[1] == 2 * SLOW_NS
    assert time.stream(UTC0)[1] == 40 * SLOW_NS


def test_a_time_of_day_that_was_set_is_measured_anew_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Slow()
    time = StreamTime(clock, clock)
    for by_s in (3600, 7200):
        clock.set_by_ns = by_s * NS
        utc_ns, err_ns = time.utc(NS)
        assert abs(utc_ns - UTC0 - (by_s + 1) * NS) <= err_ns <= 2 * SLOW_NS
    assert time.steps == 2
    assert [r.levelno for r in caplog.records if "time of day" in r.message] == [logging.WARNING]


def test_drift_adds_to_the_uncertainty() -> None:
    clock = Slow()
    time = StreamTime(clock, clock)
    clock.set_by_ns = STEP_NS // 2
    assert time.utc(0)[1] == pytest.approx(STEP_NS // 2, abs=10 * SLOW_NS)
    assert time.steps == 0


def test_predictions_carry_it() -> None:
    clock = Slow()
    clock.host_ns = 100 * NS
    predictor = Predictor(SPEC, "d1", clock=clock, time=StreamTime(clock, clock), emit=lambda event: None)
    predictor.swap(Serving(Linear(tensors(-1, 1)), FIRST))
    data: dict[str, Float32] = {"a": np.ones(2, np.float32)}
    made = predictor.predict(Window(60, 60 * NS, NS, data, {"a": 0.0}, {"a": 1.0}))
    assert made is not None
    assert made.utc_err_ns == 2 * SLOW_NS
    assert abs(made.utc_ns - UTC0 - 60 * NS) <= made.utc_err_ns


def test_a_prediction_and_a_label_of_the_same_utc_meet_on_the_stream_clock() -> None:
    clock = Slow(speed=4.0)
    time = StreamTime(clock, clock, speed=4.0)
    source = MqttLabels({"clock_err_s": 0.0, "max_age_s": 1e6}, clock)
    start_ns, end_ns = (time.utc(t)[0] for t in (40 * NS, 48 * NS))
    clock.host_ns = 13 * NS
    assert source.feed(LabelMessage("sit", start_ns, end_ns), time) is None
    label = source._queue.get_nowait()
    assert (label.start_ns, label.end_ns) == pytest.approx((40 * NS, 48 * NS), abs=100)


def test_labels_for_a_fast_replay_are_refused_where_its_speed_makes_them_uncertain() -> None:
    clock = Slow(speed=20.0)
    time = StreamTime(clock, clock, speed=20.0)
    clock.host_ns = 3 * NS
    message = LabelMessage("sit", UTC0 + 1 * NS, UTC0 + 2 * NS, utc_err_ns=20_000_000)
    for options, expected in (({}, Refusal.UNPLACED), ({"clock_err_s": 0.0}, None)):
        assert MqttLabels(options, clock).feed(message, time) is expected
