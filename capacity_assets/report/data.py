"""The content of a report: the answers that it shows, how they add up, and how far they can be trusted.

Totals are sums of the servers' figures, as in the view `capacity_fleet`, and everything adds up in whole MiB.
`charts` and `page` render it; `issues` keeps earlier issues of a page.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from sqlalchemy import Connection, Engine

from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.forecast.issued import IssuedDay, newest_issue, with_histories
from capacity_assets.ownership.groups import Group, fills_first, groups_of
from capacity_assets.reading.access import plan_with_loops, snapshot
from capacity_assets.reading.changes import (
    NOT_COMPARABLE,
    Change,
    ChangeKind,
    Database,
    ServerChange,
    database_changes,
    server_changes,
)
from capacity_assets.reading.coverage import measured_days, servers_in_service, servers_without_rows
from capacity_assets.reading.sizes import SeriesSize, database_shares, engine_sizes, fleet_sizes
from capacity_assets.reading.subjects import server_id_of
from capacity_assets.reading.windows import window_facts

WINDOWS_SHOWN = 13
LONGEST_IN_A_FILE_NAME = 50
DATABASES_LISTED = 10
"""Databases listed of each kind; the report of a single server lists all."""
SERVERS_LISTED = 20
RISKS_LISTED = 10
OTHER = "other"
"""Change of the servers' totals beyond that of their databases: rounding, and days on which the two disagree."""
ROUNDING_MB = 2
"""Largest rounding loss per database and window: its mean is rounded down, and so are its samples."""


@dataclass(frozen=True)
class Totals:
    """Sums of the servers' figures, MiB: the ends of the waterfall, and the known change between them.

    `known_*` are of servers measured in both windows; the change is None without such servers.
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
class Report:
    """One window of the fleet, or of `server` alone."""

    period: Period
    window: Window
    server: str | None
    totals: Totals
    changes: Mapping[ChangeKind, Change]
    databases: Mapping[ChangeKind, Sequence[Database]]
    servers: Sequence[ServerChange]
    history: Sequence[SeriesSize]
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
        """Sum of the groups."""
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
        """The steps of the waterfall, in order: start + all of these = end, exactly."""
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
        """Change of the servers measured in both windows; None without such servers."""
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
        """The days of the two windows from the oldest to the newest stored total of a server."""
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
        """Days on which only some of the expected servers were measured, and how many."""
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
    """Return the name if files can have it; else the characters that they can, made unique by a hash."""
    plain = re.sub(r"[^\w.-]+", "_", server)[:LONGEST_IN_A_FILE_NAME]
    return plain if plain == server else f"{plain}-{hashlib.sha256(server.encode()).hexdigest()[:8]}"


def read_report(  # noqa: PLR0913 -- one argument per choice of a report
    engine: Engine,
    period: Period,
    window: Window,
    server: str | None = None,
    *,
    today: date | None = None,
    by: str | None = None,
) -> Report:
    """Read the report of one window: of all servers, with groups by `by`, or of the one of that name.

    A window is open on its last day too, because servers that failed are measured later. Without `today` it is over.
    Raises NotFoundError where no server of that name is registered, and DatabaseError.
    """
    reading = database_errors(doing="reading the report's figures", kept="Nothing was written.")
    with reading, snapshot(engine) as connection:
        # Right after a load the statistics know nothing of the windows, and the planner would loop over pairs.
        plan_with_loops(connection, allowed=False)
        report = _read(connection, period, window, server, today)
        # Loops are faster where a few subjects and labels are looked up among many rows.
        plan_with_loops(connection, allowed=True)
        issued = newest_issue(connection, window.start, window.end, server, shown=RISKS_LISTED)
        report = replace(report, runways=with_histories(connection, issued) if issued else None)
        if by is None or server is not None:
            return report
        groups = groups_of(connection, period, window, by, fills_first(connection, by))
        has_labels = any(group.name is not None for group in groups)
        return replace(report, grouped_by=by, groups=groups) if has_labels else report


def _read(connection: Connection, period: Period, window: Window, server: str | None, today: date | None) -> Report:
    server_id = None if server is None else registered_id(connection, server)
    before, shown = period.previous(window), period.back(window, WINDOWS_SHOWN)
    sizes = fleet_sizes(connection, period, [before, window], server_id)
    now, then = sizes.get(window.start), sizes.get(before.start)
    databases = database_changes(connection, period, window, server_id, largest=DATABASES_LISTED)
    servers = server_changes(connection, period, window, server_id, largest=SERVERS_LISTED)
    days = measured_days(connection, before.start, window.end, server_id)
    in_service = servers_in_service(connection, server_id)
    without_rows = servers_without_rows(connection, period, window, server_id)
    facts = window_facts(connection, period, window, server_id)
    if server_id is None:
        history = engine_sizes(connection, period, shown)
    else:
        history = database_shares(connection, period, shown, server_id)
    return Report(
        period=period,
        window=window,
        server=server,
        totals=Totals(
            start_mb=then.size_mb if then else 0,
            end_mb=now.size_mb if now else 0,
            known_change_mb=now.change_mb if now else None,
            known_before_mb=now.known_before_mb if now else 0,
            appeared_mb=servers.appeared_mb,
            missing_mb=servers.missing_mb,
            databases=now.databases if now else 0,
            servers_before=then.servers if then else 0,
            servers=now.servers if now else 0,
        ),
        changes=databases.sums,
        databases=databases.largest,
        servers=servers.largest,
        history=history,
        measured_servers={day.day: day.measured for day in days if day.measured},
        expected_servers={day.day: day.expected for day in days},
        active_servers=in_service.active,
        counted_by_others=in_service.counted_by_others if server is None else 0,
        unmeasured_servers=without_rows.measured_elsewhere,
        never_measured_servers=without_rows.never_measured,
        read_at=facts.read_at,
        computed_at=facts.computed_at,
        first_sample=facts.first_sample,
        last_sample=facts.last_sample,
        today=today,
    )


def registered_id(connection: Connection, server: str) -> int:
    """Return the number of a server; raises NotFoundError where none of that name is registered."""
    server_id = server_id_of(connection, server)
    if server_id is None:
        raise NotFoundError(
            f"There is no server {server!r}. Names are case-sensitive; `capacity instances list` shows them."
        )
    return server_id
