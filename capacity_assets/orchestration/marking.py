"""Marks partitions that were filled elsewhere: a materialisation each, without a run, a few per tick.

Dagster knows a partition only by a materialisation of its own: it shows what is there as missing, and warns before a
backfill that what is upstream was never made. Two sensors report to it which days have samples that were not measured
here (imported ones, the demo's, those from before there was a collection; today is left to the collection), and which
windows the ledger has as computed by the command line, the task functions or another deployment. They compute nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import islice
from uuid import uuid4

import dagster as dg

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.collection.observing import days_with_samples
from capacity_assets.collection.service import CollectionService
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.foundation.raw_tables import RAW_TABLES
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import typed
from capacity_assets.orchestration.naming import asset_name
from capacity_assets.orchestration.private.definitions import (
    IN_PROGRESS_RUN_STATUSES,
    RUNLESS_JOB_NAME,
    RUNLESS_RUN_ID,
    DagsterEvent,
    DagsterEventBatchMetadata,
    DagsterEventType,
    StepMaterializationData,
)
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE, COLLECTION_RESOURCE
from capacity_assets.periods import Period
from capacity_assets.settings import Settings

INTERVAL_SECONDS = 60
MOST_PER_TICK = 500
SAMPLE_DAYS_SENSOR, COMPUTED_WINDOWS_SENSOR = "sample_days_sensor", "computed_windows_sensor"
ORIGIN_OF_SAMPLES = "not measured here: imported, or written by another application"
ORIGIN_OF_WINDOWS = "computed outside this Dagster: by the command line, a task function, or another deployment"


def sample_days_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor; it runs from the first start on, until switched off in the UI."""

    @dg.sensor(
        name=SAMPLE_DAYS_SENSOR,
        minimum_interval_seconds=INTERVAL_SECONDS,
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
    """Report to Dagster what a sensor's ticks would, in batches: `report_runless_asset_event` writes one at a time."""
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
        minimum_interval_seconds=INTERVAL_SECONDS,
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
            last = runner.inspection.last_computation()
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
            for computed in runner.inspection.computed_windows(period, level.name):
                if computed.window.key not in known:
                    metadata = typed({"origin": ORIGIN_OF_WINDOWS, **vars(computed)})
                    yield dg.AssetMaterialization(key, partition=computed.window.key, metadata=metadata)


def _marked(unmarked: Iterator[dg.AssetMaterialization], nothing: str) -> dg.SensorResult | dg.SkipReason:
    """Return a tick's result: the first materialisations, or the reason `nothing`; raises dagster.Failure."""
    with dagster_failures():
        events = list(islice(unmarked, MOST_PER_TICK))
    return dg.SensorResult(asset_events=events) if events else dg.SkipReason(nothing)
