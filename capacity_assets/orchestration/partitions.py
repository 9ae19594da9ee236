"""The partitions of assets, and runs of several of them.

A partition is a window; its key is the window's first day. Windows are defined in `base.periods`. Partitions of the
tables in PostgreSQL are in `database.partitions`.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

import dagster as dg

from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.private import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

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


def days_behind_a_window() -> dg.TimeWindowPartitionMapping:
    """Map a window to its raw days: its own, and those of the previous window, with which it is compared.

    The offset counts in windows of the aggregate. Days before the start date do not exist, and are left out.
    """
    return dg.TimeWindowPartitionMapping(start_offset=-1, allow_nonexistent_upstream_partitions=True)


def windows_of(period: Period, partition_keys: Sequence[str]) -> list[Window]:
    """Translate partition keys into windows."""
    return [period.window_of(date.fromisoformat(key)) for key in partition_keys]


def bounded_spans(spans: Iterable[Sequence[Window]]) -> Iterator[Sequence[Window]]:
    """Split ranges of windows into those that one run computes."""
    for span in spans:
        yield from (span[first : first + PARTITIONS_PER_RUN] for first in range(0, len(span), PARTITIONS_PER_RUN))


def range_tags(windows: Sequence[Window]) -> dict[str, str]:
    """Return the tags that make one run of the windows from the first to the last."""
    return {ASSET_PARTITION_RANGE_START_TAG: windows[0].key, ASSET_PARTITION_RANGE_END_TAG: windows[-1].key}


def run_request(run_key: str, windows: Sequence[Window], **more: Any) -> dg.RunRequest:
    """Request the windows from the first to the last in one run; `run_key` makes a repeated tick request it once."""
    if len(windows) == 1:
        return dg.RunRequest(run_key, partition_key=windows[0].key, **more)
    tags = {**more.pop("tags", {}), **range_tags(windows)}
    return dg.RunRequest(run_key, tags=tags, **more)
