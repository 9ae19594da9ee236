"""What a window's stored rows add up to, and the databases or servers that changed most in it.

Read after a run, to be shown with it. Nothing is recomputed: sizes and changes are the stored figures. The sums are
those of the servers' own rows; where these were not computed, of database rows weighted by the days on which each was
measured, so that renaming a database changes no total.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, Row, TextClause, text

from capacity_assets.errors import database_errors
from capacity_assets.foundation.levels import DATABASE, Level
from capacity_assets.periods import Period, Window
from capacity_assets.storage.distribution import is_distributed

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
    """Read sums and extremes of `windows` by first day, in one statement for any number; raises DatabaseError."""
    parameters = {
        "period_type": period.name,
        "starts": [window.start for window in windows],
        "before": [period.previous(window).start for window in windows],
        "largest": largest,
    }
    with (
        database_errors(doing="reading the largest changes", kept="What was computed is kept."),
        engine.connect() as connection,
    ):
        if is_distributed(engine):
            return _window_by_window(connection, level, parameters)
        rows = connection.execute(_statement(level), parameters).all()
    return {row.period_start: _sizes(row, row.unknown_changes, row.growers, row.shrinkers) for row in rows}


def _window_by_window(connection: Connection, level: Level, parameters: dict[str, Any]) -> dict[date, WindowSizes]:
    """Read the same where rows are distributed: a few looks per window, added up and sorted on the nodes."""
    totals, *most = _statements_of_a_window(level)
    found = {}
    for start, before in zip(parameters["starts"], parameters["before"], strict=True):
        values = {**parameters, "start": start, "previous_start": before}
        row = connection.execute(totals, values).one()
        unknown, growers, shrinkers = (connection.execute(query, values) for query in most)
        found[start] = _sizes(row, unknown.scalar_one(), growers.mappings(), shrinkers.mappings())
    return found


def _sizes(totals: Row[Any], unknown: int, *movers: Iterable[Any] | None) -> WindowSizes:
    """Make figures of what a statement returned; `movers` are growers and shrinkers, None where there are none."""
    change = None if totals.total_change_mb is None else int(totals.total_change_mb)
    growers, shrinkers = (tuple(Mover(**one) for one in found or ()) for found in movers)
    return WindowSizes(int(totals.total_size_mb), change, int(totals.known_before_mb), unknown, growers, shrinkers)


@cache
def _statements_of_a_window(level: Level) -> tuple[TextClause, TextClause, TextClause, TextClause]:
    """Totals, the number of unknown changes, growers and shrinkers of one window."""
    target, size, change = level.target.name, level.headline.average, level.headline.change
    database = "m.database_name" if level is DATABASE else "CAST(NULL AS varchar)"
    same_database = "AND b.database_name = m.database_name" if level is DATABASE else ""
    counted = "instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))"
    rows = f"m.period_type = :period_type AND m.period_start = :start AND m.{counted}"
    weighted = (
        f"SELECT m.instance_id, floor(sum(CAST(m.{size} AS numeric) * m.data_count) / max(m.data_count)) AS size_mb "  # noqa: S608 -- names from our own table definitions
        f"FROM {target} m WHERE {rows} GROUP BY m.instance_id"
    )
    totals = f"""
SELECT coalesce(sum(size_mb), 0) AS total_size_mb, sum(change_mb) AS total_change_mb,
       coalesce(sum(size_mb - change_mb) FILTER (WHERE change_mb IS NOT NULL), 0) AS known_before_mb
FROM (
    SELECT coalesce(t.total_size_mb, d.size_mb) AS size_mb, t.total_size_change_mb AS change_mb
    FROM (SELECT m.instance_id, m.total_size_mb, m.total_size_change_mb FROM instance_size_aggregations m
          WHERE {rows}) AS t
    FULL JOIN ({weighted}) AS d ON d.instance_id = t.instance_id
) AS servers"""  # noqa: S608 -- as above

    def most(condition: str, order: str) -> TextClause:
        inside = order.format(change=f"m.{change}", size=f"m.{size}", server="m.instance_id", database="2")
        outside = order.format(
            change="top.change_mb", size="top.size_mb", server="top.instance_id", database="top.database"
        )
        return text(f"""
WITH top AS MATERIALIZED (
    SELECT m.instance_id, {database} AS database, m.{size} AS size_mb, m.{change} AS change_mb, b.{size} AS before_mb
    FROM {target} m LEFT JOIN {target} b ON b.instance_id = m.instance_id {same_database}
        AND b.period_type = m.period_type AND b.period_start = :previous_start
    WHERE {rows} AND {condition} ORDER BY {inside} LIMIT :largest
)
SELECT coalesce(i.name, 'server ' || top.instance_id) AS server, top.database,
       coalesce(top.before_mb, top.size_mb - top.change_mb) AS before_mb, top.size_mb, top.change_mb
FROM top LEFT JOIN instances i ON i.id = top.instance_id ORDER BY {outside}
""")  # noqa: S608 -- as above

    return (
        text(totals),
        text(f"SELECT count(*) - count(m.{change}) FROM {target} m WHERE {rows}"),  # noqa: S608 -- as above
        most(f"m.{change} > 0", "{change} DESC, {size} DESC, {server}, {database}"),
        most(f"m.{change} < 0", "{change}, {size} DESC, {server}, {database}"),
    )


@cache
def _statement(level: Level) -> TextClause:
    """Read each window's rows once, and look up the five largest changes in each direction.

    The change is that of exact means; a mean before whose row is gone is known to a megabyte.
    """
    target, size, change = level.target.name, level.headline.average, level.headline.change
    database = "database_name" if level is DATABASE else "CAST(NULL AS varchar)"
    same_database = "AND b.database_name = m.database" if level is DATABASE else ""

    weighted = (
        "SELECT instance_id, floor(sum(CAST(size_mb AS numeric) * data_count) / max(data_count)) AS size_mb "
        "FROM stored GROUP BY instance_id"
    )

    def most(condition: str, order: str) -> str:
        return f"""(
    SELECT json_agg(json_build_object(
        'server', coalesce(i.name, 'server ' || m.instance_id), 'database', m.database,
        'before_mb', coalesce((SELECT b.{size} FROM {target} b
                               WHERE b.instance_id = m.instance_id {same_database}
                                 AND b.period_type = :period_type AND b.period_start = w.previous_start),
                              m.size_mb - m.change_mb),
        'size_mb', m.size_mb, 'change_mb', m.change_mb) ORDER BY {order})
    FROM (SELECT * FROM stored m WHERE {condition} ORDER BY {order} LIMIT :largest) AS m
    LEFT JOIN instances i ON i.id = m.instance_id)"""  # noqa: S608 -- names from our own table definitions

    return text(f"""
SELECT w.period_start, found.*
FROM unnest(CAST(:starts AS date[]), CAST(:before AS date[])) AS w (period_start, previous_start)
CROSS JOIN LATERAL (
    WITH stored AS MATERIALIZED (
        SELECT instance_id, {database} AS database, {size} AS size_mb, {change} AS change_mb, data_count FROM {target}
        WHERE period_type = :period_type AND period_start = w.period_start
          -- A replica's bytes, and its growth, are those of its primary.
          AND instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))
    ), servers AS (
        SELECT coalesce(t.total_size_mb, d.size_mb) AS size_mb, t.total_size_change_mb AS change_mb
        FROM (SELECT instance_id, total_size_mb, total_size_change_mb FROM instance_size_aggregations
              WHERE period_type = :period_type AND period_start = w.period_start
                AND instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))) AS t
        FULL JOIN ({weighted}) AS d USING (instance_id)
    )
    SELECT coalesce((SELECT sum(size_mb) FROM servers), 0) AS total_size_mb,
           (SELECT sum(change_mb) FROM servers) AS total_change_mb,
           coalesce((SELECT sum(size_mb - change_mb) FROM servers WHERE change_mb IS NOT NULL), 0) AS known_before_mb,
           (SELECT count(*) - count(change_mb) FROM stored) AS unknown_changes,
           {most("m.change_mb > 0", "m.change_mb DESC, m.size_mb DESC, m.instance_id, m.database")} AS growers,
           {most("m.change_mb < 0", "m.change_mb, m.size_mb DESC, m.instance_id, m.database")} AS shrinkers
) AS found
""")  # noqa: S608 -- as above
