from __future__ import annotations

from pathlib import Path

from edge_sdk.core.config import TrainerConfig
from edge_sdk.runtime.budget import Budget, free_mb, temperature_c


def machine(root: Path, *, temp: str = "45000", free_kb: int = 2_000_000) -> Path:
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "temp").write_text(temp)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 8000000 kB\nMemAvailable: {free_kb} kB\n")
    return root


def test_says_nothing_where_all_is_well(tmp_path: Path) -> None:
    assert Budget(TrainerConfig(), root=machine(tmp_path))() == ""


def test_knows_nothing_of_an_empty_machine(tmp_path: Path) -> None:
    assert temperature_c(tmp_path) is None
    assert free_mb(tmp_path) is None
    assert Budget(TrainerConfig(), root=tmp_path)() == ""


def test_nonsense_is_no_temperature(tmp_path: Path) -> None:
    assert temperature_c(machine(tmp_path, temp="not a number")) is None
    assert temperature_c(machine(tmp_path, temp="-274000")) is None


def test_waits_while_hot_and_a_little_longer(tmp_path: Path) -> None:
    budget = Budget(TrainerConfig(max_temp_c=80), root=machine(tmp_path, temp="81000"))
    assert "81" in budget()
    machine(tmp_path, temp="77000")
    assert "75" in budget()
    machine(tmp_path, temp="74000")
    assert budget() == ""
    machine(tmp_path, temp="77000")
    assert budget() == ""


def test_waits_for_memory(tmp_path: Path) -> None:
    assert "100 MB" in Budget(TrainerConfig(), root=machine(tmp_path, free_kb=100_000))()


def test_yields_to_predictions(tmp_path: Path) -> None:
    late = [True]
    budget = Budget(TrainerConfig(), root=machine(tmp_path), behind=lambda: late[0])
    assert "predictions" in budget()
    late[0] = False
    assert budget() == ""
