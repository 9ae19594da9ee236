"""Partitions of the tables that are cut by time: which there are, adding one, taking one away.

Samples and forecasts are cut by calendar month. Aggregates are cut by period and then by time, so that one period's old
rows can go while another's stay: windows of a day by calendar month, longer ones by year, which keeps partitions few
and of like size. A default partition takes whatever no other does, so no row is refused; adding a partition moves its
rows there.

A legacy table that is cut by month already is served as it is. Which partitions are wanted and which may go is
decided by `retention.rules`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, Table, text

from capacity_assets.periods import PERIODS, Period
from capacity_assets.storage.limit_tables import (
    BY_FORECAST_DAY,
    capacity_runways,
    database_limit_stats,
    volume_size_stats,
)
from capacity_assets.storage.tables import AGGREGATES, BY_DAY, BY_WINDOW, SAMPLES

UNREAD = (volume_size_stats, database_limit_stats, capacity_runways)
"""Tables of which no aggregate is made: nothing but their age keeps rows from leaving."""
CAPACITY_TABLES = (*SAMPLES, *AGGREGATES)
PARTITIONED = (*CAPACITY_TABLES, *UNREAD)

# Everything that a partition must share with its table but keys, which the attachment makes, and identity, which a
# partition must not have.
LIKE_PARENT = " ".join(
    f"INCLUDING {what}" for what in ("DEFAULTS", "CONSTRAINTS", "GENERATED", "STORAGE", "COMPRESSION", "COMMENTS")
)
BY_START = "RANGE (period_start)"  # legacy aggregates: all periods of a month together

FIRST_PLAUSIBLE, AFTER_PLAUSIBLE = date(1900, 1, 1), date(9000, 1, 1)
"""A mistyped day, or infinity, stays in the default partition."""


_MONTH = Period("month", months=1)
YEAR = Period("year", months=12)
_QUOTED = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True, order=True)
class Span:
    """What one partition holds: the days from `first` to before `after`, of one period or (None) of all."""

    period_type: str | None
    first: date
    after: date

    @property
    def last(self) -> date:
        """Last day, included."""
        return self.after - timedelta(days=1)

    def __str__(self) -> str:
        """Name the days for people."""
        days = f"{self.first} to {self.last}"
        return f"{self.period_type} windows that start from {days}" if self.period_type else days


@dataclass(frozen=True)
class Partition:
    """A partition in the catalogue; `span` is None for the default one, and for bounds of another kind."""

    name: str
    span: Span | None
    is_default: bool


@dataclass(frozen=True)
class DefaultRows:
    """What lies in a default partition: the spans whose rows can be moved, and in words which rows stay, and why."""

    spans: tuple[Span, ...] = ()
    staying: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartitionLayout:
    """How one table is stored now; a plain table has no key and no partitions."""

    key: str | None
    partitions: tuple[Partition, ...]

    @property
    def is_partitioned(self) -> bool:
        """Whether rows can leave as whole partitions."""
        return self.key is not None

    @property
    def is_served(self) -> bool:
        """Whether it is cut by days of the calendar, so that partitions can be added to those it has."""
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

    def covers(self, span: Span) -> bool:
        """Whether a partition holds `span`, or a part of it."""
        there = (partition.span for partition in self.partitions if partition.span)
        return any(
            found.period_type == span.period_type and found.first < span.after and span.first < found.after
            for found in there
        )


def span_of(day: date, period: Period | None = None) -> Span:
    """Return the span whose partition holds `day`: of the samples, or of the aggregates of a period."""
    unit = _MONTH if period is None or period.days == 1 else YEAR
    window = unit.window_of(day)
    return Span(None if period is None else period.name, window.start, window.end + timedelta(days=1))


def spans_between(first: date, last: date, period: Period | None = None) -> list[Span]:
    """Return the spans that hold a day from `first` to `last`, in order."""
    spans = [span_of(first, period)]
    while spans[-1].after <= last:
        spans.append(span_of(spans[-1].after, period))
    return spans


def layout_of(connection: Connection, table: Table) -> PartitionLayout:
    """Read how `table`, which must exist, is stored."""
    key = connection.execute(
        text(
            "SELECT pg_get_partkeydef(partrelid) FROM pg_partitioned_table WHERE partrelid = to_regclass(:table) "
            "AND partstrat = 'r'"
        ),
        {"table": table.name},
    ).scalar()
    rows = connection.execute(
        text(
            "SELECT c.oid::regclass::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound "
            "FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = to_regclass(:table) AND c.relispartition ORDER BY c.relname"
        ),
        {"table": table.name},
    ).all()
    partitions = [Partition(row.name, _span(row.bound), row.bound == "DEFAULT") for row in rows]
    return PartitionLayout(key, tuple(partitions))


def _span(bound: str) -> Span | None:
    """Read `FOR VALUES FROM (...) TO (...)`; None for other than whole days of one period or of all."""
    with suppress(ValueError):
        match _QUOTED.findall(bound):
            case [first, after]:
                return Span(None, date.fromisoformat(first), date.fromisoformat(after))
            case [period, first, same, after] if period == same:
                return Span(period, date.fromisoformat(first), date.fromisoformat(after))
    return None


def rows_in_default(connection: Connection, table: Table, layout: PartitionLayout) -> DefaultRows:
    """Scan the whole default partition."""
    if layout.default is None:
        return DefaultRows()
    day = _day_column(table)
    period = "period_type" if layout.by_period else "CAST(NULL AS varchar)"
    rows = connection.execute(
        text(
            f"SELECT DISTINCT {period} AS period_type, CASE WHEN {day} >= :first AND {day} < :after "  # noqa: S608 -- our own names
            f"THEN CAST(date_trunc('month', {day}) AS date) END AS month FROM {layout.default.name}"
        ),
        {"first": FIRST_PLAUSIBLE, "after": AFTER_PLAUSIBLE},
    ).all()
    spans, staying = set(), set()
    for row in rows:
        if row.period_type is not None and row.period_type not in PERIODS:
            staying.add(f"rows of the period {row.period_type!r}, which is not registered,")
        elif row.month is None:
            staying.add(f"rows dated before {FIRST_PLAUSIBLE.year} or after {AFTER_PLAUSIBLE.year - 1}")
        else:
            span = span_of(row.month, PERIODS[row.period_type] if row.period_type else None)
            if layout.covers(span):
                staying.add(f"rows of {span}, of which another partition holds a part,")
            else:
                spans.add(span)
    return DefaultRows(tuple(sorted(spans, key=str)), tuple(sorted(staying)))


def _day_column(table: Table) -> str:
    if table in AGGREGATES:
        return "period_start"
    return "as_of" if table is capacity_runways else "collected_date"


def condition_of(table: Table, span: Span) -> str:
    """Return the condition for rows of `span`; its parameters are those of `parameters_of`."""
    day = _day_column(table)
    days = f"{day} >= :first AND {day} < :after"
    return f"period_type = :period_type AND {days}" if span.period_type else days


def parameters_of(span: Span) -> dict[str, object]:
    """Return what `condition_of` needs."""
    return {"first": span.first, "after": span.after, "period_type": span.period_type}


def count_rows(connection: Connection, table: Table, partition: Partition, span: Span | None = None) -> int:
    """Count the rows of a partition, or those of a span in it."""
    where = f" WHERE {condition_of(table, span)}" if span else ""
    query = f"SELECT count(*) FROM {partition.name}{where}"  # noqa: S608 -- from the catalogue
    return int(connection.execute(text(query), parameters_of(span) if span else {}).scalar_one())


def has_rows(connection: Connection, partition: Partition) -> bool:
    """Whether a partition holds any row."""
    return bool(connection.exec_driver_sql(f"SELECT EXISTS (SELECT 1 FROM {partition.name})").scalar())  # noqa: S608 -- from the catalogue
