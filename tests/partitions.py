"""What tests of partitions and retention share: two servers of several months, and where their rows lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date

from sqlalchemy import Engine, Table, select, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.database.partitions import layout_of
from capacity_assets.database.tables import CAPACITY_TABLES
from capacity_assets.history.retention import TableMaintenance, parse_retention
from tests.clocks import TODAY
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

FIRST = date(2025, 1, 1)
# The samples of 2025 are compared with by the windows of 2026.
A_YEAR_LATER = date(2026, 7, 20)
SAMPLE_DAYS = 201
SHORT = {name: PERIODS[name] for name in ("daily", "quarterly")}


def keeper(
    engine: Engine,
    rules: str = "raw=forever,daily=forever",
    periods: Mapping[str, Period] = PERIODS,
    on_step: Callable[[str], None] = print,
) -> TableMaintenance:
    return TableMaintenance(engine, FIRST, parse_retention(rules), periods, on_step)


def partition_names(engine: Engine, table: Table) -> list[str]:
    with engine.connect() as connection:
        return [partition.name for partition in layout_of(connection, table).partitions]


def rows_by_partition(engine: Engine, table: str) -> dict[str, int]:
    # On Citus a row lies in a shard, which is called after its partition and bears a number.
    partition = r"regexp_replace(CAST(tableoid::regclass AS text), '_\d{6,}$', '')"
    with engine.connect() as connection:
        query = f"SELECT {partition} AS name, count(*) AS rows FROM {table} GROUP BY 1 ORDER BY 1"
        return {row.name: row.rows for row in connection.execute(text(query))}


def everything(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the four tables, all columns, wherever it lies."""
    with engine.connect() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=str)
            for table in CAPACITY_TABLES
        }


def add_two_servers(engine: Engine) -> Engine:
    """Register two servers with samples from 2025-01-01 to 2025-07-20."""
    add_instances(engine, [1, 2])
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", "2025-01-01", range(100, 100 + SAMPLE_DAYS)))
        add_instance_sizes(engine, totals(number, "2025-01-01", [(size, 1) for size in range(100, 100 + SAMPLE_DAYS)]))
    return engine


def compute(service: AggregationService, *periods: str, last: date = TODAY) -> None:
    for period in periods:
        compute_windows(service, period, FIRST, last)
