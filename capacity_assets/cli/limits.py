"""`capacity limits`: how much servers and databases can hold, as declared by people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from capacity_assets.cli.options import LazyGroup, command, file_options, json_command
from capacity_assets.cli.output import NOTHING_CHANGED, left, print_json, print_table, right, say
from capacity_assets.cli.server_registry import issue_forecasts_anew, opened_registry
from capacity_assets.errors import ValidationError
from capacity_assets.runway.limits import (
    UNLIMITED,
    Limit,
    StoredLimit,
    below_the_size,
    declare,
    forget,
    limits_of_file,
    megabytes_of,
    stored_limits,
)
from capacity_assets.runway.subjects import named
from capacity_assets.settings import Settings
from capacity_assets.units import counted, human_mb, printable

WARNED = 10
COMMANDS = {"set": "limits:set_", "import": "limits:import_", "list": "limits:list_", "remove": "limits:remove"}


@click.group(cls=LazyGroup, locations=COMMANDS)
def limits() -> None:
    """Declare how much servers and databases can hold."""


def limit_text(limit_mb: int | None) -> str:
    """Render a limit."""
    return UNLIMITED if limit_mb is None else human_mb(limit_mb)


@click.command("set")
@click.argument("server")
@click.argument("database", required=False)
@click.option("--gb", help="How much it can hold, in GiB, as 500 or 1.5.")
@click.option("--unlimited", is_flag=True, help="It has no limit.")
@click.option("--note", help="Where the limit comes from, or who said so.")
@command
def set_(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings, /, *, server: str, database: str | None, gb: str | None, unlimited: bool, note: str | None
) -> None:
    """Declare the limit of SERVER, or of one DATABASE of it.

    An earlier limit is replaced. A server's limit holds for all its databases together, as a disk does.

    \b
    Examples:
      capacity limits set db-7 --gb 2000
      capacity limits set db-7 orders --gb 500 --note "contract of 2026"
      capacity limits set db-7 archive --unlimited
    """
    if unlimited == (gb is not None):
        raise ValidationError("Say how much it can hold: either --gb or --unlimited. Nothing was changed.")
    limit = Limit(server, database, megabytes_of(UNLIMITED if unlimited else str(gb)), note)
    with opened_registry(settings) as engine:
        replaced = declare(engine, [limit])
        smaller = below_the_size(engine, [limit])
        hint = "" if limit.limit_mb is None else f" `capacity runway {server}` shows when it is full."
        say(f"{named(server, database)}: {limit_text(limit.limit_mb)}.{hint}")
        _report_replaced(replaced)
        _warn_of_smaller(smaller)
        issue_forecasts_anew(engine, settings, {server})


def _report_replaced(replaced: Sequence[Limit]) -> None:
    for limit in replaced[:WARNED]:
        note = f" ({printable(limit.note)})" if limit.note else ""
        say(f"note: {named(limit.server, limit.database)} was {limit_text(limit.limit_mb)}{note}.")
    if len(replaced) > WARNED:
        say(f"note: {len(replaced) - WARNED:,} more replace an earlier limit.")


def _warn_of_smaller(smaller: Sequence[tuple[Limit, int]]) -> None:
    for limit, size_mb in smaller[:WARNED]:
        say(f"note: {named(limit.server, limit.database)} holds {human_mb(size_mb)}, more than its limit.")
    if len(smaller) > WARNED:
        say(f"note: {counted(len(smaller) - WARNED, 'more limit')} below the measured size.")


@click.command("import")
@file_options
@json_command
def import_(settings: Settings, /, *, file: Path, dry_run: bool, as_json: bool) -> None:
    """Declare the limits that a CSV file lists.

    Columns are server, database (empty: the whole server), limit_gb (a number or unlimited) and, optionally, note. All
    of them are stored, or none.
    """
    found = limits_of_file(file)
    with opened_registry(settings) as engine:
        replaced = declare(engine, found, dry_run=dry_run)
        smaller = below_the_size(engine, found)
        if not as_json:
            say(f"{counted(len(found), 'limit')} {'read' if dry_run else 'declared'} from {file}.")
            _report_replaced(replaced)
            _warn_of_smaller(smaller)
        if not dry_run:
            issue_forecasts_anew(engine, settings, {limit.server for limit in found}, quiet=as_json)
    if as_json:
        below = [{**asdict(limit), "size_mb": size_mb} for limit, size_mb in smaller]
        print_json({"dry_run": dry_run, "limits": [asdict(limit) for limit in found], "below_the_size": below})
    elif dry_run:
        say(NOTHING_CHANGED)


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> None:
    """Show every declared limit and since when it holds.

    Measured limits are shown by `capacity volumes list` and `capacity instances test`.
    """
    with opened_registry(settings) as engine:
        found = stored_limits(engine)
    if as_json:
        print_json(
            [{**asdict(one.limit), "source": one.source, "declared_at": one.declared_at.isoformat()} for one in found]
        )
    elif found:
        print_table("Limits", LIST_COLUMNS, list(map(_cells, found)))
    else:
        say("No limit is known. `capacity limits set` declares one, `capacity limits import` those of a file.")


LIST_COLUMNS = (*left("Server", "Database"), *right("Limit"), *left("Source", "Since"), ("Note", "text"))


def _cells(one: StoredLimit) -> list[object]:
    database, since = one.limit.database or "all together", f"{one.declared_at:%Y-%m-%d}"
    return [one.limit.server, database, limit_text(one.limit.limit_mb), one.source, since, one.limit.note or ""]


@click.command()
@click.argument("server")
@click.argument("database", required=False)
@command
def remove(settings: Settings, /, *, server: str, database: str | None) -> None:
    """Remove the limit of SERVER, or of one DATABASE of it."""
    with opened_registry(settings) as engine:
        forget(engine, server, database)
        say(f"Removed the limit of {named(server, database)}.")
        issue_forecasts_anew(engine, settings, {server})
