"""Totals of the growth report: they depend neither on what a database is called nor on how long a copy lived."""

from __future__ import annotations

import re
from datetime import date
from html import unescape

from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.reading.changes import ChangeKind
from capacity_assets.reading.coverage import measured_days
from capacity_assets.reading.movers import window_sizes
from capacity_assets.report.data import read_report
from capacity_assets.report.page import footer_query, notes, render
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_instance_sizes, add_instances, load_sample, totals
from tests.profiles import generated
from tests.report_pages import FEBRUARY, MONTHLY, adds_up, months, server_with


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
    histories = generated(st.tuples(DATABASES, RENAMED_ON))
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
