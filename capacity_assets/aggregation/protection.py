"""When a stored comparison is kept: its samples are lost, and computing it again would only lose it.

Expressions over a stored row and the computed one; what happens to the row is decided in `statements`.
"""

from __future__ import annotations

from sqlalchemy import CTE, ColumnElement, FromClause, and_, exists, func, or_, select, tuple_

from capacity_assets.aggregation.reduction import Element, Parameters
from capacity_assets.foundation.levels import Level, Measure
from capacity_assets.storage.tables import computed_windows


def in_range(target: FromClause, parameters: Parameters) -> ColumnElement[bool]:
    """The period and the span of its windows: what PostgreSQL chooses partitions by, which an array does not tell."""
    return _in_span(target, parameters, parameters.first_day, parameters.last_start)


def _in_span(target: FromClause, parameters: Parameters, first: Element, last: Element) -> ColumnElement[bool]:
    return and_(target.c.period_type == parameters.period_type, target.c.period_start.between(first, last))


def comparisons_lost(
    level: Level, stored: FromClause, figures: CTE, parameters: Parameters
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whether the change, and that against the year before, would only lose samples they were measured against.

    That holds only while the window's own figures are the same: a window that grows or is corrected follows
    its samples, and its change what is left of the window before. That window had more samples if its stored row says
    so, or, where retention has dropped that row, if a change is stored that could not be computed any more. The same
    goes for the window of a year before.
    """
    before, year_before = level.target.alias("stored_before"), level.target.alias("stored_year_before")
    previous_was_fuller = exists().where(
        in_range(before, parameters),
        same_row(level, before, figures, figures.c.previous_start),
        before.c.data_count > func.coalesce(figures.c.previous_data_count, 0),
    )
    year_before_was_fuller = exists().where(
        _in_span(year_before, parameters, parameters.year_first, parameters.year_last),
        same_row(level, year_before, figures, figures.c.year_before_start),
        year_before.c.data_count > func.coalesce(figures.c.year_before_data_count, 0),
    )
    change_is_lost = or_(
        *(
            and_(_is_known(level, stored, measure, parameters), figures.c[measure.change].is_(None))
            for measure in level.measures
        )
    )
    year_change_is_lost = or_(
        *(
            and_(
                stored.c[further.year_change].is_not(None),
                or_(figures.c[further.year_change].is_(None), year_before_was_fuller),
            )
            for further in level.further
        )
    )
    own_is_the_same = _own_is_the_same(level, stored, figures)
    return and_(own_is_the_same, or_(change_is_lost, previous_was_fuller)), and_(own_is_the_same, year_change_is_lost)


def _own_is_the_same(level: Level, stored: FromClause, figures: CTE) -> ColumnElement[bool]:
    """Whether the figures made of the window's own samples agree; those that an older version did not store, do."""
    added = {name for further in level.further for name in further.own} | set(level.sums)
    older = tuple(name for name in level.own_figures if name not in added)
    newer = [or_(stored.c[name].is_(None), stored.c[name] == figures.c[name]) for name in sorted(added)]
    return and_(~differ(older, stored, figures), *newer)


def _is_known(level: Level, stored: FromClause, measure: Measure, parameters: Parameters) -> ColumnElement[bool]:
    """Whether a stored change says something. The legacy application stored 0 for an unknown one; we never do."""
    window = computed_windows.c
    computed_here = select(window.period_start).where(
        window.period_type == parameters.period_type,
        window.level == level.name,
        window.period_start == func.any(parameters.starts),
        window.processed_instances.is_not(None),
    )
    change = stored.c[measure.change]
    return and_(change.is_not(None), or_(change != 0, stored.c.period_start.in_(computed_here)))


def differ(names: tuple[str, ...], one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """Whether any of the columns differs, nulls being equal to each other."""
    return tuple_(*(one.c[name] for name in names)).is_distinct_from(tuple_(*(other.c[name] for name in names)))


def same_row(level: Level, table: FromClause, figures: CTE, start: Element) -> ColumnElement[bool]:
    """Whether a row of `table` has the keys of the computed one and begins at `start`."""
    return and_(*(table.c[key] == figures.c[key] for key in level.keys), table.c.period_start == start)
