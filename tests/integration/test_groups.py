"""Groups as they are shown: they add up to the fleet, are explained by their parts, and agree with the bill."""

from __future__ import annotations

import json
from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.ownership.bills import issue_bill
from capacity_assets.ownership.labels import GroupExplanation, explain_group
from tests.clocks import fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.labels import BEFORE, MONTH, labelled

pytestmark = pytest.mark.usefixtures("labelled_fleet")


def groups(engine: Engine, by: str, start: date = MONTH) -> dict[str | None, tuple[int, int | None]]:
    query = text(
        "SELECT group_name, size_mb, change_mb FROM capacity_groups "
        "WHERE period = 'monthly' AND window_start = :start AND grouped_by = :by"
    )
    with engine.connect() as connection:
        rows = connection.execute(query, {"start": start, "by": by})
        return {row.group_name: (row.size_mb, row.change_mb) for row in rows}


def explained(engine: Engine, key: str, value: str, start: date = MONTH) -> GroupExplanation:
    period = PERIODS["monthly"]
    with engine.connect() as connection:
        return explain_group(connection, period, period.window_of(start), key, value)


def test_groups_add_up_to_the_fleet_with_a_group_for_what_has_no_label(engine: Engine) -> None:
    labelled("set", "server-1", "team=platform")
    labelled("set", "server-1", "team=payments", "--database", "pay_*", "--always")

    # pay_a: 145 on average, 30.5 more than in March; pay_b: 300 on 15 of 30 days. The replica counts nowhere.
    assert groups(engine, "team") == {"payments": (145 + 150, 30 + 150), "platform": (1000, 0), None: (50, 0)}
    assert groups(engine, "engine") == {"postgresql": (1345, 180)}
    assert groups(engine, "server") == {"server-1": (1295, 180), "server-2": (50, 0)}
    assert groups(engine, "team", BEFORE) == {"payments": (115, None), "platform": (1000, None), None: (50, None)}


def test_what_a_group_loses_when_a_database_goes_is_its_own(engine: Engine, service: AggregationService) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_b")
    add_database_sizes(engine, sizes(1, "other", "2025-05-01", [1000] * 31))
    add_instance_sizes(engine, totals(1, "2025-05-01", [(1000, 1)] * 31))
    compute_windows(service, "monthly", date(2025, 5, 1), date(2025, 5, 1))

    may = groups(engine, "team", date(2025, 5, 1))

    assert may["payments"] == (0, -150), "what is gone has a row, so that changes add up too"
    assert may[None] == (1000, 1000 - 1195), "server-2 was not measured in May"


def test_two_labelled_halves_of_a_month_leave_no_less_than_nothing(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [4])
    add_database_sizes(engine, sizes(4, "left", MONTH.isoformat(), [1] * 15))
    add_database_sizes(engine, sizes(4, "right", "2025-04-16", [1] * 15))
    add_instance_sizes(engine, totals(4, MONTH.isoformat(), [(1, 1)] * 30))
    labelled("set", "server-4", "team=red", "--database", "left")
    labelled("set", "server-4", "team=blue", "--database", "right")
    compute_windows(service, "monthly", MONTH, MONTH)
    query = text(
        "SELECT group_name, size_mb, databases FROM capacity_groups WHERE period = 'monthly' AND grouped_by = 'team' "
        "AND window_start = '2025-04-01'"
    )

    with engine.connect() as connection:
        found = {row.group_name: (row.size_mb, row.databases) for row in connection.execute(query)}

    assert (found["red"], found["blue"]) == ((0, 0), (0, 1)), "half a MiB each, and one database in all"
    assert found[None] == (1345 + 1, 4), "those of the other servers"
    assert explained(engine, "team", "red").agrees


def test_a_change_of_owner_is_a_change_of_both_groups_and_none_of_the_fleet(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    labelled("set", "server-1", "team=billing", "--database", "pay_*", "--from", "2025-04-01")

    assert groups(engine, "team", BEFORE)["payments"][0] == 115
    assert groups(engine, "team") == {"billing": (295, 295), "payments": (0, -115), None: (1050, 0)}


def test_within_a_month_each_day_counts_for_its_owner(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_a")
    labelled("set", "server-1", "team=billing", "--database", "pay_a", "--from", "2025-04-11")

    # Ten days of 131 to 140, and twenty of 141 to 160.
    assert groups(engine, "team")["payments"] == (45, 45 - 115)
    assert groups(engine, "team")["billing"] == (100, 100)


def test_the_command_shows_each_group_its_growth_and_what_of_it_fills_first(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    assert capacity("limits", "set", "server-2", "pay_a", "--gb", "0.01").exit_code == 0
    with engine.begin() as connection:
        for server, database in ((2, "pay_a"), (1, "pay_a")):
            add = "INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, "
            add += "change_mb_per_day, history_days, middle_day, in_time) VALUES ('2025-07-20', :server, 'database', "
            add += ":name, 'forecast', '2025-07-20', 1, 1, 61, :day, true)"
            connection.execute(text(add), {"server": server, "name": database, "day": date(2025, 8, server)})

    shown = capacity("groups", "--window", "2025-04-01", columns=200).output
    found = json.loads(capacity("groups", "--window", "2025-04-01", "--json").output)

    assert [(one["name"], one["size_mb"], one["change_mb"]) for one in found] == [
        (None, 1050, 0),
        ("payments", 295, 180),
    ]
    first = {"server": "server-1", "name": "pay_a", "day": "2025-08-01", "server_id": 1, "subject": "database"}
    assert found[1]["fills_first"] == first
    assert "(no team)" in shown
    assert "2 Aug 2025 pay_a on server-2" in shown
    assert "Total: 1.3 GiB, +180 MiB where it is known." in shown


def test_groups_that_are_left_say_since_when_they_are_behind_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capacity_assets.cli.labels.SECONDS_PER_COMMAND", 0)
    april = ("--window", "2025-04-01")

    declared = labelled("set", "server-1", "team=payments")
    behind = capacity("groups", *april).output
    computed = capacity("groups", *april, "--now").output
    at_once = labelled("set", "server-2", "team=platform", "--now")

    assert "The late data sensor will compute the groups of 2 windows." in declared
    assert "Labels or samples changed at " in behind
    assert "payments" not in behind
    assert "samples changed" not in computed
    assert "payments" in computed
    assert "2 windows of groups computed." in at_once
    assert "platform" in capacity("groups", *april).output
    assert "samples changed" not in capacity("groups", *april).output


def test_without_any_label_the_fleet_is_one_group_and_says_how_to_declare_one() -> None:
    shown = capacity("groups", "--window", "2025-04-01", columns=200).output

    assert "No database has such a label yet. `capacity labels set`" in shown
    assert "There are no groups by 'colour'" in capacity("groups", "--by", "colour").output
    assert "Did you mean 'team'?" in capacity("groups", "--by", "teem").output


def test_an_explanation_names_the_labels_of_its_window() -> None:
    labelled("set", "server-1", "team=platform", "environment=test")
    labelled("set", "server-1", "team=payments", "--database", "pay_*", "--from", "2025-04-02")
    april = ("--period", "monthly", "--window", "2025-04-01")

    own = capacity("explain", "pay_b", "--server", "server-1", *april).output
    before = json.loads(
        capacity(
            "explain", "pay_a", "--server", "server-1", "--period", "monthly", "--window", "2025-03-01", "--json"
        ).output
    )

    assert "Labels: environment=test, team=payments" in own
    assert "Labels: environment=test, team=platform" in capacity("explain", "--server", "server-1", *april).output
    assert before["labels"] == {"environment": "test", "team": "platform"}


def test_the_sum_of_a_group_is_explained_by_its_parts(engine: Engine, service: AggregationService) -> None:
    labelled("set", "server-1", "team=platform")
    labelled("set", "server-2", "team=payments", "--from", "2025-04-02")
    labelled("set", "server-1", "team=payments", "--database", "pay_*", "--always")
    add_database_sizes(engine, sizes(1, "other", "2025-05-01", [1000] * 31))
    add_instance_sizes(engine, totals(1, "2025-05-01", [(1000, 1)] * 31))
    compute_windows(service, "monthly", date(2025, 5, 1), date(2025, 5, 1))
    april = ("--period", "monthly", "--window", "2025-04-01")

    shown = capacity("explain", "--label", "team=payments", *april).output
    found = json.loads(capacity("explain", "--label", "team=platform", *april, "--json").output)

    assert [line.split() for line in shown.splitlines() if line.startswith("server-")] == [
        ["server-1", "pay_b", "15", "150", "MiB", "of", "pay_*,", "always"],
        ["server-1", "pay_a", "30", "145", "MiB", "of", "pay_*,", "always"],
        ["server-2", *["all", "without", "their", "own", "label"], "29", "48", "MiB", "of", "the", "server,", "from",
         "2025-04-02"],
    ]  # fmt: skip
    assert "Total: 10,315 MiB over 30 measured days, 343 MiB per day. The stored row has the same." in shown
    [platform] = found["parts"]
    assert (platform["database"], platform["sum_mb"], platform["days"]) == (None, 30_000, 30)
    assert found["agrees"]


def test_groups_and_the_bill_of_a_month_agree(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_a")
    labelled("set", "server-1", "team=billing", "--database", "pay_a", "--from", "2025-04-11")
    labelled("set", "server-2", "team=platform")

    issue_bill(engine, PERIODS["monthly"].window_of(MONTH), fixed_clock(), ["team"])

    query = text(
        "SELECT labels ->> 'team' AS team, sum(gib_months) * 1024 AS size_mb FROM capacity_bill_lines "
        "WHERE month = :month GROUP BY 1"
    )
    with engine.connect() as connection:
        billed = {row.team: row.size_mb for row in connection.execute(query, {"month": MONTH})}
    shown = groups(engine, "team")
    assert {team for team, (size, _) in shown.items() if size} == billed.keys()
    assert all(abs(shown[team][0] - size) < 1 for team, size in billed.items()), "but for rounding"


UNEXPLAINED = [
    (
        ["--label", "team=nobody", "--period", "monthly", "--window", "2025-04-01"],
        "Nothing has team=nobody in April 2025. team has platform there.",
    ),
    (["--label", "team", "--period", "monthly"], "such as team=payments"),
    (["--label", "taem=a", "--period", "monthly"], "Did you mean 'team'?"),
    (["--label", "team=a"], "Give --period, one of"),
    (["orders", "--label", "team=a", "--period", "monthly"], "--label explains a whole group"),
]


def test_a_group_that_cannot_be_explained_is_refused_in_one_sentence() -> None:
    labelled("set", "server-1", "team=platform")
    for arguments, problem in UNEXPLAINED:
        refused = capacity("explain", *arguments)

        assert refused.exit_code == 2, arguments
        assert problem in refused.output, arguments
