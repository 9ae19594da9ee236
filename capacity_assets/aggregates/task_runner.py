"""`AggregationTaskRunner` runs periods for assets, tasks and commands, and reports the state of their windows.

The runner chooses the windows that are due, runs periods through the service, logs one line per run, and if configured,
enters runs in the table of the legacy application. The service takes locks and writes. `follow_labels` computes stale
groups for a limited time; the sensor of late data requests the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime

from capacity_assets.aggregates.checks import CheckOutcome, CheckScope, run_checks, servers_stored
from capacity_assets.aggregates.ledger import PATIENCE_SECONDS, ComputedWindow, IncompleteWindow, Ledger, StaleWindow
from capacity_assets.aggregates.levels import GROUP, LEVELS
from capacity_assets.aggregates.runs import DEFAULT_OPTIONS, PeriodSummary, RunOptions, RunSummary
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import AggregationStatus, CapacityError, DatabaseError, ValidationError
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import DEFAULT_JUMP_PERCENT
from capacity_assets.database.legacy_tables import record_legacy_run
from capacity_assets.database.locks import LockHeldError
from capacity_assets.database.schema import refuse_an_unfit_database

logger = logging.getLogger("capacity_assets")


@dataclass(frozen=True)
class AggregationTaskRunner:
    """Runs the periods of a service, and answers questions about windows within its partition range.

    Checks report jumps above `jump_percent`. With `records_legacy_runs` each run is entered in the legacy table of
    runs. Methods that answer questions raise DatabaseError if the database fails or lacks the schema.
    """

    service: AggregationService
    _: KW_ONLY
    jump_percent: int = DEFAULT_JUMP_PERCENT
    records_legacy_runs: bool = False

    def run_period(
        self, period: str | Period, windows: Iterable[Window] | None = None, options: RunOptions = DEFAULT_OPTIONS
    ) -> RunSummary:
        """Aggregate `windows` of one period, or the scheduled window, which is skipped if it has no partition yet.

        Raises: as `AggregationService.aggregate`.
        """
        service = self.service
        chosen = service.period(period)
        if windows is None:
            due = chosen.scheduled(service.clock.today())
            if service.partitions.is_before(chosen, due):
                return RunSummary(
                    tuple(PeriodSummary(chosen.name, name, due.start, due.end) for name in options.levels)
                )
            windows = [due]
        wanted = list(windows)
        started_at = service.clock.local_now()
        try:
            summary = service.aggregate(chosen, wanted, options)
        except CapacityError as error:
            if not isinstance(error, ValidationError) and not _was_never_begun(error):
                self._record_legacy_run(chosen, wanted, options, started_at, error)
            raise
        if not options.dry_run:
            *first, last = options.levels
            levels = f"{', '.join(first)} and {last}" if first else last
            severity = logging.ERROR if summary.status is AggregationStatus.FAILED else logging.INFO
            logger.log(severity, "%s %s aggregates, %s", chosen.name, levels, summary.message)
        self._record_legacy_run(chosen, wanted, options, started_at, summary)
        return summary

    def run_each(
        self, work: Iterable[tuple[Period, Iterable[Window] | None]], options: RunOptions = DEFAULT_OPTIONS
    ) -> tuple[RunSummary, tuple[CapacityError, ...]]:
        """Run each period on its own, so that an error in one does not stop the others; return summary and errors."""
        run, troubles = RunSummary(), []
        for period, windows in work:
            try:
                run += self.run_period(period, windows, options)
            except CapacityError as error:
                logger.error("%s", error)  # noqa: TRY400 -- the cause would show the statement
                troubles.append(error)
        return run, tuple(troubles)

    def scheduled_work(self, periods: Sequence[str] | None) -> list[tuple[Period, None]]:
        """Return work for `run_each`: the scheduled window of each period, or of all; raises ValidationError."""
        names = self.service.period_names if periods is None else periods
        return [(self.service.period(name), None) for name in names]

    def run_checks(self, summary: RunSummary, level: str) -> list[CheckOutcome]:
        """Run the checks of one level: the windows of the run, and for checks of severity error others that fail."""
        of_level, partitions = summary.of_level(level), self.service.partitions
        windows = [Window(each.period_start, each.period_end) for each in of_level.summaries]
        period = self.service.period(of_level.summaries[0].period_type)
        every = partitions.every_window(period)
        failed = self.service.ledger.failed_instances(period, LEVELS[level], every)
        scope = CheckScope(period.name, LEVELS[level], windows, partitions.clock.today(), self.jump_percent, every)
        return [*servers_stored(of_level, failed), *run_checks(self.service.engine, scope)]

    def stale_windows(self) -> list[StaleWindow]:
        """Return the computed windows of registered periods whose samples changed since, within the partition range."""
        return [stale for stale in self._ledger().stale() if self._has_partition(stale.period_type, stale.window)]

    def outdated_windows(self) -> list[StaleWindow]:
        """Return the computed windows within the partition range that are out of date.

        This includes open windows, and windows whose rows another session may have written.
        """
        return [stale for stale in self._ledger().outdated() if self._has_partition(stale.period_type, stale.window)]

    def computed_windows(self, period: Period, level: str) -> list[ComputedWindow]:
        """Return the windows that were computed, within the partition range."""
        computed = self._ledger().computed_windows(period, LEVELS[level])
        return [window for window in computed if self._has_partition(period.name, window.window)]

    def last_computation(self) -> str:
        """Return a token that changes when a further window is computed."""
        return self._ledger().last_computation()

    def incomplete_windows(
        self, period: Period, level: str, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[IncompleteWindow]:
        """Return the windows that are due by now and missing, unfinished, failed in part or stale.

        A window does not count as stale for samples that changed less than `patience_seconds` ago.
        """
        due = self.service.partitions.due_windows(period)
        return self._ledger().incomplete_windows(period, LEVELS[level], due, patience_seconds=patience_seconds)

    def _ledger(self) -> Ledger:
        service = self.service
        refuse_an_unfit_database(service.engine, service.partitions.clock.zone)
        return service.ledger

    def _has_partition(self, period: str, window: Window) -> bool:
        periods = self.service.periods
        return period in periods and self.service.partitions.contains(periods[period], window)

    def _record_legacy_run(
        self,
        period: Period,
        windows: Sequence[Window],
        options: RunOptions,
        started_at: datetime,
        outcome: RunSummary | CapacityError,
    ) -> None:
        """Enter a run over all servers in the legacy application's table, if that is wanted."""
        if not self.records_legacy_runs or options.dry_run or options.instance_ids is not None or not windows:
            return
        what = "" if len(options.levels) > 1 else f"{options.levels[0]} "
        span = f"{windows[0].start}" if len(windows) == 1 else f"{windows[0].start} to {windows[-1].end}"
        total = failed = 0
        error: str | None = str(outcome)
        if isinstance(outcome, RunSummary):
            error = outcome.message if outcome.status is AggregationStatus.FAILED else None
            total = max(each.total_instances for each in outcome.summaries)
            # A server that failed in several windows or levels is counted in each.
            failed = min(total, sum(each.failed_instances for each in outcome.summaries))
        name = f"{period.name} {what}aggregates, {span}"
        record_legacy_run(self.service.engine, name, started_at, total=total, failed=failed, error=error)


def _was_never_begun(error: CapacityError) -> bool:
    """Whether the server did not answer, or the schema is missing: then the legacy table cannot be written either."""
    return isinstance(error, DatabaseError) and error.sqlstate is None


SECONDS_PER_COMMAND = 5
"""How long a person who declares a label waits at most."""
WINDOWS_AT_ONCE = 100


@dataclass(frozen=True)
class LabelProgress:
    """The numbers of computed and of remaining windows of groups."""

    computed: int
    left: int


def follow_labels(
    runner: AggregationTaskRunner, seconds: float | None, on_progress: Callable[[int, int], None] | None = None
) -> LabelProgress:
    """Compute stale windows of groups, for at most about `seconds`; None: all of them.

    `on_progress` is called with the numbers of windows computed and of all. A period that another run is writing is
    skipped. Raises: as `AggregationService.aggregate`.
    """
    began = time.monotonic()
    stale = [window for window in runner.stale_windows() if window.level == GROUP.name]
    windows_by_period: dict[str, list[Window]] = {}
    for window in sorted(stale, key=lambda stale_window: stale_window.window, reverse=True):
        windows_by_period.setdefault(window.period_type, []).append(window.window)
    # Shorter ones first, because longer ones are computed from them.
    periods = sorted(
        (runner.service.periods[name] for name in windows_by_period), key=lambda period: (period.months, period.days)
    )
    computed = 0
    while periods:
        for period in tuple(periods):
            windows = sorted(windows_by_period[period.name][:WINDOWS_AT_ONCE])
            if not windows or (seconds is not None and time.monotonic() - began >= seconds):
                periods.remove(period)
                continue
            try:
                runner.run_period(period, windows, RunOptions(levels=(GROUP.name,)))
            except LockHeldError:
                periods.remove(period)
                continue
            del windows_by_period[period.name][:WINDOWS_AT_ONCE]
            computed += len(windows)
            if on_progress:
                on_progress(computed, len(stale))
    return LabelProgress(computed, len(stale) - computed)
