"""What MySQL and MariaDB share: how to connect, log in and be bounded, and what their errors mean. No sizes here."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capacity_assets.collection.engines.base import (
    PROGRAM,
    TLS_OFF,
    VERIFIED_TLS,
    Access,
    Allowance,
    closed_on_failure,
    first_line,
    rows_of,
)
from capacity_assets.collection.engines.failures import FailureKind, MeasureError

if TYPE_CHECKING:
    import pymysql
    from pymysql.connections import Connection

NATIVE, FAST_SHA2, SHA256 = "mysql_native_password", "caching_sha2_password", "sha256_password"
SCRAMBLE_LENGTH = 20
# Packets of caching_sha2_password: the server accepts the proof, or asks for the password.
PROOF_ACCEPTED = b"\x01\x03"


def connected(access: Access) -> Connection[Any]:
    """Connect and set the limits of the session; raises what the driver raises, or MeasureError."""
    connection = _bounded_connection()(
        defer_connect=True,
        host=None if access.socket else access.host,
        unix_socket=access.socket,
        port=access.port,
        user=access.username,
        password=access.password or "",
        database=access.database,
        charset="utf8mb4",
        connect_timeout=max(round(access.connect_seconds), 1),
        # It also bounds the greeting, which a server that accepts and stays silent never sends.
        read_timeout=max(round(access.connect_seconds), 1),
        write_timeout=max(round(access.statement_seconds), 1),
        program_name=PROGRAM,
        autocommit=True,
        auth_plugin_map=None if _password_is_safe(access) else _proving_logins(access.server_public_key),
        **_tls(access),
    )
    connection.statement_seconds = access.connect_seconds
    connection.allowance.begin(access.connect_seconds)
    connection.connect()
    with closed_on_failure(connection):
        connection.statement_seconds = access.statement_seconds
        # Connected, it may take its time; the driver has no public way to say so.
        connection._read_timeout = access.statement_seconds  # noqa: SLF001
        for statement in _limits(version_of(connection), access.statement_seconds):
            rows_of(connection, statement)
    found: Connection[Any] = connection
    return found


def version_of(connection: Connection[Any]) -> str:
    """Return the version that the server reports."""
    [(version,)] = rows_of(connection, "SELECT VERSION()")
    return str(version)


def is_encrypted(connection: Connection[Any]) -> bool:
    """Whether the connection is encrypted."""
    return bool(dict(rows_of(connection, "SHOW STATUS LIKE 'Ssl_cipher'")).get("Ssl_cipher"))


def explained(error: Exception) -> MeasureError | None:
    """Tell by MySQL's error number, or None where it is none of the driver's."""
    import pymysql

    if not isinstance(error, pymysql.err.Error):
        # The driver lets these escape when a server names a way to log in that it does not know.
        if isinstance(error, RuntimeError | UnicodeDecodeError | AttributeError):
            return MeasureError(FailureKind.LOGIN, f"the server asks for a way to log in that is not known: {error}")
        return None
    number, text = _number_and_text(error)
    kind = KINDS.get(number, FailureKind.UNEXPECTED)
    if number == CANNOT_CONNECT and ("certificate" in text or "SSL" in text):
        kind = FailureKind.TLS
    if number in {CANNOT_CONNECT, LOST} and "timed out" in text:
        kind = FailureKind.TIMEOUT
    return MeasureError(kind, first_line(text))


CANNOT_CONNECT, LOST = 2003, 2013
# https://mariadb.com/docs/server/reference/error-codes/mariadb-error-code-reference; 2003 and above are the client's.
KINDS = {
    1040: FailureKind.UNREACHABLE,
    1044: FailureKind.LOGIN,
    1045: FailureKind.LOGIN,
    1049: FailureKind.LOGIN,
    1142: FailureKind.RIGHTS,
    1227: FailureKind.RIGHTS,
    1317: FailureKind.BROKEN_OFF,
    1698: FailureKind.LOGIN,
    1927: FailureKind.BROKEN_OFF,
    1969: FailureKind.TIMEOUT,
    2003: FailureKind.UNREACHABLE,
    2006: FailureKind.BROKEN_OFF,
    2013: FailureKind.BROKEN_OFF,
    2026: FailureKind.TLS,
    2059: FailureKind.LOGIN,
    3024: FailureKind.TIMEOUT,
    3159: FailureKind.TLS,
}


def _number_and_text(error: pymysql.err.Error) -> tuple[int, str]:
    number, *rest = error.args or (0,)
    return (number, str(rest[0]) if rest else str(error)) if isinstance(number, int) else (0, str(error))


def _limits(version: str, seconds: float) -> list[str]:
    """MariaDB counts in seconds and for every statement, MySQL in milliseconds and for SELECT only."""
    limit = (
        f"SET SESSION max_statement_time = {seconds:.3f}"
        if "MariaDB" in version
        else f"SET SESSION max_execution_time = {round(seconds * 1000)}"
    )
    return [limit, "SET SESSION TRANSACTION READ ONLY"]


def _password_is_safe(access: Access) -> bool:
    """Whether the other end is known to be the server: a socket, or a verified certificate."""
    return access.socket is not None or access.tls in VERIFIED_TLS


class _ProvingLogin:
    """Logs in to an unverified server: proves knowledge of the password without sending it.

    The driver would send the password to any server that asks for it over TLS, verified or not, and without TLS encrypt
    it with any key that the server sends. Here it is encrypted with the registered key only.
    """

    def __init__(self, method: str, public_key: str | None, connection: Any) -> None:
        self._method, self._public_key, self._connection = method, public_key, connection

    def authenticate(self, packet: Any) -> Any:
        """Answer a login packet; raises MeasureError if it asks for the password."""
        proof = _proofs().get(self._method)
        if packet.is_auth_switch_request():
            self._connection.salt = packet.read_all()
            if proof is not None:
                packet = self._answered(proof(self._connection.password, self._connection.salt))
            elif self._method == SHA256:
                packet = self._answered(self._encrypted_password())
            else:
                raise self._refusal()
        if not packet.is_extra_auth_data():
            return packet
        if packet.get_all_data() == PROOF_ACCEPTED:
            return self._connection._read_packet()  # noqa: SLF001 -- as the driver's own logins do
        if self._method == FAST_SHA2:
            return self._answered(self._encrypted_password())
        raise self._refusal()

    def _answered(self, data: bytes) -> Any:
        self._connection.write_packet(data)
        return self._connection._read_packet()  # noqa: SLF001 -- as above

    def _encrypted_password(self) -> bytes:
        from pymysql._auth import sha2_rsa_encrypt

        # Over TLS a server expects the password unencrypted.
        if self._public_key is None or self._connection._secure:  # noqa: SLF001 -- as above
            raise self._refusal()
        try:
            return bytes(sha2_rsa_encrypt(self._connection.password, self._connection.salt, _content(self._public_key)))
        except (ValueError, TypeError, AttributeError):
            raise MeasureError(
                FailureKind.SETUP, f"the file {self._public_key} is not an RSA public key in PEM"
            ) from None

    def _refusal(self) -> MeasureError:
        return MeasureError(
            FailureKind.LOGIN,
            f"it asks for the password itself, by the login method {self._method:.40}, and the identity of the "
            "server is not verified. The password was not sent. Register `tls = verify-full` or `verify-ca`, the "
            "socket as `host`, or `tls = off` with a `server_public_key` file",
        )


def _proofs() -> dict[str, Callable[[bytes, bytes], bytes]]:
    """Functions that compute the proof of a password from the server's challenge, by login method."""
    from pymysql import _auth

    return {
        "": _auth.scramble_native_password,
        NATIVE: _auth.scramble_native_password,
        FAST_SHA2: lambda password, salt: _auth.scramble_caching_sha2(password, salt[:SCRAMBLE_LENGTH]),
        "client_ed25519": _auth.ed25519_password,
    }


def _proving_logins(public_key: str | None) -> dict[str, Any]:
    """Return a map in which the driver looks up a `_ProvingLogin` for every method."""

    class Logins(dict[str, Any]):
        def get(self, name: str | bytes, _default: object = None) -> Any:
            method = name.decode("ascii", "replace") if isinstance(name, bytes) else name
            return partial(_ProvingLogin, method, public_key)

    # The driver replaces an empty map.
    return Logins.fromkeys(_proofs())


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


@cache
def _bounded_connection() -> Any:
    """A connection that aborts if the server sends too much or too slowly.

    The driver has no such limit. The overridden attributes are private; a test with an endless response covers them.
    """
    from pymysql.connections import Connection

    class Bounded(Connection):
        statement_seconds = math.inf

        def __init__(self, **options: Any) -> None:
            self.allowance = Allowance()
            super().__init__(**options)

        def _request_authentication(self) -> None:
            # The driver sends the password immediately if the greeting of the server names a method that asks for it.
            proving: dict[str, Any] = self._auth_plugin_map  # type: ignore[attr-defined]
            if proving and self._auth_plugin_name not in proving:
                self._auth_plugin_name: str = NATIVE
            super()._request_authentication()  # type: ignore[misc]

        def _execute_command(self, command: int, sql: str | bytes) -> None:
            self.allowance.begin(self.statement_seconds)
            super()._execute_command(command, sql)  # type: ignore[misc]  # not among the published types

        def _read_bytes(self, num_bytes: int) -> bytes:
            found, wanted = bytearray(), num_bytes
            try:
                while True:
                    self.allowance.take(wanted)
                    wanted = 0  # counted before it is read
                    missing = num_bytes - len(found)
                    if not missing:
                        return bytes(found)
                    found += super()._read_bytes(min(missing, self._arrived() or missing))  # type: ignore[misc]
            except MeasureError:
                self._force_close()  # type: ignore[attr-defined]
                raise

        def _arrived(self) -> int:
            """Wait for the first byte; return how many can be read without waiting. 0: the driver finds the reason."""
            with suppress(OSError):
                return len(self._rfile.peek(1))  # type: ignore[attr-defined]
            return 0

    return Bounded


def _tls(access: Access) -> dict[str, Any]:
    if access.tls == TLS_OFF or access.socket:
        return {"ssl_disabled": True}
    # Without a context of its own the driver would go on unencrypted where the server offers nothing.
    return {"ssl": _context(access)}


def _context(access: Access) -> object:
    import ssl

    context = ssl.create_default_context(cafile=access.tls_ca)
    context.check_hostname = access.tls == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if access.tls in VERIFIED_TLS else ssl.CERT_NONE
    if access.tls_certificate:
        context.load_cert_chain(access.tls_certificate, access.tls_key)
    return context
