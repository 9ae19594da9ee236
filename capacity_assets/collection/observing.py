"""Observes raw tables: data versions of the newest days, the days with samples, and whether samples stopped."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlalchemy import Engine, Table, func, select, text

from capacity_assets.aggregates.levels import SERVER_LEVELS, RawTable
from capacity_assets.base.errors import database_errors
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.cluster import is_distributed

# Each day is an event in Dagster, so few. Later corrections are followed by the records of the database.
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
