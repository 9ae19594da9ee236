"""`capacity prices`: what a GiB costs per month, as declared by people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.cli.dated import as_json as dated_json
from capacity_assets.cli.dated import first_day_of, restating, since
from capacity_assets.cli.options import (
    DAY,
    LazyGroup,
    command,
    dry_run_option,
    file_options,
    json_command,
    once_option,
    options,
)
from capacity_assets.cli.output import NOTHING_CHANGED, print_declared, print_json, print_table, say
from capacity_assets.cli.server_registry import opened_registry
from capacity_assets.clock import Clock
from capacity_assets.collection.registry import registered
from capacity_assets.grouping.labels import label_of_nothing
from capacity_assets.grouping.prices import (
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
from capacity_assets.settings import Settings
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.units import meant

COMMANDS = {"set": "prices:set_", "import": "prices:import_", "list": "prices:list_", "remove": "prices:remove"}


@click.group(cls=LazyGroup, locations=COMMANDS)
def prices() -> None:
    """Declare what a GiB costs per month."""


subject_options = options(
    click.option("--engine", default=EVERYTHING, help="Only for servers of this engine."),
    once_option("--label", metavar="KEY=VALUE", description="Only for what has this label."),
)


@click.command("set")
@click.argument("price")
@click.option("--currency", required=True, help="EUR, USD or another code of ISO 4217; one for the whole list.")
@subject_options
@click.option("--from", "first_day", type=DAY, help="First day of the price. Default: see above.")
@click.option("--always", is_flag=True, help="Apply to all of history, in place of earlier prices.")
@dry_run_option
@command
def set_(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings,
    /,
    *,
    price: str,
    currency: str,
    engine: str,
    label: str | None,
    first_day: date | None,
    always: bool,
    dry_run: bool,
) -> None:
    """Declare the PRICE of a GiB per month: a number, or none.

    A price for a label comes before one for an engine, and both before the one for everything. `capacity bill` takes
    the price of each day. The first price applies to all of history. A changed price applies from the current month on;
    earlier bills do not change.

    \b
    Examples:
      capacity prices set 0.12 --currency EUR
      capacity prices set 0.40 --currency EUR --engine oracle
      capacity prices set 0.05 --currency EUR --label environment=test --from 2026-01-01
    """
    key, value = label_of(label, settings.label_keys)
    asked = Price(price_of(price), currency, engine, key, value, first_day_of(first_day, always=always))
    with opened_registry(settings, settings.zone) as opened:
        [change] = declare_prices(opened, [asked], Clock(settings.zone).today(), dry_run=dry_run)
        declared = change.price
        notes = list(_notes(opened, declared))
    if declared.price is None:
        say(
            f"{declared.display_name}: no price of its own, {since(declared.valid_from)}; a more general one applies, "
            "if any."
        )
    else:
        say(f"{declared.display_name}: {_price_text(declared)} per GiB and month, {since(declared.valid_from)}.")
    for note in notes:
        say(f"note: {note}")
    if asked.valid_from is None and declared.valid_from != ALWAYS:
        say("Earlier months keep their price. Use --always to apply the new price to them as well.")
    for sentence in restating(change.restated):
        say(sentence)
    if dry_run:
        say(NOTHING_CHANGED)


def _notes(opened: Engine, declared: Price) -> Iterator[str]:
    """Say what the price is for that nothing has yet."""
    if declared.engine:
        engines = {one.server.engine for one in registered(opened)}
        if declared.engine not in engines:
            yield f"No registered server is of the engine {declared.engine!r}.{meant(declared.engine, engines)}"
    if declared.key and (unknown := label_of_nothing(opened, declared.key, declared.value)):
        yield unknown


def _price_text(price: Price) -> str:
    return NO_PRICE if price.price is None else f"{price.price.normalize():f} {price.currency}"


@click.command("import")
@file_options
@json_command
def import_(settings: Settings, /, *, file: Path, dry_run: bool, as_json: bool) -> None:
    """Declare the prices that a CSV file lists.

    Columns are price, currency and, optionally, engine, label (as team=payments) and from (empty: as for `set`). Either
    all prices are stored or none.
    """
    found = prices_of_file(file, settings.label_keys)
    with opened_registry(settings, settings.zone) as engine:
        changes = declare_prices(engine, found, Clock(settings.zone).today(), dry_run=dry_run)
    months = sorted({month for change in changes for month in change.restated}, reverse=True)
    entries = [dated_json(change.price) for change in changes]
    print_declared("price", entries, file, dry_run=dry_run, as_json=as_json, restated_months=months)
    if not as_json:
        for sentence in restating(months):
            say(sentence)


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> None:
    """Show every declared price and since when it holds."""
    with opened_registry(settings) as engine:
        found = stored_prices(engine)
    if as_json:
        print_json(list(map(dated_json, found)))
    elif found:
        print_table("Prices per GiB and month", LIST_COLUMNS, _rows(found))
    else:
        say("No price is known. `capacity prices set` declares one, `capacity prices import` those of a file.")


LIST_COLUMNS = (("For", "left"), ("Price", "right"), ("From", "left"))


def _rows(found: Sequence[Price]) -> list[list[object]]:
    return [[price.display_name, _price_text(price), since(price.valid_from).removeprefix("from ")] for price in found]


@click.command()
@subject_options
@click.option("--from", "first_day", type=DAY, help="First day of the price. Default: always.")
@command
def remove(settings: Settings, /, *, engine: str, label: str | None, first_day: date | None) -> None:
    """Remove a price, as if it had never been declared.

    `capacity prices set none --from DAY` ends one instead, and leaves earlier bills as they are.
    """
    price = Price(None, "", engine, *label_of(label, settings.label_keys), first_day or ALWAYS)
    with opened_registry(settings) as opened:
        removed = forget_price(opened, price)
    say(f"Removed the price of {price.display_name}, {since(price.valid_from)}.")
    for sentence in restating(removed.restated):
        say(sentence)
