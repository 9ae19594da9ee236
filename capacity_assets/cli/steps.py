"""`capacity steps`: changes of size that will not repeat, as declared by people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click

from capacity_assets.cli.options import DAY, LazyGroup, command, file_options, json_command
from capacity_assets.cli.output import print_declared, print_json, print_table, say
from capacity_assets.cli.server_registry import issue_forecasts_anew, opened_registry
from capacity_assets.errors import ValidationError
from capacity_assets.runway.steps import SizeStep, declare_steps, forget_step, sizes_around, steps_of_file, stored_steps
from capacity_assets.runway.subjects import named
from capacity_assets.settings import Settings
from capacity_assets.units import counted, human_mb, printable

COMMANDS = {"add": "steps:add", "import": "steps:import_", "list": "steps:list_", "remove": "steps:remove"}


@click.group(cls=LazyGroup, locations=COMMANDS)
def steps() -> None:
    """Declare changes of size that will not repeat."""


@click.command()
@click.argument("server")
@click.argument("database", required=False)
@click.option("--day", required=True, type=DAY, help="First day with the new size.")
@click.option("--note", required=True, help="What happened, as 'archive purged'.")
@command
def add(settings: Settings, /, *, server: str, database: str | None, day: date, note: str) -> None:
    """Declare a change of size that happened once, on a day.

    It is one of SERVER, or of one DATABASE of it. Forecasts then leave that change out: they go on from the new size,
    as if it had always been so.

    \b
    Examples:
      capacity steps add db-7 archive --day 2026-03-31 --note "archive purged"
      capacity steps add db-7 --day 2026-05-02 --note "moved to compressed tables"
    """
    if not note.strip():
        raise ValidationError("Say what happened: --note is empty. Nothing was changed.")
    step = SizeStep(server, database, day, note)
    with opened_registry(settings) as engine:
        replaced = declare_steps(engine, [step])
        before, after = sizes_around(engine, step)
        say(f"{named(server, database)}: {printable(note)}, {day}. {_effect_of(before, after)}")
        _report_replaced(replaced)
        issue_forecasts_anew(engine, settings, {server})


def _effect_of(before_mb: int | None, after_mb: int | None) -> str:
    if after_mb is None:
        return "The step takes effect with the first size that is measured on that day or later."
    if before_mb is None:
        return "No size of it is known from before that day, so there is no change to leave out."
    return f"Forecasts leave the change from {human_mb(before_mb)} to {human_mb(after_mb)} out."


def _report_replaced(replaced: Sequence[SizeStep], *, dry_run: bool = False) -> None:
    if replaced:
        step, more = replaced[0], len(replaced) - 1
        others = f" and those of {counted(more, 'other step')}" if more else ""
        verb = "would replace" if dry_run else "replaces"
        what = f"the note {step.note!r} of {named(step.server, step.database)}, {step.day}{others}"
        say(f"note: This {verb} {what}.")


@click.command("import")
@file_options
@json_command
def import_(settings: Settings, /, *, file: Path, dry_run: bool, as_json: bool) -> None:
    """Declare the steps that a CSV file lists.

    Columns are server, database (empty: every database of the server), day and note. Either all are stored or none.
    """
    found = steps_of_file(file)
    with opened_registry(settings) as engine:
        replaced = declare_steps(engine, found, dry_run=dry_run)
        notes = [asdict(step) for step in replaced]
        print_declared(
            "step", [asdict(step) for step in found], file, dry_run=dry_run, as_json=as_json, replaced_notes=notes
        )
        if not as_json:
            _report_replaced(replaced, dry_run=dry_run)
        if not dry_run:
            issue_forecasts_anew(engine, settings, {step.server for step in found}, quiet=as_json)


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> None:
    """Show every declared step, by day."""
    with opened_registry(settings) as engine:
        found = stored_steps(engine)
    if as_json:
        print_json([asdict(step) for step in found])
    elif found:
        cells = [[step.day, step.server, step.database or "every database", step.note] for step in found]
        print_table("Steps", COLUMNS, cells)
    else:
        say("No step is declared.")


COLUMNS = (("Day", "left"), ("Server", "left"), ("Database", "left"), ("Note", "text"))


@click.command()
@click.argument("server")
@click.argument("database", required=False)
@click.option("--day", required=True, type=DAY, help="Day of the step.")
@command
def remove(settings: Settings, /, *, server: str, database: str | None, day: date) -> None:
    """Remove the step of SERVER, or of one DATABASE of it, on a day."""
    with opened_registry(settings) as engine:
        forget_step(engine, server, database, day)
        say(f"Removed the step of {named(server, database)} on {day}. Forecasts include its change again.")
        issue_forecasts_anew(engine, settings, {server})
