"""`python -m benchmarks.long_windows`: the newest month, quarter and year, made of stored windows and of the days.

What lies before the newest window is computed first, as it is in a fleet that is served every day. Then each window is
computed by the hand-written statement from the days, by ours from the days, and by ours from what is stored; rows that
differ end the run. What counts are the ratios within one run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine, text

from benchmarks import yardstick
from benchmarks.__main__ import OF_SERVERS, Size
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.server import temporary_server
from capacity_assets.aggregates.ledger import KnownWindow
from capacity_assets.aggregates.levels import SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import StoredWindow
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock, Period, Window
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine

MEASURED = ("monthly", "quarterly", "yearly")
CLOCK = Clock(ZoneInfo("UTC"))


class FromDays(AggregationService):
    """Reads samples alone."""

    def _usable(self, _level: Level, _known: Sequence[KnownWindow]) -> frozenset[StoredWindow]:
        return frozenset()


@dataclass(frozen=True)
class _Case:
    """One window on one database."""

    engine: Engine
    period: Period
    window: Window

    def forget(self) -> None:
        """Remove the rows of the window, as if it had never been computed."""
        with self.engine.begin() as connection:
            for level in SERVER_LEVELS.values():
                gone = f"DELETE FROM {level.target.name} WHERE period_type = :name AND period_start = :start"  # noqa: S608
                connection.execute(text(gone), {"name": self.period.name, "start": self.window.start})
            connection.execute(
                text("DELETE FROM capacity_computed_windows WHERE period_type = :name AND period_start = :start"),
                {"name": self.period.name, "start": self.window.start},
            )

    def digests(self) -> list[object]:
        """Sum up all figures of the window: equal rows give equal digests."""
        found: list[object] = []
        with self.engine.connect() as connection:
            for level in SERVER_LEVELS.values():
                names = ", ".join((*level.keys, *level.figures))
                query = (
                    f"SELECT count(*), sum(hashtextextended(ROW({names})::text, 0)) FROM {level.target.name} "  # noqa: S608
                    "WHERE period_type = :name AND period_start = :start"
                )
                parameters = {"name": self.period.name, "start": self.window.start}
                found.append(tuple(connection.execute(text(query), parameters).one()))
        return found

    def ways(self) -> dict[str, object]:
        """The ways to compute it, by name."""
        from_days, ours = FromDays(self.engine, CLOCK), AggregationService(self.engine, CLOCK)
        return {
            "hand": lambda: yardstick.compute(self.engine, self.period, self.window),
            "days": lambda: from_days.aggregate(self.period, [self.window], OF_SERVERS),
            "ours": lambda: ours.aggregate(self.period, [self.window], OF_SERVERS),
        }


@click.command()
@click.option("--size", "fleet", type=Size(), default="100x20x1096", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Repetitions; medians are shown.")
def main(*, fleet: Fleet, rounds: int) -> None:
    """Measure the newest month, quarter and year, as far as there are days for the window before: 62, 184, 731."""
    with temporary_server() as server:
        # Of every session here: the hand-written statement would count as a foreign write, after which no sum is taken.
        marked = server.url(CAPACITY_DATABASE, CAPACITY_DRIVER).update_query_dict({"options": "-ccapacity.writer=on"})
        engine = capacity_engine(marked)
        prepare(engine, fleet)
        generate(engine, fleet)
        service = AggregationService(engine, CLOCK)
        last = fleet.last_day
        for name in MEASURED:
            period = PERIODS[name]
            before = period.window_of(last).start - timedelta(days=1)
            service.aggregate(period, period.windows_between(fleet.first_day, before), OF_SERVERS)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        click.echo(f"{fleet.servers * fleet.databases:,} databases, {fleet.days:,} days, both levels\n")
        click.echo("| window | hand-written, from days | ours, from days | ours, from what is stored | ratio |")
        click.echo("| --- | --- | --- | --- | --- |")
        for name in MEASURED:
            case = _Case(engine, PERIODS[name], PERIODS[name].window_of(last))
            if case.period.previous(case.window).start >= fleet.first_day:
                _measure(case, rounds)
        engine.dispose()


def _measure(case: _Case, rounds: int) -> None:
    taken: dict[str, list[float]] = {}
    seen: dict[str, object] = {}
    for _ in range(rounds):
        for way, compute in case.ways().items():
            case.forget()
            started = time.perf_counter()
            compute()  # type: ignore[operator]
            taken.setdefault(way, []).append(time.perf_counter() - started)
            seen[way] = case.digests()
    if len({str(digests) for digests in seen.values()}) != 1:
        message = f"{case.period.name}: the rows differ: {seen}"
        raise click.ClickException(message)
    hand, days, ours = (statistics.median(taken[way]) for way in ("hand", "days", "ours"))
    click.echo(f"| {case.period.name} | {hand:.3f} s | {days:.3f} s | {ours:.3f} s | {ours / hand:.3f} |")


if __name__ == "__main__":
    sys.exit(main())
