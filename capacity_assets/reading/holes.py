"""Windows that are not whole: a server was measured, but some of its databases were not.

Imported samples may lack databases of a day, and the total of the server is then the sum of the others: a drop that
never happened. A database is missing in a window if it is there both before and after it. In the newest window it is
missing if it was there shortly before, unless the day was collected: a collection lists every database there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection

from capacity_assets.base.periods import Period, Window
from capacity_assets.reading.access import rows

WINDOWS_AROUND, NEWEST_WINDOWS = 14, 3
"""A database is looked for in so many windows before and after; for the newest window, in so many before."""


NOTICEABLE = 0.995
"""A window of the fleet is looked at for missing databases if it is below this share of those before and after."""
LEAST_SHARE = 0.9
"""A database with a smaller share of its server's measured days is missing in a window of several days."""
MOST_DATABASES = 2_000
"""Servers with more databases are not looked at for such windows, because every row of every window would be read."""


@dataclass(frozen=True)
class _Suspect:
    """A window of a server with fewer databases than `before`, and than `after` (None: there is none yet)."""

    server_id: int
    start: date
    before: date
    after: date | None


def windows_with_holes(
    connection: Connection, period: Period, counts: Mapping[int, Mapping[date, int]], newest: date
) -> dict[tuple[int, date], date]:
    """Return the servers and windows in which databases are missing, each with a window before in which they are not.

    `counts` are the numbers of databases by server and window, and `newest` is the newest window of the period, which
    they need not reach.
    """
    suspects = [one for server, of_server in counts.items() for one in _suspects(period, server, of_server, newest)]
    if not suspects:
        return {}
    statement = """
        SELECT DISTINCT k.server_id, k.start, k.before
        FROM unnest(CAST(:servers AS integer[]), CAST(:starts AS date[]), CAST(:befores AS date[]),
                    CAST(:afters AS date[])) AS k (server_id, start, before, after)
        JOIN capacity_growth b ON b.period = :period AND b.window_start = k.before AND b.server_id = k.server_id
        LEFT JOIN capacity_growth n ON n.period = :period AND n.window_start = k.start
            AND n.server_id = b.server_id AND n.database = b.database
        LEFT JOIN capacity_growth a ON a.period = :period AND a.window_start = k.after
            AND a.server_id = b.server_id AND a.database = b.database
        WHERE n.database IS NULL AND (k.after IS NULL OR a.database IS NOT NULL)"""
    collected = _collected(connection, [one for one in suspects if one.after is None])
    asked = [one for one in suspects if one.after is not None or (one.server_id, one.start) not in collected]
    found = rows(
        connection,
        statement,
        period=period.name,
        servers=[one.server_id for one in asked],
        starts=[one.start for one in asked],
        befores=[one.before for one in asked],
        afters=[one.after for one in asked],
    )
    return {(row.server_id, row.start): row.before for row in found}


def _suspects(period: Period, server_id: int, counts: Mapping[date, int], newest: date) -> list[_Suspect]:
    starts = sorted(counts)
    found = []
    for place, start in enumerate(starts):
        earlier, later = starts[max(place - WINDOWS_AROUND, 0) : place], starts[place + 1 : place + 1 + WINDOWS_AROUND]
        before = next((one for one in reversed(earlier) if counts[one] > counts[start]), None)
        after = next((one for one in later if counts[one] > counts[start]), None)
        # Databases that are gone may yet come back within some days.
        is_newest = period.days == 1 and before is not None and (newest - before).days <= NEWEST_WINDOWS
        if before is not None and (after is not None or is_newest):
            found.append(_Suspect(server_id, start, before, after))
    return found


def windows_with_short_databases(
    connection: Connection, period: Period, server_id: int, days: Mapping[date, int], most_databases: int
) -> set[date]:
    """Return the windows of several days in which a database was measured on far fewer days than its server.

    `days` are the measured days of the server by window; `most_databases` is the largest number of its databases.
    """
    starts = sorted(days)
    if period.days == 1 or most_databases > MOST_DATABASES or len(starts) < 3:  # noqa: PLR2004 -- before, in, after
        return set()
    statement = """
        SELECT DISTINCT k.start
        FROM unnest(CAST(:starts AS date[]), CAST(:befores AS date[]), CAST(:afters AS date[]),
                    CAST(:days AS integer[])) AS k (start, before, after, days)
        JOIN capacity_growth n ON n.period = :period AND n.window_start = k.start AND n.server_id = :server
            AND n.measured_days < :share * k.days
        JOIN capacity_growth b ON b.period = :period AND b.window_start = k.before AND b.server_id = :server
            AND b.database = n.database
        JOIN capacity_growth a ON a.period = :period AND a.window_start = k.after AND a.server_id = :server
            AND a.database = n.database"""
    found = rows(
        connection,
        statement,
        period=period.name,
        server=server_id,
        share=LEAST_SHARE,
        starts=starts[1:-1],
        befores=starts[:-2],
        afters=starts[2:],
        days=[days[start] for start in starts[1:-1]],
    )
    return {row.start for row in found}


def _collected(connection: Connection, suspects: Sequence[_Suspect]) -> set[tuple[int, date]]:
    """Return the servers and days that were collected, of suspects."""
    if not suspects:
        return set()
    statement = """
        SELECT server_id, day FROM capacity_attempts
        WHERE status = 'collected' AND day = ANY (CAST(:days AS date[]))
          AND server_id = ANY (CAST(:servers AS integer[]))"""
    days, servers = [one.start for one in suspects], [one.server_id for one in suspects]
    return {(row.server_id, row.day) for row in rows(connection, statement, days=days, servers=servers)}


def partial_servers(connection: Connection, period: Period, window: Window, servers: Sequence[int]) -> set[int]:
    """Return which of some servers lack databases in a window; the newest one is the newest that any of them has."""
    windows = period.back(window, NEWEST_WINDOWS + 1)
    for _ in range(NEWEST_WINDOWS):
        windows.append(period.following(windows[-1]))
    counts = counts_of_databases(connection, period, [one.start for one in windows], servers)
    newest = max((start for of_server in counts.values() for start in of_server), default=window.start)
    holes = windows_with_holes(connection, period, counts, newest)
    return {server for server, start in holes if start == window.start}


def counts_of_databases(
    connection: Connection, period: Period, starts: Sequence[date], servers: Sequence[int] | None
) -> dict[int, dict[date, int]]:
    """Return how many databases servers, or all that count, have in some windows, by server and first day."""
    statement = """
        SELECT server_id, window_start, databases FROM capacity_server_growth
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND databases IS NOT NULL
          AND (server_id = ANY (CAST(:servers AS integer[])) OR CAST(:servers AS integer[]) IS NULL AND counted)"""
    asked = {"period": period.name, "starts": list(starts), "servers": None if servers is None else list(servers)}
    counts: dict[int, dict[date, int]] = {}
    for row in rows(connection, statement, **asked):
        counts.setdefault(row.server_id, {})[row.window_start] = row.databases
    return counts


def incomplete_windows(connection: Connection, period: Period, first: date) -> set[date]:
    """Return the windows in which a server is missing that was measured before, and is in service or came back."""
    # A server in service is expected from its first window shown on, another one to its last.
    statement = """
        WITH shown AS (
            SELECT server_id, window_start FROM capacity_server_growth
            WHERE period = :period AND window_start >= :first AND counted
        ), spans AS (
            SELECT min(z.window_start) AS first_start,
                   CASE WHEN bool_or(s.is_active) THEN CAST('infinity' AS date) ELSE max(z.window_start) END
                       AS last_start
            FROM shown z LEFT JOIN capacity_servers s ON s.server_id = z.server_id GROUP BY z.server_id
        )
        SELECT w.window_start FROM (SELECT window_start, count(*) AS servers FROM shown GROUP BY window_start) AS w
        WHERE w.servers < (SELECT count(*) FROM spans s
                           WHERE s.first_start <= w.window_start AND s.last_start >= w.window_start)"""
    return {row.window_start for row in rows(connection, statement, period=period.name, first=first)}
