"""Measuring a real MariaDB: sizes are those of the files on its disk, names those its users gave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from capacity_assets.collection import fleet
from capacity_assets.collection.engines import mysql
from capacity_assets.collection.engines.base import engine_named
from capacity_assets.collection.registry import register
from capacity_assets.collection.servers import Server
from tests.conftest import TODAY, Collection
from tests.servers import MariaDBServer, mariadb_server

PASSWORD = "reader-S3cret"  # noqa: S105 -- of a server that lives as long as the test
YESTERDAY = TODAY - timedelta(days=1)
HOSTILE = "a-b/c.d @ä日'"


@pytest.fixture(scope="module", autouse=True)
def reader(measured_mariadb: MariaDBServer) -> None:
    """The login of the collection, made by the very statements that are documented."""
    make_reader(measured_mariadb)


def make_reader(server: MariaDBServer) -> None:
    statements = engine_named("mariadb").grants.replace("'...'", f"'{PASSWORD}'").split("\n")
    server.execute(*(statement for statement in statements if not statement.startswith("--")))


@pytest.fixture(autouse=True)
def fresh(measured_mariadb: MariaDBServer) -> Iterator[None]:
    """One schema with tables, one without, one with a name that files cannot bear."""
    names = ("orders", "empty", HOSTILE)
    measured_mariadb.execute(
        *(f"CREATE DATABASE `{name}`" for name in names),
        "CREATE TABLE orders.t (id int PRIMARY KEY, filler varchar(200), KEY (filler))",
        "INSERT INTO orders.t SELECT seq, repeat('x', 100) FROM orders.seq_1_to_50000",
        f"CREATE TABLE `{HOSTILE}`.`t-1` (id int PRIMARY KEY) PARTITION BY HASH (id) PARTITIONS 3",
    )
    yield
    with measured_mariadb.admin() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW DATABASES")
        present = [row[0] for row in cursor.fetchall()]
    kept = {"information_schema", "mysql", "performance_schema", "sys"}
    measured_mariadb.execute(*(f"DROP DATABASE `{name}`" for name in present if name not in kept))


def at(server: MariaDBServer, collection: Collection, name: str = "shop", **values: object) -> Server:
    known = {
        "port": server.port,
        "username": "capacity_probe",
        "password_from": collection.password(f"{name}-password", PASSWORD),
    }
    return Server(name, "mariadb", "127.0.0.1", **{**known, **values})  # type: ignore[arg-type]


def failures(summary: object) -> dict[str, tuple[str, str]]:
    return {failure.server: (failure.kind.value, failure.reason) for failure in summary.failures}  # type: ignore[attr-defined]


def ceiling_mb(size_bytes: int) -> int:
    return -(-size_bytes // 1024**2)


def test_sizes_are_those_of_the_files_rounded_up_and_names_are_decoded(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_mariadb, collection)])

    summary = collection.collect()

    files = measured_mariadb.file_sizes()
    [hostile_folder] = set(files) - {"orders", "empty", "mysql", "sys", "performance_schema"}
    assert failures(summary) == {}
    assert collection.sizes("shop") == {
        "orders": ceiling_mb(files["orders"]),
        "empty": 0,
        HOSTILE: ceiling_mb(files[hostile_folder]),
    }
    assert collection.sizes("shop")["orders"] > 5
    assert collection.total("shop") == (sum(collection.sizes("shop").values()), 3)


def test_schemas_created_and_dropped_between_two_days_are_so_on_their_days(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_mariadb, collection)])
    collection.collect(YESTERDAY)
    measured_mariadb.execute("DROP DATABASE orders", "CREATE DATABASE `New`", "CREATE DATABASE `new`")

    collection.collect(TODAY)

    assert set(collection.sizes("shop", YESTERDAY)) == {"orders", "empty", HOSTILE}
    assert set(collection.sizes("shop", TODAY)) == {"New", "new", "empty", HOSTILE}


def test_statistics_are_a_cheaper_way_that_also_tells_data_from_indexes(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute("ANALYZE TABLE orders.t")
    register(collection.engine, [at(measured_mariadb, collection, sizing="statistics")])

    assert failures(collection.collect()) == {}

    files = ceiling_mb(measured_mariadb.file_sizes()["orders"])
    told = collection.sizes("shop")
    assert set(told) == {"orders", "empty", HOSTILE}
    assert files / 2 < told["orders"] <= files
    [(data_mb,)] = collection.rows("SELECT data_size_mb FROM database_size_stats WHERE database_name = 'orders'")
    assert 0 < data_mb < told["orders"]  # type: ignore[operator]


def test_a_wrong_password_and_a_missing_right_are_told_apart(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(f"CREATE OR REPLACE USER 'poor'@'%' IDENTIFIED BY '{PASSWORD}'")
    wrong = collection.password("wrong", "guess-W0rd")
    register(
        collection.engine,
        [
            at(measured_mariadb, collection),
            at(measured_mariadb, collection, "locked", password_from=wrong),
            at(measured_mariadb, collection, "poor", username="poor"),
        ],
    )

    found = failures(collection.collect())

    assert {name: kind for name, (kind, _) in found.items()} == {"locked": "login", "poor": "rights"}
    assert "PROCESS privilege" in found["poor"][1]
    assert "guess-W0rd" not in str(found)
    assert collection.total("shop") is not None


def test_a_login_that_may_not_see_every_schema_fails_its_server_instead_of_missing_some(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(
        f"CREATE OR REPLACE USER 'poor'@'%' IDENTIFIED BY '{PASSWORD}'", "GRANT PROCESS ON *.* TO 'poor'@'%'"
    )
    register(collection.engine, [at(measured_mariadb, collection, "poor", username="poor")])

    kind, reason = failures(collection.collect())["poor"]

    assert kind == "rights"
    assert "SHOW DATABASES is missing" in reason


def test_tls_is_used_verified_and_refused_as_registered(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    files = measured_mariadb.certificates
    measured_mariadb.execute(
        f"CREATE OR REPLACE USER 'careful'@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE SSL",
        "GRANT PROCESS, SHOW DATABASES ON *.* TO 'careful'@'%'",
    )
    ways = {
        "clear": {"tls": "off"},
        "require": {"tls": "require"},
        "verified": {"tls": "verify-full", "tls_ca": str(files.ca)},
        "another-ca": {"tls": "verify-full", "tls_ca": str(files.other_ca)},
        "missing-ca": {"tls": "verify-full", "tls_ca": "/nowhere/ca.pem"},
    }
    register(
        collection.engine,
        [at(measured_mariadb, collection, name, username="careful", **way) for name, way in ways.items()],
    )

    found = failures(collection.collect())

    assert {name: kind for name, (kind, _) in found.items()} == {
        "clear": "login",
        "another-ca": "tls",
        "missing-ca": "setup",
    }
    assert collection.total("verified") is not None


def test_a_server_without_tls_is_not_spoken_to_in_clear_when_tls_is_registered(collection: Collection) -> None:
    with mariadb_server(tls=False) as plain:
        make_reader(plain)
        register(collection.engine, [at(plain, collection, tls="require")])

        kind, reason = failures(collection.collect())["shop"]

    assert kind == "tls", reason


def test_a_server_that_dies_while_it_is_measured_is_failed(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "FILES_QUERY", f"SELECT q.* FROM ({mysql.FILES_QUERY}) q WHERE sleep(30) = 0")
    with mariadb_server() as doomed:
        make_reader(doomed)
        register(collection.engine, [at(doomed, collection)])
        killer = threading.Timer(1.0, doomed.kill)
        killer.start()

        summary = collection.collect()
        killer.join()

    assert failures(summary)["shop"][0] == "broken off"
    assert collection.total("shop") is None


def test_a_statement_that_takes_too_long_is_a_timeout(
    measured_mariadb: MariaDBServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "STATEMENT_SECONDS", 1.0)
    monkeypatch.setattr(mysql, "FILES_QUERY", f"SELECT q.* FROM ({mysql.FILES_QUERY}) q WHERE sleep(30) = 0")
    register(collection.engine, [at(measured_mariadb, collection)])

    kind, reason = failures(collection.collect())["shop"]

    assert kind == "timeout", reason
