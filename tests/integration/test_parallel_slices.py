"""Slices written side by side: the same rows and summaries, none waiting for another, none after an error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import DatabaseError
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.locks import CapacityLockManager, LockLostError
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import end_sessions
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    figures,
    sizes,
    stored,
    totals,
)
from tests.redis_server import RedisServer

MARCH = PERIODS["monthly"].windows_between(date(2025, 3, 1), date(2025, 3, 1))
INSTANCE_LEVEL = RunOptions(("instance",))


@pytest.fixture
def wide_engine(database: URL) -> Iterator[Engine]:
    """An engine whose pool has room for three slices side by side."""
    created = capacity_engine(database, parallel_slices=3)
    yield created
    created.dispose()


@pytest.fixture
def parallel(wide_engine: Engine) -> AggregationService:
    """A service that writes three slices of two servers side by side."""
    return AggregationService(wide_engine, fixed_clock(), instances_per_slice=2, parallel_slices=3)


def add_servers(engine: Engine, count: int) -> None:
    """Register servers of one database and one total, each of its own sizes."""
    add_instances(engine, range(1, count + 1))
    for instance_id in range(1, count + 1):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-02-20", range(instance_id, instance_id + 20)))
        add_instance_sizes(engine, totals(instance_id, "2025-02-20", [(instance_id * day, 1) for day in range(1, 21)]))


def test_slices_side_by_side_write_what_slices_in_a_row_write(
    wide_engine: Engine, service: AggregationService, parallel: AggregationService
) -> None:
    add_servers(wide_engine, 21)
    for instance_id in (4, 17):
        add_overflowing_instance(wide_engine, instance_id, date(2025, 3, 20))
    days = (date(2025, 2, 24), date(2025, 3, 31))
    expected = compute_windows(service, "weekly", *days)
    rows = [figures(wide_engine, level) for level in (DATABASE, INSTANCE)]
    with wide_engine.begin() as connection:
        connection.execute(
            text("TRUNCATE database_size_aggregations, instance_size_aggregations, group_size_aggregations")
        )

    run = compute_windows(parallel, "weekly", *days)

    assert [figures(wide_engine, level) for level in (DATABASE, INSTANCE)] == rows
    assert [error.instance_id for error in run.errors] == [error.instance_id for error in expected.errors]
    assert [error.instance_id for error in run.errors] == [4, 17] * 2, "in the week that holds it, and in the next"
    for name in ("processed_instances", "skipped_instances", "failed_instances", "written_records"):
        assert run.total(name) == expected.total(name), name


def test_a_slice_that_waits_holds_up_no_other(wide_engine: Engine, parallel: AggregationService) -> None:
    add_servers(wide_engine, 6)
    parallel.aggregate("monthly", MARCH, INSTANCE_LEVEL)
    with wide_engine.begin() as connection:
        connection.execute(text("UPDATE instance_size_stats SET total_size_mb = total_size_mb + 1"))
    written = text("SELECT instance_id FROM instance_size_aggregations WHERE max_size_mb = instance_id * 20 + 1")

    with wide_engine.connect() as blocker, ThreadPoolExecutor(1) as thread:
        blocker.execute(text("SELECT 1 FROM instance_size_aggregations WHERE instance_id = 1 FOR UPDATE"))
        run = thread.submit(parallel.aggregate, "monthly", MARCH, INSTANCE_LEVEL)
        seen: set[int] = set()
        deadline = time.monotonic() + 30
        while seen != {3, 4, 5, 6} and time.monotonic() < deadline:
            with wide_engine.connect() as connection:
                seen = set(connection.execute(written).scalars())
        blocked_then = not run.done()
        blocker.rollback()
        summary = run.result(30)

    assert seen == {3, 4, 5, 6}, "two slices are done while the first waits"
    assert blocked_then
    assert summary.total("written_records") == 6


def test_a_fleet_smaller_than_a_slice_is_divided_too(wide_engine: Engine) -> None:
    service = AggregationService(wide_engine, fixed_clock(), parallel_slices=3)
    add_servers(wide_engine, 37)
    slices: list[int] = []

    service.aggregate("monthly", MARCH, RunOptions(("instance",), progress=slices.append))

    assert slices == [13, 13, 11]
    assert len(stored(wide_engine, INSTANCE)) == 37


def test_after_a_lost_connection_no_further_slice_is_begun_and_a_repetition_completes(
    wide_engine: Engine, parallel: AggregationService
) -> None:
    add_servers(wide_engine, 40)
    calls = 0

    def kill_all_at_the_fifth() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            end_sessions(wide_engine)

    with pytest.raises(DatabaseError, match="Completed slices were kept") as caught:
        parallel.aggregate("monthly", MARCH, RunOptions(("instance",), guard=kill_all_at_the_fifth))

    kept = len(stored(wide_engine, INSTANCE))
    assert caught.value.transient
    assert kept >= 4, "of the four slices before, two may still have been committing"
    assert kept < 40, "no further slice was begun"
    assert parallel.aggregate("monthly", MARCH, INSTANCE_LEVEL).total("written_records") == 40 - kept


@pytest.mark.parametrize("with_redis", [True, False], ids=["Redis", "PostgreSQL"])
def test_every_slice_asks_for_the_lock_and_one_lost_in_mid_work_stops_them_all(
    wide_engine: Engine, redis_server: RedisServer, *, with_redis: bool
) -> None:
    add_servers(wide_engine, 40)
    locks = CapacityLockManager(wide_engine, redis_server.url if with_redis else None)
    parallel = AggregationService(wide_engine, fixed_clock(), locks=locks, instances_per_slice=2, parallel_slices=3)
    runner = AggregationTaskRunner(parallel)
    holders = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'capacity_assets lock%'"
    )

    def lose_the_lock(_instances: int) -> None:
        if with_redis:
            redis_server.client().flushall()
        else:
            with wide_engine.connect() as connection:
                connection.execute(holders)

    with pytest.raises(LockLostError):
        runner.run_period("monthly", MARCH, RunOptions(("instance",), progress=lose_the_lock))

    kept = len(stored(wide_engine, INSTANCE))
    assert 2 <= kept < 40
    assert kept % 2 == 0, "whole slices or none of them"
    assert len(stored(wide_engine, INSTANCE)) == kept
    assert runner.run_period("monthly", MARCH, INSTANCE_LEVEL).total("written_records") == 40 - kept
