"""Small federations that several rooms test with."""

from __future__ import annotations

from typing import Any

from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, WindowSpec

CLASSES = ("walk", "sit", "stand", "lie")


def har_spec(name: str = "har", length: int = 32, feature_dim: int = 16, **changes: Any) -> FederationSpec:
    """Two inertial modalities, as UCI-HAR has them but shorter: acc (3, length) and gyro (3, length)."""
    modalities = (
        ModalitySpec(name="acc", shape=(3, length), rate_hz=50.0, mean=(0.0, 0.1, -0.2), std=(1.0, 2.0, 0.5)),
        ModalitySpec(name="gyro", shape=(3, length), rate_hz=50.0),
    )
    fields: dict[str, Any] = {
        "name": name,
        "modalities": modalities,
        "classes": CLASSES,
        "window": WindowSpec(length_s=length / 50, hop_s=length / 100),
        "model": ModelSpec(feature_dim=feature_dim),
        "method": MethodSpec(name="fedasync"),
        **changes,
    }
    return FederationSpec(**fields)


def tri_spec(name: str = "tri", fusion: str = "mlp", feature_dim: int = 16, **changes: Any) -> FederationSpec:
    """Three kinds of modality: imu (6, 32), camera (3, 16, 16) and audio features (10,)."""
    modalities = (
        ModalitySpec(name="imu", shape=(6, 32), rate_hz=50.0),
        ModalitySpec(name="camera", shape=(3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        ModalitySpec(name="audio", shape=(10,), encoder_config={"hidden": 24}),
    )
    fields: dict[str, Any] = {
        "name": name,
        "modalities": modalities,
        "classes": CLASSES,
        "model": ModelSpec(feature_dim=feature_dim, fusion=fusion, hidden=32),
        "method": MethodSpec(name="fedasync"),
        **changes,
    }
    return FederationSpec(**fields)


__all__ = ["CLASSES", "har_spec", "tri_spec"]
