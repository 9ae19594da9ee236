"""No server gets a password in clear because it asks: sockets on loopback that speak the protocols' first words."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from capacity_assets.collection.engines.base import Access, FailureKind, MeasureError, engine_named
from tests.certificates import make_certificates
from tests.profiles import nightly_except

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


NONCE = b"12345678" + b"123456789012"
FULL = b"\x01\x04"


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def switch(plugin: bytes, data: bytes = NONCE + b"\0") -> bytes:
    return b"\xfe" + plugin + b"\0" + data


def mysql_packets(peer: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The packets of the client, with their numbers."""
    said = peer.makefile("rb")
    while header := said.read(4):
        yield header[3], said.read(int.from_bytes(header[:3], "little"))


def asks_as_mysql(
    heard: bytearray, greeted: bytes, *asked: bytes, certificate: Path | None = None
) -> Callable[[socket.socket], None]:
    """A MySQL server with a given login method in its greeting, which asks for given data and sends its own key.

    Received packets are added to `heard`. With a certificate it offers TLS.
    """

    def answer(peer: socket.socket) -> None:
        capabilities = 0x0008A20F | 0x00080000 | (0x800 if certificate else 0)
        greeting = b"\x0a8.0.0\x00" + struct.pack("<I", 1) + NONCE[:8] + b"\x00"
        greeting += struct.pack("<H", capabilities & 0xFFFF) + b"\x21\x02\x00" + struct.pack("<H", capabilities >> 16)
        greeting += b"\x15" + b"\x00" * 10 + NONCE[8:] + b"\x00" + greeted + b"\x00"
        peer.sendall(mysql_packet(0, greeting))
        if certificate:
            peer.recv(36)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_name("server-key.pem"))
            peer = context.wrap_socket(peer, server_side=True)
        waiting = list(asked)
        with peer, suppress(OSError):
            for number, said in mysql_packets(peer):
                heard.extend(said)
                if waiting:
                    peer.sendall(mysql_packet(number + 1, waiting.pop(0)))
                elif said in {b"\x01", b"\x02"}:
                    peer.sendall(mysql_packet(number + 1, b"\x01" + public_pem(rsa_key())))

    return answer


def holds_the_secret(heard: bytes) -> bool:
    """Whether the packets contain the password, in clear or encrypted with the impostor's key."""
    size = rsa_key().key_size // 8
    return SECRET.encode() in heard or any(
        decrypted(heard[start : start + size]) == SECRET.encode() + b"\0" for start in range(len(heard) - size + 1)
    )


def decrypted(data: bytes) -> bytes:
    sha1 = hashes.SHA1()  # noqa: S303 -- as MySQL does
    try:
        mixed = rsa_key().decrypt(data, padding.OAEP(padding.MGF1(sha1), sha1, None))
    except ValueError:
        return b""
    return bytes(sign ^ NONCE[place % len(NONCE)] for place, sign in enumerate(mixed))


def refused(engine: str, port: int, tls: str = "off", public_key: str | None = None) -> MeasureError:
    access = Access("127.0.0.1", port, "probe", None, SECRET, tls, connect_seconds=3, server_public_key=public_key)
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


HANDS_OUT_ITS_KEY = b"\x01" + public_pem(rsa_key())
ATTEMPTS = {
    "greets with sha256_password": (b"sha256_password", HANDS_OUT_ITS_KEY),
    "switches to sha256_password": (b"mysql_native_password", switch(b"sha256_password")),
    "asks for full authentication": (b"caching_sha2_password", FULL),
    "switches and asks for full authentication": (b"mysql_native_password", switch(b"caching_sha2_password"), FULL),
    "switches to mysql_clear_password": (b"caching_sha2_password", switch(b"mysql_clear_password")),
    "switches to dialog": (b"caching_sha2_password", switch(b"dialog", b"Password: \0")),
    "greets with mysql_clear_password": (b"mysql_clear_password", switch(b"mysql_clear_password")),
    "switches to mysql_old_password": (b"caching_sha2_password", switch(b"mysql_old_password")),
    "switches to what nobody knows": (b"caching_sha2_password", switch(b"unheard\xff")),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("tls", ["off", "require"])
def test_a_mysql_that_nothing_verifies_does_not_get_the_password(tls: str, attempt: str, tmp_path: Path) -> None:
    heard = bytearray()
    certificate = make_certificates(tmp_path).certificate if tls == "require" else None
    with impostor(asks_as_mysql(heard, *ATTEMPTS[attempt], certificate=certificate)) as (port, _):
        error_found = refused("mysql", port, tls)

    assert not holds_the_secret(bytes(heard))
    assert error_found.kind is FailureKind.LOGIN, error_found
    assert "The password was not sent" in str(error_found)
    assert "verify-full" in str(error_found)


@pytest.mark.parametrize("attempt", nightly_except(list(ATTEMPTS)[:4], next(iter(ATTEMPTS))))
def test_a_pinned_key_is_the_only_one_that_a_password_is_encrypted_for(attempt: str, tmp_path: Path) -> None:
    """The driver alone would replace the pinned key with a key in the response of sha256_password."""
    pinned, heard = tmp_path / "public_key.pem", bytearray()
    pinned.write_bytes(public_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    with impostor(asks_as_mysql(heard, *ATTEMPTS[attempt])) as (port, _):
        refused("mysql", port, public_key=str(pinned))

    assert not holds_the_secret(bytes(heard))


def test_a_file_that_holds_no_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with impostor(asks_as_mysql(bytearray(), b"caching_sha2_password", FULL)) as (port, _):
        error_found = refused("mysql", port, public_key=str(tmp_path / "key.pem"))

    assert error_found.kind is FailureKind.SETUP
    assert "key.pem is not an RSA public key" in str(error_found)


def test_sql_server_without_tls_is_not_told_a_password_over_the_network() -> None:
    access = Access("192.0.2.1", 1433, "probe", None, password=SECRET, tls="off")
    with pytest.raises(MeasureError, match="its password would be sent unencrypted"):
        engine_named("sqlserver").connect(access)
