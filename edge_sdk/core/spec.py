"""FederationSpec: everything that all members of a federation have to agree on.

A device configures its sensors and its broker; it learns the rest from this record, which the coordinator publishes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from edge_sdk.core.feature import Feature
from edge_sdk.core.model import Model, SpecModel

IDENTIFIER = r"^[A-Za-z0-9_-]{1,64}$"


class ModalitySpec(SpecModel):
    """One modality: its name, the shape of one window, and how it is encoded."""

    name: str = Field(pattern=IDENTIFIER)
    shape: tuple[int, ...] = Field(min_length=1, max_length=3)  # (channels, length) | (features,) | (channels, h, w)
    rate_hz: float = Field(default=0.0, ge=0)  # 0: not a time series on a fixed grid
    unit: str = ""
    encoder: str = "auto"  # entry point name; auto: by the number of dimensions of shape
    encoder_config: dict[str, Any] = Field(default_factory=dict)
    mean: tuple[float, ...] = ()  # per channel (or feature), applied in the model; () = 0
    std: tuple[float, ...] = ()  # per channel (or feature); () = 1
    feature: Feature | None = None  # how raw samples become the window's tensor; None: they are it

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 1 for n in shape):
            raise ValueError(f"every size must be at least 1, found {shape}")
        return shape

    @field_validator("feature")
    @classmethod
    def _fits(cls, feature: Feature | None, info: ValidationInfo) -> Feature | None:
        if feature is not None and "shape" in info.data and "rate_hz" in info.data:  # else they are wrong themselves
            misfit = feature.misfit(info.data["shape"], info.data["rate_hz"])
            if misfit:
                raise ValueError(f"{feature.name} {misfit}")
        return feature


class WindowSpec(SpecModel):
    """The federation's time grid: window k covers [k·hop_s, k·hop_s + length_s)."""

    length_s: float = Field(default=2.56, gt=0)
    hop_s: float = Field(default=1.28, gt=0)
    deadline_s: float = Field(default=0.25, ge=0)  # wait after the end of a window for what is under way
    min_quality: float = Field(default=0.9, ge=0, le=1)  # share of measured samples a modality needs


class ModelSpec(SpecModel):
    """The fused model."""

    feature_dim: int = Field(default=64, ge=1)  # size of every h_m
    fusion: str = Field(default="linear", pattern="^(linear|mlp)$")
    hidden: int = Field(default=512, ge=1)  # hidden units of the mlp fusion


class MethodSpec(SpecModel):
    """The method: its registry name (or client+server) and its own configuration."""

    name: str = "mba"
    config: dict[str, Any] = Field(default_factory=dict)


class TrainingSpec(SpecModel):
    """Local training, the same on every device."""

    lr: float = Field(default=0.01, gt=0)
    lr_decay: float = Field(default=0.99, gt=0, le=1)  # per round-equivalent (K server updates)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=64, ge=1)


class CodecSpec(SpecModel):
    """Codec chains, in the order in which they are applied."""

    up: str = "delta|int8|zstd"
    down: str = "fp32|zstd"


class FederationSpec(SpecModel):
    """What all members of a federation agree on."""

    name: str = Field(pattern=IDENTIFIER)
    protocol: int = 1
    modalities: tuple[ModalitySpec, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=2)
    window: WindowSpec = WindowSpec()
    model: ModelSpec = ModelSpec()
    method: MethodSpec = MethodSpec()
    training: TrainingSpec = TrainingSpec()
    codec: CodecSpec = CodecSpec()

    @model_validator(mode="after")
    def _consistent(self) -> FederationSpec:
        for what, names in (("modalities", self.modality_names), ("classes", self.classes)):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} must have different names, found {list(names)}")
        for number, m in enumerate(self.modalities):
            if m.feature is not None:
                misfit = m.feature.misfit_of_window(m.shape, m.rate_hz, self.window.length_s)
                if misfit:
                    raise ValueError(f"modalities.{number}.feature: {m.name}: {m.feature.name} {misfit}")
        return self

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Modality names in their fixed order."""
        return tuple(m.name for m in self.modalities)

    def modality(self, name: str) -> ModalitySpec:
        """Returns the modality of this name; KeyError if there is none."""
        return {m.name: m for m in self.modalities}[name]

    def canonical(self) -> str:
        """Returns the spec as JSON with sorted keys: what is published and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """blake2b-128 of the canonical JSON, 32 hex digits."""
        return hashlib.blake2b(self.canonical().encode(), digest_size=16).hexdigest()

    @cached_property
    def shape_digest(self) -> str:
        """Digest of what fixes tensor shapes and classes; a change of it needs another federation name."""
        fixed = self.model_dump(mode="json", include={"modalities", "classes", "model"})
        return hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=16).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> FederationSpec:
        """Returns a copy with some fields replaced; the digests of the original are not among what is copied."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("digest", "shape_digest"):
            copied.__dict__.pop(name, None)
        return copied

    def __hash__(self) -> int:
        return hash(self.digest)


__all__ = [
    "IDENTIFIER",
    "CodecSpec",
    "FederationSpec",
    "MethodSpec",
    "ModalitySpec",
    "Model",
    "ModelSpec",
    "SpecModel",
    "TrainingSpec",
    "WindowSpec",
]
