"""`python -m benchmarks.citus`: what each step costs on Citus beside one PostgreSQL, in processor time.

`CAPACITY_TEST_CITUS_BIN` names the programs of a PostgreSQL that has the extension. Processor time of the servers, not
seconds on the clock: the coordinator and both workers share this machine, so nothing is faster here. What it says is
how much more work there is to share out, and how much of it the coordinator cannot. Rows are compared after each step.
Databases alone; nothing is written through to the disk.

The last column follows from the others: with so many workers, each with the cores of one here, what the workers share
takes as long as what only the coordinator can do. Beyond that, further workers make the step no faster.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet, generate, prepare
from benchmarks.pages import LABELS, PAGES, VOLUMES, compute_groups, page_path
from benchmarks.steps import Ours, steps
from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.distributing import distribute
from capacity_assets.database.engine import capacity_engine
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.ownership.bills import issue_bill
from tests.citus import VARIABLE, citus_cluster
from tests.clocks import fixed_clock
from tests.other_postgres import other_postgres
from tests.pages import Pages, served_pages

HEADINGS = ("step", "one server", "Citus", "Citus / one server", "of it the coordinator", "workers until it binds")
NAME = "capacity"
SHARDS = 8
ROUNDS = 5
SETTLE_SECONDS = 0.5
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# As in the cluster.
SETTINGS = ("autovacuum=off", "max_locks_per_transaction=256")


@click.command()
@click.option("--size", "fleet", type=Size(), default="100x20x184", show_default=True)
@click.option("--shards", default=SHARDS, show_default=True)
@click.option("--issues-only", is_flag=True, help="Issue runways and a bill, without aggregates.")
@click.option("--pages", is_flag=True, help="Open every page besides, five times each, on the clock.")
def main(*, fleet: Fleet, shards: int, issues_only: bool, pages: bool) -> None:
    """Backfill, the newest windows and a correction, on one server and on a cluster of three."""
    programs = os.environ.get(VARIABLE)
    if not programs:
        message = f"{VARIABLE} names no folder of programs."
        raise click.ClickException(message)
    with other_postgres(Path(programs), *SETTINGS) as single, citus_cluster(Path(programs)) as cluster:
        cluster.on_every_node(f"CREATE DATABASE {NAME}")
        cluster.join(NAME)
        engines = [
            capacity_engine(server.url(name, CAPACITY_DRIVER))
            for server, name in ((single, "postgres"), (cluster, NAME))
        ]
        for engine in engines:
            prepare(engine, fleet)
            generate(engine, fleet)
        started = time.perf_counter()
        distribute(engines[1], shards=shards)
        click.echo(f"distributed in {time.perf_counter() - started:.1f} s, while writers wait")
        # The first port is the coordinator's.
        folders = [Path(single.socket_folder, "data"), *(cluster.folder / str(port) for port in cluster.ports)]
        one, *nodes = map(_postmaster, folders)
        click.echo(f"{fleet.servers * fleet.databases:,} databases, {fleet.days:,} days, {shards} shards\n")
        click.echo(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
        for what, work in (*(() if issues_only else steps(fleet)), *_issues(fleet)):
            _measure(what, work, [(Ours(engines[0]), [one]), (Ours(engines[1]), nodes)])
        if pages:
            _ask_pages(engines, fleet)
        for engine in engines:
            engine.dispose()


def _issues(fleet: Fleet) -> Iterator[tuple[str, Callable[[Ours], object]]]:
    """What nodes put together and the coordinator takes over, one row per series or database."""
    last = fleet.last_day
    month = PERIODS["monthly"].window_of(last)
    yield "issue the runways of a day", lambda side: issue_runways(side.engine, last, last)
    yield "issue the bill of a month", lambda side: issue_bill(side.engine, month, fixed_clock(last), ["team"])


def _ask_pages(engines: Sequence[Engine], fleet: Fleet) -> None:
    """Ask for each page of both, the same ones, each time another window or list."""
    clock = fixed_clock(fleet.last_day)
    taken: list[dict[str, list[float]]] = []
    for engine in engines:
        service = AggregationService(engine, clock)
        for period in PERIODS.values():
            service.aggregate(period, period.windows_between(fleet.first_day, fleet.last_day))
        with engine.begin() as connection:
            connection.execute(text(LABELS))
            connection.execute(text(VOLUMES), {"day": fleet.last_day})
        issue_runways(engine, fleet.last_day, fleet.last_day)
        compute_groups(engine, fleet)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE)"))
        with served_pages(engine.url, clock=clock) as served:
            taken.append(
                {
                    name: [_milliseconds(served, page_path(path, n, fleet.last_day)) for n in range(ROUNDS)]
                    for name, path in PAGES.items()
                }
            )
    click.echo("\n| page | one server | Citus |\n|---|---|---|")
    for name in PAGES:
        one, several = (statistics.median(side[name]) for side in taken)
        click.echo(f"| {name} | {one:.0f} ms | {several:.0f} ms |")


def _milliseconds(served: Pages, address: str) -> float:
    """How long an answer takes."""
    started = time.perf_counter()
    answer = served.ask(address)
    if answer.status != HTTPStatus.OK:
        raise click.ClickException(answer.text)
    return (time.perf_counter() - started) * 1000


def _postmaster(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def _processor_seconds(postmaster: int) -> float:
    """What a server has used: its main process, its processes that ended, and those that live."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if postmaster in {int(folder.name), int(fields[1])}:
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_PER_SECOND


def _measure(what: str, work: Callable[[Any], object], sides: Sequence[tuple[Ours, Sequence[int]]]) -> None:
    used = []
    for side, servers in sides:
        before = [_processor_seconds(server) for server in servers]
        work(side)
        # Sessions between the nodes end just after the work, and would be counted twice or not at all.
        time.sleep(SETTLE_SECONDS)
        used.append([_processor_seconds(server) - was for server, was in zip(servers, before, strict=True)])
        with side.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE) database_size_stats, database_size_aggregations"))
        time.sleep(SETTLE_SECONDS)
    (single,), nodes = used
    first, second = (_everything(side.engine) for side, _ in sides)
    if first != second:
        message = f"{what}: the rows differ"
        raise click.ClickException(message)
    total = sum(nodes)
    cells = [what, f"{single:.2f} s", f"{total:.2f} s", "", "", ""]
    if min(single, nodes[0]):
        cells[3:] = [f"{total / single:.2f}", f"{nodes[0] / total:.0%}", f"{sum(nodes[1:]) / nodes[0]:.0f}"]
    click.echo(f"| {' | '.join(cells)} |")


def _everything(engine: Engine) -> list[tuple[object, ...]]:
    """Per period and window, how many rows there are and a sum over all that they say."""
    columns = ", ".join([*DATABASE.keys, *DATABASE.figures])
    query = f"""SELECT period_type, period_start, count(*), sum(hashtextextended(CAST(({columns}) AS text), 0)::numeric)
                FROM database_size_aggregations GROUP BY 1, 2 ORDER BY 1, 2"""  # noqa: S608 -- our own names
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


if __name__ == "__main__":
    sys.exit(main())
