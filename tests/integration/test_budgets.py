"""Budgets: prices times the forecasts of groups, lines that add up to the fleet, and what they say of themselves."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.forecast.issuing import issue
from capacity_assets.ownership.budgets import GroupForecast, shared_out, spread
from tests.bills import fill_two_months_to_bill
from tests.clocks import TODAY
from tests.command import capacity, printed
from tests.computing import compute_windows

GIB = 1024
sizes = st.integers(0, 10**6).map(lambda value: Fraction(value, 7))


def filled(engine: Engine, service: AggregationService) -> None:
    """Two months of two teams: search grows, payments does not; May is billed at 0.50, later months cost more."""
    fill_two_months_to_bill(engine)
    with engine.begin() as connection:
        growing = (
            "UPDATE database_size_stats SET size_mb = size_mb + 100 * (collected_date - DATE '2025-05-01') "
            "WHERE database_name = 'a'"
        )
        connection.execute(text(growing))
    compute_windows(service, "daily", date(2025, 5, 1), TODAY)
    issue(engine, TODAY, TODAY)


def budget(*options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed("budget", "--json", *options))
    return found


def by_name(found: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    return {line["name"]: line for line in found["lines"]}


@pytest.mark.usefixtures("today")
def test_a_line_is_the_price_of_each_month_times_the_mean_forecast_of_its_days(
    engine: Engine, service: AggregationService
) -> None:
    filled(engine, service)
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("prices", "set", "0.80", "--currency", "EUR", "--from", "2025-08-16")
    printed("bill", "--month", "2025-05")

    found = budget("--months", "2")

    # A GiB costs 0.80 on 16 of the 31 days of August, and throughout September.
    prices = [(15 * Fraction(1, 2) + 16 * Fraction(4, 5)) / 31, Fraction(4, 5)]
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM capacity_group_forecasts WHERE grouped_by = 'team'")).all()
    stored = {row.group_name: row for row in rows}
    monthly = PERIODS["monthly"]
    months = [monthly.window_of(date(2025, 8, 1)), monthly.window_of(date(2025, 9, 1))]
    for name, line in by_name(found).items():
        row = stored[name]
        points = [
            (0, row.size_mb),
            (7, row.forecast_7_days_mb),
            (30, row.forecast_30_days_mb),
            (90, row.forecast_90_days_mb),
        ]
        expected = Fraction()
        for month, price in zip(months, prices, strict=True):
            days = [month.start + timedelta(days=number) for number in range(month.days)]
            each = [on_the_line(points, (day - row.last_day).days) for day in days]
            expected += sum(each, Fraction()) / month.days / GIB * price
        assert line["own_amount"] == f"{Decimal(round(expected * 10**6)).scaleb(-6):f}"
    assert stored["search"].change_mb_per_day == 100
    assert stored["payments"].change_mb_per_day == 0


def on_the_line(points: list[tuple[int, int]], days: int) -> Fraction:
    """The size after so many days, on the line between the two horizons around."""
    low, high = next((low, high) for low, high in pairwise(points) if days <= high[0])
    return low[1] + Fraction((high[1] - low[1]) * (days - low[0]), high[0] - low[0])


@pytest.mark.usefixtures("today")
@pytest.mark.parametrize("by", ["team", "engine", "environment"])
def test_lines_add_up_to_the_fleet_whatever_they_are_grouped_by(
    engine: Engine, service: AggregationService, by: str
) -> None:
    filled(engine, service)
    printed("prices", "set", "0.337", "--currency", "EUR", "--always")
    printed("bill", "--month", "2025-05")

    found = budget("--by", by)

    total = found["total"]
    assert sum(line["end_size_mb"] for line in found["lines"]) == total["end_size_mb"]
    assert sum(Decimal(line["amount"]) for line in found["lines"]) == Decimal(total["amount"])
    assert len(found["months"]) == 12
    for line in (*found["lines"], total):
        assert sum(map(Decimal, line["monthly_amounts"].values())) == Decimal(line["amount"])
        assert line["end_lower_mb"] <= line["end_size_mb"] <= line["end_upper_mb"]
        assert Decimal(line["lower_amount"]) <= Decimal(line["amount"]) <= Decimal(line["upper_amount"])
    # One GiB costs the same everywhere, so that the total does not depend on the grouping.
    assert total["amount"] == budget()["total"]["amount"]


@given(whole=sizes, groups=st.lists(st.tuples(sizes, sizes), min_size=1, max_size=6))
def test_the_difference_to_the_fleet_is_spread_without_a_rest(
    whole: Fraction, groups: list[tuple[Fraction, Fraction]]
) -> None:
    own, before = zip(*groups, strict=True)

    values = spread(whole, own, before)

    assert min(values) >= 0
    if any(own):
        assert sum(values) == whole
        assert sum(shared_out(round(whole), values)) == round(whole)
    changes = sum(own) - whole
    room = sum(one for one, then in groups if one != then)
    if changes <= room and own != before:
        still = [(value, one) for value, (one, then) in zip(values, groups, strict=True) if one == then]
        assert all(value == one for value, one in still), "what does not change keeps its size"


@given(ahead=st.integers(1, 400), ends=st.lists(st.integers(0, 500), min_size=5, max_size=5))
@example(ahead=350, ends=[300, 300, 300, 300, 5])  # 0 from the fifth day after the year on
def test_the_mean_of_a_month_is_exact_also_where_a_forecast_falls_to_nothing(ahead: int, ends: list[int]) -> None:
    month = PERIODS["monthly"].window_of(date(2025, 8, 1))
    points = dict(zip((0, 7, 30, 90, 365), ends, strict=True))
    group = GroupForecast("search", month.start - timedelta(days=ahead), points, None, None)

    days = [group.on(month.start + timedelta(days=number), points) for number in range(month.days)]

    assert group.mean(month, points) == sum(days, Fraction()) / month.days


@pytest.mark.usefixtures("today")
def test_without_a_forecast_a_bill_or_a_possible_grouping_the_command_says_what_to_do(
    engine: Engine, service: AggregationService
) -> None:
    none = capacity("budget")
    filled(engine, service)
    server = capacity("budget", "--by", "server")
    sized = printed("budget")

    assert (none.exit_code, server.exit_code) == (2, 2)
    assert "`capacity runway --issue`" in none.output
    assert "not by server" in server.output
    assert "No amounts: no price is declared. `capacity prices set` declares one." in sized
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    assert "No amounts: no bill of a whole month was issued yet. `capacity bill` issues it." in printed("budget")
    assert "search" in sized
