"""Rows of history: their columns by level, the formats of days and numbers, and the conversion of texts to values.

A file is read once before anything is loaded, to find the order of day and month and the decimal mark of each column.
If it is ambiguous, it is refused with both readings; nothing is guessed. The same pass finds missing days.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from functools import cache, lru_cache, partial
from zoneinfo import ZoneInfo

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR
from capacity_assets.base.units import LARGEST_MB, human_day, printable

UNITS = {"bytes": (1, 1024**2), "kb": (1, 1024), "mb": (1, 1), "gb": (1024, 1)}
"""How many MiB a unit is, as a fraction."""
BYTES = "bytes"
SERVER, INSTANCE_ID, DATABASE_NAME, DAY, COLLECTED_AT = "server", "instance_id", "database", "day", "collected_at"
# The names of our columns in the legacy tables.
ALIASES = {DATABASE_NAME: "database_name", DAY: "collected_date"}
LARGEST_COUNT = 2**31 - 1
LONGEST_NAME = 255
MOST_DIGITS = 30
LARGEST_EXPONENT = 20
"""Of ten; more than that of the maximum size in bytes."""
MOST_LISTED, BEGINNING = 20, 4
ALIKE = 0.75
"""How many headings of a source are shown, and how many characters of one that may be a secret."""
_HEADING = re.compile(r"[^\W\d_](?:[^\W\d]|[ ()/-]){,30}")
# Digits of other alphabets and `1_000` are not numbers here.
_PLAIN = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+", re.ASCII)


@dataclass(frozen=True)
class ImportColumns:
    """The columns of a level: those with sizes, and those that may be missing or empty."""

    keys: tuple[str, ...]
    sizes: tuple[str, ...]
    optional_sizes: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order in which rows are handed on."""
        return (SERVER, INSTANCE_ID, *self.keys, *self.sizes, *self.optional_sizes, *self.counts, COLLECTED_AT)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a source must have, in addition to one for the server."""
        return (*self.keys, *self.sizes, *self.counts)


def layout_of(level: Level) -> ImportColumns:
    """Return the columns of a level: keys, then measures."""
    sizes = [name for name in level.values if name.endswith("_mb")]
    return ImportColumns(
        (DATABASE_NAME, DAY) if "database_name" in level.keys else (DAY,),
        tuple(name for name in sizes if not level.source.c[name].nullable),
        tuple(name for name in sizes if level.source.c[name].nullable),
        tuple(name for name in level.values if name not in sizes),
    )


def column_positions(
    headings: Sequence[str], layout: ImportColumns, mapping: Mapping[str, str], server: str | None
) -> dict[str, int]:
    """Find our columns among the headings; raises ValidationError: one is missing, mapped to nothing, or twice."""
    unknown = sorted(set(mapping) - set(layout.columns))
    if unknown:
        raise ValidationError(
            f"--map {unknown[0]}=...: there is no such column; known are {', '.join(layout.columns)}."
        )
    places: dict[str, int] = {}
    # Spreadsheets and databases write headings in capitals.
    lowered = {name.lower(): name for name in reversed(headings)}
    for ours in layout.columns:
        theirs = mapping.get(ours)
        # IDs of servers are valid only in one registry: the user must say that they are those of this database.
        unmapped = [] if ours == INSTANCE_ID else [ours, ALIASES.get(ours, ours)]
        candidates = unmapped if theirs is None else [theirs]
        heading = next((lowered[name.lower()] for name in candidates if name.lower() in lowered), None)
        if heading is None and theirs is not None:
            raise ValidationError(
                f"--map {ours}={theirs}: the source has no such column. It has {_list_headings(headings)}."
            )
        if heading is not None:
            if headings.count(heading) > 1:
                raise ValidationError(f"The column {heading!r} occurs more than once. Rename or delete the others.")
            places[ours] = headings.index(heading)
    missing = [name for name in layout.needed if name not in places]
    whose = ""
    if server is None and SERVER not in places and INSTANCE_ID not in places:
        missing.insert(0, SERVER)
        whose = "If all rows are of one server, name it with --server; a column of numbers is --map instance_id=NAME. "
    if missing:
        mapped = " ".join(f"--map {name}={_similar_heading(name, headings)}" for name in missing)
        raise ValidationError(
            f"The source has no column {', '.join(missing)}. Name them with {mapped}. {whose}It has "
            f"{_list_headings(headings)}."
        )
    return places


def _similar_heading(name: str, headings: Sequence[str]) -> str:
    """Return the heading most similar to a missing one, for a shell; NAME if none is similar."""
    close = get_close_matches(name, headings, n=1, cutoff=ALIKE)
    return shlex.quote(close[0]) if close else "NAME"


def _list_headings(headings: Sequence[str]) -> str:
    """List the headings of a source; if one hardly looks like a heading, only its beginning: it may be a secret."""
    are_headings = len(headings) > 1
    shown = [
        name if are_headings and _HEADING.fullmatch(name) else f"{printable(name[:BEGINNING])}..."
        for name in headings[:MOST_LISTED]
    ]
    more = len(headings) - MOST_LISTED
    return ", ".join(map(repr, shown)) + (f" and {more} more" if more > 0 else "")


ISO, DAY_FIRST, MONTH_FIRST = "iso", "day-first", "month-first"
ORDERED = (DAY_FIRST, MONTH_FIRST)
ORDERS = (ISO, *ORDERED)
_AS_WRITTEN = {ISO: "YYYY-MM-DD", DAY_FIRST: "as 31/01/2025, day first", MONTH_FIRST: "as 01/31/2025, month first"}
_ORDERED = re.compile(
    r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?:[T ]+(\d{1,2}):(\d\d)(?::(\d\d))?(?: ?([AP])M)?)?", re.ASCII | re.IGNORECASE
)
# A day on which no two of day, month and year are the same number.
_PROBE = datetime(2047, 11, 28)  # noqa: DTZ001 -- a day of the calendar
_HALF_DAY = 12
POINT, COMMA = ".", ","
# Separators of thousands, in addition to the mark that is not the decimal one; written by programs of many countries.
_SEPARATORS = " '\u2019\u00a0\u202f"
_NUMBER = re.compile(rf"[\d.,{_SEPARATORS}]+", re.ASCII)
_GROUPED = {
    mark: re.compile(
        rf"[1-9]\d{{0,2}}(?:([{re.escape(other)}{_SEPARATORS}])\d{{3}})(?:\1\d{{3}})*(?:{re.escape(mark)}\d*)?"
    )
    for mark, other in ((POINT, COMMA), (COMMA, POINT))
}


@dataclass(frozen=True)
class ValueFormats:
    """The formats of days and sizes; a column without its own mark has a decimal point."""

    dates: str = ISO
    """One of ORDERS, or a format for `strptime`."""
    decimals: Mapping[str, str] = field(default_factory=dict)

    def moment(self, text: str) -> datetime:
        """Return the time in a text, midnight if it is only a day; raises ValueError."""
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
        """Return a number without separators of thousands and with a decimal point; None if marks are misplaced."""
        mark = self.decimals.get(column, POINT)
        if _GROUPED[mark].fullmatch(text):
            text = re.sub(rf"[^\d{re.escape(mark)}]", "", text)
        misplaced = COMMA if mark == POINT else POINT
        return None if misplaced in text else text.replace(mark, POINT)


ISO_FORMATS = ValueFormats()


_YEAR = re.compile("%[yYGcx]")


def checked_date_format(written: str) -> str:
    """Return a date format; raises ValidationError if it is not one of ORDERS and has no day, month and year."""
    if written in ORDERS:
        return written
    with suppress(ValueError):
        # From Python 3.13 on, `strptime` warns of a day and month without a year.
        if _YEAR.search(written) and datetime.strptime(_PROBE.strftime(written), written) == _PROBE:  # noqa: DTZ007 -- a day of the calendar
            return written
    raise ValidationError(
        f"--date-format {written!r} must be {', '.join(ORDERS)}, or a format with day, month and year such as %d.%m.%Y."
    )


@dataclass(frozen=True)
class ServerDays:
    """The days of a server in a file; some between the first and the last are missing there."""

    server: str
    """Its name; empty: it is named by its number."""
    instance_id: str
    first_day: date
    last_day: date


@dataclass(frozen=True)
class FileSurvey:
    """How a whole file is written, and which servers have gaps in it."""

    conventions: ValueFormats = ISO_FORMATS
    with_gaps: Sequence[ServerDays] = ()


_Ways = dict[str, tuple[int, str]]
"""The first row, and its text, that shows each format: a mark or an order; with `?`, a possible one."""
MOST_DAYS = 50_000
"""Gaps are not searched for in a file with more different texts of days than this."""
ROWS_PER_UPDATE = 10_000


@dataclass(frozen=True)
class FileSurveyor:
    """Reads the rows of a file once; `date_format` and `decimal` None: to be detected."""

    layout: ImportColumns
    server: str | None = None
    """Server of all rows."""
    date_format: str | None = None
    decimal: str | None = None
    point_is_usual: bool = True
    """Whether a point that may separate thousands is a decimal point, as in files that separate by commas."""
    last_day: date = date.max
    """Rows after this day, and before FIRST_YEAR, will be refused, so they do not end a gap."""
    place: Callable[[int], str] = "row {}".format
    """Returns a description of the row of a position."""

    def survey(
        self, rows: Iterable[tuple[int, Sequence[str | None]]], progress: Callable[[int], None] = lambda _rows: None
    ) -> FileSurvey:
        """Return the formats of a file; raises ValidationError if they are ambiguous or contradictory."""
        columns = self.layout.columns
        places = {name: place for place, name in enumerate(columns)}
        sizes: dict[str, _Ways] = {name: {} for name in (*self.layout.sizes, *self.layout.optional_sizes)}
        days: dict[str, int] = {}
        days_of: dict[tuple[str, str], int] = {}
        dates: _Ways = {}
        read = 0
        for read, (position, row) in enumerate(rows, start=1):
            if read % ROWS_PER_UPDATE == 0:
                progress(read)
            if len(row) != len(columns):
                continue
            text = (row[places[DAY]] or "").strip()
            index = days.get(text)
            if index is None:
                _note(dates, _day_order(text), position, text)
                index = len(days)
                if index < MOST_DAYS:
                    days[text] = index
            is_negative = False
            for column, ways in sizes.items():
                size = row[places[column]]
                if size and not size.isdecimal():
                    _note(ways, _decimal_mark(size.strip()), position, size)
                    is_negative = is_negative or size.lstrip().startswith("-")
            if index < MOST_DAYS and not is_negative:
                name = self.server or (row[places[SERVER]] or "").strip()
                key = (name, "" if name else (row[places[INSTANCE_ID]] or "").strip())
                days_of[key] = days_of.get(key, 0) | 1 << index
        progress(read)
        conventions = ValueFormats(self._dates(dates), self._decimals(sizes))
        return FileSurvey(conventions, _with_gaps(dict(self._valid(days, conventions)), days_of))

    def _valid(self, days: Mapping[str, int], conventions: ValueFormats) -> Iterator[tuple[int, date]]:
        for text, index in days.items():
            with suppress(ValueError):
                day = conventions.moment(text).date()
                if day.year >= FIRST_YEAR and day <= self.last_day:
                    yield index, day

    def _dates(self, ways: _Ways) -> str:
        if self.date_format is not None:
            return self.date_format
        if len(_certain_ways(ways)) > 1:
            (first, one), (second, other) = (ways[order] for order in ORDERED)
            raise ValidationError(
                f"{DAY} {one!r:.40} in {self.place(first)} can only be day-first, {other!r:.40} in "
                f"{self.place(second)} only month-first. Correct the file, or choose with "
                "--date-format."
            )
        if not _certain_ways(ways) and "?" in ways:
            position, text = ways["?"]
            readings = [human_day(ValueFormats(order).moment(text).date()) for order in ORDERED]
            raise ValidationError(
                f"{DAY} {text!r:.40} in {self.place(position)} is {readings[0]} (--date-format day-first) or "
                f"{readings[1]} (--date-format month-first), and the file contains no date that decides it."
            )
        # With day and month of the same number, both orders are right.
        return next(iter(_certain_ways(ways)), DAY_FIRST if ways else ISO)

    def _decimals(self, columns: Mapping[str, _Ways]) -> dict[str, str]:
        if self.decimal is not None:
            return {column: self.decimal for column, ways in columns.items() if ways}
        elsewhere = {mark for ways in columns.values() for mark in _certain_ways(ways)}
        return {column: self._decimal(column, ways, elsewhere) for column, ways in columns.items()}

    def _decimal(self, column: str, ways: _Ways, elsewhere: set[str]) -> str:
        marks = _certain_ways(ways)
        if len(marks) > 1:
            (first, one), (second, other) = (ways[mark] for mark in (POINT, COMMA))
            raise ValidationError(
                f"{column} {one!r:.40} in {self.place(first)} has a decimal point, {other!r:.40} in "
                f"{self.place(second)} a decimal comma. Correct the file, or choose with "
                "--decimal . or --decimal ,"
            )
        if not marks and ways and len(elsewhere) == 1:
            marks = [*elsewhere]
        if marks or not ways or (self.point_is_usual and set(ways) == {f"?{POINT}"}):
            return next(iter(marks), POINT)
        position, text = next(iter(ways.values()))
        digits, decimals = re.sub(r"\D", "", text), re.sub(r"[.,]", POINT, text)
        with_point, with_comma = (decimals, digits) if POINT in text else (digits, decimals)
        raise ValidationError(
            f"{column} {text!r:.40} in {self.place(position)} is {with_point} (--decimal .) or {with_comma} "
            "(--decimal ,), and the file does not show which."
        )


def _note(ways: _Ways, way: str | None, position: int, text: str) -> None:
    if way is not None:
        ways.setdefault(way, (position, text))


def _certain_ways(ways: _Ways) -> list[str]:
    return [way for way in ways if not way.startswith("?")]


def _day_order(text: str) -> str | None:
    """Return the order of day and month that a text can only have; `?` for either one, `?=` if both are the same day.

    None: it has neither.
    """
    written = _ORDERED.fullmatch(text)
    if written is None:
        return None
    moments = {}
    for order in ORDERED:
        with suppress(ValueError):
            moments[order] = ValueFormats(order).moment(text)
    if len(moments) == len(ORDERED):
        return "?=" if moments[DAY_FIRST] == moments[MONTH_FIRST] else "?"
    return next(iter(moments), None)


def _decimal_mark(text: str) -> str | None:
    """Return the only possible decimal mark of a number; `?` and the mark if it may separate thousands; None: none."""
    if not _NUMBER.fullmatch(text):
        return None
    present = [sign for sign in text if sign in (POINT, COMMA)]
    if len(set(present)) != 1:
        return present[-1] if present else None
    mark, other = present[0], COMMA if present[0] == POINT else POINT
    if len(present) > 1:
        return other
    return f"?{mark}" if _GROUPED[other].fullmatch(text) else mark


def _with_gaps(by_index: Mapping[int, date], days_of: Mapping[tuple[str, str], int]) -> list[ServerDays]:
    """Return the servers with fewer days than from their first to their last."""

    @cache  # Most servers have the same days.
    def ends(indexes: int) -> tuple[date, date] | None:
        days = {
            by_index[index] for index, bit in enumerate(reversed(f"{indexes:b}")) if bit == "1" and index in by_index
        }
        first, last = min(days, default=date.max), max(days, default=date.min)
        return (first, last) if (last - first).days >= len(days) > 0 else None

    return [ServerDays(*server, *span) for server, indexes in days_of.items() if (span := ends(indexes)) is not None]


class _BadValue(Exception):  # noqa: N818 -- becomes a problem
    """A text that cannot be a value of its column."""


class RowReader:
    """Turns the texts of a row into values."""

    def __init__(  # noqa: PLR0913 -- what a file does not say of itself
        self,
        layout: ImportColumns,
        unit: str,
        zone: ZoneInfo,
        now: datetime,
        *,
        server: str | None = None,
        conventions: ValueFormats = ISO_FORMATS,
        place: Callable[[int], str] = "row {}".format,
    ) -> None:
        """Read sizes in `unit`, days and numbers by `conventions`; every row belongs to `server` if one is given.

        `place` returns a description of the row of a position.
        """
        self.layout, self.unit, self.zone, self.now, self.server = layout, unit, zone, now, server
        self.place = place
        self._today = now.astimezone(zone).date()
        self._conventions = conventions
        # A file has few days, and many rows of each.
        self._day = lru_cache(maxsize=4096)(partial(_day, conventions))
        # A format of days contains no times.
        self._times = conventions if conventions.dates in ORDERS else ISO_FORMATS
        self._places = {name: place for place, name in enumerate(layout.columns)}

    def read(self, position: int, texts: Sequence[str | None]) -> tuple[object, ...] | str:
        """Return (position, server, instance id, keys, sizes, counts, exact bytes, time), or the problem."""
        try:
            return (position, *self._values(texts))
        except _BadValue as bad:
            return f"{self.place(position)}: {bad}"

    def _values(self, texts: Sequence[str | None]) -> list[object]:
        layout = self.layout
        if len(texts) != len(layout.columns):
            raise _BadValue("its number of fields differs from that of the headings")
        cells = {name: (texts[place] or "").strip() for name, place in self._places.items()}
        # A database may be named with blanks at its ends.
        name = texts[self._places[DATABASE_NAME]] if DATABASE_NAME in self._places else None
        day = self._day(cells[DAY])
        if day > self._today:
            raise _BadValue(f"day {day} is in the future")
        values: list[object] = [*self._server(cells)]
        values += [_database(name) if key == DATABASE_NAME else day for key in layout.keys]
        amounts: list[Decimal | None] = [self._amount(cells, column) for column in layout.sizes]
        amounts += [self._amount(cells, column) if cells[column] else None for column in layout.optional_sizes]
        times, parts = UNITS[self.unit]
        # Whole megabytes, rounded down, as the collection does it.
        values += [None if amount is None else int(amount * times // parts) for amount in amounts]
        values += [_count(cells, column) for column in layout.counts]
        values += [int(amount) if amount is not None and self.unit == BYTES else None for amount in amounts]
        return [*values, min(_moment(self._times, cells[COLLECTED_AT], day, self.zone), self.now)]

    def values_of(self, row: Sequence[object]) -> dict[str, object]:
        """Return a row as it was read, by column: server, database, day, and the sizes in MiB."""
        layout = self.layout
        names = (SERVER, INSTANCE_ID, *layout.keys, *layout.sizes, *layout.optional_sizes)
        return {name: value for name, value in zip(names, row[1:], strict=False) if value is not None}

    def _server(self, cells: Mapping[str, str]) -> tuple[str | None, int | None]:
        if self.server is not None:
            return self.server, None
        if cells[SERVER]:
            return _name(SERVER, cells[SERVER]), None
        if not cells[INSTANCE_ID]:
            raise _BadValue("it names no server")
        return None, _count(cells, INSTANCE_ID)

    def _amount(self, cells: Mapping[str, str], column: str) -> Decimal:
        text = cells[column]
        if text.startswith("-"):
            raise _BadValue(f"{column} {text!r:.40} is not a valid size")
        plain = self._conventions.plain(text, column)
        if plain is None or not _PLAIN.fullmatch(plain):
            raise _BadValue(f"{column} {text!r:.40} is not a number")
        try:
            amount = Decimal(plain)
        except InvalidOperation:
            # An exponent of twenty digits.
            raise _BadValue(f"{column} {text!r:.40} is not a valid size") from None
        times, parts = UNITS[self.unit]
        # Before anything is multiplied: 1e999999999 would not fit into memory, and quotients have 28 digits at most.
        if amount.adjusted() > LARGEST_EXPONENT or amount * times // parts > LARGEST_MB:
            raise _BadValue(f"{column} {text!r:.40} is not a valid size: the maximum is 8 EiB")
        return amount


def _database(name: str | None) -> str:
    if not name:
        raise _BadValue("it names no database")
    return _name(DATABASE_NAME, name)


def _name(column: str, name: str) -> str:
    if len(name) > LONGEST_NAME:
        raise _BadValue(f"{column} {name[:40]!r}... is longer than {LONGEST_NAME} characters")
    if "\0" in name:
        raise _BadValue(f"{column} {name!r:.40} contains a NUL character")
    return name


def _day(conventions: ValueFormats, text: str) -> date:
    try:
        # Files of other programs write a day as its midnight.
        moment = conventions.moment(text)
    except ValueError:
        raise _BadValue(f"day {text!r:.40} is not {_AS_WRITTEN.get(conventions.dates, conventions.dates)}") from None
    if (moment.hour, moment.minute, moment.second, moment.microsecond) != (0, 0, 0, 0):
        raise _BadValue(f"day {text!r:.40} has a time; write the day in CAPACITY_TIMEZONE")
    if moment.year < FIRST_YEAR:
        raise _BadValue(f"day {text!r:.40} is before {FIRST_YEAR}")
    return moment.date()


def _count(cells: Mapping[str, str], column: str) -> int:
    count = count_of(cells[column])
    if count is None:
        raise _BadValue(f"{column} {cells[column]!r:.40} is not a whole number up to {LARGEST_COUNT}")
    return count


def count_of(text: str) -> int | None:
    """Return a whole number up to LARGEST_COUNT; None for any other text."""
    if not (text.isascii() and text.isdecimal()) or len(text) > MOST_DIGITS:
        return None
    return count if (count := int(text)) <= LARGEST_COUNT else None


@lru_cache(maxsize=4096)
def _noon(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=zone).astimezone(UTC)


def _moment(times: ValueFormats, text: str, day: date, zone: ZoneInfo) -> datetime:
    """Return the time of the measurement; if it is not given, noon of its day."""
    if not text:
        return _noon(day, zone)
    try:
        moment = times.moment(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _BadValue(f"collected_at {text!r:.40} is not a time such as 2025-01-31T03:00:00+08:00") from None
