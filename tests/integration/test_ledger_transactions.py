"""Changes of samples that commit late, are made by others, or stand beside open transactions: none is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregates.ledger import Ledger
from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import AggregationRunner, AggregationWork, RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.changes import gather_changes
from capacity_assets.database.engine import capacity_engine
from tests.computing import compute_windows
from tests.databases import execute, rows
from tests.fleet import (
    add_database_sizes,
    add_instances,
    figures,
    sizes,
    stored,
)
from tests.ledger import compute_everything, half_a_year_of_two_servers, recorded, redo, stale

PREPARED = {"computed": half_a_year_of_two_servers}


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
    begun = service.ledger.begin(PERIODS["monthly"], [DATABASE], march)[DATABASE.name]
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [500]))
    assert service.ledger.stale() == [], "not computed yet"

    parts = AggregationRunner(DATABASE, engine).aggregate(
        AggregationWork(PERIODS["monthly"], march, service.instances(None))
    )
    service.ledger.finish(begun, parts, "")

    assert stale(service) == {("database", "monthly", "2025-03-01")}, "rather once too often than once too few"
    redo(service)
    assert stale(service) == set()


def test_a_computation_that_was_begun_and_never_finished_keeps_the_changes_and_is_reported(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    march = PERIODS["monthly"].window_of(date(2025, 3, 1))
    service.ledger.begin(PERIODS["monthly"], [DATABASE], [march])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [500]))

    assert service.ledger.stale() == []
    assert recorded(engine) == []
    assert rows(engine, "SELECT wanted, computed, newest_change IS NULL FROM capacity_computed_windows") == [
        (1, None, False)
    ]
    [left] = service.ledger.incomplete_windows(PERIODS["monthly"], DATABASE, [march])
    assert left.reason == "was begun, but never finished"


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
    assert len(recorded(engine)) == 200

    assert len([found for found in computed.ledger.stale() if found.period_type == "daily"]) == 4
    redo(computed)
    assert stale(computed) == set()
    assert recorded(engine) == []


def test_a_server_that_becomes_active_makes_the_windows_of_its_samples_stale(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_instances(engine, [2], is_active=False)
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1, 2]))
    compute_windows(service, "daily", date(2025, 3, 1), date(2025, 3, 5))
    assert stale(service) == set()

    execute(engine, "UPDATE instances SET is_active = true WHERE id = 2")

    assert stale(service) == {
        (level, "daily", f"2025-03-0{day}") for level in ("database", "group") for day in (1, 2, 3)
    }
    redo(service)
    assert stale(service) == set()
    assert len(figures(engine, DATABASE)) == 4
    execute(engine, "UPDATE instances SET host = 'elsewhere'")
    execute(engine, "UPDATE instances SET is_active = false WHERE id = 2")
    assert recorded(engine) == []


def test_a_dry_run_reads_the_samples_of_a_server_that_was_just_put_into_service(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_instances(engine, [2], is_active=False)
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1, 2]))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 3, 31))
    first_quarter = [PERIODS["quarterly"].window_of(date(2025, 3, 1))]

    execute(engine, "UPDATE instances SET is_active = true WHERE id = 2")

    planned = service.aggregate("quarterly", first_quarter, RunOptions(("database",), dry_run=True))
    assert planned.total("processed_instances") == 2, "the months that are stored have one server"


def test_what_was_read_is_gone_although_another_transaction_is_open_and_what_that_one_changes_is_not_lost(
    engine: Engine, computed: AggregationService
) -> None:
    stale(computed)
    other = capacity_engine(engine.url)
    with other.connect() as connection:
        connection.execute(
            text("UPDATE database_size_stats SET size_mb = 8 WHERE instance_id = 2 AND collected_date = '2025-03-31'")
        )
        execute(
            engine,
            "UPDATE database_size_stats SET size_mb = 7 WHERE instance_id = 1 AND collected_date = '2025-03-31'",
        )
        redo(computed)
        assert stale(computed) == set()
        assert recorded(engine) == []
        connection.commit()
    other.dispose()

    assert ("database", "daily", "2025-03-31") in stale(computed)
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_a_change_that_commits_after_the_samples_were_read_is_followed_and_one_that_was_read_is_written_once(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100]))
    march = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
    late = capacity_engine(engine.url)
    with late.connect() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 1"))
        service.aggregate("monthly", march, RunOptions(("database",)))
        assert stale(service) == set()
        connection.commit()
    late.dispose()
    service.ledger.take_over()
    begun = service.ledger.begin(PERIODS["monthly"], [DATABASE], march)[DATABASE.name]
    parts = AggregationRunner(DATABASE, engine).aggregate(
        AggregationWork(PERIODS["monthly"], march, service.instances(None))
    )
    service.ledger.finish(begun, parts, "")
    [first] = stored(engine, DATABASE)
    assert first["avg_size_mb"] == 1, "it was committed before the samples were read"

    assert stale(service) == set(), "and read from the queue before the window was begun"
    redo(service)
    assert stored(engine, DATABASE) == [first]
    assert stale(service) == set()


def test_of_two_that_gather_at_once_the_second_waits_and_each_change_counts(
    engine: Engine, computed: AggregationService
) -> None:
    stale(computed)
    other = capacity_engine(engine.url)
    with engine.connect() as first:
        execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
        assert recorded(engine) != []
        gather_changes(first)
        execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-04-02'")
        with ThreadPoolExecutor() as pool:
            second = pool.submit(Ledger(other).stale)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.5)
            first.commit()
            found = {(one.period_type, one.window.key) for one in second.result(timeout=30)}
    other.dispose()

    days = {"2025-03-31", "2025-04-01", "2025-04-02", "2025-04-03"}
    assert {key for period, key in found if period == "daily"} == days
    assert recorded(engine) == []
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


@pytest.mark.nightly("computes with many threads")
def test_many_may_gather_write_and_compute_at_once_and_nothing_is_lost_or_deadlocked(
    engine: Engine, computed: AggregationService
) -> None:
    def work(number: int) -> None:
        own = capacity_engine(engine.url)
        for turn in range(6):
            day = date(2025, 3, 1) + timedelta(days=(7 * number + turn) % 30)
            if number % 2:
                # Backwards, so that rows of the queue and windows are met in another order.
                execute(
                    own,
                    f"UPDATE database_size_stats SET size_mb = {turn} WHERE instance_id = {1 + number % 2} "
                    f"AND collected_date = '{date(2025, 6, 1) - timedelta(days=turn + 7 * number)}'",
                )
                Ledger(own).stale()
            else:
                period = ("daily", "monthly", "quarterly")[number // 2]
                windows = [PERIODS[period].window_of(day)]
                AggregationService(own, computed.clock).aggregate(period, windows, RunOptions(recompute=True))
        own.dispose()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, number) for number in range(6)]:
            done.result(timeout=120)

    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_a_gatherer_that_is_killed_leaves_the_changes_to_the_next_one(
    engine: Engine, computed: AggregationService
) -> None:
    stale(computed)
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    before = recorded(engine)
    killed = capacity_engine(engine.url)
    with killed.connect() as connection:
        gather_changes(connection)
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        execute(engine, f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1"))
    killed.dispose()

    assert recorded(engine) == before != []
    assert ("database", "daily", "2025-03-31") in stale(computed)
    redo(computed)
    assert compute_everything(computed) == 0


def test_readers_see_unread_changes_without_writing(engine: Engine, computed: AggregationService) -> None:
    stale(computed)
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    execute(engine, "UPDATE instance_size_aggregations SET min_size_mb = 7 WHERE period_start = '2025-06-01'")
    recorded(engine)  # on a cluster, what the nodes recorded is taken over

    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        day = PERIODS["daily"].window_of(date(2025, 3, 31))
        [left] = computed.ledger.incomplete_windows_seen_by(connection, DATABASE, {PERIODS["daily"]: [day]})
        found = connection.execute(
            text(
                "SELECT level, newest_change IS NOT NULL, has_its_sums, count(*) FROM capacity_stale_windows "
                "GROUP BY 1, 2, 3"
            )
        )
        counts = {tuple(row[:3]): row[3] for row in found}
    assert left.reason == "samples changed since it was computed"
    windows = rows(engine, "SELECT count(*) FROM capacity_computed_windows WHERE level = 'instance'")
    assert counts == {
        ("database", True, False): 5,
        ("database", True, True): 4,
        ("group", True, False): 5,
        ("group", True, True): 4,
        ("instance", False, False): windows[0][0],
    }, "five windows hold the day, four compare with one of these"


def test_whoever_writes_samples_needs_no_right_on_the_queue_of_changes(
    engine: Engine, computed: AggregationService
) -> None:
    stale(computed)
    execute(engine, "CREATE ROLE collector LOGIN")
    execute(engine, "GRANT INSERT, SELECT ON database_size_stats TO collector")
    execute(engine, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO collector")
    try:
        execute(
            engine,
            "SET LOCAL ROLE collector",
            "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
            "VALUES (1, 'late', 5, '2025-03-31')",
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
