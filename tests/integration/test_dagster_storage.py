"""Dagster's storage as the shipped dagster.yaml names it: connections are kept, tried before use, and limited."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import date, timedelta

import dagster as dg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.database.engine import disposed
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.partitions import range_tags
from capacity_assets.orchestration.sample_runs import report_marks
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.runs import run_range

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def storage(shipped_instance: dg.DagsterInstance) -> Iterator[Engine]:  # noqa: ARG001 -- sets the variable
    """Connections of one's own to the database of Dagster."""
    with disposed(create_engine(os.environ["DAGSTER_POSTGRES_URL"])) as engine:
        yield engine


def connections(storage: Engine) -> set[int]:
    """The processes of the server that serve others."""
    with storage.connect() as connection:
        return set(connection.execute(text(f"SELECT pid {OTHERS}")).scalars())


def ask_every_part(instance: dg.DagsterInstance) -> None:
    assert instance.get_runs() == []
    assert instance.get_latest_materialization_event(dg.AssetKey("daily_database_aggregations")) is None
    assert list(instance.all_instigator_state()) == []


def test_the_parts_of_an_instance_share_one_connection_and_keep_it(
    shipped_instance: dg.DagsterInstance, storage: Engine
) -> None:
    ask_every_part(shipped_instance)
    kept = connections(storage)
    assert len(kept) == 1
    ask_every_part(shipped_instance)
    assert connections(storage) == kept


def test_an_instance_does_not_notice_that_its_connection_was_cut(
    shipped_instance: dg.DagsterInstance, storage: Engine
) -> None:
    ask_every_part(shipped_instance)
    before = connections(storage)
    with storage.begin() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend(pid, 10000) {OTHERS}"))
    ask_every_part(shipped_instance)
    assert not before & connections(storage)


def test_the_web_server_limits_statements_on_connections_that_are_open_already_too(
    shipped_instance: dg.DagsterInstance,
) -> None:
    ask_every_part(shipped_instance)
    shipped_instance.optimize_for_webserver(statement_timeout=500, pool_recycle=3600, max_overflow=20)
    parts = (
        shipped_instance.run_storage.connect,
        shipped_instance.schedule_storage.connect,
        shipped_instance.event_log_storage.index_connection,
    )
    for connect in parts:
        with connect() as connection, pytest.raises(DBAPIError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(10)"))


def test_a_closed_instance_leaves_no_connection(shipped_instance: dg.DagsterInstance, storage: Engine) -> None:
    ask_every_part(shipped_instance)
    before = connections(storage)
    with dg.DagsterInstance.from_ref(shipped_instance.get_ref()) as other:
        ask_every_part(other)
        assert len(connections(storage)) == len(before) + 1
    # A server process ends shortly after its client has gone.
    deadline = time.monotonic() + 10
    while connections(storage) != before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def statements(storage: Engine, kind: str) -> int:
    """Count the statements that wrote the events of a kind, each in its own transaction."""
    with storage.connect() as connection:
        query = "SELECT count(DISTINCT CAST(xmin AS text)) FROM event_logs WHERE dagster_event_type = :kind"
        return int(connection.execute(text(query), {"kind": kind}).scalar_one())


def test_marks_of_several_assets_are_written_a_hundred_at_a_time(
    shipped_instance: dg.DagsterInstance, storage: Engine
) -> None:
    keys = {name: [f"2025-{name}-{number}" for number in range(125)] for name in ("one", "two")}
    report_marks(
        shipped_instance, [dg.AssetMaterialization(name, partition=key) for name, its in keys.items() for key in its]
    )
    for name, its in keys.items():
        assert shipped_instance.get_materialized_partitions(dg.AssetKey(name)) == set(its)
        newest = shipped_instance.get_latest_materialization_event(dg.AssetKey(name))
        assert newest is not None
        assert newest.get_dagster_event().partition == its[-1]
    assert statements(storage, "ASSET_MATERIALIZATION") == 3


@pytest.mark.nightly("writes thousands of events")
def test_results_of_checks_are_written_a_hundred_at_a_time(
    shipped_instance: dg.DagsterInstance, settings: Settings, engine: Engine, storage: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", range(100, 200)))
    windows = PERIODS["daily"].windows_between(date(2025, 1, 1), date(2025, 4, 10))
    run = run_range(settings, "daily_aggregation_job", windows[0].key, windows[-1].key, instance=shipped_instance)

    assert run.success
    kind = "ASSET_CHECK_EVALUATION"
    # Eleven checks of three levels by partition; the standing check of each has no partition.
    assert statements(storage, kind) <= 11 + len(LEVELS) + 3
    evaluated = f"event_logs WHERE dagster_event_type = '{kind}'"
    records = "asset_check_executions WHERE partition IS NOT NULL AND execution_status <> 'PLANNED'"
    with storage.connect() as connection:
        counts = [
            connection.execute(text(f"SELECT count(*) FROM {rows}")).scalar_one() for rows in (evaluated, records)
        ]
    assert counts == [11 * len(windows) + len(LEVELS), 11 * len(windows)]


def test_planned_materialisations_are_written_a_hundred_at_a_time(
    shipped_instance: dg.DagsterInstance, settings: Settings, storage: Engine
) -> None:
    job = build_definitions(settings).resolve_job_def("daily_aggregation_job")
    windows = PERIODS["daily"].windows_between(settings.start_date, settings.start_date + timedelta(days=99))
    run = shipped_instance.create_run_for_job(job, tags={**job.run_tags, **range_tags(windows)})

    events = shipped_instance.event_log_storage
    for name in ("database", "instance", "group"):
        key = dg.AssetKey(f"daily_{name}_aggregations")
        planned = events.get_latest_asset_partition_materialization_attempts_without_materializations(key)
        assert {window: run_id for window, (run_id, _) in planned.items()} == {
            window.key: run.run_id for window in windows
        }
    with storage.connect() as connection:
        checks = connection.execute(
            text("SELECT run_id, evaluation_event_storage_id FROM asset_check_executions")
        ).all()
        planned_checks = "SELECT run_id, id FROM event_logs WHERE dagster_event_type = 'ASSET_CHECK_EVALUATION_PLANNED'"
        assert checks
        assert set(checks) == set(connection.execute(text(planned_checks)).all()), "one record per window"
    assert statements(storage, "ASSET_MATERIALIZATION_PLANNED") <= 4
