"""How the texts of a file are written: the order of day and month, and the decimal mark of each column.

A file is read once for that before anything is loaded. What the file does not tell is refused with both readings, and
never guessed. Days that a file lacks are found on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR
from capacity_assets.base.units import human_day

ISO, DAY_FIRST, MONTH_FIRST = "iso", "day-first", "month-first"
ORDERED = (DAY_FIRST, MONTH_FIRST)
ORDERS = (ISO, *ORDERED)
POINT, COMMA = ".", ","
MOST_DAYS = 50_000
"""Of more different texts of days than this, gaps are not looked for."""
ROWS_PER_UPDATE = 10_000
_ORDERED = re.compile(
    r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?:[T ]+(\d{1,2}):(\d\d)(?::(\d\d))?(?: ?([AP])M)?)?", re.ASCII | re.IGNORECASE
)
# A year in which no two of day, month and year are the same number.
_PROBE = datetime(2047, 11, 28)  # noqa: DTZ001 -- a day of the calendar
_HALF_DAY = 12
# What separates thousands, beside the mark that is not the decimal one; written by programs of many countries.
_SEPARATORS = " '\u2019\u00a0\u202f"
_NUMBER = re.compile(rf"[\d.,{_SEPARATORS}]+", re.ASCII)
_GROUPED = {
    mark: re.compile(
        rf"[1-9]\d{{0,2}}(?:([{re.escape(other)}{_SEPARATORS}])\d{{3}})(?:\1\d{{3}})*(?:{re.escape(mark)}\d*)?"
    )
    for mark, other in ((POINT, COMMA), (COMMA, POINT))
}


@dataclass(frozen=True)
class Conventions:
    """How days and sizes are written; a column without a mark of its own has a decimal point."""

    dates: str = ISO
    """One of ORDERS, or a format for `strptime`."""
    decimals: Mapping[str, str] = field(default_factory=dict)

    def moment(self, text: str) -> datetime:
        """Return the time a text names, a day being its midnight; raises ValueError."""
        if self.dates not in ORDERS:
            return datetime.strptime(text, self.dates)  # noqa: DTZ007 -- the caller knows the zone
        written = None if self.dates == ISO else _ORDERED.fullmatch(text)
        if written is None:
            return datetime.fromisoformat(text)
        first, _, second, year, *time, half = written.groups()
        day, month = (first, second) if self.dates == DAY_FIRST else (second, first)
        hour, minute, second_of_minute = (int(part or 0) for part in time)
        if half is not None:
            hour = hour % _HALF_DAY + (_HALF_DAY if half.upper() == "P" else 0)
        return datetime(int(year), int(month), int(day), hour, minute, second_of_minute)  # noqa: DTZ001 -- as above

    def plain(self, text: str, column: str) -> str | None:
        """Return a number without separators of thousands and with a decimal point; None where marks are misplaced."""
        mark = self.decimals.get(column, POINT)
        if _GROUPED[mark].fullmatch(text):
            text = re.sub(rf"[^\d{re.escape(mark)}]", "", text)
        misplaced = COMMA if mark == POINT else POINT
        return None if misplaced in text else text.replace(mark, POINT)


WRITTEN_AS_ISO = Conventions()


def checked_date_format(written: str) -> str:
    """Return a date format; raises ValidationError if it is neither one of ORDERS nor tells day, month and year."""
    if written in ORDERS:
        return written
    try:
        tells = datetime.strptime(_PROBE.strftime(written), written) == _PROBE  # noqa: DTZ007 -- a day of the calendar
    except ValueError:
        tells = False
    if not tells:
        raise ValidationError(
            f"--date-format {written!r} must be {', '.join(ORDERS)}, or a format with day, month and year such as "
            "%d.%m.%Y."
        )
    return written


@dataclass(frozen=True)
class Span:
    """The days of a server in a file; some between the first and the last are missing there."""

    server: str
    """Its name; empty: it is named by its number."""
    instance_id: str
    first_day: date
    last_day: date


@dataclass(frozen=True)
class Survey:
    """What a look through a whole file found."""

    conventions: Conventions
    with_gaps: Sequence[Span] = ()


Rows = Iterable[tuple[int, Sequence[str | None]]]


_Ways = dict[str, tuple[int, str]]
"""The first row, and its text, that shows each way of writing: a mark or an order; with `?`, what may be one."""


@dataclass(frozen=True)
class Surveyor:
    """Looks through the rows of a file once; `date_format` and `decimal` None: to be detected."""

    columns: Sequence[str]
    day: str
    sizes: Sequence[str]
    servers: tuple[str, str]
    """The columns with the name and with the number of a server."""
    server: str | None = None
    """Server of all rows."""
    date_format: str | None = None
    decimal: str | None = None
    point_is_usual: bool = True
    """Whether a point that may separate thousands is a decimal point, as in files that separate by commas."""
    last_day: date = date.max
    """Rows of later days, and of days before FIRST_YEAR, will be refused, so these are no ends of gaps."""

    def survey(self, rows: Rows, progress: Callable[[int], None] = lambda _rows: None) -> Survey:
        """Return how a file is written; raises ValidationError if it does not tell, or contradicts itself."""
        places = {name: place for place, name in enumerate(self.columns)}
        day_place, server_place, number_place = (places[name] for name in (self.day, *self.servers))
        sizes: dict[str, _Ways] = {name: {} for name in self.sizes}
        days: dict[str, int] = {}
        days_of: dict[tuple[str, str], int] = {}
        dates: _Ways = {}
        read = 0
        for read, (position, row) in enumerate(rows, start=1):
            if read % ROWS_PER_UPDATE == 0:
                progress(read)
            if len(row) != len(self.columns):
                continue
            text = (row[day_place] or "").strip()
            index = days.get(text)
            if index is None:
                _note(dates, _order(text), position, text)
                index = len(days)
                if index < MOST_DAYS:
                    days[text] = index
            for column, ways in sizes.items():
                size = row[places[column]]
                if size and not size.isdecimal():
                    _note(ways, _mark(size.strip()), position, size)
            if index < MOST_DAYS:
                name = self.server or (row[server_place] or "").strip()
                key = (name, "" if name else (row[number_place] or "").strip())
                days_of[key] = days_of.get(key, 0) | 1 << index
        progress(read)
        conventions = Conventions(self._dates(dates), self._decimals(sizes))
        by_index: dict[int, date] = {}
        for text, index in days.items():
            with suppress(ValueError):
                by_index[index] = conventions.moment(text).date()
        valid = {n: day for n, day in by_index.items() if day.year >= FIRST_YEAR and day <= self.last_day}
        return Survey(conventions, _with_gaps(valid, days_of))

    def _dates(self, ways: _Ways) -> str:
        if self.date_format is not None:
            return self.date_format
        if len(_shown(ways)) > 1:
            (first, one), (second, other) = (ways[order] for order in ORDERED)
            raise ValidationError(
                f"{self.day} {one!r:.40} in row {first} can only be day-first, {other!r:.40} in row {second} only "
                "month-first. Nothing was imported. Correct the file, or say which with --date-format."
            )
        if not _shown(ways) and "?" in ways:
            position, text = ways["?"]
            readings = [human_day(Conventions(order).moment(text).date()) for order in ORDERED]
            raise ValidationError(
                f"{self.day} {text!r:.40} in row {position} is {readings[0]} (--date-format day-first) or "
                f"{readings[1]} (--date-format month-first), and the file contains no date that decides it. "
                "Nothing was imported."
            )
        # With day and month of the same number, both orders are right.
        return next(iter(_shown(ways)), DAY_FIRST if ways else ISO)

    def _decimals(self, columns: Mapping[str, _Ways]) -> dict[str, str]:
        if self.decimal is not None:
            return dict.fromkeys(columns, self.decimal)
        elsewhere = {mark for ways in columns.values() for mark in _shown(ways)}
        return {column: self._decimal(column, ways, elsewhere) for column, ways in columns.items()}

    def _decimal(self, column: str, ways: _Ways, elsewhere: set[str]) -> str:
        marks = _shown(ways)
        if len(marks) > 1:
            (first, one), (second, other) = (ways[mark] for mark in (POINT, COMMA))
            raise ValidationError(
                f"{column} {one!r:.40} in row {first} has a decimal point, {other!r:.40} in row {second} a decimal "
                "comma. Nothing was imported. Correct the file, or say which with --decimal . or --decimal ,"
            )
        if not marks and ways and len(elsewhere) == 1:
            marks = [*elsewhere]
        if marks or not ways or (self.point_is_usual and set(ways) == {f"?{POINT}"}):
            return next(iter(marks), POINT)
        position, text = next(iter(ways.values()))
        digits, decimals = re.sub(r"\D", "", text), re.sub(r"[.,]", POINT, text)
        with_point, with_comma = (decimals, digits) if POINT in text else (digits, decimals)
        raise ValidationError(
            f"{column} {text!r:.40} in row {position} is {with_point} (--decimal .) or {with_comma} (--decimal ,), "
            "and the file does not tell which. Nothing was imported."
        )


def _note(ways: _Ways, way: str | None, position: int, text: str) -> None:
    if way is not None:
        ways.setdefault(way, (position, text))


def _shown(ways: _Ways) -> list[str]:
    return [way for way in ways if not way.startswith("?")]


def _order(text: str) -> str | None:
    """Return the order of day and month that a text can only have; `?` for either one, `?=` if both are the same day.

    None: it has neither.
    """
    written = _ORDERED.fullmatch(text)
    if written is None:
        return None
    moments = {}
    for order in ORDERED:
        with suppress(ValueError):
            moments[order] = Conventions(order).moment(text)
    if len(moments) == len(ORDERED):
        return "?=" if moments[DAY_FIRST] == moments[MONTH_FIRST] else "?"
    return next(iter(moments), None)


def _mark(text: str) -> str | None:
    """Return the decimal mark a number can only have; `?` and the mark where it may separate thousands; None: none."""
    if not _NUMBER.fullmatch(text):
        return None
    present = [sign for sign in text if sign in (POINT, COMMA)]
    if len(set(present)) != 1:
        return present[-1] if present else None
    mark, other = present[0], COMMA if present[0] == POINT else POINT
    if len(present) > 1:
        return other
    return f"?{mark}" if _GROUPED[other].fullmatch(text) else mark


def _with_gaps(by_index: Mapping[int, date], days_of: Mapping[tuple[str, str], int]) -> list[Span]:
    """Return the servers with fewer days than from their first to their last."""

    @cache  # Most servers have the same days.
    def ends(indexes: int) -> tuple[date, date] | None:
        found = {
            by_index[index] for index, bit in enumerate(reversed(f"{indexes:b}")) if bit == "1" and index in by_index
        }
        first, last = min(found, default=date.max), max(found, default=date.min)
        return (first, last) if (last - first).days >= len(found) > 0 else None

    return [Span(*server, *span) for server, indexes in days_of.items() if (span := ends(indexes)) is not None]
