"""Stores measured limits, in the transaction that stores the sizes; one row per volume, and per database, and day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, text

from capacity_assets.collection.results import ProbeOutcome
from capacity_assets.storage.engine import copy_rows
from capacity_assets.units import BYTES_PER_MB

MEASURED = "measured"


def stage_limits(connection: Connection, outcomes: Sequence[ProbeOutcome]) -> None:
    """Put the limits of outcomes into temporary tables, from which `LIMIT_STATEMENTS` take them."""
    for statement in _STAGE:
        connection.execute(text(statement))
    copy_rows(connection, "COPY measured_volume FROM STDIN", _volume_rows(outcomes))
    copy_rows(connection, "COPY measured_limit FROM STDIN", _limit_rows(outcomes))


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


_STAGE = (
    """
CREATE TEMPORARY TABLE measured_volume (
    instance_id integer, volume_name varchar(255), total_mb bigint, free_mb bigint, used_mb bigint,
    collected_at timestamptz
) ON COMMIT DROP
""",
    """
CREATE TEMPORARY TABLE measured_limit (
    instance_id integer, database_name varchar(255), limit_mb bigint, is_unlimited boolean, volumes varchar(255)[],
    collected_at timestamptz
) ON COMMIT DROP
""",
)
_WRITE = """
INSERT INTO {table} AS t (collected_date, instance_id, {name}, {columns}, source, collected_at)
SELECT CAST(:day AS date), m.instance_id, m.{name}, {values}, '{source}', m.collected_at FROM {staged} m
ON CONFLICT (collected_date, instance_id, {name}) DO UPDATE
SET {changes}, source = excluded.source, collected_at = excluded.collected_at
"""
# A server that was measured says what it has now; one that says nothing of its limits keeps what it said on this day.
# What is gone is looked up apart: a table that may be distributed is not compared with a temporary one row by row.
_REMOVE = """
DELETE FROM {table} t USING (
    SELECT instance_id, {name} FROM {table}
    WHERE collected_date = :day AND source = '{source}' AND instance_id IN (SELECT instance_id FROM {staged})
    EXCEPT SELECT instance_id, {name} FROM {staged}
) AS gone
WHERE t.collected_date = :day AND t.instance_id = gone.instance_id AND t.{name} = gone.{name}
"""


def _written(table: str, name: str, staged: str, columns: Sequence[str]) -> Iterator[str]:
    names = {"table": table, "name": name, "staged": staged, "source": MEASURED}
    yield _REMOVE.format(**names)
    yield _WRITE.format(
        **names,
        columns=", ".join(columns),
        values=", ".join(f"m.{column}" for column in columns),
        changes=", ".join(f"{column} = excluded.{column}" for column in columns),
    )


LIMIT_STATEMENTS = (
    *_written("volume_size_stats", "volume_name", "measured_volume", ("total_mb", "free_mb", "used_mb")),
    *_written("database_limit_stats", "database_name", "measured_limit", ("limit_mb", "is_unlimited", "volumes")),
)
