"""`capacity distribute`: distributes the tables that grow with the fleet over a Citus cluster."""

from __future__ import annotations

from dataclasses import asdict

import click

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli.options import NOTHING_CHANGED, Report, Table, dry_run_option, json_command, say
from capacity_assets.database import distributing
from capacity_assets.runtime import open_engine


@click.command()
@dry_run_option
@click.option(
    "--shards",
    type=click.IntRange(1, 10_000),
    default=distributing.DEFAULT_SHARDS,
    show_default=True,
    help="Number of shards, a few per core of all nodes. This command cannot change it later.",
)
@json_command
def distribute(settings: Settings, /, *, dry_run: bool, shards: int) -> Report:
    """Distribute the large tables over a Citus cluster.

    Distributes the tables that grow with the fleet: samples, aggregates, measured limits, volumes and forecasts.

    CAPACITY_DATABASE_URL names the coordinator. Its database needs the extension citus, with the workers added. All
    rows of a server lie on one node. Registered servers, the ledger and all other tables stay on the coordinator.
    Sessions that write to a table wait while it is distributed. Run an interrupted command again to continue it.
    """
    with open_engine(settings) as engine:
        kept = "Completed tables stay distributed; run it again to continue."
        with database_errors(doing="distributing tables", kept="" if dry_run else kept):
            if problem := distributing.what_stands_in_the_way(engine):
                raise ValidationError(problem)
            done = [] if dry_run else distributing.distribute(engine, shards=shards, on_table=_say_distributed)
            tables = distributing.placements(engine)
    local = [table.table for table in tables if not table.is_distributed]
    table = Table("Tables", ("Table", ">MiB", "Where"), [[one.table, one.size_mb, _place(one)] for one in tables])
    if dry_run and local:
        outcome = f"Would distribute {', '.join(local)} by server over {counted(shards, 'shard')} each."
    elif done:
        outcome = "Distributed. Running processes notice it within a minute."
    else:
        outcome = "All tables are distributed already."
    document = {"dry_run": dry_run, "done": done, "left": local, "tables": list(map(asdict, tables))}
    return Report(document, [table, outcome, *([NOTHING_CHANGED] if dry_run else [])])


def _say_distributed(table: str) -> None:
    say(f"  {table}: distributed")


def _place(placement: distributing.Placement) -> str:
    if not placement.is_distributed:
        return "on the coordinator"
    return f"{counted(placement.shards, 'shard')} on {counted(placement.nodes, 'node')}"
