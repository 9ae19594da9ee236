"""Locks that are lost, cannot be had, or cannot be asked for: nothing is written unguarded."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.database import locks
from capacity_assets.database.locks import (
    CapacityLockManager,
    HeldLock,
    LockLostError,
    LockUnavailableError,
    ask_redis,
)
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.locking import DATABASE_LEVEL, MARCH, runner_with
from tests.redis_server import RedisServer


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
    engine: Engine,
    redis_locks: CapacityLockManager,
    redis_server: RedisServer,
    lose: Callable[[RedisServer], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two slices: Redis is lost after the first, which stays; nothing of the second is written."""
    monkeypatch.setattr(locks, "REDIS_TIMEOUT_SECONDS", 2.0)
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1, 2]))
    runner = runner_with(engine, redis_locks, slices_of=1)
    options = RunOptions(("database",), progress=lambda _: lose(redis_server))

    with pytest.raises(LockLostError) as caught:
        runner.run_period("monthly", MARCH, options)

    redis_server.signal(signal.SIGCONT) if redis_server.process else None
    assert caught.value.transient
    assert "committed work was kept" in str(caught.value)
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


def taken(manager: CapacityLockManager) -> HeldLock:
    with manager.job_lock("daily") as lock:
        return lock


def test_without_redis_nothing_is_done_unguarded_and_the_text_says_so(
    engine: Engine, redis_server: RedisServer
) -> None:
    redis_server.stop()
    runner = runner_with(engine, CapacityLockManager(engine, redis_server.url))

    with pytest.raises(LockUnavailableError, match="Redis does not answer") as caught:
        runner.run_period("monthly", MARCH)

    assert caught.value.transient
    assert "Nothing is computed without a lock" in str(caught.value)


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
