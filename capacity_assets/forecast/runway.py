"""When a limit is reached: what a limit makes of a forecast. How sizes go on is in `model`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.forecast.model import GROWTH_OF_ERRORS, Forecasts, Sizes

HORIZON_DAYS = HORIZONS_DAYS[-1]
"""What is not reached in so many days is "not within the horizon"."""

NOT_WITHIN_HORIZON = -1
EARLY, MIDDLE, LATE = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Runways:
    """When each series of a batch reaches its limit; every array has one row per series.

    Days count from the last known size, 0: reached already. NOT_WITHIN_HORIZON also stands where the limit is unknown
    (NaN), or where there is no band; `is_known` and `has_band` tell these apart.
    """

    early_days: NDArray[np.int64]
    """P10: reached by then with a probability of a tenth."""
    middle_days: NDArray[np.int64]
    """P50."""
    late_days: NDArray[np.int64]
    """P90."""
    probability: Sizes
    """Probability of being full within each of HORIZONS_DAYS; NaN without limit or band."""
    is_known: NDArray[np.bool_]
    has_band: NDArray[np.bool_]


def runways(forecasts: Forecasts, limits: Sizes) -> Runways:
    """Hold forecasts against limits, in the unit of the sizes: NaN is an unknown limit, infinity none.

    Days and probabilities are of the same past errors, so that what is reached within a horizon with a probability of
    a tenth has its early day within it. A limit that is raised is never reached sooner, and a longer horizon never has
    a smaller probability.
    """
    known = ~np.isnan(limits)
    has_band = ~np.isnan(forecasts.upper[:, 0])
    goal = np.where(known, limits, np.inf)
    early, middle, late = (
        np.where(has_band, _reached(forecasts, error_with(forecasts, share), goal), NOT_WITHIN_HORIZON)
        for share in (EARLY, MIDDLE, LATE)
    )
    probability = np.where((known & has_band)[:, None], _probabilities(forecasts, goal), np.nan)
    return Runways(early, middle, late, probability, known, has_band)


def error_with(forecasts: Forecasts, share: float) -> Sizes:
    """The past error that this share of them reached or exceeded, series by horizon; NaN without a band."""
    count = np.sum(~np.isnan(forecasts.errors), axis=2)
    place = np.maximum(count - np.ceil(share * count).astype(np.int64), 0)
    found: Sizes = np.take_along_axis(forecasts.errors, place[:, :, None], axis=2)[:, :, 0]
    return found


def _reached(forecasts: Forecasts, offsets: Sizes, goal: Sizes) -> NDArray[np.int64]:
    """First day on which the forecast with its offset reaches the goal; between horizons offsets grow as errors do."""
    found = np.where(forecasts.last >= goal, 0, NOT_WITHIN_HORIZON)
    days = np.array((0, *HORIZONS_DAYS), dtype=np.float64)
    edges = np.concatenate([np.zeros((len(goal), 1)), np.nan_to_num(offsets)], axis=1)
    powers = days**GROWTH_OF_ERRORS
    for day in range(1, HORIZON_DAYS + 1):
        after = int(np.searchsorted(days, day))
        share = (day**GROWTH_OF_ERRORS - powers[after - 1]) / (powers[after] - powers[after - 1])
        offset = edges[:, after - 1] + (edges[:, after] - edges[:, after - 1]) * share
        reached = forecasts.last + forecasts.drift * day + offset >= goal
        found = np.where((found == NOT_WITHIN_HORIZON) & reached, day, found)
    return found


def _probabilities(forecasts: Forecasts, goal: Sizes) -> Sizes:
    """Share of the past errors with which the forecast would reach the goal, at each horizon."""
    days = np.asarray(HORIZONS_DAYS, dtype=np.float64)
    missing = (goal - forecasts.last)[:, None] - forecasts.drift[:, None] * days
    count = np.sum(~np.isnan(forecasts.errors), axis=2)
    result = np.sum(forecasts.errors >= missing[:, :, None], axis=2) / np.maximum(count, 1)
    result = np.where((forecasts.last >= goal)[:, None], 1.0, result)
    return np.maximum.accumulate(result, axis=1)
