"""The page of changes: what a window changed in the fleet, with the figures of the other pages and of the digest."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import human_day, human_mb
from capacity_assets.digest import message_of, read_digest
from capacity_assets.forecast.issuing import issue_runways
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, sizes
from tests.pages import Pages, values_of
from tests.pages_fleet import FIRST, filled

DAY, BEFORE = TODAY - timedelta(days=1), TODAY - timedelta(days=2)
YESTERDAY = f"/changes?period=daily&window={DAY}"


def changing(engine: Engine) -> None:
    """The fleet of the pages; yesterday `fresh` came, `old` had gone, a date came closer and one was decided on."""
    filled(engine)
    add_database_sizes(engine, sizes(1, "fresh", DAY.isoformat(), [70, 70]))
    add_database_sizes(engine, sizes(1, "old", (BEFORE - timedelta(days=9)).isoformat(), [30] * 10))
    service = AggregationService(engine, fixed_clock())
    compute_windows(service, "daily", BEFORE - timedelta(days=9), TODAY)
    compute_windows(service, "weekly", FIRST, TODAY)
    issue_runways(engine, BEFORE, TODAY)
    with engine.begin() as connection:
        moved = """
            UPDATE capacity_runways SET middle_day = middle_day + CAST(:days AS integer)
            WHERE as_of = :before AND subject = :subject AND name = :name"""
        connection.execute(text(moved), {"days": 8, "before": BEFORE, "subject": "database", "name": "orders"})
        connection.execute(text(moved), {"days": 7, "before": BEFORE, "subject": "volume", "name": "/data"})
        # In the time zone of the database, the night of that day has begun.
        declared = text("UPDATE capacity_decisions SET declared_at = :evening")
        connection.execute(declared, {"evening": f"{BEFORE} 20:00+00"})


PREPARED = {"pages": changing}


def test_the_change_of_the_fleet_is_that_of_the_first_page_and_groups_add_up_to_it(pages: Pages) -> None:
    of_fleet = {one["window_start"]: one for one in pages.document("/?period=weekly")["sizes"]}

    for by in ("team", "engine", "server"):
        page = pages.document(f"/changes?by={by}")
        assert page["size"] == of_fleet[page["window_start"]], by
        parts = [one["change_mb"] or 0 for one in page["groups"]]
        assert sum(parts) + page["other_change_mb"] + page["rest_change_mb"] == page["size"]["change_mb"], by
        listed = {one["name"]: one["change_mb"] for one in pages.document(f"/groups?by={by}&period=weekly")["groups"]}
        assert {one["name"]: one["change_mb"] for one in page["groups"]} == listed, by
    assert page["headline"] == "The fleet: 17.6 GiB, +350 MiB (+2.0 %) in the week of 7 to 13 Jul 2025."


def fleet_row(pages: Pages, path: str) -> list[str]:
    """The cells of the total below the groups, as a reader sees them."""
    row = pages.ask(path).text.split("<td>Fleet</td>")[1].split("</tr>")[0]
    return [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.findall("<td[^>]*>(.*?)</td>", row)]


DASH = "\u2013"


def card(html: str, name: str) -> str:
    """The value of a card and what is said of it."""
    found = html.partition(f"<dt>{name}</dt>")[2].partition("</div>")[0]
    return " ".join(re.sub("<[^>]+>", " ", found).split())


def size_of(page: Any) -> str:
    return human_mb(page["size"]["size_mb"])


def test_a_window_names_what_came_went_moved_was_decided_and_was_not_measured(pages: Pages) -> None:
    page = pages.document(YESTERDAY)

    assert [(one["database"], one["size_mb"]) for one in page["new"]] == [("fresh", 70)]
    assert [(one["database"], one["size_mb"]) for one in page["gone"]] == [("old", 30)]
    assert (page["new_databases"], page["gone_databases"]) == (1, 1)
    assert [(one["database"], one["change_mb"]) for one in page["changed"]] == [("orders", 50)]
    [closer] = page["sooner"]
    assert (closer["name"], closer["day"] < closer["before"]) == ("orders", True), "a week is not more than a week"
    assert (page["compared_as_of"], page["forecast_as_of"]) == (str(BEFORE), str(TODAY))
    assert values_of(page["decisions"], "name") == ["crm"]
    assert f'<span class="under"><time datetime="{DAY}">' in pages.ask(YESTERDAY).text
    assert f"<title>{human_day(DAY)}: crm on server-2" in pages.ask("/database?server=2&name=crm").text
    assert page["decided_dates"] == 0
    assert page["missed"] == []
    today = pages.document("/changes?period=daily")
    assert [(one["server"], one["days"]) for one in today["missed"]] == [("server-2", [str(TODAY)])]
    assert today["decisions"] == []
    assert (today["gone_databases"], today["new_databases"]) == (0, 0), "nothing is known of a server that was missed"
    assert "Not everything was measured on that day, so no change is shown." in today["headline"]
    unknown = "The change of the fleet is unknown: not everything was measured in this window."
    assert fleet_row(pages, "/changes?period=daily") == [f"○ partly measured {size_of(today)}", "unknown", ""]
    assert unknown in pages.ask("/changes?period=daily").text


def test_a_date_that_moved_is_only_counted_if_a_decision_leaves_it_out(pages: Pages, engine: Engine) -> None:
    decided = """
        INSERT INTO capacity_decisions (instance_id, subject, name, declared_at, kind, until_day, note)
        VALUES (1, 'database', 'orders', now(), 'excluded', :until, 'it is emptied')"""
    with engine.begin() as connection:
        connection.execute(text(decided), {"until": TODAY})

    page = pages.document(YESTERDAY)

    assert (page["sooner"], page["decided_dates"]) == ([], 1)


def test_a_file_has_every_database_with_a_known_change(pages: Pages) -> None:
    headings, *rows = pages.workbook(YESTERDAY)

    found = {row[headings.index("database")]: row[headings.index("change_mb")] for row in rows}
    assert (found["orders"], found["still"], "fresh" in found) == (50, 0, False)


def test_the_page_leads_back_and_forward_and_to_what_it_names(pages: Pages) -> None:
    html = pages.ask(YESTERDAY).text

    assert f'rel="prev" href="/changes?period=daily&amp;window={BEFORE}"' in html
    assert f'rel="next" href="/changes?period=daily&amp;window={TODAY}"' in html
    assert '<a href="/database?server=1&amp;name=fresh">fresh</a>' in html
    assert '<a href="/group?by=team&amp;name=payments">payments</a>' in html
    assert '<a href="/changes?period=weekly">Last week</a>' in pages.ask("/").text
    assert 'rel="next"' not in pages.ask("/changes?period=daily").text


def test_a_window_that_is_not_over_is_a_click_away_and_marked(pages: Pages) -> None:
    week = PERIODS["weekly"].window_of(TODAY)
    for path in ("/changes?period=weekly", "/groups?period=weekly", "/databases?period=weekly"):
        html = pages.ask(path).text
        assert f'rel="next" href="{path.replace("&", "&amp;")}&amp;window={week.start}">This week so far →</a>' in html
        assert "<strong>so far</strong>" not in html
        current = pages.ask(f"{path}&window={week.start}").text
        assert path[1] != "c" or "in the week of 14 to 20 Jul 2025 so far." in current
        assert '<p class="under">14 to 20 Jul 2025 <strong>so far</strong>, change since' in current
        assert 'rel="next"' not in current


def test_a_window_without_a_measurement_says_so_and_has_no_zeros(pages: Pages) -> None:
    for window, sentence in (
        ("2020-01-06", "Nothing was measured of the fleet in the week of 6 to 12 Jan 2020."),
        ("2030-01-07", "Nothing was measured of the fleet in the week of 7 to 13 Jan 2030."),
    ):
        page = pages.document(f"/changes?window={window}")
        html = pages.ask(f"/changes?window={window}").text

        assert (page["size"], page["headline"]) == (None, sentence)
        unknown = ("new_databases", "gone_databases", "came_servers", "went_servers", "missed_servers", "sooner_dates")
        unknown += ("later_dates", "other_change_mb", "once_measured_mb", "rest_change_mb", "before_mb")
        assert {name: page[name] for name in unknown} == dict.fromkeys(unknown)
        assert card(html, "New databases") == f"{DASH} nothing measured in the week"
        assert card(html, "Fill dates closer") == f"{DASH} no forecast in the week"
        assert (">0<" in html, "Every server in service was measured" in html) == (False, False), window
    first = pages.document(f"/changes?period=daily&window={FIRST}")
    assert first["size"]["size_mb"] > 0
    assert (first["new_databases"], first["missed_servers"]) == (None, 0), "nothing to compare with"
    shown = pages.ask(f"/changes?period=daily&window={FIRST}").text
    assert card(shown, "New databases") == f"{DASH} nothing measured in the day before"
    assert fleet_row(pages, f"/changes?period=daily&window={FIRST}") == [size_of(first), "unknown", ""]
    assert "The change of the fleet is unknown: nothing was measured in the day before." in shown


def test_each_group_has_what_fills_first_as_in_the_list_of_groups(pages: Pages) -> None:
    for by in ("team", "engine"):
        filling = {one["name"]: one["fills_first"] for one in pages.document(f"/groups?by={by}")["groups"]}
        listed = {one["name"]: one["fills_first"] for one in pages.document(f"/changes?by={by}")["groups"]}
        assert listed == filling, by
        assert any(listed.values()), by


def test_without_windows_of_a_period_the_page_says_how_to_compute_them_and_offers_the_others(pages: Pages) -> None:
    html = pages.ask("/changes?period=yearly").text

    assert 'No yearly figures yet. The <a href="/">first page</a> says what was measured.' in html
    assert "<code>capacity aggregate --period yearly</code> computes them." in html
    assert 'href="/changes?period=daily"' in html


def test_without_labels_groups_are_engines(pages: Pages, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM group_size_aggregations WHERE label_key = 'team'"))

    assert pages.document(YESTERDAY)["grouped_by"] == "engine"
    assert pages.document(f"{YESTERDAY}&by=team")["grouped_by"] == "team"


def test_the_digest_leads_to_the_changes_of_its_week(pages: Pages, engine: Engine) -> None:
    week = PERIODS["weekly"].window_of(TODAY - timedelta(days=7))
    digest = read_digest(engine, week)

    link = message_of(digest, pages.address).link
    assert link is not None
    assert link.url == f"{pages.address}/changes?period=weekly&window={week.start}"
    of_week = pages.document(link.url.removeprefix(pages.address))
    assert (of_week["size"]["size_mb"], of_week["size"]["change_mb"]) == (digest.size_mb, digest.change_mb)
    assert [one["database"] for one in of_week["new"]] == [one.database for one in digest.new]
