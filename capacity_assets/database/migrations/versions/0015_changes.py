"""One queue of changes in place of logs that were compared with transaction snapshots.

Windows that had seen every change stay up to date, the others stay stale; servers whose days were not looked up yet go
to the queue. Numbers of transactions from another server or database mean nothing: then every change counts as unseen.
Older programs refuse this revision number.
"""

import json

import sqlalchemy as sa

from capacity_assets.database.cluster import distributed_tables
from capacity_assets.database.sql import execute, quoted

# How 0.3.0 marked the way in which stored sums were made, which is the same today.
SUMS = """
UPDATE capacity_computed_windows w SET fingerprint = left(w.fingerprint, 32) || s.today
FROM (VALUES ('database', 'f03ca3e05c7b819ea3e27b9d6080bba7', '10d57029dc97f2e55bd1c294f4b2853f'),
             ('instance', 'fc52ff51aa9a93534a33c35ed5ecb577', 'b41180f13b200b7e2f44ae9393fedeed'))
    AS s (level, former, today)
WHERE w.level = s.level AND right(w.fingerprint, 32) = s.former
"""
# Some columns are younger than the oldest table.
CONVERT = """
WITH here AS (
    SELECT (SELECT CAST(system_identifier AS text) FROM pg_control_system()) AS server,
           (SELECT CAST(oid AS text) FROM pg_database WHERE datname = current_database()) AS database,
           pg_snapshot_xmax(pg_current_snapshot()) AS next
), windows AS (
    SELECT w.*, CAST(w.snapshot AS pg_snapshot) AS seen,
           to_jsonb(w) ->> 'system_identifier' <> here.server
           OR coalesce(to_jsonb(w) ->> 'database_oid', here.database) <> here.database
           OR pg_snapshot_xmax(CAST(w.snapshot AS pg_snapshot)) > here.next AS is_foreign,
           w.level || '_size_stats' AS raw_table, w.level || '_size_aggregations' AS target_table
    FROM capacity_computed_windows w CROSS JOIN here WHERE w.snapshot IS NOT NULL
), changed AS (
    SELECT table_name, collected_date AS day, changed_at, CAST(CAST(transaction_id AS text) AS xid8) AS transaction
    FROM capacity_sample_changes
), from_elsewhere AS (
    SELECT EXISTS (SELECT FROM windows WHERE is_foreign)
        OR EXISTS (SELECT FROM changed CROSS JOIN here WHERE changed.transaction >= here.next) AS is_so
), unseen AS (
    SELECT w.period_type, w.level, w.period_start, min(c.changed_at) AS oldest, max(c.changed_at) AS newest
    FROM windows w CROSS JOIN from_elsewhere JOIN changed c ON c.table_name = w.raw_table
        AND (c.day BETWEEN w.reads_from AND w.period_end OR c.day BETWEEN w.year_before_start AND w.year_before_end)
        AND (from_elsewhere.is_so OR NOT pg_visible_in_snapshot(c.transaction, w.seen))
    GROUP BY w.period_type, w.level, w.period_start
), distrusted AS (
    SELECT w.period_type, w.level, w.period_start FROM windows w CROSS JOIN from_elsewhere
    WHERE from_elsewhere.is_so OR w.fingerprint IS NULL OR EXISTS (
        SELECT FROM capacity_invalidations d WHERE d.table_name IN (w.raw_table, w.target_table)
          AND NOT pg_visible_in_snapshot(CAST(CAST(d.transaction_id AS text) AS xid8), w.seen))
)
UPDATE capacity_computed_windows w
SET computed = 0, oldest_change = u.oldest, newest_change = u.newest,
    wanted = CAST(u.period_start IS NOT NULL OR d.period_start IS NOT NULL AS integer),
    changed = CAST(u.period_start IS NOT NULL OR d.period_start IS NOT NULL AS integer)
FROM windows k LEFT JOIN unseen u USING (period_type, level, period_start)
LEFT JOIN distrusted d USING (period_type, level, period_start)
WHERE w.period_type = k.period_type AND w.level = k.level AND w.period_start = k.period_start
"""
SERVERS = """
INSERT INTO capacity_changes (table_name, kind, instance_id, changed_at)
SELECT 'instances', 'server', instance_id, min(changed_at) FROM capacity_activations GROUP BY instance_id
"""
# Not dropped there: a node does so at once, and not with this transaction.
OF_NODES = """
INSERT INTO capacity_changes (table_name, kind, days, changed_at)
SELECT table_name, coalesce(kind, 'samples'), coalesce(daterange(day, day, '[]'), '(,)'), changed_at
FROM json_to_recordset(CAST(:records AS json)) AS r (table_name text, kind text, day date, changed_at timestamptz)
"""
ON_NODE = """
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT table_name, NULL AS kind, collected_date AS day, changed_at FROM {schema}.capacity_sample_changes
    UNION ALL
    SELECT table_name, CASE WHEN table_name LIKE '%_stats' THEN 'deleted' ELSE 'written' END, NULL, changed_at
    FROM {schema}.capacity_invalidations) r
"""
YOUNGER_TABLES = (
    "CREATE TABLE IF NOT EXISTS capacity_activations (instance_id integer, changed_at timestamptz)",
    "CREATE TABLE IF NOT EXISTS capacity_invalidations (table_name text, transaction_id bigint)",
)
# With its triggers, those on shards too, where DROP TRIGGER does not reach.
FORMER_FUNCTION = "DROP FUNCTION IF EXISTS capacity_track_invalidation() CASCADE"
FORMER_TABLES = (
    "DROP TABLE IF EXISTS capacity_sample_changes, capacity_activations, capacity_invalidations",
    "ALTER TABLE capacity_computed_windows DROP COLUMN IF EXISTS snapshot, "
    "DROP COLUMN IF EXISTS system_identifier, DROP COLUMN IF EXISTS database_oid",
)


def upgrade(connection: sa.Connection) -> None:
    """Move the changes of the former logs to the queue and the windows."""
    if "snapshot" not in {column["name"] for column in sa.inspect(connection).get_columns("capacity_computed_windows")}:
        return
    execute(connection, [FORMER_FUNCTION, *YOUNGER_TABLES, CONVERT, SERVERS, SUMS])
    if distributed_tables(connection):
        _take_over_from_nodes(connection)
    execute(connection, FORMER_TABLES)


def _take_over_from_nodes(connection: sa.Connection) -> None:
    schema = quoted(connection.execute(sa.text("SELECT current_schema()")).scalar_one())
    asked = sa.text("SELECT success, result FROM run_command_on_workers(:command)")
    for row in connection.execute(asked, {"command": ON_NODE.format(schema=schema)}):
        # A node that was never prepared has no such tables.
        if row.success or "does not exist" not in row.result:
            connection.execute(sa.text(OF_NODES), {"records": json.dumps(json.loads(row.result))})
