"""The statements behind `history`: what is measured and limited, one row per series with all its days.

`SERIES` has the days alone: where tables are distributed, nodes put these together. `STATEMENTS` puts them beside their
limits. Servers are given by number: nodes cannot ask the registry, and an index finds the rows of a single one.
"""

from __future__ import annotations

from capacity_assets.base.units import BYTES_PER_MB
from capacity_assets.database.tables import active_condition

SERVER_ROWS, DATABASE_ROWS, VOLUME_ROWS = "server", "database", "volume"

STALE_DAYS = 31
"""Servers that were not measured for so long have no forecast."""


def _mb(size: str) -> str:
    """The expression of a size in MiB: with its fraction where the exact bytes are known."""
    return f"coalesce({size}_bytes / CAST({BYTES_PER_MB} AS numeric), {size}_mb)"


_OF_SERVERS = "{0}.instance_id = ANY (CAST(:instance_ids AS integer[]))"
# Of one server, the days are listed as well, because the keys begin with the day. Of many it is the range that is read.
_LISTED = "(CAST(:days AS date[]) IS NULL OR {0} = ANY (CAST(:days AS date[])))"
_RECENT = (
    "{0}.collected_date > :stale AND {0}.collected_date <= :as_of AND "
    f"{_LISTED.format('{0}.collected_date')} AND {_OF_SERVERS}"
)
_SAMPLED = (
    "{0}.collected_date > :before_first AND {0}.collected_date <= :as_of AND "
    f"{_LISTED.format('{0}.collected_date')} AND {_OF_SERVERS}"
)
_DAILY = (
    "{0}.period_type = 'daily' AND {0}.period_start > :before_first AND {0}.period_start <= :as_of AND "
    f"{_LISTED.format('{0}.period_start')} AND {_OF_SERVERS}"
)


def _newest(table: str, measured: str | None = None) -> str:
    """Rows of each server's newest day in the table itself, or in the one that is `measured`."""
    other = measured or table
    newest = f"SELECT instance_id, max(collected_date) FROM {other} WHERE {_RECENT.format(other)} GROUP BY instance_id"  # noqa: S608 -- names of our own
    return f"{_RECENT.format(table)} AND (instance_id, collected_date) IN ({newest})"


READ_OF_DISTRIBUTED = {
    # Before its databases are copied, of whose newest days these are the totals.
    "instance_size_stats": _newest("instance_size_stats", "database_size_stats"),
    "database_size_stats": _newest("database_size_stats"),
    "volume_size_stats": _newest("volume_size_stats"),
    "database_limit_stats": _newest("database_limit_stats"),
}
"""Which rows of each table `STATEMENTS` and `WITHOUT_LIMIT` read, where these are distributed over nodes."""

SERVERS_IN_SERVICE = f"""
SELECT i.id FROM instances i
WHERE {active_condition("i")} AND (CAST(:servers AS text[]) IS NULL OR i.name = ANY (:servers)) ORDER BY i.id
"""  # noqa: S608 -- a condition of our own

NEWEST_DAY = """
SELECT max(day) FROM (
    SELECT max(collected_date) AS day FROM instance_size_stats WHERE collected_date <= :today AND NOT is_deleted
    UNION ALL
    SELECT max(collected_date) FROM database_size_stats WHERE collected_date <= :today
) AS newest
"""

# The newest days with samples that are not stale, and what was measured last of volumes and ceilings.
_NEWEST = f"""
newest AS (
    SELECT s.instance_id, max(s.collected_date) AS day FROM database_size_stats s
    WHERE {_RECENT.format("s")} GROUP BY s.instance_id
)"""  # noqa: S608 -- conditions of our own
_LIMITS = f"""
volume_days AS (
    SELECT s.instance_id, max(s.collected_date) AS day FROM volume_size_stats s
    WHERE {_RECENT.format("s")} GROUP BY s.instance_id
), volumes AS MATERIALIZED (
    SELECT v.instance_id, v.collected_date AS day, v.volume_name, v.total_mb, v.free_mb, v.used_mb, v.source
    FROM volume_days d JOIN volume_size_stats v ON v.instance_id = d.instance_id AND v.collected_date = d.day
    WHERE {_RECENT.format("v")}
), ceiling_days AS (
    SELECT s.instance_id, max(s.collected_date) AS day FROM database_limit_stats s
    WHERE {_RECENT.format("s")} GROUP BY s.instance_id
), ceilings AS MATERIALIZED (
    SELECT c.instance_id, c.database_name, c.limit_mb, c.volumes, c.source
    FROM ceiling_days d JOIN database_limit_stats c ON c.instance_id = d.instance_id AND c.collected_date = d.day
    WHERE {_RECENT.format("c")}
), places AS (
    SELECT c.instance_id, c.database_name, u.name FROM ceilings c CROSS JOIN LATERAL unnest(c.volumes) AS u (name)
)"""  # noqa: S608 -- as above

# Present databases with all their limits; space that is free on only some of the volumes is not known.
_LIMITED = f"""
free AS (
    SELECT p.instance_id, p.database_name, CASE WHEN count(v.volume_name) = count(*) THEN sum(v.free_mb) END AS mb,
           max(v.day) AS day, min(v.source) AS source
    FROM places p LEFT JOIN volumes v ON v.instance_id = p.instance_id AND v.volume_name = p.name
    GROUP BY p.instance_id, p.database_name
), totals AS (
    SELECT t.instance_id, t.collected_date, sum({_mb("t.total_size")}) AS mb FROM instance_size_stats t
    WHERE {_RECENT.format("t")} AND NOT t.is_deleted GROUP BY t.instance_id, t.collected_date
), present AS (
    SELECT s.instance_id, i.name AS server, s.database_name, {_mb("s.size")} AS size_mb, n.day AS last_day
    FROM newest n JOIN instances i ON i.id = n.instance_id
    JOIN database_size_stats s ON s.instance_id = n.instance_id AND s.collected_date = n.day
    WHERE {_RECENT.format("s")}
), limited AS MATERIALIZED (
    SELECT p.instance_id, p.server, p.database_name, p.last_day, own.limit_mb AS own_mb, own.source AS own_source,
           whole.limit_mb AS server_mb, whole.source AS server_source,
           -- Files that cannot extend any more are as large as their ceiling, full inside or not.
           CASE WHEN c.limit_mb > p.size_mb THEN c.limit_mb END AS ceiling_mb,
           c.source AS ceiling_source, c.volumes, free.mb AS free_mb, free.day AS free_day,
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
_LIMIT_COLUMNS = ", ".join(
    f"l.{name}"
    for name in (
        *("instance_id", "own_mb", "own_source", "server_mb", "server_source", "ceiling_mb", "ceiling_source"),
        *("free_mb", "free_day", "free_source", "total_mb", "volumes"),
    )
)


# The day numbers count from the day before the first column. Sizes are samples, and before the first that is kept the
# daily aggregates.
_DAYS = (
    "array_agg(d.day - :before_first) AS days, array_agg(CAST(d.size_mb AS float8)) AS sizes, max(d.day) AS last_day"
)
_SERVER_DAYS = f"""
    SELECT s.instance_id, s.collected_date AS day, sum({_mb("s.total_size")}) AS size_mb FROM instance_size_stats s
    WHERE {_SAMPLED.format("s")} AND NOT s.is_deleted GROUP BY s.instance_id, s.collected_date
    UNION ALL
    SELECT a.instance_id, a.period_start, a.total_size_mb FROM instance_size_aggregations a
    WHERE {_DAILY.format("a")}
      AND NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.collected_date = a.period_start AND NOT s.is_deleted)"""  # noqa: S608 -- as above
_DATABASE_DAYS = f"""
    SELECT s.instance_id, s.database_name, s.collected_date AS day, {_mb("s.size")} AS size_mb
    FROM database_size_stats s
    WHERE {_SAMPLED.format("s")} AND (CAST(:name AS text) IS NULL OR s.database_name = :name)
    UNION ALL
    SELECT a.instance_id, a.database_name, a.period_start, a.avg_size_mb FROM database_size_aggregations a
    WHERE {_DAILY.format("a")} AND (CAST(:name AS text) IS NULL OR a.database_name = :name)
      AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.database_name = a.database_name AND s.collected_date = a.period_start)"""  # noqa: S608 -- as above
# Days without a known used size are reduced by the reserve known now, so that its first measurement is not a drop.
_VOLUME_DAYS = f"""
    SELECT s.instance_id, s.volume_name, s.collected_date AS day,
           coalesce(s.used_mb, greatest(s.total_mb - s.free_mb - coalesce(max(s.total_mb - s.free_mb - s.used_mb)
               OVER (PARTITION BY s.instance_id, s.volume_name), 0), 0)) AS size_mb
    FROM volume_size_stats s
    WHERE {_SAMPLED.format("s")} AND (CAST(:name AS text) IS NULL OR s.volume_name = :name)"""  # noqa: S608 -- as above
SERIES = {
    SERVER_ROWS: f"SELECT d.instance_id, {_DAYS} FROM ({_SERVER_DAYS}) AS d GROUP BY d.instance_id",  # noqa: S608 -- as above
    DATABASE_ROWS: f"""SELECT d.instance_id, d.database_name AS name, {_DAYS} FROM ({_DATABASE_DAYS}) AS d
GROUP BY d.instance_id, d.database_name""",  # noqa: S608 -- as above
    VOLUME_ROWS: f"""SELECT d.instance_id, d.volume_name AS name, {_DAYS} FROM ({_VOLUME_DAYS}) AS d
GROUP BY d.instance_id, d.volume_name""",  # noqa: S608 -- as above
}
"""The days and sizes of each server, database and volume, in no order."""


def _steps(of: str) -> str:
    """The days of the declared steps of a series."""
    steps = f"SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t WHERE {of}"  # noqa: S608 -- as above
    return f"({steps}) AS steps"


_SERVERS = f"""
WITH {_LIMITS}, series AS ({{series}}), limited AS (
    SELECT i.id AS instance_id, i.name, own.limit_mb AS own_mb, own.source AS own_source,
           CAST(NULL AS bigint) AS server_mb, NULL AS server_source, CAST(NULL AS bigint) AS ceiling_mb,
           NULL AS ceiling_source, free.mb AS free_mb, free.day AS free_day, free.source AS free_source,
           CAST(NULL AS float8) AS total_mb, CAST(NULL AS varchar[]) AS volumes
    FROM instances i
    LEFT JOIN capacity_limits own ON own.instance_id = i.id AND own.database_name = ''
    LEFT JOIN (
        SELECT v.instance_id, sum(v.free_mb) AS mb, max(v.day) AS day, min(v.source) AS source
        FROM volumes v JOIN (SELECT DISTINCT p.instance_id, p.name FROM places p) AS used
            ON used.instance_id = v.instance_id AND used.name = v.volume_name
        GROUP BY v.instance_id
    ) AS free ON free.instance_id = i.id
)
SELECT l.name AS server, 'server' AS subject, CAST(NULL AS text) AS name, {_LIMIT_COLUMNS}, d.last_day, d.days, d.sizes,
       {_steps("t.instance_id = l.instance_id")}
FROM limited l JOIN series d ON d.instance_id = l.instance_id AND d.last_day > :stale
WHERE :every OR {_IS_LIMITED} ORDER BY l.name
"""  # noqa: S608 -- as above

_DATABASES = f"""
WITH {_NEWEST}, {_LIMITS}, {_LIMITED}, series AS ({{series}})
SELECT l.server, 'database' AS subject, l.database_name AS name, {_LIMIT_COLUMNS}, d.last_day, d.days, d.sizes,
       {_steps("t.instance_id = l.instance_id AND t.database_name IN ('', l.database_name)")}
FROM limited l JOIN series d ON d.instance_id = l.instance_id AND d.name = l.database_name
WHERE :every OR {_IS_LIMITED} ORDER BY l.server, l.database_name
"""  # noqa: S608 -- as above

# The used size of a volume; its limit is its total size without the reserve.
_VOLUMES = f"""
WITH {_LIMITS}, series AS ({{series}})
SELECT v.instance_id, i.name AS server, 'volume' AS subject, v.volume_name AS name,
       coalesce(v.used_mb + v.free_mb, v.total_mb) AS own_mb,
       v.source AS own_source, CAST(NULL AS bigint) AS server_mb, NULL AS server_source,
       CAST(NULL AS bigint) AS ceiling_mb, NULL AS ceiling_source, CAST(NULL AS bigint) AS free_mb,
       CAST(NULL AS date) AS free_day, NULL AS free_source, CAST(NULL AS float8) AS total_mb,
       CAST(NULL AS varchar[]) AS volumes, d.last_day, d.days, d.sizes, {_steps("t.instance_id = v.instance_id")}
FROM volumes v JOIN instances i ON i.id = v.instance_id
JOIN series d ON d.instance_id = v.instance_id AND d.name = v.volume_name
ORDER BY i.name, v.volume_name
"""  # noqa: S608 -- as above
STATEMENTS = {SERVER_ROWS: _SERVERS, DATABASE_ROWS: _DATABASES, VOLUME_ROWS: _VOLUMES}
"""Each series beside its limits, to be filled with where the series are read from."""

WITHOUT_LIMIT = f"""
WITH {_NEWEST}, {_LIMITS}, {_LIMITED}
SELECT l.server, count(*) AS databases FROM limited l
WHERE NOT {_IS_LIMITED} AND (CAST(:name AS text) IS NULL OR l.database_name = :name)
GROUP BY l.server ORDER BY l.server
"""  # noqa: S608 -- as above
