"""`capacity labels`: whose databases they are and what they are for, as declared by people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import SECONDS_PER_COMMAND, follow_labels
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import key_and_value
from capacity_assets.base.units import counted, first_of, printable
from capacity_assets.cli.declaring import (
    Registry,
    Report,
    dated_json,
    dated_options,
    declaring,
    file_argument,
    first_day_of,
    first_lines,
    listing,
    since,
)
from capacity_assets.cli.options import DAY, LazyGroup, left, say
from capacity_assets.database.tables import ALWAYS
from capacity_assets.forecast.limits import named
from capacity_assets.ownership.labels import (
    WILDCARDS,
    Label,
    LabelChange,
    StoredLabel,
    checked,
    declare_labels,
    labels_from_values,
    labels_of_column,
    labels_of_file,
    matching,
    stored_labels,
    written_otherwise,
)
from capacity_assets.runtime import task_runner

COLUMNS = left("Server", "Database", "Label", "Value", "From", "Until")
CHANGES_NAMED = 10
SECONDS_BETWEEN_LINES = 5
COMMANDS = {
    "set": "labels:set_",
    "import": "labels:import_",
    "adopt": "labels:adopt",
    "list": "labels:list_",
    "remove": "labels:remove",
}


@click.group(cls=LazyGroup, locations=COMMANDS)
def labels() -> None:
    """Declare whose servers and databases they are."""


database_option = click.option(
    "--database", metavar="NAME", help="Its databases of this name, or pattern with * and ?."
)
now_option = click.option(
    "--now", is_flag=True, help="Compute every group at once, however long it takes. Default: for a few seconds."
)


@click.command("set")
@click.argument("server")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@database_option
@dated_options(
    "First day on which it holds. Default: see above.", "It holds for all of history, whatever was declared before."
)
@now_option
@declaring
def set_(  # noqa: PLR0913 -- one argument per documented option
    registry: Registry,
    /,
    *,
    server: str,
    pairs: Sequence[str],
    database: str | None,
    first_day: date | None,
    always: bool,
    now: bool,
) -> Report:
    """Declare labels of SERVER, or of databases on it.

    A label of a database overrides the one of its server. The first value of a key applies to all of history. A changed
    value applies from today on, and earlier bills stay as they were.

    \b
    Examples:
      capacity labels set db-7 team=payments environment=production
      capacity labels set db-7 team=search --database "search_*"
      capacity labels set db-7 team=billing --from 2026-04-01
    """
    read = [key_and_value(pair, " A database is named with --database.") for pair in pairs]
    values: Mapping[str, str] = {key.strip(): value for key, value in read}
    if len(values) < len(pairs):
        raise ValidationError("A key is given twice. Nothing was changed.")
    day = first_day_of(first_day, always=always)
    labels = labels_from_values(server, database, values, registry.settings.label_keys, day)
    return _declared(registry, labels, now=now, notes=_notes(registry.engine, labels))


def _notes(engine: Engine, labels: Sequence[Label]) -> Iterator[str]:
    """Name labels with a similar spelling, and count the databases that a pattern matches."""
    for label in labels:
        alike = written_otherwise(engine, label.key, label.value or "")
        if alike:
            yield f"note: {label.key} also has {first_of(alike, CHANGES_NAMED)}, which is another group."
    database = labels[0].database
    if database and WILDCARDS.search(database):
        matched = counted(matching(engine, labels[0]), "database")
        yield f"{database} matches {matched} of the newest sample, and applies to those that appear later."


def _declared(
    registry: Registry, labels: Sequence[Label], *, now: bool, said: bool = False, notes: Iterable[str] = ()
) -> Report:
    changes = declare_labels(registry.engine, labels, registry.today(), dry_run=registry.dry_run)
    read = [f"{counted(len(labels), 'label')} read, {len(changes):,} of them changed."] if said else []
    lines = first_lines(map(_change_text, changes), "more label") or ["Nothing to change: these labels hold already."]
    document = {"read": len(labels), "changed": [dated_json(change.label) for change in changes]}
    follow_up = partial(_follow, now=now) if changes else None
    return Report(document, [*read, *lines, *notes], follow_up=follow_up)


def _follow(registry: Registry, *, now: bool) -> None:
    """Compute the groups that the changes touch, all of them or for a few seconds, and count the rest."""
    runner = task_runner(registry.engine, registry.settings)
    done = follow_labels(runner, None if now else SECONDS_PER_COMMAND, None if registry.as_json else _say_progress())
    if registry.as_json:
        return
    if done.computed:
        say(f"{counted(done.computed, 'window')} of groups computed.")
    if done.left:
        say(
            f"Groups of {counted(done.left, 'window')} are left to the late data sensor. "
            "`capacity groups --now` computes them at once."
        )


def _say_progress() -> Callable[[int, int], None]:
    """Return what says every few seconds how far it is."""
    said = [time.monotonic()]

    def progress(computed: int, every: int) -> None:
        if time.monotonic() - said[0] >= SECONDS_BETWEEN_LINES and computed < every:
            said[0] = time.monotonic()
            say(f"{computed:,} of {counted(every, 'window')} of groups computed")

    return progress


def _change_text(change: LabelChange) -> str:
    label = change.label
    now = f"{label.key} removed" if label.value is None else f"{label.key} = {printable(label.value)}"
    before = "" if change.before is None else f", {printable(change.before)} before"
    until, gone = _later(change)
    return f"{named(label.server, label.database)}: {now}, {since(label.valid_from)}{until}{before}{gone}."


def _later(change: LabelChange) -> tuple[str, str]:
    """Say up to when it holds, or what it takes away of later days."""
    if not change.later:
        return "", ""
    if change.label.valid_from != ALWAYS:
        return f" until {change.later[0][0]}", ""
    taken = first_of((f"{value or 'none'} {since(day)}" for day, value in change.later), CHANGES_NAMED)
    return "", f"; in place of {taken}"


@click.command("import")
@file_argument
@now_option
@declaring
def import_(registry: Registry, /, *, file: Path, now: bool) -> Report:
    """Declare the labels that a CSV file lists.

    Columns are server, database (empty: the whole server), from (empty: as for `set`) and one per key, such as team.
    What is empty is left as it is. Either all are stored or none.
    """
    return _declared(registry, labels_of_file(file, registry.settings.label_keys), now=now, said=True)


@click.command()
@click.argument("column")
@click.option("--key", help="Key of the labels. Default: the name of the column.")
@now_option
@declaring
def adopt(registry: Registry, /, *, column: str, key: str | None, now: bool) -> Report:
    """Adopt COLUMN of the table instances as a label.

    For registries that another application fills. Run it again after changes there.
    """
    wanted, _ = checked(key or column, None, registry.settings.label_keys)
    return _declared(registry, labels_of_column(registry.engine, column, wanted), now=now, said=True)


def _cells(one: StoredLabel) -> list[object]:
    label = one.label
    subject = [label.server, label.database or "all without their own"]
    since_when = since(label.valid_from).removeprefix("from ")
    return [*subject, label.key, label.value or "none", since_when, one.valid_until or ""]


@click.command("list")
@click.argument("server", required=False)
@click.option("--on", "day", type=DAY, help="Only labels that hold on this day.")
@listing(
    "Labels",
    COLUMNS,
    _cells,
    "No label is known. `capacity labels set` declares one, `capacity labels import` those of a file.",
)
def list_(engine: Engine, /, *, server: str | None, day: date | None) -> list[tuple[StoredLabel, object]]:
    """Show the declared labels and since when they hold."""
    found = [one for one in stored_labels(engine, server) if day is None or one.holds_on(day)]
    return [(one, {**dated_json(one.label), "valid_until": one.valid_until}) for one in found]


@click.command()
@click.argument("server")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@database_option
@dated_options("First day without them. Default: today.", "Remove them from all of history.")
@now_option
@declaring
def remove(  # noqa: PLR0913 -- one argument per documented option
    registry: Registry,
    /,
    *,
    server: str,
    keys: Sequence[str],
    database: str | None,
    first_day: date | None,
    always: bool,
    now: bool,
) -> Report:
    """Remove labels of SERVER, or of databases on it.

    From today on, unless --from or --always is given. Earlier figures keep their groups.
    """
    day = first_day_of(first_day, always=always)
    # Also of a key that CAPACITY_LABEL_KEYS does not have any more.
    labels = [Label(server, database, key, None, day) for key in dict.fromkeys(keys)]
    return _declared(registry, labels, now=now)
