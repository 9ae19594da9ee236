"""Dagster's own scheduler over the shipped configuration: ticks on time, caught up after a downtime, once each."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.server import wait_for_grpc_server
from dagster._scheduler.scheduler import launch_scheduled_runs
from dagster._utils import find_free_port
from sqlalchemy import Engine

from capacity_assets.aggregation.levels import DATABASE
from tests.fleet import add_database_sizes, add_instances, sizes, stored

SHANGHAI = ZoneInfo("Asia/Shanghai")


@contextmanager
def code_server(port: int) -> Iterator[GrpcServerTarget]:
    """A process of its own that serves the code location."""
    arguments = [sys.executable, "-m", "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(port)]
    arguments += ["-m", "capacity_assets.definitions"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_grpc_server(process, DagsterGrpcClient(port=port, host="127.0.0.1"), [])
        yield GrpcServerTarget(host="127.0.0.1", port=port, socket=None, location_name="capacity_assets")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(shipped_instance: dg.DagsterInstance) -> Iterator[tuple[dg.DagsterInstance, Any]]:
    """The shipped instance and a workspace whose code runs in a process of its own."""
    with (
        code_server(find_free_port()) as target,
        create_test_daemon_workspace_context(target, shipped_instance) as context,
    ):
        yield shipped_instance, context


def look_at(scheduler: tuple[dg.DagsterInstance, Any], moment: str, *, expect_trouble: bool = False) -> None:
    """One iteration of the scheduler at a moment of local time."""
    _, context = scheduler
    now = datetime.fromisoformat(moment).replace(tzinfo=SHANGHAI).astimezone(UTC)
    for error in launch_scheduled_runs(
        context, logging.getLogger("scheduler"), end_datetime_utc=now, iteration_times={}
    ):
        assert expect_trouble or error is None, error


def requested(scheduler: tuple[dg.DagsterInstance, Any], job: str) -> list[tuple[str, str]]:
    """First and last partition of each of the job's runs, oldest first."""
    runs = scheduler[0].get_runs(dg.RunsFilter(job_name=job))
    assert {run.status for run in runs} <= {dg.DagsterRunStatus.QUEUED}
    return [
        (
            run.tags.get("dagster/partition") or run.tags["dagster/asset_partition_range_start"],
            run.tags.get("dagster/partition") or run.tags["dagster/asset_partition_range_end"],
        )
        for run in reversed(runs)
    ]


def test_a_downtime_of_ten_days_is_caught_up_completely_and_once(scheduler: tuple[dg.DagsterInstance, Any]) -> None:
    look_at(scheduler, "2025-03-01T12:00")
    assert requested(scheduler, "daily_aggregation_job") == []
    look_at(scheduler, "2025-03-02T04:00")
    look_at(scheduler, "2025-03-03T04:00")

    look_at(scheduler, "2025-03-13T12:00")
    look_at(scheduler, "2025-03-13T12:01")
    look_at(scheduler, "2025-03-14T04:00")

    assert requested(scheduler, "daily_aggregation_job") == [
        ("2025-03-02", "2025-03-02"),
        ("2025-03-03", "2025-03-03"),
        ("2025-03-04", "2025-03-13"),
        ("2025-03-14", "2025-03-14"),
    ]
    assert requested(scheduler, "weekly_aggregation_job") == [
        ("2025-02-24", "2025-02-24"),
        ("2025-03-03", "2025-03-03"),
    ]
    assert requested(scheduler, "monthly_aggregation_job") == []


def test_a_run_that_was_created_but_never_submitted_is_not_lost(
    scheduler: tuple[dg.DagsterInstance, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon dies, or PostgreSQL restarts, between the two."""
    look_at(scheduler, "2025-03-02T03:00")
    look_at(scheduler, "2025-03-02T04:00")

    def die(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(dg.DagsterInstance, "submit_run", die)
        look_at(scheduler, "2025-03-03T04:00", expect_trouble=True)
    look_at(scheduler, "2025-03-04T04:00")

    submitted = [
        (run.tags.get("dagster/partition") or run.tags["dagster/asset_partition_range_start"], run.status.value)
        for run in scheduler[0].get_runs(dg.RunsFilter(job_name="daily_aggregation_job"))
        if run.status is not dg.DagsterRunStatus.NOT_STARTED
    ]
    assert submitted == [("2025-03-03", "QUEUED"), ("2025-03-02", "QUEUED")], "the third and the fourth in one run"


def test_re_executing_an_old_run_does_not_make_the_next_tick_go_back(
    scheduler: tuple[dg.DagsterInstance, Any],
) -> None:
    instance, _ = scheduler
    for moment in ("2025-03-02T03:00", "2025-03-02T04:00", "2025-03-03T04:00", "2025-03-04T04:00"):
        look_at(scheduler, moment)
    oldest = instance.get_runs(dg.RunsFilter(job_name="daily_aggregation_job"))[-1]
    again = oldest._replace(run_id=str(uuid.uuid4()), parent_run_id=oldest.run_id, root_run_id=oldest.run_id)
    instance.add_run(again)

    look_at(scheduler, "2025-03-05T04:00")

    assert requested(scheduler, "daily_aggregation_job")[-1] == ("2025-03-05", "2025-03-05")


def test_a_run_that_catches_up_executes_every_day_it_stands_for(
    scheduler: tuple[dg.DagsterInstance, Any], engine: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", range(100, 120)))
    look_at(scheduler, "2025-03-02T03:00")
    look_at(scheduler, "2025-03-02T04:00")
    look_at(scheduler, "2025-03-06T04:00")
    instance, context = scheduler
    [run] = [run for run in instance.get_runs() if "dagster/asset_partition_range_start" in run.tags]

    instance.launch_run(run.run_id, context.create_request_context())

    deadline = time.monotonic() + 60
    while not (finished := instance.get_run_by_id(run.run_id)).is_finished and time.monotonic() < deadline:  # type: ignore[union-attr]
        time.sleep(0.2)
    assert finished is not None
    assert finished.status == dg.DagsterRunStatus.SUCCESS
    assert [str(row["period_start"]) for row in stored(engine, DATABASE, "daily")] == [
        f"2025-03-0{day}" for day in range(3, 7)
    ]


def test_at_new_year_every_period_is_due_for_the_window_just_closed(scheduler: tuple[dg.DagsterInstance, Any]) -> None:
    look_at(scheduler, "2025-12-31T12:00")
    look_at(scheduler, "2026-01-01T03:59")
    assert requested(scheduler, "daily_aggregation_job") == []

    look_at(scheduler, "2026-01-01T04:00")

    due = {
        period: [last for _, last in requested(scheduler, f"{period}_aggregation_job")]
        for period in ("daily", "weekly", "monthly", "quarterly", "yearly")
    }
    assert due == {
        "daily": ["2026-01-01"],
        "weekly": [],
        "monthly": ["2025-12-01"],
        "quarterly": ["2025-10-01"],
        "yearly": ["2025-01-01"],
    }
