"""Types of errors, which of them are transient, and sentences for errors of the operating system.

A permanent failure (bad input, bad data, a missing table) returns on every attempt; a transient one (lost
connection, deadlock, server starting) may not. Texts say what is wrong, what was kept and what to do, and never hold a
statement, its parameters or a password. Callers decide about retries; `cli.options` prints errors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

DATABASE_FAILURES = (DBAPIError, PoolTimeoutError)
"""The errors of SQLAlchemy if the database refuses or does not answer, or if no connection of the pool becomes free."""
DatabaseFailure: TypeAlias = DBAPIError | PoolTimeoutError

# SQLSTATE classes and codes after which the same work may succeed unchanged
# (PostgreSQL documentation, appendix "PostgreSQL Error Codes").
TRANSIENT_SQLSTATES: dict[str, str] = {
    "08": "the connection was lost or refused",
    "40": "the transaction was rolled back (deadlock or serialization)",
    "53300": "the server has no connection slot left",
    "55P03": "a lock was not available in time",
    "57014": "the statement was cancelled or ran into its timeout",
    "57P01": "the server was shut down by its administrator",
    "57P02": "the server crashed and restarts",
    "57P03": "the server is starting or stopping",
}
# The rows themselves are at fault: the statement can succeed without the instances they belong to. Other
# violations (class 23: null, unique, no partition) are faults of the table and would blame every instance.
DATA_SQLSTATES: dict[str, str] = {"22": "a value does not fit", "23514": "a row violates a named check of the table"}
SCHEMA_SQLSTATES: dict[str, str] = {
    "42P01": "a table is missing",
    "42703": "a column is missing",
    "42P10": "the unique key that upserts rely on is missing",
    "3F000": "the schema is missing",
}

INSUFFICIENT_PRIVILEGE = "42501"
INVALID_PARAMETER_VALUE = "22023"
_REMEDIES_BY_SQLSTATE = {
    INSUFFICIENT_PRIVILEGE: "The role lacks a right: docs/operations.md, Roles, has the statements that grant it.",
    "25006": "Connect to the primary, as a role that may write.",
    "53100": "Free some space where the server keeps its data, then run this again.",
}


class CapacityError(Exception):
    """Base of every failure with a text for users; `transient` says whether waiting can help."""

    transient = False

    def __init__(self, message: str, *, transient: bool | None = None) -> None:
        """Keep the text, and whether waiting can help if the type does not decide that."""
        super().__init__(message)
        if transient is not None:
            self.transient = transient


class ValidationError(CapacityError):
    """The request itself is wrong: unknown period or level, impossible dates. Nothing was done."""


class NotFoundError(CapacityError):
    """No such name or id exists. Nothing was done."""


class DatabaseError(CapacityError):
    """The database refused or lost the work; `sqlstate` is PostgreSQL's code, if there is one."""

    def __init__(self, message: str, *, sqlstate: str | None = None, transient: bool = False) -> None:
        """Keep code and transience with the text."""
        super().__init__(message, transient=transient)
        self.sqlstate = sqlstate


def refuse(*problems: tuple[object, str], error: Callable[[str], Exception] = ValidationError) -> None:
    """Raise an error with the sentence of the first problem whose condition is true, if any is."""
    for applies, sentence in problems:
        if applies:
            raise error(sentence)


def sqlstate_of(error: DatabaseFailure) -> str | None:
    """Return PostgreSQL's five-character code of `error`, or None if the server did not answer."""
    if not isinstance(error, DBAPIError):
        return None
    # The second is the name in psycopg2, which Dagster's storage uses.
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def is_data_error(error: DBAPIError) -> bool:
    """Whether the rows caused the error, not the server, the schema or the statement."""
    sqlstate = sqlstate_of(error)
    if sqlstate is None:
        return False
    if sqlstate in DATA_SQLSTATES:
        # Without a name it is "no partition of relation found for row"; a node of Citus names it in its text only.
        named = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
        return named is not None or "violates check constraint" in str(error.orig)
    return sqlstate[:2] in DATA_SQLSTATES


def reason_of(error: Exception) -> str:
    """Return the first line of the server's message, without statement and parameters; of other errors the text."""
    if isinstance(error, PoolTimeoutError):
        return "no connection became free"
    if not isinstance(error, DBAPIError):
        return str(error)
    diagnostic = getattr(error.orig, "diag", None)
    primary = getattr(diagnostic, "message_primary", None)
    text = str(primary or error.orig or error.__class__.__name__)
    return text.strip().splitlines()[0] if text.strip() else error.__class__.__name__


@contextmanager
def database_errors(*, doing: str, kept: str = "") -> Iterator[None]:
    """Turn every failure of the database inside the block into one with a text for users.

    `doing` completes "The database failed while …"; `kept` says what was kept if something had been done.

    Raises DatabaseError: the database refused or lost the work, or no connection of the pool became free.
    """
    try:
        yield
    except DATABASE_FAILURES as error:
        raise database_error(error, doing=doing, kept=kept) from error


def database_error(error: DatabaseFailure, *, doing: str, kept: str = "") -> DatabaseError:
    """Turn SQLAlchemy's `error` into a failure that says what happened, what was kept and what to do.

    The arguments are those of `database_errors`.
    """
    kept = kept and f"{kept} "
    if not isinstance(error, DBAPIError):
        return DatabaseError(f"No database connection became free while {doing}. {kept}Run it again.", transient=True)
    sqlstate = sqlstate_of(error)
    transient = sqlstate not in SCHEMA_SQLSTATES and is_transient(error)
    if sqlstate in SCHEMA_SQLSTATES:
        advice = "The schema is missing or too old: run `capacity init`, then run this again."
    elif transient:
        advice = "This may be temporary: run it again."
    else:
        advice = _REMEDIES_BY_SQLSTATE.get(sqlstate or "", "Repeating it will not help: fix the cause first.")
    text = f"The database failed while {doing}: {reason_of(error)}. {kept}{advice}"
    return DatabaseError(text, sqlstate=sqlstate, transient=transient)


# A login that is refused has no SQLSTATE. If the server's text has one of these parts, waiting does not help.
# (With translated messages it is tried again in vain, which does no harm.)
REFUSED_LOGIN = ("authentication failed", "no pg_hba.conf entry", "does not exist", "is not permitted to log in")


def is_transient(error: DatabaseFailure) -> bool:
    """Decide by SQLSTATE; without one (no answer from a server), a lost or refused connection is transient."""
    if not isinstance(error, DBAPIError):
        return True
    sqlstate = sqlstate_of(error)
    if sqlstate is None:
        refused = any(part in str(error.orig) for part in REFUSED_LOGIN)
        return not refused and (error.connection_invalidated or isinstance(error, OperationalError | InterfaceError))
    return sqlstate in TRANSIENT_SQLSTATES or sqlstate[:2] in TRANSIENT_SQLSTATES


_NO_RIGHT = "Give the user that runs capacity access to it, or choose another place"
_OTHER_PLACE = "Choose another place"
_SPACE = "Free some space"
_OPEN_FILES = "Raise the limit of open files (`ulimit -n`, LimitNOFILE of a unit)"
_MEMORY = "Free memory, or raise the limit (`ulimit -v`, MemoryMax of a unit, the memory of the container)"
_REMEDIES = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: "Make the file system writable, or choose another place",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "Raise the limit of the size of files (`ulimit -f`)",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ENOTDIR: _OTHER_PLACE,
    errno.EISDIR: _OTHER_PLACE,
    errno.ELOOP: _OTHER_PLACE,
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "Raise the limit of processes (`ulimit -u`, TasksMax of a unit)",
    errno.EIO: "Check the log of the machine: the disk may be failing",
}


def sentence_of(error: OSError | MemoryError) -> str | None:
    """Return an error of the operating system as a sentence with a remedy; None for any other error."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    remedy = _REMEDIES.get(number or 0)
    if remedy is None:
        return None
    what = getattr(error, "filename", None)
    reason = os.strerror(number or 0)
    named = os.fsdecode(what) if isinstance(what, str | bytes) else "The operating system refused the work"
    return f"{named}: {reason}. {remedy}."


MAXIMUM_LISTED_ERRORS = 20


class AggregationStatus(StrEnum):
    """How a window, or a whole run, ended."""

    COMPLETED = "completed"
    SKIPPED = "skipped"
    FAILED = "failed"

    @classmethod
    def of(cls, failed: int, processed: int) -> AggregationStatus:
        """Failed if any server failed, skipped if none was processed, otherwise completed."""
        if failed:
            return cls.FAILED
        return cls.COMPLETED if processed else cls.SKIPPED
