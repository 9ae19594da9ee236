"""The registry of servers and its commands: what is registered, shown, changed, tried, and never shown."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from capacity_assets.base.errors import ValidationError
from capacity_assets.collection.servers import Server, register_servers, registered_servers, set_active
from capacity_assets.forecast.limits import stored_limits
from tests.command import capacity
from tests.fleet import add_instances
from tests.registry import names

pytestmark = pytest.mark.usefixtures("settings")


def test_a_server_is_registered_changed_and_found_as_it_was_declared(engine: Engine) -> None:
    first = register_servers(engine, [Server("a", "postgresql", "h", username="u", password_from="env:A")])  # noqa: S106
    again = register_servers(engine, [Server("a", "postgresql", "h", username="u", password_from="env:A")])  # noqa: S106
    moved = register_servers(engine, [Server("a", "mariadb", "/run/my.sock")])

    assert (first.added, again.unchanged, moved.changed) == (("a",), ("a",), ("a",))
    [one] = registered_servers(engine)
    assert one.server == Server("a", "mariadb", "/run/my.sock", port=3306, tls="off", sizing="files")


def test_a_name_that_is_taken_is_not_changed_unasked(engine: Engine) -> None:
    arguments = ("instances", "add", "a", "--engine", "postgresql", "--host")
    assert capacity(*arguments, "one").exit_code == 0

    refused = capacity(*arguments, "two")
    emptied = capacity(*arguments, "", "--replace")
    replaced = capacity(*arguments, "two", "--replace")

    assert "Server 'a' needs --host." in emptied.output
    assert refused.exit_code == 2
    assert "is already registered. `--replace` changes it." in refused.output
    assert replaced.exit_code == 0
    assert registered_servers(engine)[0].server.host == "two"


NO_SERVERS = [
    (["a", "--host", "h"], "Server 'a' is new and needs --engine."),
    (["a"], "Server 'a' is new and needs --engine and --host."),
    (["a", "--host", "h", "--engine", "db2"], "'db2' is not an engine"),
    (["a", "--host", "h", "--engine", "mysql", "--password-from", "hunter2"], "Give the place of a password"),
    (["a", "--host", "h:3306", "--engine", "mysql"], "host: write the port separately, as port (--port)"),
]


def test_invalid_servers_are_refused_in_a_sentence(engine: Engine) -> None:
    for arguments, reason in NO_SERVERS:
        refused = capacity("instances", "add", *arguments)

        assert refused.exit_code == 2, arguments
        assert reason in refused.output, arguments
        assert "hunter2" not in refused.output, arguments
        assert registered_servers(engine) == [], arguments


def test_a_file_is_registered_as_a_whole_or_not_at_all(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text("".join(f"[[servers]]\nname='s{n}'\nengine='mysql'\nhost='h'\n" for n in range(3)))
    add_instances(engine, [9], name="elsewhere")
    register_servers(engine, [Server("other", "mysql", "h")])

    rehearsed = capacity("instances", "import", str(path), "--disable-others", "--dry-run")
    assert names(engine) == {"elsewhere": "filled elsewhere", "other": "measured here"}
    done = capacity("instances", "import", str(path), "--disable-others", "--json")

    assert "added: 3 (s0, s1, s2)" in rehearsed.output
    assert rehearsed.output.splitlines()[-1] == "Dry run: nothing was changed."
    assert json.loads(done.output)["disabled"] == ["other"]
    assert names(engine) == {
        "elsewhere": "filled elsewhere",
        "other": "disabled",
        "s0": "measured here",
        "s1": "measured here",
        "s2": "measured here",
    }
    path.write_text(path.read_text() + "[[servers]]\nname='s0'\nengine='mysql'\nhost='h'\n")
    twice = capacity("instances", "import", str(path))
    assert twice.exit_code == 2
    assert "Declared more than once: s0." in twice.output


def test_servers_are_taken_out_of_service_and_put_back(engine: Engine) -> None:
    register_servers(engine, [Server("a", "mysql", "h"), Server("b", "mysql", "h")])

    assert capacity("instances", "disable", "a", "b").exit_code == 0
    assert names(engine) == {"a": "disabled", "b": "disabled"}
    assert capacity("instances", "enable", "a").exit_code == 0
    assert names(engine) == {"a": "measured here", "b": "disabled"}

    unknown = capacity("instances", "disable", "a", "nobody")
    assert (unknown.exit_code, names(engine)["a"]) == (2, "measured here")
    assert "No server is named 'nobody'. `capacity instances list` shows all." in unknown.output


def test_a_replica_is_counted_by_its_primary_and_chains_are_refused(engine: Engine) -> None:
    register_servers(engine, [Server("replica", "mysql", "h", counted_by="primary"), Server("primary", "mysql", "h")])
    assert {one.server.name: one.server.counted_by for one in registered_servers(engine)} == {
        "primary": None,
        "replica": "primary",
    }

    for wrong, reason in {
        Server("c", "mysql", "h", counted_by="replica"): "must name a server that no other one counts",
        Server("primary", "mysql", "h", counted_by="c"): "which is not registered",
        Server("c", "mysql", "h", counted_by="c"): "cannot be counted by itself",
    }.items():
        with pytest.raises(ValidationError, match=reason):
            register_servers(engine, [wrong])
    register_servers(engine, [Server("d", "mysql", "h")])
    with pytest.raises(ValidationError, match="a server that counts others cannot have a counted_by"):
        register_servers(engine, [Server("primary", "mysql", "h", counted_by="d")])
    assert len(registered_servers(engine)) == 3


@pytest.mark.nightly("registers hundreds of servers")
def test_a_file_of_servers_takes_as_many_statements_as_one_server(engine: Engine) -> None:
    def statements(servers: list[Server]) -> int:
        seen: list[str] = []

        def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement)

        event.listen(engine, "before_cursor_execute", count)
        register_servers(engine, servers)
        event.remove(engine, "before_cursor_execute", count)
        return len(seen)

    fleet = [Server(f"s{n}", "mysql", f"h{n}", counted_by="s0" if n else None) for n in range(2500)]

    one, many = statements([Server("x", "mysql", "h")]), statements(fleet)
    again = statements([replace(server, port=9) for server in reversed(fleet)])

    assert (one, many, again) == (5, 5, 4), "the lock, the registry, new and known servers, connections"
    found = {server.server.name: server.server for server in registered_servers(engine)}
    assert (len(found), found["s7"].host, found["s7"].port, found["s7"].counted_by) == (2501, "h7", 9, "s0")


def test_two_registrations_of_the_same_servers_at_once_follow_one_another(engine: Engine) -> None:
    fleet = [Server(f"s{n}", "mysql", "h") for n in range(300)]

    with ThreadPoolExecutor() as pool:
        changes = list(pool.map(lambda servers: register_servers(engine, servers), (fleet, fleet[::-1], fleet)))

    assert sorted((len(one.added), len(one.unchanged)) for one in changes) == [(0, 300), (0, 300), (300, 0)]
    assert len(registered_servers(engine)) == 300


def test_the_primary_may_be_declared_anew_behind_its_replica(engine: Engine) -> None:
    register_servers(engine, [Server("a", "mysql", "h", counted_by="b"), Server("b", "mysql", "h")])

    register_servers(engine, [Server("b", "mysql", "h", counted_by="a"), Server("a", "mysql", "h")])

    assert {one.server.name: one.server.counted_by for one in registered_servers(engine)} == {"a": None, "b": "a"}
    with pytest.raises(ValidationError, match="Server 'a': counted_by must name a server that no other one counts"):
        register_servers(engine, [Server("a", "mysql", "h", counted_by="c"), Server("c", "mysql", "h")])


def test_a_password_that_cannot_be_read_is_told_once_for_all_servers_that_need_it(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "servers.toml"
    entry = "[[servers]]\nname='s{}'\nengine='mysql'\nhost='h'\npassword_from='{}'\n"
    path.write_text("".join(entry.format(n, "env:LOGIN" if n < 30 else f"env:LOGIN_{n}") for n in range(50)))

    lines = [
        line for line in capacity("instances", "import", str(path), columns=999).output.splitlines() if "Warn" in line
    ]

    assert len(lines) == 11
    assert lines[0].startswith("Warning: s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 20 more cannot be measured with")
    assert lines[-1] == "Warning: 11 other servers cannot be measured for similar reasons."
    assert len(registered_servers(engine)) == 50


def test_the_list_shows_where_a_password_is_and_what_became_of_each_server(engine: Engine) -> None:
    register_servers(engine, [Server("a", "mysql", "db.example", username="u", password_from="env:A_PASSWORD")])  # noqa: S106
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO capacity_collection_attempts (collected_date, instance_id, status, failure, reason) "
                "VALUES "
                "('2025-07-19', 1, 'collected', NULL, NULL), ('2025-07-20', 1, 'failed', 'login', 'Wrong password.')"
            )
        )

    shown = capacity("instances", "list", columns=200).output
    [row] = json.loads(capacity("instances", "list", "--json").output)

    assert "db.example:3306" in shown
    assert "env:A_PASSWORD" in shown
    assert "2025-07-20: login: Wrong password." in shown
    assert (row["name"], row["last_collected"], row["state"]) == ("a", "2025-07-19", "measured here")


def test_commands_say_that_the_schema_is_missing(empty_database: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_database.render_as_string(hide_password=False))  # type: ignore[attr-defined]

    for arguments in (["instances", "list"], ["collect"], ["instances", "disable", "a"]):
        failed = capacity(*arguments)
        assert failed.exit_code == 1
        assert "The capacity schema is missing" in failed.output
        assert "Run `capacity init`" in failed.output


def test_what_is_not_given_stays_as_it_was_and_what_is_given_empty_goes(engine: Engine) -> None:
    primary = Server("primary", "mysql", "h")
    replica = Server("a", "mysql", "h", username="u", password_from="env:A", counted_by="primary")  # noqa: S106
    register_servers(engine, [primary, replica])

    assert capacity("instances", "add", "a", "--replace", "--port", "3307").exit_code == 0
    server = {one.server.name: one.server for one in registered_servers(engine)}["a"]
    assert (server.port, server.username, server.password_from, server.counted_by) == (3307, "u", "env:A", "primary")

    assert capacity("instances", "add", "a", "--replace", "--counted-by", "").exit_code == 0
    server = {one.server.name: one.server for one in registered_servers(engine)}["a"]
    assert (server.port, server.counted_by) == (3307, None)


def test_a_disabled_server_that_is_declared_again_is_named(engine: Engine, tmp_path: Path) -> None:
    register_servers(engine, [Server("a", "mysql", "h")])
    set_active(engine, ["a"], active=False)
    (tmp_path / "s.toml").write_text("[[servers]]\nname='a'\nengine='mysql'\nhost='h'\n")

    message = capacity("instances", "import", str(tmp_path / "s.toml")).output

    assert "out of service: 1 (a)" in message
    assert "`capacity instances enable` puts them back" in message


def test_disabling_a_primary_says_that_its_replica_is_counted_by_nobody(engine: Engine) -> None:
    register_servers(engine, [Server("primary", "mysql", "h"), Server("replica", "mysql", "h", counted_by="primary")])

    message = capacity("instances", "disable", "primary").output

    assert "Fleet totals now leave out these servers, and those counted by them: replica" in message


def test_a_server_without_history_can_be_removed_and_one_with_history_is_disabled(engine: Engine) -> None:
    register_servers(engine, [Server("typo", "mysql", "h"), Server("old", "mysql", "h")])
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                "SELECT id, 'd', 1, '2025-07-20' FROM instances WHERE name = 'old'"
            )
        )

    message = capacity("instances", "remove", "typo", "old").output

    assert "Removed: typo." in message
    assert "no longer measured here: old. Their history is kept." in message
    assert names(engine) == {"old": "disabled"}


def test_check_names_what_would_make_a_fleet_total_wrong(engine: Engine) -> None:
    register_servers(
        engine,
        [
            Server("one", "mysql", "h"),
            Server("twin", "mysql", "h"),
            Server("primary", "mysql", "p"),
            Server("replica", "mysql", "r", counted_by="primary"),
        ],
    )
    set_active(engine, ["primary"], active=False)
    add_instances(engine, [99], name="elsewhere")

    message = " ".join(capacity("check", columns=300).output.split())

    assert "one, twin are all at h:3306: fleet totals count it 2 times" in message
    assert "counted by a server that is out of service, so not counted at all: replica" in message
    assert "active, but without a registered connection: elsewhere" in message


def test_a_file_of_servers_declares_what_they_can_hold_and_registers_none_if_that_makes_no_sense(
    engine: Engine, tmp_path: Path
) -> None:
    good, bad = tmp_path / "fleet.csv", tmp_path / "fleet.toml"
    good.write_text("name,engine,host,limit_gb\nshop,mariadb,127.0.0.1,1.5\ncore,postgresql,127.0.0.1,unlimited\n")
    bad.write_text('[[servers]]\nname = "x"\nengine = "mariadb"\nhost = "127.0.0.1"\nlimit_gb = "much"\n')

    refused = capacity("instances", "import", str(bad))
    done = [capacity("instances", "import", str(good)) for _ in range(2)]

    assert (refused.exit_code, "server 1: 'much' is not a number of GiB" in refused.output) == (2, True)
    assert [one.server.name for one in registered_servers(engine)] == ["core", "shop"]
    assert "unchanged" in done[1].output.lower()
    limits = [one.declaration for one in stored_limits(engine)]
    assert [(one.server, one.limit_mb) for one in limits] == [("core", None), ("shop", 1536)]
