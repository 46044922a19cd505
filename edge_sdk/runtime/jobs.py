"""Jobs of the training child: module-level functions with plain records, so that they can cross a process border."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from edge_sdk.core import registry
from edge_sdk.core.errors import TrainingError
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import local_training, stacked_training
from edge_sdk.learn.records import FusedModel, Needs, PhaseJob, PhaseResult
from edge_sdk.methods.base import ClientRule, find
from edge_sdk.models import build

_models: dict[tuple[str, Needs], FusedModel] = {}  # of this process; building one costs more than a short phase


def run_phase(job: PhaseJob) -> PhaseResult:
    """Trains one phase and returns what it made."""
    return local_training.train(job, *_hands(job))


def run_phases(jobs: Sequence[tuple[PhaseJob]], place: str = "cpu") -> list[PhaseResult | TrainingError]:
    """Trains phases with equal keys (`stack_key`) as one computation on a torch device."""
    phases = [job for (job,) in jobs]
    return stacked_training.train(phases, *_hands(phases[0]), place) if phases else []


def stack_key(job: PhaseJob) -> Hashable | None:
    """Returns what phases must have in common to be trained in one computation; None: this one is trained by itself."""
    return stacked_training.key(job, *_hands(job))


def initial(spec: FederationSpec, seed: int) -> ModelTensors:
    """Returns the tensors that a device which trains by itself begins with."""
    method = find(spec.method.name)
    return method.server_rule(spec.method.config, spec).initial(build.initial_tensors(spec, method.needs, seed))


def export_graph(spec: FederationSpec, path: Path) -> None:
    """Writes the inference graph of a spec, and the JSON file that describes it."""
    registry.load("exporters", "onnx")(spec, find(spec.method.name).needs, path)


def _hands(job: PhaseJob) -> tuple[ClientRule[Any], FusedModel]:
    method = find(job.method)
    rule = (method.query_rule if job.phase.asks else method.client_rule)(job.spec.method.config)
    return rule, _model(job.spec, method.needs)


def _model(spec: FederationSpec, needs: Needs) -> FusedModel:
    key = (spec.digest, needs)
    if key not in _models:
        _models.clear()  # a process trains for one federation at a time
        _models[key] = build.build(spec, needs, 0)  # training starts from tensors that come with the job
    return _models[key]


__all__ = ["export_graph", "initial", "run_phase", "run_phases", "stack_key"]
