"""`capacity demo`: a sample fleet, computed through Dagster onto the instance that `capacity up` shows.

Partitions that are materialised already and whose samples did not change are left alone, so that an interrupted demo
continues and a second one changes nothing. At the end everything is computed once more without Dagster, which must
write nothing: the stored figures are what the samples say. `--remove` deletes all of it. The sample fleet never shares
a database with other servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta

import click
import dagster as dg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.results import RunSummary
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import AggregationStatus
from capacity_assets.base.periods import PERIODS, Clock, Period, Window, adjacent_spans
from capacity_assets.base.settings import HORIZONS_DAYS, ConfigurationError, Settings, load_settings
from capacity_assets.base.units import counted
from capacity_assets.cli.options import CommandFailedError, command, error_console, left, print_table, right, say
from capacity_assets.cli.runway import print_outlooks
from capacity_assets.cli.top import print_top, top_databases
from capacity_assets.database.guards import refuse_an_unfit_database
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
from capacity_assets.forecast.runway import outlooks
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.documents import (
    DIGEST,
    DIGEST_JOB,
    DIGEST_PERIOD,
    GROWTH_REPORT,
    GROWTH_REPORT_JOB,
    REPORT_PERIOD,
    SHOWBACK,
    SHOWBACK_JOB,
)
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from capacity_assets.orchestration.late_data import report_marks, unmarked_days
from capacity_assets.orchestration.maintenance import MAINTENANCE_JOB, TABLE_PARTITIONS
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN, asset_name, job_name
from capacity_assets.orchestration.private.definitions import (
    InMemoryJob,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
    execute_run,
)
from capacity_assets.orchestration.runways import RUNWAY, RUNWAY_JOB
from capacity_assets.orchestration.schedules import range_tags
from capacity_assets.report.data import file_name
from capacity_assets.runtime import collection_service, open_engine, prepare_database, retention_service, task_runner

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# By this name the UI knows where jobs come from; a run without it is missing from their pages and the timeline.
CODE_LOCATION = "capacity_assets"
DEMO_TAG = "capacity/demo"


@dataclass(frozen=True)
class Chunk:
    """Adjacent windows that go through a job of Dagster in one run."""

    job: str
    subject: str
    windows: Sequence[Window]


def mark_days(settings: Settings, instance: dg.DagsterInstance, engine: Engine, today: date) -> None:
    """Report the loaded days to Dagster, today included, as its sensor would later."""
    if settings.collection == "on":
        service = collection_service(engine, settings)
        report_marks(instance, list(unmarked_days(instance, service, settings, before=today + timedelta(days=1))))


@dataclass(frozen=True)
class OpenWork:
    """What is left to do: windows to compute, documents to make of them, and maintenance, which drops samples."""

    windows: Sequence[Chunk]
    documents: Sequence[Chunk]
    maintenance: Sequence[Chunk]

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All of it, in order."""
        return (*self.windows, *self.documents, *self.maintenance)


def open_work(instance: dg.DagsterInstance, first_day: date, today: date, fleet: LoadedFleet) -> OpenWork:
    """List the windows without a materialisation, and those whose samples, or whose predecessor's, are new."""
    windows, documents, maintenance = [], [], []
    for one in PERIODS.values():
        names = [asset_name(one, level) for level in LEVELS.values()]
        for span in _open_spans(instance, one, names, (first_day, today), fleet):
            windows.append(Chunk(job_name(one), f"the {one.name} windows", span))
    # Before the reports, which show them.
    for day in _runway_days(instance, first_day, today):
        documents.append(Chunk(RUNWAY_JOB, "the runways", [PERIODS["daily"].window_of(day)]))
    for period, asset, job, subject in (
        (REPORT_PERIOD, GROWTH_REPORT, GROWTH_REPORT_JOB, "the growth reports"),
        (REPORT_PERIOD, SHOWBACK, SHOWBACK_JOB, "the bills"),
        (DIGEST_PERIOD, DIGEST, DIGEST_JOB, "the digests"),
    ):
        for span in _open_spans(instance, PERIODS[period], [asset], (first_day, today), fleet):
            documents.append(Chunk(job, subject, span))
    if instance.get_latest_materialization_event(dg.AssetKey(TABLE_PARTITIONS)) is None:
        maintenance.append(Chunk(MAINTENANCE_JOB, "the tables' partitions", ()))
    return OpenWork(windows, documents, maintenance)


def _runway_days(instance: dg.DagsterInstance, first_day: date, today: date) -> list[date]:
    """Today, and the days whose forecasts come due today, so that there are scores; each forecast costs a second."""
    done = instance.get_materialized_partitions(dg.AssetKey(RUNWAY))
    due = [today - timedelta(days=days) for days in reversed(HORIZONS_DAYS)]
    return [day for day in (*due, today) if day >= first_day and day.isoformat() not in done]


def _open_spans(
    instance: dg.DagsterInstance, period: Period, names: Sequence[str], days: tuple[date, date], fleet: LoadedFleet
) -> Iterator[Sequence[Window]]:
    done = set.intersection(*(instance.get_materialized_partitions(dg.AssetKey(name)) for name in names))
    wanted = period.windows_between(*days)
    to_compute = [window for window in wanted if window.key not in done or _is_touched(period, window, fleet)]
    for span in adjacent_spans(to_compute):
        for first in range(0, len(span), PARTITIONS_PER_RUN):
            yield span[first : first + PARTITIONS_PER_RUN]


def _is_touched(period: Period, window: Window, fleet: LoadedFleet) -> bool:
    if fleet.first_day_added is None or fleet.last_day_added is None:
        return False
    return period.previous(window).start <= fleet.last_day_added and window.end >= fleet.first_day_added


def materialise(
    settings: Settings, instance: dg.DagsterInstance, work: OpenWork, verify: Callable[[], RunSummary]
) -> tuple[int, RunSummary]:
    """Run the jobs, and verify the windows while documents are made of them, which only read.

    Returns how many rows were written, and what `verify` returned.
    """
    if not work.chunks:
        return 0, verify()
    # Nobody is to get mail about servers that do not exist.
    definitions = build_definitions(settings.model_copy(update={"digest_receivers": None}))
    with _progress_bar() as bar, ThreadPoolExecutor(1, thread_name_prefix="verify") as thread:
        task = bar.add_task("windows computed and drawn", total=sum(len(chunk.windows) for chunk in work.chunks))

        def run(chunks: Sequence[Chunk]) -> int:
            written = 0
            for chunk in chunks:
                written += _materialise_chunk(definitions, instance, chunk)
                bar.advance(task, len(chunk.windows))
            return written

        written = run(work.windows)
        verified = thread.submit(verify)
        written += run(work.documents)
        summary = verified.result()
        return written + run(work.maintenance), summary


def _materialise_chunk(definitions: dg.Definitions, instance: dg.DagsterInstance, chunk: Chunk) -> int:
    result = _execute(
        definitions.resolve_job_def(chunk.job), instance, range_tags(chunk.windows) if chunk.windows else {}
    )
    if not result.success:
        if "DagsterExecutionInterruptedError" in _reasons(result):
            raise KeyboardInterrupt
        span = f" {chunk.windows[0].key} to {chunk.windows[-1].key}" if chunk.windows else ""
        raise CommandFailedError(
            f"Run {result.run_id} over {chunk.subject}{span} failed. {_reasons(result)} "
            "Finished runs were kept. `capacity up` shows the run; `capacity demo` continues."
        )
    counts = [
        event.materialization.metadata["written_records"].value
        for event in result.get_asset_materialization_events()
        if "written_records" in event.materialization.metadata
    ]
    return sum(count for count in counts if isinstance(count, int))


def _execute(job: dg.JobDefinition, instance: dg.DagsterInstance, tags: Mapping[str, str]) -> dg.JobExecutionResult:
    """Run a job in this process, as one of the code location that `capacity up` serves."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(CODE_LOCATION), "__repository__")
    run = instance.create_run_for_job(
        job,
        run_config=QUIET,
        tags={**job.run_tags, **tags, DEMO_TAG: "true"},
        remote_job_origin=RemoteJobOrigin(repository, job.name),
    )
    return execute_run(InMemoryJob(job), run, instance)


def _reasons(result: dg.JobExecutionResult) -> str:
    """Say what the failed steps said, or the class of what they raised."""
    failures = [event.step_failure_data for event in result.get_step_failure_events()]
    texts = [
        failure.user_failure_data.description if failure.user_failure_data else failure.error and failure.error.cls_name
        for failure in failures
    ]
    return " ".join(text for text in texts if text)


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=error_console())


def forget_runs(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Delete the runs of the demo, and what Dagster knows of the assets."""
    for run in instance.get_runs(dg.RunsFilter(tags={DEMO_TAG: "true"})):
        instance.delete_run(run.run_id)
    # Other code locations may keep their own in the same storage.
    ours = build_definitions(settings).resolve_asset_graph().get_all_asset_keys()
    instance.wipe_assets([key for key in instance.all_asset_keys() if key in ours])


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
            work = open_work(instance, first_day, today, fleet)
            month = MONTHLY.last(today)
            runner = task_runner(engine, settings)
            written, run = materialise(settings, instance, work, lambda: _verify(runner, first_day, today))
            _print_result(run, written, fleet, changed=bool(work.chunks))
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
    print_top(MONTHLY, month, "percent", top_databases(engine, MONTHLY, month, by="percent", limit=FASTEST_SHOWN))


def _print_where_to_look(settings: Settings, month: Window) -> None:
    say(f"Growth report, to open in a browser: {settings.reports / file_name(MONTHLY, month)}")
    say("Next: `make up` (or `capacity up`) serves the pages, and the Dagster UI, which has these runs.")
    say("      `capacity status` shows what is stored, `capacity aggregate --help` computes without Dagster.")
    say(f"Data: {settings.home.resolve()}. `capacity demo --remove` takes all of it away again.")


def remove_demo(settings: Settings) -> None:
    """Take the sample fleet away again: samples, aggregates, reports, and what Dagster knows of them.

    Raises CommandFailedError where there is none, or other servers are beside it; nothing was removed.
    """
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
