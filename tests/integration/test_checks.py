"""Checks on a real database: what they find, where, how much, and what they say to do."""

from __future__ import annotations

from datetime import date
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.checks import (
    CHECKS,
    SERVERS_STORED,
    CheckOutcome,
    CheckScope,
    level_parts,
)
from capacity_assets.aggregates.levels import SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, add_overflowing_instance, sizes, totals
from tests.runs import run_range

MARCH = PERIODS["monthly"].windows_between(date(2025, 3, 1), date(2025, 3, 31))
FIRST_DAYS = PERIODS["daily"].windows_between(date(2025, 3, 1), date(2025, 3, 3))


def looked_at(runner: AggregationTaskRunner, period: str, windows: Any, level: str) -> dict[str, CheckOutcome]:
    summary = runner.run_period(period, windows, RunOptions((level,)))
    return {outcome.name: outcome for outcome in runner.run_checks(summary, level)}


@pytest.mark.parametrize("level", SERVER_LEVELS)
def test_a_fleet_measured_completely_passes_every_check(
    engine: Engine, runner: AggregationTaskRunner, level: str
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-02-01", [1000] * 59))
    add_instance_sizes(engine, totals(1, "2025-02-01", [(1000, 1)] * 59))

    outcomes = looked_at(runner, "monthly", MARCH, level)

    assert {name: outcome.text for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "Nothing found.")
    assert set(outcomes) == {SERVERS_STORED, *(check.name for check in CHECKS if level in check.levels)}


def test_missing_days_are_counted_from_the_first_sample_on_and_up_to_today(
    engine: Engine, runner: AggregationTaskRunner
) -> None:
    """Today is 2025-07-20: July has twenty days so far; the second server began on the eleventh and misses none."""
    add_instances(engine, [1, 2, 3, 4])
    add_instances(engine, [5], is_active=False)
    add_database_sizes(engine, sizes(1, "orders", "2025-06-30", [5] * 3 + [None] * 10 + [5] * 8))
    add_database_sizes(engine, sizes(2, "orders", "2025-07-11", [5] * 10))
    add_database_sizes(engine, sizes(3, "orders", "2025-06-01", [5]))
    add_database_sizes(engine, sizes(5, "orders", "2025-06-01", [5]))
    july = PERIODS["monthly"].windows_between(date(2025, 7, 1), date(2025, 7, 1))

    outcome = looked_at(runner, "monthly", july, "database")["samples_complete"]

    assert outcome.listed == (
        "server-3: days measured in the window from 2025-07-01: 0 of 20",
        "server-1: days measured in the window from 2025-07-01: 10 of 20",
    )
    assert outcome.text.startswith("2 found. Means and changes of these windows rest on fewer days.")
    assert outcome.severity == "warn"


def test_void_days_do_not_count_as_measured(engine: Engine, runner: AggregationTaskRunner) -> None:
    add_instances(engine, [1])
    rows = [
        {**row, "is_deleted": row["collected_date"] == date(2025, 3, 2)}
        for row in totals(1, "2025-03-01", [(9, 1)] * 3)
    ]
    add_instance_sizes(engine, rows)

    outcome = looked_at(runner, "daily", FIRST_DAYS, "instance")["samples_complete"]

    assert outcome.listed == ("server-1: days measured in the window from 2025-03-02: 0 of 1",)


@pytest.mark.parametrize("level", SERVER_LEVELS)
def test_negative_values_call_a_person(engine: Engine, runner: AggregationTaskRunner, level: str) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -6]))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(5, 1), (-6, 1)]))

    outcome = looked_at(runner, "daily", FIRST_DAYS, level)["values_possible"]

    what = "orders" if level == "database" else "all databases"
    assert outcome.listed == (f"server-1, {what}: an impossible size or count in the window from 2025-03-02",)
    assert outcome.severity == "error"


def test_jumps_beyond_the_bound_are_named_the_largest_first(engine: Engine, runner: AggregationTaskRunner) -> None:
    add_instances(engine, [1])
    for name, after in (("doubled", 200), ("more", 201), ("exploded", 100_000), ("emptied", 0)):
        add_database_sizes(engine, sizes(1, name, "2025-03-01", [100, after]))
    add_database_sizes(engine, sizes(1, "loaded", "2025-03-01", [0, 5_000_000]))
    add_database_sizes(engine, sizes(1, "begun", "2025-03-01", [0, 1023]))

    outcome = looked_at(runner, "daily", FIRST_DAYS, "database")["jumps_named"]

    assert outcome.listed == (
        "server-1, loaded: from 0 (5000000 MiB) in the window from 2025-03-02",
        "server-1, exploded: 99900.00 % (99900 MiB) in the window from 2025-03-02",
        "server-1, more: 101.00 % (101 MiB) in the window from 2025-03-02",
    )


def test_days_on_which_the_two_levels_disagree_are_told_with_both_sums(
    engine: Engine, runner: AggregationTaskRunner
) -> None:
    """Off by one percent, or by a gigabyte, is rounding; a server without database samples is off by all of it."""
    add_instances(engine, [1, 2, 3])
    add_database_sizes(engine, sizes(1, "a", "2025-03-01", [300_000, 300_000, 300_000]))
    add_database_sizes(engine, sizes(1, "b", "2025-03-01", [200_000, 200_000, 200_000]))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(500_000, 2), (504_000, 2), (506_000, 2)]))
    add_database_sizes(engine, sizes(2, "small", "2025-03-01", [10, 10, 10]))
    add_instance_sizes(engine, totals(2, "2025-03-01", [(10, 1), (1_034, 1), (1_035, 1)]))
    add_instance_sizes(engine, totals(3, "2025-03-03", [(70_000, 1)]))

    outcome = looked_at(runner, "daily", FIRST_DAYS, "instance")["levels_agree"]

    assert outcome.listed == (
        "server-3 on 2025-03-03: databases 0 MiB, server 70000 MiB",
        "server-1 on 2025-03-03: databases 500000 MiB, server 506000 MiB",
        "server-2 on 2025-03-03: databases 10 MiB, server 1035 MiB",
    )


def test_only_twenty_places_are_listed_and_all_are_counted(engine: Engine, runner: AggregationTaskRunner) -> None:
    add_instances(engine, range(1, 31))
    for instance_id in range(1, 31):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [-1]))

    outcome = looked_at(runner, "daily", FIRST_DAYS[:1], "database")["values_possible"]

    assert (outcome.places, len(outcome.listed)) == (30, 20)
    assert outcome.text.splitlines()[-1] == "… and 10 more"


def test_what_calls_a_person_stays_red_until_it_is_mended_whichever_windows_a_run_computes(
    engine: Engine, runner: AggregationTaskRunner
) -> None:
    """Regression: a run of another day made the check green although the negative value was still stored."""
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -6, 7]))
    add_overflowing_instance(engine, 2, date(2025, 3, 2))
    looked_at(runner, "daily", FIRST_DAYS, "database")
    looked_at(runner, "daily", FIRST_DAYS, "instance")

    later = PERIODS["daily"].windows_between(date(2025, 4, 1), date(2025, 4, 1))
    databases = looked_at(runner, "daily", later, "database")
    servers = looked_at(runner, "daily", later, "instance")

    assert databases["values_possible"].listed == (
        "server-1, orders: an impossible size or count in the window from 2025-03-02",
    )
    # The day after is compared with the one of the impossible size.
    assert servers[SERVERS_STORED].listed == ("2025-03-02: 1 server failed", "2025-03-03: 1 server failed")
    assert databases["jumps_named"].passed, "what informs looks at the windows of the run"

    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 6 WHERE size_mb < 0"))
        connection.execute(text("DELETE FROM instance_size_stats WHERE instance_id = 2"))
    looked_at(runner, "daily", FIRST_DAYS, "instance")
    assert all(outcome.passed for outcome in looked_at(runner, "daily", FIRST_DAYS[1:2], "database").values())
    assert looked_at(runner, "daily", later, "instance")[SERVERS_STORED].passed


def test_an_open_window_is_not_forgotten_either(engine: Engine, runner: AggregationTaskRunner) -> None:
    """Today is 2025-07-20."""
    add_instances(engine, [1])
    add_database_sizes(engine, [*sizes(1, "orders", "2025-03-01", [5]), *sizes(1, "orders", "2025-07-01", [-5])])
    looked_at(runner, "monthly", PERIODS["monthly"].windows_between(date(2025, 7, 1), date(2025, 7, 1)), "database")

    outcome = looked_at(runner, "monthly", MARCH, "database")["values_possible"]

    assert outcome.listed == ("server-1, orders: an impossible size or count in the window from 2025-07-01",)


@pytest.mark.parametrize("level", SERVER_LEVELS.values(), ids=SERVER_LEVELS)
def test_impossible_values_of_years_are_found_by_an_index_of_just_these(engine: Engine, level: Level) -> None:
    """Without it, a run of one day would read the whole history."""
    windows = PERIODS["daily"].windows_between(date(2025, 1, 1), date(2025, 7, 20))
    scope = CheckScope("daily", level, windows, date(2025, 7, 20), 100)
    [check] = [check for check in CHECKS if check.name == "values_possible"]
    statement = text(f"EXPLAIN {check.statement.format(**level_parts(level))}")
    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        plan = connection.execute(statement, scope.parameters()).scalars().all()

    assert not [line for line in plan if "Filter" in line and "min_" in line], plan


def evaluations(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    found = {}
    for event in result.get_asset_check_evaluations():
        if event.asset_key == dg.AssetKey(asset):
            found[event.check_name] = event
    return found


def test_a_range_run_evaluates_every_check_of_both_assets_for_its_partitions(
    settings: Settings, engine: Engine
) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "<b>orders</b>", "2025-03-01", [5, -6, 7]))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(5, 1), (6, 1), (7, 1)]))
    add_overflowing_instance(engine, 2, date(2025, 3, 2))

    result = run_range(settings, "daily_aggregation_job", "2025-03-01", "2025-03-03")

    assert result.success, "a failed check does not fail the run"
    databases = evaluations(result, "daily_database_aggregations")
    servers = evaluations(result, "daily_instance_aggregations")
    assert {name: check.passed for name, check in databases.items()} == {
        "servers_stored": True,
        "samples_complete": True,
        "values_possible": False,
        "jumps_named": False,
        "partitions_complete": True,
    }
    assert not servers["partitions_complete"].passed
    assert servers["partitions_complete"].severity is dg.AssetCheckSeverity.WARN, "the daily look calls a person"
    failed = "2025-03-02 to 2025-03-03, 2 windows: servers that failed in it: 1"
    assert failed in str(servers["partitions_complete"].description)
    assert not servers["servers_stored"].passed
    assert servers["servers_stored"].severity is dg.AssetCheckSeverity.ERROR
    assert "server 2 (server-2): bigint out of range" in str(servers["servers_stored"].description)
    metadata = databases["values_possible"].metadata
    assert (metadata["first_partition"].value, metadata["last_partition"].value) == ("2025-03-01", "2025-03-03")
    assert metadata["places"].value == 1
    assert "\\<b\\>orders" in str(metadata["found"].value), "names are no markup"
    assert "\\<b\\>orders" in str(databases["values_possible"].description), "nor are those in the text"
