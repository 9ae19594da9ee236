"""Runs on several machines by Celery: real workers on a real Redis, the shipped configuration, one worker killed."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import dagster as dg
import psutil
import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.collection import share_tags
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance, shipped_file
from tests.daemon import Daemon, partitions_of, running_daemon
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.forked import Forked
from tests.redis_server import RedisServer

# The launcher declares its task anew for each run.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Task name 'execute_job' is already registered"),
    pytest.mark.nightly("starts two workers with their broker"),
]
DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "celery"
PATIENCE_SECONDS = 60


# The command starts Celery as a further program; here it becomes Celery, and nothing is loaded again.
WORKER = """
import os, sys
from celery.__main__ import main as celery
from dagster_celery import cli
def become(arguments, env):
    sys.argv, sys.path[:0] = arguments, env["PYTHONPATH"].split(os.pathsep)
    celery()
os.setsid()
cli.subprocess.check_call = become
cli.main()
"""


@dataclass(frozen=True)
class Worker:
    """A worker process and its log."""

    process: Forked
    log: Path

    @property
    def received(self) -> int:
        """How many runs it was given."""
        return self.log.read_text().count("received")

    def kill_what_executes(self) -> None:
        """Kill the processes that execute runs: the children of Celery."""
        for child in psutil.Process(self.process.pid).children():
            child.kill()

    def kill(self) -> None:
        """Kill it whole, as a machine that vanishes."""
        os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def worker(folder: Path, name: str, queue: str = "dagster") -> Iterator[Worker]:
    """A worker as the page on scale starts it, until the block ends."""
    log = folder / f"{name}.log"
    command = ["worker", "start", "-A", "dagster_celery.app", "-y", str(DEPLOY / "worker.yaml"), "-q", queue]
    process = Forked(*command, "-n", name, "-l", "info", program=WORKER, folder=DEPLOY.parents[1], log=log)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not log.exists() or " ready." not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Worker(process, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


@contextmanager
def writing_held_up(engine: Engine) -> Iterator[None]:
    """Runs wait when they write, until the block ends."""
    with engine.connect() as blocker:
        blocker.execute(text("LOCK TABLE database_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        yield


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def celery(
    settings: Settings,
    dagster_databases: tuple[URL, URL],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Daemon]:
    """Dagster's daemon whose runs go to workers."""
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.url)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", redis_server.url)
    with ExitStack() as stack:
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster_databases[0].render_as_string(hide_password=False))
        environment = stack.enter_context(dagster_environment(Settings()))
        shipped = shipped_file("dagster.yaml").read_text() + (DEPLOY / "run_launcher.yaml").read_text()
        (settings.dagster_home / "dagster.yaml").write_text(shipped)
        instance = stack.enter_context(dagster_instance(environment))
        yield stack.enter_context(running_daemon(instance))


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    add_instances(engine, [1, 2])
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", "2025-02-24", range(100, 120)))
    return engine


def queued(daemon: Daemon) -> dict[str, dg.DagsterRun]:
    """Runs of a day and of a week, by job."""
    for moment in ("2025-03-02T03:00", "2025-03-02T04:00", "2025-03-03T04:00"):
        daemon.tick_schedules(moment)
    found = {run.job_name: run for run in daemon.runs()}
    assert {"daily_aggregation_job", "weekly_aggregation_job"} <= set(found)
    return found


def day_of(run: dg.DagsterRun) -> date:
    return date.fromisoformat(partitions_of(run)[0])


def repetition(daemon: Daemon, run: dg.DagsterRun) -> dg.DagsterRun:
    """A further run of the same, as the UI makes it."""
    again = run._replace(run_id=str(uuid.uuid4()), parent_run_id=run.run_id, root_run_id=run.run_id)
    daemon.instance.add_run(again)
    return again


def test_each_worker_takes_a_run_of_its_zone_and_the_run_of_a_killed_one_fails_and_is_repeated(
    celery: Daemon, fleet: Engine, tmp_path: Path
) -> None:
    weekly = queued(celery)["weekly_aggregation_job"]
    daily, other_day = celery.runs("daily_aggregation_job")
    celery.instance.add_run_tags(other_day.run_id, share_tags("zone=eu", queues=True))
    of_zone = celery.instance.get_run_by_id(other_day.run_id)
    assert of_zone is not None

    with ExitStack() as started:
        one = started.enter_context(worker(tmp_path, "one"))
        with writing_held_up(fleet):
            for run in (daily, weekly):
                celery.start(run)
            wait_until(lambda: one.received == 1)
            # The first would have taken the second run in the seconds in which another worker begins.
            two = started.enter_context(worker(tmp_path, "two"))
            wait_until(lambda: one.received + two.received == 2)
            assert [one.received, two.received] == [1, 1]
        for run in (daily, weekly):
            assert celery.wait(run).status is dg.DagsterRunStatus.SUCCESS
        in_zone = started.enter_context(worker(tmp_path, "eu", "zone-eu"))
        with writing_held_up(fleet):
            celery.start(of_zone)
            celery.until(of_zone, dg.DagsterRunStatus.STARTED)
            wait_until(lambda: dg.DagsterEventType.STEP_START in celery.event_types(of_zone))
            in_zone.kill_what_executes()
            celery.until(of_zone, dg.DagsterRunStatus.FAILURE)
            # The same worker takes it once more, and vanishes with its machine: nobody says so, but it runs too long.
            second = repetition(celery, of_zone)
            celery.start(second)
            celery.until(second, dg.DagsterRunStatus.STARTED)
            in_zone.kill()
            celery.instance.add_run_tags(second.run_id, {"dagster/max_runtime": "1"})
            celery.until(second, dg.DagsterRunStatus.FAILURE)
        assert [one.received, two.received, in_zone.received] == [1, 1, 2]
        # Of no zone.
        third = repetition(celery, other_day)
        celery.start(third)
        assert celery.wait(third).status is dg.DagsterRunStatus.SUCCESS
    written = [file.read_text() for file in tmp_path.rglob("dagster_celery_config.py")]
    assert len(written) == 3
    assert not [text for text in written if "redis" in text]

    assert {row["period_type"] for row in stored(fleet, DATABASE)} == {"daily", "weekly"}
    assert {row["period_start"] for row in stored(fleet, DATABASE, "daily")} == {day_of(daily), day_of(other_day)}
