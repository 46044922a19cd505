"""Password files of brokers, in the format of `mosquitto_passwd`: one file serves the embedded broker and mosquitto.

    user:$7$<iterations>$<salt>$<hash>        PBKDF2-HMAC-SHA512, salt and hash in base64

The passwords made here are random and 192 bits long, so few iterations do; a fleet that reconnects all at once must
not keep a broker of one core busy.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from edge_sdk.core.errors import ConfigError

_ITERATIONS = 101  # what mosquitto_passwd uses
_SALT_BYTES = 12
_MOST_ITERATIONS = 10_000_000  # a file that asks for more is broken


def make_password_file(path: Path, users: Iterable[str]) -> dict[str, str]:
    """Writes a new password file, readable by its owner only; returns user → random password."""
    passwords = {user: secrets.token_urlsafe(24) for user in users}
    write_password_file(path, passwords)
    return passwords


def write_password_file(path: Path, passwords: Mapping[str, str]) -> None:
    """Writes a password file with these users and passwords."""
    _write(path, {user: _hashed(password) for user, password in passwords.items()})


def add_user(path: Path, user: str) -> str:
    """Adds a user with a random password, or gives a known one a new password; returns the password."""
    password = secrets.token_urlsafe(24)
    known = read_password_file(path) if path.exists() else {}
    _write(path, {**known, user: _hashed(password)})
    return password


def read_password_file(path: Path) -> dict[str, str]:
    """Returns user → hash.

    Raises:
        ConfigError: the file cannot be read, or a line is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    users = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            user, colon, hashed = line.strip().partition(":")
            if not (user and colon and hashed.startswith("$7$")):
                raise ConfigError(f"{path}:{number}: expected user:$7$…, as mosquitto_passwd writes it")
            users[user] = hashed
    return users


def verify(password: str, hashed: str) -> bool:
    """Says whether the password belongs to the hash."""
    try:
        _, kind, iterations, salt, digest = hashed.split("$")
        count = int(iterations)
        expected = base64.b64decode(digest, validate=True)
        found = _digest(password, base64.b64decode(salt, validate=True), count)
    except ValueError:
        return False
    return kind == "7" and hmac.compare_digest(found, expected)


def _write(path: Path, hashes: Mapping[str, str]) -> None:
    for user in hashes:
        if not user or ":" in user or "\n" in user:
            raise ConfigError(f"a broker's user name must not be empty nor hold a colon, found {user!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(f"{user}:{hashed}\n" for user, hashed in hashes.items())
    fresh.replace(path)


def _hashed(password: str) -> str:
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = _digest(password, salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _digest(password: str, salt: bytes, iterations: int) -> bytes:
    if not 1 <= iterations <= _MOST_ITERATIONS:
        raise ValueError(f"iterations out of range: {iterations}")
    return hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)


__all__ = ["add_user", "make_password_file", "read_password_file", "verify", "write_password_file"]
