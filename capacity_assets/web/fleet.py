"""The first page: size and growth of the fleet, what fills first, what changed, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from functools import partial

from sqlalchemy import Connection

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Thresholds
from capacity_assets.ownership.labels import default_grouping, first_fill_date_of_groups
from capacity_assets.reading.coverage import (
    Coverage,
    MissedDays,
    UnmeasuredServer,
    coverage_of,
    servers_in_service,
    unmeasured_servers,
)
from capacity_assets.reading.forecasts import FreeCapacity, StoredRunway, fills_first, free_capacity
from capacity_assets.reading.groups import Group, GroupSpace, groups_of, left_out_note, space_of_groups
from capacity_assets.reading.lists import DatabaseRow, most_changed
from capacity_assets.reading.risks import Headline, next_to_fill
from capacity_assets.reading.sizes import (
    CurrentFleetSize,
    SizeInWindow,
    fleet_history,
    fleet_now,
    with_gaps,
)
from capacity_assets.reading.space import RetainedWal, retained_wal_on
from capacity_assets.reading.subjects import DeclaredStep, steps_between
from capacity_assets.reading.table_growth import are_measured
from capacity_assets.reading.windows import complete_window, newest_window
from capacity_assets.web.bills import total_amounts
from capacity_assets.web.forecasts import DecisionRow, decision_rows
from capacity_assets.web.reader import (
    MOST_FLEET_WINDOWS,
    ChartRange,
    PageQuery,
    Reader,
    shared_outdated,
    shared_revision,
    shown_range,
    with_partial_marks,
)
from capacity_assets.web.subjects import UNMEASURED_SHOWN

MOVERS_SHOWN, FILLING_SHOWN, GROUPS_SHOWN = 5, 8, 8
TRUST_DAYS, MISSED_SHOWN = 30, 20
FLEET_SECONDS = 30
# Not quarters and years, which would read too many rows.
MOVED_SINCE = ("daily", "weekly", "monthly")


@dataclass(frozen=True)
class LargestChanges:
    """The largest changes in the newest complete window of a period."""

    period: str
    window_start: date
    window_end: date
    is_compared: bool
    """Whether the change of any database is known; if not, there is nothing to compare with yet."""
    growers: Sequence[DatabaseRow]
    shrinkers: Sequence[DatabaseRow]

    @property
    def rows(self) -> Sequence[DatabaseRow]:
        """Growers and shrinkers."""
        return [*self.growers, *self.shrinkers]


@dataclass(frozen=True)
class MeasuredShare:
    """How much of the fleet was measured."""

    newest_day: date | None
    """Newest day with a sample or an attempt of any server."""
    servers: int
    measured_servers: int
    failed_servers: int
    coverage_percent: float | None
    """Measured days of servers in service in the last 30 days, from the first sample of each server on."""
    coverage_days: int
    """Number of these days since the first sample of any server."""
    has_samples: bool
    """Whether any server was ever measured."""


@dataclass(frozen=True)
class FleetPage:
    """The fleet."""

    period: str
    headline: Headline
    now: CurrentFleetSize
    """The last known sizes, independent of the period."""
    shown: ChartRange
    sizes: Sequence[SizeInWindow]
    earlier: Sequence[SizeInWindow]
    """Sizes of the previous year, if they are compared."""
    databases: int
    servers: int
    """Servers with a known size."""
    moved: Sequence[LargestChanges]
    fills_first: Sequence[StoredRunway]
    headroom: FreeCapacity
    trust: MeasuredShare
    unmeasured: Sequence[UnmeasuredServer]
    unmeasured_servers: int
    missed: Sequence[MissedDays]
    """Servers in service that missed days of the last 30 days, the most days first."""
    missed_servers: int
    left_out: str | None
    """A sentence on servers whose sizes are impossible on the newest day, which are in no group."""
    grouped_by: str
    groups: Sequence[Group]
    space: Sequence[GroupSpace]
    """The uses of the space by group, in the last complete month."""
    hidden_groups: int
    has_tables: bool = False
    """Whether tables and indexes were measured in the last month."""
    bills: Mapping[date, Decimal] = field(default_factory=dict)
    """Total amounts of the final bills of the last 12 months."""
    currency: str | None = None
    decisions: Sequence[DecisionRow] = ()
    """Open decisions."""
    steps: Sequence[DeclaredStep] = ()
    """Declared steps in the windows of the chart."""
    periods: Mapping[str, str] = field(default_factory=dict)
    """Periods with stored windows, each with its newest one."""
    declared_since: Sequence[str] = ()
    """Servers whose limits, steps or plans changed after the newest forecast."""
    retained_wal: Sequence[RetainedWal] = ()
    """Too much WAL retained by slots or archivers, the largest first."""

    @property
    def is_empty(self) -> bool:
        """Whether no window of any period was computed yet."""
        return not self.periods


def read_fleet(reader: Reader, query: PageQuery) -> FleetPage:
    """Read the page. Raises sqlalchemy.exc.DBAPIError, ValidationError."""
    shown = shown_range(reader, query, most=MOST_FLEET_WINDOWS)
    period = PERIODS[shown.period]
    read = partial(
        _read_every_period,
        today=query.today,
        grouped_by=default_grouping(query.label_keys),
        thresholds=reader.thresholds,
    )
    fleet = reader.read_cached(("fleet", query.today, shared_revision(reader)), read, FLEET_SECONDS, is_for_all=True)
    fleet = replace(fleet, period=period.name, shown=shown, declared_since=shared_outdated(reader))
    if period.name not in fleet.periods:
        return fleet
    newest = period.window_of(date.fromisoformat(fleet.periods[period.name]))
    windows = shown.windows(newest)
    with reader.transaction() as connection:
        sizes = with_gaps(windows, fleet_history(connection, period, windows))
        earlier = fleet_history(connection, period, shown.earlier(windows))
        steps = steps_between(connection, windows[0].start, windows[-1].end) if windows else []
    return replace(fleet, sizes=with_partial_marks(reader, period, sizes), earlier=earlier, steps=steps)


def _read_every_period(connection: Connection, today: date, grouped_by: str, thresholds: Thresholds) -> FleetPage:
    """Read everything that does not depend on the period, which is all but the sizes."""
    newest = {name: window for name, period in PERIODS.items() if (window := newest_window(connection, period))}
    complete = {
        name: window
        for name in MOVED_SINCE
        if (window := complete_window(connection, PERIODS[name], newest.get(name), today))
    }
    moved = [
        LargestChanges(
            name, window.start, window.end, *most_changed(connection, PERIODS[name], window, shown=MOVERS_SHOWN)
        )
        for name, window in complete.items()
    ]
    unmeasured = unmeasured_servers(connection, today)
    groups: list[Group] = []
    space: list[GroupSpace] = []
    if "monthly" in complete:
        month = (connection, PERIODS["monthly"], complete["monthly"], grouped_by)
        groups = groups_of(*month, first_fill_date_of_groups(connection, grouped_by))
        space = space_of_groups(*month, groups)
    bills, currency = total_amounts(connection)
    active = servers_in_service(connection).active
    coverage = Coverage(None, [], 0)
    if unmeasured.day is not None:
        coverage = coverage_of(connection, unmeasured.day, TRUST_DAYS, shown=MISSED_SHOWN)
    fills, free = fills_first(connection, today, shown=FILLING_SHOWN), free_capacity(connection, thresholds)
    first, now = next(iter(fills), None), fleet_now(connection, today)
    return FleetPage(
        period="",
        headline=next_to_fill(first, thresholds, issued=free.as_of, free=free),
        now=now,
        shown=ChartRange(None, None, None, ""),
        sizes=(),
        earlier=(),
        databases=now.databases,
        servers=now.servers - now.never_measured,
        moved=moved,
        fills_first=fills,
        headroom=free,
        trust=MeasuredShare(
            newest_day=unmeasured.day,
            servers=active,
            measured_servers=active - len(unmeasured.servers),
            failed_servers=sum(server.failure is not None for server in unmeasured.servers),
            coverage_percent=None if coverage.percent is None else float(coverage.percent),
            coverage_days=coverage.days,
            has_samples=unmeasured.has_samples,
        ),
        unmeasured=unmeasured.servers[:UNMEASURED_SHOWN],
        unmeasured_servers=len(unmeasured.servers),
        missed=coverage.missed,
        missed_servers=coverage.missed_servers,
        left_out=left_out_note(connection, PERIODS["daily"], newest["daily"]) if "daily" in newest else None,
        grouped_by=grouped_by,
        groups=groups[:GROUPS_SHOWN],
        space=space,
        hidden_groups=max(len(groups) - GROUPS_SHOWN, 0),
        has_tables=are_measured(connection, today),
        bills=bills,
        currency=currency,
        decisions=decision_rows(connection, today),
        periods={name: window.key for name, window in newest.items()},
        retained_wal=retained_wal_on(connection, today),
    )
