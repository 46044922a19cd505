"""Every sensor of a bench: rate, jitter, loss, clock offset, unplugging, and a long run.

    pytest tests/hardware                               virtual devices, in a minute
    pytest tests/hardware --board FILE.toml -s          a bench; asks for the hand that unplugs and knocks

docs/hardware.md says what `[hardware]` in the file may hold.
"""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import numpy as np
import pytest

from tests.helpers.bench_measures import Heard, Measured, offset_ms
from tests.helpers.bench_report import Ledger, Replug, page
from tests.helpers.benches import Bench, CannotDo, Sensor

pytestmark = pytest.mark.hardware


def test_rate(sensor: Sensor, measured: dict[str, Measured]) -> None:
    assert sensor.name in measured, "it fell silent"
    got = measured[sensor.name].rate_hz
    share = sensor.limits.rate_share
    assert got == pytest.approx(sensor.rate_hz, rel=share), f"{got:.2f} Hz, expected {sensor.rate_hz:g} ± {share:.0%}"


def test_jitter(sensor: Sensor, measured: dict[str, Measured]) -> None:
    got = measured[sensor.name]
    limit_ms = sensor.limits.jitter_share * 1e3 / sensor.rate_hz
    assert got.jitter_ms <= limit_ms, f"{got.jitter_ms:.2f} ms, limit {limit_ms:.2f} ms"


def test_loss(sensor: Sensor, measured: dict[str, Measured]) -> None:
    got = measured[sensor.name]
    assert got.samples > 0.5 * sensor.rate_hz
    assert got.loss <= sensor.limits.loss, (
        f"{got.lost} lost of {got.samples + got.lost}, limit {sensor.limits.loss:.1%}"
    )


def test_clock_offset(sensor: Sensor, bench: Bench, knocked: dict[str, tuple[Heard, Any]], ledger: Ledger) -> None:
    """Against the bench's first sensor, by knocks that both notice."""
    if sensor.name not in knocked:
        pytest.skip(f"{sensor.name} notices no knock")
    first = next(iter(knocked))
    middle, spread = ledger.offsets_ms[sensor.name] = offset_ms(knocked[first][1], knocked[sensor.name][1])
    limit = sensor.limits.offset_ms
    assert abs(middle) <= limit, f"{middle:+.0f} ms (spread {spread:.0f} ms) against {first}, limit {limit:.0f} ms"


def test_unplugged_and_plugged_in_again(sensor: Sensor, bench: Bench, ledger: Ledger) -> None:
    """It is told, it comes back by itself, and the others do not notice."""
    listener, name = bench.listener, sensor.name
    since = len(listener.states)
    try:
        listener.ask("mark")
        begin = time.monotonic()
        bench.unplug(name)
        gone = listener.becomes(name, "failed", since, sensor.limits.notices_s)
        noticed_s = time.monotonic() - begin
        others = listener.ask("count")["count"]
        listener.ask("mark")
        begin = time.monotonic()
        bench.plug(name)
    except CannotDo as error:
        pytest.skip(str(error))
    assert not listener.silent({name}, sensor.limits.returns_s)
    ledger.replugs[name] = Replug(noticed_s, time.monotonic() - begin, gone["error"])
    assert gone["error"]
    assert [s["state"] for s in listener.states[since:] if s["sensor"] == name][-1] == "streaming"
    steady = set(bench.sensors) - {name, *bench.silent}
    assert not [s for s in listener.states[since:] if s["sensor"] in steady], "another sensor was disturbed"
    assert not listener.silent(steady, 5.0)
    if noticed_s > 1.0:
        assert all(others[other] for other in steady), others


def test_soak(sensor: Sensor, bench: Bench, soaked: list[dict[str, Measured]], ledger: Ledger) -> None:
    pieces = [piece[sensor.name] for piece in soaked if sensor.name in piece]
    assert len(pieces) == len(soaked), "it fell silent"
    lost = sum(m.lost for m in pieces) / sum(m.samples + m.lost for m in pieces)
    assert lost <= sensor.limits.loss, f"{lost:.2%} lost"
    rates = [m.rate_hz for m in pieces]
    assert np.median(rates) == pytest.approx(sensor.rate_hz, rel=sensor.limits.rate_share)
    third = len(soaked) // 3
    growth_mb = np.median(ledger.memory_mb[-third:]) - np.median(ledger.memory_mb[:third])
    assert growth_mb <= bench.hardware.growth_mb, f"the process grew by {growth_mb:.0f} MB"


def test_the_report_shows_everything(
    bench: Bench, measured: dict[str, Measured], soaked: list[dict[str, Measured]], ledger: Ledger
) -> None:
    text = page(ledger)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    pictures = re.findall(r'alt="(\w+)" src="data:image/png;base64,([^"]+)"', text)
    assert {"intervals", "soak"} <= {name for name, _ in pictures}
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in pictures)
    for name, sensor in bench.sensors.items():
        rate = f"{ledger.measured[name].rate_hz:.2f}" if name in ledger.measured else "-"
        assert f"<td>{name}</td><td>{sensor.config.driver}</td><td>{rate}</td>" in text
    assert "lost in the worst piece" in text
    for name, reason in bench.absent.items():
        assert f"{name} is not here" in text, reason
