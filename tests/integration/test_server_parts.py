"""What lies on real servers beside their databases, held against the files on their disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from capacity_assets.collection import measuring
from capacity_assets.collection.servers import register_servers
from tests.collecting import Collection, at, granting
from tests.mysql_servers import MariaDBServer, MySQLServer, mariadb_server
from tests.servers import ADMIN_PASSWORD, PostgresServer, postgres_server, wait_for_server


def bytes_in(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())


def parts(collection: Collection) -> dict[tuple[object, object], tuple[object, object]]:
    rows = collection.rows("SELECT part_kind, part_name, size_bytes, detail FROM server_part_stats")
    return {(kind, name): (size_bytes, detail) for kind, name, size_bytes, detail in rows}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server(tls=False, options=("max_wal_size=64MB",)) as server:
        server.execute(*granting("postgresql"), "CREATE DATABASE orders")
        yield server


def test_a_slot_whose_consumer_is_gone_is_told_from_one_that_is_read(
    postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(postgres, collection, tls="off")])
    postgres.execute(
        "SELECT pg_create_physical_replication_slot(name, true) FROM (VALUES ('gone'), ('read')) AS s (name)",
        *(2 * ("SELECT pg_switch_wal()", "CREATE TABLE IF NOT EXISTS t AS SELECT 1 AS n")),
    )
    address = f"host=127.0.0.1 port={postgres.port} user=postgres password={ADMIN_PASSWORD} replication=true"
    consumer = psycopg.pq.PGconn.connect(address.encode())
    consumer.exec_(b"START_REPLICATION SLOT read PHYSICAL 0/1000000")

    without_right = collection.collect()
    refused = parts(collection)
    postgres.execute("GRANT pg_monitor TO capacity_probe")
    done = collection.collect(again=True)
    found = parts(collection)
    consumer.finish()

    reason = "its login may not see it: pg_monitor is missing"
    assert without_right.unknown_parts == (f"pg: Temporary files: {reason}", f"pg: WAL: {reason}")
    assert (refused["wal", ""], refused["temporary", ""]) == ((None, reason), (None, reason))
    assert done.unknown_parts == ()
    assert set(found) == {("wal", ""), ("slot", "gone"), ("slot", "read"), ("temporary", "pg_default")}
    segments = bytes_in(postgres.folder / "data" / "pg_wal", "0*")
    assert found["wal", ""] == (segments, f"{segments // 16 // 1024**2} segments")
    retained_bytes, detail = found["slot", "gone"]
    assert 16 * 1024**2 < int(str(retained_bytes)) <= segments
    assert str(detail).startswith("physical, its consumer is not connected")
    assert found["slot", "read"][1] == "physical, its consumer is connected"
    assert found["temporary", "pg_default"] == (0, "0 files")
    assert done.total_size_mb == collection.sizes("pg")["orders"], "parts are added to no size"


WRITE_A_SEGMENT = (
    "CREATE TABLE IF NOT EXISTS t AS SELECT 1 AS n",
    "INSERT INTO t VALUES (1)",
    "SELECT pg_switch_wal()",
)


def wait_until(server: PostgresServer, query: str) -> None:
    def answer() -> None:
        with server.admin() as connection:
            assert connection.execute(query.encode()).fetchone() == (True,)

    wait_for_server(answer, AssertionError)


def test_wal_that_is_not_archived_is_measured_with_whether_archiving_fails(collection: Collection) -> None:
    options = ("archive_mode=on", "archive_command=test -e reachable")
    with postgres_server(tls=False, options=options) as server:
        data = server.folder / "data"
        server.execute(*granting("postgresql"), "CREATE DATABASE orders", *WRITE_A_SEGMENT, *WRITE_A_SEGMENT)
        register_servers(collection.engine, [at(server, collection, tls="off")])
        without_right = collection.collect()
        server.execute("GRANT pg_monitor TO capacity_probe")
        wait_until(server, "SELECT last_failed_time IS NOT NULL FROM pg_stat_archiver")
        collection.collect(again=True)
        failing = parts(collection)["archiver", ""]
        waiting = len([*(data / "pg_wal" / "archive_status").glob("*.ready")])
        (data / "reachable").touch()
        server.execute(*WRITE_A_SEGMENT)
        wait_until(server, "SELECT count(*) = 0 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")
        wait_until(server, "SELECT last_archived_time > last_failed_time FROM pg_stat_archiver")
        collection.collect(again=True)
        working = parts(collection)["archiver", ""]

    assert "pg: WAL archiver: its login may not see it: pg_monitor is missing" in without_right.unknown_parts
    assert waiting >= 2
    assert failing[0] == waiting * 16 * 1024**2
    assert str(failing[1]).startswith(f"{waiting} segments not archived; archiving fails, none archived since ")
    assert working == (0, "0 segments not archived; archiving does not fail")


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    with mariadb_server(tls=False) as server:
        server.execute(*granting("mariadb"), "CREATE DATABASE orders")
        yield server


def test_mariadb_reports_redo_undo_and_temporary_tablespaces_as_on_its_disk(
    mariadb: MariaDBServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(mariadb, collection, "shop", "mariadb", tls="off")])

    without_right = collection.collect()
    mariadb.execute("GRANT REPLICATION CLIENT, REPLICA MONITOR ON *.* TO 'capacity_probe'@'%'")
    done = collection.collect(again=True)
    found, data = parts(collection), mariadb.folder / "data"

    missing = "its login may not see it: REPLICATION CLIENT"
    assert without_right.unknown_parts == (
        f"shop: Binary logs: {missing} is missing",
        f"shop: Relay logs: {missing} (MariaDB: REPLICA MONITOR) is missing",
    )
    assert done.unknown_parts == ()
    assert {kind: size for (kind, _), (size, _) in found.items()} == {
        "redo": bytes_in(data, "ib_logfile*"),
        "undo": bytes_in(data, "undo*"),
        "temporary": bytes_in(data, "ibtmp*"),
    }, "a server that writes no binary log has none"


@pytest.fixture(scope="module")
def mysql(measured_mysql: MySQLServer) -> MySQLServer:
    measured_mysql.execute(*granting("mysql"), "GRANT REPLICATION CLIENT ON *.* TO 'capacity_probe'@'%'")
    return measured_mysql


@pytest.mark.nightly("starts a further server")
def test_mysql_reports_its_logs_as_on_its_disk(mysql: MySQLServer, collection: Collection) -> None:
    ca = str(mysql.certificates.ca)
    register_servers(collection.engine, [at(mysql, collection, "shop", "mysql", tls="verify-full", tls_ca=ca)])
    # A channel has relay logs, whether its source answers or not.
    mysql.execute("CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=1 FOR CHANNEL 'eu'")

    done = collection.collect()
    found, data = parts(collection), mysql.folder / "data"

    assert done.unknown_parts == ()
    assert found["binary_log", ""][0] == bytes_in(data, "binlog.0*")
    assert found["relay_log", "eu"][0] == bytes_in(data, "*-relay-bin-eu.0*")
    assert found["redo", ""][0] == bytes_in(data / "#innodb_redo", "*")
    assert found["undo", ""] == (bytes_in(data, "undo_*"), "2 tablespaces")
    assert found["temporary", ""][0] == bytes_in(data, "ibtmp1") + bytes_in(data / "#innodb_temp", "*")


@contextmanager
def never_opened(file: Path) -> Iterator[None]:
    """A file of which nobody gets to know the size: it becomes a pipe, which opens once somebody writes to it."""
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    file.chmod(0o666)
    try:
        yield
    finally:
        writer = os.open(file, os.O_WRONLY)
        file.unlink()
        file.write_bytes(content)
        file.chmod(0o666)
        os.close(writer)


@pytest.mark.nightly("starts a further server")
def test_one_kind_that_does_not_answer_leaves_the_others_known(
    mysql: MySQLServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all kinds in one time limit, a long list of binary logs left redo, undo and the others unknown."""
    mysql.execute("FLUSH BINARY LOGS")
    ca = str(mysql.certificates.ca)
    register_servers(collection.engine, [at(mysql, collection, "shop", "mysql", tls="verify-full", tls_ca=ca)])
    monkeypatch.setattr(measuring, "ANSWER_SECONDS", 2.0)

    with never_opened(mysql.folder / "data" / "binlog.000001"):
        done = collection.collect()
    found, data = parts(collection), mysql.folder / "data"

    assert done.unknown_parts == ("shop: Binary logs: no answer within 2 s",)
    assert found["binary_log", ""] == (None, "no answer within 2 s")
    assert found["redo", ""][0] == bytes_in(data / "#innodb_redo", "*")
    assert {"undo", "temporary"} <= {kind for (kind, _), (size_bytes, _) in found.items() if size_bytes is not None}
