"""The `capacity` command as its user meets it: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy import URL, Engine, create_engine, text

from capacity_assets.clock import Clock
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.foundation.locks import CapacityLockManager
from capacity_assets.periods import PERIODS
from capacity_assets.settings import Settings
from capacity_assets.storage.schema import SCHEMA_REVISION
from tests.command import capacity
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    sizes,
    stored,
    totals,
)
from tests.forked import run_forked


@pytest.mark.usefixtures("sample")
def test_aggregate_computes_a_range_and_prints_a_line_a_period_and_level(engine: Engine) -> None:
    result = capacity("aggregate", "--period", "monthly", "--from", "2025-01-01", "--to", "2025-07-20")

    assert result.exit_code == 0, result.output
    assert "completed: 7 windows: 139 rows written, 0 unchanged, 0 protected." in result.output
    assert len(stored(engine, DATABASE, "monthly")) + len(stored(engine, INSTANCE, "monthly")) == 139


@pytest.mark.usefixtures("sample")
def test_aggregate_prints_json_for_scripts() -> None:
    arguments = ("--period", "quarterly", "--from", "2025-04-01", "--to", "2025-04-01", "--level", "instance", "--json")

    document = json.loads(capacity("aggregate", *arguments).output)

    assert document["status"] == "completed"
    [window] = document["windows"]
    assert (window["period_start"], window["level"]) == ("2025-04-01", "instance")
    assert window["total_instances"] == window["processed_instances"] + window["skipped_instances"] == 5


@pytest.mark.usefixtures("sample")
def test_aggregate_can_be_limited_to_instances(engine: Engine) -> None:
    capacity("aggregate", "--period", "daily", "--from", "2025-03-01", "--to", "2025-03-01", "--instance", "3")

    assert {row["instance_id"] for row in stored(engine, DATABASE)} == {3}


def test_aggregate_exits_with_one_when_an_instance_failed_and_names_it(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_overflowing_instance(engine, 2, date(2025, 3, 1))

    result = capacity("aggregate", "--period", "daily", "--from", "2025-03-01", "--to", "2025-03-01")

    assert settings.capacity_url is not None
    assert result.exit_code == 1
    assert "server 2 (server-2): bigint out of range" in result.output


def test_one_period_that_is_held_elsewhere_does_not_hinder_the_others(sample: Settings, engine: Engine) -> None:
    with CapacityLockManager(engine).job_lock("weekly"):
        result = capacity("aggregate", "--period", "all", "--from", "2025-03-01", "--to", "2025-03-01")

    assert sample.redis_url is None
    assert result.exit_code == 1
    assert "Nothing of the weekly aggregates was written." in result.output
    periods = ("daily", "monthly", "quarterly", "weekly", "yearly")
    assert [len(stored(engine, INSTANCE, period)) for period in periods] == [3, 3, 3, 0, 4]


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--period", "hourly"), "Unknown period 'hourly'; known: daily, weekly, monthly, quarterly, yearly"),
        (("--period", "daily", "--level", "rack"), "Unknown level 'rack'; known: database, instance, all"),
        (("--period", "daily", "--instance", "99"), "No server '99' is registered"),
        (("--period", "daily", "--from", "2025-03-02", "--to", "2025-03-01"), "lies after the last day"),
        (("--period", "daily", "--from", "2019-01-01", "--to", "2019-01-01"), "partition range: the first starts on"),
        (("--period", "daily", "--from", "2999-01-01", "--to", "2999-01-01"), "partition range: the first starts on"),
        (("--period", "daily", "--from", "03/01/2025"), "'03/01/2025' is not a day of the calendar; write YYYY-MM-DD"),
        (("--period", "daily", "--from", "2026-02-30"), "'2026-02-30' is not a day of the calendar"),
        (("--period", "yearly", "--from", "2998-12-30", "--to", "2998-12-31"), "partition range: the first starts on"),
        (("--period", "hourly", "--period", "all"), "Unknown period 'hourly'"),
        ((), "Missing option '--period'"),
    ],
)
def test_bad_usage_exits_with_two_says_why_and_writes_nothing(
    engine: Engine, arguments: tuple[str, ...], told: str
) -> None:
    result = capacity("aggregate", *arguments)

    assert result.exit_code == 2
    assert told in result.output
    assert stored(engine, DATABASE) == stored(engine, INSTANCE) == []


@pytest.mark.parametrize("command", ["aggregate --period daily", "status", "init", "demo", "up --port 3999"])
def test_a_broken_configuration_exits_with_two_and_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Mars")

    result = capacity(*command.split())

    assert result.exit_code == 2
    assert "CAPACITY_TIMEZONE: 'Mars' is no known time zone" in result.output


@pytest.mark.parametrize("command", ["aggregate --period daily", "status", "init", "check"])
def test_an_unreachable_database_exits_with_one_and_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://dba:hunter2@127.0.0.1:9/capacity")

    result = capacity(*command.split())

    assert result.exit_code == 1
    assert "postgresql://dba@127.0.0.1:9/capacity" in " ".join(result.output.split())
    assert "hunter2" not in result.output


def test_init_creates_then_leaves_alone(empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_database.render_as_string(hide_password=False))

    first, second = capacity("init"), capacity("init")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "created table database_size_aggregations" in first.output
    assert "schema was up to date" in second.output


@pytest.mark.parametrize("command", ["aggregate --period daily", "status", "check"])
def test_without_a_schema_everything_says_capacity_init(
    empty_database: URL, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_database.render_as_string(hide_password=False))

    result = capacity(*command.split())

    assert result.exit_code == 1
    assert "capacity init" in " ".join(result.output.split())


@pytest.fixture
def own_dagster_storage(settings: Settings, empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """Both databases named by the user, the one for Dagster still empty."""
    assert settings.capacity_url is not None
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_database.render_as_string(hide_password=False))
    return empty_database


def pools(output: str) -> tuple[str, str]:
    [finding] = [finding for finding in json.loads(output) if finding["subject"] == "pools"]
    return finding["verdict"], finding["text"]


def test_init_limits_the_pools_and_check_says_when_they_are_not(own_dagster_storage: URL) -> None:
    before = capacity("check", "--json")
    assert capacity("init").exit_code == 0
    after = capacity("check", "--json")
    engine = create_engine(own_dagster_storage)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM concurrency_limits WHERE concurrency_key = 'capacity_weekly'"))
    engine.dispose()
    lost = capacity("check", "--json")

    assert (before.exit_code, pools(before.output)) == (
        1,
        ("bad", "Dagster has no tables here yet: run `capacity init`"),
    )
    assert (after.exit_code, pools(after.output)) == (0, ("ok", "one run per period at a time"))
    assert lost.exit_code == 1
    assert "not limited to one run at a time: capacity_weekly" in pools(lost.output)[1]


@pytest.mark.usefixtures("own_dagster_storage")
def test_check_says_that_all_is_fit() -> None:
    capacity("init")

    result = capacity("check", "--json")

    findings = json.loads(result.output)
    assert result.exit_code == 0
    assert {finding["verdict"] for finding in findings} == {"ok", "note"}
    assert [finding["text"] for finding in findings if finding["subject"] == "schema"] == [
        f"revision {SCHEMA_REVISION}, all tables, keys, indexes and triggers are there"
    ]


@pytest.mark.usefixtures("settings")
def test_a_dagster_database_of_another_application_is_refused_before_anything_is_changed(
    own_dagster_storage: URL, engine: Engine
) -> None:
    foreign = create_engine(own_dagster_storage)
    with foreign.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('legacy123')"))
    foreign.dispose()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE instance_size_stats CASCADE"))

    result = capacity("init")

    assert result.exit_code == 1
    assert "holds the alembic version of another application" in result.output
    assert "Give Dagster a database of its own." in result.output
    with engine.connect() as connection:
        assert connection.execute(text("SELECT to_regclass('instance_size_stats')")).scalar() is None


@pytest.mark.parametrize(
    ("name", "verdict", "code", "said"),
    [
        ("CAPACITY_DATABSE_URL", "bad", 2, "Did you mean CAPACITY_DATABASE_URL?"),
        ("CAPACITY_PORT", "note", 0, "is set but not known, so it has no effect"),
    ],
)
def test_check_points_at_a_variable_that_is_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, verdict: str, code: int, said: str
) -> None:
    # Else that of a demo in the same folder is looked at.
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path))
    monkeypatch.setenv(name, "postgresql://dba:hunter2@db/capacity")

    result = capacity("check", "--json")

    [finding] = [finding for finding in json.loads(result.output) if finding["subject"] == name]
    assert (finding["verdict"], result.exit_code) == (verdict, code), result.output
    assert said in finding["text"]
    assert "hunter2" not in result.output


def test_check_names_what_a_table_lacks(settings: Settings, engine: Engine) -> None:
    assert settings.capacity_url is not None
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE database_size_aggregations DROP CONSTRAINT uq_database_size_aggregation"))

    result = capacity("check")

    assert result.exit_code == 1
    assert "database_size_aggregations has no unique key" in " ".join(result.output.split())


def test_check_names_samples_of_a_clock_that_was_ahead_and_a_first_day_of_one_that_is_behind(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.capacity_url is not None
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2999-01-01", [1]))
    monkeypatch.setenv("CAPACITY_START_DATE", "2998-01-01")

    result = capacity("check")

    told = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "database_size_stats bad has samples of days that lie ahead, from 2999-01-01 on, and today is" in told
    assert "CAPACITY_START_DATE bad 2998-01-01, lies ahead: there is no partition yet" in told


def test_check_of_a_broken_configuration_exits_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_START_DATE", "soon")

    result = capacity("check", "--json")

    assert result.exit_code == 2
    assert json.loads(result.output)[0]["subject"] == "CAPACITY_START_DATE"


def test_check_of_an_embedded_server_that_does_not_exist_creates_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path / "home"))

    result = capacity("check")

    assert result.exit_code == 0
    assert "does not exist yet" in " ".join(result.output.split())
    assert not (tmp_path / "home").exists()


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
    assert [(row["rows"], row["days"]) for row in daily] == [(0, None), (0, None)]
    assert "Latest stored window" in capacity("status").output


def test_status_tells_how_much_of_an_open_window_is_over_and_measured(settings: Settings, engine: Engine) -> None:
    today = Clock(settings.zone).today()
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, today.isoformat(), [(10, 1)]))
    assert capacity("aggregate", "--period", "yearly", "--from", today.isoformat()).exit_code == 0

    document = json.loads(capacity("status", "--json").output)

    [days] = [row["days"] for row in document["windows"] if (row["period"], row["level"]) == ("yearly", "instance")]
    year = PERIODS["yearly"].window_of(today)
    so_far = (today - year.start).days + 1
    assert days == f"1 of {so_far}" + (f" so far, {year.days} in all" if so_far < year.days else "")


@pytest.mark.usefixtures("sample")
def test_status_tells_what_is_late_and_what_runs_or_waits(shipped_instance: DagsterInstance) -> None:
    capacity("aggregate", "--period", "weekly", "--from", "2025-01-01", "--to", "2025-07-20")
    tags = {"dagster/partition": "2025-03-01"}
    run = create_run_for_test(shipped_instance, "daily_aggregation_job", status=DagsterRunStatus.STARTED, tags=tags)

    document = json.loads(capacity("status", "--json").output)
    screen = capacity("status").output

    assert [(row["job"], row["partitions"], row["state"]) for row in document["runs"]] == [
        ("daily_aggregation_job", "2025-03-01", "at work")
    ]
    late = {(row["period"], row["level"]): row for row in document["late"]}
    assert ("weekly", "database") not in late, "computed"
    assert late["yearly", "instance"]["reason"] == "has samples, but was never computed"
    assert (late["daily", "database"]["windows"], late["daily", "database"]["first_window"]) == (201, "2025-01-01")
    assert f"{run.run_id[:8]} daily_aggregation_job 2025-03-01 at work" in " ".join(screen.split())
    assert "has samples, but was never computed" in " ".join(screen.split())
    assert not document["daemon_works"]
    assert "No Dagster daemon is at work" in screen


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
        "Whether figures are behind their samples is not known: changes of database_size_stats are not recorded"
        in screen
    )


@pytest.mark.usefixtures("sample")
def test_a_window_whose_samples_just_changed_is_late_where_nobody_follows_or_a_run_has_failed(
    shipped_instance: DagsterInstance, engine: Engine
) -> None:
    assert capacity("aggregate", "--period", "all", "--from", "2025-01-01", "--to", "2025-07-20").exit_code == 0
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


def test_status_says_so_where_there_is_no_dagster_and_nothing_late(settings: Settings) -> None:
    screen = " ".join(capacity("status").output.split())

    assert settings.capacity_url is not None
    assert "Runs: Dagster's storage does not answer or does not exist yet" in screen
    assert "Late: nothing." in screen


def test_the_demo_refuses_a_database_that_holds_other_servers(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [1]))

    result = capacity("demo")

    assert settings.capacity_url is not None
    assert result.exit_code == 1
    assert "holds other servers than the sample fleet (1), and the two do not mix. Nothing was loaded." in result.output


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("command", ["demo", "up --port 3998"])
def test_an_unreachable_dagster_storage_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dba:hunter2@127.0.0.1:9/dagster")

    result = capacity(*command.split())

    assert result.exit_code == 1
    assert "Cannot reach PostgreSQL at postgresql://dba@127.0.0.1:9/dagster" in result.output
    assert "DAGSTER_POSTGRES_URL is right" in result.output
    assert "hunter2" not in result.output


def test_help_shows_every_command_and_examples() -> None:
    overview = capacity("--help").output

    assert all(command in overview for command in ("init", "demo", "up", "aggregate", "status", "check"))
    assert "capacity aggregate --period monthly --from 2025-01-01" in capacity("aggregate", "--help").output


def test_the_log_appears_only_when_asked_for(sample: Settings) -> None:
    environment = {
        **os.environ,
        "CAPACITY_DATABASE_URL": str(sample.database_url and sample.database_url.get_secret_value()),
    }
    arguments = ["aggregate", "--period", "yearly", "--from", "2025-01-01", "--to", "2025-01-01"]

    quiet, told = (run_forked(*options, *arguments, environment=environment, timeout=60) for options in ([], ["-v"]))

    assert (quiet.returncode, told.returncode) == (0, 0)
    assert quiet.stderr == ""
    assert "yearly database and instance aggregates, 1 window: 0 rows written, 24 unchanged" in told.stderr


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "--window", "0001-06-01"),
        ("explain", "x", "--period", "daily", "--window", "0001-01-01"),
        ("export", "--period", "yearly", "--from", "9999-12-31"),
    ],
)
def test_days_at_the_ends_of_the_calendar_are_refused(arguments: tuple[str, ...]) -> None:
    result = capacity(*arguments)

    assert result.exit_code == 2
    assert "lies outside the years 1900 to 2999" in result.output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("capacity pl", "plain,plan"),
        ("capacity aggregate --period mo", "plain,monthly"),
        ("capacity export --level in", "plain,instance"),
        ("capacity export --format pa", "plain,parquet"),
    ],
)
def test_a_shell_completes_commands_periods_and_levels(words: str, offered: str) -> None:
    asked = {"_CAPACITY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}

    completed = subprocess.run(
        [Path(sys.executable).parent / "capacity"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )

    assert completed.stdout.splitlines() == [offered]
