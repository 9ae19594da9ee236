"""The first half of the statement: from raw rows to the figures of each window, exactly.

A chain of steps. Windows are numbered by `width_bucket`, so that a single scan serves all of them; samples are
reduced to count, sum and extremes; `lag` over adjacent windows puts the previous figures beside, without a
second scan. What happens to the figures afterwards is the business of `statements`.

Exactness: sums are numeric and exact, and every figure is made by integer division of exact numerators.
Rounding "half away from zero to two decimals" is `div(200*a + b, 2*b) * 0.01`, because numeric `/` rounds to
about sixteen digits and `round` would then round a rounded number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    CTE,
    BindParameter,
    Boolean,
    ColumnElement,
    Date,
    FromClause,
    Integer,
    Numeric,
    String,
    Subquery,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
)

from capacity_assets.aggregation.levels import Level, Measure

SINGLE_BUCKET = 2  # the window before it is the first

# Expressions over columns whose Python type never matters here: no figure travels through Python.
Element: TypeAlias = ColumnElement[Any]


@dataclass(frozen=True)
class Parameters:
    """Bind parameters; `starts`, `ends` and `wanted` describe adjacent windows, of which only some are asked for."""

    period_type: BindParameter[str]
    instance_ids: BindParameter[Any]
    starts: BindParameter[Any]
    ends: BindParameter[Any]
    wanted: BindParameter[Any]
    last_start: BindParameter[Any]
    first_day: BindParameter[Any]
    last_day: BindParameter[Any]
    trend_percent: BindParameter[Any]


def parameters_of_a_run() -> Parameters:
    """Name and type the parameters; their values come at execution."""
    return Parameters(
        period_type=bindparam("period_type", type_=String),
        instance_ids=bindparam("instance_ids", type_=ARRAY(Integer)),
        starts=bindparam("starts", type_=ARRAY(Date)),
        ends=bindparam("ends", type_=ARRAY(Date)),
        wanted=bindparam("wanted", type_=ARRAY(Boolean)),
        last_start=bindparam("last_start", type_=Date),
        first_day=bindparam("first_day", type_=Date),
        last_day=bindparam("last_day", type_=Date),
        trend_percent=bindparam("trend_percent", type_=Numeric),
    )


def numbered_windows(parameters: Parameters) -> CTE:
    """Number the windows: bucket 1 is the previous window of the first one asked for, gaps are numbered too."""
    numbered = (
        func.unnest(parameters.starts, parameters.ends, parameters.wanted)
        .table_valued("period_start", "period_end", "wanted", with_ordinality="bucket", name="numbered")
        .render_derived()
    )
    return select(
        cast(numbered.c.bucket, Integer).label("bucket"),
        numbered.c.period_start,
        numbered.c.period_end,
        numbered.c.wanted,
        func.lag(numbered.c.period_start).over(order_by=numbered.c.bucket).label("previous_start"),
    ).cte("windows")


def window_figures(level: Level, parameters: Parameters, windows: CTE, *, single: bool) -> CTE:
    """Compute one row of figures for each key and window asked for that has a raw row.

    With `single` there is one window asked for and the one before it, the daily case: two sets of sums a key, told
    apart by the day, need no sorting. The figures are the same.

    Columns: the keys, `period_start`, every column of `level.figures`, and for the decision what to do with them
    `previous_start` and `previous_data_count`.
    """
    compared = _side_by_side(level, parameters) if single else _compared(level, _bucketed(level, parameters))
    return _laid_out(level, _measured(level, compared), windows, parameters.trend_percent)


def _raw_rows(level: Level, parameters: Parameters) -> FromClause:
    """Raw rows that count: of the instances, in the days, not void; summed per day where the level says so."""
    raw = level.source
    conditions = [
        raw.c.collected_date.between(parameters.first_day, parameters.last_day),
        raw.c.instance_id == func.any(parameters.instance_ids),
        *level.live(),
    ]
    measures = [raw.c[measure.source] for measure in level.measures]
    keys = [raw.c[key] for key in level.keys]
    if not level.sum_per_day:
        return select(*keys, raw.c.collected_date, *measures).where(*conditions).subquery("samples")
    sums = [func.sum(column).label(column.name) for column in measures]
    return (
        select(*keys, raw.c.collected_date, *sums).where(*conditions).group_by(*keys, raw.c.collected_date)
    ).subquery("samples")


def _bucketed(level: Level, parameters: Parameters) -> Subquery:
    """Reduce the samples of each key and window to count, sum and extremes: partial state that stays exact."""
    samples = _raw_rows(level, parameters)
    keys = [samples.c[key] for key in level.keys]
    bucket = func.width_bucket(samples.c.collected_date, parameters.starts).label("bucket")
    columns: list[Element] = [func.count().label("data_count")]
    for measure in level.measures:
        column = samples.c[measure.source]
        columns += [
            func.count(column).label(_count(measure)),
            cast(func.sum(column), Numeric).label(_sum(measure)),
            func.max(column).label(measure.maximum),
            func.min(column).label(measure.minimum),
        ]
    return select(*keys, bucket, *columns).group_by(*keys, bucket).subquery("bucketed")


def _side_by_side(level: Level, parameters: Parameters) -> Subquery:
    """Reduce the samples of each key to the partial states of the one window and of the window before it."""
    samples = _raw_rows(level, parameters)
    keys = [samples.c[key] for key in level.keys]
    own = samples.c.collected_date >= parameters.last_start
    previous = samples.c.collected_date < parameters.last_start
    columns: dict[str, Element] = {
        "data_count": func.count().filter(own),
        "previous_data_count": func.nullif(func.count().filter(previous), 0),
    }
    for measure in level.measures:
        column = samples.c[measure.source]
        columns[_count(measure)] = func.count(column).filter(own)
        columns[f"previous_{_count(measure)}"] = func.count(column).filter(previous)
        columns[_sum(measure)] = cast(func.sum(column).filter(own), Numeric)
        columns[f"previous_{_sum(measure)}"] = cast(func.sum(column).filter(previous), Numeric)
        columns[measure.maximum] = func.max(column).filter(own)
        columns[measure.minimum] = func.min(column).filter(own)
    bucket = literal(SINGLE_BUCKET).label("bucket")
    return (
        select(*keys, bucket, *(column.label(name) for name, column in columns.items()))
        .group_by(*keys)
        .having(func.count().filter(own) > 0)
        .subquery("compared")
    )


def _compared(level: Level, bucketed: Subquery) -> Subquery:
    """Put the count and sum of the previous window beside each window; null where it has no sample."""
    keys = [bucketed.c[key] for key in level.keys]

    def before(column: Element) -> Element:
        return func.lag(column).over(partition_by=keys, order_by=bucketed.c.bucket)

    is_adjacent = before(bucketed.c.bucket) == bucketed.c.bucket - 1
    names = ["data_count", *(_count(m) for m in level.measures), *(_sum(m) for m in level.measures)]
    previous = [case((is_adjacent, before(bucketed.c[name]))).label(f"previous_{name}") for name in names]
    return select(*bucketed.c, *previous).subquery("compared")


def _measured(level: Level, compared: Subquery) -> Subquery:
    """Compute the figures of each measure, and keep the two sums that the trend looks at."""
    columns: dict[str, Element] = {}
    for measure in level.measures:
        columns |= _measure_figures(measure, compared)
    for ratio in level.ratios:
        numerator, denominator = (compared.c[f"sum_{name}"] for name in (ratio.numerator, ratio.denominator))
        columns[ratio.target] = case((denominator == 0, literal(0)), else_=_floor(numerator, denominator))
    columns["headline_sum"] = compared.c[_sum(level.headline)]
    columns["previous_headline_sum"] = compared.c[f"previous_{_sum(level.headline)}"]
    kept = [compared.c[name] for name in (*level.keys, "bucket", "data_count", "previous_data_count")]
    # OFFSET 0 keeps PostgreSQL from merging this step into the next ones, which name each figure several times: the
    # exact divisions would be computed anew at every mention.
    return select(*kept, *(column.label(name) for name, column in columns.items())).offset(0).subquery("measured")


def _laid_out(level: Level, measured: Subquery, windows: CTE, threshold: Element) -> CTE:
    """Lay out the rows of the aggregate table for the windows asked for, with growth and trend."""
    growth_rate = measured.c[level.headline.change_percent]
    derived = {
        "period_end": windows.c.period_end,
        "growth_rate": growth_rate,
        "trend_direction": _trend(growth_rate, measured.c.headline_sum, measured.c.previous_headline_sum, threshold),
    }
    columns = [derived[name] if name in derived else measured.c[name] for name in level.figures]
    return (
        select(
            *(measured.c[key] for key in level.keys),
            windows.c.period_start,
            windows.c.previous_start,
            measured.c.previous_data_count,
            *(column.label(name) for name, column in zip(level.figures, columns, strict=True)),
        )
        .join_from(measured, windows, windows.c.bucket == measured.c.bucket)
        .where(windows.c.wanted)
        .cte("figures")
    )


def _measure_figures(measure: Measure, compared: Subquery) -> dict[str, Element]:
    """Exact mean, extremes and change of one measure (SEMANTICS, sections 4 and 5)."""
    total, count = compared.c[_sum(measure)], func.nullif(compared.c[_count(measure)], 0)
    previous_total = compared.c[f"previous_{_sum(measure)}"]
    previous_count = func.nullif(compared.c[f"previous_{_count(measure)}"], 0)
    difference = total * previous_count - previous_total * count
    figures: dict[str, Element] = {
        measure.average: _floor(total, count),
        measure.maximum: compared.c[measure.maximum],
        measure.minimum: compared.c[measure.minimum],
        measure.change: func.div(difference, count * previous_count),
        measure.change_percent: _two_decimals(difference * 100, func.nullif(previous_total * count, 0)),
    }
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _two_decimals(total, count)
    return figures


def _trend(percent: Element, total: Element, previous_total: Element, threshold: Element) -> Element:
    grew_from_nothing = and_(previous_total == 0, total > 0)
    return case(
        (previous_total.is_(None), null()),
        (or_(percent > threshold, grew_from_nothing), literal("growing")),
        (percent < -threshold, literal("shrinking")),
        else_=literal("stable"),
    )


def _count(measure: Measure) -> str:
    return f"count_{measure.source}"


def _sum(measure: Measure) -> str:
    return f"sum_{measure.source}"


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
