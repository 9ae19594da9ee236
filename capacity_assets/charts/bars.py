"""Charts of bars: stacked columns over time, a waterfall, and single bars for the cells of a table.

Positions are in percent along one axis and in pixels along the other, so that text keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from markupsafe import Markup

from capacity_assets.base.units import counted, human_change_mb, human_mb, human_pair_mb
from capacity_assets.charts.drawing import CENTS, count_axis, draw, money_axis, size_axis

MOST_SERIES = 8
"""Number of colours and patterns that can be told apart."""
# Steps of an axis, about.
STEPS = 6
# Share of its space that a column fills; more than MOST_GAPS columns have no gaps.
COLUMN_WIDTH, MOST_GAPS = 0.8, 100
# Number of names under columns; phones show every second one.
NAMES_SHOWN, NARROW_PERCENT = 6, 5
# Width of the inner viewport, which is stretched to that of the chart.
WIDTH = 1000
ROW_HEIGHT, BAR_HEIGHT = 32, 18
# Steps below this share of the whole would be invisible on an axis from 0.
SMALL_STEPS = 0.25


@dataclass(frozen=True)
class Series:
    """One series of stacked columns: a value per column, None if the column is unknown.

    `colour` is a CSS class; without one, colour and pattern follow from the position of the series.
    """

    name: str
    values: Sequence[int | None]
    colour: str = ""


@dataclass(frozen=True)
class ColumnChart:
    """Stacked columns with their names: sizes in MiB, counts of a `noun`, or cents of a `currency`.

    `expected` is drawn as a dashed line. `unknown` is the label of unknown columns.
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
        if chart.currency:
            axis = money_axis(high, chart.currency, STEPS)
        else:
            axis = count_axis(high, chart.noun, STEPS) if chart.noun else size_axis(low, high, STEPS)
        self.axis = axis.cut_to(low, high)
        count = max(len(chart.names), 1)
        self.width = 100 / count * (COLUMN_WIDTH if count <= MOST_GAPS else 1)

    def middle(self, number: int) -> float:
        """Return the middle of a column, in percent of the width."""
        return 100 * (number + 0.5) / len(self.chart.names)

    def y(self, value: float) -> float:
        """Place a value, in pixels from the top."""
        return self.height * (1 - self.axis.share(value))

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
        edges = WIDTH / max(len(self.chart.names), 1)
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
    return draw("columns", title=chart.title, description=plot.description(), chart=chart, plot=plot, width=WIDTH)


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
        self.axis = size_axis(low, high, STEPS).cut_to(low, high)
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
        return 100 * max(self.axis.share(size_mb), 0)


def waterfall_chart(title: str, start_mb: int, steps: Sequence[WaterfallStep]) -> Markup:
    """Draw the steps from one size to another, one row each, so that names and values fit on every screen."""
    plot = _WaterfallPlot(start_mb, steps)
    description = "; ".join(f"{' '.join(row.lines)}: {row.value}" for row in plot.rows)
    return draw("waterfall", title=title, description=description, plot=plot)


def share_bar(part: int, whole: int) -> Markup:
    """Draw a part of a whole as a bar, beside the number that it illustrates."""
    return span_bar(0, 0 if whole <= 0 else part / whole)


def span_bar(first: float, last: float, mark: float | None = None) -> Markup:
    """Draw the range between two shares of a whole as a bar, with a mark if one is given."""
    start, end = (round(100 * min(max(share, 0), 1)) for share in (first, last))
    return draw("bar", start=start, width=end - start, mark=None if mark is None else round(100 * mark))
