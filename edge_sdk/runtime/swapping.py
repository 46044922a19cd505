"""Builds an engine for every new model beside the one that serves, checks it, and puts it in place.

Building and what torch says of the same tensors are independent, so they run side by side; then the masks are tried
on both workers. Until a new engine has passed, the old one goes on. Where there is none yet, everything but predicting
goes on without one, and the next model is the next chance.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edge_sdk.core import parity
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import Compute
from edge_sdk.core.errors import EdgeError, EngineError
from edge_sdk.core.events import Observer
from edge_sdk.core.interfaces import Engine
from edge_sdk.core.records import Float32, ModelTensors, VersionId, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.events import EngineSwapped, SwapRefused
from edge_sdk.runtime.guard import Guard, judge
from edge_sdk.runtime.inference import PROBE_WINDOWS, Predictor, Serving

ENGINE = "engine"  # the ordered lane that builds engines
REFERENCE = "reference"  # the ordered lane of the model that they are compared with
NOTE_CHARS = 500
_NOTHING = "nothing is predicted: "

log = logging.getLogger(__name__)

Make = Callable[[ModelTensors], Engine]
Reference = Callable[[ModelTensors, Mapping[str, Float32], parity.Masks], parity.Logits]


@dataclass(frozen=True, slots=True)
class Proof:
    """How a new engine shows that it runs the model it was made from."""

    spec: FederationSpec
    reference: Reference | None  # what the logits should be; None: there is no torch, they must at least be finite
    tolerance: float  # largest error relative to the logits

    @property
    def masks(self) -> parity.Masks:
        """The masks that are tried: all modalities, and each one alone."""
        return parity.masks(self.spec)


@dataclass(frozen=True, slots=True)
class Kit:
    """What engines are made and proved with."""

    make: Make  # the engine that the configuration asks for
    proof: Proof
    interim: Make | None = None  # what serves while the first `make` takes minutes; None: nothing does


Tools = Callable[[], Awaitable[Kit]]


async def past_help(trouble: EdgeError) -> bool:
    """For those who cannot do anything about an engine that cannot be made."""
    return False


class Swapper:
    """Puts engines for new models in place, one at a time.

    Args:
        predictor: where they serve.
        tools: returns what the first engine is made and proved with; asked again after every failure.
        device: our id.
        clock: what swaps are timed on.
        compute: its engine and reference lanes build and check.
        emit: the observer.
        changed: called when `trouble` has changed.
        heal: called when a first engine could not be made; says whether it is worth a second attempt.
        guard: what a new model is compared with the old one on; None: whatever passes is taken.
    """

    def __init__(
        self,
        predictor: Predictor,
        tools: Tools,
        *,
        device: str,
        clock: Clock,
        compute: Compute,
        emit: Observer,
        changed: Callable[[], None] = lambda: None,
        heal: Callable[[EdgeError], Awaitable[bool]] = past_help,
        guard: Guard | None = None,
    ) -> None:
        self.refused = 0  # models that came to nothing
        self.degraded = 0  # models that serve on something else than the configuration asks for
        self.trouble = ""  # why nothing is predicted, or why the newest model does not serve
        self._predictor = predictor
        self._tools = tools
        self._device = device
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._changed = changed
        self._heal = heal
        self._guard = guard
        self._kit: Kit | None = None
        self._provisional = False  # an interim engine serves
        self._turn = asyncio.Lock()

    async def offer(self, version: VersionId | None, tensors: ModelTensors) -> bool:
        """Puts a model in place if its engine passes; False: the old one serves on, or none."""
        async with self._turn:
            start_ns = self._clock.now_ns()
            try:
                engine, error = await self._attempt(version, tensors)
                await self._compare(engine)
            except EdgeError as trouble:
                self.refuse(version, trouble)
                return False
            self._provisional = False
            self._swap(Serving(engine, version), start_ns, error)
            return True

    def _swap(self, serving: Serving, start_ns: int, error: float, provisional: str = "") -> None:
        degraded = provisional or serving.engine.degraded
        self.degraded += bool(degraded)
        self._predictor.swap(serving)
        swap_ms = (self._clock.now_ns() - start_ns) / NS * 1e3
        self._emit(EngineSwapped(self._device, serving.version, swap_ms, error, degraded))
        if degraded and self.degraded == 1:
            log.warning("%s: inference is degraded: %s", self._device, degraded)
        self._now(degraded and f"degraded: {degraded}")

    def refuse(self, version: VersionId | None, trouble: EdgeError) -> None:
        """Counts a model that cannot serve and says why, once."""
        self.refused += 1
        self._emit(SwapRefused(self._device, version, str(trouble)))
        if self._predictor.serving is not None:
            level = logging.ERROR if self.refused == 1 else logging.DEBUG
            log.log(level, "%s: a new model does not serve, the old one goes on: %s", self._device, trouble)
            name = "the device's own model" if version is None else f"model {version.number}"
            self._now(f"{name} is not taken: {trouble}")
            return
        if self.trouble != f"{_NOTHING}{trouble}":
            log.error(
                "%s: nothing is predicted: %s; sensing and training go on, and the next model is tried",
                self._device, trouble,
            )  # fmt: skip
        self._now(f"{_NOTHING}{trouble}")

    def _now(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()

    async def _attempt(self, version: VersionId | None, tensors: ModelTensors) -> tuple[Engine, float]:
        """Makes an engine; where there is none yet, with a second chance if what stood in the way can be mended."""
        try:
            return await self._made(version, tensors)
        except EdgeError as trouble:
            if self._predictor.serving is not None:
                raise
            self._kit = None
            if not await self._heal(trouble):
                raise
        return await self._made(version, tensors)

    async def _compare(self, engine: Engine) -> None:
        """Raises GuardError if the model that serves does better on the device's own labelled windows."""
        serving, data = self._predictor.serving, None if self._guard is None else self._guard.data()
        if serving is not None and self._guard is not None and data is not None:
            await self._compute.run(ENGINE, 0, judge, engine, serving.engine, data, self._guard.margin)

    async def _made(self, version: VersionId | None, tensors: ModelTensors) -> tuple[Engine, float]:
        """Returns an engine that has passed, and its error relative to the logits (NaN: nothing to compare with)."""
        kit = self._kit = self._kit or await self._tools()
        serving = self._predictor.serving
        if kit.interim is not None and (serving is None or self._provisional):
            return await self._in_two_steps(version, tensors, kit, kit.interim)
        make = kit.make if serving is None else serving.engine.with_tensors
        return await self._proved(make, tensors, kit.proof)

    async def _in_two_steps(
        self, version: VersionId | None, tensors: ModelTensors, kit: Kit, interim: Make
    ) -> tuple[Engine, float]:
        """Lets something quick serve while the engine that is asked for is built, which may take minutes.

        Where that comes to nothing, the quick one stays, for this model and all that follow.
        """
        start_ns = self._clock.now_ns()
        quick, error = await self._proved(interim, tensors, kit.proof)
        self._provisional = True
        self._swap(Serving(quick, version), start_ns, error, f"{quick.provider} serves while the engine is built")
        try:
            return await self._proved(kit.make, tensors, kit.proof)
        except EdgeError as trouble:
            log.error("%s: the engine that is asked for cannot be built: %s", self._device, trouble)
            quick.degraded = f"{quick.provider} serves, the engine cannot be built: {trouble}"
            self._kit = replace(kit, interim=None)
            return quick, error

    async def _proved(self, make: Make, tensors: ModelTensors, proof: Proof) -> tuple[Engine, float]:
        windows = self._predictor.windows()
        if proof.reference is None:
            return await self._compute.run(ENGINE, 0, _finite, make, tensors, windows, proof), math.nan
        async with self._clock.group() as group:
            truth = group.start(
                self._compute.run(REFERENCE, 0, _truth, proof.reference, tensors, windows, proof),
                name=f"{self._device} parity",
            )  # fmt: skip
            engine = await self._compute.run(ENGINE, 0, built, make, tensors)
            x, expected = await truth
        return engine, await self._error(engine, expected, x, proof)

    async def _error(self, engine: Engine, expected: parity.Logits, x: Mapping[str, Float32], proof: Proof) -> float:
        """Tries the masks on both workers; ParityError if the engine does not pass under one of them."""
        rows = list(proof.masks.items())
        shares = [(lane, dict(rows[i::2])) for i, lane in enumerate((ENGINE, REFERENCE)) if rows[i::2]]
        reports = await asyncio.gather(
            *(
                self._compute.run(lane, 0, _compared, engine, expected, x, share, proof.tolerance)
                for lane, share in shares
            )
        )
        return max(report.require().max_rel for report in reports)


def built(make: Make, tensors: ModelTensors) -> Engine:
    """Returns an engine.

    Raises:
        EdgeError: it cannot be made; what a vendor's library raises comes as EngineError.
    """
    try:
        return make(tensors)
    except EdgeError:
        raise
    except Exception as error:
        raise EngineError(f"the engine cannot be made: {type(error).__name__}: {error}") from error


def probe(spec: FederationSpec, windows: Sequence[Window]) -> dict[str, Float32]:
    """Returns windows as one batch, seeded noise where something is missing: what parity is tried on."""
    rows = [window for window in windows if window.data]
    x = parity.noise(spec, len(rows) or PROBE_WINDOWS, 0)
    for i, window in enumerate(rows):
        for m, data in window.data.items():
            x[m][i] = data
    return x


def _finite(make: Make, tensors: ModelTensors, windows: Sequence[Window], proof: Proof) -> Engine:
    engine = built(make, tensors)
    parity.check_finite(engine, probe(proof.spec, windows), rows=proof.masks)
    return engine


def _truth(
    reference: Reference, tensors: ModelTensors, windows: Sequence[Window], proof: Proof
) -> tuple[dict[str, Float32], parity.Logits]:
    x = probe(proof.spec, windows)
    return x, reference(tensors, x, proof.masks)


def _compared(
    engine: Engine, expected: parity.Logits, x: Mapping[str, Float32], rows: parity.Masks, tolerance: float
) -> parity.ParityReport:
    return parity.compare(engine, expected, x, rows=rows, tolerance=tolerance)


__all__ = [
    "ENGINE",
    "NOTE_CHARS",
    "REFERENCE",
    "Kit",
    "Make",
    "Proof",
    "Reference",
    "Swapper",
    "Tools",
    "built",
    "past_help",
    "probe",
]  # fmt: skip
