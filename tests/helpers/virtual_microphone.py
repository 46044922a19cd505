"""A microphone without a sound card: PulseAudio's null sink, whose monitor PortAudio records.

Everything lives in one folder: socket, home, .asoundrc. PortAudio looks for devices when it is imported, so whoever
listens does it in a process of its own, started with `Sound.env`:

    python -m tests.helpers.virtual_microphone DEVICE SECONDS OPTIONS

records through the driver and writes .npz to stdout.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

RATE = 16_000
SINK = "virtual"
MARK = "EDGE_TEST_SOUND"  # set in processes that run under a Sound
NEEDS = ("pulseaudio", "pactl", "paplay")  # apt install pulseaudio pulseaudio-utils libasound2-plugins
LATENCY_MS = 250  # shorter blocks lose samples on a busy machine, without a flag
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Returns why there can be no virtual microphone here; "": there can."""
    lacking = [tool for tool in NEEDS if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed: apt install pulseaudio pulseaudio-utils libasound2-plugins"
    try:
        import sounddevice  # noqa: F401
    except ImportError:
        return "sounddevice is not installed (extra `mic`)"
    except OSError:
        return "PortAudio is not installed: apt install libportaudio2"
    return ""


class Sound:
    """A private PulseAudio server with a null sink; as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        socket = folder / "socket"
        self.env = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_SERVER": f"unix:{socket}",
            "PULSE_LATENCY_MSEC": str(LATENCY_MS),
            "PYTHONPATH": str(ROOT),
        }
        (folder / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self._socket = socket
        self._modules = [
            f"module-native-protocol-unix socket={socket} auth-anonymous=1",
            f"module-null-sink sink_name={SINK} rate={RATE} channels=1 format=s16le",
        ]

    def __enter__(self) -> Sound:
        self.plug()
        return self

    def plug(self) -> None:
        """Starts the server (again)."""
        self._socket.unlink(missing_ok=True)
        loads = [part for module in self._modules for part in ("-L", module)]
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--log-level=error", *loads]
        self._server = subprocess.Popen(command, env=self.env, stderr=subprocess.DEVNULL)
        for _ in range(100):
            chosen = ["pactl", "set-default-source", f"{SINK}.monitor"]
            if subprocess.run(chosen, env=self.env, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                return
            time.sleep(0.05)
        self._server.kill()
        self._server.wait()
        raise RuntimeError("PulseAudio does not answer")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unplug()

    def unplug(self) -> None:
        """Ends the server: the microphone is gone."""
        self._server.terminate()
        self._server.wait(10)

    def start(self, code: str) -> subprocess.Popen[str]:
        """Runs Python in a process whose PortAudio knows this server."""
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, samples: Any) -> None:
        """Plays int16 (n,) at RATE and returns when it is over."""
        path = self.folder / "played.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.astype("<i2").tobytes())
        subprocess.run(["paplay", "--latency-msec=60", f"--device={SINK}", str(path)], env=self.env, check=True)

    def record(self, device: str, seconds: float, samples: Any, **options: Any) -> Any:
        """Plays the samples while another process records; returns what it recorded, as in `_record`."""
        command = [sys.executable, "-m", "tests.helpers.virtual_microphone", device, str(seconds), json.dumps(options)]
        listener = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert listener.stderr is not None
        said = b""
        for line in listener.stderr:  # the first block comes up to two seconds after the opening
            if line == b"recording\n":
                break
            said += line
        player = threading.Thread(target=self.play, args=(samples,))
        player.start()
        out, more = listener.communicate(timeout=60)
        player.join()
        if listener.returncode:
            raise RuntimeError((said + more).decode())
        return np.load(io.BytesIO(out))


def _record(device: str, seconds: float, options: dict[str, Any]) -> dict[str, Any]:
    """Returns samples (n,), and of each chunk the start, length, period and error, ns."""
    from sensors.microphone import MicrophoneDriver

    driver = MicrophoneDriver("audio", {"device": device, "block_s": LATENCY_MS / 1e3, **options})
    for _ in range(2):  # the second opening lists the devices anew, as after a microphone was plugged in again
        driver.open()
    chunks: list[Any] = []
    while sum(len(c.data) for c in chunks) < seconds * RATE:
        chunk = driver.read(0.2)
        if chunk is not None:
            if not chunks:
                sys.stderr.write("recording\n")
                sys.stderr.flush()
            chunks.append(chunk)
    driver.close()
    return {
        "samples": np.concatenate([c.data[:, 0] for c in chunks]),
        "chunks": np.array([(c.t_ns, len(c.data), c.period_ns, c.t_err_ns, c.gap_before) for c in chunks], np.int64),
    }


def main() -> None:
    """Records as the arguments say."""
    buffer = io.BytesIO()
    np.savez(buffer, **_record(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])))
    sys.stdout.buffer.write(buffer.getvalue())


if __name__ == "__main__":
    main()
