"""Writing what was measured: many servers a transaction, by COPY and a constant number of statements.

A server's databases, its total and what became of it appear together or not at all. The total is the sum and count of
the very rows that are stored, so that the two levels agree by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, text

from capacity_assets.collection.engines.base import FailureKind
from capacity_assets.collection.results import ProbeOutcome
from capacity_assets.foundation.errors import DatabaseError, database_errors
from capacity_assets.storage.engine import copy_rows
from capacity_assets.storage.known_databases import note_measured

COLLECTED, FAILED = "collected", "failed"
# A value does not fit, or breaks a rule of the table.
REFUSED_DATA = ("22", "23")
# How long attempts are told and timeouts learnt from.
ATTEMPTS_KEPT_DAYS = 90


def store(engine: Engine, day: date, outcomes: Sequence[ProbeOutcome]) -> None:
    """Write outcomes of a day in one transaction.

    Raises:
        DatabaseError: the database failed; nothing of these outcomes was written.
    """
    with (
        database_errors(
            doing="writing samples",
            kept=f"Those of {len(outcomes):,} servers were not written; what was written before was kept.",
        ),
        engine.begin() as connection,
    ):
        _stage(connection, outcomes)
        for statement in (_REMOVE_OTHERS, _WRITE_DATABASES, _WRITE_TOTALS, _WRITE_ATTEMPTS):
            connection.execute(text(statement), {"day": day})
        note_measured(connection, day, [outcome.instance_id for outcome in outcomes if outcome.collected])


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
        reason = f"its sizes cannot be stored: {error}"
        outcomes = [replace(refused, sizes=(), kind=FailureKind.UNEXPECTED, reason=reason)]
        store(engine, day, outcomes)
    return list(outcomes)


def forget_old_attempts(engine: Engine, day: date) -> None:
    """Delete what became of servers too long ago to matter; raises as `store`."""
    before = day - timedelta(days=ATTEMPTS_KEPT_DAYS)
    statement = text("DELETE FROM capacity_collection_attempts WHERE collected_date < :before")
    with database_errors(doing="deleting old attempts", kept="All samples were written."), engine.begin() as connection:
        connection.execute(statement, {"before": before})


def _stage(connection: Connection, outcomes: Sequence[ProbeOutcome]) -> None:
    connection.execute(text(_STAGE_SERVERS))
    connection.execute(text(_STAGE_DATABASES))
    copy_rows(connection, "COPY measured_server FROM STDIN", _server_rows(outcomes))
    copy_rows(connection, "COPY measured_database FROM STDIN", _database_rows(outcomes))
    # Fresh tables have no statistics, and the plans below should know how few rows there are.
    connection.execute(text("ANALYZE measured_server, measured_database"))


def _server_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        status = COLLECTED if outcome.collected else FAILED
        yield (
            outcome.instance_id,
            outcome.ended_at,
            status,
            outcome.kind and outcome.kind.value,
            outcome.reason,
            outcome.connect_seconds,
            outcome.measure_seconds,
        )


def _database_rows(outcomes: Iterable[ProbeOutcome]) -> Iterator[tuple[object, ...]]:
    for outcome in outcomes:
        for size in outcome.sizes:
            mb = size.size_mb, size.data_size_mb, size.log_size_mb
            yield outcome.instance_id, size.name, *mb, size.size_bytes, size.data_size_bytes, size.log_size_bytes


_STAGE_SERVERS = """
CREATE TEMPORARY TABLE measured_server (
    instance_id integer, measured_at timestamptz, status text, failure text, reason text,
    connect_seconds double precision, measure_seconds double precision
) ON COMMIT DROP
"""
_STAGE_DATABASES = """
CREATE TEMPORARY TABLE measured_database (
    instance_id integer, database_name varchar(255), size_mb bigint, data_size_mb bigint, log_size_mb bigint,
    size_bytes bigint, data_size_bytes bigint, log_size_bytes bigint
) ON COMMIT DROP
"""
# Measured again on the same day, a server may have lost a database since.
_REMOVE_OTHERS = """
DELETE FROM database_size_stats d USING measured_server s
WHERE d.collected_date = :day AND d.instance_id = s.instance_id AND s.status = 'collected'
  AND NOT EXISTS (SELECT FROM measured_database m
                  WHERE m.instance_id = d.instance_id AND m.database_name = d.database_name)
"""
_WRITE_DATABASES = """
INSERT INTO database_size_stats AS d
    (instance_id, database_name, size_mb, data_size_mb, log_size_mb, size_bytes, data_size_bytes, log_size_bytes,
     collected_date, collected_at, created_at, updated_at)
SELECT m.instance_id, m.database_name, m.size_mb, m.data_size_mb, m.log_size_mb,
       m.size_bytes, m.data_size_bytes, m.log_size_bytes, :day, s.measured_at, now(), now()
FROM measured_database m JOIN measured_server s USING (instance_id)
ON CONFLICT (instance_id, database_name, collected_date) DO UPDATE
SET size_mb = excluded.size_mb, data_size_mb = excluded.data_size_mb, log_size_mb = excluded.log_size_mb,
    size_bytes = excluded.size_bytes, data_size_bytes = excluded.data_size_bytes,
    log_size_bytes = excluded.log_size_bytes, collected_at = excluded.collected_at, updated_at = now()
WHERE (d.size_mb, d.data_size_mb, d.log_size_mb, d.size_bytes, d.data_size_bytes, d.log_size_bytes)
    IS DISTINCT FROM (excluded.size_mb, excluded.data_size_mb, excluded.log_size_mb,
                      excluded.size_bytes, excluded.data_size_bytes, excluded.log_size_bytes)
"""
# The sum of exact bytes, rounded down once: rounded per database, a server of many small ones would lose megabytes.
_WRITE_TOTALS = """
INSERT INTO instance_size_stats AS t
    (instance_id, total_size_mb, total_size_bytes, database_count, collected_date, collected_at, is_deleted,
     created_at, updated_at)
SELECT s.instance_id, div(coalesce(sum(coalesce(d.size_bytes, d.size_mb * CAST(1048576 AS numeric))), 0), 1048576),
       CASE WHEN count(d.size_bytes) = count(d.size_mb) THEN coalesce(sum(d.size_bytes), 0) END, count(d.size_mb),
       :day, s.measured_at, false, now(), now()
FROM measured_server s
LEFT JOIN database_size_stats d ON d.instance_id = s.instance_id AND d.collected_date = :day
WHERE s.status = 'collected'
GROUP BY s.instance_id, s.measured_at
ON CONFLICT (instance_id, collected_date) WHERE is_deleted = false DO UPDATE
SET total_size_mb = excluded.total_size_mb, total_size_bytes = excluded.total_size_bytes,
    database_count = excluded.database_count, collected_at = excluded.collected_at, updated_at = now()
WHERE (t.total_size_mb, t.total_size_bytes, t.database_count)
    IS DISTINCT FROM (excluded.total_size_mb, excluded.total_size_bytes, excluded.database_count)
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
