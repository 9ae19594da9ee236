"""The first part of the statement: from raw rows to the exact partial states of each window.

Where stored windows stand for their days, `stored_states` takes this module's place and uses its parts.

Windows are numbered by `width_bucket`, so that a single scan serves all of them; samples are reduced to count, sum and
extremes; window functions put the states of the window before and of a year before beside, without a second scan. The
values of first and last days are looked up on these few days. What figures are made of them is decided in `figures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
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
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import INTERVAL, array
from sqlalchemy.sql.elements import FrameClause, FrameClauseType, Grouping

from capacity_assets.aggregation.parts import Source
from capacity_assets.foundation.levels import Level, Measure

# Expressions over columns whose Python type never matters here: no figure travels through Python.
Element: TypeAlias = ColumnElement[Any]


@dataclass(frozen=True)
class Form:
    """Which form the statement has.

    `single`: for one window only. `from_stored`: stored windows stand for some of the days, for all unless it
    `reads_days`. `distributed`: each node does the work of its servers whole. `sources`: what the one window, the one
    before and a year before are read from, where they differ. `one_day`: each window is a day, with a single value.
    """

    single: bool
    from_stored: bool = False
    reads_days: bool = True
    distributed: bool = False
    sources: tuple[Source, ...] = ()
    one_day: bool = False


class Parameters:
    """Bind parameters; `starts`, `ends` and `wanted` describe adjacent windows, of which only some are asked for.

    Samples are read from `first_day`, the first day of the window before the first one requested, to `last_day`, and
    from `year_first` to `year_last`, the days `year_interval` earlier that they are compared with. `untouched_starts`
    are the first days of windows without added or corrected samples, including those of the compared windows.

    Where stored windows are read, `part_types` and `part_starts` name them, pair by pair; samples are read of the days
    from an odd one of `cuts` to before the next, all of which lie in the two spans of `read_...`.
    """

    period_type = bindparam("period_type", type_=String)
    instance_ids = bindparam("instance_ids", type_=ARRAY(Integer))
    starts = bindparam("starts", type_=ARRAY(Date))
    ends = bindparam("ends", type_=ARRAY(Date))
    wanted = bindparam("wanted", type_=ARRAY(Boolean))
    last_start = bindparam("last_start", type_=Date)
    first_day = bindparam("first_day", type_=Date)
    last_day = bindparam("last_day", type_=Date)
    year_first = bindparam("year_first", type_=Date)
    year_last = bindparam("year_last", type_=Date)
    year_interval = bindparam("year_interval", type_=INTERVAL)
    trend_percent = bindparam("trend_percent", type_=Numeric)
    part_types = bindparam("part_types", type_=ARRAY(String))
    part_starts = bindparam("part_starts", type_=ARRAY(Date))
    cuts = bindparam("cuts", type_=ARRAY(Date))
    read_first = bindparam("read_first", type_=Date)
    read_last = bindparam("read_last", type_=Date)
    read_year_first = bindparam("read_year_first", type_=Date)
    read_year_last = bindparam("read_year_last", type_=Date)
    computed_starts = bindparam("computed_starts", type_=ARRAY(Date))
    untouched_starts = bindparam("untouched_starts", type_=ARRAY(Date))


def numbered_windows() -> CTE:
    """Number the windows: bucket 1 is the previous window of the first one asked for, gaps are numbered too."""
    numbered = (
        func.unnest(Parameters.starts, Parameters.ends, Parameters.wanted)
        .table_valued("period_start", "period_end", "wanted", with_ordinality="bucket", name="numbered")
        .render_derived()
    )
    return select(
        cast(numbered.c.bucket, Integer).label("bucket"),
        numbered.c.period_start,
        numbered.c.period_end,
        numbered.c.wanted,
    ).cte("windows")


def partial_states(level: Level, form: Form) -> Subquery:
    """Reduce the samples of each key and window to sums, counts, extremes and ends, with the compared windows beside.

    A single window and the one before it need no sorting: their sums per key are told apart by the day.

    Columns: the keys, `bucket`, the counts of rows of the three windows, and per measure what `named` names.
    """
    days = _days_read(level)
    if form.single:
        states = _side_by_side(level)
    else:
        bucketed = placed(states_of_days(level, days))
        columns = compared(level, bucketed).items()
        states = select(*(column.label(name) for name, column in columns)).subquery("compared")
    return with_ends(level, states, days, form)


def _days_read(level: Level) -> ColumnElement[bool]:
    day = level.source.c.collected_date
    return or_(
        day.between(Parameters.first_day, Parameters.last_day), day.between(Parameters.year_first, Parameters.year_last)
    )


def _raw_rows(level: Level, days: ColumnElement[bool]) -> FromClause:
    """Raw rows that count: of the instances, on the days, not void; summed per day where the level says so."""
    raw = level.source
    conditions = [days, raw.c.instance_id == func.any(Parameters.instance_ids), *level.live()]
    measures = [raw.c[measure.source] for measure in level.measures]
    keys = [raw.c[key] for key in level.keys]
    if not level.sum_per_day:
        return select(*keys, raw.c.collected_date, *measures).where(*conditions).subquery("samples")
    sums = [func.sum(column).label(column.name) for column in measures]
    return (
        select(*keys, raw.c.collected_date, *sums).where(*conditions).group_by(*keys, raw.c.collected_date)
    ).subquery("samples")


def states_of_days(level: Level, days: ColumnElement[bool], *, end_values: bool = False) -> Subquery:
    """Reduce the samples of each key and window to count, sum and extremes: partial state that stays exact.

    Of the ends the days are kept, to be looked up in `with_ends`; with `end_values` also the values, as `dated` ones,
    of windows that are asked for: a value out of range in one that is only compared with must not fail these.
    """
    samples = _raw_rows(level, days)
    keys = [samples.c[key] for key in level.keys]
    bucket = func.width_bucket(samples.c.collected_date, Parameters.starts).label("bucket")
    columns: dict[str, Element] = {"data_count": func.count()}
    for measure in level.measures:
        column = samples.c[measure.source]
        columns[named("count", measure)] = func.count(column)
        columns[named("sum", measure)] = cast(func.sum(column), Numeric)
        columns[measure.maximum] = func.max(column)
        columns[measure.minimum] = func.min(column)
        if measure.further:
            columns |= _end_days(measure, samples, column.is_not(None))
            if end_values:
                ends = dated(samples.c.collected_date, column)
                counts = and_(column.is_not(None), window_of(Parameters.wanted, bucket.element))
                columns[named("first", measure)] = func.min(ends).filter(counts)
                columns[named("last", measure)] = func.max(ends).filter(counts)
    return (
        select(*keys, bucket, *(column.label(name) for name, column in columns.items()))
        .group_by(*keys, bucket)
        .subquery("reduced")
    )


def placed(states: Subquery) -> Subquery:
    """Put the first day of its window beside each state."""
    start = window_of(Parameters.starts, states.c.bucket)
    return select(*states.c, start.label("period_start")).subquery("bucketed")


def _side_by_side(level: Level) -> Subquery:
    """Reduce the samples of each key to partial states: of the one window, the one before, and a year before."""
    samples = _raw_rows(level, _days_read(level))
    keys = [samples.c[key] for key in level.keys]
    own = samples.c.collected_date >= Parameters.last_start
    previous = and_(samples.c.collected_date >= Parameters.first_day, samples.c.collected_date < Parameters.last_start)
    year_before = samples.c.collected_date.between(Parameters.year_first, Parameters.year_last)
    columns: dict[str, Element] = {
        "data_count": func.count().filter(own),
        "previous_data_count": func.nullif(func.count().filter(previous), 0),
        "year_before_data_count": func.nullif(func.count().filter(year_before), 0),
    }
    for measure in level.measures:
        column = samples.c[measure.source]
        columns[named("count", measure)] = func.count(column).filter(own)
        columns[named("previous_count", measure)] = func.count(column).filter(previous)
        columns[named("sum", measure)] = cast(func.sum(column).filter(own), Numeric)
        columns[named("previous_sum", measure)] = cast(func.sum(column).filter(previous), Numeric)
        columns[measure.maximum] = func.max(column).filter(own)
        columns[measure.minimum] = func.min(column).filter(own)
        if measure.further:
            columns[named("year_before_count", measure)] = func.count(column).filter(year_before)
            columns[named("year_before_sum", measure)] = cast(func.sum(column).filter(year_before), Numeric)
            columns |= _end_days(measure, samples, and_(own, column.is_not(None)))
    bucket = literal(2).label("bucket")  # the window before it is the first
    return (
        select(*keys, bucket, *(column.label(name) for name, column in columns.items()))
        .group_by(*keys)
        .having(func.count().filter(own) > 0)
        .subquery("compared")
    )


def _end_days(measure: Measure, samples: FromClause, measured: ColumnElement[bool]) -> dict[str, Element]:
    return {
        named("first_day_of", measure): func.min(samples.c.collected_date).filter(measured),
        named("last_day_of", measure): func.max(samples.c.collected_date).filter(measured),
    }


def with_ends(level: Level, states: Subquery, days: ColumnElement[bool], form: Form) -> Subquery:
    """Put the values of the first and last days beside: that of the one day, or those looked up."""
    return _with_the_value(level, states) if form.one_day else _with_looked_up(level, states, days)


def _with_the_value(level: Level, states: Subquery) -> Subquery:
    """Take the one value of a day for both ends, where a second look would be one at every sample."""
    ends = [
        states.c[measure.maximum].label(named(end, measure))
        for measure in level.measures
        if measure.further
        for end in ("first", "last")
    ]
    return select(*states.c, *ends).subquery("with_ends")


def _with_looked_up(level: Level, states: Subquery, days: ColumnElement[bool]) -> Subquery:
    """Look up the values of the first and last days, in a second look at these days alone: few, for all keys."""
    rows = select(states).cte("with_end_days")
    columns: list[Element] = list(rows.c)
    joined: FromClause = rows
    for measure in level.measures:
        if not measure.further:
            continue
        ends = {
            named("first", measure): rows.c[named("first_day_of", measure)],
            named("last", measure): rows.c[named("last_day_of", measure)],
        }
        end_days = select(func.unnest(array(list(ends.values())))).distinct().scalar_subquery()
        on_them = and_(days, level.source.c.collected_date == func.any(func.array(end_days)))
        values = select(_raw_rows(level, on_them)).cte(f"ends_of_{measure.source}")
        for name, day in ends.items():
            end = values.alias(name)
            same = [end.c[key] == rows.c[key] for key in level.keys]
            joined = joined.outerjoin(end, and_(*same, end.c.collected_date == day))
            columns.append(end.c[measure.source].label(name))
    return select(*columns).select_from(joined).subquery("with_ends")


def compared(level: Level, bucketed: Subquery) -> dict[str, Element]:
    """Put counts and sums of the window before, and of a year before, beside each window; null without a sample."""
    keys = [bucketed.c[key] for key in level.keys]
    preceding = FrameClauseType.PRECEDING
    a_year_before = FrameClause(Parameters.year_interval, Parameters.year_interval, preceding, preceding)

    def before(column: Element) -> Element:
        return func.lag(column).over(partition_by=keys, order_by=bucketed.c.period_start)

    def year_before(column: Element) -> Element:
        return func.first_value(column).over(partition_by=keys, order_by=bucketed.c.period_start, range_=a_year_before)

    is_adjacent = before(bucketed.c.bucket) == bucketed.c.bucket - 1
    states = {measure: (named("count", measure), named("sum", measure)) for measure in level.measures}
    names = ["data_count", *(name for state in states.values() for name in state)]
    yearly = ["data_count", *(name for measure, state in states.items() if measure.further for name in state)]
    previous = {f"previous_{name}": case((is_adjacent, before(bucketed.c[name]))) for name in names}
    a_year_ago = {f"year_before_{name}": year_before(bucketed.c[name]) for name in yearly}
    return {**bucketed.c, **previous, **a_year_ago}


def dated(day: Element, value: Element) -> Element:
    """A value behind the number of its day: the smallest such array is the first value, the largest the last."""
    number = cast(cast(day, Date) - literal_column("DATE '2000-01-01'", Date), BigInteger)
    return cast(array([number, cast(value, BigInteger)]), ARRAY(BigInteger))


def window_of(windows: Element, bucket: Element) -> Element:
    """Return what an array of the windows says of the one with a number."""
    parenthesised: Element = Grouping(windows)
    return parenthesised[bucket]


def named(kind: str, measure: Measure) -> str:
    """Name a partial state of a measure."""
    return f"{kind}_{measure.source}"
