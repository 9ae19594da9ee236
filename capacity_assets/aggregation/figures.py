"""The second part of the statement: from the states of windows to their exact figures.

What happens to the figures afterwards is the business of `writing`.

Exactness: sums are whole, and every figure is one integer division, rounded once (docs/semantics.md). Rounding "half
away from zero to two decimals" divides 200 times the numerator plus the denominator by twice the denominator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from sqlalchemy import (
    BigInteger,
    Integer,
    Numeric,
    String,
    Subquery,
    and_,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
)

from capacity_assets.aggregation.states import Element, Parameters, Sources, named, states, window_of
from capacity_assets.foundation.levels import Further, Level, Measure
from capacity_assets.units import BYTES_PER_MB

Columns: TypeAlias = Mapping[str, Element]

LARGEST_FAST = 10**14
"""Up to this numerator, 20,000 times it and a denominator fit 64 bits; beyond, percentages are computed in numerics."""


def window_figures(level: Level, sources: Sources, *, fenced: bool) -> Subquery:
    """Compute one row of figures for each key and wanted window that has a sample or a stored row.

    `fenced` keeps PostgreSQL from
    computing a figure anew wherever it is named; a distributed table does not take that.

    Columns: the keys, `period_start`, every column of `level.figures` (all null where only a stored row is left), and
    `previous_data_count` and `year_before_data_count`, null where there is nothing to compare with.
    """
    measured = _measured(level, sources, fenced=fenced)
    end = window_of(Parameters.ends, measured.c.bucket)
    growth_rate = measured.c[level.headline.change_percent]
    sums = (measured.c[named("sum", level.headline)], measured.c.previous_headline_sum)
    derived: dict[str, Element] = {
        "period_end": end,
        "growth_rate": growth_rate,
        "trend_direction": _trend(growth_rate, *sums),
    }
    # A day's sum is its value.
    derived |= {name: case((end > measured.c.period_start, measured.c[name])) for name in level.sums}
    columns = [derived[name] if name in derived else measured.c[name] for name in level.figures]
    return select(
        *(measured.c[key] for key in level.keys),
        measured.c.period_start,
        measured.c.previous_data_count,
        measured.c.year_before_data_count,
        *(column.label(name) for name, column in zip(level.figures, columns, strict=True)),
    ).subquery("figures")


def _measured(level: Level, sources: Sources, *, fenced: bool) -> Subquery:
    """Compute the figures of each measure, each once: the next step names them several times."""
    found = _compared(level, sources, fenced=fenced)
    state = dict(found.c.items())
    columns: dict[str, Element] = {}
    for measure in level.measures:
        columns |= _measure_figures(measure, state)
        if measure.further:
            columns |= _further_figures(measure, measure.further, state)
    for ratio in level.ratios:
        numerator, denominator = (found.c[f"sum_{name}"] for name in (ratio.numerator, ratio.denominator))
        columns[ratio.target] = case((denominator == _whole(0), _whole(0)), else_=_floor(numerator, denominator))
    columns |= {name: found.c[name] for name in (*level.sums, named("sum", level.headline))}
    columns["previous_headline_sum"] = found.c[named("previous_sum", level.headline)]
    names = (*level.keys, "bucket", "period_start", "data_count", "previous_data_count", "year_before_data_count")
    rows = select(*(found.c[name] for name in names), *(column.label(name) for name, column in columns.items()))
    return (rows.offset(literal_column("0")) if fenced else rows).subquery("measured")


def _compared(level: Level, sources: Sources, *, fenced: bool) -> Subquery:
    """Put beside each state its difference to the others, as one fraction per measure and window.

    The difference of two means is `difference_` / (`count_` times the other count), and in parts of the other mean it
    is `difference_` / `base_`.
    """
    found = states(level, sources)
    columns: list[Element] = []
    for measure in level.measures:
        total, count = found.c[named("sum", measure)], found.c[named("count", measure)]
        for other in ("previous_", "year_before_") if measure.further else ("previous_",):
            other_total, other_count = found.c[named(f"{other}sum", measure)], found.c[named(f"{other}count", measure)]
            columns.append((total * other_count - other_total * count).label(named(f"{other}difference", measure)))
            columns.append((other_total * count).label(named(f"{other}base", measure)))
            columns.append(func.nullif(count * other_count, _whole(0)).label(named(f"{other}counts", measure)))
    rows = select(*found.c, *columns)
    return (rows.offset(literal_column("0")) if fenced else rows).subquery("compared")


def _measure_figures(measure: Measure, state: Columns) -> dict[str, Element]:
    """Exact mean, extremes and change of one measure."""
    total, count = state[named("sum", measure)], func.nullif(state[named("count", measure)], _whole(0))
    change, change_percent = _difference(measure, state, "previous_")
    figures: dict[str, Element] = {
        measure.average: _floor(total, count),
        measure.maximum: _possible(measure, state[named("max", measure)]),
        measure.minimum: state[named("min", measure)],
        measure.change: _possible(measure, change),
        measure.change_percent: change_percent,
    }
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _two_decimals(total, count)
    return figures


def _further_figures(measure: Measure, further: Further, state: Columns) -> dict[str, Element]:
    """Ends of one measure within the window, its change against a year before, and its yearly rate."""
    first, last = state[named("first", measure)], state[named("last", measure)]
    year_change, year_change_percent = _difference(measure, state, "year_before_")
    return {
        further.last: last,
        further.growth: case((state[named("count", measure)] > _whole(1), last - first)),
        further.year_change: _possible(measure, year_change),
        further.year_change_percent: year_change_percent,
        further.yearly_rate_percent: _yearly_rate(measure, state),
    }


def _possible(measure: Measure, size_mb: Element) -> Element:
    """Make PostgreSQL refuse a size above `units.LARGEST_MB`, whose bytes do not fit a bigint.

    Only the server of such a sample fails, as with any value that does not fit its column.
    """
    if not (measure.source.endswith("_mb")):
        return size_mb
    return _div(size_mb * _whole(BYTES_PER_MB), _whole(BYTES_PER_MB))


def _difference(measure: Measure, state: Columns, other: str) -> tuple[Element, Element]:
    """Difference of the exact means to another window, cut toward zero, and in percent of the other one."""
    difference, counts = state[named(f"{other}difference", measure)], state[named(f"{other}counts", measure)]
    base = func.nullif(state[named(f"{other}base", measure)], _whole(0))
    return _div(difference, counts), _two_decimals(difference, base, percent=True)


def _yearly_rate(measure: Measure, state: Columns) -> Element:
    """The factor by which the mean grew, to the power of the windows in a year, less one, in percent.

    Numerator and denominator are whole, and PostgreSQL raises whole numerics to a whole power exactly. A factor below
    zero, of sizes that cannot be, says nothing.
    """
    difference, base = (state[named(f"previous_{kind}", measure)] for kind in ("difference", "base"))
    above, below = (func.power(cast(each, Numeric), Parameters.windows_per_year) for each in (difference + base, base))
    mean_has_sign_of_base = or_(
        and_(base > _whole(0), difference >= -base), and_(base < _whole(0), difference <= -base)
    )
    return case((mean_has_sign_of_base, _exact_two_decimals((above - below) * _whole(100), below)))


def _trend(percent: Element, total: Element, previous_total: Element) -> Element:
    """Call a window growing, shrinking or stable; null without a window before."""
    grew_from_nothing = and_(previous_total == 0, total > 0)
    return case(
        (previous_total.is_(None), null()),
        (or_(percent > Parameters.trend_percent, grew_from_nothing), literal_column("'growing'", String)),
        (percent < -Parameters.trend_percent, literal_column("'shrinking'", String)),
        else_=literal_column("'stable'", String),
    )


def _whole(number: int) -> Element:
    return literal_column(str(number), BigInteger)


def _div(numerator: Element, denominator: Element) -> Element:
    """Divide whole numbers, cut toward zero; SQLAlchemy's own operator divides as Python does."""
    return numerator.op("/", precedence=8, return_type=BigInteger())(denominator)


def _floor(numerator: Element, denominator: Element) -> Element:
    """Divide whole numbers, rounded down; the remainder has the numerator's sign."""
    remainder = numerator % denominator
    below_zero = and_(remainder != _whole(0), (remainder < _whole(0)) != (denominator < _whole(0)))
    return _div(numerator, denominator) - cast(below_zero, Integer)


def _two_decimals(numerator: Element, denominator: Element, *, percent: bool = False) -> Element:
    """Divide to two decimals, half away from zero, by one exact integer division; `percent`: a hundred times it."""
    above, below = func.abs(numerator), func.abs(denominator)
    hundredths = _div(above * _whole(20_000 if percent else 200) + below, below * _whole(2))
    signed = case(((numerator < _whole(0)) != (denominator < _whole(0)), -hundredths), else_=hundredths)
    exact = _exact_two_decimals(cast(numerator, Numeric) * _whole(100 if percent else 1), cast(denominator, Numeric))
    return case((above < _whole(LARGEST_FAST), cast(signed, Numeric) * literal_column("0.01")), else_=exact)


def _exact_two_decimals(numerator: Element, denominator: Element) -> Element:
    """Do the same with numerics of any size."""
    hundredths = func.div(func.abs(numerator) * _whole(200) + func.abs(denominator), func.abs(denominator) * _whole(2))
    return hundredths * func.sign(numerator) * func.sign(denominator) * literal_column("0.01")
