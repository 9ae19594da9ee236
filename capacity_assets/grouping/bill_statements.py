"""What bills are computed and read with. Rules: docs/groups.md.

`READ` is what is taken of samples and aggregates, everything else is made of these and of what is declared.
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
_IN_MONTH = "{0}.collected_date BETWEEN :start AND :end"


def _is_there(table: str, when: str) -> str:
    return f"EXISTS (SELECT FROM {table} s WHERE s.instance_id = d.instance_id AND {when})"


def _missing(level: str, days: str, keys: str, counts: str) -> str:
    """Servers whose aggregate of the month knows of more samples than there are."""
    return f"""
    SELECT a.instance_id FROM {level}_size_aggregations a
    LEFT JOIN (SELECT {keys}, {days} AS days FROM {level}_size_stats r
               WHERE {_IN_MONTH.format("r")} AND {counts} GROUP BY {keys}) AS s USING ({keys})
    WHERE a.period_type = 'monthly' AND a.period_start = :start AND a.data_count > coalesce(s.days, 0)
    GROUP BY a.instance_id"""  # noqa: S608 -- names of our own tables


# A day of a server counts as measured when its databases were, or there was none. It is billed from its first sample to
# its last one, to the end of the month where it was measured later; days of these without a sample count as the others
# on average. Aggregates stand for samples of other months that retention has dropped.
_LATER, _BEFORE = "s.collected_date > :end", "s.collected_date < :start"
_DAYS = f"""
    SELECT DISTINCT every.instance_id, every.day FROM (
        SELECT r.instance_id, r.collected_date AS day FROM database_size_stats r WHERE {_IN_MONTH.format("r")}
        UNION ALL
        SELECT t.instance_id, t.collected_date FROM instance_size_stats t
        WHERE {_IN_MONTH.format("t")} AND NOT t.is_deleted AND t.database_count = 0
    ) AS every"""  # noqa: S608 -- as above
_SIZES = f"""
    SELECT s.instance_id, s.database_name, s.segment, count(*) AS days, sum(s.bytes) AS bytes FROM (
        SELECT r.instance_id, r.database_name, coalesce(r.size_bytes, r.size_mb * CAST(1048576 AS numeric)) AS bytes,
               (CAST(:segments AS date[]))[width_bucket(r.collected_date, CAST(:segments AS date[]))] AS segment
        FROM database_size_stats r WHERE {_IN_MONTH.format("r")}
    ) AS s GROUP BY s.instance_id, s.database_name, s.segment"""  # noqa: S608 -- as above
_MEASURED = f"""
    SELECT m.*, z.database_name, z.segment, z.days, z.bytes
    FROM (
        SELECT d.instance_id, count(*) AS measured, min(d.day) AS first_day, max(d.day) AS last_day,
               {_is_there("database_size_stats", _LATER)}
               OR {_is_there("instance_size_stats", f"{_LATER} AND NOT s.is_deleted")} AS is_later,
               {_is_there("database_size_stats", _BEFORE)}
               OR {_is_there("instance_size_stats", f"{_BEFORE} AND NOT s.is_deleted")}
               OR {_is_there("instance_size_aggregations", "s.period_end < :start")}
               OR {_is_there("database_size_aggregations", "s.period_end < :start")} AS was_before
        FROM ({_DAYS}) AS d GROUP BY d.instance_id
    ) AS m LEFT JOIN ({_SIZES}) AS z ON z.instance_id = m.instance_id"""  # noqa: S608 -- as above
_SIZED = f"""
    SELECT t.instance_id FROM instance_size_stats t
    WHERE {_IN_MONTH.format("t")} AND NOT t.is_deleted AND t.total_size_mb > 0 GROUP BY t.instance_id"""  # noqa: S608 -- as above
# The first window that ended in the month, and the first remaining day: retention drops the oldest samples first.
_OF_LEVEL = """
    SELECT '{level}' AS level, a.first_end, r.oldest
    FROM (SELECT min(period_end) AS first_end FROM {level}_size_aggregations
          WHERE period_type IN ('daily', 'monthly') AND period_start >= :start AND period_end <= :end) AS a
    CROSS JOIN (SELECT coalesce(min(collected_date), 'infinity') AS oldest FROM {level}_size_stats) AS r"""
READ = {
    "sized_servers": _SIZED,
    "measured": _MEASURED,
    "missing_totals": _missing("instance", "count(DISTINCT r.collected_date)", "instance_id", "NOT r.is_deleted"),
    "missing_samples": _missing("database", "count(*)", "instance_id, database_name", "true"),
    "oldest_left": " UNION ALL ".join(_OF_LEVEL.format(level=level) for level in ("database", "instance")),
}
"""What a bill reads of samples and aggregates, each as the temporary table that the statements below look at: where
tables are distributed, their nodes add it up. Days and sizes are read together, so that a sample which comes meanwhile
is in both or in neither. Samples that retention drops meanwhile are found to be missing, because that is asked last.
Segments are given by their first days; a label that is declared meanwhile makes none, and the next issue has it."""

_MEASURED_SERVERS = "SELECT DISTINCT instance_id, measured, first_day, last_day, is_later, was_before FROM measured"
_SERVERS = f"""servers AS MATERIALIZED (
    SELECT m.instance_id, m.measured, coalesce(i.name, last.server, 'server ' || m.instance_id) AS server,
           coalesce(i.db_type, last.engine, 'unknown') AS engine,
           CASE WHEN m.is_later THEN CAST(:end AS date) ELSE m.last_day END
           - CASE WHEN m.was_before THEN CAST(:start AS date) ELSE m.first_day END + 1 AS billed
    FROM ({_MEASURED_SERVERS}) AS m LEFT JOIN instances i ON i.id = m.instance_id
    -- A server that is registered no more is what it was when it was billed.
    LEFT JOIN LATERAL (SELECT l.server, l.engine FROM capacity_bill_lines l
                       WHERE l.month = :start AND l.instance_id = m.instance_id ORDER BY l.issue DESC LIMIT 1
    ) AS last ON i.id IS NULL
    WHERE i.counted_by IS NULL
)"""  # noqa: S608 -- as above
# The least common multiple of 1 to 31 is a common denominator for any number of measured days.
_EXACT = "sum(bytes) * billed * price * div(72201776446800, measured)"
_DENOMINATOR = "(72201776446800 * CAST(:days AS numeric) * 1073741824)"
LINES = f"""
WITH {_SERVERS}, labelled AS MATERIALIZED (
    SELECT z.instance_id, z.database_name, z.segment, z.days, z.bytes,
           {labels_of("z.instance_id", "z.database_name", "z.segment")} AS labels
    FROM measured z WHERE z.database_name IS NOT NULL
), spans AS MATERIALIZED (
    SELECT p.*, lead(valid_from, 1, CAST('infinity' AS date))
                OVER (PARTITION BY engine, key, value ORDER BY valid_from) AS valid_until
    FROM capacity_prices p
), priced AS (
    SELECT l.*, v.server, v.engine, v.billed, v.measured, found.price
    FROM labelled l JOIN servers v USING (instance_id)
    LEFT JOIN LATERAL (
        SELECT p.price FROM spans p
        WHERE p.price IS NOT NULL AND p.valid_from <= l.segment AND l.segment < p.valid_until
          AND p.engine IN ('', v.engine) AND (p.key = '' OR l.labels ->> CAST(p.key AS text) = p.value)
        ORDER BY p.key = '', array_position(CAST(:keys AS text[]), CAST(p.key AS text)), p.key, p.engine = '' LIMIT 1
    ) AS found ON true
)
SELECT instance_id, server, engine, database_name, labels, sum(days) AS days,
       round(sum(bytes) * billed / (measured * CAST(:days AS numeric) * 1073741824), 12) AS gib_months, price,
       {_EXACT} AS exact
FROM priced
GROUP BY instance_id, server, engine, database_name, labels, price, billed, measured
"""  # noqa: S608 -- expressions of our own
# The lines, stored with the bill. Amounts are rounded down to twelve decimals; then the lines with the largest
# remainders get one unit more until they add up to the exact total, rounded down, so the cents are those of the exact
# sum.
COMPUTED = f"""
CREATE TEMPORARY TABLE computed_lines ON COMMIT DROP AS
WITH units AS (
    SELECT row_number() OVER (ORDER BY instance_id, database_name, labels, price) AS line, computed.*,
           div(exact * 1000000000000, {_DENOMINATOR}) AS units, mod(exact * 1000000000000, {_DENOMINATOR}) AS lost
    FROM ({LINES}) AS computed
), placed AS (
    SELECT *, row_number() OVER (ORDER BY lost DESC NULLS LAST, line) AS place,
           div(sum(exact) OVER () * 1000000000000, {_DENOMINATOR}) - sum(units) OVER () AS left_over
    FROM units
)
SELECT line, instance_id, server, engine, database_name, labels, days, gib_months, price,
       (units + CASE WHEN place <= left_over THEN 1 ELSE 0 END) * 0.000000000001 AS amount
FROM placed
"""  # noqa: S608 -- as above
DAYS = f"""
WITH {_SERVERS}
SELECT coalesce(sum(measured), 0) AS measured_days, coalesce(sum(billed), 0) AS billed_days,
       (SELECT count(*) FROM sized_servers t LEFT JOIN instances i ON i.id = t.instance_id
        WHERE i.counted_by IS NULL AND t.instance_id NOT IN (SELECT instance_id FROM servers)) AS unbilled_servers
FROM servers
"""  # noqa: S608 -- as above
# The amount follows from quantity and price. Renaming a server does not change its cost, but a replaced bill shows the
# new name.
_COMPARED = """instance_id, engine, database_name, labels, days, gib_months, price,
        CASE WHEN CAST(:was_final AS boolean) THEN '' ELSE server END"""
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
                            billed_days, unbilled_servers, label_keys, reason, clock_doubt)
SELECT :start, :issue, :is_final, CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END,
       coalesce(sum(amount), 0),
       coalesce(sum(gib_months), 0), coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0), :measured_days,
       :billed_days, :unbilled_servers, CAST(:label_keys AS json), :reason, :clock_doubt
FROM computed_lines
ON CONFLICT (month, issue) DO UPDATE
SET issued_at = now(), is_final = excluded.is_final, currency = excluded.currency, amount = excluded.amount,
    gib_months = excluded.gib_months, unpriced_gib_months = excluded.unpriced_gib_months,
    measured_days = excluded.measured_days, billed_days = excluded.billed_days,
    unbilled_servers = excluded.unbilled_servers, label_keys = excluded.label_keys,
    reason = excluded.reason, clock_doubt = excluded.clock_doubt
"""
_DECLARED = """SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
        FROM {} WHERE valid_from <= :end"""


def declared_state(labels: str) -> str:
    """Return what is declared up to :end as a text that changes with it, whatever is added, changed or removed.

    It begins with the numbers of labels and of prices.
    """
    return f"""(SELECT concat_ws(' ', l.number, p.number, l.newest, p.newest)
        FROM ({_DECLARED.format(labels)}) AS l, ({_DECLARED.format("capacity_prices")}) AS p)"""  # noqa: S608 -- our own names


KEEP_DECLARED = f"""
UPDATE capacity_bills SET declared_state = {declared_state("capacity_labels")}, samples_dropped_at = NULL
WHERE month = :start AND issue = :issue
"""  # noqa: S608 -- as above
DECLARED_BEFORE = f"""
SELECT b.declared_state AS before, {declared_state("capacity_labels")} AS now
FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue
"""  # noqa: S608 -- as above
# Only servers that are still billed; others may be counted differently now.
FEWER_SAMPLES = """
SELECT greatest(0, coalesce(sum(l.days), 0) - (SELECT coalesce(sum(days), 0) FROM computed_lines
                                              WHERE instance_id = ANY (array_agg(DISTINCT l.instance_id))))
FROM capacity_bill_lines l
WHERE l.month = :start AND l.issue = :issue AND l.instance_id IN (SELECT instance_id FROM computed_lines)
"""
# Why a bill differs from one that was issued: what came, or was declared, since, as far as it can touch the month.
SAMPLES_SINCE = f"""
SELECT count(*) FILTER (WHERE s.created_at > :since) AS added,
       count(*) FILTER (WHERE s.created_at <= :since AND s.updated_at > :since) AS corrected
FROM database_size_stats s WHERE {_IN_MONTH.format("s")}
"""  # noqa: S608 -- as above
DECLARED_SINCE = """
SELECT ARRAY(SELECT l.key || '=' || coalesce(l.value, 'none') || ' of '
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
"""
# Samples that retention dropped can no longer be billed. They are missing compared with the aggregates or the bill, and
# either our retention marked the bill or the oldest samples are gone. If older samples remain, a missing sample was
# deleted or declared void, and is no longer billed.
DROPPED = f"""
SELECT EXISTS (
    SELECT FROM oldest_left o
    WHERE (CAST(:is_marked AS boolean) OR o.oldest > least(o.first_end, CAST(:end AS date)))
      AND CASE o.level WHEN 'instance' THEN EXISTS (SELECT FROM missing_totals)
          -- Includes replicas: a server that is counted differently now has not lost samples.
          ELSE EXISTS (SELECT FROM missing_samples)
               OR (SELECT coalesce(sum(measured), 0) FROM ({_MEASURED_SERVERS}) AS servers) < :billed_before END
)
"""  # noqa: S608 -- as above
MARK_DROPPED = """
UPDATE capacity_bills SET samples_dropped_at = coalesce(samples_dropped_at, now())
WHERE month = :start AND issue = :issue
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
