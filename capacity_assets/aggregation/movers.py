"""The sums of a window, and the databases or servers that changed most in it.

Read after a run and shown with it. Nothing is recomputed: sizes and changes come from the view `capacity_server_sizes`
and the stored rows of databases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache

from sqlalchemy import Engine, TextClause, text

from capacity_assets.errors import database_errors
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Period, Window
from capacity_assets.storage.group_days import ENGINE, FLEET, TOTAL, WITHOUT
from capacity_assets.storage.window_expressions import SERVER_SIZES, TIES

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
    """Size of the fleet in one window and its known change, MiB: sums of the servers' totals, at both levels.

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
    engine: Engine, period: Period, level: Level, windows: Sequence[Window], *, largest: int = LARGEST_SHOWN
) -> dict[date, WindowSizes]:
    """Read sums and extremes of `windows` by first day; raises DatabaseError."""
    totals, movers = _statements(level)
    found = {}
    with (
        database_errors(doing="reading the largest changes", kept="What was computed is kept."),
        engine.connect() as connection,
    ):
        for window in windows:
            values = {
                "period_type": period.name,
                "start": window.start,
                "previous_start": period.previous(window).start,
                "largest": largest,
            }
            sums = connection.execute(totals, values).one()
            moved = [Mover(*row) for row in connection.execute(movers, values)]
            found[window.start] = WindowSizes(
                int(sums.total_size_mb),
                None if sums.total_change_mb is None else int(sums.total_change_mb),
                int(sums.known_before_mb),
                sums.unknown_changes,
                growers=tuple(one for one in moved if one.change_mb > 0),
                shrinkers=tuple(one for one in moved if one.change_mb < 0),
            )
    return found


# The size and growth of a replica are already counted with its primary.
_COUNTED = "instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))"
_LABELLED = f"label_key <> ALL (ARRAY['{FLEET}', '{ENGINE}', '{TOTAL}']) AND label_value <> '{WITHOUT}'"
_NAMED = "coalesce(i.name, 'server ' || m.server_id) AS server, m.database"
_SIZES_OF_SERVERS = f"""
    SELECT total_size_mb AS size_mb, total_size_change_mb AS change_mb FROM {SERVER_SIZES}
    WHERE period_type = :period_type AND period_start = :start AND {_COUNTED}"""  # noqa: S608 -- constants of our own
_SIZE_OF_FLEET = f"""
    SELECT avg_size_mb AS size_mb, size_change_mb AS change_mb FROM group_size_aggregations
    WHERE period_type = :period_type AND period_start = :start AND label_key = '{FLEET}'"""  # noqa: S608 -- as above


@cache
def _statements(level: Level) -> tuple[TextClause, TextClause]:
    """Return what reads the sums of one window, and its largest changes in each direction.

    The change is that of exact means; a mean before whose row is gone is known to a megabyte. Only the rows that are
    shown are looked up in the window before.
    """
    target, size, change = level.target.name, level.headline.average, level.headline.change
    server, *database = level.keys
    sizes, counted = (_SIZES_OF_SERVERS, _COUNTED) if level.has_servers else (_SIZE_OF_FLEET, _LABELLED)
    names = _NAMED if level.has_servers else "m.server_id || '=' || m.database AS server, NULL AS database"
    joined = "LEFT JOIN instances i ON i.id = m.server_id" if level.has_servers else ""
    same_database = f"AND b.{database[0]} = m.database" if database else ""
    of_window = f"period_type = :period_type AND period_start = :start AND {counted}"
    columns = f"""{server} AS server_id, {database[0] if database else "CAST(NULL AS varchar)"} AS database,
           {size} AS size_mb, {change} AS change_mb"""
    totals = f"""
SELECT t.*, u.unknown_changes
FROM (SELECT coalesce(sum(s.size_mb), 0) AS total_size_mb, sum(s.change_mb) AS total_change_mb,
             coalesce(sum(s.size_mb - s.change_mb), 0) AS known_before_mb FROM ({sizes}) AS s) AS t
CROSS JOIN (SELECT count(*) - count({change}) AS unknown_changes FROM {target} WHERE {of_window}) AS u
"""  # noqa: S608 -- names from our own table definitions
    movers = f"""
WITH growers AS MATERIALIZED (
    SELECT {columns} FROM {target} WHERE {of_window} AND {change} > 0 ORDER BY change_mb DESC, {TIES} LIMIT :largest
), shrinkers AS MATERIALIZED (
    SELECT {columns} FROM {target} WHERE {of_window} AND {change} < 0 ORDER BY change_mb, {TIES} LIMIT :largest
), moved AS MATERIALIZED (
    SELECT m.*, b.{size} AS before_mb FROM (SELECT * FROM growers UNION ALL SELECT * FROM shrinkers) AS m
    LEFT JOIN {target} b ON b.period_type = :period_type AND b.period_start = :previous_start
        AND b.{server} = m.server_id {same_database}
)
SELECT {names}, coalesce(m.before_mb, m.size_mb - m.change_mb) AS before_mb, m.size_mb, m.change_mb
FROM moved m {joined}
ORDER BY m.change_mb < 0, abs(m.change_mb) DESC, m.size_mb DESC, m.server_id, m.database
"""  # noqa: S608 -- as above
    return text(totals), text(movers)
