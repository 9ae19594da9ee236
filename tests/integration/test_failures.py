"""Bad data fails its instance only; a broken database fails the run, and says what was kept."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import pytest
from sqlalchemy import URL, Engine, event, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import AggregationStatus, DatabaseError, NotFoundError, ValidationError
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.database.engine import UnreachableError, capacity_engine, ensure_reachable
from tests.clocks import fixed_clock
from tests.fleet import (
    FIRST_WEEK,
    LARGEST_BIGINT,
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_overflowing_instance,
    sizes,
    stored,
    totals,
)

MARCH = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
INSTANCE_LEVEL = RunOptions(("instance",))


def test_an_instance_whose_sum_overflows_fails_alone_and_is_named(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, range(1, 21))
    for instance_id in range(1, 20):
        add_instance_sizes(engine, totals(instance_id, "2025-03-01", [(100, 1), (110, 1)]))
    add_overflowing_instance(engine, 7, date(2025, 3, 9))

    run = service.aggregate("monthly", MARCH, INSTANCE_LEVEL)

    [summary] = run.summaries
    assert run.status is AggregationStatus.FAILED
    assert not run.everything_failed
    assert (summary.processed_instances, summary.failed_instances, summary.skipped_instances) == (18, 1, 1)
    assert summary.total_instances == 20
    assert str(summary.errors[0]).startswith("server 7 (server-7): bigint out of range: a size in this window")
    assert [row["instance_id"] for row in stored(engine, INSTANCE)] == [*range(1, 7), *range(8, 20)]


def test_only_the_windows_with_the_bad_data_fail(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_instance_sizes(engine, totals(instance_id, "2025-03-01", [(100, 1)] * 4 + [None] + [(100, 1)] * 2))
    add_overflowing_instance(engine, 2, date(2025, 3, 5))

    run = service.aggregate("daily", FIRST_WEEK, INSTANCE_LEVEL)

    failed = [part.period_start.day for part in run.summaries if part.failed_instances]
    assert failed == [5, 6], "the sixth compares itself with the fifth, and that change fits no bigint either"
    assert [row["period_start"].day for row in stored(engine, INSTANCE) if row["instance_id"] == 2] == [1, 2, 3, 4, 7]
    assert all(part.total_instances == 2 for part in run.summaries)


def test_several_bad_instances_in_several_slices_are_all_named(engine: Engine) -> None:
    service = AggregationService(engine, fixed_clock(), instances_per_slice=4)
    add_instances(engine, range(1, 31))
    for instance_id in range(1, 31):
        add_instance_sizes(engine, totals(instance_id, "2025-03-01", [(100, 1)]))
    bad = [3, 4, 17, 30]
    for instance_id in bad:
        add_overflowing_instance(engine, instance_id, date(2025, 3, 2))

    run = service.aggregate("monthly", MARCH, INSTANCE_LEVEL)

    assert [error.instance_id for error in run.errors] == bad
    assert run.total("processed_instances") == 26


def test_more_than_twenty_errors_are_counted_exactly_and_listed_in_part(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, range(1, 26))
    for instance_id in range(1, 26):
        add_overflowing_instance(engine, instance_id, date(2025, 3, 2))

    run = service.aggregate("monthly", MARCH, INSTANCE_LEVEL)

    summary = run.summaries[0].to_dict()
    assert run.everything_failed
    assert (summary["error_count"], len(summary["errors"])) == (25, 20)  # type: ignore[arg-type]
    assert str(summary["message"]).endswith("25 of 25 servers failed; their existing rows are unchanged.")


def test_a_change_that_no_bigint_holds_fails_at_database_level_too(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "odd", "2025-02-28", [-LARGEST_BIGINT, LARGEST_BIGINT]))
    add_database_sizes(engine, sizes(2, "fine", "2025-02-28", [1, 2]))

    run = service.aggregate("daily", FIRST_WEEK[:1], RunOptions(("database",)))

    assert [str(error) for error in run.errors] == [
        "server 1 (server-1): bigint out of range: a size, or the sum of the server's databases, in this window, "
        "or in one it is compared with, is above 8 EiB, which is impossible"
    ]
    assert [row["database_name"] for row in stored(engine, DATABASE)] == ["fine"]


def test_from_one_megabyte_to_a_hundred_terabytes_fits(engine: Engine, service: AggregationService) -> None:
    """Legacy NUMERIC(10,2) overflowed here and failed the whole server."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "exploded", "2025-02-28", [1, 104_857_600]))

    run = service.aggregate("daily", FIRST_WEEK[:1], RunOptions(("database",)))

    assert run.status is AggregationStatus.COMPLETED
    assert str(stored(engine, DATABASE)[0]["size_change_percent"]) == "10485759900.00"


def test_inactive_deleted_and_unsampled_instances_are_counted_right(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1, 2])
    add_instances(engine, [3], is_active=False)
    add_instances(engine, [4], deleted_at="2025-01-01")
    for instance_id in (1, 3, 4):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-03-01", [1]))

    run = service.aggregate("daily", FIRST_WEEK[:1], RunOptions(("database",)))

    assert (run.summaries[0].processed_instances, run.summaries[0].skipped_instances) == (1, 1)
    assert [row["instance_id"] for row in stored(engine, DATABASE)] == [1]


def test_asking_for_an_inactive_instance_is_a_skipped_summary_and_for_an_unknown_one_an_error(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [3], is_active=False)

    summary = service.calculate_instance_aggregations(3)

    assert summary.to_dict()["status"] == "skipped"
    assert (
        summary.message
        == "server 3 (server-3) is inactive or deleted and is not aggregated; its stored rows were kept."
    )
    with pytest.raises(NotFoundError, match=r"No server with id 99 is registered\.$"):
        service.calculate_instance_aggregations(99)


def test_bad_requests_are_refused_before_anything_is_written(
    engine: Engine, service: AggregationService, runner: AggregationTaskRunner
) -> None:
    add_instances(engine, [1])
    with pytest.raises(
        ValidationError, match="Unknown period 'hourly'; known: daily, weekly, monthly, quarterly, yearly"
    ):
        runner.run_period("hourly")
    with pytest.raises(ValidationError, match="Unknown level 'cluster'; known: database, instance, group, all"):
        service.levels_of("cluster")
    with pytest.raises(ValidationError, match="The first day 2025-03-02 is after the last day 2025-03-01"):
        service.calculate_period_aggregations("daily", date(2025, 3, 2), date(2025, 3, 1))
    with pytest.raises(ValidationError, match="is not a weekly window"):
        service.aggregate("weekly", [Window(date(2025, 3, 1), date(2025, 3, 7))])
    with pytest.raises(ValidationError, match="No window"):
        service.aggregate("weekly", [])
    with pytest.raises(ValidationError, match="2019-01-01 is outside the monthly partition range: the first"):
        runner.service.partitions.windows_between(PERIODS["monthly"], date(2019, 1, 1), date(2025, 3, 1))
    with pytest.raises(ValidationError, match="yet that contains 1 Aug 2025; the newest begins on 1 Jul 2025"):
        runner.service.partitions.windows_between(PERIODS["monthly"], date(2025, 3, 1), date(2025, 8, 1))
    assert stored(engine, DATABASE) == []


def test_a_missing_schema_says_capacity_init(empty_engine: Engine) -> None:
    clock = fixed_clock()
    service = AggregationService(empty_engine, clock)
    runner = AggregationTaskRunner(service)

    with pytest.raises(DatabaseError, match=r"schema is missing; .* Run `capacity init`"):
        runner.run_period("daily")


def test_a_table_dropped_behind_our_back_is_permanent_and_says_capacity_init(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE database_size_aggregations CASCADE"))

    with pytest.raises(DatabaseError, match="capacity init") as caught:
        service.aggregate("monthly", MARCH)

    assert not caught.value.transient
    assert caught.value.sqlstate == "42P01"
    assert "SELECT" not in str(caught.value), "no statement in the text"


@pytest.mark.single_server("waits for the statement of a single server")
def test_a_connection_killed_between_slices_keeps_what_was_committed_and_a_repetition_completes(
    engine: Engine,
) -> None:
    service = AggregationService(engine, fixed_clock(), instances_per_slice=2, parallel_slices=1)
    add_instances(engine, range(1, 7))
    for instance_id in range(1, 7):
        add_instance_sizes(engine, totals(instance_id, "2025-03-01", [(100, 1)]))
    slices: list[int] = []
    other = capacity_engine(engine.url)

    def count_commits(_connection: object) -> None:
        if slices:
            slices[0] += 1

    def terminate(connection: Any, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("WITH classified", "WITH inserted")):
            return
        if not slices:
            slices.append(0)
        if slices == [2]:
            pid = connection.connection.driver_connection.info.backend_pid
            with other.connect() as killer:
                killer.execute(text("SELECT pg_terminate_backend(CAST(:pid AS integer))"), {"pid": pid})

    event.listen(engine, "commit", count_commits)
    event.listen(engine, "before_cursor_execute", terminate)
    with pytest.raises(DatabaseError, match="Completed slices were kept") as caught:
        service.aggregate("monthly", MARCH, INSTANCE_LEVEL)
    event.remove(engine, "before_cursor_execute", terminate)
    other.dispose()

    assert caught.value.transient
    assert len(stored(engine, INSTANCE)) == 4
    assert service.aggregate("monthly", MARCH, INSTANCE_LEVEL).total("written_records") == 2


def test_an_unreachable_database_is_reported_within_the_time_limit_without_the_password() -> None:
    url = URL.create("postgresql+psycopg", "dba", "very-secret", "127.0.0.1", 9, "capacity")
    started = time.monotonic()

    with pytest.raises(UnreachableError) as caught:
        ensure_reachable(capacity_engine(url))

    assert time.monotonic() - started < 15
    assert "postgresql://dba@127.0.0.1:9/capacity" in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_hostile_database_names_are_data_like_any_other(engine: Engine, service: AggregationService) -> None:
    names = [
        "'; DROP TABLE instances; --",
        'quoted "name"',
        "two\nlines",
        "x" * 255,
        "💾 größe",
        "%s %(name)s :name",
        "\\",
    ]
    add_instances(engine, [1])
    for name in names:
        add_database_sizes(engine, sizes(1, name, "2025-03-01", [10, 20]))

    run = service.aggregate("daily", FIRST_WEEK[:2], RunOptions(("database",)))

    assert run.total("written_records") == 14
    assert {row["database_name"] for row in stored(engine, DATABASE)} == set(names)


def test_a_fault_of_the_whole_table_is_told_once_and_not_blamed_on_every_instance(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, range(1, 21))
    for instance_id in range(1, 21):
        add_instance_sizes(engine, totals(instance_id, "2025-03-01", [(100, 1)]))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE instance_size_aggregations ADD COLUMN batch int NOT NULL"))

    with pytest.raises(DatabaseError, match="null value in column") as caught:
        service.aggregate("monthly", MARCH, INSTANCE_LEVEL)

    assert (caught.value.sqlstate, caught.value.transient) == ("23502", False)


def test_a_named_check_of_the_users_own_fails_the_instances_that_violate_it(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, "2025-03-01", [(100, 1)]))
    add_instance_sizes(engine, totals(2, "2025-03-01", [(-5, 1)]))
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE instance_size_aggregations ADD CONSTRAINT no_negative_sizes CHECK (min_size_mb >= 0)")
        )

    run = service.aggregate("monthly", MARCH, INSTANCE_LEVEL)

    assert [error.instance_id for error in run.errors] == [2]
    assert "no_negative_sizes" in run.errors[0].reason
    assert [row["instance_id"] for row in stored(engine, INSTANCE)] == [1]
