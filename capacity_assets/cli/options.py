"""Shared by the commands: options, tables, JSON, progress bars, the opened database, and exit codes.

Exit 0: done. 1: the work failed. 2: bad usage or configuration. An error is one text on standard error, without a
traceback; an error that no type names is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from decimal import Decimal
from functools import partial, reduce, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base import errors
from capacity_assets.base.declarations import atomic_write, day_of, key_and_value, mb_of_gb
from capacity_assets.base.errors import CapacityError, ValidationError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.process import PRIVATE_UMASK
from capacity_assets.base.settings import ConfigurationError, Settings, load_settings
from capacity_assets.base.units import printable
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.ownership.bills import month_of
from capacity_assets.runtime import open_engine, open_task_runner

DONE = 0
FAILED = 1
BAD_USAGE = 2


class CommandFailedError(CapacityError):
    """A command failed; the text says why, what to do, and what was kept of finished work."""


def is_ignored(number: signal.Signals) -> bool:
    """Whether a signal has to stay without effect, as SIGHUP for a command that `nohup` runs."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print known failures as text and exit with their code."""
    # A KeyboardInterrupt lets a command release its resources, such as the embedded server or a lock.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if not is_ignored(number):
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    except (ConfigurationError, ValidationError, errors.NotFoundError) as error:
        _exit_with(str(error), BAD_USAGE)
    except CapacityError as error:
        _exit_with(str(error), FAILED)
    except errors.DATABASE_FAILURES as error:
        failure = errors.database_error(
            error, doing="running this command", kept="The open transaction was rolled back."
        )
        _exit_with(str(failure), FAILED)
    except (OSError, MemoryError) as error:
        sentence = errors.sentence_of(error)
        if sentence is None:
            raise
        _exit_with(f"{sentence} Completed work was kept. Run the same command again afterwards.", FAILED)
    except KeyboardInterrupt:
        _exit_with("Interrupted. Finished transactions were kept; run the same command again to continue.", FAILED)


def _exit_with(message: str, code: int) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"capacity: {printable(line)}\n")
    sys.exit(code)


WIDEST = 1_000_000
STANDARD_OUTPUT = "-"
NOTHING_CHANGED = "Dry run: nothing was changed."


class Table(NamedTuple):
    """A table under its title. A heading begins with > over numbers, with ~ over text that may be folded."""

    title: str
    headings: Sequence[str]
    rows: Iterable[Sequence[object]]

    @classmethod
    def of_first(cls, title: str, headings: Sequence[str], rows: Sequence[Sequence[object]], most: int) -> Table:
        """Return a table of the first rows; its title gives the number of further rows."""
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

    def show(self) -> None:
        """Print it for people, or with --json for scripts."""
        if wants_json():
            print_json(self.document)
        else:
            say(*self.lines)


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
    headings, rows = listed.headings, [list(map(_cell, row)) for row in listed.rows]
    screen = Console(highlight=False)
    table = _table(headings, rows)
    # A pipe takes whole lines. On a screen, headings and long texts are broken between words before lines are.
    if screen.is_terminal and _width(table) > screen.width:
        table = _table(headings, rows, is_narrow=True)
        screen.width = max(screen.width, Console(width=WIDEST).measure(table).minimum)
    else:
        screen.width = max(screen.width, _width(table))
    screen.print(listed.title, style="bold", markup=False, soft_wrap=True)
    screen.print(table)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Text]], *, is_narrow: bool = False) -> RichTable:
    """Return a table; a narrow one breaks headings between words, and the texts of columns that may be folded."""
    table = RichTable(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        name, folds = heading.lstrip(">~"), heading.startswith("~")
        words = re.findall(r"\(.*?\)|\S+", name)
        widest = max([*(row[number].cell_len for row in rows), *map(len, words)])
        width = None if folds or not is_narrow else widest
        side: Literal["right", "left"] = "right" if heading.startswith(">") else "left"
        name = name.replace(" (", "\n(") if is_narrow else name
        table.add_column(name, justify=side, no_wrap=not is_narrow, overflow="fold", width=width)
    for row in rows:
        table.add_row(*row)
    return table


def _width(table: RichTable) -> int:
    return Console(width=WIDEST).measure(table).maximum


def _cell(cell: object) -> Text:
    if isinstance(cell, Text):
        return cell  # coloured by the caller
    return Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell)))


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a bar on standard error if that is a terminal; yields its update: `advance`, `completed` and `total`."""
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
            f"{target} cannot be written: {error.strerror}. An existing file is unchanged."
        ) from error
    finally:
        os.umask(private)


def write_text(output: str, text: str) -> None:
    """Write a whole file, through a link if it is one, or keep the earlier one; raises CommandFailedError."""
    with writing(output), atomic_write(Path(output).resolve()) as new_file:
        new_file.write_text(text, encoding="utf-8")


def wants_json() -> bool:
    """Whether the command was called with --json."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("json"))


def print_json(value: object) -> None:
    """Print `value` as one JSON document on standard output, for scripts."""
    click.echo(as_json_text(value))


def as_json_text(value: object) -> str:
    """Return `value` as one JSON document; dataclasses are objects, and decimals text, so that none is rounded."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_as_json)


def _as_json(value: object) -> object:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


@contextmanager
def open_database(settings: Settings, zone: ZoneInfo | None = None) -> Iterator[Engine]:
    """Open the capacity database; refuse one without this version's schema or, with `zone`, with days of another zone.

    Raises CapacityError.
    """
    with open_engine(settings, existing=True) as engine:
        refuse_an_unfit_database(engine, zone)
        yield engine


@contextmanager
def open_window(
    settings: Settings, period: str, day: date | None
) -> Iterator[tuple[AggregationTaskRunner, Period, Window]]:
    """Open a task runner; yields it, a period, and its window that contains a day, or its last complete one."""
    with open_task_runner(settings, existing=True) as runner:
        chosen = runner.service.period(period)
        yield runner, chosen, runner.service.partitions.window_holding(chosen, day)


class ValueType(click.ParamType[Any]):
    """A value that a function reads from the text of an argument, or refuses with a ValidationError."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name, self._read = name, read

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Convert text to the value; raises click.BadParameter."""
        try:
            return self._read(str(value))
        except ValidationError as error:
            self.fail(str(error), param, ctx)


def _gigabytes(written: str) -> Decimal:
    mb_of_gb(written)
    return Decimal(written.strip())


DAY = ValueType("YYYY-MM-DD", day_of)
MONTH = ValueType("YYYY-MM", month_of)
GIGABYTES = ValueType("GIB", _gigabytes)


def completion_of(values: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return the completion of an option that takes one of the values."""
    return lambda _context, _parameter, start: [value for value in values if value.startswith(start)]


def combined_options(*every: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return several options as one decorator."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(every), function)


def _note_json(context: click.Context, _parameter: click.Parameter, as_json: bool) -> None:
    context.meta["json"] = as_json


# Commands have no argument for it: `wants_json` says whether it was given.
json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_note_json, help="Print one JSON document, for scripts."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
password_option = click.option(
    "--password-from", metavar="WHERE", help="Source of the password: env:NAME, file:/PATH or secret:NAME."
)


class OneOf(click.types.StringParamType):
    """A text whose possible values are listed if it is missing; the command itself refuses other values."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Return the choices, as click does for its own."""
        return f"Choose from: {', '.join(self._names)}."


def period_option(default: str | None = None) -> Callable[[Any], Any]:
    """Return the option --period of a command that shows one period."""
    names, complete = f"One of {', '.join(PERIODS)}.", completion_of(PERIODS)
    return click.option("--period", default=default, show_default=True, help=names, shell_complete=complete)


window_options = combined_options(
    period_option("monthly"),
    click.option("--window", "day", type=DAY, help="Any day of the window. Default: the last complete one."),
)


def _once(_context: click.Context, parameter: click.Parameter, values: tuple[object, ...]) -> object:
    """Return the only value; click would silently drop all but the last."""
    if len(values) > 1:
        raise click.BadParameter("it can be given only once.", param=parameter)
    return values[0] if values else None


def label_option(description: str) -> Callable[[Any], Any]:
    """Return the option --label, which can be given only once: a key and a value."""
    label = ValueType("KEY=VALUE", key_and_value)
    return click.option("--label", type=label, multiple=True, callback=_once, help=description)


filter_options = combined_options(
    click.option("--engine", help="Only servers of this engine."),
    label_option("Only databases with this label, such as team=payments."),
)


FORMER_GROUPING = "--by"


class _GroupingOption(click.Option):
    """The option --group-by; --help does not show its former name."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of the help."""
        record = super().get_help_record(ctx)
        return record and (record[0].replace(f", {FORMER_GROUPING}", ""), record[1])


def grouping_option(description: str) -> Callable[[Any], Any]:
    """Return the option --group-by of a command that shows groups.

    Its former name is accepted as well. Commands that declare have no former name, because there --by names a person.
    """
    return click.option("--group-by", FORMER_GROUPING, "by", cls=_GroupingOption, help=description)


def rows_option(name: str, default: int) -> Callable[[Any], Any]:
    """Return the option for the number of listed rows, --limit or --show; `name` is its parameter."""
    most = click.IntRange(1, 10_000)
    return click.option(
        "--limit", "--show", name, default=default, show_default=True, type=most, help="Number of rows."
    )


Result: TypeAlias = Report | int | None


def command(function: Callable[Concatenate[Settings, ...], Result]) -> Callable[..., None]:
    """Pass the settings to a command, show its report or its failure, and exit with its code."""
    run: Callable[..., Result] = wraps(function)(lambda **values: function(load_settings(), **values))
    return command_without_settings(run)


def json_command(function: Callable[Concatenate[Settings, ...], Result]) -> Callable[..., None]:
    """Run `command`, with the additional option --json."""
    return json_option(command(function))


def command_without_settings(function: Callable[..., Result]) -> Callable[..., None]:
    """Run `command`, which reads the settings itself."""

    @wraps(function)
    def run(**values: object) -> None:
        with readable_errors():
            result = function(**values)
            if isinstance(result, Report):
                result.show()
                if result.failure:
                    raise CommandFailedError(result.failure)
                result = result.code
        click.get_current_context().exit(result or DONE)

    return run
