"""`python -m benchmarks.report`: what is read and drawn for people after a run: largest changes, the growth report."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from zoneinfo import ZoneInfo

import click

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.server import temporary_server
from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine
from capacity_assets.reading.changes import window_sizes
from capacity_assets.report.page import read_report, render


@click.command()
@click.option("--size", "fleet", type=Size(), default="1000x20x92", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Repetitions; medians are shown.")
def main(*, fleet: Fleet, rounds: int) -> None:
    """Measure what people are shown of the newest month, and of all days, of a fleet; 92 days are three months."""
    with temporary_server() as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        prepare(engine, fleet)
        generate(engine, fleet)
        service = AggregationService(engine, Clock(ZoneInfo("UTC")))
        monthly, daily = PERIODS["monthly"], PERIODS["daily"]
        months = monthly.windows_between(fleet.first_day, fleet.last_day)
        days = daily.windows_between(fleet.first_day, fleet.last_day)
        service.aggregate(monthly, months)
        started = time.perf_counter()
        service.aggregate(daily, days, RunOptions(levels=(DATABASE.name,)))
        click.echo(f"compute {len(days)} days, one level: {time.perf_counter() - started:.3f} s")
        _take("the largest changes of these days", rounds, lambda: window_sizes(engine, daily, DATABASE, days))
        _take("of the newest month", rounds, lambda: window_sizes(engine, monthly, DATABASE, months[-1:]))
        report = read_report(engine, monthly, months[-1])
        _take("read the report", rounds, lambda: read_report(engine, monthly, months[-1]))
        _take("draw its page", rounds, lambda: render(report))
        engine.dispose()


def _take(name: str, rounds: int, work: Callable[[], object]) -> None:
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    click.echo(f"{name}: {statistics.median(taken):.3f} s")


if __name__ == "__main__":
    sys.exit(main())
