"""`capacity cells`: read several capacity databases together, from a database that holds nothing itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from capacity_assets.cli.errors import DONE, FAILED
from capacity_assets.cli.options import LazyGroup, json_command
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.collection.credentials import SecretFolders, password_of
from capacity_assets.errors import ValidationError, database_errors
from capacity_assets.foundation.toml_files import named_tables
from capacity_assets.runtime import open_engine
from capacity_assets.settings import Settings
from capacity_assets.storage.cells import MOST_CELLS, Cell, attach, states

COMMANDS = {"attach": "cells:attach_", "list": "cells:list_"}
COLUMNS = (("Cell", "left"), ("Servers from", "right"), ("Newest day", "left"), ("Answers", "text"))
REQUIRED, OPTIONAL = {"name", "host", "database", "user"}, {"port", "password_from"}
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
POSTGRES_PORT = 5432


@click.group(cls=LazyGroup, locations=COMMANDS)
def cells() -> None:
    """Read several capacity databases together."""


@click.command("attach")
@click.argument("file", type=click.Path(path_type=Path))
@json_command
def attach_(settings: Settings, /, *, file: Path, as_json: bool) -> int:
    """Make the database read the cells of FILE, and exactly these.

    FILE is TOML with a table [[cell]] per capacity database: name, host, port, database, user, password_from. The
    database is an empty one that has the extension postgres_fdw. It holds no figure: pages, reports, groups and bills
    read the cells when they are asked for. Servers are called CELL/SERVER there.

    \b
    Examples:
      capacity cells attach cells.toml
      capacity serve
    """
    folders = SecretFolders.of(settings)
    declared = named_tables(file, "cell", "cell", lambda values: _declared(values, folders))
    if len(declared) > MOST_CELLS:
        raise ValidationError(f"{file} has {len(declared)} cells; {MOST_CELLS} can be read together.")
    with open_engine(settings) as engine:
        with database_errors(doing="attaching the cells", kept="Nothing was changed."):
            attach(engine, declared)
        return _print_states(engine_states=states(engine), as_json=as_json)


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> int:
    """Ask each cell for its newest day. Exits with 1 if one does not answer."""
    with (
        open_engine(settings) as engine,
        database_errors(doing="reading the cells", kept="Nothing was changed."),
    ):
        return _print_states(engine_states=states(engine), as_json=as_json)


def _print_states(*, engine_states: list[Any], as_json: bool) -> int:
    if as_json:
        print_json({"cells": [asdict(one) for one in engine_states]})
    elif not engine_states:
        say("This database reads no cells. `capacity cells attach` makes an empty one read some.")
    else:
        rows = [[one.name, one.first_number, one.newest_day or "none", one.trouble or "yes"] for one in engine_states]
        print_table("Cells", COLUMNS, rows)
    return FAILED if any(one.trouble for one in engine_states) else DONE


def _declared(values: Mapping[str, Any], folders: SecretFolders) -> Cell:
    """Return a cell as a file declares it."""
    wrong = set(values) - REQUIRED - OPTIONAL
    missing = REQUIRED - set(values)
    if wrong or missing:
        what = f"unknown: {', '.join(sorted(wrong))}" if wrong else f"missing: {', '.join(sorted(missing))}"
        raise ValidationError(f"{what}; a cell has name, host, port, database, user and password_from.")
    if not NAME.fullmatch(str(values["name"])):
        raise ValidationError("name is not a word of small letters, digits and _.")
    port = values.get("port", POSTGRES_PORT)
    if not isinstance(port, int) or not 1 <= port <= 65535:  # noqa: PLR2004 -- the last port
        raise ValidationError("port is not a number from 1 to 65535.")
    reference = values.get("password_from")
    password = password_of(str(reference), folders) if reference else None
    texts = {name: str(values[name]) for name in sorted(REQUIRED)}
    return Cell(**texts, port=port, password=password)
