"""What fills first, drawn: sizes before, the band of the forecast and the limit, a small chart each; and in words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from capacity_assets.charts.history import Ahead, History, Point, history_chart
from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.report.charts import COLOURS, UP
from capacity_assets.runway.issued import HISTORY_SHOWN_DAYS, IssuedDay, Risk
from capacity_assets.runway.outlook import Outlook
from capacity_assets.units import counted

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
