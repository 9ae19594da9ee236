"""What the report asks the database. Parameters are named where they are filled in, in `data`."""

from __future__ import annotations

# All rows of one server, or of every server that is not counted by another one.
_OF_SERVER = """(a.instance_id = :server OR (CAST(:server AS integer) IS NULL
       AND a.instance_id <> ALL (ARRAY(SELECT id FROM instances WHERE counted_by IS NOT NULL))))"""

# Both windows side by side, a row a database. Mean sizes are stored rounded down; so are the sums made of them.
PAIRED = f"""
WITH now AS (
    SELECT instance_id, database_name, avg_size_mb FROM database_size_aggregations a
    WHERE period_type = :period AND period_start = :start AND {_OF_SERVER}
), earlier AS (
    SELECT instance_id, database_name, avg_size_mb FROM database_size_aggregations a
    WHERE period_type = :period AND period_start = :before AND {_OF_SERVER}
), measured AS (SELECT DISTINCT instance_id FROM now), measured_before AS (SELECT DISTINCT instance_id FROM earlier),
paired AS (
    SELECT instance_id, database_name AS name, e.avg_size_mb AS before_mb, n.avg_size_mb AS size_mb,
           CASE WHEN e.avg_size_mb IS NULL THEN CASE WHEN b.instance_id IS NULL THEN 'appeared' ELSE 'new' END
                WHEN n.avg_size_mb IS NULL THEN CASE WHEN m.instance_id IS NULL THEN 'missing' ELSE 'gone' END
                WHEN n.avg_size_mb > e.avg_size_mb THEN 'grown'
                WHEN n.avg_size_mb < e.avg_size_mb THEN 'shrunk'
                ELSE 'same' END AS kind
    FROM now n FULL JOIN earlier e USING (instance_id, database_name)
    LEFT JOIN measured m USING (instance_id) LEFT JOIN measured_before b USING (instance_id)
)
"""  # noqa: S608 -- a constant of this module

CHANGES = f"""{PAIRED}
SELECT kind, count(*) AS databases, coalesce(sum(before_mb), 0) AS before_mb,
       coalesce(sum(size_mb), 0) AS size_mb
FROM paired GROUP BY kind
"""  # noqa: S608 -- a constant of this module

LISTED = f"""{PAIRED}
SELECT kind, coalesce(i.name, 'server ' || instance_id) AS server, ranked.name, before_mb, size_mb
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY kind
        ORDER BY abs(coalesce(size_mb, 0) - coalesce(before_mb, 0)) DESC, size_mb DESC, instance_id, name
    ) AS place
    FROM paired
) AS ranked LEFT JOIN instances i ON i.id = instance_id
WHERE place <= :listed AND kind <> 'same' OR :server IS NOT NULL
ORDER BY kind, place
"""  # noqa: S608 -- a constant of this module

SERVERS = f"""{PAIRED}
SELECT coalesce(i.name, 'server ' || instance_id) AS name, coalesce(i.db_type, 'unknown') AS engine,
       count(size_mb) AS databases, coalesce(sum(before_mb), 0) AS before_mb,
       coalesce(sum(size_mb), 0) AS size_mb
FROM paired LEFT JOIN instances i ON i.id = instance_id
GROUP BY instance_id, i.name, i.db_type
HAVING count(size_mb) > 0 AND count(before_mb) > 0
ORDER BY abs(coalesce(sum(size_mb), 0) - coalesce(sum(before_mb), 0)) DESC, instance_id LIMIT :servers_listed
"""  # noqa: S608 -- a constant of this module

HISTORY = f"""
SELECT a.period_start AS window_start,
       CASE WHEN CAST(:server AS integer) IS NULL THEN coalesce(i.db_type, 'unknown')
            ELSE a.database_name END AS series,
       sum(a.avg_size_mb) AS size_mb
FROM database_size_aggregations a LEFT JOIN instances i ON i.id = a.instance_id
WHERE a.period_type = :period AND a.period_start BETWEEN :oldest AND :start AND {_OF_SERVER}
GROUP BY 1, 2 ORDER BY 1, 2
"""  # noqa: S608 -- a constant of this module

MEASURED = """
SELECT collected_date AS day, count(DISTINCT s.instance_id) AS servers FROM instance_size_stats s
WHERE collected_date BETWEEN :before AND :end AND NOT s.is_deleted
  AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)
GROUP BY 1 ORDER BY 1
"""

UNMEASURED = """
SELECT i.name FROM instances i
WHERE i.is_active AND i.deleted_at IS NULL
  AND (CAST(:server AS integer) IS NULL OR i.id = :server)
  AND NOT EXISTS (SELECT FROM database_size_aggregations a
                  WHERE a.instance_id = i.id AND a.period_type = :period AND a.period_start = :start)
ORDER BY i.name
"""

ENDS = """
SELECT (SELECT count(*) FROM instances i
        WHERE i.is_active AND i.deleted_at IS NULL
          AND (CAST(:server AS integer) IS NULL OR i.id = :server)) AS active_servers,
       (SELECT count(*) FROM instances i
        WHERE i.is_active AND i.deleted_at IS NULL AND i.counted_by IS NOT NULL
          AND CAST(:server AS integer) IS NULL) AS counted_by_others,
       (SELECT max(calculated_at) FROM database_size_aggregations a
        WHERE period_type = :period AND period_start = :start
          AND (CAST(:server AS integer) IS NULL OR a.instance_id = :server)) AS computed_at,
       (SELECT min(collected_date) FROM instance_size_stats s
        WHERE NOT is_deleted AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)) AS first_sample,
       (SELECT max(collected_date) FROM instance_size_stats s
        WHERE NOT is_deleted AND (CAST(:server AS integer) IS NULL OR s.instance_id = :server)) AS last_sample
"""
