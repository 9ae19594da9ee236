"""The statements of `history`: what is measured and limited, one row per series with all its days.

A statement reads `SOURCES` by name. They are parts of the statement, or where tables are distributed temporary tables
of these names that the nodes have filled. Servers are given by number: nodes do not have the registry, and an index
finds the rows of a single server.
"""

from __future__ import annotations

from sqlalchemy import TextualSelect, text

SERVER_ROWS, DATABASE_ROWS, VOLUME_ROWS, GROUP_ROWS = "server", "database", "volume", "group"

OF_NO_SERVER = 0
"""Stands for the number of a server in rows of groups; no server has it."""

STALE_DAYS = 31
"""Servers that were not measured for so long have no forecast."""

NEWEST_DAY = """
SELECT max(day) FROM (
    SELECT max(collected_date) AS day FROM instance_size_stats WHERE collected_date <= :today AND NOT is_deleted
    UNION ALL
    SELECT max(collected_date) FROM database_size_stats WHERE collected_date <= :today
) AS newest
"""

# The databases of each server on its newest day, and the total of the server on that day.
_PRESENT = """
SELECT s.instance_id, s.database_name, s.collected_date AS last_day,
       coalesce(s.size_bytes / CAST(1048576 AS numeric), s.size_mb) AS size_mb, t.size_mb AS total_mb
FROM database_size_stats s
JOIN (
    SELECT n.instance_id, max(n.collected_date) AS day FROM database_size_stats n
    WHERE n.collected_date = ANY (CAST(:recent_days AS date[]))
      AND n.instance_id = ANY (CAST(:instance_ids AS integer[]))
    GROUP BY n.instance_id
) AS newest ON newest.instance_id = s.instance_id AND newest.day = s.collected_date
LEFT JOIN (
    SELECT t.instance_id, t.collected_date,
           sum(coalesce(t.total_size_bytes / CAST(1048576 AS numeric), t.total_size_mb)) AS size_mb
    FROM instance_size_stats t
    WHERE t.collected_date = ANY (CAST(:recent_days AS date[]))
      AND t.instance_id = ANY (CAST(:instance_ids AS integer[])) AND NOT t.is_deleted
    GROUP BY t.instance_id, t.collected_date
) AS t ON t.instance_id = s.instance_id AND t.collected_date = s.collected_date
WHERE s.collected_date = ANY (CAST(:recent_days AS date[])) AND s.instance_id = ANY (CAST(:instance_ids AS integer[]))
"""
_NEWEST_VOLUMES = """
SELECT v.instance_id, v.collected_date AS day, v.volume_name, v.total_mb, v.free_mb, v.used_mb, v.source
FROM volume_size_stats v
JOIN (
    SELECT n.instance_id, max(n.collected_date) AS day FROM volume_size_stats n
    WHERE n.collected_date = ANY (CAST(:recent_days AS date[]))
      AND n.instance_id = ANY (CAST(:instance_ids AS integer[]))
    GROUP BY n.instance_id
) AS newest ON newest.instance_id = v.instance_id AND newest.day = v.collected_date
WHERE v.collected_date = ANY (CAST(:recent_days AS date[])) AND v.instance_id = ANY (CAST(:instance_ids AS integer[]))
"""
_NEWEST_CEILINGS = """
SELECT c.instance_id, c.database_name, c.limit_mb, c.volumes, c.source
FROM database_limit_stats c
JOIN (
    SELECT n.instance_id, max(n.collected_date) AS day FROM database_limit_stats n
    WHERE n.collected_date = ANY (CAST(:recent_days AS date[]))
      AND n.instance_id = ANY (CAST(:instance_ids AS integer[]))
    GROUP BY n.instance_id
) AS newest ON newest.instance_id = c.instance_id AND newest.day = c.collected_date
WHERE c.collected_date = ANY (CAST(:recent_days AS date[])) AND c.instance_id = ANY (CAST(:instance_ids AS integer[]))
"""

# The last day on which each server in service was measured.
LAST_MEASURED = """
SELECT d.instance_id, max(d.day) AS day FROM (
    SELECT t.instance_id, t.collected_date AS day FROM instance_size_stats t
    WHERE t.collected_date = ANY (CAST(:recent_days AS date[]))
      AND t.instance_id = ANY (CAST(:instance_ids AS integer[])) AND NOT t.is_deleted
    UNION ALL
    SELECT s.instance_id, s.collected_date FROM database_size_stats s
    WHERE s.collected_date = ANY (CAST(:recent_days AS date[]))
      AND s.instance_id = ANY (CAST(:instance_ids AS integer[]))
) AS d GROUP BY d.instance_id
"""
COMPLETE_GROUP_DAYS = """
SELECT c.label_key, c.label_value, c.day, c.size_mb FROM (
    SELECT a.label_key, a.label_value, a.period_start AS day, a.avg_size_mb AS size_mb, a.server_count AS servers,
           max(a.server_count) OVER (of_group RANGE BETWEEN '14 days' PRECEDING AND '1 day' PRECEDING) AS before,
           max(a.server_count) OVER (of_group RANGE BETWEEN '1 day' FOLLOWING AND '14 days' FOLLOWING) AS after
    FROM group_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND a.label_key <> '(total)'
    WINDOW of_group AS (PARTITION BY a.label_key, a.label_value ORDER BY a.period_start)
) AS c
WHERE c.before IS NULL OR c.servers >= c.before OR (coalesce(c.after, 0) <= c.servers AND NOT EXISTS (
    SELECT FROM last_measured m JOIN instances i ON i.id = m.instance_id
    WHERE i.counted_by IS NULL AND m.day < c.day AND m.day >= c.day - 14))
"""
"""The stored daily sums of groups, without days on which a server is missing: there are fewer than within 14 days
before, and more again within 14 days after, or a server in service was not measured since. Reads `last_measured`."""

# The days and sizes of each server, database and volume: samples, and before the first sample that is kept the daily
# aggregates. Day numbers count from the day before the first column. For one server the days are listed as well,
# because the keys begin with the day; for many it is the range that is read.
_SERVER_SERIES = """
SELECT d.instance_id, array_agg(d.day - :before_first) AS days, array_agg(CAST(d.size_mb AS float8)) AS sizes,
       max(d.day) AS last_day
FROM (
    SELECT s.instance_id, s.collected_date AS day,
           sum(coalesce(s.total_size_bytes / CAST(1048576 AS numeric), s.total_size_mb)) AS size_mb
    FROM instance_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
      AND (CAST(:days AS date[]) IS NULL OR s.collected_date = ANY (CAST(:days AS date[])))
      AND s.instance_id = ANY (CAST(:instance_ids AS integer[])) AND NOT s.is_deleted
    GROUP BY s.instance_id, s.collected_date
    UNION ALL
    SELECT a.instance_id, a.period_start, a.total_size_mb FROM instance_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND (CAST(:days AS date[]) IS NULL OR a.period_start = ANY (CAST(:days AS date[])))
      AND a.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.collected_date = a.period_start AND NOT s.is_deleted)
) AS d GROUP BY d.instance_id
"""
_DATABASE_SERIES = """
SELECT d.instance_id, d.database_name AS name, array_agg(d.day - :before_first) AS days,
       array_agg(CAST(d.size_mb AS float8)) AS sizes, max(d.day) AS last_day
FROM (
    SELECT s.instance_id, s.database_name, s.collected_date AS day,
           coalesce(s.size_bytes / CAST(1048576 AS numeric), s.size_mb) AS size_mb
    FROM database_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
      AND (CAST(:days AS date[]) IS NULL OR s.collected_date = ANY (CAST(:days AS date[])))
      AND s.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND (CAST(:name AS text) IS NULL OR s.database_name = :name)
    UNION ALL
    SELECT a.instance_id, a.database_name, a.period_start, a.avg_size_mb FROM database_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND (CAST(:days AS date[]) IS NULL OR a.period_start = ANY (CAST(:days AS date[])))
      AND a.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND (CAST(:name AS text) IS NULL OR a.database_name = :name)
      AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.database_name = a.database_name AND s.collected_date = a.period_start)
) AS d GROUP BY d.instance_id, d.database_name
"""
# Days without a known used size are reduced by the reserve known now, so that its first measurement is not a drop.
_VOLUME_SERIES = """
SELECT d.instance_id, d.volume_name AS name, array_agg(d.day - :before_first) AS days,
       array_agg(CAST(d.size_mb AS float8)) AS sizes, max(d.day) AS last_day
FROM (
    SELECT s.instance_id, s.volume_name, s.collected_date AS day,
           coalesce(s.used_mb, greatest(s.total_mb - s.free_mb - coalesce(max(s.total_mb - s.free_mb - s.used_mb)
               OVER (PARTITION BY s.instance_id, s.volume_name), 0), 0)) AS size_mb
    FROM volume_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
      AND (CAST(:days AS date[]) IS NULL OR s.collected_date = ANY (CAST(:days AS date[])))
      AND s.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND (CAST(:name AS text) IS NULL OR s.volume_name = :name)
) AS d GROUP BY d.instance_id, d.volume_name
"""
SOURCES = {
    "server_series": _SERVER_SERIES,
    "database_series": _DATABASE_SERIES,
    "volume_series": _VOLUME_SERIES,
    "present": _PRESENT,
    "newest_volumes": _NEWEST_VOLUMES,
    "newest_ceilings": _NEWEST_CEILINGS,
    "last_measured": LAST_MEASURED,
}
"""What the statements read of samples and aggregates, by name, in the order in which nodes fill the tables."""

# Present databases with all their limits; space that is free on only some of the volumes is not known.
_LIMITED = """
WITH free AS (
    SELECT p.instance_id, p.database_name, CASE WHEN count(v.volume_name) = count(*) THEN sum(v.free_mb) END AS mb,
           max(v.day) AS day, min(v.source) AS source
    FROM (SELECT instance_id, database_name, unnest(volumes) AS volume_name FROM newest_ceilings) AS p
    LEFT JOIN newest_volumes v ON v.instance_id = p.instance_id AND v.volume_name = p.volume_name
    GROUP BY p.instance_id, p.database_name
)
SELECT p.instance_id, i.name AS server, p.database_name, p.last_day, own.limit_mb AS own_mb,
       own.source AS own_source, whole.limit_mb AS server_mb, whole.source AS server_source,
       -- Files that cannot extend any more are as large as their ceiling, full inside or not.
       CASE WHEN c.limit_mb > p.size_mb THEN c.limit_mb END AS ceiling_mb,
       c.source AS ceiling_source, c.volumes, free.mb AS free_mb, free.day AS free_day, free.source AS free_source,
       CAST(coalesce(p.total_mb, sum(p.size_mb) OVER (PARTITION BY p.instance_id)) AS float8) AS total_mb
FROM present p
JOIN instances i ON i.id = p.instance_id
LEFT JOIN capacity_limits own ON own.instance_id = p.instance_id AND own.database_name = p.database_name
LEFT JOIN capacity_limits whole ON whole.instance_id = p.instance_id AND whole.database_name = ''
LEFT JOIN newest_ceilings c ON c.instance_id = p.instance_id AND c.database_name = p.database_name
LEFT JOIN free ON free.instance_id = p.instance_id AND free.database_name = p.database_name
"""
_SERVERS = """
SELECT i.name AS server, 'server' AS subject, CAST(NULL AS text) AS name, i.id AS instance_id,
       own.limit_mb AS own_mb, own.source AS own_source, CAST(NULL AS bigint) AS server_mb, NULL AS server_source,
       CAST(NULL AS bigint) AS ceiling_mb, NULL AS ceiling_source, free.mb AS free_mb, free.day AS free_day,
       free.source AS free_source, CAST(NULL AS float8) AS total_mb, free.volumes, d.last_day, d.days, d.sizes,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t WHERE t.instance_id = i.id)
           AS steps
FROM server_series d
JOIN instances i ON i.id = d.instance_id
LEFT JOIN capacity_limits own ON own.instance_id = i.id AND own.database_name = ''
LEFT JOIN (
    SELECT v.instance_id, sum(v.free_mb) AS mb, max(v.day) AS day, min(v.source) AS source,
           array_agg(v.volume_name ORDER BY v.volume_name) AS volumes
    FROM newest_volumes v
    JOIN (SELECT DISTINCT instance_id, unnest(volumes) AS volume_name FROM newest_ceilings) AS used
        ON used.instance_id = v.instance_id AND used.volume_name = v.volume_name
    GROUP BY v.instance_id
) AS free ON free.instance_id = i.id
WHERE d.last_day > :stale AND (:every OR num_nonnulls(own.source, free.mb) > 0)
ORDER BY i.name
"""
_DATABASES = """
SELECT l.server, 'database' AS subject, l.database_name AS name, l.instance_id, l.own_mb, l.own_source, l.server_mb,
       l.server_source, l.ceiling_mb, l.ceiling_source, l.free_mb, l.free_day, l.free_source, l.total_mb, l.volumes,
       d.last_day, d.days, d.sizes,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = l.instance_id AND t.database_name IN ('', l.database_name)) AS steps
FROM limited l JOIN database_series d ON d.instance_id = l.instance_id AND d.name = l.database_name
WHERE :every OR num_nonnulls(l.own_source, l.server_source, l.ceiling_mb, l.free_mb) > 0
ORDER BY l.server, l.database_name
"""
# The used size of a volume; its limit is its total size without the reserve.
_VOLUMES = """
SELECT i.name AS server, 'volume' AS subject, v.volume_name AS name, v.instance_id,
       coalesce(v.used_mb + v.free_mb, v.total_mb) AS own_mb, v.source AS own_source,
       CAST(NULL AS bigint) AS server_mb, NULL AS server_source, CAST(NULL AS bigint) AS ceiling_mb,
       NULL AS ceiling_source, CAST(NULL AS bigint) AS free_mb, CAST(NULL AS date) AS free_day, NULL AS free_source,
       CAST(NULL AS float8) AS total_mb, CAST(NULL AS varchar[]) AS volumes, d.last_day, d.days, d.sizes,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = v.instance_id) AS steps
FROM newest_volumes v
JOIN instances i ON i.id = v.instance_id
JOIN volume_series d ON d.instance_id = v.instance_id AND d.name = v.volume_name
ORDER BY i.name, v.volume_name
"""
# Days on which a label of a server of the group begins or ends, and of declared steps of such a server. Each takes the
# growth of its day with it: a group of many servers would lose its growth to many of them.
_GROUP_STEPS = """
WITH spans AS MATERIALIZED (
    SELECT instance_id, key, value, valid_from, valid_until FROM capacity_label_spans
), ends AS MATERIALIZED (
    SELECT e.instance_id, e.key, e.day
    FROM (SELECT instance_id, key, valid_from AS day FROM spans
          UNION ALL SELECT instance_id, key, valid_until FROM spans
          UNION ALL SELECT instance_id, NULL, step_date FROM capacity_steps) AS e
    WHERE e.day > :before_first AND e.day <= :as_of
), members AS MATERIALIZED (
    SELECT DISTINCT instance_id, key, value FROM spans WHERE value IS NOT NULL
    UNION ALL SELECT i.id, k.key, '' FROM instances i CROSS JOIN (SELECT DISTINCT key FROM spans) AS k
    UNION ALL SELECT id, 'engine', db_type FROM instances
    UNION ALL SELECT id, '(fleet)', '(fleet)' FROM instances
)
SELECT m.key, m.value, array_agg(DISTINCT e.day - :before_first) AS days
FROM members m JOIN ends e ON e.instance_id = m.instance_id AND coalesce(e.key, m.key) = m.key
GROUP BY m.key, m.value HAVING count(DISTINCT e.day) <= 24
"""
_GROUPS = """
SELECT g.name AS server, 'group' AS subject, g.name, 0 AS instance_id, CAST(NULL AS bigint) AS own_mb,
       NULL AS own_source, CAST(NULL AS bigint) AS server_mb, NULL AS server_source, CAST(NULL AS bigint) AS ceiling_mb,
       NULL AS ceiling_source, CAST(NULL AS bigint) AS free_mb, CAST(NULL AS date) AS free_day, NULL AS free_source,
       CAST(NULL AS float8) AS total_mb, CAST(NULL AS varchar[]) AS volumes, g.last_day, g.days, g.sizes,
       m.days AS steps
FROM (
    SELECT label_key, label_value, label_key || '=' || label_value AS name, array_agg(day - :before_first) AS days,
           array_agg(CAST(size_mb AS float8)) AS sizes, max(day) AS last_day
    FROM complete_group_days GROUP BY label_key, label_value
) AS g
LEFT JOIN group_steps m ON m.key = g.label_key AND m.value = g.label_value
WHERE g.last_day > :stale ORDER BY g.name
"""
_WITHOUT_LIMIT = """
SELECT l.server, count(*) AS databases FROM limited l
WHERE num_nonnulls(l.own_source, l.server_source, l.ceiling_mb, l.free_mb) = 0
  AND (CAST(:name AS text) IS NULL OR l.database_name = :name)
GROUP BY l.server ORDER BY l.server
"""
KINDS = (SERVER_ROWS, DATABASE_ROWS, VOLUME_ROWS)
"""What can be full; groups have sizes and forecasts, but no limit."""
WITHOUT_LIMIT = "without limit"
_STATEMENTS = {
    SERVER_ROWS: (_SERVERS, ("newest_volumes", "newest_ceilings", "server_series")),
    DATABASE_ROWS: (_DATABASES, ("present", "newest_volumes", "newest_ceilings", "limited", "database_series")),
    VOLUME_ROWS: (_VOLUMES, ("newest_volumes", "volume_series")),
    GROUP_ROWS: (_GROUPS, ("last_measured", "complete_group_days", "group_steps")),
    WITHOUT_LIMIT: (_WITHOUT_LIMIT, ("present", "newest_volumes", "newest_ceilings", "limited")),
}
"""The statements, and what each reads by name."""
_MATERIALIZED = ("newest_volumes", "newest_ceilings", "limited", "last_measured")
_MADE_OF_SOURCES = {
    "limited": _LIMITED,
    "complete_group_days": COMPLETE_GROUP_DAYS,
    "group_steps": _GROUP_STEPS,
}


def sources_of(kind: str) -> list[str]:
    """Name the sources that the statement of a kind reads."""
    return [name for name in _STATEMENTS[kind][1] if name in SOURCES]


def statement(kind: str, *, from_copies: bool) -> TextualSelect:
    """Return the series of a kind of subject beside their limits, or how many databases of each server have none."""
    query, names = _STATEMENTS[kind]
    parts = _MADE_OF_SOURCES if from_copies else {**SOURCES, **_MADE_OF_SOURCES}
    ctes = [text(parts[name]).columns().cte(name) for name in names if name in parts]
    prefixed = (cte.prefix_with("MATERIALIZED") if cte.name in _MATERIALIZED else cte for cte in ctes)
    return text(query).columns().add_cte(*prefixed)
