"""Files that people write (text lines, TOML, CSV, KEY=VALUE), and files that are replaced in one step.

One reader per format serves all declarations: servers, limits, steps, labels, prices, sources of volumes, receivers.
Large files of samples are read by `history.sources`.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from capacity_assets.base.declarations import Things, declaration, names_of, read_each
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import meant


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to be written, which takes its place when the block ends well.

    Any number of writers may do this at once: the last one to end wins, and a reader never sees half a file.

    Raises:
        OSError: the folder cannot be written, or `path` is a folder, a device or the like; what was there is kept.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(0, "it exists and is not an ordinary file")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        # Inside a folder of its own, the file gets the rights that any new file gets, or those of the one it replaces.
        begun = Path(folder) / "file"
        yield begun
        if path.exists():
            shutil.copymode(path, begun)
        begun.replace(path)


LONGEST_LINE = 1 << 17
"""In characters; as long as the longest field that Python's csv module takes."""


WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""What the files of spreadsheet programs begin with, those of today and those of before 2007."""


def refuse_a_workbook(path: Path) -> None:
    """Refuse the file of a spreadsheet program; raises ValidationError, and OSError where it cannot be read."""
    with path.open("rb") as file:
        refuse_the_beginning_of_a_workbook(path, file.read(len(WORKBOOKS[0])))


def refuse_the_beginning_of_a_workbook(path: Path, content: bytes) -> None:
    """Refuse what a file begins with; raises ValidationError."""
    if content.startswith(WORKBOOKS):
        raise ValidationError(
            f"{path} is the workbook of a spreadsheet program, or another archive. Save the sheet as CSV UTF-8."
        )


class LineTooLongError(ValueError):
    """A line is longer than a row can be; the text does not repeat it."""

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


# A file of 100,000 servers has less.
LARGEST_BYTES = 64 << 20


class HasName(Protocol):
    """What a table declares has a name of its own."""

    @property
    def name(self) -> str:
        """By which it is told from the others."""


Item = TypeVar("Item", bound=HasName)


def toml_document(path: Path) -> dict[str, Any]:
    """Read a file; raises ValidationError that repeats no text of it, which may be a password."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ValidationError(f"{path} cannot be read: it is larger than {LARGEST_BYTES >> 20} MiB.")
        refuse_the_beginning_of_a_workbook(path, content)
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The parser names place and expectation, not the text that is there.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None


def named_tables(path: Path, table: str, called: str, declared: Callable[[Mapping[str, Any]], Item]) -> list[Item]:
    """Read a file of tables `[[table]]` alone; `called` is what people call what one declares.

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
    """Return key and value as they are written, the value perhaps empty.

    Raises ValidationError without `=`, with the `hint` in its text.
    """
    key, equals, value = written.partition("=")
    if not equals:
        raise ValidationError(f"{written!r} is not a label; write team=payments.{hint}")
    return key, value


DELIMITERS = ",;\t"
"""Spreadsheets of many countries separate by semicolons."""

T = TypeVar("T")


def things_of_file(path: Path, kind: type[T]) -> Things[T]:
    """Return the things of one type that a CSV file declares, one per row; raises as `declarations`."""
    return declarations(path, *names_of(kind), lambda row: declaration(kind, row))


def declarations(
    path: Path, columns: Sequence[str], needed: Sequence[str], parse: Callable[[Mapping[str, str]], T]
) -> Things[T]:
    """Return what `parse` makes of each row of a file; it raises ValidationError where a row makes no sense.

    A misspelt heading would have its values ignored, and a limit of one database be that of the whole server.

    Raises:
        ValidationError: as `csv_rows`; a column is unknown, missing or there twice; or rows make no sense, all reported
            together.
    """
    headings, rows = csv_rows(path)
    named = f"The columns are {', '.join(columns)}."
    missing = [name for name in needed if name not in headings]
    if missing:
        raise ValidationError(f"{path} has no column {', '.join(missing)}. {named}")
    unknown = [name for name in headings if name not in columns]
    if unknown:
        raise ValidationError(f"{path} has an unknown column {unknown[0]!r}.{meant(unknown[0], columns)} {named}")
    twice = next((name for name in headings if headings.count(name) > 1), None)
    if twice:
        raise ValidationError(f"{path} has the column {twice!r} twice.")
    return read_each(((f"line {line}", row) for line, row in rows), parse)


def refuse_lacking(row: Mapping[str, str], needed: Sequence[str]) -> None:
    """Refuse a row in which a needed field is empty; raises ValidationError."""
    lacking = [name for name in needed if name not in row]
    if lacking:
        raise ValidationError(f"{' and '.join(lacking)} missing.")


def csv_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the headings and, with the number of its line, each row by heading; empty fields are left out.

    Raises ValidationError: it cannot be read, has no row, or one with more fields than there are headings.
    """
    try:
        refuse_a_workbook(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next_line(file)
            if not first.strip():
                raise ValidationError(f"{path} is empty, or begins with an empty line.")
            file.seek(0)
            reader = csv.DictReader(bounded_lines(file), delimiter=max(DELIMITERS, key=first.count), strict=True)
            rows = []
            for row in reader:
                if None in row:
                    raise ValidationError(f"{path}: line {reader.line_num} has more fields than there are headings.")
                if any("\0" in value for value in row.values()):
                    raise ValidationError(f"{path}: line {reader.line_num} contains a NUL character.")
                rows.append((reader.line_num, {name: value for name, value in row.items() if value}))
            if not rows:
                raise ValidationError(f"{path} has no line below its headings.")
            return list(reader.fieldnames or ()), rows
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValidationError(f"{path} is not in UTF-8: save it as CSV UTF-8.") from None
    except LineTooLongError as error:
        raise ValidationError(f"{path} is not CSV: {error}.") from None
    except csv.Error as error:
        # The parser names place and expectation, not the text that is there.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None
