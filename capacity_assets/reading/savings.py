"""What could be saved: databases that did not change for three months and free space in tables, with their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from sqlalchemy import Connection

from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.ownership.bills import CENT
from capacity_assets.reading.access import plan_with_loops, rows

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
