"""Stores measurements: many servers per transaction, by COPY and a constant number of statements.

A server's databases and their total, its limits, what lies beside its databases, and its outcome are stored together or
not at all. The total is the sum and count of the very rows that are stored, so that the two levels agree by
construction.
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
from capacity_assets.collection.engines.base import FailureKind, Limits
from capacity_assets.collection.results import ProbeOutcome
from capacity_assets.database.engine import copy_rows
from capacity_assets.database.guards import judged_day
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
        for one in outcome.limits.ceilings:
            limit_mb = None if one.limit_bytes is None else one.limit_bytes // BYTES_PER_MB
            volumes = None if one.volumes is None else list(one.volumes)
            yield outcome.instance_id, one.database, limit_mb, one.is_unlimited, volumes, outcome.ended_at


def _part_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for part in outcome.parts:
            where, what = (outcome.instance_id, part.kind, part.name), (part.size_bytes, part.volume, part.detail)
            yield *where, *what, outcome.ended_at


def _staged(name: str, table: Table, *names: str) -> Table:
    return temporary_table(name, *(Column(one, table.c[one].type) for one in ("instance_id", *names, "collected_at")))


_VOLUMES = _staged("measured_volume", volume_size_stats, "volume_name", "total_mb", "free_mb", "used_mb")
_CEILINGS = _staged("measured_limit", database_limit_stats, "database_name", "limit_mb", "is_unlimited", "volumes")
_OF_PART = ("part_kind", "part_name", "size_bytes", "volume_name", "detail")
_PARTS = _staged("measured_part", server_part_stats, *_OF_PART)


def _store_beside(connection: Connection, day: date, table: Table, staged: Table) -> None:
    """Store staged limits or parts; a measured server that reports none keeps those of earlier on the day.

    What is gone is looked up apart: a table that may be distributed is not compared with a temporary one row by row.
    """
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
    rows = select(*[*fixed.values(), *staged.c])
    store = insert(table).from_select([*fixed, *staged.c.keys()], rows, include_defaults=False)
    unique = ["collected_date", *keys]
    changes: dict[str, object] = {one: store.excluded[one] for one in (*fixed, *staged.c.keys()) if one not in unique}
    if "declared_by" in table.c:
        changes["declared_by"] = null()  # it may have been imported from a file before
    connection.execute(store.on_conflict_do_update(index_elements=unique, set_=changes))


logger = logging.getLogger("capacity_assets")

COLLECTED, FAILED = "collected", "failed"
# A value does not fit, or breaks a rule of the table.
REFUSED_DATA = ("22", "23")
# How long attempts are shown, and time limits derived from them.
ATTEMPTS_KEPT_DAYS = 90


def store(engine: Engine, day: date, outcomes: Sequence[ProbeOutcome]) -> None:
    """Write outcomes of a day in one transaction; raises DatabaseError, and then none of them is written."""
    with (
        database_errors(
            doing="writing samples",
            kept=f"Those of {counted(len(outcomes), 'server')} were not written; what was written before was kept.",
        ),
        engine.begin() as connection,
    ):
        _stage(connection, outcomes)
        # A trigger records each deletion, also of no row.
        if connection.execute(text(f"SELECT EXISTS (SELECT 1 {_OTHERS})"), {"day": day}).scalar_one():
            connection.execute(text(f"DELETE {_OTHERS}"), {"day": day})
        for statement in (_WRITE_DATABASES, _WRITE_TOTALS, _WRITE_ATTEMPTS):
            connection.execute(text(statement), {"day": day})
        connection.execute(text(_NO_LONGER_IMPORTED), {"day": day})
        _store_beside(connection, day, volume_size_stats, _VOLUMES)
        _store_beside(connection, day, database_limit_stats, _CEILINGS)
        _store_beside(connection, day, server_part_stats, _PARTS)
        record_measured(connection, day, [outcome.instance_id for outcome in outcomes if outcome.collected])


def store_each(engine: Engine, day: date, outcomes: Sequence[ProbeOutcome]) -> list[ProbeOutcome]:
    """Write outcomes; a server whose sizes the tables refuse becomes a failed one, found by halving.

    Raises:
        DatabaseError: the database failed for another reason; what was written before was kept.
    """
    try:
        store(engine, day, outcomes)
    except DatabaseError as error:
        if (error.sqlstate or "")[:2] not in REFUSED_DATA:
            raise
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            return store_each(engine, day, outcomes[:middle]) + store_each(engine, day, outcomes[middle:])
        [refused] = outcomes
        if refused.limits.volumes or refused.limits.ceilings or refused.parts:
            unknown = Limits(unknown=f"they cannot be stored: {error}")
            return store_each(engine, day, [replace(refused, limits=unknown, parts=())])
        reason = f"its sizes cannot be stored: {error}"
        outcomes = [replace(refused, sizes=(), kind=FailureKind.UNEXPECTED, reason=reason)]
        store(engine, day, outcomes)
    return list(outcomes)


def forget_old_attempts(engine: Engine, clock: Clock) -> None:
    """Delete old attempts, unless the date may be wrong; raises like `store`."""
    statement = text("DELETE FROM capacity_collection_attempts WHERE collected_date < :before")
    with database_errors(doing="deleting old attempts", kept="All samples were written."), engine.begin() as connection:
        judged = judged_day(connection, clock)
        if judged.why_nothing_is_deleted:
            logger.warning(f"{judged.why_nothing_is_deleted} Old collection attempts are kept.")
        else:
            connection.execute(statement, {"before": judged.today - timedelta(days=ATTEMPTS_KEPT_DAYS)})


def _stage(connection: Connection, outcomes: Sequence[ProbeOutcome]) -> None:
    """Put outcomes into temporary tables, from which the statements take them."""
    for statement in (text(_STAGE_SERVERS), text(_STAGE_DATABASES)):
        connection.execute(statement)
    for staged in (_VOLUMES, _CEILINGS, _PARTS):
        connection.execute(CreateTable(staged))
    copy_rows(connection, "COPY measured_server FROM STDIN", _server_rows(outcomes))
    sizes = ((one.instance_id, size.name, *size.values) for one in outcomes for size in one.sizes)
    copy_rows(connection, "COPY measured_database FROM STDIN", sizes)
    copy_rows(connection, "COPY measured_volume FROM STDIN", _volume_rows(outcomes))
    copy_rows(connection, "COPY measured_limit FROM STDIN", _limit_rows(outcomes))
    copy_rows(connection, "COPY measured_part FROM STDIN", _part_rows(outcomes))
    # Fresh tables have no statistics, and the plans below should know how few rows there are.
    connection.execute(text("ANALYZE measured_server, measured_database"))


def _server_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for one in outcomes:
        status = COLLECTED if one.collected else FAILED
        failure = one.kind and one.kind.value
        yield one.instance_id, one.ended_at, status, failure, one.reason, one.connect_seconds, one.measure_seconds


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
# Measured again on the same day, a server may have lost a database since.
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
# The sum of exact bytes, rounded down once: rounded per database, a server of many small ones would lose megabytes.
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
# Imported earlier on the day, and measured now.
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
-- A server that was measured before on this day stays measured, whatever became of a later attempt.
SET status = CASE WHEN a.status = 'collected' THEN a.status ELSE excluded.status END,
    failure = excluded.failure, reason = excluded.reason, attempts = a.attempts + 1,
    connect_seconds = CASE WHEN a.status = 'collected' AND excluded.status <> 'collected'
                           THEN a.connect_seconds ELSE excluded.connect_seconds END,
    measure_seconds = CASE WHEN a.status = 'collected' AND excluded.status <> 'collected'
                           THEN a.measure_seconds ELSE excluded.measure_seconds END,
    attempted_at = excluded.attempted_at
"""
