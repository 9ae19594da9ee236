"""Labels of servers and databases: who wins, from which day on, and what is refused."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import TODAY
from tests.command import capacity
from tests.labels import BEFORE, MONTH, labelled

pytestmark = pytest.mark.usefixtures("labelled_fleet")


def labels_of(engine: Engine, server: int, database: str, start: date = MONTH) -> dict[str, str]:
    query = text(
        "SELECT labels FROM capacity_growth WHERE period = 'monthly' AND window_start = :start "
        "AND server_id = :server AND database = :database"
    )
    with engine.connect() as connection:
        asked = {"start": start, "server": server, "database": database}
        found: dict[str, str] = connection.execute(query, asked).scalar_one()
        return found


def listed_of(server: str) -> list[tuple[str, str | None]]:
    """The values of a server's labels, each with its first day; None: always."""
    listed = json.loads(labelled("list", "--json"))
    return [(one["value"], one["valid_from"]) for one in listed if one["server"] == server]


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
    assert "No change" in labelled("set", "server-1", "team=search")


def test_a_database_of_a_labelled_server_changes_hands_from_today_on(engine: Engine) -> None:
    labelled("set", "server-1", "team=platform")
    assert f"team = search, from {TODAY}." in labelled("set", "server-1", "team=search", "--database", "pay_a")

    assert labels_of(engine, 1, "pay_a") == {"team": "platform"}, "April was billed to it"
    assert "note: team also has the value platform, which" in labelled("set", "server-2", "team=Platform")


def test_what_had_a_value_by_any_pattern_changes_hands_from_today_on(engine: Engine) -> None:
    labelled("set", "server-1", "team=payments", "--database", "pay_*")
    assert f"team = billing, from {TODAY}." in labelled("set", "server-1", "team=billing", "--database", "pay_a")
    assert labels_of(engine, 1, "pay_a") == {"team": "payments"}, "April was billed to it"
    assert f"from {TODAY}." in labelled("set", "server-1", "team=search", "--database", "pay_b*")
    # These take nothing over: the first pattern of equally long ones holds, and the longer one before the shorter.
    assert "team = web, always." in labelled("set", "server-1", "team=web", "--database", "pay_?")
    assert "team = web, always." in labelled("set", "server-1", "team=web", "--database", "p*")
    assert "team = web, always." in labelled("set", "server-1", "team=web", "--database", "oth*")
    assert f"from {TODAY}." in labelled("set", "server-1", "team=archive", "--database", "other")
    assert "service = pay, always." in labelled("set", "server-1", "service=pay", "--database", "pay_a")
    assert labels_of(engine, 1, "pay_b") == {"team": "payments"}


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
    labelled("set", "server-1", "team=media", "--database", "pay_*", "--from", "2025-04-10")
    removed = labelled("remove", "server-1", "team", "--database", "pay_*", "--always")
    labelled("remove", "server-1", "team", "--always")
    assert "pay_* on server-1: team removed, always; replaces media from 2025-04-10." in removed
    assert json.loads(labelled("list", "--json")) == []


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


@pytest.mark.parametrize("command", [("runway",), ("top",), ("export", "--period", "monthly")])
def test_an_unknown_engine_is_refused_with_the_nearest_name(command: tuple[str, ...]) -> None:
    refused = capacity(*command, "--engine", "mysqll")

    assert refused.exit_code == 2
    assert refused.output.startswith("capacity: 'mysqll' is not an engine; known are clickhouse, ")
    assert refused.output.endswith(". Did you mean 'mysql'?\n")


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
    assert "line 3: No server 'server-9' is registered" in refused.output
    assert labels_of(engine, 2, "pay_a") == {"service": "new"}


def test_a_file_that_moves_a_label_away_and_back_stores_both_moves(tmp_path: Path, engine: Engine) -> None:
    labelled("set", "server-1", "team=platform")
    file = tmp_path / "labels.csv"
    file.write_text("server,from,team\nserver-1,2025-04-01,search\nserver-1,2025-05-01,platform\n")

    assert "2 of them changed" in labelled("import", str(file))
    moved = [("platform", None), ("search", "2025-04-01"), ("platform", "2025-05-01")]
    assert listed_of("server-1") == moved
    assert "0 of them changed" in labelled("import", str(file))
    always = Label("server-1", None, "team", "media", ALWAYS)
    declare_labels(engine, [always, Label("server-1", None, "team", "search", date(2025, 4, 1))], TODAY)
    assert listed_of("server-1") == [("media", None), ("search", "2025-04-01")]


def test_a_key_that_is_not_configured_is_refused_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = capacity("labels", "set", "server-1", "taem=payments")

    assert refused.exit_code == 2
    assert "Did you mean 'team'?" in refused.output
    monkeypatch.setenv("CAPACITY_LABEL_KEYS", "taem")
    labelled("set", "server-1", "taem=payments")


NO_LABELS = [
    (["server-1", "team"], "such as team=payments"),
    (["server-1", "pay_a", "team=a"], "Name the database with --database."),
    (["server-1", "team="], "The value of team is empty. `capacity labels remove` removes a label."),
    (["server-1", f"team={101 * 'a'}"], "1 to 100 printable"),
    (["server-1", "team=a", "team=b"], "Each key can be given only once."),
    (["server-1", "team=a", "--database", "pay_c"], "Did you mean 'pay_"),
    (["server-9", "team=a"], "No server 'server-9'"),
    (["server-1", "team=a", "--from", "2025-01-01", "--always"], "either --from or --always"),
]


def test_invalid_labels_are_refused_in_one_sentence() -> None:
    for arguments, problem in NO_LABELS:
        refused = capacity("labels", "set", *arguments)

        assert refused.exit_code == 2, arguments
        assert problem in refused.output, arguments
        assert json.loads(labelled("list", "--json")) == [], arguments


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
    assert f"team removed, from {TODAY}" in labelled("adopt", "owner", "--key", "team")
    assert "No change" in labelled("adopt", "owner", "--key", "team")
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
    assert "'taem' is not a label key" in capacity("instances", "import", str(file)).output


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
    shown = " ".join(labelled("list").split())
    assert "From Last day" in shown
    assert "platform always 2025-04-09" in shown


def test_what_always_holds_says_which_later_days_it_takes_away_and_a_past_one_until_when_it_holds() -> None:
    labelled("set", "server-1", "team=platform")
    labelled("set", "server-1", "team=search", "--from", "2025-04-10")

    tried = labelled("set", "server-1", "team=platform", "--always", "--dry-run")
    past = labelled("set", "server-1", "team=early", "--from", "2025-01-01")
    done = labelled("set", "server-1", "team=platform", "--always")

    assert "server-1: team = platform, always, platform before; replaces search from 2025-04-10." in tried
    assert "server-1: team = early, from 2025-01-01 until 2025-04-10, platform before." in past
    assert "; replaces early from 2025-01-01, search from 2025-04-10." in done
    assert [one["value"] for one in json.loads(labelled("list", "--json"))] == ["platform"]
