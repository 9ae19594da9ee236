"""One run per period at a time, however it is started: pools of one slot, and their limits set before the first run.

The limit of a pool that Dagster has never seen is set only after the first dequeue, which lets two runs of
a fresh pool run side by side. Therefore set-up sets each limit explicitly, and `capacity check` looks.
Writers that the run coordinator does not see are the business of the lock around a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

from capacity_assets.orchestration.naming import pool_name
from capacity_assets.periods import Period

if TYPE_CHECKING:
    from dagster_postgres import DagsterPostgresStorage

SLOTS = 1
COLLECTION_POOL, RUNWAY_POOL = "capacity_collection", "capacity_runway"


def set_pool_limits(instance: dg.DagsterInstance, periods: Iterable[Period]) -> None:
    """Give each period's pool, and those of the collection and the runways, their single slot."""
    for name in _pools(periods):
        instance.event_log_storage.set_concurrency_slots(name, SLOTS)


def _pools(periods: Iterable[Period]) -> list[str]:
    return [*map(pool_name, periods), COLLECTION_POOL, RUNWAY_POOL]


def pools_without_limit(storage: DagsterPostgresStorage, periods: Iterable[Period]) -> list[str]:
    """Return the pools whose explicit limit is not one slot.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed, or Dagster has no tables there yet.
    """
    every = storage.event_log_storage.get_pool_limits()
    limits = {pool.name: pool.limit for pool in every if not pool.from_default}
    return [name for name in _pools(periods) if limits.get(name) != SLOTS]
