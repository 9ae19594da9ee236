"""What somebody has to act on because it fills soon, with what a responder needs to know, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import human_day, human_range
from capacity_assets.database.engine import snapshot
from capacity_assets.database.tables import SERVERS_IN_SERVICE
from capacity_assets.forecast.decisions import StoredDecision, is_left_out, open_decisions
from capacity_assets.forecast.history_statements import DATABASE_ROWS, SERVER_ROWS, STALE_DAYS
from capacity_assets.forecast.issued import RISKS_HANDED_ON, newest_risks
from capacity_assets.forecast.outlook import (
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    RECENT_DAYS,
    Outlook,
    display_name,
)
from capacity_assets.ownership.labels import labels_of_each
from capacity_assets.reading.access import rows

GROWERS_SHOWN = 3


class RiskKey(NamedTuple):
    """A server, database or volume; `name` is empty for a server."""

    server_id: int
    subject: str
    name: str


def subject_of(key: RiskKey, server: str) -> str:
    """Name a server, or a database or volume with its server, as people read it."""
    return f"server {server}" if key.subject == SERVER_ROWS else f"{display_name(key.subject, key.name)} on {server}"


@dataclass(frozen=True)
class AlertRisk:
    """Something that fills soon."""

    key: RiskKey
    outlook: Outlook
    probability: float
    """Probability of being full within the days of the thresholds."""
    labels: Mapping[str, str]
    growers: Sequence[tuple[str, int]]
    """What of a server or volume grew most in the last RECENT_DAYS: databases and MiB."""
    decision: StoredDecision | None = None
    """What was decided, where its risk has grown past that."""

    @property
    def full_by(self) -> date | None:
        """The day on which it is full; of what is full, its last day."""
        return self.outlook.last_day if self.is_full else self.outlook.middle_day

    @property
    def is_full(self) -> bool:
        """Whether it is full already."""
        return self.outlook.state == FULL

    @property
    def range_text(self) -> str:
        """The range of that day that holds with 80 %; empty where it is a single day."""
        beyond = self.outlook.last_day + timedelta(days=HORIZONS_DAYS[-1])
        return "" if self.is_full else human_range(self.outlook.early_day, self.outlook.late_day, beyond)


@dataclass(frozen=True)
class OpenAlert:
    """An alert that is open, and why it is resolved by the newest forecasts."""

    server: str
    labels: Mapping[str, str]
    reason: str | None
    """Why nobody has to act any more; None: it stays open, or that is not known."""


@dataclass(frozen=True)
class Risks:
    """What fills soon by the newest forecasts, the greatest risk first, and what became of alerts that are open."""

    as_of: date
    """Day of the newest forecasts; without recent ones, today."""
    risks: Sequence[AlertRisk]
    open_alerts: Mapping[RiskKey, OpenAlert]
    installation: str
    """Which database this is: server numbers are the same in several."""

    def all_resolved(self, reason: str) -> Risks:
        """Return them as if nothing had to be acted on, for this reason."""
        resolved = {key: replace(alert, reason=reason) for key, alert in self.open_alerts.items()}
        return replace(self, risks=(), open_alerts=resolved)


def read_risks(engine: Engine, today: date, thresholds: Thresholds, opened: Collection[RiskKey]) -> Risks:
    """Return what fills soon, and what became of the alerts `opened`.

    Without a recent forecast nothing fills soon, and an alert ends only if its server is out of service.

    Raises:
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading what fills soon", kept="No alert was sent."), snapshot(engine) as connection:
        first = today - timedelta(days=STALE_DAYS)
        newest = newest_risks(connection, first, today, shown=RISKS_HANDED_ON, decided_on=today)
        as_of, risks = newest or (today, [])
        # A server may have been taken out of service after the forecasts were issued.
        in_service = {row.id for row in rows(connection, SERVERS_IN_SERVICE)}
        soon = {
            RiskKey(risk.instance_id, risk.outlook.subject, risk.outlook.name): risk
            for risk in risks
            if risk.is_full_within(thresholds.days, thresholds.act_percent / 100)
            and not is_left_out(risk.decision)
            and risk.instance_id in in_service
        }
        growers = _growers(connection, [key for key in soon if key.subject != DATABASE_ROWS])
        found = _open_alerts(connection, as_of, today, thresholds, opened)
        installation = str(connection.execute(text(_INSTALLATION)).scalar_one())
    named = {key: one.outlook.server for key, one in soon.items()} | {key: one.server for key, one in found.items()}
    subjects = {key: (server, key.name if key.subject == DATABASE_ROWS else None) for key, server in named.items()}
    labels = labels_of_each(engine, list(dict.fromkeys(subjects.values())), as_of) if subjects else {}
    known = [
        AlertRisk(
            key,
            one.outlook,
            one.outlook.probabilities[thresholds.days],
            labels.get(subjects[key], {}),
            growers.get(key, ()),
            one.decision,
        )
        for key, one in soon.items()
    ]
    of_open = {key: OpenAlert(one.server, labels.get(subjects[key], {}), one.reason) for key, one in found.items()}
    return Risks(as_of, known, of_open, installation)


# Of a cluster and of a database in it; a standby that takes over has the same.
_INSTALLATION = """
SELECT concat(c.system_identifier, '/', d.oid)
FROM pg_control_system() c CROSS JOIN pg_database d WHERE d.datname = current_database()
"""


def _growers(connection: Connection, keys: Sequence[RiskKey]) -> dict[RiskKey, list[tuple[str, int]]]:
    """Return what grew most on servers and volumes; a database whose volumes are unknown may lie on each."""
    grown = rows(connection, _GROWN, servers=[key.server_id for key in keys], days=RECENT_DAYS) if keys else ()
    return {
        key: [
            (row.name, row.change_mb)
            for row in grown
            if row.server_id == key.server_id
            and (key.subject == SERVER_ROWS or row.volumes is None or key.name in row.volumes)
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


def _open_alerts(
    connection: Connection, as_of: date, today: date, thresholds: Thresholds, opened: Collection[RiskKey]
) -> dict[RiskKey, OpenAlert]:
    columns = {name: [getattr(key, name) for key in opened] for name in RiskKey._fields}
    found = rows(connection, _OPEN, as_of=as_of, days=thresholds.days, **columns) if opened else ()
    decisions = open_decisions(connection, today)
    return {
        RiskKey(row.server_id, row.subject, row.name): OpenAlert(
            row.server, {}, _reason(row, thresholds, decisions.on(row))
        )
        for row in found
    }


_OPEN = """
WITH opened AS (
    SELECT * FROM unnest(CAST(:server_id AS integer[]), CAST(:subject AS varchar[]), CAST(:name AS varchar[]))
        AS o (server_id, subject, name)
), forecast AS (
    SELECT DISTINCT instance_id FROM capacity_runways
    WHERE as_of = :as_of AND instance_id = ANY (CAST(:server_id AS integer[]))
)
SELECT o.*, coalesce(i.name, concat('server ', o.server_id)) AS server, r.state, r.middle_day, r.binds, r.volumes,
       CASE CAST(:days AS integer) WHEN 7 THEN r.probability_7 WHEN 30 THEN r.probability_30
            WHEN 90 THEN r.probability_90 ELSE r.probability_365 END AS probability,
       coalesce(i.is_active AND i.deleted_at IS NULL, false) AS is_in_service, f.instance_id IS NOT NULL AS is_measured
FROM opened o
LEFT JOIN instances i ON i.id = o.server_id
LEFT JOIN forecast f ON f.instance_id = o.server_id
LEFT JOIN capacity_runways r ON r.as_of = :as_of AND r.instance_id = o.server_id
    AND r.subject = o.subject AND r.name = o.name
"""


def _reason(row: Row[Any], thresholds: Thresholds, decision: StoredDecision | None) -> str | None:
    """Say why an alert is resolved; None: it stays open.

    It does while its risk is watched. That a server was not measured resolves nothing.
    """
    if not row.is_in_service:
        return "its server is no longer in service"
    if row.state is None:
        return "it is no longer there" if row.is_measured else None
    if row.state in _WITHOUT_A_DATE:
        return _WITHOUT_A_DATE[row.state]
    if decision is not None and is_left_out(decision):
        return decision.sentence
    if row.state != FORECAST or row.probability is None or row.probability >= thresholds.watch_percent / 100:
        return None
    day = "not full within a year" if row.middle_day is None else f"full on {human_day(row.middle_day)}"
    return f"{day}, within {thresholds.days} days with a probability of {100 * row.probability:.0f} %"


_WITHOUT_A_DATE = {NO_LIMIT: "it has no limit any more", LIMIT_UNKNOWN: "its limit is no longer known"}
