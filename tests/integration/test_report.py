"""The growth report: adds up exactly, equals the tables, shows gaps as gaps, trusts no name, needs no network."""

from __future__ import annotations

import re
import threading
from datetime import date
from html import unescape
from itertools import product
from pathlib import Path

import pytest
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import Window
from capacity_assets.base.units import human_change_mb
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading.changes import ChangeKind, ChangeTotals, window_sizes
from capacity_assets.reading.coverage import measured_days
from capacity_assets.report.page import footer_query, next_edition, notes, read_report, render, write_report
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import (
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    add_objects,
    load_sample,
    sizes,
    stored,
    totals,
)
from tests.profiles import HISTORIES, generated
from tests.report_pages import FEBRUARY, MONTHLY, Page, adds_up, months, server_with

derived = pytest.mark.single_server("derives totals from samples of databases")


@derived
def test_each_database_is_of_one_kind_and_the_steps_lead_from_start_to_end(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    assert report.databases.sums == {
        ChangeKind.GROWN: ChangeTotals(1, 100, 150, 50),
        ChangeKind.SHRUNK: ChangeTotals(1, 80, 50, -30),
        ChangeKind.SAME: ChangeTotals(2, 8, 8),
        ChangeKind.PARTLY: ChangeTotals(),
        ChangeKind.NEW: ChangeTotals(1, 0, 30, 30),
        ChangeKind.GONE: ChangeTotals(1, 20, 0, -20),
        ChangeKind.APPEARED: ChangeTotals(1, 0, 500, 500),
        ChangeKind.MISSING: ChangeTotals(1, 60, 0, -60),
    }
    assert (report.start_mb, report.end_mb) == (268, 738)
    assert adds_up(report)
    assert report.other_mb == 0
    assert (report.size.known_before_mb, report.known_change_mb) == (208, 50 - 30 + 30 - 20)
    assert report.known_change_mb == 30, "a server that was not measured neither grew nor shrank"
    assert [server.name for server in report.servers.largest] == ["server-1", "server-2"]
    assert [(one.server, one.name) for one in report.databases.largest[ChangeKind.GONE]] == [("server-2", "gone")]
    assert [one.server for one in report.missing] == ["server-4"], "an inactive server is not expected"
    assert report.in_service.active == 4


def test_a_report_names_the_table_behind_each_database_that_grew_or_shrank(every_kind: Engine) -> None:
    january, february = date(2025, 1, 30), date(2025, 2, 27)
    add_objects(every_kind, 1, "grows", {january: {"items": 60}, february: {"items": 100, "less": 1}})
    add_objects(every_kind, 1, "shrinks", {january: {"log": 70, "more": 1}, february: {"log": 30, "more": 9}})
    add_objects(every_kind, 1, "stays", {january: {"in": 1, "out": 6}, february: {"in": 6, "out": 1}})

    page = render(read_report(every_kind, MONTHLY, FEBRUARY))

    behind = re.findall(r"<td>(\w+)<br><em>(.*?)</em></td>", page)
    days = "30 Jan to 27 Feb 2025"
    assert behind == [("grows", f"table items: +40 MiB, {days}"), ("shrinks", f"table log: -40 MiB, {days}")]


def test_the_totals_of_every_month_of_the_sample_equal_the_tables(engine: Engine, service: AggregationService) -> None:
    load_sample(engine)
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 7, 20))
    rows = stored(engine, INSTANCE)

    def total(window: Window) -> int:
        return sum(row["total_size_mb"] for row in rows if row["period_start"] == window.start)  # type: ignore[misc]

    for window in MONTHLY.windows_between(date(2025, 1, 1), date(2025, 7, 20)):
        report = read_report(engine, MONTHLY, window)
        assert adds_up(report)
        assert report.end_mb == total(window)
        assert report.start_mb == total(MONTHLY.previous(window))
        assert sum(bar.size_mb for bar in report.history if bar.window_start == window.start) == report.end_mb
        assert sum(server.size_mb for server in report.servers.largest) == report.end_mb - report.servers.appeared_mb


@derived
def test_a_window_without_rows_and_a_day_without_samples_are_shown_as_gaps(
    every_kind: Engine, service: AggregationService
) -> None:
    add_database_sizes(every_kind, sizes(1, "grows", "2025-04-01", [170] * 30))
    compute_windows(service, "monthly", date(2025, 4, 1), date(2025, 4, 30))

    april = render(read_report(every_kind, MONTHLY, MONTHLY.window_of(date(2025, 4, 1))))
    february = render(read_report(every_kind, MONTHLY, FEBRUARY))

    assert re.search(r'<th scope="row">Mar 2025</th>(<td class="number">no rows</td>)+', april)
    assert '<th scope="row">Dec 2024</th>' not in april, "what was before the first row is no gap"
    assert re.search(r'<th scope="row">Apr 2025</th>(<td class="number">(0|170) MiB</td>){2}', april)
    assert "Not measured at all on 1 of 59 days: 2025-02-10." in february
    assert "No row in this window: 1 of 4 active servers: server-4." in february


@derived
def test_groups_of_a_label_add_up_to_the_size_of_the_page(every_kind: Engine, service: AggregationService) -> None:
    none = read_report(every_kind, MONTHLY, FEBRUARY, by="team")
    declare_labels(every_kind, [Label("server-1", None, "team", "payments")], FEBRUARY.end)
    declare_labels(every_kind, [Label("server-2", "new", "team", "search")], FEBRUARY.end)
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))
    partly = read_report(every_kind, MONTHLY, FEBRUARY, by="team")
    assert partly.end_mb == sum(group.size_mb for group in partly.groups), (
        "a server without a total counts by its databases"
    )
    add_instance_sizes(every_kind, totals(3, "2025-02-01", [(500, 1)] * 28))
    add_instance_sizes(every_kind, totals(4, "2025-01-01", [(60, 1)] * 31))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    report = read_report(every_kind, MONTHLY, FEBRUARY, by="team")
    page = render(report)

    assert none.groups == ()
    assert {group.name for group in report.groups} == {"payments", "search", None}
    assert sum(group.size_mb for group in report.groups) == report.end_mb
    assert None in {group.name for group in report.groups if group.is_partial}, "server-4 is missing in February"
    shown = [int(size) for size in re.findall(r'data-group-mb="(\d+)"', page)]
    assert sum(shown) == report.end_mb
    assert ">By team<" in page
    assert read_report(every_kind, MONTHLY, FEBRUARY, "server-1", by="team").groups == ()


def test_an_empty_database_makes_a_page_that_says_so(engine: Engine) -> None:
    page = render(read_report(engine, MONTHLY, FEBRUARY))

    assert "Neither window has a stored row" in page
    assert "Last measured day: none." in page
    assert "Which days were measured is unknown" in page


def test_days_whose_samples_are_gone_are_not_said_to_be_unmeasured(every_kind: Engine) -> None:
    with every_kind.begin() as connection:
        connection.execute(text("DELETE FROM instance_size_stats WHERE collected_date < '2025-02-01'"))

    report = read_report(every_kind, MONTHLY, FEBRUARY)

    assert report.days[0].day == date(2025, 2, 1)
    assert notes(report)[1] == "There are no totals of servers before 2025-02-01, so days are counted from then on."
    assert notes(report)[2] == "Not measured at all on 1 of 28 days: 2025-02-10."


@derived
def test_negative_sizes_which_nothing_keeps_a_collector_from_storing_are_drawn(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "_orders", "2025-01-01", [-100] * 31 + [-300] * 28))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    page = render(read_report(engine, MONTHLY, FEBRUARY, "server-1"))

    assert Page(page).steps["end"] == -300
    bar = re.search(r'<rect[^>]* y="0rem"[^>]* height="14.375rem"><title>_orders, Feb 2025: -300 MiB</title>', page)
    assert bar, "from 0 at the top to the bottom"


@derived
def test_two_reports_written_at_once_are_whole(every_kind: Engine, tmp_path: Path) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)
    path = tmp_path / "page.html"
    edition = next_edition(every_kind, report, path)
    write_report(report, path, edition)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(5):
                write_report(report, path, edition)
                page = Page(path.read_text())
                assert (page.tags.count("desc"), page.steps["end"], page.tags[-1]) == (3, 738, "code")
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]


@derived
def test_the_first_window_of_all_has_nothing_to_compare_with_and_says_unknown(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, MONTHLY.window_of(date(2025, 1, 1)))
    page = render(report)

    assert report.known_change_mb is None
    assert "<dt>Known change</dt><dd>unknown</dd>" in page
    assert Page(page).steps == {}, "no way from nothing to here is drawn"
    assert Page(page).tags.count("desc") == 2
    assert "Nothing was measured in the previous window" in page
    assert "In January 2025 the fleet had 268 MiB. There is no earlier size to compare with." in page


@derived
def test_a_report_of_two_thousand_databases_adds_up_and_its_page_stays_small(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO instances (id, name, db_type, host, port) "
                "SELECT n, 'server-' || n, 'mysql', 'x', 1 FROM generate_series(1, 100) n"
            )
        )
        for start, end in (("2025-01-01", "2025-01-31"), ("2025-02-01", "2025-02-28")):
            connection.execute(
                text(
                    "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
                    "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) "
                    "SELECT i, 'db' || n, 'monthly', CAST(:start AS date), CAST(:end AS date), "
                    "(i * 7919 + n * (104729 + 31 * date_part('month', CAST(:start AS date))::int)) % 50000, 1, 1, 28 "
                    "FROM generate_series(1, 100) i, generate_series(1, 20) n"
                ),
                {"start": start, "end": end},
            )
            # As the level of groups finds that servers have no totals.
            connection.execute(
                text(
                    "INSERT INTO group_size_aggregations (label_key, label_value, period_type, period_start, "
                    "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count, server_count, max_server_count, "
                    "min_server_count, database_count, max_database_count, min_database_count) "
                    "VALUES ('(total)', 'derived', 'monthly', :start, :end, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0)"
                ),
                {"start": start, "end": end},
            )
    report = read_report(engine, MONTHLY, FEBRUARY)
    page = render(report)

    assert sum(change.databases for change in report.databases.sums.values()) == 2_000
    assert adds_up(report)
    assert len(page) < 100_000


def test_a_database_that_was_renamed_in_mid_window_changes_no_total(
    engine: Engine, service: AggregationService
) -> None:
    server_with(
        engine,
        {
            "old": [1_000_000] * 46 + [None] * 44,
            "new": [None] * 46 + [1_000_000] * 44,
            "other": [1000] * 90,
        },
    )
    months(service, "2025-03-31")

    for month in ("2025-02-01", "2025-03-01"):
        report = read_report(engine, MONTHLY, MONTHLY.window_of(date.fromisoformat(month)))
        assert (report.start_mb, report.end_mb, report.known_change_mb) == (1_001_000, 1_001_000, 0)
        assert adds_up(report)
        assert abs(report.other_mb) <= 1
    february = read_report(engine, MONTHLY, FEBRUARY)
    assert [(one.name, one.days) for one in february.databases.largest[ChangeKind.PARTLY]] == [("old", "15 of 28")]
    assert (
        february.databases.sums[ChangeKind.NEW].change_mb
        == -february.databases.sums[ChangeKind.PARTLY].change_mb
        == 464_286
    )
    assert "1 database, listed below, existed on only some of the measured days" in " ".join(notes(february))
    for level in (DATABASE, INSTANCE):
        sums = window_sizes(engine, MONTHLY, level, [FEBRUARY])[FEBRUARY.start]
        assert (sums.total_size_mb, sums.total_change_mb) == (1_001_000, 0)


def test_a_server_retired_later_is_expected_on_days_between_its_samples(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, "2025-02-01", [(100, 1)] * 28))
    add_instance_sizes(
        engine, totals(2, "2025-02-01", [(100, 1) if day < 5 or day > 20 else None for day in range(28)])
    )
    execute(engine, "UPDATE instances SET is_active = false WHERE id = 2")

    with engine.connect() as connection:
        days = measured_days(connection, date(2025, 2, 4), date(2025, 2, 10), None)

    assert [(day.measured, day.expected) for day in days] == [(2, 2)] * 2 + [(1, 2)] * 5


def test_a_copy_that_lived_for_a_day_adds_a_day_of_it(engine: Engine, service: AggregationService) -> None:
    copy: list[int | None] = [None] * 40 + [5_600_000] + [None] * 18
    server_with(engine, {"orders": [1000] * 59, "copy": copy})
    months(service, "2025-02-28")

    report = read_report(engine, MONTHLY, FEBRUARY)

    assert (report.start_mb, report.end_mb, report.known_change_mb) == (1000, 201_000, 200_000)
    assert report.databases.sums[ChangeKind.NEW].change_mb == 200_000


DATABASES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=4)
RENAMED_ON = st.integers(0, 59)


def test_renaming_databases_changes_no_total(engine: Engine, service: AggregationService) -> None:
    """Each history has two servers; on the second one, databases are renamed on a day."""
    histories = generated(st.tuples(DATABASES, RENAMED_ON), max(5, HISTORIES // 3))
    for number, (databases, renamed_on) in enumerate(histories):
        plain: dict[str, list[int | None]] = {"always": [100] * 59}
        renamed = dict(plain)
        for name, (size, first, length) in enumerate(databases):
            history = [size + 10 * day if first <= day < first + length else None for day in range(59)]
            plain[f"db{name}"] = history
            renamed[f"db{name}"] = [value if day < renamed_on else None for day, value in enumerate(history)]
            renamed[f"other{name}"] = [value if day >= renamed_on else None for day, value in enumerate(history)]
        server_with(engine, plain, 2 * number + 1)
        server_with(engine, renamed, 2 * number + 2)
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    for number, history in enumerate(histories):
        reports = [read_report(engine, MONTHLY, FEBRUARY, f"server-{2 * number + place}") for place in (1, 2)]
        for report in reports:
            assert adds_up(report), history
            assert not report.levels_disagree, history
        one, other = ((report.start_mb, report.end_mb, report.known_change_mb) for report in reports)
        assert one == other, history


def test_the_query_in_the_footer_gives_the_size_and_the_change_of_the_page(
    engine: Engine, service: AggregationService
) -> None:
    load_sample(engine)
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 7, 20))

    for server in (None, "mysql-核心-01"):
        for month in (date(2025, 2, 1), date(2025, 6, 1)):
            report = read_report(engine, MONTHLY, MONTHLY.window_of(month), server)
            page = render(report)
            query = unescape(re.findall(r'<code id="query">(.*?)</code>', page)[0])
            assert query == footer_query(report)
            with engine.connect() as connection:
                size, change = connection.execute(text(query)).one()
            assert [str(size), str(change)] == re.findall(r'data-mb="(-?\d+)"', page)


@derived
def test_the_page_says_the_same_numbers_and_loads_nothing(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    text_of_page = render(report)
    page = Page(text_of_page)

    assert (
        page.steps["start"] + sum(page.steps[kind] for kind, change in report.steps if change)
        == page.steps["end"]
        == 738
    )
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert [link for link in page.links if not link.startswith("#")] == []
    assert "url(http" not in text_of_page
    assert "@import" not in text_of_page
    assert text_of_page.count('<svg class="plot"') == text_of_page.count('role="img"') == 3
    steps = [change for kind, change in report.steps if change]
    described = [
        part.split(": ")[1] for part in re.findall(r"<desc>(Before: [^<]*)</desc>", text_of_page)[0].split("; ")
    ]
    assert described == ["268 MiB", *map(human_change_mb, steps), "738 MiB"], "the waterfall too"


def test_a_server_has_a_page_of_its_own_with_all_its_databases(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY, "server-1")
    page = render(report)

    assert (report.start_mb, report.end_mb) == (187, 207)
    assert adds_up(report)
    assert {bar.series for bar in report.history} == {"grows", "shrinks", "stays"}
    assert [one.name for one in report.databases.largest[ChangeKind.SAME]] == ["stays"]
    assert "Growth of server-1" in page
    assert "server-2" not in page
    with pytest.raises(NotFoundError, match="There is no server 'Server-1'"):
        read_report(every_kind, MONTHLY, FEBRUARY, "Server-1")


@derived
def test_no_name_is_read_as_markup_script_or_formula(engine: Engine, service: AggregationService) -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x^2$ {{ 7 * 7 }}", "雪豹"]
    for server, name in enumerate(names, 1):
        add_instances(engine, [server], name=name, db_type=name[:40])
        add_database_sizes(engine, sizes(server, name, "2025-01-01", [100] * 31 + [200] * 28))
        add_database_sizes(engine, sizes(server, f"new {name}", "2025-02-01", [5] * 28))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    for of in (None, *names):
        text_of_page = render(read_report(engine, MONTHLY, FEBRUARY, of))
        assert {"script", "img"}.isdisjoint(Page(text_of_page).tags), of
        assert text_of_page.count('<svg class="plot"') == 3, of


@derived
def test_a_page_of_many_series_keeps_the_largest_apart_and_adds_the_others_up(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    for number in range(12):
        add_database_sizes(engine, sizes(1, f"db{number:02}", "2025-02-01", [1000 - number] * 28))
    compute_windows(service, "monthly", date(2025, 2, 1), date(2025, 2, 28))

    page = render(read_report(engine, MONTHLY, FEBRUARY, "server-1"))

    assert "5 others" in page
    assert "and 2 more" not in page, "a server's page lists every database"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_can_be_read_without_colour_and_by_a_screen_reader(every_kind: Engine) -> None:
    page = render(read_report(every_kind, MONTHLY, FEBRUARY))

    colours = {name: pair for name, *pair in re.findall(r"--(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", page)}
    assert "--limit: var(--act)" in page
    # On paper, the scheme is light.
    for theme, name in product((0, 1), ("text", "quiet", "up", "down", "watch", "act", "link")):
        for behind in ("back", "raised"):
            lights = sorted((luminance(colours[name][theme]), luminance(colours[behind][theme])))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, f"contrast of {name}"
    assert '<html lang="en">' in page
    assert page.count("<h1>") == 1
    assert len(re.findall(r'<section aria-labelledby="(\w+)">\s*<h2 id="\1">', page)) == page.count("<section")
    assert all(label for label in re.findall(r'role="img" aria-label="([^"]*)"', page))
    assert "<th>" not in page.split("<tbody>")[1].split("</tbody>")[0], "rows have scoped headings"
    # Direction is in the sign, and each chart has its numbers in a table.
    assert "+50" in page
    assert "As a table" in page
    assert "pattern" in page, "parts of a bar differ by hatching too"
