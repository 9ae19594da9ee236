"""The code location as others rely on it, and what it shows and starts by itself: descriptions, schedules, sensors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from capacity_assets.aggregates.levels import LEVELS, SERVER_LEVELS
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import ConfigurationError, Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.instance import shipped_file
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from tests.code_location import CRONS, aggregate_keys, specs

ROOT = Path(__file__).resolve().parents[2]
STARTS = {
    "daily": "2025-01-01",
    "weekly": "2024-12-30",
    "monthly": "2025-01-01",
    "quarterly": "2025-01-01",
    "yearly": "2025-01-01",
}
FORECAST_FROM = {"database_size_stats", "instance_size_stats", "volume_size_stats", "database_limit_stats"}
RAW = {*FORECAST_FROM, "server_part_stats", "object_size_stats"}


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


@pytest.mark.parametrize(("name", "group"), [("growth_report", "reports"), ("showback", "showback")])
def test_report_and_showback_are_downstream_of_every_level_of_their_month(
    definitions: dg.Definitions, name: str, group: str
) -> None:
    [spec] = [spec for spec in definitions.resolve_all_asset_specs() if spec.key == dg.AssetKey(name)]

    assert spec.group_name == group
    assert partitions(spec).cron_schedule == CRONS["monthly"]
    assert {dep.asset_key.to_user_string() for dep in spec.deps} == {
        f"monthly_{level}_aggregations" for level in LEVELS
    }
    assert "whenever the aggregates of its window are made" in str(spec.automation_condition.get_label())  # type: ignore[union-attr]


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
        "any(job.owners for job in defs.get_repository_def().get_all_jobs()), "
        "[name for name in ('numpy', 'pyarrow') if name in sys.modules])"
    )
    arguments = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    loaded = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)

    assert (loaded.returncode, loaded.stdout.strip()) == (0, "48 True []"), loaded.stderr


def test_the_shipped_workspace_names_the_code_location() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())

    assert workspace["load_from"] == [
        {"python_module": {"module_name": "capacity_assets.definitions", "location_name": "capacity_assets"}}
    ]


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_up_and_demo_use_the_shipped_files(name: str) -> None:
    assert shipped_file(name) == ROOT / name


def test_the_runway_is_downstream_of_sizes_and_limits_and_has_a_partition_per_day(definitions: dg.Definitions) -> None:
    every = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    runway = every["runway"]
    graph = definitions.resolve_asset_graph()

    assert {dep.asset_key.to_user_string() for dep in runway.deps} == FORECAST_FROM
    assert (runway.group_name, partitions(runway).cron_schedule) == ("forecasts", "0 0 * * *")
    assert graph.get(runway.key).pools == {"capacity_runway"}
    assert {key.name for key in graph.get(runway.key).check_keys} == {"nothing_fills_soon"}
    for name in ("volume_size_stats", "database_limit_stats", "server_part_stats", "object_size_stats", "runway"):
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


def test_schedules_are_the_published_ones_at_four_in_the_configured_zone(definitions: dg.Definitions) -> None:
    found = {
        schedule.name: (schedule.cron_schedule, schedule.job_name, schedule.execution_timezone, schedule.default_status)
        for schedule in definitions.get_repository_def().schedule_defs
    }

    running = dg.DefaultScheduleStatus.RUNNING
    assert found == {
        f"{period}_aggregation_schedule": (
            cron.replace("0 0", "0 4", 1),
            f"{period}_aggregation_job",
            "Asia/Shanghai",
            running,
        )
        for period, cron in CRONS.items()
    } | {
        "digest_schedule": ("50 4 * * 1-3", "digest_job", "Asia/Shanghai", running),
        "collection_schedule": (["0,30 3 * * *", "0 6,12,18 * * *"], "collection_job", "Asia/Shanghai", running),
        "standing_check_schedule": ("45 4 * * *", "standing_check_job", "Asia/Shanghai", running),
        "table_maintenance_schedule": ("30 4 * * *", "table_maintenance_job", "Asia/Shanghai", running),
    }


def test_the_late_data_sensor_runs_from_the_first_start_on_and_reaches_every_period(
    definitions: dg.Definitions,
) -> None:
    sensor = definitions.get_repository_def().get_sensor_def("late_data_sensor")

    assert (sensor.name, sensor.minimum_interval_seconds) == ("late_data_sensor", 30)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert {target.job_name for target in sensor.targets} == {f"{period}_aggregation_job" for period in CRONS}


def test_each_asset_is_in_the_pool_of_its_period(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()

    assert {key.to_user_string(): graph.get(key).pools for key in aggregate_keys(definitions)} == {
        f"{period}_{level}_aggregations": {f"capacity_{period}"} for period in CRONS for level in LEVELS
    }


def test_an_asset_is_late_when_it_was_not_materialised_within_the_hour_of_its_schedule(
    definitions: dg.Definitions,
) -> None:
    deadlines = {
        key: (spec.freshness_policy.deadline_cron, spec.freshness_policy.timezone)  # type: ignore[union-attr]
        for key, spec in specs(definitions).items()
        if spec.group_name != "raw"
    }

    assert deadlines == {
        f"{period}_{level}_aggregations": (cron.replace("0 0", "59 4", 1), "Asia/Shanghai")
        for period, cron in CRONS.items()
        for level in LEVELS
    }


def test_backfills_take_few_bounded_runs(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()

    for key in aggregate_keys(definitions):
        policy = graph.get(key).backfill_policy
        assert policy is not None
        assert policy.max_partitions_per_run == PARTITIONS_PER_RUN == 100


def test_what_the_ui_shows_reads_as_documentation(definitions: dg.Definitions) -> None:
    for key, spec in specs(definitions).items():
        level = LEVELS[spec.tags["level"]]
        table = level.source if spec.group_name == "raw" else level.target
        assert spec.description, key
        assert spec.owners == ["team:dba"], key
        assert "postgres" in spec.kinds, key
        assert spec.metadata["dagster/table_name"] == table.name
        schema = spec.metadata["dagster/column_schema"]
        assert [column.name for column in schema.columns] == list(table.columns.keys())
        assert all(column.description for column in schema.columns), key


def test_the_page_of_each_asset_names_the_line_of_its_function(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    keys = graph.executable_asset_keys

    assert len(keys) == 26
    for key in keys:
        [reference] = graph.get(key).metadata["dagster/code_references"].code_references
        lines = Path(reference.file_path).read_text().splitlines()
        assert re.match(r"\s*(@|def )", lines[reference.line_number - 1]), (key, reference)


@pytest.mark.parametrize("level", SERVER_LEVELS.values(), ids=SERVER_LEVELS.keys())
def test_column_lineage_names_existing_raw_columns_for_every_computed_column(
    definitions: dg.Definitions, level: object
) -> None:
    lineage = specs(definitions)[f"daily_{level.name}_aggregations"].metadata["dagster/column_lineage"]  # type: ignore[attr-defined]
    source, target = level.source, level.target  # type: ignore[attr-defined]

    untraced = {"id", "period_type", "calculated_at", "created_at"}
    assert set(lineage.deps_by_column) == set(target.columns.keys()) - untraced
    for dependencies in lineage.deps_by_column.values():
        assert {dependency.asset_key.to_user_string() for dependency in dependencies} == {source.name}
        assert {dependency.column_name for dependency in dependencies} <= set(source.columns.keys())


def test_nothing_secret_is_in_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://dba:hunter2@db/capacity")
    definitions = build_definitions(Settings())

    shown = [str(spec.metadata) + str(spec.description) for spec in definitions.resolve_all_asset_specs()]
    resources = definitions.get_repository_def().get_top_level_resources()
    shown += [str(resource.description) + str(resource.config_schema) for resource in resources.values()]
    assert not any("hunter2" in text for text in shown)
