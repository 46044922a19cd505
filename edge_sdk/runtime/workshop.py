"""What a device's first engine is made with: the graph, the engine's plug-in, and the truth to compare it with."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

from edge_sdk.core import registry
from edge_sdk.core.compute import TRAIN, Compute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import ConfigError, EdgeError, EngineError, ParityError, ShapeMismatch
from edge_sdk.core.interfaces import EngineOptions
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime import graphs
from edge_sdk.runtime.swapping import ENGINE, REFERENCE, Kit, Make, Proof, Reference

_ROUNDING = {"fp32": 0.0, "fp16": 2e-2}  # what a precision may cost, relative to the logits

log = logging.getLogger(__name__)


class Workshop:
    """Makes ready what engines are made with, as often as it is asked.

    Args:
        spec: the federation's spec.
        config: names engine and graph.
        folder: where an exported graph is kept; None: in a temporary folder.
        compute: graphs are exported in its train lane, libraries imported in those of the engines.
    """

    def __init__(self, spec: FederationSpec, config: DeviceConfig, folder: Path | None, compute: Compute) -> None:
        self._spec = spec
        self._config = config
        self._folder = folder
        self._compute = compute
        self._reference: Reference | None = None
        self._fresh = False  # our graph was exported in this life

    async def tools(self) -> Kit:
        """Returns what makes the first engine, and what every engine has to pass.

        Raises:
            EdgeError: the engine's library is missing, or there is no graph and none can be exported.
        """
        config = self._config.inference
        engine = await self._compute.run(ENGINE, 0, _engine, config.engine)
        graph = config.graph or await self._exported()
        if self._config.training.enabled and config.engine != "torch" and self._reference is None:
            self._reference = await self._compute.run(REFERENCE, 0, _reference, self._spec)
        options = self._options()
        interim: Make | None = None
        if options.fallback and engine.takes_long(options):
            quick = await self._compute.run(ENGINE, 0, _engine, "ort")
            interim = partial(quick.open, graph, options=EngineOptions(threads=config.threads))
        make: Make = partial(engine.open, graph, options=options)
        tolerance = max(config.parity_tolerance, _ROUNDING[config.precision])
        return Kit(make, Proof(self._spec, self._reference, tolerance), interim)

    def _options(self) -> EngineOptions:
        config = self._config.inference
        own = None if self._folder is None else self._folder / "engines"
        return EngineOptions(
            provider=config.provider, fallback=config.fallback, precision=config.precision, threads=config.threads,
            cache=config.cache or own, build_limit_s=config.build_limit_s,
        )  # fmt: skip

    async def heal(self, trouble: EdgeError) -> bool:
        """Throws away a graph that we exported in an earlier life: it may be damaged, or of another method.

        Returns:
            Whether there was one, so that it is worth trying again.
        """
        ours = self._config.inference.graph is None and self._folder is not None
        of_the_graph = isinstance(trouble, EngineError | ShapeMismatch) and not isinstance(trouble, ParityError)
        if not ours or self._fresh or not of_the_graph:
            return False
        log.warning("the exported graph is made anew: %s", trouble)
        await self._compute.run(ENGINE, 0, _remove, self._path(cast(Path, self._folder)))
        return True

    async def _exported(self) -> Path:
        """Returns a graph of this spec's model, exported here if there is none yet."""
        if not self._config.training.enabled:
            raise ConfigError(
                "inference.graph is not set: a device that does not train cannot export a graph; make one with "
                "`edge-coordinator export` and name it in the configuration"
            )
        from edge_sdk.runtime import jobs

        if self._folder is None:
            self._folder = Path(await self._compute.run(ENGINE, 0, tempfile.mkdtemp, prefix="edge-sdk-"))
        graph = self._path(self._folder)
        if graph.exists():
            return graph
        self._fresh = True
        try:
            await self._compute.run(TRAIN, 0, jobs.export_graph, self._spec, graph)
        except EdgeError:
            raise
        except Exception as error:
            raise EngineError(f"the graph cannot be exported: {type(error).__name__}: {error}") from error
        return graph

    def _path(self, folder: Path) -> Path:
        return folder / graphs.name_of(self._spec)


def _engine(name: str) -> Any:
    """Imports an engine's library, which takes a while."""
    return registry.load("engines", name)


def _reference(spec: FederationSpec) -> Reference:
    from edge_sdk.runtime.reference import TorchReference

    return TorchReference(spec)


def _remove(graph: Path) -> None:
    for path in (graph, graphs.sidecar_path(graph)):
        path.unlink(missing_ok=True)


__all__ = ["Workshop"]
