"""Write the aggregates of windows for instances, one level at a time.

Instances go in bounded slices, each its own transaction, so that an interruption keeps what was written
and a repetition continues. When the rows of a slice are at fault, the slice is halved until the failing
instance, and for it the failing windows, are alone; everything else is written. Several slices may be
written side by side. Which instances and windows take part is decided by `service`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.aggregation.group_days import prepare_group_days
from capacity_assets.aggregation.results import InstanceError, PeriodSummary, combine
from capacity_assets.aggregation.states import STORED_ROWS, of_samples, of_shorter_windows
from capacity_assets.aggregation.work import InstanceRef, Work
from capacity_assets.aggregation.writing import aggregation_statement, execute, node_statements
from capacity_assets.errors import (
    DatabaseFailure,
    database_error,
    database_errors,
    is_data_error,
    reason_of,
    sqlstate_of,
)
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Period, Window
from capacity_assets.storage.change_tracking import WRITER_SETTING
from capacity_assets.storage.distribution import SETTINGS_OF_A_SLICE, is_distributed

INSTANCES_PER_SLICE = 1000
"""A thousand servers of twenty databases are about 20,000 rows per daily window, written in one transaction."""

INSTANCE_DAYS_PER_SLICE = 10_000
"""Bounds the rows of one statement, about 200,000 for servers of twenty databases, however long the range, so that
what it sorts and keeps stays in memory."""

SESSION_OF_A_SLICE = text(
    "SELECT set_config('enable_nestloop', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true), "
    f"set_config('{WRITER_SETTING}', 'on', true), "
    "set_config('work_mem', CAST(greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 65536) AS text), true)"
)
"""Right after a load the statistics know nothing of the new windows; the planner then expects one row and loops. From
the eleventh slice on it would plan for no window in particular, which takes three times as long over a quarter. What
this transaction writes is our own computation, not a foreign change. What it sorts stays in memory."""

READ_ONLY = text("SET TRANSACTION READ ONLY")
"""PostgreSQL enforces that a dry run writes nothing."""

SECONDS_BETWEEN_LINES = 10
"""Between lines of progress in the log; shorter runs have none."""

OUT_OF_RANGE = "22003"
UNIQUE_VIOLATION = "23505"
TURNS = 3
"""How often a slice is written while another session inserts the same rows."""

logger = logging.getLogger("capacity_assets")


class AggregationRunner:
    """Computes and writes one level."""

    def __init__(
        self, level: Level, engine: Engine, *, instances_per_slice: int = INSTANCES_PER_SLICE, parallel_slices: int = 1
    ) -> None:
        """Work through `engine` in transactions of at most `instances_per_slice` instances, some side by side."""
        self.level = level
        self._engine = engine
        self._instances_per_slice = instances_per_slice
        self._parallel_slices = parallel_slices
        # The guard asks on a connection of its own, which two threads must not use at once.
        self._guarding = threading.Lock()
        self._distributed = False

    def aggregate(self, whole: Work) -> tuple[PeriodSummary, ...]:
        """Aggregate the windows of `whole` for its instances, slice by slice; return one summary per window.

        In a dry run nothing is written, and the summaries say what would be.

        Raises:
            DatabaseError: the server, the schema or the connection failed; slices written before are kept.
        """
        started = time.perf_counter()
        summaries: list[PeriodSummary] = [self._empty(whole.period, window) for window in whole.windows]
        done, logged_at = 0, started
        with database_errors(doing="asking where the tables lie", kept="Nothing of this level was written."):
            self._distributed = self.level.has_servers and is_distributed(self._engine)
        slices = list(self._slices(whole))
        for work, written in zip(slices, self._aggregate_slices(slices), strict=True):
            summaries += written
            done += len(work.instances)
            if whole.options.progress:
                whole.options.progress(len(work.instances))
            if time.perf_counter() - logged_at >= SECONDS_BETWEEN_LINES and done < len(whole.instances):
                logged_at = time.perf_counter()
                line = "%s %s aggregates: %s of %s servers written, going on"
                logger.info(line, whole.period.name, self.level.name, done, len(whole.instances))
        share = (time.perf_counter() - started) / len(whole.windows)
        return tuple(replace(part, duration_seconds=share) for part in combine(summaries))

    def _slices(self, whole: Work) -> Iterator[Work]:
        if not self.level.has_servers:
            yield whole
            return
        if len(whole.instances) * whole.rows_read > INSTANCE_DAYS_PER_SLICE:
            # Days of before the first sample, such as those of a year before, make no slice larger.
            with database_errors(doing="looking for the first sample", kept="Nothing of this level was written."):
                whole = replace(whole, since=self._first_day() or date.min)
        # A fleet smaller than a slice is divided all the same, so that there is something to do side by side.
        share = -(-len(whole.instances) // self._parallel_slices)
        size = max(1, min(self._instances_per_slice, INSTANCE_DAYS_PER_SLICE // whole.rows_read, share))
        for first in range(0, len(whole.instances), size):
            yield replace(whole, instances=whole.instances[first : first + size])

    def _first_day(self) -> date | None:
        with self._engine.connect() as connection:
            return connection.execute(select(func.min(self.level.source.c.collected_date))).scalar()

    def _aggregate_slices(self, slices: Sequence[Work]) -> Iterator[list[PeriodSummary]]:
        """Write slices one after the other or in parallel; yield the summaries of each, in order.

        After an error no further slice is begun; those at work are finished first, and kept.
        """
        if self._parallel_slices == 1:
            yield from map(self._aggregate_slice, slices)
            return
        with ThreadPoolExecutor(self._parallel_slices, thread_name_prefix="slice") as threads:
            yield from threads.map(self._aggregate_slice, slices)

    def _aggregate_slice(self, work: Work) -> list[PeriodSummary]:
        """Write one slice; on a data error write its halves instead."""
        try:
            return self._write_in_turn(work)
        except DBAPIError as error:
            if not is_data_error(error):
                raise self._failure(error, work) from error
            halves = work.halves(by_server=self.level.has_servers)
            if halves is None:
                return [self._failed(work, error)]
        except PoolTimeoutError as error:
            raise self._failure(error, work) from error
        return [part for half in halves for part in self._aggregate_slice(half)]

    def _write_in_turn(self, work: Work) -> list[PeriodSummary]:
        """Write a slice; where another session inserted one of its rows meanwhile, once more, over that row."""
        for _ in range(TURNS - 1):
            try:
                return self._write(work)
            except DBAPIError as error:
                if sqlstate_of(error) != UNIQUE_VIOLATION:
                    raise
        return self._write(work)

    def _write(self, work: Work) -> list[PeriodSummary]:
        options = work.options
        with self._engine.begin() as connection:
            if not self.level.has_servers:
                work = replace(work, gone=prepare_group_days(connection, work))
            if options.dry_run:
                connection.execute(READ_ONLY)
            found = self._found(connection, work)
            if options.guard:
                with self._guarding:
                    options.guard()
        return [self._counted(work, window, found.get(window.start)) for window in work.windows]

    def _found(self, connection: Connection, work: Work) -> dict[date, Any]:
        """Compute and write, and return what became of each window."""
        left = replace(work, windows=[window for window in work.windows if window not in work.gone])
        if not left.windows:
            return {}
        return self._on_nodes(connection, left) if self._distributed else self._at_once(connection, left)

    def _counted(self, work: Work, window: Window, row: Row[Any] | None) -> PeriodSummary:
        """Make a summary of what became of a window; no row: nothing was found in it, or it was kept."""
        empty = self._empty(work.period, window)
        if row is None:
            return replace(empty, skipped_instances=len(work.instances), unsampled_records=work.gone.get(window, 0))
        return replace(
            empty,
            processed_instances=row.instances,
            # Of a group, servers count that were not asked for.
            skipped_instances=max(0, len(work.instances) - row.instances),
            written_records=row.written,
            unchanged_records=row.unchanged,
            protected_records=row.records - row.written - row.unchanged,
            removed_records=row.removed,
            unsampled_records=row.unsampled,
        )

    def _at_once(self, connection: Connection, work: Work) -> dict[date, Row[Any]]:
        """Compute, decide, write and count in one statement."""
        # Rows of groups follow the labels, so none is kept because it once rested on more days than now.
        overwrite = work.options.overwrite or not self.level.has_servers
        parts, days = work.reading
        read = ((of_samples, days), (of_shorter_windows, parts))
        sources = (*(source for source, there in read if there), *STORED_ROWS)
        statement = aggregation_statement(self.level, sources, overwrite=overwrite, dry_run=work.options.dry_run)
        connection.execute(SESSION_OF_A_SLICE)
        return {
            row.period_start: row
            for row in execute(connection, statement, {**work.parameters(), "overwrite": overwrite})
        }

    def _on_nodes(self, connection: Connection, work: Work) -> dict[date, Any]:
        """Do the same with several statements, each of which runs on the nodes: count, and write if there is any."""
        for setting in SETTINGS_OF_A_SLICE:
            connection.exec_driver_sql(setting)
        statements = node_statements(self.level)
        parameters, options = work.parameters(), work.options

        def per_window(query: Select[Any]) -> dict[date, int]:
            return {row.period_start: row.rows for row in connection.execute(query, parameters)}

        counts = {row.period_start: row for row in connection.execute(statements.counts, parameters)}
        removed = per_window(statements.removable) if options.overwrite else {}
        written = {start: row.to_write for start, row in counts.items()}
        if not options.dry_run and any(written.values()):
            parameters |= {
                "row_numbers": connection.execute(statements.row_numbers).scalar_one(),
                "written_at": connection.execute(select(func.now())).scalar_one(),
            }
            done = 0
            for statement in (statements.insert, statements.update):
                counted = connection.execute(statement, parameters, execution_options={"preserve_rowcount": True})
                done += counted.rowcount
            if done != sum(written.values()):
                # Another session came in between.
                written = per_window(statements.written)
        if any(removed.values()) and not options.dry_run:
            connection.execute(statements.remove, parameters)
        return {
            start: SimpleNamespace(
                instances=row.instances,
                records=row.records,
                written=written.get(start, 0),
                unchanged=row.unchanged,
                removed=removed.get(start, 0),
                unsampled=row.unsampled - removed.get(start, 0),
            )
            for start, row in counts.items()
        }

    def _empty(self, period: Period, window: Window) -> PeriodSummary:
        return PeriodSummary(period.name, self.level.name, window.start, window.end)

    def _failed(self, work: Work, error: DBAPIError) -> PeriodSummary:
        [window] = work.windows
        instance = work.instances[0] if self.level.has_servers else InstanceRef(0, "every group")
        reason = reason_of(error)
        if sqlstate_of(error) == OUT_OF_RANGE:
            reason += ": a size in this window, or in one it is compared with, is above 8 EiB, which is impossible"
        failure = InstanceError(instance.id, instance.name, reason)
        return replace(self._empty(work.period, window), failed_instances=1, errors=(failure,))

    def _failure(self, error: DatabaseFailure, work: Work) -> Exception:
        first, last = work.windows[0].start, work.windows[-1].end
        doing = f"computing {work.period.name} {self.level.name} aggregates from {first} to {last}"
        kept = "What was committed before was kept; the slice at work was rolled back whole."
        return database_error(error, doing=doing, kept=kept)
