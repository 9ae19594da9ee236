"""Work that does not grow by itself: statements, slices, plans, and what a long run says meanwhile."""

from __future__ import annotations

import logging
import re
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from capacity_assets.aggregates import runs
from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.reading.lists import databases
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import FIRST_WEEK, add_database_sizes, add_instance_sizes, add_instances, sizes, stored, totals


@pytest.mark.single_server("counts the statements of a single server")
def test_the_number_of_statements_depends_neither_on_the_fleet_nor_on_the_windows(engine: Engine) -> None:
    service = AggregationService(engine, fixed_clock(), parallel_slices=1)
    with CapacityLockManager(engine).job_lock("daily"):
        pass  # enters the row of the lock
    counts = {}
    for fleet in (10, 200):
        new = range(1 if fleet == 10 else 11, fleet + 1)
        add_instances(engine, new)
        for instance_id in new:
            add_database_sizes(engine, sizes(instance_id, "orders", "2025-01-01", range(100, 120)))
        for days in (1, 20):
            service.ledger.stale()  # enters the days of servers that were just registered
            statements: list[str] = []

            def count(
                _connection: object, _cursor: object, statement: str, *_: object, seen: list[str] = statements
            ) -> None:
                seen.append(statement)

            event.listen(engine, "before_cursor_execute", count)
            last_day = date(2025, 1, 1) + timedelta(days=days - 1)
            compute_windows(service, "daily", date(2025, 1, 1), last_day)
            event.remove(engine, "before_cursor_execute", count)
            counts[fleet, days] = len(statements)

    expected = (
        "three for the schema and zone, two for the lock, two for the queue of changes, two for the ledger, the "
        "servers; per level a setting, its statement, one for the guard, and the ledger; six for the days of groups; "
        "two for the measured days; and per level, the first time, which windows have rows"
    )
    assert counts == {(10, 1): 33, (10, 20): 33, (200, 1): 30, (200, 20): 30}, expected


@pytest.mark.single_server("reads the plan or the settings of its statement")
@pytest.mark.parametrize("overwrite", [False, True], ids=["kept", "overwritten"])
@pytest.mark.parametrize("days", [1, 7], ids=["one window", "several windows"])
def test_the_plan_does_not_loop_over_stored_rows_when_the_statistics_know_nothing_of_them(
    engine: Engine, service: AggregationService, days: int, *, overwrite: bool
) -> None:
    """A period computed for the first time: the planner expects one stored row, and looping made minutes of seconds."""
    add_instances(engine, range(1, 31))
    for instance_id in range(1, 31):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", range(100, 110)))
    execute(engine, "ANALYZE")
    windows = FIRST_WEEK[:days]
    service.aggregate("daily", windows)
    plans: list[str] = []

    def explain(
        connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> tuple[str, Any]:
        if statement.startswith("WITH classified"):
            plans.extend(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
        return statement, parameters

    event.listen(engine, "before_cursor_execute", explain, retval=True)
    service.aggregate("daily", windows, RunOptions(overwrite=overwrite, recompute=True))
    event.remove(engine, "before_cursor_execute", explain)

    assert any("Hash" in line or "Merge" in line for line in plans)
    scans = [
        " ".join(plans[number : number + 3])
        for number, line in enumerate(plans)
        if re.search(r"Scan .*on \w+_size_aggregations", line)
    ]
    # In the month and, for the day before, in the one before; in no other partition.
    assert {name for scan in scans for name in re.findall(r"_daily_(\d+_\d+)", scan)} == {"2025_02", "2025_03"}
    assert all("period_start = ANY" in scan for scan in scans), "stored rows are read by window, never all of them"
    assert not any("Nested Loop" in line for line in plans), "\n".join(plans)


def test_a_long_run_says_in_its_log_how_far_it_is_and_a_short_one_does_not(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = AggregationService(engine, fixed_clock(), instances_per_slice=2)
    add_instances(engine, range(1, 6))
    caplog.set_level(logging.INFO, "capacity_assets")

    service.aggregate("daily", FIRST_WEEK, RunOptions(("database",)))
    assert caplog.messages == []
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_LINES", 0)
    service.aggregate("daily", FIRST_WEEK, RunOptions(("database",), recompute=True))

    assert caplog.messages == [
        "daily database aggregates: 2 of 5 servers written so far",
        "daily database aggregates: 4 of 5 servers written so far",
    ]


@pytest.mark.nightly("computes a long range")
def test_a_long_range_goes_in_slices_that_bound_the_days_read_at_once(engine: Engine) -> None:
    service = AggregationService(engine, fixed_clock())
    add_instances(engine, range(1, 301))
    add_instance_sizes(engine, totals(300, "2025-01-01", [(100, 1)] * 500))
    slices: list[int] = []

    run = compute_windows(service, "daily", date(2025, 1, 1), date(2026, 5, 15), scope="instance")
    service.aggregate(
        "daily",
        PERIODS["daily"].windows_between(date(2025, 1, 1), date(2026, 5, 15)),
        RunOptions(("instance",), recompute=True, progress=slices.append),
    )

    expected = "five hundred days, none of which has samples of a year before, at most 10,000 server-days at once"
    assert slices == [20] * 15, expected
    assert len(run.summaries) == 500
    assert all(part.total_instances == 300 for part in run.summaries)
    assert run.total("written_records") == 500


@pytest.mark.single_server("counts the statements of a single server")
def test_scattered_windows_take_one_statement_a_level_and_leave_those_between_alone(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", range(100, 200)))
    days = PERIODS["daily"].windows_between(date(2025, 3, 2), date(2025, 6, 8))[::2]
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    run = service.aggregate("daily", days, RunOptions(("database",)))
    event.remove(engine, "before_cursor_execute", count)

    expected = (
        "three for the schema and zone, five for the lock and its row; two for the queue of changes, three for the "
        "days of the new server, two for the ledger, the servers; the windows with rows, a setting, its statement, one "
        "for the guard, and the ledger; the measured days; one asks whether tables are distributed"
    )
    assert len(statements) == 23, expected
    assert [part.period_start for part in run.summaries] == [window.start for window in days]
    rows = stored(engine, DATABASE)
    assert [row["period_start"] for row in rows] == [window.start for window in days]
    assert {row["size_change_mb"] for row in rows} == {1}, "compared with the day before, which was not asked for"


@pytest.mark.single_server("reads the plan or the settings of its statement")
def test_a_window_without_rows_is_inserted_beside_stored_ones_and_recomputed_by_the_whole_statement(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 110, 120]))
    compute_windows(service, "daily", date(2025, 3, 1), date(2025, 3, 2))
    add_database_sizes(engine, sizes(2, "billing", "2025-03-02", [500, 510]))
    beginnings: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("WITH inserted", "WITH classified")):
            beginnings.append(statement.split(" AS ", maxsplit=1)[0])

    event.listen(engine, "before_cursor_execute", record)
    third_day = PERIODS["daily"].windows_between(date(2025, 3, 3), date(2025, 3, 3))
    service.aggregate("daily", third_day, RunOptions(("database",)))
    service.aggregate("daily", FIRST_WEEK[1:2], RunOptions(("database",)))
    event.remove(engine, "before_cursor_execute", record)

    assert beginnings == ["WITH inserted", "WITH classified"]
    changes = {(row["instance_id"], row["period_start"].day): row["size_change_mb"] for row in stored(engine, DATABASE)}
    assert changes == {(1, 1): None, (1, 2): 10, (1, 3): 10, (2, 2): None, (2, 3): 10}
    recomputed = service.aggregate("daily", third_day, RunOptions(("database",), recompute=True))
    assert recomputed.total("unchanged_records") == 2


@pytest.mark.single_server("reads the plan or the settings of its statement")
def test_every_slice_is_planned_for_its_own_windows_and_servers(engine: Engine) -> None:
    """From the eleventh execution on PostgreSQL may turn to one plan for all, which knows no window and no server."""
    servers, slices = range(1, 201), 20
    add_instances(engine, servers)
    for instance_id in servers:
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-01-01", range(100, 160)))
    execute(engine, "ANALYZE")
    service = AggregationService(engine, fixed_clock(), instances_per_slice=len(servers) // slices, parallel_slices=1)
    generic_plans: list[int] = []

    def read_plans(connection: Connection) -> None:
        prepared = "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE 'WITH inserted%'"
        generic_plans.extend(connection.execute(text(prepared)).scalars())

    event.listen(engine, "commit", read_plans)
    service.aggregate("quarterly", [PERIODS["quarterly"].window_of(date(2025, 1, 1))], RunOptions(levels=("database",)))
    event.remove(engine, "commit", read_plans)

    assert len(generic_plans) > slices // 2, "the statement is prepared, as it is from the sixth execution on"
    assert set(generic_plans) == {0}


@pytest.mark.single_server("reads the plan or the settings of its statement")
@pytest.mark.parametrize("period", ["weekly", "monthly"])
@pytest.mark.parametrize(("order", "column"), [("size", "avg_size_mb"), ("growth", "size_change_mb")])
def test_a_list_of_databases_is_read_in_the_order_of_an_index(
    engine: Engine, service: AggregationService, period: str, order: str, column: str
) -> None:
    add_instances(engine, [1])
    for number in range(20):
        add_database_sizes(engine, sizes(1, f"database-{number}", "2025-03-01", [100 + number] * 31))
    window = PERIODS[period].window_of(date(2025, 3, 1))
    service.aggregate(period, [window])
    asked: list[tuple[str, Any]] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "capacity_growth" in statement:
            asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    with engine.begin() as connection:
        # Of so few rows every way is as good.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_sort = off"))
        connection.execute(text("ANALYZE database_size_aggregations"))
        databases(connection, PERIODS[period], window, order=order, engine=None, label=None, shown=50)
        statement, parameters = asked[0]
        plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
    event.remove(engine, "before_cursor_execute", record)

    assert f"Presorted Key: a.{column}" in plan, plan
