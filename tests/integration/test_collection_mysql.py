"""Measuring a real MySQL: its tables have other names than MariaDB's, and spell schemas in another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from capacity_assets.collection.engines import mysql
from capacity_assets.collection.servers import Server, register_servers
from capacity_assets.database.sql import sql_text, with_queries
from tests.collecting import OBJECTS_THAT_ADD_UP, PASSWORD, Collection, ceiling_mb, failures, granting
from tests.mysql_servers import MySQLServer

HOSTILE = ("a/b", "a-b/c.d @\u00e4\u65e5'", 'quo"te', "\u00fcber", "UPPER", "x" * 64, "a")
FILL = "INSERT INTO {table} WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 900) SELECT a.n * 1000 + b.n, repeat('x', 100) FROM s a, s b WHERE b.n <= 50"  # noqa: E501


@pytest.fixture(scope="module", autouse=True)
def reader(measured_mysql: MySQLServer) -> None:
    """The login of the collection, made by the very statements that are documented."""
    measured_mysql.execute(*granting("mysql"))


# By schema; `a/b`.`t` and `a`.`b/t` are told apart by more than their joined names.
TABLES = {("orders", "t"), *((name, "t") for name in HOSTILE), ("a", "b/t2")}


@pytest.fixture(scope="module", autouse=True)
def schemas(measured_mysql: MySQLServer) -> None:
    measured_mysql.execute(
        *(f"CREATE DATABASE `{name}`" for name in ("orders", "empty", *HOSTILE)),
        "CREATE TABLE orders.t (id int PRIMARY KEY, filler varchar(200), KEY (filler))",
        FILL.format(table="orders.t"),
        *(f"CREATE TABLE `{name}`.t (id int PRIMARY KEY)" for name in HOSTILE),
        "CREATE TABLE `a`.`b/t2` (id int PRIMARY KEY) PARTITION BY HASH (id) PARTITIONS 3",
    )


@pytest.fixture(autouse=True)
def as_they_were(measured_mysql: MySQLServer) -> Iterator[None]:
    """Tables that a test adds go with it."""
    yield
    query = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN %s"
    with measured_mysql.admin() as connection, connection.cursor() as cursor:
        cursor.execute(query, (["orders", "empty", *HOSTILE],))
        added = sorted({*cursor.fetchall()} - TABLES)
        if added:
            cursor.execute("DROP TABLE " + ", ".join(f"`{schema}`.`{table}`" for schema, table in added))


def public_key(server: MySQLServer) -> str:
    """The key that the server generates at its first start."""
    return str(server.folder / "data" / "public_key.pem")


def at(server: MySQLServer, collection: Collection, **values: object) -> Server:
    known: dict[str, object] = {
        "host": "127.0.0.1",
        "port": server.port,
        "username": "capacity_probe",
        "password_from": collection.password("mysql-password", PASSWORD),
        "server_public_key": public_key(server),
    }
    return Server("shop", "mysql", **{**known, **values})  # type: ignore[arg-type]


def stored_bytes(collection: Collection) -> dict[str, int]:
    return dict(collection.rows("SELECT database_name, size_bytes FROM database_size_stats"))  # type: ignore[arg-type]


def test_sizes_are_those_of_the_files_to_the_byte_whatever_a_schema_is_called(
    measured_mysql: MySQLServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_mysql, collection)])

    summary = collection.collect()

    assert failures(summary) == {}
    files = measured_mysql.file_sizes()
    sizes = stored_bytes(collection)
    assert set(sizes) == {"orders", "empty", *HOSTILE}
    assert sizes["orders"] == files["orders"] > 5 * 1024**2
    assert sizes["empty"] == 0
    # One table each, but for `a`, which has three partitions besides.
    assert [sizes[name] for name in HOSTILE[:-1]] == [files["UPPER"]] * (len(HOSTILE) - 1)
    assert sizes["a"] == files["a"] == 4 * files["UPPER"]
    assert collection.sizes("shop")["orders"] == ceiling_mb(files["orders"])
    assert collection.total("shop") == (sum(sizes.values()) // 1024**2, len(sizes))


@pytest.mark.nightly("compares with files of further tables")
def test_tables_of_other_engines_and_in_shared_tablespaces_count(
    measured_mysql: MySQLServer, collection: Collection
) -> None:
    measured_mysql.execute(
        "CREATE TABLE `empty`.t (id int PRIMARY KEY, filler char(200), KEY (filler)) ENGINE = MyISAM",
        FILL.format(table="`empty`.t"),
        "CREATE TABLE `UPPER`.c (id int NOT NULL) ENGINE = CSV",
        "CREATE TABLESPACE general ADD DATAFILE 'general.ibd'",
        "CREATE TABLE `a/b`.`in general` (id int PRIMARY KEY, filler varchar(200)) TABLESPACE = general",
        FILL.format(table="`a/b`.`in general`"),
        "CREATE TABLE `a/b`.`in system` (id int PRIMARY KEY, filler varchar(200)) TABLESPACE = innodb_system",
        FILL.format(table="`a/b`.`in system`"),
        "ANALYZE TABLE `a/b`.`in general`, `a/b`.`in system`",
        "FLUSH TABLES",
    )
    register_servers(collection.engine, [at(measured_mysql, collection)])

    summary = collection.collect()

    sizes = stored_bytes(collection)
    assert sizes["empty"] == measured_mysql.file_sizes("MYD", "MYI")["empty"] > 10**7
    assert 10 <= collection.sizes("shop")["a/b"] <= 24, "two tables of some six MiB by their statistics"
    assert summary.not_counted == ("shop: UPPER: 1 table of engine CSV",)
    measured_mysql.execute("DROP TABLE `a/b`.`in general`", "DROP TABLESPACE general")


def test_allocated_sizes_and_statistics_are_other_ways(measured_mysql: MySQLServer, collection: Collection) -> None:
    measured_mysql.execute("ANALYZE TABLE orders.t")
    register_servers(collection.engine, [at(measured_mysql, collection, sizing="allocated")])
    assert failures(collection.collect()) == {}
    assert stored_bytes(collection)["orders"] == measured_mysql.file_sizes(allocated=True)["orders"]

    register_servers(collection.engine, [at(measured_mysql, collection, sizing="statistics")])
    assert failures(collection.collect(again=True)) == {}

    files = measured_mysql.file_sizes()["orders"]
    assert files / 2 < stored_bytes(collection)["orders"] <= files
    assert set(stored_bytes(collection)) == {"orders", "empty", *HOSTILE}


def test_a_hidden_schema_or_table_fails_the_server(measured_mysql: MySQLServer, collection: Collection) -> None:
    measured_mysql.execute(
        f"CREATE USER 'poor'@'%' IDENTIFIED BY '{PASSWORD}'", "GRANT PROCESS, SHOW DATABASES ON *.* TO 'poor'@'%'"
    )
    register_servers(collection.engine, [at(measured_mysql, collection, username="poor")])

    kind, reason = failures(collection.collect())["shop"]
    measured_mysql.execute("DROP USER 'poor'@'%'")

    assert kind == "rights"
    assert "SHOW VIEW on *.* is missing" in reason


def test_tls_is_verified_by_default_for_a_server_elsewhere(measured_mysql: MySQLServer, collection: Collection) -> None:
    files = measured_mysql.certificates
    ways = {"verify-full": str(files.ca), "another": str(files.other_ca)}
    found = {}
    for name, authority in ways.items():
        verified = {"tls": "verify-full", "tls_ca": authority, "server_public_key": None}
        register_servers(collection.engine, [at(measured_mysql, collection, **verified)])
        found[name] = failures(collection.collect(again=True))

    assert found["verify-full"] == {}
    assert found["another"]["shop"][0] == "tls"


@pytest.mark.parametrize("method", ["caching_sha2_password", "sha256_password"])
def test_a_password_itself_goes_to_a_known_server_only(
    method: str, measured_mysql: MySQLServer, collection: Collection
) -> None:
    """After each start the server asks for it once per account that caching_sha2_password has not cached yet."""
    measured_mysql.execute(
        f"CREATE USER 'fresh'@'%' IDENTIFIED WITH {method} BY '{PASSWORD}'",
        "GRANT PROCESS, SHOW DATABASES, SHOW VIEW ON *.* TO 'fresh'@'%'",
        "GRANT SELECT ON mysql.innodb_table_stats TO 'fresh'@'%'",
    )
    ways = {
        "nothing": {"server_public_key": None},
        "unverified": {"server_public_key": None, "tls": "require"},
        "pinned": {},
        "socket": {"server_public_key": None, "host": str(measured_mysql.folder / "socket")},
        "verified": {"server_public_key": None, "tls": "verify-full", "tls_ca": str(measured_mysql.certificates.ca)},
    }
    found = {}
    for name, way in ways.items():
        measured_mysql.execute("FLUSH PRIVILEGES")  # clears the cache of logins, like a restart
        register_servers(collection.engine, [at(measured_mysql, collection, username="fresh", **way)])
        found[name] = failures(collection.collect(again=True))
    register_servers(collection.engine, [at(measured_mysql, collection, username="fresh", **ways["nothing"])])
    afterwards = failures(collection.collect(again=True))
    measured_mysql.execute("DROP USER 'fresh'@'%'")

    # With sha256_password a server does not accept the password over a socket either, and the driver has no other way.
    taken = ("pinned", "verified") if method == "sha256_password" else ("pinned", "socket", "verified")
    assert not any(found[name] for name in taken), found
    for name in ("nothing", "unverified"):
        kind, reason = found[name]["shop"]
        assert kind == "login"
        assert f"by the login method {method}" in reason
        assert "The password was not sent" in reason
    assert bool(afterwards) == (method == "sha256_password"), "by now the proof is enough, where there is one"


def test_only_a_public_key_takes_the_extra_and_a_missing_one_is_named_with_the_other_way(
    measured_mysql: MySQLServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    ways = {
        "pinned": {},
        "socket": {"server_public_key": None, "host": str(measured_mysql.folder / "socket")},
        "verified": {"server_public_key": None, "tls": "verify-full", "tls_ca": str(measured_mysql.certificates.ca)},
    }
    found = {}
    for name, way in ways.items():
        measured_mysql.execute("FLUSH PRIVILEGES")
        register_servers(collection.engine, [at(measured_mysql, collection, **way)])
        found[name] = failures(collection.collect(again=True))

    assert (found["socket"], found["verified"]) == ({}, {})
    kind, reason = found["pinned"]["shop"]
    assert kind == "setup"
    assert "pip install 'capacity_assets[mysql]'" in reason
    assert "`tls = verify-full`" in reason


# The former query of the collection on INNODB_TABLES, which opens every table.
BY_TABLES = """
SELECT CONVERT(SUBSTRING_INDEX(s.NAME, '/', 1 + (LENGTH(e.folder) - LENGTH(REPLACE(e.folder, '@002f', ''))) DIV 5)
               USING utf8mb4) COLLATE utf8mb4_bin AS schema_name, CAST(SUM(s.FILE_SIZE) AS UNSIGNED),
       CAST(SUM(s.ALLOCATED_SIZE) AS UNSIGNED)
FROM information_schema.INNODB_TABLESPACES AS s
JOIN (SELECT SPACE, SUBSTRING_INDEX(NAME, '/', 1) AS folder FROM information_schema.INNODB_TABLES
      WHERE SPACE_TYPE = 'Single') AS e ON e.SPACE = s.SPACE
WHERE s.SPACE_TYPE = 'Single' GROUP BY schema_name
"""
SHARED_BY_TABLES = """
SELECT SUBSTRING_INDEX(NAME, '/', 1) AS folder, COUNT(*) FROM information_schema.INNODB_TABLES
WHERE SPACE_TYPE <> 'Single' AND NAME LIKE '%/%' AND NAME NOT LIKE 'mysql/%' GROUP BY folder
"""


@pytest.fixture
def every_kind_of_table(measured_mysql: MySQLServer) -> Iterator[None]:
    """More tables than the table definition cache holds, with all kinds of names and locations."""
    measured_mysql.execute(
        "SET GLOBAL table_definition_cache = 400",
        *(f"CREATE TABLE UPPER.`many{number}` (id int PRIMARY KEY)" for number in range(420)),
        "CREATE TABLE `a/b`.`full/text` (id int PRIMARY KEY, body text, FULLTEXT (body))",
        "CREATE TABLE `a`.`b/t` (id int PRIMARY KEY) TABLESPACE = innodb_system",
        "CREATE TABLE orders.parts (id int, d int) PARTITION BY RANGE (id) SUBPARTITION BY HASH (d) ("
        "PARTITION `P/0` VALUES LESS THAN (10) (SUBPARTITION S0, SUBPARTITION `s 1`), "
        "PARTITION `Ünï` VALUES LESS THAN (20) (SUBPARTITION S2, SUBPARTITION S3))",
        "CREATE TABLESPACE general ADD DATAFILE 'general.ibd'",
        "CREATE TABLE `a/b`.`in general#1` (id int PRIMARY KEY) TABLESPACE = general",
        "CREATE TABLE orders.`in/general` (id int PRIMARY KEY) TABLESPACE = general",
        "ANALYZE TABLE `a`.`b/t`, `a/b`.`in general#1`, orders.`in/general`",
    )
    yield
    measured_mysql.execute(
        "SET GLOBAL table_definition_cache = DEFAULT",
        "DROP TABLE `a/b`.`in general#1`, orders.`in/general`",
        "DROP TABLESPACE general",
    )


@pytest.mark.nightly("compares with every table")
@pytest.mark.usefixtures("every_kind_of_table")
def test_sizes_are_as_by_every_table_and_no_table_is_opened_for_them(
    measured_mysql: MySQLServer, collection: Collection
) -> None:
    def opened() -> int:
        return int(asked(measured_mysql, "SHOW GLOBAL STATUS LIKE 'Opened_table_definitions'")[0][1])

    register_servers(collection.engine, [at(measured_mysql, collection)])
    # With cold caches, as after a time in which other clients used them.
    measured_mysql.kill()
    measured_mysql.start()
    measured_mysql.execute("SET GLOBAL table_definition_cache = 400")
    before = opened()
    summary = collection.collect()
    opened_by_us = opened() - before

    assert failures(summary) == {}
    assert summary.not_counted == ()
    assert opened_by_us < 200, "of more than 420 tables"
    files_by_schema = sql_text(with_queries(mysql.FILES_BY_SCHEMA, files=mysql.MYSQL.files))
    assert sorted(asked(measured_mysql, files_by_schema)) == sorted(asked(measured_mysql, BY_TABLES))
    shared = dict(asked(measured_mysql, mysql.MYSQL.shared))
    shared.pop("mysql")
    assert shared == {"a": 1, "a/b": 1, "orders": 1}
    assert dict(asked(measured_mysql, SHARED_BY_TABLES)) == {"a": 1, "a@002fb": 1, "orders": 1}
    sizes = {name: (tables, size) for name, tables, size in asked(measured_mysql, mysql.MYSQL.shared_sizes)}
    page = 16384
    assert {name: sizes[name] for name in shared} == dict.fromkeys(shared, (1, page))
    assert stored_bytes(collection)["a"] == measured_mysql.file_sizes()["a"] + page


def asked(server: MySQLServer, query: str) -> list[tuple[Any, ...]]:
    with server.admin() as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


NOTHING_IS_COUNTED = (
    (
        "INSERT INTO performance_schema.setup_objects VALUES ('TABLE', 'orders', '%', 'NO', 'NO')",
        "DELETE FROM performance_schema.setup_objects WHERE OBJECT_SCHEMA = 'orders'",
    ),
    *(
        tuple(
            f"UPDATE performance_schema.setup_consumers SET ENABLED = '{word}' WHERE NAME = 'global_instrumentation'"
            for word in ("NO", "YES")
        ),
    ),
)


def test_tables_and_indexes_are_listed_from_their_files_and_add_up_to_the_schema(
    measured_mysql: MySQLServer, collection: Collection
) -> None:
    measured_mysql.execute(
        "CREATE TABLE orders.parts (id int PRIMARY KEY, k int, KEY by_k (k)) PARTITION BY HASH (id) PARTITIONS 3",
        "CREATE TABLE orders.heap (a int NOT NULL, UNIQUE KEY first_unique (a))",
        "CREATE TABLE orders.old (a char(100)) ENGINE=MyISAM",
        "INSERT INTO orders.old VALUES ('x')",
        "ANALYZE TABLE orders.t, orders.parts, orders.heap",
    )
    register_servers(collection.engine, [at(measured_mysql, collection)])

    summary = collection.collect_objects()

    found = collection.objects("orders")
    folder = measured_mysql.folder / "data" / "orders"
    assert (failures(summary), summary.unknown_objects) == ({}, ())
    assert found["t"][1] + found["filler"][1] == (folder / "t.ibd").stat().st_size
    assert found["filler"][1] > 1_000_000, "the index apart from its table"
    assert found["parts"][1] + found["by_k"][1] == sum(file.stat().st_size for file in folder.glob("parts*.ibd"))
    assert "first_unique" not in found, "the table itself"
    assert found["old"][1] == sum(file.stat().st_size for file in folder.glob("old.MY[DI]"))
    assert found["unexplained"][1] == 0
    assert "b/t2" in collection.objects("a")
    assert "t" in collection.objects("a/b")
    written = "SELECT object_name, written_rows FROM object_size_stats WHERE database_name = 'orders' "
    written += "AND kind = 'table' AND object_name IN ('heap', 'old') ORDER BY 1"
    assert collection.rows(written) == [("heap", None), ("old", None)], "its login may not see it"
    measured_mysql.execute(
        *(
            f"GRANT SELECT ON performance_schema.{name} TO 'capacity_probe'@'%'"
            for name in ("setup_instruments", "setup_consumers", "setup_objects", "table_io_waits_summary_by_table")
        )
    )
    collection.collect_objects(again=True)
    assert collection.rows(written) == [("heap", 0), ("old", 1)]
    since = "SELECT DISTINCT counted_since BETWEEN now() - interval '1 hour' AND now() FROM object_size_stats "
    assert collection.rows(f"{since} WHERE written_rows IS NOT NULL") == [(True,)]
    for off, on in NOTHING_IS_COUNTED:
        measured_mysql.execute(f"{off}")
        try:
            collection.collect_objects(again=True)
        finally:
            measured_mysql.execute(f"{on}")
        assert collection.rows(written) == [("heap", None), ("old", None)], off
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(summary.object_databases,)] == [(len(HOSTILE) + 2,)]


@pytest.mark.nightly("fills and empties tables")
def test_used_space_is_the_files_without_what_is_free_inside(
    measured_mysql: MySQLServer, collection: Collection
) -> None:
    measured_mysql.execute(
        "CREATE TABLE `UPPER`.wide (id int PRIMARY KEY, filler varchar(200), KEY apart (filler))",
        FILL.format(table="`UPPER`.wide"),
        "CREATE TABLE `UPPER`.parts (id int PRIMARY KEY, filler varchar(200)) PARTITION BY HASH (id) PARTITIONS 2",
    )
    register_servers(collection.engine, [at(measured_mysql, collection)])
    collection.collect()
    before = collection.used("UPPER")
    # The file stays as large as it is.
    measured_mysql.execute("ALTER TABLE `UPPER`.wide DROP KEY apart")

    summary = collection.collect(again=True)

    [(free,)] = asked(
        measured_mysql,
        "SELECT /*+ SET_VAR(information_schema_stats_expiry = 0) */ DATA_FREE FROM information_schema.TABLES "
        "WHERE TABLE_SCHEMA = 'UPPER' AND TABLE_NAME = 'wide'",
    )
    size, used = collection.used("UPPER")
    assert summary.unknown_used == ()
    assert size == before[0] == measured_mysql.file_sizes()["UPPER"]
    assert used == size - free
    assert 4 * 1024**2 < free <= before[1] - used + 8 * 1024**2
    assert collection.used("empty") == (0, 0)
