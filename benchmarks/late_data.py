"""`python -m benchmarks.late_data`: what a look for changed samples costs, and what recording them costs.

By default on ten million samples. A look reads the queue of changes and the ledger, never the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.server import temporary_server
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine

Result = TypeVar("Result")

ONE_DAY = "UPDATE database_size_stats SET size_mb = size_mb + 1 WHERE collected_date = CAST(:day AS date)"
LOOK = "SELECT * FROM capacity_stale_windows WHERE newest_change IS NOT NULL"
TENTH = "UPDATE database_size_stats SET size_mb = size_mb + 1 WHERE instance_id <= :servers"


@click.command()
@click.option("--size", "fleet", type=Size(), default="1370x20x365", show_default=True)
def main(*, fleet: Fleet) -> None:
    """Compute every window, then change a day, then a tenth of all samples, and time each look."""
    with temporary_server() as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        prepare(engine, fleet)
        _timed(f"generate {fleet.rows:,} samples", lambda: generate(engine, fleet))
        service = AggregationService(engine, Clock(ZoneInfo("UTC")))
        for name, period in PERIODS.items():
            windows = period.windows_between(fleet.first_day, fleet.last_day)
            run = _timed(f"compute every {name} window", partial(service.aggregate, period, windows))
            click.echo(f"  {run.message}")
        for _ in range(3):
            _look(service)
        day = {"day": fleet.last_day.replace(day=1)}
        _timed("change every sample of one day", lambda: _execute(engine, ONE_DAY, day))
        for _ in range(3):
            _look(service)
        with engine.connect() as connection:
            for row in connection.execute(text(f"EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF) {LOOK}")):
                click.echo(f"    {row[0][:150]}")
        servers = {"servers": fleet.servers // 10}
        _timed("change a tenth of all samples", lambda: _execute(engine, TENTH, servers))
        for _ in range(3):
            _look(service)
        _execute(engine, "ALTER TABLE database_size_stats DISABLE TRIGGER USER", {})
        _timed("the same with the triggers off", lambda: _execute(engine, TENTH, servers))
        engine.dispose()


def _look(service: AggregationService) -> None:
    started = time.perf_counter()
    found = len(service.ledger.stale())
    click.echo(f"a look: {found} stale windows in {(time.perf_counter() - started) * 1000:.1f} ms")


def _execute(engine: Engine, statement: str, parameters: Mapping[str, object]) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)


def _timed(what: str, work: Callable[[], Result]) -> Result:
    started = time.perf_counter()
    result = work()
    click.echo(f"{what}: {time.perf_counter() - started:.1f} s")
    return result


if __name__ == "__main__":
    main()
