"""Triggers that record writes: their definition as data, and the statements that create missing ones.

They run once per statement and read only the rows of that statement. `change_tracking` defines what is recorded.

The functions run with the privileges of their owner, so that roles that write samples need none on the log. No other
role may call them, and they refuse all relations except our own tables and their shards: otherwise a caller's
operators, casts or functions would run with the owner's privileges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from capacity_assets.storage.steps import SchemaStep, literal, quoted

# Stands for the schema of the tables in the bodies of the functions.
SCHEMA_MARK = "{schema}"
EVENTS = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "REFERENCING OLD TABLE AS old_rows",
    "truncate": "",
}
"""What can happen to a table, and how a trigger sees its rows."""


@dataclass(frozen=True)
class Tracking:
    """A function and the triggers of a table that call it; `what` they record is used in messages.

    A function used by several tables has all of them as `callers`, and the name of the table as its argument.
    """

    table: str
    function: str
    body: str
    what: str
    events: Mapping[str, str] = field(default_factory=lambda: EVENTS)
    callers: tuple[str, ...] = ()

    def trigger(self, event: str) -> str:
        """The name of the trigger of an event."""
        return f"{self.function}_{event}"


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
_FOUND = """
SELECT prosrc, prosecdef, proconfig,
       EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee <> proowner)
           AS others_may_call
FROM pg_proc
WHERE proname = :name AND pronargs = 0 AND pronamespace = CAST(current_schema() AS regnamespace)
"""
_TRIGGERS = """
SELECT t.tgname, t.tgenabled IN ('O', 'A') AS fires FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
WHERE t.tgrelid = to_regclass(:table) AND f.proname = :function AND t.tgnargs = :arguments AND NOT t.tgisinternal
  AND f.pronamespace = CAST(current_schema() AS regnamespace)
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


def tracking_steps(connection: Connection, tracking: Tracking) -> Iterator[SchemaStep]:
    """Return what is missing: the function and the triggers that are absent, old or disabled."""
    table, function = tracking.table, tracking.function
    reason = f"{tracking.what} of {table} are not recorded: a trigger is missing, old or disabled"
    too_open = f"the function {function} could be called by other roles and run their code as its owner"
    schema = quoted(connection.execute(text("SELECT current_schema()")).scalar_one())
    callers = ", ".join(f"to_regclass({literal(f'{schema}.{quoted(name)}')})" for name in tracking.callers or (table,))
    guard = _REFUSE_OTHERS.format(callers=callers, function=function)
    body = tracking.body.replace(SCHEMA_MARK, schema).replace(_BEGIN, _BEGIN + guard, 1)
    # The schema of the tables is not on the path: where others may create in it, they could plant an operator there.
    path = "pg_catalog, pg_temp"
    found = connection.execute(text(_FOUND), {"name": function}).first()
    # However it is laid out.
    wanted = ("".join(body.split()), True, [f"search_path={path}"])
    if found is None or ("".join(found.prosrc.split()), found.prosecdef, found.proconfig) != wanted:
        yield SchemaStep(
            reason,
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = {path} AS $body${body}$body$",
            is_lossy=True,
        )
    if found is None or found.others_may_call:
        yield SchemaStep(too_open if found else reason, _REVOKE.format(function=function), is_lossy=found is None)
    argument = literal(table) if tracking.callers else ""
    asked = {"table": table, "function": function, "arguments": 1 if argument else 0}
    fires = {row.tgname: row.fires for row in connection.execute(text(_TRIGGERS), asked)}
    for event, rows in tracking.events.items():
        trigger = tracking.trigger(event)
        if trigger not in fires:
            yield SchemaStep(
                reason,
                f"CREATE OR REPLACE TRIGGER {trigger} AFTER {event.upper()} ON {quoted(table)} {rows} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION {function}({argument})",
                is_lossy=True,
            )
        elif not fires[trigger]:
            yield SchemaStep(reason, f"ALTER TABLE {quoted(table)} ENABLE TRIGGER {trigger}", is_lossy=True)
