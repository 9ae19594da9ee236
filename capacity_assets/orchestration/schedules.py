"""One schedule per period: on the day a window is due, at the configured hour in the configured zone.

A tick computes its window from the scheduled time, never from the clock. Dagster evaluates only the last
tick that a downtime missed (measured on 1.13.27: no schedule catches up any more), so a tick also requests
the windows since the last one its schedule requested. Which window is due is decided in `periods`.
"""

from collections.abc import Iterable
from datetime import date

import dagster as dg

from capacity_assets.orchestration.checks import STANDING_CHECK_JOB
from capacity_assets.orchestration.jobs import run_request
from capacity_assets.orchestration.naming import job_name, schedule_name
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from capacity_assets.orchestration.private.definitions import (
    ASSET_PARTITION_RANGE_END_TAG,
    PARTITION_NAME_TAG,
    SCHEDULE_NAME_TAG,
)
from capacity_assets.periods import Period
from capacity_assets.settings import Settings

# One run's worth. A longer gap is a decision: backfill it.
MOST_CAUGHT_UP = PARTITIONS_PER_RUN
RUNS_LOOKED_AT = 200
STANDING_CHECK_MINUTE = 45


def aggregation_schedules(settings: Settings, periods: Iterable[Period]) -> list[dg.ScheduleDefinition]:
    """Build the schedules; they run from the first start on, until switched off in the UI."""
    return [_schedule(settings, period) for period in periods]


def _schedule(settings: Settings, period: Period) -> dg.ScheduleDefinition:
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
    return dg.ScheduleDefinition(
        name="standing_check_schedule",
        job_name=STANDING_CHECK_JOB,
        cron_schedule=f"{STANDING_CHECK_MINUTE} {settings.schedule_hour} * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Looks once a day for failed or missing partitions and for samples that stopped arriving.",
    )


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
