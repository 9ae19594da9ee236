"""The sizes that forecasts look at: samples, and before the first that is kept the daily aggregates.

Only what has a limit is read. How sizes go on is the business of `forecast`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, text

from capacity_assets.forecast.model import HISTORY_DAYS, Sizes
from capacity_assets.storage.active_servers import active_condition
from capacity_assets.units import BYTES_PER_MB

BATCH = 2_000
"""Series that are read and forecast together, so that memory does not grow with the fleet."""

STALE_DAYS = 31
"""Servers that were not measured for so long have no forecast."""


@dataclass(frozen=True)
class Histories:
    """A batch of series with limits: who each one is, and its sizes in MiB, one column per day up to its last one."""

    subjects: Sequence[Row[Any]]
    sizes: Sizes


def newest_day(connection: Connection, today: date) -> date | None:
    """Return the newest day with samples up to `today`."""
    found: date | None = connection.execute(text(_NEWEST_DAY), {"today": today}).scalar()
    return found


def servers(connection: Connection, as_of: date, server: str | None) -> Iterator[Histories]:
    """Yield the totals of servers in service that have a limit of their own.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    yield from _batches(connection, _SERVERS, as_of, server)


def databases(
    connection: Connection, as_of: date, server: str | None, database: str | None = None
) -> Iterator[Histories]:
    """Yield the databases of servers in service that have a limit, or whose server has one. Raises as `servers`."""
    yield from _batches(connection, _DATABASES, as_of, server, database)


def without_limit(connection: Connection, as_of: date, server: str | None) -> int:
    """Count the databases whose limit is unknown: neither they nor their servers have one. Raises as `servers`."""
    return int(connection.execute(text(_WITHOUT_LIMIT), _parameters(as_of, server)).scalar_one())


def _parameters(as_of: date, server: str | None) -> dict[str, object]:
    return {
        "as_of": as_of,
        "before_first": as_of - timedelta(days=HISTORY_DAYS),
        "stale": as_of - timedelta(days=STALE_DAYS),
        "server": server,
    }


def _batches(
    connection: Connection, query: str, as_of: date, server: str | None, database: str | None = None
) -> Iterator[Histories]:
    # All rows are read: without this a cursor takes the plan whose first row comes soonest, three times slower.
    connection.execute(text("SET LOCAL cursor_tuple_fraction = 1"))
    options = {"yield_per": BATCH}
    parameters = {**_parameters(as_of, server), "database": database}
    rows = connection.execute(text(query), parameters, execution_options=options)
    for batch in rows.partitions():
        sizes = np.full((len(batch), HISTORY_DAYS), np.nan)
        for place, row in enumerate(batch):
            # A day that was not measured is no day without a change: each series ends with its own last one.
            not_measured_since = (as_of - row.last_day).days
            sizes[place, np.asarray(row.days) - 1 + not_measured_since] = row.sizes
        yield Histories(batch, sizes)


def _mb(size: str) -> str:
    """The expression of a size in MiB: with its fraction where the exact bytes are known."""
    return f"coalesce({size}_bytes / CAST({BYTES_PER_MB} AS numeric), {size}_mb)"


_NEWEST_DAY = """
SELECT max(day) FROM (
    SELECT max(collected_date) AS day FROM instance_size_stats WHERE collected_date <= :today AND NOT is_deleted
    UNION ALL
    SELECT max(collected_date) FROM database_size_stats WHERE collected_date <= :today
) AS newest
"""
# The day numbers count from the day before the first column. A server's own limit has the empty name.
_SERVERS = f"""
WITH days AS (
    SELECT s.instance_id, s.collected_date AS day, {_mb("s.total_size")} AS size_mb
    FROM instance_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of AND NOT s.is_deleted
    UNION ALL
    SELECT a.instance_id, a.period_start, a.total_size_mb
    FROM instance_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first
      AND NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.collected_date = a.period_start AND NOT s.is_deleted)
)
SELECT i.name AS server, NULL AS database, l.limit_mb AS own_mb, l.source AS own_source,
       CAST(NULL AS bigint) AS server_mb, NULL AS server_source, CAST(NULL AS float8) AS total_mb,
       array_agg(d.day - :before_first ORDER BY d.day) AS days,
       array_agg(CAST(d.size_mb AS float8) ORDER BY d.day) AS sizes, max(d.day) AS last_day
FROM days d JOIN instances i ON i.id = d.instance_id AND {active_condition("i")}
JOIN capacity_limits l ON l.instance_id = i.id AND l.database_name = ''
WHERE CAST(:server AS text) IS NULL OR i.name = :server
GROUP BY i.name, l.limit_mb, l.source HAVING max(d.day) > :stale ORDER BY i.name
"""  # noqa: S608 -- a condition of our own
_NEWEST = f"""
newest AS (
    SELECT s.instance_id, max(s.collected_date) AS day FROM database_size_stats s
    JOIN instances i ON i.id = s.instance_id AND {active_condition("i")}
    WHERE s.collected_date > :stale AND s.collected_date <= :as_of
      AND (CAST(:server AS text) IS NULL OR i.name = :server)
    GROUP BY s.instance_id
)
"""  # noqa: S608 -- as above
_DATABASES = f"""
WITH {_NEWEST}, present AS (
    SELECT s.instance_id, s.database_name, {_mb("s.size")} AS size_mb, n.day AS last_day
    FROM newest n
    JOIN database_size_stats s ON s.instance_id = n.instance_id AND s.collected_date = n.day
), limited AS MATERIALIZED (
    SELECT p.instance_id, p.database_name, p.last_day, own.limit_mb AS own_mb, own.source AS own_source,
           whole.limit_mb AS server_mb, whole.source AS server_source,
           CAST(coalesce(
               (SELECT {_mb("t.total_size")} FROM instance_size_stats t
                WHERE t.instance_id = p.instance_id AND t.collected_date = p.last_day AND NOT t.is_deleted
                ORDER BY t.id DESC LIMIT 1),
               sum(p.size_mb) OVER (PARTITION BY p.instance_id)
           ) AS float8) AS total_mb
    FROM present p
    LEFT JOIN capacity_limits own ON own.instance_id = p.instance_id AND own.database_name = p.database_name
    LEFT JOIN capacity_limits whole ON whole.instance_id = p.instance_id AND whole.database_name = ''
), days AS (
    SELECT s.instance_id, s.database_name, s.collected_date AS day,
           {_mb("s.size")} AS size_mb
    FROM database_size_stats s WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
    UNION ALL
    SELECT a.instance_id, a.database_name, a.period_start, a.avg_size_mb
    FROM database_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first
      AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.database_name = a.database_name AND s.collected_date = a.period_start)
)
SELECT i.name AS server, l.database_name AS database, l.own_mb, l.own_source, l.server_mb, l.server_source, l.total_mb,
       array_agg(d.day - :before_first ORDER BY d.day) AS days,
       array_agg(CAST(d.size_mb AS float8) ORDER BY d.day) AS sizes, l.last_day
FROM limited l JOIN instances i ON i.id = l.instance_id AND (l.own_source IS NOT NULL OR l.server_source IS NOT NULL)
JOIN days d ON d.instance_id = l.instance_id AND d.database_name = l.database_name
WHERE CAST(:database AS text) IS NULL OR l.database_name = :database
GROUP BY i.name, l.database_name, l.own_mb, l.own_source, l.server_mb, l.server_source, l.total_mb, l.last_day
ORDER BY i.name, l.database_name
"""  # noqa: S608 -- as above
_WITHOUT_LIMIT = f"""
WITH {_NEWEST}
SELECT count(*) FROM newest n
JOIN database_size_stats s ON s.instance_id = n.instance_id AND s.collected_date = n.day
WHERE NOT EXISTS (
    SELECT FROM capacity_limits l
    WHERE l.instance_id = s.instance_id AND l.database_name IN ('', s.database_name)
)
"""  # noqa: S608 -- as above
