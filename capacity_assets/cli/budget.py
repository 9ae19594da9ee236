"""`capacity budget`: what groups will cost in the coming months, with ranges."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from decimal import Decimal

import click

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text, human_mb, human_month
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
from capacity_assets.database.engine import snapshot
from capacity_assets.ownership.bills import group_named, mean_price, money
from capacity_assets.ownership.budgets import MOST_MONTHS, Budget, BudgetLine, coming_months, read_budget
from capacity_assets.ownership.groups import default_grouping


@click.command()
@click.option("--by", help="engine, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option(
    "--months",
    type=click.IntRange(1, MOST_MONTHS),
    default=MOST_MONTHS,
    show_default=True,
    help="Whole months after the current one.",
)
@click.option("--output", default=STANDARD_OUTPUT, help="A file: .csv or .json. Default: a table on the screen.")
@json_command
def budget(settings: Settings, /, *, by: str | None, months: int, output: str) -> Report:
    """Show what each team, or any other group, will cost in the coming months.

    A line is the newest issued forecast of the group, times the price list. Lines add up to the total; ranges of 80
    percent do not. Stores nothing.

    \b
    Examples:
      capacity budget
      capacity budget --by cost_centre --months 6 --output budget.csv
    """
    extension = format_of(output, FORMATS)
    today = Clock(settings.zone).today()
    coming = coming_months(today, months)
    reading = database_errors(doing="reading a budget")
    with opened_registry(settings) as engine, reading, snapshot(engine) as connection:
        grouped_by = by or default_grouping(settings.label_keys)
        found = read_budget(connection, grouped_by, coming, today, settings.label_keys)
    if extension is not None:
        write_formatted(output, FORMATS[extension](found))
        return Report(asdict(found), [f"{title(found)}, written to {output}"])
    return Report(asdict(found), _lines(found))


def title(found: Budget) -> str:
    """Say which budget it is."""
    first, last = (human_month(day) for day in (found.months[0], found.last_day))
    months = first if first == last else f"{first} to {last}"
    return f"Budget of {months}, by {found.grouped_by}"


def _lines(found: Budget) -> Iterator[Line]:
    """Yield a budget as a table, and its notes."""
    headings = (
        found.grouped_by.replace("_", " ").capitalize(),
        *(">Size now", ">Size at the end", ">Range", ">Per GiB"),
        *(f">Amount, {found.currency or 'no currency'}", ">Range"),
    )
    rows = [_cells(group_named(line.name, found.grouped_by), line) for line in found.lines]
    total = found.total
    sizes = [human_mb(total.size_mb), human_mb(total.end_size_mb), ""]
    rows.append(["Total", *sizes, _price(total.price_per_gib), money(total.amount), ""])
    yield Table(title(found), headings, rows)
    yield from found.notes


def _cells(name: str, line: BudgetLine) -> list[object]:
    sizes = [human_mb(line.size_mb), human_mb(line.end_size_mb), line.size_range]
    return [name, *sizes, _price(line.price_per_gib), money(line.amount), line.amount_range]


def _price(per_gib: Decimal | None) -> str:
    return "no price" if per_gib is None else mean_price(per_gib)


CSV_COLUMNS = (
    "size_mb", "end_size_mb", "end_lower_mb", "end_upper_mb", "amount", "lower_amount", "upper_amount",
    "price_per_gib",
)  # fmt: skip


def as_csv(found: Budget) -> str:
    """Return the lines of a budget as CSV, one column per month at the end; the total is not among them."""
    written = io.StringIO()
    rows = csv.writer(written)
    months = [f"{month:%Y-%m}" for month in found.months]
    rows.writerow(["as_of", "last_day", "grouped_by", "group", *CSV_COLUMNS, "currency", *months])
    for line in found.lines:
        figures = [getattr(line, name) for name in CSV_COLUMNS]
        amounts = [line.monthly_amounts.get(month) for month in months]
        group = as_plain_text(line.name or "")
        # None is written as an empty field.
        rows.writerow([found.as_of, found.last_day, found.grouped_by, group, *figures, found.currency, *amounts])
    return written.getvalue()


FORMATS: Mapping[str, Callable[[Budget], str]] = {
    "csv": as_csv,
    "json": lambda found: as_json_text(asdict(found)) + "\n",
}
