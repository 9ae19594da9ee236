"""Jobs, schedules and pools: one of each per period.

A job runs all levels of a period in one run; a job over unlike partitions does not resolve, hence one each. A schedule
runs on the day a window is due, at the configured hour in the configured zone, and computes its window from the
scheduled time, never from the clock. Dagster evaluates only the last tick that a downtime missed (measured on 1.13.27:
no schedule catches up any more), so a tick also requests the windows since the last one its schedule requested.

A pool of one slot lets one run of a period run at a time, however it is started. The limit of a pool that Dagster has
never seen is set only after the first dequeue, which lets two runs of a fresh pool run side by side. Therefore set-up
sets each limit explicitly, and `capacity check` looks. Writers that the run coordinator does not see are held off by
the lock around a run.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.metadata import STANDING_CHECK_JOB, standing_check_keys
from capacity_assets.orchestration.partitions import (
    PARTITIONS_PER_RUN,
    asset_name,
    job_name,
    pool_name,
    schedule_name,
    schedule_of,
)
from capacity_assets.orchestration.private.definitions import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    SCHEDULE_NAME_TAG,
    UnresolvedAssetJobDefinition,
)

if TYPE_CHECKING:
    from capacity_assets.orchestration.private.definitions import EventLogStorage


COLLECTION_POOL, RUNWAY_POOL = "capacity_collection", "capacity_runway"


def set_pool_limits(storage: "EventLogStorage", periods: Iterable[Period], shares: int) -> None:
    """Give each period's pool and that of the runways their single slot, and the collection one per share.

    A limit that stands already is not written again: that takes several statements per pool.
    """
    for name, slots in pools_without_limit(storage, periods, shares).items():
        storage.set_concurrency_slots(name, slots)


def pools_without_limit(storage: "EventLogStorage", periods: Iterable[Period], shares: int) -> dict[str, int]:
    """Return the pools whose explicit limit is another one than they need, with what they need.

    Raises DBAPIError, also where Dagster has no tables yet.
    """
    needed = {**{pool_name(period): 1 for period in periods}, COLLECTION_POOL: max(1, shares), RUNWAY_POOL: 1}
    limits = {pool.name: pool.limit for pool in storage.get_pool_limits() if not pool.from_default}
    return {name: slots for name, slots in needed.items() if limits.get(name) != slots}


def aggregation_jobs(periods: Iterable[Period]) -> list[UnresolvedAssetJobDefinition]:
    """Build the jobs."""
    return [
        dg.define_asset_job(
            job_name(period),
            [asset_name(period, level) for level in LEVELS.values()],
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


# One run's worth. A longer gap is a decision: backfill it.
MOST_CAUGHT_UP = PARTITIONS_PER_RUN
RUNS_LOOKED_AT = 200
STANDING_CHECK_MINUTE = 45


def aggregation_schedule(settings: Settings, period: Period) -> dg.ScheduleDefinition:
    """Build the schedule of a period; it runs from the first start on, until switched off in the UI."""
    which = "that holds the day" if period.scheduled_current else "just closed"
    name = schedule_name(period)
    first = period.window_of(settings.start_date)

    @dg.schedule(
        name=name,
        job_name=job_name(period),
        cron_schedule=period.cron_at(settings.schedule_hour),
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Aggregates the {period.name} window {which}, databases, servers and groups in one run; "
        f"after a downtime also those missed, at most {MOST_CAUGHT_UP}.",
    )
    def request_windows(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = context.scheduled_execution_time.astimezone(settings.zone).date()
        due = period.scheduled(day)
        if due.start < first.start:
            return dg.SkipReason(f"The window {due.key} lies before the first partition, {first.key}.")
        before = _last_requested_before(context.instance, name, due.start)
        windows = (
            [due] if before is None else [w for w in period.windows_between(before, due.start) if w.start > before]
        )
        if len(windows) > MOST_CAUGHT_UP:
            context.log.warning(
                f"{len(windows)} windows were missed; the newest {MOST_CAUGHT_UP} are requested. "
                f"Backfill those from {windows[0].key} to {windows[-MOST_CAUGHT_UP - 1].key}."
            )
        return run_request(due.key, windows[-MOST_CAUGHT_UP:])

    return request_windows


def standing_check_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Build the schedule of the standing check: once a day, when the day's runs have had time to end."""
    description = "Looks once a day for failed or missing partitions and for samples that stopped arriving."
    cron = f"{STANDING_CHECK_MINUTE} {settings.schedule_hour} * * *"
    return schedule_of(settings, "standing_check_schedule", STANDING_CHECK_JOB, cron, description)


def _last_requested_before(instance: dg.DagsterInstance, name: str, due: date) -> date | None:
    """Return the newest window before `due` that the schedule's own runs stand for.

    A run that was created but never submitted (the daemon died in between) does not count, nor does a
    re-execution, which carries the tags of the old run. The window that is due now does not count either: a
    tick evaluated again must request the same, and the run key sees to it that it runs once.
    """
    runs = instance.get_runs(dg.RunsFilter(tags={SCHEDULE_NAME_TAG: name}), limit=RUNS_LOOKED_AT)
    submitted = [run for run in runs if run.status is not dg.DagsterRunStatus.NOT_STARTED and run.parent_run_id is None]
    keys = [run.tags.get(PARTITION_NAME_TAG) or run.tags.get(ASSET_PARTITION_RANGE_END_TAG) for run in submitted]
    windows = [date.fromisoformat(key) for key in keys if key]
    return max((window for window in windows if window < due), default=None)
