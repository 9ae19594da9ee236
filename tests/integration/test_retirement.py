"""Old rows leave as whole partitions: when, what a dry run says, and what becomes of the figures."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.ledger import Ledger
from capacity_assets.aggregates.levels import DATABASE, GROUP, INSTANCE, LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.partitions import CAPACITY_TABLES, PartitionBounds
from capacity_assets.database.schema import initialise
from capacity_assets.database.tables import capacity_object_sizes
from capacity_assets.history.retention import Retention, RetentionPlan
from tests.clocks import TODAY
from tests.databases import rows
from tests.fleet import add_database_sizes, add_instances, figures, sizes, stored
from tests.legacy import LegacyShape, create_legacy_tables
from tests.partitions import (
    A_YEAR_LATER,
    SHORT,
    compute,
    everything,
    keeper,
    partition_names,
    rows_by_partition,
)


@pytest.mark.parametrize(
    ("period", "day", "last_reader", "ends"),
    [
        ("daily", date(2024, 3, 5), date(2025, 3, 5), date(2025, 3, 5)),
        # A week compares with that of 52 weeks before: the Sunday of one with the week of 364 days later.
        ("weekly", date(2024, 3, 10), date(2025, 3, 3), date(2025, 3, 9)),
    ],
)
def test_the_window_of_a_year_later_that_ends_today_is_not_over(
    engine: Engine, period: str, day: date, last_reader: date, ends: date
) -> None:
    """Even where it is the first that anyone asked for."""
    periods = {period: PERIODS[period]}
    plan = RetentionPlan(Ledger(engine, periods), last_reader, Retention({}), periods)
    span = PartitionBounds(None, day, day + timedelta(days=1))

    with engine.connect() as connection:
        reasons = [
            plan.reason_to_keep(connection, DATABASE.source, span, today, is_locked=False)
            for today in (ends, ends + timedelta(days=1))
        ]

    assert reasons == [f"the {period} window from {last_reader} reads them and is not over", None]


def test_nothing_computed_is_changed_by_retention_nor_by_computing_again_after_it(
    two_servers: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    before = figures(two_servers, DATABASE), figures(two_servers, INSTANCE)

    assert keeper(two_servers, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER).dropped_records == 724
    compute(service, *SHORT)

    assert (figures(two_servers, DATABASE), figures(two_servers, INSTANCE)) == before
    assert service.ledger.stale() == []


@pytest.mark.parametrize(("days", "goes"), [(19, True), (20, False), (21, False)])
def test_a_partition_goes_when_its_last_day_is_older_than_the_days_to_keep(
    two_servers: Engine, service: AggregationService, days: int, *, goes: bool
) -> None:
    compute(service, "daily")
    assert TODAY - timedelta(days=20) == date(2025, 6, 30)

    report = keeper(two_servers, f"raw=forever,daily={days}", SHORT).run(TODAY)

    june = "database_size_aggregations_daily_2025_06: 60 rows, daily windows that start from 2025-06-01 to 2025-06-30"
    assert (june in report.dropped) is goes


def test_old_rows_of_one_period_go_and_those_of_the_others_and_the_other_level_stay(
    two_servers: Engine, service: AggregationService
) -> None:
    compute(service, *PERIODS)
    before = {level.name: stored(two_servers, level) for level in LEVELS.values()}

    kept = "daily_instance_aggregations=forever,daily_group_aggregations=forever"
    report = keeper(two_servers, f"raw=forever,daily=30,{kept}").run(TODAY)

    assert report.dropped_records == 2 * (31 + 28 + 31 + 30 + 31)
    assert stored(two_servers, INSTANCE) == before["instance"]
    assert stored(two_servers, GROUP) == before["group"]
    assert stored(two_servers, DATABASE) == [
        row for row in before["database"] if row["period_type"] != "daily" or row["period_start"] >= date(2025, 6, 1)
    ]


def test_a_dry_run_says_what_the_run_then_does_and_changes_nothing(
    two_servers: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-30", range(5)))
    keep_a_month = keeper(two_servers, "raw=30,daily=30", SHORT)
    before = everything(two_servers), [partition_names(two_servers, table) for table in CAPACITY_TABLES]

    said = keep_a_month.run(TODAY, dry_run=True)

    assert (everything(two_servers), [partition_names(two_servers, table) for table in CAPACITY_TABLES]) == before
    assert said.dropped_records > 0
    done = keep_a_month.run(TODAY).to_dict()
    expected = said.to_dict() | {"dry_run": False}
    assert any(line.startswith("database_size_stats_2023_01: ") for line in said.kept)
    for key in ("created", "moved_records", "dropped", "dropped_records", "kept"):
        assert done[key] == expected[key], key


def test_retention_leaves_an_unpartitioned_database_alone_and_says_so(upgraded: Engine) -> None:
    add_instances(upgraded, [1])
    add_database_sizes(upgraded, sizes(1, "orders", "2019-01-01", range(5)))

    report = keeper(upgraded, "raw=1,daily=1").run(TODAY)

    assert report.notes == [
        f"{table.name} is not partitioned: old rows stay; `capacity copy` to an empty database partitions it there"
        for table in CAPACITY_TABLES
    ]
    assert len(everything(upgraded)["database_size_stats"]) == 5


def test_a_legacy_database_cut_by_month_gets_its_months_and_keeps_what_one_of_its_periods_keeps(
    empty_engine: Engine,
) -> None:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=True))
    initialise(empty_engine)
    add_instances(empty_engine, [1])
    add_database_sizes(empty_engine, sizes(1, "orders", "2025-07-30", range(5)))
    assert rows_by_partition(empty_engine, "database_size_stats")["database_size_stats_default"] == 3

    report = keeper(empty_engine, "raw=forever,daily=1").run(date(2025, 8, 3))

    assert report.moved_records == 3
    assert "database_size_aggregations: 2025-08-01 to 2025-08-31" in report.created
    assert report.dropped == [], "weekly and longer windows of those months are kept for ever"
    everything_short = ",".join(f"{period}=1" for period in PERIODS)
    dropped = keeper(empty_engine, f"raw=forever,{everything_short}").run(date(2025, 8, 3)).dropped
    assert [line.split(":")[0] for line in dropped if "instance" in line] == [
        "instance_size_aggregations_2024_12",
        *(f"instance_size_aggregations_2025_{month:02}" for month in range(1, 8)),
    ]


@pytest.mark.parametrize("dry_run", [False, True])
def test_sizes_of_tables_of_a_dropped_database_go_when_its_samples_would(engine: Engine, *, dry_run: bool) -> None:
    add_instances(engine, [1])
    last_kept = TODAY - timedelta(days=30)
    for name, day in (("dropped", last_kept - timedelta(days=1)), ("shop", last_kept)):
        values = {"instance_id": 1, "database_name": name, "collected_date": day}
        with engine.begin() as connection:
            connection.execute(capacity_object_sizes.insert(), [{**values, "object_hashes": [7], "object_bytes": [8]}])

    report = keeper(engine, "object_size_stats=30").run(TODAY, dry_run=dry_run)
    kept = keeper(engine, "object_size_stats=forever").run(TODAY)

    left = rows(engine, "SELECT database_name FROM capacity_object_sizes ORDER BY 1")
    assert left == [("dropped",), ("shop",)] if dry_run else left == [("shop",)]
    note = "capacity_object_sizes: dropped 1 database last measured before 20 Jun 2025"
    assert (note in report.notes, note in kept.notes) == (True, False)
