"""Change tracking: triggers append every change to `capacity_changes`, whoever writes.

On each raw table they record the days whose samples were added, corrected or deleted, once per statement and stretch of
days; on the aggregates, writes by others than a computation; on `instances` and the labels, the day from which groups
changed. What follows from a change is in `changes`. A row of the queue has no key, so that no writer waits for another
one. Rows written to a partition by its own name bypass the triggers of the table.

The functions run with the privileges of their owner, so that roles that write samples need none on the queue. No other
role may call them, and they refuse all relations except our own tables and their shards: otherwise a caller's
operators, casts or functions would run with the owner's privileges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, DateTime, Row, Table, Text, column, select, text, values

from capacity_assets.database.sql import SchemaStep, literal, quoted, text_of
from capacity_assets.database.tables import AGGREGATES, SAMPLES, capacity_labels, instances

# Stands for the schema of the tables in the bodies of the functions.
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
    """Yield what is missing: the function, if it is not `stored` as it should be, and triggers."""
    table, function = tracking.table, tracking.function
    reason = f"{tracking.what} of {table} are not recorded: a trigger is missing, old or disabled"
    too_open = f"the function {function} could be called by other roles and run their code as its owner"
    callers = ", ".join(f"to_regclass({literal(f'{schema}.{quoted(name)}')})" for name in tracking.callers or (table,))
    guard = _REFUSE_OTHERS.format(callers=callers, function=function)
    body = tracking.body.replace(SCHEMA_MARK, schema).replace(_BEGIN, _BEGIN + guard, 1)
    # The schema of the tables is not on the path: where others may create in it, they could plant an operator there.
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
    schema = quoted(connection.execute(text("SELECT current_schema()")).scalar_one())
    names = {"tables": [*{one.table for one in every}], "functions": [*{one.function for one in every}]}
    functions = {row.proname: row for row in connection.execute(text(_FUNCTIONS), names)}
    triggers = connection.execute(text(_TRIGGERS), names).all()
    return [step for one in every for step in _tracking_steps(one, schema, functions.get(one.function), triggers)]


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


# What the session that computes says of itself, so that its own writes are no change.
WRITER_SETTING = "capacity.writer"
# All windows of the table: rows of a statement would be kept for the trigger, those of each computation too.
_WRITES_BODY = """
BEGIN
    IF current_setting('capacity.writer', true) IS DISTINCT FROM 'on' THEN
        -- Not the table's own name, which that of a shard is not.
        INSERT INTO {schema}.capacity_changes (table_name, kind, days) VALUES (TG_ARGV[0], 'written', '(,)');
    END IF;
    RETURN NULL;
END
"""
# Windows that were computed without the server lack its samples. Its days are looked up when the row is read: a trigger
# cannot see samples that another transaction is about to commit.
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
# The days of new and deleted rows, and the old and new days of corrected ones; nothing where no row changed.
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
# From which day on groups changed: with labels, from the first of their days; with the first or the last label of a
# key, by which every window is grouped, from the beginning.
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
# A server that comes is in no group yet, unless it has samples from before. These are asked for by number, in a query
# of its own: they may lie on other nodes than the server.
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
    """Return the body for a table of samples; times of writing are no figures and not compared."""
    measured = [column for column in table.columns if column.name != "id" and not isinstance(column.type, DateTime)]
    old, new = (", ".join(f"{side}.{quoted(column.name)}" for column in measured) for side in ("o", "n"))
    return _SAMPLES_BODY.format(schema=SCHEMA_MARK, table=table.name, old=old, new=new)


_WANTED = values(column("table_name", Text), column("trigger_name", Text), name="wanted").data(
    [(one.table, f"{one.function}_{event}") for one in _every_tracking() for event in one.events]
)
_ALL_FIRE = """
SELECT bool_and(t.tgenabled IS NOT NULL AND t.tgenabled IN ('O', 'A')) FROM wanted
LEFT JOIN pg_trigger t ON t.tgrelid = to_regclass(wanted.table_name) AND t.tgname = wanted.trigger_name
"""
TRACKING_IS_ON = f"({text_of(text(_ALL_FIRE).columns().add_cte(select(_WANTED).cte('wanted')))})"
"""The condition that every trigger exists and fires."""
