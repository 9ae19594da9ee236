"""How the pages answer: headers, tokens, refusals in a sentence, a database that is slow or gone, no way to write."""

from __future__ import annotations

import http.client
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.errors import ValidationError
from capacity_assets.storage.reader_role import READ_ON_NODES, READABLE, READER_ROLE
from capacity_assets.web import app, reading
from capacity_assets.web.guard import HEADERS
from capacity_assets.web.names import Names
from capacity_assets.web.reading import Reader, reading_engine, refuse_a_role_that_can_write, role_to_read_with
from tests.command import capacity
from tests.pages import Pages, header, served_pages
from tests.pages_fleet import ADDRESSES, filled
from tests.roles import documented

PREPARED = {"pages": filled}


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


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/server?server=99", 404, "There is no server of the number 99."),
        ("/database?server=1&name=ordres", 404, "There is no database &#39;ordres&#39; on server-1"),
        ("/volume?server=1&name=/x", 404, "There is no volume"),
        ("/group?by=team&name=nobody", 404, "There is no group"),
        ("/database?server=1", 400, "The address names no name."),
        ("/server?server=one", 400, "server must be a whole number"),
        ("/databases?order=colour", 400, "order must be one of size, growth"),
        ("/databases?period=hourly", 400, "There is no period &#39;hourly&#39;"),
        ("/databases?page=100000", 400, "page must be a whole number from 1 to 200"),
        ("/databases?label=team", 400, "label must be written as team=payments"),
        ("/groups?by=colour", 400, "known are engine, server, team"),
        ("/database?server=1&name=orders&window=soon", 400, "window must be a day"),
        ("/database?server=1&name=%00", 400, "none that a database can have"),
        ("/nothing", 404, "There is no such page."),
        ("/groups?window=9999-12-31", 400, "window must lie in the years 1900 to 2999"),
        ("/servers?window=0001-01-01&period=weekly", 400, "window must lie in the years"),
        ("/bill?month=9999-12-31", 400, "month must lie in the years"),
        ("/group?by=engine", 404, "The address names no engine."),
    ],
)
def test_what_an_address_cannot_mean_is_said_in_a_sentence(pages: Pages, path: str, status: int, said: str) -> None:
    answer = pages.ask(path)

    assert answer.status == status
    assert said in answer.text
    assert "Traceback" not in answer.text


def test_a_token_is_asked_for_and_does_not_stay_in_the_address(database: URL) -> None:
    with served_pages(database, token="a-secret-of-readers") as pages:  # noqa: S106 -- of this test
        refused = pages.ask("/")
        assert (refused.status, "?token=" in refused.text) == (401, True)
        assert {name: header(refused, name) for name in HEADERS} == HEADERS
        assert pages.ask("/?token=wrong").status == 401
        assert pages.ask("/", Authorization="Bearer a-secret-of-readers").status == 200
        assert pages.ask("/static/style.css").status == 401
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"{pages.address}/groups?token=a-secret-of-readers&by=engine") as answer:
            assert answer.url == f"{pages.address}/groups?by=engine"
        with opener.open(f"{pages.address}/servers") as answer:
            assert answer.status == 200


def test_a_proxy_names_the_user(database: URL) -> None:
    with served_pages(database, user_header="X-Forwarded-User") as pages:
        assert pages.ask("/").status == 403
        assert "Signed in as dba@example" in pages.ask("/", **{"X-Forwarded-User": "dba@example"}).text


def test_a_database_that_is_slow_or_gone_gives_a_page_that_says_so(
    engine: Engine, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STATEMENT_TIMEOUT_SECONDS", 1)
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
    assert "The database is away or busy." in gone.text
    assert "/nowhere" not in gone.text, "where it is, is no business of readers"


def test_a_parameter_that_no_page_takes_is_dropped_and_one_called_path_harms_nothing(pages: Pages) -> None:
    answer = pages.ask("/servers?path=x&utm=1&order=name")

    assert answer.status == 200
    assert "utm" not in answer.text


def test_a_defect_is_said_with_all_headers_and_without_its_text(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("secret of the defect")

    monkeypatch.setattr("capacity_assets.web.pages.lists.asked_window", broken)
    answer = pages.ask("/servers")

    assert answer.status == 500
    assert "This page has a defect" in answer.text
    assert "secret" not in answer.text
    assert {name: header(answer, name) for name in HEADERS} == HEADERS


def test_a_foreign_cookie_and_a_path_of_two_slashes_lead_nowhere_else(database: URL) -> None:
    with served_pages(database, token="a-secret-of-readers") as pages:  # noqa: S106 -- of this test
        assert pages.ask("/", Cookie="capacity_token=\xe9").status == 401
        connection = http.client.HTTPConnection("127.0.0.1", int(pages.address.rpartition(":")[2]))
        connection.request("GET", "//evil.example/?token=a-secret-of-readers")
        answer = connection.getresponse()
        connection.close()
    assert (answer.status, answer.headers["location"]) == (303, "/evil.example/")


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
            return reader.kept(key, slow, 60)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        started = time.monotonic()
        assert list(pool.map(ask, ["one"] * 20)) == [7] * 20
        assert list(pool.map(ask, ["other"] * 20)) == ["away"] * 20
        assert time.monotonic() - started < 2
    assert len(read) == 2
    engine.dispose()


def test_the_pages_of_groups_hold_one_connection_at_a_time(database: URL, engine: Engine) -> None:
    filled(engine)
    with served_pages(database) as pages, ThreadPoolExecutor(30) as pool:
        addresses = [f"/group?by=team&name=payments&page={number}" for number in range(1, 31)]
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


def test_a_defect_while_reading_ahead_is_logged_and_the_next_round_comes(
    database: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[int] = []

    def search(*_: object) -> None:
        rounds.append(1)
        raise ValueError("a defect")

    monkeypatch.setattr(Names, "search", search)
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
    with pytest.raises(ValidationError, match=r"cannot read capacity_server_samples.*Run the statements under Roles"):
        refuse_a_role_that_can_write(reader)
    reader.dispose()


@pytest.mark.single_server("takes a role on that nodes do not let in")
@pytest.mark.usefixtures("reader_role")
def test_the_reader_role_is_enough_for_every_page_and_can_write_nothing(database: URL, engine: Engine) -> None:
    filled(engine)
    with served_pages(database, role=READER_ROLE) as pages:
        assert [pages.ask(address).status for address in ADDRESSES] == [200] * len(ADDRESSES)
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


def test_what_readers_may_read_is_what_the_operations_page_grants() -> None:
    granted = documented().split("CREATE ROLE capacity_reader")[1].split("GRANT SELECT ON ")[1].split(" TO ")[0]
    assert {name.strip() for name in granted.split(",")} == {*READABLE}
