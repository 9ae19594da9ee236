"""Labels of servers and databases: who wins, from which day on, and groups that add up to the fleet."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.clock import Clock
from capacity_assets.grouping.explained_groups import ExplainedGroup, explain_group
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.periods import PERIODS
from capacity_assets.settings import Settings
from tests.clocks import TODAY
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

MONTH, BEFORE = date(2025, 4, 1), date(2025, 3, 1)
DAYS = 61
FIRST = BEFORE.isoformat()


@pytest.fixture(autouse=True)
def fleet(settings: Settings, engine: Engine, service: AggregationService, monkeypatch: pytest.MonkeyPatch) -> None:
    """March and April: server-1 with pay_a, pay_b and other, server-2 with pay_a, and its replica server-3."""
    assert settings
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)
    add_instances(engine, [1, 2])
    add_instances(engine, [3], counted_by=2)
    growing = [100 + day for day in range(DAYS)]
    add_database_sizes(engine, sizes(1, "pay_a", FIRST, growing))
    add_database_sizes(engine, sizes(1, "pay_b", MONTH.isoformat(), [300] * 15))
    add_database_sizes(engine, sizes(1, "other", FIRST, [1000] * DAYS))
    add_instance_sizes(
        engine,
        totals(1, FIRST, [(size + 1000 + (300 if 31 <= n < 46 else 0), 3) for n, size in enumerate(growing)]),
    )
    for server in (2, 3):
        add_database_sizes(engine, sizes(server, "pay_a", FIRST, [50] * DAYS))
        add_instance_sizes(engine, totals(server, FIRST, [(50, 1)] * DAYS))
    service.calculate_period_aggregations("monthly", BEFORE, MONTH)


def labelled(*arguments: str) -> str:
    done = capacity("labels", *arguments)
    assert done.exit_code == 0, done.output
    return done.output


def groups(engine: Engine, by: str, start: date = MONTH) -> dict[str | None, tuple[int, int | None]]:
    query = text(
        "SELECT group_name, size_mb, change_mb FROM capacity_groups "
        "WHERE period = 'monthly' AND window_start = :start AND grouped_by = :by"
    )
    with engine.connect() as connection:
        rows = connection.execute(query, {"start": start, "by": by})
        return {row.group_name: (row.size_mb, row.change_mb) for row in rows}


def explained(engine: Engine, key: str, value: str, start: date = MONTH) -> ExplainedGroup:
    period = PERIODS["monthly"]
    with engine.connect() as connection:
        return explain_group(connection, period, period.window_of(start), key, value)


def labels_of(engine: Engine, server: int, database: str, start: date = MONTH) -> dict[str, str]:
    query = text(
        "SELECT labels FROM capacity_growth WHERE period = 'monthly' AND window_start = :start "
        "AND server_id = :server AND database = :database"
    )
    with engine.connect() as connection:
        asked = {"start": start, "server": server, "database": database}
        found: dict[str, str] = connection.execute(query, asked).scalar_one()
        return found


def test_a_name_comes_before_a_long_pattern_a_short_one_and_the_server(engine: Engine) -> None:
    labelled("set", "server-1", "team=platform")
    assert labels_of(engine, 1, "pay_a") == {"team": "platform"}
    labelled("set", "server-1", "team=money", "--database", "p*", "--always")
    labelled("set", "server-1", "team=payments", "--database", "pay_?", "--always")
    assert labels_of(engine, 1, "pay_a") == {"team": "payments"}
    labelled("set", "server-1", "team=search", "--database", "pay_a", "--always")

    assert labels_of(engine, 1, "pay_a") == {"team": "search"}
    assert labels_of(engine, 1, "pay_b") == {"team": "payments"}
    assert labels_of(engine, 1, "other") == {"team": "platform"}
    assert labels_of(engine, 2, "pay_a") == {}


def test_a_pattern_takes_percent_and_underscore_for_themselves(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pa%_*")
    labelled("set", "server-1", "team=search", "--database", "pay_*")

    assert labels_of(engine, 1, "pay_a") == {"team": "search"}


def test_the_first_value_holds_always_and_a_later_one_from_today(engine: Engine) -> None:
    assert "team = platform, always." in labelled("set", "server-1", "team=platform")
    later = labelled("set", "server-1", "team=search")

    assert f"team = search, from {TODAY}, platform before." in later
    assert labels_of(engine, 1, "other", BEFORE) == {"team": "platform"}
    assert "Nothing to change" in labelled("set", "server-1", "team=search")


def test_a_database_of_a_labelled_server_changes_hands_from_today_on(engine: Engine) -> None:
    labelled("set", "server-1", "team=platform")
    assert f"team = search, from {TODAY}." in labelled("set", "server-1", "team=search", "--database", "pay_a")

    assert labels_of(engine, 1, "pay_a") == {"team": "platform"}, "April was billed to it"
    assert "note: team has platform too" in labelled("set", "server-2", "team=Platform")


def test_a_label_that_ends_leaves_the_one_of_the_server(engine: Engine) -> None:
    labelled("set", "server-1", "team=platform", "environment=production")
    labelled("set", "server-1", "team=search", "--database", "pay_a", "--always")
    labelled("remove", "server-1", "team", "--database", "pay_a", "--from", "2025-04-10")

    assert labels_of(engine, 1, "pay_a", BEFORE)["team"] == "search"
    assert labels_of(engine, 1, "pay_a") == {"team": "platform", "environment": "production"}


def test_always_replaces_what_was_declared_before(engine: Engine) -> None:
    labelled("set", "server-1", "team=platform")
    labelled("set", "server-1", "team=search", "--from", "2025-04-10")
    labelled("set", "server-1", "team=billing", "--always")

    assert labels_of(engine, 1, "other", BEFORE) == labels_of(engine, 1, "other") == {"team": "billing"}
    labelled("remove", "server-1", "team", "--always")
    assert json.loads(labelled("list", "--json")) == []


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
    service.calculate_period_aggregations("monthly", date(2025, 5, 1), date(2025, 5, 1))

    may = groups(engine, "team", date(2025, 5, 1))

    assert may["payments"] == (0, -150)
    assert may[None] == (1000, -295 + 150)


def test_a_change_of_owner_is_no_growth(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    labelled("set", "server-1", "team=billing", "--database", "pay_*", "--from", "2025-04-01")

    assert groups(engine, "team", BEFORE)["payments"][0] == 115
    assert groups(engine, "team")["billing"] == (295, 180)
    assert "payments" not in groups(engine, "team")


@given(
    declared=st.lists(
        st.tuples(
            st.sampled_from(["server-1", "server-2", "server-3"]),
            st.sampled_from([None, "pay_a", "pay_*", "*", "oth*", "p?y_b"]),
            st.sampled_from(["team", "service"]),
            st.sampled_from(["red", "blue", "green"]),
            st.sampled_from([None, date(2025, 3, 15), date(2025, 4, 30), date(2025, 5, 1)]),
        ),
        max_size=12,
        unique_by=lambda one: (one[0], one[1], one[2]),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_groups_of_any_labels_add_up(engine: Engine, declared: list[tuple[Any, ...]]) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_labels"))
    declare_labels(engine, [Label(*one) for one in declared], TODAY)

    for start, total in ((MONTH, (1345, 180)), (BEFORE, (1165, None))):
        for by in ("engine", "server", *{one[2] for one in declared}):
            found = groups(engine, by, start).values()
            changes = [change for _, change in found if change is not None]
            assert (sum(size for size, _ in found), sum(changes) if changes else None) == total
        for key in {one[2] for one in declared}:
            for value in groups(engine, key, start).keys() - {None}:
                assert explained(engine, key, str(value), start).agrees


def test_the_command_shows_each_group_its_growth_and_what_of_it_fills_first(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    assert capacity("limits", "set", "server-2", "pay_a", "--gb", "0.01").exit_code == 0
    with engine.begin() as connection:
        for server, database in ((2, "pay_a"), (1, "pay_a")):
            add = "INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, "
            add += "change_mb_per_day, history_days, middle_day, in_time) VALUES ('2025-07-20', :server, 'database', "
            add += ":name, 'forecast', '2025-07-20', 1, 1, 61, :day, true)"
            connection.execute(text(add), {"server": server, "name": database, "day": date(2025, 8, server)})

    shown = capacity("groups", "--window", "2025-04-01").output
    found = json.loads(capacity("groups", "--window", "2025-04-01", "--json").output)

    assert [(one["name"], one["size_mb"], one["change_mb"]) for one in found] == [
        (None, 1050, 0),
        ("payments", 295, 180),
    ]
    assert found[1]["fills_first"] == {"server": "server-1", "name": "pay_a", "day": "2025-08-01"}
    assert "(no team)" in shown
    assert "2025-08-02 pay_a on server-2" in shown
    assert "In all 1.3 GiB, +180 MiB where it is known." in shown


def test_without_any_label_the_fleet_is_one_group_and_says_how_to_declare_one() -> None:
    shown = capacity("groups", "--window", "2025-04-01").output

    assert "Nothing has such a label yet. `capacity labels set`" in shown
    assert "There are no groups by 'colour'" in capacity("groups", "--by", "colour").output


def test_top_and_export_list_what_has_a_label_or_an_engine() -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    of_april = ("--window", "2025-04-01", "--by", "size", "--json")

    def names(*arguments: str) -> set[str]:
        return {row["database"] for row in json.loads(capacity("top", *arguments, *of_april).output)}

    assert names("--label", "team=payments") == {"pay_a", "pay_b"}
    assert names("--engine", "postgresql") == {"pay_a", "pay_b", "other"}
    assert "Nothing to list" in capacity("top", "--engine", "oracle", "--window", "2025-04-01").output
    exported = capacity("export", "--period", "monthly", "--from", "2025-04-01", "--label", "team=payments").output
    assert len(exported.splitlines()) == 3
    assert '{""team"": ""payments""}' in exported


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
    service.calculate_period_aggregations("monthly", date(2025, 5, 1), date(2025, 5, 1))
    april = ("--period", "monthly", "--window", "2025-04-01")

    shown = capacity("explain", "--label", "team=payments", *april).output
    found = json.loads(capacity("explain", "--label", "team=platform", *april, "--json").output)
    may = explained(engine, "team", "payments", date(2025, 5, 1))

    assert [line.split() for line in shown.splitlines() if line.startswith("server-")] == [
        ["server-1", "pay_b", "150", "MiB", "+150", "MiB", "of", "pay_*,", "always"],
        ["server-1", "pay_a", "145", "MiB", "+30", "MiB", "of", "pay_*,", "always"],
        ["server-2", "all", "50", "MiB", "0", "MiB", "of", "the", "server,", "from", "2025-04-02"],
    ]
    assert "In all 345 MiB, changed by +180 MiB. The sum in capacity_groups is the same." in shown
    [platform] = found["parts"]
    assert (platform["database"], platform["size_mb"], platform["without_databases"]) == (None, 1000, 2)
    assert found["agrees"]
    # Both databases of server-1 are gone, and server-2 is not measured.
    assert [(part.database, part.size_mb, part.change_mb) for part in may.parts] == [
        ("pay_a", 0, -145),
        ("pay_b", 0, -150),
    ]
    assert may.agrees


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--label", "team=nobody", "--period", "monthly", "--window", "2025-04-01"],
            "Nothing has team=nobody in April 2025. team has platform there.",
        ),
        (["--label", "team", "--period", "monthly"], "write team=payments"),
        (["--label", "taem=a", "--period", "monthly"], "Did you mean 'team'?"),
        (["--label", "team=a"], "Say which figures: --period"),
        (["orders", "--label", "team=a", "--period", "monthly"], "--label explains a group as a whole"),
    ],
)
def test_a_group_that_cannot_be_explained_is_refused_in_one_sentence(arguments: list[str], problem: str) -> None:
    labelled("set", "server-1", "team=platform")

    refused = capacity("explain", *arguments)

    assert refused.exit_code == 2
    assert problem in refused.output


def test_runways_are_filtered_by_label_and_engine() -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    for server, database in (("server-1", "pay_a"), ("server-1", "other"), ("server-2", "pay_a")):
        assert capacity("limits", "set", server, database, "--gb", "100").exit_code == 0

    def found(*arguments: str) -> set[tuple[str, str]]:
        rows = json.loads(capacity("runway", *arguments, "--json").output)["rows"]
        return {(row["server"], row["database"]) for row in rows}

    assert found("--label", "team=payments") == {("server-1", "pay_a")}
    assert found("--engine", "oracle") == set()
    assert len(found("--engine", "postgresql")) == 3


def test_a_file_of_labels_is_stored_whole_or_not_at_all(tmp_path: Path, engine: Engine) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("server,database,from,team,service\nserver-1,,,platform,\nserver-1,pay_*,2025-04-01,payments,pay\n")

    assert "3 labels read, 3 of them changed." in labelled("import", str(file))
    assert labels_of(engine, 1, "pay_a") == {"team": "payments", "service": "pay"}
    assert labels_of(engine, 1, "pay_a", BEFORE) == {"team": "platform"}
    assert "0 of them changed" in labelled("import", str(file))

    file.write_text("server,from,service\nserver-2,2025-03-01,old\nserver-2,2025-04-01,new\n")
    assert "2 of them changed" in labelled("import", str(file)), "a history in one file"
    assert labels_of(engine, 2, "pay_a", BEFORE) == {"service": "old"}
    file.write_text("server,team\nserver-2,payments\nserver-9,payments\n")
    refused = capacity("labels", "import", str(file))
    assert refused.exit_code == 2
    assert "No server 'server-9' is registered" in refused.output
    assert labels_of(engine, 2, "pay_a") == {"service": "new"}


def test_a_key_that_is_not_configured_is_refused_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = capacity("labels", "set", "server-1", "taem=payments")

    assert refused.exit_code == 2
    assert "Did you mean 'team'?" in refused.output
    monkeypatch.setenv("CAPACITY_LABEL_KEYS", "taem")
    labelled("set", "server-1", "taem=payments")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["server-1", "team"], "write team=payments"),
        (["server-1", "team="], "1 to 100 printable"),
        (["server-1", "team=a", "team=b"], "given twice"),
        (["server-1", "team=a", "--database", "pay_c"], "Did you mean 'pay_"),
        (["server-9", "team=a"], "No server 'server-9'"),
        (["server-1", "team=a", "--from", "2025-01-01", "--always"], "either --from or --always"),
    ],
)
def test_what_cannot_be_a_label_is_refused_in_one_sentence(arguments: list[str], problem: str) -> None:
    refused = capacity("labels", "set", *arguments)

    assert refused.exit_code == 2
    assert problem in refused.output
    assert json.loads(labelled("list", "--json")) == []


def test_a_column_of_the_registry_is_taken_over_and_again_after_changes(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE instances ADD COLUMN owner varchar"))
        connection.execute(text("UPDATE instances SET owner = 'payments' WHERE id = 1"))

    assert "1 label read, 1 of them changed." in labelled("adopt", "owner", "--key", "team")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET owner = 'search' WHERE id = 1"))
    assert f"team = search, from {TODAY}, payments before" in labelled("adopt", "owner", "--key", "team")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET owner = NULL"))
    assert f"team = no value, from {TODAY}" in labelled("adopt", "owner", "--key", "team")
    assert "Nothing to change" in labelled("adopt", "owner", "--key", "team")
    assert "has no column 'ownr'" in capacity("labels", "adopt", "ownr", "--key", "team").output


def test_labels_of_servers_come_with_the_file_that_declares_them(tmp_path: Path) -> None:
    file = tmp_path / "servers.toml"
    file.write_text(
        '[[servers]]\nname = "server-1"\nengine = "postgresql"\nhost = "192.0.2.7"\nlabels = { team = "payments" }\n'
    )
    imported = capacity("instances", "import", str(file))
    assert imported.exit_code == 0, imported.output
    csv = tmp_path / "servers.csv"
    csv.write_text("name,engine,host,label_environment\nserver-1,postgresql,192.0.2.7,test\n")
    assert capacity("instances", "import", str(csv)).exit_code == 0
    file.write_text(file.read_text().replace("team", "taem"))

    held = {one["key"]: one["value"] for one in json.loads(labelled("list", "server-1", "--json"))}
    assert held == {"team": "payments", "environment": "test"}
    assert "'taem' is no key" in capacity("instances", "import", str(file)).output


def test_the_list_says_until_when_a_label_held() -> None:
    labelled("set", "server-1", "team=platform")
    labelled("set", "server-1", "team=search", "--from", "2025-04-10")

    listed = json.loads(labelled("list", "--json"))
    assert [(one["value"], one["valid_from"], one["valid_until"]) for one in listed] == [
        ("platform", None, "2025-04-10"),
        ("search", "2025-04-10", None),
    ]
    on_the_day_before = json.loads(labelled("list", "--on", str(date(2025, 4, 10) - timedelta(days=1)), "--json"))
    assert [one["value"] for one in on_the_day_before] == ["platform"]
