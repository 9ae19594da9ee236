"""The statement of a run: compute the figures, decide, write, count. One statement for any number of windows.

Only counts come back. How figures are computed is the business of `figures`; which connection runs the
statement, in which slices, that of `runners`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

from sqlalchemy import CTE, ColumnElement, Select, Subquery, delete, distinct, func, literal, select

from capacity_assets.aggregation.decisions import (
    UNCHANGED,
    classified,
    is_unsupported,
    of_slice,
    rows_per_window,
    upsert,
    with_stored,
    would_be_written,
)
from capacity_assets.aggregation.figures import window_figures
from capacity_assets.aggregation.reduction import Form, Parameters, numbered_windows, states_of_days
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Period
from capacity_assets.storage.active_servers import is_active
from capacity_assets.storage.steps import DIALECT
from capacity_assets.storage.tables import instances

HALF_A_FINGERPRINT = 32


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
    `last_day`, `year_first`, `year_last`, `year_interval`, `trend_percent`, `untouched_starts`; where stored windows
    are read, also `part_types`, `part_starts`, `cuts`, `read_first`, `read_last`, `read_year_first`, `read_year_last`.
    Returns one row per window asked for: `period_start`, `instances` (with raw rows), `records`, `written`,
    `unchanged`, `removed`, `unsampled` (rows kept although no sample of them is left). Without `overwrite`, rows that
    were built from more samples than the raw data still holds are left alone (docs/semantics.md, "Writing"); they are
    `records - written - unchanged`.
    """
    windows = numbered_windows()
    figures = window_figures(level, form, windows_per_year).cte("figures")
    # OFFSET 0: what is to be kept is decided once, although every column asks for it.
    joined = with_stored(level, figures, keeps=not overwrite).offset(0).subquery("joined")
    rows = classified(level, joined).cte("classified")
    starts = (level.target.c.period_start,)
    unsupported = is_unsupported(level, figures)
    removed = None
    if dry_run:
        written = select(rows.c.period_start).where(would_be_written(level, rows)).cte("written")
        if overwrite:
            removed = select(*starts).where(unsupported).cte("removed")
    else:
        written = upsert(level, rows, overwrite=overwrite).returning(*starts).cte("written")
        if overwrite:
            removed = delete(level.target).where(unsupported).returning(*starts).cte("removed")
    # Those that were stored before the run.
    stored = select(*starts).where(*of_slice(level.target))
    return _counts(windows, rows, written, removed, rows_per_window(stored).subquery("stored_rows"))


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
    days = level.source.c.collected_date.between(Parameters.first_day, Parameters.last_day)
    compiled = select(states_of_days(level, days)).compile(dialect=DIALECT)
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
    written_rows = rows_per_window(select(written.c.period_start)).subquery("written_rows")
    removed_rows = None
    if removed is not None:
        removed_rows = rows_per_window(select(removed.c.period_start)).subquery("removed_rows")
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


def _or_zero(rows: Subquery | None) -> ColumnElement[int]:
    return literal(0) if rows is None else func.coalesce(rows.c.rows, 0)
