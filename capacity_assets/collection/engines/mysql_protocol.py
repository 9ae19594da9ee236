"""What MySQL and MariaDB share: how to connect, log in and be bounded, and what their errors mean. No sizes here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from capacity_assets.collection.engines.base import (
    MOST_BYTES,
    PROGRAM,
    TLS_OFF,
    VERIFIED_TLS,
    Access,
    closed_on_failure,
    first_line,
    rows_of,
    too_much,
)
from capacity_assets.collection.engines.failures import FailureKind, MeasureError

if TYPE_CHECKING:
    import pymysql
    from pymysql.connections import Connection

# Ways to log in that do not hand the password itself to whoever answers. `mysql_clear_password` and `dialog` do; the
# driver would follow a server that asks for them without a word.
LOGIN_PLUGINS = ("", "mysql_native_password", "caching_sha2_password", "sha256_password", "client_ed25519")


def connected(access: Access) -> Connection[Any]:
    """Connect and set the limits of the session; raises what the driver raises, or MeasureError."""
    connection: Connection[Any] = _bounded_connection()(
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
        auth_plugin_map=None if _password_is_safe(access) else _login_plugins(),
        **_tls(access),
    )
    with closed_on_failure(connection):
        # Connected, it may take its time; the driver has no public way to say so.
        connection._read_timeout = access.statement_seconds  # type: ignore[attr-defined]  # noqa: SLF001
        for statement in _limits(version_of(connection), access.statement_seconds):
            rows_of(connection, statement)
    return connection


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


def _login_plugins() -> dict[str, Any]:
    """A map in which the driver finds a refusal for every way to log in but the safe ones."""
    import pymysql

    class Refused:
        def __init__(self, _connection: object) -> None: ...

        def authenticate(self, _packet: object) -> object:
            raise pymysql.err.OperationalError(
                2059,
                "it asks for the password in clear text. It was not sent: that needs tls = verify-full",
            )

    class SafeLogins(dict[str, Any]):
        def get(self, name: str | bytes, _default: object = None) -> Any:
            method = name.decode("ascii", "replace") if isinstance(name, bytes) else name
            return None if method in self else Refused

    return SafeLogins.fromkeys(LOGIN_PLUGINS)


@cache
def _bounded_connection() -> Any:
    """A connection that gives up on an answer that is larger than any fleet's, whatever the server says.

    The driver has no such limit; what is touched is private, and a test with an endless answer holds it.
    """
    from pymysql.connections import Connection

    class Bounded(Connection):
        received_bytes = 0

        def _execute_command(self, command: int, sql: str | bytes) -> None:
            self.received_bytes = 0
            super()._execute_command(command, sql)  # type: ignore[misc]  # not among the published types

        def _read_bytes(self, num_bytes: int) -> bytes:
            self.received_bytes += num_bytes
            if self.received_bytes > MOST_BYTES:
                self._force_close()  # type: ignore[attr-defined]
                raise too_much()
            return bytes(super()._read_bytes(num_bytes))  # type: ignore[misc]

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
