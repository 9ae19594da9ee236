"""`python -m benchmarks.importing`: a million rows of history, timed; then again, killed on the way and continued.

The yardstick is the least that could be done: the same file by PostgreSQL's own COPY into a table without keys.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import click
from sqlalchemy import Engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet
from benchmarks.server import temporary_server
from capacity_assets.base.settings import CAPACITY_DRIVER, Settings
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine
from capacity_assets.runtime import prepare_database

TABLES = "instances, database_size_stats, instance_size_stats, capacity_imports"
COMMAND = [sys.executable, "-m", "capacity_assets.cli", "import"]


def write(path: Path, fleet: Fleet) -> int:
    """Write the history; return its number of rows."""
    days = [date(2025, 1, 1) + timedelta(days=number) for number in range(fleet.days)]
    rows = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["server", "database", "day", "size_mb"])
        for number, day in enumerate(days):
            for server in range(fleet.servers):
                for database in range(fleet.databases):
                    writer.writerow([f"server-{server}", f"db-{database}", day, 1000 + database * 10 + number])
                    rows += 1
    return rows


def yardstick(engine: Engine, path: Path) -> float:
    """Time a plain COPY."""
    began = time.perf_counter()
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE plain (server text, database text, day date, size_mb bigint)"))
        with (
            connection.connection.cursor().copy("COPY plain FROM STDIN (FORMAT csv, HEADER)") as copy,
            path.open("rb") as file,
        ):
            while chunk := file.read(1024 * 1024):
                copy.write(chunk)
    return time.perf_counter() - began


def stored(engine: Engine) -> tuple[int, int, int]:
    """Samples, their sum, and the sum of the totals."""
    query = "SELECT count(*), coalesce(sum(size_mb), 0), (SELECT coalesce(sum(total_size_mb), 0) FROM instance_size_stats) FROM database_size_stats"  # noqa: E501
    with engine.connect() as connection:
        count, size_mb, total_mb = connection.execute(text(query)).one()
    return int(count), int(size_mb), int(total_mb)


def imported(path: Path, environment: dict[str, str]) -> tuple[float, dict[str, int]]:
    """Time an import from end to end, the command's start included."""
    began = time.perf_counter()
    arguments = [*COMMAND, str(path), "--register-as", "postgresql", "--json"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    counts: dict[str, int] = json.loads(done.stdout)["counts"]
    return time.perf_counter() - began, {name: count for name, count in counts.items() if count}


def killed(path: Path, environment: dict[str, str], engine: Engine, at_rows: int) -> int:
    """Begin an import and kill it when so many rows are stored; return how many are."""
    arguments = [*COMMAND, str(path), "--register-as", "postgresql", "--json"]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603
    while stored(engine)[0] < at_rows and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return stored(engine)[0]


@click.command()
@click.option("--size", "fleet", type=Size(), default="500x20x100", show_default=True)
def main(*, fleet: Fleet) -> None:
    """Import a history of so many servers, databases and days."""
    with tempfile.TemporaryDirectory() as folder, temporary_server() as server:
        url = server.url(CAPACITY_DATABASE, CAPACITY_DRIVER)
        engine = capacity_engine(url)
        prepare_database(engine, Settings())
        environment = os.environ | {"CAPACITY_DATABASE_URL": url.render_as_string(hide_password=False)}
        path = Path(folder) / "history.csv"
        rows = write(path, fleet)
        click.echo(f"{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB")
        plain = yardstick(engine, path)
        click.echo(f"plain COPY into a table without keys: {plain:.1f} s")
        seconds, counts = imported(path, environment)
        whole = stored(engine)
        click.echo(f"import: {seconds:.1f} s ({seconds / plain:.1f} times), {counts}")
        seconds, counts = imported(path, environment)
        click.echo(f"the same again: {seconds:.1f} s, {counts}")
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {TABLES}"))
        kept = killed(path, environment, engine, rows // 2)
        seconds, counts = imported(path, environment)
        click.echo(f"killed with {kept:,} rows stored; the same command: {seconds:.1f} s, {counts}")
        click.echo(f"stored as without the kill: {stored(engine) == whole}")
        engine.dispose()


if __name__ == "__main__":
    main()
