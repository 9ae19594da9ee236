"""`capacity steps`: changes of size that will not repeat, as people declare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import counted, human_mb, printable
from capacity_assets.cli.declaring import (
    DECLARED,
    DeclarationReport,
    Registry,
    changing,
    declared_cells,
    declared_json,
    declaring,
    file_argument,
    listing,
)
from capacity_assets.cli.lazy import OrderedGroup
from capacity_assets.cli.options import DAY
from capacity_assets.forecast.limits import (
    SizeStep,
    StoredStep,
    declare_steps,
    forget_step,
    named,
    sizes_around,
    steps_of_file,
    stored_steps,
)

HEADINGS = ("Day", "Server", "Database", *DECLARED, "~Note")


@click.group(cls=OrderedGroup)
def steps() -> None:
    """Declare changes of size that will not repeat."""


@steps.command()
@click.argument("server")
@click.argument("database", required=False)
@click.option("--day", required=True, type=DAY, help="First day with the new size.")
@click.option("--note", required=True, help="What happened, such as 'archive purged'.")
@declaring
def add(registry: Registry, /, *, server: str, database: str | None, day: date, note: str) -> DeclarationReport:
    """Declare a change of size that happened once.

    The size of SERVER changed, or that of one DATABASE of it. Forecasts ignore the change and continue from the new
    size.

    \b
    Examples:
      capacity steps add db-7 archive --day 2026-03-31 --note "archive purged"
      capacity steps add db-7 --day 2026-05-02 --note "moved to compressed tables"
    """
    if not note.strip():
        raise ValidationError("--note is empty: describe what happened.")
    step = SizeStep(server, database, day, note)
    effect = _effect_of(*sizes_around(registry.engine, step))
    return _declare(registry, [step], f"{named(server, database)}: {printable(note)}, {day}. {effect}")


def _effect_of(before_mb: int | None, after_mb: int | None) -> str:
    if after_mb is None:
        return "It takes effect with the first size that is measured on that day or later."
    if before_mb is None:
        return "No size is known from before that day, so there is no change to ignore."
    return f"Forecasts ignore the change from {human_mb(before_mb)} to {human_mb(after_mb)}."


def _declare(registry: Registry, declared: Sequence[SizeStep], headline: str) -> DeclarationReport:
    replaced = declare_steps(registry.engine, declared, by=registry.by, dry_run=registry.dry_run)
    lines = [headline]
    if replaced:
        step, more = replaced[0], len(replaced) - 1
        others = f" and those of {counted(more, 'other step')}" if more else ""
        verb = "would replace" if registry.dry_run else "replaces"
        subject = f"{named(step.server, step.database)}, {step.day}"
        lines.append(f"note: This {verb} the note {step.note!r} of {subject}{others}.")
    document = {"steps": list(map(asdict, declared)), "replaced_notes": list(map(asdict, replaced))}
    return DeclarationReport(document, lines, servers={step.server for step in declared})


@steps.command("import")
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path) -> DeclarationReport:
    """Declare the steps that a CSV file lists.

    Columns are server, database (empty: every database of the server), day and note. Either all steps are stored or
    none.
    """
    declared = steps_of_file(file)
    return _declare(registry, declared, registry.read_from(file, len(declared), "step"))


def _cells(stored: StoredStep) -> list[object]:
    step = stored.step
    return [step.day, step.server, step.database or "every database", *declared_cells(stored), step.note]


@steps.command("list")
@listing("Steps", HEADINGS, _cells, "No step is declared. `capacity steps add` declares one.")
def list_(engine: Engine, /) -> list[tuple[StoredStep, object]]:
    """Show all declared steps, by day."""
    return [(stored, {**asdict(stored.step), **declared_json(stored)}) for stored in stored_steps(engine)]


@steps.command()
@click.argument("server")
@click.argument("database", required=False)
@click.option("--day", required=True, type=DAY, help="Day of the step.")
@changing
def remove(registry: Registry, /, *, server: str, database: str | None, day: date) -> DeclarationReport:
    """Remove the step of SERVER, or of one DATABASE of it, on a day."""
    forget_step(registry.engine, server, database, day, dry_run=registry.dry_run)
    line = f"Removed the step of {named(server, database)} on {day}. Forecasts include its change again."
    return DeclarationReport(
        {"removed": {"server": server, "database": database, "day": day}}, [line], servers={server}
    )
