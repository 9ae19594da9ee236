"""`AggregationService`: the façade that assets, tasks and the command line call.

It resolves what was asked for (period, level, instances, windows), refuses what makes no sense or lies outside the
partition range, takes the period's lock, and hands the work to the runner of each level. SQL belongs to `statements`,
slices and transactions to `runners`, the names of the replaced system to `legacy_calls`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date

from sqlalchemy import Engine

from capacity_assets.aggregation.coverage import coverage_of
from capacity_assets.aggregation.ledger import Ledger
from capacity_assets.aggregation.legacy_calls import LegacyCalls
from capacity_assets.aggregation.options import ALL_LEVELS, DEFAULT_OPTIONS, SCOPE_ALL, RunOptions
from capacity_assets.aggregation.partition_range import PartitionRange
from capacity_assets.aggregation.results import PeriodSummary, RunSummary
from capacity_assets.aggregation.runners import INSTANCES_PER_SLICE, AggregationRunner
from capacity_assets.aggregation.work import InstanceRef, Parts, Work, candidates, shorter_periods
from capacity_assets.aggregation.writing import fingerprint, known_instances, sums_fingerprint
from capacity_assets.clock import Clock
from capacity_assets.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.foundation.levels import LEVELS, Level
from capacity_assets.foundation.locks import CapacityLockManager
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.periods import PERIODS, Period, Window, in_order


class AggregationService(LegacyCalls):
    """Computes aggregates over any number of windows with a constant number of statements."""

    def __init__(  # noqa: PLR0913 -- one argument per part it is put together from
        self,
        engine: Engine,
        clock: Clock,
        *,
        periods: Mapping[str, Period] = PERIODS,
        partitions: PartitionRange | None = None,
        locks: CapacityLockManager | None = None,
        instances_per_slice: int = INSTANCES_PER_SLICE,
        parallel_slices: int = 1,
    ) -> None:
        """Work through `engine`; `clock` tells which windows are current; `periods` is the registry.

        Windows outside `partitions` are refused (by default none). `locks` are PostgreSQL's by
        default. With `parallel_slices`, so many slices are written side by side, each on its own connection.
        """
        self.engine = engine
        self.clock = clock
        self.periods = periods
        self.partitions = partitions or PartitionRange(clock)
        self.ledger = Ledger(engine, periods)
        self._locks = locks or CapacityLockManager(engine)
        bounds = {"instances_per_slice": instances_per_slice, "parallel_slices": parallel_slices}
        self._runners = {name: AggregationRunner(level, engine, **bounds) for name, level in LEVELS.items()}

    def aggregate(
        self, period: str | Period, windows: Iterable[Window], options: RunOptions = DEFAULT_OPTIONS
    ) -> RunSummary:
        """Compute `windows` of `period` for all active instances, or as `options` say.

        Raises:
            ValidationError: unknown period or level, no window, or something that is no window of the period.
            NotFoundError: an id is not registered; nothing was written.
            DatabaseError: the database failed or lacks the schema; what was committed before is kept, and a repetition
                continues.
            LockHeldError, LockLostError, LockUnavailableError: as the texts say.
        """
        chosen = self.period(period)
        runners = [self._runner(level) for level in options.levels]
        if options.instance_ids is not None:
            # A group is of all servers.
            runners = [runner for runner in runners if runner.level.has_servers]
        try:
            wanted = in_order(chosen, windows)
        except ValueError as error:
            raise ValidationError(f"{error}. Nothing was written.") from error
        if not wanted or not runners:
            raise ValidationError("No window or no level was asked for. Nothing was written.")
        self.partitions.refuse_windows_outside(chosen, wanted)
        refuse_an_unfit_database(self.engine, self.clock.zone, kept="Nothing was written.")
        if options.instance_ids is not None:
            self.instances(options.instance_ids)
        with self._guarded(chosen, options) as guarded:
            if options.dry_run:
                self.ledger.take_over("Nothing was written.")
            else:
                self.ledger.gather()
            parts: list[PeriodSummary] = []
            for runner in runners:
                computed = self._computed(runner, chosen, wanted, guarded)
                days = coverage_of(self.engine, runner.level, wanted, self.clock.today())
                parts += [replace(part, coverage=days[part.period_start]) for part in computed]
        return RunSummary(tuple(parts))

    @contextmanager
    def _guarded(self, period: Period, options: RunOptions) -> Iterator[RunOptions]:
        """Hold the period's lock unless nothing is written; yield options whose guard asks for it before a commit."""
        if options.dry_run:
            yield options
            return
        with self._locks.job_lock(period.name) as lock:

            def guard() -> None:
                if options.guard:
                    options.guard()
                lock.ensure_held()

            yield replace(options, guard=guard)

    def _computed(
        self, runner: AggregationRunner, period: Period, windows: Sequence[Window], options: RunOptions
    ) -> tuple[PeriodSummary, ...]:
        """Compute one level, and enter it in the ledger unless it was for some instances only.

        Windows that the ledger knows to be as they were computed are reported as unchanged, and not read.
        """
        if options.overwrite and not options.dry_run:
            self.ledger.invalidate(period, runner.level, windows)
        if options.instance_ids is not None:
            servers = self._active(options.instance_ids)
            return self._run(runner, period, windows, servers, options)
        parts: dict[date, PeriodSummary] = {}
        if not (options.overwrite or options.recompute):
            parts = self._unchanged(period, runner.level, windows)
        to_compute = [window for window in windows if window.start not in parts]
        if to_compute and options.dry_run:
            computed = self._run(runner, period, to_compute, self._active(), options)
            parts |= {part.period_start: part for part in computed}
        elif to_compute:
            begun = self.ledger.begin(period, runner.level, to_compute)
            # Only now: a server that becomes active later than this is a change that is read after `begun`.
            active = self._active()
            computed = self._run(runner, period, to_compute, active, options)
            self.ledger.finish(begun, computed, _mark(runner.level, period, active))
            parts |= {part.period_start: part for part in computed}
        return tuple(parts[window.start] for window in windows)

    def _run(
        self,
        runner: AggregationRunner,
        period: Period,
        windows: Sequence[Window],
        servers: Sequence[InstanceRef],
        options: RunOptions,
    ) -> tuple[PeriodSummary, ...]:
        parts, computed = self._known(period, runner.level, windows)
        return runner.aggregate(Work(period, windows, servers, options, parts, computed))

    def _known(self, period: Period, level: Level, windows: Sequence[Window]) -> tuple[Parts, frozenset[date]]:
        """Return the stored windows that may be read in place of samples, and which of `windows` were computed."""
        shorter = shorter_periods(self.periods, period, level)
        listed = candidates(shorter, period, windows)
        usable, computed = self.ledger.current_sums(period, level, windows, listed, sums_fingerprint(level))
        return Parts(shorter, usable), computed

    def _active(self, instance_ids: Sequence[int] | None = None) -> list[InstanceRef]:
        return [instance for instance in self.instances(instance_ids) if instance.active]

    def _unchanged(self, period: Period, level: Level, windows: Sequence[Window]) -> dict[date, PeriodSummary]:
        """Summaries of the windows that are as they were computed, by first day."""
        active = self._active()
        known = self.ledger.unchanged(period, level, windows, _mark(level, period, active))
        return {
            window.start: PeriodSummary(
                period.name,
                level.name,
                window.start,
                window.end,
                processed_instances=row.processed_instances,
                skipped_instances=max(0, len(active) - row.processed_instances),
                unchanged_records=row.total_records - row.protected_records,
                protected_records=row.protected_records,
                unsampled_records=row.unsampled_records,
            )
            for window in windows
            if (row := known.get(window.start))
        }

    def period(self, period: str | Period, *others: str) -> Period:
        """Look a period up by name; raises ValidationError where none is registered, and names `others` besides."""
        if isinstance(period, Period):
            # The registered one: its trend threshold may have been set for this installation.
            return self.periods.get(period.name, period)
        if period not in self.periods:
            known = ", ".join((*self.periods, *others))
            raise ValidationError(f"Unknown period {period!r}; known: {known}. Nothing was written.")
        return self.periods[period]

    @property
    def period_names(self) -> tuple[str, ...]:
        """Names of the registered periods."""
        return tuple(self.periods)

    def instance(self, instance_id: int) -> InstanceRef:
        """Look an instance up by id; raises NotFoundError where it is not registered."""
        [found] = self.instances([instance_id])
        return found

    def ids_of(self, names: Sequence[str]) -> list[int]:
        """Look servers up by name, or where none has that name, by number; raises NotFoundError."""
        every = self.instances(None)
        known = {str(instance.id): instance.id for instance in every} | {one.name: one.id for one in every}
        missing = [name for name in names if name not in known]
        if missing:
            raise NotFoundError(f"No server {', '.join(map(repr, missing))} is registered. Nothing was written.")
        return [known[name] for name in names]

    def levels_of(self, scope: str) -> tuple[str, ...]:
        """Translate a scope (a level or all) into levels; raises ValidationError for another."""
        if scope == SCOPE_ALL:
            return ALL_LEVELS
        return (self._runner(scope).level.name,)

    def _runner(self, level: str) -> AggregationRunner:
        if level not in self._runners:
            raise ValidationError(
                f"Unknown level {level!r}; known: {', '.join(self._runners)}, {SCOPE_ALL}. Nothing was written."
            )
        return self._runners[level]

    def instances(self, instance_ids: Sequence[int] | None) -> list[InstanceRef]:
        """Return all registered instances, or exactly those asked for; raises NotFoundError for an unknown id."""
        with (
            database_errors(doing="reading the servers", kept="Nothing was written."),
            self.engine.connect() as connection,
        ):
            rows = connection.execute(known_instances()).all()
        known = {row.id: InstanceRef(row.id, row.name, row.active) for row in rows}
        if instance_ids is None:
            return list(known.values())
        missing = sorted(set(instance_ids) - known.keys())
        if missing:
            listed = ", ".join(map(str, missing))
            raise NotFoundError(f"No server with id {listed} is registered. Nothing was written.")
        return [known[instance_id] for instance_id in sorted(set(instance_ids))]


def _mark(level: Level, period: Period, instances: Iterable[InstanceRef]) -> str:
    return fingerprint(level, period, [instance.id for instance in instances])
