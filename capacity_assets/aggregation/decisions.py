"""What happens to the stored rows: each computed row is inserted, takes the place of its stored one, or leaves it.

Steps that statements are put together from: `statements` makes one statement of them for a PostgreSQL server,
`distributed_statements` several for tables that are distributed over nodes. When a comparison is kept is decided in
`protection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    String,
    Subquery,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from capacity_assets.aggregation.protection import differ, in_range, lost_comparisons, same_row, with_compared
from capacity_assets.aggregation.reduction import Element, Parameters
from capacity_assets.foundation.levels import Level

INSERT, UPDATE, UNCHANGED, PROTECTED = "insert", "update", "unchanged", "protected"
Rows = Select[tuple[Any, ...]]


def classified(level: Level, joined: FromClause) -> Rows:
    """Decide for each computed row what happens to the stored one, before anything is written; `joined` has both.

    Sorting out unchanged rows here, not in the upsert, is what makes a repetition free of writes: an
    upsert whose WHERE is false still locks the row on its page.
    """
    taken: dict[str, Element] = {name: joined.c[name] for name in level.figures}
    for comparison in level.comparisons:
        kept = joined.c[f"keeps_{comparison.change}"]
        taken |= {name: case((kept, joined.c[f"stored_{name}"]), else_=joined.c[name]) for name in comparison.figures}
    as_stored = tuple_(*(joined.c[f"stored_{name}"] for name in level.figures))
    action = case(
        (~joined.c.was_stored, literal(INSERT)),
        (joined.c.is_unchanged, literal(UNCHANGED)),
        (joined.c.was_fuller, literal(PROTECTED)),
        # Nothing but what is kept would have changed.
        (~tuple_(*taken.values()).is_distinct_from(as_stored), literal(PROTECTED)),
        else_=literal(UPDATE),
    ).label("action")
    others = [joined.c[name] for name in (*level.keys, "period_start", "was_stored")]
    return select(*others, *(value.label(name) for name, value in taken.items()), action)


def with_stored(level: Level, figures: FromClause, *, keeps: bool, beside: bool = False) -> Rows:
    """Join the stored row to each computed one, and decide what of it to keep; without `keeps`, nothing.

    A stored row with more samples than the computed one is kept as a whole. Otherwise the comparisons that lost samples
    are kept for measures whose own figures are unchanged, and everything else is replaced.
    """
    stored = stored_rows(level)
    was_stored = stored.c.data_count.is_not(None)
    is_unchanged = ~differ(level.figures, stored, figures)
    names = ["was_fuller", *(f"keeps_{comparison.change}" for comparison in level.comparisons)]
    flags: dict[str, ColumnElement[bool]] = dict.fromkeys(names, literal(False))
    if keeps:
        fuller = stored.c.data_count > figures.c.data_count
        rules = (fuller, *lost_comparisons(level, stored, figures, beside=beside))
        # Looked at for rows that differ only: the comparisons look other rows up.
        differs = and_(was_stored, ~is_unchanged)
        flags = {name: case((differs, rule), else_=False) for name, rule in zip(flags, rules, strict=True)}
    columns = [
        *figures.c,
        *(stored.c[name].label(f"stored_{name}") for name in level.figures),
        was_stored.label("was_stored"),
        is_unchanged.label("is_unchanged"),
        *(flag.label(name) for name, flag in flags.items()),
    ]
    matched = same_row(level, stored, figures, figures.c.period_start)
    joined = figures.outerjoin(stored, matched)
    return select(*columns).select_from(with_compared(level, joined, figures) if keeps and beside else joined)


def stored_rows(level: Level) -> Subquery:
    """Select the stored rows of the slice by what is known before any figure is, so that they are read once."""
    target = level.target
    return (
        select(*(target.c[name] for name in (*level.keys, "period_start", *level.figures)))
        .where(*of_slice(target))
        .subquery("stored")
    )


def upsert(level: Level, rows: FromClause, *, overwrite: bool, own: Mapping[str, Element] | None = None) -> Insert:
    """Insert new rows and update changed ones of those classified; id and created_at of an updated row stay.

    `own` has columns that are given in place of their defaults.
    """
    target = level.target
    key = [*level.keys, "period_type", "period_start"]
    values: dict[str, Element] = {name: rows.c[name] for name in (*level.keys, "period_start")}
    values |= {"period_type": cast(Parameters.period_type, String)}
    values |= {name: rows.c[name] for name in level.figures}
    values |= {"calculated_at": func.now(), "created_at": func.now(), **(own or {})}
    # In the order of the key, whose index then grows at one place after the other instead of everywhere.
    ordered = (rows.c.period_start, *(rows.c[name] for name in level.keys))
    chosen = select(*values.values()).where(is_to_be_written(rows)).order_by(*ordered)
    inserted = insert(target).from_select(list(values), chosen, include_defaults=False)
    updated = {name: inserted.excluded[name] for name in (*level.figures, "calculated_at")}
    # Repeated here for a row that another writer put in between this statement's reading and its writing.
    excluded = tuple_(*(inserted.excluded[name] for name in level.figures))
    still_wanted = tuple_(*(target.c[name] for name in level.figures)).is_distinct_from(excluded)
    if not overwrite:
        still_wanted = and_(still_wanted, target.c.data_count <= inserted.excluded.data_count)
    return inserted.on_conflict_do_update(index_elements=key, set_=updated, where=still_wanted)


def is_to_be_written(rows: FromClause) -> ColumnElement[bool]:
    """Whether a row was classified as one to write."""
    return rows.c.action.in_((INSERT, UPDATE))


def would_be_written(level: Level, rows: FromClause) -> ColumnElement[bool]:
    """The same, with every value tried whether its column can hold it, as writing would."""
    tried = (cast(rows.c[name], level.target.c[name].type) for name in level.figures)
    # Always true where it is looked at, but PostgreSQL does not know that, and so computes every value there.
    return case((is_to_be_written(rows), func.num_nonnulls(*tried) > 0), else_=False)


def is_unsupported(level: Level, figures: FromClause) -> ColumnElement[bool]:
    """Rows the raw data no longer supports, only where the instance has raw rows in the window."""
    target = level.target
    sampled = select(figures.c.instance_id, figures.c.period_start).distinct().subquery("sampled")
    supported = exists().where(same_row(level, target, figures, figures.c.period_start))
    return and_(
        target.c.instance_id == sampled.c.instance_id,
        target.c.period_start == sampled.c.period_start,
        *of_slice(target),
        ~supported,
    )


def of_slice(target: FromClause) -> tuple[ColumnElement[bool], ...]:
    """Rows of the servers and windows of a slice."""
    return (
        in_range(target),
        target.c.period_start == func.any(Parameters.starts),
        target.c.instance_id == func.any(Parameters.instance_ids),
    )


def rows_per_window(found: Select[Any]) -> Rows:
    """Count the rows of each window that a query finds, by their `period_start`."""
    return found.add_columns(func.count().label("rows")).group_by(found.selected_columns.period_start)
