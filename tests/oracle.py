"""What docs/semantics.md says, computed naively with exact fractions: one window at a time, no SQL, no shared code.

Its own calendar, its own rounding. Slow and obvious on purpose.
"""

from __future__ import annotations

import calendar
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

Row = Mapping[str, object]
Figures = dict[str, object]


def window(period: str, day: date) -> tuple[date, date]:
    if period == "daily":
        return day, day
    if period == "weekly":
        monday = day - timedelta(days=day.isoweekday() - 1)
        return monday, monday + timedelta(days=6)
    if period == "monthly":
        first_month = last_month = day.month
    elif period == "quarterly":
        first_month = {1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4, 7: 7, 8: 7, 9: 7, 10: 10, 11: 10, 12: 10}[day.month]
        last_month = first_month + 2
    elif period == "yearly":
        first_month, last_month = 1, 12
    else:
        raise ValueError(period)
    return date(day.year, first_month, 1), date(day.year, last_month, calendar.monthrange(day.year, last_month)[1])


def windows(period: str, days: Iterable[date]) -> list[tuple[date, date]]:
    return sorted({window(period, day) for day in days})


def mean(values: Sequence[int]) -> Fraction:
    return Fraction(sum(values), len(values))


def two_decimals(value: Fraction) -> Decimal:
    """Half away from zero."""
    hundredths = math.floor(abs(value) * 100 + Fraction(1, 2))
    # Not by dividing: that rounds to the digits of the context.
    return Decimal(f"{hundredths if value >= 0 else -hundredths}e-2")


def change(now: Sequence[int], before: Sequence[int]) -> tuple[int | None, Decimal | None]:
    if not now or not before:
        return None, None
    difference = mean(now) - mean(before)
    percent = None if mean(before) == 0 else two_decimals(difference / mean(before) * 100)
    return math.trunc(difference), percent


# 20 % per year: a day, 7 days, a month, three months, a year of it.
THRESHOLDS = {
    "daily": Decimal("0.05"),
    "weekly": Decimal("0.38"),
    "monthly": Decimal("1.67"),
    "quarterly": Decimal(5),
    "yearly": Decimal(20),
}


def trend(period: str, now: Sequence[int], before: Sequence[int]) -> str | None:
    if not before:
        return None
    if mean(before) == 0:
        return "growing" if mean(now) > 0 else "stable"
    percent = change(now, before)[1]
    assert percent is not None
    threshold = THRESHOLDS[period]
    return "growing" if percent > threshold else "shrinking" if percent < -threshold else "stable"


def year_before(period: str, bounds: tuple[date, date]) -> tuple[date, date]:
    """The same window a year before: 52 weeks for a week, else the same date; 28 February for the 29th."""
    first = bounds[0]
    if period == "weekly":
        return first - timedelta(days=364), first - timedelta(days=358)
    day = 28 if (first.month, first.day) == (2, 29) else first.day
    return window(period, date(first.year - 1, first.month, day))


def yearly_rate(period: str, now: Sequence[int], before: Sequence[int]) -> Decimal | None:
    """Growth of the mean, kept up for a year; only of windows that are months."""
    windows_a_year = {"monthly": 12, "quarterly": 4, "yearly": 1}.get(period)
    if windows_a_year is None or not now or not before or mean(before) == 0:
        return None
    ratio = mean(now) / mean(before)
    # Below zero there is no factor by which a size grew.
    return None if ratio < 0 else two_decimals((ratio**windows_a_year - 1) * 100)


def _inside(rows: Iterable[Row], bounds: tuple[date, date]) -> list[Row]:
    return [row for row in rows if bounds[0] <= row["collected_date"] <= bounds[1]]  # type: ignore[operator]


def _further(period: str, days: Mapping[date, int], bounds: tuple[date, date], stem: str, last: str) -> Figures:
    """Size on the last measured day, growth within the window, against the year before, per year."""

    def between(limits: tuple[date, date]) -> list[int]:
        return [days[day] for day in sorted(days) if limits[0] <= day <= limits[1]]

    now, before = between(bounds), between(window(period, bounds[0] - timedelta(days=1)))
    year_change, year_percent = change(now, between(year_before(period, bounds)))
    return {
        last: now[-1],
        f"{stem}_growth_in_window_mb": now[-1] - now[0] if len(now) > 1 else None,
        f"{stem}_year_change_mb": year_change,
        f"{stem}_year_change_percent": year_percent,
        f"{stem}_yearly_rate_percent": yearly_rate(period, now, before),
    }


def _kept(bounds: tuple[date, date], column: str, values: Sequence[int], *, counted: bool) -> Figures:
    """Exact sum, and count of values where a sample may lack it; a single day keeps neither.

    No used space is no count, as in rows of before it was measured.
    """
    is_longer = bounds[0] < bounds[1]
    kept: Figures = {f"sum_{column}": sum(values) if values and is_longer else None}
    has_count = is_longer and (values or column != "used_size_mb")
    return kept | ({f"count_{column}": len(values) if has_count else None} if counted else {})


def _values(rows: Iterable[Row], column: str) -> list[int]:
    return [row[column] for row in rows if row.get(column) is not None]  # type: ignore[misc]


def database_figures(rows: Sequence[Row], period: str, bounds: tuple[date, date]) -> Figures | None:
    """Figures of one database in one window, or None without a raw row in it."""
    now = _inside(rows, bounds)
    before = _inside(rows, window(period, bounds[0] - timedelta(days=1)))
    if not now:
        return None
    result: Figures = {"period_end": bounds[1], "data_count": len(now)}
    for infix in ("size", "data_size", "log_size", "used_size"):
        values, earlier = _values(now, f"{infix}_mb"), _values(before, f"{infix}_mb")
        result[f"avg_{infix}_mb"] = math.floor(mean(values)) if values else None
        result[f"max_{infix}_mb"] = max(values, default=None)
        result[f"min_{infix}_mb"] = min(values, default=None)
        result[f"{infix}_change_mb"], result[f"{infix}_change_percent"] = change(values, earlier)
        result |= _kept(bounds, f"{infix}_mb", values, counted=infix != "size")
    by_day: dict[date, int] = {row["collected_date"]: row["size_mb"] for row in rows}  # type: ignore[misc]
    result |= _further(period, by_day, bounds, "size", "last_size_mb")
    result["growth_rate"] = result["size_change_percent"]
    result["trend_direction"] = trend(period, _values(now, "size_mb"), _values(before, "size_mb"))
    return result


def _by_day(rows: Iterable[Row], column: str) -> dict[date, int]:
    days: dict[date, int] = {}
    for row in rows:
        days[row["collected_date"]] = days.get(row["collected_date"], 0) + row[column]  # type: ignore[index,operator,arg-type]
    return days


def _per_day(rows: Iterable[Row], column: str) -> list[int]:
    return list(_by_day(rows, column).values())


def instance_figures(rows: Sequence[Row], period: str, bounds: tuple[date, date]) -> Figures | None:
    """Figures of one server in one window, or None without a live raw row in it."""
    live = [row for row in rows if not row["is_deleted"]]
    now = _inside(live, bounds)
    before = _inside(live, window(period, bounds[0] - timedelta(days=1)))
    if not now:
        return None
    sizes, counts = _per_day(now, "total_size_mb"), _per_day(now, "database_count")
    sizes_before, counts_before = _per_day(before, "total_size_mb"), _per_day(before, "database_count")
    size_change, size_percent = change(sizes, sizes_before)
    count_change, count_percent = change(counts, counts_before)
    return {
        "period_end": bounds[1],
        "total_size_mb": math.floor(mean(sizes)),
        "avg_size_mb": math.floor(Fraction(sum(sizes), sum(counts))) if sum(counts) else 0,
        "max_size_mb": max(sizes),
        "min_size_mb": min(sizes),
        "data_count": len(sizes),
        "database_count": math.floor(mean(counts)),
        "avg_database_count": two_decimals(mean(counts)),
        "max_database_count": max(counts),
        "min_database_count": min(counts),
        **_further(period, _by_day(live, "total_size_mb"), bounds, "total_size", "last_total_size_mb"),
        "total_size_change_mb": size_change,
        "total_size_change_percent": size_percent,
        "database_count_change": count_change,
        "database_count_change_percent": count_percent,
        **_kept(bounds, "total_size_mb", sizes, counted=False),
        **_kept(bounds, "database_count", counts, counted=False),
        "growth_rate": size_percent,
        "trend_direction": trend(period, sizes, sizes_before),
    }
