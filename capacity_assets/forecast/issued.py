"""Reads issued runways: the greatest risks of a day, the headroom, and the errors of earlier forecasts.

A score compares a forecast with the size that was measured on its day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.database.tables import USED_MB
from capacity_assets.database.views import (
    DECLARED_LIMIT,
    LAST_DECLARED,
    LIMIT_IS_GONE,
    STANDS_FOR_ITSELF,
    UNKNOWN_LIMITS,
    error_measures,
    headroom,
)
from capacity_assets.forecast.history_statements import STALE_DAYS
from capacity_assets.forecast.outlook import Outlook


@dataclass(frozen=True)
class Score:
    """The forecasts of one horizon that came due on a day."""

    horizon_days: int
    forecasts: int
    error_percent: float | None
    """Mean absolute error in percent of the measured size; None: every measured size was 0."""
    relative_error: float | None
    """Sum of absolute errors, relative to that of "the last size stays"; None: no size had changed."""
    covered_percent: float
    """Share of measured sizes within the band of 80 percent."""
    above_percent: float
    """Share of those above it: full sooner than forecast."""
    in_hindsight: int
    """Forecasts that were not issued on their day, but computed later from the samples up to it."""

    def to_dict(self) -> dict[str, object]:
        """Return plain values, each with the horizon in its name."""
        days = self.horizon_days
        values = {
            f"scored_{days}_days": self.forecasts,
            f"error_{days}_days_percent": self.error_percent,
            f"relative_error_{days}_days": self.relative_error,
            f"covered_{days}_days_percent": self.covered_percent,
            f"above_{days}_days_percent": self.above_percent,
        }
        return {key: value for key, value in values.items() if value is not None}


def score(connection: Connection, as_of: date, today: date) -> None:
    """Store the measured sizes with the forecasts that came due since the previous issue, and with those of this issue.

    Forecasts due on other days whose samples arrived or changed since are scored as well: a forecast is scored by the
    sample of its due day, whenever that arrives. Forecasts of a past day issued in hindsight may have come due long
    ago.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    spans = [(_DUE, first, last) for first, last in changed_spans(connection, as_of, today)]
    spans.append((_OWN, as_of, today))
    for days in HORIZONS_DAYS:
        for subject, measured in _MEASURED.items():
            for due, since, until in spans:
                statement = _SCORE.format(days=days, measured=measured, subject=subject, due=due.format(days=days))
                statement += _IS_COMPARABLE.get(subject, "")
                asked = {"since": since, "until": until, "stale": STALE_DAYS, "days": days, "as_of": as_of}
                connection.execute(text(statement), asked)


def changed_spans(connection: Connection, as_of: date, today: date) -> list[tuple[date, date]]:
    """Return spans of days with samples that are new since the issue before a day; raises like `score`.

    Neighbouring days are merged into one span: few statements matter more than few rows.
    """
    before: date = connection.execute(text(_ISSUE_BEFORE), {"as_of": as_of}).scalar() or as_of
    # An issue is computed on its day or the next one, and days begin earlier in other time zones.
    spans = [(before - timedelta(days=1), as_of)]
    asked = {"since": spans[0][0], "as_of": as_of}
    is_past = as_of < today - timedelta(days=1)
    # Issuing a past day scores that day only.
    changed = () if is_past else connection.execute(text(_CHANGED_DAYS), asked).scalars()
    for day in changed:
        first, last = spans[0]
        if first - day > timedelta(days=STALE_DAYS):
            spans.insert(0, (day, day))
        else:
            spans[0] = (min(day, first), last)
    return spans


def scores_of(connection: Connection, first: date, last: date, server: str | None = None) -> Sequence[Score]:
    """Return the scores of the forecasts that came due from `first` to `last`, by horizon; raises as `score`."""
    found = []
    for days in HORIZONS_DAYS:
        statement = _SCORES.format(days=days, due=_DUE.format(days=days))
        asked = {"since": first, "until": last, "stale": STALE_DAYS, "days": days, "server": server}
        row = connection.execute(text(statement), asked).one()
        if row.forecasts:
            found.append(Score(days, *row))
    return found


_MEASURED = {
    "database": "SELECT instance_id, database_name AS name, collected_date, size_mb FROM database_size_stats",
    # A void total has no size: a size stored before is removed.
    "server": "SELECT instance_id, '' AS name, collected_date, "
    "sum(total_size_mb) FILTER (WHERE NOT is_deleted) AS size_mb FROM instance_size_stats "
    "GROUP BY instance_id, collected_date",
    "volume": f"SELECT v.*, v.volume_name AS name, {USED_MB.format('v')} AS size_mb FROM volume_size_stats v",  # noqa: S608 -- our own
}
# A volume forecast is not scored by the used size if that was unknown on the day of the forecast.
_IS_COMPARABLE = {
    "volume": "AND NOT EXISTS (SELECT FROM volume_size_stats v WHERE v.instance_id = r.instance_id "
    "AND v.volume_name = r.name AND v.collected_date = r.last_day AND (v.used_mb IS NULL) <> (s.used_mb IS NULL))"
}
_ISSUE_BEFORE = "SELECT max(as_of) FROM capacity_runways WHERE as_of < :as_of"
# Days of late and corrected samples: those a window has not followed yet, and those it followed since.
_CHANGED_DAYS = """
SELECT day FROM (
    SELECT period_start AS day FROM capacity_stale_windows
          WHERE period_type = 'daily' AND newest_change IS NOT NULL AND NOT has_its_sums
    UNION SELECT period_start FROM capacity_computed_windows
          WHERE period_type = 'daily' AND computed_at >= CAST(:since AS date)
    UNION SELECT collected_date FROM volume_size_stats WHERE collected_at >= CAST(:since AS date)
) AS changed WHERE day < :as_of ORDER BY day DESC
"""
# A forecast is of the day of its last sample, which may be older than the day of its issue, but not stale.
_DUE = """r.as_of BETWEEN CAST(:since AS date) - :days AND CAST(:until AS date) - :days + :stale
  AND r.last_day + :days BETWEEN CAST(:since AS date) AND CAST(:until AS date) AND r.forecast_{days}_mb IS NOT NULL"""
_OWN = """r.as_of = :as_of AND r.last_day + :days <= CAST(:until AS date) AND r.forecast_{days}_mb IS NOT NULL"""
_SCORE = """
UPDATE capacity_runways r SET actual_{days}_mb = s.size_mb FROM ({measured}) AS s
WHERE r.subject = '{subject}' AND s.instance_id = r.instance_id AND s.name = r.name
  AND s.collected_date BETWEEN CAST(:since AS date) - :stale AND CAST(:until AS date)
  AND s.collected_date = r.last_day + :days AND r.actual_{days}_mb IS DISTINCT FROM s.size_mb AND {due}
"""
_MEASURES = error_measures(
    "r.actual_{days}_mb", "r.forecast_{days}_mb", "r.lower_{days}_mb", "r.upper_{days}_mb", "r.size_mb"
)
_SCORES = f"""
SELECT count(*) AS forecasts, {", ".join(f"CAST({one} AS float8) AS {name}" for name, one in _MEASURES.items())},
       count(*) FILTER (WHERE NOT r.in_time) AS in_hindsight
FROM capacity_runways r
WHERE r.actual_{{days}}_mb IS NOT NULL AND {{due}}
  AND (CAST(:server AS text) IS NULL OR r.instance_id = (SELECT i.id FROM instances i WHERE i.name = :server))
"""  # noqa: S608 -- expressions of our own


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
    """Scores of the forecasts that came due in the chosen days, by horizon."""

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
