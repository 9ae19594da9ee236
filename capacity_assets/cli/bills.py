"""`capacity prices`, `bill`, `budget` and `budgets`: costs of databases, and expected and allowed costs of groups."""

from __future__ import annotations

import csv
import io
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import click
from psycopg import sql
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import SECONDS_PER_COMMAND
from capacity_assets.base.errors import CapacityError, ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text, counted, first_of, human_mb, human_month, suggestion
from capacity_assets.cli import declaring, options
from capacity_assets.cli.declaring import DECLARED, NAMES_SHOWN, DeclarationReport, DeclarationSession
from capacity_assets.cli.documents import write_rows
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import Line, Report, Table, say
from capacity_assets.collection.servers import registered_servers
from capacity_assets.database.declared_rows import Stored
from capacity_assets.database.engine import snapshot
from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership import bills
from capacity_assets.ownership import budgets as group_budgets
from capacity_assets.ownership import prices as price_list
from capacity_assets.ownership.bills import BillByGroup, BillGroup, group_heading, group_named, money
from capacity_assets.ownership.budgets import Budget, BudgetSums, MonthBudget
from capacity_assets.ownership.focus import charges_of_bill
from capacity_assets.ownership.labels import default_grouping, label_of_nothing, refuse_unknown_grouping
from capacity_assets.ownership.prices import Price, PriceChanges


@click.group(cls=OrderedGroup)
def prices() -> None:
    """Declare what a GiB costs per month."""


subject_options = options.combined_options(
    click.option("--engine", default=price_list.EVERYTHING, help="Only for servers of this engine."),
    options.label_option("Only for databases with this label."),
)
restate_option = click.option(
    "--restate", is_flag=True, help="Allow changes to bills of closed months; preview with --dry-run."
)


@prices.command("set")
@click.argument("price")
@click.option("--currency", required=True, help="EUR, USD or another ISO 4217 code, the same for all prices.")
@subject_options
@declaring.first_day_options(
    "First day of the price. Default: the first of this month.",
    "Apply it to all of history, also to closed months; replace earlier prices.",
)
@restate_option
@declaring.command
def set_price(
    session: DeclarationSession, /, *, price: str, currency: str, first_day: date | None, restate: bool, **subject: Any
) -> DeclarationReport:
    """Declare the PRICE of a GiB per month: a number, or none.

    A price for a label overrides one for an engine, and both override the general one. `capacity bill` uses the price
    of each day. A price applies from the current month on, unless --from or --always is given. If bills of closed
    months would change, the command lists them with their old and new totals, and asks for --always or --restate.

    \b
    Examples:
      capacity prices set 0.12 --currency EUR
      capacity prices set 0.40 --currency EUR --engine oracle --always
      capacity prices set 0.05 --currency EUR --label environment=test --from 2026-01-01 --restate
    """
    wanted = Price(price_list.parse_price(price), currency, *_subject(session, **subject), first_day)
    changes = _declare_prices(session, [wanted], restate=restate or first_day == ALWAYS)
    [declared] = changes.prices
    if declared.price is None:
        since = declaring.since_text(declared.valid_from)
        effect = f"no price of its own, {since}; a more general price applies, if there is one."
    else:
        effect = f"{_price_text(declared)} per GiB and month, {declaring.since_text(declared.valid_from)}."
    lines = [
        f"{declared.display_name}: {effect}",
        *(f"note: {note}" for note in _price_notes(session.engine, declared)),
    ]
    if first_day is None and declared.valid_from != ALWAYS:
        lines.append("Earlier months are not changed. Use --always to apply the price to them as well.")
    return _price_report(changes, lines)


def _subject(session: DeclarationSession, engine: str, label: tuple[str, str] | None) -> tuple[str, str, str]:
    written = None if label is None else "=".join(label)
    return engine, *price_list.label_of(written, session.settings.label_keys)


def _declare_prices(session: DeclarationSession, wanted: Sequence[Price], *, restate: bool) -> PriceChanges:
    """Declare prices; first show which bills of closed months change."""
    engine, today = session.engine, session.today()
    changes = price_list.price_changes(engine, wanted, today, session.settings.label_keys)
    _say_changed_bills(session, changes, restate=restate)
    if not session.dry_run:
        restate = restate or not changes.months
        price_list.declare_prices(engine, wanted, today, by=session.by, restate=restate)
    return changes


def _say_changed_bills(session: DeclarationSession, changes: PriceChanges, *, restate: bool) -> None:
    """Show which final bills change and by how much; raises ValidationError if this was not confirmed."""
    if not changes.months:
        return
    months = [*(bill.text for bill in changes.bills), *map(bills.month_named, changes.older_months)]
    named = first_of(months, price_list.MONTHS_COMPUTED)
    if not restate and not session.dry_run:
        raise ValidationError(f"Bills of closed months would change: {named}. To restate them, add --restate.")
    say(f"Bills of closed months that change: {named}.{'' if restate else ' Requires --restate.'}")


def _price_report(changes: PriceChanges, lines: Sequence[str]) -> DeclarationReport:
    document = {
        "prices": list(map(declaring.dated_json, changes.prices)),
        "restated_months": changes.months,
        "restated_bills": changes.bills,
    }
    return DeclarationReport(document, lines, follow_up=partial(_compute_bills, changes=changes))


def _compute_bills(session: DeclarationSession, changes: PriceChanges) -> None:
    first = min(price.valid_from or ALWAYS for price in changes.prices)
    issue_bills(session, [*changes.months, *bills.unfinished_months(session.engine, first)])


def issue_bills(session: DeclarationSession, months: Iterable[date]) -> None:
    """Recompute bills after a declaration, newest month first, for some seconds; name the remaining ones.

    Raises CapacityError; its message says that the declaration is stored.
    """
    clock = Clock(session.settings.zone)
    until = time.monotonic() + SECONDS_PER_COMMAND
    remaining, issued = sorted(set(months)), list[date]()
    try:
        while remaining and time.monotonic() <= until:
            bills.issue_bill(session.engine, bills.MONTHLY.window_of(remaining[-1]), clock, session.settings.label_keys)
            issued.append(remaining.pop())
    except CapacityError as error:
        raise type(error)(f"The declaration is stored, but not every bill was computed. {error}") from error
    if issued:
        say(f"Bills recomputed: {first_of(map(bills.month_named, issued), NAMES_SHOWN)}.")
    if remaining:
        named = [f"{month:%Y-%m}" for month in reversed(remaining)]
        say(
            f"Bills still to be recomputed: {first_of(named, NAMES_SHOWN)}. `capacity bill --month {named[0]}` "
            "computes one."
        )


def _price_notes(engine: Engine, declared: Price) -> Iterator[str]:
    if declared.engine:
        engines = {registered.server.engine for registered in registered_servers(engine)}
        if declared.engine not in engines:
            yield f"No registered server has the engine {declared.engine!r}.{suggestion(declared.engine, engines)}"
    if declared.key and (unknown := label_of_nothing(engine, declared.key, declared.value)):
        yield unknown


def _price_text(price: Price) -> str:
    return price_list.NO_PRICE if price.price is None else f"{price.price.normalize():f} {price.currency}"


@prices.command("import")
@declaring.file_argument
@restate_option
@declaring.command
def import_prices(session: DeclarationSession, /, *, file: Path, restate: bool) -> DeclarationReport:
    """Declare the prices that a CSV file lists.

    Columns are price, currency and, optionally, engine, label (as team=payments) and from (a day, or always; empty: as
    for `set`). Either all prices are stored or none.
    """
    declared = price_list.prices_of_file(file, session.settings.label_keys)
    changes = _declare_prices(session, declared, restate=restate)
    return _price_report(changes, [session.read_from(file, len(declared), "price")])


def _price_cells(stored: Stored[Price]) -> list[object]:
    price = stored.declaration
    first_day = declaring.since_text(price.valid_from).removeprefix("from ")
    return [price.display_name, _price_text(price), first_day, *declaring.declared_cells(stored)]


@prices.command("list")
@declaring.list_command(
    "Prices per GiB and month",
    ("For", ">Price", "From", *DECLARED),
    _price_cells,
    "No price is declared. `capacity prices set` declares one, `capacity prices import` those in a file.",
)
def list_prices(engine: Engine, /) -> list[Stored[Price]]:
    """Show all declared prices and their first days."""
    return price_list.stored_prices(engine)


@prices.command("remove")
@subject_options
@click.option(
    "--from",
    "first_day",
    type=options.DAY,
    help="First day of the price. Default: that of the only price, or of the price for all of history.",
)
@restate_option
@declaring.change_command
def remove_price(
    session: DeclarationSession, /, *, first_day: date | None, restate: bool, **subject: Any
) -> DeclarationReport:
    """Remove a price, as if it had never been declared.

    To end a price and keep earlier bills, use `capacity prices set none --from DAY` instead.
    """
    price = Price(None, "", *_subject(session, **subject), first_day or ALWAYS)
    if first_day is None:
        price = _with_only_first_day(session.engine, price)
    changes = price_list.removal_changes(session.engine, price, session.settings.label_keys)
    _say_changed_bills(session, changes, restate=restate)
    if not session.dry_run:
        price_list.forget_price(session.engine, price, restate=restate or not changes.months)
    return _price_report(
        changes, [f"Removed the price of {price.display_name}, {declaring.since_text(price.valid_from)}."]
    )


def _with_only_first_day(engine: Engine, price: Price) -> Price:
    """Return the price; its first day is that of the only price for its subject, unless that applies always."""
    prices = (stored.declaration for stored in price_list.stored_prices(engine))
    days = [declared.valid_from for declared in prices if declared.display_name == price.display_name]
    return price if ALWAYS in days or len(days) != 1 else replace(price, valid_from=days[0])


BILL_COLUMNS = (
    "month", "issue", "grouped_by", "group", "databases", "gib", "gib_without_price", "amount", "currency",
)  # fmt: skip
GROUP_COLUMNS = (
    "lowest_price", "highest_price", "projected_amount", "amount_before", "change", "change_growth", "change_price",
    "change_moves", "servers", "amount_per_gib", "amount_per_server", "budget", "budget_difference",
)  # fmt: skip


@click.command()
@click.option("--month", type=options.MONTH, help="Default: the last complete one.")
@options.grouping_option("engine, server, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option("--issue", type=click.IntRange(1), help="Show this version of the bill; compute nothing.")
@click.option(
    "--output", default=options.STANDARD_OUTPUT, help="A file: .csv, .json or .html. Default: a table on the screen."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["focus"]),
    help="Write the charges in FOCUS 1.2, as CSV.",
)
@options.json_command
def bill(
    settings: Settings, /, *, month: date | None, by: str | None, issue: int | None, output: str, form: str | None
) -> Report | None:
    """Show what the databases of a month cost, by group.

    Computed from the size of each database on each day, with the labels and prices of that day. The bill of a completed
    month is kept. If late samples, labels or prices change it, a new version shows by how much and why.

    \b
    Examples:
      capacity bill
      capacity bill --month 2026-10 --group-by cost_centre --output bill.csv
      capacity bill --month 2026-10 --issue 1
      capacity bill --month 2026-10 --format focus --output charges.csv
    """
    ending = format_of(output, ["csv"] if form else BILL_FORMATS)
    if form and ending is None and options.wants_json():
        raise ValidationError("--json with --format focus needs a file: name one with --output.")
    by = by or default_grouping(settings.label_keys)
    clock = Clock(settings.zone)
    window = bills.MONTHLY.window_of(month) if month else bills.MONTHLY.last(clock.today())
    with options.open_database(settings) as engine:
        if issue is None:
            refuse_unknown_grouping(by, settings.label_keys)
            bills.issue_bill(engine, window, clock, settings.label_keys)
        issued = bills.read_bill(engine, window, by, issue)
        if form:
            return _write_charges(engine, issued, settings.bill_issuer, output)
    if ending is None:
        return Report(_bill_json(issued), _bill_lines(issued))
    options.write_text(output, BILL_FORMATS[ending](issued))
    line = f"{bills.bill_title(issued)}: {bills.amount_text(issued.bill)}, written to {output}"
    return Report(_bill_json(issued), [line])


def _write_charges(engine: Engine, issued: BillByGroup, issuer: str, output: str) -> Report | None:
    """Write a bill as charges; with a file, return a report about it."""
    bill = issued.bill
    charges = charges_of_bill(bill.month, bill.issue, issued.grouped_by, issuer)
    rows = write_rows(engine, sql.SQL(charges), output, "csv")
    if rows is None:
        return None
    lines = [f"{counted(rows, 'charge')} of {bills.month_named(bill.month)} written to {output}"]
    if bill.unpriced_gib_months:
        lines.append(f"Not included: {bills.gib(bill.unpriced_gib_months)} GiB without a price.")
    return Report({"path": output, "rows": rows, "bill": {**asdict(bill), "amount": bill.amount}}, lines)


def format_of(output: str, formats: Collection[str]) -> str | None:
    """Return the format of an output file by its ending; None: the screen. Raises ValidationError for another one."""
    if output == options.STANDARD_OUTPUT:
        return None
    form = Path(output).suffix.lower().removeprefix(".")
    if form not in formats:
        endings = " or ".join(f".{name}" for name in formats)
        raise ValidationError(f"{output!r} must end in {endings}.")
    return form


def _bill_lines(issued: BillByGroup) -> Iterator[Line]:
    bill, by = issued.bill, issued.grouped_by
    groups = (*issued.groups, *issued.former_groups)
    rows = [_bill_cells(group_named(group.name, by), group, issued) for group in groups]
    rows.append(_bill_cells("Total", issued.total, issued))
    headings = [group_heading(by), ">Databases", ">GiB", ">Price"]
    headings += [f">Amount, {bill.currency or NO_CURRENCY}", *([">Projected"] if bill.days_so_far else [])]
    headings += [">Change"] if issued.compared_issue is not None else []
    headings += [">Budget", ">Over budget"] if issued.has_budget else []
    yield Table(bills.bill_title(issued), headings, rows)
    yield f"Version {bill.issue} of this bill, of {bills.moment(bill.issued_at)}."
    yield from (*bills.bill_notes(issued), bills.quantity_note(issued))


NO_CURRENCY, UNPRICED, UNKNOWN = "no currency", "no price", "unknown"


def _bill_cells(name: str, group: BillGroup, issued: BillByGroup) -> list[object]:
    amount = UNPRICED if group.amount is None else money(group.amount)
    cells: list[object] = [name, group.databases, bills.gib(group.gib_months), bills.price(group), amount]
    if issued.bill.days_so_far:
        cells.append(money(group.projected_amount))
    if issued.compared_issue is not None:
        cells.append(bills.money_change(group.change))
    if issued.has_budget:
        cells += [money(group.budget), bills.money_change(group.budget_difference)]
    return cells


def _bill_json(issued: BillByGroup) -> Mapping[str, object]:
    return {
        "bill": {**asdict(issued.bill), "amount": issued.bill.amount},
        "grouped_by": issued.grouped_by,
        "databases": issued.databases,
        "groups": issued.groups,
        "former_groups": issued.former_groups,
        "total": issued.total,
        "compared_issue": issued.compared_issue,
        "difference": issued.difference,
        "restated": issued.restated,
    }


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; None is written as an empty field."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _bill_rows(issued: BillByGroup) -> Iterator[Sequence[object]]:
    """Yield the groups of a bill; GiB are averages of the month."""
    yield (*BILL_COLUMNS, *GROUP_COLUMNS)
    bill = issued.bill
    for group in (*issued.groups, *issued.former_groups):
        subject = (bill.month, bill.issue, issued.grouped_by, as_plain_text(group.name or ""))
        sizes = (group.databases, group.gib_months, group.unpriced_gib_months)
        yield (*subject, *sizes, group.amount, bill.currency, *(getattr(group, name) for name in GROUP_COLUMNS))


def _bill_page(issued: BillByGroup) -> str:
    from capacity_assets.report.page import render_bill

    return render_bill(issued)


BILL_FORMATS: Mapping[str, Callable[[BillByGroup], str]] = {
    "csv": lambda issued: csv_text(_bill_rows(issued)),
    "json": lambda issued: options.as_json_text(_bill_json(issued)) + "\n",
    "html": _bill_page,
}


LONGEST_PLAN = 60
coming_months_option = click.option(
    "--months",
    type=click.IntRange(1, group_budgets.MOST_MONTHS),
    default=group_budgets.MOST_MONTHS,
    show_default=True,
    help="Number of months after the current one.",
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

    Each line multiplies the group's latest forecast by the price list. Lines add up to the total; ranges of 80 percent
    do not. Stores nothing.

    \b
    Examples:
      capacity budget
      capacity budget --group-by cost_centre --months 6 --output budget.csv
    """
    form = format_of(output, BUDGET_FORMATS)
    today = Clock(settings.zone).today()
    coming, by = group_budgets.coming_months(today, months), by or default_grouping(settings.label_keys)
    reading = database_errors(doing="reading a budget")
    with options.open_database(settings) as engine, reading, snapshot(engine) as connection:
        group_budget = group_budgets.read_budget(connection, by, coming, today, settings.label_keys)
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
    have_forecast = [line.end_lower_mb is not None for line in group_budget.lines]
    rows = [
        [
            name,
            human_mb(sums.size_mb),
            human_mb(sums.end_size_mb) if has_forecast else UNKNOWN,
            getattr(sums, "size_range", ""),
            *_budget_amounts(sums),
            getattr(sums, "amount_range", ""),
        ]
        + ([money(sums.budget), bills.money_change(sums.budget_difference)] if has_budget else [])
        for (name, sums), has_forecast in zip(named, (*have_forecast, any(have_forecast)), strict=True)
    ]
    yield Table(_budget_title(group_budget), (*headings, *((">Budget", ">Over budget") if has_budget else ())), rows)
    if has_budget:
        months = [f"{month:%Y-%m}" for month in group_budget.months]
        by_month = [
            [name, *(bills.money_change(sums.monthly_budget_differences.get(month)) for month in months)]
            for name, sums in named
        ]
        yield Table(
            "Over budget by month",
            (group_heading(group_budget.grouped_by), *(f">{month}" for month in months)),
            by_month,
        )
    yield from group_budget.notes


def _budget_amounts(sums: BudgetSums) -> list[object]:
    price = UNPRICED if sums.price_per_gib is None else bills.mean_price(sums.price_per_gib)
    return [price, money(sums.amount)]


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
    "csv": lambda group_budget: csv_text(_budget_rows(group_budget)),
    "json": lambda group_budget: options.as_json_text(group_budget) + "\n",
}


@click.group(cls=OrderedGroup)
def budgets() -> None:
    """Declare budgets of groups, with which bills are compared."""


months_options = options.combined_options(
    click.option("--month", type=options.MONTH, help="First month. Default: the next one."),
    click.option(
        "--months", type=click.IntRange(1, LONGEST_PLAN), default=1, show_default=True, help="Number of months."
    ),
)


def _months(session: DeclarationSession, month: date | None, number: int) -> list[date]:
    today = session.today()
    first = bills.MONTHLY.window_of(month) if month else group_budgets.month_after(today)
    return [window.start for window in group_budgets.months_from(first, number)]


@budgets.command("set")
@click.argument("group")
@click.argument("amount")
@months_options
@click.option("--currency", help="EUR, USD or another ISO 4217 code. Default: that of the price list.")
@declaring.command
def set_budget(
    session: DeclarationSession, /, *, group: str, amount: str, month: date | None, months: int, currency: str | None
) -> DeclarationReport:
    """Declare the AMOUNT that GROUP may cost in a month.

    GROUP is a label such as team=payments, or engine=oracle, or server=db-7; team= is the group without a team. A
    budget replaces an earlier one of the same month. Bills show it next to the amount.

    \b
    Examples:
      capacity budgets set team=payments 500
      capacity budgets set team=payments 500 --month 2027-01 --months 12
    """
    starts, keys = _months(session, month, months), session.settings.label_keys
    values = [{"group": group, "amount": amount, "currency": currency, "month": f"{start:%Y-%m}"} for start in starts]
    return _declare_budgets(session, [group_budgets.month_budget(each, keys) for each in values], [])


@budgets.command("import")
@declaring.file_argument
@declaring.command
def import_budgets(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Declare the budgets that a CSV file lists.

    Columns are group (as team=payments), month (as 2027-01), amount and, optionally, currency. Either all budgets are
    stored or none.
    """
    declared = group_budgets.budgets_of_file(file, session.settings.label_keys)
    return _declare_budgets(session, declared, [session.read_from(file, len(declared), "budget")])


@budgets.command("adopt")
@click.option("--group-by", "grouping", help="engine, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@coming_months_option
@declaring.command
def adopt_budgets(session: DeclarationSession, /, *, grouping: str | None, months: int) -> DeclarationReport:
    """Declare the amounts that `capacity budget` computes as budgets."""
    keys, today = session.settings.label_keys, session.today()
    by, coming = grouping or default_grouping(keys), group_budgets.coming_months(today, months)
    with database_errors(doing="reading a budget"), snapshot(session.engine) as connection:
        group_budget = group_budgets.read_budget(connection, by, coming, today, keys)
    declared = group_budgets.adopted_budgets(group_budget)
    return _declare_budgets(session, declared, [f"{counted(len(declared), 'budget')} declared from the forecasts."])


def _declare_budgets(
    session: DeclarationSession, declared: Sequence[MonthBudget], headlines: Sequence[str]
) -> DeclarationReport:
    stored = group_budgets.declare_budgets(session.engine, declared, by=session.by, dry_run=session.dry_run)
    changes = [(budget, before) for budget, before in stored if not headlines or before is not None]
    lines = [*headlines, *declaring.first_lines((_budget_text(*change) for change in changes), "more budget")]
    document = {"budgets": [budget for budget, _ in stored]}
    return DeclarationReport(document, [*lines, *_budget_notes(session, [budget for budget, _ in stored])])


def _budget_text(budget: MonthBudget, before: Decimal | None) -> str:
    replaced = "" if before is None else f", {money(before)} before"
    return f"{budget.group}: {money(budget.amount)} {budget.currency} for {bills.month_named(budget.month)}{replaced}."


def _budget_notes(session: DeclarationSession, declared: Sequence[MonthBudget]) -> Iterator[str]:
    for group in dict.fromkeys(budget.group for budget in declared):
        key, _, name = group.partition("=")
        is_label = name and key in session.settings.label_keys
        if is_label and (unknown := label_of_nothing(session.engine, key, name)):
            undo = "" if session.dry_run else f" Undo: `{_removal_of_budgets(session, group, declared)}`."
            yield f"note: {unknown}{undo}"


def _removal_of_budgets(session: DeclarationSession, group: str, declared: Sequence[MonthBudget]) -> str:
    months = sorted(budget.month for budget in declared if budget.group == group)
    first, number = months[0], (months[-1].year - months[0].year) * 12 + months[-1].month - months[0].month + 1
    month = "" if [first] == _months(session, None, 1) else f" --month {first:%Y-%m}"
    return f"capacity budgets remove {shlex.quote(group)}{month}{f' --months {number}' if number > 1 else ''}"


def _budget_cells(stored: Stored[MonthBudget]) -> list[object]:
    budget, declared = stored.declaration, declaring.declared_cells(stored)
    return [budget.group, f"{budget.month:%Y-%m}", money(budget.amount), budget.currency, *declared]


@budgets.command("list")
@declaring.list_command(
    "Budgets",
    ("Group", "Month", ">Budget", "Currency", *DECLARED),
    _budget_cells,
    "No budget is declared. `capacity budgets set` declares one, `capacity budgets import` those in a file.",
)
def list_budgets(engine: Engine, /) -> list[Stored[MonthBudget]]:
    """Show all declared budgets."""
    return group_budgets.declared_budgets(engine)


@budgets.command("remove")
@click.argument("group")
@months_options
@declaring.change_command
def remove_budgets(session: DeclarationSession, /, *, group: str, month: date | None, months: int) -> DeclarationReport:
    """Remove the budgets of GROUP in some months."""
    checked = group_budgets.checked_group(group, session.settings.label_keys)
    starts = _months(session, month, months)
    number = group_budgets.remove_budgets(session.engine, checked, starts, dry_run=session.dry_run)
    document = {"removed": {"group": checked, "months": starts}}
    return DeclarationReport(document, [f"{counted(number, 'budget')} of {checked} removed."])
