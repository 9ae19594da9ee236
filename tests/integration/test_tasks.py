"""The legacy task functions: same names, same result keys, one way through the task runner."""

from __future__ import annotations

import logging
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, LEVELS
from capacity_assets.aggregates.runs import InstanceRef
from capacity_assets.aggregates.service import AggregationService, PartitionRange
from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import ConfigurationError, Settings
from capacity_assets.tasks import (
    aggregate_current_period,
    calculate_database,
    calculate_database_size_aggregations,
    run_capacity_aggregation,
    run_capacity_instance_aggregation,
)
from tests.clocks import fixed_clock
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    load_sample,
    sizes,
    stored,
    totals,
)

LEGACY_KEYS = {"status", "message", "periods_executed", "details", "metrics"}


@pytest.fixture
def measured(settings: Settings, engine: Engine) -> date:
    """Two servers measured daily for forty days up to today in the configured zone."""
    today = Clock(settings.zone).today()
    first = (today - timedelta(days=39)).isoformat()
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", first, range(100, 140)))
        add_instance_sizes(engine, totals(instance_id, first, [(100 + day, 1) for day in range(40)]))
    return today


def test_all_periods_are_executed_and_counted_under_the_legacy_keys(measured: date, engine: Engine) -> None:
    result = run_capacity_aggregation()

    assert set(result) == LEGACY_KEYS
    assert result["status"] == "completed"
    assert result["periods_executed"] == ["daily", "weekly", "monthly", "quarterly", "yearly"]
    assert result["details"]["periods"]["daily"]["windows"][0]["period_start"] == measured.isoformat()  # type: ignore[index]
    daily = stored(engine, DATABASE, "daily")
    assert [row["max_size_mb"] for row in daily] == [139, 139]
    assert result["metrics"]["records"]["database"] >= 4  # type: ignore[index]


@pytest.mark.usefixtures("measured")
def test_a_run_is_limited_by_period_and_scope(engine: Engine) -> None:
    result = run_capacity_aggregation(["daily"], scope="instance")

    assert result["metrics"] == {
        "instances": {"total": 2, "processed": 2, "failed": 0, "skipped": 0},
        "records": {"database": 0, "instance": 2, "group": 0, "total": 2},
    }
    assert stored(engine, DATABASE) == []


@pytest.mark.usefixtures("measured")
def test_one_instance_is_aggregated_alone(engine: Engine) -> None:
    result = run_capacity_instance_aggregation(2, ["daily"])

    assert set(result) == LEGACY_KEYS
    assert (result["status"], result["details"]["instance_name"]) == ("completed", "server-2")  # type: ignore[index]
    assert {row["instance_id"] for level in (DATABASE, INSTANCE) for row in stored(engine, level)} == {2}


@pytest.mark.usefixtures("measured")
def test_failures_come_back_as_a_failed_result() -> None:
    unknown_period = run_capacity_aggregation(["hourly"])
    unknown_instance = run_capacity_instance_aggregation(99)

    assert (unknown_period["status"], unknown_instance["status"]) == ("failed", "failed")
    assert "Unknown period 'hourly'" in str(unknown_period["message"])
    assert "No server with id 99" in str(unknown_instance["message"])
    assert set(unknown_period) == set(unknown_instance) == LEGACY_KEYS


@pytest.mark.usefixtures("settings")
def test_a_fleet_without_samples_is_skipped() -> None:
    assert run_capacity_aggregation()["status"] == "skipped"


def test_a_broken_configuration_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Mars")

    with pytest.raises(ConfigurationError, match="CAPACITY_TIMEZONE"):
        run_capacity_aggregation()


@pytest.mark.usefixtures("measured")
def test_the_legacy_method_names_of_the_service_work_for_every_period(engine: Engine, settings: Settings) -> None:
    service = AggregationService(engine, Clock(settings.zone))

    for period in ("daily", "weekly", "monthly", "quarterly", "yearly"):
        databases = getattr(service, f"calculate_{period}_aggregations")(use_current_period=True)
        servers = getattr(service, f"calculate_{period}_instance_aggregations")(use_current_period=True)
        assert (databases.total("written_records"), servers.total("written_records")) == (2, 2)
        current = service.aggregate_current_period(period, scope="all")
        assert (current.total("unchanged_records"), current.of_level("group").total("unchanged_records")) == (4, 0)
        assert current.total("written_records") == current.of_level("group").total("written_records") == 3


@pytest.mark.usefixtures("measured")
def test_one_instance_is_computed_under_the_names_that_legacy_collection_calls(
    engine: Engine, settings: Settings
) -> None:
    service = AggregationService(engine, Clock(settings.zone))

    databases = service.calculate_daily_database_aggregations_for_instance(2)  # type: ignore[attr-defined]
    server = service.calculate_monthly_aggregations_for_instance(2, use_current_period=True)  # type: ignore[attr-defined]

    assert (databases.total("written_records"), server.total("written_records")) == (1, 1)
    assert [(row["instance_id"], row["period_type"]) for row in stored(engine, DATABASE)] == [(2, "daily")]
    assert [(row["instance_id"], row["period_type"]) for row in stored(engine, INSTANCE)] == [(2, "monthly")]


@pytest.mark.usefixtures("measured")
def test_the_button_for_the_current_window_gets_its_summaries_and_hears_of_each_server(engine: Engine) -> None:
    add_instances(engine, [3])
    add_instances(engine, [4], is_active=False)
    heard: list[tuple[object, ...]] = []
    callbacks = {
        "on_start": lambda instance: heard.append(("start", instance.id)),
        "on_complete": lambda instance, payload: heard.append(
            ("complete", instance.name, payload["status"], payload["processed_records"])
        ),
    }

    result: Any = aggregate_current_period(scope="database", progress_callbacks={"database": callbacks})

    assert (result["status"], result["period_type"], result["scope"]) == ("completed", "daily", "database")
    summary = result["database_summary"]
    assert (summary["processed_instances"], summary["skipped_instances"], summary["written_records"]) == (2, 1, 2)
    assert result["instance_summary"] is None
    assert heard == [
        ("start", 1),
        ("complete", "server-1", "completed", 1),
        ("start", 2),
        ("complete", "server-2", "completed", 1),
        ("start", 3),
        ("complete", "server-3", "skipped", 0),
    ]
    assert aggregate_current_period("hourly")["message"] == (
        "Unknown period 'hourly'; known: daily, weekly, monthly, quarterly, yearly."
    )


@pytest.mark.usefixtures("settings")
def test_a_server_that_fails_is_told_to_its_own_callback_and_a_callback_may_end_the_work(engine: Engine) -> None:
    day = Clock(Settings().zone).today()
    add_instances(engine, [1, 2])
    add_overflowing_instance(engine, 1, day)
    failed: list[tuple[int, str]] = []

    def end(instance: InstanceRef) -> None:
        if instance.id == 2:
            raise KeyboardInterrupt

    callbacks = {"on_start": end, "on_error": lambda instance, payload: failed.append((instance.id, payload["status"]))}
    with pytest.raises(KeyboardInterrupt):
        aggregate_current_period(scope="instance", progress_callbacks={"instance": callbacks})

    assert failed == [(1, "failed")]


READ_BY_LEGACY_CALLERS = {
    "status",
    "message",
    "run_id",
    "session_id",
    "periods_executed",
    "details",
    "metrics",
}


@pytest.mark.usefixtures("measured")
def test_legacy_callers_get_the_keys_they_read_with_each_server_counted_once() -> None:
    older = calculate_database_size_aggregations(manual_run=True, created_by=7, periods=["monthly", "daily"])
    newer = calculate_database(manual_run=True, created_by=7, run_id="r-1", periods=["daily", "monthly"], job="ignored")

    assert set(older) == set(newer) == READ_BY_LEGACY_CALLERS
    assert (newer["run_id"], newer["session_id"], older["status"]) == ("r-1", None, "completed")
    assert older["periods_executed"] == newer["periods_executed"] == ["daily", "monthly"]
    details: Any = newer["details"]
    assert [(part["period_type"], part["level"]) for part in details["periods"]] == [
        ("daily", "database"),
        ("monthly", "database"),
    ]
    assert details["instances"][2] == {"instance_id": 2, "instance_name": "server-2", "errors": []}
    metrics: Any = newer["metrics"]
    assert metrics["instances"] == {"total": 2, "successful": 2, "failed": 0}
    assert metrics["records"]["total"] == sum(metrics["records"][level] for level in LEVELS) > 0


@pytest.mark.usefixtures("measured")
def test_an_unknown_period_is_told_and_does_not_keep_the_known_ones_from_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    some = calculate_database(periods=["hourly", "daily"], log=logging.getLogger("theirs"))
    none = calculate_database(periods=["hourly"])

    assert (some["status"], some["periods_executed"]) == ("completed", ["daily"])
    assert ("theirs", logging.WARNING) in [(record.name, record.levelno) for record in caplog.records]
    assert "Unknown periods were left out: hourly." in caplog.text
    assert (none["status"], none["periods_executed"]) == ("skipped", [])
    assert none["message"] == "No registered period was requested."


def test_a_database_that_is_away_is_an_error_that_a_legacy_caller_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")

    result = calculate_database(manual_run=True)

    assert set(result) == READ_BY_LEGACY_CALLERS | {"error"}
    assert result["status"] == "failed"
    assert "127.0.0.1:1" in str(result["error"])
    assert result["details"] == {"periods": [], "instances": {}}


def test_a_call_for_one_server_needs_its_number_and_one_that_is_unknown_writes_nothing(
    settings: Settings, engine: Engine
) -> None:
    load_sample(engine)
    service = AggregationService(engine, Clock(settings.zone))

    with pytest.raises(TypeError):
        service.calculate_weekly_database_aggregations_for_instance()  # type: ignore[attr-defined]
    with pytest.raises(NotFoundError):
        service.calculate_weekly_aggregations_for_instance(None)  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        service.calculate_quarterly_aggregations(1)  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="Unknown period 'nonsense'"):
        service.calculate_instance_aggregations(1, ["daily", "nonsense"])
    assert stored(engine, DATABASE) == []


def test_periods_whose_window_lies_before_the_first_partition_are_left_out_for_one_server(engine: Engine) -> None:
    load_sample(engine)
    clock = fixed_clock(date(2025, 4, 5))
    service = AggregationService(engine, clock, partitions=PartitionRange(clock, date(2025, 4, 1)))

    summary = service.calculate_instance_aggregations(1)

    assert {part.period_type for part in summary.run.summaries} == {"daily"}
    assert {row["period_type"] for row in stored(engine, DATABASE)} == {"daily"}
