"""Turns the numbers of the report (`data`) into charts, drawn by `capacity_assets.charts`; `page` places them.

Every chart has its numbers in a table beside it, so nothing depends on seeing it. What fills first has a small chart
each: sizes so far, the band of the forecast and the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from markupsafe import Markup

from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import counted
from capacity_assets.charts.bars import (
    MOST_SERIES,
    Columns,
    Series,
    Step,
    columns_chart,
    span_bar,
    waterfall_chart,
)
from capacity_assets.charts.history import Ahead, Full, History, Point, history_chart
from capacity_assets.reading.changes import NOT_COMPARABLE, ChangeKind
from capacity_assets.reading.forecasts import HISTORY_SHOWN_DAYS, ForecastIssue, Runway
from capacity_assets.report.data import OTHER, Report

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


def stacked_series(report: Report) -> list[Series]:
    """Return the history as series, largest first; those beyond the colours are one series of their own."""
    windows = [window.start for window in report.windows]
    sizes = {(bar.window_start, bar.series): bar.size_mb for bar in report.history}
    measured = {bar.window_start for bar in report.history}
    totals: dict[str, int] = {}
    for bar in report.history:
        totals[bar.series] = totals.get(bar.series, 0) + bar.size_mb
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    shown = ranked if len(ranked) <= MOST_SERIES else ranked[: MOST_SERIES - 1]

    def series(name: str, members: Sequence[str]) -> Series:
        values = (
            sum(sizes.get((start, member), 0) for member in members) if start in measured else None for start in windows
        )
        return Series(name, tuple(values))

    rest = ranked[len(shown) :]
    return [series(name, [name]) for name in shown] + ([series(f"{len(rest)} others", rest)] if rest else [])


def fleet_history_chart(report: Report) -> Markup:
    """Draw the size of the fleet by engine, or of the server by database, window by window; gaps stay gaps."""
    return columns_chart(
        Columns(
            f"Size by {'database' if report.server else 'engine'}, window by window",
            [report.period.label_of(window) for window in report.windows],
            stacked_series(report),
        )
    )


def growth_chart(report: Report) -> Markup:
    """Draw how the size of the window before becomes that of this one."""
    steps = [
        Step(STEP_NAMES[kind], change, _step_colour(kind, change))
        for kind, change in report.steps
        if change or kind not in RARE_STEPS
    ]
    title = "From the size of the window before to the size of this window"
    return waterfall_chart(title, report.start_mb, steps)


def _step_colour(kind: str, change: int) -> str:
    if kind in NOT_COMPARABLE or kind == OTHER:
        return "unknown"
    return "up" if change > 0 else "down"


def coverage_chart(report: Report) -> Markup:
    """Draw how many servers were measured on each day of the two windows; a day without a bar was not measured."""
    days, start = report.days, report.window.start
    before = [one.measured if one.day < start else None for one in days]
    now = [one.measured if one.day >= start else None for one in days]
    return columns_chart(
        Columns(
            "Servers measured on each day",
            [PERIODS["daily"].label_of(Window(one.day, one.day)) for one in days],
            [Series("window before", before, "before"), Series("this window", now, "now")],
            "server",
            [one.expected for one in days],
            "servers that should have been measured",
            height=140,
        )
    )


HEIGHT = 110
DRAWN_DAYS = 90
YEAR_DAYS = HORIZONS_DAYS[-1]


def fan_charts(issue: ForecastIssue) -> list[tuple[str, Markup]]:
    """Draw each risk, in the order of the table: its name, and its history with band and limit as SVG."""
    return [
        (f"{risk.display_name} on {risk.server}", history_chart(_fan(risk, issue.histories.get(risk.key, {}))))
        for risk in issue.risks
    ]


def _fan(risk: Runway, sizes: Mapping[date, int]) -> History:
    first, drawn_until = min(sizes, default=risk.last_day), risk.last_day + timedelta(days=DRAWN_DAYS)
    days = [first + timedelta(days=number) for number in range((risk.last_day - first).days + 1)]
    ahead = [Ahead(risk.last_day, risk.size_mb, risk.size_mb, risk.size_mb)]
    ahead += [Ahead(one.day, one.lower_mb, one.size_mb, one.upper_mb) for one in risk.ahead if one.day <= drawn_until]
    return History(
        f"{risk.display_name} on {risk.server}: sizes of {HISTORY_SHOWN_DAYS} days, forecast, limit",
        [Point(day, sizes.get(day)) for day in days],
        ahead,
        full=Full(risk.full_early, risk.full_middle, risk.full_late),
        limit_mb=risk.limit_mb,
        height=HEIGHT,
    )


def band_bar(risk: Runway) -> Markup:
    """Draw the early, middle and late day on a year from the last measured day, as a bar; beyond it, to the edge."""
    early, late = (_share_of_year(day, risk.last_day) for day in (risk.full_early, risk.full_late))
    middle = None if risk.full_middle is None else _share_of_year(risk.full_middle, risk.last_day)
    return span_bar(early, late, middle)


def _share_of_year(day: date | None, start: date) -> float:
    return 1 if day is None else min((day - start).days / YEAR_DAYS, 1)


WORDS = ((0.9, "nearly certain"), (0.5, "likely"), (0.1, "possible"), (0.0, "unlikely"))


def in_words(probability: float) -> str:
    """Say how sure something is."""
    return next(word for least, word in WORDS if probability >= least)


def score_sentences(issue: ForecastIssue) -> Sequence[str]:
    """Describe the errors of the forecasts that came due."""
    return [
        f"Of {counted(score.forecasts, 'forecast')} over {score.horizon_days} days that came due, "
        f"{score.covered_percent:.0f} % of the sizes were in the band and {score.above_percent:.0f} % above it"
        + ("" if score.error_percent is None else f"; the mean error was {score.error_percent:.1f} %")
        + ("." if not score.in_hindsight else f". {score.in_hindsight:,} of them were computed in hindsight.")
        for score in issue.scores
    ]
