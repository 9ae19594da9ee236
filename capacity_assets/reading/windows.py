"""Stored windows and days with samples: the newest, the last complete one, windows not computed yet, and wrong rows.

Also the data versions of days in raw tables for the graph, and whether samples stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import product

from sqlalchemy import Connection, Engine, Table, func, select, text

from capacity_assets.aggregates.levels import LEVELS, SERVER_LEVELS, RawTable
from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import PERIODS, YEAR_AND_MONTH_DAYS, Period, Window
from capacity_assets.base.trend import contradictory_trend
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.cluster import is_distributed
from capacity_assets.database.engine import TODAY
from capacity_assets.reading.access import records, rows

RECENT_DAYS = 31


def of_windows(period: Period, starts: Sequence[date]) -> dict[str, object]:
    """Return the parameters of a query of windows: their period, their first days, and the first and last of these.

    With only a list of days, PostgreSQL plans every partition of the period.
    """
    ends = {"first_start": min(starts, default=None), "last_start": max(starts, default=None)}
    return {"period": period.name, "starts": list(starts), **ends}


def newest_window(connection: Connection, period: Period) -> Window | None:
    """Return the newest window of a period in which any server has a row; None: none was computed."""
    # For max() over a view, PostgreSQL would read all rows; for this, it reads one entry of an index. Servers are
    # looked up only in later windows: planning one query for all of them takes longer than both.
    databases = "SELECT window_start AS start FROM capacity_growth WHERE period = :period ORDER BY start DESC LIMIT 1"
    servers = """
        SELECT window_start AS start FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived)
          AND window_start > :after ORDER BY start DESC LIMIT 1"""
    newest = rows(connection, databases, period=period.name)
    newest = rows(connection, servers, period=period.name, after=newest[0].start if newest else date.min) or newest
    return period.window_of(newest[0].start) if newest else None


def oldest_window(connection: Connection) -> date | None:
    """Return the first day of the oldest window of any period in which a server has a row; None: there is none."""
    # Not min(), as above.
    statement = """
        SELECT window_start AS start FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived) ORDER BY window_start LIMIT 1"""
    starts = [row.start for period in PERIODS for row in rows(connection, statement, period=period)]
    return min(starts, default=None)


def newest_day(connection: Connection, today: date) -> date | None:
    """Return the newest day up to today with samples."""
    # Not max(), as above. First among recent days, because the partitions of all days take longer to plan.
    statement = """
        SELECT max(day) AS day FROM (
            (SELECT day FROM capacity_server_samples WHERE day BETWEEN :first AND :today ORDER BY day DESC LIMIT 1)
            UNION ALL
            (SELECT day FROM capacity_samples WHERE day BETWEEN :first AND :today ORDER BY day DESC LIMIT 1)) AS days"""
    day: date | None = None
    for first in (today - timedelta(days=RECENT_DAYS), date.min):
        day = day or rows(connection, statement, first=first, today=today)[0].day
    return day


def complete_window(connection: Connection, period: Period, newest: Window | None, today: date) -> Window | None:
    """Return the newest window that is over, by the samples and by the day; `newest` if there is no other.

    Today is over once it was measured. The last day of a month is not, as commands see it: more may be measured.
    """
    last_day = None if newest is None else newest_day(connection, today)
    if newest is None or last_day is None:
        return newest
    if newest.end <= last_day and (newest.end < today or period.scheduled_current):
        return newest
    before = min(period.previous(newest), period.last(today))
    of_window = {"period": period.name, "start": before.start}
    databases = "SELECT 1 FROM capacity_growth WHERE period = :period AND window_start = :start LIMIT 1"
    servers = """
        SELECT 1 FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start = :start LIMIT 1"""
    return before if rows(connection, databases, **of_window) or rows(connection, servers, **of_window) else newest


@dataclass(frozen=True)
class UncomputedSamples:
    """Samples that are not in any figure yet."""

    day: date | None
    """Newest day with samples if its daily window is not computed; None: it is, or no window is."""
    windows: int = 0
    """Computed windows of databases and servers whose samples changed since."""
    first_day: date | None = None
    """First day of these windows."""
    changed_at: datetime | None = None


def uncomputed_samples(connection: Connection, today: date) -> UncomputedSamples:
    """Return samples that are not computed yet; raises DBAPIError."""
    statement = """
        SELECT count(*) AS windows, min(period_start) AS first_day, max(newest_change) AS changed_at
        FROM capacity_stale_windows WHERE newest_change IS NOT NULL AND level <> 'group'"""
    computed, measured = newest_window(connection, PERIODS["daily"]), newest_day(connection, today)
    is_behind = computed is not None and measured is not None and computed.end < measured
    return UncomputedSamples(measured if is_behind else None, *rows(connection, statement)[0])


def stale_windows(connection: Connection) -> dict[tuple[str, str], int]:
    """Return the number of computed windows whose samples or labels changed since, by period and level."""
    statement = """
        SELECT period_type, level, count(*) AS windows FROM capacity_stale_windows
        WHERE newest_change IS NOT NULL GROUP BY period_type, level"""
    counts = {(row.period_type, row.level): row.windows for row in rows(connection, statement)}
    return {key: counts.get(key, 0) for key in product(PERIODS, LEVELS)}


@dataclass(frozen=True)
class WindowFacts:
    """When a window was read and computed, and the first and last day with totals of servers, up to today."""

    read_at: datetime
    computed_at: datetime | None
    first_sample: date | None
    last_sample: date | None


def window_facts(connection: Connection, period: Period, window: Window, server_id: int | None) -> WindowFacts:
    """Return the facts of a window, of all servers or of one."""
    statement = """
        SELECT now() AS read_at,
               (SELECT max(calculated_at) FROM database_size_aggregations
                WHERE period_type = :period AND period_start = :start
                  AND (CAST(:server AS integer) IS NULL OR instance_id = :server)) AS computed_at,
               (SELECT min(collected_date) FROM instance_size_stats
                WHERE NOT is_deleted AND (CAST(:server AS integer) IS NULL OR instance_id = :server)) AS first_sample,
               (SELECT max(collected_date) FROM instance_size_stats
                WHERE NOT is_deleted AND collected_date <= :today
                  AND (CAST(:server AS integer) IS NULL OR instance_id = :server)) AS last_sample"""
    of_window = {"period": period.name, "start": window.start, "server": server_id}
    return records(WindowFacts, connection, statement, **of_window, today=today_of(connection))[0]


def today_of(connection: Connection) -> date:
    """Return today in the time zone of the database."""
    today: date = rows(connection, f"SELECT {TODAY} AS day")[0].day
    return today


@dataclass(frozen=True)
class SampledDays:
    """The first and last day with samples in a table, up to today, and the number of rows on the last day."""

    table: str
    first_day: date | None
    last_day: date | None
    rows_on_last_day: int


@dataclass(frozen=True)
class StoredWindows:
    """The first and newest stored window of a period and level, and facts about the newest.

    `measured_days` are those of its best measured row.
    """

    period: str
    level: str
    first_window: date | None
    latest_window: date | None
    rows: int
    measured_days: int | None
    changed_at: datetime | None


@dataclass(frozen=True)
class WrongTrends:
    """Number of rows of an aggregate table whose trend contradicts their growth, and their first day."""

    table: str
    rows: int
    first_day: date | None


def sampled_days(connection: Connection, today: date) -> list[SampledDays]:
    """Return the first and last day of each table of samples, read from the indexes on its days."""
    tables = []
    for level in SERVER_LEVELS.values():
        day, live = level.source.c.collected_date, level.live()
        first, last = connection.execute(select(func.min(day), func.max(day)).where(day <= today, *live)).one()
        count = connection.execute(select(func.count()).where(day == last, *live)).scalar_one() if last else 0
        tables.append(SampledDays(level.source.name, first, last, count))
    return tables


def first_days_ahead(connection: Connection, today: date) -> dict[str, date]:
    """Return the first day after today with samples, by table; these come from a wrong clock."""
    ahead: dict[str, date] = {}
    for level in SERVER_LEVELS.values():
        day = level.source.c.collected_date
        first = connection.execute(select(func.min(day)).where(day > today)).scalar()
        if first is not None:
            ahead[level.source.name] = first
    return ahead


def stored_windows(connection: Connection, periods: Sequence[str]) -> list[StoredWindows]:
    """Return the first and newest stored window of each period and level."""
    stored = []
    for period, level in product(periods, LEVELS.values()):
        columns = level.target.c
        of_period = columns.period_type == period
        ends = select(func.min(columns.period_start), func.max(columns.period_start)).where(of_period)
        first, latest = connection.execute(ends).one()
        figures = (func.count(), func.max(columns.data_count), func.max(columns.calculated_at))
        of_latest = select(*figures).where(of_period, columns.period_start == latest)
        stored.append(StoredWindows(period, level.name, first, latest, *connection.execute(of_latest).one()))
    return stored


def wrong_trends(connection: Connection) -> list[WrongTrends]:
    """Return the tables with rows of the last thirteen months whose trend another application did not update."""
    tables = []
    for level in SERVER_LEVELS.values():
        start = level.target.c.period_start
        recent = start >= func.current_date() - YEAR_AND_MONTH_DAYS
        counts = select(func.count(), func.min(start)).where(recent, contradictory_trend(level.target))
        count, first_day = connection.execute(counts).one()
        if count:
            tables.append(WrongTrends(level.target.name, count, first_day))
    return tables


# Few, because each day is an event in Dagster. Later corrections are followed by the records of the database.
OBSERVED_DAYS = 7
# Not 0, because samples may arrive later in the day.
NEWEST_AGE_DAYS = 1
STOPPED_ADVICE = "Check the runs of collection_job, or the application that writes this table."


def data_versions(engine: Engine, raw: RawTable, today: date) -> dict[date, str]:
    """Return number, sum and time of change of the samples of the newest days as a text; raises DatabaseError."""
    table = raw.table
    figures = (func.count(), func.sum(table.c[raw.summed]), func.max(table.c[raw.changed]))
    query = (
        select(table.c.collected_date, *figures)
        .where(table.c.collected_date.between(today - timedelta(days=OBSERVED_DAYS - 1), today))
        .group_by(table.c.collected_date)
        .order_by(table.c.collected_date)
    )
    if "is_deleted" in table.c:
        query = query.where(~table.c.is_deleted)
    with database_errors(doing=f"reading {table.name}"), engine.connect() as connection:
        rows = connection.execute(query).all()
    return {day: f"{count} rows, {total} MiB, {_moment(changed)}" for day, count, total, changed in rows}


def days_with_samples(engine: Engine, table: Table, first: date, before: date) -> list[date]:
    """Return the days from `first` until before `before` with a row, each from the index; raises DatabaseError."""
    with database_errors(doing=f"reading {table.name}"), engine.connect() as connection:
        parameters = {"first": first, "before": before}
        days = _DISTINCT_DAYS if is_distributed(engine) else _DAYS
        return list(connection.execute(text(days.format(table=table.name)), parameters).scalars())


_DAYS = """
WITH RECURSIVE days AS (
    SELECT min(collected_date) AS day FROM {table} WHERE collected_date >= :first AND collected_date < :before
    UNION ALL
    SELECT (SELECT min(t.collected_date) FROM {table} t
            WHERE t.collected_date > days.day AND t.collected_date < :before)
    FROM days WHERE days.day IS NOT NULL
)
SELECT day FROM days WHERE day IS NOT NULL
"""


# On distributed tables, a query may not be recursive.
_DISTINCT_DAYS = """
SELECT DISTINCT collected_date FROM {table} WHERE collected_date >= :first AND collected_date < :before ORDER BY 1
"""


@dataclass(frozen=True)
class NewestSamples:
    """The newest day, up to today, with a sample in a raw table of sizes; None: there is none."""

    table: str
    day: date | None
    today: date

    @property
    def has_stopped(self) -> bool:
        """Whether samples have stopped arriving; a table without any has not stopped."""
        return self.day is not None and (self.today - self.day).days > NEWEST_AGE_DAYS

    @property
    def text(self) -> str:
        """The finding in one sentence."""
        if self.day is None:
            return "There are no samples yet."
        age = (self.today - self.day).days
        return (
            f"The newest sample is from {human_day(self.day)}, {counted(age, 'day')} ago."
            if age
            else "There are samples from today."
        )


def newest_samples(engine: Engine, today: date) -> list[NewestSamples]:
    """Return the newest day with samples of each raw table of sizes; raises DatabaseError.

    Days in the future do not count: a sample from a wrong clock would hide missing ones for weeks.
    """
    newest_by_table = []
    with database_errors(doing="looking for the newest samples"), engine.connect() as reader:
        for level in SERVER_LEVELS.values():
            day = level.source.c.collected_date
            newest = select(func.max(day)).where(day <= today, *level.live())
            newest_by_table.append(NewestSamples(level.source.name, reader.execute(newest).scalar(), today))
    return newest_by_table


def _moment(changed: datetime | None) -> str:
    """Return a time as text; rows in tables of the legacy application may have none."""
    return "no time" if changed is None else f"{changed:%Y-%m-%dT%H:%M:%S.%f}"
