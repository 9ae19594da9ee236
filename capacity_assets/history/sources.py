"""Where history comes from: CSV and Parquet files, and queries on a legacy database.

A source yields rows as texts in the order of the layout, each with its position, from which an interrupted import
goes on. What the texts mean is decided in `rows`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from sqlalchemy import Engine, Executable

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import LineTooLongError, bounded_lines, next_line, refuse_a_workbook
from capacity_assets.history.rows import ImportColumns, column_positions

if TYPE_CHECKING:
    from pyarrow import RecordBatch


DELIMITERS = ",;\t|"
PARQUET, GZIP = ".parquet", ".gz"
BATCH_ROWS = 50_000
PositionedRow = tuple[int, Sequence[str | None]]


def file_source(path: Path, layout: ImportColumns, mapping: Mapping[str, str], server: str | None) -> Source:
    """Open .parquet as such, all else as CSV; raises ValidationError: it cannot be read, or lacks a needed column."""
    if not path.is_file():
        raise ValidationError(f"{path} does not exist or is not a file.")
    try:
        refuse_a_workbook(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        build = ParquetSource if path.suffix.lower() == PARQUET else CsvSource
        return build(path, layout, mapping, server, digest)
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None


class CsvSource:
    """A CSV file in UTF-8 with headings, plain or ending in .gz; separated by whichever mark its headings have most."""

    def __init__(
        self, path: Path, layout: ImportColumns, mapping: Mapping[str, str], server: str | None, fingerprint: str
    ) -> None:
        """Read the headings; raises ValidationError as `column_positions`."""
        self.description, self.fingerprint = str(path.resolve()), fingerprint
        self._path, self._columns = path, layout.columns
        try:
            with self._opened() as file:
                first = next_line(file)
        except (gzip.BadGzipFile, zlib.error, EOFError):
            raise ValidationError(f"{path} ends in {GZIP} and is not a gzip file.") from None
        except UnicodeDecodeError:
            raise ValidationError(
                f"{path} is not UTF-8. Convert it first: iconv -f latin1 -t utf-8, for example."
            ) from None
        except LineTooLongError as error:
            raise ValidationError(f"{path} is not CSV: {error}. Nothing was imported.") from None
        if "\0" in first:
            raise ValidationError(f"{path} is not CSV: it holds bytes that are not text. Nothing was imported.")
        if not first.strip():
            raise ValidationError(f"{path} is empty; its first line must name the columns.")
        self._delimiter = max(DELIMITERS, key=first.count)
        try:
            self._headings = next(csv.reader([first], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise ValidationError(f"The headings of {path} cannot be read: {error}.") from None
        self._places = column_positions([name.strip() for name in self._headings], layout, mapping, server)

    @property
    def decimal_is_ambiguous(self) -> bool:
        """Whether decimals may be written with a comma: programs that separate by semicolons do so."""
        return self._delimiter == ";"

    def _opened(self) -> TextIO:
        if self._path.suffix.lower() == GZIP:
            return gzip.open(self._path, "rt", encoding="utf-8-sig", newline="")
        return self._path.open(encoding="utf-8-sig", newline="")

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows; a row's position is its number, the first after the headings being 1.

        Raises:
            ValidationError: the file is not UTF-8, or a field has no end.
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
        except (UnicodeDecodeError, LineTooLongError, csv.Error, gzip.BadGzipFile, zlib.error, EOFError) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise ValidationError(
                f"{self._path} cannot be read past row {position}: {reason}. What was loaded before is kept."
            ) from None


class ParquetSource:
    """A Parquet file, read in batches; needs pyarrow."""

    def __init__(
        self, path: Path, layout: ImportColumns, mapping: Mapping[str, str], server: str | None, fingerprint: str
    ) -> None:
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
        self._places = column_positions(self._headings, layout, mapping, server)

    decimal_is_ambiguous = False

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
                    f"{self._path} cannot be read beyond row {position}: {str(error).splitlines()[0]}. What was "
                    "read before is kept."
                ) from None

    def _texts(self, batch: RecordBatch, names: Mapping[str, str]) -> Iterator[Sequence[str | None]]:
        columns = [
            [None] * batch.num_rows if ours not in names else [_text(value) for value in batch[names[ours]].to_pylist()]
            for ours in self._columns
        ]
        return zip(*columns, strict=True)


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode()
    return None if value is None else str(value)


@dataclass(frozen=True)
class QuerySource:
    """A raw table of a legacy database; a row's position is its id, and its query yields those above `after`."""

    engine: Engine
    description: str
    fingerprint: str
    query: Executable
    decimal_is_ambiguous: ClassVar[bool] = False

    def rows(self, after: int) -> Iterator[PositionedRow]:
        """Yield the rows by id, through a cursor of the server."""
        with self.engine.connect().execution_options(stream_results=True, yield_per=BATCH_ROWS) as connection:
            for position, *values in connection.execute(self.query, {"after": after}):
                yield position, [_text(value) for value in values]


Source = CsvSource | ParquetSource | QuerySource
"""Rows of history by position, after a given one; `description` has no secret, `fingerprint` changes when they do."""
