"""`capacity volumes`: file systems, disk groups and pools of servers, and what is free on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy import text

from capacity_assets.cli.errors import DONE, FAILED
from capacity_assets.cli.options import LazyGroup, dry_run_option, file_options, json_command
from capacity_assets.cli.output import NOTHING_CHANGED, left, print_json, print_table, right, say
from capacity_assets.cli.server_registry import issue_forecasts_anew, opened_registry
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.fetching import VARIABLE, fetch_volumes
from capacity_assets.collection.imported_volumes import store_volumes, volumes_of_file
from capacity_assets.errors import ValidationError, database_errors
from capacity_assets.settings import Settings
from capacity_assets.units import BYTES_PER_MB, counted, human_mb

COMMANDS = {"list": "volumes:list_", "fetch": "volumes:fetch", "import": "volumes:import_"}
LIST_COLUMNS = (*left("Server", "Volume"), *right("Size", "Free"), *left("Day", "Source"))
_NEWEST = """
SELECT DISTINCT ON (i.name, v.volume_name) i.name AS server, v.volume_name AS volume, v.total_mb, v.free_mb,
       v.collected_date AS day, v.source
FROM volume_size_stats v JOIN instances i ON i.id = v.instance_id
ORDER BY i.name, v.volume_name, v.collected_date DESC
"""


def _cells(server: str, volume: str, total_mb: int, free_mb: int) -> list[object]:
    return [server, volume, human_mb(total_mb), human_mb(free_mb)]


@click.group(cls=LazyGroup, locations=COMMANDS)
def volumes() -> None:
    """Show volumes of servers, and bring in unreported ones."""


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> None:
    """Show each volume as it was last known."""
    doing = database_errors(doing="reading volumes", kept="Nothing was changed.")
    with opened_registry(settings) as engine, doing, engine.connect() as connection:
        rows = [row._asdict() for row in connection.execute(text(_NEWEST))]
    if as_json:
        print_json(rows)
    elif rows:
        cells = [
            [*_cells(row["server"], row["volume"], row["total_mb"], row["free_mb"]), row["day"], row["source"]]
            for row in rows
        ]
        print_table("Volumes", LIST_COLUMNS, cells)
    else:
        say("No volume is known. `capacity instances test SERVER` says why a server reports none.")


@click.command()
@dry_run_option
@json_command
def fetch(settings: Settings, /, *, dry_run: bool, as_json: bool) -> int:
    """Fetch the volumes of today from CAPACITY_VOLUME_SOURCES.

    The collection does this once a day. Where several volumes of a server are found, it is not known on which of them a
    database lies: have the query name the one that holds the data.
    """
    if settings.volume_sources is None:
        raise ValidationError(f"{VARIABLE} is unset: there is nothing to fetch from. Nothing was changed.")
    today = Clock(settings.zone).today()
    with opened_registry(settings) as engine:
        found = fetch_volumes(engine, today, settings.volume_sources, SecretFolders.of(settings), dry_run=dry_run)
        if not as_json:
            rows = [
                _cells(one.server, one.volume, one.total_bytes // BYTES_PER_MB, one.free_bytes // BYTES_PER_MB)
                for one in found.volumes
            ]
            if rows:
                print_table(f"Volumes on {today}", LIST_COLUMNS[:4], rows)
            for trouble in found.troubles:
                say(f"note: {trouble}.")
        if not dry_run:
            issue_forecasts_anew(engine, settings, {one.server for one in found.volumes}, quiet=as_json)
    if as_json:
        print_json({"dry_run": dry_run, "day": today, **asdict(found)})
    elif dry_run:
        say(NOTHING_CHANGED)
    return DONE if found.volumes else FAILED


@click.command("import")
@file_options
@json_command
def import_(settings: Settings, /, *, file: Path, dry_run: bool, as_json: bool) -> None:
    """Bring in volumes of any day from a CSV file.

    Columns are server, volume, day, total_gb, free_gb and, for a volume with a reserve, used_gb. Either all are stored
    or none. Values that a server reported itself are kept.
    """
    found = volumes_of_file(file, Clock(settings.zone).today())
    with opened_registry(settings) as engine:
        written = store_volumes(engine, found, dry_run=dry_run)
        if not as_json:
            said = "read" if dry_run else f"read, {written:,} stored or changed"
            say(f"{counted(len(found), 'volume')} {said}, from {file}.")
        if not dry_run:
            issue_forecasts_anew(engine, settings, {one.server for one in found}, quiet=as_json)
    if as_json:
        print_json({"dry_run": dry_run, "read": len(found), "written": written})
    elif dry_run:
        say(NOTHING_CHANGED)
