"""`capacity explain --runway`: where a runway comes from, beside a forecast that is computed in a second way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine

from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.base.units import counted, human_day, human_mb, printable
from capacity_assets.cli.decisions import decision_json
from capacity_assets.cli.limits import limit_text
from capacity_assets.cli.options import Line, Report, Table
from capacity_assets.cli.runway import LEAST_HISTORY_DAYS
from capacity_assets.collection.servers import registered
from capacity_assets.forecast.decisions import open_decisions
from capacity_assets.forecast.limits import SizeStep, stored_steps
from capacity_assets.forecast.model import (
    NOT_WITHIN_HORIZON,
    PIECES,
    RISE_DAYS,
    WEIGHTS,
    Forecasts,
    forecast,
    runways,
    without_steps,
)
from capacity_assets.forecast.outlook import (
    DATABASE,
    FORECAST,
    FULL,
    SHARES,
    TOO_LITTLE_HISTORY,
    VOLUME,
    Outlook,
    day_text,
)
from capacity_assets.forecast.reference import Reference, reference
from capacity_assets.forecast.runway import SeriesOutlook, outlook_with_sizes
from capacity_assets.reading.forecasts import EarlierForecast, earlier_forecasts
from capacity_assets.reading.subjects import SampleOrigin, origins_of, server_id_of

TOLERANCE = 1e-6
BAND_HEADINGS = (
    *("Horizon", ">Past errors", ">Lower", ">Forecast", ">Upper", ">Full by then"),
    "Second calculation",
)
EVIDENCE_HEADINGS = ("Horizon", *(f">{piece.capitalize()}" for piece in PIECES), ">Log odds", ">Full by then")
EARLIER_HEADINGS = ("As of", "Full (50 %)", ">Horizon", ">Forecast", ">Measured", ">Error")


def explain_runway(engine: Engine, settings: Settings, kind: str, name: str | None, server: str | None) -> Report:
    """Report where the runway of a database or volume comes from; without a `name` that of a server.

    Raises:
        NotFoundError: no such server, or nothing of that name was measured within the last month.
        ValidationError: a name is empty, or several servers have one of that name.
        DatabaseError: the database failed.
    """
    if "" in {name, server}:
        raise ValidationError("A name is empty.")
    if server is not None:
        registered(engine, [server])
    today = Clock(settings.zone).today()
    series = outlook_with_sizes(engine, today, kind, name, server)
    if series is None:
        subject = server if name is None else f"{kind} {printable(name)}"
        raise NotFoundError(
            f"{subject} was not measured within the last month, or does not exist. Names are case-sensitive."
        )
    outlook = series.outlook
    with database_errors(doing="reading earlier forecasts"), engine.connect() as connection:
        earlier = earlier_forecasts(connection, outlook)
        decision = open_decisions(connection, today).on(outlook)
        imported = _imported(connection, series, kind, name)
    # A step of a database is also a step of its server's total.
    declared = stored_steps(engine, outlook.server, name if kind == DATABASE else None)
    steps = [stored.step for stored in declared if _is_ignored(stored.step, series)]
    first = forecast(series.smooth[None, :], series.sizes[None, :])
    measured, smooth = (
        [None if np.isnan(size) else float(size) for size in sizes] for sizes in (series.sizes, series.smooth)
    )
    second = reference(smooth, measured)
    agrees = _agree(first, second) and _days_agree(outlook, first, second)
    measured_days = sum(size is not None for size in measured)
    document = {
        "outlook": asdict(outlook),
        "decision": decision and decision_json(decision, today),
        "measured_days": measured_days,
        "imported": list(map(asdict, imported)),
        "steps": list(map(asdict, steps)),
        "drift_mb_per_day": float(first.drift[0]),
        "lowest_change_mb": second.lowest_change,
        "highest_change_mb": second.highest_change,
        "cut_changes": second.cut_changes,
        "follows_drift": second.follows_drift,
        "errors_mb": second.errors,
        "band_mb": second.band,
        "said_before": list(map(asdict, earlier)),
        "agrees": agrees,
    }
    lines: list[Line] = [
        f"{outlook.display_name} on {outlook.server}, as of {human_day(outlook.last_day)}: {human_mb(outlook.size_mb)}",
        f"Measured days: {measured_days:,}",
        *(one.sentence for one in imported),
        *(
            f"Ignored: {human_day(step.day)}, {printable(': '.join(filter(None, (step.database, step.note))))}."
            for step in steps
        ),
        *(_forecast_lines(outlook, first, second) if outlook.history_days >= LEAST_HISTORY_DAYS else ()),
        "Limit: unknown. `capacity limits set` declares one."
        if outlook.binds is None
        else f"Limit: {limit_text(outlook.limit_mb)}, {outlook.binds}, {outlook.source}.",
        _days_text(outlook),
        *([] if decision is None else [decision.sentence]),
        *([] if outlook.planned is None else [outlook.planned.sentence]),
        *([] if outlook.sooner_day is None else [outlook.remark]),
        *([Table("Earlier forecasts", EARLIER_HEADINGS, list(map(_earlier_cells, earlier)))] if earlier else []),
        "Both calculations agree." if agrees else "The two calculations DIFFER. Please report this as a defect.",
    ]
    return Report(document, lines)


def _imported(connection: Connection, series: SeriesOutlook, kind: str, name: str | None) -> list[SampleOrigin]:
    """Return which of the sizes that the forecast rests on were imported."""
    outlook = series.outlook
    number = server_id_of(connection, outlook.server)
    if kind == VOLUME or number is None:
        return []
    first = outlook.last_day - timedelta(days=len(series.sizes) - 1)
    return origins_of(connection, number, name, first, outlook.last_day)


def _agree(first: Forecasts, second: Reference) -> bool:
    """Whether both calculations agree, apart from rounding."""
    bands = [(first.lower[0, n], first.upper[0, n]) for n in range(len(HORIZONS_DAYS))]
    figures = (first.drift[0], first.pace[0], first.spread[0], first.fallen[0])
    rises = np.sort(first.rises[0])
    compared: list[tuple[Any, Any]] = [
        (bands, [second.band.get(days, (np.nan, np.nan)) for days in HORIZONS_DAYS]),
        (figures, (second.drift, second.pace, second.spread, second.fallen)),
        *((rises[n, : len(second.rises[days])], sorted(second.rises[days])) for n, days in enumerate(RISE_DAYS)),
    ]
    return all(np.allclose(*two, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True) for two in compared)


def _days_agree(outlook: Outlook, first: Forecasts, second: Reference) -> bool:
    """Whether the days of both calculations agree; the last digit of a size may decide about one day."""
    if outlook.state != FORECAST or outlook.limit_mb is None:
        return True
    ends, beyond = runways(first, np.array([float(outlook.limit_mb)])), RISE_DAYS[-1] + 1
    for share, [day] in zip(SHARES, (ends.early_days, ends.middle_days, ends.late_days), strict=True):
        again = second.day(outlook.limit_mb, round(100 * share))
        found = beyond if day == NOT_WITHIN_HORIZON else day
        if abs(found - (beyond if again is None else again)) > 1:
            return False
    return True


def _is_ignored(step: SizeStep, series: SeriesOutlook) -> bool:
    """Whether the forecast ignores a declared step: sizes before and after it are known, and differ."""
    if step.day > series.outlook.last_day or np.array_equal(series.smooth, series.sizes, equal_nan=True):
        return False
    column = len(series.sizes) - 1 - (series.outlook.last_day - step.day).days
    return not np.array_equal(without_steps(series.sizes[None, :], [[column]])[0], series.sizes, equal_nan=True)


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


def _forecast_lines(outlook: Outlook, first: Forecasts, second: Reference) -> Iterator[Line]:
    yield (
        f"Daily changes between {second.lowest_change:,.3f} and {second.highest_change:,.3f} MiB are used unchanged; "
        f"{second.cut_changes:,} beyond were cut to these."
    )
    better = (
        "It was the better forecast."
        if second.follows_drift
        else "The last size was the better forecast, so it is used."
    )
    yield (f"Drift: {first.drift[0]:,.3f} MiB per day; by the second calculation: {second.drift:,.3f}. {better}")
    rows = [_band_cells(outlook, first, second, place) for place in range(len(HORIZONS_DAYS))]
    yield Table("Bands in MiB", BAND_HEADINGS, rows)
    if outlook.state == FORECAST:
        evidence = [_evidence_cells(float(outlook.limit_mb or 0), second, days) for days in HORIZONS_DAYS]
        yield Table("Evidence of being full, each piece times its weight", EVIDENCE_HEADINGS, evidence)


def _earlier_cells(earlier: EarlierForecast) -> list[object]:
    middle = earlier.state if earlier.state != FORECAST else day_text(earlier.middle_day)
    sizes = ["none" if size is None else human_mb(size) for size in (earlier.forecast_mb, earlier.actual_mb)]
    error = ""
    if earlier.forecast_mb is not None and earlier.actual_mb:
        error = f"{(earlier.actual_mb - earlier.forecast_mb) / earlier.actual_mb:+.1%}"
    return [human_day(earlier.as_of), middle, f"{earlier.horizon_days} days", *sizes, error]


def _band_cells(outlook: Outlook, first: Forecasts, second: Reference, place: int) -> list[object]:
    days = HORIZONS_DAYS[place]
    sizes = [f"{size[0, place]:,.1f}" for size in (first.lower, first.middle, first.upper)]
    own = len(second.errors[days])
    errors = own if first.counts[0, place] else f"{own}, borrowed"
    probability = outlook.probabilities.get(days)
    full = "" if probability is None else f"{probability:.0%}"
    band = second.band.get(days)
    again = "none" if band is None else f"{band[0]:,.1f} to {band[1]:,.1f}"
    return [f"{days} days", errors, *sizes, full, again]


def _evidence_cells(limit_mb: float, second: Reference, days: int) -> list[object]:
    pieces = zip(second.evidence(limit_mb, days), WEIGHTS[days], strict=True)
    weighed = [piece * weight for piece, weight in pieces]
    full = second.probabilities(limit_mb)[days]
    return [f"{days} days", *(f"{one:+.2f}" for one in (*weighed, sum(weighed))), f"{full:.0%}"]
