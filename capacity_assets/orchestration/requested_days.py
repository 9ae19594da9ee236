"""What becomes of each day that a run of the raw assets was asked for: measured, kept, or left without samples.

Only today can be measured. A day gone by that has samples keeps them and counts as done, so that a backfill over all
days, or a second look at a good one, harms nothing. How servers are measured is the business of `collection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from capacity_assets.collection.observing import days_with_samples
from capacity_assets.collection.results import CollectionSummary
from capacity_assets.collection.service import CollectionService
from capacity_assets.collection.shares import Share
from capacity_assets.foundation.levels import SERVER_LEVELS


@dataclass(frozen=True)
class RequestedDays:
    """The days that were asked for, which of them hold samples taken before, and what was measured for today."""

    days: tuple[date, ...]
    kept: frozenset[date]
    summary: CollectionSummary | None

    @property
    def missing(self) -> list[date]:
        """The days that have no samples after the run either."""
        return [day for day in self.days if day not in self.kept and not self.is_measured(day)]

    def is_measured(self, day: date) -> bool:
        """Whether servers were measured for this day."""
        return self.summary is not None and self.summary.day == day and not self.summary.is_empty


def measure_requested(
    service: CollectionService, keys: Sequence[str], *, again: bool, share: Share | None = None
) -> RequestedDays:
    """Measure all servers or a share if today is among the days, and find which others have samples.

    Raises:
        ValidationError: the only day is not today and has no samples.
        LockHeldError, DatabaseError: as `CollectionService.collect`.
    """
    days = tuple(sorted(date.fromisoformat(key) for key in keys))
    today = service.clock.today()
    kept = _days_with_samples(service, days)
    measurable = today in days and (today not in kept or service.has_servers())
    if not measurable and kept.issuperset(days):
        return RequestedDays(days, kept, None)
    day = today if measurable else days[0]
    summary = service.collect(day, again=again, share=share) if measurable or len(days) == 1 else None
    # Samples of today that others have taken are there also where every server of ours failed.
    measured = {today} if summary is not None and not summary.is_empty else set[date]()
    return RequestedDays(days, kept - measured, summary)


def _days_with_samples(service: CollectionService, days: Sequence[date]) -> frozenset[date]:
    found = [
        set(days_with_samples(service.engine, level.source, days[0], days[-1] + timedelta(days=1)))
        for level in SERVER_LEVELS.values()
    ]
    return frozenset(set.intersection(*found) & set(days))
