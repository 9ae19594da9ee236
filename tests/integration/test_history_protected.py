"""Rows that are built from more samples than are left stay, until they are overwritten."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, delete, update

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, Level
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.tables import instance_size_stats
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.two_months import FEBRUARY_AND_MARCH, MARCH, by_name, protected, remove_samples, two_months


def test_a_row_built_from_more_samples_than_are_left_is_protected(engine: Engine, service: AggregationService) -> None:
    two_months(engine)
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))
    before = stored(engine, DATABASE)
    remove_samples(engine, "orders", date(2025, 3, 1), date(2025, 3, 20))

    run = service.aggregate("monthly", MARCH, RunOptions(("database",)))

    assert protected(run) == (0, 2, 1)
    assert stored(engine, DATABASE) == before


def test_a_row_whose_samples_are_all_gone_stays_although_nothing_supports_it(
    engine: Engine, service: AggregationService
) -> None:
    two_months(engine)
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))
    before = stored(engine, DATABASE)
    remove_samples(engine, "orders", date(2025, 3, 1), date(2025, 3, 31))

    run = service.aggregate("monthly", MARCH, RunOptions(("database",)))

    assert protected(run) == (0, 2, 0)
    assert run.total("unsampled_records") == 1
    assert "1 row kept without samples" in run.message
    assert service.aggregate("monthly", MARCH, RunOptions(("database",))).total("unsampled_records") == 1
    assert stored(engine, DATABASE) == before


def test_rows_without_samples_are_counted_once_where_days_of_more_than_a_year_are_computed(
    engine: Engine, service: AggregationService
) -> None:
    """Of many servers, days before the first sample are not read, so that rows stand for these days alone."""
    add_instances(engine, range(1, 41))
    add_database_sizes(engine, sizes(1, "orders", "2024-01-01", range(100, 110)))
    old_days = PERIODS["daily"].windows_between(date(2024, 1, 1), date(2024, 1, 10))
    service.aggregate("daily", old_days, RunOptions(("database",)))
    remove_samples(engine, "orders", date(2024, 1, 1), date(2024, 1, 10))
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [200, 210, 220]))

    days = PERIODS["daily"].windows_between(date(2024, 1, 1), date(2025, 3, 3))
    run = service.aggregate("daily", days, RunOptions(("database",)))

    assert protected(run) == (3, 0, 0)
    assert run.total("unsampled_records") == 10
    assert len(stored(engine, DATABASE)) == 13


@pytest.mark.parametrize("level", [DATABASE, INSTANCE], ids=["database", "instance"])
@pytest.mark.parametrize("one_by_one", [True, False], ids=["one window", "several windows"])
def test_a_known_change_is_not_lost_when_both_samples_and_row_of_the_window_before_are_gone(
    engine: Engine, service: AggregationService, level: Level, *, one_by_one: bool
) -> None:
    """What the project's own retention does, and the legacy application's cleanup, which drops both together."""
    two_months(engine)
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions((level.name,)))
    with engine.begin() as connection:
        source, target = level.source, level.target
        connection.execute(delete(source).where(source.c.collected_date < date(2025, 3, 1)))
        connection.execute(delete(target).where(target.c.period_start == date(2025, 2, 1)))
    before = [row for row in stored(engine, level) if row[level.headline.change] is not None]
    assert before

    windows = MARCH if one_by_one else [*MARCH, PERIODS["monthly"].window_of(date(2025, 4, 1))]
    run = service.aggregate("monthly", windows, RunOptions((level.name,), recompute=True))

    assert [row for row in stored(engine, level) if row[level.headline.change] is not None] == before
    assert run.total("protected_records") == len(before)


def test_a_change_follows_the_stored_row_of_the_window_before_when_its_samples_were_purged(
    engine: Engine, service: AggregationService
) -> None:
    """A change is built from the samples of two windows; with fewer of the first it would silently become another."""
    two_months(engine)
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))
    before = by_name(engine, date(2025, 3, 1))
    remove_samples(engine, "orders", date(2025, 2, 1), date(2025, 2, 20))
    remove_samples(engine, "crm", date(2025, 2, 1), date(2025, 2, 28))

    run = service.aggregate("monthly", MARCH, RunOptions(("database",)))

    assert protected(run) == (0, 3, 0), "the stored rows of February say what it was"
    assert by_name(engine, date(2025, 3, 1)) == before


def test_overwrite_rebuilds_the_window_exactly(engine: Engine, service: AggregationService) -> None:
    two_months(engine)
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))
    remove_samples(engine, "orders", date(2025, 3, 2), date(2025, 3, 31))
    remove_samples(engine, "crm", date(2025, 3, 1), date(2025, 3, 31))
    remove_samples(engine, "audit", date(2025, 3, 1), date(2025, 3, 31))

    planned = service.aggregate("monthly", MARCH, RunOptions(("database",), overwrite=True, dry_run=True))
    rebuilt = service.aggregate("monthly", MARCH, RunOptions(("database",), overwrite=True))

    march = by_name(engine, date(2025, 3, 1))
    for run in (planned, rebuilt):
        counts = [run.total(f"{name}_records") for name in ("written", "removed", "unsampled")]
        assert counts == [1, 1, 1]
    assert march["orders"]["data_count"] == 1
    assert "crm" not in march, "its server has samples in March, so the row is not supported any more"
    assert march["audit"]["data_count"] == 21, "its server has no sample at all in March, so its rows stay"
    assert len(by_name(engine, date(2025, 2, 1))) == 3, "other windows are not touched"


def test_overwrite_leaves_other_periods_and_inactive_instances_alone(
    engine: Engine, service: AggregationService
) -> None:
    two_months(engine)
    service.aggregate("monthly", MARCH, RunOptions(("database",)))
    service.aggregate("quarterly", [PERIODS["quarterly"].window_of(date(2025, 3, 1))], RunOptions(("database",)))
    execute(engine, "UPDATE instances SET is_active = false WHERE id = 2")
    remove_samples(engine, "orders", date(2025, 1, 1), date(2025, 12, 31))
    remove_samples(engine, "audit", date(2025, 1, 1), date(2025, 12, 31))

    run = service.aggregate("monthly", MARCH, RunOptions(("database",), overwrite=True))

    assert run.total("removed_records") == 1
    assert set(by_name(engine, date(2025, 3, 1))) == {"crm", "audit"}
    assert len(stored(engine, DATABASE, "quarterly")) == 3


def test_a_void_day_no_longer_counts_and_its_row_is_protected_until_overwritten(
    engine: Engine, service: AggregationService
) -> None:
    two_months(engine)
    service.aggregate("monthly", MARCH, RunOptions(("instance",)))
    with engine.begin() as connection:
        raw = instance_size_stats
        connection.execute(update(raw).where(raw.c.collected_date == date(2025, 3, 31)).values(is_deleted=True))

    kept = service.aggregate("monthly", MARCH, RunOptions(("instance",)))
    rebuilt = service.aggregate("monthly", MARCH, RunOptions(("instance",), overwrite=True))

    assert (protected(kept), protected(rebuilt)) == ((0, 0, 1), (1, 0, 0))
    assert [row["data_count"] for row in stored(engine, INSTANCE)] == [30]
