"""Sources of history: CSV, Excel and Parquet files, queries on a legacy database, and the histories of other programs.

A source yields rows as texts in the order of the layout, each with its position, from which an interrupted import
continues. `rows` decides what the texts mean.

An origin is the program that measured imported samples. Its query gives `server`, `database`, `day` and `size_bytes`,
one row per database and day; it runs in that program, and its result is imported as CSV with `--origin`. A named
parameter begins with a colon; the time zone is that of CAPACITY_TIMEZONE. Per import, server and database, the days of
its samples are stored as a multirange. A sample in no import was measured here. If another import, or a measurement,
replaces samples, they no longer belong to the first import.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import chain
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TextIO
from zipfile import BadZipFile, ZipFile

from sqlalchemy import Connection, Engine, Executable

from capacity_assets.base.declarations import UTF_16, LineTooLongError, bounded_lines, next_line, refuse_workbook
from capacity_assets.base.errors import (
    DATABASE_FAILURES,
    DatabaseError,
    ValidationError,
    is_transient,
    reason_of,
    refuse,
)
from capacity_assets.base.units import first_of
from capacity_assets.database.sql import with_queries
from capacity_assets.history.rows import MOST_LISTED, ImportColumns, column_positions

if TYPE_CHECKING:
    from pyarrow import RecordBatch


DELIMITERS = ",;\t|"
PARQUET, EXCEL, GZIP = ".parquet", ".xlsx", ".gz"
UTF_8, CP1252 = "utf-8-sig", "cp1252"
BATCH_ROWS = 50_000
BLOCK_BYTES = 1 << 20
# A full sheet of 1,048,576 rows with some ten columns has about half a GiB.
MOST_CELLS, LARGEST_WORKBOOK_BYTES = 50_000_000, 2 << 30
_LAST_CELL = re.compile(rb'<(?:\w+:)?dimension ref="[A-Z]{1,3}\d{1,7}:([A-Z]{1,3}\d{1,7})"')
PositionedRow = tuple[int, Sequence[str | None]]


@dataclass(frozen=True)
class FileOptions:
    """The formats of a file, if the file does not show them; None: not given."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    server: str | None = None
    encoding: str | None = None
    sheet: str | None = None

    def places(self, headings: Sequence[str], layout: ImportColumns) -> dict[str, int]:
        """Find our columns among the headings; raises ValidationError as `column_positions`."""
        return column_positions(headings, layout, self.mapping, self.server)


def file_source(path: Path, layout: ImportColumns, options: FileOptions) -> FileSource:
    """Open .parquet and .xlsx in their formats, all other files as CSV.

    Raises ValidationError if it cannot be read, lacks a needed column, or an option does not fit this kind of file.
    """
    kind = path.suffix.lower()
    is_recoded, has_sheet = options.encoding is not None, options.sheet is not None
    refuse(
        (not path.is_file(), f"{path} does not exist or is not a file."),
        (is_recoded and kind in {PARQUET, EXCEL}, f"--encoding is for CSV files; {path} has its own encoding."),
        (has_sheet and kind != EXCEL, f"--sheet is for {EXCEL} files."),
    )
    try:
        if kind != EXCEL:
            refuse_workbook(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kinds: dict[str, type[FileSource]] = {PARQUET: ParquetSource, EXCEL: ExcelSource}
        return kinds.get(kind, CsvSource)(path, layout, options, digest)
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None


class CsvSource:
    """A CSV file with headings, plain or ending in .gz; separated by the mark that is most frequent in its headings.

    Unless an encoding is given, it is in UTF-8, or in UTF-16 if it begins with the byte order mark of UTF-16.
    """

    def __init__(self, path: Path, layout: ImportColumns, options: FileOptions, fingerprint: str) -> None:
        """Read the headings; raises ValidationError as `column_positions`."""
        self.description, self.fingerprint = str(path.resolve()), fingerprint
        self._path, self._columns = path, layout.columns
        self._encoding = UTF_8
        try:
            self._encoding = _codec_name(options.encoding) if options.encoding else self._encoding_by_its_mark()
            with self._open_file() as file:
                first = next_line(file)
        except (gzip.BadGzipFile, zlib.error, EOFError):
            raise ValidationError(f"{path} ends in {GZIP} and is not a gzip file.") from None
        except UnicodeError:
            raise ValidationError(f"{path} {self._undecodable()}.") from None
        except LineTooLongError as error:
            raise ValidationError(f"{path} is not CSV: {error}.") from None
        if "\0" in first:
            raise ValidationError(
                f"{path} is not CSV: it contains bytes that are not text. If it is UTF-16 without a byte order mark, "
                "add --encoding utf-16-le or utf-16-be."
            )
        if not first.strip():
            raise ValidationError(f"{path} is empty; its first line must name the columns.")
        self._delimiter = max(DELIMITERS, key=first.count)
        try:
            self._headings = next(csv.reader([first], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise ValidationError(f"The headings of {path} cannot be read: {error}.") from None
        self._places = options.places([name.strip() for name in self._headings], layout)
        self._shifts = [(0, 1)]
        """The positions from which on a row begins that many lines behind its position: fields may have several."""

    def place_of(self, position: int) -> str:
        """Return a description of a row that was read: its position, and the line of the file on which it begins."""
        _, lines = self._shifts[bisect_right(self._shifts, position, key=itemgetter(0)) - 1]
        return f"row {position} (line {position + lines})"

    @property
    def point_is_usual(self) -> bool:
        """Whether decimals have a point: programs that use another separator may write a comma."""
        return self._delimiter == ","

    def _open_file(self) -> TextIO:
        if self._path.suffix.lower() == GZIP:
            return gzip.open(self._path, "rt", encoding=self._encoding, newline="")
        return self._path.open(encoding=self._encoding, newline="")

    def _opened_as_bytes(self) -> BinaryIO | gzip.GzipFile:
        return gzip.GzipFile(self._path) if self._path.suffix.lower() == GZIP else self._path.open("rb")

    def _encoding_by_its_mark(self) -> str:
        with self._opened_as_bytes() as file:
            return "utf-16" if file.read(len(UTF_16[0])) in UTF_16 else UTF_8

    def _undecodable(self) -> str:
        """Return a message on which byte is not in the encoding, and what to do."""
        name = "UTF-8" if self._encoding == UTF_8 else self._encoding
        decoder = codecs.getincrementaldecoder(self._encoding)()
        line = 1
        with self._opened_as_bytes() as file:
            for block in iter(partial(file.readline, BLOCK_BYTES), b""):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    byte = error.object[error.start]
                    other = (
                        ""
                        if self._encoding == CP1252
                        else f"; for files from Windows programs, try --encoding {CP1252}"
                    )
                    return f"is not {name}: line {line} has the byte 0x{byte:02x}{other}"
                line += block.endswith(b"\n")
        return f"is not {name}: it ends within a character"

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows; a row's position is its number, the first after the headings being 1.

        Raises ValidationError if the file is not in its encoding, or a field has no end.
        """
        places = [self._places.get(name) for name in self._columns]
        width = len(self._headings)
        position = 0
        try:
            with self._open_file() as file:
                # Strict, because an unclosed quote would silently swallow the rest of the file.
                reader = csv.reader(bounded_lines(file), delimiter=self._delimiter, strict=True)
                next(reader, None)
                line, self._shifts = reader.line_num + 1, [(0, 1)]
                for position, row in enumerate(reader, start=1):
                    if line - position != self._shifts[-1][1]:
                        self._shifts.append((position, line - position))
                    line = reader.line_num + 1
                    if position > after and row:
                        right = len(row) == width
                        yield position, [None if p is None else row[p] for p in places] if right else ()
        except (UnicodeError, LineTooLongError, csv.Error, gzip.BadGzipFile, zlib.error, EOFError) as error:
            reason = f"it {self._undecodable()}" if isinstance(error, UnicodeError) else str(error)
            if reason == "unexpected end of data":
                reason = 'the next row opens a quotation mark (") that nothing closes'
            raise ValidationError(f"{self._path} cannot be read past row {position}: {reason}.") from None


def _codec_name(encoding: str) -> str:
    try:
        codec = codecs.lookup(encoding)
        # Some codecs are not text encodings.
        "".encode(encoding)
    except (LookupError, ValueError):
        raise ValidationError(f"--encoding {encoding!r:.40} is not an encoding; write utf-8 or cp1252.") from None
    return UTF_8 if codec.name == "utf-8" else codec.name


class ParquetSource:
    """A Parquet file, read in batches; needs pyarrow."""

    def __init__(self, path: Path, layout: ImportColumns, options: FileOptions, fingerprint: str) -> None:
        """Read the schema; raises ValidationError as `column_positions`, or if pyarrow is missing."""
        self.description, self.fingerprint = str(path.resolve()), fingerprint
        self._path, self._columns = path, layout.columns
        try:
            from pyarrow import ArrowInvalid, parquet
        except ImportError:
            raise ValidationError(
                "Reading Parquet needs pyarrow: pip install 'capacity_assets[parquet]', or convert the file to CSV."
            ) from None
        try:
            self._headings = parquet.read_schema(path).names
        except ArrowInvalid as error:
            raise ValidationError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
        self._places = options.places(self._headings, layout)

    point_is_usual = True

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows; a row's position is its number from 1 on."""
        from pyarrow import ArrowException, parquet

        names = {ours: self._headings[place] for ours, place in self._places.items()}
        position = 0
        with parquet.ParquetFile(self._path) as file:
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(names.values()))
            rows = chain.from_iterable(self._texts(batch, names) for batch in batches)
            try:
                yield from ((position, row) for position, row in enumerate(rows, start=1) if position > after)
            except (OSError, ArrowException, UnicodeDecodeError) as error:
                raise ValidationError(
                    f"{self._path} cannot be read past row {position}: {str(error).splitlines()[0]}."
                ) from None

    def _texts(self, batch: RecordBatch, names: Mapping[str, str]) -> Iterator[Sequence[str | None]]:
        columns = [
            [None] * batch.num_rows if ours not in names else list(map(_writer(ours), batch[names[ours]].to_pylist()))
            for ours in self._columns
        ]
        return zip(*columns, strict=True)


class ExcelSource:
    """A sheet of an .xlsx workbook, the first unless one is named, with headings in its first row.

    Needs python-calamine. Cells formatted as dates are days, whatever their format, and numbers have no marks.
    """

    def __init__(self, path: Path, layout: ImportColumns, options: FileOptions, fingerprint: str) -> None:
        """Read the headings; raises ValidationError as `column_positions`, or if python-calamine is missing."""
        self.fingerprint = f"{fingerprint} {options.sheet}"
        self._columns = layout.columns
        try:
            from python_calamine import CalamineError, CalamineWorkbook
        except ImportError:
            raise ValidationError(
                "Reading .xlsx needs python-calamine: pip install 'capacity_assets[excel]', or save the sheet as CSV."
            ) from None
        _refuse_a_boundless_workbook(path)
        try:
            workbook = CalamineWorkbook.from_path(path)
            names = workbook.sheet_names
            if not names:
                raise ValidationError(f"{path} has no sheet.")
            if options.sheet is not None and options.sheet not in names:
                raise ValidationError(f"{path} has no sheet {options.sheet!r}. It has {first_of(names, MOST_LISTED)}.")
            name = options.sheet or names[0]
            self._sheet = workbook.get_sheet_by_name(name)
        except CalamineError as error:
            raise ValidationError(f"{path} is not an .xlsx workbook that can be read: {error}.") from None
        self.description = f"{path.resolve()}, sheet {name}"
        headings = [(_text(value) or "").strip() for value in next(self._sheet.iter_rows(), ())]
        if not any(headings):
            raise ValidationError(f"The sheet {name!r} of {path} is empty; its first row must name the columns.")
        self._places = options.places(headings, layout)

    point_is_usual = True

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows; a row's position is its number, the first after the headings being 1."""
        cells = [(self._places.get(name), _writer(name)) for name in self._columns]
        for position, row in enumerate(self._sheet_rows()):
            if position > after and any(value != "" for value in row):
                yield position, [None if place is None else written(row[place]) for place, written in cells]

    def _sheet_rows(self) -> Iterator[Sequence[object]]:
        read = 0
        try:
            for row in self._sheet.iter_rows():
                yield row
                read += 1
        except BaseException as error:
            # A panic of Rust is not an Exception, and its class cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise ValidationError(
                f"{self.description} cannot be read past row {max(read - 1, 0)}: the next one has an invalid date."
            ) from None


def _refuse_a_boundless_workbook(path: Path) -> None:
    """Refuse a workbook that would need too much memory; raises ValidationError, and OSError if it cannot be read.

    A sheet is read as a whole rectangle up to its last cell; if it does not fit into memory, the process is aborted.
    """
    from xlsxwriter.utility import xl_cell_to_rowcol

    # The reader refuses a file that is not an archive.
    with suppress(BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError), ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > LARGEST_WORKBOOK_BYTES:
            raise ValidationError(
                f"{path} has more than {LARGEST_WORKBOOK_BYTES >> 30} GiB when unpacked. Save the sheet as CSV."
            )
        for part in parts:
            if not part.filename.startswith("xl/worksheets/") or part.is_dir():
                continue
            with archive.open(part) as file:
                last = _LAST_CELL.search(file.read(BLOCK_BYTES))
            if last is None:
                continue
            cell = last.group(1).decode()
            row, column = xl_cell_to_rowcol(cell)
            if (row + 1) * (column + 1) > MOST_CELLS:
                raise ValidationError(
                    f"A sheet of {path} reaches to the cell {cell}, which is too large to be read. "
                    "Delete the rows and columns beyond its samples, or save it as CSV."
                )


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and value.is_integer():
        # Spreadsheets have no other numbers.
        return f"{value:.0f}"
    return None if value is None else str(value)


def _size(value: object) -> str | None:
    """Write a number without a decimal mark, 1.234 as 1234e-3, so that it does not depend on its column."""
    if not isinstance(value, float | Decimal) or not isfinite(value):
        return _text(value)
    if value == int(value):
        return str(int(value))
    sign, digits, exponent = Decimal(str(value)).as_tuple()
    return f"{'-' if sign else ''}{''.join(map(str, digits))}e{exponent}"


def _writer(column: str) -> Callable[[object], str | None]:
    return _size if column.endswith("_mb") else _text


@contextmanager
def source_errors(where: str, kept: str = "") -> Iterator[None]:
    """Turn failures of another database inside the block into a DatabaseError without advice for that of ours."""
    try:
        yield
    except DATABASE_FAILURES as error:
        text = f"{where} cannot be read: {reason_of(error)}. {kept}".strip()
        raise DatabaseError(text, transient=is_transient(error)) from None


@dataclass(frozen=True)
class QuerySource:
    """A raw table of a legacy database; a row's position is its id, and its query yields those above `after`."""

    engine: Engine
    description: str
    fingerprint: str
    query: Executable

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows by id, through a cursor of the server; raises DatabaseError."""
        with (
            source_errors(self.description, "Slices loaded before are kept; the same command continues."),
            self.engine.connect().execution_options(stream_results=True, yield_per=BATCH_ROWS) as connection,
        ):
            for position, *values in connection.execute(self.query, {"after": after}):
                yield position, [_text(value) for value in values]


FileSource = CsvSource | ParquetSource | ExcelSource


class Source(Protocol):
    """Rows of history, each with its position."""

    @property
    def description(self) -> str:
        """A description of the source, without secrets."""

    @property
    def fingerprint(self) -> str:
        """An identification that differs from that of other sources."""

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows behind a position, 0 for all."""


# Items of the templates "PostgreSQL by Zabbix agent", "... agent 2", and those of MySQL. The last parameter of their
# keys is the database; others may be passwords. Trends are hourly: the mean of the last hour of a day counts.
# https://www.zabbix.com/documentation/7.0/en/manual/appendix/config/trends
ZABBIX_POSTGRESQL = r"""
SELECT s.server, s.database, s.day, CAST(trunc(s.value) AS bigint) AS size_bytes
FROM (
    SELECT h.host AS server, substring(i.key_ from '"?([^",\[]*)"?\s*\]$') AS database, t.day, t.value,
           row_number() OVER (PARTITION BY i.itemid, t.day ORDER BY t.clock DESC) AS turn
    FROM hosts h
    JOIN items i ON i.hostid = h.hostid
    JOIN (
        SELECT itemid, clock, CAST(value_avg AS numeric) AS value,
               CAST(to_timestamp(clock) AT TIME ZONE CAST(:zone AS text) AS date) AS day
        FROM trends_uint
        UNION ALL
        SELECT itemid, clock, CAST(value_avg AS numeric),
               CAST(to_timestamp(clock) AT TIME ZONE CAST(:zone AS text) AS date)
        FROM trends
    ) t ON t.itemid = i.itemid
    WHERE (i.key_ LIKE 'pgsql.db.size[%' OR i.key_ LIKE 'mysql.db.size[%' OR i.key_ LIKE 'mysql.dbsize[%')
      AND t.clock >= extract(epoch FROM CAST(:first AS date)) - 86400
      AND t.clock < extract(epoch FROM CAST(:last AS date)) + 2 * 86400
) s
WHERE s.turn = 1 AND s.day BETWEEN CAST(:first AS date) AND CAST(:last AS date)
ORDER BY s.day, s.server, s.database
"""
# The session's zone determines the day: SET time_zone = 'Europe/Berlin', if the server has tables of zones.
ZABBIX_MYSQL = r"""
SELECT s.server, s.name AS `database`, s.day, CAST(FLOOR(s.value) AS SIGNED) AS size_bytes
FROM (
    SELECT h.host AS server, TRIM(BOTH '"' FROM TRIM(SUBSTRING_INDEX(
               SUBSTRING_INDEX(TRIM(TRAILING ']' FROM i.key_), ',', -1), '[', -1))) AS name,
           DATE(FROM_UNIXTIME(t.clock)) AS day, t.value,
           ROW_NUMBER() OVER (PARTITION BY i.itemid, DATE(FROM_UNIXTIME(t.clock)) ORDER BY t.clock DESC) AS turn
    FROM hosts h
    JOIN items i ON i.hostid = h.hostid
    JOIN (
        SELECT itemid, clock, value_avg AS value FROM trends_uint
        UNION ALL
        SELECT itemid, clock, value_avg FROM trends
    ) t ON t.itemid = i.itemid
    WHERE i.key_ LIKE 'pgsql.db.size[%' OR i.key_ LIKE 'mysql.db.size[%' OR i.key_ LIKE 'mysql.dbsize[%'
) s
WHERE s.turn = 1 AND s.day < CURRENT_DATE
ORDER BY s.day, s.server, s.name
"""
# The last full backup of each database that ended on a day, by the server's clock. Its size is that of the used pages
# before compression, which differs from that of the files.
# https://learn.microsoft.com/en-us/sql/relational-databases/system-tables/backupset-transact-sql
SQLSERVER_BACKUPS = """
SELECT s.server, s.database_name AS [database], s.day, s.size_bytes
FROM (
    SELECT b.server_name AS server, b.database_name, CAST(b.backup_finish_date AS date) AS day,
           CAST(b.backup_size AS bigint) AS size_bytes,
           ROW_NUMBER() OVER (PARTITION BY b.server_name, b.database_name, CAST(b.backup_finish_date AS date)
                              ORDER BY b.backup_finish_date DESC, b.backup_set_id DESC) AS turn
    FROM msdb.dbo.backupset AS b
    WHERE b.server_name = @@SERVERNAME AND b.type = 'D' AND b.backup_size IS NOT NULL
      AND b.database_name NOT IN ('master', 'model', 'msdb')
) AS s
WHERE s.turn = 1
ORDER BY s.day, s.server, s.database_name
"""
# Hourly snapshots, kept for eight days unless the retention was raised; using the view takes a licence of the
# Diagnostics Pack. Sizes are in blocks of the tablespace, the time is a text of the server's clock.
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_HIST_TBSPC_SPACE_USAGE.html
ORACLE_AWR = """
SELECT :server AS "server", s.tablespace_name AS "database", TO_CHAR(s.day, 'YYYY-MM-DD') AS "day",
       s.size_bytes AS "size_bytes"
FROM (
    SELECT n.name AS tablespace_name, TRUNC(TO_DATE(u.rtime, 'MM/DD/YYYY HH24:MI:SS')) AS day,
           u.tablespace_size * t.block_size AS size_bytes,
           ROW_NUMBER() OVER (PARTITION BY n.name, TRUNC(TO_DATE(u.rtime, 'MM/DD/YYYY HH24:MI:SS'))
                              ORDER BY TO_DATE(u.rtime, 'MM/DD/YYYY HH24:MI:SS') DESC, u.snap_id DESC) AS turn
    FROM dba_hist_tbspc_space_usage u
    JOIN v$tablespace n ON n.ts# = u.tablespace_id
    JOIN dba_tablespaces t ON t.tablespace_name = n.name
    WHERE t.contents <> 'TEMPORARY' AND u.dbid = (SELECT dbid FROM v$database)
) s
WHERE s.turn = 1
ORDER BY s.day, s.tablespace_name
"""


@dataclass(frozen=True)
class Origin:
    """The program that measured samples: the name that is stored, and the name for people."""

    name: str
    label: str
    suffix: str = ""
    """Suffix of the name of the server that gets the samples, if their sizes are not those of its databases."""
    queries: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """The dialect of SQL and the query, by the program in which it runs."""


FILE = Origin("file", "a file")
LEGACY = Origin("legacy", "the legacy database")
PROMETHEUS = Origin("prometheus", "Prometheus")
ZABBIX = Origin(
    "zabbix",
    "trends of Zabbix",
    queries={"Zabbix on PostgreSQL": ("postgres", ZABBIX_POSTGRESQL), "Zabbix on MySQL": ("mysql", ZABBIX_MYSQL)},
)
BACKUPS = Origin(
    "sqlserver-backups",
    "sizes of backups of SQL Server",
    suffix=" backups",
    queries={"SQL Server": ("tsql", SQLSERVER_BACKUPS)},
)
AWR = Origin("oracle-awr", "the workload repository of Oracle", queries={"Oracle": ("oracle", ORACLE_AWR)})
ORIGINS = {origin.name: origin for origin in (FILE, LEGACY, PROMETHEUS, ZABBIX, BACKUPS, AWR)}
ORIGINS_OF_FILES = tuple(origin.name for origin in (FILE, ZABBIX, AWR, BACKUPS))
"""Origins whose samples a file may contain."""

_IMPORTED = """
SELECT instance_id, coalesce(database_name, '') AS database_name,
       range_agg(daterange(collected_date, collected_date, '[]')) AS days
FROM compared WHERE taken GROUP BY 1, 2
"""
_CLAIM = """
INSERT INTO capacity_imported_days AS t (instance_id, database_name, fingerprint, days)
SELECT n.instance_id, n.database_name, :fingerprint, n.days FROM imported AS n
ON CONFLICT (instance_id, database_name, fingerprint) DO UPDATE SET days = t.days + excluded.days
"""
_TAKE_FROM_OTHERS = """
UPDATE capacity_imported_days t SET days = t.days - n.days FROM imported AS n
WHERE t.instance_id = n.instance_id AND t.database_name = n.database_name AND t.fingerprint <> :fingerprint
  AND t.days && n.days
"""


def claim_samples(connection: Connection, fingerprint: str, *, replaced: bool) -> None:
    """Record that an import has the stored rows of `compared`; `replaced`: another import may have had them."""
    for statement in (_CLAIM, _TAKE_FROM_OTHERS) if replaced else (_CLAIM,):
        connection.execute(with_queries(statement, imported=_IMPORTED), {"fingerprint": fingerprint})
