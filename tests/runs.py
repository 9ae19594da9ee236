"""Runs of jobs in this process, and the metadata they leave."""

from __future__ import annotations

from datetime import date
from typing import Any

import dagster as dg

from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.graph import RETRIES
from tests.clocks import TODAY, fixed_clock

# As many retries as the real policy has, without its pauses.
QUICK_RETRIES = dg.RetryPolicy(max_retries=RETRIES.max_retries, delay=0.5)
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


_BUILT: list[tuple[Settings, object, dg.Definitions]] = []


def built(settings: Settings, today: date, retries: dg.RetryPolicy) -> dg.Definitions:
    """The definitions of the last call where it asked for the same: to build them costs as much as a short run."""
    wanted = today, retries
    if not _BUILT or _BUILT[0][:2] != (settings, wanted):
        _BUILT[:] = [(settings, wanted, build_definitions(settings, clock=fixed_clock(today), retries=retries))]
    return _BUILT[0][2]


def run_range(settings: Settings, job: str, first: str, last: str, **options: Any) -> dg.ExecuteInProcessResult:
    definitions = built(settings, date(2026, 7, 1), QUICK_RETRIES)
    return definitions.resolve_job_def(job).execute_in_process(
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        run_config=QUIET | options.pop("run_config", {}),
        raise_on_error=False,
        **options,
    )


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dict[str, Any]]:
    return {
        str(event.partition): {key: value.value for key, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    }


def run_job(
    settings: Settings, job: str, *, day: date = TODAY, again: bool = False, **options: Any
) -> dg.ExecuteInProcessResult:
    definitions = built(settings, TODAY, dg.RetryPolicy(max_retries=1, delay=0.1))
    config = {"ops": {"collection": {"config": {"again": again}}}} if again else {}
    return definitions.resolve_job_def(job).execute_in_process(
        partition_key=day.isoformat(), run_config=QUIET | config, raise_on_error=False, **options
    )


def retries(result: dg.ExecuteInProcessResult) -> int:
    return len([event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"])
