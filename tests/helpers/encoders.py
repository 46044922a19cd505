"""Encoders that the SDK does not offer, to try what an exporter has to withstand."""

from __future__ import annotations

import torch
from torch import nn

from edge_sdk.core.spec import ModalitySpec


class BatchNormCnn(nn.Module):
    """BatchNorm in every place: before a layer, behind convolutions and linear layers, and beside a second reader."""

    def __init__(self, modality: ModalitySpec, feature_dim: int) -> None:
        super().__init__()
        channels = modality.shape[0]
        self.before = nn.BatchNorm1d(channels)  # nothing in front to fold into
        self.first = nn.Conv1d(channels, 8, 5, padding=2, bias=False)
        self.first_norm = nn.BatchNorm1d(8, eps=1e-3)
        self.second = nn.Conv1d(8, 12, 3, stride=2, padding=1, groups=2)
        self.second_norm = nn.BatchNorm1d(12)
        self.third = nn.Conv1d(12, 12, 3, padding=1)
        self.third_norm = nn.BatchNorm1d(12)  # its convolution is read twice: cannot be folded
        self.out = nn.Linear(12, feature_dim)
        self.out_norm = nn.BatchNorm1d(feature_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) -> (B, D)."""
        h = torch.relu(self.first_norm(self.first(self.before(x))))
        h = torch.relu(self.second_norm(self.second(h)))
        h = self.third(h)
        h = torch.relu(self.third_norm(h) + h).mean(-1)
        return torch.tanh(self.out_norm(self.out(h)))


class Forgetful(nn.Module):
    """Computes something from its weights once, when it is switched to evaluation: an export would freeze that."""

    doubled: torch.Tensor

    def __init__(self, modality: ModalitySpec, feature_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(feature_dim, modality.shape[0]))
        self.register_buffer("doubled", torch.zeros(feature_dim, modality.shape[0]), persistent=False)

    def train(self, mode: bool = True) -> Forgetful:
        """Keeps a copy for evaluation."""
        with torch.no_grad():
            self.doubled.copy_(2 * self.weight)
        super().train(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) -> (B, D)."""
        return torch.tanh(x.mean(-1) @ self.doubled.T + self.weight.sum())


class Eigenvalues(nn.Module):
    """Uses an operator that ONNX does not have."""

    def __init__(self, modality: ModalitySpec, feature_dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(modality.shape[0], feature_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) -> (B, D)."""
        return torch.relu(self.out(torch.linalg.eigvalsh(x @ x.transpose(1, 2))))


class TwoDimensional(nn.Module):
    """A layer applied to every time step, whose transposed weight the exporter would like to fold."""

    def __init__(self, modality: ModalitySpec, feature_dim: int) -> None:
        super().__init__()
        self.step = nn.Linear(modality.shape[0], feature_dim)
        self.gate = nn.Parameter(torch.tensor(0.5))  # a scalar

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L) -> (B, D)."""
        h: torch.Tensor = torch.tanh(self.step(x.transpose(1, 2))).amax(1) * (1 + self.gate) ** 2
        return h


__all__ = ["BatchNormCnn", "Eigenvalues", "Forgetful", "TwoDimensional"]
