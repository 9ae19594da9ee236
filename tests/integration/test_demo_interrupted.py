"""Ctrl-C in `capacity demo`: it ends the run at work, and the recomputation beside it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import date

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions, RunSummary
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.sample_runs import OpenWork, PlannedRun, materialise
from capacity_assets.runtime import task_runner
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.ledger import stale

DAY = PERIODS["daily"].window_of(date(2025, 3, 2))
WEEK = PERIODS["weekly"].window_of(date(2025, 2, 24))
DAILY = PlannedRun("daily_aggregation_job", "the daily windows", [DAY])
WAITING = text("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
SECONDS = 10


@pytest.fixture
def orders(engine: Engine) -> Engine:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    return engine


def nothing(_go_on: Callable[[], None]) -> RunSummary:
    return RunSummary()


@pytest.mark.single_server("has the run wait in its own session, not in that of a node")
def test_a_run_that_waits_for_the_database_is_ended_and_not_repeated(orders: Engine, settings: Settings) -> None:
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            with orders.connect() as connection:
                if connection.execute(WAITING).scalar():
                    break
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(SECONDS)
        blocker.rollback()

    with orders.connect() as blocker, dg.DagsterInstance.ephemeral() as instance:
        blocker.execute(text("LOCK TABLE database_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        thread = threading.Thread(target=interrupt)
        thread.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            materialise(settings, instance, OpenWork([DAILY], [], []), on_progress=print, recompute=nothing)
        assert time.monotonic() - started < SECONDS
        ended.set()
        thread.join()

    assert stored(orders, DATABASE) == []


@pytest.mark.nightly("computes until it is stopped")
def test_the_recomputation_beside_the_documents_ends_before_its_next_commit(orders: Engine, settings: Settings) -> None:
    runner = task_runner(orders, settings)
    runner.run_period("daily", [DAY])
    commits: list[float] = []

    def recompute(check_cancelled: Callable[[], None]) -> RunSummary:
        while len(commits) < 1000:
            runner.run_period("daily", [DAY], RunOptions(recompute=True, guard=check_cancelled))
            commits.append(time.monotonic())
        return RunSummary()

    def interrupt(_subject: str, _windows: int) -> None:
        if commits:
            raise KeyboardInterrupt

    work = OpenWork([], [PlannedRun("weekly_aggregation_job", "the weekly windows", [WEEK])] * 20, [])
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(KeyboardInterrupt):
        materialise(settings, instance, work, on_progress=interrupt, recompute=recompute)

    assert time.monotonic() - commits[-1] < SECONDS
    assert len(commits) < 1000
    assert {period for _, period, _ in stale(runner.service)}.isdisjoint({"daily", "weekly"})
