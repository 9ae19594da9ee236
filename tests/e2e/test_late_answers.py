"""A busy machine: a code server that responds too late, and processes that stop slowly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partialmethod
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import dagster as dg
import psutil
import pytest
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster._grpc.client import DagsterGrpcClient

from capacity_assets.base.settings import Settings
from capacity_assets.cli import up as cli_up
from capacity_assets.cli.options import CommandFailedError
from capacity_assets.database.embedded import socket_folder
from capacity_assets.orchestration import instance
from tests.clocks import SHANGHAI
from tests.daemon import Daemon
from tests.e2e.stack import (
    COMMAND,
    PATIENCE_SECONDS,
    SHORT_HEARTBEAT,
    environment,
    free_ports,
    launch,
    pause,
    processes_naming,
    run,
    served,
    status,
    wait_for,
)
from tests.servers import free_port, silent_socket

pytestmark = pytest.mark.nightly("waits for programs that answer late or never")
STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
NOON = 1_740_000_000.0
YESTERDAY = (datetime.now(tz=SHANGHAI).date() - timedelta(days=1)).isoformat()


@contextmanager
def suspended(daemon: Daemon) -> Iterator[None]:
    """Suspend the code server of a daemon during the block."""
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
        """Return the status of the run after the queue was read this much later."""
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
    monkeypatch.setattr(instance, "REPORT_SECONDS", 0.3)
    monkeypatch.setattr(instance, "STOP_TIMEOUT_SECONDS", 1)
    stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN], process_group=0, stdout=subprocess.PIPE)
    assert stubborn.stdout
    stubborn.stdout.readline()
    said: list[str] = []

    def report(text: str) -> None:
        """Report on a terminal that is closed after the first line."""
        said.append(text)
        if len(said) > 1:
            raise BrokenPipeError

    instance.Processes({"the daemon": stubborn}).end(report)

    assert len(said) > 1
    assert said[0] == "Waiting for the daemon: 1 s at most ..."
    assert stubborn.returncode == -signal.SIGTERM
    assert not psutil.pid_exists(stubborn.pid)
    stubborn.stdout.close()


class Up(NamedTuple):
    """`capacity up` on a separate data folder."""

    home: Path
    port: int
    process: subprocess.Popen[str]

    def activity(self) -> str:
        return " ".join(run(self.home, "status").stdout.split())

    def succeeds(self, day: str = YESTERDAY) -> bool:
        """Whether a run launched now succeeds."""
        run_id = launch(self.port, "daily_aggregation_job", [], day)
        return bool(wait_for(lambda: status(self.port, run_id) in {"SUCCESS", "FAILURE"}, "the run")) and (
            status(self.port, run_id) == "SUCCESS"
        )

    def says(self, text: str) -> bool:
        """Wait for this text in the output; earlier output is discarded."""
        assert self.process.stdout is not None
        patience = Timer(PATIENCE_SECONDS, self.process.kill)
        patience.start()
        try:
            return any(text in line for line in iter(self.process.stdout.readline, ""))
        finally:
            patience.cancel()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`capacity up` in a working directory with a foreign module that has the name of an imported one."""
    folder = tmp_path_factory.mktemp("up")
    folder.chmod(0o711)
    home, port = folder / "home", free_port()
    planted = home / "dagster" / "yaml.py"
    planted.parent.mkdir(mode=0o700, parents=True)
    planted.write_text(f"open({str(folder / 'executed')!r}, 'w')\nraise SystemExit(1)\n")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**SHORT_HEARTBEAT, "CAPACITY_START_DATE": YESTERDAY, "CAPACITY_COLLECTION": "off"}.items():
            patched.setenv(name, value)
        with served(home, port) as process:
            yield Up(home, port, process)
    assert processes_naming(str(home)) == []
    assert not (folder / "executed").exists(), "nothing is imported from the folder in which processes start"


def test_a_pause_of_all_that_up_started_ends_nothing_and_a_location_that_hangs_is_named(up: Up) -> None:
    """All processes are suspended, as on a sleeping laptop."""
    pause([up.process])

    assert up.succeeds()
    wait_for(lambda: "No Dagster daemon" not in up.activity(), "the daemon's first heartbeat")
    assert "code location" not in up.activity()

    [code] = [one for one in psutil.Process(up.process.pid).children() if "grpc" in one.cmdline()]
    code.suspend()
    try:
        hanging = up.activity()
        assert up.says("The code location at")
    finally:
        code.resume()
    folder = socket_folder(up.home / "dagster", "code.sock")
    assert f"The code location at {folder}/code.sock does not answer" in hanging
    assert "End `capacity up` with Ctrl-C and start it again" in hanging


def test_an_embedded_server_that_was_killed_is_started_again_and_stops_with_up(up: Up) -> None:
    postmaster = int((up.home / "postgres" / "postmaster.pid").read_text().splitlines()[0])

    os.kill(postmaster, signal.SIGKILL)

    assert up.says("the embedded PostgreSQL had ended and was restarted")
    assert up.succeeds()


def test_after_up_was_killed_the_next_one_names_what_is_left_over_instead_of_starting_a_second_daemon(up: Up) -> None:
    up.process.kill()
    up.process.wait()

    refused = run(up.home, "up", *free_ports())

    assert refused.returncode == 1
    assert "An earlier `capacity up` was killed, and its Dagster processes" in " ".join(refused.stderr.split())
    [group] = re.findall(r"kill -- -(\d+)", refused.stderr)
    os.killpg(int(group), signal.SIGKILL)
    with silent_socket() as port:
        next_one = run(up.home, "up", "--port", str(port), "--pages-port", str(free_port()))
    assert f"Port {port} on 127.0.0.1 cannot be used" in next_one.stderr, "nothing is left over any more"
    assert run(up.home, "status").returncode == 0, "what the killed one had open works"
    assert processes_naming(str(up.home)) == []


@pytest.mark.parametrize(("program", "name"), [("dagster._daemon", "The daemon"), ("serve", "The pages")])
def test_up_names_a_process_that_was_killed_and_stops_everything(tmp_path: Path, program: str, name: str) -> None:
    home, arguments = tmp_path / "home", [*COMMAND, "up", *free_ports()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, env=environment(home), text=True, **pipes) as process:
        assert process.stdout is not None
        assert any(line.startswith("Log: ") for line in iter(process.stdout.readline, ""))
        [one] = [one for one in psutil.Process(process.pid).children() if program in one.cmdline()]
        one.kill()
        _, error = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 1
    assert f"{name} was ended by signal 9. The end of {home}/dagster/up.log:" in " ".join(error.split())
    assert processes_naming(str(home)) == []


def test_an_embedded_server_that_keeps_ending_ends_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_up.embedded, "start_again", lambda _data, _sql_port: True)
    restarts = cli_up._Restarts(Settings(CAPACITY_HOME=tmp_path), None)  # type: ignore[call-arg]

    said = [restarts.start_again_if_ended() for _ in range(cli_up.MOST_RESTARTS)]

    assert all("was restarted" in text for text in said)
    with pytest.raises(CommandFailedError, match=f"{cli_up.MOST_RESTARTS + 1} times within an hour"):
        restarts.start_again_if_ended()
