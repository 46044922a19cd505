"""A device that trains by itself: it gives itself tasks and goes on from its own model."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge_sdk.codecs.wire import tensors_digest
from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import TRAIN, Compute
from edge_sdk.core.errors import StoreError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import Plan, Task
from edge_sdk.core.records import ModelTensors, ModelVersion, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.seeds import derive
from edge_sdk.runtime import jobs
from edge_sdk.runtime.events import TaskAbandoned, TaskStarted
from edge_sdk.runtime.state import SOLO, STATE, DeviceState
from edge_sdk.runtime.trainer import Abandoned, Trainer

LINEAGE = "0" * 32  # no coordinator made these versions
PAUSE_S = 60.0  # of the stream clock, between two tasks: data have to come first

log = logging.getLogger(__name__)


class Solo:
    """Trains task after task from the device's own model.

    Args:
        spec: the federation's spec, from a file.
        trainer: carries out tasks.
        state: keeps the model.
        device: our id.
        seed: the device's seed.
        stream_clock: what pauses are counted on.
        compute: where files are written.
        emit: the observer.
        own: gets the model after every task.
    """

    def __init__(
        self,
        spec: FederationSpec,
        trainer: Trainer,
        *,
        state: DeviceState,
        device: str,
        seed: int,
        stream_clock: Clock,
        compute: Compute,
        emit: Observer,
        own: Callable[[ModelTensors], None],
    ) -> None:
        self._spec = spec
        self._trainer = trainer
        self._state = state
        self._device = device
        self._seed = seed
        self._stream_clock = stream_clock
        self._compute = compute
        self._emit = emit
        self._own = own

    async def run(self) -> None:
        """Trains for ever."""
        model = await self._begin()
        while True:
            model = await self._task(model)
            await self._stream_clock.sleep(PAUSE_S)

    async def _begin(self) -> ModelVersion:
        kept = await self._compute.run(STATE, 0, self._state.model, SOLO, self._spec.shape_digest)
        if kept is not None:
            return kept
        seed = derive(self._seed, self._device, "initial model")
        tensors = await self._compute.run(TRAIN, 0, jobs.initial, self._spec, seed)
        self._own(tensors)
        return ModelVersion(VersionId(LINEAGE, 0, tensors_digest(tensors)), tensors)

    async def _task(self, model: ModelVersion) -> ModelVersion:
        number = model.id.number + 1
        task = Task(f"solo-{number}", "train", model.id, self._plan(number), number, 0.0)
        self._emit(TaskStarted(self._device, task.id, number, model.id, task.plan))
        trained = await self._trainer.carry_out(task, model.tensors, {})
        if isinstance(trained, Abandoned):
            log.warning("%s: %s abandoned: %s", self._device, task.id, trained.reason)
            self._emit(TaskAbandoned(self._device, task.id, trained.reason))
            return model
        tensors = {**model.tensors, **trained.tensors}
        made = ModelVersion(VersionId(LINEAGE, number, tensors_digest(tensors)), tensors)
        try:
            await self._compute.run(STATE, 0, self._state.keep_model, SOLO, made, self._spec.shape_digest)
        except StoreError as error:
            log.error("%s: its model is not kept over a restart: %s", self._device, error)
        self._own(tensors)
        return made

    def _plan(self, number: int) -> Plan:
        training = self._spec.training
        lr = training.lr * training.lr_decay ** (number - 1)
        return Plan(self._trainer.modalities, training.epochs, lr, training.batch_size)


__all__ = ["LINEAGE", "PAUSE_S", "Solo"]
