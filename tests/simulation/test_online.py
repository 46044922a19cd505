"""The online world: how buffers slide, and how often something is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.preparation import Split, spec_of
from coordinator.simulation import online
from coordinator.simulation.online import OnlineProfile, OnlineSource, trouble, window
from coordinator.simulation.profiles import INSTANT
from coordinator.simulation.simulate import Simulation, World
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Dataset, RoundData
from edge_sdk.core.spec import MethodSpec, TrainingSpec
from tests.helpers import learning

BOTH = ("acc", "gyro")


def data(n: int = 60, seed: int = 0) -> Dataset:
    rows = learning.round_data(n, 2, seed=seed)
    return Dataset("small", rows.x, rows.y, ("a", "b", "c"), rows.has, subject=np.arange(n) % 3)


def test_the_buffer_drops_the_oldest_and_takes_as_many_new_ones() -> None:
    profile = OnlineProfile(initial=6, buffer=4, per_round=2)
    assert [window(profile, 10, t).tolist() for t in range(4)] == [
        [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 0, 1],
    ]  # fmt: skip


def test_a_small_client_has_all_that_it_has() -> None:
    assert window(OnlineProfile(initial=100, buffer=50, per_round=5), 3, 7).size == 3
    assert window(OnlineProfile(initial=2, buffer=50, per_round=1), 10, 3).tolist() == [0, 1, 2, 3, 4]


def test_a_modality_is_missing_as_often_as_asked_for_each_as_often() -> None:
    profile = OnlineProfile(missing=0.5, degraded=0.3)
    found = [trouble(profile, BOTH, seed=1, device=d, task=t) for d in range(20) for t in range(100)]
    missing = [sum(f.missing == m for f in found) for m in BOTH]
    assert sum(missing) / 2000 == pytest.approx(0.5, abs=0.04)
    assert missing[0] / sum(missing) == pytest.approx(0.5, abs=0.06)
    assert sum(bool(f.degraded) for f in found) / 2000 == pytest.approx(0.3, abs=0.04)
    assert all(f.degraded != f.missing for f in found if f.degraded)


def test_one_draw_for_all_or_one_for_each() -> None:
    def at(scope: str) -> set[object]:
        profile = OnlineProfile(missing=0.5, scope=scope)
        return {trouble(profile, BOTH, seed=1, device=d, task=3) for d in range(30)}

    assert len(at("round")) == 1
    assert len(at("client")) > 1


def test_the_only_modality_is_never_missing() -> None:
    profile = OnlineProfile(missing=1.0)
    assert {trouble(profile, ("acc",), seed=1, device=0, task=t).missing for t in range(50)} == {""}


def freeze(profile: OnlineProfile, task: int = 0) -> tuple[list[str], RoundData]:
    async def main(clock: VirtualClock) -> tuple[list[str], RoundData]:
        source = OnlineSource(data(), profile, INSTANT, clock, seed=1, device=0)
        frozen = await source.freeze(task, BOTH)
        here = []
        while (arrival := await frozen.next_arrival()) is not None:
            here.append(arrival.modality)
        return here, frozen.data(tuple(m for m in BOTH if m in here))

    return run_virtual(main)


def test_a_missing_modality_does_not_arrive() -> None:
    here, rows = freeze(OnlineProfile(missing=1.0, buffer=20))
    assert len(here) == 1
    assert len(rows.y) == 20
    assert not rows.quality


def test_a_degraded_modality_says_so_and_carries_the_noise() -> None:
    clean, noisy = (freeze(OnlineProfile(degraded=d, buffer=30, sigma=2.0))[1] for d in (0.0, 1.0))
    (poor,) = noisy.quality
    (good,) = set(BOTH) - {poor}
    assert (noisy.quality[poor] == 0).all()
    assert np.array_equal(clean.x[good], noisy.x[good])
    spread = data().x[poor].std(0)
    assert ((noisy.x[poor] - clean.x[poor]).std(0) / spread).mean() == pytest.approx(2.0, rel=0.2)


def test_the_profile_is_read_from_a_flag_and_mistakes_are_named() -> None:
    assert online.read("missing=0.5,buffer=7,scope=round") == OnlineProfile(missing=0.5, buffer=7, scope="round")
    assert online.read("") == OnlineProfile()
    for text, match in (("missing", "KEY=VALUE"), ("missing=2", "missing"), ("colour=red", "colour")):
        with pytest.raises(ConfigError, match=match):
            online.read(text)


def run(method: str, profile: OnlineProfile, **config: object) -> tuple[str, int]:
    rows = data(90)
    spec = spec_of(rows, name="small", method=method, training=TrainingSpec(lr=0.1, epochs=1, batch_size=10))
    spec = spec.model_copy(update={"method": MethodSpec(name=method, config=config)})
    world = World(
        devices=3, updates=12, seed=1, partition="subject", fraction=1.0, profile=INSTANT, online=profile,
        evaluate_every=6,
    )  # fmt: skip
    report = Simulation(spec, Split(rows, replace(data(30, seed=5), subject=None)), world).run()
    assert (report.updates, report.rounds) == (12, 4)
    return report.digest, report.bytes_up


def test_qqr_without_trouble_is_online_fedavg_except_for_prototypes() -> None:
    """Invariant 13. With nothing missing or poor the prototypes change nothing; buffers are of one size."""
    whole = OnlineProfile(buffer=20, per_round=5)
    digests, sizes = zip(*(run(method, whole) for method in ("fedavg", "fm", "pm", "zf", "qqr", "pmm")), strict=True)
    assert len(set(digests)) == 1
    assert sizes[4] > sizes[1]
    assert sizes[5] > sizes[4]  # float32 prototypes take more than four bits a value


def test_what_stands_for_a_missing_modality_makes_a_difference() -> None:
    some = OnlineProfile(buffer=20, per_round=5, missing=0.7)
    assert len({run(method, some)[0] for method in ("pm", "zf", "qqr_n", "qqr_l")}) == 3  # nothing is poor: qqr_l is pm
    poor = OnlineProfile(buffer=20, per_round=5, degraded=0.9)
    assert run("qqr_l", poor)[0] != run("pm", poor)[0]


def test_prototypes_are_built_every_dl_rounds() -> None:
    some = OnlineProfile(buffer=20, per_round=5, missing=0.5)
    assert run("qqr", some, delay=4)[1] < run("qqr", some, delay=1)[1]
