"""The sums of a window, and the databases or servers that changed most in it.

Read after a run and shown with it. Nothing is recomputed: sizes and changes come from the view `capacity_server_sizes`
and the stored rows of databases.
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
        if not level.has_servers:
            rows = connection.execute(text(_OF_GROUPS), parameters).all()
            return {row.period_start: _sizes(row, row.unknown_changes, row.growers, row.shrinkers) for row in rows}
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
    rows = f"m.period_type = :period_type AND m.period_start = :start AND m.{_COUNTED}"

    def most(condition: str, order: str) -> TextClause:
        return text(f"""
WITH top AS MATERIALIZED (
    SELECT m.instance_id AS server_id, {database} AS database, m.{size} AS size_mb, m.{change} AS change_mb,
           b.{size} AS before_mb
    FROM {target} m LEFT JOIN {target} b ON b.instance_id = m.instance_id {same_database}
        AND b.period_type = m.period_type AND b.period_start = :previous_start
    WHERE {rows} AND m.{change} {condition} ORDER BY {order}, {TIES} LIMIT :largest
)
SELECT coalesce(i.name, 'server ' || top.server_id) AS server, top.database,
       coalesce(top.before_mb, top.size_mb - top.change_mb) AS before_mb, top.size_mb, top.change_mb
FROM top LEFT JOIN instances i ON i.id = top.server_id ORDER BY {order}, {TIES}
""")  # noqa: S608 -- names from our own table definitions

    return (
        text(_TOTALS.format(start=":start")),
        text(f"SELECT count(*) - count(m.{change}) FROM {target} m WHERE {rows}"),  # noqa: S608 -- as above
        most("> 0", "change_mb DESC"),
        most("< 0", "change_mb"),
    )


_MOST = """(
    SELECT json_agg(json_build_object(
        'server', m.label_key || '=' || m.label_value, 'database', NULL, 'before_mb', m.avg_size_mb - m.size_change_mb,
        'size_mb', m.avg_size_mb, 'change_mb', m.size_change_mb) ORDER BY {order})
    FROM (SELECT * FROM labelled m WHERE m.period_start = w.period_start AND m.size_change_mb {condition}
          ORDER BY {order} LIMIT :largest) AS m)"""
_BY_NAME = "m.avg_size_mb DESC, m.label_key, m.label_value"
_OF_GROUPS = f"""
WITH found AS MATERIALIZED (
    SELECT * FROM group_size_aggregations
    WHERE period_type = :period_type AND period_start = ANY (CAST(:starts AS date[]))
), labelled AS (
    SELECT * FROM found WHERE label_key <> ALL (ARRAY['{FLEET}', '{ENGINE}', '{TOTAL}']) AND label_value <> '{WITHOUT}'
)
SELECT w.period_start, coalesce(f.avg_size_mb, 0) AS total_size_mb, f.size_change_mb AS total_change_mb,
       coalesce(f.avg_size_mb - f.size_change_mb, 0) AS known_before_mb,
       (SELECT count(*) - count(m.size_change_mb) FROM labelled m WHERE m.period_start = w.period_start)
           AS unknown_changes,
       {_MOST.format(condition="> 0", order=f"m.size_change_mb DESC, {_BY_NAME}")} AS growers,
       {_MOST.format(condition="< 0", order=f"m.size_change_mb, {_BY_NAME}")} AS shrinkers
FROM unnest(CAST(:starts AS date[])) AS w (period_start)
LEFT JOIN found f ON f.period_start = w.period_start AND f.label_key = '{FLEET}'
"""  # noqa: S608 -- constants of our own
# The size and growth of a replica are already counted with its primary.
_COUNTED = "instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))"
_TOTALS = f"""
SELECT coalesce(sum(s.total_size_mb), 0) AS total_size_mb, sum(s.total_size_change_mb) AS total_change_mb,
       coalesce(sum(s.total_size_mb - s.total_size_change_mb), 0) AS known_before_mb
FROM {SERVER_SIZES} s WHERE s.period_type = :period_type AND s.period_start = {{start}} AND s.{_COUNTED}"""  # noqa: S608 -- as above


@cache
def _statement(level: Level) -> TextClause:
    """Read each window's rows once, and look up the five largest changes in each direction.

    The change is that of exact means; a mean before whose row is gone is known to a megabyte.
    """
    target, size, change = level.target.name, level.headline.average, level.headline.change
    database = "database_name" if level is DATABASE else "CAST(NULL AS varchar)"
    same_database = "AND b.database_name = m.database" if level is DATABASE else ""

    def most(condition: str, order: str) -> str:
        return f"""(
    SELECT json_agg(json_build_object(
        'server', coalesce(i.name, 'server ' || m.server_id), 'database', m.database,
        'before_mb', coalesce((SELECT b.{size} FROM {target} b
                               WHERE b.instance_id = m.server_id {same_database}
                                 AND b.period_type = :period_type AND b.period_start = w.previous_start),
                              m.size_mb - m.change_mb),
        'size_mb', m.size_mb, 'change_mb', m.change_mb) ORDER BY {order}, {TIES})
    FROM (SELECT * FROM stored WHERE change_mb {condition} ORDER BY {order}, {TIES} LIMIT :largest) AS m
    LEFT JOIN instances i ON i.id = m.server_id)"""  # noqa: S608 -- names from our own table definitions

    return text(f"""
SELECT w.period_start, totals.*, found.*
FROM unnest(CAST(:starts AS date[]), CAST(:before AS date[])) AS w (period_start, previous_start)
CROSS JOIN LATERAL ({_TOTALS.format(start="w.period_start")}) AS totals
CROSS JOIN LATERAL (
    WITH stored AS MATERIALIZED (
        SELECT instance_id AS server_id, {database} AS database, {size} AS size_mb, {change} AS change_mb FROM {target}
        WHERE period_type = :period_type AND period_start = w.period_start AND {_COUNTED}
    )
    SELECT (SELECT count(*) - count(change_mb) FROM stored) AS unknown_changes,
           {most("> 0", "change_mb DESC")} AS growers, {most("< 0", "change_mb")} AS shrinkers
) AS found
""")  # noqa: S608 -- as above
