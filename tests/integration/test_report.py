"""The growth report: adds up exactly, equals the tables, shows gaps as gaps, trusts no name, needs no network."""

from __future__ import annotations

import re
import threading
import time
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.errors import NotFoundError
from capacity_assets.aggregation.levels import DATABASE
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.periods import PERIODS, Window
from capacity_assets.report.charts import history_chart
from capacity_assets.report.data import Change, Kind, Report, read_report
from capacity_assets.report.page import notes, percent, render, write_report
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, load_sample, sizes, stored, totals

MONTHLY = PERIODS["monthly"]
FEBRUARY = MONTHLY.window_of(date(2025, 2, 1))


@pytest.fixture
def every_kind(engine: Engine, service: AggregationService) -> Engine:
    """January and February with one database of each kind; server 3 was not measured in January, 4 not in February."""
    add_instances(engine, [1, 3, 4])
    add_instances(engine, [2], db_type="mysql")
    add_instances(engine, [5], is_active=False)
    histories = {
        (1, "grows"): (100, 150),
        (1, "shrinks"): (80, 50),
        (1, "stays"): (7, 7),
        (2, "new"): (None, 30),
        (2, "gone"): (20, None),
        (2, "kept"): (1, 1),
        (3, "appeared"): (None, 500),
        (4, "missing"): (60, None),
    }
    for (instance_id, name), (january, february) in histories.items():
        add_database_sizes(engine, sizes(instance_id, name, "2025-01-01", [january] * 31 + [february] * 28))
    for instance_id in (1, 2):
        measured: list[tuple[int, int] | None] = [(1, 1)] * 59
        measured[40] = None
        add_instance_sizes(engine, totals(instance_id, "2025-01-01", measured))
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))
    return engine


class Page(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.steps: dict[str, int] = {}
        self.tags: list[str] = []
        self.links: list[str] = []
        self._step: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.tags.append(tag)
        self._step = known.get("data-step")
        self.links += [str(known[name]) for name in ("src", "href", "xlink:href") if known.get(name)]

    def handle_data(self, data: str) -> None:
        if self._step is not None:
            self.steps[self._step] = int(data.replace(",", ""))
            self._step = None


def adds_up(report: Report) -> bool:
    return report.start_mb + sum(change for _, change in report.steps) == report.end_mb


def test_each_database_is_of_one_kind_and_the_steps_lead_from_start_to_end(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    assert report.changes == {
        Kind.GROWN: Change(1, 100, 150),
        Kind.SHRUNK: Change(1, 80, 50),
        Kind.SAME: Change(2, 8, 8),
        Kind.NEW: Change(1, 0, 30),
        Kind.GONE: Change(1, 20, 0),
        Kind.APPEARED: Change(1, 0, 500),
        Kind.MISSING: Change(1, 60, 0),
    }
    assert notes(report)[1].startswith("Not every active server was measured on 58 of 59 days: 2025-01-01 (2 of 4), ")
    assert (report.start_mb, report.end_mb) == (268, 738)
    assert adds_up(report)
    assert (report.comparable_before_mb, report.comparable_change_mb) == (188, 20)
    assert report.known_change_mb == 50 - 30 + 30 - 20, "a server that was not measured neither grew nor shrank"
    assert [server.name for server in report.servers] == ["server-1", "server-2"]
    assert [(one.server, one.name) for one in report.databases[Kind.GONE]] == [("server-2", "gone")]
    assert report.unmeasured_servers == ["server-4"], "an inactive server is not expected"
    assert report.active_servers == 4


def test_the_totals_of_every_window_of_the_sample_equal_the_tables(engine: Engine, service: AggregationService) -> None:
    load_sample(engine)
    for name in ("weekly", "monthly"):
        service.calculate_period_aggregations(name, date(2025, 1, 1), date(2025, 7, 20))
    rows = stored(engine, DATABASE)

    def total(period: str, window: Window) -> int:
        sizes_mb = [
            row["avg_size_mb"] for row in rows if (row["period_type"], row["period_start"]) == (period, window.start)
        ]
        return sum(sizes_mb)  # type: ignore[arg-type]

    for name in ("weekly", "monthly"):
        for window in PERIODS[name].windows_between(date(2025, 1, 1), date(2025, 7, 20)):
            report = read_report(engine, PERIODS[name], window)
            assert adds_up(report)
            assert report.end_mb == total(name, window)
            assert report.start_mb == total(name, PERIODS[name].previous(window))
            assert sum(bar.size_mb for bar in report.history if bar.window_start == window.start) == report.end_mb
            compared = sum(one.size_mb for kind, one in report.changes.items() if kind is not Kind.APPEARED)
            assert sum(server.size_mb for server in report.servers) == compared


def test_the_page_says_the_same_numbers_and_loads_nothing(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    text_of_page = render(report)
    page = Page(text_of_page)

    assert page.steps["start"] + sum(page.steps[kind] for kind, _ in report.steps) == page.steps["end"] == 738
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

    assert re.search(r'<th scope="row">2025-03-01</th>(<td class="number">no rows</td>)+', april)
    assert '<th scope="row">2024-12-01</th>' not in april, "what was before the first row is no gap"
    assert re.search(r'<th scope="row">2025-04-01</th>(<td class="number">(0|170) MB</td>){2}', april)
    assert "Not measured at all on 1 of 59 days: 2025-02-10." in february
    assert "1 of 4 active servers have no row in this window: server-4." in february


def test_a_server_has_a_page_of_its_own_with_all_its_databases(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY, "server-1")
    page = render(report)

    assert (report.start_mb, report.end_mb) == (187, 207)
    assert adds_up(report)
    assert {bar.series for bar in report.history} == {"grows", "shrinks", "stays"}
    assert [one.name for one in report.databases[Kind.SAME]] == ["stays"]
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
    assert notes(report)[3] == "Not measured at all on 1 of 28 days: 2025-02-10."


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
    write_report(report, path)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(5):
                write_report(report, path)
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


@pytest.mark.parametrize(
    ("change", "of", "shown"), [(1, 0, "unknown"), (0, 5, "0.0 %"), (5, 1000, "+0.5 %"), (-25, 10000, "-0.3 %")]
)
def test_shares_round_half_away_from_zero_and_from_nothing_there_is_none(change: int, of: int, shown: str) -> None:
    assert percent(change, of) == shown


def test_the_first_window_of_all_has_nothing_to_compare_with_and_says_unknown(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, MONTHLY.window_of(date(2025, 1, 1)))
    page = render(report)

    assert report.known_change_mb is None
    assert "<dt>Known change</dt><dd>unknown</dd>" in page
    assert Page(page).steps == {"start": 0, "grown": 0, "shrunk": 0, "new": 0, "gone": 0, "appeared": 268, "end": 268}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_can_be_read_without_colour_and_by_a_screen_reader(every_kind: Engine) -> None:
    page = render(read_report(every_kind, MONTHLY, FEBRUARY))

    texts = {
        colour if len(colour) == 7 else f"#{''.join(2 * digit for digit in colour[1:])}"
        for colour in re.findall(r"[ {;]color: (#[0-9a-f]{3,6})", page)
    }
    assert len(texts) >= 3
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in texts), "contrast on white"
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
