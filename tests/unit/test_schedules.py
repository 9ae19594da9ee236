"""Ticks asserted as dates: from the scheduled time, around new year and daylight saving."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.aggregates import aggregation_schedule
from capacity_assets.orchestration.graph import Graph
from tests.clocks import fixed_clock


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Settings:
    monkeypatch.setenv("CAPACITY_TIMEZONE", getattr(request, "param", "Asia/Shanghai"))
    monkeypatch.setenv("CAPACITY_START_DATE", "2024-01-01")
    return Settings()


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance without runs."""
    with dg.DagsterInstance.local_temp() as created:
        yield created


def tick(
    instance: dg.DagsterInstance, settings: Settings, period: str, scheduled: str
) -> dg.RunRequest | dg.SkipReason:
    """Evaluate one tick; `scheduled` is local time in the configured zone."""
    schedule = aggregation_schedule(Graph(settings, fixed_clock()), PERIODS[period])
    moment = datetime.fromisoformat(scheduled).replace(tzinfo=settings.zone).astimezone(ZoneInfo("UTC"))
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=moment) as context:
        result = schedule(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


@pytest.mark.parametrize(
    ("period", "scheduled", "window"),
    [
        ("daily", "2025-01-01T04:00", "2025-01-01"),
        ("daily", "2024-02-29T04:00", "2024-02-29"),
        ("weekly", "2025-01-06T04:00", "2024-12-30"),
        ("weekly", "2024-12-30T04:00", "2024-12-23"),
        ("monthly", "2025-01-01T04:00", "2024-12-01"),
        ("monthly", "2024-03-01T04:00", "2024-02-01"),
        ("quarterly", "2025-01-01T04:00", "2024-10-01"),
        ("quarterly", "2025-04-01T04:00", "2025-01-01"),
        ("yearly", "2025-01-01T04:00", "2024-01-01"),
    ],
)
def test_a_tick_requests_today_or_the_window_just_closed(
    instance: dg.DagsterInstance, settings: Settings, period: str, scheduled: str, window: str
) -> None:
    request = tick(instance, settings, period, scheduled)

    assert isinstance(request, dg.RunRequest)
    assert (request.partition_key, request.run_key) == (window, window)


def test_after_the_first_partition_was_moved_forward_no_window_before_it_is_requested(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    tags = {"dagster/schedule_name": "daily_aggregation_schedule", "dagster/partition": "2023-12-01"}
    run = create_run_for_test(instance, "daily_aggregation_job", status=dg.DagsterRunStatus.SUCCESS, tags=tags)

    request = tick(instance, settings, "daily", "2024-01-02T04:00")

    instance.delete_run(run.run_id)
    assert isinstance(request, dg.RunRequest)
    assert (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]) == (
        "2024-01-01",
        "2024-01-02",
    )


@pytest.mark.parametrize("settings", ["Europe/Berlin", "America/New_York", "America/Santiago"], indirect=True)
@pytest.mark.parametrize("day", ["2025-03-09", "2025-03-30", "2025-04-05", "2025-04-06", "2025-09-07", "2025-10-26"])
def test_days_on_which_the_clock_changes_are_days_like_any_other(
    instance: dg.DagsterInstance, settings: Settings, day: str
) -> None:
    request = tick(instance, settings, "daily", f"{day}T04:00")

    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == day


def test_a_tick_before_any_partition_is_skipped_with_the_reason(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    skipped = tick(instance, settings, "yearly", "2024-01-01T04:00")

    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "The window 2023-01-01 is before the first partition, 2024-01-01."
