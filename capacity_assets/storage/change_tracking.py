"""Change tracking: triggers record which days of the raw tables changed, whoever writes there.

Two triggers on each raw table record each day whose samples were added or corrected, once per transaction. Two on
`instances` record each server that became active. Which windows have to be recomputed for a changed day is decided in
`aggregation.ledger`.

Deleted samples make no window stale: what is kept of a stored row then is in docs/semantics.md, "Writing".
The invalidation log still records deletions, by table and transaction, and every write to the aggregates that is not a
computation's. A window computed before such a write is recomputed instead of being skipped as unchanged.
Rows written to a partition by its own name bypass the triggers of the table.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, DateTime, Table, text

from capacity_assets.storage.active_servers import active_condition
from capacity_assets.storage.steps import SchemaStep, quoted
from capacity_assets.storage.tables import AGGREGATES, SAMPLES, activations, instances, invalidations, sample_changes
from capacity_assets.storage.triggers import EVENTS, SCHEMA_MARK, Tracking, tracking_steps


def change_tracking_steps(connection: Connection) -> list[SchemaStep]:
    """Return what is missing for change tracking: functions and triggers that are absent, old or disabled."""
    return [step for tracking in _every_tracking() for step in tracking_steps(connection, tracking)]


def change_tracking_is_on(connection: Connection) -> bool:
    """Whether every trigger exists and fires; one cheap query for callers that rely on it."""
    wanted = [(tracking.table, tracking.trigger(event)) for tracking in _every_tracking() for event in tracking.events]
    tables, triggers = zip(*wanted, strict=True)
    firing = connection.execute(text(_FIRING), {"tables": list(tables), "triggers": list(triggers)}).scalar_one()
    return bool(firing == len(wanted))


def _every_tracking() -> Iterator[Tracking]:
    yield from _changes()
    yield from _invalidations()


def _changes() -> Iterator[Tracking]:
    bodies = {table.name: _raw_body(table) for table in SAMPLES} | {instances.name: _instances_body()}
    for table, body in bodies.items():
        yield Tracking(table, function_name(table), body, EVENTS, "changes")


def _invalidations() -> Iterator[Tracking]:
    events = dict.fromkeys((table.name for table in SAMPLES), "DELETE OR TRUNCATE")
    events |= dict.fromkeys((table.name for table in AGGREGATES), "INSERT OR UPDATE OR DELETE OR TRUNCATE")
    for table, event in events.items():
        yield Tracking(
            table, INVALIDATION_FUNCTION, _INVALIDATION_BODY, {event: ""}, "writes", f"'{table}'", tuple(events)
        )


def function_name(table: str) -> str:
    """Return the name of the function that records the changes of a table; its triggers begin with it."""
    return f"capacity_track_{table}"


_FIRING = """
SELECT count(*) FROM unnest(CAST(:tables AS text[]), CAST(:triggers AS text[])) AS wanted (table_name, trigger_name)
JOIN pg_trigger t ON t.tgrelid = to_regclass(wanted.table_name) AND t.tgname = wanted.trigger_name
WHERE t.tgenabled IN ('O', 'A')
"""

# What the session that computes says of itself, so that its own writes invalidate nothing.
WRITER_SETTING = "capacity.writer"
INVALIDATION_FUNCTION = "capacity_track_invalidation"
_INVALIDATION_BODY = f"""
BEGIN
    IF current_setting('{WRITER_SETTING}', true) IS DISTINCT FROM 'on' THEN
        -- Not the table's own name, which that of a shard is not.
        INSERT INTO {SCHEMA_MARK}.{invalidations.name} (table_name) VALUES (TG_ARGV[0]) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 -- names from our own table definitions


def _raw_body(table: Table) -> str:
    """Record the days of new rows, and the old and new days of corrected ones, once per transaction."""
    measured = [column.name for column in table.columns if column.name != "id" and not _is_timestamp(column.type)]
    old, new = (f"({', '.join(f'{side}.{quoted(name)}' for name in measured)})" for side in ("o", "n"))
    return f"""
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {SCHEMA_MARK}.{sample_changes.name} (table_name, collected_date)
        SELECT DISTINCT '{table.name}', n.collected_date FROM new_rows n
        ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO {SCHEMA_MARK}.{sample_changes.name} (table_name, collected_date)
        SELECT DISTINCT '{table.name}', side.day
        FROM old_rows o FULL JOIN new_rows n USING (id)
        CROSS JOIN LATERAL (VALUES (o.collected_date), (n.collected_date)) AS side (day)
        WHERE {old} IS DISTINCT FROM {new} AND side.day IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 -- names from our own table definitions, quoted


def _instances_body() -> str:
    """Record servers that become active: windows that were computed without them lack their samples.

    Their days are looked up when the record is read (`ledger_statements.SPREAD_ACTIVATIONS`): a trigger cannot see
    samples that another transaction is about to commit.
    """
    return f"""
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {SCHEMA_MARK}.{activations.name} (instance_id)
        SELECT n.id FROM new_rows n WHERE {active_condition("n")}
        ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO {SCHEMA_MARK}.{activations.name} (instance_id)
        SELECT n.id FROM new_rows n LEFT JOIN old_rows o USING (id)
        WHERE {active_condition("n")} AND {active_condition("o")} IS NOT TRUE
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 -- names from our own table definitions, quoted


def _is_timestamp(kind: object) -> bool:
    """Whether a column says when something happened to the row, not what was measured."""
    return isinstance(kind, DateTime)
