"""The page that says how good the forecasts were."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.reading.accuracy import FleetAccuracy, Scores, accuracy_of, headline
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.reader import Reader

ACCURACY_SECONDS = 1800
DEFAULT_HORIZONS_DAYS = (30, 7)
"""Shown unless the address names one: the first with enough forecasts."""


@dataclass(frozen=True, kw_only=True)
class AccuracyPage(Scores):
    """How good the forecasts of a horizon were; `horizons` has every horizon, all else is of this one."""

    headline: str
    horizon_days: int


def read_accuracy(reader: Reader, query: PageQuery) -> AccuracyPage:
    """Read the page. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    asked = query.one_of("horizon", ("", *map(str, HORIZONS_DAYS)))
    found = reader.kept_of(
        ("accuracy", query.today),
        partial(accuracy_of, today=query.today, thresholds=reader.thresholds),
        ACCURACY_SECONDS,
    )
    horizon = int(asked) if asked else _default_horizon(found)
    return AccuracyPage(
        headline=headline(found, horizon, query.today),
        horizon_days=horizon,
        horizons=found.horizons,
        kinds=[one for one in found.kinds if one.horizon_days == horizon],
        calibration=[one for one in found.calibration if one.horizon_days == horizon],
        alarms=[one for one in found.alarms if one.horizon_days == horizon],
        fill_dates=[one for one in found.fill_dates if one.horizon_days == horizon],
        misses=[one for one in found.misses if one.horizon_days == horizon],
        months=[one for one in found.months if one.horizon_days == horizon],
        sampled=found.sampled,
        sampled_months=found.sampled_months,
    )


def _default_horizon(found: FleetAccuracy) -> int:
    judged = {one.horizon_days for one in found.horizons if one.is_judged}
    return next((days for days in DEFAULT_HORIZONS_DAYS if days in judged), DEFAULT_HORIZONS_DAYS[-1])
