"""The views that reports, BI tools and Grafana read, with names that people use, and units in the names.

They hide only keys and partitions of the tables; every figure is stored. Columns are only added, at the end, so that
queries of other programs keep working. `capacity init` creates and renews the views.

PostgreSQL does not widen a column that a view reads, or drop a view that another one reads. So views of others are
dropped and restored in the transaction of the upgrade, with owner, grants, options, comments, triggers and rules.
Objects that cannot be restored from their definition (a materialised view, a rule on a table) are named in an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.database import tables
from capacity_assets.database.changes import STALE_WINDOWS_VIEW
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.measures import SIZE_MEASURES
from capacity_assets.database.partitions import PARTITIONED
from capacity_assets.database.sql import SERVER_SIZES, View, ViewColumn, execute, literal, quoted, sql_text, views_in
from capacity_assets.label_rules import SPANS_BY_SERVER, labels_in, labels_of

# In the last part of `capacity_groups`, the grouping changes nothing. It keeps PostgreSQL from merging the part with
# the rest, so that a query of a label leaves it out before its partitions are planned, which takes longer than reading
# the groups.
GROUP_VIEWS = views_in(r"""
-- Labels of servers and databases, each with the days on which it applies.
CREATE VIEW capacity_label_spans AS
SELECT l.instance_id,  -- Number of the server
       l.database_pattern,  -- Database or pattern; empty: the server as a whole
       replace(replace(replace(replace(replace(
           l.database_pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'), '?', '_') AS database_like,
          -- The pattern as LIKE reads it
       l.key,  -- Key of the label, such as team
       l.value,  -- Its value; null: none on these days
       l.valid_from,  -- First day on which it applies; 0001-01-01: always
       lead(l.valid_from, 1, CAST('infinity' AS date))
           OVER (PARTITION BY l.instance_id, l.database_pattern, l.key ORDER BY l.valid_from) AS valid_until,
          -- First day on which it no longer applies; infinity: it still applies
       l.declared_at,  -- When it was declared
       l.declared_by  -- Who declared it; null: not known
FROM capacity_labels l;

-- Size of the fleet in each window by engine, by server and by each label.
CREATE VIEW capacity_groups AS
SELECT g.period_type AS period,  -- Name of the period, such as daily or monthly
       g.period_start AS window_start,  -- First day of the window
       g.period_end AS window_end,  -- Last day of the window, included
       g.grouped_by,  -- engine, server, or the key of a label: take one of them
       g.group_name,  -- Engine, server or value of the label; null: databases without this label
       g.servers,  -- Largest number of servers with a part in it on a day
       g.databases,  -- Mean number of databases per measured day of the fleet
       g.size_mb,  -- Mean size per measured day of the fleet, MiB
       g.change_mb  -- Change of that since the previous window, MiB; null: that was not measured
FROM (
    SELECT w.period_type, w.period_start, w.period_end, CAST(g.label_key AS text) AS grouped_by,
           CAST(nullif(g.label_value, '') AS text) AS group_name, CAST(g.servers AS bigint) AS servers,
           CAST(g.databases AS bigint) AS databases, CAST(g.size_mb AS numeric) AS size_mb,
           CAST(CASE WHEN b.period_start IS NOT NULL THEN g.size_mb - g.before_mb END AS numeric) AS change_mb
    FROM group_size_aggregations w
    LEFT JOIN group_size_aggregations b ON b.period_type = w.period_type
        AND b.label_key = '(fleet)' AND b.label_value = '(fleet)'
        -- The previous window: whole months, or as many days as the window itself.
        AND b.period_start = CASE WHEN extract(day FROM w.period_start) = extract(day FROM w.period_end + 1)
            THEN CAST(w.period_start
                      - age(CAST(w.period_end + 1 AS timestamp), CAST(w.period_start AS timestamp)) AS date)
            ELSE w.period_start - (w.period_end - w.period_start + 1) END
    CROSS JOIN LATERAL (
        -- A group that has gone since the previous window has a row of 0, so that changes of groups add up as well.
        SELECT p.label_key, p.label_value, coalesce(sum(p.servers) FILTER (WHERE p.is_own), 0) AS servers,
               coalesce(sum(p.databases) FILTER (WHERE p.is_own), 0) AS databases,
               coalesce(sum(p.size_mb) FILTER (WHERE p.is_own), 0) AS size_mb,
               coalesce(sum(p.size_mb) FILTER (WHERE NOT p.is_own), 0) AS before_mb
        FROM (
            -- Shares of the fleet's mean, rounded down; the largest remainders get one more, so that keys add up to it.
            SELECT r.is_own, r.label_key, r.label_value, r.servers,
                   r.databases + CASE WHEN row_number() OVER (
                       PARTITION BY r.is_own, r.label_key ORDER BY r.databases_rest DESC, r.label_value
                   ) <= r.fleet_databases - sum(r.databases) OVER (PARTITION BY r.is_own, r.label_key)
                       THEN 1 ELSE 0 END AS databases,
                   r.size_mb + CASE WHEN row_number() OVER (
                       PARTITION BY r.is_own, r.label_key ORDER BY r.size_rest DESC, r.label_value
                   ) <= r.fleet_mb - sum(r.size_mb) OVER (PARTITION BY r.is_own, r.label_key)
                       THEN 1 ELSE 0 END AS size_mb
            FROM (
                SELECT t.*, div(t.sum_databases - t.databases_rest, t.days) AS databases,
                       div(t.sum_mb - t.size_rest, t.days) AS size_mb
                FROM (
                    SELECT f.is_own, f.days, s.label_key, s.label_value, s.max_server_count AS servers,
                           div(f.sum_databases, f.days) AS fleet_databases, div(f.sum_mb, f.days) AS fleet_mb,
                           m.sum_databases, mod(mod(m.sum_databases, f.days) + f.days, f.days) AS databases_rest,
                           m.sum_mb, mod(mod(m.sum_mb, f.days) + f.days, f.days) AS size_rest
                    FROM (VALUES
                        (true, w.period_start, w.data_count, coalesce(w.sum_database_count, w.database_count),
                         coalesce(w.sum_size_mb, w.avg_size_mb)),
                        (false, b.period_start, b.data_count, coalesce(b.sum_database_count, b.database_count),
                         coalesce(b.sum_size_mb, b.avg_size_mb))
                    ) AS f (is_own, period_start, days, sum_databases, sum_mb)
                    JOIN group_size_aggregations s ON s.period_type = w.period_type AND s.period_start = f.period_start
                        AND s.label_key NOT IN ('(fleet)', '(total)')
                    CROSS JOIN LATERAL (SELECT coalesce(s.sum_database_count, s.database_count) AS sum_databases,
                                               coalesce(s.sum_size_mb, s.avg_size_mb) AS sum_mb) AS m
                ) AS t
            ) AS r
        ) AS p GROUP BY p.label_key, p.label_value
    ) AS g
    WHERE w.label_key = '(fleet)' AND w.label_value = '(fleet)'
    UNION ALL
    SELECT s.period_type, s.period_start, s.period_end, CAST('server' AS text), s.group_name, CAST(1 AS bigint),
           s.databases, s.size_mb, s.change_mb
    FROM (
        SELECT a.instance_id, a.period_type, a.period_start, a.period_end,
               CAST(coalesce(i.name, 'server ' || a.instance_id) AS text) AS group_name,
               CAST(a.database_count AS bigint) AS databases, CAST(a.total_size_mb AS numeric) AS size_mb,
               CAST(a.total_size_change_mb AS numeric) AS change_mb
        FROM capacity_server_sizes a LEFT JOIN instances i ON i.id = a.instance_id
        WHERE i.counted_by IS NULL
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    ) AS s
) AS g;
""")


# With one condition on the subject the key finds the volumes among a thousand databases that share them.
STANDS_FOR_ITSELF = """(
  r.subject = 'volume' OR r.binds IS NULL OR r.binds NOT IN ('volume', 'server limit') OR NOT EXISTS (
      SELECT FROM capacity_runways o
      WHERE o.as_of = r.as_of AND o.instance_id = r.instance_id
        AND o.subject = CASE r.binds WHEN 'volume' THEN 'volume' ELSE 'server' END
        AND (r.binds = 'volume' OR o.binds = 'own limit')
        AND ((-coalesce(o.probability_30, -1), -coalesce(o.probability_7, -1), -coalesce(o.probability_90, -1),
              -coalesce(o.probability_365, -1), coalesce(o.early_day, CAST('infinity' AS date)))
             <= (-coalesce(r.probability_30, -1), -coalesce(r.probability_7, -1), -coalesce(r.probability_90, -1),
                 -coalesce(r.probability_365, -1), coalesce(r.early_day, CAST('infinity' AS date)))
             OR r.subject = 'server' AND o.subject = 'volume' AND o.middle_day IS NOT NULL
                AND o.early_day <= coalesce(r.late_day, CAST('infinity' AS date)))))"""
"""Whether no other row covers this one with at least the same urgency: a thousand databases may share one volume.

A server that its volumes limit is the same space as the volumes: if their ranges overlap, one of them covers it. The
same rule for runways that are not stored is `standing_for_themselves` in `forecast.results`. Runways have the answer
from when they were issued, except those of earlier versions and of past days.
"""


DECLARED_FOR_FORECASTS = """
SELECT instance_id, declared_at FROM capacity_limits
UNION ALL SELECT instance_id, declared_at FROM capacity_steps
UNION ALL SELECT instance_id, coalesce(closed_at, declared_at) FROM capacity_decisions WHERE added_mb IS NOT NULL
"""
"""The servers for which something was declared that a forecast includes, and when."""

_NEWEST_RUNWAYS = """(SELECT max(as_of) AS as_of FROM capacity_runways) AS newest
JOIN capacity_runways r ON r.as_of = newest.as_of"""


_COLUMNS = list(tables.capacity_runways.columns)
_FURTHER_FIGURES = "".join(
    f"\n       , r.{column.name}  -- {column.comment}"
    for column in _COLUMNS[_COLUMNS.index(tables.capacity_runways.c.planned_late_day) + 1 :]
    if column.name != "stands_for_itself"
)


def _runway(labels_of_database: str, labels_of_server: str, join: str, runways: str) -> str:
    """Return the query of runways: the newest, or the rows `r` of other ones."""
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
SELECT r.as_of,  -- Last day of the samples that were read
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
       r.history_days,  -- Days of sizes that the forecast used
       CASE r.subject WHEN 'database' THEN {labels_of_database} ELSE {labels_of_server} END AS labels,
          -- Labels on that day, as JSON: labels ->> 'team'; of a volume, those of its server
       coalesce(i.db_type, 'unknown') AS engine,  -- Engine of the server
       (i.counted_by IS NULL) AS counted,  -- Whether the server counts itself; false: a replica
       coalesce(r.stands_for_itself, {STANDS_FOR_ITSELF}) AS stands_for_itself,
          -- Whether no other row says the same at least as urgently, as a volume does for its databases
       coalesce(declared.last_at > r.issued_at, false)
           OR coalesce(r.limit_source = 'declared' AND own.instance_id IS NULL, false) AS is_outdated,
          -- Whether limits, steps or plans of its server were declared after the newest forecast, or its limit removed
       r.volumes,  -- Volumes on which a database grows; null: unknown
       r.planned_day AS planned_from,  -- Day from which planned limits apply; null: no plan raises the limit
       r.planned_limit_mb,  -- Binding limit from that day on, MiB
       r.planned_early_day AS planned_full_early,  -- As full_early, with that limit
       r.planned_middle_day AS planned_full_middle,  -- As full_middle, with that limit
       r.planned_late_day AS planned_full_late  -- As full_late, with that limit{_FURTHER_FIGURES}
FROM {runways}
LEFT JOIN instances i ON i.id = r.instance_id
LEFT JOIN (
    SELECT d.instance_id, max(d.declared_at) AS last_at FROM ({DECLARED_FOR_FORECASTS}) AS d GROUP BY d.instance_id
) AS declared ON declared.instance_id = r.instance_id
LEFT JOIN capacity_limits own ON own.instance_id = r.instance_id
    AND own.database_name = CASE WHEN r.subject = 'database' AND r.binds <> 'server limit' THEN r.name ELSE '' END
{join}
WHERE r.subject <> 'group'"""  # noqa: S608 -- labels are looked up differently on nodes


_DUE = """CROSS JOIN LATERAL (VALUES
    (7, r.forecast_7_mb, r.lower_7_mb, r.upper_7_mb, r.probability_7, r.actual_7_mb, r.actual_7_mb),
    (30, r.forecast_30_mb, r.lower_30_mb, r.upper_30_mb, r.probability_30, r.actual_30_mb,
     greatest(r.actual_7_mb, r.actual_30_mb)),
    (90, r.forecast_90_mb, r.lower_90_mb, r.upper_90_mb, r.probability_90, r.actual_90_mb,
     greatest(r.actual_7_mb, r.actual_30_mb, r.actual_90_mb)),
    (365, r.forecast_365_mb, r.lower_365_mb, r.upper_365_mb, r.probability_365, r.actual_365_mb,
     greatest(r.actual_7_mb, r.actual_30_mb, r.actual_90_mb, r.actual_365_mb))
) AS due (days, forecast_mb, lower_mb, upper_mb, probability, actual_mb, largest_mb)"""
"""The forecasts of a row by horizon, with the largest size measured on a due day up to that of the horizon."""

_GROUP_HORIZONS = "".join(
    f"""r.forecast_{days}_mb AS forecast_{days}_days_mb,  -- Size forecast in {days} days, MiB; null: too little history
       r.lower_{days}_mb AS lower_{days}_days_mb,  -- Lower end of its band of 80 percent, MiB
       r.upper_{days}_mb AS upper_{days}_days_mb,  -- Upper end of its band of 80 percent, MiB
       """
    for days in HORIZONS_DAYS
).rstrip()


def _runway_view(name: str, about: str, runways: str) -> View:
    """Return a view of runways: the newest, or the rows `r` of other ones."""
    return View(
        name,
        about,
        _runway(
            labels_of("r.instance_id", "r.name", "r.as_of"), labels_of("r.instance_id", None, "r.as_of"), "", runways
        ),
        query_on_nodes=_runway(
            labels_in("labelled", "r.name", "r.as_of"),
            labels_in("labelled", None, "r.as_of"),
            f"LEFT JOIN {SPANS_BY_SERVER} AS labelled ON labelled.instance_id = r.instance_id",
            runways,
        ),
    )


RUNWAY_VIEW = _runway_view(
    "capacity_runway",
    "When each server, database and volume is full, by the newest runways that were issued.",
    _NEWEST_RUNWAYS,
)
ISSUED_RUNWAYS_VIEW = _runway_view(
    "capacity_issued_runways",
    "As capacity_runway, for every day of issue: select one by as_of.",
    "capacity_runways r",
)

RUNWAY_VIEWS = (
    RUNWAY_VIEW,
    ISSUED_RUNWAYS_VIEW,
    *views_in(f"""
-- How far issued forecasts were off, by the month in which they came due.
CREATE VIEW capacity_forecast_errors AS
SELECT CAST(date_trunc('month', r.last_day + due.days) AS date) AS month,  -- First day of the month of their due days
       r.subject,  -- server, database, volume or group
       due.days AS horizon_days,  -- How many days ahead was forecast
       r.in_time AS issued_in_time,
          -- Whether they were issued on their day or the next one; false: computed in hindsight
       count(*) AS forecasts,  -- Due forecasts with a measured size
       round(avg(abs(due.actual_mb - due.forecast_mb) * 100.0 / nullif(due.actual_mb, 0)), 2) AS error_percent,
          -- Mean absolute error in percent of the measured size
       round(sum(abs(due.actual_mb - due.forecast_mb)) / nullif(sum(abs(due.actual_mb - r.size_mb)), 0), 3)
           AS relative_error,
          -- Sum of absolute errors, relative to that of the last size; null: no size had changed
       round(avg(CASE WHEN due.actual_mb BETWEEN due.lower_mb AND due.upper_mb THEN 100 ELSE 0 END), 1)
           AS covered_percent,  -- Measured sizes within the band of 80 percent, in percent
       round(avg(CASE WHEN due.actual_mb > due.upper_mb THEN 100 ELSE 0 END), 1) AS above_percent
          -- Measured sizes above it, in percent: full sooner than forecast
FROM capacity_runways r
{_DUE}
WHERE due.actual_mb IS NOT NULL
GROUP BY 1, 2, 3, 4;

-- Every forecast that was issued, by horizon, and the size that was measured on its due day.
CREATE VIEW capacity_forecasts AS
SELECT r.as_of,  -- Day on which it was issued
       due.days AS horizon_days,  -- How many days ahead was forecast
       r.last_day + due.days AS due_day,  -- Day for which it was made
       r.in_time AS issued_in_time,  -- Whether it was issued on its day or the next one; false: computed in hindsight
       r.instance_id AS server_id,  -- Number of the server; 0: a group
       coalesce(i.name, CASE WHEN r.subject <> 'group' THEN 'server ' || r.instance_id ELSE '' END) AS server,
          -- Name of the server; empty: a group
       r.subject,  -- server, database, volume or group
       r.name,  -- Database, volume, or group as key=value; empty: the server as a whole
       r.state,  -- forecast, full, too little history, unlimited, or limit unknown
       r.size_mb,  -- Size on the last measured day before, MiB
       due.forecast_mb,  -- Size that was forecast, MiB
       due.lower_mb,  -- Lower end of its 80 % range, MiB
       due.upper_mb,  -- Upper end of its 80 % range, MiB
       due.actual_mb,  -- Size that was measured on the due day, MiB; null: not yet, or not measured
       r.limit_mb,  -- Limit at that time, MiB; null: unlimited, or unknown
       due.probability,  -- Probability of being full by the due day, 0 to 1; null: unknown
       due.largest_mb >= r.limit_mb AS was_full,
          -- Whether the size had reached that limit on one of its due days up to this one; null: unknown
       r.middle_day AS full_middle  -- Full by then with a probability of 50 %; null: not within a year, or unknown
FROM capacity_runways r
LEFT JOIN instances i ON i.id = r.instance_id
{_DUE}
WHERE due.forecast_mb IS NOT NULL;

-- The newest forecast of each group and of the fleet, from its stored daily sums.
CREATE VIEW capacity_group_forecasts AS
SELECT r.as_of,  -- Last day of the sums that were read
       split_part(r.name, '=', 1) AS grouped_by,  -- engine, the key of a label, or (fleet)
       nullif(substr(r.name, strpos(r.name, '=') + 1), '') AS group_name,
          -- Engine, value of the label, or (fleet); null: no such label
       r.last_day,  -- Newest day on which no server of the group is missing
       r.size_mb,  -- Size on that day, MiB
       r.change_mb_per_day,  -- Change that is forecast, MiB per day
       {_GROUP_HORIZONS}
       r.history_days,  -- Days of sums that the forecast used
       r.issued_at  -- When it was computed
FROM (SELECT max(as_of) AS as_of FROM capacity_runways WHERE instance_id = 0) AS newest
JOIN capacity_runways r ON r.as_of = newest.as_of AND r.instance_id = 0 AND r.subject = 'group';
"""),  # noqa: S608 -- the horizons of both views
)


_REGISTER = "LEFT JOIN instances i ON i.id = a.instance_id"
_REGISTER_WITH_LABELS = f"{_REGISTER}\nLEFT JOIN {SPANS_BY_SERVER} AS labelled ON labelled.instance_id = a.instance_id"

_TOTALS = """
SELECT instance_id,  -- Server, instances.id
       period_type,  -- Name of the period, such as daily or monthly
       period_start,  -- First day of the window
       period_end,  -- Last day of the window, included
       data_count,  -- Days with samples in the window
       total_size_mb,  -- Mean daily total of the server, rounded down, MiB
       total_size_change_mb,  -- Change of the mean since the previous window, cut toward zero, MiB; null: unknown
       total_size_change_percent,  -- The same in percent; null: unknown, or from 0
       database_count,  -- Mean number of databases, rounded down
       max_size_mb,  -- Largest daily total, MiB
       min_size_mb,  -- Smallest daily total, MiB
       trend_direction,  -- growing, shrinking or stable; null: nothing to compare with
       database_count_change,  -- Change of the mean number of databases, cut toward zero; null: unknown
       last_total_size_mb,  -- Daily total on the last measured day of the window, MiB
       total_size_growth_in_window_mb,  -- That less the total on the first; null: fewer than two measured days
       total_size_year_change_mb,  -- Change against the same window a year before, cut toward zero, MiB; null: unknown
       total_size_year_change_percent,  -- The same in percent; null: unknown, or from 0
       total_size_yearly_rate_percent,
          -- Change of the mean in percent, compounded to a year; null: unknown, from 0, or the window is not a whole
          -- number of months
       false AS is_derived
          -- Whether the server has no total in the window; its size and change are then those of its databases
FROM instance_size_aggregations"""
# Windows with days on which a server has databases but no total, which the level of groups finds. Sizes of databases
# are weighted by their days, so that renaming a database changes no sum. Both parts have the same types, because
# otherwise PostgreSQL does not push conditions down into them. Impossible values, which earlier versions stored, are
# left out. Periods and windows are grouped and compared once more outside. So PostgreSQL pushes those of a query into
# both parts, and plans only their partitions; planning all took ten times as long as the rest of a query. Without the
# outermost grouping, which changes nothing, it would plan the second part for a query with `NOT is_derived`, too.
_POSSIBLE_TOTALS = """
WHERE total_size_mb <= 8796093022207
  AND (total_size_change_mb IS NULL OR total_size_change_mb BETWEEN -8796093022207 AND 8796093022207)
UNION ALL
"""
_DERIVED = """
SELECT d.instance_id, d.period_type, d.period_start, d.period_end, d.days, d.size_mb, d.change_mb, d.change_percent,
       d.databases, CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS varchar(20)), CAST(NULL AS integer),
       CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS numeric(30, 2)),
       CAST(NULL AS numeric), true
FROM (
    SELECT n.instance_id, n.period_type, n.period_start, n.period_end, n.days, CAST(n.size_mb AS bigint) AS size_mb,
           CAST(n.size_mb - b.size_mb AS bigint) AS change_mb,
           CAST(round((n.size_mb - b.size_mb) * 100 / nullif(b.size_mb, 0), 2) AS numeric(30, 2)) AS change_percent,
           CAST(n.databases AS integer) AS databases
    FROM (
        SELECT g.period_type, g.period_start,
               CASE WHEN extract(day FROM g.period_start) = extract(day FROM g.period_end + 1)
                    THEN CAST(g.period_start
                              - age(CAST(g.period_end + 1 AS timestamp), CAST(g.period_start AS timestamp)) AS date)
                    ELSE g.period_start - (g.period_end - g.period_start + 1) END AS before_start
        FROM group_size_aggregations g WHERE g.label_key = '(total)' AND g.label_value = 'derived') AS w
    JOIN LATERAL (
        SELECT d.instance_id, d.period_type, d.period_start, max(d.period_end) AS period_end, max(d.data_count) AS days,
               div(sum(CAST(d.avg_size_mb AS numeric) * d.data_count), max(d.data_count)) AS size_mb,
               div(sum(d.data_count), max(d.data_count)) AS databases
        FROM database_size_aggregations d
        WHERE d.period_type = w.period_type AND d.period_start = w.period_start
          AND NOT EXISTS (SELECT FROM instance_size_aggregations t
                          WHERE t.instance_id = d.instance_id AND t.period_type = d.period_type
                            AND t.period_start = d.period_start)
        GROUP BY d.instance_id, d.period_type, d.period_start) AS n
        ON n.period_type = w.period_type AND n.period_start = w.period_start AND n.size_mb <= 8796093022207
    LEFT JOIN LATERAL (
        SELECT d.period_type, div(sum(CAST(d.avg_size_mb AS numeric) * d.data_count), max(d.data_count)) AS size_mb
        FROM database_size_aggregations d
        WHERE d.instance_id = n.instance_id AND d.period_type = w.period_type AND d.period_start = w.before_start
          AND NOT EXISTS (SELECT FROM instance_size_aggregations t
                          WHERE t.instance_id = d.instance_id AND t.period_type = d.period_type
                            AND t.period_start = d.period_start)
        GROUP BY d.period_type) AS b ON b.period_type = n.period_type AND b.size_mb <= 8796093022207
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9) AS d"""

_WINDOW_AND_SERVER = """
SELECT a.period_type AS period,  -- Name of the period, such as daily or monthly
       a.period_start AS window_start,  -- First day of the window
       a.period_end AS window_end,  -- Last day of the window, included
       coalesce(i.name, 'server ' || a.instance_id) AS server,  -- Name of the server
       coalesce(i.db_type, 'unknown') AS engine,  -- Engine: mysql, postgresql, sqlserver, oracle, ..."""
_SAMPLED = """a.data_count AS measured_days,  -- Days of the window with a sample
       (a.period_end - a.period_start + 1) AS window_days,
          -- Days of the window; those of a current window that are still to come included
       round(a.data_count * 100.0 / (a.period_end - a.period_start + 1), 1) AS coverage_percent,
          -- Measured days in percent of them
       a.instance_id AS server_id,
          -- Number of the server; a filter by it is answered from an index, one by name is not
       (i.counted_by IS NULL) AS counted,
          -- Whether sums over the fleet count it; false: another server does, for a replica or shared storage
       greatest(0, least(a.period_end, current_date) - a.period_start + 1) AS elapsed_days,
          -- Days of the window up to today, the day of the session's time zone
       (a.period_end > current_date) AS is_open,  -- Whether days of the window are still to come"""


def _further(stem: str, last: str) -> str:
    """Return the last size, the growth within the window, and the comparison with the year before."""
    return f"""
       a.{last} AS last_size_mb,  -- Size on the last measured day of the window, MiB
       a.{stem}_growth_in_window_mb AS growth_in_window_mb,
          -- That less the size on the first measured day, MiB; null: fewer than two measured days
       a.{stem}_year_change_mb AS year_change_mb,
          -- Change of the mean against the same window a year before, MiB; null: unknown
       a.{stem}_year_change_percent AS year_change_percent,  -- The same in percent; null: unknown, or from 0
       a.{stem}_yearly_rate_percent AS yearly_rate_percent,
          -- change_percent compounded to a year; null: unknown, from 0, or the window is not a whole number of months
"""


def _parts(*, added_later: bool) -> str:
    return "".join(
        f"a.{measure.average} AS {measure.source},  -- Mean size of {measure.files}, MiB; null: not measured\n       "
        for measure in SIZE_MEASURES
        if bool(measure.since) is added_later
    )


def _growth(rows: str, labels: str) -> str:
    """Return the query of the growth of databases; later parts of a size come after other columns."""
    return f"""{_WINDOW_AND_SERVER}
       a.database_name AS database,  -- Name of the database
       a.avg_size_mb AS size_mb,  -- Mean total size, rounded down, MiB
       a.max_size_mb AS largest_size_mb,  -- Largest total size, MiB
       a.min_size_mb AS smallest_size_mb,  -- Smallest total size, MiB
       {_parts(added_later=False)}a.size_change_mb AS change_mb,
          -- Change of the mean since the previous window, MiB; null: unknown
       a.size_change_percent AS change_percent,  -- The same in percent; null: unknown, or from 0
       a.trend_direction AS trend,  -- growing, shrinking or stable; null: nothing to compare with
       {_SAMPLED}{_further("size", "last_size_mb")}       {_parts(added_later=True)}{labels} AS labels
          -- Labels on the last day of the window, as JSON: labels ->> 'team'
FROM {rows}"""


def _server_growth(register: str, labels: str) -> str:
    return f"""{_WINDOW_AND_SERVER}
       a.total_size_mb AS size_mb,  -- Mean daily total, rounded down, MiB
       a.max_size_mb AS largest_size_mb,  -- Largest daily total, MiB
       a.min_size_mb AS smallest_size_mb,  -- Smallest daily total, MiB
       a.total_size_change_mb AS change_mb,  -- Change of the mean since the previous window, MiB; null: unknown
       a.total_size_change_percent AS change_percent,  -- The same in percent; null: unknown, or from 0
       a.trend_direction AS trend,  -- growing, shrinking or stable; null: nothing to compare with
       a.database_count AS databases,  -- Mean number of databases, rounded down
       a.database_count_change AS databases_change,  -- Change of their mean number, cut to whole; null: unknown
       {_SAMPLED}{_further("total_size", "last_total_size_mb")}       {labels} AS labels,
          -- Labels on the last day of the window, as JSON: labels ->> 'team'
       a.is_derived
          -- Whether the server has no total in the window; its size and change are then those of its databases
FROM capacity_server_sizes a {register}"""


_LABELS = labels_of("a.instance_id", "a.database_name", "a.period_end")
_LABELS_ON_NODES = labels_in("labelled", "a.database_name", "a.period_end")

_WINDOWS = tables.database_size_aggregations.c
# Period by period, by the first columns of the key: as fast in a long history.
_NEWEST_WINDOWS = sa.union_all(
    *(
        sa.select(sa.cast(name, sa.Text).label("name"), sa.func.max(_WINDOWS.period_start).label("period_start")).where(
            _WINDOWS.period_type == name
        )
        for name in PERIODS
    )
)
_OF_NEWEST_WINDOWS = f"""({sql_text(_NEWEST_WINDOWS)}) AS newest
JOIN database_size_aggregations a ON a.period_type = newest.name AND a.period_start = newest.period_start"""
[DERIVED_WINDOWS_VIEW] = views_in("""
-- Windows in which a server has databases but no total. Only these have rows with is_derived.
CREATE VIEW capacity_derived_windows AS
SELECT g.period_type AS period,  -- Name of the period, such as daily or monthly
       g.period_start AS window_start  -- First day of the window
FROM group_size_aggregations g WHERE g.label_key = '(total)' AND g.label_value = 'derived';
""")
[LEFT_OUT_VIEW] = views_in("""
-- Servers excluded from all groups on some days of a window, because a group would exceed 8 EiB.
CREATE VIEW capacity_left_out_servers AS
SELECT g.period_type AS period,  -- Name of the period, such as daily or monthly
       g.period_start AS window_start,  -- First day of the window
       CAST(substr(g.label_value, 10) AS integer) AS server_id,  -- Number of the server
       g.data_count AS days  -- Days of the window on which it is left out
FROM group_size_aggregations g WHERE g.label_key = '(total)' AND g.label_value LIKE 'left out %';
""")
# The rows of a window, and the rows of the previous window of servers that have none in it.
_FLEET_AND_COVERAGE = views_in("""
-- Size of the fleet by engine in each window. Servers that are counted by another one are left out.
CREATE VIEW capacity_fleet AS
SELECT a.period_type AS period,  -- Name of the period, such as daily or monthly
       a.period_start AS window_start,  -- First day of the window
       a.period_end AS window_end,  -- Last day of the window, included
       coalesce(i.db_type, 'unknown') AS engine,  -- Engine: mysql, postgresql, sqlserver, oracle, ...
       count(a.total_size_mb) AS servers,  -- Servers with samples in the window
       sum(a.database_count) AS databases,  -- Mean number of their databases
       sum(a.total_size_mb) AS size_mb,  -- Sum of their mean sizes, MiB
       sum(a.total_size_change_mb) AS change_mb,
          -- Sum of their changes, of those that are known, MiB; null: none is known
       count(a.total_size_mb) - count(a.total_size_change_mb) AS servers_without_change,
          -- Servers not measured in the previous window; their size does not count as growth
       count(a.missing_size_mb) AS servers_missing,
          -- Servers measured only in the previous window; their absence does not count as shrinkage
       sum(a.missing_size_mb) AS missing_size_mb,  -- Their size in the previous window, MiB; null: none
       CASE WHEN count(a.last_total_size_mb) = count(a.total_size_mb) THEN sum(a.last_total_size_mb) END AS last_size_mb
          -- Sum of the sizes of its servers, each on its last measured day of the window, MiB; null: not of all
FROM (
    SELECT period_type, period_start, period_end, instance_id, total_size_mb, total_size_change_mb, database_count,
           CAST(NULL AS bigint) AS missing_size_mb, last_total_size_mb
    FROM capacity_server_sizes
    UNION ALL
    SELECT w.period_type, w.period_start, w.period_end, b.instance_id, NULL, NULL, NULL, b.total_size_mb, NULL
    FROM (SELECT DISTINCT period_type, period_start, period_end FROM capacity_server_sizes) AS w
    JOIN capacity_server_sizes b ON b.period_type = w.period_type AND b.period_end = w.period_start - 1
    WHERE NOT EXISTS (SELECT FROM capacity_server_sizes n
                      WHERE n.period_type = w.period_type AND n.period_start = w.period_start
                        AND n.instance_id = b.instance_id)) AS a
LEFT JOIN instances i ON i.id = a.instance_id
WHERE i.counted_by IS NULL
GROUP BY 1, 2, 3, 4;

-- Servers and databases measured on each day. A day without a row was not measured at all.
CREATE VIEW capacity_coverage AS
SELECT s.collected_date AS day,  -- Day of the samples
       count(DISTINCT s.instance_id) AS servers,  -- Servers measured on it
       sum(s.database_count) AS databases,  -- Databases on them
       sum(s.total_size_mb) FILTER (WHERE i.counted_by IS NULL AND s.total_size_mb <= 8796093022207) AS size_mb
          -- Sum of the sizes measured of servers that are not counted by another one, excluding impossible sizes, MiB
FROM instance_size_stats s LEFT JOIN instances i ON i.id = s.instance_id
WHERE NOT s.is_deleted
GROUP BY 1;
""")


def _beside_servers(name: str, comment: str, rows: sa.Table, *columns: str | tuple[str, str, str]) -> View:
    """Return the view of a table with the names of its servers.

    Columns are those of the table, some under other names, with their comments; or an expression, name and comment.
    """
    day = ("collected_date AS day",) if "collected_date" in rows.c else ()
    number = ("s.instance_id", "server_id", "Number of the server")
    server = ("coalesce(i.name, 'server ' || s.instance_id)", "server", "Name of the server")
    listed = [part for column in (*day, number, server, *columns) for part in _split_columns(rows, column)]
    chosen: list[sa.Label[Any]] = [sa.literal_column(expression).label(name) for expression, name, _ in listed]
    query = sa.select(*chosen).select_from(sa.text(f"{rows.name} s LEFT JOIN instances i ON i.id = s.instance_id"))
    if "is_deleted" in rows.c:
        query = query.where(sa.text("NOT s.is_deleted"))
    described = tuple(ViewColumn(name, comment) for _, name, comment in listed)
    return View(name, comment, sql_text(query), described=described)


def _split_columns(rows: sa.Table, columns: str | tuple[str, str, str]) -> Iterator[tuple[str, str, str]]:
    if not isinstance(columns, str):
        yield columns
        return
    for column in columns.split(", "):
        source, _, name = column.partition(" AS ")
        yield f"s.{source}", name or source, str(rows.c[source].comment)


# The samples and registrations behind the figures, for readers without rights on tables. Declarations of servers are a
# separate view, so that distributed tables can be joined with the servers without rights on
# `capacity_collection_targets`.
READER_VIEWS = (
    *views_in("""
-- The registered servers.
CREATE VIEW capacity_servers AS
SELECT i.id AS server_id,  -- Number of the server
       i.name AS server,  -- Name of the server
       i.db_type AS engine,  -- Engine: mysql, postgresql, sqlserver, oracle, ...
       (i.is_active AND i.deleted_at IS NULL) AS is_active,  -- Whether it is in service
       c.name AS counted_by,  -- Server that counts in its place; null: it counts itself
       coalesce((SELECT jsonb_object_agg(l.key, l.value) FROM capacity_label_spans l
                 WHERE l.instance_id = i.id AND l.database_pattern = '' AND l.value IS NOT NULL
                   AND l.valid_from <= current_date AND current_date < l.valid_until), CAST('{}' AS jsonb)) AS labels
          -- Its labels of today, as JSON
FROM instances i LEFT JOIN instances c ON c.id = i.counted_by;

-- Who registered the servers that are measured from here.
CREATE VIEW capacity_declared_servers AS
SELECT instance_id AS server_id,  -- Number of the server
       updated_at AS declared_at,  -- When it was registered or changed last
       declared_by  -- Who did that; null: not known
FROM capacity_collection_targets;

-- Which samples of databases and servers were imported, by days that follow one another; all others were measured.
CREATE VIEW capacity_sample_origins AS
SELECT d.instance_id AS server_id,  -- Number of the server
       coalesce(i.name, 'server ' || d.instance_id) AS server,  -- Name of the server
       nullif(d.database_name, '') AS database,  -- Name of the database; null: the total of the server
       lower(r.days) AS first_day,  -- First day
       upper(r.days) - 1 AS last_day,  -- Last day
       c.origin,  -- What measured them: file, legacy, prometheus, zabbix, ...; null: not known
       c.source  -- File, database or monitoring system that they were read from
FROM capacity_imported_days d
JOIN capacity_imports c ON c.fingerprint = d.fingerprint
CROSS JOIN LATERAL unnest(d.days) AS r (days)
LEFT JOIN instances i ON i.id = d.instance_id;
"""),
    _beside_servers(
        "capacity_samples",
        "The samples of databases.",
        tables.database_size_stats,
        "database_name AS database, size_mb, collected_at, created_at, updated_at",
    ),
    _beside_servers(
        "capacity_server_samples",
        "The samples of whole servers.",
        tables.instance_size_stats,
        "total_size_mb AS size_mb, database_count AS databases, collected_at, created_at, updated_at",
    ),
    _beside_servers(
        "capacity_volumes",
        "The samples of volumes.",
        tables.volume_size_stats,
        "volume_name AS volume, total_mb, free_mb",
        ("coalesce(s.used_mb, s.total_mb - s.free_mb)", "used_mb", "Used space, MiB"),
        "source, collected_at, declared_by",
    ),
    _beside_servers(
        "capacity_objects",
        "What databases consist of: the samples of tables and indexes, of all others, and of what no object explains.",
        tables.object_size_stats,
        "database_name AS database, kind, schema_name, table_name, object_name, size_bytes, index_bytes",
        "free_bytes, estimated_rows, is_exact, object_count, collected_at, written_rows, counted_since",
    ),
    _beside_servers(
        "capacity_ceilings",
        "What each database may hold, and the volumes it grows on, as servers report it.",
        tables.database_limit_stats,
        "database_name AS database, limit_mb, is_unlimited, volumes, source",
    ),
    _beside_servers(
        "capacity_server_parts",
        "The space on servers outside their databases. Bytes of slots and of the archiver are bytes of the WAL.",
        tables.server_part_stats,
        "part_kind AS kind, part_name AS part, size_bytes, volume_name AS volume, detail, collected_at",
    ),
    _beside_servers(
        "capacity_attempts",
        "The outcome for each server on each day of the last months.",
        tables.collection_attempts,
        "status, failure, reason, attempted_at",
    ),
    _beside_servers(
        "capacity_declared_limits",
        "Limits that people declared.",
        tables.capacity_limits,
        ("nullif(s.database_name, '')", "database", "Database; null: the server as a whole"),
        "limit_mb, note, declared_at, declared_by",
    ),
    _beside_servers(
        "capacity_declared_steps",
        "Changes of size that people declared, which no forecast takes for a trend.",
        tables.capacity_steps,
        ("nullif(s.database_name, '')", "database", "Database; null: all databases of the server"),
        "step_date AS day, note, declared_at, declared_by",
    ),
    _beside_servers(
        "capacity_declared_decisions",
        "What people decided about what may fill; also decisions that are past or closed.",
        tables.capacity_decisions,
        "subject, name, kind, until_day, note, ticket, added_mb, probability",
        "declared_at, declared_by, closed_at, closed_by",
    ),
)

VIEWS = (
    View(
        SERVER_SIZES,
        "Size of each server in each window: its total or, without a total, the sum of its databases.",
        _TOTALS + _POSSIBLE_TOTALS + _DERIVED,
        query_on_nodes=_TOTALS,
    ),
    *GROUP_VIEWS,
    View(
        "capacity_growth",
        "Size, change and trend of each database in each window.",
        _growth(f"database_size_aggregations a {_REGISTER}", _LABELS),
        query_on_nodes=_growth(f"database_size_aggregations a {_REGISTER_WITH_LABELS}", _LABELS_ON_NODES),
    ),
    View(
        "capacity_latest",
        "Size, change and trend of each database in the newest stored window of each period.",
        _growth(f"{_OF_NEWEST_WINDOWS}\n{_REGISTER}", _LABELS),
        query_on_nodes=_growth(f"{_OF_NEWEST_WINDOWS}\n{_REGISTER_WITH_LABELS}", _LABELS_ON_NODES),
    ),
    View(
        "capacity_server_growth",
        "Size, change, trend and number of databases of each server in each window.",
        _server_growth(_REGISTER, labels_of("a.instance_id", None, "a.period_end")),
        query_on_nodes=_server_growth(_REGISTER_WITH_LABELS, labels_in("labelled", None, "a.period_end")),
    ),
    *_FLEET_AND_COVERAGE,
    DERIVED_WINDOWS_VIEW,
    LEFT_OUT_VIEW,
    *RUNWAY_VIEWS,
    *READER_VIEWS,
    STALE_WINDOWS_VIEW,
)


_NAMES = [view.name for view in VIEWS]

Reader = sa.Row[Any]
"""An object that reads a column or a view, see `readers_of`."""


def name_conflicts(connection: sa.Connection) -> list[str]:
    """Return messages on other objects that have the name of one of our views."""
    return [
        f"{name} is the name of one of our views, and another object has that name. Rename that object, then run "
        "`capacity init` again."
        for name in connection.execute(sa.text(_NOT_OURS), {"views": _NAMES}).scalars()
    ]


def outdated_views(connection: sa.Connection) -> list[View]:
    """Return the views that are missing or have another definition."""
    comments = {row.name: row.comment for row in connection.execute(sa.text(_COMMENTS), {"views": _NAMES})}
    views = [view.on_nodes for view in VIEWS] if tables_are_distributed(connection) else VIEWS
    return [view for view in views if comments[view.name] != view.marked_comment]


_COMMENTS = """
SELECT name, obj_description(to_regclass(name), 'pg_class') AS comment FROM unnest(CAST(:views AS text[])) AS v (name)
"""


def create_views(connection: sa.Connection, views: Iterable[View]) -> None:
    """Create views, or replace them in place, which keeps grants and the objects that read them."""
    for view in views:
        comments = [(f"{view.name}.{quoted(column.name)}", column.comment) for column in view.columns]
        execute(connection, [f"CREATE OR REPLACE VIEW {view.name} AS {view.query}"])
        execute(connection, [f"COMMENT ON VIEW {view.name} IS {literal(view.marked_comment)}"])
        execute(connection, (f"COMMENT ON COLUMN {name} IS {literal(comment)}" for name, comment in comments))


def readers_of(
    connection: sa.Connection, columns: Sequence[tuple[str, str]], *, ours: bool = False
) -> Sequence[Reader]:
    """Find the objects that read one of the columns (table, column) or, with `ours`, our views, also through a view.

    They are in the order in which they can be dropped. Those that are not `movable` cannot be restored.
    """
    parameters = {
        "tables": [table for table, _ in columns],
        "columns": [column for _, column in columns],
        "again": _NAMES if ours else [],
        "ours": _NAMES,
    }
    return connection.execute(sa.text(_READERS), parameters).all()


def drop_views(connection: sa.Connection, readers: Iterable[Reader]) -> list[str]:
    """Drop views; return the statements that restore them or, for our own, their grants."""
    back: list[str] = []
    for view in readers:
        back = [*connection.execute(sa.text(_AS_IT_WAS), {"view": view.name, "is_ours": view.is_ours}).scalars(), *back]
        execute(connection, [f"DROP VIEW {view.name}"])
    return back


_AS_IT_WAS = """
SELECT format('CREATE VIEW %s AS %s', c.oid::regclass, pg_get_viewdef(c.oid)) AS statement
FROM pg_class c WHERE c.oid = to_regclass(:view) AND NOT :is_ours
UNION ALL
SELECT CASE objsubid WHEN 0 THEN format('COMMENT ON VIEW %s IS %L', c.oid::regclass, d.description)
       ELSE format('COMMENT ON COLUMN %s.%I IS %L', c.oid::regclass, a.attname, d.description) END
FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid
WHERE c.oid = to_regclass(:view) AND NOT :is_ours
UNION ALL
SELECT format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', c.oid::regclass, a.attname,
              pg_get_expr(e.adbin, e.adrelid))
FROM pg_class c JOIN pg_attrdef e ON e.adrelid = c.oid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = e.adnum
WHERE c.oid = to_regclass(:view)
UNION ALL
SELECT pg_get_ruledef(oid) FROM pg_rewrite WHERE ev_class = to_regclass(:view) AND rulename <> '_RETURN'
UNION ALL
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = to_regclass(:view) AND NOT tgisinternal
UNION ALL
SELECT format('ALTER VIEW %s OWNER TO %I', c.oid::regclass, r.rolname)
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:view) AND r.rolname <> current_user
UNION ALL
-- The owner may have taken rights from himself.
SELECT format('REVOKE ALL ON %s FROM %I', c.oid::regclass, r.rolname)
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:view) AND c.relacl IS NOT NULL
UNION ALL
SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass, coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(:view)
UNION ALL
SELECT format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, c.oid::regclass,
              coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid CROSS JOIN LATERAL aclexplode(t.attacl) a
LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(:view) AND a.grantee <> c.relowner
UNION ALL
SELECT format('ALTER VIEW %s SET (%s)', c.oid::regclass, array_to_string(c.reloptions, ', '))
FROM pg_class c WHERE c.oid = to_regclass(:view) AND c.reloptions IS NOT NULL
"""

_NOT_OURS = """
SELECT c.relname FROM pg_class c
WHERE c.oid IN (SELECT to_regclass(name) FROM unnest(CAST(:views AS text[])) AS name)
  AND (c.relkind <> 'v' OR coalesce(obj_description(c.oid, 'pg_class'), '') NOT LIKE '%(definition %)')
ORDER BY 1
"""

# Rules on tables and materialised views cannot be restored from a definition.
_READERS = """
WITH RECURSIVE wanted AS (
    SELECT a.attrelid, a.attnum
    FROM unnest(CAST(:tables AS text[]), CAST(:columns AS text[])) AS w (name, column_name)
    JOIN pg_attribute a ON a.attrelid = to_regclass(w.name) AND a.attname = w.column_name
), readers AS (
    SELECT r.ev_class AS oid, 1 AS depth
    FROM wanted JOIN pg_depend d
        ON d.refclassid = 'pg_class'::regclass AND d.refobjid = wanted.attrelid AND d.refobjsubid = wanted.attnum
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    UNION
    SELECT to_regclass(name), 0 FROM unnest(CAST(:again AS text[])) AS name WHERE to_regclass(name) IS NOT NULL
    UNION
    SELECT r.ev_class, readers.depth + 1
    FROM readers JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = readers.oid
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.ev_class <> readers.oid
)
SELECT c.oid::regclass::text AS name, c.relkind = 'v' AS movable,
       c.relname = ANY (:ours) AND c.relkind = 'v' AS is_ours,
       pg_describe_object('pg_class'::regclass, c.oid, 0) AS described, max(readers.depth) AS depth
FROM readers JOIN pg_class c ON c.oid = readers.oid
GROUP BY c.oid, c.relkind
UNION ALL
-- A function, say, that takes a row of a view.
SELECT NULL, false, false, pg_describe_object(d.classid, d.objid, d.objsubid), 0
FROM (SELECT DISTINCT oid FROM readers) r JOIN pg_class c ON c.oid = r.oid AND c.relkind = 'v'
JOIN pg_type t ON t.oid = c.reltype
JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray) AND d.deptype = 'n'
ORDER BY depth DESC, name DESC
"""


READER_ROLE = "capacity_reader"
READ_ON_NODES = tuple(table.name for table in PARTITIONED if table is not tables.group_size_aggregations)
"""Relations besides the views on which readers need rights if tables are distributed: Citus checks rights on shards."""
FORECAST_TABLES = (
    "database_size_stats",
    "instance_size_stats",
    "volume_size_stats",
    "database_limit_stats",
    "database_size_aggregations",
    "instance_size_aggregations",
    "capacity_limits",
    "capacity_steps",
    "capacity_decisions",
)
"""The tables that the page What if reads. Without rights on them, a role can read every other page."""
READABLE = (
    *(view.name for view in VIEWS),
    "capacity_bills",
    "capacity_bill_groups",
    "capacity_bill_lines",
    "capacity_prices",
    "capacity_budgets",
    "capacity_scenarios",
    *FORECAST_TABLES,
)
SELECT_ON_SERVERS = "SELECT (id, name, db_type, counted_by, is_active, deleted_at) ON instances"
"""The right on the columns of servers that forecasts read."""


def ensure_reader_role(connection: sa.Connection) -> None:
    """Create the role without a login, and grant it what it reads; for the embedded server."""
    connection.exec_driver_sql(
        f"DO $$ BEGIN CREATE ROLE {READER_ROLE} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    connection.exec_driver_sql(f"GRANT SELECT ON {', '.join(READABLE)} TO {READER_ROLE}")
    connection.exec_driver_sql(f"GRANT {SELECT_ON_SERVERS} TO {READER_ROLE}")
