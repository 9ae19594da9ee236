"""Measuring a real MariaDB: sizes are those of the files on its disk, names those its users gave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from capacity_assets.collection import measuring
from capacity_assets.collection.engines import mysql
from capacity_assets.collection.servers import Server, register_servers
from tests import collecting
from tests.clocks import TODAY
from tests.collecting import OBJECTS_THAT_ADD_UP, PASSWORD, YESTERDAY, Collection, ceiling_mb, failures, granting
from tests.mysql_servers import MARIADB_PLUGINS, MariaDBServer, mariadb_server

HOSTILE = "a-b/c.d @ä日'"


@pytest.fixture(scope="module", autouse=True)
def reader(measured_mariadb: MariaDBServer) -> None:
    """The login of the collection, made by the very statements that are documented."""
    measured_mariadb.execute(*granting("mariadb"))


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
    return collecting.at(server, collection, name, "mariadb", **values)


def test_sizes_are_those_of_the_files_rounded_up_and_names_are_decoded(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_mariadb, collection)])

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
    stored = dict(collection.rows("SELECT database_name, size_bytes FROM database_size_stats"))
    assert stored == {"orders": files["orders"], "empty": 0, HOSTILE: files[hostile_folder]}, "to the byte"
    assert collection.total("shop") == (sum(files[name] for name in ("orders", hostile_folder)) // 1024**2, 3)


def test_schemas_created_and_dropped_between_two_days_are_so_on_their_days(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_mariadb, collection)])
    collection.collect(YESTERDAY)
    measured_mariadb.execute("DROP DATABASE orders", "CREATE DATABASE `New`", "CREATE DATABASE `new`")

    collection.collect(TODAY)

    assert set(collection.sizes("shop", YESTERDAY)) == {"orders", "empty", HOSTILE}
    assert set(collection.sizes("shop", TODAY)) == {"New", "new", "empty", HOSTILE}


def test_statistics_are_a_cheaper_way_that_also_tells_data_from_indexes(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute("ANALYZE TABLE orders.t")
    register_servers(collection.engine, [at(measured_mariadb, collection, sizing="statistics")])

    assert failures(collection.collect()) == {}

    files = ceiling_mb(measured_mariadb.file_sizes()["orders"])
    measured_sizes = collection.sizes("shop")
    assert set(measured_sizes) == {"orders", "empty", HOSTILE}
    assert files / 2 < measured_sizes["orders"] <= files
    [(data_mb,)] = collection.rows("SELECT data_size_mb FROM database_size_stats WHERE database_name = 'orders'")
    assert 0 < data_mb < measured_sizes["orders"]  # type: ignore[operator]


def test_a_wrong_password_and_each_missing_right_fail_their_server_instead_of_missing_some_sizes(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    """With the rights that used to be documented, tables of other engines than InnoDB would count as nothing."""
    users = ("poor", "former", "half")
    measured_mariadb.execute(
        *(f"CREATE OR REPLACE USER '{user}'@'%' IDENTIFIED BY '{PASSWORD}'" for user in users),
        "GRANT PROCESS, SHOW DATABASES ON *.* TO 'former'@'%'",
        "GRANT SELECT ON mysql.innodb_table_stats TO 'former'@'%'",
        "GRANT SELECT ON mysql.innodb_index_stats TO 'former'@'%'",
        # Sees that there are tables, in the schemas that it is shown.
        "GRANT PROCESS ON *.* TO 'half'@'%'",
        "GRANT SHOW VIEW ON mysql.* TO 'half'@'%'",
    )
    wrong = collection.password("wrong", "guess-W0rd")
    locked = at(measured_mariadb, collection, "locked", password_from=wrong)
    others = [at(measured_mariadb, collection, user, username=user) for user in users]
    others.append(at(measured_mariadb, collection, "cheap", username="former", sizing="statistics"))
    register_servers(collection.engine, [at(measured_mariadb, collection), locked, *others])

    found = failures(collection.collect())

    assert {name: kind for name, (kind, _) in found.items()} == {
        "locked": "login",
        **dict.fromkeys((*users, "cheap"), "rights"),
    }, found
    assert "SHOW VIEW on *.* is missing" in found["poor"][1]
    assert "SHOW VIEW on *.* is missing" in found["former"][1]
    assert "SHOW VIEW on *.* is missing" in found["cheap"][1], "or tables of other engines would count as nothing"
    assert "SHOW DATABASES is missing" in found["half"][1]
    assert "guess-W0rd" not in str(found)
    assert collection.total("shop") is not None


def test_tls_is_used_verified_and_refused_as_registered(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    files = measured_mariadb.certificates
    measured_mariadb.execute(
        f"CREATE OR REPLACE USER 'careful'@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE SSL",
        "GRANT PROCESS, SHOW DATABASES, SHOW VIEW ON *.* TO 'careful'@'%'",
    )
    ways = {
        "clear": {"tls": "off"},
        "require": {"tls": "require"},
        "verified": {"tls": "verify-full", "tls_ca": str(files.ca)},
        "another-ca": {"tls": "verify-full", "tls_ca": str(files.other_ca)},
        "missing-ca": {"tls": "verify-full", "tls_ca": "/nowhere/ca.pem"},
    }
    register_servers(
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


@pytest.mark.skipif(not MARIADB_PLUGINS.exists(), reason="no plugin of MariaDB here; see tests/install_servers.sh")
def test_an_account_that_proves_its_password_by_ed25519_needs_no_tls(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    pytest.importorskip("nacl")
    measured_mariadb.execute(
        "INSTALL SONAME 'auth_ed25519'",
        f"CREATE OR REPLACE USER 'modern'@'%' IDENTIFIED VIA ed25519 USING PASSWORD('{PASSWORD}')",
        "GRANT PROCESS, SHOW DATABASES, SHOW VIEW ON *.* TO 'modern'@'%'",
    )
    register_servers(collection.engine, [at(measured_mariadb, collection, username="modern", tls="off")])

    assert failures(collection.collect()) == {}


def test_a_server_without_tls_is_not_spoken_to_in_clear_when_tls_is_registered(collection: Collection) -> None:
    with mariadb_server(tls=False) as plain:
        plain.execute(*granting("mariadb"))
        register_servers(collection.engine, [at(plain, collection, tls="require")])

        kind, reason = failures(collection.collect())["shop"]

    assert kind == "tls", reason


def test_a_server_that_dies_while_it_is_measured_is_failed(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "FILES_BY_SCHEMA", "SELECT * FROM files WHERE sleep(30) = 0")
    with mariadb_server() as doomed:
        doomed.execute(*granting("mariadb"))
        register_servers(collection.engine, [at(doomed, collection)])
        killer = threading.Timer(1.0, doomed.kill)
        killer.start()

        summary = collection.collect()
        killer.join()

    assert failures(summary)["shop"][0] == "broken off"
    assert collection.total("shop") is None


def test_a_statement_that_takes_too_long_is_a_timeout(
    measured_mariadb: MariaDBServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "STATEMENT_SECONDS", 1.0)
    monkeypatch.setattr(mysql, "FILES_BY_SCHEMA", "SELECT * FROM files WHERE sleep(30) = 0")
    register_servers(collection.engine, [at(measured_mariadb, collection)])

    kind, reason = failures(collection.collect())["shop"]

    assert kind == "timeout", reason


def test_tables_of_every_engine_count_and_those_whose_size_is_not_told_are_named(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    """Stored as 0 before: schemas of MyISAM and Aria, and tables in the shared tablespace."""
    measured_mariadb.execute(
        "CREATE DATABASE myisam",
        "CREATE TABLE myisam.t (id int PRIMARY KEY, filler char(200), KEY (filler)) ENGINE = MyISAM",
        "INSERT INTO myisam.t SELECT seq, repeat('x', 100) FROM orders.seq_1_to_50000",
        "CREATE DATABASE aria",
        "CREATE TABLE aria.t (id int PRIMARY KEY, filler char(200)) ENGINE = Aria TRANSACTIONAL = 0",
        "INSERT INTO aria.t SELECT seq, repeat('x', 100) FROM orders.seq_1_to_50000",
        "CREATE DATABASE listed",
        "CREATE TABLE listed.t (id int NOT NULL) ENGINE = CSV",
        "CREATE TABLE listed.m (id int) ENGINE = MEMORY",
        "FLUSH TABLES",
    )
    register_servers(collection.engine, [at(measured_mariadb, collection)])

    summary = collection.collect()

    stored = dict(collection.rows("SELECT database_name, size_bytes FROM database_size_stats"))
    assert stored["myisam"] == measured_mariadb.file_sizes("MYD", "MYI")["myisam"] > 10**7
    assert stored["aria"] == measured_mariadb.file_sizes("MAD", "MAI")["aria"] > 10**6
    assert stored["listed"] == 0
    assert summary.not_counted == ("shop: listed: 1 table of engine CSV",)
    assert summary.left_out == dict.fromkeys(("information_schema", "mysql", "performance_schema", "sys"), 1)
    assert "Not counted, because no size is reported: shop: listed: 1 table of engine CSV." in summary.message


def test_tables_in_the_shared_tablespace_count_by_their_statistics(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(
        "SET GLOBAL innodb_file_per_table = 0",
        "CREATE DATABASE `sh/ared`",
        "CREATE TABLE `sh/ared`.`t#1` (id int PRIMARY KEY, filler varchar(200))",
        "INSERT INTO `sh/ared`.`t#1` SELECT seq, repeat('x', 100) FROM orders.seq_1_to_50000",
        "ANALYZE TABLE `sh/ared`.`t#1`",
        "SET GLOBAL innodb_file_per_table = 1",
    )
    register_servers(collection.engine, [at(measured_mariadb, collection)])

    assert failures(collection.collect()) == {}

    assert 5 <= collection.sizes("shop")["sh/ared"] <= 12


def test_allocated_sizes_are_what_compressed_pages_take_on_the_disk(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(
        "CREATE TABLE orders.compressed (id int PRIMARY KEY, filler varchar(200)) PAGE_COMPRESSED = 1",
        "INSERT INTO orders.compressed SELECT seq, repeat('x', 100) FROM orders.seq_1_to_50000",
        "FLUSH TABLES orders.compressed FOR EXPORT",
        "UNLOCK TABLES",
    )
    register_servers(collection.engine, [at(measured_mariadb, collection, sizing="allocated")])

    assert failures(collection.collect()) == {}

    [(stored,)] = collection.rows("SELECT size_bytes FROM database_size_stats WHERE database_name = 'orders'")
    assert stored == measured_mariadb.file_sizes(allocated=True)["orders"]


def test_an_endless_answer_is_given_up_and_the_others_are_stored(
    measured_mariadb: MariaDBServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = "information_schema.COLUMNS"
    endless = f"SELECT repeat('x', 1000), 1, 1 FROM {columns} a, {columns} b, {columns} c"
    monkeypatch.setattr(mysql, "FILES_BY_SCHEMA", endless)
    register_servers(collection.engine, [at(measured_mariadb, collection)])

    kind, reason = failures(collection.collect())["shop"]

    assert kind == "unexpected"
    assert "its answer has more than 200,000 rows or 32 MiB, and was not read completely" in reason


def test_tables_and_indexes_are_listed_from_their_files_and_add_up_to_the_schema(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(
        "CREATE TABLE orders.parts (id int PRIMARY KEY, k int, KEY by_k (k)) PARTITION BY HASH (id) PARTITIONS 3",
        "INSERT INTO orders.parts SELECT seq, seq FROM orders.seq_1_to_1000",
        "CREATE TABLE orders.heap (a int NOT NULL, UNIQUE KEY first_unique (a))",
        "CREATE TABLE orders.old (a char(100)) ENGINE=MyISAM",
        "INSERT INTO orders.old SELECT 'x' FROM orders.seq_1_to_1000",
        "CREATE TABLE orders.`t#P#x` (a int) ENGINE=InnoDB",
        "ANALYZE TABLE orders.t, orders.parts, orders.heap",
    )
    register_servers(collection.engine, [at(measured_mariadb, collection)])

    summary = collection.collect_objects()

    found = collection.objects("orders")
    folder = measured_mariadb.folder / "data" / "orders"
    file_size = sum(file.stat().st_size for file in folder.glob("t.ibd"))
    assert (failures(summary), summary.unknown_objects, summary.object_databases) == ({}, (), 3)
    assert found["t"][1] + found["filler"][1] == file_size
    assert found["filler"][1] > 1_000_000, "the index apart from its table"
    assert found["parts"][1] + found["by_k"][1] == sum(file.stat().st_size for file in folder.glob("parts*.ibd"))
    assert "first_unique" not in found, "the table itself"
    assert found["heap"][::2] == ("table", True)
    assert found["old"][1] == sum(file.stat().st_size for file in folder.glob("old.MY[DI]"))
    assert found["t#P#x"][1] == 65536, "a table, and no partition of another"
    assert found["others"][1] == found["unexplained"][1] == 0
    [hostile] = [name for name, (kind, *_) in collection.objects(HOSTILE).items() if kind == "table"]
    assert hostile == "t-1"
    assert collection.rows("SELECT estimated_rows FROM object_size_stats WHERE object_name = 'parts'") == [(1000,)]
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(3,)]


def test_rows_written_since_the_start_are_counted_where_performance_schema_is_on(collection: Collection) -> None:
    counters = ("setup_instruments", "setup_consumers", "setup_objects", "table_io_waits_summary_by_table")
    with mariadb_server("--performance-schema") as counting:
        counting.execute(
            *granting("mariadb"),
            *(f"GRANT SELECT ON performance_schema.{name} TO 'capacity_probe'@'%'" for name in counters),
            "CREATE DATABASE orders",
            *(f"CREATE TABLE orders.{name} (a int)" for name in ("busy", "read_only", "untouched")),
            *(f"INSERT INTO orders.{name} VALUES (1), (2)" for name in ("busy", "read_only", "untouched")),
        )
        counting.kill()
        counting.start()
        counting.execute(
            "INSERT INTO orders.busy VALUES (3)", "UPDATE orders.busy SET a = 0", "SELECT * FROM orders.read_only"
        )
        register_servers(collection.engine, [at(counting, collection)])

        summary = collection.collect_objects()

    assert (failures(summary), summary.unknown_objects) == ({}, ())
    written = "SELECT object_name, written_rows, counted_since BETWEEN now() - interval '10 minutes' AND now() "
    written += "FROM object_size_stats WHERE database_name = 'orders' AND kind = 'table' ORDER BY 1"
    assert collection.rows(written) == [("busy", 4, True), ("read_only", 0, True), ("untouched", 0, True)]


@pytest.mark.parametrize("table", mysql.GRANTED_TABLES)
def test_a_login_without_the_right_on_statistics_has_tables_that_include_their_indexes(
    table: str, measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(f"REVOKE SELECT ON mysql.{table} FROM 'capacity_probe'@'%'")
    register_servers(collection.engine, [at(measured_mariadb, collection)])

    summary = collection.collect_objects()

    measured_mariadb.execute(f"GRANT SELECT ON mysql.{table} TO 'capacity_probe'@'%'")
    assert summary.unknown_objects == (f"shop: indexes are part of their tables: SELECT on mysql.{table} is missing",)
    assert collection.objects("orders")["t"] == ("table", measured_mariadb.file_sizes()["orders"], True)
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(3,)]


def test_used_space_is_the_files_without_what_is_free_inside_and_unknown_where_files_are_not_read(
    measured_mariadb: MariaDBServer, collection: Collection
) -> None:
    measured_mariadb.execute(
        "CREATE TABLE orders.wide (id int PRIMARY KEY, filler varchar(200), KEY apart (filler))",
        "INSERT INTO orders.wide SELECT seq, repeat('x', 100) FROM orders.seq_1_to_50000",
    )
    register_servers(collection.engine, [at(measured_mariadb, collection)])
    collection.collect()
    before = collection.used("orders")
    measured_mariadb.execute("ALTER TABLE orders.wide DROP KEY apart")

    # The server frees the pages of a dropped index in the background.
    deadline = time.monotonic() + 60
    while (summary := collection.collect(again=True)) and (after := collection.used("orders")) == before:
        assert time.monotonic() < deadline, "no page was freed"
    register_servers(collection.engine, [at(measured_mariadb, collection, sizing="allocated")])
    collection.collect(again=True)

    assert (summary.unknown_used, collection.used(HOSTILE)[1]) == ((), None)
    assert after[0] == before[0] == measured_mariadb.file_sizes()["orders"]
    assert 4 * 1024**2 < before[1] - after[1] < after[0]
    assert collection.used("orders")[1] is None, "pages that take no space on the disk may be free or not"
