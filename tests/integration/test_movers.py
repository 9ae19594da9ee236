"""What a materialisation says of its window: sums, largest growers and shrinkers, counts and failures, in words."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, SERVER_LEVELS
from capacity_assets.aggregates.runs import InstanceError, PeriodSummary
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.metadata import summary_text
from capacity_assets.reading import lists
from capacity_assets.reading.changes import SizeChange, WindowSizes, window_sizes
from capacity_assets.reading.lists import databases, most_changed
from tests.computing import compute_windows
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    load_sample,
    sizes,
    stored,
    totals,
)
from tests.runs import metadata_of, run_range

MARCH = PERIODS["monthly"].window_of(date(2025, 3, 1))
APRIL = PERIODS["monthly"].window_of(date(2025, 4, 1))


def test_growers_and_shrinkers_are_the_stored_rows_that_changed_most(
    engine: Engine, service: AggregationService
) -> None:
    load_sample(engine)
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 7, 20))

    for level in SERVER_LEVELS.values():
        found = window_sizes(engine, PERIODS["monthly"], level, [MARCH, APRIL], largest=3)
        for window in (MARCH, APRIL):
            rows = [row for row in stored(engine, level, "monthly") if row["period_start"] == window.start]
            changes = [row[level.headline.change] for row in rows if row[level.headline.change] is not None]
            sums = found[window.start]
            servers = [row for row in stored(engine, INSTANCE, "monthly") if row["period_start"] == window.start]
            assert sums.total_size_mb == sum(row["total_size_mb"] for row in servers)  # type: ignore[misc]
            assert sums.total_change_mb == sum(row["total_size_change_mb"] or 0 for row in servers)  # type: ignore[misc]
            assert sums.unknown_changes == len(rows) - len(changes)
            grown = sorted((change for change in changes if change > 0), reverse=True)
            shrunk = sorted(change for change in changes if change < 0)
            assert [mover.change_mb for mover in sums.growers] == grown[:3]
            assert [mover.change_mb for mover in sums.shrinkers] == shrunk[:3]


@pytest.mark.parametrize("tried", [1, 5, 2000])
def test_the_largest_changes_of_a_day_are_those_of_its_lists_whichever_rows_are_read_first(
    engine: Engine, service: AggregationService, monkeypatch: pytest.MonkeyPatch, tried: int
) -> None:
    monkeypatch.setattr(lists, "ROWS_TRIED", tried)
    add_instances(engine, [1, 2])
    add_instances(engine, [3], counted_by=1)
    for number in range(24):
        # Equal changes, none, and databases without a day before.
        change = (number % 7 - 3) * 10
        first = date(2025, 3, 1) if number % 6 else date(2025, 3, 2)
        history = [100, 100 + change] if number % 6 else [100]
        add_database_sizes(engine, sizes(1 + number % 3, f"db-{number}", first.isoformat(), history))
    compute_windows(service, "daily", date(2025, 3, 1), date(2025, 3, 2))
    daily, day = PERIODS["daily"], PERIODS["daily"].window_of(date(2025, 3, 2))

    with engine.connect() as connection:
        for shown in (1, 3, 50):
            grown, _ = databases(connection, daily, day, order="growth", shown=shown)
            shrunk, _ = databases(connection, daily, day, order="shrinkage", shown=shown)
            assert most_changed(connection, daily, day, shown=shown) == (
                True,
                [row for row in grown if row.change_mb and row.change_mb > 0],
                shrunk,
            )
        assert len(shrunk) == 7
        assert most_changed(connection, daily, daily.previous(day), shown=3) == (False, [], [])


def test_a_mover_has_the_size_of_the_window_before_and_where_that_is_gone_the_size_it_must_have_had(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100] * 31 + [160] * 30))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(100, 1)] * 31 + [(160, 1)] * 30))
    compute_windows(service, "monthly", date(2025, 3, 1), date(2025, 4, 30))

    assert window_sizes(engine, PERIODS["monthly"], DATABASE, [APRIL])[APRIL.start] == WindowSizes(
        160, 60, 100, 0, growers=(SizeChange("server-1", "orders", 100, 160, 60),)
    )
    assert window_sizes(engine, PERIODS["monthly"], INSTANCE, [APRIL])[APRIL.start] == WindowSizes(
        160, 60, 100, 0, growers=(SizeChange("server-1", None, 100, 160, 60),)
    )
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_aggregations WHERE period_start = '2025-03-01'"))
    [grower] = window_sizes(engine, PERIODS["monthly"], DATABASE, [APRIL])[APRIL.start].growers
    assert grower.before_mb == 100


def test_a_window_without_rows_adds_up_to_nothing(engine: Engine) -> None:
    assert window_sizes(engine, PERIODS["monthly"], DATABASE, [MARCH]) == {MARCH.start: WindowSizes()}


def test_each_partition_shows_its_summary_with_the_failed_server_named(settings: Settings, engine: Engine) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, "2025-03-01", [(1024, 1)] * 31 + [(2560, 1)] * 30))
    add_instances(engine, [9])
    add_overflowing_instance(engine, 9, date(2025, 4, 1))

    result = run_range(settings, "monthly_aggregation_job", "2025-03-01", "2025-04-01")

    shown = metadata_of(result, "monthly_instance_aggregations")["2025-04-01"]["summary"]
    assert "| Servers | processed | failed | skipped |\n| --- | --- | --- | --- |\n|  | 1 | 1 | 0 |" in shown
    assert "server 9 (server-9)" in shown
    assert "| server-1 | 1.0 GiB | 2.5 GiB | +1.5 GiB |" in shown
    assert "**Largest shrinkers**: none" in shown


@pytest.mark.parametrize(
    "name", ["x\n# head | y", "a|b", "<script>alert(1)</script>", "[x](javascript:alert)", "`c`", "*d*"]
)
def test_no_name_is_read_as_markup(name: str) -> None:
    summary = PeriodSummary(
        "daily", "database", date(2025, 1, 1), date(2025, 1, 1), 1, 1, errors=(InstanceError(1, name, "of no use"),)
    )
    mover = SizeChange(name, name, 1, 2, 1)

    shown = summary_text(summary, WindowSizes(growers=(mover,), shrinkers=(mover,)))

    bare = shown.replace("\\\\", "")
    for mark in "|<>[]`*":
        if mark in name:
            assert f"\\{mark}" in bare
    assert name not in shown
    assert "\n#" not in shown, "a name stays in its line"
