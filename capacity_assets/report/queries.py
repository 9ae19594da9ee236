"""The queries of the report. Their parameters are named in `data`, which provides them.

Totals are sums of `capacity_server_sizes`. A database counts in them with its share of the server's measured days, so
renaming a database, or a copy that existed for a day, changes no total.
"""

from __future__ import annotations

from capacity_assets.storage.active_servers import active_condition
from capacity_assets.storage.time_zone import TODAY
from capacity_assets.storage.window_expressions import SERVER_SIZES, TIES, possible

# All rows of one server, or of every server that is not counted by another one.
_OF_SERVER = """(a.instance_id = :server OR (CAST(:server AS integer) IS NULL
       AND a.instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))))"""

# One row per server and window of `starts`: its size and the number of measured days.
SERVER_WINDOWS = f"""
database_windows AS MATERIALIZED (
    SELECT instance_id, database_name, period_start, avg_size_mb, data_count, size_change_mb
    FROM database_size_aggregations a
    WHERE {possible("avg_size_mb", "size_change_mb")} AND period_type = :period
      AND period_start BETWEEN :oldest AND :start
      AND period_start = ANY (CAST(:starts AS date[])) AND {{of_server}}
), server_windows AS MATERIALIZED (
    SELECT instance_id, period_start, data_count AS days, total_size_mb AS size_mb, total_size_change_mb AS change_mb,
           database_count AS databases
    FROM {SERVER_SIZES} a
    WHERE period_type = :period AND period_start BETWEEN :oldest AND :start
      AND period_start = ANY (CAST(:starts AS date[])) AND {{of_server}}
)"""  # noqa: S608 -- constants of this module
_SERVER_WINDOWS = SERVER_WINDOWS.format(of_server=_OF_SERVER)

# Both windows side by side, a row per server.
_SERVERS = f"""
WITH {_SERVER_WINDOWS},
servers AS MATERIALIZED (
    SELECT instance_id, n.size_mb, n.days, n.databases, e.size_mb AS before_mb, e.days AS days_before,
           e.databases AS databases_before, n.change_mb
    FROM (SELECT * FROM server_windows WHERE period_start = :start) AS n
    FULL JOIN (SELECT * FROM server_windows WHERE period_start = :before) AS e USING (instance_id)
)"""  # noqa: S608 -- a constant of this module

# And a row per database. The change of one that was there on every measured day of its server is the stored one.
PAIRED = f"""{_SERVERS},
paired AS (
    SELECT instance_id, database_name AS name, e.avg_size_mb AS before_mb, n.avg_size_mb AS size_mb,
           e.data_count AS before_count, n.data_count AS now_count, greatest(n.data_count, s.days) AS days,
           greatest(e.data_count, s.days_before) AS days_before,
           e.avg_size_mb * CAST(e.data_count AS numeric) / greatest(e.data_count, s.days_before) AS part_before_mb,
           n.avg_size_mb * CAST(n.data_count AS numeric) / greatest(n.data_count, s.days) AS part_mb,
           coalesce(n.size_change_mb, n.avg_size_mb - e.avg_size_mb) AS change_mb,
           CASE WHEN s.before_mb IS NULL THEN 'appeared'
                WHEN s.size_mb IS NULL THEN 'missing'
                WHEN e.avg_size_mb IS NULL THEN 'new'
                WHEN n.avg_size_mb IS NULL THEN 'gone'
                WHEN n.data_count < s.days OR e.data_count < s.days_before THEN 'partly'
                WHEN coalesce(n.size_change_mb, n.avg_size_mb - e.avg_size_mb) > 0 THEN 'grown'
                WHEN coalesce(n.size_change_mb, n.avg_size_mb - e.avg_size_mb) < 0 THEN 'shrunk'
                ELSE 'same' END AS kind
    FROM (SELECT * FROM database_windows WHERE period_start = :start) AS n
    FULL JOIN (SELECT * FROM database_windows WHERE period_start = :before) AS e USING (instance_id, database_name)
    JOIN servers s USING (instance_id)
)
"""  # noqa: S608 -- constants of this module

CHANGES = f"""{PAIRED}
SELECT kind, count(*) AS databases, round(coalesce(sum(part_before_mb), 0)) AS before_mb,
       round(coalesce(sum(part_mb), 0)) AS size_mb,
       CASE WHEN kind IN ('grown', 'shrunk', 'same') THEN sum(change_mb)
            ELSE round(coalesce(sum(part_mb), 0) - coalesce(sum(part_before_mb), 0)) END AS change_mb
FROM paired GROUP BY kind
"""  # noqa: S608 -- a constant of this module

LISTED = f"""{PAIRED}
SELECT kind, coalesce(i.name, 'server ' || instance_id) AS server, ranked.name, before_mb, size_mb, moved_mb,
       before_count, now_count, days, days_before
FROM (
    SELECT *, row_number() OVER (
               PARTITION BY kind ORDER BY abs(moved_mb) DESC, {TIES}
           ) AS place
    FROM (
        SELECT *, instance_id AS server_id, name AS database,
               CASE WHEN kind IN ('grown', 'shrunk', 'same') THEN change_mb
                       ELSE round(coalesce(part_mb, 0) - coalesce(part_before_mb, 0)) END AS moved_mb
        FROM paired
    ) AS moved
) AS ranked LEFT JOIN instances i ON i.id = instance_id
WHERE place <= :listed AND kind <> 'same' OR :server IS NOT NULL
ORDER BY kind, place
"""  # noqa: S608 -- a constant of this module

# What the headline and the ends of the waterfall say.
TOTALS = f"""{_SERVERS}
SELECT coalesce(sum(before_mb), 0) AS start_mb, coalesce(sum(size_mb), 0) AS end_mb,
       sum(change_mb) AS known_change_mb, coalesce(sum(size_mb - change_mb), 0) AS known_before_mb,
       coalesce(sum(size_mb) FILTER (WHERE before_mb IS NULL), 0) AS appeared_mb,
       coalesce(sum(before_mb) FILTER (WHERE size_mb IS NULL), 0) AS missing_mb,
       coalesce(sum(databases), 0) AS databases,
       count(before_mb) AS servers_before, count(size_mb) AS servers
FROM servers
"""  # noqa: S608 -- a constant of this module

SERVERS = f"""{_SERVERS}
SELECT coalesce(i.name, 'server ' || instance_id) AS name, coalesce(i.db_type, 'unknown') AS engine,
       databases, coalesce(before_mb, size_mb - change_mb) AS before_mb, size_mb, change_mb
FROM servers LEFT JOIN instances i ON i.id = instance_id
WHERE change_mb IS NOT NULL
ORDER BY abs(change_mb) DESC, size_mb DESC, instance_id LIMIT :servers_listed
"""  # noqa: S608 -- a constant of this module

HISTORY = f"""
WITH {_SERVER_WINDOWS}
SELECT s.period_start AS window_start, coalesce(i.db_type, 'unknown') AS series, sum(s.size_mb) AS size_mb
FROM server_windows s LEFT JOIN instances i ON i.id = s.instance_id
WHERE CAST(:server AS integer) IS NULL GROUP BY 1, 2
UNION ALL
SELECT d.period_start, d.database_name,
       round(d.avg_size_mb * CAST(d.data_count AS numeric) / greatest(d.data_count, s.days))
FROM database_windows d JOIN server_windows s USING (instance_id, period_start)
WHERE CAST(:server AS integer) IS NOT NULL
ORDER BY 1, 2
"""  # noqa: S608 -- a constant of this module

# A server is expected from its first sample to its retirement: one that was registered since is not missing before.
_FIRST_AND_LAST = """instances i CROSS JOIN LATERAL (
        SELECT min(s.collected_date) AS first_day, max(s.collected_date) AS last_day FROM instance_size_stats s
        WHERE s.instance_id = i.id AND NOT s.is_deleted
    ) AS f"""
# Where rows are distributed, a subquery must not depend on the row of the outer query.
_ENDS_ON_NODES = """(
        SELECT instance_id, min(collected_date) AS first_day, max(collected_date) AS last_day FROM instance_size_stats
        WHERE NOT is_deleted GROUP BY instance_id
    ) AS f"""
_MEASURED = f"""
WITH spans AS (
    SELECT f.first_day, CASE WHEN {active_condition("i")} THEN NULL
                             ELSE coalesce(CAST(i.deleted_at AS date) - 1, f.last_day) END AS last_day
    FROM {{first_and_last}}
    WHERE f.first_day IS NOT NULL AND (CAST(:server AS integer) IS NULL OR i.id = :server)
), steps AS (
    SELECT day, sum(step) AS step FROM (
        SELECT first_day AS day, 1 AS step FROM spans
        UNION ALL SELECT greatest(last_day, first_day) + 1, -1 FROM spans WHERE last_day IS NOT NULL
    ) AS both_ends GROUP BY day
), measured AS (
    SELECT collected_date AS day, count(DISTINCT s.instance_id) AS servers FROM instance_size_stats s
    WHERE collected_date BETWEEN :before AND :end AND NOT s.is_deleted
      AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)
    GROUP BY 1
)
SELECT CAST(d.day AS date) AS day, coalesce(m.servers, 0) AS measured,
       greatest(coalesce(m.servers, 0), coalesce((SELECT sum(step) FROM steps WHERE steps.day <= d.day), 0)) AS expected
FROM generate_series(CAST(:before AS date), CAST(:end AS date), interval '1 day') AS d (day)
LEFT JOIN measured m ON m.day = CAST(d.day AS date) ORDER BY 1
"""  # noqa: S608 -- a constant condition
MEASURED = _MEASURED.format(first_and_last=_FIRST_AND_LAST)
MEASURED_ON_NODES = _MEASURED.format(first_and_last=f"instances i JOIN {_ENDS_ON_NODES} ON f.instance_id = i.id")

UNMEASURED = f"""
SELECT i.name, NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = i.id AND NOT s.is_deleted)
               AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = i.id) AS never_measured
FROM instances i
WHERE {active_condition("i")}
  AND (CAST(:server AS integer) IS NULL OR i.id = :server)
  AND NOT EXISTS (SELECT FROM database_size_aggregations a
                  WHERE a.instance_id = i.id AND a.period_type = :period AND a.period_start = :start)
  AND NOT EXISTS (SELECT FROM instance_size_aggregations a
                  WHERE a.instance_id = i.id AND a.period_type = :period AND a.period_start = :start)
  -- Nobody expects a server before its first sample.
  AND NOT EXISTS (SELECT FROM instance_size_stats s
                  WHERE s.instance_id = i.id AND NOT s.is_deleted HAVING min(s.collected_date) > :end)
ORDER BY i.name
"""  # noqa: S608 -- a constant condition

UNMEASURED_ON_NODES = f"""
SELECT i.name, f.instance_id IS NULL AND d.instance_id IS NULL AS never_measured
FROM instances i
LEFT JOIN {_ENDS_ON_NODES} ON f.instance_id = i.id
LEFT JOIN (SELECT DISTINCT instance_id FROM database_size_stats) AS d ON d.instance_id = i.id
WHERE {active_condition("i")}
  AND (CAST(:server AS integer) IS NULL OR i.id = :server)
  AND i.id NOT IN (SELECT a.instance_id FROM database_size_aggregations a
                   WHERE a.period_type = :period AND a.period_start = :start)
  AND i.id NOT IN (SELECT a.instance_id FROM instance_size_aggregations a
                   WHERE a.period_type = :period AND a.period_start = :start)
  AND (f.first_day IS NULL OR f.first_day <= :end)
ORDER BY i.name
"""  # noqa: S608 -- a constant condition

ENDS = f"""
SELECT now() AS read_at,
       (SELECT count(*) FROM instances i
        WHERE {active_condition("i")}
          AND (CAST(:server AS integer) IS NULL OR i.id = :server)) AS active_servers,
       (SELECT count(*) FROM instances i
        WHERE {active_condition("i")} AND i.counted_by IS NOT NULL
          AND CAST(:server AS integer) IS NULL) AS counted_by_others,
       (SELECT max(calculated_at) FROM database_size_aggregations a
        WHERE period_type = :period AND period_start = :start
          AND (CAST(:server AS integer) IS NULL OR a.instance_id = :server)) AS computed_at,
       (SELECT min(collected_date) FROM instance_size_stats s
        WHERE NOT is_deleted AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)) AS first_sample,
       (SELECT max(collected_date) FROM instance_size_stats s
        WHERE NOT is_deleted AND collected_date <= {TODAY}
          AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)) AS last_sample
"""  # noqa: S608 -- a constant condition

# Why figures of a closed window are others than they were: samples of the two windows that came or changed since.
SAMPLES_SINCE = """
SELECT coalesce(i.name, 'server ' || s.instance_id) AS server,
       count(*) FILTER (WHERE s.created_at > :since) AS added,
       count(*) FILTER (WHERE s.created_at <= :since AND s.updated_at > :since) AS corrected
FROM (
    SELECT instance_id, created_at, updated_at FROM database_size_stats
    WHERE collected_date BETWEEN :before AND :end AND (created_at > :since OR updated_at > :since)
      AND (CAST(:server AS integer) IS NULL OR instance_id = :server)
    UNION ALL
    SELECT instance_id, created_at, updated_at FROM instance_size_stats
    WHERE collected_date BETWEEN :before AND :end AND (created_at > :since OR updated_at > :since)
      AND (CAST(:server AS integer) IS NULL OR instance_id = :server)
) AS s LEFT JOIN instances i ON i.id = s.instance_id
GROUP BY 1 ORDER BY 1
"""
