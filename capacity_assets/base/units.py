"""Sizes, days and lists as people read them. Everywhere else, figures are whole megabytes.

Units are binary and named so: a column in `_mb` counts MiB (1,048,576 bytes), a GiB is 1,024 of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from difflib import get_close_matches
from typing import NamedTuple


class _Unit(NamedTuple):
    name: str
    size_mb: int
    places: int
    least_mb: int
    """A value that rounds up to 1,024 of the smaller unit is 1 of this one."""


BYTES_PER_MB = 1024 * 1024
BYTES_PER_GB = 1024 * BYTES_PER_MB
LARGEST_BYTES = 2**63 - 1
LARGEST_MB = LARGEST_BYTES // BYTES_PER_MB
"""The largest possible size, 8 EiB: the maximum size of files and file systems with 63-bit offsets."""
IMPOSSIBLE_SIZES = "sizes above 8 EiB, alone or together with the rest of the fleet"
"""Why a server that was measured is in no sum."""
MB_PER_GB = 1024
_STEP = 1024
# A decimal of a larger unit hides more.
_UNITS = (
    _Unit("PiB", _STEP**3, 3, math.ceil((_STEP - 0.005) * _STEP**2)),
    _Unit("TiB", _STEP**2, 2, math.ceil((_STEP - 0.05) * _STEP)),
    _Unit("GiB", _STEP, 1, _STEP),
)
_MOST_PLACES = 9
# Smaller changes per day have decimals.
_SMALL_RATE_MB = 10
# The printed difference of two sizes may differ from the real one by a tenth.
_TOLERANCE = 0.1


def human_mb(size_mb: int) -> str:
    """Render megabytes with a fitting unit: 2048 -> '2.0 GiB', 2,621,440 -> '2.50 TiB'."""
    unit = _unit_of(size_mb)
    return f"{size_mb:,} MiB" if unit is None else f"{size_mb / unit.size_mb:,.{unit.places}f} {unit.name}"


def human_change_mb(change_mb: int) -> str:
    """Render a change with its sign: 2048 -> '+2.0 GiB'."""
    return f"+{human_mb(change_mb)}" if change_mb > 0 else human_mb(change_mb)


def human_rate(mb_per_day: float) -> str:
    """Render a change per day with its sign: 2048 -> '+2.0 GiB per day', 0.4 -> '+0.4 MiB per day'."""
    if abs(mb_per_day) >= _SMALL_RATE_MB:
        return f"{human_change_mb(round(mb_per_day))} per day"
    rate = round(mb_per_day, 1) or round(mb_per_day, 3)
    return f"{rate:+g} MiB per day" if rate else "0 MiB per day"


def whole_mb(size_bytes: float) -> int:
    """Return bytes in MiB, cut toward zero."""
    return int(size_bytes / BYTES_PER_MB)


def percent_of(change_mb: int, of_mb: int) -> Decimal | None:
    """Return a change in percent, one decimal, half away from zero; None from 0."""
    if not of_mb:
        return None
    return (Decimal(change_mb) * 100 / Decimal(of_mb)).quantize(Decimal("0.1"), ROUND_HALF_UP)


def human_percent(change_mb: int, of_mb: int) -> str:
    """Render a change in percent with its sign: 5 of 1000 -> '+0.5 %'."""
    share = percent_of(change_mb, of_mb)
    if share is None:
        return "unknown"
    return f"{share:+,} %" if share else "0.0 %"


def human_probability(probability: float) -> str:
    """Render a probability: 0.3 -> '30 %'.

    It is rounded down, so that 50 % is only shown with a fill date, and a threshold only if it is reached.
    """
    # 100 times 0.57 is a little less than 57.
    percent = math.floor(round(100 * probability, 6))
    return f"{percent} %" if percent or not probability else "under 1 %"


def human_pair_mb(one_mb: int, other_mb: int) -> tuple[str, str]:
    """Render two sizes in one unit, with as many decimals as their difference needs to be seen."""
    unit = _unit_of(max(abs(one_mb), abs(other_mb)))
    if unit is None:
        return f"{one_mb:,} MiB", f"{other_mb:,} MiB"
    difference = abs(one_mb - other_mb) / unit.size_mb
    places = unit.places
    while places < _MOST_PLACES and difference:
        printed = abs(round(one_mb / unit.size_mb, places) - round(other_mb / unit.size_mb, places))
        if abs(printed - difference) <= difference * _TOLERANCE:
            break
        places += 1
    return f"{one_mb / unit.size_mb:,.{places}f} {unit.name}", f"{other_mb / unit.size_mb:,.{places}f} {unit.name}"


def _unit_of(size_mb: int) -> _Unit | None:
    """Return the largest unit that fits; None for MiB."""
    return next((unit for unit in _UNITS if abs(size_mb) >= unit.least_mb), None)


# Not those of the locale, so that pages are the same on every machine.
MONTH_NAMES = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONTHS = tuple(name[:3] for name in MONTH_NAMES)


def human_day(day: date) -> str:
    """Render a day: '28 Nov 2026', in every locale."""
    return f"{day.day} {human_month(day)}"


def human_month(day: date) -> str:
    """Render the month of a day: 'Nov 2026'."""
    return f"{MONTHS[day.month - 1]} {day.year}"


def human_days(first: date, last: date) -> str:
    """Render a range of days, with the common part only once: '23 to 29 Nov 2026', or '28 Dec 2026 to 3 Jan 2027'."""
    if first == last:
        return human_day(first)
    if first.year != last.year:
        return f"{human_day(first)} to {human_day(last)}"
    begins = f"{first.day}" if first.month == last.month else f"{first.day} {MONTHS[first.month - 1]}"
    return f"{begins} to {human_day(last)}"


def human_range(early: date | None, late: date | None, beyond: date) -> str:
    """Render the range of a fill date: '17 Feb to 17 Mar 2027', or '10 Sep 2027 to beyond Nov 2027' without a late day.

    `beyond` is the last day of the forecast. Empty if the range is a single day or unknown.
    """
    if early is None or early == late:
        return ""
    if late is not None:
        return human_days(early, late)
    return f"{human_day(early)} to beyond {human_month(beyond)}"


def printable(text: str) -> str:
    """Escape control characters, which a terminal would obey, and line breaks, so that a line stays a line."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def natural_key(name: str) -> tuple[object, ...]:
    """Sort names as people count: db-2 before db-10."""
    parts = re.split(r"(\d+)", name.casefold())
    return (*((1, int(part), "") if part.isascii() and part.isdecimal() else (0, 0, part) for part in parts), name)


def counted(count: int, noun: str) -> str:
    """Render a number of things: '1 server', '2,000 servers'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_of(names: Iterable[object], shown: int) -> str:
    """List the first names in one line and count the rest: 'a, b and 3 more'."""
    listed = [printable(str(name)) for name in names]
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more:,} more" if more > 0 else "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the question whether a similar known name was meant, beginning with a space; empty if none is similar."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


# At the beginning, and after a separator of cells other than the comma, such as `;` in Germany.
FORMULA = r"(?<![^;\t\r\n])([=+@\t\r\n-])"
"""The characters that begin a formula, as a pattern for Python and PostgreSQL."""
_FORMULA = re.compile(FORMULA)


def as_plain_text(text: str) -> str:
    """Return a text that a spreadsheet does not run as a formula; it hides the apostrophe before it."""
    return _FORMULA.sub(r"'\1", text)
