"""Partitions and their mappings, made from the period registry.

A partition is a window; its key is the window's first day. Windows are defined in `periods`.
"""

from collections.abc import Sequence
from datetime import date

import dagster as dg

from capacity_assets.periods import Period, Window
from capacity_assets.settings import Settings

PARTITION_FORMAT = "%Y-%m-%d"
SAMPLE_DAY = Period("day", days=1)
# A range run that fails marks all its partitions failed, also those already written. A hundred windows
# a run bound that, and keep three years of days at eleven runs.
PARTITIONS_PER_RUN = 100


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
