"""Write the aggregates of windows, one level at a time and in slices, and report on the run.

A quarter is computed from its months: stored shorter windows are read instead of samples if they are current by the
ledger. A window that is only compared is read from its stored rows if these are current, otherwise from samples. For
the level of groups, days that are not stored are added up from samples into a temporary table, by
`aggregates.groups.GROUP_DAYS`.

Servers are processed in bounded slices, each in its own transaction, so that an interrupted run keeps what was written
and the next one continues. If the rows of a slice cause an error, the slice is halved until the failing server, and
then its failing windows, are isolated; everything else is written. `service` chooses the servers and windows.

In a summary, `total = processed + failed + skipped` and `records = written + unchanged + protected` hold by
construction, because the totals are derived. How it becomes Dagster metadata or terminal text is not decided here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, timedelta
from functools import cached_property
from threading import Lock
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.aggregates.figures import (
    StatementSources,
    aggregation_statement,
    execute,
    node_statements,
    stored_windows,
)
from capacity_assets.aggregates.groups import (
    GROUP_DAYS,
    SERVERS_LEFT_OUT,
    day_parameters,
    left_out_parameters,
)
from capacity_assets.aggregates.levels import GROUP, LEVELS, Level
from capacity_assets.base.errors import (
    MAXIMUM_LISTED_ERRORS,
    AggregationStatus,
    DatabaseFailure,
    database_error,
    database_errors,
    is_data_error,
    reason_of,
    sqlstate_of,
)
from capacity_assets.base.periods import Period, Window, adjacent_spans
from capacity_assets.base.settings import DEFAULT_PARALLEL_SLICES
from capacity_assets.base.units import IMPOSSIBLE_SIZES, LARGEST_MB, counted
from capacity_assets.database.changes import WRITER_SETTING
from capacity_assets.database.cluster import SETTINGS_OF_A_SLICE, is_distributed
from capacity_assets.database.partitions import FIRST_PLAUSIBLE

ALL_LEVELS = tuple(LEVELS)
SCOPE_ALL = "all"

Progress = Callable[[int], None]
"""Called after each slice with its number of instances."""

Guard = Callable[[], None]
"""Called before each commit, never twice at once; raises when the work must not be committed."""


@dataclass(frozen=True)
class RunOptions:
    """At which levels and for which instances to compute, and whether stored history may be replaced.

    With `recompute`, unchanged windows are computed too. With `dry_run`, nothing is written, and the summary says what
    would be written. The service adds its lock to `guard`.
    """

    levels: Sequence[str] = ALL_LEVELS
    instance_ids: Sequence[int] | None = None
    overwrite: bool = False
    recompute: bool = False
    dry_run: bool = False
    progress: Progress | None = None
    guard: Guard | None = None


DEFAULT_OPTIONS = RunOptions()


StoredWindow = tuple[str, Window]
"""A stored window: the name of its period, and its days."""


@dataclass(frozen=True)
class InstanceRef:
    """A registered server."""

    id: int
    name: str
    active: bool = True


@dataclass(frozen=True)
class AggregationWork:
    """The work of a computation or of one of its slices: windows in order, and instances.

    `usable` are the stored windows that may be read in place of samples, and `shorter` the periods from which a window
    may be computed, the longest first. `computed` are the first days of the windows that were computed before. `gone`
    contains the windows that keep their stored rows because some of their days are missing, with the number of these
    rows. No sample is older than `since`.
    """

    period: Period
    windows: Sequence[Window]
    instances: Sequence[InstanceRef]
    options: RunOptions = DEFAULT_OPTIONS
    shorter: Sequence[Period] = ()
    usable: Collection[StoredWindow] = ()
    computed: frozenset[date] = frozenset()
    gone: Mapping[Window, int] = field(default_factory=dict)
    since: date = date.min

    @cached_property
    def inputs(self) -> tuple[list[StoredWindow], list[Window]]:
        """The stored shorter windows to read, and the ranges of days whose samples to read, in order."""
        summed_windows: list[StoredWindow] = []
        days: list[Window] = []
        targets, unread = set(self.windows), self._unread
        for window in sorted(targets | compared_windows(self.period, self.windows)):
            if window in unread:
                continue
            stored, spans = self._own_row(window) or self._cover(window, self.shorter)
            summed_windows += stored
            days += [Window(max(span.start, self.since), span.end) for span in spans if span.end >= self.since]
        return summed_windows, [Window(span[0].start, span[-1].end) for span in adjacent_spans(sorted(days))]

    @property
    def _unread(self) -> set[Window]:
        """The windows that are only compared, and are read only from their stored rows."""
        others = compared_windows(self.period, self.windows).difference(self.windows)
        return {window for window in others if (self.period.name, window) in self.usable or window in self.gone}

    def _own_row(self, window: Window) -> tuple[list[StoredWindow], list[Window]] | None:
        """Cover a window by its own stored row, if only a compared window has changed. Days have no sums."""
        own = (self.period.name, window)
        is_requested = self.options.overwrite or self.options.recompute or window.start == window.end
        return None if is_requested or own not in self.usable else ([own], [])

    def _cover(self, window: Window, periods: Sequence[Period]) -> tuple[list[StoredWindow], list[Window]]:
        """Cover a window by stored ones of `periods`, the longest first; return these, and the remaining days."""
        if not periods:
            return [], [window]
        longest, *others = periods
        summed_windows: list[StoredWindow] = []
        days: list[Window] = []
        cut = _cut(longest, window)
        for piece in cut or [window]:
            if cut and (longest.name, piece) in self.usable:
                summed_windows.append((longest.name, piece))
            else:
                stored, rest = self._cover(piece, others)
                summed_windows += stored
                days += rest
        return summed_windows, days

    def reads_a_year_before(self, stored: Collection[date]) -> bool:
        """Whether any window a year before is computed here, is read, or has `stored` rows."""
        summed_windows, days = self.inputs
        spans = [*self.windows, *days, *(window for _, window in summed_windows)]
        others = [self.period.year_before(window) for window in self.windows]
        first, last = others[0].start, others[-1].end
        return any(span.start <= last and first <= span.end for span in spans) or any(
            other.start in stored for other in others
        )

    @property
    def rows_read(self) -> int:
        """Rows that are read per key, at most, of samples and of shorter windows; at least one."""
        summed_windows, days = self.inputs
        return max(1, len(summed_windows) + sum(span.days for span in days))

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statement, as in `figures.StatementParameters`."""
        period = self.period
        first, last = period.previous(self.windows[0]), self.windows[-1]
        year_first, year_last = period.year_before(self.windows[0]), period.year_before(last)
        targets = set(self.windows)
        windows = sorted(targets | compared_windows(period, self.windows))
        summed_windows, days = self.inputs
        return {
            "period": period.name,
            "instance_ids": [instance.id for instance in self.instances],
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "wanted": [window in targets for window in windows],
            "wanted_starts": [window.start for window in self.windows],
            "wanted_first": self.windows[0].start,
            "wanted_last": last.start,
            "before_first": first.start,
            "year_first": year_first.start,
            "year_last": year_last.start,
            "year_interval": period.year_interval,
            "shorter_types": [name for name, _ in summed_windows],
            "shorter_starts": [window.start for _, window in summed_windows],
            "cuts": [day for span in days for day in (span.start, span.end + timedelta(days=1))],
            **_span("read", [span for span in days if span.end >= first.start], first.start),
            **_span("read_year", [span for span in days if span.end < first.start], first.start),
            "trend_percent": period.trend_percent,
            "windows_per_year": period.windows_per_year,
            "computed_starts": sorted(self.computed),
            "unread_starts": sorted(window.start for window in self._unread),
            "overwrite": self.options.overwrite,
        }

    def halves(self, *, by_server: bool = True) -> tuple[AggregationWork, AggregationWork] | None:
        """Split by instance as long as there are several, then by window; None for a single computation."""
        for name in ("instances", "windows") if by_server else ("windows",):
            several = getattr(self, name)
            if len(several) > 1:
                middle = len(several) // 2
                return replace(self, **{name: several[:middle]}), replace(self, **{name: several[middle:]})
        return None


def candidate_windows(shorter: Sequence[Period], period: Period, windows: Sequence[Window]) -> set[StoredWindow]:
    """Return every stored window that could replace days of `windows` or of windows that they are compared with."""
    others = compared_windows(period, windows)
    return {(period.name, window) for window in others} | {
        (other.name, piece) for window in {*windows, *others} for other in shorter for piece in _cut(other, window)
    }


def shorter_periods(periods: Mapping[str, Period], period: Period, level: Level) -> list[Period]:
    """Return the registered periods from which a window of `period` may be computed, the longest first.

    Days are included only for groups, because a stored day of a server is not read faster than its sample.
    """
    with_days = not level.has_servers and period.days != 1
    shorter = (
        other for other in periods.values() if 0 < other.months < period.months or (with_days and other.days == 1)
    )
    return sorted(shorter, key=lambda other: other.months, reverse=True)


def compared_windows(period: Period, windows: Sequence[Window]) -> set[Window]:
    """Return the previous windows of `windows`, and those a year before."""
    return {other for window in windows for other in (period.previous(window), period.year_before(window))}


def _cut(period: Period, window: Window) -> tuple[Window, ...]:
    """Return the windows of `period` that `window` consists of; none if they do not fit."""
    pieces = period.windows_between(window.start, window.end)
    fits = pieces[0].start == window.start and pieces[-1].end == window.end
    return pieces if fits else ()


def _span(name: str, spans: Sequence[Window], nothing: date) -> dict[str, date]:
    """Return parameters for the first and last day of spans; without spans, an empty range."""
    first, last = (spans[0].start, spans[-1].end) if spans else (nothing, nothing - timedelta(days=1))
    return {f"{name}_first": first, f"{name}_last": last}


SERVER_DAYS_PER_STATEMENT = 100_000
"""Limits how much one statement sorts, whatever the size of the fleet."""


def prepare_group_days(connection: sa.Connection, work: AggregationWork) -> dict[Window, int]:
    """Add up the days that a computation reads into a temporary table.

    Return the windows whose stored rows were built from more days than are left, with the number of these rows, which
    are kept or compared. A day whose samples were dropped counts as left if its daily aggregates contain as many
    servers as its stored row.
    """
    GROUP.source.create(connection, checkfirst=False)
    summed_windows, spans = work.inputs
    days = [day for span in spans for day in span.dates]
    step = max(1, SERVER_DAYS_PER_STATEMENT // max(1, len(work.instances)))
    for first in range(0, len(days), step):
        days_to_add = day_parameters(connection, days[first : first + step])
        _add_up(connection, days_to_add)
        unsampled = [set(some) for name, some in days_to_add.items() if name.startswith("without_")]
        dropped = sorted(set.intersection(*unsampled))
        if dropped:
            connection.execute(sa.text(_FORGET_DAYS_SHORT_OF_SERVERS), {"dropped": dropped})
    windows = {window.start: window for window in (*work.windows, *compared_windows(work.period, work.windows))}
    parameters = {
        "period_type": work.period.name,
        "starts": list(windows),
        "shorter_types": [name for name, _ in summed_windows],
        "shorter_starts": [window.start for _, window in summed_windows],
    }
    return {windows[row.period_start]: row.rows for row in connection.execute(sa.text(_GONE), parameters)}


def _add_up(connection: sa.Connection, days_to_add: Mapping[str, Sequence[object]]) -> None:
    """Add up days; those on which a group is above 8 EiB once more, without the servers that are left out."""
    crowded = connection.execute(sa.text(_ADD_UP), days_to_add).scalars().all()
    if crowded:
        days = {name: [day for day in crowded if day in some] for name, some in days_to_add.items()}
        left_out = left_out_parameters(connection.execute(sa.text(SERVERS_LEFT_OUT), days))
        connection.execute(sa.text(_FORGET_DAYS), days)
        connection.execute(sa.text(_ADD_UP), {**days, **left_out})


_FORGET_DAYS = f"DELETE FROM {GROUP.source.name} WHERE collected_date = ANY (CAST(:days AS date[]))"  # noqa: S608 -- the name of our table
# Returns the days on which a group is above 8 EiB.
_ADD_UP = f"""
WITH added AS (INSERT INTO {GROUP.source.name} {GROUP_DAYS} RETURNING collected_date, size_mb)
SELECT DISTINCT collected_date FROM added WHERE size_mb NOT BETWEEN -{LARGEST_MB} AND {LARGEST_MB}
ORDER BY collected_date
"""  # noqa: S608 -- the name of our table
# A server out of service has no daily aggregates that could replace its dropped samples.
_FORGET_DAYS_SHORT_OF_SERVERS = """
DELETE FROM capacity_group_days AS d USING capacity_group_days AS f, group_size_aggregations AS g
WHERE d.collected_date = f.collected_date AND f.collected_date = ANY (CAST(:dropped AS date[]))
  AND f.label_key = '(fleet)' AND g.label_key = '(fleet)' AND g.period_type = 'daily'
  AND g.period_start = f.collected_date AND g.server_count > f.server_count
"""
_GONE = """
WITH days_left AS MATERIALIZED (
    -- On a day on which every server is left out, there is no fleet.
    SELECT DISTINCT collected_date AS day, 1 AS days FROM capacity_group_days WHERE label_key = '(total)'
    UNION ALL
    SELECT period_start, g.data_count
    FROM unnest(CAST(:shorter_types AS text[]), CAST(:shorter_starts AS date[])) AS p (period_type, period_start)
    JOIN group_size_aggregations g USING (period_type, period_start)
    WHERE g.label_key = '(fleet)'
)
SELECT g.period_start, count(*) AS rows FROM group_size_aggregations g
WHERE g.period_type = :period_type AND g.period_start = ANY (CAST(:starts AS date[]))
GROUP BY g.period_start, g.period_end
HAVING max(g.data_count) FILTER (WHERE g.label_key = '(fleet)')
    > (SELECT coalesce(sum(f.days), 0) FROM days_left f WHERE f.day BETWEEN g.period_start AND g.period_end)
"""


INSTANCES_PER_SLICE = 1000
"""A thousand servers of twenty databases are about 20,000 rows per daily window, written in one transaction."""

INSTANCE_DAYS_PER_SLICE = 10_000
"""Limits the rows of one statement, about 200,000 for servers of twenty databases, whatever the length of the range, so
that sorts and intermediate results stay in memory."""

SMALLEST_SLICE = 500
"""Servers times days; splitting less work costs more than parallel slices save."""

SESSION_OF_A_SLICE = sa.text(
    "SELECT set_config('enable_nestloop', 'off', true), set_config('enable_mergejoin', 'off', true), "
    f"set_config('plan_cache_mode', 'force_custom_plan', true), set_config('{WRITER_SETTING}', 'on', true), "
    "set_config('work_mem', CAST(greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 65536) AS text), true)"
)
"""Right after a load, the statistics do not include the new windows: the planner then expects one row and uses nested
loops, or merges by the day alone, which compares each row with every row of its window. From the eleventh slice on it
would use a generic plan, which takes three times as long for a quarter. Writes of this transaction are not recorded as
changes. Its sorts stay in memory."""

READ_ONLY = sa.text("SET TRANSACTION READ ONLY")
"""PostgreSQL enforces that a dry run writes nothing."""

SECONDS_BETWEEN_LINES = 10
"""Seconds between lines of progress in the log; shorter runs have none."""

LEFT_OUT_OF_GROUPS = f"left out of all groups on at least one day of this window: {IMPOSSIBLE_SIZES}"
NOT_ACTIVE = "not active"
OUT_OF_RANGE = "22003"
UNIQUE_VIOLATION = "23505"
TURNS = 3
"""How often a slice is tried while another session inserts the same rows."""

logger = logging.getLogger("capacity_assets")


@dataclass
class AggregationRunner:
    """Computes and writes one level, in transactions of at most `instances_per_slice` instances, some side by side."""

    level: Level
    engine: sa.Engine
    instances_per_slice: int = INSTANCES_PER_SLICE
    parallel_slices: int = DEFAULT_PARALLEL_SLICES
    # The guard uses a separate connection, which two threads must not use at once.
    _guarding: Lock = field(default_factory=Lock)
    _distributed: bool = False

    def aggregate(self, whole: AggregationWork) -> tuple[PeriodSummary, ...]:
        """Aggregate the windows of `whole` for its instances, slice by slice; return one summary per window.

        In a dry run, nothing is written, and the summaries say what would be written.

        Raises DatabaseError: the server, the schema or the connection failed; slices written before are kept.
        """
        started = time.perf_counter()
        summaries: list[PeriodSummary] = [self._empty(whole.period, window) for window in whole.windows]
        instances_written, logged_at = 0, started
        with database_errors(doing="reading where the tables are"):
            self._distributed = self.level.has_servers and is_distributed(self.engine)
        slices = list(self._slices(whole))
        for work, written in zip(slices, self._aggregate_slices(slices), strict=True):
            summaries += written
            instances_written += len(work.instances)
            if whole.options.progress:
                whole.options.progress(len(work.instances))
            if time.perf_counter() - logged_at >= SECONDS_BETWEEN_LINES and instances_written < len(whole.instances):
                logged_at = time.perf_counter()
                line = "%s %s aggregates: %s of %s servers written so far"
                logger.info(line, whole.period.name, self.level.name, instances_written, len(whole.instances))
        share = (time.perf_counter() - started) / len(whole.windows)
        return tuple(replace(summary, duration_seconds=share) for summary in combine(summaries))

    def _slices(self, whole: AggregationWork) -> Iterator[AggregationWork]:
        if not self.level.has_servers:
            yield whole
            return
        if len(whole.instances) * whole.rows_read > INSTANCE_DAYS_PER_SLICE:
            # Days before the first sample, such as those of the year before, do not count.
            with database_errors(doing="looking for the first sample"):
                day = self.level.source.c.collected_date
                with self.engine.connect() as connection:
                    first_day = connection.execute(sa.select(sa.func.min(day)).where(day >= FIRST_PLAUSIBLE)).scalar()
                whole = replace(whole, since=first_day or date.min)
        # A fleet smaller than a slice is divided as well, so that slices run in parallel.
        worthwhile = max(1, len(whole.instances) * whole.rows_read // SMALLEST_SLICE)
        share = -(-len(whole.instances) // min(self.parallel_slices, worthwhile))
        size = max(1, min(self.instances_per_slice, INSTANCE_DAYS_PER_SLICE // whole.rows_read, share))
        for first in range(0, len(whole.instances), size):
            yield replace(whole, instances=whole.instances[first : first + size])

    def _aggregate_slices(self, slices: Sequence[AggregationWork]) -> Iterator[list[PeriodSummary]]:
        """Write slices one after the other or in parallel; yield the summaries of each, in order.

        An error is raised after the slices before its own are done. Until then, others may begin; those that were begun
        are finished, and kept.
        """
        if self.parallel_slices == 1 or len(slices) == 1:
            yield from map(self._aggregate_slice, slices)
            return
        with ThreadPoolExecutor(self.parallel_slices, thread_name_prefix="slice") as threads:
            yield from threads.map(self._aggregate_slice, slices)

    def _aggregate_slice(self, work: AggregationWork, turn: int = 1) -> list[PeriodSummary]:
        """Write one slice; on a data error write its halves instead.

        If another session inserted one of its rows in the meantime, it is written again and updates that row.
        """
        try:
            return self._write(work)
        except DBAPIError as error:
            if sqlstate_of(error) == UNIQUE_VIOLATION and turn < TURNS:
                return self._aggregate_slice(work, turn + 1)
            if not is_data_error(error):
                raise self._failure(error, work) from error
            halves = work.halves(by_server=self.level.has_servers)
            if halves is None:
                return [self._summary_of_failure(work, error)]
        except PoolTimeoutError as error:
            raise self._failure(error, work) from error
        return [summary for half in halves for summary in self._aggregate_slice(half)]

    def _write(self, work: AggregationWork) -> list[PeriodSummary]:
        options = work.options
        with self.engine.begin() as connection:
            if not self.level.has_servers:
                work = replace(work, gone=prepare_group_days(connection, work))
            if options.dry_run:
                connection.execute(READ_ONLY)
            left = replace(work, windows=[window for window in work.windows if window not in work.gone])
            compute = self._write_on_nodes if self._distributed else self._write_at_once
            counts = compute(connection, left) if left.windows else {}
            if options.guard:
                with self._guarding:
                    options.guard()
        return [self._summary_of_counts(work, window, counts.get(window.start)) for window in work.windows]

    def _summary_of_counts(self, work: AggregationWork, window: Window, row: sa.Row[Any] | None) -> PeriodSummary:
        """Summarise a window from its row of counts; without one it has no samples, or its rows were kept."""
        empty = self._empty(work.period, window)
        if row is None:
            return replace(empty, skipped_instances=len(work.instances), unsampled_records=work.gone.get(window, 0))
        left_out = self._left_out(work, row.left_out)
        active, active_left_out = len(work.instances), sum(error.instance_name != NOT_ACTIVE for error in left_out)
        # Groups also include servers that are not active.
        processed = min(row.instances, max(row.instances, active) - active_left_out)
        return replace(
            empty,
            processed_instances=processed,
            failed_instances=len(left_out),
            skipped_instances=max(0, active - processed - active_left_out),
            errors=left_out[:MAXIMUM_LISTED_ERRORS],
            written_records=row.written,
            unchanged_records=row.unchanged,
            protected_records=row.records - row.written - row.unchanged,
            removed_records=row.removed,
            unsampled_records=row.unsampled,
        )

    def _left_out(self, work: AggregationWork, numbers: str | None) -> tuple[InstanceError, ...]:
        """Return the servers that are in no group on a day of a window as errors, from their numbers."""
        names = {instance.id: instance.name for instance in work.instances} if numbers else {}
        ids = sorted(map(int, numbers.split(","))) if numbers else []
        return tuple(InstanceError(number, names.get(number, NOT_ACTIVE), LEFT_OUT_OF_GROUPS) for number in ids)

    def _write_at_once(self, connection: sa.Connection, work: AggregationWork) -> dict[date, Any]:
        """Compute, decide, write and count in one statement."""
        # Rows of groups follow the labels, so a row with more days than there are now is replaced.
        overwrite = work.options.overwrite or not self.level.has_servers
        parameters = {**work.parameters(), "overwrite": overwrite}
        sources = self._sources(connection, work, parameters)
        statement = aggregation_statement(self.level, sources, overwrite=overwrite, dry_run=work.options.dry_run)
        connection.execute(SESSION_OF_A_SLICE)
        return {row.period_start: row for row in execute(connection, statement, parameters)}

    def _sources(
        self, connection: sa.Connection, work: AggregationWork, parameters: Mapping[str, object]
    ) -> StatementSources:
        """Return the sources to read; if all windows were computed before, they have rows, and no lookup is needed."""
        summed_windows, days = work.inputs
        read = StatementSources(samples=bool(days), shorter_windows=bool(summed_windows))
        wanted = {window.start for window in work.windows}
        if wanted <= work.computed:
            return read
        stored = {row.window_start for row in execute(connection, stored_windows(self.level), parameters)}
        are_days = all(window.start == window.end for window in work.windows)
        is_read_twice = any(day in stored for span in days for day in span.dates) if are_days else True
        # Over more than a year, both SELECTs of stored rows find rows in both of their spans.
        first, last = work.period.previous(work.windows[0]), work.period.year_before(work.windows[-1])
        is_stored_twice = bool(stored) and first.start <= last.start
        return replace(
            read,
            rows=bool(stored),
            wanted_rows=bool(wanted & stored),
            year_before=work.reads_a_year_before(stored),
            are_disjoint=not (summed_windows or is_read_twice or is_stored_twice),
        )

    def _write_on_nodes(self, connection: sa.Connection, work: AggregationWork) -> dict[date, Any]:
        """Do the same with several statements that run on the nodes: count, and write if there is anything to write."""
        for setting in SETTINGS_OF_A_SLICE:
            connection.exec_driver_sql(setting)
        statements, parameters = node_statements(self.level), work.parameters()
        rows = connection.execute(statements.counts, parameters).mappings()
        counts = {row["period_start"]: SimpleNamespace(**row) for row in rows}
        if work.options.dry_run:
            return counts
        to_write = sum(row.written for row in counts.values())
        if to_write:
            parameters |= {
                "row_numbers": connection.execute(statements.row_numbers).scalar_one(),
                "written_at": connection.execute(sa.select(sa.func.now())).scalar_one(),
            }
            counted = {"preserve_rowcount": True}
            inserted = connection.execute(statements.insert, parameters, execution_options=counted)
            updated = connection.execute(statements.update, parameters, execution_options=counted)
            if inserted.rowcount + updated.rowcount != to_write:
                # Another session wrote in between.
                written = {row.period_start: row.rows for row in connection.execute(statements.written, parameters)}
                for start, row in counts.items():
                    row.written = written.get(start, 0)
        if any(row.removed for row in counts.values()):
            connection.execute(statements.remove, parameters)
        return counts

    def _empty(self, period: Period, window: Window) -> PeriodSummary:
        return PeriodSummary(period.name, self.level.name, window.start, window.end)

    def _summary_of_failure(self, work: AggregationWork, error: DBAPIError) -> PeriodSummary:
        [window] = work.windows
        instance = work.instances[0] if self.level.has_servers else InstanceRef(0, "every group")
        reason = reason_of(error)
        if sqlstate_of(error) == OUT_OF_RANGE:
            is_sum = self.level.has_several_rows_of_a_server
            what = "a size, or the sum of the server's databases," if is_sum else "a size"
            reason += f": {what} in this window, or in one it is compared with, is above 8 EiB, which is impossible"
        failure = InstanceError(instance.id, instance.name, reason)
        return replace(self._empty(work.period, window), failed_instances=1, errors=(failure,))

    def _failure(self, error: DatabaseFailure, work: AggregationWork) -> Exception:
        first, last = work.windows[0].start, work.windows[-1].end
        doing = f"computing {work.period.name} {self.level.name} aggregates from {first} to {last}"
        kept = "Completed slices were kept; the current slice was rolled back."
        return database_error(error, doing=doing, kept=kept)


@dataclass(frozen=True)
class InstanceError:
    """A server that failed in a window, with the reason."""

    instance_id: int
    instance_name: str
    reason: str

    def __str__(self) -> str:
        return f"server {self.instance_id} ({self.instance_name}): {self.reason}"


@dataclass(frozen=True)
class WindowCoverage:
    """The coverage of a window: days with samples, days up to and including today, all days."""

    measured_days: int
    elapsed_days: int
    window_days: int

    @property
    def is_open(self) -> bool:
        """Whether days of the window are still to come."""
        return self.elapsed_days < self.window_days

    @property
    def percent(self) -> float:
        """Measured days in percent of all days of the window, one decimal."""
        return round(self.measured_days * 100 / self.window_days, 1)

    @property
    def message(self) -> str:
        """The days in one sentence."""
        if self.is_open:
            return (
                f"The window is open: samples on {self.measured_days} of {counted(self.elapsed_days, 'day')} so far; "
                f"it has {self.window_days} days."
            )
        return f"Samples on {self.measured_days} of {counted(self.window_days, 'day')}."

    def to_dict(self) -> dict[str, object]:
        """Return the published keys."""
        return {**asdict(self), "coverage_percent": self.percent, "is_open": self.is_open}


@dataclass(frozen=True)
class PeriodSummary:
    """Outcome of one window at one level; summaries of disjoint instances of one window can be added.

    `unsampled_records` are stored rows that are kept without any sample left; they are not part of `total_records`.
    `coverage` is None if it was not looked up.
    """

    period_type: str
    level: str
    period_start: date
    period_end: date
    processed_instances: int = 0
    failed_instances: int = 0
    skipped_instances: int = 0
    written_records: int = 0
    unchanged_records: int = 0
    protected_records: int = 0
    removed_records: int = 0
    unsampled_records: int = 0
    errors: tuple[InstanceError, ...] = ()
    duration_seconds: float = 0.0
    coverage: WindowCoverage | None = None

    @property
    def total_instances(self) -> int:
        """Active instances in scope: processed, failed and skipped."""
        return self.processed_instances + self.failed_instances + self.skipped_instances

    @property
    def total_records(self) -> int:
        """Rows the raw data supports: written, unchanged and protected."""
        return self.written_records + self.unchanged_records + self.protected_records

    @property
    def status(self) -> AggregationStatus:
        """Failed if any instance failed, skipped if none was processed, otherwise completed."""
        return AggregationStatus.of(self.failed_instances, self.processed_instances)

    @property
    def message(self) -> str:
        """One sentence that a person can act on."""
        window = f"{self.period_type} {self.level} aggregates {self.period_start} to {self.period_end}"
        if self.status is AggregationStatus.FAILED:
            their = "its existing rows" if self.failed_instances == 1 else "their existing rows"
            stored = f" The rows of {counted(self.processed_instances, 'other server')} are stored."
            failed = f"{window}: {self.failed_instances} of {counted(self.total_instances, 'server')} failed"
            if self.errors and self.errors[0].reason == LEFT_OUT_OF_GROUPS:
                return f"{failed}; groups do not include them on days with impossible sizes."
            return f"{failed}; {their} are unchanged.{stored if self.processed_instances else ''}"
        if self.status is AggregationStatus.SKIPPED:
            reason = "no active server" if not self.total_instances else "no server has samples in this window"
            return f"{window}: nothing to do, {reason}."
        return (
            f"{window}: {self.processed_instances} of {counted(self.total_instances, 'server')} processed, "
            f"{counted(self.written_records, 'row')} written, {self.unchanged_records} unchanged, "
            f"{self.protected_records} protected{_unsampled_text(self.unsampled_records)}."
            + (f" {self.coverage.message}" if self.coverage else "")
        )

    def __add__(self, other: PeriodSummary) -> PeriodSummary:
        """Add the outcome of further instances in the same window."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNT_FIELDS}
        errors = (self.errors + other.errors)[:MAXIMUM_LISTED_ERRORS]
        return replace(self, **sums, errors=errors, duration_seconds=self.duration_seconds + other.duration_seconds)

    def to_dict(self) -> dict[str, object]:
        """Return the summary under the published keys (docs/semantics.md, "Summaries"), plain JSON values."""
        return {
            "status": self.status.value,
            "period_type": self.period_type,
            "level": self.level,
            "period_start": self.period_start.isoformat(),
            "period_end": self.period_end.isoformat(),
            **{name: getattr(self, name) for name in _PUBLISHED_COUNTS},
            **({} if self.coverage is None else self.coverage.to_dict()),
            "error_count": self.failed_instances,
            "errors": [str(error) for error in self.errors],
            "message": self.message,
            "duration_seconds": round(self.duration_seconds, 3),
        }


_OF_INSTANCES = tuple(each.name for each in fields(PeriodSummary) if each.name.endswith("_instances"))
_OF_RECORDS = tuple(each.name for each in fields(PeriodSummary) if each.name.endswith("_records"))
COUNT_FIELDS = (*_OF_INSTANCES, *_OF_RECORDS)
_PUBLISHED_COUNTS = ("total_instances", *_OF_INSTANCES, "total_records", *_OF_RECORDS)


@dataclass(frozen=True)
class RunSummary:
    """Outcome of a run over any number of windows, periods and levels."""

    summaries: tuple[PeriodSummary, ...] = ()

    @property
    def status(self) -> AggregationStatus:
        """Failed if any window failed, skipped only if all are, otherwise completed."""
        return AggregationStatus.of(self.total("failed_instances"), self.total("processed_instances"))

    @property
    def everything_failed(self) -> bool:
        """Whether servers failed and none was processed."""
        return self.total("failed_instances") > 0 and self.total("processed_instances") == 0

    @property
    def errors(self) -> tuple[InstanceError, ...]:
        """The first failures of the run, at most twenty; `total("failed_instances")` is the exact count."""
        return tuple(error for summary in self.summaries for error in summary.errors)[:MAXIMUM_LISTED_ERRORS]

    @property
    def message(self) -> str:
        """One sentence on the whole run."""
        windows = len({(summary.period_type, summary.period_start) for summary in self.summaries})
        what = counted(windows, "window")
        if self.status is AggregationStatus.FAILED:
            return (
                f"{what}: {counted(self.total('failed_instances'), 'server computation')} failed, "
                f"{self.total('processed_instances')} succeeded and were kept. First: {self.errors[0]}."
            )
        if self.status is AggregationStatus.SKIPPED:
            reason = "has samples in" if self.total("total_instances") else "is in scope of"
            these = "this window" if windows == 1 else f"these {what}"
            span = f" (from {min(summary.period_start for summary in self.summaries)})" if self.summaries else ""
            return f"Nothing to do: no active server {reason} {these}{span}."
        removed = self.total("removed_records")
        return (
            f"{what}: {counted(self.total('written_records'), 'row')} written, "
            f"{self.total('unchanged_records')} unchanged, {self.total('protected_records')} protected"
            f"{f', {removed} removed' if removed else ''}{_unsampled_text(self.total('unsampled_records'))}."
        )

    def total(self, name: str) -> int:
        """Add up one count of `PeriodSummary` over all windows."""
        return sum(getattr(summary, name) for summary in self.summaries)

    def of_period(self, period_type: str) -> RunSummary:
        """Return the summaries of one period."""
        return RunSummary(tuple(summary for summary in self.summaries if summary.period_type == period_type))

    def of_level(self, level: str) -> RunSummary:
        """Return the summaries of one level."""
        return RunSummary(tuple(summary for summary in self.summaries if summary.level == level))

    def __add__(self, other: RunSummary) -> RunSummary:
        """Combine two runs."""
        return RunSummary(self.summaries + other.summaries)

    def to_dict(self) -> dict[str, object]:
        """Return status, message, totals and one entry per window and level; plain JSON values."""
        return {
            "status": self.status.value,
            "message": self.message,
            "metrics": self.metrics(),
            "windows": [summary.to_dict() for summary in self.summaries],
        }

    def metrics(self) -> dict[str, int]:
        """Return the run's counts; an instance counts once for each window and level it took part in."""
        return {name: self.total(name) for name in ("total_instances", "total_records", *COUNT_FIELDS)}


@dataclass(frozen=True)
class InstanceSummary:
    """Outcome for one instance that was given by id; `active` is False for an instance that is not aggregated."""

    instance_id: int
    instance_name: str
    active: bool
    run: RunSummary = field(default_factory=RunSummary)

    @property
    def status(self) -> AggregationStatus:
        """Skipped for an inactive instance, otherwise the status of its run."""
        return self.run.status if self.active else AggregationStatus.SKIPPED

    @property
    def message(self) -> str:
        """One sentence on the instance."""
        name = f"server {self.instance_id} ({self.instance_name})"
        if not self.active:
            return f"{name} is inactive or deleted and is not aggregated; its stored rows were kept."
        return f"{name}: {self.run.message}"

    def to_dict(self) -> dict[str, object]:
        """Return the keys of the run and of the instance."""
        own = {"instance_id": self.instance_id, "instance_name": self.instance_name}
        return {**self.run.to_dict(), **own, "status": self.status.value, "message": self.message}


def combine(parts: Iterable[PeriodSummary]) -> tuple[PeriodSummary, ...]:
    """Add up partial summaries window by window and return them in order of period, level and start."""
    by_window: dict[tuple[str, str, date], PeriodSummary] = {}
    for part in parts:
        key = (part.period_type, part.level, part.period_start)
        by_window[key] = by_window[key] + part if key in by_window else part
    return tuple(by_window.values())


def _unsampled_text(unsampled: int) -> str:
    return f", {counted(unsampled, 'row')} kept without samples" if unsampled else ""


def coverage_of(
    engine: sa.Engine, levels: Sequence[Level], windows: Sequence[Window], today: date
) -> dict[str, dict[date, WindowCoverage]]:
    """Count the days with a sample of any server, by level and first day of each window; raises DatabaseError."""
    days = [day for window in windows for day in window.dates if day <= today]
    sampled: dict[sa.Table, set[date]] = {}
    with (
        database_errors(doing="counting measured days", kept="Computed windows are kept."),
        engine.connect() as connection,
    ):
        for raw in {raw for level in levels for raw in level.raw_tables}:
            query = _sampled_days(raw, days, on_nodes=is_distributed(engine))
            sampled[raw] = set(connection.execute(query).scalars())
    coverage: dict[str, dict[date, WindowCoverage]] = {}
    for level in levels:
        measured = set().union(*(sampled[raw] for raw in level.raw_tables))
        coverage[level.name] = {
            window.start: WindowCoverage(
                len(measured.intersection(window.dates)), window.elapsed_days(today), window.days
            )
            for window in windows
        }
    return coverage


def _sampled_days(raw: sa.Table, days: Sequence[date], *, on_nodes: bool) -> sa.Select[date]:
    candidates = sa.literal(days, sa.ARRAY(sa.Date))
    is_live = [raw.c.is_deleted.is_(False)] if "is_deleted" in raw.c else []
    if on_nodes:
        # On distributed rows, a subquery must not depend on the row of the outer query.
        return sa.select(raw.c.collected_date).distinct().where(raw.c.collected_date == sa.any_(candidates), *is_live)
    day: sa.ColumnElement[date] = sa.func.unnest(candidates).column_valued("day")
    # LIMIT 1 keeps the probe a probe: EXISTS becomes a join with every sample of these days.
    probe = sa.select(sa.true()).where(raw.c.collected_date == day, *is_live).limit(1)
    return sa.select(day).where(probe.scalar_subquery())
