"""Partitions of the tables: which exist, and how one is added, filled and dropped.

Samples and forecasts are partitioned by calendar month. Aggregates are partitioned by period and then by time, so that
old rows of one period can be dropped while those of another stay: windows of a day by calendar month, longer ones by
year, which keeps partitions few and of similar size. A default partition contains all other rows, so that none is
refused; adding a partition moves its rows out of the default one.

A legacy table that is partitioned by month is used as it is. `history.retention` decides which partitions are added
and which are dropped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError
from sqlalchemy.sql.elements import quoted_name

from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.database.adoption import other_owner
from capacity_assets.database.cluster import change_shards_in_turn
from capacity_assets.database.sql import free_name, quoted
from capacity_assets.database.tables import (
    AGGREGATES,
    BY_DAY,
    BY_FORECAST_DAY,
    BY_WINDOW,
    CAPACITY_TABLES,
    capacity_runways,
    database_limit_stats,
    group_size_aggregations,
    object_size_stats,
    server_part_stats,
    volume_size_stats,
)

AHEAD_DAYS = 62
"""Partitions are added so long ahead: two months, or the next year from November on."""
UNREAD = (volume_size_stats, database_limit_stats, server_part_stats, object_size_stats, capacity_runways)
"""Tables without aggregates: their rows are dropped only by age."""
PARTITIONED = (*CAPACITY_TABLES, group_size_aggregations, *UNREAD)

# What a partition must share with its table, except keys, which attaching it creates, and identity, which it must not
# have.
LIKE_PARENT = " ".join(
    f"INCLUDING {what}" for what in ("DEFAULTS", "CONSTRAINTS", "GENERATED", "STORAGE", "COMPRESSION", "COMMENTS")
)
BY_START = "RANGE (period_start)"  # legacy aggregates: all periods of a month together

FIRST_PLAUSIBLE, AFTER_PLAUSIBLE = date(1900, 1, 1), date(9000, 1, 1)
"""Other days, such as mistyped ones or infinity, stay in the default partition."""

_MONTH = Period("month", months=1)
YEAR = Period("year", months=12)
_QUOTED = re.compile(r"'((?:[^']|'')*)'")
ATTACH_SECONDS = 10
_MILLISECONDS_PER_TRY = 400  # less than the second after which PostgreSQL looks for deadlocks


@dataclass(frozen=True, order=True)
class PartitionBounds:
    """One partition's contents: the days from `first` to the day before `after`, of one period or (None) of all."""

    period_type: str | None
    first: date
    after: date

    @property
    def last(self) -> date:
        """Last day, included."""
        return self.after - timedelta(days=1)

    def __str__(self) -> str:
        days = f"{self.first} to {self.last}"
        return f"{self.period_type} windows that start from {days}" if self.period_type else days


@dataclass(frozen=True)
class Partition:
    """An existing partition; `span` is None for the default one, and for bounds of another kind."""

    name: str
    span: PartitionBounds | None
    is_default: bool


@dataclass(frozen=True)
class DefaultRows:
    """The rows of a default partition: spans whose rows can be moved, and a sentence on which rows stay, and why."""

    spans: tuple[PartitionBounds, ...] = ()
    staying: tuple[str, ...] = ()


def bounds_of(day: date, period: Period | None = None) -> PartitionBounds:
    """Return the span whose partition contains `day`: of the samples, or of the aggregates of a period."""
    unit = _MONTH if period is None or period.days == 1 else YEAR
    window = unit.window_of(day)
    return PartitionBounds(None if period is None else period.name, window.start, window.end + timedelta(days=1))


def bounds_between(first: date, last: date, period: Period | None = None) -> list[PartitionBounds]:
    """Return the spans with a day from `first` to `last`, in order."""
    spans = [bounds_of(first, period)]
    while spans[-1].after <= last:
        spans.append(bounds_of(spans[-1].after, period))
    return spans


def partition_name(table: sa.Table, span: PartitionBounds) -> str:
    """Return the name for the partition of `span`."""
    whole_year = bounds_of(span.first, YEAR).after == span.after and span.first.month == 1
    when = f"{span.first:%Y}" if whole_year else f"{span.first:%Y_%m}"
    return "_".join(part for part in (table.name, span.period_type, when) if part)


def layout_of(connection: sa.Connection, table: sa.Table) -> PartitionLayout:
    """Read how an existing table is stored."""
    key = connection.execute(sa.text(_KEY), {"table": table.name}).scalar()
    rows = connection.execute(sa.text(_PARTITIONS), {"table": table.name})
    partitions = [Partition(row.name, _span(row.bound), row.bound == "DEFAULT") for row in rows]
    return PartitionLayout(table, key, tuple(partitions))


def _span(bound: str) -> PartitionBounds | None:
    """Read `FOR VALUES FROM (...) TO (...)`; None unless it is of whole days, of one period or of all."""
    with suppress(ValueError):
        match _QUOTED.findall(bound):
            case [first, after]:
                return PartitionBounds(None, date.fromisoformat(first), date.fromisoformat(after))
            case [period, first, same, after] if period == same:
                return PartitionBounds(period, date.fromisoformat(first), date.fromisoformat(after))
    return None


@dataclass(frozen=True)
class PartitionLayout:
    """How one table is stored; a plain table has no key and no partitions.

    Partitions are added and dropped in the caller's transaction; the layout itself does not change.
    """

    table: sa.Table
    key: str | None
    partitions: tuple[Partition, ...]

    @property
    def is_partitioned(self) -> bool:
        """Whether it has partitions."""
        return self.key is not None

    @property
    def is_served(self) -> bool:
        """Whether it is partitioned by days, so that partitions can be added."""
        known = self.key in {BY_DAY, BY_FORECAST_DAY, BY_WINDOW, BY_START}
        return known and all(partition.span or partition.is_default for partition in self.partitions)

    @property
    def by_period(self) -> bool:
        """Whether each period has partitions of its own."""
        return self.key == BY_WINDOW

    @property
    def default(self) -> Partition | None:
        """The partition for rows that no other partition takes."""
        return next((partition for partition in self.partitions if partition.is_default), None)

    def covers(self, span: PartitionBounds) -> bool:
        """Whether a partition contains `span`, or a part of it."""
        spans = (partition.span for partition in self.partitions if partition.span)
        return any(
            bounds.period_type == span.period_type and bounds.first < span.after and span.first < bounds.after
            for bounds in spans
        )

    def rows_in_default(self, connection: sa.Connection, today: date) -> DefaultRows:
        """Scan the whole default partition. Rows of days far ahead stay there: their dates are probably wrong."""
        if self.default is None or not self._has_rows(connection, self.default):
            return DefaultRows()
        rows = self._rows_of(self.default)
        day = rows.c[self._day]
        period = rows.c.period_type if self.by_period else sa.cast(sa.null(), sa.Text)
        is_plausible = sa.and_(day >= FIRST_PLAUSIBLE, day < AFTER_PLAUSIBLE)
        month = sa.case((is_plausible, sa.cast(sa.func.date_trunc(sa.literal_column("'month'"), day), sa.Date)))
        months = sa.select(period.label("period_type"), month.label("month")).distinct()
        spans: set[PartitionBounds] = set()
        ahead: set[PartitionBounds] = set()
        staying: set[str] = set()
        for row in connection.execute(months):
            if row.period_type is not None and row.period_type not in PERIODS:
                staying.add(f"rows of the period {row.period_type!r}, which is not registered,")
            elif row.month is None:
                staying.add(f"rows dated before {FIRST_PLAUSIBLE.year} or after {AFTER_PLAUSIBLE.year - 1}")
            else:
                span = bounds_of(row.month, PERIODS[row.period_type] if row.period_type else None)
                if self.covers(span):
                    staying.add(f"rows of {span}, of which another partition holds a part,")
                else:
                    (spans if span.first <= today + timedelta(days=AHEAD_DAYS) else ahead).add(span)
        sentences = sorted(staying)
        if ahead:
            sentences.append(f"rows from {min(span.first for span in ahead)} on, more than {AHEAD_DAYS} days ahead,")
        return DefaultRows(tuple(sorted(spans, key=str)), tuple(sentences))

    def count(self, connection: sa.Connection, partition: Partition, span: PartitionBounds | None = None) -> int:
        """Count the rows of a partition, or those of a span in it."""
        rows = self._rows_of(partition)
        counted = sa.select(sa.func.count()).select_from(rows).where(*self._is_in(rows, span) if span else ())
        return connection.execute(counted).scalar_one()

    def add(self, connection: sa.Connection, spans: Sequence[PartitionBounds]) -> int:
        """Add partitions, and move their rows there from the default one; return how many were moved.

        Readers are blocked only at the end; writers wait until the caller's transaction ends. They wait for the table,
        not for its default partition, which would then refuse the row for which they wait.

        Raises OperationalError if the default partition is in use; the caller rolls back, and may try again.
        """
        change_shards_in_turn(connection)
        table = quoted(self.table.name)
        connection.exec_driver_sql(f"LOCK TABLE ONLY {table} IN SHARE ROW EXCLUSIVE MODE")
        owner = other_owner(connection, self.table.name)
        # Empty, it stays so while the table is locked.
        default = self.default if self.default and self._has_rows(connection, self.default) else None
        moved, attaching = 0, []
        for span in spans:
            name = free_name(connection, partition_name(self.table, span))
            # A partition needs no grants and no triggers; attaching it creates keys and indexes, after the rows.
            connection.exec_driver_sql(f"CREATE TABLE {quoted(name)} (LIKE {table} {LIKE_PARENT})")
            if owner:
                connection.exec_driver_sql(f"ALTER TABLE {quoted(name)} OWNER TO {quoted(owner)}")
            moved += self._move(connection, default, span, name) if default else 0
            period = f"'{span.period_type}', " if self.by_period else ""
            bounds = f"FROM ({period}'{span.first}') TO ({period}'{span.after}')"
            attaching.append(f"ALTER TABLE {table} ATTACH PARTITION {quoted(name)} FOR VALUES {bounds}")
        self._attach(connection, attaching)
        return moved

    def _move(self, connection: sa.Connection, default: Partition, span: PartitionBounds, name: str) -> int:
        # By name: the columns of the default partition may be in another order, and some are generated.
        stored = connection.execute(sa.text(_STORED_COLUMNS), {"table": self.table.name}).scalars().all()
        rows = self._rows_of(default)
        moved = sa.delete(rows).where(*self._is_in(rows, span)).returning(*map(sa.column, stored)).cte("moved")
        statement = sa.insert(sa.table(name, *map(sa.column, stored))).from_select(stored, sa.select(moved))
        with _row_triggers_off(connection, default):
            return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount

    def _attach(self, connection: sa.Connection, statements: Sequence[str]) -> None:
        """Attach partitions in short tries, because no session may be using the default partition.

        If a transaction has read the default partition and then writes, it waits for this one, which waits for it.
        PostgreSQL would end one of the two, most likely the writer, so this one gives up.
        """
        deadline = time.monotonic() + ATTACH_SECONDS
        names = {"table": self.table.name, "default": self.default.name if self.default else None}
        while True:
            try:
                with connection.begin_nested():
                    connection.execute(sa.text(f"SET LOCAL lock_timeout = {_MILLISECONDS_PER_TRY}"))
                    for statement in statements:
                        connection.exec_driver_sql(statement)
            except OperationalError as error:
                gives_way = connection.execute(sa.text(_WAITS_FOR_US), names).scalar()
                if not isinstance(error.orig, LockNotAvailable) or gives_way or time.monotonic() > deadline:
                    raise
            else:
                return

    def lock(self, connection: sa.Connection, partition: Partition) -> None:
        """Lock a partition until the transaction ends, after its table, in the order of readers."""
        connection.exec_driver_sql(f"LOCK TABLE ONLY {quoted(self.table.name)} IN ACCESS EXCLUSIVE MODE")
        connection.exec_driver_sql(f"LOCK TABLE {partition.name} IN ACCESS EXCLUSIVE MODE")

    def drop(self, connection: sa.Connection, partition: Partition) -> None:
        """Detach a partition and drop it; the caller has locked it and checked that it may be dropped."""
        connection.exec_driver_sql(f"ALTER TABLE {quoted(self.table.name)} DETACH PARTITION {partition.name}")
        connection.exec_driver_sql(f"DROP TABLE {partition.name}")

    def empty_default(self, connection: sa.Connection) -> None:
        """Truncate the default partition if it has no rows left."""
        if self.default:
            connection.exec_driver_sql(f"LOCK TABLE {self.default.name} IN ACCESS EXCLUSIVE MODE")
            if not self._has_rows(connection, self.default):
                connection.exec_driver_sql(f"TRUNCATE {self.default.name}")

    @property
    def _day(self) -> str:
        if self.table in AGGREGATES:
            return "period_start"
        return "as_of" if self.table is capacity_runways else "collected_date"

    def _rows_of(self, partition: Partition) -> sa.TableClause:
        """Return a partition for use in statements; its name is quoted already."""
        columns = (sa.column(column.name, column.type) for column in self.table.columns)
        return sa.table(quoted_name(partition.name, quote=False), *columns)

    def _is_in(self, rows: sa.TableClause, span: PartitionBounds) -> list[sa.ColumnElement[bool]]:
        day = rows.c[self._day]
        period = [rows.c.period_type == span.period_type] if span.period_type else []
        return [*period, day >= span.first, day < span.after]

    def _has_rows(self, connection: sa.Connection, partition: Partition) -> bool:
        row = sa.select(sa.literal_column("1", sa.Integer)).select_from(self._rows_of(partition))
        return connection.execute(sa.select(row.exists())).scalar_one()


@contextmanager
def _row_triggers_off(connection: sa.Connection, partition: Partition) -> Iterator[None]:
    """Disable row triggers, which would treat moved rows as deleted ones."""
    triggers = connection.execute(sa.text(_ROW_TRIGGERS), {"partition": partition.name}).all()
    for trigger in triggers:
        connection.exec_driver_sql(f"ALTER TABLE {partition.name} DISABLE TRIGGER {quoted(trigger.name)}")
    yield
    for trigger in triggers:
        connection.exec_driver_sql(f"ALTER TABLE {partition.name} {trigger.enable} TRIGGER {quoted(trigger.name)}")


_KEY = """
SELECT pg_get_partkeydef(partrelid) FROM pg_partitioned_table WHERE partrelid = to_regclass(:table) AND partstrat = 'r'
"""
_PARTITIONS = """
SELECT c.oid::regclass::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass(:table) AND c.relispartition ORDER BY c.relname
"""
_STORED_COLUMNS = """
SELECT attname FROM pg_attribute
WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_WAITS_FOR_US = """
SELECT EXISTS (
    SELECT FROM pg_locks waiting JOIN pg_locks holding ON holding.pid = waiting.pid
    WHERE NOT waiting.granted AND holding.granted AND waiting.relation = to_regclass(:table)
      AND holding.relation = to_regclass(:default) AND waiting.database = holding.database
)
"""
_ROW_TRIGGERS = """
SELECT tgname AS name,
       CASE tgenabled WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END AS enable
FROM pg_trigger WHERE tgrelid = to_regclass(:partition) AND tgconstraint = 0 AND tgenabled <> 'D'
  AND tgtype & 1 = 1  -- of rows
ORDER BY tgname
"""
