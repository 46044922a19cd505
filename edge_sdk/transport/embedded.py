"""The default broker: amqtt in a process of its own, started and stopped by whoever needs a broker at hand.

For a desk, a test or some tens of devices; a fleet wants mosquitto or a clustered broker (`docs/`). The interface
blocks: call it from `Compute`'s short lane, or before the event loop runs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import select
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.errors import TransportError
from edge_sdk.transport.passwords import make_password_file

_READY = "ready"
_BUSY = 3
_START_S = 20.0
_STOP_S = 5.0


class EmbeddedBroker:
    """An MQTT broker as a child process.

    Args:
        host: address to listen at.
        port: port to listen at.
        state_dir: where the password file and the log lie.
        users: who may connect; `start` gives each a new random password (see `passwords`).
        password_file: an existing file instead of `users`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        state_dir: Path,
        users: Iterable[str] = (),
        password_file: Path | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.passwords: dict[str, str] = {}  # user → password, of the users given
        self.password_file = password_file or state_dir / "broker.passwd"
        self._log = state_dir / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        if password_file is None:
            self.passwords = make_password_file(self.password_file, users)
        state_dir.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Starts the broker and returns when it accepts connections; may be called again after `stop`.

        Raises:
            TransportError: the port is taken, or the process ended; the message says what to do.
        """
        command = [sys.executable, "-m", "edge_sdk.transport.embedded", "--follow-parent"]
        command += ["--host", self.host, "--port", str(self.port), "--password-file", str(self.password_file)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells the child that we are gone
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours: devices say goodbye before the broker goes
            )
        self._await_ready(self._process)

    def stop(self) -> None:
        """Ends the broker; may be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    def config(self, user: str) -> BrokerConfig:
        """Returns how one of the users given connects."""
        return BrokerConfig(host=self.host, port=self.port, username=user, password=self.passwords[user])

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], _START_S)
        if readable and process.stdout.readline().strip() == _READY.encode():
            return
        if not readable:
            process.kill()
        status = process.wait()
        self.stop()
        where = f"{self.host}:{self.port}"
        if status == _BUSY:
            raise TransportError(
                f"the broker cannot listen at {where}: {self._last_words()}; stop the program that uses this port, "
                "or choose another one (port under [broker], --port)"
            )
        raise TransportError(f"the broker at {where} did not start: {self._last_words()}; see {self._log}")

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


def main(arguments: list[str] | None = None) -> int:
    """Runs the broker in this process; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_sdk.transport.embedded", description="An MQTT 3.1.1 broker.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--password-file", type=Path, required=True, help="as mosquitto_passwd writes it")
    parser.add_argument("--follow-parent", action="store_true", help="end when stdin ends")
    options = parser.parse_args(arguments)
    try:
        from edge_sdk.transport.embedded_process import serve
    except ImportError as error:
        sys.stderr.write(f"the embedded broker needs amqtt: pip install 'edge-sdk[broker]' ({error})\n")
        return 1
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return asyncio.run(
        serve(options.host, options.port, password_file=options.password_file, follow_parent=options.follow_parent)
    )


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["EmbeddedBroker", "main"]
