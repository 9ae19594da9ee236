"""What the pages say of forecasts that are missing, or older than what was declared."""

from __future__ import annotations

import csv
import io
import re
import time
from datetime import date, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.units import human_day
from capacity_assets.forecast.decisions import Decision, DecisionSubject, decide, withdraw
from capacity_assets.forecast.issuing import issue_runways, update_forecasts
from capacity_assets.forecast.limits import Limit, SizeStep, declare_limits, declare_steps
from capacity_assets.forecast.results import standing_for_themselves
from capacity_assets.forecast.runway import compute_runways
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.ownership.prices import Price, declare_prices
from capacity_assets.web.reader import FORECASTS_SECONDS
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import Pages, served_pages
from tests.pages_fleet import filled
from tests.runways import FIRST, GROWING, add_ceiling, add_volume


def fill_one_disk(engine: Engine) -> None:
    """orders and still on the only disk of server-1, which its growth fills in 31 days; no other limit is known."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * 200))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size + 500, 2) for size in GROWING]))
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 50_000, 310 + 10 * ago)
    for name in ("orders", "still"):
        add_ceiling(engine, name, ["/data"])
    declare_labels(engine, [Label("server-1", None, "team", "payments")], TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", FIRST, TODAY)
    issue_runways(engine, TODAY, TODAY)


def text_of(html: str) -> str:
    """The text of a page on one line, without its elements."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


PREPARED = {"pages": filled, "filled_pages": filled, "one_disk": fill_one_disk}


@pytest.fixture
def one_disk(engine: Engine) -> None:
    """One disk that limits two databases; copied."""


@pytest.fixture
def filled_pages(engine: Engine) -> None:
    """What every page shows; copied."""


def test_a_decision_is_on_pages_within_seconds_although_no_forecast_changes(pages: Pages, engine: Engine) -> None:
    def marked() -> list[bool]:
        return [one["decision"] is not None for one in pages.document("/filling")["runways"] if one["name"] == "orders"]

    before = marked()
    decide(engine, [Decision("server-1", "orders", None, "acknowledged", date(2030, 1, 1), "known")])
    until = time.monotonic() + 7
    while (after := marked()) == before and time.monotonic() < until:
        time.sleep(0.5)

    assert (before, after) == ([False], [True])


def test_decisions_are_listed_by_their_end_with_who_why_and_whether_they_hold(pages: Pages, engine: Engine) -> None:
    until = TODAY + timedelta(days=10)
    ticket = "https://tickets.example/capacity/4711"
    decide(engine, [Decision("server-1", None, "/data", "planned", until, "new <disk>", ticket, 65_536)], by="ann")
    decide(engine, [Decision("server-1", "orders", None, "acknowledged", until, "purge")], by="bob")
    withdraw(engine, DecisionSubject("server-1", "orders", None), by="eve")

    every = pages.document("/decisions?state=all")["decisions"]
    of_server = pages.document("/decisions?server=1")
    html = pages.ask("/decisions?server=1").text
    [row] = csv.DictReader(io.StringIO(pages.ask("/decisions?server=1&format=csv").text.removeprefix("\ufeff")))

    shown = [(one["name"], one["state"], one["declared_by"], one["closed_by"]) for one in every]
    assert shown == [
        ("/data", "in force", "ann", None),
        ("crm", "in force", None, None),
        ("orders", "closed", "bob", "eve"),
    ]
    assert [one["name"] for one in pages.document("/decisions")["decisions"]] == ["/data", "crm"]
    assert (of_server["server"], [one["name"] for one in of_server["decisions"]]) == ("server-1", ["/data"])
    assert f'<a href="{ticket}" rel="noreferrer">4711</a>' in html
    assert "new &lt;disk&gt;" in html
    assert (row["subject"], row["added_mb"], row["until"]) == ("volume", "65536", str(until))
    for address in ("/", "/filling", "/group?by=team&name=payments"):
        assert 'href="/decisions"' in pages.ask(address).text, address
    for address in ("/server?server=1", "/database?server=1&name=orders", "/volume?server=1&name=%2Fdata"):
        page = pages.ask(address).text
        assert 'href="/decisions?server=1&amp;state=all"' in page, address
        assert f"<title>{human_day(until)}: disk /data on server-1: Planned for {human_day(until)}" in page, address
    assert pages.ask("/decisions?server=9").status == 404
    assert "state must be one of open, all" in pages.ask("/decisions?state=closed").text


def test_a_chart_marks_bills_and_the_fill_date_of_the_disk_that_fills_first(pages: Pages) -> None:
    amount = pages.document("/bill?month=2025-06")["amount"]

    for address in ("/", "/group?by=engine&name=postgresql"):
        assert f"bill of June 2025: {Decimal(amount):,.2f} EUR</title>" in pages.ask(address).text, address
    assert pages.document("/")["bills"] == {"2025-06-01": amount}
    server = pages.document("/server?server=1")
    assert server["binding"]["subject"] == "volume"
    day = date.fromisoformat(server["binding"]["full_middle"])
    assert f"<title>{human_day(day)}: disk /data full</title>" in pages.ask("/server?server=1").text


def test_a_chart_says_why_the_range_of_a_forecast_narrows_and_why_it_is_level(pages: Pages, engine: Engine) -> None:
    said = "The range can narrow when regular purges are followed by regrowth"
    even = pages.ask("/database?server=1&name=orders").text
    purged = (
        "UPDATE capacity_runways SET lower_7_mb = size_mb / 2, change_mb_per_day = 0 "
        "WHERE name = 'orders' AND subject = 'database'"
    )
    with engine.begin() as connection:
        connection.execute(text(purged))

    with served_pages(engine.url) as after:
        narrowing = after.ask("/database?server=1&name=orders").text

    assert (said in even, said in narrowing) == (False, True)
    level = "The forecast is level because in the past the last size was closer than a trend"
    assert (level in even, level in narrowing) == (False, True)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("lower_365_mb = forecast_365_mb - 1, upper_365_mb = forecast_365_mb + 999", "lower end of its range"),
        ("upper_365_mb = forecast_365_mb, lower_365_mb = forecast_365_mb - 999", "upper end of its range"),
        ("upper_365_mb = forecast_365_mb + 1, lower_365_mb = forecast_365_mb", None),
        ("upper_365_mb = forecast_365_mb + 999, lower_365_mb = forecast_365_mb - 999", None),
    ],
)
@pytest.mark.usefixtures("filled_pages")
def test_a_chart_says_why_a_forecast_is_at_an_end_of_its_range(engine: Engine, ends: str, said: str | None) -> None:
    execute(engine, f"UPDATE capacity_runways SET {ends} WHERE name = 'orders' OR subject = 'group'")

    with served_pages(engine.url) as pages:
        html = pages.ask("/database?server=1&name=orders").text
        budget = [note for note in pages.document("/budget")["notes"] if "end of the range, because" in note]

    assert ("end of its range, because sizes" in html) == (said is not None)
    assert (said or "") in html
    start = "At the {} end of the range, because sizes were nearly always {} than past forecasts: "
    at_end = {"lower end of its range": ("lower", "larger"), "upper end of its range": ("upper", "smaller")}
    assert [note.partition(": ")[0] + ": " for note in budget] == ([start.format(*at_end[said])] if said else [])
    assert all("payments" in note for note in budget)


def test_forecasts_say_that_limits_or_steps_of_their_servers_were_declared_since(pages: Pages, engine: Engine) -> None:
    addresses = (
        "/filling",
        "/server?server=1",
        "/database?server=1&name=orders",
        "/group?by=server&name=server-2",
        "/",
    )
    said = "Limits, steps or plans of server-1 changed after the forecast shown here"
    with served_pages(engine.url) as before:
        assert not [address for address in addresses if said in before.ask(address).text]

    declare_steps(engine, [SizeStep("server-1", "orders", TODAY, "purged")])

    assert [address for address in addresses if said in pages.ask(address).text] == list(addresses)
    outdated = {row["server"]: row["is_outdated"] for row in pages.document("/filling")["runways"]}
    assert outdated.pop("server-1")
    assert not any(outdated.values())


def test_a_page_that_is_cached_shows_an_updated_forecast_and_a_price_within_seconds(
    pages: Pages, engine: Engine
) -> None:
    limit_mb = 20_000

    def shown() -> tuple[object, ...]:
        fleet, database = pages.document("/"), pages.document("/database?server=1&name=orders")
        listed = [one["limit_mb"] for one in fleet["fills_first"] if one["name"] == "orders"]
        return (*listed, database["runway"]["limit_mb"], pages.document("/bill?month=2025-06")["is_outdated"])

    before = shown()
    declare_limits(engine, [Limit("server-1", "orders", limit_mb)])
    update_forecasts(engine, {"server-1"}, fixed_clock())
    declare_prices(engine, [Price(Decimal(2), "EUR", valid_from=date(2025, 6, 1))], TODAY, restate=True)
    until = time.monotonic() + 7
    while (after := shown()) == before and time.monotonic() < until:
        time.sleep(0.5)
    time.sleep(FORECASTS_SECONDS)

    assert limit_mb not in before
    assert not before[-1]
    assert shown() == (limit_mb, limit_mb, True), after


def test_without_any_forecast_what_fills_is_unknown_and_not_nothing(engine: Engine) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, str(TODAY - timedelta(days=1)), [(100, 1), (110, 1)]))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", TODAY - timedelta(days=1), TODAY)

    with served_pages(engine.url) as pages:
        text = pages.ask("/").text

    assert "No forecast yet, so no fill date is known." in text
    assert text.count("no forecast yet") == 2
    assert "all limits known" not in text
    assert "Nothing with a known limit fills" not in text


def test_the_page_of_a_database_has_the_date_and_the_link_of_what_fills_first(engine: Engine) -> None:
    """Orders alone would fill its volume in 150 days; with the growth of the others, the volume is full in 15."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(2 * size, 2) for size in GROWING]))
    for ago in range(200):
        day = TODAY - timedelta(days=ago)
        add_volume(engine, 1, "/data", day, 50_000, 1_500 + 100 * ago)
        add_volume(engine, 1, "/log", day, 50_000, 100 + 100 * ago)
    add_ceiling(engine, "orders", ["/data"])

    def bound_by() -> tuple[str, str, str]:
        issue_runways(engine, TODAY, TODAY)
        with served_pages(engine.url) as pages:
            address = "/database?server=1&name=orders"
            binding, page = pages.document(address)["binding"], pages.ask(address).text
        assert page.split("Full by (50 %)</dt><dd>")[1].startswith(f'<time datetime="{binding["full_middle"]}">')
        links = page.split('<dl class="figures">')[1].split("</dl>")[0]
        return binding["subject"], binding["full_middle"], links

    subject, middle, links = bound_by()
    assert (subject, middle) == ("volume", str(TODAY + timedelta(days=15))), "not /log, on which it does not lie"
    assert 'href="/volume?server=1&amp;name=%2Fdata"' in links
    assert str(TODAY + timedelta(days=150)) in links, "its own date stands beside it"
    with served_pages(engine.url) as pages:
        bound = {name: pages.document(f"/volume?server=1&name={name}")["databases"] for name in ("/data", "/log")}
    assert {name: [one["name"] for one in rows] for name, rows in bound.items()} == {"/data": ["orders"], "/log": []}

    declare_limits(engine, [Limit("server-1", None, 2 * GROWING[-1] + 80)])
    subject, middle, links = bound_by()
    assert (subject, middle) == ("server", str(TODAY + timedelta(days=4)))
    assert 'href="/server?server=1"' in links

    declare_limits(engine, [Limit("server-1", "orders", GROWING[-1] + 20)])
    subject, middle, links = bound_by()
    assert (subject, middle) == ("database", str(TODAY + timedelta(days=2)))
    assert "href" not in links


@pytest.mark.usefixtures("one_disk")
def test_pages_begin_with_the_day_on_which_the_shared_disk_is_full(engine: Engine) -> None:
    said = "full by 20 Aug 2025 (2 Aug to 18 Oct 2025)."

    with served_pages(engine.url) as pages:
        text = {
            address: pages.document(address)["headline"]["text"]
            for address in (
                "/database?server=1&name=still",
                "/server?server=1",
                "/volume?server=1&name=/data",
                "/group?by=team&name=payments",
                "/",
                "/filling",
            )
        }
        html = pages.ask("/database?server=1&name=still").text
        listed = pages.ask("/filling").text

    assert '28 % <span class="chip watch">Watch</span></td>' in listed
    assert text == {
        "/database?server=1&name=still": f"Disk /data {said} On its own it would not fill within a year.",
        "/server?server=1": f"Disk /data {said}",
        "/volume?server=1&name=/data": f"F{said[1:]}",
        "/group?by=team&name=payments": f"Next to fill: disk /data on server-1, {said}",
        "/": f"Next to fill: disk /data on server-1, {said}",
        "/filling": f"Next to fill: disk /data on server-1, {said}",
    }
    assert "full by" not in html.partition("<svg")[2].partition("</svg>")[0], "its own date is not the one that binds"
    assert "<dt>Limit</dt>" not in html, "what the others leave is no limit of its own"
    assert '<dt>Free</dt><dd><data value="310"' in html
    assert '<p class="headline"><span class="chip watch">' in html
    assert '<a href="/volume?server=1&amp;name=%2Fdata">Disk /data</a> full by' in html


@pytest.mark.usefixtures("one_disk")
def test_a_disk_that_does_not_fill_has_no_range_of_days(engine: Engine) -> None:
    execute(engine, "UPDATE capacity_runways SET early_day = NULL, middle_day = NULL, late_day = NULL")

    with served_pages(engine.url) as pages:
        shown = text_of(pages.ask("/volume?server=1&name=/data").text)

    assert "Full by (50 %) not within a year Full within 30 days" in shown


@pytest.mark.usefixtures("one_disk")
def test_a_young_database_on_a_disk_has_too_little_history_and_not_no_date(engine: Engine) -> None:
    add_database_sizes(engine, sizes(1, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    add_ceiling(engine, "young", ["/data"])
    issue_runways(engine, TODAY, TODAY)

    with served_pages(engine.url) as pages:
        shown = text_of(pages.ask("/volume?server=1&name=/data").text).partition("Databases on this disk")[2]

    assert "young 100 MiB too little history" in shown


@pytest.mark.usefixtures("one_disk")
def test_lists_have_sizes_of_late_and_the_limit_that_each_row_meets_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_instances(engine, [2])
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(70, 0)] * 195 + [None] + [(70, 0)] * 4))
    declare_limits(engine, [Limit("server-1", "orders", GROWING[-1] + 20), Limit("server-2", None, 140)])
    issue_runways(engine, TODAY, TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    names = ("limit_mb", "limit_used_mb", "limit_subject", "limit_name", "full_by", "full_subject", "severity")

    with served_pages(engine.url) as pages:
        lists = [pages.document("/databases")["databases"], pages.document("/servers")["servers"]]
        beside = [tuple(one[name] for name in names) for rows in lists for one in rows]
        recent = [one["recent"] for rows in lists for one in rows]
        html, of_servers = (pages.ask(address).text for address in ("/databases", "/servers"))
        on_server = pages.document("/server?server=1")["databases"]
        cards = pages.ask("/server?server=1").text.split('<dl class="figures">')[1].split("</dl>")[0]

    full, sooner = (str(TODAY + timedelta(days=days)) for days in (31, 2))
    assert beside == [
        (GROWING[-1] + 20, GROWING[-1], "database", "orders", sooner, "database", "act"),
        (50_000, 49_690, "volume", "/data", full, "volume", "watch"),
        (50_000, 49_690, "volume", "/data", sooner, "database", "act"),
        (140, 70, "server", "", None, None, None),
    ]
    whole = [size + 500 for size in GROWING[-12:]]
    assert recent == [GROWING[-12:], [500] * 12, whole, [70] * 7 + [None] + [70] * 4]
    assert [one["full_by"] for one in on_server] == [beside[0][4], full]
    earlier = f'Earlier: <a href="/database?server=1&amp;name=orders">orders</a>, <time datetime="{sooner}">'
    assert earlier in cards, "the card of the server is about the disk"
    volume = '<td class="wide whole"><a href="/volume?server=1&amp;name=%2Fdata">disk /data</a></td>'
    assert f'{volume}\n<td class="wide limit">' in html, "whose limit it is has a column, and the share of it another"
    # Phones do not have the column of the share, so the chip is beside the date there.
    assert '</time> <span class="chip act narrow">Act</span></td>' in html
    assert re.search(r'<svg class="bar act" .*?</svg> \d+ % <span class="chip act">Act</span></td>', html)
    assert re.search(r'<svg class="bar watch" .*?</svg> 99 % <span class="chip watch">Watch</span></td>', of_servers)
    database = '<a href="/database?server=1&amp;name=orders">orders</a>'
    assert f'</time> <span class="chip act">Act</span> <span class="under">{database}</span></td>' in of_servers
    assert (
        '</time> <span class="chip watch narrow">Watch</span> <span class="under narrow">disk /data</span></td>' in html
    )
    for module in ("lists", "forecasts"):
        monkeypatch.setattr(f"capacity_assets.reading.{module}.tables_are_distributed", lambda _connection: True)
    with served_pages(engine.url) as on_nodes:
        assert [on_nodes.document("/databases")["databases"], on_nodes.document("/servers")["servers"]] == lists


@pytest.mark.usefixtures("one_disk")
def test_a_disk_is_listed_once_and_not_again_as_its_whole_server(engine: Engine) -> None:
    addresses = ("/", "/filling", "/group?by=team&name=payments", "/group?by=server&name=server-1")

    with served_pages(engine.url) as pages:
        listed = {
            address: [(one["subject"], one["name"]) for one in found.get("fills_first") or found["runways"]]
            for address in addresses
            if (found := pages.document(address))
        }

    assert listed == {address: [("volume", "/data")] for address in addresses}
    assert [one.display_name for one in standing_for_themselves(compute_runways(engine, TODAY).rows)] == ["disk /data"]


def test_pages_without_a_date_say_why_and_what_to_do(engine: Engine) -> None:
    add_instances(engine, [1])
    add_instances(engine, [2], is_active=False)
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    declare_limits(engine, [Limit("server-1", "young", 1000)])

    def said(*addresses: str) -> list[str]:
        with served_pages(engine.url) as pages:
            return [pages.document(address)["headline"]["text"] for address in addresses]

    issuing = "`capacity runway --issue` issues one now; `capacity up` does it daily."
    orders, young = "/database?server=1&name=orders", "/database?server=1&name=young"
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    assert said(orders, "/server?server=2", "/") == [
        f"No forecast yet. {issuing}",
        "Out of service, so there is no forecast.",
        f"No forecast yet, so no fill date is known. {issuing}",
    ]

    add_database_sizes(engine, sizes(1, "dropped", FIRST.isoformat(), [5] * 150))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    issue_runways(engine, TODAY, TODAY)
    with served_pages(engine.url) as pages:
        html = pages.ask("/").text
    assert "too little history for 1 database" in html
    assert "Nothing with a known limit" not in html
    assert said("/database?server=1&name=dropped") == [
        "No longer on its server; last measured on 31 May 2025.",
    ]
    assert said(orders, young, "/filling") == [
        "No limit known, so no fill date. Declare one: `capacity limits set server-1 orders --gb GIB`.",
        "Too little history for a fill date: 10 of 57 days measured, 47 more needed.",
        "No fill date is known yet. 1 database has too little history: 10 of 57 days measured. "
        "1 database has no known limit.",
    ]


def test_the_card_with_a_probability_names_what_it_is_of(pages: Pages) -> None:
    shown = text_of(pages.ask("/server?server=1").text)

    assert re.search(r"Full within 30 days \S+ %? ?probability for disk /data", shown), shown
