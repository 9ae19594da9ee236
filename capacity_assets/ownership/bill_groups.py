"""Bills by group: stored sums of lines, and the change against the month before, split into its causes.

Sums are stored for every grouping of a bill when its lines are, so that no page adds up lines. Exact figures have
twelve decimals, as lines have. In whole cents, groups add up to the total, and the parts of a change to the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from capacity_assets.base.periods import Window
from capacity_assets.database.cluster import make_temporary_tables
from capacity_assets.database.sql import with_parts
from capacity_assets.database.tables import wait_for_lock
from capacity_assets.ownership.groups import WITHOUT_LABEL


@dataclass(frozen=True)
class BillGroup:
    """What one group has to pay; `name` None: without such a label. `amount` None: nothing of it had a price.

    The change is that of the amount against the month before, in whole cents; None where the two are not compared, or
    nothing of it had a price in either. A group without databases had some the month before.
    """

    name: str | None
    databases: int
    gib_months: Decimal
    unpriced_gib_months: Decimal
    amount: Decimal | None
    exact_amount: Decimal | None = None
    """Not rounded: two issues may differ by rounding alone."""
    servers: int = 0
    """Servers of its databases."""
    lowest_price: Decimal | None = None
    highest_price: Decimal | None = None
    """Prices of its lines, per GiB and month."""
    projected_amount: Decimal | None = None
    """The amount of the whole month; None where the month is over, or its last day with samples is not known."""
    amount_before: Decimal | None = None
    change: Decimal | None = None
    change_growth: Decimal | None = None
    """By the quantity, at the price before; with what is new or gone, and with cents of rounding."""
    change_price: Decimal | None = None
    """By the price, for the quantity now."""
    change_moves: Decimal | None = None
    """By databases that came from or went to other groups, at what they cost before."""
    amount_per_gib: Decimal | None = None
    """What a GiB with a price cost on average; None where nothing had a price."""
    amount_per_server: Decimal | None = None
    """What a server of the group cost on average; None where nothing had a price."""


@dataclass(frozen=True)
class BilledMonth:
    """What a group, or all small ones together, had to pay in a month that is over, by the newest issue of its bill.

    In whole cents, which add up to the total of the bill; `group` None: without such a label, or the others.
    """

    month: date
    group: str | None
    is_others: bool
    amount: Decimal


def store_groups(connection: Connection, month: Window, issue: int) -> None:
    """Store the groups of an issue of a bill, the newest, and compare the month after with it; raises DBAPIError."""
    _store(connection, month.start, issue)
    after = connection.execute(text(_MONTH_AFTER), {"start": month.start}).first()
    if after is not None:
        _store(connection, after.month, after.issue)


def store_missing_groups(connection: Connection) -> None:
    """Store the groups of bills that have none: those of former versions. Raises DBAPIError."""
    if connection.execute(text(_WITHOUT_GROUPS)).first() is None:
        return
    wait_for_lock(connection, "bills")
    for bill in connection.execute(text(_WITHOUT_GROUPS)).all():
        _store(connection, bill.month, bill.issue)


def _store(connection: Connection, start: date, issue: int) -> None:
    before = connection.execute(text(_COMPARED_WITH), {"start": start, "issue": issue}).first()
    of_bill: dict[str, Any] = {
        "start": start,
        "issue": issue,
        "before_start": before.month if before else None,
        "before_issue": before.issue if before else None,
        "without_label": list(WITHOUT_LABEL),
    }
    make_temporary_tables(connection, COMPUTED, of_bill)
    connection.execute(text(_DELETE), of_bill)
    connection.execute(text(_STORE), of_bill)
    connection.execute(text("DROP TABLE " + ", ".join(f"pg_temp.{name}" for name in COMPUTED)))


def groups_of_bill(
    connection: Connection,
    month: Window,
    issue: int,
    by: str,
    days_so_far: int | None = None,
) -> list[BillGroup]:
    """Return the groups of an issue of a bill, the largest first; `days_so_far` of the month are projected to all.

    Groups that had databases the month before only are last. Raises DBAPIError.
    """
    of_bill = {"start": month.start, "issue": issue, "by": by, "days": month.days, "days_so_far": days_so_far}
    return [BillGroup(**row) for row in connection.execute(text(_GROUPS), {**of_bill, "only": None}).mappings()]


def group_of_bill(connection: Connection, month: Window, issue: int, by: str, name: str | None) -> BillGroup | None:
    """Return one group of an issue of a final bill; None where the bill says nothing of it. Raises DBAPIError."""
    of_bill = {"start": month.start, "issue": issue, "by": by, "days": month.days, "days_so_far": None}
    row = connection.execute(text(_GROUPS), {**of_bill, "only": name or ""}).mappings().first()
    return None if row is None else BillGroup(**row)


def whole_bill(connection: Connection, month: date, issue: int) -> tuple[int, int, int | None]:
    """Return the numbers of databases and of servers of an issue of a bill; raises DBAPIError.

    Last is the issue of the month before that it is compared with; None: it is not compared.
    """
    return tuple(connection.execute(text(_WHOLE), {"start": month, "issue": issue}).one())


def billed_months(
    connection: Connection, months: Sequence[Window], by: str, currency: str, most: int
) -> list[BilledMonth]:
    """Return the amounts in one currency of the final ones of these months, of at most so many groups.

    The last of these are the others, where there are more. Months without an amount are left out. Raises DBAPIError.
    """
    return _months(connection, months, {"by": by, "currency": currency, "most": most, "only": None})


def billed_months_of(
    connection: Connection, months: Sequence[Window], by: str, name: str | None, currency: str
) -> list[BilledMonth]:
    """Return the amounts of one group, as the bills have them; otherwise as `billed_months`."""
    return _months(connection, months, {"by": by, "currency": currency, "most": None, "only": name or ""})


def _months(connection: Connection, months: Sequence[Window], asked: Mapping[str, object]) -> list[BilledMonth]:
    query = with_parts(_MONTHS, amounts=_MONTHLY_AMOUNTS)
    of_months = {"first": months[0].start, "last": months[-1].start, **asked}
    return [BilledMonth(*row) for row in connection.execute(query, of_months)]


def amounts_of_databases(
    connection: Connection, bill: tuple[date, int], by: str, name: str | None, databases: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], Decimal | None]:
    """Return what databases (server, name) cost in a group of a bill (month, issue), not rounded; raises DBAPIError.

    None: it has no price. Databases that the group did not have in the month are left out.
    """
    of_bill = {"start": bill[0], "issue": bill[1], "by": by, "name": name or ""}
    servers, names = [server for server, _ in databases], [database for _, database in databases]
    rows = connection.execute(text(_OF_DATABASES), {**of_bill, "servers": servers, "names": names})
    return {(row.instance_id, row.database_name): row.amount for row in rows}


_MONTH_AFTER = """
SELECT month, issue FROM capacity_bills WHERE month = CAST(CAST(:start AS date) + interval '1 month' AS date)
ORDER BY issue DESC LIMIT 1
"""
_WITHOUT_GROUPS = """
SELECT b.month, b.issue FROM capacity_bills b
WHERE NOT EXISTS (SELECT FROM capacity_bill_groups g WHERE g.month = b.month AND g.issue = b.issue)
  AND EXISTS (SELECT FROM capacity_bill_lines l WHERE l.month = b.month AND l.issue = b.issue)
ORDER BY b.month, b.issue
"""
# Whole months only, and amounts of one currency.
_COMPARED_WITH = """
SELECT b.month, b.issue
FROM (SELECT * FROM capacity_bills WHERE month = CAST(CAST(:start AS date) - interval '1 month' AS date)
      ORDER BY issue DESC LIMIT 1) AS b
JOIN capacity_bills n ON n.month = :start AND n.issue = :issue
WHERE b.is_final AND n.is_final AND b.currency = n.currency
  AND n.issue = (SELECT max(issue) FROM capacity_bills WHERE month = :start)
"""
# What a line of the month before paid goes to the lines that its database has now, in proportion to their quantity.
# The rest of what a line pays now is what a change of price adds to its quantity, and growth. Sums of parts of an
# amount are rounded, and not the parts, so that these add up to it.
_COMPARED_LINES = """
    WITH before AS MATERIALIZED (
        SELECT instance_id, database_name, server, engine, labels, gib_months, coalesce(price, 0) AS price,
               coalesce(amount, 0) AS amount, amount IS NOT NULL AS is_priced
        FROM capacity_bill_lines
        WHERE month = CAST(:before_start AS date) AND issue = CAST(:before_issue AS integer)
    ), database_before AS (
        SELECT instance_id, database_name,
               CASE WHEN min(price) = max(price) THEN min(price) ELSE sum(gib_months * price) / sum(gib_months) END
                   AS price
        FROM before GROUP BY instance_id, database_name HAVING sum(gib_months) > 0
    ), now AS MATERIALIZED (
        SELECT instance_id, database_name, server, engine, labels, line, gib_months, coalesce(price, 0) AS price,
               coalesce(amount, 0) AS amount,
               sum(gib_months) OVER (PARTITION BY instance_id, database_name ORDER BY line) AS until,
               sum(gib_months) OVER (PARTITION BY instance_id, database_name) AS whole
        FROM capacity_bill_lines
        WHERE month = :start AND issue = :issue AND CAST(:before_issue AS integer) IS NOT NULL
    ), kept AS MATERIALIZED (
        SELECT n.line, n.server, n.engine, n.labels, b.server AS from_server, b.engine AS from_engine,
               b.labels AS from_labels,
               round(b.amount * n.until / n.whole, 12) - round(b.amount * (n.until - n.gib_months) / n.whole, 12)
                   AS amount
        FROM now n JOIN before b USING (instance_id, database_name) WHERE n.whole > 0
    ), caused AS (
        SELECT n.server, n.engine, n.labels, n.amount - coalesce(k.amount, 0) AS change,
               coalesce(round(n.gib_months * (n.price - b.price), 12), 0) AS price
        FROM now n LEFT JOIN database_before b USING (instance_id, database_name)
        LEFT JOIN (SELECT line, sum(amount) AS amount FROM kept GROUP BY line) AS k USING (line)
    ), parts AS (
        SELECT server, engine, labels, CAST(NULL AS text) AS from_server, CAST(NULL AS text) AS from_engine,
               CAST(NULL AS jsonb) AS from_labels, CAST(NULL AS numeric) AS before, change - price AS growth, price,
               CAST(0 AS numeric) AS moved
        FROM caused
        UNION ALL
        SELECT b.server, b.engine, b.labels, NULL, NULL, NULL, CASE WHEN b.is_priced THEN b.amount END,
               CASE WHEN n.instance_id IS NULL THEN -b.amount ELSE 0 END, 0, 0
        FROM before b LEFT JOIN (SELECT DISTINCT instance_id, database_name FROM now WHERE whole > 0) AS n
            USING (instance_id, database_name)
        UNION ALL
        SELECT server, engine, labels, from_server, from_engine, from_labels, NULL, 0, 0, amount FROM kept
        WHERE (server, engine, labels) IS DISTINCT FROM (from_server, from_engine, from_labels)
    )
    SELECT server, engine, labels, from_server, from_engine, from_labels, sum(before) AS before,
           sum(growth) AS growth, sum(price) AS price, sum(moved) AS moved
    FROM parts GROUP BY server, engine, labels, from_server, from_engine, from_labels"""
_SUMMED_LINES = """
    SELECT instance_id, database_name, server, engine, labels, sum(gib_months) AS gib_months,
           coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0) AS unpriced_gib_months,
           min(price) AS lowest_price, max(price) AS highest_price, sum(amount) AS amount
    FROM capacity_bill_lines WHERE month = :start AND issue = :issue
    GROUP BY instance_id, database_name, server, engine, labels"""
_GROUPINGS = """
    SELECT key FROM unnest(CAST(:without_label AS text[])) AS key
    UNION SELECT key FROM capacity_bills b CROSS JOIN LATERAL json_array_elements_text(b.label_keys) AS key
    WHERE b.month = :start AND b.issue = :issue"""
COMPUTED = {"groupings": _GROUPINGS, "summed_lines": _SUMMED_LINES, "compared_lines": _COMPARED_LINES}
"""What groups are made of, as temporary tables: the groupings of a bill, its lines by database, and the parts of the
change by where they are and were."""
_DELETE = "DELETE FROM capacity_bill_groups WHERE month = :start AND issue = :issue"
_STORE = """
WITH databases AS (
    SELECT k.key, CASE k.key WHEN 'engine' THEN l.engine WHEN 'server' THEN l.server
                  ELSE coalesce(l.labels ->> k.key, '') END AS group_name,
           l.instance_id, l.database_name, sum(l.gib_months) AS gib_months,
           sum(l.unpriced_gib_months) AS unpriced_gib_months, min(l.lowest_price) AS lowest_price,
           max(l.highest_price) AS highest_price, sum(l.amount) AS amount
    FROM summed_lines l CROSS JOIN groupings k GROUP BY 1, 2, 3, 4
), grouped AS (
    SELECT key, group_name, count(*) AS databases, count(DISTINCT instance_id) AS servers,
           sum(gib_months) AS gib_months, sum(unpriced_gib_months) AS unpriced_gib_months,
           min(lowest_price) AS lowest_price, max(highest_price) AS highest_price, sum(amount) AS amount
    FROM databases GROUP BY key, group_name
), named AS (
    SELECT k.key, CASE k.key WHEN 'engine' THEN c.engine WHEN 'server' THEN c.server
                  ELSE coalesce(c.labels ->> k.key, '') END AS group_name,
           CASE k.key WHEN 'engine' THEN c.from_engine WHEN 'server' THEN c.from_server
           ELSE coalesce(c.from_labels ->> k.key, '') END AS from_name, c.before, c.growth, c.price, c.moved
    FROM compared_lines c CROSS JOIN groupings k
), compared AS (
    SELECT key, group_name, sum(before) AS before, sum(growth) AS growth, sum(price) AS price, sum(moved) AS moved
    FROM (
        SELECT key, group_name, before, growth, price, CASE WHEN group_name = from_name THEN 0 ELSE moved END AS moved
        FROM named
        UNION ALL
        SELECT key, from_name, NULL, 0, 0, -moved FROM named WHERE group_name <> from_name AND moved <> 0
    ) AS parts GROUP BY key, group_name
)
INSERT INTO capacity_bill_groups
    (month, issue, grouped_by, group_name, databases, servers, gib_months, unpriced_gib_months, lowest_price,
     highest_price, amount, before_issue, amount_before, change_growth, change_price, change_moves)
SELECT :start, :issue, key, group_name, coalesce(g.databases, 0), coalesce(g.servers, 0), coalesce(g.gib_months, 0),
       coalesce(g.unpriced_gib_months, 0), g.lowest_price, g.highest_price,
       CASE WHEN g.key IS NULL AND c.before IS NOT NULL THEN 0 ELSE g.amount END, CAST(:before_issue AS integer),
       c.before, c.growth, c.price, c.moved
FROM grouped g FULL JOIN compared c USING (key, group_name)
"""
# In whole cents: each amount rounded down, then one cent more for those that lost most, until they add up to the
# rounded total. Growth is the rest of the change of cents.
_GROUPS = """
WITH stored AS (
    SELECT group_name, databases, servers, gib_months, unpriced_gib_months, lowest_price,
           highest_price, amount, amount_before, change_price, change_moves,
           change_price IS NOT NULL AND (coalesce(amount, amount_before) IS NOT NULL OR change_growth <> 0
                                         OR change_price <> 0 OR change_moves <> 0) AS is_compared
    FROM capacity_bill_groups WHERE month = :start AND issue = :issue AND grouped_by = :by
), exact AS (
    SELECT s.group_name, v.kind, v.value * 100 AS value
    FROM stored s CROSS JOIN LATERAL (
        VALUES ('amount', s.amount), ('projected', s.amount * :days / CAST(:days_so_far AS integer)),
               ('before', s.amount_before), ('price', s.change_price), ('moves', s.change_moves)
    ) AS v (kind, value)
    WHERE v.value IS NOT NULL
), placed AS (
    SELECT group_name, kind, floor(value) AS cents,
           row_number() OVER (PARTITION BY kind ORDER BY value - floor(value) DESC, value DESC, nullif(group_name, ''))
               AS place,
           round(sum(value) OVER (PARTITION BY kind)) - sum(floor(value)) OVER (PARTITION BY kind) AS left_over
    FROM exact
), rounded AS (
    SELECT group_name, kind, round((cents + CASE WHEN place <= left_over THEN 1 ELSE 0 END) / 100, 2) AS amount
    FROM placed
), found AS (
    SELECT group_name, max(amount) FILTER (WHERE kind = 'amount') AS amount,
           max(amount) FILTER (WHERE kind = 'projected') AS projected,
           max(amount) FILTER (WHERE kind = 'before') AS before, max(amount) FILTER (WHERE kind = 'price') AS price,
           max(amount) FILTER (WHERE kind = 'moves') AS moves
    FROM rounded GROUP BY group_name
)
SELECT nullif(s.group_name, '') AS name, s.databases, s.gib_months, s.unpriced_gib_months, f.amount AS amount,
       s.amount AS exact_amount, s.servers, s.lowest_price, s.highest_price, f.projected AS projected_amount,
       f.before AS amount_before,
       CASE WHEN s.is_compared THEN coalesce(f.amount, 0) - coalesce(f.before, 0) END AS change,
       CASE WHEN s.is_compared THEN coalesce(f.amount, 0) - coalesce(f.before, 0) - f.price - f.moves END
           AS change_growth,
       CASE WHEN s.is_compared THEN f.price END AS change_price,
       CASE WHEN s.is_compared THEN f.moves END AS change_moves,
       round(s.amount / nullif(s.gib_months - s.unpriced_gib_months, 0), 6) AS amount_per_gib,
       round(s.amount / nullif(s.servers, 0), 2) AS amount_per_server
FROM stored s LEFT JOIN found f USING (group_name)
WHERE CAST(:only AS text) IS NULL OR s.group_name = :only
ORDER BY s.databases = 0, coalesce(s.amount, 0) DESC, nullif(s.group_name, '') NULLS LAST
"""
_WHOLE = """
SELECT CAST(coalesce(sum(databases), 0) AS integer), CAST(coalesce(sum(servers), 0) AS integer), max(before_issue)
FROM capacity_bill_groups WHERE month = :start AND issue = :issue AND grouped_by = 'server'
"""
_MONTHLY_AMOUNTS = """
SELECT g.month, g.group_name, g.amount
FROM (SELECT DISTINCT ON (month) month, issue, currency, is_final FROM capacity_bills
      WHERE month BETWEEN :first AND :last ORDER BY month, issue DESC) AS b
JOIN capacity_bill_groups g ON g.month = b.month AND g.issue = b.issue AND g.grouped_by = :by
WHERE b.is_final AND b.currency = :currency AND g.amount IS NOT NULL AND g.databases > 0
"""
# What is shown of each month is rounded as groups of a bill are, so that it adds up to the total of the bill.
_MONTHS = """
SELECT month, nullif(group_name, ''), is_others,
       round((floor(cents) + CASE WHEN turn <= left_over THEN 1 ELSE 0 END) / 100, 2) AS amount
FROM (
    SELECT *, row_number() OVER (PARTITION BY month ORDER BY cents - floor(cents) DESC, cents DESC, is_others,
                                                             nullif(group_name, '')) AS turn,
           round(sum(cents) OVER (PARTITION BY month)) - sum(floor(cents)) OVER (PARTITION BY month) AS left_over
    FROM (
        SELECT a.month, CASE WHEN k.is_shown THEN a.group_name END AS group_name, NOT k.is_shown AS is_others,
               min(k.place) AS place, sum(a.amount) * 100 AS cents
        FROM amounts a JOIN (
            SELECT group_name, place, place < CAST(:most AS integer)
                                      OR number <= coalesce(CAST(:most AS integer), number) AS is_shown
            FROM (SELECT group_name, row_number() OVER (ORDER BY sum(amount) DESC, nullif(group_name, '')) AS place,
                         count(*) OVER () AS number
                  FROM amounts GROUP BY group_name) AS ranked
        ) AS k USING (group_name)
        GROUP BY 1, 2, 3
    ) AS shown
) AS placed WHERE CAST(:only AS text) IS NULL OR group_name = :only ORDER BY month, place
"""
_OF_DATABASES = """
SELECT l.instance_id, l.database_name, sum(l.amount) AS amount
FROM capacity_bill_lines l
WHERE l.month = :start AND l.issue = :issue AND l.instance_id = ANY (CAST(:servers AS integer[]))
  AND (l.instance_id, l.database_name) IN (SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:names AS text[])))
  AND CASE CAST(:by AS text) WHEN 'engine' THEN l.engine WHEN 'server' THEN l.server
      ELSE coalesce(l.labels ->> CAST(:by AS text), '') END = :name
GROUP BY l.instance_id, l.database_name
"""
