"""What the commands share: options, completion, tables, JSON, progress bars, and how a failure becomes an exit code.

Exit 0: done. 1: the work failed. 2: bad usage or configuration. An error is one text on standard error, without a
traceback; an error that no type names is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import partial, reduce, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, TypeAlias

import click
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from capacity_assets.base.declarations import mb_of_gb
from capacity_assets.base.errors import (
    DATABASE_FAILURES,
    CapacityError,
    NotFoundError,
    ValidationError,
    reason_of,
    sentence_of,
)
from capacity_assets.base.files import atomic_write
from capacity_assets.base.periods import FIRST_YEAR, LAST_YEAR, PERIODS
from capacity_assets.base.process import PRIVATE_UMASK
from capacity_assets.base.settings import ConfigurationError, Settings, load_settings
from capacity_assets.base.units import printable

DONE = 0
FAILED = 1
BAD_USAGE = 2


class CommandFailedError(CapacityError):
    """A command failed; the text says why and what to do, and what was kept if something had been done."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print known failures as text and exit with their code."""
    # A KeyboardInterrupt lets a command release what it holds, such as the embedded server or a lock.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except (ConfigurationError, ValidationError, NotFoundError) as error:
        _exit_with(str(error), BAD_USAGE)
    except CapacityError as error:
        _exit_with(str(error), FAILED)
    except DATABASE_FAILURES as error:
        _exit_with(f"The database refused the work: {reason_of(error)}. The open transaction was rolled back.", FAILED)
    except (OSError, MemoryError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        _exit_with(f"{sentence} Completed work was kept. Run the same command again afterwards.", FAILED)
    except KeyboardInterrupt:
        _exit_with("Interrupted. Finished transactions were kept; run the same command again to continue.", FAILED)


def _exit_with(message: str, code: int) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"capacity: {printable(line)}\n")
    sys.exit(code)


WIDEST = 1000
STANDARD_OUTPUT = "-"
NOTHING_CHANGED = "Dry run: nothing was changed."


class Table(NamedTuple):
    """A table under its title. Numbers stand below a heading that begins with >, text that folds below one with ~."""

    title: str
    headings: Sequence[str]
    rows: Iterable[Sequence[object]]

    @classmethod
    def of_first(cls, title: str, headings: Sequence[str], rows: Sequence[Sequence[object]], most: int) -> Table:
        """Return a table of the first rows; its title counts the others."""
        more = len(rows) - most
        return cls(f"{title}, {more:,} more" if more > 0 else title, headings, rows[:most])


Line: TypeAlias = str | Table


@dataclass(frozen=True)
class Report:
    """The result of a command: `document` for scripts, `lines` for people; with a `failure` the command fails."""

    document: object
    lines: Iterable[Line] = ()
    code: int = DONE
    failure: str = ""


def say(*lines: Line) -> None:
    """Print sentences and tables for people, nothing with --json; names are neither markup nor control sequences."""
    for line in () if wants_json() else lines:
        if isinstance(line, Table):
            _print_table(line)
        else:
            # The terminal breaks the lines.
            text = "\n".join(map(printable, line.split("\n")))
            Console(highlight=False).print(text, markup=False, soft_wrap=True)


def _print_table(listed: Table) -> None:
    table = RichTable(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in listed.headings:
        is_number, folds = heading.startswith(">"), heading.startswith("~")
        side: Literal["right", "left"] = "right" if is_number else "left"
        table.add_column(heading.lstrip(">~"), justify=side, no_wrap=not folds, overflow="fold")
    for row in listed.rows:
        table.add_row(*map(_cell, row))
    screen = Console(highlight=False)
    if not screen.is_terminal or not any(heading.startswith("~") for heading in listed.headings):
        # A table wider than the screen is readable; one cut in the middle of a word is not. A pipe takes whole lines.
        screen.width = max(screen.width, Console(width=WIDEST).measure(table).maximum)
    screen.print(listed.title, style="bold", markup=False, soft_wrap=True)
    screen.print(table)


def _cell(cell: object) -> Text:
    if isinstance(cell, Text):
        return cell  # coloured by the caller
    return Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell)))


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a bar on standard error, on a terminal only; yields its update: `advance`, `completed` and `total`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, disable=wants_json() or not sys.stderr.isatty()) as bar:
        yield partial(bar.update, bar.add_task(description, total=total))


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Raise CommandFailedError with one sentence instead of an OSError if a file cannot be written.

    New files get the permissions of the caller's umask, because the user named them.
    """
    context = click.get_current_context(silent=True)
    private = os.umask(context.obj if context and context.obj is not None else PRIVATE_UMASK)
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has closed the pipe, as `head` does
    except OSError as error:
        raise CommandFailedError(
            f"{target} cannot be written: {error.strerror}. A file that existed before is unchanged."
        ) from error
    finally:
        os.umask(private)


def wants_json() -> bool:
    """Whether the command was called with --json."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("json"))


def print_json(value: object) -> None:
    """Print `value` as one JSON document on standard output, for scripts."""
    click.echo(as_json_text(value))


def as_json_text(value: object) -> str:
    """Return `value` as one JSON document; decimals are text without an exponent, so that none is rounded."""
    return json.dumps(
        value, indent=2, ensure_ascii=False, default=lambda one: f"{one:f}" if isinstance(one, Decimal) else str(one)
    )


def format_of(output: str, formats: Collection[str]) -> str | None:
    """Return the format of an output file by its ending; None: the screen. Raises ValidationError for another one."""
    if output == STANDARD_OUTPUT:
        return None
    extension = Path(output).suffix.lower().removeprefix(".")
    if extension not in formats:
        *others, last = (f".{name}" for name in formats)
        raise ValidationError(f"{output!r} must end in {', '.join(others)} or {last}.")
    return extension


def write_formatted(output: str, written: str) -> None:
    """Write a file in place of an earlier one, whole or not at all; raises CommandFailedError."""
    with writing(output), atomic_write(Path(output)) as new_file:
        new_file.write_text(written, encoding="utf-8")


class Day(click.ParamType[date]):
    """A calendar day on the command line."""

    name = "YYYY-MM-DD"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Convert text to a day; raises click.BadParameter."""
        try:
            day = date.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a day of the calendar; write YYYY-MM-DD", param, ctx)
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            self.fail(f"{day} lies outside the years {FIRST_YEAR} to {LAST_YEAR}", param, ctx)
        return day


class Gigabytes(click.ParamType[Decimal]):
    """A number of GiB, zero included."""

    name = "GIB"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Convert text to a number; raises click.BadParameter."""
        try:
            mb_of_gb(value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)
        return Decimal(str(value).strip())


DAY, GIGABYTES = Day(), Gigabytes()


def completing(values: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return the completion of an option that takes one of the values."""
    return lambda _context, _parameter, start: [value for value in values if value.startswith(start)]


dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")


def _note_json(context: click.Context, _parameter: click.Parameter, as_json: bool) -> None:
    context.meta["json"] = as_json


# No command takes it: `wants_json` says whether it was given.
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_note_json, help="Print one JSON document, for scripts."
)
password_option = click.option(
    "--password-from", metavar="WHERE", help="Source of the password: env:NAME, file:/PATH or secret:NAME."
)


def options(*every: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return several options as one decorator."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(every), function)


def period_option(default: str | None = None) -> Callable[[Any], Any]:
    """Return the option --period of a command that shows one period."""
    names = f"One of {', '.join(PERIODS)}."
    return click.option("--period", default=default, show_default=True, help=names, shell_complete=completing(PERIODS))


window_options = options(
    period_option("monthly"),
    click.option("--window", "day", type=DAY, help="Any day of the window. Default: the last complete one."),
)


def _once(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Return the only value; click would silently drop all but the last."""
    if len(values) > 1:
        raise click.BadParameter("it can be given only once.", param=parameter)
    return values[0] if values else None


def label_option(description: str) -> Callable[[Any], Any]:
    """Return the option --label, which can be given only once."""
    return click.option("--label", metavar="KEY=VALUE", multiple=True, callback=_once, help=description)


filter_options = options(
    click.option("--engine", help="Only servers of this engine."),
    label_option("Only databases with this label, such as team=payments."),
)


def number_listed(name: str, default: int) -> Callable[[Any], Any]:
    """Return the option for the number of listed rows, --limit or --show; `name` is its parameter."""
    most = click.IntRange(1, 10_000)
    return click.option(
        "--limit", "--show", name, default=default, show_default=True, type=most, help="Number of rows."
    )


def command(function: Callable[Concatenate[Settings, ...], Report | int | None]) -> Callable[..., None]:
    """Pass the settings to a command, print its report or its failure, and exit with its code."""
    run: Callable[..., Report | int | None] = wraps(function)(lambda **values: function(load_settings(), **values))
    return without_settings(run)


def json_command(function: Callable[Concatenate[Settings, ...], Report | int | None]) -> Callable[..., None]:
    """Do what `command` does, and add the option --json."""
    return json_option(command(function))


def without_settings(function: Callable[..., Report | int | None]) -> Callable[..., None]:
    """Do what `command` does for a command that reads the settings itself."""

    @wraps(function)
    def run(**values: object) -> None:
        with readable_errors():
            result = function(**values)
            if isinstance(result, Report):
                print_report(result)
                if result.failure:
                    raise CommandFailedError(result.failure)
                result = result.code
        click.get_current_context().exit(result or DONE)

    return run


def print_report(report: Report) -> None:
    """Print a report for people, or with --json for scripts."""
    if wants_json():
        print_json(report.document)
    else:
        say(*report.lines)
