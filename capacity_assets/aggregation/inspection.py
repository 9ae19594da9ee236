"""`Inspection`: reads the state of windows. Nothing here computes or writes.

Checks of a run, sizes and movers, and what the ledger knows: computed, stale and incomplete windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine

from capacity_assets.aggregation.ledger import PATIENCE_SECONDS, ComputedWindow, IncompleteWindow, Ledger, StaleWindow
from capacity_assets.aggregation.movers import WindowSizes, window_sizes
from capacity_assets.aggregation.partition_range import PartitionRange
from capacity_assets.aggregation.quality import CheckOutcome, CheckScope, run_checks, servers_stored
from capacity_assets.aggregation.results import RunSummary
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.periods import Period, Window
from capacity_assets.variables import DEFAULT_JUMP_PERCENT


@dataclass(frozen=True)
class Inspection:
    """Reads a capacity database within a partition range; a jump of `jump_percent` is reported by the checks.

    Each method raises DatabaseError where the database fails or lacks the schema; what was written is kept.
    """

    engine: Engine
    periods: Mapping[str, Period]
    partitions: PartitionRange
    ledger: Ledger
    jump_percent: int = DEFAULT_JUMP_PERCENT

    def run_checks(self, summary: RunSummary, level: str) -> list[CheckOutcome]:
        """Run the checks of one level: the windows of the run, and every window for checks of severity error."""
        parts = summary.of_level(level).parts
        windows = [Window(part.period_start, part.period_end) for part in parts]
        period, today = self.periods[parts[0].period_type], self.partitions.clock.today()
        every = self.partitions.every_window(period)
        failed = self.ledger.failed_instances(period, LEVELS[level], every)
        scope = CheckScope(period.name, LEVELS[level], windows, today, self.jump_percent, every)
        return [servers_stored(summary.of_level(level), failed), *run_checks(self.engine, scope)]

    def sizes(self, summary: RunSummary, level: str) -> dict[date, WindowSizes]:
        """Read what the windows of a run add up to at one level, and their largest changes, by first day."""
        parts = summary.of_level(level).parts
        windows = [Window(part.period_start, part.period_end) for part in parts]
        return window_sizes(self.engine, self.periods[parts[0].period_type], LEVELS[level], windows)

    def stale_windows(self) -> list[StaleWindow]:
        """Return the computed windows of registered periods whose samples changed since, within the partition range."""
        self._refuse_an_unfit_database()
        known = [stale for stale in self.ledger.stale() if stale.period_type in self.periods]
        return [stale for stale in known if self.partitions.contains(self.periods[stale.period_type], stale.window)]

    def outdated_windows(self) -> list[tuple[str, str, IncompleteWindow]]:
        """Return the computed windows within the partition range that are out of date, with period and level.

        This includes open windows, and windows whose rows another session may have written.
        """
        self._refuse_an_unfit_database()
        return [
            (name, level, found)
            for name, level, found in self.ledger.outdated()
            if name in self.periods and self.partitions.contains(self.periods[name], found.window)
        ]

    def computed_windows(self, period: Period, level: str) -> list[ComputedWindow]:
        """Return the windows that were computed, within the partition range."""
        self._refuse_an_unfit_database()
        found = self.ledger.computed(period, LEVELS[level])
        return [computed for computed in found if self.partitions.contains(period, computed.window)]

    def last_computation(self) -> str:
        """Return a token that changes when a further window is computed."""
        self._refuse_an_unfit_database()
        return self.ledger.last_computation()

    def incomplete_windows(
        self, period: Period, level: str, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[IncompleteWindow]:
        """Return the windows that are due by now and missing, unfinished, failed in part or stale.

        Samples that changed less than `patience_seconds` ago make no window stale: they are being followed up.
        """
        self._refuse_an_unfit_database()
        due = self.partitions.due_windows(period)
        return self.ledger.incomplete_windows(period, LEVELS[level], due, patience_seconds=patience_seconds)

    def _refuse_an_unfit_database(self) -> None:
        refuse_an_unfit_database(self.engine, self.partitions.clock.zone, kept="Nothing was written.")
