"""`python -m benchmarks.breakdown`: where the time of a window goes, step by step, and what a row costs on disk.

Each line does what the one before does and one thing more: read, sum, compute the figures, write them without a log,
with a log, with the keys, look for stored rows (the hand-written statement), and everything (ours). A line beside these
computes and decides, and writes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine, text

from benchmarks import yardstick
from benchmarks.__main__ import Size, empty, scan
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.server import temporary_server
from capacity_assets.aggregates.figures import aggregation_statement, execute
from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.aggregates.runs import SESSION_OF_A_SLICE, AggregationWork
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock, Period, Window
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine

TARGETS = {
    "write, without a log": "CREATE UNLOGGED TABLE {0}_bare (LIKE {0} INCLUDING DEFAULTS)",
    "and the log": "CREATE TABLE {0}_bare (LIKE {0} INCLUDING DEFAULTS)",
    "and the indexes": "CREATE TABLE {0}_bare (LIKE {0} INCLUDING DEFAULTS INCLUDING INDEXES)",
}


@click.command()
@click.option("--size", "fleet", type=Size(), default="1000x20x62", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Repetitions; medians are shown.")
def main(*, fleet: Fleet, rounds: int) -> None:
    """Measure each step of a day and of a month, slices side by side, and rows on disk."""
    with temporary_server() as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER), parallel_slices=2)
        prepare(engine, fleet)
        generate(engine, fleet)
        click.echo(f"{fleet.servers * fleet.databases:,} databases, both levels\n")
        for name in ("daily", "monthly"):
            period = PERIODS[name]
            _steps(engine, period, period.window_of(fleet.last_day), rounds)
        days = PERIODS["daily"].windows_between(fleet.first_day, fleet.last_day)
        AggregationService(engine, Clock(ZoneInfo("UTC"))).aggregate("daily", days)
        _sizes(engine)
        engine.dispose()


def _steps(engine: Engine, period: Period, window: Window, rounds: int) -> None:
    clock = Clock(ZoneInfo("UTC"))
    service, two = AggregationService(engine, clock), AggregationService(engine, clock, parallel_slices=2)
    before = period.previous(window)
    steps: dict[str, Callable[[], object]] = {
        "read one column": lambda: scan(engine, before, window),
        "and sum all": lambda: yardstick.read(engine, period, window),
        "and compute the figures": lambda: yardstick.figure(engine, period, window),
    }
    for step, create in TARGETS.items():
        steps[step] = lambda create=create: _write(engine, create, period, window)  # type: ignore[misc]
    steps["and stored rows: hand-written"] = lambda: yardstick.compute(engine, period, window)
    steps["compute and decide"] = lambda: _decide(engine, period, window)
    steps["ours"] = lambda: service.aggregate(period, [window])
    steps["ours, two slices side by side"] = lambda: two.aggregate(period, [window])
    taken: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(rounds):
        for step, work in steps.items():
            empty(engine)
            started = time.perf_counter()
            work()
            taken[step].append(time.perf_counter() - started)
    empty(engine)
    log_bytes = _log_written(engine, lambda: service.aggregate(period, [window]))
    click.echo(f"| {period.name} | seconds |\n| --- | --- |")
    for step, seconds in taken.items():
        click.echo(f"| {step} | {statistics.median(seconds):.3f} |")
    click.echo(f"\nwritten to the log: {log_bytes / 1024 / 1024:.1f} MB\n")


def _log_written(engine: Engine, work: Callable[[], object]) -> int:
    """Bytes of the write-ahead log while `work` is done, which nobody else adds to."""
    position, written = (
        "SELECT pg_current_wal_insert_lsn()",
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :before)",
    )
    with engine.connect() as connection:
        before = connection.execute(text(position)).scalar_one()
    work()
    with engine.connect() as connection:
        return int(connection.execute(text(written), {"before": before}).scalar_one())


def _write(engine: Engine, create: str, period: Period, window: Window) -> None:
    with engine.begin() as connection:
        for level in SERVER_LEVELS.values():
            connection.exec_driver_sql(create.format(level.target.name))
            insert = yardstick.statement(level, period).split("ON CONFLICT")[0]
            insert = insert.replace(f"INTO {level.target.name} AS t", f"INTO {level.target.name}_bare")
            connection.execute(text(insert), yardstick.parameters(period, window))
    with engine.begin() as connection:
        for level in SERVER_LEVELS.values():
            connection.exec_driver_sql(f"DROP TABLE {level.target.name}_bare")


def _decide(engine: Engine, period: Period, window: Window) -> None:
    """Compute the figures, and what would happen to each row; count, and write nothing."""
    work = AggregationWork(period, [window], AggregationService(engine, Clock(ZoneInfo("UTC"))).instances(None))
    for level in SERVER_LEVELS.values():
        with engine.connect() as connection:
            connection.execute(SESSION_OF_A_SLICE)
            execute(connection, aggregation_statement(level, dry_run=True), work.parameters())


def _sizes(engine: Engine) -> None:
    """Bytes per row in table and indexes, after every day was computed."""
    query = """
SELECT parent.relname AS name, sum(pg_table_size(i.inhrelid)) AS table_bytes,
       sum(pg_indexes_size(i.inhrelid)) AS index_bytes
FROM pg_inherits i JOIN pg_class parent ON parent.oid = i.inhparent AND parent.relkind = 'p' GROUP BY 1 ORDER BY 1"""
    with engine.connect() as connection:
        for row in connection.execute(text(query)).all():
            rows = connection.exec_driver_sql(f"SELECT count(*) FROM {row.name}").scalar_one()  # noqa: S608
            if rows:
                click.echo(
                    f"{row.name}: {rows:,} rows, {row.table_bytes / rows:.0f} bytes per row, "
                    f"indexes {row.index_bytes / rows:.0f}"
                )


if __name__ == "__main__":
    main()
