"""No server gets a password in clear because it asks: sockets on loopback that speak the protocols' first words."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from capacity_assets.collection.engines.base import Access
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.installed import engine_named

SECRET = "hunter-S3cret"  # noqa: S105 -- made up


@contextmanager
def impostor(answer: Callable[[socket.socket], None]) -> Iterator[tuple[int, bytearray]]:
    """A listener that greets by `answer` and keeps what it hears."""
    heard = bytearray()

    def serve() -> None:
        peer, _ = listener.accept()
        peer.settimeout(5)
        with peer:
            answer(peer)
            try:
                while part := peer.recv(4096):
                    heard.extend(part)
            except OSError:
                return

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1]), heard
        thread.join(10)


def asks_as_postgresql(peer: socket.socket) -> None:
    """AuthenticationCleartextPassword, whatever was said before; TLS is declined."""
    if struct.unpack("!II", peer.recv(8))[1] == 80877103:
        peer.sendall(b"N")
    peer.recv(4096)
    peer.sendall(b"R" + struct.pack("!II", 8, 3))


def mysql_packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


def asks_as_mysql(plugin: bytes) -> Callable[[socket.socket], None]:
    """A greeting of MySQL 8 without TLS, then a switch to a plugin."""

    def answer(peer: socket.socket) -> None:
        capabilities = 0x0008A20F | 0x00080000
        greeting = b"\x0a8.0.0\x00" + struct.pack("<I", 1) + b"12345678\x00" + struct.pack("<H", capabilities & 0xFFFF)
        greeting += b"\x21\x02\x00" + struct.pack("<H", capabilities >> 16) + b"\x15" + b"\x00" * 10
        greeting += b"123456789012\x00" + b"caching_sha2_password\x00"
        peer.sendall(mysql_packet(0, greeting))
        peer.recv(4096)
        peer.sendall(mysql_packet(2, b"\xfe" + plugin + b"\x00Password: \x00"))

    return answer


def refused(engine: str, port: int) -> MeasureError:
    access = Access("127.0.0.1", port, "probe", None, password=SECRET, tls="off", connect_seconds=3)
    with pytest.raises(Exception) as failed:  # noqa: PT011 -- each driver has its own
        engine_named(engine).connect(access)
    error = failed.value
    error_found = error if isinstance(error, MeasureError) else engine_named(engine).explained(error)  # type: ignore[arg-type]
    assert error_found is not None
    return error_found


def test_a_postgresql_that_asks_for_the_password_itself_does_not_get_it() -> None:
    with impostor(asks_as_postgresql) as (port, heard):
        error_found = refused("postgresql", port)

    assert error_found.kind is FailureKind.LOGIN, error_found
    assert SECRET.encode() not in heard


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog", b"mysql_old_password", b"unheard\xff"])
@pytest.mark.parametrize("engine", ["mysql", "mariadb"])
def test_a_mysql_that_asks_for_the_password_itself_does_not_get_it(engine: str, plugin: bytes) -> None:
    with impostor(asks_as_mysql(plugin)) as (port, heard):
        error_found = refused(engine, port)

    assert error_found.kind is FailureKind.LOGIN, error_found
    assert "it asks for the password in clear text. It was not sent" in str(error_found)
    assert SECRET.encode() not in heard


def test_sql_server_without_tls_is_not_told_a_password_over_the_network() -> None:
    access = Access("192.0.2.1", 1433, "probe", None, password=SECRET, tls="off")
    with pytest.raises(MeasureError, match="its password would cross the network in clear"):
        engine_named("sqlserver").connect(access)
