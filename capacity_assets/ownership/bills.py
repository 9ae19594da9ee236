"""Bills: what the databases of a month cost, by whom they belong to; issued once, and restated visibly.

Quantities are exact daily sizes, amounts are decimal, and groups add up to the total to the cent. The rules are in
docs/groups.md. `READ` has all reads of samples and aggregates; everything else is computed from these and from
declarations. The words of a bill are the same on the screen, in files and on pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text, update

from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import PERIODS, Clock, Window
from capacity_assets.base.units import counted, first_of, human_day
from capacity_assets.database.cluster import make_temporary_tables
from capacity_assets.database.guards import JudgedDay, judged_day, refuse_an_unfit_database
from capacity_assets.database.labels import labels_of
from capacity_assets.database.sql import with_parts
from capacity_assets.database.tables import capacity_bills, wait_for_lock
from capacity_assets.ownership.bill_groups import (
    BillGroup,
    groups_of_bill,
    store_groups,
    whole_bill,
)
from capacity_assets.ownership.groups import refuse_unknown_grouping

# Labels and prices change between segments only, so each is looked up once per database and segment.
SEGMENTS = """
SELECT CAST(:start AS date) AS day
UNION SELECT valid_from FROM capacity_labels WHERE valid_from BETWEEN :start AND :end
UNION SELECT valid_from FROM capacity_prices WHERE valid_from BETWEEN :start AND :end
ORDER BY day
"""
# A day of a server counts as measured when its databases were, or there was none. It is billed from its first sample to
# its last one, to the end of the month where it was measured later; days of these without a sample count as the others
# on average. Aggregates stand for samples of other months that retention has dropped.
_MEASURED = """
    SELECT m.*, z.database_name, z.segment, z.days, z.bytes
    FROM (
        SELECT d.instance_id, count(*) AS measured, min(d.day) AS first_day, max(d.day) AS last_day,
               EXISTS (SELECT FROM database_size_stats s
                       WHERE s.instance_id = d.instance_id AND s.collected_date > :end)
               OR EXISTS (SELECT FROM instance_size_stats s
                          WHERE s.instance_id = d.instance_id AND s.collected_date > :end AND NOT s.is_deleted)
                   AS is_later,
               EXISTS (SELECT FROM database_size_stats s
                       WHERE s.instance_id = d.instance_id AND s.collected_date < :start)
               OR EXISTS (SELECT FROM instance_size_stats s
                          WHERE s.instance_id = d.instance_id AND s.collected_date < :start AND NOT s.is_deleted)
               OR EXISTS (SELECT FROM instance_size_aggregations s
                          WHERE s.instance_id = d.instance_id AND s.period_end < :start)
               OR EXISTS (SELECT FROM database_size_aggregations s
                          WHERE s.instance_id = d.instance_id AND s.period_end < :start) AS was_before
        FROM (
            SELECT DISTINCT every.instance_id, every.day FROM (
                SELECT r.instance_id, r.collected_date AS day FROM database_size_stats r
                WHERE r.collected_date BETWEEN :start AND :end
                UNION ALL
                SELECT t.instance_id, t.collected_date FROM instance_size_stats t
                WHERE t.collected_date BETWEEN :start AND :end AND NOT t.is_deleted AND t.database_count = 0
            ) AS every
        ) AS d GROUP BY d.instance_id
    ) AS m LEFT JOIN (
        SELECT s.instance_id, s.database_name, s.segment, count(*) AS days, sum(s.bytes) AS bytes FROM (
            SELECT r.instance_id, r.database_name,
                   coalesce(r.size_bytes, r.size_mb * CAST(1048576 AS numeric)) AS bytes,
                   (CAST(:segments AS date[]))[width_bucket(r.collected_date, CAST(:segments AS date[]))] AS segment
            FROM database_size_stats r WHERE r.collected_date BETWEEN :start AND :end
        ) AS s GROUP BY s.instance_id, s.database_name, s.segment
    ) AS z ON z.instance_id = m.instance_id"""
_TOTALS = """
    SELECT t.instance_id, count(DISTINCT t.collected_date) AS days, bool_or(t.total_size_mb > 0) AS is_sized
    FROM instance_size_stats t WHERE t.collected_date BETWEEN :start AND :end AND NOT t.is_deleted
    GROUP BY t.instance_id"""
_MONTHLY_SERVERS = """
    SELECT instance_id, data_count FROM instance_size_aggregations
    WHERE period_type = 'monthly' AND period_start = :start"""
_MONTHLY_DATABASES = """
    SELECT instance_id, database_name, data_count FROM database_size_aggregations
    WHERE period_type = 'monthly' AND period_start = :start"""
# The first window that ended in the month, and the first remaining day: retention drops the oldest samples first.
_OLDEST = """
    SELECT 'database' AS level, a.first_end, r.oldest
    FROM (SELECT min(period_end) AS first_end FROM database_size_aggregations
          WHERE period_type IN ('daily', 'monthly') AND period_start >= :start AND period_end <= :end) AS a
    CROSS JOIN (SELECT coalesce(min(collected_date), 'infinity') AS oldest FROM database_size_stats) AS r
    UNION ALL
    SELECT 'instance' AS level, a.first_end, r.oldest
    FROM (SELECT min(period_end) AS first_end FROM instance_size_aggregations
          WHERE period_type IN ('daily', 'monthly') AND period_start >= :start AND period_end <= :end) AS a
    CROSS JOIN (SELECT coalesce(min(collected_date), 'infinity') AS oldest FROM instance_size_stats) AS r"""
READ = {
    "measured": _MEASURED,
    "totals": _TOTALS,
    "monthly_servers": _MONTHLY_SERVERS,
    "monthly_databases": _MONTHLY_DATABASES,
    "oldest_left": _OLDEST,
}
"""The reads of samples and aggregates, each into a temporary table for the statements below; where tables are
distributed, the nodes add them up. Days and sizes are read together, so that a sample that arrives meanwhile is in both
or in neither; samples that retention drops afterwards are billed. Segments are given by their first days. A label that
is declared meanwhile is in the next issue."""

_BILLED_SERVERS = """
    SELECT m.instance_id, m.measured, coalesce(i.name, last.server, 'server ' || m.instance_id) AS server,
           coalesce(i.db_type, last.engine, 'unknown') AS engine,
           CASE WHEN m.is_later THEN CAST(:end AS date) ELSE m.last_day END
           - CASE WHEN m.was_before THEN CAST(:start AS date) ELSE m.first_day END + 1 AS billed
    FROM (SELECT DISTINCT instance_id, measured, first_day, last_day, is_later, was_before FROM measured) AS m
    LEFT JOIN instances i ON i.id = m.instance_id
    -- A server that is registered no more is what it was when it was billed.
    LEFT JOIN LATERAL (SELECT l.server, l.engine FROM capacity_bill_lines l
                       WHERE l.month = :start AND l.instance_id = m.instance_id ORDER BY l.issue DESC LIMIT 1
    ) AS last ON i.id IS NULL
    WHERE i.counted_by IS NULL"""
# Exact amounts are whole numbers of twelve decimals of a currency, times `whole`: the least common multiple of 1 to 31
# is a common denominator for any number of measured days. Each is rounded down to twelve decimals; then the lines with
# the largest remainders get one unit more until they add up to the exact total, rounded down, so the cents are those of
# the exact sum.
_LABELLED = f"""
    SELECT z.instance_id, z.database_name, z.segment, z.days, z.bytes,
           {labels_of("z.instance_id", "z.database_name", "z.segment")} AS labels
    FROM measured z WHERE z.database_name IS NOT NULL"""  # noqa: S608 -- the labels as everywhere
PRICE_SPANS = """
        SELECT p.*, lead(valid_from, 1, CAST('infinity' AS date))
                    OVER (PARTITION BY engine, key, value ORDER BY valid_from) AS valid_until
        FROM capacity_prices p"""
"""Prices with the days on which each holds; to be named `spans`."""


def price_on(day: str, engine: str, labels: str) -> str:
    """Return the join that finds the price of a day as `applied.price`, by an engine and labels; :keys in order."""
    return f"""LEFT JOIN LATERAL (
            SELECT p.price FROM spans p
            WHERE p.price IS NOT NULL AND p.valid_from <= {day} AND {day} < p.valid_until
              AND p.engine IN ('', {engine}) AND (p.key = '' OR {labels} ->> CAST(p.key AS text) = p.value)
            ORDER BY p.key = '', array_position(CAST(:keys AS text[]), CAST(p.key AS text)), p.key, p.engine = ''
            LIMIT 1
        ) AS applied ON true"""  # noqa: S608 -- names of columns


_LINES = f"""
    WITH spans AS MATERIALIZED ({PRICE_SPANS}), priced AS (
        SELECT l.*, v.server, v.engine, v.billed, v.measured, applied.price
        FROM labelled l JOIN billed_servers v USING (instance_id)
        {price_on("l.segment", "v.engine", "l.labels")}
    ), exact AS (
        SELECT instance_id, server, engine, database_name, labels, sum(days) AS days,
               round(sum(bytes) * billed / (measured * CAST(:days AS numeric) * 1073741824), 12) AS gib_months, price,
               sum(bytes) * billed * price * div(72201776446800, measured) * 1000000000000 AS parts,
               72201776446800 * CAST(:days AS numeric) * 1073741824 AS whole
        FROM priced
        GROUP BY instance_id, server, engine, database_name, labels, price, billed, measured
    ), numbered AS (
        SELECT row_number() OVER (ORDER BY instance_id, database_name, labels, price) AS line, exact.* FROM exact
    ), placed AS (
        SELECT *, row_number() OVER (ORDER BY mod(parts, whole) DESC NULLS LAST, line) AS place,
               div(sum(parts) OVER (), whole) - sum(div(parts, whole)) OVER () AS left_over
        FROM numbered
    )
    SELECT line, instance_id, server, engine, database_name, labels, days, gib_months, price,
           (div(parts, whole) + CASE WHEN place <= left_over THEN 1 ELSE 0 END) * 0.000000000001 AS amount
    FROM placed"""  # noqa: S608 -- statements of our own
COMPUTED = {"billed_servers": _BILLED_SERVERS, "labelled": _LABELLED, "computed_lines": _LINES}
"""The servers of the bill, databases with their labels, and lines, as temporary tables too; lines are stored."""

DAYS = """
SELECT coalesce(sum(measured), 0) AS measured_days, coalesce(sum(billed), 0) AS billed_days,
       (SELECT max(last_day) FROM measured) AS billed_until,
       (SELECT count(*) FROM totals t LEFT JOIN instances i ON i.id = t.instance_id
        WHERE t.is_sized AND i.counted_by IS NULL AND t.instance_id NOT IN (SELECT instance_id FROM billed_servers))
           AS unbilled_servers
FROM billed_servers
"""
# The amount follows from quantity and price. Renaming a server does not change its cost, but a replaced bill shows the
# new name.
DIFFERS = """
SELECT EXISTS (
    SELECT FROM (
        SELECT instance_id, engine, database_name, labels, days, gib_months, price, server, 1 AS here
        FROM computed_lines
        UNION ALL
        SELECT instance_id, engine, database_name, labels, days, gib_months, price, server, -1
        FROM capacity_bill_lines WHERE month = :start AND issue = :issue
    ) AS lines
    GROUP BY instance_id, engine, database_name, labels, days, gib_months, price,
             CASE WHEN CAST(:was_final AS boolean) THEN '' ELSE server END
    HAVING sum(here) <> 0
) OR EXISTS (
    SELECT FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue
      AND b.currency <> (SELECT min(currency) FROM capacity_prices)
)
"""
TOTAL = """
SELECT sum(amount) AS total,
       CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END AS currency
FROM computed_lines
"""
DELETE = (
    "DELETE FROM capacity_bills WHERE month = :start AND issue = :issue",
    "DELETE FROM capacity_bill_lines WHERE month = :start AND issue = :issue",
)
STORE_LINES = """
INSERT INTO capacity_bill_lines
    (month, issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount)
SELECT :start, :issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount
FROM computed_lines
"""
STORE_BILL = """
INSERT INTO capacity_bills (month, issue, is_final, currency, amount, gib_months, unpriced_gib_months, measured_days,
                            billed_days, billed_until, unbilled_servers, label_keys, reason, clock_doubt)
SELECT :start, :issue, :is_final, CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END,
       coalesce(sum(amount), 0),
       coalesce(sum(gib_months), 0), coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0), :measured_days,
       :billed_days, :billed_until, :unbilled_servers, CAST(:label_keys AS json), :reason, :clock_doubt
FROM computed_lines
"""
DECLARED_STATE = """(
    SELECT concat_ws(' ', l.number, p.number, l.newest, p.newest) AS state
    FROM (SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
          FROM capacity_label_spans WHERE valid_from <= :end) AS l,
         (SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
          FROM capacity_prices WHERE valid_from <= :end) AS p)"""
"""A text that changes whenever a label or price that holds up to :end is added, changed or removed.

It begins with the numbers of labels and of prices."""
SAMPLES_SINCE = """
SELECT count(*) FILTER (WHERE s.created_at > :since) AS added,
       count(*) FILTER (WHERE s.created_at <= :since AND s.updated_at > :since) AS corrected
FROM database_size_stats s WHERE s.collected_date BETWEEN :start AND :end
"""
# Why a bill differs from its last issue: later samples and declarations that can touch the month. Deleted samples are
# counted only of servers that are still billed.
SINCE = """
SELECT deleted.fewer, states.before, states.now,
       ARRAY(SELECT l.key || '=' || coalesce(l.value, 'none') || ' of '
                    || coalesce(nullif(l.database_pattern, '') || ' on ', '') || i.name
                    || coalesce(' by ' || l.declared_by, '')
             FROM capacity_labels l JOIN instances i ON i.id = l.instance_id
             WHERE l.declared_at > :since AND l.valid_from <= :end ORDER BY l.declared_at) AS labels,
       ARRAY(SELECT coalesce(trim_scale(p.price) || ' ' || p.currency, 'none') || ' for '
                    || CASE WHEN p.key <> '' THEN p.key || '=' || p.value
                            ELSE coalesce(nullif(p.engine, ''), 'everything else') END
                    || coalesce(' by ' || p.declared_by, '')
             FROM capacity_prices p
             WHERE p.declared_at > :since AND p.valid_from <= :end
               AND (p.engine = '' OR p.engine IN (SELECT engine FROM computed_lines))
               AND (p.key = '' OR EXISTS (SELECT FROM computed_lines c WHERE c.labels ->> p.key = p.value))
             ORDER BY p.declared_at) AS prices
FROM (SELECT greatest(0, coalesce(sum(l.days), 0) - (SELECT coalesce(sum(days), 0) FROM computed_lines
                         WHERE instance_id = ANY (array_agg(DISTINCT l.instance_id)))) AS fewer
      FROM capacity_bill_lines l WHERE l.month = :start AND l.issue = :issue
        AND l.instance_id IN (SELECT instance_id FROM computed_lines)) AS deleted,
     (SELECT b.declared_state AS before, (SELECT state FROM declared) AS now
      FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue) AS states
"""
# Samples that retention dropped can no longer be billed. The aggregates or the bill know more than there are, and
# either our retention marked the bill or the oldest samples are gone. If older samples remain, a missing sample was
# deleted or declared void, and is no longer billed.
DROPPED = """
SELECT EXISTS (
    SELECT FROM oldest_left o
    WHERE (CAST(:is_marked AS boolean) OR o.oldest > least(o.first_end, CAST(:end AS date)))
      AND CASE o.level WHEN 'instance' THEN EXISTS (
              SELECT FROM monthly_servers a LEFT JOIN totals t USING (instance_id)
              WHERE a.data_count > coalesce(t.days, 0))
          -- Includes replicas: a server that is counted differently now has not lost samples.
          ELSE EXISTS (
              SELECT FROM monthly_databases a
              LEFT JOIN (SELECT instance_id, database_name, sum(days) AS days FROM measured GROUP BY 1, 2) AS m
                  USING (instance_id, database_name) WHERE a.data_count > coalesce(m.days, 0))
              OR (SELECT coalesce(sum(measured), 0) FROM (SELECT DISTINCT instance_id, measured FROM measured) AS m)
                 < :billed_before END
)
"""


MONTHLY = PERIODS["monthly"]
ONE_PLACE = Decimal("0.1")
UNKNOWN_AMOUNT = "\N{EN DASH}"
MEAN_PRICE_PLACES = 4


def moment(at: datetime) -> str:
    """Render a time: 28 Nov 2026, 06:10 UTC."""
    return f"{human_day(at)}, {at:%H:%M %Z}"


def title(issued: IssuedBill) -> str:
    """Say which bill it is."""
    so_far = "" if issued.bill.is_final else " so far"
    return f"Bill of {month_named(issued.bill.month)}{so_far}, by {issued.grouped_by}"


def group_named(name: str | None, grouped_by: str) -> str:
    """Name a group; what has no label is a group of its own."""
    return f"(no {grouped_by})" if name is None else name


def gib(quantity: Decimal) -> str:
    """Render a mean size over the month."""
    return f"{quantity.quantize(ONE_PLACE):,}"


def money(amount: Decimal | None) -> str:
    """Render an amount without its currency; one that is not known as a dash."""
    return UNKNOWN_AMOUNT if amount is None else f"{amount:,.2f}"


def money_change(change: Decimal | None) -> str:
    """Render a change of an amount, with its sign."""
    return f"{change:+,.2f}" if change else money(change)


def price(group: BillGroup) -> str:
    """Render the price per GiB and month of a group; where it has several, their mean."""
    if group.lowest_price is None or group.highest_price is None:
        return "no price"
    if group.lowest_price == group.highest_price:
        return _price(group.lowest_price)
    return "several" if group.amount_per_gib is None else f"several, mean {mean_price(group.amount_per_gib)}"


def mean_price(value: Decimal) -> str:
    """Render a mean of prices, which is rounded."""
    return f"{value:,.{MEAN_PRICE_PLACES}f}"


def _price(value: Decimal) -> str:
    """Render a price with two decimals, or with as many as it has."""
    exact = value.normalize()
    return f"{exact:,.{max(2, -int(exact.as_tuple().exponent))}f}"


def notes(issued: IssuedBill) -> list[str]:
    """Say what the amounts leave out and what they replace, one sentence each."""
    bill = issued.bill
    sentences = []
    if issued.restated:
        sentences.append(issued.restated)
        sentences += [difference for difference in _differences(issued) if difference]
    if bill.is_unpriced:
        sentences.append(
            f"{gib(bill.unpriced_gib_months)} of {gib(bill.gib_months)} GiB have no price and are not billed. "
            "`capacity prices set` declares one, with --always also for past months."
        )
    if bill.unbilled_servers:
        sentences.append(
            f"Not billed: {counted(bill.unbilled_servers, 'server')} of which totals were measured, but no databases."
        )
    if bill.measured_days < bill.billed_days:
        missing = bill.billed_days - bill.measured_days
        sentences.append(
            f"Not measured: {missing:,} of {counted(bill.billed_days, 'server day')}, billed at the average of the "
            "server's measured days."
        )
    if sum(group.databases for group in issued.groups) > issued.databases:
        sentences.append("A database that changed groups within the month counts in each group, and once in the total.")
    if bill.samples_dropped_at:
        sentences.append(
            f"Retention dropped samples of this month (detected on {human_day(bill.samples_dropped_at)}). This bill no "
            "longer changes: later samples, labels and prices do not affect it."
        )
    if bill.clock_doubt:
        sentences.append(f"This bill is not final; the next one replaces it. {bill.clock_doubt}")
    elif not bill.is_final:
        sentences.append("The month is not over: this bill covers its days so far, and is replaced until it is.")
    if bill.days_so_far:
        sentences.append(
            f"Projected: the daily average of the first {counted(bill.days_so_far, 'day')}, for the whole month."
        )
    return sentences


def _differences(issued: IssuedBill) -> list[str]:
    """Name the groups whose amount is another one than in the issue before, which may not know this key of labels."""
    assert issued.before is not None  # noqa: S101 -- called for restated bills only
    if not issued.before.groups:
        return []
    before = {group.name: group for group in issued.before.groups}
    now = {group.name: group for group in issued.groups}
    return [
        f"  {group_named(name, issued.grouped_by)}: {_amount(before.get(name))} before, {_amount(now.get(name))} now"
        + (", by rounding" if _exact(before.get(name)) == _exact(now.get(name)) else "")
        for name in dict.fromkeys([*now, *before])
        if _amount(before.get(name)) != _amount(now.get(name))
    ]


def _amount(group: BillGroup | None) -> str:
    if group is None:
        return "nothing"
    return "no price" if group.amount is None else f"{group.amount:,}"


def _exact(group: BillGroup | None) -> Decimal | None:
    return None if group is None else group.exact_amount


def change_notes(issued: IssuedBill) -> list[str]:
    """Say what the change against the month before is made of; nothing where the two are not compared."""
    if issued.compared_issue is None:
        return []
    before = MONTHLY.previous(MONTHLY.window_of(issued.bill.month))
    total = issued.total
    return [
        f"Change since {month_named(before.start)} (version {issued.compared_issue}): {money_change(total.change)} "
        f"{issued.bill.currency}, {money_change(total.change_growth)} by growth and {money_change(total.change_price)} "
        "by prices.",
        "Growth: the change of the quantity at the price before. Prices: the change of the price for the quantity now. "
        "Moves: databases from and to other groups, at what they cost before. They add up to the change; growth "
        "includes rounding differences.",
    ]


def quantity_note(issued: IssuedBill) -> str:
    """Say what the GiB of a bill are."""
    if issued.bill.is_final:
        return "GiB are means over the month."
    return "GiB are what the days so far add up to, divided by the days of the month."


CENT, MICRO = Decimal("0.01"), Decimal("0.000001")
DECLARED_NAMED = 3


@dataclass(frozen=True)
class Bill:
    """One issue of a month's bill; `amount` is None where nothing had a price."""

    month: date
    issue: int
    issued_at: datetime
    is_final: bool
    currency: str | None
    exact_amount: Decimal
    gib_months: Decimal
    unpriced_gib_months: Decimal
    measured_days: int
    billed_days: int
    unbilled_servers: int
    label_keys: Sequence[str]
    reason: str | None
    samples_dropped_at: datetime | None = None
    """When the bill was frozen because retention had dropped its samples."""
    clock_doubt: str | None = None
    """Why the bill is not final although the month seems to be over."""
    billed_until: date | None = None
    """Last day of the month with samples; None where a former version computed the bill."""

    @property
    def amount(self) -> Decimal | None:
        """Total, rounded to the cent, halves up."""
        return None if self.currency is None else self.exact_amount.quantize(CENT, ROUND_HALF_UP)

    @property
    def is_unpriced(self) -> bool:
        """Whether a part of what was measured is in no amount."""
        return self.unpriced_gib_months > 0

    @property
    def days_so_far(self) -> int | None:
        """Days of a part of a month; None for a whole month, and where its last day with samples is not known."""
        if self.is_final or self.billed_until is None:
            return None
        days = (self.billed_until - self.month).days + 1
        return days if days < MONTHLY.window_of(self.month).days else None


SUMMED = ("projected_amount", "amount_before", "change", "change_growth", "change_price", "change_moves")
"""Figures of all groups together that are the sums of those of each."""


@dataclass(frozen=True)
class IssuedBill:
    """A bill with its groups, and what an issue before it said."""

    bill: Bill
    grouped_by: str
    groups: Sequence[BillGroup]
    databases: int = 0
    """Of all groups; one that changed hands is in two of them."""
    before: "IssuedBill | None" = None  # noqa: UP037 -- a dataclass field of its own type
    servers: int = 0
    """Of all groups; one may be in several of them."""
    former_groups: Sequence[BillGroup] = ()
    """Groups that had databases the month before, and have none now."""
    compared_issue: int | None = None
    """The issue of the month before that it is compared with; None: it is not compared."""

    @property
    def total(self) -> BillGroup:
        """All groups together; each figure is the sum of theirs, except that databases and servers count once."""
        every, bill = [*self.groups, *self.former_groups], self.bill
        prices = [price for group in every for price in (group.lowest_price, group.highest_price) if price is not None]
        exact = None if bill.currency is None else bill.exact_amount
        return BillGroup(
            name=None,
            databases=self.databases,
            gib_months=bill.gib_months,
            unpriced_gib_months=bill.unpriced_gib_months,
            amount=bill.amount,
            exact_amount=exact,
            servers=self.servers,
            lowest_price=min(prices, default=None),
            highest_price=max(prices, default=None),
            **{name: _sum(getattr(group, name) for group in every) for name in SUMMED},
            amount_per_gib=_each(exact, bill.gib_months - bill.unpriced_gib_months, MICRO),
            amount_per_server=_each(exact, Decimal(self.servers), CENT),
        )

    @property
    def difference(self) -> Decimal | None:
        """What it is more than the issue before; None: there is none, or one of the two has no amount."""
        if self.before is None or self.bill.amount is None or self.before.bill.amount is None:
            return None
        return self.bill.amount - self.before.bill.amount

    @property
    def restated(self) -> str:
        """The sentence that a restated bill carries; empty for a first issue."""
        if self.before is None:
            return ""
        was, now = self.before.bill, self.bill
        amounts = f"{amount_text(was)} became {amount_text(now)}"
        return f"Restated: version {was.issue} of {moment(was.issued_at)}, {amounts}. {now.reason}"


def _sum(amounts: Iterable[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal()) if known else None


def _each(amount: Decimal | None, number: Decimal, unit: Decimal) -> Decimal | None:
    return None if amount is None or not number else (amount / number).quantize(unit, ROUND_HALF_UP)


def amount_text(bill: Bill) -> str:
    """Render a total with its currency."""
    return "no amount" if bill.amount is None else f"{bill.amount:,} {bill.currency}"


def issue_bill(engine: Engine, month: Window, clock: Clock, keys: Sequence[str]) -> Bill:
    """Compute the bill of a month and store it if it differs from the previous issue; return the newest issue.

    The bill of a month that is not over, or is over only by a clock that may be wrong, is replaced. The bill of a month
    that is over is kept, and restated by a new issue. Once retention has dropped samples of the month, its bill no
    longer changes.

    Raises:
        NotFoundError: nothing was measured in the month, or its samples are gone and no bill was issued.
        ValidationError: the days in the database are those of another time zone than the clock's.
        DatabaseError: the database failed; no bill was changed.
    """
    refuse_an_unfit_database(engine, clock.zone, kept="No bill was changed.")
    parameters = _parameters(month, keys)
    with database_errors(doing="computing a bill", kept="No bill was changed."), engine.begin() as connection:
        wait_for_lock(connection, "bills")
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        latest = next(iter(_issues(connection, month)), None)
        judged = judged_day(connection, clock)
        changes: dict[str, object]
        if not _compute(connection, parameters, latest):
            if latest is None:
                raise NotFoundError(
                    f"Samples of {month_named(month.start)} were dropped by retention, so its bill cannot be "
                    "recomputed. None was issued in time. CAPACITY_RETENTION_DAYS says how long samples are kept."
                )
            issue = latest.issue
            changes = {"samples_dropped_at": func.coalesce(capacity_bills.c.samples_dropped_at, func.now())}
        else:
            issue = _store(connection, month, parameters, latest, _finality(latest, month, judged, clock))
            changes = {"declared_state": text(DECLARED_STATE).bindparams(end=month.end), "samples_dropped_at": None}
        is_issue = (capacity_bills.c.month == month.start, capacity_bills.c.issue == issue)
        connection.execute(update(capacity_bills).where(*is_issue).values(changes))
        return _issues(connection, month)[0]


def _parameters(month: Window, keys: Sequence[str]) -> dict[str, Any]:
    return {"start": month.start, "end": month.end, "days": month.days, "keys": list(keys)}


def _compute(connection: Connection, parameters: dict[str, Any], latest: Bill | None) -> bool:
    """Compute the lines of a month as temporary tables; return False where retention dropped samples of it."""
    segments = connection.execute(text(SEGMENTS), parameters).scalars().all()
    make_temporary_tables(connection, READ, {**parameters, "segments": list(segments)})
    known = {
        "is_marked": latest is not None and latest.samples_dropped_at is not None,
        "billed_before": latest.measured_days if latest else 0,
    }
    if connection.execute(text(DROPPED), {**parameters, **known}).scalar():
        return False
    make_temporary_tables(connection, COMPUTED, parameters)
    return True


@dataclass(frozen=True)
class BillChange:
    """The total of a bill, and what it becomes; None: nothing has a price."""

    month: date
    before: Decimal | None
    after: Decimal | None
    before_currency: str | None
    after_currency: str | None

    @property
    def text(self) -> str:
        """The change as people read it."""
        totals = ((self.before, self.before_currency), (self.after, self.after_currency))
        before, after = ("no amount" if one is None else f"{one:,} {currency}" for one, currency in totals)
        return f"{month_named(self.month)} ({before} becomes {after})"


def bill_changes(connection: Connection, months: Sequence[date], keys: Sequence[str]) -> list[BillChange]:
    """Compute the bills of months anew, and return those that differ from their newest issue; stores nothing.

    A declaration of the same transaction is included. Raises DBAPIError.
    """
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    changes = []
    for start in months:
        month = MONTHLY.window_of(start)
        latest, parameters = _issues(connection, month)[0], _parameters(month, keys)
        stored = {**parameters, "issue": latest.issue, "was_final": latest.is_final}
        if _compute(connection, parameters, latest) and connection.execute(text(DIFFERS), stored).scalar():
            total, currency = connection.execute(text(TOTAL)).one()
            after = None if total is None else total.quantize(CENT, ROUND_HALF_UP)
            changes.append(BillChange(month.start, latest.amount, after, latest.currency, currency))
        for name in (*COMPUTED, *READ):
            connection.execute(text(f"DROP TABLE IF EXISTS pg_temp.{name}"))
    return changes


def unfinished_months(engine: Engine, first: date) -> Sequence[date]:
    """Return the months from the one of a day on whose bills are not final, newest first; raises DatabaseError."""
    bills = capacity_bills.c
    unfinished = select(bills.month).where(~bills.is_final, bills.month >= first.replace(day=1)).distinct()
    with database_errors(doing="reading bills"), engine.connect() as connection:
        return connection.execute(unfinished.order_by(bills.month.desc())).scalars().all()


def month_named(first_day: date) -> str:
    """Name the month that begins on a day: October 2026."""
    return MONTHLY.name_of(MONTHLY.window_of(first_day))


def _finality(latest: Bill | None, month: Window, judged: JudgedDay, clock: Clock) -> dict[str, object]:
    """Return whether a bill is final (it then stays final), and why not if the month only seems to be over."""
    # Samples after a long pause may have been written by the wrong clock itself.
    is_over = judged.pause is None and month.end < judged.certain_day
    is_final = is_over or (latest is not None and latest.is_final)
    seems_over = month.end < clock.today()
    return {"is_final": is_final, "clock_doubt": judged.why_nothing_is_deleted if seems_over and not is_final else None}


def _issues(connection: Connection, month: Window) -> list[Bill]:
    """The issues of a month's bill, the newest first; columns of the table are those of a bill."""
    columns = [column for column in capacity_bills.c if column is not capacity_bills.c.declared_state]
    query = select(*columns).where(capacity_bills.c.month == month.start).order_by(capacity_bills.c.issue.desc())
    return [Bill(*row) for row in connection.execute(query)]


def _store(
    connection: Connection, month: Window, parameters: dict[str, Any], latest: Bill | None, finality: dict[str, object]
) -> int:
    """Store the computed lines if they differ from the latest issue; return the number of the now latest issue."""
    issue, reason = 1, None
    if latest is None:
        if not connection.execute(text("SELECT EXISTS (SELECT FROM computed_lines)")).scalar():
            raise NotFoundError(f"Nothing was measured in {month_named(month.start)}: there is nothing to bill.")
    else:
        issue, reason = latest.issue, latest.reason
        stored = {**parameters, "issue": issue, "was_final": latest.is_final}
        differs = connection.execute(text(DIFFERS), stored).scalar()
        if not differs and finality == {"is_final": latest.is_final, "clock_doubt": latest.clock_doubt}:
            return issue
        if latest.is_final and differs:
            issue, reason = issue + 1, _reason(connection, parameters, latest)
    days = connection.execute(text(DAYS), parameters).one()
    values = {**parameters, "issue": issue, **finality, "reason": reason, **days._asdict()}
    for statement in (*DELETE, STORE_LINES, STORE_BILL):
        connection.execute(text(statement), {**values, "label_keys": json.dumps(parameters["keys"])})
    store_groups(connection, month, issue)
    return issue


def _reason(connection: Connection, parameters: dict[str, Any], latest: Bill) -> str:
    """Say why a bill differs from the one that was issued."""
    since = {**parameters, "since": latest.issued_at, "issue": latest.issue}
    samples = connection.execute(text(SAMPLES_SINCE), since).one()
    declared = connection.execute(with_parts(SINCE, declared=DECLARED_STATE), since).one()
    differences = [
        f"{counted(samples.added, 'sample')} came later" if samples.added else "",
        f"{counted(samples.corrected, 'sample')} corrected" if samples.corrected else "",
        f"{counted(declared.fewer, 'sample')} deleted" if declared.fewer else "",
        f"labels declared: {first_of(declared.labels, DECLARED_NAMED)}" if declared.labels else "",
        f"prices declared: {first_of(declared.prices, DECLARED_NAMED)}" if declared.prices else "",
    ]
    if declared.before is not None:
        numbers = ([int(number) for number in state.split()[:2]] for state in (declared.before, declared.now))
        kinds = zip(("labels", "prices"), *numbers, strict=True)
        differences += [f"{kind} removed" for kind, before, now in kinds if now < before]
    named = "; ".join(filter(None, differences))
    otherwise = (
        "samples were deleted, servers were measured on later days or are counted differently, or labels or prices "
        "were removed"
    )
    return f"Since then: {named or otherwise}."


def read_bill(engine: Engine, month: Window, by: str, issue: int | None = None) -> IssuedBill:
    """Read an issue of a bill, by default the newest, by groups, with the one before.

    Raises:
        NotFoundError: there is no such issue.
        ValidationError: the bill cannot be grouped so.
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading a bill"), engine.connect() as connection:
        return read_bill_of(connection, month, by, issue)


def read_bill_of(connection: Connection, month: Window, by: str, issue: int | None = None) -> IssuedBill:
    """Read a bill within the caller's transaction; raises as `read_bill`, but for errors of the database."""
    chosen = [bill for bill in _issues(connection, month) if issue is None or bill.issue <= issue]
    if not chosen or (issue is not None and chosen[0].issue != issue):
        if issue is not None:
            raise NotFoundError(f"The bill of {month_named(month.start)} has no version {issue}.")
        raise NotFoundError(
            f"There is no bill of {month_named(month.start)}. `capacity bill` issues one where something was measured."
        )
    now, *older = chosen
    refuse_unknown_grouping(by, now.label_keys)
    before = _issued(connection, older[0], by, None) if older else None
    return _issued(connection, now, by, before)


def _issued(connection: Connection, bill: Bill, by: str, before: IssuedBill | None) -> IssuedBill:
    databases, servers, compared_issue = whole_bill(connection, bill.month, bill.issue)
    every = groups_of_bill(connection, MONTHLY.window_of(bill.month), bill.issue, by, bill.days_so_far)
    groups, former = [one for one in every if one.databases], [one for one in every if not one.databases]
    return IssuedBill(bill, by, groups, databases, before, servers, former, compared_issue)
