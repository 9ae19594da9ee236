"""The sizes in the metadata of a materialisation: of the fleet, and of the rows of a level that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import sqlalchemy as sa

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.database.labels import ENGINE, FLEET, TOTAL, WITHOUT
from capacity_assets.database.tables import instances
from capacity_assets.reading.access import records, rows
from capacity_assets.reading.sizes import fleet_sizes

LARGEST_SHOWN = 5


@dataclass(frozen=True)
class Mover:
    """A database, a server as a whole or a group (`server` is its label), and how its mean size changed, MiB."""

    server: str
    database: str | None
    before_mb: int
    size_mb: int
    change_mb: int


@dataclass(frozen=True)
class WindowSizes:
    """Size of the fleet in one window and its known change, MiB.

    The change is None where no server has a known one; `known_before_mb` is what the others had before.
    `unknown_changes` counts rows of the level; growers and shrinkers are the largest changes among them.
    """

    total_size_mb: int = 0
    total_change_mb: int | None = None
    known_before_mb: int = 0
    unknown_changes: int = 0
    growers: tuple[Mover, ...] = ()
    shrinkers: tuple[Mover, ...] = ()


def window_sizes(
    engine: sa.Engine, period: Period, level: Level, windows: Sequence[Window], *, largest: int = LARGEST_SHOWN
) -> dict[date, WindowSizes]:
    """Return the sizes of windows at a level by first day; raises DatabaseError."""
    reading = database_errors(doing="reading the largest changes", kept="What was computed is kept.")
    starts = [window.start for window in windows]
    with reading, engine.connect() as connection:
        # The size and growth of a replica are already counted with its primary.
        replicas = [row.id for row in rows(connection, "SELECT id FROM instances WHERE counted_by IS NOT NULL")]
        rule = {"period": period.name, "replicas": replicas} if level.has_servers else {"period": period.name}
        unknown = {row.start: row.number for row in rows(connection, _unknown_changes(level), **rule, starts=starts)}
        totals = _totals(connection, period, level, windows)
        sizes = {}
        for window in windows:
            place = {"start": window.start, "before": period.previous(window).start}
            movers = records(Mover, connection, _movers(level), **rule, **place, largest=largest)
            sizes[window.start] = WindowSizes(
                *totals.get(window.start, (0, None, 0)),
                unknown.get(window.start, 0),
                tuple(mover for mover in movers if mover.change_mb > 0),
                tuple(mover for mover in movers if mover.change_mb < 0),
            )
    return sizes


def _totals(
    connection: sa.Connection, period: Period, level: Level, windows: Sequence[Window]
) -> dict[date, tuple[int, int | None, int]]:
    """Return size, known change and known previous size by window: sums of servers, or the fleet as a group."""
    if level.has_servers:
        fleet = fleet_sizes(connection, period, windows)
        return {start: (size.size_mb, size.change_mb, size.known_before_mb) for start, size in fleet.items()}
    statement = """
        SELECT period_start AS start, avg_size_mb AS size_mb, size_change_mb AS change_mb,
               coalesce(avg_size_mb - size_change_mb, 0) AS known_before_mb
        FROM group_size_aggregations
        WHERE period_type = :period AND period_start = ANY (CAST(:starts AS date[])) AND label_key = :fleet"""
    starts = [window.start for window in windows]
    groups = rows(connection, statement, period=period.name, starts=starts, fleet=FLEET)
    return {row.start: (row.size_mb, row.change_mb, row.known_before_mb) for row in groups}


@cache
def _unknown_changes(level: Level) -> sa.Select[Any]:
    """Return the statement that counts the rows of a level without a known change, by window."""
    row = level.target.c
    return (
        sa.select(
            row.period_start.label("start"),
            (sa.func.count() - sa.func.count(row[level.headline.change])).label("number"),
        )
        .where(row.period_type == sa.bindparam("period"))
        .where(row.period_start == sa.any_(sa.bindparam("starts", type_=sa.ARRAY(sa.Date))))
        .where(*_is_counted(level, level.target))
        .group_by(row.period_start)
    )


@cache
def _movers(level: Level) -> sa.Select[Any]:
    """Return the statement for the largest changes of a window in each direction.

    Changes are those of exact means; if the row of the window before is gone, its mean is known to a megabyte. Only
    rows that are shown are looked up in the window before.
    """
    now, before = level.target.alias("now"), level.target.alias("before")
    keys = [now.c[name] for name in level.keys]
    size, change = now.c[level.headline.average], now.c[level.headline.change]
    of_window = (
        sa.select(*keys, size.label("size_mb"), change.label("change_mb"))
        .where(now.c.period_type == sa.bindparam("period"), now.c.period_start == sa.bindparam("start"))
        .where(*_is_counted(level, now))
        .limit(sa.bindparam("largest", type_=sa.Integer))
    )
    grown = of_window.where(change > 0).order_by(change.desc(), size.desc(), *keys).cte("grown")
    shrunk = of_window.where(change < 0).order_by(change, size.desc(), *keys).cte("shrunk")
    moved = sa.union_all(sa.select(grown), sa.select(shrunk)).cte("moved").prefix_with("MATERIALIZED")
    in_window_before = sa.and_(
        before.c.period_type == sa.bindparam("period"),
        before.c.period_start == sa.bindparam("before"),
        *(before.c[name] == moved.c[name] for name in level.keys),
    )
    before_mb = sa.func.coalesce(before.c[level.headline.average], moved.c.size_mb - moved.c.change_mb).label(
        "before_mb"
    )
    joined: sa.FromClause = moved.outerjoin(before, in_window_before)
    name: sa.ColumnElement[Any] = moved.c[level.keys[0]] + "=" + moved.c[level.keys[-1]]
    if level.has_servers:
        joined = joined.outerjoin(instances, instances.c.id == moved.c.instance_id)
        name = sa.func.coalesce(instances.c.name, sa.literal("server ") + sa.cast(moved.c.instance_id, sa.Text))
    database = moved.c.database_name if "database_name" in level.keys else sa.null()
    return (
        sa.select(name.label("server"), database.label("database"), before_mb, moved.c.size_mb, moved.c.change_mb)
        .select_from(joined)
        .order_by(sa.func.abs(moved.c.change_mb).desc(), moved.c.size_mb.desc(), *(moved.c[key] for key in level.keys))
    )


def _is_counted(level: Level, table: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for rows that count: servers that no other one counts, and groups of labels."""
    if level.has_servers:
        return (table.c.instance_id != sa.all_(sa.bindparam("replicas", type_=sa.ARRAY(sa.Integer))),)
    return (table.c.label_key.not_in([FLEET, ENGINE, TOTAL]), table.c.label_value != WITHOUT)
