"""One run a period at a time, whatever door it comes through, also when the pool is new; periods run side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from tests.e2e.stack import ask, free_port, served, wait_for
from tests.fleet import add_database_sizes, add_instances, sizes

LAUNCH = """mutation($run: ExecutionParams!) { launchRun(executionParams: $run) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status startTime endTime } } }"""
REPOSITORY = {"repositoryLocationName": "capacity_assets", "repositoryName": "__repository__"}


@pytest.fixture
def port(database: URL, empty_database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """`capacity up` for the first time on two servers of the user's own."""
    monkeypatch.setenv("CAPACITY_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_database.render_as_string(hide_password=False))
    chosen = free_port()
    with served(tmp_path, chosen):
        yield chosen


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


def test_two_runs_of_one_period_from_two_doors_never_overlap_while_another_period_goes_on(
    port: int, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 101]))
    doors = [("daily_aggregation_job", []), ("__ASSET_JOB", ["daily_database_aggregations"])]
    launched: list[str] = []
    # A row of the same key, not yet committed, makes the first run wait in the middle of its statement.
    with engine.connect() as blocker:
        blocker.execute(
            text(
                "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
                "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) "
                "VALUES (1, 'orders', 'daily', '2025-03-02', '2025-03-02', 1, 1, 1, 1)"
            )
        )
        threads = [
            threading.Thread(target=lambda door=door: launched.append(launch(port, *door, "2025-03-02")))
            for door in doors
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        wait_for(lambda: sorted(status(port, run) for run in launched) == ["QUEUED", "STARTED"], "one of the two runs")

        monthly = launch(port, "monthly_aggregation_job", [], "2025-03-01")
        wait_for(lambda: status(port, monthly) == "SUCCESS", "the monthly run")

        assert sorted(status(port, run) for run in launched) == ["QUEUED", "STARTED"]
        blocker.rollback()

    wait_for(lambda: [status(port, run) for run in launched] == ["SUCCESS", "SUCCESS"], "both daily runs")
    times = [ask(port, RUN, id=run)["runOrError"] for run in launched]
    first, second = sorted(times, key=lambda run: run["startTime"])
    assert first["endTime"] <= second["startTime"]
