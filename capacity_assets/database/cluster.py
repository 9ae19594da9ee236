"""The tables on Citus: those that grow with the fleet are distributed by server, all others are on the coordinator.

`distributing` distributes tables, `changes` reads the changes that nodes recorded. Statements that Citus does not push
down (limits, forecasts, imports) read copies: within a transaction, a temporary table with the name of the distributed
one contains the rows that a statement reads, and the statement stays the same. Copied rows pass through the
coordinator, so they should be few: the newest samples, or a result that nodes have computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, text

from capacity_assets.database.tables import CAPACITY_TABLES

NAMES = tuple(table.name for table in CAPACITY_TABLES)
"""Tables that are computed on the nodes if all of them are distributed."""

ROW_NUMBER_FUNCTION = "capacity_row_number"

SETTINGS_OF_A_SLICE = (
    # Each shard has one copy, so periods and slices need not wait for each other's upserts.
    "SET LOCAL citus.all_modifications_commutative = on",
    # Settings of the session must reach the nodes.
    "SET LOCAL citus.propagate_set_commands = 'local'",
    "SET LOCAL enable_nestloop = off",
    "SET LOCAL plan_cache_mode = force_custom_plan",
    "SET LOCAL capacity.writer = 'on'",
)

ASKED_AGAIN_SECONDS = 60
_known: WeakKeyDictionary[Engine, tuple[int, float]] = WeakKeyDictionary()


def is_distributed(engine: Engine) -> bool:
    """Whether the tables of a database are distributed; if they are not, a process queries again after a minute."""
    return number_distributed(engine) == len(NAMES)


def forget_distribution(engine: Engine) -> None:
    """Forget the cached state of a database, whose tables may just have been distributed."""
    _known.pop(engine, None)


def number_distributed(engine: Engine) -> int:
    """Count those of `NAMES` that are distributed, as of the last query."""
    number, counted_at = _known.get(engine, (0, -math.inf))
    if number < len(NAMES) and time.monotonic() - counted_at >= ASKED_AGAIN_SECONDS:
        with engine.connect() as connection:
            number = len(distributed_tables(connection))
        _known[engine] = number, time.monotonic()
    return number


def tables_are_distributed(connection: Connection) -> bool:
    """Whether all of the tables are distributed."""
    return len(distributed_tables(connection)) == len(NAMES)


def distributed_tables(connection: Connection, names: Iterable[str] = NAMES) -> list[str]:
    """Return the names of those tables that are distributed."""
    if connection.execute(text("SELECT to_regclass('pg_dist_partition') IS NULL")).scalar():
        return []
    query = text(
        "SELECT name FROM unnest(CAST(:names AS text[])) AS name "
        "WHERE EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass(name))"
    )
    return list(connection.execute(query, {"names": list(names)}).scalars())


def size_of_table(connection: Connection, name: str) -> int:
    """Return the bytes of a table or a partition with its indexes, on all nodes."""
    is_local = not distributed_tables(connection, [name])
    size = "pg_total_relation_size(:name)" if is_local else "citus_total_relation_size(:name, false)"
    return int(connection.execute(text(f"SELECT {size}"), {"name": name}).scalar_one())


def change_shards_in_turn(connection: Connection) -> None:
    """Let the transaction change tables one shard after another, triggers included. Call it first.

    The names of an index of two shards of a partition can be cut to the same 63 characters. In parallel, the second
    waits for the first, whose transaction waits for it: Citus ends both as a distributed deadlock. Triggers are
    "unsafe", in the setting's words, because one on a shard must not read other shards; these read only their own rows.
    Without Citus the settings have no effect.
    """
    connection.execute(text("SET LOCAL citus.multi_shard_modify_mode = 'sequential'"))
    connection.execute(text("SET LOCAL citus.enable_unsafe_triggers = on"))


@contextmanager
def copied_for_reading(
    connection: Connection, queries: Mapping[str, str], parameters: Mapping[str, object] = MappingProxyType({})
) -> Iterator[bool]:
    """Keep the result of each query as a temporary table of its name until the block ends, if tables are distributed.

    A query named like the table that it reads hides that table, so write to it after the block only. Yields whether
    tables are distributed; if they are not, nothing is copied.

    Raises DBAPIError: the database failed, or the transaction may not write, not even temporary tables.
    """
    # Checked first, because copies hide the distributed tables.
    if not queries or not tables_are_distributed(connection):
        yield False
        return
    make_temporary_tables(connection, queries, parameters)
    yield True
    drop_temporary_tables(connection, queries)


def make_temporary_tables(connection: Connection, queries: Mapping[str, str], parameters: Mapping[str, object]) -> None:
    """Keep the result of each query as a temporary table of its name, until the transaction ends. Raises DBAPIError."""
    for name, query in queries.items():
        connection.execute(text(f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {query}"), dict(parameters))
        # Without statistics the planner expects a handful of rows, and loops over all of them, in the next query too.
        connection.execute(text(f"ANALYZE pg_temp.{name}"))


def drop_temporary_tables(connection: Connection, names: Iterable[str]) -> None:
    """Drop the temporary tables that exist. Raises DBAPIError."""
    connection.execute(text(f"DROP TABLE IF EXISTS {', '.join(f'pg_temp.{name}' for name in names)}"))
