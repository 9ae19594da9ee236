"""`capacity init`: creates or upgrades the schema, and prepares Dagster's storage if DAGSTER_POSTGRES_URL is set."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import Report, json_command
from capacity_assets.database.engine import another_zone, safe_url
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from capacity_assets.runtime import open_engine, prepare_database


@click.command()
@json_command
def init(settings: Settings, /) -> Report:
    """Create the capacity tables, or upgrade them in place.

    Also upgrades the tables of a legacy database. No row is deleted. New indexes of filled tables are built first,
    while other sessions continue to work. Everything else happens in one transaction: if there is an obstacle, it is
    listed with what to do, and nothing is changed.
    """
    with ExitStack() as stack:
        # Embedded storage is prepared by the command that starts Dagster on it.
        environment = None
        if settings.dagster_url:
            home = Path(stack.enter_context(TemporaryDirectory()))
            environment = stack.enter_context(dagster_environment(settings, home=home))
        engine = stack.enter_context(open_engine(settings))
        # Dagster's storage first, so that an obstacle there shows before anything is changed here.
        if environment is not None:
            stack.enter_context(dagster_instance(environment))
        with database_errors(doing="creating or upgrading the schema"):
            done = prepare_database(engine, settings, lambda line: click.echo(line, err=True))
        outcome = "created or upgraded" if done else "up to date"
        lines = [*(f"  {line}" for line in done), f"The schema at {safe_url(engine.url)} was {outcome}."]
        if problem := another_zone(engine, settings.timezone):
            lines.append(f"Warning: {problem}")
        if settings.dagster_url is not None:
            lines.append(f"Dagster's tables and the limits of its pools are set at {safe_url(settings.dagster_url)}.")
        return Report({"done": list(done), "database": safe_url(engine.url)}, lines)
