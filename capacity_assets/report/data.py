"""The figures of a report.

Totals are sums of the servers' figures, as in the view `capacity_fleet`, and all steps add up in whole MiB. `page`
renders them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from sqlalchemy import Connection, Engine

from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.database.engine import snapshot
from capacity_assets.ownership.labels import first_fill_date_of_groups
from capacity_assets.reading.access import plan_with_loops
from capacity_assets.reading.changes import (
    NOT_COMPARABLE,
    ChangeKind,
    DatabaseChanges,
    ServerChanges,
    database_changes,
    server_changes,
    with_objects,
)
from capacity_assets.reading.coverage import (
    MeasuredDay,
    ServersInService,
    UnmeasuredServer,
    measured_days,
    servers_in_service,
    servers_missing_in,
)
from capacity_assets.reading.forecasts import ForecastIssue, newest_issue, with_histories
from capacity_assets.reading.groups import Group, groups_of
from capacity_assets.reading.sizes import FleetSize, SeriesSize, database_shares, engine_sizes, fleet_sizes
from capacity_assets.reading.subjects import server_id_of
from capacity_assets.reading.windows import WindowFacts, window_facts

WINDOWS_OF_REPORT = 13
LONGEST_IN_A_FILE_NAME = 50
DATABASES_LISTED = 10
"""Listed databases of each kind; the report of a single server lists all."""
SERVERS_LISTED = 20
RISKS_LISTED = 10
MOVED = (ChangeKind.GROWN, ChangeKind.SHRUNK)
OTHER = "other"
"""Change of the servers' totals beyond that of their databases: rounding, and days on which the two differ."""
ROUNDING_MB = 2
"""Largest rounding loss per database and window: samples and their mean are rounded down."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One window of the fleet, or of `server` alone, compared with the window `before`."""

    period: Period
    window: Window
    before: Window
    server: str | None
    server_id: int | None
    facts: WindowFacts
    size: FleetSize
    size_before: FleetSize
    databases: DatabaseChanges
    servers: ServerChanges
    history: Sequence[SeriesSize]
    days: Sequence[MeasuredDay]
    """Days of the two windows, from the oldest to the newest stored total of a server."""
    in_service: ServersInService
    missing: Sequence[UnmeasuredServer]
    """Active servers without a row in the window; `last_day` None: never measured."""
    today: date | None = None
    runways: ForecastIssue | None = None
    grouped_by: str | None = None
    groups: Sequence[Group] = ()
    """Groups of the window; empty for a single server, or if nothing has such a label."""

    @property
    def start_mb(self) -> int:
        """Size in the previous window."""
        return self.size_before.size_mb

    @property
    def end_mb(self) -> int:
        """Size in this window."""
        return self.size.size_mb

    @property
    def known_change_mb(self) -> int | None:
        """Change of the servers measured in both windows; None without such servers."""
        return self.size.change_mb

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """The steps of the waterfall, in order; their sum is exactly the end minus the start."""
        compared = (ChangeKind.GROWN, ChangeKind.SHRUNK, ChangeKind.PARTLY, ChangeKind.NEW, ChangeKind.GONE)
        steps = [
            *((kind.value, self.databases.sums[kind].change_mb) for kind in compared),
            (ChangeKind.APPEARED.value, self.servers.appeared_mb),
            (ChangeKind.MISSING.value, -self.servers.missing_mb),
        ]
        return (*steps, (OTHER, self.end_mb - self.start_mb - sum(change for _, change in steps)))

    @property
    def other_mb(self) -> int:
        """The last step."""
        return self.steps[-1][1]

    @property
    def levels_disagree(self) -> bool:
        """Whether the last step is more than rounding."""
        databases = sum(change.databases for change in self.databases.sums.values())
        return abs(self.other_mb) > databases * 2 * ROUNDING_MB

    @property
    def not_comparable_databases(self) -> int:
        """Number of databases of servers that were measured in only one of the two windows."""
        return sum(self.databases.sums[kind].databases for kind in NOT_COMPARABLE)

    @property
    def is_open(self) -> bool:
        """Whether the window is not over or its last days were not measured."""
        over, last_sample = self.today is None or self.window.end < self.today, self.facts.last_sample
        return not over or last_sample is None or last_sample < self.window.end

    @property
    def is_empty(self) -> bool:
        """Whether neither window has a row."""
        return not (self.size.servers or self.size_before.servers)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the history, oldest first, from the first one with rows on."""
        oldest = min((bar.window_start for bar in self.history), default=self.window.start)
        shown = self.period.back(self.window, WINDOWS_OF_REPORT)
        return tuple(window for window in shown if window.start >= oldest)


def file_name(period: Period, window: Window, server: str | None = None) -> str:
    """Return the file name of a report, from its period, window and server.

    Characters of a server's name that file names cannot have are replaced, and a hash keeps the name unique.
    """
    name = f"growth-{period.name}-{window.key}"
    if server is not None:
        plain = re.sub(r"[^\w.-]+", "_", server)[:LONGEST_IN_A_FILE_NAME]
        name += f"-{plain}" if plain == server else f"-{plain}-{hashlib.sha256(server.encode()).hexdigest()[:8]}"
    return f"{name}.html"


def read_report(  # noqa: PLR0913 -- one argument per choice of a report
    engine: Engine,
    period: Period,
    window: Window,
    server: str | None = None,
    *,
    today: date | None = None,
    by: str | None = None,
) -> Report:
    """Read the report of one window, of all servers with groups by `by`, or of a single server.

    A window is open on its last day too, because servers that failed are measured later. Without `today`, it is over.
    Raises NotFoundError if the server is not registered, and DatabaseError.
    """
    reading = database_errors(doing="reading the report's figures", kept="Nothing was written.")
    with reading, snapshot(engine) as connection:
        # Right after a load, table statistics do not cover the new windows, and the planner would choose nested loops.
        plan_with_loops(connection, allowed=False)
        report = replace(_read(connection, period, window, server), today=today)
        # Nested loops are faster for looking up a few subjects, objects and labels among many rows.
        plan_with_loops(connection, allowed=True)
        report = replace(report, databases=_with_objects(connection, window, report.databases))
        issued = newest_issue(
            connection, window.start, window.end, server, shown=RISKS_LISTED, today=today or window.end
        )
        report = replace(report, runways=with_histories(connection, issued) if issued else None)
        if by is None or server is not None:
            return report
        groups = groups_of(connection, period, window, by, first_fill_date_of_groups(connection, by))
        has_labels = any(group.name is not None for group in groups)
        return replace(report, grouped_by=by, groups=groups) if has_labels else report


def _with_objects(connection: Connection, window: Window, changes: DatabaseChanges) -> DatabaseChanges:
    moved = [one for kind in MOVED for one in changes.largest[kind]]
    named = iter(with_objects(connection, window, moved))
    largest = {kind: [next(named) for _ in changes.largest[kind]] for kind in MOVED}
    return replace(changes, largest={**changes.largest, **largest})


def _read(connection: Connection, period: Period, window: Window, server: str | None) -> Report:
    server_id = None if server is None else server_id_of(connection, server)
    if server is not None and server_id is None:
        raise NotFoundError(
            f"There is no server {server!r}. Names are case-sensitive; `capacity instances list` shows them."
        )
    before, shown = period.previous(window), period.back(window, WINDOWS_OF_REPORT)
    sizes = fleet_sizes(connection, period, [before, window], server_id)
    facts = window_facts(connection, period, window, server_id)
    days = measured_days(connection, before.start, window.end, server_id)
    first, last = facts.first_sample or date.max, facts.last_sample or date.min
    return Report(
        period=period,
        window=window,
        before=before,
        server=server,
        server_id=server_id,
        facts=facts,
        size=sizes.get(window.start, FleetSize(window.start, window.end)),
        size_before=sizes.get(before.start, FleetSize(before.start, before.end)),
        databases=database_changes(connection, period, window, server_id, largest=DATABASES_LISTED),
        servers=server_changes(connection, period, window, server_id, largest=SERVERS_LISTED),
        history=engine_sizes(connection, period, shown)
        if server_id is None
        else database_shares(connection, period, shown, server_id),
        days=[day for day in days if first <= day.day <= last],
        in_service=servers_in_service(connection, server_id),
        missing=servers_missing_in(connection, period, window, server_id, with_never_measured=True),
    )
