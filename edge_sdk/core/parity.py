"""Does one engine say what another says? Comparison of logits under every modality mask, numpy only.

An engine is compared with a reference under the full mask and under each single-modality mask, on real windows or on
seeded noise. Errors are judged relative to the size of the logits: `|a − b| ≤ tolerance · max(1, max |b|)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.core.errors import ParityError
from edge_sdk.core.interfaces import Engine, mask_row
from edge_sdk.core.records import Float32, ModelLayout, ModuleLayout, Segments
from edge_sdk.core.spec import FederationSpec, ModalitySpec

Masks = Mapping[str, Float32]  # name → (1, M) row
Logits = Mapping[str, Float32]  # name of the mask → (B, C)


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far two engines are apart."""

    max_abs: float  # largest |a − b| over all masks; inf where a value is not finite
    max_rel: float  # the same over max(1, largest |b|) of its mask
    agreement: float  # share of rows whose class of highest logit is the same, [0, 1]
    worst: str  # name of the mask with the largest relative error
    windows: int  # B
    tolerance: float  # on max_rel

    @property
    def ok(self) -> bool:
        """True if the engines agree within the tolerance."""
        return self.max_rel <= self.tolerance

    def require(self) -> ParityReport:
        """Returns itself; ParityError if the engines do not agree."""
        if not self.ok:
            raise ParityError(
                f"the new engine is off by {self.max_rel:.3g} of the logits (mask {self.worst!r}, {self.windows}"
                f" windows, tolerance {self.tolerance:.3g}, same class in {self.agreement:.0%}); it is not used"
            )
        return self


def masks(spec: FederationSpec) -> dict[str, Float32]:
    """Returns the full mask and each single-modality mask as rows (1, M)."""
    names = spec.modality_names
    singles = {m: mask_row((m,), names) for m in names} if len(names) > 1 else {}
    return {"all": mask_row(names, names), **singles}


def noise(spec: FederationSpec, n: int, seed: int) -> dict[str, Float32]:
    """Returns n windows of noise with each modality's mean and deviation: modality → float32 (n, *shape)."""
    rng = np.random.default_rng(seed)
    return {m.name: _noise(m, n, rng) for m in spec.modalities}


def _noise(modality: ModalitySpec, n: int, rng: np.random.Generator) -> Float32:
    trailing = (1,) * (len(modality.shape) - 1)
    mean = np.asarray(modality.mean or (0.0,), np.float32).reshape(-1, *trailing)
    std = np.asarray(modality.std or (1.0,), np.float32).reshape(-1, *trailing)
    values: Float32 = mean + std * rng.standard_normal((n, *modality.shape), np.float32)
    return values


def random_tensors(layout: ModelLayout, seed: int) -> dict[str, Segments]:
    """Returns values for every tensor such that activations stay of order one and no two tensors are equal."""
    rng = np.random.default_rng(seed)
    return {name: _random_module(module, rng) for name, module in layout.items()}


def _random_module(layout: ModuleLayout, rng: np.random.Generator) -> Segments:
    values = np.zeros(layout.params, np.float32)
    for t in layout.tensors:
        if t.segment == "params":
            size = int(np.prod(t.shape, dtype=np.int64))
            fan_in = int(np.prod(t.shape[1:], dtype=np.int64))
            drawn = rng.normal(0, fan_in**-0.5, size) if len(t.shape) > 1 else rng.uniform(0.3, 1.3, size)
            values[t.offset : t.offset + size] = drawn
    stats = rng.uniform(0.3, 1.3, layout.stats).astype(np.float32)  # a variance has to be positive
    return Segments(values, stats, np.zeros(layout.counters, np.int64))


def logits(engine: Engine, x: Mapping[str, Float32], rows: Masks) -> dict[str, Float32]:
    """Returns the engine's logits (B, C) under every mask: a reference that can be kept."""
    n = len(next(iter(x.values())))
    return {name: engine.run(x, np.repeat(row, n, axis=0)) for name, row in rows.items()}


def compare(
    engine: Engine, reference: Engine | Logits, x: Mapping[str, Float32], *, rows: Masks, tolerance: float
) -> ParityReport:
    """Returns how far an engine is from a reference.

    Args:
        engine: the new engine.
        reference: another engine, or its kept logits for the same windows under the same masks.
        x: modality → float32 (B, *shape), every modality.
        rows: masks to try, see `masks`.
        tolerance: largest error allowed, relative to max(1, largest logit).
    """
    expected = logits(reference, x, rows) if isinstance(reference, Engine) else reference
    found = logits(engine, x, rows)
    return _report({name: _errors(found[name], expected[name]) for name in rows}, tolerance)


def check(
    engine: Engine, reference: Engine | Logits, x: Mapping[str, Float32], *, rows: Masks, tolerance: float
) -> ParityReport:
    """Returns the report of `compare`; ParityError if the engines do not agree."""
    return compare(engine, reference, x, rows=rows, tolerance=tolerance).require()


def check_finite(engine: Engine, x: Mapping[str, Float32], *, rows: Masks) -> ParityReport:
    """Checks what can be checked without a reference: logits of the right shape that are finite.

    For devices without torch: the graph and its weight map were proved when it was exported.

    Raises:
        ParityError: a logit is not finite, or the shape is wrong.
    """
    found = logits(engine, x, rows)
    shape = (len(next(iter(x.values()))), len(engine.info.classes))
    return _report(
        {name: _errors(a, np.where(np.isfinite(a), a, 0), shape) for name, a in found.items()}, 0.0
    ).require()


_Errors = tuple[float, float, float, int]  # abs, rel, agreement, rows


def _errors(found: Float32, expected: Float32, shape: tuple[int, ...] | None = None) -> _Errors:
    if found.shape != (shape or expected.shape):
        raise ParityError(f"expected logits {shape or expected.shape}, found {found.shape}")
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return np.inf, np.inf, 0.0, len(found)
    error = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    same = float(np.mean(found.argmax(1) == expected.argmax(1)))
    return error, error / max(1.0, float(np.abs(expected).max(initial=0.0))), same, len(found)


def _report(errors: Mapping[str, _Errors], tolerance: float) -> ParityReport:
    name = max(errors, key=lambda mask: errors[mask][1])
    return ParityReport(
        max_abs=max(e[0] for e in errors.values()),
        max_rel=errors[name][1],
        agreement=float(np.mean([e[2] for e in errors.values()])),
        worst=name,
        windows=errors[name][3],
        tolerance=tolerance,
    )


__all__ = [
    "Logits",
    "Masks",
    "ParityReport",
    "check",
    "check_finite",
    "compare",
    "logits",
    "masks",
    "noise",
    "random_tensors",
]
