"""What the level of groups is computed from: the days of its groups, in a temporary table of the computation.

How a day is added up is said in `storage.group_days`. A window whose days are not all left, neither as samples nor as
daily aggregates, is kept as it is, and compared with as it is stored.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from capacity_assets.aggregation.work import Work, compared
from capacity_assets.foundation.levels import GROUP
from capacity_assets.periods import Window
from capacity_assets.storage.group_days import FLEET, GROUP_DAYS, asked_days

SERVER_DAYS_PER_STATEMENT = 100_000
"""Bounds what one statement sorts, whatever the size of the fleet."""


def prepare_group_days(connection: Connection, work: Work) -> dict[Window, int]:
    """Add up the days that a computation reads into a temporary table.

    Return the windows of which fewer days are left than their stored rows have, with the numbers of these rows: they
    are kept if they are asked for, and else compared with.
    """
    GROUP.source.create(connection, checkfirst=False)
    parts, spans = work.reading
    days = [day for span in spans for day in span.dates]
    step = max(1, SERVER_DAYS_PER_STATEMENT // max(1, len(work.instances)))
    for first in range(0, len(days), step):
        connection.execute(text(_ADD_UP), asked_days(connection, days[first : first + step]))
    windows = {window.start: window for window in (*work.windows, *compared(work.period, work.windows))}
    parameters = {
        "period_type": work.period.name,
        "starts": list(windows),
        "part_types": [name for name, _ in parts],
        "part_starts": [window.start for _, window in parts],
    }
    return {windows[row.period_start]: row.rows for row in connection.execute(text(_GONE), parameters)}


_ADD_UP = f"INSERT INTO {GROUP.source.name} {GROUP_DAYS}"
_GONE = f"""
WITH found AS MATERIALIZED (
    SELECT collected_date AS day, 1 AS days FROM {GROUP.source.name} WHERE label_key = '{FLEET}'
    UNION ALL
    SELECT period_start, g.data_count
    FROM unnest(CAST(:part_types AS text[]), CAST(:part_starts AS date[])) AS p (period_type, period_start)
    JOIN group_size_aggregations g USING (period_type, period_start)
    WHERE g.label_key = '{FLEET}'
)
SELECT g.period_start, count(*) AS rows FROM group_size_aggregations g
WHERE g.period_type = :period_type AND g.period_start = ANY (CAST(:starts AS date[]))
GROUP BY g.period_start, g.period_end
HAVING max(g.data_count) FILTER (WHERE g.label_key = '{FLEET}')
    > (SELECT coalesce(sum(f.days), 0) FROM found f WHERE f.day BETWEEN g.period_start AND g.period_end)
"""  # noqa: S608 -- names and constants of our own
