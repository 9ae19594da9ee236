"""The growth report: adds up exactly, equals the tables, shows gaps as gaps, trusts no name, needs no network."""

from __future__ import annotations

import re
import threading
import time
from datetime import date
from pathlib import Path

from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import INSTANCE
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import Window
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading.changes import Change, ChangeKind
from capacity_assets.report.data import read_report
from capacity_assets.report.issues import next_edition
from capacity_assets.report.page import notes, render, write_report
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, load_sample, sizes, stored, totals
from tests.report_pages import FEBRUARY, MONTHLY, Page, adds_up


def test_each_database_is_of_one_kind_and_the_steps_lead_from_start_to_end(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    assert report.databases.sums == {
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
    assert (report.size.known_before_mb, report.known_change_mb) == (208, 50 - 30 + 30 - 20)
    assert report.known_change_mb == 30, "a server that was not measured neither grew nor shrank"
    assert [server.name for server in report.servers.largest] == ["server-1", "server-2"]
    assert [(one.server, one.name) for one in report.databases.largest[ChangeKind.GONE]] == [("server-2", "gone")]
    assert report.without_rows.measured_elsewhere == ["server-4"], "an inactive server is not expected"
    assert report.in_service.active == 4


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
    come, gone = 500, 60
    assert sum(group.change_mb or 0 for group in report.groups) == report.known_change_mb + come - gone
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

    assert report.days[0].day == date(2025, 2, 1)
    assert notes(report)[1] == "There are no totals of servers before 2025-02-01: days are counted from then on."
    assert notes(report)[2] == "Not measured at all on 1 of 28 days: 2025-02-10."


def test_negative_sizes_which_nothing_keeps_a_collector_from_storing_are_drawn(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "_orders", "2025-01-01", [-100] * 31 + [-300] * 28))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    page = render(read_report(engine, MONTHLY, FEBRUARY, "server-1"))

    assert Page(page).steps["end"] == -300
    bar = re.search(r'<rect[^>]* y="0.0"[^>]* height="230.0"><title>_orders, Feb 2025: -300 MiB</title>', page)
    assert bar, "from 0 at the top to the bottom"


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


def test_the_first_window_of_all_has_nothing_to_compare_with_and_says_unknown(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, MONTHLY.window_of(date(2025, 1, 1)))
    page = render(report)

    assert report.known_change_mb is None
    assert "<dt>Known change</dt><dd>unknown</dd>" in page
    assert Page(page).steps == {}, "no way from nothing to here is drawn"
    assert Page(page).tags.count("desc") == 2
    assert "Nothing was measured in the window before" in page
    assert "In January 2025 the fleet had 268 MiB. There is nothing to compare with." in page


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
    started = time.process_time()
    report = read_report(engine, MONTHLY, FEBRUARY)
    page = render(report)

    assert time.process_time() - started < 10, "of this process, which waits for others"
    assert sum(change.databases for change in report.databases.sums.values()) == 20_000
    assert adds_up(report)
    assert len(page) < 500_000
