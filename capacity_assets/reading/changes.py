"""Changes since the previous window: of databases by kind, of servers, unusual ones, and the largest of a level.

A database counts by the share of its server's measured days on which it existed. So renaming changes no total, and a
copy that existed for a day counts only for that day. A database is *new* or *gone* only if its server was measured in
both windows; otherwise it is *not comparable*, because its change is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from capacity_assets.aggregates.groups import ENGINE, FLEET, TOTAL, WITHOUT
from capacity_assets.aggregates.levels import Level
from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.database.tables import instances
from capacity_assets.reading.access import records, rows
from capacity_assets.reading.coverage import measured_ends
from capacity_assets.reading.lists import DatabaseRow, most_changed
from capacity_assets.reading.sizes import fleet_sizes, last_sizes
from capacity_assets.reading.table_growth import ListedObject, objects_behind


class ChangeKind(StrEnum):
    """How a database changed from one window to the next."""

    GROWN = "grown"
    SHRUNK = "shrunk"
    SAME = "same"
    PARTLY = "partly"
    """Present on only some of its server's measured days, in one of the windows or in both."""
    NEW = "new"
    GONE = "gone"
    APPEARED = "appeared"
    """Its server has no row in the previous window."""
    MISSING = "missing"
    """Its server has no row in this window."""


NOT_COMPARABLE = (ChangeKind.APPEARED, ChangeKind.MISSING)
"""Kinds whose change is unknown: neither growth nor shrinkage."""


@dataclass(frozen=True)
class ChangeTotals:
    """Sums over the databases of one kind, MiB; each counts with its share of its server's days."""

    databases: int = 0
    before_mb: int = 0
    size_mb: int = 0
    change_mb: int = 0


@dataclass(frozen=True)
class DatabaseChange:
    """One database in two windows; a mean size is None if it has no row.

    `change_mb` is its contribution to the change of its server's total: the stored change or, if it existed on only
    some of the days, the difference of its shares. `days` is text such as `3 of 7`: measured on 3 of the 7 measured
    days of its server. `days_before` is the same of the previous window.
    """

    server: str
    name: str
    before_mb: int | None
    size_mb: int | None
    change_mb: int
    days_before: str = ""
    days: str = ""
    server_id: int = 0
    behind: ListedObject | None = None
    """The table or index that moved it most; None: not measured."""


@dataclass(frozen=True)
class DatabaseChanges:
    """Sums over the databases of each kind, and the largest changes."""

    sums: Mapping[ChangeKind, ChangeTotals]
    largest: Mapping[ChangeKind, Sequence[DatabaseChange]]


def database_changes(
    connection: Connection, period: Period, window: Window, server_id: int | None, *, largest: int
) -> DatabaseChanges:
    """Compare the databases of the fleet and list the `largest` changes of each kind; of one server, list all."""
    sums = dict.fromkeys(ChangeKind, ChangeTotals())
    databases: dict[ChangeKind, list[DatabaseChange]] = {kind: [] for kind in ChangeKind}
    of_windows = _of(period, window, server_id)
    for row in rows(connection, _DATABASES, **of_windows, largest_mb=LARGEST_MB, listed=largest):
        kind = ChangeKind(row.kind)
        sums[kind] = ChangeTotals(row.databases, int(row.sum_before_mb), int(row.sum_mb), int(row.sum_change_mb))
        if kind is not ChangeKind.SAME or server_id is not None:
            days = _days(row.days_there_before, row.days_before), _days(row.days_there, row.days)
            sizes = row.before_mb, row.size_mb, int(row.moved_mb)
            changed = DatabaseChange(row.server, row.database, *sizes, *days, row.server_id)
            databases[kind].append(changed)
    return DatabaseChanges(sums, databases)


def _days(there: int | None, measured: int | None) -> str:
    return "" if there is None or measured is None else f"{there} of {measured}"


@dataclass(frozen=True)
class ServerChange:
    """One server that was measured in both windows: its mean totals and their stored change, MiB."""

    name: str
    engine: str
    databases: int
    before_mb: int
    size_mb: int
    change_mb: int


@dataclass(frozen=True)
class ServerChanges:
    """The largest changes of servers, and the total size of those measured in only one of the windows, MiB."""

    largest: Sequence[ServerChange]
    appeared_mb: int
    missing_mb: int


def server_changes(
    connection: Connection, period: Period, window: Window, server_id: int | None, *, largest: int
) -> ServerChanges:
    """Compare the servers of the fleet, and list the `largest` changes; or compare one server."""
    listed = rows(connection, _SERVERS, **_of(period, window, server_id), listed=largest)
    return ServerChanges(
        [
            ServerChange(row.server, row.engine, row.databases, row.before_mb, row.size_mb, row.change_mb)
            for row in listed
            if row.change_mb is not None
        ],
        *((int(listed[0].appeared_mb), int(listed[0].missing_mb)) if listed else (0, 0)),
    )


@dataclass(frozen=True)
class UnusualChange:
    """A database that grew or shrank more than usual, MiB; `usual_mb` is its largest change in an earlier window."""

    server_id: int
    server: str
    database: str
    change_mb: int
    usual_mb: int
    behind: ListedObject | None = None
    """The table or index that moved it most; None: not measured."""


WINDOWS_OF_HABIT, LEAST_WINDOWS, TIMES_HABIT, LEAST_MB = 12, 4, 2, 1024
"""Unusual: a change of at least 1 GiB and more than twice the largest change of the twelve windows before."""


def unusual_changes(
    connection: Connection, period: Period, window: Window, label: tuple[str, str] | None
) -> list[UnusualChange]:
    """Return the databases with this label that changed more than usual, largest change first."""
    key, value = label or (None, None)
    habit = [earlier.start for earlier in period.back(period.previous(window), WINDOWS_OF_HABIT)]
    rule = {"habit": habit, "least_windows": LEAST_WINDOWS, "times": TIMES_HABIT, "least_mb": LEAST_MB}
    return records(UnusualChange, connection, _UNUSUAL, **_of(period, window), **rule, key=key, value=value)


@dataclass(frozen=True)
class ShrunkDatabase:
    """A database that is smaller than in the previous window, MiB."""

    server_id: int
    server: str
    database: str
    size_mb: int
    change_mb: int
    behind: ListedObject | None = None
    """The table or index that shrank most in it; None: not measured."""


def shrunk_databases(
    connection: Connection, period: Period, window: Window, label: tuple[str, str] | None, *, largest: int
) -> list[ShrunkDatabase]:
    """Return the databases with this label that shrank most."""
    key, value = label or (None, None)
    of_window = {"period": period.name, "start": window.start, "listed": largest}
    return records(ShrunkDatabase, connection, _DECLINES, **of_window, key=key, value=value)


@dataclass(frozen=True)
class MovedDatabase(DatabaseRow):
    """A database that grew or shrank in a window, MiB."""

    behind: ListedObject | None = None
    """The table or index that moved it most; None: not measured."""


def moved_databases(
    connection: Connection, period: Period, window: Window, *, shown: int
) -> tuple[list[MovedDatabase], list[MovedDatabase]]:
    """Return the databases of the fleet that grew most, and those that shrank most, each with its cause."""
    _, *moved = most_changed(connection, period, window, shown=shown)
    grown, shrunk = ([MovedDatabase(**vars(row)) for row in listed] for listed in moved)
    named = with_objects(connection, window, [*grown, *shrunk])
    return named[: len(grown)], named[len(grown) :]


Mover = TypeVar("Mover", DatabaseChange, UnusualChange, ShrunkDatabase, MovedDatabase)


def with_objects(connection: Connection, window: Window, moved: Sequence[Mover]) -> list[Mover]:
    """Return databases with the table or index behind the change of each, if these were measured on two days."""
    places = [(row.server_id, row.name if isinstance(row, DatabaseChange) else row.database) for row in moved]
    changes = dict(zip(places, (row.change_mb or 0 for row in moved), strict=True))
    behind = objects_behind(connection, changes, window)
    return [replace(row, behind=behind.get(place)) for row, place in zip(moved, places, strict=True)]


@dataclass(frozen=True)
class DatabaseOfOneWindow:
    """A database that was created or removed, with its mean size in the window in which it existed, MiB."""

    server_id: int
    server: str
    database: str
    size_mb: int


def new_and_gone(
    connection: Connection, period: Period, window: Window, label: tuple[str, str] | None
) -> tuple[list[DatabaseOfOneWindow], list[DatabaseOfOneWindow]]:
    """Return the databases with this label that exist in a window but not in the previous one, and the reverse.

    Only servers measured in both are considered; the largest databases are first.
    """
    key, value = label or (None, None)
    changed = rows(connection, _NEW_AND_GONE, **_of(period, window), key=key, value=value)
    new, gone = (
        [
            DatabaseOfOneWindow(row.server_id, row.server, row.database, row.size_mb)
            for row in changed
            if row.is_new is kind
        ]
        for kind in (True, False)
    )
    return new, gone


@dataclass(frozen=True)
class ServerOfOneWindow:
    """A server that came or went, with its mean size and number of databases in its stored window, MiB.

    Without a stored window, they are those of its last day.
    """

    server_id: int
    server: str
    databases: int
    size_mb: int


def servers_come_and_gone(
    connection: Connection, period: Period, window: Window, label: tuple[str, str] | None
) -> tuple[list[ServerOfOneWindow], list[ServerOfOneWindow]]:
    """Return the servers with this label that came in a window, and those that went, the largest first.

    A server came if it was measured in no earlier window. It went if it is out of service and was last measured in the
    previous window. A server without stored windows, for example because it was retired before they were computed,
    went in the window of the first day without a sample. If the fleet was measured in only one of the two windows, no
    stored window counts.
    """
    key, value = label or (None, None)
    retired = {row.server_id for row in rows(connection, _RETIRED, key=key, value=value)}
    changed = rows(connection, _OF_ONE_WINDOW, **_of(period, window), key=key, value=value)
    servers = [row.server_id for row in changed]
    spans = rows(connection, _STORED_SPANS, period=period.name, servers=servers) if changed else ()
    first, last = ({row.server_id: getattr(row, name) for row in spans} for name in ("first_start", "last_start"))
    came, went = [], _retired_without_windows(connection, period, window, retired)
    for row in changed:
        server = ServerOfOneWindow(row.server_id, row.server, row.databases, row.size_mb)
        if row.is_new and first[row.server_id] == window.start:
            came.append(server)
        elif not row.is_new and row.server_id in retired and last[row.server_id] < window.start:
            went.append(server)
    return came, sorted(went, key=lambda server: (-server.size_mb, server.server_id))


def _retired_without_windows(
    connection: Connection, period: Period, window: Window, retired: Collection[int]
) -> list[ServerOfOneWindow]:
    """Return the servers among `retired` that went in a window by their samples, and have no row in any window."""
    ends = measured_ends(connection, retired, date.max, newest=True)
    day = timedelta(days=1)
    went = [server for server, last in ends.items() if window.start <= last + day <= window.end]
    if not went:
        return []
    stored = {row.server_id for row in rows(connection, _STORED_SPANS, period=period.name, servers=went)}
    sizes = last_sizes(connection, [server for server in went if server not in stored], window.end)
    return [ServerOfOneWindow(size.server_id, size.server, size.databases, size.size_mb) for size in sizes.values()]


def _of(period: Period, window: Window, server_id: int | None = None) -> dict[str, Any]:
    before = period.previous(window)
    return {"period": period.name, "before": before.start, "start": window.start, "server": server_id}


# If a database existed on every measured day of its server, its change is the stored one.
_DATABASES = """
WITH servers AS MATERIALIZED (
    SELECT server_id, max(measured_days) FILTER (WHERE window_start = :before) AS days_before,
           max(measured_days) FILTER (WHERE window_start = :start) AS days
    FROM capacity_server_growth
    WHERE period = :period AND (:with_derived OR NOT is_derived)
      AND window_start BETWEEN :before AND :start
      AND (server_id = :server OR CAST(:server AS integer) IS NULL AND counted)
    GROUP BY server_id
), sizes AS MATERIALIZED (
    SELECT server_id, server, database, window_start, size_mb, change_mb, measured_days FROM capacity_growth
    WHERE period = :period AND window_start BETWEEN :before AND :start
      AND (server_id = :server OR CAST(:server AS integer) IS NULL AND counted)
      -- Earlier versions stored any value.
      AND size_mb <= :largest_mb AND (change_mb IS NULL OR change_mb BETWEEN -:largest_mb AND :largest_mb)
), paired AS (
    SELECT server_id, coalesce(n.server, b.server) AS server, database, b.size_mb AS before_mb, n.size_mb,
           b.measured_days AS days_there_before, greatest(b.measured_days, s.days_before) AS days_before,
           n.measured_days AS days_there, greatest(n.measured_days, s.days) AS days,
           b.size_mb * CAST(b.measured_days AS numeric) / greatest(b.measured_days, s.days_before) AS share_before_mb,
           n.size_mb * CAST(n.measured_days AS numeric) / greatest(n.measured_days, s.days) AS share_mb,
           coalesce(n.change_mb, n.size_mb - b.size_mb) AS change_mb,
           CASE WHEN s.days_before IS NULL THEN 'appeared'
                WHEN s.days IS NULL THEN 'missing'
                WHEN b.size_mb IS NULL THEN 'new'
                WHEN n.size_mb IS NULL THEN 'gone'
                WHEN n.measured_days < s.days OR b.measured_days < s.days_before THEN 'partly'
                WHEN coalesce(n.change_mb, n.size_mb - b.size_mb) > 0 THEN 'grown'
                WHEN coalesce(n.change_mb, n.size_mb - b.size_mb) < 0 THEN 'shrunk'
                ELSE 'same' END AS kind
    FROM (SELECT * FROM sizes WHERE window_start = :start) AS n
    FULL JOIN (SELECT * FROM sizes WHERE window_start = :before) AS b USING (server_id, database)
    JOIN servers s USING (server_id)
), moved AS (
    SELECT *, CASE WHEN kind IN ('grown', 'shrunk', 'same') THEN change_mb
                   ELSE round(coalesce(share_mb, 0) - coalesce(share_before_mb, 0)) END AS moved_mb
    FROM paired
), kinds AS (
    SELECT kind, count(*) AS databases, round(coalesce(sum(share_before_mb), 0)) AS sum_before_mb,
           round(coalesce(sum(share_mb), 0)) AS sum_mb,
           CASE WHEN kind IN ('grown', 'shrunk', 'same') THEN sum(change_mb)
                ELSE round(coalesce(sum(share_mb), 0) - coalesce(sum(share_before_mb), 0)) END AS sum_change_mb
    FROM moved GROUP BY kind
), ranked AS (
    SELECT *, row_number() OVER (
        PARTITION BY kind ORDER BY abs(moved_mb) DESC, size_mb DESC, server_id, database) AS place
    FROM moved
)
SELECT kinds.*, server_id, server, database, before_mb, size_mb, moved_mb, days_there_before, days_before, days_there,
       days
FROM kinds JOIN ranked USING (kind)
WHERE place <= :listed OR CAST(:server AS integer) IS NOT NULL ORDER BY kind, place
"""
_SERVERS = """
WITH servers AS (
    SELECT server_id, server, engine, max(size_mb) FILTER (WHERE window_start = :before) AS before_mb,
           max(size_mb) FILTER (WHERE window_start = :start) AS size_mb,
           max(change_mb) FILTER (WHERE window_start = :start) AS change_mb,
           max(databases) FILTER (WHERE window_start = :start) AS databases
    FROM capacity_server_growth
    WHERE period = :period AND (:with_derived OR NOT is_derived)
      AND window_start BETWEEN :before AND :start
      AND (server_id = :server OR CAST(:server AS integer) IS NULL AND counted)
    GROUP BY server_id, server, engine
)
SELECT server, engine, databases, coalesce(before_mb, size_mb - change_mb) AS before_mb, size_mb, change_mb,
       coalesce(sum(size_mb) FILTER (WHERE before_mb IS NULL) OVER (), 0) AS appeared_mb,
       coalesce(sum(before_mb) FILTER (WHERE size_mb IS NULL) OVER (), 0) AS missing_mb
FROM servers ORDER BY abs(change_mb) DESC NULLS LAST, size_mb DESC, server_id LIMIT :listed
"""
_DECLINES = """
SELECT g.server_id, g.server, g.database, g.size_mb, g.change_mb FROM capacity_growth g
WHERE g.period = :period AND g.window_start = :start AND g.counted AND g.change_mb < 0
  AND (CAST(:key AS text) IS NULL OR coalesce(g.labels ->> CAST(:key AS text), '') = :value)
ORDER BY g.change_mb, g.server_id, g.database LIMIT :listed
"""
_UNUSUAL = """
SELECT g.server_id, g.server, g.database, g.change_mb, usual.mb AS usual_mb
FROM capacity_growth g
CROSS JOIN LATERAL (
    SELECT max(abs(h.size_change_mb)) AS mb, count(h.size_change_mb) AS windows FROM database_size_aggregations h
    WHERE h.period_type = :period AND h.instance_id = g.server_id AND h.database_name = g.database
      AND h.period_start = ANY (CAST(:habit AS date[]))
) AS usual
WHERE g.period = :period AND g.window_start = :start AND g.counted
  AND (g.change_mb >= :least_mb OR g.change_mb <= -:least_mb)
  AND abs(g.change_mb) > CAST(:times AS numeric) * usual.mb AND usual.windows >= :least_windows
  AND (CAST(:key AS text) IS NULL OR coalesce(g.labels ->> CAST(:key AS text), '') = :value)
ORDER BY abs(g.change_mb) DESC, g.size_mb DESC, g.server_id, g.database
"""
# Keys are compared first, which an index has in order; the rest is read of the few databases that differ.
_NEW_AND_GONE = """
WITH differing AS MATERIALIZED (
    SELECT server_id, database, b.database IS NULL AS is_new
    FROM (SELECT server_id, database FROM capacity_growth WHERE period = :period AND window_start = :start) AS n
    FULL JOIN (SELECT server_id, database FROM capacity_growth WHERE period = :period AND window_start = :before) AS b
        USING (server_id, database)
    WHERE n.database IS NULL OR b.database IS NULL
), found AS (
    SELECT d.is_new, g.server_id, g.server, g.database, g.size_mb, g.counted, g.labels
    FROM differing d JOIN capacity_growth g ON g.server_id = d.server_id AND g.database = d.database
    WHERE d.is_new AND g.period = :period AND g.window_start = :start
      AND g.server_id IN (SELECT server_id FROM capacity_growth WHERE period = :period AND window_start = :before)
    UNION ALL
    SELECT d.is_new, g.server_id, g.server, g.database, g.size_mb, g.counted, g.labels
    FROM differing d JOIN capacity_growth g ON g.server_id = d.server_id AND g.database = d.database
    WHERE NOT d.is_new AND g.period = :period AND g.window_start = :before
      AND g.server_id IN (SELECT server_id FROM capacity_growth WHERE period = :period AND window_start = :start)
)
SELECT is_new, server_id, server, database, size_mb FROM found
WHERE counted AND (CAST(:key AS text) IS NULL OR coalesce(labels ->> CAST(:key AS text), '') = :value)
ORDER BY size_mb DESC, server_id, database
"""
# The view is read once, because planning its partitions takes longer than reading it.
_OF_ONE_WINDOW = """
WITH stored AS MATERIALIZED (
    SELECT server_id, server, window_start, databases, size_mb,
           CAST(:key AS text) IS NULL OR coalesce(labels ->> CAST(:key AS text), '') = :value AS is_chosen
    FROM capacity_server_growth
    WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start BETWEEN :before AND :start
      AND counted
)
SELECT s.window_start = :start AS is_new, s.server_id, s.server, s.databases, s.size_mb FROM stored s
WHERE s.is_chosen
  AND NOT EXISTS (SELECT FROM stored o WHERE o.server_id = s.server_id AND o.window_start <> s.window_start)
  AND EXISTS (SELECT FROM stored WHERE window_start = :before)
  AND EXISTS (SELECT FROM stored WHERE window_start = :start)
ORDER BY s.size_mb DESC, s.server_id
"""
_STORED_SPANS = """
SELECT server_id, min(window_start) AS first_start, max(window_start) AS last_start FROM capacity_server_growth
WHERE period = :period AND (:with_derived OR NOT is_derived)
  AND server_id = ANY (CAST(:servers AS integer[])) GROUP BY server_id
"""
_RETIRED = """
SELECT server_id FROM capacity_servers
WHERE NOT is_active AND counted_by IS NULL
  AND (CAST(:key AS text) IS NULL OR coalesce(labels ->> CAST(:key AS text), '') = :value)
"""


LARGEST_SHOWN = 5


@dataclass(frozen=True)
class SizeChange:
    """A database, server or group (`server` is its label) with the change of its mean size, MiB."""

    server: str
    database: str | None
    before_mb: int
    size_mb: int
    change_mb: int


@dataclass(frozen=True)
class WindowSizes:
    """Size of the fleet in one window and its known change, MiB.

    The change is None if no server has a known one; `known_before_mb` is the previous size of servers with a known
    change. `unknown_changes` is the number of rows of the level without a known change; `growers` and `shrinkers` are
    the rows that changed most.
    """

    total_size_mb: int = 0
    total_change_mb: int | None = None
    known_before_mb: int = 0
    unknown_changes: int = 0
    growers: tuple[SizeChange, ...] = ()
    shrinkers: tuple[SizeChange, ...] = ()


def window_sizes(
    engine: sa.Engine, period: Period, level: Level, windows: Sequence[Window], *, largest: int = LARGEST_SHOWN
) -> dict[date, WindowSizes]:
    """Return the sizes of windows at a level by first day; raises DatabaseError."""
    reading = database_errors(doing="reading the largest changes", kept="Computed windows are kept.")
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
            movers = records(SizeChange, connection, _movers(level), **rule, **place, largest=largest)
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
    """Return size, known change and its previous size by window: sums of servers, or of the fleet as a group."""
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

    Changes are those of exact means. If the row of the previous window no longer exists, its mean is derived from the
    change, to within one MiB. Only displayed rows are looked up in the previous window.
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
    """Return the conditions for rows that count: servers that no other server counts, and groups by a label."""
    if level.has_servers:
        return (table.c.instance_id != sa.all_(sa.bindparam("replicas", type_=sa.ARRAY(sa.Integer))),)
    return (table.c.label_key.not_in([FLEET, ENGINE, TOTAL]), table.c.label_value != WITHOUT)
