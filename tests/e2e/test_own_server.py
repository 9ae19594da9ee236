"""One command leads from an empty folder to a chart."""

from __future__ import annotations

import re
from pathlib import Path

from capacity_assets.database.embedded import CAPACITY_DATABASE, DAGSTER_DATABASE
from tests.e2e.stack import run


def test_one_command_leads_from_an_empty_folder_to_a_chart_of_the_servers_own_databases(tmp_path: Path) -> None:
    done = run(tmp_path, "collect", "--own")

    assert done.returncode == 0, done.stderr
    assert "1 of 1 server measured. 2 databases were measured now." in done.stdout
    [page] = (tmp_path / "reports").glob("growth-daily-*-capacity-database.html")
    shown = page.read_text()
    assert "<svg" in shown
    assert {CAPACITY_DATABASE, DAGSTER_DATABASE} <= set(re.findall(r">(\w+)<", shown))
    again = run(tmp_path, "collect", "--own")
    assert "1 of 1 server measured, 1 of them earlier that day." in again.stdout
