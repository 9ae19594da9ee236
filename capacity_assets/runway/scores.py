"""How far issued forecasts were off: sizes that were measured on the day for which they were forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, text

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.runway.history_statements import STALE_DAYS
from capacity_assets.storage.limit_tables import USED_MB
from capacity_assets.storage.runway_views import error_measures


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
    """Share of those above it: full sooner than was said."""
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
