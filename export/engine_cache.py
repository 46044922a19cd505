"""Where built engines are kept, keyed by their whole content.

An engine holds weights. A cache that is keyed by the graph alone, as that of ONNX Runtime's TensorRT provider is,
serves the old model after every swap. The key here is made of everything that decides what an engine computes: the
graph, the weights, the versions of ONNX Runtime and TensorRT, the GPU's compute capability, the precision and the
profile's shapes.

    <root>/<graph>/<model>/<runtimes, GPU, precision, profile>/engine.plan · engine.sum

`graph` lets an engine of other weights be found that can be refitted; it is never served as it is.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import GraphInfo
from edge_sdk.core.records import Float32

KEEP = 4  # models of one graph whose engines are kept
PLAN, SUM = "engine.plan", "engine.sum"

Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]  # input → least, usual, largest shape


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What decides what a built engine computes, and where it can run."""

    graph: str  # sha256 of the graph without weights
    model: str  # sha256 of the graph and its weights
    ort: str  # version of ONNX Runtime; "" where it has no part in it
    tensorrt: str  # version of TensorRT
    compute: str  # compute capability of the GPU, "87"
    precision: str  # "fp32" | "fp16" | "int8"
    profile: str  # `profile_text`

    @property
    def build(self) -> str:
        """Everything but the model, readable: engines of one graph and build differ only in their weights."""
        shapes = hashlib.sha256(self.profile.encode()).hexdigest()[:16]
        runtime = f"ort-{self.ort}_" if self.ort else ""
        return f"{runtime}trt-{self.tensorrt}_sm{self.compute}_{self.precision}_{shapes}"

    @property
    def path(self) -> Path:
        """The folder of this engine under the cache's root."""
        return Path(self.graph[:16], self.model, self.build)


def model_digest(graph: bytes, weights: Mapping[str, Float32]) -> str:
    """Returns sha256 of a graph and all weights that are filled in."""
    digest = hashlib.sha256(hashlib.sha256(graph).digest())
    for name in sorted(weights):
        value = weights[name]
        digest.update(f"{name}\0{value.dtype.str}{value.shape}\0".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def profile_of(info: GraphInfo, max_batch: int) -> Profile:
    """Returns the shapes that an engine is built for: any batch up to `max_batch`, fastest for one window."""
    shapes = {**info.shapes, "mask": (len(info.modalities),)}
    return {name: ((1, *shape), (1, *shape), (max_batch, *shape)) for name, shape in shapes.items()}


def profile_text(profile: Profile) -> str:
    """Returns a profile as one line, the same for equal profiles."""
    return ";".join(f"{name}:{'/'.join(map(shape_text, profile[name]))}" for name in sorted(profile))


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns "1x3x224x224"."""
    return "x".join(map(str, shape))


class EngineCache:
    """Built engines on disk.

    Args:
        root: folder, made when something is kept.
        keep: models of one graph to keep; the oldest go.
    """

    def __init__(self, root: Path, keep: int = KEEP) -> None:
        self._root = root
        self._keep = keep

    def folder(self, key: EngineKey) -> Path:
        """Returns the folder of an engine, made if need be, for libraries that write into it themselves."""
        path = self._root / key.path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"{path}: cannot be made: {error.strerror}; set inference.cache") from error
        self._prune(path.parent)
        return path

    def read(self, key: EngineKey) -> bytes | None:
        """Returns exactly this engine; None if it is not there, or damaged."""
        return _intact(self._root / key.path)

    def similar(self, key: EngineKey) -> bytes | None:
        """Returns an engine of the same graph and build with other weights, to be refitted; None if there is none."""
        found = sorted((self._root / key.graph[:16]).glob(f"*/{key.build}/{PLAN}"), key=_age)
        return next((plan for path in reversed(found) if (plan := _intact(path.parent)) is not None), None)

    def write(self, key: EngineKey, plan: bytes) -> None:
        """Keeps an engine."""
        folder = self.folder(key)
        for name, data in ((PLAN, plan), (SUM, _sum(plan))):
            draft = folder / f"{name}.new"
            draft.write_bytes(data)
            draft.replace(folder / name)

    def _prune(self, newest: Path) -> None:
        models = sorted((p for p in newest.parent.iterdir() if p.is_dir() and p != newest), key=_age)
        for old in models[: max(0, len(models) + 1 - self._keep)]:
            shutil.rmtree(old, ignore_errors=True)


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _intact(folder: Path) -> bytes | None:
    try:
        plan = (folder / PLAN).read_bytes()
        return plan if (folder / SUM).read_bytes() == _sum(plan) else None
    except OSError:
        return None


def _sum(plan: bytes) -> bytes:
    return hashlib.blake2b(plan, digest_size=32).hexdigest().encode()


__all__ = [
    "EngineCache", "EngineKey", "Profile", "model_digest", "profile_of", "profile_text", "shape_text",
]  # fmt: skip
