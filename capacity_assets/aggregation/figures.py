"""The second part of the statement: from partial states to the exact figures of each window.

What happens to the figures afterwards is the business of `statements`.

Exactness: sums are numeric and exact, and every figure is made by integer division of exact numerators.
Rounding "half away from zero to two decimals" is `div(200*a + b, 2*b) * 0.01`, because numeric `/` rounds to
about sixteen digits and `round` would then round a rounded number.
"""

from __future__ import annotations

from sqlalchemy import (
    CTE,
    Integer,
    Numeric,
    Subquery,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
)

from capacity_assets.aggregation import reduction, stored_states
from capacity_assets.aggregation.reduction import Element, Form, Parameters, named
from capacity_assets.aggregation.trend import trend_of
from capacity_assets.foundation.levels import Further, Level, Measure


def window_figures(
    level: Level, parameters: Parameters, windows: CTE, *, form: Form, windows_per_year: int | None
) -> CTE:
    """Compute one row of figures for each key and window asked for that has a raw row.

    `windows_per_year` is the exponent of the yearly rate, which is null without one.

    Columns: the keys, `period_start`, every column of `level.figures`, and for the decision what to do with them
    `previous_start`, `previous_data_count`, `year_before_start` and `year_before_data_count`.
    """
    source = stored_states if form.from_stored else reduction
    states = source.partial_states(level, parameters, windows, form)
    measured = _measured(level, states, windows_per_year)
    return _laid_out(level, measured, windows, parameters.trend_percent)


def _measured(level: Level, compared: Subquery, windows_per_year: int | None) -> Subquery:
    """Compute the figures of each measure, and keep the two sums that the trend looks at."""
    columns: dict[str, Element] = {}
    for measure in level.measures:
        columns |= _measure_figures(measure, compared)
        if measure.further:
            columns |= _further_figures(measure, measure.further, compared, windows_per_year)
    for ratio in level.ratios:
        numerator, denominator = (compared.c[f"sum_{name}"] for name in (ratio.numerator, ratio.denominator))
        columns[ratio.target] = case((denominator == 0, literal(0)), else_=_floor(numerator, denominator))
    columns |= {name: compared.c[name] for name in level.sums}
    columns["headline_sum"] = compared.c[named("sum", level.headline)]
    columns["previous_headline_sum"] = compared.c[named("previous_sum", level.headline)]
    counts = ("data_count", "previous_data_count", "year_before_data_count")
    kept = [compared.c[name] for name in (*level.keys, "bucket", *counts)]
    # OFFSET 0 keeps PostgreSQL from merging this step into the next ones, which name each figure several times: the
    # exact divisions would be computed anew at every mention.
    return select(*kept, *(column.label(name) for name, column in columns.items())).offset(0).subquery("measured")


def _laid_out(level: Level, measured: Subquery, windows: CTE, threshold: Element) -> CTE:
    """Lay out the rows of the aggregate table for the windows asked for, with growth and trend."""
    growth_rate = measured.c[level.headline.change_percent]
    derived: dict[str, Element] = {
        "period_end": windows.c.period_end,
        "growth_rate": growth_rate,
        "trend_direction": trend_of(growth_rate, measured.c.headline_sum, measured.c.previous_headline_sum, threshold),
    }
    # A day's sum is its value.
    is_longer = windows.c.period_end > windows.c.period_start
    derived |= {name: case((is_longer, measured.c[name])) for name in level.sums}
    columns = [derived[name] if name in derived else measured.c[name] for name in level.figures]
    return (
        select(
            *(measured.c[key] for key in level.keys),
            windows.c.period_start,
            windows.c.previous_start,
            measured.c.previous_data_count,
            windows.c.year_before_start,
            measured.c.year_before_data_count,
            *(column.label(name) for name, column in zip(level.figures, columns, strict=True)),
        )
        .join_from(measured, windows, windows.c.bucket == measured.c.bucket)
        .where(windows.c.wanted)
        .cte("figures")
    )


def _measure_figures(measure: Measure, compared: Subquery) -> dict[str, Element]:
    """Exact mean, extremes and change of one measure (docs/semantics.md)."""
    total, count = _state(measure, compared)
    change, change_percent = _difference(measure, compared, "previous_")
    figures: dict[str, Element] = {
        measure.average: _floor(total, count),
        measure.maximum: compared.c[measure.maximum],
        measure.minimum: compared.c[measure.minimum],
        measure.change: change,
        measure.change_percent: change_percent,
    }
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _two_decimals(total, count)
    return figures


def _further_figures(
    measure: Measure, further: Further, compared: Subquery, windows_per_year: int | None
) -> dict[str, Element]:
    """Ends of one measure within the window, its change against a year before, and its yearly rate."""
    first, last = compared.c[named("first", measure)], compared.c[named("last", measure)]
    year_change, year_change_percent = _difference(measure, compared, "year_before_")
    return {
        further.last: last,
        further.growth: case((compared.c[named("count", measure)] > 1, last - first)),
        further.year_change: year_change,
        further.year_change_percent: year_change_percent,
        further.yearly_rate_percent: _yearly_rate(measure, compared, windows_per_year),
    }


def _state(measure: Measure, compared: Subquery, prefix: str = "") -> tuple[Element, Element]:
    """Sum and count of a measure; the count is null instead of zero."""
    return compared.c[named(f"{prefix}sum", measure)], func.nullif(compared.c[named(f"{prefix}count", measure)], 0)


def _difference(measure: Measure, compared: Subquery, prefix: str) -> tuple[Element, Element]:
    """Difference of the exact means to another window, cut toward zero, and in percent of the other one."""
    total, count = _state(measure, compared)
    other_total, other_count = _state(measure, compared, prefix)
    difference = total * other_count - other_total * count
    percent = _two_decimals(difference * 100, func.nullif(other_total * count, 0))
    return func.div(difference, count * other_count), percent


def _yearly_rate(measure: Measure, compared: Subquery, windows_per_year: int | None) -> Element:
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
