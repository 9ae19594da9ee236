"""Changes: how they are recorded, which windows a change touches, and which windows are stale.

Triggers append every change by any program to the queue `capacity_changes`: on each raw table the days whose samples
were added, corrected or deleted, once per statement and range of days; on the aggregates, writes that are not by a
computation; on `instances` and the labels, the day from which groups changed. A row of the queue has no key, so no
writer waits for another one. Rows written to a partition by its own name bypass the triggers of the table.

The functions of the triggers run with the privileges of their owner, so that roles that write samples need none on the
queue. No other role may call them, and they refuse all relations except our own tables and their shards: otherwise a
caller's operators, casts or functions would run with the owner's privileges.

`gather_changes` deletes the rows of the queue that it sees and raises `wanted` of the windows that they touch, in one
transaction. A computation notes `wanted` before it reads the first sample, and stores it as `computed` after it has
written. So a window is stale while `computed` is less than `wanted`, or while an unread row touches it: a change that
commits late stays in the queue until it is gathered, and one that commits during a computation causes the window to be
computed once more. Readers use the view `capacity_stale_windows`.

The kind of a row decides what follows. Added and corrected samples, servers put into service, and labels, engines or
counting servers that change, request a run. Deleted samples and foreign writes to aggregates do not, but their windows
are neither skipped as unchanged nor read as stored sums.

On a cluster the triggers fire on each node and write to a queue of the same name there, in the writer's transaction.
The coordinator enters these records in its own queue and commits, then deletes them on the node. If a record is entered
twice, its windows are computed once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, DateTime, Engine, MetaData, Row, Table, Text, column, select, text, values
from sqlalchemy.schema import CreateTable

from capacity_assets.base.errors import CapacityError, DatabaseError
from capacity_assets.database.cluster import number_distributed
from capacity_assets.database.sql import (
    DIALECT,
    SchemaStep,
    View,
    current_schema,
    literal,
    quoted,
    sql_text,
    with_queries,
)
from capacity_assets.database.tables import AGGREGATES, SAMPLES, capacity_labels, changes, instances

# Placeholder of the schema of the tables in the bodies of the functions.
SCHEMA_MARK = "{schema}"
EVENTS = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "REFERENCING OLD TABLE AS old_rows",
    "truncate": "",
}
"""The events of a table, and how a trigger sees the rows."""


class TrackingFunction(NamedTuple):
    """A function and the triggers of a table that call it; `what` they record is used in messages.

    A function used by several tables has all of them as `callers`, and the name of the table as its argument.
    """

    table: str
    function: str
    body: str
    what: str
    events: Mapping[str, str] = EVENTS
    callers: tuple[str, ...] = ()


# The relation may be a shard, with another name but in the table's schema and with its owner. A role that could create
# such a relation already has the owner's privileges.
_REFUSE_OTHERS = """    IF NOT EXISTS (
        SELECT FROM pg_class ours JOIN pg_class fired USING (relnamespace, relowner)
        WHERE ours.oid IN ({callers}) AND fired.oid = TG_RELID
    ) THEN
        RAISE insufficient_privilege
            USING MESSAGE = '{function} is not for ' || CAST(CAST(TG_RELID AS regclass) AS text);
    END IF;
"""
_BEGIN = "\nBEGIN\n"
_FUNCTIONS = """
SELECT proname, prosrc, prosecdef, proconfig,
       EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee <> proowner)
           AS others_may_call
FROM pg_proc
WHERE proname = ANY (:functions) AND pronargs = 0 AND pronamespace = CAST(current_schema() AS regnamespace)
"""
_TRIGGERS = """
SELECT w.name AS table_name, f.proname, t.tgnargs, t.tgname, t.tgenabled IN ('O', 'A') AS fires
FROM unnest(CAST(:tables AS text[])) AS w (name) JOIN pg_trigger t ON t.tgrelid = to_regclass(w.name)
JOIN pg_proc f ON f.oid = t.tgfoid
WHERE f.proname = ANY (:functions) AND NOT t.tgisinternal AND f.pronamespace = CAST(current_schema() AS regnamespace)
"""
# From PUBLIC, and from roles that get it through the owner's default privileges.
_REVOKE = """
DO $$
DECLARE granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC') AS grantee
        FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE p.oid = CAST('{function}()' AS regprocedure) AND a.grantee <> p.proowner
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION {function}() FROM %s CASCADE', granted.grantee);
    END LOOP;
END $$
"""


def _tracking_steps(
    tracking: TrackingFunction, schema: str, stored: Row[Any] | None, triggers: Sequence[Row[Any]]
) -> Iterator[SchemaStep]:
    """Yield what is missing: triggers, and the function if its `stored` form is missing or different."""
    table, function = tracking.table, tracking.function
    reason = f"{tracking.what} of {table} are not recorded: a trigger is missing, old or disabled"
    too_open = f"the function {function} could be called by other roles and run their code as its owner"
    callers = ", ".join(f"to_regclass({literal(f'{schema}.{quoted(name)}')})" for name in tracking.callers or (table,))
    guard = _REFUSE_OTHERS.format(callers=callers, function=function)
    body = tracking.body.replace(SCHEMA_MARK, schema).replace(_BEGIN, _BEGIN + guard, 1)
    # The schema of the tables is not on the path: if others may create objects in it, they could add an operator.
    path = "pg_catalog, pg_temp"
    # White space does not count.
    wanted = ("".join(body.split()), True, [f"search_path={path}"])
    if stored is None or ("".join(stored.prosrc.split()), stored.prosecdef, stored.proconfig) != wanted:
        yield SchemaStep(
            reason,
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = {path} AS $body${body}$body$",
            is_lossy=True,
        )
    if stored is None or stored.others_may_call:
        yield SchemaStep(too_open if stored else reason, _REVOKE.format(function=function), is_lossy=stored is None)
    argument = literal(table) if tracking.callers else ""
    called = (table, function, 1 if argument else 0)
    fires = {row.tgname: row.fires for row in triggers if (row.table_name, row.proname, row.tgnargs) == called}
    for event, rows in tracking.events.items():
        trigger = f"{function}_{event}"
        if trigger not in fires:
            yield SchemaStep(
                reason,
                f"CREATE OR REPLACE TRIGGER {trigger} AFTER {event.upper()} ON {quoted(table)} {rows} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}({argument})",
                is_lossy=True,
            )
        elif not fires[trigger]:
            yield SchemaStep(reason, f"ALTER TABLE {quoted(table)} ENABLE TRIGGER {trigger}", is_lossy=True)


def change_tracking_steps(connection: Connection) -> list[SchemaStep]:
    """Return what is missing for change tracking: functions and triggers that are absent, old or disabled."""
    every = [*_every_tracking()]
    schema = quoted(current_schema(connection))
    names = {
        "tables": [*{function.table for function in every}],
        "functions": [*{function.function for function in every}],
    }
    functions = {row.proname: row for row in connection.execute(text(_FUNCTIONS), names)}
    triggers = connection.execute(text(_TRIGGERS), names).all()
    return [
        step
        for function in every
        for step in _tracking_steps(function, schema, functions.get(function.function), triggers)
    ]


def _every_tracking() -> Iterator[TrackingFunction]:
    for table in SAMPLES:
        yield TrackingFunction(table.name, f"capacity_track_{table.name}", _samples_body(table), "changes")
    added = {event: EVENTS[event] for event in ("insert", "update")}
    yield TrackingFunction(instances.name, "capacity_track_instances", _INSTANCES_BODY, "changes", added)
    for name, body in ((capacity_labels.name, _LABELS_BODY), (instances.name, _GROUPED_BODY)):
        yield TrackingFunction(name, f"capacity_track_groups_{name}", body, "changes of groups")
    names = tuple(table.name for table in AGGREGATES)
    for name in names:
        # One trigger per event: Citus does not copy a trigger to the shards that is also for TRUNCATE.
        yield TrackingFunction(name, "capacity_track_writes", _WRITES_BODY, "writes", dict.fromkeys(EVENTS, ""), names)


# Set by a session that computes, so that its own writes are not recorded.
WRITER_SETTING = "capacity.writer"
# For all windows of the table: to find out which, triggers would need the rows of every statement, computations too.
_WRITES_BODY = """
BEGIN
    IF current_setting('capacity.writer', true) IS DISTINCT FROM 'on' THEN
        -- Not the table's own name, which that of a shard is not.
        INSERT INTO {schema}.capacity_changes (table_name, kind, days) VALUES (TG_ARGV[0], 'written', '(,)');
    END IF;
    RETURN NULL;
END
"""
# Windows that were computed without the server lack its samples. Its days are looked up when the row is read, because a
# trigger does not see samples that another transaction is about to commit.
_INSTANCES_BODY = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {schema}.capacity_changes (table_name, kind, instance_id)
        SELECT 'instances', 'server', n.id FROM new_rows n WHERE (n.is_active AND n.deleted_at IS NULL);
    ELSE
        INSERT INTO {schema}.capacity_changes (table_name, kind, instance_id)
        SELECT 'instances', 'server', n.id FROM new_rows n LEFT JOIN old_rows o USING (id)
        WHERE (n.is_active AND n.deleted_at IS NULL) AND (o.is_active AND o.deleted_at IS NULL) IS NOT TRUE;
    END IF;
    RETURN NULL;
END
"""
# The days of new and deleted rows, and the old and new days of corrected rows; nothing if no row changed.
_SAMPLES_BODY = """
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {schema}.capacity_changes (table_name, kind, days)
        SELECT '{table}', 'samples', unnest(range_agg(daterange(r.day, r.day, '[]')))
        FROM (SELECT DISTINCT n.collected_date AS day FROM new_rows n) AS r;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO {schema}.capacity_changes (table_name, kind, days)
        SELECT '{table}', 'samples', unnest(range_agg(daterange(r.day, r.day, '[]')))
        FROM (SELECT DISTINCT side.day FROM old_rows o FULL JOIN new_rows n USING (id)
              CROSS JOIN LATERAL (VALUES (o.collected_date), (n.collected_date)) AS side (day)
              WHERE ({old}) IS DISTINCT FROM ({new}) AND side.day IS NOT NULL) AS r;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO {schema}.capacity_changes (table_name, kind, days)
        SELECT '{table}', 'deleted', unnest(range_agg(daterange(r.day, r.day, '[]')))
        FROM (SELECT DISTINCT o.collected_date AS day FROM old_rows o) AS r;
    ELSE
        INSERT INTO {schema}.capacity_changes (table_name, kind, days) VALUES ('{table}', 'deleted', '(,)');
    END IF;
    RETURN NULL;
END
"""
# The day from which groups changed: the first day of the labels; or the beginning for the first or the last label of a
# key, because every window is grouped by every key.
_LABELS_BODY = """
DECLARE
    first_day date := DATE '0001-01-01';
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT min(CASE WHEN g.labels = (SELECT count(*) FROM (
                            SELECT FROM {schema}.capacity_labels l WHERE l.key = g.key) AS all_labels)
                        THEN DATE '0001-01-01' ELSE g.first_day END) INTO first_day
        FROM (SELECT n.key, count(*) AS labels, min(n.valid_from) AS first_day FROM new_rows n GROUP BY n.key) AS g;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT min(CASE WHEN EXISTS (SELECT FROM {schema}.capacity_labels l WHERE l.key = o.key)
                        THEN o.valid_from ELSE DATE '0001-01-01' END) INTO first_day FROM old_rows o;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT CASE WHEN bool_and(r.is_kept) THEN min(r.first_day) ELSE DATE '0001-01-01' END INTO first_day
        FROM (SELECT n.key IS NOT NULL AND o.key IS NOT NULL AS is_kept, valid_from AS first_day FROM new_rows n
              FULL JOIN old_rows o USING (instance_id, database_pattern, key, valid_from)) AS r HAVING count(*) > 0;
    END IF;
    IF first_day IS NOT NULL THEN
        INSERT INTO {schema}.capacity_changes (table_name, kind, days)
        VALUES ('capacity_labels', 'groups', daterange(first_day, NULL));
    END IF;
    RETURN NULL;
END
"""
# A new server changes groups only if it has samples already. These are looked up by number, in a separate query,
# because they may be on another node than the server.
_GROUPED_BODY = """
DECLARE
    came integer[];
    is_changed boolean := true;
BEGIN
    IF TG_OP = 'INSERT' THEN
        is_changed := false;
        came := ARRAY(SELECT n.id FROM new_rows n);
        PERFORM 1 FROM {schema}.database_size_stats s WHERE s.instance_id = ANY (came) LIMIT 1;
        is_changed := is_changed OR FOUND;
        PERFORM 1 FROM {schema}.instance_size_stats s WHERE s.instance_id = ANY (came) LIMIT 1;
        is_changed := is_changed OR FOUND;
    ELSIF TG_OP = 'UPDATE' THEN
        is_changed := EXISTS (
            SELECT FROM new_rows n FULL JOIN old_rows o USING (id)
            WHERE (n.db_type, n.counted_by) IS DISTINCT FROM (o.db_type, o.counted_by));
    ELSIF TG_OP = 'DELETE' THEN
        is_changed := EXISTS (SELECT FROM old_rows);
    END IF;
    IF is_changed THEN
        INSERT INTO {schema}.capacity_changes (table_name, kind, days) VALUES ('instances', 'groups', '(,)');
    END IF;
    RETURN NULL;
END
"""


def _samples_body(table: Table) -> str:
    """Return the body for a table of samples; times of writing are not compared."""
    measured = [column for column in table.columns if column.name != "id" and not isinstance(column.type, DateTime)]
    old, new = (", ".join(f"{side}.{quoted(column.name)}" for column in measured) for side in ("o", "n"))
    return _SAMPLES_BODY.format(schema=SCHEMA_MARK, table=table.name, old=old, new=new)


_WANTED = values(column("table_name", Text), column("trigger_name", Text), name="wanted").data(
    [(tracking.table, f"{tracking.function}_{event}") for tracking in _every_tracking() for event in tracking.events]
)
_ALL_FIRE = """
SELECT bool_and(t.tgenabled IS NOT NULL AND t.tgenabled IN ('O', 'A')) AS is_on FROM wanted
LEFT JOIN pg_trigger t ON t.tgrelid = to_regclass(wanted.table_name) AND t.tgname = wanted.trigger_name
"""
TRACKING = sql_text(text(_ALL_FIRE).columns().add_cte(select(_WANTED).cte("wanted")))
"""Whether every trigger exists and fires."""


STALE_WINDOWS = "capacity_stale_windows"


def gather_changes(connection: Connection) -> None:
    """Read the queue: raise `wanted` of the windows that its rows touch, and delete these rows.

    Other processes wait for the rows that this one deletes, until its transaction ends; rows and windows are locked in
    order. The days of a server are looked up now, because its trigger did not see samples in uncommitted transactions.
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
    connection.execute(with_queries(_GATHER, materialized=["changed"], **parts))


def distrust_windows(connection: Connection) -> None:
    """Record that any window may be wrong: none is skipped as unchanged or read as stored sums until it is computed."""
    connection.execute(text(_DISTRUST))


_DISTRUST = """
INSERT INTO capacity_changes (table_name, kind, days)
SELECT name, 'written', '(,)'
FROM unnest(ARRAY['database_size_aggregations', 'instance_size_aggregations', 'group_size_aggregations']) AS name
"""
# Usually there is nothing to read, or no server among it.
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
# Every computed window, and how the rows of `changed` touch it; if `own` is null, they do not. A window reads its own
# days, those of the previous window and those of the window a year before. Windows are looked up one by one, because
# the planner does not know how many there are until the table has statistics.
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
STALE_WHEN_GATHERED = sql_text(
    with_queries(_GATHERED, materialized=["changed"], changed=_UNREAD, touched=_TOUCHED, gathered=_STALE)
)
"""The rows of the view for a run, which has just gathered, without planning for the samples of servers put into
service. While such a server is unread, every window counts as stale. `true` is selected because Citus needs a
column."""
STALE_WINDOWS_VIEW = View(
    STALE_WINDOWS,
    "Computed windows that a new computation may change.",
    sql_text(
        with_queries(_STALE, materialized=["changed"], unread=_UNREAD, changed=_UNREAD_OF_SERVERS, touched=_TOUCHED)
    ),
    # A view does not query nodes: their records, and enabled servers, count after they are gathered.
    query_on_nodes=sql_text(with_queries(_STALE, materialized=["changed"], changed=_UNREAD, touched=_TOUCHED)),
)


# The nodes that were removed since the nodes were last recorded.
LOST_NODES = """
SELECT known.node FROM capacity_settings s CROSS JOIN unnest(string_to_array(s.value, ',')) AS known (node)
WHERE s.name = 'nodes' AND known.node NOT IN (SELECT CAST(groupid AS text) FROM pg_dist_node)
"""


class NodeRefusedError(CapacityError):
    """A node refused the table for its changes."""


def prepare_nodes(connection: Connection) -> None:
    """Create the table on each node that its triggers write to, with grants, and record the nodes.

    The changes recorded by a removed node are lost, so every window may be wrong then. `kept` is the sentence for an
    error about what was not done.

    Raises NodeRefusedError; DBAPIError if the database failed.
    """
    grants = connection.execute(text(_GRANTS), {"table": changes.name}).scalars()
    on_node = changes.to_metadata(MetaData(), schema=current_schema(connection))
    for statement in (str(CreateTable(on_node, if_not_exists=True).compile(dialect=DIALECT)), *grants):
        on_workers = text("SELECT success, result FROM run_command_on_workers(:one)")
        failed = [row.result for row in connection.execute(on_workers, {"one": statement}) if not row.success]
        if failed:
            raise NodeRefusedError(f"A worker refused a table for changes: {failed[0]}.")
    if connection.execute(text(LOST_NODES)).first():
        distrust_windows(connection)
    connection.execute(text(_RECORD_NODES))


def lost_nodes(engine: Engine) -> list[str]:
    """Return the numbers of nodes that were removed since the cluster was prepared; raises DBAPIError."""
    with engine.connect() as connection:
        return [*connection.execute(text(LOST_NODES)).scalars()]


NODE_SQLSTATE = "58000"
"""PostgreSQL's code for an external failure: the coordinator still answers, so other work continues."""


def gather_records(engine: Engine, within_seconds: int | None = None, *, kept: str = "") -> None:
    """Collect the records of the nodes; a record is deleted there after it is stored here, so none is lost.

    This also works if an interrupted distribution has left some tables on the coordinator.

    Raises DatabaseError if a node refused or failed, with `kept` in its text; DBAPIError, also if a node takes longer
    than `within_seconds`.
    """
    if not number_distributed(engine):
        return
    with _transaction(engine, within_seconds) as connection:
        named = f"{quoted(current_schema(connection))}.{changes.name}"
        answers = _ask_nodes(connection, _RECORDED.format(named=named), kept)
        records = [record for answer in answers for record in json.loads(answer)]
        if not records:
            return
        connection.execute(text(_KEEP), {"records": json.dumps(records)})
    with _transaction(engine, within_seconds) as connection:
        for node in sorted({int(record["node"]) for record in records}):
            ids = ", ".join(str(record["change_id"]) for record in records if record["node"] == node)
            _ask_nodes(connection, _FORGET.format(named=named, node=node, ids=ids), kept)


_RECORDED = """
SELECT coalesce(json_agg(to_jsonb(n) || jsonb_build_object('node', (SELECT groupid FROM pg_dist_local_group))), '[]')
FROM {named} n
"""
# The coordinator numbers them itself.
_KEEP = """
INSERT INTO capacity_changes (table_name, kind, days, instance_id, changed_at)
SELECT DISTINCT table_name, kind, days, instance_id, changed_at
FROM json_populate_recordset(NULL::capacity_changes, CAST(:records AS json))
"""
_FORGET = """
DELETE FROM {named} WHERE (SELECT groupid FROM pg_dist_local_group) = {node} AND change_id = ANY (ARRAY[{ids}])
"""


@contextmanager
def _transaction(engine: Engine, statement_seconds: int | None) -> Iterator[Connection]:
    with engine.begin() as connection:
        if statement_seconds is not None:
            connection.execute(text(f"SET LOCAL statement_timeout = '{statement_seconds}s'"))
        yield connection


def _ask_nodes(connection: Connection, command: str, kept: str) -> list[str]:
    on_workers = "SELECT nodename, nodeport, success, result FROM run_command_on_workers(:command)"
    rows = connection.execute(text(on_workers), {"command": command}).all()
    for row in rows:
        if not row.success:
            # A refusal of a node is permanent; any other failure may be transient.
            refused = any(part in row.result for part in ("does not exist", "permission denied"))
            advice = "; run `capacity distribute`, which prepares nodes that were added" if refused else ""
            failed = f"Node {row.nodename}:{row.nodeport} did not report its changes: {row.result.rstrip('.')}{advice}."
            raise DatabaseError(f"{failed} {kept}".rstrip(), sqlstate=NODE_SQLSTATE, transient=not refused)
    return [str(row.result) for row in rows]


_RECORD_NODES = """
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
"""The rights of roles on a table, as statements for its copies on the nodes: Citus copies rights of distributed tables
only. A role that does not exist on a node is skipped."""
