"""Late and corrected samples: a sensor requests runs for exactly the windows they affect; two others mark partitions.

The sensor keeps no state of its own. The ledger says which computed windows have not followed a change; a run that
succeeds takes its windows off that list, so nothing is lost by a restart and nothing is requested forever.

Dagster knows a partition only by its materialisations: it shows stored days without one as missing, and warns before a
backfill that upstream partitions were never made. The marking sensors therefore report days with samples that were not
measured here (imported ones, the demo's, those from before there was a collection), and windows that the command line,
the task functions or another deployment computed: a materialisation each, without a run, a few per tick.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import islice
from uuid import uuid4

import dagster as dg

from capacity_assets.aggregates.ledger import StaleWindow
from capacity_assets.aggregates.levels import LEVELS, RAW_TABLES
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import Clock, Period, Window, adjacent_spans
from capacity_assets.base.settings import LONGEST_SETTLING, Settings
from capacity_assets.collection.observing import days_with_samples
from capacity_assets.collection.service import CollectionService
from capacity_assets.orchestration.metadata import plain
from capacity_assets.orchestration.partitions import asset_name, bounded_spans, job_name
from capacity_assets.orchestration.private.definitions import (
    IN_PROGRESS_RUN_STATUSES,
    RUNLESS_JOB_NAME,
    RUNLESS_RUN_ID,
    SENSOR_NAME_TAG,
    DagsterEvent,
    DagsterEventBatchMetadata,
    DagsterEventType,
    StepMaterializationData,
    UnresolvedAssetJobDefinition,
)
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE, COLLECTION_RESOURCE, dagster_failures
from capacity_assets.orchestration.schedules import run_request

MARKING_INTERVAL_SECONDS = 60
MOST_PER_TICK = 500
SAMPLE_DAYS_SENSOR, COMPUTED_WINDOWS_SENSOR = "sample_days_sensor", "computed_windows_sensor"
ORIGIN_OF_SAMPLES = "not measured here: imported, or written by another application"
ORIGIN_OF_WINDOWS = "computed outside this Dagster: by the command line, a task function, or another deployment"


def sample_days_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor; it runs from the first start on, until switched off in the UI."""

    @dg.sensor(
        name=SAMPLE_DAYS_SENSOR,
        minimum_interval_seconds=MARKING_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={COLLECTION_RESOURCE},
        description="Marks the partitions of the raw assets whose days have samples that were not measured here.",
    )
    def mark_days(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        service: CollectionService = getattr(context.resources, COLLECTION_RESOURCE)
        today = service.clock.today()
        unmarked = unmarked_days(context.instance, service, settings, before=today)
        return _marked(unmarked, "Every day with samples is marked.")

    return mark_days


def unmarked_days(
    instance: dg.DagsterInstance, service: CollectionService, settings: Settings, *, before: date
) -> Iterator[dg.AssetMaterialization]:
    """Yield what marks each raw table and unmarked day with samples before `before`; raises DatabaseError."""
    for raw in RAW_TABLES:
        key = dg.AssetKey(raw.name)
        known = instance.get_materialized_partitions(key)
        for day in days_with_samples(service.engine, raw.table, settings.start_date, before):
            if day.isoformat() not in known:
                yield dg.AssetMaterialization(key, partition=day.isoformat(), metadata={"origin": ORIGIN_OF_SAMPLES})


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


def computed_windows_sensor(periods: Mapping[str, Period]) -> dg.SensorDefinition:
    """Build the sensor; it runs from the first start on, until switched off in the UI."""

    @dg.sensor(
        name=COMPUTED_WINDOWS_SENSOR,
        minimum_interval_seconds=MARKING_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={AGGREGATION_RESOURCE},
        description="Marks the partitions of the aggregates whose windows were computed outside this Dagster.",
    )
    def mark_windows(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if context.instance.get_runs_count(dg.RunsFilter(statuses=list(IN_PROGRESS_RUN_STATUSES))):
            # What a run has entered in the ledger, it marks itself at its end.
            return dg.SkipReason("A run is under way.")
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        with dagster_failures():
            last = runner.last_computation()
        if context.cursor == last:
            return dg.SkipReason("Nothing was computed since.")
        result = _marked(_unmarked_windows(context.instance, runner, periods), "Every computed window is marked.")
        if isinstance(result, dg.SkipReason):
            context.update_cursor(last)
        return result

    return mark_windows


def _unmarked_windows(
    instance: dg.DagsterInstance, runner: AggregationTaskRunner, periods: Mapping[str, Period]
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation for each asset and computed window that has none yet; raises DatabaseError."""
    for period in periods.values():
        for level in LEVELS.values():
            key = dg.AssetKey(asset_name(period, level))
            known = instance.get_materialized_partitions(key)
            for computed in runner.computed_windows(period, level.name):
                if computed.window.key not in known:
                    metadata = plain({"origin": ORIGIN_OF_WINDOWS, **vars(computed)})
                    yield dg.AssetMaterialization(key, partition=computed.window.key, metadata=metadata)


def _marked(unmarked: Iterator[dg.AssetMaterialization], nothing: str) -> dg.SensorResult | dg.SkipReason:
    """Return a tick's result: the first materialisations, or the reason `nothing`; raises dagster.Failure."""
    with dagster_failures():
        events = list(islice(unmarked, MOST_PER_TICK))
    return dg.SensorResult(asset_events=events) if events else dg.SkipReason(nothing)


LATE_DATA_SENSOR = "late_data_sensor"
INTERVAL_SECONDS = 30
# Scattered days beyond this many stretches go in ranges that include the windows between: those are found
# unchanged, or computed where they never were, and a flood of corrections stays a bounded number of runs.
EXACT_SPANS = 10
TAGS = {"capacity/reason": "samples changed"}
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def late_data_sensor(
    jobs: Sequence[UnresolvedAssetJobDefinition], periods: Mapping[str, Period], clock: Clock, settle_seconds: int
) -> dg.SensorDefinition:
    """Build the sensor over the jobs of all periods; it runs from the first start on, until switched off in the UI."""

    @dg.sensor(
        name=LATE_DATA_SENSOR,
        jobs=jobs,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={AGGREGATION_RESOURCE},
        description="Requests runs that recompute the windows whose samples arrived late or were corrected, and the "
        "later windows that are compared with them.",
    )
    def request_stale_windows(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        with dagster_failures():
            stale = runner.stale_windows()
        if not stale:
            return dg.SkipReason("Every computed window is up to date.")
        moving = {window.period_type for window in stale if not is_settled(window, settle_seconds)}
        names = [name for name in dict.fromkeys(window.period_type for window in stale) if name not in moving]
        waiting = [name for name in names if _is_at_work(context.instance, periods[name])]
        now = clock.local_now()
        requests = [
            request
            for name in names
            if name not in waiting
            for request in run_requests(periods[name], [window for window in stale if window.period_type == name], now)
        ]
        reasons = {"samples are still being written": moving, "the runs requested before are not done yet": waiting}
        sentences = [f"{reason} ({', '.join(sorted(held))})" for reason, held in reasons.items() if held]
        return requests or dg.SkipReason("; ".join(sentences))

    return request_stale_windows


def is_settled(stale: StaleWindow, settle_seconds: int) -> bool:
    """Whether samples have been quiet since the last change, or have been changing for too long to wait.

    Without it, a collection that commits server by server for an hour would have its windows computed all that time.
    """
    return stale.quiet_seconds >= settle_seconds or stale.waiting_seconds >= settle_seconds * LONGEST_SETTLING


def _is_at_work(instance: dg.DagsterInstance, period: Period) -> bool:
    """Whether a run requested by this sensor is queued or running; meanwhile changes are left to the next tick."""
    tags = {SENSOR_NAME_TAG: LATE_DATA_SENSOR}
    return bool(instance.get_run_ids(dg.RunsFilter(job_name=job_name(period), statuses=UNFINISHED, tags=tags), limit=1))


def run_requests(period: Period, stale: Sequence[StaleWindow], now: datetime) -> Iterator[dg.RunRequest]:
    """Request the windows in few runs.

    The key holds the changes, so that a tick evaluated again requests nothing twice, and the hour, so that windows
    whose run failed are tried again in the next one.
    """
    for levels, together, changes in _groups(stale):
        assets = [dg.AssetKey(asset_name(period, LEVELS[level])) for level in levels]
        for windows in _ranges(period, together):
            key = [period.name, *levels, windows[0].key, windows[-1].key, changes]
            yield run_request(
                "/".join([*key, f"{now:%Y-%m-%dT%H}"]), windows, job=job_name(period), assets=assets, tags=TAGS
            )


def _groups(stale: Iterable[StaleWindow]) -> Iterator[tuple[tuple[str, ...], list[Window], str]]:
    """Yield levels, the windows of a period that are stale at just these, and a token that a further change changes."""
    changes: dict[Window, dict[str, int]] = {}
    for one in stale:
        changes.setdefault(one.window, {})[one.level] = one.wanted
    groups: dict[tuple[str, ...], list[Window]] = {}
    for window in sorted(changes):
        groups.setdefault(tuple(sorted(changes[window])), []).append(window)
    for levels, windows in sorted(groups.items()):
        listed = " ".join(f"{window.key}:{changes[window][level]}" for window in windows for level in levels)
        yield levels, windows, hashlib.sha256(listed.encode()).hexdigest()[:16]


def _ranges(period: Period, windows: Sequence[Window]) -> list[Sequence[Window]]:
    """Cut windows into ranges of at most one run's worth: exact stretches, or fewer that bridge gaps."""
    spans: list[Sequence[Window]] = [*adjacent_spans(windows)]
    if len(spans) > EXACT_SPANS:
        spans = [period.windows_between(windows[0].start, windows[-1].end)]
    return [run for run in bounded_spans(spans) if not set(windows).isdisjoint(run)]
