"""Scenarios: assumptions beside the base case, which they leave as it is where they assume nothing."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.declarations import declaration
from capacity_assets.base.periods import Clock
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.results import Runway
from capacity_assets.forecast.runway import compute_runways
from capacity_assets.forecast.scenarios import (
    KINDS_OF_ASSUMPTIONS,
    LimitChange,
    Scenario,
    ScenarioComparison,
    compare,
    higher_limits,
    new_database_everywhere,
)
from capacity_assets.ownership.scenario_results import fits
from tests.clocks import TODAY
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import served_pages
from tests.runways import FIRST, add_ceiling, add_volume, declared, fill_with_growing_servers, found

pytestmark = pytest.mark.usefixtures("growing_servers")

SOON, LATE = TODAY + timedelta(days=10), TODAY + timedelta(days=300)


def assumed(kind: str, **values: object) -> Scenario:
    return Scenario(**{kind: [declaration(KINDS_OF_ASSUMPTIONS[kind], values)]})


def compared(engine: Engine, scenario: Scenario, server: str | None = None) -> ScenarioComparison:
    return compare(engine, TODAY, scenario, lambda subjects, _label: set(subjects), (server, None))


def after(engine: Engine, scenario: Scenario) -> dict[tuple[str, str], Runway]:
    """What is forecast with the assumptions, by server and name."""
    return {(one.server, one.name): one for one in compared(engine, scenario).changed.rows}


def fill(engine: Engine) -> None:
    fill_with_growing_servers(engine)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Clock, "today", lambda _self: TODAY)
        patched.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
        declared("server-1", "--gb", "4")
        declared("server-1", "still", "--unlimited")
        declared("server-2", "--gb", "1")
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 10_000, 900 + 10 * ago)
    add_ceiling(engine, "orders", ["/data"], limit_mb=3900)


PREPARED = {"limited": fill}


@pytest.fixture
def limited(engine: Engine) -> Engine:
    """Limits of every kind: a server's, a database's, a volume's, an engine's ceiling, unlimited and none; copied."""
    return engine


NOTHING = {
    "no assumption": Scenario(),
    "growth times 1": assumed("growth", factor=1, label="team=payments"),
    "a new database of 0 GiB": assumed("new_database", gb=0, server="server-1", day=SOON),
    "a purge of 0 GiB": assumed("purge", server="server-1", database="orders", gb=0, day=SOON),
    "no higher limit": higher_limits(Decimal(0)),
    "a limit as it is": assumed("limit", server="server-1", add_gb=0, day=SOON),
}


@pytest.mark.nightly("computes every forecast twice")
def test_a_scenario_that_assumes_nothing_is_the_base_case_to_the_last_digit(limited: Engine) -> None:
    for server in (None, "server-1"):
        base = compute_runways(limited, TODAY, server)
        for name, nothing in NOTHING.items():
            comparison = compared(limited, nothing, server)
            assert (comparison.base, comparison.changed) == (base, base), name
            assert all(before == then for before, then in comparison.pairs), name


def test_a_higher_limit_is_what_declaring_it_would_give(engine: Engine) -> None:
    declared("server-1", "orders", "--gb", "3.5")

    higher = after(engine, higher_limits(Decimal(1)))["server-1", "orders"]
    named = after(engine, assumed("limit", server="server-1", database="orders", gb=4.5))["server-1", "orders"]
    listed = printed("runway", "server-1", "--add-gb", "1")

    assert found(engine)["server-1", "orders"].limit_mb == 3584
    declared("server-1", "orders", "--gb", "4.5")
    expected = found(engine)["server-1", "orders"]
    assert higher == expected
    assert (named.limit_mb, named.middle_day, named.source) == (4608, expected.middle_day, "assumed")
    assert "if every limit were 1 GiB higher" in listed


def test_an_assumption_counts_from_its_day_on(engine: Engine) -> None:
    declared("server-1", "--gb", "4")
    base = found(engine)["server-1", None].middle_day
    assert base is not None

    def day(scenario: Scenario) -> Any:
        return after(engine, scenario)["server-1", ""].middle_day

    coming = {"gb": 0.3, "server": "server-1"}
    assert SOON <= day(assumed("new_database", **coming, day=SOON)) < base
    assert day(assumed("new_database", **coming, day=LATE)) == base, "it is full before the new database comes"
    assert day(assumed("new_database", gb=2, server="server-1", day=SOON)) == SOON, "there is no room for it"
    assert day(assumed("limit", server="server-1", gb=5, day=SOON)) > base
    assert day(assumed("limit", server="server-1", gb=5, day=LATE)) == base
    assert day(assumed("purge", server="server-1", database="still", gb=0.4, day=SOON)) > base


def test_growth_changes_a_database_its_server_and_its_volume_by_the_same(limited: Engine) -> None:
    doubled = after(limited, assumed("growth", factor=2, server="server-1", database="orders"))

    changes = {name: doubled["server-1", name].change_mb_per_day for name in ("orders", "", "/data", "still")}
    assert changes == {"orders": 20, "": 20, "/data": 20, "still": 0}


def test_less_growth_takes_no_more_than_there_is(limited: Engine) -> None:
    with limited.begin() as connection:
        # The server as a whole stays as it is, whatever its database does.
        connection.execute(text("UPDATE instance_size_stats SET total_size_mb = 4000, total_size_bytes = NULL"))
    base = after(limited, Scenario())
    halved = after(limited, assumed("growth", factor=0.5))

    changes = {name: halved["server-1", name].change_mb_per_day for name in ("orders", "", "/data", "still")}
    assert (base["server-1", ""].change_mb_per_day, changes) == (0, {"orders": 5, "": 0, "/data": 5, "still": 0})


def test_a_smaller_disk_is_full_earlier_and_one_that_is_lost_at_once(limited: Engine) -> None:
    disk = {"server": "server-1", "volume": "/data"}
    base = {(row.server, row.name): row for row in compute_runways(limited, TODAY).rows}["server-1", "/data"]
    smaller = after(limited, assumed("limit", **disk, add_gb=-0.5))["server-1", "/data"]
    same = after(limited, assumed("limit", **disk, gb=Decimal(base.limit_mb or 0) / 1024 - Decimal("0.5")))
    lost = after(limited, assumed("limit", **disk, add_gb=-900))["server-1", "/data"]
    whole = after(limited, assumed("limit", add_gb=-900))

    assert (base.limit_mb or 0) - (smaller.limit_mb or 0) == 512
    assert (base.middle_day or date.max) > (smaller.middle_day or date.max)
    assert smaller == same["server-1", "/data"]
    assert (lost.state, lost.middle_day) == ("full", TODAY)
    assert {row.state for row in whole.values()} == {"full"}


@pytest.mark.parametrize("is_in_order", [True, False])
def test_a_new_limit_replaces_the_one_before_it_whatever_their_order(limited: Engine, *, is_in_order: bool) -> None:
    measured = {row.name: row.size_mb for row in compute_runways(limited, TODAY).rows if row.server == "server-1"}
    full_on = TODAY + timedelta(days=30)
    for name, subject in (("/data", {"volume": "/data"}), ("orders", {"database": "orders"})):
        larger = {"gb": 1000, "day": TODAY + timedelta(days=2)}
        smaller = {"gb": Decimal(measured[name]) / 1024, "day": full_on}
        changes = [
            declaration(LimitChange, {"server": "server-1", **subject, **change})
            for change in ((larger, smaller) if is_in_order else (smaller, larger))
        ]

        assert after(limited, Scenario(limit=changes))["server-1", name].middle_day == full_on, name


def test_a_day_within_a_year_has_at_least_its_probability_within_a_year(limited: Engine) -> None:
    disk = {"server": "server-1", "volume": "/data"}
    before = after(limited, assumed("limit", **disk, add_gb=0.5))["server-1", "/data"]
    assert before.middle_day is not None
    assert before.probabilities[90] < 0.5

    # When the disk becomes much larger, it was full for some weeks.
    later = {"add_gb": 900, "day": before.middle_day + timedelta(days=30)}
    limits = [declaration(LimitChange, {**disk, **change}) for change in ({"add_gb": 0.5}, later)]
    row = after(limited, Scenario(limit=limits))["server-1", "/data"]

    assert row.middle_day == before.middle_day
    assert row.probabilities[90] == before.probabilities[90]
    assert row.probabilities[365] == 0.5


def test_what_is_full_today_is_certain_also_if_its_limit_rises_before_the_first_horizon(limited: Engine) -> None:
    changes = ({"add_gb": -900}, {"add_gb": 900, "day": TODAY + timedelta(days=3)})
    disk = {"server": "server-1", "volume": "/data"}
    limits = [declaration(LimitChange, {**disk, **change}) for change in changes]

    row = after(limited, Scenario(limit=limits))["server-1", "/data"]

    assert row.middle_day == TODAY
    assert set(row.probabilities.values()) == {1.0}


def test_a_database_that_moves_takes_its_size_and_growth_along(limited: Engine) -> None:
    moved = after(limited, assumed("move", server="server-1", database="orders", to="server-2", day=SOON))

    assert (moved["server-1", ""].change_mb_per_day, moved["server-2", ""].change_mb_per_day) == (0, 10)
    assert moved["server-1", ""].middle_day is None
    assert moved["server-1", "/data"].middle_day is None
    assert moved["server-2", ""].middle_day in {SOON, None}, "1 GiB does not hold it, but server-2 has little history"


def test_what_one_server_loses_by_a_move_another_gains_after_the_purges_before_it(engine: Engine) -> None:
    purge = {"server": "server-1", "database": "orders"}
    move = declaration(KINDS_OF_ASSUMPTIONS["move"], {**purge, "to": "server-2", "day": SOON})

    def taken(*purges: tuple[float, Any]) -> list[tuple[str, float, float]]:
        made = [declaration(KINDS_OF_ASSUMPTIONS["purge"], {**purge, "gb": gb, "day": day}) for gb, day in purges]
        comparison = compared(engine, Scenario(purge=made, move=[move]))
        assert bool(comparison.notes) == any(gb > 3 for gb, _ in purges)
        return [(one.server, one.size_mb, one.mb_per_day) for one in comparison.effects]

    # It has 3,014 MiB and grows by ten per day: 3,114 on the day of the move.
    assert taken() == [("server-1", -3114, -10), ("server-2", 3114, 10)]
    before, after = (1, TODAY), (0.5, LATE)
    assert taken(before, after) == [
        *(("server-1", -1024, 0), ("server-1", -2090, -10)),
        *(("server-2", 2090, 10), ("server-2", -512, 0)),
    ]
    assert taken((40, SOON)) == [("server-1", -3114, 0), ("server-1", 0, 0), ("server-2", 0, 0)]


def test_a_purge_takes_no_more_than_its_database_has(limited: Engine) -> None:
    comparison = compared(limited, assumed("purge", server="server-1", database="still", gb=4, day=SOON))

    assert [one.size_mb for one in comparison.effects] == [-500]
    assert comparison.notes == [
        "4.0 GiB less in still on server-1 from 30 Jul 2025: still has only 500 MiB then.",
        "server-1: the disk is not known, so only the server changes.",
    ]


def test_a_larger_disk_gives_room_only_to_what_grows_on_it(limited: Engine) -> None:
    add_volume(limited, 1, "/spare", TODAY, 10_000, 9_000)
    printed("limits", "remove", "server-1")
    base = after(limited, Scenario())

    spare = after(limited, assumed("limit", server="server-1", volume="/spare", add_gb=5))
    data = after(limited, assumed("limit", server="server-1", volume="/data", add_gb=5))

    assert base["server-1", ""].binds == "volume"
    assert spare["server-1", ""] == base["server-1", ""]
    assert spare["server-1", "/spare"].limit_mb == 10_000 + 5120
    assert data["server-1", ""].limit_mb == int(base["server-1", ""].limit_mb or 0) + 5120


def test_a_limit_that_is_not_known_cannot_grow_and_the_scenario_says_so(engine: Engine) -> None:
    add_volume(engine, 1, "/data", TODAY, 10_000, 900)

    def notes(**values: object) -> list[str]:
        return list(compared(engine, assumed("limit", **values)).notes)

    assert notes(server="server-1", add_gb=1) == [
        "limit of server-1: +1.0 GiB: the server has no known limit of its own, so nothing changes. "
        "`volume` names a disk of the server: /data."
    ]
    assert notes(server="server-2", add_gb=1) == [
        "limit of server-2: +1.0 GiB: the server has no known limit of its own, so nothing changes."
    ]
    [of_database] = notes(server="server-1", database="orders", add_gb=1)
    assert "orders has no known limit of its own" in of_database
    assert notes(server="server-1", volume="/data", add_gb=1) == []
    assert notes(server="server-1", gb=4) == notes(add_gb=1) == []


def test_servers_are_ordered_by_what_a_new_database_does_to_them(limited: Engine) -> None:
    add_instances(limited, [3, 4])
    for server in (3, 4):
        add_database_sizes(limited, sizes(server, "flat", FIRST.isoformat(), [100] * 200))
        add_instance_sizes(limited, totals(server, FIRST.isoformat(), [(100, 1)] * 200))
        declared(f"server-{server}", "--gb", "4")
    placed = fits(compared(limited, new_database_everywhere(Decimal("0.5"))))

    # Equal servers stand by name, and what has too little history to say comes last.
    order = ["server-3", "server-4", "server-1", "server-2"]
    assert [one.server for one in placed] == order
    assert placed[2].before.middle_day > placed[2].after.middle_day  # type: ignore[operator]
    assert placed[3].after.state == "too little history"
    document = json.loads(printed("scenario", "--fit", "0.5", "--json"))
    assert [one["server"] for one in document] == order


FILE = f"""
[[growth]]
label = "team=shop"
factor = 1.5

[[new_database]]
server = "server-1"
gb = 0.25
day = {SOON}

[[limit]]
server = "server-1"
add_gb = 1
"""


def test_a_file_gives_runways_and_budget_beside_the_base_case_and_nothing_is_stored_unless_asked(
    limited: Engine, service: AggregationService, tmp_path: Path
) -> None:
    printed("labels", "set", "server-1", "team=shop")
    printed("prices", "set", "0.5", "--currency", "EUR", "--always")
    compute_windows(service, "daily", FIRST, TODAY)
    issue_runways(limited, TODAY, TODAY)
    printed("bill", "--month", "2025-06")
    file = tmp_path / "next.toml"
    file.write_text(FILE)

    shown = printed("scenario", str(file))
    again = json.loads(printed("scenario", str(file), "--json"))
    with limited.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM capacity_scenarios")).scalar() == 0
    stored = json.loads(printed("scenario", str(file), "--json", "--store", "next year"))

    assert {**stored, "stored": None} == again, "the same file gives the same figures"
    assert "growth of team=shop times 1.5" in shown
    lines = {line["name"]: line for line in again["budget"]}
    # A new database and half the growth more; what has no label stays as it is, and the fleet changes by the sum.
    assert Decimal(lines["shop"]["difference"]) > 0
    assert Decimal(lines[None]["difference"]) == 0
    assert again["total"]["difference"] == lines["shop"]["difference"]
    assert again["total"]["end_size_after_mb"] == sum(line["end_size_after_mb"] for line in lines.values())
    database = limited.url
    with served_pages(database) as pages:
        page, html = pages.document("/scenario"), pages.ask("/scenario?name=next+year").text
    assert (page["name"], page["names"]) == ("next year", ["next year"])
    assert page["runways"] == stored["runways"]
    assert page["server_ids"] == {"server-1": 1}
    assert ' <span class="under">on <a href="/server?server=1">server-1</a></span>' in html
    assert "growth of team=shop times 1.5" in html
    printed("scenario", "--remove", "next year")
    assert capacity("scenario", "--remove", "next year").exit_code == 2


@pytest.fixture
def budgeted(limited: Engine, service: AggregationService) -> Engine:
    """Two teams with one price, of which the forecasts of groups are issued."""
    printed("labels", "set", "server-1", "team=shop", "--always")
    printed("labels", "set", "server-2", "team=search", "--always")
    printed("prices", "set", "0.337", "--currency", "EUR", "--always")
    compute_windows(service, "daily", FIRST, TODAY)
    issue_runways(limited, TODAY, TODAY)
    printed("bill", "--month", "2025-06")
    return limited


def changed_budget(path: Path, written: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    path.write_text(written)
    document = json.loads(printed("scenario", str(path), "--json"))
    lines = {line["name"]: line for line in document["budget"]}
    assert document["total"]["end_size_after_mb"] == sum(line["end_size_after_mb"] for line in lines.values())
    assert Decimal(document["total"]["amount_after"]) == sum(Decimal(line["amount_after"]) for line in lines.values())
    return lines, document["total"]


def test_a_budget_without_growth_keeps_the_sizes_of_today_and_without_an_assumption_that_of_the_base_case(
    budgeted: Engine, tmp_path: Path
) -> None:
    newest = "SELECT group_name, size_mb FROM capacity_group_forecasts WHERE grouped_by = 'team'"
    with budgeted.connect() as connection:
        today_mb = {row.group_name: row.size_mb for row in connection.execute(text(newest)) if row.group_name}

    nothing, _ = changed_budget(tmp_path / "next.toml", "[[growth]]\nfactor = 1\n")
    still, _ = changed_budget(tmp_path / "next.toml", "[[growth]]\nfactor = 0\n")

    assert {line["difference"] for line in nothing.values()} == {"0.00"}
    assert all(line["end_size_after_mb"] == line["end_size_before_mb"] for line in nothing.values())
    assert still["shop"]["end_size_before_mb"] > today_mb["shop"] + 10 * 300
    assert {name: line["end_size_after_mb"] for name, line in still.items()} == today_mb
    stays = ", ".join(f"forecast_{days}_mb = size_mb" for days in (7, 30, 90, 365))
    with budgeted.begin() as connection:
        connection.execute(text(f"UPDATE capacity_runways SET {stays} WHERE name = 'team=shop'"))
    halved, _ = changed_budget(tmp_path / "next.toml", "[[growth]]\nfactor = 0.5\n")
    assert halved["shop"]["end_size_after_mb"] == today_mb["shop"], "what does not grow stays as it is"


def test_a_move_changes_no_total_also_where_the_forecast_of_its_group_has_less(
    budgeted: Engine, tmp_path: Path
) -> None:
    for has_less in (False, True):
        if has_less:
            small = ", ".join(f"forecast_{days}_mb = 1000" for days in (7, 30, 90, 365))
            with budgeted.begin() as connection:
                connection.execute(text(f"UPDATE capacity_runways SET {small} WHERE name = 'team=shop'"))
        lines, total = changed_budget(tmp_path / "next.toml", f"{MOVE}day = {SOON}\n")

        shop, search = lines["shop"], lines["search"]
        assert total["end_size_after_mb"] == total["end_size_before_mb"]
        assert total["difference"] == "0.00"
        assert search["end_size_after_mb"] > search["end_size_before_mb"]
        assert Decimal(search["difference"]) == -Decimal(shop["difference"]) > 0
        assert (shop["end_size_after_mb"] == 0) == has_less


MOVE = '[[move]]\nserver = "server-1"\ndatabase = "orders"\nto = "server-2"\n'
WRONG = {
    "[[limit]]\nserver = 1.2\n": "limit 1: server must be text, in quotes.",
    "[[purges]]\n": "must contain only tables [[growth]]",
    '[[purge]]\nserver = "server-1"\ndatabase = "gone"\ngb = 1\n': "'gone' is not in the newest sample",
    '[[purge]]\nserver = "server-1"\ndatabase = "ordres"\ngb = 1\n': "of 'server-1'. Did you mean 'orders'?",
    '[[limit]]\nserver = "server-1"\n': "limit 1: A limit has either gb or add_gb.",
    '[[growth]]\nfactor = 2\nlabel = "team=nobody"\n': "Nothing has the label team=nobody.",
    '[[new_database]]\nserver = "server-9"\ngb = 1\n': "server-9",
    "growth = [1, 2]\n": "must contain only tables",
    "[[purges]]\ngb = 1\n": "Did you mean 'purge'?",
    "": "assumes nothing: write at least one table",
    '[[growth]]\nfactor = 2\ndatabase = "nosuch"\n': "No measured database matches: growth of nosuch times 2.",
    '[[new_database]]\nserver = "server-1"\ngb = "1e999999999"\n': "'1e999999999' is not a number of GiB",
    '[[growth]]\nfactor = "much"\n': "growth 1: 'much' is not a number; write a factor",
    "[[growth]]\nfactor = 1e400\n": "growth 1: The factor is too large; the largest is 1,000.",
    '[[limit]]\nadd_gb = 1\ndatabase = "orders"\n': "limit 1: Name the server of database orders.",
    '[[new_database]]\ngb = 1\nvolume = "/x"\nserver = "server-1"\n': "server-1 has no measured disk '/x'.",
    '[[new_database]]\ngb = 1\ndatabase = "orders"\nserver = "server-1"\n': "server-1 already has a database 'orders'.",
    f'[[purge]]\nserver = "server-1"\ndatabase = "orders"\ngb = 1\nday = {FIRST}\n': "20 Jul 2025 already include this",
    f'[[limit]]\nserver = "server-1"\nadd_gb = 1\nday = {FIRST}\n': "20 Jul 2025 already include this",
    f"{MOVE}{MOVE}": "orders on server-1 moves more than once.",
}


def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    for written, said in WRONG.items():
        file.write_text(written)
        refused = capacity("scenario", str(file))
        assert refused.exit_code == 2
        assert said in refused.output


def test_a_limit_of_a_server_out_of_service_is_refused(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text('[[limit]]\nserver = "server-2"\ngb = 1\n')
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE name = 'server-2'"))

    refused = capacity("scenario", str(file))

    assert refused.exit_code == 2
    assert "Server 'server-2' is out of service, or was not measured within the last month." in refused.output
