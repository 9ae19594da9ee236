"""Change tracking: triggers append what changed to `capacity_changes`, whoever writes there.

On each raw table they record the days whose samples were added, corrected or deleted, once per statement and stretch of
days; on the aggregates, writes that are not a computation's; on `instances`, servers that became active, and with the
labels, from which day on groups changed. What follows from a change is in `changes`.

A row of the queue has no key, so that no writer waits for another one or fails for it. Rows written to a partition by
its own name bypass the triggers of the table.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, DateTime, Table

from capacity_assets.storage.group_tables import capacity_labels
from capacity_assets.storage.steps import SchemaStep, literal, quoted
from capacity_assets.storage.tables import AGGREGATES, SAMPLES, instances
from capacity_assets.storage.triggers import EVENTS, SCHEMA_MARK, Tracking, tracking_steps


def change_tracking_steps(connection: Connection) -> list[SchemaStep]:
    """Return what is missing for change tracking: functions and triggers that are absent, old or disabled."""
    return [step for tracking in _every_tracking() for step in tracking_steps(connection, tracking)]


def _every_tracking() -> Iterator[Tracking]:
    for table in SAMPLES:
        yield Tracking(table.name, f"capacity_track_{table.name}", _samples_body(table), "changes")
    added = {event: EVENTS[event] for event in ("insert", "update")}
    yield Tracking(instances.name, "capacity_track_instances", _INSTANCES_BODY, "changes", added)
    for name, body in ((capacity_labels.name, _LABELS_BODY), (instances.name, _GROUPED_BODY)):
        yield Tracking(name, f"capacity_track_groups_{name}", body, "changes of groups")
    names = tuple(table.name for table in AGGREGATES)
    for name in names:
        # One trigger each: Citus does not hand one to the shards that is also for TRUNCATE.
        yield Tracking(name, "capacity_track_writes", _WRITES_BODY, "writes", dict.fromkeys(EVENTS, ""), names)


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
    """Return the body for a table of samples; what says when something happened to a row is no figure of it."""
    measured = [column for column in table.columns if column.name != "id" and not isinstance(column.type, DateTime)]
    old, new = (", ".join(f"{side}.{quoted(column.name)}" for column in measured) for side in ("o", "n"))
    return _SAMPLES_BODY.format(schema=SCHEMA_MARK, table=table.name, old=old, new=new)


_WANTED = ", ".join(
    f"({literal(one.table)}, {literal(one.trigger(event))})" for one in _every_tracking() for event in one.events
)
TRACKING_IS_ON = f"""(
    SELECT bool_and(t.tgenabled IS NOT NULL AND t.tgenabled IN ('O', 'A'))
    FROM (VALUES {_WANTED}) AS wanted (table_name, trigger_name)
    LEFT JOIN pg_trigger t ON t.tgrelid = to_regclass(wanted.table_name) AND t.tgname = wanted.trigger_name
)"""  # noqa: S608 -- names of our own tables
"""The condition that every trigger exists and fires."""
