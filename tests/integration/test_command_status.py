"""`capacity status` as a person meets it: samples, windows, what is late, what runs or failed."""

from __future__ import annotations

import json
import time

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy import Engine, text

from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import Settings
from tests.clocks import TODAY
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals


@pytest.mark.usefixtures("sample")
def test_status_shows_samples_and_latest_windows() -> None:
    capacity("aggregate", "--period", "weekly", "--from", "2025-01-01", "--to", "2025-07-20")

    document = json.loads(capacity("status", "--json").output)

    assert document["active_instances"] == 5
    assert document["samples"][0]["last_day"] == "2025-07-20"
    weekly = {row["level"]: row for row in document["windows"] if row["period"] == "weekly"}
    assert (weekly["database"]["first_window"], weekly["database"]["latest_window"]) == ("2024-12-30", "2025-07-14")
    assert weekly["instance"]["days"] == "7 of 7"
    daily = [row for row in document["windows"] if row["period"] == "daily"]
    assert [(row["rows"], row["days"]) for row in daily] == [(0, None)] * 3
    assert "Latest stored window" in capacity("status").output


@pytest.mark.usefixtures("today")
def test_status_tells_how_much_of_an_open_window_is_over_and_measured(engine: Engine) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, TODAY.isoformat(), [(10, 1)]))
    assert capacity("aggregate", "--period", "yearly", "--from", TODAY.isoformat()).exit_code == 0

    document = json.loads(capacity("status", "--json").output)

    [days] = [row["days"] for row in document["windows"] if (row["period"], row["level"]) == ("yearly", "instance")]
    assert days == "1 of 201 so far, 365 in total"


@pytest.mark.usefixtures("sample")
def test_status_tells_what_is_late_and_what_runs_or_waits(shipped_instance: DagsterInstance) -> None:
    capacity("aggregate", "--period", "weekly", "--from", "2025-01-01", "--to", "2025-07-20")
    tags = {"dagster/partition": "2025-03-01"}
    run = create_run_for_test(shipped_instance, "daily_aggregation_job", status=DagsterRunStatus.STARTED, tags=tags)

    document = json.loads(capacity("status", "--json").output)
    screen = capacity("status").output

    assert [(row["job"], row["partitions"], row["state"]) for row in document["runs"]] == [
        ("daily_aggregation_job", "2025-03-01", "running")
    ]
    late = {(row["period"], row["level"]): row for row in document["late"]}
    assert ("weekly", "database") not in late, "computed"
    assert late["yearly", "instance"]["reason"] == "has samples, but was never computed"
    assert (late["daily", "database"]["windows"], late["daily", "database"]["first_window"]) == (201, "2025-01-01")
    assert f"{run.run_id[:8]} daily_aggregation_job 2025-03-01 running" in " ".join(screen.split())
    assert "has samples, but was never computed" in " ".join(screen.split())
    assert not document["daemon_works"]
    assert "No Dagster daemon is running" in screen


@pytest.mark.single_server("disables the triggers of the samples")
@pytest.mark.usefixtures("sample")
def test_status_tells_failed_runs_and_that_changes_are_not_noted(
    shipped_instance: DagsterInstance, engine: Engine
) -> None:
    failed = create_run_for_test(shipped_instance, "weekly_aggregation_job", status=DagsterRunStatus.STARTED)
    shipped_instance.report_run_failed(failed)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE database_size_stats DISABLE TRIGGER USER"))

    screen = " ".join(capacity("status").output.split())

    assert f"{failed.run_id[:8]} weekly_aggregation_job none failed within the hour" in screen
    assert (
        "Figures may be out of date without being listed as stale: changes of database_size_stats are not recorded"
        in screen
    )


@pytest.mark.usefixtures("sample")
def test_a_window_whose_samples_just_changed_is_late_where_nobody_follows_or_a_run_has_failed(
    shipped_instance: DagsterInstance, engine: Engine
) -> None:
    assert capacity("aggregate", "--period", "all", "--from", "2025-03-01", "--to", "2025-03-31").exit_code == 0
    add_database_sizes(engine, sizes(1, "new", "2025-03-03", [5]))

    nobody = json.loads(capacity("status", "--json").output)["late"]
    shipped_instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "daemon", []))
    followed = json.loads(capacity("status", "--json").output)["late"]
    run = create_run_for_test(shipped_instance, "weekly_aggregation_job", status=DagsterRunStatus.STARTED)
    shipped_instance.report_run_failed(run)
    late = json.loads(capacity("status", "--json").output)["late"]

    reason = "samples changed since it was computed"
    changed = [{(one["period"], one["level"]) for one in found if one["reason"] == reason} for found in (nobody, late)]
    assert all(found >= {("weekly", "database"), ("monthly", "database")} for found in changed)
    assert not [one for one in followed if one["reason"] == reason]


def test_status_tells_what_is_stale_of_open_windows_and_what_others_wrote_apart_from_what_is_late(
    settings: Settings, engine: Engine
) -> None:
    """Regression: it only reported that nothing was late."""
    today = Clock(settings.zone).today()
    year = PERIODS["yearly"].window_of(today)
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, str(today), [(10, 1)]))
    assert capacity("aggregate", "--period", "yearly", "--from", str(today)).exit_code == 0

    def behind() -> tuple[set[tuple[str, str]], set[tuple[str, str, str, str]]]:
        document = json.loads(capacity("status", "--json").output)
        late = {(one["period"], one["reason"]) for one in document["late"]}
        return late, {(one["period"], one["level"], one["last_window"], one["reason"]) for one in document["stale"]}

    late, stale = behind()
    assert not [one for one in late if one[0] == "yearly"]
    assert stale == set()
    nothing = "nothing else. All other windows" if late else "nothing. All windows"
    assert f"Stale: {nothing} match their samples" in capacity("status").output

    with engine.begin() as connection:
        connection.execute(text("UPDATE instance_size_stats SET total_size_mb = 11"))
    changed = {"instance": "samples changed since it was computed"}
    changed["group"] = changed["instance"].replace("samples", "samples or labels")
    assert behind() == (late, {("yearly", level, year.key, reason) for level, reason in changed.items()})
    assert f"yearly instance 1 {year.key} {year.key} samples changed" in " ".join(capacity("status").output.split())

    assert capacity("aggregate", "--period", "yearly", "--from", str(today)).exit_code == 0
    assert behind() == (late, set())
    with engine.begin() as connection:
        connection.execute(text("UPDATE instance_size_aggregations SET total_size_mb = 9"))
    [(period, level, window, reason)] = behind()[1]
    assert (period, level, window) == ("yearly", "instance", year.key)
    assert reason.startswith("another session wrote its aggregates or deleted samples")

    assert capacity("aggregate", "--period", "yearly", "--from", str(today)).exit_code == 0
    assert behind() == (late, set())


@pytest.mark.usefixtures("today")
def test_status_names_samples_that_stopped_arriving(engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-07-18", [1]))
    add_instance_sizes(engine, totals(1, "2025-07-19", [(1, 1)]))

    document = json.loads(capacity("status", "--json").output)

    assert document["samples_stopped"] == {"database_size_stats": "2025-07-18"}
    screen = " ".join(capacity("status").output.split())
    assert "database_size_stats: The newest sample is from 18 Jul 2025, 2 days ago. Check" in screen


def test_status_says_so_where_there_is_no_dagster_and_nothing_late(settings: Settings) -> None:
    screen = " ".join(capacity("status").output.split())

    assert settings.capacity_url is not None
    assert "Runs: Dagster was never started here, or its storage does not answer." in screen
    assert "Late: nothing." in screen
