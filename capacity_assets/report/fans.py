"""The charts of what fills first: sizes before, the band of the forecast, and the limit; a small one each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.report.charts import (
    COLOURS,
    TOTAL,
    UP,
    WIDTH_INCHES,
    chart_style,
    shorter,
    size_axis,
    svg_of,
)
from capacity_assets.runway.issued import HISTORY_SHOWN_DAYS, Issue, Risk

COLUMNS = 2
ROW_INCHES = 1.7
DRAWN_DAYS = 90
LONGEST_TITLE = 56
BAR_WIDTH, BAR_HEIGHT = 120, 12
YEAR_DAYS = HORIZONS_DAYS[-1]


def fan_chart(issue: Issue) -> str:
    """Draw each risk: history as a line, the band as an area, the limit dashed; in the order of the table."""
    with chart_style("fans"):
        rows = -(-len(issue.risks) // COLUMNS)
        figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * rows + 0.3), layout="constrained")
        for place, risk in enumerate(issue.risks, start=1):
            _fan(figure.add_subplot(rows, COLUMNS, place), risk)
        return svg_of(figure, "Sizes of the last months, forecasts with their bands, and limits")


def _fan(axes: Axes, risk: Risk) -> None:
    outlook = risk.outlook
    days = [(day - outlook.last_day).days for day, _ in risk.history]
    axes.plot(days, [size for _, size in risk.history], color=TOTAL, linewidth=1.1)
    ahead = [horizon for horizon in risk.bands if horizon <= DRAWN_DAYS]
    bands = [risk.bands[horizon] for horizon in ahead]
    at = [0, *ahead]
    lower, middle, upper = (
        [outlook.size_mb, *(getattr(band, f"{end}_mb") for band in bands)] for end in ("lower", "middle", "upper")
    )
    axes.fill_between(at, lower, upper, color=COLOURS[4], alpha=0.45, linewidth=0)
    axes.plot(at, middle, color=TOTAL, linewidth=1.1, linestyle=":")
    if outlook.limit_mb is not None:
        axes.axhline(outlook.limit_mb, color=UP, linewidth=1.0, linestyle="--")
    axes.set_title(shorter(f"{outlook.told} on {outlook.server}", LONGEST_TITLE), fontsize=8, loc="left")
    axes.set_xlim(-HISTORY_SHOWN_DAYS, DRAWN_DAYS)
    axes.set_xticks([-90, 0, 90], ["-90 days", str(outlook.last_day), "+90 days"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.25)
    size_axis(axes)


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


def scores_told(issue: Issue) -> Sequence[str]:
    """Say how far the forecasts were off that came due."""
    return [
        f"Of {score.forecasts:,} forecasts over {score.horizon_days} days that came due, {score.covered_percent:.0f} % "
        f"of the sizes lay in their band and {score.above_percent:.0f} % above it"
        + ("" if score.error_percent is None else f"; the mean error was {score.error_percent:.1f} %")
        + ("." if not score.in_hindsight else f". {score.in_hindsight:,} of them were computed in hindsight.")
        for score in issue.scores
    ]
