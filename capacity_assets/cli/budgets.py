"""`capacity budget` and `budgets`: what groups will cost in the coming months, and what they may cost."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text, counted, human_mb, human_month
from capacity_assets.cli import declaring, options
from capacity_assets.cli.bills import NO_CURRENCY, UNPRICED, csv_text, format_of
from capacity_assets.cli.declaring import DECLARED, DeclarationReport, DeclarationSession
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import Line, Report, Table
from capacity_assets.database.declared_rows import Stored
from capacity_assets.database.engine import snapshot
from capacity_assets.ownership import bills
from capacity_assets.ownership import budgets as ownership
from capacity_assets.ownership.bills import group_heading, group_named, money
from capacity_assets.ownership.budgets import Budget, BudgetSums, MonthBudget
from capacity_assets.ownership.labels import default_grouping, label_of_nothing

LONGEST_PLAN = 60
coming_months_option = click.option(
    "--months",
    type=click.IntRange(1, ownership.MOST_MONTHS),
    default=ownership.MOST_MONTHS,
    show_default=True,
    help="Whole months after the current one.",
)
BUDGET_COLUMNS = (
    "size_mb", "end_size_mb", "end_lower_mb", "end_upper_mb", "amount", "lower_amount", "upper_amount",
    "price_per_gib", "budget", "budget_difference",
)  # fmt: skip


@click.command()
@options.grouping_option("engine, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@coming_months_option
@click.option(
    "--output", default=options.STANDARD_OUTPUT, help="A file: .csv or .json. Default: a table on the screen."
)
@options.json_command
def budget(settings: Settings, /, *, by: str | None, months: int, output: str) -> Report:
    """Show what each team, or any other group, will cost in the coming months.

    A line is the newest issued forecast of the group, times the price list. Lines add up to the total; ranges of 80
    percent do not. Stores nothing.

    \b
    Examples:
      capacity budget
      capacity budget --group-by cost_centre --months 6 --output budget.csv
    """
    form = format_of(output, BUDGET_FORMATS)
    today = Clock(settings.zone).today()
    coming, by = ownership.coming_months(today, months), by or default_grouping(settings.label_keys)
    reading = database_errors(doing="reading a budget")
    with options.open_database(settings) as engine, reading, snapshot(engine) as connection:
        group_budget = ownership.read_budget(connection, by, coming, today, settings.label_keys)
    if form is None:
        return Report(group_budget, _budget_lines(group_budget))
    options.write_text(output, BUDGET_FORMATS[form](group_budget))
    return Report(group_budget, [f"{_budget_title(group_budget)}, written to {output}"])


def _budget_title(group_budget: Budget) -> str:
    first, last = (human_month(day) for day in (group_budget.months[0], group_budget.last_day))
    months = first if first == last else f"{first} to {last}"
    return f"Budget of {months}, by {group_budget.grouped_by}"


def _budget_lines(group_budget: Budget) -> Iterator[Line]:
    amounts = (f">Amount, {group_budget.currency or NO_CURRENCY}", ">Range")
    headings = (group_heading(group_budget.grouped_by), ">Size now", ">Size at the end", ">Range", ">Per GiB", *amounts)
    named: list[tuple[str, BudgetSums]] = [
        *((group_named(line.name, group_budget.grouped_by), line) for line in group_budget.lines),
        ("Total", group_budget.total),
    ]
    has_budget = group_budget.total.budget is not None
    rows = [
        [name, *_sizes(one), getattr(one, "size_range", ""), *_amounts(one), getattr(one, "amount_range", "")]
        + ([money(one.budget), bills.money_change(one.budget_difference)] if has_budget else [])
        for name, one in named
    ]
    yield Table(_budget_title(group_budget), (*headings, *((">Budget", ">Over budget") if has_budget else ())), rows)
    if has_budget:
        months = [f"{month:%Y-%m}" for month in group_budget.months]
        by_month = [
            [name, *(bills.money_change(one.monthly_budget_differences.get(month)) for month in months)]
            for name, one in named
        ]
        yield Table(
            "Over budget by month",
            (group_heading(group_budget.grouped_by), *(f">{month}" for month in months)),
            by_month,
        )
    yield from group_budget.notes


def _sizes(one: BudgetSums) -> list[object]:
    return [human_mb(one.size_mb), human_mb(one.end_size_mb)]


def _amounts(one: BudgetSums) -> list[object]:
    price = UNPRICED if one.price_per_gib is None else bills.mean_price(one.price_per_gib)
    return [price, money(one.amount)]


def _budget_rows(group_budget: Budget) -> Iterator[Sequence[object]]:
    """Yield the lines of a budget, one column per month at the end; the total is not among them."""
    months = [f"{month:%Y-%m}" for month in group_budget.months]
    declared = [f"{month}_{name}" for month in months for name in ("budget", "budget_difference")]
    yield ("as_of", "last_day", "grouped_by", "group", *BUDGET_COLUMNS, "currency", *months, *declared)
    for line in group_budget.lines:
        subject = (group_budget.as_of, group_budget.last_day, group_budget.grouped_by, as_plain_text(line.name or ""))
        amounts = (line.monthly_amounts.get(month) for month in months)
        budgets = (
            of_months.get(month)
            for month in months
            for of_months in (line.monthly_budgets, line.monthly_budget_differences)
        )
        yield (*subject, *(getattr(line, name) for name in BUDGET_COLUMNS), group_budget.currency, *amounts, *budgets)


BUDGET_FORMATS: Mapping[str, Callable[[Budget], str]] = {
    "csv": lambda found: csv_text(_budget_rows(found)),
    "json": lambda found: options.as_json_text(found) + "\n",
}


@click.group(cls=OrderedGroup)
def budgets() -> None:
    """Declare what groups may cost, to compare bills with it."""


months_options = options.combined_options(
    click.option("--month", type=options.MONTH, help="First month. Default: the next one."),
    click.option(
        "--months", type=click.IntRange(1, LONGEST_PLAN), default=1, show_default=True, help="Number of months."
    ),
)


def _months(session: DeclarationSession, month: date | None, number: int) -> list[date]:
    today = session.today()
    first = bills.MONTHLY.window_of(month) if month else ownership.month_after(today)
    return [window.start for window in ownership.months_from(first, number)]


@budgets.command("set")
@click.argument("group")
@click.argument("amount")
@months_options
@click.option("--currency", help="EUR, USD or another ISO 4217 code. Default: that of the price list.")
@declaring.command
def set_(
    session: DeclarationSession, /, *, group: str, amount: str, month: date | None, months: int, currency: str | None
) -> DeclarationReport:
    """Declare the AMOUNT that GROUP may cost in a month.

    GROUP is a label such as team=payments, or engine=oracle, or server=db-7; team= stands for what has no team. A
    budget replaces an earlier one of the same month. Bills show it beside the amount.

    \b
    Examples:
      capacity budgets set team=payments 500
      capacity budgets set team=payments 500 --month 2027-01 --months 12
    """
    starts, keys = _months(session, month, months), session.settings.label_keys
    values = [{"group": group, "amount": amount, "currency": currency, "month": f"{start:%Y-%m}"} for start in starts]
    return _declare(session, [ownership.month_budget(each, keys) for each in values], [])


@budgets.command("import")
@declaring.file_argument
@declaring.command
def import_(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Declare the budgets that a CSV file lists.

    Columns are group (as team=payments), month (as 2027-01), amount and, optionally, currency. Either all budgets are
    stored or none.
    """
    declared = ownership.budgets_of_file(file, session.settings.label_keys)
    return _declare(session, declared, [session.read_from(file, len(declared), "budget")])


@budgets.command()
@click.option("--group-by", "grouping", help="engine, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@coming_months_option
@declaring.command
def adopt(session: DeclarationSession, /, *, grouping: str | None, months: int) -> DeclarationReport:
    """Declare the amounts that `capacity budget` computes as budgets."""
    keys, today = session.settings.label_keys, session.today()
    by, coming = grouping or default_grouping(keys), ownership.coming_months(today, months)
    with database_errors(doing="reading a budget"), snapshot(session.engine) as connection:
        group_budget = ownership.read_budget(connection, by, coming, today, keys)
    declared = ownership.adopted_budgets(group_budget)
    return _declare(session, declared, [f"{counted(len(declared), 'budget')} declared from the forecasts."])


def _declare(
    session: DeclarationSession, declared: Sequence[MonthBudget], headlines: Sequence[str]
) -> DeclarationReport:
    stored = ownership.declare_budgets(session.engine, declared, by=session.by, dry_run=session.dry_run)
    changes = [(budget, before) for budget, before in stored if not headlines or before is not None]
    lines = [*headlines, *declaring.first_lines((_text(*change) for change in changes), "more budget")]
    document = {"budgets": [budget for budget, _ in stored]}
    return DeclarationReport(document, [*lines, *_notes(session, [budget for budget, _ in stored])])


def _text(budget: MonthBudget, before: Decimal | None) -> str:
    replaced = "" if before is None else f", {money(before)} before"
    return f"{budget.group}: {money(budget.amount)} {budget.currency} for {bills.month_named(budget.month)}{replaced}."


def _notes(session: DeclarationSession, declared: Sequence[MonthBudget]) -> Iterator[str]:
    for group in dict.fromkeys(one.group for one in declared):
        key, _, name = group.partition("=")
        is_label = name and key in session.settings.label_keys
        if is_label and (unknown := label_of_nothing(session.engine, key, name)):
            undo = "" if session.dry_run else f" Undo: `{_removal(session, group, declared)}`."
            yield f"note: {unknown}{undo}"


def _removal(session: DeclarationSession, group: str, declared: Sequence[MonthBudget]) -> str:
    """Return the command that removes the budgets of a group."""
    months = sorted(one.month for one in declared if one.group == group)
    first, number = months[0], (months[-1].year - months[0].year) * 12 + months[-1].month - months[0].month + 1
    month = "" if [first] == _months(session, None, 1) else f" --month {first:%Y-%m}"
    return f"capacity budgets remove {shlex.quote(group)}{month}{f' --months {number}' if number > 1 else ''}"


def _cells(stored: Stored[MonthBudget]) -> list[object]:
    budget, declared = stored.declaration, declaring.declared_cells(stored)
    return [budget.group, f"{budget.month:%Y-%m}", money(budget.amount), budget.currency, *declared]


@budgets.command("list")
@declaring.list_command(
    "Budgets",
    ("Group", "Month", ">Budget", "Currency", *DECLARED),
    _cells,
    "No budget is declared. `capacity budgets set` declares one, `capacity budgets import` those of a file.",
)
def list_(engine: Engine, /) -> list[Stored[MonthBudget]]:
    """Show all declared budgets."""
    return ownership.declared_budgets(engine)


@budgets.command()
@click.argument("group")
@months_options
@declaring.change_command
def remove(session: DeclarationSession, /, *, group: str, month: date | None, months: int) -> DeclarationReport:
    """Remove the budgets of GROUP in some months."""
    checked = ownership.checked_group(group, session.settings.label_keys)
    starts = _months(session, month, months)
    number = ownership.remove_budgets(session.engine, checked, starts, dry_run=session.dry_run)
    document = {"removed": {"group": checked, "months": starts}}
    return DeclarationReport(document, [f"{counted(number, 'budget')} of {checked} removed."])
