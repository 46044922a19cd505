"""A method of your own: the server trusts clients the more, the closer their update stays to the model they began with.

    python examples/own_method.py

A method is a client rule, a server rule and an entry point in your package's pyproject.toml:

    [project.entry-points."edge_sdk.methods"]
    cautious = "own_method:METHOD"

This file makes that entry point itself, so that it runs as it stands.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from pydantic import Field

from coordinator.cli import main
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, params
from edge_sdk.learn.records import Cohort, Member, State, Weights
from edge_sdk.methods.base import ClientRule, Method, SyncServerRule


class Config(Model):
    """Options of the method."""

    sharpness: float = Field(default=1.0, ge=0)  # 0 is FedAvg


class Client(ClientRule[Config]):
    """Plain training of the fused model."""


class Server(SyncServerRule[Config]):
    """Weights n_k · exp(−sharpness · ‖θ_k − θ‖)."""

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        def trust(member: Member) -> float:
            distance = params.norm(params.delta(member.tensors, cohort.start))
            return member.num_samples * float(np.exp(-self.config.sharpness * distance))

        return aggregation.modality_wise(cohort, trust), {}


METHOD = Method("cautious", Config, Client, Server, source="examples/own_method.py")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "cautious-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cautious\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[edge_sdk.methods]\ncautious = own_method:METHOD\n")
        sys.path[:0] = [folder, str(Path(__file__).parent)]
        sys.exit(main(["simulate", "--dataset", "uci_har", "--method", "cautious", "--devices", "4", "--quick"]))
