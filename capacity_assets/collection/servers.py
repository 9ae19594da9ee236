"""A server as it is declared: what is said of it, what it takes by default, what cannot work.

Where servers are kept is the business of `registry`, where they are declared that of `declarations`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from capacity_assets.collection.credentials import OWN, checked_reference
from capacity_assets.collection.engines.base import FILES, TLS_MODES, TLS_OFF, TLS_VERIFY_FULL, is_loopback
from capacity_assets.collection.engines.installed import engine_named
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.declarations import NO_OTHER_NAMES

LARGEST_PORT = 65535
HOST_AND_PORT = re.compile(r"[^:/]+:\d+")
LONGEST_NAME = 255


@dataclass(frozen=True)
class Server:
    """A server as it is registered for collection; what is None takes the engine's default, or is not needed."""

    __pydantic_config__ = NO_OTHER_NAMES

    name: str
    engine: str
    host: str
    port: int | None = None
    username: str | None = None
    password_from: str | None = None
    database: str | None = None
    tls: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    server_public_key: str | None = None
    sizing: str | None = None
    counted_by: str | None = None

    @property
    def place(self) -> str:
        """Host and port as people write them."""
        return self.host if self.host.startswith("/") else f"{self.host}:{self.port}"


def complete(server: Server) -> Server:
    """Return the server with the defaults of its engine filled in, every value checked.

    Raises:
        ValidationError: a value cannot work; the text names it, but never what may be a password.
    """
    engine = engine_named(server.engine)
    port = engine.default_port if server.port is None else server.port
    stays_here = server.host.startswith("/") or is_loopback(server.host)
    tls = server.tls or (TLS_OFF if stays_here else TLS_VERIFY_FULL)
    sizing = server.sizing or FILES
    problems = [
        (
            not server.name or server.name != server.name.strip() or len(server.name) > LONGEST_NAME,
            "a name of 1 to 255 characters is needed, without blanks at its ends",
        ),
        (not server.host.strip() or len(server.host) > LONGEST_NAME, "host: a name, an address or a socket is needed"),
        (not 1 <= port <= LARGEST_PORT, f"port: {port} is not between 1 and {LARGEST_PORT}"),
        (tls not in TLS_MODES, f"tls: {tls!r} is none of {', '.join(TLS_MODES)}"),
        (sizing not in engine.sizings, f"sizing: {server.engine} knows {' and '.join(engine.sizings)} only"),
        (server.counted_by == server.name, "counted_by: a server cannot be counted by itself"),
        (bool(server.tls_certificate) != bool(server.tls_key), "tls_certificate and tls_key are needed together"),
        (
            bool(server.server_public_key) and server.engine not in {"mysql", "mariadb"},
            "server_public_key: only for MySQL and MariaDB",
        ),
        (
            bool(server.server_public_key) and tls != TLS_OFF,
            "server_public_key: only without TLS; with TLS, use tls_ca to verify the server",
        ),
        (bool(HOST_AND_PORT.fullmatch(server.host)), "host: write the port by itself, as port (--port)"),
        ("@" in server.host, "host: an @ does not belong there; write username and password_from"),
        (server.password_from == OWN and server.engine != "postgresql", "password_from: own is a PostgreSQL"),
    ]
    if server.password_from is not None:
        checked_reference(server.password_from)
    for wrong, problem in problems:
        if wrong:
            raise ValidationError(f"Server {server.name!r}: {problem}. Nothing was registered.")
    return replace(server, port=port, tls=tls, sizing=sizing)
