"""What the pages read with: short read-only transactions, and for some seconds what every page shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.foundation.errors import ValidationError
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.reader_role import READER_ROLE

STATEMENT_TIMEOUT_SECONDS = 5
CONNECTIONS = 8
# So many times as old, a value is not shown any more.
STALE_TIMES = 10
MOST_KEPT = 500

T = TypeVar("T")


def reading_engine(url: URL, *, role: str | None = None) -> Engine:
    """Create an engine whose sessions can only read, each statement for a few seconds; `role` is taken on."""
    options = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s"
    if role is not None:
        options += f" -c role={role}"
    given = url.query.get("options", "")
    return capacity_engine(
        url.update_query_dict({"options": f"{given} {options}".strip()}), parallel_slices=CONNECTIONS
    )


def refuse_a_role_that_can_write(engine: Engine) -> None:
    """Refuse to serve with more rights than pages need.

    Raises:
        ValidationError: the role of the session can change a table of the product.
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    with engine.connect() as connection:
        row = connection.execute(text(_CAN_WRITE)).one()
    if row.tables:
        raise ValidationError(
            f"The role {row.role} can write ({row.tables[0]}, for one), and the pages are to read only: they are "
            "not served. Make the role capacity_reader by the statements under Roles in docs/operations.md, and set "
            "CAPACITY_WEB_DATABASE_URL to its address; or say --allow-writing-role."
        )


def role_to_read_with(engine: Engine) -> str | None:
    """Return the reader role where the session may take it on and needs to; None: it reads with its own.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    with engine.connect() as connection:
        can_write = connection.execute(text(_CAN_WRITE)).one().tables
        may = connection.execute(text(_MAY_TAKE), {"role": READER_ROLE}).scalar()
    return READER_ROLE if can_write and may else None


@dataclass
class _Kept:
    """A value, when it was read, and whether somebody reads it again."""

    value: Any
    read_at: float
    is_read_again: bool = False


class Reader:
    """Reads the views for the pages."""

    def __init__(self, engine: Engine) -> None:
        """Read with an engine of `reading_engine`."""
        self._engine = engine
        self._kept: dict[Hashable, _Kept] = {}
        self._reading: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the tables throughout."""
        with self._engine.connect() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    def kept(self, key: Hashable, read: Callable[[], T], seconds: float) -> T:
        """Return what `read` returns, or returned before: figures that every page shows, and that take long.

        What is older than `seconds` is returned once more, and read again meanwhile: only who comes first waits.
        """
        now = time.monotonic()
        with self._lock:
            found = self._kept.get(key)
            is_fresh = found is not None and now - found.read_at < seconds
            is_usable = found is not None and now - found.read_at < STALE_TIMES * seconds
            if found is not None and is_usable:
                if not is_fresh and not found.is_read_again:
                    found.is_read_again = True
                    threading.Thread(target=self._read_again, args=(key, read), daemon=True).start()
                value: T = found.value
                return value
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:
            # Whoever waited finds what the first one read.
            with self._lock:
                again = self._kept.get(key)
            if again is not None and again.read_at >= now:
                waited: T = again.value
                return waited
            try:
                return self._keep(key, read)
            finally:
                with self._lock:
                    self._reading.pop(key, None)

    def _keep(self, key: Hashable, read: Callable[[], T]) -> T:
        value = read()
        with self._lock:
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = _Kept(value, time.monotonic())
        return value

    def _read_again(self, key: Hashable, read: Callable[[], Any]) -> None:
        try:
            self._keep(key, read)
        except (DBAPIError, PoolTimeoutError):
            # Whoever comes when it cannot be used any more gets to know.
            with self._lock:
                if key in self._kept:
                    self._kept[key].is_read_again = False


def rows(connection: Connection, query: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
    """Run a query and return its rows."""
    return connection.execute(text(query), dict(parameters or {})).all()


def found(
    kind: Callable[..., T], connection: Connection, query: str, parameters: Mapping[str, Any] | None = None
) -> list[T]:
    """Run a query and return a `kind` of each row; the columns are its fields."""
    return [kind(**row._mapping) for row in rows(connection, query, parameters)]  # noqa: SLF001 -- SQLAlchemy's public name


_CAN_WRITE = """
SELECT current_user AS role, ARRAY(
    SELECT c.relname FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = CAST(current_schema() AS regnamespace)
      AND (c.relname LIKE 'capacity\\_%' OR c.relname IN ('instances', 'database_size_stats', 'instance_size_stats',
           'database_size_aggregations', 'instance_size_aggregations'))
      AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    ORDER BY 1
) AS tables
"""
_MAY_TAKE = """
SELECT pg_has_role(current_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = :role AND rolname <> current_user
"""
