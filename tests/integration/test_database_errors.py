"""Every look at the database ends in a sentence when no connection of the pool comes free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

import pytest
from sqlalchemy import URL, Engine, create_engine

from capacity_assets.aggregates.checks import CheckScope, run_checks
from capacity_assets.aggregates.explanation import find_subjects
from capacity_assets.aggregates.levels import DATABASE, RAW_TABLES
from capacity_assets.aggregates.runs import coverage_of
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import DatabaseError
from capacity_assets.base.periods import PERIODS
from capacity_assets.collection.servers import collection_state, registered_servers
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.history.other_databases import legacy_tables
from capacity_assets.reading.changes import window_sizes
from capacity_assets.reading.windows import data_versions
from capacity_assets.report.page import read_report
from tests.clocks import SHANGHAI, TODAY, fixed_clock

MONTHLY = PERIODS["monthly"]
MARCH = MONTHLY.window_of(date(2025, 3, 1))
LOOKS: dict[str, Callable[[Engine], object]] = {
    "service.instances": lambda engine: AggregationService(engine, fixed_clock()).instances(None),
    "service.aggregate": lambda engine: AggregationService(engine, fixed_clock()).aggregate("monthly", [MARCH]),
    "ledger.stale": lambda engine: AggregationService(engine, fixed_clock()).ledger.stale(),
    "quality.run_checks": lambda engine: run_checks(engine, CheckScope("monthly", DATABASE, [MARCH], TODAY, 50)),
    "registry.registered": registered_servers,
    "coverage": lambda engine: coverage_of(engine, [DATABASE], [MARCH], TODAY),
    "movers": lambda engine: window_sizes(engine, MONTHLY, DATABASE, [MARCH]),
    "readiness": lambda engine: refuse_an_unfit_database(engine, SHANGHAI),
    "explanation": lambda engine: find_subjects(engine, "orders", None),
    "collection standing": collection_state,
    "observing": lambda engine: data_versions(engine, RAW_TABLES[0], TODAY),
    "report": lambda engine: read_report(engine, MONTHLY, MARCH, today=TODAY),
}


@pytest.fixture
def exhausted(database: URL) -> Iterator[Engine]:
    """An engine whose only connection is taken."""
    engine = create_engine(database, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with engine.connect():
        yield engine
    engine.dispose()


def test_a_pool_without_a_free_connection_is_a_sentence_and_may_be_tried_again(exhausted: Engine) -> None:
    for name, look in LOOKS.items():
        with pytest.raises(DatabaseError, match=r"^No database connection became free while .*Run it again\.$") as told:
            look(exhausted)

        assert told.value.transient, name


def test_a_legacy_database_without_a_free_connection_is_named(exhausted: Engine) -> None:
    with pytest.raises(DatabaseError, match=r"cannot be read: no connection became free\.$"):
        legacy_tables(exhausted)
