"""How long rows are kept, and the maintenance of the table partitions.

Maintenance adds partitions ahead, moves rows out of default partitions, and drops partitions that are older than the
rules allow: those of `DEFAULT_RETENTION`, except where CAPACITY_RETENTION_DAYS has others. Samples of a day are dropped
once every window that contains the day or compares with it is over, computed from the current samples without a failed
server, and stored.

Each partition is a transaction of its own, decided and done under its lock: an interruption keeps finished work, and an
error in one table does not prevent the maintenance of the others. `database.partitions` creates partitions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, Table, text

from capacity_assets.aggregates.ledger import IncompleteWindow, Ledger
from capacity_assets.aggregates.levels import GROUP, LEVELS, Level, aggregates_name
from capacity_assets.base.errors import DatabaseError, database_errors
from capacity_assets.base.periods import PERIODS, YEAR_AND_MONTH_DAYS, Clock, Period, Window
from capacity_assets.base.settings import ConfigurationError
from capacity_assets.base.units import BYTES_PER_MB, counted, human_day
from capacity_assets.database.cluster import size_of_table
from capacity_assets.database.engine import TodayCheck, check_today
from capacity_assets.database.locks import wait_for_lock
from capacity_assets.database.partitions import (
    AHEAD_DAYS,
    PARTITIONED,
    UNREAD,
    DefaultRows,
    Partition,
    PartitionBounds,
    PartitionLayout,
    bounds_between,
    bounds_of,
    layout_of,
    partition_name,
)
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.tables import AGGREGATES, SAMPLES, capacity_runways, object_size_stats
from capacity_assets.forecast.results import HISTORY_DAYS

logger = logging.getLogger("capacity_assets")

VARIABLE = "CAPACITY_RETENTION_DAYS"
RAW = "raw"
FOREVER = "forever"
LONGEST_DAYS = 100_000
DEFAULT_RETENTION = f"{RAW}={YEAR_AND_MONTH_DAYS},daily={HISTORY_DAYS},volume_size_stats={HISTORY_DAYS}"
"""The rules without the variable. Volumes have no aggregates, so their samples are kept as long as daily rows."""


@dataclass(frozen=True)
class Retention:
    """The days that rows are kept, by name; None, and a name that is missing: forever."""

    days: Mapping[str, int | None]

    def of(self, table: Table, period: str | None = None) -> int | None:
        """Return for how many days the rows of a table, or its aggregates of a period, are kept; None: forever.

        A rule for a table takes precedence over that of its kind; limits are kept as samples are.
        """
        if period is not None:
            names = [aggregates_name(period, _level_of(table)), period]
        else:
            names = [table.name] if table is capacity_runways else [table.name, RAW]
        return next((self.days[name] for name in names if name in self.days), None)


def _level_of(table: Table) -> Level:
    return next(level for level in LEVELS.values() if table in (level.source, level.target))


def parse_retention(value: str, periods: Iterable[str] = PERIODS) -> Retention:
    """Read `name=days,name=forever`, on top of the defaults; raises ConfigurationError for another form."""
    known = {*periods, *(rule.partition("=")[0] for rule in DEFAULT_RETENTION.split(","))}
    known |= {RAW, *(table.name for table in (*SAMPLES, *UNREAD))}
    known |= {aggregates_name(period, level) for period in periods for level in LEVELS.values()}
    days_by_name: dict[str, int | None] = {}
    for rule in filter(None, (part.strip() for part in f"{DEFAULT_RETENTION},{value}".split(","))):
        name, _, days = (part.strip() for part in rule.partition("="))
        is_number = days.isascii() and days.isdigit() and 1 <= int(days) <= LONGEST_DAYS
        if not is_number and days != FOREVER:
            raise ConfigurationError(
                f"{VARIABLE}: {rule!r} is not a rule; write for example {DEFAULT_RETENTION},weekly={FOREVER}"
            )
        if name not in known:
            raise ConfigurationError(f"{VARIABLE}: {name!r} is not one of {', '.join(sorted(known))}")
        days_by_name[name] = int(days) if is_number else None
    return Retention(days_by_name)


# A year before a day is 364 to 366 days before; windows that begin sooner do not compare with it.
A_YEAR_LATER = timedelta(days=364)
SLACK = timedelta(days=2)
NODE_SECONDS = 10
"""How long a node may take to report its changes, because samples may be locked during this time."""


@dataclass(frozen=True)
class RetentionPlan:
    """The partitions required by the rules, how long each is kept, and the windows that still read old samples.

    `first_day` is the first with samples; `ledger` has the state of windows.
    """

    ledger: Ledger
    first_day: date
    retention: Retention
    periods: Mapping[str, Period]

    def needed_bounds(self, layout: PartitionLayout, today: date, last: date) -> Iterator[PartitionBounds]:
        """The spans from the first day that is kept to the last one wanted ahead."""
        table = layout.table
        if not layout.by_period:
            # Earlier days get partitions only once they have rows.
            begin = today if table in UNREAD else self._begin(today, self.days(table, None))
            yield from bounds_between(min(begin, last), last)
            return
        for period in self.periods.values():
            begin = self._begin(today, self.days(table, period.name))
            yield from bounds_between(min(period.window_of(begin).start, last), last, period)

    def days(self, table: Table, period: str | None) -> int | None:
        """How long the rows of a partition are kept; a partition of several periods is kept as long as the longest."""
        if period is not None or table not in AGGREGATES:
            return self.retention.of(table, period)
        every = [self.retention.of(table, name) for name in self.periods]
        bounded = [days for days in every if days is not None]
        return max(bounded) if len(bounded) == len(every) else None

    def is_old(self, table: Table, span: PartitionBounds, today: date) -> bool:
        """Whether the last day of `span` is longer ago than its rows are kept."""
        days = self.days(table, span.period_type)
        return days is not None and span.last < today - timedelta(days=days)

    def _begin(self, today: date, days: int | None) -> date:
        return self.first_day if days is None else max(self.first_day, today - timedelta(days=days))

    def reason_to_keep(
        self, connection: Connection, table: Table, span: PartitionBounds, today: date, *, is_locked: bool
    ) -> str | None:
        """Name a window that still needs the samples of `span`; None for tables that no window reads.

        While the samples are locked, the queue of changes is not read, because this may have to read samples, and
        stored rows are not counted, because this takes too long while others wait.

        Raises DBAPIError; DatabaseError if a node of a cluster does not report its changes in time.
        """
        if table not in SAMPLES:
            return None
        # Those of groups read the samples of both tables.
        levels = [level for level in LEVELS.values() if table in level.raw_tables]
        ask = self.ledger.take_over if is_locked else self.ledger.gather
        ask("Completed steps were kept; no further sample was dropped.", NODE_SECONDS)
        undecided = self.ledger.undecided(connection)
        if undecided:
            return undecided
        not_over, windows = None, {}
        for period in self.periods.values():
            reading = _reading(period, span)
            if reading[-1].end >= today and reading[-1].start >= self._first(period):
                not_over = f"the {period.name} window from {reading[-1].start} reads them and is not over"
                break
            windows[period] = reading
        for level in levels:
            left = self.ledger.incomplete_windows_seen_by(connection, level, windows)
            if left:
                return self._sentence(left[0])
        if not_over or is_locked:
            return not_over
        lost = (self._lost_rows(connection, level, windows, today) for level in levels)
        return next(filter(None, lost), None)

    def _lost_rows(
        self, connection: Connection, level: Level, windows: Mapping[Period, Sequence[Window]], today: date
    ) -> str | None:
        """Name one of the windows that lacks rows for another reason than retention."""
        for period, reading in windows.items():
            stored = [
                window for window in reading if not self.is_old(level.target, bounds_of(window.start, period), today)
            ]
            lost = self.ledger.lost_rows(connection, period, level, stored)
            if lost:
                return self._sentence(lost)
        return None

    def _sentence(self, window: IncompleteWindow) -> str:
        period = self.periods[window.period_type]
        before = " (it is before CAPACITY_START_DATE)" if window.window.start < self._first(period) else ""
        of = " of groups" if window.level == GROUP.name else ""
        return f"the {period.name} window{of} from {window.window.start} reads them and {window.reason}{before}"

    def _first(self, period: Period) -> date:
        return period.window_of(self.first_day).start


def _reading(period: Period, span: PartitionBounds) -> Sequence[Window]:
    """The windows with a day of `span`, the one after them, and those that compare with them a year later."""
    windows = period.windows_between(span.first, span.last)
    later = period.windows_between(span.first + A_YEAR_LATER, span.last + A_YEAR_LATER + SLACK)
    comparing = [window for window in later if period.year_before(window).start <= span.last]
    return sorted({*windows, period.following(windows[-1]), *comparing})


LOCK_TIMEOUT_SECONDS = 10
"""A lock request that waits blocks those that come after it, so maintenance gives up after this time and retries."""

TRIES = 3
"""How often adding a partition is tried while another session is in the way."""

LOCK_NOT_AVAILABLE = "55P03"
HOW_TO_PARTITION = "`capacity copy` to an empty database partitions it there"

# The bills of these months are frozen: the remaining samples no longer support them.
_MARK_BILLS = """
UPDATE capacity_bills SET samples_dropped_at = now()
WHERE month < :after AND month + interval '1 month' > :first AND samples_dropped_at IS NULL
"""
_OLD_OBJECT_SIZES = "SELECT count(*) FROM capacity_object_sizes WHERE collected_date < :before"
_FORGET_OBJECT_SIZES = "DELETE FROM capacity_object_sizes WHERE collected_date < :before"


@dataclass
class MaintenanceReport:
    """The steps that were done or, in a dry run, would be; `kept` and `notes` say why something was not done."""

    dry_run: bool
    created: list[str] = field(default_factory=list)
    moved_records: int = 0
    dropped: list[str] = field(default_factory=list)
    dropped_records: int = 0
    freed_mb: int = 0
    purged_check_records: int = 0
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, for scripts and metadata."""
        counts = {f"{name}_partitions": len(getattr(self, name)) for name in ("created", "dropped", "kept")}
        return {**asdict(self), **counts}


class MaintenanceError(DatabaseError):
    """Some of the work could not be done; `report` contains the finished steps."""

    def __init__(self, troubles: list[DatabaseError], report: MaintenanceReport) -> None:
        """List each error once; the whole is transient if all of them are."""
        message = "\n".join(dict.fromkeys(map(str, troubles)))
        transient = all(trouble.transient for trouble in troubles)
        super().__init__(message, sqlstate=troubles[0].sqlstate, transient=transient)
        self.report = report


class TableMaintenance:
    """Maintains the partitions of one capacity database."""

    def __init__(
        self,
        engine: Engine,
        first_day: date,
        retention: Retention,
        periods: Mapping[str, Period] = PERIODS,
        on_step: Callable[[str], None] = logger.info,
    ) -> None:
        """Work through `engine`; `first_day` is the first with samples; `on_step` is called with each finished step."""
        self._on_step = on_step
        self._engine = engine
        self._plan = RetentionPlan(Ledger(engine, periods), first_day, retention, periods)

    def run(
        self, today: date, *, dry_run: bool = False, certain_day: date | None = None, keeping: str | None = None
    ) -> MaintenanceReport:
        """Add partitions, move rows, and apply retention as of `today`; a dry run only reports what would be done.

        If today's date may be wrong, partitions are added ahead of `certain_day`, and `keeping` is the reason why none
        is dropped.

        Raises MaintenanceError: earlier steps are kept, and a repeated call continues. Also raised if partitions that
        are old as of `today` were kept because of `keeping`.
        """
        report = self._each_table(certain_day or today, MaintenanceReport(dry_run), retire_as_of=today, keeping=keeping)
        if keeping is not None and report.kept:
            advice = f"Correct the wrong clock. If {today} is right, run `capacity maintain --despite-clock`."
            raise MaintenanceError([DatabaseError(f"{keeping} Nothing was dropped. {advice}")], report)
        return report

    def prepare(self, today: date) -> MaintenanceReport:
        """Add the partitions wanted as of `today`, and those of rows in the default ones; raises as `run`."""
        return self._each_table(today, MaintenanceReport(dry_run=False))

    def _each_table(
        self, today: date, report: MaintenanceReport, *, retire_as_of: date | None = None, keeping: str | None = None
    ) -> MaintenanceReport:
        troubles = []
        for table in PARTITIONED:
            try:
                planned = self._prepare(self._layout(table), today, report)
                if retire_as_of is not None:
                    self._retire(self._layout(table), planned, retire_as_of, report, keeping)
            except DatabaseError as error:
                troubles.append(error)
                if error.sqlstate is None:
                    break  # no response
        if troubles:
            raise MaintenanceError(troubles, report)
        return report

    def shortcomings(self, today: date) -> list[str]:
        """Return the reasons why old rows cannot be dropped; changes nothing. Raises DatabaseError."""
        sentences = []
        next_month = today + timedelta(days=AHEAD_DAYS // 2)
        for table in PARTITIONED:
            layout = self._layout(table)
            in_default = self._rows_in_default(layout, today)
            if not layout.is_partitioned:
                sentences.append(f"{table.name} is not partitioned, so old rows stay; {HOW_TO_PARTITION}")
            if not layout.is_served:
                continue
            sentences += [f"{table.name}: {rows} stay in its default partition" for rows in in_default.staying]
            if in_default.spans:
                sentences.append(f"{table.name} has rows in its default partition: `capacity maintain` moves them")
            elif any(not layout.covers(span) for span in self._plan.needed_bounds(layout, today, next_month)):
                sentences.append(
                    f"{table.name} lacks a partition for the coming month: is table_maintenance_schedule on? "
                    "`capacity maintain` adds it"
                )
        return sentences

    def _prepare(self, layout: PartitionLayout, today: date, report: MaintenanceReport) -> dict[Partition, int]:
        """Add partitions and move rows; return the partitions that a dry run would have added, with their rows."""
        table = layout.table
        if not layout.is_served:
            how = f"partitioned in another way ({layout.key}): not maintained"
            plain = f"not partitioned: old rows stay; {HOW_TO_PARTITION}"
            report.notes.append(f"{table.name} is {how if layout.is_partitioned else plain}")
            return {}
        in_default = self._rows_in_default(layout, today)
        ahead = self._plan.needed_bounds(layout, today, today + timedelta(days=AHEAD_DAYS))
        wanted = {*in_default.spans, *(span for span in ahead if not layout.covers(span))}
        if layout.default:
            report.notes += [f"{table.name}: {rows} stay in {layout.default.name}" for rows in in_default.staying]
        planned: dict[Partition, int] = {}
        ordered = sorted(wanted, key=str)
        # One transaction each if rows are moved: that takes long, and writers wait until the transaction ends.
        one_by_one = in_default.spans or report.dry_run or not ordered
        for spans in [[span] for span in ordered] if one_by_one else [ordered]:
            if report.dry_run:
                with self._transaction(f"reading {table.name}") as connection:
                    moved = layout.count(connection, layout.default, spans[0]) if layout.default else 0
                planned[Partition(partition_name(table, spans[0]), spans[0], is_default=False)] = moved
                added = spans
            else:
                added, moved = self._add(table, spans)
            report.moved_records += moved
            report.created += [f"{table.name}: {span}" for span in added]
        if in_default.spans and not in_default.staying and not report.dry_run:
            with self._work(f"releasing the space of moved rows of {table.name}") as connection:
                layout.empty_default(connection)
        return planned

    def _add(self, table: Table, spans: Sequence[PartitionBounds]) -> tuple[list[PartitionBounds], int]:
        """Add partitions, retrying while another session is in the way; return those not there yet and the rows moved.

        All are added in one transaction.
        """
        more = f" and {len(spans) - 1} more" if len(spans) > 1 else ""
        for pause_seconds in range(1, TRIES + 1):
            try:
                with self._work(f"adding the partition of {table.name} for {spans[0]}{more}") as connection:
                    layout = layout_of(connection, table)
                    added = [span for span in spans if not layout.covers(span)]
                    moved = layout.add(connection, added) if added else 0
                break
            except DatabaseError as error:
                if error.sqlstate != LOCK_NOT_AVAILABLE or pause_seconds == TRIES:
                    raise
                time.sleep(pause_seconds)
        if moved:
            self._on_step(f"{table.name}: {counted(moved, 'row')} moved to the partition of {spans[0]}")
        return added, moved

    def _retire(
        self,
        layout: PartitionLayout,
        planned: Mapping[Partition, int],
        today: date,
        report: MaintenanceReport,
        keeping: str | None,
    ) -> None:
        partitions = (*layout.partitions, *planned) if layout.is_served else ()
        for partition in sorted(partitions, key=lambda partition: partition.name):
            span = partition.span
            if span is None or not self._plan.is_old(layout.table, span, today):
                continue
            if keeping is None:
                records = planned.get(partition)
                self._retire_one(layout, partition, span, today, report, planned_records=records)
            else:
                report.kept.append(f"{partition.name}: today's date may be wrong")
        if layout.table is object_size_stats and keeping is None:
            self._forget_object_sizes(today, report)

    def _forget_object_sizes(self, today: date, report: MaintenanceReport) -> None:
        """Delete the earlier sizes for comparing tables and indexes, of databases whose samples are dropped."""
        days = self._plan.days(object_size_stats, None)
        if days is None:
            return
        before = today - timedelta(days=days)
        with self._transaction("deleting sizes of tables and indexes") as connection:
            databases = connection.execute(text(_OLD_OBJECT_SIZES), {"before": before}).scalar_one()
            if databases and not report.dry_run:
                connection.execute(text(_FORGET_OBJECT_SIZES), {"before": before})
        if databases:
            last = f"last measured before {human_day(before)}"
            report.notes.append(f"capacity_object_sizes: dropped {counted(databases, 'database')} {last}")

    def _retire_one(  # noqa: PLR0913 -- what one decision is made of
        self,
        layout: PartitionLayout,
        partition: Partition,
        span: PartitionBounds,
        today: date,
        report: MaintenanceReport,
        *,
        planned_records: int | None,
    ) -> None:
        """Drop a partition, or say why it is kept; if it is only planned, its rows are still in the default one."""
        table, records, size_bytes, is_done = layout.table, planned_records or 0, 0, not report.dry_run
        with self._work(f"retiring {partition.name}") as connection:
            reason = self._plan.reason_to_keep(connection, table, span, today, is_locked=False)
            if reason is None and planned_records is None:
                size_bytes = size_of_table(connection, partition.name)
                if is_done:
                    layout.lock(connection, partition)
                records = layout.count(connection, partition)
            if reason is None and is_done:
                # Locked, nothing can arrive any more.
                reason = self._plan.reason_to_keep(connection, table, span, today, is_locked=True)
            if reason is not None:
                report.kept.append(f"{partition.name}: {reason}")
                return
            if is_done:
                if table in SAMPLES and records:
                    connection.execute(text(_MARK_BILLS), {"first": span.first, "after": span.after})
                layout.drop(connection, partition)
        what = f"{counted(records, 'row')}, {span}"
        report.dropped.append(f"{partition.name}: {what}")
        if is_done:
            self._on_step(f"{partition.name}: dropped with {what}")
        report.dropped_records += records
        report.freed_mb += size_bytes // BYTES_PER_MB

    def _layout(self, table: Table) -> PartitionLayout:
        with self._transaction(f"reading {table.name}") as connection:
            return layout_of(connection, table)

    def _rows_in_default(self, layout: PartitionLayout, today: date) -> DefaultRows:
        with self._transaction(f"reading {layout.table.name}") as connection:
            return layout.rows_in_default(connection, today)

    @contextmanager
    def _work(self, doing: str) -> Iterator[Connection]:
        with self._transaction(doing) as connection:
            wait_for_lock(connection, "maintenance")
            yield connection

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[Connection]:
        with (
            database_errors(doing=doing, kept="Completed steps were kept; no row was lost."),
            self._engine.begin() as connection,
        ):
            # A month of a large fleet takes longer to move than a statement may otherwise take.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
            yield connection


@dataclass(frozen=True)
class RetentionService:
    """Maintains the tables of one capacity database as of today; raises as `TableMaintenance`."""

    engine: Engine
    clock: Clock
    tables: TableMaintenance

    def maintain(self, *, dry_run: bool = False, despite_clock: bool = False) -> MaintenanceReport:
        """Add future partitions and apply retention; a dry run only reports what would be done.

        If today's date may be wrong, partitions are added ahead of a day that is certain and none is dropped, unless
        `despite_clock` confirms the date.
        """
        refuse_an_unfit_database(self.engine, self.clock.zone)
        today = self.clock.today()
        if despite_clock:
            return self.tables.run(today, dry_run=dry_run)
        judged = self._judged_day()
        keeping = judged.why_nothing_is_deleted
        return self.tables.run(today, dry_run=dry_run, certain_day=judged.certain_day, keeping=keeping)

    def prepare(self) -> MaintenanceReport:
        """Add the partitions that are needed as of today, in any zone; the schema must exist. Raises as `maintain`."""
        return self.tables.prepare(self._judged_day().certain_day)

    def shortcomings(self) -> list[str]:
        """Return the reasons why old rows cannot be dropped; changes nothing."""
        return self.tables.shortcomings(self._judged_day().certain_day)

    def _judged_day(self) -> TodayCheck:
        with database_errors(doing="reading the clock"), self.engine.connect() as connection:
            return check_today(connection, self.clock)
