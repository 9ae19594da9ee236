"""Samples that something still needs stay, however old they are."""

from __future__ import annotations

import threading
from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.history.retention import TableMaintenance, parse_retention
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instances, add_overflowing_instance, figures, sizes
from tests.partitions import (
    A_YEAR_LATER,
    FIRST,
    SHORT,
    add_two_servers,
    compute,
    keeper,
    rows_by_partition,
)


def two_servers_computed(engine: Engine) -> None:
    """Two servers, everything computed, and the partitions that maintenance adds a year later."""
    compute(AggregationService(add_two_servers(engine), fixed_clock()), *SHORT)
    keeper(engine).prepare(A_YEAR_LATER)


PREPARED = {"computed": two_servers_computed}


@pytest.mark.nightly("computes a year and a half")
def test_samples_stay_until_every_window_that_reads_them_is_over_and_computed(
    two_servers: Engine, service: AggregationService
) -> None:
    keep_a_month = keeper(two_servers, "raw=30,daily=forever", SHORT)

    def kept() -> dict[str, str]:
        reasons = [line.split(": ", 1) for line in keep_a_month.run(A_YEAR_LATER).kept]
        return {name.removeprefix("database_size_stats_"): reason for name, reason in reasons if "database" in name}

    assert kept()["2025_01"] == ("the daily window from 2025-01-01 reads them and has samples, but was never computed")
    compute(service, "daily")
    assert kept()["2025_02"] == (
        "the quarterly window from 2025-01-01 reads them and has samples, but was never computed"
    )
    compute_windows(service, "quarterly", FIRST, date(2025, 3, 31))
    # The second quarter's change compares with all days of the first.
    assert kept()["2025_03"] == (
        "the quarterly window from 2025-04-01 reads them and has samples, but was never computed"
    )
    before = figures(two_servers, DATABASE), figures(two_servers, INSTANCE)
    assert sum(row["data_count"] for key, row in before[0].items() if key[2] == "quarterly") == 2 * 90
    compute(service, "quarterly")

    report = keep_a_month.run(A_YEAR_LATER)

    assert [line.split(":")[0] for line in report.dropped] == [
        f"{level}_size_stats_2025_{month:02}" for level in ("database", "instance") for month in range(1, 7)
    ]
    assert report.dropped_records == 2 * 2 * 181
    assert kept()["2025_07"] == "the daily window from 2026-07-31 reads them and is not over"


@pytest.mark.nightly("computes two years")
def test_samples_stay_until_the_windows_of_a_year_later_have_compared_with_them(
    engine: Engine, computed: AggregationService
) -> None:
    add_database_sizes(engine, sizes(1, "orders", "2026-05-01", [500] * 3))
    keep_a_month = keeper(engine, "raw=30,daily=forever", SHORT)

    def kept(day: date) -> dict[str, str]:
        reasons = [line.split(": ", 1) for line in keep_a_month.run(day).kept]
        return {name.removeprefix("database_size_stats_"): reason for name, reason in reasons if "database" in name}

    assert kept(TODAY)["2025_01"] == "the daily window from 2026-01-31 reads them and is not over"
    assert kept(A_YEAR_LATER)["2025_05"] == (
        "the daily window from 2026-05-01 reads them and has samples, but was never computed"
    )
    compute(computed, *SHORT, last=date(2026, 7, 20))
    assert "2025_05" not in kept(A_YEAR_LATER)
    [may] = [row for key, row in figures(engine, DATABASE, "daily").items() if key[3] == date(2026, 5, 2)]
    assert may["size_year_change_mb"] == 500 - 221


def test_samples_that_changed_since_are_kept_until_their_windows_followed(
    engine: Engine, computed: AggregationService
) -> None:
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-02-03'")
    keep_a_month = keeper(engine, "raw=30,daily=forever", SHORT)

    report = keep_a_month.run(A_YEAR_LATER)

    changed = "reads them and samples changed since it was computed"
    assert [line for line in report.kept if line.startswith("database_size_stats") and changed in line] == [
        f"database_size_stats_2025_01: the quarterly window from 2025-01-01 {changed}",
        f"database_size_stats_2025_02: the daily window from 2025-02-03 {changed}",
        f"database_size_stats_2025_03: the quarterly window from 2025-01-01 {changed}",
        *(f"database_size_stats_2025_0{month}: the quarterly window from 2025-04-01 {changed}" for month in (4, 5, 6)),
    ]
    assert [line for line in report.kept if line.startswith("instance_size_stats_2025_02")] == [
        "instance_size_stats_2025_02: the daily window of groups from 2025-02-03 reads them and samples or labels "
        "changed since it was computed"
    ]
    compute(computed, *SHORT)
    assert len(keep_a_month.run(A_YEAR_LATER).dropped) == 12


def test_samples_of_a_server_that_failed_are_kept(two_servers: Engine, service: AggregationService) -> None:
    add_instances(two_servers, [3])
    add_overflowing_instance(two_servers, 3, date(2025, 2, 3))
    compute(service, *SHORT)

    report = keeper(two_servers, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER)

    february = next(line for line in report.kept if line.startswith("instance_size_stats_2025_02"))
    assert "reads them and servers that failed in it: 1" in february


@pytest.mark.usefixtures("computed")
def test_a_sample_that_is_being_written_while_retention_decides_is_not_lost(engine: Engine) -> None:
    reports = []
    with engine.begin() as writer:
        writer.execute(
            text(
                "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                "VALUES (1, 'late', 5, '2025-01-31')"
            )
        )
        thread = threading.Thread(
            target=lambda: reports.append(keeper(engine, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER))
        )
        thread.start()
        thread.join(2)
        assert thread.is_alive(), "it waits for the writer"
    thread.join()

    [report] = reports
    assert "database_size_stats_2025_01" in "\n".join(report.kept)
    assert rows_by_partition(engine, "database_size_stats")["database_size_stats_2025_01"] == 63


@pytest.mark.nightly("computes two years")
def test_samples_of_before_the_start_date_were_never_computed_and_stay(
    engine: Engine, computed: AggregationService
) -> None:
    add_database_sizes(engine, sizes(1, "old", "2023-01-30", range(5)))

    report = keeper(engine, "raw=30,daily=forever", SHORT).run(A_YEAR_LATER)

    assert report.kept[:2] == [
        f"database_size_stats_2023_{month}: the daily window from {day} reads them and has samples, but was never "
        "computed (it is before CAPACITY_START_DATE)"
        for month, day in (("01", "2023-01-30"), ("02", "2023-02-01"))
    ]
    assert rows_by_partition(engine, "database_size_stats")["database_size_stats_2023_01"] == 2
    earlier = TableMaintenance(engine, date(2023, 1, 1), parse_retention("raw=30,daily=forever"), SHORT)
    for period in SHORT:
        compute_windows(computed, period, date(2023, 1, 1), date(2023, 6, 30))
    assert [line.split(":")[0] for line in earlier.run(A_YEAR_LATER).dropped] == [
        "database_size_stats_2023_01",
        "database_size_stats_2023_02",
    ]


def test_samples_whose_aggregates_are_gone_stay_until_they_are_computed_again(
    engine: Engine, computed: AggregationService
) -> None:
    execute(engine, "DELETE FROM database_size_aggregations WHERE period_start = '2025-02-03' AND instance_id = 2")
    keep_a_month = keeper(engine, "raw=30,daily=forever", SHORT)

    report = keep_a_month.run(A_YEAR_LATER)

    assert [line for line in report.kept if "gone" in line] == [
        "database_size_stats_2025_02: the daily window from 2025-02-03 reads them and 1 of its 2 aggregates are gone: "
        "materialise it again"
    ]
    assert "database_size_stats_2025_01" in "".join(report.dropped)
    compute(computed, *SHORT)
    assert [line.split(":")[0] for line in keep_a_month.run(A_YEAR_LATER).dropped] == ["database_size_stats_2025_02"]


@pytest.mark.usefixtures("computed")
def test_aggregates_that_retention_itself_dropped_hold_no_samples_back(engine: Engine) -> None:

    assert keeper(engine, "raw=forever,daily=60", SHORT).run(A_YEAR_LATER).dropped_records > 0
    dropped = keeper(engine, "raw=60,daily=60", SHORT).run(A_YEAR_LATER).dropped

    assert "database_size_stats_2025_01" in "".join(dropped)


@pytest.mark.usefixtures("computed")
def test_while_changes_are_not_noted_no_sample_goes(engine: Engine) -> None:
    execute(engine, "ALTER TABLE database_size_stats DISABLE TRIGGER USER")

    report = keeper(engine, "raw=30,daily=forever", SHORT).run(TODAY)

    assert report.dropped == []
    assert report.kept[0] == (
        "database_size_stats_2025_01: a trigger that records changes of samples is missing or off: run `capacity init`"
    )
