"""`make bench`: ours, the yardstick, a plain scan and the row-at-a-time baseline in one run, as a table.

Everything runs on an embedded PostgreSQL with stock settings in a temporary folder. Figures are medians; what counts
are the ratios within one run, because machines differ and are shared.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine, text

from benchmarks import row_by_row, yardstick
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.server import temporary_server
from capacity_assets.aggregates.levels import LEVELS, SERVER_LEVELS
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock, Period, Window
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine

MEASURED_PERIODS = ("daily", "monthly", "quarterly")
OF_SERVERS = RunOptions(tuple(SERVER_LEVELS))
"""The levels that the hand-written statements compute too."""
LARGEST_ROW_BY_ROW = 2000
LARGEST_COMPARED = 20_000
HEADINGS = (
    "databases",
    "period",
    "days read",
    "scan",
    "scan and sums",
    "hand-written",
    "ours",
    "ours / hand-written",
    "ours again",
    "recomputed",
    "row at a time",
)


@dataclass
class Measured:
    """Seconds of one fleet and period, a list a kind."""

    databases: int
    period: str
    days_read: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def take(self, kind: str, work: Callable[[], object]) -> None:
        """Time `work` once more."""
        started = time.perf_counter()
        work()
        self.seconds.setdefault(kind, []).append(time.perf_counter() - started)

    def median(self, kind: str) -> float | None:
        """Median of a kind, None where it was not measured."""
        return statistics.median(self.seconds[kind]) if kind in self.seconds else None

    def cells(self) -> list[str]:
        """One row of the table."""
        ours, hand = self.median("ours"), self.median("hand")
        assert ours is not None  # noqa: S101 -- always measured
        assert hand is not None  # noqa: S101 -- always measured
        kinds = [_seconds(self.median(kind)) for kind in ("scan", "sums", "hand", "ours")]
        again = [f"{_seconds(self.median(kind))} ({(self.median(kind) or 0) / ours:.2f})" for kind in ("again", "anew")]
        row = [f"{self.databases:,}", self.period, str(self.days_read), *kinds, f"{ours / hand:.2f}", *again]
        return [*row, _seconds(self.median("row by row"))]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


class Size(click.ParamType[Fleet]):
    """SERVERSxDATABASESxDAYS."""

    name = "SERVERSxDATABASESxDAYS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Fleet:
        """Turn text into a fleet.

        Raises:
            click.BadParameter: it is none.
        """
        parts = str(value).split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):  # noqa: PLR2004 -- see the name
            self.fail(f"{value!r} is no size; write for example 100x20x184", param, ctx)
        servers, databases, days = map(int, parts)
        return Fleet(servers, databases, days)


@click.command()
@click.option("--size", "fleets", type=Size(), multiple=True, default=["100x20x184"], show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Repetitions; medians are shown.")
def main(*, fleets: tuple[Fleet, ...], rounds: int) -> None:
    """Measure one window at both levels; 184 days are needed for quarters, 62 for months, 2 for days."""
    click.echo(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    measured: list[Measured] = []
    for fleet in fleets:
        with temporary_server() as server:
            engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
            measured += _measure(engine, fleet, rounds)
            engine.dispose()
    click.echo(f"\n| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
    for one in measured:
        click.echo(f"| {' | '.join(one.cells())} |")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    click.echo(f"\nLargest memory of this process: {peak_mb} MB")


def _measure(engine: Engine, fleet: Fleet, rounds: int) -> list[Measured]:
    prepare(engine, fleet)
    started = time.perf_counter()
    generate(engine, fleet)
    seconds = time.perf_counter() - started
    with engine.connect() as connection:
        version = connection.execute(text("SHOW server_version")).scalar_one()
    click.echo(f"PostgreSQL {version}: {fleet.rows:,} samples generated in {seconds:.0f} s", err=True)
    found = []
    for name in MEASURED_PERIODS:
        period = PERIODS[name]
        window = period.window_of(fleet.last_day)
        if period.previous(window).start >= fleet.first_day:
            found.append(_measure_period(engine, fleet, period, window, rounds))
    return found


def _measure_period(engine: Engine, fleet: Fleet, period: Period, window: Window, rounds: int) -> Measured:
    service = AggregationService(engine, Clock(ZoneInfo("UTC")))
    databases = fleet.servers * fleet.databases
    before = period.previous(window)
    measured = Measured(databases, period.name, (window.end - before.start).days + 1)
    for number in range(rounds):
        measured.take("scan", lambda: scan(engine, before, window))
        measured.take("sums", lambda: yardstick.read(engine, period, window))
        empty(engine)
        measured.take("hand", lambda: yardstick.compute(engine, period, window))
        expected = _rows(engine) if number == 0 and databases <= LARGEST_COMPARED else None
        empty(engine)
        measured.take("ours", lambda: service.aggregate(period, [window], OF_SERVERS))
        if expected is not None and expected != _rows(engine):
            message = "ours and the hand-written statements differ"
            raise click.ClickException(message)
        measured.take("again", lambda: service.aggregate(period, [window], OF_SERVERS))
        measured.take("anew", lambda: service.aggregate(period, [window], replace(OF_SERVERS, recompute=True)))
    if databases <= LARGEST_ROW_BY_ROW:
        empty(engine)
        measured.take("row by row", lambda: row_by_row.compute(engine, period, window))
    return measured


def scan(engine: Engine, before: Window, window: Window) -> None:
    """Read one column of the days of two windows."""
    with engine.connect() as connection:
        for level in SERVER_LEVELS.values():
            column, table = level.headline.source, level.source.name
            query = f"SELECT max({column}) FROM {table} WHERE collected_date BETWEEN :a AND :b"  # noqa: S608
            connection.execute(text(query), {"a": before.start, "b": window.end}).all()


def empty(engine: Engine) -> None:
    """Remove all aggregates."""
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(level.target.name for level in LEVELS.values())}"))


def _rows(engine: Engine) -> list[list[tuple[object, ...]]]:
    found = []
    with engine.connect() as connection:
        for level in SERVER_LEVELS.values():
            names = ", ".join((*level.keys, *level.figures))
            query = f"SELECT {names} FROM {level.target.name} ORDER BY {', '.join(level.keys)}"  # noqa: S608
            found.append([tuple(row) for row in connection.execute(text(query))])
    return found


if __name__ == "__main__":
    sys.exit(main())
