"""`capacity budgets`: what groups may cost in a month, as people declare it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import counted
from capacity_assets.cli.declaring import (
    DECLARED,
    DeclarationReport,
    Registry,
    changing,
    declared_cells,
    declared_json,
    declaring,
    file_argument,
    first_lines,
    listing,
)
from capacity_assets.cli.lazy import OrderedGroup
from capacity_assets.cli.options import options
from capacity_assets.database.engine import snapshot
from capacity_assets.ownership.bills import money, month_named, month_of
from capacity_assets.ownership.budgets import (
    MOST_MONTHS,
    BudgetEntry,
    MonthBudget,
    adopted,
    budgets_of_file,
    checked_group,
    coming_months,
    declare_budgets,
    declared_budgets,
    month_budget,
    read_budget,
    remove_budgets,
)
from capacity_assets.ownership.groups import default_grouping
from capacity_assets.ownership.labels import label_of_nothing

HEADINGS = ("Group", "Month", ">Budget", "Currency", *DECLARED)
MONTHLY = PERIODS["monthly"]
LONGEST_PLAN = 60


@click.group(cls=OrderedGroup)
def budgets() -> None:
    """Declare what groups may cost, to compare bills with it."""


months_options = options(
    click.option("--month", metavar="YYYY-MM", help="First month. Default: the next one."),
    click.option(
        "--months", type=click.IntRange(1, LONGEST_PLAN), default=1, show_default=True, help="Number of months."
    ),
)


def _months(registry: Registry, month: str | None, number: int) -> list[date]:
    today = registry.today()
    first = MONTHLY.following(MONTHLY.window_of(today)).start if month is None else month_of(month)
    windows = [MONTHLY.window_of(first)]
    while len(windows) < number:
        windows.append(MONTHLY.following(windows[-1]))
    return [window.start for window in windows]


@budgets.command("set")
@click.argument("group")
@click.argument("amount")
@months_options
@click.option("--currency", help="EUR, USD or another ISO 4217 code. Default: that of the price list.")
@declaring
def set_(
    registry: Registry, /, *, group: str, amount: str, month: str | None, months: int, currency: str | None
) -> DeclarationReport:
    """Declare the AMOUNT that GROUP may cost in a month.

    GROUP is a label such as team=payments, engine=oracle or server=db-7; team= is what has no team. A budget replaces
    an earlier one of the same month. Bills show it beside the amount.

    \b
    Examples:
      capacity budgets set team=payments 500
      capacity budgets set team=payments 500 --month 2027-01 --months 12
    """
    values = {"group": group, "amount": amount, "currency": currency}
    keys = registry.settings.label_keys
    declared = [month_budget({**values, "month": f"{start:%Y-%m}"}, keys) for start in _months(registry, month, months)]
    return _declare(registry, declared, [])


@budgets.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> DeclarationReport:
    """Declare the budgets that a CSV file lists.

    Columns are group (as team=payments), month (as 2027-01), amount and, optionally, currency. Either all budgets are
    stored or none.
    """
    declared = budgets_of_file(file, registry.settings.label_keys)
    return _declare(registry, declared, [registry.read_from(file, len(declared), "budget")])


@budgets.command()
@click.option("--group-by", "grouping", help="engine, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option(
    "--months",
    type=click.IntRange(1, MOST_MONTHS),
    default=MOST_MONTHS,
    show_default=True,
    help="Whole months after the current one.",
)
@declaring
def adopt(registry: Registry, /, *, grouping: str | None, months: int) -> DeclarationReport:
    """Declare what `capacity budget` computes."""
    keys, today = registry.settings.label_keys, registry.today()
    with database_errors(doing="reading a budget"), snapshot(registry.engine) as connection:
        found = read_budget(connection, grouping or default_grouping(keys), coming_months(today, months), today, keys)
    declared = adopted(found)
    return _declare(registry, declared, [f"{counted(len(declared), 'budget')} declared from the forecasts."])


def _declare(registry: Registry, declared: Sequence[MonthBudget], headlines: Sequence[str]) -> DeclarationReport:
    stored = declare_budgets(registry.engine, declared, by=registry.by, dry_run=registry.dry_run)
    changes = [(budget, before) for budget, before in stored if not headlines or before is not None]
    lines = [*headlines, *first_lines((_text(*change) for change in changes), "more budget")]
    document = {"budgets": [asdict(budget) for budget, _ in stored]}
    return DeclarationReport(document, [*lines, *_notes(registry, [budget for budget, _ in stored])])


def _text(budget: MonthBudget, before: Decimal | None) -> str:
    replaced = "" if before is None else f", {money(before)} before"
    return f"{budget.group}: {money(budget.amount)} {budget.currency} for {month_named(budget.month)}{replaced}."


def _notes(registry: Registry, declared: Sequence[MonthBudget]) -> Iterator[str]:
    for group in dict.fromkeys(one.group for one in declared):
        key, _, name = group.partition("=")
        is_label = name and key in registry.settings.label_keys
        if is_label and (unknown := label_of_nothing(registry.engine, key, name)):
            yield f"note: {unknown}"


def _cells(entry: BudgetEntry) -> list[object]:
    budget = entry.budget
    return [budget.group, f"{budget.month:%Y-%m}", money(budget.amount), budget.currency, *declared_cells(entry)]


@budgets.command("list")
@listing(
    "Budgets",
    HEADINGS,
    _cells,
    "No budget is declared. `capacity budgets set` declares one, `capacity budgets import` those of a file.",
)
def list_(engine: Engine, /) -> list[tuple[BudgetEntry, object]]:
    """Show all declared budgets."""
    return [(entry, {**asdict(entry.budget), **declared_json(entry)}) for entry in declared_budgets(engine)]


@budgets.command()
@click.argument("group")
@months_options
@changing
def remove(registry: Registry, /, *, group: str, month: str | None, months: int) -> DeclarationReport:
    """Remove the budgets of GROUP in some months."""
    checked = checked_group(group, registry.settings.label_keys)
    starts = _months(registry, month, months)
    number = remove_budgets(registry.engine, checked, starts, dry_run=registry.dry_run)
    document = {"removed": {"group": checked, "months": starts}}
    return DeclarationReport(document, [f"{counted(number, 'budget')} of {checked} removed."])
