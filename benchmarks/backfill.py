"""`python -m benchmarks.backfill`: three years of a fleet through Dagster, as a person does it in the UI.

Starts `capacity up` on a folder of its own, launches one backfill a period over both levels and all windows, and waits
for the last run. Beside it: the same windows through the service alone, and what Dagster wrote for it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from sqlalchemy import Engine, create_engine, text

from benchmarks.__main__ import Size
from benchmarks.fleet import Fleet, generate
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import load_settings
from capacity_assets.database.engine import disposed
from capacity_assets.orchestration.graph import asset_name
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from capacity_assets.runtime import open_dagster_database, open_engine, prepare_database, task_runner

PORT = 3917
LAUNCH = """mutation($backfill: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $backfill) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL = (
    """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"""
)
FINISHED = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}

RUNS = """
SELECT count(*) AS runs, count(*) FILTER (WHERE status <> 'SUCCESS') AS failed,
       max(end_time) - min(extract(epoch FROM create_timestamp AT TIME ZONE current_setting('TimeZone'))) AS seconds,
       sum(end_time - start_time) AS run_seconds
FROM runs WHERE status <> 'QUEUED'
"""
EVENTS = """
SELECT count(*) AS events, count(*) FILTER (WHERE dagster_event_type = 'ASSET_MATERIALIZATION') AS materializations,
       pg_total_relation_size('event_logs') / 1024 / 1024 AS event_log_mb FROM event_logs
"""


@click.command()
@click.option("--size", "fleet", type=Size(), default="100x20x1096", show_default=True)
def main(*, fleet: Fleet) -> None:
    """Backfill every period, and print how long it took and what it left."""
    last_day = datetime.now(tz=UTC).date() - timedelta(days=1)
    fleet = Fleet(fleet.servers, fleet.databases, fleet.days, last_day)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "CAPACITY_HOME": home,
            "CAPACITY_TIMEZONE": "UTC",
            "CAPACITY_START_DATE": fleet.first_day.isoformat(),
            "CAPACITY_RETENTION_DAYS": "raw=forever,daily=forever",
        }
        settings = load_settings()
        with open_engine(settings) as engine:
            prepare_database(engine, settings)
            seconds = _seconds(lambda: generate(engine, fleet))
            click.echo(f"{fleet.rows:,} samples generated in {seconds:.0f} s", err=True)
            with _served():
                _backfill(fleet)
            with open_dagster_database(settings) as url, disposed(create_engine(url)) as storage:
                _report(storage)
            _service_alone(engine, fleet)


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def _served() -> Iterator[None]:
    """`capacity up` for the length of the block."""
    arguments = [sys.executable, "-m", "capacity_assets.cli", "up", "--port", str(PORT)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 -- our own program
        try:
            click.echo(process.stdout.readline().strip() if process.stdout else "", err=True)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


def _ask(query: str, **variables: object) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 -- as above
        document = json.load(answer)
    if "errors" in document:
        raise click.ClickException(str(document["errors"])[:500])
    return document["data"]


def _backfill(fleet: Fleet) -> None:
    launched = []
    started = time.perf_counter()
    for period in PERIODS.values():
        windows = period.windows_between(fleet.first_day, fleet.last_day)
        parameters = {
            "assetSelection": [{"path": [asset_name(period, level)]} for level in LEVELS.values()],
            "partitionNames": [window.key for window in windows],
        }
        answer = _ask(LAUNCH, backfill=parameters)["launchPartitionBackfill"]
        if "backfillId" not in answer:
            raise click.ClickException(str(answer))
        launched.append(answer["backfillId"])
    while True:
        states = {_ask(BACKFILL, id=one)["partitionBackfillOrError"]["status"] for one in launched}
        if states <= FINISHED:
            break
        time.sleep(1)
    click.echo(f"backfills: {', '.join(sorted(states))}, seen after {time.perf_counter() - started:.0f} s")


def _report(storage: Engine) -> None:
    with storage.connect() as connection:
        runs = connection.execute(text(RUNS)).one()
        events = connection.execute(text(EVENTS)).one()
    click.echo(
        f"through Dagster: {runs.seconds:.0f} s from the first launch to the last success, {runs.runs} runs "
        f"({runs.failed} not successful), at most {PARTITIONS_PER_RUN} windows each; "
        f"{runs.run_seconds:.0f} s inside runs"
    )
    click.echo(
        f"event log: {events.events:,} events, {events.materializations:,} of them materialisations, "
        f"{events.event_log_mb} MB"
    )


def _service_alone(engine: Engine, fleet: Fleet) -> None:
    targets = ", ".join(level.target.name for level in LEVELS.values())
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {targets}, capacity_computed_windows"))
    runner = task_runner(engine, load_settings())
    total = 0.0
    for period in PERIODS.values():
        windows = period.windows_between(fleet.first_day, fleet.last_day)
        chunks = [windows[at : at + PARTITIONS_PER_RUN] for at in range(0, len(windows), PARTITIONS_PER_RUN)]
        seconds = _seconds(lambda period=period, chunks=chunks: [runner.run_period(period, chunk) for chunk in chunks])
        click.echo(f"service alone: {period.name}, {len(windows)} windows, {seconds:.1f} s")
        total += seconds
    click.echo(f"service alone: all periods {total:.0f} s")


if __name__ == "__main__":
    main()
