"""Connecting that can be given up."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.transport.dialling import connect
from tests.helpers.brokers import dead_port


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue is full."""
    with ExitStack() as stack:
        holder = stack.enter_context(socket.socket())
        holder.bind(("127.0.0.1", 0))
        holder.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.0)
            filler.connect_ex(holder.getsockname())
        yield holder.getsockname()[1]


def test_connects_with_the_time_out_asked_for() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with connect("127.0.0.1", holder.getsockname()[1], timeout_s=7.0, given_up=lambda: False) as made:
            assert made.gettimeout() == 7.0
            assert made.getpeername() == holder.getsockname()


def test_is_given_up(silent: int) -> None:
    start_ns = monotonic_ns()
    with pytest.raises(OSError, match="ancel") as raised:
        connect("127.0.0.1", silent, timeout_s=60.0, given_up=lambda: monotonic_ns() - start_ns > 300_000_000)
    assert raised.value.errno == errno.ECANCELED
    assert monotonic_ns() - start_ns < 30_000_000_000


def test_times_out(silent: int) -> None:
    with pytest.raises(TimeoutError):
        connect("127.0.0.1", silent, timeout_s=0.2, given_up=lambda: False)


def test_a_refusal_is_told() -> None:
    with dead_port() as port, pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", port, timeout_s=5.0, given_up=lambda: False)
