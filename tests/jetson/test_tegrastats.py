from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetson.tegrastats import CoreLoad, EngineLoad, Power, Stats, parse
from tests.helpers.boards import BOARDS

LINES = (BOARDS / "tegrastats.txt").read_text().splitlines()
EMPTY = Stats(None, None, None, None, None, None, (), None, None, (), {}, {}, {})


def test_agx_orin() -> None:
    stats = parse(LINES[0])
    assert (stats.ram_used_mb, stats.ram_total_mb) == (18207, 62841)
    assert (stats.largest_free_mb, stats.largest_free_count) == (4.0, 466)
    assert (stats.swap_used_mb, stats.swap_total_mb) == (86, 31420)
    assert len(stats.cores) == 12
    assert stats.cores[4] == CoreLoad(0.46, 1267)
    assert (stats.memory_load, stats.gpu_load, stats.gpu_mhz) == (0.03, 0.0, (0, 0))
    assert stats.engines["NVENC"] == EngineLoad(0.79, 166)
    assert stats.engines["PVA0"] == EngineLoad(None, None)
    assert stats.engines["APE"] == EngineLoad(None, 174)
    assert stats.temps_c["tj"] == 52.562
    assert stats.rails == {
        "VDD_GPU_SOC": Power(2412, 2412), "VDD_CPU_CV": Power(1607, 1607), "VIN_SYS_5V0": Power(4707, 4707),
    }  # fmt: skip


def test_orin_nano_super() -> None:
    stats = parse(LINES[1])
    assert (stats.gpu_load, stats.gpu_mhz) == (0.99, (612,))
    assert stats.rails["VDD_IN"] == Power(16321, 11204)
    assert set(stats.temps_c) == {"cpu", "soc2", "soc0", "gpu", "tj", "soc1"}
    assert set(stats.engines) == {"NVDEC", "NVJPG", "VIC", "OFA", "APE"}


def test_jetpack_7() -> None:
    stats = parse(LINES[2])
    assert (stats.largest_free_mb, stats.largest_free_count) == (2.0, 1)
    assert stats.gpu_mhz == (1300, 1300)
    assert stats.temps_c == {"cpu": 52.968}
    assert (stats.swap_used_mb, stats.rails) == (None, {})


def test_thor_tells_no_load() -> None:
    stats = parse(LINES[3])
    assert stats.largest_free_mb == 0.5
    assert (stats.gpu_load, stats.gpu_mhz) == (None, (1000, 1000, 1000))
    assert stats.cores == ()


def test_tx2() -> None:
    stats = parse(LINES[4])
    assert stats.cores == (CoreLoad(0.01, 2035), None, None, CoreLoad(0.03, 2035))
    assert (stats.swap_used_mb, stats.swap_total_mb) == (149, 1024)
    assert (stats.gpu_load, stats.gpu_mhz) == (0.07, (1300,))
    assert stats.temps_c == {"BCPU": -45.0, "PLL": 45.0, "thermal": 46.4}
    assert stats.rails == {"VDD_IN": Power(14025, 14416), "VDD_CPU": Power(2209, 2538)}
    assert stats.engines["NVENC"] == EngineLoad(None, 716)


def test_jetpack_5() -> None:
    stats = parse(LINES[5])
    assert stats.cores == (CoreLoad(0.0, 729), None)
    assert "CV0" not in stats.temps_c
    assert stats.temps_c == {"CPU": 44.562, "Tboard": 32.0, "tj": 44.343}
    assert "NC" not in stats.rails
    assert stats.engines["VIC"] == EngineLoad(None, 729)


def test_a_line_that_says_nothing() -> None:
    assert parse("") == EMPTY
    assert parse("tegrastats: command not found") == EMPTY


@given(line=st.sampled_from(LINES), at=st.integers(0, 700))
def test_a_line_that_is_cut_off_gives_what_is_left(line: str, at: int) -> None:
    whole, part = parse(line), parse(line[:at])
    assert set(part.engines) <= set(whole.engines) | {line[:at].split(" ")[-2] if " " in line[:at] else ""}
    assert part.ram_used_mb in (None, whole.ram_used_mb)


@pytest.mark.parametrize("alphabet", ["RAMSWPCUGD3_FEQVI @[]%/,.-0123456789CmWkBlfbxof٣", None])
def test_survives_fuzzing(alphabet: str | None) -> None:
    characters = st.characters() if alphabet is None else st.sampled_from(alphabet)

    @given(st.text(characters, max_size=200))
    def fuzz(line: str) -> None:
        stats = parse(line)
        assert all(core is None or core.load >= 0 for core in stats.cores)
        assert all(temp > -200 for temp in stats.temps_c.values())

    fuzz()


@given(line=st.sampled_from(LINES), edits=st.lists(st.tuples(st.integers(0, 700), st.characters()), max_size=8))
def test_survives_damage(line: str, edits: list[tuple[int, str]]) -> None:
    characters = list(line)
    for at, character in edits:
        characters[at % len(characters)] = character
    stats = parse("".join(characters))
    assert all(power.now_mw >= 0 for power in stats.rails.values())
