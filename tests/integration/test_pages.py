"""The pages as readers and scripts meet them: the figures of the views, sorted, grouped, searched."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from datetime import date, timedelta
from html import unescape
from urllib.parse import urlencode

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.units import human_day
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.web.reader import FORECASTS_SECONDS
from capacity_assets.web.routes import PAGES
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import Pages, header, served_pages, values_of
from tests.pages_fleet import ADDRESSES, DAYS, FAILED, FIRST, GROWING, HOSTILE, filled

PREPARED = {"pages": filled}


def test_every_page_is_html_json_csv_and_excel(pages: Pages) -> None:
    for page, address in zip(PAGES, sorted(ADDRESSES, key=_place), strict=True):
        html = pages.ask(address)
        assert (html.status, header(html, "content-type")) == (200, "text/html; charset=utf-8"), address
        document = pages.document(address)
        page.form.validate_python(document)
        links = re.findall(r'format=(\w+)[^>]*title="[^"]+, up to 10,000 rows" download>([^<]+)</a>', html.text)
        assert links == [("csv", "Download CSV"), ("xlsx", "Excel")] * (1 + len(page.other_lists)), address
        rows = list(csv.DictReader(io.StringIO(pages.ask(f"{address}{_and(address)}format=csv").text)))
        assert len(rows) == len(document[page.table]) > 0 or page.path == "/changes", address
        headings, *cells = pages.workbook(address)
        assert len(cells) == len(rows) > 0, address
        assert headings == [name.removeprefix("\ufeff") for name in rows[0]], address


def test_a_file_of_an_empty_list_has_the_columns_of_the_list(pages: Pages) -> None:
    empty = {
        "/servers": "window=2015-06-10",
        "/databases": "window=2015-06-10",
        "/changes": "window=2015-06-10",
        "/decisions": "page=90",
        "/filling": "page=90",
        "/search": "q=nothing-has-this-name",
    }
    for path, query in empty.items():
        listed = pages.ask(f"{path}?format=csv&{query}").text
        [headings] = csv.reader(io.StringIO(listed.removeprefix("\ufeff")))
        # Which labels there are is known from the rows.
        columns = [name for name in pages.workbook(path)[0] if not str(name).startswith("labels_")]
        assert headings == columns, path


def test_titles_and_maps_escape_signs_that_turn_or_hide_text(
    engine: Engine, service: AggregationService, database: URL
) -> None:
    first = TODAY - timedelta(days=2)
    add_instances(engine, [1, 2], db_type="mysql")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET db_type = 'oracle' WHERE id = 2"))
    add_database_sizes(engine, sizes(2, "other", first.isoformat(), [900] * 3))
    add_database_sizes(engine, sizes(1, "fdp\u202etxt\x1b", first.isoformat(), [900] * 3))
    add_instance_sizes(engine, totals(1, first.isoformat(), [(900, 1)] * 3))
    add_instance_sizes(engine, totals(2, first.isoformat(), [(900, 1)] * 3))
    compute_windows(service, "daily", first, TODAY)

    with served_pages(database) as pages:
        for path in ("/groups?by=engine&period=daily", "/database?server=1&name=fdp%E2%80%AEtxt%1B"):
            html = pages.ask(path).text
            # A command and a form have the name itself.
            shown = re.sub(r"<code>.*?</code>| value=\".*?\"", "", html)
            assert not re.findall(".*[\u202e\x1b].*", shown), path
            assert "fdp\\u202etxt\\x1b" in shown, path


def test_a_workbook_has_numbers_days_and_amounts_as_such(pages: Pages) -> None:
    sizes_by_day = pages.workbook("/database?server=1&name=orders")
    of_servers, lines = pages.workbook("/servers"), pages.workbook("/budget")

    newest = dict(zip(sizes_by_day[0], sizes_by_day[-1], strict=True))
    assert (newest["window_start"], newest["size_mb"], newest["is_partial"]) == (TODAY, GROWING[-1], False)
    assert dict(zip(of_servers[0], of_servers[1], strict=True))["size_mb"] == "", "unknown is an empty cell"
    line = dict(zip(lines[0], lines[1], strict=True))
    assert line["currency"] == "EUR"
    months = [value for name, value in line.items() if name.startswith("monthly_amounts_")]
    assert (len(months), round(sum(months), 2)) == (12, line["amount"])


def test_each_row_of_a_list_in_a_file_names_its_window_and_no_column_is_only_a_heading(pages: Pages) -> None:
    for address in ("/servers?period=monthly", "/databases?period=monthly", "/groups", "/changes?period=monthly"):
        document = pages.document(address)
        rows = list(csv.DictReader(io.StringIO(pages.ask(f"{address}{_and(address)}format=csv").text[1:])))
        of_rows = {(row["period"], row["window_start"], row["window_end"]) for row in rows}
        assert of_rows == {tuple(document[name] for name in ("period", "window_start", "window_end"))}, address
        assert all(row.get("grouped_by", "team") == "team" for row in rows), address
    [columns, *_] = pages.workbook("/groups")
    assert "fills_first_day" in columns, "only some groups have one"
    assert "fills_first" not in columns
    of_subjects = {
        "/group?by=team&name=payments": {"period": "monthly", "grouped_by": "team", "name": "payments"},
        "/": {"period": "daily"},
        "/server?server=1": {"server_id": 1, "server": "server-1", "period": "daily"},
        "/database?server=1&name=orders": {"server_id": 1, "server": "server-1", "database": "orders"},
        "/volume?server=1&name=%2Fdata": {"server_id": 1, "server": "server-1", "volume": "/data"},
        "/table?server=1&database=orders&schema=public&name=audit": {
            **{"server_id": 1, "server": "server-1", "database": "orders", "schema": "public", "table": "audit"}
        },
    }
    for address, named in of_subjects.items():
        [columns, *cells] = pages.workbook(address)
        assert all(dict(zip(columns, cell, strict=True)).items() >= named.items() for cell in cells), address


def shown(day: date) -> str:
    """A day as pages write it."""
    return f'<time datetime="{day}">{day.day} {day:%b %Y}</time>'


def _place(address: str) -> int:
    return [page.path for page in PAGES].index(address.partition("?")[0])


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
    assert fleet["headroom"] == {
        "headroom_mb": 14_050,
        "unknown_limits": 4,
        "fills_soon": 1,
        "judged": 2,
        "too_little_history": 0,
        "history_days": None,
        "as_of": str(TODAY),
    }
    assert {(one["name"], one["size_mb"]) for one in fleet["groups"]} == {
        ("payments", fleet["groups"][0]["size_mb"]),
        ("archive", 500),
        (None, 2000),
    }
    html = pages.ask("/").text
    assert "no answer from 192.0.2.1:5432" in html
    assert "2 of 3" in html


def test_an_installation_whose_only_server_fails_says_since_when_and_why_on_every_list(
    database: URL, engine: Engine
) -> None:
    add_instances(engine, [1])
    with engine.begin() as connection:
        connection.execute(text(FAILED.replace("2,", "1,").replace(":5432'", ":5432.'")), {"today": TODAY})
    with served_pages(database) as never:
        for path in ("/", "/servers", "/databases"):
            html = never.ask(path).text
            assert "No server could be measured yet" in html, path
            assert '<a href="/server?server=1">server-1</a>: no answer from 192.0.2.1:5432.</p>' in html, path
            assert "<code>capacity instances test server-1</code>" in html, path
            assert "<td>never</td><td>no answer from 192.0.2.1:5432.</td>" in html, path
    last = TODAY - timedelta(days=5)
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(413, 1)] * (DAYS - 5)))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    with served_pages(database) as pages:
        trust = pages.document("/")["trust"]
        assert (trust["newest_day"], trust["measured_servers"], trust["failed_servers"]) == (str(TODAY), 0, 1)
        for path in ("/", "/servers", "/databases"):
            [one] = pages.document(path)["unmeasured"]
            assert (one["server"], one["last_day"], one["failure"]) == ("server-1", str(last), "unreachable"), path
            html = pages.ask(path).text
            assert f'Not measured on {shown(TODAY)}: <a href="#unmeasured">1 server</a>.' in html, path
            assert f"<td>{shown(last)}</td><td>no answer from 192.0.2.1:5432.</td>" in html, path


def test_a_server_that_was_lost_stands_on_the_first_page_of_each_list_of_the_newest_window(
    pages: Pages, database: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/servers", "/databases", "/servers?engine=postgresql", "/servers?period=monthly"):
        found = pages.document(path)
        assert values_of(found["unmeasured"], "server") == ["server-2"], path
        assert (found["newest_day"], found["unmeasured_servers"]) == (str(TODAY), 1)
    elsewhere = ("/servers?page=2", f"/databases?window={TODAY - timedelta(days=9)}")
    assert [pages.document(path)["unmeasured"] for path in elsewhere] == [[], []]
    on_a_server = pages.document("/servers")["unmeasured"]
    monkeypatch.setattr("capacity_assets.reading.coverage.tables_are_distributed", lambda _connection: True)
    with served_pages(database) as on_nodes:
        assert on_nodes.document("/servers")["unmeasured"] == on_a_server
    with engine.begin() as connection:
        before = {"yesterday": TODAY - timedelta(days=1)}
        connection.execute(text("DELETE FROM capacity_collection_attempts"))
        connection.execute(
            text(
                "INSERT INTO capacity_collection_attempts (collected_date, instance_id, status) "
                "VALUES (:yesterday, 2, 'collected')"
            ),
            before,
        )
    with served_pages(database) as later:
        assert f"<td>no attempt since {shown(before['yesterday'])}</td>" in later.ask("/databases").text
        assert f": no attempt since {shown(before['yesterday'])}</span>" in later.ask("/servers").text


def test_after_the_first_collection_pages_say_that_figures_are_being_computed(database: URL, engine: Engine) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, TODAY.isoformat(), [(413, 1)]))
    add_database_sizes(engine, sizes(1, "orders", TODAY.isoformat(), [413]))

    with served_pages(database) as pages:
        for path in ("/", "/servers", "/databases"):
            html = pages.ask(path).text
            assert "Measured, not computed yet" in html, path
            assert f"Servers were measured up to {shown(TODAY)}." in html, path
    for period in ("daily", "monthly"):
        compute_windows(AggregationService(engine, fixed_clock()), period, TODAY, TODAY)
    with served_pages(database) as pages:
        html = pages.ask("/").text
        assert html.count("Nothing to compare with yet") == 2
        assert "No change" not in html
        assert "This month so far</a>" in html
        assert "Last month" not in html
        assert "100.0 % of 1 day" in html
    issue_runways(engine, TODAY, TODAY)
    with served_pages(database) as pages:
        budget = pages.ask("/budget?by=engine").text
        assert '<span class="unknown">unknown</span> <span class="under">too little history</span>' in budget
        assert '<dd><span class="unknown">unknown</span></dd>' in budget, "the total, too"


@pytest.mark.single_server("sees a change that no run has gathered from the nodes")
def test_pages_say_which_samples_are_not_in_their_figures_yet(database: URL, engine: Engine) -> None:
    yesterday = TODAY - timedelta(days=1)
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, yesterday.isoformat(), [(413, 1)]))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", yesterday, yesterday)

    def notices() -> set[str]:
        with served_pages(database) as pages:
            texts = [pages.ask(path).text for path in ("/", "/servers", "/databases", "/server?server=1")]
            assert "Measured, not computed yet" not in pages.ask("/filling").text
        notice = '<p class="warning">Measured, not computed yet'
        return {"".join(text.partition(notice)[1:]).partition("</p>")[0] for text in texts}

    assert notices() == {""}
    execute(engine, "UPDATE instance_size_stats SET total_size_mb = 414")
    [changed] = notices()
    assert "1 window is out of date. The late data sensor recomputes it" in changed
    assert f"<code>capacity aggregate --period all --from {yesterday}</code>" in changed
    add_instance_sizes(engine, totals(1, TODAY.isoformat(), [(500, 1)]))
    assert notices() == {
        f'<p class="warning">Measured, not computed yet: {human_day(TODAY)}. The next daily run adds it '
        "to these figures; <code>capacity aggregate --period daily</code> adds it now."
    }
    compute_windows(AggregationService(engine, fixed_clock()), "daily", yesterday, TODAY)
    assert notices() == {""}
    execute(engine, "ALTER VIEW capacity_stale_windows RENAME TO away")
    assert notices() == {""}, "pages do without it where it cannot be read"


@pytest.mark.single_server("derives totals from samples of databases")
def test_the_size_of_the_fleet_is_the_last_known_one_of_every_server_whatever_period_is_shown(
    database: URL, engine: Engine
) -> None:
    """server-1 was measured today, server-2 a week ago, server-4 has no totals; a replica and a retired one are out."""
    add_instances(engine, [1, 2, 4, 5])
    add_instances(engine, [3], counted_by=1)
    add_instances(engine, [6], is_active=False)
    for number, kept in ((1, DAYS), (2, DAYS - 7), (3, DAYS), (6, DAYS)):
        add_instance_sizes(engine, totals(number, FIRST.isoformat(), [(1000 * number + day, 2) for day in range(kept)]))
    add_database_sizes(engine, sizes(4, "a", FIRST.isoformat(), [300] * (DAYS - 1)))
    add_database_sizes(engine, sizes(4, "b", (TODAY - timedelta(days=20)).isoformat(), [70] * 20))
    for period in ("daily", "weekly", "monthly"):
        compute_windows(AggregationService(engine, fixed_clock()), period, FIRST, TODAY)

    with served_pages(database) as pages:
        found = [pages.document(f"/?period={name}")["now"] for name in ("daily", "weekly", "monthly", "yearly")]
        html = pages.ask("/?period=monthly").text

    last = {1: 1000 + DAYS - 1, 2: 2000 + DAYS - 8, 4: 370}
    assert found == [found[0]] * 4
    assert found[0] == {
        "size_mb": sum(last.values()),
        "databases": 2 + 2 + 2,
        "servers": 4,
        "never_measured": 1,
        "newest_day": str(TODAY),
        "oldest": {
            "server_id": 2,
            "server": "server-2",
            "day": str(TODAY - timedelta(days=7)),
            "size_mb": last[2],
            "databases": 2,
        },
        "older_sizes": 2,
        "growth_days": 90,
        "growth_mb": 90 + 83 + 70,
        "growth_servers": 3,
        "growth_before_mb": sum(last.values()) - 90 - 83 - 70,
    }
    under = html.partition("<dt>Size</dt>")[2].partition("</div>")[0]
    assert f"2 of 5 servers measured on {shown(TODAY)}; oldest size: <a href" in under
    assert f"server-2</a> of {shown(TODAY - timedelta(days=7))}; size unknown for 1 server" in under


def test_servers_that_were_not_measured_stand_first_with_since_when_and_why(database: URL, engine: Engine) -> None:
    """server-1 and -4 were measured today, server-2 a week ago, server-3 never; server-5 has no totals."""
    filled(engine)
    add_instances(engine, [4, 5, 6])
    yesterday = TODAY - timedelta(days=1)
    add_instance_sizes(engine, totals(4, TODAY.isoformat(), [(40, 1)]))
    add_database_sizes(engine, sizes(5, "old", (TODAY - timedelta(days=9)).isoformat(), [50] * 3))
    declare_labels(engine, [Label("server-5", None, "team", "payments")], TODAY)
    for period in ("daily", "monthly"):
        compute_windows(AggregationService(engine, fixed_clock()), period, FIRST, TODAY)

    with served_pages(database) as pages:
        newest = pages.document("/servers")
        monthly = pages.document("/servers?period=monthly&window=2025-06-01")
        by_name = values_of(pages.document("/servers?order=name")["servers"], "server")
        html = pages.ask("/servers").text
        of_file = list(csv.DictReader(io.StringIO(pages.ask("/servers?format=csv").text)))

    found = [(one["server"], one["size_mb"], one["last_day"], one["reason"]) for one in newest["servers"]]
    assert found == [
        ("server-6", None, None, None),
        ("server-5", None, str(TODAY - timedelta(days=7)), None),
        ("server-2", None, str(yesterday), "no answer from 192.0.2.1:5432"),
        ("server-1", GROWING[-1] + 600, None, None),
        ("server-3", GROWING[-1], None, None),
        ("server-4", 40, None, None),
    ]
    assert [one["labels"].get("team") for one in newest["servers"][:3]] == [None, "payments", None]
    assert f"never measured: no sample arrived for {shown(TODAY)}<" in html, "no address of it is registered"
    assert by_name == ["server-6", "server-5", "server-2", "server-1", "server-3", "server-4"]
    assert [row["server"] for row in of_file] == values_of(newest["servers"], "server")
    assert [one["server"] for one in monthly["servers"]] == ["server-1", "server-3", "server-2"], "others came later"
    assert f"not measured since {shown(yesterday)}: no answer from 192.0.2.1:5432" in html
    assert "never measured" in html
    assert html.count('id="unmeasured"') == 1


def test_lists_say_that_a_page_is_beyond_the_end_or_a_filter_is_unknown(pages: Pages) -> None:
    for path in ("/servers", "/databases", "/filling"):
        html = pages.ask(f"{path}?page=9").text
        assert f'There is no page 9. <a href="{path}">First page</a>' in html, path
    assert 'There is no page 9. <a href="/server?server=1">' in pages.ask("/server?server=1&page=9").text
    for path, refusal in (
        ("/servers?engine=mysql", "No server has the engine 'mysql'. There are postgresql."),
        ("/tables?engine=postgres", "No server has the engine 'postgres'. Did you mean 'postgresql'?"),
        ("/databases?label=team%3Dnobody", "Nothing has the label team=nobody."),
    ):
        refused = pages.ask(path)
        assert refused.status == 404, path
        assert refusal in unescape(refused.text), path


def test_coverage_counts_servers_that_are_silent_for_longer_than_it_looks_back(database: URL, engine: Engine) -> None:
    add_instances(engine, [1, 2])
    measured = [(1, 1) if day < 60 or day >= 110 else None for day in range(DAYS)]
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), measured))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(1, 1)] * 80))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    with served_pages(database) as pages:
        assert pages.document("/")["trust"]["coverage_percent"] == 16.7, "10 of 60 days"


def test_a_database_shows_history_forecast_steps_neighbours_and_the_samples_behind_a_point(
    pages: Pages, engine: Engine
) -> None:
    evening = f"{TODAY - timedelta(days=1)} 20:00+00"
    execute(engine, f"UPDATE database_size_stats SET created_at = '{evening}', updated_at = '{evening}'")
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
            "written_on": found["behind"]["samples"][0]["written_on"],
            "is_corrected": False,
        }
    ]
    assert found["behind"]["samples"][0]["written_on"] == str(TODAY), "in the time zone of the database"
    html = pages.ask("/database?server=1&name=orders").text
    readings = json.loads(unescape(html.partition('data-readings="')[2].partition('"')[0]))
    assert len([one for one in readings if "window=" in one[3]]) == 90
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
    unmeasured = pages.ask("/server?server=2").text
    assert f'<p class="warning">Not measured on {human_day(TODAY)}.</p>' in unmeasured
    assert "No database was measured on the last complete day." in unmeasured
    for address in ("/server?server=1", "/server?server=2&range=30d", "/server?server=2&period=monthly"):
        assert "Not measured on" not in pages.ask(address).text.split("<h2>")[0], address
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
    of_nobody = pages.ask("/group?by=team").text
    assert "<h1>No team</h1>" in of_nobody
    assert '<a href="/scenario?growth_factor=1.2&amp;growth_label=team%3D&amp;by=team">' in of_nobody
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
    link = "/group?by=team&amp;name=archive&amp;period=monthly&amp;window=2025-05-01"
    assert link in pages.ask("/groups?by=team&window=2025-05-01").text
    assert pages.document(link.replace("&amp;", "&"))["window_start"] == "2025-05-01"


def test_a_key_that_nothing_has_a_label_of_is_one_group_with_a_page(pages: Pages, engine: Engine) -> None:
    [group] = pages.document("/groups?by=environment")["groups"]
    page = pages.document("/group?by=environment")

    assert (group["name"], group["servers"], group["databases"]) == (None, 2, 4)
    assert (page["sizes"][-1]["size_mb"], page["sizes"][-1]["change_mb"]) == (group["size_mb"], group["change_mb"])
    assert sorted(values_of(page["members"], "database")) == sorted(["orders", "still", HOSTILE, "crm"])
    with served_pages(engine.url, label_keys=("cost_center",)) as of_key:
        shown = of_key.ask("/group?by=cost_center").text
    assert "<title>No cost center · capacity</title>" in shown
    assert "Size of no cost center" in shown
    assert pages.ask("/group?by=environment&name=nobody").status == 404


def test_a_group_without_a_complete_month_has_a_page_that_leads_to_its_days(pages: Pages, engine: Engine) -> None:
    declare_labels(engine, [Label("server-2", None, "team", "fresh", TODAY)], TODAY)

    group = pages.ask("/group?by=team&name=fresh")

    assert (group.status, pages.document("/group?by=team&name=fresh")["sizes"]) == (200, [])
    days = "/group?by=team&amp;name=fresh&amp;period=daily"
    assert f'A month is shown once it is complete. <a href="{days}">Sizes by day</a>' in group.text
    assert pages.ask(unescape(days)).status == 200
    assert ("group", "fresh") in [(one["kind"], one["name"]) for one in pages.document("/search?q=fresh")["found"]]


def test_pages_of_groups_say_that_labels_changed(pages: Pages, engine: Engine) -> None:
    before = pages.document("/groups?by=team")["notice"]
    execute(engine, "UPDATE capacity_labels SET value = 'search'")

    assert before is None
    assert pages.document("/groups?by=team&period=daily")["notice"].startswith("Labels or samples changed at ")
    assert "these groups do not include this yet" in pages.ask("/groups?by=engine&period=daily").text
    assert pages.document("/groups?by=server&period=daily")["notice"] is None


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
    # The order by name was read above, and is kept for some seconds.
    for order in ("size", "growth", "shrinkage", "percent"):
        address = f"/databases?period=daily&order={order}"
        on_pages = [row for page in (1, 2) for row in pages.document(f"{address}&page={page}")["databases"]]
        of_file = csv.DictReader(io.StringIO(pages.ask(f"{address}&format=csv").text))
        assert [row["database"] for row in of_file] == values_of(on_pages, "database"), order
    of_postgresql = pages.document("/databases?period=daily&order=size&engine=postgresql&page=2")
    assert values_of(of_postgresql["databases"], "database") == values_of(second["databases"], "database")


def test_databases_of_an_engine_are_those_of_its_servers_and_those_of_none_are_found_too(
    pages: Pages, engine: Engine
) -> None:
    with engine.begin() as connection:
        # As in a legacy registry.
        connection.execute(text("ALTER TABLE instances ALTER db_type DROP NOT NULL"))
        connection.execute(text("UPDATE instances SET db_type = NULL WHERE id = 2"))

    listed = {
        name: values_of(pages.document(f"/databases?engine={name}&order=name&period=monthly")["databases"], "database")
        for name in ("postgresql", "unknown")
    }

    assert listed == {"postgresql": [HOSTILE, "orders", "still"], "unknown": ["crm"]}


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
    [audit] = pages.document("/search?q=public.audit%20orders")["found"]
    assert (audit["kind"], audit["name"], audit["database"], audit["schema"]) == ("table", "audit", "orders", "public")
    place = "/table?server=1&amp;database=orders&amp;schema=public&amp;name=audit"
    assert f'<a href="{place}">audit</a>' in pages.ask("/search?q=audit").text


def test_a_file_of_a_search_has_the_names_beyond_the_page(pages: Pages, engine: Engine) -> None:
    for number in range(60):
        add_database_sizes(engine, sizes(1, f"many{number}", TODAY.isoformat(), [1]))

    shown = pages.document("/search?q=many")
    in_file = csv.DictReader(io.StringIO(pages.ask("/search?q=many&format=csv").text))

    assert (len(shown["found"]), shown["has_more"], len(list(in_file))) == (50, True, 60)


def test_a_declared_limit_is_shown_with_its_day_and_note_also_where_another_one_binds(
    pages: Pages, engine: Engine
) -> None:
    declare_limits(engine, [Limit("server-1", "still", 10**6, note="agreed <with> finance")])

    [limit] = pages.document("/database?server=1&name=still")["limits"]

    assert (limit["database"], limit["limit_mb"], limit["note"]) == ("still", 10**6, "agreed <with> finance")
    html = pages.ask("/database?server=1&name=still").text
    assert "Declared limit: " in html
    assert "agreed &lt;with&gt; finance" in html
    assert pages.document("/server?server=1")["limits"] == []


def test_the_map_of_the_fleet_lists_the_largest_databases_of_each_group_and_adds_up_to_it(pages: Pages) -> None:
    space = pages.document("/")["space"]

    assert {one["name"]: [row["database"] for row in one["databases"]] for one in space} == {
        "payments": ["orders", HOSTILE],
        None: ["crm"],
        "archive": ["still"],
    }
    for one in space:
        assert one["other_mb"] + sum(values_of(one["databases"], "size_mb")) == one["size_mb"]
        assert one["other_databases"] == 0
    assert 'class="treemap"' in pages.ask("/").text


def test_what_fills_first_is_found_first_and_shown_before_one_types(pages: Pages) -> None:
    urgent = pages.document("/search")["found"]
    assert urgent[0]["name"] == "orders"
    assert values_of(urgent, "full_by") == sorted(values_of(urgent, "full_by"))
    assert pages.document("/search?q=o")["found"][0] == urgent[0]


def test_a_chart_shows_the_days_or_the_range_that_the_address_names_by_a_period_that_fits(pages: Pages) -> None:
    shown = pages.document("/database?server=1&name=orders&first=2025-05-01&last=2025-05-10")
    assert (shown["shown"]["name"], len(shown["sizes"])) == ("custom", 10)
    assert (shown["sizes"][0]["window_start"], shown["sizes"][-1]["window_start"]) == ("2025-05-01", "2025-05-10")
    everything = pages.document("/database?server=1&name=orders&range=all")
    assert (everything["period"], everything["sizes"][0]["window_start"]) == ("daily", str(FIRST))
    decades = pages.document("/database?server=1&name=orders&first=2015-01-01")
    assert (decades["period"], decades["shown"]["is_longer_period"]) == ("monthly", True)
    month = pages.document("/?range=30d")
    assert (month["period"], len(month["sizes"])) == ("daily", 30)
    for wrong, why in (("range=ever", "range must be one of 30d, 90d, 1y, all."),):
        refused = pages.ask(f"/server?server=1&{wrong}&format=json")
        assert (refused.status, refused.json["error"]) == (400, why)


def test_sizes_of_a_year_before_are_shown_where_they_are_compared(pages: Pages, engine: Engine) -> None:
    assert pages.document("/database?server=1&name=orders")["earlier"] == []
    day = pages.document("/database?server=1&name=orders")["sizes"][-1]["window_start"]
    year_before = date.fromisoformat(day).replace(year=date.fromisoformat(day).year - 1)
    execute(
        engine,
        "INSERT INTO database_size_aggregations (period_type, period_start, period_end, instance_id, database_name, "
        "avg_size_mb, max_size_mb, min_size_mb, data_count) "
        f"VALUES ('daily', '{year_before}', '{year_before}', 1, 'orders', 77, 77, 77, 1)",
    )

    compared = pages.document("/database?server=1&name=orders&compare=year")

    assert [(one["window_start"], one["size_mb"]) for one in compared["earlier"] if one["size_mb"]] == [
        (str(year_before), 77)
    ]
    assert "previous year: 77 MiB" in pages.ask("/database?server=1&name=orders&compare=year").text


def test_a_search_for_a_kind_finds_only_its_names_and_without_words_all_of_them(pages: Pages) -> None:
    def found(kind: str, words: str = "") -> list[str]:
        answer = pages.document(f"/search?{urlencode({'kind': kind, 'q': words})}")["found"]
        assert {one["kind"] for one in answer} <= {kind}
        return values_of(answer, "name")

    assert (found("server"), found("server", "2"), found("volume")) == (
        ["server-1", "server-2", "server-3"],
        ["server-2"],
        ["/data"],
    )
    assert (found("group"), found("group", "team=p"), found("group", "server-1")) == (
        ["archive", "payments"],
        ["payments"],
        [],
    )
    assert found("database")[0] == "orders", "what fills first"
    assert sorted(found("database", "server-1")) == sorted([HOSTILE, "orders", "still"])
    assert found("table", "aud") == ["audit"]
    names = pages.document("/search?kind=database&shown=2")
    assert (len(names["found"]), names["has_more"]) == (2, True)
    assert "kind must be one of server, database, group, volume, table." in pages.ask("/search?kind=disk").text


def test_a_sample_of_a_day_that_lies_ahead_hides_no_name_from_a_search(pages: Pages, engine: Engine) -> None:
    add_database_sizes(engine, sizes(1, "new-today", TODAY.isoformat(), [5]))
    add_database_sizes(engine, sizes(1, "ahead", (TODAY + timedelta(days=1)).isoformat(), [5]))

    assert values_of(pages.document("/search?q=new-today")["found"], "name") == ["new-today"]


def test_names_are_text_wherever_they_stand(pages: Pages) -> None:
    for address in (*ADDRESSES, "/search?q=%3Cscript%3Ealert"):
        assert "<script>alert" not in pages.ask(address).text, address


def test_an_empty_database_says_how_to_begin(database: URL) -> None:
    with served_pages(database) as empty:
        for path in ("/", "/servers", "/databases"):
            assert "capacity collect" in empty.ask(path).text, path
        for path in ("/groups", "/changes"):
            assert 'The <a href="/">first page</a> says what was measured.' in empty.ask(path).text, path
        assert "capacity limits set" in empty.ask("/filling").text
        assert "capacity prices set" in empty.ask("/bill").text
        assert empty.ask("/search").status == 200
        assert "There are no figures of databases without the label team yet." in empty.ask("/group?by=team").text


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


def test_a_list_says_once_what_labels_its_rows_share_and_has_a_column_for_the_others(
    pages: Pages, engine: Engine
) -> None:
    labels = [Label(f"server-{number}", None, "environment", "production") for number in (1, 2)]
    declare_labels(engine, labels, TODAY)

    html = pages.ask("/databases").text

    assert re.search(r'All: \n?<a class="label" href="/group\?by=environment&amp;name=production">', html)
    assert '<th scope="col" class="roomy">Team</th></tr>' in html
    [still] = [one for one in html.split("<tr>") if ">still</a>" in one]
    assert '<td class="roomy whole"><a href="/group?by=team&amp;name=archive">archive</a></td></tr>' in still


def test_a_group_fills_with_the_volume_that_binds_its_databases(pages: Pages, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE capacity_runways SET binds = 'volume', middle_day = NULL WHERE name = 'still'"))
        values = {"day": TODAY + timedelta(days=5)}
        connection.execute(text("UPDATE capacity_runways SET middle_day = :day WHERE subject = 'volume'"), values)

    first = {group["name"]: group["fills_first"] for group in pages.document("/groups?by=team")["groups"]}
    archive = pages.document("/group?by=team&name=archive")

    disk = {"server": "server-1", "name": "/data", "day": str(TODAY + timedelta(days=5))}
    assert first["archive"] == {**disk, "server_id": 1, "subject": "volume"}
    [row] = [one for one in pages.ask("/groups?by=team").text.split("<tr>") if ">archive</a>" in one and "<td>" in one]
    day = shown(TODAY + timedelta(days=5))
    assert f'<td>{day}</td><td class="wide"><a href="/volume?server=1&amp;name=%2Fdata">disk /data</a>' in row
    assert [one["name"] for one in archive["fills_first"]] == ["/data"]
    assert first[None] is None


def test_a_bill_says_that_labels_were_declared_since(pages: Pages, engine: Engine) -> None:
    assert not pages.document("/bill?by=team")["is_outdated"]
    declare_labels(engine, [Label("server-1", "orders", "team", "search", date(2025, 6, 1))], TODAY)

    assert pages.document("/bill?by=team&month=2025-06")["is_outdated"]
    assert "capacity bill --month 2025-06" in pages.ask("/bill?by=engine").text


def test_the_last_month_is_one_that_is_over_as_commands_see_it(pages: Pages, engine: Engine) -> None:
    month_end = date(2025, 6, 30)

    with served_pages(engine.url, clock=fixed_clock(month_end)) as before:
        windows = {one["period"]: one["window_start"] for one in before.document("/")["moved"]}
        assert windows["monthly"] == "2025-05-01", "30 June has just begun"
        assert before.document("/groups?by=team")["window_start"] == "2025-05-01"
    assert pages.document("/groups?by=team")["window_start"] == "2025-06-01"


def test_the_search_finds_a_label_seconds_after_it_was_declared(engine: Engine, database: URL) -> None:
    filled(engine)
    with served_pages(database) as pages:
        assert pages.document("/search?q=treasury")["found"] == []
        declare_labels(engine, [Label("server-2", None, "team", "treasury")], TODAY)
        deadline = time.monotonic() + 5 * FORECASTS_SECONDS
        while not (found := pages.document("/search?q=treasury")["found"]) and time.monotonic() < deadline:
            time.sleep(0.2)

    assert [(one["kind"], one["server"], one["name"]) for one in found] == [("group", "team", "treasury")]
