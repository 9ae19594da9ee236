"""`capacity demo`: a sample fleet, computed through Dagster onto the instance that `capacity up` shows.

Partitions whose samples did not change since they were materialised are not computed again: an interrupted demo
continues, and a second one changes nothing. At the end everything is recomputed without Dagster. This must write
nothing, which shows that the stored figures match the samples. `--remove` deletes everything. The sample fleet never
shares a database with other servers.
"""

from __future__ import annotations

import sys
from datetime import date

import click
from sqlalchemy import Engine

from capacity_assets import demo as sample_fleet
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.runs import Guard, RunOptions, RunSummary
from capacity_assets.base.errors import AggregationStatus
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import ConfigurationError, Settings, load_settings
from capacity_assets.base.units import counted
from capacity_assets.cli.growth import top_databases, top_table
from capacity_assets.cli.options import CommandFailedError, Table, command, progress_bar, say
from capacity_assets.cli.runway import runway_lines
from capacity_assets.cli.serve import HOST, PAGES_PORT
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.demo import LoadedFleet
from capacity_assets.forecast.decisions import OpenDecisions, stored_decisions
from capacity_assets.forecast.issuing import update_forecasts
from capacity_assets.forecast.runway import compute_runways
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from capacity_assets.orchestration.sample_runs import forget_runs, mark_days, materialise, open_work
from capacity_assets.report.page import file_name
from capacity_assets.runtime import open_engine, prepare_database, retention_service, task_runner

FASTEST_SHOWN = 5
MONTHLY = PERIODS["monthly"]
HEADINGS = ("Period", ">Windows", ">Processed", ">Failed", ">Skipped", ">Rows")


@click.command()
@click.option("--remove", is_flag=True, help="Remove the sample fleet and everything computed from it.")
@command
def demo(settings: Settings, /, *, remove: bool) -> None:
    """Load a sample fleet and compute every period through Dagster.

    Uses a persistent Dagster instance, and the embedded PostgreSQL unless CAPACITY_DATABASE_URL is set. Refuses a
    database that holds other servers. A second run changes nothing.
    """
    (_remove if remove else _run)(settings)


def _run(settings: Settings) -> None:
    with dagster_environment(settings) as environment, dagster_instance(environment) as instance:
        settings = load_settings()
        # Partitions in Dagster link to the pages that `capacity up` serves.
        pages_url = settings.pages_url or f"http://{HOST}:{PAGES_PORT}"
        settings = settings.model_copy(update={"pages_url": pages_url})
        today = Clock(settings.zone).today()
        first_day = sample_fleet.first_sample_day(settings.start_date, today)
        if first_day > today:
            raise ConfigurationError(f"CAPACITY_START_DATE: {settings.start_date} is in the future.")
        with open_engine(settings) as engine:
            prepare_database(engine, settings)
            fleet = _load(engine, settings, first_day, today)
            sample_fleet.declare_sample(engine, today)
            mark_days(settings, instance, engine, today)
            work = open_work(instance, first_day, today, fleet)
            total = sum(len(chunk.windows) for chunk in work.chunks)
            begun: set[str] = set()
            with progress_bar("windows computed, reports written", total) as update:

                def on_progress(subject: str, windows: int) -> None:
                    update(description=subject, advance=windows)
                    # On a terminal, the bar shows it.
                    if subject not in begun and not sys.stderr.isatty():
                        say(f"Computing {subject}.")
                    begun.add(subject)

                written, recomputed = materialise(
                    settings,
                    instance,
                    work,
                    on_progress=on_progress,
                    recompute=lambda check_cancelled: _recompute(engine, settings, first_day, today, check_cancelled),
                )
            if sample_fleet.declare_sample_decision(engine, today):
                update_forecasts(engine, {sample_fleet.PLANNED_ON}, Clock(settings.zone))
            _print_result(recomputed, written, fleet, changed=bool(work.chunks))
            month = MONTHLY.last(today)
            fastest = top_databases(engine, MONTHLY, month, by="percent", limit=FASTEST_SHOWN)
            say(top_table(MONTHLY, month, "percent", fastest))
            decisions = OpenDecisions(stored_decisions(engine, today))
            say(*runway_lines(compute_runways(engine, today), decisions, show=FASTEST_SHOWN))
    say(f"Growth report, to open in a browser: {settings.reports / file_name(MONTHLY, month)}")
    say("Next: `make up` (or `capacity up`) serves the pages and the Dagster UI, which shows these runs.")
    say("      `capacity status` shows what is stored, `capacity aggregate --help` how to compute without Dagster.")
    say(f"Data: {settings.home.resolve()}. `capacity demo --remove` removes the sample fleet.")


def _load(engine: Engine, settings: Settings, first_day: date, today: date) -> LoadedFleet:
    others = sample_fleet.other_instances(engine)
    if others:
        raise CommandFailedError(
            f"This database holds servers other than the sample fleet ({others}), and the two do not mix. "
            "Set CAPACITY_HOME to another folder, or CAPACITY_DATABASE_URL to an empty database."
        )
    say("Loading the sample fleet.")
    fleet = sample_fleet.load_sample_fleet(engine, first_day, today)
    # Samples older than the retention period may be in the default partition; this moves them out of it.
    retention_service(engine, settings).prepare()
    if fleet.samples_added:
        say(f"Loaded {counted(fleet.samples_added, 'sample')}, {fleet.first_day_added} to {fleet.last_day_added}.")
    return fleet


def _recompute(engine: Engine, settings: Settings, first_day: date, today: date, check_cancelled: Guard) -> RunSummary:
    """Recompute everything without Dagster; `check_cancelled` raises if the caller no longer waits."""
    runner, run = task_runner(engine, settings), RunSummary()
    options = RunOptions(recompute=True, guard=check_cancelled)
    for period in PERIODS.values():
        run += runner.run_period(period, period.windows_between(first_day, today), options)
    return run


def _print_result(run: RunSummary, written: int, fleet: LoadedFleet, *, changed: bool) -> None:
    rows = []
    for name in PERIODS:
        part = run.of_period(name)
        counts = [part.total(f"{outcome}_instances") for outcome in ("processed", "failed", "skipped")]
        rows.append([name, len(part.summaries) // len(LEVELS), *counts, part.total("total_records")])
    say(Table("Servers and rows by period; a server counts once in each window and level", HEADINGS, rows))
    if run.status is AggregationStatus.FAILED or run.total("written_records"):
        raise CommandFailedError(f"Recomputing everything showed differences: {run.message}")
    if changed:
        say(f"{written:,} rows were written by this run. Recomputing everything changed nothing.")
    else:
        say("The demo is complete already: 0 rows were written by this run, and recomputing changed nothing.")
    say(
        f"Retired, so not aggregated: {', '.join(fleet.retired)}. The column Skipped counts servers without samples in "
        "a window."
    )


def _remove(settings: Settings) -> None:
    if not settings.has_capacity_database:
        raise CommandFailedError(f"There is no sample fleet under {settings.home.resolve()}.")
    with dagster_environment(settings) as environment, dagster_instance(environment) as instance:
        with open_engine(load_settings()) as engine:
            refuse_an_unfit_database(engine)
            if not sample_fleet.holds_sample_fleet(engine):
                raise CommandFailedError("This database holds no sample fleet.")
            if others := sample_fleet.other_instances(engine):
                raise CommandFailedError(
                    f"This database also holds other servers ({others}), and their figures would be "
                    "deleted, too. To start over, stop what uses it and delete the folder of the embedded server, or "
                    "drop the database."
                )
            samples = sample_fleet.remove_sample_fleet(engine)
        forget_runs(settings, instance)
    pages = list(settings.reports.glob("growth-*.html"))
    for page in pages:
        page.unlink()
    deleted = f"{counted(samples, 'sample')}, their aggregates and runs, {counted(len(pages), 'page')}"
    say(f"Removed the sample fleet: {deleted}.")
    say("The database, its tables and the rest of Dagster's history were kept.")
