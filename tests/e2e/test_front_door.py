"""The first steps of a new user, with the real daemon, web server and embedded PostgreSQL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import DAGSTER_DRIVER
from capacity_assets.database.embedded import EmbeddedServer
from tests.e2e.conftest import FIRST_DAY, Demo
from tests.e2e.stack import DEMO_SECONDS, ask, environment, free_ports, processes_naming, run, wait_for
from tests.redis_server import RedisServer
from tests.servers import free_port, silent_socket

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def recent_start(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 -- goes first
    monkeypatch.setenv("CAPACITY_START_DATE", FIRST_DAY)


@pytest.fixture(scope="module")
def home(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder that the demo filled and the UI then serves."""
    return demo.copy_to(tmp_path_factory.mktemp("front_door") / "home")


def written_rows(output: str) -> int:
    found = re.search(r"([\d,]+) rows were written by this run", output)
    assert found, output
    return int(found.group(1).replace(",", ""))


def test_the_demo_computes_every_period_and_prints_what_a_dba_asks_for(demo: Demo) -> None:
    done = demo.done
    assert done.returncode == 0, done.stderr
    for period in ("daily", "weekly", "monthly", "quarterly", "yearly"):
        assert re.search(rf"{period} +\d+ +[\d,]+ +0 +[\d,]+ +[\d,]+", done.stdout), done.stdout
    assert written_rows(done.stdout) > 8_000
    stages = re.findall(r"^Computing (.+)\.$", done.stdout, re.MULTILINE)
    assert stages == [
        *(f"the {period} windows" for period in PERIODS),
        *("the runways", "the growth reports", "the bills", "the digests", "the tables' partitions"),
    ], "a line for each, not minutes of silence"
    assert "Fastest growing databases" in done.stdout
    assert "Next: `make up`" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.nightly("computes the demo once more")
def test_a_second_demo_changes_nothing(home: Path) -> None:
    again = run(home, "demo", timeout=DEMO_SECONDS)

    assert again.returncode == 0, again.stderr
    assert "The demo is complete already: 0 rows were written by this run" in again.stdout


def test_the_embedded_server_stops_with_its_last_user(home: Path) -> None:
    assert processes_naming(str(home)) == []


@pytest.mark.nightly("starts a further stack")
def test_up_refuses_a_redis_that_refuses_it_and_does_not_show_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = RedisServer(tmp_path, password="right")  # noqa: S106 -- of this test's own server
    guarded.start()
    try:
        monkeypatch.setenv("CAPACITY_REDIS_URL", f"redis://:hunter2@127.0.0.1:{guarded.port}/0")
        refused = run(tmp_path / "home", "up", *free_ports())
    finally:
        guarded.stop()

    assert refused.returncode == 1
    assert "Redis refuses the login" in refused.stderr
    assert "hunter2" not in refused.stderr + refused.stdout


def test_up_refuses_a_port_that_is_taken(home: Path) -> None:
    with silent_socket() as port:
        refused = run(home, "up", "--port", str(port), "--pages-port", str(free_port()))

    assert refused.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be used" in refused.stderr
    assert "choose another port with --port" in refused.stderr


def test_up_warns_of_a_redis_that_is_away_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis does not prevent serving the UI; here Dagster's storage does."""
    monkeypatch.setenv("CAPACITY_REDIS_URL", "redis://:hunter2@127.0.0.1:9/0")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://dba@127.0.0.1:9/nowhere")
    ended = run(tmp_path / "home", "up", *free_ports())

    assert ended.stdout.startswith("Warning: Locks cannot be taken: Redis does not answer")
    assert "DAGSTER_POSTGRES_URL" in ended.stderr
    assert "hunter2" not in ended.stdout + ended.stderr


def test_there_is_no_demo_to_take_away_where_none_was_made(tmp_path: Path) -> None:
    refused = run(tmp_path, "demo", "--remove")

    assert refused.returncode == 1
    assert f"There is no sample fleet under {tmp_path}." in " ".join(refused.stderr.split())


@pytest.mark.nightly("starts a further demo")
def test_the_demo_can_be_taken_away_and_leaves_room_for_real_servers(home: Path) -> None:
    removed = run(home, "demo", "--remove")
    own = run(home, "collect", "--own")
    demo_again = run(home, "demo", timeout=DEMO_SECONDS)

    assert removed.returncode == 0, removed.stderr
    assert "Removed the sample fleet" in removed.stdout
    assert [page.name for page in (home / "reports").glob("*.html") if "capacity-database" not in page.name] == []
    assert own.returncode == 0, own.stderr
    assert demo_again.returncode == 1
    assert "the two do not mix" in demo_again.stderr


@pytest.mark.nightly("starts a further stack")
def test_dagster_dev_works_for_someone_who_sets_the_variables_by_hand(
    server: EmbeddedServer, database: Any, tmp_path: Path
) -> None:
    port = free_port()
    variables = {
        "CAPACITY_DATABASE_URL": database.render_as_string(hide_password=False),
        "DAGSTER_POSTGRES_URL": server.url("postgres", DAGSTER_DRIVER).render_as_string(hide_password=False),
        "HOME": str(tmp_path),
    }
    arguments = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "dagster.log").open("w") as log:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment(tmp_path, **variables), stdout=log, stderr=log, start_new_session=True
        )
        try:
            nodes = wait_for(lambda: _asset_nodes_or_none(process, port), "dagster dev")
        finally:
            # Not Ctrl-C: whoever starts the tests in the background has it ignored in every child.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    assert len(nodes) == 26 + 21, "assets, and the views and pages that read them"
    assert "Error" not in (tmp_path / "dagster.log").read_text()


def _asset_nodes_or_none(process: subprocess.Popen[bytes], port: int) -> list[object] | None:
    assert process.poll() is None, "dagster dev stopped by itself"
    try:
        nodes: list[object] = ask(port, "query { assetNodes { assetKey { path } } }")["assetNodes"]
    except OSError:
        return None
    return nodes or None


@pytest.mark.nightly("starts a further server")
def test_status_before_dagster_ever_ran_says_so_instead_of_a_traceback(tmp_path: Path) -> None:
    made, shown = (run(tmp_path, command) for command in ("init", "status"))

    assert made.returncode == 0, made.stderr
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Runs: Dagster was never started here, or its storage does not answer." in shown.stdout
