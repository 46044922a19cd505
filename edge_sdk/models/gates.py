"""What lets modalities see one another before the fusion, and can be made to stop.

    Gates          multi-modal transfer (Joze et al., "MMTM", CVPR 2020) between the blocks of encoders: the channels of
                   every modality are scaled by what all modalities show at that depth
    FeatureMeans   for encoders that cannot be cut: nothing is exchanged before the fusion

Both keep running means of what a modality gets from the others, or gives to them. While `held` names a modality, it
has to learn from its own input: its gates, or the others' features, are replaced by these means. The means travel with
the model as statistics, the numbers of steps behind them as counters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Maps = dict[str, torch.Tensor]


def _key(modality: str) -> str:
    """Returns the modality's key in a ModuleDict, which refuses some names."""
    return f"modality_{modality}"


def _follow(mean: torch.Tensor, steps: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> None:
    """Moves a cumulative mean (F,) and its steps () on by the mean of some rows of (B, F), if there are any."""
    with torch.no_grad():
        if bool(rows.any()):
            steps += 1
            mean += (values.detach()[rows].mean(dim=0) - mean) / steps


class Gate(nn.Module):
    """Channel gates at one depth: squeeze all modalities, excite each.

    Args:
        widths: modality → channels at this depth, all modalities of the spec in order.
    """

    steps: torch.Tensor

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)
        total = sum(widths.values())
        hidden = max(1, total // 2)
        self.squeeze = nn.Linear(total, hidden)
        self.excite = nn.ModuleDict({_key(m): nn.Linear(hidden, width) for m, width in widths.items()})
        for i, width in enumerate(widths.values()):
            self.register_buffer(f"mean_{i}", torch.zeros(width))
        self.register_buffer("steps", torch.zeros(len(widths), dtype=torch.int64))

    def forward(self, maps: Mapping[str, torch.Tensor], mask: torch.Tensor, held: str) -> Maps:
        """Returns the gated maps, (B, C_m, …) each.

        Args:
            maps: modality → (B, C_m, …), any subset of the modalities; absent ones count as zeros.
            mask: float32 (B, M).
            held: the modality whose gates are their running means, or "".
        """
        shown = []
        for i, (m, width) in enumerate(self.widths.items()):
            if m in maps:
                shown.append(maps[m].flatten(2).mean(-1) * mask[:, i : i + 1])  # (B, C_m, …) -> (B, C_m)
            else:
                shown.append(mask.new_zeros(mask.shape[0], width))
        excited = torch.relu(self.squeeze(torch.cat(shown, dim=1)))  # (B, ΣC) -> (B, hidden)
        out = {}
        for i, m in enumerate(self.widths):
            if m in maps:
                gates = torch.sigmoid(self.excite[_key(m)](excited))  # (B, C_m)
                known = m == held and int(self.steps[i]) > 0
                used = self.mean(i).clone().expand_as(gates) if known else gates
                out[m] = maps[m] * used.reshape(*used.shape, *(1 for _ in maps[m].shape[2:]))
                if self.training:
                    _follow(self.mean(i), self.steps[i], gates, mask[:, i] > 0)
        return out

    def mean(self, i: int) -> torch.Tensor:
        """Returns the running mean (C_m,) of the i-th modality's gates."""
        return self.get_buffer(f"mean_{i}")


class Gates(nn.Module):
    """Gates behind all but the first blocks of encoders, as many as the shortest of them has.

    Args:
        widths: modality → channels behind each block of its encoder, in the order of the spec.
    """

    def __init__(self, widths: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.depth = min(map(len, widths.values())) - 1
        self.held = ""
        last = {m: w[-self.depth :] for m, w in widths.items()}
        self.stages = nn.ModuleList(Gate({m: w[k] for m, w in last.items()}) for k in range(self.depth))

    def forward(self, k: int, maps: Mapping[str, torch.Tensor], mask: torch.Tensor) -> Maps:
        """Returns the maps behind the k-th gate."""
        gated: Maps = self.stages[k](maps, mask, self.held)
        return gated

    def weights(self, modality: str) -> list[nn.Parameter]:
        """Returns the weights that gate a modality, those that it shares with the others included."""
        parts = [part for g in self.stages for part in (g.get_submodule("squeeze"), _excite(g, modality))]
        return [p for part in parts for p in part.parameters()]


def _excite(gate: nn.Module, modality: str) -> nn.Module:
    return gate.get_submodule(f"excite.{_key(modality)}")


class FeatureMeans(nn.Module):
    """Running means of every modality's features, and nothing else.

    Args:
        modalities: names in the order of the spec.
        feature_dim: D.
    """

    means: torch.Tensor
    steps: torch.Tensor

    def __init__(self, modalities: tuple[str, ...], feature_dim: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.held = ""
        self.register_buffer("means", torch.zeros(len(modalities), feature_dim))
        self.register_buffer("steps", torch.zeros(len(modalities), dtype=torch.int64))

    def forward(self, features: Mapping[str, torch.Tensor], mask: torch.Tensor) -> Maps:
        """Returns the features (B, D); while a modality is held, the others' are their means."""
        out = dict(features)
        for i, m in enumerate(self.modalities):
            if m in features:
                if self.held not in ("", m) and int(self.steps[i]):
                    out[m] = self.means[i].clone().expand_as(features[m])
                if self.training:
                    _follow(self.means[i], self.steps[i], features[m], mask[:, i] > 0)
        return out

    def weights(self, modality: str) -> list[nn.Parameter]:
        """Returns no weights: the fusion's are all that a modality sees the others through."""
        return []


__all__ = ["FeatureMeans", "Gate", "Gates"]
