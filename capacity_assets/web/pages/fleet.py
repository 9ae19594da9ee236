"""The first page: how large, how fast, what fills first, what moved, what is not measured, and can it be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import partial

from sqlalchemy import Connection

from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.views import UNKNOWN_LIMITS, headroom
from capacity_assets.ownership.groups import Group, default_grouping, fills_first, groups_of
from capacity_assets.web.addresses import Asked
from capacity_assets.web.reading import (
    FILLS_FIRST,
    UNMEASURED_SHOWN,
    Reader,
    UnmeasuredServers,
    complete_window,
    databases,
    declared_since,
    found,
    history,
    newest_window,
    rows,
    runways,
    unmeasured_servers,
)
from capacity_assets.web.rendering import DatabaseRow, Runway, SizeInWindow, Unmeasured

MOVERS_SHOWN, FILLING_SHOWN, GROUPS_SHOWN = 5, 8, 8
TRUST_DAYS = 30
FLEET_SECONDS_KEPT = 30
# Every row of every window shown is looked at for it.
INCOMPLETE_SECONDS_KEPT = 300
MOVED_SINCE = ("daily", "weekly", "monthly")


@dataclass(frozen=True)
class Moved:
    """What grew and shrank most in the newest window of a period."""

    period: str
    window_start: date
    window_end: date
    growers: Sequence[DatabaseRow]
    shrinkers: Sequence[DatabaseRow]

    @property
    def rows(self) -> Sequence[DatabaseRow]:
        """Both."""
        return [*self.growers, *self.shrinkers]


@dataclass(frozen=True)
class Trust:
    """How much of the fleet the figures rest on."""

    newest_day: date | None
    """Newest day with a sample or an attempt of any server."""
    servers: int
    measured_servers: int
    failed_servers: int
    coverage_percent: float | None
    """Measured days of servers in service, of the last TRUST_DAYS days from each one's first sample on."""


@dataclass(frozen=True)
class Headroom:
    """What volumes, and servers without known volumes, have left, MiB; None: no limit is known."""

    headroom_mb: int | None
    unknown_limits: int
    """Databases of which no limit is known."""
    fills_within_30_days: int
    """What is full within 30 days with a probability of a half or more."""
    as_of: date | None
    """Day of the newest forecasts; None: none was issued yet, so nothing of this is known."""


@dataclass(frozen=True)
class FleetPage:
    """The fleet."""

    period: str
    sizes: Sequence[SizeInWindow]
    databases: int
    servers: int
    moved: Sequence[Moved]
    fills_first: Sequence[Runway]
    headroom: Headroom
    trust: Trust
    unmeasured: Sequence[Unmeasured]
    unmeasured_servers: int
    grouped_by: str
    groups: Sequence[Group]
    hidden_groups: int
    periods: Mapping[str, str] = field(default_factory=dict)
    """The periods that are stored, each with its newest window."""
    declared_since: Sequence[str] = ()
    """Servers whose limits or steps changed after the newest forecast."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured yet."""
        return not self.sizes

    @property
    def newest(self) -> SizeInWindow:
        """The newest window; to be asked of a fleet that is not empty."""
        return self.sizes[-1]

    @property
    def known_change_mb(self) -> int | None:
        """Sum of the known changes of the windows shown; new servers are no growth. None if no change is known."""
        known = [one.change_mb for one in self.sizes[1:] if one.change_mb is not None]
        return sum(known) if known else None


def read_fleet(reader: Reader, asked: Asked) -> FleetPage:
    """Read the page. Raises sqlalchemy.exc.DBAPIError, ValidationError."""
    period = asked.period()
    fleet = reader.kept(("fleet", asked.today), partial(_read_fleet, reader, asked), FLEET_SECONDS_KEPT)
    fleet = replace(fleet, declared_since=declared_since(reader))
    if period.name not in fleet.periods:
        return replace(fleet, period=period.name)
    newest = period.window_of(date.fromisoformat(fleet.periods[period.name]))
    with reader.transaction() as connection:
        sizes = history(connection, _HISTORY, period, newest, {})
        counts = rows(connection, _COUNTS, {"period": period.name, "start": newest.start})[0]
    if sizes:
        first = sizes[0].window_start
        incomplete = reader.kept_of(
            ("incomplete", period.name, first, newest.start),
            partial(_incomplete, period=period, first=first),
            INCOMPLETE_SECONDS_KEPT,
        )
        sizes = [replace(one, is_partial=one.window_start in incomplete) for one in sizes]
    return replace(fleet, period=period.name, sizes=sizes, servers=counts.servers, databases=counts.databases)


def _read_fleet(reader: Reader, asked: Asked) -> FleetPage:
    """Read what is the same whichever period is shown, without sizes."""
    with reader.transaction() as connection:
        return _fleet_of(connection, asked)


def _fleet_of(connection: Connection, asked: Asked) -> FleetPage:
    today = asked.today
    newest = {name: window for name, one in PERIODS.items() if (window := newest_window(connection, one))}
    over = {
        name: window
        for name in MOVED_SINCE
        if (window := complete_window(connection, PERIODS[name], newest.get(name), today))
    }
    unmeasured = unmeasured_servers(connection, today)
    by = default_grouping(asked.label_keys)
    last_month = over.get("monthly")
    groups: list[Group] = []
    if last_month:
        month = PERIODS["monthly"]
        groups = groups_of(connection, month, last_month, by, fills_first(connection, by))
    return FleetPage(
        "",
        (),
        0,
        0,
        [_moved(connection, name, window) for name, window in over.items()],
        runways(connection, FILLS_FIRST, {"shown": FILLING_SHOWN, "skipped": 0}),
        found(Headroom, connection, _HEADROOM)[0],
        _trust(connection, unmeasured),
        unmeasured.servers[:UNMEASURED_SHOWN],
        len(unmeasured.servers),
        by,
        groups[:GROUPS_SHOWN],
        max(len(groups) - GROUPS_SHOWN, 0),
        {name: window.key for name, window in newest.items()},
    )


def _incomplete(connection: Connection, period: Period, first: date) -> set[date]:
    """Return the windows in which a server is missing that was measured before, and is in service or came back."""
    asked = {"period": period.name, "first": first}
    return {row.window_start for row in rows(connection, _INCOMPLETE, asked)}


def _moved(connection: Connection, name: str, window: Window) -> Moved:
    period = PERIODS[name]
    grown, shrunk = (
        databases(connection, period, window, order=order, shown=MOVERS_SHOWN)[0] for order in ("growth", "shrinkage")
    )
    return Moved(name, window.start, window.end, [one for one in grown if (one.change_mb or 0) > 0], shrunk)


def _trust(connection: Connection, unmeasured: UnmeasuredServers) -> Trust:
    active = rows(connection, "SELECT count(*) AS servers FROM capacity_servers WHERE is_active")[0].servers
    coverage, day = None, unmeasured.day
    if day is not None:
        first = day - timedelta(days=TRUST_DAYS - 1)
        query = _COVERAGE_ON_NODES if tables_are_distributed(connection) else _COVERAGE
        coverage = rows(connection, query, {"first": first, "day": day})[0].coverage
    failed = sum(one.failure is not None for one in unmeasured.servers)
    return Trust(day, active, active - len(unmeasured.servers), failed, None if coverage is None else float(coverage))


_HISTORY = """
SELECT window_start, window_end, sum(size_mb) AS size_mb, sum(change_mb) AS change_mb
FROM capacity_server_growth WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND counted
GROUP BY window_start, window_end
"""
# A server in service is expected from its first window shown on, another one to its last.
_INCOMPLETE = """
WITH shown AS (
    SELECT server_id, window_start FROM capacity_server_growth
    WHERE period = :period AND window_start >= :first AND counted
), spans AS (
    SELECT min(z.window_start) AS first_start,
           CASE WHEN bool_or(s.is_active) THEN CAST('infinity' AS date) ELSE max(z.window_start) END AS last_start
    FROM shown z LEFT JOIN capacity_servers s ON s.server_id = z.server_id GROUP BY z.server_id
)
SELECT w.window_start FROM (SELECT window_start, count(*) AS servers FROM shown GROUP BY window_start) AS w
WHERE w.servers < (SELECT count(*) FROM spans s
                   WHERE s.first_start <= w.window_start AND s.last_start >= w.window_start)
"""
_COUNTS = """
SELECT count(*) AS servers, CAST(coalesce(sum(databases), 0) AS bigint) AS databases
FROM capacity_server_growth WHERE period = :period AND window_start = :start AND counted
"""
_HEADROOM = f"""
SELECT ({headroom("capacity_runway")}) AS headroom_mb, {UNKNOWN_LIMITS} AS unknown_limits,
       count(*) FILTER (WHERE r.probability_30_days >= 0.5 AND r.stands_for_itself) AS fills_within_30_days,
       max(r.as_of) AS as_of
FROM capacity_runway r
"""  # noqa: S608 -- names of our own
_COVERAGE_ON_NODES = """
WITH seen AS MATERIALIZED (
    SELECT server_id, min(day) AS first_day, count(DISTINCT day) FILTER (WHERE day >= :first) AS measured
    FROM capacity_server_samples WHERE day <= :day GROUP BY server_id
)
SELECT round(100.0 * sum(m.measured)
             / nullif(sum(CAST(:day AS date) - greatest(CAST(:first AS date), m.first_day) + 1), 0), 1) AS coverage
FROM capacity_servers s JOIN seen m ON m.server_id = s.server_id WHERE s.is_active
"""
_COVERAGE = """
SELECT round(100.0 * sum(measured) / nullif(sum(expected), 0), 1) AS coverage
FROM (SELECT (SELECT count(DISTINCT t.day) FROM capacity_server_samples t
              WHERE t.server_id = s.server_id AND t.day BETWEEN :first AND :day) AS measured,
             CAST(:day AS date) - greatest(CAST(:first AS date), f.first_day) + 1 AS expected
      FROM capacity_servers s
      CROSS JOIN LATERAL (SELECT min(t.day) AS first_day FROM capacity_server_samples t
                          WHERE t.server_id = s.server_id AND t.day <= :day) AS f
      WHERE s.is_active AND f.first_day IS NOT NULL) AS servers
"""
