"""The collection through Dagster: materialised for today, refused for other days, scheduled, observed when off."""

from __future__ import annotations

from datetime import date
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from sqlalchemy import Engine, text

from capacity_assets.base.settings import Settings
from capacity_assets.collection.servers import Server, register_servers
from capacity_assets.orchestration.build import build_definitions
from tests.clocks import TODAY, fixed_clock
from tests.collecting import PASSWORD
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.runs import QUIET, run_job

pytestmark = pytest.mark.usefixtures("orders_to_measure")
RAW = ["database_size_stats", "instance_size_stats"]


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    [found] = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    ]
    return {key: value.value for key, value in found.items()}


def test_a_run_measures_today_computes_its_aggregates_and_names_the_server_that_failed(
    settings: Settings,
    registered: Engine,  # noqa: ARG001 -- the servers
) -> None:
    result = run_job(settings, "collection_job")

    assert result.success
    for asset in RAW:
        metadata = metadata_of(result, asset)
        assert {key: metadata[key] for key in ("processed_instances", "failed_instances", "total_instances")} == {
            "processed_instances": 1,
            "failed_instances": 1,
            "total_instances": 2,
        }
        assert "shut: login: " in metadata["errors"]
        assert (metadata["status"], metadata["collected_date"], metadata["error_count"]) == ("failed", "2025-07-20", 1)
        assert "guess-W0rd" not in str(metadata)
    [check] = [check for check in result.get_asset_check_evaluations() if check.check_name == "servers_measured"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 server not measured on 20 Jul 2025." in str(check.description)
    aggregates = metadata_of_partition(result, "daily_database_aggregations")
    assert (aggregates["processed_instances"], aggregates["skipped_instances"]) == (1, 1)
    assert aggregates["total_records"] == 1


def metadata_of_partition(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    [found] = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset) and event.partition == TODAY.isoformat()
    ]
    return {key: value.value for key, value in found.items()}


@pytest.mark.nightly("executes further runs")
def test_a_second_run_of_the_day_measures_the_failed_server_only_and_again_all(
    settings: Settings,
    registered: Engine,  # noqa: ARG001 -- the servers
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_job(settings, "collection_job")
    monkeypatch.setenv("WRONG_PASSWORD", PASSWORD)

    second = metadata_of(run_job(settings, "collection_job"), "instance_size_stats")
    again = metadata_of(run_job(settings, "collection_job", again=True), "instance_size_stats")

    assert (second["processed_instances"], second["skipped_instances"], second["errors"]) == (1, 1, "none")
    assert (again["processed_instances"], again["skipped_instances"]) == (2, 0)
    assert second["status"] == "completed"


def test_a_past_day_is_refused_with_the_reason_and_not_retried(settings: Settings, registered: Engine) -> None:
    result = run_job(settings, "collection_job", day=date(2025, 7, 19))

    [failure] = [event.step_failure_data for event in result.get_step_failure_events()]
    assert failure.user_failure_data is not None
    assert "Only today (2025-07-20) can be measured" in str(failure.user_failure_data.description)
    assert "capacity import" in str(failure.user_failure_data.description)
    assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    with registered.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM capacity_collection_attempts")).scalar() == 0


def run_days(settings: Settings, first: str, last: str) -> dg.ExecuteInProcessResult:
    """As "Materialize all" of the raw assets does."""
    definitions = build_definitions(settings, clock=fixed_clock())
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return definitions.resolve_job_def("collection_job").execute_in_process(
        tags=tags, run_config=QUIET, raise_on_error=False
    )


def made(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    """What became of the raw partitions, by day."""
    return {
        str(event.partition): event.materialization.metadata["status"].value
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    }


def add_samples(engine: Engine, *days: str) -> None:
    for day in days:
        add_database_sizes(engine, sizes(1, "orders", day, [7]))
        add_instance_sizes(engine, totals(1, day, [(7, 1)]))


@pytest.mark.nightly("executes further runs")
def test_a_past_day_that_has_samples_keeps_them_and_does_not_hide_who_failed_last(
    settings: Settings, registered: Engine
) -> None:
    run_job(settings, "collection_job")
    add_samples(registered, "2025-07-19")

    result = run_job(settings, "collection_job", day=date(2025, 7, 19))

    assert result.success
    assert made(result, "database_size_stats") == {"2025-07-19": "kept"}
    metadata = metadata_of(result, "instance_size_stats")
    assert metadata["message"] == "19 Jul 2025 is not measured again; its samples were kept as they are."
    [check] = [check for check in result.get_asset_check_evaluations() if check.check_name == "servers_measured"]
    assert not check.passed
    assert "Collection, 20 Jul 2025: 1 of 2 servers measured, 1 failed." in str(check.description)


@pytest.mark.nightly("executes further runs")
def test_materialising_all_days_measures_today_keeps_the_days_with_samples_and_leaves_the_others(
    settings: Settings, registered: Engine
) -> None:
    add_samples(registered, "2025-07-17", "2025-07-19")

    with_gaps = run_days(settings, "2025-07-16", "2025-07-20")
    without = run_days(settings, "2025-07-19", "2025-07-20")
    nothing = run_days(settings, "2025-07-01", "2025-07-10")

    assert all(result.success for result in (with_gaps, without, nothing))
    for asset in RAW:
        expected = {"2025-07-17": "kept", "2025-07-19": "kept", "2025-07-20": "failed"}
        assert made(with_gaps, asset) == expected
        assert made(without, asset) == {"2025-07-19": "kept", "2025-07-20": "failed"}
        assert made(nothing, asset) == {}


def test_a_today_that_others_have_measured_is_kept_although_every_server_of_ours_failed(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_samples(engine, "2025-07-20")
    with engine.begin() as connection:
        connection.execute(text("SELECT setval('instances_id_seq', 100)"))
    login: dict[str, Any] = {"engine": "postgresql", "host": "127.0.0.1", "port": 1, "username": "u"}
    register_servers(engine, [Server("away", **login)])

    result = run_job(settings.model_copy(update={"pages_url": "https://pages.example"}), "collection_job")

    assert result.success
    assert made(result, "instance_size_stats") == {"2025-07-20": "kept"}
    [check] = [check for check in result.get_asset_check_evaluations() if check.check_name == "servers_measured"]
    assert not check.passed
    assert "away: unreachable: " in str(check.description)
    assert check.metadata["pages"].value == {"away": "https://pages.example/server?server=101"}


def test_without_registered_servers_a_day_that_was_loaded_is_kept_today_too(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_samples(engine, "2025-07-20")

    result = run_job(settings, "collection_job")

    assert result.success
    assert made(result, "instance_size_stats") == {"2025-07-20": "kept"}


def test_a_day_on_which_every_server_failed_fails_the_run_and_nothing_follows(
    settings: Settings, engine: Engine
) -> None:
    register_servers(engine, [Server("shut", "postgresql", "127.0.0.1", port=1, username="u")])

    result = run_job(settings, "collection_job")

    assert not result.success
    assert result.get_asset_materialization_events() == []
    [failure] = [event.step_failure_data for event in result.get_step_failure_events()]
    assert failure.user_failure_data is not None
    assert "1 server failed and has no sample of this day." in str(failure.user_failure_data.description)
    assert failure.user_failure_data.metadata["error_count"].value == 1


def test_without_a_registered_server_a_run_says_how_to_register_one(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])

    result = run_job(settings, "collection_job")

    [failure] = [event.step_failure_data for event in result.get_step_failure_events()]
    assert failure.user_failure_data is not None
    assert "`capacity instances add` registers one" in str(failure.user_failure_data.description)


def test_observing_gives_the_newest_days_a_version_that_follows_their_samples(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_COLLECTION", "off")
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-07-10", [100] * 11))
    add_instance_sizes(engine, totals(1, "2025-07-10", [(100, 1)] * 11))
    definitions = build_definitions(Settings(), clock=fixed_clock())

    with dg.DagsterInstance.ephemeral() as instance:
        first = observed(definitions, instance)
        same = observed(definitions, instance)
        with engine.begin() as connection:
            connection.execute(text("UPDATE database_size_stats SET size_mb = 101 WHERE collected_date = '2025-07-18'"))
        corrected = observed(definitions, instance)

    with engine.begin() as connection:
        # As the legacy application's tables allow it.
        connection.execute(text("ALTER TABLE instance_size_stats ALTER COLUMN updated_at DROP NOT NULL"))
        connection.execute(text("UPDATE instance_size_stats SET updated_at = NULL"))
    with dg.DagsterInstance.ephemeral() as instance:
        assert observed(definitions, instance)["instance_size_stats"]["2025-07-20"].endswith("no time")

    assert list(first["database_size_stats"]) == [f"2025-07-{day}" for day in range(14, 21)]
    assert first["database_size_stats"]["2025-07-20"].startswith("1 rows, 100 MiB, ")
    assert same == first
    changed = {(asset, day) for asset in RAW for day in first[asset] if first[asset][day] != corrected[asset][day]}
    assert changed == {("database_size_stats", "2025-07-18")}
    assert settings.collection == "on"


def observed(definitions: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, dict[str, str]]:
    result = definitions.resolve_job_def("observation_job").execute_in_process(instance=instance, run_config=QUIET)
    assert result.success
    found: dict[str, dict[str, str]] = {asset: {} for asset in RAW}
    for asset in RAW:
        for record in instance.fetch_observations(dg.AssetKey(asset), limit=100, ascending=True).records:
            observation = record.asset_observation
            assert observation is not None
            found[asset][str(observation.partition)] = observation.tags[DATA_VERSION_TAG]
    return found


def test_days_that_were_imported_are_marked_in_the_graph_and_today_is_left_to_the_collection(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1])
    days = [100, None, 100, *[100] * 198]
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", days))
    add_instance_sizes(engine, totals(1, "2024-12-30", [(100, 1)] * 3))
    definitions = build_definitions(settings, clock=fixed_clock())
    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def("sample_days_sensor")

    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):
            with dg.build_sensor_context(
                instance=instance, repository_def=repository, resources=repository.get_top_level_resources()
            ) as context:
                found = sensor.evaluate_tick(context)
            for event in found.asset_events:
                instance.report_runless_asset_event(event)
        marked = {asset: instance.get_materialized_partitions(dg.AssetKey(asset)) for asset in RAW}

    assert found.skip_message == "Every day with samples is marked."
    assert marked["instance_size_stats"] == {"2025-01-01"}
    assert len(marked["database_size_stats"]) == 199
    assert {"2025-01-02", "2025-07-20"}.isdisjoint(marked["database_size_stats"])
