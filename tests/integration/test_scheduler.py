"""Dagster's own scheduler over the shipped configuration: ticks on time, caught up after a downtime, once each."""

from __future__ import annotations

import uuid

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE
from tests.daemon import Daemon, partitions_of
from tests.e2e.stack import wait_for
from tests.fleet import add_database_sizes, add_instances, sizes, stored


@pytest.fixture(autouse=True)
def aggregates_alone(daemon: Daemon) -> None:
    daemon.stop_schedules_but("_aggregation_schedule")


def test_a_downtime_of_ten_days_is_caught_up_completely_and_once(daemon: Daemon) -> None:
    daemon.tick_schedules("2025-03-01T12:00")
    assert daemon.requested("daily_aggregation_job") == []
    daemon.tick_schedules("2025-03-02T04:00")
    daemon.tick_schedules("2025-03-03T04:00")

    daemon.tick_schedules("2025-03-13T12:00")
    daemon.tick_schedules("2025-03-13T12:01")
    daemon.tick_schedules("2025-03-14T04:00")

    assert daemon.requested("daily_aggregation_job") == [
        ("2025-03-02", "2025-03-02"),
        ("2025-03-03", "2025-03-03"),
        ("2025-03-04", "2025-03-13"),
        ("2025-03-14", "2025-03-14"),
    ]
    assert daemon.requested("weekly_aggregation_job") == [
        ("2025-02-24", "2025-02-24"),
        ("2025-03-03", "2025-03-03"),
    ]
    assert daemon.requested("monthly_aggregation_job") == []


def test_a_run_that_was_created_but_never_submitted_is_not_lost(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon dies, or PostgreSQL restarts, between the two."""
    daemon.tick_schedules("2025-03-02T03:00")
    daemon.tick_schedules("2025-03-02T04:00")

    def die(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(dg.DagsterInstance, "submit_run", die)
        daemon.tick_schedules("2025-03-03T04:00", expect_trouble=True)
    daemon.tick_schedules("2025-03-04T04:00")

    submitted = [(partitions_of(run)[0], run.status.value) for run in daemon.runs("daily_aggregation_job")]
    assert submitted == [("2025-03-02", "QUEUED"), ("2025-03-03", "QUEUED")], "the third and the fourth in one run"


@pytest.mark.nightly("executes a run twice")
def test_re_executing_an_old_run_does_not_make_the_next_tick_go_back(
    daemon: Daemon,
) -> None:
    instance = daemon.instance
    for moment in ("2025-03-02T03:00", "2025-03-02T04:00", "2025-03-03T04:00", "2025-03-04T04:00"):
        daemon.tick_schedules(moment)
    oldest = instance.get_runs(dg.RunsFilter(job_name="daily_aggregation_job"))[-1]
    again = oldest._replace(run_id=str(uuid.uuid4()), parent_run_id=oldest.run_id, root_run_id=oldest.run_id)
    instance.add_run(again)

    daemon.tick_schedules("2025-03-05T04:00")

    assert daemon.requested("daily_aggregation_job")[-1] == ("2025-03-05", "2025-03-05")


@pytest.mark.nightly("executes every day of a downtime")
def test_a_run_that_catches_up_executes_every_day_it_stands_for(daemon: Daemon, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", range(100, 120)))
    daemon.tick_schedules("2025-03-02T03:00")
    daemon.tick_schedules("2025-03-02T04:00")
    daemon.tick_schedules("2025-03-06T04:00")
    [run] = [run for run in daemon.runs() if "dagster/asset_partition_range_start" in run.tags]

    assert daemon.launch(run).status == dg.DagsterRunStatus.SUCCESS
    assert [str(row["period_start"]) for row in stored(engine, DATABASE, "daily")] == [
        f"2025-03-0{day}" for day in range(3, 7)
    ]


@pytest.mark.nightly("executes further runs")
def test_at_new_year_every_period_is_due_for_the_window_just_closed(daemon: Daemon) -> None:
    daemon.tick_schedules("2025-12-31T12:00")
    daemon.tick_schedules("2026-01-01T03:59")
    assert daemon.requested("daily_aggregation_job") == []

    daemon.tick_schedules("2026-01-01T04:00")

    due = {
        period: [last for _, last in daemon.requested(f"{period}_aggregation_job")]
        for period in ("daily", "weekly", "monthly", "quarterly", "yearly")
    }
    assert due == {
        "daily": ["2026-01-01"],
        "weekly": [],
        "monthly": ["2025-12-01"],
        "quarterly": ["2025-10-01"],
        "yearly": ["2025-01-01"],
    }


@pytest.mark.nightly("executes further runs")
@pytest.mark.single_server("has the run wait in its own session, not in that of a node")
def test_a_run_that_is_terminated_in_mid_statement_ends_and_is_not_repeated(daemon: Daemon, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [10, 11]))
    run = daemon.request_daily()
    with engine.connect() as blocker:
        blocker.execute(text("LOCK TABLE database_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        daemon.start(run)
        wait_for(lambda: a_session_waits(engine), "the run to wait for the table")
        daemon.instance.run_launcher.terminate(run.run_id)
        ended = daemon.wait(run)

    assert ended.status is dg.DagsterRunStatus.CANCELED
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in daemon.event_types(run)
    assert stored(engine, DATABASE) == []


def a_session_waits(engine: Engine) -> bool:
    with engine.connect() as connection:
        waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return bool(connection.execute(text(waiting)).scalar())
