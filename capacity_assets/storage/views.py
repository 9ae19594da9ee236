"""The views that reports, BI tools and Grafana read: names people use, units in them, stable.

They hide how the tables are keyed and partitioned, nothing else: every figure is a stored one. Columns are only ever
added, at the end, so that what is built on a view goes on working. `capacity init` creates and renews them.
"""

from __future__ import annotations

from collections.abc import Sequence

from capacity_assets.periods import PERIODS
from capacity_assets.storage.changes import STALE_WINDOWS_VIEW
from capacity_assets.storage.group_views import GROUP_VIEWS
from capacity_assets.storage.label_expressions import SPANS_BY_SERVER, labels_in, labels_of
from capacity_assets.storage.runway_views import RUNWAY_VIEWS
from capacity_assets.storage.size_metrics import PART_SIZES, PartSize
from capacity_assets.storage.view import View, views_in
from capacity_assets.storage.window_expressions import SERVER_SIZES, before, possible
from capacity_assets.units import LARGEST_MB

_REGISTER = "LEFT JOIN instances i ON i.id = a.instance_id"
_REGISTER_WITH_LABELS = f"{_REGISTER}\nLEFT JOIN {SPANS_BY_SERVER} AS labelled ON labelled.instance_id = a.instance_id"

_TOTALS = """
SELECT instance_id,  -- Server, instances.id
       period_type,  -- Name of the period, such as daily or monthly
       period_start,  -- First day of the window
       period_end,  -- Last day of the window, included
       data_count,  -- Days with samples in the window
       total_size_mb,  -- Mean daily total of the server, rounded down, MiB
       total_size_change_mb,  -- Change of the mean against the window before, cut toward zero, MiB; null: unknown
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
# Windows with days on which a server has databases but no total, as the level of groups found. Sizes of databases are
# weighted by their days, so that renaming a database changes no sum. Both parts have the same types; otherwise
# PostgreSQL pushes no condition down into them.
_SERVER_SIZES = f"""{_TOTALS}
WHERE {possible("total_size_mb", "total_size_change_mb")}
UNION ALL
SELECT n.instance_id, w.period_type, w.period_start, n.period_end, n.days, CAST(n.size_mb AS bigint),
       CAST(n.size_mb - n.before_mb AS bigint),
       CAST(round((n.size_mb - n.before_mb) * 100 / nullif(n.before_mb, 0), 2) AS numeric(30, 2)),
       CAST(n.databases AS integer), NULL, NULL, CAST(NULL AS varchar(20)), NULL, NULL, NULL, NULL,
       CAST(NULL AS numeric(30, 2)), NULL, true
FROM (
    SELECT g.period_type, g.period_start, {before("g")} AS before_start FROM group_size_aggregations g
    WHERE g.label_key = '(total)' AND g.label_value = 'derived') AS w
CROSS JOIN LATERAL (
    SELECT s.instance_id, max(s.period_end) AS period_end,
           max(s.days) FILTER (WHERE s.period_start = w.period_start) AS days,
           max(s.size_mb) FILTER (WHERE s.period_start = w.period_start) AS size_mb,
           max(s.databases) FILTER (WHERE s.period_start = w.period_start) AS databases,
           max(s.size_mb) FILTER (WHERE s.period_start = w.before_start AND s.size_mb <= {LARGEST_MB}) AS before_mb
    FROM (
        SELECT d.instance_id, d.period_start, max(d.period_end) AS period_end, max(d.data_count) AS days,
               div(sum(CAST(d.avg_size_mb AS numeric) * d.data_count), max(d.data_count)) AS size_mb,
               div(sum(d.data_count), max(d.data_count)) AS databases
        FROM database_size_aggregations d
        WHERE d.period_type = w.period_type AND d.period_start = ANY (ARRAY[w.period_start, w.before_start])
          AND NOT EXISTS (SELECT FROM instance_size_aggregations t
                          WHERE t.instance_id = d.instance_id AND t.period_type = d.period_type
                            AND t.period_start = d.period_start)
        GROUP BY d.instance_id, d.period_start) AS s
    GROUP BY s.instance_id
    HAVING max(s.size_mb) FILTER (WHERE s.period_start = w.period_start) <= {LARGEST_MB}) AS n"""  # noqa: S608 -- constants

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
          -- Whether sums over the fleet count it; false: another server does, whose replica it is or whose storage it
          -- shares
       greatest(0, least(a.period_end, current_date) - a.period_start + 1) AS elapsed_days,
          -- Days of the window up to today, the day of the session's time zone
       (a.period_end > current_date) AS is_open,  -- Whether days of the window are still to come"""


def _further(stem: str, last: str) -> str:
    """Return columns on the ends of a window and on a year, of the measure that growth follows."""
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


def _parts(parts: Sequence[PartSize]) -> str:
    return "".join(
        f"a.avg_{part.stem}_mb AS {part.stem}_mb,  -- Mean size of {part.files}, MiB; null: not measured\n       "
        for part in parts
    )


def _growth(rows: str, labels: str) -> str:
    """Return the query of the growth of databases; the first two parts of a size are older than other columns."""
    return f"""{_WINDOW_AND_SERVER}
       a.database_name AS database,  -- Name of the database
       a.avg_size_mb AS size_mb,  -- Mean total size, rounded down, MiB
       a.max_size_mb AS largest_size_mb,  -- Largest total size, MiB
       a.min_size_mb AS smallest_size_mb,  -- Smallest total size, MiB
       {_parts(PART_SIZES[:2])}a.size_change_mb AS change_mb,
          -- Change of the mean against the window before, MiB; null: unknown
       a.size_change_percent AS change_percent,  -- The same in percent; null: unknown, or from 0
       a.trend_direction AS trend,  -- growing, shrinking or stable; null: nothing to compare with
       {_SAMPLED}{_further("size", "last_size_mb")}       {_parts(PART_SIZES[2:])}{labels} AS labels
          -- Labels on the last day of the window, as JSON: labels ->> 'team'
FROM {rows}"""


def _server_growth(register: str, labels: str) -> str:
    return f"""{_WINDOW_AND_SERVER}
       a.total_size_mb AS size_mb,  -- Mean daily total, rounded down, MiB
       a.max_size_mb AS largest_size_mb,  -- Largest daily total, MiB
       a.min_size_mb AS smallest_size_mb,  -- Smallest daily total, MiB
       a.total_size_change_mb AS change_mb,  -- Change of the mean against the window before, MiB; null: unknown
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
_NEWEST = " UNION ALL ".join(
    f"SELECT CAST('{name}' AS text) AS name, max(period_start) AS period_start "  # noqa: S608 -- names of periods, checked where they are registered
    f"FROM database_size_aggregations WHERE period_type = '{name}'"
    for name in PERIODS
)
# Found period by period, by the first columns of the key, whatever the size of the history.
_OF_NEWEST_WINDOWS = f"""({_NEWEST}) AS newest
JOIN database_size_aggregations a ON a.period_type = newest.name AND a.period_start = newest.period_start"""
# The rows of a window, and those of the window before whose server has none in it.
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
          -- Servers that were not measured in the window before, whose size does not count as growth
       count(a.missing_size_mb) AS servers_missing,
          -- Servers measured in the window before and not in this one, whose absence does not count as shrinkage
       sum(a.missing_size_mb) AS missing_size_mb,  -- Their size in the window before, MiB; null: none
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
       sum(s.total_size_mb) FILTER (WHERE i.counted_by IS NULL) AS size_mb
          -- Sum of the sizes measured of servers that are not counted by another one, MiB
FROM instance_size_stats s LEFT JOIN instances i ON i.id = s.instance_id
WHERE NOT s.is_deleted
GROUP BY 1;
""")

# By these, readers reach what figures are made of without a right on any table.
READER_VIEWS = views_in(f"""
-- The registered servers.
CREATE VIEW capacity_servers AS
SELECT i.id AS server_id,  -- Number of the server
       i.name AS server,  -- Name of the server
       i.db_type AS engine,  -- Engine: mysql, postgresql, sqlserver, oracle, ...
       (i.is_active AND i.deleted_at IS NULL) AS is_active,  -- Whether it is in service
       c.name AS counted_by,  -- Server that counts in its place; null: it counts itself
       {labels_of("i.id", None, "current_date")} AS labels  -- Its labels of today, as JSON
FROM instances i LEFT JOIN instances c ON c.id = i.counted_by;

-- The samples of databases.
CREATE VIEW capacity_samples AS
SELECT s.collected_date AS day,  -- Day of the sample
       s.instance_id AS server_id,  -- Number of the server
       coalesce(i.name, 'server ' || s.instance_id) AS server,  -- Name of the server
       s.database_name AS database,  -- Name of the database
       s.size_mb,  -- Total size, MiB
       s.collected_at,  -- When it was taken
       s.created_at,  -- When it was first written
       s.updated_at  -- When it was last changed
FROM database_size_stats s LEFT JOIN instances i ON i.id = s.instance_id;

-- The samples of whole servers.
CREATE VIEW capacity_server_samples AS
SELECT s.collected_date AS day,  -- Day of the sample
       s.instance_id AS server_id,  -- Number of the server
       coalesce(i.name, 'server ' || s.instance_id) AS server,  -- Name of the server
       s.total_size_mb AS size_mb,  -- Total size of its databases, MiB
       s.database_count AS databases,  -- Number of its databases
       s.collected_at,  -- When it was taken
       s.created_at,  -- When it was first written
       s.updated_at  -- When it was last changed
FROM instance_size_stats s LEFT JOIN instances i ON i.id = s.instance_id
WHERE NOT s.is_deleted;

-- The samples of volumes.
CREATE VIEW capacity_volumes AS
SELECT s.collected_date AS day,  -- Day of the sample
       s.instance_id AS server_id,  -- Number of the server
       coalesce(i.name, 'server ' || s.instance_id) AS server,  -- Name of the server
       s.volume_name AS volume,  -- File system, disk group or pool
       s.total_mb,  -- How much it holds, MiB
       s.free_mb,  -- How much of that is free, MiB
       coalesce(s.used_mb, s.total_mb - s.free_mb) AS used_mb,  -- Used space, MiB
       s.source,  -- Where the figures come from: measured or imported
       s.collected_at  -- When it was taken
FROM volume_size_stats s LEFT JOIN instances i ON i.id = s.instance_id;

-- What became of each server on each day of the last months.
CREATE VIEW capacity_attempts AS
SELECT s.collected_date AS day,  -- Day that was measured
       s.instance_id AS server_id,  -- Number of the server
       coalesce(i.name, 'server ' || s.instance_id) AS server,  -- Name of the server
       s.status,  -- collected or failed
       s.failure,  -- Kind of the failure; null: none
       s.reason,  -- Why it failed, and what to do; null: it did not
       s.attempted_at  -- When the last attempt ended
FROM capacity_collection_attempts s LEFT JOIN instances i ON i.id = s.instance_id;

-- Changes of size that people declared, which no forecast takes for a trend.
CREATE VIEW capacity_declared_steps AS
SELECT s.instance_id AS server_id,  -- Number of the server
       coalesce(i.name, 'server ' || s.instance_id) AS server,  -- Name of the server
       nullif(s.database_name, '') AS database,  -- Database; null: all databases of the server
       s.step_date AS day,  -- First day with the new size
       s.note  -- What happened
FROM capacity_steps s LEFT JOIN instances i ON i.id = s.instance_id;
""")  # noqa: S608 -- constants

VIEWS = (
    View(
        SERVER_SIZES,
        "Size of each server in each window: its total or, without a total, the sum of its databases.",
        _SERVER_SIZES,
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
    *RUNWAY_VIEWS,
    *READER_VIEWS,
    STALE_WINDOWS_VIEW,
)
