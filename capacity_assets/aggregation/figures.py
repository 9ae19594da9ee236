"""The first half of the statement: from raw rows to the figures of each window, exactly.

A chain of steps. Windows are numbered by `width_bucket`, so that a single scan serves all of them; samples are
reduced to count, sum and extremes; window functions put the figures of the window before and of a year before beside,
without a second scan. The values of first and last days are looked up on these few days. What happens to the figures
afterwards is the business of `statements`.

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
from sqlalchemy.dialects.postgresql import INTERVAL, array
from sqlalchemy.sql.elements import FrameClause, FrameClauseType

from capacity_assets.aggregation.levels import Further, Level, Measure

SINGLE_BUCKET = 2  # the window before it is the first

# Expressions over columns whose Python type never matters here: no figure travels through Python.
Element: TypeAlias = ColumnElement[Any]


@dataclass(frozen=True)
class Parameters:
    """Bind parameters; `starts`, `ends` and `wanted` describe adjacent windows, of which only some are asked for.

    Samples are read from `first_day`, which begins the window before the first one asked for, to `last_day`, and of the
    days `year_first` to `year_last` with which these are compared, `year_interval` earlier.
    """

    period_type: BindParameter[str]
    instance_ids: BindParameter[Any]
    starts: BindParameter[Any]
    ends: BindParameter[Any]
    wanted: BindParameter[Any]
    last_start: BindParameter[Any]
    first_day: BindParameter[Any]
    last_day: BindParameter[Any]
    year_first: BindParameter[Any]
    year_last: BindParameter[Any]
    year_interval: BindParameter[Any]
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
        year_first=bindparam("year_first", type_=Date),
        year_last=bindparam("year_last", type_=Date),
        year_interval=bindparam("year_interval", type_=INTERVAL),
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
        cast(numbered.c.period_start - parameters.year_interval, Date).label("year_before_start"),
    ).cte("windows")


def window_figures(
    level: Level, parameters: Parameters, windows: CTE, *, single: bool, windows_per_year: int | None
) -> CTE:
    """Compute one row of figures for each key and window asked for that has a raw row.

    With `single` there is one window asked for and the one before it, the daily case: sets of sums per key, told
    apart by the day, need no sorting. The figures are the same. `windows_per_year` is the exponent of the yearly rate,
    which is null without one.

    Columns: the keys, `period_start`, every column of `level.figures`, and for the decision what to do with them
    `previous_start`, `previous_data_count`, `year_before_start` and `year_before_data_count`.
    """
    if single:
        compared = _side_by_side(level, parameters)
    else:
        compared = _compared(level, _bucketed(level, parameters, windows), parameters)
    measured = _measured(level, _with_ends(level, parameters, compared), windows_per_year)
    return _laid_out(level, measured, windows, parameters.trend_percent)


def _days_read(level: Level, parameters: Parameters) -> ColumnElement[bool]:
    day = level.source.c.collected_date
    return or_(
        day.between(parameters.first_day, parameters.last_day), day.between(parameters.year_first, parameters.year_last)
    )


def _raw_rows(level: Level, parameters: Parameters, days: ColumnElement[bool]) -> FromClause:
    """Raw rows that count: of the instances, on the days, not void; summed per day where the level says so."""
    raw = level.source
    conditions = [days, raw.c.instance_id == func.any(parameters.instance_ids), *level.live()]
    measures = [raw.c[measure.source] for measure in level.measures]
    keys = [raw.c[key] for key in level.keys]
    if not level.sum_per_day:
        return select(*keys, raw.c.collected_date, *measures).where(*conditions).subquery("samples")
    sums = [func.sum(column).label(column.name) for column in measures]
    return (
        select(*keys, raw.c.collected_date, *sums).where(*conditions).group_by(*keys, raw.c.collected_date)
    ).subquery("samples")


def _bucketed(level: Level, parameters: Parameters, windows: CTE) -> Subquery:
    """Reduce the samples of each key and window to count, sum and extremes: partial state that stays exact."""
    samples = _raw_rows(level, parameters, _days_read(level, parameters))
    keys = [samples.c[key] for key in level.keys]
    bucket = func.width_bucket(samples.c.collected_date, parameters.starts).label("bucket")
    columns: dict[str, Element] = {"data_count": func.count()}
    for measure in level.measures:
        column = samples.c[measure.source]
        columns[_named("count", measure)] = func.count(column)
        columns[_named("sum", measure)] = cast(func.sum(column), Numeric)
        columns[measure.maximum] = func.max(column)
        columns[measure.minimum] = func.min(column)
        if measure.further:
            columns |= _end_days(measure, samples, column.is_not(None))
    reduced = (
        select(*keys, bucket, *(column.label(name) for name, column in columns.items()))
        .group_by(*keys, bucket)
        .subquery("reduced")
    )
    return (
        select(*reduced.c, windows.c.period_start)
        .join_from(reduced, windows, windows.c.bucket == reduced.c.bucket)
        .subquery("bucketed")
    )


def _side_by_side(level: Level, parameters: Parameters) -> Subquery:
    """Reduce the samples of each key to partial states: of the one window, the one before, and a year before."""
    samples = _raw_rows(level, parameters, _days_read(level, parameters))
    keys = [samples.c[key] for key in level.keys]
    own = samples.c.collected_date >= parameters.last_start
    previous = and_(samples.c.collected_date >= parameters.first_day, samples.c.collected_date < parameters.last_start)
    year_before = samples.c.collected_date.between(parameters.year_first, parameters.year_last)
    columns: dict[str, Element] = {
        "data_count": func.count().filter(own),
        "previous_data_count": func.nullif(func.count().filter(previous), 0),
        "year_before_data_count": func.nullif(func.count().filter(year_before), 0),
    }
    for measure in level.measures:
        column = samples.c[measure.source]
        columns[_named("count", measure)] = func.count(column).filter(own)
        columns[_named("previous_count", measure)] = func.count(column).filter(previous)
        columns[_named("sum", measure)] = cast(func.sum(column).filter(own), Numeric)
        columns[_named("previous_sum", measure)] = cast(func.sum(column).filter(previous), Numeric)
        columns[measure.maximum] = func.max(column).filter(own)
        columns[measure.minimum] = func.min(column).filter(own)
        if measure.further:
            columns[_named("year_before_count", measure)] = func.count(column).filter(year_before)
            columns[_named("year_before_sum", measure)] = cast(func.sum(column).filter(year_before), Numeric)
            columns |= _end_days(measure, samples, and_(own, column.is_not(None)))
    bucket = literal(SINGLE_BUCKET).label("bucket")
    return (
        select(*keys, bucket, *(column.label(name) for name, column in columns.items()))
        .group_by(*keys)
        .having(func.count().filter(own) > 0)
        .subquery("compared")
    )


def _end_days(measure: Measure, samples: FromClause, measured: ColumnElement[bool]) -> dict[str, Element]:
    day = samples.c.collected_date
    return {
        _named("first_day_of", measure): func.min(day).filter(measured),
        _named("last_day_of", measure): func.max(day).filter(measured),
    }


def _with_ends(level: Level, parameters: Parameters, compared: Subquery) -> Subquery:
    """Look up the values of the first and last days, in a second look at these days alone: few, for all keys."""
    rows = select(compared).cte("with_end_days")
    columns: list[Element] = list(rows.c)
    joined: FromClause = rows
    for measure in level.measures:
        if not measure.further:
            continue
        ends = {
            _named("first", measure): rows.c[_named("first_day_of", measure)],
            _named("last", measure): rows.c[_named("last_day_of", measure)],
        }
        days = select(func.unnest(array(list(ends.values())))).distinct().scalar_subquery()
        on_them = and_(_days_read(level, parameters), level.source.c.collected_date == func.any(func.array(days)))
        values = select(_raw_rows(level, parameters, on_them)).cte(f"ends_of_{measure.source}")
        for name, day in ends.items():
            end = values.alias(name)
            same = [end.c[key] == rows.c[key] for key in level.keys]
            joined = joined.outerjoin(end, and_(*same, end.c.collected_date == day))
            columns.append(end.c[measure.source].label(name))
    return select(*columns).select_from(joined).subquery("with_ends")


def _compared(level: Level, bucketed: Subquery, parameters: Parameters) -> Subquery:
    """Put counts and sums of the window before, and of a year before, beside each window; null without a sample."""
    keys = [bucketed.c[key] for key in level.keys]
    preceding = FrameClauseType.PRECEDING
    a_year_before = FrameClause(parameters.year_interval, parameters.year_interval, preceding, preceding)

    def before(column: Element) -> Element:
        return func.lag(column).over(partition_by=keys, order_by=bucketed.c.period_start)

    def year_before(column: Element) -> Element:
        return func.first_value(column).over(partition_by=keys, order_by=bucketed.c.period_start, range_=a_year_before)

    is_adjacent = before(bucketed.c.bucket) == bucketed.c.bucket - 1
    states = {measure: (_named("count", measure), _named("sum", measure)) for measure in level.measures}
    names = ["data_count", *(name for state in states.values() for name in state)]
    yearly = ["data_count", *(name for measure, state in states.items() if measure.further for name in state)]
    previous = [case((is_adjacent, before(bucketed.c[name]))).label(f"previous_{name}") for name in names]
    a_year_ago = [year_before(bucketed.c[name]).label(f"year_before_{name}") for name in yearly]
    return select(*bucketed.c, *previous, *a_year_ago).subquery("compared")


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
    columns["headline_sum"] = compared.c[_named("sum", level.headline)]
    columns["previous_headline_sum"] = compared.c[_named("previous_sum", level.headline)]
    counts = ("data_count", "previous_data_count", "year_before_data_count")
    kept = [compared.c[name] for name in (*level.keys, "bucket", *counts)]
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
    first, last = compared.c[_named("first", measure)], compared.c[_named("last", measure)]
    year_change, year_change_percent = _difference(measure, compared, "year_before_")
    return {
        further.last: last,
        further.growth: case((compared.c[_named("count", measure)] > 1, last - first)),
        further.year_change: year_change,
        further.year_change_percent: year_change_percent,
        further.yearly_rate_percent: _yearly_rate(measure, compared, windows_per_year),
    }


def _state(measure: Measure, compared: Subquery, prefix: str = "") -> tuple[Element, Element]:
    """Sum and count of a measure; the count is null instead of zero."""
    return compared.c[_named(f"{prefix}sum", measure)], func.nullif(compared.c[_named(f"{prefix}count", measure)], 0)


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


def _trend(percent: Element, total: Element, previous_total: Element, threshold: Element) -> Element:
    grew_from_nothing = and_(previous_total == 0, total > 0)
    return case(
        (previous_total.is_(None), null()),
        (or_(percent > threshold, grew_from_nothing), literal("growing")),
        (percent < -threshold, literal("shrinking")),
        else_=literal("stable"),
    )


def _named(kind: str, measure: Measure) -> str:
    """Name a partial state of a measure."""
    return f"{kind}_{measure.source}"


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
