"""The runs of `capacity demo`: the windows of the sample fleet, through the jobs of the graph, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from threading import Event
from uuid import uuid4

import dagster as dg
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.runs import Guard, RunSummary
from capacity_assets.base.errors import CapacityError
from capacity_assets.base.periods import PERIODS, Clock, Period, Window, adjacent_spans
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.demo import LoadedFleet
from capacity_assets.orchestration import documents
from capacity_assets.orchestration.aggregates import MAINTENANCE_JOB, TABLE_PARTITIONS
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.collection import unmarked_days
from capacity_assets.orchestration.graph import (
    RETRIES,
    Graph,
    RunRetryPolicy,
    asset_name,
    job_name,
)
from capacity_assets.orchestration.partitions import bounded_spans, range_tags
from capacity_assets.orchestration.private import (
    RUNLESS_JOB_NAME,
    RUNLESS_RUN_ID,
    DagsterEvent,
    DagsterEventBatchMetadata,
    DagsterEventType,
    InMemoryJob,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
    StepMaterializationData,
    execute_run,
)
from capacity_assets.orchestration.runways import RUNWAY, RUNWAY_JOB

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# The UI shows a run on the pages of its job and on the timeline only if it names its code location.
CODE_LOCATION = "capacity_assets"
DEMO_TAG = "capacity/demo"


class _DemoRetryPolicy(RunRetryPolicy):
    """The policy of all runs; it handles runs that Ctrl-C ends."""

    def is_being_terminated(self) -> bool:
        return True


class RecomputationCancelled(Exception):  # noqa: N818 -- a wanted end and no error
    """Ends the recomputation, because the rest of the demo has failed or was interrupted."""


class RunFailedError(CapacityError):
    """A run of the demo failed; finished runs were kept."""


@dataclass(frozen=True)
class PlannedRun:
    """Adjacent windows that one run of a job computes."""

    job: str
    subject: str
    windows: Sequence[Window]


@dataclass(frozen=True)
class OpenWork:
    """The remaining work: windows to compute, their documents, and maintenance, which drops samples."""

    windows: list[PlannedRun]
    documents: list[PlannedRun]
    maintenance: list[PlannedRun]

    @property
    def chunks(self) -> list[PlannedRun]:
        """All chunks, in order."""
        return [*self.windows, *self.documents, *self.maintenance]


def mark_days(settings: Settings, instance: dg.DagsterInstance, engine: Engine, today: date) -> None:
    """Report the loaded days to Dagster, today included, as its sensor would later."""
    if settings.collection == "on":
        graph = Graph(settings, Clock(settings.zone))
        report_marks(instance, list(unmarked_days(graph, instance, engine, before=today + timedelta(days=1))))


def report_marks(instance: dg.DagsterInstance, marks: Sequence[dg.AssetMaterialization]) -> None:
    """Report materialisations to Dagster in batches: `report_runless_asset_event` writes one at a time."""
    batch = uuid4().hex
    for number, mark in enumerate(marks, start=1):
        event = DagsterEvent(
            DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name=RUNLESS_JOB_NAME,
            event_specific_data=StepMaterializationData(mark),
        )
        metadata = DagsterEventBatchMetadata(batch, is_end=number == len(marks))
        instance.report_dagster_event(event, RUNLESS_RUN_ID, batch_metadata=metadata)


def open_work(instance: dg.DagsterInstance, first_day: date, today: date, fleet: LoadedFleet) -> OpenWork:
    """Return the windows without a materialisation, and those that read newly loaded samples."""

    def materialized_partitions(assets: Sequence[str]) -> set[str]:
        return set.intersection(*(instance.get_materialized_partitions(dg.AssetKey(asset)) for asset in assets))

    def chunks(period: Period, assets: Sequence[str], job: str, subject: str) -> list[PlannedRun]:
        keys = materialized_partitions(assets)
        windows = period.windows_between(first_day, today)
        left = [window for window in windows if window.key not in keys or _reads_new_samples(period, window, fleet)]
        return [PlannedRun(job, subject, part) for part in bounded_spans(adjacent_spans(left))]

    aggregates = [
        chunk
        for period in PERIODS.values()
        for chunk in chunks(
            period,
            [asset_name(period, level) for level in LEVELS.values()],
            job_name(period),
            f"the {period.name} windows",
        )
    ]
    monthly, weekly = PERIODS[documents.REPORT_PERIOD], PERIODS[documents.DIGEST_PERIOD]
    # A forecast takes a second: only today's, those that are due today, so that there are scores, and those with which
    # the last week and month begin and end, so that changes of dates can be compared.
    ends = [
        day
        for window in (weekly.last(today), monthly.last(today))
        for day in (window.start, window.end + timedelta(days=1))
    ]
    due = sorted({today, *(today - timedelta(days=days) for days in HORIZONS_DAYS), *ends})
    issued = materialized_partitions([RUNWAY])
    runways = [
        PlannedRun(RUNWAY_JOB, "the runways", [PERIODS["daily"].window_of(day)])
        for day in due
        if day >= first_day and day.isoformat() not in issued
    ]
    has_partitions = instance.get_latest_materialization_event(dg.AssetKey(TABLE_PARTITIONS)) is not None
    return OpenWork(
        aggregates,
        # The reports show the runways.
        [
            *runways,
            *chunks(monthly, [documents.GROWTH_REPORT], documents.GROWTH_REPORT_JOB, "the growth reports"),
            *chunks(monthly, [documents.SHOWBACK], documents.SHOWBACK_JOB, "the bills"),
            *chunks(weekly, [documents.DIGEST], documents.DIGEST_JOB, "the digests"),
        ],
        [] if has_partitions else [PlannedRun(MAINTENANCE_JOB, "the tables' partitions", ())],
    )


def _reads_new_samples(period: Period, window: Window, fleet: LoadedFleet) -> bool:
    if fleet.first_day_added is None or fleet.last_day_added is None:
        return False
    return period.previous(window).start <= fleet.last_day_added and window.end >= fleet.first_day_added


def materialise(
    settings: Settings,
    instance: dg.DagsterInstance,
    work: OpenWork,
    *,
    on_progress: Callable[[str, int], None],
    recompute: Callable[[Guard], RunSummary],
) -> tuple[int, RunSummary]:
    """Run the jobs, and recompute the windows while their documents, which only read, are created.

    Returns the number of written rows, and the result of `recompute`, whose argument it calls before each commit and
    which ends it if the other work has failed or was interrupted. `on_progress` gets the subject
    of each run and the number of its computed windows: 0 when it begins, all of them when it has ended.

    Raises RunFailedError, and KeyboardInterrupt if a run was interrupted.
    """
    is_over = Event()

    def check_cancelled() -> None:
        if is_over.is_set():
            raise RecomputationCancelled

    if not work.chunks:
        return 0, recompute(check_cancelled)
    # The demo sends no mail about servers that do not exist.
    without_mail = settings.model_copy(update={"receivers": None, "digest_receivers": None})
    definitions = build_definitions(without_mail, retries=_DemoRetryPolicy(*RETRIES))

    def run(chunks: Sequence[PlannedRun]) -> int:
        written = 0
        for chunk in chunks:
            on_progress(chunk.subject, 0)
            written += _written_by(definitions.resolve_job_def(chunk.job), instance, chunk)
            on_progress(chunk.subject, len(chunk.windows))
        return written

    with ThreadPoolExecutor(1, thread_name_prefix="recompute") as thread:
        written = run(work.windows)
        recomputed = thread.submit(recompute, check_cancelled)
        try:
            written += run(work.documents)
            summary = recomputed.result()
        finally:
            is_over.set()
        return written + run(work.maintenance), summary


def _written_by(job: dg.JobDefinition, instance: dg.DagsterInstance, chunk: PlannedRun) -> int:
    """Run a job in this process, as one of the code location that `capacity up` serves; return the written rows."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(CODE_LOCATION), "__repository__")
    run = instance.create_run_for_job(
        job,
        run_config=QUIET,
        tags={**job.run_tags, **(range_tags(chunk.windows) if chunk.windows else {}), DEMO_TAG: "true"},
        remote_job_origin=RemoteJobOrigin(repository, job.name),
    )
    result = execute_run(InMemoryJob(job), run, instance)
    if not result.success:
        reasons = _reasons(result)
        if "DagsterExecutionInterruptedError" in reasons:
            raise KeyboardInterrupt
        span = f" {chunk.windows[0].key} to {chunk.windows[-1].key}" if chunk.windows else ""
        raise RunFailedError(
            f"Run {result.run_id} over {chunk.subject}{span} failed. {reasons} "
            "Finished runs were kept. `capacity up` shows the run; `capacity demo` continues."
        )
    metadata = [event.materialization.metadata for event in result.get_asset_materialization_events()]
    counts = [recorded["written_records"].value for recorded in metadata if "written_records" in recorded]
    return sum(count for count in counts if isinstance(count, int))


def _reasons(result: dg.JobExecutionResult) -> str:
    """Return the texts of the failed steps, or the class of an error without one."""
    failures = [event.step_failure_data for event in result.get_step_failure_events()]
    texts = [failure.user_failure_data.description if failure.user_failure_data else None for failure in failures]
    classes = [failure.error.cls_name for failure in failures if failure.error and not failure.user_failure_data]
    return " ".join(filter(None, [*texts, *classes]))


def forget_runs(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Delete the runs of the demo, and Dagster's records of the assets."""
    for run in instance.get_runs(dg.RunsFilter(tags={DEMO_TAG: "true"})):
        instance.delete_run(run.run_id)
    # Other code locations may keep their own records in the same storage.
    ours = build_definitions(settings).resolve_asset_graph().get_all_asset_keys()
    instance.wipe_assets([key for key in instance.all_asset_keys() if key in ours])
