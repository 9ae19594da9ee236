"""Declared steps, how a runway is explained, and what the screen shows."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.units import human_day
from tests.clocks import TODAY
from tests.command import capacity
from tests.runways import ORDERS_DAYS, ORDERS_EARLY, ORDERS_LATE, add_volume, declared, found

pytestmark = pytest.mark.usefixtures("growing_servers")


PURGED = TODAY - timedelta(days=20)


@pytest.fixture
def purged(growing_servers: None, engine: Engine) -> None:  # noqa: ARG001 -- goes first
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
    capacity("steps", "add", "server-1", "--day", "2001-01-01", "--note", "before everything that was measured")

    rows = found(engine)
    message = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    document = json.loads(capacity("explain", "--runway", "--server", "server-1", "--json").output)

    assert added.output == (
        f"orders on server-1: archive purged, {PURGED}. Forecasts ignore the change from 4.2 GiB to 2.7 GiB.\n"
        "Forecast of server-1 updated.\n"
    )
    assert before.probabilities[90] < 1
    orders, whole = rows["server-1", "orders"], rows["server-1", None]
    assert orders.change_mb_per_day == 10
    assert (orders.size_mb, orders.early_day, orders.late_day) == (3014, ORDERS_EARLY, ORDERS_LATE)
    assert whole.change_mb_per_day == orders.change_mb_per_day
    assert [line for line in message if line.startswith("Ignored")] == [
        f"Ignored: {human_day(PURGED)}, orders: archive purged."
    ]
    assert message[-1] == "Both calculations agree."
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

    assert (rehearsed.output.splitlines()[-1], empty) == (
        "Dry run: nothing was changed.",
        "No step is declared. `capacity steps add` declares one.\n",
    )
    assert done.output == f"2 steps declared from {good}.\nForecast of server-1 updated.\n"
    assert refused.exit_code == 2
    assert "line 2: 'yesterday' is not a day of the calendar; write YYYY-MM-DD." in refused.output
    assert "line 3: server and note missing." in refused.output
    assert (mistyped.exit_code, "No database 'ordres' on server-1 was ever measured." in mistyped.output) == (2, True)
    assert (removed.exit_code, again.exit_code) == (0, 2)
    [left] = json.loads(capacity("steps", "list", "--json").output)
    assert list(left.values())[:4] == ["server-1", None, "2025-03-01", "compressed"]


def test_a_runway_is_explained_by_its_samples_and_a_second_calculation() -> None:
    declared("server-1", "orders", "--gb", "3.5")

    message = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    document = json.loads(capacity("explain", "orders", "--runway", "--json").output)

    assert message[0] == f"orders on server-1, as of {human_day(TODAY)}: 2.9 GiB"
    assert message[1] == "Measured days: 200"
    used = "Daily changes between 10.000 and 10.000 MiB are used unchanged"
    assert message[2] == f"{used}; 0 outside this range were cut to it."
    better = "The mean change was the better forecast."
    assert message[3] == f"Drift: 10.000 MiB per day; by the second calculation: 10.000. {better}"
    assert message[-3:] == [
        "Limit: 3.5 GiB, own limit, declared.",
        "Full: early {}, middle {}, late {}.".format(*map(human_day, ORDERS_DAYS)),
        "Both calculations agree.",
    ]
    assert (document["agrees"], document["drift_mb_per_day"], document["cut_changes"]) == (True, 10, 0)
    assert document["band_mb"]["30"] == [3314, 3314]


def test_what_has_no_limit_is_explained_up_to_the_limit_and_what_is_not_there_is_said_so() -> None:
    unlimited = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    unclear = capacity("explain", "orders")
    unknown = capacity("explain", "orderz")
    both = capacity("explain", "orders", "--runway", "--period", "daily")
    mistyped = capacity("explain", "ordres", "--runway")
    young = capacity("explain", "young", "--runway", columns=200).output.splitlines()
    [row] = [line for line in capacity("runway", "server-1", columns=200).output.splitlines() if " orders " in line]

    assert "unknown" in row
    assert "unlimited" not in row
    assert unlimited[-3:-1] == ["Limit: unknown. `capacity limits set` declares one.", "No date: limit unknown."]
    assert (unclear.exit_code, both.exit_code, mistyped.exit_code) == (2, 2, 2)
    assert "Give --period, one of daily," in unclear.output
    assert "Did you mean 'orders'?" in unknown.output
    assert "omit --period, --window and --all" in both.output
    assert "database ordres was not measured within the last month, or does not exist" in mistyped.output
    assert not any("nan" in line for line in young), "ten days say nothing of how it goes on"


def test_a_volume_is_explained_as_a_database_is(engine: Engine) -> None:
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 10_000, 570 + 30 * ago)

    message = capacity(
        "explain", "--server", "server-1", "--volume", "/data", "--runway", columns=200
    ).output.splitlines()
    refused = capacity("explain", "orders", "--volume", "/data", "--runway")

    assert message[0] == f"disk /data on server-1, as of {human_day(TODAY)}: 9.2 GiB"
    full = [human_day(TODAY + timedelta(days=days)) for days in (12, 19, 69)]
    assert message[-3:] == [
        "Limit: 9.8 GiB, volume, measured.",
        "Full: early {}, middle {}, late {}.".format(*full),
        "Both calculations agree.",
    ]
    assert refused.exit_code == 2


def test_the_screen_lists_the_greatest_risk_first_and_counts_unknown_limits() -> None:
    declared("server-1", "orders", "--gb", "3.5")
    declared("server-2", "--unlimited")

    shown = capacity("runway", columns=200)
    document = json.loads(capacity("runway", "--json").output)

    lines = shown.output.splitlines()
    assert lines[0] == f"Fill dates as of {human_day(TODAY)}, greatest risk first"
    assert lines[2].split() == [
        *("server-1", "orders", "2.9", "GiB", "3.5", "GiB", "own", "limit"),
        *" ".join(map(human_day, ORDERS_DAYS)).split(),
        *("12", "%", "68", "%"),
    ]
    assert "unlimited" in lines[3]
    assert "young" not in shown.output, "bound by its server, which is listed"
    assert "young" in capacity("runway", "server-2").output
    assert lines[-1] == "Limit unknown: 1 database."
    assert [row["database"] for row in document["rows"]] == ["orders", None, "young"]
    assert document["unknown_limits"] == 1


def test_without_any_measurement_no_limit_is_asked_for(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats"))
        connection.execute(text("DELETE FROM instance_size_stats"))

    shown = capacity("runway")

    assert (shown.exit_code, shown.output) == (
        0,
        "Nothing was measured within the last month. `capacity status` shows what is stored.\n",
    )


def test_without_any_limit_the_screen_says_how_to_declare_one() -> None:
    shown = capacity("runway")

    assert shown.exit_code == 0
    assert "None of these has a known limit. `capacity limits set` declares one." in shown.output
    assert "Limit unknown: 3 databases." in shown.output
