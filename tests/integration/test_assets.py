"""The graph on a real database: range runs, metadata of each partition, failures, run options."""

from __future__ import annotations

import threading
import time
from datetime import date, timedelta

import dagster as dg
import pytest
from sqlalchemy import Engine, delete, text

from capacity_assets.foundation import locks
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.foundation.lock_errors import LockHeldError
from capacity_assets.foundation.locks import CapacityLockManager
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.settings import Settings
from capacity_assets.storage.tables import database_size_stats
from capacity_assets.units import human_mb
from tests.clocks import fixed_clock
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    figures,
    load_sample,
    sizes,
    stored,
    totals,
)
from tests.profiles import PROFILE
from tests.runs import QUIET, metadata_of, run_range

DATABASES = "daily_database_aggregations"


def retries(result: dg.ExecuteInProcessResult) -> int:
    return len([event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"])


def fill_days(engine: Engine, count: int) -> None:
    """Day n has 1 + n % 3 databases; the second server is measured every other day only."""
    add_instances(engine, [1, 2])
    for number in range(3):
        days = [100 + day if number <= day % 3 else None for day in range(count)]
        add_database_sizes(engine, sizes(1, f"db{number}", "2025-01-01", days))
    add_database_sizes(engine, sizes(2, "other", "2025-01-01", [7 if day % 2 else None for day in range(count)]))
    add_instance_sizes(engine, totals(1, "2025-01-01", [(300 + day, 1 + day % 3) for day in range(count)]))


def test_a_range_run_gives_each_partition_its_own_metadata_and_equals_single_runs(
    settings: Settings, engine: Engine
) -> None:
    count = PROFILE.partitions
    fill_days(engine, count)
    keys = [(date(2025, 1, 1) + timedelta(days=number)).isoformat() for number in range(count)]

    result = run_range(settings, "daily_aggregation_job", keys[0], keys[-1])

    assert result.success
    metadata = metadata_of(result, DATABASES)
    assert list(metadata) == keys
    for number, key in enumerate(keys):
        found = metadata[key]
        second_measured = number % 2
        assert (found["period_start"], found["period_end"]) == (key, key)
        assert found["written_records"] == 1 + number % 3 + second_measured, key
        assert (found["processed_instances"], found["skipped_instances"]) == (1 + second_measured, 1 - second_measured)
    in_one_run = [figures(engine, level) for level in (DATABASE, INSTANCE)]

    with engine.begin() as connection:
        connection.execute(delete(DATABASE.target))
        connection.execute(delete(INSTANCE.target))
    definitions = build_definitions(settings, clock=fixed_clock(date(2026, 7, 1)))
    job = definitions.resolve_job_def("daily_aggregation_job")
    # Half a second each: six, which meet every kind of day.
    alone = {*keys[:: count // 5 - 1 | 1], keys[-1]}
    with dg.DagsterInstance.ephemeral() as instance:
        for key in sorted(alone):
            single = job.execute_in_process(partition_key=key, instance=instance, run_config=QUIET)
            assert single.success
    for level, rows in zip((DATABASE, INSTANCE), in_one_run, strict=True):
        assert figures(engine, level) == {key: row for key, row in rows.items() if str(key[-1]) in alone}
    assert [len(rows) for rows in in_one_run] == [sum(1 + day % 3 + day % 2 for day in range(count)), count]


def test_metadata_keys_are_the_published_ones_and_numbers_are_numbers(settings: Settings, engine: Engine) -> None:
    load_sample(engine)

    result = run_range(settings, "monthly_aggregation_job", "2025-01-01", "2025-07-01")

    march = metadata_of(result, "monthly_database_aggregations")["2025-03-01"]
    assert march.pop("duration_seconds") > 0
    assert "| Rows | written | unchanged | protected | removed | unsampled |" in march.pop("summary")
    rows = [row for row in stored(engine, DATABASE, "monthly") if row["period_start"] == date(2025, 3, 1)]
    changes = [row["size_change_mb"] for row in rows if row["size_change_mb"] is not None]
    servers = [row for row in stored(engine, INSTANCE, "monthly") if row["period_start"] == date(2025, 3, 1)]
    assert march.pop("total_size_mb") == march.pop("Size (MiB)") == sum(row["total_size_mb"] for row in servers)
    change = sum(row["total_size_change_mb"] for row in servers)
    assert march.pop("total_change_mb") == march.pop("Size change (MiB)") == change
    before = sum(row["total_size_mb"] - row["total_size_change_mb"] for row in servers)
    assert march.pop("Size change (%)") == round(change * 100 / before, 1)
    assert list(march)[:3] == ["Size", "Change", "Coverage"], "what people look for comes first"
    assert march.pop("Coverage") == "Samples on 31 of 31 days."
    assert (march.pop("Size"), march.pop("Change")[0]) == (human_mb(sum(row["total_size_mb"] for row in servers)), "+")
    assert march.pop("unknown_changes") == len(rows) - len(changes)
    assert march == {
        "status": "completed",
        "period_type": "monthly",
        "level": "database",
        "period_start": "2025-03-01",
        "period_end": "2025-03-31",
        "total_instances": 5,
        "processed_instances": 3,
        "failed_instances": 0,
        "skipped_instances": 2,
        "total_records": 17,
        "written_records": 17,
        "unchanged_records": 0,
        "protected_records": 0,
        "removed_records": 0,
        "unsampled_records": 0,
        "measured_days": 31,
        "elapsed_days": 31,
        "window_days": 31,
        "coverage_percent": 100.0,
        "is_open": False,
        "error_count": 0,
        "errors": "none",
        "message": "monthly database aggregates 2025-03-01 to 2025-03-31: 3 of 5 servers processed, "
        "17 rows written, 0 unchanged, 0 protected. "
        "Samples on 31 of 31 days.",
        "dagster/partition_row_count": 17,
    }


@pytest.mark.single_server("fails a window without the one after it, by figures out of range")
def test_one_failing_instance_is_named_in_its_partition_and_the_run_succeeds(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1], name="<b>bold</b> & [link](x)")
    add_instances(engine, [2])
    add_instance_sizes(engine, totals(2, "2025-03-01", [(100, 1)] * 5))
    add_overflowing_instance(engine, 1, date(2025, 3, 2))

    result = run_range(settings, "daily_aggregation_job", "2025-03-01", "2025-03-05")

    assert result.success
    metadata = metadata_of(result, "daily_instance_aggregations")
    assert [metadata[f"2025-03-0{day}"]["status"] for day in range(1, 6)] == [
        "completed", "failed", "completed", "completed", "completed",
    ]  # fmt: skip
    assert metadata["2025-03-02"]["errors"] == ("- server 1 (\\<b\\>bold\\</b\\> & \\[link\\](x)): bigint out of range")


def test_a_run_in_which_everything_failed_fails_without_retry_and_keeps_stored_rows(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, "2025-03-02", [(100, 1)]))
    run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")
    before = stored(engine, INSTANCE)
    add_overflowing_instance(engine, 1, date(2025, 3, 2))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert retries(result) == 0
    [failure] = [event.step_failure_data for event in result.get_step_failure_events()]
    assert failure.user_failure_data is not None
    assert "Stored rows were kept as they were" in str(failure.user_failure_data.description)
    assert failure.user_failure_data.metadata["failed_instances"].value == 1
    assert len(before) == 1
    assert stored(engine, INSTANCE) == before


def test_overwrite_is_a_run_option(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10] * 31))
    run_range(settings, "monthly_aggregation_job", "2025-03-01", "2025-03-01")
    with engine.begin() as connection:
        raw = database_size_stats
        connection.execute(delete(raw).where(raw.c.collected_date > date(2025, 3, 3)))
    asset = "monthly_database_aggregations"

    kept = run_range(settings, "monthly_aggregation_job", "2025-03-01", "2025-03-01")
    rebuilt = run_range(
        settings,
        "monthly_aggregation_job",
        "2025-03-01",
        "2025-03-01",
        run_config={"ops": {asset: {"config": {"overwrite": True}}}},
    )

    assert metadata_of(kept, asset)["2025-03-01"]["protected_records"] == 1
    assert metadata_of(rebuilt, asset)["2025-03-01"]["written_records"] == 1
    assert [row["data_count"] for row in stored(engine, DATABASE)] == [3]


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    texts = [str(event.event_specific_data) for event in result.all_events if event.is_failure]
    return "\n".join(texts)


def test_a_missing_schema_fails_the_run_and_says_capacity_init(settings: Settings, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE capacity_alembic_version"))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert "Run `capacity init`" in failure_text(result)


def test_a_database_failure_shows_neither_the_statement_nor_its_parameters(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE database_size_stats CASCADE"))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert "run `capacity init`" in failure_text(result)
    assert "SELECT" not in failure_text(result)
    assert "parameters" not in failure_text(result)


def test_an_unreachable_database_fails_the_run_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://dba:hunter2@127.0.0.1:9/capacity")

    result = run_range(Settings(), "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    told = failure_text(result)
    assert "connection failed" in told
    assert "127.0.0.1" in told
    assert "hunter2" not in told
    assert retries(result) == 10


def run_in_thread(settings: Settings) -> tuple[threading.Thread, list[dg.ExecuteInProcessResult]]:
    results: list[dg.ExecuteInProcessResult] = []
    thread = threading.Thread(
        target=lambda: results.append(run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02"))
    )
    thread.start()
    return thread, results


def wait_until(engine: Engine, query: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.execute(text(query)).scalar():
                return
        time.sleep(0.05)
    pytest.fail(f"gave up waiting for {query}")


WAITING = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'WITH windows%'"
KILL_WAITING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
SAME_KEY = (
    "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, "
    "avg_size_mb, max_size_mb, min_size_mb, data_count) "
    "VALUES (1, 'orders', 'daily', '2025-03-02', '2025-03-02', 1, 1, 1, 1)"
)


@pytest.mark.single_server("has the run wait in its own session, not in that of a node")
def test_a_connection_killed_in_mid_statement_is_retried_in_the_run_and_nothing_is_doubled(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    with engine.connect() as blocker:
        blocker.execute(text(SAME_KEY))
        thread, results = run_in_thread(settings)
        wait_until(engine, WAITING)
        with engine.connect() as killer:
            killer.execute(text(KILL_WAITING))
        blocker.rollback()
    thread.join(90)

    [result] = results
    assert result.success
    assert retries(result) == 1
    assert [row["avg_size_mb"] for row in stored(engine, DATABASE)] == [11]


@pytest.mark.single_server("has the run wait in its own session, not in that of a node")
def test_a_deadlock_is_retried_in_the_run(settings: Settings, engine: Engine) -> None:
    """The run waits for a row of ours, and we wait for a row the run wrote before: PostgreSQL ends one of the two."""
    add_instances(engine, [1])
    for name in ("a", "orders"):
        add_database_sizes(engine, sizes(1, name, "2025-03-01", [10, 11]))
    with engine.connect() as blocker:
        # Ours must be the patient one, or it is our transaction that is ended.
        blocker.execute(text("SET deadlock_timeout = '60s'"))
        blocker.execute(text(SAME_KEY))
        thread, results = run_in_thread(settings)
        wait_until(engine, WAITING)
        blocker.execute(text(SAME_KEY.replace("'orders'", "'a'")))
        blocker.rollback()
    thread.join(90)

    [result] = results
    assert result.success
    assert retries(result) == 1
    assert sorted(str(row["database_name"]) for row in stored(engine, DATABASE)) == ["a", "orders"]


def test_a_read_only_database_is_permanent_and_not_retried(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert retries(result) == 0
    assert "Repeating it will not help" in failure_text(result)


@pytest.mark.single_server("makes a trigger per row")
def test_a_full_disk_is_permanent_and_not_retried(settings: Settings, engine: Engine) -> None:
    """The kernel's own answer: PostgreSQL writes to a device that is always full, in the middle of our statement."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000)) TO '/dev/full'; RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER fill BEFORE INSERT ON database_size_aggregations FOR EACH ROW EXECUTE FUNCTION fill()"
        )

    result = run_range(settings, "daily_aggregation_job", "2025-03-02", "2025-03-02")

    assert not result.success
    assert retries(result) == 0
    assert "No space left on device" in failure_text(result)
    assert "Repeating it will not help: fix the cause first." in failure_text(result)
    assert stored(engine, DATABASE) == []


def test_a_period_held_by_another_writer_is_retried_until_it_is_free(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    refused, held = threading.Event(), locks.held_by

    def refuse(period: str, who: str | None) -> LockHeldError:
        refused.set()
        return held(period, who)

    monkeypatch.setattr(locks, "held_by", refuse)
    with CapacityLockManager(engine).job_lock("daily"):
        thread, results = run_in_thread(settings)
        assert refused.wait(60)
        assert stored(engine, DATABASE) == []
    thread.join(90)

    [result] = results
    assert result.success
    assert retries(result) >= 1
    assert len(stored(engine, DATABASE)) == 1
