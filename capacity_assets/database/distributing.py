"""Distributing the capacity tables over the nodes of a Citus cluster: obstacles, and the distribution.

Each table is distributed in a transaction of its own, so that an interrupted command continues where it stopped.
`cluster` contains what distributed tables need afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from capacity_assets.base.units import counted
from capacity_assets.database.changes import prepare_nodes
from capacity_assets.database.cluster import (
    ROW_NUMBER_FUNCTION,
    change_shards_in_turn,
    distributed_tables,
    forget_distribution,
)
from capacity_assets.database.partitions import UNREAD, layout_of
from capacity_assets.database.schema import schema_revision
from capacity_assets.database.sql import execute
from capacity_assets.database.tables import CAPACITY_TABLES, SCHEMA_REVISION
from capacity_assets.database.views import create_views, outdated_views

DISTRIBUTION_COLUMN = "instance_id"
BY_SERVER = (*CAPACITY_TABLES, *UNREAD)
"""The distributed tables."""
DEFAULT_SHARDS = 32
_ROW_NUMBER = f"""
CREATE OR REPLACE FUNCTION {ROW_NUMBER_FUNCTION}(sequence text, instance_id integer) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN nextval(sequence::regclass); END $$
"""
"""Called once per row, on the node that writes it. It is declared stable because Citus does not hand statements with
volatile functions to the nodes. Each node has a range of numbers of its own."""


OnTable = Callable[[str], None]
"""Called with the name of each table that was distributed."""


@dataclass(frozen=True)
class TablePlacement:
    """Where a table is: its rows, and whether they are distributed."""

    table: str
    size_mb: int
    is_distributed: bool
    shards: int
    nodes: int


def placements(engine: Engine, *, with_sizes: bool = True) -> list[TablePlacement]:
    """Return where each of the tables is; nothing if the database has no Citus. Raises DBAPIError.

    Sizes need a query of every node; if they are not requested, they are 0.
    """
    with engine.connect() as connection:
        if not _has_citus(connection):
            return []
        rows = connection.execute(
            text(_PLACEMENTS), {"names": [table.name for table in BY_SERVER], "with_sizes": with_sizes}
        )
        return [TablePlacement(**row) for row in rows.mappings()]


def distribution_text(placements: Sequence[TablePlacement]) -> str | None:
    """Return a sentence on where tables are; None if no table is distributed."""
    distributed = [placement for placement in placements if placement.is_distributed]
    if not distributed:
        return None
    nodes = counted(max(placement.nodes for placement in distributed), "node")
    names = ", ".join(placement.table for placement in distributed)
    undistributed = ", ".join(placement.table for placement in placements if not placement.is_distributed)
    rest = (
        f"{undistributed} not yet: run `capacity distribute` again"
        if undistributed
        else "all other tables are on the coordinator"
    )
    return f"{names}: {counted(distributed[0].shards, 'shard')} each on {nodes}; {rest}"


def distribution_problem(engine: Engine) -> str | None:
    """Return why the tables cannot be distributed, and what to do; None if they can. Raises DBAPIError."""
    with engine.connect() as connection:
        if not _has_citus(connection):
            return (
                "The database has no extension citus. Add `citus` to shared_preload_libraries on every node, restart "
                "them, run CREATE EXTENSION citus in this database on every node, and citus_add_node for each worker."
            )
        workers = text("SELECT count(*) FROM pg_dist_node WHERE shouldhaveshards AND isactive")
        if not connection.execute(workers).scalar():
            return "No node of the cluster takes shards: add workers with citus_add_node."
        if connection.execute(text("SELECT groupid FROM pg_dist_local_group")).scalar():
            return "This is a worker: CAPACITY_DATABASE_URL must name the coordinator."
        if schema_revision(engine) != SCHEMA_REVISION:
            return "The schema is missing or older than this version: run `capacity init` first."
        plain = [table.name for table in BY_SERVER if not layout_of(connection, table).is_partitioned]
        if plain:
            advice = "Run `capacity copy` to an empty database, and this command there."
            return f"{', '.join(plain)}: not partitioned. {advice}"
    return None


def distribute(engine: Engine, *, shards: int = DEFAULT_SHARDS, on_table: OnTable = lambda _line: None) -> list[str]:
    """Distribute the tables that are not distributed yet, by server; return their names.

    Writers of a table wait until it is done. Call it only if `distribution_problem` returns None.

    Raises NodeRefusedError if a node refused the tables for its changes; DBAPIError if the database failed: the tables
    done before stay distributed, and the next call continues with the rest.
    """
    with engine.begin() as connection:
        execute(connection, [_ROW_NUMBER])
        prepare_nodes(connection)
        distributed = distributed_tables(connection, [table.name for table in BY_SERVER])
    tables = [table for table in BY_SERVER if table.name not in distributed]
    first = BY_SERVER[0].name
    for table in tables:
        how = "shard_count => :shards" if table.name == first else "colocate_with => :first"
        values: dict[str, object] = {"table": table.name, "column": DISTRIBUTION_COLUMN}
        values |= {"shards": shards} if table.name == first else {"first": first}
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            change_shards_in_turn(connection)
            connection.execute(text(f"SELECT create_distributed_table(:table, :column, {how})"), values)
            # After distribution, the coordinator still has a copy of the rows.
            remove = text("SELECT truncate_local_data_after_distributing_table(:table)")
            connection.execute(remove, {"table": table.name})
            # Removing the copy changes no row, but fires the trigger.
            connection.execute(text("DELETE FROM capacity_changes WHERE xmin = CAST(pg_current_xact_id() AS xid)"))
            # Views for distributed tables, as soon as enough tables are distributed.
            create_views(connection, outdated_views(connection))
        on_table(table.name)
    forget_distribution(engine)
    with engine.begin() as connection:
        create_views(connection, outdated_views(connection))
    return [table.name for table in tables]


def _has_citus(connection: Connection) -> bool:
    return bool(connection.execute(text("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')")).scalar())


_PLACEMENTS = """
SELECT name AS "table", p.logicalrelid IS NOT NULL AS is_distributed,
       CAST(CASE WHEN NOT :with_sizes THEN 0 WHEN p.logicalrelid IS NULL THEN (
                SELECT coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_partition_tree(to_regclass(name)))
            ELSE (SELECT coalesce(sum(citus_total_relation_size(relid, false)), 0)
                  FROM pg_partition_tree(to_regclass(name)) WHERE isleaf) END / 1048576 AS bigint) AS size_mb,
       (SELECT count(*) FROM pg_dist_shard s WHERE s.logicalrelid = to_regclass(name)) AS shards,
       (SELECT count(DISTINCT l.groupid) FROM pg_dist_shard s JOIN pg_dist_placement l USING (shardid)
        WHERE s.logicalrelid = to_regclass(name)) AS nodes
FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS g (name, number)
LEFT JOIN pg_dist_partition p ON p.logicalrelid = to_regclass(name) ORDER BY number
"""
