"""The pages as readers and scripts meet them: figures of the views, refusals in a sentence, no way to write."""

from __future__ import annotations

import csv
import http.client
import io
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from pydantic import TypeAdapter
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.errors import ValidationError
from capacity_assets.grouping.bills import issue_bill
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.grouping.prices import Price, declare_prices
from capacity_assets.periods import PERIODS
from capacity_assets.runway.issuing import issue
from capacity_assets.runway.limits import Limit, declare
from capacity_assets.runway.steps import Step, declare_steps
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.storage.reader_role import READ_ON_NODES, READABLE, READER_ROLE
from capacity_assets.web import app, reading
from capacity_assets.web.app import PAGES, SEARCH
from capacity_assets.web.guard import HEADERS
from capacity_assets.web.names import Names
from capacity_assets.web.reading import Reader, reading_engine, refuse_a_role_that_can_write, role_to_read_with
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import KEYS, Pages, header, served_pages, values_of
from tests.roles import documented

HOSTILE = '<script>alert(1)</script> & "orders" \''
DAYS = 120
FIRST = TODAY - timedelta(days=DAYS - 1)
GROWING = [10_000 + 50 * day for day in range(DAYS)]
ADDRESSES = (
    "/",
    "/servers",
    "/databases",
    "/groups",
    "/filling",
    "/bill",
    "/server?server=1",
    "/database?server=1&name=orders",
    "/volume?server=1&name=%2Fdata",
    "/group?by=team&name=payments",
    "/search?q=ord",
)


def filled(engine: Engine) -> None:
    """server-1 with orders, still and a hostile name, and the volume /data; server-2, failed today; a replica."""
    add_instances(engine, [1, 2])
    add_instances(engine, [3], counted_by=1)
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * DAYS))
    add_database_sizes(engine, sizes(1, HOSTILE, FIRST.isoformat(), [100] * DAYS))
    gone = [None if day in {60, DAYS - 1} else 2000 for day in range(DAYS)]
    add_database_sizes(engine, sizes(2, "crm", FIRST.isoformat(), gone))
    add_database_sizes(engine, sizes(3, "orders", FIRST.isoformat(), GROWING))
    whole = [(size + 600, 3) for size in GROWING]
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), whole))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [None if size is None else (size, 1) for size in gone]))
    add_instance_sizes(engine, totals(3, FIRST.isoformat(), [(size, 1) for size in GROWING]))
    with engine.begin() as connection:
        connection.execute(text(VOLUMES), {"first": FIRST, "today": TODAY})
        connection.execute(text(FAILED), {"today": TODAY})
    declare_labels(engine, [Label("server-1", None, "team", "payments")], TODAY)
    declare_labels(engine, [Label("server-1", "still", "team", "archive", ALWAYS)], TODAY)
    declare(engine, [Limit("server-1", "orders", GROWING[-1] + 500)])
    declare_steps(engine, [Step("server-1", "orders", TODAY - timedelta(days=50), "imported <b>history</b>")])
    service = AggregationService(engine, fixed_clock())
    for period in ("daily", "monthly"):
        service.calculate_period_aggregations(period, FIRST, TODAY)
    issue(engine, TODAY, TODAY)
    declare_prices(engine, [Price(Decimal("0.5"), "EUR")])
    issue_bill(engine, PERIODS["monthly"].window_of(date(2025, 6, 1)), TODAY, KEYS)


VOLUMES = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(d AS date), 1, '/data', 40000, 20000 - (CAST(d AS date) - CAST(:first AS date)) * 50, 'measured'
FROM generate_series(CAST(:first AS date), CAST(:today AS date), interval '1 day') AS d
"""
FAILED = """
INSERT INTO capacity_collection_attempts (collected_date, instance_id, status, failure, reason)
VALUES (:today, 2, 'failed', 'unreachable', 'no answer from 192.0.2.1:5432')
"""
PREPARED = {"pages": filled}


@pytest.fixture
def pages(database: URL) -> Iterator[Pages]:
    with served_pages(database) as served:
        yield served


@pytest.fixture
def empty_pages(database: URL) -> Iterator[Pages]:
    with served_pages(database) as served:
        yield served


def test_every_page_is_html_json_that_fits_its_schema_and_csv(pages: Pages) -> None:
    schemas = pages.ask("/schema").json
    for page, address in zip((*PAGES, SEARCH), sorted(ADDRESSES, key=_place), strict=True):
        html = pages.ask(address)
        assert (html.status, header(html, "content-type")) == (200, "text/html; charset=utf-8"), address
        document = pages.document(address)
        assert document.keys() == schemas[page.path]["properties"].keys()
        TypeAdapter(page.shows).validate_python(document)
        rows = list(csv.DictReader(io.StringIO(pages.ask(f"{address}{_and(address)}format=csv").text)))
        assert len(rows) == len(document[page.table]) > 0, address


def _place(address: str) -> int:
    return [page.path for page in (*PAGES, SEARCH)].index(address.partition("?")[0])


def _and(address: str) -> str:
    return "&" if "?" in address else "?"


def test_the_first_page_says_size_growth_what_fills_what_moved_and_what_was_not_measured(pages: Pages) -> None:
    fleet = pages.document("/")

    newest = fleet["sizes"][-1]
    assert (newest["size_mb"], newest["is_partial"]) == (GROWING[-1] + 600, True), "the replica counts nowhere"
    day_60 = next(one for one in fleet["sizes"] if one["window_start"] == str(FIRST + timedelta(days=60)))
    assert day_60["is_partial"]
    assert [(one["name"], one["subject"]) for one in fleet["fills_first"]][:1] == [("orders", "database")]
    assert values_of(fleet["moved"], "period") == ["daily", "monthly"]
    assert fleet["moved"][0]["growers"][0]["change_mb"] == 50
    assert [(one["server"], one["reason"]) for one in fleet["unmeasured"]] == [
        ("server-2", "no answer from 192.0.2.1:5432")
    ]
    trust = fleet["trust"]
    assert (trust["measured_servers"], trust["servers"], trust["failed_servers"]) == (2, 3, 1)
    assert fleet["headroom"] == {"headroom_mb": 14_050, "unknown_limits": 3, "fills_within_30_days": 1}
    assert {(one["name"], one["size_mb"]) for one in fleet["groups"]} == {
        ("payments", fleet["groups"][0]["size_mb"]),
        ("archive", 500),
        (None, 2000),
    }
    html = pages.ask("/").text
    assert "no answer from 192.0.2.1:5432" in html
    assert "2 of 3" in html


def test_coverage_counts_servers_that_are_silent_for_longer_than_it_looks_back(database: URL, engine: Engine) -> None:
    add_instances(engine, [1, 2])
    measured = [(1, 1) if day < 60 or day >= 110 else None for day in range(DAYS)]
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), measured))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(1, 1)] * 80))
    AggregationService(engine, fixed_clock()).calculate_period_aggregations("daily", FIRST, TODAY)
    with served_pages(database) as pages:
        assert pages.document("/")["trust"]["coverage_percent"] == 16.7, "10 of 60 days"


def test_a_database_shows_history_forecast_steps_neighbours_and_the_samples_behind_a_point(
    pages: Pages, engine: Engine
) -> None:
    found = pages.document(f"/database?server=1&name=orders&window={TODAY - timedelta(days=3)}")

    assert [one["size_mb"] for one in found["sizes"]] == GROWING[-90:]
    assert found["labels"] == {"team": "payments"}
    assert found["runway"]["limit_mb"] == GROWING[-1] + 500
    with engine.connect() as connection:
        issued = connection.execute(text("SELECT * FROM capacity_runway WHERE name = 'orders' AND server_id = 1")).one()
    assert found["runway"]["full_middle"] == str(issued.full_middle) > str(TODAY)
    ahead = [(one["lower_mb"], one["size_mb"], one["upper_mb"]) for one in found["runway"]["ahead"]]
    assert ahead[0] == (issued.lower_7_days_mb, issued.forecast_7_days_mb, issued.upper_7_days_mb)
    assert len(ahead) == 4
    assert values_of(found["steps"], "note") == ["imported <b>history</b>"]
    assert values_of(found["neighbours"], "database") == ["still", HOSTILE]
    assert found["behind"]["samples"] == [
        {
            "day": str(TODAY - timedelta(days=3)),
            "size_mb": GROWING[-4],
            "written_on": str(datetime.now(tz=UTC).date()),
            "is_corrected": False,
        }
    ]
    html = pages.ask("/database?server=1&name=orders").text
    assert html.count("<circle") == 90
    assert "imported &lt;b&gt;history" in html
    assert 'class="forecast"' in html


def test_a_day_that_was_not_measured_is_a_gap_and_named_behind_its_window(pages: Pages) -> None:
    missing = FIRST + timedelta(days=60)

    found = pages.document(f"/database?server=2&name=crm&period=monthly&window={missing}")
    daily = pages.document("/server?server=2")

    assert str(missing) in found["behind"]["missing_days"]
    assert next(one for one in daily["sizes"] if one["window_start"] == str(missing))["size_mb"] is None
    assert pages.ask("/server?server=2").text.count('<polyline class="mean"') == 2


def test_a_server_lists_its_databases_volumes_and_attempts_and_a_volume_what_it_binds(pages: Pages) -> None:
    server = pages.document("/server?server=1&order=name")
    volume = pages.document("/volume?server=1&name=/data")

    assert values_of(server["databases"], "database") == [HOSTILE, "orders", "still"]
    assert server["volumes"][0]["used_mb"] == 20_000 + 50 * (DAYS - 1)
    assert pages.document("/server?server=2")["attempts"][0]["failure"] == "unreachable"
    assert volume["sizes"][-1]["size_mb"] == 20_000 + 50 * (DAYS - 1)
    assert volume["runway"]["subject"] == "volume"


def test_groups_add_up_to_the_fleet_and_lead_to_their_members(pages: Pages) -> None:
    groups = pages.document("/groups?by=team")
    servers = pages.document("/servers?period=monthly")

    fleet = sum(one["size_mb"] for one in servers["servers"] if one["server"] != "server-3")
    assert sum(values_of(groups["groups"], "size_mb")) == fleet
    archive = pages.document("/group?by=team&name=archive")
    assert values_of(archive["members"], "database") == ["still"]
    nobody = pages.document("/group?by=team")
    assert values_of(nobody["members"], "database") == ["crm"]
    assert values_of(groups["groups"], "name") == ["payments", None, "archive"], "the largest first"
    by_name = pages.document("/groups?by=team&order=name")
    assert values_of(by_name["groups"], "name") == ["archive", "payments", None]
    by_growth = values_of(pages.document("/groups?by=team&order=growth")["groups"], "change_mb")
    assert by_growth == sorted(by_growth, reverse=True)
    assert values_of(pages.document("/groups?by=team&order=fills")["groups"], "name")[0] == "payments"
    assert (
        'aria-sort="descending"><a href="/groups?by=team&amp;order=growth">'
        in pages.ask("/groups?by=team&order=growth").text
    )
    assert pages.document("/groups?by=team&window=2025-05-01")["window_start"] == "2025-05-01"


def test_lists_are_sorted_filtered_and_paged(pages: Pages, engine: Engine) -> None:
    by_name = pages.document("/databases?order=name&period=daily")
    payments = pages.document("/databases?label=team%3Dpayments&order=size")
    without = pages.document("/databases?label=team%3D")

    assert values_of(by_name["databases"], "database") == [HOSTILE, "orders", "still"]
    assert values_of(payments["databases"], "database") == ["orders", HOSTILE]
    assert without["databases"] == [], "crm was not measured today"
    with engine.begin() as connection:
        connection.execute(text(MANY), {"today": TODAY})
    first, second = (pages.document(f"/databases?page={page}") for page in (1, 2))
    assert (len(first["databases"]), first["has_more"]) == (50, True)
    assert (len(second["databases"]), second["has_more"]) == (13, False)
    assert not {*values_of(first["databases"], "database")} & {*values_of(second["databases"], "database")}


def test_databases_of_an_engine_are_those_of_its_servers_and_those_of_none_are_found_too(
    pages: Pages, engine: Engine
) -> None:
    with engine.begin() as connection:
        # As in a legacy registry.
        connection.execute(text("ALTER TABLE instances ALTER db_type DROP NOT NULL"))
        connection.execute(text("UPDATE instances SET db_type = NULL WHERE id = 2"))

    listed = {
        name: values_of(pages.document(f"/databases?engine={name}&order=name&period=monthly")["databases"], "database")
        for name in ("postgresql", "unknown", "mysql")
    }

    assert listed == {"postgresql": [HOSTILE, "orders", "still"], "unknown": ["crm"], "mysql": []}


MANY = """
INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, avg_size_mb,
                                        max_size_mb, min_size_mb, data_count)
SELECT 1, 'many' || n, 'daily', CAST(:today AS date), CAST(:today AS date), 1, 1, 1, 1 FROM generate_series(1, 60) AS n
"""


def test_a_bill_is_shown_by_group_and_month(pages: Pages) -> None:
    bill = pages.document("/bill?by=team")

    assert (bill["month"], bill["currency"], bill["issue"]) == ("2025-06-01", "EUR", 1)
    assert sum(round(float(one["amount"]) * 100) for one in bill["groups"]) == round(float(bill["amount"]) * 100)
    assert "There is no bill of" in pages.ask("/bill?month=2024-01-01").text


def test_a_search_finds_parts_of_names_beginnings_first(pages: Pages) -> None:
    assert [(one["kind"], one["name"]) for one in pages.document("/search?q=ORD")["found"]][:2] == [
        ("database", "orders"),
        ("database", "orders"),
    ]
    assert [one["name"] for one in pages.document("/search?q=script%20server-1")["found"]] == [HOSTILE]
    assert {one["kind"] for one in pages.document("/search?q=server-2")["found"]} == {"server", "database"}
    assert ("group", "payments", "team") in [
        (one["kind"], one["name"], one["server"]) for one in pages.document("/search?q=paym")["found"]
    ]
    assert pages.document("/search?q=data")["found"][-1]["kind"] == "volume"
    assert pages.document("/search?q=nothing-like-it")["found"] == []


def test_names_are_text_wherever_they_stand(pages: Pages) -> None:
    for address in (*ADDRESSES, "/search?q=%3Cscript%3Ealert"):
        assert "<script>alert" not in pages.ask(address).text, address


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


def test_an_empty_database_says_how_to_begin(empty_pages: Pages) -> None:
    for path in ("/", "/servers", "/databases", "/groups"):
        assert "capacity collect" in empty_pages.ask(path).text, path
    assert "capacity limits set" in empty_pages.ask("/filling").text
    assert "capacity prices set" in empty_pages.ask("/bill").text
    assert empty_pages.ask("/search").status == 200


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


def test_names_that_begin_like_a_formula_are_text_in_every_csv(pages: Pages, engine: Engine) -> None:
    with engine.begin() as connection:
        for number, name in enumerate(("=1+HYPERLINK(1)", "+1+cmd", "-2+3", "@SUM(A1)")):
            values = {"today": TODAY, "name": name, "size": 10**6 + number}
            connection.execute(
                text(
                    MANY.replace("'many' || n", ":name")
                    .replace(", 1, 1, 1, 1 ", ", :size, 1, 1, 1 ")
                    .replace("series(1, 60)", "series(1, 1)")
                ),
                values,
            )

    found = list(csv.DictReader(io.StringIO(pages.ask("/databases?order=size&format=csv").text)))

    assert [row["database"][:2] for row in found[:4]] == ["'@", "'-", "'+", "'="]
    changes = [row["change_mb"] for row in csv.DictReader(io.StringIO(pages.ask("/?format=csv").text))]
    assert not any(change.startswith("'") for change in changes), "numbers are numbers"


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
        addresses = [f"/group?by=team&name=payments&window={number}" for number in range(30)]
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


def test_a_group_fills_with_the_volume_that_binds_its_databases(pages: Pages, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE capacity_runways SET binds = 'volume', middle_day = NULL WHERE name = 'still'"))
        values = {"day": TODAY + timedelta(days=5)}
        connection.execute(text("UPDATE capacity_runways SET middle_day = :day WHERE subject = 'volume'"), values)

    first = {group["name"]: group["fills_first"] for group in pages.document("/groups?by=team")["groups"]}
    archive = pages.document("/group?by=team&name=archive")

    assert first["archive"] == {"server": "server-1", "name": "/data", "day": str(TODAY + timedelta(days=5))}
    assert [one["name"] for one in archive["fills_first"]] == ["/data"]
    assert first[None] is None


def test_a_bill_says_that_labels_were_declared_since(pages: Pages, engine: Engine) -> None:
    assert not pages.document("/bill?by=team")["is_outdated"]
    declare_labels(engine, [Label("server-1", "orders", "team", "search", date(2025, 6, 1))], TODAY)

    assert pages.document("/bill?by=team&month=2025-06")["is_outdated"]
    assert "capacity bill --month 2025-06" in pages.ask("/bill?by=engine").text


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
