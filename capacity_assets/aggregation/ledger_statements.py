"""The statements of the ledger: which windows saw which change, in SQL.

What they are for, and when each is issued, is said in `ledger`. `w` is a window of the ledger, `c` a change of samples,
`d` an invalidation, `l` a level with the table it reads and the one it writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from capacity_assets.foundation.levels import Level
from capacity_assets.storage.snapshots import is_foreign, is_seen, is_to_come, transaction_of

TRANSACTION = transaction_of("c")
SNAPSHOT = "CAST(w.snapshot AS pg_snapshot)"
TOUCHES = (
    "c.table_name = l.table_name AND (c.collected_date BETWEEN w.reads_from AND w.period_end "
    "OR c.collected_date BETWEEN w.year_before_start AND w.year_before_end)"
)
UNSEEN = f"{TOUCHES} AND NOT {is_seen('c', 'w')}"
# With those that were seen while an older transaction was open: computing again, they are forgotten.
PERHAPS_UNSEEN = f"{TOUCHES} AND {TRANSACTION} >= pg_snapshot_xmin({SNAPSHOT})"
LEVELS = (
    "unnest(CAST(:levels AS text[]), CAST(:tables AS text[]), CAST(:targets AS text[])) "
    "AS l (level, table_name, target_name)"
)
INVALIDATED = f"d.table_name IN (l.table_name, l.target_name) AND NOT {is_seen('d', 'w')}"


TAKE_ACTIVATIONS = "DELETE FROM capacity_activations RETURNING instance_id"
# Where samples are distributed: all days of these servers, as changes of the transaction that looks.
DAYS_OF_SERVERS = "SELECT DISTINCT collected_date FROM {raw} WHERE instance_id = ANY (CAST(:ids AS integer[]))"
RECORD_DAYS = """
INSERT INTO capacity_sample_changes (table_name, collected_date)
SELECT :raw, day FROM unnest(CAST(:days AS date[])) AS day ON CONFLICT DO NOTHING
"""
# A server that was put into service: all its days are changes of that transaction. Spread at the look, not at the
# change, so that samples that were committed meanwhile are among them; what is committed later is a change of its own.
SPREAD_ACTIVATIONS = """
WITH put_into_service AS (DELETE FROM capacity_activations RETURNING instance_id, transaction_id, changed_at)
INSERT INTO capacity_sample_changes (table_name, collected_date, transaction_id, changed_at)
SELECT DISTINCT ON (found.table_name, found.collected_date, p.transaction_id)
       found.table_name, found.collected_date, p.transaction_id, p.changed_at
FROM put_into_service p CROSS JOIN LATERAL (
    SELECT 'database_size_stats' AS table_name, d.collected_date FROM database_size_stats d
    WHERE d.instance_id = p.instance_id
    UNION
    SELECT 'instance_size_stats', s.collected_date FROM instance_size_stats s WHERE s.instance_id = p.instance_id
) AS found
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class Lookups:
    """How rows of a window are looked for, in conditions of the statements below."""

    stored: str
    sampled: str


PLAIN = Lookups(
    stored="EXISTS (SELECT FROM {target} a WHERE a.period_type = w.period_type AND a.period_start = w.period_start)",
    sampled="EXISTS (SELECT FROM {raw} r WHERE r.collected_date BETWEEN asked.period_start AND asked.period_end)",
)
# Where rows are distributed, a subquery must not depend on the row of the outer query.
DISTRIBUTED = Lookups(
    stored="(w.period_type, w.period_start) IN (SELECT DISTINCT a.period_type, a.period_start FROM {target} a "
    "WHERE a.period_type = ANY (CAST(:asked_types AS text[])) AND a.period_start = ANY (CAST(:starts AS date[])))",
    sampled="EXISTS (SELECT FROM (SELECT DISTINCT r.collected_date FROM {raw} r WHERE r.collected_date BETWEEN "
    "(SELECT min(s) FROM unnest(CAST(:starts AS date[])) s) AND (SELECT max(e) FROM unnest(CAST(:ends AS date[])) e)"
    ") AS days WHERE days.collected_date BETWEEN asked.period_start AND asked.period_end)",
)


def filled(statement: str, level: Level, lookups: Lookups) -> str:
    """Fill in how rows of a level are looked for."""
    names = {"target": level.target.name, "raw": level.source.name}
    return statement.format(stored=lookups.stored.format(**names), sampled=lookups.sampled.format(**names), **names)


BEGIN = """
WITH begun AS (
    INSERT INTO capacity_computed_windows AS w
        (period_type, level, period_start, period_end, reads_from, year_before_start, year_before_end)
    SELECT :period_type, :level, *
    FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]),
                CAST(:year_before_starts AS date[]), CAST(:year_before_ends AS date[])) AS asked
    ON CONFLICT (period_type, level, period_start) DO UPDATE
    SET year_before_start = EXCLUDED.year_before_start, year_before_end = EXCLUDED.year_before_end,
        period_end = EXCLUDED.period_end, reads_from = EXCLUDED.reads_from, fingerprint = NULL
    -- Entered by a version that did not compare with a year before, or as a period of another length.
    WHERE w.year_before_start IS NULL OR (w.period_end, w.reads_from) <> (EXCLUDED.period_end, EXCLUDED.reads_from)
)
SELECT CAST(pg_current_snapshot() AS text)
"""

COMPUTED = """
SELECT period_start, period_end, coalesce(processed_instances, 0) AS processed_instances, failed_instances,
       coalesce(total_records, 0) AS total_records
FROM capacity_computed_windows
WHERE period_type = :period_type AND level = :level AND snapshot IS NOT NULL
  -- Where every server failed, the run failed too, and its partition is to be seen as failed.
  AND (processed_instances > 0 OR failed_instances = 0)
ORDER BY period_start
"""

FAILED = """
SELECT period_start, failed_instances FROM capacity_computed_windows
WHERE period_type = :period_type AND level = :level AND failed_instances > 0
  AND period_start = ANY (CAST(:starts AS date[]))
"""

# The number besides the time: of two computations, the one that began first may end last.
LAST_COMPUTATION = """
SELECT format('%s windows, the last at %s', count(*), max(computed_at)) FROM capacity_computed_windows
WHERE snapshot IS NOT NULL
"""

# Left alone where nothing was new, so that computing again over unchanged samples writes nothing at all.
FINISH = f"""
UPDATE capacity_computed_windows w
SET snapshot = :snapshot, failed_instances = done.failed, computed_at = now(), fingerprint = :fingerprint,
    processed_instances = done.processed, total_records = done.records, protected_records = done.protected,
    unsampled_records = done.unsampled
FROM unnest(CAST(:starts AS date[]), CAST(:failed AS integer[]), CAST(:processed AS integer[]),
            CAST(:records AS bigint[]), CAST(:protected AS bigint[]), CAST(:unsampled AS bigint[]))
    AS done (period_start, failed, processed, records, protected, unsampled), {LEVELS}
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = done.period_start AND l.level = w.level
  AND (w.snapshot IS NULL OR w.failed_instances <> done.failed OR w.fingerprint IS DISTINCT FROM :fingerprint
       OR (w.processed_instances, w.total_records, w.protected_records, w.unsampled_records)
          IS DISTINCT FROM (done.processed, done.records, done.protected, done.unsampled)
       OR EXISTS (SELECT FROM capacity_invalidations d WHERE {INVALIDATED})
       OR EXISTS (SELECT FROM capacity_sample_changes c WHERE {PERHAPS_UNSEEN}))
"""  # noqa: S608 -- built from the constants above

STALE = f"""
SELECT w.period_type, w.level, w.period_start, w.period_end, max(c.transaction_id) AS newest_change,
       CAST(extract(epoch FROM now() - max(c.changed_at)) AS float) AS quiet_seconds,
       CAST(extract(epoch FROM now() - min(c.changed_at)) AS float) AS waiting_seconds
FROM capacity_computed_windows w JOIN {LEVELS} ON l.level = w.level JOIN capacity_sample_changes c ON {UNSEEN}
WHERE w.snapshot IS NOT NULL AND w.period_type = ANY (:periods)
GROUP BY w.period_type, w.level, w.period_start, w.period_end ORDER BY w.period_type, w.level, w.period_start
"""  # noqa: S608 -- built from the constants above

# Includes open windows. Invalidations are deleted after a day; invalidated windows lose their fingerprint then.
OUTDATED = f"""
SELECT w.period_type, w.level, w.period_start, w.period_end, state.reason
FROM capacity_computed_windows w JOIN {LEVELS} ON l.level = w.level
CROSS JOIN LATERAL (SELECT CASE
    WHEN EXISTS (SELECT FROM capacity_sample_changes c WHERE {UNSEEN}) THEN 'samples changed since it was computed'
    WHEN w.fingerprint IS NULL OR EXISTS (SELECT FROM capacity_invalidations d WHERE {INVALIDATED}) THEN
        'another session wrote its aggregates or deleted samples, or a window that it compares with was overwritten'
    END) AS state (reason)
WHERE w.snapshot IS NOT NULL AND w.period_type = ANY (:periods) AND state.reason IS NOT NULL
ORDER BY w.period_type, w.level, w.period_start
"""  # noqa: S608 -- built from the constants above

# By the oldest transaction that one of the windows may not have seen: a change is kept a little longer than it must.
FORGET = f"""
WITH days AS (SELECT DISTINCT table_name, collected_date FROM capacity_sample_changes),
needed AS (
    SELECT c.table_name, c.collected_date,
           min(coalesce(CAST(CAST(pg_snapshot_xmin({SNAPSHOT}) AS text) AS bigint), 0)) AS oldest_unseen
    FROM days c JOIN {LEVELS} ON l.table_name = c.table_name
    JOIN capacity_computed_windows w ON w.level = l.level AND w.period_type = ANY (:periods) AND {TOUCHES}
    GROUP BY c.table_name, c.collected_date
)
DELETE FROM capacity_sample_changes c USING days LEFT JOIN needed USING (table_name, collected_date)
WHERE c.table_name = days.table_name AND c.collected_date = days.collected_date
  AND (needed.oldest_unseen IS NULL OR c.transaction_id < needed.oldest_unseen)
"""  # noqa: S608 -- built from the constants above

# A whole partition may have gone without a trigger, but then no row of the window is left.
UNCHANGED = f"""
SELECT w.period_start, w.processed_instances, w.total_records, w.protected_records, w.unsampled_records
FROM capacity_computed_windows w JOIN {LEVELS} ON l.level = w.level
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = ANY (CAST(:starts AS date[]))
  AND w.snapshot IS NOT NULL AND w.failed_instances = 0 AND w.fingerprint = :fingerprint
  AND w.unsampled_records IS NOT NULL
  AND NOT EXISTS (SELECT FROM capacity_sample_changes c WHERE {PERHAPS_UNSEEN})
  AND NOT EXISTS (SELECT FROM capacity_invalidations d WHERE {INVALIDATED})
  AND (w.total_records = 0 OR {{stored}})
"""  # noqa: S608 -- built from the constants above and names of our own tables

# Which windows were computed, and whether their rows are as their samples give them, protected ones included, of all
# servers that are computed. Changes that are seen are enough: what is only perhaps unseen was read.
CURRENT_SUMS = f"""
SELECT w.period_type, w.period_start, w.period_end,
       w.failed_instances = 0 AND right(w.fingerprint, length(:fingerprint)) = :fingerprint
       AND NOT EXISTS (SELECT FROM capacity_sample_changes c WHERE c.table_name = l.table_name
                       AND c.collected_date BETWEEN w.period_start AND w.period_end AND NOT {is_seen("c", "w")})
       AND NOT EXISTS (SELECT FROM capacity_invalidations d WHERE {INVALIDATED})
       AND (w.total_records = 0 OR {{stored}}) AS is_current
FROM unnest(CAST(:asked_types AS text[]), CAST(:starts AS date[])) AS asked (period_type, period_start)
JOIN {LEVELS} ON l.level = :level
JOIN capacity_computed_windows w USING (period_type, period_start)
WHERE w.level = :level AND w.snapshot IS NOT NULL AND w.processed_instances IS NOT NULL
"""  # noqa: S608 -- built from the constants above and names of our own tables

# Not sooner: a computation at work has looked before them and is entered after.
FORGET_INVALIDATIONS = f"""
WITH old AS (
    SELECT table_name, transaction_id FROM capacity_invalidations WHERE changed_at < now() - interval '1 day'
),
invalidated AS (
    UPDATE capacity_computed_windows w SET fingerprint = NULL FROM {LEVELS}
    WHERE l.level = w.level AND w.fingerprint IS NOT NULL AND EXISTS (SELECT FROM old d WHERE {INVALIDATED})
)
DELETE FROM capacity_invalidations d USING old
WHERE d.table_name = old.table_name AND d.transaction_id = old.transaction_id
"""  # noqa: S608 -- built from the constants above

OPEN = f"""
SELECT asked.period_start, asked.period_end, state.reason
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS asked (period_start, period_end)
JOIN {LEVELS} ON l.level = :level
LEFT JOIN capacity_computed_windows w
    ON w.period_type = :period_type AND w.level = :level AND w.period_start = asked.period_start
CROSS JOIN LATERAL (SELECT CASE
    WHEN w.period_start IS NULL THEN
        CASE WHEN {{sampled}}
             THEN 'has samples, but was never computed' END
    WHEN w.snapshot IS NULL THEN 'was begun, but never finished'
    WHEN w.failed_instances > 0 THEN format('servers that failed in it: %s', w.failed_instances)
    WHEN EXISTS (SELECT FROM capacity_sample_changes c
                 WHERE {UNSEEN} AND c.changed_at <= now() - make_interval(secs => :patience_seconds))
        THEN 'samples changed since it was computed'
    END) AS state (reason)
WHERE state.reason IS NOT NULL ORDER BY asked.period_start
"""  # noqa: S608 -- built from the constants above and names of our own tables

INVALIDATE = """
UPDATE capacity_computed_windows SET fingerprint = NULL
WHERE period_type = :period_type AND level = :level AND fingerprint IS NOT NULL
  AND (period_start = ANY (CAST(:starts AS date[])) OR year_before_start = ANY (CAST(:starts AS date[])))
"""

# Rows of other servers, inactive by now, may be there besides.
LOST_ROWS = """
SELECT w.period_start, w.period_end, w.total_records - coalesce(a.rows, 0) AS lost, w.total_records AS records
FROM capacity_computed_windows w LEFT JOIN (
    SELECT period_start, count(*) AS rows FROM {target}
    WHERE period_type = :period_type AND period_start BETWEEN :first AND :last GROUP BY period_start
) AS a USING (period_start)
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = ANY (CAST(:starts AS date[]))
  AND coalesce(a.rows, 0) < w.total_records
ORDER BY w.period_start LIMIT 1
"""

NOT_COMPARED = """
SELECT period_start, period_end FROM capacity_computed_windows
WHERE period_type = :period_type AND level = :level AND period_start = ANY (CAST(:starts AS date[]))
  AND year_before_start IS NULL AND processed_instances > 0
ORDER BY period_start LIMIT 1
"""

FROM_ANOTHER_SERVER = f"""
SELECT EXISTS (SELECT FROM capacity_computed_windows w WHERE {is_foreign("w")})
    OR EXISTS (SELECT FROM capacity_sample_changes c WHERE {is_to_come("c")})
    OR EXISTS (SELECT FROM capacity_activations c WHERE {is_to_come("c")})
"""  # noqa: S608 -- built from the constants above

RENUMBER_WINDOWS = """
UPDATE capacity_computed_windows
SET system_identifier = DEFAULT, database_oid = DEFAULT,
    snapshot = CASE WHEN snapshot IS NOT NULL THEN CAST(pg_current_snapshot() AS text) END,
    fingerprint = NULL
"""
FORGET_ALL_INVALIDATIONS = "DELETE FROM capacity_invalidations"
# This transaction is in none of the snapshots just written.
COPY_CHANGES = """
WITH old AS (DELETE FROM capacity_sample_changes RETURNING table_name, collected_date)
INSERT INTO capacity_sample_changes (table_name, collected_date) SELECT DISTINCT table_name, collected_date FROM old
"""
COPY_ACTIVATIONS = """
WITH old AS (DELETE FROM capacity_activations RETURNING instance_id)
INSERT INTO capacity_activations (instance_id) SELECT DISTINCT instance_id FROM old
"""
