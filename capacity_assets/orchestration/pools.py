"""One run per period at a time, however it is started: pools of one slot, and their limits set before the first run.

The limit of a pool that Dagster has never seen is set only after the first dequeue, which lets two runs of
a fresh pool run side by side. Therefore set-up sets each limit explicitly, and `capacity check` looks.
Writers that the run coordinator does not see are the business of the lock around a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from capacity_assets.orchestration.naming import pool_name
from capacity_assets.periods import Period

if TYPE_CHECKING:
    from capacity_assets.orchestration.private.definitions import EventLogStorage

COLLECTION_POOL, RUNWAY_POOL = "capacity_collection", "capacity_runway"


def set_pool_limits(storage: EventLogStorage, periods: Iterable[Period], shares: int) -> None:
    """Give each period's pool and that of the runways their single slot, and the collection one per share.

    A limit that stands already is not written again: that takes several statements per pool.
    """
    for name, slots in _missing_limits(storage, periods, shares).items():
        storage.set_concurrency_slots(name, slots)


def pools_without_limit(storage: EventLogStorage, periods: Iterable[Period], shares: int) -> list[str]:
    """Return the pools whose explicit limit is another one; raises DBAPIError, also where Dagster has no tables yet."""
    return list(_missing_limits(storage, periods, shares))


def _missing_limits(storage: EventLogStorage, periods: Iterable[Period], shares: int) -> dict[str, int]:
    limits = {pool.name: pool.limit for pool in storage.get_pool_limits() if not pool.from_default}
    return {name: slots for name, slots in _pools(periods, shares).items() if limits.get(name) != slots}


def _pools(periods: Iterable[Period], shares: int) -> dict[str, int]:
    return {**{pool_name(period): 1 for period in periods}, COLLECTION_POOL: max(1, shares), RUNWAY_POOL: 1}
