"""Late and corrected samples: which windows are stale, exactly, and what the tables hold after they were redone."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import AggregationStatus
from capacity_assets.base.periods import PERIODS
from tests.databases import execute
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    figures,
    sizes,
    totals,
)
from tests.ledger import compute_everything, half_a_year_of_two_servers, recorded, redo, stale

PREPARED = {"computed": half_a_year_of_two_servers}


def test_nothing_is_stale_after_everything_was_computed_and_the_queue_of_changes_is_empty(
    engine: Engine, computed: AggregationService
) -> None:
    assert stale(computed) == set()
    assert recorded(engine) == []


def test_a_corrected_day_makes_exactly_the_windows_that_hold_it_and_their_successors_stale(
    engine: Engine, computed: AggregationService
) -> None:
    execute(
        engine,
        "UPDATE database_size_stats SET size_mb = 7 WHERE instance_id = 1 AND collected_date = '2025-03-31'",
    )

    assert stale(computed) == {
        (level, period, start)
        for period, starts in {
            "daily": ["2025-03-31", "2025-04-01"],
            "weekly": ["2025-03-31", "2025-04-07"],
            "monthly": ["2025-03-01", "2025-04-01"],
            "quarterly": ["2025-01-01", "2025-04-01"],
            "yearly": ["2025-01-01"],
        }.items()
        for start in starts
        for level in ("database", "group")
    }
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_rows_that_are_to_be_replaced_make_only_the_windows_outdated_that_are_compared_with_them(
    computed: AggregationService,
) -> None:
    period = PERIODS["monthly"]

    for first in (date(2025, 2, 1), date(2024, 5, 1)):
        computed.ledger.invalidate(period, [DATABASE], [period.window_of(first)])

    outdated = [(found.level, found.window.key) for found in computed.ledger.outdated()]
    assert outdated == [("database", f"2025-0{month}-01") for month in (2, 3, 5)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE database_size_stats SET updated_at = now()",
        "UPDATE database_size_stats SET size_mb = size_mb",
        "UPDATE database_size_stats SET size_mb = 1 WHERE false",
        "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
        "SELECT instance_id, database_name, size_mb, collected_date FROM database_size_stats "
        "ON CONFLICT (instance_id, database_name, collected_date) DO UPDATE SET size_mb = excluded.size_mb",
        "DELETE FROM database_size_stats WHERE collected_date < '2025-03-01'",
    ],
    ids=["touched", "same value", "no row", "imported again", "purged"],
)
def test_what_changes_no_figure_makes_nothing_stale(
    engine: Engine, computed: AggregationService, statement: str
) -> None:
    stale(computed)
    execute(engine, statement)

    assert recorded(engine) == []


@pytest.mark.parametrize(
    ("statement", "days"),
    [
        ("UPDATE instance_size_stats SET is_deleted = true WHERE id = 3", ["2025-01-03"]),
        ("UPDATE instance_size_stats SET collected_date = '2025-08-01' WHERE id = 3", ["2025-01-03", "2025-08-01"]),
        ("UPDATE instance_size_stats SET id = 99999, database_count = 2 WHERE id = 3", ["2025-01-03"]),
    ],
    ids=["voided", "moved to another day", "with a new id"],
)
def test_corrections_of_any_kind_are_noted(
    engine: Engine, computed: AggregationService, statement: str, days: list[str]
) -> None:
    stale(computed)
    execute(engine, statement)

    assert recorded(engine) == [("instance_size_stats", date.fromisoformat(day)) for day in days]


def test_computing_some_servers_only_does_not_count_as_computed(engine: Engine, computed: AggregationService) -> None:
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")

    computed.aggregate("daily", [PERIODS["daily"].window_of(date(2025, 3, 31))], RunOptions(instance_ids=[1]))

    assert ("database", "daily", "2025-03-31") in stale(computed)


def test_mended_samples_of_a_failed_server_make_its_windows_stale(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, "2025-03-09", [(100, 1)]))
    add_overflowing_instance(engine, 2, date(2025, 3, 9))
    day = PERIODS["daily"].window_of(date(2025, 3, 9))
    assert service.aggregate("daily", [day]).status is AggregationStatus.FAILED
    [left] = service.ledger.incomplete_windows(PERIODS["daily"], INSTANCE, [day])
    assert left.reason == "servers that failed in it: 1"

    execute(engine, "UPDATE instance_size_stats SET total_size_mb = 5 WHERE instance_id = 2")
    redo(service)

    assert service.ledger.incomplete_windows(PERIODS["daily"], INSTANCE, [day]) == []
    assert len(figures(engine, INSTANCE)) == 2


def test_windows_that_are_due_and_left_are_told_with_the_reason(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [1, 2, None, 4]))
    days = PERIODS["daily"].windows_between(date(2025, 3, 1), date(2025, 3, 4))
    service.aggregate("daily", days[:1])
    add_database_sizes(engine, sizes(1, "crm", "2025-03-01", [1]))

    left = service.ledger.incomplete_windows(PERIODS["daily"], DATABASE, days, patience_seconds=0)
    patient = service.ledger.incomplete_windows(PERIODS["daily"], DATABASE, days)

    assert [found.window.key for found in patient] == ["2025-03-02", "2025-03-04"], "a fresh change is being followed"
    assert [(found.window.key, found.reason) for found in left] == [
        ("2025-03-01", "samples changed since it was computed"),
        ("2025-03-02", "has samples, but was never computed"),
        ("2025-03-04", "has samples, but was never computed"),
    ], "a day without samples needs no computation"
