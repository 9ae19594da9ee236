"""What the pages read with: short read-only transactions, and for some seconds what every page shows."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Row, text

from capacity_assets.errors import DatabaseError, ValidationError
from capacity_assets.foundation.schema_guard import newer_schema
from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.reader_role import READ_ON_NODES, READABLE, READER_ROLE
from capacity_assets.units import first_of

STATEMENT_TIMEOUT_SECONDS = 5
CONNECTIONS = 8
NAMED = 3
# So many times as old, a value is not shown any more.
STALE_TIMES = 3
MOST_KEPT_BYTES = 32 * 1024 * 1024
"""Limit for all values together, in pickled size; in memory they take about six times as much."""
SECONDS_BETWEEN_REVISIONS = 10

T = TypeVar("T")


def reading_engine(url: URL, *, role: str | None = None) -> Engine:
    """Create an engine whose sessions can only read, each statement for a few seconds; `role` is taken on."""
    options = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s"
    # Starting parallel workers takes longer than most of what pages ask, and many readers ask at once.
    options += " -c max_parallel_workers_per_gather=0"
    if role is not None:
        options += f" -c role={role}"
    given = url.query.get("options", "")
    # A new connection knows no table yet: its first page takes three times as long.
    return capacity_engine(
        url.update_query_dict({"options": f"{given} {options}".strip()}),
        kept_connections=CONNECTIONS,
        pool_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
    )


def refuse_a_role_that_can_write(engine: Engine) -> None:
    """Refuse to serve with more rights than pages need, or with fewer; raises ValidationError and DBAPIError."""
    with engine.connect() as connection:
        row = connection.execute(text(_CAN_WRITE)).one()
        names = [*READABLE, *(READ_ON_NODES if tables_are_distributed(connection) else ())]
        unreadable = connection.execute(text(_UNREADABLE), {"names": names}).scalars().all()
    if unreadable:
        raise ValidationError(
            f"The role {row.role} cannot read {first_of(unreadable, NAMED)}: the pages are not served. Run the "
            "statements under Roles in docs/operations.md again, on a cluster those of docs/scale.md too: an upgrade "
            "adds views and tables."
        )
    if row.tables:
        raise ValidationError(
            f"The role {row.role} can write ({row.tables[0]}, for one), and the pages are to read only: they are "
            "not served. Make the role capacity_reader by the statements under Roles in docs/operations.md, and set "
            "CAPACITY_WEB_DATABASE_URL to its address; or use `capacity serve --allow-writing-role`."
        )


def role_to_read_with(engine: Engine) -> str | None:
    """Return the reader role where the session may take it on and needs to, else None; raises DBAPIError."""
    with engine.connect() as connection:
        can_write = connection.execute(text(_CAN_WRITE)).one().tables
        asked = {"role": READER_ROLE, "on_nodes": tables_are_distributed(connection)}
        may = connection.execute(text(_MAY_TAKE), asked).scalar()
    return READER_ROLE if can_write and may else None


@dataclass(frozen=True)
class _Kept:
    """A cached value, when it was read, until when it may be shown, and its size."""

    value: Any
    read_at: float
    shown_until: float
    size_bytes: int


class Reader:
    """Reads the views for the pages."""

    def __init__(self, engine: Engine) -> None:
        """Read with an engine of `reading_engine`."""
        self._engine = engine
        self._kept: dict[Hashable, _Kept] = {}
        self._reading: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the tables throughout."""
        with self._engine.connect() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    def refuse_a_newer_schema(self) -> None:
        """Raise DatabaseError if a newer version has upgraded the schema since the connections were opened."""
        newer = self.kept_of(
            "schema", lambda connection: newer_schema(connection.connection), SECONDS_BETWEEN_REVISIONS
        )
        if newer:
            raise DatabaseError(newer)

    def kept(self, key: Hashable, read: Callable[[], T], seconds: float) -> T:
        """Return what `read` returns, or returned before: figures that every page shows, and that take long.

        What is older than `seconds` is returned once more, and read again meanwhile: only who comes first waits.
        Whoever comes while it is read gets the same, or the same error.
        """
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and now < kept.shown_until:
                if now - kept.read_at >= seconds and key not in self._reading:
                    self._reading[key] = Future()
                    threading.Thread(target=self._read, args=(key, read, seconds), daemon=True).start()
                value: T = kept.value
                return value
            reading = self._reading.get(key)
            is_first = reading is None
            if reading is None:
                reading = self._reading[key] = Future()
        if is_first:
            self._read(key, read, seconds)
        awaited: T = reading.result()
        return awaited

    def kept_of(self, key: Hashable, read: Callable[[Connection], T], seconds: float) -> T:
        """Return as `kept` what `read` returns in a transaction of its own."""

        def in_transaction() -> T:
            with self.transaction() as connection:
                return read(connection)

        return self.kept(key, in_transaction, seconds)

    def _read(self, key: Hashable, read: Callable[[], Any], seconds: float) -> None:
        """Read, and hand the outcome to everybody who waits for it."""
        try:
            value = read()
            size_bytes = len(pickle.dumps(value))
        except BaseException as error:  # noqa: BLE001 -- raised again in everyone who waits
            with self._lock:
                reading = self._reading.pop(key)
            reading.set_exception(error)
            return
        with self._lock:
            self._keep(key, value, seconds, size_bytes)
            reading = self._reading.pop(key)
        reading.set_result(value)

    def _keep(self, key: Hashable, value: Any, seconds: float, size_bytes: int) -> None:
        """Cache a value; drop expired values, and if the cache is full, those that expire first."""
        now = time.monotonic()
        self._kept.pop(key, None)
        for old in [old for old, kept in self._kept.items() if kept.shown_until <= now]:
            del self._kept[old]
        total_bytes = size_bytes + sum(kept.size_bytes for kept in self._kept.values())
        while self._kept and total_bytes > MOST_KEPT_BYTES:
            first = min(self._kept, key=lambda one: self._kept[one].shown_until)
            total_bytes -= self._kept.pop(first).size_bytes
        self._kept[key] = _Kept(value, now, now + STALE_TIMES * seconds, size_bytes)


def rows(connection: Connection, query: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
    """Run a query and return its rows."""
    return connection.execute(text(query), dict(parameters or {})).all()


def found(
    kind: Callable[..., T], connection: Connection, query: str, parameters: Mapping[str, Any] | None = None
) -> list[T]:
    """Run a query and return a `kind` of each row; the columns are its fields. Sums (numeric) become integers."""
    return [
        kind(**{name: int(value) if isinstance(value, Decimal) else value for name, value in row._mapping.items()})  # noqa: SLF001 -- SQLAlchemy's public name
        for row in rows(connection, query, parameters)
    ]


_CAN_WRITE = """
SELECT current_user AS role, ARRAY(
    SELECT c.relname FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = CAST(current_schema() AS regnamespace)
      AND (c.relname LIKE 'capacity\\_%' OR c.relname IN ('instances', 'database_size_stats', 'instance_size_stats',
           'database_size_aggregations', 'instance_size_aggregations', 'group_size_aggregations'))
      AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    ORDER BY 1
) AS tables
"""
_UNREADABLE = """
SELECT name FROM unnest(CAST(:names AS text[])) AS name
WHERE to_regclass(name) IS NULL OR NOT has_table_privilege(to_regclass(name), 'SELECT') ORDER BY 1
"""
# A session that has taken a role on connects to the nodes of a cluster as that role.
_MAY_TAKE = """
SELECT pg_has_role(current_user, oid, 'MEMBER') AND (rolcanlogin OR NOT CAST(:on_nodes AS boolean))
FROM pg_roles WHERE rolname = :role AND rolname <> current_user
"""
