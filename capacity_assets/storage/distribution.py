"""The capacity tables on Citus: what grows with the fleet distributed by server, everything else on the coordinator.

The triggers that record changes go with the tables. They fire on each node, over the shards there, and write to a table
of the same name that each node has for itself, in the transaction that wrote the samples. The coordinator gathers these
records before each look at the ledger. What is gathered bears the number of the gathering transaction, which is younger
than the change: whoever saw it saw the change, and who did not computes again.

How tables become distributed is the business of `distributing`; which statements compute on the nodes, of
`aggregation.distributed_statements`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Table, text

from capacity_assets.storage.partitions import CAPACITY_TABLES, UNREAD
from capacity_assets.storage.tables import invalidations, sample_changes

DISTRIBUTED = CAPACITY_TABLES
"""What is computed on the nodes: all of them are distributed, or none counts as such."""

ALONGSIDE = UNREAD
"""Distributed beside them. Statements are the same where these still lie on the coordinator, as versions before left
them."""

RECORDS = (sample_changes, invalidations)
"""What triggers write on the nodes."""

ROW_NUMBER_FUNCTION = "capacity_row_number"

SETTINGS_OF_A_SLICE = (
    # One copy of each shard: several periods, and slices side by side, need not wait for each other's upserts.
    "SET LOCAL citus.all_modifications_commutative = on",
    # What the session says of itself must reach the nodes.
    "SET LOCAL citus.propagate_set_commands = 'local'",
    "SET LOCAL enable_nestloop = off",
    "SET LOCAL plan_cache_mode = force_custom_plan",
    "SET LOCAL capacity.writer = 'on'",
)

ASKED_AGAIN_SECONDS = 60
_known: WeakKeyDictionary[Engine, tuple[int, float]] = WeakKeyDictionary()


def is_distributed(engine: Engine) -> bool:
    """Whether the tables of a database are distributed; where they are not, a process asks again after a minute."""
    return _number_distributed(engine) == len(DISTRIBUTED)


def ask_again(engine: Engine) -> None:
    """Forget what is known of an engine: its tables were just distributed, or may have been."""
    _known.pop(engine, None)


def _number_distributed(engine: Engine) -> int:
    number, asked = _known.get(engine, (0, -math.inf))
    if number < len(DISTRIBUTED) and time.monotonic() - asked >= ASKED_AGAIN_SECONDS:
        with engine.connect() as connection:
            number = len(distributed_tables(connection))
        _known[engine] = number, time.monotonic()
    return number


def tables_are_distributed(connection: Connection) -> bool:
    """Whether the tables of a connection's database are distributed, all of them."""
    return len(distributed_tables(connection)) == len(DISTRIBUTED)


def distributed_tables(connection: Connection, tables: Sequence[Table] = DISTRIBUTED) -> list[str]:
    """Name those of the tables that are distributed."""
    return _distributed(connection, [table.name for table in tables])


def _distributed(connection: Connection, names: Sequence[str]) -> list[str]:
    if connection.execute(text("SELECT to_regclass('pg_dist_partition') IS NULL")).scalar():
        return []
    query = text(
        "SELECT name FROM unnest(CAST(:names AS text[])) AS name "
        "WHERE EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass(name))"
    )
    return list(connection.execute(query, {"names": names}).scalars())


def size_of_table(connection: Connection, name: str) -> int:
    """Return the bytes of a table or a partition with its indexes, on all nodes."""
    is_local = not _distributed(connection, [name])
    size = "pg_total_relation_size(:name)" if is_local else "citus_total_relation_size(:name, false)"
    return int(connection.execute(text(f"SELECT {size}"), {"name": name}).scalar_one())


def change_shards_in_turn(connection: Connection) -> None:
    """Have the transaction's changes of tables made one shard after another; to be called first.

    The names of an index of two shards of a partition can be cut to the same 63 characters. Made side by side, the
    second waits for the first, whose transaction waits for it: Citus ends both as a distributed deadlock.
    """
    connection.execute(text("SET LOCAL citus.multi_shard_modify_mode = 'sequential'"))


def allow_triggers(connection: Connection) -> None:
    """Let the transaction make and drop our triggers on distributed tables.

    "Unsafe", in the setting's words, because a trigger on a shard must not look at other shards; ours look at nothing
    but their rows.
    """
    connection.execute(text("SET LOCAL citus.enable_unsafe_triggers = on"))


class NodeError(Exception):
    """A node did not do what it was asked; the text says which and why. What is `refused` stays so by itself."""

    def __init__(self, message: str, *, refused: bool) -> None:
        """Keep both."""
        super().__init__(message)
        self.refused = refused


def gather_records(engine: Engine, within_seconds: int | None = None) -> None:
    """Take over what the nodes recorded, forgotten there once it is kept here.

    Also where an interrupted distribution has left some tables on the coordinator. Raises NodeError; DBAPIError, also
    where a node takes longer than `within_seconds`.
    """
    if not _number_distributed(engine):
        return
    with _begun(engine, within_seconds) as connection:
        found = {table: _recorded(connection, table) for table in RECORDS}
        if not any(found.values()):
            return
        for table, records in found.items():
            _keep(connection, table, records)
    with _begun(engine, within_seconds) as connection:
        for table, records in found.items():
            _forget(connection, table, records)


@contextmanager
def _begun(engine: Engine, statement_seconds: int | None) -> Iterator[Connection]:
    with engine.begin() as connection:
        if statement_seconds is not None:
            connection.execute(text(f"SET LOCAL statement_timeout = '{statement_seconds}s'"))
        yield connection


Record = dict[str, object]


def _own_columns(table: Table) -> list[str]:
    """The columns of the key that say what was changed; the transaction is the coordinator's."""
    return [column.name for column in table.primary_key if column.name != "transaction_id"]


def _recorded(connection: Connection, table: Table) -> list[Record]:
    command = (
        "SELECT coalesce(json_agg(to_jsonb(n) || jsonb_build_object('node', "  # noqa: S608 -- names of our own tables
        f"(SELECT groupid FROM pg_dist_local_group))), '[]') FROM {table.name} n"
    )
    return [record for answer in _asked_of_nodes(connection, command) for record in json.loads(answer)]


def _asked_of_nodes(connection: Connection, command: str) -> list[str]:
    """Run a command on every worker; a failure is raised by the coordinator, with the node and what it said."""
    asked = "SELECT nodename, nodeport, success, result FROM run_command_on_workers(:command)"
    rows = connection.execute(text(asked), {"command": command}).all()
    for row in rows:
        if not row.success:
            # Refused, it stays refused; anything else may pass.
            refused = any(part in row.result for part in ("does not exist", "permission denied"))
            message = (
                f"Node {row.nodename}:{row.nodeport} does not say what was changed there: {row.result.rstrip('.')}"
                f"{'; run `capacity distribute`, which prepares nodes that were added' if refused else ''}."
            )
            raise NodeError(message, refused=refused)
    return [str(row.result) for row in rows]


def _keep(connection: Connection, table: Table, records: list[Record]) -> None:
    columns = _own_columns(table)
    listed = json.dumps([{name: record[name] for name in (*columns, "changed_at")} for record in records])
    connection.execute(
        text(
            f"INSERT INTO {table.name} ({', '.join(columns)}, changed_at) "  # noqa: S608 -- names of our own tables
            f"SELECT {', '.join(columns)}, min(changed_at) FROM json_populate_recordset(NULL::{table.name}, "
            f"CAST(:records AS json)) GROUP BY {', '.join(columns)} ON CONFLICT DO NOTHING"
        ),
        {"records": listed},
    )


def _forget(connection: Connection, table: Table, records: list[Record]) -> None:
    keys = ", ".join(column.name for column in table.primary_key)
    for node in sorted({int(str(record["node"])) for record in records}):
        own = json.dumps([record for record in records if record["node"] == node]).replace("'", "''")
        _asked_of_nodes(
            connection,
            f"DELETE FROM {table.name} WHERE (SELECT groupid FROM pg_dist_local_group) = {node} AND "  # noqa: S608 -- as above
            f"({keys}) IN (SELECT {keys} FROM json_populate_recordset(NULL::{table.name}, '{own}'))",
        )
