"""One writer per period, on real Redis and real PostgreSQL: held, lost, released, and never unguarded in silence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.foundation.errors import CapacityError
from capacity_assets.foundation.levels import DATABASE
from capacity_assets.foundation.lock_errors import (
    HeldLock,
    LockHeldError,
    LockLostError,
    LockUnavailableError,
    owner_name,
)
from capacity_assets.foundation.locks import CapacityLockManager, advisory_key
from capacity_assets.foundation.redis_locks import ask_redis, redis_key
from capacity_assets.periods import PERIODS
from capacity_assets.storage.engine import capacity_engine
from tests.clocks import fixed_clock
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.redis_server import RedisServer

MARCH = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
DATABASE_LEVEL = RunOptions(("database",))


@pytest.fixture(params=["redis", "postgresql"])
def locks(request: pytest.FixtureRequest, engine: Engine) -> CapacityLockManager:
    """A lock manager on each of the two services."""
    if request.param == "postgresql":
        return CapacityLockManager(engine)
    return CapacityLockManager(engine, request.getfixturevalue("redis_server").url)


@pytest.fixture
def redis_locks(engine: Engine, redis_server: RedisServer) -> CapacityLockManager:
    """A lock manager on Redis whose time to live is a second."""
    return CapacityLockManager(engine, redis_server.url, time_to_live_seconds=1)


def runner_with(engine: Engine, locks: CapacityLockManager, *, slices_of: int = 1000) -> AggregationTaskRunner:
    clock = fixed_clock()
    service = AggregationService(engine, clock, locks=locks, instances_per_slice=slices_of)
    return AggregationTaskRunner(service)


def test_a_second_writer_of_the_same_period_is_told_who_holds_the_lock_and_since_when(
    locks: CapacityLockManager,
) -> None:
    with locks.job_lock("daily"), pytest.raises(LockHeldError) as caught, locks.job_lock("daily"):
        pytest.fail("the lock was given twice")

    assert caught.value.transient
    # PostgreSQL cuts application names at 63 characters.
    assert owner_name()[:40] in str(caught.value)
    assert f"since {time.strftime('%Y-%m-%d', time.gmtime())}" in str(caught.value)
    assert "Nothing of the daily aggregates was written." in str(caught.value)


def test_different_periods_do_not_hinder_each_other(locks: CapacityLockManager) -> None:
    with locks.job_lock("daily") as daily, locks.job_lock("weekly") as weekly:
        daily.ensure_held()
        weekly.ensure_held()


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
from capacity_assets.foundation.locks import CapacityLockManager
from capacity_assets.storage.engine import capacity_engine
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


def free_within(locks: CapacityLockManager, seconds: float) -> float:
    """Seconds until the lock of daily could be taken."""
    begin = time.monotonic()
    while True:
        try:
            with locks.job_lock("daily"):
                return time.monotonic() - begin
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

    assert free_within(locks, seconds=10) < 5


def test_the_lock_is_renewed_while_the_work_lasts(redis_locks: CapacityLockManager) -> None:
    with redis_locks.job_lock("daily") as lock:
        time.sleep(2.5)
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
        assert 0 < client.pttl("capacity:aggregation:quarterly") <= 1000  # type: ignore[operator]


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


def test_a_legacy_job_can_interlock_by_an_advisory_lock(engine: Engine) -> None:
    first, second = advisory_key("daily")
    with engine.connect() as legacy:
        legacy.execute(text("SET application_name = 'legacy scheduler'"))
        legacy.execute(text("SELECT pg_advisory_lock(:first, :second)"), {"first": first, "second": second})
        with (
            pytest.raises(LockHeldError, match="legacy scheduler \\(backend"),
            CapacityLockManager(engine).job_lock("daily"),
        ):
            pytest.fail("the lock was given twice")
        legacy.execute(text("SELECT pg_advisory_unlock_all()"))
    assert (first, second) == (1667330145, 245214058)


def test_a_lock_held_by_another_role_is_told_although_its_times_cannot_be_seen(engine: Engine) -> None:
    first, second = advisory_key("daily")
    with engine.begin() as connection:
        for role in ("legacy_role", "our_role"):
            connection.execute(text(f"DROP ROLE IF EXISTS {role}"))
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
    legacy = capacity_engine(engine.url.set(username="legacy_role"))
    ours = capacity_engine(engine.url.set(username="our_role"))
    with legacy.connect() as session:
        session.execute(text("SELECT pg_advisory_lock(:first, :second)"), {"first": first, "second": second})
        with (
            pytest.raises(LockHeldError, match=r"being written by capacity_assets \(backend \d+\)\. Nothing"),
            CapacityLockManager(ours).job_lock("daily"),
        ):
            pytest.fail("the lock was given twice")
    legacy.dispose()
    ours.dispose()


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


def test_the_same_lock_in_another_database_of_the_server_is_another_lock(engine: Engine, empty_engine: Engine) -> None:
    with CapacityLockManager(empty_engine).job_lock("daily"), CapacityLockManager(engine).job_lock("daily") as lock:
        lock.ensure_held()


def test_rights_that_locks_need_and_do_not_have_show_when_redis_is_asked(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+get", "+set", "+ping"])
    ask_redis(redis_server.url)

    with pytest.raises(LockUnavailableError, match="lacks rights") as caught:
        ask_redis(redis_server.url.replace("redis://", "redis://reader:x@"))

    assert not caught.value.transient


def test_a_key_that_has_become_someone_elses_is_neither_renewed_nor_released(
    redis_locks: CapacityLockManager, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        with redis_locks.job_lock("daily") as lock:
            client.set("capacity:aggregation:daily", "someone else", ex=60)
            with pytest.raises(LockLostError, match="belongs to another holder"):
                lock.ensure_held()
        assert client.get("capacity:aggregation:daily") == b"someone else"


def lose_by_flush(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def lose_by_kill(server: RedisServer) -> None:
    server.stop()


def lose_by_pause(server: RedisServer) -> None:
    server.signal(signal.SIGSTOP)


@pytest.mark.parametrize("lose", [lose_by_flush, lose_by_kill, lose_by_pause])
def test_a_lock_lost_in_mid_work_stops_it_before_it_commits(
    engine: Engine, redis_locks: CapacityLockManager, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    """Two slices: Redis is lost after the first, which stays; nothing of the second is written."""
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1, 2]))
    runner = runner_with(engine, redis_locks, slices_of=1)
    options = RunOptions(("database",), progress=lambda _: lose(redis_server))

    with pytest.raises(LockLostError) as caught:
        runner.run_period("monthly", MARCH, options)

    redis_server.signal(signal.SIGCONT) if redis_server.process else None
    assert caught.value.transient
    assert "what was committed before was kept" in str(caught.value)
    assert [row["instance_id"] for row in stored(engine, DATABASE)] == [1]


def test_a_terminated_lock_connection_stops_the_work_before_it_commits(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1, 2]))

    def terminate(_: int) -> None:
        with engine.connect() as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%lock%'"
            connection.execute(text(query))

    runner = runner_with(engine, CapacityLockManager(engine), slices_of=1)
    with pytest.raises(LockLostError, match="its connection was closed"):
        runner.run_period("monthly", MARCH, RunOptions(("database",), progress=terminate))

    assert [row["instance_id"] for row in stored(engine, DATABASE)] == [1]
    assert runner.run_period("monthly", MARCH, DATABASE_LEVEL).total("written_records") == 1


def taken(locks: CapacityLockManager) -> HeldLock:
    with locks.job_lock("daily") as lock:
        return lock


def test_without_redis_nothing_is_done_unguarded_and_the_text_says_so(
    engine: Engine, redis_server: RedisServer
) -> None:
    redis_server.stop()
    runner = runner_with(engine, CapacityLockManager(engine, redis_server.url))

    with pytest.raises(LockUnavailableError, match="Redis does not answer") as caught:
        runner.run_period("monthly", MARCH)

    assert caught.value.transient
    assert "Nothing is computed unguarded" in str(caught.value)


def test_a_wrong_redis_password_is_permanent_and_not_repeated(engine: Engine, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, password="right-password")  # noqa: S106 -- of a server that lives for this test
    server.start()
    try:
        wrong = CapacityLockManager(engine, server.url.replace("right", "wrong"))
        with pytest.raises(LockUnavailableError, match="Redis refuses the login") as caught:
            taken(wrong)
        taken(CapacityLockManager(engine, server.url))
    finally:
        server.stop()
    assert not caught.value.transient
    assert "password" not in str(caught.value).replace("the password in CAPACITY_REDIS_URL", "")
    assert "wrong-password" not in repr(wrong)


def test_lock_errors_are_read_by_people_like_all_others() -> None:
    assert issubclass(LockHeldError, CapacityError)
    assert issubclass(LockLostError, CapacityError)
    assert issubclass(LockUnavailableError, CapacityError)
