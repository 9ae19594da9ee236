"""What alerts are about: what fills soon, with facts for a responder, and why open alerts are resolved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import human_day, human_range
from capacity_assets.database.engine import snapshot
from capacity_assets.forecast.decisions import StoredDecision, is_left_out
from capacity_assets.forecast.results import (
    DATABASE,
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    RECENT_DAYS,
    SERVER,
    STALE_DAYS,
    Runway,
    display_name,
)
from capacity_assets.ownership.labels import labels_of_each
from capacity_assets.reading.access import rows
from capacity_assets.reading.forecasts import (
    MOST_RISKS,
    StoredRunway,
    SubjectKey,
    greatest_risks,
    needs_action,
    newest_day_of_issue,
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
        """The fill date; for what is full already, the last measured day."""
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
    """Why nobody has to act any more; None: it stays open."""


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

    Raises:
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading what fills soon", kept="No alert was sent."), snapshot(engine) as connection:
        newest = newest_day_of_issue(connection, today - timedelta(days=STALE_DAYS), today)
        as_of = newest or today
        risks = greatest_risks(connection, newest, today, shown=MOST_RISKS) if newest else []
        urgent = [one for one in risks if needs_action(one, thresholds) and not is_left_out(one.decision)]
        server_ids = sorted({key.server_id for key in (*opened, *(one.key for one in urgent))})
        servers = {row.id: row for row in rows(connection, _SERVERS, server_ids=server_ids)}
        measured = {row.id for row in rows(connection, _MEASURED, as_of=as_of, server_ids=server_ids)}
        # A server may have left service after the forecasts were issued.
        soon = [one for one in urgent if one.server_id in servers and servers[one.server_id].is_in_service]
        growers = _growers(connection, [one.key for one in soon if one.subject != DATABASE])
        known = {one.key: one for one in (runways_of(connection, today, opened) if newest else ())}
        installation = str(connection.execute(text(_INSTALLATION)).scalar_one())
    keys = [*opened, *(one.key for one in soon)]
    named = {number: row.name for number, row in servers.items()}
    names = {key: named.get(key.server_id, f"server {key.server_id}") for key in keys}
    subjects = {key: (name, key.name if key.subject == DATABASE else None) for key, name in names.items()}
    labels = labels_of_each(engine, list(dict.fromkeys(subjects.values())), as_of) if subjects else {}
    return Risks(
        as_of,
        [
            AlertRisk(
                one.key,
                one.runway,
                one.probability_within(thresholds.days) or 0.0,
                labels.get(subjects[one.key], {}),
                growers.get(one.key, ()),
                one.decision,
            )
            for one in soon
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


# Of a PostgreSQL cluster and a database in it; a standby that takes over has the same.
_INSTALLATION = """
SELECT concat(c.system_identifier, '/', d.oid)
FROM pg_control_system() c CROSS JOIN pg_database d WHERE d.datname = current_database()
"""


_SERVERS = """
SELECT id, name, is_active AND deleted_at IS NULL AS is_in_service FROM instances
WHERE id = ANY (CAST(:server_ids AS integer[]))
"""
# Apart from the registry: distributed tables are not joined with local ones.
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
    day = "not full within a year" if runway.full_middle is None else f"full on {human_day(runway.full_middle)}"
    return f"{day}, within {thresholds.days} days with a probability of {100 * probability:.0f} %"


_WITHOUT_A_DATE = {NO_LIMIT: "it has no limit any more", LIMIT_UNKNOWN: "its limit is no longer known"}
