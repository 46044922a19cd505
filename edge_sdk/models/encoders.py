"""Encoders: one window of one modality (B, *shape) -> feature (B, D).

Small enough for a board's CPU, and normalised by GroupNorm: it keeps no running statistics, which a server that mixes
models of different devices would have to average (with BatchNorm, accuracy was seen to swing between 0.40 and 0.87
from version to version, with GroupNorm between 0.78 and 0.86). Each encoder standardises its input itself with the
federation's mean and standard deviation, constants of the spec and therefore not part of the federated tensors.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import ModalitySpec


class Standardise(nn.Module):
    """Returns (x − mean) / std per channel (or feature), constants of the spec.

    Raises:
        ConfigError: mean or std has another length than the modality has channels, or a std is not positive.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, modality: ModalitySpec) -> None:
        super().__init__()
        channels, trailing = modality.shape[0], (1,) * (len(modality.shape) - 1)
        for what, values in (("mean", modality.mean), ("std", modality.std)):
            if len(values) not in (0, channels):
                raise ConfigError(f"modality {modality.name}: {what} needs {channels} values, found {len(values)}")
        if any(not s > 0 for s in modality.std):
            raise ConfigError(f"modality {modality.name}: every std must be positive, found {list(modality.std)}")
        mean = torch.tensor(modality.mean or (0.0,) * channels).view(channels, *trailing)
        scale = 1.0 / torch.tensor(modality.std or (1.0,) * channels).view(channels, *trailing)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, …) -> (B, C, …)."""
        return (x - self.mean) * self.scale


def groups(channels: int) -> int:
    """Returns the largest number of groups up to 8 that divides the channels and leaves at least 4 in each.

    A group of one value has no variance: training it on a single row is an error, and its output a constant.
    """
    return next(g for g in range(max(1, min(8, channels // 4)), 0, -1) if channels % g == 0)


def at_least(least: int, name: str, **sizes: int) -> None:
    """Raises ConfigError if one of a modality's encoder_config sizes is smaller than `least`."""
    for key, value in sizes.items():
        if value < least:
            raise ConfigError(f"modality {name}: encoder_config.{key} must be at least {least}, found {value}")


def dims(modality: ModalitySpec, wanted: int, layout: str) -> None:
    """Raises ConfigError if the modality's shape has not `wanted` dimensions."""
    if len(modality.shape) != wanted:
        raise ConfigError(f"modality {modality.name}: expected a shape {layout}, found {modality.shape}")


class Staged(nn.Module):
    """An encoder that can be cut between its blocks: forward is `enter`, then `blocks` in order, then `close`."""

    widths: tuple[int, ...]  # channels behind each block

    @abstractmethod
    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what the first block takes, of a window (B, *shape)."""

    @abstractmethod
    def blocks(self) -> tuple[nn.Module, ...]:
        """Returns the blocks, each (B, C, …) -> (B, C', …)."""

    @abstractmethod
    def close(self, h: torch.Tensor) -> torch.Tensor:
        """Returns features (B, D) of what the last block gave."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, *shape) -> (B, D)."""
        h = self.enter(x)
        for block in self.blocks():
            h = block(h)
        return self.close(h)


class _Cnn(Staged):
    """Standardised input, and a body of blocks."""

    standardise: Standardise
    body: nn.Sequential

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.standardise(x)
        return h

    def blocks(self) -> tuple[nn.Module, ...]:
        return tuple(self.body)


class Cnn1d(_Cnn):
    """Convolutional encoder of time series (C, L): three strided convolutions, then mean and maximum over time.

    Args:
        modality: shape (channels, length).
        feature_dim: D.
        width: channels of the first layer; the later ones have twice as many.
        kernel: samples that a convolution of the later layers sees.
    """

    def __init__(self, modality: ModalitySpec, feature_dim: int, *, width: int = 24, kernel: int = 5) -> None:
        super().__init__()
        dims(modality, 2, "(channels, length)")
        at_least(1, modality.name, width=width, kernel=kernel)
        wide = 2 * width
        self.standardise = Standardise(modality)
        self.body = nn.Sequential(
            _block1d(modality.shape[0], width, kernel=kernel + 4, stride=4),
            _block1d(width, wide, kernel=kernel, stride=2),
            _block1d(wide, wide, kernel=kernel, stride=2),
        )
        self.widths = (width, wide, wide)
        self.out = nn.Linear(2 * wide, feature_dim)

    def close(self, h: torch.Tensor) -> torch.Tensor:
        """(B, W, T) -> (B, D)."""
        h = torch.cat([h.mean(-1), h.amax(-1)], dim=1)  # (B, W, T) -> (B, 2W)
        return torch.relu(self.out(h))  # (B, 2W) -> (B, D)


def _block1d(channels: int, width: int, *, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv1d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(groups(width), width), nn.ReLU())


class Cnn2d(_Cnn):
    """Convolutional encoder of images (C, H, W): four convolutions, then the mean over the image.

    Args:
        modality: shape (channels, height, width).
        feature_dim: D.
        width: channels of the first layer, doubled by every second one.
    """

    def __init__(self, modality: ModalitySpec, feature_dim: int, *, width: int = 16) -> None:
        super().__init__()
        dims(modality, 3, "(channels, height, width)")
        at_least(1, modality.name, width=width)
        self.standardise = Standardise(modality)
        self.body = nn.Sequential(
            _block2d(modality.shape[0], width, stride=2),
            _block2d(width, 2 * width, stride=2),
            _block2d(2 * width, 2 * width, stride=1),
            _block2d(2 * width, 4 * width, stride=2),
        )
        self.widths = (width, 2 * width, 2 * width, 4 * width)
        self.out = nn.Linear(4 * width, feature_dim)

    def close(self, h: torch.Tensor) -> torch.Tensor:
        """(B, 4·width, H, W) -> (B, D)."""
        return torch.relu(self.out(h.mean((-2, -1))))  # (B, 4·width) -> (B, D)


def _block2d(channels: int, width: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(groups(width), width), nn.ReLU())


class Mlp(nn.Module):
    """Encoder of feature vectors (F,): two linear layers with a normalised hidden one.

    Args:
        modality: shape (features,).
        feature_dim: D.
        hidden: hidden units.
    """

    def __init__(self, modality: ModalitySpec, feature_dim: int, *, hidden: int = 64) -> None:
        super().__init__()
        dims(modality, 1, "(features,)")
        at_least(2, modality.name, hidden=hidden)
        self.standardise = Standardise(modality)
        self.body = nn.Sequential(
            nn.Linear(modality.shape[0], hidden),
            nn.GroupNorm(groups(hidden), hidden),
            nn.ReLU(),
            nn.Linear(hidden, feature_dim),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, F) -> (B, D)."""
        h: torch.Tensor = self.body(self.standardise(x))
        return h


__all__ = ["Cnn1d", "Cnn2d", "Mlp", "Staged", "Standardise", "at_least", "dims", "groups"]
