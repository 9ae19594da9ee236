"""What the commands that declare things share: the opened registry, --dry-run, --json, files, lists and first days.

A command that declares returns a report. It is printed here, and forecasts that it touches are issued anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import Engine

from capacity_assets.cli.options import DAY, dry_run_option, json_command, options
from capacity_assets.cli.output import NOTHING_CHANGED, print_json, print_table, say
from capacity_assets.cli.server_registry import issue_forecasts_anew, opened_registry
from capacity_assets.clock import Clock
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.grouping.labels import Label
from capacity_assets.grouping.prices import Price
from capacity_assets.settings import Settings
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.units import counted

T = TypeVar("T")
LINES_SHOWN = 10


@dataclass(frozen=True)
class Registry:
    """The opened database of one command that declares."""

    settings: Settings
    engine: Engine
    dry_run: bool
    as_json: bool

    def today(self) -> date:
        """Return today; raises ValidationError where the database uses another time zone."""
        refuse_an_unfit_database(self.engine, self.settings.zone, kept="Nothing was changed.")
        return Clock(self.settings.zone).today()

    def read_from(self, path: Path, number: int, noun: str) -> str:
        """Say how many things of a file were declared, or in a dry run read."""
        return f"{counted(number, noun)} {'read' if self.dry_run else 'declared'} from {path}."


@dataclass(frozen=True)
class Report:
    """What a command did, or would do: for scripts, for people, and whose forecasts it touches."""

    document: Mapping[str, object]
    lines: Sequence[str]
    servers: Collection[str] = ()
    follow_up: Callable[[Registry], None] | None = None
    """What is computed after all is stored; it says what it does where the output is for people."""
    code: int = 0


def declaring(function: Callable[..., Report]) -> Callable[..., None]:
    """Run a command that declares on the opened registry, with --dry-run and --json."""

    @dry_run_option
    @json_command
    @wraps(function)
    def run(settings: Settings, /, *, dry_run: bool, as_json: bool, **given: Any) -> int:
        with opened_registry(settings) as engine:
            registry = Registry(settings, engine, dry_run, as_json)
            report = function(registry, **given)
            if as_json:
                print_json({"dry_run": dry_run, **report.document})
            else:
                for line in [*report.lines, *([NOTHING_CHANGED] if dry_run else [])]:
                    say(line)
            if not dry_run:
                issue_forecasts_anew(engine, settings, report.servers, quiet=as_json)
                if report.follow_up:
                    report.follow_up(registry)
        return report.code

    return run


def listing(
    title: str, columns: Sequence[tuple[str, str]], cells: Callable[[T], Sequence[object]], nothing: str
) -> Callable[[Callable[..., Sequence[tuple[T, object]]]], Callable[..., None]]:
    """Run a command that lists declared things, each with what --json prints of it; `nothing` is said without any."""

    def decorate(function: Callable[..., Sequence[tuple[T, object]]]) -> Callable[..., None]:
        @json_command
        @wraps(function)
        def run(settings: Settings, /, *, as_json: bool, **given: Any) -> None:
            with opened_registry(settings) as engine:
                found = function(engine, **given)
            if as_json:
                print_json([document for _, document in found])
            elif found:
                print_table(title, columns, [cells(thing) for thing, _ in found])
            else:
                say(nothing)

        return run

    return decorate


file_argument = click.argument("file", type=click.Path(path_type=Path))


def first_lines(lines: Iterable[str], more: str) -> list[str]:
    """Return the first lines, and one that counts the rest as `more`."""
    every = list(lines)
    hidden = len(every) - LINES_SHOWN
    return [*every[:LINES_SHOWN], *([f"and {counted(hidden, more)}."] if hidden > 0 else [])]


def dated_options(since_when: str, always: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the options --from and --always, which exclude each other."""
    return options(
        click.option("--from", "first_day", type=DAY, help=since_when),
        click.option("--always", is_flag=True, help=always),
    )


def first_day_of(first_day: date | None, *, always: bool) -> date | None:
    """Return the first day given by the options of a declaration; None: the default. Raises ValidationError."""
    if always and first_day is not None:
        raise ValidationError("Give either --from or --always. Nothing was changed.")
    return ALWAYS if always else first_day


def since(day: date | None) -> str:
    """Say since when something holds."""
    return "always" if day in {ALWAYS, None} else f"from {day}"


def dated_json(declared: Label | Price) -> dict[str, object]:
    """Return a declaration for scripts; without a first day it always holds."""
    return {**asdict(declared), "valid_from": None if declared.valid_from == ALWAYS else declared.valid_from}
