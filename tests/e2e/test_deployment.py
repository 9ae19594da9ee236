"""The deployment files: their commands, started by hand with the tests' servers, serve, respond and run."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import URL, Engine

from capacity_assets.base.settings import DAGSTER_DRIVER, variable_names
from capacity_assets.database.embedded import socket_folder
from tests.e2e.stack import PATIENCE_SECONDS, SHORT_HEARTBEAT, ask, launch, pause, status, wait_for
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.forked import run_forked
from tests.redis_server import RedisServer
from tests.servers import free_port

pytestmark = pytest.mark.nightly("starts every deployed program")
ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PROGRAMS = Path(sys.executable).parent
ORDER = ("code-location", "webserver", "daemon", "pages")
# What the script of a package does.
SCRIPT = """
import sys
from importlib.metadata import entry_points
del sys.argv[0]
[script] = entry_points(group="console_scripts", name=sys.argv[0])
script.load()()
"""


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    return loaded


def command_of(name: str) -> list[str]:
    """Return the command of a unit, without the folder of its programs."""
    path = ROOT / "deploy" / "systemd" / f"capacity-{name}.service"
    return unit(path)["Service"]["ExecStart"].removeprefix("/opt/capacity/.venv/bin/").split()


def test_units_run_as_an_ordinary_user_with_secrets_from_a_file_and_start_again_after_a_failure() -> None:
    assert [path.stem for path in UNITS] == sorted(f"capacity-{name}" for name in ORDER)
    for path in UNITS:
        service = unit(path)["Service"]
        assert service["User"] == "capacity"
        assert service["EnvironmentFile"] == "/etc/capacity/capacity.env"
        assert service["Restart"] == "always", "a code server that was asked to end does so without a failure"
        assert service["NoNewPrivileges"] == "yes"
        assert "://" not in path.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        # The program and the user of the real machine are not here.
        there = path.read_text().replace("/opt/capacity/.venv/bin/", f"{PROGRAMS}/").replace("=capacity\n", "=root\n")
        (tmp_path / path.name).write_text(there)

    looked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / path.name) for path in UNITS)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )

    ours = [line for line in looked.stderr.splitlines() if "capacity-" in line]
    assert ours == [], looked.stderr


READERS = {
    "CAPACITY_WEB_DATABASE_URL": "CAPACITY_DATABASE_URL",
    "CAPACITY_WEB_DAGSTER_POSTGRES_URL": "DAGSTER_POSTGRES_URL",
}


def test_the_compose_file_runs_the_same_programs_unprivileged_with_health_checks_and_no_secret() -> None:
    services = compose()["services"]

    assert set(services) == set(ORDER)
    code = services["code-location"]["command"]
    assert code.replace(
        "--host 0.0.0.0 --port 4000", "--socket /run/capacity/code.sock --location-name capacity_assets"
    ) == (" ".join(command_of("code-location")))
    for name, service in services.items():
        here = re.sub(r"127\.0\.0\.1", "0.0.0.0", " ".join(command_of(name)))  # noqa: S104 -- inside the container
        if name != "code-location":
            there = service["command"].replace("/opt/capacity/", "")
            assert there == here.replace("/opt/capacity/deploy/systemd/", "")
        assert service["user"] == "10001"
        assert service["read_only"] is True
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        values = dict(service["environment"])
        if name == "pages":
            # Where they have roles of their own, no address of another one.
            for own, other in READERS.items():
                assert values.pop(other) == f"${{{own}:-${{{other}}}}}"
        for variable, value in values.items():
            assert str(value).startswith(f"${{{variable}"), "values come from outside"
            default = value.partition(":-")[2].removesuffix("}")
            assert default in {"", "100"}, "an empty value is ignored, so the default stands in one place"
        # Where the data lies is the image's business, and the embedded server is not used.
        not_here = {"CAPACITY_HOME", "CAPACITY_SQL_PASSWORD"}
        assert {*service["environment"], *not_here} == {*variable_names(), "DAGSTER_EVENT_BATCH_SIZE"}


def test_every_file_an_image_is_built_from_exists() -> None:
    dockerfile = (ROOT / "deploy" / "compose" / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY")]

    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names} == let_in
    assert all((ROOT / name).exists() for name in let_in)
    assert dockerfile.index("USER 10001") < dockerfile.index("mkdir -p /var/lib/capacity"), "it owns its folders"


@contextmanager
def started(arguments: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAMS / arguments[0]), *arguments[1:]], env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def daemons_are_well(port: int) -> bool:
    query = "query { instance { daemonHealth { allDaemonStatuses { healthy required } } } }"
    found = ask(port, query)["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(one["healthy"] for one in found if one["required"])


def found_by(environment: dict[str, str], folder: Path) -> dict[str, tuple[str, str]]:
    """The findings of `capacity check`, by subject."""
    done = run_forked("check", "--json", environment=environment, timeout=PATIENCE_SECONDS, folder=folder)
    return {found["subject"]: (found["verdict"], found["text"]) for found in json.loads(done.stdout)}


@pytest.mark.usefixtures("reader_role")
def test_the_programs_of_the_units_serve_and_run_against_servers_of_ones_own(
    engine: Engine, database: URL, empty_database: URL, redis_server: RedisServer, tmp_path: Path
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 150]))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(100, 1), (150, 1)]))
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    web_port, pages_port = free_port(), free_port()
    socket = socket_folder(tmp_path, "code.sock") / "code.sock"
    workspace = (ROOT / "deploy" / "systemd" / "workspace.yaml").read_text()
    workspace = workspace.replace("/run/capacity/code.sock", str(socket))
    (tmp_path / "workspace.yaml").write_text(workspace)
    (home / "workspace.yaml").write_text(workspace)
    environment = {
        **os.environ,
        "CAPACITY_DATABASE_URL": database.render_as_string(hide_password=False),
        "DAGSTER_POSTGRES_URL": empty_database.set(drivername=DAGSTER_DRIVER).render_as_string(hide_password=False),
        "CAPACITY_REDIS_URL": redis_server.url,
        "CAPACITY_HOME": str(tmp_path),
        "DAGSTER_HOME": str(home),
        **SHORT_HEARTBEAT,
        # A superuser may become the role that can only read; on a server of one's own its owner makes it.
        "CAPACITY_WEB_DATABASE_URL": database.render_as_string(hide_password=False),
    }
    made = run_forked("init", environment=environment, timeout=PATIENCE_SECONDS, folder=tmp_path)
    assert made.returncode == 0, made.stderr

    def arguments(name: str) -> list[str]:
        values = {"/run/capacity/code.sock": str(socket), "3000": str(web_port), "3001": str(pages_port)}
        values["/var/lib/capacity/reports"] = str(tmp_path / "reports")
        values["/opt/capacity/deploy/systemd/workspace.yaml"] = str(tmp_path / "workspace.yaml")
        return [values.get(word, word) for word in command_of(name)]

    def healthy(name: str) -> bool:
        test = [
            word.replace("3000", str(web_port)).replace("3001", str(pages_port))
            for word in compose()["services"][name]["healthcheck"]["test"][1:]
        ]
        if name == "code-location":
            test = [*test[: test.index("--port")], "--socket", str(socket)]
        if test[0] == "python":
            return subprocess.run([sys.executable, *test[1:]], capture_output=True, check=False).returncode == 0
        done = run_forked(*test, program=SCRIPT, environment=environment, timeout=PATIENCE_SECONDS)
        return done.returncode == 0

    # Their health checks take a second, so they are asked when they will succeed.
    signs = {"code-location": socket.exists, "daemon": lambda: daemons_are_well(web_port)}
    with ExitStack() as stack:
        processes = []
        for name in ORDER:
            processes.append(stack.enter_context(started(arguments(name), environment, tmp_path)))
            wait_for(signs.get(name, lambda: True), f"a sign of {name}")
            wait_for(lambda name=name: healthy(name), f"{name} to be healthy")
        pause(processes)
        run_id = launch(web_port, "daily_aggregation_job", [], "2025-03-02")
        wait_for(lambda: status(web_port, run_id) in {"SUCCESS", "FAILURE"}, "the run")
        assert status(web_port, run_id) == "SUCCESS"
        assert [process.poll() for process in processes] == [None] * 4
        found = found_by(environment, tmp_path)
        assert found["code location"] == ("ok", "answers")
        processes[0].send_signal(signal.SIGSTOP)
        try:
            verdict, said = found_by(environment, tmp_path)["code location"]
        finally:
            processes[0].send_signal(signal.SIGCONT)
        assert verdict == "bad"
        assert f"The code location at {socket} does not answer" in said
        locations = "query { workspaceOrError { ... on Workspace { locationEntries { name } } } }"
        assert ask(web_port, locations)["workspaceOrError"]["locationEntries"] == [{"name": "capacity_assets"}]
