"""A synthetic fleet of any size, generated inside PostgreSQL as fast as it writes: about a minute for ten million rows.

Indexes are dropped for the load and made again after it, and the triggers that note changes rest meanwhile. Sizes are
a pure function of server, database and day: they grow, shrink and stand still, and a sample in two hundred is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, text

from capacity_assets.database.schema import initialise
from capacity_assets.database.tables import database_size_stats, instance_size_stats
from capacity_assets.history.retention import Retention, TableMaintenance


@dataclass(frozen=True)
class Fleet:
    """How many servers, databases on each, and days with samples up to `last_day`."""

    servers: int
    databases: int
    days: int
    last_day: date = date(2025, 12, 31)

    @property
    def first_day(self) -> date:
        """First day with samples."""
        return self.last_day - timedelta(days=self.days - 1)

    @property
    def rows(self) -> int:
        """Samples of databases, were none missing."""
        return self.servers * self.databases * self.days


SERVERS = """
INSERT INTO instances (id, name, db_type, host, port)
SELECT n, 'server-' || n, (ARRAY['mysql', 'postgresql', 'sqlserver', 'oracle'])[1 + n % 4], '192.0.2.1', 5432
FROM generate_series(1, :servers) n
"""
_DATABASES = """
INSERT INTO database_size_stats
    (instance_id, database_name, size_mb, data_size_mb, log_size_mb, collected_date)
SELECT i, name, size, size - size / 8, CASE WHEN i % 4 = 2 THEN size / 8 END, CAST(:first_day AS date) + d
FROM generate_series(0, :days - 1) d
CROSS JOIN LATERAL (
    SELECT i, 'database-' || n AS name,
           greatest(base + base * ((i + n) % 7 - 2) * d / 4000 + (i * n + d * 31) % 5, 0) AS size
    FROM generate_series(1, :servers) i, generate_series(1, :databases) n,
         LATERAL (SELECT (1000 + (i * 7919 + n * 104729) % 50000) AS base) b
    WHERE (i * 31 + n * 17 + d * 13) % 200 <> 0
) AS day  -- day after day, as samples arrive, so that a day's rows lie together
"""
_TOTALS = """
INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date)
SELECT instance_id, sum(size_mb), count(*), collected_date FROM database_size_stats
GROUP BY collected_date, instance_id
"""
_INDEXES = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition,
       (SELECT pg_get_constraintdef(c.oid) FROM pg_constraint c WHERE c.conindid = i.indexrelid LIMIT 1) AS constraint
FROM pg_index i WHERE i.indrelid = to_regclass(:table) ORDER BY i.indexrelid
"""


def prepare(engine: Engine, fleet: Fleet) -> None:
    """Create the schema and its partitions as they are on the last day with samples, nothing being too old."""
    initialise(engine)
    TableMaintenance(engine, fleet.first_day, Retention({})).prepare(fleet.last_day)


def generate(engine: Engine, fleet: Fleet) -> None:
    """Fill the three source tables, which must be empty, and have PostgreSQL gather statistics."""
    sizes = {"servers": fleet.servers, "databases": fleet.databases, "days": fleet.days, "first_day": fleet.first_day}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET synchronous_commit = off"))
        connection.execute(text("SET maintenance_work_mem = '512MB'"))
        connection.execute(text(SERVERS), {"servers": fleet.servers})
        for table, statement in ((database_size_stats.name, _DATABASES), (instance_size_stats.name, _TOTALS)):
            _load(connection, table, statement, sizes)
        connection.execute(text("VACUUM (ANALYZE) database_size_stats, instance_size_stats, instances"))


def _load(connection: Connection, table: str, statement: str, sizes: dict[str, object]) -> None:
    used = {name: value for name, value in sizes.items() if f":{name}" in statement}
    with without_indexes(connection, table):
        connection.execute(text(statement), used)


@contextmanager
def without_indexes(connection: Connection, table: str) -> Iterator[None]:
    """Drop the indexes of a table and let its triggers rest; make both again at the end."""
    indexes = connection.execute(text(_INDEXES), {"table": table}).all()
    connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    for index in indexes:
        kind = f"ALTER TABLE {table} DROP CONSTRAINT" if index.constraint else "DROP INDEX"
        connection.exec_driver_sql(f"{kind} {index.name}")
    yield
    for index in indexes:
        add = f"ALTER TABLE {table} ADD CONSTRAINT {index.name} {index.constraint}"
        # As PostgreSQL prints it, it would be made on the parent alone.
        connection.exec_driver_sql(add if index.constraint else index.definition.replace(" ON ONLY ", " ON ", 1))
    connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")
