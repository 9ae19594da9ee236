"""What one statement covers: windows, instances, what is read for them, and the parameters that say so.

Of a window asked for, stored shorter windows are read in place of samples where the ledger says that they hold what
the samples give (`Ledger.known`): of a quarter its months, of groups also days. A window that is only compared
with is read from its stored rows; where the ledger does not vouch for these, its samples are read as well. How the
statement is executed, and what happens when it fails, is in `runners`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property

from capacity_assets.aggregation.options import DEFAULT_OPTIONS, RunOptions
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Period, Window, adjacent_spans

Part = tuple[str, Window]
"""A stored window: the name of its period, and its days."""


@dataclass(frozen=True)
class InstanceRef:
    """A registered server as far as aggregation cares."""

    id: int
    name: str
    active: bool = True


@dataclass(frozen=True)
class Parts:
    """The stored windows that may be read in place of samples; `periods` are theirs, the longest first."""

    periods: Sequence[Period] = ()
    usable: Collection[Part] = ()


NO_PARTS = Parts()


@dataclass(frozen=True)
class Work:
    """The work of a computation or of one slice of it: windows in order, and instances.

    `computed` are the first days of those windows that were computed before. `gone` are windows whose stored rows stand
    for them because their days are not all left, each with the number of these rows. No sample is older than `since`.
    """

    period: Period
    windows: Sequence[Window]
    instances: Sequence[InstanceRef]
    options: RunOptions = DEFAULT_OPTIONS
    parts: Parts = NO_PARTS
    computed: frozenset[date] = frozenset()
    gone: Mapping[Window, int] = field(default_factory=dict)
    since: date = date.min

    @cached_property
    def reading(self) -> tuple[list[Part], list[Window]]:
        """The stored shorter windows that are read, and the spans of days whose samples are read, in order."""
        parts: list[Part] = []
        days: list[Window] = []
        asked_for, unread = set(self.windows), self._unread
        for window in sorted(asked_for | compared(self.period, self.windows)):
            if window in unread:
                continue
            stored, left = self._own_row(window) or self._cover(window, self.parts.periods)
            parts += stored
            days += [Window(max(span.start, self.since), span.end) for span in left if span.end >= self.since]
        return parts, [Window(span[0].start, span[-1].end) for span in adjacent_spans(sorted(days))]

    @property
    def _unread(self) -> set[Window]:
        """The windows that are compared with and read from their stored rows alone."""
        others = compared(self.period, self.windows).difference(self.windows)
        return {one for one in others if (self.period.name, one) in self.parts.usable or one in self.gone}

    def _own_row(self, window: Window) -> tuple[list[Part], list[Window]] | None:
        """Cover a window by its own stored row: only one that it is compared with has changed. A day keeps no sums."""
        own = (self.period.name, window)
        is_asked_for = self.options.overwrite or self.options.recompute or window.start == window.end
        return None if is_asked_for or own not in self.parts.usable else ([own], [])

    def _cover(self, window: Window, periods: Sequence[Period]) -> tuple[list[Part], list[Window]]:
        """Cover a window by stored ones of `periods`, the longest first; return these, and the spans that are left."""
        if not periods:
            return [], [window]
        longest, *others = periods
        parts: list[Part] = []
        days: list[Window] = []
        cut = _cut(longest, window)
        for piece in cut or [window]:
            if cut and (longest.name, piece) in self.parts.usable:
                parts.append((longest.name, piece))
            else:
                stored, left = self._cover(piece, others)
                parts += stored
                days += left
        return parts, days

    @property
    def rows_read(self) -> int:
        """Rows that are read per key, at most, of samples and of shorter windows; at least one."""
        parts, days = self.reading
        return max(1, len(parts) + sum(span.days for span in days))

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statement, `states.Parameters`."""
        period = self.period
        first, last = period.previous(self.windows[0]), self.windows[-1]
        year_first, year_last = period.year_before(self.windows[0]), period.year_before(last)
        asked_for = set(self.windows)
        windows = sorted(asked_for | compared(period, self.windows))
        parts, days = self.reading
        return {
            "period": period.name,
            "instance_ids": [instance.id for instance in self.instances],
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "wanted": [window in asked_for for window in windows],
            "wanted_starts": [window.start for window in self.windows],
            "wanted_first": self.windows[0].start,
            "wanted_last": last.start,
            "before_first": first.start,
            "year_first": year_first.start,
            "year_last": year_last.start,
            "year_interval": period.year_interval,
            "part_types": [name for name, _ in parts],
            "part_starts": [window.start for _, window in parts],
            "cuts": [day for span in days for day in (span.start, span.end + timedelta(days=1))],
            **_span("read", [span for span in days if span.end >= first.start], first.start),
            **_span("read_year", [span for span in days if span.end < first.start], first.start),
            "trend_percent": period.trend_percent,
            "windows_per_year": period.windows_per_year,
            "computed_starts": sorted(self.computed),
            "unread_starts": sorted(window.start for window in self._unread),
            "overwrite": self.options.overwrite,
        }

    def halves(self, *, by_server: bool = True) -> tuple[Work, Work] | None:
        """Split by instance as long as there are several, then by window; None for a single computation."""
        for name in ("instances", "windows") if by_server else ("windows",):
            several = getattr(self, name)
            if len(several) > 1:
                middle = len(several) // 2
                return replace(self, **{name: several[:middle]}), replace(self, **{name: several[middle:]})
        return None


def candidates(shorter: Sequence[Period], period: Period, windows: Sequence[Window]) -> set[Part]:
    """Return every stored window that could stand for days of `windows` or of those they are compared with."""
    others = compared(period, windows)
    return {(period.name, window) for window in others} | {
        (other.name, piece) for window in {*windows, *others} for other in shorter for piece in _cut(other, window)
    }


def shorter_periods(periods: Mapping[str, Period], period: Period, level: Level) -> list[Period]:
    """Return those of the registered periods that a window of `period` may be made of, the longest first.

    A stored day of a server is read no faster than its sample; one of groups stands for the samples of all servers.
    """
    with_days = not level.has_servers and period.days != 1
    shorter = (
        other for other in periods.values() if 0 < other.months < period.months or (with_days and other.days == 1)
    )
    return sorted(shorter, key=lambda other: other.months, reverse=True)


def compared(period: Period, windows: Sequence[Window]) -> set[Window]:
    """Return the windows that `windows` are compared with."""
    return {other for window in windows for other in (period.previous(window), period.year_before(window))}


def _cut(period: Period, window: Window) -> tuple[Window, ...]:
    """Return the windows of `period` that make up `window`; none where they do not fit."""
    pieces = period.windows_between(window.start, window.end)
    fits = pieces[0].start == window.start and pieces[-1].end == window.end
    return pieces if fits else ()


def _span(name: str, spans: Sequence[Window], nothing: date) -> dict[str, date]:
    """Name the first and last day of spans; of none, a day and the one before it."""
    first, last = (spans[0].start, spans[-1].end) if spans else (nothing, nothing - timedelta(days=1))
    return {f"{name}_first": first, f"{name}_last": last}
