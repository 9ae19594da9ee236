"""The one clock: what day it is in the configured time zone.

Whatever needs today's date takes a `Clock`; tests pass a fixed one.
Intervals (durations) do not belong here: they come from `time.perf_counter`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class Clock:
    """Tells the calendar day in `zone`; `now` must return an aware datetime."""

    zone: ZoneInfo
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC)

    def today(self) -> date:
        """Return the present day in the clock's zone, which may differ from the UTC day."""
        return self.local_now().date()

    def local_now(self) -> datetime:
        """Return the present moment in the clock's zone."""
        return self.now().astimezone(self.zone)
