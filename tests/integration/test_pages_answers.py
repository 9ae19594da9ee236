"""How the pages answer: headers, tokens, refusals in a sentence, a database that is slow or gone, no way to write."""

from __future__ import annotations

import gc
import gzip
import re
import socket
import time
import weakref
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.engine import capacity_engine, disposed
from capacity_assets.database.schema import initialise
from capacity_assets.database.views import READ_ON_NODES, READABLE, READER_ROLE
from capacity_assets.reading import access
from capacity_assets.reading.access import (
    reading_engine,
    refuse_a_role_that_can_write,
    role_to_read_with,
)
from capacity_assets.web import app, bills, changes
from capacity_assets.web.app import CHALLENGE, HEADERS
from capacity_assets.web.reader import FORECASTS_SECONDS, Reader
from capacity_assets.web.rendering import PageRoute
from capacity_assets.web.routes import PAGES
from tests.command import capacity
from tests.databases import execute
from tests.former_revisions import ADDED_LATER
from tests.pages import Pages, header, served, served_pages, serving_process
from tests.pages_fleet import ADDRESSES, filled
from tests.roles import documented
from tests.servers import ADMIN_PASSWORD, PostgresServer, free_port, silent_socket

IPV6_ADDRESSES = Path("/proc/net/if_inet6")
LOOPBACK = "::1" if IPV6_ADDRESSES.exists() and IPV6_ADDRESSES.read_text() else "127.0.0.1"
PREPARED = {"pages": filled, "filled_pages": filled}


class Recorder:
    """A function that keeps the named arguments of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append(named)
        return self._function(*arguments, **named)


@pytest.fixture
def filled_pages(engine: Engine) -> None:
    """What every page shows; copied."""


def test_every_answer_carries_the_headers_and_another_host_gets_none(pages: Pages) -> None:
    for path in ("/", "/static/style.css", "/nothing", "/server?server=99", "/databases?order=x", "/?format=json"):
        answer = pages.ask(path)
        assert {name: header(answer, name) for name in HEADERS} == HEADERS, path
    assert "unsafe-inline" not in HEADERS["Content-Security-Policy"]

    assert pages.ask("/", Host="evil.example").status == 400


def test_no_page_needs_inline_script_or_style(pages: Pages) -> None:
    for address in ADDRESSES:
        html = pages.ask(address).text
        assert " style=" not in html, address
        assert "<style" not in html, address
        assert "javascript:" not in html, address


NO_ADDRESSES = [
    ("/server?server=99", 404, "No server with ID 99."),
    ("/database?server=1&name=ordres", 404, "There is no database &#39;ordres&#39; on server-1"),
    ("/volume?server=1&name=/x", 404, "There is no volume"),
    ("/group?by=team&name=nobody", 404, "There is no group &#39;nobody&#39; by team. Nothing has the label"),
    ("/group?by=team&name=paymens", 404, "Did you mean &#39;team=payments&#39;?"),
    ("/group?by=engine&name=nothing", 404, "There is no group &#39;nothing&#39; by engine."),
    ("/database?server=1", 400, "The address lacks the parameter name."),
    ("/server?server=one", 400, "not &#39;one&#39;: /search?q=one finds it by name."),
    ("/databases?order=colour", 400, "order must be one of size, growth"),
    ("/databases?period=hourly", 400, "There is no period &#39;hourly&#39;"),
    ("/databases?page=100000", 400, "page must be a whole number from 1 to 200"),
    ("/databases?label=team", 400, "&#39;team&#39; is not a label; write key and value, such as team=payments"),
    ("/groups?by=colour", 400, "known are engine, server, team"),
    ("/database?server=1&name=orders&window=soon", 400, "window must be a day"),
    ("/database?server=1&name=%00", 400, "The parameter name is longer than 300 characters or contains a NUL"),
    ("/nothing", 404, "There is no such page."),
    ("/groups?window=9999-12-31", 400, "window must be in the years 1900 to 2999"),
    ("/servers?window=0001-01-01&period=weekly", 400, "window must be in the years"),
    ("/bill?month=9999-12-31", 400, "month must be in the years"),
    ("/group?by=team&value=web", 400, "group has no parameter &#39;value&#39;; it has by, name"),
    ("/group?by=engine", 404, "The address lacks the parameter name: which engine is meant."),
]


def test_invalid_addresses_are_answered_with_a_sentence(pages: Pages) -> None:
    for path in ("/api", "/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v2/fleet"):
        nothing = pages.ask(path)
        assert (nothing.status, nothing.json) == (
            404,
            {"error": "There is no such answer; see /api/v1/openapi.json."},
        )
    for path, status, said in NO_ADDRESSES:
        answer = pages.ask(path)

        assert answer.status == status, path
        assert said in answer.text, path
        assert "Traceback" not in answer.text, path
    for path, leads_to in (
        ("/nothing", '<a href="/">Fleet</a>'),
        ("/server?server=99", '<a href="/">Fleet</a> · <a href="/servers">Servers</a>'),
        ("/group?by=team&name=nobody", '<a href="/">Fleet</a> · <a href="/groups">Groups</a>'),
        ("/databases?order=colour", '<a href="/">Fleet</a> · <a href="/databases">Databases</a>'),
    ):
        assert f"<p>{leads_to}</p>" in pages.ask(path).text


@pytest.mark.nightly("asks for every page with every parameter")
def test_an_empty_parameter_is_refused_or_counts_as_missing(pages: Pages) -> None:
    addresses = {address.partition("?")[0]: address.partition("?")[2] for address in ADDRESSES}
    for page in PAGES:
        for name in page.parameters:
            others = [part for part in addresses[page.path].split("&") if part.partition("=")[0] not in {name, ""}]
            answer = pages.ask(f"{page.path}?{'&'.join([*others, f'{name}='])}")
            assert answer.status in {200, 400, 404}, (page.path, name, answer.status)
    assert "<h1>What if</h1>" in pages.ask("/scenario?name=").text


def test_a_token_is_asked_for_as_a_password_and_no_cookie_carries_it(database: URL) -> None:
    with served_pages(database, token="a-secret-of-readers") as pages:  # noqa: S106 -- of this test
        refused = pages.ask("/")
        assert (refused.status, header(refused, "www-authenticate")) == (401, CHALLENGE)
        assert {name: header(refused, name) for name in HEADERS} == HEADERS
        assert pages.ask("/static/style.css").status == 401
        for wrong in ("Bearer wrong", "Basic !", basic("x:wrong"), basic("a-secret-of-readers"), "Bearer \xe9"):
            assert pages.ask("/", Authorization=wrong).status == 401, wrong
        assert pages.ask("/?token=a-secret-of-readers", Cookie="capacity_token=\xe9").status == 401
        for right in ("Bearer a-secret-of-readers", basic("ann:a-secret-of-readers")):
            answer = pages.ask("/servers", Authorization=right)
            assert (answer.status, header(answer, "set-cookie")) == (200, "")


def basic(login: str) -> str:
    return f"Basic {b64encode(login.encode()).decode()}"


def test_a_proxy_names_the_user(database: URL) -> None:
    with served_pages(database, user_header="X-Forwarded-User") as pages:
        assert pages.ask("/").status == 403
        for user in ("dba@example", "ann@example", "dba@example"):
            answer = pages.ask("/", **{"X-Forwarded-User": user})
            assert re.findall("Signed in as ([^<]*)", answer.text) == [user], "no reader sees the name of another"


def test_who_refuses_compression_by_a_weight_of_0_gets_none(pages: Pages) -> None:
    for path in ("/servers", "/metrics", "/static/style.css"):
        plain = pages.ask(path)
        for refused in ("gzip;q=0", "br, GZIP ; q=0.000, identity"):
            answer = pages.ask(path, **{"Accept-Encoding": refused})
            found = header(answer, "content-encoding"), header(answer, "vary"), len(answer.content)
            assert found == ("", "Accept-Encoding", len(plain.content)), (path, refused)
        assert header(pages.ask(path, **{"Accept-Encoding": "br, gzip;q=0.5"}), "content-encoding") == "gzip", path


def test_a_page_is_the_same_whether_compressed_or_not_and_says_what_it_depends_on(pages: Pages) -> None:
    packed = pages.ask("/servers", **{"Accept-Encoding": "gzip, br"})
    plain = pages.ask("/servers")

    assert gzip.decompress(packed.content) == plain.content
    assert (header(packed, "content-encoding"), header(plain, "content-encoding")) == ("gzip", "")
    assert {header(one, "vary") for one in (packed, plain)} == {"Accept-Encoding"}
    assert [header(one, "content-length") for one in (packed, plain)] == [
        str(len(one.content)) for one in (packed, plain)
    ]


def test_a_page_is_filled_in_once_for_all_who_ask_at_the_same_moment_and_again_when_it_was_read_again(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled_in: list[str] = []

    def slowly(page: PageRoute, content: Any) -> list[tuple[str, str]]:
        filled_in.append(page.path)
        time.sleep(0.5)
        return crumbs(page, content)

    # It is called once when a page is filled in.
    crumbs = app._crumbs
    monkeypatch.setattr(app, "_crumbs", slowly)
    monkeypatch.setattr(app, "SECONDS_KEPT", 1)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(pages.ask, ["/servers?order=name"] * 20))
    assert filled_in == ["/servers"]
    assert len({answer.text for answer in answers}) == 1

    time.sleep(1)
    deadline = time.monotonic() + 30
    while len(filled_in) < 2 and time.monotonic() < deadline:
        assert pages.ask("/servers?order=name").status == 200
        time.sleep(0.1)
    assert filled_in == ["/servers"] * 2


def test_a_database_that_is_slow_or_gone_gives_a_page_that_says_so(
    engine: Engine, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "STATEMENT_TIMEOUT_SECONDS", 1)
    with served_pages(database) as pages, engine.begin() as connection:
        connection.execute(text("LOCK TABLE database_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        connection.execute(text("LOCK TABLE instance_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        slow = pages.ask("/databases")
        as_json = pages.ask("/databases?format=json")

    assert (slow.status, as_json.status) == (503, 503)
    assert "did not answer within 5 seconds" in slow.text
    assert "did not answer" in as_json.json["error"]
    with served_pages(database.set(query={"host": "/nowhere"})) as pages:
        gone = pages.ask("/")
    assert gone.status == 503
    assert "The database is unavailable or busy." in gone.text
    assert "/nowhere" not in gone.text, "where it is, is no business of readers"


def test_why_the_database_cannot_be_read_is_in_the_log_of_the_server(
    engine: Engine, database: URL, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    with file.open("w") as log, serving_process(database, host=LOOPBACK, log=log) as pages:
        execute(engine, "DROP VIEW capacity_runway")
        refused = pages.ask("/filling?format=json")

    assert refused.status == 503
    reason = 'relation "capacity_runway" does not exist'
    assert f"The database refuses the query: {reason}" in refused.json["error"]
    assert f"The pages cannot read the database: {reason}" in file.read_text()


def test_many_who_ask_while_tables_are_locked_are_refused_soon_and_files_do_not_wait_behind_them(
    engine: Engine, pages: Pages
) -> None:
    def seconds_of(path: str) -> float:
        started = time.monotonic()
        assert pages.ask(path).status in ({200} if path.startswith("/static") else {202, 503})
        return time.monotonic() - started

    with engine.begin() as connection, ThreadPoolExecutor(80) as pool:
        connection.execute(text("LOCK TABLE instance_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        refused = [pool.submit(seconds_of, f"/servers?page={page}") for page in range(1, 80)]
        time.sleep(1)
        assert seconds_of("/static/style.css") < 3
        assert max(one.result() for one in refused) < 15, "ten at a time, five seconds each, would be forty"


def test_what_was_not_read_in_time_is_there_for_who_asks_again(
    pages: Pages, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ANSWER_SECONDS", 1)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE instance_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        waiting, as_json = pages.ask("/servers?order=name"), pages.ask("/servers?format=json")
        assert (waiting.status, header(waiting, "refresh")) == (202, "1")
        assert "Reading from the database: servers of a window" in waiting.text
        assert "opens automatically" in waiting.text
        assert (as_json.status, "did not answer within 1 second." in as_json.json["error"]) == (503, True)
    deadline = time.monotonic() + 30
    status = as_json.status
    while status != 200 and time.monotonic() < deadline:
        # Meanwhile it is read to the end.
        time.sleep(0.2)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE instance_size_aggregations IN ACCESS EXCLUSIVE MODE"))
            status = pages.ask("/servers").status
    assert status == 200


def test_a_file_may_take_longer_than_a_page_and_many_of_them_hold_up_no_page(
    pages: Pages, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ANSWER_SECONDS", 1)
    with ThreadPoolExecutor(40) as pool, engine.connect() as connection:
        connection.execute(text("LOCK TABLE instance_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        files = [pool.submit(pages.ask, f"/servers?page={number}&format=csv") for number in range(1, 40)]
        assert pages.ask("/servers?format=json").status == 503
        assert pages.ask("/decisions").status == 200
        connection.rollback()
        assert {file.result().status for file in files} == {200}

    monkeypatch.setattr(app, "FILE_SECONDS", 1)
    with engine.connect() as connection:
        connection.execute(text("LOCK TABLE instance_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        late = pages.ask("/servers?format=xlsx")
    assert (late.status, "did not answer within 1 second." in late.json["error"]) == (503, True)


def test_what_all_readers_share_may_take_longer_than_a_page_and_holds_up_neither_files_nor_the_end(
    database: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ANSWER_SECONDS", 1)
    monkeypatch.setattr("capacity_assets.web.reader.ANSWER_SECONDS", 1)
    monkeypatch.setattr(access, "STATEMENT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(app, "SILENT_SECONDS", 3)
    with ThreadPoolExecutor(40) as pool, engine.connect() as connection:
        with served_pages(database, reads_ahead=True) as pages:
            connection.execute(text("LOCK TABLE capacity_decisions IN ACCESS EXCLUSIVE MODE"))
            silent, texts = re.compile(r"The database has answered nothing for \d+ seconds\. It hangs"), [""]
            deadline = time.monotonic() + 30
            while not silent.search(texts[-1]) and time.monotonic() < deadline:
                answers = list(pool.map(pages.ask, ["/"] * 40))
                assert {answer.status for answer in answers} == {202}
                texts.append(answers[0].text)
            assert "Reading from the database: size and growth of the fleet" in texts[1]
            assert "Fleet: the database does not answer" in texts[-1]
            assert pages.ask("/static/icon.svg").status == 200
            connection.rollback()
            deadline = time.monotonic() + 30
            while (status := pages.ask("/").status) == 202 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert status == 200
            connection.execute(text("LOCK TABLE capacity_decisions IN ACCESS EXCLUSIVE MODE"))
            time.sleep(FORECASTS_SECONDS)
            assert pages.ask("/").status == 200, "while it is read again in the background"
            ended = time.monotonic()
        assert time.monotonic() - ended < 10, "the statement is cancelled"


def test_a_database_that_answers_each_of_many_statements_is_not_silent(database: URL) -> None:
    engine = reading_engine(database)
    reader = Reader(engine)
    with reader.transaction() as connection, ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            connection.execute(text("SELECT pg_sleep(0.2)"))
        assert reader.silent_seconds == 0, "it computes with the answers"
        with suppress(DBAPIError):
            connection.execute(text("SELECT 1/0"))
        assert reader.silent_seconds == 0, "nothing waits after an error"
        connection.rollback()
        waiting = pool.submit(connection.execute, text("SELECT pg_sleep(1)"))
        time.sleep(0.5)
        assert 0.4 < reader.silent_seconds < 1
        waiting.result()
    reader.close()
    engine.dispose()


@pytest.mark.nightly("waits for time limits")
def test_the_pages_end_while_the_database_hangs(measured_postgres: PostgresServer) -> None:
    measured_postgres.execute("CREATE DATABASE hanging")
    address = URL.create(
        "postgresql+psycopg", "postgres", ADMIN_PASSWORD, "127.0.0.1", measured_postgres.port, "hanging"
    )
    with disposed(capacity_engine(address)) as engine:
        initialise(engine)
    with served_pages(address) as pages:
        assert pages.ask("/").status == 200
        measured_postgres.freeze()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(pages.ask, ["/servers", "/databases", "/groups", "/metrics"]))
        ended = time.monotonic()
    taken = time.monotonic() - ended
    measured_postgres.thaw()
    measured_postgres.execute('DROP DATABASE "hanging" WITH (FORCE)')

    assert taken < 30


@pytest.mark.nightly("waits for time limits")
def test_requests_that_are_never_finished_lock_nobody_out_and_are_given_up(database: URL) -> None:
    with serving_process(database, open_files=160, request_seconds=2) as pages:
        place = ("127.0.0.1", int(pages.address.rpartition(":")[2]))
        unfinished = [socket.create_connection(place, timeout=60) for _ in range(300)]
        for one in unfinished:
            with suppress(ConnectionError):
                one.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert pages.ask("/static/icon.svg").status == 200
        for one in unfinished:
            with one, suppress(ConnectionError):
                assert one.recv(1) == b"", "closed within two seconds"
        body = socket.create_connection(place, timeout=60)
        with body, suppress(ConnectionError):
            body.sendall(b"GET /static/icon.svg HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
            while body.recv(10_000):
                body.sendall(b"x")
        assert pages.ask("/static/icon.svg").status == 200


def test_a_head_that_is_too_large_is_refused_before_it_is_read(pages: Pages) -> None:
    connection = socket.create_connection(("127.0.0.1", int(pages.address.rpartition(":")[2])), timeout=60)
    with connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 50_000_000:
                connection.sendall(b"X: %s\r\n" % (b"x" * 10_000))
                sent += 10_000
    assert sent < 25_000_000, "what the system holds for both ends, not what is sent"


def test_a_client_that_does_not_take_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(app, "SECONDS_BETWEEN_CHECKS", 0.1)
    ended: list[bool] = []

    async def large(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(50_000_000)})
            ended.append(True)

    port = free_port()
    with served(large, port), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(3)
        received = 0
        with suppress(ConnectionError):
            while some := connection.recv(1_000_000):
                received += len(some)
    assert (received < 50_000_000, ended) == (True, [True])


@dataclass(eq=False)
class _Value:
    """A value whose deletion can be observed."""

    content: bytes


@pytest.mark.nightly("fills the memory of pages")
def test_what_was_read_is_dropped_by_age_and_by_size(database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, alive = Reader(reading_engine(database)), weakref.WeakSet[_Value]()

    def keep(key: str, seconds: float) -> None:
        value = _Value(key.encode() * 1000)
        alive.add(value)
        reader.cached(key, lambda: value, seconds)

    def kept() -> list[str]:
        gc.collect()
        return sorted(value.content.decode()[:1] for value in alive)

    for key in "abc":
        keep(key, 0.01)
    time.sleep(0.1)
    keep("n", 300)
    assert kept() == ["n"]
    monkeypatch.setattr("capacity_assets.web.reader.MOST_KEPT_BYTES", 3500)
    for key in "defg":
        keep(key, 10)
    assert kept() == ["f", "g", "n"], "what is shown for long stays"
    keep("h" * 10, 10)
    assert kept() == ["h"], "the newest is kept, however large"


def test_a_parameter_that_a_page_does_not_take_is_refused_and_one_called_path_harms_nothing(pages: Pages) -> None:
    answer = pages.ask("/servers?path=x&order=name")

    assert answer.status == 400
    assert "servers has no parameter &#39;path&#39;; it has period, window, order" in answer.text


def test_a_defect_is_said_with_all_headers_and_without_its_text(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("secret of the defect")

    monkeypatch.setattr("capacity_assets.web.subjects.chosen_window", broken)
    answer = pages.ask("/servers")

    assert answer.status == 500
    assert "This page has a defect" in answer.text
    assert "secret" not in answer.text
    assert {name: header(answer, name) for name in HEADERS} == HEADERS


def test_many_who_ask_for_a_slow_page_wait_once_and_get_the_same_answer_or_error(database: URL) -> None:
    engine = reading_engine(database)
    reader = Reader(engine)
    read: list[int] = []

    def slow() -> int:
        read.append(1)
        time.sleep(0.3)
        if len(read) > 1:
            raise ValueError("away")
        return 7

    def ask(key: str) -> object:
        try:
            return reader.cached(key, slow, 60)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        started = time.monotonic()
        assert list(pool.map(ask, ["one"] * 20)) == [7] * 20
        assert list(pool.map(ask, ["other"] * 20)) == ["away"] * 20
        # Read once for each, it would take twelve.
        assert time.monotonic() - started < 6
    assert len(read) == 2
    engine.dispose()


@pytest.mark.nightly("asks for many pages at once")
@pytest.mark.usefixtures("filled_pages")
def test_the_pages_of_groups_hold_one_connection_at_a_time(database: URL) -> None:
    with served_pages(database) as pages, ThreadPoolExecutor(30) as pool:
        addresses = [f"/group?by=team&name=payments&last=2025-06-{number:02}" for number in range(1, 31)]
        assert {answer.status for answer in pool.map(pages.ask, addresses)} == {200}


def test_what_every_reader_sees_is_read_before_anybody_asks(database: URL, engine: Engine) -> None:
    with served_pages(database, reads_ahead=True) as pages, engine.connect() as connection:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(1)
            # Whoever reads a forecast now waits until it is too long.
            connection.execute(text("LOCK TABLE capacity_runways IN ACCESS EXCLUSIVE MODE"))
            answers = [
                pages.ask(address).status for address in ("/groups", "/", "/?period=quarterly", "/?period=daily")
            ]
            connection.rollback()
            if set(answers) == {200}:
                break

    assert answers == [200] * 4


@pytest.mark.usefixtures("filled_pages")
def test_changes_of_earlier_windows_and_the_largest_groups_are_read_before_anybody_asks(
    database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows, groups = Recorder(changes.new_and_gone), Recorder(bills.free_space)
    monkeypatch.setattr(changes, "new_and_gone", windows)
    monkeypatch.setattr(bills, "free_space", groups)
    with served_pages(database, reads_ahead=True) as pages:
        start = date.fromisoformat(pages.document("/changes?period=monthly")["window_start"])
        months = PERIODS["monthly"].back(PERIODS["monthly"].window_of(start), app.WINDOWS_READ_AHEAD)
        addresses = [f"/changes?period=monthly&window={month.start}" for month in months]
        names = [group["name"] or "" for group in pages.document("/groups?by=team")["groups"]]
        addresses += [f"/group?by=team&name={name}" for name in names]
        deadline = time.monotonic() + 60
        while {call["name"] for call in groups.calls} < set(names) and time.monotonic() < deadline:
            time.sleep(0.1)
        before = len(windows.calls), len(groups.calls)

        assert {pages.ask(address).status for address in addresses} == {200}

    assert (len(windows.calls), len(groups.calls)) == before
    assert {"payments", "archive"} <= set(names)


def test_a_defect_while_reading_ahead_is_logged_and_the_next_round_comes(
    database: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[int] = []

    def search(*_: object) -> None:
        rounds.append(1)
        raise ValueError("a defect")

    monkeypatch.setattr("capacity_assets.web.subjects.found_names", search)
    monkeypatch.setattr(app, "SECONDS_BETWEEN_READING_AHEAD", 0)
    with served_pages(database, reads_ahead=True) as pages:
        deadline = time.monotonic() + 30
        while len(rounds) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pages.ask("/").status == 200

    assert len(rounds) >= 2
    assert "A page that is read ahead has a defect" in caplog.text


@pytest.mark.usefixtures("reader_role")
def test_a_reader_role_of_an_older_release_is_refused_with_what_to_do(database: URL, engine: Engine) -> None:
    with engine.begin() as connection:
        # As a cluster needs it; elsewhere it changes nothing here.
        connection.execute(text(f"GRANT SELECT ON {', '.join(READ_ON_NODES)} TO {READER_ROLE}"))
        connection.execute(text(f"REVOKE SELECT ON capacity_server_samples FROM {READER_ROLE}"))
    reader = reading_engine(database, role=READER_ROLE)
    grant = f"GRANT SELECT ON capacity_server_samples TO {READER_ROLE}"
    with pytest.raises(ValidationError, match=f"cannot read capacity_server_samples, .* As their owner, run `{grant}`"):
        refuse_a_role_that_can_write(reader)
    reader.dispose()


# As documented before the views were added that What if and the changes of fill dates read.
FORMERLY_READABLE = """
    capacity_growth, capacity_latest, capacity_server_growth, capacity_server_sizes, capacity_fleet, capacity_coverage,
    capacity_runway, capacity_forecast_errors, capacity_forecasts, capacity_group_forecasts, capacity_groups,
    capacity_label_spans, capacity_servers, capacity_declared_servers, capacity_samples, capacity_server_samples,
    capacity_sample_origins, capacity_volumes, capacity_ceilings, capacity_server_parts, capacity_attempts,
    capacity_declared_limits, capacity_declared_steps, capacity_declared_decisions, capacity_objects, capacity_bills,
    capacity_bill_groups, capacity_bill_lines, capacity_prices, capacity_budgets, capacity_scenarios,
    capacity_stale_windows"""


@pytest.mark.single_server("takes a role on that nodes do not let in")
@pytest.mark.usefixtures("reader_role")
@pytest.mark.usefixtures("filled_pages")
def test_the_refusal_of_a_role_with_the_former_rights_has_the_statement_that_repairs_it(
    database: URL, engine: Engine
) -> None:
    execute(
        engine,
        f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {READER_ROLE}",
        f"GRANT SELECT ON {FORMERLY_READABLE} TO {READER_ROLE}",
    )
    reader = reading_engine(database, role=READER_ROLE)
    with pytest.raises(
        ValidationError,
        match="cannot read capacity_derived_windows, capacity_issued_runways, capacity_left_out_servers, so",
    ) as refused:
        refuse_a_role_that_can_write(reader)
    [grant] = re.findall(r"As their owner, run `(.*?)`", str(refused.value))

    execute(engine, grant)

    refuse_a_role_that_can_write(reader)
    reader.dispose()
    with served_pages(database, role=READER_ROLE) as pages:
        assert [pages.ask(address).status for address in ADDRESSES] == [200] * len(ADDRESSES)


def test_a_database_of_an_older_release_is_refused_with_what_to_do(database: URL, engine: Engine) -> None:
    execute(engine, *ADDED_LATER["0016"])
    reader = reading_engine(database)
    with pytest.raises(
        ValidationError,
        match=r"finds no capacity_bill_groups, .* `capacity init`, then .* `GRANT SELECT ON ",
    ):
        refuse_a_role_that_can_write(reader)
    reader.dispose()


@pytest.mark.single_server("takes a role on that nodes do not let in")
@pytest.mark.usefixtures("reader_role")
@pytest.mark.usefixtures("filled_pages")
def test_the_reader_role_is_enough_for_every_page_and_can_write_nothing(database: URL, engine: Engine) -> None:
    with served_pages(database, role=READER_ROLE) as pages:
        assert [pages.ask(address).status for address in ADDRESSES] == [200] * len(ADDRESSES)
        assert [pages.ask(address).status for address, _, _ in NO_ADDRESSES] == [
            status for _, status, _ in NO_ADDRESSES
        ]
        with engine.begin() as connection:
            connection.execute(text(f"REVOKE SELECT ON capacity_bills FROM {READER_ROLE}"))
        lacking = pages.ask("/bill?month=2020-01")
        with engine.begin() as connection:
            connection.execute(text(f"GRANT SELECT ON capacity_bills TO {READER_ROLE}"))
    assert lacking.status == 503
    assert "Run the statements under Roles in docs/operations.md again" in lacking.text
    reader = reading_engine(database, role=READER_ROLE)
    refuse_a_role_that_can_write(reader)
    for statement in ("DELETE FROM capacity_labels", "SELECT * FROM instances", "CREATE TABLE mine (n integer)"):
        with reader.connect() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            with pytest.raises(DBAPIError, match="permission denied"):
                connection.execute(text(statement))
    reader.dispose()


@pytest.mark.single_server("takes a role on that nodes do not let in")
@pytest.mark.usefixtures("reader_role")
def test_the_reader_role_is_taken_on_where_the_session_may(database: URL) -> None:
    engine = reading_engine(database)
    assert role_to_read_with(engine) == READER_ROLE
    engine.dispose()


def test_a_role_that_can_write_is_refused_with_what_to_do(database: URL) -> None:
    engine = reading_engine(database)
    assert role_to_read_with(engine) is None
    with pytest.raises(ValidationError, match=r"can write.*CAPACITY_WEB_DATABASE_URL.*serve --allow-writing-role"):
        refuse_a_role_that_can_write(engine)
    engine.dispose()


def test_serve_says_what_is_missing(settings: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings
    refused = capacity("serve", "--port", "1")
    assert refused.exit_code != 0
    monkeypatch.setenv("CAPACITY_WEB_TOKEN", "short")
    assert "CAPACITY_WEB_TOKEN" in capacity("serve").output


@pytest.mark.parametrize(
    ("host", "reason", "advice"),
    [
        ("127.0.0.1", "Address already in use", "Stop the program that uses it, or choose another port with --port."),
        ("192.0.2.1", "Cannot assign requested address", "Choose an address of this machine with --host."),
        (
            "\N{LATIN SMALL LETTER A WITH DIAERESIS}..b",
            "not a name of a host",
            "Choose an address of this machine with --host.",
        ),
    ],
)
@pytest.mark.usefixtures("settings")
def test_serve_says_why_it_cannot_listen_and_what_helps(host: str, reason: str, advice: str) -> None:
    with silent_socket() as port:
        refused = capacity("serve", "--host", host, "--port", str(port))

    assert refused.exit_code == 1
    assert f"Port {port} on {host} cannot be used ({reason}" in refused.output
    assert refused.output.endswith(f"). {advice}\n")


def test_what_readers_may_read_is_what_the_operations_page_grants() -> None:
    granted = documented().split("CREATE ROLE capacity_reader")[1].split("GRANT SELECT ON ")[1].split(" TO ")[0]
    assert {name.strip() for name in granted.split(",")} == {*READABLE}
