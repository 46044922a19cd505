"""FedAvg: the synchronous baseline.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv:1602.05629, Algorithm 1.
Differs from the source: aggregation is modality-wise where clients lack modalities, as in BMSFed's code.

    client   E epochs of CE on the fused model with all modalities it owns
    server   K of N clients uniformly without replacement;  θ_b ← Σ_k (n_k / Σ n) θ_{k,b} over those that trained b
"""

from __future__ import annotations

from edge_sdk.learn.records import Phase
from edge_sdk.methods.base import ClientRule, Method, NoConfig, SyncServerRule


class Client(ClientRule[NoConfig]):
    """Plain training of the fused model."""

    def stacks(self, phase: Phase) -> bool:
        return True


class Server(SyncServerRule[NoConfig]):
    """Uniform selection, means weighted by samples."""


METHOD = Method("fedavg", NoConfig, Client, Server, source="arXiv:1602.05629")

__all__ = ["METHOD", "Client", "Server"]
