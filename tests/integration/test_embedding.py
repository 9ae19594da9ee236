"""The graph in a code location of somebody else's: under a prefix, with their owners, and without changing theirs."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.aggregates import COMPUTED_WINDOWS_SENSOR, LATE_DATA_SENSOR
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.graph import SERVICES
from capacity_assets.orchestration.private import IMPLICIT_ASSET_JOB_NAME
from tests.clocks import fixed_clock
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.forked import FORKING
from tests.host_location import OWN_JOB, host
from tests.ledger import compute_everything
from tests.runs import QUIET

ROOT = Path(__file__).resolve().parents[2]
DATABASES = dg.AssetKey(["dba", "daily_database_aggregations"])


def tick(definitions: dg.Definitions, instance: dg.DagsterInstance, sensor: str) -> dg.SensorExecutionData:
    repository = definitions.get_repository_def()
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, resources=repository.get_top_level_resources()
    ) as context:
        return repository.get_sensor_def(sensor).evaluate_tick(context)


@pytest.mark.usefixtures("settings")
def test_a_host_keeps_its_executor_and_resources_and_ours_have_its_prefix_and_owners() -> None:
    definitions = host()
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    repository = definitions.get_repository_def()
    executors = {
        name: definitions.resolve_job_def(name).executor_def.name
        for name in (OWN_JOB, "daily_aggregation_job", "runway_job")
    }

    assert {name.partition("/")[0] for name in specs} == {"dba", "own_costs", "own_stale_windows"}
    assert {owner for name, spec in specs.items() if name.startswith("dba/") for owner in spec.owners} == {
        "team:platform"
    }
    upstream = {dep.asset_key.to_user_string() for dep in specs["dba/daily_group_aggregations"].deps}
    assert upstream == {"dba/daily_database_aggregations", "dba/daily_instance_aggregations"}
    owners = {job.name: job.owners for job in repository.get_all_jobs()}
    assert {name: found for name, found in owners.items() if found != ["team:platform"]} == {
        OWN_JOB: None,
        IMPLICIT_ASSET_JOB_NAME: None,
    }
    assert executors == {OWN_JOB: "multiprocess", "daily_aggregation_job": "in_process", "runway_job": "in_process"}
    assert definitions.resolve_implicit_global_asset_job_def().executor_def.name == "multiprocess"
    assert {*repository.get_top_level_resources()} == {"aggregation", "collection", "retention", SERVICES}


@pytest.mark.usefixtures("settings", "engine")
def test_an_asset_of_the_host_takes_our_services_typed() -> None:
    job = host().resolve_implicit_global_asset_job_def()

    done = job.execute_in_process(asset_selection=[dg.AssetKey("own_stale_windows")])

    assert done.output_for_node("own_stale_windows") == 0


@pytest.mark.usefixtures("settings")
def test_runs_sensors_and_checks_work_under_a_prefix(engine: Engine, shipped_instance: dg.DagsterInstance) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -6, 7]))
    definitions = host()
    definitions.resolve_job_def("daily_aggregation_job").execute_in_process(
        instance=shipped_instance,
        tags={"dagster/asset_partition_range_start": "2025-03-01", "dagster/asset_partition_range_end": "2025-03-03"},
        run_config=QUIET,
    )
    standing = definitions.resolve_job_def("standing_check_job")
    checked = standing.execute_in_process(instance=shipped_instance, run_config=QUIET)

    assert shipped_instance.get_materialized_partitions(DATABASES) == {f"2025-03-0{day}" for day in (1, 2, 3)}
    history = shipped_instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(DATABASES, "values_possible"), limit=10
    )
    assert {one.partition: one.status.value for one in history} == {
        "2025-03-01": "SUCCEEDED",
        "2025-03-02": "FAILED",
        "2025-03-03": "SUCCEEDED",
    }
    assert {one.asset_key.path[0] for one in checked.get_asset_check_evaluations()} == {"dba"}

    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 6, updated_at = now() - interval '1 day'"))
        connection.execute(text("UPDATE capacity_changes SET changed_at = changed_at - interval '1 day'"))
    requests = tick(definitions, shipped_instance, LATE_DATA_SENSOR).run_requests or []
    assert {key for request in requests for key in request.asset_selection or ()} >= {DATABASES}


@pytest.mark.usefixtures("settings")
def test_a_run_of_the_host_keeps_no_window_from_being_marked(
    engine: Engine, shipped_instance: dg.DagsterInstance
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-07-19", [5]))
    compute_everything(AggregationService(engine, fixed_clock()))
    definitions = host()
    theirs = shipped_instance.create_run_for_job(
        definitions.resolve_job_def(OWN_JOB), status=dg.DagsterRunStatus.STARTED
    )
    marked = tick(definitions, shipped_instance, COMPUTED_WINDOWS_SENSOR)
    ours = shipped_instance.create_run_for_job(
        definitions.resolve_job_def("daily_aggregation_job"),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": "2025-07-19"},
    )
    waiting = tick(definitions, shipped_instance, COMPUTED_WINDOWS_SENSOR)

    assert {event.asset_key for event in marked.asset_events} >= {DATABASES}
    assert (len(waiting.asset_events), waiting.skip_message) == (0, "A run is under way.")
    assert theirs.run_id != ours.run_id


@pytest.mark.nightly("starts a process per step")
@pytest.mark.usefixtures("settings")
def test_a_run_without_a_job_works_under_the_executor_of_the_host(
    engine: Engine, shipped_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from the page of an asset; each step is a process of its own."""
    monkeypatch.setattr("multiprocessing.get_context", lambda _method: FORKING)
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-02", [5]))

    repository = ReconstructableRepository.for_module("tests.host_location", "host", working_directory=str(ROOT))
    with dg.execute_job(
        repository.get_reconstructable_job(IMPLICIT_ASSET_JOB_NAME),
        shipped_instance,
        asset_selection=[DATABASES],
        tags={"dagster/partition": "2025-03-02"},
        run_config=QUIET,
    ) as result:
        assert result.success
    assert shipped_instance.get_materialized_partitions(DATABASES) == {"2025-03-02"}


def test_views_and_pages_end_the_lineage_and_nothing_materialises_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_PAGES_URL", "https://pages.example")
    graph = build_definitions(Settings()).resolve_asset_graph()

    def upstream(name: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}

    assert upstream("capacity_growth") == {f"{period}_database_aggregations" for period in PERIODS}
    assert upstream("capacity_fleet") == {"capacity_server_sizes"}
    assert upstream("capacity_runway") == {"runway"}
    assert upstream("pages") >= {"runway", "showback", "yearly_group_aggregations", "object_size_stats"}
    assert dg.AssetKey("capacity_declared_steps") not in graph.get_all_asset_keys(), "nothing of the graph is in it"
    pages, growth = graph.get(dg.AssetKey("pages")), graph.get(dg.AssetKey("capacity_growth"))
    assert [node.is_executable for node in (pages, growth)] == [False, False]
    assert pages.metadata["url"].value == "https://pages.example"
    schema = growth.metadata["dagster/column_schema"]
    assert next(column for column in schema.columns if column.name == "size_mb").description


def test_dg_lists_the_component() -> None:
    registered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module = import_module(registered["dagster_dg_cli.registry_modules"]["capacity_assets"])

    assert issubclass(module.CapacityFleet, dg.Component)
