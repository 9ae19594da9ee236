"""Databases for tests: templates that are filled once per test process, their copies, and what is emptied instead.

Making a database costs ten times what replacing its rows does. One that a test leaves with the catalogue as it was gets
the rows of its template again and is given to the next, with connections that know the catalogue already: a new one
reads what it needs of it for the first statement, which costs more than most statements of a test. What a test has
altered is dropped.

A session that an engine closes, as every command does, is emptied (`DISCARD ALL`) and taken over by the next engine
that would begin the same one. To that engine it is new: without settings, locks, temporary tables and statements.
"""

from __future__ import annotations

import itertools
import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, LiteralString, NamedTuple, Protocol

import psycopg
import pytest
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.engine import capacity_engine

TEMPLATE = "capacity_template"


class Server(Protocol):
    """A server for the databases of tests."""

    def url(self, database: str, driver: str) -> URL: ...


# What a test can alter, its own rows apart. Each change of a catalogue has the number of its transaction, and a
# deletion is seen by the count.
CATALOGUES = (
    "capacity_alembic_version", "pg_attribute", "pg_attrdef", "pg_class", "pg_constraint", "pg_db_role_setting",
    "pg_default_acl", "pg_description", "pg_index", "pg_inherits", "pg_policy", "pg_proc", "pg_rewrite", "pg_trigger",
    "pg_type",
)  # fmt: skip
# A transaction's number has no order, but an age: in transactions since then.
_CATALOGUE = " UNION ALL ".join(
    f"SELECT $${name}$$, count(*), age('3'::xid) - min(age(xmin)) FROM {name}"
    # The schemas of temporary tables stay when their session has dropped these.
    for name in (*CATALOGUES, "pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'")
)
_FILLED = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND pg_relation_size(oid) > 0
  AND relname <> 'capacity_alembic_version'
"""
_SEQUENCES = "SELECT quote_ident(sequencename), coalesce(last_value, 1), last_value IS NOT NULL FROM pg_sequences"
_VERSION = "SELECT to_regclass('capacity_alembic_version') IS NOT NULL"
_OTHERS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name AND pid <> ALL (:kept)"


_FORGET = "RESET SESSION AUTHORIZATION; RESET ALL; DISCARD TEMP; UNLISTEN *; SELECT pg_advisory_unlock_all()"


class _Closed(NamedTuple):
    """A session that an engine closed, kept for reuse."""

    made_with: str
    settings: bytes
    """What databases and roles set for new sessions, as it was when this one was new."""
    session: PGconn


# By the name of the database; of no other one are they kept.
_CLOSED: dict[str, list[_Closed]] = {}
# What a connection is whose session was kept: closed.
_NOTHING = psycopg.pq.PGconn.connect_start(b"host=/nowhere")
_NOTHING.finish()


class _Connection(psycopg.Connection[Any]):
    """A connection whose session is kept when it is closed."""

    made_with: str
    settings: bytes

    def close(self) -> None:
        kept = _CLOSED.get(self.info.dbname) if not self.closed else None
        if kept is None or not _discarded(self.pgconn):
            super().close()
            return
        session, self.pgconn = self.pgconn, _NOTHING
        session.notice_handler = session.notify_handler = None
        kept.append(_Closed(self.made_with, self.settings, session))


def _discarded(session: PGconn) -> bool:
    """Reset a session; return whether that succeeded."""
    if session.transaction_status == TransactionStatus.ACTIVE:
        return False
    in_transaction = session.transaction_status != TransactionStatus.IDLE
    statements = [b"ROLLBACK", b"DISCARD ALL"] if in_transaction else [b"DISCARD ALL"]
    return all(session.exec_(statement).status == ExecStatus.COMMAND_OK for statement in statements)


def _settings(session: PGconn) -> bytes:
    result = session.exec_(b"SELECT count(*) || ' ' || coalesce(max(xmin::text::bigint), 0) FROM pg_db_role_setting")
    return result.get_value(0, 0) or b""


@event.listens_for(Engine, "do_connect")
def _connect(dialect: Any, _record: object, positional: Any, named: dict[str, Any]) -> psycopg.Connection[Any] | None:
    """Reuse a closed session with the same arguments, or connect."""
    kept = _CLOSED.get(named.get("dbname", ""))
    # `DISCARD ALL` forgets a role that was taken on at the beginning.
    if kept is None or dialect.driver != "psycopg" or "role=" in named.get("options", ""):
        return None
    made_with = repr((positional, sorted((name, value) for name, value in named.items() if name != "context")))
    for closed in [one for one in kept if one.made_with == made_with]:
        kept.remove(closed)
        # There is something to read where the server has ended the session.
        ended = closed.session.status != ConnStatus.OK or select.select([closed.session.socket], [], [], 0)[0]
        if not ended and _settings(closed.session) == closed.settings:
            taken = _Connection(closed.session)
            taken._adapters = AdaptersMap(named["context"])
            break
        closed.session.finish()
    else:
        taken = _Connection.connect(*positional, **named)
    taken.made_with, taken.settings = made_with, _settings(taken.pgconn)
    return taken


def _forget(name: str) -> None:
    """Close all kept sessions of a database."""
    for closed in _CLOSED.pop(name, []):
        closed.session.finish()


@dataclass(frozen=True)
class _Kept:
    """A database with the rows of its template, what tells whether a test changed it, and an engine.

    A connection of the engine has cached the catalogue.
    """

    name: str
    template: str
    catalogue: list[tuple[object, ...]]
    tables: dict[str, tuple[object, ...]]
    sequences: list[tuple[object, ...]]
    engine: Engine


def fixed_name(request: pytest.FixtureRequest, name: str) -> str | None:
    """One name for all tests with a daemon, because their code server is started once with one environment."""
    return name if "daemon" in request.fixturenames else None


def template_name(fill: Callable[[Engine], object]) -> str:
    """Name the template that `fill` makes."""
    return f"{fill.__module__.rpartition('.')[2]}_{fill.__name__}"


class Databases:
    """The databases of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        # Kept open: a connection costs as much as a statement of a test.
        self._engine = create_engine(server.url("postgres", CAPACITY_DRIVER), isolation_level="AUTOCOMMIT")
        self._administrator: Connection = self._engine.connect()
        self._filled: set[str] = set()
        self._kept: list[_Kept] = []
        self._rows: dict[str, dict[str, bytes]] = {}
        self._in_use: dict[str, Engine] = {}
        self._numbers = itertools.count(1)

    def close(self) -> None:
        for found in self._kept:
            found.engine.dispose()
            _forget(found.name)
        self._administrator.close()
        self._engine.dispose()

    def execute(self, statement: str, **parameters: object) -> None:
        self._administrator.execute(text(statement), parameters)

    def _create(self, name: str, template: str) -> None:
        # As files: block by block, as PostgreSQL does it by itself, takes twice as long.
        version = self._administrator.dialect.server_version_info
        strategy = "STRATEGY FILE_COPY" if version and version >= (15,) else ""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")

    def filled(self, name: str, fill: Callable[[Engine], object], basis: str = TEMPLATE) -> str:
        """Return the name of a template: a copy of `basis`, filled once by `fill`."""
        template = f"template_{name}"
        if template not in self._filled:
            self._create(template, basis)
            engine = capacity_engine(self.server.url(template, CAPACITY_DRIVER))
            try:
                fill(engine)
            except BaseException:
                engine.dispose()
                self.execute(f"DROP DATABASE {template} WITH (FORCE)")
                raise
            engine.dispose()
            self._filled.add(template)
        return template

    @contextmanager
    def copy(self, template: str, name: str | None = None) -> Iterator[URL]:
        """Yield a copy of a database, dropped at the end."""
        name = name or f"test_{next(self._numbers)}"
        self._create(name, template)
        _CLOSED[name] = []
        try:
            yield self.server.url(name, CAPACITY_DRIVER)
        finally:
            _forget(name)
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def fresh(self, template: str = TEMPLATE) -> Iterator[URL]:
        """Yield a database with the rows of a template: a new copy, or one that was used and has them again."""
        if template != TEMPLATE:
            for other in [one for one in self._kept if one.template not in (TEMPLATE, template)]:
                self._kept.remove(other)
                self._drop(other)
        found = next((one for one in self._kept if one.template == template), None)
        if found:
            self._kept.remove(found)
        else:
            found = self._new(template)
        self._in_use[found.name] = found.engine
        try:
            yield found.engine.url
        finally:
            del self._in_use[found.name]
            restored = self._restored(found)
            if restored:
                self._kept.append(restored)
            else:
                self._drop(found)

    @contextmanager
    def engine(self, database: URL) -> Iterator[Engine]:
        """Yield an engine on a database; event listeners of a test are removed at its end."""
        kept = self._in_use.get(database.database or "")
        engine = kept.execution_options() if kept else capacity_engine(database)
        try:
            yield engine
        finally:
            if not kept:
                engine.dispose()

    def _new(self, template: str) -> _Kept:
        name = f"test_{next(self._numbers)}"
        self._create(name, template)
        _CLOSED[name] = []
        engine = capacity_engine(self.server.url(name, CAPACITY_DRIVER))
        with _alone(engine) as connection:
            tables = _marks_of(connection, _filled(connection))
            if template not in self._rows:
                self._rows[template] = {table: _rows_of(connection, table) for table in tables}
            sequences = list(connection.execute(_SEQUENCES))
            return _Kept(name, template, _catalogue_of(connection), tables, sequences, engine)

    def _drop(self, found: _Kept) -> None:
        found.engine.dispose()
        _forget(found.name)
        self.execute(f"DROP DATABASE {found.name} WITH (FORCE)")

    def _restored(self, found: _Kept) -> _Kept | None:
        """Replace the rows of a test by those of the template; return None if it changed more than rows."""
        with _alone(found.engine) as connection:
            kept = [connection.info.backend_pid, *(closed.session.backend_pid for closed in _CLOSED[found.name])]
            self.execute(_OTHERS, name=found.name, kept=kept)
            connection.execute(_FORGET)
            if not _value(connection, _VERSION) or _catalogue_of(connection) != found.catalogue:
                return None
            filled = _filled(connection)
            left = _marks_of(connection, found.tables.keys() & filled).items() & found.tables.items()
            changed = {*filled, *found.tables} - dict(left).keys()
            if not changed:
                return found
            # Without the triggers that record it.
            connection.execute("SET session_replication_role = replica")
            connection.execute(f"TRUNCATE {', '.join(changed)}".encode())
            restored = changed & found.tables.keys()
            for table in restored:
                with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)".encode()) as copy:
                    copy.write(self._rows[found.template][table])
            connection.execute("RESET session_replication_role")
            for sequence in set(found.sequences) - set(connection.execute(_SEQUENCES)):
                connection.execute("SELECT setval(%s::regclass, %s, %s)", sequence)
            # Emptying a table gives it a new file.
            marks = found.tables | _marks_of(connection, restored)
            return replace(found, catalogue=_catalogue_of(connection), tables=marks)


@contextmanager
def _alone(engine: Engine) -> Iterator[psycopg.Connection]:
    """Yield a connection that commits each statement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        yield raw


def _catalogue_of(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.execute(_CATALOGUE)]


def _filled(connection: psycopg.Connection) -> list[str]:
    return [table for (table,) in connection.execute(_FILLED)]


def _marks_of(connection: psycopg.Connection, tables: Iterable[str]) -> dict[str, tuple[object, ...]]:
    """What changes with the rows of each table: their number, and the newest transaction that wrote one of them."""
    query = " UNION ALL ".join(
        f"SELECT '{table}', count(*), age('3'::xid) - min(age(xmin)) FROM {table}" for table in tables
    )
    return {str(table): tuple(mark) for table, *mark in connection.execute(query.encode())} if query else {}


def _rows_of(connection: psycopg.Connection, table: str) -> bytes:
    with connection.cursor().copy(f"COPY {table} TO STDOUT (FORMAT binary)".encode()) as copy:
        return b"".join(bytes(part) for part in copy)


def _value(connection: psycopg.Connection, query: LiteralString) -> Any:
    row = connection.execute(query).fetchone()
    assert row
    return row[0]


_TABLES = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
  AND relnamespace = '{}'::regnamespace AND relname <> 'capacity_alembic_version'
"""


def keep_rows(engine: Engine, name: str) -> None:
    """Store a copy of all rows under a name, which takes a tenth of the time of copying the database."""
    with _alone(engine) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}".encode())
        for (table,) in connection.execute(_TABLES.format("public").encode()).fetchall():
            filled = connection.execute(f"SELECT EXISTS (SELECT FROM public.{table})".encode()).fetchone()
            if filled == (True,):
                connection.execute(f"CREATE TABLE {name}.{table} AS TABLE public.{table}".encode())


def put_rows_back(engine: Engine, name: str) -> None:
    """Replace the rows of all tables by those stored under a name, without firing triggers."""
    with _alone(engine) as connection:
        connection.execute("SET session_replication_role = replica")
        tables = _filled(connection)
        if tables:
            connection.execute(f"TRUNCATE {', '.join(tables)}".encode())
        for (table,) in connection.execute(_TABLES.format(name).encode()).fetchall():
            rows_kept = f"INSERT INTO public.{table} OVERRIDING SYSTEM VALUE TABLE {name}.{table}"
            connection.execute(rows_kept.encode())
        connection.execute("RESET session_replication_role")


def end_sessions(engine: Engine) -> None:
    """End every other session of the database."""
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def rows(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def count(engine: Engine, table: str) -> int:
    """The number of rows of a table."""
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def execute(engine: Engine, *statements: str) -> None:
    """Execute statements in one transaction."""
    with engine.begin() as connection:
        # On a cluster, triggers of distributed tables are changed by who says so.
        connection.execute(text("SET LOCAL citus.enable_unsafe_triggers = on"))
        for statement in statements:
            connection.execute(text(statement))
