"""A server that sends without end, or very slowly, costs the collection neither memory nor time."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import sleep

import pytest

from capacity_assets.collection.engines import base
from capacity_assets.collection.engines.base import Access, MeasureError
from capacity_assets.collection.engines.sqlserver import BoundedSocket
from tests.forked import run_forked
from tests.profiles import nightly_except
from tests.servers import listening

# Connects and measures in a separate process, so that its memory can be measured apart from the server's.
CLIENT = """
import resource, sys, threading
from capacity_assets.collection.engines.base import Access
from capacity_assets.collection.engines.base import engine_named
resource.setrlimit(resource.RLIMIT_AS, (64 * 1024**3,) * 2)
name, host, port, side_by_side, seconds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
engine = engine_named(name)
access = Access(host, port, "probe", None, "x", connect_seconds=seconds, statement_seconds=seconds)
with __import__("contextlib").suppress(Exception):
    engine.connect(Access("127.0.0.1", 1, "probe", None, "x", connect_seconds=1))  # loads the driver
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = []
def measure():
    try:
        engine.sizes(engine.connect(access), access, ())
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=measure) for _ in range(side_by_side)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(said[0], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, sep="|")
"""
TOO_MUCH = "its answer has more than 200,000 rows or 32 MiB, and was not read completely"


def measured(engine: str, host: str, port: int, side_by_side: int = 1, seconds: int = 3) -> tuple[str, int]:
    """The client's error and its memory in MiB; the client must end within a minute.

    `seconds` is the time limit of the login and that of an answer.
    """
    arguments = (engine, host, str(port), str(side_by_side), str(seconds))
    done = run_forked(*arguments, program=CLIENT, environment=os.environ, timeout=60)
    assert done.returncode == 0, done.stderr
    said, _, taken_mb = done.stdout.strip().rpartition("|")
    return said, int(taken_mb)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


READY = message(b"Z", b"I")
DONE = message(b"C", b"SET\0") + READY
NOTIFICATION = message(b"A", struct.pack("!I", 1) + b"channel\0" + b"x" * 7000 + b"\0") * 100
FIELD = message(b"T", struct.pack("!H", 1) + b"datname\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0))


def as_postgresql(then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Accepts the login, answers the statements that prepare the session, and misbehaves when asked for sizes."""

    def answer(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(message(b"R", struct.pack("!I", 0)) + READY)
        while b"SET" in peer.recv(4096):
            peer.sendall(DONE)
        then(peer)

    return answer


def notifies_for_ever(peer: socket.socket) -> None:
    while True:
        peer.sendall(NOTIFICATION)


def sends_one_endless_field(peer: socket.socket) -> None:
    size = 2**30
    peer.sendall(message(b"1", b"") + message(b"2", b"") + FIELD)
    peer.sendall(b"D" + struct.pack("!IHI", size + 10, 1, size))
    while True:
        peer.sendall(b"x" * 65536)


def says_a_byte_now_and_then(peer: socket.socket) -> None:
    peer.sendall(message(b"1", b"") + message(b"2", b"") + FIELD + b"D" + struct.pack("!IHI", 1010, 1, 1000))
    while True:
        peer.sendall(b"x")
        sleep(0.1)


def names_parameters_for_ever(peer: socket.socket) -> None:
    """Before the login is complete."""
    peer.recv(4096)
    peer.sendall(message(b"R", struct.pack("!I", 0)))
    for number in count():
        peer.sendall(message(b"S", f"parameter{number}\0".encode() + b"x" * 20_000 + b"\0"))


FLOODS = {
    "notifications": as_postgresql(notifies_for_ever),
    "one field": as_postgresql(sends_one_endless_field),
    "parameters": names_parameters_for_ever,
}


@pytest.mark.parametrize(
    ("flood", "local"),
    [
        ("notifications", False),
        ("one field", False),
        ("parameters", False),
        ("notifications", True),
        ("parameters", True),
    ],
)
def test_a_postgresql_that_sends_without_end_is_given_up(flood: str, local: bool, tmp_path: Path) -> None:
    with listening(FLOODS[flood], tmp_path / ".s.PGSQL.7" if local else None) as port:
        said, taken_mb = measured("postgresql", str(tmp_path) if local else "127.0.0.1", port or 7)

    assert said == f"MeasureError: {TOO_MUCH}"
    assert taken_mb < 400


@pytest.mark.nightly("reads answers without end")
def test_many_endless_fields_side_by_side_are_given_up() -> None:
    with listening(FLOODS["one field"]) as port:
        said, taken_mb = measured("postgresql", "127.0.0.1", port, side_by_side=32)

    assert said == f"MeasureError: {TOO_MUCH}"
    assert taken_mb < 32 * 100


def test_an_answer_of_postgresql_that_comes_byte_by_byte_is_given_up_at_the_time_limit() -> None:
    with listening(as_postgresql(says_a_byte_now_and_then)) as port:
        said, _ = measured("postgresql", "127.0.0.1", port, seconds=1)

    assert said == "MeasureError: its response was not complete in time"


def packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


def as_mysql(then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Greets, accepts any proof, and misbehaves at the first statement without a prepared answer."""

    def answer(peer: socket.socket) -> None:
        capabilities = 0x0008A20F | 0x00080000
        greeting = b"\x0a8.0.0\0" + struct.pack("<I", 1) + b"12345678\0" + struct.pack("<H", capabilities & 0xFFFF)
        greeting += b"\x21\x02\0" + struct.pack("<H", capabilities >> 16) + b"\x15" + bytes(10) + b"123456789012\0"
        peer.sendall(packet(0, greeting + b"mysql_native_password\0"))
        ok = packet(2, b"\0\0\0\x02\0\0\0")
        peer.recv(4096)
        peer.sendall(ok)
        while b"SET" in peer.recv(4096):
            peer.sendall(packet(1, ok[4:]))
        then(peer)

    return answer


def sends_packets_for_ever(peer: socket.socket) -> None:
    """One column, and a field of any number of 16 MiB packets."""
    peer.sendall(packet(1, b"\x01"))
    for number in count(2):
        peer.sendall(b"\xff\xff\xff" + bytes([number % 256]))
        for _ in range(256):
            peer.sendall(b"x" * (65536 - (1 if _ == 255 else 0)))


def begins_a_packet(number: int) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.sendall(packet(number, bytes(1000))[:4])
        while True:
            peer.sendall(b"x")
            sleep(0.1)

    return answer


@pytest.mark.nightly("reads answers without end")
def test_a_mysql_that_sends_without_end_is_given_up() -> None:
    with listening(as_mysql(sends_packets_for_ever)) as port:
        said, taken_mb = measured("mysql", "127.0.0.1", port, side_by_side=8)

    assert said == f"MeasureError: {TOO_MUCH}"
    assert taken_mb < 8 * 100


AN_ANSWER, A_GREETING = as_mysql(begins_a_packet(1)), begins_a_packet(0)


@pytest.mark.parametrize("answer", nightly_except([AN_ANSWER, A_GREETING], AN_ANSWER), ids=["answer", "greeting"])
def test_an_answer_of_mysql_that_comes_byte_by_byte_is_given_up_at_the_time_limit(
    answer: Callable[[socket.socket], None],
) -> None:
    with listening(answer) as port:
        said, _ = measured("mysql", "127.0.0.1", port, seconds=1)

    assert "its response was not complete in time" in said


def as_http(head: bytes, then: bytes, seconds: float = 0.0) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(head)
        while True:
            peer.sendall(then)
            sleep(seconds)

    return answer


@pytest.mark.parametrize(
    ("head", "then"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b"x" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\nx: " + b"x" * 65000 + b"\r\n\r\n"),
    ],
    ids=["chunks", "length", "interim heads"],
)
def test_a_clickhouse_that_sends_without_end_is_given_up(head: bytes, then: bytes) -> None:
    with listening(as_http(head, then)) as port:
        said, taken_mb = measured("clickhouse", "127.0.0.1", port, side_by_side=4)

    assert said == f"MeasureError: {TOO_MUCH}"
    assert taken_mb < 4 * 100


A_HEAD, A_BODY = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize("head", nightly_except([A_HEAD, A_BODY], A_BODY), ids=["head", "body"])
def test_an_answer_of_clickhouse_that_comes_byte_by_byte_is_given_up_at_the_time_limit(head: bytes) -> None:
    with listening(as_http(head, b"x", 0.1)) as port:
        said, _ = measured("clickhouse", "127.0.0.1", port, seconds=1)

    assert said == "MeasureError: its response was not complete in time"


def sends_bytes_for_ever(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"x" * 65536)


@pytest.mark.parametrize("read", [lambda peer: peer.recv(8192), lambda peer: peer.recv_into(bytearray(8192))])
def test_the_driver_of_sql_server_reads_by_a_socket_that_is_bounded(read: Callable[[socket.socket], object]) -> None:
    with listening(sends_bytes_for_ever) as port, BoundedSocket(Access("127.0.0.1", port, "probe", None)) as peer:

        def read_on() -> None:
            while read(peer):
                pass

        with pytest.raises(MeasureError, match=TOO_MUCH):
            read_on()


def begins_a_login(peer: socket.socket) -> None:
    peer.sendall(struct.pack(">BBHHBB", 4, 1, 1000, 0, 1, 0))
    while True:
        peer.sendall(b"x")
        sleep(0.1)


def test_a_login_of_sql_server_that_comes_byte_by_byte_is_given_up_at_the_time_limit() -> None:
    with listening(begins_a_login) as port:
        said, _ = measured("sqlserver", "127.0.0.1", port, seconds=1)

    assert "its response was not complete in time" in said


def sends_a_byte_now_and_then(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"x")
        sleep(0.05)


def test_each_answer_to_the_driver_of_sql_server_has_a_time_limit_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "SLACK_SECONDS", 0.25)
    access = Access("127.0.0.1", 0, "probe", None, connect_seconds=0.5)
    with listening(sends_a_byte_now_and_then) as port, BoundedSocket(replace(access, port=port)) as peer:
        peer.answer_seconds = 1.5

        def receive(size_bytes: int) -> int:
            return sum(len(peer.recv(1)) for _ in range(size_bytes))

        for _ in range(2):
            peer.sendall(b"?")
            assert receive(20) == 20
        with pytest.raises(MeasureError, match="its response was not complete in time"):
            receive(50)
