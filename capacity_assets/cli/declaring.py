"""Shared code of the commands that declare things: the opened registry, --dry-run, --json, files, lists, first days.

Such a command returns a report. It is printed here, and the forecasts of its servers are issued again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of
from capacity_assets.cli.options import (
    DAY,
    NOTHING_CHANGED,
    dry_run_option,
    json_command,
    options,
    print_json,
    print_table,
    say,
)
from capacity_assets.collection.credentials import OWN, CredentialError, SecretFolders
from capacity_assets.collection.registry import Changes, Server
from capacity_assets.database.guards import refuse_an_unfit_database
from capacity_assets.database.tables import ALWAYS
from capacity_assets.forecast.issuing import issue_anew
from capacity_assets.ownership.labels import Label
from capacity_assets.ownership.prices import Price
from capacity_assets.runtime import open_engine, refuse_an_absent_embedded_server

NAMES_SHOWN = 10


@contextmanager
def opened_registry(settings: Settings, zone: ZoneInfo | None = None) -> Iterator[Engine]:
    """Open the registry if it exists; with `zone`, refuse a database that uses another time zone."""
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine:
        refuse_an_unfit_database(engine, zone, kept="Nothing was changed.")
        yield engine


def issue_forecasts_anew(engine: Engine, settings: Settings, servers: Collection[str], *, quiet: bool = False) -> None:
    """Reissue the newest forecasts of servers after a declaration, and report what the pages show."""
    done = issue_anew(engine, servers, Clock(settings.zone)) if servers else None
    named = first_of(sorted(servers), NAMES_SHOWN)
    if done is None or quiet:
        return
    if done:
        say(f"The newest forecasts of {named} were reissued.")
    else:
        say(f"The pages show the change for {named} after the next run of the asset `runway`.")


def warnings_of_passwords(settings: Settings, servers: Sequence[Server]) -> Iterator[str]:
    """Warn of passwords that this configuration does not look up; another machine may be configured differently."""
    folders = SecretFolders.of(settings)
    for server in servers:
        if server.password_from and server.password_from != OWN:
            try:
                folders.refuse_what_is_not_set_aside(server.password_from)
            except CredentialError as error:
                yield f"Warning: {server.name} cannot be measured with this configuration. {error}"


def changes_text(changes: Changes) -> Iterator[str]:
    """Say which servers were registered, changed, or taken out of service, or would be."""
    for what, names in asdict(changes).items():
        if names:
            yield f"{what.replace('_', ' ')}: {len(names):,} ({first_of(names, NAMES_SHOWN)})"
    if changes.out_of_service:
        yield "`capacity instances enable` puts them back into service."


T = TypeVar("T")
LINES_SHOWN = 10


@dataclass(frozen=True)
class Registry:
    """The opened database of one declaring command."""

    settings: Settings
    engine: Engine
    dry_run: bool
    as_json: bool

    def today(self) -> date:
        """Return today; raises ValidationError if the database uses another time zone."""
        refuse_an_unfit_database(self.engine, self.settings.zone, kept="Nothing was changed.")
        return Clock(self.settings.zone).today()

    def read_from(self, path: Path, number: int, noun: str) -> str:
        """Say how many things of a file were declared; in a dry run, how many were read."""
        return f"{counted(number, noun)} {'read' if self.dry_run else 'declared'} from {path}."


@dataclass(frozen=True)
class Report:
    """The result of a command: `document` for scripts, `lines` for people, `servers` whose forecasts it changes."""

    document: Mapping[str, object]
    lines: Sequence[str]
    servers: Collection[str] = ()
    follow_up: Callable[[Registry], None] | None = None
    """Computes what follows after everything is stored; reports it if the output is for people."""
    code: int = 0


def declaring(function: Callable[..., Report]) -> Callable[..., None]:
    """Run a declaring command on the opened registry, with --dry-run and --json."""

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
    """Run a command that lists declared things, each with its JSON; without any it prints `nothing`."""

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
