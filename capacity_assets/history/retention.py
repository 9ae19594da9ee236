"""How long rows are kept: the rules of CAPACITY_RETENTION_DAYS, and which old samples are still needed.

Samples of a day may be dropped when every window that contains the day or compares with it is over, computed from the
current samples without a failed server, and stored. `maintenance` drops them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, Table

from capacity_assets.aggregates.ledger import IncompleteWindow, Ledger
from capacity_assets.aggregates.levels import LEVELS, Level, aggregates_name
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import DEFAULT_RETENTION_DAYS, ConfigurationError
from capacity_assets.database.partitions import UNREAD, PartitionLayout, Span, span_of, spans_between
from capacity_assets.database.tables import AGGREGATES, SAMPLES, capacity_runways

VARIABLE = "CAPACITY_RETENTION_DAYS"
RAW = "raw"
FOREVER = "forever"
LONGEST_DAYS = 100_000


@dataclass(frozen=True)
class Retention:
    """Days by name; None for ever. A name that is missing is kept for ever too."""

    days: Mapping[str, int | None]

    def of(self, table: Table, period: str | None = None) -> int | None:
        """How many days the rows of a table, or its aggregates of a period, are kept, or None.

        A rule for the table goes before that of its kind; limits are kept as samples are.
        """
        if period is not None:
            names = [aggregates_name(period, level_of(table)), period]
        else:
            names = [table.name] if table is capacity_runways else [table.name, RAW]
        return next((self.days[name] for name in names if name in self.days), None)


def level_of(table: Table) -> Level:
    """Return the level whose samples or aggregates `table` holds."""
    return next(level for level in LEVELS.values() if table in (level.source, level.target))


def parse_retention(value: str, periods: Iterable[str] = PERIODS) -> Retention:
    """Read `name=days,name=forever`, on top of the defaults; raises ConfigurationError for what is no rule."""
    known = {*periods, *(rule.partition("=")[0] for rule in DEFAULT_RETENTION_DAYS.split(","))}
    known |= {RAW, *(table.name for table in (*SAMPLES, *UNREAD))}
    known |= {aggregates_name(period, level) for period in periods for level in LEVELS.values()}
    days_by_name: dict[str, int | None] = {}
    for rule in filter(None, (part.strip() for part in f"{DEFAULT_RETENTION_DAYS},{value}".split(","))):
        name, _, days = (part.strip() for part in rule.partition("="))
        is_number = days.isascii() and days.isdigit() and 1 <= int(days) <= LONGEST_DAYS
        if not is_number and days != FOREVER:
            raise ConfigurationError(
                f"{VARIABLE}: {rule!r} is not a rule; write for example {DEFAULT_RETENTION_DAYS},weekly={FOREVER}"
            )
        if name not in known:
            raise ConfigurationError(f"{VARIABLE}: {name!r} is not one of {', '.join(sorted(known))}")
        days_by_name[name] = int(days) if is_number else None
    return Retention(days_by_name)


# A year before a day is 364 to 366 days before; windows that begin sooner do not compare with it.
A_YEAR_LATER = timedelta(days=364)
SLACK = timedelta(days=2)
NODE_SECONDS = 10
"""How long a node may take to report its changes: samples may be locked meanwhile."""


@dataclass(frozen=True)
class RetentionPlan:
    """Which partitions the rules want, how long each is kept, and which windows still read old samples.

    `first_day` is the first with samples; what is known of windows is in the `ledger`.
    """

    ledger: Ledger
    first_day: date
    retention: Retention
    periods: Mapping[str, Period]

    def wanted(self, layout: PartitionLayout, today: date, last: date) -> Iterator[Span]:
        """The spans from the first day that is kept to the last one wanted ahead."""
        table = layout.table
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
        if period is not None or table not in AGGREGATES:
            return self.retention.of(table, period)
        every = [self.retention.of(table, name) for name in self.periods]
        bounded = [days for days in every if days is not None]
        return max(bounded) if len(bounded) == len(every) else None

    def is_old(self, table: Table, span: Span, today: date) -> bool:
        """Whether the last day of `span` is longer ago than its rows are kept."""
        days = self.days(table, span.period_type)
        return days is not None and span.last < today - timedelta(days=days)

    def _begin(self, today: date, days: int | None) -> date:
        return self.first_day if days is None else max(self.first_day, today - timedelta(days=days))

    def reason_to_keep(
        self, connection: Connection, table: Table, span: Span, today: date, *, is_locked: bool
    ) -> str | None:
        """Name a window that still needs the samples of `span`; None for tables that no window reads.

        Where the samples are locked, the queue of changes is not read, which may have to look at them, and stored rows
        are not counted, which takes too long while everyone waits.

        Raises DBAPIError; DatabaseError if a node of a cluster does not report its changes in time.
        """
        if table not in SAMPLES:
            return None
        level = level_of(table)
        ask = self.ledger.take_over if is_locked else self.ledger.gather
        ask("What was done before was kept; no further sample was dropped.", NODE_SECONDS)
        undecided = self.ledger.undecided(connection)
        if undecided:
            return undecided
        not_over, windows = None, {}
        for period in self.periods.values():
            reading = _reading(period, span)
            if reading[-1].end >= today and reading[-1].start >= self._first(period):
                not_over = f"the {period.name} window from {reading[-1].start} reads them and is not over"
                break
            windows[period] = reading
        left = self.ledger.left(connection, level, windows)
        if left or not_over or is_locked:
            return self._sentence(left[0]) if left else not_over
        return self._lost_rows(connection, level, windows, today)

    def _lost_rows(
        self, connection: Connection, level: Level, windows: Mapping[Period, Sequence[Window]], today: date
    ) -> str | None:
        """Name one of the windows that lacks rows for another reason than retention."""
        for period, reading in windows.items():
            stored = [one for one in reading if not self.is_old(level.target, span_of(one.start, period), today)]
            lost = self.ledger.lost_rows(connection, period, level, stored)
            if lost:
                return self._sentence(lost)
        return None

    def _sentence(self, left: IncompleteWindow) -> str:
        period = self.periods[left.period_type]
        before = " (it lies before CAPACITY_START_DATE)" if left.window.start < self._first(period) else ""
        return f"the {period.name} window from {left.window.start} reads them and {left.reason}{before}"

    def _first(self, period: Period) -> date:
        return period.window_of(self.first_day).start


def _reading(period: Period, span: Span) -> Sequence[Window]:
    """The windows that hold a day of `span`, the one after them, and those that compare with them a year later."""
    windows = period.windows_between(span.first, span.last)
    later = period.windows_between(span.first + A_YEAR_LATER, span.last + A_YEAR_LATER + SLACK)
    comparing = [window for window in later if period.year_before(window).start <= span.last]
    return sorted({*windows, period.following(windows[-1]), *comparing})
