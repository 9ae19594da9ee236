"""`AggregationService`: the façade that assets, tasks and the command line call.

It resolves period, levels, servers and windows, refuses invalid ones and windows outside the partition range, takes the
period's lock, and passes the work to the runner of each level. `PartitionRange` defines which windows exist, from the
first day with samples to the current window. The service also has the legacy methods: the last ones in the class and,
for each registered period, `calculate_<period>_aggregations`, `calculate_<period>_instance_aggregations`,
`calculate_<period>_database_aggregations_for_instance` and `calculate_<period>_aggregations_for_instance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partialmethod

from sqlalchemy import Engine, text

from capacity_assets.aggregates.figures import fingerprint, sums_fingerprint
from capacity_assets.aggregates.ledger import KnownWindow, Ledger
from capacity_assets.aggregates.levels import DATABASE, INSTANCE, LEVELS, Level
from capacity_assets.aggregates.runs import (
    ALL_LEVELS,
    DEFAULT_OPTIONS,
    INSTANCES_PER_SLICE,
    SCOPE_ALL,
    AggregationRunner,
    AggregationWork,
    InstanceRef,
    InstanceSummary,
    PeriodSummary,
    RunOptions,
    RunSummary,
    StoredWindow,
    candidate_windows,
    coverage_of,
    shorter_periods,
)
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.periods import PERIODS, Clock, Period, Window, in_order
from capacity_assets.base.settings import DEFAULT_PARALLEL_SLICES, DEFAULT_SCHEDULE_HOUR
from capacity_assets.base.units import human_day, suggestion
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.database.schema import refuse_an_unfit_database


@dataclass(frozen=True)
class PartitionRange:
    """The windows that have a partition; without `first_day`, all windows."""

    clock: Clock
    first_day: date | None = None
    schedule_hour: int = DEFAULT_SCHEDULE_HOUR

    def contains(self, period: Period, window: Window) -> bool:
        """Whether the window has a partition."""
        first = self._first_start(period)
        return first is None or first <= window.start <= self._last(period).start

    def is_before(self, period: Period, window: Window) -> bool:
        """Whether the window is before the first partition."""
        first = self._first_start(period)
        return first is not None and window.start < first

    def refuse_windows_outside(self, period: Period, windows: Sequence[Window]) -> None:
        """Raise ValidationError if windows have no partition; its text names the first of them."""
        outside = [window for window in windows if not self.contains(period, window)]
        if outside:
            raise ValidationError(f"The window from {outside[0].start} to {outside[0].end} {self._outside(period)}")

    def windows_between(self, period: Period, first_day: date | None, last_day: date | None) -> list[Window]:
        """Return the windows with a day of the range; open ends are the first partition and today.

        Raises ValidationError: wrong order, or days outside the partition range.
        """
        first, last = first_day or self.first_day, last_day or self._last(period).end
        if first is None:
            raise ValidationError("The first day is missing.")
        earliest = self._first_start(period) or first
        for day in (first, last):
            # Checked before windows are built: a mistyped year would build millions.
            if day > self._last(period).end:
                newest = human_day(self._last(period).start)
                raise ValidationError(
                    f"There is no {period.noun} yet that contains {human_day(day)}; the newest begins on {newest}."
                )
            if day < earliest:
                raise ValidationError(f"{day} {self._outside(period)}")
        try:
            return list(period.windows_between(first, last))
        except ValueError as error:
            raise ValidationError(f"{error}.") from error

    def window_holding(self, period: Period, day: date | None) -> Window:
        """Return the window of a day, by default the last complete one; raises ValidationError outside the range."""
        day = day or period.last(self.clock.today()).start
        [window] = self.windows_between(period, day, day)
        return window

    def every_window(self, period: Period) -> list[Window]:
        """Return the windows that have a partition; empty if there is no first day."""
        first, last = self._first_start(period), self._last(period)
        return [] if first is None or first > last.start else list(period.windows_between(first, last.end))

    def due_windows(self, period: Period) -> list[Window]:
        """Return the windows from the first partition to the last one whose scheduled time has passed."""
        now = self.clock.local_now()
        ticked = now.date() if now.hour >= self.schedule_hour else now.date() - timedelta(days=1)
        first, last = self._first_start(period), period.scheduled(ticked)
        return [] if first is None or first > last.start else list(period.windows_between(first, last.end))

    def _first_start(self, period: Period) -> date | None:
        return None if self.first_day is None else period.window_of(self.first_day).start

    def _last(self, period: Period) -> Window:
        return period.current(self.clock.today())

    def _outside(self, period: Period) -> str:
        configured = f"(CAPACITY_START_DATE is {self.first_day})"
        return (
            f"is outside the {period.name} partition range: the first starts on {self._first_start(period)} "
            f"{configured}, the current one on {self._last(period).start}."
        )


class AggregationService:
    """Computes aggregates over any number of windows with a constant number of statements."""

    def __init__(  # noqa: PLR0913 -- one argument per part
        self,
        engine: Engine,
        clock: Clock,
        *,
        periods: Mapping[str, Period] = PERIODS,
        partitions: PartitionRange | None = None,
        locks: CapacityLockManager | None = None,
        instances_per_slice: int = INSTANCES_PER_SLICE,
        parallel_slices: int = DEFAULT_PARALLEL_SLICES,
    ) -> None:
        """Use `engine`; `clock` determines the current windows; `periods` is the registry.

        Windows outside `partitions` are refused; by default, none are. `locks` are PostgreSQL's by default. Up to
        `parallel_slices` slices are written at once, each on its own connection.
        """
        self.engine = engine
        self.clock = clock
        self.periods = periods
        self.partitions = partitions or PartitionRange(clock)
        self.ledger = Ledger(engine, periods)
        self._locks = locks or CapacityLockManager(engine)
        bounds = (instances_per_slice, parallel_slices)
        self._runners = {name: AggregationRunner(level, engine, *bounds) for name, level in LEVELS.items()}

    def aggregate(
        self, period: str | Period, windows: Iterable[Window], options: RunOptions = DEFAULT_OPTIONS
    ) -> RunSummary:
        """Compute `windows` of `period` for all active instances, or according to `options`.

        Raises:
            ValidationError: unknown period or level, no window, or a span that is not a window of the period.
            NotFoundError: an id is not registered; nothing was written.
            DatabaseError: the database failed or lacks the schema; earlier commits are kept, and a repetition
                continues.
            LockHeldError, LockLostError, LockUnavailableError: the period's lock cannot be taken, or was lost.
        """
        chosen = self.period(period)
        runners = [self._runner(level) for level in options.levels]
        if options.instance_ids is not None:
            # A group needs all servers.
            runners = [runner for runner in runners if runner.level.has_servers]
        try:
            wanted = in_order(chosen, windows)
        except ValueError as error:
            raise ValidationError(f"{error}.") from error
        if not wanted or not runners:
            raise ValidationError("No window or level was requested.")
        self.partitions.refuse_windows_outside(chosen, wanted)
        refuse_an_unfit_database(self.engine, self.clock.zone)
        if options.instance_ids is not None:
            self.instances(options.instance_ids)
        with self._hold_lock(chosen, options) as guarded:
            levels = {runner.level: shorter_periods(self.periods, chosen, runner.level) for runner in runners}
            begun = self._begin(chosen, list(levels), wanted, options)
            own = {(chosen.name, window) for window in wanted}
            known = self.ledger.known_windows(
                {level: own | candidate_windows(shorter, chosen, wanted) for level, shorter in levels.items()}
            )
            # Read after `begin`, so that a server activated later counts as a change that this run does not include.
            active = [instance for instance in self.instances(options.instance_ids) if instance.active]
            summaries: list[PeriodSummary] = []
            for runner in runners:
                level = runner.level
                work = AggregationWork(
                    chosen, wanted, active, guarded, levels[level], self._usable(level, known[level])
                )
                summaries += self._compute(runner, work, known[level], begun.get(level.name, {}))
            days = coverage_of(self.engine, list(levels), wanted, self.clock.today())
        return RunSummary(
            tuple(replace(summary, coverage=days[summary.level][summary.period_start]) for summary in summaries)
        )

    def _begin(
        self, period: Period, levels: Sequence[Level], windows: Sequence[Window], options: RunOptions
    ) -> Mapping[str, Mapping[date, int]]:
        """Read the queue, and record that a computation begins unless it is for some instances only.

        Returns up to which change each window is computed, by level and first day.
        """
        self.ledger.take_over()
        if options.overwrite and not options.dry_run:
            self.ledger.invalidate(period, levels, windows)
        is_recorded = options.instance_ids is None and not options.dry_run
        return self.ledger.begin(period, levels, windows) if is_recorded else {}

    def _usable(self, level: Level, known: Sequence[KnownWindow]) -> frozenset[StoredWindow]:
        """Return the stored windows that may be read instead of samples."""
        mark = sums_fingerprint(level)
        return frozenset((window.period_type, window.window) for window in known if window.has_current_sums(mark))

    @contextmanager
    def _hold_lock(self, period: Period, options: RunOptions) -> Iterator[RunOptions]:
        """Hold the period's lock unless nothing is written; yield options whose guard checks it before each commit."""
        if options.dry_run:
            yield options
            return
        with self._locks.job_lock(period.name) as lock:

            def guard() -> None:
                if options.guard:
                    options.guard()
                lock.ensure_held()

            yield replace(options, guard=guard)

    def _compute(
        self, runner: AggregationRunner, whole: AggregationWork, known: Sequence[KnownWindow], begun: Mapping[date, int]
    ) -> Iterator[PeriodSummary]:
        """Compute one level, and record it in the ledger if its beginning was recorded.

        Windows that are unchanged according to the ledger are reported as unchanged, without being read.
        """
        options = whole.options
        mark = fingerprint(runner.level, whole.period, [instance.id for instance in whole.instances])
        before = {stored.window: stored for stored in known if stored.period_type == whole.period.name}
        summaries: dict[Window, PeriodSummary] = {}
        if not (options.overwrite or options.recompute or options.instance_ids is not None):
            summaries = {
                window: _summary_of_unchanged(runner.level, before[window], len(whole.instances))
                for window in whole.windows
                if window in before and before[window].is_unchanged(mark)
            }
        changed_windows = [window for window in whole.windows if window not in summaries]
        if changed_windows:
            stored_before = frozenset(window.start for window in whole.windows if window in before)
            computed = runner.aggregate(replace(whole, windows=changed_windows, computed=stored_before))
            if begun:
                self.ledger.finish(begun, computed, mark)
            summaries |= dict(zip(changed_windows, computed, strict=True))
        return (summaries[window] for window in whole.windows)

    def period(self, period: str | Period, *others: str) -> Period:
        """Return the period of a name; raises ValidationError if there is none, with the known names and `others`."""
        if isinstance(period, Period):
            # The registered one, whose trend threshold may have been set.
            return self.periods.get(period.name, period)
        if period not in self.periods:
            known = ", ".join((*self.periods, *others))
            raise ValidationError(f"Unknown period {period!r}; known: {known}.{suggestion(str(period), self.periods)}")
        return self.periods[period]

    @property
    def period_names(self) -> tuple[str, ...]:
        """Names of the registered periods."""
        return tuple(self.periods)

    def instance(self, instance_id: int) -> InstanceRef:
        """Return the instance of an id; raises NotFoundError if it is not registered."""
        [instance] = self.instances([instance_id])
        return instance

    def ids_of(self, names: Sequence[str]) -> list[int]:
        """Return the ids of servers by name or, if none has that name, by number; raises NotFoundError."""
        every = self.instances(None)
        known = {str(ref.id): ref.id for ref in every} | {ref.name: ref.id for ref in every}
        missing = [name for name in names if name not in known]
        if missing:
            close = suggestion(missing[0], (ref.name for ref in every))
            raise NotFoundError(
                f"No server {', '.join(map(repr, missing))} is registered.{close} `capacity instances list` shows all."
            )
        return [known[name] for name in names]

    def levels_of(self, scope: str) -> tuple[str, ...]:
        """Return the levels of a scope (a level or all); raises ValidationError for another."""
        if scope == SCOPE_ALL:
            return ALL_LEVELS
        return (self._runner(scope).level.name,)

    def _runner(self, level: str) -> AggregationRunner:
        if level not in self._runners:
            raise ValidationError(f"Unknown level {level!r}; known: {', '.join(self._runners)}, {SCOPE_ALL}.")
        return self._runners[level]

    def instances(self, instance_ids: Sequence[int] | None) -> list[InstanceRef]:
        """Return all registered instances, or those with the given ids; raises NotFoundError for an unknown id."""
        with database_errors(doing="reading the servers"), self.engine.connect() as connection:
            rows = connection.execute(text(_INSTANCES)).all()
        known = {row.id: InstanceRef(*row) for row in rows}
        if instance_ids is None:
            return list(known.values())
        missing = sorted(set(instance_ids) - known.keys())
        if missing:
            listed = ", ".join(map(str, missing))
            raise NotFoundError(f"No server with id {listed} is registered.")
        return [known[instance_id] for instance_id in sorted(set(instance_ids))]

    # The methods of the replaced system.

    def calculate_period_aggregations(
        self, period_type: str, start_date: date, end_date: date, *, scope: str = SCOPE_ALL, overwrite: bool = False
    ) -> RunSummary:
        """Compute every window of the period with a day from `start_date` to `end_date`.

        Raises: as `aggregate`; also ValidationError when the dates are in the wrong order.
        """
        try:
            windows = self.period(period_type).windows_between(start_date, end_date)
        except ValueError as error:
            raise ValidationError(f"{error}.") from error
        return self.aggregate(period_type, windows, RunOptions(self.levels_of(scope), overwrite=overwrite))

    def aggregate_current_period(self, period_type: str = "daily", *, scope: str = SCOPE_ALL) -> RunSummary:
        """Compute the window that contains today; `scope` is a level or all."""
        return self.calculate_scheduled_aggregations(period_type, scope=scope, use_current_period=True)

    def calculate_scheduled_aggregations(
        self, period_type: str, *, scope: str = SCOPE_ALL, use_current_period: bool | None = None
    ) -> RunSummary:
        """Compute the scheduled window (current for daily, last for the rest), or the one `use_current_period` says."""
        window = self._due_window(self.period(period_type), use_current_period)
        return self.aggregate(period_type, [window], RunOptions(self.levels_of(scope)))

    def calculate_aggregations_for_instance(
        self, period_type: str, instance_id: int, *, scope: str = SCOPE_ALL, use_current_period: bool | None = None
    ) -> RunSummary:
        """Do the same for one instance; raises NotFoundError if it is not registered."""
        window = self._due_window(self.period(period_type), use_current_period)
        return self.aggregate(period_type, [window], RunOptions(self.levels_of(scope), [self.instance(instance_id).id]))

    def calculate_instance_aggregations(
        self, instance_id: int, periods: Sequence[str] | None = None, *, scope: str = SCOPE_ALL
    ) -> InstanceSummary:
        """Compute the scheduled window of each period for one instance; an inactive one is skipped.

        A window before the first partition is skipped.

        Raises:
            NotFoundError: the id is not registered.
            ValidationError: an unknown period or scope; nothing was written.
        """
        instance, levels = self.instance(instance_id), self.levels_of(scope)
        chosen = [self.period(name) for name in (self.periods if periods is None else periods)]
        run = RunSummary()
        for period in chosen:
            window = self._due_window(period, None)
            if not self.partitions.is_before(period, window):
                run += self.aggregate(period, [window], RunOptions(levels, [instance.id]))
        return InstanceSummary(instance.id, instance.name, instance.active, run)

    def _due_window(self, period: Period, use_current: bool | None) -> Window:
        today = self.clock.today()
        if use_current is None:
            return period.scheduled(today)
        return period.current(today) if use_current else period.last(today)

    def build_period_summary(self, run: RunSummary) -> dict[str, object]:
        """Return a task's report on one period: status, message, counts and each window."""
        return run.to_dict()


_of_all = AggregationService.calculate_scheduled_aggregations
_of_one = AggregationService.calculate_aggregations_for_instance
for _period in PERIODS:
    for _name, _method, _level in (
        ("calculate_{}_aggregations", _of_all, DATABASE),
        ("calculate_{}_instance_aggregations", _of_all, INSTANCE),
        ("calculate_{}_database_aggregations_for_instance", _of_one, DATABASE),
        ("calculate_{}_aggregations_for_instance", _of_one, INSTANCE),
    ):
        setattr(AggregationService, _name.format(_period), partialmethod(_method, _period, scope=_level.name))


_INSTANCES = "SELECT id, name, is_active AND deleted_at IS NULL AS active FROM instances ORDER BY id"


def _summary_of_unchanged(level: Level, known: KnownWindow, servers: int) -> PeriodSummary:
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
