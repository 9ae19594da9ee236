"""Maintenance as an operator meets them: the commands, the asset, what `capacity check` says."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.database import partitions
from capacity_assets.database.partitions import CAPACITY_TABLES
from capacity_assets.history import retention
from capacity_assets.orchestration.aggregates import MAINTENANCE_JOB
from capacity_assets.orchestration.build import build_definitions
from tests.clocks import SHANGHAI, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.partitions import everything, rows_by_partition
from tests.runs import QUICK_RETRIES, QUIET, run_range


def findings(*, subject: str) -> list[tuple[str, str]]:
    found = json.loads(capacity("check", "--json").output)
    return [(finding["verdict"], finding["text"]) for finding in found if finding["subject"] == subject]


def materialise(settings: Settings, today: date, *, dry_run: bool = False, **options: Any) -> dict[str, object]:
    definitions = build_definitions(settings, clock=fixed_clock(today), retries=QUICK_RETRIES)
    result = definitions.resolve_job_def(MAINTENANCE_JOB).execute_in_process(
        run_config=QUIET | {"ops": {"table_partitions": {"config": {"dry_run": dry_run}}}}, **options
    )
    [event] = result.get_asset_materialization_events()
    assert event.asset_key == dg.AssetKey("table_partitions")
    return {key: value.value for key, value in event.materialization.metadata.items()}


@pytest.fixture
def this_month() -> date:
    return Clock(SHANGHAI).today().replace(day=1)


@pytest.mark.usefixtures("settings")
def test_maintain_adds_what_is_missing_moves_rows_and_says_so(engine: Engine, this_month: date) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", this_month.isoformat(), [1, 2]))
    assert rows_by_partition(engine, "database_size_stats") == {"database_size_stats_default": 2}
    assert findings(subject="partitions")[0] == (
        "note",
        "database_size_stats has rows in its default partition: `capacity maintain` moves them",
    )
    assert "lacks a partition for the coming month" in findings(subject="partitions")[1][1]

    said = capacity("maintain", "--dry-run")
    done = capacity("maintain")

    assert (said.exit_code, done.exit_code) == (0, 0), said.output + done.output
    assert f"  database_size_stats: {this_month} to " in done.output
    assert said.output.splitlines()[-1] == "Dry run: nothing was changed."
    assert "2 rows would be moved, 9 partitions with 0 rows would be dropped (0 MiB)." in said.output
    assert "2 rows moved, 9 partitions with 0 rows dropped (0 MiB)." in done.output
    assert rows_by_partition(engine, "database_size_stats") == {f"database_size_stats_{this_month:%Y_%m}": 2}
    assert findings(subject="partitions") == [("ok", "created for the coming month; no row is in a default partition")]


@pytest.mark.nightly("waits for a lock")
def test_a_run_that_could_do_a_part_only_fails_and_tells_what_it_did(
    settings: Settings, engine: Engine, this_month: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "ATTACH_SECONDS", 0.5)
    monkeypatch.setattr(retention, "TRIES", 1)
    definitions = build_definitions(settings, clock=fixed_clock(this_month), retries=dg.RetryPolicy(max_retries=0))
    job = definitions.resolve_job_def(MAINTENANCE_JOB)
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", this_month.isoformat(), [1, 2]))
    with engine.connect() as reader:
        reader.execute(text("SELECT * FROM database_size_stats_default")).all()

        result = job.execute_in_process(run_config=QUIET, raise_on_error=False)
        printed = capacity("maintain")

    [failure] = [event for event in result.all_events if event.is_step_failure]
    details = failure.step_failure_data.user_failure_data
    assert "while adding the partition of database_size_stats for" in failure.step_failure_data.error_display_string
    assert details is not None
    assert details.metadata["created_partitions"].value > 0
    assert r"instance\_size\_stats: " in str(details.metadata["created"].value)
    assert printed.exit_code == 1
    assert "0 partitions added, 0 rows moved" in printed.stdout, "the run before had done the rest"
    assert "This may be temporary: run it again." in printed.stderr


@pytest.mark.usefixtures("settings")
def test_maintain_prints_json_for_scripts() -> None:
    document = json.loads(capacity("maintain", "--json").output)

    assert document["created_partitions"] == len(document["created"]) > 0
    # The test's database has partitions of limits, parts and objects for July to September 2025, which hold nothing.
    assert (document["dropped_partitions"], document["dry_run"]) == (9, False)
    assert document["kept_partitions"] == len(document["kept"])


def check_records(instance: dg.DagsterInstance) -> Counter[str]:
    table = "SELECT execution_status FROM asset_check_executions"
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        return Counter(connection.execute(text(table)).scalars())


@pytest.mark.nightly("executes four runs")
def test_records_of_checks_go_that_no_one_reads_and_what_the_ui_shows_stays(
    settings: Settings, engine: Engine, shipped_instance: dg.DagsterInstance
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -5, 5]))
    runs = [
        run_range(settings, "daily_aggregation_job", "2025-03-01", "2025-03-03", instance=shipped_instance).run_id
        for _ in range(3)
    ]
    at_work = shipped_instance.create_run_for_job(
        build_definitions(settings).resolve_job_def("daily_aggregation_job"),
        tags={"dagster/partition": "2025-03-01"},
    )
    shipped_instance.delete_run(runs[0])
    checks = dg.AssetSelection.all_asset_checks().resolve_checks(build_definitions(settings).resolve_asset_graph())
    storage = shipped_instance.event_log_storage
    shown = storage.get_asset_check_summary_records(list(checks))
    # Of three runs, eleven checks of three partitions, and three without; and what a run plans that has not ended.
    assert check_records(shipped_instance) == {
        "PLANNED": 3 * 3 * 3 + 14,
        "SUCCEEDED": 3 * (11 * 3 - 3 + 3),
        "FAILED": 3 * 3,
    }

    dry = json.loads(capacity("maintain", "--despite-clock", "--dry-run", "--json").output)
    done = materialise(settings, date(2025, 4, 1), instance=shipped_instance)

    assert dry["purged_check_records"] == done["purged_check_records"] == 27 + 11 * 3 + 3
    assert check_records(shipped_instance) == {"PLANNED": 14, "SUCCEEDED": 2 * 33, "FAILED": 2 * 3}
    assert storage.get_asset_check_summary_records(list(checks)) == shown
    assert shipped_instance.get_run_by_id(at_work.run_id) is not None
    shipped_instance.report_run_failed(at_work)
    for run_id in runs[1:]:
        shipped_instance.delete_run(run_id)
    done = json.loads(capacity("maintain", "--despite-clock", "--json").output)
    assert done["purged_check_records"] == 33 + 3
    assert storage.get_asset_check_summary_records(list(checks)) == shown, "the newest stay of deleted runs too"


@pytest.mark.usefixtures("settings")
def test_check_says_how_an_unpartitioned_database_becomes_partitioned(
    upgraded: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", upgraded.url.render_as_string(hide_password=False))

    advice = "`capacity copy` to an empty database partitions it there"
    assert findings(subject="partitions")[: len(CAPACITY_TABLES)] == [
        ("note", f"{table.name} is not partitioned, so old rows stay; {advice}") for table in CAPACITY_TABLES
    ]


@pytest.mark.nightly("executes a further run")
@pytest.mark.usefixtures("settings")
def test_a_rule_that_means_nothing_is_refused_before_anything_is_done(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=tomorrow")
    before = everything(engine)
    for command in ["maintain", "aggregate --period daily", "up", "demo"]:
        result = capacity(*command.split(" "))

        assert result.exit_code == 2, result.output
        assert "CAPACITY_RETENTION_DAYS: 'raw=tomorrow' is not a rule; write for example raw=400" in result.stderr, (
            command
        )
        assert everything(engine) == before, command
        assert findings(subject="CAPACITY_RETENTION_DAYS")[0][0] == "bad", command


@pytest.mark.usefixtures("settings")
def test_check_says_how_long_rows_are_kept() -> None:
    assert findings(subject="CAPACITY_RETENTION_DAYS") == [
        ("ok", "raw 400 days, daily 1096 days, volume_size_stats 1096 days; everything else forever")
    ]


def test_the_asset_adds_moves_and_drops_and_its_metadata_says_what(
    settings: Settings, engine: Engine, service: AggregationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=forever,daily=40")
    settings = Settings()
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", range(31)))
    add_database_sizes(engine, sizes(1, "orders", "2023-05-01", range(3)))
    # Else the date would be in doubt.
    for day in ("2025-03-10", "2025-04-20", "2025-06-01", "2025-07-10"):
        add_database_sizes(engine, sizes(1, "orders", day, [1]))
    today = date(2025, 7, 20)
    compute_windows(service, "daily", date(2025, 1, 1), date(2025, 1, 31))
    before = everything(engine)

    said = materialise(settings, today, dry_run=True)
    assert everything(engine) == before
    done = materialise(settings, today)

    assert (said["dry_run"], done["dry_run"]) == (True, False)
    counts = ("created_partitions", "moved_records", "dropped_partitions", "dropped_records", "kept_partitions")
    assert [said[key] for key in counts] == [done[key] for key in counts] == [1, 3, 15, 31 + 3 * 31, 0]
    assert "database\\_size\\_stats: 2023-05-01 to 2023-05-31" in str(done["created"])
    assert "database\\_size\\_aggregations\\_daily\\_2025\\_01: 31 rows" in str(done["dropped"])
    assert materialise(settings, today + timedelta(days=1))["dropped_partitions"] == 0


def test_a_missing_schema_fails_the_asset_with_what_to_do(settings: Settings, empty_engine: Engine) -> None:
    url = empty_engine.url.render_as_string(hide_password=False)
    lost = settings.model_copy(update={"database_url": type(settings.database_url)(url)})  # type: ignore[misc]
    definitions = build_definitions(lost, clock=fixed_clock(), retries=QUICK_RETRIES)

    result = definitions.resolve_job_def(MAINTENANCE_JOB).execute_in_process(run_config=QUIET, raise_on_error=False)

    assert not result.success
    [failure] = result.get_step_failure_events()
    message = failure.step_failure_data.user_failure_data
    assert message is not None
    assert "Run `capacity init`" in str(message.description)
