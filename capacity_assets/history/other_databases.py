"""Other databases: the import of a legacy one, and the copy of a whole capacity database.

Servers of a legacy database are matched by name, and registered if they are unknown. Raw samples are imported like all
others; aggregates, which outlive the samples, are copied if none are stored.

A capacity database is copied into another PostgreSQL in one transaction: every row of every capacity table, through
COPY, so that the two servers may have different versions, which `pg_dump` may refuse. Dagster's data is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, Table, create_engine, delete, func, inspect, literal, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from capacity_assets.aggregates.levels import DATABASE, Level
from capacity_assets.base.errors import DatabaseError, ValidationError, database_errors
from capacity_assets.base.settings import CAPACITY_DRIVER, Settings, variable
from capacity_assets.collection.credentials import SecretFolders, password_of
from capacity_assets.database.engine import (
    CONNECT_TIMEOUT_SECONDS,
    DRIVER_ARGUMENTS,
    DRIVER_OPTIONS,
    copy_rows,
    safe_url,
)
from capacity_assets.database.sql import DIALECT, quoted, temporary_table
from capacity_assets.database.tables import capacity_locks, capacity_settings, instances, metadata
from capacity_assets.history.rows import layout_of
from capacity_assets.history.sources import QuerySource, source_errors

WRITE_IT = (
    "write postgresql://user@host/database with --password-from, or env:NAME of a variable that holds the address"
)
COPY_ROWS = 100_000
KEPT = "Rows copied before are kept; run it again to continue."
SECRET_PARAMETERS = {"password", "sslpassword"}


def is_address(source: str) -> bool:
    """Whether a source is a database and no file."""
    return source.startswith("env:") or "://" in source


def address_of(source: str, password_from: str | None, settings: Settings) -> URL:
    """Return the URL of a legacy database, password included.

    Raises ValidationError if it is invalid, or contains a password, which everybody on this machine could read (the
    text repeats none of it); CredentialError if the password cannot be looked up.
    """
    named = source.removeprefix("env:") if source.startswith("env:") else None
    value = source if named is None else variable(named)
    if not value:
        raise ValidationError(f"The variable {named} is empty; {WRITE_IT}.")
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise ValidationError(f"This is not the address of a database; {WRITE_IT}.") from None
    if url.get_backend_name() not in {"postgresql", "postgres"} or not url.database:
        raise ValidationError(f"The source is not a PostgreSQL database; {WRITE_IT}.")
    if named is None and (url.password or SECRET_PARAMETERS.intersection(url.query)):
        raise ValidationError(
            "The address contains a password, which every user of this machine can see in the list of processes: "
            f"{WRITE_IT}."
        )
    if password_from is not None:
        url = url.set(password=password_of(password_from, SecretFolders.of(settings)))
    return url.set(drivername=CAPACITY_DRIVER)


def open_legacy(url: URL) -> Engine:
    """Return an engine of a legacy database whose sessions can only read."""
    given = url.query.get("options", "")
    options = f"{given} {DRIVER_OPTIONS} -c default_transaction_read_only=on -c timezone=UTC".strip()
    return create_engine(
        url.difference_update_query(["options"]),
        connect_args={**DRIVER_ARGUMENTS, "connect_timeout": CONNECT_TIMEOUT_SECONDS, "options": options},
    )


def legacy_tables(legacy: Engine) -> set[str]:
    """Return the names of its tables; raises DatabaseError if it does not answer, or has no table of servers."""
    where = safe_url(legacy.url)
    with source_errors(where), legacy.connect() as connection:
        names = set(inspect(connection).get_table_names())
    if "instances" not in names:
        raise DatabaseError(f"{where} has no table `instances`: is it the right database?")
    return names


def _columns_there(legacy: Engine, table: str) -> set[str]:
    with source_errors(safe_url(legacy.url)), legacy.connect() as connection:
        return {column["name"] for column in inspect(connection).get_columns(table)}


def legacy_samples(legacy: Engine, level: Level) -> QuerySource:
    """Return a raw table as a source of rows; void samples are left out. Raises DatabaseError."""
    source, name = level.source.c, level.source.name
    present = _columns_there(legacy, name)
    columns: dict[str, sa.ColumnElement[Any]] = {
        # Samples of a server that is no longer registered are reported, not left out.
        "server": sa.func.coalesce(instances.c.name, sa.func.concat("number ", source.instance_id, " there")),
        "instance_id": sa.null(),
        "day": source.collected_date,
        **{column.name: column for column in source if column.name in present - {"instance_id"}},
    }
    if level is DATABASE:
        columns["database"] = source.database_name
    query = sa.select(source.id, *(columns.get(column, sa.null()) for column in layout_of(level).columns))
    query = query.outerjoin(instances, instances.c.id == source.instance_id)
    query = query.where(source.id > sa.bindparam("after")).order_by(source.id)
    if "is_deleted" in present:
        query = query.where(~level.source.c.is_deleted)
    where = safe_url(legacy.url)
    return QuerySource(legacy, f"{where}, {name}", f"{where}/{name}", query)


@dataclass(frozen=True)
class LegacyServers:
    """The servers of a legacy database that are unknown here, as rows of its table."""

    rows: tuple[dict[str, object], ...]
    known: int = 0

    def add(self, connection: Connection) -> None:
        """Register them, in the caller's transaction."""
        if self.rows:
            connection.execute(insert(instances).on_conflict_do_nothing(index_elements=["name"]), list(self.rows))


def unknown_servers(legacy: Engine, engine: Engine) -> LegacyServers:
    """Find the servers that are to be registered, by name; raises DatabaseError of either database."""
    query = text("SELECT name, db_type, host, port, is_active, deleted_at FROM instances ORDER BY id")
    with source_errors(safe_url(legacy.url)), legacy.connect() as there:
        rows = [dict(row) for row in there.execute(query).mappings()]
    with database_errors(doing="comparing servers"), engine.connect() as connection:
        known = set(connection.execute(text("SELECT name FROM instances")).scalars())
    unknown = tuple(row for row in rows if row["name"] not in known)
    return LegacyServers(unknown, len(rows) - len(unknown))


def add_servers(servers: LegacyServers, engine: Engine) -> None:
    """Register them, all or none; raises DatabaseError."""
    with database_errors(doing="copying servers"), engine.begin() as connection:
        servers.add(connection)


def _pages_of_aggregates(legacy: Engine, level: Level, names: list[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield pages of rows of the server's name and the named columns; raises DatabaseError."""
    aggregates = level.target.c
    query = sa.select(aggregates.id, instances.c.name, *(aggregates[name] for name in names))
    query = query.join(instances, instances.c.id == aggregates.instance_id)
    query = query.where(aggregates.id > sa.bindparam("after")).order_by(aggregates.id).limit(COPY_ROWS)
    after = 0
    with source_errors(safe_url(legacy.url), KEPT), legacy.connect() as there:
        while rows := there.execute(query, {"after": after}).all():
            after = rows[-1][0]
            yield [tuple(row[1:]) for row in rows]


def copy_aggregates(  # noqa: PLR0913 -- the parts of one copy
    legacy: Engine,
    engine: Engine,
    level: Level,
    servers: LegacyServers,
    *,
    dry_run: bool,
    progress: Callable[[int], None],
) -> dict[str, int]:
    """Copy the aggregates of windows without stored rows; stored rows are kept.

    Raises DatabaseError: earlier commits are kept, and a repetition continues.
    """
    counts = {"read": 0, "written": 0, "present": 0}
    target = level.target.name
    present = _columns_there(legacy, target) - {"id", "instance_id"}
    names = [column.name for column in level.target.columns if column.name in present]
    with database_errors(doing=f"copying {target}", kept=KEPT):
        for rows in _pages_of_aggregates(legacy, level, names):
            with engine.connect() as connection, connection.begin() as transaction:
                if dry_run:
                    servers.add(connection)
                written = _insert_aggregates(connection, level, names, rows)
                if dry_run:
                    transaction.rollback()
            counts["read"] += len(rows)
            counts["written"] += written
            counts["present"] += len(rows) - written
            progress(counts["read"])
    return counts


def _insert_aggregates(connection: Connection, level: Level, names: list[str], rows: list[tuple[object, ...]]) -> int:
    """Insert rows for windows without a stored row; return how many were inserted."""
    columns = [sa.Column(name, level.target.c[name].type) for name in names]
    copied = temporary_table("copied", sa.Column("server", sa.Text), *columns)
    connection.execute(sa.schema.CreateTable(copied))
    copy_rows(connection, "COPY copied FROM STDIN", rows)
    known = sa.select(instances.c.id, *columns).join(copied, copied.c.server == instances.c.name)
    target = insert(level.target).from_select(["instance_id", *names], known, include_defaults=False)
    written = connection.execute(target.on_conflict_do_nothing().returning(sa.literal(1)))
    # On Citus the row count of a statement is the number of rows it was given.
    number = len(written.all())
    connection.execute(sa.schema.DropTable(copied))
    return number


OnTable = Callable[[str, int], None]
# Each database has its own locks.
COPIED = tuple(table for table in metadata.sorted_tables if table is not capacity_locks)


def copy_database(source: Engine, target: Engine, on_table: OnTable) -> dict[str, int]:
    """Copy all tables into a database with the same schema and no rows; return how many rows each has.

    `on_table` is called with each table and its rows. The rows of the source are from one snapshot.

    Raises ValidationError if the target contains rows, DatabaseError if one of the two failed; nothing was copied then.
    """
    with database_errors(doing="copying the database"):
        reading = source.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with reading, target.begin() as writing:
            for connection in (reading, writing):
                # A table may take hours, and ends with the transaction.
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            refuse_rows(writing)
            writing.execute(delete(capacity_settings))
            copied = {}
            for table in COPIED:
                copied[table.name] = _copy_table(reading, writing, table)
                on_table(table.name, copied[table.name])
    return copied


def refuse_rows(connection: Connection) -> None:
    """Raise ValidationError if a table of a target has rows; the tables may be missing."""
    present = set(inspect(connection).get_table_names())
    for table in COPIED:
        filled = select(select(literal(1)).select_from(table).exists())
        if table.name in present and table is not capacity_settings and connection.execute(filled).scalar_one():
            raise ValidationError(f"The target holds rows in {table.name}. Name an empty database.")


def _copy_table(reading: Connection, writing: Connection, table: Table) -> int:
    name, columns = quoted(table.name), ", ".join(quoted(column.name) for column in table.columns)
    # Our triggers are disabled, because they would record every day as changed; those of foreign keys stay.
    writing.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER USER")
    out = f"COPY ({select(table).compile(dialect=DIALECT)}) TO STDOUT"
    try:
        with (
            reading.connection.cursor().copy(out) as read,
            writing.connection.cursor().copy(f"COPY {name} ({columns}) FROM STDIN") as written,
        ):
            for block in read:
                written.write(block)
    except psycopg.Error as error:
        raise DBAPIError.instance(out, None, error, psycopg.Error, hide_parameters=True) from error
    writing.exec_driver_sql(f"ALTER TABLE {name} ENABLE TRIGGER USER")
    if "id" in table.columns:
        newest, sequence = func.max(table.c.id), func.pg_get_serial_sequence(table.name, "id")
        writing.execute(select(func.setval(sequence, newest)).having(newest.is_not(None)))
    return writing.execute(select(func.count()).select_from(table)).scalar_one()
