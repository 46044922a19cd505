"""How a client proves who it is, and whom it trusts."""

from __future__ import annotations

import ssl

from edge_sdk.core.config import BrokerConfig


def password(config: BrokerConfig) -> str | None:
    """Returns the password of the configuration, read from its file at each call.

    Raises:
        OSError: the file cannot be read.
    """
    if config.password_file is not None:
        return config.password_file.read_text(encoding="utf-8").strip()
    return config.password or None


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho would leave it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  the base class's signature
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def tls_context(config: BrokerConfig) -> ssl.SSLContext:
    """Returns a context that trusts the configuration's certificate authority only.

    Raises:
        OSError: its file cannot be read, or holds no certificate.
    """
    context = ssl.create_default_context(cafile=config.ca_file)
    context.sslsocket_class = _TidySocket
    return context


__all__ = ["password", "tls_context"]
