"""The growth report: adds up exactly, equals the tables, shows gaps as gaps, trusts no name, needs no network."""

from __future__ import annotations

import re
import threading
import time
from datetime import date
from html import escape, unescape
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregation.movers import window_sizes
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.errors import NotFoundError
from capacity_assets.foundation.levels import DATABASE, INSTANCE, LEVELS
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.periods import PERIODS, Window
from capacity_assets.report.charts import history_chart
from capacity_assets.report.data import Change, ChangeKind, Report
from capacity_assets.report.issues import issue_of, next_edition
from capacity_assets.report.page import footer_query, headline, notes, render, write_report
from capacity_assets.report.reading import read_report
from capacity_assets.runway.issued import Band
from capacity_assets.runway.issuing import issue
from capacity_assets.runway.limits import Limit, declare
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, load_sample, sizes, stored, totals
from tests.profiles import PROFILE
from tests.report_pages import Page

MONTHLY = PERIODS["monthly"]
FEBRUARY = MONTHLY.window_of(date(2025, 2, 1))


def adds_up(report: Report) -> bool:
    return report.start_mb + sum(change for _, change in report.steps) == report.end_mb


def test_each_database_is_of_one_kind_and_the_steps_lead_from_start_to_end(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    assert report.changes == {
        ChangeKind.GROWN: Change(1, 100, 150, 50),
        ChangeKind.SHRUNK: Change(1, 80, 50, -30),
        ChangeKind.SAME: Change(2, 8, 8),
        ChangeKind.PARTLY: Change(),
        ChangeKind.NEW: Change(1, 0, 30, 30),
        ChangeKind.GONE: Change(1, 20, 0, -20),
        ChangeKind.APPEARED: Change(1, 0, 500, 500),
        ChangeKind.MISSING: Change(1, 60, 0, -60),
    }
    assert (report.start_mb, report.end_mb) == (268, 738)
    assert adds_up(report)
    assert report.other_mb == 0
    assert (report.totals.known_before_mb, report.known_change_mb) == (208, 50 - 30 + 30 - 20)
    assert report.known_change_mb == 30, "a server that was not measured neither grew nor shrank"
    assert [server.name for server in report.servers] == ["server-1", "server-2"]
    assert [(one.server, one.name) for one in report.databases[ChangeKind.GONE]] == [("server-2", "gone")]
    assert report.unmeasured_servers == ["server-4"], "an inactive server is not expected"
    assert report.active_servers == 4


def test_the_totals_of_every_window_of_the_sample_equal_the_tables(engine: Engine, service: AggregationService) -> None:
    load_sample(engine)
    for name in ("weekly", "monthly"):
        service.calculate_period_aggregations(name, date(2025, 1, 1), date(2025, 7, 20))
    rows = stored(engine, INSTANCE)

    def total(period: str, window: Window) -> int:
        sizes_mb = [
            row["total_size_mb"] for row in rows if (row["period_type"], row["period_start"]) == (period, window.start)
        ]
        return sum(sizes_mb)  # type: ignore[arg-type]

    for name in ("weekly", "monthly"):
        for window in PERIODS[name].windows_between(date(2025, 1, 1), date(2025, 7, 20)):
            report = read_report(engine, PERIODS[name], window)
            assert adds_up(report)
            assert report.end_mb == total(name, window)
            assert report.start_mb == total(name, PERIODS[name].previous(window))
            assert sum(bar.size_mb for bar in report.history if bar.window_start == window.start) == report.end_mb
            assert sum(server.size_mb for server in report.servers) == report.end_mb - report.totals.appeared_mb


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
    assert page.tags.count("svg") == 3
    assert text_of_page.count('role="img"') == 3


def test_a_window_without_rows_and_a_day_without_samples_are_shown_as_gaps(
    every_kind: Engine, service: AggregationService
) -> None:
    add_database_sizes(every_kind, sizes(1, "grows", "2025-04-01", [170] * 30))
    service.calculate_period_aggregations("monthly", date(2025, 4, 1), date(2025, 4, 30))

    april = render(read_report(every_kind, MONTHLY, MONTHLY.window_of(date(2025, 4, 1))))
    february = render(read_report(every_kind, MONTHLY, FEBRUARY))

    assert re.search(r'<th scope="row">Mar 2025</th>(<td class="number">no rows</td>)+', april)
    assert '<th scope="row">Dec 2024</th>' not in april, "what was before the first row is no gap"
    assert re.search(r'<th scope="row">Apr 2025</th>(<td class="number">(0|170) MiB</td>){2}', april)
    assert "Not measured at all on 1 of 59 days: 2025-02-10." in february
    assert "No row in this window: 1 of 4 active servers: server-4." in february


def test_a_server_has_a_page_of_its_own_with_all_its_databases(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY, "server-1")
    page = render(report)

    assert (report.start_mb, report.end_mb) == (187, 207)
    assert adds_up(report)
    assert {bar.series for bar in report.history} == {"grows", "shrinks", "stays"}
    assert [one.name for one in report.databases[ChangeKind.SAME]] == ["stays"]
    assert "Growth of server-1" in page
    assert "server-2" not in page
    with pytest.raises(NotFoundError, match="There is no server 'Server-1'"):
        read_report(every_kind, MONTHLY, FEBRUARY, "Server-1")


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x^2$ {{ 7 * 7 }}", "雪豹"]
)
def test_no_name_is_read_as_markup_script_or_formula(engine: Engine, service: AggregationService, name: str) -> None:
    add_instances(engine, [1], name=name, db_type=name[:40])
    add_database_sizes(engine, sizes(1, name, "2025-01-01", [100] * 31 + [200] * 28))
    add_database_sizes(engine, sizes(1, f"new {name}", "2025-02-01", [5] * 28))
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))

    for server in (None, name):
        page = Page(render(read_report(engine, MONTHLY, FEBRUARY, server)))
        assert {"script", "img"}.isdisjoint(page.tags)
        assert page.tags.count("svg") == 3


def test_a_page_of_many_series_keeps_the_largest_apart_and_adds_the_others_up(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    for number in range(12):
        add_database_sizes(engine, sizes(1, f"db{number:02}", "2025-02-01", [1000 - number] * 28))
    service.calculate_period_aggregations("monthly", date(2025, 2, 1), date(2025, 2, 28))

    page = render(read_report(engine, MONTHLY, FEBRUARY, "server-1"))

    assert "5 others" in page
    assert "and 2 more" not in page, "a server's page lists every database"


def test_names_that_begin_alike_have_each_its_place_in_the_legend(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1])
    for number in (1, 2):
        add_database_sizes(engine, sizes(1, f"{'a_long_name_of_a_database_' * 2}{number}", "2025-02-01", [100] * 28))
    service.calculate_period_aggregations("monthly", date(2025, 2, 1), date(2025, 2, 28))

    assert history_chart(read_report(engine, MONTHLY, FEBRUARY, "server-1")).count("…") == 2


def test_groups_of_a_label_add_up_to_the_size_of_the_page(every_kind: Engine, service: AggregationService) -> None:
    none = read_report(every_kind, MONTHLY, FEBRUARY, by="team")
    declare_labels(every_kind, [Label("server-1", None, "team", "payments")], FEBRUARY.end)
    declare_labels(every_kind, [Label("server-2", "new", "team", "search")], FEBRUARY.end)
    partly = read_report(every_kind, MONTHLY, FEBRUARY, by="team")
    assert partly.end_mb - partly.grouped_mb == 500
    assert "Groups leave out 500 MiB" in render(partly)
    add_instance_sizes(every_kind, totals(3, "2025-02-01", [(500, 1)] * 28))
    add_instance_sizes(every_kind, totals(4, "2025-01-01", [(60, 1)] * 31))
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))

    report = read_report(every_kind, MONTHLY, FEBRUARY, by="team")
    page = render(report)

    assert none.groups == ()
    assert {group.name for group in report.groups} == {"payments", "search", None}
    assert sum(group.size_mb for group in report.groups) == report.end_mb
    assert sum(group.change_mb or 0 for group in report.groups) == report.known_change_mb
    shown = [int(size) for size in re.findall(r'data-group-mb="(\d+)"', page)]
    assert sum(shown) == report.end_mb
    assert ">By team<" in page
    assert read_report(every_kind, MONTHLY, FEBRUARY, "server-1", by="team").groups == ()


def test_an_empty_database_makes_a_page_that_says_so(engine: Engine) -> None:
    page = render(read_report(engine, MONTHLY, FEBRUARY))

    assert "There is no stored row in either window" in page
    assert "Which days were measured is not known" in page


def test_days_whose_samples_are_gone_are_not_said_to_be_unmeasured(every_kind: Engine) -> None:
    with every_kind.begin() as connection:
        connection.execute(text("DELETE FROM instance_size_stats WHERE collected_date < '2025-02-01'"))

    report = read_report(every_kind, MONTHLY, FEBRUARY)

    assert report.days[0] == date(2025, 2, 1)
    assert notes(report)[1] == "There are no totals of servers before 2025-02-01: days are counted from then on."
    assert notes(report)[2] == "Not measured at all on 1 of 28 days: 2025-02-10."


def test_negative_sizes_which_nothing_keeps_a_collector_from_storing_are_drawn(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "_orders", "2025-01-01", [-100] * 31 + [-300] * 28))
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))

    page = render(read_report(engine, MONTHLY, FEBRUARY, "server-1"))

    assert Page(page).steps["end"] == -300
    assert page.count("_orders") >= 3, "in the legend too, though it begins with an underscore"


def test_two_reports_written_at_once_are_whole(every_kind: Engine, tmp_path: Path) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)
    path = tmp_path / "page.html"
    edition = next_edition(every_kind, report, path)
    write_report(report, path, edition)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(PROFILE.kills):
                write_report(report, path, edition)
                page = Page(path.read_text())
                assert (page.tags.count("svg"), page.steps["end"], page.tags[-1]) == (3, 738, "code")
        except BaseException as error:  # noqa: BLE001 -- told below
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_window_of_all_has_nothing_to_compare_with_and_says_unknown(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, MONTHLY.window_of(date(2025, 1, 1)))
    page = render(report)

    assert report.known_change_mb is None
    assert "<dt>Known change</dt><dd>unknown</dd>" in page
    assert Page(page).steps == {}, "no way from nothing to here is drawn"
    assert Page(page).tags.count("svg") == 2
    assert "Nothing was measured in the window before" in page
    assert "In January 2025 the fleet had 268 MiB. There is nothing to compare with." in page


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_can_be_read_without_colour_and_by_a_screen_reader(every_kind: Engine) -> None:
    page = render(read_report(every_kind, MONTHLY, FEBRUARY))

    schemes = re.findall(r":root \{ (?:color-scheme: light dark; )?(--text[^}]*)\}", page)
    assert len(schemes) == 2, "light and dark"
    for scheme in schemes:
        colours = {
            name: colour if len(colour) == 7 else f"#{''.join(2 * digit for digit in colour[1:])}"
            for name, colour in re.findall(r"--(\w+): (#[0-9a-f]{3,6})", scheme)
        }
        for name in ("text", "quiet"):
            lights = sorted((luminance(colours[name]), luminance(colours["back"])))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, f"contrast of {name}"
    assert '<html lang="en">' in page
    assert page.count("<h1>") == 1
    assert len(re.findall(r'<section aria-labelledby="(\w+)">\s*<h2 id="\1">', page)) == page.count("<section")
    assert all(label for label in re.findall(r'role="img" aria-label="([^"]*)"', page))
    assert "<th>" not in page.split("<tbody>")[1].split("</tbody>")[0], "rows have scoped headings"
    # Direction is in the sign, and each chart has its numbers in a table.
    assert "+50" in page
    assert "The same in figures" in page
    assert "pattern" in page, "parts of a bar differ by hatching too"


def test_a_report_of_twenty_thousand_databases_is_read_by_a_handful_of_statements(engine: Engine) -> None:
    """Its time is bounded loosely here, because machines are shared; the figure is in the documents."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO instances (id, name, db_type, host, port) "
                "SELECT n, 'server-' || n, 'mysql', 'x', 1 FROM generate_series(1, 1000) n"
            )
        )
        for start, end in (("2025-01-01", "2025-01-31"), ("2025-02-01", "2025-02-28")):
            connection.execute(
                text(
                    "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
                    "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) "
                    "SELECT i, 'db' || n, 'monthly', CAST(:start AS date), CAST(:end AS date), "
                    "(i * 7919 + n * (104729 + 31 * date_part('month', CAST(:start AS date))::int)) % 50000, 1, 1, 28 "
                    "FROM generate_series(1, 1000) i, generate_series(1, 20) n"
                ),
                {"start": start, "end": end},
            )
    started = time.perf_counter()
    report = read_report(engine, MONTHLY, FEBRUARY)
    page = render(report)

    assert time.perf_counter() - started < 10
    assert sum(change.databases for change in report.changes.values()) == 20_000
    assert adds_up(report)
    assert len(page) < 500_000


# Totals that do not depend on what a database is called, nor on how long a copy lived.


def months(service: AggregationService, last_day: str) -> None:
    for name in ("monthly", "daily"):
        service.calculate_period_aggregations(name, date(2025, 1, 1), date.fromisoformat(last_day))


def server_with(engine: Engine, histories: dict[str, list[int | None]]) -> None:
    """One server whose databases have these sizes from 2025-01-01 on, and the totals that follow."""
    add_instances(engine, [1])
    for name, history in histories.items():
        if any(size is not None for size in history):
            add_database_sizes(engine, sizes(1, name, "2025-01-01", history))
    days = zip(*histories.values(), strict=True)
    sums = [(sum(size or 0 for size in day), sum(size is not None for size in day)) for day in days]
    add_instance_sizes(engine, totals(1, "2025-01-01", [None if not count else (size, count) for size, count in sums]))


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
    assert [(one.name, one.days) for one in february.databases[ChangeKind.PARTLY]] == [("old", "15 of 28")]
    assert february.changes[ChangeKind.NEW].change_mb == -february.changes[ChangeKind.PARTLY].change_mb == 464_286
    assert "1 databases were there on a part of their server's measured days" in " ".join(notes(february))
    for level in (DATABASE, INSTANCE):
        sums = window_sizes(engine, MONTHLY, level, [FEBRUARY])[FEBRUARY.start]
        assert (sums.total_size_mb, sums.total_change_mb) == (1_001_000, 0)


def test_a_copy_that_lived_for_a_day_adds_a_day_of_it(engine: Engine, service: AggregationService) -> None:
    copy: list[int | None] = [None] * 40 + [5_600_000] + [None] * 18
    server_with(engine, {"orders": [1000] * 59, "copy": copy})
    months(service, "2025-02-28")

    report = read_report(engine, MONTHLY, FEBRUARY)

    assert (report.start_mb, report.end_mb, report.known_change_mb) == (1000, 201_000, 200_000)
    assert report.changes[ChangeKind.NEW].change_mb == 200_000


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=4),
    st.integers(0, 59),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_renaming_databases_changes_no_total(
    engine: Engine, service: AggregationService, databases: list[tuple[int, int, int]], renamed_on: int
) -> None:
    days = 59
    plain: dict[str, list[int | None]] = {"always": [100] * days}
    renamed: dict[str, list[int | None]] = {"always": [100] * days}
    for number, (size, first, length) in enumerate(databases):
        history = [size + 10 * day if first <= day < first + length else None for day in range(days)]
        plain[f"db{number}"] = history
        renamed[f"db{number}"] = [value if day < renamed_on else None for day, value in enumerate(history)]
        renamed[f"other{number}"] = [value if day >= renamed_on else None for day, value in enumerate(history)]
    found = []
    for histories in (plain, renamed):
        with engine.begin() as connection:
            for table in ("instances", *(level.source.name for level in LEVELS.values())):
                connection.execute(text(f"DELETE FROM {table}"))
            for level in LEVELS.values():
                connection.execute(text(f"DELETE FROM {level.target.name}"))
        server_with(engine, histories)
        service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))
        report = read_report(engine, MONTHLY, FEBRUARY)
        assert adds_up(report)
        assert not report.levels_disagree
        found.append((report.start_mb, report.end_mb, report.known_change_mb))

    assert found[0] == found[1]


def test_the_query_in_the_footer_gives_the_size_and_the_change_of_the_page(
    engine: Engine, service: AggregationService
) -> None:
    load_sample(engine)
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 7, 20))

    for server in (None, "mysql-核心-01"):
        for window in MONTHLY.windows_between(date(2025, 2, 1), date(2025, 6, 30)):
            report = read_report(engine, MONTHLY, window, server)
            page = render(report)
            query = unescape(re.findall(r'<code id="query">(.*?)</code>', page)[0])
            assert query == footer_query(report)
            with engine.connect() as connection:
                size, change = connection.execute(text(query)).one()
            assert [str(size), str(change)] == re.findall(r'data-mb="(-?\d+)"', page)


# Who should have been measured.


def test_a_server_counts_from_its_first_sample_to_its_retirement(engine: Engine, service: AggregationService) -> None:
    add_instances(engine, [1, 2])
    add_instances(engine, [3], is_active=False)
    for number, first, days in ((1, "2025-01-01", 59), (2, "2025-02-20", 9), (3, "2025-01-01", 40)):
        add_database_sizes(engine, sizes(number, "orders", first, [100] * days))
        add_instance_sizes(engine, totals(number, first, [(100, 1)] * days))
    months(service, "2025-02-28")

    assert notes(read_report(engine, MONTHLY, FEBRUARY)) == [], "every server was measured on each of its days"

    add_instances(engine, [4])
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM instance_size_stats WHERE instance_id = 2 AND collected_date = '2025-02-22'")
        )
    assert notes(read_report(engine, MONTHLY, FEBRUARY)) == [
        "1 active server never measured: server-4.",
        "Not every server was measured on 1 of 59 days: 2025-02-22 (1 of 2).",
    ]
    [january] = [read_report(engine, MONTHLY, MONTHLY.window_of(date(2025, 1, 1)))]
    assert january.unmeasured_servers == [], "server 2 had no sample yet"


# What was published stays.


def publish(engine: Engine, path: Path, window: Window = FEBRUARY) -> str | None:
    report = read_report(engine, MONTHLY, window)
    edition = next_edition(engine, report, path)
    write_report(report, path, edition)
    return edition.sentence


def test_a_closed_window_that_is_restated_keeps_the_page_and_says_what_it_was_is_and_why(
    engine: Engine, service: AggregationService, tmp_path: Path
) -> None:
    server_with(engine, {"orders": [102_400] * 59})
    add_instances(engine, [2], name="imported")
    months(service, "2025-02-28")
    path = tmp_path / "growth.html"
    assert publish(engine, path) is None
    first = path.read_text()
    assert publish(engine, path) is None, "the same figures are the same issue"

    add_database_sizes(engine, sizes(2, "crm", "2025-02-01", [1024] * 28))
    add_instance_sizes(engine, totals(2, "2025-02-01", [(1024, 1)] * 28))
    service.aggregate("monthly", [FEBRUARY])
    said = publish(engine, path)

    assert said is not None
    assert said.startswith("Issue 2. Issue 1, of ")
    assert " said 100.0 GiB with a known change of +0 MiB; it is 101.0 GiB with +0 MiB. Since then 56 samples" in said
    assert said.endswith("of imported. The page as it was is kept as growth-issue-1.html.")
    assert escape(said) in path.read_text()
    assert (tmp_path / "growth-issue-1.html").read_text() == first
    issue = issue_of(path)
    assert issue is not None
    assert (issue.number, issue.end_mb) == (2, 103_424)
    assert publish(engine, path) == said, "told on until the next issue"


def test_a_page_of_an_open_window_is_no_issue_that_must_be_kept(
    engine: Engine, service: AggregationService, tmp_path: Path
) -> None:
    server_with(engine, {"orders": [100] * 40})
    months(service, "2025-02-09")
    path = tmp_path / "growth.html"
    publish(engine, path)
    add_database_sizes(engine, sizes(1, "orders", "2025-02-10", [200] * 19))
    add_instance_sizes(engine, totals(1, "2025-02-10", [(200, 1)] * 19))
    service.aggregate("monthly", [FEBRUARY])

    assert publish(engine, path) is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_headline_says_in_one_sentence_what_happened(engine: Engine, service: AggregationService) -> None:
    server_with(engine, {"orders": [1000] * 31 + [1100] * 28, "crm": [500] * 59})
    months(service, "2025-02-28")

    said = headline(read_report(engine, MONTHLY, FEBRUARY))

    assert said == "In February 2025 the fleet grew by 100 MiB (+6.7 %) to 1.6 GiB, most by orders on server-1."


@pytest.fixture
def filling(engine: Engine, service: AggregationService) -> Engine:
    """`orders` grows by ten MiB per day and is full in March; the limit of `still` is not known."""
    add_instances(engine, [1])
    days = range(151)
    add_database_sizes(engine, sizes(1, "orders", "2024-10-01", [1024 + 10 * day for day in days]))
    add_database_sizes(engine, sizes(1, "still", "2024-10-01", [500] * 151))
    add_instance_sizes(engine, totals(1, "2024-10-01", [(1524 + 10 * day, 2) for day in days]))
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))
    declare(engine, [Limit("server-1", "orders", 2724)])
    return engine


def test_the_page_says_what_fills_first_when_how_sure_and_how_far_forecasts_were_off(filling: Engine) -> None:
    for day in (date(2025, 1, 29), date(2025, 2, 28)):
        issue(filling, day, day)

    report = read_report(filling, MONTHLY, FEBRUARY)
    page = render(report)

    issued = report.runways
    assert issued is not None
    [risk] = issued.risks
    assert (risk.outlook.told, risk.outlook.size_mb, risk.outlook.limit_mb) == ("orders", 2524, 2724)
    assert risk.bands[30] == Band(2824, 2824, 2824)
    assert (risk.history[0], risk.history[-1]) == ((date(2024, 10, 1), 1024), (date(2025, 2, 28), 2524))
    assert (issued.as_of, issued.unknown_limits, issued.headroom_mb) == (date(2025, 2, 28), 1, None)
    scores = [(score.horizon_days, score.forecasts, score.error_percent) for score in issued.scores]
    assert scores == [(7, 3, 0.0), (30, 3, 0.0)]
    section = page.split('id="fills-first"')[1].split("</section>")[0]
    assert "<td>orders</td>" in section
    assert section.count("2025-03-20") == 3
    assert "100%, nearly certain" in section
    assert "own limit, declared" in section
    assert 'id="unknown-limits" data-databases="1"' in section
    assert "Of 3 forecasts over 30 days that came due, 100 % of the sizes lay in their band and 0 % above it" in section
    assert 'id="headroom"' not in page


def test_the_page_of_a_month_keeps_the_runways_that_were_issued_in_it(filling: Engine) -> None:
    before = read_report(filling, MONTHLY, FEBRUARY).runways
    issue(filling, date(2025, 2, 27), date(2025, 2, 27))
    issue(filling, date(2025, 3, 1), date(2025, 3, 1))

    after = read_report(filling, MONTHLY, FEBRUARY).runways

    assert before is None
    assert 'id="fills-first"' not in render(read_report(filling, MONTHLY, MONTHLY.window_of(date(2025, 1, 1))))
    assert after is not None
    assert after.as_of == date(2025, 2, 27)


def test_the_headroom_and_the_risks_of_a_servers_page_are_its_own(filling: Engine) -> None:
    add_instances(filling, [2])
    add_database_sizes(filling, sizes(2, "log", "2024-10-01", [100 + day for day in range(151)]))
    add_instance_sizes(filling, totals(2, "2024-10-01", [(100 + day, 1) for day in range(151)]))
    declare(filling, [Limit("server-1", None, 5000), Limit("server-2", None, 300)])
    issue(filling, date(2025, 2, 28), date(2025, 2, 28))

    fleet, one = (read_report(filling, MONTHLY, FEBRUARY, server).runways for server in (None, "server-2"))

    assert fleet is not None
    assert one is not None
    assert (fleet.headroom_mb, one.headroom_mb) == (5000 - 3024 + 50, 50)
    assert [risk.outlook.server for risk in fleet.risks] == ["server-1", "server-2", "server-1"]
    assert [risk.outlook.told for risk in one.risks] == ["all together"]
