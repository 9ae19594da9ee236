"""`capacity bill`: what the databases of a month cost, by group."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import click

from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text
from capacity_assets.cli.declaring import opened_registry
from capacity_assets.cli.options import (
    STANDARD_OUTPUT,
    Line,
    Report,
    Table,
    as_json_text,
    format_of,
    json_command,
    write_formatted,
)
from capacity_assets.ownership.bills import (
    BillByGroup,
    BillGroup,
    amount_text,
    gib,
    group_named,
    issue_bill,
    moment,
    money,
    money_change,
    month_of,
    notes,
    price,
    quantity_note,
    read_bill,
    title,
)
from capacity_assets.ownership.groups import default_grouping, refuse_unknown_grouping

CSV_COLUMNS = (
    "month", "issue", "grouped_by", "group", "databases", "gib", "gib_without_price", "amount", "currency",
)  # fmt: skip
GROUP_COLUMNS = (
    "lowest_price", "highest_price", "projected_amount", "amount_before", "change", "change_growth", "change_price",
    "change_moves", "servers", "amount_per_gib", "amount_per_server", "budget", "budget_difference",
)  # fmt: skip


@click.command()
@click.option("--month", metavar="YYYY-MM", help="Default: the last complete one.")
@click.option("--by", help="engine, server, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option("--issue", type=click.IntRange(1), help="Show an earlier version of the bill unchanged; compute nothing.")
@click.option("--output", default=STANDARD_OUTPUT, help="A file: .csv, .json or .html. Default: a table on the screen.")
@json_command
def bill(settings: Settings, /, *, month: str | None, by: str | None, issue: int | None, output: str) -> Report:
    """Show what the databases of a month cost, by group.

    Computed from the size of each database on each day, with the labels and prices of that day. The bill of a completed
    month is kept. If late samples, labels or prices change it, a new version shows by how much and why.

    \b
    Examples:
      capacity bill
      capacity bill --month 2026-10 --by cost_centre --output bill.csv
      capacity bill --month 2026-10 --issue 1
    """
    extension = format_of(output, FORMATS)
    by = by or default_grouping(settings.label_keys)
    clock = Clock(settings.zone)
    monthly = PERIODS["monthly"]
    window = monthly.last(clock.today()) if month is None else monthly.window_of(month_of(month))
    with opened_registry(settings) as engine:
        if issue is None:
            refuse_unknown_grouping(by, settings.label_keys)
            issue_bill(engine, window, clock, settings.label_keys)
        issued = read_bill(engine, window, by, issue)
    if extension is not None:
        write_formatted(output, FORMATS[extension](issued))
        return Report(as_document(issued), [f"{title(issued)}: {amount_text(issued.bill)}, written to {output}"])
    return Report(as_document(issued), _lines(issued))


def _lines(issued: BillByGroup) -> Iterator[Line]:
    bill, by = issued.bill, issued.grouped_by
    rows = [_cells(group_named(group.name, by), group, issued) for group in (*issued.groups, *issued.former_groups)]
    rows.append(_cells("Total", issued.total, issued))
    headings = [by.replace("_", " ").capitalize(), ">Databases", ">GiB", ">Price"]
    headings += [f">Amount, {bill.currency or 'no currency'}", *([">Projected"] if bill.days_so_far else [])]
    headings += [">Change"] if issued.compared_issue is not None else []
    headings += [">Budget", ">Over budget"] if issued.has_budget else []
    yield Table(title(issued), headings, rows)
    yield f"Version {bill.issue} of this bill, of {moment(bill.issued_at)}."
    yield from (*notes(issued), quantity_note(issued))


def _cells(name: str, group: BillGroup, issued: BillByGroup) -> list[object]:
    amount = "no price" if group.amount is None else money(group.amount)
    cells: list[object] = [name, group.databases, gib(group.gib_months), price(group), amount]
    if issued.bill.days_so_far:
        cells.append(money(group.projected_amount))
    if issued.compared_issue is not None:
        cells.append(money_change(group.change))
    if issued.has_budget:
        cells += [money(group.budget), money_change(group.budget_difference)]
    return cells


def as_document(issued: BillByGroup) -> Mapping[str, object]:
    """Return a bill for scripts; decimals become text, so that none is rounded."""
    bill = {**asdict(issued.bill), "amount": issued.bill.amount}
    return {
        "bill": bill,
        "grouped_by": issued.grouped_by,
        "databases": issued.databases,
        "groups": [asdict(group) for group in issued.groups],
        "former_groups": [asdict(group) for group in issued.former_groups],
        "total": asdict(issued.total),
        "compared_issue": issued.compared_issue,
        "difference": issued.difference,
        "restated": issued.restated,
    }


def as_csv(issued: BillByGroup) -> str:
    """Return the groups of a bill as CSV; GiB are averages of the month."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*CSV_COLUMNS, *GROUP_COLUMNS])
    bill_fields = (issued.bill.month, issued.bill.issue, issued.grouped_by)
    for group in (*issued.groups, *issued.former_groups):
        sizes = (group.databases, group.gib_months, group.unpriced_gib_months)
        amounts = (group.amount, issued.bill.currency, *(getattr(group, name) for name in GROUP_COLUMNS))
        # None is written as an empty field.
        rows.writerow([*bill_fields, as_plain_text(group.name or ""), *sizes, *amounts])
    return text.getvalue()


def as_html(issued: BillByGroup) -> str:
    """Return a bill as a page."""
    from capacity_assets.report.page import render_bill

    return render_bill(issued)


FORMATS: Mapping[str, Callable[[BillByGroup], str]] = {
    "csv": as_csv,
    "json": lambda issued: as_json_text(as_document(issued)) + "\n",
    "html": as_html,
}
