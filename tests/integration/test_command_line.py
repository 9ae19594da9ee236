"""The `capacity` command as its user meets it: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, LEVELS
from capacity_assets.base.settings import Settings
from capacity_assets.database.locks import CapacityLockManager
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instances, add_overflowing_instance, sizes, stored
from tests.forked import run_forked
from tests.servers import free_port


@pytest.mark.usefixtures("sample")
def test_aggregate_computes_a_range_and_prints_a_line_a_period_and_level(engine: Engine) -> None:
    result = capacity("aggregate", "--period", "monthly", "--from", "2025-01-01", "--to", "2025-07-20")

    assert result.exit_code == 0, result.output
    assert "completed: 7 windows: 181 rows written, 0 unchanged, 0 protected." in result.output
    assert [len(stored(engine, level, "monthly")) for level in LEVELS.values()] == [117, 22, 42]


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
    periods = ("daily", "monthly", "quarterly", "weekly", "yearly")
    assert [len(stored(engine, INSTANCE, period)) for period in periods] == [3, 3, 3, 0, 4]


BAD_USAGE = [
    (("--period", "hourly"), "Unknown period 'hourly'; known: daily, weekly, monthly, quarterly, yearly, all."),
    (("--period", "daily", "--level", "rack"), "Unknown level 'rack'; known: database, instance, group, all"),
    (("--period", "daily", "--instance", "99"), "No server '99' is registered"),
    (("--period", "daily", "--from", "2025-03-02", "--to", "2025-03-01"), "is after the last day"),
    (("--period", "daily", "--from", "2019-01-01", "--to", "2019-01-01"), "partition range: the first starts on"),
    (
        ("--period", "daily", "--from", "2999-01-01", "--to", "2999-01-01"),
        "There is no day yet that contains 1 Jan 2999",
    ),
    (("--period", "daily", "--from", "03/01/2025"), "'03/01/2025' is not a day of the calendar; write YYYY-MM-DD"),
    (("--period", "daily", "--from", "2026-02-30"), "'2026-02-30' is not a day of the calendar"),
    (
        ("--period", "yearly", "--from", "2998-12-30", "--to", "2998-12-31"),
        "There is no year yet that contains 30 Dec 2998",
    ),
    (("--period", "hourly", "--period", "all"), "Unknown period 'hourly'"),
    ((), "Missing option '--period'. Choose from: daily, weekly, monthly, quarterly, yearly, all."),
]


@pytest.mark.usefixtures("sample")
def test_bad_usage_exits_with_two_says_why_and_writes_nothing(engine: Engine) -> None:
    for arguments, message in BAD_USAGE:
        result = capacity("aggregate", *arguments)

        assert result.exit_code == 2, arguments
        assert message in result.output, arguments
        assert stored(engine, DATABASE) == stored(engine, INSTANCE) == [], arguments


COMMANDS_CONFIGURED = ["aggregate --period daily", "status", "init", "demo", "up --port 3999"]


def test_a_broken_configuration_exits_with_two_and_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Mars")
    for command in COMMANDS_CONFIGURED:
        result = capacity(*command.split())

        assert result.exit_code == 2, command
        assert "CAPACITY_TIMEZONE: 'Mars' is not a known time zone" in result.output, command


def test_an_unreachable_database_exits_with_one_and_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://dba:hunter2@127.0.0.1:9/capacity")
    for command in ["aggregate --period daily", "status", "init", "check"]:
        result = capacity(*command.split())

        assert result.exit_code == 1, command
        assert "postgresql://dba@127.0.0.1:9/capacity" in " ".join(result.output.split()), command
        assert "hunter2" not in result.output, command


def test_the_demo_refuses_a_database_that_holds_other_servers(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [1]))

    result = capacity("demo")

    assert settings.capacity_url is not None
    assert result.exit_code == 1
    assert "holds servers other than the sample fleet (1), and the two do not mix. Set CAPACITY_HOME" in result.output


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("command", ["demo", "up"])
def test_an_unreachable_dagster_storage_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dba:hunter2@127.0.0.1:9/dagster")

    ports = ("--port", str(free_port()), "--pages-port", str(free_port())) if command == "up" else ()
    result = capacity(command, *ports)

    assert result.exit_code == 1
    assert "Cannot reach PostgreSQL at postgresql://dba@127.0.0.1:9/dagster" in result.output
    assert "DAGSTER_POSTGRES_URL is right" in result.output
    assert "hunter2" not in result.output


def test_the_log_appears_only_when_asked_for(sample: Settings) -> None:
    environment = {
        **os.environ,
        "CAPACITY_DATABASE_URL": str(sample.database_url and sample.database_url.get_secret_value()),
    }
    arguments = ["aggregate", "--period", "yearly", "--from", "2025-01-01", "--to", "2025-01-01"]

    quiet, verbose = (run_forked(*options, *arguments, environment=environment, timeout=60) for options in ([], ["-v"]))

    assert (quiet.returncode, verbose.returncode) == (0, 0)
    assert quiet.stderr == ""
    assert "yearly database, instance and group aggregates, 1 window: 0 rows written, 30 unchanged" in verbose.stderr


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
    assert "is outside the years 1900 to 2999" in result.output


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
