"""One job a period, both levels in one run. A job over unlike partitions does not resolve, hence one each."""

from collections.abc import Iterable

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from capacity_assets.aggregation.levels import LEVELS
from capacity_assets.orchestration.assets import asset_name
from capacity_assets.periods import Period


def job_name(period: Period) -> str:
    """Return the name of a period's job, for example `daily_aggregation_job`."""
    return f"{period.name}_aggregation_job"


def aggregation_jobs(periods: Iterable[Period]) -> list[UnresolvedAssetJobDefinition]:
    """Build the jobs."""
    return [
        dg.define_asset_job(
            job_name(period),
            selection=[asset_name(period, level) for level in LEVELS.values()],
            description=f"Aggregate {period.name} windows: databases and servers in one run.",
            tags={"period": period.name},
        )
        for period in periods
    ]
