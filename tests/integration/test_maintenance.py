"""Partitions ahead of time, and rows out of the default ones."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.changes import STALE_WINDOWS
from capacity_assets.database.cluster import is_distributed
from capacity_assets.database.distributing import distribute
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.partitions import CAPACITY_TABLES, PARTITIONED, PartitionBounds, bounds_between, bounds_of
from capacity_assets.database.schema import initialise
from capacity_assets.database.tables import database_size_aggregations, database_size_stats, metadata
from tests.clocks import TODAY
from tests.databases import execute
from tests.fleet import add_database_sizes, sizes
from tests.partitions import (
    compute,
    everything,
    keeper,
    partition_names,
    rows_by_partition,
)


def test_samples_are_cut_by_month_aggregates_by_period_and_month_or_year() -> None:
    assert bounds_of(date(2025, 2, 28)) == PartitionBounds(None, date(2025, 2, 1), date(2025, 3, 1))
    assert bounds_of(date(2024, 2, 29), PERIODS["daily"]) == PartitionBounds(
        "daily", date(2024, 2, 1), date(2024, 3, 1)
    )
    assert bounds_of(date(2025, 12, 29), PERIODS["weekly"]) == PartitionBounds(
        "weekly", date(2025, 1, 1), date(2026, 1, 1)
    )
    assert bounds_between(date(2025, 11, 30), date(2026, 1, 1)) == [
        PartitionBounds(None, date(2025, 11, 1), date(2025, 12, 1)),
        PartitionBounds(None, date(2025, 12, 1), date(2026, 1, 1)),
        PartitionBounds(None, date(2026, 1, 1), date(2026, 2, 1)),
    ]


def test_a_new_database_has_partitions_from_the_first_day_to_two_months_ahead(empty_engine: Engine) -> None:
    initialise(empty_engine)

    report = keeper(empty_engine).prepare(date(2025, 11, 3))

    assert partition_names(empty_engine, database_size_stats) == [
        *(f"database_size_stats_2025_{month:02}" for month in range(1, 13)),
        "database_size_stats_2026_01",
        "database_size_stats_default",
    ]
    aggregates = set(partition_names(empty_engine, database_size_aggregations))
    assert {f"database_size_aggregations_daily_{month}" for month in ("2025_01", "2025_12", "2026_01")} <= aggregates
    for period in ("weekly", "monthly", "quarterly", "yearly"):
        assert {f"database_size_aggregations_{period}_{year}" for year in (2025, 2026)} <= aggregates
    assert report.moved_records == 0
    assert keeper(empty_engine).prepare(date(2025, 11, 3)).created == [], "once is enough"


def test_rows_of_every_window_land_in_partitions_and_none_in_a_default(
    two_servers: Engine, service: AggregationService
) -> None:
    compute(service, *PERIODS)

    assert rows_by_partition(two_servers, "database_size_stats")["database_size_stats_2025_02"] == 2 * 28
    by_partition = rows_by_partition(two_servers, "instance_size_aggregations")
    assert by_partition["instance_size_aggregations_daily_2025_07"] == 2 * 20
    assert by_partition["instance_size_aggregations_monthly_2025"] == 2 * 7
    # The week of 2024-12-30 holds 2025-01-01, and is the first.
    assert by_partition["instance_size_aggregations_weekly_2024"] == 2
    assert [
        name for table in CAPACITY_TABLES for name in rows_by_partition(two_servers, table.name) if "default" in name
    ] == []


def test_rows_without_a_partition_are_taken_and_moved_later_unchanged(
    two_servers: Engine, service: AggregationService
) -> None:
    compute(service, *PERIODS)
    add_database_sizes(two_servers, sizes(1, "old", "2023-11-29", range(10)))
    before, stale = everything(two_servers), service.ledger.stale()
    assert rows_by_partition(two_servers, "database_size_stats")["database_size_stats_default"] == 10

    report = keeper(two_servers).run(TODAY)

    assert report.moved_records == 10
    assert report.created == [
        "database_size_stats: 2023-11-01 to 2023-11-30",
        "database_size_stats: 2023-12-01 to 2023-12-31",
    ]
    found = rows_by_partition(two_servers, "database_size_stats")
    assert (found["database_size_stats_2023_11"], found["database_size_stats_2023_12"]) == (2, 8)
    assert "database_size_stats_default" not in found
    assert everything(two_servers) == before
    assert service.ledger.stale() == stale, "moving is no change of samples"


def test_rows_from_far_ahead_stay_in_the_default_partition_and_are_reported(two_servers: Engine) -> None:
    add_database_sizes(two_servers, sizes(1, "wrong clock", "2099-01-01", [1]))

    report = keeper(two_servers).run(TODAY)

    assert report.created == []
    assert report.notes == [
        "database_size_stats: rows from 2099-01-01 on, more than 62 days ahead, stay in database_size_stats_default"
    ]


@pytest.mark.parametrize("day", ["infinity", "-infinity", "9999-12-31", "0001-01-01"])
def test_a_day_that_cannot_be_meant_hinders_nothing_and_is_reported(two_servers: Engine, day: str) -> None:
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-30", [5]))
    with two_servers.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                "VALUES (1, 'odd', 1, CAST(:day AS date))"
            ),
            {"day": day},
        )

    report = keeper(two_servers).run(TODAY)

    message = "database_size_stats: rows dated before 1900 or after 8999 stay in"
    assert report.notes == [f"{message} database_size_stats_default"]
    assert report.moved_records == 1
    assert rows_by_partition(two_servers, "database_size_stats")["database_size_stats_default"] == 1
    assert keeper(two_servers).shortcomings(TODAY) == [f"{message} its default partition"]


def test_rows_of_a_period_that_is_not_registered_stay_where_they_are(two_servers: Engine) -> None:
    execute(
        two_servers,
        "INSERT INTO instance_size_aggregations (instance_id, period_type, period_start, period_end, "
        "total_size_mb, avg_size_mb, max_size_mb, min_size_mb, data_count, database_count) "
        "VALUES (1, 'fortnightly', '2025-01-01', '2025-01-14', 1, 1, 1, 1, 1, 1)",
    )

    report = keeper(two_servers).run(TODAY)

    assert report.created == []
    assert report.notes == [
        "instance_size_aggregations: rows of the period 'fortnightly', which is not registered, stay in "
        "instance_size_aggregations_default"
    ]
    assert rows_by_partition(two_servers, "instance_size_aggregations") == {"instance_size_aggregations_default": 1}


def test_partitions_belong_to_the_owner_of_the_table_whoever_adds_them(two_servers: Engine) -> None:
    role = f"owner_{two_servers.url.database}"
    execute(two_servers, f"CREATE ROLE {role} LOGIN")
    execute(two_servers, f"GRANT CREATE ON SCHEMA public TO {role}")
    names = [table.name for table in metadata.sorted_tables]
    names += [name for table in PARTITIONED for name in partition_names(two_servers, table)]
    for name in (*names, STALE_WINDOWS):
        execute(two_servers, f"ALTER TABLE {name} OWNER TO {role}")
    if is_distributed(two_servers):
        distribute(two_servers)  # gives the owner its rights on what the nodes have for themselves
    owners = text(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE 'database_size_stats_2023%'"
    )
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-30", range(5)))

    keeper(two_servers).run(TODAY)
    with two_servers.connect() as connection:
        assert connection.execute(owners).scalars().all() == [role]
    execute(two_servers, "DELETE FROM database_size_stats WHERE collected_date < '2024-01-01'")
    theirs = capacity_engine(two_servers.url.set(username=role))
    try:
        dropped = keeper(theirs, "raw=400").run(TODAY).dropped
    finally:
        theirs.dispose()
    execute(two_servers, f"REASSIGN OWNED BY {role} TO postgres")
    execute(two_servers, f"DROP OWNED BY {role}")
    execute(two_servers, f"DROP ROLE {role}")

    assert [line.split(":")[0] for line in dropped] == ["database_size_stats_2023_01", "database_size_stats_2023_02"]


@pytest.mark.single_server("makes triggers per row")
def test_moving_fires_no_row_trigger_and_leaves_each_as_it_was(two_servers: Engine) -> None:
    execute(two_servers, "CREATE TABLE fired (what text)")
    execute(
        two_servers,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN INSERT INTO fired VALUES (TG_NAME || TG_OP); RETURN NULL; END'",
    )
    for name, event in (("usual", "DELETE"), ("always", "DELETE"), ("off", "DELETE"), ("added", "INSERT")):
        what = f"AFTER {event} ON database_size_stats FOR EACH ROW EXECUTE FUNCTION note()"
        execute(two_servers, f"CREATE TRIGGER {name} {what}")
    execute(two_servers, "ALTER TABLE database_size_stats_default ENABLE ALWAYS TRIGGER always")
    execute(two_servers, "ALTER TABLE database_size_stats_default DISABLE TRIGGER off")
    states = text(
        "SELECT tgname, tgenabled FROM pg_trigger "
        "WHERE tgrelid = 'database_size_stats_default'::regclass AND tgconstraint = 0 ORDER BY 1"
    )
    with two_servers.connect() as connection:
        before = connection.execute(states).all()
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-30", [5, 6, 7]))
    execute(two_servers, "TRUNCATE fired")

    assert keeper(two_servers).run(TODAY).moved_records == 3

    with two_servers.connect() as connection:
        assert connection.execute(text("SELECT * FROM fired")).all() == []
        assert connection.execute(states).all() == before
    execute(two_servers, "DELETE FROM database_size_stats WHERE collected_date < '2024-01-01'")
    with two_servers.connect() as connection:
        assert len(connection.execute(text("SELECT * FROM fired")).all()) == 3 * 3, "in the new partitions all three"
