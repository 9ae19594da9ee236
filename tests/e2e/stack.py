"""The command as a process, the served stack, and queries to its GraphQL, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, text

from tests.forked import run_forked
from tests.servers import free_port

COMMAND = [sys.executable, "-m", "capacity_assets.cli"]
PATIENCE_SECONDS = 180
# Two years of days through Dagster, beside another file's stack.
DEMO_SECONDS = 600


def environment(home: Path, **more: str) -> dict[str, str]:
    # Fixtures of a module begin before a test's own variables are set.
    return {"CAPACITY_TIMEZONE": "Asia/Shanghai", **os.environ, "CAPACITY_HOME": str(home), **more}


def run(home: Path, *arguments: str, timeout: int = PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
    return run_forked(*arguments, environment=environment(home), timeout=timeout)


def free_ports() -> tuple[str, ...]:
    """Say which ports `up` is to take; by default the pages take the next one, which may be another test's."""
    return "--port", str(free_port()), "--pages-port", str(free_port())


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.5)
    pytest.fail(f"gave up waiting for {what}")


def ask(port: int, query: str, **variables: object) -> Any:
    """Return the data of a GraphQL response."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 -- our own address
        document = json.load(answer)
    assert "errors" not in document, document
    return document["data"]


LAUNCH = """mutation($run: ExecutionParams!) { launchRun(executionParams: $run) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status startTime endTime } } }"""
REPOSITORY = {"repositoryLocationName": "capacity_assets", "repositoryName": "__repository__"}


def launch(port: int, job: str, assets: list[str], partition: str) -> str:
    """Launch one partition of a job, or of single assets as a click on their page does."""
    selector: dict[str, Any] = {**REPOSITORY, "pipelineName": job}
    if job == "__ASSET_JOB":
        selector["assetSelection"] = [{"path": [asset]} for asset in assets]
    tags = [{"key": "dagster/partition", "value": partition}]
    parameters = {"selector": selector, "executionMetadata": {"tags": tags}, "runConfigData": {}}
    launched = ask(port, LAUNCH, run=parameters)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def status(port: int, run_id: str) -> str:
    return str(ask(port, RUN, id=run_id)["runOrError"]["status"])


# A row of the key that a daily run of 2025-03-02 writes: while it is not committed, the run waits in mid-statement.
BLOCK = text(
    "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, "
    "avg_size_mb, max_size_mb, min_size_mb, data_count) "
    "VALUES (1, 'orders', 'daily', '2025-03-02', '2025-03-02', 1, 1, 1, 1)"
)


def waits_for_a_lock(engine: Engine) -> bool:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^WITH (classified|inserted)'"
    )
    with engine.connect() as connection:
        return bool(connection.execute(text(query)).scalar())


def processes_naming(text: str) -> list[str]:
    """Return the command lines of running processes that contain `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and folder.name != str(os.getpid()):
            found.append(line)
    return found


# A server that needs heartbeats waits half a minute for one; with this setting it would exit sooner.
SHORT_HEARTBEAT = {"DAGSTER_GRPC_PROXY_HEARTBEAT_TTL_SECONDS": "1"}
PAUSE_SECONDS = 3


def pause(processes: Iterable[subprocess.Popen[Any]]) -> None:
    """Suspend processes and their children, as on a sleeping laptop, and continue them after a while."""
    started = [psutil.Process(process.pid) for process in processes]
    everyone = [*started, *(child for one in started for child in one.children(recursive=True))]
    for one in everyone:
        one.suspend()
    time.sleep(PAUSE_SECONDS)
    for one in everyone:
        with suppress(psutil.NoSuchProcess):
            one.resume()


@contextmanager
def served(
    home: Path, port: int, *options: str, pages_port: int | None = None, can_read_only: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """`capacity up` until the block ends; then Ctrl-C, which must stop everything, unless a test killed it.

    Without a role that can only read there are no pages, and the first line says so.
    """
    pages = f"http://127.0.0.1:{pages_port or free_port()}"
    arguments = [*COMMAND, "up", "--port", str(port), "--pages-port", pages.rpartition(":")[2], *options]
    with subprocess.Popen(arguments, env=environment(home), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            assert (f"Pages: {pages}" if can_read_only else "Warning: The role postgres can write") in first
            assert process.stdout.readline().strip() == f"Dagster UI: http://127.0.0.1:{port}"
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=PATIENCE_SECONDS)
        if process.returncode == -signal.SIGKILL:  # by a test
            return
        assert "Stopped. All data was kept" in rest
        assert process.returncode == 0
