"""One writer per period, on real Redis and real PostgreSQL: held, reported, renewed and released."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.locks import CapacityLockManager, LockHeldError, owner_name, redis_key
from tests.databases import TEMPLATE, Databases, execute
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.locking import DATABASE_LEVEL, MARCH, runner_with
from tests.redis_server import RedisServer
from tests.roles import DOCS


def utc_day() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def test_a_second_writer_of_the_same_period_is_told_who_holds_the_lock_and_since_when(
    locks: CapacityLockManager,
) -> None:
    days = [utc_day()]
    with locks.job_lock("daily"), pytest.raises(LockHeldError) as caught, locks.job_lock("daily"):
        pytest.fail("the lock was given twice")
    days.append(utc_day())

    assert caught.value.transient
    # PostgreSQL cuts application names at 63 characters.
    assert owner_name()[:40] in str(caught.value)
    assert any(f"since {day}" in str(caught.value) for day in days)


def test_a_released_lock_can_be_taken_again_also_after_a_failure_inside(locks: CapacityLockManager) -> None:
    with pytest.raises(ZeroDivisionError), locks.job_lock("daily"):
        _ = 1 / 0
    with locks.job_lock("daily") as lock:
        lock.ensure_held()


def test_the_task_runner_writes_nothing_while_someone_else_holds_the_period(
    engine: Engine, locks: CapacityLockManager
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [1, 2]))
    runner = runner_with(engine, locks)

    with locks.job_lock("monthly"):
        with pytest.raises(LockHeldError):
            runner.run_period("monthly", MARCH, DATABASE_LEVEL)
        with pytest.raises(LockHeldError):
            runner.run_period("monthly", MARCH, RunOptions(instance_ids=[1]))
        assert stored(engine, DATABASE) == []
        runner.run_period("daily", [PERIODS["daily"].window_of(date(2025, 3, 1))], DATABASE_LEVEL)

    runner.run_period("monthly", MARCH, DATABASE_LEVEL)
    assert [row["period_type"] for row in stored(engine, DATABASE)] == ["daily", "monthly"]


HOLDER = """
import sys, time
from sqlalchemy import make_url
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise
manager = CapacityLockManager(capacity_engine(make_url(sys.argv[1])), sys.argv[2] or None, float(sys.argv[3]))
with manager.job_lock("daily"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_process(engine: Engine) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that holds the lock of daily until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(redis_url: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", HOLDER, engine.url.render_as_string(hide_password=False), redis_url, "2"]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def free_within(locks: CapacityLockManager, seconds: float) -> None:
    """Wait until the daily lock can be taken."""
    begin = time.monotonic()
    while True:
        try:
            with locks.job_lock("daily"):
                return
        except LockHeldError:
            assert time.monotonic() - begin < seconds, "the lock did not come free"
            time.sleep(0.1)


def test_the_lock_of_a_killed_process_comes_free(
    locks: CapacityLockManager, other_process: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = other_process(locks.redis_url or "")
    with pytest.raises(LockHeldError), locks.job_lock("daily"):
        pytest.fail("the lock was given twice")

    process.kill()
    process.wait()

    free_within(locks, seconds=60)


def test_the_lock_is_renewed_while_the_work_lasts(redis_locks: CapacityLockManager) -> None:
    with redis_locks.job_lock("daily") as lock:
        time.sleep(4)
        lock.ensure_held()
        with pytest.raises(LockHeldError), redis_locks.job_lock("daily"):
            pytest.fail("the lock was given twice")


def test_the_key_in_redis_is_the_documented_one_and_holds_who_and_since_when(
    redis_locks: CapacityLockManager, redis_server: RedisServer
) -> None:
    with redis_locks.job_lock("quarterly"), redis_server.client() as client:
        assert redis_key("quarterly") == "capacity:aggregation:quarterly"
        token = json.loads(client.get("capacity:aggregation:quarterly"))  # type: ignore[arg-type]
        assert token["owner"] == owner_name()
        assert 0 < client.pttl("capacity:aggregation:quarterly") <= 3000  # type: ignore[operator]


def test_a_legacy_job_can_interlock_by_setting_the_key(
    redis_locks: CapacityLockManager, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.set("capacity:aggregation:daily", "legacy scheduler", nx=True, ex=60)
        with (
            pytest.raises(LockHeldError, match="a foreign writer \\('legacy scheduler'\\)"),
            redis_locks.job_lock("daily"),
        ):
            pytest.fail("the lock was given twice")
        assert client.get("capacity:aggregation:daily") == b"legacy scheduler", "left alone"


def test_a_legacy_job_can_interlock_by_the_documented_statements(engine: Engine) -> None:
    section = (DOCS / "operations.md").read_text().split("## One writer per period")[1]
    # SQLAlchemy begins the transaction.
    [statements] = re.findall(r"```sql\nBEGIN;\n(.*?)```", section, re.DOTALL)[:1]
    with CapacityLockManager(engine).job_lock("daily"):
        pass
    with engine.connect() as legacy:
        legacy.execute(text("SET application_name = 'legacy scheduler'"))
        legacy.execute(text(statements))
        with (
            pytest.raises(LockHeldError, match="legacy scheduler \\(backend"),
            CapacityLockManager(engine).job_lock("daily"),
        ):
            pytest.fail("the lock was given twice")
        legacy.rollback()
        with CapacityLockManager(engine).job_lock("daily"), pytest.raises(OperationalError, match="lock timeout"):
            legacy.execute(text(statements.replace("10s", "10ms")))


def test_a_lock_held_by_another_role_is_told_although_its_times_cannot_be_seen(engine: Engine) -> None:
    with engine.begin() as connection:
        for role in ("legacy_role", "our_role"):
            connection.execute(text(f"DROP ROLE IF EXISTS {role}"))
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
            connection.execute(text(f"GRANT SELECT, INSERT, UPDATE ON capacity_locks TO {role}"))
    legacy = capacity_engine(engine.url.set(username="legacy_role"))
    ours = capacity_engine(engine.url.set(username="our_role"))
    with (
        CapacityLockManager(legacy).job_lock("daily"),
        pytest.raises(LockHeldError, match=rf"being written by {re.escape(owner_name())} \(backend \d+\)\. Run"),
        CapacityLockManager(ours).job_lock("daily"),
    ):
        pytest.fail("the lock was given twice")
    legacy.dispose()
    ours.dispose()
    for role in ("legacy_role", "our_role"):
        execute(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_since_when_is_when_the_lock_was_taken_not_when_it_was_last_looked_at(engine: Engine) -> None:
    manager = CapacityLockManager(engine)

    def since() -> str:
        with pytest.raises(LockHeldError) as caught, manager.job_lock("daily"):
            pytest.fail("the lock was given twice")
        return str(caught.value).split(" since ")[1]

    with manager.job_lock("daily") as lock:
        before = since()
        time.sleep(1.5)
        lock.ensure_held()
        assert since() == before


def test_the_same_lock_in_another_database_of_the_server_is_another_lock(engine: Engine, cluster: Databases) -> None:
    with (
        cluster.copy(TEMPLATE) as url,
        cluster.engine(url) as other,
        CapacityLockManager(other).job_lock("daily"),
        CapacityLockManager(engine).job_lock("daily") as lock,
    ):
        lock.ensure_held()


def test_a_lock_survives_the_time_limits_of_idle_sessions(engine: Engine) -> None:
    limited = capacity_engine(
        engine.url.update_query_dict(
            {"options": "-c idle_in_transaction_session_timeout=100 -c idle_session_timeout=100"}
        )
    )
    with CapacityLockManager(limited).job_lock("daily") as lock:
        time.sleep(0.5)
        lock.ensure_held()
    limited.dispose()
