"""The views of forecasts: the newest runways, and how far those that came due were off."""

from __future__ import annotations

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.storage.label_expressions import SPANS_BY_SERVER, labels_in, labels_of
from capacity_assets.storage.view import View, views_in

DECLARED_LIMIT = """LEFT JOIN capacity_limits own ON own.instance_id = r.instance_id
    AND own.database_name = CASE WHEN r.subject = 'database' AND r.binds <> 'server limit' THEN r.name ELSE '' END"""
LIMIT_IS_GONE = "r.limit_source = 'declared' AND own.instance_id IS NULL"
"""Whether the declared limit that a runway was computed with was removed since, given `DECLARED_LIMIT`."""
LAST_DECLARED = """(SELECT instance_id, max(declared_at) AS last_at
    FROM (SELECT instance_id, declared_at FROM capacity_limits
          UNION ALL SELECT instance_id, declared_at FROM capacity_steps) AS limits_and_steps
    GROUP BY instance_id)"""
"""When limits or steps of each server were last declared; an issue that includes them has a later time in its rows."""
_CHANCES = "({0}.probability_" + ", {0}.probability_".join(map(str, HORIZONS_DAYS)) + ")"
STANDS_FOR_ITSELF = f"""(
  r.subject = 'volume' OR r.binds IS NULL OR r.binds NOT IN ('volume', 'server limit') OR NOT EXISTS (
      SELECT FROM capacity_runways o
      WHERE o.as_of = r.as_of AND o.instance_id = r.instance_id AND {_CHANCES.format("o")} >= {_CHANCES.format("r")}
        AND (r.binds = 'volume' AND o.subject = 'volume'
             OR r.binds = 'server limit' AND o.subject = 'server' AND o.binds = 'own limit')))"""
"""Whether no other row says the same at least as urgently: a thousand databases may share one volume."""


def headroom(rows: str) -> str:
    """Return the query for the free capacity in MiB, given rows with server_id, subject, headroom_mb and counted.

    It adds up volumes and, for servers without volumes, their own limit. A full one counts as 0; one without a known
    limit is left out. Null: no limit is known.
    """
    return f"""
    SELECT sum(greatest(l.headroom_mb, 0)) FROM {rows} AS l
    WHERE l.counted AND l.headroom_mb IS NOT NULL AND (l.subject = 'volume' OR l.subject = 'server' AND NOT EXISTS (
        SELECT FROM {rows} AS v WHERE v.server_id = l.server_id AND v.subject = 'volume'))"""  # noqa: S608 -- names of our own


UNKNOWN_LIMITS = "count(*) FILTER (WHERE r.subject = 'database' AND r.state = 'limit unknown')"
"""Number of databases without a known limit, including replicas, because their disks fill as well."""


def error_measures(actual: str, forecast: str, lower: str, upper: str, size: str) -> dict[str, str]:
    """Return the expressions of how far a group of forecasts was off, given those of what was forecast and measured."""
    return {
        # Mean absolute error in percent of the measured size.
        "error_percent": f"round(avg(abs({actual} - {forecast}) * 100.0 / nullif({actual}, 0)), 2)",
        # Sum of absolute errors, relative to that of the last size.
        "relative_error": f"round(sum(abs({actual} - {forecast})) / nullif(sum(abs({actual} - {size})), 0), 3)",
        # Shares of measured sizes within the band, and above it.
        "covered_percent": f"round(avg(CASE WHEN {actual} BETWEEN {lower} AND {upper} THEN 100 ELSE 0 END), 1)",
        "above_percent": f"round(avg(CASE WHEN {actual} > {upper} THEN 100 ELSE 0 END), 1)",
    }


def _runway(labels_of_database: str, labels_of_server: str, join: str = "") -> str:
    """Return the query of the newest runways."""
    horizons = "".join(
        f"""
       r.probability_{days} AS probability_{days}_days,
          -- Probability of being full within {days} days, 0 to 1; null: unknown
       r.forecast_{days}_mb AS forecast_{days}_days_mb,  -- Size that is forecast in {days} days, MiB
       r.lower_{days}_mb AS lower_{days}_days_mb,  -- Lower end of its band of 80 percent, MiB
       r.upper_{days}_mb AS upper_{days}_days_mb,  -- Upper end of its band of 80 percent, MiB"""
        for days in HORIZONS_DAYS
    )
    return f"""
SELECT r.as_of,  -- Day up to which samples were looked at
       coalesce(i.name, 'server ' || r.instance_id) AS server,  -- Name of the server
       r.subject,  -- server, database or volume
       r.name,  -- Database or volume; empty: the server as a whole
       r.state,  -- forecast, full, too little history, unlimited, or limit unknown
       r.last_day,  -- Newest measured day
       r.size_mb,  -- Size on that day, MiB
       r.limit_mb,  -- Binding limit, MiB; null: unlimited, or unknown
       r.limit_mb - r.size_mb AS headroom_mb,  -- What is left up to it, MiB
       r.binds,  -- Whose limit binds: own limit, own ceiling, server limit or volume
       r.limit_source,  -- Where it comes from: measured, declared or imported
       r.change_mb_per_day,  -- Change that is forecast, MiB per day
       r.early_day AS full_early,  -- Full by then with 10 percent; null: not within a year
       r.middle_day AS full_middle,  -- Full by then with 50 percent; null: not within a year
       r.late_day AS full_late,  -- Full by then with 90 percent; null: not within a year{horizons}
       r.instance_id AS server_id,  -- Number of the server
       r.issued_at,  -- When it was computed
       r.recent_mb_per_day,  -- Change over the last 30 days, MiB per day; null: unknown
       r.history_days,  -- Days of sizes that the forecast looked at
       CASE r.subject WHEN 'database' THEN {labels_of_database} ELSE {labels_of_server} END AS labels,
          -- Labels on that day, as JSON: labels ->> 'team'; of a volume, those of its server
       coalesce(i.db_type, 'unknown') AS engine,  -- Engine of the server
       (i.counted_by IS NULL) AS counted,  -- Whether the server counts itself; false: a replica
       {STANDS_FOR_ITSELF} AS stands_for_itself,
          -- Whether no other row says the same at least as urgently, as a volume does for its databases
       coalesce(declared.last_at > r.issued_at, false) OR coalesce({LIMIT_IS_GONE}, false) AS is_outdated,
          -- Whether limits or steps of its server were declared after the newest forecast, or its limit removed
       r.volumes  -- Volumes on which a database grows; null: unknown
FROM (SELECT max(as_of) AS as_of FROM capacity_runways) AS newest
JOIN capacity_runways r ON r.as_of = newest.as_of
LEFT JOIN instances i ON i.id = r.instance_id
LEFT JOIN {LAST_DECLARED} AS declared ON declared.instance_id = r.instance_id
{DECLARED_LIMIT}{join}"""  # noqa: S608 -- constants


_DUE = ", ".join(
    f"({days}, r.forecast_{days}_mb, r.lower_{days}_mb, r.upper_{days}_mb, r.actual_{days}_mb)"
    for days in HORIZONS_DAYS
)
_MEASURES = error_measures("due.actual_mb", "due.forecast_mb", "due.lower_mb", "due.upper_mb", "r.size_mb")

RUNWAY_VIEWS = (
    View(
        "capacity_runway",
        "When each server, database and volume is full, by the newest runways that were issued.",
        _runway(labels_of("r.instance_id", "r.name", "r.as_of"), labels_of("r.instance_id", None, "r.as_of")),
        query_on_nodes=_runway(
            labels_in("labelled", "r.name", "r.as_of"),
            labels_in("labelled", None, "r.as_of"),
            f"\nLEFT JOIN {SPANS_BY_SERVER} AS labelled ON labelled.instance_id = r.instance_id",
        ),
    ),
    *views_in(f"""
-- How far issued forecasts were off, by the month in which they came due.
CREATE VIEW capacity_forecast_errors AS
SELECT CAST(date_trunc('month', r.last_day + due.days) AS date) AS month,  -- First day of the month they came due
       r.subject,  -- server, database or volume
       due.days AS horizon_days,  -- How many days ahead was forecast
       r.in_time AS issued_in_time,
          -- Whether they were issued on their day or the next one; false: computed in hindsight
       count(*) AS forecasts,  -- Forecasts that came due and whose size was measured
       {_MEASURES["error_percent"]} AS error_percent,  -- Mean absolute error in percent of the measured size
       {_MEASURES["relative_error"]} AS relative_error,
          -- Sum of absolute errors, relative to that of the last size; null: no size had changed
       {_MEASURES["covered_percent"]} AS covered_percent,  -- Measured sizes within the band of 80 percent, in percent
       {_MEASURES["above_percent"]} AS above_percent
          -- Measured sizes above it, in percent: full sooner than was said
FROM capacity_runways r
CROSS JOIN LATERAL (VALUES {_DUE}) AS due (days, forecast_mb, lower_mb, upper_mb, actual_mb)
WHERE due.actual_mb IS NOT NULL
GROUP BY 1, 2, 3, 4;
"""),  # noqa: S608 -- constants
)
