"""Tables and indexes: their changes in databases and over the fleet, and the history of one table.

For a change, two samples of `object_size_stats` are compared: the newest before the days or, if there is none, the
first in them, and the newest in them. The changes of listed objects, of all others and of the unexplained part add up
to the change of the database.

An object that is listed on only one of the two days was at most as large as the smallest listed one on the other day,
because the largest are always listed. It is compared with this bound: its change is the least possible one, and the
rest of it is in the others. If every object is listed, the bound is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Connection, Row

from capacity_assets.base.periods import Window
from capacity_assets.base.units import human_change_mb, human_days, whole_mb
from capacity_assets.collection.storing import LARGEST_LISTED
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.sql import with_queries
from capacity_assets.reading.access import BY_HASHES, WITHOUT_LOOPS, planned_with, records, rows
from capacity_assets.reading.space import in_cents
from capacity_assets.reading.subjects import BillIssue

LONGEST_BEFORE_DAYS = 31
OTHERS, UNEXPLAINED = "others", "unexplained"
LEAST_FREE_BYTES = 1024**3
"""Less dead and free space of a table is not judged."""
FEW_DATABASES = 100
"""Above this number, both samples are read completely if no least change shows which objects a list can begin with."""
LARGEST_TRIED = 1000
"""Objects of a fleet among which the least change that a list can begin with is searched."""
ORDERS = ("growth", "shrinkage", "size", "free", "unwritten", "name")
"""The sort orders of tables and indexes. `free`: tables whose dead rows and free pages grew, by the cost of these;
`unwritten`: tables to which nothing was written, by their cost with indexes."""
DAYS_OF_WEEK = 7

T = TypeVar("T", bound="ObjectChange | TableName")


@dataclass(frozen=True, kw_only=True)
class ObjectChange:
    """A table or index on two days, bytes; `label` has its schema and, for an index, its table.

    `before_is_bound` and `after_is_bound`: it is not listed on that day, and was at most as large. The change is then
    the smallest possible one. `free_bytes`: dead rows and free pages on the second day; None: unknown.
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
    free_change_bytes: int | None
    has_more_free: bool
    """Whether `free_bytes` are at least 1 GiB and have grown, also as a share of the table."""
    estimated_rows: int | None
    written_rows: int | None
    """Rows inserted, updated and deleted between the two days; None: unknown."""

    @property
    def is_bound(self) -> bool:
        """Whether its change is the smallest possible one."""
        return self.before_is_bound or self.after_is_bound

    @property
    def its_table(self) -> str:
        """The table that it is, or that it is an index of."""
        return self.table or self.name


@dataclass(frozen=True, kw_only=True)
class ObjectPlace:
    """The database of a table or index, and the compared days."""

    server_id: int
    server: str
    database: str
    first_day: date
    last_day: date


@dataclass(frozen=True, kw_only=True)
class ListedObject(ObjectChange, ObjectPlace):
    """A table or index in a list; `amount`: the cost of `counted_bytes` in the month of the bill; None: unknown.

    These are its dead rows and free pages or, in the order `unwritten`, the table with its indexes.
    """

    counted_bytes: int | None
    amount: Decimal | None

    @property
    def sentence(self) -> str:
        """Its change and the compared days, as in 'table public.audit: at least +30 GiB, 2 to 9 Mar 2026'."""
        least = "at least " if self.is_bound else ""
        days = human_days(self.first_day, self.last_day)
        return f"{self.kind} {self.label}: {least}{human_change_mb(whole_mb(self.change_bytes))}, {days}"


@dataclass(frozen=True)
class ObjectList:
    """A page of a list. In the orders `free` and `unwritten`, also `counted_bytes` of all rows, and their cost.

    None: another order; `amount` may also be None without a price.
    """

    objects: Sequence[ListedObject]
    has_more: bool
    counted_bytes: int | None
    amount: Decimal | None


@dataclass(frozen=True)
class DatabaseGrowth:
    """The changes inside a database between its samples of two days, bytes.

    `objects` are those that changed, largest change first. Their changes, that of all others and that of the
    unexplained part add up to `change_bytes`.
    """

    server: str
    database: str
    first_day: date
    last_day: date
    before_bytes: int
    after_bytes: int
    change_bytes: int
    objects: tuple[ObjectChange, ...]
    more_free: tuple[ObjectChange, ...]
    """The tables whose dead and free space grew, the largest first."""
    others_change_bytes: int
    unexplained_change_bytes: int


@dataclass(frozen=True)
class SchemaGrowth:
    """The tables and indexes of a schema that changed, with their number and the sum of their changes, bytes."""

    schema: str
    objects: int
    change_bytes: int


def by_schema(growth: DatabaseGrowth) -> list[SchemaGrowth]:
    """Return the changes of tables and indexes added up by schema, largest change first."""
    schemas: dict[str, list[ObjectChange]] = {}
    for change in growth.objects:
        schemas.setdefault(change.schema, []).append(change)
    sums = [
        SchemaGrowth(schema, len(them), sum(change.change_bytes for change in them)) for schema, them in schemas.items()
    ]
    return sorted(sums, key=lambda schema_growth: (-abs(schema_growth.change_bytes), schema_growth.schema))


def growth_inside(
    connection: Connection, server_id: int, database: str, first: date, last: date
) -> DatabaseGrowth | None:
    """Return the changes inside a database from `first` to `last`; None: not measured on two days. DBAPIError."""
    days = compared_samples(connection, first, last, servers=[server_id], databases=[database])
    if not days:
        return None
    lines = _rows(connection, _INSIDE, days, _OF_DATABASES)
    objects = [_of_row(ObjectChange, row) for row in lines if row.kind not in {OTHERS, UNEXPLAINED}]
    changed = [change for change in objects if change.change_bytes]
    more_free = [change for change in objects if change.has_more_free]
    [unexplained] = [row.change_bytes for row in lines if row.kind == UNEXPLAINED]
    before, after = int(lines[0].database_before_bytes), int(lines[0].database_after_bytes)
    return DatabaseGrowth(
        lines[0].server,
        database,
        lines[0].first_day,
        lines[0].last_day,
        before,
        after,
        after - before,
        tuple(sorted(changed, key=lambda change: (-abs(change.change_bytes), change.label))),
        tuple(sorted(more_free, key=lambda change: (-(change.free_bytes or 0), change.label))),
        after - before - sum(change.change_bytes for change in changed) - unexplained,
        unexplained,
    )


def list_objects(  # noqa: PLR0913 -- one argument per choice of a list
    connection: Connection,
    days: Sequence[Row[Any]],
    *,
    order: str,
    bill: BillIssue | None = None,
    skipped: int = 0,
    shown: int,
) -> ObjectList:
    """Return tables and indexes in order, with their change between the samples of `compared_samples`.

    Prices are those of `bill`. Raises DBAPIError.
    """
    parameters: dict[str, Any] = {"order": order, "most": skipped + shown, "tried": skipped + shown + LARGEST_TRIED}
    parameters |= {"is_by_last": order != "shrinkage", "shown": shown + 1, "skipped": skipped}
    parameters["end"] = skipped + shown + 1
    parameters |= {"start": bill and bill.month, "issue": bill and bill.issue}
    parameters["least"] = LEAST_FREE_BYTES if order == "free" else 1
    are_few = len(days) <= FEW_DATABASES
    if order in _BY_LEAST:
        largest = _LARGEST_ON_NODES if tables_are_distributed(connection) else _LARGEST
        for row in _rows(connection, _LEAST, days, {"largest": largest}, **parameters):
            parameters["least"] = row.least
            are_few = are_few or row.is_of_largest
    here = _HERE
    chosen: Sequence[Row[Any]] = ()
    if order in _CHOSEN:
        statement, parts = _CHOSEN[order]
        # PostgreSQL estimates few objects of these days and databases, and would look each up in the other sample.
        many = WITHOUT_LOOPS if order == "name" else BY_HASHES
        with planned_with(connection, () if are_few else many):
            chosen = _rows(connection, statement, days, parts, **parameters)
        here = _HERE_CHOSEN
        parameters |= {f"chosen_{name}": [getattr(row, name) for row in chosen] for name in _KEY}
    parts = {"here": here, "changes": _LISTED_CHANGES, **_COMPARISON, "price_of": _PRICE_OF, "counted": _COUNTED}
    object_rows = _rows(connection, _LISTED, days, parts, **parameters)
    listed = [_of_row(ListedObject, row) for row in object_rows[:shown]]
    counted_bytes, amount = None, None
    if order in {"free", "unwritten"}:
        whole = (chosen or object_rows)[0] if object_rows else None
        counted_bytes, amount = (int(whole.whole_bytes), whole.whole_amount) if whole else (0, None)
    return ObjectList(listed, len(object_rows) > shown, counted_bytes, in_cents(amount))


def objects_behind(
    connection: Connection, changes: Mapping[tuple[int, str], int], window: Window
) -> dict[tuple[int, str], ListedObject]:
    """Return the table or index that grew or shrank most in each database, in the direction of its change.

    Databases are server and name, `changes` has their signs. Those without such an object, or not measured on two days,
    are left out. Raises DBAPIError.
    """
    moved = {place: change for place, change in changes.items() if change}
    servers, databases = [server for server, _ in moved], [name for _, name in moved]
    between = window.start, window.end
    days = compared_samples(connection, *between, servers=servers, databases=databases) if moved else []
    object_rows = _rows(connection, _MOST_CHANGED, days, _OF_DATABASES)
    largest = {(row.server_id, row.database, row.change_bytes > 0): _of_row(ListedObject, row) for row in object_rows}
    places = ((place, (*place, change > 0)) for place, change in moved.items())
    return {place: largest[key] for place, key in places if key in largest}


@dataclass(frozen=True)
class TableName:
    """A table, its schema and database."""

    server_id: int
    server: str
    database: str
    schema: str
    name: str


def largest_tables(connection: Connection, today: date, most: int) -> list[TableName]:
    """Return the largest tables by the newest sample of each database in the last month; raises DBAPIError."""
    days = rows(connection, _NEWEST_DAYS, today=today, oldest=today - timedelta(days=LONGEST_BEFORE_DAYS))
    largest = _LARGEST_ON_NODES if tables_are_distributed(connection) else _LARGEST
    # Half of the largest objects may be indexes.
    tables = _rows(connection, _LARGEST_TABLES, days, {"largest": largest}, tried=2 * most, most=most)
    return [_of_row(TableName, row) for row in tables]


def are_measured(connection: Connection, today: date) -> bool:
    """Whether tables and indexes of any database were measured in the last month; raises DBAPIError."""
    return bool(rows(connection, _MEASURED, today=today, oldest=today - timedelta(days=LONGEST_BEFORE_DAYS)))


def _of_row(kind: type[T], row: Row[Any]) -> T:
    values = {attribute.name: getattr(row, attribute.name) for attribute in fields(kind)}
    return kind(**values | ({"amount": in_cents(row.amount)} if "amount" in values else {}))


def compared_samples(
    connection: Connection,
    first: date,
    last: date,
    *,
    servers: Sequence[int] | None = None,
    databases: Sequence[str] | None = None,
) -> Sequence[Row[Any]]:
    """Return the databases that were measured on two days, with these days.

    They are those of the fleet without replicas, of `servers` or, with `databases`, each database on the server at the
    same place in `servers`. Raises DBAPIError.
    """
    replicas = [] if servers is not None else rows(connection, _REPLICAS)
    # By days, a key that begins with the day finds a server; by a range it does not.
    parameters: dict[str, Any] = {
        "days": Window(first - timedelta(days=LONGEST_BEFORE_DAYS), last).dates,
        "first": first,
        "servers": None if servers is None else list(servers),
        "databases": None if databases is None else list(databases),
        "left_out": [row.server_id for row in replicas],
    }
    return rows(connection, _COMPARED_SAMPLES, **parameters)


def compared_until(connection: Connection, first: date, last: date) -> datetime | None:
    """Return when a server was last measured on one of the days of `compared_samples`; raises DBAPIError.

    Until this changes, samples of the same days are the same.
    """
    [newest] = rows(connection, _NEWEST_ATTEMPT, oldest=first - timedelta(days=LONGEST_BEFORE_DAYS), last=last)
    attempted_at: datetime | None = newest.attempted_at
    return attempted_at


def _rows(
    connection: Connection,
    statement: str,
    days: Sequence[Row[Any]],
    parts: Mapping[str, str],
    *,
    is_by_last: bool = True,
    **parameters: Any,
) -> Sequence[Row[Any]]:
    """Return the rows of a statement that compares the samples of these days; `is_by_last`: it begins with the last.

    Days are parameters, so that PostgreSQL reads only these.
    """
    if not days:
        return []
    columns = {name: [getattr(row, name) for row in days] for name in ("server_id", "server", "database")}
    firsts, lasts = ([getattr(row, name) for row in days] for name in ("first_day", "last_day"))
    heres, theres = (sorted(set(them)) for them in ((lasts, firsts) if is_by_last else (firsts, lasts)))
    parameters |= {**columns, "firsts": firsts, "lasts": lasts, "is_by_last": is_by_last}
    parameters |= {"largest": LARGEST_LISTED, "floor": LEAST_FREE_BYTES}
    parameters |= {"heres": heres, "theres": theres, "ends": sorted({*heres, *theres})}
    once = {"bound_of", "price_of", "compared", "counted", "moved", "priced"} & parts.keys()
    return rows(connection, with_queries(statement, materialized=once, days=_DAYS, **parts), **parameters)


_REPLICAS = "SELECT server_id FROM capacity_servers WHERE counted_by IS NOT NULL"
_MEASURED = "SELECT 1 FROM capacity_objects WHERE day BETWEEN :oldest AND :today LIMIT 1"
_NEWEST_ATTEMPT = "SELECT max(attempted_at) AS attempted_at FROM capacity_attempts WHERE day BETWEEN :oldest AND :last"
_COMPARED_SAMPLES = """
SELECT server_id, max(server) AS server, database,
       coalesce(max(day) FILTER (WHERE day < :first), min(day)) AS first_day, max(day) AS last_day
FROM capacity_objects
WHERE day = ANY (CAST(:days AS date[])) AND kind = 'unexplained' AND server_id <> ALL (CAST(:left_out AS integer[]))
  AND (CAST(:servers AS integer[]) IS NULL OR server_id = ANY (CAST(:servers AS integer[])))
  AND (CAST(:databases AS text[]) IS NULL OR database = ANY (CAST(:databases AS text[])) AND (server_id, database) IN (
       SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:databases AS text[]))))
GROUP BY server_id, database HAVING max(day) >= :first AND min(day) < max(day)
"""
_DAYS = """
SELECT d.*, CASE WHEN :is_by_last THEN last_day ELSE first_day END AS here,
       CASE WHEN :is_by_last THEN first_day ELSE last_day END AS there
FROM unnest(CAST(:server_id AS integer[]), CAST(:server AS text[]), CAST(:database AS text[]),
            CAST(:firsts AS date[]), CAST(:lasts AS date[])) AS d (server_id, server, database, first_day, last_day)
"""
_LARGEST = """
SELECT o.* FROM unnest(CAST(:heres AS date[])) AS here (day)
CROSS JOIN LATERAL (
    SELECT day, server_id, database, kind, schema_name, table_name, object_name, size_bytes
    FROM capacity_objects WHERE day = here.day ORDER BY size_bytes DESC LIMIT :tried
) AS o
WHERE o.kind IN ('table', 'index')
"""
# On distributed rows, a subquery must not depend on the outer query.
_LARGEST_ON_NODES = """
SELECT day, server_id, database, kind, schema_name, table_name, object_name, size_bytes
FROM capacity_objects WHERE day = ANY (CAST(:heres AS date[])) AND kind IN ('table', 'index')
ORDER BY size_bytes DESC LIMIT :tried
"""
# Listed objects change by at least the change of the last one, so smaller objects need not be compared.
_LEAST = """
SELECT CASE CAST(:order AS text) WHEN 'size' THEN l.size_bytes ELSE l.size_bytes - o.size_bytes END AS least,
       CASE CAST(:order AS text) WHEN 'size' THEN l.size_bytes ELSE l.size_bytes - o.size_bytes END
           >= (SELECT min(size_bytes) FROM largest) AS is_of_largest
FROM largest l JOIN days d ON d.server_id = l.server_id AND d.database = l.database AND d.here = l.day
JOIN capacity_objects o
  ON o.day = d.there AND o.server_id = l.server_id AND o.database = l.database AND o.kind = l.kind
 AND o.schema_name = l.schema_name AND o.table_name = l.table_name AND o.object_name = l.object_name
WHERE o.day = ANY (CAST(:theres AS date[])) AND (CAST(:order AS text) = 'size' OR l.size_bytes > o.size_bytes)
ORDER BY least DESC OFFSET :most LIMIT 1
"""
_NEWEST_DAYS = """
SELECT server_id, max(server) AS server, database, max(day) AS first_day, max(day) AS last_day
FROM capacity_objects WHERE day BETWEEN :oldest AND :today AND kind = 'unexplained' GROUP BY server_id, database
"""
_LARGEST_TABLES = """
SELECT l.server_id, d.server, l.database, l.schema_name AS schema, l.object_name AS name
FROM largest l JOIN days d ON d.server_id = l.server_id AND d.database = l.database AND d.here = l.day
WHERE l.kind = 'table' ORDER BY l.size_bytes DESC LIMIT :most
"""
_BY_LEAST = ("growth", "shrinkage", "size")
_KEY = ("server_id", "database", "kind", "schema_name", "table_name", "object_name")
# The objects of a list are found by few columns of many objects; their other columns are read afterwards. Joins must
# not be reordered, because PostgreSQL estimates few objects of these days and databases.
_MOVED = """
SELECT o.server_id, o.database, o.kind, o.schema_name, o.table_name, o.object_name,
       o.size_bytes - coalesce(p.size_bytes, 0) AS moved_bytes, p.size_bytes IS NOT NULL AS is_sure
FROM days d JOIN capacity_objects o ON o.server_id = d.server_id AND o.database = d.database AND o.day = d.here
LEFT JOIN capacity_objects p
  ON p.day = d.there AND p.day = ANY (CAST(:theres AS date[])) AND p.server_id = o.server_id
 AND p.database = o.database AND p.kind = o.kind AND p.schema_name = o.schema_name AND p.table_name = o.table_name
 AND p.object_name = o.object_name
WHERE o.day = ANY (CAST(:heres AS date[])) AND o.kind IN ('table', 'index') AND o.size_bytes >= :least
  AND o.size_bytes - coalesce(p.size_bytes, 0) >= :least
"""
# An object without a size on the other day may have moved less.
_MOST_MOVED = """
SELECT * FROM moved
WHERE moved_bytes >= coalesce((SELECT moved_bytes FROM moved WHERE is_sure
                               ORDER BY moved_bytes DESC OFFSET :most LIMIT 1), :least)
"""
_FIRST_NAMES = """
SELECT o.server_id, o.database, o.kind, o.schema_name, o.table_name, o.object_name
FROM days d JOIN capacity_objects o ON o.server_id = d.server_id AND o.database = d.database AND o.day = d.here
WHERE o.day = ANY (CAST(:heres AS date[])) AND o.kind IN ('table', 'index')
ORDER BY o.object_name, d.server, o.database, o.kind, o.schema_name, o.table_name LIMIT :end
"""
_UNWRITTEN = """
SELECT o.server_id, d.server, o.database, o.kind, o.schema_name, o.table_name, o.object_name,
       o.size_bytes + coalesce(o.index_bytes, 0) AS counted_bytes
FROM days d JOIN capacity_objects o ON o.server_id = d.server_id AND o.database = d.database AND o.day = d.here
LEFT JOIN capacity_objects p
  ON p.day = d.there AND p.day = ANY (CAST(:theres AS date[])) AND p.server_id = o.server_id
 AND p.database = o.database AND p.kind = o.kind AND p.schema_name = o.schema_name AND p.table_name = o.table_name
 AND p.object_name = o.object_name
WHERE o.day = ANY (CAST(:heres AS date[])) AND o.kind IN ('table', 'index') AND o.written_rows IS NOT NULL
  AND CASE WHEN o.counted_since IS NULL OR o.counted_since <= p.collected_at THEN o.written_rows = p.written_rows END
"""
_PRICED = """
SELECT c.*, CAST(prices ->> CAST(jsonb_build_array(server_id, database) AS text) AS numeric) AS price
FROM compared c CROSS JOIN price_of
"""
_COSTLIEST = """
SELECT priced.*, sum(counted_bytes) OVER () AS whole_bytes,
       sum(counted_bytes * price / 1073741824) OVER () AS whole_amount
FROM priced
ORDER BY counted_bytes * price DESC NULLS LAST, counted_bytes DESC, server, database, kind, schema_name, table_name,
         object_name
LIMIT :end
"""
_HERE = """
SELECT o.*, d.first_day, d.last_day, d.there
FROM days d JOIN capacity_objects o ON o.server_id = d.server_id AND o.database = d.database AND o.day = d.here
WHERE o.day = ANY (CAST(:heres AS date[])) AND o.kind IN ('table', 'index') AND (o.size_bytes >= :least OR :least = 1)
"""
_HERE_CHOSEN = """
SELECT o.*, d.first_day, d.last_day, d.there
FROM unnest(CAST(:chosen_server_id AS integer[]), CAST(:chosen_database AS text[]), CAST(:chosen_kind AS text[]),
            CAST(:chosen_schema_name AS text[]), CAST(:chosen_table_name AS text[]),
            CAST(:chosen_object_name AS text[]))
     AS k (server_id, database, kind, schema_name, table_name, object_name)
JOIN days d ON d.server_id = k.server_id AND d.database = k.database
JOIN capacity_objects o
  ON o.day = d.here AND o.server_id = k.server_id AND o.database = k.database AND o.kind = k.kind
 AND o.schema_name = k.schema_name AND o.table_name = k.table_name AND o.object_name = k.object_name
WHERE o.day = ANY (CAST(:heres AS date[]))
"""
_LISTED_CHANGES = """
SELECT o.server_id, o.server, o.database, o.first_day, o.last_day, o.kind, o.schema_name, o.table_name, o.object_name,
       CASE WHEN :is_by_last THEN p.size_bytes ELSE o.size_bytes END AS first_bytes,
       CASE WHEN :is_by_last THEN o.size_bytes ELSE p.size_bytes END AS last_bytes,
       o.is_exact AND coalesce(p.is_exact, true) AS is_exact,
       CASE WHEN :is_by_last THEN p.free_bytes ELSE o.free_bytes END AS first_free_bytes,
       CASE WHEN :is_by_last THEN o.free_bytes ELSE p.free_bytes END AS free_bytes,
       CASE WHEN :is_by_last THEN o.estimated_rows ELSE p.estimated_rows END AS estimated_rows,
       CASE WHEN :is_by_last THEN o.index_bytes ELSE p.index_bytes END AS index_bytes,
       -- A counter that began after the first sample says nothing about the time between.
       CASE WHEN :is_by_last AND (o.counted_since IS NULL OR o.counted_since <= p.collected_at)
            THEN o.written_rows - p.written_rows
            WHEN NOT :is_by_last AND (p.counted_since IS NULL OR p.counted_since <= o.collected_at)
            THEN p.written_rows - o.written_rows END AS written_rows
FROM here o LEFT JOIN capacity_objects p
  ON p.day = o.there AND p.day = ANY (CAST(:theres AS date[])) AND p.server_id = o.server_id
 AND p.database = o.database AND p.kind = o.kind AND p.schema_name = o.schema_name AND p.table_name = o.table_name
 AND p.object_name = o.object_name
WHERE CAST(:order AS text) <> 'free' OR o.free_bytes >= :least
"""
_ENDS = """
SELECT o.*, d.first_day, d.last_day, o.day = d.last_day AS is_last
FROM capacity_objects o JOIN days d ON d.server_id = o.server_id AND d.database = o.database
WHERE o.day IN (d.first_day, d.last_day) AND o.day = ANY (CAST(:ends AS date[]))
"""
_CHANGES = """
SELECT server_id, max(server) AS server, database, max(first_day) AS first_day, max(last_day) AS last_day, kind,
       schema_name, table_name, object_name,
       max(size_bytes) FILTER (WHERE NOT is_last) AS first_bytes, max(size_bytes) FILTER (WHERE is_last) AS last_bytes,
       bool_and(is_exact) AS is_exact, max(free_bytes) FILTER (WHERE NOT is_last) AS first_free_bytes,
       max(free_bytes) FILTER (WHERE is_last) AS free_bytes,
       max(estimated_rows) FILTER (WHERE is_last) AS estimated_rows,
       max(index_bytes) FILTER (WHERE is_last) AS index_bytes,
       CASE WHEN max(counted_since) FILTER (WHERE is_last) <= max(collected_at) FILTER (WHERE NOT is_last)
                 OR max(counted_since) FILTER (WHERE is_last) IS NULL
            THEN max(written_rows) FILTER (WHERE is_last) - max(written_rows) FILTER (WHERE NOT is_last) END
           AS written_rows
FROM ends GROUP BY server_id, database, kind, schema_name, table_name, object_name
"""
_MISSING = """
SELECT DISTINCT server_id, database, CASE WHEN first_bytes IS NULL THEN first_day ELSE last_day END AS day
FROM changes WHERE first_bytes IS NULL OR last_bytes IS NULL
"""
_BOUNDS = """
SELECT o.server_id, o.database, o.day,
       (array_agg(o.size_bytes ORDER BY o.size_bytes DESC) FILTER (WHERE o.kind IN ('table', 'index')))
           [least(count(*) FILTER (WHERE o.kind IN ('table', 'index')), :largest)] AS bound_bytes
FROM capacity_objects o JOIN missing m ON m.server_id = o.server_id AND m.database = o.database AND m.day = o.day
WHERE o.day = ANY (CAST(:ends AS date[]))
GROUP BY o.server_id, o.database, o.day HAVING max(o.object_count) > 0
"""
# PostgreSQL does not know how many rows the parts have. It would search bounds and prices for each row, one by one.
_BOUND_OF = """
SELECT jsonb_object_agg(CAST(jsonb_build_array(server_id, database, day) AS text), bound_bytes) AS bounds FROM bounds
"""
# Only of the compared databases, because a bill contains the whole fleet.
_PRICE_OF = """
SELECT jsonb_object_agg(CAST(jsonb_build_array(server_id, database) AS text), price) AS prices
FROM (
    SELECT l.instance_id AS server_id, l.database_name AS database,
           sum(l.amount) / nullif(sum(l.gib_months) FILTER (WHERE l.price IS NOT NULL), 0) AS price
    FROM (SELECT DISTINCT server_id, database FROM compared) AS d
    JOIN capacity_bill_lines l ON l.instance_id = d.server_id AND l.database_name = d.database
    WHERE l.month = :start AND l.issue = :issue
    GROUP BY l.instance_id, l.database_name
) AS prices
"""
_COMPARED = """
SELECT c.*,
       coalesce(first_bytes, CAST(bounds ->> CAST(jsonb_build_array(server_id, database, first_day) AS text) AS bigint),
                0) AS before_bytes,
       coalesce(last_bytes, CAST(bounds ->> CAST(jsonb_build_array(server_id, database, last_day) AS text) AS bigint),
                0) AS after_bytes
FROM changes c CROSS JOIN bound_of
"""
_OBJECTS = """
SELECT server_id, server, database, first_day, last_day, kind,
       concat_ws('.', nullif(schema_name, ''), object_name)
           || CASE WHEN table_name <> '' THEN ' on ' || table_name ELSE '' END AS label,
       schema_name AS schema, table_name AS "table", object_name AS name, first_bytes, last_bytes, before_bytes,
       after_bytes,
       CASE WHEN first_bytes IS NULL THEN greatest(after_bytes - before_bytes, 0)
            WHEN last_bytes IS NULL THEN least(after_bytes - before_bytes, 0)
            ELSE after_bytes - before_bytes END AS change_bytes,
       first_bytes IS NULL AND before_bytes > 0 AS before_is_bound,
       last_bytes IS NULL AND after_bytes > 0 AS after_is_bound, is_exact, free_bytes,
       free_bytes - first_free_bytes AS free_change_bytes,
       -- Free space that a table always has is no news, however large: it must be more, and more of the table.
       (free_bytes >= :floor AND free_bytes > first_free_bytes
            AND CAST(free_bytes AS numeric) * first_bytes > CAST(first_free_bytes AS numeric) * last_bytes) IS TRUE
           AS has_more_free,
       estimated_rows, index_bytes,
       -- Less than before: the server has begun again.
       CASE WHEN written_rows >= 0 THEN written_rows END AS written_rows
FROM compared
"""
_COMPARISON = {
    "missing": _MISSING,
    "bounds": _BOUNDS,
    "bound_of": _BOUND_OF,
    "compared": _COMPARED,
    "objects": _OBJECTS,
}
_OF_DATABASES = {"ends": _ENDS, "changes": _CHANGES, **_COMPARISON}
_INSIDE = """
SELECT o.*, sum(coalesce(first_bytes, 0)) OVER () AS database_before_bytes,
       sum(coalesce(last_bytes, 0)) OVER () AS database_after_bytes
FROM objects o
"""
_COUNTED = """
SELECT o.*, CAST(prices ->> CAST(jsonb_build_array(server_id, database) AS text) AS numeric) AS price,
       CASE CAST(:order AS text) WHEN 'unwritten' THEN o.after_bytes + coalesce(o.index_bytes, 0) ELSE o.free_bytes END
           AS counted_bytes
FROM objects o CROSS JOIN price_of
WHERE o.kind IN ('table', 'index')
  AND CASE CAST(:order AS text) WHEN 'growth' THEN o.change_bytes > 0 WHEN 'shrinkage' THEN o.change_bytes < 0
           WHEN 'free' THEN o.has_more_free WHEN 'unwritten' THEN o.written_rows = 0 ELSE o.last_bytes IS NOT NULL END
"""
# By order, the statement that finds the objects of a list, and its parts.
_CHOSEN: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "growth": (_MOST_MOVED, {"moved": _MOVED}),
    "shrinkage": (_MOST_MOVED, {"moved": _MOVED}),
    "name": (_FIRST_NAMES, {}),
    "unwritten": (_COSTLIEST, {"compared": _UNWRITTEN, "price_of": _PRICE_OF, "priced": _PRICED}),
}
_LISTED = """
SELECT o.*, o.counted_bytes * o.price / 1073741824 AS amount, sum(o.counted_bytes) OVER () AS whole_bytes,
       CASE WHEN CAST(:order AS text) IN ('free', 'unwritten')
            THEN sum(o.counted_bytes * o.price / 1073741824) OVER () END AS whole_amount
FROM counted o
ORDER BY CASE WHEN CAST(:order AS text) IN ('free', 'unwritten') THEN o.counted_bytes * o.price END DESC NULLS LAST,
         CASE CAST(:order AS text) WHEN 'growth' THEN o.change_bytes WHEN 'shrinkage' THEN -o.change_bytes
              WHEN 'size' THEN o.after_bytes WHEN 'name' THEN NULL ELSE o.counted_bytes END DESC NULLS LAST,
         CASE CAST(:order AS text) WHEN 'name' THEN o.name END,
         o.server, o.database, o.kind, o.schema, o."table", o.name
LIMIT :shown OFFSET :skipped
"""
_MOST_CHANGED = """
SELECT DISTINCT ON (o.server_id, o.database, o.change_bytes > 0)
       o.*, o.free_bytes AS counted_bytes, CAST(NULL AS numeric) AS amount
FROM objects o WHERE o.kind IN ('table', 'index') AND o.change_bytes <> 0
ORDER BY o.server_id, o.database, o.change_bytes > 0, abs(o.change_bytes) DESC, o.label
"""


@dataclass(frozen=True)
class TableSize:
    """A table on a day on which its database was measured, bytes; `data_bytes` None: it was not listed.

    `data_bytes` is without indexes. `index_bytes` are all of its indexes or, if the server does not report this, the
    listed ones. `free_bytes` is a part of `data_bytes`. None: unknown.
    """

    day: date
    data_bytes: int | None
    index_bytes: int | None
    free_bytes: int | None
    total_bytes: int | None
    """The table with its indexes."""
    estimated_rows: int | None
    is_exact: bool | None


@dataclass(frozen=True)
class IndexSize:
    """An index on the first and the last day on which it was listed, bytes."""

    name: str
    first_day: date
    last_day: date
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True)
class TableHistory:
    """A table on each day on which its database was measured, oldest first, and its listed indexes, largest first."""

    sizes: Sequence[TableSize]
    indexes: Sequence[IndexSize]

    @property
    def listed(self) -> Sequence[TableSize]:
        """The days on which it was listed."""
        return [size for size in self.sizes if size.total_bytes is not None]

    @property
    def weekly_change_bytes(self) -> int | None:
        """Its mean growth in a week, from the first day on which it was listed to the last; None: only one day."""
        listed = self.listed
        days = (listed[-1].day - listed[0].day).days if listed else 0
        change = (listed[-1].total_bytes or 0) - (listed[0].total_bytes or 0) if listed else 0
        return round(DAYS_OF_WEEK * change / days) if days else None


def table_history(  # noqa: PLR0913, PLR0917 -- the table and the days
    connection: Connection, server_id: int, database: str, schema: str, table: str, days: Sequence[date]
) -> TableHistory:
    """Return the sizes of a table on the days of `days` on which its database was measured; raises DBAPIError."""
    parameters = {"server": server_id, "database": database, "schema": schema, "table": table}
    parameters |= {"days": days}
    sizes = records(TableSize, connection, with_queries(_SIZES, measured=_MEASURED_SIZES), **parameters)
    return TableHistory(sizes, records(IndexSize, connection, _INDEXES, **parameters))


def newest_day_of_table(connection: Connection, server_id: int, database: str, schema: str, table: str) -> date | None:
    """Return the newest day on which a table or one of its indexes was listed; None: never. Raises DBAPIError."""
    parameters = {"server": server_id, "database": database, "schema": schema, "table": table}
    newest = rows(connection, _NEWEST, **parameters)
    return newest[0].day if newest else None


_SIZES = """
SELECT day, data_bytes, index_bytes, free_bytes, data_bytes + coalesce(index_bytes, 0) AS total_bytes, estimated_rows,
       is_exact
FROM measured ORDER BY day
"""
_MEASURED_SIZES = """
SELECT day, max(size_bytes) FILTER (WHERE kind = 'table') AS data_bytes,
       coalesce(max(index_bytes) FILTER (WHERE kind = 'table'),
                CAST(sum(size_bytes) FILTER (WHERE kind = 'index') AS bigint)) AS index_bytes,
       max(free_bytes) FILTER (WHERE kind = 'table') AS free_bytes,
       max(estimated_rows) FILTER (WHERE kind = 'table') AS estimated_rows,
       bool_and(is_exact) FILTER (WHERE kind = 'table') AS is_exact
FROM capacity_objects
WHERE server_id = :server AND database = :database AND day = ANY (CAST(:days AS date[]))
  AND (kind = 'unexplained'
       OR schema_name = :schema AND :table IN (table_name, CASE kind WHEN 'table' THEN object_name END))
GROUP BY day
"""
_INDEXES = """
SELECT object_name AS name, min(day) AS first_day, max(day) AS last_day,
       (array_agg(size_bytes ORDER BY day))[1] AS before_bytes,
       (array_agg(size_bytes ORDER BY day DESC))[1] AS after_bytes
FROM capacity_objects
WHERE server_id = :server AND database = :database AND day = ANY (CAST(:days AS date[])) AND kind = 'index'
  AND schema_name = :schema AND table_name = :table
GROUP BY object_name ORDER BY after_bytes DESC, name
"""
# Keys begin with the day, so days are looked up one by one, newest first.
_NEWEST = """
WITH ends AS (
    SELECT (SELECT day FROM capacity_objects ORDER BY day DESC LIMIT 1) AS last,
           (SELECT day FROM capacity_objects ORDER BY day LIMIT 1) AS first
), days AS (
    SELECT ends.last - back AS day FROM ends CROSS JOIN generate_series(0, ends.last - ends.first) AS back
    ORDER BY day DESC
)
SELECT days.day FROM days CROSS JOIN LATERAL (
    SELECT 1 FROM capacity_objects
    WHERE day = days.day AND server_id = :server AND database = :database AND schema_name = :schema
      AND :table IN (table_name, CASE kind WHEN 'table' THEN object_name END) LIMIT 1) AS listed
ORDER BY days.day DESC LIMIT 1
"""


def mean_price_of_database(
    connection: Connection, month: date, issue: int, server_id: int, database: str
) -> Decimal | None:
    """Return the mean price per GiB of a database in an issue of a bill; None: it has none. Raises DBAPIError."""
    statement = """
        SELECT sum(amount) / nullif(sum(gib_months) FILTER (WHERE price IS NOT NULL), 0) AS price
        FROM capacity_bill_lines
        WHERE month = :month AND issue = :issue AND instance_id = :server AND database_name = :database"""
    [row] = rows(connection, statement, month=month, issue=issue, server=server_id, database=database)
    mean: Decimal | None = row.price
    return mean


@dataclass(frozen=True)
class FreeTable:
    """A table with dead rows or free pages, and their cost in the month; `amount` None: it has no price."""

    server_id: int
    server: str
    database: str
    table: str
    size_bytes: int
    free_bytes: int
    amount: Decimal | None
    schema: str = ""
    name: str = ""


@dataclass(frozen=True)
class FreeSpace:
    """Dead rows and free pages in the tables that were measured, by the newest sample of each database in the month.

    Amounts are in the currency of the bill, at the mean price that the database had; None: nothing has a price.
    """

    databases: int
    tables: int
    free_bytes: int
    amount: Decimal | None
    costliest: Sequence[FreeTable]


def free_space(
    connection: Connection, bill: tuple[Window, int], *, shown: int, by: str = "", name: str = ""
) -> FreeSpace | None:
    """Return the free space in tables of an issue of a bill, of all or of one group; None: none is known.

    Raises DBAPIError.
    """
    month, issue = bill
    parameters = {"start": month.start, "end": month.end, "issue": issue, "by": by, "name": name, "shown": shown}
    parts = {"newest": _NEWEST_IN_MONTH, "lines": _MEASURED_LINES, "priced": _PRICED, "free": _FREE_TABLES}
    free = rows(connection, with_queries(_FREE, materialized=("lines",), **parts), **parameters)
    if not free:
        return None
    listed = [
        FreeTable(
            *(row.server_id, row.server, row.database, row.table, row.size_bytes, row.free_bytes),
            *(in_cents(row.amount), row.schema_name, row.object_name),
        )
        for row in free
    ]
    whole = free[0]
    return FreeSpace(whole.databases, whole.tables, int(whole.whole_bytes), in_cents(whole.whole_amount), listed)


_FREE = """
SELECT free.*, (SELECT count(*) FROM (SELECT DISTINCT server_id, database FROM free) AS d) AS databases,
       count(*) OVER () AS tables, sum(free_bytes) OVER () AS whole_bytes, sum(amount) OVER () AS whole_amount
FROM free ORDER BY amount DESC NULLS LAST, free_bytes DESC, server, database, "table" LIMIT :shown
"""
_NEWEST_IN_MONTH = """
SELECT server_id, database, max(day) AS day FROM capacity_objects
WHERE day BETWEEN :start AND :end AND kind = 'unexplained' GROUP BY server_id, database
"""
# The lines of databases whose tables were measured come first, because a bill has many more, and labels take longest.
_MEASURED_LINES = """
SELECT n.*, l.engine, l.server, l.labels, l.gib_months, l.price, l.amount
FROM newest n JOIN capacity_bill_lines l ON l.instance_id = n.server_id AND l.database_name = n.database
WHERE l.month = :start AND l.issue = :issue
"""
_PRICED = """
SELECT server_id, database, day, sum(amount) / nullif(sum(gib_months) FILTER (WHERE price IS NOT NULL), 0) AS price
FROM lines
WHERE :by = '' OR coalesce((labels || jsonb_build_object('engine', engine, 'server', server)) ->> :by, '') = :name
GROUP BY server_id, database, day
"""
_FREE_TABLES = """
SELECT o.server_id, o.server, o.database, concat_ws('.', nullif(o.schema_name, ''), o.object_name) AS table,
       o.schema_name, o.object_name, o.size_bytes, o.free_bytes, o.free_bytes * p.price / 1073741824 AS amount
FROM capacity_objects o JOIN priced p ON p.server_id = o.server_id AND p.database = o.database AND p.day = o.day
WHERE o.day BETWEEN :start AND :end AND o.kind = 'table' AND o.free_bytes > 0
"""
