"""Reading a transport's events in tests, and the three kinds of network that the contract suite runs over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from edge_sdk.core.clock import Clock, VirtualClock, WallClock, run_virtual
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.interfaces import Connected, Disconnected, Message, Transport, TransportEvent
from edge_sdk.transport.inbox import Will
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from edge_sdk.transport.mqtt import MqttTransport
from tests.helpers.brokers import Embedded, Mosquitto, Proxy


class Peer:
    """A transport and what it has received so far."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self.transport = transport
        self.seen: list[TransportEvent] = []
        self._events = transport.events()
        self._clock = clock

    async def next(self, timeout_s: float = 10.0) -> TransportEvent:
        async with self._clock.deadline(timeout_s):
            event = await self._events.__anext__()
        self.seen.append(event)
        return event

    async def message(self, timeout_s: float = 10.0) -> Message:
        """Returns the next message; other events are kept in `seen`."""
        while True:
            event = await self.next(timeout_s)
            if isinstance(event, Message):
                return event

    async def connected(self, timeout_s: float = 10.0) -> Connected:
        while True:
            event = await self.next(timeout_s)
            if isinstance(event, Connected):
                return event

    async def disconnected(self, timeout_s: float = 10.0) -> Disconnected:
        while True:
            event = await self.next(timeout_s)
            if isinstance(event, Disconnected):
                return event

    async def nothing(self, for_s: float = 0.2) -> None:
        """Fails if a message comes."""
        with suppress(TimeoutError):
            message = await self.message(for_s)
            pytest.fail(f"nothing was expected, found {message.topic} {message.payload[:40]!r}")


class Network:
    """Somewhere clients can meet: what the contract tests are written against."""

    clock: Clock

    async def peer(self, name: str, *, will: Will | None = None, filters: tuple[str, ...] = ()) -> Peer:
        """Returns a client that is connected and subscribed."""
        peer = await self.stranger(name, will=will)
        await peer.transport.subscribe(*filters)
        await peer.transport.start()
        await peer.connected()
        return peer

    async def stranger(self, name: str, *, will: Will | None = None) -> Peer:
        """Returns a client that is not started."""
        raise NotImplementedError

    async def cut(self, name: str) -> None:
        """Breaks a client's connection; it comes back by itself."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Stops and starts the broker."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Closes all clients."""
        raise NotImplementedError


class MemoryNetwork(Network):
    """The memory transport."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.broker = MemoryBroker(clock)
        self._peers: list[Peer] = []

    async def stranger(self, name: str, *, will: Will | None = None) -> Peer:
        self._peers.append(Peer(MemoryTransport(self.broker, name, will=will), self.clock))
        return self._peers[-1]

    async def cut(self, name: str) -> None:
        self.broker.drop(name)
        self.broker.reconnect(name)

    async def restart(self) -> None:
        self.broker.stop()
        await self.clock.sleep(1.0)
        self.broker.start()

    async def aclose(self) -> None:
        for peer in self._peers:
            await peer.transport.aclose()


class MqttNetwork(Network):
    """A real broker; each client has a proxy of its own in between."""

    def __init__(self, broker: Mosquitto | Embedded) -> None:
        self.clock = WallClock()
        self.broker = broker
        self.proxies: dict[str, Proxy] = {}
        self._peers: list[Peer] = []

    async def stranger(self, name: str, *, will: Will | None = None) -> Peer:
        if name not in self.proxies:
            self.proxies[name] = await Proxy(self.broker).__aenter__()
        config = self.broker.config(name).model_copy(update={"port": self.proxies[name].port})
        transport = MqttTransport(config, name, clock=self.clock, compute=InlineCompute(), will=will)
        self._peers.append(Peer(transport, self.clock))
        return self._peers[-1]

    async def cut(self, name: str) -> None:
        self.proxies[name].cut()

    async def restart(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.broker.restart)

    async def aclose(self) -> None:
        for peer in self._peers:
            await peer.transport.aclose()
        for proxy in self.proxies.values():
            await proxy.__aexit__()


Scenario = Callable[[Network], Awaitable[None]]


def play(broker: Mosquitto | Embedded | None, scenario: Scenario) -> None:
    """Runs a scenario over the memory transport on virtual time, or over a real broker on the wall clock."""
    if broker is None:
        run_virtual(lambda clock: _within(MemoryNetwork(clock), scenario))
    else:
        asyncio.run(_within(MqttNetwork(broker), scenario))


async def _within(network: Network, scenario: Scenario) -> None:
    try:
        await scenario(network)
    finally:
        await network.aclose()


__all__ = ["MemoryNetwork", "MqttNetwork", "Network", "Peer", "Scenario", "play"]
