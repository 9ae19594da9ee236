"""`capacity limits`: how much servers and databases can hold, as people declare it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.declarations import declaration
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import human_mb, printable
from capacity_assets.cli.declaring import (
    DECLARED,
    DeclarationReport,
    Registry,
    changing,
    declared_cells,
    declared_json,
    declaring,
    file_argument,
    first_lines,
    listing,
)
from capacity_assets.cli.lazy import OrderedGroup
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

HEADINGS = ("Server", "Database", ">Limit", "Source", *DECLARED, "~Note")


@click.group(cls=OrderedGroup)
def limits() -> None:
    """Declare how much servers and databases can hold."""


def limit_text(limit_mb: int | None) -> str:
    """Render a limit."""
    return UNLIMITED if limit_mb is None else human_mb(limit_mb)


@limits.command("set")
@click.argument("server")
@click.argument("database", required=False)
@click.option("--gb", help="Limit in GiB, such as 500 or 1.5.")
@click.option("--unlimited", is_flag=True, help="Declare that there is no limit.")
@click.option("--note", help="Source of the limit, for readers.")
@declaring
def set_(
    registry: Registry, /, *, server: str, database: str | None, gb: str | None, unlimited: bool, note: str | None
) -> DeclarationReport:
    """Declare the limit of SERVER, or of one DATABASE of it.

    Replaces an earlier limit. The limit of a server applies to all its databases together, as a disk does.

    \b
    Examples:
      capacity limits set db-7 --gb 2000
      capacity limits set db-7 orders --gb 500 --note "contract of 2026"
      capacity limits set db-7 archive --unlimited
    """
    if unlimited == (gb is not None):
        raise ValidationError("Give either --gb or --unlimited.")
    values = {"server": server, "database": database, "limit_gb": UNLIMITED if unlimited else gb, "note": note}
    limit = declaration(Limit, values)
    return _declare(registry, [limit], f"{named(server, database)}: {limit_text(limit.limit_mb)}.")


def _declare(registry: Registry, declared: Sequence[Limit], headline: str) -> DeclarationReport:
    replaced = declare(registry.engine, declared, by=registry.by, dry_run=registry.dry_run)
    exceeded = below_the_size(registry.engine, declared)
    warnings = (
        f"note: {named(limit.server, limit.database)} holds {human_mb(size_mb)}, more than its limit."
        for limit, size_mb in exceeded
    )
    lines = [
        headline,
        *first_lines(map(_replaced_text, replaced), "more earlier limit"),
        *first_lines(warnings, "more limit below the measured size"),
    ]
    document = {
        "limits": list(map(asdict, declared)),
        "below_the_size": [{**asdict(limit), "size_mb": size_mb} for limit, size_mb in exceeded],
    }
    return DeclarationReport(document, lines, servers={limit.server for limit in declared})


def _replaced_text(limit: Limit) -> str:
    note = f" ({printable(limit.note)})" if limit.note else ""
    return f"note: {named(limit.server, limit.database)} was {limit_text(limit.limit_mb)}{note}."


@limits.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> DeclarationReport:
    """Declare the limits that a CSV file lists.

    Columns are server, database (empty: the whole server), limit_gb (a number or unlimited) and, optionally, note.
    Either all limits are stored or none.
    """
    declared = limits_of_file(file)
    return _declare(registry, declared, registry.read_from(file, len(declared), "limit"))


def _cells(stored: StoredLimit) -> list[object]:
    limit, declared = stored.limit, declared_cells(stored)
    database = limit.database or "whole server"
    return [limit.server, database, limit_text(limit.limit_mb), stored.source, *declared, limit.note or ""]


@limits.command("list")
@listing(
    "Limits",
    HEADINGS,
    _cells,
    "No limit is declared. `capacity limits set` declares one, `capacity limits import` those of a file.",
)
def list_(engine: Engine, /) -> list[tuple[StoredLimit, object]]:
    """Show all declared limits.

    `capacity volumes list` and `capacity instances test` show measured limits.
    """
    return [
        (stored, {**asdict(stored.limit), "source": stored.source, **declared_json(stored)})
        for stored in stored_limits(engine)
    ]


@limits.command()
@click.argument("server")
@click.argument("database", required=False)
@changing
def remove(registry: Registry, /, *, server: str, database: str | None) -> DeclarationReport:
    """Remove the limit of SERVER, or of one DATABASE of it."""
    forget(registry.engine, server, database, dry_run=registry.dry_run)
    document = {"removed": {"server": server, "database": database}}
    return DeclarationReport(document, [f"Removed the limit of {named(server, database)}."], servers={server})
