"""The parameters of an address, checked, and the windows and ranges that they name. The address is the whole state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import TypeVar

from sqlalchemy import Connection

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR, LAST_YEAR, PERIODS, Period, Window
from capacity_assets.reading.sizes import windows_back
from capacity_assets.reading.subjects import address
from capacity_assets.reading.windows import complete_window, newest_window, oldest_window
from capacity_assets.web.reader import Reader

ROWS_PER_PAGE, ROWS_PER_FILE = 50, 10_000
"""Rows of a list on a page, and in its CSV file."""
GROUPS_PER_PAGE = 200
MOST_PAGES = 200
LONGEST = 300
MONTH = re.compile(r"\d{4}-\d{2}")
NAMES = ("period", "window", "order", "engine", "label", "page", "by", "name", "server", "month", "issue", "q", "shown",
         "range", "first", "last", "compare", "state", "horizon", "months", "format")  # fmt: skip
"""All parameters of pages."""
PAGE_FORMATS = ("html", "json", "csv")

T = TypeVar("T")

ALL, CUSTOM, LONGEST_DAYS = "all", "custom", 3660
RANGES = {"30d": ("30 days", 30), "90d": ("90 days", 90), "1y": ("1 year", 366), ALL: ("All", LONGEST_DAYS)}
"""Ranges of charts up to the newest window: name and number of days. ALL begins with the oldest window."""
OLDEST_SECONDS = 300
MOST_WINDOWS, MOST_FLEET_WINDOWS = 400, 130
"""A range with more windows is shown by the next longer period. A window of the fleet reads a row of each server."""


def known_values(given: Mapping[str, str]) -> dict[str, str]:
    """Drop unknown parameters, which would be cached separately and copied into every link."""
    return {name: value for name, value in given.items() if name in NAMES}


@dataclass(frozen=True)
class PageQuery:
    """The parameters of a request. Methods that read one raise ValidationError if its value is invalid."""

    path: str
    values: Mapping[str, str]
    label_keys: Sequence[str]
    today: date

    def with_values(self, **changes: object) -> str:
        """Return this page's address with other values; None removes one."""
        return address(self.path, **{**self.values, "format": None, **changes})

    def without(self, *names: str) -> PageQuery:
        """Return this query without some parameters."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def text(self, name: str) -> str | None:
        """Return a parameter; None if it is missing."""
        value = self.values.get(name)
        if value is not None and (len(value) > LONGEST or "\0" in value):
            raise ValidationError(f"{name} is too long or contains a NUL character.")
        return value

    def needed(self, name: str) -> str:
        """Return a parameter that must not be missing."""
        value = self.text(name)
        if not value:
            raise ValidationError(f"The address has no {name}.")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Return a whole number from 1 to `most`."""
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
            raise ValidationError(f"{name} must be a whole number from 1 to {most:,}.")
        return int(text)

    def server(self) -> int:
        """Return the ID of a server."""
        self.needed("server")
        return self.number("server", 0, 2**31 - 1)

    def period(self, default: str = "daily") -> Period:
        """Return the period."""
        name = self.text("period") or default
        if name not in PERIODS:
            raise ValidationError(f"There is no period {name!r}; known are {', '.join(PERIODS)}.")
        return PERIODS[name]

    def day(self, name: str) -> date | None:
        """Return a day, or the first one of a month; None if it is missing."""
        text = self.text(name)
        if not text:
            return None
        try:
            day = date.fromisoformat(f"{text}-01" if MONTH.fullmatch(text) else text)
        except ValueError:
            kind = "month, as 2026-03" if name == "month" else "day, as 2026-03-31"
            raise ValidationError(f"{name} must be a {kind}.") from None
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            raise ValidationError(f"{name} must be in the years {FIRST_YEAR} to {LAST_YEAR}.")
        return day

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """Return one of the known words, the first by default."""
        value = self.text(name) or known[0]
        if value not in known:
            raise ValidationError(f"{name} must be one of {', '.join(filter(None, known))}.")
        return value

    def label(self) -> tuple[str, str] | None:
        """Return the label to filter by; with an empty value, everything without this key is wanted."""
        text = self.text("label")
        if not text:
            return None
        key, equals, value = text.partition("=")
        if not equals:
            raise ValidationError("label must be written as team=payments.")
        return key, value

    @property
    def rows_shown(self) -> int:
        """Number of rows on a page of a list, or in a file."""
        return ROWS_PER_FILE if self.values.get("format") == "csv" else ROWS_PER_PAGE

    @property
    def page(self) -> int:
        """The page of a long list, from 1."""
        return self.number("page", 1, MOST_PAGES)


def part_of_page(rows: Sequence[T], query: PageQuery) -> tuple[Sequence[T], bool]:
    """Return the rows of a page of groups, and whether there are more."""
    most = max(query.rows_shown, GROUPS_PER_PAGE)
    first = (query.page - 1) * most
    return rows[first : first + most], len(rows) > first + most


def chosen_window(connection: Connection, query: PageQuery, period: Period) -> Window | None:
    """Return the window of the address, by default the last complete one."""
    day = query.day("window")
    if day is not None:
        return period.window_of(day)
    return complete_window(connection, period, newest_window(connection, period), query.today)


@dataclass(frozen=True)
class ChartRange:
    """The range of a chart: a key of RANGES, CUSTOM, or None for the usual number of windows."""

    name: str | None
    first: date | None
    last: date | None
    period: str
    is_longer_period: bool = False
    """Whether the range has too many windows of the chosen period, so that a longer one is shown."""
    is_compared: bool = False
    """Whether the sizes of the previous year are shown too."""

    def windows(self, newest: Window | None) -> list[Window]:
        """Return the windows up to the newest one, oldest first; empty if the range begins after it."""
        period = PERIODS[self.period]
        if newest is None:
            return []
        if self.name is None:
            return windows_back(period, newest)
        first, last = self._days(newest.end)
        last = min(last, newest.end)
        return list(period.windows_between(first, last)) if first <= last else []

    def earlier(self, windows: Sequence[Window]) -> list[Window]:
        """Return the window of the previous year for each window; empty unless they are compared."""
        return [PERIODS[self.period].year_before(window) for window in windows] if self.is_compared else []

    def fitted(self, today: date, most: int) -> ChartRange:
        """Return the range by the shortest period, from the chosen one on, with at most so many windows."""
        if self.name is None:
            return self
        first, last = self._days(today)
        days = (last - first).days + 1
        longer = list(PERIODS.values())[list(PERIODS).index(self.period) :]
        period = next((one for one in longer if days / one.window_of(first).days <= most), longer[-1])
        return replace(self, period=period.name, is_longer_period=period.name != self.period)

    def _days(self, end: date) -> tuple[date, date]:
        last = self.last or end
        _, days = RANGES.get(self.name or "", RANGES[ALL])
        return self.first or last - timedelta(days=days - 1), last


def shown_range(reader: Reader, query: PageQuery, default: str = "daily", most: int = MOST_WINDOWS) -> ChartRange:
    """Return the range of the address, by a period that fits; raises ValidationError, DBAPIError."""
    chosen = chosen_range(query, default)
    if chosen.name == ALL:
        chosen = replace(chosen, first=reader.read_cached("oldest window", oldest_window, OLDEST_SECONDS))
    return chosen.fitted(query.today, most)


def chosen_range(query: PageQuery, default: str = "daily") -> ChartRange:
    """Return the range of the address by its period; raises ValidationError."""
    period, name = query.period(default).name, query.text("range")
    first, last = query.day("first"), query.day("last")
    is_compared = query.one_of("compare", ("", "year")) == "year"
    if name is not None and name not in RANGES:
        raise ValidationError(f"range must be one of {', '.join(RANGES)}.")
    if first is not None and last is not None and first > last:
        raise ValidationError(f"The first day, {first}, is after the last day, {last}.")
    return ChartRange(CUSTOM if first or last else name, first, last, period, is_compared=is_compared)
