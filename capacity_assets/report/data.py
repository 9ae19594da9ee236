"""The numbers of the report: read from the stored aggregates and the samples, never recomputed.

Totals are sums of the servers' figures, as in the view `capacity_fleet`, and everything adds up in whole MiB. A
database counts with its share of the server's measured days, so renaming a database, or a copy that existed for a day,
changes no total. A database is *new* or *gone* only if its server was measured in both windows; one whose server was
not is *not comparable*, because it is unknown. How it looks is in `charts` and `page`, issues of a page are in
`issues`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.engine import TODAY
from capacity_assets.database.sql import SERVER_SIZES, TIES, possible
from capacity_assets.database.tables import active_condition
from capacity_assets.forecast.issued import IssuedDay, newest_issue, with_histories
from capacity_assets.ownership.groups import Group, fills_first, groups_of

WINDOWS_SHOWN = 13
LONGEST_IN_A_FILE_NAME = 50


class ChangeKind(StrEnum):
    """How a database changed from one window to the next."""

    GROWN = "grown"
    SHRUNK = "shrunk"
    SAME = "same"
    PARTLY = "partly"
    """There on a part of its server's measured days, in one of the windows or in both."""
    NEW = "new"
    GONE = "gone"
    APPEARED = "appeared"
    """Its server has no row in the window before."""
    MISSING = "missing"
    """Its server has no row in this window."""


NOT_COMPARABLE = (ChangeKind.APPEARED, ChangeKind.MISSING)
"""What became of these is not known, so it is neither growth nor shrinkage."""

OTHER = "other"
"""What the servers' totals changed by beyond their databases: rounding, and days on which the two levels disagree."""

ROUNDING_MB = 2
"""So much may get lost per database and window: its mean is rounded down, and so are the samples it is made of."""


@dataclass(frozen=True)
class Change:
    """What all databases of one kind add up to, MiB; each counts with its share of its server's days."""

    databases: int = 0
    before_mb: int = 0
    size_mb: int = 0
    change_mb: int = 0


@dataclass(frozen=True)
class Database:
    """One database in the two windows; a mean size is None where it has no row.

    `change_mb` is what it added to its server's total: the stored change, or where it was there on a part of the days
    only, the difference of its shares. `days` are those on which it was there, of those of its server.
    """

    server: str
    name: str
    before_mb: int | None
    size_mb: int | None
    change_mb: int
    days_before: str = ""
    days: str = ""


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
class Totals:
    """Sums of the servers' figures, MiB: the ends of the waterfall, and what is known of the way between.

    `known_*` are of servers measured in both windows; the change is None where there is none of these.
    """

    start_mb: int = 0
    end_mb: int = 0
    known_change_mb: int | None = None
    known_before_mb: int = 0
    appeared_mb: int = 0
    missing_mb: int = 0
    databases: int = 0
    servers_before: int = 0
    servers: int = 0


@dataclass(frozen=True)
class Bar:
    """One series' size in one window: an engine of the fleet, or a database of the server, MiB."""

    window_start: date
    series: str
    size_mb: int


@dataclass(frozen=True)
class Report:
    """One window of the fleet, or of `server` alone."""

    period: Period
    window: Window
    server: str | None
    totals: Totals
    changes: Mapping[ChangeKind, Change]
    databases: Mapping[ChangeKind, Sequence[Database]]
    servers: Sequence[ServerChange]
    history: Sequence[Bar]
    measured_servers: Mapping[date, int]
    expected_servers: Mapping[date, int]
    active_servers: int
    counted_by_others: int
    unmeasured_servers: Sequence[str]
    never_measured_servers: Sequence[str]
    read_at: datetime
    computed_at: datetime | None
    first_sample: date | None
    last_sample: date | None
    today: date | None = None
    runways: IssuedDay | None = None
    grouped_by: str | None = None
    groups: Sequence[Group] = ()
    """Groups of the window; none where it is of one server, or nothing has such a label."""

    @property
    def grouped_mb(self) -> int:
        """What the groups add up to."""
        return sum(group.size_mb for group in self.groups)

    @property
    def before(self) -> Window:
        """The window it is compared with."""
        return self.period.previous(self.window)

    @property
    def start_mb(self) -> int:
        """Size in the window before."""
        return self.totals.start_mb

    @property
    def end_mb(self) -> int:
        """Size in this window."""
        return self.totals.end_mb

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """What leads from start to end, in this order: start + all of these = end, exactly."""
        compared = (ChangeKind.GROWN, ChangeKind.SHRUNK, ChangeKind.PARTLY, ChangeKind.NEW, ChangeKind.GONE)
        steps: list[tuple[str, int]] = [(kind.value, self.changes[kind].change_mb) for kind in compared]
        steps += [
            (ChangeKind.APPEARED.value, self.totals.appeared_mb),
            (ChangeKind.MISSING.value, -self.totals.missing_mb),
        ]
        return (*steps, (OTHER, self.end_mb - self.start_mb - sum(change for _, change in steps)))

    @property
    def other_mb(self) -> int:
        """The last step."""
        return self.steps[-1][1]

    @property
    def levels_disagree(self) -> bool:
        """Whether the last step is more than rounding."""
        databases = sum(change.databases for change in self.changes.values())
        return abs(self.other_mb) > databases * 2 * ROUNDING_MB

    @property
    def known_change_mb(self) -> int | None:
        """Change of the servers measured in both windows; None where there is none of these."""
        return self.totals.known_change_mb

    @property
    def has_before(self) -> bool:
        """Whether anything was measured in the window before."""
        return self.totals.servers_before > 0

    @property
    def not_comparable_databases(self) -> int:
        """Databases of servers that were measured in one of the two windows only."""
        return sum(self.changes[kind].databases for kind in NOT_COMPARABLE)

    @property
    def days(self) -> tuple[date, ...]:
        """The days of the two windows that can be known: from the oldest total of a server there is to the newest."""
        if self.first_sample is None or self.last_sample is None:
            return ()
        first, last = max(self.before.start, self.first_sample), min(self.window.end, self.last_sample)
        return tuple(first + timedelta(days=n) for n in range((last - first).days + 1))

    @property
    def is_open(self) -> bool:
        """Whether the window is not over, or its last days were not measured."""
        over = self.today is None or self.window.end < self.today
        return not over or self.last_sample is None or self.last_sample < self.window.end

    @property
    def unmeasured_days(self) -> tuple[date, ...]:
        """Days on which no server was measured."""
        return tuple(day for day in self.days if not self.measured_servers.get(day))

    @property
    def partly_measured_days(self) -> tuple[tuple[date, int], ...]:
        """Days on which some, but not all servers were measured that should have been, and how many were."""
        counts = ((day, self.measured_servers.get(day, 0)) for day in self.days)
        return tuple((day, count) for day, count in counts if 0 < count < self.expected_servers.get(day, 0))

    @property
    def is_empty(self) -> bool:
        """Whether neither window has a row."""
        return not (self.totals.servers or self.totals.servers_before)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the history, oldest first, from the first one with rows on."""
        oldest = min((bar.window_start for bar in self.history), default=self.window.start)
        shown = self.period.back(self.window, WINDOWS_SHOWN)
        return tuple(window for window in shown if window.start >= oldest)


def file_name(period: Period, window: Window, server: str | None = None) -> str:
    """Name the file of a report: its period and window, and the server if it is of one."""
    return f"growth-{period.name}-{window.key}{'' if server is None else f'-{_in_a_file_name(server)}'}.html"


def _in_a_file_name(server: str) -> str:
    """The name itself if it is a possible one; else its possible characters, made unique by a hash."""
    plain = re.sub(r"[^\w.-]+", "_", server)[:LONGEST_IN_A_FILE_NAME]
    return plain if plain == server else f"{plain}-{hashlib.sha256(server.encode()).hexdigest()[:8]}"


# All rows of one server, or of every server that is not counted by another one.
_OF_SERVER = """(a.instance_id = :server OR (CAST(:server AS integer) IS NULL
       AND a.instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))))"""

# One row per server and window of `starts`: its size and the number of measured days.
SERVER_WINDOWS = f"""
database_windows AS MATERIALIZED (
    SELECT instance_id, database_name, period_start, avg_size_mb, data_count, size_change_mb
    FROM database_size_aggregations a
    WHERE {possible("avg_size_mb", "size_change_mb")} AND period_type = :period
      AND period_start BETWEEN :oldest AND :start
      AND period_start = ANY (CAST(:starts AS date[])) AND {{of_server}}
), server_windows AS MATERIALIZED (
    SELECT instance_id, period_start, data_count AS days, total_size_mb AS size_mb, total_size_change_mb AS change_mb,
           database_count AS databases
    FROM {SERVER_SIZES} a
    WHERE period_type = :period AND period_start BETWEEN :oldest AND :start
      AND period_start = ANY (CAST(:starts AS date[])) AND {{of_server}}
)"""  # noqa: S608 -- constants of this module
_SERVER_WINDOWS = SERVER_WINDOWS.format(of_server=_OF_SERVER)

# Both windows side by side, a row per server.
_SERVERS = f"""
WITH {_SERVER_WINDOWS},
servers AS MATERIALIZED (
    SELECT instance_id, n.size_mb, n.days, n.databases, e.size_mb AS before_mb, e.days AS days_before,
           e.databases AS databases_before, n.change_mb
    FROM (SELECT * FROM server_windows WHERE period_start = :start) AS n
    FULL JOIN (SELECT * FROM server_windows WHERE period_start = :before) AS e USING (instance_id)
)"""  # noqa: S608 -- a constant of this module

# And a row per database. The change of one that was there on every measured day of its server is the stored one.
PAIRED = f"""{_SERVERS},
paired AS (
    SELECT instance_id, database_name AS name, e.avg_size_mb AS before_mb, n.avg_size_mb AS size_mb,
           e.data_count AS before_count, n.data_count AS now_count, greatest(n.data_count, s.days) AS days,
           greatest(e.data_count, s.days_before) AS days_before,
           e.avg_size_mb * CAST(e.data_count AS numeric) / greatest(e.data_count, s.days_before) AS part_before_mb,
           n.avg_size_mb * CAST(n.data_count AS numeric) / greatest(n.data_count, s.days) AS part_mb,
           coalesce(n.size_change_mb, n.avg_size_mb - e.avg_size_mb) AS change_mb,
           CASE WHEN s.before_mb IS NULL THEN 'appeared'
                WHEN s.size_mb IS NULL THEN 'missing'
                WHEN e.avg_size_mb IS NULL THEN 'new'
                WHEN n.avg_size_mb IS NULL THEN 'gone'
                WHEN n.data_count < s.days OR e.data_count < s.days_before THEN 'partly'
                WHEN coalesce(n.size_change_mb, n.avg_size_mb - e.avg_size_mb) > 0 THEN 'grown'
                WHEN coalesce(n.size_change_mb, n.avg_size_mb - e.avg_size_mb) < 0 THEN 'shrunk'
                ELSE 'same' END AS kind
    FROM (SELECT * FROM database_windows WHERE period_start = :start) AS n
    FULL JOIN (SELECT * FROM database_windows WHERE period_start = :before) AS e USING (instance_id, database_name)
    JOIN servers s USING (instance_id)
)
"""  # noqa: S608 -- constants of this module

CHANGES = f"""{PAIRED}
SELECT kind, count(*) AS databases, round(coalesce(sum(part_before_mb), 0)) AS before_mb,
       round(coalesce(sum(part_mb), 0)) AS size_mb,
       CASE WHEN kind IN ('grown', 'shrunk', 'same') THEN sum(change_mb)
            ELSE round(coalesce(sum(part_mb), 0) - coalesce(sum(part_before_mb), 0)) END AS change_mb
FROM paired GROUP BY kind
"""  # noqa: S608 -- a constant of this module

LISTED = f"""{PAIRED}
SELECT kind, coalesce(i.name, 'server ' || instance_id) AS server, ranked.name, before_mb, size_mb, moved_mb,
       before_count, now_count, days, days_before
FROM (
    SELECT *, row_number() OVER (
               PARTITION BY kind ORDER BY abs(moved_mb) DESC, {TIES}
           ) AS place
    FROM (
        SELECT *, instance_id AS server_id, name AS database,
               CASE WHEN kind IN ('grown', 'shrunk', 'same') THEN change_mb
                       ELSE round(coalesce(part_mb, 0) - coalesce(part_before_mb, 0)) END AS moved_mb
        FROM paired
    ) AS moved
) AS ranked LEFT JOIN instances i ON i.id = instance_id
WHERE place <= :listed AND kind <> 'same' OR :server IS NOT NULL
ORDER BY kind, place
"""  # noqa: S608 -- a constant of this module

# What the headline and the ends of the waterfall say.
TOTALS = f"""{_SERVERS}
SELECT coalesce(sum(before_mb), 0) AS start_mb, coalesce(sum(size_mb), 0) AS end_mb,
       sum(change_mb) AS known_change_mb, coalesce(sum(size_mb - change_mb), 0) AS known_before_mb,
       coalesce(sum(size_mb) FILTER (WHERE before_mb IS NULL), 0) AS appeared_mb,
       coalesce(sum(before_mb) FILTER (WHERE size_mb IS NULL), 0) AS missing_mb,
       coalesce(sum(databases), 0) AS databases,
       count(before_mb) AS servers_before, count(size_mb) AS servers
FROM servers
"""  # noqa: S608 -- a constant of this module

SERVERS = f"""{_SERVERS}
SELECT coalesce(i.name, 'server ' || instance_id) AS name, coalesce(i.db_type, 'unknown') AS engine,
       databases, coalesce(before_mb, size_mb - change_mb) AS before_mb, size_mb, change_mb
FROM servers LEFT JOIN instances i ON i.id = instance_id
WHERE change_mb IS NOT NULL
ORDER BY abs(change_mb) DESC, size_mb DESC, instance_id LIMIT :servers_listed
"""  # noqa: S608 -- a constant of this module

HISTORY = f"""
WITH {_SERVER_WINDOWS}
SELECT s.period_start AS window_start, coalesce(i.db_type, 'unknown') AS series, sum(s.size_mb) AS size_mb
FROM server_windows s LEFT JOIN instances i ON i.id = s.instance_id
WHERE CAST(:server AS integer) IS NULL GROUP BY 1, 2
UNION ALL
SELECT d.period_start, d.database_name,
       round(d.avg_size_mb * CAST(d.data_count AS numeric) / greatest(d.data_count, s.days))
FROM database_windows d JOIN server_windows s USING (instance_id, period_start)
WHERE CAST(:server AS integer) IS NOT NULL
ORDER BY 1, 2
"""  # noqa: S608 -- a constant of this module

# A server is expected from its first sample to its retirement: one that was registered since is not missing before.
_FIRST_AND_LAST = """instances i CROSS JOIN LATERAL (
        SELECT min(s.collected_date) AS first_day, max(s.collected_date) AS last_day FROM instance_size_stats s
        WHERE s.instance_id = i.id AND NOT s.is_deleted
    ) AS f"""
# Where rows are distributed, a subquery must not depend on the row of the outer query.
_ENDS_ON_NODES = """(
        SELECT instance_id, min(collected_date) AS first_day, max(collected_date) AS last_day FROM instance_size_stats
        WHERE NOT is_deleted GROUP BY instance_id
    ) AS f"""
_MEASURED = f"""
WITH spans AS (
    SELECT f.first_day, CASE WHEN {active_condition("i")} THEN NULL
                             ELSE coalesce(CAST(i.deleted_at AS date) - 1, f.last_day) END AS last_day
    FROM {{first_and_last}}
    WHERE f.first_day IS NOT NULL AND (CAST(:server AS integer) IS NULL OR i.id = :server)
), steps AS (
    SELECT day, sum(step) AS step FROM (
        SELECT first_day AS day, 1 AS step FROM spans
        UNION ALL SELECT greatest(last_day, first_day) + 1, -1 FROM spans WHERE last_day IS NOT NULL
    ) AS both_ends GROUP BY day
), measured AS (
    SELECT collected_date AS day, count(DISTINCT s.instance_id) AS servers FROM instance_size_stats s
    WHERE collected_date BETWEEN :before AND :end AND NOT s.is_deleted
      AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)
    GROUP BY 1
)
SELECT CAST(d.day AS date) AS day, coalesce(m.servers, 0) AS measured,
       greatest(coalesce(m.servers, 0), coalesce((SELECT sum(step) FROM steps WHERE steps.day <= d.day), 0)) AS expected
FROM generate_series(CAST(:before AS date), CAST(:end AS date), interval '1 day') AS d (day)
LEFT JOIN measured m ON m.day = CAST(d.day AS date) ORDER BY 1
"""  # noqa: S608 -- a constant condition
MEASURED = _MEASURED.format(first_and_last=_FIRST_AND_LAST)
MEASURED_ON_NODES = _MEASURED.format(first_and_last=f"instances i JOIN {_ENDS_ON_NODES} ON f.instance_id = i.id")

UNMEASURED = f"""
SELECT i.name, NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = i.id AND NOT s.is_deleted)
               AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = i.id) AS never_measured
FROM instances i
WHERE {active_condition("i")}
  AND (CAST(:server AS integer) IS NULL OR i.id = :server)
  AND NOT EXISTS (SELECT FROM database_size_aggregations a
                  WHERE a.instance_id = i.id AND a.period_type = :period AND a.period_start = :start)
  AND NOT EXISTS (SELECT FROM instance_size_aggregations a
                  WHERE a.instance_id = i.id AND a.period_type = :period AND a.period_start = :start)
  -- Nobody expects a server before its first sample.
  AND NOT EXISTS (SELECT FROM instance_size_stats s
                  WHERE s.instance_id = i.id AND NOT s.is_deleted HAVING min(s.collected_date) > :end)
ORDER BY i.name
"""  # noqa: S608 -- a constant condition

UNMEASURED_ON_NODES = f"""
SELECT i.name, f.instance_id IS NULL AND d.instance_id IS NULL AS never_measured
FROM instances i
LEFT JOIN {_ENDS_ON_NODES} ON f.instance_id = i.id
LEFT JOIN (SELECT DISTINCT instance_id FROM database_size_stats) AS d ON d.instance_id = i.id
WHERE {active_condition("i")}
  AND (CAST(:server AS integer) IS NULL OR i.id = :server)
  AND i.id NOT IN (SELECT a.instance_id FROM database_size_aggregations a
                   WHERE a.period_type = :period AND a.period_start = :start)
  AND i.id NOT IN (SELECT a.instance_id FROM instance_size_aggregations a
                   WHERE a.period_type = :period AND a.period_start = :start)
  AND (f.first_day IS NULL OR f.first_day <= :end)
ORDER BY i.name
"""  # noqa: S608 -- a constant condition

ENDS = f"""
SELECT now() AS read_at,
       (SELECT count(*) FROM instances i
        WHERE {active_condition("i")}
          AND (CAST(:server AS integer) IS NULL OR i.id = :server)) AS active_servers,
       (SELECT count(*) FROM instances i
        WHERE {active_condition("i")} AND i.counted_by IS NOT NULL
          AND CAST(:server AS integer) IS NULL) AS counted_by_others,
       (SELECT max(calculated_at) FROM database_size_aggregations a
        WHERE period_type = :period AND period_start = :start
          AND (CAST(:server AS integer) IS NULL OR a.instance_id = :server)) AS computed_at,
       (SELECT min(collected_date) FROM instance_size_stats s
        WHERE NOT is_deleted AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)) AS first_sample,
       (SELECT max(collected_date) FROM instance_size_stats s
        WHERE NOT is_deleted AND collected_date <= {TODAY}
          AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)) AS last_sample
"""  # noqa: S608 -- a constant condition

# Why figures of a closed window are others than they were: samples of the two windows that came or changed since.
SAMPLES_SINCE = """
SELECT coalesce(i.name, 'server ' || s.instance_id) AS server,
       count(*) FILTER (WHERE s.created_at > :since) AS added,
       count(*) FILTER (WHERE s.created_at <= :since AND s.updated_at > :since) AS corrected
FROM (
    SELECT instance_id, created_at, updated_at FROM database_size_stats
    WHERE collected_date BETWEEN :before AND :end AND (created_at > :since OR updated_at > :since)
      AND (CAST(:server AS integer) IS NULL OR instance_id = :server)
    UNION ALL
    SELECT instance_id, created_at, updated_at FROM instance_size_stats
    WHERE collected_date BETWEEN :before AND :end AND (created_at > :since OR updated_at > :since)
      AND (CAST(:server AS integer) IS NULL OR instance_id = :server)
) AS s LEFT JOIN instances i ON i.id = s.instance_id
GROUP BY 1 ORDER BY 1
"""


DATABASES_LISTED = 10
"""Of each kind; a server's own page lists all its databases."""


SERVERS_LISTED = 20
RISKS_LISTED = 10


def read_report(  # noqa: PLR0913 -- what a report may be of
    engine: Engine,
    period: Period,
    window: Window,
    server: str | None = None,
    *,
    today: date | None = None,
    by: str | None = None,
) -> Report:
    """Read the report of one window: of all servers, with groups by `by`, or of the one of that name.

    On its last day a window is still open: servers that failed are measured later. Without `today` it is over.
    Raises NotFoundError where no server of that name is registered, and DatabaseError.
    """
    with (
        database_errors(doing="reading the report's figures", kept="Nothing was written."),
        engine.connect() as connection,
    ):
        # One state of the tables throughout, or the sums would not add up while a run writes.
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        # Right after a load the statistics know nothing of the windows, and the planner would loop over pairs.
        connection.execute(text("SET LOCAL enable_nestloop = off"))
        report = _read(connection, period, window, server, today)
        # Last, and with loops: labels are looked up for the few rows that have some.
        connection.execute(text("SET LOCAL enable_nestloop = on"))
        groups = []
        if by is not None and server is None:
            groups = groups_of(connection, period, window, by, fills_first(connection, by))
        has_labels = any(group.name is not None for group in groups)
        return replace(report, grouped_by=by, groups=groups) if has_labels else report


def _read(connection: Connection, period: Period, window: Window, server: str | None, today: date | None) -> Report:
    shown = period.back(window, WINDOWS_SHOWN)
    parameters: dict[str, object] = {
        "period": period.name,
        "start": window.start,
        "before": period.previous(window).start,
        "end": window.end,
        "oldest": shown[0].start,
        "starts": [one.start for one in shown],
        "server": server_id(connection, server),
        "listed": DATABASES_LISTED,
        "servers_listed": SERVERS_LISTED,
    }

    def rows(query: str) -> Sequence[Row[tuple[object, ...]]]:
        named = re.findall(r"(?<!:):(\w+)", query)
        return connection.execute(text(query), {name: parameters[name] for name in named}).all()

    changes = {
        ChangeKind(row.kind): Change(row.databases, int(row.before_mb), int(row.size_mb), int(row.change_mb))
        for row in rows(CHANGES)
    }
    databases: dict[ChangeKind, list[Database]] = {kind: [] for kind in ChangeKind}
    for row in rows(LISTED):
        days = _days(row.before_count, row.days_before), _days(row.now_count, row.days)
        database = Database(row.server, row.name, row.before_mb, row.size_mb, int(row.moved_mb), *days)
        databases[ChangeKind(row.kind)].append(database)
    [ends] = rows(ENDS)
    [totals] = rows(TOTALS)
    on_nodes = tables_are_distributed(connection)
    measured = rows(MEASURED_ON_NODES if on_nodes else MEASURED)
    unmeasured = rows(UNMEASURED_ON_NODES if on_nodes else UNMEASURED)
    # A few subjects are looked up in many samples.
    connection.execute(text("SET LOCAL enable_nestloop = on"))
    issued = newest_issue(connection, window.start, window.end, server, shown=RISKS_LISTED)
    runways = with_histories(connection, issued) if issued else None
    return Report(
        period=period,
        window=window,
        server=server,
        totals=_totals(totals),
        changes={kind: changes.get(kind, Change()) for kind in ChangeKind},
        databases=databases,
        servers=[
            ServerChange(row.name, row.engine, row.databases, int(row.before_mb), int(row.size_mb), int(row.change_mb))
            for row in rows(SERVERS)
        ],
        history=[Bar(row.window_start, row.series, int(row.size_mb)) for row in rows(HISTORY)],
        measured_servers={row.day: row.measured for row in measured if row.measured},
        expected_servers={row.day: int(row.expected) for row in measured},
        active_servers=ends.active_servers,
        counted_by_others=ends.counted_by_others,
        unmeasured_servers=[row.name for row in unmeasured if not row.never_measured],
        never_measured_servers=[row.name for row in unmeasured if row.never_measured],
        read_at=ends.read_at,
        computed_at=ends.computed_at,
        first_sample=ends.first_sample,
        last_sample=ends.last_sample,
        today=today,
        runways=runways,
    )


def _totals(row: Row[tuple[object, ...]]) -> Totals:
    numbers = {name: int(str(value)) for name, value in row._asdict().items() if value is not None}
    return Totals(**numbers)


def _days(there: int | None, measured: int | None) -> str:
    return "" if there is None or measured is None else f"{there} of {measured}"


def server_id(connection: Connection, server: str | None) -> int | None:
    """Look a server up by name, None stands for all; raises NotFoundError where none of that name is registered."""
    if server is None:
        return None
    found = connection.execute(text("SELECT id FROM instances WHERE name = :name"), {"name": server}).scalar()
    if found is None:
        raise NotFoundError(
            f"There is no server {server!r}: names are compared letter by letter. The view "
            "capacity_server_growth lists those that are known. Nothing was written."
        )
    return int(found)
