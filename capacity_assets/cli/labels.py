"""`capacity labels`: the declared owners and purposes of servers and databases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import SECONDS_PER_COMMAND, follow_labels
from capacity_assets.base.declarations import checked_label, key_and_value
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import counted, first_of, printable
from capacity_assets.cli import declaring, options
from capacity_assets.cli.bills import issue_bills
from capacity_assets.cli.declaring import DECLARED, DeclarationReport, DeclarationSession
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import say
from capacity_assets.database.declared_rows import subject_text
from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership import labels as ownership
from capacity_assets.ownership.bills import unfinished_months
from capacity_assets.ownership.labels import Label, LabelChange, LabelSpan
from capacity_assets.runtime import task_runner

CHANGES_NAMED = 10


@click.group(cls=OrderedGroup)
def labels() -> None:
    """Declare labels of servers and databases, such as their team."""


database_option = click.option("--database", metavar="NAME", help="Databases with this name, or pattern with * and ?.")
now_option = click.option(
    "--now", is_flag=True, help="Compute all groups now, however long it takes. Default: compute for a few seconds."
)


@labels.command("set")
@click.argument("server")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@database_option
@declaring.first_day_options(
    "First day of the label. Default: see above.", "Apply it to all of history; replace earlier labels."
)
@now_option
@declaring.command
def set_(
    session: DeclarationSession,
    /,
    *,
    server: str,
    pairs: Sequence[str],
    database: str | None,
    first_day: date | None,
    now: bool,
) -> DeclarationReport:
    """Declare labels of SERVER, or of databases on it.

    A label of a database overrides the one of its server. The first value of a key applies to all of history. A changed
    value applies from today on, and earlier bills stay as they were.

    \b
    Examples:
      capacity labels set db-7 team=payments environment=production
      capacity labels set db-7 team=search --database "search_*"
      capacity labels set db-7 team=billing --from 2026-04-01
    """
    read = (key_and_value(pair, " Name the database with --database.") for pair in pairs)
    values = {key.strip(): value for key, value in read}
    if len(values) < len(pairs):
        raise ValidationError("Each key can be given only once.")
    declared = ownership.labels_from_values(server, database, values, session.settings.label_keys, first_day)
    return _declare(session, declared, now=now, notes=_notes(session.engine, declared))


def _notes(engine: Engine, declared: Sequence[Label]) -> Iterator[str]:
    """Return labels with a similar spelling, and the number of databases that a pattern matches."""
    for label in declared:
        alike = ownership.values_differing_in_case(engine, label.key, label.value or "")
        if alike:
            yield f"note: {label.key} also has the value {first_of(alike, CHANGES_NAMED)}, which is another group."
    database = declared[0].database
    if database and ownership.WILDCARDS.search(database):
        matches = counted(ownership.matching(engine, declared[0]), "database")
        yield f"{database} matches {matches} of the newest sample, and applies to matching databases that appear later."


def _declare(
    session: DeclarationSession,
    declared: Sequence[Label],
    *,
    now: bool,
    count: bool = False,
    notes: Iterable[str] = (),
) -> DeclarationReport:
    engine, today = session.engine, session.today()
    changes = ownership.declare_labels(engine, declared, today, by=session.by, dry_run=session.dry_run)
    counts = [f"{counted(len(declared), 'label')} read, {len(changes):,} of them changed."] if count else []
    lines = declaring.first_lines(map(_change_text, changes), "more label") or [
        "No change: these labels are declared already."
    ]
    document = {"read": len(declared), "changed": [declaring.dated_json(change.label) for change in changes]}
    return DeclarationReport(document, [*counts, *lines, *notes], follow_up=partial(_compute, now=now, changes=changes))


def _compute(session: DeclarationSession, *, now: bool, changes: Sequence[LabelChange]) -> None:
    """Compute the groups that the changes affect, all of them or for a few seconds, and their bills."""
    if not changes:
        return
    runner = task_runner(session.engine, session.settings)
    seconds = None if now else SECONDS_PER_COMMAND
    with options.progress_bar("windows of groups") as update:
        outcome = follow_labels(runner, seconds, lambda computed, total: update(completed=computed, total=total))
    if outcome.computed:
        say(f"{counted(outcome.computed, 'window')} of groups computed.")
    if outcome.left:
        say(
            f"The late data sensor will compute the groups of {counted(outcome.left, 'window')}. "
            "`capacity groups --now` computes them and their forecasts now."
        )
    elif outcome.computed:
        declaring.update_group_forecasts(session.engine, Clock(session.settings.zone))
    first = min(change.label.valid_from or ALWAYS for change in changes)
    issue_bills(session, unfinished_months(session.engine, first))


def _change_text(change: LabelChange) -> str:
    label = change.label
    now = f"{label.key} removed" if label.value is None else f"{label.key} = {printable(label.value)}"
    before = "" if change.before is None else f", {printable(change.before)} before"
    first, until, replaced = declaring.since_text(label.valid_from), "", ""
    if change.later and label.valid_from != ALWAYS:
        until = f" until {change.later[0][0]}"
    elif change.later:
        later = (f"{value or 'none'} {declaring.since_text(day)}" for day, value in change.later)
        replaced = f"; replaces {first_of(later, CHANGES_NAMED)}"
    return f"{subject_text(label.server, label.database)}: {now}, {first}{until}{before}{replaced}."


@labels.command("import")
@declaring.file_argument
@now_option
@declaring.command
def import_(session: DeclarationSession, /, *, file: Path, now: bool) -> DeclarationReport:
    """Declare the labels that a CSV file lists.

    Columns are server, database (empty: the whole server), from (empty: as for `set`) and one per key, such as team.
    An empty field changes nothing. Either all labels are stored or none.
    """
    return _declare(session, ownership.labels_of_file(file, session.settings.label_keys), now=now, count=True)


@labels.command()
@click.argument("column")
@click.option("--key", help="Key of the labels. Default: the name of the column.")
@now_option
@declaring.command
def adopt(session: DeclarationSession, /, *, column: str, key: str | None, now: bool) -> DeclarationReport:
    """Adopt COLUMN of the table instances as a label.

    For registries that another application fills. Run it again after changes to the column.
    """
    label_key, _ = checked_label(key or column, None, session.settings.label_keys)
    return _declare(session, ownership.labels_of_column(session.engine, column, label_key), now=now, count=True)


def _cells(stored: LabelSpan) -> list[object]:
    label = stored.declaration
    subject = [label.server, label.database or "all without their own"]
    last_day = "" if stored.valid_until is None else stored.valid_until - timedelta(days=1)
    days = [declaring.since_text(label.valid_from).removeprefix("from "), last_day]
    return [*subject, label.key, label.value or "none", *days, *declaring.declared_cells(stored)]


@labels.command("list")
@click.argument("server", required=False)
@click.option("--on", "day", type=options.DAY, help="Only labels that apply on this day.")
@declaring.list_command(
    "Labels",
    ("Server", "Database", "Label", "Value", "From", "Last day", *DECLARED),
    _cells,
    "No label is declared. `capacity labels set` declares one, `capacity labels import` those in a file.",
)
def list_(engine: Engine, /, *, server: str | None, day: date | None) -> list[LabelSpan]:
    """Show the declared labels and their days."""
    return [stored for stored in ownership.stored_labels(engine, server) if day is None or stored.holds_on(day)]


@labels.command()
@click.argument("server")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@database_option
@declaring.first_day_options("First day without them. Default: today.", "Remove them from all of history.")
@now_option
@declaring.command
def remove(
    session: DeclarationSession,
    /,
    *,
    server: str,
    keys: Sequence[str],
    database: str | None,
    first_day: date | None,
    now: bool,
) -> DeclarationReport:
    """Remove labels of SERVER, or of databases on it.

    They end today, unless --from or --always is given. Earlier figures keep their groups.
    """
    # The key may be one that CAPACITY_LABEL_KEYS no longer has.
    return _declare(session, [Label(server, database, key, None, first_day) for key in dict.fromkeys(keys)], now=now)
