"""The figures of one row by fractions in Python, each with its arithmetic in words (SEMANTICS, sections 4 and 5).

A second way to the same numbers on purpose: it shares nothing with the SQL in `figures`, so that a person can check
one by hand. Not for computing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction

from capacity_assets.aggregation.levels import Level, Measure
from capacity_assets.periods import Period, Window

Value = int | Decimal | str | date | None
PLACES_SHOWN = 4


@dataclass(frozen=True)
class Sample:
    """What counts of one day, by column, MiB or a number."""

    day: date
    values: Mapping[str, int | None]


def figures_by_hand(
    level: Level, period: Period, window: Window, samples: Sequence[Sample], before: Sequence[Sample]
) -> Iterator[tuple[str, tuple[str, Value]]]:
    """Yield each figure of a row and how it comes about; the window has at least one sample, the one before may not."""
    yield "period_end", ("last day of the window", window.end)
    yield "data_count", ("days with a sample", len(samples))
    for measure in level.measures:
        now, earlier = _known(samples, measure), _known(before, measure)
        yield from _own_figures(measure, samples)
        yield from _compared_figures(measure, now, earlier)
    for ratio in level.ratios:
        above, below = (sum(_values(samples, name)) for name in (ratio.numerator, ratio.denominator))
        how = f"{above:,} / {below:,}, rounded down" if below else "no database: 0"
        yield ratio.target, (how, above // below if below else 0)
    now, earlier = _known(samples, level.headline), _known(before, level.headline)
    yield "growth_rate", (f"{level.headline.change_percent} once more", _percent(now, earlier))
    yield "trend_direction", _trend(now, earlier, period.trend_percent)


def _values(samples: Sequence[Sample], column: str) -> list[int]:
    return [value for sample in samples if (value := sample.values[column]) is not None]


def _known(samples: Sequence[Sample], measure: Measure) -> list[int]:
    return _values(samples, measure.source)


def _own_figures(measure: Measure, samples: Sequence[Sample]) -> Iterator[tuple[str, tuple[str, Value]]]:
    now = _known(samples, measure)
    if not now:
        names = (measure.average, measure.maximum, measure.minimum, measure.average_two_decimals)
        yield from ((name, ("no value was measured", None)) for name in names if name)
        return
    mean = f"{sum(now):,} / {len(now)} = {_shown(_mean(now))}"
    yield measure.average, (f"{mean}, rounded down", math.floor(_mean(now)))
    for name, word, extreme in ((measure.maximum, "largest", max(now)), (measure.minimum, "smallest", min(now))):
        day = next(sample.day for sample in samples if sample.values[measure.source] == extreme)
        yield name, (f"{word} of {len(now)} values, on {day}", extreme)
    if measure.average_two_decimals:
        yield measure.average_two_decimals, (f"{mean}, to two decimals", _two_decimals(_mean(now)))


def _compared_figures(
    measure: Measure, now: Sequence[int], before: Sequence[int]
) -> Iterator[tuple[str, tuple[str, Value]]]:
    if not now or not before:
        reason = f"no value {'in the window before' if now else 'was measured'}: unknown"
        yield measure.change, (reason, None)
        yield measure.change_percent, (reason, None)
        return
    difference = _mean(now) - _mean(before)
    fractions = f"{sum(now):,} / {len(now)} - {sum(before):,} / {len(before)} = {_shown(difference)}"
    yield measure.change, (f"{fractions}, cut toward zero", math.trunc(difference))
    percent = _percent(now, before)
    if percent is None:
        yield measure.change_percent, ("the mean before is 0: no percent", None)
    else:
        how = f"{_shown(difference)} / {_shown(_mean(before))} x 100, half away from zero"
        yield measure.change_percent, (how, percent)


def _trend(now: Sequence[int], before: Sequence[int], threshold: Decimal) -> tuple[str, Value]:
    if not before:
        return "nothing to compare with", None
    percent = _percent(now, before)
    if percent is None:
        return "from 0", "growing" if sum(now) > 0 else "stable"
    if percent > threshold:
        return f"{percent} % is above {threshold} %", "growing"
    if percent < -threshold:
        return f"{percent} % is below -{threshold} %", "shrinking"
    return f"{percent} % is within {threshold} %", "stable"


def _percent(now: Sequence[int], before: Sequence[int]) -> Decimal | None:
    if not now or not before or not sum(before):
        return None
    return _two_decimals((_mean(now) - _mean(before)) / _mean(before) * 100)


def _mean(values: Sequence[int]) -> Fraction:
    return Fraction(sum(values), len(values))


def _two_decimals(value: Fraction) -> Decimal:
    """Round half away from zero."""
    hundredths = math.floor(abs(value) * 100 + Fraction(1, 2))
    return Decimal(hundredths if value >= 0 else -hundredths) / 100


def _shown(value: Fraction) -> str:
    """Render a fraction as a decimal number, marked where places are left out."""
    scaled = value * 10**PLACES_SHOWN
    shown = f"{Decimal(math.trunc(scaled)).scaleb(-PLACES_SHOWN):,f}"
    return shown.rstrip("0").rstrip(".") if scaled.denominator == 1 else f"{shown}..."
