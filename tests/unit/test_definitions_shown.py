"""What the code location shows and starts by itself: descriptions, lineage, schedules, sensors, pools, freshness."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from capacity_assets.aggregates.levels import LEVELS, SERVER_LEVELS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from tests.code_location import CRONS, aggregate_keys, specs


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
    keys = graph.get_all_asset_keys()

    assert len(keys) == 24
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
