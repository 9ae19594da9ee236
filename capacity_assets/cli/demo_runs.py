"""The Dagster side of `capacity demo`: which windows are open, the runs over them, and forgetting them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import dagster as dg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine

from capacity_assets.cli.errors import CommandFailedError
from capacity_assets.cli.output import error_console
from capacity_assets.demo.sample_fleet import LoadedFleet
from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.digests import DIGEST, DIGEST_JOB, DIGEST_PERIOD
from capacity_assets.orchestration.jobs import range_tags
from capacity_assets.orchestration.maintenance import MAINTENANCE_JOB, TABLE_PARTITIONS
from capacity_assets.orchestration.marking import report_marks, unmarked_days
from capacity_assets.orchestration.naming import asset_name, job_name
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from capacity_assets.orchestration.private.definitions import (
    InMemoryJob,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
    execute_run,
)
from capacity_assets.orchestration.reports import GROWTH_REPORT, GROWTH_REPORT_JOB, REPORT_PERIOD
from capacity_assets.orchestration.runways import RUNWAY, RUNWAY_JOB
from capacity_assets.orchestration.showback import SHOWBACK, SHOWBACK_JOB
from capacity_assets.periods import PERIODS, Period, Window, adjacent_spans
from capacity_assets.runtime import collection_service
from capacity_assets.settings import Settings

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


def open_work(instance: dg.DagsterInstance, first_day: date, today: date, fleet: LoadedFleet) -> list[Chunk]:
    """List the windows without a materialisation, and those whose samples, or whose predecessor's, are new."""
    chunks = []
    for one in PERIODS.values():
        names = [asset_name(one, level) for level in LEVELS.values()]
        for span in _open_spans(instance, one, names, (first_day, today), fleet):
            chunks.append(Chunk(job_name(one), f"the {one.name} windows", span))
    # Before the reports, which show them.
    for day in _runway_days(instance, first_day, today):
        chunks.append(Chunk(RUNWAY_JOB, "the runways", [PERIODS["daily"].window_of(day)]))
    for period, asset, job, subject in (
        (REPORT_PERIOD, GROWTH_REPORT, GROWTH_REPORT_JOB, "the growth reports"),
        (REPORT_PERIOD, SHOWBACK, SHOWBACK_JOB, "the bills"),
        (DIGEST_PERIOD, DIGEST, DIGEST_JOB, "the digests"),
    ):
        for span in _open_spans(instance, PERIODS[period], [asset], (first_day, today), fleet):
            chunks.append(Chunk(job, subject, span))
    if instance.get_latest_materialization_event(dg.AssetKey(TABLE_PARTITIONS)) is None:
        chunks.append(Chunk(MAINTENANCE_JOB, "the tables' partitions", ()))
    return chunks


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


def materialise(settings: Settings, instance: dg.DagsterInstance, chunks: Sequence[Chunk]) -> int:
    """Run the jobs over the chunks; return how many rows were written."""
    written = 0
    if not chunks:
        return written
    # Nobody is to get mail about servers that do not exist.
    definitions = build_definitions(settings.model_copy(update={"digest_receivers": None}))
    with _progress_bar() as bar:
        task = bar.add_task("windows computed and drawn", total=sum(len(chunk.windows) for chunk in chunks))
        for chunk in chunks:
            written += _materialise_chunk(definitions, instance, chunk)
            bar.advance(task, len(chunk.windows))
    return written


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
