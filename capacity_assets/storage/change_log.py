"""Which days of the raw tables changed: noted by the database itself, whoever writes there.

Two triggers on each raw table note, once a transaction and day, that samples of a day were added or corrected.
They run once a statement, not once a row, and look at nothing but the rows of that statement. Which windows follow
from a changed day is the business of `aggregation.ledger`.

Deleted samples are not noted: a computation never lets a stored row lose samples (SEMANTICS, section 6), so
nothing would follow from them. Rows put into a partition by its own name bypass the triggers of the table.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, DateTime, Table, text

from capacity_assets.storage.adoption import Step, quoted
from capacity_assets.storage.tables import database_size_stats, instance_size_stats, sample_changes

WATCHED = (database_size_stats, instance_size_stats)
EVENTS = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
}


def change_log_steps(connection: Connection) -> list[Step]:
    """Return what is missing for the raw tables that exist: functions and triggers that are absent, old or disabled."""
    return [step for table in WATCHED for step in _steps(connection, table)]


def _steps(connection: Connection, table: Table) -> Iterator[Step]:
    function = f"capacity_note_{table.name}"
    reason = f"changes of {table.name} are not noted: a trigger is missing, old or disabled"
    body = _body(table)
    found = connection.execute(text("SELECT prosrc FROM pg_proc WHERE oid = to_regproc(:name)"), {"name": function})
    if found.scalar() != body:
        schema = connection.execute(text("SELECT current_schema()")).scalar_one()
        # With the rights of its owner, so that whoever writes samples needs none on the log; the path is fixed
        # because such a function must not find tables of the caller's.
        yield Step(
            reason,
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = {quoted(schema)}, pg_temp AS $body${body}$body$",
        )
    for event, rows in EVENTS.items():
        trigger = f"{function}_{event}"
        enabled = connection.execute(
            text(
                "SELECT tgenabled <> 'D' FROM pg_trigger WHERE tgrelid = to_regclass(:table) AND tgname = :trigger "
                "AND NOT tgisinternal"
            ),
            {"table": table.name, "trigger": trigger},
        ).scalar()
        if enabled is None:
            yield Step(
                reason,
                f"CREATE TRIGGER {trigger} AFTER {event.upper()} ON {quoted(table.name)} {rows} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
            )
        elif not enabled:
            statement = f"ALTER TABLE {quoted(table.name)} ENABLE TRIGGER {trigger}"
            yield Step(reason, statement)


def _body(table: Table) -> str:
    """Note the days of new rows, and those of corrected ones on both sides, once a transaction."""
    measured = [column.name for column in table.columns if not column.primary_key and not _is_timestamp(column.type)]
    old, new = (f"({', '.join(f'{side}.{quoted(name)}' for name in measured)})" for side in ("o", "n"))
    return f"""
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {sample_changes.name} (table_name, collected_date)
        SELECT DISTINCT '{table.name}', n.collected_date FROM new_rows n
        ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO {sample_changes.name} (table_name, collected_date)
        SELECT DISTINCT '{table.name}', side.day
        FROM old_rows o FULL JOIN new_rows n USING (id)
        CROSS JOIN LATERAL (VALUES (o.collected_date), (n.collected_date)) AS side (day)
        WHERE {old} IS DISTINCT FROM {new} AND side.day IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 -- names from our own table definitions, quoted


def _is_timestamp(kind: object) -> bool:
    """Whether a column says when something happened to the row, not what was measured."""
    return isinstance(kind, DateTime)
