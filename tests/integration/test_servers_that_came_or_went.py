"""Servers that come and go: they are named with their size, and their size is neither growth nor shrinkage."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.database.tables import ALWAYS
from capacity_assets.digest import as_text, headline, read_digest
from capacity_assets.orchestration.metadata import change_text
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading.changes import window_sizes
from tests.clocks import TODAY, fixed_clock
from tests.command import printed
from tests.computing import compute_windows
from tests.digests import DAYS, FIRST, WEEK, WEEKLY, weekly
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import Pages

GROWN = [10_000] * 14 + [10_100]
DAY = timedelta(days=1)
CAME = WEEK.start + timedelta(days=4)
OF_WEEK = f"/changes?period=weekly&window={WEEK.start}"


def coming_and_going(engine: Engine) -> None:
    """server-1 stays and grows by 1 %; server-2 retired before the week, and server-3 came on its Friday."""
    add_instances(engine, [1, 2, 3])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), weekly(GROWN)))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size, 1) for size in weekly(GROWN)]))
    add_database_sizes(engine, sizes(2, "old", FIRST.isoformat(), [3_000] * (DAYS - 7)))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(3_000, 1)] * (DAYS - 7)))
    for database in ("events", "clicks"):
        add_database_sizes(engine, sizes(3, database, CAME.isoformat(), [10_000] * 3))
    add_instance_sizes(engine, totals(3, CAME.isoformat(), [(20_000, 2)] * 3))
    declare_labels(engine, [Label("server-3", None, "team", "events")], TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, WEEK.end)
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 2"))


PREPARED = {"pages": coming_and_going}


def test_the_page_and_the_digest_name_servers_that_came_or_went_with_their_size(pages: Pages, engine: Engine) -> None:
    page, digest = pages.document(OF_WEEK), read_digest(engine, WEEK)

    came = {"server_id": 3, "server": "server-3", "databases": 2, "size_mb": 20_000}
    went = {"server_id": 2, "server": "server-2", "databases": 1, "size_mb": 3_000}
    assert (page["came"], page["came_servers"], page["went"], page["went_servers"]) == ([came], 1, [went], 1)
    assert (page["new_databases"], page["gone_databases"]) == (0, 0)
    assert ([vars(one) for one in digest.came], [vars(one) for one in digest.went]) == ([came], [went])
    assert "Servers that came:\n- server-3: 19.5 GiB, 2 databases\n" in as_text(digest)
    assert "Servers that went:\n- server-2: 2.9 GiB, 1 database\n" in as_text(digest)
    html = pages.ask(OF_WEEK).text
    assert '<section id="came">' in html
    assert '<section id="went">' in html


def test_a_label_s_digest_names_only_the_servers_with_the_label(pages: Pages, engine: Engine) -> None:
    assert pages
    own = read_digest(engine, WEEK, ("team", "events"))

    assert ([one.server for one in own.came], own.went) == (["server-3"], [])


def test_no_server_came_in_the_first_window_or_after_an_outage_or_went_while_it_is_in_service(
    pages: Pages, engine: Engine
) -> None:
    assert pages
    gap = WEEKLY.window_of(WEEK.start - timedelta(weeks=5))
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            missed = f"DELETE FROM {table} WHERE instance_id = 2 AND collected_date BETWEEN :start AND :end"
            connection.execute(text(missed), {"start": gap.start, "end": gap.end})
        for table in ("database_size_aggregations", "instance_size_aggregations"):
            missed = f"DELETE FROM {table} WHERE instance_id = 2 AND period_start = :start"
            connection.execute(text(missed), {"start": gap.start})
        connection.execute(text("UPDATE instances SET is_active = true WHERE id = 2"))

    for week in (WEEKLY.window_of(FIRST), gap, WEEKLY.following(gap)):
        digest = read_digest(engine, week)
        assert (digest.came, digest.went) == ([], []), week


def test_a_change_of_the_fleet_is_in_percent_of_the_previous_size_of_the_servers_that_have_one(
    pages: Pages, engine: Engine
) -> None:
    sentence = "The fleet: 29.4 GiB, +100 MiB (+1.0 %) in the week of 7 to 13 Jul 2025."
    page, html = pages.document(OF_WEEK), pages.ask(f"{OF_WEEK}&by=server").text
    of_partition = window_sizes(engine, WEEKLY, LEVELS["instance"], [WEEK])[WEEK.start]

    assert change_text(of_partition) == "+100 MiB (+1.0 %)"
    assert page["headline"] == headline(read_digest(engine, WEEK)) == sentence
    assert page["before_mb"] == 13_000
    assert "Before: 12.7 GiB; server-1: +100 MiB; servers that came or went: +16.6 GiB; Now: 29.4 GiB" in html
    assert html.count("+1.0 %") == 3, "headline, group and total"
    groups = f"/groups?by=server&period=weekly&window={WEEK.start}"
    total = pages.ask(groups).text.partition("<td>Total</td>")[2].partition("</tr>")[0]
    assert (pages.document(groups)["known_before_mb"], "+1.0 %" in total) == (10_000, True)


def test_a_server_that_was_retired_before_its_windows_were_computed_went_on_the_first_day_without_a_sample(
    pages: Pages, engine: Engine
) -> None:
    assert pages
    add_instances(engine, [4], is_active=False)
    add_instance_sizes(engine, totals(4, FIRST.isoformat(), [(700, 2)] * (DAYS - 5)))
    before, of_week, after = (
        read_digest(engine, week) for week in (WEEKLY.previous(WEEK), WEEK, WEEKLY.window_of(WEEK.end + DAY))
    )

    assert vars(of_week.went[-1]) == {"server_id": 4, "server": "server-4", "databases": 2, "size_mb": 700}
    assert (before.went, after.went) == ([], [])
    assert [one.server for one in of_week.went] == ["server-2", "server-4"]


def test_a_server_out_of_service_did_not_go_in_an_outage_before(pages: Pages, engine: Engine) -> None:
    assert pages
    gap = WEEKLY.window_of(WEEK.start - timedelta(weeks=5))
    with engine.begin() as connection:
        missed = "DELETE FROM instance_size_aggregations WHERE instance_id = 2 AND period_start = :start"
        connection.execute(text(missed), {"start": gap.start})
        missed = "DELETE FROM database_size_aggregations WHERE instance_id = 2 AND period_start = :start"
        connection.execute(text(missed), {"start": gap.start})

    assert [read_digest(engine, week).went for week in (gap, WEEKLY.following(gap))] == [[], []]


def test_pages_and_the_command_say_where_groups_contain_a_server_out_of_service(
    pages: Pages, engine: Engine, service: AggregationService
) -> None:
    """Of the week, server-4 was measured on two days: 700 * 2 / 7 = 200. Server-3 has three: 20000 * 3 / 7 = 8571."""
    add_instances(engine, [4], is_active=False)
    add_instance_sizes(engine, totals(4, FIRST.isoformat(), [(700, 2)] * (DAYS - 5)))
    compute_windows(service, "weekly", WEEK.start, WEEK.end)

    groups, changes = pages.document(OF_WEEK.replace("changes", "groups")), pages.document(OF_WEEK)
    said = (
        "Groups also contain servers that are out of service now: server-4 (200 MiB). The size of the fleet does not."
    )
    assert groups["out_of_service"] == changes["out_of_service"] == said
    assert said in pages.ask(OF_WEEK.replace("changes", "groups")).text
    assert said in pages.ask(OF_WEEK).text
    by_server = pages.document(f"{OF_WEEK.replace('changes', 'groups')}&by=server")
    assert (by_server["out_of_service"], "server-4" in str(by_server["groups"])) == (None, False)
    assert groups["size_mb"] == 10_100 + 8_571 + 200


@pytest.mark.single_server("derives totals from samples of databases")
def test_a_server_out_of_service_without_totals_is_named_by_its_databases(
    pages: Pages, engine: Engine, service: AggregationService
) -> None:
    """server-4 and server-5 were measured on two days of the week: 700 * 2 / 7 = 200, (350 + 1050) * 2 / 7 = 400."""
    add_instances(engine, [4, 5], is_active=False)
    add_instance_sizes(engine, totals(4, FIRST.isoformat(), [(700, 2)] * (DAYS - 5)))
    for name, size in (("log", 350), ("crm", 1050)):
        add_database_sizes(engine, sizes(5, name, FIRST.isoformat(), [size] * (DAYS - 5)))
    compute_windows(service, "weekly", WEEK.start, WEEK.end)

    groups = pages.document(OF_WEEK.replace("changes", "groups"))
    assert "out of service now: server-5 (400 MiB), server-4 (200 MiB)." in groups["out_of_service"]
    assert groups["size_mb"] == 10_100 + 8_571 + 200 + 400


def test_lists_of_a_window_mark_the_rows_of_a_server_out_of_service(pages: Pages) -> None:
    """The sums of the window contain them: a stored row stays."""
    before = WEEKLY.previous(WEEK)
    for path, name in (("servers", "server-2"), ("databases", "old")):
        asked = f"/{path}?period=weekly&window={before.start}"
        rows = pages.ask(asked).text.partition("<tbody>")[2].split("</tr>")
        marked = [row for row in rows if ">out of service</span>" in row]
        assert len(marked) == 1, path
        assert f">{name}</a>" in marked[0]
        assert sum(row["size_mb"] for row in pages.document(asked)[path]) == 13_000
    assert "out of service</span>" not in pages.ask(f"/servers?period=weekly&window={WEEK.start}").text


def test_the_page_of_a_group_names_the_servers_out_of_service_that_left_it(pages: Pages, engine: Engine) -> None:
    labels = [Label(server, None, "team", "shop", ALWAYS) for server in ("server-1", "server-2")]
    declare_labels(engine, labels, TODAY)
    last = FIRST + timedelta(days=DAYS - 8)

    said = "".join(pages.ask("/group?by=engine&name=postgresql&period=weekly").text.partition('id="departed"')[1:])
    of_team = pages.ask("/group?by=team&name=shop&period=weekly").text
    of_week = pages.ask(f"/group?by=engine&name=postgresql&period=weekly&first={WEEK.start}&last={WEEK.end}")

    for text_of_page in (said, of_team):
        listed = text_of_page.partition('id="departed"')[2].partition("</ul>")[0]
        assert listed.count("<li>") == 1
        assert ">server-2</a>" in listed
        assert ">2.9 GiB</data>" in listed
        assert f'<time datetime="{last}">' in listed
    assert 'id="departed"' in of_week.text, "the first day is the one after its last"
    assert 'id="departed"' not in pages.ask("/group?by=team&name=events&period=weekly").text
    assert 'id="departed"' not in pages.ask("/group?by=server&name=server-2&period=weekly").text


def test_groups_say_that_numbers_of_databases_are_means_and_those_of_bills_are_not(pages: Pages) -> None:
    """server-1 has one database on every day, server-3 has two on three of seven days: 1 + 6 / 7, rounded down."""
    said = pages.ask(f"/groups?by=engine&period=weekly&window={WEEK.start}").text

    assert "Daily means, rounded down, also of the number of databases; bills count every database measured" in said
    assert pages.document(f"/groups?by=engine&period=weekly&window={WEEK.start}")["databases"] == 1
    assert "means per day, rounded down." in " ".join(printed("groups", "--help").split())
