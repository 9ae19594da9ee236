"""Days whose samples were not measured here: imported ones, the demo's, those from before there was a collection.

Dagster knows a raw partition only by a materialisation of its own, and warns before a backfill that what is upstream
was never made. A sensor reports to it which days have samples. Today is left to the collection.
"""

from collections.abc import Iterator
from datetime import date

import dagster as dg

from capacity_assets.collection.observing import days_with_samples
from capacity_assets.collection.service import CollectionService
from capacity_assets.foundation.raw_tables import RAW_TABLES
from capacity_assets.orchestration.marking import INTERVAL_SECONDS, marked
from capacity_assets.orchestration.resources import COLLECTION_RESOURCE
from capacity_assets.settings import Settings

SAMPLE_DAYS_SENSOR = "sample_days_sensor"
ORIGIN = "not measured here: imported, or written by another application"


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
        return marked(unmarked, "Every day with samples is marked.")

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
                yield dg.AssetMaterialization(key, partition=day.isoformat(), metadata={"origin": ORIGIN})
