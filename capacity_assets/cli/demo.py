"""`capacity demo`: a sample fleet, computed through Dagster onto the instance that `capacity up` shows.

Partitions that are materialised already and whose samples did not change are left alone, so that an
interrupted demo continues and a second one changes nothing. At the end everything is computed once more
without Dagster, which must write nothing: the stored figures are what the samples say. `--remove` takes all of it
away again. The sample fleet never shares a database with other servers.
"""

from __future__ import annotations

from datetime import date

import click
from sqlalchemy import Engine

from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.results import RunSummary
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.cli.errors import CommandFailedError
from capacity_assets.cli.options import command
from capacity_assets.cli.output import left, print_table, right, say
from capacity_assets.cli.runway import print_outlooks
from capacity_assets.cli.top import Top, print_top, top_rows
from capacity_assets.clock import Clock
from capacity_assets.demo.sample_fleet import (
    LoadedFleet,
    first_sample_day,
    holds_sample_fleet,
    load_sample_fleet,
    other_instances,
    remove_sample_fleet,
)
from capacity_assets.demo.sample_groups import declare_sample_groups
from capacity_assets.demo.sample_limits import add_measured_limits, declare_sample_limits
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.foundation.status import AggregationStatus
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from capacity_assets.periods import PERIODS, Window
from capacity_assets.report.data import file_name
from capacity_assets.runtime import open_engine, prepare_database, retention_service, task_runner
from capacity_assets.runway.forecasting import outlooks
from capacity_assets.settings import ConfigurationError, Settings, load_settings
from capacity_assets.units import counted

FASTEST_SHOWN = 5
MONTHLY = PERIODS["monthly"]


@click.command()
@click.option("--remove", is_flag=True, help="Remove the sample fleet, and everything that was computed from it.")
@command
def demo(settings: Settings, /, *, remove: bool) -> None:
    """Load a sample fleet and compute every period through Dagster.

    Onto a persistent instance, with the embedded PostgreSQL unless CAPACITY_DATABASE_URL is set; refuses a database
    that holds other servers. A second run changes nothing.
    """
    (remove_demo if remove else run_demo)(settings)


def run_demo(settings: Settings) -> None:
    """Set all up, compute every window, print it; raises CommandFailedError beside other servers, or if a run fails."""
    from capacity_assets.cli.demo_runs import mark_days, materialise, open_work

    with dagster_environment(settings) as environment, dagster_instance(environment) as instance:
        settings = load_settings()
        today = Clock(settings.zone).today()
        first_day = first_sample_day(settings.start_date, today)
        if first_day > today:
            raise ConfigurationError(
                f"CAPACITY_START_DATE: {settings.start_date} lies ahead; there is no partition yet"
            )
        with open_engine(settings) as engine:
            prepare_database(engine, settings)
            fleet = _load(engine, settings, first_day, today)
            if fleet.samples_added:
                samples = counted(fleet.samples_added, "sample")
                say(f"Loaded {samples}, {fleet.first_day_added} to {fleet.last_day_added}.")
            declare_sample_limits(engine, today)
            declare_sample_groups(engine, today)
            mark_days(settings, instance, engine, today)
            chunks = open_work(instance, first_day, today, fleet)
            written = materialise(settings, instance, chunks)
            month = MONTHLY.last(today)
            runner = task_runner(engine, settings)
            run = _verify(runner, first_day, today)
            _print_result(run, written, fleet, changed=bool(chunks))
            _print_fastest(engine, month)
            print_outlooks(outlooks(engine, today), show=FASTEST_SHOWN)
        _print_where_to_look(settings, month)


def _load(engine: Engine, settings: Settings, first_day: date, today: date) -> LoadedFleet:
    others = other_instances(engine)
    if others:
        raise CommandFailedError(
            f"This database holds other servers than the sample fleet ({others}), and the two do not mix. "
            "Nothing was loaded. Set CAPACITY_HOME to another folder, or CAPACITY_DATABASE_URL to an empty database."
        )
    fleet = load_sample_fleet(engine, first_day, today, add_measured_limits)
    # Days that are older than samples are kept have no partition ahead of time.
    retention_service(engine, settings).prepare()
    return fleet


def _verify(runner: AggregationTaskRunner, first_day: date, today: date) -> RunSummary:
    """Compute everything once more without Dagster."""
    run = RunSummary()
    for period in PERIODS.values():
        run += runner.run_period(period, period.windows_between(first_day, today), RunOptions(recompute=True))
    return run


COLUMNS = (*left("Period"), *right("Windows", "Processed", "Failed", "Skipped", "Rows"))


def _print_result(run: RunSummary, written: int, fleet: LoadedFleet, *, changed: bool) -> None:
    rows = []
    for name in PERIODS:
        part = run.of_period(name)
        windows = len(part.parts) // len(LEVELS)
        counts = [part.total(f"{outcome}_instances") for outcome in ("processed", "failed", "skipped")]
        rows.append([name, windows, *counts, part.total("total_records")])
    print_table("Servers (counted once per window and level) and rows", COLUMNS, rows)
    if run.status is AggregationStatus.FAILED or run.total("written_records"):
        raise CommandFailedError(f"The check after the runs found differences: {run.message}")
    if changed:
        say(f"{written:,} rows were written by this run. Computing everything once more changed nothing.")
    else:
        say("Everything was there already: 0 rows were written by this run, and computing once more changed nothing.")
    say(f"Not aggregated because it is retired: {', '.join(fleet.retired)}. Skipped: no samples in the window.")


def _print_fastest(engine: Engine, month: Window) -> None:
    """Print what `capacity top --by percent` does."""
    asked = Top("monthly", None, "percent", None, None, None, FASTEST_SHOWN, as_json=False)
    print_top(PERIODS[asked.period], month, asked.by, top_rows(engine, asked, month.start))


def _print_where_to_look(settings: Settings, month: Window) -> None:
    say(f"Growth report, to open in a browser: {settings.reports / file_name(MONTHLY, month)}")
    say("Next: `make up` (or `capacity up`) serves the pages, and the Dagster UI, which has these runs.")
    say("      `capacity status` shows what is stored, `capacity aggregate --help` computes without Dagster.")
    say(f"Data: {settings.home.resolve()}. `capacity demo --remove` takes all of it away again.")


def remove_demo(settings: Settings) -> None:
    """Take the sample fleet away again: samples, aggregates, reports, and what Dagster knows of them.

    Raises CommandFailedError where there is none, or other servers are beside it; nothing was removed.
    """
    from capacity_assets.cli.demo_runs import forget_runs

    if settings.capacity_url is None and not settings.embedded_server_exists:
        raise CommandFailedError(f"There is no sample fleet under {settings.home.resolve()}. Nothing was removed.")
    with dagster_environment(settings) as environment, dagster_instance(environment) as instance:
        with open_engine(load_settings()) as engine:
            refuse_an_unfit_database(engine, kept="Nothing was removed.")
            _refuse_what_is_not_the_demo(engine)
            samples = remove_sample_fleet(engine)
        forget_runs(settings, instance)
    pages = list(settings.reports.glob("growth-*.html"))
    for page in pages:
        page.unlink()
    gone = f"{counted(samples, 'sample')}, their aggregates and runs, {counted(len(pages), 'page')}"
    say(f"Removed the sample fleet: {gone}.")
    say("The database, its tables and the rest of Dagster's history were kept.")


def _refuse_what_is_not_the_demo(engine: Engine) -> None:
    if not holds_sample_fleet(engine):
        raise CommandFailedError("This database holds no sample fleet. Nothing was removed.")
    others = other_instances(engine)
    if others:
        raise CommandFailedError(
            f"This database holds other servers beside the sample fleet ({others}), and their figures would go too. "
            "Nothing was removed. To begin anew, end what uses it and remove the folder of the embedded server, or "
            "drop the database."
        )
