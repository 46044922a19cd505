"""Simulated federations: they learn, they repeat themselves to the bit, and the two clocks agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.cli import main
from coordinator.preparation import Split, spec_of, split
from coordinator.simulation.commands import options
from coordinator.simulation.profiles import ARRIVALS, BOARDS, Arrivals, Board, WorldProfile
from coordinator.simulation.report import last_median
from coordinator.simulation.simulate import Simulation, World
from edge_sdk import datasets
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import FederationSpec, TrainingSpec


def small(method: str = "mba", rows: int = 240) -> tuple[FederationSpec, Split]:
    data = datasets.select("uci_har")
    thin = data.take(np.arange(0, len(data.y), len(data.y) // rows))
    cut = split(thin, seed=1)
    training = TrainingSpec(lr=0.05, epochs=1, batch_size=32)
    return spec_of(cut.train, name="small", method=method, training=training), cut


def test_a_federation_learns_and_counts_everything() -> None:
    spec, cut = small()
    report = Simulation(spec, cut, World(devices=4, updates=24, seed=1, fraction=0.5, evaluate_every=4)).run()
    assert report.updates == 24
    assert report.acc > 0.4  # 1/6 is chance
    assert set(report.acc_by_modality) == {"acc", "gyro"}
    assert report.virtual_seconds > 300 * 24 / 2 / 2  # a round waits 300 s; two devices are busy at a time
    assert report.mean_staleness == pytest.approx(1.0, abs=0.2)  # two at a time: the other one's update lies between
    parameters = 4 * sum(s.params.size for s in _tensors(spec).values())
    assert 0 < report.bytes_up < 24 * parameters / 3  # int8 and zstd: a quarter and less, headers included
    assert report.bytes_down > 24 * 0.5 * parameters  # float32 and zstd
    assert report.rejected == 0
    assert [p.version for p in report.curve][-1] == 24


def _tensors(spec: FederationSpec) -> dict[str, object]:
    from edge_sdk.learn.records import Needs
    from edge_sdk.models import build

    return dict(build.initial_tensors(spec, Needs(), 0))


def test_the_same_seed_gives_the_same_digest_whatever_the_number_of_workers() -> None:
    """Invariant 14."""
    spec, cut = small()
    world = World(devices=4, updates=10, seed=3, fraction=1.0, evaluate_every=5)
    one = Simulation(spec, cut, world).run()
    two = Simulation(spec, cut, replace(world, workers=2)).run()
    other = Simulation(spec, cut, replace(world, seed=4)).run()
    assert one.digest == two.digest
    assert one.applied == two.applied
    assert one.curve == two.curve
    assert (one.bytes_up, one.bytes_down) == (two.bytes_up, two.bytes_down)
    assert other.digest != one.digest


# Training takes longer than models and data take to come: most of the time all are at it, some longer than others.
STACKED = WorldProfile(board=Board(sample_s=0.02, slow_factor=1.5), arrivals=ARRIVALS["together"])
SIX = World(devices=6, updates=12, seed=3, partition="iid", fraction=1.0, evaluate_every=4, profile=STACKED)


@pytest.mark.parametrize("method", ["fedavg", "abc_async", "mba"])
def test_devices_trained_as_one_computation_learn_the_same(method: str) -> None:
    """float32 sums are taken in another order, so that the digest is not the one without."""
    spec, cut = small(method)
    alone, one = (Simulation(spec, cut, replace(SIX, stack=stack)).run() for stack in (1, 6))
    assert one.digest != alone.digest
    assert one.applied == alone.applied
    assert [p.acc for p in one.curve] == pytest.approx([p.acc for p in alone.curve], abs=0.03)


def test_devices_trained_as_one_computation_give_one_digest_whatever_the_number_of_workers() -> None:
    spec, cut = small("abc_async")
    one, two = (Simulation(spec, cut, replace(SIX, stack=6, workers=workers)).run() for workers in (1, 2))
    assert one.digest == two.digest
    assert (one.applied, one.curve) == (two.applied, two.curve)


def test_a_method_that_cannot_be_stacked_keeps_its_digest() -> None:
    spec, cut = small("fedprox")
    assert Simulation(spec, cut, SIX).run().digest == Simulation(spec, cut, replace(SIX, stack=6)).run().digest


def test_mba_without_its_two_terms_is_fedasync_to_the_bit() -> None:
    """Invariant 1."""
    spec, cut = small("fedasync")
    ablated = spec.model_copy(
        update={"method": spec.method.model_copy(update={"name": "mba", "config": {"beta": 0.0, "gamma": 0.0}})}
    )
    # anchors that cost time would change the order of uploads
    world = World(
        devices=4, updates=12, seed=2, fraction=0.5, profile=WorldProfile(board=BOARDS["instant"]), evaluate_every=4
    )
    assert Simulation(spec, cut, world).run().digest == Simulation(ablated, cut, world).run().digest


def test_wall_clock_and_virtual_clock_apply_the_same_updates_in_the_same_order() -> None:
    spec, cut = small(rows=160)
    # Modelled durations of minutes, a thousand times as fast: events lie well over 50 ms of real time apart.
    profile = WorldProfile(
        arrivals=Arrivals(delay_s=400.0, bandwidth_low_kbps=0.2, bandwidth_high_kbps=0.8), board=Board(sample_s=2e-2)
    )
    world = World(devices=4, updates=8, seed=1, fraction=1.0, profile=profile, evaluate_every=100)
    virtual = Simulation(spec, cut, world).run()
    wall = Simulation(spec, cut, world).run_on_wall_clock(speed=250.0)
    gaps = np.diff([a.virtual_s for a in virtual.applied]) / 250.0
    assert gaps.min() > 0.05, f"the world is too dense to be told apart on a noisy machine: {gaps}"
    assert _order(wall) == _order(virtual)
    assert wall.digest == virtual.digest


def _order(report: object) -> list[tuple[str, int, int]]:
    return [(a.device, a.sequence, a.base) for a in report.applied]  # type: ignore[attr-defined]


def test_a_client_without_a_modality_still_takes_part(tmp_path: Path) -> None:
    spec, cut = small()
    assert cut.train.subject is not None
    has = dict(cut.train.has)
    has["gyro"] = ~np.isin(cut.train.subject, np.unique(cut.train.subject)[::4])  # device 0 has no gyroscope
    train = replace(cut.train, has=has)
    world = World(devices=4, updates=12, seed=1, fraction=1.0, partition="subject")
    report = Simulation(spec, Split(train, cut.test), world).run()
    assert "device-0" in {a.device for a in report.applied}
    assert np.isfinite(report.acc)


@pytest.mark.parametrize("case", ["half", "skewed"])
def test_clients_that_lack_modalities_send_only_what_they_have(case: str) -> None:
    data = split(datasets.select("synthetic:triple", seed=1), 1)
    data = Split(data.train.take(np.arange(0, 1600, 4)), data.test)
    spec = spec_of(data.train, name="incongruous", method="fedasync", training=TrainingSpec(epochs=1))
    whole, lacking = World(devices=6, updates=12, seed=1), World(devices=6, updates=12, seed=1, ownership=case)
    reports = [Simulation(spec, data, world).run() for world in (whole, lacking, lacking)]
    assert [r.rejected for r in reports] == [0, 0, 0]
    assert [r.updates for r in reports] == [12, 12, 12]
    assert reports[0].digest != reports[1].digest == reports[2].digest
    assert reports[1].bytes_up < 0.95 * reports[0].bytes_up  # no encoder of what a client does not have


@pytest.mark.parametrize("method", ["fed_g_blend_async", "fedhgb"])
def test_a_method_that_holds_rows_out_says_when_a_device_has_too_few(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,920 training rows over 600 devices: three or four each, of which a fifth is held out."""
    command = ["simulate", "--dataset", "synthetic", "--partition", "iid", "--updates", "4", "--profile", "instant"]
    assert main([*command, "--method", method, "--devices", "600"]) == 2
    said = capsys.readouterr().err
    assert "holds out 0.2 of a device's rows for validation, and device-" in said
    assert "has only 3: use fewer devices" in said
    assert main([*command, "--method", "mba", "--devices", "2000"]) == 2
    assert "2000 devices but only 1920 training rows" in capsys.readouterr().err


def test_the_command_writes_the_keys_that_others_rely_on(tmp_path: Path) -> None:
    data = datasets.select("synthetic")
    file, out = tmp_path / "mine.npz", tmp_path / "out.json"
    rows = np.arange(0, len(data.y), max(1, len(data.y) // 200))
    arrays = {f"x_{m}": a[rows] for m, a in data.x.items()}
    np.savez(file, y=np.array(data.classes)[data.y[rows]], **arrays)
    command = ["simulate", "--dataset", str(file), "--method", "mba", "--devices", "4", "--updates", "6", "--seed", "1"]
    assert main([*command, "--quick", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    wanted = (
        "method dataset seed devices updates acc acc_by_modality virtual_seconds wall_seconds bytes_up bytes_down "
        "mean_staleness digest acc_median"
    )
    assert set(wanted.split()) <= set(report)
    assert report["updates"] == 6
    assert 0 <= report["acc"] <= 1
    assert set(report["acc_by_modality"]) == set(data.modalities)
    assert len(report["digest"]) == 32


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset", "nowhere"], "nowhere"),
        (["--dataset", "uci_har", "--method", "alchemy"], "alchemy"),
        (["--dataset", "uci_har", "--devices", "0"], "--devices"),
        (["--dataset", "uci_har", "--rate", "2"], "--rate"),
        (["--dataset", "uci_har", "--batch", "0"], "--batch"),
        (["--dataset", "uci_har", "--features", "0"], "--features"),
        (["--dataset", "uci_har", "--seed", "-1"], "--seed"),
        (["--dataset", "uci_har", "--lr", "-1"], "training:lr"),
        (["--dataset", "uci_har", "--option", "gama=1"], "gama"),
        (["--dataset", "uci_har", "--partition", "moon"], "moon"),
        (["--dataset", "uci_har", "--modalities", "acc,lidar"], "lidar"),
        (["--dataset", "uci_har", "--modalities", "acc", "--ownership", "half"], "at least two modalities"),
        (["--dataset", "cg_mnist:n=x"], "cg_mnist:n=x:n"),
        (["--dataset", "uci_har", "--devices", "100000"], "100000 devices"),
        (["--dataset", "uci_har", "--data", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--updates", "4", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_options_nest_and_are_json_where_they_can_be() -> None:
    assert options(["beta=0.2", "client.kind=a", "flag=true"]) == {"beta": 0.2, "client": {"kind": "a"}, "flag": True}
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        options(["beta"])
    with pytest.raises(ConfigError, match="client has a value already"):
        options(["client=a", "client.kind=b"])


def test_the_median_looks_at_the_last_twenty() -> None:
    assert last_median([0.0] * 50 + [1.0] * 11 + [0.0] * 9) == 1.0
    assert np.isnan(last_median([]))
