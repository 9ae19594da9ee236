"""Shared by commands that declare things: the open database, --by, --dry-run, --json, files, lists, first days.

Such a command returns its declarations, which are printed here. The forecasts of its servers are then updated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from sqlalchemy import Engine

from capacity_assets.base.declarations import LONGEST_DECLARER
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of
from capacity_assets.cli import options
from capacity_assets.cli.options import NOTHING_CHANGED, Report, Table, json_command, open_database, say
from capacity_assets.database.declared_rows import Stored
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.tables import ALWAYS

if TYPE_CHECKING:
    from capacity_assets.forecast.issuing import ForecastUpdate

NAMES_SHOWN = 10
LINES_SHOWN = 10


@dataclass(frozen=True)
class DeclarationSession:
    """The open database of a declaring command, and the general options of the command."""

    settings: Settings
    engine: Engine
    dry_run: bool
    by: str | None
    """The author; None: not known."""

    def today(self) -> date:
        """Return today; raises ValidationError if the database uses another time zone."""
        refuse_an_unfit_database(self.engine, self.settings.zone)
        return Clock(self.settings.zone).today()

    def read_from(self, path: Path, number: int, noun: str) -> str:
        """Return how many things of a file were declared; in a dry run, how many were read."""
        return f"{counted(number, noun)} {'read' if self.dry_run else 'declared'} from {path}."


@dataclass(frozen=True)
class DeclarationReport(Report):
    """The result of a declaring command, with a mapping as its document."""

    document: Mapping[str, object]
    servers: Collection[str] = ()
    """Servers whose forecasts it changes."""
    follow_up: Callable[[DeclarationSession], None] = lambda _registry: None
    """Runs after everything is stored."""


def _declarer(_context: click.Context, _parameter: click.Parameter, by: str | None) -> str | None:
    if by is not None and not 0 < len(by.strip()) <= LONGEST_DECLARER:
        raise click.BadParameter(f"a name has 1 to {LONGEST_DECLARER} characters.")
    return by and by.strip()


by_option = click.option(
    "--by",
    metavar="NAME",
    callback=_declarer,
    help="Author of the declaration. Default: CAPACITY_DECLARED_BY, otherwise your login.",
)


def command(function: Callable[..., DeclarationReport]) -> Callable[..., None]:
    """Run a command that stores declarations in the open session, with --by, --dry-run and --json."""
    return by_option(change_command(function))


def change_command(function: Callable[..., DeclarationReport]) -> Callable[..., None]:
    """Run `command` without --by: for removals, and for changes without an author."""

    @options.dry_run_option
    @json_command
    @wraps(function)
    def run(settings: Settings, /, *, dry_run: bool, by: str | None = None, **values: Any) -> int:
        with open_database(settings) as engine:
            session = DeclarationSession(settings, engine, dry_run, by or settings.declarer)
            declared = function(session, **values)
            say(*declared.lines, *([NOTHING_CHANGED] if dry_run else []))
            document: dict[str, object] = {"dry_run": dry_run, **declared.document}
            try:
                if not dry_run and declared.servers:
                    document["forecasts"] = None
                    document["forecasts"] = _update_forecasts(session, declared.servers)
            finally:
                # Also if the forecasts fail: the declaration is stored.
                if options.wants_json():
                    options.print_json(document)
            if not dry_run:
                declared.follow_up(session)
        return declared.code

    return run


def _update_forecasts(session: DeclarationSession, servers: Collection[str]) -> ForecastUpdate:
    """Update the forecasts of servers, so that pages show a declaration, and report them; raises DatabaseError."""
    from capacity_assets.forecast.issuing import update_forecasts

    update = update_forecasts(session.engine, servers, Clock(session.settings.zone))
    if update.later:
        say(f"The forecasts of {first_of(sorted(servers), NAMES_SHOWN)} are not updated yet: {update.later}")
        return update
    if len(update.updated) == 1:
        say(f"Forecast of {update.updated[0]} updated.")
    elif update.updated:
        say(f"Forecasts of {counted(len(update.updated), 'server')} updated.")
    if update.not_measured:
        names = first_of(update.not_measured, NAMES_SHOWN)
        say(f"No forecast: {names}. A forecast needs a server in service that was measured within the last month.")
    return update


def update_group_forecasts(engine: Engine, clock: Clock) -> None:
    """Update the forecasts of groups whose sums changed, so that budgets show them; raises DatabaseError."""
    from capacity_assets.forecast.issuing import update_forecasts

    update = update_forecasts(engine, None, clock)
    if update.later:
        say(f"The forecasts of groups are not updated yet: {update.later}")
    elif update.as_of:
        say("Forecasts of groups updated.")


class StoredDeclaration(Protocol):
    """A stored declaration."""

    @property
    def declared_at(self) -> datetime | None:
        """When it was declared; None: not known."""

    @property
    def declared_by(self) -> str | None:
        """The author; None: not known."""


DECLARED = ("Declared", "By")
"""The headings of `declared_cells`."""


def declared_cells(stored: StoredDeclaration) -> list[object]:
    """Return when a thing was declared and by whom, for people."""
    return [f"{stored.declared_at:%Y-%m-%d}" if stored.declared_at else "", stored.declared_by or ""]


def declared_json(stored: StoredDeclaration) -> dict[str, object]:
    """Return the same for scripts."""
    moment = stored.declared_at and stored.declared_at.isoformat()
    return {"declared_at": moment, "declared_by": stored.declared_by}


def dated_json(declared: Any) -> dict[str, object]:
    """Return a declaration for scripts; `valid_from` is None for one that always applies."""
    return {name: None if value == ALWAYS else value for name, value in asdict(declared).items()}


def stored_json(stored: Stored[Any]) -> dict[str, object]:
    """Return a stored declaration for scripts, with its further columns and when it was declared."""
    known = {name: value for name, value in vars(stored).items() if name != "declaration"}
    return {**dated_json(stored.declaration), **known, **declared_json(stored)}


Row = TypeVar("Row")


def list_command(
    title: str,
    headings: Sequence[str],
    cells: Callable[[Row], Sequence[object]],
    nothing: str,
    document: Callable[[Any], object] = stored_json,
) -> Callable[[Callable[..., Sequence[Row]]], Callable[..., None]]:
    """Run a command that returns rows, and print them or their JSON documents; if there are none, print `nothing`."""

    def decorate(function: Callable[..., Sequence[Row]]) -> Callable[..., None]:
        @json_command
        @wraps(function)
        def run(settings: Settings, /, **values: Any) -> Report:
            with open_database(settings) as engine:
                rows = function(engine, **values)
            table = Table(title, headings, list(map(cells, rows)))
            return Report(list(map(document, rows)), [table if rows else nothing])

        return run

    return decorate


file_argument = click.argument("file", type=click.Path(path_type=Path))


def first_lines(lines: Iterable[str], noun: str) -> list[str]:
    """Return the first lines, and a line with the number of others; `noun` is their name."""
    every = list(lines)
    hidden = len(every) - LINES_SHOWN
    return [*every[:LINES_SHOWN], *([f"and {counted(hidden, noun)}."] if hidden > 0 else [])]


def _note_always(context: click.Context, _parameter: click.Parameter, always: bool) -> None:
    context.meta["always"] = always


def _first_day(context: click.Context, _parameter: click.Parameter, day: date | None) -> date | None:
    if context.meta["always"] and day is not None:
        raise click.UsageError("Give either --from or --always.")
    return ALWAYS if context.meta["always"] else day


def first_day_options(from_help: str, always_help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the options --from and --always, of which one can be given; both set `first_day`, None by default."""
    return options.combined_options(
        click.option("--from", "first_day", type=options.DAY, callback=_first_day, help=from_help),
        # Eager: it is read before --from, in any order of the options.
        click.option(
            "--always", is_flag=True, is_eager=True, expose_value=False, callback=_note_always, help=always_help
        ),
    )


def since_text(day: date | None) -> str:
    """Return the first day of a declaration in words."""
    return "always" if day in {ALWAYS, None} else f"from {day}"
