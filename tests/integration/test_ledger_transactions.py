"""Changes of samples that commit late, are made by others, or stand beside open transactions: none is lost."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.ledger import Ledger
from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.runners import AggregationRunner
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.aggregation.work import Work
from capacity_assets.foundation.levels import DATABASE
from capacity_assets.periods import PERIODS
from capacity_assets.settings import CAPACITY_DRIVER
from capacity_assets.storage.distribution import is_distributed
from capacity_assets.storage.engine import capacity_engine
from tests.computing import compute_windows
from tests.databases import Databases, execute, rows
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
    snapshot, _ = service.ledger.begin(PERIODS["monthly"], DATABASE, march)
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [500]))
    assert service.ledger.stale() == [], "not computed yet"

    parts = AggregationRunner(DATABASE, engine).aggregate(Work(PERIODS["monthly"], march, service.instances(None)))
    service.ledger.finish(snapshot, parts, "")

    assert stale(service) == {("database", "monthly", "2025-03-01")}, "rather once too often than once too few"
    redo(service)
    assert stale(service) == set()


def test_a_computation_that_was_begun_and_never_finished_keeps_the_changes_and_is_reported(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    march = PERIODS["monthly"].window_of(date(2025, 3, 1))
    service.ledger.begin(PERIODS["monthly"], DATABASE, [march])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-03", [500]))

    assert service.ledger.stale() == []
    # Once by the sample itself, once by the server, whose activation is spread over its days at the first look.
    assert set(recorded(engine)) == {("database_size_stats", date(2025, 3, 3))}
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


@pytest.mark.parametrize(
    ("elsewhere", "transactions_after"),
    [("database_oid = 4711", 10), ("failed_instances = 0", 0)],
    ids=["of another database", "of transactions to come"],
)
def test_a_dump_loaded_into_a_clone_of_its_server_loses_no_change(
    engine: Engine, computed: AggregationService, elsewhere: str, transactions_after: int
) -> None:
    """A clone has the system identifier of its server, which has since numbered more transactions."""
    stale(computed)
    execute(
        engine,
        f"UPDATE capacity_computed_windows SET {elsewhere}, snapshot = format('%1$s:%1$s:', "
        "CAST(CAST(pg_current_xact_id() AS text) AS bigint) + 5)",
    )
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    for _ in range(transactions_after):
        execute(engine, "SELECT pg_current_xact_id()")

    [left] = computed.ledger.incomplete_windows(
        PERIODS["daily"], DATABASE, [PERIODS["daily"].window_of(date(2025, 3, 31))], patience_seconds=0
    )

    assert left.reason == "samples changed since it was computed"
    assert ("database", "daily", "2025-03-31") in stale(computed)
    redo(computed)
    assert stale(computed) == set()
    assert compute_everything(computed) == 0


def test_a_copy_of_a_database_on_its_server_knows_that_it_is_another_one(cluster: Databases) -> None:
    """Like a test database, whose rows `Databases` then assigns to it."""
    own = text("SELECT CAST(oid AS bigint) FROM pg_database WHERE datname = current_database()")
    template = cluster.filled("ledger_computed", half_a_year_of_two_servers)
    cluster.execute(f"CREATE DATABASE copied TEMPLATE {template}")
    copied = capacity_engine(cluster.server.url("copied", CAPACITY_DRIVER))
    try:
        [(before,)] = rows(copied, "SELECT DISTINCT database_oid FROM capacity_computed_windows")
        Ledger(copied).stale()
        [(after,)] = rows(copied, "SELECT DISTINCT database_oid FROM capacity_computed_windows")
        with copied.connect() as connection:
            assert after == connection.execute(own).scalar_one() != before
    finally:
        copied.dispose()
        cluster.execute("DROP DATABASE copied WITH (FORCE)")


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
