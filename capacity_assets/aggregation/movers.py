"""What a window's stored rows add up to, and the databases or servers that changed most in it.

Read after a run, to be shown with it. Nothing is computed anew: sizes and changes are the stored figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import ARRAY, Date, Engine, Row, String, Subquery, and_, bindparam, func, literal, select, true
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregation.errors import database_error
from capacity_assets.aggregation.levels import Level
from capacity_assets.periods import Period, Window
from capacity_assets.storage.tables import instances

LARGEST_SHOWN = 5


@dataclass(frozen=True)
class Mover:
    """A database, or a server as a whole, and how its mean size changed."""

    server: str
    database: str | None
    before_mb: int
    size_mb: int
    change_mb: int


@dataclass(frozen=True)
class WindowSizes:
    """Sums over one window's rows, MB, and its largest growers and shrinkers; an unknown change counts nowhere."""

    total_size_mb: int = 0
    total_change_mb: int = 0
    unknown_changes: int = 0
    growers: tuple[Mover, ...] = ()
    shrinkers: tuple[Mover, ...] = ()


def window_sizes(
    engine: Engine, period: Period, level: Level, windows: Sequence[Window], *, largest: int = LARGEST_SHOWN
) -> dict[date, WindowSizes]:
    """Read sums and extremes of `windows`, by first day; two statements, however many there are.

    Raises:
        DatabaseError: the database failed.
    """
    parameters = {
        "period_type": period.name,
        "starts": [window.start for window in windows],
        "before": [period.previous(window).start for window in windows],
        "largest": largest,
    }
    try:
        with engine.connect() as connection:
            sums = {row.period_start: row for row in connection.execute(_sums(level), parameters)}
            moved = connection.execute(_moved(level), parameters).all()
    except DBAPIError as error:
        raise database_error(error, doing="reading the largest changes", kept="What was computed is kept.") from error
    return {
        window.start: WindowSizes(
            int(sums[window.start].total_size_mb),
            int(sums[window.start].total_change_mb),
            sums[window.start].unknown_changes,
            growers=_movers(moved, window, "up"),
            shrinkers=_movers(moved, window, "down"),
        )
        for window in windows
    }


def _movers(rows: Sequence[Row[Any]], window: Window, direction: str) -> tuple[Mover, ...]:
    return tuple(
        Mover(row.server, row.database, row.before_mb, row.size_mb, row.change_mb)
        for row in rows
        if row.period_start == window.start and row.direction == direction
    )


def _windows() -> Subquery:
    """The windows asked for, each with the one before."""
    starts, before = (bindparam(name, type_=ARRAY(Date)) for name in ("starts", "before"))
    pairs = func.unnest(starts, before).table_valued("period_start", "previous_start", name="asked").render_derived()
    return select(pairs.c.period_start, pairs.c.previous_start).subquery("windows")


def _sums(level: Level) -> Any:
    target, windows = level.target, _windows()
    size, change = target.c[level.headline.average], target.c[level.headline.change]
    same = and_(target.c.period_type == bindparam("period_type"), target.c.period_start == windows.c.period_start)
    return (
        select(
            windows.c.period_start,
            func.coalesce(func.sum(size), 0).label("total_size_mb"),
            func.coalesce(func.sum(change), 0).label("total_change_mb"),
            (func.count(target.c.instance_id) - func.count(change)).label("unknown_changes"),
        )
        .select_from(windows.outerjoin(target, same))
        .group_by(windows.c.period_start)
    )


def _moved(level: Level) -> Any:
    """The rows that changed most, up and down: read window by window, by the first columns of the key."""
    windows = _windows()
    up, down = (_most(level, windows, direction) for direction in ("up", "down"))
    columns = ("period_start", "direction", "server", "database", "before_mb", "size_mb", "change_mb")
    either = up.union_all(down).subquery("moved")
    return select(*(either.c[name] for name in columns)).order_by(
        either.c.period_start, func.abs(either.c.change_mb).desc(), either.c.server, either.c.database
    )


def _most(level: Level, windows: Subquery, direction: str) -> Any:
    target, before = level.target, level.target.alias("before")
    size, change = target.c[level.headline.average], target.c[level.headline.change]
    moved = change > 0 if direction == "up" else change < 0
    extreme = change.desc() if direction == "up" else change.asc()
    most = (
        select(*(target.c[key] for key in level.keys), size.label("size_mb"), change.label("change_mb"))
        .where(target.c.period_type == bindparam("period_type"), target.c.period_start == windows.c.period_start, moved)
        .order_by(extreme, *(target.c[key] for key in level.keys))
        .limit(bindparam("largest"))
        .lateral(f"most_{direction}")
    )
    stored_before = and_(
        before.c.period_type == bindparam("period_type"),
        before.c.period_start == windows.c.previous_start,
        *(before.c[key] == most.c[key] for key in level.keys),
    )
    database = most.c.database_name if "database_name" in level.keys else literal(None, String)
    return select(
        windows.c.period_start,
        literal(direction).label("direction"),
        func.coalesce(instances.c.name, func.concat("server ", most.c.instance_id)).label("server"),
        database.label("database"),
        # The change is that of exact means; a mean before whose row is gone is known to a megabyte.
        func.coalesce(before.c[level.headline.average], most.c.size_mb - most.c.change_mb).label("before_mb"),
        most.c.size_mb,
        most.c.change_mb,
    ).select_from(
        windows.join(most, true())
        .outerjoin(before, stored_before)
        .outerjoin(instances, instances.c.id == most.c.instance_id)
    )
