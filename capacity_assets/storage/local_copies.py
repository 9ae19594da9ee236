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

NOTHING: Mapping[str, str] = MappingProxyType({})


@contextmanager
def copied_for_reading(
    connection: Connection,
    wanted: Mapping[str, str],
    parameters: Mapping[str, object] = NOTHING,
    on_nodes: Mapping[str, str] = NOTHING,
) -> Iterator[bool]:
    """Copy the rows of each table that meet its condition until the block ends; what then writes finds the tables.

    Queries of `on_nodes` are run by the nodes first; the result of each is a temporary table of that name. Yields
    whether tables are distributed; where they are not, nothing is copied.

    Raises DBAPIError: the database failed, or the transaction may not write, not even for itself.
    """
    # Asked before: copies hide what is distributed.
    if not (wanted or on_nodes) or not tables_are_distributed(connection):
        yield False
        return
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    rows = {table: f"SELECT * FROM {schema}.{table} WHERE {condition}" for table, condition in wanted.items()}  # noqa: S608 -- our own names and conditions
    made = {**on_nodes, **rows}
    make_temporary_tables(connection, made, parameters)
    yield True
    connection.execute(text(f"DROP TABLE {_temporary(made)}"))


def make_temporary_tables(connection: Connection, queries: Mapping[str, str], parameters: Mapping[str, object]) -> None:
    """Keep the result of each query as a temporary table of its name, until the transaction ends. Raises DBAPIError."""
    for name, query in queries.items():
        connection.execute(text(f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {query}"), dict(parameters))
    # Without statistics the planner expects a handful of rows, and loops over all of them.
    connection.execute(text(f"ANALYZE {_temporary(queries)}"))


def _temporary(names: Iterable[str]) -> str:
    return ", ".join(f"pg_temp.{name}" for name in names)
