"""The example of docs/extending.md, as it stands there: an asset downstream of ours, in a location of its own."""

from __future__ import annotations

import re
import sys
import tomllib
from datetime import date
from decimal import Decimal
from importlib import import_module
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings, load_settings
from capacity_assets.orchestration.build import build_definitions
from tests.fleet import load_sample

ROOT = Path(__file__).resolve().parents[2]
MARCH = date(2025, 3, 1)


@pytest.fixture
def location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    return documented("cost_location", tmp_path, monkeypatch)


def documented(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """The definitions of a module that the page shows whole; Dagster takes a module with one object of them only."""
    sources = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    [source] = [source for source in sources if source.startswith(f'"""{name}.py:')]
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    [defs] = [one for one in vars(import_module(name)).values() if isinstance(one, dg.Definitions)]
    return defs


@pytest.mark.usefixtures("settings")
def test_the_documented_graph_in_a_project_of_ones_own_loads_and_its_asset_reads_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defs = documented("mine", tmp_path, monkeypatch)

    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(asset_selection=[dg.AssetKey("stale_windows")])

    assert result.output_for_node("stale_windows") == 0
    assert dg.AssetKey(["dba", "daily_database_aggregations"]) in defs.resolve_asset_graph().get_all_asset_keys()


def test_the_documented_asset_computes_from_the_figures_and_hangs_on_ours(
    location: dg.Definitions,
    settings: Settings,
    runner: AggregationTaskRunner,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_sample(engine)
    runner.run_period("monthly", [PERIODS["monthly"].window_of(MARCH)])
    monkeypatch.setenv("CAPACITY_READER_URL", engine.url.render_as_string(hide_password=False))

    job = location.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(partition_key=MARCH.isoformat())

    [made] = result.get_asset_materialization_events()
    with engine.connect() as connection:
        size_mb = connection.execute(
            text(
                "SELECT sum(total_size_mb) FROM instance_size_aggregations a JOIN instances i ON i.id = a.instance_id "
                "WHERE period_type = 'monthly' AND period_start = :month AND i.counted_by IS NULL"
            ),
            {"month": MARCH},
        ).scalar_one()
    assert size_mb > 0
    assert made.materialization.metadata["total"].value == pytest.approx(float(Decimal("0.10") * size_mb / 1024))
    ours = build_definitions(settings).resolve_asset_graph()
    [theirs] = [node for node in location.resolve_asset_graph().asset_nodes if node.key == dg.AssetKey("storage_cost")]
    [upstream] = theirs.parent_keys
    assert upstream in ours.get_all_asset_keys()
    keys = ours.get(upstream).partitions_def
    assert keys is not None
    assert theirs.partitions_def is not None
    assert keys.get_partition_keys() == theirs.partitions_def.get_partition_keys()


def test_the_version_of_the_code_follows_from_the_arithmetic(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = build_definitions(settings).resolve_asset_graph()
    versions = {
        name: graph.get(dg.AssetKey(f"{name}_aggregations")).code_version
        for name in ("daily_database", "monthly_database", "daily_instance")
    }
    graph_again = build_definitions(settings).resolve_asset_graph()

    monkeypatch.setenv("CAPACITY_TREND_PERCENT", "5")
    other_threshold = build_definitions(load_settings()).resolve_asset_graph()

    assert None not in versions.values()
    daily = other_threshold.get(dg.AssetKey("daily_database_aggregations"))
    assert daily.code_version != versions["daily_database"]
    assert "growing or shrinking by more than 5 %" in str(daily.description)
    assert len(set(versions.values())) == 3, "levels and thresholds differ"
    assert graph_again.get(dg.AssetKey("daily_database_aggregations")).code_version == versions["daily_database"]


def test_dg_finds_the_definitions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]

    assert project["directory_type"] == "project"
    module = import_module(project["project"]["code_location_target_module"])
    assert isinstance(module.defs, dg.Definitions)
