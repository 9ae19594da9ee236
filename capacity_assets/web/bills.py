"""The pages of costs: bills, budgets, and the cost of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Annotated

from pydantic import Field
from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.charts.drawing import MOST_SERIES
from capacity_assets.ownership.bills import (
    BillByGroup,
    BillGroup,
    MonthlyAmount,
    bill_notes,
    groups_of_bill,
    monthly_amounts,
    quantity_note,
    read_bill_of,
)
from capacity_assets.ownership.budgets import MOST_MONTHS, Budget, BudgetLine, BudgetTotal, coming_months, read_budget
from capacity_assets.ownership.labels import WITHOUT_LABEL, default_grouping, refuse_unknown_grouping
from capacity_assets.reading.groups import group_names
from capacity_assets.reading.space import UnchangedDatabases, unchanged_databases
from capacity_assets.reading.subjects import bill_issues, is_outdated, newest_final
from capacity_assets.reading.table_growth import FreeSpace, free_space
from capacity_assets.web.reader import NAMES_SECONDS, PageQuery, Reader, part_of_page, shared_revision

MONTHLY = PERIODS["monthly"]
HISTORY_MONTHS = 12
COSTLIEST_SHOWN = 20
UNCHANGED_SECONDS, BUDGET_SECONDS = 1800, 30


@dataclass(frozen=True)
class BillPage:
    """A bill by groups, and the other months and issues."""

    month: date | None
    months: Sequence[date]
    grouped_by: str
    groupings: Sequence[str]
    issue: int | None = None
    issues: Sequence[int] = ()
    currency: str | None = None
    amount: str | None = None
    groups: Sequence[BillGroup] = ()
    """A group without databases had some in the month before."""
    notes: Sequence[str] = ()
    is_outdated: bool = False
    """Whether labels or prices of the month were declared or removed after the bill was computed, so it may change."""
    bill_by_group: Annotated[BillByGroup | None, Field(exclude=True)] = None
    """The whole bill with the groups of all pages; not in JSON."""
    is_final: bool = True
    total: BillGroup | None = None
    """All groups of all pages."""
    compared_month: date | None = None
    """The month before; None if the two are not compared."""
    history_months: Sequence[date] = ()
    history: Sequence[MonthlyAmount] = ()
    """Final bills of the year up to the month, by at most eight groups: the most expensive, and all others as one."""
    page: int = 1
    has_more: bool = False
    open_months: Sequence[date] = ()
    """Months whose bill is not final."""
    unchanged: UnchangedDatabases | None = None
    """Only in the newest version of the bill of the last month that is over; otherwise None."""
    free_space: FreeSpace | None = None
    """Only in the same bill, otherwise None; also None if no free space is known."""
    every_group: Annotated[Sequence[str], Field(exclude=True)] = ()
    """Names of all groups, for the colours of charts; not in JSON."""


def shared_group_names(reader: Reader, by: str) -> list[str]:
    """Return the names of all groups, so that each has the same colour on every page."""
    return reader.read_cached(("group names", by, shared_revision(reader)), partial(group_names, by=by), NAMES_SECONDS)


def grouping_of(query: PageQuery) -> str:
    """Return the grouping of the address, by default that by the first label key; raises ValidationError."""
    by = query.text("by") or default_grouping(query.label_keys)
    refuse_unknown_grouping(by, query.label_keys)
    return by


def read_bill_page(reader: Reader, query: PageQuery) -> BillPage:
    """Read a bill. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, month, issue = grouping_of(query), query.day("month"), query.number("issue", 0, 10_000) or None
    groupings = (*query.label_keys, *WITHOUT_LABEL)
    with reader.transaction() as connection:
        every = bill_issues(connection)
        months = list(dict.fromkeys(bill_issue.month for bill_issue in every))
        if month is None and not months:
            return BillPage(None, (), by, groupings)
        # By default, the newest month with a final bill.
        final = newest_final(every)
        window = MONTHLY.window_of(month or (final.month if final else months[0]))
        issued = read_bill_of(connection, window, by, issue)
        bill, of_month = issued.bill, [bill_issue for bill_issue in every if bill_issue.month == window.start]
        may_change = bill.issue == of_month[-1].issue and bill.samples_dropped_at is None
        outdated = may_change and is_outdated(connection, of_month[-1], window)
        past = MONTHLY.back(window if bill.is_final else MONTHLY.previous(window), HISTORY_MONTHS)
        currency = bill.currency
        history = [] if currency is None else monthly_amounts(connection, past, by, currency, MOST_SERIES)
    groups, has_more = part_of_page([*issued.groups, *issued.former_groups], query)
    is_newest = final is not None and (bill.month, bill.issue) == (final.month, final.issue)
    return BillPage(
        month=bill.month,
        months=months,
        grouped_by=by,
        groupings=groupings,
        issue=bill.issue,
        issues=[bill_issue.issue for bill_issue in of_month],
        currency=currency,
        amount=None if bill.amount is None else f"{bill.amount:f}",
        groups=groups,
        notes=[*bill_notes(issued), quantity_note(issued)],
        is_outdated=outdated,
        bill_by_group=issued,
        is_final=bill.is_final,
        total=issued.total,
        compared_month=None if issued.compared_issue is None else MONTHLY.previous(window).start,
        history_months=[past_month.start for past_month in past],
        history=history,
        page=query.page,
        has_more=has_more,
        open_months=[bill_issue.month for bill_issue in every if not bill_issue.is_final],
        unchanged=_unchanged_databases(reader, window, bill.issue) if is_newest else None,
        free_space=_free_space(reader, (window, bill.issue)) if is_newest else None,
        every_group=shared_group_names(reader, by),
    )


def _unchanged_databases(reader: Reader, month: Window, issue: int) -> UnchangedDatabases:
    """Return the unchanged databases, which all groupings of a bill show and which take long to read."""
    read = partial(unchanged_databases, month=month, issue=issue, shown=COSTLIEST_SHOWN)
    return reader.read_cached(("unchanged", month, issue), read, UNCHANGED_SECONDS, is_for_all=True)


def _free_space(reader: Reader, bill: tuple[Window, int], by: str = "", name: str | None = None) -> FreeSpace | None:
    read = partial(free_space, bill=bill, shown=COSTLIEST_SHOWN, by=by, name=name or "")
    return reader.read_cached(("free", *bill, by, name), read, UNCHANGED_SECONDS)


@dataclass(frozen=True)
class GroupCost:
    """The cost of a group in the last month that is over, and in the months up to it."""

    month: date
    issue: int
    currency: str
    bill: BillGroup
    compared_month: date | None
    """The month before; None if the two are not compared."""
    history_months: Sequence[date]
    history: Sequence[MonthlyAmount]


def cost_of(connection: Connection, by: str, name: str | None) -> GroupCost | None:
    """Return the cost of a group by the newest final bill; None if the bill does not have it."""
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
    return GroupCost(last.month, last.issue, last.currency, bill, before, [window.start for window in months], history)


def shared_free_space(reader: Reader, cost: GroupCost, by: str, name: str | None) -> FreeSpace | None:
    """Return the cost of dead rows and free pages in the tables of a group; None: none is known."""
    return _free_space(reader, (MONTHLY.window_of(cost.month), cost.issue), by, name)


def total_amounts(connection: Connection) -> tuple[dict[date, Decimal], str | None]:
    """Return the totals of the final bills of a year by month, and the currency of the newest one."""
    last = newest_final(bill_issues(connection))
    if last is None or last.currency is None:
        return {}, None
    months = MONTHLY.back(MONTHLY.window_of(last.month), HISTORY_MONTHS)
    totals: dict[date, Decimal] = {}
    # Any grouping adds up to the total; this one has the fewest groups.
    for amount in monthly_amounts(connection, months, WITHOUT_LABEL[0], last.currency, MOST_SERIES):
        totals[amount.month] = totals.get(amount.month, Decimal()) + amount.amount
    return totals, last.currency


@dataclass(frozen=True)
class BudgetPage:
    """A budget by groups; without a forecast, only `message`, which gives the reason."""

    grouped_by: str
    groupings: Sequence[str]
    message: str | None = None
    as_of: date | None = None
    last_day: date | None = None
    months: Sequence[date] = ()
    currency: str | None = None
    lines: Sequence[BudgetLine] = ()
    total: BudgetTotal | None = None
    notes: Sequence[str] = ()
    drawn: Sequence[MonthlyAmount] = ()
    """Amounts by month, by at most eight groups: the most expensive, and all others as one."""
    every_group: Annotated[Sequence[str], Field(exclude=True)] = ()
    """Names of all groups, for the colours of charts; not in JSON."""


def read_budget_page(reader: Reader, query: PageQuery) -> BudgetPage:
    """Read a budget. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    by = query.text("by") or default_grouping(query.label_keys)
    # A server has no budget.
    groupings = (*query.label_keys, WITHOUT_LABEL[0])
    try:
        budget = shared_budget(reader, query, by, query.number("months", MOST_MONTHS, MOST_MONTHS))
    except NotFoundError as error:
        return BudgetPage(by, groupings, str(error))
    return BudgetPage(
        grouped_by=by,
        groupings=groupings,
        as_of=budget.as_of,
        last_day=budget.last_day,
        months=budget.months,
        currency=budget.currency,
        lines=budget.lines,
        total=budget.total,
        notes=budget.notes,
        drawn=_drawn_amounts(budget),
        every_group=shared_group_names(reader, by),
    )


def shared_budget(reader: Reader, query: PageQuery, by: str, months: int = MOST_MONTHS) -> Budget:
    """Return a budget; the page of each group shows a line of it. Raises as `read_budget`."""
    coming = coming_months(query.today, months)
    read = partial(read_budget, by=by, months=coming, today=query.today, keys=query.label_keys)
    revision = shared_revision(reader)
    key = ("budget", by, months, query.today, revision)
    return reader.read_cached(key, read, BUDGET_SECONDS, revision=revision)


def _drawn_amounts(budget: Budget) -> list[MonthlyAmount]:
    if budget.total.amount is None:
        return []
    most = MOST_SERIES if len(budget.lines) <= MOST_SERIES else MOST_SERIES - 1
    named, others = budget.lines[:most], budget.lines[most:]
    months = [(month, f"{month:%Y-%m}") for month in budget.months]
    amounts = [
        MonthlyAmount(month, line.name, False, line.monthly_amounts[key]) for line in named for month, key in months
    ]
    if others:
        sums = (sum((line.monthly_amounts[key] for line in others), Decimal()) for _, key in months)
        amounts += [MonthlyAmount(month, None, True, amount) for (month, _), amount in zip(months, sums, strict=True)]
    return amounts
