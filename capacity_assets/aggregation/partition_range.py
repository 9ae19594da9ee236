"""`PartitionRange`: which windows exist, from the first day with samples to the current window.

Calendar arithmetic belongs to `periods`; Dagster's partition definitions are built in `orchestration.partitions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from capacity_assets.clock import Clock
from capacity_assets.errors import ValidationError
from capacity_assets.periods import Period, Window
from capacity_assets.variables import DEFAULT_SCHEDULE_HOUR


@dataclass(frozen=True)
class PartitionRange:
    """The windows that have a partition; without `first_day` no window lies outside."""

    clock: Clock
    first_day: date | None = None
    schedule_hour: int = DEFAULT_SCHEDULE_HOUR

    def contains(self, period: Period, window: Window) -> bool:
        """Whether the window has a partition."""
        first = self._first_start(period)
        return first is None or first <= window.start <= self._last(period).start

    def is_before(self, period: Period, window: Window) -> bool:
        """Whether the window lies before the first partition."""
        first = self._first_start(period)
        return first is not None and window.start < first

    def refuse_windows_outside(self, period: Period, windows: Sequence[Window]) -> None:
        """Refuse windows that have no partition: raises ValidationError, whose text names the first of them."""
        outside = [window for window in windows if not self.contains(period, window)]
        if outside:
            raise ValidationError(f"The window from {outside[0].start} to {outside[0].end} {self._outside(period)}")

    def windows_between(self, period: Period, first_day: date | None, last_day: date | None) -> list[Window]:
        """Return the windows that hold a day of the range; open ends are the first partition and today.

        Raises ValidationError: wrong order, or days outside the partition range.
        """
        first, last = first_day or self.first_day, last_day or self._last(period).end
        if first is None:
            raise ValidationError("The first day is missing. Nothing was written.")
        earliest = self._first_start(period) or first
        for day in (first, last):
            # Before any window is built: a mistyped year would build millions.
            if not earliest <= day <= self._last(period).end:
                raise ValidationError(f"{day} {self._outside(period)}")
        try:
            return list(period.windows_between(first, last))
        except ValueError as error:
            raise ValidationError(f"{error}. Nothing was written.") from error

    def window_holding(self, period: Period, day: date | None) -> Window:
        """Return the window of a day, by default the last complete one; raises ValidationError outside the range."""
        day = day or period.last(self.clock.today()).start
        [window] = self.windows_between(period, day, day)
        return window

    def every_window(self, period: Period) -> list[Window]:
        """Return the windows that have a partition; empty if there is no first day."""
        first, last = self._first_start(period), self._last(period)
        return [] if first is None or first > last.start else list(period.windows_between(first, last.end))

    def due_windows(self, period: Period) -> list[Window]:
        """Return the windows from the first partition to the last one whose schedule has ticked by now."""
        now = self.clock.local_now()
        ticked = now.date() if now.hour >= self.schedule_hour else now.date() - timedelta(days=1)
        first, last = self._first_start(period), period.scheduled(ticked)
        return [] if first is None or first > last.start else list(period.windows_between(first, last.end))

    def _first_start(self, period: Period) -> date | None:
        return None if self.first_day is None else period.window_of(self.first_day).start

    def _last(self, period: Period) -> Window:
        return period.current(self.clock.today())

    def _outside(self, period: Period) -> str:
        configured = f"(CAPACITY_START_DATE is {self.first_day})"
        return (
            f"lies outside the {period.name} partition range: the first starts on {self._first_start(period)} "
            f"{configured}, the current one on {self._last(period).start}. Nothing was written."
        )
