"""How long rows are kept: the rules of CAPACITY_RETENTION_DAYS, per table and per period, and the spans they leave.

What is carried out, and when old samples are still needed, is the business of `maintenance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Table

from capacity_assets.foundation.levels import LEVELS, SERVER_LEVELS, Level, aggregates_name
from capacity_assets.periods import PERIODS, Period
from capacity_assets.settings import ConfigurationError
from capacity_assets.storage.limit_tables import capacity_runways
from capacity_assets.storage.partitions import UNREAD, PartitionLayout, Span, spans_between
from capacity_assets.storage.tables import AGGREGATES
from capacity_assets.variables import DEFAULT_RETENTION_DAYS

VARIABLE = "CAPACITY_RETENTION_DAYS"
RAW = "raw"
FOREVER = "forever"
LONGEST_DAYS = 100_000


@dataclass(frozen=True)
class Retention:
    """Days by name; None for ever. A name that is missing is kept for ever too."""

    days: Mapping[str, int | None]

    def of_table(self, table: Table) -> int | None:
        """How many days the rows of a table that holds no aggregates are kept, or None: raw limits as samples are."""
        return self._first(table.name) if table is capacity_runways else self._first(table.name, RAW)

    def of_aggregates(self, period: str, level: Level) -> int | None:
        """How many days after their window's first day the rows of a period and level are kept, or None."""
        return self._first(aggregates_name(period, level), period)

    def _first(self, *names: str) -> int | None:
        return next((self.days[name] for name in names if name in self.days), None)


@dataclass(frozen=True)
class KeptSpans:
    """Which partitions the rules want, and how long each is kept; `first_day` is the first with samples."""

    first_day: date
    retention: Retention
    periods: Mapping[str, Period]

    def wanted(self, table: Table, layout: PartitionLayout, today: date, last: date) -> Iterator[Span]:
        """The spans from the first day that is kept to the last one wanted ahead."""
        if not layout.by_period:
            # Rows of earlier days, if there are any, get their partitions when they are there.
            begin = today if table in UNREAD else self._begin(today, self.days(table, None))
            yield from spans_between(min(begin, last), last)
            return
        for period in self.periods.values():
            begin = self._begin(today, self.days(table, period.name))
            yield from spans_between(min(period.window_of(begin).start, last), last, period)

    def days(self, table: Table, period: str | None) -> int | None:
        """How long the rows of a partition are kept; one that holds several periods keeps the longest."""
        if table not in AGGREGATES:
            return self.retention.of_table(table)
        level = level_of(table)
        if period is not None:
            return self.retention.of_aggregates(period, level)
        every = [self.retention.of_aggregates(name, level) for name in self.periods]
        bounded = [days for days in every if days is not None]
        return max(bounded) if len(bounded) == len(every) else None

    def is_old(self, table: Table, span: Span, today: date) -> bool:
        """Whether the last day of `span` is longer ago than its rows are kept."""
        days = self.days(table, span.period_type)
        return days is not None and span.last < today - timedelta(days=days)

    def _begin(self, today: date, days: int | None) -> date:
        return self.first_day if days is None else max(self.first_day, today - timedelta(days=days))


def level_of(table: Table) -> Level:
    """Return the level whose samples or aggregates `table` holds."""
    return next(level for level in LEVELS.values() if table in (level.source, level.target))


def parse_retention(value: str, periods: Iterable[str] = PERIODS) -> Retention:
    """Read `name=days,name=forever`, on top of the defaults; raises ConfigurationError for what is no rule."""
    return Retention(dict(_rules(DEFAULT_RETENTION_DAYS)) | dict(_checked(value, set(_names(periods)))))


def _names(periods: Iterable[str]) -> Iterator[str]:
    yield RAW
    yield from (level.source.name for level in SERVER_LEVELS.values())
    yield from (table.name for table in UNREAD)
    for period in periods:
        yield period
        yield from (aggregates_name(period, level) for level in LEVELS.values())


def _checked(value: str, names: set[str]) -> Iterator[tuple[str, int | None]]:
    for name, days in _rules(value):
        if name not in names:
            known = ", ".join(sorted(names))
            raise ConfigurationError(f"{VARIABLE}: {name!r} is none of {known}")
        yield name, days


def _rules(value: str) -> Iterator[tuple[str, int | None]]:
    for rule in filter(None, (part.strip() for part in value.split(","))):
        name, _, days = (part.strip() for part in rule.partition("="))
        if days == FOREVER:
            yield name, None
        elif days.isascii() and days.isdigit() and 1 <= int(days) <= LONGEST_DAYS:
            yield name, int(days)
        else:
            raise ConfigurationError(
                f"{VARIABLE}: {rule!r} is not a rule; write for example raw=400,daily=1096,weekly=forever"
            )
