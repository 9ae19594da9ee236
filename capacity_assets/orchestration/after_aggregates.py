"""What assets have in common that are made of a period's aggregates: report, showback, digest."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import dagster as dg

from capacity_assets.foundation.levels import LEVELS
from capacity_assets.orchestration.naming import OWNERS, asset_name
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN, partitions_of
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE
from capacity_assets.periods import Period
from capacity_assets.settings import Settings


class AssetArguments(TypedDict):
    """Arguments of `dg.asset`."""

    partitions_def: dg.PartitionsDefinition[str]
    deps: Sequence[str]
    backfill_policy: dg.BackfillPolicy
    retry_policy: dg.RetryPolicy
    owners: Sequence[str]
    tags: Mapping[str, str]
    required_resource_keys: set[str]


def made_of_aggregates(settings: Settings, period: Period, retries: dg.RetryPolicy) -> AssetArguments:
    """Return what `dg.asset` is told of an asset with the period's partitions, downstream of its aggregates."""
    return {
        "partitions_def": partitions_of(period, settings),
        "deps": [asset_name(period, level) for level in LEVELS.values()],
        "backfill_policy": dg.BackfillPolicy.multi_run(PARTITIONS_PER_RUN),
        "retry_policy": retries,
        "owners": OWNERS,
        "tags": {"period": period.name},
        "required_resource_keys": {AGGREGATION_RESOURCE},
    }


def whenever_aggregates_are_made() -> dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]:
    """As `eager`, for every partition: a backfill or late samples change old months.

    `since_last_handled` would forget aggregates that are recomputed while a report is rendered: a report may be
    rendered once too often, never once too little.
    """
    condition = dg.AutomationCondition
    made = condition.any_deps_updated().since(condition.newly_requested() & ~condition.any_deps_updated())
    quiet = ~condition.any_deps_missing() & ~condition.any_deps_in_progress() & ~condition.in_progress()
    return (made & quiet).with_label("whenever the month's aggregates are made")


def sensor_of(name: str, asset: str, description: str) -> dg.AutomationConditionSensorDefinition:
    """Build the sensor that evaluates the condition; on from the first start, until switched off in the UI."""
    return dg.AutomationConditionSensorDefinition(
        name,
        target=dg.AssetSelection.assets(asset),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )
