"""The process of the embedded broker: amqtt with user names and passwords, always.

Run as `python -m edge_sdk.transport.embedded`. Facts about amqtt 0.11 that shaped this:
- asyncio's server sockets have TCP_NODELAY set (since Python 3.6), so there is no Nagle delay to remove.
- It sends a client that connects every retained message that *anybody* subscribes to; leaves the old connection open
  when its client id connects again; and never looks for clients that have vanished. `_Broker` puts these right.
- Retained messages live in memory only: the coordinator publishes them again on every connect.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import BaseContext
from amqtt.errors import BrokerError
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import Session

from edge_sdk.core.errors import ConfigError
from edge_sdk.transport.passwords import read_password_file, verify

READY = "ready"  # the line on stdout that says: connect now
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}  # gone after a minute
BUSY = 3  # exit status: the port is taken


class PasswordAuth(BaseAuthPlugin):  # type: ignore[misc]  # amqtt has no type information
    """Admits the users of a password file; the file is read again when it has changed."""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._path = Path(self._get_config_option("password_file", ""))
        self._stamp = 0
        self._users: dict[str, str] = {}

    async def authenticate(self, *, session: Session) -> bool:
        """Says whether this client may connect."""
        self._refresh()
        hashed = self._users.get(session.username or "")
        return hashed is not None and verify(session.password or "", hashed)

    def _refresh(self) -> None:
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._users = read_password_file(self._path)
                self._stamp = stamp
        except (OSError, ConfigError) as error:
            logging.getLogger(__name__).error("the password file cannot be used, the last state counts: %s", error)

    @dataclass
    class Config:
        """Options of the plug-in, as amqtt wants them."""

        password_file: str = ""


class _Broker(Broker):  # type: ignore[misc]  # amqtt has no type information
    """amqtt's broker without the faults named above."""

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Lets the kernel find out about peers that vanished without a word: their last will is due."""
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        await super().stream_connected(reader, writer, listener_name)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        members = self._subscriptions.get(subscription[0], ())
        if any(member.client_id == session.client_id for member, _ in members):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _delete_session(self, client_id: str) -> None:
        _, handler = self._sessions.get(client_id, (None, None))
        await super()._delete_session(client_id)
        if handler is not None:
            await handler.handle_connection_closed()  # and so its will is published and its socket closed


async def serve(host: str, port: int, *, password_file: Path, follow_parent: bool) -> int:
    """Runs the broker until a signal, or the end of stdin when it follows its parent; returns the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    broker = _Broker(_config(host, port, password_file))
    try:
        await broker.start()
    except (BrokerError, OSError) as error:
        cause = error.__cause__ or error
        sys.stderr.write(f"{cause}\n")
        return BUSY if isinstance(cause, OSError) else 1
    if follow_parent:
        os.set_blocking(sys.stdin.fileno(), False)
        loop.add_reader(sys.stdin.fileno(), _parent_is_gone, stop)
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    await stop.wait()
    await broker.shutdown()
    return 0


def _parent_is_gone(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def _config(host: str, port: int, password_file: Path) -> dict[str, Any]:
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return {
        "listeners": {"default": {"type": "tcp", "bind": bind, "max_connections": 0}},
        "plugins": {f"{__name__}.PasswordAuth": {"password_file": str(password_file)}},
    }


__all__ = ["BUSY", "READY", "PasswordAuth", "serve"]
