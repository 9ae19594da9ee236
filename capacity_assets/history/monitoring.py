"""History from monitoring: sizes and volumes of a Prometheus-compatible server by day, and trends of Zabbix.

Days are queried in pages. If a page is refused, or its response is too large, it is queried again in halves. A row's
position consists of its day and its number on that day, so that an interrupted import continues with this day.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy import Engine, text

from capacity_assets.base.declarations import LONGEST_LINE
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import human_day
from capacity_assets.collection.prometheus import Labels, PrometheusSource, TooMuchError, pages_of_days, values_by_day
from capacity_assets.collection.volumes import store_volumes, volumes_from
from capacity_assets.database.engine import safe_url
from capacity_assets.history.rows import DATABASE_NAME, DAY, SERVER, ImportColumns
from capacity_assets.history.sources import GZIP, ZABBIX_POSTGRESQL, PositionedRow, QuerySource, source_errors

PAGE_DAYS = 30
SLICE_ROWS = 10_000
"""Fewer than for files, so that an interrupted import queries few rows again."""
DEFAULT_DAYS = 365
ROWS_OF_A_DAY = 10_000_000
NAMES = ("server", "database", "day", "size_bytes")
ByDay = dict[date, dict[Labels, str]]


@dataclass(frozen=True)
class ImportDays:
    """The days to import, both included, all of them over."""

    first: date
    last: date

    @staticmethod
    def between(first: date | None, last: date | None, today: date) -> ImportDays:
        """Return the days of `--from` and `--to`; by default the year up to yesterday. Raises ValidationError."""
        yesterday = today - timedelta(days=1)
        chosen = ImportDays(first or (last or yesterday) - timedelta(days=DEFAULT_DAYS - 1), last or yesterday)
        if chosen.last > yesterday:
            raise ValidationError(
                f"--to {human_day(chosen.last)} is not over yet. Only complete days can be imported, because the last "
                "value of each day is used."
            )
        if chosen.first > chosen.last:
            raise ValidationError(f"--from {human_day(chosen.first)} is after --to {human_day(chosen.last)}.")
        return chosen


def _rows_of(
    day: date, sizes: Iterable[tuple[str, str, str]], layout: ImportColumns, after: int
) -> Iterator[PositionedRow]:
    """Yield server, database and size of a day as rows behind a position."""
    for number, (server, database, size) in enumerate(sorted(sizes), start=day.toordinal() * ROWS_OF_A_DAY + 1):
        if number > after:
            cells = {SERVER: server, DATABASE_NAME: database, DAY: day.isoformat(), layout.sizes[0]: size}
            yield number, [cells.get(column, "") for column in layout.columns]


def place_of(position: int) -> str:
    """Return a description of the row of a position."""
    return f"{human_day(date.fromordinal(position // ROWS_OF_A_DAY))}, number {position % ROWS_OF_A_DAY:,}"


@dataclass(frozen=True)
class PrometheusHistory:
    """The past days of one source of the file; the sizes of databases are rows."""

    source: PrometheusSource
    headers: Mapping[str, str]
    days: ImportDays
    zone: ZoneInfo
    layout: ImportColumns
    known: Collection[str]
    """Names of registered servers."""

    @property
    def description(self) -> str:
        """The name of the source in messages."""
        return f"prometheus:{self.source.name}"

    @property
    def fingerprint(self) -> str:
        """The address, the query and the first day: a later import with a further last day continues this one."""
        source = self.source
        return f"{source.url} {source.sizes} {source.server_label} {source.database_label} {self.days.first}"

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows, day by day; raises SourceError if the source fails."""
        begun = date.fromordinal(after // ROWS_OF_A_DAY) if after else self.days.first
        for page, [values] in self.pages([self.source.sizes or ""], max(begun, self.days.first)):
            for day in page:
                sizes = (self._names_and_size(labels, size) for labels, size in values.get(day, {}).items())
                yield from _rows_of(day, sizes, self.layout, after)

    def _names_and_size(self, labels: Labels, size: str) -> tuple[str, str, str]:
        named = dict(labels)
        server = self.source.server_or_name(named.get(self.source.server_label, ""), self.known)
        return server, named.get(self.source.database_label, ""), size

    def pages(self, queries: Sequence[str], first: date) -> Iterator[tuple[Sequence[date], list[ByDay]]]:
        """Yield the results of each query for the days from `first` on, page by page; raises SourceError."""
        for page in pages_of_days(first, self.days.last, self.zone, PAGE_DAYS):
            yield from self._results_of(queries, page)

    def _results_of(self, queries: Sequence[str], page: Sequence[date]) -> Iterator[tuple[Sequence[date], list[ByDay]]]:
        """Yield the results of each query for the days of a page, or of its parts; raises SourceError."""
        try:
            values = [values_by_day(self.source, query, self.headers, page, self.zone) for query in queries]
        except TooMuchError:
            if len(page) == 1:
                raise
            middle = len(page) // 2
            for half in (page[:middle], page[middle:]):
                yield from self._results_of(queries, half)
        else:
            yield page, values


@dataclass
class VolumeReport:
    """Volumes of past days: the numbers read and stored, and what was left out, each once."""

    read: int = 0
    stored: int = 0
    left_out: list[str] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)


def import_volumes(
    engine: Engine, history: PrometheusHistory, *, replace: bool, dry_run: bool, progress: Callable[[int], None]
) -> VolumeReport:
    """Store the volumes of past days from a source; measured ones stay and, without `replace`, all stored ones.

    Each page of days is a transaction. Raises SourceError and DatabaseError; pages before are kept, and a repetition
    stores what is missing.
    """
    report, source = VolumeReport(), history.source
    for page, values in history.pages(source.volume_queries, history.days.first):
        volumes = []
        for day in page:
            of_day = [{labels: float(size) for labels, size in value.get(day, {}).items()} for value in values]
            imported, left_out = volumes_from(source, of_day, history.known, day)
            volumes += imported
            report.left_out += [what for what in left_out if what not in report.left_out]
        report.read += len(volumes)
        report.stored += store_volumes(engine, volumes, replace=replace, dry_run=dry_run)
        report.servers = sorted({*report.servers, *(volume.server for volume in volumes)})
        progress(report.read)
    return report


def zabbix_history(zabbix: Engine, days: ImportDays, zone: ZoneInfo, layout: ImportColumns) -> QuerySource:
    """Return the sizes of databases in the trends of a Zabbix on PostgreSQL as rows, by day.

    Raises ValidationError if it is not a database of Zabbix, DatabaseError if it cannot be read.
    """
    where = safe_url(zabbix.url)
    needed = {"hosts", "items", "trends", "trends_uint"}
    with source_errors(where):
        missing = needed - set(sa.inspect(zabbix).get_table_names())
    if missing:
        raise ValidationError(f"{where} has no table {min(missing)}: it is not a database of Zabbix.")
    zabbix_sizes = text(ZABBIX_POSTGRESQL).bindparams(zone=zone.key, first=days.first, last=days.last)
    sizes = zabbix_sizes.columns(*(sa.column(name) for name in NAMES)).subquery("sizes").c
    order = sa.func.row_number().over(order_by=[sizes.day, sizes.server, sizes.database])
    numbered = sa.select(order.label("position"), *sizes).subquery("numbered").c
    ours = dict(zip((SERVER, DATABASE_NAME, DAY, layout.sizes[0]), (numbered[name] for name in NAMES), strict=True))
    query = sa.select(numbered.position, *(ours.get(column, sa.null()) for column in layout.columns))
    query = query.where(numbered.position > sa.bindparam("after")).order_by(numbered.position)
    return QuerySource(zabbix, f"{where}, trends", f"{where} {days.first}", query)


ZABBIX_EXPORT = (".ndjson", f".ndjson{GZIP}")
# An export has the names of items, not their keys. These are the names in the templates of Zabbix 5.0 to 7.4.
_ITEM = re.compile(r"(?:[\w ]+: )?(?:DB \[?(.+?)\]?: Database size|Size of database (.+))")
_MENTIONED = (b": Database size", b"Size of database ")


@dataclass(frozen=True)
class ZabbixExport:
    """A file of trends that Zabbix exports; the mean of the last hour of a day counts.

    https://www.zabbix.com/documentation/7.0/en/manual/appendix/protocols/real_time_export
    """

    path: Path
    days: ImportDays
    zone: ZoneInfo
    layout: ImportColumns

    @property
    def description(self) -> str:
        """The name of the source in messages."""
        return str(self.path.resolve())

    @property
    def fingerprint(self) -> str:
        """A hash of the file, and the first day; raises ValidationError if the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {self.days.first}"
        except OSError as error:
            raise ValidationError(f"{self.path} cannot be read: {error.strerror}.") from None

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows, day by day; raises ValidationError for a file that is not an export of Zabbix."""
        newest: dict[date, dict[tuple[str, str], tuple[int, str]]] = {}
        for day, moment, server, database, size in self._trends():
            if self.days.first <= day <= self.days.last:
                of_day = newest.setdefault(day, {})
                of_day[server, database] = max(of_day.get((server, database), (0, "")), (moment, size))
        for day, values in sorted(newest.items()):
            yield from _rows_of(day, ((*names, size) for names, (_, size) in values.items()), self.layout, after)

    def _trends(self) -> Iterator[tuple[date, int, str, str, str]]:
        """Yield day, second, server, database and bytes of each trend; raises ValidationError."""
        number = 0
        try:
            with gzip.open(self.path) if self.path.suffix == GZIP else self.path.open("rb") as file:
                for line in iter(partial(file.readline, LONGEST_LINE), b""):
                    number += 1
                    if not any(name in line for name in _MENTIONED):
                        continue
                    trend = json.loads(line, parse_float=Decimal)
                    item = _ITEM.fullmatch(trend["name"])
                    # A host that was removed has no name.
                    if item and "host" in trend:
                        moment, server, size = trend["clock"], _text(trend["host"]["host"]), str(int(trend["avg"]))
                        day = datetime.fromtimestamp(moment, self.zone).date()
                        yield day, moment, server, item[1] or item[2], size
        except (OSError, EOFError, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ValidationError(f"{self.path} cannot be read: {reason}.") from None
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
            raise ValidationError(
                f"{self.path} is not an export of trends of Zabbix: line {number} lacks host, name, clock or avg."
            ) from None


def _text(value: object) -> str:
    """Return a value of JSON that is text; raises TypeError if it is not."""
    if not isinstance(value, str):
        raise TypeError
    return value
