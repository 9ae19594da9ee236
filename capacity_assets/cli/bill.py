"""`capacity bill`: what the databases of a month cost, by team or whatever they are grouped by."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import atomic_write
from capacity_assets.base.periods import PERIODS, Clock, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text
from capacity_assets.cli.declaring import opened_registry
from capacity_assets.cli.options import (
    STANDARD_OUTPUT,
    as_json_text,
    json_command,
    left,
    print_json,
    print_table,
    right,
    say,
    writing,
)
from capacity_assets.ownership.bills import (
    IssuedBill,
    amount_text,
    gib,
    group_named,
    issue_bill,
    notes,
    quantity_note,
    read_bill,
    title,
)
from capacity_assets.ownership.groups import default_grouping, refuse_unknown_grouping

MONTH = re.compile(r"\d{4}-\d{2}")
CSV_COLUMNS = (
    "month", "issue", "grouped_by", "group", "databases", "gib", "gib_without_price", "amount", "currency",
)  # fmt: skip


@click.command()
@click.option("--month", metavar="YYYY-MM", help="Default: the last complete one.")
@click.option("--by", help="engine, server, or the key of a label. Default: the first key.")
@click.option("--issue", type=click.IntRange(1), help="An earlier issue of the bill, as it was; computes nothing.")
@click.option("--output", default=STANDARD_OUTPUT, help="A file: .csv, .json or .html. Default: a table on the screen.")
@json_command
def bill(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings, /, *, month: str | None, by: str | None, issue: int | None, output: str, as_json: bool
) -> None:
    """Show what the databases of a month cost, by group.

    Computed from the size of each database on each day, with the labels and prices of that day. What was billed for a
    month that is over stays; where late samples, labels or prices change it, a new issue says by how much and why.

    \b
    Examples:
      capacity bill
      capacity bill --month 2026-10 --by cost_centre --output bill.csv
      capacity bill --month 2026-10 --issue 1
    """
    form = _form_of(output)
    by = by or default_grouping(settings.label_keys)
    clock = Clock(settings.zone)
    window = PERIODS["monthly"].last(clock.today()) if month is None else _window(month)
    with opened_registry(settings) as engine:
        if issue is None:
            refuse_unknown_grouping(by, settings.label_keys)
            issue_bill(engine, window, clock, settings.label_keys)
        found = read_bill(engine, window, by, issue)
    if output != STANDARD_OUTPUT:
        with writing(output), atomic_write(Path(output)) as begun:
            begun.write_text(FORMS[form](found), encoding="utf-8")
        say(f"{title(found)}: {amount_text(found.bill)}, written to {output}")
    elif as_json:
        print_json(as_document(found))
    else:
        print_bill(found)


def _window(month: str) -> Window:
    with suppress(ValueError):
        if MONTH.fullmatch(month):
            return PERIODS["monthly"].window_of(date.fromisoformat(f"{month}-01"))
    raise ValidationError(f"{month!r} is not a month; write 2026-10.")


def _form_of(output: str) -> str:
    form = "table" if output == STANDARD_OUTPUT else Path(output).suffix.lower().removeprefix(".")
    if form != "table" and form not in FORMS:
        raise ValidationError(f"Name the file .csv, .json or .html; {output!r} is none of these. Nothing was written.")
    return form


def print_bill(found: IssuedBill) -> None:
    """Print a bill as a table, with what there is to know about it below."""
    rows = [
        [
            group_named(group.name, found.grouped_by),
            group.databases,
            gib(group.gib_months),
            "no price" if group.amount is None else f"{group.amount:,}",
        ]
        for group in found.groups
    ]
    total = [f"{found.bill.amount:,}"] if found.bill.amount is not None else ["no price"]
    rows.append(["in all", found.databases, gib(found.bill.gib_months), *total])
    columns = (
        *left(found.grouped_by.replace("_", " ").capitalize()),
        *right("Databases", "GiB", f"Amount, {found.bill.currency or 'no currency'}"),
    )
    print_table(title(found), columns, rows)
    issued = f"Issue {found.bill.issue} of this bill, of {found.bill.issued_at:%Y-%m-%d}."
    for note in [issued, *notes(found), quantity_note(found)]:
        say(note)


def as_document(found: IssuedBill) -> Mapping[str, object]:
    """Return a bill for scripts: decimals as text, so that none is rounded on the way."""
    bill = {**asdict(found.bill), "amount": found.bill.amount}
    return {
        "bill": bill,
        "grouped_by": found.grouped_by,
        "databases": found.databases,
        "groups": [asdict(group) for group in found.groups],
        "difference": found.difference,
        "restated": found.restated,
    }


def as_csv(found: IssuedBill) -> str:
    """Return the groups of a bill as CSV; GiB are means over the month."""
    written = io.StringIO()
    rows = csv.writer(written)
    rows.writerow(CSV_COLUMNS)
    of_bill = (found.bill.month, found.bill.issue, found.grouped_by)
    for group in found.groups:
        sizes = (group.databases, group.gib_months, group.unpriced_gib_months)
        # None is written as an empty field.
        rows.writerow([*of_bill, as_plain_text(group.name or ""), *sizes, group.amount, found.bill.currency])
    return written.getvalue()


def _as_json(found: IssuedBill) -> str:
    return as_json_text(as_document(found)) + "\n"


def _as_html(found: IssuedBill) -> str:
    from capacity_assets.report.page import render_bill

    return render_bill(found)


FORMS: Mapping[str, Callable[[IssuedBill], str]] = {"csv": as_csv, "json": _as_json, "html": _as_html}
