"""The statement of a run: compute the figures, decide, write, count. One statement for any number of windows.

Only counts come back. How figures are computed is the business of `figures`; which connection runs the
statement, in which slices, that of `runners`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    String,
    Subquery,
    and_,
    case,
    cast,
    delete,
    distinct,
    exists,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.aggregation.figures import window_figures
from capacity_assets.aggregation.protection import comparisons_lost, differ, in_range, same_row
from capacity_assets.aggregation.reduction import (
    Element,
    Form,
    Parameters,
    numbered_windows,
    parameters_of_a_run,
    states_of_days,
)
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Period
from capacity_assets.storage.active_servers import is_active
from capacity_assets.storage.steps import DIALECT
from capacity_assets.storage.tables import instances

HALF_A_FINGERPRINT = 32
INSERT, UPDATE, UNCHANGED, PROTECTED = "insert", "update", "unchanged", "protected"


def known_instances() -> Select[int, str, bool]:
    """Select id, name and whether it is active, of every registered instance, by id."""
    return select(instances.c.id, instances.c.name, is_active().label("active")).order_by(instances.c.id)


@cache
def aggregation_statement(
    level: Level, *, overwrite: bool, form: Form, windows_per_year: int | None, dry_run: bool = False
) -> Select[object, int, int, int, int, int, int]:
    """Build the statement for one level.

    `windows_per_year` is what a growth is raised to for its yearly rate. With `dry_run` the statement only reads, and
    counts what would be written and removed.

    Parameters at execution: `period_type`, `instance_ids`, `starts`, `ends`, `wanted`, `last_start`, `first_day`,
    `last_day`, `year_first`, `year_last`, `year_interval`, `trend_percent`; where stored windows are read, also
    `part_types`, `part_starts`, `cuts`, `read_first`, `read_last`, `read_year_first`, `read_year_last`.
    Returns one row per window asked for: `period_start`, `instances` (with raw rows), `records`, `written`,
    `unchanged`, `removed`, `unsampled` (rows kept although no sample of them is left). Without `overwrite`, rows that
    were built from more samples than the raw data still holds are left alone (docs/semantics.md, "Writing"); they are
    `records - written - unchanged`.
    """
    parameters = parameters_of_a_run()
    windows = numbered_windows(parameters)
    figures = window_figures(level, parameters, form, windows_per_year).cte("figures")
    classified = _classified(level, figures, parameters, overwrite=overwrite)
    if dry_run:
        written = _to_be_written(level, classified)
        removed = _unsupported(level, figures, parameters) if overwrite else None
    else:
        written = _written(level, classified, parameters, overwrite=overwrite)
        removed = _removed(level, figures, parameters) if overwrite else None
    return _counts(windows, classified, written, removed, _stored_rows(level, parameters))


def fingerprint(level: Level, period: Period, instance_ids: Sequence[int]) -> str:
    """Return a fingerprint of how a level is computed and for which servers: 64 hexadecimal digits.

    It follows from the statement itself and the period's trend threshold, so that new arithmetic or a new metric is
    another way by itself. The last half is that of the sums.
    """
    servers = ",".join(map(str, sorted(instance_ids)))
    text = _statement_text(level, period.windows_per_year)
    return _digest(f"{text}\n{period.trend_percent}\n{servers}") + sums_fingerprint(level)


@cache
def sums_fingerprint(level: Level) -> str:
    """Return a fingerprint of how samples are summed up, which is all that stored sums depend on: 32 digits."""
    parameters = parameters_of_a_run()
    days = level.source.c.collected_date.between(parameters.first_day, parameters.last_day)
    compiled = select(states_of_days(level, parameters, days)).compile(dialect=DIALECT)
    return _digest(f"{compiled} {sorted(compiled.params.items(), key=repr)} {sorted(level.sums)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HALF_A_FINGERPRINT]


def _statement_text(level: Level, windows_per_year: int | None) -> str:
    text, constants = _compiled(level, has_yearly_rate=windows_per_year is not None)
    # Constants are no part of the text.
    stated = {name: windows_per_year if value == ANY_NUMBER else value for name, value in constants.items()}
    return f"{text} {sorted(stated.items(), key=repr)}"


# Stands for the number of windows of any period: loading the graph compiles as few statements as possible.
ANY_NUMBER = 987_654_321


@cache
def _compiled(level: Level, *, has_yearly_rate: bool) -> tuple[str, Mapping[str, object]]:
    any_number = ANY_NUMBER if has_yearly_rate else None
    statement = aggregation_statement(level, overwrite=False, form=Form(single=True), windows_per_year=any_number)
    compiled = statement.compile(dialect=DIALECT)
    return str(compiled), compiled.params


def _classified(level: Level, figures: CTE, parameters: Parameters, *, overwrite: bool) -> CTE:
    """Decide for each computed row what happens to the stored one, before anything is written.

    Sorting out unchanged rows here, not in the upsert, is what makes a repetition free of writes: an
    upsert whose WHERE is false still locks the row on its page.
    """
    joined = _with_stored(level, figures, parameters, overwrite=overwrite)
    taken: dict[str, Element] = {name: joined.c[name] for name in level.figures}
    for names, kept in ((level.previous_figures, joined.c.keeps_change), (level.year_figures, joined.c.keeps_year)):
        taken |= {name: case((kept, joined.c[f"stored_{name}"]), else_=joined.c[name]) for name in names}
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
    return select(*others, *(value.label(name) for name, value in taken.items()), action).cte("classified")


def _with_stored(level: Level, figures: CTE, parameters: Parameters, *, overwrite: bool) -> Subquery:
    """Put the stored row beside each computed one, and what of it is to be kept; with `overwrite` nothing is.

    A row that has fewer samples now is kept whole. One whose own figures are the same keeps those comparisons that have
    lost samples, and takes the rest.
    """
    stored = _stored(level, parameters)
    was_stored = stored.c.data_count.is_not(None)
    is_unchanged = ~differ(level.figures, stored, figures)
    flags: dict[str, ColumnElement[bool]] = dict.fromkeys(("was_fuller", "keeps_change", "keeps_year"), literal(False))
    if not overwrite:
        fuller = stored.c.data_count > figures.c.data_count
        rules = (fuller, *comparisons_lost(level, stored, figures, parameters))
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
    # OFFSET 0: each flag once, although every column asks for it.
    matched = same_row(level, stored, figures, figures.c.period_start)
    return select(*columns).join_from(figures, stored, matched, isouter=True).offset(0).subquery("joined")


def _stored(level: Level, parameters: Parameters) -> Subquery:
    """Select the stored rows of the slice by what is known before any figure is, so that they are read once."""
    target = level.target
    return (
        select(*(target.c[name] for name in (*level.keys, "period_start", *level.figures)))
        .where(*_of_slice(target, parameters))
        .subquery("stored")
    )


def _written(level: Level, classified: CTE, parameters: Parameters, *, overwrite: bool) -> CTE:
    """Insert new rows and update changed ones; id and created_at of an updated row stay."""
    target = level.target
    key = [*level.keys, "period_type", "period_start"]
    values: dict[str, Element] = {name: classified.c[name] for name in (*level.keys, "period_start")}
    values |= {"period_type": cast(parameters.period_type, String)}
    values |= {name: classified.c[name] for name in level.figures}
    values |= {"calculated_at": func.now(), "created_at": func.now()}
    # In the order of the unique index, which then grows at one place after the other instead of everywhere.
    order = [classified.c[key] for key in level.keys]
    rows = select(*values.values()).where(_is_to_be_written(classified)).order_by(*order)
    upsert = insert(target).from_select(list(values), rows, include_defaults=False)
    updated = {name: upsert.excluded[name] for name in (*level.figures, "calculated_at")}
    # Repeated here for a row that another writer put in between this statement's reading and its writing.
    excluded = tuple_(*(upsert.excluded[name] for name in level.figures))
    still_wanted = tuple_(*(target.c[name] for name in level.figures)).is_distinct_from(excluded)
    if not overwrite:
        still_wanted = and_(still_wanted, target.c.data_count <= upsert.excluded.data_count)
    upsert = upsert.on_conflict_do_update(index_elements=key, set_=updated, where=still_wanted)
    return upsert.returning(target.c.period_start).cte("written")


def _to_be_written(level: Level, classified: CTE) -> CTE:
    """Select what `_written` writes, and have every value tried whether its column can hold it, as writing would."""
    tried = (cast(classified.c[name], level.target.c[name].type) for name in level.figures)
    # Always true where it is looked at, but PostgreSQL does not know that, and so computes every value there.
    written = case((_is_to_be_written(classified), func.num_nonnulls(*tried) > 0), else_=False)
    return select(classified.c.period_start).where(written).cte("written")


def _is_to_be_written(classified: CTE) -> ColumnElement[bool]:
    return classified.c.action.in_((INSERT, UPDATE))


def _removed(level: Level, figures: CTE, parameters: Parameters) -> CTE:
    """Delete the unsupported rows."""
    target = level.target
    unsupported = _is_unsupported(level, figures, parameters)
    return delete(target).where(unsupported).returning(target.c.period_start).cte("removed")


def _unsupported(level: Level, figures: CTE, parameters: Parameters) -> CTE:
    """Select the rows that `_removed` deletes."""
    return select(level.target.c.period_start).where(_is_unsupported(level, figures, parameters)).cte("removed")


def _is_unsupported(level: Level, figures: CTE, parameters: Parameters) -> ColumnElement[bool]:
    """Rows the raw data no longer supports, only where the instance has raw rows in the window."""
    target = level.target
    sampled = select(figures.c.instance_id, figures.c.period_start).distinct().subquery("sampled")
    supported = exists().where(same_row(level, target, figures, figures.c.period_start))
    return and_(
        target.c.instance_id == sampled.c.instance_id,
        target.c.period_start == sampled.c.period_start,
        in_range(target, parameters),
        target.c.period_start == func.any(parameters.starts),
        target.c.instance_id == func.any(parameters.instance_ids),
        ~supported,
    )


def _stored_rows(level: Level, parameters: Parameters) -> Subquery:
    """Count the stored rows of each window as they were before the run."""
    target = level.target
    return (
        select(target.c.period_start, func.count().label("rows"))
        .where(*_of_slice(target, parameters))
        .group_by(target.c.period_start)
        .subquery("stored_rows")
    )


def _of_slice(target: FromClause, parameters: Parameters) -> tuple[ColumnElement[bool], ...]:
    return (
        in_range(target, parameters),
        target.c.period_start == func.any(parameters.starts),
        target.c.instance_id == func.any(parameters.instance_ids),
    )


def _counts(
    windows: CTE, classified: CTE, written: CTE, removed: CTE | None, stored_rows: Subquery
) -> Select[object, int, int, int, int, int, int]:
    """Count per window what happened; the only rows that leave the database."""
    seen = (
        select(
            classified.c.period_start,
            func.count(distinct(classified.c.instance_id)).label("instances"),
            func.count().label("records"),
            func.count().filter(classified.c.action == UNCHANGED).label("unchanged"),
            func.count().filter(classified.c.was_stored).label("stored"),
        )
        .group_by(classified.c.period_start)
        .subquery("seen")
    )
    written_rows, removed_rows = _count_rows(written, "written"), _count_rows(removed, "removed")
    removed_count = _or_zero(removed_rows)
    unsampled = _or_zero(stored_rows) - func.coalesce(seen.c.stored, 0) - removed_count
    statement = select(
        windows.c.period_start,
        func.coalesce(seen.c.instances, 0).label("instances"),
        func.coalesce(seen.c.records, 0).label("records"),
        _or_zero(written_rows).label("written"),
        removed_count.label("removed"),
        func.coalesce(seen.c.unchanged, 0).label("unchanged"),
        unsampled.label("unsampled"),
    ).select_from(windows.outerjoin(seen, seen.c.period_start == windows.c.period_start))
    for rows in (written_rows, removed_rows, stored_rows):
        if rows is not None:
            statement = statement.outerjoin(rows, rows.c.period_start == windows.c.period_start)
    return statement.where(windows.c.wanted).order_by(windows.c.bucket)


def _count_rows(rows: CTE | None, name: str) -> Subquery | None:
    if rows is None:
        return None
    counted = select(rows.c.period_start, func.count().label("rows")).group_by(rows.c.period_start)
    return counted.subquery(f"{name}_rows")


def _or_zero(rows: Subquery | None) -> ColumnElement[int]:
    return literal(0) if rows is None else func.coalesce(rows.c.rows, 0)
