"""What the commands share: lazy loading, options, days, completion, and how a failure becomes an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import reduce, wraps
from importlib import import_module
from typing import Any, Concatenate, ParamSpec

import click

from capacity_assets.cli.errors import readable_errors
from capacity_assets.foundation.pairs import key_and_value
from capacity_assets.periods import PERIODS
from capacity_assets.settings import Settings, load_settings

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
