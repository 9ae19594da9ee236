"""When a limit is reached: what a limit makes of a forecast. How sizes go on is in `model`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.forecast.model import GROWTH_OF_ERRORS, Forecasts, Sizes, ahead

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
    """Compare forecasts with limits, in the unit of the sizes: NaN is an unknown limit, infinity means unlimited.

    The days follow from the probabilities: a day lies within a horizon if and only if the probability there is at least
    its share. Raising a limit never makes its day earlier, and a longer horizon never has a smaller probability.
    """
    known = ~np.isnan(limits)
    has_band = ~np.isnan(forecasts.upper[:, 0])
    goal = np.where(known, limits, np.inf)
    probability = _probabilities(forecasts, goal)
    early, middle, late = (
        np.where(has_band, _reached(forecasts, probability, share, goal), NOT_WITHIN_HORIZON)
        for share in (EARLY, MIDDLE, LATE)
    )
    probability = np.where((known & has_band)[:, None], probability, np.nan)
    return Runways(early, middle, late, probability, known, has_band)


def error_with(forecasts: Forecasts, share: float) -> Sizes:
    """The past error that this share of them reached or exceeded, series by horizon; NaN without a band."""
    count = np.sum(~np.isnan(forecasts.errors), axis=2)
    place = np.maximum(count - _least(share, count), 0)
    found: Sizes = np.take_along_axis(forecasts.errors, place[:, :, None], axis=2)[:, :, 0]
    return found


def _least(share: float, count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest number of errors that is at least this share of `count`, computed exactly: a tenth of 70 is 7."""
    percent = round(100 * share)
    return -(-percent * count // 100)


def _probabilities(forecasts: Forecasts, goal: Sizes) -> Sizes:
    """Share of the past errors with which the forecast reaches the goal, at each horizon or a shorter one."""
    count = np.sum(~np.isnan(forecasts.errors), axis=2)
    reaching = np.sum(forecasts.middle[:, :, None] + forecasts.errors >= goal[:, None, None], axis=2)
    result = np.where((forecasts.last >= goal)[:, None], 1.0, reaching / np.maximum(count, 1))
    return np.maximum.accumulate(result, axis=1)


def _reached(forecasts: Forecasts, probability: Sizes, share: float, goal: Sizes) -> NDArray[np.int64]:
    """The first day on which the goal is reached with this share of the errors.

    It is the first horizon with this probability, or the first day between it and the previous horizon on which the
    forecast plus its offset reaches the goal. Offsets grow between horizons in the same way as errors.
    """
    edges = np.concatenate([np.zeros((len(goal), 1)), np.nan_to_num(error_with(forecasts, share))], axis=1)
    # Index of the first horizon with this probability, or one past the end.
    first = np.sum(probability < share, axis=1)
    found = np.full(len(goal), NOT_WITHIN_HORIZON)
    for place, (start, end) in enumerate(pairwise((0, *HORIZONS_DAYS))):
        found = np.where(first == place, end, found)
        low, high = (days**GROWTH_OF_ERRORS for days in (start, end))
        for day in range(end - 1, start, -1):
            grown = (day**GROWTH_OF_ERRORS - low) / (high - low)
            offset = edges[:, place] + (edges[:, place + 1] - edges[:, place]) * grown
            reached = ahead(forecasts.last, forecasts.drift, day) + offset >= goal
            found = np.where((first == place) & reached, day, found)
    return np.where(forecasts.last >= goal, 0, found)
