"""Declared budgets: what a month costs is held against them, by group and in all, wherever a bill is shown."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import DEFAULT_LABEL_KEYS
from capacity_assets.database.tables import ALWAYS
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.ownership.bills import issue_bill
from capacity_assets.ownership.prices import Price, declare_prices
from tests.bills import fill_two_months_to_bill
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.pages import served_pages


def fill_with_prices(engine: Engine) -> None:
    """In June, payments costs 15.00 and search 13.50; so far in July 9.68 and 8.71, which projects to the same."""
    fill_two_months_to_bill(engine)
    declare_prices(engine, [Price(Decimal("0.75"), "EUR", valid_from=ALWAYS)], TODAY)
    issue_bill(engine, PERIODS["monthly"].window_of(date(2025, 5, 1)), fixed_clock(), DEFAULT_LABEL_KEYS)


PREPARED = {"two_months": fill_with_prices}


@pytest.fixture(autouse=True)
def two_months(today: None, engine: Engine) -> None:
    """Two months with prices, the first billed; copied."""


def bill(month: str = "2025-06") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed("bill", "--month", month, "--by", "team", "--json"))
    return found


def budgets_of(found: dict[str, Any]) -> dict[str | None, tuple[str | None, str | None]]:
    groups = [*found["groups"], *found["former_groups"]]
    return {group["name"]: (group["budget"], group["budget_difference"]) for group in groups}


def test_a_bill_is_held_against_the_budget_of_each_group_and_the_differences_add_up() -> None:
    said = printed("budgets", "set", "team=payments", "14", "--month", "2025-06")
    assert said == "team=payments: 14.00 EUR for June 2025.\n"
    said = printed("budgets", "set", "team=shop", "5", "--month", "2025-06")
    assert "note: Nothing has the label team=shop." in said
    assert "Undo: `capacity budgets remove team=shop --month 2025-06`." in said

    found, shown = bill(), " ".join(printed("bill", "--month", "2025-06").split())

    assert budgets_of(found) == {"payments": ("14.00", "1.00"), "search": (None, None), "shop": ("5.00", "-5.00")}
    assert (found["total"]["budget"], found["total"]["budget_difference"]) == ("19.00", "-4.00")
    assert [one["amount"] for one in found["former_groups"]] == ["0.00"], "nothing of it was measured"
    assert "payments 1 20.0 0.75 15.00 0.00 14.00 +1.00" in shown
    assert "search 2 18.0 0.75 13.50 +3.00 \N{EN DASH} \N{EN DASH}" in shown
    assert "Total 3 38.0 0.75 28.50 +3.00 19.00 -4.00" in shown
    assert "Without a budget: search, 13.50 EUR." in shown


def test_a_running_month_is_held_against_the_budget_by_its_projection() -> None:
    printed("budgets", "set", "team=payments", "14", "--month", "2025-07", "--currency", "EUR")

    found, shown = bill("2025-07"), " ".join(printed("bill", "--month", "2025-07").split())

    [payments] = [group for group in found["groups"] if group["name"] == "payments"]
    assert (payments["amount"], payments["projected_amount"]) == ("9.68", "15.00")
    assert (payments["budget"], payments["budget_difference"]) == ("14.00", "1.00")
    assert "payments 1 12.9 0.75 9.68 15.00 14.00 +1.00" in shown
    assert "The budget is compared with the projected amount." in shown


def test_files_and_pages_have_the_budget_too(service: AggregationService, database: URL, tmp_path: Path) -> None:
    compute_windows(service, "monthly", date(2025, 5, 1), date(2025, 6, 30))
    printed("budgets", "set", "team=payments", "16", "--month", "2025-06")
    for ending in ("csv", "html"):
        printed("bill", "--month", "2025-06", "--output", str(tmp_path / f"bill.{ending}"))

    rows = {row["group"]: row for row in csv.DictReader(io.StringIO((tmp_path / "bill.csv").read_text()))}
    assert (rows["payments"]["budget"], rows["payments"]["budget_difference"]) == ("16.00", "-1.00")
    assert (rows["search"]["budget"], rows["search"]["budget_difference"]) == ("", "")
    assert '<td class="number">16.00</td><td class="number">-1.00</td>' in (tmp_path / "bill.html").read_text()
    with served_pages(database) as pages:
        document, page = pages.document("/bill?by=team"), pages.ask("/bill?by=team").text
        assert document["total"]["budget_difference"] == "-1.00"
        assert '<td class="number wide">16.00</td>' in page
        assert '<td class="number">-1.00</td>' in page
        assert '<dt>Budget of groups that have one</dt><dd>16.00 <span class="unit">EUR</span></dd>' in page
        assert '>1.00 under. Groups without a budget: 13.50 <span class="unit">EUR</span></dd>' in page
        sheet = csv.DictReader(io.StringIO(pages.ask("/bill?by=team&format=csv").text.removeprefix("\ufeff")))
        assert {row["name"]: row["budget"] for row in sheet} == {"payments": "16.00", "search": ""}
        assert "budget 16.00, 1.00 under" in pages.ask("/group?by=team&name=payments").text
        assert "<dt>Budget" not in pages.ask("/bill?by=engine").text, "none is declared by engine"
        printed("budgets", "set", "team=search", "12.50", "--month", "2025-06")
        page = pages.ask("/bill?by=team&month=2025-06").text
        assert '<dt>Budget</dt><dd>28.50 <span class="unit">EUR</span></dd>' in page
        assert ">as planned</dd>" in page


def test_budgets_of_several_months_are_listed_changed_and_removed() -> None:
    printed("budgets", "set", "team=payments", "14", "--month", "2025-08", "--months", "3", "--by", "finance")
    assert "team=payments: 15.50 EUR for October 2025, 14.00 before." in printed(
        "budgets", "set", "team=payments", "15.5", "--month", "2025-10"
    )

    listed = json.loads(printed("budgets", "list", "--json"))

    assert [(one["group"], one["month"], one["amount"]) for one in listed] == [
        ("team=payments", "2025-08-01", "14.00"),
        ("team=payments", "2025-09-01", "14.00"),
        ("team=payments", "2025-10-01", "15.50"),
    ]
    assert listed[0]["declared_by"] == "finance"
    assert "2 budgets of team=payments removed" in printed(
        "budgets", "remove", "team=payments", "--month", "2025-09", "--months", "2"
    )
    assert len(json.loads(printed("budgets", "list", "--json"))) == 1
    none = capacity("budgets", "remove", "team=payments", "--month", "2025-09")
    assert (none.exit_code, "There is no budget of team=payments for September 2025." in none.output) == (2, True)


def test_budgets_come_from_a_file_or_from_the_forecast(
    engine: Engine, service: AggregationService, tmp_path: Path
) -> None:
    file = tmp_path / "budgets.csv"
    file.write_text("group,month,amount\nteam=payments,2025-06,14\nteam=,2025-06,0.5\nengine=postgresql,2025-06,30\n")
    assert "3 budgets declared" in printed("budgets", "import", str(file))
    assert budgets_of(bill())["payments"] == ("14.00", "1.00")
    assert budgets_of(bill())[None] == ("0.50", "-0.50")
    compute_windows(service, "daily", date(2025, 5, 1), TODAY)
    issue_runways(engine, TODAY, TODAY)
    bill()
    forecast = json.loads(printed("budget", "--months", "2", "--json"))

    assert "4 budgets declared" in printed("budgets", "adopt", "--months", "2")

    listed = json.loads(printed("budgets", "list", "--json"))
    adopted = {(one["group"], one["month"][:7]): one["amount"] for one in listed}
    for line in forecast["lines"]:
        for month, amount in line["monthly_amounts"].items():
            assert adopted[f"team={line['name']}", month] == amount


def test_the_forecast_is_held_against_the_budget_of_each_group_and_month(
    engine: Engine, service: AggregationService, database: URL, tmp_path: Path
) -> None:
    bill()
    compute_windows(service, "daily", date(2025, 5, 1), TODAY)
    issue_runways(engine, TODAY, TODAY)
    printed("budgets", "set", "team=payments", "14", "--month", "2025-08", "--months", "2")
    printed("budgets", "set", "team=search", "20", "--month", "2025-09")
    printed("budgets", "set", "team=shop", "5", "--month", "2025-09")
    printed("budgets", "set", "team=search", "99", "--month", "2026-01")

    found = json.loads(printed("budget", "--months", "3", "--json"))

    lines = {line["name"]: line for line in found["lines"]}
    assert lines["payments"]["monthly_budgets"] == {"2025-08": "14.00", "2025-09": "14.00"}
    assert lines["payments"]["monthly_budget_differences"] == {"2025-08": "1.00", "2025-09": "1.00"}
    assert (lines["payments"]["budget"], lines["payments"]["budget_difference"]) == ("28.00", "2.00")
    assert lines["search"]["monthly_budget_differences"] == {"2025-09": "-6.50"}
    assert found["total"]["monthly_budget_differences"] == {"2025-08": "1.00", "2025-09": "-5.50"}
    assert (found["total"]["budget"], found["total"]["budget_difference"]) == ("48.00", "-4.50")
    assert found["budgets_without_line"] == {"shop": "5.00"}
    shown = " ".join(printed("budget", "--months", "3").split())
    assert "Over budget by month Team 2025-08 2025-09 2025-10 payments +1.00 +1.00 \N{EN DASH}" in shown
    assert "Without a budget: payments (1 month), search (2 months)." in shown
    assert "Budgets of groups without a forecast, in no total: shop (5.00) EUR." in shown
    printed("budget", "--months", "3", "--output", str(tmp_path / "budget.csv"))
    with served_pages(database) as pages:
        document, page = pages.document("/budget?months=3"), pages.ask("/budget?months=3").text
        sheet = pages.ask("/budget?months=3&format=csv").text.removeprefix("\ufeff")
    assert document["total"]["budget_difference"] == "-4.50"
    assert '<td class="number wide">28.00</td><td class="number">+2.00</td>' in page
    assert '13.50 <span class="under">20.00</span> <span class="under">-6.50</span>' in page
    assert '<dt>Budget</dt><dd>48.00 <span class="unit">EUR</span></dd>' in page
    # What the months and groups with a budget cost is 48.00 less 4.50.
    without = Decimal(document["total"]["amount"]) - Decimal("43.50")
    under = f'<dd class="under">4.50 under in 2 months. Without a budget: {without} <span class="unit">EUR</span></dd>'
    assert under in page
    assert 'Total <span class="under">budget: where one is declared</span>' in page
    of_pages = {row["name"]: row["monthly_budget_differences_2025-09"] for row in csv.DictReader(io.StringIO(sheet))}
    of_command = {
        row["group"]: row["2025-09_budget_difference"]
        for row in csv.DictReader(io.StringIO((tmp_path / "budget.csv").read_text()))
    }
    assert of_pages == of_command == {"payments": "1.00", "search": "-6.50"}


def test_without_declared_budgets_a_forecast_is_shown_without_columns_for_them(
    engine: Engine, service: AggregationService, database: URL
) -> None:
    bill()
    compute_windows(service, "daily", date(2025, 5, 1), TODAY)
    issue_runways(engine, TODAY, TODAY)

    shown = printed("budget")

    assert "Over budget" not in shown
    assert "Without a budget" not in shown
    with served_pages(database) as pages:
        assert "Over budget" not in pages.ask("/budget").text


REFUSED = [
    (["taem=payments", "14"], "There are no groups by 'taem'"),
    (["payments", "14"], "'payments' is not a group; write team=payments"),
    (["team=payments", "-1"], "is not an amount"),
    (["team=payments", "1.005"], "is not an amount"),
    (["team=payments", "14", "--month", "2025-13"], "is not a month"),
    (["team=payments", "14", "--currency", "USD"], "Budgets are in the currency of the price list, EUR, not in USD."),
    (["engine=", "14"], "A group by engine has a name"),
]


def test_invalid_budgets_are_refused() -> None:
    for arguments, problem in REFUSED:
        refused = capacity("budgets", "set", *arguments[2:], "--", *arguments[:2])

        assert refused.exit_code == 2, refused.output
        assert problem in " ".join(refused.output.split()), arguments
    assert json.loads(printed("budgets", "list", "--json")) == []
