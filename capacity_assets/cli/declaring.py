"""What the commands that declare things share: the opened registry, --by, --dry-run, --json, files, lists, first days.

Such a command returns what it declared, which is printed here. The forecasts of its servers are then updated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import SECONDS_PER_COMMAND
from capacity_assets.base.declarations import LONGEST_DECLARER
from capacity_assets.base.errors import CapacityError
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of
from capacity_assets.cli import options
from capacity_assets.cli.options import (
    NOTHING_CHANGED,
    Report,
    Table,
    dry_run_option,
    json_command,
    print_json,
    say,
    wants_json,
)
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership.bills import MONTHLY, issue_bill, month_named
from capacity_assets.ownership.labels import Label
from capacity_assets.ownership.prices import Price
from capacity_assets.runtime import open_engine

if TYPE_CHECKING:
    from capacity_assets.forecast.issuing import ForecastUpdate

NAMES_SHOWN = 10
LINES_SHOWN = 10


@contextmanager
def opened_registry(settings: Settings, zone: ZoneInfo | None = None) -> Iterator[Engine]:
    """Open the registry if it exists; with `zone`, refuse a database that uses another time zone."""
    with open_engine(settings, existing=True) as engine:
        refuse_an_unfit_database(engine, zone)
        yield engine


@dataclass(frozen=True)
class Registry:
    """The opened database of a declaring command, and the command's general options."""

    settings: Settings
    engine: Engine
    dry_run: bool
    by: str | None
    """Who declares; None: not known."""

    def today(self) -> date:
        """Return today; raises ValidationError if the database uses another time zone."""
        refuse_an_unfit_database(self.engine, self.settings.zone)
        return Clock(self.settings.zone).today()

    def read_from(self, path: Path, number: int, noun: str) -> str:
        """Return how many things of a file were declared; in a dry run, how many were read."""
        return f"{counted(number, noun)} {'read' if self.dry_run else 'declared'} from {path}."


def issue_bills(registry: Registry, months: Iterable[date]) -> None:
    """Recompute the bills of months after a declaration, newest first, for some seconds; name those that are left.

    Raises CapacityError; its message says that the declaration is stored.
    """
    clock = Clock(registry.settings.zone)
    until = time.monotonic() + SECONDS_PER_COMMAND
    issued, left = [], []
    try:
        for month in sorted(set(months), reverse=True):
            if time.monotonic() > until:
                left.append(month)
                continue
            issue_bill(registry.engine, MONTHLY.window_of(month), clock, registry.settings.label_keys)
            issued.append(month)
    except CapacityError as error:
        raise type(error)(f"The declaration is stored, but not every bill was computed. {error}") from error
    if issued:
        say(f"Bills recomputed: {first_of(map(month_named, issued), NAMES_SHOWN)}.")
    if left:
        names = first_of((f"{month:%Y-%m}" for month in left), NAMES_SHOWN)
        say(f"Bills still to be recomputed: {names}. `capacity bill --month {left[0]:%Y-%m}` computes one.")


@dataclass(frozen=True)
class DeclarationReport(Report):
    """The result of a declaring command, with a mapping as its document."""

    document: Mapping[str, object]
    servers: Collection[str] = ()
    """Those whose forecasts it changes."""
    follow_up: Callable[[Registry], None] = lambda _registry: None
    """Runs after everything is stored."""


def _declarer(_context: click.Context, _parameter: click.Parameter, by: str | None) -> str | None:
    if by is not None and not 0 < len(by.strip()) <= LONGEST_DECLARER:
        raise click.BadParameter(f"a name has 1 to {LONGEST_DECLARER} characters.")
    return by and by.strip()


by_option = click.option(
    "--by", metavar="NAME", callback=_declarer, help="Who declares it. Default: CAPACITY_DECLARED_BY, else your login."
)


def declaring(function: Callable[..., DeclarationReport]) -> Callable[..., None]:
    """Run a command that stores declarations on the opened registry, with --by, --dry-run and --json."""
    return by_option(changing(function))


def changing(function: Callable[..., DeclarationReport]) -> Callable[..., None]:
    """Run a command that removes declarations, or changes what has no declarer; as `declaring` without --by."""

    @dry_run_option
    @json_command
    @wraps(function)
    def run(settings: Settings, /, *, dry_run: bool, by: str | None = None, **values: Any) -> int:
        with opened_registry(settings) as engine:
            registry = Registry(settings, engine, dry_run, by or settings.declarer)
            declared = function(registry, **values)
            say(*declared.lines, *([NOTHING_CHANGED] if dry_run else []))
            document: dict[str, object] = {"dry_run": dry_run, **declared.document}
            try:
                if not dry_run and declared.servers:
                    document["forecasts"] = None
                    document["forecasts"] = asdict(_update_forecasts(registry, declared.servers))
            finally:
                # Also where the forecasts fail: the declaration is stored.
                if wants_json():
                    print_json(document)
            if not dry_run:
                declared.follow_up(registry)
        return declared.code

    return run


def _update_forecasts(registry: Registry, servers: Collection[str]) -> ForecastUpdate:
    """Update the forecasts of servers, so that pages show a declaration, and say which; raises DatabaseError."""
    from capacity_assets.forecast.issuing import update_forecasts

    done = update_forecasts(registry.engine, servers, Clock(registry.settings.zone))
    if done.later:
        say(f"The forecasts of {first_of(sorted(servers), NAMES_SHOWN)} are not updated yet: {done.later}")
        return done
    if len(done.updated) == 1:
        say(f"Forecast of {done.updated[0]} updated.")
    elif done.updated:
        say(f"Forecasts of {counted(len(done.updated), 'server')} updated.")
    if done.not_measured:
        names = first_of(done.not_measured, NAMES_SHOWN)
        say(f"No forecast yet: {names}. A forecast needs an active server measured within the last month.")
    return done


Row = TypeVar("Row")


def listing(
    title: str, headings: Sequence[str], cells: Callable[[Row], Sequence[object]], nothing: str
) -> Callable[[Callable[..., Sequence[tuple[Row, object]]]], Callable[..., None]]:
    """Run a command that returns rows, each with its JSON, and print them; without rows print `nothing`."""

    def decorate(function: Callable[..., Sequence[tuple[Row, object]]]) -> Callable[..., None]:
        @json_command
        @wraps(function)
        def run(settings: Settings, /, **values: Any) -> Report:
            with opened_registry(settings) as engine:
                rows = function(engine, **values)
            table = Table(title, headings, [cells(row) for row, _ in rows])
            return Report([document for _, document in rows], [table if rows else nothing])

        return run

    return decorate


class StoredDeclaration(Protocol):
    """A declaration as it is stored."""

    @property
    def declared_at(self) -> datetime | None:
        """When it was declared; None: not known."""

    @property
    def declared_by(self) -> str | None:
        """Who declared it; None: not known."""


DECLARED = ("Declared", "By")
"""The headings of `declared_cells`."""


def declared_cells(stored: StoredDeclaration) -> list[object]:
    """Return when a thing was declared and by whom, for people."""
    return [f"{stored.declared_at:%Y-%m-%d}" if stored.declared_at else "", stored.declared_by or ""]


def declared_json(stored: StoredDeclaration) -> dict[str, object]:
    """Return the same for scripts."""
    moment = stored.declared_at and stored.declared_at.isoformat()
    return {"declared_at": moment, "declared_by": stored.declared_by}


file_argument = click.argument("file", type=click.Path(path_type=Path))


def first_lines(lines: Iterable[str], noun: str) -> list[str]:
    """Return the first lines, and one that counts the others, each of which is a `noun`."""
    every = list(lines)
    hidden = len(every) - LINES_SHOWN
    return [*every[:LINES_SHOWN], *([f"and {counted(hidden, noun)}."] if hidden > 0 else [])]


def first_day_options(from_help: str, always_help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the options --from and --always, which exclude each other; both give `first_day`, None for the default."""

    def note_always(context: click.Context, _parameter: click.Parameter, always: bool) -> None:
        context.meta["always"] = always

    def first_day(context: click.Context, _parameter: click.Parameter, day: date | None) -> date | None:
        if context.meta["always"] and day is not None:
            raise click.UsageError("Give either --from or --always.")
        return ALWAYS if context.meta["always"] else day

    return options.options(
        click.option("--from", "first_day", type=options.DAY, callback=first_day, help=from_help),
        # Eager: read before --from, in whatever order they are given.
        click.option(
            "--always", is_flag=True, is_eager=True, expose_value=False, callback=note_always, help=always_help
        ),
    )


def since(day: date | None) -> str:
    """Return the first day of a declaration in words."""
    return "always" if day in {ALWAYS, None} else f"from {day}"


def dated_json(declared: Label | Price) -> dict[str, object]:
    """Return a declaration for scripts; `valid_from` is None for one that always holds."""
    return {**asdict(declared), "valid_from": None if declared.valid_from == ALWAYS else declared.valid_from}
