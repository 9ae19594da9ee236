"""The forecast of one series computed a second way: value by value, without arrays. For `explain` and for tests.

It follows docs/forecast.md, not `model`, from which it takes nothing but the constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.model import (
    BAND,
    DRIFT_DAYS,
    GROWTH_OF_ERRORS,
    HISTORY_DAYS,
    JUDGED_BY_DAYS,
    LEAST_CHANGES,
    LEAST_ERRORS,
    MOST_ORIGINS,
    ORIGIN_STEP_DAYS,
    WINSORISED_SHARE,
)


@dataclass(frozen=True)
class Reference:
    """The forecast of one series, and what it was made of."""

    last: float
    drift: float
    lowest_change: float
    highest_change: float
    """Between these, daily changes count as they are; beyond, as the nearer of the two."""
    cut_changes: int
    follows_drift: bool
    errors: dict[int, list[float]]
    """Past errors of the better forecast, by horizon in days."""

    def ahead(self, days: int) -> float:
        """The forecast size."""
        return max(self.last + self.drift * days, 0.0)

    @property
    def band(self) -> dict[int, tuple[float, float]]:
        """Lower and upper end by horizon in days; empty with too little history."""
        ends: dict[int, tuple[float, float]] = {}
        tail = 0.0
        for horizon, errors in _completed(self.errors).items():
            if len(self.errors[horizon]) >= LEAST_ERRORS:
                independent = max(len(errors) * ORIGIN_STEP_DAYS / max(horizon, ORIGIN_STEP_DAYS), 1.0)
                tail = max((1 - BAND) / 2 - 0.5 / independent, 0.0)
            below, above = (_quantile(sorted(errors), share) for share in (tail, 1 - tail))
            middle = self.ahead(horizon)
            ends[horizon] = (max(middle + min(below, 0.0), 0.0), middle + max(above, 0.0))
        return ends

    def probabilities(self, limit: float) -> dict[int, float]:
        """Probability of reaching a limit by horizon in days; empty with too little history."""
        shares: dict[int, float] = {}
        for horizon, errors in _completed(self.errors).items():
            reaching = sum(self.ahead(horizon) + error >= limit for error in errors)
            shares[horizon] = 1.0 if self.last >= limit else max([reaching / len(errors), *shares.values()])
        return shares

    def day(self, limit: float, percent: int) -> int | None:
        """The first day by which a limit is reached with this probability; None: not within the longest horizon."""
        if self.last >= limit:
            return 0
        before, error_before = 0, 0.0
        for horizon, errors in _completed(self.errors).items():
            error = sorted(errors, reverse=True)[math.ceil(Fraction(percent * len(errors), 100)) - 1]
            if self.probabilities(limit)[horizon] >= percent / 100:
                low, high = before**GROWTH_OF_ERRORS, horizon**GROWTH_OF_ERRORS
                for day in range(before + 1, horizon):
                    grown = (day**GROWTH_OF_ERRORS - low) / (high - low)
                    if self.ahead(day) + error_before + (error - error_before) * grown >= limit:
                        return day
                return horizon
            before, error_before = horizon, error
        return None


def reference(sizes: Sequence[float | None], measured: Sequence[float | None] | None = None) -> Reference:
    """Forecast one series: one value per day up to today, None where it was not measured; one at least was.

    `measured` has the same sizes before declared steps were taken out.
    """
    levels = _filled(sizes[-HISTORY_DAYS:])
    floors = levels if measured is None else _filled(measured[-HISTORY_DAYS:])
    changes = [after - before for before, after in pairwise(levels)]
    lowest, highest = (_quantile(sorted(changes), share) for share in (WINSORISED_SHARE, 1 - WINSORISED_SHARE))
    kept = [min(max(change, lowest), highest) for change in changes]
    staying, drifting = (_errors(levels, floors, kept, drift=drift) for drift in (False, True))
    judged = [
        horizon for horizon in HORIZONS_DAYS if horizon <= JUDGED_BY_DAYS and len(staying[horizon]) >= LEAST_ERRORS
    ]
    follows = not judged or sum(map(abs, drifting[judged[-1]])) <= sum(map(abs, staying[judged[-1]]))
    drift = _mean(kept[-DRIFT_DAYS:]) if follows and len(changes) >= LEAST_CHANGES else 0.0
    cut = sum(before != after for before, after in zip(changes, kept, strict=True))
    return Reference(levels[-1], drift, lowest, highest, cut, follows, drifting if follows else staying)


def _filled(sizes: Sequence[float | None]) -> list[float]:
    """Drop what lies before the first measured day, and put the days between two on the line between them."""
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


def _errors(
    levels: Sequence[float], floors: Sequence[float], kept: Sequence[float], *, drift: bool
) -> dict[int, list[float]]:
    """What came after each past day, less what its forecast would have been."""
    errors: dict[int, list[float]] = {}
    for horizon in HORIZONS_DAYS:
        errors[horizon] = []
        for number in range(MOST_ORIGINS):
            origin = len(levels) - 1 - horizon - number * ORIGIN_STEP_DAYS
            if origin < LEAST_CHANGES:
                break
            expected = _mean(kept[max(0, origin - DRIFT_DAYS) : origin]) * horizon if drift else 0.0
            expected = max(expected, -floors[origin])
            errors[horizon].append(levels[origin + horizon] - levels[origin] - expected)
    return errors


def _completed(errors: dict[int, list[float]]) -> dict[int, list[float]]:
    """Give a horizon with too few errors the scaled errors of the next shorter one; {} if the shortest has too few."""
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
