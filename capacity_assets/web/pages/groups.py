"""The pages of groups and bills: what each team, engine or server has, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import Field
from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.base.units import human_percent
from capacity_assets.charts.bars import MOST_SERIES
from capacity_assets.ownership.bills import (
    CENT,
    BillByGroup,
    BillGroup,
    MonthlyAmount,
    amounts_of_databases,
    groups_of_bill,
    monthly_amounts,
    notes,
    quantity_note,
    read_bill_of,
)
from capacity_assets.ownership.budgets import BudgetLine
from capacity_assets.ownership.groups import (
    WITHOUT_LABEL,
    GroupFillDate,
    being_computed,
    default_grouping,
    fill_dates,
    fills_first,
    groups_changed_at,
    refuse_unknown_grouping,
)
from capacity_assets.reading.forecasts import Runway, forecast_day, runways_of
from capacity_assets.reading.forecasts import fills_first as runways_by_day
from capacity_assets.reading.groups import (
    Group,
    GroupSpace,
    ShortServer,
    group_sizes,
    groups_of,
    like_for_like,
    short_servers,
    space_of_groups,
)
from capacity_assets.reading.headlines import Headline, next_to_fill
from capacity_assets.reading.lists import ListedDatabase, databases, with_usage_of_databases
from capacity_assets.reading.savings import FreeSpace, UnchangedDatabases, free_space, unchanged_databases
from capacity_assets.reading.sizes import SizeInWindow, marked, with_gaps
from capacity_assets.reading.subjects import bill_issues, is_outdated, newest_final, server_id_of
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.pages.budgets import shared_budget
from capacity_assets.web.pages.ranges import ChartRange, earlier_windows, shown_range, windows_in
from capacity_assets.web.reader import PARTIAL_SECONDS, Reader, chosen_window, shared_outdated, shared_revision

MONTHLY = PERIODS["monthly"]
GROUP_WINDOWS = 13
HISTORY_MONTHS = 12
GROUPS_PER_PAGE = 200
# The same for every period and window.
FILLS_SECONDS, UNCHANGED_SECONDS = 30, 1800
MEMBERS_SHOWN = 20

T = TypeVar("T")


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
    size_mb: int = 0
    """What all groups have, on all pages of the list."""
    change_mb: int | None = None
    """The sum of the changes that are known."""
    databases: int = 0
    page: int = 1
    has_more: bool = False
    space: Sequence[GroupSpace] = ()
    """What uses the space, by group; on the first page only."""

    @property
    def growth(self) -> str:
        """The change in percent of the size before."""
        return "unknown" if self.change_mb is None else human_percent(self.change_mb, self.size_mb - self.change_mb)


@dataclass(frozen=True)
class Member(ListedDatabase):
    """A database of a group, with what it cost the group in the last final bill; `amount` None: not billed."""

    amount: Decimal | None = None
    amount_percent: float | None = None
    """Its part of the amount of the group."""


@dataclass(frozen=True)
class GroupCost:
    """What a group had to pay in the last month that is over, and in the months up to it."""

    month: date
    issue: int
    currency: str
    bill: BillGroup
    compared_month: date | None
    """The month before; None where the two are not compared."""
    history_months: Sequence[date]
    history: Sequence[MonthlyAmount]


@dataclass(frozen=True)
class GroupPage:
    """One group up to a window; `name` None: what has no such label."""

    grouped_by: str
    name: str | None
    period: str
    window_start: date | None
    window_end: date | None
    shown: ChartRange
    sizes: Sequence[SizeInWindow]
    earlier: Sequence[SizeInWindow]
    """Sizes of a year before, where they are compared."""
    missed: Sequence[ShortServer]
    """Servers that make windows partly measured."""
    members: Sequence[Member]
    has_more_members: bool
    fills_first: Sequence[Runway]
    has_forecast: bool
    declared_since: Sequence[str]
    """Servers of the fleet whose limits, steps or plans changed after the newest forecast."""
    headline: Headline
    """What of it is full first."""
    notice: str | None = None
    """When labels changed that the groups do not show yet, in a sentence."""
    cost: GroupCost | None = None
    free_space: FreeSpace | None = None
    """Free space in its tables in the month of the cost; None: none is known."""
    budget: BudgetLine | None = None
    """Its line in the budget of the next twelve months; None: no forecast of it was issued."""
    budget_last_day: date | None = None
    budget_currency: str | None = None

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
    """Those without databases had some the month before."""
    notes: Sequence[str]
    is_outdated: bool = False
    """Whether labels or prices of the month were declared or removed since it was computed, which may change it."""
    found: Annotated[BillByGroup | None, Field(exclude=True)] = None
    """The whole bill, with groups of all pages; not in JSON."""
    is_final: bool = True
    total: BillGroup | None = None
    """All groups together, on all pages of the list."""
    compared_month: date | None = None
    """The month before; None where the two are not compared."""
    history_months: Sequence[date] = ()
    history: Sequence[MonthlyAmount] = ()
    """Final bills of the year up to the month, by at most eight groups: those that cost most, then all others."""
    page: int = 1
    has_more: bool = False
    open_months: Sequence[date] = ()
    """Months whose bill is not final."""
    unchanged: UnchangedDatabases | None = None
    """Of the newest version of the last month that is over; else None."""
    free_space: FreeSpace | None = None
    """As above; also None if none is known."""


GROUP_ORDERS: dict[str, Callable[[Group], Any]] = {
    "size": lambda group: -group.size_mb,
    "growth": lambda group: (group.change_mb is None, -(group.change_mb or 0)),
    "shrinkage": lambda group: (group.change_mb is None, group.change_mb or 0),
    "percent": lambda group: (group.change_percent is None, -(group.change_percent or 0)),
    "fills": lambda group: group.fills_first.day if group.fills_first else date.max,
    "name": lambda group: (group.name is None, group.name or ""),
}


def read_groups(reader: Reader, query: PageQuery) -> GroupsPage:
    """Read the groups. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    by, period, order = _grouping(query), query.period("monthly"), query.one_of("order", tuple(GROUP_ORDERS))
    fills = _fills_first(reader, by)
    with reader.transaction() as connection:
        window = chosen_window(connection, query, period)
        groups: list[Group] = []
        space: list[GroupSpace] = []
        if window:
            groups = sorted(groups_of(connection, period, window, by, fills), key=GROUP_ORDERS[order])
            if query.page == 1:
                space = space_of_groups(connection, period, window, by, groups)
        notice = _notice(connection, period, [window] if window else [], by)
    shown, has_more = _page_of(groups, query)
    changes = [group.change_mb for group in groups if group.change_mb is not None]
    return GroupsPage(
        grouped_by=by,
        groupings=(*query.label_keys, *WITHOUT_LABEL),
        period=period.name,
        window_start=window.start if window else None,
        window_end=window.end if window else None,
        order=order,
        groups=shown,
        notice=notice,
        size_mb=sum(group.size_mb for group in groups),
        change_mb=sum(changes) if changes else None,
        databases=sum(group.databases for group in groups),
        page=query.page,
        has_more=has_more,
        space=space,
    )


def _page_of(groups: Sequence[T], query: PageQuery) -> tuple[Sequence[T], bool]:
    """Return the groups of the page that the address asks for, and whether there are more behind them."""
    most = max(query.rows_shown, GROUPS_PER_PAGE)
    first = (query.page - 1) * most
    return groups[first : first + most], len(groups) > first + most


def _notice(connection: Connection, period: Period, windows: Sequence[Window], by: str) -> str | None:
    changed_at = None if by == "server" else groups_changed_at(connection, period, windows)
    return being_computed(changed_at) if changed_at else None


def _fills_first(reader: Reader, by: str) -> dict[str | None, GroupFillDate]:
    if by == "server":
        # As many groups as servers, of which the others keep some names each.
        return reader.kept_of(("fills first", by, shared_revision(reader)), partial(fills_first, by=by), FILLS_SECONDS)
    return {name: dates[0] for name, dates in _filling(reader, by).items()}


def _filling(reader: Reader, by: str) -> dict[str | None, list[GroupFillDate]]:
    """Return what of each group fills first, for the page of all groups and those of each."""
    read = partial(fill_dates, by=by, most=MEMBERS_SHOWN)
    return reader.kept_of(("filling", by, shared_revision(reader)), read, FILLS_SECONDS)


def read_group(reader: Reader, query: PageQuery) -> GroupPage:
    """Read one group. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, name = _grouping(query), query.text("name") or None
    shown = shown_range(reader, query, MONTHLY.name)
    period = PERIODS[shown.period]
    if name is None and by in WITHOUT_LABEL:
        raise NotFoundError(f"The address names no {by}.")
    filling = [] if by == "server" else _filling(reader, by).get(name, [])
    with reader.transaction() as connection:
        window = chosen_window(connection, query, period)
        windows: list[Window] = []
        if window is not None:
            windows = windows_in(shown, window) if shown.name else period.back(window, GROUP_WINDOWS)
        sizes = with_gaps(windows, group_sizes(connection, period, windows, by, name))
        earlier = group_sizes(connection, period, earlier_windows(shown, windows), by, name)
        if by == "server":
            # The name of a server is the name of its group.
            ahead = runways_by_day(connection, query.today, shown=MEMBERS_SHOWN, server=name)
        else:
            keys = [(one.server_id, one.subject, one.name) for one in filling]
            ahead = runways_of(connection, query.today, keys)
        listed, more = _members(connection, query, period, window, by, name, reader.thresholds)
        cost = _cost(connection, by, name)
        members = _with_cost(connection, cost, by, name, listed)
        is_known = bool(members) or any(one.size_mb is not None for one in sizes)
        if not is_known and not (shown.name and _has_windows(connection, window, by, name)):
            raise NotFoundError(f"There is no group {name!r} by {by}.")
        issued = forecast_day(connection)
        notice = _notice(connection, period, windows, by)
    short = partial(short_servers, period=period, windows=windows, grouped_by=by, name=name)
    ends = (windows[0].start, windows[-1].start) if windows else ()
    key = ("partial", period.name, by, name, *ends)
    missed = reader.kept_of(key, short, PARTIAL_SECONDS)
    sizes = marked(sizes, {one.window_start for one in missed})
    with reader.transaction() as connection:
        sizes = like_for_like(connection, period, sizes, by, name)
    return GroupPage(
        grouped_by=by,
        name=name,
        period=period.name,
        window_start=window.start if window else None,
        window_end=window.end if window else None,
        shown=shown,
        sizes=sizes,
        earlier=earlier,
        missed=missed,
        members=members,
        has_more_members=more,
        fills_first=ahead,
        has_forecast=issued is not None,
        declared_since=shared_outdated(reader),
        headline=next_to_fill(next(iter(ahead), None), reader.thresholds, issued=issued),
        notice=notice,
        cost=cost,
        free_space=None if cost is None else _free_space(reader, (MONTHLY.window_of(cost.month), cost.issue), by, name),
        **_budget(reader, query, by, name),
    )


def _budget(reader: Reader, query: PageQuery, by: str, name: str | None) -> dict[str, Any]:
    """Return the line of a group in the budget of twelve months, with its last day and currency, where there is one.

    Servers have no budget.
    """
    if by == "server":
        return {}
    try:
        found = shared_budget(reader, query, by)
    except NotFoundError:
        return {}
    line = next((line for line in found.lines if line.name == name), None)
    return {"budget": line, "budget_last_day": found.last_day, "budget_currency": found.currency}


def _has_windows(connection: Connection, window: Window | None, by: str, name: str | None) -> bool:
    """Whether a group has a size in the last months, where the range of the page has none."""
    if window is None:
        return False
    months = MONTHLY.back(MONTHLY.window_of(window.start), GROUP_WINDOWS)
    return any(one.size_mb is not None for one in group_sizes(connection, MONTHLY, months, by, name))


def _cost(connection: Connection, by: str, name: str | None) -> GroupCost | None:
    """Return what the newest final bill says of a group; None where it says nothing, or nothing had a price."""
    last = newest_final(bill_issues(connection))
    if last is None or last.currency is None:
        return None
    month = MONTHLY.window_of(last.month)
    bill = next(iter(groups_of_bill(connection, month, last.issue, by, only=name or "")), None)
    if bill is None:
        return None
    months = MONTHLY.back(month, HISTORY_MONTHS)
    history = monthly_amounts(connection, months, by, last.currency, only=name or "")
    before = MONTHLY.previous(month).start if bill.change is not None else None
    starts = [one.start for one in months]
    return GroupCost(last.month, last.issue, last.currency, bill, before, starts, history)


def _members(  # noqa: PLR0913, PLR0917 -- what is listed, and how it is marked
    connection: Connection,
    query: PageQuery,
    period: Period,
    window: Window | None,
    by: str,
    name: str | None,
    thresholds: Thresholds,
) -> tuple[list[ListedDatabase], bool]:
    members = partial(databases, connection, period, window, order="growth", shown=MEMBERS_SHOWN)
    if by == "engine":
        listed, more = members(engine=name)
    elif by == "server":
        listed, more = members(server_id=server_id_of(connection, str(name)) or 0)
    else:
        listed, more = members(label=(by, name or ""))
    return with_usage_of_databases(connection, period, window, listed, thresholds, query.today), more


def _with_cost(
    connection: Connection, cost: GroupCost | None, by: str, name: str | None, listed: Sequence[ListedDatabase]
) -> list[Member]:
    """Return the databases of a group with what they cost in the month of its bill."""
    if cost is None:
        return [Member(**vars(row)) for row in listed]
    keys, whole = [(row.server_id, row.database) for row in listed], cost.bill.exact_amount
    billed = amounts_of_databases(connection, (cost.month, cost.issue), by, name, keys)
    members = []
    for row, key in zip(listed, keys, strict=True):
        member, amount = Member(**vars(row)), billed.get(key)
        if amount is not None:
            share = float(100 * amount / whole) if whole else None
            member = replace(member, amount=amount.quantize(CENT, ROUND_HALF_UP), amount_percent=share)
        members.append(member)
    return members


def read_bill_page(reader: Reader, query: PageQuery) -> BillPage:
    """Read a bill. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, month, issue = _grouping(query), query.day("month"), query.number("issue", 0, 10_000) or None
    groupings = (*query.label_keys, *WITHOUT_LABEL)
    with reader.transaction() as connection:
        every = bill_issues(connection)
        months = list(dict.fromkeys(one.month for one in every))
        if month is None and not months:
            return BillPage(None, (), by, groupings, None, (), None, None, (), ())
        # By default, the newest month with a final bill.
        final = newest_final(every)
        window = MONTHLY.window_of(month or (final.month if final else months[0]))
        issued = read_bill_of(connection, window, by, issue)
        bill, of_month = issued.bill, [one for one in every if one.month == window.start]
        may_change = bill.issue == of_month[-1].issue and bill.samples_dropped_at is None
        outdated = may_change and is_outdated(connection, of_month[-1], window)
        past = MONTHLY.back(window if bill.is_final else MONTHLY.previous(window), HISTORY_MONTHS)
        currency = bill.currency
        history = [] if currency is None else monthly_amounts(connection, past, by, currency, MOST_SERIES)
    groups, has_more = _page_of([*issued.groups, *issued.former_groups], query)
    is_newest = final is not None and (bill.month, bill.issue) == (final.month, final.issue)
    return BillPage(
        month=bill.month,
        months=months,
        grouped_by=by,
        groupings=groupings,
        issue=bill.issue,
        issues=[one.issue for one in of_month],
        currency=currency,
        amount=None if bill.amount is None else f"{bill.amount:f}",
        groups=groups,
        notes=[*notes(issued), quantity_note(issued)],
        is_outdated=outdated,
        found=issued,
        is_final=bill.is_final,
        total=issued.total,
        compared_month=None if issued.compared_issue is None else MONTHLY.previous(window).start,
        history_months=[one.start for one in past],
        history=history,
        page=query.page,
        has_more=has_more,
        open_months=[one.month for one in every if not one.is_final],
        unchanged=_unchanged(reader, window, bill.issue) if is_newest else None,
        free_space=_free_space(reader, (window, bill.issue)) if is_newest else None,
    )


def _unchanged(reader: Reader, month: Window, issue: int) -> UnchangedDatabases:
    """Return the databases that did not change, which bills by every grouping show, and which takes long to read."""
    read = partial(unchanged_databases, month=month, issue=issue, shown=MEMBERS_SHOWN)
    return reader.kept_of(("unchanged", month, issue), read, UNCHANGED_SECONDS)


def _free_space(reader: Reader, bill: tuple[Window, int], by: str = "", name: str | None = None) -> FreeSpace | None:
    read = partial(free_space, bill=bill, shown=MEMBERS_SHOWN, by=by, name=name or "")
    return reader.kept_of(("free", *bill, by, name), read, UNCHANGED_SECONDS)


def _grouping(query: PageQuery) -> str:
    by = query.text("by") or default_grouping(query.label_keys)
    refuse_unknown_grouping(by, query.label_keys)
    return by
