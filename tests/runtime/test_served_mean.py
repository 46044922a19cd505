"""A device that predicts with the running mean of the versions it has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnxruntime", reason="predicting needs onnxruntime")

from edge_sdk.core import parity
from edge_sdk.core.records import ModelTensors, Segments
from edge_sdk.learn import params
from edge_sdk.runtime.events import EngineSwapped, SwapRefused
from edge_sdk.runtime.inference import Serving
from edge_sdk.runtime.reference import TorchReference
from tests.runtime.test_field import SPEC, Field, graph  # noqa: F401  the graph is a fixture


def test_the_running_mean_of_the_versions_predicts(tmp_path: Path, graph: Path) -> None:  # noqa: F811
    sections: dict[str, Any] = {"inference": {"graph": str(graph), "running_mean": 0.4}, "training": {"enabled": False}}
    field = Field(tmp_path, graph, **sections)
    taken: list[ModelTensors] = []
    serving: list[Serving] = []

    async def publish() -> None:
        """Every version once the one before serves: the device sees them all."""
        rng = np.random.default_rng(0)
        while True:
            await field.clock.sleep(0.02)
            if len(field.of(EngineSwapped)) == len(taken) + 1:
                taken.append(params.copy(field.office.tensors))
                if len(taken) == 4:
                    return
                for module in field.office.tensors.values():
                    module.params[...] += 0.3 * rng.standard_normal(len(module.params)).astype(np.float32)
                field.office.seal()
                await field.office.publish()

    def ready() -> bool:
        session = field.device.session
        if len(taken) == 4 and session is not None and session.predictor is not None:
            assert session.predictor.serving is not None
            serving[:] = [session.predictor.serving]
        return bool(serving)

    field.label = publish  # type: ignore[method-assign]  nobody labels
    field.live(ready)
    assert not field.of(SwapRefused)
    assert [e.version.number for e in field.of(EngineSwapped)] == [0, 1, 2, 3]
    mean = {name: s.params.astype(np.float64) for name, s in taken[0].items()}
    for t, version in enumerate(taken):
        w = max(0.4, 1 / (t + 1))
        mean = {name: (1 - w) * mean[name] + w * s.params for name, s in version.items()}
    expected = {name: Segments(values.astype(np.float32)) for name, values in mean.items()}
    x, rows = parity.noise(SPEC, 4, 0), parity.masks(SPEC)
    found = parity.logits(serving[0].engine, x, rows)
    for name, logits in TorchReference(SPEC)(expected, x, rows).items():
        assert np.allclose(found[name], logits, atol=1e-4)
    newest = TorchReference(SPEC)(taken[-1], x, rows)
    assert not np.allclose(found["all"], newest["all"], atol=1e-2)
