"""The charts of the report as SVG in the page: text stays text, no script, no separate file.

What is shown is decided in `data`. Every chart has its numbers in a table beside it, so nothing depends on seeing it.
What fills first has a small chart each: sizes so far, the band of the forecast and the limit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from warnings import catch_warnings, filterwarnings

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import counted, human_change_mb, human_pair_mb
from capacity_assets.charts.history import Ahead, History, Point, history_chart
from capacity_assets.forecast.issued import HISTORY_SHOWN_DAYS, IssuedDay, Risk
from capacity_assets.forecast.outlook import Outlook
from capacity_assets.report.data import NOT_COMPARABLE, OTHER, ChangeKind, Report

# Okabe and Ito: told apart with every kind of colour vision, and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# And without any: printed in grey, two neighbours may look alike.
HATCHES = ("", "///", "...", "xxx", "", "\\\\\\", "ooo", "+++")
UP, DOWN, TOTAL, UNKNOWN = "#D55E00", "#009E73", "#0072B2", "#999999"
REST = "others"
LABELS_SHOWN = 14
SMALL_STEPS = 0.25
LONGEST_LABEL = 28
WIDTH_INCHES, HEIGHT_INCHES = 8.0, 3.2
LEGEND_INCHES, LETTER_INCHES = 0.6, 0.065

STEP_NAMES = {
    ChangeKind.GROWN.value: "Grown",
    ChangeKind.SHRUNK.value: "Shrunk",
    ChangeKind.PARTLY.value: "There on a part\nof the days",
    ChangeKind.NEW.value: "New",
    ChangeKind.GONE.value: "Gone",
    ChangeKind.APPEARED.value: "Not measured\nbefore",
    ChangeKind.MISSING.value: "Not measured\nnow",
    OTHER: "Other",
}
# Shown only where there is something to show.
RARE_STEPS = {ChangeKind.PARTLY.value, *(kind.value for kind in NOT_COMPARABLE), OTHER}


@dataclass(frozen=True)
class Series:
    """One part of stacked bars: a size for each window, None where the window has no row at all."""

    name: str
    sizes_mb: tuple[int | None, ...]


def stacked_series(report: Report) -> list[Series]:
    """Return the history as series, largest first; those beyond the colours are one series of their own."""
    windows = [window.start for window in report.windows]
    sizes = {(bar.window_start, bar.series): bar.size_mb for bar in report.history}
    measured = {bar.window_start for bar in report.history}
    totals: dict[str, int] = {}
    for bar in report.history:
        totals[bar.series] = totals.get(bar.series, 0) + bar.size_mb
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    shown = ranked if len(ranked) <= len(COLOURS) else ranked[: len(COLOURS) - 1]

    def series(name: str, members: Sequence[str]) -> Series:
        values = (
            sum(sizes.get((start, member), 0) for member in members) if start in measured else None for start in windows
        )
        return Series(name, tuple(values))

    rest = ranked[len(shown) :]
    return [series(name, [name]) for name in shown] + ([series(f"{len(rest)} {REST}", rest)] if rest else [])


def fleet_history_chart(report: Report) -> str:
    """Draw the size of the fleet by engine, or of the server by database, window by window; gaps stay gaps."""
    with chart_style("history"):
        drawn_series = stacked_series(report)
        names = [shorter(series.name) for series in drawn_series]
        figure, axes = _canvas(right=LEGEND_INCHES + LETTER_INCHES * max(map(len, names), default=0))
        places = range(len(report.windows))
        floor = [0] * len(report.windows)
        drawn: list[BarContainer] = []
        for series, colour, hatch in zip(drawn_series, COLOURS, HATCHES, strict=False):
            heights = [size or 0 for size in series.sizes_mb]
            bars = axes.bar(
                places, heights, bottom=floor, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, width=0.75
            )
            drawn.append(bars)
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        measured = {bar.window_start for bar in report.history}
        for place, window in enumerate(report.windows):
            if window.start not in measured:
                axes.annotate("no\nrows", (place, 0), ha="center", va="bottom", fontsize=7, color="#555555")
        labels = [report.period.label_of(window) for window in report.windows]
        axes.set_xticks(list(places), labels, rotation=35, ha="right")
        axes.set_xlim(-0.6, len(report.windows) - 0.4)
        if drawn:
            # By hand: a label that begins with an underscore would be left out.
            axes.legend(drawn, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        size_axis(axes)
        return svg_of(figure, f"Size by {'database' if report.server else 'engine'}, window by window")


def waterfall_chart(report: Report) -> str:
    """Draw how the size of the window before becomes that of this one."""
    with chart_style("waterfall"):
        figure, axes = _canvas()
        shown = [(kind, change) for kind, change in report.steps if change or kind not in RARE_STEPS]
        names = ["Before", *(STEP_NAMES[kind] for kind, _ in shown), "Now"]
        axes.bar(0, report.start_mb, color=TOTAL)
        before, now = human_pair_mb(report.start_mb, report.end_mb)
        axes.annotate(before, (0, report.start_mb), ha="center", va="bottom")
        level = report.start_mb
        for place, (kind, change) in enumerate(shown, start=1):
            axes.bar(place, abs(change), bottom=min(level, level + change), color=_step_colour(kind, change))
            axes.plot([place - 0.6, place + 0.4], [level, level], color="#555555", linewidth=0.8)
            axes.annotate(human_change_mb(change), (place, max(level, level + change)), ha="center", va="bottom")
            level += change
        axes.bar(len(names) - 1, report.end_mb, color=TOTAL)
        axes.annotate(now, (len(names) - 1, report.end_mb), ha="center", va="bottom")
        axes.set_xticks(range(len(names)), names)
        _show_steps(axes, report)
        size_axis(axes)
        return svg_of(figure, "From the size of the window before to the size of this window")


def coverage_chart(report: Report) -> str:
    """Draw how many servers were measured on each day of the two windows; a day without a bar was not measured."""
    with chart_style("coverage"):
        figure, axes = _canvas(height=2.2)
        days = report.days
        heights = [report.measured_servers.get(day, 0) for day in days]
        colours = [COLOURS[4] if day < report.window.start else TOTAL for day in days]
        axes.bar(range(len(days)), heights, color=colours, width=0.9)
        expected = [report.expected_servers.get(day, 0) for day in days]
        axes.step(range(len(days)), expected, where="mid", color="#555555", linewidth=0.8, linestyle="--")
        step = max(1, -(-len(days) // LABELS_SHOWN))
        labels = [PERIODS["daily"].label_of(Window(day, day)) for day in days[::step]]
        axes.set_xticks(range(0, len(days), step), labels, rotation=35, ha="right")
        axes.set_ylabel("servers")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylim(0, max([0, *expected, *heights]) * 1.15 + 0.5)
        return svg_of(figure, "Servers measured on each day; the dashed line is how many should have been")


def _step_colour(kind: str, change: int) -> str:
    if kind in NOT_COMPARABLE or kind == OTHER:
        return UNKNOWN
    return UP if change > 0 else DOWN


def shorter(name: str, longest: int = LONGEST_LABEL) -> str:
    """A name in one line of the chart; the table beside it has it in full."""
    line = " ".join(name.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _show_steps(axes: Axes, report: Report) -> None:
    """Where the steps are small against the whole, cut the axis, and say so: from 0 they would not be seen."""
    levels = [report.start_mb]
    for _, change in report.steps:
        levels.append(levels[-1] + change)
    span, top = max(levels) - min(levels), max(levels)
    # Sizes are never negative, but nothing keeps a collector from storing such.
    axes.set_ylim(min(0, *levels) * 1.12, max(0, *levels) * 1.12 or 1)
    if 0 < span < top * SMALL_STEPS:
        axes.set_ylim(max(0, min(levels) - span), top + span * 0.3)
        axes.set_ylabel("the axis does not begin at 0")


@contextmanager
def chart_style(name: str) -> Iterator[None]:
    """Draw with the style of all charts; `name` keeps its ids apart from those of others."""
    # The salt keeps ids apart between the charts of one page, and equal from one run to the next.
    with (
        rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": name,
                "text.parse_math": False,
                "font.size": 8,
                "font.family": "sans-serif",
            }
        ),
        catch_warnings(),
    ):
        # Only the width of a text is measured here; the reader's browser, which has the letters, writes it.
        filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _canvas(height: float = HEIGHT_INCHES, right: float = 0.1) -> tuple[Figure, Axes]:
    """Make a drawing with fixed margins: measuring every text first takes twice as long as drawing."""
    figure = Figure(figsize=(WIDTH_INCHES, height))
    left, bottom, top = 0.95, 0.6, 0.15
    width = (WIDTH_INCHES - left - right) / WIDTH_INCHES
    axes = figure.add_axes((left / WIDTH_INCHES, bottom / height, width, (height - bottom - top) / height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", alpha=0.25)
    return figure, axes


def size_axis(axes: Axes) -> None:
    """Put the marks on round numbers of the unit they are read in."""
    low, high = axes.get_ylim()
    unit = 1024 ** max(0, min(3, (round(high).bit_length() - 1) // 10))
    step = (high - low) / unit / 5
    size = 10 ** math.floor(math.log10(step))
    axes.yaxis.set_major_locator(
        MultipleLocator(unit * size * next(one for one in (1, 2, 5, 10) if one * size >= step))
    )
    name = ("MiB", "GiB", "TiB", "PiB")[[1, 1024, 1024**2, 1024**3].index(unit)]
    places = max(0, math.ceil(-math.log10(size))) if unit > 1 else 0
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value / unit:,.{places}f} {name}"))


def svg_of(figure: Figure, title: str) -> str:
    """Return the drawing as it stands in the page, with a title for who does not see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    head, _, rest = drawing.partition(">")
    return f'{head} role="img" aria-label="{escape(title)}">{rest}'


HEIGHT = 110
DRAWN_DAYS = 90
BAR_WIDTH, BAR_HEIGHT = 120, 12
YEAR_DAYS = HORIZONS_DAYS[-1]


def fan_charts(issue: IssuedDay) -> list[tuple[str, str]]:
    """Draw each risk, in the order of the table: its name, and its history with band and limit as SVG."""
    return [
        (f"{risk.outlook.display_name} on {risk.outlook.server}", history_chart(_fan(risk))) for risk in issue.risks
    ]


def _fan(risk: Risk) -> History:
    outlook = risk.outlook
    sizes = dict(risk.history)
    first = min(sizes, default=outlook.last_day)
    days = [first + timedelta(days=number) for number in range((outlook.last_day - first).days + 1)]
    ahead = [Ahead(outlook.last_day, outlook.size_mb, outlook.size_mb)]
    ahead += [
        Ahead(outlook.last_day + timedelta(days=days), band.lower_mb, band.upper_mb)
        for days, band in sorted(risk.bands.items())
        if days <= DRAWN_DAYS
    ]
    return History(
        f"{outlook.display_name} on {outlook.server}: sizes of {HISTORY_SHOWN_DAYS} days, forecast, limit",
        [Point(day, sizes.get(day)) for day in days],
        ahead,
        _expected(outlook),
        outlook.limit_mb,
        height=HEIGHT,
    )


def _expected(outlook: Outlook) -> list[tuple[date, float]]:
    """A line to the limit on the middle day, as far as it is drawn; empty if there is no such future day.

    The forecast itself may be flat even if most past errors reach the limit, and would then contradict the table.
    """
    if outlook.middle_day is None or outlook.middle_day <= outlook.last_day:
        return []
    days = (outlook.middle_day - outlook.last_day).days
    drawn = min(days, DRAWN_DAYS)
    end = outlook.size_mb + ((outlook.limit_mb or 0) - outlook.size_mb) * drawn / days
    return [(outlook.last_day, outlook.size_mb), (outlook.last_day + timedelta(days=drawn), end)]


def band_bar(risk: Risk) -> str:
    """Draw the early, middle and late day on a year from the last measured day, as a bar; beyond it, to the edge."""
    outlook = risk.outlook
    early, middle, late = (
        _place(day, outlook.last_day) for day in (outlook.early_day, outlook.middle_day, outlook.late_day)
    )
    mark = "" if outlook.middle_day is None else f'<rect x="{middle - 1}" y="0" width="3" height="12" fill="{UP}"/>'
    width = max(late - early, 2)
    return (
        f'<svg width="{BAR_WIDTH}" height="{BAR_HEIGHT}" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">'
        f'<rect x="0" y="5" width="{BAR_WIDTH}" height="2" fill="#bbb"/>'
        f'<rect x="{early}" y="2" width="{width}" height="8" fill="{COLOURS[4]}"/>{mark}</svg>'
    )


def _place(day: date | None, start: date) -> int:
    return BAR_WIDTH if day is None else round(min((day - start).days, YEAR_DAYS) / YEAR_DAYS * BAR_WIDTH)


WORDS = ((0.9, "nearly certain"), (0.5, "likely"), (0.1, "possible"), (0.0, "unlikely"))


def in_words(probability: float) -> str:
    """Say how sure something is."""
    return next(word for least, word in WORDS if probability >= least)


def score_sentences(issue: IssuedDay) -> Sequence[str]:
    """Describe the errors of the forecasts that came due."""
    return [
        f"Of {counted(score.forecasts, 'forecast')} over {score.horizon_days} days that came due, "
        f"{score.covered_percent:.0f} % of the sizes were in the band and {score.above_percent:.0f} % above it"
        + ("" if score.error_percent is None else f"; the mean error was {score.error_percent:.1f} %")
        + ("." if not score.in_hindsight else f". {score.in_hindsight:,} of them were computed in hindsight.")
        for score in issue.scores
    ]
