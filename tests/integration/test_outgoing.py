"""Every outgoing call ends within its deadline and follows no redirect."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine

from capacity_assets.base import network
from capacity_assets.cli.up import is_served
from capacity_assets.collection import prometheus
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.prometheus import SourceError, prometheus_sources
from capacity_assets.collection.volumes import volumes_of
from capacity_assets.database import locks
from capacity_assets.database.locks import LockUnavailableError, ask_redis
from capacity_assets.digest import send_digests
from capacity_assets.messages import channels
from capacity_assets.messages.channels import Receiver, SendingSettings
from tests.clocks import TODAY
from tests.digests import WEEK, filled
from tests.servers import free_port
from tests.volume_sources import SOURCE

# Short enough that a client with only a timeout between bytes never gives up.
SECONDS_PER_BYTE = 0.05


@contextmanager
def dripping(begin: bytes, endlessly: bytes) -> Iterator[tuple[int, list[socket.socket]]]:
    """Yield its port and the open connections; each receives `begin` at once, then `endlessly` byte by byte."""
    over = threading.Event()
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(begin)
            for byte in itertools.cycle(endlessly):
                if over.wait(SECONDS_PER_BYTE):
                    break
                connection.sendall(bytes([byte]))
        connections.remove(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=drip, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield int(listener.getsockname()[1]), connections
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


PREPARED = {"engine": filled}
# A client with only a timeout between bytes would wait forever; the deadline leaves time for a machine under load.
LIMIT_SECONDS, PATIENCE_SECONDS = 1.0, 20.0
LATE = "no complete answer within 1 s"


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (network, "WEBHOOK_SECONDS"),
        (prometheus, "TIMEOUT_SECONDS"),
        (channels, "MAIL_SECONDS"),
        (locks, "CALL_SECONDS"),
    ):
        monkeypatch.setattr(module, name, LIMIT_SECONDS)
    # A handshake cannot be shortened; this is its deadline.
    monkeypatch.setattr(channels, "TIMEOUT_SECONDS", 2 * LIMIT_SECONDS)


def send(engine: Engine, receiver: Receiver, sending_settings: SendingSettings) -> str:
    [(_, reason)] = send_digests(engine, WEEK, [receiver], sending_settings).failed
    return reason


def by_webhook(engine: Engine, port: int, _folder: Path) -> str:
    receiver = Receiver("chat", webhook=True)
    return send(engine, receiver, SendingSettings(webhook_url=f"http://127.0.0.1:{port}/secret-path"))


def by_mail(engine: Engine, port: int, _folder: Path) -> str:
    receiver = Receiver("team", ("dba@example.com",))
    return send(engine, receiver, SendingSettings(f"smtp://127.0.0.1:{port}", "capacity@example.com"))


def by_encrypted_mail(engine: Engine, port: int, _folder: Path) -> str:
    receiver = Receiver("team", ("dba@example.com",))
    return send(engine, receiver, SendingSettings(f"smtps://127.0.0.1:{port}", "capacity@example.com"))


def volumes(_engine: Engine, port: int, folder: Path) -> str:
    (folder / "sources.toml").write_text(SOURCE.format(url=f"http://127.0.0.1:{port}", label="x"))
    [source] = prometheus_sources(folder / "sources.toml")
    with pytest.raises(SourceError) as caught:
        volumes_of(source, [], SecretFolders(folder), TODAY)
    return str(caught.value)


def redis(_engine: Engine, port: int, _folder: Path) -> str:
    with pytest.raises(LockUnavailableError) as caught:
        ask_redis(f"redis://127.0.0.1:{port}/0")
    return str(caught.value)


# The beginning of a long record of TLS.
RECORD = (b"\x16\x03\x03\x40\x00", b"\x02")
Call = Callable[[Engine, int, Path], str]
STATUS_LINE = (b"", b"HTTP/1.1 200 OK ")
HEADER = (b"HTTP/1.1 200 OK\r\nX: ", b"x")
BODY = (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ")
CHUNK = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0")


@pytest.mark.parametrize(
    ("call", "drops"),
    [
        pytest.param(by_webhook, STATUS_LINE, id="webhook-status"),
        pytest.param(by_webhook, HEADER, id="webhook-header"),
        pytest.param(by_mail, (b"", b"220 mail "), id="mail-greeting"),
        pytest.param(by_mail, (b"220 mail\r\n250-", b"mail "), id="mail-hello"),
        pytest.param(by_encrypted_mail, RECORD, id="mail-handshake"),
        pytest.param(volumes, STATUS_LINE, id="prometheus-status"),
        pytest.param(volumes, HEADER, id="prometheus-header"),
        pytest.param(volumes, BODY, id="prometheus-body"),
        pytest.param(volumes, CHUNK, id="prometheus-chunk"),
        pytest.param(redis, (b"", b"+OK "), id="redis"),
    ],
)
@pytest.mark.usefixtures("short_limits")
def test_one_byte_at_a_time_is_not_waited_for(
    engine: Engine, tmp_path: Path, call: Call, drops: tuple[bytes, bytes]
) -> None:
    began = time.monotonic()
    with dripping(*drops) as (port, connections):
        said = call(engine, port, tmp_path)
        while connections and time.monotonic() - began < PATIENCE_SECONDS:
            time.sleep(0.05)
        assert connections == [], "the connection is ended, and with it the thread that read from it"

    assert time.monotonic() - began < PATIENCE_SECONDS
    assert LATE in said
    assert "secret-path" not in said


def test_a_ui_that_answers_one_byte_at_a_time_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capacity_assets.cli.up.ANSWER_SECONDS", LIMIT_SECONDS)
    with dripping(*HEADER) as (port, _):
        assert not is_served(f"http://127.0.0.1:{port}/server_info")


@pytest.fixture
def redirecting() -> Iterator[tuple[int, list[str]]]:
    """A server that redirects every request to a page with status 200; yields its port and the requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(200 if self.path == "/login" else 302)
            self.send_header("Location", "/login")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (by_webhook, "answered 302, a redirect, which is not followed: configure the target address"),
        (volumes, "it answers 302, a redirect, which is not followed"),
    ],
)
def test_a_redirection_is_a_failure_and_is_not_followed(
    engine: Engine, tmp_path: Path, redirecting: tuple[int, list[str]], call: Call, says: str
) -> None:
    port, asked = redirecting

    said = call(engine, port, tmp_path)

    assert says in said
    assert len(asked) == 1


def test_a_host_that_nobody_serves_is_said_at_once(engine: Engine, tmp_path: Path) -> None:
    assert "does not answer (URLError)" in by_webhook(engine, free_port(), tmp_path)
