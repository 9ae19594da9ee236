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
    names_of_level,
)
from capacity_assets.aggregates.levels import SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.partitions import partitions_of
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, add_overflowing_instance, sizes, totals
from tests.runs import run_range

MARCH = PERIODS["monthly"].windows_between(date(2025, 3, 1), date(2025, 3, 31))
FIRST_DAYS = PERIODS["daily"].windows_between(date(2025, 3, 1), date(2025, 3, 3))


def looked_at(
    runner: AggregationTaskRunner, period: str, windows: Any, level: str, day: str | None = None
) -> dict[str, CheckOutcome]:
    """What each check found in the window from `day` on, by default the one with most places."""
    summary = runner.run_period(period, windows, RunOptions((level,)))
    outcomes = sorted(runner.run_checks(summary, level), key=lambda one: one.places)
    return {one.name: one for one in outcomes if day in (None, str(one.period_start))}


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
    assert outcome.text.startswith("2 found. Means and changes of these windows are based on fewer days.")
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


def test_windows_outside_a_run_are_named_where_they_call_a_person(
    engine: Engine, runner: AggregationTaskRunner
) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -6, 7]))
    add_overflowing_instance(engine, 2, date(2025, 3, 2))
    looked_at(runner, "daily", FIRST_DAYS, "database")
    looked_at(runner, "daily", FIRST_DAYS, "instance")

    later = PERIODS["daily"].windows_between(date(2025, 4, 1), date(2025, 4, 1))
    summary = {level: runner.run_period("daily", later, RunOptions((level,))) for level in ("database", "instance")}
    databases, servers = (
        {
            (one.name, str(one.period_start)): one.listed
            for one in runner.run_checks(summary[level], level)
            if not one.passed and one.severity == "error"
        }
        for level in summary
    )

    place = "server-1, orders: an impossible size or count in the window from 2025-03-02"
    assert databases == {("values_possible", "2025-03-02"): (place,)}
    # The day after is compared with the one of the impossible size.
    assert servers == {(SERVERS_STORED, f"2025-03-0{day}"): ("1 server failed",) for day in (2, 3)}


def test_an_open_window_is_not_forgotten_either(engine: Engine, runner: AggregationTaskRunner) -> None:
    """Today is 2025-07-20."""
    add_instances(engine, [1])
    add_database_sizes(engine, [*sizes(1, "orders", "2025-03-01", [5]), *sizes(1, "orders", "2025-07-01", [-5])])
    looked_at(runner, "monthly", PERIODS["monthly"].windows_between(date(2025, 7, 1), date(2025, 7, 1)), "database")

    outcome = looked_at(runner, "monthly", MARCH, "database", "2025-07-01")["values_possible"]

    assert outcome.listed == ("server-1, orders: an impossible size or count in the window from 2025-07-01",)


@pytest.mark.parametrize("level", SERVER_LEVELS.values(), ids=SERVER_LEVELS)
def test_impossible_values_of_years_are_found_by_an_index_of_just_these(engine: Engine, level: Level) -> None:
    """Without it, a run of one day would read the whole history."""
    windows = PERIODS["daily"].windows_between(date(2025, 1, 1), date(2025, 7, 20))
    scope = CheckScope("daily", level, windows, date(2025, 7, 20), 100)
    [check] = [check for check in CHECKS if check.name == "values_possible"]
    statement = text(f"EXPLAIN {check.statement.format(**names_of_level(level))}")
    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        plan = connection.execute(statement, scope.parameters()).scalars().all()

    assert not [line for line in plan if "Filter" in line and "min_" in line], plan


def evaluations(result: dg.ExecuteInProcessResult, asset: str, check: str) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        str(one.partition): one
        for one in result.get_asset_check_evaluations()
        if (one.asset_key, one.check_name) == (dg.AssetKey(asset), check)
    }


def statuses(instance: dg.DagsterInstance, settings: Settings, asset: str, check: str) -> dict[str, set[str]]:
    """The partitions by what Dagster shows of a check."""
    key, partitions = dg.AssetCheckKey(dg.AssetKey(asset), check), partitions_of(PERIODS["daily"], settings)
    [state] = instance.event_log_storage.get_asset_check_state([(key, partitions)]).values()
    found = {status.name: subset.value for status, subset in state.subsets.items() if not subset.is_empty}
    return {name: set(subset.get_partition_keys()) for name, subset in found.items()}  # type: ignore[union-attr]


DATABASES, SERVERS = "daily_database_aggregations", "daily_instance_aggregations"
DAYS = ["2025-03-01", "2025-03-02", "2025-03-03"]


def test_a_range_run_gives_each_partition_results_of_its_own(
    settings: Settings, engine: Engine, shipped_instance: dg.DagsterInstance
) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "<b>orders</b>", "2025-03-01", [5, -6, 7]))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(5, 1), (6, 1), (7, 1)]))
    add_overflowing_instance(engine, 2, date(2025, 3, 2))

    result = run_range(settings, "daily_aggregation_job", DAYS[0], DAYS[-1], instance=shipped_instance)

    assert result.success, "a failed check does not fail the run"
    passed = {
        name: [one.passed for one in evaluations(result, DATABASES, name).values()]
        for name in ("servers_stored", "samples_complete", "values_possible", "jumps_named")
    }
    assert passed == {
        "servers_stored": [True, True, True],
        "samples_complete": [True, True, True],
        "values_possible": [True, False, True],
        "jumps_named": [True, False, False],
    }
    possible, stored = evaluations(result, DATABASES, "values_possible"), evaluations(result, SERVERS, "servers_stored")
    assert list(possible) == list(stored) == DAYS
    assert [one.passed for one in stored.values()] == [True, False, False]
    assert stored[DAYS[1]].severity is dg.AssetCheckSeverity.ERROR
    assert "server 2 (server-2): bigint out of range" in str(stored[DAYS[1]].description)
    metadata = possible[DAYS[1]].metadata
    assert (metadata["first_partition"].value, metadata["last_partition"].value) == (DAYS[1], DAYS[1])
    assert metadata["places"].value == 1
    assert "\\<b\\>orders" in str(metadata["found"].value), "names are no markup"
    assert "\\<b\\>orders" in str(possible[DAYS[1]].description), "nor are those in the text"
    [complete] = evaluations(result, SERVERS, "partitions_complete").values()
    assert (complete.passed, complete.severity) == (False, dg.AssetCheckSeverity.WARN), "the daily look calls a person"
    assert "2025-03-02 to 2025-03-03, 2 windows: servers that failed in it: 1" in str(complete.description)
    shown = statuses(shipped_instance, settings, DATABASES, "values_possible")
    assert shown == {"SUCCEEDED": {DAYS[0], DAYS[2]}, "FAILED": {DAYS[1]}}


def test_a_partition_that_calls_a_person_stays_red_until_it_is_mended_whichever_partitions_a_run_computes(
    settings: Settings, engine: Engine, shipped_instance: dg.DagsterInstance, runner: AggregationTaskRunner
) -> None:
    """Regression: a run of another day made the check green although the negative value was still stored."""

    def run(day: str) -> dict[str, bool]:
        level = {"asset_selection": [dg.AssetKey(DATABASES)], "instance": shipped_instance}
        result = run_range(settings, "daily_aggregation_job", day, day, **level)
        return {key: one.passed for key, one in evaluations(result, DATABASES, "values_possible").items()}

    def shown() -> set[str]:
        return statuses(shipped_instance, settings, DATABASES, "values_possible").get("FAILED", set())

    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -6, -7, 8]))
    # The command line computes the third day, of which Dagster knows nothing.
    runner.run_period("daily", PERIODS["daily"].windows_between(date(2025, 3, 3), date(2025, 3, 3)))
    assert run(DAYS[1]) == {DAYS[1]: False, DAYS[2]: False}
    assert run("2025-03-04") == {"2025-03-04": True}, "what is known is not told again"
    assert shown() == set(DAYS[1:])

    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 6 WHERE size_mb = -6"))
    assert run(DAYS[1]) == {DAYS[1]: True}
    assert shown() == {DAYS[2]}
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 6 WHERE size_mb = -7"))
    runner.run_period("daily", PERIODS["daily"].windows_between(date(2025, 3, 3), date(2025, 3, 3)))
    assert run("2025-03-04") == {"2025-03-04": True, DAYS[2]: True}, "mended elsewhere"
    assert shown() == set()
