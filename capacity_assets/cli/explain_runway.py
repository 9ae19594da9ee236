"""`capacity explain --runway`: where a runway comes from, beside a forecast that is computed in a second way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sqlalchemy import Engine

from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.base.units import counted, human_day, human_mb, printable
from capacity_assets.cli.limits import limit_text
from capacity_assets.cli.options import left, print_json, print_table, right, say
from capacity_assets.cli.runway import LEAST_HISTORY_DAYS
from capacity_assets.collection.servers import registered
from capacity_assets.forecast.history_statements import DATABASE_ROWS
from capacity_assets.forecast.issued import EarlierForecast, earlier_forecasts
from capacity_assets.forecast.limits import SizeStep, stored_steps
from capacity_assets.forecast.model import Forecasts, forecast, without_steps
from capacity_assets.forecast.outlook import FORECAST, FULL, TOO_LITTLE_HISTORY, Outlook, day_text
from capacity_assets.forecast.reference import Reference, reference
from capacity_assets.forecast.runway import MIDDLE, SeriesOutlook, error_with, outlook_with_sizes

TOLERANCE = 1e-6
BAND_COLUMNS = (
    *left("Horizon"),
    *right("Past errors", "Lower", "Forecast", "Upper", "Usual error", "Full by then"),
    *left("Second calculation"),
)
EARLIER_COLUMNS = (*left("As of", "Full (50 %)"), *right("Horizon", "Forecast", "Measured", "Error"))


@dataclass(frozen=True)
class RunwayExplanation:
    """A runway, the steps that it ignores, its forecast and the second calculation, and earlier forecasts."""

    outlook: Outlook
    measured_days: int
    steps: Sequence[SizeStep]
    forecast: Forecasts
    second: Reference
    earlier: Sequence[EarlierForecast]

    @property
    def agrees(self) -> bool:
        """Whether both calculations agree, apart from rounding."""
        bands = [(self.forecast.lower[0, n], self.forecast.upper[0, n]) for n in range(len(HORIZONS_DAYS))]
        second = [self.second.band.get(days, (np.nan, np.nan)) for days in HORIZONS_DAYS]
        close = np.allclose(bands, second, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return bool(close and np.isclose(self.forecast.drift[0], self.second.drift, rtol=TOLERANCE, atol=TOLERANCE))


def explain_runway(
    engine: Engine, settings: Settings, kind: str, name: str | None, server: str | None, *, as_json: bool
) -> None:
    """Print where the runway of a database or volume comes from; without a `name` that of a server.

    Raises:
        NotFoundError: no such server, or nothing of that name was measured within the last month.
        ValidationError: a name is empty, or several servers have one of that name.
        DatabaseError: the database failed.
    """
    if "" in {name, server}:
        raise ValidationError("A name is empty.")
    if server is not None:
        registered(engine, [server])
    series = outlook_with_sizes(engine, Clock(settings.zone).today(), kind, name, server)
    if series is None:
        subject = server if name is None else f"{kind} {printable(name)}"
        raise NotFoundError(
            f"{subject} was not measured within the last month, or does not exist. Names are case-sensitive."
        )
    measured, smooth = (
        [None if np.isnan(size) else float(size) for size in sizes] for sizes in (series.sizes, series.smooth)
    )
    # A step of a database is also a step of its server's total.
    database = name if kind == DATABASE_ROWS else None
    with (
        database_errors(doing="reading earlier forecasts"),
        engine.connect() as connection,
    ):
        earlier = earlier_forecasts(connection, series.outlook)
    explanation = RunwayExplanation(
        series.outlook,
        sum(size is not None for size in measured),
        [step for step in stored_steps(engine, series.outlook.server, database) if _is_ignored(step, series)],
        forecast(series.smooth[None, :], series.sizes[None, :]),
        reference(smooth, measured),
        earlier,
    )
    if as_json:
        print_json(_as_dict(explanation))
    else:
        _print(explanation)


def _is_ignored(step: SizeStep, series: SeriesOutlook) -> bool:
    """Whether the forecast ignores a declared step: sizes before and after it are known, and differ."""
    if step.day > series.outlook.last_day or np.array_equal(series.smooth, series.sizes, equal_nan=True):
        return False
    column = len(series.sizes) - 1 - (series.outlook.last_day - step.day).days
    return not np.array_equal(without_steps(series.sizes[None, :], [[column]])[0], series.sizes, equal_nan=True)


def _print(explanation: RunwayExplanation) -> None:
    outlook = explanation.outlook
    say(f"{outlook.display_name} on {outlook.server}, as of {human_day(outlook.last_day)}: {human_mb(outlook.size_mb)}")
    say(f"Measured days: {explanation.measured_days:,}")
    for step in explanation.steps:
        what = f"{step.database}: {step.note}" if step.database else step.note
        say(f"Ignored: {human_day(step.day)}, {printable(what)}.")
    if outlook.history_days >= LEAST_HISTORY_DAYS:
        _print_forecast(explanation)
    if outlook.binds is None:
        say("Limit: unknown. `capacity limits set` declares one.")
    else:
        say(f"Limit: {limit_text(outlook.limit_mb)}, {outlook.binds}, {outlook.source}.")
    say(_days_text(outlook))
    if outlook.sooner_day is not None:
        say(outlook.remark)
    if explanation.earlier:
        print_table("Earlier forecasts", EARLIER_COLUMNS, list(map(_earlier_cells, explanation.earlier)))
    say(
        "Both calculations agree."
        if explanation.agrees
        else "The two calculations DIFFER. Please report this as a defect."
    )


def _days_text(outlook: Outlook) -> str:
    if outlook.state == FULL:
        return "It is full."
    if outlook.state == FORECAST:
        early, middle, late = outlook.days_text
        return f"Full: early {early}, middle {middle}, late {late}."
    if outlook.state == TOO_LITTLE_HISTORY:
        history = counted(outlook.history_days, "day")
        return f"No date: {history} of history; at least {LEAST_HISTORY_DAYS} are needed."
    return f"No date: {outlook.state}."


def _print_forecast(explanation: RunwayExplanation) -> None:
    second = explanation.second
    say(
        f"Daily changes between {second.lowest_change:,.3f} and {second.highest_change:,.3f} MiB are used unchanged; "
        f"{second.cut_changes:,} beyond were cut to these."
    )
    better = (
        "It was the better forecast."
        if second.follows_drift
        else "The last size was the better forecast, so it is used."
    )
    drift = explanation.forecast.drift[0]
    say(f"Drift: {drift:,.3f} MiB per day; by the second calculation: {second.drift:,.3f}. {better}")
    print_table("Bands in MiB", BAND_COLUMNS, [_band_cells(explanation, place) for place in range(len(HORIZONS_DAYS))])
    say("Errors are measured minus forecast sizes. The forecast and these errors give the days on which it is full.")


def _earlier_cells(earlier: EarlierForecast) -> list[object]:
    middle = earlier.state if earlier.state != FORECAST else day_text(earlier.middle_day)
    sizes = ["none" if size is None else human_mb(size) for size in (earlier.forecast_mb, earlier.actual_mb)]
    error = ""
    if earlier.forecast_mb is not None and earlier.actual_mb:
        error = f"{(earlier.actual_mb - earlier.forecast_mb) / earlier.actual_mb:+.1%}"
    return [human_day(earlier.as_of), middle, f"{earlier.horizon_days} days", *sizes, error]


def _band_cells(explanation: RunwayExplanation, place: int) -> list[object]:
    forecasts, days = explanation.forecast, HORIZONS_DAYS[place]
    sizes = [f"{size[0, place]:,.1f}" for size in (forecasts.lower, forecasts.middle, forecasts.upper)]
    own = len(explanation.second.errors[days])
    errors = own if forecasts.counts[0, place] else f"{own}, borrowed"
    probability = explanation.outlook.probabilities.get(days)
    full = "" if probability is None else f"{probability:.0%}"
    band = explanation.second.band.get(days)
    second = "none" if band is None else f"{band[0]:,.1f} to {band[1]:,.1f}"
    return [f"{days} days", errors, *sizes, f"{error_with(forecasts, MIDDLE)[0, place]:+,.1f}", full, second]


def _as_dict(explanation: RunwayExplanation) -> dict[str, object]:
    second = explanation.second
    return {
        "outlook": asdict(explanation.outlook),
        "measured_days": explanation.measured_days,
        "steps": [asdict(step) for step in explanation.steps],
        "drift_mb_per_day": float(explanation.forecast.drift[0]),
        "lowest_change_mb": second.lowest_change,
        "highest_change_mb": second.highest_change,
        "cut_changes": second.cut_changes,
        "follows_drift": second.follows_drift,
        "errors_mb": second.errors,
        "band_mb": second.band,
        "said_before": [asdict(earlier) for earlier in explanation.earlier],
        "agrees": explanation.agrees,
    }
