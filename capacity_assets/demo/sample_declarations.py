"""What is declared of the sample fleet, and its measured limits. As its sizes, pure functions of names and days.

Some servers report their volume, some have a declared disk, some neither, as everywhere. Labels say whose the databases
are, and a price list what they cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy import Connection, Engine, select, text

from capacity_assets.database.tables import ALWAYS, instance_size_stats, instances, is_active
from capacity_assets.demo.sample_fleet import EVENTS, FLEET, WITH_VOLUME
from capacity_assets.forecast.decisions import PLANNED, Decision, decide, stored_decisions
from capacity_assets.forecast.limits import Limit, SizeStep, declare, declare_steps, stored_limits, stored_steps
from capacity_assets.ownership.labels import Label, declare_labels, stored_labels
from capacity_assets.ownership.prices import Price, declare_prices, stored_prices

DECLARED_BY = "capacity demo"
DISK_TO_TOTAL = 1.3
DISK_STEP_MB = 64 * 1024
DAYS_TO_QUOTA = 10
"""Days of growth that the quota leaves: few enough that somebody has to act."""
UNREAD_SLOT_OF = "postgresql-core-01"
"""The server of the sample with a replication slot that nobody reads."""
PLANNED_ON = "sqlserver-bi-01"
ADDED_MB = 64 * 1024
WITHOUT_LIMIT = ("mysql-web-01", "oracle-ledger-01")
# oracle-archive-01 belongs to nobody that is known, as something does everywhere.
TEAMS = {
    "mysql-orders-01": "commerce",
    "mysql-orders-02": "commerce",
    "mysql-web-01": "web",
    "mysql-legacy-01": "web",
    "postgresql-core-01": "platform",
    "postgresql-core-02": "platform",
    "postgresql-events-01": "data",
    "sqlserver-erp-01": "finance",
    "sqlserver-erp-02": "finance",
    "sqlserver-bi-01": "data",
    "oracle-ledger-01": "finance",
}
OF_DATABASES = (
    ("postgresql-core-01", "billing", "finance"),
    ("postgresql-core-02", "billing", "finance"),
    ("postgresql-core-01", "s*", "web"),
    ("sqlserver-bi-01", "crm", "sales"),
)
MOVED = ("mysql-orders-02", "crm", "sales")
"""A database whose owner changed half a year ago, and the new one."""
MONTHS_AGO = 6
PRICES = (
    Price(Decimal("0.12"), "EUR", valid_from=ALWAYS),
    Price(Decimal("0.40"), "EUR", engine="oracle", valid_from=ALWAYS),
    Price(Decimal("0.25"), "EUR", engine="sqlserver", valid_from=ALWAYS),
)


def declare_sample_limits(engine: Engine, today: date) -> None:
    """Declare disks, a quota that fills within weeks, and steps; once, so that changes stay. Raises DatabaseError."""
    if not stored_limits(engine):
        with engine.connect() as connection:
            declare(engine, [*_disks(connection, today), *_quota(connection, today)], by=DECLARED_BY)
    if not stored_steps(engine):
        with engine.connect() as connection:
            measured = {tuple(row) for row in connection.execute(text(_MEASURED), {"today": today})}
        steps = [
            SizeStep(server, database, date(year, event.month, 1), event.note)
            for (server, database), event in EVENTS.items()
            for year in range(today.year - 2, today.year + 1)
            if (server, database) in measured and date(year, event.month, 1) <= today
        ]
        declare_steps(engine, steps, by=DECLARED_BY)


def declare_sample_decision(engine: Engine, today: date) -> bool:
    """Decide, once, that the disk of PLANNED_ON is extended on the first of a month; return whether that was done.

    Its forecast must have been issued, because the decision keeps the risk. Raises DatabaseError.
    """
    if stored_decisions(engine, today, every=True):
        return False
    in_a_month = today.replace(day=1) + timedelta(days=62)
    day, volume = in_a_month.replace(day=1), WITH_VOLUME[PLANNED_ON]
    decide(
        engine,
        [Decision(PLANNED_ON, None, volume, PLANNED, day, "new disk ordered", added_mb=ADDED_MB)],
        by=DECLARED_BY,
    )
    return True


def _disks(connection: Connection, today: date) -> Iterator[Limit]:
    totals = instance_size_stats.c
    servers = (
        select(instances.c.name, totals.total_size_mb)
        .join(instances, instances.c.id == totals.instance_id)
        .where(totals.collected_date == today, is_active())
        .order_by(instances.c.name)
    )
    for row in connection.execute(servers).all():
        if row.name not in {*WITHOUT_LIMIT, *WITH_VOLUME}:
            limit_mb = math.ceil(row.total_size_mb * DISK_TO_TOTAL / DISK_STEP_MB) * DISK_STEP_MB
            yield Limit(row.name, None, limit_mb, "the sample fleet's disk")


def _quota(connection: Connection, today: date) -> Iterator[Limit]:
    fastest = connection.execute(text(_FASTEST), {"today": today}).first()
    if fastest is not None:
        limit_mb = fastest.size_mb + DAYS_TO_QUOTA * fastest.mb_per_day
        yield Limit(fastest.server, fastest.database, limit_mb, "a quota that is nearly used up")


def add_measured_limits(connection: Connection) -> None:
    """Add the volumes of the days in the temporary table `sample`, ceilings of databases, and what lies beside them."""
    names = [server.name for server in FLEET if server.name in WITH_VOLUME]
    volumes = [WITH_VOLUME[name] for name in names]
    asked = {"names": names, "volumes": volumes, "unread": UNREAD_SLOT_OF}
    for statement in (_VOLUMES, _CEILINGS, _PARTS):
        connection.execute(text(statement), asked)


def add_measured_objects(connection: Connection) -> None:
    """Add the tables and indexes of two databases on the Mondays in the temporary table `sample`."""
    connection.execute(text(_OBJECTS))


def add_measured_beside_sizes(connection: Connection) -> None:
    """Add all that is measured beside the sizes in the temporary table `sample`."""
    add_measured_limits(connection)
    add_measured_objects(connection)


_FASTEST = """
SELECT i.name AS server, s.database_name AS database, s.size_mb,
       CAST(ceil((s.size_mb - b.size_mb) / 90.0) AS bigint) AS mb_per_day
FROM database_size_stats s
JOIN database_size_stats b ON b.instance_id = s.instance_id AND b.database_name = s.database_name
JOIN instances i ON i.id = s.instance_id
WHERE s.collected_date = :today AND b.collected_date = CAST(:today AS date) - 90 AND s.size_mb > b.size_mb
ORDER BY s.size_mb - b.size_mb DESC, i.name, s.database_name LIMIT 1
"""
_MEASURED = """
SELECT i.name, s.database_name FROM database_size_stats s JOIN instances i ON i.id = s.instance_id
WHERE s.collected_date = :today
"""
# MySQL reports no volumes: those of the sample come from monitoring, as they would.
# A volume also holds what belongs to no database, and is extended by 64 GiB when less than a tenth is free.
_VOLUMES = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source, collected_at)
SELECT u.day, u.instance_id, u.volume, ceil(u.used_mb * 1.1 / 65536.0) * 65536,
       ceil(u.used_mb * 1.1 / 65536.0) * 65536 - u.used_mb, u.source, u.day + time '03:00'
FROM (
    SELECT s.collected_date AS day, s.instance_id, g.volume,
           CASE WHEN i.db_type = 'mysql' THEN 'imported' ELSE 'measured' END AS source,
           12000 + CAST(sum(s.size_mb) * CASE WHEN i.name = :unread THEN 1.25 ELSE 1.05 END AS bigint) AS used_mb
    FROM sample s JOIN instances i ON i.id = s.instance_id
    JOIN unnest(CAST(:names AS varchar[]), CAST(:volumes AS varchar[])) AS g (name, volume) ON g.name = i.name
    GROUP BY s.collected_date, s.instance_id, g.volume, i.db_type, i.name
) AS u
ON CONFLICT DO NOTHING
"""
# SQL Server and Oracle know ceilings of databases, the others do not.
_CEILINGS = """
INSERT INTO database_limit_stats
    (collected_date, instance_id, database_name, limit_mb, is_unlimited, volumes, source, collected_at)
SELECT s.collected_date, s.instance_id, s.database_name,
       CASE WHEN i.db_type IN ('sqlserver', 'oracle') THEN ceil(s.size_mb * 1.2 / 65536.0) * 65536 END,
       i.db_type NOT IN ('sqlserver', 'oracle'), ARRAY[g.volume],
       CASE WHEN i.db_type = 'mysql' THEN 'imported' ELSE 'measured' END, s.collected_date + time '03:00'
FROM sample s JOIN instances i ON i.id = s.instance_id
JOIN unnest(CAST(:names AS varchar[]), CAST(:volumes AS varchar[])) AS g (name, volume) ON g.name = i.name
ON CONFLICT DO NOTHING
"""
# Of what is no database, the largest part is known. The WAL that an unread slot retains grows with the databases.
_PARTS = """
INSERT INTO server_part_stats
    (collected_date, instance_id, part_kind, part_name, size_bytes, volume_name, detail, collected_at)
SELECT u.day, u.instance_id, p.kind, p.name, CAST((p.fixed_mb + u.size_mb * p.share) * 1048576 AS bigint), u.volume,
       p.detail, u.day + time '03:00'
FROM (
    SELECT s.collected_date AS day, s.instance_id, i.db_type, i.name, g.volume, sum(s.size_mb) AS size_mb
    FROM sample s JOIN instances i ON i.id = s.instance_id
    JOIN unnest(CAST(:names AS varchar[]), CAST(:volumes AS varchar[])) AS g (name, volume) ON g.name = i.name
    GROUP BY s.collected_date, s.instance_id, i.db_type, i.name, g.volume
) AS u
JOIN (VALUES
    ('postgresql', 'wal', '', 1024, 0.24, NULL),
    ('postgresql', 'slot', 'reporting_2024', 512, 0.23, 'logical, its consumer is not connected'),
    ('postgresql', 'temporary', 'pg_default', 300, 0, NULL),
    ('mysql', 'binary_log', '', 2048, 0.02, NULL),
    ('mysql', 'redo', '', 2048, 0, NULL),
    ('mysql', 'undo', '', 512, 0, NULL),
    ('sqlserver', 'transaction_log', 'orders', 4096, 0.03, NULL),
    ('sqlserver', 'temporary', 'tempdb', 4096, 0, NULL),
    ('oracle', 'redo', '', 3072, 0, NULL),
    ('oracle', 'archived_log', '', 4096, 0.02, NULL)
) AS p (db_type, kind, name, fixed_mb, share, detail) ON p.db_type = u.db_type
ON CONFLICT DO NOTHING
"""


# An audit log that is never purged takes what the database grows by. An index of the orders doubles from July on, as
# its pages are split, and is built again at New Year. Shares of the size, in permille; what is left is unexplained.
_OBJECTS = """
WITH measured AS (
    SELECT s.instance_id, i.name, s.database_name, s.collected_date AS day, s.collected_at,
           s.size_mb * 1048576 AS size_bytes,
           least(100 + (s.collected_date - date '2024-01-01') / 3, 700) AS logged,
           least(greatest(CAST(extract(doy FROM s.collected_date) AS integer) - 180, 0), 100) AS split
    FROM sample s JOIN instances i ON i.id = s.instance_id
    WHERE (i.name, s.database_name) IN (('postgresql-core-01', 'audit'), ('mysql-orders-01', 'orders'))
      AND extract(isodow FROM s.collected_date) = 1
), shares AS (
    SELECT m.*, o.kind, o.schema_name, o.table_name, o.object_name, o.permille, o.object_count
    FROM measured m CROSS JOIN LATERAL (VALUES
        ('audit', 'table', 'public', '', 'audit_log', logged, NULL),
        ('audit', 'index', 'public', 'audit_log', 'audit_log_pkey', logged / 8, NULL),
        ('audit', 'table', 'public', '', 'actors', (880 - logged - logged / 8) / 2, NULL),
        ('audit', 'others', '', '', '', 100, 143),
        ('orders', 'table', '', '', 'order_lines', 420, NULL),
        ('orders', 'index', '', 'order_lines', 'by_product', 120 + 120 * split / 100, NULL),
        ('orders', 'table', '', '', 'orders', 240, NULL),
        ('orders', 'others', '', '', '', 60, 12)
    ) AS o (database_name, kind, schema_name, table_name, object_name, permille, object_count)
    WHERE o.database_name = m.database_name
), entered AS (
    SELECT day, instance_id, database_name, collected_at, kind, schema_name, table_name, object_name,
           size_bytes * permille / 1000 AS size_bytes, CAST(object_count AS integer) AS object_count
    FROM shares
    UNION ALL
    SELECT day, instance_id, database_name, collected_at, 'unexplained', '', '', '',
           size_bytes - CAST(sum(size_bytes * permille / 1000) AS bigint), NULL
    FROM shares GROUP BY day, instance_id, database_name, collected_at, size_bytes
)
INSERT INTO object_size_stats
    (collected_date, instance_id, database_name, collected_at, kind, schema_name, table_name, object_name, size_bytes,
     object_count, is_exact)
SELECT *, kind = 'table' FROM entered
ON CONFLICT DO NOTHING
"""


def declare_sample_groups(engine: Engine, today: date) -> None:
    """Declare teams, environments and prices; once, so that what users change stays. Raises DatabaseError."""
    if not stored_labels(engine):
        environments = [Label(server.name, None, "environment", "production", ALWAYS) for server in FLEET]
        teams = [Label(server, None, "team", team, ALWAYS) for server, team in TEAMS.items()]
        overriding = [Label(server, database, "team", team, ALWAYS) for server, database, team in OF_DATABASES]
        server, database, team = MOVED
        months = today.year * 12 + today.month - 1 - MONTHS_AGO
        moved = Label(server, database, "team", team, date(months // 12, months % 12 + 1, 1))
        declare_labels(engine, [*environments, *teams, *overriding, moved], today, by=DECLARED_BY)
    if not stored_prices(engine):
        declare_prices(engine, PRICES, today, by=DECLARED_BY, restate=True)
