"""Small fleets for tests, as rows of plain Python values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import psycopg
from sqlalchemy import Engine, Table, insert, select, text

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.tables import database_size_stats, instance_size_stats, instances, object_size_stats

SAMPLE = Path(__file__).with_name("sample")
Row = dict[str, object]
LARGEST_BIGINT = 2**63 - 1
FIRST_WEEK = PERIODS["daily"].windows_between(date(2025, 3, 1), date(2025, 3, 7))


def add_instances(engine: Engine, ids: Iterable[int], **values: object) -> None:
    rows = [
        {"id": number, "name": f"server-{number}", "db_type": "postgresql", "host": "192.0.2.1", "port": 5432} | values
        for number in ids
    ]
    with engine.begin() as connection:
        connection.execute(insert(instances), rows)


def add_objects(engine: Engine, server: int, database: str, days: Mapping[date, Mapping[str, int]]) -> None:
    """Add tables of a database with their sizes in MiB on some days; the database has no others."""
    with engine.begin() as connection:
        for day, tables in days.items():
            rows = [("table", name, size_mb) for name, size_mb in tables.items()]
            for kind, name, size_mb in (*rows, ("unexplained", "", 0)):
                values = {"collected_date": day, "instance_id": server, "database_name": database, "kind": kind}
                values |= {"schema_name": "", "table_name": "", "object_name": name, "size_bytes": size_mb * 1024**2}
                connection.execute(insert(object_size_stats), {**values, "is_exact": True})


BESIDE_SIZES = (
    """
INSERT INTO capacity_collection_attempts (collected_date, instance_id, status)
SELECT CAST(:day AS date), id, 'collected' FROM instances WHERE name = :name
    """,
    """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(:day AS date), id, '/data', 1000, 10, 'measured' FROM instances WHERE name = :name
    """,
    """
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, is_unlimited, volumes, source)
SELECT CAST(:day AS date), id, 'orders', true, ARRAY['/data'], 'measured' FROM instances WHERE name = :name
    """,
    """
INSERT INTO server_part_stats (collected_date, instance_id, part_kind, part_name, size_bytes)
SELECT CAST(:day AS date), id, 'wal', '', 1048576 FROM instances WHERE name = :name
    """,
    """
INSERT INTO object_size_stats (collected_date, instance_id, database_name, kind, schema_name, table_name, object_name,
                               size_bytes, is_exact)
SELECT CAST(:day AS date), id, 'orders', 'table', 'public', '', 'audit', 10, true FROM instances WHERE name = :name
    """,
    """
INSERT INTO capacity_collection_targets (instance_id, tls, sizing) SELECT id, 'off', 'files' FROM instances
WHERE name = :name
    """,
    "INSERT INTO capacity_imports (fingerprint, source, target, position, counts) VALUES ('x', 'x', 'x', 1, '{}')",
    "INSERT INTO capacity_imported_days SELECT id, '', 'x', datemultirange(daterange(:day, :day, '[]')) "
    "FROM instances WHERE name = :name",
)


def add_beside_sizes(engine: Engine, server: str, day: date) -> None:
    """Add one row of a server to each table of samples that are not sizes."""
    with engine.begin() as connection:
        for statement in BESIDE_SIZES:
            connection.execute(text(statement), {"name": server, "day": day})


def add_database_sizes(engine: Engine, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows with at least instance_id, database_name, collected_date and size_mb."""
    _add(
        engine,
        database_size_stats,
        [{"data_size_mb": None, "log_size_mb": None, "used_size_mb": None, **row} for row in rows],
    )


def add_instance_sizes(engine: Engine, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows with at least instance_id, collected_date, total_size_mb and database_count."""
    _add(engine, instance_size_stats, [{"is_deleted": False, **row} for row in rows])


def _add(engine: Engine, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows in one statement, so that triggers fire once."""
    columns = ", ".join(rows[0])
    statement = (
        f"INSERT INTO {table.name} ({columns}) "
        f"SELECT {columns} FROM json_populate_recordset(CAST(NULL AS {table.name}), :rows)"
    )
    with engine.begin() as connection:
        connection.execute(text(statement), {"rows": json.dumps(rows, default=str)})


def sizes(
    instance_id: int, database: str, first_day: str, values: Iterable[int | None], **more: object
) -> list[Mapping[str, object]]:
    """Return one row per day from `first_day`; None skips the day."""
    start = date.fromisoformat(first_day)
    return [
        {
            "instance_id": instance_id,
            "database_name": database,
            "collected_date": start + timedelta(days=number),
            "size_mb": value,
            **more,
        }
        for number, value in enumerate(values)
        if value is not None
    ]


def totals(instance_id: int, first_day: str, values: Iterable[tuple[int, int] | None]) -> list[Mapping[str, object]]:
    """Return one row (total_size_mb, database_count) per day from `first_day`; None skips the day."""
    start = date.fromisoformat(first_day)
    return [
        {
            "instance_id": instance_id,
            "collected_date": start + timedelta(days=number),
            "total_size_mb": value[0],
            "database_count": value[1],
        }
        for number, value in enumerate(values)
        if value is not None
    ]


def stored(engine: Engine, level: Level, period: str | None = None) -> list[Row]:
    """Return the rows of the aggregate table by key and window, with all columns."""
    target = level.target
    query = select(target).order_by(target.c.period_type, *(target.c[key] for key in level.keys), target.c.period_start)
    if period:
        query = query.where(target.c.period_type == period)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def figures(engine: Engine, level: Level, period: str | None = None) -> dict[tuple[object, ...], Row]:
    """Computed columns by (keys..., period_type, period_start), without ids and timestamps."""
    wanted = level.figures
    return {
        (*(row[key] for key in level.keys), row["period_type"], row["period_start"]): {
            name: row[name] for name in wanted
        }
        for row in stored(engine, level, period)
    }


def load_csv(engine: Engine, table: str, name: str | None = None) -> int:
    """Copy a file of the sample, by default that of the table's name; return the number of rows."""
    lines = (SAMPLE / f"{name or table}.csv").read_bytes()
    columns = lines.partition(b"\n")[0].decode()
    with engine.begin() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        with raw.cursor() as cursor:
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT csv, HEADER)".encode()) as copy:
                copy.write(lines)
            return cursor.rowcount


def load_sample(engine: Engine) -> None:
    for table in ("instances", "database_size_stats", "instance_size_stats"):
        load_csv(engine, table)


def add_overflowing_instance(engine: Engine, instance_id: int, day: date) -> None:
    """Add two valid rows of one day, as in a legacy table without its unique index; their sum exceeds bigint."""
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX IF EXISTS uq_instance_size_stats_instance_date"))
    rows = totals(instance_id, day.isoformat(), [(LARGEST_BIGINT, 1)])
    add_instance_sizes(engine, [*rows, *rows])


def raw_rows(engine: Engine, level: Level) -> dict[tuple[object, ...], list[Row]]:
    """Return the samples of a level, by the keys of their subjects."""
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(level.source.select()).mappings()]
    by_key: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        by_key.setdefault(tuple(row[key] for key in level.keys), []).append(row)
    return by_key
