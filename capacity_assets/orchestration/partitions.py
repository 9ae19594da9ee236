"""Public names of assets and jobs, partitions and their mappings, all made from the period registry.

A partition is a window; its key is the window's first day. Windows are defined in `base.periods`.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date

import dagster as dg

from capacity_assets.aggregates.levels import Level, aggregates_name
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Settings

# Where the web server serves the growth reports, and the UI links to them.
REPORTS_PATH = "/capacity/reports"
OWNERS = ["team:dba"]


def asset_name(period: Period, level: Level) -> str:
    """Return the key of an aggregate asset, for example `daily_database_aggregations`."""
    return aggregates_name(period.name, level)


def job_name(period: Period) -> str:
    """Return the name of a period's job, for example `daily_aggregation_job`."""
    return f"{period.name}_aggregation_job"


def schedule_name(period: Period) -> str:
    """Return the name of a period's schedule, for example `daily_aggregation_schedule`."""
    return f"{period.name}_aggregation_schedule"


def pool_name(period: Period) -> str:
    """Return the pool of a period, for example `capacity_daily`; both its assets are in it."""
    return f"capacity_{period.name}"


def schedule_of(settings: Settings, name: str, job: str, cron: str, description: str) -> dg.ScheduleDefinition:
    """Build a schedule that requests a run of a job without partitions, running until switched off in the UI."""
    return dg.ScheduleDefinition(
        name=name,
        job_name=job,
        cron_schedule=cron,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )


PARTITION_FORMAT = "%Y-%m-%d"
SAMPLE_DAY = Period("day", days=1)
# A range run that fails marks all its partitions failed, also those already written. A hundred windows
# a run bound that, and keep three years of days at eleven runs.
PARTITIONS_PER_RUN = 100


def bounded_spans(spans: Iterable[Sequence[Window]]) -> Iterator[Sequence[Window]]:
    """Cut stretches of windows into those that one run computes."""
    for span in spans:
        for first in range(0, len(span), PARTITIONS_PER_RUN):
            yield span[first : first + PARTITIONS_PER_RUN]


def partitions_of(period: Period, settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """Return the partitions of `period`: from the window that holds the start date to the current one."""
    # The first window as a whole: a start inside a quarter would drop that quarter.
    start = period.window_of(settings.start_date).start
    return dg.TimeWindowPartitionsDefinition(
        start=start.strftime(PARTITION_FORMAT),
        fmt=PARTITION_FORMAT,
        cron_schedule=period.cron,
        timezone=settings.timezone,
        end_offset=1,
    )


def sample_days(settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """Return the partitions of the raw tables: one per day."""
    return partitions_of(SAMPLE_DAY, settings)


def days_behind_a_window() -> dg.TimeWindowPartitionMapping:
    """Map a window to the raw days that feed it: its own, and those of the previous window it is compared with.

    The offset counts in windows of the aggregate. Days before the start date do not exist; that is no error.
    """
    return dg.TimeWindowPartitionMapping(start_offset=-1, allow_nonexistent_upstream_partitions=True)


def windows_of(period: Period, partition_keys: Sequence[str]) -> list[Window]:
    """Translate partition keys into windows."""
    return [period.window_of(date.fromisoformat(key)) for key in partition_keys]
