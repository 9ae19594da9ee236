"""Headlines of pages: the earliest fill date in a sentence, or why there is none."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import date, timedelta

from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import counted, human_day, human_mb, human_range, printable
from capacity_assets.forecast.decisions import is_left_out
from capacity_assets.forecast.model import LEAST_HISTORY_DAYS
from capacity_assets.forecast.results import (
    DATABASE,
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    SERVER,
    STALE_DAYS,
    TOO_LITTLE_HISTORY,
    VOLUME,
)
from capacity_assets.reading.forecasts import Severity, StoredRunway, severity_of


@dataclass(frozen=True)
class PageSubject:
    """The subject of a page: a server, or a database or volume of it; `is_active` None: no longer registered."""

    server: str
    subject: str
    name: str = ""
    is_active: bool | None = True
    last_measured: date | None = None
    """The newest day on which it was measured, or its server if the database still exists."""
    is_gone: bool = False
    """Whether it is a database that no longer existed when its server was last measured."""


@dataclass(frozen=True)
class Headline:
    """What is full first and when, in a sentence, with commands in backquotes."""

    text: str
    severity: Severity | None = None
    """None: not urgent, or left out of check and alerts by the decision in the text."""
    day: date | None = None
    """The day by which it is full with a probability of 50 %; None: not within a year, or unknown."""
    linked: str | None = None
    """The part of the text that names what fills, if that is not the subject of the page."""
    subject: str | None = None
    """The kind of subject that fills; None: nothing with a known date."""
    server_id: int | None = None
    server: str | None = None
    name: str | None = None


def headline_of(  # noqa: PLR0913 -- what the sentence is made of
    about: PageSubject,
    own: StoredRunway | None,
    first: StoredRunway | None,
    thresholds: Thresholds,
    *,
    issued: date | None = None,
    also: StoredRunway | None = None,
) -> Headline:
    """Return the headline of a server, database or volume.

    `own` is its own forecast, `first` the one that fills first: its own, or that of a volume, server or database;
    `also` fills after that. `issued` is the day of the newest issue; None: there is none.
    """
    if not about.is_active:
        gone = "No longer registered" if about.is_active is None else "Out of service"
        return Headline(f"{gone}, so there is no forecast.")
    if first is not None and not _is(first, about):
        notes = (*([_said(also, _named(also))] if also else []), *_alone(about, own))
        text = " ".join([_said(first, _named(first)), *notes])
        return _headline(first, text, thresholds, linked=_named(first))
    reason = _without_forecast(about, issued) if own is None else _without_date(about, own)
    return Headline(reason) if own is None or reason else _headline(own, _said(own), thresholds)


def next_to_fill(
    first: StoredRunway | None, thresholds: Thresholds, *, issued: date | None, unknown_limits: int = 0
) -> Headline:
    """Return the headline of the fleet or of a group."""
    if first is not None:
        named = f"{_named(first)} on {printable(first.server)}"
        if first.state == FULL:
            return _headline(first, _said(first, named), thresholds, linked=named)
        named = f"{named[0].lower()}{named[1:]}"
        return _headline(first, f"Next to fill: {_said(first, f'{named},')}", thresholds, linked=named)
    if issued is None:
        return Headline(f"No forecast yet, so no fill date is known. {_ISSUING}")
    has = "has" if unknown_limits == 1 else "have"
    unknown = f" {counted(unknown_limits, 'database')} {has} no known limit." if unknown_limits else ""
    return Headline(f"Nothing with a known limit is expected to fill within a year.{unknown}")


def limit_command(about: PageSubject) -> str:
    """Return the command that declares a limit of a server or database; its user completes the number of GiB."""
    named = [about.server, about.name] if about.subject == DATABASE else [about.server]
    return f"capacity limits set {shlex.join(named)} --gb GIB"


def _headline(runway: StoredRunway, text: str, thresholds: Thresholds, linked: str | None = None) -> Headline:
    place = (runway.subject, runway.server_id, runway.server, runway.name)
    severity = None if is_left_out(runway.decision) else severity_of(runway, thresholds)
    return Headline(text, severity, runway.full_middle, linked, *place)


def _said(runway: StoredRunway, named: str = "") -> str:
    """Return when something is full; without a name, the sentence is about the subject of the page."""
    if runway.state == FULL:
        said = f"{'is full' if named else 'Full'}: {human_mb(runway.size_mb)} of {human_mb(runway.limit_mb or 0)}."
    elif runway.full_middle is not None:
        around = range_of(runway)
        said = f"{'full' if named else 'Full'} by {human_day(runway.full_middle)}{f' ({around})' if around else ''}."
    else:
        early = f" 10 % probability by {human_day(runway.full_early)}." if runway.full_early else ""
        said = f"{'not' if named else 'Not'} expected to fill within a year.{early}"
    return f"{named} {said}{_decided(runway)}" if named else f"{said}{_decided(runway)}"


def _decided(runway: StoredRunway) -> str:
    """Return the decision on what fills, and its date with planned limits; empty without these."""
    decided = [f"{runway.decision.mark[0].upper()}{runway.decision.mark[1:]}."] if runway.decision else []
    planned = [runway.planned.sentence] if runway.planned else []
    return "".join(f" {sentence}" for sentence in (*decided, *planned))


def range_of(runway: StoredRunway) -> str:
    """Render the 80 % range of a fill date; empty if it is a single day."""
    beyond = runway.last_day + timedelta(days=HORIZONS_DAYS[-1])
    return human_range(runway.full_early or runway.full_middle, runway.full_late, beyond)


def _named(runway: StoredRunway) -> str:
    """Return the name of what fills, as the beginning of a sentence."""
    names = {VOLUME: f"Disk {runway.name}", SERVER: "Whole server", DATABASE: f"Database {runway.name}"}
    return printable(names[runway.subject])


def _is(runway: StoredRunway, about: PageSubject) -> bool:
    return (runway.server, runway.subject, runway.name) == (about.server, about.subject, about.name)


def _alone(about: PageSubject, own: StoredRunway | None) -> list[str]:
    """Return when a database would be full if nothing else grew."""
    if about.subject != DATABASE or own is None or own.state not in {FORECAST, FULL}:
        return []
    if own.full_middle is None:
        return ["On its own it would not fill within a year."]
    return [f"On its own it would be full by {human_day(own.full_middle)}."]


def _without_date(about: PageSubject, own: StoredRunway) -> str:
    """Return why a forecast has no date; empty if it has one, or nothing fills within a year."""
    if own.state == LIMIT_UNKNOWN:
        return f"No limit known, so no fill date. Declare one: `{limit_command(about)}`."
    if own.state == NO_LIMIT:
        return "Declared as unlimited, so there is no fill date."
    if own.state == TOO_LITTLE_HISTORY:
        there, missing = own.history_days, max(LEAST_HISTORY_DAYS - own.history_days, 1)
        measured = f"{there} of {LEAST_HISTORY_DAYS} days measured, {missing} more needed"
        return f"Too little history for a fill date: {measured}."
    return ""


def _without_forecast(about: PageSubject, issued: date | None) -> str:
    if about.is_gone:
        last = f"; last measured on {human_day(about.last_measured)}" if about.last_measured else ""
        return f"No longer on its server{last}."
    if about.last_measured is None:
        return "Never measured, so there is no forecast."
    if issued is None:
        return f"No forecast yet. {_ISSUING}"
    if (issued - about.last_measured).days >= STALE_DAYS:
        return f"Not measured since {human_day(about.last_measured)}, so there is no forecast."
    return f"No forecast yet. {_ISSUING}"


_ISSUING = "`capacity runway --issue` issues one now; `capacity up` does it daily."
