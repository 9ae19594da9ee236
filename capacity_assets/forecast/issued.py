"""Reads issued runways: the greatest risks of a day, the headroom, and the errors of earlier forecasts.

A score compares a forecast with the size that was measured on its day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.database.sql import with_parts
from capacity_assets.database.tables import capacity_runways, instances, is_active, volume_size_stats
from capacity_assets.database.views import DECLARED_FOR_FORECASTS, STANDS_FOR_ITSELF, headroom
from capacity_assets.forecast.decisions import StoredDecision, open_decisions
from capacity_assets.forecast.history_statements import (
    COMPLETE_GROUP_DAYS,
    GROUP_ROWS,
    LAST_MEASURED,
    OF_NO_SERVER,
    STALE_DAYS,
)
from capacity_assets.forecast.outlook import RISK_DAYS, Outlook, PlannedOutlook


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
    runways = capacity_runways.c
    spans = changed_spans(connection, as_of, today)
    in_service = connection.execute(sa.select(instances.c.id).where(is_active())).scalars().all()
    for days in HORIZONS_DAYS:
        is_forecast = runways[f"forecast_{days}_mb"].is_not(None)
        is_own = sa.and_(runways.as_of == as_of, runways.last_day + days <= today, is_forecast)
        for subject in _MEASURED:
            for span in spans:
                connection.execute(_scoring(subject, days, span, _is_due(days, *span), in_service))
            connection.execute(_scoring(subject, days, (as_of, today), is_own, in_service))


def _scoring(
    subject: str, days: int, span: tuple[date, date], is_due: sa.ColumnElement[bool], in_service: Sequence[int]
) -> sa.Update:
    """Return the statement that stores the sizes measured on the days for which forecasts of a horizon were made."""
    first, last = span
    runways, volumes = capacity_runways.c, volume_size_stats.c
    query = text(_MEASURED[subject])
    if subject == GROUP_ROWS:
        query = query.bindparams(**_days_around(first, last), instance_ids=in_service)
    measured = query.columns(*_COLUMNS_OF_MEASURED).subquery("measured")
    actual_mb = runways[f"actual_{days}_mb"]
    scoring = sa.update(capacity_runways).where(
        runways.subject == subject,
        measured.c.instance_id == runways.instance_id,
        measured.c.name == runways.name,
        measured.c.collected_date.between(first - timedelta(days=STALE_DAYS), last),
        measured.c.collected_date == runways.last_day + days,
        actual_mb.is_distinct_from(measured.c.size_mb),
        is_due,
    )
    if subject == "volume":
        # A volume forecast is not scored by the used size if that was unknown on the day of the forecast.
        of_forecast = sa.select(volumes.used_mb).where(
            volumes.instance_id == runways.instance_id,
            volumes.volume_name == runways.name,
            volumes.collected_date == runways.last_day,
            volumes.used_mb.is_(None) != measured.c.used_mb.is_(None),
        )
        scoring = scoring.where(~of_forecast.correlate(capacity_runways, measured).exists())
    return scoring.values({actual_mb: measured.c.size_mb})


def _days_around(first: date, last: date) -> dict[str, object]:
    """Return the parameters of the complete days of groups: enough days around for `COMPLETE_GROUP_DAYS` to judge."""
    until = last + timedelta(days=14)
    return {
        "before_first": first - timedelta(days=STALE_DAYS + 15),
        "as_of": until,
        "recent_days": [until - timedelta(days=back) for back in range(STALE_DAYS + 14)],
    }


def _is_due(days: int, first: date, last: date) -> sa.ColumnElement[bool]:
    """Return the condition that a forecast came due from `first` to `last`.

    A forecast begins at its last sample, which may be older than its issue, but not stale.
    """
    runways, ahead, stale = capacity_runways.c, timedelta(days=days), timedelta(days=STALE_DAYS)
    return sa.and_(
        runways.as_of.between(first - ahead, last - ahead + stale),
        # With this sum, PostgreSQL looks up the samples of the due days; with other bounds instead, it reads them all.
        (runways.last_day + days).between(first, last),
        runways[f"forecast_{days}_mb"].is_not(None),
    )


def changed_spans(connection: Connection, as_of: date, today: date) -> list[tuple[date, date]]:
    """Return spans of days with samples that are new since the issue before a day; raises like `score`.

    Neighbouring days are merged into one span: few statements matter more than few rows.
    """
    before: date = connection.execute(text(_ISSUE_BEFORE), {"as_of": as_of}).scalar() or as_of
    # An issue is computed on its day or the next one, and days begin earlier in other time zones.
    spans = [(before - timedelta(days=1), as_of)]
    is_past = as_of < today - timedelta(days=1)
    # Issuing a past day scores that day only.
    since = {"since": spans[0][0], "as_of": as_of}
    changed = () if is_past else connection.execute(text(_CHANGED_DAYS), since).scalars()
    for day in changed:
        first, last = spans[0]
        if first - day > timedelta(days=STALE_DAYS):
            spans.insert(0, (day, day))
        else:
            spans[0] = (min(day, first), last)
    return spans


def scores_of(connection: Connection, first: date, last: date, server: str | None = None) -> Sequence[Score]:
    """Return the scores of the forecasts that came due from `first` to `last`, by horizon; raises as `score`."""
    scores = []
    for days in HORIZONS_DAYS:
        runways = capacity_runways.c
        names = {f"{name}_{days}_mb": f"{name}_mb" for name in ("actual", "forecast", "lower", "upper")}
        sizes = (runways[name].label(label) for name, label in names.items())
        due = sa.select(runways.size_mb, runways.in_time, *sizes).where(
            _is_due(days, first, last), runways[f"actual_{days}_mb"].is_not(None), runways.subject != GROUP_ROWS
        )
        if server is not None:
            number = sa.select(instances.c.id).where(instances.c.name == server).scalar_subquery()
            due = due.where(runways.instance_id == number)
        row = connection.execute(text(_SCORES).columns().add_cte(due.cte("due"))).one()
        if row.forecasts:
            scores.append(Score(days, *row))
    return scores


_MEASURED = {
    "database": "SELECT instance_id, database_name AS name, collected_date, size_mb FROM database_size_stats",
    # A void total has no size: a size stored before is removed.
    "server": """
SELECT instance_id, '' AS name, collected_date, sum(total_size_mb) FILTER (WHERE NOT is_deleted) AS size_mb
FROM instance_size_stats GROUP BY instance_id, collected_date""",
    "volume": """
SELECT instance_id, volume_name AS name, collected_date, used_mb, coalesce(used_mb, total_mb - free_mb) AS size_mb
FROM volume_size_stats""",
    GROUP_ROWS: f"""
WITH last_measured AS MATERIALIZED ({LAST_MEASURED}),
     complete_group_days AS ({COMPLETE_GROUP_DAYS})
SELECT {OF_NO_SERVER} AS instance_id, label_key || '=' || label_value AS name, day AS collected_date, size_mb
FROM complete_group_days""",  # noqa: S608 -- statements of our own
}
_COLUMNS_OF_MEASURED: list[sa.ColumnClause[Any]] = [
    sa.column(name) for name in ("instance_id", "name", "collected_date", "used_mb", "size_mb")
]
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
# As the view `capacity_forecast_errors` has them; what was not measured is left out.
SCORED = """
       count(actual_mb) AS forecasts,
       CAST(round(avg(abs(actual_mb - forecast_mb) * 100.0 / nullif(actual_mb, 0)), 2) AS float8) AS error_percent,
       CAST(round(sum(abs(actual_mb - forecast_mb)) / nullif(sum(abs(actual_mb - size_mb)), 0), 3) AS float8)
           AS relative_error,
       CAST(round(avg(100 * CAST(actual_mb BETWEEN lower_mb AND upper_mb AS integer)), 1) AS float8) AS covered_percent,
       CAST(round(avg(100 * CAST(actual_mb > upper_mb AS integer)), 1) AS float8) AS above_percent,
       count(actual_mb) FILTER (WHERE NOT in_time) AS in_hindsight"""
"""The columns of a score, over rows with actual_mb, forecast_mb, lower_mb, upper_mb, size_mb and in_time."""
_SCORES = f"SELECT {SCORED} FROM due"  # noqa: S608 -- columns of our own


HISTORY_SHOWN_DAYS = 180
RISKS_HANDED_ON = 1_000
"""Risks that an issue hands on; who shows them shows fewer."""


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
    """Sizes of the last HISTORY_SHOWN_DAYS by day; `with_histories` adds them."""
    decision: StoredDecision | None = None
    """What was decided about it, or about the volume or server that binds it; None: nothing that is still open."""

    def is_full_within(self, days: int, probability: float) -> bool:
        """Whether it is full within so many days with at least this probability."""
        return self.outlook.probabilities[days] >= probability


@dataclass(frozen=True)
class IssuedDay:
    """The runways of one day."""

    as_of: date
    issued_at: datetime
    """When the newest of them was computed."""
    is_outdated: bool
    """Whether limits, steps or plans were declared or removed since."""
    risks: Sequence[Risk]
    """The greatest ones first; a volume or limit that several subjects share is named once."""
    headroom_mb: int | None
    """What the volumes have left, and servers without measured volumes by their declared limit; None: none is known."""
    unknown_limits: int
    """Databases without a known limit."""
    scores: Sequence[Score]
    """Scores of the forecasts that came due in the chosen days, by horizon."""

    def within(self, days: int, probability: float) -> list[Risk]:
        """Return what is full within so many days with at least this probability."""
        return [risk for risk in self.risks if risk.is_full_within(days, probability)]


def newest_issue(  # noqa: PLR0913 -- which issue, and which part of it
    connection: Connection,
    first: date,
    last: date,
    server: str | None = None,
    *,
    shown: int,
    decided_on: date | None = None,
) -> IssuedDay | None:
    """Return the newest issue from `first` to `last`, of all servers or one; None: none. Raises DBAPIError.

    Its decisions are those that are open on `decided_on`; None: on the day of the issue.
    """
    newest = newest_risks(connection, first, last, server, shown=shown, decided_on=decided_on)
    if newest is None:
        return None
    as_of, risks = newest
    query = with_parts(_COUNTS, left_over=_LEFT_OVER, headroom=headroom("left_over"), declared=DECLARED_FOR_FORECASTS)
    counts = connection.execute(query, {"as_of": as_of, "server": server}).one()
    headroom_mb = None if counts.headroom_mb is None else int(counts.headroom_mb)
    issued = (as_of, counts.issued_at, counts.is_outdated)
    return IssuedDay(*issued, risks, headroom_mb, counts.unknown_limits, scores_of(connection, first, last, server))


def newest_risks(  # noqa: PLR0913 -- which issue, and which part of it
    connection: Connection,
    first: date,
    last: date,
    server: str | None = None,
    *,
    shown: int,
    decided_on: date | None = None,
) -> tuple[date, list[Risk]] | None:
    """Return the day and the greatest risks of the newest issue; as `newest_issue`."""
    as_of = connection.execute(text(_NEWEST), {"first": first, "last": last}).scalar()
    if as_of is None:
        return None
    rows = connection.execute(_risks(as_of, server).limit(shown)).all()
    decisions = open_decisions(connection, decided_on or as_of)
    return as_of, [Risk(row.instance_id, _outlook(row), _bands(row), decision=decisions.on(row)) for row in rows]


def recent_issue(engine: Engine, today: date, *, shown: int) -> IssuedDay | None:
    """Return the newest issue of the last month, of all servers; None: there is none. Raises DatabaseError."""
    doing = database_errors(doing="reading runways")
    with doing, engine.connect() as connection:
        return newest_issue(connection, today - timedelta(days=STALE_DAYS), today, shown=shown, decided_on=today)


def _outlook(row: Row[tuple[object, ...]]) -> Outlook:
    columns = ("server", "last_day", "size_mb", "limit_mb", "binds", "change_mb_per_day", "recent_mb_per_day")
    more = ("history_days", "state", "early_day", "middle_day", "late_day")
    return Outlook(
        **{name: getattr(row, name) for name in (*columns, *more)},
        database=row.name if row.subject == "database" else None,
        volume=row.name if row.subject == "volume" else None,
        source=row.limit_source,
        headroom_mb=row.limit_mb - row.size_mb,
        probabilities={days: getattr(row, f"probability_{days}") for days in HORIZONS_DAYS},
        planned=_planned(row),
        volumes=row.volumes,
    )


def _planned(row: Row[tuple[object, ...]]) -> PlannedOutlook | None:
    names = ("day", "limit_mb", "early_day", "middle_day", "late_day")
    values = [getattr(row, f"planned_{name}") for name in names]
    return None if values[0] is None else PlannedOutlook(*values)


def _bands(row: Row[tuple[object, ...]]) -> dict[int, Band]:
    names = ("lower", "forecast", "upper")
    ends = {days: [getattr(row, f"{name}_{days}_mb") for name in names] for days in HORIZONS_DAYS}
    return {days: Band(*three) for days, three in ends.items() if None not in three}


@dataclass(frozen=True)
class EarlierForecast:
    """What was issued of one subject a horizon ago, and what was measured since."""

    horizon_days: int
    as_of: date
    state: str
    middle_day: date | None
    forecast_mb: int | None
    actual_mb: int | None


def earlier_forecasts(connection: Connection, outlook: Outlook) -> list[EarlierForecast]:
    """Return the newest forecasts of a subject that are a horizon old, by horizon. Raises as `newest_issue`."""
    runways, issues = capacity_runways.c, capacity_runways.alias("issues").c
    number = sa.select(instances.c.id).where(instances.c.name == outlook.server).scalar_subquery()
    forecasts = []
    for days in HORIZONS_DAYS:
        until = outlook.last_day - timedelta(days=days)
        is_recent = sa.and_(issues.as_of <= until, issues.as_of > until - timedelta(days=STALE_DAYS))
        sizes = (runways[f"forecast_{days}_mb"], runways[f"actual_{days}_mb"])
        forecasts.append(
            sa.select(sa.literal(days), runways.as_of, runways.state, runways.middle_day, *sizes).where(
                runways.instance_id == number,
                runways.subject == outlook.subject,
                runways.name == outlook.name,
                runways.as_of == sa.select(sa.func.max(issues.as_of)).where(is_recent).scalar_subquery(),
            )
        )
    return [EarlierForecast(*row) for row in connection.execute(sa.union_all(*forecasts))]


def with_histories(connection: Connection, issue: IssuedDay) -> IssuedDay:
    """Return the issue with the sizes before, for charts; few risks are meant to be in it. Raises as `newest_issue`."""
    parameters = {
        "ids": [risk.instance_id for risk in issue.risks],
        "subjects": [risk.outlook.subject for risk in issue.risks],
        "names": [risk.outlook.name for risk in issue.risks],
        "days": [issue.as_of - timedelta(days=back) for back in range(HISTORY_SHOWN_DAYS + 1)],
    }
    sizes: dict[tuple[int, str, str], list[tuple[date, int]]] = {}
    for row in connection.execute(text(_HISTORY), parameters):
        sizes.setdefault((row.instance_id, row.subject, row.name), []).append((row.day, row.size_mb))
    risks = [
        replace(risk, history=sizes.get((risk.instance_id, risk.outlook.subject, risk.outlook.name), ()))
        for risk in issue.risks
    ]
    return replace(issue, risks=risks)


_NEWEST = "SELECT max(as_of) FROM capacity_runways WHERE as_of BETWEEN :first AND :last"


def _risks(as_of: date, server: str | None) -> sa.Select[Any]:
    """Return the query of what is full within a year with a probability of 10 % or more, the greatest risk first."""
    runways, servers = capacity_runways.alias("r"), instances.alias("i")
    name = sa.func.coalesce(servers.c.name, sa.func.concat("server ", runways.c.instance_id)).label("server")
    probabilities = [runways.c[f"probability_{days}"] for days in RISK_DAYS]
    risks = (
        sa.select(runways, name)
        .outerjoin(servers, servers.c.id == runways.c.instance_id)
        .where(runways.c.as_of == as_of, runways.c.early_day.is_not(None), text(STANDS_FOR_ITSELF))
    )
    if server is not None:
        risks = risks.where(servers.c.name == server)
    order = (*(probability.desc() for probability in probabilities), runways.c.early_day.asc().nulls_last())
    return risks.order_by(*order, name, runways.c.name)


_LEFT_OVER = """
SELECT r.instance_id AS server_id, r.subject, r.limit_mb - r.size_mb AS headroom_mb,
       i.counted_by IS NULL OR CAST(:server AS text) IS NOT NULL AS counted
FROM capacity_runways r LEFT JOIN instances i ON i.id = r.instance_id
WHERE r.as_of = :as_of AND r.subject <> 'database' AND (CAST(:server AS text) IS NULL OR i.name = :server)
"""
_COUNTS = """
SELECT (SELECT headroom_mb FROM headroom) AS headroom_mb,
       (SELECT count(*) FROM capacity_runways r LEFT JOIN instances i ON i.id = r.instance_id
        WHERE r.as_of = :as_of AND r.subject = 'database' AND r.state = 'limit unknown'
          AND (CAST(:server AS text) IS NULL OR i.name = :server)) AS unknown_limits,
       newest.issued_at,
       EXISTS (
           SELECT 1 FROM capacity_runways r
           JOIN (SELECT d.instance_id, max(d.declared_at) AS last_at FROM declared d GROUP BY d.instance_id)
               AS declared ON declared.instance_id = r.instance_id
           WHERE r.as_of = :as_of AND declared.last_at > r.issued_at
       ) OR EXISTS (
           SELECT 1 FROM capacity_runways r
           LEFT JOIN capacity_limits own ON own.instance_id = r.instance_id AND own.database_name
               = CASE WHEN r.subject = 'database' AND r.binds <> 'server limit' THEN r.name ELSE '' END
           WHERE r.as_of = :as_of AND r.limit_source = 'declared' AND own.instance_id IS NULL
       ) AS is_outdated
FROM (SELECT max(issued_at) AS issued_at FROM capacity_runways WHERE as_of = :as_of) AS newest
"""
# Samples, and where retention has dropped them, the daily aggregates.
_HISTORY = """
WITH risks AS (
    SELECT * FROM unnest(CAST(:ids AS integer[]), CAST(:subjects AS varchar[]), CAST(:names AS varchar[]))
        AS g (instance_id, subject, name)
)
SELECT DISTINCT ON (instance_id, subject, name, day) * FROM (
    SELECT g.*, s.collected_date AS day, s.size_mb, 1 AS rank FROM risks g
    JOIN database_size_stats s ON s.instance_id = g.instance_id AND s.database_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, a.period_start, a.avg_size_mb, 2 FROM risks g
    JOIN database_size_aggregations a ON a.instance_id = g.instance_id AND a.database_name = g.name
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, s.collected_date, s.total_size_mb, 1 FROM risks g
    JOIN instance_size_stats s ON s.instance_id = g.instance_id AND NOT s.is_deleted
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, a.period_start, a.total_size_mb, 2 FROM risks g
    JOIN instance_size_aggregations a ON a.instance_id = g.instance_id
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, s.collected_date, coalesce(s.used_mb, s.total_mb - s.free_mb), 1 FROM risks g
    JOIN volume_size_stats s ON s.instance_id = g.instance_id AND s.volume_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'volume'
) AS sizes ORDER BY instance_id, subject, name, day, rank
"""
