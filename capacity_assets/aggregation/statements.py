"""SQLAlchemy Core builders: one statement computes, compares, writes and counts any number of windows.

The statement is a chain of named steps (CTEs). Windows go in as two arrays, the first element being the
window before the first one asked for; `width_bucket` gives each raw row its window, so that a single scan
serves all windows, and `lag` over adjacent windows gives the previous figures without a second one. Only
counts come back. Which connection runs it, in which slices, is the business of `runners`.

Exactness: sums are numeric and exact, and every figure is made by integer division of exact numerators.
Rounding "half away from zero to two decimals" is `div(200*a + b, 2*b) * 0.01`, because numeric `/` rounds to
about sixteen digits and `round` would then round a rounded number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    CTE,
    BindParameter,
    ColumnElement,
    Date,
    FromClause,
    Integer,
    Numeric,
    Select,
    String,
    Subquery,
    and_,
    bindparam,
    case,
    cast,
    delete,
    distinct,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.aggregation.levels import Level, Measure
from capacity_assets.storage.tables import instances

TREND_THRESHOLD_PERCENT = 5

# Expressions over columns whose Python type never matters here: no figure travels through Python.
Element: TypeAlias = ColumnElement[Any]

INSERT, UPDATE, UNCHANGED, PROTECTED = "insert", "update", "unchanged", "protected"


@dataclass(frozen=True)
class _Parameters:
    """Bind parameters: `starts` and `ends` hold the previous window first, then the windows asked for."""

    period_type: BindParameter[str]
    instance_ids: BindParameter[Any]
    starts: BindParameter[Any]
    ends: BindParameter[Any]
    first_day: BindParameter[Any]
    last_day: BindParameter[Any]


def _parameters() -> _Parameters:
    return _Parameters(
        period_type=bindparam("period_type", type_=String),
        instance_ids=bindparam("instance_ids", type_=ARRAY(Integer)),
        starts=bindparam("starts", type_=ARRAY(Date)),
        ends=bindparam("ends", type_=ARRAY(Date)),
        first_day=bindparam("first_day", type_=Date),
        last_day=bindparam("last_day", type_=Date),
    )


def known_instances() -> Select[int, str, bool]:
    """Select id, name and whether it is active, of every registered instance, by id (SEMANTICS, section 3)."""
    active = and_(instances.c.is_active, instances.c.deleted_at.is_(None)).label("active")
    return select(instances.c.id, instances.c.name, active).order_by(instances.c.id)


@cache
def aggregation_statement(level: Level, *, overwrite: bool) -> Select[object, int, int, int, int, int]:
    """Build the statement for one level.

    Parameters at execution: `period_type`, `instance_ids`, `starts`, `ends`, `first_day`, `last_day`.
    Returns one row per window asked for: `period_start`, `instances` (with raw rows), `records`, `written`,
    `unchanged`, `removed`. Without `overwrite`, rows that were built from more samples than the raw data
    still holds are left alone (SEMANTICS, section 6); they are `records - written - unchanged`.
    """
    parameters = _parameters()
    windows = _windows(parameters)
    compared = _compared(level, _bucketed(level, parameters))
    figures = _figures(level, _measured(level, compared), windows)
    classified = _classified(level, figures, parameters, overwrite=overwrite)
    written = _written(level, classified, parameters, overwrite=overwrite)
    removed = _removed(level, figures, parameters) if overwrite else None
    return _counts(windows, classified, written, removed)


def _windows(parameters: _Parameters) -> CTE:
    """Number the windows: bucket 1 is the previous window of the first one asked for."""
    numbered = (
        func.unnest(parameters.starts, parameters.ends)
        .table_valued("period_start", "period_end", with_ordinality="bucket", name="numbered")
        .render_derived()
    )
    return select(
        cast(numbered.c.bucket, Integer).label("bucket"),
        numbered.c.period_start,
        numbered.c.period_end,
        func.lag(numbered.c.period_start).over(order_by=numbered.c.bucket).label("previous_start"),
    ).cte("windows")


def _raw_rows(level: Level, parameters: _Parameters) -> FromClause:
    """Raw rows that count: of the instances, in the days, not void; summed per day where the level says so."""
    raw = level.source
    conditions = [
        raw.c.collected_date.between(parameters.first_day, parameters.last_day),
        raw.c.instance_id == func.any(parameters.instance_ids),
        *level.live(),
    ]
    measures = [raw.c[measure.source] for measure in level.measures]
    keys = [raw.c[key] for key in level.keys]
    if not level.sum_per_day:
        return select(*keys, raw.c.collected_date, *measures).where(*conditions).subquery("samples")
    sums = [func.sum(column).label(column.name) for column in measures]
    return (
        select(*keys, raw.c.collected_date, *sums).where(*conditions).group_by(*keys, raw.c.collected_date)
    ).subquery("samples")


def _bucketed(level: Level, parameters: _Parameters) -> Subquery:
    """Reduce the samples of each key and window to count, sum and extremes: partial state that stays exact."""
    samples = _raw_rows(level, parameters)
    keys = [samples.c[key] for key in level.keys]
    bucket = func.width_bucket(samples.c.collected_date, parameters.starts).label("bucket")
    columns: list[Element] = [func.count().label("data_count")]
    for measure in level.measures:
        column = samples.c[measure.source]
        columns += [
            func.count(column).label(_count(measure)),
            cast(func.sum(column), Numeric).label(_sum(measure)),
            func.max(column).label(measure.maximum),
            func.min(column).label(measure.minimum),
        ]
    return select(*keys, bucket, *columns).group_by(*keys, bucket).subquery("bucketed")


def _compared(level: Level, bucketed: Subquery) -> Subquery:
    """Put the count and sum of the previous window beside each window; null where it has no sample."""
    keys = [bucketed.c[key] for key in level.keys]

    def before(column: Element) -> Element:
        return func.lag(column).over(partition_by=keys, order_by=bucketed.c.bucket)

    is_adjacent = before(bucketed.c.bucket) == bucketed.c.bucket - 1
    names = ["data_count", *(_count(m) for m in level.measures), *(_sum(m) for m in level.measures)]
    previous = [case((is_adjacent, before(bucketed.c[name]))).label(f"previous_{name}") for name in names]
    return select(*bucketed.c, *previous).subquery("compared")


def _measured(level: Level, compared: Subquery) -> Subquery:
    """Compute the figures of each measure, and keep the two sums that the trend looks at."""
    columns: dict[str, Element] = {}
    for measure in level.measures:
        columns |= _measure_figures(measure, compared)
    for ratio in level.ratios:
        numerator, denominator = (compared.c[f"sum_{name}"] for name in (ratio.numerator, ratio.denominator))
        columns[ratio.target] = case((denominator == 0, literal(0)), else_=_floor(numerator, denominator))
    columns["headline_sum"] = compared.c[_sum(level.headline)]
    columns["previous_headline_sum"] = compared.c[f"previous_{_sum(level.headline)}"]
    kept = [compared.c[name] for name in (*level.keys, "bucket", "data_count", "previous_data_count")]
    return select(*kept, *(column.label(name) for name, column in columns.items())).subquery("measured")


def _figures(level: Level, measured: Subquery, windows: CTE) -> CTE:
    """Lay out the rows of the aggregate table for the windows asked for, with growth and trend."""
    growth_rate = measured.c[level.headline.change_percent]
    derived = {
        "period_end": windows.c.period_end,
        "growth_rate": growth_rate,
        "trend_direction": _trend(growth_rate, measured.c.headline_sum, measured.c.previous_headline_sum),
    }
    columns = [derived[name] if name in derived else measured.c[name] for name in level.figures]
    return (
        select(
            *(measured.c[key] for key in level.keys),
            windows.c.period_start,
            windows.c.previous_start,
            measured.c.previous_data_count,
            *(column.label(name) for name, column in zip(level.figures, columns, strict=True)),
        )
        .join_from(measured, windows, windows.c.bucket == measured.c.bucket)
        .where(measured.c.bucket > 1)
        .cte("figures")
    )


def _measure_figures(measure: Measure, compared: Subquery) -> dict[str, Element]:
    """Exact mean, extremes and change of one measure (SEMANTICS, sections 4 and 5)."""
    total, count = compared.c[_sum(measure)], func.nullif(compared.c[_count(measure)], 0)
    previous_total = compared.c[f"previous_{_sum(measure)}"]
    previous_count = func.nullif(compared.c[f"previous_{_count(measure)}"], 0)
    difference = total * previous_count - previous_total * count
    figures: dict[str, Element] = {
        measure.average: _floor(total, count),
        measure.maximum: compared.c[measure.maximum],
        measure.minimum: compared.c[measure.minimum],
        measure.change: func.div(difference, count * previous_count),
        measure.change_percent: _two_decimals(difference * 100, func.nullif(previous_total * count, 0)),
    }
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _two_decimals(total, count)
    return figures


def _trend(percent: Element, total: Element, previous_total: Element) -> Element:
    grew_from_nothing = and_(previous_total == 0, total > 0)
    return case(
        (previous_total.is_(None), null()),
        (or_(percent > TREND_THRESHOLD_PERCENT, grew_from_nothing), literal("growing")),
        (percent < -TREND_THRESHOLD_PERCENT, literal("shrinking")),
        else_=literal("stable"),
    )


def _classified(level: Level, figures: CTE, parameters: _Parameters, *, overwrite: bool) -> CTE:
    """Decide for each computed row what happens to the stored one, before anything is written.

    Sorting out unchanged rows here, not in the upsert, is what makes a repetition free of writes: an
    upsert whose WHERE is false still locks the row on its page.
    """
    stored = level.target.alias("stored")
    same_row = _same_row(level, stored, figures, parameters, figures.c.period_start)
    stored_figures = tuple_(*(stored.c[name] for name in level.figures))
    new_figures = tuple_(*(figures.c[name] for name in level.figures))
    rules: list[tuple[ColumnElement[bool], ColumnElement[str]]] = [
        (stored.c.data_count.is_(None), literal(INSERT)),
        (stored_figures.is_not_distinct_from(new_figures), literal(UNCHANGED)),
    ]
    if not overwrite:
        rules.append((_built_from_more_samples(level, stored, figures, parameters), literal(PROTECTED)))
    action = case(*rules, else_=literal(UPDATE)).label("action")
    return select(*figures.c, action).join_from(figures, stored, same_row, isouter=True).cte("classified")


def _built_from_more_samples(
    level: Level, stored: FromClause, figures: CTE, parameters: _Parameters
) -> ColumnElement[bool]:
    """Whether raw data has gone since the stored row was built: in its own window or the one it compares with."""
    before = level.target.alias("stored_before")
    previous_was_fuller = exists().where(
        _same_row(level, before, figures, parameters, figures.c.previous_start),
        before.c.data_count > func.coalesce(figures.c.previous_data_count, 0),
    )
    return or_(stored.c.data_count > figures.c.data_count, previous_was_fuller)


def _same_row(
    level: Level, table: FromClause, figures: CTE, parameters: _Parameters, start: Element
) -> ColumnElement[bool]:
    keys = [table.c[key] == figures.c[key] for key in level.keys]
    return and_(*keys, table.c.period_type == parameters.period_type, table.c.period_start == start)


def _written(level: Level, classified: CTE, parameters: _Parameters, *, overwrite: bool) -> CTE:
    """Insert new rows and update changed ones; id and created_at of an updated row stay."""
    target = level.target
    key = [*level.keys, "period_type", "period_start"]
    values: dict[str, Element] = {name: classified.c[name] for name in (*level.keys, "period_start")}
    values |= {"period_type": cast(parameters.period_type, String)}
    values |= {name: classified.c[name] for name in level.figures}
    values |= {"calculated_at": func.now(), "created_at": func.now()}
    rows = select(*values.values()).where(classified.c.action.in_((INSERT, UPDATE)))
    upsert = insert(target).from_select(list(values), rows, include_defaults=False)
    updated = {name: upsert.excluded[name] for name in (*level.figures, "calculated_at")}
    # Repeated here for a row that another writer put in between this statement's reading and its writing.
    not_fuller = None if overwrite else target.c.data_count <= upsert.excluded.data_count
    upsert = upsert.on_conflict_do_update(index_elements=key, set_=updated, where=not_fuller)
    return upsert.returning(target.c.period_start).cte("written")


def _removed(level: Level, figures: CTE, parameters: _Parameters) -> CTE:
    """Delete rows the raw data no longer supports, only where the instance has raw rows in the window."""
    target = level.target
    sampled = select(figures.c.instance_id, figures.c.period_start).distinct().subquery("sampled")
    supported = exists().where(_same_row(level, target, figures, parameters, figures.c.period_start))
    return (
        delete(target)
        .where(
            target.c.instance_id == sampled.c.instance_id,
            target.c.period_start == sampled.c.period_start,
            target.c.period_type == parameters.period_type,
            ~supported,
        )
        .returning(target.c.period_start)
        .cte("removed")
    )


def _counts(
    windows: CTE, classified: CTE, written: CTE, removed: CTE | None
) -> Select[object, int, int, int, int, int]:
    """Count per window what happened; the only rows that leave the database."""
    seen = (
        select(
            classified.c.period_start,
            func.count(distinct(classified.c.instance_id)).label("instances"),
            func.count().label("records"),
            func.count().filter(classified.c.action == UNCHANGED).label("unchanged"),
        )
        .group_by(classified.c.period_start)
        .subquery("seen")
    )
    counted = {"written": _count_rows(written, "written"), "removed": _count_rows(removed, "removed")}
    statement = select(
        windows.c.period_start,
        func.coalesce(seen.c.instances, 0).label("instances"),
        func.coalesce(seen.c.records, 0).label("records"),
        *(_or_zero(rows, name) for name, rows in counted.items()),
        func.coalesce(seen.c.unchanged, 0).label("unchanged"),
    ).select_from(windows.outerjoin(seen, seen.c.period_start == windows.c.period_start))
    for rows in counted.values():
        if rows is not None:
            statement = statement.outerjoin(rows, rows.c.period_start == windows.c.period_start)
    return statement.where(windows.c.bucket > 1).order_by(windows.c.bucket)


def _count_rows(rows: CTE | None, name: str) -> Subquery | None:
    if rows is None:
        return None
    counted = select(rows.c.period_start, func.count().label("rows")).group_by(rows.c.period_start)
    return counted.subquery(f"{name}_rows")


def _or_zero(rows: Subquery | None, name: str) -> ColumnElement[int]:
    return (literal(0) if rows is None else func.coalesce(rows.c.rows, 0)).label(name)


def _count(measure: Measure) -> str:
    return f"count_{measure.source}"


def _sum(measure: Measure) -> str:
    return f"sum_{measure.source}"


def _floor(numerator: Element, denominator: Element) -> Element:
    """floor(numerator / denominator) for a positive denominator; `div` truncates, `mod` has the numerator's sign."""
    below_zero = cast(func.mod(numerator, denominator) < 0, Integer)
    return func.div(numerator, denominator) - below_zero


def _two_decimals(numerator: Element, denominator: Element) -> Element:
    """Divide to two decimals, half away from zero, by one exact integer division.

    Everything is cast to numeric first: `sign(bigint)` is a double in PostgreSQL and would spoil the result.
    """
    above, below = cast(numerator, Numeric), cast(denominator, Numeric)
    hundredths = func.div(func.abs(above) * 200 + func.abs(below), func.abs(below) * 2)
    return hundredths * func.sign(above) * func.sign(below) * literal_column("0.01")
