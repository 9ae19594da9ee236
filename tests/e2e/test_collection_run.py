"""A fleet measured through the served stack, one command from an empty folder, and no secret anywhere afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, text

from capacity_assets.collection.engines.installed import engine_named
from capacity_assets.settings import CAPACITY_DRIVER
from capacity_assets.storage.embedded import CAPACITY_DATABASE, DAGSTER_DATABASE, embedded_server
from capacity_assets.storage.engine import capacity_engine
from tests.clocks import SHANGHAI
from tests.e2e.stack import ask, launch, processes_naming, run, served, status, wait_for
from tests.servers import MariaDBServer, PostgresServer, free_port, silent_socket

RIGHT, WRONG = "right-Pa55-of-the-probe", "wrong-Pa55-of-the-probe"
JOB = "collection_job"
ASSETS = ["database_size_stats", "instance_size_stats", "daily_database_aggregations", "daily_instance_aggregations"]
METADATA = """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  assetMaterializations(limit: 1) { metadataEntries { label
    ... on IntMetadataEntry { intValue } ... on MarkdownMetadataEntry { mdStr } } } } } }"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_one_command_leads_from_an_empty_folder_to_a_chart_of_the_servers_own_databases(tmp_path: Path) -> None:
    done = run(tmp_path, "collect", "--own")

    assert done.returncode == 0, done.stderr
    assert "1 of 1 servers measured. 2 databases were measured now." in done.stdout
    [page] = (tmp_path / "reports").glob("growth-daily-*-capacity-database.html")
    shown = page.read_text()
    assert "<svg" in shown
    assert {CAPACITY_DATABASE, DAGSTER_DATABASE} <= set(re.findall(r">(\w+)<", shown))
    again = run(tmp_path, "collect", "--own")
    assert "1 of 1 servers measured, 1 of them earlier this day." in again.stdout


@pytest.fixture
def fleet(
    home: Path, measured_postgres: PostgresServer, measured_mariadb: MariaDBServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Two servers that can be measured, one with a wrong password, one that never answers."""
    measured_postgres.execute(
        engine_named("postgresql").grants.replace("'...'", f"'{RIGHT}'"), "CREATE DATABASE orders"
    )
    grants = engine_named("mariadb").grants.replace("'...'", f"'{RIGHT}'").split("\n")
    measured_mariadb.execute(*(line for line in grants if not line.startswith("--")), "CREATE DATABASE shop")
    secret = home / "secret"
    secret.write_text(RIGHT)
    monkeypatch.setenv("PROBE_WRONG_PASSWORD", WRONG)
    monkeypatch.setenv("CAPACITY_PASSWORD_FOLDERS", str(home))
    with silent_socket() as port:
        file = home / "servers.toml"
        server = '[[servers]]\nname = "{}"\nengine = "{}"\nhost = "127.0.0.1"\nport = {}\npassword_from = "{}"\n'
        file.write_text(
            '[defaults]\nusername = "capacity_probe"\n'
            + server.format("pg", "postgresql", measured_postgres.port, f"file:{secret}")
            + server.format("my", "mariadb", measured_mariadb.port, f"file:{secret}")
            + server.format("shut", "postgresql", measured_postgres.port, "env:PROBE_WRONG_PASSWORD")
            + server.format("silent", "postgresql", port, "env:PROBE_WRONG_PASSWORD")
        )
        for arguments in (["init"], ["instances", "import", str(file)]):
            done = run(home, *arguments)
            assert done.returncode == 0, done.stderr
        yield


@pytest.mark.usefixtures("fleet")
def test_a_run_through_the_ui_measures_the_fleet_and_no_secret_is_anywhere_afterwards(home: Path) -> None:
    port = free_port()
    today = datetime.now(tz=SHANGHAI).date().isoformat()
    seen: list[str] = []
    with served(home, port):
        run_id = launch(port, JOB, ASSETS, today)

        def ended() -> bool:
            seen.extend(processes_naming("Pa55-of-the-probe"))
            return status(port, run_id) in {"SUCCESS", "FAILURE"}

        wait_for(ended, "the run's end")
        entries = ask(port, METADATA, key={"path": ["instance_size_stats"]})["assetOrError"]["assetMaterializations"][0]
        told = {entry["label"]: entry.get("intValue", entry.get("mdStr")) for entry in entries["metadataEntries"]}
        retried = run(home, "collect", "-h")
        listed = run(home, "instances", "list")
        tried = run(home, "instances", "test", "shut")
        standing = run(home, "status")
        checked = run(home, "check")

        assert (told["processed_instances"], told["failed_instances"]) == (2, 2), told
        assert "shut: login: " in told["errors"]
        assert "silent: timeout: " in told["errors"]
        everything = {"processes": "\n".join(seen), "metadata": str(entries), **_files(home)}
        with embedded_server(home / "postgres") as server:
            for database in (CAPACITY_DATABASE, DAGSTER_DATABASE):
                engine = capacity_engine(server.url(database, CAPACITY_DRIVER))
                everything |= _tables(engine)
                engine.dispose()
    outputs = [retried, listed, tried, standing, checked]
    everything["commands"] = "\n".join(f"{done.stdout}{done.stderr}" for done in outputs)

    assert "2 of 4 servers measured, 2 failed" in everything["commands"]
    assert len(everything) > 30, "files and tables were looked at"
    assert "env:PROBE_WRONG_PASSWORD" in everything["table capacity_collection_targets"]
    found = {place for place, content in everything.items() if RIGHT in content or WRONG in content}
    assert found == set()


def _files(home: Path) -> dict[str, str]:
    """What lies under the home, but the secret itself and the database's own files, which are read as tables."""
    return {
        str(path): path.read_text(errors="replace")
        for path in home.rglob("*")
        if path.is_file() and path.name != "secret" and (home / "postgres" not in path.parents or path.name == "log")
    }


def _tables(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {
            f"table {name}": str(connection.execute(text(f'SELECT t::text FROM "{name}" t')).all())
            for name in inspect(connection).get_table_names()
        }
