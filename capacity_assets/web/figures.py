"""What several pages show, as data: the same names in the page, in its JSON and in the schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from capacity_assets.charts.history import Ahead, History, Mark, Point
from capacity_assets.errors import NotFoundError
from capacity_assets.periods import PERIODS, Period, Window
from capacity_assets.units import human_mb

WINDOWS_SHOWN = {"daily": 90, "weekly": 52, "monthly": 24, "quarterly": 12, "yearly": 10}
OTHER_PERIODS_SHOWN = 24


@dataclass(frozen=True)
class SizeInWindow:
    """A size in one window, MiB; None where nothing was measured. `largest_mb` and `smallest_mb`: of its days."""

    window_start: date
    window_end: date
    size_mb: int | None
    change_mb: int | None = None
    change_percent: float | None = None
    largest_mb: int | None = None
    smallest_mb: int | None = None
    measured_days: int | None = None
    """Unknown where sizes are sums over several."""
    is_partial: bool = False
    """Whether a server has no row in it that has one before and after: its size is missing in `size_mb`."""


@dataclass(frozen=True)
class Runway:
    """When something is full, by its newest forecast; days are None where that is not within a year, or not known."""

    server_id: int
    server: str
    subject: str
    name: str
    state: str
    last_day: date
    size_mb: int
    limit_mb: int | None
    headroom_mb: int | None
    binds: str | None
    limit_source: str | None
    full_early: date | None
    full_middle: date | None
    full_late: date | None
    probability_30_days: float | None
    probability_90_days: float | None
    change_mb_per_day: float
    is_outdated: bool
    """Whether limits or steps of its server were declared since."""
    volumes: list[str] | None
    """Volumes on which a database grows; None if unknown."""
    ahead: Sequence[ForecastDay] = field(default=())

    @property
    def display_name(self) -> str:
        """What it is, as people read it."""
        return {"volume": f"volume {self.name}", "server": "all together"}.get(self.subject, self.name)


@dataclass(frozen=True)
class ForecastDay:
    """What is forecast for a day, MiB, with the band in which four of five outcomes should lie."""

    day: date
    lower_mb: int
    size_mb: int
    upper_mb: int


@dataclass(frozen=True)
class StepRow:
    """A change of size that somebody declared."""

    day: date
    note: str
    database: str | None


@dataclass(frozen=True)
class Unmeasured:
    """An active server without a sample on the newest day; `reason` None: no attempt, or none with a reason."""

    server_id: int
    server: str
    engine: str
    last_day: date | None
    failure: str | None
    reason: str | None
    tried_on: date | None
    """Day of the last attempt to measure it; None: no attempt in the last week."""


@dataclass(frozen=True)
class DatabaseRow:
    """A database in one window."""

    server_id: int
    server: str
    engine: str
    database: str
    size_mb: int
    change_mb: int | None
    change_percent: float | None
    measured_days: int
    window_days: int
    labels: dict[str, str] = field(default_factory=dict)


def windows_back(period: Period, newest: Window) -> list[Window]:
    """Return the windows that a history shows, oldest first, as many as are usual for the period."""
    return period.back(newest, WINDOWS_SHOWN.get(period.name, OTHER_PERIODS_SHOWN))


def with_gaps(windows: Sequence[Window], found: Sequence[SizeInWindow]) -> list[SizeInWindow]:
    """Return one size per window from the first that was measured on, oldest first; those in between may be empty."""
    by_start = {one.window_start: one for one in found}
    empty = (SizeInWindow(window.start, window.end, None, measured_days=0) for window in windows)
    whole = [by_start.get(one.window_start, one) for one in empty]
    first = next((number for number, one in enumerate(whole) if one.size_mb is not None), len(whole))
    return whole[first:]


def drawn(  # noqa: PLR0913 -- what a chart may show
    title: str,
    sizes: Sequence[SizeInWindow],
    period: str,
    *,
    runway: Runway | None = None,
    steps: Sequence[StepRow] = (),
    addresses: Sequence[str] = (),
) -> History:
    """Turn sizes, a forecast and steps into what a chart draws; each point leads to its address where there are any."""
    points = [
        Point(
            one.window_start,
            one.size_mb,
            one.smallest_mb,
            one.largest_mb,
            label="" if one.size_mb is None else f"{window_named(period, one)}: {human_mb(one.size_mb)}{_partly(one)}",
            address=addresses[number] if addresses else "",
            is_partial=one.is_partial,
        )
        for number, one in enumerate(sizes)
    ]
    marks = [Mark(step.day, step.note) for step in steps]
    if runway is None or not runway.ahead:
        return History(title, points, limit_mb=runway.limit_mb if runway else None, marks=marks)
    shown = [day for day in runway.ahead if (day.day - runway.last_day).days <= _ahead_days(points)]
    # The band alone: the days on which something is full come from the same past errors, the forecast itself does not.
    ahead = [Ahead(runway.last_day, runway.size_mb, runway.size_mb)]
    ahead += [Ahead(day.day, day.lower_mb, day.upper_mb) for day in shown]
    return History(title, points, ahead, limit_mb=runway.limit_mb, marks=marks)


def _partly(one: SizeInWindow) -> str:
    return ", not every server measured" if one.is_partial else ""


def _ahead_days(points: Sequence[Point]) -> int:
    """As far ahead as the history reaches back, at least a month: further, the band is all that would be seen."""
    return max(31, (points[-1].day - points[0].day).days + 1) if points else 0


def window_named(period: str, one: SizeInWindow) -> str:
    """Name a window as people do."""
    return PERIODS[period].name_of(Window(one.window_start, one.window_end))


def refuse_nothing(found: object, what: str) -> None:
    """Refuse an address that names nothing; raises NotFoundError."""
    if not found:
        raise NotFoundError(f"There is no {what}: it was never measured, or has another name.")
