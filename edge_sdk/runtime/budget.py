"""When and how hard may the device train? Decided before each phase, from the board's state and the user's rules.

`decide` is a pure function; `Budget` gathers what it decides from. Training never begins while it says wait, and is
gentler while something presses: half the batch for each pressure, down to a quarter, with the learning rate scaled
alike, so that an epoch of more and smaller steps moves as far. A file that is absent is no pressure: a board that does
not tell its temperature is not held to be too hot. Training runs niced in a child besides, and a phase that runs is not
interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from edge_sdk.core import boards
from edge_sdk.core.boards import Readings
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import TrainerConfig
from edge_sdk.core.messages import Plan
from edge_sdk.core.sysfs import Tree
from edge_sdk.runtime.foreground import Foreground

HYSTERESIS_C = 5.0  # once too hot, training waits until it is so much cooler
STEPS = 2  # a batch is halved at most so often
LEAST_BATCH = 4  # no plan is cut below this
_THROTTLE_C = 3.0  # so near to where the kernel slows the board down, training waits
_LEAST_BLOCK_MB = 1.0  # largest free block; below it buffers begin to fail
_BF16 = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")  # processors that compute with it: 1.5 to 2.3 times as fast


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is decided from."""

    readings: Readings = field(default_factory=Readings)
    late: bool = False  # the newest prediction came too late
    slowdown: float | None = None  # median latency while training over that without; None: not known
    minute: int = 0  # of the local day, 0 … 1439
    bf16: bool = False  # the processor computes with bfloat16


@dataclass(frozen=True, slots=True)
class Allowance:
    """What training may take."""

    wait: str = ""  # why it must not begin; "": it may
    eased: tuple[str, ...] = ()  # why it is gentler than planned
    steps: int = 0  # how often the batch is halved
    freeze_encoders: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    hot: bool = False  # it waits, or has just waited, because of the temperature
    slow_steps: int = 0  # of `steps`, those because predictions became slow; STEPS + 1: wait


FULL = Allowance()
Ask = Callable[[], Allowance | str]  # a budget; a string is why training must wait, "" that all is allowed


def allowed(answer: Allowance | str) -> Allowance:
    """Returns a budget's answer as an allowance."""
    return Allowance(wait=answer) if isinstance(answer, str) else answer


def gentler(plan: Plan, allowance: Allowance) -> Plan:
    """Returns the plan with the batch cut and the learning rate scaled alike."""
    size = max(min(plan.batch_size, LEAST_BATCH), plan.batch_size >> allowance.steps)
    return plan if size == plan.batch_size else replace(plan, batch_size=size, lr=plan.lr * size / plan.batch_size)


def decide(now: Conditions, config: TrainerConfig, before: Allowance = FULL) -> Allowance:
    """Returns what training may take.

    Args:
        now: how the board and its predictions are doing.
        config: what the user says.
        before: the decision before this one.
    """
    hot, slow_steps = _is_hot(now.readings, config, before), _slow_steps(now, config, before)
    reasons = (
        _heat(now.readings, config, before) if hot else "",
        _memory(now.readings, config.min_free_mb),
        _battery(now.readings, config),
        _mode(now.readings, config),
        _hours(now.minute, config.hours),
        "predictions come late" if now.late else "",
        "predictions become slow beside the smallest batch" if slow_steps > STEPS else "",
    )
    wait = next((reason for reason in reasons if reason), "")
    pressures = tuple(filter(None, _pressures(now.readings, config)))
    slow = (
        (f"predictions take {now.slowdown:.1f} times as long beside training",) if slow_steps and now.slowdown else ()
    )
    steps = min(STEPS, len(pressures) + slow_steps)
    eased = pressures + (slow or ("predictions were slow beside training",) * bool(slow_steps))
    return Allowance(
        wait=wait,
        eased=eased,
        steps=steps,
        freeze_encoders=config.freeze_encoders == "always" or (config.freeze_encoders == "ease" and steps > 0),
        precision="bfloat16"
        if config.precision == "bfloat16" or (config.precision == "auto" and now.bf16)
        else "float32",
        hot=hot,
        slow_steps=slow_steps,
    )


def _limit_c(readings: Readings, config: TrainerConfig, before: Allowance) -> float:
    """Returns where training waits: at the user's limit, or just below where the kernel slows the board down."""
    limit = config.max_temp_c
    if readings.throttle_c is not None:
        limit = min(limit, readings.throttle_c - _THROTTLE_C)
    return limit - (HYSTERESIS_C if before.hot else 0.0)


def _is_hot(readings: Readings, config: TrainerConfig, before: Allowance) -> bool:
    return readings.temp_c is not None and readings.temp_c >= _limit_c(readings, config, before)


def _heat(readings: Readings, config: TrainerConfig, before: Allowance) -> str:
    return f"{readings.temp_c:g} °C, training begins below {_limit_c(readings, config, replace(before, hot=True)):g} °C"


def _memory(readings: Readings, least_mb: float) -> str:
    if readings.free_mb is None or readings.free_mb >= least_mb:
        return ""
    return f"{readings.free_mb:.0f} MB of memory are free, training begins at {least_mb:g} MB"


def _battery(readings: Readings, config: TrainerConfig) -> str:
    if readings.mains:
        return ""
    if config.battery == "wait":
        return "the device runs on its battery"
    percent = readings.battery_percent
    if percent is None or percent >= config.min_battery_percent:
        return ""
    return f"the battery holds {percent:g} %, training begins at {config.min_battery_percent:g} %"


def _mode(readings: Readings, config: TrainerConfig) -> str:
    if not config.power_modes or readings.power_mode is None:
        return ""
    if _plain(readings.power_mode) in map(_plain, config.power_modes):
        return ""
    return f"power mode {readings.power_mode}, training is for {', '.join(config.power_modes)}"


def _plain(mode: str) -> str:
    """Boards write one mode as "30W", "MODE_30W" and "MODE 30W"."""
    return mode.upper().replace(" ", "_").removeprefix("MODE_")


def _hours(minute: int, hours: str) -> str:
    """An end before its beginning is on the next day."""
    if not hours:
        return ""
    begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in hours.split("-"))
    inside = begin <= minute < end if begin <= end else minute >= begin or minute < end
    return "" if inside else f"{minute // 60:02d}:{minute % 60:02d}, training is for {hours}"


def _pressures(readings: Readings, config: TrainerConfig) -> tuple[str, ...]:
    temp, free, block = readings.temp_c, readings.free_mb, readings.largest_free_mb
    return (
        f"{temp:g} °C" if temp is not None and temp >= config.ease_temp_c else "",
        f"{free:.0f} MB of memory are free" if free is not None and free < config.ease_free_mb else "",
        f"the largest free block is {block:.1f} MB" if block is not None and block < _LEAST_BLOCK_MB else "",
        "the device runs on its battery" if not readings.mains and config.battery == "ease" else "",
    )


def _slow_steps(now: Conditions, config: TrainerConfig, before: Allowance) -> int:
    """One step more after a phase that made predictions slow, one fewer after one that did not, or after a wait."""
    if now.slowdown is None:
        return min(before.slow_steps, STEPS)
    if now.slowdown > config.max_slowdown:
        return min(before.slow_steps + 1, STEPS + 1)
    return max(before.slow_steps - 1, 0)


class Budget:
    """Looks at the machine and decides.

    Args:
        config: what the user says.
        clock: tells the time of day.
        foreground: how predictions fare.
        root: where /proc and /sys are.
    """

    def __init__(
        self, config: TrainerConfig, *, clock: Clock, foreground: Foreground, root: Path = Path("/")
    ) -> None:  # fmt: skip
        self._config = config
        self._clock = clock
        self._foreground = foreground
        self._board = boards.find(Tree(root))
        self._bf16 = _BF16.search(Tree(root).text("proc/cpuinfo") or "") is not None
        self._last = FULL

    def __call__(self) -> Allowance:
        """Returns what the next phase may take."""
        self._last = decide(self._conditions(), self._config, self._last)
        if self._last.wait:
            self._foreground.rests()
        else:
            self._foreground.trains()
        return self._last

    def _conditions(self) -> Conditions:
        local = datetime.fromtimestamp(self._clock.utc_ns() / NS, timezone.utc).astimezone()
        return Conditions(
            readings=self._board.readings(),
            late=self._foreground.late,
            slowdown=self._foreground.slowdown(),
            minute=local.hour * 60 + local.minute,
            bf16=self._bf16,
        )


__all__ = ["FULL", "LEAST_BATCH", "STEPS", "Allowance", "Ask", "Budget", "Conditions", "allowed", "decide", "gentler"]
