"""A deterministic sample fleet for the demo: twelve servers of four engines, a hundred databases.

The size of a database on a day is a pure function of its name and the day, so loading again changes
nothing and loading a day later adds one day. The fleet shows what a real one does: steady and fast growth,
shrinkage, purges, single missing days, an outage of ten days, a new server and a retired one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from sqlalchemy import Connection, Date, Engine, func, select, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, insert_samples
from capacity_assets.base.errors import CapacityError
from capacity_assets.database.engine import copy_rows
from capacity_assets.database.tables import metadata

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
    """What changes the size of one database by a factor on the first of a month, every year."""

    month: int
    factor: float
    note: str


EVENTS = {
    ("oracle-archive-01", "orders"): YearlyEvent(3, 0.6, "archive of the year purged"),
    ("sqlserver-bi-01", "crm"): YearlyEvent(6, 1.5, "history of another system imported"),
}
WITH_VOLUME = {
    "mysql-orders-01": "/var/lib/mysql",
    "postgresql-core-01": "/data",
    "sqlserver-erp-01": "D:\\",
    "sqlserver-bi-01": "E:\\",
    "oracle-archive-01": "DATA",
}
"""Servers that report their volume, and its name."""


# Number and retirement, which is decided once, when the fleet is first loaded.
Registered = tuple[int, date | None]


@dataclass(frozen=True)
class LoadedFleet:
    """What loading did: samples added, and the days they belong to (None when nothing was new)."""

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
            "This database holds the sample fleet of `capacity demo`, and real figures do not mix with it. Set "
            "CAPACITY_HOME to another folder, as `make own` does, or CAPACITY_DATABASE_URL to a database of your own, "
            "or remove the fleet with `capacity demo --remove`."
        )


def other_instances(engine: Engine) -> int:
    """Count the instances with a registration or with history that do not belong to the sample fleet."""
    with engine.connect() as connection:
        return int(connection.execute(text(_OTHERS), {"names": [server.name for server in FLEET]}).scalar_one())


def remove_sample_fleet(engine: Engine) -> int:
    """Empty all capacity tables, in one transaction; return how many samples went.

    The caller makes sure that they hold nothing else, by `other_instances`.
    """
    # What the queue of changes and the ledger say of these samples goes with them.
    emptied = ", ".join(table.name for table in metadata.sorted_tables)
    with engine.begin() as connection:
        samples = int(connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar_one())
        connection.execute(text(f"TRUNCATE {emptied}"))
    return samples


def load_sample_fleet(
    engine: Engine, first_day: date, today: date, add_limits: Callable[[Connection], None] = lambda _connection: None
) -> LoadedFleet:
    """Insert whatever is missing of the fleet and its samples from `first_day` to `today`, in one transaction.

    `add_limits` adds the limits that were measured with the samples in the temporary table `sample`.
    """
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
        add_limits(connection)
        if samples:
            # Everything is read at once, long before the server would gather statistics by itself.
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


def _register(connection: Connection, today: date) -> dict[str, Registered]:
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


def _copy(connection: Connection, known: dict[str, Registered], first_day: date, today: date) -> None:
    columns = "instance_id, database_name, size_mb, data_size_mb, log_size_mb, collected_date, collected_at"
    copy_rows(connection, f"COPY sample ({columns}) FROM STDIN", _samples(known, first_day, today))


Row = tuple[int, str, int, int | None, int | None, date, datetime]


def _samples(known: dict[str, Registered], first_day: date, today: date) -> Iterator[Row]:
    for server in FLEET:
        instance_id, retired_on = known[server.name]
        for day in _measured_days(server, first_day, retired_on or today):
            for number in range(server.databases):
                yield _sample(server, instance_id, number, day)


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
    log = size // 8 if server.db_type == "sqlserver" else None
    data = size - (log or 0) if server.db_type != "mysql" else None
    return (instance_id, name, size, data, log, day, datetime.combine(day, MEASURED_AT))


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
