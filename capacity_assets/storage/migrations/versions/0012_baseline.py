"""The baseline: brings any database to today's tables, whatever it holds.

It covers an empty database, the tables of the legacy application, tables that were left half-made, and each earlier
revision (0001 to 0011), which no release contained. `storage.schema.adopt` compares the tables with `storage.tables`,
and adds and widens only. What is here is the rest: objects that have another name now, and windows that have rows
already and are entered as computed. Later revisions hold only what a comparison of tables cannot do.
"""

import sqlalchemy as sa
from alembic import context, op

from capacity_assets.periods import PERIODS, Period
from capacity_assets.storage.change_tracking import change_tracking_steps
from capacity_assets.storage.every_table import metadata
from capacity_assets.storage.schema import adopt
from capacity_assets.storage.steps import carry_out, execute
from capacity_assets.storage.tables import computed_windows, database_size_aggregations, instance_size_aggregations

revision = "0012"
down_revision = None

# Renamed, not dropped: owners and grants stay, and at no moment is a trigger missing.
RENAME = """
DO $$
DECLARE former record;
BEGIN
    FOR former IN
        SELECT t.tgname, t.tgrelid::regclass AS relation,
               replace(replace(t.tgname, 'note_disturbance', 'track_invalidation'), 'y_note_', 'y_track_')
                   AS name
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE t.tgname LIKE 'capacity\\_note\\_%' AND NOT t.tgisinternal AND t.tgparentid = 0
          AND c.relnamespace = CAST(current_schema() AS regnamespace)
    LOOP
        EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', former.tgname, former.relation, former.name);
    END LOOP;
    FOR former IN
        SELECT p.oid::regprocedure AS function,
               replace(replace(p.proname, 'note_disturbance', 'track_invalidation'), 'y_note_', 'y_track_')
                   AS name
        FROM pg_proc p
        WHERE p.proname LIKE 'capacity\\_note\\_%' AND p.pronamespace = CAST(current_schema() AS regnamespace)
    LOOP
        EXECUTE format('ALTER FUNCTION %s RENAME TO %I', former.function, former.name);
    END LOOP;
END $$
"""
REGISTER = """
INSERT INTO capacity_computed_windows (period_type, level, period_start, period_end, reads_from, snapshot)
SELECT CAST(:name AS varchar), CAST(:level AS varchar), w.period_start, w.period_end, w.reads_from,
    CAST(pg_current_snapshot() AS text)
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]))
    AS w (period_start, period_end, reads_from)
WHERE EXISTS (SELECT FROM {table} a WHERE a.period_type = CAST(:name AS varchar) AND a.period_start = w.period_start)
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    """Rename, create and adopt, begin to track changes, and enter the windows that have rows.

    Raises:
        SchemaProblemsError: duplicates or missing columns; the caller's transaction rolls everything back.
    """
    connection = op.get_bind()
    done: list[str] = context.config.attributes.get("done", [])
    done += _rename_former_objects(connection)
    registered_before = sa.inspect(connection).has_table(computed_windows.name)
    done += adopt(connection, metadata)
    # Before windows are entered: the locks of new triggers keep writers out until everything is committed.
    carry_out(connection, change_tracking_steps(connection))
    if not registered_before:
        for level, table in (("database", database_size_aggregations), ("instance", instance_size_aggregations)):
            for period in PERIODS.values():
                _register(connection, level, table, period)


def _rename_former_objects(connection: sa.Connection) -> list[str]:
    """Rename what has another name now; return what was done."""
    former = sa.inspect(connection).has_table("capacity_disturbances")
    execute(connection, [RENAME])
    if not former:
        return []
    execute(
        connection,
        (
            "ALTER TABLE capacity_disturbances RENAME TO capacity_invalidations",
            "ALTER INDEX IF EXISTS capacity_disturbances_pkey RENAME TO capacity_invalidations_pkey",
        ),
    )
    return ["renamed table capacity_disturbances to capacity_invalidations, and the triggers of change tracking"]


def _register(connection: sa.Connection, level: str, table: sa.Table, period: Period) -> None:
    """Enter each window that has rows, each looked up by its key: listing those that occur would read every row.

    What changed before the triggers existed is not known, so these windows count as computed up to now.
    """
    ends = sa.select(sa.func.min(table.c.period_start), sa.func.max(table.c.period_start))
    first, last = connection.execute(ends.where(table.c.period_type == period.name)).one()
    if first is None:
        return
    windows = period.windows_between(first, last)
    connection.execute(
        sa.text(REGISTER.format(table=table.name)),
        {
            "name": period.name,
            "level": level,
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "reads_from": [period.previous(window).start for window in windows],
        },
    )
