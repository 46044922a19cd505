"""Tests published versions, or their running mean, off the loop and one at a time; mixing never waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from coordinator.config import EvaluateConfig
from coordinator.evaluate import Evaluation, evaluate
from coordinator.publish import STORE
from coordinator.store import Store, Stored
from edge_sdk.core.compute import Compute
from edge_sdk.core.records import Dataset, ModelTensors
from edge_sdk.core.running_mean import RunningMean
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.records import Needs

EVALUATE = "evaluate"  # its own ordered lane


class Evaluator:
    """Evaluates every so many updates; a version that waits gives way to a newer one.

    Args:
        config: the [evaluate] section.
        spec: the federation's spec.
        needs: what the method needs of the model.
        test: held-out rows; None: nothing is evaluated.
        compute: runs the evaluation.
        store: gives the tensors.
        done: awaited with every result.
    """

    def __init__(
        self, config: EvaluateConfig, spec: FederationSpec, needs: Needs, *, test: Dataset | None, compute: Compute,
        store: Store, done: Callable[[Stored, Evaluation], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._config = config
        self._spec = spec
        self._needs = needs
        self._test = test
        self._compute = compute
        self._store = store
        self._done = done
        self._last: Stored | None = None  # taken for evaluation
        self._queue: deque[Stored] = deque()  # to be read: the newest to evaluate, and what the mean has to see
        self._mean = RunningMean(config.running_mean) if config.running_mean < 1.0 else None
        self.tested: ModelTensors | None = None  # what was evaluated last
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()  # no result is to come
        self.idle.set()

    @property
    def in_use(self) -> frozenset[int]:
        """Versions whose tensors are about to be read."""
        return frozenset(stored.id.number for stored in self._queue)

    def offer(self, stored: Stored, *, final: bool = False) -> None:
        """Takes a version if it is time for one; `final` versions are always taken, unless they were already."""
        if self._test is None or (self._last is not None and self._last.id == stored.id):
            return
        due = self._last is None or stored.updates - self._last.updates >= self._config.every_updates
        if due or final:
            self._last = stored
        elif self._mean is None:
            return
        if self._mean is None:
            self._queue.clear()
        self._queue.append(stored)
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Evaluates what is offered, for ever."""
        while True:
            self._wake.clear()
            if not self._queue or self._test is None:
                self.idle.set()
                await self._wake.wait()
                continue
            stored = self._queue.popleft()
            due = self._last is not None and stored.id == self._last.id
            tensors = await self._compute.run(STORE, 0, self._store.tensors, stored.id)
            if self._mean is not None:
                tensors = await self._compute.run(EVALUATE, 0, self._mean.take, stored.id, tensors)
            if not due:
                continue
            self.tested = tensors
            result = await self._compute.run(
                EVALUATE, 0, evaluate, self._spec, self._needs, tensors, self._test, self._config.max_rows
            )
            await self._done(stored, result)


__all__ = ["EVALUATE", "Evaluator"]
