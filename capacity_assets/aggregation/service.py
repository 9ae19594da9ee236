"""`AggregationService`: the façade that assets, tasks and the command line call.

It resolves what was asked for (period, level, instances, windows), refuses what makes no sense or lies outside the
partition range, takes the period's lock, and hands the work to the runner of each level. SQL belongs to `statements`,
slices and transactions to `runners`, the names of the replaced system to `legacy_calls`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date

from sqlalchemy import Engine

from capacity_assets.aggregation.coverage import coverage_of
from capacity_assets.aggregation.ledger import KnownWindow, Ledger
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


@dataclass(frozen=True)
class Known:
    """What is known of a level before its windows are computed.

    `windows` are those that were computed before, `parts` what may be read in place of samples, and `begun` says up to
    which change the windows are computed, by first day; empty: this is not entered.
    """

    windows: Sequence[KnownWindow]
    parts: Parts
    begun: Mapping[date, int] = field(default_factory=dict)


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
            known = self._begin(chosen, [runner.level for runner in runners], wanted, options)
            # Only now: a server that becomes active later than this is a change that is read after windows were begun.
            active = [one for one in self.instances(options.instance_ids) if one.active]
            parts = [
                part
                for runner in runners
                for part in self._computed(runner, Work(chosen, wanted, active, guarded), known[runner.level])
            ]
            days = coverage_of(self.engine, [runner.level for runner in runners], wanted, self.clock.today())
        return RunSummary(tuple(replace(part, coverage=days[part.level][part.period_start]) for part in parts))

    def _begin(
        self, period: Period, levels: Sequence[Level], windows: Sequence[Window], options: RunOptions
    ) -> dict[Level, Known]:
        """Read what was changed, enter that a computation begins, and return what is known by then, by level.

        A computation for some instances only is not entered.
        """
        begun: Mapping[str, Mapping[date, int]] = {}
        self.ledger.take_over("Nothing was written.")
        if options.overwrite and not options.dry_run:
            self.ledger.invalidate(period, levels, windows)
        if options.instance_ids is None and not options.dry_run:
            begun = self.ledger.begin(period, levels, windows)
        known = self._known(period, levels, windows)
        return {level: replace(one, begun=begun.get(level.name, {})) for level, one in known.items()}

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

    def _computed(self, runner: AggregationRunner, whole: Work, known: Known) -> tuple[PeriodSummary, ...]:
        """Compute one level, and enter it in the ledger if it was begun.

        Windows that the ledger knows to be as they were computed are reported as unchanged, and not read.
        """
        options, windows = whole.options, whole.windows
        mark = fingerprint(runner.level, whole.period, [instance.id for instance in whole.instances])
        parts: dict[date, PeriodSummary] = {}
        if not (options.overwrite or options.recompute or options.instance_ids is not None):
            parts = {
                one.window.start: _unchanged(runner.level, one, len(whole.instances))
                for one in known.windows
                if one.is_unchanged(mark)
            }
        to_compute = [window for window in windows if window.start not in parts]
        if to_compute:
            before = frozenset(one.window.start for one in known.windows)
            computed = runner.aggregate(replace(whole, windows=to_compute, parts=known.parts, computed=before))
            if known.begun:
                self.ledger.finish(known.begun, computed, mark)
            parts |= {part.period_start: part for part in computed}
        return tuple(parts[window.start] for window in windows)

    def _known(self, period: Period, levels: Sequence[Level], windows: Sequence[Window]) -> dict[Level, Known]:
        """Ask the ledger for the windows, and for the stored ones that may be read in place of samples."""
        asked = {(period.name, window) for window in windows}
        shorter = {level: shorter_periods(self.periods, period, level) for level in levels}
        found = self.ledger.known({level: asked | candidates(shorter[level], period, windows) for level in levels})
        known = {}
        for level, every in found.items():
            mark = sums_fingerprint(level)
            usable = frozenset((one.period_type, one.window) for one in every if one.has_current_sums(mark))
            computed = [one for one in every if (one.period_type, one.window) in asked]
            known[level] = Known(computed, Parts(shorter[level], usable))
        return known

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


def _unchanged(level: Level, known: KnownWindow, servers: int) -> PeriodSummary:
    """Summarise a window that is as it was computed, of so many active servers."""
    return PeriodSummary(
        known.period_type,
        level.name,
        known.window.start,
        known.window.end,
        processed_instances=known.processed_instances,
        skipped_instances=max(0, servers - known.processed_instances),
        unchanged_records=known.total_records - known.protected_records,
        protected_records=known.protected_records,
        unsampled_records=known.unsampled_records or 0,
    )
