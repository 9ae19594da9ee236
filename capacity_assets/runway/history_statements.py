"""The statements behind `history`: what is measured and limited, one row per series with all its days."""

from __future__ import annotations

from capacity_assets.storage.active_servers import active_condition
from capacity_assets.units import BYTES_PER_MB

SERVER_ROWS, DATABASE_ROWS, VOLUME_ROWS = "server", "database", "volume"

STALE_DAYS = 31
"""Servers that were not measured for so long have no forecast."""


def _mb(size: str) -> str:
    """The expression of a size in MiB: with its fraction where the exact bytes are known."""
    return f"coalesce({size}_bytes / CAST({BYTES_PER_MB} AS numeric), {size}_mb)"


# Without an end: where forecasts lie on the coordinator, those of a day gone by are scored from these copies too.
_SAMPLED = "collected_date > :before_first"
_DAILY = "period_type = 'daily' AND period_start > :before_first"
READ_OF_DISTRIBUTED = {
    "database_size_stats": _SAMPLED,
    "instance_size_stats": _SAMPLED,
    "database_size_aggregations": _DAILY,
    "instance_size_aggregations": _DAILY,
    "volume_size_stats": _SAMPLED,
    "database_limit_stats": "collected_date > :stale AND collected_date <= :as_of",
}
"""Which rows of each table the statements below read, where these are distributed over nodes."""

NEWEST_DAY = """
SELECT max(day) FROM (
    SELECT max(collected_date) AS day FROM instance_size_stats WHERE collected_date <= :today AND NOT is_deleted
    UNION ALL
    SELECT max(collected_date) FROM database_size_stats WHERE collected_date <= :today
) AS newest
"""

# Servers in service whose newest samples are not stale.
_NEWEST = f"""
newest AS (
    SELECT s.instance_id, max(s.collected_date) AS day FROM database_size_stats s
    JOIN instances i ON i.id = s.instance_id AND {active_condition("i")}
    WHERE s.collected_date > :stale AND s.collected_date <= :as_of
      AND (CAST(:server AS text) IS NULL OR i.name = :server)
    GROUP BY s.instance_id
)"""  # noqa: S608 -- a condition of our own

# What was measured last of each server's volumes, and of the ceilings of its databases.
_LIMITS = """
volume_days AS (
    SELECT instance_id, max(collected_date) AS day FROM volume_size_stats
    WHERE collected_date > :stale AND collected_date <= :as_of GROUP BY instance_id
), volumes AS MATERIALIZED (
    SELECT v.instance_id, v.collected_date AS day, v.volume_name, v.total_mb, v.free_mb, v.source
    FROM volume_days d JOIN volume_size_stats v ON v.instance_id = d.instance_id AND v.collected_date = d.day
    WHERE v.collected_date > :stale AND v.collected_date <= :as_of
), ceiling_days AS (
    SELECT instance_id, max(collected_date) AS day FROM database_limit_stats
    WHERE collected_date > :stale AND collected_date <= :as_of GROUP BY instance_id
), ceilings AS MATERIALIZED (
    SELECT c.instance_id, c.database_name, c.limit_mb, c.volumes, c.source
    FROM ceiling_days d JOIN database_limit_stats c ON c.instance_id = d.instance_id AND c.collected_date = d.day
    WHERE c.collected_date > :stale AND c.collected_date <= :as_of
), places AS (
    SELECT c.instance_id, c.database_name, u.name FROM ceilings c CROSS JOIN LATERAL unnest(c.volumes) AS u (name)
)"""

# Present databases with all their limits; space that is free on only some of the volumes is not known.
_LIMITED = f"""
free AS (
    SELECT p.instance_id, p.database_name, CASE WHEN count(v.volume_name) = count(*) THEN sum(v.free_mb) END AS mb,
           max(v.day) AS day, min(v.source) AS source
    FROM places p LEFT JOIN volumes v ON v.instance_id = p.instance_id AND v.volume_name = p.name
    GROUP BY p.instance_id, p.database_name
), totals AS (
    SELECT t.instance_id, t.collected_date, sum({_mb("t.total_size")}) AS mb FROM instance_size_stats t
    WHERE t.collected_date > :stale AND t.collected_date <= :as_of AND NOT t.is_deleted
    GROUP BY t.instance_id, t.collected_date
), present AS (
    SELECT s.instance_id, s.database_name, {_mb("s.size")} AS size_mb, n.day AS last_day
    FROM newest n JOIN database_size_stats s ON s.instance_id = n.instance_id AND s.collected_date = n.day
    WHERE s.collected_date > :stale AND s.collected_date <= :as_of
), limited AS MATERIALIZED (
    SELECT p.instance_id, p.database_name, p.last_day, own.limit_mb AS own_mb, own.source AS own_source,
           whole.limit_mb AS server_mb, whole.source AS server_source,
           -- Files that cannot extend any more are as large as their ceiling, full inside or not.
           CASE WHEN c.limit_mb > p.size_mb THEN c.limit_mb END AS ceiling_mb,
           c.source AS ceiling_source, free.mb AS free_mb, free.day AS free_day,
           free.source AS free_source,
           CAST(coalesce(t.mb, sum(p.size_mb) OVER (PARTITION BY p.instance_id)) AS float8) AS total_mb
    FROM present p
    LEFT JOIN capacity_limits own ON own.instance_id = p.instance_id AND own.database_name = p.database_name
    LEFT JOIN capacity_limits whole ON whole.instance_id = p.instance_id AND whole.database_name = ''
    LEFT JOIN ceilings c ON c.instance_id = p.instance_id AND c.database_name = p.database_name
    LEFT JOIN free ON free.instance_id = p.instance_id AND free.database_name = p.database_name
    LEFT JOIN totals t ON t.instance_id = p.instance_id AND t.collected_date = p.last_day
)"""  # noqa: S608 -- as above
_IS_LIMITED = (
    "(l.own_source IS NOT NULL OR l.server_source IS NOT NULL OR l.ceiling_mb IS NOT NULL OR l.free_mb IS NOT NULL)"
)
_SERIES = "array_agg(d.day - :before_first) AS days, array_agg(CAST(d.size_mb AS float8)) AS sizes"

_LIMIT_COLUMNS = ", ".join(
    f"l.{name}"
    for name in (
        *("instance_id", "own_mb", "own_source", "server_mb", "server_source", "ceiling_mb", "ceiling_source"),
        *("free_mb", "free_day", "free_source", "total_mb"),
    )
)

# The day numbers count from the day before the first column. A server's own limit has the empty name.
SERVERS = f"""
WITH {_LIMITS}, days AS (
    SELECT s.instance_id, s.collected_date AS day, sum({_mb("s.total_size")}) AS size_mb
    FROM instance_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of AND NOT s.is_deleted
    GROUP BY s.instance_id, s.collected_date
    UNION ALL
    SELECT a.instance_id, a.period_start, a.total_size_mb
    FROM instance_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.collected_date = a.period_start AND NOT s.is_deleted)
), series AS (
    SELECT d.instance_id, max(d.day) AS last_day, {_SERIES} FROM days d GROUP BY d.instance_id
), limited AS (
    SELECT i.id AS instance_id, i.name, own.limit_mb AS own_mb, own.source AS own_source,
           CAST(NULL AS bigint) AS server_mb, NULL AS server_source, CAST(NULL AS bigint) AS ceiling_mb,
           NULL AS ceiling_source, free.mb AS free_mb, free.day AS free_day, free.source AS free_source,
           CAST(NULL AS float8) AS total_mb
    FROM instances i
    LEFT JOIN capacity_limits own ON own.instance_id = i.id AND own.database_name = ''
    LEFT JOIN (
        SELECT v.instance_id, sum(v.free_mb) AS mb, max(v.day) AS day, min(v.source) AS source
        FROM volumes v JOIN (SELECT DISTINCT p.instance_id, p.name FROM places p) AS used
            ON used.instance_id = v.instance_id AND used.name = v.volume_name
        GROUP BY v.instance_id
    ) AS free ON free.instance_id = i.id
    WHERE {active_condition("i")} AND (CAST(:server AS text) IS NULL OR i.name = :server)
)
SELECT l.name AS server, 'server' AS subject, CAST(NULL AS text) AS name, {_LIMIT_COLUMNS}, d.last_day, d.days, d.sizes,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = l.instance_id) AS steps
FROM limited l JOIN series d ON d.instance_id = l.instance_id AND d.last_day > :stale
WHERE :every OR {_IS_LIMITED} ORDER BY l.name
"""  # noqa: S608 -- as above

DATABASES = f"""
WITH {_NEWEST}, {_LIMITS}, {_LIMITED}, days AS (
    SELECT s.instance_id, s.database_name, s.collected_date AS day, {_mb("s.size")} AS size_mb
    FROM database_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
      AND (CAST(:name AS text) IS NULL OR s.database_name = :name)
    UNION ALL
    SELECT a.instance_id, a.database_name, a.period_start, a.avg_size_mb
    FROM database_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND (CAST(:name AS text) IS NULL OR a.database_name = :name)
      AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.database_name = a.database_name AND s.collected_date = a.period_start)
), series AS (
    SELECT d.instance_id, d.database_name, {_SERIES} FROM days d
    WHERE d.instance_id IN (SELECT n.instance_id FROM newest n) GROUP BY d.instance_id, d.database_name
)
SELECT i.name AS server, 'database' AS subject, l.database_name AS name, {_LIMIT_COLUMNS}, l.last_day, d.days, d.sizes,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = l.instance_id AND t.database_name IN ('', l.database_name)) AS steps
FROM limited l JOIN instances i ON i.id = l.instance_id AND (:every OR {_IS_LIMITED})
JOIN series d ON d.instance_id = l.instance_id AND d.database_name = l.database_name
WHERE CAST(:name AS text) IS NULL OR l.database_name = :name
ORDER BY i.name, l.database_name
"""  # noqa: S608 -- as above

# What is used of a volume; its limit is what it holds.
VOLUMES = f"""
WITH {_LIMITS}
SELECT v.instance_id, i.name AS server, 'volume' AS subject, v.volume_name AS name, v.total_mb AS own_mb,
       v.source AS own_source, CAST(NULL AS bigint) AS server_mb, NULL AS server_source,
       CAST(NULL AS bigint) AS ceiling_mb, NULL AS ceiling_source, CAST(NULL AS bigint) AS free_mb,
       CAST(NULL AS date) AS free_day, NULL AS free_source, CAST(NULL AS float8) AS total_mb, v.day AS last_day,
       {_SERIES},
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = v.instance_id) AS steps
FROM volumes v JOIN instances i ON i.id = v.instance_id AND {active_condition("i")}
JOIN LATERAL (
    SELECT s.collected_date AS day, s.total_mb - s.free_mb AS size_mb FROM volume_size_stats s
    WHERE s.instance_id = v.instance_id AND s.volume_name = v.volume_name
      AND s.collected_date > :before_first AND s.collected_date <= v.day
) AS d ON true
WHERE (CAST(:server AS text) IS NULL OR i.name = :server) AND (CAST(:name AS text) IS NULL OR v.volume_name = :name)
GROUP BY {", ".join(map(str, range(1, 16)))} ORDER BY i.name, v.volume_name
"""  # noqa: S608 -- as above

WITHOUT_LIMIT = f"""
WITH {_NEWEST}, {_LIMITS}, {_LIMITED}
SELECT i.name AS server, count(*) AS databases FROM limited l JOIN instances i ON i.id = l.instance_id
WHERE NOT {_IS_LIMITED} AND (CAST(:name AS text) IS NULL OR l.database_name = :name)
GROUP BY i.name ORDER BY i.name
"""  # noqa: S608 -- as above
