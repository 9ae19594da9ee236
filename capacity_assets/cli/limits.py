"""`capacity limits`, `steps`, `volumes`, `decide` and `decisions`: declarations about what may fill.

Maximum sizes of servers and databases, changes that happened once, and decisions about them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, Row

from capacity_assets.base.declarations import declaration, items_of_file
from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.base.units import BYTES_PER_MB, counted, human_mb, human_probability, printable
from capacity_assets.cli import declaring, options
from capacity_assets.cli.declaring import DECLARED, DeclarationReport, DeclarationSession
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import DONE, FAILED, Report, Table, say
from capacity_assets.collection import volumes as measured
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.prometheus import VARIABLE
from capacity_assets.database.declared_rows import Stored, subject_text
from capacity_assets.forecast import decisions as forecast
from capacity_assets.forecast import limits as declared_limits
from capacity_assets.forecast.decisions import Decision, StoredDecision
from capacity_assets.forecast.limits import UNLIMITED, Limit, SizeStep, StoredLimit
from capacity_assets.forecast.results import TOO_LITTLE_HISTORY, display_name
from capacity_assets.reading.forecasts import StoredRunway, runway_of
from capacity_assets.reading.subjects import server_id_of

subject_arguments = options.combined_options(click.argument("server"), click.argument("database", required=False))


@click.group(cls=OrderedGroup)
def limits() -> None:
    """Declare how much servers and databases can hold."""


def limit_text(limit_mb: int | None) -> str:
    """Render a limit."""
    return UNLIMITED if limit_mb is None else human_mb(limit_mb)


@limits.command("set")
@subject_arguments
@click.option("--gb", help="Limit in GiB, such as 500 or 1.5.")
@click.option("--unlimited", is_flag=True, help="Declare that there is no limit.")
@click.option("--note", help="Source of the limit, for readers.")
@declaring.command
def set_limit(session: DeclarationSession, /, *, gb: str | None, unlimited: bool, **values: Any) -> DeclarationReport:
    """Declare the limit of SERVER, or of one DATABASE of it.

    Replaces an earlier limit. The limit of a server applies to all its databases together, as a disk does.

    \b
    Examples:
      capacity limits set db-7 --gb 2000
      capacity limits set db-7 orders --gb 500 --note "contract of 2026"
      capacity limits set db-7 archive --unlimited
    """
    if unlimited == (gb is not None):
        raise ValidationError("Give either --gb or --unlimited.")
    limit = declaration(Limit, {**values, "limit_gb": UNLIMITED if unlimited else gb})
    return _declare_limits(
        session, [limit], f"{subject_text(limit.server, limit.database)}: {limit_text(limit.limit_mb)}."
    )


def _declare_limits(session: DeclarationSession, declared: Sequence[Limit], headline: str) -> DeclarationReport:
    replaced = declared_limits.declare_limits(session.engine, declared, by=session.by, dry_run=session.dry_run)
    exceeded = declared_limits.limits_below_size(session.engine, declared)
    warnings = (
        f"note: {subject_text(limit.server, limit.database)} holds {human_mb(size_mb)}, more than its limit."
        for limit, size_mb in exceeded
    )
    lines = [
        headline,
        *declaring.first_lines(map(_replaced_text, replaced), "more earlier limit"),
        *declaring.first_lines(warnings, "more limit below the measured size"),
    ]
    below = [{**asdict(limit), "size_mb": size_mb} for limit, size_mb in exceeded]
    servers = {limit.server for limit in declared}
    return DeclarationReport({"limits": declared, "below_the_size": below}, lines, servers=servers)


def _replaced_text(limit: Limit) -> str:
    note = f" ({printable(limit.note)})" if limit.note else ""
    return f"note: {subject_text(limit.server, limit.database)} was {limit_text(limit.limit_mb)}{note}."


@limits.command("import")
@declaring.file_argument
@declaring.command
def import_limits(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Declare the limits that a CSV file lists.

    Columns are server, database (empty: the whole server), limit_gb (a number or unlimited) and, optionally, note.
    Either all limits are stored or none.
    """
    declared = items_of_file(file, Limit)
    return _declare_limits(session, declared, session.read_from(file, len(declared), "limit"))


def _limit_cells(stored: StoredLimit) -> list[object]:
    limit, declared = stored.declaration, declaring.declared_cells(stored)
    database = limit.database or "whole server"
    return [limit.server, database, limit_text(limit.limit_mb), stored.source, *declared, limit.note or ""]


@limits.command("list")
@declaring.list_command(
    "Limits",
    ("Server", "Database", ">Limit", "Source", *DECLARED, "~Note"),
    _limit_cells,
    "No limit is declared. `capacity limits set` declares one, `capacity limits import` those in a file.",
)
def list_limits(engine: Engine, /) -> list[StoredLimit]:
    """Show all declared limits.

    `capacity volumes list` and `capacity instances test` show measured limits.
    """
    return declared_limits.stored_limits(engine)


@limits.command("remove")
@subject_arguments
@declaring.change_command
def remove_limit(session: DeclarationSession, /, *, server: str, database: str | None) -> DeclarationReport:
    """Remove the limit of SERVER, or of one DATABASE of it."""
    declared_limits.forget_limit(session.engine, server, database, dry_run=session.dry_run)
    document = {"removed": {"server": server, "database": database}}
    return DeclarationReport(document, [f"Removed the limit of {subject_text(server, database)}."], servers={server})


@click.group(cls=OrderedGroup)
def steps() -> None:
    """Declare changes of size that will not repeat."""


@steps.command("add")
@subject_arguments
@click.option("--day", required=True, type=options.DAY, help="First day with the new size.")
@click.option("--note", required=True, help="What happened, such as 'archive purged'.")
@declaring.command
def add_step(session: DeclarationSession, /, **values: Any) -> DeclarationReport:
    """Declare a change of size that happened once.

    The size of SERVER changed, or that of one DATABASE of it. Forecasts ignore the change and continue from the new
    size.

    \b
    Examples:
      capacity steps add db-7 archive --day 2026-03-31 --note "archive purged"
      capacity steps add db-7 --day 2026-05-02 --note "moved to compressed tables"
    """
    step = SizeStep(**values)
    if not step.note.strip():
        raise ValidationError("--note is empty: describe what happened.")
    effect = _effect_of(*declared_limits.sizes_around(session.engine, step))
    headline = f"{subject_text(step.server, step.database)}: {printable(step.note)}, {step.day}. {effect}"
    return _declare_steps(session, [step], headline)


def _effect_of(before_mb: int | None, after_mb: int | None) -> str:
    if after_mb is None:
        return "It takes effect with the first size that is measured on that day or later."
    if before_mb is None:
        return "No size is known from before that day, so there is no change to ignore."
    return f"Forecasts ignore the change from {human_mb(before_mb)} to {human_mb(after_mb)}."


def _declare_steps(session: DeclarationSession, declared: Sequence[SizeStep], headline: str) -> DeclarationReport:
    replaced = declared_limits.declare_steps(session.engine, declared, by=session.by, dry_run=session.dry_run)
    lines = [headline]
    if replaced:
        step, more = replaced[0], len(replaced) - 1
        others = f" and those of {counted(more, 'other step')}" if more else ""
        verb = "would replace" if session.dry_run else "replaces"
        subject = f"{subject_text(step.server, step.database)}, {step.day}"
        lines.append(f"note: This {verb} the note {step.note!r} of {subject}{others}.")
    document = {"steps": declared, "replaced_notes": replaced}
    return DeclarationReport(document, lines, servers={step.server for step in declared})


@steps.command("import")
@declaring.file_argument
@declaring.command
def import_steps(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Declare the steps that a CSV file lists.

    Columns are server, database (empty: every database of the server), day and note. Either all steps are stored or
    none.
    """
    declared = items_of_file(file, SizeStep)
    return _declare_steps(session, declared, session.read_from(file, len(declared), "step"))


def _step_cells(stored: Stored[SizeStep]) -> list[object]:
    step = stored.declaration
    return [step.day, step.server, step.database or "every database", *declaring.declared_cells(stored), step.note]


@steps.command("list")
@declaring.list_command(
    "Steps",
    ("Day", "Server", "Database", *DECLARED, "~Note"),
    _step_cells,
    "No step is declared. `capacity steps add` declares one.",
)
def list_steps(engine: Engine, /) -> list[Stored[SizeStep]]:
    """Show all declared steps, by day."""
    return declared_limits.stored_steps(engine)


@steps.command("remove")
@subject_arguments
@click.option("--day", required=True, type=options.DAY, help="Day of the step.")
@declaring.change_command
def remove_step(session: DeclarationSession, /, *, server: str, database: str | None, day: date) -> DeclarationReport:
    """Remove the step of SERVER, or of one DATABASE of it, on a day."""
    declared_limits.forget_step(session.engine, server, database, day, dry_run=session.dry_run)
    line = f"Removed the step of {subject_text(server, database)} on {day}. Forecasts include its change again."
    document = {"removed": {"server": server, "database": database, "day": day}}
    return DeclarationReport(document, [line], servers={server})


@click.group(cls=OrderedGroup)
def volumes() -> None:
    """Show the volumes of servers, and import unreported ones."""


def _volume_cells(row: Row[Any]) -> list[object]:
    sizes = [human_mb(row.total_mb), human_mb(row.free_mb)]
    return [row.server, row.volume, *sizes, row.day, row.source, row.declared_by or ""]


@volumes.command("list")
@declaring.list_command(
    "Volumes",
    ("Server", "Volume", ">Size", ">Free", "Day", "Source", "By"),
    _volume_cells,
    "No volume is known. `capacity instances test SERVER` shows why a server reports none.",
    lambda row: row._asdict() | declaring.declared_json(row),
)
def list_volumes(engine: Engine, /) -> Sequence[Row[Any]]:
    """Show the last known size of each volume."""
    return measured.newest_volumes(engine)


@volumes.command("fetch")
@declaring.change_command
def fetch_volumes(session: DeclarationSession, /) -> DeclarationReport:
    """Fetch today's volumes from CAPACITY_VOLUME_SOURCES.

    The collection does this once a day. If a query returns several volumes of a server, it is unknown which of them
    holds a database: let the query select the one with the data.
    """
    settings = session.settings
    if settings.volume_sources is None:
        raise ValidationError(f"{VARIABLE} is unset: set it to the file that lists the sources.")
    today, secrets = Clock(settings.zone).today(), SecretFolders.of(settings)
    answer = measured.fetch_volumes(session.engine, today, settings.volume_sources, secrets, dry_run=session.dry_run)
    sizes = [
        f"{volume.volume} of {volume.server}: {human_mb(volume.total_bytes // BYTES_PER_MB)}, "
        f"{human_mb(volume.free_bytes // BYTES_PER_MB)} of it free."
        for volume in answer.volumes
    ]
    lines = [*sizes, *(f"note: {trouble}." for trouble in answer.troubles)]
    servers = {volume.server for volume in answer.volumes}
    code = DONE if answer.volumes else FAILED
    return DeclarationReport({"day": today, **asdict(answer)}, lines, servers=servers, code=code)


@volumes.command("import")
@declaring.file_argument
@declaring.command
def import_volumes(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Import volumes of any day from a CSV file.

    Columns are server, volume, day, total_gb, free_gb and, for a volume with a reserve, used_gb. Either all volumes are
    stored or none. Values that a server reported itself are kept.
    """
    declared = measured.volumes_of_file(file, Clock(session.settings.zone).today())
    written = measured.store_volumes(session.engine, declared, by=session.by, dry_run=session.dry_run)
    outcome = "read" if session.dry_run else f"read, {written:,} stored or changed"
    lines = [f"{counted(len(declared), 'volume')} {outcome}, from {file}."]
    servers = {volume.server for volume in declared}
    return DeclarationReport({"read": len(declared), "written": written}, lines, servers=servers)


MOST_WHERE_NOT_FULL = 0.99
DECISION_HEADINGS = (
    "Server",
    "What",
    "Decision",
    "Until",
    ">Added",
    ">Risk then",
    ">Risk now",
    "State",
    *DECLARED,
    "~Note",
)

volume_option = click.option(
    "--volume", "is_volume", is_flag=True, help="The name is that of a volume, not of a database of the same name."
)
decided_arguments = options.combined_options(
    click.argument("server"), click.argument("names", nargs=-1, metavar="[DATABASE|VOLUME]")
)


@click.command()
@decided_arguments
@click.argument("kind", type=click.Choice(forecast.DECISION_KINDS))
@click.option(
    "--until", required=True, type=options.DAY, help="Last day on which it applies; for a plan, the day of the change."
)
@click.option("--note", required=True, help="Why, such as 'purge runs on Friday'.")
@click.option("--ticket", metavar="URL", help="Address of the ticket.")
@click.option("--gb", help="GiB by which a plan raises the limit on that day, such as 500 or 1.5.")
@volume_option
@declaring.command
def decide(
    session: DeclarationSession, /, *, server: str, names: Sequence[str], is_volume: bool, **values: Any
) -> DeclarationReport:
    """Declare a decision about something that may fill.

    The decision is about SERVER as a whole, or about a DATABASE or VOLUME of it. The check, alerts and digests leave it
    out until that day, or until its risk is clearly higher than when it was decided; `excluded` accepts any risk. Pages
    and lists mark it. A plan with --gb gives forecasts a second date, with the raised limit from that day on. Sizes do
    not change. It replaces an earlier decision, which stays in `capacity decisions list --all`.

    \b
    Examples:
      capacity decide db-7 orders acknowledged --until 2026-12-01 --note "purge runs on Friday"
      capacity decide db-7 /data planned --until 2026-12-10 --gb 500 --note "new disk" \\
          --ticket https://tickets.example/4711
      capacity decide db-9 excluded --until 2027-06-30 --note "scratch space, may fill"
    """
    subject = forecast.subject_named(session.engine, server, _only_name(names), is_volume=is_volume)
    decision = forecast.checked_decision({**asdict(subject), **values}, session.today(), "--")
    return _declare_decisions(session, [decision], [f"{decision.display_name}: {decision.text}."])


def _only_name(names: Sequence[str]) -> str | None:
    if len(names) > 1:
        raise ValidationError(f"{' '.join(names)!r} is more than one name; put a name with spaces in quotes.")
    return names[0] if names else None


def _declare_decisions(
    session: DeclarationSession, decisions: Sequence[Decision], lines: Sequence[str]
) -> DeclarationReport:
    changes = forecast.decide(session.engine, decisions, by=session.by, dry_run=session.dry_run)
    replaced = (f"note: It replaces {decision.text}: {decision.note}" for decision in changes.closed)
    raised = [decision for decision in decisions if decision.added_mb is not None]
    judged = list(zip(decisions, changes.probabilities, strict=True))
    document = {
        "decisions": [{**asdict(decision), "probability": probability} for decision, probability in judged],
        "replaced": [decision_json(decision, session.today()) for decision in changes.closed],
    }
    is_single = len(decisions) == 1
    risks = [_risk_text(*judged[0])] if is_single else []
    declared = DeclarationReport(
        document,
        [*lines, *risks, *declaring.first_lines(replaced, "more earlier decision")],
        servers={decision.server for decision in (*raised, *changes.closed) if decision.added_mb is not None},
    )
    return replace(declared, follow_up=partial(_say_planned, decision=raised[0])) if is_single and raised else declared


def _risk_text(decision: Decision, probability: float | None) -> str:
    left_out = "The check, alerts and digests leave it out until then"
    if decision.kind == forecast.EXCLUDED or probability == 1:
        return f"{left_out}, whatever its risk."
    if probability is None:
        return f"{left_out}. Its risk is not known, so they list it again once it is full."
    most = probability + forecast.GROWN_BY
    # The forecast of a subject that is not full is at most 99 %.
    ends = f"Above {human_probability(most)}" if most < MOST_WHERE_NOT_FULL else "Once it is full"
    return (
        f"{left_out}. Probability of being full by then: {human_probability(probability)}. {ends}, they list it again."
    )


def _say_planned(session: DeclarationSession, *, decision: Decision) -> None:
    with database_errors(doing="reading forecasts"), session.engine.connect() as connection:
        number = server_id_of(connection, decision.server) or 0
        runway = runway_of(connection, session.today(), number, decision.subject, decision.name)
    say(runway.planned.sentence if runway and runway.planned else _why_no_date(decision, runway))


def _why_no_date(decision: Decision, runway: StoredRunway | None) -> str:
    if runway is None:
        reason = "no forecast of it was issued"
    elif runway.limit_mb is None:
        named = shlex.join(filter(None, (decision.server, decision.name)))
        reason = f"its limit is not known. `capacity limits set {named} --gb GIB` declares one"
    elif runway.state == TOO_LITTLE_HISTORY:
        reason = "it has too little history for a forecast"
    elif decision.until > runway.last_day + timedelta(days=max(HORIZONS_DAYS)):
        reason = "its day is beyond the forecasts, which reach a year"
    else:
        reason = "it does not raise the limit that binds"
    return f"No date with the raised limit is known: {reason}."


@click.group(cls=OrderedGroup)
def decisions() -> None:
    """List, import and remove decisions."""


@decisions.command("import")
@declaring.file_argument
@declaring.command
def import_decisions(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Declare the decisions that a CSV file lists.

    Columns are server, database or volume (both empty: the whole server), kind, until, note and, optionally, ticket and
    gb. Either all decisions are stored or none.
    """
    declared = forecast.decisions_of_file(file, session.today())
    return _declare_decisions(session, declared, [session.read_from(file, len(declared), "decision")])


@decisions.command("list")
@click.option("--all", "every", is_flag=True, help="Also list past and closed decisions.")
@options.json_command
def list_decisions(settings: Settings, /, *, every: bool) -> Report:
    """Show the decisions that are open, and their risk then and now.

    The risk is the probability of being full by the last day of the decision: when it was decided, and by the newest
    forecast.
    """
    today = Clock(settings.zone).today()
    with options.open_database(settings, settings.zone) as engine:
        stored = forecast.stored_decisions(engine, today, every=every)
    table = Table("Decisions", DECISION_HEADINGS, [_decision_cells(decision, today) for decision in stored])
    nothing = "No decision is open. `capacity decide` declares one; `--all` lists those that are past or closed."
    return Report([decision_json(decision, today) for decision in stored], [table if stored else nothing])


def _decision_cells(stored: StoredDecision, today: date) -> list[object]:
    what = display_name(stored.subject, stored.name)
    added = "" if stored.added_mb is None else human_mb(stored.added_mb)
    risks = ["" if risk is None else human_probability(risk) for risk in (stored.probability, stored.probability_now)]
    note = f"{stored.note} {stored.ticket}" if stored.ticket else stored.note
    state = [stored.state(today), *declaring.declared_cells(stored), note]
    return [stored.server, what, stored.kind, stored.until, added, *risks, *state]


def decision_json(stored: StoredDecision, today: date) -> dict[str, object]:
    """Return a decision for scripts, with its state on a day."""
    closed_at = stored.closed_at and stored.closed_at.isoformat()
    return {**asdict(stored), **declaring.declared_json(stored), "closed_at": closed_at, "state": stored.state(today)}


@decisions.command("remove")
@decided_arguments
@volume_option
@declaring.command
def remove_decision(
    session: DeclarationSession, /, *, server: str, names: Sequence[str], is_volume: bool
) -> DeclarationReport:
    """Remove the decision on SERVER, or on a DATABASE or VOLUME of it.

    It is closed, and stays in `capacity decisions list --all`.
    """
    subject = forecast.subject_decided_on(session.engine, server, _only_name(names), is_volume=is_volume)
    closed = forecast.withdraw(session.engine, subject, by=session.by, dry_run=session.dry_run)
    servers = {server} if closed.added_mb is not None else set()
    line = f"Removed the decision on {subject.display_name}: {closed.text}."
    return DeclarationReport({"removed": decision_json(closed, session.today())}, [line], servers=servers)
