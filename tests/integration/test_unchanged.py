"""Windows that nothing has touched are reported as unchanged without being read, and no other window is."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.figures import fingerprint
from capacity_assets.aggregates.levels import DATABASE, INSTANCE, LEVELS
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, with_trend_threshold
from capacity_assets.database.schema import initialise
from capacity_assets.database.tables import metadata
from tests.clocks import TODAY, fixed_clock
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, figures, sizes, stored, totals
from tests.ledger import LAST, compute_everything, redo
from tests.partitions import keeper
from tests.profiles import HISTORIES
from tests.unchanged import MONTHS, counts, months_read

RECOMPUTE = RunOptions(recompute=True)


def months_of_two_servers(engine: Engine) -> None:
    """Two servers with samples of half a year and one without, every month computed."""
    add_instances(engine, [1, 2, 3])
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", "2025-01-01", range(100, 301)))
        add_instance_sizes(engine, totals(number, "2025-01-01", [(size, 1) for size in range(100, 301)]))
    AggregationService(engine, fixed_clock()).aggregate("monthly", MONTHS)


PREPARED = {"computed": months_of_two_servers}


def test_nothing_is_read_again_and_the_summary_says_what_computing_again_would(
    engine: Engine, computed: AggregationService
) -> None:
    before = stored(engine, DATABASE)

    run = computed.aggregate("monthly", MONTHS)

    assert months_read(engine, computed) == {}
    assert counts(run.summaries) == counts(computed.aggregate("monthly", MONTHS, RECOMPUTE).summaries)
    first = run.summaries[0]
    assert (first.processed_instances, first.skipped_instances, first.unchanged_records) == (2, 1, 2)
    assert first.message == (
        "monthly database aggregates 2025-01-01 to 2025-01-31: 2 of 3 servers processed, 0 rows written, "
        "2 unchanged, 0 protected. Samples on 31 of 31 days."
    )
    assert stored(engine, DATABASE) == before


@pytest.mark.parametrize(
    ("statement", "databases", "servers"),
    [
        ("UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-09'", [3, 4], []),
        ("DELETE FROM database_size_stats WHERE collected_date = '2025-03-09'", [3, 4], []),
        ("TRUNCATE instance_size_stats", [], [1, 2, 3, 4, 5, 6, 7]),
        ("UPDATE database_size_aggregations SET avg_size_mb = 7 WHERE period_type = 'monthly'", range(1, 8), []),
        ("DELETE FROM instance_size_aggregations WHERE period_start = '2025-02-01'", [], range(1, 8)),
        ("TRUNCATE database_size_aggregations", range(1, 8), []),
        ("UPDATE instances SET is_active = false WHERE id = 2", range(1, 8), range(1, 8)),
        ("UPDATE instances SET is_active = false WHERE id = 3", range(1, 8), range(1, 8)),
        ("UPDATE instances SET host = '192.0.2.9'", [], []),
        ("UPDATE database_size_stats SET collected_at = now()", [], []),
    ],
)
def test_what_touches_a_window_has_it_computed_once(
    engine: Engine, computed: AggregationService, statement: str, databases: list[int], servers: list[int]
) -> None:
    execute(engine, statement)

    expected = {"database": list(databases), "instance": list(servers)}
    assert months_read(engine, computed) == {level: months for level, months in expected.items() if months}
    assert months_read(engine, computed) == {}


def test_a_foreign_write_that_commits_while_its_window_is_computed_is_not_missed(
    engine: Engine, computed: AggregationService
) -> None:
    execute(engine, "UPDATE database_size_stats SET size_mb = size_mb + 1 WHERE collected_date = '2025-03-09'")
    with engine.connect() as foreign:
        foreign.execute(text("UPDATE database_size_aggregations SET min_size_mb = 7 WHERE period_start = '2025-05-01'"))
        assert months_read(engine, computed) == {"database": [3, 4]}
        foreign.commit()

    assert months_read(engine, computed) == {"database": [1, 2, 3, 4, 5, 6, 7]}


def test_rows_that_left_with_their_partition_are_written_anew(engine: Engine, computed: AggregationService) -> None:
    execute(engine, "DROP TABLE database_size_aggregations_monthly_2025")

    assert computed.aggregate("monthly", MONTHS).total("written_records") == 14


def test_samples_purged_with_their_partition_leave_the_figures_as_they_are(
    engine: Engine, computed: AggregationService
) -> None:
    before = figures(engine, DATABASE)
    only = {"monthly": PERIODS["monthly"]}
    a_year_later = TODAY.replace(year=TODAY.year + 1)
    assert keeper(engine, "raw=30,daily=forever", only).run(a_year_later).dropped_records > 0

    computed.aggregate("monthly", MONTHS)
    assert figures(engine, DATABASE) == before
    unsampled = computed.aggregate("monthly", MONTHS, RECOMPUTE).total("unsampled_records")
    assert unsampled > 0
    assert computed.aggregate("monthly", MONTHS).total("unsampled_records") == unsampled
    assert figures(engine, DATABASE) == before


def test_another_way_of_computing_or_other_servers_are_told_apart() -> None:
    monthly = PERIODS["monthly"]
    marks = {fingerprint(level, monthly, servers) for level in LEVELS.values() for servers in ([1, 2], [1, 2, 3], [12])}

    assert len(marks) == 9
    assert fingerprint(DATABASE, monthly, [2, 1]) == fingerprint(DATABASE, monthly, [1, 2])


def test_computing_for_some_servers_only_is_never_taken_for_the_whole(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, "2025-03-01", [(100, 1)]))
    add_instance_sizes(engine, totals(2, "2025-03-01", [(100, 1)]))
    march = MONTHS[2:3]

    service.aggregate("monthly", march, RunOptions(instance_ids=[1]))

    assert service.aggregate("monthly", march).of_level("instance").total("written_records") == 1


def test_after_triggers_were_lost_nothing_is_taken_as_unchanged(engine: Engine, computed: AggregationService) -> None:
    execute(engine, "DROP TRIGGER capacity_track_writes_update ON database_size_aggregations")
    execute(engine, "UPDATE database_size_aggregations SET avg_size_mb = 7 WHERE period_start = '2025-02-01'")

    initialise(engine)

    assert months_read(engine, computed) == {"database": list(range(1, 8)), "instance": list(range(1, 8))}


@pytest.mark.parametrize(
    "table", ["database_size_stats", "instance_size_stats", "instances", "database_size_aggregations"]
)
def test_while_triggers_are_off_nothing_is_taken_as_unchanged(
    engine: Engine, computed: AggregationService, table: str
) -> None:
    execute(engine, f"ALTER TABLE {table} DISABLE TRIGGER USER")

    assert months_read(engine, computed) == {"database": list(range(1, 8)), "instance": list(range(1, 8))}
    execute(engine, f"ALTER TABLE {table} ENABLE TRIGGER USER")
    assert months_read(engine, computed) == {}


def test_a_window_whose_predecessor_was_overwritten_is_computed_again(
    engine: Engine, computed: AggregationService
) -> None:
    """It compares with the stored row before it, which is another one now."""
    execute(engine, "DELETE FROM database_size_stats WHERE collected_date < '2025-02-15'")
    march = computed.aggregate("monthly", MONTHS[2:3])
    assert march.total("unchanged_records") == 4 + 3, "March compares with February; groups do by the same totals"

    computed.aggregate("monthly", MONTHS[1:2], RunOptions(overwrite=True))

    march = computed.aggregate("monthly", MONTHS[2:3])
    assert (march.total("protected_records"), march.total("written_records")) == (0, 2)


def test_a_server_that_becomes_active_while_a_level_is_computed_is_not_lost(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_instances(engine, [2], is_active=False)
    for number in (1, 2):
        add_instance_sizes(engine, totals(number, "2025-03-01", [(100, 1)]))
        add_database_sizes(engine, sizes(number, "orders", "2025-03-01", [1]))

    def activate(_instances: int) -> None:
        execute(engine, "UPDATE instances SET is_active = true WHERE id = 2")

    service.aggregate("monthly", MONTHS[2:3], RunOptions(progress=activate))

    assert [row["instance_id"] for row in stored(engine, INSTANCE)] == [1], (
        "all levels of a run are of the same servers"
    )
    again = {(stale.level, stale.window) for stale in service.ledger.stale()}
    assert again == {(level, MONTHS[2]) for level in LEVELS}, "rather once too often than once too few"
    redo(service)
    assert {row["instance_id"] for row in stored(engine, DATABASE)} == {1, 2}
    assert service.ledger.stale() == []


def test_another_trend_threshold_is_another_way_of_computing() -> None:
    def marks(percent: int | None) -> set[str]:
        period = with_trend_threshold(PERIODS, None if percent is None else Decimal(percent))["monthly"]
        return {fingerprint(level, period, [1]) for level in LEVELS.values()}

    assert not marks(None) & marks(50), "both levels have a trend"
    assert marks(None) == marks(None)


# Eight weeks, with ends of months and of a quarter.
BEGIN = date(2025, 5, 26)
DAY = st.integers(0, 55).map(lambda number: BEGIN + timedelta(days=number))
DISTURBANCES = st.sampled_from(
    [
        "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
        "VALUES (1, 'new', 5, :day) ON CONFLICT DO NOTHING",
        "UPDATE database_size_stats SET size_mb = size_mb + 1 WHERE collected_date = :day",
        "DELETE FROM database_size_stats WHERE collected_date = :day AND instance_id = 2",
        "DELETE FROM database_size_stats WHERE collected_date < :day",
        "UPDATE instance_size_stats SET is_deleted = true WHERE collected_date = :day",
        "UPDATE database_size_aggregations SET max_size_mb = max_size_mb + 1 WHERE period_start = :day",
        "DELETE FROM instance_size_aggregations WHERE period_start = :day",
        "UPDATE instances SET is_active = NOT is_active WHERE id = 2",
        "overwrite",
        "overwrite server 1",
    ]
)


@hypothesis_settings(max_examples=max(2, HISTORIES // 12), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.lists(st.tuples(DISTURBANCES, DAY), min_size=1, max_size=6), min_size=1, max_size=2))
def test_whatever_was_taken_as_unchanged_would_not_have_been_changed(
    engine: Engine, rounds: list[list[tuple[str, date]]]
) -> None:
    with engine.begin() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
    add_instances(engine, [1, 2])
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", BEGIN.isoformat(), range(100, 156)))
        add_instance_sizes(engine, totals(number, BEGIN.isoformat(), [(size, 1) for size in range(100, 156)]))
    service = AggregationService(engine, fixed_clock())
    compute_everything(service, first=BEGIN)

    for disturbances in rounds:
        for statement, day in disturbances:
            if statement.startswith("overwrite"):
                options = RunOptions(instance_ids=[1] if "server" in statement else None, overwrite=True)
                for period in PERIODS.values():
                    service.aggregate(period, [period.window_of(day)], options)
                continue
            with engine.begin() as connection:
                connection.execute(text(statement), {"day": day} if ":day" in statement else {})
        for period in PERIODS:
            windows = PERIODS[period].windows_between(BEGIN, LAST)
            trusted = service.aggregate(period, windows)
            computed = service.aggregate(period, windows, RECOMPUTE)
            assert computed.total("written_records") == 0
            assert counts(trusted.summaries) == counts(computed.summaries)
