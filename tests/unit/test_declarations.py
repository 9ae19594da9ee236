"""Files that declare servers: what they become, and what is refused as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from capacity_assets.base.errors import ValidationError
from capacity_assets.collection.servers import Server, declared_servers, with_engine_defaults

TOML = """
[defaults]
username = "capacity_probe"
tls = "verify-full"
[defaults.mariadb]
username = "measure"
sizing = "statistics"

[[servers]]
name = "db-7"
engine = "postgresql"
host = "db-7.example"
password_from = "secret:db-7"

[[servers]]
name = "shop"
engine = "mariadb"
host = "10.0.0.5"
port = 3307
tls = "require"
counted_by = "db-7"
"""


ONE = "[[servers]]\nname='a'\nengine='postgresql'\nhost='h'"
KEYS = ("team", "environment")


def test_a_file_declares_servers_with_defaults_for_all_and_by_engine(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(TOML)

    assert declared_servers(path, KEYS).servers == [
        Server(
            "db-7",
            "postgresql",
            "db-7.example",
            port=5432,
            username="capacity_probe",
            password_from="secret:db-7",  # noqa: S106 -- where it is
            tls="verify-full",
            sizing="files",
        ),
        Server(
            "shop",
            "mariadb",
            "10.0.0.5",
            port=3307,
            username="measure",
            tls="require",
            sizing="statistics",
            counted_by="db-7",
        ),
    ]


def test_a_spreadsheet_declares_the_same(tmp_path: Path) -> None:
    path = tmp_path / "servers.csv"
    path.write_text(
        "name,engine,host,port,username,password_from\ndb-7,postgresql,h,,u,env:X\nb,mysql,/run/my.sock,,,\n"
    )

    first, second = declared_servers(path, KEYS).servers

    assert (first.port, first.password_from, first.tls) == (5432, "env:X", "verify-full")
    assert (second.host, second.tls, second.username) == ("/run/my.sock", "off", None)


def test_a_spreadsheet_may_separate_by_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "servers.csv"
    path.write_text("name;engine;host\na;mysql;h\n")
    assert [server.name for server in declared_servers(path, KEYS).servers] == ["a"]

    path.write_text("name,engine,host\na,mysql,h,surplus\n")
    with pytest.raises(ValidationError, match="line 2 has more fields than there are headings"):
        declared_servers(path, KEYS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\npassword='hunter2'", "must not contain a password"),
        (
            "[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\npassword_from='hunter2'",
            "Give the place of a password",
        ),
        ("[[servers]]\nname='a'\nengine='db2'\nhost='h'", "'db2' is not an engine"),
        ("[[servers]]\nname='a'\nengine='postgresql'", "host missing."),
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\nport='x'", "port must be a whole number"),
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\nport=70000", "70000 is not between"),
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\ntls='maybe'", "'maybe' is not one of off, require"),
        ("[[servers]]\nname='a'\nengine='oracle'\nhost='h'\nsizing='statistics'", "oracle takes only files"),
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='u@h'", "must not contain an @"),
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\nusername=7", "username must be text"),
        ("[[servers]]\nname='a'\nengine='postgresql'\nhost='h'\ncolour='red'", "'colour' is not one of name"),
        ("[[servers]]\nname='a'\nengine='mysql'\nhost='h'\ntls_key='k'", "are needed together"),
        ("[defaults.postgres]\nusername='x'", "is not an engine; known are clickhouse"),
        ("[[servers]]\nname=' a'\nengine='mysql'\nhost='h'", "without spaces at its ends"),
        ("[[server]]\nname='a'", "'server' is not one of the tables"),
        ("servers = 3", "Write each server as a table"),
        ("password = 'hunter2", "cannot be read"),
        (f"{ONE}\nlabels={{ colour='red' }}", "'colour' is not a label key; CAPACITY_LABEL_KEYS has team"),
        ("", "declares no server"),
    ],
)
def test_what_cannot_work_is_refused_with_the_place_and_never_repeats_a_password(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(text)

    with pytest.raises(ValidationError) as refused:
        declared_servers(path, KEYS)

    assert reason in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(TOML.replace('"postgresql"', '"postgres"').replace("3307", "-1"))

    with pytest.raises(ValidationError) as refused:
        declared_servers(path, KEYS)

    lines = str(refused.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["server 1", "server 2"]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot be read: No such file"):
        declared_servers(tmp_path / "nowhere.toml", KEYS)


@pytest.mark.parametrize(
    ("host", "tls"),
    [
        ("db.example", "verify-full"),
        ("127.0.0.1", "off"),
        ("::1", "off"),
        ("localhost", "off"),
        ("/run/postgresql", "off"),
    ],
)
def test_what_leaves_this_machine_goes_to_a_verified_server_unless_somebody_says_otherwise(host: str, tls: str) -> None:
    assert with_engine_defaults(Server("a", "postgresql", host)).tls == tls
    assert with_engine_defaults(Server("a", "postgresql", host, tls="require")).tls == "require"
