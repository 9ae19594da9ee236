"""Locks on Redis and PostgreSQL, and a runner behind them."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Engine

from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.locks import CapacityLockManager
from tests.clocks import fixed_clock

MARCH = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
DATABASE_LEVEL = RunOptions(("database",))


def runner_with(engine: Engine, locks: CapacityLockManager, *, slices_of: int = 1000) -> AggregationTaskRunner:
    clock = fixed_clock()
    # One after the other, so that a test knows what was committed before.
    service = AggregationService(engine, clock, locks=locks, instances_per_slice=slices_of, parallel_slices=1)
    return AggregationTaskRunner(service)
