"""The first part of the statement where stored windows stand for their days: the same states, read from fewer rows.

A stored window keeps the exact sum, count, extremes and ends of its samples, so those of a quarter follow from its
months, and those of the window before from its own row. Which stored windows may be taken is decided in `parts`; the
days that none of them covers are read as in `reduction`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Subquery,
    and_,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    union_all,
)

from capacity_assets.aggregation.parts import DAYS
from capacity_assets.aggregation.reduction import (
    Element,
    Form,
    Parameters,
    compared,
    dated,
    named,
    placed,
    states_of_days,
    window_of,
    with_ends,
)
from capacity_assets.foundation.levels import Level, Measure


@dataclass(frozen=True)
class _State:
    """A column of the states: which aggregate unites it, and whether it is compared with those of other windows."""

    name: str
    unite: str
    is_known: str | None = None
    compared: tuple[str, ...] = ()


United: TypeAlias = tuple[dict[str, Element], Select[tuple[Any, ...]]]
"""The states of each key and window beside those it is compared with, as expressions that group or look around, and
the keys, to which they and what is made of them are added."""


def united_states(level: Level, form: Form) -> United:
    """Reduce stored windows and the remaining samples to the states that `reduction.partial_states` makes."""
    columns = list(_states(level))
    if form.sources:
        return _joined(level, form, columns)
    names = [*level.keys, "bucket", *(column.name for column in columns)]
    # Where rows are distributed there is one source only: a union is not handed to nodes.
    sources = [_of_days(level, form, _days_left(level))] if form.reads_days else []
    sources += [_of_stored_windows(level)] if form.from_stored else []
    found = union_all(*(select(*(source.c[name] for name in names)) for source in sources)).subquery("states")
    if form.single:
        return _side_by_side(level, found, columns)
    keys = [found.c[name] for name in (*level.keys, "bucket")]
    united = select(*keys, *(_united(found, column).label(column.name) for column in columns)).group_by(*keys)
    bucketed = placed(united.subquery("united"))
    return compared(level, bucketed), select(*(bucketed.c[key] for key in level.keys))


def _states(level: Level) -> Iterator[_State]:
    before, both = ("previous",), ("previous", "year_before")
    yield _State("data_count", "sum", compared=both)
    for measure in level.measures:
        others = both if measure.further else before
        count = named("count", measure)
        yield _State(count, "sum", compared=others)
        yield _State(named("sum", measure), "sum", compared=others)
        yield _State(measure.maximum, "max")
        yield _State(measure.minimum, "min")
        if measure.further:
            yield _State(named("first", measure), "min", is_known=count)
            yield _State(named("last", measure), "max", is_known=count)


def _united(states: FromClause, column: _State, which: ColumnElement[bool] | None = None) -> Element:
    """Unite a column of several states of one window, or of those that `which` chooses."""
    united: Element = getattr(func, column.unite)(states.c[column.name])
    conditions = [] if which is None else [which]
    if column.is_known:
        conditions.append(states.c[column.is_known] > 0)
    if conditions:
        united = united.filter(*conditions)
    # Of a day and its value, the value.
    return window_of(united, literal_column("2", Integer)) if column.is_known else united


def _side_by_side(level: Level, states: Subquery, columns: list[_State]) -> United:
    """Unite the states of the one window asked for, which is the last, and of the two it is compared with."""
    keys = [states.c[key] for key in level.keys]
    last = func.cardinality(Parameters.starts)
    is_own = states.c.bucket == last
    others = {
        "previous": states.c.bucket == last - 1,
        "year_before": states.c.bucket == func.width_bucket(Parameters.year_first, Parameters.starts),
    }
    united = {column.name: _united(states, column, is_own) for column in columns}
    united |= {
        f"{other}_{column.name}": _united(states, column, others[other])
        for column in columns
        for other in column.compared
    }
    rows = select(*keys).group_by(*keys).having(func.count().filter(is_own) > 0)
    return {**united, "bucket": last}, rows


def _joined(level: Level, form: Form, columns: list[_State]) -> United:
    """Put the three windows beside each other that are read from different sources: nodes are handed a join."""
    last, day = func.cardinality(Parameters.starts), level.source.c.collected_date
    windows = (
        (last, day.between(Parameters.last_start, Parameters.last_day)),
        (last - 1, and_(day >= Parameters.first_day, day < Parameters.last_start)),
        (
            func.width_bucket(Parameters.year_first, Parameters.starts),
            day.between(Parameters.year_first, Parameters.year_last),
        ),
    )
    own, previous, year_before = (
        _states_of_window(
            level, _of_days(level, form, days) if source == DAYS else _of_stored_windows(level), bucket, columns
        )
        for source, (bucket, days) in zip(form.sources, windows, strict=True)
    )
    joined: FromClause = own
    for other in (previous, year_before):
        joined = joined.outerjoin(other, and_(*(own.c[key] == other.c[key] for key in level.keys)))
    # One row each: grouping keeps the next steps from computing what is made of them at every mention.
    united: dict[str, Element] = {column.name: func.max(own.c[column.name]) for column in columns}
    for name, other in (("previous", previous), ("year_before", year_before)):
        united |= {f"{name}_{each.name}": func.max(other.c[each.name]) for each in columns if name in each.compared}
    keys = [own.c[key] for key in level.keys]
    return {**united, "bucket": last}, select(*keys).select_from(joined).group_by(*keys)


def _states_of_window(level: Level, states: Subquery, bucket: Element, columns: list[_State]) -> Subquery:
    """The states of one window, united per key."""
    keys = [states.c[key] for key in level.keys]
    united = (_united(states, column).label(column.name) for column in columns)
    return select(*keys, *united).where(states.c.bucket == bucket).group_by(*keys).subquery()


def _days_left(level: Level) -> ColumnElement[bool]:
    """The days that no stored window covers."""
    day = level.source.c.collected_date
    return and_(
        or_(
            day.between(Parameters.read_first, Parameters.read_last),
            day.between(Parameters.read_year_first, Parameters.read_year_last),
        ),
        func.width_bucket(day, Parameters.cuts) % 2 == 1,
    )


def _of_days(level: Level, form: Form, days: ColumnElement[bool]) -> Subquery:
    """The states of some days."""
    # Nodes are not handed a second look.
    has_end_values = form.distributed and not form.one_day
    found = states_of_days(level, days, end_values=has_end_values)
    if not has_end_values:
        found = with_ends(level, found, days, form)
    columns: dict[str, Element] = {"data_count": cast(found.c.data_count, Integer)}
    for measure in level.measures:
        columns[named("count", measure)] = cast(found.c[named("count", measure)], Integer)
        columns |= {name: found.c[name] for name in (named("sum", measure), measure.maximum, measure.minimum)}
        if measure.further:
            for end in ("first", "last"):
                name = named(end, measure)
                day_of = named(f"{end}_day_of", measure)
                columns[name] = found.c[name] if has_end_values else dated(found.c[day_of], found.c[name])
    return _labelled(level, found, found.c.bucket, columns).subquery("of_days")


def _of_stored_windows(level: Level) -> Subquery:
    """The states that are kept in stored windows."""
    target = level.target
    columns: dict[str, Element] = {"data_count": target.c.data_count}
    for measure in level.measures:
        columns |= _kept(level, measure)
    bucket = func.width_bucket(target.c.period_start, Parameters.starts)
    return (
        _labelled(level, target, bucket, columns)
        .where(
            # It decides; the two arrays are what an index and the choice of partitions understand.
            _is_part(target),
            target.c.period_type == func.any(Parameters.part_types),
            target.c.period_start == func.any(Parameters.part_starts),
            target.c.instance_id == func.any(Parameters.instance_ids),
        )
        .subquery("of_stored_windows")
    )


def _is_part(target: FromClause) -> ColumnElement[bool]:
    """Whether period and start of a row are one of the pairs of parts: these do not overlap, so starts are unique."""
    place = func.array_position(Parameters.part_starts, target.c.period_start)
    return window_of(Parameters.part_types, place) == target.c.period_type


def _kept(level: Level, measure: Measure) -> dict[str, Element]:
    target = level.target
    count = named("count", measure)
    kept: dict[str, Element] = {
        # Every sample has the value where no count of its own is kept.
        count: target.c[count if count in level.sums else "data_count"],
        named("sum", measure): target.c[named("sum", measure)],
        measure.maximum: target.c[measure.maximum],
        measure.minimum: target.c[measure.minimum],
    }
    if measure.further:
        last, growth = target.c[measure.further.last], target.c[measure.further.growth]
        start = target.c.period_start
        kept[named("first", measure)] = dated(start, case((growth.is_(None), last), else_=last - growth))
        kept[named("last", measure)] = dated(start, last)
    return kept


def _labelled(level: Level, source: FromClause, bucket: Element, columns: dict[str, Element]) -> Select[object]:
    keys = [source.c[key] for key in level.keys]
    return select(*keys, bucket.label("bucket"), *(column.label(name) for name, column in columns.items()))
