"""When limits are reached: from samples, declared limits and volumes to a day."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.forecast.results import OWN_CEILING, OWN_LIMIT, SERVER_LIMIT, VOLUME_LIMIT
from capacity_assets.forecast.runway import compute_runways
from tests.clocks import TODAY
from tests.command import capacity
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, sizes
from tests.runways import FIRST, ORDERS_DAYS, ORDERS_FULL, add_ceiling, add_volume, declared, found

pytestmark = pytest.mark.usefixtures("growing_servers")


def test_a_limit_of_its_own_gives_a_growing_database_a_day_and_a_still_one_none(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-1", "still", "--gb", "1")

    rows = found(engine)

    orders, still = rows["server-1", "orders"], rows["server-1", "still"]
    assert (orders.size_mb, orders.limit_mb, orders.headroom_mb, orders.binds) == (3014, 3584, 570, OWN_LIMIT)
    assert orders.change_mb_per_day == 10
    assert [orders.early_day, orders.middle_day, orders.late_day] == ORDERS_DAYS
    assert orders.probabilities == {7: 0.023, 30: 0.121, 90: 0.688, 365: 0.943}
    assert (still.middle_day, still.late_day, still.state) == (None, None, "forecast")
    assert still.probabilities == {7: 0.004, 30: 0.012, 90: 0.047, 365: 0.174}


def test_the_smaller_of_its_own_limit_and_what_the_server_has_left_binds(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "100")
    declared("server-1", "--gb", "4")

    rows = found(engine)

    orders, whole = rows["server-1", "orders"], rows["server-1", None]
    # 4,096 MiB less the server's 3,514 are left.
    assert (orders.binds, orders.limit_mb, orders.headroom_mb) == (SERVER_LIMIT, 3014 + 582, 582)
    assert (whole.size_mb, whole.limit_mb, whole.middle_day) == (3514, 4096, TODAY + timedelta(days=59))
    assert rows["server-1", "still"].limit_mb == 500 + 582


def test_a_server_without_a_total_is_as_large_as_its_databases(engine: Engine) -> None:
    declared("server-1", "--gb", "4")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE instance_size_stats SET is_deleted = true WHERE collected_date = :day"), {"day": TODAY}
        )

    assert found(engine)["server-1", "orders"].headroom_mb == 582


def test_unknown_is_neither_unlimited_nor_zero_and_too_little_history_says_so(engine: Engine) -> None:
    declared("server-1", "still", "--unlimited")
    declared("server-2", "young", "--gb", "1")

    every = compute_runways(engine, TODAY)

    assert every.unknown_limits == 1, "orders"
    states = {row.database: (row.state, row.limit_mb, row.probabilities) for row in every.rows}
    assert states == {"still": ("unlimited", None, {}), "young": ("too little history", 1024, {})}


def test_daily_aggregates_stand_for_samples_that_retention_has_dropped(
    engine: Engine, service: AggregationService
) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    before = found(engine)
    compute_windows(service, "daily", FIRST, TODAY)
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            connection.execute(text(f"DELETE FROM {table} WHERE collected_date < '2025-06-01'"))

    assert found(engine) == before


def test_one_old_sample_of_another_server_takes_no_aggregates_away(engine: Engine, service: AggregationService) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    compute_windows(service, "daily", FIRST, TODAY)
    before = found(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-06-01'"))
    add_database_sizes(engine, sizes(2, "young", "2023-01-01", [1]))

    assert found(engine)["server-1", "orders"] == before["server-1", "orders"]


def test_days_that_were_not_measured_are_not_days_without_a_change(engine: Engine) -> None:
    """A server that was last measured three weeks ago is forecast from that day on."""
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-1", "--gb", "4")
    silent = TODAY - timedelta(days=21)
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE instance_id = 1 AND collected_date > :day"), {"day": silent}
            )

    after = found(engine)

    for subject, days in ((("server-1", "orders"), 78), (("server-1", None), 80)):
        assert (after[subject].last_day, after[subject].change_mb_per_day) == (silent, 10)
        assert after[subject].middle_day == silent + timedelta(days=days)


def test_a_fleet_without_totals_has_runways_too(engine: Engine) -> None:
    declared("server-1", "--gb", "4")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM instance_size_stats"))

    shown = capacity("runway").output

    assert "orders" in shown, "its server has no row that would stand for it"
    assert "Limit unknown: 1 database." in shown


def test_a_server_that_is_more_than_full_leaves_its_databases_nothing(engine: Engine) -> None:
    declared("server-1", "--gb", "1")

    still = found(engine)["server-1", "still"]

    assert (still.limit_mb, still.middle_day, still.probabilities[7]) == (0, TODAY, 1)


def test_a_database_that_is_gone_and_a_server_out_of_service_are_not_listed(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-2", "young", "--gb", "1")
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM database_size_stats WHERE database_name = 'orders' AND collected_date = :day"),
            {"day": TODAY},
        )
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 2"))

    assert found(engine) == {}


def test_a_database_fills_the_volumes_it_grows_on_and_so_does_its_server(engine: Engine) -> None:
    for name, free_mb in (("/data", 400), ("/fast", 170), ("/log", 5)):
        add_volume(engine, 1, name, TODAY, 1000, free_mb)
    add_ceiling(engine, "orders", ["/data", "/fast"])
    add_ceiling(engine, "still", ["/data"])

    rows = found(engine)

    orders, still, whole = rows["server-1", "orders"], rows["server-1", "still"], rows["server-1", None]
    assert (orders.limit_mb, orders.binds, orders.source) == (3014 + 570, VOLUME_LIMIT, "measured")
    assert orders.middle_day == ORDERS_FULL
    assert still.limit_mb == 900
    assert (whole.limit_mb, whole.middle_day) == (3514 + 570, ORDERS_FULL)


def test_what_is_free_counts_from_the_day_on_which_it_was_measured(engine: Engine) -> None:
    ten_days_ago = TODAY - timedelta(days=10)
    add_volume(engine, 1, "/data", ten_days_ago, 9000, 670)
    add_ceiling(engine, "orders", ["/data"], day=ten_days_ago)

    orders = found(engine)["server-1", "orders"]

    assert (orders.limit_mb, orders.headroom_mb, orders.middle_day) == (2914 + 670, 570, ORDERS_FULL)


def test_the_smallest_of_all_limits_binds_wherever_it_comes_from(engine: Engine) -> None:
    add_volume(engine, 1, "/data", TODAY, 9000, 600)
    add_ceiling(engine, "orders", ["/data"], limit_mb=3590)
    declared("server-1", "orders", "--gb", "100")
    declared("server-1", "--gb", "100")
    ceiling = found(engine)["server-1", "orders"]
    declared("server-1", "orders", "--gb", "3.5")
    own = found(engine)["server-1", "orders"]

    assert (ceiling.binds, ceiling.limit_mb, ceiling.source) == (OWN_CEILING, 3590, "measured")
    assert (own.binds, own.limit_mb, own.source) == (OWN_LIMIT, 3584, "declared")


@pytest.mark.parametrize("volumes", [None, ["/data", "/gone"]], ids=["not reported", "one of them not measured"])
def test_no_ceiling_on_a_volume_that_is_not_known_is_an_unknown_limit_and_not_unlimited(
    engine: Engine, volumes: list[str] | None
) -> None:
    add_volume(engine, 1, "/data", TODAY, 9000, 600)
    add_ceiling(engine, "orders", volumes)

    every = compute_runways(engine, TODAY)

    assert [row.database for row in every.rows if row.database] == []
    assert every.unknown_limits == 3


def test_a_volume_has_a_runway_by_what_is_used_of_it_whoever_uses_it(engine: Engine) -> None:
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 10_000, 570 + 30 * ago)
    add_ceiling(engine, "orders", ["/data"])

    every = compute_runways(engine, TODAY).rows
    shown = capacity("runway", columns=200).output

    [volume] = [row for row in every if row.volume]
    assert (volume.volume, volume.size_mb, volume.limit_mb, volume.binds) == ("/data", 9430, 10_000, VOLUME_LIMIT)
    assert (volume.change_mb_per_day, volume.middle_day) == (30, TODAY + timedelta(days=19))
    assert "disk /data" in shown
    assert "orders" not in shown, "the volume stands for it"
    assert "whole server" not in shown


def test_limits_that_were_not_measured_for_a_month_are_unknown(engine: Engine) -> None:
    long_ago = TODAY - timedelta(days=31)
    add_volume(engine, 1, "/data", long_ago, 9000, 600)
    add_ceiling(engine, "orders", ["/data"], day=long_ago)

    assert (found(engine), compute_runways(engine, TODAY).unknown_limits) == ({}, 3)
