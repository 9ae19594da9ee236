"""The login of BI tools to the embedded server, while a port is open: a role that reads the views, and a password."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg import Connection as PsycopgConnection
from sqlalchemy import Engine, text

from capacity_assets.base.errors import CapacityError, database_errors
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.views import READER_ROLE

PASSWORD_FILE, PASSWORD_BYTES = "sql-password", 24
MOST_CONNECTIONS = 20
IDLE_IN_TRANSACTION_SECONDS = 600
_NEW, _READABLE_BY_OTHERS = os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o077
_LARGE_OBJECTS = ("lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)")
# Of the port alone: the pages take the role on without a login.
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :role AND client_addr IS NOT NULL"
)


@dataclass(frozen=True)
class SqlPassword:
    """The password, and where a person finds it."""

    value: str
    found_in: str

    def __repr__(self) -> str:
        """Name where it is, never what it is."""
        return f"SqlPassword(found_in={self.found_in!r})"


def sql_password(home: Path, given: str | None) -> SqlPassword:
    """Return the given password, or that of a file in the folder `home`, which is made once.

    Raises CapacityError if the file cannot be used.
    """
    if given is not None:
        return SqlPassword(given, "CAPACITY_SQL_PASSWORD")
    path = home / PASSWORD_FILE
    try:
        with suppress(FileExistsError), os.fdopen(os.open(path, _NEW, 0o600), "w") as file:
            file.write(f"{secrets.token_urlsafe(PASSWORD_BYTES)}\n")
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise CapacityError(
                f"The port was not opened. {path} belongs to another user, who may know the password. Remove it, and "
                "a new password is made."
            )
        if found.st_mode & _READABLE_BY_OTHERS:
            raise CapacityError(
                f"The port was not opened. {path} can be read by others. Remove it, and a new password is made."
            )
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise CapacityError(f"The port was not opened. {path} cannot be used: {reason}.") from None
    if not value:
        raise CapacityError(f"The port was not opened. {path} is empty. Remove it, and a new password is made.")
    return SqlPassword(value, str(path))


def let_reader_log_in(engine: Engine, password: str) -> None:
    """Let the role log in with a password, and read only; raises DatabaseError."""
    with database_errors(doing="opening the port for SQL"), engine.begin() as connection:
        driver: PsycopgConnection = connection.connection.driver_connection  # type: ignore[assignment]
        # The server gets no password that it could write into its log.
        secret = driver.pgconn.encrypt_password(password.encode(), READER_ROLE.encode(), b"scram-sha-256").decode()
        connection.exec_driver_sql(
            f"ALTER ROLE {READER_ROLE} LOGIN CONNECTION LIMIT {MOST_CONNECTIONS} PASSWORD '{secret}'"
        )
        # A role may change its own settings, which would hold for all further logins.
        for scope in ("", f" IN DATABASE {CAPACITY_DATABASE}"):
            connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE}{scope} RESET ALL")
        connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE} SET default_transaction_read_only = on")
        # A forgotten transaction would hold up work that needs tables for itself.
        idle = f"{IDLE_IN_TRANSACTION_SECONDS}s"
        connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE} SET idle_in_transaction_session_timeout = '{idle}'")
        connection.exec_driver_sql(f"REVOKE TEMPORARY ON DATABASE {CAPACITY_DATABASE} FROM PUBLIC")
        # Everybody may make large objects, and so fill the disk.
        connection.exec_driver_sql(f"REVOKE EXECUTE ON FUNCTION {', '.join(_LARGE_OBJECTS)} FROM PUBLIC")


def lock_reader_out(engine: Engine) -> None:
    """Take the login back and end its sessions; raises DatabaseError."""
    with database_errors(doing="closing the port for SQL"), engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE} NOLOGIN PASSWORD NULL")
        connection.execute(text(_END_SESSIONS), {"role": READER_ROLE})
