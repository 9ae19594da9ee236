"""`capacity init`, `distribute`, `maintain` and `copy`: the tables of the capacity database, and those of Dagster."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from pydantic import SecretStr

from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, ValidationError, database_errors, reason_of
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli import options
from capacity_assets.cli.options import Report, Table, say
from capacity_assets.database import distributing
from capacity_assets.database.engine import (
    UnreachableError,
    another_zone,
    capacity_engine,
    disposed,
    ensure_reachable,
    safe_url,
)
from capacity_assets.history.other_databases import address_of, copy_database, refuse_rows
from capacity_assets.history.retention import MaintenanceError, MaintenanceReport
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance, dagster_storage
from capacity_assets.runtime import open_engine, prepare_database, retention_service


@click.command()
@options.json_command
def init(settings: Settings, /) -> Report:
    """Create the capacity tables, or upgrade them in place.

    Also upgrades the tables of a legacy database. No row is deleted. New indexes of filled tables are built first,
    while other sessions continue to work. Everything else happens in one transaction: if something prevents it, the
    command says what and how to solve it, and changes nothing.
    """
    with ExitStack() as stack:
        # Embedded storage is prepared by the command that starts Dagster on it.
        environment = None
        if settings.dagster_url:
            home = Path(stack.enter_context(TemporaryDirectory()))
            environment = stack.enter_context(dagster_environment(settings, home=home))
        engine = stack.enter_context(open_engine(settings))
        # Dagster's storage first, so that a problem there is found before anything is changed here.
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
        return Report({"done": done, "database": safe_url(engine.url)}, lines)


@click.command()
@options.dry_run_option
@click.option(
    "--shards",
    type=click.IntRange(1, 10_000),
    default=distributing.DEFAULT_SHARDS,
    show_default=True,
    help="Number of shards, a few per core of all nodes. This command cannot change it later.",
)
@options.json_command
def distribute(settings: Settings, /, *, dry_run: bool, shards: int) -> Report:
    """Distribute the large tables over a Citus cluster.

    Distributes the tables that grow with the fleet: samples, aggregates, measured limits, volumes and forecasts.

    CAPACITY_DATABASE_URL names the coordinator. Its database needs the extension citus, with the workers added. All
    rows of a server lie on one node. Registered servers, the ledger and all other tables stay on the coordinator.
    Sessions that write to a table wait while it is distributed. Run an interrupted command again to continue it.
    """
    kept = "" if dry_run else "Completed tables stay distributed; run it again to continue."
    with open_engine(settings) as engine, database_errors(doing="distributing tables", kept=kept):
        if problem := distributing.distribution_problem(engine):
            raise ValidationError(problem)
        done = (
            []
            if dry_run
            else distributing.distribute(engine, shards=shards, on_table=lambda name: say(f"  {name}: distributed"))
        )
        tables = distributing.placements(engine)
    local = [placement.table for placement in tables if not placement.is_distributed]
    table = Table(
        "Tables",
        ("Table", ">MiB", "Where"),
        [[placement.table, placement.size_mb, _place(placement)] for placement in tables],
    )
    outcome = "All tables are distributed already."
    if dry_run and local:
        outcome = f"Would distribute {', '.join(local)} by server over {counted(shards, 'shard')} each."
    elif done:
        outcome = "Distributed. Running processes notice it within a minute."
    document = {"dry_run": dry_run, "done": done, "left": local, "tables": tables}
    return Report(document, [table, outcome, *([options.NOTHING_CHANGED] if dry_run else [])])


def _place(placement: distributing.TablePlacement) -> str:
    if not placement.is_distributed:
        return "on the coordinator"
    return f"{counted(placement.shards, 'shard')} on {counted(placement.nodes, 'node')}"


@click.command()
@options.dry_run_option
@click.option("--despite-clock", is_flag=True, help="Drop expired partitions even if the clock may be wrong.")
@options.json_command
def maintain(settings: Settings, /, *, dry_run: bool, despite_clock: bool) -> Report:
    """Add partitions ahead of time, and drop expired ones.

    Also moves rows from default partitions to their own, and deletes check records in Dagster's storage that are no
    longer read. CAPACITY_RETENTION_DAYS sets how long rows are kept. Samples are dropped only after all windows that
    read them have ended and are computed. Under Dagster, table_maintenance_schedule does this every day.

    Nothing is dropped if today is more than 45 days after the newest sample, if the samples of the last 45 days began
    after such a gap, or if this machine's clock and PostgreSQL's differ by more than an hour.

    \b
    Examples:
      capacity maintain --dry-run
      CAPACITY_RETENTION_DAYS=raw=800,daily=forever capacity maintain --dry-run
    """
    with open_engine(settings, existing=True) as engine:
        try:
            report = retention_service(engine, settings).maintain(dry_run=dry_run, despite_clock=despite_clock)
        except MaintenanceError as error:
            _maintenance_report(error.report).show()
            raise
        _purge(settings, report)
    return _maintenance_report(report)


def _purge(settings: Settings, report: MaintenanceReport) -> None:
    """Delete old check records from Dagster's storage, if it exists; if that fails, note the reason."""
    if not settings.has_dagster_storage:
        return
    try:
        with dagster_storage(settings) as storage:
            from capacity_assets.orchestration.private import purge_check_records

            report.purged_check_records = purge_check_records(storage.event_log_storage, dry_run=report.dry_run)
    except (UnreachableError, *DATABASE_FAILURES) as error:
        report.notes.append(f"Check records in Dagster's storage: {reason_of(error)}")


def _maintenance_report(report: MaintenanceReport) -> Report:
    would = "would be " if report.dry_run else ""
    lists = {
        f"Partitions that {would or 'were '}added": report.created,
        f"Partitions that {would or 'were '}dropped": report.dropped,
        "Expired, but kept": report.kept,
        "Skipped": report.notes,
    }
    lines = ["\n  ".join([f"{title}:", *listed]) for title, listed in lists.items() if listed]
    lines.append(
        f"{counted(len(report.created), 'partition')} {would}added, "
        f"{counted(report.moved_records, 'row')} {would}moved, "
        f"{counted(len(report.dropped), 'partition')} with {counted(report.dropped_records, 'row')} {would}dropped "
        f"({report.freed_mb:,} MiB)."
    )
    if report.purged_check_records:
        purged = counted(report.purged_check_records, "check record")
        lines.append(f"{purged} {would}deleted from Dagster's storage.")
    return Report(report.to_dict(), [*lines, *([options.NOTHING_CHANGED] if report.dry_run else [])])


@click.command()
@click.argument("address")
@options.password_option
@options.json_command
def copy(settings: Settings, /, *, address: str, password_from: str | None) -> Report:
    """Copy everything in the capacity database to an empty one.

    Copies samples, aggregates, servers and their connections. ADDRESS is postgresql://user@host/database without a
    password, or env:NAME of a variable that holds the whole address. The command creates the tables there; they must
    not hold rows. It only reads this database. The two may be of different versions of PostgreSQL.

    \b
    Examples:
      capacity copy env:NEW_CAPACITY_URL
      capacity copy postgresql://capacity@db.example/capacity --password-from env:CAPACITY_OWNER_PASSWORD
    """
    with disposed(capacity_engine(address_of(address, password_from, settings))) as target:
        address_there = SecretStr(target.url.render_as_string(hide_password=False))
        settings_there = settings.model_copy(update={"database_url": address_there})
        with options.open_database(settings) as source:
            ensure_reachable(target, "ADDRESS")
            with database_errors(doing="preparing the target"):
                # Before the schema is created, which would upgrade the database of another program.
                with target.connect() as connection:
                    refuse_rows(connection)
                prepare_database(target, settings_there)
            copied = copy_database(source, target, lambda table, rows: say(f"  {table}: {counted(rows, 'row')}"))
        try:
            # Moves rows of months that had no partition from the default one.
            prepare_database(target, settings_there)
        except (CapacityError, *DATABASE_FAILURES) as error:
            reason = reason_of(error).rstrip(".")
            raise options.CommandFailedError(
                f"Everything was copied. Moving rows into partitions of the target failed: {reason}. To complete it, "
                "set CAPACITY_DATABASE_URL to the target and run `capacity init`."
            ) from None
    lines = [
        f"Copied {counted(sum(copied.values()), 'row')} to {safe_url(target.url)}.",
        "Next: set CAPACITY_DATABASE_URL to that address, then run `capacity check` and `capacity up`.",
        "Dagster's runs and history were not copied; its sensors mark the existing partitions.",
    ]
    return Report({"copied": copied, "database": safe_url(target.url)}, lines)
