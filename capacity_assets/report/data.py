"""The numbers of the report: read from the stored aggregates and the samples, never recomputed.

Totals are sums of the servers' figures, as in the view `capacity_fleet`, and everything adds up in whole MiB. A
database is *new* or *gone* only if its server was measured in both windows; one whose server was not is *not
comparable*, because it is unknown. One that was there on a part of its server's days counts with that part. How it
looks is the business of `charts` and `page`, which issue of a page it is that of `issues`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from capacity_assets.grouping.groups import Group
from capacity_assets.periods import Period, Window
from capacity_assets.runway.issued import IssuedDay

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
    """The name itself if it can be one; else what is left of it, made unique by a hash."""
    plain = re.sub(r"[^\w.-]+", "_", server)[:LONGEST_IN_A_FILE_NAME]
    return plain if plain == server else f"{plain}-{hashlib.sha256(server.encode()).hexdigest()[:8]}"
