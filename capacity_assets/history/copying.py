"""Copying a whole capacity database into another PostgreSQL: every row of every table of ours, in one transaction.

Through COPY, so that the two servers may be of different versions, which `pg_dump` of one refuses of the other. What
Dagster keeps is not copied. How the target is prepared, and what is said about it, is decided by the callers.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from sqlalchemy import Connection, Engine, Table, delete, func, literal, select, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.database.sql import DIALECT, quoted
from capacity_assets.database.tables import capacity_locks, capacity_settings, metadata

OnTable = Callable[[str, int], None]
# Each database has its own locks.
COPIED = tuple(table for table in metadata.sorted_tables if table is not capacity_locks)
KEPT = "Nothing was copied; no row was changed."


def copy_database(source: Engine, target: Engine, on_table: OnTable) -> dict[str, int]:
    """Copy all tables into a database with the same schema and no rows; return how many rows each has.

    `on_table` is called with each table and its rows. The rows of the source are those of one moment.

    Raises ValidationError if the target holds rows, DatabaseError if one of the two failed; nothing was copied then.
    """
    with database_errors(doing="copying the database", kept=KEPT):
        reading = source.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with reading, target.begin() as writing:
            for connection in (reading, writing):
                # A table may take hours, and ends with the transaction.
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            _refuse_rows(writing)
            writing.execute(delete(capacity_settings))
            copied = {}
            for table in COPIED:
                copied[table.name] = _copy_table(reading, writing, table)
                on_table(table.name, copied[table.name])
    return copied


def _refuse_rows(writing: Connection) -> None:
    for table in COPIED:
        filled = select(select(literal(1)).select_from(table).exists())
        if table is not capacity_settings and writing.execute(filled).scalar_one():
            raise ValidationError(f"The target holds rows in {table.name}. {KEPT} Name an empty database.")


def _copy_table(reading: Connection, writing: Connection, table: Table) -> int:
    name, columns = quoted(table.name), ", ".join(quoted(column.name) for column in table.columns)
    # The triggers would note every day as changed. Only ours: those of foreign keys stay.
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
