"""Triggers that record writes: what one is, as data, and the statements that create it where it is missing.

They run once per statement and read only the rows of that statement. What is recorded is in `change_tracking` and
`group_tracking`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from capacity_assets.storage.steps import SchemaStep, quoted

# Stands for the schema of the tables in the bodies of the functions.
SCHEMA_MARK = "{schema}"
EVENTS = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
}
DELETED = {"delete": "REFERENCING OLD TABLE AS old_rows"}
TRUNCATED = {"truncate": ""}


@dataclass(frozen=True)
class Tracking:
    """A function and the triggers of a table that call it; `what` they record, for messages."""

    table: str
    function: str
    body: str
    events: Mapping[str, str]
    what: str
    arguments: str = ""

    def trigger(self, event: str) -> str:
        """The name of the trigger of an event: the function's, and the event where there are several."""
        return f"{self.function}_{event}" if len(self.events) > 1 else self.function


def tracking_steps(connection: Connection, tracking: Tracking) -> Iterator[SchemaStep]:
    """Return what is missing: the function and the triggers that are absent, old or disabled."""
    table, function = tracking.table, tracking.function
    reason = f"{tracking.what} of {table} are not recorded: a trigger is missing, old or disabled"
    schema = connection.execute(text("SELECT current_schema()")).scalar_one()
    body = tracking.body.replace(SCHEMA_MARK, quoted(schema))
    # The schema of the tables is not on the path: where others may create in it, they could plant an operator there.
    path = "pg_catalog, pg_temp"
    found = connection.execute(
        text(
            "SELECT prosrc, prosecdef, proconfig FROM pg_proc "
            "WHERE proname = :name AND pronamespace = CAST(current_schema() AS regnamespace)"
        ),
        {"name": function},
    ).first()
    if found is None or (found.prosrc, found.prosecdef, found.proconfig) != (body, True, [f"search_path={path}"]):
        # With the rights of its owner, so that whoever writes samples needs none on the log; such a function must
        # find no table, operator or function of the caller's, so it names tables with their schema.
        yield SchemaStep(
            reason,
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = {path} AS $body${body}$body$",
        )
    for event, rows in tracking.events.items():
        trigger = tracking.trigger(event)
        fires = connection.execute(
            text(
                "SELECT t.tgenabled IN ('O', 'A') FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid "
                "WHERE t.tgrelid = to_regclass(:table) AND t.tgname = :trigger AND f.proname = :function "
                "AND NOT t.tgisinternal AND t.tgnargs = :arguments"
            ),
            {
                "table": table,
                "trigger": trigger,
                "function": function,
                "arguments": 1 if tracking.arguments else 0,
            },
        ).scalar()
        if fires is None:
            yield SchemaStep(
                reason,
                f"CREATE OR REPLACE TRIGGER {trigger} AFTER {event.upper()} ON {quoted(table)} {rows} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}({tracking.arguments})",
            )
        elif not fires:
            yield SchemaStep(reason, f"ALTER TABLE {quoted(table)} ENABLE TRIGGER {trigger}")
