"""Steps between revisions of the schema that comparing tables cannot do (see `adoption`), by the revision they lead to.

A legacy database, one of release 0.3.0 (revision 0013) and later ones are upgraded. Older programs refuse a revision
number that they do not know; a revision without a step is there for that.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.database.cluster import distributed_tables
from capacity_assets.database.sql import execute, quoted
from capacity_assets.database.tables import database_size_aggregations, instance_size_aggregations

REGISTER = """
INSERT INTO capacity_computed_windows
    (period_type, level, period_start, period_end, reads_from, wanted, changed, computed)
SELECT CAST(:name AS varchar), CAST(:level AS varchar), w.period_start, w.period_end, w.reads_from, 1, 1, 0
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]))
    AS w (period_start, period_end, reads_from)
WHERE EXISTS (SELECT FROM {table} a WHERE a.period_type = CAST(:name AS varchar) AND a.period_start = w.period_start)
ON CONFLICT DO NOTHING
"""


def enter_legacy_windows(connection: sa.Connection) -> None:
    """Enter the windows that have rows as computed."""
    for level, table in (("database", database_size_aggregations), ("instance", instance_size_aggregations)):
        for period in PERIODS.values():
            _register(connection, level, table, period)


def _register(connection: sa.Connection, level: str, table: sa.Table, period: Period) -> None:
    """Enter each window that has rows, each looked up by its key: listing those that occur would read every row.

    What changed before the triggers existed is not known, so these windows are computed when they are asked for.
    """
    ends = sa.select(sa.func.min(table.c.period_start), sa.func.max(table.c.period_start))
    first, last = connection.execute(ends.where(table.c.period_type == period.name)).one()
    if first is None:
        return
    windows = period.windows_between(first, last)
    connection.execute(
        sa.text(REGISTER.format(table=table.name)),
        {
            "name": period.name,
            "level": level,
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "reads_from": [period.previous(window).start for window in windows],
        },
    )


# How 0.3.0 marked the way in which stored sums were made, which is the same today.
SUMS = """
UPDATE capacity_computed_windows w SET fingerprint = left(w.fingerprint, 32) || s.today
FROM (VALUES ('database', 'f03ca3e05c7b819ea3e27b9d6080bba7', '10d57029dc97f2e55bd1c294f4b2853f'),
             ('instance', 'fc52ff51aa9a93534a33c35ed5ecb577', 'b41180f13b200b7e2f44ae9393fedeed'))
    AS s (level, former, today)
WHERE w.level = s.level AND right(w.fingerprint, 32) = s.former
"""
CONVERT = """
WITH here AS (
    SELECT (SELECT CAST(system_identifier AS text) FROM pg_control_system()) AS server,
           (SELECT CAST(oid AS text) FROM pg_database WHERE datname = current_database()) AS database,
           pg_snapshot_xmax(pg_current_snapshot()) AS next
), windows AS (
    SELECT w.*, CAST(w.snapshot AS pg_snapshot) AS seen,
           CAST(w.system_identifier AS text) <> here.server OR CAST(w.database_oid AS text) <> here.database
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
# With its triggers, those on shards too, where DROP TRIGGER does not reach.
FORMER_FUNCTION = "DROP FUNCTION IF EXISTS capacity_track_invalidation() CASCADE"
FORMER_TABLES = (
    "DROP TABLE IF EXISTS capacity_sample_changes, capacity_activations, capacity_invalidations",
    "ALTER TABLE capacity_computed_windows DROP COLUMN IF EXISTS snapshot, "
    "DROP COLUMN IF EXISTS system_identifier, DROP COLUMN IF EXISTS database_oid",
)


def convert_to_the_queue(connection: sa.Connection) -> None:
    """Move the changes of 0.3.0's logs, which were compared with transaction snapshots, to the queue and the windows.

    Windows that had seen every change stay up to date, the others stay stale; servers whose days were not looked up yet
    go to the queue. Numbers of transactions from another server or database mean nothing: then every change counts as
    unseen.
    """
    if "snapshot" not in {column["name"] for column in sa.inspect(connection).get_columns("capacity_computed_windows")}:
        return
    execute(connection, [FORMER_FUNCTION, CONVERT, SERVERS, SUMS])
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


GONE = (
    "DROP VIEW IF EXISTS capacity_stored_groups, capacity_outdated_groups",
    "DROP FUNCTION IF EXISTS capacity_track_groups_database_size_aggregations() CASCADE",
    "DROP FUNCTION IF EXISTS capacity_track_groups_instance_size_aggregations() CASCADE",
    "DROP TABLE IF EXISTS capacity_group_sums, capacity_group_changes, capacity_group_windows",
)
# Touched once and computed before that: so it is stale, and a run is requested.
STILL_TO_COMPUTE = """
INSERT INTO capacity_computed_windows
    (period_type, level, period_start, period_end, reads_from, year_before_start, year_before_end, wanted, computed,
     changed, oldest_change, newest_change, processed_instances, total_records, protected_records, unsampled_records)
SELECT DISTINCT ON (period_type, period_start)
       period_type, 'group', period_start, period_end, reads_from, year_before_start, year_before_end, 1, 0, 1, now(),
       now(), 0, 0, 0, 0
FROM capacity_computed_windows WHERE computed IS NOT NULL AND level <> 'group'
ORDER BY period_type, period_start, level
ON CONFLICT DO NOTHING
"""


def enter_groups(connection: sa.Connection) -> None:
    """Drop what stored sums of groups, and enter every computed window as one whose groups are still to be computed.

    History is not computed here: the next evaluation of the sensor of late data requests the runs, and `capacity groups
    --now` computes what is left at once.
    """
    execute(connection, [*GONE, STILL_TO_COMPUTE])


STEPS = {"0012": enter_legacy_windows, "0015": convert_to_the_queue, "0016": enter_groups}
