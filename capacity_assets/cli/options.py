"""What the commands share: days, completion, `--json`, and how a failure becomes an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date
from functools import wraps
from typing import ParamSpec

import click

from capacity_assets.cli.errors import readable_errors

Parameters = ParamSpec("Parameters")


# So far from the ends of the calendar that windows before and after exist.
FIRST_YEAR, LAST_YEAR = 1900, 2999


class Day(click.ParamType[date]):
    """A calendar day on the command line."""

    name = "YYYY-MM-DD"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """Turn text into a day.

        Raises:
            click.BadParameter: it is none.
        """
        try:
            day = date.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a day of the calendar; write YYYY-MM-DD", param, ctx)
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            self.fail(f"{day} lies outside the years {FIRST_YEAR} to {LAST_YEAR}", param, ctx)
        return day


DAY = Day()


def completing(values: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Offer values to a shell that completes a word."""
    known = tuple(values)
    return lambda _context, _parameter, begun: [value for value in known if value.startswith(begun)]


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for scripts.")


def command(function: Callable[Parameters, int | None]) -> Callable[Parameters, None]:
    """Run a command so that its failures are readable and its returned code becomes the exit code."""

    @wraps(function)
    def run(*args: Parameters.args, **options: Parameters.kwargs) -> None:
        with readable_errors():
            code = function(*args, **options)
        click.get_current_context().exit(code or 0)

    return run
