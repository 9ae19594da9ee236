"""When a stored comparison is kept: its samples are lost, and computing it again would only lose it.

Expressions over a stored row and the computed one; what happens to the row is decided in `statements`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

from sqlalchemy import ColumnElement, FromClause, Join, Select, and_, exists, false, func, or_, select, tuple_

from capacity_assets.aggregation.reduction import Element, Parameters
from capacity_assets.foundation.levels import Level, Measure
from capacity_assets.storage.tables import computed_windows


def in_range(target: FromClause) -> ColumnElement[bool]:
    """The period and the span of its windows: what PostgreSQL chooses partitions by, which an array does not tell."""
    return _in_span(target, Parameters.first_day, Parameters.last_start)


def _in_span(target: FromClause, first: Element, last: Element) -> ColumnElement[bool]:
    return and_(target.c.period_type == Parameters.period_type, target.c.period_start.between(first, last))


def lost_comparisons(
    level: Level, stored: FromClause, figures: FromClause, *, beside: bool
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whether the change, and that against the year before, would only lose samples they were measured against.

    That holds only while the window's own figures are the same: a window that grows or is corrected follows
    its samples, and its change what is left of the window before. That window had more samples if its stored row says
    so, or, where retention has dropped that row, if a change is stored that could not be computed any more. The same
    goes for the window of a year before.

    The stored rows of the compared windows are looked up one by one, where they are asked for. Where rows are
    distributed they are `beside`, as `with_compared` joins them, and the ledger's answer is a parameter.
    """
    own_is_the_same = _own_is_the_same(level, stored, figures)
    computed = select(func.unnest(Parameters.computed_starts)) if beside else computed_here(level)
    change_is_lost = or_(
        *(and_(_is_known(stored, measure, computed), figures.c[measure.change].is_(None)) for measure in level.measures)
    )
    before, year_before = (_was_fuller(level, figures, each, beside=beside) for each in _compared_rows(level))
    year_change_is_lost = or_(
        *(
            and_(
                stored.c[further.year_change].is_not(None),
                or_(figures.c[further.year_change].is_(None), year_before),
            )
            for further in level.further
        )
    )
    return and_(own_is_the_same, or_(change_is_lost, before)), and_(own_is_the_same, year_change_is_lost)


def with_compared(level: Level, rows: Join, figures: FromClause) -> Join:
    """Join the stored rows of the two compared windows; each has at most one."""
    for compared in _compared_rows(level):
        same = same_row(level, compared.table, figures, figures.c[compared.start])
        rows = rows.outerjoin(compared.table, and_(*compared.within, same))
    return rows


def _was_fuller(level: Level, figures: FromClause, compared: _ComparedRow, *, beside: bool) -> ColumnElement[bool]:
    if beside:
        return func.coalesce(compared.is_fuller(figures), false())
    same = same_row(level, compared.table, figures, figures.c[compared.start])
    return exists().where(*compared.within, same, compared.is_fuller(figures))


@dataclass(frozen=True)
class _ComparedRow:
    """The stored row of a window that is compared with: where it is looked for, and which columns name it."""

    table: FromClause
    within: tuple[ColumnElement[bool], ...]
    start: str
    data_count: str

    def is_fuller(self, figures: FromClause) -> ColumnElement[bool]:
        """Whether it was made of more samples than the window has now."""
        return self.table.c.data_count > func.coalesce(figures.c[self.data_count], 0)


def _compared_rows(level: Level) -> tuple[_ComparedRow, _ComparedRow]:
    before, year_before = _compared_tables(level)
    of_year = _in_span(year_before, Parameters.year_first, Parameters.year_last)
    return (
        _ComparedRow(before, (in_range(before),), "previous_start", "previous_data_count"),
        _ComparedRow(year_before, (of_year,), "year_before_start", "year_before_data_count"),
    )


@cache
def _compared_tables(level: Level) -> tuple[FromClause, FromClause]:
    # The same objects wherever they are named in a statement.
    return level.target.alias("stored_before"), level.target.alias("stored_year_before")


def computed_here(level: Level) -> Select[date]:
    """Select the first days of the windows that were computed by this system."""
    window = computed_windows.c
    return select(window.period_start).where(
        window.period_type == Parameters.period_type,
        window.level == level.name,
        window.period_start == func.any(Parameters.starts),
        window.processed_instances.is_not(None),
    )


def _is_known(stored: FromClause, measure: Measure, computed: Select[date]) -> ColumnElement[bool]:
    """Whether a stored change says something. The legacy application stored 0 for an unknown one; we never do."""
    change = stored.c[measure.change]
    return and_(change.is_not(None), or_(change != 0, stored.c.period_start.in_(computed)))


def _own_is_the_same(level: Level, stored: FromClause, figures: FromClause) -> ColumnElement[bool]:
    """Whether the figures made of the window's own samples agree; those that an older version did not store, do."""
    added = {name for further in level.further for name in further.own} | set(level.sums)
    older = tuple(name for name in level.own_figures if name not in added)
    newer = [or_(stored.c[name].is_(None), stored.c[name] == figures.c[name]) for name in sorted(added)]
    return and_(~differ(older, stored, figures), *newer)


def differ(names: tuple[str, ...], one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """Whether any of the columns differs, nulls being equal to each other."""
    return tuple_(*(one.c[name] for name in names)).is_distinct_from(tuple_(*(other.c[name] for name in names)))


def same_row(level: Level, table: FromClause, figures: FromClause, start: Element) -> ColumnElement[bool]:
    """Whether a row of `table` has the keys of the computed one and begins at `start`."""
    return and_(*(table.c[key] == figures.c[key] for key in level.keys), table.c.period_start == start)
