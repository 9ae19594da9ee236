"""Writing: idempotent, and following corrections (docs/semantics.md, "Writing")."""

from __future__ import annotations

import threading
import time
from datetime import date

import pytest
from sqlalchemy import Engine, text, update

from capacity_assets.aggregates.levels import INSTANCE, LEVELS, Level
from capacity_assets.aggregates.runs import RunOptions, RunSummary
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.tables import database_size_stats
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, stored, totals
from tests.two_months import FEBRUARY_AND_MARCH, MARCH, by_name, protected, remove_samples, two_months


def row_versions(engine: Engine, level: Level) -> list[object]:
    """Where each row version lies, which transaction wrote it and which one last locked it, as PostgreSQL says."""
    with engine.connect() as connection:
        versions = f"SELECT ctid::text, xmin::text, xmax::text FROM {level.target.name} ORDER BY 1, 2"
        return list(connection.execute(text(versions)))


def test_computing_again_over_unchanged_samples_writes_no_row_and_postgresql_says_so(
    engine: Engine, service: AggregationService
) -> None:
    two_months(engine)
    first = service.aggregate("monthly", FEBRUARY_AND_MARCH)
    before = {level.name: stored(engine, level) for level in LEVELS.values()}
    versions = {level.name: row_versions(engine, level) for level in LEVELS.values()}

    second = service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(recompute=True))

    assert first.total("written_records") == 16
    assert (second.total("written_records"), second.total("unchanged_records")) == (0, 16)
    for level in LEVELS.values():
        assert stored(engine, level) == before[level.name], "calculated_at included"
        assert row_versions(engine, level) == versions[level.name], "nothing written, nothing even locked"


def test_a_corrected_sample_updates_the_row_and_keeps_its_id_and_creation_time(
    engine: Engine, service: AggregationService
) -> None:
    two_months(engine)
    service.aggregate("monthly", MARCH)
    before = by_name(engine, date(2025, 3, 1))
    with engine.begin() as connection:
        raw = database_size_stats
        connection.execute(
            update(raw)
            .where(raw.c.database_name == "orders", raw.c.collected_date == date(2025, 3, 31))
            .values(size_mb=100_000)
        )

    summary = service.aggregate("monthly", MARCH, RunOptions(("database",)))

    after = by_name(engine, date(2025, 3, 1))
    assert (summary.total("written_records"), summary.total("unchanged_records")) == (1, 2)
    assert (before["orders"]["max_size_mb"], after["orders"]["max_size_mb"]) == (158, 100_000)
    assert (after["orders"]["id"], after["orders"]["created_at"]) == (
        before["orders"]["id"],
        before["orders"]["created_at"],
    )
    assert after["orders"]["calculated_at"] > before["orders"]["calculated_at"]  # type: ignore[operator]
    assert after["crm"] == before["crm"]


@pytest.mark.parametrize("computed", [[], ["instance"]], ids=["nothing computed", "servers computed"])
def test_a_zero_that_the_legacy_application_stored_for_an_unknown_change_becomes_unknown(
    engine: Engine, service: AggregationService, computed: list[str]
) -> None:
    """That the servers' rows were computed here says nothing of those of the databases."""
    two_months(engine)
    for level in computed:
        service.aggregate("monthly", MARCH, RunOptions((level,)))
    remove_samples(engine, "orders", date(2025, 2, 1), date(2025, 2, 28))
    with engine.begin() as connection:
        values = {"samples": 31}
        connection.execute(text(INSERT_MARCH.replace("1, 1, 1, :samples", "143, 158, 128, :samples")), values)
        connection.execute(text("UPDATE database_size_aggregations SET size_change_mb = 0, size_change_percent = 0"))

    service.aggregate("monthly", MARCH, RunOptions(("database",)))

    assert by_name(engine, date(2025, 3, 1))["orders"]["size_change_mb"] is None


def test_a_window_that_grows_follows_its_samples_although_the_window_before_was_purged(
    engine: Engine, service: AggregationService
) -> None:
    """The current month is computed every day; a purge of the month before must not freeze it."""
    two_months(engine)
    remove_samples(engine, "orders", date(2025, 3, 11), date(2025, 3, 31))
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))
    remove_samples(engine, "orders", date(2025, 2, 1), date(2025, 2, 20))
    add_database_sizes(engine, sizes(1, "orders", "2025-03-11", [500]))

    run = service.aggregate("monthly", MARCH, RunOptions(("database",)))

    assert run.total("written_records") == 1
    orders = by_name(engine, date(2025, 3, 1))["orders"]
    assert (orders["data_count"], orders["max_size_mb"]) == (11, 500)


@pytest.mark.parametrize("one_by_one", [True, False], ids=["one window", "several windows"])
def test_a_correction_of_the_day_before_is_followed_by_the_change_of_each_measure(
    engine: Engine, service: AggregationService, *, one_by_one: bool
) -> None:
    """The day before no longer has a log size, which is no reason to keep the change of the size."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100], log_size_mb=10))
    add_database_sizes(engine, sizes(1, "orders", "2025-03-02", [150], log_size_mb=20))
    first, second = (PERIODS["daily"].window_of(date(2025, 3, day)) for day in (1, 2))
    service.aggregate("daily", [first, second], RunOptions(("database",)))
    assert changes(engine) == (50, 10, "growing")
    with engine.begin() as connection:
        raw = database_size_stats
        corrected = update(raw).where(raw.c.collected_date == first.start)
        connection.execute(corrected.values(size_mb=200, log_size_mb=None))

    planned = service.aggregate("daily", [second], RunOptions(("database",), dry_run=True))
    for windows in ([first], [second]) if one_by_one else ([first, second],):
        service.aggregate("daily", windows, RunOptions(("database",)))

    assert planned.total("written_records") == 1
    assert changes(engine) == (-50, None, "shrinking")


def changes(engine: Engine) -> tuple[object, ...]:
    row = by_name(engine, date(2025, 3, 2))["orders"]
    return row["size_change_mb"], row["log_size_change_mb"], row["trend_direction"]


def test_a_correction_of_one_measure_leaves_the_change_of_the_others_that_lost_samples(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-02-01", range(100, 159), log_size_mb=10))
    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))
    before = by_name(engine, date(2025, 3, 1))["orders"]
    remove_samples(engine, "orders", date(2025, 2, 1), date(2025, 2, 20))
    with engine.begin() as connection:
        raw = database_size_stats
        connection.execute(update(raw).where(raw.c.collected_date >= date(2025, 3, 1)).values(log_size_mb=12))

    service.aggregate("monthly", FEBRUARY_AND_MARCH, RunOptions(("database",)))

    after = by_name(engine, date(2025, 3, 1))["orders"]
    assert (before["log_size_change_mb"], after["log_size_change_mb"]) == (0, 2)
    assert before["size_change_mb"] == after["size_change_mb"] == 29, "February has 20 samples less than its row"
    assert after["size_change_percent"] == before["size_change_percent"]


def test_a_change_against_a_window_that_was_never_computed_is_kept_when_all_of_that_is_gone(
    engine: Engine, service: AggregationService
) -> None:
    """February is before the first partition, so no row says how large it was."""
    two_months(engine)
    service.aggregate("monthly", MARCH, RunOptions(("database",)))
    before = by_name(engine, date(2025, 3, 1))
    remove_samples(engine, "orders", date(2025, 2, 1), date(2025, 2, 28))

    planned = service.aggregate("monthly", MARCH, RunOptions(("database",), dry_run=True, recompute=True))
    some = service.aggregate("monthly", MARCH, RunOptions(("database",), instance_ids=(1,)))
    kept = service.aggregate("monthly", MARCH, RunOptions(("database",), recompute=True))

    assert (protected(planned), protected(some), protected(kept)) == ((0, 2, 1), (0, 1, 1), (0, 2, 1))
    assert by_name(engine, date(2025, 3, 1)) == before


INSERT_MARCH = """
INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end,
    avg_size_mb, max_size_mb, min_size_mb, data_count)
VALUES (1, 'orders', 'monthly', '2025-03-01', '2025-03-31', 1, 1, 1, :samples)
"""


@pytest.mark.parametrize(("samples", "taken"), [(40, False), (3, True)])
def test_a_row_another_writer_commits_in_between_is_replaced_only_if_it_is_not_fuller(
    engine: Engine, service: AggregationService, *, samples: int, taken: bool
) -> None:
    """Sessions: another inserts the row; ours reads, finds none, and waits; the other commits; ours goes on."""
    two_months(engine)
    runs: list[RunSummary] = []
    thread = threading.Thread(
        target=lambda: runs.append(service.aggregate("monthly", MARCH, RunOptions(("database",))))
    )
    with engine.connect() as other:
        other.execute(text(INSERT_MARCH), {"samples": samples})
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND query ~ '^WITH (classified|inserted)'"
        )
        deadline = time.monotonic() + 20
        with engine.connect() as watcher:
            while not watcher.execute(text(waiting)).scalar() and time.monotonic() < deadline:
                watcher.rollback()
                time.sleep(0.05)
        other.commit()
    thread.join(20)

    assert protected(runs[0]) == ((3, 0, 0) if taken else (2, 0, 1))
    assert by_name(engine, date(2025, 3, 1))["orders"]["data_count"] == (31 if taken else 40)


def test_a_table_without_its_unique_index_that_holds_two_live_rows_a_day_counts_their_sum_as_one_day(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    execute(engine, "DROP INDEX uq_instance_size_stats_instance_date")
    add_instance_sizes(engine, [*totals(1, "2025-03-01", [(10, 1), (20, 2)]), *totals(1, "2025-03-02", [(5, 1)])])

    service.aggregate("monthly", MARCH, RunOptions(("instance",)))

    [row] = stored(engine, INSTANCE)
    assert (row["data_count"], row["max_size_mb"], row["max_database_count"]) == (2, 25, 3)
