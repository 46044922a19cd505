"""ResNet-18 for images and spectrograms, with torchvision's names, so that its checkpoints load.

Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, table 1, option B.
Differs from the source: the input may have any number of channels, the classifier is replaced by a projection to the
federation's feature size (left out where the sizes agree), and GroupNorm may take the place of BatchNorm, under the
names of BatchNorm: with it nothing has to be averaged over devices but weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import ModalitySpec
from edge_sdk.models.encoders import Staged, Standardise, at_least, dims, groups
from edge_sdk.models.pretrained import Pretrained, put, read_checkpoint

Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": lambda width: nn.GroupNorm(groups(width), width)}


class _Block(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut: (B, C, H, W) -> (B, W', H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = nn.Sequential()  # torchvision has no tensors here either where the shapes agree
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), norm(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.downsample(x))


class ResNet18(Pretrained, Staged):
    """Residual network of 18 layers: (B, C, H, W) -> (B, D).

    Args:
        modality: shape (channels, height, width).
        feature_dim: D; 8 · width needs no projection.
        width: channels of the first layer, doubled three times.
        norm: "batch" (the source's, running statistics travel as stats) or "group" (none).
        weights: checkpoint of torchvision's ResNet-18, `.safetensors` or `torch.save`, read for version 0; "": random.
    """

    def __init__(
        self, modality: ModalitySpec, feature_dim: int, *, width: int = 64, norm: str = "batch", weights: str = ""
    ) -> None:
        super().__init__()
        dims(modality, 3, "(channels, height, width)")
        at_least(1, modality.name, width=width)
        self._where = f"modality {modality.name}: encoder_config.weights"
        self._weights = weights
        if norm not in NORMS:
            raise ConfigError(
                f"modality {modality.name}: encoder_config.norm must be {' or '.join(NORMS)}, found {norm!r}"
            )
        if weights and norm != "batch":
            raise ConfigError(f"{self._where}: torchvision's values belong to norm = 'batch', found {norm!r}")
        make = NORMS[norm]
        self.standardise = Standardise(modality)
        self.conv1 = nn.Conv2d(modality.shape[0], width, 7, stride=2, padding=3, bias=False)
        self.bn1 = make(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_Block(width, width, 1, make), _Block(width, width, 1, make))
        self.layer2 = nn.Sequential(_Block(width, 2 * width, 2, make), _Block(2 * width, 2 * width, 1, make))
        self.layer3 = nn.Sequential(_Block(2 * width, 4 * width, 2, make), _Block(4 * width, 4 * width, 1, make))
        self.layer4 = nn.Sequential(_Block(4 * width, 8 * width, 2, make), _Block(8 * width, 8 * width, 1, make))
        self.widths = (width, 2 * width, 4 * width, 8 * width)
        self.out = nn.Identity() if feature_dim == 8 * width else nn.Linear(8 * width, feature_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, width, H/4, W/4)."""
        h: torch.Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(self.standardise(x)))))
        return h

    def blocks(self) -> tuple[nn.Module, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def close(self, h: torch.Tensor) -> torch.Tensor:
        """(B, 8·width, H/32, W/32) -> (B, D)."""
        return torch.relu(self.out(h.mean((-2, -1))))  # (B, 8·width) -> (B, D); without projection it is ≥ 0 already

    def load_weights(self) -> None:
        if not self._weights:
            return
        values = read_checkpoint(Path(self._weights), self._where)
        if "conv1.weight" in values:
            values["conv1.weight"] = _for_channels(values["conv1.weight"], self.conv1.in_channels)
        put(self, values, f"{self._where}: {self._weights}", own=("out",))


def _for_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns a first convolution for another number of input channels, (W, C, k, k) -> (W, channels, k, k).

    Its answer to an image whose channels are all alike stays what it was.
    """
    if weight.shape[1] == channels:
        return weight
    return weight.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels


__all__ = ["NORMS", "ResNet18"]
