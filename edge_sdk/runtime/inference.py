"""Predicts every window, whichever modalities it has, and changes models between two predictions.

Engines never change after they were made, so the change itself is one assignment on the event loop. What builds and
checks them is `runtime.swapping`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.events import Observer
from edge_sdk.core.interfaces import Engine, mask_row
from edge_sdk.core.messages import Prediction
from edge_sdk.core.records import Float32, LatePart, VersionId, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.events import PredictionMade, RolledBack
from edge_sdk.runtime.timebase import StreamTime

PROBE_WINDOWS = 16

log = logging.getLogger(__name__)


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
        time: the stream clock, which windows are timed on, and where it lies in the time of day.
        emit: the observer.
        changed: called when `trouble` has changed.
    """

    def __init__(
        self,
        spec: FederationSpec,
        device: str,
        *,
        clock: Clock,
        time: StreamTime,
        emit: Observer,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.serving: Serving | None = None
        self.previous: Serving | None = None
        self.skipped = 0  # windows that came before the first model
        self.failed = 0  # windows that the engine refused
        self.trouble = ""  # why an older model serves again
        self._spec = spec
        self._device = device
        self._clock = clock
        self._time = time
        self._emit = emit
        self._changed = changed
        self._newest: deque[Window] = deque(maxlen=PROBE_WINDOWS)
        self._masks: dict[frozenset[str], Float32] = {}
        self._length_ns = round(spec.window.length_s * NS)
        self._absent = {m.name: np.zeros((1, *m.shape), np.float32) for m in spec.modalities}

    def predict(self, window: Window) -> Prediction | None:
        """Returns the prediction of a window; None while there is no model, or if nothing of it has arrived."""
        self._newest.append(window)
        if self.serving is None or not window.data:
            self.skipped += 1
            return None
        return self._predict(self.serving, window, refined=False)

    def refine(self, part: LatePart, data: Mapping[str, Float32]) -> Prediction | None:
        """Returns the prediction of a window of which a part came after its deadline; None while there is no model.

        Args:
            part: what came.
            data: all of the window that is here by now, the part included.
        """
        if self.serving is None:
            return None
        window = Window(part.index, part.t_ns, self._length_ns, data, age_s={}, quality={})
        return self._predict(self.serving, window, refined=True)

    def _predict(self, serving: Serving, window: Window, *, refined: bool) -> Prediction | None:
        start_ns = self._clock.now_ns()
        logits = self._logits(serving.engine, window)
        if logits is None:
            return None
        serving = self.serving or serving  # it may have failed, and the one before it has taken its place
        number = int(logits.argmax())
        confidence = float(1.0 / np.exp(logits - logits[number]).sum())
        modalities = tuple(m for m in self._spec.modality_names if m in window.data)
        utc_ns, utc_err_ns = self._time.utc(window.t_ns)
        done_ns = self._clock.now_ns()
        late_ns = self._time.now_ns() - window.t_ns - window.length_ns
        self._emit(
            PredictionMade(
                self._device, window.index, self._spec.classes[number], confidence, (done_ns - start_ns) / 1e6,
                late_ns / 1e6, modalities, serving.version, refined,
            )
        )  # fmt: skip
        return Prediction(
            device=self._device,
            label=self._spec.classes[number],
            confidence=min(1.0, max(0.0, confidence)),
            utc_ns=utc_ns,
            utc_err_ns=utc_err_ns,
            modalities=modalities,
            version=serving.version,
        )

    def _logits(self, engine: Engine, window: Window) -> Float32 | None:
        """Returns logits (C,); None where no engine takes the window: the next one is the next chance."""
        try:
            logits: Float32 = engine.run(self._inputs(window), self._mask(window))[0]
        except (EngineError, ShapeMismatch) as error:
            self.failed += 1
            level = logging.ERROR if self.failed == 1 else logging.DEBUG
            log.log(level, "%s: window %d cannot be predicted: %s", self._device, window.index, error)
            return self._by_previous(window, str(error))
        return logits

    def _by_previous(self, window: Window, reason: str) -> Float32 | None:
        """Lets the previous engine try: if it can, the newer one is at fault and is thrown away."""
        failed, previous = self.serving, self.previous
        if failed is None or previous is None:
            return None
        try:
            logits: Float32 = previous.engine.run(self._inputs(window), self._mask(window))[0]
        except (EngineError, ShapeMismatch):
            return None
        self.serving, self.previous = previous, None
        log.error("%s: the engine before serves again, the newest one failed: %s", self._device, reason)
        self._emit(RolledBack(self._device, failed.version, previous.version, reason))
        self._now(f"{_name(failed)} failed and {_name(previous)} serves again: {reason}")
        return logits

    def _now(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()

    def swap(self, serving: Serving) -> None:
        """Serves another engine from the next window on; the one before is kept."""
        if self.serving is None or serving.engine is not self.serving.engine:
            self.previous = self.serving
        self.serving = serving
        self._now("")

    def rollback(self) -> bool:
        """Serves the previous engine again; False if there is none."""
        if self.previous is None:
            return False
        self.serving, self.previous = self.previous, self.serving
        return True

    def windows(self) -> tuple[Window, ...]:
        """Returns the newest windows, for a new engine to show what it makes of them."""
        return tuple(self._newest)

    def _inputs(self, window: Window) -> dict[str, Float32]:
        data = window.data
        return {m: data[m][None] if m in data else absent for m, absent in self._absent.items()}

    def _mask(self, window: Window) -> Float32:
        key = frozenset(window.data)
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = mask_row(tuple(key), self._spec.modality_names)
        return mask


def _name(serving: Serving) -> str:
    return "the device's own model" if serving.version is None else f"model {serving.version.number}"


__all__ = ["PROBE_WINDOWS", "Predictor", "Serving"]
