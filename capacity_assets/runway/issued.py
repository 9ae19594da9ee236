"""Reads issued runways back: the greatest risks of a day, what is left, and how far earlier forecasts were off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.errors import database_errors
from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.runway.history_statements import STALE_DAYS
from capacity_assets.runway.outlook import Outlook
from capacity_assets.runway.scores import Score, scores_of
from capacity_assets.storage.limit_tables import USED_MB
from capacity_assets.storage.runway_views import (
    DECLARED_LIMIT,
    LAST_DECLARED,
    LIMIT_IS_GONE,
    STANDS_FOR_ITSELF,
    UNKNOWN_LIMITS,
    headroom,
)

HISTORY_SHOWN_DAYS = 180


@dataclass(frozen=True)
class Band:
    """What is forecast over a horizon: the lower end, the middle and the upper end, MiB."""

    lower_mb: int
    middle_mb: int
    upper_mb: int


@dataclass(frozen=True)
class Risk:
    """Something that may be full within a year: when, and its bands by horizon."""

    instance_id: int
    outlook: Outlook
    bands: Mapping[int, Band]
    history: Sequence[tuple[date, int]] = ()
    """Sizes of the last HISTORY_SHOWN_DAYS by day, once they are asked for by `with_histories`."""


@dataclass(frozen=True)
class IssuedDay:
    """The runways of one day."""

    as_of: date
    issued_at: datetime
    """When the newest of them was computed."""
    is_outdated: bool
    """Whether limits or steps were declared, or limits removed, since."""
    risks: Sequence[Risk]
    """The greatest ones first, each said by one row."""
    headroom_mb: int | None
    """What the volumes have left, and servers without measured volumes by their declared limit; None: none is known."""
    unknown_limits: int
    """Databases of which no limit is known."""
    scores: Sequence[Score]
    """Of the forecasts that came due in the days that were asked for, by horizon."""

    def within(self, days: int, probability: float) -> list[Outlook]:
        """Return what is full within so many days with at least this probability."""
        return [risk.outlook for risk in self.risks if risk.outlook.probabilities[days] >= probability]


def newest_issue(
    connection: Connection, first: date, last: date, server: str | None = None, *, shown: int
) -> IssuedDay | None:
    """Return the newest issue from `first` to `last`, of all servers or one; None: none. Raises DBAPIError."""
    days = {"first": first, "last": last}
    as_of = connection.execute(text(_NEWEST), days).scalar()
    if as_of is None:
        return None
    asked = {"as_of": as_of, "server": server}
    rows = connection.execute(text(_RISKS), {**asked, "shown": shown}).all()
    risks = [Risk(row.instance_id, _outlook(row), _bands(row)) for row in rows]
    counts = connection.execute(text(_COUNTS), asked).one()
    headroom = None if counts.headroom_mb is None else int(counts.headroom_mb)
    issued = (as_of, counts.issued_at, counts.is_outdated)
    return IssuedDay(*issued, risks, headroom, counts.unknown_limits, scores_of(connection, first, last, server))


def recent_issue(engine: Engine, today: date, *, shown: int) -> IssuedDay | None:
    """Return the newest issue of the last month, of all servers; None: there is none. Raises DatabaseError."""
    doing = database_errors(doing="reading runways", kept="Nothing was changed.")
    with doing, engine.connect() as connection:
        return newest_issue(connection, today - timedelta(days=STALE_DAYS), today, shown=shown)


def _outlook(row: Row[tuple[object, ...]]) -> Outlook:
    return Outlook(
        server=row.server,
        database=row.name if row.subject == "database" else None,
        volume=row.name if row.subject == "volume" else None,
        last_day=row.last_day,
        size_mb=row.size_mb,
        limit_mb=row.limit_mb,
        binds=row.binds,
        source=row.limit_source,
        headroom_mb=row.limit_mb - row.size_mb,
        change_mb_per_day=row.change_mb_per_day,
        recent_mb_per_day=row.recent_mb_per_day,
        history_days=row.history_days,
        state=row.state,
        early_day=row.early_day,
        middle_day=row.middle_day,
        late_day=row.late_day,
        probabilities={days: getattr(row, f"probability_{days}") for days in HORIZONS_DAYS},
    )


def _bands(row: Row[tuple[object, ...]]) -> dict[int, Band]:
    names = ("lower", "forecast", "upper")
    ends = {days: [getattr(row, f"{name}_{days}_mb") for name in names] for days in HORIZONS_DAYS}
    return {days: Band(*three) for days, three in ends.items() if None not in three}


@dataclass(frozen=True)
class Said:
    """What was issued of one subject a horizon ago, and what was measured since."""

    horizon_days: int
    as_of: date
    state: str
    middle_day: date | None
    forecast_mb: int | None
    actual_mb: int | None


def said_before(connection: Connection, outlook: Outlook) -> list[Said]:
    """Return what the newest issues said that are a horizon old, by horizon. Raises as `newest_issue`."""
    asked = {
        "server": outlook.server,
        "subject": outlook.subject,
        "name": outlook.name,
        "day": outlook.last_day,
        "stale": STALE_DAYS,
    }
    return [Said(*row) for row in connection.execute(text(_SAID), asked)]


def with_histories(connection: Connection, issue: IssuedDay) -> IssuedDay:
    """Return the issue with the sizes before, for charts; few risks are meant to be in it. Raises as `newest_issue`."""
    asked = {
        "ids": [risk.instance_id for risk in issue.risks],
        "subjects": [risk.outlook.subject for risk in issue.risks],
        "names": [risk.outlook.name for risk in issue.risks],
        "days": [issue.as_of - timedelta(days=back) for back in range(HISTORY_SHOWN_DAYS + 1)],
    }
    found: dict[tuple[int, str, str], list[tuple[date, int]]] = {}
    for row in connection.execute(text(_HISTORY), asked):
        found.setdefault((row.instance_id, row.subject, row.name), []).append((row.day, row.size_mb))
    risks = [
        replace(risk, history=found.get((risk.instance_id, risk.outlook.subject, risk.outlook.name), ()))
        for risk in issue.risks
    ]
    return replace(issue, risks=risks)


_NEWEST = "SELECT max(as_of) FROM capacity_runways WHERE as_of BETWEEN :first AND :last"
_ORDER = ", ".join(f"r.probability_{days} DESC" for days in HORIZONS_DAYS)
_RISKS = f"""
SELECT r.*, coalesce(i.name, 'server ' || r.instance_id) AS server
FROM capacity_runways r LEFT JOIN instances i ON i.id = r.instance_id
WHERE r.as_of = :as_of AND r.probability_{HORIZONS_DAYS[-1]} > 0
  AND (CAST(:server AS text) IS NULL OR i.name = :server)
  AND {STANDS_FOR_ITSELF}
ORDER BY {_ORDER}, r.early_day NULLS LAST, server, r.name LIMIT :shown
"""  # noqa: S608 -- horizons and names of our own
_COUNTS = f"""
WITH left_over AS (
    SELECT r.instance_id AS server_id, r.subject, r.limit_mb - r.size_mb AS headroom_mb,
           i.counted_by IS NULL OR CAST(:server AS text) IS NOT NULL AS counted
    FROM capacity_runways r LEFT JOIN instances i ON i.id = r.instance_id
    WHERE r.as_of = :as_of AND r.subject <> 'database' AND (CAST(:server AS text) IS NULL OR i.name = :server)
)
SELECT ({headroom("left_over")}) AS headroom_mb,
       (SELECT {UNKNOWN_LIMITS} FROM capacity_runways r LEFT JOIN instances i ON i.id = r.instance_id
        WHERE r.as_of = :as_of AND (CAST(:server AS text) IS NULL OR i.name = :server)) AS unknown_limits,
       newest.issued_at,
       EXISTS (SELECT 1 FROM capacity_runways r JOIN {LAST_DECLARED} AS d ON d.instance_id = r.instance_id
               WHERE r.as_of = :as_of AND d.last_at > r.issued_at)
           OR EXISTS (SELECT 1 FROM capacity_runways r {DECLARED_LIMIT} WHERE r.as_of = :as_of AND {LIMIT_IS_GONE})
       AS is_outdated
FROM (SELECT max(issued_at) AS issued_at FROM capacity_runways WHERE as_of = :as_of) AS newest
"""  # noqa: S608 -- names of our own
_SAID = " UNION ALL ".join(
    f"""
SELECT {days}, r.as_of, r.state, r.middle_day, r.forecast_{days}_mb, r.actual_{days}_mb
FROM capacity_runways r JOIN instances i ON i.id = r.instance_id AND i.name = :server
WHERE r.subject = :subject AND r.name = :name AND r.as_of = (
    SELECT max(n.as_of) FROM capacity_runways n
    WHERE n.as_of <= CAST(:day AS date) - {days} AND n.as_of > CAST(:day AS date) - {days} - :stale)"""  # noqa: S608
    for days in HORIZONS_DAYS
)
# Samples, and where retention has dropped them, the daily aggregates.
_HISTORY = f"""
WITH asked AS (
    SELECT * FROM unnest(CAST(:ids AS integer[]), CAST(:subjects AS varchar[]), CAST(:names AS varchar[]))
        AS g (instance_id, subject, name)
)
SELECT DISTINCT ON (instance_id, subject, name, day) * FROM (
    SELECT g.*, s.collected_date AS day, s.size_mb, 1 AS rank FROM asked g
    JOIN database_size_stats s ON s.instance_id = g.instance_id AND s.database_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, a.period_start, a.avg_size_mb, 2 FROM asked g
    JOIN database_size_aggregations a ON a.instance_id = g.instance_id AND a.database_name = g.name
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, s.collected_date, s.total_size_mb, 1 FROM asked g
    JOIN instance_size_stats s ON s.instance_id = g.instance_id AND NOT s.is_deleted
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, a.period_start, a.total_size_mb, 2 FROM asked g
    JOIN instance_size_aggregations a ON a.instance_id = g.instance_id
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, s.collected_date, {USED_MB.format("s")}, 1 FROM asked g
    JOIN volume_size_stats s ON s.instance_id = g.instance_id AND s.volume_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'volume'
) AS sizes ORDER BY instance_id, subject, name, day, rank
"""  # noqa: S608 -- an expression of our own
