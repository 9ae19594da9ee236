"""The pages of groups: the size of each team, engine or server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.units import human_percent
from capacity_assets.ownership.bills import CENT, amounts_of_databases
from capacity_assets.ownership.budgets import BudgetLine
from capacity_assets.ownership.labels import (
    WITHOUT_LABEL,
    GroupFillDate,
    fill_dates_of_groups,
    first_fill_date_of_groups,
    groups_changed_at,
    read_label_of_nothing,
    stale_groups_notice,
)
from capacity_assets.reading.forecasts import (
    GroupSizeForecast,
    StoredRunway,
    fills_first,
    forecast_day,
    forecast_of_group,
    runways_of,
)
from capacity_assets.reading.groups import (
    Group,
    GroupMove,
    GroupSpace,
    ShortServer,
    changes_of_group,
    departed_servers,
    group_moves,
    group_sizes,
    groups_of,
    left_out_note,
    like_for_like,
    out_of_service_note,
    short_servers,
    space_of_groups,
)
from capacity_assets.reading.lists import DatabaseInList, DatabaseRow, databases, with_usage_of_databases
from capacity_assets.reading.risks import Headline, next_to_fill
from capacity_assets.reading.sizes import LastSize, SizeInWindow, mark_partial, with_gaps
from capacity_assets.reading.subjects import DeclaredStep, server_id_of, steps_of_group
from capacity_assets.reading.table_growth import FreeSpace
from capacity_assets.web.bills import (
    MONTHLY,
    GroupCost,
    cost_of,
    grouping_of,
    shared_budget,
    shared_free_space,
    shared_group_names,
)
from capacity_assets.web.reader import (
    PARTIAL_SECONDS,
    ChartRange,
    PageQuery,
    Reader,
    chosen_window,
    part_of_page,
    shared_outdated,
    shared_revision,
    shown_range,
)

GROUP_WINDOWS = 13
MOST_COMPARED = 13
"""Windows of a history with changes like for like; few, because each reads all databases of the group's servers."""
FILLS_SECONDS = 30
MEMBERS_SHOWN = MOVES_SHOWN = 20


@dataclass(frozen=True)
class GroupsPage:
    """Groups of a window by one key; they add up to the fleet."""

    grouped_by: str
    groupings: Sequence[str]
    period: str
    window_start: date | None
    window_end: date | None
    order: str
    groups: Sequence[Group]
    notice: str | None = None
    """A sentence on when labels changed that the groups do not include yet."""
    out_of_service: str | None = None
    """A sentence on servers that the groups contain and the size of the fleet does not."""
    left_out: str | None = None
    """A sentence on servers whose sizes are impossible, which are in no group."""
    size_mb: int = 0
    """The total of all groups of all pages."""
    change_mb: int | None = None
    """The sum of the known changes."""
    known_before_mb: int = 0
    """The previous size of the groups with a known change."""
    databases: int = 0
    page: int = 1
    has_more: bool = False
    space: Sequence[GroupSpace] = ()
    """The uses of the space by group; only on the first page."""

    @property
    def growth(self) -> str:
        """The change in percent of the previous size of the groups with a known change."""
        return "unknown" if self.change_mb is None else human_percent(self.change_mb, self.known_before_mb)


@dataclass(frozen=True)
class GroupMember(DatabaseInList):
    """A database of a group, with its cost in the last final bill; `amount` None: not billed."""

    amount: Decimal | None = None
    amount_percent: float | None = None
    """Its share of the amount of the group."""


@dataclass(frozen=True)
class GroupPage:
    """A group up to a window; `name` None: everything without such a label."""

    grouped_by: str
    name: str | None
    period: str
    window_start: date | None
    window_end: date | None
    shown: ChartRange
    sizes: Sequence[SizeInWindow]
    earlier: Sequence[SizeInWindow]
    """Sizes of the previous year, if they are compared."""
    missed: Sequence[ShortServer]
    """Servers that make windows partly measured."""
    members: Sequence[GroupMember]
    has_more_members: bool
    fills_first: Sequence[StoredRunway]
    has_forecast: bool
    declared_since: Sequence[str]
    """Servers of the fleet whose limits, steps or plans changed after the newest forecast."""
    headline: Headline
    notice: str | None = None
    """A sentence on when labels changed that the group does not include yet."""
    cost: GroupCost | None = None
    free_space: FreeSpace | None = None
    """Free space in its tables in the month of the cost; None: none is known."""
    forecast: GroupSizeForecast | None = None
    """Its forecast, which the budget rests on; None: none was issued, or it is grouped by server."""
    budget: BudgetLine | None = None
    """Its line in the budget of the next twelve months; None: no forecast of it was issued."""
    budget_last_day: date | None = None
    budget_currency: str | None = None
    steps: Sequence[DeclaredStep] = ()
    """Declared steps of its servers and databases in the windows of the chart."""
    moves: Sequence[GroupMove] = ()
    """Databases that came from or went to other groups in these windows, newest window and largest database first."""
    has_more_moves: bool = False
    departed: Annotated[Sequence[LastSize], Field(exclude=True)] = ()
    """Servers out of service that left it in these windows, with their last size; not in JSON."""
    every_group: Annotated[Sequence[str], Field(exclude=True)] = ()
    """Names of all groups, for the colours of charts; not in JSON."""

    @property
    def display_name(self) -> str:
        """The name as people read it."""
        return f"no {self.grouped_by.replace('_', ' ')}" if self.name is None else self.name


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
    by, period, order = grouping_of(query), query.period("monthly"), query.one_of("order", tuple(GROUP_ORDERS))
    fills, window = shared_fills_first(reader, by), chosen_window(reader, query, period)
    with reader.transaction() as connection:
        groups: list[Group] = []
        space: list[GroupSpace] = []
        if window:
            groups = sorted(groups_of(connection, period, window, by, fills), key=GROUP_ORDERS[order])
            if query.page == 1:
                space = space_of_groups(connection, period, window, by, groups)
        notice = _notice(connection, period, [window] if window else [], by)
        out_of_service = out_of_service_note(connection, period, window, by) if window else None
        left_out = left_out_note(connection, period, window) if window else None
    shown, has_more = part_of_page(groups, query)
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
        out_of_service=out_of_service,
        left_out=left_out,
        size_mb=sum(group.size_mb for group in groups),
        change_mb=sum(changes) if changes else None,
        known_before_mb=sum(group.known_before_mb for group in groups),
        databases=sum(group.databases for group in groups),
        page=query.page,
        has_more=has_more,
        space=space,
    )


def _notice(connection: Connection, period: Period, windows: Sequence[Window], by: str) -> str | None:
    changed_at = None if by == "server" else groups_changed_at(connection, period, windows)
    return stale_groups_notice(changed_at) if changed_at else None


def shared_fills_first(reader: Reader, by: str) -> dict[str | None, GroupFillDate]:
    """Return what fills first in each group, for the lists of groups."""
    if by == "server":
        # There are as many groups as servers, so only the first name of each is kept.
        return reader.read_cached(
            ("fills first", by, shared_revision(reader)), partial(first_fill_date_of_groups, by=by), FILLS_SECONDS
        )
    return {name: dates[0] for name, dates in _filling(reader, by).items()}


def _filling(reader: Reader, by: str) -> dict[str | None, list[GroupFillDate]]:
    read = partial(fill_dates_of_groups, by=by, most=MEMBERS_SHOWN)
    return reader.read_cached(("filling", by, shared_revision(reader)), read, FILLS_SECONDS, is_for_all=True)


def read_group(reader: Reader, query: PageQuery) -> GroupPage:
    """Read a group. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, name = grouping_of(query), query.text("name") or None
    shown = shown_range(reader, query, MONTHLY.name)
    period = PERIODS[shown.period]
    if name is None and by in WITHOUT_LABEL:
        raise NotFoundError(f"The address lacks the parameter name: which {by} is meant.")
    ahead, window = _first_fill_dates(reader, query, by, name), chosen_window(reader, query, period)
    windows = _windows(shown, window)
    with reader.transaction() as connection:
        sizes = with_gaps(windows, group_sizes(connection, period, windows, by, name))
        earlier = group_sizes(connection, period, shown.earlier(windows), by, name)
        of_group, more = _databases(connection, period, window, by, name)
        is_known = bool(of_group) or any(size.size_mb is not None for size in sizes)
        if not is_known:
            _refuse_unknown(connection, shown, window, by, name)
        listed = with_usage_of_databases(connection, period, window, of_group, reader.thresholds, query.today)
        cost = cost_of(connection, by, name)
        members = _with_cost(connection, cost, by, name, listed)
        issued, forecast = forecast_day(connection), forecast_of_group(connection, by, name, query.today)
        notice = _notice(connection, period, windows, by)
        steps = steps_of_group(connection, windows[0].start, windows[-1].end, by, name) if windows else []
        moves = group_moves(connection, period, windows, by, shown=MOVES_SHOWN + 1, name=name)
        departed = departed_servers(connection, windows, by, name)
    missed = _short_servers(reader, period, windows, by, name)
    return GroupPage(
        grouped_by=by,
        name=name,
        period=period.name,
        window_start=window.start if window else None,
        window_end=window.end if window else None,
        shown=shown,
        sizes=_with_like_for_like_changes(
            reader, period, mark_partial(sizes, {server.window_start for server in missed}), by, name
        ),
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
        free_space=None if cost is None else shared_free_space(reader, cost, by, name),
        forecast=forecast,
        steps=steps,
        moves=moves[:MOVES_SHOWN],
        has_more_moves=len(moves) > MOVES_SHOWN,
        departed=departed,
        every_group=shared_group_names(reader, by),
        **_budget(reader, query, by, name),
    )


def _first_fill_dates(reader: Reader, query: PageQuery, by: str, name: str | None) -> list[StoredRunway]:
    keys = (
        []
        if by == "server"
        else [(group.server_id, group.subject, group.name) for group in _filling(reader, by).get(name, [])]
    )
    with reader.transaction() as connection:
        if by == "server":
            # The name of a server is the name of its group.
            return fills_first(connection, query.today, shown=MEMBERS_SHOWN, server=name)
        return runways_of(connection, query.today, keys)


def _windows(shown: ChartRange, newest: Window | None) -> list[Window]:
    if newest is None:
        return []
    return shown.windows(newest) if shown.name else PERIODS[shown.period].back(newest, GROUP_WINDOWS)


def _short_servers(
    reader: Reader, period: Period, windows: Sequence[Window], by: str, name: str | None
) -> list[ShortServer]:
    read = partial(short_servers, period=period, windows=windows, grouped_by=by, name=name)
    ends = (windows[0].start, windows[-1].start) if windows else ()
    return reader.read_cached(("partial", period.name, by, name, *ends), read, PARTIAL_SECONDS)


def _with_like_for_like_changes(
    reader: Reader, period: Period, sizes: Sequence[SizeInWindow], by: str, name: str | None
) -> list[SizeInWindow]:
    """Return sizes whose changes from or to a partial window are like for like."""
    starts = [] if by == "server" else [size.window_start for size in sizes if size.is_change_partial][-MOST_COMPARED:]
    read = partial(changes_of_group, period=period, starts=starts, grouped_by=by, name=name)
    key = ("like for like", period.name, by, name, *starts)
    return like_for_like(sizes, reader.read_cached(key, read, PARTIAL_SECONDS) if starts else {})


def _budget(reader: Reader, query: PageQuery, by: str, name: str | None) -> dict[str, Any]:
    """Return the line of a group in the budget of twelve months, with its last day and currency, if there is one."""
    if by == "server":
        return {}
    try:
        budget = shared_budget(reader, query, by)
    except NotFoundError:
        return {}
    line = next((line for line in budget.lines if line.name == name), None)
    return {"budget": line, "budget_last_day": budget.last_day, "budget_currency": budget.currency}


def _refuse_unknown(
    connection: Connection, shown: ChartRange, window: Window | None, by: str, name: str | None
) -> None:
    """Refuse a group without windows on its page, unless it has others or a label that is too new to have any."""
    if shown.name and _has_windows(connection, window, by, name):
        return
    if name is None:
        raise NotFoundError(f"There are no figures of databases without the label {by} yet.")
    nothing = "" if by in WITHOUT_LABEL else read_label_of_nothing(connection, by, name)
    if nothing is not None:
        raise NotFoundError(f"There is no group {name!r} by {by}. {nothing}".rstrip())


def _has_windows(connection: Connection, window: Window | None, by: str, name: str | None) -> bool:
    """Whether a group has a size in the last months; the range of the page may have none."""
    if window is None:
        return False
    months = MONTHLY.back(MONTHLY.window_of(window.start), GROUP_WINDOWS)
    return any(size.size_mb is not None for size in group_sizes(connection, MONTHLY, months, by, name))


def _databases(
    connection: Connection, period: Period, window: Window | None, by: str, name: str | None
) -> tuple[list[DatabaseRow], bool]:
    """Return the databases of a group that grew most, and whether it has more."""
    read = partial(databases, connection, period, window, order="growth", shown=MEMBERS_SHOWN)
    if by == "engine":
        return read(engine=name)
    if by == "server":
        return read(server_id=server_id_of(connection, str(name)) or 0)
    return read(label=(by, name or ""))


def _with_cost(
    connection: Connection, cost: GroupCost | None, by: str, name: str | None, listed: Sequence[DatabaseInList]
) -> list[GroupMember]:
    if cost is None:
        return [GroupMember(**vars(row)) for row in listed]
    keys, whole = [(row.server_id, row.database) for row in listed], cost.bill.exact_amount
    billed = amounts_of_databases(connection, (cost.month, cost.issue), by, name, keys)
    members = []
    for row, key in zip(listed, keys, strict=True):
        member, amount = GroupMember(**vars(row)), billed.get(key)
        if amount is not None:
            share = float(100 * amount / whole) if whole else None
            member = replace(member, amount=amount.quantize(CENT, ROUND_HALF_UP), amount_percent=share)
        members.append(member)
    return members
