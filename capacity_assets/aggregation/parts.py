"""Which stored windows are read in place of samples: of a quarter its months, of a change the window before.

Pure: from the windows asked for and those that may be taken, what to read. Which may be taken is known to the ledger
(`ledger.current_sums`); how they are read is the business of `stored_states`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Literal

from capacity_assets.periods import Period, Window, adjacent_spans

Source = Literal["days", "stored"]
DAYS: Source = "days"
STORED: Source = "stored"
Part = tuple[str, Window]
"""A stored window: the name of its period, and its days."""


@dataclass(frozen=True)
class Reading:
    """What is read for some windows: stored windows, and the days that none of these covers, in order."""

    parts: tuple[Part, ...] = ()
    days: tuple[Window, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that are read per key, at most."""
        return len(self.parts) + sum(span.days for span in self.days)

    def source_of(self, window: Window) -> Source:
        """Return what a window is read from, which is read from one source."""
        return STORED if any(_overlap(part, window) for _, part in self.parts) else DAYS


@dataclass(frozen=True)
class Parts:
    """The stored windows that may be taken; `periods` is the registry."""

    periods: Mapping[str, Period] = field(default_factory=dict)
    usable: Collection[Part] = ()

    def reading(self, period: Period, windows: Sequence[Window], *, one_source: bool = False) -> Reading:
        """Choose what to read for `windows` and those they are compared with: of each the longest stored windows.

        With `one_source` a window that stored ones do not cover whole is read from its days.
        """
        parts: list[Part] = []
        days: list[Window] = []
        for window, periods in _needed(self.periods, period, windows):
            stored, left = self._cover(window, periods)
            if one_source and left:
                stored, left = [], [window]
            parts += stored
            days += left
        spans = (Window(span[0].start, span[-1].end) for span in adjacent_spans(sorted(days)))
        return Reading(tuple(parts), tuple(spans))

    def _cover(self, window: Window, periods: Sequence[Period]) -> tuple[list[Part], list[Window]]:
        """Cover a window by stored ones of `periods`, the longest first; return these, and the spans that are left."""
        if not periods:
            return [], [window]
        longest, *others = periods
        parts: list[Part] = []
        days: list[Window] = []
        cut = _cut(longest, window)
        for piece in cut or [window]:
            if cut and (longest.name, piece) in self.usable:
                parts.append((longest.name, piece))
            else:
                stored, left = self._cover(piece, others)
                parts += stored
                days += left
        return parts, days


NO_PARTS = Parts()


def candidates(periods: Mapping[str, Period], period: Period, windows: Sequence[Window]) -> set[Part]:
    """Return every stored window that could stand for days of `windows` or of those they are compared with."""
    return {
        (shorter.name, piece)
        for window, shorter_periods in _needed(periods, period, windows)
        for shorter in shorter_periods
        for piece in _cut(shorter, window)
    }


def _needed(
    periods: Mapping[str, Period], period: Period, windows: Sequence[Window]
) -> Iterator[tuple[Window, list[Period]]]:
    """Name each window whose samples are needed, with the periods that its parts may be of, the longest first.

    A window asked for is made of shorter ones, one that is only compared with may be taken as it is stored.
    """
    shorter = sorted(
        (other for other in periods.values() if other.months and other.months < period.months),
        key=lambda other: other.months,
        reverse=True,
    )
    asked_for = set(windows)
    compared = {other for window in windows for other in (period.previous(window), period.year_before(window))}
    for window in sorted(asked_for | compared):
        is_kept = window not in asked_for and window.days > 1
        yield window, [*([period] if is_kept else []), *shorter]


def _overlap(one: Window, other: Window) -> bool:
    return one.start <= other.end and other.start <= one.end


def _cut(period: Period, window: Window) -> tuple[Window, ...]:
    """Return the windows of `period` that make up `window`; none where they do not fit."""
    pieces = period.windows_between(window.start, window.end)
    fits = pieces[0].start == window.start and pieces[-1].end == window.end
    return pieces if fits else ()


def cuts_of(spans: Iterable[Window]) -> list[date]:
    """Return the first day of each span and the first day after it, in order."""
    return [day for span in spans for day in (span.start, span.end + timedelta(days=1))]
