"""`capacity volumes`: file systems, disk groups and pools of servers, and what is free on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, Row, text

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import BYTES_PER_MB, counted, human_mb
from capacity_assets.cli.declaring import Registry, Report, declaring, file_argument, listing
from capacity_assets.cli.options import DONE, FAILED, LazyGroup, left, right
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.volumes import VARIABLE, fetch_volumes, store_volumes, volumes_of_file

COMMANDS = {"list": "volumes:list_", "fetch": "volumes:fetch", "import": "volumes:import_"}
COLUMNS = (*left("Server", "Volume"), *right("Size", "Free"), *left("Day", "Source"))
_NEWEST = """
SELECT DISTINCT ON (i.name, v.volume_name) i.name AS server, v.volume_name AS volume, v.total_mb, v.free_mb,
       v.collected_date AS day, v.source
FROM volume_size_stats v JOIN instances i ON i.id = v.instance_id
ORDER BY i.name, v.volume_name, v.collected_date DESC
"""


@click.group(cls=LazyGroup, locations=COMMANDS)
def volumes() -> None:
    """Show volumes of servers, and bring in unreported ones."""


def _cells(row: Row[Any]) -> list[object]:
    return [row.server, row.volume, human_mb(row.total_mb), human_mb(row.free_mb), row.day, row.source]


@click.command("list")
@listing(
    "Volumes", COLUMNS, _cells, "No volume is known. `capacity instances test SERVER` says why a server reports none."
)
def list_(engine: Engine, /) -> list[tuple[Row[Any], object]]:
    """Show each volume as it was last known."""
    with database_errors(doing="reading volumes", kept="Nothing was changed."), engine.connect() as connection:
        return [(row, row._asdict()) for row in connection.execute(text(_NEWEST))]


@click.command()
@declaring
def fetch(registry: Registry, /) -> Report:
    """Fetch the volumes of today from CAPACITY_VOLUME_SOURCES.

    The collection does this once a day. Where several volumes of a server are found, it is not known on which of them a
    database lies: have the query name the one that holds the data.
    """
    settings = registry.settings
    if settings.volume_sources is None:
        raise ValidationError(f"{VARIABLE} is unset: there is nothing to fetch from. Nothing was changed.")
    today = Clock(settings.zone).today()
    secrets = SecretFolders.of(settings)
    found = fetch_volumes(registry.engine, today, settings.volume_sources, secrets, dry_run=registry.dry_run)
    volumes = [
        f"{one.volume} of {one.server}: {human_mb(one.total_bytes // BYTES_PER_MB)}, "
        f"{human_mb(one.free_bytes // BYTES_PER_MB)} of it free."
        for one in found.volumes
    ]
    lines = [*volumes, *(f"note: {trouble}." for trouble in found.troubles)]
    servers = {one.server for one in found.volumes}
    return Report({"day": today, **asdict(found)}, lines, servers, code=DONE if found.volumes else FAILED)


@click.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> Report:
    """Bring in volumes of any day from a CSV file.

    Columns are server, volume, day, total_gb, free_gb and, for a volume with a reserve, used_gb. Either all are stored
    or none. Values that a server reported itself are kept.
    """
    volumes = volumes_of_file(file, Clock(registry.settings.zone).today())
    written = store_volumes(registry.engine, volumes, dry_run=registry.dry_run)
    said = "read" if registry.dry_run else f"read, {written:,} stored or changed"
    document = {"read": len(volumes), "written": written}
    lines = [f"{counted(len(volumes), 'volume')} {said}, from {file}."]
    return Report(document, lines, {one.server for one in volumes})
