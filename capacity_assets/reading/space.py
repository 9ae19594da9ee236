"""What uses space: tables and indexes inside databases, what lies beside databases, and what could be saved.

Unchanged are databases that had one size for three months; they, and free space in tables, have their cost.

For the change inside a database, two samples of `object_size_stats` are compared: the newest before the days, or else
the first in them, and the newest in them. The changes of objects, of all others and of what no object explains
add up to the change of the database.

An object that is listed on one of the two days only was at most as large as the smallest listed one on the other day,
because the largest are always listed. It is compared with that bound: its change is the least that it can be, and the
rest of it is in the others. Where every object is listed, the bound is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import Connection, Row

from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.units import BYTES_PER_MB, human_day, human_mb
from capacity_assets.collection.storing import LARGEST_LISTED
from capacity_assets.database.measures import PART_KINDS, SLOT
from capacity_assets.database.sql import with_queries
from capacity_assets.ownership.bills import CENT
from capacity_assets.reading.access import plan_with_loops, rows
from capacity_assets.reading.subjects import ServerVolume

LONGEST_BEFORE_DAYS = 31
OTHERS, UNEXPLAINED = "others", "unexplained"


@dataclass(frozen=True)
class ObjectChange:
    """A table or index on two days, bytes; `label` has its schema and, for an index, its table.

    `before_is_bound` and `after_is_bound`: it is not listed on that day, and was at most as large. The change is then
    the smallest possible one.
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
        """Whether its change is the smallest possible one."""
        return self.before_is_bound or self.after_is_bound


@dataclass(frozen=True)
class ObjectGrowth:
    """A table or index that grew, with its database and the compared days."""

    server_id: int
    server: str
    database: str
    first_day: date
    last_day: date
    grown: ObjectChange


@dataclass(frozen=True)
class DatabaseGrowth:
    """The changes inside a database between its samples of two days, bytes.

    `objects` are those that changed, largest change first. Their changes, that of all others and that of what no object
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
    """Return the changes inside a database from `first` to `last`; None: not measured on two days. DBAPIError."""
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
    statement = with_queries(
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


COMPARED_DAYS = 30
MOST_SLOT_PERCENT = 10
"""Replication slots that retain a larger part of their volume are named."""
SMALLEST_SLOT_MB = 1024
"""Without a known volume, a slot is compared with the databases of its server and named only if it retains more than
this: on a small server, a healthy slot may retain more than a tenth."""
SLOT_DAYS = 7
"""Slots are named by their last measurement within so many days."""
DATABASES = "databases"
UNEXPLAINED_TITLE = "Unexplained"
HELD = [kind.name for kind in PART_KINDS.values() if kind.held_by]


@dataclass(frozen=True)
class SpaceUse:
    """A use of space, MiB, and its size before; None: unknown, for the `reason` if there is one."""

    title: str
    size_mb: int | None
    before_mb: int | None
    reason: str | None = None

    @property
    def change_mb(self) -> int | None:
        """Its growth; None: unknown."""
        return None if self.size_mb is None or self.before_mb is None else self.size_mb - self.before_mb


@dataclass(frozen=True)
class SlotUse:
    """A replication slot with the WAL that it retains, MiB, and the state of its consumer."""

    slot: str
    retained_mb: int
    detail: str


@dataclass(frozen=True)
class SpaceUsage:
    """The uses of a server or volume on a day and on `before`; their known sizes add up to `used_mb`.

    The rest is one of `uses`, as unexplained. `used_mb` None: no volume was measured, so that there is no such rest.
    """

    day: date
    before: date
    uses: Sequence[SpaceUse]
    used_mb: int | None
    slots: Sequence[SlotUse]


@dataclass(frozen=True)
class LargeSlot:
    """A replication slot that retains more than a tenth of its volume, or of the databases if that is unknown."""

    server_id: int
    server: str
    slot: str
    day: date
    retained_mb: int
    of_mb: int
    volume: str | None
    detail: str

    @property
    def text(self) -> str:
        """A line of text about it."""
        place = f"the disk {self.volume}" if self.volume else "the size of its databases"
        return (
            f"Replication slot {self.slot} of {self.server} retains {human_mb(self.retained_mb)} of WAL, "
            f"{100 * self.retained_mb // max(self.of_mb, 1)} % of {place} ({human_day(self.day)}): {self.detail}"
        )


def space_usage(
    connection: Connection, server_id: int, volumes: Sequence[ServerVolume], volume: str | None, today: date
) -> SpaceUsage | None:
    """Return what uses the space of a server (`volume` None) or of one of its `volumes`; None: nothing for a month.

    On a server with one volume, everything without a known volume counts for it. On one with several, a volume has the
    databases and parts that are known to lie on it alone; the rest is unexplained.
    """
    newest = "SELECT max(day) AS day FROM capacity_server_parts WHERE server_id = :server AND day <= :today"
    day = rows(connection, newest, server=server_id, today=today)[0].day
    if day is None or day <= today - timedelta(days=31):
        return None
    before = day - timedelta(days=COMPARED_DAYS)
    asked = {"server": server_id, "days": [day, before], "volume": volume, "is_only": len(volumes) == 1}
    sizes: dict[tuple[date, str], int] = {}
    for statement in (_DATABASES_OF_SERVER if volume is None else _DATABASES_OF_VOLUME, _PARTS):
        for row in rows(connection, statement, **asked, held=HELD):
            sizes[row.day, row.kind] = int(row.size_mb)
    used = {row.day: int(row.used_mb) for row in rows(connection, _USED, **asked)}
    details = rows(connection, _DETAILS, **asked, day=day, slot=SLOT)
    reasons = {row.kind: row.detail for row in details if row.size_bytes is None}
    kinds = [kind for kind in (DATABASES, *PART_KINDS) if {(day, kind), (before, kind)} & {*sizes} or kind in reasons]
    uses = [
        SpaceUse(
            _title(kind),
            sizes.get((day, kind), None if kind in reasons else 0),
            sizes.get((before, kind)),
            reasons.get(kind),
        )
        for kind in kinds
    ]
    named = {one: sum(size for (when, _), size in sizes.items() if when == one) for one in (day, before)}
    if day in used:
        # On a day without measured parts, all of them would be unexplained.
        compares = before in used and any(when == before and kind != DATABASES for when, kind in sizes)
        used_before = used[before] - named[before] if compares else None
        uses.append(SpaceUse(UNEXPLAINED_TITLE, used[day] - named[day], used_before))
    slots = [
        SlotUse(row.part, row.size_bytes // BYTES_PER_MB, row.detail or "")
        for row in details
        if row.kind == SLOT and row.size_bytes is not None
    ]
    return SpaceUsage(day, before, uses, used.get(day), slots)


def _title(kind: str) -> str:
    return "Databases" if kind == DATABASES else PART_KINDS[kind].title


def large_slots(
    connection: Connection, first: date, last: date, label: tuple[str, str] | None = None
) -> list[LargeSlot]:
    """Return the slots that retain too much on the newest day of each server in a range of days, largest first."""
    key, value = label or (None, None)
    # Not joined: where tables are distributed, readers have no rights on the tables behind the view of servers.
    wanted = [row.server_id for row in rows(connection, _SERVERS, key=key, value=value, last=last)]
    newest = rows(connection, _NEWEST, first=first, last=last, servers=wanted)
    if not newest:
        return []
    asked = {"servers": [row.server_id for row in newest], "first": first, "last": last}
    days = {row.server_id: row.day for row in newest}
    slots = [row for row in rows(connection, _SLOTS, **asked, slot=SLOT) if row.day == days[row.server_id]]
    volumes: dict[int, dict[str, int]] = {}
    for row in rows(connection, _VOLUMES, **asked) if slots else ():
        if row.day == days[row.server_id]:
            volumes.setdefault(row.server_id, {})[row.volume] = row.total_mb
    sizes = {(row.server_id, row.day): row.size_mb for row in (rows(connection, _SIZES, **asked) if slots else ())}
    found = []
    for row in slots:
        there = volumes.get(row.server_id, {})
        volume = (
            row.volume if row.volume in there else next(iter(there)) if len(there) == 1 and not row.volume else None
        )
        of_mb = there[volume] if volume else sizes.get((row.server_id, row.day), 0)
        retained_mb = row.size_bytes // BYTES_PER_MB
        if of_mb and 100 * retained_mb > MOST_SLOT_PERCENT * of_mb and (volume or retained_mb >= SMALLEST_SLOT_MB):
            about = (row.server_id, row.server, row.part, row.day, retained_mb, int(of_mb), volume, row.detail or "")
            found.append(LargeSlot(*about))
    return sorted(found, key=lambda one: -one.retained_mb)


def slots_named_on(connection: Connection, today: date) -> list[LargeSlot]:
    """Return the slots that retain too much by the newest measurements of the week that ends today."""
    return large_slots(connection, today - timedelta(days=SLOT_DAYS - 1), today)


_DATABASES_OF_SERVER = """
SELECT day, 'databases' AS kind, size_mb FROM capacity_server_samples
WHERE server_id = :server AND day = ANY (CAST(:days AS date[]))
"""
_DATABASES_OF_VOLUME = """
SELECT s.day, 'databases' AS kind, sum(s.size_mb) AS size_mb
FROM capacity_samples s
LEFT JOIN capacity_ceilings c ON c.day = s.day AND c.server_id = s.server_id AND c.database = s.database
WHERE s.server_id = :server AND s.day = ANY (CAST(:days AS date[]))
  AND CASE WHEN c.volumes IS NULL THEN CAST(:is_only AS boolean)
           ELSE c.volumes = CAST(ARRAY[:volume] AS varchar[]) END
GROUP BY s.day
"""
_PARTS = """
SELECT day, kind, div(sum(size_bytes), 1048576) AS size_mb FROM capacity_server_parts
WHERE server_id = :server AND day = ANY (CAST(:days AS date[])) AND kind <> ALL (CAST(:held AS text[]))
  AND size_bytes IS NOT NULL
  AND (CAST(:volume AS text) IS NULL OR volume = :volume OR (volume IS NULL AND CAST(:is_only AS boolean)))
GROUP BY day, kind
"""
_USED = """
SELECT day, sum(used_mb) AS used_mb FROM capacity_volumes
WHERE server_id = :server AND day = ANY (CAST(:days AS date[]))
  AND (CAST(:volume AS text) IS NULL OR volume = :volume)
GROUP BY day
"""
_DETAILS = """
SELECT kind, part, size_bytes, detail FROM capacity_server_parts
WHERE server_id = :server AND day = :day AND (size_bytes IS NULL OR kind = :slot)
  AND (CAST(:volume AS text) IS NULL OR volume = :volume OR volume IS NULL)
ORDER BY size_bytes DESC NULLS LAST, kind, part
"""
_SERVERS = """
SELECT server_id FROM capacity_servers
WHERE is_active AND (CAST(:key AS text) IS NULL OR server_id IN (
      SELECT instance_id FROM capacity_label_spans
      WHERE key = :key AND value = :value AND database_pattern = '' AND valid_from <= :last AND :last < valid_until))
"""
_NEWEST = """
SELECT server_id, max(day) AS day FROM capacity_server_parts
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
GROUP BY server_id
"""
_SLOTS = """
SELECT server_id, server, part, day, size_bytes, detail, volume FROM capacity_server_parts
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[])) AND kind = :slot
  AND size_bytes IS NOT NULL
"""
_VOLUMES = """
SELECT server_id, day, volume, total_mb FROM capacity_volumes
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
"""
_SIZES = """
SELECT server_id, day, size_mb FROM capacity_server_samples
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
"""


MONTHS = 3


@dataclass(frozen=True)
class UnchangedDatabase:
    """A database with its size in MiB and what it cost in the month; `amount` None: it has no price."""

    server_id: int
    server: str
    database: str
    size_mb: int
    amount: Decimal | None


@dataclass(frozen=True)
class UnchangedDatabases:
    """The databases of a bill that had one size on every measured day of its month and the two before.

    They were measured in each of these. Amounts are in the currency of the bill; `amount` None: nothing has a price.
    """

    databases: int
    size_mb: int
    amount: Decimal | None
    costliest: Sequence[UnchangedDatabase]


def unchanged_databases(connection: Connection, month: Window, issue: int, *, shown: int) -> UnchangedDatabases:
    """Return the unchanged databases of an issue of a bill, the costliest by name; raises DBAPIError."""
    starts = [window.start for window in PERIODS["monthly"].back(month, MONTHS)]
    # Sets of the whole fleet are joined.
    plan_with_loops(connection, allowed=False)
    found = rows(connection, _UNCHANGED, starts=starts, months=MONTHS, month=month.start, issue=issue, shown=shown)
    plan_with_loops(connection, allowed=True)
    if not found:
        return UnchangedDatabases(0, 0, None, ())
    listed = [
        UnchangedDatabase(row.server_id, row.server, row.database, row.size_mb, _cents(row.amount)) for row in found
    ]
    return UnchangedDatabases(found[0].databases, int(found[0].whole_mb), _cents(found[0].whole_amount), listed)


def _cents(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else amount.quantize(CENT, ROUND_HALF_UP)


_UNCHANGED = """
SELECT l.server_id, l.server, l.database, CAST(s.size_mb AS bigint) AS size_mb, l.amount,
       count(*) OVER () AS databases, sum(s.size_mb) OVER () AS whole_mb, sum(l.amount) OVER () AS whole_amount
FROM (
    SELECT server_id, database, max(largest_size_mb) AS size_mb FROM capacity_growth
    WHERE period = 'monthly' AND window_start = ANY (CAST(:starts AS date[])) AND smallest_size_mb = largest_size_mb
      AND largest_size_mb > 0
    GROUP BY server_id, database HAVING count(*) = :months AND min(largest_size_mb) = max(largest_size_mb)
) AS s JOIN (
    SELECT instance_id AS server_id, max(server) AS server, database_name AS database, sum(amount) AS amount
    FROM capacity_bill_lines WHERE month = :month AND issue = :issue GROUP BY instance_id, database_name
) AS l USING (server_id, database)
ORDER BY l.amount DESC NULLS LAST, s.size_mb DESC, l.server_id, l.database LIMIT :shown
"""


@dataclass(frozen=True)
class FreeTable:
    """A table with dead rows or free pages, and what these cost in the month; `amount` None: it has no price."""

    server_id: int
    server: str
    database: str
    table: str
    size_bytes: int
    free_bytes: int
    amount: Decimal | None


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
    asked = {"start": month.start, "end": month.end, "issue": issue, "by": by, "name": name, "shown": shown}
    found = rows(connection, _FREE, **asked)
    if not found:
        return None
    listed = [
        FreeTable(
            *(row.server_id, row.server, row.database, row.table), row.size_bytes, row.free_bytes, _cents(row.amount)
        )
        for row in found
    ]
    whole = found[0]
    return FreeSpace(whole.databases, whole.tables, int(whole.whole_bytes), _cents(whole.whole_amount), listed)


_FREE = """
WITH lines AS (
    SELECT instance_id AS server_id, database_name AS database,
           sum(amount) / nullif(sum(gib_months) FILTER (WHERE price IS NOT NULL), 0) AS price
    FROM capacity_bill_lines
    WHERE month = :start AND issue = :issue
      AND (:by = '' OR coalesce((labels || jsonb_build_object('engine', engine, 'server', server)) ->> :by, '') = :name)
    GROUP BY instance_id, database_name
), newest AS (
    SELECT server_id, database, max(day) AS day FROM capacity_objects
    WHERE day BETWEEN :start AND :end GROUP BY server_id, database
), free AS (
    SELECT o.server_id, o.server, o.database, concat_ws('.', nullif(o.schema_name, ''), o.object_name) AS table,
           o.size_bytes, o.free_bytes, o.free_bytes * l.price / 1073741824 AS amount
    FROM capacity_objects o JOIN newest n ON n.server_id = o.server_id AND n.database = o.database AND n.day = o.day
    JOIN lines l ON l.server_id = o.server_id AND l.database = o.database
    WHERE o.day BETWEEN :start AND :end AND o.kind = 'table' AND o.free_bytes > 0
)
SELECT free.*, (SELECT count(*) FROM (SELECT DISTINCT server_id, database FROM free) AS d) AS databases,
       count(*) OVER () AS tables, sum(free_bytes) OVER () AS whole_bytes, sum(amount) OVER () AS whole_amount
FROM free ORDER BY amount DESC NULLS LAST, free_bytes DESC, server, database, "table" LIMIT :shown
"""
