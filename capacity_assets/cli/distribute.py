"""`capacity distribute`: distribute the tables that grow with the fleet over a Citus cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli.options import dry_run_option, json_command, print_json, print_table, say
from capacity_assets.database import distributing
from capacity_assets.runtime import open_engine

COLUMNS = (("Table", "left"), ("MiB", "right"), ("Where", "left"))


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
def distribute(settings: Settings, /, *, dry_run: bool, shards: int, as_json: bool) -> None:
    """Distribute the large tables over a Citus cluster.

    These are those that grow with the fleet: the tables of samples, aggregates, measured limits, volumes and forecasts.

    CAPACITY_DATABASE_URL names the coordinator; its database has the extension citus, and the workers were added. All
    rows of a server lie on one node. Registered servers, the ledger and everything else stay on the coordinator.
    Sessions that write to a table wait while it is distributed. The next run continues an interrupted one.
    """
    with open_engine(settings) as engine:
        kept = "Tables that were done stay distributed; run it again to go on."
        with database_errors(doing="distributing tables", kept="Nothing was changed." if dry_run else kept):
            if problem := distributing.what_stands_in_the_way(engine):
                raise ValidationError(f"Nothing was changed. {problem}")
            report = (lambda _table: None) if as_json else (lambda table: say(f"  {table}: distributed"))
            done = [] if dry_run else distributing.distribute(engine, shards=shards, on_table=report)
            found = distributing.placements(engine)
    left = [one.table for one in found if not one.is_distributed]
    if as_json:
        print_json({"dry_run": dry_run, "done": done, "left": left, "tables": [asdict(one) for one in found]})
        return
    print_table("Tables", COLUMNS, [[one.table, one.size_mb, where(one)] for one in found])
    say(_conclusion(done, left, shards, dry_run=dry_run))


def where(placement: distributing.Placement) -> str:
    """Say in words where a table lies."""
    if not placement.is_distributed:
        return "on the coordinator"
    return f"{counted(placement.shards, 'shard')} on {counted(placement.nodes, 'node')}"


def _conclusion(done: Sequence[str], left: Sequence[str], shards: int, *, dry_run: bool) -> str:
    if dry_run and left:
        return (
            f"Would distribute {', '.join(left)} by server over {counted(shards, 'shard')} each. Nothing was changed."
        )
    if done:
        return "Distributed. Processes that are at work notice within a minute."
    return "Everything was distributed already. Nothing was changed."
