"""`capacity decide` and `capacity decisions`: what people decided about what may fill."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.base.units import human_mb, human_probability
from capacity_assets.cli import declaring, options
from capacity_assets.cli.declaring import DECLARED, DeclarationReport, DeclarationSession
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import Report, Table, say
from capacity_assets.forecast import decisions as forecast
from capacity_assets.forecast.decisions import Decision, StoredDecision
from capacity_assets.forecast.results import TOO_LITTLE_HISTORY, display_name
from capacity_assets.reading.forecasts import StoredRunway, runway_of
from capacity_assets.reading.subjects import server_id_of

MOST_WHERE_NOT_FULL = 0.99
HEADINGS = ("Server", "What", "Decision", "Until", ">Added", ">Risk then", ">Risk now", "State", *DECLARED, "~Note")

volume_option = click.option(
    "--volume", "is_volume", is_flag=True, help="The name is that of a volume, not of a database of the same name."
)
subject_arguments = options.combined_options(
    click.argument("server"), click.argument("names", nargs=-1, metavar="[DATABASE|VOLUME]")
)


@click.command()
@subject_arguments
@click.argument("kind", type=click.Choice(forecast.DECISION_KINDS))
@click.option(
    "--until", required=True, type=options.DAY, help="Last day on which it holds; of a plan, the day of the change."
)
@click.option("--note", required=True, help="Why, such as 'purge runs on Friday'.")
@click.option("--ticket", metavar="URL", help="Address of its ticket.")
@click.option("--gb", help="By how many GiB a plan raises the limit on that day, such as 500 or 1.5.")
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
    subject = forecast.subject_named(session.engine, server, _only(names), is_volume=is_volume)
    decision = forecast.checked_decision({**asdict(subject), **values}, session.today())
    return _declare(session, [decision], [f"{decision.display_name}: {decision.text}."])


def _only(names: Sequence[str]) -> str | None:
    if len(names) > 1:
        raise ValidationError(f"{' '.join(names)!r} is more than one name; put a name with blanks in quotes.")
    return names[0] if names else None


def _declare(session: DeclarationSession, decisions: Sequence[Decision], lines: Sequence[str]) -> DeclarationReport:
    changes = forecast.decide(session.engine, decisions, by=session.by, dry_run=session.dry_run)
    replaced = (f"note: It replaces {one.text}: {one.note}" for one in changes.closed)
    raised = [one for one in decisions if one.added_mb is not None]
    judged = list(zip(decisions, changes.probabilities, strict=True))
    document = {
        "decisions": [{**asdict(one), "probability": probability} for one, probability in judged],
        "replaced": [decision_json(one, session.today()) for one in changes.closed],
    }
    is_single = len(decisions) == 1
    risks = [_risk_text(*judged[0])] if is_single else []
    declared = DeclarationReport(
        document,
        [*lines, *risks, *declaring.first_lines(replaced, "more earlier decision")],
        servers={one.server for one in (*raised, *changes.closed) if one.added_mb is not None},
    )
    return replace(declared, follow_up=partial(_say_planned, decision=raised[0])) if is_single and raised else declared


def _risk_text(decision: Decision, probability: float | None) -> str:
    """Say from which risk on the decision no longer holds."""
    left_out = "The check, alerts and digests leave it out until then"
    if decision.kind == forecast.EXCLUDED or probability == 1:
        return f"{left_out}, whatever its risk."
    if probability is None:
        return f"{left_out}. Its risk is not known: they name it again once it is full."
    most = probability + forecast.GROWN_BY
    # What is not full is forecast with at most 99 %.
    ends = f"Above {human_probability(most)}" if most < MOST_WHERE_NOT_FULL else "Once it is full"
    return (
        f"{left_out}. Probability of being full by then: {human_probability(probability)}. {ends}, they name it again."
    )


def _say_planned(session: DeclarationSession, *, decision: Decision) -> None:
    """Say when a subject is full with its raised limit."""
    with database_errors(doing="reading forecasts"), session.engine.connect() as connection:
        number = server_id_of(connection, decision.server) or 0
        runway = runway_of(connection, session.today(), number, decision.subject, decision.name)
    say(runway.planned.sentence if runway and runway.planned else _why_no_date(decision, runway))


def _why_no_date(decision: Decision, runway: StoredRunway | None) -> str:
    """Say why a plan has no second fill date."""
    if runway is None:
        reason = "no forecast of it was issued"
    elif runway.limit_mb is None:
        reason = f"its limit is not known. `capacity limits set {shlex.quote(decision.server)}` declares one"
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
def import_(session: DeclarationSession, /, *, file: Path) -> DeclarationReport:
    """Declare the decisions that a CSV file lists.

    Columns are server, database or volume (both empty: the whole server), kind, until, note and, optionally, ticket and
    gb. Either all decisions are stored or none.
    """
    declared = forecast.decisions_of_file(file, session.today())
    return _declare(session, declared, [session.read_from(file, len(declared), "decision")])


@decisions.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that are past or closed.")
@options.json_command
def list_(settings: Settings, /, *, every: bool) -> Report:
    """Show the decisions that are open, and their risk then and now.

    The risk is the probability of being full by the last day of the decision: when it was decided, and by the newest
    forecast.
    """
    today = Clock(settings.zone).today()
    with options.open_database(settings, settings.zone) as engine:
        stored = forecast.stored_decisions(engine, today, every=every)
    table = Table("Decisions", HEADINGS, [_cells(one, today) for one in stored])
    nothing = "No decision is open. `capacity decide` declares one; `--all` lists those that are past or closed."
    return Report([decision_json(one, today) for one in stored], [table if stored else nothing])


def _cells(stored: StoredDecision, today: date) -> list[object]:
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


@decisions.command()
@subject_arguments
@volume_option
@declaring.command
def remove(session: DeclarationSession, /, *, server: str, names: Sequence[str], is_volume: bool) -> DeclarationReport:
    """Remove the decision on SERVER, or on a DATABASE or VOLUME of it.

    It is closed, and stays in `capacity decisions list --all`.
    """
    subject = forecast.subject_decided_on(session.engine, server, _only(names), is_volume=is_volume)
    closed = forecast.withdraw(session.engine, subject, by=session.by, dry_run=session.dry_run)
    servers = {server} if closed.added_mb is not None else set()
    line = f"Removed the decision on {subject.display_name}: {closed.text}."
    return DeclarationReport({"removed": decision_json(closed, session.today())}, [line], servers=servers)
