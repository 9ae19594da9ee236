"""Shared by charts, pages, reports and mails: axes with round ticks, the rendering of templates, bars and treemaps.

Charts of bars are stacked columns over time, a waterfall, and single bars for the cells of a table. Their positions are
in percent along one axis and in pixels along the other, so that text keeps its size. A treemap shows shares of a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from capacity_assets.base.units import (
    counted,
    first_of,
    human_change_mb,
    human_day,
    human_mb,
    human_pair_mb,
    human_percent,
    printable,
)
from capacity_assets.ownership.bills import (
    gib,
    group_named,
    mean_price,
    moment,
    money,
    money_change,
    over_or_under,
    price,
)

STYLES = Path(__file__).with_name("styles")
"""Folder of the style sheets of pages and charts."""
FILTERS = (
    *(counted, first_of, gib, human_day, mean_price, moment, money, money_change, over_or_under, price, printable),
)
"""Filters of all templates."""
AXIS_STEPS = 4
"""Steps of an axis, about."""
ROUND_STEPS = (1, 2, 2.5, 5, 10)
UNITS = ("MiB", "GiB", "TiB", "PiB")
CENTS = 100
"""Cents of one unit of a currency."""


def environment_of(loader: BaseLoader) -> Environment:
    """Return an environment for templates; it escapes every value, so that no name is read as markup."""
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update({show.__name__: show for show in FILTERS}, number="{:,}".format, group=group_named)
    return environment


@cache  # Compiling templates takes longer than rendering them.
def _templates() -> Environment:
    environment = environment_of(PackageLoader("capacity_assets.charts", "templates"))
    # Charts grow with the text of a page, whose root element sets the size of a rem; it has 16 pixels by default.
    environment.filters.update(rem=lambda pixels: f"{pixels / 16:.6g}rem", percent="{:.2f}%".format)
    return environment


def draw(name: str, **values: object) -> Markup:
    """Render the template of this name."""
    return Markup(_templates().get_template(f"{name}.svg.j2").render(values))  # noqa: S704 -- the template escapes


@dataclass(frozen=True)
class Tick:
    """A tick of an axis."""

    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values with ticks."""

    bottom: float
    top: float
    ticks: Sequence[Tick]

    def fraction(self, value: float) -> float:
        """Return the position of a value: 0 at the bottom, 1 at the top."""
        return (value - self.bottom) / (self.top - self.bottom)

    def cut_to(self, low: float, high: float) -> Axis:
        """Return the axis between two values; the whole axis if they are equal."""
        if low == high:
            return self
        return Axis(low, high, [tick for tick in self.ticks if low <= tick.value <= high])


def size_axis(low_mb: float, high_mb: float, steps: int = AXIS_STEPS) -> Axis:
    """Return an axis with round ends around both sizes, in the unit of the larger one, with the decimals it needs."""
    power = min((max(round(abs(low_mb)), round(abs(high_mb)), 1).bit_length() - 1) // 10, len(UNITS) - 1)
    unit = 1024**power
    return _axis(low_mb, high_mb, unit, steps, lambda value: f"{value / unit:,.13g} {UNITS[power]}")


def count_axis(high: int, noun: str, steps: int = AXIS_STEPS) -> Axis:
    """Return an axis of counts, from 0."""
    return _axis(0, high, 1, steps, lambda value: counted(round(value), noun))


def money_axis(high_cents: int, currency: str, steps: int = AXIS_STEPS) -> Axis:
    """Return an axis of amounts in cents, from 0."""
    return _axis(0, high_cents, CENTS, steps, lambda value: f"{value / CENTS:,.13g} {currency}")


def _axis(low: float, high: float, unit: int, steps: int, label: Callable[[float], str]) -> Axis:
    """Place ticks at round multiples of the unit or a decimal fraction of it; the smallest unit has no fractions."""
    least = max(((high - low) or max(high // 10, 1)) / steps, 1) / unit
    power = 10.0 ** math.floor(math.log10(least))
    factors = (factor * power for factor in ROUND_STEPS)
    step = unit * next(factor for factor in factors if factor >= least and (unit > 1 or factor.is_integer()))
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [Tick(step * number, label(step * number)) for number in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0].value, ticks[-1].value, ticks)


MOST_SERIES = 8
"""Number of colours and patterns that can be told apart."""
# Steps of an axis, about.
BAR_STEPS = 6
# Share of its space that a column fills; more than MOST_GAPS columns have no gaps.
COLUMN_WIDTH, MOST_GAPS = 0.8, 100
# Number of names under columns; phones show every second one.
NAMES_SHOWN, NARROW_PERCENT = 6, 5
# Width of the inner viewport, which is stretched to that of the chart.
PLOT_WIDTH = 1000
ROW_HEIGHT, BAR_HEIGHT = 32, 18
# Steps below this share of the whole would be invisible on an axis from 0.
SMALL_STEPS = 0.25


@dataclass(frozen=True)
class Series:
    """One series of stacked columns: a value per column, None if the column is unknown.

    `colour` is a CSS class; without one, colour and pattern are those of `ColumnChart.places`.
    """

    name: str
    values: Sequence[int | None]
    colour: str = ""


@dataclass(frozen=True)
class ColumnChart:
    """Stacked columns with their names: sizes in MiB, counts of a `noun`, or cents of a `currency`.

    `expected` is drawn as a dashed line. `unknown` is the label of unknown columns. `every_name` are the names that a
    series may have, in one order on all pages, so that each has the same colour everywhere.
    """

    title: str
    names: Sequence[str]
    series: Sequence[Series]
    noun: str = ""
    expected: Sequence[int] = ()
    expected_name: str = ""
    height: int = 230
    currency: str = ""
    unknown: str = "no rows"
    every_name: Sequence[str] = ()

    def places(self) -> list[int]:
        """Return the colour of each series, from 1: by its place among `every_name`, or the next that is free.

        Without that, by its position.
        """
        if not self.every_name:
            return [number + 1 for number in range(len(self.series))]
        last = len(self.every_name)
        wanted = {name: number for number, name in enumerate(self.every_name)}
        places: dict[str, int] = {}
        # In the order of the names, so that who shares a colour gets the same one wherever both are drawn.
        for series in sorted(self.series, key=lambda named: (wanted.get(named.name, last), named.name)):
            first = wanted.get(series.name, MOST_SERIES - 1)
            taken = set(places.values())
            free = (place for number in range(MOST_SERIES) if (place := (first + number) % MOST_SERIES) not in taken)
            places[series.name] = next(free, first % MOST_SERIES)
        return [places[series.name] + 1 for series in self.series]

    def label(self, value: int) -> str:
        """Return a value with its unit."""
        if self.currency:
            return f"{value / CENTS:,.2f} {self.currency}"
        return counted(value, self.noun) if self.noun else human_mb(value)


@dataclass(frozen=True)
class Segment:
    """A rectangle in a column: `x` in percent of the width, `y` in pixels from the top; `title` is its tooltip."""

    x: float
    y: float
    height: float
    title: str


class _ColumnPlot:
    def __init__(self, chart: ColumnChart) -> None:
        self.chart, self.height = chart, chart.height
        columns = list(zip(*(series.values for series in chart.series), strict=True))
        # A collector may have stored negative sizes.
        self._levels = [list(accumulate((value or 0 for value in column), initial=0)) for column in columns]
        self._is_known = [any(value is not None for value in column) for column in columns]
        levels = [0, *(level for column in self._levels for level in column)]
        low, high = min(levels), max([*levels, *chart.expected])
        # The axis ends with the first tick above the highest column.
        above = high + 1 if high > 0 else high
        if chart.currency:
            axis = money_axis(above, chart.currency, BAR_STEPS)
        else:
            axis = count_axis(above, chart.noun, BAR_STEPS) if chart.noun else size_axis(low, above, BAR_STEPS)
        self.axis = axis.cut_to(low, axis.top)
        count = max(len(chart.names), 1)
        self.width = 100 / count * (COLUMN_WIDTH if count <= MOST_GAPS else 1)

    def middle(self, number: int) -> float:
        """Return the middle of a column, in percent of the width."""
        return 100 * (number + 0.5) / len(self.chart.names)

    def y(self, value: float) -> float:
        """Place a value, in pixels from the top."""
        return self.height * (1 - self.axis.fraction(value))

    def parts(self, place: int) -> Iterator[Segment]:
        """Yield the segments of the series at an index, without empty ones."""
        series = self.chart.series[place]
        for number, value in enumerate(series.values):
            if value:
                upper, lower = sorted(map(self.y, self._levels[number][place : place + 2]))
                title = f"{series.name}, {self.chart.names[number]}: {self.chart.label(value)}"
                yield Segment(self.middle(number) - self.width / 2, upper, lower - upper, title)

    def unknown(self) -> list[float]:
        """Return the middle of each run of unknown columns, in percent of the width."""
        stretches = groupby(range(len(self._is_known)), self._is_known.__getitem__)
        numbers = [list(stretch) for is_known, stretch in stretches if not is_known]
        return [(self.middle(stretch[0]) + self.middle(stretch[-1])) / 2 for stretch in numbers]

    def names(self) -> list[int]:
        """Return the columns with visible names, newest first; a narrow last column has none, which would overflow."""
        count = len(self.chart.names)
        step = -(-count // NAMES_SHOWN) or 1
        return list(range(count - 1 - (step // 2 if self.width < NARROW_PERCENT else 0), -1, -step))

    def line(self) -> list[str]:
        """Return the points of the expected values in the inner viewport: a horizontal line over each column."""
        edges = PLOT_WIDTH / max(len(self.chart.names), 1)
        return [
            f"{edges * side:.1f},{self.y(value):.1f}"
            for number, value in enumerate(self.chart.expected)
            for side in (number, number + 1)
        ]

    def description(self) -> str:
        """Return the first and last known totals as text."""
        known = [
            f"{name}: {self.chart.label(levels[-1])}"
            for name, levels, is_known in zip(self.chart.names, self._levels, self._is_known, strict=False)
            if is_known
        ]
        return "; ".join(dict.fromkeys([*known[:1], *known[-1:]]))


def columns_chart(chart: ColumnChart) -> Markup:
    """Draw stacked columns."""
    plot = _ColumnPlot(chart)
    return draw("columns", title=chart.title, description=plot.description(), chart=chart, plot=plot, width=PLOT_WIDTH)


@dataclass(frozen=True)
class WaterfallStep:
    """A step of a waterfall: its name, which may have several lines, change in MiB, and CSS class."""

    name: str
    change_mb: int
    colour: str


@dataclass(frozen=True)
class Bar:
    """A bar between two sizes, with the lines of its name and its value as text."""

    lines: Sequence[str]
    first_mb: int
    last_mb: int
    value: str
    colour: str


class _WaterfallPlot:
    def __init__(self, start_mb: int, steps: Sequence[WaterfallStep]) -> None:
        sizes = list(accumulate((step.change_mb for step in steps), initial=start_mb))
        low, high = min(sizes), max(sizes)
        self.is_cut = 0 < high - low < high * SMALL_STEPS
        low, high = max(0, 2 * low - high) if self.is_cut else min(0, low), max(0, high)
        self.axis = size_axis(low, high, BAR_STEPS).cut_to(low, high)
        before, now = human_pair_mb(start_mb, sizes[-1])
        self.rows = [
            Bar(["Before"], 0, start_mb, before, "total"),
            *(
                Bar(step.name.split("\n"), size, size + step.change_mb, human_change_mb(step.change_mb), step.colour)
                for size, step in zip(sizes, steps, strict=False)
            ),
            Bar(["Now"], 0, sizes[-1], now, "total"),
        ]
        self.row_height, self.bar_height = ROW_HEIGHT, BAR_HEIGHT
        self.height = len(self.rows) * ROW_HEIGHT

    def x(self, size_mb: float) -> float:
        """Return the position of a size, in percent of the width; on a cut axis, smaller sizes are at its edge."""
        return 100 * max(self.axis.fraction(size_mb), 0)


def waterfall_chart(title: str, start_mb: int, steps: Sequence[WaterfallStep]) -> Markup:
    """Draw the steps from one size to another, one row each, so that names and values fit on every screen."""
    plot = _WaterfallPlot(start_mb, steps)
    description = "; ".join(f"{' '.join(row.lines)}: {row.value}" for row in plot.rows)
    return draw("waterfall", title=title, description=description, plot=plot)


def fraction_bar(part: float, whole: float, severity: str | None = None) -> Markup:
    """Draw a part of a whole as a bar, next to its number; coloured by severity, with its name as text beside it."""
    return span_bar(0, 0 if whole <= 0 else part / whole, severity=severity)


def span_bar(first: float, last: float, mark: float | None = None, severity: str | None = None) -> Markup:
    """Draw the range between two shares of a whole as a bar, with a mark if one is given."""
    start, end = (round(100 * min(max(share, 0), 1)) for share in (first, last))
    place = None if mark is None else round(100 * mark)
    return draw("bar", start=start, width=end - start, mark=place, severity=severity)


# The shape in which rectangles are placed; the drawing is stretched to the width of the page.
MAP_WIDTH, MAP_HEIGHT = 1200, 420
HEADING = 22
# Smaller rectangles have a tooltip only.
LEAST_TEXT_WIDTH, LEAST_TEXT_HEIGHT, LINE_HEIGHT = 56, 18, 15
# In pixels: the width of the map on a phone, where only text that fits is shown, and of a character.
PHONE_WIDTH, CHARACTER_WIDTH = 360, 7
# Upper limits of growth in percent, with the CSS class below each.
GROWTH_STEPS = ((-2.0, "shrunk-2"), (-0.1, "shrunk-1"), (0.1, "same"), (2.0, "grown-1"), (5.0, "grown-2"))
MOST_GROWN = "grown-3"


@dataclass(frozen=True)
class Tile:
    """A rectangle: name, size and change in MiB (None: unknown), and the address that it links to.

    `change_percent` is needed if the change is not that of the whole size, for example if it is like for like.
    """

    name: str
    size_mb: int
    change_mb: int | None
    address: str = ""
    parts: Sequence[Tile] = ()
    change_percent: float | None = None

    @property
    def colour(self) -> str:
        """The CSS class of its growth."""
        if self.change_mb is None or self.size_mb <= self.change_mb:
            return "unknown"
        percent = self.change_percent
        if percent is None:
            percent = 100 * self.change_mb / (self.size_mb - self.change_mb)
        return next((name for above, name in GROWTH_STEPS if percent < above), MOST_GROWN)

    @property
    def growth(self) -> str:
        """The growth in percent, with its sign."""
        if self.change_percent is not None:
            return f"{self.change_percent:+,.1f} %" if self.change_percent else "0.0 %"
        return "" if self.change_mb is None else human_percent(self.change_mb, self.size_mb - self.change_mb)


class TileLine(NamedTuple):
    """A line of text, with a further part that phones do not show; `is_wide`: phones do not show it at all."""

    text: str
    figures: str = ""
    is_wide: bool = False


class TileArea(NamedTuple):
    """A rectangle in the units of MAP_WIDTH and MAP_HEIGHT."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class TileOnMap:
    """A tile at its position."""

    tile: Tile
    area: TileArea
    is_heading: bool = False

    @property
    def left(self) -> float:
        """Left side in percent of the width."""
        return 100 * self.area.x / MAP_WIDTH

    @property
    def width(self) -> float:
        """Width in percent."""
        return 100 * self.area.width / MAP_WIDTH

    @property
    def lines(self) -> list[TileLine]:
        """The lines of text that fit."""
        if self.area.width < LEAST_TEXT_WIDTH or self.area.height < LEAST_TEXT_HEIGHT:
            return []
        figures = [human_mb(self.tile.size_mb), self.tile.growth]
        if self.is_heading:
            most = self.area.width / CHARACTER_WIDTH - len(f"{self.tile.name} · ") - 1
            fitting = (text for text in (" · ".join(filter(None, figures)), figures[0]) if len(text) <= most)
            lines = [TileLine(self.tile.name, next(fitting, ""))]
        else:
            lines = [TileLine(text) for text in (self.tile.name, *figures)]
            lines = lines[: 1 + int((self.area.height - LEAST_TEXT_HEIGHT) // LINE_HEIGHT)]
        most = int(self.width / 100 * PHONE_WIDTH / CHARACTER_WIDTH) - 1
        return [line._replace(is_wide=len(line.text) > most) for line in lines]

    @property
    def title(self) -> str:
        """The tooltip."""
        return f"{self.tile.name}: {human_mb(self.tile.size_mb)}" + (
            f", {self.tile.growth}" if self.tile.growth else ""
        )


def treemap(title: str, tiles: Sequence[Tile]) -> Markup:
    """Draw tiles with their parts; empty if no tile has a size."""
    areas = list(_place_nested(tiles))
    if not areas:
        return Markup()
    description = "; ".join(f"{tile.name}: {human_mb(tile.size_mb)}" for tile in tiles)
    return draw("treemap", title=title, description=description, areas=areas, height=MAP_HEIGHT)


def _place_nested(tiles: Sequence[Tile]) -> Iterator[TileOnMap]:
    for tile, area in squarified(tiles, TileArea(0, 0, MAP_WIDTH, MAP_HEIGHT)):
        has_heading = bool(tile.parts) and area.height > 2 * HEADING
        yield TileOnMap(tile, area._replace(height=HEADING) if has_heading else area, is_heading=has_heading)
        if has_heading:
            inside = TileArea(area.x, area.y + HEADING, area.width, area.height - HEADING)
            yield from (TileOnMap(part, part_area) for part, part_area in squarified(tile.parts, inside))


def squarified(tiles: Sequence[Tile], area: TileArea) -> Iterator[tuple[Tile, TileArea]]:
    """Yield the tiles that have a size, largest first, with rectangles that together fill the area.

    Tiles smaller than the rest by many orders of magnitude may find no area and are left out.
    """
    rest = sorted((tile for tile in tiles if tile.size_mb > 0), key=lambda tile: -tile.size_mb)
    total_mb = sum(tile.size_mb for tile in rest)
    while rest and min(area.width, area.height) > 0:
        scale = area.width * area.height / total_mb
        side = min(area.width, area.height)
        count = 1
        while count < len(rest) and _ratio(rest[: count + 1], side, scale) <= _ratio(rest[:count], side, scale):
            count += 1
        row, rest = rest[:count], rest[count:]
        row_mb = sum(tile.size_mb for tile in row)
        total_mb -= row_mb
        thickness = row_mb * scale / side
        is_column, before = area.width >= area.height, 0.0
        for tile in row:
            length = side * tile.size_mb / row_mb
            if is_column:
                yield tile, TileArea(area.x, area.y + before, thickness, length)
            else:
                yield tile, TileArea(area.x + before, area.y, length, thickness)
            before += length
        if is_column:
            area = TileArea(area.x + thickness, area.y, area.width - thickness, area.height)
        else:
            area = TileArea(area.x, area.y + thickness, area.width, area.height - thickness)


def _ratio(row: Sequence[Tile], side: float, scale: float) -> float:
    thickness = sum(tile.size_mb for tile in row) * scale / side
    lengths = [tile.size_mb * scale / thickness for tile in (row[0], row[-1])]
    return max(max(thickness / length, length / thickness) for length in lengths)
