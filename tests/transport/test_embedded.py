from __future__ import annotations

import base64
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.core.errors import ConfigError, TransportError
from edge_sdk.transport.embedded import EmbeddedBroker
from edge_sdk.transport.passwords import (
    add_user,
    make_password_file,
    read_password_file,
    verify,
    write_password_file,
)
from tests.helpers.brokers import free_port

pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")


def test_a_busy_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = EmbeddedBroker("127.0.0.1", port, state_dir=tmp_path, users=["a"])
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}.*choose another"):
            broker.start()
    assert not broker.running


def test_start_stop_start(tmp_path: Path) -> None:
    broker = EmbeddedBroker("127.0.0.1", free_port(), state_dir=tmp_path, users=["a"])
    for _ in range(2):
        with broker:
            assert broker.running
            socket.create_connection((broker.host, broker.port), 1.0).close()
        assert not broker.running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((broker.host, broker.port), 1.0)
    broker.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path: Path, how: signal.Signals) -> None:
    make_password_file(tmp_path / "p", ["a"])
    command = [sys.executable, "-m", "edge_sdk.transport.embedded", "--port", str(free_port())]
    with subprocess.Popen(
        [*command, "--password-file", str(tmp_path / "p")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(how)
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    port = free_port()
    program = (
        "import os, pathlib\n"
        "from edge_sdk.transport.embedded import EmbeddedBroker\n"
        f"broker = EmbeddedBroker('127.0.0.1', {port}, state_dir=pathlib.Path({str(tmp_path)!r}), users=['a'])\n"
        "broker.start()\n"
        "os.write(1, str(broker._process.pid).encode())\n"
        "os._exit(9)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False).stdout)
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # gone already
    try:
        readable, _, _ = select.select([watch], [], [], 10.0)
        assert readable, "the broker outlived its parent"
    finally:
        os.close(watch)


def test_password_file_is_for_the_owner_only_and_holds_no_password(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "passwd"
    passwords = make_password_file(path, ["a", "b"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(set(passwords.values())) == 2
    text = path.read_text()
    assert not any(p in text for p in passwords.values())
    hashes = read_password_file(path)
    assert all(verify(p, hashes[user]) for user, p in passwords.items())
    assert not verify(passwords["a"], hashes["b"])
    fresh = add_user(path, "a")
    assert verify(fresh, read_password_file(path)["a"])
    assert not verify(passwords["a"], read_password_file(path)["a"])
    assert read_password_file(path)["b"] == hashes["b"]


def test_hash_of_mosquitto_passwd() -> None:
    # mosquitto_passwd -b: user "roger", password "rabbit" (computed with Python's PBKDF2 at 101 iterations)
    import hashlib

    salt = bytes(range(12))
    digest = hashlib.pbkdf2_hmac("sha512", b"rabbit", salt, 101)
    line = f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
    assert verify("rabbit", line)
    assert not verify("Rabbit", line)


@pytest.mark.parametrize(
    "hashed", ["", "$7$", "$7$x$y$z", "$7$0$AAAA$AAAA", "$6$101$AAAA$AAAA", "$7$999999999999$AA==$AA=="]
)
def test_broken_hashes_admit_nobody(hashed: str) -> None:
    assert not verify("", hashed)


def test_malformed_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text("# comment\n\nplain:text\n")
    with pytest.raises(ConfigError, match=":3: expected"):
        read_password_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password_file(tmp_path / "absent")
    with pytest.raises(ConfigError, match="colon"):
        write_password_file(path, {"a:b": "x"})
