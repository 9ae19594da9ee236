"""A second calculation of the forecast of one series, value by value without arrays, for `explain` and tests.

It follows docs/forecast.md and shares only constants with `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.model import (
    BAND,
    DRIFT_DAYS,
    GROWTH_OF_ERRORS,
    JUDGED_BY_DAYS,
    LARGEST_FREE,
    LAST_SIZE,
    LEAST_FREE,
    LEAST_SLOPE_CHANGES,
    LEAST_SLOPE_ERRORS,
    MEAN_CHANGE,
    METHODS,
    MOST_ACTIVE,
    MOST_FREE,
    MOST_ORIGINS,
    MOST_PROBABLE,
    MOST_SLOPE_ERROR,
    MOST_USED,
    PEAK_DAYS,
    RISE_DAYS,
    ROUNDING_DAYS,
    ROUNDING_SHARE,
    SLOPE,
    SMALLEST_FREE,
    SPREAD_DAYS,
    WEEK_DAYS,
    WEIGHTS,
    WINSORISED_SHARE,
)
from capacity_assets.forecast.results import HISTORY_DAYS, LEAST_CHANGES, LEAST_ERRORS, ORIGIN_STEP_DAYS

SAME_FREE = 1e-9
"""Relative precision of free space."""


@dataclass(frozen=True)
class ReferenceForecast:
    """The forecast of one series with its intermediate figures."""

    last: float
    drift: float
    lowest_change: float
    highest_change: float
    """Daily changes are limited to this range."""
    cut_changes: int
    errors: dict[int, list[float]]
    """Past errors of the method, by horizon in days."""
    rises: dict[int, list[float]]
    """Largest rises within a number of days after past days."""
    pace: float
    """Change per day over the last week."""
    spread: float
    """Largest size minus smallest size of the last 90 days."""
    fallen: float
    """How far the last size is below the largest one of the last year."""
    activity: float
    """Log odds of a change on one of the last 90 days, limited above."""

    def ahead(self, days: int) -> float:
        """The forecast size."""
        return max(self.last + self.drift * days, 0.0)

    @property
    def band(self) -> dict[int, tuple[float, float]]:
        """Lower and upper end by horizon in days; empty with too little history."""
        ends: dict[int, tuple[float, float]] = {}
        tail = 0.0
        for horizon, errors in _complete_errors(self.errors).items():
            if len(self.errors[horizon]) >= LEAST_ERRORS:
                independent = max(len(errors) * ORIGIN_STEP_DAYS / max(horizon, ORIGIN_STEP_DAYS), 1.0)
                tail = max((1 - BAND) / 2 - 0.5 / independent, 0.0)
            below, above = (_quantile(sorted(errors), share) for share in (tail, 1 - tail))
            middle = self.ahead(horizon)
            ends[horizon] = (max(middle + min(below, 0.0), 0.0), middle + max(above, 0.0))
        return ends

    def probabilities(self, limit: float) -> dict[int, float]:
        """Probability of reaching a limit by RISE_DAYS; empty with too little history."""
        if not _complete_errors(self.errors):
            return {}
        by_days: dict[int, float] = {}
        for days in RISE_DAYS:
            odds = math.fsum(
                weight * piece for weight, piece in zip(_weights(days), self.evidence(limit, days), strict=True)
            )
            by_days[days] = min(max([1 / (1 + math.exp(-odds)), *by_days.values()]), MOST_PROBABLE)
        return dict.fromkeys(RISE_DAYS, 1.0) if self.last >= limit else by_days

    def evidence(self, limit: float, days: int) -> list[float]:
        """Return the evidence for reaching a limit within a number of days, in the order of PIECES."""
        free = limit - self.last
        sizes = (self.drift * days, self.pace * days, self.spread, self.fallen)
        used = [math.sqrt(min(max(size / free, 0.0), MOST_USED)) for size in sizes]
        share = min(max(free / self.last if self.last else math.inf, SMALLEST_FREE), LARGEST_FREE)
        rises = self.rises[days]
        reached = sum(rise >= free for rise in rises) / max(len(rises), 1)
        independent = len(rises) * ORIGIN_STEP_DAYS / days
        odds = math.log((independent * reached + 0.5) / (independent * (1 - reached) + 0.5))
        return [1.0, self.activity, -math.log(share), *used, odds]

    def day(self, limit: float, percent: int) -> int | None:
        """The first day by which a limit is reached with this probability; None: not within the longest horizon."""
        if self.last >= limit:
            return 0
        before, free_before = 0, 0.0
        for days, probability in self.probabilities(limit).items():
            free = max(self.largest_free(days, percent), free_before)
            if probability >= percent / 100:
                part = (limit - self.last - free_before) / (free - free_before) if free_before < free else 0.0
                return before + min(max(math.ceil(part * (days - before) - ROUNDING_DAYS), 1), days - before)
            before, free_before = days, free
        return None

    def largest_free(self, days: int, percent: int) -> float:
        """The largest free space that is used up with this probability within `days`; 0: none, or infinity."""
        odds = math.log(percent / (100 - percent))

        def is_reached(free: float) -> bool:
            pieces = self.evidence(self.last + free, days)
            return math.fsum(weight * piece for weight, piece in zip(weights, pieces, strict=True)) >= odds

        weights, largest = _weights(days), max(self.last + self.fallen, 1.0)
        low, high = largest * LEAST_FREE, largest * MOST_FREE
        if is_reached(high):
            return math.inf
        if not is_reached(low):
            return 0.0
        while high / low - 1 > SAME_FREE:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if is_reached(middle) else (low, middle)
        return low


def _weights(days: int) -> list[float]:
    """Return WEIGHTS for a number of days; between two of them they are linear in the logarithm of the days."""
    for (fewer, low), (more, high) in pairwise(WEIGHTS.items()):
        if fewer <= days <= more:
            part = math.log(days / fewer) / math.log(more / fewer)
            return [one + (other - one) * part for one, other in zip(low, high, strict=True)]
    raise ValueError(days)


def reference(sizes: Sequence[float | None], measured: Sequence[float | None] | None = None) -> ReferenceForecast:
    """Forecast one series: one value per day up to today, None if not measured, and at least one size.

    `measured` has the same sizes with declared steps.
    """
    levels = _fill_gaps(sizes[-HISTORY_DAYS:])
    floors = levels if measured is None else _fill_gaps(measured[-HISTORY_DAYS:])
    changes = [after - before for before, after in pairwise(levels)]
    lowest, highest = (_quantile(sorted(changes), share) for share in (WINSORISED_SHARE, 1 - WINSORISED_SHARE))
    bounded = [min(max(change, lowest), highest) for change in changes]
    errors = [_errors(levels, floors, partial(_change, method, levels, bounded)) for method in METHODS]
    method = _best_method(errors, max(levels))
    drift = _change(method, levels, bounded, len(levels) - 1) if len(changes) >= LEAST_CHANGES else 0.0
    cut = sum(before != after for before, after in zip(changes, bounded, strict=True))
    week = min(WEEK_DAYS, len(changes))
    lately = levels[-1 - SPREAD_DAYS :]
    return ReferenceForecast(
        levels[-1],
        drift,
        lowest,
        highest,
        cut,
        errors[method],
        rises={days: _rises(levels, days) for days in RISE_DAYS},
        pace=(levels[-1] - levels[-1 - week]) / max(week, 1),
        spread=max(lately) - min(lately),
        fallen=max(levels[-1 - PEAK_DAYS :]) - levels[-1],
        activity=_activity(changes[-SPREAD_DAYS:]),
    )


def _activity(changes: Sequence[float]) -> float:
    unchanged = sum(change == 0 for change in changes)
    return min(math.log((len(changes) - unchanged + 1) / (unchanged + 1)), MOST_ACTIVE)


def _fill_gaps(sizes: Sequence[float | None]) -> list[float]:
    """Drop days before the first measured one, and interpolate days between two measured ones."""
    measured = [(day, size) for day, size in enumerate(sizes) if size is not None]
    levels: list[float] = []
    for (day, size), (next_day, next_size) in pairwise(measured):
        width = next_day - day
        levels += [size + (next_size - size) * (step / width) for step in range(width)]
    last_day, last = measured[-1]
    return levels + [last] * (len(sizes) - last_day)


def _quantile(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _change(method: int, levels: Sequence[float], changes: Sequence[float], origin: int) -> float:
    """Return the change per day that a method forecasts from a day; NaN: too little history for the slope."""
    if method == LAST_SIZE:
        return 0.0
    if method == MEAN_CHANGE:
        return _mean(changes[max(0, origin - DRIFT_DAYS) : origin])
    days = range(max(0, origin - DRIFT_DAYS), origin + 1)
    if len(days) <= LEAST_SLOPE_CHANGES:
        return math.nan
    middle = (days[0] + days[-1]) / 2
    return math.fsum((day - middle) * (levels[day] - levels[origin]) for day in days) / math.fsum(
        (day - middle) ** 2 for day in days
    )


def _best_method(errors: Sequence[dict[int, list[float]]], largest: float) -> int:
    """Return the method with the smallest errors, but the slope only if its errors are clearly smaller."""
    judged = [
        horizon
        for horizon in HORIZONS_DAYS
        if horizon <= JUDGED_BY_DAYS and len(errors[LAST_SIZE][horizon]) >= LEAST_ERRORS
    ]
    if not judged:
        return MEAN_CHANGE
    stays, drifts = (sum(map(abs, errors[method][judged[-1]])) for method in (LAST_SIZE, MEAN_CHANGE))
    # The newest days come first. The slope forecasts from these only.
    common = len(errors[SLOPE][JUDGED_BY_DAYS])
    *others, slopes = (sum(map(abs, errors[method][JUDGED_BY_DAYS][:common])) for method in METHODS)
    if common >= LEAST_SLOPE_ERRORS and slopes < MOST_SLOPE_ERROR * min(others) - ROUNDING_SHARE * largest:
        return SLOPE
    return LAST_SIZE if drifts > stays else MEAN_CHANGE


def _errors(levels: Sequence[float], floors: Sequence[float], change: Callable[[int], float]) -> dict[int, list[float]]:
    """Return the errors of forecasts from past days: the change that followed minus the forecast one."""
    errors: dict[int, list[float]] = {}
    for horizon in HORIZONS_DAYS:
        errors[horizon] = []
        for number in range(MOST_ORIGINS):
            origin = len(levels) - 1 - horizon - number * ORIGIN_STEP_DAYS
            if origin < LEAST_CHANGES or math.isnan(change(origin)):
                break
            expected = max(change(origin) * horizon, -floors[origin])
            errors[horizon].append(levels[origin + horizon] - levels[origin] - expected)
    return errors


def _rises(levels: Sequence[float], days: int) -> list[float]:
    origins = range(len(levels) - 1 - days, -1, -ORIGIN_STEP_DAYS)[:MOST_ORIGINS]
    return [max(levels[origin + 1 : origin + days + 1]) - levels[origin] for origin in origins]


def _complete_errors(errors: dict[int, list[float]]) -> dict[int, list[float]]:
    """Use scaled errors of the next shorter horizon if there are too few; {} if the shortest has too few."""
    completed: dict[int, list[float]] = {}
    before = 0
    for horizon in HORIZONS_DAYS:
        if len(errors[horizon]) >= LEAST_ERRORS:
            completed[horizon] = errors[horizon]
        elif before:
            grown = (horizon / before) ** GROWTH_OF_ERRORS
            completed[horizon] = [error * grown for error in completed[before]]
        else:
            return {}
        before = horizon
    return completed
