"""A network camera without a camera: an MJPEG server on the loopback whose frames carry their number."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

BITS = 16
SQUARE = 16  # pixels
WIDTH, HEIGHT = 320, 240


def numbered(n: int) -> Any:
    """Returns a grey image, uint8 (HEIGHT, WIDTH, 3) BGR, with n drawn as a row of black and white squares."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for bit in range(BITS):
        image[0:SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = 255 if n >> bit & 1 else 0
    image[HEIGHT // 2 :] = (0, 0, 200)  # red below
    return image


def white() -> Any:
    """Returns what a camera sees of a flash, uint8 (HEIGHT, WIDTH, 3)."""
    return np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


def number(image: Any) -> int:
    """Returns the number drawn into an image (3, HEIGHT, WIDTH)."""
    middle = image[:, SQUARE // 2, SQUARE // 2 : BITS * SQUARE : SQUARE].mean(axis=0) > 128
    return int(sum(int(bit) << i for i, bit in enumerate(middle)))


class MjpegCamera:
    """Serves numbered frames at a steady rate; as a context manager.

    Args:
        fps: frames per second.
        frames: after so many a connection goes quiet, and stays open; None: never.
        mute: answers no request at all.
        port: of the loopback; 0: a free one.
    """

    def __init__(self, fps: float = 30.0, *, frames: int | None = None, mute: bool = False, port: int = 0) -> None:
        import cv2

        self.fps = fps
        self.frames = frames
        self.mute = mute
        self.sent_ns: dict[int, int] = {}  # number → host monotonic time at which the newest connection got it
        self.ended = threading.Event()
        self.flashing = threading.Event()  # set: frames are white
        encode = [cv2.IMWRITE_JPEG_QUALITY, 85]
        self._jpegs = [cv2.imencode(".jpg", numbered(n), encode)[1].tobytes() for n in range(600)]
        self._white = cv2.imencode(".jpg", white(), encode)[1].tobytes()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/camera.mjpg"

    def __enter__(self) -> MjpegCamera:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(camera) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request's below
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                with suppress(OSError):  # the viewer is gone
                    camera._serve(self)

        return Handler

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        if self.mute:
            self.ended.wait()
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=F")
        request.end_headers()
        start, n = time.monotonic(), 0
        while not self.ended.wait(max(0.0, start + n / self.fps - time.monotonic())):
            if n == self.frames:
                self.ended.wait()
                return
            jpeg = self._white if self.flashing.is_set() else self._jpegs[n % len(self._jpegs)]
            self.sent_ns[n] = time.monotonic_ns()
            head = b"--F\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            request.wfile.write(head + jpeg + b"\r\n")
            n += 1
