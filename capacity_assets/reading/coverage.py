"""Measured and missing servers on days and in windows, and databases of a server in windows.

Imported samples may lack databases of a day. The total of the server is then the sum of the others: a drop that never
happened. A database is missing in a window if it exists both before and after it. In the newest window, it is missing
if it existed shortly before, unless the day was collected, because a collection lists every existing database.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import Connection, Row

from capacity_assets.base.periods import YEAR_AND_MONTH_DAYS, Period, Window
from capacity_assets.base.units import IMPOSSIBLE_SIZES
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.reading.access import records, rows
from capacity_assets.reading.windows import newest_day, newest_window, of_windows, today_of

ATTEMPT_DAYS = 7
"""Days in which attempts are searched; each day has one per server."""
SILENT_DAYS = 3
IMPOSSIBLE = "impossible"
"""The failure of a server that was measured and cannot be added up."""


@dataclass(frozen=True)
class MeasuredDay:
    """The number of servers measured on a day, and of those that should have been measured."""

    day: date
    measured: int
    expected: int


def measured_days(connection: Connection, first: date, last: date, server_id: int | None) -> list[MeasuredDay]:
    """Return the counts for each day of a range, of all servers or of one.

    A server is expected from its first sample to its retirement.
    """
    servers = """
        SELECT id, is_active AND deleted_at IS NULL AS is_active, CAST(deleted_at AS date) AS deleted_on FROM instances
        WHERE CAST(:server AS integer) IS NULL OR id = :server"""
    registered = rows(connection, servers, server=server_id)
    first_days = measured_ends(connection, [row.id for row in registered], last, newest=False)
    retired = [row for row in registered if not row.is_active and row.id in first_days]
    # Samples after the range show that a server still existed on its last days.
    last_days = measured_ends(connection, [row.id for row in retired if row.deleted_on is None], date.max, newest=True)
    a_day = timedelta(days=1)
    gone_days = [
        max(row.deleted_on or min(last_days[row.id], last) + a_day, first_days[row.id] + a_day) for row in retired
    ]
    statement = """
        WITH steps AS MATERIALIZED (
            SELECT day, sum(step) AS step FROM (
                SELECT day, 1 AS step FROM unnest(CAST(:first_days AS date[])) AS come (day)
                UNION ALL SELECT day, -1 FROM unnest(CAST(:gone_days AS date[])) AS gone (day)
            ) AS come_and_gone GROUP BY day
        ), measured AS (
            SELECT day, count(DISTINCT server_id) AS servers FROM capacity_server_samples
            WHERE day BETWEEN :first AND :last AND (CAST(:server AS integer) IS NULL OR server_id = :server)
            GROUP BY day
        ), days AS (
            SELECT CAST(d.day AS date) AS day,
                   coalesce((SELECT sum(step) FROM steps WHERE steps.day <= d.day), 0) AS due
            FROM generate_series(CAST(:first AS date), CAST(:last AS date), interval '1 day') AS d (day)
        )
        SELECT d.day, coalesce(m.servers, 0) AS measured, greatest(coalesce(m.servers, 0), d.due) AS expected
        FROM days d LEFT JOIN measured m ON m.day = d.day ORDER BY d.day"""
    expected = {"first_days": list(first_days.values()), "gone_days": gone_days}
    return records(MeasuredDay, connection, statement, first=first, last=last, server=server_id, **expected)


@dataclass(frozen=True)
class MissedDays:
    """Days on which a server in service was not measured, oldest first."""

    server_id: int
    server: str
    days: Sequence[date]


@dataclass(frozen=True)
class Coverage:
    """The coverage of servers in service over some days, of each from its first sample on."""

    percent: Decimal | None
    """Measured days in percent of expected days; None: none was expected."""
    missed: Sequence[MissedDays]
    """The servers with most missed days."""
    missed_servers: int
    """Number of servers with a missed day."""
    days: int = 0
    """Days on which a server was expected."""


def coverage_of(connection: Connection, last: date, days: int, *, shown: int) -> Coverage:
    """Return the coverage of the `days` up to `last`, with at most `shown` servers that missed days."""
    first = last - timedelta(days=days - 1)
    in_service = rows(connection, "SELECT server_id, server FROM capacity_servers WHERE is_active")
    active = {row.server_id: row.server for row in in_service}
    begins = measured_ends(connection, list(active), last, newest=False)
    expected = {server: (last - max(begin, first)).days + 1 for server, begin in begins.items()}
    if not expected:
        return Coverage(None, [], 0)
    statement = """
        SELECT server_id, count(DISTINCT day) AS days FROM capacity_server_samples
        WHERE day BETWEEN :first AND :last GROUP BY server_id"""
    measured = {row.server_id: row.days for row in rows(connection, statement, first=first, last=last)}
    missed = {server: count - measured.get(server, 0) for server, count in expected.items()}
    most = sorted(
        (server for server in missed if missed[server] > 0), key=lambda server: (-missed[server], active[server])
    )
    of_servers = """
        SELECT server_id, day FROM capacity_server_samples
        WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))"""
    listed = rows(connection, of_servers, first=first, last=last, servers=most[:shown])
    there = {(row.server_id, row.day) for row in listed}
    window = [first + timedelta(days=number) for number in range(days)]
    total = sum(expected.values())
    return Coverage(
        (Decimal(100 * (total - sum(missed.values()))) / total).quantize(Decimal("0.1"), ROUND_HALF_UP),
        [
            MissedDays(
                server, active[server], [day for day in window if day >= begins[server] and (server, day) not in there]
            )
            for server in most[:shown]
        ],
        len(most),
        max(expected.values()),
    )


def measured_ends(connection: Connection, servers: Collection[int], until: date, *, newest: bool) -> dict[int, date]:
    """Return the first or the newest day with a total, up to a day, by server; servers without one are left out."""
    by_index = """
        SELECT s.server_id,
               CASE WHEN CAST(:newest AS boolean)
                    THEN (SELECT day FROM capacity_server_samples t
                          WHERE t.server_id = s.server_id AND t.day <= :until ORDER BY t.day DESC LIMIT 1)
                    ELSE (SELECT day FROM capacity_server_samples t
                          WHERE t.server_id = s.server_id AND t.day <= :until ORDER BY t.day LIMIT 1) END AS day
        FROM unnest(CAST(:servers AS integer[])) AS s (server_id)"""
    # On distributed rows, a subquery must not depend on the row of the outer query.
    on_nodes = """
        SELECT server_id, CASE WHEN CAST(:newest AS boolean) THEN max(day) ELSE min(day) END AS day
        FROM capacity_server_samples
        WHERE server_id = ANY (CAST(:servers AS integer[])) AND day <= :until GROUP BY server_id"""
    if not servers:
        return {}
    statement = on_nodes if tables_are_distributed(connection) else by_index
    ends = rows(connection, statement, servers=list(servers), until=until, newest=newest)
    return {row.server_id: row.day for row in ends if row.day}


def newest_measured_days(connection: Connection, servers: Sequence[int], until: date) -> dict[int, date]:
    """Return the newest day with a total up to a day; for servers without totals, with a sample of a database."""
    days = measured_ends(connection, servers, until, newest=True)
    without = sorted(_with_databases(connection, [server for server in servers if server not in days]))
    if without:
        statement = """
            SELECT server_id, max(day) AS day FROM capacity_samples
            WHERE day = ANY (CAST(:days AS date[])) AND server_id = ANY (CAST(:servers AS integer[]))
            GROUP BY server_id"""
        recent = [until - timedelta(days=back) for back in range(YEAR_AND_MONTH_DAYS)]
        days |= {row.server_id: row.day for row in rows(connection, statement, days=recent, servers=without)}
    return days


@dataclass(frozen=True)
class UnmeasuredServer:
    """An active server without a sample on a day; `reason` None: no attempt, or none with a reason."""

    server_id: int
    server: str
    engine: str
    last_day: date | None
    failure: str | None
    reason: str | None
    tried_on: date | None
    """Day of the last attempt to measure it; None: no attempt in the last week."""
    is_registered: bool
    """Whether it was tried from here in the last months; samples of others are imported or come from elsewhere."""


@dataclass(frozen=True)
class UnmeasuredServers:
    """The active servers without a sample on the newest day with a sample or an attempt of any server."""

    day: date | None
    servers: Sequence[UnmeasuredServer]
    has_samples: bool = False
    """Whether any server was ever measured."""


def unmeasured_servers(connection: Connection, today: date) -> UnmeasuredServers:
    """Return the active servers that were not measured on the newest day, most recently measured first."""
    newest_attempt = "SELECT day FROM capacity_attempts WHERE day <= :today ORDER BY day DESC LIMIT 1"
    without_sample = """
        SELECT server_id, server, engine FROM capacity_servers
        WHERE is_active AND server_id NOT IN (SELECT server_id FROM capacity_server_samples WHERE day = :day)
          AND server_id NOT IN (SELECT server_id FROM capacity_samples WHERE day = :day)
        ORDER BY server"""
    sampled = newest_day(connection, today)
    days = [sampled, *(row.day for row in rows(connection, newest_attempt, today=today))]
    day = max(filter(None, days), default=None)
    unmeasured = _with_reasons(connection, rows(connection, without_sample, day=day), day)
    by_day = sorted(unmeasured, key=lambda server: server.last_day or date.min, reverse=True)
    return UnmeasuredServers(day, by_day, sampled is not None)


@dataclass(frozen=True)
class LeftOutServer:
    """A server that is in no group on some days of a window, because its sizes cannot be added up."""

    window_start: date
    server_id: int
    server: str
    engine: str
    left_out_days: int
    days: int
    """Days of the window on which anything was measured."""
    measured_days: int | None
    """Days on which it was measured; None: not known, because it failed in the window."""


def left_out_servers(connection: Connection, period: Period, windows: Sequence[Window]) -> list[LeftOutServer]:
    """Return the servers that are left out of groups, by window and name."""
    left_out = """
        SELECT l.window_start, l.server_id, coalesce(s.server, 'server ' || l.server_id) AS server,
               coalesce(s.engine, 'unknown') AS engine, l.days
        FROM capacity_left_out_servers l LEFT JOIN capacity_servers s ON s.server_id = l.server_id
        WHERE l.period = :period AND l.window_start = ANY (CAST(:starts AS date[]))
        ORDER BY l.window_start, server"""
    measured = """
        SELECT window_start, server_id, measured_days, counted FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start"""
    found = rows(connection, left_out, period=period.name, starts=[window.start for window in windows])
    if not found:
        return []
    starts = sorted({row.window_start for row in found})
    of_servers = rows(connection, measured, **of_windows(period, starts))
    own = {(row.window_start, row.server_id): row.measured_days for row in of_servers}
    best: dict[date, int] = {}
    for row in of_servers:
        if row.counted:
            best[row.window_start] = max(row.measured_days, best.get(row.window_start, 0))
    return [
        LeftOutServer(
            *(row.window_start, row.server_id, row.server, row.engine, row.days),
            days=max(row.days, best.get(row.window_start, 0)),
            measured_days=own.get((row.window_start, row.server_id)),
        )
        for row in found
    ]


def left_out_days(
    connection: Connection, of_servers: Sequence[tuple[int, Window]]
) -> dict[tuple[int, Window], list[date]]:
    """Return the days of windows on which servers are left out, by server and window; known once days are computed."""
    if not of_servers:
        return {}
    statement = """
        SELECT server_id, window_start AS day FROM capacity_left_out_servers
        WHERE period = 'daily' AND window_start BETWEEN :first AND :last
          AND server_id = ANY (CAST(:servers AS integer[])) ORDER BY day"""
    windows = [window for _, window in of_servers]
    ends = {"first": min(window.start for window in windows), "last": max(window.end for window in windows)}
    found = rows(connection, statement, servers=sorted({server_id for server_id, _ in of_servers}), **ends)
    return {
        (server_id, window): [
            row.day for row in found if row.server_id == server_id and window.start <= row.day <= window.end
        ]
        for server_id, window in of_servers
    }


def servers_missing_in(
    connection: Connection, period: Period, window: Window, server_id: int | None = None, *, with_never_measured: bool
) -> list[UnmeasuredServer]:
    """Return the active servers without a row in a window that were measured before, longest unmeasured first.

    `server_id` restricts them to one; `with_never_measured` includes those that were never measured.
    """
    statement = """
        SELECT server_id, server, engine FROM capacity_servers
        WHERE is_active AND (CAST(:server AS integer) IS NULL OR server_id = :server)
          AND server_id NOT IN (
              SELECT server_id FROM capacity_server_growth
              WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start = :start)
        ORDER BY server"""
    without = rows(connection, statement, period=period.name, start=window.start, server=server_id)
    missing = _with_reasons(connection, without, window.end)
    never = [server.server_id for server in missing if server.last_day is None]
    # A server that was measured for the first time after the window is not missing in it.
    later = {*measured_ends(connection, never, date.max, newest=True), *_with_databases(connection, never)}
    missing = [
        server for server in missing if server.last_day or (with_never_measured and server.server_id not in later)
    ]
    if missing:
        left_out = {server.server_id for server in left_out_servers(connection, period, [window])}
        missing = [
            replace(server, failure=IMPOSSIBLE, reason=IMPOSSIBLE_SIZES) if server.server_id in left_out else server
            for server in missing
        ]
    return sorted(missing, key=lambda server: (server.last_day or date.min, server.server))


def _with_reasons(connection: Connection, servers: Sequence[Row[Any]], day: date | None) -> list[UnmeasuredServer]:
    """Return servers with the last day on which each was measured up to a day, and the last attempt in a week."""
    last_attempts = """
        SELECT DISTINCT ON (server_id) server_id, day, failure, reason FROM capacity_attempts
        WHERE server_id = ANY (CAST(:servers AS integer[])) AND day BETWEEN CAST(:day AS date) - :days AND :day
        ORDER BY server_id, day DESC"""
    if not servers:
        return []
    numbers = [row.server_id for row in servers]
    last_days = {} if day is None else newest_measured_days(connection, numbers, day)
    attempts = rows(connection, last_attempts, servers=numbers, day=day, days=ATTEMPT_DAYS)
    of_targets = """
        SELECT DISTINCT server_id FROM capacity_attempts WHERE server_id = ANY (CAST(:servers AS integer[]))"""
    registered = {row.server_id for row in rows(connection, of_targets, servers=numbers)}
    outcomes = {row.server_id: (row.failure, row.reason, row.day) for row in attempts}
    return [
        UnmeasuredServer(
            row.server_id,
            row.server,
            row.engine,
            last_days.get(row.server_id),
            *outcomes.get(row.server_id, (None, None, None)),
            is_registered=row.server_id in registered,
        )
        for row in servers
    ]


@dataclass(frozen=True)
class ServersInService:
    """The number of servers in service, and of those that another server counts."""

    active: int
    counted_by_others: int


def servers_in_service(connection: Connection, server_id: int | None = None) -> ServersInService:
    """Count all active servers, or one."""
    statement = """
        SELECT count(*) AS active, count(counted_by) AS counted_by_others FROM capacity_servers
        WHERE is_active AND (CAST(:server AS integer) IS NULL OR server_id = :server)"""
    return records(ServersInService, connection, statement, server=server_id)[0]


def _with_databases(connection: Connection, servers: Sequence[int]) -> set[int]:
    ends = """
        SELECT (SELECT day FROM capacity_samples ORDER BY day LIMIT 1) AS first_day,
               (SELECT day FROM capacity_samples ORDER BY day DESC LIMIT 1) AS last_day"""
    statement = """
        SELECT DISTINCT server_id FROM capacity_samples
        WHERE day = ANY (CAST(:days AS date[])) AND server_id = ANY (CAST(:servers AS integer[]))"""
    if not servers:
        return set()
    span = rows(connection, ends)[0]
    if span.first_day is None:
        return set()
    # Days are listed, because the key begins with the day.
    days = [span.first_day + timedelta(days=number) for number in range((span.last_day - span.first_day).days + 1)]
    return {row.server_id for row in rows(connection, statement, days=days, servers=servers)}


@dataclass(frozen=True)
class SilentServer:
    """A server that was last measured on `last_day`, and not since."""

    server_id: int
    server: str
    last_day: date


def silent_servers(connection: Connection, window: Window, label: tuple[str, str] | None = None) -> list[SilentServer]:
    """Return the active servers with this label whose measurements stopped in a window, by name.

    Those that stopped in the last days of a window belong to the next one. An open window counts up to today. Only
    servers with totals are considered; servers known only by their databases are not.
    """
    statement = """
        WITH newest AS MATERIALIZED (
            SELECT day FROM capacity_server_samples WHERE day <= :today ORDER BY day DESC LIMIT 1
        ), seen AS MATERIALIZED (
            SELECT server_id, max(day) AS last_day FROM capacity_server_samples
            WHERE day BETWEEN CAST(:first AS date) - :days AND :end AND day <= :today GROUP BY server_id
        ), labelled AS (
            SELECT instance_id FROM capacity_label_spans
            WHERE key = :key AND value = :value AND database_pattern = '' AND valid_from <= :end AND :end < valid_until
        )
        SELECT s.server_id, s.server, seen.last_day FROM seen JOIN capacity_servers s ON s.server_id = seen.server_id
        WHERE s.is_active AND seen.last_day <= (SELECT least(CAST(:end AS date), day) - :days FROM newest)
          AND (CAST(:key AS text) IS NULL OR s.server_id IN (SELECT instance_id FROM labelled))
        ORDER BY s.server"""
    key, value = label or (None, None)
    days = {"first": window.start, "end": window.end, "today": today_of(connection), "days": SILENT_DAYS}
    return records(SilentServer, connection, statement, **days, key=key, value=value)


@dataclass(frozen=True)
class LateSamples:
    """Number of samples of a server that were added, and that were corrected, since a moment."""

    server: str
    added: int
    corrected: int


def late_samples(
    connection: Connection, first: date, last: date, since: datetime, server_id: int | None
) -> list[LateSamples]:
    """Return the servers, or one, with samples of a range of days that were added or corrected since a moment."""
    # A total that was voided since counts as corrected.
    statement = """
        SELECT coalesce(i.name, 'server ' || s.instance_id) AS server,
               count(*) FILTER (WHERE s.created_at > :since) AS added,
               count(*) FILTER (WHERE s.created_at <= :since) AS corrected
        FROM (
            SELECT instance_id, created_at, updated_at FROM database_size_stats
            WHERE collected_date BETWEEN :first AND :last AND (created_at > :since OR updated_at > :since)
              AND (CAST(:server AS integer) IS NULL OR instance_id = :server)
            UNION ALL
            SELECT instance_id, created_at, updated_at FROM instance_size_stats
            WHERE collected_date BETWEEN :first AND :last AND (created_at > :since OR updated_at > :since)
              AND (CAST(:server AS integer) IS NULL OR instance_id = :server)
        ) AS s LEFT JOIN instances i ON i.id = s.instance_id
        GROUP BY 1 ORDER BY 1"""
    return records(LateSamples, connection, statement, first=first, last=last, since=since, server=server_id)


WINDOWS_AROUND, NEWEST_WINDOWS = 14, 3
"""Windows before and after in which a database is searched; for the newest window, windows before."""


NOTICEABLE = 0.995
"""A window of the fleet is checked for missing databases if it is below this share of its neighbours."""
LEAST_SHARE = 0.9
"""A database with a smaller share of its server's measured days is missing in a window of several days."""
MOST_DATABASES = 2_000
"""Servers with more databases are not checked for that, because all of their rows would be read."""


@dataclass(frozen=True)
class _Suspect:
    """A window of a server with fewer databases than in `before` and `after` (None: there is none yet)."""

    server_id: int
    start: date
    before: date
    after: date | None


def windows_with_holes(
    connection: Connection,
    period: Period,
    counts: Mapping[int, Mapping[date, int]],
    newest: date,
    shown: Collection[date] | None = None,
) -> dict[tuple[int, date], date]:
    """Return the servers and windows in which databases are missing, each with an earlier window that has them.

    `counts` are the numbers of databases by server and window, `newest` is the newest window of the period. With
    `shown`, only these windows are checked.
    """
    suspects = [
        suspect
        for server, of_server in counts.items()
        for suspect in _suspects(period, server, of_server, newest)
        if shown is None or suspect.start in shown
    ]
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
    collected = _collected_days(connection, [suspect for suspect in suspects if suspect.after is None])
    unconfirmed = [
        suspect
        for suspect in suspects
        if suspect.after is not None or (suspect.server_id, suspect.start) not in collected
    ]
    holes = rows(
        connection,
        statement,
        period=period.name,
        servers=[suspect.server_id for suspect in unconfirmed],
        starts=[suspect.start for suspect in unconfirmed],
        befores=[suspect.before for suspect in unconfirmed],
        afters=[suspect.after for suspect in unconfirmed],
    )
    return {(row.server_id, row.start): row.before for row in holes}


def _suspects(period: Period, server_id: int, counts: Mapping[date, int], newest: date) -> list[_Suspect]:
    starts = sorted(counts)
    suspects = []
    for place, start in enumerate(starts):
        earlier, later = starts[max(place - WINDOWS_AROUND, 0) : place], starts[place + 1 : place + 1 + WINDOWS_AROUND]
        before = next((day for day in reversed(earlier) if counts[day] > counts[start]), None)
        after = next((day for day in later if counts[day] > counts[start]), None)
        # Missing databases may appear again within some days.
        is_newest = period.days == 1 and before is not None and (newest - before).days <= NEWEST_WINDOWS
        if before is not None and (after is not None or is_newest):
            suspects.append(_Suspect(server_id, start, before, after))
    return suspects


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
    short = rows(
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
    return {row.start for row in short}


def _collected_days(connection: Connection, suspects: Sequence[_Suspect]) -> set[tuple[int, date]]:
    if not suspects:
        return set()
    statement = """
        SELECT server_id, day FROM capacity_attempts
        WHERE status = 'collected' AND day = ANY (CAST(:days AS date[]))
          AND server_id = ANY (CAST(:servers AS integer[]))"""
    days, servers = [suspect.start for suspect in suspects], [suspect.server_id for suspect in suspects]
    return {(row.server_id, row.day) for row in rows(connection, statement, days=days, servers=servers)}


def partial_servers(
    connection: Connection, period: Period, window: Window, servers: Sequence[int]
) -> set[tuple[int, date]]:
    """Return which of some servers lack databases in a window and in the previous one, each with the first day.

    Databases that were measured on few days of a window are not looked for: for 50 servers of 200 databases each, this
    takes 200 ms.
    """
    previous = period.previous(window)
    around = period.back(previous, WINDOWS_AROUND + 1)
    for _ in range(WINDOWS_AROUND + 1):
        around.append(period.following(around[-1]))
    counts = counts_of_databases(connection, period, [one.start for one in around], servers)
    newest = newest_window(connection, period) or window
    return {*windows_with_holes(connection, period, counts, newest.start, (previous.start, window.start))}


def counts_of_databases(
    connection: Connection, period: Period, starts: Sequence[date], servers: Sequence[int] | None
) -> dict[int, dict[date, int]]:
    """Return the numbers of databases in some windows by server and first day, of these servers or all that count."""
    statement = """
        SELECT server_id, window_start, databases FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived)
          AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND databases IS NOT NULL
          AND (server_id = ANY (CAST(:servers AS integer[])) OR CAST(:servers AS integer[]) IS NULL AND counted)"""
    parameters = {**of_windows(period, starts), "servers": None if servers is None else list(servers)}
    counts: dict[int, dict[date, int]] = {}
    for row in rows(connection, statement, **parameters):
        counts.setdefault(row.server_id, {})[row.window_start] = row.databases
    return counts


def measured_before(connection: Connection, period: Period, first: Window) -> dict[int, date]:
    """Return the servers without a row in a window that were measured before it, each with its newest day until then.

    Servers that another server counts are left out.
    """
    statement = """
        SELECT server_id FROM capacity_servers
        WHERE counted_by IS NULL AND server_id NOT IN (
            SELECT server_id FROM capacity_server_growth
            WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start = :start)"""
    without = [row.server_id for row in rows(connection, statement, period=period.name, start=first.start)]
    return newest_measured_days(connection, without, first.start - timedelta(days=1))


def incomplete_windows(connection: Connection, period: Period, first: date) -> set[date]:
    """Return the windows in which a server is missing that was measured before, and is in service or came back."""
    # Servers in service are expected from their first window on, others up to their last.
    statement = """
        WITH shown AS (
            SELECT server_id, window_start FROM capacity_server_growth
            WHERE period = :period AND (:with_derived OR NOT is_derived)
              AND window_start >= :first AND counted
        ), expected AS (
            SELECT server_id, window_start AS first_start, window_start AS last_start FROM shown
            UNION ALL
            SELECT before.server_id, CAST(:first AS date), CAST(NULL AS date)
            FROM unnest(CAST(:before AS integer[])) AS before (server_id)
        ), spans AS (
            SELECT min(e.first_start) AS first_start,
                   CASE WHEN bool_or(s.is_active) THEN CAST('infinity' AS date) ELSE max(e.last_start) END
                       AS last_start
            FROM expected e LEFT JOIN capacity_servers s ON s.server_id = e.server_id GROUP BY e.server_id
        )
        SELECT w.window_start FROM (SELECT window_start, count(*) AS servers FROM shown GROUP BY window_start) AS w
        WHERE w.servers < (SELECT count(*) FROM spans s
                           WHERE s.first_start <= w.window_start AND s.last_start >= w.window_start)"""
    before = list(measured_before(connection, period, period.window_of(first)))
    return {row.window_start for row in rows(connection, statement, period=period.name, first=first, before=before)}
