"""DivFL+ME: clients chosen as DivFL does, trained with the modal enhancement of BMSFed.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection", ECCV 2024,
arXiv:2401.00403, a row of its ablation: `divfl` and `fedavg_me` are its halves, and say what each computes.

    before round 1   every device trains one epoch with modal enhancement and answers with its change g_k
    client           as FedAvg+ME, with the global prototypes
    server           facility location on ‖g_j − g_k‖ as DivFL; weights as FedAvg; prototypes as FedAvg+ME
"""

from __future__ import annotations

from edge_sdk.methods import divfl, fedavg_me
from edge_sdk.methods.base import Method
from edge_sdk.methods.pmr import UPLOADS


class Config(divfl.Config, fedavg_me.Config):
    """Options of DivFL and of modal enhancement."""


class Client(fedavg_me.Client[Config], divfl.Client[Config]):
    """Trains with modal enhancement; answers with the change of one epoch."""


class Server(fedavg_me.Server[Config], divfl.Server[Config]):
    """Keeps prototypes; selects by facility location."""


METHOD = Method(
    "divfl_me", Config, Client, Server, "arXiv:2401.00403", UPLOADS, answers=divfl.ANSWERS, sends=("prototypes",)
)  # fmt: skip

__all__ = ["METHOD", "Client", "Config", "Server"]
