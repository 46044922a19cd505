from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.sysfs import Tree, battery, hottest, memory, zones
from tests.helpers.boards import NAMES, change


def test_files_that_are_absent_say_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert tree.text("proc/meminfo") is None
    assert tree.number("proc/meminfo") is None
    assert tree.strings("proc/device-tree/compatible") == ()
    assert tree.find("sys/class/thermal/thermal_zone*") == []
    assert not tree.exists("proc")
    assert memory(tree) is None
    assert zones(tree) == []
    assert hottest([]) is None


@pytest.mark.parametrize("text", ["", "abc", "1e9", "0x10", "nan", "1 2", "9" * 19, "--1"])
def test_nonsense_is_no_number(tmp_path: Path, text: str) -> None:
    assert Tree(change(tmp_path, {"a": text})).number("a") is None


def test_numbers_in_names_sort_as_numbers(tmp_path: Path) -> None:
    change(tmp_path, {f"z/zone{i}": "" for i in (10, 2, 1)})
    assert Tree(tmp_path).find("z/zone*") == ["z/zone1", "z/zone2", "z/zone10"]


def zone(number: int, name: str, milli: str) -> dict[str, str | None]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{name}\n", f"{folder}/temp": f"{milli}\n"}


def test_zones_that_are_off_are_left_out(tmp_path: Path) -> None:
    change(tmp_path, {**zone(0, "cv0-thermal", "-256000"), **zone(1, "gpu", "not a number"), **zone(2, "cpu", "41500")})
    assert [(z.name, z.temp_c, z.passive_c) for z in zones(Tree(tmp_path))] == [("cpu", 41.5, None)]


def test_a_power_chip_that_names_a_constant_is_not_the_hottest(tmp_path: Path) -> None:
    change(tmp_path, {**zone(0, "PMIC-Die", "100000"), **zone(1, "CPU-therm", "38500")})
    found = hottest(zones(Tree(tmp_path)))
    assert found is not None
    assert found.name == "CPU-therm"


def test_the_first_passive_trip_point_is_where_it_is_slowed_down(tmp_path: Path) -> None:
    folder = "sys/class/thermal/thermal_zone0"
    points = {
        "0_type": "critical", "0_temp": "104500", "1_type": "passive", "1_temp": "99000",
        "2_type": "passive", "2_temp": "95000",
    }  # fmt: skip
    change(tmp_path, {**zone(0, "tj", "50000"), **{f"{folder}/trip_point_{k}": v for k, v in points.items()}})
    assert zones(Tree(tmp_path))[0].passive_c == 95.0


def test_memory_is_in_decimal_megabytes(tmp_path: Path) -> None:
    text = "MemTotal: 8000000 kB\nMemAvailable:    1000000 kB\nActive(anon): 12 kB\n"
    text += "SwapTotal: 2000 kB\nSwapFree: 1000 kB\n"
    found = memory(Tree(change(tmp_path, {"proc/meminfo": text})))
    assert found is not None
    assert (found.total_mb, found.available_mb) == (8192.0, 1024.0)
    assert (found.swap_total_mb, found.swap_free_mb) == (2.048, 1.024)


def supply(name: str, **keys: str) -> dict[str, str | None]:
    return {f"sys/class/power_supply/{name}/{key}": value for key, value in keys.items()}


def test_a_board_without_a_battery_hangs_on_the_mains(tmp_path: Path) -> None:
    assert battery(Tree(tmp_path)) == battery(Tree(change(tmp_path, supply("ac", type="Mains", online="0"))))
    assert battery(Tree(tmp_path)).mains
    assert battery(Tree(tmp_path)).percent is None


@pytest.mark.parametrize(
    ("status", "online", "mains"), [("Discharging", "0", False), ("Charging", "1", True), ("Not charging", "0", False)]
)
def test_a_battery_is_read(tmp_path: Path, status: str, online: str, mains: bool) -> None:
    change(tmp_path, supply("ac", type="Mains", online=online))
    change(tmp_path, supply("bat", type="Battery", capacity="63", status=status))
    change(tmp_path, supply("mouse", type="Battery", scope="Device", capacity="99", status="Discharging"))
    found = battery(Tree(tmp_path))
    assert (found.percent, found.mains) == (63.0, mains)


def test_there_are_recorded_boards() -> None:
    assert {"nano", "tx2", "xavier_nx", "orin_nano_super", "orin_nx", "agx_orin", "thor"} <= set(NAMES)


@given(content=st.binary(max_size=200))
def test_whatever_a_file_holds_is_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    for name in ("proc/meminfo", "sys/class/thermal/thermal_zone0/temp", "sys/class/power_supply/b/capacity"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "sys/class/power_supply/b/type").write_bytes(b"Battery")
    tree = Tree(root)
    memory(tree)
    assert all(-50 < z.temp_c < 200 for z in zones(tree))
    percent = battery(tree).percent
    assert percent is None or 0 <= percent <= 100
