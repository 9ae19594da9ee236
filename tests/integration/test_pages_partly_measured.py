"""A day with holes is not a drop: windows of which a part was not measured are marked wherever they are shown."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.web import groups
from tests.clocks import TODAY, fixed_clock
from tests.command import printed
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import Pages, served_pages

DAYS = 40
FIRST = TODAY - timedelta(days=DAYS - 1)
HOLE, LOST = 20, 30
"""Days on which server-1 lacks its database big, and on which server-2 was not measured."""


def day(number: int) -> str:
    return str(FIRST + timedelta(days=number))


def fill(engine: Engine, *, holes: tuple[int, ...] = (HOLE,), has_totals: bool = True) -> None:
    """server-1 with big and small, server-2 with one database; a database dropped on day 10 is no hole."""
    add_instances(engine, [1, 2])
    big = [None if number in holes else 900 + number for number in range(DAYS)]
    add_database_sizes(engine, sizes(1, "big", FIRST.isoformat(), big))
    add_database_sizes(engine, sizes(1, "small", FIRST.isoformat(), [100] * DAYS))
    add_database_sizes(engine, sizes(1, "dropped", FIRST.isoformat(), [50] * 10))
    add_database_sizes(engine, sizes(1, "created", (FIRST + timedelta(days=10)).isoformat(), [50] * (DAYS - 10)))
    if has_totals:
        whole = [(150 + (size or 0), 2 + (size is not None)) for size in big]
        add_instance_sizes(engine, totals(1, FIRST.isoformat(), whole))
    add_database_sizes(engine, sizes(2, "crm", FIRST.isoformat(), [None if n == LOST else 500 for n in range(DAYS)]))
    add_instance_sizes(
        engine, totals(2, FIRST.isoformat(), [None if number == LOST else (500, 1) for number in range(DAYS)])
    )
    declare_labels(engine, [Label("server-1", None, "team", "one"), Label("server-2", None, "team", "two")], FIRST)
    for period in ("daily", "monthly"):
        compute_windows(AggregationService(engine, fixed_clock()), period, FIRST, TODAY)


PREPARED = {"partly_measured": fill}


@pytest.fixture
def partly_measured(engine: Engine) -> None:
    """The servers of `fill`, computed; copied."""


def partial(pages: Pages, address: str) -> list[str]:
    return [one["window_start"] for one in pages.document(address)["sizes"] if one["is_partial"]]


def partial_changes(pages: Pages, address: str) -> list[str]:
    return [one["window_start"] for one in pages.document(address)["sizes"] if one["is_change_partial"]]


def listed(pages: Pages, window: date, period: str = "daily") -> dict[str, tuple[bool, bool]]:
    """Whether each server in the list of a window, and its change, is partly measured."""
    rows = pages.document(f"/servers?period={period}&window={window}")["servers"]
    return {one["server"]: (one["is_partial"], one["is_change_partial"]) for one in rows}


DERIVED = pytest.mark.single_server("derives totals from samples of databases")


@pytest.mark.parametrize("has_totals", [True, pytest.param(False, marks=DERIVED)])
def test_a_day_without_some_databases_is_marked_on_the_server_and_the_fleet(engine: Engine, has_totals: bool) -> None:
    fill(engine, has_totals=has_totals)

    with served_pages(engine.url) as pages:
        assert partial(pages, "/server?server=1") == [day(HOLE)]
        assert partial_changes(pages, "/server?server=1") == [day(HOLE), day(HOLE + 1)]
        assert partial(pages, "/server?server=2") == []
        assert partial(pages, "/") == [day(HOLE), day(LOST)]
        assert partial(pages, f"/?first={day(LOST)}") == [day(LOST)], "server-2 was measured before the range"
        html = pages.ask("/server?server=1").text
        [row] = [one for one in html.split("<tr>")[1:] if f"window={day(HOLE)}#behind" in one]
        [after] = [one for one in html.split("<tr>")[1:] if f"window={day(HOLE + 1)}#behind" in one]

    assert 'class="partial"' in html, "the point is hollow"
    assert ">partly measured</span>" in row
    assert 'class="shrunk"' not in row
    assert 'class="grown"' not in after


@pytest.mark.usefixtures("partly_measured")
def test_a_week_in_which_a_database_lacks_a_day_is_marked_on_the_server(engine: Engine) -> None:
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, TODAY)
    hole = FIRST + timedelta(days=HOLE)

    week = hole - timedelta(days=hole.weekday())

    with served_pages(engine.url) as pages:
        assert partial(pages, "/server?server=1&period=weekly") == [str(week)]
        assert partial(pages, "/server?server=2&period=weekly") == []


def test_consecutive_days_without_a_database_are_all_marked(engine: Engine) -> None:
    fill(engine, holes=tuple(range(15, 24)))

    with served_pages(engine.url) as pages:
        assert partial(pages, "/server?server=1") == [day(number) for number in range(15, 24)]
        assert listed(pages, FIRST + timedelta(days=19))["server-1"] == (True, True)
        assert listed(pages, FIRST + timedelta(days=24))["server-1"] == (False, True)


def test_on_the_newest_day_a_database_is_missing_unless_the_day_was_collected(engine: Engine) -> None:
    fill(engine, holes=(DAYS - 1,))

    def newest() -> tuple[list[str], bool, str]:
        with served_pages(engine.url) as pages:
            row = next(one for one in pages.document("/servers")["servers"] if one["server"] == "server-1")
            return partial(pages, "/server?server=1"), row["is_partial"], pages.ask("/servers").text

    days, is_partial, html = newest()
    assert (days, is_partial) == ([str(TODAY)], True)
    assert '<p class="under">○ partly measured: some databases are missing on some days.</p>' in html
    assert "like for like" not in html, "no such change is in the list"
    assert ">partly measured</span>" in html
    assert "○ partly measured: some databases are missing" in html
    assert "≈" not in html, "no change like for like is in the list"
    assert 'class="shrunk"' not in html

    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO capacity_collection_attempts (collected_date, instance_id, status) "
                "VALUES (:day, 1, 'collected')"
            ),
            {"day": TODAY},
        )
    assert newest()[:2] == ([], False), "a collection lists every database: this one was dropped"


def test_the_size_of_the_fleet_is_not_that_of_a_day_without_some_databases(engine: Engine) -> None:
    fill(engine, holes=(DAYS - 2, DAYS - 1))

    with served_pages(engine.url) as pages:
        now = pages.document("/")["now"]

    assert now["size_mb"] == 900 + DAYS - 3 + 150 + 500
    assert (now["oldest"]["server"], now["oldest"]["day"]) == ("server-1", str(TODAY - timedelta(days=2)))


@pytest.mark.usefixtures("partly_measured")
def test_a_group_is_partly_measured_where_one_of_its_servers_was_not_measured(engine: Engine) -> None:
    with served_pages(engine.url) as pages:
        of_two = partial(pages, "/group?by=team&name=two&period=daily&window=" + day(LOST + 2))
        assert of_two == [], "its only server is a gap, not a drop"
        declare_labels(engine, [Label("server-2", None, "team", "one")], FIRST)
        compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)

    with served_pages(engine.url) as pages:
        address = "/group?by=team&name=one&period=daily&window=" + day(LOST + 2)
        assert partial(pages, address) == [day(LOST)]
        in_range = f"/group?by=team&name=one&period=daily&first={day(LOST)}&last={day(LOST + 2)}"
        assert partial(pages, in_range) == [day(LOST)], "server-2 was measured before the range"
        assert partial(pages, "/group?by=engine&name=postgresql&period=daily&window=" + day(LOST + 2)) == [day(LOST)]
        html = pages.ask(address).text
        whole = pages.ask("/group?by=team&name=one&period=daily&window=" + day(LOST - 3)).text
        missed, sizes = (pages.document(address)[name] for name in ("missed", "sizes"))
        july = f"{TODAY.replace(day=1)}"
        [of_month] = pages.document(f"/group?by=team&name=one&period=monthly&window={july}")["missed"]

    assert ">partly measured</span>" in html
    changes = [one["change_mb"] for one in sizes if one["is_change_partial"]]
    assert changes == [1, 1], "big of server-1 grows by 1 a day; crm is not measured on both"
    assert html.count("like for like</span>") == 2, "that day and the next one"
    assert 'href="#not-comparable">' not in html
    assert "Its change is not growth" in html
    of_server = {"server_id": 2, "server": "server-2", "measured_days": 0, "days": 1, "left_out_days": 0}
    assert missed == [{"window_start": day(LOST), **of_server}]
    assert (of_month["server"], of_month["measured_days"], of_month["days"]) == ("server-2", 19, 20)
    assert 'id="not-comparable"' not in whole


@pytest.mark.usefixtures("partly_measured")
def test_only_the_newest_windows_of_a_group_are_read_like_for_like(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_labels(engine, [Label("server-2", None, "team", "one")], FIRST)
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    monkeypatch.setattr(groups, "MOST_COMPARED", 1)

    with served_pages(engine.url) as pages:
        address = "/group?by=team&name=one&period=daily&window=" + day(LOST + 2)
        changes = [one["change_mb"] for one in pages.document(address)["sizes"] if one["is_change_partial"]]
        html = pages.ask(address).text

    assert changes == [None, 1]
    assert html.count('href="#not-comparable">not comparable</a>') == 1


@pytest.mark.usefixtures("partly_measured")
def test_the_list_of_groups_marks_those_of_which_a_server_was_not_measured(engine: Engine) -> None:
    declare_labels(engine, [Label("server-2", None, "team", "one")], FIRST)
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)

    def marks(by: str, number: int) -> dict[str | None, tuple[bool, bool]]:
        with served_pages(engine.url) as pages:
            groups = pages.document(f"/groups?by={by}&period=daily&window={day(number)}")["groups"]
        return {one["name"]: (one["is_partial"], one["is_change_partial"]) for one in groups}

    assert [marks("team", LOST + after)["one"] for after in (-1, 0, 1, 2)] == [
        (False, False),
        (True, True),
        (False, True),
        (False, False),
    ]
    assert marks("engine", LOST) == {"postgresql": (True, True)}
    assert marks("server", LOST) == {"server-1": (False, False)}
    with served_pages(engine.url) as pages:
        html = pages.ask(f"/groups?by=team&period=daily&window={day(LOST)}").text
    assert ">partly measured</span>" in html
    assert 'class="shrunk"' not in html.partition('<tr class="total">')[0]


@pytest.mark.usefixtures("partly_measured")
def test_the_change_of_a_group_whose_server_missed_a_day_is_that_of_its_databases(engine: Engine) -> None:
    with served_pages(engine.url) as pages:
        page = pages.document(f"/groups?by=team&period=monthly&window={TODAY.replace(day=1)}")
        listed = page["groups"]
        [two] = [one for one in listed if one["name"] == "two"]
        # The mean of 20 days of which one is missing is 475 MiB, and nothing shrank.
        assert (two["size_mb"], two["change_mb"], two["is_partial"], two["is_change_partial"]) == (475, 0, True, True)
        assert "like for like" in pages.ask(f"/groups?by=team&period=monthly&window={TODAY.replace(day=1)}").text
        assert {one["name"]: one["change_percent"] for one in page["space"]} == {
            one["name"]: one["change_percent"] for one in listed
        }, "the map has the growth of the list"
        group = pages.document(f"/group?by=team&name=two&period=monthly&window={TODAY.replace(day=1)}")
        assert (group["sizes"][-1]["change_mb"], group["sizes"][-1]["is_change_partial"]) == (0, True)


@pytest.mark.usefixtures("partly_measured")
@pytest.mark.parametrize(("days_after", "partial"), [(2, "two"), (0, "new"), (-2, "new")])
def test_a_day_that_a_server_missed_is_missing_in_its_group_of_that_day(
    engine: Engine, days_after: int, partial: str
) -> None:
    moved_on = FIRST + timedelta(days=LOST + days_after)
    declare_labels(engine, [Label("server-2", None, "team", "new")], moved_on)
    declare_labels(engine, [Label("server-2", None, "environment", "new", moved_on)], moved_on)
    month = TODAY.replace(day=1)
    service = AggregationService(engine, fixed_clock())
    for period in ("monthly", "daily"):
        compute_windows(service, period, FIRST, TODAY)

    with served_pages(engine.url) as pages:
        for by, groups in (("team", {"two": "two", "new": "new"}), ("environment", {None: "two", "new": "new"})):
            page = pages.document(f"/groups?by={by}&period=monthly&window={month}")
            marked = {groups.get(one["name"], one["name"]) for one in page["groups"] if one["is_partial"]}
            assert marked == {partial}, by
            for name, as_team in groups.items():
                where = f"/group?by={by}&period=monthly&window={month}" + (f"&name={name}" if name else "")
                newest = pages.document(where)["sizes"][-1]
                assert newest["is_partial"] == (as_team == partial), (by, name)
            changes = {one["name"]: one["change_mb"] for one in page["groups"]}
            assert by != "team" or changes["two"] + changes["new"] == 0, "server-2 did not change"


def test_a_group_is_partly_measured_where_the_history_of_a_server_begins_in_the_middle(engine: Engine) -> None:
    """Four of seven days of server-3 are in the mean of its first week, and all of them in that of the next one."""
    fill(engine, holes=())
    begins = date(2025, 7, 3)
    add_instances(engine, [3])
    days = (TODAY - begins).days + 1
    add_database_sizes(engine, sizes(3, "late", begins.isoformat(), [700] * days))
    add_instance_sizes(engine, totals(3, begins.isoformat(), [(700, 1)] * days))
    declare_labels(engine, [Label("server-3", None, "team", "one")], FIRST)
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, TODAY)
    first, after = "2025-06-30", "2025-07-07"

    with served_pages(engine.url) as pages:
        group = pages.document("/group?by=team&name=one&period=weekly&window=2025-07-14")
        listed = {
            start: next(
                one
                for one in pages.document(f"/groups?by=team&period=weekly&window={start}")["groups"]
                if one["name"] == "one"
            )
            for start in (first, after)
        }

    [missed] = [one for one in group["missed"] if one["server"] == "server-3"]
    assert (missed["window_start"], missed["measured_days"], missed["days"]) == (first, 4, 7)
    of_page = {one["window_start"]: one for one in group["sizes"]}
    assert not of_page["2025-06-16"]["is_partial"], "a week of which nothing of the fleet is missing"
    for start, is_partial in ((first, True), (after, False)):
        page, row = of_page[start], listed[start]
        assert (page["is_partial"], page["is_change_partial"]) == (is_partial, True), start
        assert (row["is_partial"], row["is_change_partial"]) == (is_partial, True), start
        assert page["change_mb"] == row["change_mb"] == 7, "big grows by 1 a day; late is new, and then stays as it is"


@pytest.mark.usefixtures("settings", "today")
@pytest.mark.usefixtures("partly_measured")
def test_the_command_and_the_report_have_the_change_of_a_group_that_the_pages_have(tmp_path: Path) -> None:
    month, file = f"{TODAY.replace(day=1)}", tmp_path / "report.html"

    listed = json.loads(printed("groups", "--window", month, "--json"))
    shown = " ".join(printed("groups", "--window", month).split())
    printed("report", "--window", month, "--output", str(file))

    [two] = [one for one in listed if one["name"] == "two"]
    assert (two["size_mb"], two["change_mb"], two["is_partial"], two["is_change_partial"]) == (475, 0, True, True)
    row = re.search(r"two 1 . 475 MiB 0 MiB 0.0 %", shown)
    note = "For two, changes are like for like: they count only databases measured in both windows"
    assert row, shown
    assert note in shown
    assert "Partly measured, so the mean size is too low: two." in shown
    report = " ".join(re.sub("<[^>]+>", " ", file.read_text()).split())
    assert re.search(r"two . 475 MiB 0 MiB 0.0 %", report), report
    assert note in report


@pytest.mark.usefixtures("partly_measured")
def test_a_group_without_members_is_empty_and_not_the_fleet(engine: Engine) -> None:
    with served_pages(engine.url) as pages:
        assert pages.ask("/group?by=team&period=monthly").status == 404
        assert pages.document("/group?by=environment&period=monthly")["sizes"][-1]["size_mb"] > 0, (
            "no such label at all"
        )


@pytest.mark.usefixtures("partly_measured")
def test_the_first_page_lists_the_days_that_servers_missed(engine: Engine) -> None:
    with served_pages(engine.url) as pages:
        assert pages.document("/")["missed"] == [{"server_id": 2, "server": "server-2", "days": [day(LOST)]}]
        assert f"window={day(LOST)}#behind" in pages.ask("/").text
