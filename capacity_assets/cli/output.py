"""What the commands print with: tables, JSON, one console."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from capacity_assets.cli.errors import CommandFailedError
from capacity_assets.files import PRIVATE_UMASK, UMASK
from capacity_assets.units import printable

WIDEST = 1000
STANDARD_OUTPUT = "-"
NOTHING_CHANGED = "Dry run: nothing was changed."


def console() -> Console:
    """Return a console on standard output; colours and bars only on a terminal."""
    return Console(highlight=False)


def say(text: str) -> None:
    """Print a sentence; names in it are neither markup nor commands to the terminal, which breaks the lines."""
    console().print("\n".join(map(printable, text.split("\n"))), markup=False, soft_wrap=True)


def error_console() -> Console:
    """Return a console on standard error, for progress that must not mix with results."""
    return Console(stderr=True, highlight=False)


def left(*headings: str) -> tuple[tuple[str, str], ...]:
    """Return columns of a table whose cells begin at the left."""
    return tuple((heading, "left") for heading in headings)


def right(*headings: str) -> tuple[tuple[str, str], ...]:
    """Return columns of a table whose cells end at the right, as numbers do."""
    return tuple((heading, "right") for heading in headings)


def print_table(title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> None:
    """Print a table under its title; each column is a heading and left, right, or text, which folds on a terminal."""
    built = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, side in columns:
        whole = side != "text"
        built.add_column(heading, justify="right" if side == "right" else "left", no_wrap=whole, overflow="fold")
    for row in rows:
        built.add_row(*(_cell(cell) for cell in row))
    screen = console()
    if not screen.is_terminal or all(side != "text" for _, side in columns):
        # Wider than the screen is readable, cut in the middle of a word is not; who reads a pipe wants lines.
        screen.width = max(screen.width, Console(width=WIDEST).measure(built).maximum)
    screen.print(title, style="bold", markup=False, soft_wrap=True)
    screen.print(built)


def _cell(cell: object) -> Text:
    if isinstance(cell, Text):
        return cell  # in a colour, which says nothing that the words do not
    return Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell)))


@contextmanager
def writing(where: Path | str) -> Iterator[None]:
    """Raise CommandFailedError with one sentence instead of an OSError if a file cannot be written.

    New files get the permissions of the caller's umask, because the user named them.
    """
    context = click.get_current_context(silent=True)
    ours = os.umask(context.meta[UMASK] if context and UMASK in context.meta else PRIVATE_UMASK)
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as error:
        raise CommandFailedError(
            f"{where} cannot be written: {error.strerror}. A file that was there before is as it was."
        ) from error
    finally:
        os.umask(ours)


def print_json(value: object) -> None:
    """Print `value` as one JSON document on standard output, for scripts."""
    click.echo(as_json_text(value))


def as_json_text(value: object) -> str:
    """Return `value` as one JSON document; decimals are text without an exponent, so that none is rounded."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_as_text)


def _as_text(value: object) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
