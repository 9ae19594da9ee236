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
) -> list[ColumnElement[bool]]:
    """For each comparison of the level, whether samples that its stored figures were built from are gone.

    This matters only if the stored and computed comparison differ while the measure's own figures in the window are the
    same: a window that grows or is corrected follows its samples. The other window has lost samples if none is left, if
    its stored row was built from more, or, if it has no stored row, if no sample of it was added or corrected since:
    the difference is then due to deleted samples.

    The stored rows of the compared windows are looked up one by one, only where needed. For distributed rows they are
    `beside`, as `with_compared` joins them, and the ledger's answer is a parameter.
    """
    computed = select(func.unnest(Parameters.computed_starts)) if beside else computed_here(level)
    before, year_before = _compared_rows(level)
    lost = []
    for comparison in level.comparisons:
        row = year_before if comparison.is_with_year_before else before
        change = stored.c[comparison.change]
        # The legacy application stored 0 for an unknown change.
        is_known: ColumnElement[bool] = change.is_not(None)
        if not comparison.is_with_year_before:
            is_known = and_(is_known, or_(change != 0, stored.c.period_start.in_(computed)))
        is_lost = or_(
            and_(figures.c[row.data_count].is_(None), is_known),
            row.holds(level, figures, row.is_fuller(figures), beside=beside),
            and_(
                stored.c.period_start == func.any(Parameters.untouched_starts),
                change.is_not(None),
                differ(comparison.figures[:2], stored, figures),
                ~row.holds(level, figures, row.table.c.data_count.is_not(None), beside=beside),
            ),
        )
        own_is_the_same = _own_is_the_same(level, comparison.measure, stored, figures)
        lost.append(and_(differ(comparison.figures, stored, figures), own_is_the_same, is_lost))
    return lost


def with_compared(level: Level, rows: Join, figures: FromClause) -> Join:
    """Join the stored rows of the two compared windows; each has at most one."""
    for compared in _compared_rows(level):
        same = same_row(level, compared.table, figures, figures.c[compared.start])
        rows = rows.outerjoin(compared.table, and_(*compared.within, same))
    return rows


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

    def holds(
        self, level: Level, figures: FromClause, condition: ColumnElement[bool], *, beside: bool
    ) -> ColumnElement[bool]:
        """Whether such a row exists and meets a condition."""
        if beside:
            return func.coalesce(condition, false())
        same = same_row(level, self.table, figures, figures.c[self.start])
        return exists().where(*self.within, same, condition)


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


def _own_is_the_same(level: Level, measure: Measure, stored: FromClause, figures: FromClause) -> ColumnElement[bool]:
    """Whether a measure's own figures are equal; figures that an older version did not store count as equal."""
    added = {*(measure.further.own if measure.further else ()), *level.sums}
    own = level.own_figures(measure)
    older = tuple(name for name in own if name not in added)
    newer = [or_(stored.c[name].is_(None), stored.c[name] == figures.c[name]) for name in own if name in added]
    return and_(~differ(older, stored, figures), *newer)


def differ(names: tuple[str, ...], one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """Whether any of the columns differs, nulls being equal to each other."""
    return tuple_(*(one.c[name] for name in names)).is_distinct_from(tuple_(*(other.c[name] for name in names)))


def same_row(level: Level, table: FromClause, figures: FromClause, start: Element) -> ColumnElement[bool]:
    """Whether a row of `table` has the keys of the computed one and begins at `start`."""
    return and_(*(table.c[key] == figures.c[key] for key in level.keys), table.c.period_start == start)
