"""A machine under load: a code server that answers too late, and processes that take long to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partialmethod
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster._grpc.client import DagsterGrpcClient

from capacity_assets.cli import processes
from capacity_assets.storage.embedded_folders import socket_folder
from tests.clocks import SHANGHAI
from tests.daemon import Daemon
from tests.e2e.stack import SHORT_HEARTBEAT, launch, pause, run, served, status, wait_for
from tests.servers import free_port

STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
NOON = 1_740_000_000.0


@contextmanager
def suspended(daemon: Daemon) -> Iterator[None]:
    """The code server of a daemon does not answer while the block lasts."""
    port = next(iter(daemon.context.create_request_context().get_code_location_entries().values())).origin.port
    [server] = [child for child in psutil.Process().children(recursive=True) if listens(child, port)]
    server.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send_signal(signal.SIGCONT)


def listens(process: psutil.Process, port: int) -> bool:
    connections = process.net_connections()
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def test_a_run_whose_code_server_answers_late_goes_back_into_the_queue_and_runs(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = daemon.request_daily()

    def status_after(seconds: int) -> dg.DagsterRunStatus:
        """The run's, after what takes runs out of the queue looked at it so much later."""
        list(coordinator.run_iteration(daemon.context, NOON + seconds))
        return daemon.runs("daily_aggregation_job")[0].status

    with QueuedRunCoordinatorDaemon(1) as coordinator:
        with suspended(daemon), monkeypatch.context() as patched:
            patched.setattr(DagsterGrpcClient, "_query", partialmethod(DagsterGrpcClient._query, timeout=2))
            assert status_after(0) is dg.DagsterRunStatus.QUEUED
        assert status_after(5) is dg.DagsterRunStatus.QUEUED, "it waits a while"
        status_after(20)
    assert daemon.wait(run).status is dg.DagsterRunStatus.SUCCESS


def test_stopping_names_what_it_waits_for_and_ends_it_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "REPORT_SECONDS", 0.3)
    monkeypatch.setattr(processes, "STOP_TIMEOUT_SECONDS", 1)
    stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN], process_group=0, stdout=subprocess.PIPE)
    assert stubborn.stdout
    stubborn.stdout.readline()
    said: list[str] = []

    def report(text: str) -> None:
        """As on a terminal that is closed after the first line."""
        said.append(text)
        if len(said) > 1:
            raise BrokenPipeError

    processes.Processes({"the daemon": stubborn}).end(report)

    assert len(said) > 1
    assert said[0] == "Waiting for the daemon: 1 s at most ..."
    assert stubborn.returncode == -signal.SIGTERM
    assert not psutil.pid_exists(stubborn.pid)
    stubborn.stdout.close()


def test_a_pause_of_all_that_up_started_ends_nothing_and_a_location_that_hangs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a laptop that sleeps."""
    yesterday = (datetime.now(tz=SHANGHAI).date() - timedelta(days=1)).isoformat()
    for name, value in {**SHORT_HEARTBEAT, "CAPACITY_START_DATE": yesterday, "CAPACITY_COLLECTION": "off"}.items():
        monkeypatch.setenv(name, value)
    home, port = tmp_path / "home", free_port()

    def activity() -> str:
        return " ".join(run(home, "status").stdout.split())

    with served(home, port) as up:
        pause([up])
        run_id = launch(port, "daily_aggregation_job", [], yesterday)
        wait_for(lambda: status(port, run_id) in {"SUCCESS", "FAILURE"}, "the run")
        assert status(port, run_id) == "SUCCESS"
        wait_for(lambda: "No Dagster daemon" not in activity(), "the daemon's first heartbeat")
        assert "code location" not in activity()

        [code] = [one for one in psutil.Process(up.pid).children() if "grpc" in one.cmdline()]
        code.suspend()
        try:
            hanging = activity()
            assert up.stdout is not None
            wait_for(lambda: "The code location at" in up.stdout.readline(), "up to say it too")  # type: ignore[union-attr]
        finally:
            code.resume()
        assert (
            f"The code location at {socket_folder(home / 'dagster', 'code.sock')}/code.sock does not answer" in hanging
        )
        assert "End `capacity up` with Ctrl-C and start it again" in hanging
    assert "code location" not in activity(), "what nobody serves is not asked"
