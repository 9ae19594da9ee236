"""What the commands share: lazy loading, options, completion, tables, JSON, and how a failure becomes an exit code.

Exit 0: done. 1: the work failed. 2: bad usage or configuration. An error is one text on standard error, without a
traceback; an error that no type names is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import reduce, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from capacity_assets.base.errors import (
    DATABASE_FAILURES,
    CapacityError,
    NotFoundError,
    ValidationError,
    reason_of,
    sentence_of,
)
from capacity_assets.base.files import PRIVATE_UMASK, UMASK, key_and_value
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import ConfigurationError, Settings, load_settings
from capacity_assets.base.units import printable

DONE = 0
FAILED = 1
BAD_USAGE = 2


class CommandFailedError(CapacityError):
    """A command could not do its work; the text says why, what was kept and what to do."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print known failures as text and exit with their code."""
    # So that what a command holds (the embedded server, a lock) is given back when it is asked to stop.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except (ConfigurationError, ValidationError, NotFoundError) as error:
        _leave(str(error), BAD_USAGE)
    except CapacityError as error:
        _leave(str(error), FAILED)
    except DATABASE_FAILURES as error:
        _leave(f"The database refused the work: {reason_of(error)}. What was open was rolled back.", FAILED)
    except (OSError, MemoryError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        _leave(f"{sentence} Completed work was kept. Run the same command again afterwards.", FAILED)
    except KeyboardInterrupt:
        _leave("Interrupted. Finished transactions were kept; run the same command again to continue.", FAILED)


def _leave(message: str, code: int) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"capacity: {printable(line)}\n")
    sys.exit(code)


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


Parameters = ParamSpec("Parameters")


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is used."""

    def __init__(self, *args: Any, locations: Mapping[str, str], **options: Any) -> None:
        """Take `locations`: where each command is, as `module:attribute` of this package, in the order of the help."""
        super().__init__(*args, **options)
        self._locations = locations

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the names of all commands."""
        return list(self._locations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- as above
        """Return the command of a name, None where there is none."""
        location = self._locations.get(cmd_name)
        if location is None:
            return None
        module, _, attribute = location.partition(":")
        found: click.Command = getattr(import_module(f"{__package__}.{module}"), attribute)
        return found


# So far from the ends of the calendar that windows before and after exist.
FIRST_YEAR, LAST_YEAR = 1900, 2999
MOST_GB = 10**12


class Day(click.ParamType[date]):
    """A calendar day on the command line."""

    name = "YYYY-MM-DD"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Turn text into a day; raises click.BadParameter where it is none."""
        try:
            day = date.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a day of the calendar; write YYYY-MM-DD", param, ctx)
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            self.fail(f"{day} lies outside the years {FIRST_YEAR} to {LAST_YEAR}", param, ctx)
        return day


class Gigabytes(click.ParamType[Decimal]):
    """A number of GiB that may be zero."""

    name = "GIB"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Turn text into a number; raises click.BadParameter where it is none, or below zero."""
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            number = Decimal("nan")
        if not number.is_finite() or not 0 <= number <= MOST_GB:
            self.fail(f"{value!r} is not a number of GiB from 0 to {MOST_GB:,}", param, ctx)
        return number


DAY, GIGABYTES = Day(), Gigabytes()


def completing(values: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Offer values to a shell that completes a word."""
    known = tuple(values)
    return lambda _context, _parameter, begun: [value for value in known if value.startswith(begun)]


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for scripts.")
password_option = click.option(
    "--password-from",
    metavar="WHERE",
    help="Where the password of the address is: env:NAME, file:/PATH or secret:NAME.",
)


def options(
    *every: Callable[[Callable[Parameters, None]], Callable[Parameters, None]],
) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Return several options as one decorator, for commands that share them."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(every), function)


window_options = options(
    click.option(
        "--period",
        default="monthly",
        show_default=True,
        help=f"One of {', '.join(PERIODS)}.",
        shell_complete=completing(PERIODS),
    ),
    click.option("--window", "day", type=DAY, help="Any day of the window. Default: the last complete one."),
)


def _once(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Take one value; a second one would be dropped without a word."""
    if len(values) > 1:
        raise click.BadParameter("it can be given once.", param=parameter)
    return values[0] if values else None


def once_option(name: str, *, metavar: str, description: str) -> Callable[[Any], Any]:
    """Return an option that is refused when it is given twice."""
    return click.option(name, metavar=metavar, multiple=True, callback=_once, help=description)


filter_options = options(
    click.option("--engine", help="Only of servers of this engine."),
    once_option("--label", metavar="KEY=VALUE", description="Only what has this label, such as team=payments."),
)


def number_listed(name: str, default: int) -> Callable[[Any], Any]:
    """Return the option of how many rows a command lists, --limit or --show; `name` is its parameter."""
    most = click.IntRange(1, 10_000)
    return click.option(
        "--limit", "--show", name, default=default, show_default=True, type=most, help="How many to list."
    )


def label_filter(label: str | None) -> tuple[str | None, str | None]:
    """Read the label of a filter, None for both without one; raises ValidationError where it is no label."""
    return (None, None) if label is None else key_and_value(label)


def command(function: Callable[Concatenate[Settings, Parameters], int | None]) -> Callable[Parameters, None]:
    """Run a command with the settings, so that its failures are readable and what it returns becomes the exit code."""

    @wraps(function)
    def configured(*args: Parameters.args, **given: Parameters.kwargs) -> int | None:
        return function(load_settings(), *args, **given)

    return without_settings(configured)


def json_command(function: Callable[Concatenate[Settings, Parameters], int | None]) -> Callable[Parameters, None]:
    """Run a command as `command`, with the option --json."""
    return json_option(command(function))


def without_settings(function: Callable[Parameters, int | None]) -> Callable[Parameters, None]:
    """Run a command that reads the settings itself; else as `command`."""

    @wraps(function)
    def run(*args: Parameters.args, **given: Parameters.kwargs) -> None:
        with readable_errors():
            code = function(*args, **given)
        click.get_current_context().exit(code or 0)

    return run
