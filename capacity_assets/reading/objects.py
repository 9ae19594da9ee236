"""The tables and indexes behind the change of a database, or of all databases, in a range of days.

Two samples of `object_size_stats` are compared: the newest before the days, or else the first in them, and the newest
in them. What changed adds up to the change of the database: objects, the others, and what no object explains.

An object that is listed on one of the two days only was at most as large as the smallest listed one on the other day,
because the largest are always listed. It is compared with that bound: its change is the least that it can be, and the
rest of it is in the others. Where every object is listed, the bound is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Row

from capacity_assets.collection.storing import LARGEST_LISTED
from capacity_assets.database.sql import with_parts
from capacity_assets.reading.access import rows

LONGEST_BEFORE_DAYS = 31
OTHERS, UNEXPLAINED = "others", "unexplained"


@dataclass(frozen=True)
class ObjectChange:
    """A table or index on two days, bytes; `label` is what people call it, with its schema, an index with its table.

    `before_is_bound` and `after_is_bound`: it is not listed on that day, and was at most as large. The change is the
    least that it can be then.
    """

    label: str
    kind: str
    schema: str
    table: str
    name: str
    before_bytes: int
    after_bytes: int
    change_bytes: int
    before_is_bound: bool
    after_is_bound: bool
    is_exact: bool
    free_bytes: int | None
    estimated_rows: int | None

    @property
    def is_bound(self) -> bool:
        """Whether its change is the least that it can be."""
        return self.before_is_bound or self.after_is_bound


@dataclass(frozen=True)
class ObjectGrowth:
    """A table or index that grew, where it is, and the days that are compared."""

    server_id: int
    server: str
    database: str
    first_day: date
    last_day: date
    grown: ObjectChange


@dataclass(frozen=True)
class DatabaseGrowth:
    """What changed inside a database from its sample of one day to that of another, bytes.

    Objects are those that changed, most first. Their changes, that of all others together and that of what no object
    explains add up to `change_bytes`.
    """

    server: str
    database: str
    first_day: date
    last_day: date
    before_bytes: int
    after_bytes: int
    change_bytes: int
    objects: tuple[ObjectChange, ...]
    others_change_bytes: int
    unexplained_change_bytes: int


def growth_inside(
    connection: Connection, server_id: int, database: str, first: date, last: date
) -> DatabaseGrowth | None:
    """Return what changed inside a database from `first` to `last`; None: not measured on two days. DBAPIError."""
    found = _rows(connection, first, last, server_id=server_id, database=database)
    if not found:
        return None
    changed = [_change(row) for row in found if row.kind not in {OTHERS, UNEXPLAINED} and row.change_bytes]
    [unexplained] = [row.change_bytes for row in found if row.kind == UNEXPLAINED]
    before, after = int(found[0].database_before_bytes), int(found[0].database_after_bytes)
    return DatabaseGrowth(
        found[0].server,
        database,
        found[0].first_day,
        found[0].last_day,
        before,
        after,
        after - before,
        tuple(sorted(changed, key=lambda one: (-abs(one.change_bytes), one.label))),
        after - before - sum(one.change_bytes for one in changed) - unexplained,
        unexplained,
    )


def growing_objects(
    connection: Connection, first: date, last: date, *, shown: int, server_id: int | None = None
) -> list[ObjectGrowth]:
    """Return the tables and indexes that grew most from `first` to `last`, over all databases; raises DBAPIError."""
    return [
        ObjectGrowth(row.server_id, row.server, row.database, row.first_day, row.last_day, _change(row))
        for row in _rows(connection, first, last, server_id=server_id, grown=shown)
    ]


def _change(row: Row[Any]) -> ObjectChange:
    return ObjectChange(**{one.name: getattr(row, one.name) for one in fields(ObjectChange)})


def _rows(  # noqa: PLR0913 -- what the statement is asked
    connection: Connection,
    first: date,
    last: date,
    *,
    server_id: int | None = None,
    database: str | None = None,
    grown: int | None = None,
) -> Sequence[Row[Any]]:
    statement = with_parts(
        _LISTED, days=_DAYS, ends=_ENDS, ranked=_RANKED, bounds=_BOUNDS, changes=_CHANGES, compared=_COMPARED
    )
    oldest = first - timedelta(days=LONGEST_BEFORE_DAYS)
    place = {"server_id": server_id, "database": database, "grown": grown, "largest": LARGEST_LISTED}
    return rows(connection, statement, first=first, last=last, oldest=oldest, **place)


_DAYS = """
SELECT server_id, database, coalesce(max(day) FILTER (WHERE day < :first), min(day)) AS first_day, max(day) AS last_day
FROM capacity_objects
WHERE day BETWEEN :oldest AND :last AND kind = 'unexplained'
  AND (CAST(:server_id AS integer) IS NULL OR server_id = :server_id)
  AND (CAST(:database AS text) IS NULL OR database = :database)
GROUP BY server_id, database HAVING max(day) >= :first
"""
_ENDS = """
SELECT o.*, d.first_day, d.last_day, o.day = d.last_day AS is_last, o.kind IN ('table', 'index') AS is_object
FROM capacity_objects o JOIN days d ON d.server_id = o.server_id AND d.database = o.database
WHERE d.first_day < d.last_day AND o.day IN (d.first_day, d.last_day) AND o.day BETWEEN :oldest AND :last
"""
_RANKED = """
SELECT e.*, row_number() OVER (PARTITION BY server_id, database, day ORDER BY is_object DESC, size_bytes DESC) AS place
FROM ends e
"""
_BOUNDS = """
SELECT server_id, database,
       CASE WHEN max(object_count) FILTER (WHERE NOT is_last) > 0
            THEN min(size_bytes) FILTER (WHERE NOT is_last AND is_object AND place <= :largest) ELSE 0 END
           AS first_bound_bytes,
       CASE WHEN max(object_count) FILTER (WHERE is_last) > 0
            THEN min(size_bytes) FILTER (WHERE is_last AND is_object AND place <= :largest) ELSE 0 END
           AS last_bound_bytes
FROM ranked GROUP BY server_id, database
"""
_CHANGES = """
SELECT server_id, server, database, first_day, last_day, kind, schema_name, table_name, object_name,
       max(size_bytes) FILTER (WHERE NOT is_last) AS first_bytes, max(size_bytes) FILTER (WHERE is_last) AS last_bytes,
       bool_and(is_exact) AS is_exact, max(free_bytes) FILTER (WHERE is_last) AS free_bytes,
       max(estimated_rows) FILTER (WHERE is_last) AS estimated_rows
FROM ranked GROUP BY server_id, server, database, first_day, last_day, kind, schema_name, table_name, object_name
"""
_COMPARED = """
SELECT c.*, coalesce(c.first_bytes, b.first_bound_bytes, 0) AS before_bytes,
       coalesce(c.last_bytes, b.last_bound_bytes, 0) AS after_bytes
FROM changes c JOIN bounds b ON b.server_id = c.server_id AND b.database = c.database
"""
_LISTED = """
SELECT server_id, server, database, first_day, last_day, kind,
       concat_ws('.', nullif(schema_name, ''), object_name)
           || CASE WHEN table_name <> '' THEN ' on ' || table_name ELSE '' END AS label,
       schema_name AS schema, table_name AS "table", object_name AS name, before_bytes, after_bytes,
       CASE WHEN first_bytes IS NULL THEN greatest(after_bytes - before_bytes, 0)
            WHEN last_bytes IS NULL THEN least(after_bytes - before_bytes, 0)
            ELSE after_bytes - before_bytes END AS change_bytes,
       first_bytes IS NULL AND before_bytes > 0 AS before_is_bound,
       last_bytes IS NULL AND after_bytes > 0 AS after_is_bound, is_exact, free_bytes, estimated_rows,
       sum(coalesce(first_bytes, 0)) OVER of_database AS database_before_bytes,
       sum(coalesce(last_bytes, 0)) OVER of_database AS database_after_bytes
FROM compared
WHERE CAST(:grown AS integer) IS NULL OR kind IN ('table', 'index') AND last_bytes > before_bytes
WINDOW of_database AS (PARTITION BY server_id, database)
ORDER BY last_bytes - before_bytes DESC NULLS LAST, server_id, database, kind, schema_name, table_name, object_name
LIMIT :grown
"""
