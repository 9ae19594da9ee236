"""The baseline: windows that have rows already are entered as computed.

`capacity init` first creates and adopts tables by comparison, see `database.adoption`. Revisions hold only what a
comparison cannot do.
"""

import sqlalchemy as sa

from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.database.tables import database_size_aggregations, instance_size_aggregations

REGISTER = """
INSERT INTO capacity_computed_windows
    (period_type, level, period_start, period_end, reads_from, wanted, changed, computed)
SELECT CAST(:name AS varchar), CAST(:level AS varchar), w.period_start, w.period_end, w.reads_from, 1, 1, 0
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]))
    AS w (period_start, period_end, reads_from)
WHERE EXISTS (SELECT FROM {table} a WHERE a.period_type = CAST(:name AS varchar) AND a.period_start = w.period_start)
ON CONFLICT DO NOTHING
"""


def upgrade(connection: sa.Connection) -> None:
    """Enter the windows that have rows."""
    for level, table in (("database", database_size_aggregations), ("instance", instance_size_aggregations)):
        for period in PERIODS.values():
            _register(connection, level, table, period)


def _register(connection: sa.Connection, level: str, table: sa.Table, period: Period) -> None:
    """Enter each window that has rows, each looked up by its key: listing those that occur would read every row.

    What changed before the triggers existed is not known, so these windows are computed when they are asked for.
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
