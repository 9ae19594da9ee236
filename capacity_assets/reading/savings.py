"""Databases whose size did not change for three months, and what they cost in the last of these."""

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
