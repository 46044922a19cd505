"""From a federation's spec to its model.

The model is a set of modules, addressed and mixed separately: "encoder.<modality>", "fusion", "head.<modality>" where a
method shares uni-modal heads, and "gates" where modalities see one another before the fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import cast

import torch
from torch import nn

from edge_sdk.core import registry
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import ModelLayout, ModelTensors
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.learn import generators, params
from edge_sdk.learn.records import NO_NEEDS, Needs
from edge_sdk.models.encoders import Staged
from edge_sdk.models.fusion import CosineFusion, Fusion, LateFusion, LinearFusion, MlpFusion, two_layers
from edge_sdk.models.gates import FeatureMeans, Gates
from edge_sdk.models.pretrained import Pretrained

AUTO: Mapping[int, str] = {1: "mlp", 2: "cnn1d", 3: "cnn2d"}  # dimensions of a window → encoder


class FusedModel(nn.Module):
    """Encoders, fusion and shared heads as one torch module.

    Args:
        encoders: modality → encoder, in the order of the spec.
        fusion: takes the concatenated features.
        heads: modality → shared uni-modal head, or empty.
        gates: between the blocks of encoders (which are all `Staged` then), or means of features, or None.
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], fusion: Fusion, heads: Mapping[str, nn.Module],
        gates: Gates | FeatureMeans | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.modalities = tuple(encoders)
        self.feature_dim = fusion.feature_dim
        # A ModuleDict refuses keys that are its own attributes ("keys", "type"); the prefix makes any name possible.
        self.encoders = nn.ModuleDict({f"encoder_{m}": e for m, e in encoders.items()})
        self.fusion = fusion
        self.heads = nn.ModuleDict({f"head_{m}": h for m, h in heads.items()})
        self.gates = gates

    def named(self) -> dict[str, nn.Module]:
        """Returns the modules by their names in the federation's layout, sorted."""
        encoders = {f"encoder.{m}": self.encoders[f"encoder_{m}"] for m in self.modalities}
        heads = {f"head.{key.removeprefix('head_')}": head for key, head in self.heads.items()}
        gates = {} if self.gates is None else {"gates": self.gates}
        return dict(sorted({**encoders, "fusion": self.fusion, **gates, **heads}.items()))

    def module(self, name: str) -> nn.Module:
        """Returns a module by its name in the federation's layout."""
        kind, _, m = name.partition(".")
        modules = {"encoder": self.encoders, "head": self.heads}.get(kind)
        if modules is not None and f"{kind}_{m}" in modules:
            return modules[f"{kind}_{m}"]
        if name == "fusion":
            return self.fusion
        if name == "gates" and self.gates is not None:
            return self.gates
        raise ConfigError(f"the model has no module {name!r}; it has {', '.join(self.named())}")

    def encode(
        self, x: Mapping[str, torch.Tensor], only: tuple[str, ...] = (), mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Returns features (B, D) of the given modalities (all of x if `only` is empty).

        Args:
            x: modality → float32 (B, *shape).
            only: modalities to encode.
            mask: float32 (B, M) of what may be seen through gates; by default all of what is encoded.
        """
        names = tuple(m for m in self.modalities if m in (only or x))
        if self.gates is None or not names:
            return {m: self.encoders[f"encoder_{m}"](x[m]) for m in names}
        if mask is None:
            there = torch.tensor([float(m in names) for m in self.modalities], device=x[names[0]].device)
            mask = there.expand(x[names[0]].shape[0], -1)  # (M,) -> (B, M)
        if isinstance(self.gates, FeatureMeans):
            features: dict[str, torch.Tensor] = self.gates(
                {m: self.encoders[f"encoder_{m}"](x[m]) for m in names}, mask
            )
            return features
        return self._through_gates(self.gates, {m: x[m] for m in names}, mask)

    def _through_gates(
        self, gates: Gates, x: Mapping[str, torch.Tensor], mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Runs the encoders side by side, with a gate behind each of their last blocks."""
        encoders = {m: cast(Staged, self.encoders[f"encoder_{m}"]) for m in x}
        maps = {m: e.enter(x[m]) for m, e in encoders.items()}
        early = {m: len(e.widths) - gates.depth for m, e in encoders.items()}  # blocks without a gate behind them
        for m, encoder in encoders.items():
            for block in encoder.blocks()[: early[m]]:
                maps[m] = block(maps[m])
        for k in range(gates.depth):
            maps = gates(k, {m: e.blocks()[early[m] + k](maps[m]) for m, e in encoders.items()}, mask)
        return {m: e.close(maps[m]) for m, e in encoders.items()}

    def under(self, x: Mapping[str, torch.Tensor], masks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yields logits (B, C) under each mask (B, M); encoders that do not see one another run once."""
        features = None if isinstance(self.gates, Gates) else self.encode(x)
        for mask in masks:
            yield self.fuse(self.encode(x, mask=mask) if features is None else features, mask)

    def fuse(self, features: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, C); features that are absent or masked count as zeros."""
        logits: torch.Tensor = self.fusion(self.concatenated(features, mask))
        return logits

    def concatenated(self, features: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Returns the masked features side by side, (B, M·D)."""
        blocks = []
        for column, m in enumerate(self.modalities):
            if m in features:
                blocks.append(features[m] * mask[:, column : column + 1])  # (B, D) * (B, 1)
            else:
                blocks.append(mask.new_zeros(mask.shape[0], self.feature_dim))
        return torch.cat(blocks, dim=1)

    def forward(self, x: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, C).

        Args:
            x: modality → float32 (B, *shape), any subset of the modalities; masked rows may hold anything finite.
            mask: float32 (B, M), 1 where the modality is there, columns in the order of the spec.
        """
        return self.fuse(self.encode(x, mask=mask), mask)


def build(spec: FederationSpec, needs: Needs = NO_NEEDS, seed: int = 0) -> FusedModel:
    """Returns the federation's model, its initial values drawn from `seed` alone.

    Raises:
        ConfigError: an encoder's configuration is wrong; names the modality.
        PluginError: an encoder is not registered.
    """
    dim, classes = spec.model.feature_dim, len(spec.classes)
    encoders, heads = {}, {}
    for modality in spec.modalities:
        with generators.seeded(seed, "model", f"encoder.{modality.name}"):
            encoders[modality.name] = encoder(modality, dim)
    with generators.seeded(seed, "model", "gates"):
        gates = _gates(encoders, dim) if needs.gates else None
    with generators.seeded(seed, "model", "fusion"):
        late = isinstance(gates, Gates)
        fusion = LateFusion(spec.modality_names, dim, classes) if late else _fusion(spec, needs)
    for name in spec.modality_names if needs.heads else ():
        with generators.seeded(seed, "model", f"head.{name}"):
            heads[name] = two_layers(dim, classes, spec.model.hidden) if needs.mlp else nn.Linear(dim, classes)
    return FusedModel(encoders, fusion, heads, gates)


def initial_tensors(spec: FederationSpec, needs: Needs = NO_NEEDS, seed: int = 0) -> ModelTensors:
    """Returns the values of a freshly built model: version 0, the only place where encoders read their checkpoints.

    Raises:
        ConfigError: a checkpoint is not there, or does not fit; besides what `build` raises.
    """
    model = build(spec, needs, seed)
    for encoder in model.encoders.values():
        if isinstance(encoder, Pretrained):
            encoder.load_weights()
    return params.read(model.named())


@lru_cache(maxsize=4)
def layout(spec: FederationSpec, needs: Needs = NO_NEEDS) -> ModelLayout:
    """Returns the layout of the federation's model, made once: many simulated devices ask for the same one."""
    return params.model_layout(build(spec, needs).named())


def encoder(modality: ModalitySpec, feature_dim: int) -> nn.Module:
    """Returns the encoder that a modality's spec asks for, values drawn from torch's global generator."""
    name = AUTO[len(modality.shape)] if modality.encoder == "auto" else modality.encoder
    make: Callable[..., nn.Module] = registry.load("encoders", name)
    try:
        return make(modality, feature_dim, **modality.encoder_config)
    except TypeError as error:
        raise ConfigError(f"modality {modality.name}: encoder {name!r} refuses its encoder_config: {error}") from error


def _gates(encoders: Mapping[str, nn.Module], feature_dim: int) -> Gates | FeatureMeans:
    """Returns gates between the blocks of encoders, means of features where one of them cannot be cut."""
    widths = {m: e.widths for m, e in encoders.items() if isinstance(e, Staged) and len(e.widths) > 1}
    return Gates(widths) if len(widths) == len(encoders) else FeatureMeans(tuple(encoders), feature_dim)


def _fusion(spec: FederationSpec, needs: Needs) -> Fusion:
    names, dim, classes = spec.modality_names, spec.model.feature_dim, len(spec.classes)
    if needs.cosine_head:
        return CosineFusion(names, dim, classes)
    makers: dict[str, Callable[[], Fusion]] = {
        "linear": lambda: LinearFusion(names, dim, classes),
        "mlp": lambda: MlpFusion(names, dim, classes, hidden=spec.model.hidden),
    }
    return makers["mlp" if needs.mlp else spec.model.fusion]()


__all__ = ["AUTO", "FusedModel", "build", "encoder", "initial_tensors", "layout"]
