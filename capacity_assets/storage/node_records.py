"""What nodes of a cluster record of changes: the tables for it, and taking it over.

The triggers that record changes go with the distributed tables. They fire on each node, over the shards there, and
write to a queue of the same name that each node has for itself, in the transaction of the writer. The coordinator takes
these records over before each look at the ledger: it enters them in its own queue and commits, then deletes them on the
node. What is taken over twice has windows computed once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, MetaData, text
from sqlalchemy.schema import CreateTable

from capacity_assets.errors import CapacityError
from capacity_assets.storage.changes import distrust_windows
from capacity_assets.storage.distribution import number_distributed
from capacity_assets.storage.steps import DIALECT, quoted
from capacity_assets.storage.tables import changes

NODES = "(SELECT coalesce(string_agg(DISTINCT CAST(groupid AS text), ','), '') FROM pg_dist_node)"
"""The numbers of the nodes there are."""
LOST_NODES = f"""
    SELECT known.node FROM capacity_settings s CROSS JOIN unnest(string_to_array(s.value, ',')) AS known (node)
    WHERE s.name = 'nodes' AND known.node <> ALL (string_to_array({NODES}, ','))"""  # noqa: S608 -- as above
"""Those that were removed since they were last known."""


class NodeRefusedError(CapacityError):
    """A node refused what it has to keep for itself."""


def prepare_nodes(connection: Connection, *, kept: str) -> None:
    """Give each node the tables that its triggers write to, with their grants; `kept` is said where one refuses.

    Raises:
        NodeRefusedError: a node refused.
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    schema = _schema(connection)
    grants = connection.execute(text(_GRANTS), {"table": changes.name}).scalars()
    on_node = changes.to_metadata(MetaData(), schema=schema)
    for statement in (str(CreateTable(on_node, if_not_exists=True).compile(dialect=DIALECT)), *grants):
        asked = text("SELECT success, result FROM run_command_on_workers(:one)")
        failed = [row.result for row in connection.execute(asked, {"one": statement}) if not row.success]
        if failed:
            raise NodeRefusedError(f"{kept} A worker refused a table for changes: {failed[0]}.")
    _know_the_nodes(connection)


def lost_nodes(engine: Engine) -> list[str]:
    """Return the numbers of nodes that were removed since the cluster was prepared; raises DBAPIError."""
    with engine.connect() as connection:
        return [*connection.execute(text(LOST_NODES)).scalars()]


def _know_the_nodes(connection: Connection) -> None:
    """Keep which nodes there are. Of one that is gone nobody knows what it had recorded: nothing computed counts."""
    lost = connection.execute(text(LOST_NODES)).scalars().all()
    if lost:
        distrust_windows(connection)
    connection.execute(text(_KNOW_THE_NODES))


def _schema(connection: Connection) -> str:
    """The schema of the tables: what is sent to the nodes finds them wherever theirs look."""
    return str(connection.execute(text("SELECT current_schema()")).scalar_one())


class NodeError(Exception):
    """A node did not do what it was asked; the text says which and why. What is `refused` stays so by itself."""

    def __init__(self, message: str, *, refused: bool) -> None:
        """Keep both."""
        super().__init__(message)
        self.refused = refused


def gather_records(engine: Engine, within_seconds: int | None = None) -> None:
    """Take over what the nodes recorded; a record is deleted there once it is kept here, so none is lost.

    Also where an interrupted distribution has left some tables on the coordinator. Raises NodeError; DBAPIError, also
    where a node takes longer than `within_seconds`.
    """
    if not number_distributed(engine):
        return
    with _begun(engine, within_seconds) as connection:
        named = f"{quoted(_schema(connection))}.{changes.name}"
        answers = _asked_of_nodes(connection, _RECORDED.format(named=named))
        records = [record for answer in answers for record in json.loads(answer)]
        if not records:
            return
        connection.execute(text(_KEEP), {"records": json.dumps(records)})
    with _begun(engine, within_seconds) as connection:
        for node in sorted({int(record["node"]) for record in records}):
            ids = ", ".join(str(record["change_id"]) for record in records if record["node"] == node)
            _asked_of_nodes(connection, _FORGET.format(named=named, node=node, ids=ids))


_RECORDED = """
SELECT coalesce(json_agg(to_jsonb(n) || jsonb_build_object('node', (SELECT groupid FROM pg_dist_local_group))), '[]')
FROM {named} n
"""
# With a number of the coordinator's own.
_KEEP = """
INSERT INTO capacity_changes (table_name, kind, days, instance_id, changed_at)
SELECT DISTINCT table_name, kind, days, instance_id, changed_at
FROM json_populate_recordset(NULL::capacity_changes, CAST(:records AS json))
"""
_FORGET = """
DELETE FROM {named} WHERE (SELECT groupid FROM pg_dist_local_group) = {node} AND change_id = ANY (ARRAY[{ids}])
"""


@contextmanager
def _begun(engine: Engine, statement_seconds: int | None) -> Iterator[Connection]:
    with engine.begin() as connection:
        if statement_seconds is not None:
            connection.execute(text(f"SET LOCAL statement_timeout = '{statement_seconds}s'"))
        yield connection


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


_KNOW_THE_NODES = f"""
INSERT INTO capacity_settings (name, value) VALUES ('nodes', {NODES})
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE capacity_settings.value <> excluded.value
"""  # noqa: S608 -- as above
_GRANTS = """
SELECT format('DO %L', format(
    'BEGIN IF %L = ''PUBLIC'' OR EXISTS (SELECT FROM pg_roles WHERE rolname = %L) THEN GRANT %s ON %s TO %s; END IF; '
    'END', role, rolname, privileges, relation, role))
FROM (
    SELECT format('%I.%I', n.nspname, c.relname) AS relation, r.rolname,
           coalesce(quote_ident(r.rolname), 'PUBLIC') AS role, string_agg(a.privilege_type, ', ') AS privileges
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
    LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.oid = to_regclass(:table) AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
      AND (a.grantee = 0 OR r.rolname IS NOT NULL)
    GROUP BY n.nspname, c.relname, r.rolname) AS granted
"""
"""The rights of roles on a table, as statements: Citus copies those of tables that it knows, and this one is each
node's own. A role that a node does not have cannot ask there anyway."""
