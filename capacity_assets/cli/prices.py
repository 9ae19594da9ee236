"""`capacity prices`: what a GiB costs per month, as people declare it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import first_of, meant
from capacity_assets.cli.declaring import (
    Registry,
    Report,
    dated_json,
    declaring,
    file_argument,
    first_day_options,
    listing,
    since,
)
from capacity_assets.cli.lazy import OrderedGroup
from capacity_assets.cli.options import DAY, label_option, options
from capacity_assets.collection.servers import registered
from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership.labels import label_of_nothing
from capacity_assets.ownership.prices import (
    EVERYTHING,
    NO_PRICE,
    Price,
    declare_prices,
    forget_price,
    label_of,
    price_of,
    prices_of_file,
    stored_prices,
)

MONTHS_NAMED = 12
COLUMNS = (("For", "left"), ("Price", "right"), ("From", "left"))


@click.group(cls=OrderedGroup)
def prices() -> None:
    """Declare what a GiB costs per month."""


subject_options = options(
    click.option("--engine", default=EVERYTHING, help="Only for servers of this engine."),
    label_option("Only for databases with this label."),
)


@prices.command("set")
@click.argument("price")
@click.option("--currency", required=True, help="EUR, USD or another ISO 4217 code, the same for all prices.")
@subject_options
@first_day_options("First day of the price. Default: see above.", "Apply it to all of history; replace earlier prices.")
@declaring
def set_(  # noqa: PLR0913 -- one argument per documented option
    registry: Registry, /, *, price: str, currency: str, engine: str, label: str | None, first_day: date | None
) -> Report:
    """Declare the PRICE of a GiB per month: a number, or none.

    A price for a label overrides one for an engine, and both override the general one. `capacity bill` uses the price
    of each day. The first price applies to all of history. A changed price applies from the current month on; earlier
    bills do not change.

    \b
    Examples:
      capacity prices set 0.12 --currency EUR
      capacity prices set 0.40 --currency EUR --engine oracle
      capacity prices set 0.05 --currency EUR --label environment=test --from 2026-01-01
    """
    subject = label_of(label, registry.settings.label_keys)
    wanted = Price(price_of(price), currency, engine, *subject, first_day)
    [change] = declare_prices(registry.engine, [wanted], registry.today(), dry_run=registry.dry_run)
    declared = change.price
    if declared.price is None:
        effect = f"no price of its own, {since(declared.valid_from)}; a more general one applies, if any."
    else:
        effect = f"{_price_text(declared)} per GiB and month, {since(declared.valid_from)}."
    lines = [f"{declared.display_name}: {effect}", *(f"note: {note}" for note in _notes(registry.engine, declared))]
    if first_day is None and declared.valid_from != ALWAYS:
        lines.append("Earlier months keep their price. Use --always to apply the new price to them as well.")
    return _report([declared], change.restated, lines)


def _report(declared: Sequence[Price], months: Sequence[date], lines: Sequence[str]) -> Report:
    """Report prices, and the closed months whose bills they change, newest first."""
    month = PERIODS["monthly"]
    names = first_of((month.name_of(month.window_of(first_day)) for first_day in months), MONTHS_NAMED)
    restating = f"Bills of closed months that change: {names}. Run `capacity bill --month` for each to restate it."
    document = {"prices": list(map(dated_json, declared)), "restated_months": months}
    return Report(document, [*lines, *([restating] if months else [])])


def _notes(engine: Engine, declared: Price) -> Iterator[str]:
    """Return a note if no server has the engine, or no database the label, of the price."""
    if declared.engine:
        engines = {one.server.engine for one in registered(engine)}
        if declared.engine not in engines:
            yield f"No registered server has the engine {declared.engine!r}.{meant(declared.engine, engines)}"
    if declared.key and (unknown := label_of_nothing(engine, declared.key, declared.value)):
        yield unknown


def _price_text(price: Price) -> str:
    return NO_PRICE if price.price is None else f"{price.price.normalize():f} {price.currency}"


@prices.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> Report:
    """Declare the prices that a CSV file lists.

    Columns are price, currency and, optionally, engine, label (as team=payments) and from (empty: as for `set`). Either
    all prices are stored or none.
    """
    declared = prices_of_file(file, registry.settings.label_keys)
    changes = declare_prices(registry.engine, declared, registry.today(), dry_run=registry.dry_run)
    months = sorted({month for change in changes for month in change.restated}, reverse=True)
    return _report([change.price for change in changes], months, [registry.read_from(file, len(changes), "price")])


def _cells(price: Price) -> list[object]:
    return [price.display_name, _price_text(price), since(price.valid_from).removeprefix("from ")]


@prices.command("list")
@listing(
    "Prices per GiB and month",
    COLUMNS,
    _cells,
    "No price is declared. `capacity prices set` declares one, `capacity prices import` those of a file.",
)
def list_(engine: Engine, /) -> list[tuple[Price, object]]:
    """Show all declared prices and their first days."""
    return [(price, dated_json(price)) for price in stored_prices(engine)]


@prices.command()
@subject_options
@click.option("--from", "first_day", type=DAY, help="First day of the price. Default: always.")
@declaring
def remove(registry: Registry, /, *, engine: str, label: str | None, first_day: date | None) -> Report:
    """Remove a price, as if it had never been declared.

    To end a price and keep earlier bills, use `capacity prices set none --from DAY` instead.
    """
    price = Price(None, "", engine, *label_of(label, registry.settings.label_keys), first_day or ALWAYS)
    removed = forget_price(registry.engine, price, dry_run=registry.dry_run)
    line = f"Removed the price of {price.display_name}, {since(price.valid_from)}."
    return _report([removed.price], removed.restated, [line])
