"""Records which windows' groups may have changed, whoever writes: aggregates, labels, and what servers are grouped by.

A change of aggregates is recorded with its window, one of labels or servers with the day from which it holds; each with
its transaction. What was stored of a window before is out of date: see `group_sums`.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from capacity_assets.storage.group_tables import (
    ALWAYS,
    capacity_group_changes,
    capacity_group_sums,
    capacity_group_windows,
    capacity_labels,
)
from capacity_assets.storage.row_locks import wait_for_lock
from capacity_assets.storage.steps import SchemaStep
from capacity_assets.storage.tables import AGGREGATES, instances
from capacity_assets.storage.triggers import DELETED, EVENTS, SCHEMA_MARK, TRUNCATED, Tracking, tracking_steps

EVERY_EVENT = EVENTS | DELETED | TRUNCATED
EVERY_PERIOD = ""
"""As period of a change: windows of all periods that end on that day or later."""


def group_tracking_steps(connection: Connection) -> list[SchemaStep]:
    """Return what is missing for it: functions and triggers that are absent, old or disabled."""
    return [step for tracking in _every_tracking() for step in tracking_steps(connection, tracking)]


def forget_group_sums(connection: Connection) -> None:
    """Take everything that is stored as out of date, and every window that has rows as changed."""
    for table in (capacity_group_sums, capacity_group_windows, capacity_group_changes):
        connection.execute(table.delete())
    for table in AGGREGATES:
        record_windows_of(connection, table.name)


def lock_group_sums(connection: Connection) -> None:
    """Wait until no other transaction stores sums or forgets them, and keep others waiting until this one ends."""
    wait_for_lock(connection, "group sums")


def record_windows_of(connection: Connection, rows: str) -> None:
    """Record every window of the aggregates, or of a partition of them before it is dropped: no trigger sees that."""
    # In two steps: in one, each node of a cluster would enter a transaction of its own, which means nothing here.
    found = connection.execute(text(f"SELECT DISTINCT period_type, period_start FROM {rows}")).all()  # noqa: S608 -- our own names
    windows = {"periods": [row.period_type for row in found], "starts": [row.period_start for row in found]}
    connection.execute(text(_RECORD_WINDOWS), windows)


def group_triggers(table: str) -> list[str]:
    """Return the names of the triggers of a table."""
    return [one.trigger(event) for one in _every_tracking() if one.table == table for event in one.events]


def _every_tracking() -> Iterator[Tracking]:
    bodies = {table.name: _AGGREGATES_BODY for table in AGGREGATES}
    bodies |= {capacity_labels.name: _LABELS_BODY, instances.name: _SERVERS_BODY}
    for table, body in bodies.items():
        yield Tracking(table, f"capacity_track_groups_{table}", body, EVERY_EVENT, "changes of groups")


_RECORD = f"INSERT INTO {SCHEMA_MARK}.{capacity_group_changes.name} (period_type, period_start)"
_EVERYTHING = f"{_RECORD} VALUES ('{EVERY_PERIOD}', DATE '{ALWAYS}') ON CONFLICT DO NOTHING;"
_ROWS = {
    "INSERT": "SELECT n.* FROM new_rows n",
    "UPDATE": "SELECT n.* FROM new_rows n UNION ALL SELECT o.* FROM old_rows o",
    "DELETE": "SELECT o.* FROM old_rows o",
}


def _body(found: str) -> str:
    """Record what a query finds in `{rows}`, the rows of the statement; after a TRUNCATE everything."""
    branches = "\n    ELS".join(
        f"IF TG_OP = '{event}' THEN\n        {_RECORD}\n        {found.replace('{rows}', f'({rows}) AS r')}"
        "\n        ON CONFLICT DO NOTHING;"
        for event, rows in _ROWS.items()
    )
    return f"\nBEGIN\n    {branches}\n    ELSE\n        {_EVERYTHING}\n    END IF;\n    RETURN NULL;\nEND\n"


_AGGREGATES_BODY = _body("SELECT DISTINCT r.period_type, r.period_start FROM {rows}")
_LABELS_BODY = _body(f"SELECT '{EVERY_PERIOD}', min(r.valid_from) FROM {{rows}} HAVING count(*) > 0")  # noqa: S608 -- as above
# A server that comes is in no group yet, unless it has aggregates from before. These are asked for by number, in a
# query of its own: they may lie on other nodes than the server.
_LOOKS = "\n".join(
    f"PERFORM 1 FROM {SCHEMA_MARK}.{table.name} a WHERE a.instance_id = ANY (came) LIMIT 1;"
    "\n            is_changed := is_changed OR FOUND;"
    for table in AGGREGATES
)
_SERVERS_BODY = f"""
DECLARE
    came integer[];
    is_changed boolean := true;
BEGIN
    IF TG_OP = 'INSERT' THEN
        came := ARRAY(SELECT n.id FROM new_rows n);
        BEGIN
            is_changed := false;
            {_LOOKS}
        EXCEPTION WHEN OTHERS THEN
            is_changed := true;  -- A node does not answer: then it may have some.
        END;
    ELSIF TG_OP = 'UPDATE' THEN
        is_changed := EXISTS (
            SELECT FROM new_rows n FULL JOIN old_rows o USING (id)
            WHERE (n.db_type, n.counted_by) IS DISTINCT FROM (o.db_type, o.counted_by));
    ELSIF TG_OP = 'DELETE' THEN
        is_changed := EXISTS (SELECT FROM old_rows);
    END IF;
    IF is_changed THEN
        {_EVERYTHING}
    END IF;
    RETURN NULL;
END
"""  # noqa: S608 -- names of our own tables
_RECORD_WINDOWS = """
INSERT INTO capacity_group_changes (period_type, period_start)
SELECT * FROM unnest(CAST(:periods AS text[]), CAST(:starts AS date[])) ON CONFLICT DO NOTHING
"""
