"""A slow cable in front of a broker: a TCP proxy that lets so many bytes a second through, and counts them."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType

_PIECE = 16 * 1024


class SlowLink:
    """Listens on a port of its own and dials the broker anew for every connection.

    Args:
        port: of the broker, on the loopback.
        bytes_per_s: in each direction, over all connections.
    """

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self._target = port
        self._rate = bytes_per_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.up = 0  # bytes that went to the broker
        self.down = 0
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> SlowLink:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for one in [self._server, *self._sockets]:
            _shut(one)
        for thread in self._threads:
            thread.join(10)
        for one in [self._server, *self._sockets]:
            one.close()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                _shut(near)
                continue
            far.settimeout(None)
            self._sockets.append(far)
            self._start(self._pipe, near, far, "up")
            self._start(self._pipe, far, near, "down")

    def _pipe(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(_PIECE):
                time.sleep(len(data) / self._rate)
                sink.sendall(data)
                if way == "up":
                    self.up += len(data)
                else:
                    self.down += len(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


__all__ = ["SlowLink"]
