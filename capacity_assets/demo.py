"""The sample fleet of the demo: twelve servers of four engines, a hundred databases, and their declarations.

The size of a database on a day is a pure function of its name and the day, so that loading again changes nothing and
loading a day later adds one day. The fleet behaves like a real one: steady and fast growth, shrinkage, purges, single
missing days, an outage of ten days, a new server and a retired one.

Some servers report their volume, some have a declared disk, some neither. Labels contain the owners of databases, and a
price list their cost.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal

from sqlalchemy import Connection, Date, Engine, func, select, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, insert_samples
from capacity_assets.base.errors import CapacityError
from capacity_assets.database.engine import copy_rows
from capacity_assets.database.tables import ALWAYS, instance_size_stats, instances, is_active, metadata
from capacity_assets.forecast.decisions import PLANNED, Decision, decide, stored_decisions
from capacity_assets.forecast.limits import Limit, SizeStep, declare_limits, declare_steps, stored_limits, stored_steps
from capacity_assets.ownership.bills import MONTHLY
from capacity_assets.ownership.budgets import MOST_MONTHS, MonthBudget, coming_months, declare_budgets, declared_budgets
from capacity_assets.ownership.labels import Label, declare_labels, stored_labels
from capacity_assets.ownership.prices import Price, declare_prices, stored_prices

EPOCH = date(2024, 1, 1)
MOST_DAYS_OF_SAMPLES = 3 * 366
NEW_SERVER_DAYS = 100
RETIRED_DAYS_AGO = 150
OUTAGE_DAYS = range(200, 210)
MEASURED_AT = time(3)
MISSING_ONE_DAY_IN = 150
THEMES = (
    "orders", "billing", "inventory", "crm", "audit", "reporting", "identity", "catalog", "pricing", "shipping",
    "archive", "sessions", "search", "metrics", "content", "payroll", "ledger", "support", "events", "staging",
)  # fmt: skip


@dataclass(frozen=True)
class SampleServer:
    """One sample server; `fate` is plain, new, retired or outage."""

    name: str
    db_type: str
    port: int
    databases: int
    fate: str = "plain"


FLEET = (
    SampleServer("mysql-orders-01", "mysql", 3306, 12),
    SampleServer("mysql-orders-02", "mysql", 3306, 10),
    SampleServer("mysql-web-01", "mysql", 3306, 9, "outage"),
    SampleServer("mysql-legacy-01", "mysql", 3306, 5, "retired"),
    SampleServer("postgresql-core-01", "postgresql", 5432, 14),
    SampleServer("postgresql-core-02", "postgresql", 5432, 11),
    SampleServer("postgresql-events-01", "postgresql", 5432, 6, "new"),
    SampleServer("sqlserver-erp-01", "sqlserver", 1433, 10),
    SampleServer("sqlserver-erp-02", "sqlserver", 1433, 8),
    SampleServer("sqlserver-bi-01", "sqlserver", 1433, 6),
    SampleServer("oracle-ledger-01", "oracle", 1521, 5),
    SampleServer("oracle-archive-01", "oracle", 1521, 4),
)


@dataclass(frozen=True)
class YearlyEvent:
    """A change of the size of one database by a factor, on the first of a month, every year."""

    month: int
    factor: float
    note: str


EVENTS = {
    ("oracle-archive-01", "orders"): YearlyEvent(3, 0.6, "archive of the year purged"),
    ("sqlserver-bi-01", "crm"): YearlyEvent(6, 1.5, "history of another system imported"),
}
FIXED_FILES = ("sqlserver-erp-01", "shipping")
"""A database whose files were allocated ahead and cannot grow: they are filled over a year and purged at New Year."""
PURGE = YearlyEvent(1, 0.75, "shipments of the year before last purged")
FULLEST_PERMILLE = 930
WITH_VOLUME = {
    "mysql-orders-01": "/var/lib/mysql",
    "postgresql-core-01": "/data",
    "sqlserver-erp-01": "D:\\",
    "sqlserver-bi-01": "E:\\",
    "oracle-archive-01": "DATA",
}
"""Servers that report their volume, and its name."""


# Number and retirement, which is decided once, when the fleet is first loaded.
Registration = tuple[int, date | None]


@dataclass(frozen=True)
class LoadedFleet:
    """The result of loading: added samples, and their days (None if nothing was new)."""

    samples_added: int
    first_day_added: date | None
    last_day_added: date | None
    retired: tuple[str, ...]


def first_sample_day(start: date, today: date) -> date:
    """Return the first day of samples: `start`, so that no partition is without; three years before at the most."""
    return max(start, today - timedelta(days=MOST_DAYS_OF_SAMPLES))


def holds_sample_fleet(engine: Engine) -> bool:
    """Whether the sample fleet is registered: its names at addresses that are set aside for examples."""
    with engine.connect() as connection:
        query = text("SELECT EXISTS (SELECT FROM instances WHERE name = ANY (:names) AND host LIKE '192.0.2.%')")
        return bool(connection.execute(query, {"names": [server.name for server in FLEET]}).scalar_one())


def refuse_the_sample_fleet(engine: Engine) -> None:
    """Refuse to add real servers or samples to a database with the demo's sample fleet; raises CapacityError."""
    if holds_sample_fleet(engine):
        raise CapacityError(
            "This database holds the sample fleet of `capacity demo`, which must not be mixed with real servers. Set "
            "CAPACITY_HOME to another folder, as `make own` does, or CAPACITY_DATABASE_URL to a database of your own, "
            "or remove the fleet with `capacity demo --remove`."
        )


def other_instances(engine: Engine) -> int:
    """Count the instances with a registration or with history that do not belong to the sample fleet."""
    with engine.connect() as connection:
        return int(connection.execute(text(_OTHERS), {"names": [server.name for server in FLEET]}).scalar_one())


def remove_sample_fleet(engine: Engine) -> int:
    """Empty all capacity tables, in one transaction; return the number of deleted samples.

    The caller must check with `other_instances` that they contain nothing else.
    """
    # Their entries in the queue of changes and the ledger are deleted too.
    emptied = ", ".join(table.name for table in metadata.sorted_tables)
    with engine.begin() as connection:
        samples = int(connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar_one())
        connection.execute(text(f"TRUNCATE {emptied}"))
    return samples


def load_sample_fleet(engine: Engine, first_day: date, today: date) -> LoadedFleet:
    """Insert the missing parts of the fleet and its samples from `first_day` to `today`, in one transaction."""
    with engine.begin() as connection:
        known = _register(connection, today)
        connection.execute(
            text("CREATE TEMPORARY TABLE sample (LIKE database_size_stats INCLUDING DEFAULTS) ON COMMIT DROP")
        )
        _copy(connection, known, first_day, today)
        days = text(_INSERT_SAMPLES).columns(collected_date=Date).cte("added").c.collected_date
        added = connection.execute(select(func.count(), func.min(days), func.max(days)).select_from(days.table)).one()
        samples, first_added, last_added = added
        connection.execute(text(_INSERT_TOTALS))
        _add_measured_beside_sizes(connection)
        if samples:
            # Everything is read at once, long before the server would update its statistics.
            connection.execute(text("ANALYZE database_size_stats, instance_size_stats"))
    retired = tuple(server.name for server in FLEET if server.fate == "retired")
    return LoadedFleet(samples, first_added, last_added, retired)


_OTHERS = """
SELECT count(*) FROM (
    SELECT id FROM instances
    UNION SELECT instance_id FROM database_size_stats
    UNION SELECT instance_id FROM instance_size_stats
    UNION SELECT instance_id FROM database_size_aggregations
    UNION SELECT instance_id FROM instance_size_aggregations
) AS known WHERE id NOT IN (SELECT id FROM instances WHERE name = ANY (:names))
"""
_INSERT_SAMPLES = f"{insert_samples(DATABASE, 'sample', replace=False)} RETURNING collected_date"
_INSERT_TOTALS = insert_samples(
    INSTANCE,
    """(
    SELECT instance_id, collected_date, sum(size_mb) AS total_size_mb, count(*) AS database_count,
           CAST(NULL AS bigint) AS total_size_bytes, max(collected_at) AS collected_at
    FROM sample GROUP BY instance_id, collected_date)""",
    replace=False,
)


def _register(connection: Connection, today: date) -> dict[str, Registration]:
    """Register the servers that are not there yet; return by name their ids and when they were retired."""
    retired_on = today - timedelta(days=RETIRED_DAYS_AGO)
    for number, server in enumerate(FLEET, start=1):
        retired = server.fate == "retired"
        connection.execute(
            text(
                "INSERT INTO instances (name, db_type, host, port, is_active, deleted_at) "
                "VALUES (:name, :db_type, :host, :port, :is_active, :deleted_at) ON CONFLICT (name) DO NOTHING"
            ),
            {
                "name": server.name,
                "db_type": server.db_type,
                "host": f"192.0.2.{number}",
                "port": server.port,
                "is_active": not retired,
                "deleted_at": retired_on if retired else None,
            },
        )
    rows = connection.execute(
        text("SELECT name, id, deleted_at FROM instances WHERE name = ANY (:names)"),
        {"names": [server.name for server in FLEET]},
    )
    return {row.name: (row.id, row.deleted_at.date() if row.deleted_at else None) for row in rows}


def _copy(connection: Connection, known: dict[str, Registration], first_day: date, today: date) -> None:
    columns = "instance_id, database_name, size_mb, data_size_mb, log_size_mb, used_size_mb, collected_date"
    columns += ", collected_at"
    copy_rows(connection, f"COPY sample ({columns}) FROM STDIN", _samples(known, first_day, today))


Row = tuple[int, str, int, int | None, int | None, int | None, date, datetime]


def _samples(known: dict[str, Registration], first_day: date, today: date) -> Iterator[Row]:
    for server in FLEET:
        instance_id, retired_on = known[server.name]
        for day in _measured_days(server, first_day, retired_on or today):
            yield from (_sample(server, instance_id, number, day) for number in range(server.databases))


def _measured_days(server: SampleServer, first_day: date, last_day: date) -> Iterator[date]:
    day = max(first_day, last_day - timedelta(days=NEW_SERVER_DAYS)) if server.fate == "new" else first_day
    while day <= last_day:
        outage = server.fate == "outage" and (day - EPOCH).days % 365 in OUTAGE_DAYS
        missing = _noise(server.name, day.isoformat()) % MISSING_ONE_DAY_IN == 0
        if not outage and not missing:
            yield day
        day += timedelta(days=1)


def _sample(server: SampleServer, instance_id: int, number: int, day: date) -> Row:
    name = f"{THEMES[number % len(THEMES)]}{'' if number < len(THEMES) else number}"
    size = _size_mb(server.name, name, (day - EPOCH).days)
    event = EVENTS.get((server.name, name))
    if event is not None:
        times = day.year - EPOCH.year + (day.month >= event.month)
        size = int(size * event.factor**times)
    used = None
    if (server.name, name) == FIXED_FILES:
        size = _size_mb(server.name, name, 0)
        used = size * 7 // 8 * _used_permille(day) // 1000
    log = size // 8 if server.db_type == "sqlserver" else None
    data = size - (log or 0) if server.db_type != "mysql" else None
    return (instance_id, name, size, data, log, used, day, datetime.combine(day, MEASURED_AT))


def _used_permille(day: date) -> int:
    """Share of fixed files that is used: it grows through the year, and falls when it is purged."""
    least = FULLEST_PERMILLE * PURGE.factor
    return int(least + (FULLEST_PERMILLE - least) * day.timetuple().tm_yday / 366)


def _size_mb(server: str, database: str, day: int) -> int:
    """Size on a day counted from the epoch: a base, one of six ways to develop, and a little noise."""
    seed = _noise(server, database)
    base = 200 + seed % 60_000
    daily_permille = (seed >> 8) % 4 + 1
    size = (
        base + base * daily_permille * day // 2000,
        base + base * daily_permille * day // 1000,
        base + base * day * day // 250_000,
        max(base - base * day // 2500, base // 10),
        base + base * (day % 45) // 60,
        base,
    )[(seed >> 4) % 6]
    noise = _noise(server, database, str(day)) % 5 - 2
    return max(size + size * noise // 1000, 0)


def _noise(*parts: str) -> int:
    """Return a number that depends on the parts only; not random, so that every machine loads the same fleet."""
    return zlib.crc32("/".join(parts).encode())


DECLARED_BY = "capacity demo"
DISK_TO_TOTAL = 1.3
DISK_STEP_MB = 64 * 1024
DAYS_TO_QUOTA = 10
"""Days of growth until the quota is reached: few enough that somebody has to act."""
UNREAD_SLOT_OF = "postgresql-core-01"
"""The server of the sample with a replication slot that nobody reads."""
PLANNED_ON = "sqlserver-bi-01"
ADDED_MB = 64 * 1024
WITHOUT_LIMIT = ("mysql-web-01", "oracle-ledger-01")
# oracle-archive-01 has no known owner, as happens everywhere.
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
BUDGETS = {"finance": 385, "commerce": 170, "web": 135, "platform": 130, "data": 125, "sales": 110}
"""The budgets of teams per month, from the last month to the next twelve."""


def declare_sample(engine: Engine, today: date) -> None:
    """Declare limits, steps, labels, prices and budgets; each kind once, so that changes by users are kept.

    Servers without a volume get a disk, and one database a quota that fills within weeks. Raises DatabaseError.
    """
    if not stored_limits(engine):
        with engine.connect() as connection:
            declare_limits(engine, [*_disks(connection, today), *_quota(connection, today)], by=DECLARED_BY)
    if not stored_steps(engine):
        declare_steps(engine, _steps(engine, today), by=DECLARED_BY)
    if not stored_labels(engine):
        declare_labels(engine, _labels(today), today, by=DECLARED_BY)
    if not stored_prices(engine):
        declare_prices(engine, PRICES, today, by=DECLARED_BY, restate=True)
    if not declared_budgets(engine):
        months = MONTHLY.back(coming_months(today, MOST_MONTHS)[-1], MOST_MONTHS + 2)
        budgets = [
            MonthBudget(f"team={team}", month.start, Decimal(amount))
            for team, amount in BUDGETS.items()
            for month in months
        ]
        declare_budgets(engine, budgets, by=DECLARED_BY)


def _steps(engine: Engine, today: date) -> list[SizeStep]:
    with engine.connect() as connection:
        rows = connection.execute(text(_MEASURED), {"today": today})
        first_days = {(row.server, row.database): row.first_day for row in rows}
    return [
        SizeStep(server, database, date(year, event.month, 1), event.note)
        for (server, database), event in {**EVENTS, FIXED_FILES: PURGE}.items()
        for year in range(today.year - 2, today.year + 1)
        if first_days.get((server, database), date.max) < date(year, event.month, 1) <= today
    ]


def _labels(today: date) -> list[Label]:
    environments = [Label(server.name, None, "environment", "production", ALWAYS) for server in FLEET]
    teams = [Label(server, None, "team", team, ALWAYS) for server, team in TEAMS.items()]
    overriding = [Label(server, database, "team", team, ALWAYS) for server, database, team in OF_DATABASES]
    server, database, team = MOVED
    months = today.year * 12 + today.month - 1 - MONTHS_AGO
    moved = Label(server, database, "team", team, date(months // 12, months % 12 + 1, 1))
    return [*environments, *teams, *overriding, moved]


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


def _add_measured_beside_sizes(connection: Connection) -> None:
    """Add volumes, ceilings, space outside databases, tables and indexes of the days in the table `sample`."""
    names = [server.name for server in FLEET if server.name in WITH_VOLUME]
    parameters = {"names": names, "volumes": [WITH_VOLUME[name] for name in names], "unread": UNREAD_SLOT_OF}
    for statement in (_VOLUMES, _CEILINGS, _PARTS):
        connection.execute(text(statement), parameters)
    connection.execute(text(_OBJECTS))


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
SELECT i.name AS server, s.database_name AS database, min(s.collected_date) AS first_day
FROM database_size_stats s JOIN instances i ON i.id = s.instance_id
GROUP BY i.name, s.database_name HAVING max(s.collected_date) = :today
"""
# MySQL reports no volumes: those of the sample come from monitoring, as in reality. A volume also contains files of no
# database, and is extended by 64 GiB when less than a tenth is free.
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
# Only SQL Server and Oracle report ceilings of databases. That of files with a fixed size is their size.
_CEILINGS = """
INSERT INTO database_limit_stats
    (collected_date, instance_id, database_name, limit_mb, fills_files, is_unlimited, volumes, source, collected_at)
SELECT s.collected_date, s.instance_id, s.database_name,
       CASE WHEN s.used_size_mb IS NOT NULL THEN s.data_size_mb
            WHEN i.db_type IN ('sqlserver', 'oracle') THEN ceil(s.size_mb * 1.2 / 65536.0) * 65536 END,
       CASE WHEN s.used_size_mb IS NOT NULL THEN true END,
       i.db_type NOT IN ('sqlserver', 'oracle'), ARRAY[g.volume],
       CASE WHEN i.db_type = 'mysql' THEN 'imported' ELSE 'measured' END, s.collected_date + time '03:00'
FROM sample s JOIN instances i ON i.id = s.instance_id
JOIN unnest(CAST(:names AS varchar[]), CAST(:volumes AS varchar[])) AS g (name, volume) ON g.name = i.name
ON CONFLICT DO NOTHING
"""
# The largest part outside databases is known. The WAL that an unread slot retains grows with the databases.
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
# its pages are split, and is built again at New Year, when the dead rows of the actors are removed, too. Nobody writes
# to the orders of 2019. Shares of the size, in permille; the rest is unexplained.
_OBJECTS = """
WITH measured AS (
    SELECT s.instance_id, i.name, s.database_name, s.collected_date AS day, s.collected_at,
           s.size_mb * 1048576 AS size_bytes,
           least(100 + (s.collected_date - date '2024-01-01') / 3, 700) AS logged,
           least(greatest(CAST(extract(doy FROM s.collected_date) AS integer) - 180, 0), 100) AS split,
           CAST(extract(doy FROM s.collected_date) AS integer) AS day_of_year,
           s.collected_date - date '2024-01-01' AS age
    FROM sample s JOIN instances i ON i.id = s.instance_id
    WHERE (i.name, s.database_name) IN (('postgresql-core-01', 'audit'), ('mysql-orders-01', 'orders'))
      AND extract(isodow FROM s.collected_date) = 1
), shares AS (
    SELECT m.*, o.kind, o.schema_name, o.table_name, o.object_name, o.permille, o.indexed, o.object_count,
           o.free_permille, o.daily_rows, o.fixed_bytes
    FROM measured m CROSS JOIN LATERAL (VALUES
        ('audit', 'table', 'public', '', 'audit_log', logged, logged / 8, NULL, 20, 90000, NULL),
        ('audit', 'index', 'public', 'audit_log', 'audit_log_pkey', logged / 8, NULL, NULL, NULL, NULL, NULL),
        ('audit', 'table', 'public', '', 'actors', (880 - logged - logged / 8) / 2, 0, NULL, 200 + day_of_year, 4000,
         NULL),
        ('audit', 'others', '', '', '', 100, NULL, 143, NULL, NULL, NULL),
        ('orders', 'table', '', '', 'order_lines', 420, 120 + 120 * split / 100, NULL, 180, 70000, NULL),
        ('orders', 'index', '', 'order_lines', 'by_product', 120 + 120 * split / 100, NULL, NULL, NULL, NULL, NULL),
        ('orders', 'table', '', '', 'orders', 140, 0, NULL, 0, 20000, NULL),
        ('orders', 'table', '', '', 'orders_2019', NULL, 0, NULL, 0, 0, 1610612736),
        ('orders', 'others', '', '', '', 60, NULL, 12, NULL, NULL, NULL)
    ) AS o (database_name, kind, schema_name, table_name, object_name, permille, indexed, object_count, free_permille,
            daily_rows, fixed_bytes)
    WHERE o.database_name = m.database_name
), entered AS (
    SELECT day, instance_id, database_name, collected_at, kind, schema_name, table_name, object_name,
           coalesce(fixed_bytes, size_bytes * permille / 1000) AS size_bytes,
           size_bytes * CAST(indexed AS bigint) / 1000 AS index_bytes,
           CAST(object_count AS integer) AS object_count,
           coalesce(fixed_bytes, size_bytes * permille / 1000) * CAST(free_permille AS integer) / 1000 AS free_bytes,
           CAST(daily_rows AS bigint) * age AS written_rows,
           CASE WHEN daily_rows IS NOT NULL THEN timestamp '2024-01-01' END AS counted_since
    FROM shares
    UNION ALL
    SELECT day, instance_id, database_name, collected_at, 'unexplained', '', '', '',
           size_bytes - CAST(sum(coalesce(fixed_bytes, size_bytes * permille / 1000)) AS bigint), NULL, NULL, NULL,
           NULL, NULL
    FROM shares GROUP BY day, instance_id, database_name, collected_at, size_bytes
)
INSERT INTO object_size_stats
    (collected_date, instance_id, database_name, collected_at, kind, schema_name, table_name, object_name, size_bytes,
     index_bytes, object_count, free_bytes, written_rows, counted_since, is_exact)
SELECT *, kind = 'table' FROM entered
ON CONFLICT DO NOTHING
"""
