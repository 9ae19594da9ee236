"""Where history comes from: CSV, Excel and Parquet files, and queries on a legacy database.

A source yields rows as texts in the order of the layout, each with its position, from which an interrupted import
goes on. What the texts mean is decided in `rows`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TextIO
from zipfile import BadZipFile, ZipFile

from sqlalchemy import Engine, Executable

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import UTF_16, LineTooLongError, bounded_lines, next_line, refuse_workbook
from capacity_assets.base.units import first_of
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
    """What a file does not say of itself; None: not given."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    server: str | None = None
    encoding: str | None = None
    sheet: str | None = None

    def places(self, headings: Sequence[str], layout: ImportColumns) -> dict[str, int]:
        """Find our columns among the headings; raises ValidationError as `column_positions`."""
        return column_positions(headings, layout, self.mapping, self.server)


def file_source(path: Path, layout: ImportColumns, options: FileOptions) -> FileSource:
    """Open .parquet and .xlsx as such, all else as CSV.

    Raises ValidationError if it cannot be read, lacks a needed column, or an option does not fit this kind of file.
    """
    if not path.is_file():
        raise ValidationError(f"{path} does not exist or is not a file.")
    kind = path.suffix.lower()
    if options.encoding is not None and kind in {PARQUET, EXCEL}:
        raise ValidationError(f"--encoding is for CSV files; {path} has its own encoding.")
    if options.sheet is not None and kind != EXCEL:
        raise ValidationError(f"--sheet is for {EXCEL} files.")
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
    """A CSV file with headings, plain or ending in .gz; separated by whichever mark its headings have most.

    It is in UTF-8, or in UTF-16 where it begins with the mark of that, unless an encoding is given.
    """

    def __init__(self, path: Path, layout: ImportColumns, options: FileOptions, fingerprint: str) -> None:
        """Read the headings; raises ValidationError as `column_positions`."""
        self.description, self.fingerprint = str(path.resolve()), fingerprint
        self._path, self._columns = path, layout.columns
        self._encoding = UTF_8
        try:
            self._encoding = _known(options.encoding) if options.encoding else self._encoding_by_its_mark()
            with self._opened() as file:
                first = next_line(file)
        except (gzip.BadGzipFile, zlib.error, EOFError):
            raise ValidationError(f"{path} ends in {GZIP} and is not a gzip file.") from None
        except UnicodeError:
            raise ValidationError(f"{path} {self._undecodable()}. Nothing was imported.") from None
        except LineTooLongError as error:
            raise ValidationError(f"{path} is not CSV: {error}. Nothing was imported.") from None
        if "\0" in first:
            raise ValidationError(
                f"{path} is not CSV: it holds bytes that are not text. If it is UTF-16 without a byte order mark, add "
                "--encoding utf-16-le or utf-16-be. Nothing was imported."
            )
        if not first.strip():
            raise ValidationError(f"{path} is empty; its first line must name the columns.")
        self._delimiter = max(DELIMITERS, key=first.count)
        try:
            self._headings = next(csv.reader([first], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise ValidationError(f"The headings of {path} cannot be read: {error}.") from None
        self._places = options.places([name.strip() for name in self._headings], layout)

    @property
    def point_is_usual(self) -> bool:
        """Whether decimals have a point: programs that separate by something else may write a comma."""
        return self._delimiter == ","

    def _opened(self) -> TextIO:
        if self._path.suffix.lower() == GZIP:
            return gzip.open(self._path, "rt", encoding=self._encoding, newline="")
        return self._path.open(encoding=self._encoding, newline="")

    def _opened_as_bytes(self) -> BinaryIO | gzip.GzipFile:
        return gzip.GzipFile(self._path) if self._path.suffix.lower() == GZIP else self._path.open("rb")

    def _encoding_by_its_mark(self) -> str:
        with self._opened_as_bytes() as file:
            return "utf-16" if file.read(len(UTF_16[0])) in UTF_16 else UTF_8

    def _undecodable(self) -> str:
        """Say which byte is not in the encoding, and what to do."""
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
            with self._opened() as file:
                # Strict, because a quote that is never closed would swallow the rest of the file without a word.
                reader = csv.reader(bounded_lines(file), delimiter=self._delimiter, strict=True)
                next(reader, None)
                for position, row in enumerate(reader, start=1):
                    if position > after and row:
                        right = len(row) == width
                        yield position, [None if p is None else row[p] for p in places] if right else ()
        except (UnicodeError, LineTooLongError, csv.Error, gzip.BadGzipFile, zlib.error, EOFError) as error:
            reason = f"it {self._undecodable()}" if isinstance(error, UnicodeError) else str(error)
            raise ValidationError(f"{self._path} cannot be read past row {position}: {reason}.") from None


def _known(encoding: str) -> str:
    try:
        found = codecs.lookup(encoding)
        # Some codecs are no encodings of text.
        "".encode(encoding)
    except (LookupError, ValueError):
        raise ValidationError(f"--encoding {encoding!r:.40} is not an encoding; write utf-8 or cp1252.") from None
    return UTF_8 if found.name == "utf-8" else found.name


class ParquetSource:
    """A Parquet file, read in batches; needs pyarrow."""

    def __init__(self, path: Path, layout: ImportColumns, options: FileOptions, fingerprint: str) -> None:
        """Read the schema; raises ValidationError as `column_positions`, or where pyarrow is missing."""
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
                for position, row in enumerate(rows, start=1):
                    if position > after:
                        yield position, row
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

    Needs python-calamine. Cells formatted as dates are days whatever they look like, and numbers have no marks.
    """

    def __init__(self, path: Path, layout: ImportColumns, options: FileOptions, fingerprint: str) -> None:
        """Read the headings; raises ValidationError as `column_positions`, or where python-calamine is missing."""
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
            # Of Rust, and no Exception; it cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise ValidationError(
                f"{self.description} cannot be read past row {max(read - 1, 0)}: the next one has a date that is none."
            ) from None


def _refuse_a_boundless_workbook(path: Path) -> None:
    """Refuse a workbook that would take all memory; raises ValidationError, and OSError where it cannot be read.

    A sheet is read as a whole rectangle up to its last cell, and where that does not fit, the process is aborted.
    """
    from xlsxwriter.utility import xl_cell_to_rowcol

    # What is no archive is refused by the reader.
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
        # Spreadsheets know no other numbers.
        return f"{value:.0f}"
    return None if value is None else str(value)


def _size(value: object) -> str | None:
    """Write a number without a decimal mark, 1.234 as 1234e-3: whatever mark the texts of its column have."""
    if not isinstance(value, float | Decimal) or not isfinite(value):
        return _text(value)
    if value == int(value):
        return str(int(value))
    sign, digits, exponent = Decimal(str(value)).as_tuple()
    return f"{'-' if sign else ''}{''.join(map(str, digits))}e{exponent}"


def _writer(column: str) -> Callable[[object], str | None]:
    return _size if column.endswith("_mb") else _text


@dataclass(frozen=True)
class QuerySource:
    """A raw table of a legacy database; a row's position is its id, and its query yields those above `after`."""

    engine: Engine
    description: str
    fingerprint: str
    query: Executable

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows by id, through a cursor of the server."""
        with self.engine.connect().execution_options(stream_results=True, yield_per=BATCH_ROWS) as connection:
            for position, *values in connection.execute(self.query, {"after": after}):
                yield position, [_text(value) for value in values]


FileSource = CsvSource | ParquetSource | ExcelSource


class Source(Protocol):
    """Rows of history, each with its position."""

    @property
    def description(self) -> str:
        """Where they come from, without any secret."""

    @property
    def fingerprint(self) -> str:
        """What tells these rows from others."""

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows behind a position, 0 for all."""
