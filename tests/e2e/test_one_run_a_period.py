"""One run per period at a time, whatever door it comes through, also when the pool is new; periods run side by side."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.foundation.levels import DATABASE
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.every_table import metadata
from tests.databases import TEMPLATE, Databases
from tests.e2e.stack import BLOCK, RUN, ask, launch, served, status, wait_for, waits_for_a_lock
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.servers import free_port


@pytest.fixture(scope="module")
def stack(cluster: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Engine]]:
    """`capacity up` for the first time on two databases of the user's own, one named in a file `.env`."""
    with (
        cluster.copy(TEMPLATE) as capacity,
        cluster.copy("template1") as storage,
        pytest.MonkeyPatch.context() as patched,
    ):
        engine = capacity_engine(capacity)
        # Dagster reads such a file by itself, and would let it win over what `capacity up` hands it.
        home = tmp_path_factory.mktemp("home")
        (home / ".env").write_text(
            f"CAPACITY_DATABASE_URL={capacity.render_as_string(hide_password=False)}\n"
            "CAPACITY_TIMEZONE=Europe/Berlin\nDAGSTER_POSTGRES_URL=postgresql://dba@127.0.0.1:9/nowhere\n"
        )
        patched.chdir(home)
        patched.setenv("DAGSTER_POSTGRES_URL", storage.render_as_string(hide_password=False))
        # Empty is unset, and not that of the tests.
        patched.setenv("CAPACITY_TIMEZONE", "")
        port = free_port()
        with served(home, port, can_read_only=False):
            yield port, engine
        engine.dispose()


@pytest.fixture
def port(stack: tuple[int, Engine]) -> int:
    """Where the stack answers."""
    return stack[0]


@pytest.fixture
def engine(stack: tuple[int, Engine]) -> Engine:
    """Its database, emptied."""
    with stack[1].begin() as connection:
        tables = [table.name for table in metadata.sorted_tables if table.name != "capacity_settings"]
        connection.execute(text(f"TRUNCATE {', '.join(tables)}"))
    return stack[1]


def test_a_dot_env_file_is_read_by_everything_and_what_is_exported_wins(port: int) -> None:
    schedules = """query { schedulesOrError(repositorySelector: {repositoryLocationName: "capacity_assets",
      repositoryName: "__repository__"}) { ... on Schedules { results { executionTimezone } } } }"""

    zones = {row["executionTimezone"] for row in ask(port, schedules)["schedulesOrError"]["results"]}

    assert zones == {"Europe/Berlin"}


def test_two_runs_of_one_period_from_two_doors_never_overlap_while_another_period_goes_on(
    port: int, engine: Engine
) -> None:
    """One door is a click on an asset's page, the other the request of the operations page, as it stands there."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 101]))
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    [body] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    [how_it_goes] = re.findall(r"`(query\(\$id: ID!\) .*?)`", page)
    request = json.loads(body)
    doors: list[Callable[[], str]] = [
        lambda: ask(port, request["query"], **request["variables"])["launchRun"]["run"]["runId"],
        lambda: launch(port, "__ASSET_JOB", ["daily_database_aggregations"], "2025-03-02"),
    ]
    launched: list[str] = []
    # A row of the same key, not yet committed, makes the first run wait in the middle of its statement.
    with engine.connect() as blocker:
        blocker.execute(BLOCK)
        threads = [threading.Thread(target=lambda door=door: launched.append(door())) for door in doors]
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
    assert [ask(port, how_it_goes, id=run)["runOrError"]["status"] for run in launched] == ["SUCCESS", "SUCCESS"]
    assert [row["max_size_mb"] for row in stored(engine, DATABASE, "daily")] == [101]


RETRIES = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results { runId } } } }"""


def test_a_worker_killed_in_mid_statement_leaves_the_tables_and_its_run_is_started_again(
    port: int, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 101]))
    with engine.connect() as blocker:
        blocker.execute(BLOCK)
        killed = launch(port, "daily_aggregation_job", [], "2025-03-02")
        pid = wait_for(lambda: _started_pid(port, killed), "the worker")
        wait_for(lambda: waits_for_a_lock(engine), "the statement")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: status(port, killed) == "FAILURE", "the killed run to be seen as failed")
        assert stored(engine, DATABASE) == []
        blocker.rollback()

    parent = [{"key": "dagster/parent_run_id", "value": killed}]
    retries = wait_for(lambda: ask(port, RETRIES, filter={"tags": parent})["runsOrError"]["results"], "the retry")
    wait_for(lambda: status(port, retries[0]["runId"]) == "SUCCESS", "the retry's end")
    assert len(retries) == 1
    assert [row["max_size_mb"] for row in stored(engine, DATABASE)] == [101]


EVENTS = """query($id: ID!) { runOrError(runId: $id) { ... on Run { eventConnection { events {
  ... on EngineEvent { metadataEntries { label
    ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } } }
} } } } }"""


def _started_pid(port: int, run_id: str) -> int | None:
    """Process number of the worker, as the run's own log has it."""
    events = ask(port, EVENTS, id=run_id)["runOrError"]["eventConnection"]["events"]
    entries = [entry for event in events for entry in event.get("metadataEntries", [])]
    found = [entry.get("intValue") or entry.get("text") for entry in entries if entry["label"] == "pid"]
    return int(found[-1]) if found else None
