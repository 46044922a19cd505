"""Plays JPEG files as a live RTSP stream on the loopback; prints its address. Run by the system's Python, which has gi.

python3 rtsp_server.py FOLDER FPS PORT     port 0: a free one; FOLDER/flash, while it is there, is shown instead
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtspServer  # noqa: E402, F401

CAPS = "image/jpeg,width=320,height=240,framerate={fps}/1"


class Camera:
    """Pushes frame n when n periods have passed since the viewer came."""

    def __init__(self, folder: str, fps: int) -> None:
        self.fps = fps
        self.flash = Path(folder) / "flash"
        self.jpegs = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]

    def configure(self, factory: Any, media: Any) -> None:
        source = media.get_element().get_by_name_recurse_up("source")
        begin, sent = time.monotonic(), [0]

        def push() -> bool:
            while sent[0] < (time.monotonic() - begin) * self.fps:
                flash = self.flash.read_bytes() if self.flash.exists() else b""
                buffer = Gst.Buffer.new_wrapped(flash or self.jpegs[sent[0] % len(self.jpegs)])
                if source.push_buffer(buffer) is not Gst.FlowReturn.OK:
                    return False
                sent[0] += 1
            return True

        GLib.timeout_add(3, push)


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[3])
    fps = int(sys.argv[2])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f'( appsrc name=source is-live=true do-timestamp=true format=time caps="{CAPS.format(fps=fps)}" ! '
        "rtpjpegpay name=pay0 )"
    )
    factory.connect("media-configure", Camera(sys.argv[1], fps).configure)
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    print(f"rtsp://127.0.0.1:{server.get_bound_port()}/camera", flush=True)
    GLib.MainLoop().run()


main()
