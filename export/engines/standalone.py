"""One ordinary ONNX file with its weights inside, run by ONNX Runtime: what `edge-sdk export` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import DEFAULT_OPTIONS, EngineOptions, GraphInfo
from edge_sdk.core.records import ModelTensors
from export.engines.ort import PROVIDERS, OrtEngine, probe, session_of, session_options


class StandaloneEngine(OrtEngine):
    """An engine whose weights are those of its file: it takes no others.

    Args:
        path: the file.
        options: what it is to run on; it never falls back.
    """

    def __init__(self, path: Path, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        providers = PROVIDERS[options.provider]
        probe(providers)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
        self.session = session_of(data, session_options(options.threads, optimise=True), providers)
        self.provider = self.session.get_providers()[0]
        self.info = _info(path, self.session)
        self._columns = tuple(enumerate(self.info.modalities))

    def with_tensors(self, tensors: ModelTensors) -> OrtEngine:
        raise EngineError("the weights of a standalone file are fixed; export the new version")


def _info(path: Path, session: ort.InferenceSession) -> GraphInfo:
    told: dict[str, Any] = session.get_modelmeta().custom_metadata_map
    shapes = {i.name: tuple(i.shape[1:]) for i in session.get_inputs()}
    try:
        modalities = tuple(json.loads(told["modalities"]))
        return GraphInfo(
            modalities=modalities,
            shapes={m: shapes[m] for m in modalities},
            classes=tuple(json.loads(told["classes"])),
            layout_digest=told["layout_digest"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise EngineError(f"{path}: is no file that edge-sdk exported ({error!r} in its metadata)") from error


__all__ = ["StandaloneEngine"]
