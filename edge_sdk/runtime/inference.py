"""Predicts every window, whichever modalities it has, and changes models between two predictions.

A new engine is built and checked beside the one that serves; until it has passed, the old one goes on. Engines never
change after they were made, so the change itself is one assignment on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.core import parity
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import Compute
from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.events import Observer
from edge_sdk.core.interfaces import Engine, mask_row
from edge_sdk.core.messages import Prediction
from edge_sdk.core.records import Float32, ModelTensors, VersionId, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.events import EngineSwapped, PredictionMade, SwapRefused

PROBE_WINDOWS = 16
ENGINE = "engine"  # the ordered lane that builds and checks engines

log = logging.getLogger(__name__)

Make = Callable[[ModelTensors], Engine]
Reference = Callable[[ModelTensors, Mapping[str, Float32], parity.Masks], parity.Logits]


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine and the model it runs."""

    engine: Engine
    version: VersionId | None  # None: the device's own


class Predictor:
    """Predicts windows with the engine that serves.

    Args:
        spec: shapes, classes, order of modalities.
        device: our id.
        clock: what latencies are measured on.
        stream_clock: what windows are timed on.
        emit: the observer.
    """

    def __init__(
        self, spec: FederationSpec, device: str, *, clock: Clock, stream_clock: Clock, emit: Observer
    ) -> None:  # fmt: skip
        self.serving: Serving | None = None
        self.previous: Serving | None = None
        self.skipped = 0  # windows that came before the first model
        self._spec = spec
        self._device = device
        self._clock = clock
        self._stream_clock = stream_clock
        self._emit = emit
        self._newest: deque[Window] = deque(maxlen=PROBE_WINDOWS)
        self._masks: dict[frozenset[str], Float32] = {}
        self._absent = {m.name: np.zeros((1, *m.shape), np.float32) for m in spec.modalities}

    def predict(self, window: Window) -> Prediction | None:
        """Returns the prediction of a window; None while there is no model, or if nothing of it has arrived."""
        start_ns = self._clock.now_ns()
        self._newest.append(window)
        serving = self.serving
        if serving is None or not window.data:
            self.skipped += 1
            return None
        logits = serving.engine.run(self._inputs(window), self._mask(window))[0]
        number = int(logits.argmax())
        confidence = float(1.0 / np.exp(logits - logits[number]).sum())
        done_ns = self._clock.now_ns()
        late_ns = self._stream_clock.now_ns() - window.t_ns - window.length_ns
        modalities = tuple(m for m in self._spec.modality_names if m in window.data)
        self._emit(
            PredictionMade(
                self._device, window.index, self._spec.classes[number], confidence, (done_ns - start_ns) / 1e6,
                late_ns / 1e6, modalities, serving.version,
            )
        )  # fmt: skip
        return Prediction(
            device=self._device,
            label=self._spec.classes[number],
            confidence=min(1.0, max(0.0, confidence)),
            utc_ns=self._stream_clock.utc_ns() - (self._stream_clock.now_ns() - window.t_ns),
            utc_err_ns=0,
            modalities=modalities,
            version=serving.version,
        )

    def swap(self, serving: Serving) -> None:
        """Serves another engine from the next window on; the one before is kept."""
        self.previous, self.serving = self.serving, serving

    def rollback(self) -> bool:
        """Serves the previous engine again; False if there is none."""
        if self.previous is None:
            return False
        self.serving, self.previous = self.previous, self.serving
        return True

    def windows(self) -> dict[str, Float32]:
        """Returns the newest windows as one batch, seeded noise where something is missing: what parity is tried on."""
        rows = [window for window in self._newest if window.data]
        x = parity.noise(self._spec, len(rows) or PROBE_WINDOWS, 0)
        for i, window in enumerate(rows):
            for m, data in window.data.items():
                x[m][i] = data
        return x

    def _inputs(self, window: Window) -> dict[str, Float32]:
        data = window.data
        return {m: data[m][None] if m in data else absent for m, absent in self._absent.items()}

    def _mask(self, window: Window) -> Float32:
        key = frozenset(window.data)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = mask_row(tuple(key), self._spec.modality_names)
        return mask


class Swapper:
    """Builds, checks and puts in place engines for new models.

    Args:
        predictor: where they serve.
        make: opens the first engine.
        proof: what every engine has to pass.
        device: our id.
        clock: what swaps are timed on.
        compute: its engine lane builds.
        emit: the observer.
    """

    def __init__(
        self,
        predictor: Predictor,
        make: Make,
        proof: Proof,
        *,
        device: str,
        clock: Clock,
        compute: Compute,
        emit: Observer,
    ) -> None:
        self.refused = 0
        self._predictor = predictor
        self._make = make
        self._proof = proof
        self._device = device
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._turn = asyncio.Lock()

    async def offer(self, version: VersionId | None, tensors: ModelTensors) -> bool:
        """Puts a model in place if its engine passes; False: the old one serves on."""
        async with self._turn:
            start_ns = self._clock.now_ns()
            serving = self._predictor.serving
            make = self._make if serving is None else serving.engine.with_tensors
            try:
                engine, error = await self._compute.run(
                    ENGINE, 0, prepare, make, tensors, self._predictor.windows(), self._proof
                )
            except (EngineError, ShapeMismatch) as trouble:
                self._refuse(version, trouble)
                return False
            self._predictor.swap(Serving(engine, version))
            swap_ms = (self._clock.now_ns() - start_ns) / NS * 1e3
            self._emit(EngineSwapped(self._device, version, swap_ms, error))
            return True

    def _refuse(self, version: VersionId | None, trouble: Exception) -> None:
        self.refused += 1
        level = logging.ERROR if self.refused == 1 else logging.DEBUG
        log.log(level, "%s: a new model does not serve, the old one goes on: %s", self._device, trouble)
        self._emit(SwapRefused(self._device, version, str(trouble)))


@dataclass(frozen=True, slots=True)
class Proof:
    """How a new engine shows that it runs the model it was made from."""

    reference: Reference | None  # what the logits should be; None: there is no torch, they must at least be finite
    masks: parity.Masks
    tolerance: float  # largest error relative to the logits


def prepare(make: Make, tensors: ModelTensors, windows: Mapping[str, Float32], proof: Proof) -> tuple[Engine, float]:
    """Returns a new engine that has passed, and its error relative to the logits (NaN: nothing to compare with).

    Raises:
        ParityError: it did not pass.
    """
    engine = make(tensors)
    if proof.reference is None:
        parity.check_finite(engine, windows, rows=proof.masks)
        return engine, math.nan
    expected = proof.reference(tensors, windows, proof.masks)
    report = parity.check(engine, expected, windows, rows=proof.masks, tolerance=proof.tolerance)
    return engine, report.max_rel


__all__ = ["ENGINE", "PROBE_WINDOWS", "Make", "Predictor", "Proof", "Reference", "Serving", "Swapper", "prepare"]
