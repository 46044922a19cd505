from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.errors import BoardError
from edge_sdk.core.sysfs import Tree
from jetson import clocks, memory, power, thermal
from jetson.power import Mode, Rail
from tests.helpers.boards import BOARDS, NAMES, change, copy


def tree(name: str) -> Tree:
    return Tree(BOARDS / name)


@pytest.mark.parametrize(
    ("name", "mode", "watts"),
    [
        ("nano", Mode(0, "MAXN"), 2.6),
        ("tx2", Mode(3, "MAXP_CORE_ARM"), 3.622),
        ("xavier_nx", Mode(8, "MODE_20W_6CORE"), 4.833),
        ("orin_nano_super", Mode(2, "MAXN_SUPER"), 5.6),
        ("orin_nx", Mode(3, "25W"), 6.508),
        ("agx_orin", Mode(0, "MAXN"), 2.4 + 1.6 + 4.705 + 0.3),
        ("thor", Mode(1, "120W"), 42.0),
    ],
)
def test_power_of_a_recorded_board(name: str, mode: Mode, watts: float) -> None:
    assert power.modes(tree(name)).current == mode
    total = power.total_mw(power.rails(tree(name)))
    assert total == pytest.approx(watts * 1000, abs=1)


def test_one_name_has_another_number_on_every_board() -> None:
    assert power.modes(tree("orin_nano_super")).command("MAXN_SUPER") == ("sudo", "nvpmodel", "-m", "2")
    assert power.modes(tree("orin_nx")).command("maxn super") == ("sudo", "nvpmodel", "-m", "0")
    assert power.modes(tree("agx_orin")).command("30W") == ("sudo", "nvpmodel", "-m", "2")
    with pytest.raises(BoardError, match="no power mode '60W'; this board has MAXN, MODE_15W"):
        power.modes(tree("agx_orin")).command("60W")


def test_the_default_counts_until_a_mode_was_set(tmp_path: Path) -> None:
    root = copy("orin_nx", tmp_path)
    change(root, {"var/lib/nvpmodel/status": None})
    assert power.modes(Tree(root)).current == Mode(3, "25W")
    change(root, {"var/lib/nvpmodel/status": "pmode:0042"})
    assert power.modes(Tree(root)).current is None


def test_what_nvpmodel_prints() -> None:
    assert power.parse_query("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\n2\n") == Mode(2, "MAXN_SUPER")
    assert power.parse_query("NV Power Mode: MODE 30W\n3") == Mode(3, "MODE 30W")
    assert power.parse_query("NVPM ERROR: no\n") is None
    text = (
        "NVPM VERB: PM_CONFIG: DEFAULT=MODE_30W(2)\n"
        "NVPM VERB: POWER_MODEL: ID=2 NAME=MODE_30W\nNVPM VERB: POWER_MODEL: ID=3 NAME=MODE_50W\n"
    )
    told = power.parse_verbose(text)
    assert told.known == (Mode(2, "MODE_30W"), Mode(3, "MODE_50W"))
    assert told.default == Mode(2, "MODE_30W")


def test_rails_overlap_and_are_not_summed() -> None:
    assert power.total_mw([Rail("VDD_IN", 5000.0), Rail("VDD_CPU_GPU_CV", 2000.0), Rail("VDD_SOC", 1000.0)]) == 5000.0
    assert power.total_mw([Rail("VDD_CPU_GPU_CV", 2000.0)]) is None
    assert power.total_mw([]) is None


@pytest.mark.parametrize(
    ("name", "zone", "temp_c"),
    [("nano", "AO-therm", 44.5), ("xavier_nx", "CPU-therm", 41.5), ("orin_nano_super", "tj-thermal", 58.312)],
)
def test_the_zone_that_counts(name: str, zone: str, temp_c: float) -> None:
    heat = thermal.read(tree(name))
    assert heat.junction is not None
    assert (heat.junction.name, heat.junction.temp_c) == (zone, temp_c)
    assert heat.cooling == ("pwm-fan",)
    assert heat.margin_c is not None
    assert heat.margin_c == pytest.approx(99.0 - max(z.temp_c for z in heat.zones if not z.name.startswith("PMIC")))


def test_free_memory_in_one_piece() -> None:
    orin, tx2 = memory.read(tree("orin_nx")), memory.read(tree("tx2"))
    assert (orin.largest_mb, orin.largest_count) == (pytest.approx(4.194, abs=1e-3), 1800)
    assert (tx2.largest_mb, tx2.largest_count) == (pytest.approx(0.524, abs=1e-3), 1)
    assert memory.largest_block("Node 0, zone Normal 0 0 0\n") == (0.0, 0)
    two = "Node 0, zone      DMA      0      1      0\nNode 0, zone   Normal      5      2      0 \n"
    assert memory.largest_block(two) == (pytest.approx(0.008192), 3)
    assert memory.largest_block("") == (None, 0)


def test_what_is_swapped_to() -> None:
    nano, super_ = memory.read(tree("nano")), memory.read(tree("orin_nano_super"))
    assert [s.in_memory for s in nano.swaps] == [True] * 4
    assert [(s.name, s.in_memory, round(s.total_mb)) for s in super_.swaps] == [("/var/swapfile", False, 8590)]


def test_clocks_of_a_recorded_board(tmp_path: Path) -> None:
    found = clocks.read(tree("orin_nano_super"))
    assert len(found.cores) == 6
    assert found.cores[0] == clocks.Core(0, online=True, governor="schedutil", mhz=864.0, max_mhz=1728.0)
    assert found.gpu == clocks.Unit(306.0, 1020.0)
    assert found.gpu_load == 0.125
    root = copy("orin_nano_super", tmp_path)
    change(root, {"sys/devices/system/cpu/cpu4/online": "0\n", "sys/devices/platform/17000000.gpu/load": "9999"})
    assert [core.online for core in clocks.read(Tree(root)).cores] == [True] * 4 + [False, True]
    assert clocks.read(Tree(root)).gpu_load is None


def test_what_jetson_clocks_prints() -> None:
    text = (
        "SOC family:tegra234  Machine:NVIDIA Orin Jetson-Small Developer Kit\nOnline CPUs: 0-11\n"
        "cpu0: Online=1 Governor=schedutil MinFreq=115200 MaxFreq=2201600 CurrentFreq=2112000 IdleStates: WFI=1 c7=1\n"
        "cpu11: Online=0 Governor=schedutil MinFreq=115200 MaxFreq=2201600 CurrentFreq=x\n"
        "cpu: nothing\nGPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000\n"
        "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0\nPWM FAN\n"
    )
    found = clocks.parse_show(text)
    assert found.cores[0] == clocks.Core(0, online=True, governor="schedutil", mhz=2112.0, max_mhz=2201.6)
    assert found.cores[1] == clocks.Core(11, online=False, governor="schedutil", mhz=None, max_mhz=2201.6)
    assert found.gpu == clocks.Unit(306.0, 1300.5)
    assert found.memory == clocks.Unit(2133.0, 3199.0)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_read_without_a_single_gap(name: str) -> None:
    assert len(clocks.read(tree(name)).cores) >= 4
    assert power.rails(tree(name))
    assert memory.read(tree(name)).largest_mb is not None
    assert thermal.read(tree(name)).junction is not None


@given(st.text(max_size=300))
def test_parsers_survive_everything(text: str) -> None:
    power.parse_conf(text)
    power.parse_query(text)
    power.parse_verbose(text)
    clocks.parse_show(text)
    memory.swaps(text)
    assert memory.largest_block(text)[1] >= 0


@given(
    st.lists(
        st.sampled_from(["< POWER_MODEL ID=", "1", " NAME=", "15W", " >", "\n", "< PM_CONFIG DEFAULT=", "٣", "=", "<"])
    )
)
def test_a_mangled_nvpmodel_conf_is_survived(parts: list[str]) -> None:
    known, default = power.parse_conf("".join(parts))
    assert all(isinstance(mode.id, int) and mode.name for mode in known)
    assert default is None or default >= 0
