"""The arithmetic of forecasts: how sizes continue, and when they reach a limit; arrays in, arrays out.

A forecast continues the last size by a robust drift, by the slope of a fitted line, or unchanged, whichever was the
best forecast in the past. Its bands come from past errors. All of it is in closed form, series by series: equal sizes
give equal figures to the last digit, regardless of the rest of the batch, its order and the number of processors.
Declared steps, which will not repeat, are removed from a series first.
The method and its measured errors are in docs/forecast.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.results import (
    DAY_PROBABILITIES,
    HISTORY_DAYS,
    LEAST_CHANGES,
    LEAST_ERRORS,
    ORIGIN_STEP_DAYS,
)

Sizes: TypeAlias = NDArray[np.float64]

DRIFT_DAYS = 400
"""The drift is the mean of the daily changes of this many days."""

WINSORISED_SHARE = 0.05
"""Daily changes are limited to this quantile and its opposite, so that a migration or purge is not a trend."""

METHODS = LAST_SIZE, MEAN_CHANGE, SLOPE = range(3)
"""How a series continues: the last size stays, or grows by the mean change (the drift), or by the slope."""

MOST_ORIGINS = 104
JUDGED_BY_DAYS = 90
"""The horizon at which the methods are compared."""

LEAST_SLOPE_CHANGES, LEAST_SLOPE_ERRORS, MOST_SLOPE_ERROR = 120, 39, 0.8
"""The slope needs this number of known changes before the day of the forecast; this number of past errors, those of
nine months; and an error below this share of those of the other methods. It follows growth under regular purges, and is
mostly noise elsewhere."""

ROUNDING_SHARE = 1e-9
"""A smaller part of a size is an error of rounding: on even growth it must not choose a method."""

BAND = 0.8
"""Share of outcomes that should lie between the lower and the upper end."""

RISE_DAYS = (7, 14, 30, 45, 60, 90, 120, 180, 270, 365)
"""The days within which something may fill: HORIZONS_DAYS and days between them."""

WEEK_DAYS, SPREAD_DAYS, PEAK_DAYS = 7, 90, 365

MOST_ACTIVE = 0.25
"""More activity counts as this: few of the series that the weights were fitted to change on most days."""

GROWTH_OF_ERRORS = 0.75
"""Errors grow with the horizon to this power: between a random walk, 0.5, and a wrong drift, 1."""


@dataclass(frozen=True)
class SizeForecasts:
    """Forecasts of a batch of series; every array has one row per series."""

    last: Sizes
    """The last known size."""
    method: NDArray[np.int64]
    """The method that forecast past days best: LAST_SIZE, MEAN_CHANGE or SLOPE."""
    drift: Sizes
    """Forecast change per day by that method; 0 if history is short."""
    known_changes: NDArray[np.int64]
    """Number of known daily changes; below LEAST_CHANGES there is no band."""
    errors: Sizes
    """Past errors in units of the size, series by horizon by MOST_ORIGINS, ascending, NaN if there are none.

    A horizon with fewer than LEAST_ERRORS has those of the next shorter one, scaled.
    """
    counts: NDArray[np.int64]
    """Number of past errors, series by horizon; 0 if they were scaled from a shorter horizon, or if there are none."""
    lower: Sizes
    """Lower end of the band, series by horizon; NaN without a band."""
    upper: Sizes
    """Upper end of the band, series by horizon; NaN without a band."""
    rises: Sizes
    """Largest rise within a number of days after a past day, series by RISE_DAYS by MOST_ORIGINS.

    The past days are that many days ago and every ORIGIN_STEP_DAYS before; NaN before the first known size.
    """
    pace: Sizes
    """Change per day over the last WEEK_DAYS, or as many as are known."""
    spread: Sizes
    """Largest size minus smallest size of the last SPREAD_DAYS and today."""
    fallen: Sizes
    """How far the last size is below the largest one of the last PEAK_DAYS."""
    activity: Sizes
    """Log odds of a change on one of the last SPREAD_DAYS, at most MOST_ACTIVE."""

    @property
    def middle(self) -> Sizes:
        """The forecast itself, series by horizon."""
        return ahead(self.last[:, None], self.drift[:, None], np.asarray(HORIZONS_DAYS, dtype=np.float64))

    def of(self, places: Sequence[int]) -> SizeForecasts:
        """Return the forecasts of some of the series."""
        return SizeForecasts(*(getattr(self, array.name)[places] for array in fields(self)))


def ahead(last: Sizes, drift: Sizes, days: float | Sizes) -> Sizes:
    """The forecast for this many days ahead; never below zero."""
    return np.maximum(last + drift * days, 0.0)


def forecast(sizes: Sizes, measured: Sizes | None = None) -> SizeForecasts:
    """Forecast each row of `sizes`: one row per series, one column per day up to today, NaN if not measured.

    If steps were removed from `sizes`, `measured` contains the sizes with them: no forecast falls by more than was
    measured. Days between two measured ones are interpolated; days after the last one repeat it. Only the last
    HISTORY_DAYS columns are used.
    """
    recent = np.asarray(sizes, dtype=np.float64)[:, -HISTORY_DAYS:]
    levels = _fill_gaps(recent)
    floors = levels if measured is None else _fill_gaps(np.asarray(measured, dtype=np.float64)[:, -HISTORY_DAYS:])
    changes = np.diff(levels, axis=1)
    known = np.sum(~np.isnan(changes), axis=1)
    summed, slopes = _running_sum(changes, known), _slopes(levels, known)
    errors, counts, method = _backtest(levels, floors, summed, known, slopes)
    drift = np.where(known >= LEAST_CHANGES, _mean_between(summed, known, levels.shape[1] - 1), 0.0)
    drift = np.choose(method, [np.zeros(len(levels)), drift, slopes[:, -1]])
    last = levels[:, -1]
    lower, upper = _bands(last, drift, errors, counts)
    week = np.minimum(known, WEEK_DAYS)
    pace = (last - levels[np.arange(len(levels)), levels.shape[1] - 1 - week]) / np.maximum(week, 1)
    lately = levels[:, -1 - SPREAD_DAYS :]
    spread = np.fmax.reduce(lately, axis=1) - np.fmin.reduce(lately, axis=1)
    fallen = np.fmax.reduce(levels[:, -1 - PEAK_DAYS :], axis=1) - last
    rises, activity = _rises(levels), _activity(changes[:, -SPREAD_DAYS:])
    return SizeForecasts(
        last, method, drift, known, errors, counts, lower, upper, rises, pace, spread, fallen, activity
    )


def with_growth(forecasts: SizeForecasts, last: Sizes, drift: Sizes) -> SizeForecasts:
    """Return the forecasts with other last sizes and drifts, as if the added growth had always been there.

    The band moves with the forecast. The evidence of the probability (past rises, pace and spread) grows by the same.
    """
    added, days = drift - forecasts.drift, np.asarray(HORIZONS_DAYS, dtype=np.float64)
    moved = (last - forecasts.last)[:, None] + added[:, None] * days
    return replace(
        forecasts,
        last=last,
        drift=drift,
        lower=np.maximum(forecasts.lower + moved, 0.0),
        upper=np.maximum(forecasts.upper + moved, 0.0),
        rises=forecasts.rises + added[:, None, None] * np.asarray(RISE_DAYS, dtype=np.float64)[:, None],
        pace=forecasts.pace + added,
        spread=np.maximum(forecasts.spread + added * np.minimum(forecasts.known_changes, SPREAD_DAYS), 0.0),
    )


def without_steps(sizes: Sizes, steps: Sequence[Sequence[int]]) -> Sizes:
    """Move the sizes measured before each step to the level after it; `steps` has the columns of each row's steps.

    A step is the difference between the first size measured on its day or later and the last one before. If one of the
    two is unknown, the step is ignored. Without any step, the array itself is returned.
    """
    if not any(steps):
        return sizes
    smooth = sizes.copy()
    for place, columns in enumerate(steps):
        measured = np.flatnonzero(~np.isnan(sizes[place]))
        # Two steps between the same two measured days are one change.
        for after in sorted({int(np.searchsorted(measured, column)) for column in columns}):
            if 0 < after < len(measured):
                jump = sizes[place, measured[after]] - sizes[place, measured[after - 1]]
                smooth[place, : measured[after]] += jump
    return smooth


def _fill_gaps(sizes: Sizes) -> Sizes:
    """Interpolate days between two measured ones, and repeat the last one; NaN before the first."""
    days = np.arange(sizes.shape[1])
    measured = ~np.isnan(sizes)
    if measured.all():
        return sizes
    before = np.maximum.accumulate(np.where(measured, days, -1), axis=1)
    after = np.minimum.accumulate(np.where(measured, days, sizes.shape[1])[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(len(sizes))[:, None]
    low = sizes[rows, np.maximum(before, 0)]
    high = np.where(after < sizes.shape[1], sizes[rows, np.minimum(after, sizes.shape[1] - 1)], low)
    width = np.maximum(after - before, 1)
    filled = low + (high - low) * ((days - before) / width)
    return np.where(before < 0, np.nan, filled)


def _running_sum(changes: Sizes, known: NDArray[np.int64]) -> Sizes:
    """Return the running sum of the winsorised changes of each series; NaN counts as no change."""
    ordered = np.sort(changes, axis=1)  # NaN comes last
    low, high = (_quantile(ordered, known, share) for share in (WINSORISED_SHARE, 1 - WINSORISED_SHARE))
    bounded = np.clip(changes, low[:, None], high[:, None])
    total = np.cumsum(np.nan_to_num(bounded), axis=1)
    return np.concatenate([np.zeros((len(total), 1)), total], axis=1)


def _quantile(ordered: Sizes, count: NDArray[np.int64], share: float | Sizes) -> Sizes:
    """Return the interpolated quantile of the first `count` values of each ordered row; 0 without values."""
    rows = np.arange(len(ordered))
    if not ordered.shape[1]:
        return np.zeros(len(ordered))
    place = np.clip(share, 0.0, 1.0) * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = ordered[rows, below], ordered[rows, above]
    quantile: Sizes = np.where(count > 0, low + (high - low) * (place - below), 0.0)
    return quantile


def _mean_between(summed: Sizes, known: NDArray[np.int64], day: int) -> Sizes:
    """Return the mean of the known winsorised changes in the DRIFT_DAYS up to `day`."""
    first = np.maximum(summed.shape[1] - 1 - known, day - DRIFT_DAYS)
    width = np.maximum(day - first, 1)
    mean: Sizes = (summed[:, day] - summed[np.arange(len(summed)), np.minimum(first, day)]) / width
    return mean


def _slopes(levels: Sizes, known: NDArray[np.int64]) -> Sizes:
    """Return the least-squares slope of the sizes of each day and the DRIFT_DAYS before it, series by day.

    NaN if fewer than LEAST_SLOPE_CHANGES changes are known.
    """
    columns = np.arange(levels.shape[1])
    first = np.maximum((len(columns) - 1 - known)[:, None], columns - DRIFT_DAYS)
    count = columns - first + 1.0
    # Relative to the last day and size: sums stay small, and columns before the first size change no digit.
    days, middle = columns - columns[-1], (first + columns) / 2 - columns[-1]
    relative = np.nan_to_num(levels - levels[:, -1:])
    total, moment = (_sum_from(first, values) for values in (relative, relative * days))
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes: Sizes = (moment - middle * total) / (count * (count**2 - 1) / 12)
    return np.where(count > LEAST_SLOPE_CHANGES, slopes, np.nan)


def _sum_from(first: NDArray[np.int64], values: Sizes) -> Sizes:
    until = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    sums: Sizes = until[:, 1:] - np.take_along_axis(until, first, axis=1)
    return sums


def _backtest(
    levels: Sizes, floors: Sizes, summed: Sizes, known: NDArray[np.int64], slopes: Sizes
) -> tuple[Sizes, NDArray[np.int64], NDArray[np.int64]]:
    """Forecast from past days by each method; return errors and counts of the best one, and which that is."""
    series, days = levels.shape
    shape = (len(METHODS), series, len(HORIZONS_DAYS), MOST_ORIGINS)
    errors = np.full(shape, np.nan)
    first = days - known + LEAST_CHANGES - 1
    for place, horizon in enumerate(HORIZONS_DAYS):
        for number in range(MOST_ORIGINS):
            origin = days - 1 - horizon - number * ORIGIN_STEP_DAYS
            if origin < LEAST_CHANGES:
                break
            moved = np.where(origin >= first, levels[:, origin + horizon] - levels[:, origin], np.nan)
            changes = (np.zeros(series), _mean_between(summed, known, origin), slopes[:, origin])
            for method, change in zip(METHODS, changes, strict=True):
                errors[method, :, place, number] = moved - np.maximum(change * horizon, -floors[:, origin])
    counts = np.sum(~np.isnan(errors), axis=3)
    best = _best_method(errors, counts, ROUNDING_SHARE * np.fmax.reduce(levels, axis=1))
    of_best = (best, np.arange(series))
    count = np.where(counts[of_best] >= LEAST_ERRORS, counts[of_best], 0)
    return _complete_errors(np.sort(errors[of_best], axis=2), count), count, best


def _best_method(errors: Sizes, counts: NDArray[np.int64], rounding: Sizes) -> NDArray[np.int64]:
    """Return the method of each series, from errors and counts by method, series and horizon.

    Of LAST_SIZE and MEAN_CHANGE, it is the one with the smaller sum of errors at JUDGED_BY_DAYS, or at the longest
    shorter horizon with LEAST_ERRORS. SLOPE replaces it if its errors at JUDGED_BY_DAYS are clearly smaller. `rounding`
    is the largest error of rounding of each series.
    """
    best = np.full(errors.shape[1], MEAN_CHANGE)
    judged = HORIZONS_DAYS.index(JUDGED_BY_DAYS)
    for place in range(judged + 1):
        stays, drifts = (np.nansum(np.abs(errors[method, :, place]), axis=1) for method in (LAST_SIZE, MEAN_CHANGE))
        better = np.where(drifts > stays, LAST_SIZE, MEAN_CHANGE)
        best = np.where(counts[LAST_SIZE, :, place] >= LEAST_ERRORS, better, best)
    # Compared on the days from which the slope forecasts.
    common = np.where(np.isnan(errors[SLOPE, :, judged]), np.nan, np.abs(errors[:, :, judged]))
    stays, drifts, slopes = np.nansum(common, axis=2)
    is_clear = slopes < MOST_SLOPE_ERROR * np.minimum(stays, drifts) - rounding
    return np.where(is_clear & (counts[SLOPE, :, judged] >= LEAST_SLOPE_ERRORS), SLOPE, best)


def _activity(changes: Sizes) -> Sizes:
    """Return the log odds of a change per series; a size that never changed or always did has finite ones."""
    changed, unchanged = np.sum(np.abs(changes) > 0, axis=1), np.sum(changes == 0, axis=1)
    activity: Sizes = np.minimum(np.log((changed + 1.0) / (unchanged + 1.0)), MOST_ACTIVE)
    return activity


def _rises(levels: Sizes) -> Sizes:
    """Return the largest rises after past days; see `SizeForecasts.rises`."""
    series, columns = levels.shape
    rises = np.full((series, len(RISE_DAYS), MOST_ORIGINS), np.nan)
    # The largest size in the `width` days from each column on, a power of two; two such spans cover any number of days.
    largest, width = levels, 1
    for place, days in enumerate(RISE_DAYS):
        if days >= columns:
            break
        while 2 * width <= days:
            largest, width = np.maximum(largest[:, :-width], largest[:, width:]), 2 * width
        origins = np.arange(columns - 1 - days, -1, -ORIGIN_STEP_DAYS)[:MOST_ORIGINS]
        reached = np.maximum(largest[:, origins + 1], largest[:, origins + 1 + days - width])
        rises[:, place, : len(origins)] = reached - levels[:, origins]
    return rises


def _complete_errors(errors: Sizes, counts: NDArray[np.int64]) -> Sizes:
    """Use the scaled errors of the next shorter horizon if a horizon has too few."""
    errors[:, 0] = np.where(counts[:, :1] > 0, errors[:, 0], np.nan)
    for place in range(1, len(HORIZONS_DAYS)):
        grown = (HORIZONS_DAYS[place] / HORIZONS_DAYS[place - 1]) ** GROWTH_OF_ERRORS
        errors[:, place] = np.where(counts[:, place, None] > 0, errors[:, place], errors[:, place - 1] * grown)
    return errors


def _bands(last: Sizes, drift: Sizes, errors: Sizes, counts: NDArray[np.int64]) -> tuple[Sizes, Sizes]:
    """Return the lower and upper end at each horizon: the forecast plus quantiles of its past errors."""
    shape = (len(last), len(HORIZONS_DAYS))
    lower, upper = (np.full(shape, np.nan) for _ in range(2))
    tail = np.zeros(len(last))
    for place, horizon in enumerate(HORIZONS_DAYS):
        tail = np.where(counts[:, place] > 0, _tail(counts[:, place], horizon), tail)
        there = errors[:, place]
        count = np.sum(~np.isnan(there), axis=1)
        low, high = (np.where(count > 0, _quantile(there, count, share), np.nan) for share in (tail, 1 - tail))
        middle = ahead(last, drift, horizon)
        # The forecast itself is in its band.
        lower[:, place] = np.maximum(middle + np.minimum(low, 0.0), 0.0)
        upper[:, place] = np.maximum(middle + np.maximum(high, 0.0), 0.0)
    return lower, upper


def _tail(count: NDArray[np.int64], horizon: int) -> Sizes:
    """Return the share of errors outside either end of the band.

    Origins a week apart share days, so errors over a longer horizon count as fewer independent ones. With few errors,
    the band would be too narrow, so a smaller share is left outside.
    """
    independent = np.maximum(count * ORIGIN_STEP_DAYS / max(horizon, ORIGIN_STEP_DAYS), 1.0)
    tail: Sizes = np.maximum((1 - BAND) / 2 - 0.5 / independent, 0.0)
    return tail


NOT_WITHIN_HORIZON = -1


@dataclass(frozen=True)
class FillDays:
    """When each series of a batch reaches its limit; every array has one row per series.

    Days count from the last known size; 0: already reached. They are NOT_WITHIN_HORIZON also if the limit is unknown
    (NaN) or there is no band; `is_known` and `has_band` distinguish these.
    """

    early_days: NDArray[np.int64]
    """P10: reached by then with a probability of 10 %."""
    middle_days: NDArray[np.int64]
    """P50: the same with 50 %."""
    late_days: NDArray[np.int64]
    """P90: the same with 90 %."""
    probability: Sizes
    """Probability of being full within each of HORIZONS_DAYS; NaN without limit or band."""
    is_known: NDArray[np.bool_]
    has_band: NDArray[np.bool_]


def compute_fill_days(forecasts: SizeForecasts, limits: Sizes) -> FillDays:
    """Compare forecasts with limits, in the unit of the sizes: NaN is an unknown limit, infinity means unlimited.

    The days follow from the probabilities: a day is within a horizon if and only if the probability there is at least
    its share. Raising a limit never makes its day earlier, and a longer horizon never has a smaller probability.
    """
    known = ~np.isnan(limits)
    has_band = ~np.isnan(forecasts.upper[:, 0])
    goal = np.where(known, limits, np.inf)
    probability = _probabilities(forecasts, goal)
    is_full = forecasts.last >= goal
    early, middle, late = (
        np.where(has_band, np.where(is_full, 0, days), NOT_WITHIN_HORIZON)
        for days in _first_days_reaching(forecasts, goal, probability).T
    )
    within = [RISE_DAYS.index(days) for days in HORIZONS_DAYS]
    at_horizons = np.where((known & has_band)[:, None], probability[:, within], np.nan)
    return FillDays(early, middle, late, at_horizons, known, has_band)


PIECES = ("constant", "activity", "small free share", "drift", "last week", "spread", "fallen", "past rises")
WEIGHTS = {
    7: (-2.45, 0.13, 0.11, 0.19, 0.50, 0.56, 0.06, 0.60),
    30: (-2.51, 0.16, 0.21, 0.48, 0.42, 0.50, 0.17, 0.45),
    90: (-2.45, 0.00, 0.19, 0.89, 0.42, 0.59, 0.24, 0.43),
    365: (-1.55, 0.00, 0.13, 1.24, 0.38, 0.73, 0.27, 0.62),
}
"""Weights of PIECES by days, fitted once by `benchmarks.calibration` so that probabilities are calibrated; never fitted
to a fleet.

Within 90 days or more, activity adds nothing to the skill and would make dates of even growth too early, so it has no
weight.
"""
MOST_USED = 4.0
SMALLEST_FREE, LARGEST_FREE = 0.01, 100.0
MOST_PROBABLE = 0.99
"""Largest probability of a forecast; only an already full subject has 1."""


def evidence(forecasts: SizeForecasts, limits: Sizes) -> Sizes:
    """Return the evidence for reaching limits, series by RISE_DAYS by PIECES; a higher limit has less."""
    free = np.maximum(limits - forecasts.last, np.finfo(np.float64).tiny)[:, None]
    last, grown, count, days = _probability_inputs(forecasts)
    rises = _rises_piece(np.sum(forecasts.rises >= free[:, :, None], axis=2), count, days)
    activity = np.broadcast_to(forecasts.activity[:, None], rises.shape)
    return np.stack([np.ones_like(rises), activity, *_size_pieces(free, last, grown), rises], axis=2)


def _probability_inputs(forecasts: SizeForecasts) -> tuple[Sizes, list[Sizes], Sizes, Sizes]:
    """Return last sizes, the growth compared with free space, numbers of rises and days, each series by RISE_DAYS."""
    days = np.broadcast_to(np.asarray(RISE_DAYS, dtype=np.float64), forecasts.rises.shape[:2])
    columns = (forecasts.last, forecasts.drift, forecasts.pace, forecasts.spread, forecasts.fallen)
    last, drift, pace, spread, fallen = (np.broadcast_to(column[:, None], days.shape) for column in columns)
    return last, [drift * days, pace * days, spread, fallen], np.sum(~np.isnan(forecasts.rises), axis=2), days


def _size_pieces(free: Sizes, last: Sizes, grown: Sequence[Sizes]) -> list[Sizes]:
    """Return the PIECES from the free share to the fallen size."""
    with np.errstate(divide="ignore", over="ignore"):
        used = [np.sqrt(np.clip(size / free, 0.0, MOST_USED)) for size in grown]
        return [-np.log(np.clip(free / last, SMALLEST_FREE, LARGEST_FREE)), *used]


def _rises_piece(reached: NDArray[np.int64], count: Sizes, days: Sizes) -> Sizes:
    """Return the last of PIECES: the log odds of past rises that reach the free space."""
    share = reached / np.maximum(count, 1)
    # Origins a week apart share rises, so that rises over more days count as fewer independent ones.
    independent = count * ORIGIN_STEP_DAYS / days
    return np.log((independent * share + 0.5) / (independent * (1 - share) + 0.5))


_WEIGHTS_BY_DAYS = np.stack(
    [np.interp(np.log(RISE_DAYS), np.log(list(WEIGHTS)), column) for column in zip(*WEIGHTS.values(), strict=True)],
    axis=1,
)


def _probabilities(forecasts: SizeForecasts, goal: Sizes) -> Sizes:
    odds = np.sum(evidence(forecasts, goal) * _WEIGHTS_BY_DAYS, axis=2)
    probability = np.minimum(np.maximum.accumulate(1 / (1 + np.exp(-odds)), axis=1), MOST_PROBABLE)
    probability = np.where(np.isinf(goal)[:, None], 0.0, probability)
    return np.where((forecasts.last >= goal)[:, None], 1.0, probability)


LEAST_FREE, MOST_FREE = 1e-6, 1e4
"""Bounds of free space, in units of the largest size of the last year; beyond them it is none or unbounded."""
HALVINGS = 36
"""Number of bisections of free space, which give nine digits: with fewer, a day could differ from `reference`."""
ROUNDING_DAYS = 1e-6
"""A smaller part of a day is an error of rounding."""


def _first_days_reaching(forecasts: SizeForecasts, goal: Sizes, probability: Sizes) -> NDArray[np.int64]:
    """Return the first day by which the goal is reached with each of DAY_PROBABILITIES, series by probability.

    Between two of RISE_DAYS, days are interpolated by free space, not by probability, which jumps where the free space
    equals a past rise.
    """
    days = np.array([0, *RISE_DAYS])
    first = np.sum(probability[:, :, None] < np.array(DAY_PROBABILITIES), axis=1)
    is_ahead = (forecasts.last < goal) & ~np.isnan(forecasts.upper[:, 0])
    series, index = np.nonzero(is_ahead[:, None] & (first < len(RISE_DAYS)))
    after = first[series, index] + 1
    ends = _free_by_days(forecasts, series, index, after)
    low, high = (np.take_along_axis(ends, place[:, None], axis=1)[:, 0] for place in (after - 1, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        grown = (goal[series] - forecasts.last[series] - low) / (high - low)
    width = days[after] - days[after - 1]
    # If free space is unbounded, the day between the two is unknown: it is the day after the first.
    steps = np.ceil(np.where(np.isfinite(grown), grown, 0.0) * width - ROUNDING_DAYS)
    reached_days = np.where(first < len(RISE_DAYS), 0, NOT_WITHIN_HORIZON)
    reached_days[series, index] = days[after - 1] + np.clip(steps, 1, width).astype(np.int64)
    return reached_days


def _free_by_days(
    forecasts: SizeForecasts, series: NDArray[np.int64], index: NDArray[np.int64], until: NDArray[np.int64]
) -> Sizes:
    """Return the largest free space that is used up within 0 days and each of RISE_DAYS up to the `until`th.

    `index` is the place of the probability in DAY_PROBABILITIES. Within more days the space is never smaller.
    """
    ends = np.zeros((len(series), 1 + len(RISE_DAYS)))
    case, column = np.nonzero(np.arange(len(RISE_DAYS)) < until[:, None])
    odds = np.log(np.array(DAY_PROBABILITIES) / (1 - np.array(DAY_PROBABILITIES)))
    ends[case, column + 1] = _largest_free(forecasts, series[case], column, odds[index[case]])
    return np.maximum.accumulate(ends, axis=1)


def _largest_free(
    forecasts: SizeForecasts, series: NDArray[np.int64], column: NDArray[np.int64], needed: Sizes
) -> Sizes:
    """Return the largest free space for which each series has the needed odds in its column; 0: none.

    Between two neighbouring past rises, the number of rises that reach the free space is constant. These two are found
    first, and then the free space between them.
    """
    of = (series, column)
    last, grown, count, days = _probability_inputs(forecasts)
    last, grown, count, days = last[of], [size[of] for size in grown], count[of], days[of]
    constant, by_activity, *by_size, by_rises = _WEIGHTS_BY_DAYS[column].T
    constant = constant + by_activity * forecasts.activity[series]

    def odds(free: Sizes) -> Sizes:
        total: Sizes = constant
        for weight, piece in zip(by_size, _size_pieces(free, last, grown), strict=True):
            total = total + weight * piece
        return total

    every, beyond, reaching = _levels(forecasts)
    levels, beyond, reaching = every.shape[2], beyond[of], reaching[of]
    missed, reached = np.full_like(column, -1), np.full_like(column, levels)
    for _ in range(levels.bit_length()):
        place = np.maximum((missed + reached) // 2, 0)
        rises = by_rises * _rises_piece(np.clip(place, beyond, reaching), count, days)
        holds = odds(every[(*of, place)]) + rises >= needed
        missed, reached = np.where(holds, missed, place), np.where(holds, place, reached)
    low, high = (every[(*of, np.clip(place, 0, levels - 1))] for place in (reached, reached - 1))
    rises = by_rises * _rises_piece(np.clip(reached - 1, beyond, reaching), count, days)
    for _ in range(HALVINGS):
        between = np.sqrt(low * high)
        holds = odds(between) + rises >= needed
        low, high = np.where(holds, between, low), np.where(holds, high, between)
    return np.select([reached == 0, reached < levels], [np.inf, low])


def _levels(forecasts: SizeForecasts) -> tuple[Sizes, NDArray[np.int64], NDArray[np.int64]]:
    """Return the bounds of free space with the past rises between them, largest first, and two numbers of rises.

    As many rises reach a level as there are levels before it, but at least the first number, of those beyond the upper
    bound, and at most the second one, of those above the lower bound.
    """
    largest = np.maximum(forecasts.last + forecasts.fallen, 1.0)[:, None, None] * np.ones((1, len(RISE_DAYS), 1))
    least, most = LEAST_FREE * largest, MOST_FREE * largest
    rises = -np.sort(-np.clip(np.nan_to_num(forecasts.rises), least, most), axis=2)
    beyond, reaching = (np.sum(forecasts.rises >= bound, axis=2) for bound in (most, least))
    return np.concatenate([most, rises, least], axis=2), beyond, reaching
