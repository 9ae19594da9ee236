"""One job per period, with all levels in one run. A job over unlike partitions does not resolve, hence one each."""

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from capacity_assets.foundation.levels import LEVELS
from capacity_assets.orchestration.checks import STANDING_CHECK_JOB, standing_check_keys
from capacity_assets.orchestration.naming import asset_name, job_name
from capacity_assets.orchestration.private.definitions import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    UnresolvedAssetJobDefinition,
)
from capacity_assets.periods import Period, Window


def aggregation_jobs(periods: Iterable[Period]) -> list[UnresolvedAssetJobDefinition]:
    """Build the jobs."""
    return [
        dg.define_asset_job(
            job_name(period),
            selection=dg.AssetSelection.assets(*(asset_name(period, level) for level in LEVELS.values())),
            description=f"Aggregate {period.name} windows: databases, servers and groups in one run.",
            tags={"period": period.name},
        )
        for period in periods
    ]


def standing_check_job(periods: Iterable[Period]) -> UnresolvedAssetJobDefinition:
    """Build the job that evaluates the standing check of every asset, without computing anything."""
    return dg.define_asset_job(
        STANDING_CHECK_JOB,
        selection=dg.AssetSelection.checks(*standing_check_keys(periods)),
        description="Look for failed or missing partitions and for samples that stopped arriving, and say how to "
        "recover. Computes nothing.",
    )


def range_tags(windows: Sequence[Window]) -> dict[str, str]:
    """Return the tags that make one run of the windows from the first to the last."""
    return {ASSET_PARTITION_RANGE_START_TAG: windows[0].key, ASSET_PARTITION_RANGE_END_TAG: windows[-1].key}


def run_request(
    run_key: str,
    windows: Sequence[Window],
    *,
    job: str | None = None,
    assets: Sequence[dg.AssetKey] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.RunRequest:
    """Request the windows from the first to the last in one run; `run_key` makes a repeated tick request it once."""
    if len(windows) == 1:
        key = windows[0].key
        return dg.RunRequest(run_key=run_key, partition_key=key, job_name=job, asset_selection=assets, tags=tags)
    both = {**(tags or {}), **range_tags(windows)}
    return dg.RunRequest(run_key=run_key, job_name=job, asset_selection=assets, tags=both)
