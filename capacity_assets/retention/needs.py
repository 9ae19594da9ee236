"""Which samples must be kept although they are older than the retention: those that windows still read.

Every window that reads a day of them, as its own or for comparison, must be over, computed over the samples as they
are, without a failed server, and its rows must be stored. What is old enough to go at all is said by
`retention`; what is done about it, by `maintenance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection

from capacity_assets.aggregation.ledger import IncompleteWindow, Ledger
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Period, Window
from capacity_assets.retention.rules import KeptSpans
from capacity_assets.storage.partitions import Span, span_of

# A year before a day is 364 to 366 days before; windows that begin sooner do not compare with it.
A_YEAR_LATER = timedelta(days=364)
SLACK = timedelta(days=2)
NODE_SECONDS = 10
"""How long a node may take to say what was changed there: samples may be locked meanwhile."""


@dataclass(frozen=True)
class Needs:
    """What reads samples: the windows of the registered periods, as the ledger knows them."""

    ledger: Ledger
    kept: KeptSpans

    def reason_to_keep(
        self, connection: Connection, level: Level, span: Span, today: date, *, is_locked: bool
    ) -> str | None:
        """Name a window that still needs the samples of `span`, by what the ledger says; or None.

        Where the samples are locked, the queue of changes is not read, which may have to look at them.

        Raises DBAPIError; DatabaseError where a node of a cluster does not say in time what was changed there.
        """
        ask = self.ledger.take_over if is_locked else self.ledger.gather
        ask("What was done before was kept; no further sample was dropped.", NODE_SECONDS)
        undecided = self.ledger.undecided(connection)
        if undecided:
            return undecided
        for period in self.kept.periods.values():
            reading = _reading(period, span)
            if reading[-1].end >= today and reading[-1].start >= self._first(period):
                return f"the {period.name} window from {reading[-1].start} reads them and is not over"
            left = self.ledger.left(connection, period, level, reading)
            if left:
                return self._sentence(period, left[0])
        return None

    def lost_rows(self, connection: Connection, level: Level, span: Span, today: date) -> str | None:
        """Name a window that reads `span` and lacks rows for another reason than retention; raises DBAPIError."""
        for period in self.kept.periods.values():
            stored = [
                window
                for window in _reading(period, span)
                if not self.kept.is_old(level.target, span_of(window.start, period), today)
            ]
            lost = self.ledger.lost_rows(connection, period, level, stored)
            if lost:
                return self._sentence(period, lost)
        return None

    def _sentence(self, period: Period, left: IncompleteWindow) -> str:
        before = " (it lies before CAPACITY_START_DATE)" if left.window.start < self._first(period) else ""
        return f"the {period.name} window from {left.window.start} reads them and {left.reason}{before}"

    def _first(self, period: Period) -> date:
        return period.window_of(self.kept.first_day).start


def _reading(period: Period, span: Span) -> Sequence[Window]:
    """The windows that hold a day of `span`, the one after them, and those of a year later, in order."""
    windows = period.windows_between(span.first, span.last)
    return sorted({*windows, period.following(windows[-1]), *_a_year_later(period, span)})


def _a_year_later(period: Period, span: Span) -> Sequence[Window]:
    """The windows that compare with one of those that hold a day of `span`."""
    later = period.windows_between(span.first + A_YEAR_LATER, span.last + A_YEAR_LATER + SLACK)
    return [window for window in later if period.year_before(window).start <= span.last]
