"""Computes at once the groups that are behind their labels, newest windows first, for a limited time.

What is left is requested by the sensor of late data, as after any other change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.foundation.levels import GROUP
from capacity_assets.foundation.lock_errors import LockHeldError
from capacity_assets.periods import Window

SECONDS_PER_COMMAND = 5
"""How long somebody who declares a label waits at most."""
WINDOWS_AT_ONCE = 100


@dataclass(frozen=True)
class Followed:
    """How many windows of groups were computed, and how many are left."""

    computed: int
    left: int


def follow_labels(
    runner: AggregationTaskRunner, seconds: float | None, on_progress: Callable[[int, int], None] | None = None
) -> Followed:
    """Compute the windows of groups that are stale, for about `seconds` at most; None: all of them.

    `on_progress` is called with the numbers of windows computed and of all. A period at which another run is at work
    is left to that. Raises: as `AggregationService.aggregate`.
    """
    began = time.monotonic()
    stale = [found for found in runner.inspection.stale_windows() if found.level == GROUP.name]
    left: dict[str, list[Window]] = {}
    for found in sorted(stale, key=lambda one: one.window, reverse=True):
        left.setdefault(found.period_type, []).append(found.window)
    # The shorter ones first: longer ones are made of them.
    periods = sorted((runner.service.periods[name] for name in left), key=lambda one: (one.months, one.days))
    computed = 0
    while periods:
        for period in tuple(periods):
            windows = sorted(left[period.name][:WINDOWS_AT_ONCE])
            if not windows or (seconds is not None and time.monotonic() - began >= seconds):
                periods.remove(period)
                continue
            try:
                runner.run_period(period, windows, RunOptions(levels=(GROUP.name,)))
            except LockHeldError:
                periods.remove(period)
                continue
            del left[period.name][:WINDOWS_AT_ONCE]
            computed += len(windows)
            if on_progress:
                on_progress(computed, len(stale))
    return Followed(computed, len(stale) - computed)
