"""The first `capacity up` on two databases of a user.

One run per period at a time, whatever door it comes through, also when the pool is new; periods run side by side; a
collection that leaves no secret anywhere.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import URL, Engine, inspect, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import EmbeddedServer
from capacity_assets.database.engine import capacity_engine, disposed
from capacity_assets.database.tables import metadata
from tests.collecting import granting
from tests.databases import TEMPLATE, Databases
from tests.e2e.stack import (
    BLOCK,
    RUN,
    ask,
    launch,
    processes_naming,
    run,
    served,
    status,
    wait_for,
    waits_for_a_lock,
)
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.mysql_servers import MariaDBServer
from tests.servers import PostgresServer, free_port, silent_socket

pytestmark = pytest.mark.nightly("starts a second stack with a daemon, and four runs")

RIGHT, WRONG = "right-Pa55-of-the-probe", "wrong-Pa55-of-the-probe"


class Stack(NamedTuple):
    """The stack: its port, data folder and two databases."""

    port: int
    home: Path
    engine: Engine
    storage: URL


@pytest.fixture(scope="module")
def stack(cluster: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack: the URL of one database is in a file `.env`, that of Dagster's is exported."""
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
        patched.setenv("PROBE_WRONG_PASSWORD", WRONG)
        patched.setenv("CAPACITY_PASSWORD_FOLDERS", str(home))
        port = free_port()
        with served(home, port, can_read_only=False):
            yield Stack(port, home, engine, storage)
        engine.dispose()


@pytest.fixture
def port(stack: Stack) -> int:
    """The port of the stack."""
    return stack.port


@pytest.fixture
def engine(stack: Stack) -> Engine:
    """An engine on the database of the stack, emptied."""
    with stack.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        # The stack reads all the while: TRUNCATE and its queries can deadlock, DELETE waits for no reader.
        for table in reversed(metadata.sorted_tables):
            if table.name != "capacity_settings":
                connection.execute(table.delete())
    return stack.engine


def test_a_dot_env_file_is_read_by_everything_and_what_is_exported_wins(port: int) -> None:
    schedules = """query { schedulesOrError(repositorySelector: {repositoryLocationName: "capacity_assets",
      repositoryName: "__repository__"}) { ... on Schedules { results { executionTimezone } } } }"""

    zones = {row["executionTimezone"] for row in ask(port, schedules)["schedulesOrError"]["results"]}

    assert zones == {"Europe/Berlin"}


RETRIES = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results { runId } } } }"""


def test_two_runs_of_one_period_from_two_doors_never_overlap_and_one_whose_worker_is_killed_is_started_again(
    port: int, engine: Engine
) -> None:
    """One door is a click on an asset's page, the other the request of the operations page, as it stands there.

    Another period goes on meanwhile; a statement that was killed leaves nothing.
    """
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

        killed, waiting = sorted(launched, key=lambda run: status(port, run), reverse=True)
        assert [status(port, run) for run in (killed, waiting)] == ["STARTED", "QUEUED"]
        pid = wait_for(lambda: _started_pid(port, killed), "the worker")
        wait_for(lambda: waits_for_a_lock(engine), "the statement")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: status(port, killed) == "FAILURE", "the killed run to be seen as failed")
        assert stored(engine, DATABASE, "daily") == []
        blocker.rollback()

    parent = [{"key": "dagster/parent_run_id", "value": killed}]
    [retry] = wait_for(lambda: ask(port, RETRIES, filter={"tags": parent})["runsOrError"]["results"], "the retry")
    runs = [waiting, retry["runId"]]
    wait_for(lambda: [status(port, run) for run in runs] == ["SUCCESS", "SUCCESS"], "the second run and the retry")
    times = [ask(port, RUN, id=run)["runOrError"] for run in (killed, *runs)]
    first, second, third = sorted(times, key=lambda run: run["startTime"])
    assert first["endTime"] <= second["startTime"]
    assert second["endTime"] <= third["startTime"]
    assert [ask(port, how_it_goes, id=run)["runOrError"]["status"] for run in runs] == ["SUCCESS", "SUCCESS"]
    assert [row["max_size_mb"] for row in stored(engine, DATABASE, "daily")] == [101]


EVENTS = """query($id: ID!) { runOrError(runId: $id) { ... on Run { eventConnection { events {
  ... on EngineEvent { metadataEntries { label
    ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } } }
} } } } }"""


def _started_pid(port: int, run_id: str) -> int | None:
    """Return the process number of the worker, from the log of the run."""
    events = ask(port, EVENTS, id=run_id)["runOrError"]["eventConnection"]["events"]
    entries = [entry for event in events for entry in event.get("metadataEntries", [])]
    found = [entry.get("intValue") or entry.get("text") for entry in entries if entry["label"] == "pid"]
    return int(found[-1]) if found else None


JOB = "collection_job"
ASSETS = ["database_size_stats", "instance_size_stats", "daily_database_aggregations", "daily_instance_aggregations"]
METADATA = """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  assetMaterializations(limit: 1) { metadataEntries { label
    ... on IntMetadataEntry { intValue } ... on MarkdownMetadataEntry { mdStr } } } } } }"""


@pytest.fixture
def fleet(
    stack: Stack,
    engine: Engine,  # noqa: ARG001 -- empties it
    measured_postgres: PostgresServer,
    measured_mariadb: MariaDBServer,
) -> Iterator[None]:
    """Two servers that can be measured, one with a wrong password, one that never answers."""
    measured_postgres.execute(*granting("postgresql", RIGHT), "CREATE DATABASE orders")
    measured_mariadb.execute(*granting("mariadb", RIGHT), "CREATE DATABASE shop")
    secret = stack.home / "secret"
    secret.write_text(RIGHT)
    with silent_socket() as port:
        file = stack.home / "servers.toml"
        server = '[[servers]]\nname = "{}"\nengine = "{}"\nhost = "127.0.0.1"\nport = {}\npassword_from = "{}"\n'
        file.write_text(
            '[defaults]\nusername = "capacity_probe"\n'
            + server.format("pg", "postgresql", measured_postgres.port, f"file:{secret}")
            + server.format("my", "mariadb", measured_mariadb.port, f"file:{secret}")
            + server.format("shut", "postgresql", measured_postgres.port, "env:PROBE_WRONG_PASSWORD")
            + server.format("silent", "postgresql", port, "env:PROBE_WRONG_PASSWORD")
        )
        done = run(stack.home, "instances", "import", str(file))
        assert done.returncode == 0, done.stderr
        yield


@pytest.mark.usefixtures("fleet")
def test_a_run_through_the_ui_measures_the_fleet_and_no_secret_is_anywhere_afterwards(
    stack: Stack, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", stack.storage.render_as_string(hide_password=False))
    port, home, today = stack.port, stack.home, datetime.now(tz=ZoneInfo("Europe/Berlin")).date().isoformat()
    seen: list[str] = []
    run_id = launch(port, JOB, ASSETS, today)

    def ended() -> bool:
        seen.extend(processes_naming("Pa55-of-the-probe"))
        return status(port, run_id) in {"SUCCESS", "FAILURE"}

    wait_for(ended, "the run's end")
    entries = ask(port, METADATA, key={"path": ["instance_size_stats"]})["assetOrError"]["assetMaterializations"][0]
    metadata = {entry["label"]: entry.get("intValue", entry.get("mdStr")) for entry in entries["metadataEntries"]}
    commands = [["collect", "-h"], ["instances", "list"], ["instances", "test", "shut"], ["status"], ["check"]]
    outputs = [run(home, *arguments) for arguments in commands]

    assert (metadata["processed_instances"], metadata["failed_instances"]) == (2, 2), metadata
    assert "shut: login: " in metadata["errors"]
    assert "silent: timeout: " in metadata["errors"]
    everything = {"processes": "\n".join(seen), "metadata": str(entries), **_files(home)}
    everything["log"] = Path(server.socket_folder, "log").read_text(errors="replace")
    everything["commands"] = "\n".join(f"{done.stdout}{done.stderr}" for done in outputs)
    for url in (stack.engine.url, stack.storage.set(drivername=CAPACITY_DRIVER)):
        with disposed(capacity_engine(url)) as engine:
            everything |= _tables(engine)
    assert "2 of 4 servers measured, 2 failed" in everything["commands"]
    assert len(everything) > 30, "files and tables were looked at"
    assert {"table runs", "table event_logs"} <= set(everything)
    assert "env:PROBE_WRONG_PASSWORD" in everything["table capacity_collection_targets"]
    found = {place for place, content in everything.items() if RIGHT in content or WRONG in content}
    assert found == set()


def _files(home: Path) -> dict[str, str]:
    """Return the files under the data folder, except the secret."""
    files = [path for path in home.rglob("*") if path.is_file() and path.name != "secret"]
    return {str(path): path.read_text(errors="replace") for path in files}


def _tables(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {
            f"table {name}": str(connection.execute(text(f'SELECT t::text FROM "{name}" t')).all())
            for name in inspect(connection).get_table_names()
        }
