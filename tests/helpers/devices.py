"""Devices for tests: the real runtime over the memory transport, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import ModelledCompute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.interfaces import RoundSource
from edge_sdk.runtime.device import Device, last_will
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.link import Link
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from tests.helpers.office import Office, Table, small_data, small_spec

E = TypeVar("E")


@dataclass
class World:
    """A broker, a coordinator by hand and one device."""

    clock: Clock
    broker: MemoryBroker
    office: Office
    device: Device
    transport: MemoryTransport
    state: DeviceState
    rounds: RoundSource
    events: list[Any] = field(default_factory=list)

    def of(self, kind: type[E]) -> list[E]:
        """Returns the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, ready: Callable[[], bool], limit_s: float = 3600.0) -> None:
        """Waits until something holds; TimeoutError if it does not for too long."""
        async with self.clock.deadline(limit_s):
            while not ready():
                await self.clock.sleep(0.05)


def device_config(**sections: Any) -> DeviceConfig:
    return DeviceConfig.model_validate({"device": {"id": "d1", "federation": "home"}, **sections})


def world(
    clock: Clock,
    *,
    state: DeviceState | None = None,
    link: Link | None = None,
    after_s: dict[str, float] | None = None,
    config: DeviceConfig | None = None,
    cost_s: float = 1.0,
    spec_options: dict[str, Any] | None = None,
    **office_options: Any,
) -> World:
    spec = small_spec(**(spec_options or {}))
    broker = MemoryBroker(clock)
    office = Office(spec, MemoryTransport(broker, "coordinator"), clock, **office_options)
    state = state or DeviceState.in_memory("d1", incarnation=5)
    config = config or device_config()
    transport = MemoryTransport(broker, "d1", will=last_will(config, state), link=link)
    rounds = Table(small_data(spec), clock, after_s)
    events: list[Any] = []
    device = Device(
        config, transport=transport, clock=clock, compute=ModelledCompute(clock), rounds=rounds,
        cost=lambda job: round(cost_s * 1e9), observer=events.append, state=state,
    )  # fmt: skip
    return World(clock, broker, office, device, transport, state, rounds, events)


__all__ = ["World", "device_config", "world"]
