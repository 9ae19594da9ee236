"""The statement that computes windows, in three parts: states, figures, and what happens to the stored rows.

A *state* contains the inputs of figures: counts, exact sums, extremes, and the values of the first and last measured
days.

1. `window_states` unites samples, stored shorter windows in place of samples, and the stored rows of the windows
   themselves, per key and window, and adds the previous window and the one a year before to each. The steps are the
   same for one window and for many, for days and for years. Windows are compared with the stored row of another window
   if it was built from more samples than are left. Sources known to be empty are not read (`StatementSources`).
2. `window_figures` turns states into exact figures. Sums are integers, and every figure is one integer division,
   rounded once (docs/semantics.md). Rounding "half away from zero to two decimals" divides 200 times the numerator plus
   the denominator by twice the denominator. All arithmetic is in 64-bit integers: a sum of possible sizes fits; a sum
   of impossible sizes makes its server fail.
3. `aggregation_statement` inserts each computed row, updates its stored row, or keeps that, and counts. A row is never
   replaced by one of fewer samples. The stored comparison of a row is kept if the other window has no sample and no row
   left, and the row's own figures of that measure did not change. Windows without stored rows skip all this.

Windows are numbered by `width_bucket` over the first days of adjacent windows. Citus does not push down a step that is
read twice, so `NodeStatements` does the third part in several statements, on each node for the servers of that node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Compiled,
    Connection,
    Date,
    DateTime,
    Delete,
    FromClause,
    Integer,
    Numeric,
    Row,
    Select,
    String,
    Subquery,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import INTERVAL, Insert, array, insert
from sqlalchemy.sql.elements import FrameClause, FrameClauseType, Grouping

from capacity_assets.aggregates.groups import FLEET, LEFT_OUT, TOTAL
from capacity_assets.aggregates.levels import Level
from capacity_assets.base.periods import Period
from capacity_assets.base.trend import trend_direction
from capacity_assets.base.units import BYTES_PER_MB, LARGEST_MB
from capacity_assets.database.cluster import ROW_NUMBER_FUNCTION
from capacity_assets.database.measures import Measure
from capacity_assets.database.sql import DIALECT

# The Python types of columns do not matter here, because no figure passes through Python.
Element: TypeAlias = ColumnElement[Any]


class StatementParameters:
    """The parameters of the statement.

    `starts`, `ends` and `wanted` describe the windows that are read, in order; only the `wanted` ones are written. The
    others are compared with, so the window before a wanted one always precedes it in the list.

    `cuts` are pairs of days: samples are read from the first day of a pair to the day before the second. All of them
    are in the two spans of `read_...`. `shorter_types` and `shorter_starts` name stored shorter windows, pair by pair.
    With `overwrite`, history may be replaced. Growth is raised to `windows_per_year` for its yearly rate; null: none.
    `computed_starts` are the wanted windows that were computed before; of `unread_starts`, only stored rows are read.
    """

    # Not named like a column, which SQLAlchemy would take for a value of the update.
    period_type = bindparam("period", type_=String)
    instance_ids = bindparam("instance_ids", type_=ARRAY(Integer))
    starts = bindparam("starts", type_=ARRAY(Date))
    ends = bindparam("ends", type_=ARRAY(Date))
    wanted = bindparam("wanted", type_=ARRAY(Boolean))
    wanted_starts = bindparam("wanted_starts", type_=ARRAY(Date))
    wanted_first = bindparam("wanted_first", type_=Date)
    wanted_last = bindparam("wanted_last", type_=Date)
    before_first = bindparam("before_first", type_=Date)
    year_first = bindparam("year_first", type_=Date)
    year_last = bindparam("year_last", type_=Date)
    year_interval = bindparam("year_interval", type_=INTERVAL)
    cuts = bindparam("cuts", type_=ARRAY(Date))
    read_first = bindparam("read_first", type_=Date)
    read_last = bindparam("read_last", type_=Date)
    read_year_first = bindparam("read_year_first", type_=Date)
    read_year_last = bindparam("read_year_last", type_=Date)
    shorter_types = bindparam("shorter_types", type_=ARRAY(String))
    shorter_starts = bindparam("shorter_starts", type_=ARRAY(Date))
    trend_percent = bindparam("trend_percent", type_=Numeric)
    windows_per_year = bindparam("windows_per_year", type_=Numeric)
    computed_starts = bindparam("computed_starts", type_=ARRAY(Date))
    unread_starts = bindparam("unread_starts", type_=ARRAY(Date))
    overwrite = bindparam("overwrite", type_=Boolean)


# A day and its value are combined in one number, so that the smallest is the first value and the largest the last. The
# value takes the lower 44 bits, which are enough for every possible size and its negative.
_DAY_BITS = 2 * (LARGEST_MB + 1)


def window_states(level: Level, sources: StatementSources) -> Subquery:
    """Return the states of each key and wanted window, with those of the windows with which it is compared.

    Columns: the keys, `bucket`, `period_start`, `data_count` (null: only a stored row is left), per measure what
    `state_column` names: `count_`, `sum_`, `max_`, `min_`, and for measures with further figures `first_` and `last_`;
    the counts and sums again with the prefix `previous_` and, for measures with further figures, `year_before_`.
    """
    united = _unite(level, sources)
    keys = [united.c[key] for key in level.keys]
    preceding = FrameClauseType.PRECEDING
    a_year_before = FrameClause(
        StatementParameters.year_interval, StatementParameters.year_interval, preceding, preceding
    )
    others = {"previous": func.lag(united.c.valid).over(partition_by=keys, order_by=united.c.period_start)}
    if sources.year_before:
        others["year_before"] = func.first_value(united.c.valid).over(
            partition_by=keys, order_by=united.c.period_start, range_=a_year_before
        )
    beside = select(*united.c, *(other.label(name) for name, other in others.items())).subquery("beside")
    is_adjacent = _element(beside.c.previous, 1) == beside.c.bucket - 1
    columns = [beside.c[name] for name in ("bucket", "period_start", *_own_names(level))]
    for place, name in enumerate(_compared_names(level), start=2):
        columns.append(case((is_adjacent, _element(beside.c.previous, place))).label(f"previous_{name}"))
        if name in _compared_names(level, further=True):
            a_year_ago = _element(beside.c.year_before, place) if sources.year_before else _null_of(name)
            columns.append(a_year_ago.label(f"year_before_{name}"))
    return (
        select(*(beside.c[key] for key in level.keys), *columns)
        .where(window_of(StatementParameters.wanted, beside.c.bucket))
        .subquery("states")
    )


def _element(values: Element, place: int) -> Element:
    return window_of(type_coerce(values, ARRAY(BigInteger)), literal_column(str(place), Integer))


def state_column(kind: str, measure: Measure) -> str:
    """Return the name of a part of the state of a measure."""
    return f"{kind}_{measure.source}"


def window_of(windows: Element, bucket: Element) -> Element:
    """Return the element of an array for the window with a number."""
    parenthesised: Element = Grouping(windows)
    return parenthesised[bucket]


def _compared_names(level: Level, *, further: bool = False) -> Iterator[str]:
    """Yield the parts of a state that are compared with other windows or, with `further`, with those a year later."""
    yield "data_count"
    for measure in level.measures:
        if measure.further or not further:
            yield state_column("count", measure)
            yield state_column("sum", measure)


def _own_names(level: Level) -> Iterator[str]:
    yield "data_count"
    for measure in level.measures:
        kinds = ("count", "sum", "max", "min", "first", "last") if measure.further else ("count", "sum", "max", "min")
        yield from (state_column(kind, measure) for kind in kinds)


_UNITE: dict[str, Callable[[Element], Element]] = {
    "data": func.sum, "count": func.sum, "sum": func.sum, "max": func.max, "min": func.min,
    "first": func.min, "last": func.max,
}  # fmt: skip


def _unite(level: Level, sources: StatementSources) -> Subquery:
    selects = [_sample_states(level)] if sources.samples else []
    if sources.shorter_windows:
        selects.append(_shorter_window_states(level))
    if sources.rows or not selects:
        # In two SELECTs, because PostgreSQL prunes partitions by one span, not by alternatives.
        selects.append(_stored_row_states(level, StatementParameters.before_first, StatementParameters.wanted_last))
        selects.append(_stored_row_states(level, StatementParameters.year_first, StatementParameters.year_last))
    rows = union_all(*selects).subquery("rows")
    keys = [rows.c[name] for name in (*level.keys, "period_start")]
    columns: dict[str, Element] = {"bucket": rows.c.bucket if sources.are_disjoint else func.max(rows.c.bucket)}
    for name in _own_names(level):
        kind = name.split("_")[0]
        value = rows.c[name] if sources.are_disjoint else _UNITE[kind](rows.c[name])
        if kind in ("first", "last"):
            value = _unpack_value(value)
        columns[name] = cast(value, BigInteger) if kind == "sum" else value
    names = list(_compared_names(level))
    own = array([columns["bucket"], *(columns[name] for name in names)])
    columns["valid"] = own
    if sources.rows:
        # One row, or the same row twice.
        stored = {
            name: rows.c[name] if sources.are_disjoint else func.max(rows.c[name]) for name in _stored_names(level)
        }
        is_stored = stored["samples"] > func.coalesce(columns["data_count"], 0)
        if not level.has_servers:
            # Days of a group appear and disappear with the labels.
            is_stored = and_(is_stored, rows.c.period_start == func.any(StatementParameters.unread_starts))
        # The values for comparisons: those of the stored row if it was built from more samples than exist. They are in
        # one array, because each access to another row costs as much as reading it.
        values = array([columns["bucket"], *(stored[f"stored_{name}"] for name in names)])
        columns["valid"] = case((is_stored, values), else_=own)
    united = select(*keys, *(column.label(name) for name, column in columns.items()))
    return (united if sources.are_disjoint else united.group_by(*keys)).subquery("united")


def _sample_states(level: Level) -> Any:
    """Select the samples that count, as states of their days."""
    samples = _samples(level)
    day = samples.c.collected_date
    columns: dict[str, Element] = {"data_count": literal_column("1", Integer)}
    for measure in level.measures:
        value = samples.c[measure.source]
        columns[state_column("count", measure)] = cast(value.is_not(None), Integer)
        columns |= {state_column(kind, measure): cast(value, BigInteger) for kind in ("sum", "max", "min")}
        if measure.further:
            columns |= {state_column(end, measure): _pack_with_day(day, value) for end in ("first", "last")}
    return _source_rows(level, samples, day, columns)


def _samples(level: Level) -> FromClause:
    raw = level.source
    day = raw.c.collected_date
    conditions = [
        or_(
            day.between(StatementParameters.read_first, StatementParameters.read_last),
            day.between(StatementParameters.read_year_first, StatementParameters.read_year_last),
        ),
        # Not `= 1`, which PostgreSQL estimates to hold for one row in two hundred, and would sort instead of hashing.
        func.width_bucket(day, StatementParameters.cuts) % 2 != 0,
        *level.of_servers(raw, StatementParameters.instance_ids),
        *level.live(),
    ]
    keys = [raw.c[key] for key in level.keys]
    measures = [raw.c[measure.source] for measure in level.measures]
    if not level.sum_per_day:
        return select(*keys, day, *measures).where(*conditions).subquery("samples")
    sums = [func.sum(column).label(column.name) for column in measures]
    return select(*keys, day, *sums).where(*conditions).group_by(*keys, day).subquery("samples")


def _shorter_window_states(level: Level) -> Any:
    target = level.target
    columns: dict[str, Element] = {"data_count": target.c.data_count}
    for measure in level.measures:
        columns |= {state_column(kind, measure): value for kind, value in _stored_sums(level, measure).items()}
        columns[state_column("max", measure)] = cast(target.c[measure.maximum], BigInteger)
        columns[state_column("min", measure)] = cast(target.c[measure.minimum], BigInteger)
        if measure.further:
            last, growth = target.c[measure.further.last], target.c[measure.further.growth]
            start = target.c.period_start
            columns[state_column("first", measure)] = _pack_with_day(start, last - func.coalesce(growth, 0))
            columns[state_column("last", measure)] = _pack_with_day(start, last)
    # Parts do not overlap, so their first days are unique.
    place = func.array_position(StatementParameters.shorter_starts, target.c.period_start)
    return _source_rows(level, target, target.c.period_start, columns).where(
        # The other two arrays are for the index and for pruning partitions.
        window_of(StatementParameters.shorter_types, place) == target.c.period_type,
        target.c.period_type == func.any(StatementParameters.shorter_types),
        target.c.period_start == func.any(StatementParameters.shorter_starts),
        *level.of_servers(target, StatementParameters.instance_ids),
    )


@dataclass(frozen=True)
class StatementSources:
    """The sources of a statement. Empty ones are left out, because PostgreSQL would still join and group them.

    `rows` are stored rows of any window that is read, `wanted_rows` those of the windows that are written, and
    `year_before` contains everything of the windows a year before these. Sources are disjoint if no two rows that are
    read have the same key and window.
    """

    samples: bool = True
    shorter_windows: bool = True
    rows: bool = True
    wanted_rows: bool = True
    year_before: bool = True
    are_disjoint: bool = False


EVERY_SOURCE = StatementSources()


def _stored_row_states(level: Level, first: Element, last: Element) -> Any:
    """Select the states of stored rows of windows that begin between two days.

    Of a row without sums, which an older version wrote, only its number of samples counts: nothing is compared with it.
    """
    target = level.target
    keeps_sums = or_(_is_day(level), target.c[state_column("sum", level.headline)].is_not(None))
    columns: dict[str, Element] = {
        "samples": target.c.data_count,
        "stored_data_count": case((keeps_sums, target.c.data_count)),
    }
    for measure in level.measures:
        columns |= {
            state_column(f"stored_{kind}", measure): value for kind, value in _stored_sums(level, measure).items()
        }
    return _source_rows(level, target, target.c.period_start, columns).where(
        target.c.period_type == StatementParameters.period_type,
        target.c.period_start.between(first, last),
        target.c.period_start == func.any(StatementParameters.starts),
        *level.of_servers(target, StatementParameters.instance_ids),
    )


def _source_rows(level: Level, source: FromClause, day: Element, columns: dict[str, Element]) -> Any:
    """Select rows in the columns that all sources have, with their window."""
    bucket = func.width_bucket(day, StatementParameters.starts)
    columns_of_keys = {key: source.c[key] for key in level.keys}
    # Texts are sorted by bytes, which is several times faster than by a language.
    keys = [
        (column.collate("C") if isinstance(column.type, String) else column).label(key)
        for key, column in columns_of_keys.items()
    ]
    names = (*_own_names(level), *_stored_names(level))
    given = [columns.get(name, _null_of(name)).label(name) for name in names]
    return select(
        *keys, bucket.label("bucket"), window_of(StatementParameters.starts, bucket).label("period_start"), *given
    )


def _null_of(name: str) -> Element:
    """Return null of the type of a column, because sums of integers are faster than those of 64-bit integers."""
    is_count = name.removeprefix("stored_").split("_")[0] in ("data", "count", "samples")
    return cast(null(), Integer if is_count else BigInteger)


def _stored_names(level: Level) -> Iterator[str]:
    """Return the columns that are read from stored rows: the number of samples, and the values to compare with."""
    yield "samples"
    yield from (f"stored_{name}" for name in _compared_names(level))


def _stored_sums(level: Level, measure: Measure) -> dict[str, Element]:
    """Return the number of values and the sum of a measure in a stored row; for a day, the sum is the value.

    If the measure has no count, every sample has a value.
    """
    columns, is_day, count = level.target.c, _is_day(level), state_column("count", measure)
    value, of_several = columns[measure.average], columns[count if count in level.sums else "data_count"]
    return {
        "count": case((is_day, cast(value.is_not(None), Integer)), else_=of_several),
        "sum": cast(case((is_day, value), else_=columns[state_column("sum", measure)]), BigInteger),
    }


def _is_day(level: Level) -> ColumnElement[bool]:
    return level.target.c.period_start == level.target.c.period_end


def _pack_with_day(day: Element, value: Element) -> Element:
    number = cast(cast(day, Date) - literal_column("DATE '2000-01-01'", Date), BigInteger)
    return number * literal_column(str(_DAY_BITS), BigInteger) + cast(value, BigInteger)


def _unpack_value(dated: Element) -> Element:
    half, mask = literal_column(str(_DAY_BITS // 2), BigInteger), literal_column(str(_DAY_BITS - 1), BigInteger)
    return (dated + half).op("&", return_type=BigInteger())(mask) - half


Columns: TypeAlias = Mapping[str, Element]

LARGEST_FAST = 10**14
"""Up to this numerator, 20,000 times it plus a denominator fit in 64 bits; above it, percentages use numerics."""


def window_figures(level: Level, sources: StatementSources, *, fenced: bool) -> Subquery:
    """Compute one row of figures for each key and wanted window that has a sample or a stored row.

    `fenced` prevents PostgreSQL from computing a figure again at each mention; Citus does not support this.

    Columns: the keys, `period_start`, every column of `level.figures` (all null if only a stored row is left), and
    `previous_data_count` and `year_before_data_count`, null if there is nothing to compare with.
    """
    measured = _compute_figures(level, sources, fenced=fenced)
    end = window_of(StatementParameters.ends, measured.c.bucket)
    growth_rate = measured.c[level.headline.change_percent]
    sums = (measured.c[state_column("sum", level.headline)], measured.c.previous_headline_sum)
    derived: dict[str, Element] = {
        "period_end": end,
        "growth_rate": growth_rate,
        "trend_direction": trend_direction(growth_rate, *sums, StatementParameters.trend_percent),
    }
    uncounted = {state_column("count", measure) for measure in level.measures if measure.since}
    for name in level.sums:
        value = func.nullif(measured.c[name], 0) if name in uncounted else measured.c[name]
        # A day's sum is its value.
        derived[name] = case((end > measured.c.period_start, value))
    columns = [derived[name] if name in derived else measured.c[name] for name in level.figures]
    return select(
        *(measured.c[key] for key in level.keys),
        measured.c.period_start,
        measured.c.previous_data_count,
        measured.c.year_before_data_count,
        *(column.label(name) for name, column in zip(level.figures, columns, strict=True)),
    ).subquery("figures")


def _compute_figures(level: Level, sources: StatementSources, *, fenced: bool) -> Subquery:
    """Compute the figures of each measure once; the next step names them several times."""
    compared = _compare(level, sources, fenced=fenced)
    state = dict(compared.c.items())
    columns: dict[str, Element] = {}
    for measure in level.measures:
        columns |= _measure_figures(measure, state)
    for ratio in level.ratios:
        numerator, denominator = (compared.c[f"sum_{name}"] for name in (ratio.numerator, ratio.denominator))
        columns[ratio.target] = case((denominator == _whole(0), _whole(0)), else_=_floor(numerator, denominator))
    columns |= {name: compared.c[name] for name in (*level.sums, state_column("sum", level.headline))}
    columns["previous_headline_sum"] = compared.c[state_column("previous_sum", level.headline)]
    names = (*level.keys, "bucket", "period_start", "data_count", "previous_data_count", "year_before_data_count")
    rows = select(*(compared.c[name] for name in names), *(column.label(name) for name, column in columns.items()))
    return (rows.offset(literal_column("0")) if fenced else rows).subquery("measured")


def _compare(level: Level, sources: StatementSources, *, fenced: bool) -> Subquery:
    """Add to each state its differences to the others, as one fraction per measure and window.

    The difference of two means is `difference_` / `counts_`, and relative to the other mean `difference_` / `base_`.
    """
    own = window_states(level, sources)
    columns: list[Element] = []
    for measure in level.measures:
        total, count = own.c[state_column("sum", measure)], own.c[state_column("count", measure)]
        for other in ("previous_", "year_before_") if measure.further else ("previous_",):
            other_total, other_count = (
                own.c[state_column(f"{other}sum", measure)],
                own.c[state_column(f"{other}count", measure)],
            )
            columns.append(
                (total * other_count - other_total * count).label(state_column(f"{other}difference", measure))
            )
            columns.append((other_total * count).label(state_column(f"{other}base", measure)))
            columns.append(func.nullif(count * other_count, _whole(0)).label(state_column(f"{other}counts", measure)))
    rows = select(*own.c, *columns)
    return (rows.offset(literal_column("0")) if fenced else rows).subquery("compared")


def _measure_figures(measure: Measure, state: Columns) -> dict[str, Element]:
    total, count = state[state_column("sum", measure)], func.nullif(state[state_column("count", measure)], _whole(0))
    change, change_percent = _difference(measure, state, "previous_")
    figures: dict[str, Element] = {
        measure.average: _floor(total, count),
        measure.maximum: _possible(measure, state[state_column("max", measure)]),
        measure.minimum: state[state_column("min", measure)],
        measure.change: _possible(measure, change),
        measure.change_percent: change_percent,
    }
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _two_decimals(total, count)
    if measure.further:
        first, last = state[state_column("first", measure)], state[state_column("last", measure)]
        year_change, year_change_percent = _difference(measure, state, "year_before_")
        figures |= {
            measure.further.last: last,
            measure.further.growth: case((state[state_column("count", measure)] > _whole(1), last - first)),
            measure.further.year_change: _possible(measure, year_change),
            measure.further.year_change_percent: year_change_percent,
            measure.further.yearly_rate_percent: _yearly_rate(measure, state),
        }
    return figures


def _possible(measure: Measure, size_mb: Element) -> Element:
    """Make PostgreSQL refuse a size above `units.LARGEST_MB`, whose bytes do not fit a bigint.

    Only the server of such a sample fails, as with any value that does not fit its column.
    """
    if not (measure.source.endswith("_mb")):
        return size_mb
    return _div(size_mb * _whole(BYTES_PER_MB), _whole(BYTES_PER_MB))


def _difference(measure: Measure, state: Columns, other: str) -> tuple[Element, Element]:
    """Return the change of the exact mean against another window, cut toward zero, and in percent."""
    difference, counts = (
        state[state_column(f"{other}difference", measure)],
        state[state_column(f"{other}counts", measure)],
    )
    base = func.nullif(state[state_column(f"{other}base", measure)], _whole(0))
    return _div(difference, counts), _two_decimals(difference, base, percent=True)


def _yearly_rate(measure: Measure, state: Columns) -> Element:
    """Return the factor by which the mean grew, to the power of the windows in a year, less one, in percent.

    Numerator and denominator are whole, and PostgreSQL raises whole numerics to a whole power exactly. There is no rate
    for a factor below zero, which impossible sizes have.
    """
    difference, base = (state[state_column(f"previous_{kind}", measure)] for kind in ("difference", "base"))
    above, below = (
        func.power(cast(each, Numeric), StatementParameters.windows_per_year) for each in (difference + base, base)
    )
    mean_has_sign_of_base = or_(
        and_(base > _whole(0), difference >= -base), and_(base < _whole(0), difference <= -base)
    )
    return case((mean_has_sign_of_base, _exact_two_decimals((above - below) * _whole(100), below)))


def _whole(number: int) -> Element:
    return literal_column(str(number), BigInteger)


def _div(numerator: Element, denominator: Element) -> Element:
    """Divide whole numbers, cut toward zero; SQLAlchemy's own operator divides as Python does."""
    return numerator.op("/", precedence=8, return_type=BigInteger())(denominator)


def _floor(numerator: Element, denominator: Element) -> Element:
    """Divide whole numbers, rounded down; in SQL, the remainder has the sign of the numerator."""
    remainder = numerator % denominator
    below_zero = and_(remainder != _whole(0), (remainder < _whole(0)) != (denominator < _whole(0)))
    return _div(numerator, denominator) - cast(below_zero, Integer)


def _two_decimals(numerator: Element, denominator: Element, *, percent: bool = False) -> Element:
    """Divide to two decimals, half away from zero, by one exact integer division; with `percent`, times a hundred."""
    above, below = func.abs(numerator), func.abs(denominator)
    hundredths = _div(above * _whole(20_000 if percent else 200) + below, below * _whole(2))
    signed = case(((numerator < _whole(0)) != (denominator < _whole(0)), -hundredths), else_=hundredths)
    exact = _exact_two_decimals(cast(numerator, Numeric) * _whole(100 if percent else 1), cast(denominator, Numeric))
    return case((above < _whole(LARGEST_FAST), cast(signed, Numeric) * literal_column("0.01")), else_=exact)


def _exact_two_decimals(numerator: Element, denominator: Element) -> Element:
    """Divide to two decimals as well, for numerics of any size."""
    hundredths = func.div(func.abs(numerator) * _whole(200) + func.abs(denominator), func.abs(denominator) * _whole(2))
    return hundredths * func.sign(numerator) * func.sign(denominator) * literal_column("0.01")


INSERT, UPDATE, UNCHANGED, PROTECTED, UNSAMPLED = (
    literal_column(f"'{action}'", String) for action in ("insert", "update", "unchanged", "protected", "unsampled")
)
HALF_A_FINGERPRINT = 32
Rows = Select[tuple[Any, ...]]


@cache
def aggregation_statement(
    level: Level, sources: StatementSources = EVERY_SOURCE, *, overwrite: bool = True, dry_run: bool = False
) -> Compiled:
    """Build the statement for one level: compute the figures from `sources`, decide, write, count.

    `overwrite` must equal that of the parameters. With `dry_run`, the statement only reads, and counts the rows that
    would be written and removed. It is compiled once per process, because SQLAlchemy takes longer for that than
    PostgreSQL.

    The statement returns one row per window in which anything was found: `period_start`, `instances` (with samples),
    `records`, `written`, `unchanged`, `removed`, `unsampled` (rows that are kept although they have no sample left).
    """
    if sources.wanted_rows:
        rows: FromClause = _classify(level, sources, fenced=True).cte("classified")
    else:
        # There is nothing to decide: every row is inserted.
        rows = select(*window_figures(level, sources, fenced=True).c, INSERT.label("action")).subquery("computed")
    if dry_run:
        return _counts(level, rows, _fits(level, rows)).compile(dialect=DIALECT)
    insertion = _insert(level, rows)
    if not sources.wanted_rows:
        inserted = insertion.returning(*(level.target.c[name] for name in _counted_names(level))).cte("inserted")
        return _counts(level, select(inserted, INSERT.label("action")).subquery("written")).compile(dialect=DIALECT)
    counts = _counts(level, rows).subquery("counts")
    updated = _update(level, rows).returning(level.target.c.period_start).cte("updated")
    per_window = _per_window(select(updated.c.period_start), updated.c.period_start).subquery("updated_rows")
    statement = (
        select(
            *(column for column in counts.c if column is not counts.c.written),
            (counts.c.written + func.coalesce(per_window.c.rows, 0)).label("written"),
        )
        .select_from(counts.outerjoin(per_window, per_window.c.period_start == counts.c.period_start))
        .add_cte(insertion.cte("inserted"))
    )
    if overwrite:
        removal = delete(level.target).where(_is_row_of(level, level.target, rows), _is_removed(rows, rows))
        statement = statement.add_cte(removal.cte("removed"))
    return statement.compile(dialect=DIALECT)


@cache
def stored_windows(level: Level) -> Compiled:
    """Select the first days of the windows that are read and have a stored row of a server of the slice.

    Each window is looked up separately, so that no plan reads all of its rows.
    """
    target = level.target
    window: Any = func.unnest(StatementParameters.starts).column_valued("window_start")
    row = select(literal_column("1", Integer)).where(
        target.c.period_type == StatementParameters.period_type,
        target.c.period_start == window,
        *level.of_servers(target, StatementParameters.instance_ids),
    )
    return select(window).join(row.limit(1).lateral("stored_row"), true()).compile(dialect=DIALECT)


def execute(connection: Connection, statement: Compiled, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
    """Execute a compiled statement; raises DBAPIError."""
    return connection.exec_driver_sql(str(statement), {**statement.params, **parameters}).all()


@dataclass(frozen=True)
class NodeStatements:
    """The statements of one slice for distributed tables, in order; parameters as in `StatementParameters`.

    - `counts` reads, computes and decides; `row_numbers` names the sequence of the rows' numbers.
    - `insert`, `update` and `remove` compute again and write; their parameters are `row_numbers` and `written_at`.
      `written` counts the rows marked by the latter per `period_start`; a window without rows is left out.
    """

    counts: Rows
    row_numbers: Select[str]
    insert: Insert
    update: Update
    written: Rows
    remove: Delete


@cache
def node_statements(level: Level) -> NodeStatements:
    """Build the statements for tables that are distributed by `instance_id`."""
    target = level.target

    def classified(name: str) -> Subquery:
        return _classify(level, fenced=False).subquery(name)

    rows = classified("classified")
    written_at = bindparam("written_at", type_=DateTime(timezone=True))
    # The default of the column is volatile, so all rows would pass through the coordinator.
    number = getattr(func, ROW_NUMBER_FUNCTION)(bindparam("row_numbers", type_=String), rows.c.instance_id)
    written = _select_stored(level).where(target.c.calculated_at == written_at).with_only_columns(target.c.period_start)
    return NodeStatements(
        counts=_counts(level, rows, _fits(level, rows)),
        row_numbers=select(func.pg_get_serial_sequence(target.name, "id")),
        insert=_insert(level, rows, {"id": number, "calculated_at": written_at, "created_at": written_at}),
        update=_update(level, rows, written_at),
        written=_per_window(written, target.c.period_start),
        remove=delete(target).where(_is_row_of(level, target, rows), _is_removed(rows, classified("sampled"))),
    )


def _per_window(rows: Rows, start: Element) -> Rows:
    return rows.add_columns(func.count().label("rows")).group_by(start)


FIGURES_REVISION = SUMS_REVISION = 1
"""Raise one when the same samples give other figures or stored sums. A test fails when the statement changes."""


def fingerprint(level: Level, period: Period, instance_ids: Sequence[int]) -> str:
    """Return a fingerprint of how a level is computed and for which servers: 64 hexadecimal digits.

    It changes with the trend threshold, and with the measures except those added since 0.3.0. Its second half is the
    fingerprint of the sums.
    """
    servers = ",".join(map(str, sorted(instance_ids)))
    measures, sums = _of_0_3_0(level)
    added = {name for measure in level.measures if measure.since for name in measure.targets} | level.sums.keys() - sums
    figures = tuple(name for name in level.figures if name not in added)
    made_of = f"{FIGURES_REVISION} {measures} {level.ratios} {figures}"
    return _digest(f"{made_of} {period.windows_per_year} {period.trend_percent} {servers}") + sums_fingerprint(level)


EQUAL_SUMS = {"c2961b6cf5d565f7b124019ffa7c6145": "0713de04220d27406fa8b2c9c115274a"}
"""Maps a fingerprint to an older one that gives the same sums for all possible sizes.

Windows stored with the older one stay current.
"""


@cache
def sums_fingerprint(level: Level) -> str:
    """Return a fingerprint of how stored sums are computed: 32 digits."""
    measures, sums = _of_0_3_0(level)
    values = tuple(measure.source for measure in measures)
    digest = _digest(f"{SUMS_REVISION} {level.source.name} {values} {level.void_flag} {sorted(sums)}{level.rule}")
    return EQUAL_SUMS.get(digest, digest)


def _of_0_3_0(level: Level) -> tuple[tuple[Measure, ...], list[str]]:
    """Return the measures of a level that no revision since 0.3.0 added, and the columns of their sums."""
    measures = tuple(measure for measure in level.measures if not measure.since)
    sources = {measure.source for measure in measures}
    return measures, [name for name, source in level.sums.items() if source in sources]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HALF_A_FINGERPRINT]


def _classify(level: Level, sources: StatementSources = EVERY_SOURCE, *, fenced: bool) -> Rows:
    """Decide what happens to each row, before anything is written, and insert kept comparisons.

    Unchanged rows are removed here, not in an upsert, so that a repetition writes nothing: an upsert whose WHERE is
    false still locks the row on its page.
    """
    joined = _with_stored_rows(level, sources, fenced=fenced)
    values: dict[str, Element] = {name: joined.c[name] for name in level.figures}
    for comparison in level.comparisons:
        is_kept = joined.c[f"keeps_{comparison.figures[0]}"]
        values |= {
            name: case((is_kept, joined.c[f"stored_{name}"]), else_=joined.c[name]) for name in comparison.figures
        }
    as_stored = tuple_(*(joined.c[f"stored_{name}"] for name in level.figures))
    computed = tuple_(*(joined.c[name] for name in level.figures))
    action = case(
        (joined.c.data_count.is_(None), UNSAMPLED),
        (joined.c.stored_data_count.is_(None), INSERT),
        (~computed.is_distinct_from(as_stored), UNCHANGED),
        (and_(joined.c.stored_data_count > joined.c.data_count, ~StatementParameters.overwrite), PROTECTED),
        # Only the kept comparison would have changed.
        (~tuple_(*values.values()).is_distinct_from(as_stored), PROTECTED),
        else_=UPDATE,
    ).label("action")
    keys = [joined.c[name] for name in (*level.keys, "period_start")]
    return select(*keys, *(value.label(name) for name, value in values.items()), action)


def _with_stored_rows(level: Level, sources: StatementSources, *, fenced: bool) -> Subquery:
    """Join the stored row to each computed row, with which of its comparisons are kept."""
    figures = window_figures(level, sources, fenced=fenced)
    stored = _select_stored(level).subquery("stored_rows")
    keeps: list[Element] = []
    for comparison in level.comparisons:
        change = stored.c[comparison.figures[0]]
        has_no_other = figures.c[f"{comparison.other}_data_count"].is_(None)
        conditions: list[ColumnElement[bool]] = [has_no_other, change.is_not(None)]
        if comparison.other == "previous":
            # The legacy application stored 0 for an unknown change.
            conditions.append(or_(change != 0, stored.c.period_start == func.any(StatementParameters.computed_starts)))
        conditions.append(_own_is_the_same(level, comparison.measure, stored, figures))
        keeps.append(and_(~StatementParameters.overwrite, *conditions).label(f"keeps_{change.name}"))
    rows = select(
        *(figures.c[name] for name in (*level.keys, "period_start", *level.figures)),
        *(stored.c[name].label(f"stored_{name}") for name in level.figures),
        *keeps,
    ).select_from(figures.outerjoin(stored, _same_row(level, stored, figures)))
    return (rows.offset(literal_column("0")) if fenced else rows).subquery("joined")


def _select_stored(level: Level) -> Rows:
    target = level.target
    return select(*(target.c[name] for name in (*level.keys, "period_start", *level.figures))).where(
        _is_wanted(level, target)
    )


def _is_wanted(level: Level, target: FromClause) -> ColumnElement[bool]:
    """Whether a stored row belongs to the slice, by conditions that do not depend on computed figures."""
    return and_(
        target.c.period_type == StatementParameters.period_type,
        target.c.period_start.between(StatementParameters.wanted_first, StatementParameters.wanted_last),
        target.c.period_start == func.any(StatementParameters.wanted_starts),
        *level.of_servers(target, StatementParameters.instance_ids),
    )


def _own_is_the_same(level: Level, measure: Measure, stored: FromClause, figures: FromClause) -> ColumnElement[bool]:
    """Whether the figures of a measure are equal; figures that an older version did not store count as equal."""
    own, added = level.own_figures(measure), level.added_later
    older = [name for name in own if name not in added]
    newer = [or_(stored.c[name].is_(None), stored.c[name] == figures.c[name]) for name in own if name in added]
    differs = tuple_(*(stored.c[n] for n in older)).is_distinct_from(tuple_(*(figures.c[n] for n in older)))
    return and_(~differs, *newer)


def _same_row(level: Level, one: FromClause, other: FromClause) -> ColumnElement[bool]:
    return and_(*(one.c[name] == other.c[name] for name in (*level.keys, "period_start")))


def _is_row_of(level: Level, target: FromClause, rows: FromClause) -> ColumnElement[bool]:
    return and_(_same_row(level, target, rows), _is_wanted(level, target))


def _insert(level: Level, rows: FromClause, own: Mapping[str, Element] | None = None) -> Insert:
    """Insert the rows that were not stored; `own` replaces defaults of columns.

    If another session inserted one of them in the meantime, PostgreSQL refuses, and the slice is written again: upserts
    would take half as long again. Rows are in the order of the key, so that the index grows in one place.
    """
    given: dict[str, Element] = {name: rows.c[name] for name in (*level.keys, "period_start", *level.figures)}
    given |= {"period_type": cast(StatementParameters.period_type, String)}
    given |= {"calculated_at": func.now(), "created_at": func.now(), **(own or {})}
    chosen = select(*given.values()).where(rows.c.action == INSERT)
    ordered = chosen.order_by(rows.c.period_start, *(rows.c[key] for key in level.keys))
    return insert(level.target).from_select(list(given), ordered, include_defaults=False)


def _update(level: Level, rows: FromClause, at: Element | None = None) -> Update:
    """Update the rows that change; id and created_at stay."""
    target = level.target
    values = {name: rows.c[name] for name in level.figures}
    # Repeated, because another session may update a row between reading and writing.
    still_wanted = or_(StatementParameters.overwrite, target.c.data_count <= rows.c.data_count)
    return (
        update(target)
        .values({**values, "calculated_at": func.now() if at is None else at})
        .where(_is_row_of(level, target, rows), rows.c.action == UPDATE, still_wanted)
    )


def _fits(level: Level, rows: FromClause) -> ColumnElement[bool]:
    """Cast every value of a row that is to be written to the type of its column, which fails as writing would."""
    tried = (cast(rows.c[name], level.target.c[name].type) for name in level.figures)
    # Always true, but PostgreSQL does not know that, and so computes every value.
    return case((or_(rows.c.action == INSERT, rows.c.action == UPDATE), func.num_nonnulls(*tried) > 0), else_=False)


def _is_removed(rows: FromClause, others: FromClause) -> ColumnElement[bool]:
    """Whether a row is removed: no sample supports it, but samples support others of its server in the window."""
    other = others.alias("sampled")
    names = [name for name in ("instance_id", "period_start") if name in rows.c]
    is_sampled = exists().where(other.c.action != UNSAMPLED, *(other.c[name] == rows.c[name] for name in names))
    return and_(StatementParameters.overwrite, rows.c.action == UNSAMPLED, is_sampled)


def _counted_names(level: Level) -> tuple[str, ...]:
    """Return the columns of rows that `_counts` reads, besides `action`."""
    if not level.has_servers:
        return ("period_start", *level.keys, "max_server_count")
    return ("period_start", "instance_id", *(_added_names(level) if level.has_several_rows_of_a_server else ()))


def _added_names(level: Level) -> tuple[str, ...]:
    measure = level.headline
    changes = (names[0] for names in measure.comparisons.values())
    return (measure.maximum, measure.minimum, *changes)


def _largest_sum_bytes(level: Level, rows: FromClause) -> Element:
    """Add up the sizes of the databases of a server, and their changes; PostgreSQL refuses a sum above 8 EiB.

    The sum of the largest sizes is at least that of any day, so no day can exceed 8 EiB unnoticed.
    """
    largest, smallest, *changes = (rows.c[name] for name in _added_names(level))
    sums = [func.sum(func.greatest(largest, -smallest)), *(func.sum(func.abs(change)) for change in changes)]
    return cast(func.coalesce(func.greatest(*sums), _whole(0)) * _whole(BYTES_PER_MB), BigInteger)


def _counts(level: Level, rows: FromClause, fits: ColumnElement[bool] | None = None) -> Rows:
    """Count the rows by what happens to them: first per server, on its node, and then per window.

    `written` counts the inserted rows or, with `fits`, all rows to be written. With `overwrite`, rows without samples
    are `removed` if other rows of their server in the window have samples; otherwise they are `unsampled`. If rows
    contain many servers, the number of servers is the largest of the fleet on a day, and `left_out` has the numbers of
    the servers that were left out on a day, separated by commas.
    """
    actions = {
        "records": rows.c.action != UNSAMPLED,
        "written": rows.c.action == INSERT if fits is None else fits,
        "unchanged": rows.c.action == UNCHANGED,
        "unsampled": rows.c.action == UNSAMPLED,
    }
    counted = [func.count().filter(which).label(name) for name, which in actions.items()]
    keys = [rows.c[name] for name in ("instance_id", "period_start") if name in rows.c]
    if not level.has_servers:
        key, value = (rows.c[name] for name in level.keys)
        is_left_out = and_(key == TOTAL, value.like(f"{LEFT_OUT}%"), rows.c.action != UNSAMPLED)
        servers = func.max(rows.c.max_server_count).filter(key == FLEET)
        numbers = func.string_agg(func.substr(value, len(LEFT_OUT) + 1), ",").filter(is_left_out)
        counted += [func.coalesce(servers, 0).label("servers"), numbers.label("left_out")]
    if level.has_several_rows_of_a_server:
        counted.append(_largest_sum_bytes(level, rows).label("largest_sum_bytes"))
    by_server = select(*keys, *counted).group_by(*keys).subquery("by_server")
    is_sampled = by_server.c.records > 0
    if level.has_several_rows_of_a_server:
        # Always true; forces PostgreSQL to compute the sum.
        is_sampled = and_(is_sampled, by_server.c.largest_sum_bytes >= _whole(0))
    is_removed = and_(StatementParameters.overwrite, is_sampled)
    sums: dict[str, Element] = {name: by_server.c[name] for name in actions}
    sums["unsampled"] = case((is_removed, _whole(0)), else_=by_server.c.unsampled)
    sums["removed"] = case((is_removed, by_server.c.unsampled), else_=_whole(0))
    left_out: Element = null() if level.has_servers else func.max(by_server.c.left_out)
    return select(
        by_server.c.period_start,
        (func.count().filter(is_sampled) if level.has_servers else func.max(by_server.c.servers)).label("instances"),
        *(cast(func.sum(value), BigInteger).label(name) for name, value in sums.items()),
        cast(left_out, String).label("left_out"),
    ).group_by(by_server.c.period_start)
