"""A database as the legacy application left it: its narrow types, its NOT NULL changes, optionally partitioned."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.database.tables import CAPACITY_TABLES, instances
from tests.fleet import load_csv


@dataclass(frozen=True)
class LegacyShape:
    """What differs between installations."""

    partitioned: bool = False
    unique_key: bool = True
    period_check: bool = False


def create_legacy_tables(engine: Engine, shape: LegacyShape) -> None:
    with engine.begin() as connection:
        for statement in _statements(shape):
            connection.exec_driver_sql(statement)


def _statements(shape: LegacyShape) -> list[str]:
    by_start = " PARTITION BY RANGE (period_start)" if shape.partitioned else ""
    by_day = " PARTITION BY RANGE (collected_date)" if shape.partitioned else ""
    check = ", CHECK (period_type IN ('daily', 'weekly', 'monthly', 'quarterly'))" if shape.period_check else ""
    statements = [
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('legacy-head')",
        """CREATE TABLE instances (
            id serial PRIMARY KEY, name varchar(255) NOT NULL UNIQUE, db_type varchar(50) NOT NULL,
            host varchar(255) NOT NULL, port int NOT NULL, environment varchar(20) NOT NULL DEFAULT 'production',
            is_active boolean NOT NULL DEFAULT true, deleted_at timestamptz, created_at timestamptz DEFAULT now())""",
        f"""CREATE TABLE database_size_stats (
            id bigserial, instance_id int NOT NULL, database_name varchar(255) NOT NULL, size_mb bigint NOT NULL,
            data_size_mb bigint, log_size_mb bigint, collected_date date NOT NULL,
            collected_at timestamptz NOT NULL DEFAULT now(), created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id, collected_date),
            UNIQUE (instance_id, database_name, collected_date)){by_day}""",
        f"""CREATE TABLE instance_size_stats (
            id serial, instance_id int NOT NULL REFERENCES instances (id), total_size_mb int NOT NULL DEFAULT 0,
            database_count int NOT NULL DEFAULT 0, collected_date date NOT NULL,
            collected_at timestamptz NOT NULL DEFAULT now(), is_deleted boolean NOT NULL DEFAULT false,
            deleted_at timestamptz, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
            PRIMARY KEY (id, collected_date)){by_day}""",
        f"""CREATE TABLE database_size_aggregations (
            id bigserial, instance_id int NOT NULL, database_name varchar(255) NOT NULL,
            period_type varchar(20) NOT NULL, period_start date NOT NULL, period_end date NOT NULL,
            avg_size_mb bigint NOT NULL, max_size_mb bigint NOT NULL, min_size_mb bigint NOT NULL,
            data_count int NOT NULL, avg_data_size_mb bigint, max_data_size_mb bigint, min_data_size_mb bigint,
            avg_log_size_mb bigint, max_log_size_mb bigint, min_log_size_mb bigint,
            size_change_mb bigint NOT NULL DEFAULT 0, size_change_percent numeric(10, 2) NOT NULL DEFAULT 0,
            data_size_change_mb bigint, data_size_change_percent numeric(10, 2),
            log_size_change_mb bigint, log_size_change_percent numeric(10, 2),
            growth_rate numeric(10, 2) NOT NULL DEFAULT 0, calculated_at timestamptz NOT NULL DEFAULT now(),
            created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id, period_start){check}){by_start}""",
        f"""CREATE TABLE instance_size_aggregations (
            id bigserial, instance_id int NOT NULL, period_type varchar(20) NOT NULL, period_start date NOT NULL,
            period_end date NOT NULL, total_size_mb int NOT NULL, avg_size_mb bigint NOT NULL,
            max_size_mb bigint NOT NULL, min_size_mb bigint NOT NULL, data_count int NOT NULL,
            database_count int NOT NULL, avg_database_count numeric(10, 2), max_database_count int,
            min_database_count int, total_size_change_mb bigint, total_size_change_percent numeric(10, 2),
            database_count_change int, database_count_change_percent numeric(10, 2), growth_rate numeric(10, 2),
            trend_direction varchar(20), calculated_at timestamptz NOT NULL DEFAULT now(),
            created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id, period_start),
            CONSTRAINT uq_instance_size_aggregation
                UNIQUE (instance_id, period_type, period_start){check}){by_start}""",
    ]
    if shape.unique_key:
        statements.append(
            "ALTER TABLE database_size_aggregations ADD CONSTRAINT uq_database_size_aggregation "
            "UNIQUE (instance_id, database_name, period_type, period_start)"
        )
    return statements + (_partitions() if shape.partitioned else [])


def _partitions() -> list[str]:
    """Months from December 2024 to July 2025, as the legacy job made them: no default, none beyond."""
    tables = ("database_size_stats", "instance_size_stats", "database_size_aggregations", "instance_size_aggregations")
    months = [date(2024, 12, 1), *(date(2025, month, 1) for month in range(1, 9))]
    return [
        f"CREATE TABLE {table}_{first:%Y_%m} PARTITION OF {table} FOR VALUES FROM ('{first}') TO ('{after}')"
        for table in tables
        for first, after in itertools.pairwise(months)
    ]


def load_legacy_aggregates(engine: Engine) -> dict[str, int]:
    """Load what the legacy system had computed for the sample; return the number of rows by table."""
    names = [level.target.name for level in (DATABASE, INSTANCE)]
    return {name: load_csv(engine, name, f"legacy_{name}") for name in names}


SHAPES = {
    "plain": LegacyShape(),
    "no key, check": LegacyShape(unique_key=False, period_check=True),
    "partitioned by month": LegacyShape(partitioned=True),
    "partitioned, no key, check": LegacyShape(partitioned=True, unique_key=False, period_check=True),
}


def row_counts(engine: Engine) -> dict[str, int]:
    """Rows by table, of the tables that the legacy application knows."""
    with engine.connect() as connection:
        return {
            table.name: connection.execute(text(f"SELECT count(*) FROM {table.name}")).scalar_one()
            for table in (instances, *CAPACITY_TABLES)
        }
