"""What bills are computed and read with, each statement whole. Rules: docs/groups.md.

`READ` is what is taken of samples and aggregates; all else is made of these and of what is declared.
"""

from __future__ import annotations

from capacity_assets.storage.label_expressions import labels_of

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
"""What a bill reads of samples and aggregates, each as the temporary table that the statements below look at: where
tables are distributed, their nodes add it up. Days and sizes are read together, so that a sample which comes meanwhile
is in both or in neither; what retention drops afterwards is billed. Segments are given by their first days; a label
that is declared meanwhile makes none, and the next issue has it."""

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
_LINES = f"""
    WITH labelled AS MATERIALIZED (
        SELECT z.instance_id, z.database_name, z.segment, z.days, z.bytes,
               {labels_of("z.instance_id", "z.database_name", "z.segment")} AS labels
        FROM measured z WHERE z.database_name IS NOT NULL
    ), spans AS MATERIALIZED (
        SELECT p.*, lead(valid_from, 1, CAST('infinity' AS date))
                    OVER (PARTITION BY engine, key, value ORDER BY valid_from) AS valid_until
        FROM capacity_prices p
    ), priced AS (
        SELECT l.*, v.server, v.engine, v.billed, v.measured, found.price
        FROM labelled l JOIN billed_servers v USING (instance_id)
        LEFT JOIN LATERAL (
            SELECT p.price FROM spans p
            WHERE p.price IS NOT NULL AND p.valid_from <= l.segment AND l.segment < p.valid_until
              AND p.engine IN ('', v.engine) AND (p.key = '' OR l.labels ->> CAST(p.key AS text) = p.value)
            ORDER BY p.key = '', array_position(CAST(:keys AS text[]), CAST(p.key AS text)), p.key, p.engine = ''
            LIMIT 1
        ) AS found ON true
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
    FROM placed"""  # noqa: S608 -- an expression of our own
COMPUTED = {"billed_servers": _BILLED_SERVERS, "computed_lines": _LINES}
"""The servers of the bill and its lines, as temporary tables too; lines are stored with the bill."""

DAYS = """
SELECT coalesce(sum(measured), 0) AS measured_days, coalesce(sum(billed), 0) AS billed_days,
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
                            billed_days, unbilled_servers, label_keys, reason, clock_doubt)
SELECT :start, :issue, :is_final, CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END,
       coalesce(sum(amount), 0),
       coalesce(sum(gib_months), 0), coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0), :measured_days,
       :billed_days, :unbilled_servers, CAST(:label_keys AS json), :reason, :clock_doubt
FROM computed_lines
"""
DECLARED_STATE = """(
    SELECT concat_ws(' ', l.number, p.number, l.newest, p.newest)
    FROM (SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
          FROM capacity_label_spans WHERE valid_from <= :end) AS l,
         (SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
          FROM capacity_prices WHERE valid_from <= :end) AS p)"""
"""What is declared up to :end as a text that changes with it, whatever is added, changed or removed.

It begins with the numbers of labels and of prices."""
KEEP_DECLARED = f"""
UPDATE capacity_bills SET declared_state = {DECLARED_STATE}, samples_dropped_at = NULL
WHERE month = :start AND issue = :issue
"""  # noqa: S608 -- a constant of this module
SAMPLES_SINCE = """
SELECT count(*) FILTER (WHERE s.created_at > :since) AS added,
       count(*) FILTER (WHERE s.created_at <= :since AND s.updated_at > :since) AS corrected
FROM database_size_stats s WHERE s.collected_date BETWEEN :start AND :end
"""
# Why a bill differs from one that was issued: what came, or was declared, since, as far as it can touch the month.
# Deleted samples are counted of servers that are still billed; others may be counted differently now.
SINCE = f"""
SELECT deleted.fewer, states.before, states.now,
       ARRAY(SELECT l.key || '=' || coalesce(l.value, 'none') || ' of '
                    || coalesce(nullif(l.database_pattern, '') || ' on ', '') || i.name
             FROM capacity_labels l JOIN instances i ON i.id = l.instance_id
             WHERE l.declared_at > :since AND l.valid_from <= :end ORDER BY l.declared_at) AS labels,
       ARRAY(SELECT coalesce(trim_scale(p.price) || ' ' || p.currency, 'none') || ' for '
                    || CASE WHEN p.key <> '' THEN p.key || '=' || p.value
                            ELSE coalesce(nullif(p.engine, ''), 'everything else') END
             FROM capacity_prices p
             WHERE p.declared_at > :since AND p.valid_from <= :end
               AND (p.engine = '' OR p.engine IN (SELECT engine FROM computed_lines))
               AND (p.key = '' OR EXISTS (SELECT FROM computed_lines c WHERE c.labels ->> p.key = p.value))
             ORDER BY p.declared_at) AS prices
FROM (SELECT greatest(0, coalesce(sum(l.days), 0) - (SELECT coalesce(sum(days), 0) FROM computed_lines
                         WHERE instance_id = ANY (array_agg(DISTINCT l.instance_id)))) AS fewer
      FROM capacity_bill_lines l WHERE l.month = :start AND l.issue = :issue
        AND l.instance_id IN (SELECT instance_id FROM computed_lines)) AS deleted,
     (SELECT b.declared_state AS before, {DECLARED_STATE} AS now
      FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue) AS states
"""  # noqa: S608 -- a constant of this module
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
MARK_DROPPED = """
UPDATE capacity_bills SET samples_dropped_at = coalesce(samples_dropped_at, now())
WHERE month = :start AND issue = :issue
"""
# Whole cents: each group's rounded down, then one more for those that lost most, until they add up to the total.
GROUPS = """
WITH grouped AS (
    SELECT CASE CAST(:by AS text) WHEN 'engine' THEN engine WHEN 'server' THEN server
                ELSE labels ->> CAST(:by AS text) END AS group_name,
           count(DISTINCT (instance_id, database_name)) AS databases,
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
