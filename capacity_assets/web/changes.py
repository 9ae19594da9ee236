"""The page Changes: what changed in the fleet in a window, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

from sqlalchemy import Connection

from capacity_assets.base.declarations import fleet_or_label
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.ownership.labels import WITHOUT_LABEL
from capacity_assets.reading.changes import (
    DatabaseOfOneWindow,
    MovedDatabase,
    ServerOfOneWindow,
    moved_databases,
    new_and_gone,
    servers_come_and_gone,
)
from capacity_assets.reading.coverage import MissedDays, coverage_of
from capacity_assets.reading.forecasts import FillDateChange, moved_fill_dates
from capacity_assets.reading.groups import Group, GroupMove, group_moves, groups_of, left_out_note, out_of_service_note
from capacity_assets.reading.lists import databases
from capacity_assets.reading.sizes import (
    SizeInWindow,
    change_sentence,
    fleet_history,
    with_gaps,
)
from capacity_assets.reading.subjects import DeclaredStep, steps_between
from capacity_assets.reading.table_growth import are_measured
from capacity_assets.reading.windows import newest_day
from capacity_assets.web.bills import grouping_of
from capacity_assets.web.forecasts import DecisionRow, decision_rows
from capacity_assets.web.groups import shared_fills_first
from capacity_assets.web.reader import PageQuery, Reader, chosen_window, shared_revision, with_partial_marks

MOVED_SHOWN, LISTED, GROUPS_SHOWN = 10, 20, 12
MOVED_DAYS, WITHIN_DAYS = 8, 365
"""A fill date has moved if it differs by more than a week."""
CHANGES_SECONDS, MOVED_SECONDS = 30, 300


@dataclass(frozen=True)
class ChangesPage:
    """What changed in the fleet in a window, compared with the previous window."""

    period: str
    window_start: date | None
    window_end: date | None
    headline: str = ""
    size: SizeInWindow | None = None
    """The size of the fleet; None: it was not measured in the window."""
    before_mb: int | None = None
    """The size of the fleet in the previous window; None: it was not measured."""
    grouped_by: str = ""
    groupings: Sequence[str] = ()
    groups: Sequence[Group] = ()
    """The largest changes, largest first."""
    other_groups: int = 0
    """Number of groups that are not listed."""
    other_change_mb: int | None = None
    """The sum of the known changes of these; None: none is known."""
    out_of_service: str | None = None
    """A sentence on servers that the groups contain and the size of the fleet does not."""
    left_out: str | None = None
    """A sentence on servers whose sizes are impossible, which are in no group."""
    rest_change_mb: int | None = None
    """The change of the fleet minus the changes of all groups; None: no change of the fleet is shown.

    The difference has three causes: rounding; databases that were added, dropped or moved in a group that is compared
    like for like; and servers measured in only one of the two windows, whose change is not in that of the fleet.
    """
    is_rest_rounding: bool = True
    """Whether rounding alone explains it."""
    once_measured_mb: int | None = None
    """The size added by servers measured in only one of the two windows; 0 if rounding alone explains it.

    None: no change of the fleet is shown.
    """
    moves: Sequence[GroupMove] = ()
    """Databases that left one group for another in the window, the largest first."""
    has_more_moves: bool = False
    steps: Sequence[DeclaredStep] = ()
    """Declared steps in the window."""
    changed: Sequence[MovedDatabase] = ()
    """Databases that grew most, then those that shrank most. A file contains all with a known change."""
    new: Sequence[DatabaseOfOneWindow] = ()
    new_databases: int | None = None
    """None: nothing was measured in the window, or in the one before."""
    gone: Sequence[DatabaseOfOneWindow] = ()
    gone_databases: int | None = None
    """None: as for `new_databases`."""
    came: Sequence[ServerOfOneWindow] = ()
    """Servers that were first measured in the window; their size is not in the change of the fleet."""
    came_servers: int | None = None
    """None: as for `new_databases`."""
    went: Sequence[ServerOfOneWindow] = ()
    """Servers out of service that are no longer measured; their size is not in the change either."""
    went_servers: int | None = None
    """None: as for `new_databases`."""
    sooner: Sequence[FillDateChange] = ()
    """Fill dates that came closer by more than a week since the first day of the window, or are new."""
    sooner_dates: int | None = None
    """None: there are no two forecasts to compare."""
    later: Sequence[FillDateChange] = ()
    """Fill dates that moved further away by more than a week, or are no longer within a year."""
    later_dates: int | None = None
    """None: as for `sooner_dates`."""
    forecast_as_of: date | None = None
    compared_as_of: date | None = None
    """Days on which the two compared forecasts were issued; None: none was."""
    decided_dates: int = 0
    """Number of fill dates that decisions leave out."""
    decisions: Sequence[DecisionRow] = ()
    """Decisions that were taken in the window."""
    missed: Sequence[MissedDays] = ()
    """Servers in service that were not measured on every day of the window."""
    missed_servers: int | None = None
    """None: no server was measured up to the window, or none since."""
    has_tables: bool = False
    """Whether tables and indexes were measured in the last month."""

    @property
    def grown(self) -> Sequence[MovedDatabase]:
        """The databases that grew most."""
        return [row for row in self.changed if (row.change_mb or 0) > 0]

    @property
    def shrunk(self) -> Sequence[MovedDatabase]:
        """The databases that shrank most."""
        return [row for row in self.changed if (row.change_mb or 0) < 0]


def read_changes(reader: Reader, query: PageQuery) -> ChangesPage:
    """Read the changes. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    by, period = grouping_of(query), query.period("weekly")
    groupings = (*query.label_keys, *WITHOUT_LABEL)
    window = chosen_window(reader, query, period)
    if window is None:
        return ChangesPage(period.name, None, None, grouped_by=by, groupings=groupings)
    key = ("changes", period.name, window, query.today, shared_revision(reader))
    read = partial(_of_any_grouping, period=period, window=window, today=query.today, thresholds=reader.thresholds)
    page = reader.read_cached(key, read, CHANGES_SECONDS, is_for_all=True)
    before, size = _sizes(reader, period, window)
    # Comparing all databases takes longest. When a window is computed again, another size of the fleet shows it.
    read_moved = partial(_moved, period=period, window=window)
    moved_key = ("moved", period.name, before, size, shared_revision(reader))
    moved = reader.read_cached(moved_key, read_moved, MOVED_SECONDS, is_for_all=True)
    page = replace(page, **moved)
    are_measured_both = before.size_mb is not None and size.size_mb is not None
    with reader.transaction() as connection:
        groups = groups_of(connection, period, window, by)
        if [group.name for group in groups] == [None] and not query.text("by"):
            # Nothing has such a label.
            by = WITHOUT_LABEL[0]
            groups = groups_of(connection, period, window, by)
        out_of_service = out_of_service_note(connection, period, window, by)
        left_out = left_out_note(connection, period, window)
        moves = group_moves(connection, period, [window], by, shown=LISTED + 1, every=True)
        changed = page.changed if query.page == 1 else ()
        if query.is_file:
            listed, _ = databases(connection, period, window, order="growth", page=query.page, shown=query.rows_shown)
            changed = [MovedDatabase(**vars(row)) for row in listed]
    groups.sort(key=lambda group: (group.change_mb is None, -abs(group.change_mb or 0)))
    fills = shared_fills_first(reader, by)
    is_compared = size.change_mb is not None and not size.is_change_partial
    rest = (size.change_mb or 0) - _sum_of(groups)
    before_mb = size.compared_mb if before.size_mb is None else before.size_mb
    once_mb = (size.size_mb or 0) - before_mb - (size.change_mb or 0)
    # Each group and each server is rounded to a MiB.
    rounding_mb = len(groups) + sum(group.servers for group in groups)
    return replace(
        page,
        headline=change_sentence(fleet_or_label(None), period, size, is_open=period.is_open(window, query.today)),
        size=None if size.size_mb is None else size,
        before_mb=before.size_mb,
        grouped_by=by,
        groupings=groupings,
        groups=[replace(group, fills_first=fills.get(group.name)) for group in groups[:GROUPS_SHOWN]],
        other_groups=len(groups[GROUPS_SHOWN:]),
        other_change_mb=_sum_of_others(groups),
        out_of_service=out_of_service,
        left_out=left_out,
        rest_change_mb=rest if is_compared else None,
        is_rest_rounding=abs(rest) <= rounding_mb,
        once_measured_mb=(once_mb if abs(once_mb) > rounding_mb else 0) if is_compared else None,
        moves=moves[:LISTED],
        has_more_moves=len(moves) > LISTED,
        changed=changed,
        new_databases=page.new_databases if are_measured_both else None,
        gone_databases=page.gone_databases if are_measured_both else None,
        came_servers=page.came_servers if are_measured_both else None,
        went_servers=page.went_servers if are_measured_both else None,
    )


def _sum_of(groups: Sequence[Group]) -> int:
    return sum(group.change_mb or 0 for group in groups)


def _sum_of_others(groups: Sequence[Group]) -> int | None:
    """Return the known changes of the groups that are not listed; None: there is no group, or none is known."""
    others = groups[GROUPS_SHOWN:]
    is_known = any(group.change_mb is not None for group in others) if others else bool(groups)
    return _sum_of(others) if is_known else None


def _of_any_grouping(
    connection: Connection, period: Period, window: Window, today: date, thresholds: Thresholds
) -> ChangesPage:
    last = newest_day(connection, today)
    came, went = servers_come_and_gone(connection, period, window, None)
    dates = moved_fill_dates(
        *(connection, window.start, window.end, None, thresholds, today),
        moved_days=MOVED_DAYS,
        within_days=WITHIN_DAYS,
        with_soon=False,
    )
    page = ChangesPage(
        period=period.name,
        window_start=window.start,
        window_end=window.end,
        steps=steps_between(connection, window.start, window.end),
        came=came[:LISTED],
        came_servers=len(came),
        went=went[:LISTED],
        went_servers=len(went),
        sooner=dates.sooner[:LISTED],
        sooner_dates=len(dates.sooner) if dates.compared_as_of else None,
        later=dates.later[:LISTED],
        later_dates=len(dates.later) if dates.compared_as_of else None,
        forecast_as_of=dates.as_of,
        compared_as_of=dates.compared_as_of,
        decided_dates=dates.decided,
        decisions=decision_rows(connection, today, every=True, taken_in=window),
        has_tables=are_measured(connection, today),
    )
    if last is None or last < window.start:
        return page
    # A window that is not over counts up to the newest day.
    end = min(window.end, last)
    coverage = coverage_of(connection, end, (end - window.start).days + 1, shown=LISTED)
    known = None if coverage.percent is None else coverage.missed_servers
    return replace(page, missed=coverage.missed, missed_servers=known)


def _moved(connection: Connection, period: Period, window: Window) -> dict[str, Any]:
    """Return the values of the page on databases that changed, came or went."""
    new, gone = new_and_gone(connection, period, window, None)
    grown, shrunk = moved_databases(connection, period, window, shown=MOVED_SHOWN)
    return {
        "changed": [*grown, *shrunk],
        "new": new[:LISTED],
        "new_databases": len(new),
        "gone": gone[:LISTED],
        "gone_databases": len(gone),
    }


def _sizes(reader: Reader, period: Period, window: Window) -> tuple[SizeInWindow, SizeInWindow]:
    """Return the size of the fleet in the previous window, and in a window."""
    # Whether it was partly measured follows from the windows around it.
    windows = [*period.back(window, 3), period.following(window)]
    with reader.transaction() as connection:
        sizes = with_gaps(windows, fleet_history(connection, period, windows))
    marked = with_partial_marks(reader, period, sizes)
    by_start = {window_size.window_start: window_size for window_size in marked}
    before, size = (
        by_start.get(shown.start, SizeInWindow(shown.start, shown.end, None))
        for shown in (period.previous(window), window)
    )
    return before, size
