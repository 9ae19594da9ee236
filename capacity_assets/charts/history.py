"""The chart of a size over time: mean and range of each window, gaps, forecast, limit, and labelled marks.

Positions are in percent of the width and in pixels of the height, so that text keeps its size on every screen. The
drawing is complete without script; `chart.js` shows the values under the pointer or by arrow keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import groupby, pairwise

from markupsafe import Markup

from capacity_assets.base.units import MONTHS, human_day, human_days, human_mb
from capacity_assets.charts.drawing import Axis, draw, size_axis
from capacity_assets.reading.forecasts import ForecastDay

MARGIN, BILL_MARGIN = 28, 13
# Small charts are shown side by side, with fewer dates.
SMALL_HEIGHT, MOST_DATES, MOST_DATES_IF_SMALL = 150, 7, 3
MONTH_STEPS, DAY_STEPS = (1, 2, 3, 6, 12, 24, 60), (1, 2, 7, 14)
# With more windows, dots would merge into a thick line.
MOST_DOTS = 62
# Width of the inner viewport, which is stretched to that of the chart.
WIDTH = 1000
# Number of lines for labels of marks, and their longest length; marks of bills are labelled below, with this distance.
MARK_LINES, MARK_LENGTH, BILL_PERCENT = 3, 28, 7


@dataclass(frozen=True)
class Point:
    """A window: its day, mean and range in MiB, None if not measured; and the address that a click opens."""

    day: date
    size_mb: int | None
    smallest_mb: int | None = None
    largest_mb: int | None = None
    label: str = ""
    address: str = ""
    is_partial: bool = False
    """Whether a part was not measured; a thin line connects the windows before and after."""


@dataclass(frozen=True)
class Mark:
    """A labelled event on a day: a step, decision, plan, fill date or bill; `short` is its label if not the note."""

    day: date
    note: str
    kind: str = "step"
    short: str = ""

    @property
    def title(self) -> str:
        """The tooltip."""
        return f"{human_day(self.day)}: {self.note}"


@dataclass(frozen=True)
class FillRange:
    """The early, middle and late fill date; None: beyond the forecast."""

    early: date | None
    middle: date | None
    late: date | None

    @property
    def by(self) -> str:
        """The middle day as text; empty if there is none."""
        return "" if self.middle is None else f"full by {human_day(self.middle)}"

    @property
    def range(self) -> str:
        """The early and late day as text; empty if one is unknown."""
        return "" if self.early is None or self.late is None else f"({human_days(self.early, self.late)})"

    def __str__(self) -> str:
        return f"{self.by} {self.range}".strip()


@dataclass(frozen=True)
class History:
    """The content of the chart; `title` is its accessible name."""

    title: str
    points: Sequence[Point]
    ahead: Sequence[ForecastDay] = ()
    earlier: Sequence[tuple[date, int | None]] = ()
    """Sizes of the previous year, each at the day of the window it is compared with."""
    full: FillRange = field(default_factory=lambda: FillRange(None, None, None))
    limit_mb: int | None = None
    marks: Sequence[Mark] = ()
    height: int = 240
    is_interactive: bool = False
    """Whether it carries the values for `chart.js`."""


@dataclass(frozen=True)
class _Plot:
    height: int
    axis: Axis
    first: int
    last: int
    margin: int
    """Height below the plot, for dates and, if there are any, amounts of bills."""

    def x(self, day: date) -> float:
        """Place a day, in percent of the width."""
        return 100 * (day.toordinal() - self.first) / max(self.last - self.first, 1)

    def y(self, size_mb: float) -> float:
        """Place a size, in pixels from the top."""
        return self.height * (1 - self.axis.fraction(size_mb))

    def holds(self, day: date | None) -> bool:
        """Whether a day is drawn."""
        return day is not None and self.first <= day.toordinal() <= self.last

    def line(self, sizes: Iterable[tuple[date, float | None]]) -> list[str]:
        """Return the points of sizes in the stretched viewport."""
        return [f"{self.x(day) * WIDTH / 100:.1f},{self.y(size):.1f}" for day, size in sizes if size is not None]

    def dates(self) -> list[tuple[date, str]]:
        """Return the dates below the plot with their labels: first days of months, or days if it is short."""
        most = MOST_DATES_IF_SMALL if self.height < SMALL_HEIGHT else MOST_DATES
        first, last = date.fromordinal(self.first), date.fromordinal(self.last)
        days = self.last - self.first
        # At least three months begin in it.
        if days > 3 * 31:
            months = range(first.year * 12 + first.month - (first.day == 1), last.year * 12 + last.month)
            step = next((step for step in MONTH_STEPS if len(months) / step <= most), MONTH_STEPS[-1])
            starts = [date(month // 12, month % 12 + 1, 1) for month in months if month % step == 0]
            return [(day, _month(day, is_first=number == 0)) for number, day in enumerate(starts)]
        step = next((step for step in DAY_STEPS if days / step <= most), DAY_STEPS[-1])
        ordinals = range(self.first, self.last + 1, step)
        return [
            (day, f"{day.day} {_month(day, is_first=number == 0)}")
            for number, day in enumerate(map(date.fromordinal, ordinals))
        ]


def _month(day: date, *, is_first: bool) -> str:
    """Name a month, with the year at the first label and in January."""
    name = MONTHS[day.month - 1]
    return f"{name} {day.year}" if is_first or (day.month == 1 and day.day <= DAY_STEPS[-1]) else name


def history_chart(history: History) -> Markup:
    """Draw a history; empty if nothing was measured."""
    measured = [point for point in history.points if point.size_mb is not None]
    if not measured:
        return Markup()
    plot = _plot(history)
    limit_fits = history.limit_mb is not None and history.limit_mb <= plot.axis.top
    return draw(
        "history",
        title=history.title,
        description=f"From {human_mb(measured[0].size_mb or 0)} to {human_mb(measured[-1].size_mb or 0)}.",
        plot=plot,
        measured=round(plot.x(measured[-1].day), 3),
        width=WIDTH,
        areas=list(_areas(history, plot)),
        lines=list(_lines(history, plot)),
        limit="" if history.limit_mb is None else f"limit {human_mb(history.limit_mb)}",
        limit_y=plot.y(history.limit_mb) if limit_fits and history.limit_mb is not None else None,
        full=history.full,
        marks=list(_marks(history, plot)),
        points=measured if len(measured) <= MOST_DOTS else _unconnected_points(history.points),
        readings=json.dumps(list(_tooltips(history, plot)), separators=(",", ":")) if history.is_interactive else "",
    )


def _plot(history: History) -> _Plot:
    days = [*(point.day for point in history.points), *(forecast.day for forecast in history.ahead)]
    sizes = [
        size
        for point in history.points
        for size in (point.size_mb, point.smallest_mb, point.largest_mb)
        if size is not None
    ]
    sizes += [size for forecast in history.ahead for size in (forecast.lower_mb, forecast.size_mb, forecast.upper_mb)]
    sizes += [size for _, size in history.earlier if size is not None]
    low, high = min(sizes), max(sizes)
    # A limit far above would flatten the history; its label at the top edge says where it is.
    if history.limit_mb is not None and history.limit_mb <= high + 2 * max(high - low, high // 4):
        high = max(high, history.limit_mb)
    margin = MARGIN + (BILL_MARGIN if any(mark.kind == "bill" for mark in history.marks) else 0)
    return _Plot(history.height, size_axis(low, high), min(days).toordinal(), max(days).toordinal(), margin)


def _stretches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Split at windows that were not measured completely, because a line over a gap would claim an unknown size."""
    for is_whole, stretch in groupby(points, lambda point: point.size_mb is not None and not point.is_partial):
        if is_whole:
            yield list(stretch)


def _bridges(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """Yield the ends of stretches between which windows were partly measured, and none was not measured at all."""
    for is_measured, stretch in groupby(points, lambda point: point.size_mb is not None):
        whole = [(place, point) for place, point in enumerate(stretch) if is_measured and not point.is_partial]
        yield from ((one, other) for (place, one), (next_place, other) in pairwise(whole) if next_place > place + 1)


def _unconnected_points(points: Sequence[Point]) -> list[Point]:
    partial = [point for point in points if point.is_partial and point.size_mb is not None]
    return [*partial, *(stretch[0] for stretch in _stretches(points) if len(stretch) == 1)]


def _areas(history: History, plot: _Plot) -> Iterator[tuple[str, list[str]]]:
    for stretch in _stretches(history.points):
        upper = plot.line((point.day, point.largest_mb) for point in stretch)
        lower = plot.line((point.day, point.smallest_mb) for point in stretch)
        if len(upper) > 1:
            yield "extremes", [*upper, *reversed(lower)]
    if history.ahead:
        upper = plot.line((forecast.day, forecast.upper_mb) for forecast in history.ahead)
        lower = plot.line((forecast.day, forecast.lower_mb) for forecast in history.ahead)
        yield "forecast", [*upper, *reversed(lower)]


def _lines(history: History, plot: _Plot) -> Iterator[tuple[str, list[str]]]:
    for is_known, earlier in groupby(history.earlier, lambda point: point[1] is not None):
        if is_known:
            yield "earlier", plot.line(earlier)
    for stretch in _stretches(history.points):
        yield "mean", plot.line((point.day, point.size_mb) for point in stretch)
    for ends in _bridges(history.points):
        yield "bridge", plot.line((point.day, point.size_mb) for point in ends)
    if history.ahead:
        # From the newest window to the measured size with which a forecast begins.
        whole, first = [point for point in history.points if not point.is_partial][-1:], history.ahead[0]
        yield "bridge", plot.line([*((point.day, point.size_mb) for point in whole), (first.day, first.size_mb)])
        yield "middle", plot.line((forecast.day, forecast.size_mb) for forecast in history.ahead)


@dataclass(frozen=True)
class _PlacedMark:
    """A mark in the plot, or at its right edge: position in percent, label, and the line of that label."""

    mark: Mark
    x: float
    label: str
    line: int = 0
    is_beyond: bool = False


def _marks(history: History, plot: _Plot) -> Iterator[_PlacedMark]:
    """Yield the marks in the plot, and at its edge plans and fill dates beyond it."""
    line, last_bill = 0, -float(BILL_PERCENT)
    for mark in sorted(history.marks, key=lambda mark: mark.day):
        is_beyond = mark.kind in {"plan", "full"} and mark.day.toordinal() > plot.last
        if not (is_beyond or plot.holds(mark.day)):
            continue
        x, label = 100.0 if is_beyond else plot.x(mark.day), mark.short or mark.note
        when = f", {human_day(mark.day)} \u25b6" if is_beyond else ""
        if mark.kind == "bill":
            # Labels that would overlap are left out; the tooltip has them.
            yield _PlacedMark(mark, x, label if x - last_bill >= BILL_PERCENT else "")
            last_bill = x if x - last_bill >= BILL_PERCENT else last_bill
        else:
            shortened = label if len(label) <= MARK_LENGTH else f"{label[: MARK_LENGTH - 1]}\u2026"
            yield _PlacedMark(mark, x, f"{shortened}{when}", line % MARK_LINES, is_beyond)
            line += 1


@dataclass
class _Tooltip:
    """The values at a day: texts, position in percent and pixels, and the address that a click opens."""

    day: date
    y: float | None
    texts: list[str]
    address: str = ""


def _tooltips(history: History, plot: _Plot) -> Iterator[list[object]]:
    """Yield position, height, texts and address of each tooltip; a mark belongs to the window next to it."""
    earlier = {day: size for day, size in history.earlier if size is not None}
    tooltips = []
    for point in history.points:
        texts = [point.label or human_day(point.day)]
        if point.smallest_mb is not None and point.largest_mb is not None and point.smallest_mb != point.largest_mb:
            texts.append(f"{human_mb(point.smallest_mb)} to {human_mb(point.largest_mb)}")
        if point.day in earlier:
            texts.append(f"previous year: {human_mb(earlier[point.day])}")
        y = None if point.size_mb is None else round(plot.y(point.size_mb), 1)
        tooltips.append(_Tooltip(point.day, y, texts, point.address))
    for forecast in history.ahead[1:]:
        middle = round((plot.y(forecast.lower_mb) + plot.y(forecast.upper_mb)) / 2, 1)
        texts = [
            f"{human_day(forecast.day)}: {human_mb(forecast.lower_mb)} to {human_mb(forecast.upper_mb)} (80 % range)",
            f"forecast: {human_mb(forecast.size_mb)}",
        ]
        tooltips.append(_Tooltip(forecast.day, middle, texts))
    known = [tooltip for tooltip in tooltips if tooltip.y is not None]
    for mark in history.marks:
        if known and plot.holds(mark.day):
            min(known, key=partial(_distance, mark.day)).texts.append(mark.title)
    for tooltip in tooltips:
        yield [round(plot.x(tooltip.day), 3), tooltip.y, tooltip.texts, tooltip.address]


def _distance(day: date, tooltip: _Tooltip) -> int:
    return abs((tooltip.day - day).days)


def sparkline(sizes_mb: Sequence[int | None]) -> Markup:
    """Draw the sizes of consecutive windows as a line without axes, oldest first; None is a gap."""
    known = [size for size in sizes_mb if size is not None]
    if len(known) < 2:  # noqa: PLR2004 -- a line has two ends
        return Markup()
    low, height = min(known), max(known) - min(known)
    step = 100 / (len(sizes_mb) - 1)
    places = [
        None if size is None else f"{step * number:.1f},{19 - 18 * (size - low) / height if height else 10:.1f}"
        for number, size in enumerate(sizes_mb)
    ]
    lines = [list(stretch) for is_known, stretch in groupby(places, lambda place: place is not None) if is_known]
    return draw("spark", lines=lines)
