"""The chart of a size over time: mean and extremes of each window, gaps, a forecast with its band, a limit, steps.

Two SVG elements beside each other, sizes and plot. Everything is placed in percent of the width and in pixels of the
height, so that text keeps its size on every screen.
Colours are classes of the page's sheet: a policy that forbids inline style holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from html import escape
from itertools import groupby
from pathlib import Path

from capacity_assets.base.units import human_mb

STYLES = Path(__file__).with_name("styles")
"""Folder of the sheet that a page with charts needs."""

# Below the plot, for the days.
MARGIN = 28
TICKS = 4
# The first day, the middle and the last: more do not fit on a phone.
DATE_SIDES = ("start", "middle", "end")
# Sizes of the stretched inner viewport, in which lines are drawn.
WIDTH = 1000
STEPS = (1, 2, 2.5, 5, 10)
UNITS = ("MiB", "GiB", "TiB", "PiB")
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
class _Scale:
    height: int
    first: int
    last: int
    top: float
    bottom: float
    unit: int = 1
    ticks: Sequence[float] = field(default=())

    def x(self, day: date) -> float:
        """Place a day, in percent of the width."""
        return 100 * (day.toordinal() - self.first) / max(self.last - self.first, 1)

    def y(self, size_mb: float) -> float:
        """Place a size, in pixels from the top."""
        return self.height * (self.top - size_mb) / (self.top - self.bottom)


def history_chart(history: History) -> str:
    """Draw a history; empty where nothing was measured."""
    measured = [point for point in history.points if point.size_mb is not None]
    if not measured:
        return ""
    scale = _scale(history)
    drawn = [
        *_grid(scale),
        f'<svg viewBox="0 0 {WIDTH} {scale.height}" preserveAspectRatio="none" width="100%" height="{scale.height}">',
        *_bands(history, scale),
        *_lines(history, scale),
        "</svg>",
        *_limit(history, scale),
        *_marks(history, scale),
        *_points(history, scale),
        *_dates(scale),
    ]
    height = f'height="{scale.height + MARGIN}"'
    sizes = f'<svg class="sizes" {height} aria-hidden="true">{"".join(_sizes(scale))}</svg>'
    plot = f'<svg class="plot" {height} role="group" aria-label="{escape(history.title)}">{"".join(drawn)}</svg>'
    return f'<div class="chart">{sizes}{plot}</div>'


def _scale(history: History) -> _Scale:
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
    unit = 1024 ** min(int(math.log(max(high, 1), 1024)), len(UNITS) - 1)
    step = _step(((high - low) or max(high // 10, 1)) / TICKS, unit)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    if top == bottom:
        top = bottom + step
    ticks = [bottom + step * number for number in range(round((top - bottom) / step) + 1)]
    return _Scale(history.height, min(days).toordinal(), max(days).toordinal(), top, max(bottom, 0), unit, ticks)


def _step(least: float, unit: int) -> float:
    """Return a round step of at least so many MiB, in the unit of the axis; no part of a MiB."""
    scaled = max(least, 1) / unit
    power = 10.0 ** math.floor(math.log10(scaled))
    return float(max(unit * power * next(step for step in STEPS if step * power >= scaled), 1))


def _sizes(scale: _Scale) -> Iterator[str]:
    for tick in scale.ticks:
        yield f'<text x="100%" dx="-6" y="{scale.y(tick) + 4:.1f}">{_in_unit(tick, scale.unit)}</text>'


def _in_unit(size_mb: float, unit: int) -> str:
    """Write a size of the axis: all of them in one unit, with as many decimals as they need."""
    return f"{size_mb / unit:,.10g} {UNITS[round(math.log(unit, 1024))]}"


def _grid(scale: _Scale) -> Iterator[str]:
    for tick in scale.ticks:
        y = scale.y(tick)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'


def _at(scale: _Scale, day: date, size_mb: float) -> str:
    return f"{scale.x(day) * WIDTH / 100:.1f},{scale.y(size_mb):.1f}"


def _stretches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Cut where a window was not measured: a line over a gap would claim what nobody knows."""
    for is_whole, stretch in groupby(points, lambda point: point.size_mb is not None and not point.is_partial):
        if is_whole:
            yield list(stretch)


def _bands(history: History, scale: _Scale) -> Iterator[str]:
    for stretch in _stretches(history.points):
        upper = [_at(scale, one.day, one.largest_mb) for one in stretch if one.largest_mb is not None]
        lower = [_at(scale, one.day, one.smallest_mb) for one in stretch if one.smallest_mb is not None]
        if len(upper) > 1:
            yield f'<polygon class="extremes" points="{" ".join([*upper, *reversed(lower)])}"/>'
    if history.ahead:
        upper = [_at(scale, one.day, one.upper_mb) for one in history.ahead]
        lower = [_at(scale, one.day, one.lower_mb) for one in history.ahead]
        yield f'<polygon class="forecast" points="{" ".join([*upper, *reversed(lower)])}"/>'


def _lines(history: History, scale: _Scale) -> Iterator[str]:
    for stretch in _stretches(history.points):
        placed = [_at(scale, one.day, one.size_mb) for one in stretch if one.size_mb is not None]
        yield f'<polyline class="mean" points="{" ".join(placed)}"/>'
    if history.expected:
        placed = [_at(scale, day, size) for day, size in history.expected]
        yield f'<polyline class="middle" points="{" ".join(placed)}"/>'


def _limit(history: History, scale: _Scale) -> Iterator[str]:
    if history.limit_mb is None or history.limit_mb > scale.top:
        return
    y = scale.y(history.limit_mb)
    yield f'<line class="limit" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield f'<text class="limit" x="0" y="{y - 4:.1f}">limit {escape(human_mb(history.limit_mb))}</text>'


def _marks(history: History, scale: _Scale) -> Iterator[str]:
    for mark in history.marks:
        if scale.first <= mark.day.toordinal() <= scale.last:
            x = f"{scale.x(mark.day):.2f}%"
            title = escape(f"{mark.day}: {mark.note}")
            yield f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="{scale.height}"><title>{title}</title></line>'


def _points(history: History, scale: _Scale) -> Iterator[str]:
    measured = [point for point in history.points if point.size_mb is not None]
    named = [point for point in measured if point.label][-MOST_LINKS:]
    for point in named or measured[-1:]:
        placed = f'cx="{scale.x(point.day):.2f}%" cy="{scale.y(point.size_mb or 0):.1f}" r="3"'
        kind = ' class="partial"' if point.is_partial else ""
        circle = f"<circle {placed}{kind}><title>{escape(point.label)}</title></circle>"
        address = escape(point.address)
        yield f'<a href="{address}" aria-label="{escape(point.label)}">{circle}</a>' if address else circle


def _dates(scale: _Scale) -> Iterator[str]:
    for number, side in enumerate(DATE_SIDES):
        day = date.fromordinal(scale.first + (scale.last - scale.first) * number // (len(DATE_SIDES) - 1))
        yield f'<text class="date" x="{scale.x(day):.2f}%" y="{scale.height + 18}" text-anchor="{side}">{day}</text>'
        if scale.last == scale.first:
            return


def share_bar(part: int, whole: int) -> str:
    """Draw a part of a whole as a bar; it says nothing that the number beside it does not."""
    percent = 0 if whole <= 0 else max(0, min(100, round(100 * part / whole)))
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="part" width="{percent}" height="8"/></svg>'
    )
