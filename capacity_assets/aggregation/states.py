"""The first part of the statement: what each key has in each window, and what the windows that it compares with have.

A *state* is what figures are made of: counts, exact sums, extremes, and the values of the first and last measured days.
Two steps, the same for one window and for many, for days and for years:

1. `_united`: samples, stored shorter windows in place of samples, and beside them the stored rows of the windows
   themselves, are united per key and window. Where a stored row holds more samples, it is what others compare with.
   A source of which nothing is to be read is left out.
2. `states`: the window before and that of a year before are put beside each window, by window functions.

Windows are numbered by `width_bucket` over their first days. All arithmetic is in 64-bit integers:
a sum of sizes that are possible fits, and one of impossible sizes makes its server fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
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
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import INTERVAL, array
from sqlalchemy.sql.elements import FrameClause, FrameClauseType, Grouping

from capacity_assets.foundation.levels import Level, Measure
from capacity_assets.units import LARGEST_MB

# Expressions over columns whose Python type never matters here: no figure travels through Python.
Element: TypeAlias = ColumnElement[Any]


class Parameters:
    """The parameters of the statement.

    `starts`, `ends` and `wanted` describe the windows that are read, in order; only the `wanted` ones are written. The
    others are those that they compare with, so that the one before a wanted window always stands before it.

    Samples are read of the days from an odd one of `cuts` to before the next, all of which lie in the two spans of
    `read_...`; stored shorter windows are named by `part_types` and `part_starts`, pair by pair. With `overwrite`,
    history may be replaced. `windows_per_year` is what a growth is raised to for its yearly rate; null: there is none.
    `computed_starts` are those of the wanted windows that were computed by this system before, `unread_starts` those of
    the windows that are compared with by their stored rows alone.
    """

    # Not named as a column: SQLAlchemy would take it for a value of the update.
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
    part_types = bindparam("part_types", type_=ARRAY(String))
    part_starts = bindparam("part_starts", type_=ARRAY(Date))
    trend_percent = bindparam("trend_percent", type_=Numeric)
    windows_per_year = bindparam("windows_per_year", type_=Numeric)
    computed_starts = bindparam("computed_starts", type_=ARRAY(Date))
    unread_starts = bindparam("unread_starts", type_=ARRAY(Date))
    overwrite = bindparam("overwrite", type_=Boolean)


# A day and its value in one number, so that the smallest is the first value and the largest the last: the value takes
# the lower 44 bits, which hold every possible size and its negative.
_DAY_BITS = 2 * (LARGEST_MB + 1)


def states(level: Level, sources: Sources) -> Subquery:
    """Return the states of each key and wanted window, with those of the windows it compares with, from `sources`.

    Columns: the keys, `bucket`, `period_start`, `data_count` (null: only a stored row is left), per measure what
    `named` names: `count_`, `sum_`, `max_`, `min_`, and for measures with further figures `first_` and `last_`; the
    counts and sums again with `previous_` and, of measures with further figures, `year_before_` in front.
    """
    united = _united(level, sources)
    keys = [united.c[key] for key in level.keys]
    preceding = FrameClauseType.PRECEDING
    a_year_before = FrameClause(Parameters.year_interval, Parameters.year_interval, preceding, preceding)
    beside = select(
        *united.c,
        func.lag(united.c.valid).over(partition_by=keys, order_by=united.c.period_start).label("previous"),
        func.first_value(united.c.valid)
        .over(partition_by=keys, order_by=united.c.period_start, range_=a_year_before)
        .label("year_before"),
    ).subquery("beside")
    is_adjacent = _element(beside.c.previous, 1) == beside.c.bucket - 1
    columns = [beside.c[name] for name in ("bucket", "period_start", *_own_names(level))]
    for place, name in enumerate(_compared_names(level), start=2):
        columns.append(case((is_adjacent, _element(beside.c.previous, place))).label(f"previous_{name}"))
        if name in _compared_names(level, further=True):
            columns.append(_element(beside.c.year_before, place).label(f"year_before_{name}"))
    return (
        select(*(beside.c[key] for key in level.keys), *columns)
        .where(window_of(Parameters.wanted, beside.c.bucket))
        .subquery("states")
    )


def _element(values: Element, place: int) -> Element:
    return window_of(type_coerce(values, ARRAY(BigInteger)), literal_column(str(place), Integer))


def named(kind: str, measure: Measure) -> str:
    """Name a part of the state of a measure."""
    return f"{kind}_{measure.source}"


def window_of(windows: Element, bucket: Element) -> Element:
    """Return what an array of the windows says of the one with a number."""
    parenthesised: Element = Grouping(windows)
    return parenthesised[bucket]


def collated(column: Element) -> Element:
    """Return a key as it is sorted: texts by their bytes, which is several times faster than by a language."""
    return column.collate("C") if isinstance(column.type, String) else column


def _compared_names(level: Level, *, further: bool = False) -> Iterator[str]:
    """Name what of a state other windows compare with; with `further`, what those a year later do."""
    yield "data_count"
    for measure in level.measures:
        if measure.further or not further:
            yield named("count", measure)
            yield named("sum", measure)


def _own_names(level: Level) -> Iterator[str]:
    yield "data_count"
    for measure in level.measures:
        kinds = ("count", "sum", "max", "min", "first", "last") if measure.further else ("count", "sum", "max", "min")
        yield from (named(kind, measure) for kind in kinds)


_UNITE: dict[str, Callable[[Element], Element]] = {
    "data": func.sum, "count": func.sum, "sum": func.sum, "max": func.max, "min": func.min,
    "first": func.min, "last": func.max,
}  # fmt: skip


def _united(level: Level, sources: Sources) -> Subquery:
    """Unite what was found of each key and window."""
    found = union_all(*(source(level) for source in sources)).subquery("found")
    keys = [found.c[name] for name in (*level.keys, "period_start")]
    columns: dict[str, Element] = {"bucket": func.max(found.c.bucket)}
    for name in _own_names(level):
        kind = name.split("_")[0]
        united = _UNITE[kind](found.c[name])
        if kind in ("first", "last"):
            united = _undated(united)
        columns[name] = cast(united, BigInteger) if kind == "sum" else united
    # One row each, or twice the same.
    stored = {name: func.max(found.c[name]) for name in _stored_names(level)}
    is_stored = stored["samples"] > func.coalesce(columns["data_count"], 0)
    if not level.has_servers:
        # Days of a group come and go with the labels.
        is_stored = and_(is_stored, found.c.period_start == func.any(Parameters.unread_starts))
    # What others compare with: the stored row where it holds more samples, whatever became of these. In one array,
    # because each look at another row costs as much as reading it.
    names = list(_compared_names(level))
    kept, own = [stored[f"stored_{name}"] for name in names], [columns[name] for name in names]
    columns["valid"] = case((is_stored, array([columns["bucket"], *kept])), else_=array([columns["bucket"], *own]))
    rows = select(*keys, *(column.label(name) for name, column in columns.items()))
    return rows.group_by(*keys).subquery("united")


def of_samples(level: Level) -> Any:
    """Select the samples as states of their days: those that count, of the servers and days that are read."""
    samples = _samples(level)
    day = samples.c.collected_date
    columns: dict[str, Element] = {"data_count": literal_column("1", Integer)}
    for measure in level.measures:
        value = samples.c[measure.source]
        columns[named("count", measure)] = cast(value.is_not(None), Integer)
        columns |= {named(kind, measure): cast(value, BigInteger) for kind in ("sum", "max", "min")}
        if measure.further:
            columns |= {named(end, measure): _dated(day, value) for end in ("first", "last")}
    return _found(level, samples, day, columns)


def _samples(level: Level) -> FromClause:
    raw = level.source
    day = raw.c.collected_date
    conditions = [
        or_(
            day.between(Parameters.read_first, Parameters.read_last),
            day.between(Parameters.read_year_first, Parameters.read_year_last),
        ),
        # Not `= 1`, which PostgreSQL expects to hold for one row in two hundred: it would sort where it should hash.
        func.width_bucket(day, Parameters.cuts) % 2 != 0,
        *level.of_servers(raw, Parameters.instance_ids),
        *level.live(),
    ]
    keys = [raw.c[key] for key in level.keys]
    measures = [raw.c[measure.source] for measure in level.measures]
    if not level.sum_per_day:
        return select(*keys, day, *measures).where(*conditions).subquery("samples")
    sums = [func.sum(column).label(column.name) for column in measures]
    return select(*keys, day, *sums).where(*conditions).group_by(*keys, day).subquery("samples")


def of_shorter_windows(level: Level) -> Any:
    """Select the states that stored shorter windows keep."""
    target = level.target
    columns: dict[str, Element] = {"data_count": target.c.data_count}
    for measure in level.measures:
        columns[named("count", measure)] = _count_kept(level, measure)
        columns[named("sum", measure)] = _sum_kept(level, measure)
        columns[named("max", measure)] = cast(target.c[measure.maximum], BigInteger)
        columns[named("min", measure)] = cast(target.c[measure.minimum], BigInteger)
        if measure.further:
            last, growth = target.c[measure.further.last], target.c[measure.further.growth]
            start = target.c.period_start
            columns[named("first", measure)] = _dated(start, last - func.coalesce(growth, 0))
            columns[named("last", measure)] = _dated(start, last)
    # Parts do not overlap, so the first days are unique.
    place = func.array_position(Parameters.part_starts, target.c.period_start)
    return _found(level, target, target.c.period_start, columns).where(
        # It decides; the two arrays are what an index and the choice of partitions understand.
        window_of(Parameters.part_types, place) == target.c.period_type,
        target.c.period_type == func.any(Parameters.part_types),
        target.c.period_start == func.any(Parameters.part_starts),
        *level.of_servers(target, Parameters.instance_ids),
    )


def of_rows(level: Level) -> Any:
    """Select what the stored rows of the wanted windows keep, and those of the windows before them."""
    return _of_stored_rows(level, Parameters.before_first, Parameters.wanted_last)


def of_rows_a_year_before(level: Level) -> Any:
    """Select the same of the windows of a year before.

    PostgreSQL chooses partitions by one span, not by one of two.
    """
    return _of_stored_rows(level, Parameters.year_first, Parameters.year_last)


Sources: TypeAlias = tuple[Callable[[Level], Any], ...]
STORED_ROWS: Sources = (of_rows, of_rows_a_year_before)
EVERY_SOURCE: Sources = (of_samples, of_shorter_windows, *STORED_ROWS)


def _of_stored_rows(level: Level, first: Element, last: Element) -> Any:
    """Select what the stored rows of the windows keep that begin between two days.

    A row of an older version that keeps no sums counts its samples alone: nothing can be compared with it.
    """
    target = level.target
    keeps_sums = or_(_is_day(level), target.c[named("sum", level.headline)].is_not(None))
    columns: dict[str, Element] = {
        "samples": target.c.data_count,
        "stored_data_count": case((keeps_sums, target.c.data_count)),
    }
    for measure in level.measures:
        columns[named("stored_count", measure)] = _count_kept(level, measure)
        columns[named("stored_sum", measure)] = _sum_kept(level, measure)
    return _found(level, target, target.c.period_start, columns).where(
        target.c.period_type == Parameters.period_type,
        target.c.period_start.between(first, last),
        target.c.period_start == func.any(Parameters.starts),
        *level.of_servers(target, Parameters.instance_ids),
    )


def _found(level: Level, source: FromClause, day: Element, columns: dict[str, Element]) -> Any:
    """Select what was found, in the columns that all sources have, with the window that it lies in."""
    bucket = func.width_bucket(day, Parameters.starts)
    keys = [collated(source.c[key]).label(key) for key in level.keys]
    names = (*_own_names(level), *_stored_names(level))
    given = [columns.get(name, _nothing(name)).label(name) for name in names]
    return select(*keys, bucket.label("bucket"), window_of(Parameters.starts, bucket).label("period_start"), *given)


def _nothing(name: str) -> Element:
    """Null of the type of a column: a sum of integers is fast, one of 64-bit integers is not."""
    is_count = name.removeprefix("stored_").split("_")[0] in ("data", "count", "samples")
    return cast(null(), Integer if is_count else BigInteger)


def _stored_names(level: Level) -> Iterator[str]:
    """Name what is kept of the stored row of the window: how many samples it holds, and what others compare with."""
    yield "samples"
    yield from (f"stored_{name}" for name in _compared_names(level))


def _count_kept(level: Level, measure: Measure) -> Element:
    """Return the number of values of a stored row; every sample has the value where no count of its own is kept."""
    count = named("count", measure)
    of_day = cast(level.target.c[measure.average].is_not(None), Integer)
    return case((_is_day(level), of_day), else_=level.target.c[count if count in level.sums else "data_count"])


def _sum_kept(level: Level, measure: Measure) -> Element:
    """Return the sum of the values of a stored row; that of a day is its value."""
    columns = level.target.c
    of_several = columns[named("sum", measure)]
    return cast(case((_is_day(level), columns[measure.average]), else_=of_several), BigInteger)


def _is_day(level: Level) -> ColumnElement[bool]:
    return level.target.c.period_start == level.target.c.period_end


def _dated(day: Element, value: Element) -> Element:
    number = cast(cast(day, Date) - literal_column("DATE '2000-01-01'", Date), BigInteger)
    return number * literal_column(str(_DAY_BITS), BigInteger) + cast(value, BigInteger)


def _undated(dated: Element) -> Element:
    half, mask = literal_column(str(_DAY_BITS // 2), BigInteger), literal_column(str(_DAY_BITS - 1), BigInteger)
    return (dated + half).op("&", return_type=BigInteger())(mask) - half
