"""The legacy task functions: same names, same result keys, one way through the task runner."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregation.levels import DATABASE, INSTANCE
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.clock import Clock
from capacity_assets.settings import ConfigurationError, Settings
from capacity_assets.tasks import run_capacity_aggregation, run_capacity_instance_aggregation
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, stored, totals

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
        "records": {"database": 0, "instance": 2, "total": 2},
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
    assert "No instance with id 99" in str(unknown_instance["message"])
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
        assert (current.total("unchanged_records"), current.total("written_records")) == (4, 0)
