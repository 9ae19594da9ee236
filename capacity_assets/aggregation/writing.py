"""The third part of the statement: what happens to the stored rows, the writing, and the counts that come back.

Each computed row is inserted, takes the place of its stored row, or leaves it (docs/semantics.md, "Writing"):

- A row is never replaced by one of fewer samples.
- A comparison is kept where nothing is left of the window that it compares with, while the figures of the measure in
  this window are the same.

`aggregation_statement` does all of it at once. Citus hands nodes no step that is read twice, so `NodeStatements` does
the same in several, on each node over its own servers: the figures are computed once to count and once to write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Compiled,
    Connection,
    DateTime,
    Delete,
    FromClause,
    Integer,
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
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.sql.selectable import HasCTE

from capacity_assets.aggregation.figures import window_figures
from capacity_assets.aggregation.states import EVERY_SOURCE, Element, Parameters, Sources
from capacity_assets.foundation.levels import Level, Measure
from capacity_assets.periods import Period
from capacity_assets.storage.active_servers import is_active
from capacity_assets.storage.distribution import ROW_NUMBER_FUNCTION
from capacity_assets.storage.steps import DIALECT
from capacity_assets.storage.tables import instances

INSERT, UPDATE, UNCHANGED, PROTECTED, UNSAMPLED = (
    literal_column(f"'{action}'", String) for action in ("insert", "update", "unchanged", "protected", "unsampled")
)
HALF_A_FINGERPRINT = 32
Rows = Select[tuple[Any, ...]]


def known_instances() -> Select[int, str, bool]:
    """Select id, name and whether it is active, of every registered instance, by id."""
    return select(instances.c.id, instances.c.name, is_active().label("active")).order_by(instances.c.id)


@cache
def aggregation_statement(
    level: Level, sources: Sources = EVERY_SOURCE, *, overwrite: bool = True, dry_run: bool = False
) -> Compiled:
    """Build the statement for one level: compute the figures from `sources`, decide, write, count.

    Without `overwrite` no row is removed, whatever its parameter of that name says.

    With `dry_run` the statement only reads, and counts what would be written and removed. Its parameters are those of
    `states.Parameters`. It is made a text once per process: SQLAlchemy takes longer for it than PostgreSQL.

    Returns one row per window in which anything was found: `period_start`, `instances` (with samples), `records`,
    `written`, `unchanged`, `removed`, `unsampled` (rows kept although no sample of them is left).
    """
    target = level.target
    rows = _classified(level, sources, fenced=True).cte("classified")
    is_removed = _is_removed(rows, rows)
    changed: dict[str, HasCTE] = {}
    counts = _counts(level, rows, _fits(level, rows) if dry_run else None).subquery("counts")
    if not dry_run:
        changed["updated"] = _update(level, rows).returning(target.c.period_start)
    if overwrite and dry_run:
        changed["removed"] = select(rows.c.period_start).where(is_removed)
    elif overwrite:
        removed = delete(target).where(_is_row_of(level, target, rows), is_removed)
        changed["removed"] = removed.returning(target.c.period_start)
    joined: FromClause = counts
    number: dict[str, Element] = {"removed": literal_column("0", Integer)}
    for name, statement in changed.items():
        found = statement.cte(name)
        per_window = _per_window(select(found.c.period_start), found.c.period_start).subquery(f"{name}_rows")
        joined = joined.outerjoin(per_window, per_window.c.period_start == counts.c.period_start)
        number[name] = func.coalesce(per_window.c.rows, 0)
    statement = select(
        counts.c.period_start,
        counts.c.instances,
        counts.c.records,
        (counts.c.to_write if dry_run else counts.c.inserted + number["updated"]).label("written"),
        number["removed"].label("removed"),
        counts.c.unchanged,
        (counts.c.unsampled - number["removed"]).label("unsampled"),
    ).select_from(joined)
    if not dry_run:
        statement = statement.add_cte(_insert(level, rows).cte("inserted"))
    return statement.compile(dialect=DIALECT)


def execute(connection: Connection, statement: Compiled, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
    """Execute a statement that is text already; raises DBAPIError."""
    return connection.exec_driver_sql(str(statement), {**statement.params, **parameters}).all()


@dataclass(frozen=True)
class NodeStatements:
    """What one slice takes where tables are distributed, in this order; parameters as those of `states.Parameters`.

    - `counts` reads, computes and decides; `row_numbers` names the sequence of the rows' numbers.
    - `insert`, `update` and `remove` compute again and write; their parameters are `row_numbers` and `written_at`,
      which marks the rows that `written` counts by. `removable` counts what `remove` deletes.

    Each counts per `period_start`; no row: none.
    """

    counts: Rows
    row_numbers: Select[str]
    insert: Insert
    update: Update
    written: Rows
    removable: Rows
    remove: Delete


@cache
def node_statements(level: Level) -> NodeStatements:
    """Build the statements for tables that are distributed by `instance_id`."""
    target = level.target

    def classified(name: str) -> Subquery:
        return _classified(level, fenced=False).subquery(name)

    rows = classified("classified")
    written_at = bindparam("written_at", type_=DateTime(timezone=True))
    # The default of the column is volatile, which would bring all rows to the coordinator.
    number = getattr(func, ROW_NUMBER_FUNCTION)(bindparam("row_numbers", type_=String), rows.c.instance_id)
    is_removed = _is_removed(rows, classified("sampled"))
    written = _stored(level).where(target.c.calculated_at == written_at).with_only_columns(target.c.period_start)
    return NodeStatements(
        counts=_counts(level, rows, _fits(level, rows)),
        row_numbers=select(func.pg_get_serial_sequence(target.name, "id")),
        insert=_insert(level, rows, {"id": number, "calculated_at": written_at, "created_at": written_at}),
        update=_update(level, rows, written_at),
        written=_per_window(written, target.c.period_start),
        removable=_per_window(select(rows.c.period_start).where(is_removed), rows.c.period_start),
        remove=delete(target).where(_is_row_of(level, target, rows), is_removed),
    )


def _per_window(found: Rows, start: Element) -> Rows:
    return found.add_columns(func.count().label("rows")).group_by(start)


ARITHMETIC = 1
"""Takes another number when the same samples give other figures; a test asks for it where the statement changes."""


def fingerprint(level: Level, period: Period, instance_ids: Sequence[int]) -> str:
    """Return a fingerprint of how a level is computed and for which servers: 64 hexadecimal digits.

    A new metric or another trend threshold is another way by itself. The last half is that of the sums.
    """
    servers = ",".join(map(str, sorted(instance_ids)))
    made_of = f"{ARITHMETIC} {level.measures} {level.ratios} {level.figures}"
    return _digest(f"{made_of} {period.windows_per_year} {period.trend_percent} {servers}") + sums_fingerprint(level)


@cache
def sums_fingerprint(level: Level) -> str:
    """Return a fingerprint of what stored sums are made of: 32 digits. A new meaning of theirs takes a new number."""
    return _digest(f"1 {level.source.name} {level.values} {level.void_flag} {sorted(level.sums)}{level.rule}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HALF_A_FINGERPRINT]


def _classified(level: Level, sources: Sources = EVERY_SOURCE, *, fenced: bool) -> Rows:
    """Decide for each row what happens to it, before anything is written, and give it the comparisons that are kept.

    Sorting out unchanged rows here, not in the upsert, is what makes a repetition free of writes: an upsert whose WHERE
    is false still locks the row on its page.
    """
    joined = _beside_stored(level, sources, fenced=fenced)
    taken: dict[str, Element] = {name: joined.c[name] for name in level.figures}
    for comparison in level.comparisons:
        kept = joined.c[f"keeps_{comparison.change}"]
        taken |= {name: case((kept, joined.c[f"stored_{name}"]), else_=joined.c[name]) for name in comparison.figures}
    as_stored = tuple_(*(joined.c[f"stored_{name}"] for name in level.figures))
    computed = tuple_(*(joined.c[name] for name in level.figures))
    action = case(
        (joined.c.data_count.is_(None), UNSAMPLED),
        (joined.c.stored_data_count.is_(None), INSERT),
        (~computed.is_distinct_from(as_stored), UNCHANGED),
        (and_(joined.c.stored_data_count > joined.c.data_count, ~Parameters.overwrite), PROTECTED),
        # Nothing but what is kept would have changed.
        (~tuple_(*taken.values()).is_distinct_from(as_stored), PROTECTED),
        else_=UPDATE,
    ).label("action")
    keys = [joined.c[name] for name in (*level.keys, "period_start")]
    return select(*keys, *(value.label(name) for name, value in taken.items()), action)


def _beside_stored(level: Level, sources: Sources, *, fenced: bool) -> Subquery:
    """Join the stored row to each computed one, and say which of its comparisons are kept."""
    figures = window_figures(level, sources, fenced=fenced)
    stored = _stored(level).subquery("stored_rows")
    keeps: list[Element] = []
    for comparison in level.comparisons:
        change = stored.c[comparison.change]
        other = "year_before" if comparison.is_with_year_before else "previous"
        conditions: list[ColumnElement[bool]] = [figures.c[f"{other}_data_count"].is_(None), change.is_not(None)]
        if not comparison.is_with_year_before:
            # The legacy application stored 0 for an unknown change.
            conditions.append(or_(change != 0, stored.c.period_start == func.any(Parameters.computed_starts)))
        conditions.append(_own_is_the_same(level, comparison.measure, stored, figures))
        keeps.append(and_(~Parameters.overwrite, *conditions).label(f"keeps_{comparison.change}"))
    rows = select(
        *(figures.c[name] for name in (*level.keys, "period_start", *level.figures)),
        *(stored.c[name].label(f"stored_{name}") for name in level.figures),
        *keeps,
    ).select_from(figures.outerjoin(stored, _same_row(level, stored, figures)))
    return (rows.offset(literal_column("0")) if fenced else rows).subquery("joined")


def _stored(level: Level) -> Rows:
    """Select the stored rows of the wanted windows."""
    target = level.target
    return select(*(target.c[name] for name in (*level.keys, "period_start", *level.figures))).where(
        _is_wanted(level, target)
    )


def _is_wanted(level: Level, target: FromClause) -> ColumnElement[bool]:
    """Whether a stored row is of the slice, by what PostgreSQL knows before any figure is computed."""
    return and_(
        target.c.period_type == Parameters.period_type,
        target.c.period_start.between(Parameters.wanted_first, Parameters.wanted_last),
        target.c.period_start == func.any(Parameters.wanted_starts),
        *level.of_servers(target, Parameters.instance_ids),
    )


def _own_is_the_same(level: Level, measure: Measure, stored: FromClause, figures: FromClause) -> ColumnElement[bool]:
    """Whether a measure's own figures are equal; figures that an older version did not store count as equal."""
    added = {*(measure.further.own if measure.further else ()), *level.sums}
    own = level.own_figures(measure)
    older = [name for name in own if name not in added]
    newer = [or_(stored.c[name].is_(None), stored.c[name] == figures.c[name]) for name in own if name in added]
    differs = tuple_(*(stored.c[n] for n in older)).is_distinct_from(tuple_(*(figures.c[n] for n in older)))
    return and_(~differs, *newer)


def _same_row(level: Level, one: FromClause, other: FromClause) -> ColumnElement[bool]:
    return and_(*(one.c[name] == other.c[name] for name in (*level.keys, "period_start")))


def _is_row_of(level: Level, target: FromClause, rows: FromClause) -> ColumnElement[bool]:
    """Whether a row of the table is the one that a classified row is about."""
    return and_(_same_row(level, target, rows), _is_wanted(level, target))


def _insert(level: Level, rows: FromClause, own: Mapping[str, Element] | None = None) -> Insert:
    """Insert the rows that were not stored; `own` has columns that are given in place of their defaults.

    Where another session inserted one of them meanwhile, PostgreSQL refuses, and the slice is written again: an upsert
    of each row would cost half as much again. In the order of the key, so that the index grows at one place.
    """
    given: dict[str, Element] = {name: rows.c[name] for name in (*level.keys, "period_start", *level.figures)}
    given |= {"period_type": cast(Parameters.period_type, String)}
    given |= {"calculated_at": func.now(), "created_at": func.now(), **(own or {})}
    chosen = select(*given.values()).where(rows.c.action == INSERT)
    ordered = chosen.order_by(rows.c.period_start, *(rows.c[key] for key in level.keys))
    return insert(level.target).from_select(list(given), ordered, include_defaults=False)


def _update(level: Level, rows: FromClause, at: Element | None = None) -> Update:
    """Update the rows that change; id and created_at stay."""
    target = level.target
    values = {name: rows.c[name] for name in level.figures}
    # Repeated here for a row that another session updated between this statement's reading and its writing.
    still_wanted = or_(Parameters.overwrite, target.c.data_count <= rows.c.data_count)
    return (
        update(target)
        .values({**values, "calculated_at": func.now() if at is None else at})
        .where(_is_row_of(level, target, rows), rows.c.action == UPDATE, still_wanted)
    )


def _fits(level: Level, rows: FromClause) -> ColumnElement[bool]:
    """Try every value of a row that is to be written whether its column can hold it, as writing would."""
    tried = (cast(rows.c[name], level.target.c[name].type) for name in level.figures)
    # Always true where it is looked at, but PostgreSQL does not know that, and so computes every value there.
    return case((or_(rows.c.action == INSERT, rows.c.action == UPDATE), func.num_nonnulls(*tried) > 0), else_=False)


def _is_removed(rows: FromClause, others: FromClause) -> ColumnElement[bool]:
    """Whether a row goes: nothing supports it, but others of its server, if any, in the window; history is replaced."""
    other = others.alias("sampled")
    names = [name for name in ("instance_id", "period_start") if name in rows.c]
    is_sampled = exists().where(other.c.action != UNSAMPLED, *(other.c[name] == rows.c[name] for name in names))
    return and_(Parameters.overwrite, rows.c.action == UNSAMPLED, is_sampled)


def _counts(level: Level, rows: FromClause, fits: ColumnElement[bool] | None = None) -> Rows:
    """Count what there is to do: per server, as nodes do it, and then per window; `fits` tries what is written.

    Where rows are of many servers, there are as many as the largest had on a day: the fleet.
    """
    actions = {
        "records": rows.c.action != UNSAMPLED,
        "inserted": rows.c.action == INSERT,
        "unchanged": rows.c.action == UNCHANGED,
        "unsampled": rows.c.action == UNSAMPLED,
    }
    if fits is not None:
        actions["to_write"] = fits
    counted = [func.count().filter(which).label(name) for name, which in actions.items()]
    keys = [rows.c[name] for name in ("instance_id", "period_start") if name in rows.c]
    if not level.has_servers:
        counted.append(func.coalesce(func.max(rows.c.max_server_count), 0).label("servers"))
    by_server = select(*keys, *counted).group_by(*keys).subquery("by_server")
    sampled = func.count().filter(by_server.c.records > 0)
    return select(
        by_server.c.period_start,
        (sampled if level.has_servers else func.max(by_server.c.servers)).label("instances"),
        *(cast(func.sum(by_server.c[name]), BigInteger).label(name) for name in actions),
    ).group_by(by_server.c.period_start)
