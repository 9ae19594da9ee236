"""Stores measurements: many servers per transaction, by COPY and a constant number of statements.

The sizes of a server, their total, its limits, parts and outcome are stored together or not at all. The total is the
sum and count of the stored rows, so that both levels agree by construction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Engine, Table, delete, literal, null, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.schema import CreateTable

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, insert_samples, staging_columns
from capacity_assets.base.errors import DatabaseError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import BYTES_PER_MB, counted
from capacity_assets.collection.engines.base import FailureKind, Limits, Objects
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.database.engine import check_today, copy_rows
from capacity_assets.database.legacy_tables import record_measured
from capacity_assets.database.sql import temporary_table
from capacity_assets.database.tables import database_limit_stats, server_part_stats, volume_size_stats

MEASURED = "measured"


def _volume_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for volume in outcome.limits.volumes:
            sizes = (volume.total_bytes, volume.free_bytes, volume.used_bytes)
            whole_mb = (None if size is None else size // BYTES_PER_MB for size in sizes)
            yield outcome.instance_id, volume.name, *whole_mb, outcome.ended_at


def _limit_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for ceiling in outcome.limits.ceilings:
            limit_mb = None if ceiling.limit_bytes is None else ceiling.limit_bytes // BYTES_PER_MB
            volumes = None if ceiling.volumes is None else list(ceiling.volumes)
            how = ceiling.is_unlimited, volumes, outcome.limits.fills_files
            yield outcome.instance_id, ceiling.database, limit_mb, *how, outcome.ended_at


def _part_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for part in outcome.parts:
            where, what = (outcome.instance_id, part.kind, part.name), (part.size_bytes, part.volume, part.detail)
            yield *where, *what, outcome.ended_at


def _staging_table(name: str, table: Table, *names: str) -> Table:
    return temporary_table(
        name, *(Column(column, table.c[column].type) for column in ("instance_id", *names, "collected_at"))
    )


_VOLUMES = _staging_table("measured_volume", volume_size_stats, "volume_name", "total_mb", "free_mb", "used_mb")
_OF_CEILING = ("database_name", "limit_mb", "is_unlimited", "volumes", "fills_files")
_CEILINGS = _staging_table("measured_limit", database_limit_stats, *_OF_CEILING)
_OF_PART = ("part_kind", "part_name", "size_bytes", "volume_name", "detail")
_PARTS = _staging_table("measured_part", server_part_stats, *_OF_PART)


def _store_beside(
    connection: Connection, day: date, table: Table, staged: Table, rows: Iterable[Sequence[object]]
) -> None:
    """Store limits or parts; a server that reports none keeps those from earlier on the day.

    Outdated rows are selected first, because a distributed table cannot be compared with a temporary one per row.
    """
    reported = [*rows]
    if not reported:
        return
    connection.execute(CreateTable(staged))
    copy_rows(connection, f"COPY {staged.name} FROM STDIN", reported)
    keys = [column.name for column in table.primary_key if column.name != "collected_date"]
    fixed: dict[str, ColumnElement[Any]] = {"collected_date": literal(day)}
    if "source" in table.c:
        fixed["source"] = literal(MEASURED)
    is_of_servers = table.c.instance_id.in_(select(staged.c.instance_id))
    stored = select(*(table.c[key] for key in keys)).where(table.c.collected_date == day, is_of_servers)
    if "source" in fixed:
        stored = stored.where(table.c.source == MEASURED)
    gone = stored.except_(select(*(staged.c[key] for key in keys))).subquery("gone")
    is_gone = (table.c[key] == gone.c[key] for key in keys)
    connection.execute(delete(table).where(table.c.collected_date == day, *is_gone))
    every = select(*[*fixed.values(), *staged.c])
    insertion = insert(table).from_select([*fixed, *staged.c.keys()], every, include_defaults=False)
    unique = ["collected_date", *keys]
    changes: dict[str, object] = {
        name: insertion.excluded[name] for name in (*fixed, *staged.c.keys()) if name not in unique
    }
    if "declared_by" in table.c:
        changes["declared_by"] = null()  # measured now, and no longer from an imported file
    connection.execute(insertion.on_conflict_do_update(index_elements=unique, set_=changes))


LARGEST_LISTED = 50
FASTEST_LISTED = 50


_OF_OBJECT = (
    "kind", "schema", "table", "name", "size_bytes", "index_bytes", "free_bytes", "estimated_rows", "is_exact",
    "written_rows", "counted_since",
)  # fmt: skip


def _object_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for database in outcome.objects.databases:
            for object_size in database.largest:
                yield outcome.instance_id, database.database, *(getattr(object_size, name) for name in _OF_OBJECT)


def _store_objects(connection: Connection, day: date, outcomes: Sequence[ProbeOutcome]) -> None:
    """Store the largest and the fastest growing objects of each database, and the sum of the rest.

    Objects from an earlier run of the day are deleted, because they would not add up to the sizes of this one.
    """
    with_objects = [outcome for outcome in outcomes if outcome.objects.databases]
    servers = [outcome.instance_id for outcome in outcomes if outcome.collected]
    connection.execute(text(_FORGET_OBJECTS), {"day": day, "servers": servers})
    if not with_objects:
        return
    for statement in (_STAGE_OBJECTS, _STAGE_OTHERS):
        connection.execute(text(statement))
    copy_rows(connection, "COPY measured_object FROM STDIN", _object_rows(with_objects))
    others = (
        (outcome.instance_id, database.database, database.other_count, database.other_bytes)
        for outcome in with_objects
        for database in outcome.objects.databases
    )
    copy_rows(connection, "COPY measured_others FROM STDIN", others)
    connection.execute(text("ANALYZE measured_object, measured_others"))
    listed = {"day": day, "largest": LARGEST_LISTED, "fastest": FASTEST_LISTED}
    connection.execute(text(_WRITE_OBJECTS), listed)
    for statement in (_FORGET_OBJECT_SIZES, _WRITE_OBJECT_SIZES):
        connection.execute(text(statement), {"day": day})


_STAGE_OBJECTS = """
CREATE TEMPORARY TABLE measured_object (
    instance_id integer, database_name text, kind text, schema_name text, table_name text, object_name text,
    size_bytes bigint, index_bytes bigint, free_bytes bigint, estimated_rows bigint, is_exact boolean,
    written_rows bigint, counted_since timestamptz
) ON COMMIT DROP
"""
_STAGE_OTHERS = """
CREATE TEMPORARY TABLE measured_others (
    instance_id integer, database_name text, other_count integer, other_bytes bigint
) ON COMMIT DROP
"""
_FORGET_OBJECTS = "DELETE FROM object_size_stats WHERE collected_date = :day AND instance_id = ANY (:servers)"
# Compared with an earlier day, not with an earlier run of this day.
_WRITE_OBJECTS = """
WITH before AS (
    SELECT DISTINCT ON (s.instance_id, s.database_name) s.instance_id, s.database_name, s.object_hashes, s.object_bytes
    FROM capacity_object_sizes s JOIN measured_others o USING (instance_id, database_name)
    WHERE s.collected_date < :day ORDER BY s.instance_id, s.database_name, s.collected_date DESC
), known AS (
    SELECT b.instance_id, b.database_name, k.object_hash, k.size_bytes
    FROM before b CROSS JOIN LATERAL unnest(b.object_hashes, b.object_bytes) AS k (object_hash, size_bytes)
), grown AS (
    SELECT o.*, o.size_bytes - k.size_bytes AS growth
    FROM measured_object o LEFT JOIN known k
      ON k.instance_id = o.instance_id AND k.database_name = o.database_name
     AND k.object_hash = hashtextextended(concat_ws(chr(31), o.kind, o.schema_name, o.table_name, o.object_name), 0)
), ranked AS (
    SELECT g.*, row_number() OVER (PARTITION BY instance_id, database_name
                                   ORDER BY size_bytes DESC, kind, schema_name, table_name, object_name) AS by_size,
           row_number() OVER (PARTITION BY instance_id, database_name
                              ORDER BY growth DESC NULLS LAST, size_bytes DESC, kind, schema_name, table_name,
                                       object_name) AS by_growth
    FROM grown g
), decided AS (
    SELECT r.*, by_size <= :largest OR (by_growth <= :fastest AND growth > 0) IS TRUE AS is_listed FROM ranked r
), summed AS (
    SELECT o.instance_id, o.database_name,
           o.other_bytes + coalesce(sum(d.size_bytes) FILTER (WHERE NOT d.is_listed), 0) AS others_bytes,
           o.other_count + count(d.size_bytes) FILTER (WHERE NOT d.is_listed) AS others_count,
           o.other_bytes + coalesce(sum(d.size_bytes), 0) AS explained_bytes
    FROM measured_others o LEFT JOIN decided d USING (instance_id, database_name)
    GROUP BY o.instance_id, o.database_name, o.other_bytes, o.other_count
), entered AS (
    SELECT instance_id, database_name, kind, schema_name, table_name, object_name, size_bytes, index_bytes, free_bytes,
           estimated_rows, is_exact, CAST(NULL AS bigint) AS object_count, written_rows, counted_since
    FROM decided WHERE is_listed
    UNION ALL
    SELECT instance_id, database_name, 'others', '', '', '', others_bytes, NULL, NULL, NULL, false, others_count, NULL,
           NULL
    FROM summed
    UNION ALL
    SELECT s.instance_id, s.database_name, 'unexplained', '', '', '',
           coalesce(d.size_bytes, d.size_mb * 1048576) - s.explained_bytes, NULL, NULL, NULL, false, NULL, NULL, NULL
    FROM summed s JOIN measured_database d USING (instance_id, database_name)
)
INSERT INTO object_size_stats
    (collected_date, instance_id, database_name, kind, schema_name, table_name, object_name, size_bytes, index_bytes,
     free_bytes, estimated_rows, is_exact, object_count, written_rows, counted_since, collected_at)
SELECT CAST(:day AS date), e.*, s.measured_at
FROM entered e JOIN measured_server s USING (instance_id) JOIN measured_database d USING (instance_id, database_name)
"""
_WRITE_OBJECT_SIZES = """
INSERT INTO capacity_object_sizes AS t (instance_id, database_name, collected_date, object_hashes, object_bytes)
SELECT instance_id, database_name, CAST(:day AS date),
       array_agg(hashtextextended(concat_ws(chr(31), kind, schema_name, table_name, object_name), 0)),
       array_agg(size_bytes)
FROM measured_object GROUP BY instance_id, database_name
ON CONFLICT (instance_id, database_name, collected_date) DO UPDATE
SET object_hashes = excluded.object_hashes, object_bytes = excluded.object_bytes
"""
# The newest sizes before this day are kept, because another run of this day compares with them.
_FORGET_OBJECT_SIZES = """
DELETE FROM capacity_object_sizes t
USING (SELECT s.instance_id, s.database_name, max(s.collected_date) AS newest
       FROM capacity_object_sizes s JOIN measured_others o ON o.instance_id = s.instance_id
       WHERE s.collected_date < :day GROUP BY s.instance_id, s.database_name) kept
WHERE t.instance_id = kept.instance_id AND t.database_name = kept.database_name AND t.collected_date < kept.newest
"""


logger = logging.getLogger("capacity_assets")

COLLECTED, FAILED = "collected", "failed"
# A value does not fit, or violates a constraint.
REFUSED_DATA = ("22", "23")
# How long attempts are shown, and used for time limits.
ATTEMPTS_KEPT_DAYS = 90


def store_outcomes(engine: Engine, day: date, outcomes: Sequence[ProbeOutcome]) -> None:
    """Write outcomes of a day in one transaction; raises DatabaseError, in which case none is written."""
    with (
        database_errors(
            doing="writing samples",
            kept=f"Samples of {counted(len(outcomes), 'server')} were not written; those written before were kept.",
        ),
        engine.begin() as connection,
    ):
        _stage(connection, outcomes)
        # A trigger records each statement that deletes, even if it deletes no row.
        if connection.execute(text(f"SELECT EXISTS (SELECT 1 {_OTHERS})"), {"day": day}).scalar_one():
            connection.execute(text(f"DELETE {_OTHERS}"), {"day": day})
        for statement in (_WRITE_DATABASES, _WRITE_TOTALS, _WRITE_ATTEMPTS):
            connection.execute(text(statement), {"day": day})
        connection.execute(text(_NO_LONGER_IMPORTED), {"day": day})
        _store_beside(connection, day, volume_size_stats, _VOLUMES, _volume_rows(outcomes))
        _store_beside(connection, day, database_limit_stats, _CEILINGS, _limit_rows(outcomes))
        _store_beside(connection, day, server_part_stats, _PARTS, _part_rows(outcomes))
        _store_objects(connection, day, outcomes)
        record_measured(connection, day, [outcome.instance_id for outcome in outcomes if outcome.collected])


def store_each(engine: Engine, day: date, outcomes: Sequence[ProbeOutcome]) -> list[ProbeOutcome]:
    """Write outcomes; a server whose values the tables refuse is found by halving, and fails.

    Raises DatabaseError: the database failed for another reason; earlier writes are kept.
    """
    try:
        store_outcomes(engine, day, outcomes)
    except DatabaseError as error:
        if (error.sqlstate or "")[:2] not in REFUSED_DATA:
            raise
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            return store_each(engine, day, outcomes[:middle]) + store_each(engine, day, outcomes[middle:])
        [refused] = outcomes
        if refused.objects.databases:
            no_objects = Objects(unknown=(f"they cannot be stored: {error}",))
            return store_each(engine, day, [replace(refused, objects=no_objects)])
        if refused.limits.volumes or refused.limits.ceilings or refused.parts:
            unknown = Limits(unknown=f"they cannot be stored: {error}")
            return store_each(engine, day, [replace(refused, limits=unknown, parts=())])
        reason = f"its sizes cannot be stored: {error}"
        outcomes = [replace(refused, sizes=(), kind=FailureKind.UNEXPECTED, reason=reason)]
        store_outcomes(engine, day, outcomes)
    return list(outcomes)


def forget_old_attempts(engine: Engine, clock: Clock) -> None:
    """Delete old attempts, unless the date may be wrong; raises like `store_outcomes`."""
    statement = text("DELETE FROM capacity_collection_attempts WHERE collected_date < :before")
    with database_errors(doing="deleting old attempts", kept="All samples were written."), engine.begin() as connection:
        judged = check_today(connection, clock)
        if judged.why_nothing_is_deleted:
            logger.warning(f"{judged.why_nothing_is_deleted} Old collection attempts are kept.")
        else:
            connection.execute(statement, {"before": judged.today - timedelta(days=ATTEMPTS_KEPT_DAYS)})


def _stage(connection: Connection, outcomes: Sequence[ProbeOutcome]) -> None:
    for statement in (text(_STAGE_SERVERS), text(_STAGE_DATABASES)):
        connection.execute(statement)
    copy_rows(connection, "COPY measured_server FROM STDIN", _server_rows(outcomes))
    sizes = ((outcome.instance_id, size.name, *size.values) for outcome in outcomes for size in outcome.sizes)
    copy_rows(connection, "COPY measured_database FROM STDIN", sizes)
    # New tables have no statistics, without which plans assume too many rows.
    connection.execute(text("ANALYZE measured_server, measured_database"))


def _server_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        status = COLLECTED if outcome.collected else FAILED
        failure = outcome.kind and outcome.kind.value
        seconds = (outcome.connect_seconds, outcome.measure_seconds)
        yield outcome.instance_id, outcome.ended_at, status, failure, outcome.explanation, *seconds


_STAGE_SERVERS = """
CREATE TEMPORARY TABLE measured_server (
    instance_id integer, measured_at timestamptz, status text, failure text, reason text,
    connect_seconds double precision, measure_seconds double precision
) ON COMMIT DROP
"""
_STAGE_DATABASES = f"""
CREATE TEMPORARY TABLE measured_database (
    {staging_columns(DATABASE, "instance_id integer", "database_name varchar(255)")}
) ON COMMIT DROP
"""
# Databases that were dropped since an earlier run of the day.
_OTHERS = """
FROM database_size_stats
WHERE collected_date = :day
  AND instance_id IN (SELECT s.instance_id FROM measured_server s WHERE s.status = 'collected')
  AND (instance_id, database_name) NOT IN (SELECT m.instance_id, m.database_name FROM measured_database m)
"""
_WRITE_DATABASES = insert_samples(
    DATABASE,
    "(SELECT m.*, CAST(:day AS date) AS collected_date, s.measured_at AS collected_at "
    "FROM measured_database m JOIN measured_server s USING (instance_id))",
)
# The sum of bytes is rounded once: rounding each database would lose megabytes on a server with many small ones.
_WRITE_TOTALS = insert_samples(
    INSTANCE,
    """(
    SELECT s.instance_id, CAST(:day AS date) AS collected_date, s.measured_at AS collected_at,
           div(coalesce(sum(coalesce(d.size_bytes, d.size_mb * CAST(1048576 AS numeric))), 0), 1048576)
               AS total_size_mb,
           CASE WHEN count(d.size_bytes) = count(d.size_mb) THEN coalesce(sum(d.size_bytes), 0) END
               AS total_size_bytes,
           count(d.size_mb) AS database_count
    FROM measured_server s
    LEFT JOIN database_size_stats d ON d.instance_id = s.instance_id AND d.collected_date = :day
    WHERE s.status = 'collected'
    GROUP BY s.instance_id, s.measured_at)""",
)
# Samples that were imported earlier on the day.
_NO_LONGER_IMPORTED = """
UPDATE capacity_imported_days SET days = days - datemultirange(daterange(:day, :day, '[]'))
WHERE days @> CAST(:day AS date)
  AND instance_id IN (SELECT s.instance_id FROM measured_server s WHERE s.status = 'collected')
"""
_WRITE_ATTEMPTS = """
INSERT INTO capacity_collection_attempts AS a
    (collected_date, instance_id, status, failure, reason, connect_seconds, measure_seconds, attempted_at)
SELECT :day, instance_id, status, failure, reason, connect_seconds, measure_seconds, measured_at FROM measured_server
ON CONFLICT (collected_date, instance_id) DO UPDATE
-- A server that was measured earlier on the day remains so, even if a later attempt fails.
SET status = CASE WHEN a.status = 'collected' THEN a.status ELSE excluded.status END,
    failure = excluded.failure, reason = excluded.reason, attempts = a.attempts + 1,
    connect_seconds = CASE WHEN a.status = 'collected' AND excluded.status <> 'collected'
                           THEN a.connect_seconds ELSE excluded.connect_seconds END,
    measure_seconds = CASE WHEN a.status = 'collected' AND excluded.status <> 'collected'
                           THEN a.measure_seconds ELSE excluded.measure_seconds END,
    attempted_at = excluded.attempted_at
"""
