"""Budgets: prices times the forecasts of groups, the sum of their lines, and what they say of themselves."""

from __future__ import annotations

import json
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.units import human_day
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.scenarios import Growth, Scenario
from capacity_assets.ownership.budgets import SCALE, daily_sizes
from capacity_assets.ownership.scenario_results import result_of
from tests.bills import fill_two_months_to_bill
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

GIB = 1024


def fill_two_teams(engine: Engine) -> None:
    """Two months of two teams: search grows, payments does not; May is billed at 0.50, later months cost more."""
    fill_two_months_to_bill(engine)
    with engine.begin() as connection:
        growing = (
            "UPDATE database_size_stats SET size_mb = size_mb + 100 * (collected_date - DATE '2025-05-01') "
            "WHERE database_name = 'a'"
        )
        connection.execute(text(growing))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", date(2025, 5, 1), TODAY)
    issue_runways(engine, TODAY, TODAY)


PREPARED = {"two_teams": fill_two_teams}


@pytest.fixture
def two_teams(today: None, engine: Engine) -> None:
    """Two teams with a forecast of today; copied."""


def budget(*options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed("budget", "--json", *options))
    return found


def by_name(found: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    return {line["name"]: line for line in found["lines"]}


@pytest.mark.usefixtures("two_teams")
def test_a_line_is_the_price_of_each_month_times_the_mean_forecast_of_its_days(engine: Engine) -> None:
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
        for month, price in zip(months, prices, strict=True):
            days = [month.start + timedelta(days=number) for number in range(month.days)]
            each = [on_the_line(points, (day - row.last_day).days) for day in days]
            exact = sum(each, Fraction()) / month.days / GIB * price
            assert line["monthly_amounts"][f"{month.start:%Y-%m}"] == f"{Decimal(rounded(exact * 100)).scaleb(-2):f}"
        end = on_the_line(points, (months[-1].end - row.last_day).days)
        assert (line["size_mb"], line["end_size_mb"]) == (row.size_mb, rounded(end))
    assert set(by_name(found)) == {"search", "payments"}
    assert stored["search"].change_mb_per_day == 100
    assert stored["payments"].change_mb_per_day == 0


def rounded(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def on_the_line(points: list[tuple[int, int]], days: int) -> Fraction:
    """The size after so many days, on the line between the two horizons around."""
    lines = list(pairwise(points))
    low, high = next((line for line in lines if days <= line[1][0]), lines[-1])
    return low[1] + Fraction((high[1] - low[1]) * (days - low[0]), high[0] - low[0])


@pytest.mark.usefixtures("two_teams")
@pytest.mark.parametrize("by", ["team", "engine", "environment"])
def test_the_total_is_the_sum_of_the_lines_whatever_they_are_grouped_by(engine: Engine, by: str) -> None:
    printed("prices", "set", "0.337", "--currency", "EUR", "--always")
    printed("bill", "--month", "2025-05")

    found = budget("--group-by", by)

    total = found["total"]
    with engine.connect() as connection:
        fleet = connection.execute(text("SELECT size_mb FROM capacity_group_forecasts WHERE grouped_by = '(fleet)'"))
        assert total["size_mb"] == fleet.scalar()
    for name in ("size_mb", "end_size_mb"):
        assert sum(line[name] for line in found["lines"]) == total[name]
    assert sum(Decimal(line["amount"]) for line in found["lines"]) == Decimal(total["amount"])
    assert len(found["months"]) == 12
    for line in found["lines"]:
        assert line["end_lower_mb"] <= line["end_size_mb"] <= line["end_upper_mb"]
        assert Decimal(line["lower_amount"]) <= Decimal(line["amount"]) <= Decimal(line["upper_amount"])
    for line in (*found["lines"], total):
        assert sum(map(Decimal, line["monthly_amounts"].values())) == Decimal(line["amount"])


@pytest.mark.usefixtures("two_teams")
def test_the_growth_of_a_team_counts_also_where_the_fleet_as_a_whole_stays_as_it_is(engine: Engine) -> None:
    stays = ", ".join(f"forecast_{days}_mb = size_mb" for days in (7, 30, 90, 365))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE capacity_runways SET {stays} WHERE name = '(fleet)=(fleet)'"))

    found = budget()

    line = by_name(found)["search"]
    assert line["end_size_mb"] > line["size_mb"] + 100 * 300
    assert found["total"]["end_size_mb"] == sum(one["end_size_mb"] for one in found["lines"])
    assert found["total"]["fleet_end_size_mb"] == found["total"]["size_mb"]
    said = " ".join(printed("budget").split())
    assert "The forecast of the fleet as a whole is 45.8 GiB (" in said
    assert "); those of the groups add up to 82.5 GiB. Each is made from its own history." in said


@pytest.mark.usefixtures("two_teams")
def test_a_label_reaches_budgets_at_once_and_what_another_one_took_over_counts_once(
    engine: Engine, tmp_path: Path
) -> None:
    of_databases = text("SELECT count(*), max(issued_at) FROM capacity_runways WHERE subject <> 'group'")
    with engine.connect() as connection:
        issued = connection.execute(of_databases).one()
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("budgets", "set", "team=shop", "500", "--month", "2025-08")
    assert "Budgets of groups without a forecast, in no total: shop (500.00) EUR." in printed("budget")

    printed("bill", "--month", "2025-05")

    said = printed("labels", "set", "server-2", "team=shop", "--from", "2025-07-10", "--now")
    before = budget()
    note = "Priced at the mean of the fleet, because they are not in the bill of May 2025: shop."
    file = tmp_path / "growth.toml"
    file.write_text("[[growth]]\nfactor = 1.1\n")
    assert note in printed("budget")
    assert note in printed("scenario", str(file))
    printed("labels", "set", "server-1", "team=shop", "--from", "2025-07-10", "--now")

    assert "Forecasts of groups updated." in said
    assert by_name(before)["shop"]["budget"] == "500.00"
    with engine.connect() as connection:
        assert connection.execute(of_databases).one() == issued, "those of databases stay"
    assert set(by_name(before)) == {"search", "payments", "shop"}
    assert set(by_name(budget())) == {"payments", "shop"}
    assert budget()["total"]["size_mb"] == before["total"]["size_mb"]


@pytest.mark.usefixtures("two_teams")
def test_a_budget_names_a_group_that_is_younger_than_the_last_complete_day_of_the_fleet(
    engine: Engine, service: AggregationService
) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    execute(engine, f"DELETE FROM database_size_stats WHERE instance_id = 1 AND collected_date = '{TODAY}'")
    execute(engine, f"DELETE FROM instance_size_stats WHERE instance_id = 1 AND collected_date = '{TODAY}'")
    compute_windows(service, "daily", TODAY, TODAY)
    issue_runways(engine, TODAY, TODAY)
    before = budget()

    printed("labels", "set", "server-2", "team=shop", "--now")

    after = budget()
    assert after["younger_mb"] == {"shop": 6 * GIB}
    faster = Scenario(growth=[Growth(factor=Decimal(2), label=("team", "shop"))])
    found = result_of(engine, TODAY, faster, "team", ("team",))
    assert {one.name for one in found.budget} == set(by_name(after)), "what it adds is in the group of that day"
    assert set(by_name(after)) == set(by_name(before)) == {"search", "payments"}
    said = " ".join(printed("budget").split())
    assert "Without a line yet: shop (6.0 GiB). These groups began after " in said


@pytest.mark.usefixtures("settings", "today")
def test_the_command_knows_no_size_ahead_of_a_group_with_too_little_history(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, TODAY.isoformat(), [(413, 1)]))
    add_database_sizes(engine, sizes(1, "orders", TODAY.isoformat(), [413]))
    compute_windows(service, "daily", TODAY, TODAY)
    issue_runways(engine, TODAY, TODAY)

    lines = [line.split() for line in printed("budget", "--group-by", "engine").splitlines()]

    assert [line[:4] for line in lines if "unknown" in line] == [
        ["postgresql", "413", "MiB", "unknown"],
        ["Total", "413", "MiB", "unknown"],
    ]


@given(ends=st.lists(st.integers(0, 500), min_size=5, max_size=5), days=st.integers(0, 460))
@example(ends=[300, 300, 300, 300, 5], days=372)  # 0 from the fifth day after the year on
def test_the_sizes_of_days_lie_on_the_lines_between_horizons_and_never_below_zero(ends: list[int], days: int) -> None:
    points = list(zip((0, 7, 30, 90, 365), ends, strict=True))

    sizes = [Fraction(size, SCALE) for size in daily_sizes(dict(points), days)]

    assert sizes == [max(on_the_line(points, day), Fraction()) for day in range(days + 1)]


@pytest.mark.usefixtures("today")
def test_without_a_forecast_the_command_says_how_to_issue_one() -> None:
    none = capacity("budget")

    assert none.exit_code == 2
    assert "`capacity runway --issue`" in none.output


@pytest.mark.usefixtures("two_teams")
def test_without_a_bill_or_a_possible_grouping_the_command_says_what_to_do(engine: Engine) -> None:
    server = capacity("budget", "--by", "server")
    sized = printed("budget")

    assert server.exit_code == 2
    assert "not by server" in server.output
    assert "No amounts: no price is declared. `capacity prices set` declares one." in sized
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    issues = "`capacity bill --month 2025-06` issues it."
    assert f"No amounts: no bill of a whole month was issued yet. {issues}" in printed("budget")
    assert "search" in sized
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-07-01'"))
    assert "No amounts: the first bill, that of July 2025, can be issued from 1 Aug 2025 on." in printed("budget")
    begins = "Samples begin on 1 Jul 2025: `capacity bill --month 2025-07` bills that month."
    assert begins in " ".join(capacity("bill").output.split())


@pytest.mark.usefixtures("two_teams")
@pytest.mark.parametrize("days", [500, 372, 40])
def test_a_budget_of_a_clock_that_is_behind_the_forecasts_says_so(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    wrong = TODAY - timedelta(days=days)
    monkeypatch.setattr(Clock, "today", lambda _self: wrong)

    refused = capacity("budget")

    assert refused.exit_code == 2
    said = f"up to 20 Jul 2025, but the clock of this machine says {human_day(wrong)}. Check this clock."
    assert said in " ".join(refused.output.split())
