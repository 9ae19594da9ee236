"""The registry of servers and its commands: what is registered, shown, changed, tried, and never shown."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.collection.registry import register, registered, set_active
from capacity_assets.collection.servers import Server
from capacity_assets.demo.sample_fleet import (
    holds_sample_fleet,
    load_sample_fleet,
    other_instances,
    remove_sample_fleet,
)
from capacity_assets.foundation.errors import NotFoundError, ValidationError
from capacity_assets.runway.limits import stored_limits
from tests.command import capacity
from tests.fleet import add_instances, load_sample
from tests.legacy import LegacyShape, create_legacy_tables

pytestmark = pytest.mark.usefixtures("settings")


def names(engine: Engine) -> dict[str, str]:
    return {one.server.name: one.state for one in registered(engine)}


def test_a_server_is_registered_changed_and_found_as_it_was_declared(engine: Engine) -> None:
    first = register(engine, [Server("a", "postgresql", "h", username="u", password_from="env:A")])  # noqa: S106
    again = register(engine, [Server("a", "postgresql", "h", username="u", password_from="env:A")])  # noqa: S106
    moved = register(engine, [Server("a", "mariadb", "/run/my.sock")])

    assert (first.added, again.unchanged, moved.changed) == (("a",), ("a",), ("a",))
    [one] = registered(engine)
    assert one.server == Server("a", "mariadb", "/run/my.sock", port=3306, tls="off", sizing="files")


def test_a_server_that_the_legacy_application_registered_is_measured_once_it_is_added(engine: Engine) -> None:
    add_instances(engine, [7], name="legacy", host="db-7", port=5433)
    assert names(engine) == {"legacy": "filled elsewhere"}

    added = capacity("instances", "add", "legacy", "--username", "u", "--password-from", "env:A")

    assert added.exit_code == 0, added.output
    [one] = registered(engine)
    assert (one.id, one.state) == (7, "measured here")
    assert (one.server.host, one.server.port, one.server.engine) == ("db-7", 5433, "postgresql")


def test_a_name_that_is_taken_is_not_changed_unasked(engine: Engine) -> None:
    arguments = ("instances", "add", "a", "--engine", "postgresql", "--host")
    assert capacity(*arguments, "one").exit_code == 0

    refused = capacity(*arguments, "two")
    replaced = capacity(*arguments, "two", "--replace")

    assert refused.exit_code == 2
    assert "registered already. Nothing was changed." in refused.output
    assert replaced.exit_code == 0
    assert registered(engine)[0].server.host == "two"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a", "--host", "h"], "--engine is needed"),
        (["a"], "Server 'a' is new, so --engine and --host are needed. Nothing was registered."),
        (["a", "--host", "h", "--engine", "db2"], "'db2' is no engine"),
        (["a", "--host", "h", "--engine", "mysql", "--password-from", "hunter2"], "by where it is, not by itself"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_a_sentence(engine: Engine, arguments: list[str], reason: str) -> None:
    refused = capacity("instances", "add", *arguments)

    assert refused.exit_code == 2
    assert reason in refused.output
    assert "hunter2" not in refused.output
    assert registered(engine) == []


def test_a_file_is_registered_as_a_whole_or_not_at_all(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text("".join(f"[[servers]]\nname='s{n}'\nengine='mysql'\nhost='h'\n" for n in range(3)))
    add_instances(engine, [9], name="elsewhere")
    register(engine, [Server("other", "mysql", "h")])

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
    assert "Declared more than once: s0. Nothing was registered." in twice.output


def test_servers_are_taken_out_of_service_and_put_back(engine: Engine) -> None:
    register(engine, [Server("a", "mysql", "h"), Server("b", "mysql", "h")])

    assert capacity("instances", "disable", "a", "b").exit_code == 0
    assert names(engine) == {"a": "disabled", "b": "disabled"}
    assert capacity("instances", "enable", "a").exit_code == 0
    assert names(engine) == {"a": "measured here", "b": "disabled"}

    unknown = capacity("instances", "disable", "a", "nobody")
    assert (unknown.exit_code, names(engine)["a"]) == (2, "measured here")
    assert "No server is named 'nobody'" in unknown.output


def test_a_replica_is_counted_by_its_primary_and_chains_are_refused(engine: Engine) -> None:
    register(engine, [Server("replica", "mysql", "h", counted_by="primary"), Server("primary", "mysql", "h")])
    assert {one.server.name: one.server.counted_by for one in registered(engine)} == {
        "primary": None,
        "replica": "primary",
    }

    for wrong, reason in {
        Server("c", "mysql", "h", counted_by="replica"): "must name a server that counts itself",
        Server("primary", "mysql", "h", counted_by="c"): "which is not registered",
        Server("c", "mysql", "h", counted_by="c"): "cannot be counted by itself",
    }.items():
        with pytest.raises(ValidationError, match=reason):
            register(engine, [wrong])
    register(engine, [Server("d", "mysql", "h")])
    with pytest.raises(ValidationError, match="one that counts others cannot be counted by another"):
        register(engine, [Server("primary", "mysql", "h", counted_by="d")])
    assert len(registered(engine)) == 3


def test_asking_for_an_unknown_server_says_where_they_are_listed(engine: Engine) -> None:
    with pytest.raises(NotFoundError, match="`capacity instances list` has them"):
        registered(engine, ["nobody"])
    with pytest.raises(NotFoundError):
        set_active(engine, ["nobody"], active=False)


def test_the_list_shows_where_a_password_is_and_what_became_of_each_server(engine: Engine) -> None:
    register(engine, [Server("a", "mysql", "db.example", username="u", password_from="env:A_PASSWORD")])  # noqa: S106
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


def test_the_demo_knows_every_server_that_is_not_its_own_also_by_its_history_only(engine: Engine) -> None:
    assert other_instances(engine) == 0
    assert capacity("collect", "--own").exit_code == 0
    assert other_instances(engine) == 1

    with engine.begin() as connection:
        connection.execute(text("DELETE FROM instances"))
    assert other_instances(engine) == 1, "its samples are still there"


def test_the_own_server_is_not_measured_into_the_sample_fleet_and_the_fleet_can_be_taken_away(
    engine: Engine, tmp_path: Path
) -> None:
    load_sample_fleet(engine, date(2025, 1, 1), date(2025, 1, 3))

    refused = capacity("collect", "--own")

    registered_too = capacity("instances", "add", "db-7", "--engine", "mysql", "--host", "h")
    file = tmp_path / "sizes.csv"
    file.write_text("server,database,day,size_mb\nmysql-orders-01,shop,2025-01-02,7\n")
    imported = capacity("import", str(file))

    for done, kept in ((refused, "measured"), (registered_too, "registered"), (imported, "imported")):
        assert done.exit_code == 1
        assert "holds the sample fleet of `capacity demo`" in done.output
        assert f"Nothing was {kept}" in done.output
    assert other_instances(engine) == 0
    assert holds_sample_fleet(engine)
    with engine.connect() as connection:
        samples = connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar_one()
    assert remove_sample_fleet(engine) == samples > 0
    assert not holds_sample_fleet(engine)
    assert capacity("collect", "--own").exit_code == 0


def test_a_registry_that_another_application_fills_further_is_told_apart_and_its_servers_can_be_measured(
    engine: Engine,
) -> None:
    add_instances(engine, [1], name="theirs")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE instances ADD COLUMN credential text"))
        connection.execute(text("UPDATE instances SET credential = 'x'"))
        connection.execute(text("ALTER TABLE instances ALTER COLUMN credential SET NOT NULL"))

    refused = capacity("instances", "add", "new", "--engine", "mysql", "--host", "h")
    added = capacity("instances", "add", "theirs", "--username", "u")

    assert refused.exit_code == 1
    assert 'null value in column "credential"' in refused.output
    assert "Register the server there, then `capacity instances add NAME`" in refused.output
    assert added.exit_code == 0, added.output


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_legacy_database_that_was_upgraded_in_place_is_measured_into(
    empty_engine: Engine, monkeypatch: pytest.MonkeyPatch, partitioned: bool
) -> None:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=partitioned))
    load_sample(empty_engine)
    with empty_engine.begin() as connection:
        connection.execute(text("SELECT setval('instances_id_seq', 100)"))
    url = empty_engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPACITY_DATABASE_URL", url)
    assert capacity("init").exit_code == 0
    before = len(_sizes(empty_engine))

    for again in ((), ("--again",)):
        done = capacity("collect", "--own", *again)
        assert done.exit_code == 0, done.output

    assert len(_sizes(empty_engine)) > before
    with empty_engine.connect() as connection:
        assert connection.execute(
            text(
                "SELECT sum(d.size_bytes) = max(t.total_size_bytes) "
                "AND div(sum(d.size_bytes), 1048576) = max(t.total_size_mb) "
                "FROM database_size_stats d JOIN instance_size_stats t USING (instance_id, collected_date) "
                "JOIN instances i ON i.id = instance_id "
                "WHERE i.name = 'capacity-database'"
            )
        ).scalar_one()


def _sizes(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT size_mb FROM database_size_stats")).scalars())


def test_what_is_not_given_stays_as_it_was_and_what_is_given_empty_goes(engine: Engine) -> None:
    primary = Server("primary", "mysql", "h")
    register(engine, [primary, Server("a", "mysql", "h", username="u", password_from="env:A", counted_by="primary")])  # noqa: S106

    assert capacity("instances", "add", "a", "--replace", "--port", "3307").exit_code == 0
    server = {one.server.name: one.server for one in registered(engine)}["a"]
    assert (server.port, server.username, server.password_from, server.counted_by) == (3307, "u", "env:A", "primary")

    assert capacity("instances", "add", "a", "--replace", "--counted-by", "").exit_code == 0
    server = {one.server.name: one.server for one in registered(engine)}["a"]
    assert (server.port, server.counted_by) == (3307, None)


def test_a_disabled_server_that_is_declared_again_is_named(engine: Engine, tmp_path: Path) -> None:
    register(engine, [Server("a", "mysql", "h")])
    set_active(engine, ["a"], active=False)
    (tmp_path / "s.toml").write_text("[[servers]]\nname='a'\nengine='mysql'\nhost='h'\n")

    told = capacity("instances", "import", str(tmp_path / "s.toml")).output

    assert "out of service: 1 (a)" in told
    assert "`capacity instances enable` puts them back" in told


def test_disabling_a_primary_says_that_its_replica_is_counted_by_nobody(engine: Engine) -> None:
    register(engine, [Server("primary", "mysql", "h"), Server("replica", "mysql", "h", counted_by="primary")])

    told = capacity("instances", "disable", "primary").output

    assert "Fleet totals now count neither these nor replica" in told


def test_a_server_without_history_can_be_removed_and_one_with_history_is_disabled(engine: Engine) -> None:
    register(engine, [Server("typo", "mysql", "h"), Server("old", "mysql", "h")])
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
                "SELECT id, 'd', 1, '2025-07-20' FROM instances WHERE name = 'old'"
            )
        )

    told = capacity("instances", "remove", "typo", "old").output

    assert "Removed: typo." in told
    assert "not measured here any more: old. Their history is kept." in told
    assert names(engine) == {"old": "disabled"}


def test_check_names_what_would_make_a_fleet_total_wrong(engine: Engine) -> None:
    register(
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

    told = " ".join(capacity("check", columns=300).output.split())

    assert "one, twin are all at h:3306: fleet totals count it 2 times" in told
    assert "counted by a server that is out of service, so not counted at all: replica" in told
    assert "active, but how to reach them is not registered: elsewhere" in told


def test_with_the_collection_off_nothing_is_measured_into_the_tables_of_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(engine, [Server("a", "mysql", "127.0.0.1", port=1)])
    monkeypatch.setenv("CAPACITY_COLLECTION", "off")

    refused = capacity("collect")

    assert refused.exit_code == 2
    assert "CAPACITY_COLLECTION is off" in refused.output


def test_a_file_of_servers_declares_what_they_can_hold_and_registers_none_if_that_makes_no_sense(
    engine: Engine, tmp_path: Path
) -> None:
    good, bad = tmp_path / "fleet.csv", tmp_path / "fleet.toml"
    good.write_text("name,engine,host,limit_gb\nshop,mariadb,127.0.0.1,1.5\ncore,postgresql,127.0.0.1,unlimited\n")
    bad.write_text('[[servers]]\nname = "x"\nengine = "mariadb"\nhost = "127.0.0.1"\nlimit_gb = "much"\n')

    refused = capacity("instances", "import", str(bad))
    done = [capacity("instances", "import", str(good)) for _ in range(2)]

    assert (refused.exit_code, "server 1: 'much' is no limit" in refused.output) == (2, True)
    assert [one.server.name for one in registered(engine)] == ["core", "shop"]
    assert "unchanged" in done[1].output.lower()
    assert [(one.limit.server, one.limit.limit_mb) for one in stored_limits(engine)] == [("core", None), ("shop", 1536)]
