"""Lines of text files, none longer than a row can be: a file that is none of ours must not fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from capacity_assets.errors import ValidationError

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
            f"{path} is the workbook of a spreadsheet program, or another archive. Save the sheet as CSV UTF-8. "
            "Nothing was changed."
        )


class LineTooLongError(ValueError):
    """A line is longer than a row can be; the text does not repeat it."""

    def __init__(self) -> None:
        """Say how long a line may be."""
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
