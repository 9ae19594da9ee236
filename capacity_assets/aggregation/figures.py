"""The second part of the statement: from partial states to the exact figures of each window.

What happens to the figures afterwards is the business of `statements`.

Exactness: sums are numeric and exact, and every figure is made by integer division of exact numerators.
Rounding "half away from zero to two decimals" is `div(200*a + b, 2*b) * 0.01`, because numeric `/` rounds to
about sixteen digits and `round` would then round a rounded number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    Date,
    Integer,
    Numeric,
    Select,
    Subquery,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
)

from capacity_assets.aggregation.reduction import Element, Form, Parameters, named, partial_states, window_of
from capacity_assets.aggregation.stored_states import united_states
from capacity_assets.aggregation.trend import trend_of
from capacity_assets.foundation.levels import Further, Level, Measure
from capacity_assets.units import BYTES_PER_MB

Columns: TypeAlias = Mapping[str, Element]


def window_figures(level: Level, form: Form, windows_per_year: int | None) -> Select[tuple[Any, ...]]:
    """Compute one row of figures for each key and window asked for that has a raw row.

    `windows_per_year` is the exponent of the yearly rate, which is null without one.

    Columns: the keys, `period_start`, every column of `level.figures`, and for the decision what to do with them
    `previous_start`, `previous_data_count`, `year_before_start` and `year_before_data_count`.
    """
    measured = _measured(level, form, windows_per_year)
    bucket = measured.c.bucket
    start, end = window_of(Parameters.starts, bucket), window_of(Parameters.ends, bucket)
    growth_rate = measured.c[level.headline.change_percent]
    sums = (measured.c.headline_sum, measured.c.previous_headline_sum)
    derived: dict[str, Element] = {
        "period_end": end,
        "growth_rate": growth_rate,
        "trend_direction": trend_of(growth_rate, *sums, Parameters.trend_percent),
    }
    # A day's sum is its value.
    derived |= {name: case((end > start, measured.c[name])) for name in level.sums}
    columns = [derived[name] if name in derived else measured.c[name] for name in level.figures]
    return (
        select(
            *(measured.c[key] for key in level.keys),
            start.label("period_start"),
            window_of(Parameters.starts, bucket - 1).label("previous_start"),
            measured.c.previous_data_count,
            cast(start - Parameters.year_interval, Date).label("year_before_start"),
            measured.c.year_before_data_count,
            *(column.label(name) for name, column in zip(level.figures, columns, strict=True)),
        )
        .select_from(measured)
        .where(window_of(Parameters.wanted, bucket))
    )


def _measured(level: Level, form: Form, windows_per_year: int | None) -> Subquery:
    """Compute the figures of each measure, each once: the next steps name them several times.

    A step that PostgreSQL merges into the next ones would compute the exact divisions anew at every mention. It does
    not merge one that groups or has window functions, nor one with OFFSET 0, which a distributed table does not take.
    """
    if form.from_stored or form.distributed:
        states, rows = united_states(level, form)
    else:
        partial = partial_states(level, form)
        states, rows = {**partial.c}, select(*(partial.c[key] for key in level.keys)).offset(0)
    figures = _figures(level, states, windows_per_year)
    return rows.add_columns(*(column.label(name) for name, column in figures.items())).subquery("measured")


def _figures(level: Level, compared: Columns, windows_per_year: int | None) -> dict[str, Element]:
    """Compute the figures of each measure, and keep the counts and the two sums that the trend looks at."""
    columns: dict[str, Element] = {}
    for measure in level.measures:
        columns |= _measure_figures(measure, compared)
        if measure.further:
            columns |= _further_figures(measure, measure.further, compared, windows_per_year)
    for ratio in level.ratios:
        numerator, denominator = (compared[f"sum_{name}"] for name in (ratio.numerator, ratio.denominator))
        columns[ratio.target] = case((denominator == 0, literal(0)), else_=_floor(numerator, denominator))
    columns |= {name: compared[name] for name in level.sums}
    columns["headline_sum"] = compared[named("sum", level.headline)]
    columns["previous_headline_sum"] = compared[named("previous_sum", level.headline)]
    counts = ("data_count", "previous_data_count", "year_before_data_count")
    return columns | {name: compared[name] for name in ("bucket", *counts)}


def _measure_figures(measure: Measure, compared: Columns) -> dict[str, Element]:
    """Exact mean, extremes and change of one measure (docs/semantics.md)."""
    total, count = _state(measure, compared)
    change, change_percent = _difference(measure, compared, "previous_")
    figures: dict[str, Element] = {
        measure.average: _floor(total, count),
        measure.maximum: _possible(measure, compared[measure.maximum]),
        measure.minimum: compared[measure.minimum],
        measure.change: _possible(measure, change),
        measure.change_percent: change_percent,
    }
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _two_decimals(total, count)
    return figures


def _further_figures(
    measure: Measure, further: Further, compared: Columns, windows_per_year: int | None
) -> dict[str, Element]:
    """Ends of one measure within the window, its change against a year before, and its yearly rate."""
    first, last = compared[named("first", measure)], compared[named("last", measure)]
    year_change, year_change_percent = _difference(measure, compared, "year_before_")
    return {
        further.last: last,
        further.growth: case((compared[named("count", measure)] > 1, last - first)),
        further.year_change: _possible(measure, year_change),
        further.year_change_percent: year_change_percent,
        further.yearly_rate_percent: _yearly_rate(measure, compared, windows_per_year),
    }


def _possible(measure: Measure, size_mb: Element) -> Element:
    """Make PostgreSQL refuse a size above `units.LARGEST_MB`, whose bytes do not fit a bigint.

    Only the server of such a sample fails, as with any value that does not fit its column.
    """
    if not measure.source.endswith("_mb"):
        return size_mb
    return cast(size_mb, BigInteger) * BYTES_PER_MB / BYTES_PER_MB


def _state(measure: Measure, compared: Columns, prefix: str = "") -> tuple[Element, Element]:
    """Sum and count of a measure; the count is null instead of zero."""
    return compared[named(f"{prefix}sum", measure)], func.nullif(compared[named(f"{prefix}count", measure)], 0)


def _difference(measure: Measure, compared: Columns, prefix: str) -> tuple[Element, Element]:
    """Difference of the exact means to another window, cut toward zero, and in percent of the other one."""
    total, count = _state(measure, compared)
    other_total, other_count = _state(measure, compared, prefix)
    difference = total * other_count - other_total * count
    percent = _two_decimals(difference * 100, func.nullif(other_total * count, 0))
    return func.div(difference, count * other_count), percent


def _yearly_rate(measure: Measure, compared: Columns, windows_per_year: int | None) -> Element:
    """The factor by which the mean grew, to the power of the windows in a year, less one, in percent.

    Numerator and denominator are whole, and PostgreSQL raises whole numerics to a whole power exactly. A factor below
    zero, of sizes that cannot be, says nothing.
    """
    if windows_per_year is None:
        return cast(null(), Numeric)
    total, count = _state(measure, compared)
    previous_total, previous_count = _state(measure, compared, "previous_")
    above, below = (
        func.power(cast(each, Numeric), cast(literal(windows_per_year), Numeric))
        for each in (total * previous_count, previous_total * count)
    )
    sign = func.sign(total) * func.sign(previous_total)
    return case((sign >= 0, _two_decimals((above - below) * 100, func.nullif(below, 0))))


def _floor(numerator: Element, denominator: Element) -> Element:
    """floor(numerator / denominator); `div` truncates, and `mod` has the numerator's sign."""
    below_zero = cast(func.mod(numerator, denominator) * func.sign(cast(denominator, Numeric)) < 0, Integer)
    return func.div(numerator, denominator) - below_zero


def _two_decimals(numerator: Element, denominator: Element) -> Element:
    """Divide to two decimals, half away from zero, by one exact integer division.

    Everything is cast to numeric first: `sign(bigint)` is a double in PostgreSQL and would spoil the result.
    """
    above, below = cast(numerator, Numeric), cast(denominator, Numeric)
    hundredths = func.div(func.abs(above) * 200 + func.abs(below), func.abs(below) * 2)
    return hundredths * func.sign(above) * func.sign(below) * literal_column("0.01")
