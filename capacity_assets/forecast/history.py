"""The input of forecasts: the sizes of each subject by day, and its limits.

Sizes are samples; before the oldest sample they are daily aggregates. If tables share the free space inside the files
of their database, and the used space was measured within the last month, sizes are those of the used space.

Statements read `SOURCES` by name: as CTEs or, if tables are distributed, as temporary tables that the nodes fill.
Servers are given by number because nodes do not have the registry, and because an index then finds the rows of a single
server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import ARRAY, Connection, Row, Text, TextualSelect, any_, literal, select, text

from capacity_assets.aggregates.groups import (
    GROUP_DAYS_OF_SERVERS,
    STORED_SERVERS_LEFT_OUT,
    left_out_parameters,
)
from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.database.tables import instances, is_active
from capacity_assets.forecast.model import Sizes, without_steps
from capacity_assets.forecast.results import DATABASE, GROUP, HISTORY_DAYS, SERVER, STALE_DAYS, VOLUME

BATCH = 500
"""Number of series that are read and forecast together, which bounds memory on large fleets."""
KINDS = (SERVER, DATABASE, VOLUME)
"""Subjects that can fill; groups have sizes and forecasts but no limits."""
WITHOUT_LIMIT, LIMITS = "without limit", "limits"
OF_NO_SERVER = 0
"""The server number in rows of groups; no server has it."""


@dataclass(frozen=True, slots=True)
class LimitedSubject:
    """A server, database, volume or group with all of its known limits, MiB; groups have none."""

    server: str
    subject: str
    name: str
    """The database, volume or group; empty: the server as a whole."""
    instance_id: int
    last_day: date
    own_mb: float | None = None
    own_source: str | None = None
    """The source of the limit. `declared` without a limit: declared as unlimited."""
    ceiling_mb: float | None = None
    """Largest size that the files of a database can have."""
    ceiling_source: str | None = None
    server_mb: float | None = None
    """The limit of its server."""
    server_source: str | None = None
    total_mb: float | None = None
    """Size of its server on its last day."""
    free_mb: float | None = None
    """Free space of its volumes; None: unknown for at least one of them."""
    free_day: date | None = None
    free_source: str | None = None
    volumes: Sequence[str] | None = None
    """Volumes on which it grows; None: unknown."""
    fills_files: bool = False
    """Whether its sizes are those of the used space inside its files."""


_FIELDS = {attribute.name for attribute in fields(LimitedSubject)}


@dataclass(frozen=True)
class HistoryScope:
    """The selection: the day, the servers and name (None: all), and whether subjects without a limit are included."""

    as_of: date
    servers: Collection[str] | None = None
    name: str | None = None
    every: bool = False

    def parameters(self, server_ids: Sequence[int]) -> dict[str, object]:
        """Return the parameters of the statements, for servers by number."""
        days = [self.as_of - timedelta(days=back) for back in range(HISTORY_DAYS)]
        return {
            "as_of": self.as_of,
            "before_first": self.as_of - timedelta(days=HISTORY_DAYS),
            "stale": self.as_of - timedelta(days=STALE_DAYS),
            "recent_days": days[:STALE_DAYS],
            "days_of_one_server": days if len(server_ids) == 1 else None,
            "instance_ids": list(server_ids),
            "name": self.name,
            "every": self.every,
        }


@dataclass(frozen=True)
class SeriesBatch:
    """A batch of series: the subjects, and their sizes in MiB with one column per day up to the last of each.

    `smooth` are the sizes without declared steps: sizes before a step are moved to the level after it. `files` are the
    sizes of the files, which differ from `sizes` if these are of the used space inside.
    """

    subjects: Sequence[LimitedSubject]
    sizes: Sizes
    smooth: Sizes
    files: Sizes

    def of(self, places: Sequence[int]) -> SeriesBatch:
        """Return some of the series."""
        arrays = (array[places] for array in (self.sizes, self.smooth, self.files))
        return SeriesBatch([self.subjects[place] for place in places], *arrays)


def newest_day(connection: Connection, today: date) -> date | None:
    """Return the newest day with samples up to `today`."""
    newest: date | None = connection.execute(text(NEWEST_DAY), {"today": today}).scalar()
    return newest


@contextmanager
def open_history_reader(
    connection: Connection, scope: HistoryScope, kinds: Sequence[str] = KINDS
) -> Iterator[HistoryReader]:
    """Open a reader for series of these kinds, within a transaction; raises DBAPIError.

    If tables are distributed, the nodes first fill temporary tables with `SOURCES`, which exist until the block ends.
    """
    in_service = select(instances.c.id).where(is_active()).order_by(instances.c.id)
    if scope.servers is not None:
        in_service = in_service.where(instances.c.name == any_(literal(list(scope.servers), ARRAY(Text))))
    parameters = scope.parameters(connection.execute(in_service).scalars().all())
    if GROUP in kinds:
        parameters |= _departed_parameters(connection, scope.as_of)
    # Those of the limits are the same as those without a limit.
    names = {name for kind in (*kinds, WITHOUT_LIMIT) for name in _STATEMENTS[kind][1]}
    queries = {name: query for name, query in SOURCES.items() if name in names}
    with copied_for_reading(connection, queries, parameters) as are_copied:
        yield HistoryReader(connection, scope, parameters, are_copied)


def _departed_parameters(connection: Connection, as_of: date) -> dict[str, object]:
    """Return the parameters of `departed_group_days`: servers out of service that were last measured before a day.

    A server that was not measured within a month counts as departed. On days before the oldest sample that is kept,
    sizes are daily aggregates. Steps of groups leave the same servers out.
    """
    of_retired = select(instances.c.id).where(~is_active(), instances.c.counted_by.is_(None))
    retired = connection.execute(of_retired).scalars().all()
    since = [as_of + timedelta(days=ahead) for ahead in range(STALE_DAYS)]
    still = connection.execute(text(LAST_MEASURED), {"recent_days": since, "instance_ids": retired}).scalars().all()
    departed = sorted({*retired} - {*still})
    oldest = connection.execute(text(_OLDEST_DAYS)).one()
    days = [as_of - timedelta(days=back) for back in range(HISTORY_DAYS)] if departed else []
    without = {
        f"without_{name}": [day for day in days if oldest_day is None or day < oldest_day]
        for name, oldest_day in oldest._mapping.items()  # noqa: SLF001 -- SQLAlchemy's public name
    }
    left_out = connection.execute(text(STORED_SERVERS_LEFT_OUT), {"days": days})
    return {"servers": departed, "days": days, **without, **left_out_parameters(left_out)}


@dataclass(frozen=True)
class HistoryReader:
    """Reads the series of servers in service, and counts databases without a limit. Its calls raise DBAPIError."""

    connection: Connection
    scope: HistoryScope
    parameters: Mapping[str, object]
    from_copies: bool

    def series(self, kind: str, names: Collection[str] | None = None) -> Iterator[SeriesBatch]:
        """Yield the series of one kind of subject, in batches; of databases, only those with these names if given."""
        # All rows are read. By default, a cursor gets the plan that returns its first row soonest: three times slower.
        self.connection.execute(text("SET LOCAL cursor_tuple_fraction = 1"))
        query = _statement(kind, from_copies=self.from_copies)
        parameters = {**self.parameters, "names": None if names is None else list(names)}
        rows = self.connection.execute(query, parameters, execution_options={"yield_per": BATCH})
        names = [name for name in rows.keys() if name in _FIELDS]  # noqa: SIM118 -- of a result, not of a mapping
        for batch in rows.partitions(BATCH):
            subjects = [LimitedSubject(**{name: getattr(row, name) for name in names}) for row in batch]
            yield self._series_batch(subjects, batch)

    def _series_batch(self, subjects: Sequence[LimitedSubject], batch: Sequence[Row[Any]]) -> SeriesBatch:
        files = np.full((len(batch), HISTORY_DAYS), np.nan)
        # One array if no sizes are those of used space inside files.
        sizes = files.copy() if any(subject.fills_files for subject in subjects) else files
        steps, dated = [], list(subjects)
        for place, (subject, row) in enumerate(zip(subjects, batch, strict=True)):
            days, of_files = np.asarray(row.days), np.asarray(row.sizes, dtype=np.float64)
            used = np.asarray(row.used, dtype=np.float64) if subject.fills_files else of_files
            # Each series ends with its own last measured day: an unmeasured day is not a day without a change.
            last = int(days[~np.isnan(used)].max())
            columns, is_until = days + HISTORY_DAYS - 1 - last, days <= last
            files[place, columns[is_until]] = of_files[is_until]
            sizes[place, columns[is_until]] = used[is_until]
            if subject.fills_files:
                dated[place] = replace(subject, last_day=self.scope.as_of - timedelta(days=HISTORY_DAYS - last))
                sizes[place] = with_estimates(files[place], sizes[place])
            steps.append([day + HISTORY_DAYS - 1 - last for day in row.steps or ()])
        return SeriesBatch(dated, sizes, without_steps(sizes, steps), files)

    def limits(self) -> list[LimitedSubject]:
        """Return the databases with their limits, and without their series."""
        rows = self.connection.execute(_statement(LIMITS, from_copies=self.from_copies), self.parameters)
        return [LimitedSubject(**row._mapping) for row in rows]  # noqa: SLF001 -- SQLAlchemy's public name

    def without_limit(self) -> dict[str, int]:
        """Count the databases without a known limit, by server."""
        rows = self.connection.execute(_statement(WITHOUT_LIMIT, from_copies=self.from_copies), self.parameters)
        return {row.server: row.databases for row in rows}


def with_estimates(files: Sizes, used: Sizes) -> Sizes:
    """Return the used space inside files, with estimates for the days before it was first measured.

    An estimate is the size of the files less the free space of that first day, so that the first measurement is not a
    drop. On days on which the files had the size of that day, the used space stays unknown.
    """
    first = int(np.argmax(~np.isnan(used)))
    estimates = np.maximum(files[:first] - (files[first] - used[first]), 0.0)
    return np.concatenate([np.where(files[:first] == files[first], np.nan, estimates), used[first:]])


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
       coalesce(s.size_bytes / CAST(1048576 AS numeric), s.size_mb) AS size_mb, t.size_mb AS total_mb,
       used.instance_id IS NOT NULL AS has_used
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
LEFT JOIN (
    SELECT DISTINCT u.instance_id, u.database_name FROM database_size_stats u
    WHERE u.collected_date = ANY (CAST(:recent_days AS date[]))
      AND u.instance_id = ANY (CAST(:instance_ids AS integer[])) AND u.used_size_mb IS NOT NULL
) AS used ON used.instance_id = s.instance_id AND used.database_name = s.database_name
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
SELECT c.instance_id, c.database_name, c.limit_mb, c.volumes, c.source, c.fills_files
FROM database_limit_stats c
JOIN (
    SELECT n.instance_id, max(n.collected_date) AS day FROM database_limit_stats n
    WHERE n.collected_date = ANY (CAST(:recent_days AS date[]))
      AND n.instance_id = ANY (CAST(:instance_ids AS integer[]))
    GROUP BY n.instance_id
) AS newest ON newest.instance_id = c.instance_id AND newest.day = c.collected_date
WHERE c.collected_date = ANY (CAST(:recent_days AS date[])) AND c.instance_id = ANY (CAST(:instance_ids AS integer[]))
"""

# Which of these servers were measured on these days, and their last one.
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
STORED_GROUP_DAYS = """
SELECT label_key, label_value, period_start AS day, avg_size_mb AS size_mb, server_count AS servers
FROM group_size_aggregations
WHERE period_type = 'daily' AND period_start > :before_first AND period_start <= :as_of AND label_key <> '(total)'
"""
"""The stored daily sums of groups."""
COMPLETE_GROUP_DAYS = """
SELECT c.label_key, c.label_value, c.day, c.size_mb FROM (
    SELECT a.*,
           max(a.servers) OVER (of_group RANGE BETWEEN '14 days' PRECEDING AND '1 day' PRECEDING) AS before,
           max(a.servers) OVER (of_group RANGE BETWEEN '1 day' FOLLOWING AND '14 days' FOLLOWING) AS after
    FROM group_days a
    WINDOW of_group AS (PARTITION BY a.label_key, a.label_value ORDER BY a.day)
) AS c
WHERE c.before IS NULL OR c.servers >= c.before OR (coalesce(c.after, 0) <= c.servers AND NOT EXISTS (
    SELECT FROM last_measured m JOIN instances i ON i.id = m.instance_id
    WHERE i.counted_by IS NULL AND m.day < c.day AND m.day >= c.day - 14))
"""
"""The daily sums of groups (`group_days`), without days on which a server is missing: there are fewer than within 14
days before, and more again within 14 days after, or a server in service was not measured since (`last_measured`)."""

# Mistyped days are ignored.
_OLDEST_DAYS = """
SELECT (SELECT min(collected_date) FROM instance_size_stats
        WHERE collected_date >= DATE '1900-01-01') AS instance_size_stats,
       (SELECT min(collected_date) FROM database_size_stats
        WHERE collected_date >= DATE '1900-01-01') AS database_size_stats
"""
# The sums of groups without servers that left.
_GROUP_DAYS = """
SELECT g.label_key, g.label_value, g.day, greatest(g.size_mb - coalesce(d.size_mb, 0), 0) AS size_mb,
       g.servers - coalesce(d.server_count, 0) AS servers
FROM stored_group_days g
LEFT JOIN departed_group_days d
    ON d.label_key = g.label_key AND d.label_value = g.label_value AND d.collected_date = g.day
WHERE g.servers > coalesce(d.server_count, 0)
"""

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
      AND (CAST(:days_of_one_server AS date[]) IS NULL OR s.collected_date = ANY (CAST(:days_of_one_server AS date[])))
      AND s.instance_id = ANY (CAST(:instance_ids AS integer[])) AND NOT s.is_deleted
    GROUP BY s.instance_id, s.collected_date
    UNION ALL
    SELECT a.instance_id, a.period_start, a.total_size_mb FROM instance_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND (CAST(:days_of_one_server AS date[]) IS NULL OR a.period_start = ANY (CAST(:days_of_one_server AS date[])))
      AND a.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND NOT EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.collected_date = a.period_start AND NOT s.is_deleted)
) AS d GROUP BY d.instance_id
"""
_DATABASE_SERIES = """
SELECT d.instance_id, d.database_name AS name, array_agg(d.day - :before_first) AS days,
       array_agg(CAST(d.size_mb AS float8)) AS sizes, max(d.day) AS last_day,
       CASE WHEN count(d.used_mb) > 0 THEN array_agg(CAST(d.used_mb AS float8)) END AS used
FROM (
    SELECT s.instance_id, s.database_name, s.collected_date AS day,
           coalesce(s.size_bytes / CAST(1048576 AS numeric), s.size_mb) AS size_mb,
           coalesce(s.used_size_bytes / CAST(1048576 AS numeric), s.used_size_mb) AS used_mb
    FROM database_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
      AND (CAST(:days_of_one_server AS date[]) IS NULL OR s.collected_date = ANY (CAST(:days_of_one_server AS date[])))
      AND s.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND (CAST(:name AS text) IS NULL OR s.database_name = :name)
    UNION ALL
    SELECT a.instance_id, a.database_name, a.period_start, a.avg_size_mb, a.avg_used_size_mb
    FROM database_size_aggregations a
    WHERE a.period_type = 'daily' AND a.period_start > :before_first AND a.period_start <= :as_of
      AND (CAST(:days_of_one_server AS date[]) IS NULL OR a.period_start = ANY (CAST(:days_of_one_server AS date[])))
      AND a.instance_id = ANY (CAST(:instance_ids AS integer[]))
      AND (CAST(:name AS text) IS NULL OR a.database_name = :name)
      AND NOT EXISTS (SELECT FROM database_size_stats s WHERE s.instance_id = a.instance_id
                      AND s.database_name = a.database_name AND s.collected_date = a.period_start)
) AS d GROUP BY d.instance_id, d.database_name
"""
# If the used size of a day is unknown, the present reserve is subtracted, so that the first known size is not a drop.
_VOLUME_SERIES = """
SELECT d.instance_id, d.volume_name AS name, array_agg(d.day - :before_first) AS days,
       array_agg(CAST(d.size_mb AS float8)) AS sizes, max(d.day) AS last_day
FROM (
    SELECT s.instance_id, s.volume_name, s.collected_date AS day,
           coalesce(s.used_mb, greatest(s.total_mb - s.free_mb - coalesce(max(s.total_mb - s.free_mb - s.used_mb)
               OVER (PARTITION BY s.instance_id, s.volume_name), 0), 0)) AS size_mb
    FROM volume_size_stats s
    WHERE s.collected_date > :before_first AND s.collected_date <= :as_of
      AND (CAST(:days_of_one_server AS date[]) IS NULL OR s.collected_date = ANY (CAST(:days_of_one_server AS date[])))
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
    "departed_group_days": GROUP_DAYS_OF_SERVERS,
}
"""The queries of samples and aggregates that statements read, by name, in the order in which nodes fill the tables."""

# Present databases with all their limits; their free space is known only if that of all of their volumes is known.
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
       coalesce(c.fills_files AND p.has_used, false) AS fills_files,
       -- Files that cannot extend any more are as large as their ceiling: without their used space, nothing is known.
       CASE WHEN c.limit_mb > p.size_mb OR c.fills_files AND p.has_used THEN c.limit_mb END AS ceiling_mb,
       c.source AS ceiling_source, c.volumes, CAST(free.mb AS float8) AS free_mb, free.day AS free_day,
       free.source AS free_source,
       CAST(coalesce(p.total_mb, sum(p.size_mb) OVER (PARTITION BY p.instance_id)) AS float8) AS total_mb
FROM present p
JOIN instances i ON i.id = p.instance_id
LEFT JOIN capacity_limits own ON own.instance_id = p.instance_id AND own.database_name = p.database_name
LEFT JOIN capacity_limits whole ON whole.instance_id = p.instance_id AND whole.database_name = ''
LEFT JOIN newest_ceilings c ON c.instance_id = p.instance_id AND c.database_name = p.database_name
LEFT JOIN free ON free.instance_id = p.instance_id AND free.database_name = p.database_name
"""
_SERVERS = """
SELECT i.name AS server, 'server' AS subject, '' AS name, i.id AS instance_id, own.limit_mb AS own_mb,
       own.source AS own_source, CAST(free.mb AS float8) AS free_mb, free.day AS free_day, free.source AS free_source,
       free.volumes, d.last_day, d.days, d.sizes,
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
_LIMITS = """
SELECT l.server, 'database' AS subject, l.database_name AS name, l.instance_id, l.own_mb, l.own_source, l.server_mb,
       l.server_source, l.ceiling_mb, l.ceiling_source, l.free_mb, l.free_day, l.free_source, l.total_mb, l.volumes,
       l.fills_files, l.last_day
FROM limited l
"""
_DATABASES = """
SELECT l.server, 'database' AS subject, l.database_name AS name, l.instance_id, l.own_mb, l.own_source, l.server_mb,
       l.server_source, l.ceiling_mb, l.ceiling_source, l.free_mb, l.free_day, l.free_source, l.total_mb, l.volumes,
       l.fills_files, d.last_day, d.days, d.sizes, d.used,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = l.instance_id AND t.database_name IN ('', l.database_name)) AS steps
FROM limited l JOIN database_series d ON d.instance_id = l.instance_id AND d.name = l.database_name
WHERE (:every OR num_nonnulls(l.own_source, l.server_source, l.ceiling_mb, l.free_mb) > 0)
  AND (CAST(:names AS text[]) IS NULL OR d.name = ANY (CAST(:names AS text[])))
ORDER BY l.server, l.database_name
"""
# The used size of a volume; its limit is its total size without the reserve.
_VOLUMES = """
SELECT i.name AS server, 'volume' AS subject, v.volume_name AS name, v.instance_id,
       coalesce(v.used_mb + v.free_mb, v.total_mb) AS own_mb, v.source AS own_source, d.last_day, d.days, d.sizes,
       (SELECT array_agg(DISTINCT t.step_date - :before_first) FROM capacity_steps t
        WHERE t.instance_id = v.instance_id) AS steps
FROM newest_volumes v
JOIN instances i ON i.id = v.instance_id
JOIN volume_series d ON d.instance_id = v.instance_id AND d.name = v.volume_name
ORDER BY i.name, v.volume_name
"""
# Days on which a label of a server of the group begins or ends, and those of declared steps of such a server. A step
# also removes the growth of its day, so a group of many servers would lose its growth if it had many steps.
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
WHERE m.instance_id <> ALL (CAST(:servers AS integer[]))
GROUP BY m.key, m.value HAVING count(DISTINCT e.day) <= 24
"""
_GROUPS = """
SELECT g.name AS server, 'group' AS subject, g.name, 0 AS instance_id, g.last_day, g.days, g.sizes, m.days AS steps
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
_STATEMENTS = {
    SERVER: (_SERVERS, ("newest_volumes", "newest_ceilings", "server_series")),
    DATABASE: (_DATABASES, ("present", "newest_volumes", "newest_ceilings", "limited", "database_series")),
    VOLUME: (_VOLUMES, ("newest_volumes", "volume_series")),
    GROUP: (
        _GROUPS,
        (
            "last_measured",
            "departed_group_days",
            "stored_group_days",
            "group_days",
            "complete_group_days",
            "group_steps",
        ),
    ),
    LIMITS: (_LIMITS, ("present", "newest_volumes", "newest_ceilings", "limited")),
    WITHOUT_LIMIT: (_WITHOUT_LIMIT, ("present", "newest_volumes", "newest_ceilings", "limited")),
}
"""The statements, and the names that each reads."""
_MATERIALIZED = ("newest_volumes", "newest_ceilings", "limited", "last_measured")
_MADE_OF_SOURCES = {
    "limited": _LIMITED,
    "stored_group_days": STORED_GROUP_DAYS,
    "group_days": _GROUP_DAYS,
    "complete_group_days": COMPLETE_GROUP_DAYS,
    "group_steps": _GROUP_STEPS,
}


def _statement(kind: str, *, from_copies: bool) -> TextualSelect:
    """Return the statement of a kind: its series with their limits, or the databases without one by server."""
    query, names = _STATEMENTS[kind]
    parts = _MADE_OF_SOURCES if from_copies else {**SOURCES, **_MADE_OF_SOURCES}
    ctes = [text(parts[name]).columns().cte(name) for name in names if name in parts]
    prefixed = (cte.prefix_with("MATERIALIZED") if cte.name in _MATERIALIZED else cte for cte in ctes)
    return text(query).columns().add_cte(*prefixed)
