"""Adding, filling and dropping partitions of the capacity tables. Which there are is read in `partitions`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.exc import OperationalError

from capacity_assets.storage.adoption import other_owner
from capacity_assets.storage.distribution import change_shards_in_turn, distributed_tables
from capacity_assets.storage.partitions import (
    LIKE_PARENT,
    YEAR,
    Partition,
    PartitionLayout,
    Span,
    condition_of,
    has_rows,
    parameters_of,
    span_of,
)
from capacity_assets.storage.steps import free_name, quoted

ATTACH_SECONDS = 10


_MILLISECONDS_PER_TRY = 400  # less than the second after which PostgreSQL looks for a deadlock and ends someone's work


def add_partition(connection: Connection, table: Table, layout: PartitionLayout, span: Span) -> int:
    """Add the partition for `span`, and move its rows there from the default one; return how many were moved.

    Readers go on until the last moment; writers wait until the caller's transaction ends. They wait for the table, not
    for its default partition: who waits there has chosen it for a row that it then refuses.

    Raises:
        sqlalchemy.exc.OperationalError: the default partition is in use; the caller rolls back, and may try again.
    """
    if distributed_tables(connection):
        change_shards_in_turn(connection)
    connection.exec_driver_sql(f"LOCK TABLE ONLY {quoted(table.name)} IN SHARE ROW EXCLUSIVE MODE")
    name = free_name(connection, partition_name(table, span))
    # No grant and no trigger is needed on a partition; keys and indexes come with the attachment, after the rows.
    connection.exec_driver_sql(f"CREATE TABLE {quoted(name)} (LIKE {quoted(table.name)} {LIKE_PARENT})")
    owner = other_owner(connection, table.name)
    if owner:
        connection.exec_driver_sql(f"ALTER TABLE {quoted(name)} OWNER TO {quoted(owner)}")
    moved = _move(connection, table, layout.default, span, name) if layout.default else 0
    bounds = [f"'{span.period_type}', "] * 2 if layout.by_period else ["", ""]
    attach = (
        f"ALTER TABLE {quoted(table.name)} ATTACH PARTITION {quoted(name)} "
        f"FOR VALUES FROM ({bounds[0]}'{span.first}') TO ({bounds[1]}'{span.after}')"
    )
    _attach(connection, table, layout.default, attach)
    return moved


def _attach(connection: Connection, table: Table, default: Partition | None, statement: str) -> None:
    """Attach a partition in short tries, because no session may be using the default partition.

    A transaction that has read the default partition and then writes waits for this one, which waits for it: PostgreSQL
    would end one of the two, most likely the other. So this one gives way, as soon as it sees that.
    """
    deadline = time.monotonic() + ATTACH_SECONDS
    while True:
        try:
            with connection.begin_nested():
                connection.execute(text(f"SET LOCAL lock_timeout = {_MILLISECONDS_PER_TRY}"))
                connection.exec_driver_sql(statement)
        except OperationalError as error:
            names = {"table": table.name, "default": default.name if default else None}
            gives_way = connection.execute(text(_WAITS_FOR_US), names).scalar()
            if not isinstance(error.orig, LockNotAvailable) or gives_way or time.monotonic() > deadline:
                raise
        else:
            return


def _move(connection: Connection, table: Table, default: Partition, span: Span, name: str) -> int:
    columns = ", ".join(map(quoted, _stored_columns(connection, table)))
    with _row_triggers_off(connection, default):
        return connection.execute(
            text(
                f"WITH moved AS (DELETE FROM {default.name} WHERE {condition_of(table, span)} RETURNING {columns}) "  # noqa: S608 -- our own names
                f"INSERT INTO {quoted(name)} ({columns}) SELECT {columns} FROM moved"
            ),
            parameters_of(span),
        ).rowcount


@contextmanager
def _row_triggers_off(connection: Connection, partition: Partition) -> Iterator[None]:
    """Disable inherited row triggers, which would take moved rows for deleted ones."""
    triggers = connection.execute(text(_ROW_TRIGGERS), {"partition": partition.name}).all()
    for trigger in triggers:
        connection.exec_driver_sql(f"ALTER TABLE {partition.name} DISABLE TRIGGER {quoted(trigger.name)}")
    yield
    for trigger in triggers:
        connection.exec_driver_sql(f"ALTER TABLE {partition.name} {trigger.enable} TRIGGER {quoted(trigger.name)}")


def _stored_columns(connection: Connection, table: Table) -> list[str]:
    """List the columns by name: those of the default partition may stand in another order, and some are computed."""
    return [column["name"] for column in inspect(connection).get_columns(table.name) if "computed" not in column]


def partition_name(table: Table, span: Span) -> str:
    """Return the name that the partition for `span` gets."""
    whole_year = span_of(span.first, YEAR).after == span.after and span.first.month == 1
    when = f"{span.first:%Y}" if whole_year else f"{span.first:%Y_%m}"
    return "_".join(part for part in (table.name, span.period_type, when) if part)


def drop_partition(connection: Connection, table: Table, partition: Partition) -> None:
    """Detach a partition and drop it, whole; the caller holds it locked and has made sure that it may go."""
    connection.exec_driver_sql(f"ALTER TABLE {quoted(table.name)} DETACH PARTITION {partition.name}")
    connection.exec_driver_sql(f"DROP TABLE {partition.name}")


def lock_partition(connection: Connection, table: Table, partition: Partition) -> None:
    """Lock a partition until the transaction ends, after its table, in the order of readers."""
    connection.exec_driver_sql(f"LOCK TABLE ONLY {quoted(table.name)} IN ACCESS EXCLUSIVE MODE")
    connection.exec_driver_sql(f"LOCK TABLE {partition.name} IN ACCESS EXCLUSIVE MODE")


def empty_default(connection: Connection, layout: PartitionLayout) -> bool:
    """Truncate a default partition that holds no row any more; return whether it was truncated."""
    if layout.default is None:
        return False
    name = layout.default.name
    connection.exec_driver_sql(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
    if has_rows(connection, layout.default):
        return False
    connection.exec_driver_sql(f"TRUNCATE {name}")
    return True


_WAITS_FOR_US = """
SELECT EXISTS (
    SELECT FROM pg_locks waiting JOIN pg_locks holding ON holding.pid = waiting.pid
    WHERE NOT waiting.granted AND holding.granted AND waiting.relation = to_regclass(:table)
      AND holding.relation = to_regclass(:default) AND waiting.database = holding.database
)
"""


_ROW_TRIGGERS = """
SELECT tgname AS name,
       CASE tgenabled WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END AS enable
FROM pg_trigger WHERE tgrelid = to_regclass(:partition) AND tgconstraint = 0 AND tgenabled <> 'D'
  AND tgtype & 1 = 1  -- of rows
ORDER BY tgname
"""
