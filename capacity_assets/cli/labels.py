"""`capacity labels`: whose databases they are and what they are for, as declared by people."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import click

from capacity_assets.aggregation.following_labels import SECONDS_PER_COMMAND, follow_labels
from capacity_assets.cli.dated import as_json as dated_json
from capacity_assets.cli.dated import first_day_of, since
from capacity_assets.cli.options import DAY, LazyGroup, command, dry_run_option, file_options, json_command, options
from capacity_assets.cli.output import NOTHING_CHANGED, left, print_json, print_table, say
from capacity_assets.cli.server_registry import opened_registry
from capacity_assets.clock import Clock
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.pairs import key_and_value
from capacity_assets.grouping.labels import (
    WILDCARDS,
    Label,
    LabelChange,
    StoredLabel,
    checked,
    declare_labels,
    labels_of,
    labels_of_column,
    labels_of_file,
    matching,
    stored_labels,
    written_otherwise,
)
from capacity_assets.runtime import open_task_runner
from capacity_assets.runway.subjects import named
from capacity_assets.settings import Settings
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.units import counted, first_of, printable

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
subject_options = options(
    database_option,
    click.option("--from", "first_day", type=DAY, help="First day on which it holds. Default: see above."),
    click.option("--always", is_flag=True, help="It holds for all of history, whatever was declared before."),
)
now_option = click.option(
    "--now", is_flag=True, help="Compute every group at once, however long it takes. Default: for a few seconds."
)
removal_options = options(
    database_option,
    click.option("--from", "first_day", type=DAY, help="First day without them. Default: today."),
    click.option("--always", is_flag=True, help="Take them out of all of history."),
)


@click.command("set")
@click.argument("server")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@subject_options
@now_option
@dry_run_option
@command
def set_(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings,
    /,
    *,
    server: str,
    pairs: Sequence[str],
    database: str | None,
    first_day: date | None,
    always: bool,
    now: bool,
    dry_run: bool,
) -> None:
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
    values = {key.strip(): value for key, value in read}
    if len(values) < len(pairs):
        raise ValidationError("A key is given twice. Nothing was changed.")
    found = labels_of(server, database, values, settings.label_keys, first_day_of(first_day, always=always))
    with opened_registry(settings, settings.zone) as engine:
        changes = declare_labels(engine, found, Clock(settings.zone).today(), dry_run=dry_run)
        matched = matching(engine, found[0]) if database and WILDCARDS.search(database) else None
        others = [(label, written_otherwise(engine, label.key, label.value or "")) for label in found]
    _say_changes(changes, dry_run=dry_run)
    for label, alike in others:
        if alike:
            say(f"note: {label.key} has {first_of(alike, CHANGES_NAMED)} too, which is another group.")
    if matched is not None:
        say(
            f"{database} matches {counted(matched, 'database')} of the newest sample, and applies to those that appear "
            "later."
        )
    _follow(settings, changes, now=now, dry_run=dry_run)


def _follow(
    settings: Settings, changes: Sequence[LabelChange], *, now: bool, dry_run: bool, quiet: bool = False
) -> None:
    """Compute the groups that the changes touch, all of them or for a few seconds, and say what is left."""
    if not changes or dry_run:
        return
    with open_task_runner(settings) as runner:
        done = follow_labels(runner, None if now else SECONDS_PER_COMMAND, None if quiet else _say_progress())
    if quiet:
        return
    if done.computed:
        say(f"{counted(done.computed, 'window')} of groups computed.")
    if done.left:
        say(
            f"Groups of {counted(done.left, 'window')} are left to the next evaluation of the sensor. "
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


def _say_changes(changes: Sequence[LabelChange], *, dry_run: bool) -> None:
    for change in changes[:CHANGES_NAMED]:
        label = change.label
        now = f"{label.key} removed" if label.value is None else f"{label.key} = {printable(label.value)}"
        before = "" if change.before is None else f", {printable(change.before)} before"
        until, gone = _later(change)
        say(f"{named(label.server, label.database)}: {now}, {since(label.valid_from)}{until}{before}{gone}.")
    if len(changes) > CHANGES_NAMED:
        say(f"and {counted(len(changes) - CHANGES_NAMED, 'more label')}.")
    if not changes:
        say("Nothing to change: these labels hold already.")
    if dry_run:
        say(NOTHING_CHANGED)


def _later(change: LabelChange) -> tuple[str, str]:
    """Say up to when it holds, or what it takes away of later days."""
    if not change.later:
        return "", ""
    if change.label.valid_from != ALWAYS:
        return f" until {change.later[0][0]}", ""
    taken = first_of((f"{value or 'none'} {since(day)}" for day, value in change.later), CHANGES_NAMED)
    return "", f"; in place of {taken}"


@click.command("import")
@file_options
@now_option
@json_command
def import_(settings: Settings, /, *, file: Path, now: bool, dry_run: bool, as_json: bool) -> None:
    """Declare the labels that a CSV file lists.

    Columns are server, database (empty: the whole server), from (empty: as for `set`) and one per key, such as team.
    What is empty is left as it is. Either all are stored or none.
    """
    return _declare(settings, labels_of_file(file, settings.label_keys), now=now, dry_run=dry_run, as_json=as_json)


def _declare(settings: Settings, found: Sequence[Label], *, now: bool, dry_run: bool, as_json: bool) -> None:
    with opened_registry(settings, settings.zone) as engine:
        changes = declare_labels(engine, found, Clock(settings.zone).today(), dry_run=dry_run)
    if as_json:
        print_json(
            {"dry_run": dry_run, "read": len(found), "changed": [dated_json(change.label) for change in changes]}
        )
    else:
        say(f"{counted(len(found), 'label')} read, {len(changes):,} of them changed.")
        _say_changes(changes, dry_run=dry_run)
    _follow(settings, changes, now=now, dry_run=dry_run, quiet=as_json)


@click.command()
@click.argument("column")
@click.option("--key", help="Key of the labels. Default: the name of the column.")
@now_option
@dry_run_option
@json_command
def adopt(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings, /, *, column: str, key: str | None, now: bool, dry_run: bool, as_json: bool
) -> None:
    """Adopt COLUMN of the table instances as a label.

    For registries that another application fills. Run it again after changes there.
    """
    wanted = key or column
    checked(wanted, None, settings.label_keys)  # refuses a key that is none
    with opened_registry(settings) as engine:
        found = labels_of_column(engine, column, wanted)
    return _declare(settings, found, now=now, dry_run=dry_run, as_json=as_json)


@click.command("list")
@click.argument("server", required=False)
@click.option("--on", "day", type=DAY, help="Only labels that hold on this day.")
@json_command
def list_(settings: Settings, /, *, server: str | None, day: date | None, as_json: bool) -> None:
    """Show the declared labels and since when they hold."""
    with opened_registry(settings) as engine:
        found = [one for one in stored_labels(engine, server) if day is None or one.holds_on(day)]
    if as_json:
        print_json([{**dated_json(one.label), "valid_until": one.valid_until} for one in found])
    elif found:
        print_table("Labels", LIST_COLUMNS, list(map(_cells, found)))
    else:
        say("No label is known. `capacity labels set` declares one, `capacity labels import` those of a file.")


LIST_COLUMNS = left("Server", "Database", "Label", "Value", "From", "Until")


def _cells(one: StoredLabel) -> list[object]:
    label = one.label
    subject = [label.server, label.database or "all without their own"]
    return [
        *subject,
        label.key,
        label.value or "none",
        since(label.valid_from).removeprefix("from "),
        one.valid_until or "",
    ]


@click.command()
@click.argument("server")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@removal_options
@now_option
@dry_run_option
@command
def remove(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings,
    /,
    *,
    server: str,
    keys: Sequence[str],
    database: str | None,
    first_day: date | None,
    always: bool,
    now: bool,
    dry_run: bool,
) -> None:
    """Remove labels of SERVER, or of databases on it.

    From today on, unless --from or --always is given. Earlier figures keep their groups.
    """
    day = first_day_of(first_day, always=always)
    # Also of a key that CAPACITY_LABEL_KEYS does not have any more.
    found = [Label(server, database, key, None, day) for key in dict.fromkeys(keys)]
    with opened_registry(settings, settings.zone) as engine:
        changes = declare_labels(engine, found, Clock(settings.zone).today(), dry_run=dry_run)
    _say_changes(changes, dry_run=dry_run)
    _follow(settings, changes, now=now, dry_run=dry_run)
