"""What fills soon: the risks of alerts, with facts for a responder, and the headline of a page, a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import counted, human_day, human_mb, human_probability, human_range, printable
from capacity_assets.database.engine import snapshot
from capacity_assets.forecast.decisions import StoredDecision, is_left_out
from capacity_assets.forecast.results import (
    DATABASE,
    FORECAST,
    FULL,
    LEAST_HISTORY_DAYS,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    RECENT_DAYS,
    SERVER,
    STALE_DAYS,
    TOO_LITTLE_HISTORY,
    VOLUME,
    Runway,
    display_name,
)
from capacity_assets.ownership.labels import read_labels
from capacity_assets.reading.access import rows
from capacity_assets.reading.forecasts import (
    MOST_RISKS,
    FreeCapacity,
    Severity,
    StoredRunway,
    SubjectKey,
    greatest_risks,
    needs_action,
    newest_day_of_issue,
    open_severity_of,
    runways_of,
    severity_of,
)

GROWERS_SHOWN = 3


def subject_of(key: SubjectKey, server: str) -> str:
    """Return the name of a server, or of a database or volume with its server, as people read it."""
    return f"server {server}" if key.subject == SERVER else f"{display_name(key.subject, key.name)} on {server}"


@dataclass(frozen=True)
class AlertRisk:
    """A risk that somebody has to act on."""

    key: SubjectKey
    runway: Runway
    probability: float
    """Probability of being full within the days of the thresholds."""
    labels: Mapping[str, str]
    growers: Sequence[tuple[str, int]]
    """Databases of a server or volume that grew most in the last RECENT_DAYS, with their growth in MiB."""
    decision: StoredDecision | None = None
    """The decision on it, whose risk has grown; None: none."""

    @property
    def full_by(self) -> date | None:
        """The fill date; if it is already full, the last measured day."""
        return self.runway.last_day if self.is_full else self.runway.middle_day

    @property
    def is_full(self) -> bool:
        """Whether it is full already."""
        return self.runway.state == FULL

    @property
    def range_text(self) -> str:
        """The 80 % range of that day; empty if it is a single day."""
        beyond = self.runway.last_day + timedelta(days=HORIZONS_DAYS[-1])
        return "" if self.is_full else human_range(self.runway.early_day, self.runway.late_day, beyond)


@dataclass(frozen=True)
class OpenAlert:
    """An open alert, and why it is resolved by the newest forecasts."""

    server: str
    labels: Mapping[str, str]
    reason: str | None
    """The reason why it is resolved; None: it stays open."""


@dataclass(frozen=True)
class Risks:
    """What fills soon by the newest forecasts, greatest risk first, and the state of open alerts."""

    as_of: date
    """Day of the newest forecasts; without recent ones, today."""
    risks: Sequence[AlertRisk]
    open_alerts: Mapping[SubjectKey, OpenAlert]
    installation: str
    """Identifies this database: several have the same server IDs."""

    def all_resolved(self, reason: str) -> Risks:
        """Return no risks and all open alerts as resolved for this reason."""
        resolved = {key: replace(alert, reason=reason) for key, alert in self.open_alerts.items()}
        return replace(self, risks=(), open_alerts=resolved)


def read_risks(engine: Engine, today: date, thresholds: Thresholds, opened: Collection[SubjectKey]) -> Risks:
    """Return what fills soon, and the state of the alerts `opened`.

    Without a recent forecast there are no risks, and alerts are resolved only if their server is out of service.

    Raises DatabaseError: the database failed.
    """
    with database_errors(doing="reading what fills soon"), snapshot(engine) as connection:
        newest = newest_day_of_issue(connection, today - timedelta(days=STALE_DAYS), today)
        as_of = newest or today
        risks = greatest_risks(connection, newest, today, shown=MOST_RISKS) if newest else []
        urgent = [runway for runway in risks if needs_action(runway, thresholds) and not is_left_out(runway.decision)]
        server_ids = sorted({key.server_id for key in (*opened, *(runway.key for runway in urgent))})
        servers = {row.id: row for row in rows(connection, _SERVERS, server_ids=server_ids)}
        measured = {row.id for row in rows(connection, _MEASURED, as_of=as_of, server_ids=server_ids)}
        # A server may have left service after the forecasts were issued.
        soon = [runway for runway in urgent if runway.server_id in servers and servers[runway.server_id].is_in_service]
        growers = _growers(connection, [runway.key for runway in soon if runway.subject != DATABASE])
        known = {runway.key: runway for runway in (runways_of(connection, today, opened) if newest else ())}
        installation = str(connection.execute(text(_INSTALLATION)).scalar_one())
        keys = [*opened, *(runway.key for runway in soon)]
        named = {number: row.name for number, row in servers.items()}
        names = {key: named.get(key.server_id, f"server {key.server_id}") for key in keys}
        subjects = {key: (name, key.name if key.subject == DATABASE else None) for key, name in names.items()}
        labels = read_labels(connection, list(dict.fromkeys(subjects.values())), as_of) if subjects else {}
    return Risks(
        as_of,
        [
            AlertRisk(
                runway.key,
                runway.runway,
                runway.probability_within(thresholds.days) or 0.0,
                labels.get(subjects[runway.key], {}),
                growers.get(runway.key, ()),
                runway.decision,
            )
            for runway in soon
        ],
        {
            key: OpenAlert(
                names[key],
                labels.get(subjects[key], {}),
                _reason(known.get(key), servers.get(key.server_id), thresholds, is_measured=key.server_id in measured),
            )
            for key in opened
        },
        installation,
    )


# Of a PostgreSQL cluster and a database in it; after a failover, the standby has the same.
_INSTALLATION = """
SELECT concat(c.system_identifier, '/', d.oid)
FROM pg_control_system() c CROSS JOIN pg_database d WHERE d.datname = current_database()
"""


_SERVERS = """
SELECT id, name, is_active AND deleted_at IS NULL AS is_in_service FROM instances
WHERE id = ANY (CAST(:server_ids AS integer[]))
"""
# Without the registry, because distributed tables are not joined with local ones.
_MEASURED = """
SELECT DISTINCT instance_id AS id FROM capacity_runways
WHERE as_of = :as_of AND instance_id = ANY (CAST(:server_ids AS integer[]))
"""


def _growers(connection: Connection, keys: Sequence[SubjectKey]) -> dict[SubjectKey, list[tuple[str, int]]]:
    """Return which databases grew most on servers and volumes; those on unknown volumes count for each."""
    grown = rows(connection, _GROWN, servers=[key.server_id for key in keys], days=RECENT_DAYS) if keys else ()
    return {
        key: [
            (row.name, row.change_mb)
            for row in grown
            if row.server_id == key.server_id
            and (key.subject == SERVER or row.volumes is None or key.name in row.volumes)
        ][:GROWERS_SHOWN]
        for key in keys
    }


_GROWN = """
SELECT d.server_id, d.name, d.volumes, d.size_mb - s.size_mb AS change_mb
FROM capacity_runway d
JOIN database_size_stats s ON s.instance_id = d.server_id AND s.database_name = d.name
    AND s.collected_date = d.last_day - CAST(:days AS integer)
WHERE d.subject = 'database' AND d.server_id = ANY (CAST(:servers AS integer[])) AND d.size_mb > s.size_mb
ORDER BY change_mb DESC, d.name
"""


def _reason(
    runway: StoredRunway | None, server: Row[Any] | None, thresholds: Thresholds, *, is_measured: bool
) -> str | None:
    """Return why an alert is resolved; None: it stays open, as while its risk is to be watched.

    A server that was not measured resolves nothing.
    """
    if server is None or not server.is_in_service:
        return "its server is no longer in service"
    if runway is None:
        return "it is no longer there" if is_measured else None
    if runway.state in _WITHOUT_A_DATE:
        return _WITHOUT_A_DATE[runway.state]
    if runway.decision is not None and is_left_out(runway.decision):
        return runway.decision.sentence
    probability = runway.probability_within(thresholds.days)
    if runway.state != FORECAST or probability is None or severity_of(runway, thresholds):
        return None
    day = "not full within a year" if runway.full_middle is None else f"full by {human_day(runway.full_middle)}"
    return f"{day}, within {thresholds.days} days with a probability of {human_probability(probability)}"


_WITHOUT_A_DATE = {NO_LIMIT: "it has no limit any more", LIMIT_UNKNOWN: "its limit is no longer known"}


@dataclass(frozen=True)
class PageSubject:
    """The subject of a page: a server, database or volume; `is_active` None: its server is not registered."""

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
    """A sentence on what is full first and when, with commands in backquotes."""

    text: str
    severity: Severity | None = None
    """None: not urgent, or excluded from check and alerts by the decision in the text."""
    day: date | None = None
    """The day by which it is full with a probability of 50 %; None: not within a year, or unknown."""
    linked: str | None = None
    """The part of the text that names what fills, if it is not the subject of the page."""
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
    `also` is the next one. `issued` is the day of the newest issue; None: there is none.
    """
    if not about.is_active:
        gone = "No longer registered" if about.is_active is None else "Out of service"
        return Headline(f"{gone}, so there is no forecast{_last_measured(about)}.")
    if first is not None and not _is(first, about):
        notes = (*([_sentence(also, _name_of(also))] if also else []), *_alone_text(about, own))
        text = " ".join([_sentence(first, _name_of(first)), *notes])
        return _headline(first, text, thresholds, linked=_name_of(first))
    reason = _without_forecast(about, issued) if own is None else _why_no_date(about, own)
    return Headline(reason) if own is None or reason else _headline(own, _sentence(own), thresholds)


def next_to_fill(
    first: StoredRunway | None, thresholds: Thresholds, *, issued: date | None, free: FreeCapacity | None = None
) -> Headline:
    """Return the headline of the fleet, which has its free capacity, or of a group."""
    if first is not None:
        named = f"{_name_of(first)} on {printable(first.server)}"
        if first.state == FULL:
            return _headline(first, _sentence(first, named), thresholds, linked=named)
        named = f"{named[0].lower()}{named[1:]}"
        return _headline(first, f"Next to fill: {_sentence(first, f'{named},')}", thresholds, linked=named)
    if issued is None:
        return Headline(f"No forecast yet, so no fill date is known. {_ISSUING}")
    unknown = _unknown_dates_text(free) if free else ""
    if free and free.too_little_history and not free.judged:
        return Headline(f"No fill date is known yet.{unknown}")
    return Headline(f"Nothing with a known limit is expected to fill within a year.{unknown}")


def _unknown_dates_text(free: FreeCapacity) -> str:
    """Return a sentence on the databases whose fill date is unknown; empty if there are none."""
    young, unlimited = (
        f" {counted(number, 'database')} {'has' if number == 1 else 'have'}"
        for number in (free.too_little_history, free.unknown_limits)
    )
    at_most = "at most " if free.too_little_history > 1 else ""
    measured = f"{at_most}{free.history_days} of {LEAST_HISTORY_DAYS} days measured"
    return (f"{young} too little history: {measured}." if free.too_little_history else "") + (
        f"{unlimited} no known limit." if free.unknown_limits else ""
    )


def limit_command(about: PageSubject) -> str:
    """Return the command that declares a limit of a server or database; its user completes the number of GiB."""
    named = [about.server, about.name] if about.subject == DATABASE else [about.server]
    return f"capacity limits set {shlex.join(named)} --gb GIB"


def _headline(runway: StoredRunway, text: str, thresholds: Thresholds, linked: str | None = None) -> Headline:
    place = (runway.subject, runway.server_id, runway.server, runway.name)
    return Headline(text, open_severity_of(runway, thresholds), runway.full_middle, linked, *place)


def _sentence(runway: StoredRunway, subject: str = "") -> str:
    """Return when something is full; without a name, the sentence is about the subject of the page."""
    if runway.state == FULL:
        text = f"{'is full' if subject else 'Full'}: {human_mb(runway.size_mb)} of {human_mb(runway.limit_mb or 0)}."
    elif runway.full_middle is not None:
        around = range_of(runway)
        text = f"{'full' if subject else 'Full'} by {human_day(runway.full_middle)}{f' ({around})' if around else ''}."
    else:
        early = f" 10 % probability by {human_day(runway.full_early)}." if runway.full_early else ""
        text = f"{'not' if subject else 'Not'} expected to fill within a year.{early}"
    return f"{subject} {text}{_decision_text(runway)}" if subject else f"{text}{_decision_text(runway)}"


def _decision_text(runway: StoredRunway) -> str:
    """Return the decision on what fills, and its date with planned limits; empty without these."""
    decided = [f"{runway.decision.mark[0].upper()}{runway.decision.mark[1:]}."] if runway.decision else []
    planned = [runway.planned.sentence] if runway.planned else []
    return "".join(f" {sentence}" for sentence in (*decided, *planned))


def range_of(runway: StoredRunway) -> str:
    """Render the 80 % range of a fill date; empty if it is a single day."""
    beyond = runway.last_day + timedelta(days=HORIZONS_DAYS[-1])
    return human_range(runway.full_early or runway.full_middle, runway.full_late, beyond)


def _name_of(runway: StoredRunway) -> str:
    names = {VOLUME: f"Disk {runway.name}", SERVER: "Whole server", DATABASE: f"Database {runway.name}"}
    return printable(names[runway.subject])


def _is(runway: StoredRunway, about: PageSubject) -> bool:
    return (runway.server, runway.subject, runway.name) == (about.server, about.subject, about.name)


def _alone_text(about: PageSubject, own: StoredRunway | None) -> list[str]:
    if about.subject != DATABASE or own is None or own.state not in {FORECAST, FULL}:
        return []
    if own.full_middle is None:
        return ["On its own it would not fill within a year."]
    return [f"On its own it would be full by {human_day(own.full_middle)}."]


def _why_no_date(about: PageSubject, own: StoredRunway) -> str:
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


def _last_measured(about: PageSubject) -> str:
    return f"; last measured on {human_day(about.last_measured)}" if about.last_measured else ""


def _without_forecast(about: PageSubject, issued: date | None) -> str:
    if about.is_gone:
        return f"No longer on its server{_last_measured(about)}."
    if about.last_measured is None:
        return "Never measured, so there is no forecast."
    if issued is not None and (issued - about.last_measured).days >= STALE_DAYS:
        return f"Not measured since {human_day(about.last_measured)}, so there is no forecast."
    return f"No forecast yet. {_ISSUING}"


_ISSUING = "`capacity runway --issue` issues one now; `capacity up` does it daily."
