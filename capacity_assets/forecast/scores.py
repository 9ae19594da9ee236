"""Scores forecasts: stores beside each one the size that was measured on the day for which it was made.

How good forecasts were by that is in `reading.accuracy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.database.tables import capacity_runways, instances, is_active, volume_size_stats
from capacity_assets.forecast.history_statements import (
    COMPLETE_GROUP_DAYS,
    GROUP_ROWS,
    LAST_MEASURED,
    OF_NO_SERVER,
    STALE_DAYS,
)


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
                connection.execute(_scoring(subject, days, span, is_due(days, *span), in_service))
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


def is_due(days: int, first: date, last: date) -> sa.ColumnElement[bool]:
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
