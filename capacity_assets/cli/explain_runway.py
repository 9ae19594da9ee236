"""`capacity explain --runway`: what a runway was made of, with the forecast computed a second way beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from sqlalchemy import Engine

from capacity_assets.cli.limits import limit_text
from capacity_assets.cli.output import left, print_json, print_table, right, say
from capacity_assets.cli.runway import LEAST_HISTORY_DAYS
from capacity_assets.clock import Clock
from capacity_assets.collection.registry import registered
from capacity_assets.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.forecast.model import Forecasts, forecast
from capacity_assets.forecast.reference import Reference, reference
from capacity_assets.forecast.runway import MIDDLE, error_with
from capacity_assets.forecast.steps import without_steps
from capacity_assets.runway.forecasting import SeriesOutlook, outlook_with_sizes
from capacity_assets.runway.history_statements import DATABASE_ROWS
from capacity_assets.runway.issued import Said, said_before
from capacity_assets.runway.outlook import FORECAST, FULL, TOO_LITTLE_HISTORY, Outlook, day_text
from capacity_assets.runway.steps import SizeStep, stored_steps
from capacity_assets.settings import Settings
from capacity_assets.units import counted, human_mb, printable

TOLERANCE = 1e-6
COLUMNS = (
    *left("Horizon"),
    *right("Past errors", "Lower", "Forecast", "Upper", "Usual error", "Full by then"),
    *left("A second way"),
)


SAID_COLUMNS = (*left("As of", "Full (50 %)"), *right("Horizon", "Forecast", "Measured", "Error"))


@dataclass(frozen=True)
class RunwayExplanation:
    """A runway, what it was made of, and the same once more."""

    outlook: Outlook
    measured_days: int
    steps: Sequence[SizeStep]
    made: Forecasts
    again: Reference
    said: Sequence[Said]

    @property
    def agrees(self) -> bool:
        """Whether both ways come to the same, up to the last digits of a sum."""
        bands = [(self.made.lower[0, n], self.made.upper[0, n]) for n in range(len(HORIZONS_DAYS))]
        other = [self.again.band.get(days, (np.nan, np.nan)) for days in HORIZONS_DAYS]
        close = np.allclose(bands, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return bool(close and np.isclose(self.made.drift[0], self.again.drift, rtol=TOLERANCE, atol=TOLERANCE))


def explain_runway(  # noqa: PLR0913 -- what is explained, and how it is printed
    engine: Engine, settings: Settings, kind: str, name: str | None, server: str | None, *, as_json: bool
) -> None:
    """Print where the runway of a database or volume, or without a `name` that of a server, comes from.

    Raises:
        NotFoundError: no such server, or nothing of that name was measured within the last month.
        ValidationError: a name is empty, or several servers have one of that name.
        DatabaseError: the database failed.
    """
    if "" in {name, server}:
        raise ValidationError("A name is empty.")
    if server is not None:
        registered(engine, [server])
    found = outlook_with_sizes(engine, Clock(settings.zone).today(), kind, name, server)
    if found is None:
        named = server if name is None else f"{kind} {printable(name)}"
        raise NotFoundError(
            f"{named} was not measured within the last month, or does not exist: names are compared letter by letter."
        )
    measured, smooth = (
        [None if np.isnan(size) else float(size) for size in sizes] for sizes in (found.sizes, found.smooth)
    )
    # A step of one database is one of its server's total, too.
    database = name if kind == DATABASE_ROWS else None
    left_out = [step for step in stored_steps(engine, found.outlook.server, database) if _is_left_out(step, found)]
    made = forecast(found.smooth[None, :], found.sizes[None, :])
    days = sum(value is not None for value in measured)
    with (
        database_errors(doing="reading what was said before", kept="Nothing was changed."),
        engine.connect() as connection,
    ):
        said = said_before(connection, found.outlook)
    explanation = RunwayExplanation(found.outlook, days, left_out, made, reference(smooth, measured), said)
    if as_json:
        print_json(_as_dict(explanation))
    else:
        _print(explanation)


def _is_left_out(step: SizeStep, found: SeriesOutlook) -> bool:
    """Whether a declared step changes what is forecast: sizes before and after it are known, and differ."""
    column = len(found.sizes) - 1 - (found.outlook.last_day - step.day).days
    if step.day > found.outlook.last_day or np.array_equal(found.smooth, found.sizes, equal_nan=True):
        return False
    alone = without_steps(found.sizes[None, :], [[column]])
    return not np.array_equal(alone[0], found.sizes, equal_nan=True)


def _print(explanation: RunwayExplanation) -> None:
    outlook, again = explanation.outlook, explanation.again
    say(f"{outlook.display_name} on {outlook.server}, as of {outlook.last_day}: {human_mb(outlook.size_mb)}")
    say(f"Measured days that were looked at: {explanation.measured_days:,}")
    for step in explanation.steps:
        what = f"{step.database}: {step.note}" if step.database else step.note
        say(f"Left out: {step.day}, {printable(what)}.")
    if outlook.history_days >= LEAST_HISTORY_DAYS:
        say(
            f"Daily changes from {again.lowest_change:,.3f} to {again.highest_change:,.3f} MiB count as they are, "
            f"{again.cut_changes:,} beyond were cut to these."
        )
        say(
            f"Drift: {explanation.made.drift[0]:,.3f} MiB per day; a second way: {again.drift:,.3f}. "
            + (
                "It was the better forecast."
                if again.follows_drift
                else "The last size was the better forecast, so it stays."
            )
        )
        print_table("Bands in MiB", COLUMNS, [_cells(explanation, place) for place in range(len(HORIZONS_DAYS))])
        say(
            "Errors are what was measured less what was forecast. Days on which it is full come from the forecast with "
            "these errors."
        )
    if outlook.binds is None:
        say("Limit: unknown. `capacity limits set` declares one.")
    else:
        say(f"Limit: {limit_text(outlook.limit_mb)}, {outlook.binds}, {outlook.source}.")
    if outlook.state == FULL:
        say("It is full.")
    elif outlook.state == FORECAST:
        early, middle, late = outlook.days_text
        say(f"Full: early {early}, middle {middle}, late {late}.")
    elif outlook.state == TOO_LITTLE_HISTORY:
        say(f"No date: {counted(outlook.history_days, 'day')} of history; at least {LEAST_HISTORY_DAYS} are needed.")
    else:
        say(f"No date: {outlook.state}.")
    if outlook.sooner_day is not None:
        say(outlook.remark)
    if explanation.said:
        print_table("What was said before", SAID_COLUMNS, list(map(_said_cells, explanation.said)))
    say("Both ways come to the same." if explanation.agrees else "The two ways DIFFER: please report this.")


def _said_cells(said: Said) -> list[object]:
    middle = said.state if said.state != FORECAST else day_text(said.middle_day)
    sizes = ["none" if size is None else human_mb(size) for size in (said.forecast_mb, said.actual_mb)]
    error = ""
    if said.forecast_mb is not None and said.actual_mb:
        error = f"{(said.actual_mb - said.forecast_mb) / said.actual_mb:+.1%}"
    return [said.as_of, middle, f"{said.horizon_days} days", *sizes, error]


def _cells(explanation: RunwayExplanation, place: int) -> list[object]:
    made, days = explanation.made, HORIZONS_DAYS[place]
    other = explanation.again.band.get(days)
    figures = [f"{each[0, place]:,.1f}" for each in (made.lower, made.middle, made.upper)]
    again = "none" if other is None else f"{other[0]:,.1f} to {other[1]:,.1f}"
    own = len(explanation.again.errors[days])
    errors = own if made.counts[0, place] else f"{own}, borrowed"
    probability = explanation.outlook.probabilities.get(days)
    shown = "" if probability is None else f"{probability:.0%}"
    return [f"{days} days", errors, *figures, f"{error_with(made, MIDDLE)[0, place]:+,.1f}", shown, again]


def _as_dict(explanation: RunwayExplanation) -> dict[str, object]:
    again = explanation.again
    return {
        "outlook": asdict(explanation.outlook),
        "measured_days": explanation.measured_days,
        "steps": [asdict(step) for step in explanation.steps],
        "drift_mb_per_day": float(explanation.made.drift[0]),
        "lowest_change_mb": again.lowest_change,
        "highest_change_mb": again.highest_change,
        "cut_changes": again.cut_changes,
        "follows_drift": again.follows_drift,
        "errors_mb": again.errors,
        "band_mb": again.band,
        "said_before": [asdict(one) for one in explanation.said],
        "agrees": explanation.agrees,
    }
