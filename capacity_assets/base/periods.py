"""Calendar periods, their windows, and the clock of today's date in the configured time zone.

`PERIODS` is the registry from which windows, partitions, asset names, jobs, command-line choices and documents are
derived. To add a period, add an entry in the order of their length, because a chart with too many windows takes the
next entry; then run `capacity init`, because views list the periods.

Functions that need today's date take a `Clock`; tests pass a fixed one. `check_today` in `database.engine` says whether
the date is reliable enough to delete something or to make it final. Everything else in this module is pure: no
environment, no database, no Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from capacity_assets.base.trend import trend_percent
from capacity_assets.base.units import MONTH_NAMES, human_day, human_days, human_month

FIRST_YEAR, LAST_YEAR = 1900, 2999
"""The years of days that people name. Windows before and after exist, because the calendar ends much later."""


def _now_of(connection: Connection) -> datetime:
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


@dataclass(frozen=True)
class Clock:
    """Returns the day in `zone`. `now` and `database_now`, PostgreSQL's clock, return datetimes with a time zone."""

    zone: ZoneInfo
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC)
    database_now: Callable[[Connection], datetime] = _now_of

    def today(self) -> date:
        """Return today in the clock's zone, which may differ from the day in UTC."""
        return self.local_now().date()

    def local_now(self) -> datetime:
        """Return the current time in the clock's zone."""
        return self.now().astimezone(self.zone)

    def local_database_now(self, connection: Connection) -> datetime:
        """Return the current time of PostgreSQL's clock, in the zone of this clock; raises DBAPIError."""
        return self.database_now(connection).astimezone(self.zone)


MONTHS_PER_YEAR = 12
DAYS_PER_WEEK = 7
MONTHS_PER_QUARTER = 3
LONGEST_NAME = 20  # the longest that fits the column period_type
DAYS_PER_YEAR = Decimal("365.2425")
YEAR_AND_MONTH_DAYS = 400
"""A year, the month before it, and a few days more."""
WEEKS_PER_YEAR = 52
LEAP_DAY = (2, 29)
NOUNS = {"daily": "day", "weekly": "week", "monthly": "month", "quarterly": "quarter", "yearly": "year"}


@dataclass(frozen=True, order=True)
class Window:
    """One period's stretch of days, first and last day included, in the configured time zone."""

    start: date
    end: date

    @property
    def key(self) -> str:
        """The Dagster partition key: the first day as `YYYY-MM-DD`."""
        return self.start.isoformat()

    @property
    def days(self) -> int:
        """Number of days in the window."""
        return (self.end - self.start).days + 1

    @property
    def dates(self) -> list[date]:
        """Every day of the window."""
        return [self.start + timedelta(days=number) for number in range(self.days)]

    def elapsed_days(self, today: date) -> int:
        """Number of days of the window up to and including today."""
        return max(0, (min(self.end, today) - self.start).days + 1)


@dataclass(frozen=True)
class Period:
    """A rule that divides the calendar into adjacent windows.

    Give either `days` (1, or 7 for weeks from Monday on) or `months` (a divisor of 12), the latter with the month in
    which a year of windows begins (`first_month`, for fiscal years). `scheduled_current` says which window is computed
    regularly: the one that contains today or, if it is false, the complete one before. `trend_threshold` is the change
    in percent beyond which a window counts as growing or shrinking; without it, `base.trend` gives it.
    """

    name: str
    days: int = 0
    months: int = 0
    first_month: int = 1
    scheduled_current: bool = False
    trend_threshold: Decimal | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that does not cut the calendar into adjacent windows of one kind."""
        if not (self.name.isidentifier() and self.name.islower() and len(self.name) <= LONGEST_NAME):
            msg = f"period {self.name!r}: the name must be a lower-case identifier of at most {LONGEST_NAME} characters"
            raise ValueError(msg)
        by_days = self.days in (1, DAYS_PER_WEEK) and self.months == 0
        by_months = self.days == 0 and self.months > 0 and MONTHS_PER_YEAR % self.months == 0
        if not (by_days or by_months):
            raise ValueError(f"period {self.name!r}: give days=1, days=7 or months=<divisor of 12>")
        if not 1 <= self.first_month <= MONTHS_PER_YEAR:
            raise ValueError(f"period {self.name!r}: first_month must lie between 1 and 12")

    @property
    def noun(self) -> str:
        """The word for a window: day, week, month, quarter or year; for other periods the name."""
        return NOUNS.get(self.name, self.name)

    @property
    def trend_percent(self) -> Decimal:
        """Change in percent, with two decimals, beyond which a window is growing, or below its negative shrinking."""
        if self.trend_threshold is not None:
            return self.trend_threshold
        years = Decimal(self.months) / MONTHS_PER_YEAR if self.months else Decimal(self.days) / DAYS_PER_YEAR
        return trend_percent(years)

    @property
    def cron(self) -> str:
        """Cron expression whose ticks, at midnight, are exactly the first days of the windows."""
        return self.cron_at(0)

    def cron_at(self, hour: int, minute: int = 0) -> str:
        """Cron expression that ticks at that time on the first day of each window."""
        return f"{minute} {hour} {self._first_days}"

    @property
    def _first_days(self) -> str:
        """Day, month and weekday of the first days, as cron writes them."""
        if self.days:
            return "* * 1" if self.days == DAYS_PER_WEEK else "* * *"
        offset = (self.first_month - 1) % self.months
        starts = range(1 + offset, MONTHS_PER_YEAR + 1, self.months)
        return f"1 {','.join(map(str, starts))} *" if self.months > 1 else "1 * *"

    def name_of(self, window: Window) -> str:
        """Name a window as people do: October 2026, Q4 2026, 2026, or its days: 28 Nov 2026, 23 to 29 Nov 2026."""
        start = window.start
        if self.months == 1:
            return f"{MONTH_NAMES[start.month - 1]} {start.year}"
        if self._is_quarter:
            return f"Q{(start.month - 1) // MONTHS_PER_QUARTER + 1} {start.year}"
        if self.months == MONTHS_PER_YEAR and self.first_month == 1:
            return str(start.year)
        return human_days(start, window.end)

    def label_of(self, window: Window) -> str:
        """Name a window as shortly as an axis needs it: Oct 2026, Q4 2026, 2026, 5 Oct 2026."""
        start = window.start
        if self.days:
            return human_day(start)
        return human_month(start) if self.months < MONTHS_PER_YEAR and not self._is_quarter else self.name_of(window)

    @property
    def _is_quarter(self) -> bool:
        return self.months == MONTHS_PER_QUARTER and self.first_month == 1

    def window_of(self, day: date) -> Window:
        """Return the window that contains `day`."""
        if self.days:
            start = day - timedelta(days=day.weekday() if self.days == DAYS_PER_WEEK else 0)
            return Window(start, start + timedelta(days=self.days - 1))
        months = day.year * MONTHS_PER_YEAR + day.month - 1
        first = months - (months - (self.first_month - 1)) % self.months
        return Window(_month_start(first), _month_start(first + self.months) - timedelta(days=1))

    def previous(self, window: Window) -> Window:
        """Return the window before `window`, with which its change is computed."""
        return self.window_of(window.start - timedelta(days=1))

    def back(self, window: Window, count: int) -> list[Window]:
        """Return the last `count` windows up to `window`, oldest first."""
        windows = [window]
        while len(windows) < count:
            windows.append(self.previous(windows[-1]))
        return windows[::-1]

    def following(self, window: Window) -> Window:
        """Return the window after `window`."""
        return self.window_of(window.end + timedelta(days=1))

    def year_before(self, window: Window) -> Window:
        """Return the window a year before: 52 weeks for a week, 28 February for the 29th, otherwise the same date."""
        start = window.start
        if self.days == DAYS_PER_WEEK:
            return self.window_of(start - timedelta(weeks=WEEKS_PER_YEAR))
        if (start.month, start.day) == LEAP_DAY:
            start -= timedelta(days=1)
        return self.window_of(start.replace(year=start.year - 1))

    @property
    def year_interval(self) -> str:
        """The interval that PostgreSQL subtracts from the first day of a window to get that of the year before."""
        return f"{WEEKS_PER_YEAR * DAYS_PER_WEEK} days" if self.days == DAYS_PER_WEEK else "1 year"

    @property
    def windows_per_year(self) -> int | None:
        """Number of windows in a year; None if a year is not a whole number of them."""
        return MONTHS_PER_YEAR // self.months if self.months else None

    def current(self, today: date) -> Window:
        """Return the window that contains `today`; it may end later."""
        return self.window_of(today)

    def last(self, today: date) -> Window:
        """Return the complete window before the current one."""
        return self.previous(self.current(today))

    def scheduled(self, today: date) -> Window:
        """Return the window that is computed regularly on `today`: the current or the last one."""
        return self.current(today) if self.scheduled_current else self.last(today)

    def is_open(self, window: Window, today: date) -> bool:
        """Whether a window is not over; one that is computed while it lasts, such as a measured day, is over."""
        return not self.scheduled_current and window.end >= today

    def windows_between(self, first_day: date, last_day: date) -> tuple[Window, ...]:
        """Return every window with a day of the range, in order; raises ValueError if the range is reversed."""
        if first_day > last_day:
            raise ValueError(f"The first day {first_day} is after the last day {last_day}")
        window = self.window_of(first_day)
        windows = [window]
        while window.end < last_day:
            window = self.following(window)
            windows.append(window)
        return tuple(windows)


def _month_start(months: int) -> date:
    """First day of the month `months` months after January of year 0."""
    year, month = divmod(months, MONTHS_PER_YEAR)
    return date(year, month + 1, 1)


def with_trend_threshold(periods: Mapping[str, Period], percent: Decimal | None) -> dict[str, Period]:
    """Return the registry with one trend threshold, in percent, for every period; None keeps each period's own."""
    if percent is None:
        return dict(periods)
    return {name: replace(period, trend_threshold=percent) for name, period in periods.items()}


def in_order(period: Period, windows: Iterable[Window]) -> list[Window]:
    """Return sorted windows without repetitions; raises ValueError if one is not a window of `period`."""
    ordered = sorted(set(windows))
    for window in ordered:
        if period.window_of(window.start) != window:
            raise ValueError(f"{window.start} to {window.end} is not a {period.name} window")
    return ordered


def adjacent_spans(windows: Iterable[Window]) -> list[list[Window]]:
    """Split sorted windows wherever one is missing between two."""
    spans: list[list[Window]] = []
    for window in windows:
        if spans and spans[-1][-1].end + timedelta(days=1) == window.start:
            spans[-1].append(window)
        else:
            spans.append([window])
    return spans


PERIODS: dict[str, Period] = {
    period.name: period
    for period in (
        Period("daily", days=1, scheduled_current=True),
        Period("weekly", days=7),
        Period("monthly", months=1),
        Period("quarterly", months=3),
        Period("yearly", months=12),
    )
}
