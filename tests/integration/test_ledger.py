"""Late and corrected samples: which windows are stale, exactly, and what the tables hold after they were redone."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.runners import AggregationRunner
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.foundation.status import AggregationStatus
from capacity_assets.periods import PERIODS
from capacity_assets.storage.distribution import is_distributed
from capacity_assets.storage.engine import capacity_engine
from tests.clocks import fixed_clock
from tests.databases import execute
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    figures,
    sizes,
    stored,
    totals,
)
from tests.ledger import compute_everything, recorded, redo, stale


def half_a_year_of_two_servers(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-01-01", range(100, 301)))
        add_instance_sizes(engine, totals(instance_id, "2025-01-01", [(size, 1) for size in range(100, 301)]))
    compute_everything(AggregationService(engine, fixed_clock()))


PREPARED = {"computed": half_a_year_of_two_servers}


@pytest.fixture
def computed(service: AggregationService) -> AggregationService:
    """Two servers with samples of half a year, every window computed."""
    return service


def test_nothing_is_stale_after_everything_was_computed_and_the_log_of_changes_is_empty(
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
        ("database", period, start)
        for period, starts in {
            "daily": ["2025-03-31", "2025-04-01"],
            "weekly": ["2025-03-31", "2025-04-07"],
            "monthly": ["2025-03-01", "2025-04-01"],
            "quarterly": ["2025-01-01", "2025-04-01"],
            "yearly": ["2025-01-01"],
        }.items()
        for start in starts
    }
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


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


def test_a_transaction_that_commits_after_the_windows_were_computed_is_not_lost(
    engine: Engine, computed: AggregationService
) -> None:
    late, later = capacity_engine(engine.url), capacity_engine(engine.url)
    with late.connect() as early_bird, later.connect() as other:
        # Of one server each: on a cluster, a transaction that changes all waits for another one that does.
        for connection, server, day in ((early_bird, 1, "2025-02-03"), (other, 2, "2025-02-05")):
            connection.execute(
                text(
                    "UPDATE database_size_stats SET size_mb = 1 WHERE instance_id = :server AND collected_date = :day"
                ),
                {"server": server, "day": day},
            )
        other.commit()
        redo(computed)
        assert stale(computed) == set(), "the open transaction is not visible yet"
        early_bird.commit()
    late.dispose()
    later.dispose()

    assert ("database", "daily", "2025-02-03") in stale(computed)
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_a_change_that_commits_while_its_windows_are_computed_for_the_first_time_is_not_lost(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 101]))
    march = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
    snapshot = service.ledger.begin(PERIODS["monthly"], DATABASE, march)
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [500]))
    assert service.ledger.stale() == [], "not computed yet"

    parts = AggregationRunner(DATABASE, engine).aggregate(PERIODS["monthly"], march, service.instances(None))
    service.ledger.finish(snapshot, parts, "")

    assert stale(service) == {("database", "monthly", "2025-03-01")}, "rather once too often than once too few"
    redo(service)
    assert stale(service) == set()


def test_a_computation_that_was_begun_and_never_finished_keeps_the_changes_and_is_told(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    march = PERIODS["monthly"].window_of(date(2025, 3, 1))
    service.ledger.begin(PERIODS["monthly"], DATABASE, [march])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [500]))

    assert service.ledger.stale() == []
    # Once by the sample itself, once by the server, whose activation is spread over its days at the first look.
    assert set(recorded(engine)) == {("database_size_stats", date(2025, 3, 3))}
    [left] = service.ledger.open_windows(PERIODS["monthly"], DATABASE, [march])
    assert left.reason == "was begun, but never finished"


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
    [left] = service.ledger.open_windows(PERIODS["daily"], INSTANCE, [day])
    assert left.reason == "servers that failed in it: 1"

    execute(engine, "UPDATE instance_size_stats SET total_size_mb = 5 WHERE instance_id = 2")
    redo(service)

    assert service.ledger.open_windows(PERIODS["daily"], INSTANCE, [day]) == []
    assert len(figures(engine, INSTANCE)) == 2


def test_windows_that_are_due_and_left_are_told_with_the_reason(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [1, 2, None, 4]))
    days = PERIODS["daily"].windows_between(date(2025, 3, 1), date(2025, 3, 4))
    service.aggregate("daily", days[:1])
    add_database_sizes(engine, sizes(1, "crm", "2025-03-01", [1]))

    left = service.ledger.open_windows(PERIODS["daily"], DATABASE, days, patience_seconds=0)
    patient = service.ledger.open_windows(PERIODS["daily"], DATABASE, days)

    assert [found.window.key for found in patient] == ["2025-03-02", "2025-03-04"], "a fresh change is being followed"
    assert [(found.window.key, found.reason) for found in left] == [
        ("2025-03-01", "samples changed since it was computed"),
        ("2025-03-02", "has samples, but was never computed"),
        ("2025-03-04", "has samples, but was never computed"),
    ], "a day without samples needs no computation"


def test_many_small_transactions_on_one_day_are_one_change_for_its_windows_and_are_forgotten_together(
    engine: Engine, computed: AggregationService
) -> None:
    """A collection that commits row by row."""
    stale(computed)
    for number in range(200):
        execute(
            engine,
            "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
            f"VALUES (1, 'db-{number}', 5, '2025-03-31')",
        )
    # What is gathered from the nodes of a cluster is one change already.
    assert len(recorded(engine)) == (1 if is_distributed(engine) else 200)

    assert len([found for found in computed.ledger.stale() if found.period_type == "daily"]) == 2
    redo(computed)
    assert stale(computed) == set()
    assert recorded(engine) == []


def test_a_dump_loaded_into_a_new_server_loses_no_change(engine: Engine, computed: AggregationService) -> None:
    """Transaction numbers start anew there: old snapshots would take every new change for seen."""
    stale(computed)
    execute(
        engine,
        "UPDATE capacity_computed_windows SET system_identifier = 4711, snapshot = format('%1$s:%1$s:', "
        "CAST(CAST(pg_current_xact_id() AS text) AS bigint) + 5)",
    )
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    for _ in range(10):
        execute(engine, "SELECT pg_current_xact_id()")

    assert ("database", "daily", "2025-03-31") in stale(computed)
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_a_server_that_becomes_active_makes_the_windows_of_its_samples_stale(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_instances(engine, [2], is_active=False)
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1, 2]))
    service.calculate_period_aggregations("daily", date(2025, 3, 1), date(2025, 3, 5))
    assert stale(service) == set()

    execute(engine, "UPDATE instances SET is_active = true WHERE id = 2")

    assert stale(service) == {("database", "daily", f"2025-03-0{day}") for day in (1, 2, 3)}
    redo(service)
    assert stale(service) == set()
    assert len(figures(engine, DATABASE)) == 4
    execute(engine, "UPDATE instances SET host = 'elsewhere'")
    execute(engine, "UPDATE instances SET is_active = false WHERE id = 2")
    assert recorded(engine) == []


def test_changes_beside_an_open_transaction_are_forgotten_once_it_has_ended_and_the_windows_were_computed_again(
    engine: Engine, computed: AggregationService
) -> None:
    stale(computed)
    other = capacity_engine(engine.url)
    with other.connect() as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
        execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
        redo(computed)
        assert stale(computed) == set()
        assert recorded(engine) == [("database_size_stats", date(2025, 3, 31))], "kept longer than it must"
    other.dispose()

    compute_everything(computed)

    assert recorded(engine) == [], "also without a sensor"


def test_a_change_noted_by_another_server_is_still_a_change(engine: Engine, computed: AggregationService) -> None:
    stale(computed)
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    execute(engine, "UPDATE capacity_sample_changes SET transaction_id = 9000000")

    redo(computed)

    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_whoever_writes_samples_needs_no_right_on_the_log_of_changes(
    engine: Engine, computed: AggregationService
) -> None:
    stale(computed)
    execute(engine, "CREATE ROLE collector LOGIN")
    execute(engine, "GRANT INSERT, SELECT ON database_size_stats TO collector")
    execute(engine, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO collector")
    try:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL ROLE collector"))
            connection.execute(
                text(
                    "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                    "VALUES (1, 'late', 5, '2025-03-31')"
                )
            )
    finally:
        execute(engine, "DROP OWNED BY collector")
        execute(engine, "DROP ROLE collector")

    assert recorded(engine) == [("database_size_stats", date(2025, 3, 31))]


def test_a_server_activated_in_an_open_transaction_makes_the_windows_stale_that_were_computed_meanwhile(
    engine: Engine, service: AggregationService
) -> None:
    """Sessions: one activates a server and stays open; another commits its first sample; the window is computed."""
    add_instances(engine, [1])
    add_instances(engine, [2], is_active=False)
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [100]))
    march = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
    with engine.connect() as activating:
        activating.execute(text("UPDATE instances SET is_active = true WHERE id = 2"))
        add_database_sizes(engine, sizes(2, "crm", "2025-03-03", [7]))
        service.aggregate("monthly", march, RunOptions(("database",)))
        assert stale(service) == set(), "the server is not active yet"
        activating.commit()

    assert stale(service) == {("database", "monthly", "2025-03-01")}
    redo(service)
    assert stale(service) == set()
    assert {row["instance_id"] for row in stored(engine, DATABASE)} == {1, 2}
