"""`python -m benchmarks.runways`: issuing the runways of a day of a large fleet, beside a plain scan of its samples.

After that, scenarios as the page What if computes them.

Everything runs on an embedded PostgreSQL with stock settings in a temporary folder; what counts is the ratio.
"""

from __future__ import annotations

import resource
import time
from datetime import date
from decimal import Decimal

import click
from sqlalchemy import Engine, text

from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.server import temporary_server
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.scenarios import Growth, LimitChange, Scenario, new_database_everywhere
from capacity_assets.ownership.scenario_results import read_fits, result_of

# All databases of a server are on one disk.
_DISKS = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(:day AS date) - d, id, '/data', 4000000, 1000000 + 100 * d, 'measured'
FROM instances, generate_series(0, 89) AS d
"""
_ON_DISKS = """
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, is_unlimited, volumes, source)
SELECT collected_date, instance_id, database_name, true, ARRAY['/data'], 'measured' FROM database_size_stats
WHERE collected_date = :day
"""
_SCAN = "SELECT instance_id, database_name, sum(size_mb) FROM database_size_stats GROUP BY 1, 2"


@click.command()
@click.option("--servers", default=50, show_default=True)
@click.option("--databases", default=100, show_default=True, help="Databases of each server.")
@click.option("--days", default=400, show_default=True)
def main(servers: int, databases: int, days: int) -> None:
    """Load a fleet, scan it, issue its runways twice, and compute scenarios."""
    fleet = Fleet(servers, databases, days)
    with temporary_server() as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        try:
            prepare(engine, fleet)
            generate(engine, fleet)
            with engine.begin() as connection:
                for statement in (_DISKS, _ON_DISKS):
                    connection.execute(text(statement), {"day": fleet.last_day})
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM (ANALYZE)"))
            _measure(engine, fleet.last_day)
        finally:
            engine.dispose()


def _measure(engine: Engine, last: date) -> None:
    began = time.perf_counter()
    with engine.connect() as connection:
        count = len(connection.execute(text(_SCAN)).all())
    scanned = time.perf_counter() - began
    click.echo(f"{count:,} databases: a plain scan with their sums {scanned:.1f} s")
    for attempt in ("first", "again"):
        began = time.perf_counter()
        issued = issue_runways(engine, last, last)
        took = time.perf_counter() - began
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        click.echo(
            f"{attempt}: {sum(issued.states.values()):,} runways issued in {took:.1f} s, "
            f"{took / scanned:.1f} times the scan, "
            f"{issued.written:,} rows written; {peak_mb} MiB at most"
        )
    with engine.connect() as connection:
        [server] = connection.execute(text("SELECT min(name) FROM instances")).scalars()
    of_server = Growth(Decimal("1.2"), server=server)
    scenarios = {
        "all grew faster": Scenario(growth=[Growth(Decimal("1.2"))]),
        "one server grew faster": Scenario([of_server]),
        "a disk were larger": Scenario(limit=[LimitChange(server=server, volume="/data", add_mb=100_000)]),
        "a disk were larger, again": Scenario(limit=[LimitChange(server=server, volume="/data", add_mb=200_000)]),
    }
    for name, scenario in scenarios.items():
        began, busy = time.perf_counter(), time.process_time()
        result = result_of(engine, last, scenario, "engine", ())
        took, busy = time.perf_counter() - began, time.process_time() - busy
        click.echo(
            f"what if {name}: {took:.2f} s, of it {busy:.2f} s in Python, "
            f"{len(result.runways):,} runways changed, {result.unchanged:,} not"
        )
    with engine.connect() as connection:
        began = time.perf_counter()
        read_fits(connection, last, new_database_everywhere(Decimal(300)))
        click.echo(f"where a new database fits: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
