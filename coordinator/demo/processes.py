"""The demo's operating-system processes: started together, stopped together, and none of them left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_sdk.core.errors import ConfigError, EdgeError

STOP_S = 10.0  # how long a process may take to stop before it is killed


@dataclass(slots=True)
class Member:
    """One process of the demo."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> bool:
        """True if it runs no more."""
        return self.process.poll() is not None

    def last_words(self) -> str:
        """Returns the last lines of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-8:])


class Processes:
    """A context in which processes live; leaving it, by whatever way, stops them all in reverse order.

    Args:
        logs: folder for one log file per process.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.members: list[Member] = []

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Member:
        """Starts `python -m module arguments…` in a session of its own, so that Ctrl-C reaches only the demo."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        member = Member(name, process, log)
        self.members.append(member)
        return member

    def check(self) -> None:
        """Raises EdgeError if a process ended by itself, with its last words."""
        for member in self.members:
            code = member.process.poll()
            if code not in (None, 0):
                words = member.last_words()
                raise EdgeError(
                    f"{member.name} ended with exit code {code}; its log, {member.log}, ends with:\n{words}"
                )

    def stop(self, member: Member) -> None:
        """Stops one process: SIGTERM, and SIGKILL if it does not listen."""
        if not member.ended():
            member.process.send_signal(signal.SIGTERM)
            try:
                member.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            if not member.ended():
                member.process.send_signal(signal.SIGTERM)
        for member in reversed(self.members):
            self.stop(member)


def claim_port(port: int) -> int:
    """Returns the port if nobody listens on it; 0 asks for a free one.

    Raises:
        ConfigError: the port is busy; names it and says what to do.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on 127.0.0.1 is busy ({error.strerror}); stop what uses it, or give another: --port N"
            ) from error
        return int(probe.getsockname()[1])


__all__ = ["Member", "Processes", "claim_port"]
