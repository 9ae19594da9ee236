"""`AggregationTaskRunner`: what every door goes through, be it an asset, a task function or a command.

It checks that the schema is there, keeps windows inside the partition range, calls the service, and logs
one line a run. Which day it is and where partitions begin are handed in. While it writes it holds the lock
of the period, so that no writer outside the platform works on the same rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from sqlalchemy import Engine

from capacity_assets.aggregation.errors import CapacityError, ValidationError
from capacity_assets.aggregation.ledger import PATIENCE_SECONDS, ComputedWindow, OpenWindow, StaleWindow
from capacity_assets.aggregation.levels import LEVELS
from capacity_assets.aggregation.locks import CapacityLockManager
from capacity_assets.aggregation.maintenance import TableMaintenance
from capacity_assets.aggregation.maintenance_report import MaintenanceReport
from capacity_assets.aggregation.movers import WindowSizes, window_sizes
from capacity_assets.aggregation.quality import CheckOutcome, CheckScope, run_checks, servers_stored
from capacity_assets.aggregation.readiness import refuse_an_unfit_database
from capacity_assets.aggregation.results import AggregationStatus, PeriodSummary, RunSummary
from capacity_assets.aggregation.retention import Retention, parse_retention
from capacity_assets.aggregation.service import DEFAULT_OPTIONS, AggregationService, RunOptions
from capacity_assets.clock import Clock
from capacity_assets.periods import Period, Window
from capacity_assets.settings import DEFAULT_JUMP_PERCENT, DEFAULT_RETENTION_DAYS, DEFAULT_SCHEDULE_HOUR
from capacity_assets.storage.legacy_runs import EndedRun, tell_legacy_tables

logger = logging.getLogger("capacity_assets")

_LOG_LEVELS = {
    AggregationStatus.COMPLETED: logging.INFO,
    AggregationStatus.SKIPPED: logging.INFO,
    AggregationStatus.FAILED: logging.ERROR,
}


@dataclass(frozen=True)
class RunRange:
    """What is configured: the first day with samples, the jump that is named, the schedules' hour, how long to keep.

    With `tell_legacy` each run is told to the legacy application's table of runs.
    """

    first_day: date
    jump_percent: int = DEFAULT_JUMP_PERCENT
    schedule_hour: int = DEFAULT_SCHEDULE_HOUR
    retention: Retention = field(default_factory=lambda: parse_retention(DEFAULT_RETENTION_DAYS))
    tell_legacy: bool = False


class AggregationTaskRunner:
    """Runs periods; see the module's text for what it adds to the service."""

    def __init__(self, service: AggregationService, locks: CapacityLockManager, clock: Clock, limits: RunRange) -> None:
        """Run on `service` under `locks`, within `limits`; `clock` tells which windows are current."""
        self.service = service
        self._locks = locks
        self._clock = clock
        self._limits = limits

    @property
    def engine(self) -> Engine:
        """Where the figures lie, for looking at them."""
        return self._locks.engine

    @property
    def today(self) -> date:
        """The present day in the configured zone."""
        return self._clock.today()

    def run_period(
        self, period: str | Period, windows: Iterable[Window] | None = None, options: RunOptions = DEFAULT_OPTIONS
    ) -> RunSummary:
        """Aggregate `windows` of one period, or the scheduled one, which is skipped where no partition exists yet.

        Raises:
            ValidationError: unknown period or level, or a window outside the partition range.
            NotFoundError: an instance id is not registered.
            DatabaseError: the database failed or the schema is missing.
            LockHeldError, LockLostError, LockUnavailableError: as the texts say.
        """
        chosen = self.service.period(period)
        wanted = [chosen.scheduled(self._clock.today())] if windows is None else list(windows)
        if windows is None and wanted[0].start < self._first_window(chosen).start:
            parts = (PeriodSummary(chosen.name, level, wanted[0].start, wanted[0].end) for level in options.levels)
            return RunSummary(tuple(parts))
        self._refuse_windows_outside_the_range(chosen, wanted)
        self._refuse_an_unfit_database()
        return self._run(chosen, wanted, options)

    def run_each(
        self, work: Iterable[tuple[Period, Iterable[Window] | None]], options: RunOptions = DEFAULT_OPTIONS
    ) -> tuple[RunSummary, tuple[CapacityError, ...]]:
        """Run each period on its own, so that the trouble of one hides none of the others; return both."""
        run, troubles = RunSummary(), []
        for period, windows in work:
            try:
                run += self.run_period(period, windows, options)
            except CapacityError as error:
                logger.error("%s", error)  # noqa: TRY400 -- the text says all; the cause would hold the statement
                troubles.append(error)
        return run, tuple(troubles)

    def scheduled_work(self, periods: Sequence[str] | None) -> list[tuple[Period, None]]:
        """Name the scheduled window of each period, or of all.

        Raises:
            ValidationError: an unknown period.
        """
        names = self.service.period_names if periods is None else periods
        return [(self.service.period(name), None) for name in names]

    def run_checks(self, summary: RunSummary, level: str) -> list[CheckOutcome]:
        """Check what a run has written at one level.

        Raises:
            DatabaseError: the database failed; what was written was kept.
        """
        parts = summary.of_level(level).parts
        windows = [Window(part.period_start, part.period_end) for part in parts]
        scope = CheckScope(parts[0].period_type, LEVELS[level], windows, self._clock.today(), self._limits.jump_percent)
        return [servers_stored(summary.of_level(level)), *run_checks(self.engine, scope)]

    def sizes(self, summary: RunSummary, level: str) -> dict[date, WindowSizes]:
        """Read what the windows of a run add up to at one level, and their largest changes, by first day.

        Raises:
            DatabaseError: the database failed; what was written was kept.
        """
        parts = summary.of_level(level).parts
        windows = [Window(part.period_start, part.period_end) for part in parts]
        period = self.service.period(parts[0].period_type)
        return window_sizes(self.engine, period, LEVELS[level], windows)

    def maintain(self, *, dry_run: bool = False) -> MaintenanceReport:
        """Keep partitions ahead and apply retention; in a dry run only say what would be done.

        Raises:
            DatabaseError: the database failed, or the schema is missing; what was done before is kept.
        """
        self._refuse_an_unfit_database()
        return self.maintenance().run(self._clock.today(), dry_run=dry_run)

    def prepare_tables(self) -> MaintenanceReport:
        """Add the partitions that are wanted as of today, in any zone; the schema is there. Raises as `maintain`."""
        return self.maintenance().prepare(self._clock.today())

    def convert_tables(self, tell: Callable[[str], None], *, dry_run: bool = False) -> MaintenanceReport:
        """Make unpartitioned tables partitioned; `tell` hears of each step.

        Raises:
            DatabaseError: as `maintain`; the same call continues.
            SchemaProblemsError: something belongs to a table that would not follow; nothing was changed.
        """
        self._refuse_an_unfit_database()
        return self.maintenance(tell).convert(self._clock.today(), dry_run=dry_run)

    def maintenance(self, tell: Callable[[str], None] = logger.info) -> TableMaintenance:
        """Return what maintains the tables of this database."""
        periods = {name: self.service.period(name) for name in self.service.period_names}
        limits = self._limits
        return TableMaintenance(self.engine, limits.first_day, limits.retention, periods, tell)

    def stale_windows(self) -> list[StaleWindow]:
        """Return the computed windows whose samples changed since, of registered periods, within the partition range.

        Raises:
            DatabaseError: the database failed, or the schema is missing; nothing is lost.
        """
        self._refuse_an_unfit_database()
        known = [stale for stale in self.service.ledger.stale() if stale.period_type in self.service.period_names]
        return [stale for stale in known if self._is_inside(self.service.period(stale.period_type), stale.window)]

    def computed_windows(self, period: str | Period, level: str) -> list[ComputedWindow]:
        """Return the windows that were computed, within the partition range.

        Raises:
            DatabaseError: the database failed, or the schema is missing.
        """
        chosen = self.service.period(period)
        self._refuse_an_unfit_database()
        found = self.service.ledger.computed(chosen, LEVELS[level])
        return [computed for computed in found if self._is_inside(chosen, computed.window)]

    def last_computation(self) -> str:
        """Return a text that differs as soon as a further window is computed.

        Raises:
            DatabaseError: the database failed, or the schema is missing.
        """
        self._refuse_an_unfit_database()
        return self.service.ledger.last_computation()

    def left_windows(
        self, period: str | Period, level: str, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[OpenWindow]:
        """Return the windows that are due by now and missing, unfinished, failed in part or stale.

        Samples that changed less than `patience_seconds` ago make no window stale: that is being followed.

        Raises:
            DatabaseError: the database failed, or the schema is missing.
        """
        chosen = self.service.period(period)
        self._refuse_an_unfit_database()
        due = self.due_windows(chosen)
        return self.service.ledger.open_windows(chosen, LEVELS[level], due, patience_seconds=patience_seconds)

    def due_windows(self, period: Period) -> list[Window]:
        """Return the windows from the first partition to the last one whose schedule has ticked by now."""
        now = self._clock.local_now()
        ticked = now.date() if now.hour >= self._limits.schedule_hour else now.date() - timedelta(days=1)
        first, last = self._first_window(period), period.scheduled(ticked)
        return list(period.windows_between(first.start, last.end)) if first <= last else []

    def windows_between(self, period: str | Period, first_day: date | None, last_day: date | None) -> list[Window]:
        """Return the windows that hold a day of the range; open ends are the first partition and today.

        Raises:
            ValidationError: wrong order, or days outside the partition range.
        """
        chosen = self.service.period(period)
        first_window, last_window = self._first_window(chosen), chosen.current(self._clock.today())
        first, last = first_day or self._limits.first_day, last_day or last_window.end
        for day in (first, last):
            # Before any window is built: a mistyped year would build millions.
            if not first_window.start <= day <= last_window.end:
                raise ValidationError(f"{day} {self._outside(chosen)}")
        return list(self.service.windows_between(chosen, first, last))

    def _first_window(self, period: Period) -> Window:
        return period.window_of(self._limits.first_day)

    def _is_inside(self, period: Period, window: Window) -> bool:
        return self._first_window(period).start <= window.start <= period.current(self._clock.today()).start

    def _outside(self, period: Period) -> str:
        first, last = self._first_window(period), period.current(self._clock.today())
        return (
            f"lies outside the {period.name} partition range: the first starts on {first.start} "
            f"(CAPACITY_START_DATE is {self._limits.first_day}), the current one on {last.start}. Nothing was written."
        )

    def _run(self, period: Period, windows: Sequence[Window], options: RunOptions) -> RunSummary:
        if options.dry_run:
            return self.service.aggregate(period, windows, options)
        started_at = self._clock.local_now()
        try:
            with self._locks.job_lock(period.name) as lock:
                guarded = replace(options, watch=replace(options.watch, guard=lock.ensure_held))
                summary = self.service.aggregate(period, windows, guarded)
        except CapacityError as error:
            self._tell_legacy(period, windows, options, started_at, error)
            raise
        levels = " and ".join(options.levels)
        logger.log(_LOG_LEVELS[summary.status], "%s %s aggregates, %s", period.name, levels, summary.message)
        self._tell_legacy(period, windows, options, started_at, summary)
        return summary

    def _tell_legacy(
        self,
        period: Period,
        windows: Sequence[Window],
        options: RunOptions,
        started_at: datetime,
        outcome: RunSummary | CapacityError,
    ) -> None:
        """Enter a run over all servers in the legacy application's table, if that is wanted."""
        if not self._limits.tell_legacy or options.instance_ids is not None:
            return
        what = "" if len(options.levels) > 1 else f"{options.levels[0]} "
        span = f"{windows[0].start}" if len(windows) == 1 else f"{windows[0].start} to {windows[-1].end}"
        total = failed = 0
        if isinstance(outcome, RunSummary):
            message, is_failed = outcome.message, outcome.status is AggregationStatus.FAILED
            total = max(part.total_instances for part in outcome.parts)
            # Each window and level counts its own; a server may have failed in several.
            failed = min(total, sum(part.failed_instances for part in outcome.parts))
        else:
            message, is_failed = str(outcome), True
        name = f"{period.name} {what}aggregates, {span}"
        tell_legacy_tables(self.engine, EndedRun(name, started_at, total, failed, message, is_failed=is_failed))

    def _refuse_windows_outside_the_range(self, period: Period, windows: Sequence[Window]) -> None:
        outside = [window for window in windows if not self._is_inside(period, window)]
        if outside:
            raise ValidationError(f"The window from {outside[0].start} to {outside[0].end} {self._outside(period)}")

    def _refuse_an_unfit_database(self) -> None:
        refuse_an_unfit_database(self.engine, self._clock.zone, kept="Nothing was written.")
