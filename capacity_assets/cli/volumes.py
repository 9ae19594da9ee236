"""`capacity volumes`: file systems, disk groups and pools of servers, and their free space."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, Row

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import BYTES_PER_MB, counted, human_mb
from capacity_assets.cli.declaring import (
    DeclarationReport,
    Registry,
    changing,
    declared_json,
    declaring,
    file_argument,
    listing,
)
from capacity_assets.cli.lazy import OrderedGroup
from capacity_assets.cli.options import DONE, FAILED
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.prometheus import VARIABLE
from capacity_assets.collection.volumes import fetch_volumes, newest_volumes, store_volumes, volumes_of_file

HEADINGS = ("Server", "Volume", ">Size", ">Free", "Day", "Source", "By")


@click.group(cls=OrderedGroup)
def volumes() -> None:
    """Show the volumes of servers, and import unreported ones."""


def _cells(row: Row[Any]) -> list[object]:
    return [
        row.server,
        row.volume,
        human_mb(row.total_mb),
        human_mb(row.free_mb),
        row.day,
        row.source,
        row.declared_by or "",
    ]


@volumes.command("list")
@listing(
    "Volumes", HEADINGS, _cells, "No volume is known. `capacity instances test SERVER` says why a server reports none."
)
def list_(engine: Engine, /) -> list[tuple[Row[Any], object]]:
    """Show the last known size of each volume."""
    return [(row, row._asdict() | declared_json(row)) for row in newest_volumes(engine)]


@volumes.command()
@changing
def fetch(registry: Registry, /) -> DeclarationReport:
    """Fetch today's volumes from CAPACITY_VOLUME_SOURCES.

    The collection does this once a day. If a query returns several volumes of a server, it is unknown which of them
    holds a database: let the query select the one with the data.
    """
    settings = registry.settings
    if settings.volume_sources is None:
        raise ValidationError(f"{VARIABLE} is unset: set it to the file that lists the sources.")
    today = Clock(settings.zone).today()
    secrets = SecretFolders.of(settings)
    answer = fetch_volumes(registry.engine, today, settings.volume_sources, secrets, dry_run=registry.dry_run)
    sizes = [
        f"{volume.volume} of {volume.server}: {human_mb(volume.total_bytes // BYTES_PER_MB)}, "
        f"{human_mb(volume.free_bytes // BYTES_PER_MB)} of it free."
        for volume in answer.volumes
    ]
    lines = [*sizes, *(f"note: {trouble}." for trouble in answer.troubles)]
    servers = {volume.server for volume in answer.volumes}
    code = DONE if answer.volumes else FAILED
    return DeclarationReport({"day": today, **asdict(answer)}, lines, servers=servers, code=code)


@volumes.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> DeclarationReport:
    """Import volumes of any day from a CSV file.

    Columns are server, volume, day, total_gb, free_gb and, for a volume with a reserve, used_gb. Either all volumes are
    stored or none. Values that a server reported itself are kept.
    """
    declared = volumes_of_file(file, Clock(registry.settings.zone).today())
    written = store_volumes(registry.engine, declared, by=registry.by, dry_run=registry.dry_run)
    outcome = "read" if registry.dry_run else f"read, {written:,} stored or changed"
    lines = [f"{counted(len(declared), 'volume')} {outcome}, from {file}."]
    servers = {volume.server for volume in declared}
    return DeclarationReport({"read": len(declared), "written": written}, lines, servers=servers)
