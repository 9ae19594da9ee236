"""The figures of one row by fractions in Python, each with its arithmetic in words (docs/semantics.md).

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

from capacity_assets.foundation.levels import Further, Level, Measure
from capacity_assets.periods import Period, Window
from capacity_assets.units import counted

Value = int | Decimal | str | date | None
PLACES_SHOWN = 4


@dataclass(frozen=True)
class Sample:
    """What counts of one day, by column, MiB or a number."""

    day: date
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class WindowSamples:
    """Samples in the order of their days: of a window, of the one before, and of the same window a year before."""

    own: tuple[Sample, ...]
    before: tuple[Sample, ...]
    year_before: tuple[Sample, ...]


def reference_figures(
    level: Level, period: Period, window: Window, window_samples: WindowSamples
) -> Iterator[tuple[str, tuple[str, Value]]]:
    """Yield each figure of a row with its arithmetic; the window has at least one sample, the others may have none."""
    samples, before = window_samples.own, window_samples.before
    yield "period_end", ("last day of the window", window.end)
    yield "data_count", ("days with a sample", len(samples))
    for measure in level.measures:
        now, earlier = _known(samples, measure), _known(before, measure)
        yield from _own_figures(measure, samples)
        yield from _compared_figures(measure.change, measure.change_percent, now, earlier, "in the window before")
        if measure.further:
            a_year_ago = _known(window_samples.year_before, measure)
            yield from _ends(measure, measure.further, samples)
            names = (measure.further.year_change, measure.further.year_change_percent)
            yield from _compared_figures(*names, now, a_year_ago, "a year before")
            yield measure.further.yearly_rate_percent, _yearly_rate(now, earlier, period.windows_per_year)
        yield from _sums(level, window, measure, now)
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
        yield name, (f"{word} of {counted(len(now), 'value')}, on {day}", extreme)
    if measure.average_two_decimals:
        yield measure.average_two_decimals, (f"{mean}, to two decimals", _two_decimals(_mean(now)))


def _sums(
    level: Level, window: Window, measure: Measure, now: Sequence[int]
) -> Iterator[tuple[str, tuple[str, Value]]]:
    """The exact sum that longer windows are made of, and the count of values where it is not that of the samples."""
    total = (f"sum of {counted(len(now), 'value')}", Decimal(sum(now))) if now else ("no value was measured", None)
    kept = {f"sum_{measure.source}": total, f"count_{measure.source}": ("values measured", len(now))}
    for name, figure in kept.items():
        if name in level.sums:
            yield name, figure if window.days > 1 else ("not kept for a single day", None)


def _ends(measure: Measure, further: Further, samples: Sequence[Sample]) -> Iterator[tuple[str, tuple[str, Value]]]:
    dated = [(sample.day, value) for sample in samples if (value := sample.values[measure.source]) is not None]
    if not dated:
        yield from ((name, ("no value was measured", None)) for name in further.own)
        return
    (first_day, first), (last_day, last) = dated[0], dated[-1]
    yield further.last, (f"value of {last_day}, the last measured day", last)
    if len(dated) == 1:
        yield further.growth, ("a single measured day: unknown", None)
    else:
        how = f"{last:,} on {last_day} - {first:,} on {first_day}"
        yield further.growth, (how, last - first)


def _yearly_rate(now: Sequence[int], before: Sequence[int], windows_per_year: int | None) -> tuple[str, Value]:
    if windows_per_year is None:
        return "only of windows that are whole months", None
    if not now or not before or not sum(before):
        return "no mean before to grow from", None
    factor = _mean(now) / _mean(before)
    if factor < 0:
        return "a factor below zero says nothing", None
    how = f"({_shown(_mean(now))} / {_shown(_mean(before))}) to the power of {windows_per_year}, less 1, x 100"
    return how, _two_decimals((factor**windows_per_year - 1) * 100)


def _compared_figures(
    change: str, change_percent: str, now: Sequence[int], before: Sequence[int], when: str
) -> Iterator[tuple[str, tuple[str, Value]]]:
    if not now or not before:
        reason = f"no value {when if now else 'was measured'}: unknown"
        yield change, (reason, None)
        yield change_percent, (reason, None)
        return
    difference = _mean(now) - _mean(before)
    fractions = f"{sum(now):,} / {len(now)} - {sum(before):,} / {len(before)} = {_shown(difference)}"
    yield change, (f"{fractions}, cut toward zero", math.trunc(difference))
    percent = _percent(now, before)
    if percent is None:
        yield change_percent, ("the mean before is 0: no percent", None)
    else:
        how = f"{_shown(difference)} / {_shown(_mean(before))} x 100, half away from zero"
        yield change_percent, (how, percent)


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
    # Not by dividing, which rounds to the digits of Python's decimal context.
    return Decimal(f"{hundredths if value >= 0 else -hundredths}e-2")


def _shown(value: Fraction) -> str:
    """Render a fraction as a decimal number, marked where places are left out."""
    scaled = value * 10**PLACES_SHOWN
    shown = f"{Decimal(math.trunc(scaled)).scaleb(-PLACES_SHOWN):,f}"
    return shown.rstrip("0").rstrip(".") if scaled.denominator == 1 else f"{shown}..."
