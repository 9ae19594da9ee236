"""`python -m benchmarks.timescale`: ours beside TimescaleDB's hierarchical continuous aggregates, on one server.

`CAPACITY_BENCH_TIMESCALE_BIN` names the programs of a PostgreSQL that has the extension's community edition, which
alone has continuous aggregates. Both get the same samples and answer with the same sums, extremes and counts, which
are compared window by window: a difference ends the run. Theirs keep nothing else; ours keep the change against the
window before and against the year before, percentages, the trend, and say which windows are stale. Databases alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import click
from sqlalchemy import Engine, create_engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.steps import Ours, Side, steps
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.engine import capacity_engine
from tests.other_postgres import other_postgres

VARIABLE = "CAPACITY_BENCH_TIMESCALE_BIN"
SETTINGS = (
    "shared_preload_libraries=timescaledb",
    "timescaledb.telemetry_level=off",
    # Both are asked to compute; nothing computes by itself meanwhile.
    "timescaledb.max_background_workers=4",
    "max_wal_size=8GB",
    "max_locks_per_transaction=512",
    # What tests turn off: writing to the disk is part of what is compared.
    "fsync=on",
)
SIZES = ("size_mb", "data_size_mb", "log_size_mb")
# What each period's aggregate is made of, and how wide it is.
HIERARCHY = {
    "daily": ("samples", "1 day"),
    "weekly": ("daily", "1 week"),
    "monthly": ("daily", "1 month"),
    "quarterly": ("monthly", "3 months"),
    "yearly": ("quarterly", "1 year"),
}


@dataclass(frozen=True)
class _Theirs:
    """Continuous aggregates that are refreshed."""

    engine: Engine

    def create(self) -> None:
        self.execute(
            "CREATE EXTENSION IF NOT EXISTS timescaledb",
            "CREATE TABLE samples (instance_id integer NOT NULL, database_name varchar(255) NOT NULL, "
            "collected_date date NOT NULL, size_mb bigint NOT NULL, data_size_mb bigint, log_size_mb bigint)",
            "SELECT create_hypertable('samples', by_range('collected_date', INTERVAL '1 month'))",
        )

    def aggregate(self) -> None:
        """Create the aggregates, with no rows yet."""
        for period, (source, width) in HIERARCHY.items():
            day = "collected_date" if source == "samples" else "bucket"
            figures = []
            for size in SIZES:
                raw = source == "samples"
                figures += [
                    f"{f'sum({size})' if raw else f'sum(sum_{size})'} AS sum_{size}",
                    f"{f'count({size})' if raw else f'sum(count_{size})'} AS count_{size}",
                    f"min({size if raw else f'min_{size}'}) AS min_{size}",
                    f"max({size if raw else f'max_{size}'}) AS max_{size}",
                ]
            options = "timescaledb.continuous, timescaledb.materialized_only = true"
            query = (
                f"SELECT time_bucket(INTERVAL '{width}', {day}) AS bucket, instance_id, database_name, "  # noqa: S608
                f"{', '.join(figures)} FROM {source} GROUP BY 1, 2, 3"
            )
            self.execute(f"CREATE MATERIALIZED VIEW {period} WITH ({options}) AS {query} WITH NO DATA")

    def compute(self, period: Period, first: date, last: date) -> None:
        windows = period.windows_between(first, last)
        start, end = windows[0].start, windows[-1].end + timedelta(days=1)
        self.execute(f"CALL refresh_continuous_aggregate('{period.name}', '{start}', '{end}')")

    def correct(self, change: str) -> None:
        self.execute(change.replace("database_size_stats", "samples"))

    def follow(self, corrected: date, last: date) -> None:  # noqa: ARG002 -- a refresh is of the days that were corrected
        for period in PERIODS.values():
            self.compute(period, corrected, corrected)

    def rows(self, period: Period) -> list[tuple[object, ...]]:
        query = f"""SELECT CAST(bucket AS date), count(*), sum(sum_size_mb)::numeric, sum(min_size_mb)::numeric,
                           sum(max_size_mb)::numeric, sum(count_size_mb)::bigint
                    FROM {period.name} GROUP BY 1 ORDER BY 1"""  # noqa: S608
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def execute(self, *statements: str) -> None:
        """Execute statements, each by itself: a refresh commits."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET client_min_messages = error"))
            for statement in statements:
                connection.execute(text(statement))


@click.command()
@click.option("--size", "fleet", type=Size(), default="100x20x184", show_default=True)
def main(*, fleet: Fleet) -> None:
    """Backfill, the newest windows and a correction, ours beside theirs."""
    programs = os.environ.get(VARIABLE)
    if not programs:
        message = f"{VARIABLE} names no folder of programs."
        raise click.ClickException(message)
    with other_postgres(Path(programs), *SETTINGS) as server:
        administrator = create_engine(server.url("postgres", CAPACITY_DRIVER), isolation_level="AUTOCOMMIT")
        with administrator.connect() as connection:
            for name in ("ours", "theirs"):
                connection.execute(text(f"CREATE DATABASE {name}"))
            version = connection.execute(text("SHOW server_version")).scalar_one()
        ours, theirs = (
            Ours(capacity_engine(server.url("ours", CAPACITY_DRIVER))),
            _Theirs(create_engine(server.url("theirs", CAPACITY_DRIVER))),
        )
        _fill(fleet, ours, theirs)
        with theirs.engine.connect() as connection:
            extension = connection.execute(text("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"))
            click.echo(f"PostgreSQL {version}, TimescaleDB {extension.scalar_one()}")
        click.echo(f"{fleet.servers * fleet.databases:,} databases, {fleet.days:,} days\n")
        click.echo("| step | ours | TimescaleDB | ours / theirs |\n|---|---|---|---|")
        for what, work in steps(fleet):
            _measure(what, work, ours, theirs)
        for one in (ours.engine, theirs.engine, administrator):
            one.dispose()


def _fill(fleet: Fleet, ours: Ours, theirs: _Theirs) -> None:
    prepare(ours.engine, fleet)
    generate(ours.engine, fleet)
    theirs.create()
    columns = f"instance_id, database_name, collected_date, {', '.join(SIZES)}"
    copied = f"COPY (SELECT {columns} FROM database_size_stats) TO STDOUT"  # noqa: S608
    with ours.engine.connect() as source, theirs.engine.connect() as target:
        reading, writing = (one.connection.driver_connection.cursor() for one in (source, target))  # type: ignore[union-attr]
        with reading.copy(copied) as out, writing.copy(f"COPY samples ({columns}) FROM STDIN") as into:
            for block in out:
                into.write(block)
        target.connection.driver_connection.commit()  # type: ignore[union-attr]
    # The same ways to a sample as ours has.
    theirs.execute("CREATE UNIQUE INDEX ON samples (instance_id, database_name, collected_date)", "ANALYZE samples")
    theirs.aggregate()


def _measure(what: str, work: Callable[[Side], None], ours: Ours, theirs: _Theirs) -> None:
    taken: list[float] = []
    for side in (ours, theirs):
        started = time.perf_counter()
        work(side)
        taken.append(time.perf_counter() - started)
        with side.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE)"))
    for period in PERIODS.values():
        # Between the correction and its following, each holds what it held.
        if ours.rows(period) != theirs.rows(period):
            message = f"{what}: the {period.name} rows differ"
            raise click.ClickException(message)
    click.echo(f"| {what} | {taken[0]:.2f} s | {taken[1]:.2f} s | {taken[0] / taken[1]:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
