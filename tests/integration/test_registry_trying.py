"""A registered server is tried: what works, what fails, which rights it needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sqlalchemy import Engine, text

from capacity_assets.collection.servers import Server, register_servers
from tests.collecting import PASSWORD, granting
from tests.command import capacity
from tests.servers import PostgresServer, silent_socket

pytestmark = pytest.mark.usefixtures("settings")


def test_trying_a_server_says_what_works(
    engine: Engine, measured_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_postgres.execute(
        "DROP ROLE IF EXISTS capacity_probe",
        *granting("postgresql"),
        "CREATE DATABASE tried",
    )
    monkeypatch.setenv("TRIED_PASSWORD", PASSWORD)
    place = {"port": measured_postgres.port, "username": "capacity_probe", "password_from": "env:TRIED_PASSWORD"}
    register_servers(engine, [Server("a", "postgresql", "127.0.0.1", **place)])  # type: ignore[arg-type]

    tried = capacity("instances", "test", "a")
    answer = json.loads(capacity("instances", "test", "a", "--json").output)

    assert tried.exit_code == 0, tried.output
    assert "works: password: read from env:TRIED_PASSWORD" in tried.output
    assert "PostgreSQL" in tried.output
    assert "not encrypted" in tried.output
    assert "1 database," in tried.output
    assert (answer["works"], list(answer["databases"])) == (True, ["tried"])
    assert PASSWORD not in tried.output + str(answer)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar() == 0
    measured_postgres.execute(
        "REVOKE pg_read_all_stats FROM capacity_probe", "REVOKE CONNECT ON DATABASE tried FROM PUBLIC"
    )
    refused = capacity("instances", "test", "a").output
    assert "Grant its login the rights below." in refused
    assert "GRANT pg_read_all_stats" in refused


def test_trying_a_server_says_what_fails_and_which_rights_are_needed(engine: Engine) -> None:
    with silent_socket() as port:
        register_servers(engine, [Server("silent", "mysql", "127.0.0.1", port=port, username="u")])
        tried = capacity("instances", "test", "silent")

    assert tried.exit_code == 1
    assert "fails: timeout: " in tried.output
    assert "no answer to the connection within 5 s" in tried.output
    assert "GRANT" not in tried.output


def test_trying_a_server_whose_login_is_refused_says_which_login_and_rights_it_needs(
    engine: Engine, measured_postgres: PostgresServer
) -> None:
    register_servers(engine, [Server("a", "postgresql", "127.0.0.1", port=measured_postgres.port, username="nobody")])

    tried = capacity("instances", "test", "a")

    assert tried.exit_code == 1
    assert "fails: login: " in tried.output
    assert "GRANT pg_read_all_stats TO capacity_probe;" in tried.output


def test_a_file_of_tls_that_is_missing_is_told_by_its_name(engine: Engine) -> None:
    register_servers(engine, [Server("a", "mysql", "127.0.0.1", port=1, tls="verify-full", tls_ca="/nowhere/ca.pem")])

    tried = capacity("instances", "test", "a")

    assert "fails: setup: the file /nowhere/ca.pem, its `tls_ca`, is missing" in tried.output


def test_a_password_that_this_configuration_will_not_look_up_is_told_at_once(engine: Engine) -> None:  # noqa: ARG001
    shadow = capacity(
        "instances", "add", "a", "--engine", "mysql", "--host", "h", "--password-from", "file:/etc/shadow"
    )
    fine = capacity("instances", "add", "b", "--engine", "mysql", "--host", "h", "--password-from", "env:B_PASSWORD")

    assert (shadow.exit_code, fine.exit_code) == (0, 0)
    assert "Warning: a cannot be measured with this configuration." in shadow.output
    assert "CAPACITY_PASSWORD_FOLDERS allows" in shadow.output
    assert "Warning" not in fine.output


@pytest.mark.nightly("waits for time limits")
@pytest.mark.usefixtures("engine")
def test_trying_a_server_ends_in_time_although_its_driver_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle's driver does not bound the wait for a listener that takes the connection and stays silent."""
    monkeypatch.setenv("ORA_PASSWORD", "x")
    with silent_socket() as port:
        reached = ("--host", "127.0.0.1", "--port", str(port), "--database", "svc", "--username", "u")
        added = capacity(
            "instances", "add", "ora", "--engine", "oracle", *reached, "--password-from", "env:ORA_PASSWORD"
        )
        # A process of its own: what the driver leaves behind goes with it.
        command = [sys.executable, "-m", "capacity_assets.cli", "instances", "test", "ora"]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert added.exit_code == 0, added.output
    assert tried.returncode == 1
    assert "fails: timeout: " in tried.stdout
