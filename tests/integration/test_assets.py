"""The graph on a real database: range runs, metadata of each partition, failed instances, run options."""

from __future__ import annotations

from datetime import date, timedelta

import dagster as dg
from sqlalchemy import Engine, delete

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_mb
from capacity_assets.database.tables import database_size_stats
from capacity_assets.orchestration.build import build_definitions
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
from tests.runs import QUIET, metadata_of, retries, run_range

DATABASES = "daily_database_aggregations"


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
        "completed", "failed", "failed", "completed", "completed",
    ]  # fmt: skip
    named = "- server 1 (\\<b\\>bold\\</b\\> & \\[link\\](x)): bigint out of range: "
    assert metadata["2025-03-02"]["errors"].startswith(named)


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
