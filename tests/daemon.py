"""Dagster's daemon, one iteration at a time, with a code location in a separate process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.server import wait_for_grpc_server
from dagster._scheduler.scheduler import launch_scheduled_runs

from tests.clocks import SHANGHAI
from tests.forked import Forked
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[1]
RUN_PATIENCE_SECONDS = 60
MODULE = "capacity_assets.definitions"
# A run is forked from what the code server was forked from: a new interpreter takes two seconds of processor time.
DAGSTER = """
import multiprocessing
from dagster._cli import main
from tests.forked import FORKING
multiprocessing.get_context = lambda _method: FORKING
main()
"""


@contextmanager
def code_server(port: int) -> Iterator[GrpcServerTarget]:
    """Serve the code location in a separate process."""
    process = Forked("api", "grpc", "-h", "127.0.0.1", "-p", str(port), "-m", MODULE, program=DAGSTER, folder=ROOT)
    try:
        wait_for_grpc_server(process, DagsterGrpcClient(port=port, host="127.0.0.1"), [])  # type: ignore[arg-type]
        yield GrpcServerTarget(host="127.0.0.1", port=port, socket=None, location_name="capacity_assets")
    finally:
        process.kill()


@dataclass
class Daemon:
    """An instance and a workspace; nothing runs until a test starts it."""

    instance: dg.DagsterInstance
    context: Any

    def tick_schedules(self, moment: str, *, expect_trouble: bool = False) -> None:
        """One iteration of the scheduler at a moment of local time."""
        now = datetime.fromisoformat(moment).replace(tzinfo=SHANGHAI).astimezone(UTC)
        for error in launch_scheduled_runs(
            self.context, logging.getLogger("scheduler"), end_datetime_utc=now, iteration_times={}
        ):
            assert expect_trouble or error is None, error

    def stop_schedules_but(self, ending: str) -> None:
        """Stop all other schedules, because each due one queries the code server."""
        for location in self.context.create_request_context().code_locations:
            for repository in location.get_repositories().values():
                for schedule in repository.get_schedules():
                    if not schedule.name.endswith(ending):
                        named = schedule.get_remote_origin_id(), schedule.selector_id
                        self.instance.stop_schedule(*named, schedule)

    def tick_sensors(self, *names: str, expect_trouble: bool = False) -> None:
        """Run one iteration of the sensor daemon without the pause between ticks, for all sensors or the named ones."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "dagster._daemon.sensor.is_under_min_interval",
                lambda _state, sensor: bool(names) and sensor.name not in names,
            )
            for error in execute_sensor_iteration(self.context, logging.getLogger("sensors"), None, None):
                assert expect_trouble or error is None, error

    def runs(self, job: str | None = None) -> list[dg.DagsterRun]:
        """The submitted runs, oldest first."""
        found = self.instance.get_runs(dg.RunsFilter(job_name=job))
        return [run for run in reversed(found) if run.status is not dg.DagsterRunStatus.NOT_STARTED]

    def request_daily(self) -> dg.DagsterRun:
        """Return the run that the schedule requests for 2025-03-02."""
        self.tick_schedules("2025-03-02T03:00")
        self.tick_schedules("2025-03-02T04:00")
        [run] = self.runs("daily_aggregation_job")
        return run

    def requested(self, job: str) -> list[tuple[str, str]]:
        """First and last partition of each of the job's runs, oldest first."""
        return [partitions_of(run) for run in self.runs(job)]

    def launch(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Let the code location execute a queued run; return it when it has ended."""
        self.start(run)
        return self.wait(run)

    def start(self, run: dg.DagsterRun) -> None:
        """Let the code location execute a queued run in a separate process."""
        self.instance.launch_run(run.run_id, self.context.create_request_context())

    def wait(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Return a run when it has ended."""
        deadline = time.monotonic() + RUN_PATIENCE_SECONDS
        while True:
            found = self.instance.get_run_by_id(run.run_id)
            assert found is not None
            if found.is_finished:
                return found
            assert time.monotonic() < deadline, "the run does not end"
            time.sleep(0.2)

    def until(self, run: dg.DagsterRun, *statuses: dg.DagsterRunStatus) -> dg.DagsterRun:
        """Wait until a run is in one of some states, while the daemon monitors runs."""
        deadline = time.monotonic() + RUN_PATIENCE_SECONDS
        while True:
            found = self.instance.get_run_by_id(run.run_id)
            assert found is not None
            if found.status in statuses:
                return found
            assert time.monotonic() < deadline, f"the run stays {found.status}"
            for error in execute_run_monitoring_iteration(self.context, logging.getLogger("monitoring")):
                assert error is None, error
            time.sleep(0.3)

    def event_types(self, run: dg.DagsterRun) -> set[dg.DagsterEventType | None]:
        """Return the types of the events of a run so far."""
        return {entry.dagster_event_type for entry in self.instance.all_logs(run.run_id)}


def partitions_of(run: dg.DagsterRun) -> tuple[str, str]:
    """First and last partition of a run."""
    single = run.tags.get("dagster/partition")
    if single:
        return single, single
    return run.tags["dagster/asset_partition_range_start"], run.tags["dagster/asset_partition_range_end"]


class CodeServers(AbstractContextManager["CodeServers"]):
    """At most one code server at a time; it is reused while the variables are the same."""

    OF_ONE_TEST = frozenset({"CAPACITY_HOME", "DAGSTER_HOME", "PYTEST_CURRENT_TEST"})

    def __init__(self) -> None:
        self._variables: dict[str, str] | None = None
        self._target: GrpcServerTarget | None = None
        self._started = ExitStack()

    def target(self) -> GrpcServerTarget:
        """Return the address of a code server with the current variables; the data folder may be an earlier test's."""
        # The password of a measured server may be under any name.
        variables = {name: value for name, value in os.environ.items() if name not in CodeServers.OF_ONE_TEST}
        if self._target is None or variables != self._variables:
            self._started.close()
            self._target = self._started.enter_context(code_server(free_port()))
            self._variables = variables
        return self._target

    def __exit__(self, *_error: object) -> None:
        self._started.close()


@contextmanager
def daemon_over(instance: dg.DagsterInstance, target: GrpcServerTarget) -> Iterator[Daemon]:
    """Return a daemon of `instance` whose code runs in the process at `target`."""
    with create_test_daemon_workspace_context(target, instance) as context:
        yield Daemon(instance, context)


@contextmanager
def running_daemon(instance: dg.DagsterInstance) -> Iterator[Daemon]:
    """Run a daemon of `instance` with its own code server."""
    with code_server(free_port()) as target, daemon_over(instance, target) as daemon:
        yield daemon
