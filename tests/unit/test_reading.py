"""What a computation reads: stored shorter windows, the days that none of these covers, and of others their rows."""

from __future__ import annotations

from datetime import date

import pytest

from capacity_assets.aggregates.levels import DATABASE, GROUP, Level
from capacity_assets.aggregates.runs import AggregationWork, InstanceRef, StoredWindow, shorter_periods
from capacity_assets.base.periods import PERIODS, Period, Window

APRIL = date(2025, 4, 1)
MONTHS = ["2025-04", "2025-05", "2025-06"]


def stored(period: str, *months: str) -> list[StoredWindow]:
    return [(period, PERIODS[period].window_of(date.fromisoformat(f"{month}-01"))) for month in months]


def work(period: str, usable: list[StoredWindow], level: Level = DATABASE) -> AggregationWork:
    chosen = PERIODS[period]
    shorter = shorter_periods(PERIODS, chosen, level)
    return AggregationWork(chosen, [chosen.window_of(APRIL)], [InstanceRef(1, "db-1")], shorter=shorter, usable=usable)


def spans(*days: str) -> list[Window]:
    return [Window(*(date.fromisoformat(day) for day in span.split(" to "))) for span in days]


@pytest.mark.parametrize(
    ("period", "usable", "parts", "days"),
    [
        # Nothing is vouched for: the days of the window, of the one before and of a year before.
        ("monthly", [], [], ["2024-04-01 to 2024-04-30", "2025-03-01 to 2025-04-30"]),
        # The others are read from their rows, which are no parts.
        ("monthly", stored("monthly", "2024-04", "2025-03"), [], ["2025-04-01 to 2025-04-30"]),
        # Its own row is read if only a window that it compares with has changed.
        ("monthly", stored("monthly", "2024-04", "2025-03", "2025-04"), stored("monthly", "2025-04"), []),
        (
            "quarterly",
            stored("monthly", *MONTHS, "2025-02"),
            stored("monthly", "2025-02", *MONTHS),
            ["2024-04-01 to 2024-06-30", "2025-01-01 to 2025-01-31", "2025-03-01 to 2025-03-31"],
        ),
        (
            "quarterly",
            stored("monthly", "2025-04") + stored("quarterly", "2025-01", "2024-04"),
            stored("monthly", "2025-04"),
            ["2025-05-01 to 2025-06-30"],
        ),
        # The window before a year is that of a year before.
        ("yearly", stored("yearly", "2024-01"), [], ["2025-01-01 to 2025-12-31"]),
    ],
)
def test_of_a_window_its_stored_parts_are_read_and_of_the_others_their_rows(
    period: str, usable: list[StoredWindow], parts: list[StoredWindow], days: list[str]
) -> None:
    assert work(period, usable).inputs == (parts, spans(*days))


def test_days_are_named_by_their_cuts() -> None:
    parameters = work("monthly", stored("monthly", "2024-04", "2025-03")).parameters()

    assert parameters["cuts"] == [APRIL, date(2025, 5, 1)]
    assert (parameters["read_year_first"], parameters["read_year_last"]) == (date(2025, 3, 1), date(2025, 2, 28))


@pytest.mark.parametrize("period", ["weekly", "monthly", "quarterly", "yearly"])
def test_stored_days_of_groups_are_read_where_no_longer_window_is_stored(period: str) -> None:
    usable = stored("daily", "2025-04") + stored("monthly", "2025-05") + stored("daily", "2025-05")

    parts, days = work(period, usable, GROUP).inputs

    assert ("daily", Window(APRIL, APRIL)) in parts
    assert (("monthly", PERIODS["monthly"].window_of(date(2025, 5, 1))) in parts) == (period in ("quarterly", "yearly"))
    assert stored("daily", "2025-05")[0] not in parts
    assert not any(span.start <= APRIL <= span.end for span in days)
    assert work(period, usable).inputs[1] != days


def test_a_day_is_made_of_its_samples_also_where_a_period_of_days_has_another_name() -> None:
    periods = {"nightly": Period("nightly", days=1), "monthly": PERIODS["monthly"]}

    assert [one.name for one in shorter_periods(periods, periods["monthly"], GROUP)] == ["nightly"]
    assert shorter_periods(periods, periods["nightly"], GROUP) == []
    assert shorter_periods({"monthly": periods["monthly"]}, periods["monthly"], GROUP) == []
