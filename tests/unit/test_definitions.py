"""The code location as others rely on it: an unintended change of key, group, partition or job fails here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import ConfigurationError, Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.instance import shipped_file
from tests.code_location import CRONS, specs

ROOT = Path(__file__).resolve().parents[2]
STARTS = {
    "daily": "2025-01-01",
    "weekly": "2024-12-30",
    "monthly": "2025-01-01",
    "quarterly": "2025-01-01",
    "yearly": "2025-01-01",
}
RAW = {"database_size_stats", "instance_size_stats", "volume_size_stats", "database_limit_stats"}


def partitions(spec: dg.AssetSpec) -> dg.TimeWindowPartitionsDefinition:
    assert isinstance(spec.partitions_def, dg.TimeWindowPartitionsDefinition)
    return spec.partitions_def


def test_asset_keys_groups_partitions_and_upstreams_are_the_published_ones(definitions: dg.Definitions) -> None:
    found = {
        key: (spec.group_name, partitions(spec).cron_schedule, [dep.asset_key.to_user_string() for dep in spec.deps])
        for key, spec in specs(definitions).items()
    }

    raw = {f"{level}_size_stats": ("raw", "0 0 * * *", []) for level in ("database", "instance")}
    aggregates = {
        f"{period}_{level}_aggregations": (period, cron, [f"{level}_size_stats"])
        for period, cron in CRONS.items()
        for level in ("database", "instance")
    }
    groups = {
        f"{period}_group_aggregations": (
            period,
            cron,
            [f"{period}_{level}_aggregations" for level in ("database", "instance")],
        )
        for period, cron in CRONS.items()
    }
    assert found == raw | aggregates | groups


def test_partitions_are_in_the_configured_zone_and_begin_with_the_window_that_holds_the_start_date(
    definitions: dg.Definitions,
) -> None:
    for key, spec in specs(definitions).items():
        if spec.group_name == "raw":
            continue
        partition = partitions(spec)
        assert partition.timezone == "Asia/Shanghai", key
        assert partition.get_partition_keys()[0] == STARTS[str(spec.group_name)], key
        assert partition.end_offset == 1, key


def test_jobs_are_the_published_ones_and_hold_every_level(definitions: dg.Definitions) -> None:
    jobs = {job.name: job for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")}

    assert sorted(jobs) == sorted(
        [
            *(f"{period}_aggregation_job" for period in CRONS),
            "collection_job",
            "digest_job",
            "growth_report_job",
            "runway_job",
            "showback_job",
            "standing_check_job",
            "table_maintenance_job",
        ]
    )
    for period in CRONS:
        selected = {key.to_user_string() for key in jobs[f"{period}_aggregation_job"].asset_layer.executable_asset_keys}
        assert selected == {f"{period}_{level}_aggregations" for level in LEVELS}


def test_the_partitions_of_the_tables_are_an_asset_of_their_own(definitions: dg.Definitions) -> None:
    [spec] = [spec for spec in definitions.resolve_all_asset_specs() if spec.group_name == "maintenance"]
    job = definitions.resolve_job_def("table_maintenance_job")

    assert (spec.key.to_user_string(), spec.partitions_def, list(spec.deps)) == ("table_partitions", None, [])
    assert job.asset_layer.executable_asset_keys == {spec.key}
    assert "CAPACITY_RETENTION_DAYS" in str(spec.description)


def test_the_growth_report_is_downstream_of_every_level_of_its_month(definitions: dg.Definitions) -> None:
    [spec] = [spec for spec in definitions.resolve_all_asset_specs() if spec.key == dg.AssetKey("growth_report")]

    assert spec.group_name == "reports"
    assert partitions(spec).cron_schedule == CRONS["monthly"]
    assert {dep.asset_key.to_user_string() for dep in spec.deps} == {
        f"monthly_{level}_aggregations" for level in LEVELS
    }
    assert "whenever the month's aggregates are made" in str(spec.automation_condition.get_label())  # type: ignore[union-attr]


def test_showback_is_downstream_of_every_level_of_its_month(definitions: dg.Definitions) -> None:
    [spec] = [spec for spec in definitions.resolve_all_asset_specs() if spec.group_name == "showback"]

    assert spec.key == dg.AssetKey("showback")
    assert partitions(spec).cron_schedule == CRONS["monthly"]
    assert {dep.asset_key.to_user_string() for dep in spec.deps} == {
        f"monthly_{level}_aggregations" for level in LEVELS
    }


def test_a_retention_rule_that_means_nothing_keeps_the_code_location_from_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "hourly=3")

    with pytest.raises(ConfigurationError, match="CAPACITY_RETENTION_DAYS: 'hourly' is not one of"):
        build_definitions(Settings())


def test_a_further_period_is_one_entry() -> None:
    periods = PERIODS | {"half_yearly": Period("half_yearly", months=6)}

    definitions = build_definitions(Settings(), periods=periods)

    found = specs(definitions)["half_yearly_instance_aggregations"]
    assert partitions(found).get_partition_keys()[:2] == ["2025-01-01", "2025-07-01"]
    assert definitions.resolve_job_def("half_yearly_aggregation_job")


def test_a_fresh_interpreter_loads_the_code_location_without_a_warning_and_without_what_computes_forecasts() -> None:
    """Every warning is an error there; the deprecations are Dagster's own, under newer Python and packages."""
    code = (
        "import sys; from capacity_assets.definitions import defs; print(len(list(defs.resolve_all_asset_specs())), "
        "[name for name in ('numpy', 'pyarrow') if name in sys.modules])"
    )
    arguments = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    loaded = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)

    assert (loaded.returncode, loaded.stdout.strip()) == (0, "24 []"), loaded.stderr


def test_the_shipped_workspace_names_the_code_location() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())

    assert workspace["load_from"] == [
        {"python_module": {"module_name": "capacity_assets.definitions", "location_name": "capacity_assets"}}
    ]


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_up_and_demo_use_the_shipped_files(name: str) -> None:
    assert shipped_file(name) == ROOT / name


def test_the_runway_is_downstream_of_all_raw_tables_and_has_a_partition_per_day(definitions: dg.Definitions) -> None:
    every = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    runway = every["runway"]
    graph = definitions.resolve_asset_graph()

    assert {dep.asset_key.to_user_string() for dep in runway.deps} == RAW
    assert (runway.group_name, partitions(runway).cron_schedule) == ("forecasts", "0 0 * * *")
    assert graph.get(runway.key).pools == {"capacity_runway"}
    assert {key.name for key in graph.get(runway.key).check_keys} == {"nothing_fills_soon"}
    for name in ("volume_size_stats", "database_limit_stats", "runway"):
        schema = every[name].metadata["dagster/column_schema"]
        assert all(column.description for column in schema.columns), name
        assert every[name].description, name


def test_the_collection_is_one_step_for_all_raw_tables_and_what_is_made_of_the_day_follows_in_its_job(
    definitions: dg.Definitions,
) -> None:
    job = definitions.resolve_job_def("collection_job")
    graph = definitions.resolve_asset_graph()
    raw = [dg.AssetKey(name) for name in RAW]

    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {
        *RAW,
        "daily_database_aggregations",
        "daily_instance_aggregations",
        "daily_group_aggregations",
        "runway",
    }
    assert {graph.get(key).pools == {"capacity_collection"} for key in raw} == {True}
    assert {graph.get(key).is_materializable for key in raw} == {True}


def test_with_the_collection_off_the_raw_tables_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_COLLECTION", "off")

    definitions = build_definitions(Settings())

    graph = definitions.resolve_asset_graph()
    raw = [graph.get(dg.AssetKey(name)) for name in RAW]
    assert {(node.is_observable, node.is_materializable, node.is_partitioned) for node in raw} == {(True, False, True)}
    schedules = {schedule.name: schedule.cron_schedule for schedule in definitions.get_repository_def().schedule_defs}
    assert schedules["observation_schedule"] == "0 3 * * *"
    assert schedules["runway_schedule"] == "20 4 * * *"
    assert "collection_schedule" not in schedules
    aggregates = specs(definitions)["daily_database_aggregations"]
    assert [dep.asset_key.to_user_string() for dep in aggregates.deps] == ["database_size_stats"]


def test_a_setting_that_names_no_engine_keeps_the_code_location_from_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_SYSTEM_DATABASES", "db2=x")

    with pytest.raises(ConfigurationError, match="CAPACITY_SYSTEM_DATABASES: 'db2=x' is not"):
        build_definitions(Settings())
