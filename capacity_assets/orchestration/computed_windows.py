"""Windows that were computed outside this Dagster: by the command line, the task functions, another deployment.

Dagster knows a partition only by a materialisation of its own, so that figures which are there would be shown as
missing. A sensor reports to it which windows the ledger has as computed. It computes nothing.
"""

from collections.abc import Iterator, Mapping

import dagster as dg

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.marking import INTERVAL_SECONDS, marked
from capacity_assets.orchestration.metadata import typed
from capacity_assets.orchestration.naming import asset_name
from capacity_assets.orchestration.private.definitions import IN_PROGRESS_RUN_STATUSES
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE
from capacity_assets.periods import Period

COMPUTED_WINDOWS_SENSOR = "computed_windows_sensor"
ORIGIN = "computed outside this Dagster: by the command line, a task function, or another deployment"


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
        result = marked(_unmarked(context.instance, runner, periods), "Every computed window is marked.")
        if isinstance(result, dg.SkipReason):
            context.update_cursor(last)
        return result

    return mark_windows


def _unmarked(
    instance: dg.DagsterInstance, runner: AggregationTaskRunner, periods: Mapping[str, Period]
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation for each asset and computed window that has none yet; raises DatabaseError."""
    for period in periods.values():
        for level in LEVELS.values():
            key = dg.AssetKey(asset_name(period, level))
            known = instance.get_materialized_partitions(key)
            for computed in runner.inspection.computed_windows(period, level.name):
                if computed.window.key not in known:
                    metadata = typed(
                        {
                            "origin": ORIGIN,
                            "processed_instances": computed.processed_instances,
                            "failed_instances": computed.failed_instances,
                            "total_records": computed.total_records,
                        }
                    )
                    yield dg.AssetMaterialization(key, partition=computed.window.key, metadata=metadata)
