"""`python -m benchmarks.reading`: what dashboards ask, over years of aggregates of a large fleet, with the plans.

The aggregates are generated as they are, without samples: every window of three years, but of the daily ones only the
newest months, because a thousand days of 200,000 databases alone would fill 80 GB. A question for one database touches
one index entry a window, wherever it lies, and one for a window the rows of that window.
"""

from __future__ import annotations

import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import click
from sqlalchemy import Connection, Engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import SERVERS, Fleet, prepare, without_indexes
from benchmarks.server import temporary_server
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.tables import database_size_aggregations

LIMIT_MS = 100
WRITERS = 2

QUESTIONS = {
    "one database's daily history": """
SELECT period_start, avg_size_mb, size_change_mb, growth_rate FROM database_size_aggregations
WHERE instance_id = :server AND database_name = 'database-7' AND period_type = 'daily' ORDER BY period_start""",
    "one database's history in every period": """
SELECT period_type, period_start, avg_size_mb, growth_rate FROM database_size_aggregations
WHERE instance_id = :server AND database_name = 'database-7' ORDER BY period_type, period_start""",
    "top growers of a month": """
SELECT i.name, i.db_type, a.database_name, a.avg_size_mb, a.size_change_mb, a.growth_rate
FROM database_size_aggregations a JOIN instances i ON i.id = a.instance_id
WHERE a.period_type = 'monthly' AND a.period_start = :month AND a.size_change_mb > 0
ORDER BY a.size_change_mb DESC LIMIT 20""",
    "the fleet's total by engine, month by month": """
SELECT i.db_type, a.period_start, sum(a.total_size_mb) AS total_size_mb, sum(a.database_count) AS databases
FROM instance_size_aggregations a JOIN instances i ON i.id = a.instance_id
WHERE a.period_type = 'monthly' GROUP BY i.db_type, a.period_start ORDER BY a.period_start, i.db_type""",
    "the newest day of every server": """
SELECT i.name, i.db_type, a.total_size_mb, a.database_count, a.total_size_change_mb
FROM instance_size_aggregations a JOIN instances i ON i.id = a.instance_id
WHERE a.period_type = 'daily' AND a.period_start =
    (SELECT max(period_start) FROM instance_size_aggregations WHERE period_type = 'daily') ORDER BY i.name""",
    "the hundred largest databases on a day": """
SELECT i.name, a.database_name, a.avg_size_mb, a.growth_rate
FROM database_size_aggregations a JOIN instances i ON i.id = a.instance_id
WHERE a.period_type = 'daily' AND a.period_start = :day ORDER BY a.avg_size_mb DESC LIMIT 100""",
    "the same, of the newest day, in one statement": """
SELECT i.name, a.database_name, a.avg_size_mb, a.growth_rate
FROM (SELECT max(period_start) AS day FROM database_size_aggregations WHERE period_type = 'daily') newest
CROSS JOIN LATERAL (
    SELECT * FROM database_size_aggregations b WHERE b.period_type = 'daily' AND b.period_start = newest.day
    ORDER BY b.avg_size_mb DESC LIMIT 100) a
JOIN instances i ON i.id = a.instance_id ORDER BY a.avg_size_mb DESC""",
    "the newest window of each period": """
SELECT p.name, (SELECT max(period_start) FROM database_size_aggregations a WHERE a.period_type = p.name)
FROM unnest(ARRAY['daily', 'weekly', 'monthly', 'quarterly', 'yearly']) AS p (name)""",
}

_DATABASES = """
INSERT INTO database_size_aggregations
    (instance_id, database_name, period_type, period_start, period_end, avg_size_mb, max_size_mb, min_size_mb,
     data_count, avg_data_size_mb, max_data_size_mb, min_data_size_mb, size_change_mb, size_change_percent,
     data_size_change_mb, data_size_change_percent, growth_rate, trend_direction)
SELECT i, 'database-' || n, :period, :start, :end, size, size, size, :days, size, size, size,
       size % 997 - 400, size % 13 - 5, size % 997 - 400, size % 13 - 5, size % 13 - 5, 'stable'
FROM generate_series(1, :servers) i, generate_series(1, :databases) n,
     LATERAL (SELECT (1000 + (i * 7919 + n * 104729) % 50000 + :number * n) AS size) s
"""
_TOTALS = """
INSERT INTO instance_size_aggregations
    (instance_id, period_type, period_start, period_end, total_size_mb, avg_size_mb, max_size_mb, min_size_mb,
     data_count, database_count, total_size_change_mb, total_size_change_percent, growth_rate, trend_direction)
SELECT instance_id, period_type, period_start, period_end, sum(avg_size_mb), avg(avg_size_mb), sum(max_size_mb),
       sum(min_size_mb), max(data_count), count(*), sum(size_change_mb), 1, 1, 'stable'
FROM database_size_aggregations GROUP BY instance_id, period_type, period_start, period_end
"""


@click.command()
@click.option("--size", "fleet", type=Size(), default="1000x20x1096", show_default=True)
@click.option("--daily-days", default=90, show_default=True, help="How many days of daily rows.")
@click.option("--rounds", default=5, show_default=True, help="Repetitions; medians are shown.")
@click.option("--plans", is_flag=True, help="Print the plan of each question too.")
def main(*, fleet: Fleet, daily_days: int, rounds: int, plans: bool) -> None:
    """Ask each question, and say whether it took at most 100 ms."""
    with temporary_server() as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        prepare(engine, fleet)
        started = time.perf_counter()
        rows = generate_aggregates(engine, fleet, daily_days)
        click.echo(f"{rows:,} rows of databases generated in {time.perf_counter() - started:.0f} s", err=True)
        _ask_all(engine, fleet, rounds, plans=plans)
        _show_sizes(engine)
        engine.dispose()


def generate_aggregates(engine: Engine, fleet: Fleet, daily_days: int) -> int:
    """Write every window of the fleet, of the daily ones the newest; return how many rows of databases that are."""
    windows = [
        (period, number, window)
        for period in PERIODS.values()
        for number, window in enumerate(period.windows_between(_first_day(fleet, period, daily_days), fleet.last_day))
    ]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET maintenance_work_mem = '512MB'"))
        connection.execute(text(SERVERS), {"servers": fleet.servers})
        with without_indexes(connection, database_size_aggregations.name), ThreadPoolExecutor(WRITERS) as pool:
            rows = sum(pool.map(lambda window: _generate_window(engine, fleet, *window), windows))
        connection.execute(text(_TOTALS))
        connection.execute(text("VACUUM (ANALYZE) database_size_aggregations, instance_size_aggregations, instances"))
    return rows


def _first_day(fleet: Fleet, period: Period, daily_days: int) -> date:
    return fleet.last_day - timedelta(days=daily_days - 1) if period.days == 1 else fleet.first_day


def _generate_window(engine: Engine, fleet: Fleet, period: Period, number: int, window: Window) -> int:
    names = {"period": period.name, "start": window.start}
    sizes = {"end": window.end, "days": window.days, "servers": fleet.servers, "databases": fleet.databases}
    with engine.begin() as connection:
        return connection.execute(text(_DATABASES), {**names, **sizes, "number": number}).rowcount


def _ask_all(engine: Engine, fleet: Fleet, rounds: int, *, plans: bool) -> None:
    click.echo("| question | rows | median | slowest |\n| --- | --- | --- | --- |")
    month = PERIODS["monthly"].last(fleet.last_day).start
    with engine.connect() as connection:
        for name, question in QUESTIONS.items():
            values = {"server": fleet.servers // 2, "month": month, "day": fleet.last_day}
            used = {key: value for key, value in values.items() if f":{key}" in question}
            taken = []
            for _ in range(rounds + 1):
                started = time.perf_counter()
                rows = connection.execute(text(question), used).all()
                taken.append((time.perf_counter() - started) * 1000)
            # The first one reads from disk what the others find in memory.
            middle, slowest = statistics.median(taken[1:]), max(taken[1:])
            verdict = "" if middle <= LIMIT_MS else f" (over {LIMIT_MS} ms)"
            click.echo(f"| {name} | {len(rows):,} | {middle:.1f} ms{verdict} | {slowest:.1f} ms |")
            if plans:
                _show_plan(connection, question, used)


def _show_plan(connection: Connection, question: str, used: dict[str, object]) -> None:
    """Print the nodes that found rows: an empty partition is looked at in microseconds, and there are many."""
    for row in connection.execute(text(f"EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF) {question}"), used):
        if "actual" not in row[0] or re.search(r"rows=[1-9]", row[0]):
            click.echo(f"    {row[0][:140]}", err=True)


def _show_sizes(engine: Engine) -> None:
    query = """
SELECT parent.relname AS name, sum(pg_table_size(i.inhrelid)) / 1024 / 1024 AS table_mb,
       sum(pg_indexes_size(i.inhrelid)) / 1024 / 1024 AS index_mb, count(*) AS partitions
FROM pg_inherits i JOIN pg_class parent ON parent.oid = i.inhparent AND parent.relkind = 'p'
GROUP BY 1 ORDER BY 1"""
    with engine.connect() as connection:
        for row in connection.execute(text(query)):
            click.echo(
                f"{row.name}: {row.partitions} partitions, {row.table_mb:,.0f} MB, indexes {row.index_mb:,.0f} MB",
                err=True,
            )


if __name__ == "__main__":
    main()
