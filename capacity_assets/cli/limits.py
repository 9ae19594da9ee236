"""`capacity limits`: how much servers and databases can hold, as declared by people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.declarations import declaration
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import human_mb, printable
from capacity_assets.cli.declaring import Registry, Report, declaring, file_argument, first_lines, listing
from capacity_assets.cli.options import LazyGroup, left, right
from capacity_assets.forecast.limits import (
    UNLIMITED,
    Limit,
    StoredLimit,
    below_the_size,
    declare,
    forget,
    limits_of_file,
    named,
    stored_limits,
)

COMMANDS = {"set": "limits:set_", "import": "limits:import_", "list": "limits:list_", "remove": "limits:remove"}
COLUMNS = (*left("Server", "Database"), *right("Limit"), *left("Source", "Since"), ("Note", "text"))


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
@declaring
def set_(  # noqa: PLR0913 -- one argument per documented option
    registry: Registry, /, *, server: str, database: str | None, gb: str | None, unlimited: bool, note: str | None
) -> Report:
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
    given = {"server": server, "database": database, "limit_gb": UNLIMITED if unlimited else gb, "note": note}
    limit = declaration(Limit, given)
    hint = "" if unlimited else f" `capacity runway {server}` shows when it is full."
    return _declared(registry, [limit], f"{named(server, database)}: {limit_text(limit.limit_mb)}.{hint}")


def _declared(registry: Registry, limits: Sequence[Limit], said: str) -> Report:
    replaced = declare(registry.engine, limits, dry_run=registry.dry_run)
    smaller = below_the_size(registry.engine, limits)
    lines = [
        said,
        *first_lines(map(_replaced_text, replaced), "more earlier limit"),
        *first_lines(
            (f"note: {_name(limit)} holds {human_mb(size_mb)}, more than its limit." for limit, size_mb in smaller),
            "more limit below the measured size",
        ),
    ]
    below = [{**asdict(limit), "size_mb": size_mb} for limit, size_mb in smaller]
    document = {"limits": list(map(asdict, limits)), "below_the_size": below}
    return Report(document, lines, {limit.server for limit in limits})


def _replaced_text(limit: Limit) -> str:
    note = f" ({printable(limit.note)})" if limit.note else ""
    return f"note: {_name(limit)} was {limit_text(limit.limit_mb)}{note}."


def _name(limit: Limit) -> str:
    return named(limit.server, limit.database)


@click.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> Report:
    """Declare the limits that a CSV file lists.

    Columns are server, database (empty: the whole server), limit_gb (a number or unlimited) and, optionally, note. All
    of them are stored, or none.
    """
    limits = limits_of_file(file)
    return _declared(registry, limits, registry.read_from(file, len(limits), "limit"))


def _cells(one: StoredLimit) -> list[object]:
    limit, day = one.limit, f"{one.declared_at:%Y-%m-%d}"
    database = limit.database or "whole server"
    return [limit.server, database, limit_text(limit.limit_mb), one.source, day, limit.note or ""]


@click.command("list")
@listing(
    "Limits",
    COLUMNS,
    _cells,
    "No limit is known. `capacity limits set` declares one, `capacity limits import` those of a file.",
)
def list_(engine: Engine, /) -> list[tuple[StoredLimit, object]]:
    """Show every declared limit and since when it holds.

    Measured limits are shown by `capacity volumes list` and `capacity instances test`.
    """
    return [
        (one, {**asdict(one.limit), "source": one.source, "declared_at": one.declared_at.isoformat()})
        for one in stored_limits(engine)
    ]


@click.command()
@click.argument("server")
@click.argument("database", required=False)
@declaring
def remove(registry: Registry, /, *, server: str, database: str | None) -> Report:
    """Remove the limit of SERVER, or of one DATABASE of it."""
    forget(registry.engine, server, database, dry_run=registry.dry_run)
    removed = {"server": server, "database": database}
    return Report({"removed": removed}, [f"Removed the limit of {named(server, database)}."], {server})
