"""`AggregationTaskRunner`: runs periods for assets, task functions and commands.

It chooses the windows that are due, runs periods through the service, logs one line per run, and enters runs in the
legacy application's table where that is configured. Checks, locks and writing belong to the service.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime

from capacity_assets.aggregation.inspection import Inspection
from capacity_assets.aggregation.options import DEFAULT_OPTIONS, RunOptions
from capacity_assets.aggregation.results import PeriodSummary, RunSummary
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.errors import CapacityError, DatabaseError, ValidationError
from capacity_assets.foundation.status import AggregationStatus
from capacity_assets.periods import Period, Window
from capacity_assets.storage.legacy_tables import EndedRun, record_legacy_run
from capacity_assets.variables import DEFAULT_JUMP_PERCENT

logger = logging.getLogger("capacity_assets")


class AggregationTaskRunner:
    """Runs periods. `inspection` answers questions about windows, on the same database and in the same range."""

    def __init__(
        self,
        service: AggregationService,
        *,
        jump_percent: int = DEFAULT_JUMP_PERCENT,
        records_legacy_runs: bool = False,
    ) -> None:
        """Run on `service`; with `records_legacy_runs` each run is entered in the legacy table of runs."""
        self.service = service
        self.inspection = Inspection(service.engine, service.periods, service.partitions, service.ledger, jump_percent)
        self._records_legacy_runs = records_legacy_runs

    def run_period(
        self, period: str | Period, windows: Iterable[Window] | None = None, options: RunOptions = DEFAULT_OPTIONS
    ) -> RunSummary:
        """Aggregate `windows` of one period, or the scheduled one, which is skipped where no partition exists yet.

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
        """Run each period on its own, so that an error in one does not keep the others from running; return both."""
        run, troubles = RunSummary(), []
        for period, windows in work:
            try:
                run += self.run_period(period, windows, options)
            except CapacityError as error:
                logger.error("%s", error)  # noqa: TRY400 -- the text says all; the cause would hold the statement
                troubles.append(error)
        return run, tuple(troubles)

    def scheduled_work(self, periods: Sequence[str] | None) -> list[tuple[Period, None]]:
        """Name the scheduled window of each period, or of all; raises ValidationError for an unknown period."""
        names = self.service.period_names if periods is None else periods
        return [(self.service.period(name), None) for name in names]

    def _record_legacy_run(
        self,
        period: Period,
        windows: Sequence[Window],
        options: RunOptions,
        started_at: datetime,
        outcome: RunSummary | CapacityError,
    ) -> None:
        """Enter a run over all servers in the legacy application's table, if that is wanted."""
        if not self._records_legacy_runs or options.dry_run or options.instance_ids is not None or not windows:
            return
        what = "" if len(options.levels) > 1 else f"{options.levels[0]} "
        span = f"{windows[0].start}" if len(windows) == 1 else f"{windows[0].start} to {windows[-1].end}"
        total = failed = 0
        error: str | None = str(outcome)
        if isinstance(outcome, RunSummary):
            error = outcome.message if outcome.status is AggregationStatus.FAILED else None
            total = max(part.total_instances for part in outcome.parts)
            # Each window and level counts its own; a server may have failed in several.
            failed = min(total, sum(part.failed_instances for part in outcome.parts))
        ended = EndedRun(f"{period.name} {what}aggregates, {span}", started_at, total, failed, error)
        record_legacy_run(self.service.engine, ended)


def _was_never_begun(error: CapacityError) -> bool:
    """Whether nobody answered, or the schema is missing: the legacy table cannot be written then either."""
    return isinstance(error, DatabaseError) and error.sqlstate is None
