"""Runs in the legacy application's tables of runs, on tables as its two versions have them."""

from __future__ import annotations

import logging
from datetime import date

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.database.locks import CapacityLockManager, LockHeldError
from capacity_assets.runtime import task_runner
from tests.clocks import fixed_clock
from tests.databases import execute, rows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, add_overflowing_instance, sizes, totals

NEWER = """
CREATE TABLE task_runs (
    id serial PRIMARY KEY, run_id varchar(36) NOT NULL UNIQUE, task_key varchar(128) NOT NULL,
    task_name varchar(255) NOT NULL, task_category varchar(50) NOT NULL, trigger_source varchar(20) NOT NULL,
    status varchar(20) NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'failed', 'cancelled')),
    started_at timestamptz NOT NULL DEFAULT now(), completed_at timestamptz, created_by integer,
    progress_total integer NOT NULL DEFAULT 0, progress_completed integer NOT NULL DEFAULT 0,
    progress_failed integer NOT NULL DEFAULT 0, summary_json jsonb, result_url varchar(255), error_message text,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())
"""
OLDER = """
CREATE TABLE sync_sessions (
    id serial PRIMARY KEY, session_id varchar(36) NOT NULL UNIQUE, sync_type varchar(20) NOT NULL,
    sync_category varchar(20) NOT NULL DEFAULT 'account', status varchar(20) NOT NULL DEFAULT 'running',
    started_at timestamptz NOT NULL DEFAULT now(), completed_at timestamptz, total_instances integer DEFAULT 0,
    successful_instances integer DEFAULT 0, failed_instances integer DEFAULT 0, created_by integer,
    created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now())
"""
DAY = date(2025, 3, 1)


@pytest.fixture
def recording(
    engine: Engine,
    settings: Settings,  # noqa: ARG001 -- sets the environment that is read anew
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """Two servers measured on a day, and the option on."""
    add_instances(engine, [1, 2])
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", DAY.isoformat(), [100]))
        add_instance_sizes(engine, totals(number, DAY.isoformat(), [(100, 1)]))
    monkeypatch.setenv("CAPACITY_LEGACY_RUNS", "on")
    return Settings()


def run(engine: Engine, settings: Settings) -> None:
    runner = task_runner(engine, settings, clock=fixed_clock())
    runner.run_period("daily", [PERIODS["daily"].window_of(DAY)])


def test_a_run_is_one_row_of_the_newer_table_where_both_exist(engine: Engine, recording: Settings) -> None:
    execute(engine, NEWER, OLDER)

    run(engine, recording)

    query = (
        "SELECT task_name, task_category, status, progress_total, progress_completed, progress_failed, error_message, "
        "length(run_id), completed_at >= started_at FROM task_runs"
    )
    assert rows(engine, query) == [
        ("daily aggregates, 2025-03-01", "aggregation", "completed", 2, 2, 0, None, 36, True)
    ]
    assert rows(engine, "SELECT count(*) FROM sync_sessions") == [(0,)]


def test_a_failed_server_fails_the_run_in_the_older_table_too(engine: Engine, recording: Settings) -> None:
    execute(engine, OLDER)
    add_instances(engine, [3])
    add_overflowing_instance(engine, 3, DAY)

    run(engine, recording)

    query = "SELECT sync_category, status, total_instances, successful_instances, failed_instances FROM sync_sessions"
    assert rows(engine, query) == [("aggregation", "failed", 3, 2, 1)]


def test_a_run_that_ends_in_an_error_is_told_and_one_for_a_single_server_is_not(
    engine: Engine, recording: Settings
) -> None:
    execute(engine, NEWER)
    runner = task_runner(engine, recording, clock=fixed_clock())
    day = PERIODS["daily"].window_of(DAY)
    runner.run_period("daily", [day], RunOptions(("database",), instance_ids=[1]))
    with CapacityLockManager(engine).job_lock("daily"), pytest.raises(LockHeldError):
        runner.run_period("daily", [day], RunOptions(("database",)))

    [(name, status, error)] = rows(engine, "SELECT task_name, status, error_message FROM task_runs")
    assert (name, status) == ("daily database aggregates, 2025-03-01", "failed")
    assert str(error).startswith("The daily aggregates are being written by")


def test_a_table_that_refuses_does_no_harm_and_the_log_says_so(
    engine: Engine, recording: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    execute(engine, NEWER, "ALTER TABLE task_runs ADD COLUMN theirs text NOT NULL")

    with caplog.at_level(logging.WARNING):
        run(engine, recording)

    assert "could not be entered in the legacy application's table: null value in column" in caplog.text
    assert rows(engine, "SELECT count(*) FROM database_size_aggregations") == [(2,)]


def test_without_the_option_nothing_is_told_and_without_a_table_the_log_says_so(
    engine: Engine, recording: Settings, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(engine, recording)
    assert "there is neither task_runs nor sync_sessions" in caplog.text

    execute(engine, NEWER)
    run(engine, settings)
    assert rows(engine, "SELECT count(*) FROM task_runs") == [(0,)]
