"""The pages of groups and bills: what each team, engine or server has, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.ownership.bills import DECLARED_STATE, BillGroup, IssuedBill, notes, quantity_note, read_bill_of
from capacity_assets.ownership.groups import (
    WITHOUT_LABEL,
    Filling,
    FillsFirst,
    Group,
    being_computed,
    default_grouping,
    filling_of_groups,
    fills_first,
    first_of_each,
    groups_changed_at,
    groups_of,
    refuse_unknown_grouping,
)
from capacity_assets.web.addresses import Asked
from capacity_assets.web.reading import Reader, asked_window, databases, declared_since, ends_of, found, rows, runways
from capacity_assets.web.rendering import DatabaseRow, Runway, SizeInWindow, with_gaps

GROUP_WINDOWS = 13
# The same for every period and window.
FILLS_SECONDS_KEPT = 30
MEMBERS_SHOWN = 20


@dataclass(frozen=True)
class GroupsPage:
    """Groups of a window, by one key; they add up to the fleet."""

    grouped_by: str
    groupings: Sequence[str]
    period: str
    window_start: date | None
    window_end: date | None
    order: str
    groups: Sequence[Group]
    notice: str | None = None
    """When labels changed that the groups do not show yet, in a sentence."""

    @property
    def size_mb(self) -> int:
        """What all groups have."""
        return sum(group.size_mb for group in self.groups)


@dataclass(frozen=True)
class GroupPage:
    """One group up to a window; `name` None: what has no such label."""

    grouped_by: str
    name: str | None
    period: str
    window_start: date | None
    window_end: date | None
    sizes: Sequence[SizeInWindow]
    members: Sequence[DatabaseRow]
    has_more_members: bool
    fills_first: Sequence[Runway]
    has_forecast: bool
    declared_since: Sequence[str]
    """Servers of the fleet whose limits or steps changed after the newest forecast."""
    notice: str | None = None
    """When labels changed that the groups do not show yet, in a sentence."""

    @property
    def display_name(self) -> str:
        """The group as people read it."""
        return f"no {self.grouped_by}" if self.name is None else self.name


@dataclass(frozen=True)
class BillPage:
    """A bill by groups, and which other months and issues there are."""

    month: date | None
    months: Sequence[date]
    grouped_by: str
    groupings: Sequence[str]
    issue: int | None
    issues: Sequence[int]
    currency: str | None
    amount: str | None
    groups: Sequence[BillGroup]
    notes: Sequence[str]
    is_outdated: bool = False
    """Whether labels or prices of the month were declared or removed since it was computed, which may change it."""
    found: IssuedBill | None = None


GROUP_ORDERS: dict[str, Callable[[Group], Any]] = {
    "size": lambda group: -group.size_mb,
    "growth": lambda group: (group.change_mb is None, -(group.change_mb or 0)),
    "shrinkage": lambda group: (group.change_mb is None, group.change_mb or 0),
    "fills": lambda group: group.fills_first.day if group.fills_first else date.max,
    "name": lambda group: (group.name is None, group.name or ""),
}


def read_groups(reader: Reader, asked: Asked) -> GroupsPage:
    """Read the groups. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    by, period, order = _grouping(asked), asked.period("monthly"), asked.one_of("order", tuple(GROUP_ORDERS))
    fills = _fills_first(reader, by)
    with reader.transaction() as connection:
        window = asked_window(connection, asked, period)
        groups: list[Group] = []
        if window:
            groups = sorted(groups_of(connection, period, window, by, fills), key=GROUP_ORDERS[order])
        notice = _notice(connection, period, [window] if window else [], by)
        groupings = (*asked.label_keys, *WITHOUT_LABEL)
        return GroupsPage(by, groupings, period.name, *ends_of(window), order, groups, notice)


def _notice(connection: Connection, period: Period, windows: Sequence[Window], by: str) -> str | None:
    changed_at = None if by == "server" else groups_changed_at(connection, period, windows)
    return being_computed(changed_at) if changed_at else None


def _fills_first(reader: Reader, by: str) -> dict[str | None, FillsFirst]:
    if by == "server":
        # As many groups as servers, of which the others keep some names each.
        return reader.kept_of(("fills first", by), partial(fills_first, by=by), FILLS_SECONDS_KEPT)
    return first_of_each(_kept_filling(reader, by))


def _kept_filling(reader: Reader, by: str) -> dict[str | None, list[Filling]]:
    """Return what of each group fills first, for the page of all groups and those of each."""
    read = partial(filling_of_groups, by=by, most=MEMBERS_SHOWN)
    return reader.kept_of(("filling", by), read, FILLS_SECONDS_KEPT)


def read_group(reader: Reader, asked: Asked) -> GroupPage:
    """Read one group. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, period, name = _grouping(asked), asked.period("monthly"), asked.text("name") or None
    if name is None and by in WITHOUT_LABEL:
        raise NotFoundError(f"The address names no {by}.")
    filling = [] if by == "server" else _kept_filling(reader, by).get(name, [])
    changed = declared_since(reader)
    with reader.transaction() as connection:
        window = asked_window(connection, asked, period)
        windows = [] if window is None else period.back(window, GROUP_WINDOWS)
        sizes = _group_history(connection, period, windows, by, name)
        members, more = _members(connection, period, window, by, name)
        if not any(one.size_mb is not None for one in sizes) and not members:
            raise NotFoundError(f"There is no group {name!r} by {by}.")
        ahead = _filling_of_a_server(connection, name) if by == "server" else _runways_of(connection, filling)
        has_forecast = bool(ahead) or rows(connection, _HAS_FORECAST)[0].is_it
        place = (by, name, period.name, *ends_of(window))
        notice = _notice(connection, period, windows, by)
        return GroupPage(*place, sizes, members, more, ahead, has_forecast, changed, notice)


def _group_history(
    connection: Connection, period: Period, windows: Sequence[Window], by: str, name: str | None
) -> list[SizeInWindow]:
    """Return the group in some windows, oldest first; those in which it had nothing are empty."""
    asked = {"period": period.name, "starts": [window.start for window in windows]}
    sizes = found(SizeInWindow, connection, _GROUP_SIZES, {**asked, "by": by, "name": name})
    if not sizes and name is None:
        # Without any label of this key, everything is one group.
        sizes = found(SizeInWindow, connection, _FLEET_SIZES, asked)
    return with_gaps(windows, sizes)


def _filling_of_a_server(connection: Connection, name: str | None) -> list[Runway]:
    return runways(connection, _FILLS_ON_SERVER, {"name": name, "shown": MEMBERS_SHOWN})


def _runways_of(connection: Connection, filling: Sequence[Filling]) -> list[Runway]:
    asked = {
        "servers": [one.server_id for one in filling],
        "subjects": [one.subject for one in filling],
        "names": [one.first.name for one in filling],
    }
    return runways(connection, _THESE, asked) if filling else []


def _members(
    connection: Connection, period: Period, window: Window | None, by: str, name: str | None
) -> tuple[list[DatabaseRow], bool]:
    if by == "engine":
        return databases(connection, period, window, order="growth", engine=name, shown=MEMBERS_SHOWN)
    if by == "server":
        query = "SELECT server_id FROM capacity_servers WHERE server = :name"
        named = rows(connection, query, {"name": name})
        number = named[0].server_id if named else 0
        return databases(connection, period, window, order="growth", server_id=number, shown=MEMBERS_SHOWN)
    return databases(connection, period, window, order="growth", label=(by, name or ""), shown=MEMBERS_SHOWN)


def read_bill_page(reader: Reader, asked: Asked) -> BillPage:
    """Read a bill. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, month, issue = _grouping(asked), asked.day("month"), asked.number("issue", 0, 10_000) or None
    groupings = (*asked.label_keys, *WITHOUT_LABEL)
    with reader.transaction() as connection:
        months = [row.month for row in rows(connection, _MONTHS)]
        if month is None and not months:
            return BillPage(None, (), by, groupings, None, (), None, None, (), ())
        window = PERIODS["monthly"].window_of(month or rows(connection, _NEWEST_FINAL)[0].month or months[0])
        read = read_bill_of(connection, window, by, issue)
        issues = [row.issue for row in rows(connection, _ISSUES, {"month": window.start})]
        bill = read.bill
        amount = None if bill.amount is None else f"{bill.amount:f}"
        place = (bill.month, months, by, groupings, bill.issue, issues)
        declared = {"month": window.start, "issue": bill.issue, "end": window.end}
        may_change = bill.issue == issues[-1] and bill.samples_dropped_at is None
        outdated = may_change and rows(connection, _OUTDATED, declared)[0].is_outdated
        remarks = [*notes(read), quantity_note(read)]
        return BillPage(*place, bill.currency, amount, read.groups, remarks, bool(outdated), read)


def _grouping(asked: Asked) -> str:
    by = asked.text("by") or default_grouping(asked.label_keys)
    refuse_unknown_grouping(by, asked.label_keys)
    return by


_GROUP_SIZES = """
SELECT window_start, window_end, size_mb, change_mb
FROM capacity_groups
WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND grouped_by = :by
  AND group_name IS NOT DISTINCT FROM CAST(:name AS text)
"""
_FLEET_SIZES = """
SELECT window_start, window_end, sum(size_mb) AS size_mb, sum(change_mb) AS change_mb
FROM capacity_groups
WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND grouped_by = 'engine'
GROUP BY window_start, window_end
"""
_FILLS_ON_SERVER = """
WHERE full_middle IS NOT NULL AND server = :name ORDER BY full_middle, name LIMIT :shown
"""
_THESE = """
WHERE (server_id, subject, name) IN (
    SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:subjects AS text[]), CAST(:names AS text[])))
ORDER BY full_middle, server, name
"""
# The newest month whose bill is final is the one that people talk about.
_NEWEST_FINAL = "SELECT max(month) AS month FROM capacity_bills WHERE is_final"
_HAS_FORECAST = "SELECT EXISTS (SELECT 1 FROM capacity_runway) AS is_it"
_MONTHS = "SELECT DISTINCT month FROM capacity_bills ORDER BY month DESC"
_ISSUES = "SELECT issue FROM capacity_bills WHERE month = :month ORDER BY issue"
_OUTDATED = f"""
SELECT declared_state IS DISTINCT FROM {DECLARED_STATE} AS is_outdated
FROM capacity_bills WHERE month = :month AND issue = :issue
"""  # noqa: S608 -- names of our own
