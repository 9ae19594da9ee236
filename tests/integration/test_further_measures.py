"""Ends of a window, the year before and the yearly rate: examples by hand, late data, and what retention must not lose.

That they are exact for any history is shown in `test_exactness`.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, figures, sizes, stored, totals
from tests.ledger import stale

MONTHLY = PERIODS["monthly"]
MARCH_2025 = MONTHLY.window_of(date(2025, 3, 1))
FURTHER = (
    "last_size_mb",
    "size_growth_in_window_mb",
    "size_year_change_mb",
    "size_year_change_percent",
    "size_yearly_rate_percent",
)


@pytest.fixture
def orders(engine: Engine) -> Engine:
    """100 MiB in March 2024; 200 in February 2025; in March 2025 three measured days: 205, 210 and 215."""
    add_instances(engine, [1])
    march = [None, 205, None, 210, None, 215]
    add_database_sizes(engine, sizes(1, "orders", "2024-03-01", [100] * 31))
    add_database_sizes(engine, sizes(1, "orders", "2025-02-01", [200] * 28))
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", march))
    return engine


def further(engine: Engine, period: str, start: str) -> tuple[object, ...]:
    row = figures(engine, DATABASE)[1, "orders", period, date.fromisoformat(start)]
    return tuple(row[name] for name in FURTHER)


def test_ends_of_the_window_the_year_before_and_the_yearly_rate_of_a_month(
    orders: Engine, service: AggregationService
) -> None:
    service.aggregate("monthly", [MARCH_2025])

    # 210 / 200 = 1.05, and 1.05 to the power of twelve is 1.79585632602212...
    assert further(orders, "monthly", "2025-03-01") == (215, 10, 110, Decimal("110.00"), Decimal("79.59"))


def test_a_leap_day_compares_with_the_28th_and_so_does_the_28th(orders: Engine, service: AggregationService) -> None:
    add_database_sizes(orders, sizes(1, "orders", "2023-02-28", [50]))
    add_database_sizes(orders, sizes(1, "orders", "2024-02-28", [60, 70]))

    compute_windows(service, "daily", date(2024, 2, 28), date(2024, 2, 29))
    together = further(orders, "daily", "2024-02-28")[2], further(orders, "daily", "2024-02-29")[2]
    for day in (date(2024, 2, 28), date(2024, 2, 29)):
        service.aggregate("daily", [PERIODS["daily"].window_of(day)], RunOptions(recompute=True))

    assert together == (10, 20)
    assert (further(orders, "daily", "2024-02-28")[2], further(orders, "daily", "2024-02-29")[2]) == together


def test_a_late_sample_touches_the_windows_that_compare_with_it_a_year_later(
    orders: Engine, service: AggregationService
) -> None:
    for period in ("weekly", "monthly"):
        compute_windows(service, period, date(2025, 2, 1), date(2025, 3, 31))
    assert stale(service) == set()

    execute(orders, "UPDATE database_size_stats SET size_mb = 131 WHERE collected_date = '2024-03-12'")

    levels = ("database", "group")
    weekly = {(level, "weekly", "2025-03-10") for level in levels}
    monthly = {(level, "monthly", "2025-03-01") for level in levels}
    assert stale(service) == weekly | monthly
    service.aggregate("monthly", [MARCH_2025])
    assert further(orders, "monthly", "2025-03-01")[2] == 109
    assert stale(service) == weekly


@pytest.mark.parametrize("one_by_one", [True, False], ids=["one window", "several windows"])
@pytest.mark.parametrize("left", ["some", "none"])
def test_a_known_change_against_the_year_before_survives_the_loss_of_its_samples(
    orders: Engine, service: AggregationService, left: str, *, one_by_one: bool
) -> None:
    service.aggregate("monthly", [MONTHLY.window_of(date(2024, 3, 1)), MARCH_2025])
    before = stored(orders, DATABASE)
    last = "2024-03-31" if left == "none" else "2024-03-20"
    execute(orders, f"DELETE FROM database_size_stats WHERE collected_date BETWEEN '2024-03-01' AND '{last}'")
    execute(orders, "UPDATE database_size_stats SET size_mb = 1 WHERE collected_date = '2024-03-31'")

    windows = [MARCH_2025] if one_by_one else [MARCH_2025, MONTHLY.following(MARCH_2025)]
    run = service.aggregate("monthly", windows, RunOptions(("database",)))

    assert (run.total("written_records"), run.total("protected_records")) == (0, 0), "its stored row says what it was"
    assert stored(orders, DATABASE) == before


def test_a_corrected_window_compares_with_the_stored_row_of_the_year_before_whose_samples_are_gone(
    orders: Engine, service: AggregationService
) -> None:
    service.aggregate("monthly", [MONTHLY.window_of(date(2024, 3, 1)), MARCH_2025])
    known = stored(orders, DATABASE)[-1]["size_year_change_mb"]
    execute(orders, "DELETE FROM database_size_stats WHERE collected_date < '2024-04-01'")
    execute(orders, "UPDATE database_size_stats SET size_mb = size_mb + 7 WHERE collected_date = '2025-03-06'")

    service.aggregate("monthly", [MARCH_2025], RunOptions(("database",)))

    [row] = [row for row in stored(orders, DATABASE) if row["period_start"] == MARCH_2025.start]
    assert (known, row["sum_size_mb"], row["size_year_change_mb"]) == (110, 637, 112), (
        "three samples, one of them 7 larger"
    )


def test_a_row_of_another_period_says_nothing_of_the_samples_of_the_year_before(
    engine: Engine, service: AggregationService
) -> None:
    """The row of the year 2024 begins on the day of that of January 2024, and has more samples."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2024-01-01", [100] * 366 + [300] * 31))
    january = MONTHLY.window_of(date(2025, 1, 1))
    service.aggregate("yearly", [PERIODS["yearly"].window_of(date(2024, 1, 1))])
    service.aggregate("monthly", [MONTHLY.window_of(date(2024, 1, 1)), january])
    execute(engine, "UPDATE database_size_stats SET size_mb = 150 WHERE collected_date < '2024-02-01'")

    service.aggregate("monthly", [january], RunOptions(("database",)))

    assert stored(engine, DATABASE, "monthly")[-1]["size_year_change_mb"] == 150


def test_rows_of_an_older_version_are_filled_and_keep_their_known_change(
    orders: Engine, service: AggregationService
) -> None:
    """An older version stored no further measures; that alone must not let a known change become unknown."""
    compute_windows(service, "monthly", date(2025, 2, 1), date(2025, 3, 31))
    columns = ", ".join(f"{name} = NULL" for name in FURTHER)
    execute(orders, f"UPDATE database_size_aggregations SET {columns}")
    execute(orders, "DELETE FROM database_size_aggregations WHERE period_start = '2025-02-01'")
    execute(orders, "DELETE FROM database_size_stats WHERE collected_date < '2025-03-01'")

    service.aggregate("monthly", [MARCH_2025], RunOptions(("database",)))

    [march] = stored(orders, DATABASE)
    assert (march["size_change_mb"], march["growth_rate"], march["trend_direction"]) == (10, Decimal("5.00"), "growing")
    assert (march["last_size_mb"], march["size_growth_in_window_mb"]) == (215, 10)
    assert march["size_year_change_mb"] is None, "those samples are gone too"


def test_a_correction_of_the_window_before_is_taken_although_the_year_before_lost_its_samples(
    orders: Engine, service: AggregationService
) -> None:
    service.aggregate("monthly", [MONTHLY.window_of(date(2024, 3, 1)), MARCH_2025])
    execute(orders, "DELETE FROM database_size_stats WHERE collected_date < '2024-12-31'")
    execute(orders, "UPDATE database_size_stats SET size_mb = 140 WHERE collected_date < '2025-03-01'")

    run = service.aggregate("monthly", [MARCH_2025], RunOptions(("database",)))

    assert run.total("written_records") == 1
    # The year before is as it was known; change and rate follow February.
    rate = ((Decimal(210) / 140) ** 12 - 1) * 100
    assert further(orders, "monthly", "2025-03-01")[2:] == (110, Decimal("110.00"), rate.quantize(Decimal("0.01")))
    march = figures(orders, DATABASE)[1, "orders", "monthly", date(2025, 3, 1)]
    assert (march["size_change_mb"], march["growth_rate"]) == (70, Decimal("50.00"))
    assert (
        service.aggregate("monthly", [MARCH_2025], RunOptions(("database",), recompute=True)).total("unchanged_records")
        == 1
    )


def test_rows_of_an_older_version_are_filled_although_the_year_before_has_lost_its_samples(
    orders: Engine, service: AggregationService
) -> None:
    service.aggregate("monthly", [MONTHLY.window_of(date(2024, 3, 1)), MARCH_2025])
    columns = ", ".join(f"{name} = NULL" for name in FURTHER)
    execute(orders, f"UPDATE database_size_aggregations SET {columns}")
    execute(orders, "DELETE FROM database_size_stats WHERE collected_date < '2024-12-31'")

    service.aggregate("monthly", [MARCH_2025], RunOptions(("database",)))

    year_change = (110, Decimal("110.00"))
    assert further(orders, "monthly", "2025-03-01") == (215, 10, *year_change, Decimal("79.59"))


def test_the_windows_of_an_upgraded_ledger_compare_with_a_year_before_once_they_are_computed_again(
    orders: Engine, service: AggregationService
) -> None:
    service.aggregate("monthly", [MARCH_2025])
    execute(
        orders,
        "UPDATE capacity_computed_windows SET year_before_start = NULL, year_before_end = NULL, fingerprint = 'older'",
    )
    service.aggregate("monthly", [MARCH_2025])

    with orders.connect() as connection:
        query = "SELECT DISTINCT year_before_start, year_before_end FROM capacity_computed_windows"
        assert [tuple(row) for row in connection.execute(text(query))] == [(date(2024, 3, 1), date(2024, 3, 31))]


def test_the_views_show_them_and_the_fleet_adds_the_last_sizes_up(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1, 2])
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", "2025-03-01", [100] * 30 + [130]))
        add_instance_sizes(engine, totals(number, "2025-03-01", [(100, 1)] * 30 + [(130, 1)]))
    service.aggregate("monthly", [MARCH_2025])

    with engine.connect() as connection:
        for view in ("capacity_growth", "capacity_latest", "capacity_server_growth"):
            query = f"SELECT last_size_mb, growth_in_window_mb, year_change_mb, yearly_rate_percent FROM {view}"
            assert {tuple(row) for row in connection.execute(text(query))} == {(130, 30, None, None)}
        assert connection.execute(text("SELECT last_size_mb FROM capacity_fleet")).scalars().all() == [260]
