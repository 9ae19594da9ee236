"""What grew inside: the tables and indexes behind the change of a database, or of all databases, in some days.

Two samples of `object_size_stats` are compared: the newest before the days, or else the first in them, and the newest
in them. What changed adds up to the change of the database: objects, the others, and what no object explains.

An object that is listed on one of the two days only was at most as large as the smallest listed one on the other day,
since the largest are always listed. It is compared with that bound: its change is the least that it can be, and the
rest of it is in the others. Where every object is listed, the bound is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection

from capacity_assets.collection.storing import LARGEST_LISTED
from capacity_assets.database.sql import with_parts
from capacity_assets.reading.access import records

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
class GrownObject:
    """A table or index of the fleet, and the days that are compared."""

    server_id: int
    server: str
    database: str
    first_day: date
    last_day: date
    grown: ObjectChange


@dataclass(frozen=True)
class Inside:
    """What changed inside of one database from its sample of one day to that of another, bytes.

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


@dataclass(frozen=True)
class _Row:
    """One object, or a sum, on two days. None: it is not listed on that day, and was at most as large as the bound."""

    server_id: int
    server: str
    database: str
    first_day: date
    last_day: date
    kind: str
    schema_name: str
    table_name: str
    object_name: str
    first_bytes: int | None
    last_bytes: int | None
    first_bound_bytes: int
    last_bound_bytes: int
    is_exact: bool
    free_bytes: int | None
    estimated_rows: int | None

    @property
    def is_object(self) -> bool:
        return self.kind not in (OTHERS, UNEXPLAINED)

    def compared(self) -> ObjectChange:
        before = self.first_bound_bytes if self.first_bytes is None else self.first_bytes
        after = self.last_bound_bytes if self.last_bytes is None else self.last_bytes
        change = after - before
        if self.first_bytes is None:
            change = max(change, 0)
        elif self.last_bytes is None:
            change = min(change, 0)
        own = f"{self.schema_name}.{self.object_name}" if self.schema_name else self.object_name
        return ObjectChange(
            label=f"{own} on {self.table_name}" if self.table_name else own,
            kind=self.kind,
            schema=self.schema_name,
            table=self.table_name,
            name=self.object_name,
            before_bytes=before,
            after_bytes=after,
            change_bytes=change,
            before_is_bound=self.first_bytes is None and before > 0,
            after_is_bound=self.last_bytes is None and after > 0,
            is_exact=self.is_exact,
            free_bytes=self.free_bytes,
            estimated_rows=self.estimated_rows,
        )


def inside(connection: Connection, server_id: int, database: str, first: date, last: date) -> Inside | None:
    """Return what changed inside of a database from `first` to `last`; None: not measured on two days. DBAPIError."""
    found = _rows(connection, first, last, server_id=server_id, database=database)
    if not found:
        return None
    compared = [one.compared() for one in found if one.is_object]
    objects = sorted((one for one in compared if one.change_bytes), key=lambda one: (-abs(one.change_bytes), one.label))
    before, after = (sum(size or 0 for size in sizes) for sizes in zip(*map(_sizes, found), strict=True))
    [unexplained] = [one.compared().change_bytes for one in found if one.kind == UNEXPLAINED]
    listed = sum(one.change_bytes for one in objects)
    return Inside(
        found[0].server,
        database,
        found[0].first_day,
        found[0].last_day,
        before,
        after,
        after - before,
        tuple(objects),
        after - before - listed - unexplained,
        unexplained,
    )


def _sizes(one: _Row) -> tuple[int | None, int | None]:
    return one.first_bytes, one.last_bytes


def growing_objects(
    connection: Connection, first: date, last: date, *, shown: int, server_id: int | None = None
) -> list[GrownObject]:
    """Return the tables and indexes that grew most from `first` to `last`, over all databases; raises DBAPIError."""
    return [
        GrownObject(one.server_id, one.server, one.database, one.first_day, one.last_day, one.compared())
        for one in _rows(connection, first, last, server_id=server_id, grown=shown)
    ]


def _rows(  # noqa: PLR0913 -- what the statement is asked
    connection: Connection,
    first: date,
    last: date,
    *,
    server_id: int | None = None,
    database: str | None = None,
    grown: int | None = None,
) -> Sequence[_Row]:
    statement = with_parts(_LISTED, days=_DAYS, ends=_ENDS, ranked=_RANKED, bounds=_BOUNDS, changes=_CHANGES)
    oldest = first - timedelta(days=LONGEST_BEFORE_DAYS)
    place = {"server_id": server_id, "database": database, "grown": grown, "largest": LARGEST_LISTED}
    return records(_Row, connection, statement, first=first, last=last, oldest=oldest, **place)


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
_LISTED = """
SELECT c.server_id, c.server, c.database, c.first_day, c.last_day, c.kind, c.schema_name, c.table_name, c.object_name,
       c.first_bytes, c.last_bytes, coalesce(b.first_bound_bytes, 0) AS first_bound_bytes,
       coalesce(b.last_bound_bytes, 0) AS last_bound_bytes, c.is_exact, c.free_bytes, c.estimated_rows
FROM changes c JOIN bounds b ON b.server_id = c.server_id AND b.database = c.database
WHERE CAST(:grown AS integer) IS NULL
   OR c.kind IN ('table', 'index')
      AND c.last_bytes > coalesce(c.first_bytes, b.first_bound_bytes, 0)
ORDER BY c.last_bytes - coalesce(c.first_bytes, b.first_bound_bytes, 0) DESC NULLS LAST, c.server_id, c.database,
         c.kind, c.schema_name, c.table_name, c.object_name
LIMIT :grown
"""
