"""A wrong clock, compared with PostgreSQL's clock and the days of samples, deletes nothing and makes nothing final."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.database.partitions import PARTITIONED
from capacity_assets.forecast.issuing import RunwayService
from capacity_assets.orchestration.aggregates import MAINTENANCE_JOB
from capacity_assets.orchestration.build import build_definitions
from tests.clocks import SHANGHAI, TODAY, fixed_clock
from tests.collecting import Collection
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.partitions import everything, partition_names
from tests.runs import QUICK_RETRIES, QUIET
from tests.runways import fill_with_limits, stored_runways

WRONG = date(2031, 5, 1)
SetClocks = Callable[..., None]


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> SetClocks:
    """Set this machine's clock and PostgreSQL's to noon of a day each."""

    def at(local: date, database: date | None = None, zone: ZoneInfo = SHANGHAI) -> None:
        moments = [
            datetime.combine(day, datetime.min.time(), zone).replace(hour=12) for day in (local, database or local)
        ]
        monkeypatch.setattr(Clock, "local_now", lambda clock: moments[0].astimezone(clock.zone))
        monkeypatch.setattr(Clock, "local_database_now", lambda clock, _connection: moments[1].astimezone(clock.zone))

    return at


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("local", "by_postgres", "said"),
    [
        (WRONG, TODAY, "This machine's clock shows 2031-05-01 12:00, PostgreSQL's shows 2025-07-20 12:00"),
        (TODAY, WRONG, "This machine's clock shows 2025-07-20 12:00, PostgreSQL's shows 2031-05-01 12:00"),
        (WRONG, WRONG, "The newest sample is from 2025-07-20, 2,111 days before today (2031-05-01)"),
    ],
)
def test_maintenance_drops_nothing_by_a_wrong_clock_and_adds_no_partition_for_its_years(
    two_servers: Engine, clocks: SetClocks, monkeypatch: pytest.MonkeyPatch, local: date, by_postgres: date, said: str
) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=100,daily=forever")
    clocks(local, by_postgres)
    before = everything(two_servers)

    done = capacity("maintain")

    assert done.exit_code == 1, done.output
    assert said in done.stderr
    assert "`capacity maintain --despite-clock`" in done.stderr
    assert "database_size_stats_2025_01: today's date may be wrong" in done.stdout
    assert everything(two_servers) == before
    checked = " ".join(capacity("check", columns=400).output.split())
    assert said in checked
    assert "Correct the wrong clock; until then, nothing is dropped" in checked
    names = [name for table in PARTITIONED for name in partition_names(two_servers, table)]
    assert not [name for name in names if "_2027" in name or "_2031" in name]


@pytest.mark.usefixtures("settings", "two_servers")
@pytest.mark.parametrize("days", [1, -1])
def test_status_says_that_the_clocks_differ(clocks: SetClocks, days: int) -> None:
    clocks(TODAY + timedelta(days=days), TODAY)

    said = f"This machine's clock shows {TODAY + timedelta(days=days)} 12:00, PostgreSQL's shows {TODAY} 12:00"
    assert f"{said}: one of them is wrong. This machine's clock decides what is late." in printed("status")
    assert json.loads(printed("status", "--json"))["clocks_apart"] == f"{said}: one of them is wrong."
    clocks(TODAY)
    assert "one of them is wrong" not in printed("status")


@pytest.fixture
def old_days(engine: Engine) -> Engine:
    """Daily aggregates of January, older than the retention of 40 days, and samples up to yesterday."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", [100] * 200))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", date(2025, 1, 1), date(2025, 1, 31))
    return engine


def days_left(engine: Engine) -> int:
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM database_size_aggregations WHERE period_type = 'daily'")
        return int(connection.execute(query).scalar_one())


@pytest.mark.nightly("computes a second history")
@pytest.mark.usefixtures("settings")
def test_who_says_that_the_date_is_right_has_old_rows_dropped(
    old_days: Engine, clocks: SetClocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=forever,daily=40")
    clocks(WRONG)
    assert capacity("maintain").exit_code == 1
    assert days_left(old_days) == 31

    assert "partitions with 124 rows dropped" in printed("maintain", "--despite-clock")
    assert days_left(old_days) == 0


@pytest.mark.usefixtures("settings")
def test_samples_that_a_wrong_clock_wrote_are_no_proof_of_it(
    old_days: Engine, clocks: SetClocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a single machine both clocks are wrong, and the nightly collection runs before the maintenance."""
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=forever,daily=40")
    add_database_sizes(old_days, sizes(1, "orders", "2031-04-29", [100] * 3))
    clocks(WRONG)

    refused = capacity("maintain")

    assert "There are no samples between 2025-07-19 and 2031-04-29; today is 2031-05-01" in refused.stderr
    assert days_left(old_days) == 31


@pytest.mark.usefixtures("settings")
def test_days_of_the_future_and_a_short_pause_keep_nothing_from_leaving(
    old_days: Engine, clocks: SetClocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=forever,daily=40")
    add_database_sizes(old_days, sizes(1, "orders", "2031-04-29", [100]))
    clocks(date(2025, 7, 19) + timedelta(days=45))

    assert "partitions with 124 rows dropped" in printed("maintain")


def test_the_daily_asset_follows_the_same_rule(settings: Settings, old_days: Engine, monkeypatch: Any) -> None:
    monkeypatch.setenv("CAPACITY_RETENTION_DAYS", "raw=forever,daily=40")
    definitions = build_definitions(Settings(), clock=fixed_clock(WRONG), retries=QUICK_RETRIES)

    done = definitions.resolve_job_def(MAINTENANCE_JOB).execute_in_process(run_config=QUIET, raise_on_error=False)

    [failure] = done.get_step_failure_events()
    details = failure.step_failure_data.user_failure_data
    assert details is not None
    assert "The newest sample is from 2025-07-19" in str(details.description)
    assert days_left(old_days) == 31
    assert settings.retention_days != Settings().retention_days


def test_attempts_of_collections_are_not_forgotten_by_a_wrong_clock(collection: Collection, engine: Engine) -> None:
    collection.collect(TODAY)
    execute(
        engine,
        "INSERT INTO capacity_collection_attempts (collected_date, instance_id, status) "
        "VALUES ('2025-07-19', 1, 'collected')",
    )
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-07-19", [100]))
    add_database_sizes(engine, sizes(1, "orders", "2031-05-01", [100]))

    collection.collect(WRONG)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM capacity_collection_attempts")).scalar_one() == 1


@pytest.mark.usefixtures("settings")
def test_a_command_issues_no_forecast_anew_that_seems_new_by_a_clock_that_is_behind(
    engine: Engine, clocks: SetClocks
) -> None:
    fill_with_limits(engine)
    past = TODAY - timedelta(days=30)
    for day in (past, TODAY):
        RunwayService(engine, fixed_clock(day)).issue(day)
    told = [stored_runways(engine, day) for day in (past, TODAY)]
    clocks(past, TODAY)

    said = printed("limits", "set", "server-1", "orders", "--gb", "100")

    assert "The forecasts of server-1 are not updated yet: This machine's clock shows" in said
    assert "The next run updates them." in said
    assert [stored_runways(engine, day) for day in (past, TODAY)] == told


def test_no_forecast_is_issued_by_a_clock_that_differs_from_that_of_the_database(engine: Engine) -> None:
    fill_with_limits(engine)
    ahead = replace(fixed_clock(TODAY + timedelta(days=1)), database_now=fixed_clock().database_now)

    with pytest.raises(
        ValidationError, match="This machine's clock shows 2025-07-21 12:00, PostgreSQL's shows 2025-07-20 12:00"
    ):
        RunwayService(engine, ahead).issue(TODAY + timedelta(days=1))
    assert RunwayService(engine, ahead).issue(TODAY - timedelta(days=5)).written, "in hindsight, and marked so"
    assert RunwayService(engine, fixed_clock()).issue(TODAY).written
