"""What `--stack` and `--train-on` take, and where `auto` stacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coordinator.cli import main
from coordinator.simulation import stacking
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import FederationSpec, ModalitySpec, TrainingSpec


def spec(*shapes: tuple[int, ...], batch: int, **modality: Any) -> FederationSpec:
    modalities = tuple(ModalitySpec(name=f"m{i}", shape=shape, **modality) for i, shape in enumerate(shapes))
    return FederationSpec(
        name="x", modalities=modalities, classes=("a", "b"), training=TrainingSpec(batch_size=batch)
    )  # fmt: skip


def test_auto_stacks_where_it_was_seen_to_pay() -> None:
    assert stacking.size("auto", spec((3, 128), (24,), batch=32)) == stacking.MOST
    assert stacking.size("auto", spec((3, 128), (24,), batch=64)) == 1
    assert stacking.size("auto", spec((3, 128), (561,), batch=8)) == 1  # one that does not pay is enough
    assert stacking.size("auto", spec((1, 28, 28), batch=8)) == stacking.MOST
    assert stacking.size("auto", spec((1, 28, 28), batch=32)) == 1
    assert stacking.size("auto", spec((3, 33, 33), batch=8, encoder="resnet18")) == 1
    assert stacking.size("auto", spec((24,), batch=8, encoder_config={"hidden": 4096})) == 1  # not measured
    assert stacking.size("12", spec((561,), batch=64)) == 12
    assert stacking.size("auto", spec((561,), batch=64), "cuda") == stacking.MOST


@pytest.mark.parametrize("stack", ["0", "-1", "many", "1.5", ""])
def test_a_stack_is_a_number_or_auto(stack: str) -> None:
    with pytest.raises(ConfigError, match="--stack must be auto or at least 1, found"):
        stacking.check(stack, "cpu")


@pytest.mark.parametrize("place", ["gpu", "cpu:1", "cuda:", "cuda:x"])
def test_a_place_is_one_of_torch(place: str) -> None:
    with pytest.raises(ConfigError, match="--train-on must be cpu, cuda or cuda:NUMBER"):
        stacking.check("auto", place)


def test_a_gpu_needs_stacks_and_has_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="needs --stack N"):
        stacking.check("1", "cuda")
    beyond = f"cuda:{torch.cuda.device_count()}"
    said = f"--train-on {beyond}: torch finds {torch.cuda.device_count()} GPUs here"
    with pytest.raises(ConfigError, match=said):
        stacking.check("8", beyond)
    words = ["simulate", "--dataset", "synthetic", "--quick", "--stack", "8", "--train-on", beyond]
    assert main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_flag_reaches_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--dataset", "synthetic", "--method", "fedavg", "--devices", "8", "--rate", "1", "--updates"]
    words += ["8", "--epochs", "1", "--partition", "iid", "--profile", "instant"]

    def digest(*flags: str) -> str:
        assert main([*words, *flags]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if "digest" in line)

    assert digest("--stack", "8") == digest("--stack", "8", "--workers", "1") != digest()
