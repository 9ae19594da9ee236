"""History that monitoring has: sizes and volumes of a Prometheus-compatible server by day, and trends of Zabbix.

Days are asked in pages. A page that is refused, or has too large an answer, is asked again in halves. A row's position
is made of its day and its number on it, so that an interrupted import goes on with its day.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy import Engine, text

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.collection.prometheus import (
    Labels,
    PrometheusSource,
    TooMuchError,
    pages_of_days,
    values_by_day,
)
from capacity_assets.collection.volumes import store_volumes, volumes_from
from capacity_assets.database.engine import safe_url
from capacity_assets.history.origins import ZABBIX_POSTGRESQL
from capacity_assets.history.rows import DATABASE_NAME, DAY, SERVER, ImportColumns
from capacity_assets.history.sources import PositionedRow, QuerySource

PAGE_DAYS = 30
SLICE_ROWS = 10_000
"""Fewer than of files: what was asked for is not to be asked for again."""
DEFAULT_DAYS = 365
ROWS_OF_A_DAY = 10_000_000
NAMES = ("server", "database", "day", "size_bytes")
ByDay = dict[date, dict[Labels, str]]


@dataclass(frozen=True)
class Days:
    """The days to import, both included, all of them over."""

    first: date
    last: date

    @staticmethod
    def between(first: date | None, last: date | None, today: date) -> Days:
        """Return the days of `--from` and `--to`; by default the year up to yesterday. Raises ValidationError."""
        yesterday = today - timedelta(days=1)
        chosen = Days(first or (last or yesterday) - timedelta(days=DEFAULT_DAYS - 1), last or yesterday)
        if chosen.last > yesterday:
            raise ValidationError(f"--to {chosen.last} is not over: the last value of a day counts.")
        if chosen.first > chosen.last:
            raise ValidationError(f"--from {chosen.first} lies after --to {chosen.last}.")
        return chosen


@dataclass(frozen=True)
class PrometheusHistory:
    """What one source of the file knows of past days; the sizes of databases as rows."""

    source: PrometheusSource
    headers: Mapping[str, str]
    days: Days
    zone: ZoneInfo
    layout: ImportColumns
    known: Collection[str]
    """Names of registered servers."""

    @property
    def description(self) -> str:
        """Name it."""
        return f"prometheus:{self.source.name}"

    @property
    def fingerprint(self) -> str:
        """Tell what is asked, and where; a later import of more days goes on as well."""
        source = self.source
        return f"{source.url} {source.sizes} {source.server_label} {source.database_label} {self.days.first}"

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows, day by day; raises SourceError where the source fails."""
        begun = date.fromordinal(after // ROWS_OF_A_DAY) if after else self.days.first
        for page, [found] in self.pages([self.source.sizes or ""], max(begun, self.days.first)):
            for day in page:
                rows = sorted(self._row(day, labels, size) for labels, size in found.get(day, {}).items())
                for number, row in enumerate(rows, start=day.toordinal() * ROWS_OF_A_DAY + 1):
                    if number > after:
                        yield number, row

    def _asked(self, queries: Sequence[str], page: Sequence[date]) -> Iterator[tuple[Sequence[date], list[ByDay]]]:
        """Yield what each query gives for the days of a page, or of its parts; raises SourceError."""
        try:
            found = [values_by_day(self.source, query, self.headers, page, self.zone) for query in queries]
        except TooMuchError:
            if len(page) == 1:
                raise
            middle = len(page) // 2
            for half in (page[:middle], page[middle:]):
                yield from self._asked(queries, half)
        else:
            yield page, found

    def pages(self, queries: Sequence[str], first: date) -> Iterator[tuple[Sequence[date], list[ByDay]]]:
        """Yield what each query gives for the days from `first` on, page by page; raises SourceError."""
        for page in pages_of_days(first, self.days.last, self.zone, PAGE_DAYS):
            yield from self._asked(queries, page)

    def _row(self, day: date, labels: Labels, size: str) -> tuple[str, ...]:
        named = dict(labels)
        server = self.source.server_meant(named.get(self.source.server_label, ""), self.known)
        database = named.get(self.source.database_label, "")
        cells = {SERVER: server, DATABASE_NAME: database, DAY: day.isoformat(), self.layout.sizes[0]: size}
        return tuple(cells.get(column, "") for column in self.layout.columns)


def place_of(position: int) -> str:
    """Say in words which row of monitoring a position is."""
    return f"{date.fromordinal(position // ROWS_OF_A_DAY)}, number {position % ROWS_OF_A_DAY:,}"


@dataclass
class VolumeReport:
    """Volumes of past days: how many were read and stored, and what was left out, each once."""

    read: int = 0
    stored: int = 0
    left_out: list[str] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)


def import_volumes(
    engine: Engine, history: PrometheusHistory, *, replace: bool, dry_run: bool, progress: Callable[[int], None]
) -> VolumeReport:
    """Store the volumes of each day that a source knows; measured ones stay, and without `replace` all stored ones.

    Each page of days is a transaction. Raises SourceError and DatabaseError; pages before are kept, and a repetition
    stores what is missing.
    """
    report, source = VolumeReport(), history.source
    for page, values in history.pages(source.volume_queries, history.days.first):
        volumes = []
        for day in page:
            of_day = [{labels: float(size) for labels, size in one.get(day, {}).items()} for one in values]
            found, left_out = volumes_from(source, of_day, history.known, day)
            volumes += found
            report.left_out += [what for what in left_out if what not in report.left_out]
        report.read += len(volumes)
        report.stored += store_volumes(engine, volumes, replace=replace, dry_run=dry_run)
        report.servers = sorted({*report.servers, *(one.server for one in volumes)})
        progress(report.read)
    return report


def zabbix_history(zabbix: Engine, days: Days, zone: ZoneInfo, layout: ImportColumns) -> QuerySource:
    """Return the sizes of databases in the trends of a Zabbix on PostgreSQL as rows, by day.

    Raises ValidationError if it is no database of Zabbix, DatabaseError if it cannot be read.
    """
    where = safe_url(zabbix.url)
    needed = {"hosts", "items", "trends", "trends_uint"}
    with database_errors(doing=f"reading {where}", kept="Nothing was imported."):
        missing = needed - set(sa.inspect(zabbix).get_table_names())
    if missing:
        raise ValidationError(f"{where} has no table {min(missing)}: it is no database of Zabbix.")
    asked = text(ZABBIX_POSTGRESQL).bindparams(zone=zone.key, first=days.first, last=days.last)
    sizes = asked.columns(*(sa.column(name) for name in NAMES)).subquery("sizes").c
    order = sa.func.row_number().over(order_by=[sizes.day, sizes.server, sizes.database])
    numbered = sa.select(order.label("position"), *sizes).subquery("numbered").c
    ours = dict(zip((SERVER, DATABASE_NAME, DAY, layout.sizes[0]), (numbered[name] for name in NAMES), strict=True))
    query = sa.select(numbered.position, *(ours.get(column, sa.null()) for column in layout.columns))
    query = query.where(numbered.position > sa.bindparam("after")).order_by(numbered.position)
    return QuerySource(zabbix, f"{where}, trends", f"{where} {days.first}", query)
