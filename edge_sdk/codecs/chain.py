"""A codec chain: an update or a model version as one run of bytes, and back.

    delta | int8 | zstd      [reference step]  one tensor step  byte steps …       registered in `edge_sdk.codecs`

Only `params` go through the chain. `stats` travel as float32 values and `counters` as int64, whatever the chain.

Error feedback: what quantisation leaves out of a delta is added to the next one. It applies to deltas only; full
tensors stand for themselves, so their residual is ignored and stays what it was.

A version's digest is that of the tensors which devices decode. A coordinator therefore publishes in two steps,
`roundtrip_model` (what will they see?) and `seal_model` (under this identity).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.codecs import headers, steps, wire
from edge_sdk.codecs.body import BodyCodec, parse_steps
from edge_sdk.codecs.headers import Limits, ModelHeader, ModulePart, UpdateHeader
from edge_sdk.core.errors import CodecError, ShapeMismatch, WireFormatError
from edge_sdk.core.records import Array, Float32, ModelLayout, ModelTensors, ModelVersion, Segments, Update, VersionId

DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """An update ready for the outbox."""

    data: bytes  # the object that travels
    residual: dict[str, Float32]  # module → (P,): what to hand in with the next update; all modules known so far
    decoded: dict[str, Float32]  # module → (P,): params as the coordinator will see them
    raw_bytes: int  # size of the same tensors as float32 and int64


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A model as bytes that lack only their name."""

    decoded: dict[str, Segments]  # what devices will hold: hash this for VersionId.digest; own memory
    modules: tuple[ModulePart, ...]
    sizes: tuple[int, ...]  # bytes of the packed part: before the byte steps, then after each
    body: tuple[bytes, ...]  # packed part, then the plain part in pieces
    base: VersionId | None  # the version this is a delta against


class Chain:
    """The steps of one chain text for one model layout; stateless, may be shared by threads.

    Args:
        text: step names joined by "|", e.g. "delta|int8|zstd".
        layout: the model's modules.

    Raises:
        ConfigError: the steps do not make a chain.
        PluginError: a step is not installed.
    """

    def __init__(self, text: str, layout: ModelLayout) -> None:
        self.text = "|".join(name.strip() for name in text.split("|"))
        self._modules = sorted(layout)
        parsed = parse_steps(text)
        self._reference = parsed.reference
        self._body = BodyCodec(parsed, layout)

    @property
    def is_delta(self) -> bool:
        """Whether the chain sends changes against a base."""
        return self._reference is not None

    def encode_update(
        self, update: Update, residual: Mapping[str, Float32] | None = None, base: ModelTensors | None = None
    ) -> EncodedUpdate:
        """Returns the update as bytes.

        Args:
            update: trained modules; kind "full" becomes "delta" if the chain begins with delta.
            residual: what the update before left out; added before quantisation.
            base: the tensors it was trained from; needed when a full update becomes a delta.

        Raises:
            ShapeMismatch: tensors do not fit the layout.
            CodecError: values are not finite, or beyond what the chain can say.
        """
        self._body.check(update.tensors)
        params = {name: segments.params for name, segments in update.tensors.items()}
        kind = update.kind
        if kind == "full" and self.is_delta:
            if base is None:
                raise CodecError(f"chain {self.text} makes deltas: hand in the base of a full update")
            params, kind = self._refer(params, base), "delta"
        left = dict(residual or {})
        if kind == "delta":
            params = {name: _plus(x, left.get(name), name) for name, x in params.items()}
        body = self._body.encode(params, update.tensors)
        parts, raw = headers.array_parts(update.payload)
        header = UpdateHeader(
            key=update.key, task=update.task, base=update.base, spec_digest=update.spec_digest, kind=kind,
            chain=self.text, modules=body.modules, sizes=body.sizes, num_samples=update.num_samples,
            num_steps=update.num_steps, modalities=update.modalities, payload=parts,
            train_s=update.train_s, wait_s=update.wait_s,
        )  # fmt: skip
        data = headers.frame(header, headers.UPDATE_MAGIC, *body.parts, *raw)  # before x is overwritten: parts view it
        if kind == "delta":
            left |= {name: _left_over(x, body.decoded[name], update.tensors[name].params) for name, x in params.items()}
        return EncodedUpdate(data, left, body.decoded, raw_bytes(update.tensors))

    def decode_update(self, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Update:
        """Returns the update that some bytes describe; its arrays are new and writable.

        Raises:
            WireFormatError: the bytes break the format, or lie.
            ShapeMismatch: they describe another model.
        """
        header, rest = headers.unframe(data, UpdateHeader, headers.UPDATE_MAGIC, limits)
        if self.is_delta and header.kind != "delta":
            raise WireFormatError(f"UpdateHeader.kind: chain {self.text} makes deltas, found {header.kind!r}")
        self._check_chain(header.chain)
        tail_bytes = headers.check_arrays(header.payload, limits)
        tensors, tail = self._body.decode(header.modules, header.sizes, rest, tail_bytes)
        return Update(
            key=header.key, task=header.task, base=header.base, spec_digest=header.spec_digest, kind=header.kind,
            tensors=tensors, num_samples=header.num_samples, num_steps=header.num_steps,
            modalities=header.modalities, payload=headers.read_arrays(header.payload, tail),
            train_s=header.train_s, wait_s=header.wait_s,
        )  # fmt: skip

    def peek_update(self, data: bytes) -> UpdateHeader:
        """Returns the checked header alone."""
        return peek_update(data)

    def roundtrip_model(self, tensors: ModelTensors, base: ModelVersion | None = None) -> EncodedModel:
        """Returns the encoded tensors and what they decode to.

        Args:
            tensors: the whole model.
            base: the published version (decoded tensors) that a chain beginning with delta is against.
        """
        if (base is not None) != self.is_delta:
            raise CodecError(f"chain {self.text} {'needs a base' if base is None else 'takes no base'}")
        if sorted(tensors) != self._modules:
            raise ShapeMismatch(f"model has modules {sorted(tensors)}, its layout has {self._modules}")
        self._body.check(tensors)
        params = {name: s.params for name, s in tensors.items()}
        if base is not None:
            params = self._refer(params, base.tensors)
        body = self._body.encode(params, tensors)
        decoded = body.decoded if base is None else self._restore(body.decoded, base.tensors)
        return EncodedModel(
            decoded={n: Segments(decoded[n], tensors[n].stats.copy(), tensors[n].counters.copy()) for n in decoded},
            modules=body.modules,
            sizes=body.sizes,
            body=tuple(bytes(part) for part in body.parts),
            base=None if base is None else base.id,
        )

    def seal_model(self, encoded: EncodedModel, version: VersionId, extras: Mapping[str, Array] | None = None) -> bytes:
        """Returns an encoded model under its identity; `version.digest` must be `tensors_digest(encoded.decoded)`."""
        parts, raw = headers.array_parts(extras or {})
        header = ModelHeader(version, self.text, encoded.modules, encoded.sizes, parts, encoded.base)
        return headers.frame(header, headers.MODEL_MAGIC, *encoded.body, *raw)

    def encode_model(self, version: ModelVersion, base: ModelVersion | None = None) -> bytes:
        """Returns a version whose digest names tensors that this chain reproduces exactly.

        Raises:
            CodecError: the chain would change the tensors; use `roundtrip_model` and `seal_model`.
        """
        encoded = self.roundtrip_model(version.tensors, base)
        if wire.tensors_digest(encoded.decoded) != version.id.digest:
            raise CodecError(f"chain {self.text} does not reproduce version {version.id.number}; use roundtrip_model")
        return self.seal_model(encoded, version.id, version.extras)

    def decode_model(
        self, data: bytes, base: ModelTensors | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> ModelVersion:
        """Returns the version that some bytes describe; the digest of its tensors was verified.

        Args:
            data: the object.
            base: tensors of `peek_model(data).base`, for a delta.
            limits: what to take at most.
        """
        header, rest = headers.unframe(data, ModelHeader, headers.MODEL_MAGIC, limits)
        self._check_chain(header.chain)
        if (header.base is not None) != self.is_delta:
            raise WireFormatError(f"ModelHeader.base: chain {self.text} does not go with base {header.base}")
        if [part.name for part in header.modules] != self._modules:
            raise ShapeMismatch(f"version {header.id.number} does not hold exactly the modules of this model")
        if self.is_delta and base is None:
            raise CodecError(f"version {header.id.number} is a delta; hand in the tensors of version {header.base}")
        tail_bytes = headers.check_arrays(header.extras, limits)
        tensors, tail = self._body.decode(header.modules, header.sizes, rest, tail_bytes)
        if base is not None and self.is_delta:
            params = self._restore({name: s.params for name, s in tensors.items()}, base)
            tensors = {name: Segments(params[name], s.stats, s.counters) for name, s in tensors.items()}
        if wire.tensors_digest(tensors) != header.id.digest:
            raise WireFormatError(f"version {header.id.number}: wrong digest; fetch it again, with its own base")
        return ModelVersion(header.id, tensors, headers.read_arrays(header.extras, tail))

    def _check_chain(self, found: str) -> None:
        if found != self.text:
            raise WireFormatError(f"object was made by chain {found!r}, this federation uses {self.text!r}")

    def _refer(self, params: Mapping[str, Float32], base: ModelTensors) -> dict[str, Float32]:
        """Returns params relative to a base."""
        assert self._reference is not None
        return {name: self._reference.encode(x, _base_of(base, name, x)) for name, x in params.items()}

    def _restore(self, params: Mapping[str, Float32], base: ModelTensors) -> dict[str, Float32]:
        """Returns params from what `_refer` left of them."""
        assert self._reference is not None
        return {name: self._reference.decode(x, _base_of(base, name, x)) for name, x in params.items()}


def peek_update(data: bytes, limits: Limits = DEFAULT_LIMITS) -> UpdateHeader:
    """Returns the checked header alone; touches no tensor and needs no layout."""
    return headers.unframe(data, UpdateHeader, headers.UPDATE_MAGIC, limits)[0]


def peek_model(data: bytes, limits: Limits = DEFAULT_LIMITS) -> ModelHeader:
    """Returns the checked header of an encoded version alone."""
    return headers.unframe(data, ModelHeader, headers.MODEL_MAGIC, limits)[0]


def finite(update: Update) -> bool:
    """Returns whether all params, stats and floating-point payload of an update are finite."""
    floats = [a for s in update.tensors.values() for a in (s.params, s.stats)]
    floats += [a for a in update.payload.values() if a.dtype.kind == "f"]
    return all(steps.finite(a) for a in floats)


def raw_bytes(tensors: Mapping[str, Segments]) -> int:
    """Returns what the tensors take uncompressed: float32 and int64."""
    return sum(s.params.nbytes + s.stats.nbytes + s.counters.nbytes for s in tensors.values())


def _base_of(base: ModelTensors, name: str, x: Float32) -> Float32:
    if name not in base or base[name].params.shape != x.shape:
        raise ShapeMismatch(f"module {name}: the base does not have its {x.size} params")
    return base[name].params


def _plus(x: Float32, residual: Float32 | None, name: str) -> Float32:
    if residual is None:
        return x
    if residual.shape != x.shape or residual.dtype != np.float32:
        raise ShapeMismatch(f"residual of {name}: expected float32 {x.shape}, found {residual.dtype} {residual.shape}")
    return x + residual


def _left_over(x: Float32, decoded: Float32, given: Float32) -> Float32:
    """Returns x − decoded, in the memory of x unless that is the caller's (fresh memory costs more than arithmetic)."""
    return np.subtract(x, decoded, out=None if x is given else x)


__all__ = [
    "DEFAULT_LIMITS",
    "Chain",
    "EncodedModel",
    "EncodedUpdate",
    "finite",
    "peek_model",
    "peek_update",
    "raw_bytes",
]
