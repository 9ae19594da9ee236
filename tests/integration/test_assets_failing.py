"""Runs on a database that is missing, full, read-only, locked or killed: what is repeated, and what is said."""

from __future__ import annotations

import threading
import time

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.base.settings import Settings
from capacity_assets.database import locks
from capacity_assets.database.locks import CapacityLockManager, LockHeldError
from tests.fleet import (
    add_database_sizes,
    add_instances,
    sizes,
    stored,
)
from tests.runs import retries, run_range


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    texts = [str(event.event_specific_data) for event in result.all_events if event.is_failure]
    return "\n".join(texts)


def test_a_missing_schema_fails_the_run_and_says_capacity_init(settings: Settings, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE capacity_alembic_version"))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert "Run `capacity init`" in failure_text(result)


def test_a_database_failure_shows_neither_the_statement_nor_its_parameters(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE database_size_stats CASCADE"))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert "run `capacity init`" in failure_text(result)
    assert "SELECT" not in failure_text(result)
    assert "parameters" not in failure_text(result)


def test_an_unreachable_database_fails_the_run_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://dba:hunter2@127.0.0.1:9/capacity")

    result = run_range(Settings(), "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    message = failure_text(result)
    assert "connection failed" in message
    assert "127.0.0.1" in message
    assert "hunter2" not in message
    assert retries(result) == 10


def run_in_thread(settings: Settings) -> tuple[threading.Thread, list[dg.ExecuteInProcessResult]]:
    results: list[dg.ExecuteInProcessResult] = []
    thread = threading.Thread(
        target=lambda: results.append(run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02"))
    )
    thread.start()
    return thread, results


def wait_until(engine: Engine, query: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.execute(text(query)).scalar():
                return
        time.sleep(0.05)
    pytest.fail(f"gave up waiting for {query}")


WAITING = (
    "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^WITH (classified|inserted)'"
)
KILL_WAITING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
SAME_KEY = (
    "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, "
    "avg_size_mb, max_size_mb, min_size_mb, data_count) "
    "VALUES (1, 'orders', 'daily', '2025-03-02', '2025-03-02', 1, 1, 1, 1)"
)


@pytest.mark.single_server("has the run wait in its own session, not in that of a node")
def test_a_connection_killed_in_mid_statement_is_retried_in_the_run_and_nothing_is_doubled(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    with engine.connect() as blocker:
        blocker.execute(text(SAME_KEY))
        thread, results = run_in_thread(settings)
        wait_until(engine, WAITING)
        with engine.connect() as killer:
            killer.execute(text(KILL_WAITING))
        blocker.rollback()
    thread.join(90)

    [result] = results
    assert result.success
    assert retries(result) == 1
    assert [row["avg_size_mb"] for row in stored(engine, DATABASE)] == [11]


@pytest.mark.single_server("has the run wait in its own session, not in that of a node")
def test_a_deadlock_is_retried_in_the_run(settings: Settings, engine: Engine) -> None:
    """The run waits for a row of ours, and we wait for a row the run wrote before: PostgreSQL ends one of the two."""
    add_instances(engine, [1])
    for name in ("a", "orders"):
        add_database_sizes(engine, sizes(1, name, "2025-03-01", [10, 11]))
    with engine.connect() as blocker:
        # Ours must be the patient one, or it is our transaction that is ended.
        blocker.execute(text("SET deadlock_timeout = '60s'"))
        blocker.execute(text(SAME_KEY))
        thread, results = run_in_thread(settings)
        wait_until(engine, WAITING)
        blocker.execute(text(SAME_KEY.replace("'orders'", "'a'")))
        blocker.rollback()
    thread.join(90)

    [result] = results
    assert result.success
    assert retries(result) == 1
    assert sorted(str(row["database_name"]) for row in stored(engine, DATABASE)) == ["a", "orders"]


def test_a_read_only_database_is_permanent_and_not_retried(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert retries(result) == 0
    assert "Connect to the primary, as a role that may write." in failure_text(result)


@pytest.mark.single_server("makes a trigger per row")
def test_a_full_disk_is_permanent_and_not_retried(settings: Settings, engine: Engine) -> None:
    """The kernel's own answer: PostgreSQL writes to a device that is always full, in the middle of our statement."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000)) TO '/dev/full'; RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER fill BEFORE INSERT ON database_size_aggregations FOR EACH ROW EXECUTE FUNCTION fill()"
        )

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert retries(result) == 0
    assert "No space left on device" in failure_text(result)
    assert "Free some space where the server keeps its data, then run this again." in failure_text(result)
    assert stored(engine, DATABASE) == []


def test_a_period_held_by_another_writer_is_retried_until_it_is_free(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    refused, held = threading.Event(), locks.lock_held_error

    def refuse(period: str, who: str | None) -> LockHeldError:
        refused.set()
        return held(period, who)

    monkeypatch.setattr(locks, "lock_held_error", refuse)
    with CapacityLockManager(engine).job_lock("daily"):
        thread, results = run_in_thread(settings)
        assert refused.wait(60)
        assert stored(engine, DATABASE) == []
    thread.join(90)

    [result] = results
    assert result.success
    assert retries(result) >= 1
    assert len(stored(engine, DATABASE)) == 1
