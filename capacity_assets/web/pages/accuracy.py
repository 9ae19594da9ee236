"""The page that says how good the forecasts were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.reading.accuracy import Accuracy, Calibration, FleetAccuracy, Miss, accuracy_of, headline
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.reader import Reader

ACCURACY_SECONDS = 1800
DEFAULT_HORIZONS_DAYS = (30, 7)
"""Shown unless the address names one: the first with enough forecasts."""


@dataclass(frozen=True)
class AccuracyPage:
    """How good the forecasts of a horizon were."""

    headline: str
    horizon_days: int
    horizons: Sequence[Accuracy]
    """Every horizon: forecasts that came due lately."""
    kinds: Sequence[Accuracy]
    """The same for this horizon, by subject."""
    calibration: Sequence[Calibration]
    misses: Sequence[Miss]
    months: Sequence[Accuracy]
    """Forecasts of this horizon by month of issue."""
    sampled: str
    """Which part of the forecasts that came due lately is looked at; empty: all of them."""
    sampled_months: str
    """The same of those by month."""


def read_accuracy(reader: Reader, query: PageQuery) -> AccuracyPage:
    """Read the page. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    asked = query.one_of("horizon", ("", *map(str, HORIZONS_DAYS)))
    found = reader.kept_of(("accuracy", query.today), partial(accuracy_of, today=query.today), ACCURACY_SECONDS)
    horizon = int(asked) if asked else _default_horizon(found)
    return AccuracyPage(
        headline(found, horizon, query.today),
        horizon,
        found.horizons,
        [one for one in found.kinds if one.horizon_days == horizon],
        [one for one in found.calibration if one.horizon_days == horizon],
        [one for one in found.misses if one.horizon_days == horizon],
        [one for one in found.months if one.horizon_days == horizon],
        found.sampled,
        found.sampled_months,
    )


def _default_horizon(found: FleetAccuracy) -> int:
    judged = {one.horizon_days for one in found.horizons if one.is_judged}
    return next((days for days in DEFAULT_HORIZONS_DAYS if days in judged), DEFAULT_HORIZONS_DAYS[-1])
