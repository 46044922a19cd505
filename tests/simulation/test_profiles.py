"""Worlds: names, files of one's own, and what boards, links and absences do to a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.preparation import spec_of, split
from coordinator.simulation import profiles
from coordinator.simulation.profiles import Availability, LinkProfile, WorldProfile
from coordinator.simulation.simulate import Simulation, World
from edge_sdk import datasets
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import TrainingSpec

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "field_world.toml"


def test_the_documents_tables_hold_every_name_and_value() -> None:
    text = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
    rows = {
        **{
            k: f"{b.factor:g} | {b.slow_fraction:g}, {b.slow_factor:g}"
            for k, b in profiles.BOARDS.items()
            if b.sample_s
        },
        **{
            k: f"{a.delay_s:g} | {a.bandwidth_low_kbps:g} to {a.bandwidth_high_kbps:g}"
            for k, a in profiles.ARRIVALS.items()
        },
    }
    links = {k: f"{w.latency_s:g} | {w.low_kbps:g} to {w.high_kbps:g} | {w.loss:g}" for k, w in profiles.LINKS.items()}
    spells = {k: f"{s.online_s:g} | {s.offline_s:g}" for k, s in profiles.AVAILABILITY.items()}
    for name, cells in (*rows.items(), *list(links.items())[1:], *list(spells.items())[1:]):
        assert f"| `{name}` | {cells} |" in text, name


def test_a_world_is_a_name_or_a_file() -> None:
    assert profiles.read("mba") == WorldProfile()
    mine = profiles.read(str(EXAMPLE))
    assert mine.link == profiles.LINKS["lte"]
    assert (mine.board.factor, mine.board.sample_s) == (15.0, 2e-5)
    assert mine.availability == profiles.AVAILABILITY["intermittent"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('board = "abacus"', r"board.*'abacus' is none of tx2, v100"),
        ("[board]\nspeed = 3", r"board.speed"),
        ("[link]\nlow_kbps = 5\nhigh_kbps = 4", "low_kbps must be positive and not above high_kbps"),
        ("[arrivals]\ndelay_s = -1", r"arrivals.delay_s"),
        ("colour = 1", "colour"),
    ],
)
def test_a_mistake_in_a_file_names_section_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "world.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"(?s)world.toml.*{said}"):
        profiles.read(str(path))


@pytest.mark.parametrize(
    ("text", "said"), [("moon", "expected one of mba, by_deadline, instant"), ("no.toml", "no.toml: cannot be read")]
)
def test_a_world_that_is_not_there_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        profiles.read(text)


def test_a_devices_link_is_its_own_and_the_same_every_time() -> None:
    assert profiles.link(profiles.MBA, seed=1, device=0) is None
    away = WorldProfile(link="mba", availability=Availability(online_s=10.0, offline_s=5.0, horizon_s=1000.0))
    one, other = (profiles.link(away, seed=1, device=d) for d in (0, 1))
    assert one is not None
    assert other is not None
    assert one == profiles.link(away, seed=1, device=0)
    assert one != other
    assert 200e3 <= one.up_bytes_per_s == one.down_bytes_per_s <= 800e3
    gone = [end - begin for begin, end in one.offline]
    assert 40 < len(gone) < 100
    assert 3.0 < sum(gone) / len(gone) < 8.0
    assert one.offline[-1][1] >= 1000.0


def test_links_and_absences_take_time_and_change_nothing_else_that_they_should_not() -> None:
    data = split(datasets.select("synthetic", seed=1), 1)
    spec = spec_of(data.train, name="away", method="mba", training=TrainingSpec(epochs=1))
    world = World(devices=4, updates=12, seed=1, fraction=0.5)
    slow = WorldProfile(link=LinkProfile(latency_s=0.5, low_kbps=1.0, high_kbps=2.0))
    rare = WorldProfile(link="lte", availability=Availability(online_s=200.0, offline_s=400.0))
    here, far, absent, again = (
        Simulation(spec, data, replace(world, profile=profile)).run() for profile in (profiles.MBA, slow, rare, rare)
    )
    assert [r.updates for r in (here, far, absent)] == [12, 12, 12]
    assert far.virtual_seconds > here.virtual_seconds + 12.0
    assert absent.virtual_seconds > here.virtual_seconds
    assert (absent.digest, absent.applied) == (again.digest, again.applied)
