"""Measuring a real ClickHouse: sizes are those of the parts on its disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from capacity_assets.collection import measuring
from capacity_assets.collection.engines import clickhouse
from capacity_assets.collection.engines.base import Access, Limits, ServerFacts, engine_named
from capacity_assets.collection.servers import Server, register_servers
from tests.clickhouse_server import ClickHouseServer, clickhouse_server
from tests.clocks import TODAY
from tests.collecting import OBJECTS_THAT_ADD_UP, PASSWORD, Collection, failures
from tests.servers import silent_socket

HOSTILE = "a-b/c.d @ä日'"


@pytest.fixture(scope="module")
def measured_clickhouse() -> Iterator[ClickHouseServer]:
    with clickhouse_server(PASSWORD) as running:
        running.execute(
            *(f"CREATE DATABASE `{name}`" for name in ("orders", "empty", HOSTILE)),
            "CREATE TABLE orders.t (n UInt64, v UInt64) ENGINE = MergeTree ORDER BY n",
            "INSERT INTO orders.t SELECT number, rand64() FROM numbers(1000000)",
            "CREATE TABLE orders.u (v UInt64) ENGINE = MergeTree ORDER BY v",
            "INSERT INTO orders.u SELECT number FROM numbers(100000)",
            f'CREATE TABLE `{HOSTILE}`.`t-1"` (v UInt64) ENGINE = MergeTree ORDER BY tuple()',
            f'INSERT INTO `{HOSTILE}`.`t-1"` SELECT rand64() FROM numbers(500000)',
            "CREATE TABLE empty.log (v UInt64) ENGINE = Log",
            "INSERT INTO empty.log SELECT number FROM numbers(100)",
        )
        yield running


def at(server: ClickHouseServer, collection: Collection, name: str = "ch", **values: object) -> Server:
    known: dict[str, object] = {
        "host": "127.0.0.1",
        "port": server.port,
        "username": "capacity_probe",
        "password_from": collection.password(f"{name}-password", PASSWORD),
    }
    return Server(name, "clickhouse", **{**known, **values})  # type: ignore[arg-type]


def test_sizes_and_tables_are_those_of_the_parts_on_the_disk(
    measured_clickhouse: ClickHouseServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_clickhouse, collection)])

    summary = collection.collect_objects()

    files = measured_clickhouse.file_sizes("orders")
    stored = {
        str(name): (size, data)
        for name, size, data in collection.rows(
            "SELECT database_name, size_bytes, data_size_bytes FROM database_size_stats"
        )
    }
    assert failures(summary) == {}
    assert set(stored) == {"default", "empty", "orders", "system", HOSTILE}
    size, data = stored["orders"]
    # A byte or so of each part is in no column: the file of its format's version.
    assert size == pytest.approx(sum(files.values()), abs=8)
    assert 0.9 * sum(files.values()) < data < size  # type: ignore[operator]
    assert stored["empty"] == (0, 0)
    assert 4_000_000 <= stored[HOSTILE][0] < 4_100_000  # type: ignore[operator]
    assert summary.not_counted == ("ch: empty: 1 table of the Log family",)
    tables = collection.objects("orders")
    assert {name: kind for name, (kind, *_) in tables.items()} == {
        **dict.fromkeys(("t", "u"), "table"),
        **{kind: kind for kind in ("others", "unexplained")},
    }
    assert tables["t"][1] == pytest.approx(files["t"], abs=4)
    assert tables["t"][2], "exact"
    assert collection.objects(HOSTILE)['t-1"'][1] == stored[HOSTILE][0]
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(5,)]
    [(estimated,)] = collection.rows("SELECT estimated_rows FROM object_size_stats WHERE object_name = 't'")
    assert estimated == 1_000_000


def test_the_version_is_told_and_that_this_one_reports_no_disks(measured_clickhouse: ClickHouseServer) -> None:
    engine, access = (
        engine_named("clickhouse"),
        Access("127.0.0.1", measured_clickhouse.port, "capacity_probe", None, PASSWORD),
    )

    with closing(engine.connect(access)) as session:
        assert engine.facts(session) == ServerFacts("ClickHouse 18.16.1", encrypted=False)
        assert engine.limits(session, access, ["orders"]) == Limits(unknown=clickhouse.TOO_OLD)


def test_the_login_cannot_write_and_a_query_neither(measured_clickhouse: ClickHouseServer) -> None:
    session = clickhouse.Session(Access("127.0.0.1", measured_clickhouse.port, "default", None))

    with pytest.raises(clickhouse.ServerError, match="readonly") as refused:
        session.rows("CREATE TABLE default.x (n UInt64) ENGINE = Log --")

    assert engine_named("clickhouse").failure(refused.value).kind.value == "rights"
    session.close()


def test_each_failure_is_of_its_kind_and_names_no_password(
    measured_clickhouse: ClickHouseServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "STATEMENT_SECONDS", 1.0)
    files = measured_clickhouse.certificates
    tls = {"port": measured_clickhouse.tls_port}
    with silent_socket() as silent:
        ways: dict[str, dict[str, object]] = {
            "wrong": {"password_from": collection.password("wrong", "guess-W0rd")},
            "nobody": {"username": "nobody"},
            "absent": {"port": 1},
            "silent": {"port": silent},
            "clear": {"host": "clickhouse.example", "tls": "off"},
            "unverified": {"host": "clickhouse.example", "tls": "require"},
            "verified": {**tls, "tls": "verify-full", "tls_ca": str(files.ca)},
            "another-ca": {**tls, "tls": "verify-full", "tls_ca": str(files.other_ca)},
            "missing-ca": {**tls, "tls": "verify-full", "tls_ca": "/nowhere/ca.pem"},
            "required": {**tls, "tls": "require"},
            "not-http": {"tls": "require"},
        }
        register_servers(
            collection.engine, [at(measured_clickhouse, collection, name, **way) for name, way in ways.items()]
        )

        found = failures(collection.collect())

    assert {name: kind for name, (kind, _) in found.items()} == {
        "wrong": "login",
        "nobody": "login",
        "absent": "unreachable",
        "silent": "timeout",
        "clear": "setup",
        "unverified": "setup",
        "another-ca": "tls",
        "missing-ca": "setup",
        "not-http": "tls",
    }
    assert "guess-W0rd" not in str(found)
    assert collection.total("verified") == collection.total("required")


def test_a_server_that_dies_or_takes_too_long_is_failed(
    collection: Collection, measured_clickhouse: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "SELECT toString(sleep(3)), 0, 0 FROM system.parts"
    monkeypatch.setattr(clickhouse, "PARTS", slow)
    with clickhouse_server(PASSWORD) as doomed:
        doomed.execute(
            "CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n", "INSERT INTO default.t VALUES (1)"
        )
        register_servers(collection.engine, [at(doomed, collection, "doomed")])
        killer = threading.Timer(1.0, doomed.kill)
        killer.start()
        died = failures(collection.collect(TODAY))
        killer.join()
    monkeypatch.setattr(measuring, "STATEMENT_SECONDS", 1.0)
    register_servers(collection.engine, [at(measured_clickhouse, collection, "slow")])
    late = failures(collection.collect(TODAY))

    assert died["doomed"][0] == "broken off"
    assert late["slow"][0] == "timeout"
