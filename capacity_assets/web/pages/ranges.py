"""The windows of a chart: the usual ones of its period, those of the last days, or those between two days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.reading.sizes import windows_back
from capacity_assets.reading.windows import oldest_window
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.reader import Reader

ALL, LONGEST_DAYS = "all", 3660
RANGES = {"30d": ("30 days", 30), "90d": ("90 days", 90), "1y": ("1 year", 366), ALL: ("All", LONGEST_DAYS)}
"""Choices of how many days up to the newest window a chart shows, with their names; ALL begins where windows do."""
OLDEST_SECONDS = 300
MOST_WINDOWS, MOST_FLEET_WINDOWS = 400, 130
"""A range of more windows is shown by the next longer period. A window of the fleet has a row of each server."""


@dataclass(frozen=True)
class ChartRange:
    """What a chart shows. `name` is a key of RANGES, "custom", or None for the usual windows of the period."""

    name: str | None
    first: date | None
    last: date | None
    period: str
    is_longer_period: bool = False
    """Whether the chosen period has too many windows in the range, so that a longer one is shown."""
    is_compared: bool = False
    """Whether the sizes of a year before are shown too."""


def shown_range(reader: Reader, query: PageQuery, default: str = "daily", most: int = MOST_WINDOWS) -> ChartRange:
    """Return the range that the address names, by a period that fits; raises ValidationError, DBAPIError."""
    chosen = chosen_range(query, default)
    if chosen.name == ALL:
        chosen = replace(chosen, first=reader.kept_of("oldest window", oldest_window, OLDEST_SECONDS))
    return fitting_period(chosen, query.today, most)


def chosen_range(query: PageQuery, default: str = "daily") -> ChartRange:
    """Return the range that the address names; raises ValidationError where it names none that exists."""
    period, name = query.period(default).name, query.text("range")
    first, last = query.day("first"), query.day("last")
    is_compared = query.one_of("compare", ("", "year")) == "year"
    if name is not None and name not in RANGES:
        raise ValidationError(f"range must be one of {', '.join(RANGES)}.")
    if first is not None and last is not None and first > last:
        raise ValidationError(f"The first day, {first}, lies after the last day, {last}.")
    return ChartRange("custom" if first or last else name, first, last, period, is_compared=is_compared)


def fitting_period(chosen: ChartRange, today: date, most: int = MOST_WINDOWS) -> ChartRange:
    """Return the range with the shortest period, from the chosen one on, that has at most so many windows in it."""
    if chosen.name is None:
        return chosen
    first, last = _days(chosen, today)
    days = (last - first).days + 1
    longer = list(PERIODS.values())[list(PERIODS).index(chosen.period) :]
    period = next((one for one in longer if days / one.window_of(first).days <= most), longer[-1])
    return replace(chosen, period=period.name, is_longer_period=period.name != chosen.period)


def windows_in(chosen: ChartRange, newest: Window) -> list[Window]:
    """Return the windows of a range up to the newest one, oldest first; none where the range begins after it."""
    period = PERIODS[chosen.period]
    if chosen.name is None:
        return windows_back(period, newest)
    first, last = _days(chosen, newest.end)
    last = min(last, newest.end)
    return list(period.windows_between(first, last)) if first <= last else []


def earlier_windows(chosen: ChartRange, windows: Sequence[Window]) -> list[Window]:
    """Return the windows of a year before, one for each; empty unless they are compared."""
    return [PERIODS[chosen.period].year_before(window) for window in windows] if chosen.is_compared else []


def _days(chosen: ChartRange, end: date) -> tuple[date, date]:
    last = chosen.last or end
    _, days = RANGES.get(chosen.name or "", RANGES[ALL])
    return chosen.first or last - timedelta(days=days - 1), last
