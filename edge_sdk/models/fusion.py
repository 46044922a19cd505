"""Fusion classifiers ψ: features of the modalities that are there -> logits.

A modality that is not there has zero features (not zero input): for the linear fusion the logits of
any subset are then b plus the sum of that subset's blocks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own idiom)


def two_layers(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """Returns two linear layers with ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Fusion(nn.Module):
    """Base of fusion classifiers.

    Args:
        modalities: names in the order of the spec.
        feature_dim: D, the same for every modality.
        num_classes: C.
    """

    def __init__(self, modalities: tuple[str, ...], feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.feature_dim = feature_dim
        self.num_classes = num_classes

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, M·D) -> logits (B, C)."""
        raise NotImplementedError

    def unimodal_logits(self, modality: str, h: torch.Tensor) -> torch.Tensor:
        """Returns ψ(0, …, h_m, …, 0): features (B, D) of one modality -> logits (B, C)."""
        start = self.modalities.index(modality) * self.feature_dim
        rest = len(self.modalities) * self.feature_dim - start - self.feature_dim
        logits: torch.Tensor = self(F.pad(h, (start, rest)))  # (B, D) -> (B, M·D)
        return logits

    def reading(self, modality: str) -> list[tuple[torch.Tensor, slice]]:
        """Returns the weights that read one modality, and which of their last dimension's entries do."""
        start = self.modalities.index(modality) * self.feature_dim
        return [(self.first(), slice(start, start + self.feature_dim))]

    def first(self) -> torch.Tensor:
        """Returns the weight (…, M·D) that the features meet first."""
        raise NotImplementedError


class LinearFusion(Fusion):
    """One linear layer, logits = Σ_m W_m h_m + b."""

    def __init__(self, modalities: tuple[str, ...], feature_dim: int, num_classes: int) -> None:
        super().__init__(modalities, feature_dim, num_classes)
        self.linear = nn.Linear(len(modalities) * feature_dim, num_classes)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, M·D) -> (B, C)."""
        logits: torch.Tensor = self.linear(h)
        return logits

    def first(self) -> torch.Tensor:
        return self.linear.weight

    def block(self, modality: str) -> torch.Tensor:
        """Returns W_m (C, D), a view of the live weight."""
        ((weight, columns),) = self.reading(modality)
        return weight[:, columns]

    def unimodal_logits(self, modality: str, h: torch.Tensor) -> torch.Tensor:
        """Returns W_m h_m + b/M; they sum to the fused logits."""
        return F.linear(h, self.block(modality), self.linear.bias / len(self.modalities))


class MlpFusion(Fusion):
    """Two linear layers with ReLU between them."""

    def __init__(
        self, modalities: tuple[str, ...], feature_dim: int, num_classes: int, *, hidden: int = 512
    ) -> None:  # fmt: skip
        super().__init__(modalities, feature_dim, num_classes)
        self.layers = two_layers(len(modalities) * feature_dim, num_classes, hidden)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, M·D) -> (B, C)."""
        logits: torch.Tensor = self.layers(h)
        return logits

    def first(self) -> torch.Tensor:
        return next(self.layers.parameters())


class CosineFusion(Fusion):
    """Class vectors on the unit sphere: logits = s · cos(h, w_j), no bias."""

    def __init__(self, modalities: tuple[str, ...], feature_dim: int, num_classes: int) -> None:
        super().__init__(modalities, feature_dim, num_classes)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(num_classes, len(modalities) * feature_dim)))
        self.scale = nn.Parameter(torch.tensor([20.0]))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, M·D) -> (B, C)."""
        return self.scale * F.linear(F.normalize(h, dim=1), F.normalize(self.weight, dim=1))

    def first(self) -> torch.Tensor:
        return self.weight


class LateFusion(Fusion):
    """One linear head per modality, logits = mean of what the heads say; of an absent modality that is its bias."""

    def __init__(self, modalities: tuple[str, ...], feature_dim: int, num_classes: int) -> None:
        super().__init__(modalities, feature_dim, num_classes)
        self.heads = nn.ModuleList(nn.Linear(feature_dim, num_classes) for _ in modalities)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, M·D) -> (B, C)."""
        parts = torch.split(h, self.feature_dim, dim=1)  # M × (B, D)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)]).mean(dim=0)

    def own_logits(self, modality: str, h: torch.Tensor) -> torch.Tensor:
        """Returns what the head of one modality says of its features: (B, D) -> (B, C)."""
        logits: torch.Tensor = self.heads[self.modalities.index(modality)](h)
        return logits

    def reading(self, modality: str) -> list[tuple[torch.Tensor, slice]]:
        return [(p, slice(None)) for p in self.heads[self.modalities.index(modality)].parameters()]


__all__ = ["CosineFusion", "Fusion", "LateFusion", "LinearFusion", "MlpFusion", "two_layers"]
