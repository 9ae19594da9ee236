"""The page of a budget: what groups will cost in the coming months."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import partial

from capacity_assets.base.errors import NotFoundError
from capacity_assets.charts.bars import MOST_SERIES
from capacity_assets.ownership.bills import MonthlyAmount
from capacity_assets.ownership.budgets import MOST_MONTHS, Budget, BudgetLine, BudgetTotal, coming_months, read_budget
from capacity_assets.ownership.groups import default_grouping
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.reader import Reader, shared_revision

BUDGET_SECONDS = 30
"""Bills and prices change rarely; new forecasts are shown within seconds."""
GROUPED_WITHOUT_LABEL = "engine"


@dataclass(frozen=True)
class BudgetPage:
    """A budget by groups; without a forecast of groups, only `message`, which says why."""

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
    """The amounts by month, of at most eight groups: those that cost most, then all others."""


def read_budget_page(reader: Reader, query: PageQuery) -> BudgetPage:
    """Read a budget. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    by = query.text("by") or default_grouping(query.label_keys)
    groupings = (*query.label_keys, GROUPED_WITHOUT_LABEL)
    try:
        found = shared_budget(reader, query, by, query.number("months", MOST_MONTHS, MOST_MONTHS))
    except NotFoundError as error:
        return BudgetPage(by, groupings, str(error))
    return BudgetPage(
        grouped_by=by,
        groupings=groupings,
        as_of=found.as_of,
        last_day=found.last_day,
        months=found.months,
        currency=found.currency,
        lines=found.lines,
        total=found.total,
        notes=found.notes,
        drawn=_drawn(found),
    )


def shared_budget(reader: Reader, query: PageQuery, by: str, months: int = MOST_MONTHS) -> Budget:
    """Return a budget, which the page of each group shows a line of. Raises as `read_budget`."""
    coming = coming_months(query.today, months)
    read = partial(read_budget, by=by, months=coming, today=query.today, keys=query.label_keys)
    return reader.kept_of(("budget", by, months, query.today, shared_revision(reader)), read, BUDGET_SECONDS)


def _drawn(found: Budget) -> list[MonthlyAmount]:
    if found.total.amount is None:
        return []
    most = MOST_SERIES if len(found.lines) <= MOST_SERIES else MOST_SERIES - 1
    months = [(month, f"{month:%Y-%m}") for month in found.months]
    drawn = [
        MonthlyAmount(month, line.name, is_others=False, amount=line.monthly_amounts[key])
        for line in found.lines[:most]
        for month, key in months
    ]
    others = found.lines[most:]
    return drawn + [
        MonthlyAmount(month, None, True, sum((line.monthly_amounts[key] for line in others), Decimal()))
        for month, key in (months if others else ())
    ]
