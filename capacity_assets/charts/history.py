"""The chart of a size over time: mean and extremes of each window, gaps, a forecast with its band, a limit, steps.

Positions are in percent of the width and in pixels of the height, so that text keeps its size on every screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

from markupsafe import Markup

from capacity_assets.base.units import human_mb
from capacity_assets.charts.axis import Axis, size_axis
from capacity_assets.charts.templates import draw

# The first, middle and last day: more do not fit on a phone. Small charts stand side by side, and omit the middle.
DATE_SIDES, SMALL_HEIGHT = ("start", "middle", "end"), 150
# Width of the stretched inner viewport, in which lines are drawn.
WIDTH = 1000
# At most this many points are links; more cannot be distinguished.
MOST_LINKS = 130


@dataclass(frozen=True)
class Point:
    """A window: its first day, mean and extremes in MiB, None where it was not measured; and where a click leads."""

    day: date
    size_mb: int | None
    smallest_mb: int | None = None
    largest_mb: int | None = None
    label: str = ""
    address: str = ""
    is_partial: bool = False
    """Whether a part of what belongs to it was not measured: no line leads through it."""


@dataclass(frozen=True)
class Ahead:
    """A day of the forecast, with its band in MiB."""

    day: date
    lower_mb: int
    upper_mb: int


@dataclass(frozen=True)
class Mark:
    """Something that happened on a day."""

    day: date
    note: str


@dataclass(frozen=True)
class History:
    """What is drawn; `title` says it to those who do not see it."""

    title: str
    points: Sequence[Point]
    ahead: Sequence[Ahead] = ()
    expected: Sequence[tuple[date, float]] = ()
    """A dotted line of future sizes."""
    limit_mb: int | None = None
    marks: Sequence[Mark] = ()
    height: int = 200


@dataclass(frozen=True)
class _Plot:
    height: int
    axis: Axis
    first: int
    last: int

    def x(self, day: date) -> float:
        """Place a day, in percent of the width."""
        return 100 * (day.toordinal() - self.first) / max(self.last - self.first, 1)

    def y(self, size_mb: float) -> float:
        """Place a size, in pixels from the top."""
        return self.height * (1 - self.axis.share(size_mb))

    def line(self, sizes: Iterable[tuple[date, float | None]]) -> list[str]:
        """Return the points of sizes in the stretched viewport."""
        return [f"{self.x(day) * WIDTH / 100:.1f},{self.y(size):.1f}" for day, size in sizes if size is not None]

    def dates(self) -> list[tuple[date, str]]:
        """Return the days that are written below the plot, each with its text anchor."""
        days = {"start": self.first, "middle": (self.first + self.last) // 2, "end": self.last}
        shown = DATE_SIDES[:1] if self.last == self.first else DATE_SIDES[:: 2 if self.height < SMALL_HEIGHT else 1]
        return [(date.fromordinal(days[side]), side) for side in shown]


def history_chart(history: History) -> Markup:
    """Draw a history; empty where nothing was measured."""
    measured = [point for point in history.points if point.size_mb is not None]
    if not measured:
        return Markup()
    plot = _plot(history)
    return draw(
        "history",
        title=history.title,
        description=f"From {human_mb(measured[0].size_mb or 0)} to {human_mb(measured[-1].size_mb or 0)}.",
        plot=plot,
        width=WIDTH,
        areas=list(_areas(history, plot)),
        lines=list(_lines(history, plot)),
        limit_mb=history.limit_mb if history.limit_mb is not None and history.limit_mb <= plot.axis.top else None,
        limit="" if history.limit_mb is None else human_mb(history.limit_mb),
        marks=[mark for mark in history.marks if plot.first <= mark.day.toordinal() <= plot.last],
        points=[point for point in measured if point.label][-MOST_LINKS:] or measured[-1:],
    )


def _plot(history: History) -> _Plot:
    days = [*(point.day for point in history.points), *(one.day for one in history.ahead)]
    sizes = [
        size
        for point in history.points
        for size in (point.size_mb, point.smallest_mb, point.largest_mb)
        if size is not None
    ]
    sizes += [size for one in history.ahead for size in (one.lower_mb, one.upper_mb)]
    sizes += [math.ceil(size) for _, size in history.expected]
    low, high = min(sizes), max(sizes)
    # A limit far above would press the history into a line; the text beside the chart has it.
    if history.limit_mb is not None and history.limit_mb <= high + 2 * max(high - low, high // 4):
        high = max(high, history.limit_mb)
    return _Plot(history.height, size_axis(low, high), min(days).toordinal(), max(days).toordinal())


def _stretches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Cut where a window was not measured: a line over a gap would claim what nobody knows."""
    for is_whole, stretch in groupby(points, lambda point: point.size_mb is not None and not point.is_partial):
        if is_whole:
            yield list(stretch)


def _areas(history: History, plot: _Plot) -> Iterator[tuple[str, list[str]]]:
    for stretch in _stretches(history.points):
        upper = plot.line((one.day, one.largest_mb) for one in stretch)
        lower = plot.line((one.day, one.smallest_mb) for one in stretch)
        if len(upper) > 1:
            yield "extremes", [*upper, *reversed(lower)]
    if history.ahead:
        upper = plot.line((one.day, one.upper_mb) for one in history.ahead)
        lower = plot.line((one.day, one.lower_mb) for one in history.ahead)
        yield "forecast", [*upper, *reversed(lower)]


def _lines(history: History, plot: _Plot) -> Iterator[tuple[str, list[str]]]:
    for stretch in _stretches(history.points):
        yield "mean", plot.line((one.day, one.size_mb) for one in stretch)
    if history.expected:
        yield "middle", plot.line(history.expected)
