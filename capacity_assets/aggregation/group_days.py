"""What the level of groups is computed from: the days of its groups, in a temporary table of the computation.

How a day is added up is said in `storage.group_days`. A window whose days are not all left, neither as samples nor as
daily aggregates, is kept as it is, and compared with as it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, text

from capacity_assets.aggregation.work import Work
from capacity_assets.foundation.levels import GROUP
from capacity_assets.periods import Window
from capacity_assets.storage.group_days import FLEET, GROUP_DAYS
from capacity_assets.storage.steps import DIALECT

SERVER_DAYS_PER_STATEMENT = 100_000
"""Bounds what one statement sorts, whatever the size of the fleet."""


@dataclass(frozen=True)
class GoneWindow:
    """A window whose days are not all left, and how many rows are stored of it."""

    window: Window
    rows: int


def prepare_group_days(connection: Connection, work: Work) -> list[GoneWindow]:
    """Add up the days that a computation reads into a temporary table; return the windows for which stored rows stand.

    Those of them that are asked for are to be kept, the others compared with.
    """
    connection.execute(text(_CREATE))
    _, spans = work.reading
    days = [day for span in spans for day in _days(span)]
    step = max(1, SERVER_DAYS_PER_STATEMENT // max(1, len(work.instances)))
    for first in range(0, len(days), step):
        some = {"days": days[first : first + step]}
        gone = {name: _without_samples(connection, query, some["days"]) for name, query in _SAMPLED.items()}
        connection.execute(text(_ADD_UP), {**some, **gone})
    return _gone(connection, work)


def _days(span: Window) -> list[date]:
    return [span.start + timedelta(days=number) for number in range(span.days)]


def _without_samples(connection: Connection, query: str, days: Sequence[date]) -> list[date]:
    """Return the days of which a table has no sample."""
    sampled = set(connection.execute(text(query), {"days": days}).scalars())
    return [day for day in days if day not in sampled]


def _gone(connection: Connection, work: Work) -> list[GoneWindow]:
    """Find the windows with fewer days than their stored rows have."""
    parts, _ = work.reading
    compared = {other(window) for window in work.windows for other in (work.period.previous, work.period.year_before)}
    windows = sorted({*work.windows, *compared})
    parameters = {
        "period_type": work.period.name,
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
        "part_types": [name for name, _ in parts],
        "part_starts": [window.start for _, window in parts],
    }
    rows = {row.period_start: row.rows for row in connection.execute(text(_GONE), parameters)}
    return [GoneWindow(window, rows[window.start]) for window in windows if window.start in rows]


_COLUMNS = ", ".join(
    f"{column.name} {column.type.compile(dialect=DIALECT)} NOT NULL" for column in GROUP.source.columns
)
_NAMES = ", ".join(column.name for column in GROUP.source.columns)
_CREATE = f"CREATE TEMPORARY TABLE {GROUP.source.name} ({_COLUMNS}) ON COMMIT DROP"
_ADD_UP = f"INSERT INTO {GROUP.source.name} ({_NAMES}) {GROUP_DAYS}"
_SAMPLED = {
    "days_without_databases": """
        SELECT DISTINCT collected_date FROM database_size_stats WHERE collected_date = ANY (CAST(:days AS date[]))""",
    "days_without_totals": """
        SELECT DISTINCT collected_date FROM instance_size_stats WHERE collected_date = ANY (CAST(:days AS date[]))""",
}
_GONE = f"""
WITH days AS MATERIALIZED (SELECT collected_date FROM {GROUP.source.name} WHERE label_key = '{FLEET}')
SELECT w.period_start, stored.rows
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, max(g.data_count) FILTER (WHERE g.label_key = '{FLEET}') AS days
    FROM group_size_aggregations g WHERE g.period_type = :period_type AND g.period_start = w.period_start
) AS stored
WHERE stored.days > (
    SELECT count(*) FROM days d WHERE d.collected_date BETWEEN w.period_start AND w.period_end
) + (
    SELECT coalesce(sum(g.data_count), 0)
    FROM unnest(CAST(:part_types AS text[]), CAST(:part_starts AS date[])) AS p (period_type, period_start)
    JOIN group_size_aggregations g USING (period_type, period_start)
    WHERE g.label_key = '{FLEET}' AND g.period_start >= w.period_start AND g.period_end <= w.period_end
)
"""  # noqa: S608 -- as above
