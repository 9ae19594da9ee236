"""`capacity prices` and `bill`: what a GiB costs per month, and what groups cost."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import click
from psycopg import sql
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import SECONDS_PER_COMMAND
from capacity_assets.base.errors import CapacityError, ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text, counted, first_of, suggestion
from capacity_assets.cli import declaring, options
from capacity_assets.cli.declaring import DECLARED, NAMES_SHOWN, DeclarationReport, DeclarationSession
from capacity_assets.cli.documents import write_rows
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import Line, Report, Table, say
from capacity_assets.collection.servers import registered_servers
from capacity_assets.database.declared_rows import Stored
from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership import bills
from capacity_assets.ownership import prices as price_list
from capacity_assets.ownership.bills import BillByGroup, BillGroup, group_heading, group_named, money
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
def set_(
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
    changes = _declare(session, [wanted], restate=restate or first_day == ALWAYS)
    [declared] = changes.prices
    if declared.price is None:
        effect = (
            f"no price of its own, {declaring.since_text(declared.valid_from)}; a more general one applies, if any."
        )
    else:
        effect = f"{_price_text(declared)} per GiB and month, {declaring.since_text(declared.valid_from)}."
    lines = [f"{declared.display_name}: {effect}", *(f"note: {note}" for note in _notes(session.engine, declared))]
    if first_day is None and declared.valid_from != ALWAYS:
        lines.append("Earlier months are not changed. Use --always to apply the price to them as well.")
    return _price_report(changes, lines)


def _subject(session: DeclarationSession, engine: str, label: tuple[str, str] | None) -> tuple[str, str, str]:
    written = None if label is None else "=".join(label)
    return engine, *price_list.label_of(written, session.settings.label_keys)


def _declare(session: DeclarationSession, wanted: Sequence[Price], *, restate: bool) -> PriceChanges:
    """Declare prices; say first which bills of closed months change."""
    engine, today = session.engine, session.today()
    changes = price_list.price_changes(engine, wanted, today, session.settings.label_keys)
    _say_changed_bills(session, changes, restate=restate)
    if not session.dry_run:
        restate = restate or not changes.months
        price_list.declare_prices(engine, wanted, today, by=session.by, restate=restate)
    return changes


def _say_changed_bills(session: DeclarationSession, changes: PriceChanges, *, restate: bool) -> None:
    """Say which final bills change and by how much; raises ValidationError if that was not confirmed."""
    if not changes.months:
        return
    months = [*(bill.text for bill in changes.bills), *map(bills.month_named, changes.older_months)]
    named = first_of(months, price_list.MONTHS_COMPUTED)
    if not restate and not session.dry_run:
        raise ValidationError(
            f"Bills of closed months would change: {named}. Nothing was changed. To restate them, add --restate."
        )
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
    """Recompute bills after a declaration, newest month first, for some seconds; name those that are left.

    Raises CapacityError; its message says that the declaration is stored.
    """
    clock = Clock(session.settings.zone)
    until = time.monotonic() + SECONDS_PER_COMMAND
    left, issued = sorted(set(months)), list[date]()
    try:
        while left and time.monotonic() <= until:
            bills.issue_bill(session.engine, bills.MONTHLY.window_of(left[-1]), clock, session.settings.label_keys)
            issued.append(left.pop())
    except CapacityError as error:
        raise type(error)(f"The declaration is stored, but not every bill was computed. {error}") from error
    if issued:
        say(f"Bills recomputed: {first_of(map(bills.month_named, issued), NAMES_SHOWN)}.")
    if left:
        named = [f"{month:%Y-%m}" for month in reversed(left)]
        say(
            f"Bills still to be recomputed: {first_of(named, NAMES_SHOWN)}. `capacity bill --month {named[0]}` "
            "computes one."
        )


def _notes(engine: Engine, declared: Price) -> Iterator[str]:
    if declared.engine:
        engines = {one.server.engine for one in registered_servers(engine)}
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
def import_(session: DeclarationSession, /, *, file: Path, restate: bool) -> DeclarationReport:
    """Declare the prices that a CSV file lists.

    Columns are price, currency and, optionally, engine, label (as team=payments) and from (a day, or always; empty: as
    for `set`). Either all prices are stored or none.
    """
    declared = price_list.prices_of_file(file, session.settings.label_keys)
    changes = _declare(session, declared, restate=restate)
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
    "No price is declared. `capacity prices set` declares one, `capacity prices import` those of a file.",
)
def list_(engine: Engine, /) -> list[Stored[Price]]:
    """Show all declared prices and their first days."""
    return price_list.stored_prices(engine)


@prices.command()
@subject_options
@click.option(
    "--from",
    "first_day",
    type=options.DAY,
    help="First day of the price. Default: the only price there is, or the one for all of history.",
)
@restate_option
@declaring.change_command
def remove(
    session: DeclarationSession, /, *, first_day: date | None, restate: bool, **subject: Any
) -> DeclarationReport:
    """Remove a price, as if it had never been declared.

    To end a price and keep earlier bills, use `capacity prices set none --from DAY` instead.
    """
    price = Price(None, "", *_subject(session, **subject), first_day or ALWAYS)
    if first_day is None:
        price = _only_one(session.engine, price)
    changes = price_list.removal_changes(session.engine, price, session.settings.label_keys)
    _say_changed_bills(session, changes, restate=restate)
    if not session.dry_run:
        price_list.forget_price(session.engine, price, restate=restate or not changes.months)
    return _price_report(
        changes, [f"Removed the price of {price.display_name}, {declaring.since_text(price.valid_from)}."]
    )


def _only_one(engine: Engine, price: Price) -> Price:
    """Return the price; its first day is that of the only price for its subject, unless one is for all of history."""
    prices = (stored.declaration for stored in price_list.stored_prices(engine))
    days = [one.valid_from for one in prices if one.display_name == price.display_name]
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
@click.option("--issue", type=click.IntRange(1), help="Show an earlier version of the bill unchanged; compute nothing.")
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
    """Write a bill as charges; with a file, return what was written."""
    bill = issued.bill
    charges = charges_of_bill(bill.month, bill.issue, issued.grouped_by, issuer)
    rows = write_rows(engine, sql.SQL(charges), output, "csv")
    if rows is None:
        return None
    lines = [f"{counted(rows, 'charge')} of {bills.month_named(bill.month)} written to {output}"]
    if bill.unpriced_gib_months:
        lines.append(f"Left out: {bills.gib(bill.unpriced_gib_months)} GiB without a price.")
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


NO_CURRENCY, UNPRICED = "no currency", "no price"


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
