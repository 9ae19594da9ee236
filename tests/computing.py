"""Computes the windows of a range of days as assets and commands do."""

from __future__ import annotations

from datetime import date

from capacity_assets.aggregates.runs import SCOPE_ALL, RunOptions, RunSummary
from capacity_assets.aggregates.service import AggregationService


def compute_windows(
    service: AggregationService,
    period: str,
    first: date,
    last: date,
    *,
    scope: str = SCOPE_ALL,
    overwrite: bool = False,
) -> RunSummary:
    """Compute every window of the period that contains a day from `first` to `last`."""
    windows = service.period(period).windows_between(first, last)
    return service.aggregate(period, windows, RunOptions(service.levels_of(scope), overwrite=overwrite))
