"""Which devices are trained as one computation (`--stack`), and where (`--train-on`).

On a CPU it pays where a step is many small operations with little arithmetic in each (docs/benchmarks.md). A GPU was
not at hand: there `auto` stacks whatever can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.models.build import AUTO

MOST = 32  # devices in one computation where `auto` decides
CPU = "cpu"

# encoder → (positions of a window, batch size) up to which 8 devices were some 1.3 times as fast together, or more;
# positions: features of a vector, samples of a series, pixels of an image
PAYS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "mlp": ((64, 64),), "cnn1d": ((128, 32),), "cnn2d": ((144, 32), (784, 8)),
}  # fmt: skip


def check(stack: str, train_on: str) -> None:
    """Raises ConfigError if the flags say nothing, contradict each other, or ask for a GPU that is not there."""
    if stack != "auto" and not (stack.isdecimal() and int(stack) >= 1):
        raise ConfigError(f"--stack must be auto or at least 1, found {stack}")
    kind, colon, number = train_on.partition(":")
    if kind not in (CPU, "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"--train-on must be cpu, cuda or cuda:NUMBER, found {train_on}")
    if kind == CPU:
        return
    if stack == "1":
        raise ConfigError("--train-on cuda needs --stack N or --stack auto: devices are trained there together, or not")
    if int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--train-on {train_on}: torch finds {torch.cuda.device_count()} GPUs here; train on cpu")


def size(stack: str, spec: FederationSpec, train_on: str = CPU) -> int:
    """Returns how many devices are trained as one computation, at most; 1: each by itself."""
    if stack != "auto":
        return int(stack)
    return MOST if train_on != CPU or all(pays(m, spec.training.batch_size) for m in spec.modalities) else 1


def pays(modality: ModalitySpec, batch_size: int) -> bool:
    """Returns True if stacked training of the modality's encoder was seen to be worth it on a CPU."""
    encoder = AUTO[len(modality.shape)] if modality.encoder == "auto" else modality.encoder
    positions = prod(modality.shape[1:] or modality.shape)
    measured = () if modality.encoder_config else PAYS.get(encoder, ())  # in their usual sizes
    return any(positions <= p and batch_size <= b for p, b in measured)


__all__ = ["CPU", "MOST", "PAYS", "check", "pays", "size"]
