"""A further metric and a further period are one entry each: every door shows them, with nothing else changed."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.settings import Settings
from tests.forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
PART = """
import capacity_assets.database.measures as measures
further = measures.size_measure("temp_size", "temp size", files="the temporary files", since="9999")
measures.SIZE_MEASURES = (*measures.SIZE_MEASURES, further)
"""
PERIOD = """
import capacity_assets.base.periods as periods
periods.PERIODS["half_yearly"] = periods.Period("half_yearly", months=6)
"""
PATIENCE_SECONDS = 120
STEPS = """
import contextlib, io, json, sys
from capacity_assets.cli.main import main
printed = []
for step in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as output:
        exec(step, {}) if isinstance(step, str) else main(step, standalone_mode=False)
    output.flush()
    printed.append(output.buffer.getvalue().decode())
print(json.dumps(printed))
"""
REFERENCE = """
from docs.generate import REFERENCE, generated
print(generated(REFERENCE.read_text()))
"""
COLLECT = """
from datetime import date, datetime, timezone
from capacity_assets.collection.engines.base import DatabaseSize
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.collection.storing import store_outcomes
from capacity_assets.runtime import open_engine
from capacity_assets.base.settings import load_settings
size = DatabaseSize.of_bytes("billing", 5 * 1024**2, temp_size=3 * 1024**2 + 7)
with open_engine(load_settings()) as engine:
    moment = datetime.now(tz=timezone.utc)
    outcome = ProbeOutcome((size,), instance_id=1, server="pg-1", ended_at=moment)
    store_outcomes(engine, date(2025, 3, 3), [outcome])
"""
GRAPH = """
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.base.settings import load_settings
graph = build_definitions(load_settings()).resolve_asset_graph()
print(*(key.to_user_string() for key in graph.get_all_asset_keys() if "half" in key.to_user_string()))
repository = build_definitions(load_settings()).get_repository_def()
print(*(found.name for found in (*repository.schedule_defs, *repository.get_all_jobs()) if "half" in found.name))
"""


def run(entry: str, *steps: str | Sequence[str]) -> list[str]:
    """Run programs, and commands by their arguments, in a process that begins with a further entry.

    Return what each printed.
    """
    program, timeout = entry + STEPS, PATIENCE_SECONDS
    done = run_forked(
        json.dumps(steps), program=program, environment=os.environ, timeout=timeout, folder=ROOT, anew=True
    )
    assert done.returncode == 0, done.stderr
    printed: list[str] = json.loads(done.stdout)
    return printed


@pytest.mark.usefixtures("settings")
def test_a_further_size_is_seen_from_the_sample_to_the_reference(engine: Engine, tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    history.write_text(
        "server,database_name,day,size_mb,temp_size_mb\n"
        "pg-1,orders,2025-02-01,100,7\npg-1,orders,2025-03-01,110,9\npg-1,orders,2025-03-02,110,\n"
    )

    initialised, *_, explanation, export, reference = run(
        PART,
        ["init"],
        ["import", str(history), "--register-as", "postgresql"],
        COLLECT,
        ["aggregate", "--period", "monthly", "--from", "2025-02-01", "--to", "2025-03-31"],
        ["explain", "orders", "--period", "monthly", "--window", "2025-03-01", "--json"],
        ["export", "--period", "monthly"],
        REFERENCE,
    )
    explained = json.loads(explanation)
    exported = list(csv.DictReader(io.StringIO(export, newline="")))

    assert "database_size_stats.temp_size_mb is missing" in initialised
    with engine.connect() as connection:
        sample = connection.execute(
            text("SELECT temp_size_mb, temp_size_bytes FROM database_size_stats WHERE database_name = 'billing'")
        ).one()
        figures = connection.execute(
            text(
                "SELECT avg_temp_size_mb, max_temp_size_mb, min_temp_size_mb, temp_size_change_mb, "
                "temp_size_change_percent FROM database_size_aggregations "
                "WHERE database_name = 'orders' AND period_start = '2025-03-01'"
            )
        ).one()
    assert tuple(sample) == (3, 3 * 1024**2 + 7)
    assert [str(value) for value in figures] == ["9", "9", "9", "2", "28.57"]
    shown = {figure["name"]: figure for figure in explained["figures"]}
    assert shown["avg_temp_size_mb"]["computed"] == shown["avg_temp_size_mb"]["stored"] == 9
    assert {(row["database"], row["window_start"]): row["temp_size_mb"] for row in exported} == {
        ("orders", "2025-02-01"): "7",
        ("orders", "2025-03-01"): "9",
        ("billing", "2025-03-01"): "3",
    }
    assert "| `temp_size_mb` | bigint | Size of the temporary files, MiB; null: not measured |" in reference


def test_a_further_period_is_seen_from_the_command_line_to_the_reference(
    settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_EXPORT_URL", str(tmp_path))
    history = tmp_path / "history.csv"
    history.write_text("server,database_name,day,size_mb\npg-1,orders,2025-02-01,100\npg-1,orders,2025-08-01,150\n")

    page = tmp_path / "report.html"
    *_, explained, export, _, graph, reference = run(
        PERIOD,
        ["init"],
        ["import", str(history), "--register-as", "postgresql"],
        ["aggregate", "--period", "half_yearly", "--from", "2025-01-01", "--to", "2025-12-31"],
        ["explain", "orders", "--period", "half_yearly", "--window", "2025-07-01"],
        ["export", "--period", "half_yearly"],
        ["report", "--period", "half_yearly", "--window", "2025-07-01", "--output", str(page)],
        GRAPH,
        REFERENCE,
    )
    exported = list(csv.DictReader(io.StringIO(export, newline="")))
    assets, jobs = graph.splitlines()

    assert "orders" in page.read_text()
    assert settings.start_date == date(2025, 1, 1)
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT period_start, period_end, avg_size_mb, size_change_mb, trend_direction "
                "FROM database_size_aggregations WHERE period_type = 'half_yearly' ORDER BY 1"
            )
        ).all()
    assert [tuple(row) for row in rows] == [
        (date(2025, 1, 1), date(2025, 6, 30), 100, None, None),
        (date(2025, 7, 1), date(2025, 12, 31), 150, 50, "growing"),
    ]
    assert "Every stored figure is what its samples give." in explained
    assert [row["window_start"] for row in exported] == ["2025-01-01", "2025-07-01"]
    aggregates = {f"half_yearly_{level}_aggregations" for level in ("database", "instance", "group")}
    assert set(assets.split()) == aggregates | {"half_yearly_export"}
    jobs_and_schedules = {"half_yearly_aggregation_job", "half_yearly_aggregation_schedule", "half_yearly_export_job"}
    assert set(jobs.split()) == jobs_and_schedules
    assert "`half_yearly_aggregation_job`" in reference
