"""`TableMaintenance`: partitions ahead of time, rows out of the default ones, old rows away as whole partitions.

Samples go only when nothing needs them any more: every window that reads a day of the partition, its own days or
those it compares with, is over, and was computed over the samples as they are, without a failed server. Each
partition is a transaction of its own, decided and done under its lock; an interruption keeps what was done.

How partitions are made is the business of `storage.partitions`; how long rows are kept, of `retention`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.aggregation.errors import database_error
from capacity_assets.aggregation.ledger import Ledger
from capacity_assets.aggregation.levels import LEVELS, Level
from capacity_assets.aggregation.retention import Retention
from capacity_assets.periods import PERIODS, Period
from capacity_assets.storage.conversion import build_key, needs_conversion, problems_of, swap
from capacity_assets.storage.partitions import (
    AGGREGATES,
    PARTITIONED,
    Layout,
    Partition,
    Span,
    add_partition,
    condition_of,
    drop_partition,
    empty_default,
    has_rows,
    layout_of,
    lock_partition,
    parameters_of,
    spans_between,
    spans_in_default,
)
from capacity_assets.storage.schema import SchemaProblemsError

logger = logging.getLogger("capacity_assets")

AHEAD_DAYS = 62
"""Partitions exist this long before their first row: two months, or the next year from November on."""

LOCK_TIMEOUT_SECONDS = 10
"""Whoever waits for a table makes everyone after it wait; better to come back."""

_MAINTENANCE_LOCK = 0x70617274  # "part": one maintenance at a time, step by step
_BYTES_PER_MB = 1024 * 1024


@dataclass
class MaintenanceReport:
    """What was done, or, in a dry run, would be; `kept` and `notes` say why something was not."""

    dry_run: bool
    converted: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    moved_records: int = 0
    dropped: list[str] = field(default_factory=list)
    dropped_records: int = 0
    freed_mb: int = 0
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, for scripts and metadata."""
        return {
            "dry_run": self.dry_run,
            "created_partitions": len(self.created),
            "moved_records": self.moved_records,
            "dropped_partitions": len(self.dropped),
            "dropped_records": self.dropped_records,
            "freed_mb": self.freed_mb,
            "kept_partitions": len(self.kept),
            "created": self.created,
            "dropped": self.dropped,
            "kept": self.kept,
            "converted": self.converted,
            "notes": self.notes,
        }


class TableMaintenance:
    """Maintains the partitions of one capacity database."""

    def __init__(
        self,
        engine: Engine,
        first_day: date,
        retention: Retention,
        periods: Mapping[str, Period] = PERIODS,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        """Work through `engine`; `first_day` is the first with samples; `tell` hears of each step that was done."""
        self._tell = tell
        self._engine = engine
        self._first_day = first_day
        self._retention = retention
        self._periods = periods
        self._ledger = Ledger(engine, periods)

    def run(self, today: date, *, dry_run: bool = False) -> MaintenanceReport:
        """Add partitions, move rows, apply retention as of `today`; in a dry run only say what would be done.

        Raises:
            DatabaseError: the database failed; what was done before is kept, and a repetition continues.
        """
        report = MaintenanceReport(dry_run)
        self.prepare(today, report)
        for table in PARTITIONED:
            self._retire(table, today, report)
        return report

    def prepare(self, today: date, report: MaintenanceReport | None = None) -> MaintenanceReport:
        """Add the partitions that are wanted as of `today` and those of rows in the default partitions.

        Raises: as `run`.
        """
        report = report or MaintenanceReport(dry_run=False)
        for table in PARTITIONED:
            layout = self._layout(table)
            if not layout.is_partitioned and table.name not in report.converted:
                report.notes.append(f"{table.name} is not partitioned: nothing leaves it; see `capacity partition`")
            elif layout.is_partitioned and not layout.is_served:
                report.notes.append(f"{table.name} is partitioned in a way of its own ({layout.key}): left alone")
            elif layout.is_served:
                self._prepare(table, layout, today, report)
        return report

    def convert(self, today: date, *, dry_run: bool = False) -> MaintenanceReport:
        """Make the plain tables partitioned and move their rows to the partitions, month by month or year by year.

        Stopped at any point, it is continued by calling it again, or by `run`.

        Raises: as `run`; also SchemaProblemsError when something belongs to a table that would not follow, or the
            schema is not there; nothing was changed.
        """
        report = MaintenanceReport(dry_run)
        plain = []
        problems: list[str] = []
        for table in PARTITIONED:
            with self._look(f"looking at {table.name}") as connection:
                if needs_conversion(connection, table):
                    plain.append(table)
                    problems += problems_of(connection, table)
        if problems:
            raise SchemaProblemsError(problems)
        for table in plain:
            report.converted.append(table.name)
            if not dry_run:
                self._convert(table)
        return self.prepare(today, report)

    def shortcomings(self, today: date) -> list[str]:
        """Return what keeps old rows from leaving, in words; changes nothing.

        Raises:
            DatabaseError: the database failed.
        """
        found = []
        next_month = today + timedelta(days=AHEAD_DAYS // 2)
        for table in PARTITIONED:
            with self._look(f"looking at {table.name}") as connection:
                layout = layout_of(connection, table)
                in_default = layout.default is not None and has_rows(connection, layout.default)
            if not layout.is_partitioned:
                found.append(f"{table.name} is not partitioned, so old rows stay: `capacity partition` converts it")
            elif in_default:
                found.append(f"{table.name} has rows in its default partition: `capacity maintain` moves them")
            elif layout.is_served and any(
                not layout.covers(span) for span in self._wanted(table, layout, today, next_month)
            ):
                found.append(
                    f"{table.name} lacks a partition for the coming month: is table_maintenance_schedule on? "
                    "`capacity maintain` adds it"
                )
        return found

    def _convert(self, table: Table) -> None:
        self._tell(f"{table.name}: building the key of the partitioned table, beside whatever is at work")
        try:
            build_key(self._engine, table)
        except DBAPIError as error:
            kept = "The table is as it was. "
            raise database_error(error, doing=f"building the new key of {table.name}", kept=kept) from error
        with self._work(f"putting a partitioned table in the place of {table.name}") as connection:
            swap(connection, table)
        self._tell(f"{table.name}: partitioned; its rows lie in the default partition until they are moved")

    def _prepare(self, table: Table, layout: Layout, today: date, report: MaintenanceReport) -> None:
        last = today + timedelta(days=AHEAD_DAYS)
        with self._look(f"looking at {table.name}") as connection:
            found = spans_in_default(connection, table, layout)
        wanted = {span for span in self._wanted(table, layout, today, last) if not layout.covers(span)}
        beyond = [span for span in found if span.first > last]
        if beyond:
            report.notes.append(
                f"{table.name} holds rows from {beyond[0].first} on, more than {AHEAD_DAYS} days ahead: they stay in "
                f"{layout.default.name if layout.default else 'the default partition'}"
            )
        for span in sorted(wanted | {span for span in found if span.first <= last}, key=str):
            with self._work(f"adding the partition of {table.name} for {span}") as connection:
                if report.dry_run:
                    report.moved_records += _rows_in_default(connection, table, layout, span)
                    report.created.append(f"{table.name}: {span}")
                    continue
                current = layout_of(connection, table)
                if current.covers(span):
                    continue
                moved = add_partition(connection, table, current, span)
            report.moved_records += moved
            report.created.append(f"{table.name}: {span}")
            if moved:
                self._tell(f"{table.name}: {moved:,} rows moved to the partition of {span}")
        if found and not beyond and not report.dry_run:
            with self._work(f"giving back the space of moved rows of {table.name}") as connection:
                empty_default(connection, layout)

    def _wanted(self, table: Table, layout: Layout, today: date, last: date) -> Iterator[Span]:
        """The spans from the first day that is kept to the last one wanted ahead."""
        level = _level_of(table)
        if not layout.by_period:
            days = self._days_kept(table, None, level)
            yield from spans_between(min(self._begin(today, days), last), last)
            return
        for period in self._periods.values():
            begin = self._begin(today, self._days_kept(table, period.name, level))
            yield from spans_between(min(period.window_of(begin).start, last), last, period)

    def _begin(self, today: date, days: int | None) -> date:
        return self._first_day if days is None else max(self._first_day, today - timedelta(days=days))

    def _days_kept(self, table: Table, period: str | None, level: Level) -> int | None:
        """How long the rows of a partition are kept; one that holds several periods keeps the longest."""
        if table not in AGGREGATES:
            return self._retention.of_samples(level)
        if period is not None:
            return self._retention.of_aggregates(period, level)
        every = [self._retention.of_aggregates(name, level) for name in self._periods]
        bounded = [days for days in every if days is not None]
        return max(bounded) if len(bounded) == len(every) else None

    def _retire(self, table: Table, today: date, report: MaintenanceReport) -> None:
        layout = self._layout(table)
        if not layout.is_served:
            return
        level = _level_of(table)
        for partition in layout.partitions:
            span = partition.span
            days = self._days_kept(table, span.period_type, level) if span else None
            if span and days is not None and span.last < today - timedelta(days=days):
                self._retire_partition(table, partition, today, report)

    def _retire_partition(self, table: Table, partition: Partition, today: date, report: MaintenanceReport) -> None:
        with self._work(f"retiring {partition.name}") as connection:
            reason = self._reason_to_keep(connection, table, partition, today)
            if reason is None and not report.dry_run:
                # The table before its partition, as readers do; after that nothing can arrive any more.
                connection.exec_driver_sql(f"LOCK TABLE ONLY {table.name} IN ACCESS EXCLUSIVE MODE")
                rows = lock_partition(connection, partition)
                reason = self._reason_to_keep(connection, table, partition, today)
            elif reason is None:
                rows = int(connection.exec_driver_sql(f"SELECT count(*) FROM {partition.name}").scalar_one())  # noqa: S608 -- from the catalogue
            if reason is not None:
                report.kept.append(f"{partition.name}: {reason}")
                return
            if not report.dry_run:
                drop_partition(connection, table, partition)
        report.dropped.append(f"{partition.name}: {rows:,} rows, {partition.span}")
        if not report.dry_run:
            self._tell(f"{partition.name}: dropped with {rows:,} rows, {partition.span}")
        report.dropped_records += rows
        report.freed_mb += partition.size_bytes // _BYTES_PER_MB

    def _reason_to_keep(self, connection: Connection, table: Table, partition: Partition, today: date) -> str | None:
        """Say which window still needs the samples of a partition; aggregates are needed by nothing else."""
        span = partition.span
        if span is None or table in AGGREGATES:
            return None
        level = _level_of(table)
        for period in self._periods.values():
            windows = [*period.windows_between(span.first, span.last)]
            windows.append(period.following(windows[-1]))
            reading = [window for window in windows if window.start >= period.window_of(self._first_day).start]
            if reading and reading[-1].end >= today:
                return f"the {period.name} window from {reading[-1].start} reads them and is not over"
            left = self._ledger.windows_left(connection, period, level, reading)
            if left:
                return f"the {period.name} window from {left[0].window.start} reads them and {left[0].reason}"
        return None

    def _layout(self, table: Table) -> Layout:
        with self._look(f"looking at {table.name}") as connection:
            return layout_of(connection, table)

    @contextmanager
    def _work(self, doing: str) -> Iterator[Connection]:
        """Work alone: another maintenance waits for this transaction."""
        with self._look(doing) as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MAINTENANCE_LOCK})
            yield connection

    @contextmanager
    def _look(self, doing: str) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                # A month of a large fleet takes longer to move than a statement may otherwise take.
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            raise database_error(error, doing=doing, kept="What was done before was kept; no row was lost.") from error


def _level_of(table: Table) -> Level:
    return next(level for level in LEVELS.values() if table in (level.source, level.target))


def _rows_in_default(connection: Connection, table: Table, layout: Layout, span: Span) -> int:
    if layout.default is None:
        return 0
    query = f"SELECT count(*) FROM {layout.default.name} WHERE {condition_of(table, span)}"  # noqa: S608 -- from the catalogue
    return int(connection.execute(text(query), parameters_of(span)).scalar_one())
