"""CSV files as people write them by hand or by a spreadsheet: one reader for declarations of servers and of limits.

Large files of samples are read in `importing.sources`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from capacity_assets.errors import ValidationError
from capacity_assets.foundation.declarations import Things, declaration, names_of, read_each
from capacity_assets.foundation.text_lines import LineTooLongError, bounded_lines, next_line, refuse_a_workbook
from capacity_assets.units import meant

DELIMITERS = ",;\t"
"""Spreadsheets of many countries separate by semicolons."""

T = TypeVar("T")


def things_of_file(path: Path, kind: type[T]) -> Things[T]:
    """Return the things of a type that a file declares, one per row; raises as `declarations`."""
    return declarations(path, *names_of(kind), lambda row: declaration(kind, row))


def declarations(
    path: Path, columns: Sequence[str], needed: Sequence[str], parse: Callable[[Mapping[str, str]], T]
) -> Things[T]:
    """Return what `parse` makes of each row of a file; it raises ValidationError where a row makes no sense.

    A misspelt heading would have its values ignored, and a limit of one database be that of the whole server.

    Raises:
        ValidationError: as `csv_rows`; a column is unknown or missing; or rows make no sense, all reported together.
    """
    headings, rows = csv_rows(path)
    named = f"The columns are {', '.join(columns)}. Nothing was changed."
    missing = [name for name in needed if name not in headings]
    if missing:
        raise ValidationError(f"{path} has no column {', '.join(missing)}. {named}")
    unknown = [name for name in headings if name not in columns]
    if unknown:
        raise ValidationError(f"{path} has an unknown column {unknown[0]!r}.{meant(unknown[0], columns)} {named}")
    return read_each(((f"line {line}", row) for line, row in rows), parse, "Nothing was changed.")


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
                raise ValidationError(f"{path} is empty, or begins with an empty line. Nothing was changed.")
            file.seek(0)
            reader = csv.DictReader(bounded_lines(file), delimiter=max(DELIMITERS, key=first.count), strict=True)
            rows = []
            for row in reader:
                if None in row:
                    raise ValidationError(f"{path}: line {reader.line_num} has more fields than there are headings.")
                rows.append((reader.line_num, {name: value for name, value in row.items() if value}))
            if not rows:
                raise ValidationError(f"{path} has no line below its headings. Nothing was changed.")
            return list(reader.fieldnames or ()), rows
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValidationError(f"{path} is not in UTF-8: save it as CSV UTF-8. Nothing was changed.") from None
    except LineTooLongError as error:
        raise ValidationError(f"{path} is not CSV: {error}. Nothing was changed.") from None
    except csv.Error as error:
        # The parser names place and expectation, not the text that is there.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None
