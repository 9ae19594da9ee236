"""`capacity up` asked to stop at the worst moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.settings import Settings
from capacity_assets.cli.up import StopRequestedError, processes_of_dagster
from tests.command import capacity


def test_code_locations_of_ones_own_are_served_by_the_web_server_and_the_daemon(
    settings: Settings, tmp_path: Path
) -> None:
    workspaces = [tmp_path / "workspace.yaml", tmp_path / "locations.yaml"]

    started = processes_of_dagster(settings, workspaces, 3000, [])

    served = f"--workspace {workspaces[0]} --workspace {workspaces[1]}"
    assert all(served in " ".join(arguments) for arguments in started.values())
    refused = capacity("up", "--workspace", str(workspaces[1]))
    assert refused.exit_code == 2
    assert "does not exist" in refused.output


def test_a_request_to_stop_in_mid_statement_is_no_failure_of_the_database(engine: Engine) -> None:
    def asked_to_stop(*_arguments: object, **_options: object) -> None:
        raise StopRequestedError

    with engine.connect() as connection:
        connection.connection.driver_connection.cursor_factory = asked_to_stop  # type: ignore[union-attr]
        with pytest.raises(StopRequestedError):
            connection.execute(text("SELECT 1"))
        connection.invalidate()
