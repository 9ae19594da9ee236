"""Copies of distributed rows for statements that Citus does not hand to its nodes: limits, forecasts, imports.

Within a transaction, a temporary table with the name of the distributed one holds the rows that a statement reads; the
statement finds it first, and stays as it is. What is copied passes through the coordinator, so it should be little:
what was measured last, or a result that nodes have put together. On a single server nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from sqlalchemy import Connection, text

from capacity_assets.storage.distribution import tables_are_distributed

NOTHING: Mapping[str, object] = MappingProxyType({})
NOTHING_ON_NODES: Mapping[str, str] = MappingProxyType({})


@contextmanager
def copied_for_reading(
    connection: Connection,
    wanted: Mapping[str, str],
    parameters: Mapping[str, object] = NOTHING,
    on_nodes: Mapping[str, str] = NOTHING_ON_NODES,
) -> Iterator[bool]:
    """Copy the rows of each table that meet its condition until the block ends; what then writes finds the tables.

    `on_nodes` names queries whose results are temporary tables besides, made before, by the nodes. Yields whether
    anything was copied: on a single server nothing is.

    Raises DBAPIError: the database failed, or the transaction may not write, not even for itself.
    """
    # Asked before: copies hide what is distributed.
    tables = (*wanted, *on_nodes)
    are_copied = bool(tables) and tables_are_distributed(connection)
    if are_copied:
        for name, query in on_nodes.items():
            connection.execute(text(f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {query}"), dict(parameters))
    copy_for_reading(connection, wanted, parameters)
    yield are_copied
    if are_copied:
        drop_copies(connection, tables)


def drop_copies(connection: Connection, tables: Iterable[str]) -> None:
    """Drop the copies of tables, which must be there, before the transaction ends. Raises as `copy_for_reading`."""
    connection.execute(text(f"DROP TABLE {', '.join(f'pg_temp.{table}' for table in tables)}"))


def copy_for_reading(
    connection: Connection, wanted: Mapping[str, str], parameters: Mapping[str, object] = NOTHING
) -> None:
    """Copy the rows of each table that meet its condition, until the transaction ends; a copy that is there is kept.

    Raises DBAPIError: the database failed, or the transaction may not write, not even for itself.
    """
    if not wanted or not tables_are_distributed(connection):
        return
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    for table, condition in wanted.items():
        copied = f"SELECT * FROM {schema}.{table} WHERE {condition}"  # noqa: S608 -- our own names and conditions
        connection.execute(
            text(f"CREATE TEMPORARY TABLE IF NOT EXISTS {table} ON COMMIT DROP AS {copied}"), dict(parameters)
        )
    # Without statistics the planner expects a handful of rows, and loops over all of them.
    connection.execute(text(f"ANALYZE {', '.join(f'pg_temp.{table}' for table in wanted)}"))
