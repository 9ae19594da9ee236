"""What a growth report says of servers that were not measured, of windows that were published, and of what fills."""

from __future__ import annotations

import re
from datetime import date, timedelta
from html import escape
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import Window
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.reading import accuracy
from capacity_assets.reading.forecasts import ForecastDay, fills_first
from capacity_assets.reading.forecasts import issue_of as issue_of_day
from capacity_assets.report.page import (
    DRAWN_DAYS,
    forecast_charts,
    headline,
    issue_of,
    next_edition,
    notes,
    read_report,
    render,
    write_report,
)
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.report_pages import FEBRUARY, MONTHLY, months, server_with
from tests.runways import add_volume


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
        "Never measured: 1 active server (server-4).",
        "Not every server was measured on 1 of 59 days: 2025-02-22 (1 of 2).",
    ]
    [january] = [read_report(engine, MONTHLY, MONTHLY.window_of(date(2025, 1, 1)))]
    assert [one.server for one in january.missing] == ["server-4"], "server 2 had no sample yet"


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
    assert " had 100.0 GiB (known change: 0 MiB); it is 101.0 GiB (known change: 0 MiB). Since then: 56 s" in said
    assert said.endswith("of imported. The earlier page is kept as growth-issue-1.html.")
    assert escape(said) in path.read_text()
    assert (tmp_path / "growth-issue-1.html").read_text() == first
    issue = issue_of(path)
    assert issue is not None
    assert (issue.number, issue.end_mb) == (2, 103_424)
    assert publish(engine, path) == said, "repeated until the next issue"


def test_a_page_of_another_window_restates_nothing(engine: Engine, service: AggregationService, tmp_path: Path) -> None:
    server_with(engine, {"orders": [100] * 31 + [200] * 28})
    months(service, "2025-02-28")
    path = tmp_path / "growth.html"
    january = MONTHLY.window_of(date(2025, 1, 1))

    assert [publish(engine, path, window) for window in (january, FEBRUARY, january, FEBRUARY)] == [None] * 4
    assert list(tmp_path.iterdir()) == [path]

    # Each is restated separately, and neither replaces the kept issue of the other.
    for window, changes in ((january, ["unknown", "unknown"]), (FEBRUARY, ["+100 MiB", "+103 MiB"])):
        publish(engine, path, window)
        day = date(window.start.year, window.start.month, 5)
        with engine.begin() as connection:
            restate = text(
                "UPDATE instance_size_stats SET total_size_mb = total_size_mb + 1000 WHERE collected_date = :day"
            )
            connection.execute(restate, {"day": day})
        service.aggregate("monthly", [window])
        said = str(publish(engine, path, window))
        assert said.startswith("Issue 2. Issue 1, of ")
        assert re.findall(r"\(known change: ([^)]*)\)", said) == changes
    assert len(list(tmp_path.iterdir())) == 3


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


def test_totals_that_changed_otherwise_than_the_databases_are_noted_with_the_difference(
    engine: Engine, service: AggregationService
) -> None:
    server_with(engine, {"orders": [100_000] * 59})
    execute(engine, "UPDATE instance_size_stats SET total_size_mb = 94880 WHERE collected_date >= '2025-02-01'")
    months(service, "2025-02-28")

    assert notes(read_report(engine, MONTHLY, FEBRUARY)) == [
        "The totals of the servers and the sums of their databases changed by different amounts (difference: -5.0 "
        "GiB), because the two are measured separately. See the check levels_agree."
    ]


@pytest.fixture
def filling(engine: Engine, service: AggregationService) -> Engine:
    """`orders` grows by ten MiB per day and is full in March; the limit of `still` is not known."""
    add_instances(engine, [1])
    days = range(151)
    add_database_sizes(engine, sizes(1, "orders", "2024-10-01", [1024 + 10 * day for day in days]))
    add_database_sizes(engine, sizes(1, "still", "2024-10-01", [500] * 151))
    add_instance_sizes(engine, totals(1, "2024-10-01", [(1524 + 10 * day, 2) for day in days]))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))
    declare_limits(engine, [Limit("server-1", "orders", 2724)])
    return engine


def test_the_page_says_what_fills_first_when_how_sure_and_how_far_forecasts_were_off(
    filling: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (date(2025, 1, 29), date(2025, 2, 28)):
        issue_runways(filling, day, date(2025, 2, 28))

    too_few = render(read_report(filling, MONTHLY, FEBRUARY))
    monkeypatch.setattr(accuracy, "LEAST_CASES", 3)
    report = read_report(filling, MONTHLY, FEBRUARY)
    page = render(report)

    assert "3 forecasts over 30 days came due, too few to judge." in too_few
    assert "of the sizes were in the band" not in too_few
    issued = report.runways
    assert issued is not None
    [risk] = issued.fills_first
    assert (risk.display_name, risk.size_mb, risk.limit_mb) == ("orders", 2524, 2724)
    assert risk.ahead[1] == ForecastDay(date(2025, 3, 30), 2824, 2824, 2824)
    history = issued.histories[risk.key]
    assert (min(history.items()), max(history.items())) == ((date(2024, 10, 1), 1024), (date(2025, 2, 28), 2524))
    assert (issued.as_of, issued.unknown_limits, issued.headroom_mb) == (date(2025, 2, 28), 1, None)
    scores = [(score.horizon_days, score.forecasts, score.error_percent) for score in issued.scores]
    assert scores == [(7, 3, 0.0), (30, 3, 0.0)]
    section = page.split('id="fills-first"')[1].split("</section>")[0]
    assert "<td>orders</td>" in section
    assert [section.count(day) for day in ("2025-03-12", "2025-03-20", "2025-05-26")] == [1, 1, 1]
    assert "90 %, nearly certain" in section
    assert "own limit, declared" in section
    assert 'id="unknown-limits" data-databases="1"' in section
    assert "Of 3 forecasts over 30 days that came due, 100 % of the sizes were in the band and 0 % above it" in section
    assert "the mean error was 0.0 %. Computed in hindsight: 3." in section
    assert 'id="headroom"' not in page


def test_what_is_full_has_no_days_in_the_report(filling: Engine) -> None:
    declare_limits(filling, [Limit("server-1", "orders", 2000)])
    issue_runways(filling, date(2025, 2, 28), date(2025, 2, 28))

    page = render(read_report(filling, MONTHLY, FEBRUARY))

    assert "<td>full</td>" in page.split('id="fills-first"')[1].split("</section>")[0]


def test_the_dotted_line_of_a_chart_is_the_forecast_and_the_limit_has_the_middle_day_of_the_table(
    filling: Engine,
) -> None:
    """A volume that is purged every sixty days: no trend, but most weeks end higher than they began."""
    last = date(2025, 2, 28)
    total = 10_000 + 30 * (334 % 60) + 150
    for ago in range(300):
        add_volume(
            filling, 1, "/data", last - timedelta(days=ago), total, total - 10_000 - 30 * ((299 - ago + 35) % 60)
        )
    issue_runways(filling, last, last)
    issued = read_report(filling, MONTHLY, FEBRUARY).runways
    assert issued is not None

    chart = dict(forecast_charts(issued))["disk /data on server-1"]

    [risk] = [risk for risk in issued.fills_first if risk.subject == "volume"]
    assert risk.change_mb_per_day == 0
    [line] = re.findall(r'<polyline class="middle" points="([^"]+)"', chart)
    (first_x, first_y), *_, (_, last_y) = (tuple(map(float, point.split(","))) for point in line.split())
    assert first_y == last_y, "no change is forecast"
    [x] = re.findall(r'<circle class="fills" cx="([^"]+)%"', chart)
    drawn_days = (last - min(issued.histories[risk.key])).days + DRAWN_DAYS
    assert risk.full_middle is not None
    assert round((10 * float(x) - first_x) / 1000 * drawn_days) == (risk.full_middle - last).days > 0


def test_the_page_of_a_month_keeps_the_runways_that_were_issued_in_it(filling: Engine) -> None:
    before = read_report(filling, MONTHLY, FEBRUARY).runways
    issue_runways(filling, date(2025, 2, 27), date(2025, 2, 27))
    issue_runways(filling, date(2025, 3, 1), date(2025, 3, 1))

    after = read_report(filling, MONTHLY, FEBRUARY).runways

    assert before is None
    assert 'id="fills-first"' not in render(read_report(filling, MONTHLY, MONTHLY.window_of(date(2025, 1, 1))))
    assert after is not None
    assert after.as_of == date(2025, 2, 27)


def test_the_headroom_and_the_risks_of_a_servers_page_are_its_own(filling: Engine) -> None:
    add_instances(filling, [2])
    add_database_sizes(filling, sizes(2, "log", "2024-10-01", [100 + day for day in range(151)]))
    add_instance_sizes(filling, totals(2, "2024-10-01", [(100 + day, 1) for day in range(151)]))
    declare_limits(filling, [Limit("server-1", None, 5000), Limit("server-2", None, 300)])
    issue_runways(filling, date(2025, 2, 28), date(2025, 2, 28))

    fleet, one = (read_report(filling, MONTHLY, FEBRUARY, server).runways for server in (None, "server-2"))

    assert fleet is not None
    assert one is not None
    assert (fleet.headroom_mb, one.headroom_mb) == (5000 - 3024 + 50, 50)
    assert [risk.server for risk in fleet.fills_first] == ["server-1", "server-2", "server-1"]
    assert [risk.display_name for risk in one.fills_first] == ["whole server"]


def test_the_page_the_report_and_the_metadata_of_a_day_list_what_fills_first_in_one_order(filling: Engine) -> None:
    """A later date may have the greater risk of the next days."""
    add_instances(filling, [2])
    add_database_sizes(filling, sizes(2, "log", "2024-10-01", [100 + day for day in range(151)]))
    declare_limits(filling, [Limit("server-2", "log", 300)])
    last = date(2025, 2, 28)
    issue_runways(filling, last, last)
    execute(filling, "UPDATE capacity_runways SET probability_30 = 0.99 WHERE name = 'log'")

    report, stored = read_report(filling, MONTHLY, FEBRUARY).runways, issue_of_day(filling, last, last, dated=10)
    with filling.connect() as connection:
        listed = [one.name for one in fills_first(connection, last, shown=10)]

    assert report is not None
    assert stored is not None
    assert [one.name for one in stored.risks] == ["log", "orders"]
    assert [one.name for one in report.fills_first] == [one.name for one in stored.fills_first] == listed
    assert listed == ["orders", "log"]
