"""A paho client whose connecting can be given up: a broker that does not answer must not hold up the program's end."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client

from edge_sdk.core.clock import NS, monotonic_ns

_LOOK_S = 0.1  # between two looks at whether we are still wanted


class DiallingClient(Client):
    """A paho client that asks while it connects whether it is still wanted.

    Args:
        given_up: says that nobody waits for the connection any more; called in the dialling thread.
        arguments: paho's.
    """

    def __init__(self, given_up: Callable[[], bool], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._given_up = given_up

    def _create_socket_connection(self) -> socket.socket:
        return connect(self._host, self._port, timeout_s=self._connect_timeout, given_up=self._given_up)


def connect(host: str, port: int, *, timeout_s: float, given_up: Callable[[], bool]) -> socket.socket:
    """Returns a connected socket with this time-out; blocks.

    Raises:
        OSError: no address of the host answers in time, or it was given up.
    """
    trouble = OSError(errno.EHOSTUNREACH, f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(0.0)
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                code = _outcome(sock, timeout_s, given_up)
            if code:
                raise OSError(code, os.strerror(code))
            sock.settimeout(timeout_s)
        except OSError as error:
            sock.close()
            trouble = error
        else:
            return sock
    raise trouble


def _outcome(sock: socket.socket, timeout_s: float, given_up: Callable[[], bool]) -> int:
    """Waits for a connection under way; returns 0 or an errno."""
    end_ns = monotonic_ns() + round(timeout_s * NS)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while not poll.poll(_LOOK_S * 1000):
        if given_up():
            return errno.ECANCELED
        if monotonic_ns() > end_ns:
            return errno.ETIMEDOUT
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


__all__ = ["DiallingClient", "connect"]
