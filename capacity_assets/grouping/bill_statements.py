"""What bills are computed and read with. Rules: docs/groups.md."""

from __future__ import annotations

from capacity_assets.storage.label_expressions import labels_of


# A day of a server counts as measured when its databases were, or there was none. It is billed from its first sample to
# its last one, to the end of the month where it was measured later; days of these without a sample count as the others
# on average. Aggregates stand for samples of other months that retention has dropped. Labels and prices change between
# segments only, so each is looked up once per database and segment.
def _of_month(table: str, day: str, month: str, counts: str = "true") -> str:
    """Rows of the month, and the first and last of each server: they say since when and until when it was there."""
    ends = f"SELECT instance_id, {{end}}({day}) FROM {table} WHERE {counts} GROUP BY instance_id"  # noqa: S608 -- names of our own tables
    outer = " OR ".join(f"(instance_id, {day}) IN ({ends.format(end=end)})" for end in ("min", "max"))
    return f"({month} OR {outer})"


_DAYS_OF_MONTH = "collected_date BETWEEN :start AND :end"
_MONTHLY = "period_type = 'monthly' AND period_start = :start"
READ_OF_DISTRIBUTED = {
    "database_size_stats": _of_month("database_size_stats", "collected_date", _DAYS_OF_MONTH),
    "instance_size_stats": _of_month("instance_size_stats", "collected_date", _DAYS_OF_MONTH, "NOT is_deleted"),
    "database_size_aggregations": _of_month("database_size_aggregations", "period_end", _MONTHLY),
    "instance_size_aggregations": _of_month("instance_size_aggregations", "period_end", _MONTHLY),
}
"""Which rows of each table the statements below read, where these are distributed over nodes."""

_DAYS = """
    SELECT collected_date AS day, instance_id FROM database_size_stats WHERE collected_date BETWEEN :start AND :end
    UNION
    SELECT collected_date, instance_id FROM instance_size_stats
    WHERE collected_date BETWEEN :start AND :end AND NOT is_deleted AND database_count = 0
"""
_SERVERS = f"""days AS MATERIALIZED ({_DAYS}), measured AS (
    SELECT instance_id, count(*) AS measured, min(day) AS first_day, max(day) AS last_day FROM days GROUP BY 1
), servers AS MATERIALIZED (
    SELECT m.instance_id, m.measured, coalesce(i.name, last.server, 'server ' || m.instance_id) AS server,
           coalesce(i.db_type, last.engine, 'unknown') AS engine,
           CASE WHEN EXISTS (SELECT FROM database_size_stats s
                             WHERE s.instance_id = m.instance_id AND s.collected_date > :end)
                  OR EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = m.instance_id
                             AND s.collected_date > :end AND NOT s.is_deleted)
                THEN CAST(:end AS date) ELSE m.last_day END
           - CASE WHEN EXISTS (SELECT FROM database_size_stats s
                               WHERE s.instance_id = m.instance_id AND s.collected_date < :start)
                    OR EXISTS (SELECT FROM instance_size_stats s WHERE s.instance_id = m.instance_id
                               AND s.collected_date < :start AND NOT s.is_deleted)
                    OR EXISTS (SELECT FROM instance_size_aggregations a
                               WHERE a.instance_id = m.instance_id AND a.period_end < :start)
                    OR EXISTS (SELECT FROM database_size_aggregations a
                               WHERE a.instance_id = m.instance_id AND a.period_end < :start)
                  THEN CAST(:start AS date) ELSE m.first_day END + 1 AS billed
    FROM measured m LEFT JOIN instances i ON i.id = m.instance_id
    -- A server that is registered no more is what it was when it was billed.
    LEFT JOIN LATERAL (SELECT l.server, l.engine FROM capacity_bill_lines l
                       WHERE l.month = :start AND l.instance_id = m.instance_id ORDER BY l.issue DESC LIMIT 1
    ) AS last ON i.id IS NULL
    WHERE i.counted_by IS NULL
)"""  # noqa: S608 -- constants of this module
LINES = f"""
WITH {_SERVERS}, cuts AS (
    SELECT CAST(:start AS date) AS day
    UNION SELECT valid_from FROM capacity_labels WHERE valid_from BETWEEN :start AND :end
    UNION SELECT valid_from FROM capacity_prices WHERE valid_from BETWEEN :start AND :end
), segments AS MATERIALIZED (
    SELECT day AS first_day, lead(day, 1, CAST(:end AS date) + 1) OVER (ORDER BY day) - 1 AS last_day FROM cuts
), sizes AS MATERIALIZED (
    SELECT s.instance_id, s.database_name, g.first_day, count(*) AS days,
           sum(coalesce(s.size_bytes, s.size_mb * CAST(1048576 AS numeric))) AS bytes
    FROM database_size_stats s JOIN segments g ON s.collected_date BETWEEN g.first_day AND g.last_day
    WHERE s.collected_date BETWEEN :start AND :end
    GROUP BY 1, 2, 3
), labelled AS MATERIALIZED (
    SELECT z.*, {labels_of("z.instance_id", "z.database_name", "z.first_day")} AS labels FROM sizes z
), spans AS MATERIALIZED (
    SELECT p.*, lead(valid_from, 1, CAST('infinity' AS date))
                OVER (PARTITION BY engine, key, value ORDER BY valid_from) AS valid_until
    FROM capacity_prices p
), priced AS (
    SELECT l.*, v.server, v.engine, v.billed, v.measured, found.price
    FROM labelled l JOIN servers v USING (instance_id)
    LEFT JOIN LATERAL (
        SELECT p.price FROM spans p
        WHERE p.price IS NOT NULL AND p.valid_from <= l.first_day AND l.first_day < p.valid_until
          AND p.engine IN ('', v.engine) AND (p.key = '' OR l.labels ->> CAST(p.key AS text) = p.value)
        ORDER BY p.key = '', array_position(CAST(:keys AS text[]), CAST(p.key AS text)), p.key, p.engine = '' LIMIT 1
    ) AS found ON true
)
SELECT instance_id, server, engine, database_name, labels, sum(days) AS days,
       round(sum(bytes) * billed / (measured * CAST(:days AS numeric) * 1073741824), 12) AS gib_months, price,
       round(sum(bytes) * billed * price / (measured * CAST(:days AS numeric) * 1073741824), 12) AS amount
FROM priced
GROUP BY instance_id, server, engine, database_name, labels, price, billed, measured
"""  # noqa: S608 -- expressions of our own
# What it rests on, to be stored with the bill.
COMPUTED = f"""
CREATE TEMPORARY TABLE computed_lines ON COMMIT DROP AS
SELECT row_number() OVER (ORDER BY instance_id, database_name, labels, price) AS line, computed.*
FROM ({LINES}) AS computed
"""  # noqa: S608 -- as above
DAYS = f"""
WITH {_SERVERS}
SELECT coalesce(sum(measured), 0) AS measured_days, coalesce(sum(billed), 0) AS billed_days,
       (SELECT count(DISTINCT t.instance_id) FROM instance_size_stats t LEFT JOIN instances i ON i.id = t.instance_id
        WHERE t.collected_date BETWEEN :start AND :end AND NOT t.is_deleted AND t.total_size_mb > 0
          AND i.counted_by IS NULL
          AND t.instance_id NOT IN (SELECT instance_id FROM servers)) AS unbilled_servers
FROM servers
"""  # noqa: S608 -- as above
# Replicas too: a server that counts otherwise since has lost no samples.
DAYS_LEFT = f"SELECT count(*) FROM ({_DAYS}) AS days"  # noqa: S608 -- as above
_COMPARED = "instance_id, engine, database_name, labels, days, gib_months, price, amount"
# A server that was renamed costs what it did.
DIFFERS = f"""
SELECT EXISTS (
    (SELECT {_COMPARED} FROM computed_lines
     EXCEPT SELECT {_COMPARED} FROM capacity_bill_lines WHERE month = :start AND issue = :issue)
    UNION ALL
    (SELECT {_COMPARED} FROM capacity_bill_lines WHERE month = :start AND issue = :issue
     EXCEPT SELECT {_COMPARED} FROM computed_lines)
) OR EXISTS (
    SELECT FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue
      AND b.currency <> (SELECT min(currency) FROM capacity_prices)
)
"""  # noqa: S608 -- constants of this module
DELETE_LINES = "DELETE FROM capacity_bill_lines WHERE month = :start AND issue = :issue"
STORE_LINES = """
INSERT INTO capacity_bill_lines
    (month, issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount)
SELECT :start, :issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount
FROM computed_lines
"""
STORE_BILL = """
INSERT INTO capacity_bills (month, issue, is_final, currency, amount, gib_months, unpriced_gib_months, measured_days,
                            billed_days, unbilled_servers, label_keys, reason)
SELECT :start, :issue, :is_final, CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END,
       coalesce(sum(amount), 0),
       coalesce(sum(gib_months), 0), coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0), :measured_days,
       :billed_days, :unbilled_servers, CAST(:label_keys AS json), :reason
FROM computed_lines
ON CONFLICT (month, issue) DO UPDATE
SET issued_at = now(), is_final = excluded.is_final, currency = excluded.currency, amount = excluded.amount,
    gib_months = excluded.gib_months, unpriced_gib_months = excluded.unpriced_gib_months,
    measured_days = excluded.measured_days, billed_days = excluded.billed_days,
    unbilled_servers = excluded.unbilled_servers, label_keys = excluded.label_keys,
    reason = excluded.reason
"""
# Why a bill differs from one that was issued: what came, or was declared, since, as far as it can touch the month.
SINCE = """
SELECT (SELECT count(*) FROM database_size_stats s
        WHERE s.collected_date BETWEEN :start AND :end AND s.created_at > :since) AS added,
       (SELECT count(*) FROM database_size_stats s
        WHERE s.collected_date BETWEEN :start AND :end AND s.created_at <= :since AND s.updated_at > :since)
       AS corrected,
       ARRAY(SELECT l.key || '=' || coalesce(l.value, 'none') || ' of '
                    || coalesce(nullif(l.database_pattern, '') || ' on ', '') || i.name
             FROM capacity_labels l JOIN instances i ON i.id = l.instance_id
             WHERE l.declared_at > :since AND l.valid_from <= :end ORDER BY l.declared_at) AS labels,
       ARRAY(SELECT coalesce(p.price || ' ' || p.currency, 'none') || ' for '
                    || CASE WHEN p.key <> '' THEN p.key || '=' || p.value
                            ELSE coalesce(nullif(p.engine, ''), 'everything else') END
             FROM capacity_prices p
             WHERE p.declared_at > :since AND p.valid_from <= :end
               AND (p.engine = '' OR p.engine IN (SELECT engine FROM computed_lines)) ORDER BY p.declared_at) AS prices
"""
# Samples that retention has dropped cannot be billed any more; the month's aggregates, kept longer, know of them.
DROPPED = """
SELECT EXISTS (
    SELECT 1 FROM instance_size_aggregations a
    LEFT JOIN (SELECT instance_id, count(DISTINCT collected_date) AS days FROM instance_size_stats
               WHERE collected_date BETWEEN :start AND :end AND NOT is_deleted GROUP BY 1) AS s USING (instance_id)
    WHERE a.period_type = 'monthly' AND a.period_start = :start AND a.data_count > coalesce(s.days, 0)
) OR EXISTS (
    SELECT 1 FROM database_size_aggregations a
    LEFT JOIN (SELECT instance_id, database_name, count(*) AS days FROM database_size_stats
               WHERE collected_date BETWEEN :start AND :end GROUP BY 1, 2) AS s USING (instance_id, database_name)
    WHERE a.period_type = 'monthly' AND a.period_start = :start AND a.data_count > coalesce(s.days, 0)
)
"""
# Whole cents: each group's rounded down, then one more for those that lost most, until they add up to the total.
GROUPS = """
WITH grouped AS (
    SELECT {group} AS group_name, count(DISTINCT (instance_id, database_name)) AS databases,
           sum(gib_months) AS gib_months, coalesce(sum(amount), 0) AS exact, count(amount) AS priced,
           coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0) AS unpriced_gib_months
    FROM capacity_bill_lines WHERE month = :start AND issue = :issue GROUP BY 1
), placed AS (
    SELECT *, floor(exact * 100) AS cents,
           row_number() OVER (ORDER BY exact * 100 - floor(exact * 100) DESC, exact DESC, group_name) AS place,
           round(sum(exact) OVER () * 100) - sum(floor(exact * 100)) OVER () AS left_over
    FROM grouped
)
SELECT group_name, databases, gib_months, unpriced_gib_months,
       CASE WHEN priced > 0 THEN round((cents + CASE WHEN place <= left_over THEN 1 ELSE 0 END) / 100, 2) END AS amount,
       CASE WHEN priced > 0 THEN exact END AS exact_amount
FROM placed ORDER BY exact DESC, group_name NULLS LAST
"""
DATABASES = """
SELECT count(DISTINCT (instance_id, database_name)) FROM capacity_bill_lines WHERE month = :start AND issue = :issue
"""
