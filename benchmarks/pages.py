"""`python -m benchmarks.pages`: how long the pages take on the server's side, over a large fleet, alone and for many.

Aggregates are generated as in `benchmarks.reading`; samples, volumes and forecasts of the newest day beside them, teams
for servers and for every tenth database. Pages are asked over HTTP from the real server in another process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from datetime import time as time_of_day
from pathlib import Path
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet, prepare
from benchmarks.reading import generate_aggregates
from benchmarks.server import temporary_home
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import CAPACITY_DATABASE, embedded_server
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.views import ensure_reader_role

LIMIT_MS = 100
PORT = 3999
START_SECONDS = 60
SECONDS_PER_PAGE = 5
COMPUTED = 5
UTC_ZONE = ZoneInfo("UTC")
# Each round asks for something else, `{n}`, because the same again is kept for seconds.
PAGES = {
    "fleet": "/?period={period}",
    "servers by growth": "/servers?order=growth&period=monthly&page={n}",
    "databases by growth": "/databases?order=growth&period=monthly&page={n}",
    "databases by size": "/databases?order=size&period=daily&page={n}",
    "databases of an engine": "/databases?order=growth&period=monthly&engine=oracle&page={n}",
    "databases of a team (a tenth)": "/databases?order=growth&period=monthly&label=team%3Dteam-3&page={n}",
    "groups by team": "/groups?by=team&period={period}",
    "a group": "/group?by=team&name=team-{n}",
    "fills first": "/filling?page={n}",
    "a server": "/server?server={n}",
    "a database, daily": "/database?server=17&name=database-{n}",
    "a database, weekly": "/database?server=18&name=database-{n}&period=weekly",
    "a volume": "/volume?server={n}&name=%2Fdata",
    "tables by growth, of 25 servers": "/tables?page={n}",
    "tables by dead space, of a server": "/tables?order=free&server={n}&period=monthly",
    "a table": "/table?server={n}&database=database-1&schema=public&name=object-1",
    "search": "/search?q=base-7+server-1{n}",
}
PERIODS_ASKED = ("weekly", "monthly", "quarterly", "yearly", "daily")
_SAMPLES = """
INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date)
SELECT instance_id, database_name, avg_size_mb, :day FROM database_size_aggregations
WHERE period_type = 'daily' AND period_start = :day
"""
_TOTALS = """
INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date)
SELECT instance_id, total_size_mb, database_count, :day FROM instance_size_aggregations
WHERE period_type = 'daily' AND period_start = :day
"""
VOLUMES = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(:day AS date) - d, id, '/data', 4000000, 1000000 + id, 'measured'
FROM instances, generate_series(0, 89) AS d
"""
# Of 25 servers, half a year of weeks.
OBJECTS = """
INSERT INTO object_size_stats (collected_date, instance_id, database_name, kind, schema_name, table_name, object_name,
                               size_bytes, free_bytes, is_exact, object_count)
SELECT a.period_end - 7 * w, a.instance_id, a.database_name, k.kind, 'public', '', k.name,
       avg_size_mb * 1048576 / 102 + n * (26 - w) * 100000, n % 5 * 10000000, true,
       CASE k.kind WHEN 'others' THEN 300 END
FROM database_size_aggregations a, generate_series(0, 25) w, generate_series(1, 102) n
CROSS JOIN LATERAL (SELECT CASE n WHEN 101 THEN 'others' WHEN 102 THEN 'unexplained' ELSE 'table' END AS kind,
                           CASE WHEN n <= 100 THEN 'object-' || n ELSE '' END AS name) AS k
WHERE a.period_type = 'daily' AND a.period_start = :day AND a.instance_id <= 25
"""
_RUNWAYS = """
INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, limit_mb, binds,
    limit_source, change_mb_per_day, history_days, middle_day, probability_7, probability_30, probability_90,
    probability_365, in_time, forecast_30_mb, lower_30_mb, upper_30_mb)
SELECT :day, instance_id, 'database', database_name, 'forecast', :day, avg_size_mb, avg_size_mb * 2, 'own limit',
       'declared', 1, 400,
       CASE WHEN avg_size_mb % 10 = 0 THEN CAST(:day AS date) + CAST(avg_size_mb % 365 AS integer) END,
       0, 0, 0, CASE WHEN avg_size_mb % 10 = 0 THEN 0.6 ELSE 0 END, true, avg_size_mb, avg_size_mb, avg_size_mb
FROM database_size_aggregations WHERE period_type = 'daily' AND period_start = :day
"""
LABELS = """
INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value)
SELECT id, '', 'team', DATE '0001-01-01', 'team-' || id % 10 FROM instances
UNION ALL SELECT id, '*7', 'team', DATE '0001-01-01', 'team-' || (id + 1) % 10 FROM instances
"""


@click.command()
@click.option("--size", "fleet", type=Size(), default="1000x20x400", show_default=True)
@click.option("--daily-days", default=30, show_default=True, help="How many days of daily rows.")
@click.option("--rounds", default=5, show_default=True, help="Repetitions; medians are shown.")
@click.option("--readers", default=50, show_default=True, help="How many ask at once at the end.")
def main(*, fleet: Fleet, daily_days: int, rounds: int, readers: int) -> None:
    """Ask for each page, and say whether it took at most 100 ms."""
    with temporary_home() as folder, embedded_server(folder / "postgres") as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        prepare(engine, fleet)
        started = time.perf_counter()
        rows = generate_aggregates(engine, fleet, daily_days)
        _generate_the_rest(engine, fleet)
        click.echo(f"{rows:,} rows of databases generated in {time.perf_counter() - started:.0f} s", err=True)
        with _served(folder, fleet):
            # Answered when the server has read ahead, as it does when it starts.
            for path in ("/", "/groups", "/search?q=base"):
                _ask(path)
            _ask_each(rounds)
            _ask_together(readers)
            _ask_while_computing(engine, fleet, readers)
        engine.dispose()


def _generate_the_rest(engine: Engine, fleet: Fleet) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        for statement in (_SAMPLES, _TOTALS, VOLUMES, OBJECTS, _RUNWAYS):
            connection.execute(text(statement), {"day": fleet.last_day})
        connection.execute(text(LABELS))
        connection.execute(text("VACUUM (ANALYZE)"))
    started = time.perf_counter()
    compute_groups(engine, fleet)
    click.echo(f"Groups computed in {time.perf_counter() - started:.0f} s", err=True)
    with engine.begin() as connection:
        ensure_reader_role(connection)


def _clock(fleet: Fleet) -> Clock:
    return Clock(UTC_ZONE, now=lambda: datetime.combine(fleet.last_day, time_of_day(12), tzinfo=UTC))


def compute_groups(engine: Engine, fleet: Fleet) -> None:
    """Compute the groups of every window."""
    service = AggregationService(engine, _clock(fleet))
    for period in PERIODS.values():
        windows = period.windows_between(fleet.first_day, fleet.last_day)
        service.aggregate(period, windows, RunOptions(levels=("group",)))


class _served:  # noqa: N801 -- reads as what it does
    """The pages in a process of their own."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        environment = {"CAPACITY_HOME": str(folder), "CAPACITY_START_DATE": fleet.first_day.isoformat(), "PATH": ""}
        arguments = [sys.executable, "-m", "capacity_assets.cli", "serve", "--port", str(PORT)]
        self._process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603 -- our own

    def __enter__(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                _ask("/static/style.css")
            except OSError:
                time.sleep(0.2)
            else:
                return

    def __exit__(self, *_failure: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def _ask(path: str) -> float:
    """Return how long an answer took, in milliseconds."""
    started = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - started) * 1000


def page_path(path: str, number: int) -> str:
    """Return the address of a page, another one for each number."""
    return path.format(n=number + 1, period=PERIODS_ASKED[number % len(PERIODS_ASKED)])


def _ask_each(rounds: int) -> None:
    click.echo("| page | median | slowest | the same again |\n| --- | --- | --- | --- |")
    for name, path in PAGES.items():
        taken = [_ask(page_path(path, number)) for number in range(rounds)]
        again = statistics.median(_ask(page_path(path, number)) for number in range(rounds))
        middle = statistics.median(taken)
        verdict = "" if middle <= LIMIT_MS else f" (over {LIMIT_MS} ms)"
        click.echo(f"| {name} | {middle:.0f} ms{verdict} | {max(taken):.0f} ms | {again:.0f} ms |")


def _ask_together(readers: int) -> None:
    # Every second one asks for what somebody asked for before, as in the morning.
    paths = [page_path(path, 5 + number) for number in range(4) for path in PAGES.values()]
    asked = [paths[(number // 2) % len(paths)] for number in range(readers * 4)]
    started = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        taken = sorted(pool.map(_ask, asked))
    seconds = time.perf_counter() - started
    parts = [f"median {statistics.median(taken):.0f} ms", f"nine of ten within {taken[len(taken) * 9 // 10]:.0f} ms"]
    parts += [f"slowest {taken[-1]:.0f} ms"]
    click.echo("")
    click.echo(f"{readers} readers at once, {len(asked)} pages in {seconds:.1f} s: {', '.join(parts)}")


def _ask_while_computing(engine: Engine, fleet: Fleet, readers: int) -> None:
    """Compute a day again and again, alone and while each reader opens a page every few seconds."""
    runner = AggregationTaskRunner(AggregationService(engine, _clock(fleet)))
    day = PERIODS["daily"].windows_between(fleet.last_day, fleet.last_day)

    def compute() -> float:
        started = time.perf_counter()
        runner.run_period("daily", day, RunOptions(recompute=True))
        return time.perf_counter() - started

    compute()
    alone = [compute() for _ in range(COMPUTED)]
    stop, taken = threading.Event(), list[float]()

    def read(number: int) -> None:
        time.sleep(SECONDS_PER_PAGE * number / readers)
        while not stop.is_set():
            taken.append(_ask(page_path(list(PAGES.values())[number % len(PAGES)], number % 9)))
            stop.wait(SECONDS_PER_PAGE)

    with ThreadPoolExecutor(readers) as pool:
        for number in range(readers):
            pool.submit(read, number)
        time.sleep(SECONDS_PER_PAGE)
        beside = [compute() for _ in range(COMPUTED)]
        stop.set()
    slower = statistics.median(beside) / statistics.median(alone)
    pages = f"{len(taken)} pages: median {statistics.median(taken):.0f} ms, slowest {max(taken):.0f} ms"
    click.echo(
        f"A day computed in {statistics.median(alone):.1f} s alone; beside {readers} readers {slower:.2f} times that"
    )
    click.echo(f"They asked a page every {SECONDS_PER_PAGE} s each, {pages}")


if __name__ == "__main__":
    main()
