"""`python -m benchmarks.pages`: how long the pages take on the server's side, over a large fleet, alone and for many.

Aggregates are generated as in `benchmarks.reading`, up to yesterday; beside them volumes, forecasts of four days, teams
for servers and for every tenth database, samples for three bills, and budgets. Pages are asked over HTTP from the real
server in another process, first of all the first one.
"""

from __future__ import annotations

import gzip
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
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
from capacity_assets.base.settings import CAPACITY_DRIVER, DEFAULT_LABEL_KEYS, HORIZONS_DAYS
from capacity_assets.database.embedded import CAPACITY_DATABASE, embedded_server
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.views import ensure_reader_role
from capacity_assets.ownership.bills import issue_bill

LIMIT_MS = 100
PORT = 3999
START_SECONDS, SECONDS_READING_AHEAD = 60, 30
SECONDS_PER_PAGE = 5
COMPUTED = 5
BILLS = 3
UTC_ZONE = ZoneInfo("UTC")
# Each round asks for something else, `{n}`, because the same again is kept for seconds.
PAGES = {
    "fleet": "/?period={period}",
    "fleet, a range": "/?range=1y&period={period}",
    "changes of a week": "/changes?window={weekly}",
    "servers by growth": "/servers?order=growth&period=monthly&page={n}",
    "databases by growth": "/databases?order=growth&period=monthly&page={n}",
    "databases by size": "/databases?order=size&period=daily&page={n}",
    "databases of an engine": "/databases?order=growth&period=monthly&engine=oracle&page={n}",
    "databases of a team (a tenth)": "/databases?order=growth&period=monthly&label=team%3Dteam-3&page={n}",
    "groups by team": "/groups?by=team&period={period}",
    "a group": "/group?by=team&name=team-{digit}",
    "fills first": "/filling?page={n}",
    "bill": "/bill?by={by}",
    "budget": "/budget?by=team&months={months}",
    "accuracy": "/accuracy?horizon={horizon}",
    "a server": "/server?server={n}",
    "a database, daily": "/database?server=17&name=database-{n}",
    "a database, weekly": "/database?server=18&name=database-{n}&period=weekly",
    "a volume": "/volume?server={n}&name=%2Fdata",
    "tables by growth, of 100 servers": "/tables?page={n}",
    "tables by shrinkage, of 100 servers": "/tables?order=shrinkage&page={n}",
    "tables by size, of 100 servers": "/tables?order=size&page={n}",
    "tables by name, of 100 servers": "/tables?order=name&page={n}",
    "tables that were not written to, of 100 servers": "/tables?order=unwritten&page={n}",
    "tables by dead space, of 100 servers": "/tables?order=free&page={n}",
    "tables by dead space, of a server": "/tables?order=free&server={n}&period=monthly",
    "a table": "/table?server={n}&database=database-1&schema=public&name=object-1",
    "decisions": "/decisions?page={n}",
    "search": "/search?q=base-7+server-1{n}",
    "what if": "/scenario?by={by}",
}
# Other windows than most people ask for, and what computes forecasts or writes a file. They are measured alone.
ALONE = {
    **{f"changes, {name}": f"/changes?period={name}&window={{{name}}}" for name in PERIODS if name != "weekly"},
    "what if a disk were larger": "/scenario?limit_add_gb={n}&limit_server=server-{n}&limit_volume=%2Fdata",
    "groups as a workbook": "/groups?by={by}&format=xlsx",
    "databases as a workbook, 10,000 rows": "/databases?order=growth&period=monthly&page={n}&format=xlsx",
}
LAST_WINDOWS = 7
GROUPED_BY = ("team", "engine", "server", "environment", "service")
PERIODS_ASKED = ("weekly", "monthly", "quarterly", "yearly", "daily")
# One day of the newest month and of the two before it.
_SAMPLES = """
INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date)
SELECT instance_id, database_name, avg_size_mb, least(period_end, :day) FROM database_size_aggregations
WHERE period_type = 'monthly' AND period_start > CAST(:day AS date) - 92
"""
_TOTALS = """
INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date)
SELECT instance_id, total_size_mb, database_count, least(period_end, :day) FROM instance_size_aggregations
WHERE period_type = 'monthly' AND period_start > CAST(:day AS date) - 92
"""
VOLUMES = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(:day AS date) - d, id, '/data', 4000000, 1000000 + id, 'measured'
FROM instances, generate_series(0, 89) AS d
"""
# Of 2,000 databases on 100 servers, eight weeks; sizes fall with their place, as those of most databases do.
OBJECTS = """
INSERT INTO object_size_stats (collected_date, instance_id, database_name, kind, schema_name, table_name, object_name,
                               size_bytes, free_bytes, is_exact, object_count, written_rows)
SELECT a.period_end - 7 * w, a.instance_id, a.database_name, k.kind, 'public', '', k.name,
       avg_size_mb * CAST(1048576 AS bigint) / (5 * n) * (100 + n % 4 * (8 - w)) / 100,
       CASE WHEN n <= 100 THEN avg_size_mb * CAST(1048576 AS bigint) / (5 * n) * (20 + n % 7 / 6 * (8 - w)) / 100 END,
       true,
       CASE k.kind WHEN 'others' THEN 300 END,
       CASE WHEN n <= 100 THEN 1000 + CASE WHEN n % 10 = 0 THEN 0 ELSE 8 - w END END
FROM database_size_aggregations a, generate_series(0, 7) w, generate_series(1, 102) n
CROSS JOIN LATERAL (SELECT CASE n WHEN 101 THEN 'others' WHEN 102 THEN 'unexplained' ELSE 'table' END AS kind,
                           CASE WHEN n <= 100 THEN 'object-' || n ELSE '' END AS name) AS k
WHERE a.period_type = 'daily' AND a.period_start = :day AND a.instance_id <= 100
  AND a.database_name = ANY (ARRAY(SELECT 'database-' || m FROM generate_series(1, 20) m))
"""
# Of the newest day and of 30, 60 and 90 days before it.
_RUNWAYS = """
INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, limit_mb, binds,
    limit_source, change_mb_per_day, history_days, middle_day, probability_7, probability_30, probability_90,
    probability_365, in_time, forecast_30_mb, lower_30_mb, upper_30_mb, forecast_90_mb, lower_90_mb, upper_90_mb,
    actual_30_mb, actual_90_mb)
SELECT CAST(:day AS date) - ago, instance_id, 'database', database_name, 'forecast', CAST(:day AS date) - ago, size,
       size * 2, 'own limit', 'measured', 1, 400,
       CASE WHEN size % 10 = 0 THEN CAST(:day AS date) + CAST(size % 365 AS integer) END,
       0, 0, 0, CASE WHEN size % 10 = 0 THEN 0.6 ELSE 0 END, true,
       size, size - 50, size + 50, size, size - 50, size + 50,
       CASE WHEN ago >= 30 THEN size + size % 97 END, CASE WHEN ago >= 90 THEN size + size % 113 END
FROM (SELECT instance_id, database_name, avg_size_mb AS size FROM database_size_aggregations
      WHERE period_type = 'daily' AND period_start = :day) AS newest, unnest(ARRAY[0, 30, 60, 90]) AS ago
"""
_GROUP_RUNWAYS = """
INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, change_mb_per_day,
    history_days, in_time, forecast_7_mb, lower_7_mb, upper_7_mb, forecast_30_mb, lower_30_mb, upper_30_mb,
    forecast_90_mb, lower_90_mb, upper_90_mb, forecast_365_mb, lower_365_mb, upper_365_mb)
SELECT :day, 0, 'group', label_key || '=' || label_value, 'forecast', :day, size, 1, 400, true,
       size, size - 50, size + 50, size, size - 50, size + 50, size, size - 50, size + 50, size, size - 50, size + 50
FROM (SELECT label_key, label_value, avg_size_mb AS size FROM group_size_aggregations
      WHERE period_type = 'daily' AND period_start = :day AND label_key <> '(total)') AS newest
"""
# What is full within a year, decided for some.
_DECISIONS = """
INSERT INTO capacity_decisions (instance_id, subject, name, declared_at, kind, until_day, note, probability)
SELECT instance_id, subject, name, now(), 'acknowledged', CAST(:day AS date) + 90, 'a ticket', 0.6
FROM capacity_runways WHERE as_of = :day AND middle_day IS NOT NULL AND size_mb % 200 = 0
"""
_MONEY = """
INSERT INTO capacity_prices (engine, key, value, valid_from, price, currency)
VALUES ('', '', '', DATE '0001-01-01', 0.12, 'EUR'), ('oracle', '', '', DATE '0001-01-01', 0.30, 'EUR');
INSERT INTO capacity_budgets (grouped_by, group_name, month, amount, currency)
SELECT 'team', 'team-' || n, CAST(month AS date), 70000, 'EUR'
FROM generate_series(0, 7) n, generate_series(date_trunc('month', CAST(:day AS date)) - interval '2 months',
                                              CAST(:day AS date) + interval '1 year', interval '1 month') month
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
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the fleet there; what is there is not generated.")
def main(*, fleet: Fleet, daily_days: int, rounds: int, readers: int, folder: Path | None) -> None:
    """Ask for each page, and say whether it took at most 100 ms."""
    with _home(folder) as home, embedded_server(home / "postgres") as server:
        engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        done = home / "generated"
        last_day = done.read_text() if done.exists() else (datetime.now(tz=UTC) - timedelta(days=1)).date().isoformat()
        fleet = replace(fleet, last_day=date.fromisoformat(last_day))
        if not done.exists():
            _generate(engine, fleet, daily_days)
            done.write_text(last_day)
        with _served(home, fleet) as process:
            _ask_first()
            [pid_file] = (home / "postgres").rglob("postmaster.pid")
            servers = _Servers(process, int(pid_file.read_text().split()[0]))
            _ask_each(fleet, rounds, servers)
            same = page_path(PAGES["a database, daily"], 30, fleet.last_day)
            together = partial(_ask_together, readers, servers)
            together("each a page that one other asks for too", _paths(fleet, 5, readers // 2) * 2)
            together("each another page", _paths(fleet, 15, readers))
            together("all the same page", [same] * readers)
            together("four pages each", _paths(fleet, 35, readers * 2) * 2)
            _ask_while_computing(engine, fleet, readers)
        engine.dispose()


@contextmanager
def _home(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with temporary_home() as home:
            yield home
    else:
        folder.mkdir(exist_ok=True)
        # As in `temporary_home`.
        folder.chmod(0o711)
        yield folder


def _generate(engine: Engine, fleet: Fleet, daily_days: int) -> None:
    prepare(engine, fleet)
    started = time.perf_counter()
    rows = generate_aggregates(engine, fleet, daily_days)
    click.echo(f"{rows:,} rows of databases generated in {time.perf_counter() - started:.0f} s", err=True)
    _generate_the_rest(engine, fleet)
    click.echo(f"Generated in {time.perf_counter() - started:.0f} s", err=True)


def _generate_the_rest(engine: Engine, fleet: Fleet) -> None:
    _execute(engine, fleet, (_SAMPLES, _TOTALS, VOLUMES, OBJECTS, _RUNWAYS, _DECISIONS, LABELS, *_MONEY.split(";")))
    _execute(engine, fleet, ("VACUUM (ANALYZE)",))
    compute_groups(engine, fleet)
    _execute(engine, fleet, (_GROUP_RUNWAYS,))
    newest = PERIODS["monthly"].window_of(fleet.last_day)
    for month in PERIODS["monthly"].back(newest, BILLS):
        issue_bill(engine, month, _clock(fleet), DEFAULT_LABEL_KEYS)
    _execute(engine, fleet, ("VACUUM (ANALYZE)",))
    with engine.begin() as connection:
        ensure_reader_role(connection)


def _execute(engine: Engine, fleet: Fleet, statements: Sequence[str]) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        for statement in statements:
            connection.execute(text(statement), {"day": fleet.last_day} if ":day" in statement else {})


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

    def __enter__(self) -> int:
        """Return the process ID once it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                _ask("/static/style.css")
            except OSError:
                time.sleep(0.2)
            else:
                break
        return self._process.pid

    def __exit__(self, *_failure: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def _ask(path: str) -> float:
    """Return how long an answer took, in milliseconds, compressed as browsers ask for it."""
    started = time.perf_counter()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", headers={"Accept-Encoding": "gzip"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 -- our own address
            answer.read()
            status = answer.status
    except HTTPError as error:
        status = error.code
    if status != HTTPStatus.OK:
        click.echo(f"{status} {path}", err=True)
    return (time.perf_counter() - started) * 1000


def page_path(path: str, number: int, last_day: date) -> str:
    """Return the address of a page, another one for each number; windows are those up to the last day."""
    windows = {
        name: period.back(period.window_of(last_day), number % LAST_WINDOWS + 1)[0].start
        for name, period in PERIODS.items()
    }
    return path.format(
        **windows,
        n=number + 1,
        digit=number % 10,
        period=PERIODS_ASKED[number % len(PERIODS_ASKED)],
        months=number % 12 + 1,
        by=GROUPED_BY[number % len(GROUPED_BY)],
        horizon=HORIZONS_DAYS[number % len(HORIZONS_DAYS)],
    )


def _ask_first() -> None:
    """Ask for the first page right after the start, and again as a browser does while it is being read."""
    started, statuses, path = time.perf_counter(), list[int](), "/"
    while not statuses or statuses[-1] == HTTPStatus.ACCEPTED:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=60) as answer:
            statuses.append(answer.status)
        time.sleep(1 if answer.status == HTTPStatus.ACCEPTED else 0)
    click.echo(f"First page: {time.perf_counter() - started:.1f} s after the start, {statuses}")
    files = re.findall(r'(?:src|href)="(/(?:static|charts)/[^"]+)"', _packed(path)[1])
    sizes = {one: _packed(one)[0] for one in (path, *files)}
    click.echo(
        f"First load: {sum(sizes.values()) / 1000:.0f} kB compressed, {sizes[path] / 1000:.0f} kB of it the page"
    )
    # What is read ahead.
    for ahead in ("/groups", "/bill", "/accuracy", "/search?q=base"):
        click.echo(f"First {ahead}: {_ask(ahead):,.0f} ms")
    # Readers come to a server that has run for a while.
    time.sleep(SECONDS_READING_AHEAD)


def _packed(path: str) -> tuple[int, str]:
    """Return the compressed size of an answer in bytes, and its text."""
    connection = HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    content, is_packed = answer.read(), answer.getheader("Content-Encoding") == "gzip"
    connection.close()
    return len(content), (gzip.decompress(content) if is_packed else content).decode()


@dataclass(frozen=True)
class _Servers:
    """The process of the pages, and the first one of the PostgreSQL server."""

    pages: int
    postgres: int

    def processor_ms(self, before: tuple[float, float] = (0, 0)) -> tuple[float, float]:
        """Return the processor time of both since `before`, in milliseconds."""
        children = Path(f"/proc/{self.postgres}/task/{self.postgres}/children").read_text().split()
        return _processor_ms(self.pages) - before[0], sum(_processor_ms(int(one)) for one in children) - before[1]


def _processor_ms(process: int) -> float:
    """Return the processor time of the threads of a process, in milliseconds."""
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1_000_000


def _ask_each(fleet: Fleet, rounds: int, servers: _Servers) -> None:
    click.echo("| page | median | slowest | the same again | processor time: server + PostgreSQL |")
    click.echo("| --- | --- | --- | --- | --- |")
    for name, path in (PAGES | ALONE).items():
        taken, used = list[float](), list[tuple[float, float]]()
        for number in range(rounds):
            before = servers.processor_ms()
            taken.append(_ask(page_path(path, number, fleet.last_day)))
            used.append(servers.processor_ms(before))
        again = statistics.median(_ask(page_path(path, number, fleet.last_day)) for number in range(rounds))
        middle = statistics.median(taken)
        verdict = "" if middle <= LIMIT_MS else f" (over {LIMIT_MS} ms)"
        server, database = (statistics.median(one) for one in zip(*used, strict=True))
        cells = [name, f"{middle:.0f} ms{verdict}", f"{max(taken):.0f} ms", f"{again:.0f} ms"]
        click.echo(f"| {' | '.join(cells)} | {server:.0f} + {database:.0f} ms |")


def _paths(fleet: Fleet, first: int, count: int) -> list[str]:
    """Return addresses that nobody asked for yet, of different pages; lists of tables are measured alone."""
    pages = [path for name, path in PAGES.items() if not name.startswith("tables")]
    numbers = range(first, first + count // len(pages) + 1)
    return [page_path(path, number, fleet.last_day) for number in numbers for path in pages][:count]


def _ask_together(readers: int, servers: _Servers, what: str, paths: Sequence[str]) -> None:
    """Ask for all of them at once, as in the morning."""
    started, before = time.perf_counter(), servers.processor_ms()
    with ThreadPoolExecutor(readers) as pool:
        taken = sorted(pool.map(_ask, paths))
    seconds = time.perf_counter() - started
    pages, postgres = servers.processor_ms(before)
    parts = [f"median {statistics.median(taken):.0f} ms", f"nine of ten within {taken[len(taken) * 9 // 10]:.0f} ms"]
    parts += [f"slowest {taken[-1]:.0f} ms", f"processor time {pages:.0f} + {postgres:.0f} ms"]
    click.echo("")
    click.echo(f"{readers} readers at once, {what}: {len(paths)} pages in {seconds:.1f} s: {', '.join(parts)}")


def _ask_while_computing(engine: Engine, fleet: Fleet, readers: int) -> None:
    """Compute a day again and again, alone and while each reader opens a page every few seconds.

    It is one with samples, and not the newest, whose rows would lie scattered when lists of them are measured again.
    """
    runner = AggregationTaskRunner(AggregationService(engine, _clock(fleet)))
    last_of_month = PERIODS["monthly"].window_of(fleet.last_day).start - timedelta(days=1)
    day = PERIODS["daily"].windows_between(last_of_month, last_of_month)

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
            path = list(PAGES.values())[number % len(PAGES)]
            taken.append(_ask(page_path(path, number % 9, fleet.last_day)))
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
