"""Old rows leave as whole partitions: only what nothing needs any more, and no sample that something does."""

from __future__ import annotations

import threading
from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.ledger import Ledger
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.levels import DATABASE, INSTANCE, LEVELS
from capacity_assets.periods import PERIODS
from capacity_assets.retention.maintenance import TableMaintenance
from capacity_assets.retention.needs import Needs
from capacity_assets.retention.rules import KeptSpans, Retention, parse_retention
from capacity_assets.storage.partitions import CAPACITY_TABLES, Span
from capacity_assets.storage.schema import initialise
from tests.clocks import TODAY
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instances, add_overflowing_instance, figures, sizes, stored
from tests.legacy import LegacyShape, create_legacy_tables
from tests.partitions import (
    FIRST,
    SHORT,
    add_two_servers,
    compute,
    everything,
    keeper,
    partition_names,
    rows_by_partition,
)

# The samples of 2025 are compared with by the windows of 2026.
A_YEAR_LATER = date(2026, 7, 20)


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    return add_two_servers(engine)


@pytest.mark.parametrize(
    ("period", "day", "last_reader", "ends"),
    [
        ("daily", date(2024, 3, 5), date(2025, 3, 5), date(2025, 3, 5)),
        # A week compares with that of 52 weeks before: the Sunday of one with the week of 364 days later.
        ("weekly", date(2024, 3, 10), date(2025, 3, 3), date(2025, 3, 9)),
    ],
)
def test_the_window_of_a_year_later_that_ends_today_is_not_over(
    engine: Engine, period: str, day: date, last_reader: date, ends: date
) -> None:
    """Even where it is the first that anyone asked for."""
    periods = {period: PERIODS[period]}
    needs = Needs(Ledger(engine, periods), KeptSpans(last_reader, Retention({}), periods))
    span = Span(None, day, day + timedelta(days=1))

    with engine.connect() as connection:
        reasons = [
            needs.reason_to_keep(connection, DATABASE, span, today) for today in (ends, ends + timedelta(days=1))
        ]

    assert reasons == [f"the {period} window from {last_reader} reads them and is not over", None]


def test_samples_stay_until_every_window_that_reads_them_is_over_and_computed(
    fleet: Engine, service: AggregationService
) -> None:
    keep_a_month = keeper(fleet, "raw=30,daily=forever", SHORT)

    def kept() -> dict[str, str]:
        told = [line.split(": ", 1) for line in keep_a_month.run(A_YEAR_LATER).kept]
        return {name.removeprefix("database_size_stats_"): reason for name, reason in told if "database" in name}

    assert kept()["2025_01"] == ("the daily window from 2025-01-01 reads them and has samples, but was never computed")
    compute(service, "daily")
    assert kept()["2025_02"] == (
        "the quarterly window from 2025-01-01 reads them and has samples, but was never computed"
    )
    service.calculate_period_aggregations("quarterly", FIRST, date(2025, 3, 31))
    # The second quarter's change compares with all days of the first.
    assert kept()["2025_03"] == (
        "the quarterly window from 2025-04-01 reads them and has samples, but was never computed"
    )
    before = figures(fleet, DATABASE), figures(fleet, INSTANCE)
    assert sum(row["data_count"] for key, row in before[0].items() if key[2] == "quarterly") == 2 * 90
    compute(service, "quarterly")

    report = keep_a_month.run(A_YEAR_LATER)

    assert [line.split(":")[0] for line in report.dropped] == [
        f"{level}_size_stats_2025_{month:02}" for level in ("database", "instance") for month in range(1, 7)
    ]
    assert report.dropped_records == 2 * 2 * 181
    assert kept()["2025_07"] == "the daily window from 2026-07-31 reads them and is not over"


def test_samples_stay_until_the_windows_of_a_year_later_have_compared_with_them(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    add_database_sizes(fleet, sizes(1, "orders", "2026-05-01", [500] * 3))
    keep_a_month = keeper(fleet, "raw=30,daily=forever", SHORT)

    def kept(day: date) -> dict[str, str]:
        told = [line.split(": ", 1) for line in keep_a_month.run(day).kept]
        return {name.removeprefix("database_size_stats_"): reason for name, reason in told if "database" in name}

    assert kept(TODAY)["2025_01"] == "the daily window from 2026-01-31 reads them and is not over"
    assert kept(A_YEAR_LATER)["2025_05"] == (
        "the daily window from 2026-05-01 reads them and has samples, but was never computed"
    )
    compute(service, *SHORT, last=date(2026, 7, 20))
    assert "2025_05" not in kept(A_YEAR_LATER)
    [may] = [row for key, row in figures(fleet, DATABASE, "daily").items() if key[3] == date(2026, 5, 2)]
    assert may["size_year_change_mb"] == 500 - 221


def test_samples_stay_for_windows_that_an_older_version_did_not_compare_with_them(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    add_database_sizes(fleet, sizes(1, "orders", "2026-01-01", [500] * 31))
    compute(service, *SHORT, last=date(2026, 7, 20))
    execute(fleet, "UPDATE capacity_computed_windows SET year_before_start = NULL, fingerprint = 'older'")
    keep_a_month = keeper(fleet, "raw=30,daily=forever", SHORT)

    january = next(line for line in keep_a_month.run(A_YEAR_LATER).kept if "database_size_stats_2025_01" in line)
    assert "the daily window from 2026-01-01 reads them and was computed by a version that did not compare" in january
    compute(service, *SHORT, last=date(2026, 7, 20))
    assert "database_size_stats_2025_01" in "".join(keep_a_month.run(A_YEAR_LATER).dropped)


def test_nothing_computed_is_changed_by_retention_nor_by_computing_again_after_it(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    before = figures(fleet, DATABASE), figures(fleet, INSTANCE)

    assert keeper(fleet, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER).dropped_records == 724
    compute(service, *SHORT)

    assert (figures(fleet, DATABASE), figures(fleet, INSTANCE)) == before
    assert service.ledger.stale() == []


def test_samples_that_changed_since_are_kept_until_their_windows_followed(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    with fleet.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-02-03'"))
    keep_a_month = keeper(fleet, "raw=30,daily=forever", SHORT)

    report = keep_a_month.run(A_YEAR_LATER)

    changed = "reads them and samples changed since it was computed"
    assert [line for line in report.kept if line.startswith("database_size_stats") and changed in line] == [
        f"database_size_stats_2025_01: the quarterly window from 2025-01-01 {changed}",
        f"database_size_stats_2025_02: the daily window from 2025-02-03 {changed}",
        f"database_size_stats_2025_03: the quarterly window from 2025-01-01 {changed}",
        *(f"database_size_stats_2025_0{month}: the quarterly window from 2025-04-01 {changed}" for month in (4, 5, 6)),
    ]
    of_servers = [line.split(":")[0] for line in report.dropped if line.startswith("instance_size_stats")]
    assert of_servers == [f"instance_size_stats_2025_0{n}" for n in range(1, 7)]
    compute(service, *SHORT)
    assert len(keep_a_month.run(A_YEAR_LATER).dropped) == 6


def test_samples_of_a_server_that_failed_are_kept(fleet: Engine, service: AggregationService) -> None:
    add_instances(fleet, [3])
    add_overflowing_instance(fleet, 3, date(2025, 2, 3))
    compute(service, *SHORT)

    report = keeper(fleet, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER)

    february = next(line for line in report.kept if line.startswith("instance_size_stats_2025_02"))
    assert "reads them and servers that failed in it: 1" in february


def test_a_sample_that_is_being_written_while_retention_decides_is_not_lost(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    reports = []
    with fleet.begin() as writer:
        writer.execute(
            text(
                "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                "VALUES (1, 'late', 5, '2025-01-31')"
            )
        )
        thread = threading.Thread(
            target=lambda: reports.append(keeper(fleet, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER))
        )
        thread.start()
        thread.join(2)
        assert thread.is_alive(), "it waits for the writer"
    thread.join()

    [report] = reports
    assert "database_size_stats_2025_01" in "\n".join(report.kept)
    assert rows_by_partition(fleet, "database_size_stats")["database_size_stats_2025_01"] == 63


def test_samples_of_before_the_start_date_were_never_computed_and_stay(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    add_database_sizes(fleet, sizes(1, "old", "2023-01-30", range(5)))

    report = keeper(fleet, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER)

    assert report.kept[:2] == [
        f"database_size_stats_2023_{month}: the daily window from {day} reads them and has samples, but was never "
        "computed (it lies before CAPACITY_START_DATE)"
        for month, day in (("01", "2023-01-30"), ("02", "2023-02-01"))
    ]
    assert rows_by_partition(fleet, "database_size_stats")["database_size_stats_2023_01"] == 2
    earlier = TableMaintenance(fleet, date(2023, 1, 1), parse_retention("raw=30,daily=forever"), SHORT)
    for period in SHORT:
        service.calculate_period_aggregations(period, date(2023, 1, 1), date(2023, 6, 30))
    assert [line.split(":")[0] for line in earlier.run(A_YEAR_LATER).dropped] == [
        "database_size_stats_2023_01",
        "database_size_stats_2023_02",
    ]


def test_samples_whose_aggregates_are_gone_stay_until_they_are_computed_again(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)
    execute(fleet, "DELETE FROM database_size_aggregations WHERE period_start = '2025-02-03' AND instance_id = 2")
    keep_a_month = keeper(fleet, "raw=30,daily=forever", SHORT)

    report = keep_a_month.run(A_YEAR_LATER)

    assert [line for line in report.kept if "gone" in line] == [
        "database_size_stats_2025_02: the daily window from 2025-02-03 reads them and 1 of its 2 aggregates are gone: "
        "materialise it again"
    ]
    assert "database_size_stats_2025_01" in "".join(report.dropped)
    compute(service, *SHORT)
    assert [line.split(":")[0] for line in keep_a_month.run(A_YEAR_LATER).dropped] == ["database_size_stats_2025_02"]


def test_aggregates_that_retention_itself_dropped_hold_no_samples_back(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *SHORT)

    assert keeper(fleet, "raw=forever,daily=60", SHORT).run(A_YEAR_LATER).dropped_records > 0
    dropped = keeper(fleet, "raw=60,daily=60", SHORT).run(A_YEAR_LATER).dropped

    assert "database_size_stats_2025_01" in "".join(dropped)


def test_while_changes_are_not_noted_no_sample_goes(fleet: Engine, service: AggregationService) -> None:
    compute(service, *SHORT)
    execute(fleet, "ALTER TABLE database_size_stats DISABLE TRIGGER USER")

    report = keeper(fleet, "raw=30,daily=forever", SHORT).run(TODAY)

    assert report.dropped == []
    assert report.kept[0] == (
        "database_size_stats_2025_01: a trigger that records changes of samples is missing or off: run `capacity init`"
    )


@pytest.mark.parametrize(("days", "goes"), [(19, True), (20, False), (21, False)])
def test_a_partition_goes_when_its_last_day_is_older_than_the_days_to_keep(
    fleet: Engine, service: AggregationService, days: int, *, goes: bool
) -> None:
    compute(service, "daily")
    assert TODAY - timedelta(days=20) == date(2025, 6, 30)

    report = keeper(fleet, f"raw=forever,daily={days}", SHORT).run(TODAY)

    june = "database_size_aggregations_daily_2025_06: 60 rows, daily windows that start from 2025-06-01 to 2025-06-30"
    assert (june in report.dropped) is goes


def test_old_rows_of_one_period_go_and_those_of_the_others_and_the_other_level_stay(
    fleet: Engine, service: AggregationService
) -> None:
    compute(service, *PERIODS)
    before = {level.name: stored(fleet, level) for level in LEVELS.values()}

    report = keeper(fleet, "raw=forever,daily=30,daily_instance_aggregations=forever").run(TODAY)

    assert report.dropped_records == 2 * (31 + 28 + 31 + 30 + 31)
    assert stored(fleet, INSTANCE) == before["instance"]
    assert stored(fleet, DATABASE) == [
        row for row in before["database"] if row["period_type"] != "daily" or row["period_start"] >= date(2025, 6, 1)
    ]


def test_a_dry_run_says_what_the_run_then_does_and_changes_nothing(fleet: Engine, service: AggregationService) -> None:
    compute(service, *SHORT)
    add_database_sizes(fleet, sizes(1, "old", "2023-01-30", range(5)))
    keep_a_month = keeper(fleet, "raw=30,daily=30", SHORT)
    before = everything(fleet), [partition_names(fleet, table) for table in CAPACITY_TABLES]

    said = keep_a_month.run(TODAY, dry_run=True)

    assert (everything(fleet), [partition_names(fleet, table) for table in CAPACITY_TABLES]) == before
    assert said.dropped_records > 0
    done = keep_a_month.run(TODAY).to_dict()
    expected = said.to_dict() | {"dry_run": False}
    assert any(line.startswith("database_size_stats_2023_01: ") for line in said.kept)
    for key in ("created", "moved_records", "dropped", "dropped_records", "kept"):
        assert done[key] == expected[key], key


def test_retention_leaves_an_unpartitioned_database_alone_and_says_so(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape())
    initialise(empty_engine)
    add_instances(empty_engine, [1])
    add_database_sizes(empty_engine, sizes(1, "orders", "2019-01-01", range(5)))

    report = keeper(empty_engine, "raw=1,daily=1").run(TODAY)

    assert report.notes == [
        f"{table.name} is not partitioned: nothing leaves it; see `capacity partition`" for table in CAPACITY_TABLES
    ]
    assert len(everything(empty_engine)["database_size_stats"]) == 5


def test_a_legacy_database_cut_by_month_gets_its_months_and_keeps_what_one_of_its_periods_keeps(
    empty_engine: Engine,
) -> None:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=True))
    initialise(empty_engine)
    add_instances(empty_engine, [1])
    add_database_sizes(empty_engine, sizes(1, "orders", "2025-07-30", range(5)))
    assert rows_by_partition(empty_engine, "database_size_stats")["database_size_stats_default"] == 3

    report = keeper(empty_engine, "raw=forever,daily=1").run(date(2025, 8, 3))

    assert report.moved_records == 3
    assert "database_size_aggregations: 2025-08-01 to 2025-08-31" in report.created
    assert report.dropped == [], "weekly and longer windows of those months are kept for ever"
    everything_short = ",".join(f"{period}=1" for period in PERIODS)
    dropped = keeper(empty_engine, f"raw=forever,{everything_short}").run(date(2025, 8, 3)).dropped
    assert [line.split(":")[0] for line in dropped if "instance" in line] == [
        "instance_size_aggregations_2024_12",
        *(f"instance_size_aggregations_2025_{month:02}" for month in range(1, 8)),
    ]
