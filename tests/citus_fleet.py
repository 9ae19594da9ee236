"""Windows, servers and work that the tests on a cluster share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

from sqlalchemy import Engine

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.engine import capacity_engine
from tests import citus
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.fleet import Row, figures

FIRST, LAST = date(2025, 1, 1), date(2025, 7, 1)
SHARDS = 4
SERVERS = range(1, 7)


@contextmanager
def opened(databases: citus.CitusDatabases, template: str) -> Iterator[Engine]:
    with databases.copy(template) as url:
        engine = capacity_engine(url)
        yield engine
        engine.dispose()


def service(engine: Engine) -> AggregationService:
    # In one slice, so that a statement has servers on every node.
    return AggregationService(engine, fixed_clock(), parallel_slices=1)


def compute_everything(engine: Engine) -> None:
    for period in PERIODS:
        compute_windows(service(engine), period, FIRST, LAST)


def everything(engine: Engine) -> dict[object, Row]:
    return {(level.name, *key): row for level in LEVELS.values() for key, row in figures(engine, level).items()}
