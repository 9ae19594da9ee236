"""Measuring a real ClickHouse: sizes are those of the parts on its disk."""

from __future__ import annotations

import http.client
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from time import sleep

import pytest

from capacity_assets.collection import measuring
from capacity_assets.collection.engines import clickhouse
from capacity_assets.collection.engines.base import Access, DatabaseObjects, Limits, ServerFacts, engine_named
from capacity_assets.collection.servers import Server, register_servers
from tests.clickhouse_server import ClickHouseServer, clickhouse_server
from tests.clocks import TODAY
from tests.collecting import OBJECTS_THAT_ADD_UP, PASSWORD, Collection, failures
from tests.servers import listening, silent_socket

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


def through_a_proxy(answer: Callable[[bytes], bytes]) -> AbstractContextManager[int]:
    """The port of a proxy that answers requests in its own way, one after another on a connection."""

    def serve(peer: socket.socket) -> None:
        while request := peer.recv(65536):
            peer.sendall(answer(request))

    return listening(serve)


def reason_at(port: int) -> str:
    engine = engine_named("clickhouse")
    try:
        engine.connect(Access("127.0.0.1", port, "probe", None, "s3cret"))
    except Exception as error:  # noqa: BLE001 -- any is classified
        return str(engine.failure(error))
    return ""


def http_answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http_answer("502 Bad Gateway", b"<html>"), "status 502; its answer is not that of ClickHouse"),
        (http_answer("401 Unauthorized", b""), "status 401; its answer is not that of ClickHouse"),
        (http_answer("200 OK", b"<html>"), "its answer is not that of ClickHouse"),
        (http_answer("200 OK", b"[" * 100_000), "its answer is not that of ClickHouse"),
        (http_answer("200 OK", b'{"x": 1}'), "its answer is not that of ClickHouse"),
        (http_answer("200 OK", b'{"data": 1}'), "its answer is not that of ClickHouse"),
    ],
)
def test_another_program_that_answers_is_told_from_clickhouse(answer: bytes, said: str) -> None:
    with through_a_proxy(lambda _: answer) as port:
        assert reason_at(port).startswith(said)


def test_a_proxy_that_repeats_the_login_does_not_bring_it_into_the_reason() -> None:
    def repeats(request: bytes) -> bytes:
        [login] = [line for line in request.split(b"\r\n") if line.startswith(b"Authorization")]
        return login + b"\r\n\r\n"

    for answer in (repeats, lambda request: http_answer("400 Bad Request", repeats(request))):
        with through_a_proxy(answer) as port:
            assert b64encode(b"probe:s3cret").decode() not in reason_at(port)


def test_an_answer_that_breaks_off_is_told_from_one_that_is_wrong() -> None:
    engine = engine_named("clickhouse")

    def breaks_off(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"data":[[1]')

    with listening(breaks_off) as port, pytest.raises(http.client.IncompleteRead) as failed:
        engine.connect(Access("127.0.0.1", port, "probe", None))

    assert engine.failure(failed.value).kind.value == "broken off"


def test_a_server_is_measured_after_a_wait_and_through_a_proxy_that_knows_the_length_of_answers(
    measured_clickhouse: ClickHouseServer,
) -> None:
    engine = engine_named("clickhouse")

    def forward(request: bytes) -> bytes:
        head = request.replace(b"Connection: close\r\n", b"").replace(b" HTTP/1.1", b" HTTP/1.0", 1)
        with socket.create_connection(("127.0.0.1", measured_clickhouse.port)) as server:
            server.sendall(head)
            answer = b"".join(iter(lambda: server.recv(65536), b""))
        return http_answer("200 OK", answer.partition(b"\r\n\r\n")[2])

    direct = Access("127.0.0.1", measured_clickhouse.port, "capacity_probe", None, PASSWORD)
    with closing(engine.connect(direct)) as session:
        sleep(4)  # the server closes a connection that waits for 3 seconds
        sizes = engine.sizes(session, direct, ("system",)).sizes
    with through_a_proxy(forward) as port:
        proxied = replace(direct, port=port)
        with closing(engine.connect(proxied)) as session:
            assert engine.sizes(session, proxied, ("system",)).sizes == sizes


def test_an_answer_may_take_longer_than_connecting_on_any_connection(measured_clickhouse: ClickHouseServer) -> None:
    access = Access("127.0.0.1", measured_clickhouse.port, "default", None, connect_seconds=0.5)
    session = clickhouse.Session(access)

    assert session.rows("SELECT 1") == [(1,)]
    assert session.rows("SELECT sleep(1)") == [(0,)]


def test_databases_and_tables_that_come_and_go_meanwhile_make_no_other_unknown(
    measured_clickhouse: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, access = (
        engine_named("clickhouse"),
        Access("127.0.0.1", measured_clickhouse.port, "capacity_probe", None, PASSWORD),
    )
    monkeypatch.setattr(clickhouse, "DATABASES", f"{clickhouse.DATABASES} WHERE name NOT IN ('empty', 'orders')")
    monkeypatch.setattr(clickhouse, "LOGS_BEFORE", clickhouse.LOGS_BEFORE.replace("NULL", "toUInt64(7)"))

    with closing(engine.connect(access)) as session:
        sizes = {one.name: one.size_bytes for one in engine.sizes(session, access, ()).sizes}
        objects = engine.objects(session, access, ["gone", "orders"])

    assert sizes["empty"] == 7
    assert sizes["orders"] > 0
    assert objects.databases[0] == DatabaseObjects("gone", ())
    assert [(one.name, one.estimated_rows) for one in objects.databases[1].largest] == [
        ("t", 1_000_000),
        ("u", 100_000),
    ]
