"""What one statement covers: windows, instances, what is read for them, and the parameters that say so.

How statements are executed, and what happens when one fails, is in `runners`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property

from capacity_assets.aggregation.options import DEFAULT_OPTIONS, RunOptions
from capacity_assets.aggregation.parts import NO_PARTS, Parts, Reading, Source, cuts_of
from capacity_assets.aggregation.reduction import Form
from capacity_assets.periods import Period, Window


@dataclass(frozen=True)
class InstanceRef:
    """A registered server as far as aggregation cares."""

    id: int
    name: str
    active: bool = True


@dataclass(frozen=True)
class Work:
    """The work of a computation or of one slice of it: windows in order, and instances.

    `parts` are the stored windows that may be read instead of samples; `untouched` are the first days that
    `Ledger.untouched` returns.
    """

    period: Period
    windows: Sequence[Window]
    instances: Sequence[InstanceRef]
    options: RunOptions = DEFAULT_OPTIONS
    parts: Parts = NO_PARTS
    distributed: bool = False
    untouched: frozenset[date] = frozenset()

    @cached_property
    def reading(self) -> Reading:
        """What is read: stored windows, and the days that these do not cover."""
        reading = self.parts.reading(self.period, self.windows, one_source=self.distributed)
        if self._needs_both(reading) and len(self.windows) > 1:
            # Nodes are not handed a union of the two, and a join is of one window and those it is compared with.
            return NO_PARTS.reading(self.period, self.windows)
        return reading

    def _needs_both(self, reading: Reading) -> bool:
        return self.distributed and bool(reading.parts and reading.days)

    def _sources(self) -> tuple[Source, ...]:
        """Return what the window, the one before and a year before are read from, where nodes read from both."""
        if not self._needs_both(self.reading):
            return ()
        [window] = self.windows
        three = (window, self.period.previous(window), self.period.year_before(window))
        return tuple(self.reading.source_of(one) for one in three)

    @property
    def days_read(self) -> int:
        """How many days are read: with gaps between windows, the one before the first, and a year before.

        Where stored windows are read, each of these counts as one.
        """
        if self.reading.parts:
            return self.reading.rows
        before, year_before = self.period.previous, self.period.year_before
        first, last = before(self.windows[0]).start, self.windows[-1].end
        year_first, year_last = year_before(self.windows[0]).start, year_before(self.windows[-1]).end
        if year_last >= first:
            return (last - min(first, year_first)).days + 1
        return (last - first).days + (year_last - year_first).days + 2

    @property
    def form(self) -> Form:
        """The form of the statement."""
        return Form(
            single=len(self.windows) == 1,
            from_stored=bool(self.reading.parts),
            reads_days=bool(self.reading.days),
            distributed=self.distributed,
            sources=self._sources(),
            one_day=all(window.start == window.end for window in self.windows),
        )

    def parameters(self) -> dict[str, object]:
        """Return the statement's parameters: adjacent windows from the first one read on, and which are asked for."""
        period = self.period
        first, last = period.previous(self.windows[0]), self.windows[-1]
        year_first, year_last = period.year_before(self.windows[0]), period.year_before(last)
        # A single window needs no numbers for those between it and a year before, unless stored windows are numbered.
        unites_states = self.form.from_stored or self.distributed
        begin = first if self.form.single and not unites_states else min(first, year_first)
        windows = period.windows_between(begin.start, last.end)
        asked_for = set(self.windows)
        return {
            "period_type": self.period.name,
            "instance_ids": [instance.id for instance in self.instances],
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "wanted": [window in asked_for for window in windows],
            "last_start": last.start,
            "first_day": first.start,
            "last_day": last.end,
            "year_first": year_first.start,
            "year_last": year_last.end,
            "year_interval": period.year_interval,
            "trend_percent": self.period.trend_percent,
            "untouched_starts": sorted(self.untouched),
            **(self._what_is_read(first.start) if unites_states else {}),
        }

    def _what_is_read(self, first: date) -> dict[str, object]:
        """Name the stored windows that are read, and the days: in two spans, of the year before and from `first` on."""
        days = self.reading.days
        spans = {
            "read": [span for span in days if span.end >= first],
            "read_year": [span for span in days if span.end < first],
        }
        parameters: dict[str, object] = {
            "part_types": [name for name, _ in self.reading.parts],
            "part_starts": [window.start for _, window in self.reading.parts],
            "cuts": cuts_of(days),
        }
        for name, within in spans.items():
            # From a day to the one before it: none.
            parameters[f"{name}_first"] = within[0].start if within else first
            parameters[f"{name}_last"] = within[-1].end if within else first - timedelta(days=1)
        return parameters

    def halves(self) -> tuple[Work, Work] | None:
        """Split by instance as long as there are several, then by window; None for a single computation."""
        for name in ("instances", "windows"):
            several = getattr(self, name)
            if len(several) > 1:
                middle = len(several) // 2
                return replace(self, **{name: several[:middle]}), replace(self, **{name: several[middle:]})
        return None
