"""The late data sensor under Dagster's own daemon: exactly the affected partitions, once, in few runs, none lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.ledger import StaleWindow
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import Settings
from capacity_assets.database.engine import capacity_engine
from capacity_assets.orchestration.aggregates import EXACT_SPANS, LATE_DATA_SENSOR, is_settled, run_requests
from capacity_assets.orchestration.graph import Graph
from tests.clocks import SHANGHAI, fixed_clock
from tests.daemon import Daemon, partitions_of
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.ledger import compute_everything, redo

FIRST = date(2025, 1, 1)


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Changes are followed at once; the code server inherits the environment."""
    monkeypatch.setenv("CAPACITY_SETTLE_SECONDS", "0")
    return settings


NOON = datetime(2025, 7, 20, 12, tzinfo=UTC)


def half_a_year_of_a_server(engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", range(100, 301)))
    add_instance_sizes(engine, totals(1, "2025-01-01", [(size, 1) for size in range(100, 301)]))
    compute_everything(AggregationService(engine, fixed_clock()))


PREPARED = {"computed": half_a_year_of_a_server}


def requested(daemon: Daemon) -> set[tuple[str, str, str]]:
    """Asset, first and last partition of every run."""
    return {
        (key.to_user_string(), *partitions_of(run)) for run in daemon.runs() for key in (run.asset_selection or set())
    }


def last_tick(daemon: Daemon) -> tuple[dg._core.scheduler.instigation.TickStatus, str]:  # type: ignore[name-defined]
    [state] = [
        found
        for found in daemon.instance.all_instigator_state()
        if found.instigator_name == LATE_DATA_SENSOR  # the alert sensor is not configured
    ]
    [tick] = daemon.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    return tick.status, str(tick.skip_reason or tick.error)


@pytest.mark.usefixtures("computed")
def test_a_corrected_day_has_exactly_its_windows_and_their_successors_computed_again_once_whatever_happens(
    daemon: Daemon, engine: Engine, computed: AggregationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.tick_sensors(LATE_DATA_SENSOR)
    assert daemon.runs() == []
    correct = "UPDATE database_size_stats SET size_mb = {} WHERE collected_date = '2025-03-31'"
    execute(engine, correct.format(7))

    def die(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(dg.DagsterInstance, "submit_run", die)
        daemon.tick_sensors(LATE_DATA_SENSOR, expect_trouble=True)
    assert daemon.runs() == [], "created, but not submitted"

    daemon.tick_sensors(LATE_DATA_SENSOR)
    for size in (8, 9):
        execute(engine, correct.format(size))
        daemon.tick_sensors(LATE_DATA_SENSOR)

    assert "the runs requested before are not done yet (daily, " in last_tick(daemon)[1]
    assert requested(daemon) == {
        (f"{period}_{level}_aggregations", first, last)
        for period, first, last in (
            ("daily", "2025-03-31", "2025-04-01"),
            ("weekly", "2025-03-31", "2025-04-07"),
            ("monthly", "2025-03-01", "2025-04-01"),
            ("quarterly", "2025-01-01", "2025-04-01"),
            ("yearly", "2025-01-01", "2025-01-01"),
        )
        for level in ("database", "group")
    }
    assert len(daemon.runs()) == 5
    for run in daemon.runs():
        assert run.tags["capacity/reason"] == "samples changed"
        assert daemon.launch(run).status == dg.DagsterRunStatus.SUCCESS

    daemon.tick_sensors(LATE_DATA_SENSOR)

    assert len(daemon.runs()) == 5, "its own writes are no change"
    assert compute_everything(computed) == 0, "the tables hold what a full computation would"


@pytest.mark.nightly("computes half a year once more")
@pytest.mark.usefixtures("computed")
def test_a_change_of_both_raw_tables_is_one_run_a_period(daemon: Daemon, engine: Engine) -> None:
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-07-20'")
    execute(engine, "UPDATE instance_size_stats SET total_size_mb = 7 WHERE collected_date = '2025-07-20'")

    daemon.tick_sensors()

    assert {run.job_name: len(run.asset_selection or set()) for run in daemon.runs()} == {
        f"{period}_aggregation_job": 3 for period in PERIODS
    }
    assert len(daemon.runs()) == len(PERIODS)


@pytest.mark.usefixtures("computed")
def test_a_transaction_that_commits_between_two_ticks_although_it_began_long_before_is_found(
    daemon: Daemon, engine: Engine, computed: AggregationService
) -> None:
    late = capacity_engine(engine.url)
    with late.connect() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 1 WHERE collected_date = '2025-02-03'"))
        execute(engine, "UPDATE instance_size_stats SET total_size_mb = 7 WHERE collected_date = '2025-07-20'")
        daemon.tick_sensors(LATE_DATA_SENSOR)
        assert not any("database" in asset for asset, _, _ in requested(daemon))
        redo(computed)
        for run in daemon.runs():
            daemon.instance.report_run_canceled(run)
        connection.commit()
    late.dispose()

    daemon.tick_sensors(LATE_DATA_SENSOR)

    assert ("daily_database_aggregations", "2025-02-03", "2025-02-04") in requested(daemon)


@pytest.mark.nightly("imports a hundred thousand samples")
@pytest.mark.usefixtures("computed")
def test_a_hundred_thousand_samples_imported_again_become_a_bounded_number_of_runs(
    daemon: Daemon, engine: Engine
) -> None:
    execute(
        engine,
        "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
        "SELECT 1, 'db-' || n, n, CAST('2025-01-01' AS date) + d "
        "FROM generate_series(1, 500) n, generate_series(0, 200) d",
    )

    daemon.tick_sensors(LATE_DATA_SENSOR)

    assert len(daemon.runs()) == 7, "201 days in three runs, and one for each other period"
    assert sum(run.job_name == "daily_aggregation_job" for run in daemon.runs()) == 3


@pytest.mark.single_server("renames its database")
@pytest.mark.usefixtures("computed")
def test_a_database_that_is_away_fails_the_tick_with_a_readable_reason_and_the_next_one_works(
    daemon: Daemon, engine: Engine
) -> None:
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    name = engine.url.database
    engine.dispose()
    administrator = capacity_engine(engine.url.set(database="postgres"))
    with administrator.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")
        )
        connection.execute(text(f"ALTER DATABASE {name} RENAME TO away"))
        daemon.tick_sensors(LATE_DATA_SENSOR, expect_trouble=True)
        connection.execute(text(f"ALTER DATABASE away RENAME TO {name}"))
    administrator.dispose()

    status, reason = last_tick(daemon)
    assert status.value == "FAILURE"
    assert "does not exist" in reason
    assert "INSERT" not in reason
    assert "SELECT" not in reason

    daemon.tick_sensors(LATE_DATA_SENSOR)
    assert len(daemon.runs()) == 5


def test_windows_wait_until_samples_have_rested_but_not_for_ever() -> None:
    [window] = stale_days([FIRST])

    def has_settled(quiet_seconds: float, waiting_seconds: float) -> bool:
        return is_settled(replace(window, quiet_seconds=quiet_seconds, waiting_seconds=waiting_seconds), 60)

    assert not has_settled(10, 10)
    assert has_settled(61, 61)
    assert not has_settled(10, 1700)
    assert has_settled(10, 1801), "a collection that never pauses"


def stale_days(days: list[date], level: str = "database", change: int = 1) -> list[StaleWindow]:
    return [StaleWindow("daily", level, PERIODS["daily"].window_of(day), "samples changed", change) for day in days]


def requests_of(stale: list[StaleWindow], now: datetime = NOON) -> list[dg.RunRequest]:
    return list(run_requests(Graph(Settings(), Clock(SHANGHAI, lambda: now)), "daily", stale))


def keys(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    return [
        (request.partition_key, request.partition_key)
        if request.partition_key
        else (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"])
        for request in requests
    ]


def test_a_few_scattered_stretches_are_requested_exactly() -> None:
    days = [FIRST + timedelta(days=10 * number) for number in range(EXACT_SPANS)]

    found = keys(requests_of(stale_days(days)))

    assert found == [(day.isoformat(), day.isoformat()) for day in days]


def test_many_scattered_days_are_bridged_into_ranges_of_at_most_a_hundred_that_cover_them_all() -> None:
    days = [FIRST + timedelta(days=7 * number) for number in range(120)]

    found = [
        (date.fromisoformat(first), date.fromisoformat(last)) for first, last in keys(requests_of(stale_days(days)))
    ]

    assert len(found) == 9, "840 days"
    assert all((last - first).days < 100 for first, last in found)
    assert all(last < first for (_, last), (first, _) in pairwise(found))
    assert all(any(first <= day <= last for first, last in found) for day in days)


def test_stretches_without_a_stale_window_are_left_out_when_gaps_are_bridged() -> None:
    days = [FIRST + timedelta(days=2 * number) for number in range(EXACT_SPANS + 1)]
    days.append(FIRST + timedelta(days=900))

    found = keys(requests_of(stale_days(days)))

    assert [first for first, _ in found] == ["2025-01-01", "2027-06-20"]


def test_windows_whose_run_failed_are_requested_again_in_the_next_hour_and_new_changes_at_once() -> None:
    [request] = requests_of(stale_days([FIRST]))
    [same_hour] = requests_of(stale_days([FIRST]), NOON + timedelta(minutes=59))
    [next_hour] = requests_of(stale_days([FIRST]), NOON + timedelta(hours=1))
    [new_change] = requests_of(stale_days([FIRST], change=2))

    assert request.run_key == same_hour.run_key
    assert len({request.run_key, next_hour.run_key, new_change.run_key}) == 3
