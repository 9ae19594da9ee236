"""Lines of text files, none longer than a row can be: a file that is none of ours must not fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

LONGEST_LINE = 1 << 17
"""In characters; as long as the longest field that Python's csv module takes."""


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
