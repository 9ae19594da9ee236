"""`capacity init`: create or upgrade the schema, and prepare Dagster's storage where one is named."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import json_command, print_json, say
from capacity_assets.database.engine import another_zone, safe_url
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from capacity_assets.runtime import open_engine, prepare_database


@click.command()
@json_command
def init(settings: Settings, /, *, as_json: bool) -> None:
    """Create the capacity tables, or upgrade them in place.

    This includes those of a legacy database. No row is removed. New indexes of filled tables are built first, while
    others work on; everything else happens in one transaction: if anything stands in the way, it is listed with what to
    do, and nothing is changed.
    """
    with ExitStack() as stack:
        # The embedded storage is prepared by whatever starts Dagster on it.
        environment = None
        if settings.dagster_url:
            passing = Path(stack.enter_context(TemporaryDirectory()))
            environment = stack.enter_context(dagster_environment(settings, home=passing))
        engine = stack.enter_context(open_engine(settings))
        # Dagster's first: what stands in the way there shows before anything is changed here.
        if environment is not None:
            stack.enter_context(dagster_instance(environment))
        with database_errors(doing="creating or upgrading the schema", kept="Nothing was changed."):
            done = prepare_database(engine, settings, lambda line: click.echo(line, err=True))
        if as_json:
            print_json({"done": list(done), "database": safe_url(engine.url)})
            return
        for line in done:
            say(f"  {line}")
        say(f"schema {'created or upgraded' if done else 'was up to date'} at {safe_url(engine.url)}")
        if problem := another_zone(engine, settings.timezone):
            say(f"Warning: {problem}")
        if settings.dagster_url is not None:
            say(f"Dagster's tables are there and its pools limited at {safe_url(settings.dagster_url)}")
