from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sdk.core.boards import Readings
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.config import TrainerConfig
from edge_sdk.core.messages import Plan
from edge_sdk.runtime.budget import FULL, STEPS, Allowance, Budget, Conditions, decide, gentler
from edge_sdk.runtime.events import PhaseFinished, PredictionMade
from edge_sdk.runtime.foreground import LEAST, Foreground
from tests.helpers.boards import BOARDS, change, copy

CALM = Readings(temp_c=50.0, free_mb=4000.0, largest_free_mb=4.0, power_mode="MAXN")


def after(readings: Readings = CALM, config: TrainerConfig | None = None, **now: Any) -> Allowance:
    return decide(Conditions(readings, **now), config or TrainerConfig())


def test_all_is_allowed_where_all_is_well() -> None:
    assert after() == FULL


def test_a_board_that_says_nothing_is_not_held_to_be_in_trouble() -> None:
    assert after(Readings()) == FULL


def test_waits_while_hot_and_a_little_longer() -> None:
    config = TrainerConfig(max_temp_c=80, ease_temp_c=90)
    hot = decide(Conditions(replace(CALM, temp_c=81.0)), config)
    assert hot.wait == "81 °C, training begins below 75 °C"
    still = decide(Conditions(replace(CALM, temp_c=77.0)), config, hot)
    assert still.wait == "77 °C, training begins below 75 °C"
    cool = decide(Conditions(replace(CALM, temp_c=74.0)), config, still)
    assert cool == FULL
    assert decide(Conditions(replace(CALM, temp_c=77.0)), config, cool) == FULL


def test_waits_before_the_kernel_slows_the_board_down() -> None:
    assert after(replace(CALM, temp_c=93.0, throttle_c=95.0)).wait == "93 °C, training begins below 87 °C"
    assert after(replace(CALM, temp_c=91.0, throttle_c=95.0)).wait == ""


def test_waits_for_memory() -> None:
    assert "100 MB of memory" in after(replace(CALM, free_mb=100.0)).wait


@pytest.mark.parametrize(
    ("battery", "percent", "wait", "steps"),
    [
        ("train", 80.0, "", 0),
        ("ease", 80.0, "", 1),
        ("wait", 80.0, "the device runs on its battery", 0),
        ("ease", 20.0, "the battery holds 20 %, training begins at 30 %", 1),
        ("train", 20.0, "the battery holds 20 %, training begins at 30 %", 0),
    ],
)
def test_battery(battery: str, percent: float, wait: str, steps: int) -> None:
    config = TrainerConfig.model_validate({"battery": battery})
    found = after(replace(CALM, battery_percent=percent, mains=False), config)
    assert (found.wait, found.steps) == (wait, steps)
    assert after(replace(CALM, battery_percent=percent, mains=True), config) == FULL


def test_power_modes_by_any_of_their_names() -> None:
    config = TrainerConfig(power_modes=("30W", "maxn"))
    assert after(config=config).wait == ""
    assert after(replace(CALM, power_mode="MODE_30W"), config).wait == ""
    assert after(replace(CALM, power_mode="MODE_15W"), config).wait == "power mode MODE_15W, training is for 30W, maxn"
    assert after(replace(CALM, power_mode=None), config).wait == ""


@pytest.mark.parametrize(
    ("hours", "minute", "waits"),
    [
        ("", 0, False),
        ("22:00-06:00", 22 * 60, False),
        ("22:00-06:00", 5 * 60 + 59, False),
        ("22:00-06:00", 6 * 60, True),
        ("09:00-17:30", 17 * 60 + 29, False),
        ("09:00-17:30", 17 * 60 + 30, True),
    ],
)
def test_hours(hours: str, minute: int, waits: bool) -> None:
    assert bool(after(config=TrainerConfig(hours=hours), minute=minute).wait) is waits


@pytest.mark.parametrize("hours", ["22-6", "24:00-06:00", "22:00-06:60", "22:00"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ValidationError):
        TrainerConfig(hours=hours)


def test_yields_to_predictions_that_come_late() -> None:
    assert after(late=True).wait == "predictions come late"


def test_every_pressure_halves_the_batch_down_to_a_quarter() -> None:
    warm = replace(CALM, temp_c=86.0)
    assert after(warm).steps == 1
    assert after(warm).eased == ("86 °C",)
    tight = replace(warm, free_mb=500.0, largest_free_mb=0.5)
    assert after(tight).steps == STEPS == 2
    assert len(after(tight).eased) == 3


def test_slow_predictions_ease_step_by_step_and_then_wait() -> None:
    config, before = TrainerConfig(), FULL
    seen = []
    for slowdown in (1.5, 1.5, 1.5):
        before = decide(Conditions(CALM, slowdown=slowdown), config, before)
        seen.append((before.steps, bool(before.wait)))
    assert seen == [(1, False), (2, False), (2, True)]
    again = decide(Conditions(CALM), config, before)  # after the wait nothing is known: the smallest batch is tried
    assert (again.steps, again.wait) == (2, "")
    for slowdown, steps in ((1.1, 1), (1.0, 0)):
        again = decide(Conditions(CALM, slowdown=slowdown), config, again)
        assert again.steps == steps
    assert again == FULL


def test_encoders_are_frozen_where_the_user_says() -> None:
    warm = replace(CALM, temp_c=86.0)
    frozen = {
        (choice, name): after(readings, TrainerConfig.model_validate({"freeze_encoders": choice})).freeze_encoders
        for choice in ("never", "ease", "always")
        for name, readings in (("calm", CALM), ("warm", warm))
    }
    assert [key for key, value in frozen.items() if value] == [("ease", "warm"), ("always", "calm"), ("always", "warm")]


@pytest.mark.parametrize(
    ("precision", "bf16", "found"),
    [
        ("float32", True, "float32"),
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", False, "bfloat16"),
    ],
)
def test_precision(precision: str, bf16: bool, found: str) -> None:
    assert after(config=TrainerConfig.model_validate({"precision": precision}), bf16=bf16).precision == found


def test_the_learning_rate_follows_the_batch() -> None:
    plan = Plan(("a",), 2, 0.1, 32)
    assert gentler(plan, FULL) is plan
    assert gentler(plan, Allowance(steps=2)) == Plan(("a",), 2, 0.025, 8)
    assert gentler(replace(plan, batch_size=6), Allowance(steps=1)) == Plan(("a",), 2, pytest.approx(0.1 * 4 / 6), 4)
    assert gentler(replace(plan, batch_size=2), Allowance(steps=2)).batch_size == 2


@given(
    temp=st.none() | st.floats(-40, 140), free=st.none() | st.floats(0, 1e5), percent=st.none() | st.floats(0, 100),
    mains=st.booleans(), slowdown=st.none() | st.floats(0.1, 50), before=st.integers(0, STEPS + 1), hot=st.booleans(),
    minute=st.integers(0, 1439),
)  # fmt: skip
def test_a_decision_is_always_within_bounds(
    temp: float | None, free: float | None, percent: float | None, mains: bool, slowdown: float | None, before: int,
    hot: bool, minute: int,
) -> None:  # fmt: skip
    readings = Readings(temp_c=temp, free_mb=free, battery_percent=percent, mains=mains)
    now = Conditions(readings, slowdown=slowdown, minute=minute)
    found = decide(now, TrainerConfig(hours="08:00-20:00"), Allowance(slow_steps=before, hot=hot))
    assert 0 <= found.steps <= STEPS
    assert 0 <= found.slow_steps <= STEPS + 1
    assert (found.steps > 0) == bool(found.eased) or found.slow_steps > STEPS
    if temp is not None and temp >= 95:
        assert found.wait


def prediction(latency_ms: float, late_ms: float = 1.0) -> PredictionMade:
    return PredictionMade("d", 0, "sit", 1.0, latency_ms, late_ms, ("a",), None)


def test_the_foreground_compares_predictions_beside_training_with_others() -> None:
    foreground = Foreground(limit_ms=100.0)
    for _ in range(LEAST):
        foreground(prediction(10.0))
    assert foreground.slowdown() is None
    foreground.trains()
    for _ in range(LEAST):
        foreground(prediction(20.0))
    assert foreground.slowdown() == 2.0
    foreground(PhaseFinished("d", "t", "p", ("a",), 1, 1, 0.1, 0.1, final=False))
    for _ in range(LEAST):
        foreground(prediction(10.0))
    assert foreground.slowdown() == 2.0
    foreground.rests()
    assert foreground.slowdown() is None


def test_a_median_that_rises_by_less_than_anybody_notices_is_none() -> None:
    foreground = Foreground(limit_ms=100.0)
    for _ in range(LEAST):
        foreground(prediction(0.3))
    foreground.trains()
    for _ in range(LEAST):
        foreground(prediction(3.0))
    assert foreground.slowdown() == 1.0


def test_the_newest_prediction_says_whether_they_come_late() -> None:
    foreground = Foreground(limit_ms=100.0)
    foreground(prediction(1.0, late_ms=150.0))
    assert foreground.late
    foreground(prediction(1.0, late_ms=50.0))
    assert not foreground.late


def ask(root: Path, config: TrainerConfig | None = None, foreground: Foreground | None = None) -> Allowance:
    async def main(clock: VirtualClock) -> Allowance:
        return Budget(config or TrainerConfig(), clock=clock, foreground=foreground or Foreground(1.0), root=root)()

    return run_virtual(main)


def test_knows_nothing_of_an_empty_machine(tmp_path: Path) -> None:
    assert ask(tmp_path) == FULL


def test_reads_a_recorded_board(tmp_path: Path) -> None:
    assert ask(BOARDS / "orin_nano_super") == FULL
    assert ask(BOARDS / "nano") == FULL  # its power chip always names 100 °C
    assert ask(BOARDS / "tx2").eased == ("the largest free block is 0.5 MB",)
    assert ask(BOARDS / "orin_nx", TrainerConfig(power_modes=("MAXN_SUPER",))).wait.startswith("power mode 25W")
    hot = change(copy("orin_nx", tmp_path), {"sys/class/thermal/thermal_zone6/temp": "97500"})
    assert ask(hot, TrainerConfig(max_temp_c=120)).wait == "97.5 °C, training begins below 91 °C"


def test_a_processor_with_bfloat16(tmp_path: Path) -> None:
    config = TrainerConfig(precision="auto")
    assert ask(tmp_path, config).precision == "float32"
    change(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd svebf16 bf16 i8mm\n"})
    assert ask(tmp_path, config).precision == "bfloat16"


def test_an_allowed_phase_is_watched_and_a_wait_forgets(tmp_path: Path) -> None:
    foreground = Foreground(limit_ms=100.0)
    for _ in range(LEAST):
        foreground(prediction(10.0))
    assert ask(tmp_path, foreground=foreground).wait == ""
    for _ in range(LEAST):
        foreground(prediction(30.0))
    assert foreground.slowdown() == 3.0
    assert ask(tmp_path, TrainerConfig(hours="00:00-00:00"), foreground).wait
    assert foreground.slowdown() is None
