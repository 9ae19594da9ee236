"""Limits as people declare them, and when they are reached, from the samples to the screen."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.clock import Clock
from capacity_assets.runway import history
from capacity_assets.runway.binding import CEILING, OWN, SERVER, VOLUME
from capacity_assets.runway.forecasting import outlooks
from capacity_assets.runway.outlook import Outlook
from capacity_assets.settings import Settings
from tests.clocks import TODAY
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

FIRST = TODAY - timedelta(days=199)
ORDERS_FULL = TODAY + timedelta(days=57)
GROWING = [1024 + 10 * day for day in range(200)]


@pytest.fixture(autouse=True)
def fleet(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers: `orders` grows by ten MiB per day, `still` does not; server-2 has one young database."""
    assert settings
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * 200))
    add_database_sizes(engine, sizes(2, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size + 500, 2) for size in GROWING]))
    add_instance_sizes(engine, totals(2, (TODAY - timedelta(days=9)).isoformat(), [(100, 1)] * 10))


def declared(*arguments: str) -> None:
    done = capacity("limits", "set", *arguments)
    assert done.exit_code == 0, done.output


def found(engine: Engine, **options: Any) -> dict[tuple[str, str | None], Outlook]:
    return {(row.server, row.database): row for row in outlooks(engine, TODAY, **options).rows if row.volume is None}


def test_a_limit_of_its_own_gives_a_growing_database_a_day_and_a_still_one_none(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-1", "still", "--gb", "1")

    rows = found(engine)

    orders, still = rows["server-1", "orders"], rows["server-1", "still"]
    assert (orders.size_mb, orders.limit_mb, orders.headroom_mb, orders.binds) == (3014, 3584, 570, OWN)
    assert orders.change_mb_per_day == 10
    assert orders.early_day == orders.middle_day == orders.late_day == ORDERS_FULL
    assert orders.probabilities == {7: 0, 30: 0, 90: 1, 365: 1}
    assert (still.early_day, still.late_day, still.state) == (None, None, "forecast")
    assert still.probabilities == {7: 0, 30: 0, 90: 0, 365: 0}


def test_the_smaller_of_its_own_limit_and_what_the_server_has_left_binds(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "100")
    declared("server-1", "--gb", "4")

    rows = found(engine)

    orders, whole = rows["server-1", "orders"], rows["server-1", None]
    # 4,096 MiB less the server's 3,514 are left.
    assert (orders.binds, orders.limit_mb, orders.headroom_mb) == (SERVER, 3014 + 582, 582)
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

    every = outlooks(engine, TODAY)

    assert every.unknown_limits == 1, "orders"
    states = {row.database: (row.state, row.limit_mb, row.probabilities) for row in every.rows}
    assert states == {"still": ("unlimited", None, {}), "young": ("too little history", 1024, {})}


def test_a_higher_limit_is_tried_without_being_declared(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "3.5")

    higher = found(engine, add_mb=1024)["server-1", "orders"]

    assert (higher.limit_mb, higher.middle_day) == (4608, TODAY + timedelta(days=160))
    assert found(engine)["server-1", "orders"].limit_mb == 3584


def test_daily_aggregates_stand_for_samples_that_retention_has_dropped(
    engine: Engine, service: AggregationService
) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    before = found(engine)
    service.calculate_period_aggregations("daily", FIRST, TODAY)
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            connection.execute(text(f"DELETE FROM {table} WHERE collected_date < '2025-06-01'"))

    assert found(engine) == before


def test_one_old_sample_of_another_server_takes_no_aggregates_away(engine: Engine, service: AggregationService) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    service.calculate_period_aggregations("daily", FIRST, TODAY)
    before = found(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-06-01'"))
    add_database_sizes(engine, sizes(2, "young", "2023-01-01", [1]))

    assert found(engine)["server-1", "orders"] == before["server-1", "orders"]


def test_days_that_were_not_measured_are_not_days_without_a_change(engine: Engine) -> None:
    """A server that was last measured three weeks ago is forecast from that day on."""
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-1", "--gb", "4")
    before = found(engine)
    silent = TODAY - timedelta(days=21)
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE instance_id = 1 AND collected_date > :day"), {"day": silent}
            )

    after = found(engine)

    for subject in (("server-1", "orders"), ("server-1", None)):
        assert (after[subject].last_day, after[subject].change_mb_per_day) == (silent, 10)
        assert after[subject].middle_day == before[subject].middle_day


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


def add_volume(engine: Engine, server: int, name: str, day: date, total_mb: int, free_mb: int) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, :server, :name, :total, :free, 'measured')"
            ),
            {"day": day, "server": server, "name": name, "total": total_mb, "free": free_mb},
        )


def add_ceiling(
    engine: Engine, database: str, volumes: list[str] | None, limit_mb: int | None = None, day: date = TODAY
) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO database_limit_stats "
                "(collected_date, instance_id, database_name, limit_mb, is_unlimited, volumes, source) "
                "VALUES (:day, 1, :database, CAST(:mb AS bigint), :mb IS NULL, CAST(:volumes AS varchar[]), 'measured')"
            ),
            {"day": day, "database": database, "mb": limit_mb, "volumes": volumes},
        )


def test_a_database_fills_the_volumes_it_grows_on_and_so_does_its_server(engine: Engine) -> None:
    for name, free_mb in (("/data", 400), ("/fast", 170), ("/log", 5)):
        add_volume(engine, 1, name, TODAY, 1000, free_mb)
    add_ceiling(engine, "orders", ["/data", "/fast"])
    add_ceiling(engine, "still", ["/data"])

    rows = found(engine)

    orders, still, whole = rows["server-1", "orders"], rows["server-1", "still"], rows["server-1", None]
    assert (orders.limit_mb, orders.binds, orders.source) == (3014 + 570, VOLUME, "measured")
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

    assert (ceiling.binds, ceiling.limit_mb, ceiling.source) == (CEILING, 3590, "measured")
    assert (own.binds, own.limit_mb, own.source) == (OWN, 3584, "declared")


@pytest.mark.parametrize("volumes", [None, ["/data", "/gone"]], ids=["not told", "one of them not measured"])
def test_no_ceiling_on_a_volume_that_is_not_known_is_an_unknown_limit_and_not_unlimited(
    engine: Engine, volumes: list[str] | None
) -> None:
    add_volume(engine, 1, "/data", TODAY, 9000, 600)
    add_ceiling(engine, "orders", volumes)

    every = outlooks(engine, TODAY)

    assert [row.database for row in every.rows if row.database] == []
    assert every.unknown_limits == 3


def test_a_volume_has_a_runway_by_what_is_used_of_it_whoever_uses_it(engine: Engine) -> None:
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 10_000, 570 + 30 * ago)
    add_ceiling(engine, "orders", ["/data"])

    every = outlooks(engine, TODAY).rows
    shown = capacity("runway", columns=200).output

    [volume] = [row for row in every if row.volume]
    assert (volume.volume, volume.size_mb, volume.limit_mb, volume.binds) == ("/data", 9430, 10_000, VOLUME)
    assert (volume.change_mb_per_day, volume.middle_day) == (30, TODAY + timedelta(days=19))
    assert "volume /data" in shown
    assert "orders" not in shown, "the volume stands for it"
    assert "all together" not in shown


def test_limits_that_were_not_measured_for_a_month_are_unknown(engine: Engine) -> None:
    long_ago = TODAY - timedelta(days=31)
    add_volume(engine, 1, "/data", long_ago, 9000, 600)
    add_ceiling(engine, "orders", ["/data"], day=long_ago)

    assert (found(engine), outlooks(engine, TODAY).unknown_limits) == ({}, 3)


PURGED = TODAY - timedelta(days=20)


@pytest.fixture
def purged(engine: Engine) -> None:
    """`orders` lost 1,500 MiB three weeks ago."""
    with engine.begin() as connection:
        for table, column in (("database_size_stats", "size"), ("instance_size_stats", "total_size")):
            only = "AND database_name = 'orders'" if table == "database_size_stats" else ""
            connection.execute(
                text(
                    f"UPDATE {table} SET {column}_mb = {column}_mb + 1500, {column}_bytes = NULL "
                    f"WHERE instance_id = 1 AND collected_date < :day {only}"
                ),
                {"day": PURGED},
            )


@pytest.mark.usefixtures("purged")
def test_a_declared_step_is_left_out_of_the_forecast_and_named_where_it_is_explained(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-1", "--gb", "4")
    before = found(engine)["server-1", "orders"]
    added = capacity("steps", "add", "server-1", "orders", "--day", str(PURGED), "--note", "archive purged")

    rows = found(engine)
    told = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    document = json.loads(capacity("explain", "--runway", "--server", "server-1", "--json").output)

    assert added.output == (
        f"orders on server-1: archive purged, {PURGED}. Forecasts leave the change from 4.2 GiB to 2.7 GiB out.\n"
    )
    assert before.probabilities[90] < 1
    orders, whole = rows["server-1", "orders"], rows["server-1", None]
    assert orders.change_mb_per_day == 10
    assert (orders.size_mb, orders.early_day, orders.late_day) == (3014, ORDERS_FULL, ORDERS_FULL + timedelta(days=1))
    assert whole.change_mb_per_day == orders.change_mb_per_day
    assert f"Left out: {PURGED}, orders: archive purged." in told
    assert told[-1] == "Both ways come to the same."
    assert document["steps"] == [
        {"server": "server-1", "database": "orders", "day": str(PURGED), "note": "archive purged"}
    ]


def test_steps_are_read_from_a_file_listed_and_forgotten(tmp_path: Path) -> None:
    good, bad = tmp_path / "steps.csv", tmp_path / "bad.csv"
    good.write_text("server,database,day,note\nserver-1,,2025-03-01,compressed\nserver-1,orders,2025-04-01,purged\n")
    bad.write_text("server,day,note\nserver-1,yesterday,a\n,2025-01-01,\nserver-1,2025-01-01,b\n")

    rehearsed = capacity("steps", "import", str(good), "--dry-run")
    empty = capacity("steps", "list").output
    done = capacity("steps", "import", str(good))
    refused = capacity("steps", "import", str(bad))
    mistyped = capacity("steps", "add", "server-1", "ordres", "--day", "2025-03-01", "--note", "x")
    removed = capacity("steps", "remove", "server-1", "orders", "--day", "2025-04-01")
    again = capacity("steps", "remove", "server-1", "orders", "--day", "2025-04-01")

    assert (rehearsed.output.splitlines()[-1], empty) == ("Dry run: nothing was changed.", "No step is declared.\n")
    assert done.output == f"2 steps declared from {good}.\n"
    assert refused.exit_code == 2
    assert "line 2: 'yesterday' is no day; write 2026-03-31." in refused.output
    assert "line 3: server and note missing." in refused.output
    assert (mistyped.exit_code, "No database 'ordres' on server-1 was ever measured." in mistyped.output) == (2, True)
    assert (removed.exit_code, again.exit_code) == (0, 2)
    assert json.loads(capacity("steps", "list", "--json").output) == [
        {"server": "server-1", "database": None, "day": "2025-03-01", "note": "compressed"}
    ]


def test_a_runway_is_explained_by_its_samples_and_a_second_calculation() -> None:
    declared("server-1", "orders", "--gb", "3.5")

    told = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    document = json.loads(capacity("explain", "orders", "--runway", "--json").output)

    assert told[0] == f"orders on server-1, as of {TODAY}: 2.9 GiB"
    assert told[1] == "Measured days that were looked at: 200"
    assert told[2] == "Daily changes from 10.000 to 10.000 MiB count as they are, 0 beyond were cut to these."
    assert told[3] == "Drift: 10.000 MiB per day; a second way: 10.000. It was the better forecast."
    assert told[-3:] == [
        "Limit: 3.5 GiB, own limit, declared.",
        f"Full: early {ORDERS_FULL}, middle {ORDERS_FULL}, late {ORDERS_FULL}.",
        "Both ways come to the same.",
    ]
    assert (document["agrees"], document["drift_mb_per_day"], document["cut_changes"]) == (True, 10, 0)
    assert document["band_mb"]["30"] == [3314, 3314]


def test_what_has_no_limit_is_explained_up_to_the_limit_and_what_is_not_there_is_said_so() -> None:
    unlimited = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    unclear = capacity("explain", "orders")
    both = capacity("explain", "orders", "--runway", "--period", "daily")
    mistyped = capacity("explain", "ordres", "--runway")
    young = capacity("explain", "young", "--runway", columns=200).output.splitlines()

    assert unlimited[-3:-1] == ["Limit: unknown. `capacity limits set` declares one.", "No date: limit unknown."]
    assert (unclear.exit_code, both.exit_code, mistyped.exit_code) == (2, 2, 2)
    assert "Say which figures: --period, one of daily," in unclear.output
    assert "say one of the two" in both.output
    assert "database ordres was not measured within the last month, or does not exist" in mistyped.output
    assert not any("nan" in line for line in young), "ten days say nothing of how it goes on"


def test_a_volume_is_explained_as_a_database_is(engine: Engine) -> None:
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 10_000, 570 + 30 * ago)

    told = capacity("explain", "--server", "server-1", "--volume", "/data", "--runway", columns=200).output.splitlines()
    refused = capacity("explain", "orders", "--volume", "/data", "--runway")

    assert told[0] == f"volume /data on server-1, as of {TODAY}: 9.2 GiB"
    full = TODAY + timedelta(days=19)
    assert told[-3:] == [
        "Limit: 9.8 GiB, volume, measured.",
        f"Full: early {full}, middle {full}, late {full}.",
        "Both ways come to the same.",
    ]
    assert refused.exit_code == 2


def test_the_screen_lists_the_greatest_risk_first_and_counts_unknown_limits() -> None:
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-2", "--unlimited")

    shown = capacity("runway", columns=200)
    document = json.loads(capacity("runway", "--json").output)

    lines = shown.output.splitlines()
    assert lines[0] == f"Full when, as of {TODAY}"
    assert lines[2].split() == [
        *("server-1", "orders", "2.9", "GiB", "3.5", "GiB", "own", "limit"),
        *[str(ORDERS_FULL)] * 3,
        *("0%", "100%"),
    ]
    assert "unlimited" in lines[3]
    assert "young" not in shown.output, "bound by its server, which is listed"
    assert "young" in capacity("runway", "server-2").output
    assert lines[-1] == "Limit unknown: 1 database."
    assert [row["database"] for row in document["rows"]] == ["orders", None, "young"]
    assert document["unknown_limits"] == 1


def test_without_any_limit_the_screen_says_how_to_declare_one() -> None:
    shown = capacity("runway")

    assert shown.exit_code == 0
    assert "No limit of these is known. `capacity limits set` declares one." in shown.output
    assert "Limit unknown: 3 databases." in shown.output


def test_limits_are_listed_replaced_and_forgotten() -> None:
    declared("server-1", "orders", "--gb", "3.5", "--note", "contract")
    declared("server-1", "orders", "--gb", "5")
    declared("server-1", "--gb", "2000")

    listed = json.loads(capacity("limits", "list", "--json").output)
    removed = capacity("limits", "remove", "server-1", "orders")
    again = capacity("limits", "remove", "server-1", "orders")

    assert [(one["database"], one["limit_mb"], one["note"], one["source"]) for one in listed] == [
        (None, 2_048_000, None, "declared"),
        ("orders", 5120, None, "declared"),
    ]
    assert removed.exit_code == 0
    empty = capacity("limits", "remove", "server-1", "")
    assert (empty.exit_code, len(json.loads(capacity("limits", "list", "--json").output))) == (2, 1)
    assert (again.exit_code, "orders on server-1 has no limit. Nothing was changed." in again.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["server-1", "ordres", "--gb", "1"],
            "No database 'ordres' on server-1 was ever measured. Did you mean 'orders'?",
        ),
        (["sever-2", "--gb", "1"], "No server 'sever-2' is registered. Did you mean 'server-2'? Nothing was changed."),
        (["server-1", "--gb", "much"], "'much' is no limit; write GiB as 500 or 1.5, or unlimited."),
        (["server-1", "--gb", "0"], "'0' is no limit; it must be above zero"),
        (["server-1", "--gb", "nan"], "'nan' is no limit"),
        (["server-1", "--gb", "9e15"], "'9e15' is no limit; it must be above zero, and at most"),
        (["server-1"], "Say how much it can hold: either --gb or --unlimited."),
        (["server-1", "--gb", "1", "--unlimited"], "Say how much it can hold: either --gb or --unlimited."),
    ],
)
def test_a_limit_that_cannot_be_one_is_refused(arguments: list[str], told: str) -> None:
    refused = capacity("limits", "set", *arguments)

    assert refused.exit_code == 2
    assert told in refused.output
    assert json.loads(capacity("limits", "list", "--json").output) == []


def test_a_file_declares_all_its_limits_or_none(tmp_path: Path) -> None:
    good, bad, unknown = (tmp_path / f"{name}.csv" for name in ("limits", "bad", "unknown"))
    good.write_text(
        "server,database,limit_gb,note\nserver-1,,2000,disk\nserver-1,orders,1.5,\nserver-2,young,unlimited,\n"
    )
    bad.write_text("server,database,limit_gb\nserver-1,,2000\n,orders,1\nserver-1,still,few\n")

    rehearsed = capacity("limits", "import", str(good), "--dry-run")
    none_yet = json.loads(capacity("limits", "list", "--json").output)
    done = capacity("limits", "import", str(good))
    refused = capacity("limits", "import", str(bad))
    unknown.write_text("server,database,limit_gb\nserver-1,ordres,1\nserver-1,still,1\nserver-1,still,2\n")
    twice = capacity("limits", "import", str(unknown), "--dry-run")
    unknown.write_text("server,database,limit_gb\nserver-1,ordres,1\n")
    mistyped = capacity("limits", "import", str(unknown), "--dry-run")

    assert "More than one limit of still on server-1." in twice.output
    assert (mistyped.exit_code, "No database 'ordres' on server-1 was ever measured." in mistyped.output) == (2, True)
    assert rehearsed.output.splitlines()[-1] == "Dry run: nothing was changed."
    assert none_yet == []
    assert f"3 limits declared from {good}." in done.output
    listed = json.loads(capacity("limits", "list", "--json").output)
    assert [(one["server"], one["database"], one["limit_mb"], one["note"]) for one in listed] == [
        ("server-1", None, 2_048_000, "disk"),
        ("server-1", "orders", 1536, None),
        ("server-2", "young", None, None),
    ]
    assert refused.exit_code == 2
    assert "line 3: names no server." in refused.output
    assert "line 4: 'few' is no limit" in refused.output


@pytest.mark.parametrize("wrong", ["abc", "nan", "Infinity", "-1"])
def test_what_is_no_number_of_gib_is_refused(wrong: str) -> None:
    refused = capacity("runway", "--add-gb", wrong)

    assert refused.exit_code == 2
    assert f"'{wrong}' is no number of GiB" in refused.output


def test_a_server_that_is_not_there_is_said_so() -> None:
    refused = capacity("runway", "server-9")

    assert refused.exit_code == 2
    assert "No server is named 'server-9'." in refused.output


def test_a_server_without_history_takes_its_limit_along_when_it_is_removed(engine: Engine) -> None:
    add_instances(engine, [3])
    declared("server-3", "--gb", "10")

    removed = capacity("instances", "remove", "server-3")

    assert removed.exit_code == 0
    assert json.loads(capacity("limits", "list", "--json").output) == []


def test_a_limit_below_the_size_is_stored_and_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "limits.csv"
    file.write_text("server,database,limit_gb\nserver-1,,1\nserver-1,still,0.1\nserver-1,orders,9\n")

    said = capacity("limits", "set", "server-1", "orders", "--gb", "2").output.splitlines()
    imported = capacity("limits", "import", str(file)).output.splitlines()

    assert said[-1] == "note: orders on server-1 holds 2.9 GiB, more than its limit."
    assert imported[1:] == [
        "note: orders on server-1 was 2.0 GiB.",
        "note: server-1 holds 3.4 GiB, more than its limit.",
        "note: still on server-1 holds 500 MiB, more than its limit.",
    ]
    shown = capacity("runway", columns=200).output.splitlines()
    assert shown[2].split()[-5:-2] == ["full"] * 3


def test_a_file_without_a_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "limits.csv"
    file.write_text("server,database,limit_gb\n")

    refused = capacity("limits", "import", str(file))

    assert (refused.exit_code, "has no line below its headings. Nothing was changed." in refused.output) == (2, True)


def test_one_database_of_a_server_is_asked_for_by_its_name() -> None:
    declared("server-1", "--gb", "4")

    shown = json.loads(capacity("runway", "server-1", "still", "--json").output)
    unknown = json.loads(capacity("runway", "server-2", "young", "--json").output)
    mistyped = capacity("runway", "server-1", "stil")

    assert [(row["database"], row["limit_mb"]) for row in shown["rows"]] == [("still", 1082)]
    assert [(row["state"], row["history_days"]) for row in unknown["rows"]] == [("limit unknown", 10)]
    assert unknown["unknown_limits"] == 1
    assert (mistyped.exit_code, "'stil' is not in the newest sample of 'server-1'." in mistyped.output) == (2, True)


def test_what_holds_as_much_as_its_limit_is_full_whatever_its_history(engine: Engine) -> None:
    declared("server-2", "young", "--gb", "0.05")

    young = found(engine)["server-2", "young"]
    shown = capacity("runway", columns=200).output.splitlines()
    told = capacity("explain", "young", "--runway").output.splitlines()

    assert (young.state, young.early_day, young.probabilities) == ("full", TODAY, {7: 1, 30: 1, 90: 1, 365: 1})
    assert shown[2].split()[-5:] == ["full", "full", "full", "100%", "100%"]
    assert told[-2] == "It is full."


def test_too_little_history_says_how_much_there_is_and_is_needed() -> None:
    declared("server-2", "young", "--gb", "5")

    assert "10 of 57 days" in capacity("runway", columns=200).output
    assert (
        "No date: there are 10 days of history, and 57 are needed." in capacity("explain", "young", "--runway").output
    )


def test_a_pace_that_is_much_faster_of_late_is_remarked(engine: Engine) -> None:
    add_database_sizes(
        engine, sizes(2, "fast", FIRST.isoformat(), [1000] * 140 + [1000 + 100 * day for day in range(60)])
    )
    declared("server-2", "fast", "--gb", "7")

    fast = found(engine)["server-2", "fast"]
    shown = capacity("runway", columns=200).output

    assert (fast.recent_mb_per_day, fast.sooner_day) == (100, TODAY + timedelta(days=3))
    assert fast.change_mb_per_day < 50
    assert (
        "note: fast on server-2. In the last 30 days it grew by +100 MiB per day: at that pace it is full on "
        f"{TODAY + timedelta(days=3)}." in shown
    )


def test_a_step_on_a_day_without_sizes_around_it_says_that_there_is_nothing_to_leave_out() -> None:
    added = capacity("steps", "add", "server-1", "orders", "--day", str(TODAY + timedelta(days=1)), "--note", "planned")
    empty = capacity("steps", "add", "server-1", "--day", str(TODAY), "--note", " ")

    assert "No sizes on both sides of that day are known yet: until then there is nothing to leave out." in added.output
    assert (empty.exit_code, "--note is empty" in empty.output) == (2, True)
    assert "planned" not in capacity("explain", "orders", "--runway").output, "it lies ahead"


@pytest.mark.parametrize("command", ["limits", "steps", "volumes"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"server,db,limit_gb,day,note,volume,total_gb,free_gb\na,b,1,2025-01-01,x,y,2,1\n", "has an unknown column '"),
        ("server,database\nä,b\n".encode("latin-1"), "is not in UTF-8: save it as CSV UTF-8. Nothing was changed."),
        (b"", "is empty, or begins with an empty line. Nothing was changed."),
    ],
)
def test_a_file_with_a_misspelt_heading_another_encoding_or_nothing_in_it_is_refused(
    tmp_path: Path, command: str, content: bytes, told: str
) -> None:
    file = tmp_path / "file.csv"
    file.write_bytes(content)

    refused = capacity(command, "import", str(file), columns=250)

    assert (refused.exit_code, told in refused.output) == (2, True), refused.output


def test_files_that_cannot_extend_any_more_are_no_limit(engine: Engine) -> None:
    """Their size is what is allocated: full or not is not measured."""
    add_ceiling(engine, "orders", None, limit_mb=3014)

    every = outlooks(engine, TODAY)

    assert [row.state for row in every.rows] == []
    assert every.unknown_limits == 3


def test_a_volume_with_too_little_history_hides_no_database_that_fills_it(engine: Engine) -> None:
    add_volume(engine, 1, "/fast", TODAY, 9000, 60)
    add_volume(engine, 1, "/other", TODAY, 9000, 8000)
    add_ceiling(engine, "orders", ["/fast"])
    declared("server-1", "--gb", "1000")

    lines = capacity("runway", columns=200).output.splitlines()

    assert ["server-1", "orders"] in [line.split()[:2] for line in lines[2:4]]


def test_a_volume_that_fills_stands_for_the_databases_on_it(engine: Engine) -> None:
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 9000, 60 + 30 * ago)
    for name in ("orders", "still"):
        add_ceiling(engine, name, ["/data"], limit_mb=100_000)

    shown = capacity("runway", columns=200).output

    assert "volume /data" in shown
    assert "orders" not in shown


def test_several_live_totals_of_a_day_are_added_up(engine: Engine) -> None:
    declared("server-1", "--gb", "100")
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX uq_instance_size_stats_instance_date"))
        connection.execute(
            text(
                "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
                "VALUES (1, 1000, 1, :day)"
            ),
            {"day": TODAY},
        )

    rows = found(engine)

    assert rows["server-1", None].size_mb == 4514
    assert rows["server-1", "orders"].headroom_mb == 102_400 - 4514


def test_an_empty_name_removes_neither_the_limit_nor_the_step_of_a_whole_server() -> None:
    capacity("steps", "add", "server-1", "--day", str(TODAY), "--note", "moved")

    refused = capacity("steps", "remove", "server-1", "", "--day", str(TODAY))

    assert (refused.exit_code, "An empty name is no database. Nothing was changed." in refused.output) == (2, True)
    assert len(json.loads(capacity("steps", "list", "--json").output)) == 1


def test_a_large_fleet_is_read_in_batches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BATCH", 1)
    with engine.connect() as connection:
        batches = list(history.series(connection, "database", history.Asked(TODAY, every=True)))

    assert [[row.name for row in batch.subjects] for batch in batches] == [["orders"], ["still"], ["young"]]
