"""Files that people write (text, TOML, CSV, KEY=VALUE), and files that are replaced in one step.

One reader per format serves all declarations: servers, limits, steps, labels, prices, sources of volumes, receivers.
Large files of samples are read by `history.sources`.
"""

from __future__ import annotations

import codecs
import csv
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from capacity_assets.base.declarations import DeclaredItems, declaration, names_of, read_each
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import meant


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a new file beside `path`, which replaces it when the block ends without an error.

    Any number of writers may do this at once: the last one to end wins, and a reader never sees half a file.

    Raises:
        OSError: the folder cannot be written, or `path` is a folder, a device or the like; what was there is kept.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(0, "it exists and is not an ordinary file")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        # In a folder of its own, the file gets the permissions of any new file, or those of the one that it replaces.
        begun = Path(folder) / "file"
        yield begun
        if path.exists():
            shutil.copymode(path, begun)
        begun.replace(path)


# More than a file of 100,000 servers has.
LARGEST_BYTES = 64 << 20
LONGEST_LINE = 1 << 17
"""In characters: the longest field that Python's csv module reads."""
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""The first bytes of the files of spreadsheet programs, those of today and those of before 2007."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def text_of(path: Path, largest_bytes: int = LARGEST_BYTES) -> str:
    """Return the text of a file in UTF-8; raises ValidationError, which repeats none of it: it may be a password."""
    try:
        with path.open("rb") as file:
            content = file.read(largest_bytes + 1)
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > largest_bytes:
        raise ValidationError(f"{path} cannot be read: it is larger than {largest_bytes >> 20} MiB.")
    refuse_workbook(path, content)
    if content.startswith(UTF_16):
        raise ValidationError(f"{path} is in UTF-16, as some editors write it. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValidationError(f"{path} is not UTF-8 text. Save it as UTF-8.") from None
    before, nul, _ = text.partition("\0")
    if nul:
        line = before.count("\n") + 1
        raise ValidationError(f"{path}: line {line} contains a NUL character. Save the file as UTF-8 text.")
    return text


def refuse_workbook(path: Path, content: bytes | None = None) -> None:
    """Refuse the file of a spreadsheet program, by its first bytes; raises ValidationError and OSError."""
    if content is None:
        with path.open("rb") as file:
            content = file.read(len(WORKBOOKS[0]))
    if content.startswith(WORKBOOKS):
        raise ValidationError(
            f"{path} is the workbook of a spreadsheet program, or another archive. Save the sheet as CSV UTF-8."
        )


class LineTooLongError(ValueError):
    """A line is longer than LONGEST_LINE; the text does not repeat it."""

    def __init__(self) -> None:
        super().__init__(f"a line is longer than {LONGEST_LINE:,} characters")


def next_line(file: TextIO) -> str:
    """Return the next line, empty at the end; raises LineTooLongError, and UnicodeDecodeError."""
    line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise LineTooLongError
    return line


def bounded_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raises as `next_line`."""
    while line := next_line(file):
        yield line


class DeclaredItem(Protocol):
    """A declared thing that has a name."""

    @property
    def name(self) -> str:
        """The name, which no other thing of its kind has."""


Item = TypeVar("Item", bound=DeclaredItem)


def toml_document(path: Path) -> dict[str, Any]:
    """Read a file; raises as `text_of`."""
    try:
        return tomllib.loads(text_of(path))
    except tomllib.TOMLDecodeError as error:
        # The first part names what was expected and where; the rest may repeat the text.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None


def named_tables(path: Path, table: str, called: str, declared: Callable[[Mapping[str, Any]], Item]) -> list[Item]:
    """Read a file of tables `[[table]]` alone; `called` is the word for what a table declares.

    Raises ValidationError with all problems: of the file, of what `declared` refuses, of names used twice.
    """
    document = toml_document(path)
    entries = document.get(table)
    if set(document) != {table} or not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise ValidationError(f"{path} holds tables [[{table}]], one per {called}, and nothing else.")
    things = read_each(((f"{called} {n}", values) for n, values in enumerate(entries, start=1)), declared)
    names = [one.name for one in things]
    twice = [f"two {called}s are called {name!r}." for name in sorted(set(names)) if names.count(name) > 1]
    if twice:
        raise ValidationError("\n".join(twice))
    return things


def key_and_value(written: str, hint: str = "") -> tuple[str, str]:
    """Return key and value as they are written; the value may be empty.

    Raises ValidationError without `=`, with the `hint` in its text.
    """
    key, equals, value = written.partition("=")
    if not equals:
        raise ValidationError(f"{written!r} is not a label; write team=payments.{hint}")
    return key, value


DELIMITERS = ",;\t"
"""Spreadsheets of many countries separate by semicolons."""

T = TypeVar("T")


def items_of_file(path: Path, kind: type[T]) -> DeclaredItems[T]:
    """Return the things of one type that a CSV file declares, one per row; raises as `declarations`."""
    return declarations(path, *names_of(kind), lambda row: declaration(kind, row))


def declarations(
    path: Path, columns: Sequence[str], needed: Sequence[str], parse: Callable[[Mapping[str, str]], T]
) -> DeclaredItems[T]:
    """Return what `parse` makes of each row of a file; it raises ValidationError for a wrong row.

    A misspelt heading is refused. Otherwise a limit for one database would become one for the whole server.

    Raises:
        ValidationError: as `csv_rows`; a column is unknown, missing or there twice; or rows are wrong, all reported
            together.
    """
    headings, rows = csv_rows(path)
    known = f"The columns are {', '.join(columns)}."
    missing = [name for name in needed if name not in headings]
    if missing:
        raise ValidationError(f"{path} has no column {', '.join(missing)}. {known}")
    unknown = [name for name in headings if name not in columns]
    if unknown:
        raise ValidationError(f"{path} has an unknown column {unknown[0]!r}.{meant(unknown[0], columns)} {known}")
    twice = next((name for name in headings if headings.count(name) > 1), None)
    if twice:
        raise ValidationError(f"{path} has the column {twice!r} twice.")
    return read_each(((f"line {line}", row) for line, row in rows), parse)


def refuse_lacking(row: Mapping[str, str], needed: Sequence[str]) -> None:
    """Refuse a row in which a required field is empty; raises ValidationError."""
    lacking = [name for name in needed if name not in row]
    if lacking:
        raise ValidationError(f"{' and '.join(lacking)} missing.")


def csv_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the headings, and each row by heading, with the number of its line; empty fields are left out.

    Raises ValidationError: as `text_of`; there is no row, or one with more fields than there are headings.
    """
    file = StringIO(text_of(path), newline="")
    try:
        first = next_line(file)
        if not first.strip():
            raise ValidationError(f"{path} is empty, or begins with an empty line.")
        file.seek(0)
        reader = csv.DictReader(bounded_lines(file), delimiter=max(DELIMITERS, key=first.count), strict=True)
        rows = []
        for row in reader:
            if None in row:
                raise ValidationError(f"{path}: line {reader.line_num} has more fields than there are headings.")
            rows.append((reader.line_num, {name: value for name, value in row.items() if value}))
    except LineTooLongError as error:
        raise ValidationError(f"{path} is not CSV: {error}.") from None
    except csv.Error as error:
        # The first part names what was expected and where; the rest may repeat the text.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None
    if not rows:
        raise ValidationError(f"{path} has no line below its headings.")
    return list(reader.fieldnames or ()), rows
