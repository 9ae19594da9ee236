"""`capacity prices`: what a GiB costs per month, as people declare it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import first_of, meant
from capacity_assets.cli.declaring import (
    DECLARED,
    DeclarationReport,
    Registry,
    changing,
    dated_json,
    declared_cells,
    declared_json,
    declaring,
    file_argument,
    first_day_options,
    issue_bills,
    listing,
    since,
)
from capacity_assets.cli.lazy import OrderedGroup
from capacity_assets.cli.options import DAY, label_option, options, say
from capacity_assets.collection.servers import registered
from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership.bills import month_named, unfinished_months
from capacity_assets.ownership.labels import label_of_nothing
from capacity_assets.ownership.prices import (
    EVERYTHING,
    MONTHS_COMPUTED,
    NO_PRICE,
    Price,
    PriceChanges,
    PriceEntry,
    declare_prices,
    forget_price,
    label_of,
    price_changes,
    price_of,
    prices_of_file,
    removal_changes,
    stored_prices,
)

HEADINGS = ("For", ">Price", "From", *DECLARED)


@click.group(cls=OrderedGroup)
def prices() -> None:
    """Declare what a GiB costs per month."""


subject_options = options(
    click.option("--engine", default=EVERYTHING, help="Only for servers of this engine."),
    label_option("Only for databases with this label."),
)


restate_option = click.option(
    "--restate", is_flag=True, help="Allow changes to bills of closed months; preview with --dry-run."
)


@prices.command("set")
@click.argument("price")
@click.option("--currency", required=True, help="EUR, USD or another ISO 4217 code, the same for all prices.")
@subject_options
@first_day_options(
    "First day of the price. Default: the first of this month.",
    "Apply it to all of history, also to closed months; replace earlier prices.",
)
@restate_option
@declaring
def set_(
    registry: Registry,
    /,
    *,
    price: str,
    currency: str,
    engine: str,
    label: str | None,
    first_day: date | None,
    restate: bool,
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
    subject = label_of(label, registry.settings.label_keys)
    wanted = Price(price_of(price), currency, engine, *subject, first_day)
    changes = _declare(registry, [wanted], restate=restate or first_day == ALWAYS)
    [declared] = changes.prices
    if declared.price is None:
        effect = f"no price of its own, {since(declared.valid_from)}; a more general one applies, if any."
    else:
        effect = f"{_price_text(declared)} per GiB and month, {since(declared.valid_from)}."
    lines = [f"{declared.display_name}: {effect}", *(f"note: {note}" for note in _notes(registry.engine, declared))]
    if first_day is None and declared.valid_from != ALWAYS:
        lines.append("Earlier months are not changed. Use --always to apply the price to them as well.")
    return _report(changes, lines)


def _declare(registry: Registry, wanted: Sequence[Price], *, restate: bool) -> PriceChanges:
    """Declare prices once it is said which bills of closed months change."""
    engine, today = registry.engine, registry.today()
    changes = price_changes(engine, wanted, today, registry.settings.label_keys)
    _say_what_changes(registry, changes, restate=restate)
    if not registry.dry_run:
        declare_prices(engine, wanted, today, by=registry.by, restate=restate or not changes.months)
    return changes


def _say_what_changes(registry: Registry, changes: PriceChanges, *, restate: bool) -> None:
    """Say which final bills change and by how much; raises ValidationError if nobody confirmed that."""
    if not changes.months:
        return
    months = [*(bill.text for bill in changes.bills), *map(month_named, changes.older_months)]
    named = first_of(months, MONTHS_COMPUTED)
    if not restate and not registry.dry_run:
        raise ValidationError(
            f"Bills of closed months would change: {named}. Nothing was changed. To restate them, add --restate."
        )
    say(f"Bills of closed months that change: {named}.{'' if restate else ' Requires --restate.'}")


def _report(changes: PriceChanges, lines: Sequence[str]) -> DeclarationReport:
    document = {
        "prices": list(map(dated_json, changes.prices)),
        "restated_months": changes.months,
        "restated_bills": list(map(asdict, changes.bills)),
    }
    return DeclarationReport(document, lines, follow_up=partial(_compute_bills, changes=changes))


def _compute_bills(registry: Registry, changes: PriceChanges) -> None:
    first = min(price.valid_from or ALWAYS for price in changes.prices)
    issue_bills(registry, [*changes.months, *unfinished_months(registry.engine, first)])


def _notes(engine: Engine, declared: Price) -> Iterator[str]:
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
@restate_option
@declaring
def import_(registry: Registry, /, *, file: Path, restate: bool) -> DeclarationReport:
    """Declare the prices that a CSV file lists.

    Columns are price, currency and, optionally, engine, label (as team=payments) and from (a day, or always; empty: as
    for `set`). Either all prices are stored or none.
    """
    declared = prices_of_file(file, registry.settings.label_keys)
    changes = _declare(registry, declared, restate=restate)
    return _report(changes, [registry.read_from(file, len(declared), "price")])


def _cells(stored: PriceEntry) -> list[object]:
    price = stored.price
    first_day = since(price.valid_from).removeprefix("from ")
    return [price.display_name, _price_text(price), first_day, *declared_cells(stored)]


@prices.command("list")
@listing(
    "Prices per GiB and month",
    HEADINGS,
    _cells,
    "No price is declared. `capacity prices set` declares one, `capacity prices import` those of a file.",
)
def list_(engine: Engine, /) -> list[tuple[PriceEntry, object]]:
    """Show all declared prices and their first days."""
    return [(stored, {**dated_json(stored.price), **declared_json(stored)}) for stored in stored_prices(engine)]


@prices.command()
@subject_options
@click.option(
    "--from",
    "first_day",
    type=DAY,
    help="First day of the price. Default: the only price there is, or the one for all of history.",
)
@restate_option
@changing
def remove(
    registry: Registry, /, *, engine: str, label: str | None, first_day: date | None, restate: bool
) -> DeclarationReport:
    """Remove a price, as if it had never been declared.

    To end a price and keep earlier bills, use `capacity prices set none --from DAY` instead.
    """
    price = Price(None, "", engine, *label_of(label, registry.settings.label_keys), first_day or ALWAYS)
    if first_day is None:
        price = _only_one(registry.engine, price)
    changes = removal_changes(registry.engine, price, registry.settings.label_keys)
    _say_what_changes(registry, changes, restate=restate)
    if not registry.dry_run:
        forget_price(registry.engine, price, restate=restate or not changes.months)
    line = f"Removed the price of {price.display_name}, {since(price.valid_from)}."
    return _report(changes, [line])


def _only_one(engine: Engine, price: Price) -> Price:
    """Return the price with the first day of the only one for its subject, unless one applies to all of history."""
    subject = (price.engine, price.key, price.value)
    prices = (stored.price for stored in stored_prices(engine))
    days = [one.valid_from for one in prices if (one.engine, one.key, one.value) == subject]
    return price if ALWAYS in days or len(days) != 1 else replace(price, valid_from=days[0])
