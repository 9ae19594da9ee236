"""The queue of changes: which windows a change touches, who has read it, and which windows are stale.

Triggers append rows to `capacity_changes` (see `triggers`). `gather_changes` deletes the rows that it sees and raises
`wanted` of the windows that they touch, in one transaction. A computation notes `wanted` before it reads the first
sample, and stores it as `computed` when it has written. So a window is stale while `computed` is less than `wanted`, or
while an unread row touches it: a change that commits late stays in the queue until it is gathered, and one that commits
during a computation causes the window to be computed once more. Readers ask the view `capacity_stale_windows`.

The kind of a row decides what follows. Added and corrected samples, servers put into service, and labels, engines or
counting servers that change, request a run. Deleted samples and aggregates written by others do not; but their windows
are not skipped as unchanged, nor read as stored sums.

On a cluster the triggers fire on each node and write to a queue of the same name there, in the writer's transaction.
The coordinator enters these records in its own queue and commits, then deletes them on the node. If a record is entered
twice, its windows are computed once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, MetaData, text
from sqlalchemy.schema import CreateTable

from capacity_assets.base.errors import CapacityError
from capacity_assets.database.cluster import number_distributed
from capacity_assets.database.sql import DIALECT, View, quoted, text_of, with_parts
from capacity_assets.database.tables import changes

STALE_WINDOWS = "capacity_stale_windows"


def gather_changes(connection: Connection) -> None:
    """Read the queue: raise `wanted` of the windows that its rows touch, and delete these rows.

    Other gatherings wait for the rows that this one has taken, until its transaction ends; rows and windows are locked
    in order. A server's days are looked up now: its trigger did not see samples that others were about to commit.
    """
    unread = connection.execute(text(_UNREAD_KINDS)).scalars().all()
    if not unread:
        return
    servers = connection.execute(text(_TAKE_SERVERS)).all() if "server" in unread else []
    if servers:
        newest = max(row.changed_at for row in servers)
        of_servers = {"servers": [row.instance_id for row in servers], "changed_at": newest}
        connection.execute(text(_DAYS_OF_SERVERS), of_servers)
    parts = {"taken": _TAKEN, "changed": _CHANGED, "touched": _TOUCHED, "locked": _LOCKED}
    connection.execute(with_parts(_GATHER, materialized=["changed"], **parts))


def distrust_windows(connection: Connection) -> None:
    """Have no window skipped as unchanged, or read as stored sums, before it is computed again."""
    connection.execute(text(_DISTRUST))


_DISTRUST = """
INSERT INTO capacity_changes (table_name, kind, days)
SELECT name, 'written', '(,)'
FROM unnest(ARRAY['database_size_aggregations', 'instance_size_aggregations', 'group_size_aggregations']) AS name
"""
# Nearly always there is nothing to read, or no server among it.
_UNREAD_KINDS = "SELECT DISTINCT CASE WHEN days IS NULL THEN 'server' ELSE 'days' END FROM capacity_changes"
_TAKE_SERVERS = """
DELETE FROM capacity_changes c
USING (SELECT ctid AS row FROM capacity_changes WHERE days IS NULL ORDER BY change_id FOR UPDATE) AS taken
WHERE c.ctid = taken.row RETURNING c.instance_id, c.changed_at
"""
_DAYS_OF_SERVERS = """
INSERT INTO capacity_changes (table_name, kind, days, changed_at)
SELECT table_name, 'samples', unnest(range_agg(daterange(collected_date, collected_date, '[]'))), :changed_at
FROM (
    SELECT DISTINCT 'database_size_stats' AS table_name, collected_date FROM database_size_stats
    WHERE instance_id = ANY (CAST(:servers AS integer[]))
    UNION ALL
    SELECT DISTINCT 'instance_size_stats', collected_date FROM instance_size_stats
    WHERE instance_id = ANY (CAST(:servers AS integer[]))
) AS days GROUP BY table_name
"""
# Every computed window, and how the rows `changed` touch it: not at all where `own` is null. A window reads its own
# days, those of the window before and of the one a year before. Looked up window by window, because the planner does
# not know how many windows there are until the table has statistics.
_TOUCHED = """
SELECT w.period_type, w.level, w.period_start, w.period_end, w.wanted, w.changed, w.computed, w.oldest_change,
       w.newest_change, t.own, t.oldest, t.newest
FROM capacity_computed_windows w CROSS JOIN LATERAL (
    SELECT bool_or(c.days && daterange(w.period_start, w.period_end, '[]')) AS own,
           min(c.oldest) FILTER (WHERE c.kind IN ('samples', 'server', 'groups')) AS oldest,
           max(c.newest) FILTER (WHERE c.kind IN ('samples', 'server', 'groups')) AS newest
    FROM changed c JOIN (VALUES
        ('database_size_stats', 'database'), ('database_size_stats', 'group'),
        ('database_size_aggregations', 'database'), ('instance_size_stats', 'instance'),
        ('instance_size_stats', 'group'), ('instance_size_aggregations', 'instance'),
        ('group_size_aggregations', 'group'), ('capacity_labels', 'group'), ('instances', 'group')
    ) AS pair (table_name, level) ON pair.table_name = c.table_name
    WHERE pair.level = w.level
      AND (c.days && daterange(w.reads_from, w.period_end, '[]')
           OR w.year_before_start IS NOT NULL AND c.days && daterange(w.year_before_start, w.year_before_end, '[]'))
) AS t
"""
_TAKEN = """
DELETE FROM capacity_changes c
USING (SELECT ctid AS row FROM capacity_changes WHERE days IS NOT NULL ORDER BY change_id FOR UPDATE) AS seen
WHERE c.ctid = seen.row RETURNING c.table_name, c.kind, c.days, c.changed_at
"""
_CHANGED = """
SELECT table_name, kind, days, min(changed_at) AS oldest, max(changed_at) AS newest
FROM taken GROUP BY table_name, kind, days
"""
_LOCKED = """
SELECT t.period_type, t.level, t.period_start, t.own, t.oldest, t.newest FROM touched t
JOIN capacity_computed_windows w USING (period_type, level, period_start)
WHERE t.own IS NOT NULL ORDER BY t.period_type, t.level, t.period_start FOR UPDATE OF w
"""
_GATHER = """
UPDATE capacity_computed_windows w
SET wanted = w.wanted + 1, changed = CASE WHEN t.own THEN w.wanted + 1 ELSE w.changed END,
    oldest_change = least(w.oldest_change, t.oldest), newest_change = greatest(w.newest_change, t.newest)
FROM locked t
WHERE w.period_type = t.period_type AND w.level = t.level AND w.period_start = t.period_start
"""
_UNREAD = """
SELECT table_name, kind, days, min(changed_at) AS oldest, max(changed_at) AS newest
FROM capacity_changes WHERE days IS NOT NULL GROUP BY table_name, kind, days
"""
_UNREAD_OF_SERVERS = """
SELECT * FROM unread
UNION ALL
SELECT 'database_size_stats', c.kind, daterange(s.collected_date, s.collected_date, '[]'), min(c.changed_at),
       max(c.changed_at)
FROM capacity_changes c JOIN database_size_stats s ON s.instance_id = c.instance_id
WHERE c.days IS NULL GROUP BY c.kind, s.collected_date
UNION ALL
SELECT 'instance_size_stats', c.kind, daterange(s.collected_date, s.collected_date, '[]'), min(c.changed_at),
       max(c.changed_at)
FROM capacity_changes c JOIN instance_size_stats s ON s.instance_id = c.instance_id
WHERE c.days IS NULL GROUP BY c.kind, s.collected_date
"""
_STALE = """
SELECT w.period_type,  -- Name of the period, such as daily or monthly
       w.level,  -- database, instance or group
       w.period_start,  -- First day of the window
       w.period_end,  -- Last day of the window, included
       w.wanted + CASE WHEN w.own IS NULL THEN 0 ELSE 1 END AS wanted,
          -- How often a change has touched it; unread ones count as one
       least(w.oldest_change, w.oldest) AS oldest_change,
          -- When the first change of samples or labels began that it has not followed; null: no run is requested,
          -- samples were only deleted, or its rows written by others
       greatest(w.newest_change, w.newest) AS newest_change,  -- When the last one began
       w.computed >= w.changed AND w.own IS NOT TRUE AS has_its_sums
          -- Whether only a window that it compares with has changed, so that its sums are those of its samples
FROM touched w WHERE w.computed IS NOT NULL AND (w.computed < w.wanted OR w.own IS NOT NULL)
"""
_GATHERED = """
SELECT period_type, level, period_start, has_its_sums FROM gathered
UNION ALL
SELECT period_type, level, period_start, false FROM capacity_computed_windows
WHERE computed IS NOT NULL AND EXISTS (SELECT true FROM capacity_changes WHERE days IS NULL)
"""
STALE_WHEN_GATHERED = (
    f"({text_of(with_parts(_GATHERED, materialized=['changed'], changed=_UNREAD, touched=_TOUCHED, gathered=_STALE))})"
)
"""The rows of the view for a run, which has just gathered, without planning for the samples of servers put into
service. While such a server is unread, every window counts as stale. `true` is selected because Citus needs a
column."""
STALE_WINDOWS_VIEW = View(
    STALE_WINDOWS,
    "Computed windows that are not as they would be computed now, or may not be.",
    text_of(with_parts(_STALE, materialized=["changed"], unread=_UNREAD, changed=_UNREAD_OF_SERVERS, touched=_TOUCHED)),
    # Nodes are not asked by a view: what they recorded, and servers put into service, count once they are gathered.
    query_on_nodes=text_of(with_parts(_STALE, materialized=["changed"], changed=_UNREAD, touched=_TOUCHED)),
)


# The nodes that were removed since they were last known.
LOST_NODES = """
SELECT known.node FROM capacity_settings s CROSS JOIN unnest(string_to_array(s.value, ',')) AS known (node)
WHERE s.name = 'nodes' AND known.node NOT IN (SELECT CAST(groupid AS text) FROM pg_dist_node)
"""


class NodeRefusedError(CapacityError):
    """A node refused what it has to keep for itself."""


def prepare_nodes(connection: Connection, *, kept: str) -> None:
    """Give each node the tables that its triggers write to, with grants. If one refuses, `kept` is in the error.

    Keeps which nodes there are. Of one that is gone nobody knows what it had recorded: nothing computed counts.

    Raises NodeRefusedError; DBAPIError if the database failed.
    """
    grants = connection.execute(text(_GRANTS), {"table": changes.name}).scalars()
    on_node = changes.to_metadata(MetaData(), schema=_schema(connection))
    for statement in (str(CreateTable(on_node, if_not_exists=True).compile(dialect=DIALECT)), *grants):
        on_workers = text("SELECT success, result FROM run_command_on_workers(:one)")
        failed = [row.result for row in connection.execute(on_workers, {"one": statement}) if not row.success]
        if failed:
            raise NodeRefusedError(f"{kept} A worker refused a table for changes: {failed[0]}.")
    if connection.execute(text(LOST_NODES)).first():
        distrust_windows(connection)
    connection.execute(text(_KNOW_THE_NODES))


def lost_nodes(engine: Engine) -> list[str]:
    """Return the numbers of nodes that were removed since the cluster was prepared; raises DBAPIError."""
    with engine.connect() as connection:
        return [*connection.execute(text(LOST_NODES)).scalars()]


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
# Under a new number of the coordinator.
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
    on_workers = "SELECT nodename, nodeport, success, result FROM run_command_on_workers(:command)"
    rows = connection.execute(text(on_workers), {"command": command}).all()
    for row in rows:
        if not row.success:
            # Refused, it stays refused; anything else may pass.
            refused = any(part in row.result for part in ("does not exist", "permission denied"))
            message = (
                f"Node {row.nodename}:{row.nodeport} did not report its changes: {row.result.rstrip('.')}"
                f"{'; run `capacity distribute`, which prepares nodes that were added' if refused else ''}."
            )
            raise NodeError(message, refused=refused)
    return [str(row.result) for row in rows]


_KNOW_THE_NODES = """
INSERT INTO capacity_settings (name, value)
SELECT 'nodes', coalesce(string_agg(DISTINCT CAST(groupid AS text), ','), '') FROM pg_dist_node
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE capacity_settings.value <> excluded.value
"""
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
"""The rights of roles on a table, as statements, because each node has a table of its own: Citus copies only the rights
of its own tables. A role that does not exist on a node is skipped."""
