"""The calendar: windows tile it, weeks begin on Monday, year ends and leap days are where they belong."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity_assets.base.periods import (
    PERIODS,
    Clock,
    Period,
    Window,
    adjacent_spans,
    human_days,
    in_order,
    with_trend_threshold,
)
from tests import oracle

DAYS = st.dates(date(1999, 1, 1), date(2101, 12, 31))
EXTRA = [Period("half_yearly", months=6), Period("fiscal_quarterly", months=3, first_month=2)]
ALL_PERIODS = [*PERIODS.values(), *EXTRA, Period("fiscal_yearly", months=12, first_month=4)]


@given(st.sampled_from(ALL_PERIODS), DAYS)
def test_windows_tile_the_calendar_without_gap_or_overlap(period: Period, day: date) -> None:
    window = period.window_of(day)

    assert window.start <= day <= window.end
    assert period.window_of(window.start) == period.window_of(window.end) == window
    assert period.previous(window).end + timedelta(days=1) == window.start
    assert period.following(window).start - timedelta(days=1) == window.end
    assert period.previous(period.following(window)) == window


@given(st.sampled_from(list(PERIODS)), DAYS)
def test_windows_agree_with_a_calendar_written_another_way(name: str, day: date) -> None:
    window = PERIODS[name].window_of(day)

    assert (window.start, window.end) == oracle.window(name, day)


@pytest.mark.parametrize(
    ("period", "day", "start", "end"),
    [
        ("weekly", "2024-12-31", "2024-12-30", "2025-01-05"),
        ("weekly", "2025-01-05", "2024-12-30", "2025-01-05"),
        ("weekly", "2025-01-06", "2025-01-06", "2025-01-12"),
        ("monthly", "2024-02-29", "2024-02-01", "2024-02-29"),
        ("monthly", "2100-02-28", "2100-02-01", "2100-02-28"),
        ("quarterly", "2024-12-31", "2024-10-01", "2024-12-31"),
        ("quarterly", "2025-01-01", "2025-01-01", "2025-03-31"),
        ("yearly", "2024-02-29", "2024-01-01", "2024-12-31"),
    ],
)
def test_year_ends_and_leap_days(period: str, day: str, start: str, end: str) -> None:
    window = PERIODS[period].window_of(date.fromisoformat(day))

    assert (window.start.isoformat(), window.end.isoformat()) == (start, end)


@given(st.sampled_from(ALL_PERIODS), DAYS)
def test_the_window_of_a_year_before_is_the_same_stretch_of_the_year(period: Period, day: date) -> None:
    window = period.window_of(day)
    before = period.year_before(window)

    assert period.window_of(before.start) == before
    assert before.end < window.start
    assert abs((window.start - before.start).days - 365) <= 1
    if not period.days:
        assert (before.start.month, before.end.month) == (window.start.month, window.end.month)


@pytest.mark.parametrize(
    ("period", "start", "before"),
    [
        ("daily", "2025-03-01", "2024-03-01"),
        ("daily", "2024-02-29", "2023-02-28"),
        ("weekly", "2025-01-06", "2024-01-08"),
        ("monthly", "2024-02-01", "2023-02-01"),
        ("quarterly", "2025-01-01", "2024-01-01"),
        ("yearly", "2025-01-01", "2024-01-01"),
    ],
)
def test_a_year_before_a_leap_day_and_a_week(period: str, start: str, before: str) -> None:
    chosen = PERIODS[period]

    assert chosen.year_before(chosen.window_of(date.fromisoformat(start))).start == date.fromisoformat(before)


def test_fiscal_calendars_are_one_entry() -> None:
    fiscal_year = Period("fiscal_yearly", months=12, first_month=4)
    fiscal_quarter = Period("fiscal_quarterly", months=3, first_month=2)

    assert fiscal_year.window_of(date(2025, 3, 31)) == Window(date(2024, 4, 1), date(2025, 3, 31))
    assert fiscal_quarter.window_of(date(2025, 1, 15)) == Window(date(2024, 11, 1), date(2025, 1, 31))
    assert (fiscal_year.cron, fiscal_quarter.cron) == ("0 0 1 4 *", "0 0 1 2,5,8,11 *")


def test_cron_expressions_of_the_registry() -> None:
    assert {name: period.cron for name, period in PERIODS.items()} == {
        "daily": "0 0 * * *",
        "weekly": "0 0 * * 1",
        "monthly": "0 0 1 * *",
        "quarterly": "0 0 1 1,4,7,10 *",
        "yearly": "0 0 1 1 *",
    }


def test_regular_work_takes_the_current_day_and_the_last_complete_window_of_the_rest() -> None:
    today = date(2025, 1, 1)

    assert {name: period.scheduled(today).start.isoformat() for name, period in PERIODS.items()} == {
        "daily": "2025-01-01",
        "weekly": "2024-12-23",
        "monthly": "2024-12-01",
        "quarterly": "2024-10-01",
        "yearly": "2024-01-01",
    }


def test_half_past_midnight_is_already_today_in_the_zone_while_utc_is_still_yesterday() -> None:
    at_half_past = datetime(2024, 12, 31, 16, 30, tzinfo=UTC)
    clock = Clock(ZoneInfo("Asia/Shanghai"), now=lambda: at_half_past)

    assert clock.today() == date(2025, 1, 1)
    assert PERIODS["yearly"].current(clock.today()).key == "2025-01-01"
    assert Clock(ZoneInfo("America/New_York"), now=lambda: at_half_past).today() == date(2024, 12, 31)


def test_windows_between_covers_whole_windows_at_both_ends() -> None:
    windows = PERIODS["monthly"].windows_between(date(2024, 12, 31), date(2025, 2, 1))

    assert [window.key for window in windows] == ["2024-12-01", "2025-01-01", "2025-02-01"]
    with pytest.raises(ValueError, match="is after"):
        PERIODS["monthly"].windows_between(date(2025, 2, 2), date(2025, 2, 1))


def test_windows_asked_for_out_of_order_twice_or_with_holes_are_sorted_and_split_into_spans() -> None:
    week = PERIODS["weekly"]
    first, second, third, fourth = week.windows_between(date(2025, 1, 6), date(2025, 2, 2))

    ordered = in_order(week, [fourth, second, first, second])

    assert ordered == [first, second, fourth]
    assert adjacent_spans(ordered) == [[first, second], [fourth]]
    with pytest.raises(ValueError, match="is not a weekly window"):
        in_order(week, [third, Window(date(2025, 1, 1), date(2025, 1, 7))])


@pytest.mark.parametrize("name", ["a_name_of_more_than_twenty", "two words", "Daily", "it's", ""])
def test_a_name_that_does_not_fit_the_column_or_the_asset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case identifier of at most 20"):
        Period(name, days=1)


@pytest.mark.parametrize(
    "wrong", [{}, {"days": 2}, {"days": 1, "months": 1}, {"months": 5}, {"months": 3, "first_month": 13}]
)
def test_a_rule_that_does_not_cut_the_calendar_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="period 'odd'"):
        Period("odd", **wrong)


def test_the_trend_threshold_is_the_windows_share_of_a_year_unless_one_is_set_for_all() -> None:
    assert {name: str(period.trend_percent) for name, period in PERIODS.items()} == {
        "daily": "0.05",
        "weekly": "0.38",
        "monthly": "1.67",
        "quarterly": "5.00",
        "yearly": "20.00",
    }
    assert {period.trend_percent for period in with_trend_threshold(PERIODS, Decimal(5)).values()} == {Decimal(5)}


@pytest.mark.parametrize(
    ("period", "day", "name", "label"),
    [
        ("daily", date(2026, 10, 5), "5 Oct 2026", "5 Oct 2026"),
        ("weekly", date(2026, 10, 5), "5 to 11 Oct 2026", "5 Oct 2026"),
        ("monthly", date(2026, 10, 5), "October 2026", "Oct 2026"),
        ("quarterly", date(2026, 1, 1), "Q1 2026", "Q1 2026"),
        ("quarterly", date(2026, 12, 31), "Q4 2026", "Q4 2026"),
        ("yearly", date(2026, 7, 1), "2026", "2026"),
    ],
)
def test_windows_are_named_as_people_do(period: str, day: date, name: str, label: str) -> None:
    window = PERIODS[period].window_of(day)

    assert PERIODS[period].name_of(window) == name
    assert PERIODS[period].label_of(window) == label


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (date(2026, 11, 28), date(2026, 11, 28), "28 Nov 2026"),
        (date(2026, 11, 23), date(2026, 11, 29), "23 to 29 Nov 2026"),
        (date(2026, 11, 28), date(2026, 12, 4), "28 Nov to 4 Dec 2026"),
        (date(2026, 12, 28), date(2027, 1, 3), "28 Dec 2026 to 3 Jan 2027"),
        (date(2026, 11, 28), date(2027, 11, 28), "28 Nov 2026 to 28 Nov 2027"),
    ],
)
def test_a_range_of_days_says_once_what_both_ends_share(first: date, last: date, said: str) -> None:
    assert human_days(first, last) == said


def test_windows_of_a_fiscal_calendar_are_named_by_their_days() -> None:
    fiscal = Period("fiscal_quarterly", months=3, first_month=2)
    half = Period("half_yearly", months=6)

    assert fiscal.name_of(fiscal.window_of(date(2026, 3, 1))) == "1 Feb to 30 Apr 2026"
    assert fiscal.label_of(fiscal.window_of(date(2026, 3, 1))) == "Feb 2026"
    assert half.label_of(half.window_of(date(2026, 3, 1))) == "Jan 2026"


def test_a_window_is_called_by_the_noun_of_its_period() -> None:
    assert [period.noun for period in PERIODS.values()] == ["day", "week", "month", "quarter", "year"]
    assert Period("tax_year", months=12, first_month=4).noun == "tax_year"
