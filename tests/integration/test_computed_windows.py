"""What was computed outside Dagster is marked in it; what a run of its own is computing is left to that run."""

from __future__ import annotations

from datetime import date

import dagster as dg
import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.aggregates import COMPUTED_WINDOWS_SENSOR
from tests.clocks import TODAY
from tests.fleet import add_instances, add_overflowing_instance, load_sample
from tests.runs import QUICK_RETRIES, built

MONTHLY = PERIODS["monthly"]
MONTHS = MONTHLY.windows_between(date(2025, 2, 1), date(2025, 4, 30))


def tick(settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    repository = built(settings, TODAY, QUICK_RETRIES).get_repository_def()
    resources = repository.get_top_level_resources()
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, resources=resources, cursor=cursor
    ) as context:
        found: dg.SensorResult = repository.get_sensor_def(COMPUTED_WINDOWS_SENSOR).evaluate_tick(context)
    for event in found.asset_events:
        instance.report_runless_asset_event(event)
    return found


@pytest.fixture
def computed(engine: Engine, runner: AggregationTaskRunner) -> AggregationTaskRunner:
    load_sample(engine)
    runner.run_period(MONTHLY, MONTHS)
    return runner


@pytest.mark.usefixtures("computed")
def test_windows_of_the_command_line_are_marked_once_with_what_was_computed(settings: Settings) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(settings, instance)
        second = tick(settings, instance)
        marked = {
            level: instance.get_materialized_partitions(dg.AssetKey(f"monthly_{level}_aggregations"))
            for level in LEVELS
        }

    expected = {window.key for window in MONTHS}
    assert marked == dict.fromkeys(LEVELS, expected)
    assert len(first.asset_events) == 9
    metadata = first.asset_events[0].metadata
    assert metadata["processed_instances"].value > 0
    assert metadata["total_records"].value > 0
    assert str(metadata["origin"].value).startswith("computed outside this Dagster")
    assert second.skip_message == "Every computed window is marked."


def test_the_ledger_is_read_again_only_after_something_was_computed(
    settings: Settings, computed: AggregationTaskRunner
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tick(settings, instance)
        done = tick(settings, instance)
        idle = tick(settings, instance, cursor=done.cursor)
        computed.run_period(MONTHLY, [MONTHLY.following(MONTHS[-1])])
        again = tick(settings, instance, cursor=done.cursor)

    assert idle.skip_message == "Nothing was computed since."
    assert {event.partition for event in again.asset_events} == {"2025-05-01"}


def test_a_window_in_which_every_server_failed_is_not_marked(
    settings: Settings, engine: Engine, runner: AggregationTaskRunner
) -> None:
    add_instances(engine, [1])
    add_overflowing_instance(engine, 1, date(2025, 3, 9))
    summary = runner.run_period(MONTHLY, MONTHS)

    failed = [part.period_start for part in summary.of_level("instance").summaries if part.failed_instances]
    assert failed == [date(2025, 3, 1), date(2025, 4, 1)], "April is compared with March"
    with dg.DagsterInstance.ephemeral() as instance:
        found = tick(settings, instance)
    marked = {(event.asset_key.path[-1], event.partition) for event in found.asset_events}
    assert ("monthly_instance_aggregations", "2025-03-01") not in marked
    assert ("monthly_instance_aggregations", "2025-02-01") in marked


@pytest.mark.usefixtures("computed")
def test_while_a_run_is_under_way_it_marks_its_own_windows(settings: Settings) -> None:
    job = built(settings, TODAY, QUICK_RETRIES).resolve_job_def("monthly_aggregation_job")
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        during = tick(settings, instance)
        instance.report_run_canceled(run)
        after = tick(settings, instance)

    assert during.skip_message == "A run is under way."
    assert len(after.asset_events) == 9
