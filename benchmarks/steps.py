"""What ways of computing are compared at: backfill, newest windows, a correction; and our own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, text

from benchmarks.fleet import Fleet
from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock, Period

CLOCK = Clock(ZoneInfo("UTC"))


class Side(Protocol):
    """One way of computing the windows of databases."""

    def compute(self, period: Period, first: date, last: date) -> None:
        """Compute the windows between two days."""

    def correct(self, change: str) -> None:
        """Change samples."""

    def follow(self, corrected: date, last: date) -> None:
        """Compute again what the correction of a day touched, up to the last day."""

    def rows(self, period: Period) -> list[tuple[object, ...]]:
        """What is compared, per window."""


@dataclass(frozen=True)
class Ours:
    """Windows computed by the service."""

    engine: Engine

    def compute(self, period: Period, first: date, last: date) -> None:
        """Compute the windows between two days."""
        service = AggregationService(self.engine, CLOCK)
        service.aggregate(period, period.windows_between(first, last), RunOptions((DATABASE.name,)))

    def correct(self, change: str) -> None:
        """Change samples."""
        with self.engine.begin() as connection:
            connection.execute(text(change))

    def follow(self, corrected: date, last: date) -> None:  # noqa: ARG002 -- what is stale is found
        """Compute again what the look for stale windows finds, up to the last day."""
        service = AggregationService(self.engine, CLOCK)
        stale = service.ledger.stale()
        for name, period in PERIODS.items():
            windows = sorted({one.window for one in stale if (one.period_type, one.level) == (name, DATABASE.name)})
            windows = [window for window in windows if window.start <= last]
            if windows:
                service.aggregate(period, windows, RunOptions((DATABASE.name,)))

    def rows(self, period: Period) -> list[tuple[object, ...]]:
        """Number, sum, smallest, largest and number of samples of each window."""
        # A day keeps no sum: it is its value.
        total = "avg_size_mb" if period.name == "daily" else "sum_size_mb"
        query = f"""SELECT period_start, count(*), sum({total})::numeric, sum(min_size_mb)::numeric,
                           sum(max_size_mb)::numeric, sum(data_count)::bigint
                    FROM database_size_aggregations WHERE period_type = :period GROUP BY 1 ORDER BY 1"""  # noqa: S608
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), {"period": period.name})]


def steps(fleet: Fleet) -> Iterator[tuple[str, Callable[[Side], None]]]:
    """What is timed, in order; a window that has no days is left out."""
    last, first = fleet.last_day, fleet.first_day
    daily, monthly = PERIODS["daily"], PERIODS["monthly"]
    yield f"backfill of {fleet.days - 1} days", lambda side: side.compute(daily, first, last - timedelta(days=1))
    yield "the newest day", lambda side: side.compute(daily, last, last)
    week = PERIODS["weekly"]
    yield "every week", lambda side: side.compute(week, first, last)
    before = monthly.window_of(last).start - timedelta(days=1)
    yield "every month but the newest", lambda side: side.compute(monthly, first, before)
    yield "the newest month", lambda side: side.compute(monthly, last, last)
    quarter = PERIODS["quarterly"]
    earlier = quarter.window_of(last).start - timedelta(days=1)
    if earlier > first:
        yield "every quarter but the newest", lambda side: side.compute(quarter, first, earlier)
    yield "the newest quarter", lambda side: side.compute(quarter, last, last)
    yield "every year", lambda side: side.compute(PERIODS["yearly"], first, last)
    day = last - timedelta(days=40)
    tenth = (
        f"UPDATE database_size_stats SET size_mb = size_mb + 1 WHERE collected_date = '{day}' AND instance_id % 10 = 0"  # noqa: S608
    )
    yield "correct a tenth of a day", lambda side: side.correct(tenth)
    yield "follow the correction in every period", lambda side: side.follow(day, last)
