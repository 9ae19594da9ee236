"""What a row of history is: its columns by level, and how their texts become values, or a problem with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from zoneinfo import ZoneInfo

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR
from capacity_assets.base.units import LARGEST_MB, printable
from capacity_assets.history.conventions import (
    DAY_FIRST,
    ISO,
    MONTH_FIRST,
    ORDERS,
    WRITTEN_AS_ISO,
    Conventions,
)

# How many megabytes a unit is, as a fraction.
UNITS = {"bytes": (1, 1024**2), "kb": (1, 1024), "mb": (1, 1), "gb": (1024, 1)}
SERVER, INSTANCE_ID, DATABASE_NAME, DAY, COLLECTED_AT = "server", "instance_id", "database", "day", "collected_at"
# Names the legacy tables have for ours.
ALIASES = {DATABASE_NAME: "database_name", DAY: "collected_date"}
LARGEST_COUNT = 2**31 - 1
LONGEST_NAME = 255
MOST_DIGITS = 30
LARGEST_EXPONENT = 20
"""Of ten; more than that of the maximum size in bytes."""
# As much of a source's headings is shown.
MOST_LISTED, BEGINNING = 20, 4
_HEADING = re.compile(r"[A-Za-z][A-Za-z _]{,30}")
BYTES = "bytes"
# Other alphabets' digits and `1_000` are none.
_PLAIN = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+", re.ASCII)
_AS_WRITTEN = {ISO: "YYYY-MM-DD", DAY_FIRST: "as 31/01/2025, day first", MONTH_FIRST: "as 01/31/2025, month first"}


@dataclass(frozen=True)
class ImportColumns:
    """The columns of a level: which hold sizes, which of them may be missing or empty."""

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
        """Those a source must have, beside a column for the server."""
        return (*self.keys, *self.sizes, *self.counts)


def layout_of(level: Level) -> ImportColumns:
    """Return the columns of a level: keys, then what is measured."""
    sizes = [name for name in level.values if name.endswith("_mb")]
    return ImportColumns(
        (DATABASE_NAME, DAY) if "database_name" in level.keys else (DAY,),
        tuple(name for name in sizes if not level.source.c[name].nullable),
        tuple(name for name in sizes if level.source.c[name].nullable),
        tuple(name for name in level.values if name not in sizes),
    )


class _BadValue(Exception):  # noqa: N818 -- becomes a problem
    """A text that is no value of its column."""


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
        conventions: Conventions = WRITTEN_AS_ISO,
        place: Callable[[int], str] = "row {}".format,
    ) -> None:
        """Read sizes in `unit`, days and numbers by `conventions`; every row is of `server` if one is given.

        `place` says in words which row a position is.
        """
        self.layout, self.unit, self.zone, self.now, self.server = layout, unit, zone, now, server
        self.place = place
        self._today = now.astimezone(zone).date()
        self._conventions = conventions
        # A file has few days and many rows of each.
        self._day = lru_cache(maxsize=4096)(partial(_day, conventions))
        # A format of days says nothing of times.
        self._times = conventions if conventions.dates in ORDERS else WRITTEN_AS_ISO
        self._places = {name: place for place, name in enumerate(layout.columns)}

    def read(self, position: int, texts: Sequence[str | None]) -> tuple[object, ...] | str:
        """Return (position, server, instance id, keys, sizes, counts, exact bytes, time), or where what is wrong."""
        try:
            return (position, *self._values(texts))
        except _BadValue as bad:
            return f"{self.place(position)}: {bad}"

    def _values(self, texts: Sequence[str | None]) -> list[object]:
        layout = self.layout
        if len(texts) != len(layout.columns):
            raise _BadValue("it has another number of fields than the heading")
        cells = {name: (texts[place] or "").strip() for name, place in self._places.items()}
        # A database may be named with blanks at its ends.
        name = texts[self._places[DATABASE_NAME]] if DATABASE_NAME in self._places else None
        day = self._day(cells[DAY])
        if day > self._today:
            raise _BadValue(f"day {day} lies ahead")
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

    def shown(self, row: Sequence[object]) -> dict[str, object]:
        """Return what a row was read as, by column: whose size of which day it is, and the sizes in MiB."""
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
    if len(name) > LONGEST_NAME or "\0" in name:
        raise _BadValue(f"{column} {name!r:.40} is not a valid name")
    return name


def _day(conventions: Conventions, text: str) -> date:
    try:
        # Files of other programs write a day as its midnight.
        moment = conventions.moment(text)
    except ValueError:
        raise _BadValue(f"day {text!r:.40} is not {_AS_WRITTEN.get(conventions.dates, conventions.dates)}") from None
    if (moment.hour, moment.minute, moment.second, moment.microsecond) != (0, 0, 0, 0):
        raise _BadValue(f"day {text!r:.40} has a time; write the day in CAPACITY_TIMEZONE")
    if moment.year < FIRST_YEAR:
        raise _BadValue(f"day {text!r:.40} lies before {FIRST_YEAR}")
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


def _moment(times: Conventions, text: str, day: date, zone: ZoneInfo) -> datetime:
    """Return when it was measured; where that is not told, noon of its day."""
    if not text:
        return _noon(day, zone)
    try:
        moment = times.moment(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _BadValue(f"collected_at {text!r:.40} is not a time such as 2025-01-31T03:00:00+08:00") from None


def column_positions(
    headings: Sequence[str], layout: ImportColumns, mapping: Mapping[str, str], server: str | None
) -> dict[str, int]:
    """Find our columns among the headings; raises ValidationError: one is missing, mapped to nothing, or twice."""
    unknown = sorted(set(mapping) - set(layout.columns))
    if unknown:
        raise ValidationError(f"--map {unknown[0]}=...: there is no such column; ours are {', '.join(layout.columns)}.")
    places: dict[str, int] = {}
    for ours in layout.columns:
        theirs = mapping.get(ours)
        # Numbers of servers mean something in one registry only: whether they are ours, the user must say.
        ours_unasked = [] if ours == INSTANCE_ID else [ours, ALIASES.get(ours, ours)]
        candidates = [theirs] if theirs is not None else ours_unasked
        # Spreadsheets and databases write them in capitals.
        lowered = {name.lower(): name for name in reversed(headings)}
        heading = next((lowered[name.lower()] for name in candidates if name.lower() in lowered), None)
        if heading is None and theirs is not None:
            raise ValidationError(f"--map {ours}={theirs}: the source has no such column. It has {_listed(headings)}.")
        if heading is not None:
            if headings.count(heading) > 1:
                raise ValidationError(f"The column {heading!r} is there more than once; which one is meant?")
            places[ours] = headings.index(heading)
    missing = [name for name in layout.needed if name not in places]
    whose = ""
    if server is None and SERVER not in places and INSTANCE_ID not in places:
        missing.insert(0, SERVER)
        whose = "If all rows are of one server, name it with --server; a column of numbers is --map instance_id=NAME. "
    if missing:
        mapped = " ".join(f"--map {name}=NAME" for name in missing)
        raise ValidationError(
            f"The source has no column {', '.join(missing)}. Say which columns these are: {mapped}. {whose}It has "
            f"{_listed(headings)}. Nothing was imported."
        )
    return places


def _listed(headings: Sequence[str]) -> str:
    """Name the headings of a source; of what hardly is one, only how it begins: it may be a secret."""
    are_headings = len(headings) > 1
    shown = [
        name if are_headings and _HEADING.fullmatch(name) else f"{printable(name[:BEGINNING])}..."
        for name in headings[:MOST_LISTED]
    ]
    more = len(headings) - MOST_LISTED
    return ", ".join(map(repr, shown)) + (f" and {more} more" if more > 0 else "")
