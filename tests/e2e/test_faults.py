"""The work survives failures: real servers, run workers and kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.ledger import Ledger
from capacity_assets.aggregates.levels import DATABASE, LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import CAPACITY_DRIVER, DAGSTER_DRIVER, Settings
from capacity_assets.database import embedded
from capacity_assets.database.embedded import CAPACITY_DATABASE, DAGSTER_DATABASE, EmbeddedServer, embedded_server
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.daemon import Daemon, running_daemon
from tests.databases import end_sessions
from tests.e2e.stack import (
    BLOCK,
    COMMAND,
    PATIENCE_SECONDS,
    environment,
    wait_for,
    waits_for_a_lock,
)
from tests.fleet import add_database_sizes, add_instances, figures, sizes, stored
from tests.forked import run_forked
from tests.profiles import PROFILE
from tests.receiver import receiving

KILLS = PROFILE.kills


class RestartableServer:
    """A PostgreSQL that a test can restart: sessions are ended, then it starts again."""

    def __init__(self, data: Path, server: EmbeddedServer) -> None:
        self._data = data
        self.server = server

    def url(self, database: str, driver: str = CAPACITY_DRIVER) -> URL:
        return self.server.url(database, driver)

    def stop(self) -> None:
        running = self._data / "postmaster.pid"
        if running.exists():
            os.kill(int(running.read_text().splitlines()[0]), signal.SIGINT)
        while running.exists():
            time.sleep(0.05)

    def restart(self) -> None:
        self.stop()
        embedded._start(self._data)
        embedded._connect(self.server, self._data).close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RestartableServer]:
    """A PostgreSQL for this test only, with the capacity schema."""
    data = tmp_path / "own" / "postgres"
    with embedded_server(data) as running:
        engine = capacity_engine(running.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        initialise(engine)
        engine.dispose()
        restartable = RestartableServer(data, running)
        yield restartable
    # One that was restarted is not the one that was started here, and would be left running.
    restartable.stop()


def plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def engine_on(url: URL) -> Iterator[Engine]:
    engine = capacity_engine(url)
    yield engine
    engine.dispose()


@contextmanager
def deployment(capacity: URL, storage: URL, home: Path, **variables: str) -> Iterator[Daemon]:
    """A separate Dagster on the two databases: shipped configuration, code location, run workers."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAPACITY_DATABASE_URL", plain(capacity))
        patched.setenv("DAGSTER_POSTGRES_URL", plain(storage))
        patched.setenv("CAPACITY_HOME", str(home))
        for name, value in variables.items():
            patched.setenv(name, value)
        with (
            dagster_environment(Settings()) as environment,
            dagster_instance(environment) as instance,
            running_daemon(instance) as daemon,
        ):
            yield daemon


@pytest.mark.nightly("waits for a server that starts again")
def test_a_postgresql_restarted_in_mid_run_is_waited_for_and_the_run_succeeds(
    own_server: RestartableServer, tmp_path: Path
) -> None:
    """The server has the figures and Dagster's storage."""
    capacity, storage = own_server.url(CAPACITY_DATABASE), own_server.url(DAGSTER_DATABASE, DAGSTER_DRIVER)
    with engine_on(capacity) as engine, deployment(capacity, storage, tmp_path / "home") as daemon:
        add_instances(engine, [1])
        add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 101]))
        blocker = engine.connect()
        blocker.execute(BLOCK)
        run = daemon.request_daily()
        daemon.start(run)
        wait_for(lambda: waits_for_a_lock(engine), "the statement")

        own_server.restart()
        blocker.invalidate()
        blocker.close()
        engine.dispose()

        assert daemon.wait(run).status is dg.DagsterRunStatus.SUCCESS
        assert dg.DagsterEventType.STEP_RESTARTED in daemon.event_types(run)
        assert [(row["max_size_mb"], row["size_change_mb"]) for row in stored(engine, DATABASE)] == [(101, 1)]


@pytest.mark.nightly("waits for a server that starts again")
def test_a_postgresql_restarted_in_the_middle_of_a_tick_loses_no_window_and_doubles_none(
    own_server: RestartableServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's storage stops between the creation of a run and its submission."""
    capacity, storage = own_server.url(CAPACITY_DATABASE), own_server.url(DAGSTER_DATABASE, DAGSTER_DRIVER)
    with deployment(capacity, storage, tmp_path / "home") as daemon:
        daemon.tick_schedules("2025-03-02T03:00")
        daemon.tick_schedules("2025-03-02T04:00")
        submit = dg.DagsterInstance.submit_run

        def restart_and_submit(*arguments: Any) -> dg.DagsterRun:
            own_server.restart()
            return submit(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(dg.DagsterInstance, "submit_run", restart_and_submit)
            for _ in range(2):
                daemon.tick_schedules("2025-03-03T04:00", expect_trouble=True)
        daemon.tick_schedules("2025-03-03T04:01")
        daemon.tick_schedules("2025-03-04T04:00")

        days = [
            date.fromisoformat(first) + timedelta(days=number)
            for first, last in daemon.requested("daily_aggregation_job")
            for number in range((date.fromisoformat(last) - date.fromisoformat(first)).days + 1)
        ]
        assert [day.isoformat() for day in days] == ["2025-03-02", "2025-03-03", "2025-03-04"]


@pytest.mark.nightly("kills and restarts programs in a row")
def test_kills_at_random_moments_leave_tables_that_a_last_run_makes_equal_to_a_fresh_computation(
    own_server: RestartableServer, engine: Engine, tmp_path: Path
) -> None:
    """Workers are killed and sessions ended, in turn; every finished slice is kept, nothing is half-written."""
    url = own_server.url(CAPACITY_DATABASE)
    chance = random.Random(20250720)  # noqa: S311 -- moments of kills, the same in every run
    arguments = ["aggregate", "--period", "all", "--from", "2025-01-01", "--to", "2025-06-30"]
    variables = {"CAPACITY_DATABASE_URL": plain(url), "CAPACITY_START_DATE": "2025-01-01"}
    with engine_on(url) as broken:
        for target in (broken, engine):
            fill(target)
        interrupted = 0
        for number in range(KILLS):
            # So that there is something to write in each round.
            for target in (broken, engine):
                grow(target)
            process = subprocess.Popen(
                [*COMMAND, *arguments], env=environment(tmp_path / "home", **variables), stderr=subprocess.PIPE
            )
            wait_until_computing(broken)
            time.sleep(chance.uniform(0, 0.3))
            if number % 2:
                process.kill()
            else:
                end_sessions(broken)
            process.communicate(timeout=PATIENCE_SECONDS)
            interrupted += process.returncode != 0
        last = run_forked(*arguments, environment=environment(tmp_path / "home", **variables), timeout=PATIENCE_SECONDS)
        assert last.returncode == 0, last.stderr
        assert interrupted >= KILLS // 2, "most of them were really interrupted"

        fresh = AggregationService(engine, fixed_clock())
        for period in PERIODS:
            compute_windows(fresh, period, date(2025, 1, 1), date(2025, 6, 30))
        for level in LEVELS.values():
            assert figures(broken, level) == figures(engine, level)
        assert Ledger(broken).stale() == []


def wait_until_computing(engine: Engine) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ '^WITH (classified|inserted)'"
    deadline = time.monotonic() + PATIENCE_SECONDS
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.execute(text(query)).scalar():
            assert time.monotonic() < deadline, "nothing is computed"
            time.sleep(0.01)


def fill(engine: Engine) -> None:
    """Ten servers of five databases, half a year."""
    add_instances(engine, range(1, 11))
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                "SELECT i, 'db-' || n, 100 + 7 * d + i * n, CAST('2025-01-01' AS date) + d "
                "FROM generate_series(1, 10) i, generate_series(1, 5) n, generate_series(0, 180) d"
            )
        )
        connection.execute(
            text(
                "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
                "SELECT instance_id, sum(size_mb), count(*), collected_date FROM database_size_stats "
                "GROUP BY instance_id, collected_date"
            )
        )


def grow(engine: Engine) -> None:
    """Correct every sample."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = size_mb + 1"))
        connection.execute(text("UPDATE instance_size_stats SET total_size_mb = total_size_mb + database_count"))


@pytest.mark.nightly("starts a second daemon and its runs")
def test_two_deployments_on_one_database_wait_for_each_other(
    engine: Engine, database: URL, dagster_databases: tuple[URL, URL], tmp_path: Path
) -> None:
    """Each has its own Dagster and queue; the period's lock makes one wait for the other."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 101]))
    with (
        deployment(database, dagster_databases[0], tmp_path / "home0") as one,
        deployment(database, dagster_databases[1], tmp_path / "home1") as other,
    ):
        first, second = one.request_daily(), other.request_daily()
        with engine.connect() as blocker:
            blocker.execute(BLOCK)
            one.start(first)
            wait_for(lambda: waits_for_a_lock(engine), "the first run's statement")
            other.start(second)
            refused = dg.DagsterEventType.STEP_UP_FOR_RETRY
            wait_for(lambda: refused in other.event_types(second), "the second to be refused")
            assert one.runs("daily_aggregation_job")[0].status is dg.DagsterRunStatus.STARTED
            blocker.rollback()
        assert one.wait(first).status is dg.DagsterRunStatus.SUCCESS
        assert other.wait(second).status is dg.DagsterRunStatus.SUCCESS

    assert [row["max_size_mb"] for row in stored(engine, DATABASE)] == [101]


@pytest.mark.nightly("starts a daemon and its runs")
def test_a_sample_corrected_to_nonsense_is_followed_and_exactly_one_alert_leaves_the_house(
    engine: Engine, database: URL, dagster_databases: tuple[URL, URL], tmp_path: Path
) -> None:
    """The late data sensor, the run it requests, its checks and the alert sensor, tick by tick."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", range(100, 110)))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", date(2025, 3, 1), date(2025, 3, 10))
    with receiving() as receiver:
        variables = {"CAPACITY_ALERT_WEBHOOK_URL": receiver.url, "CAPACITY_SETTLE_SECONDS": "0"}
        with deployment(database, dagster_databases[0], tmp_path / "home", **variables) as daemon:
            # The alert sensor begins at its first tick.
            daemon.tick_sensors()
            with engine.begin() as connection:
                connection.execute(
                    text("UPDATE database_size_stats SET size_mb = -5 WHERE collected_date = '2025-03-04'")
                )
            daemon.tick_sensors()
            [run] = daemon.runs()
            assert daemon.launch(run).status is dg.DagsterRunStatus.SUCCESS
            assert receiver.texts == []
            for _ in range(3):
                daemon.tick_sensors()

    [message] = receiver.texts
    assert message.startswith("Check failed. daily_database_aggregations: values_possible")
    assert "server-1, orders: an impossible size or count in the window from 2025-03-04" in message
    by_day = {row["period_start"]: row for row in stored(engine, DATABASE)}
    assert by_day[date(2025, 3, 4)]["avg_size_mb"] == -5
    assert by_day[date(2025, 3, 5)]["size_change_mb"] == 109, "the day after compares with it"
