"""Bills: exact to the cent against naive fractions, with dated owners and prices."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.base.periods import PERIODS
from capacity_assets.ownership.bills import issue_bill, read_bill
from capacity_assets.ownership.focus import charges_of_bill
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.ownership.prices import Price, declare_prices, price_changes, stored_prices
from tests.bills import GIB, amounts, billed
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity, printed
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes
from tests.profiles import HISTORIES

pytestmark = pytest.mark.usefixtures("billed_fleet")

MONTH = PERIODS["monthly"].window_of(date(2025, 6, 1))
KEYS = ("team", "environment")


def test_a_month_costs_what_its_daily_sizes_cost_by_owner_replicas_once() -> None:
    printed("prices", "set", "0.10", "--currency", "EUR", "--always")
    printed("labels", "set", "server-1", "team=payments", "--database", "a")

    found = billed()

    assert amounts(found) == {"payments": "1.00", None: "2.00"}
    assert (found["bill"]["amount"], found["bill"]["currency"]) == ("3.00", "EUR")
    assert amounts(billed("engine")) == {"postgresql": "3.00"}


def test_an_owner_and_a_price_that_change_within_the_month_share_it_by_days() -> None:
    printed("prices", "set", "0.30", "--currency", "EUR", "--always")
    printed("prices", "set", "0.60", "--currency", "EUR", "--from", "2025-06-21", "--restate")
    printed("labels", "set", "server-1", "team=payments", "--database", "a")
    printed("labels", "set", "server-1", "team=search", "--database", "a", "--from", "2025-06-11")

    # a: ten days of payments at 0.30, ten of search at 0.30 and ten at 0.60.
    found = billed()
    assert amounts(found) == {"payments": "1.00", "search": "3.00", None: "8.00"}
    assert [group["databases"] for group in found["groups"]] == [1, 1, 1]
    assert found["databases"] == 2, "the one that changed hands counts once in all"


def test_the_most_exact_price_holds_and_what_has_none_is_named_and_not_zero() -> None:
    printed("labels", "set", "server-1", "team=payments", "environment=test", "--database", "a")
    printed("prices", "set", "0.10", "--currency", "EUR", "--engine", "oracle", "--always")
    nothing = billed()
    assert (nothing["bill"]["amount"], amounts(nothing)) == (None, {"payments": None, None: None})
    printed("prices", "set", "0.20", "--currency", "EUR", "--label", "environment=test", "--always")
    assert amounts(billed()) == {"payments": "2.00", None: None}
    assert "20.0 of 30.0 GiB have no price and are not billed." in printed("bill", "--month", "2025-06")
    printed("prices", "set", "0.40", "--currency", "EUR", "--label", "team=payments", "--always")
    printed("prices", "set", "0.50", "--currency", "EUR", "--engine", "postgresql", "--always")

    assert amounts(billed()) == {"payments": "4.00", None: "10.00"}


def test_the_exact_sum_is_rounded_and_not_the_sum_of_rounded_lines(engine: Engine) -> None:
    """Three databases with a third each: the amounts of lines are periodic decimals, their sum is half a cent."""
    printed("prices", "set", "0.025", "--currency", "EUR", "--engine", "oracle", "--always")
    add_instances(engine, [4], db_type="oracle")
    for number in range(3):
        add_database_sizes(engine, sizes(4, f"third-{number}", f"2025-06-{1 + 10 * number:02}", [GIB] * 10))

    found = billed("engine")

    assert (found["bill"]["amount"], amounts(found)["oracle"]) == ("0.03", "0.03")
    with engine.connect() as connection:
        total = connection.execute(text("SELECT sum(amount) FROM capacity_bill_lines")).scalar_one()
    assert str(total) == found["bill"]["exact_amount"] == "0.025000000000"


def test_a_price_without_a_day_applies_from_the_current_month_on_and_changes_no_closed_one() -> None:
    assert billed()["bill"]["amount"] is None

    said = printed("prices", "set", "0.1", "--currency", "EUR")

    assert "everything else: 0.1 EUR per GiB and month, from 2025-07-01." in said
    assert "Earlier months are not changed." in said
    assert "Bills" not in said
    assert "from 2025-07-01." in printed("prices", "set", "0.3", "--currency", "EUR", "--engine", "postgresql")
    assert "always;" in printed("prices", "set", "none", "--currency", "EUR", "--engine", "oracle", "--always")
    assert (billed()["bill"]["issue"], billed()["bill"]["amount"]) == (1, None)
    assert "Removed the price of postgresql, from 2025-07-01." in printed("prices", "remove", "--engine", "postgresql")


def test_bills_of_closed_months_change_only_where_that_is_confirmed_and_by_how_much_is_said_before() -> None:
    printed("prices", "set", "0.1", "--currency", "EUR", "--always")
    assert billed()["bill"]["amount"] == "3.00"
    asked = ("prices", "set", "0.4", "--currency", "EUR", "--from", "2025-06-16")
    named = "June 2025 (3.00 EUR becomes 7.50 EUR)"

    tried, refused = printed(*asked, "--dry-run"), capacity(*asked)

    assert f"Bills of closed months that change: {named}. Requires --restate." in tried
    assert tried.endswith("Dry run: nothing was changed.\n")
    assert refused.exit_code == 2
    assert f"would change: {named}. To restate them, add --restate." in refused.output.replace("\n", " ")
    assert [one["price"] for one in json.loads(printed("prices", "list", "--json"))] == ["0.100000"]

    done = printed(*asked, "--restate").splitlines()

    assert done[0] == f"Bills of closed months that change: {named}."
    assert done[-1] == "Bills recomputed: June 2025."
    shown = json.loads(printed("bill", "--month", "2025-06", "--issue", "2", "--json"))
    assert (shown["bill"]["amount"], shown["difference"]) == ("7.50", "4.50")
    removed = capacity("prices", "remove", "--from", "2025-06-16")
    assert "June 2025 (7.50 EUR becomes 3.00 EUR)" in removed.output.replace("\n", " ")
    document = json.loads(printed("prices", "remove", "--from", "2025-06-16", "--restate", "--json"))
    assert document["restated_bills"] == [
        {
            "month": "2025-06-01",
            "before": "7.50",
            "after": "3.00",
            "before_currency": "EUR",
            "after_currency": "EUR",
        }
    ]
    assert billed()["bill"]["issue"] == 3


def test_bills_are_computed_of_a_price_that_is_tried_while_others_declare_prices(engine: Engine) -> None:
    printed("prices", "set", "0.1", "--currency", "EUR", "--always")
    assert billed()["bill"]["amount"] == "3.00"
    wanted = Price(Decimal("0.4"), "EUR", valid_from=date(2025, 6, 16))
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE capacity_prices IN ROW EXCLUSIVE MODE"))
            trying = threads.submit(price_changes, engine, [wanted], TODAY, ["team"])
            wait([trying], timeout=10)
            assert trying.done()
        [bill] = trying.result().bills
    assert bill.text == "June 2025 (3.00 EUR becomes 7.50 EUR)"
    assert len(stored_prices(engine)) == 1


def test_a_price_for_all_of_history_confirms_that_closed_months_change() -> None:
    billed()

    said = printed("prices", "set", "0.4", "--currency", "EUR", "--always")

    assert said.startswith("Bills of closed months that change: June 2025 (no amount becomes 12.00 EUR).\n")
    assert billed()["bill"]["issue"] == 2
    both = capacity("prices", "set", "1", "--currency", "EUR", "--always", "--from", "2025-06-01")
    assert "either --from or --always" in both.output


def test_a_price_and_a_label_compute_the_bill_of_the_running_month_anew_at_once() -> None:
    printed("bill", "--month", "2025-07")

    assert "Bills recomputed: July 2025." in printed("prices", "set", "1", "--currency", "EUR")

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(printed("bill", "--month", "2025-07", "--issue", "1", "--json"))
        assert not found["bill"]["is_final"]
        return found

    assert shown()["bill"]["currency"] == "EUR"
    said = printed("labels", "set", "server-1", "team=payments", "--from", "2025-07-01")
    assert "Bills recomputed: July 2025." in said
    assert list(amounts(shown())) == ["payments"]


def test_a_file_of_prices_is_a_history_and_changes_nothing_when_it_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("label,price,currency,from\n,0.10,EUR,\n,0.20,EUR,2025-03-01\nteam=payments,0.5,EUR,always\n")
    printed("prices", "import", str(file))
    once = printed("prices", "list")
    assert [line.split()[-3] for line in once.splitlines()[2:]] == ["always", "2025-03-01", "always"]
    billed()

    again = json.loads(printed("prices", "import", str(file), "--json"))

    assert (printed("prices", "list"), again["restated_months"]) == (once, [])
    file.write_text("price,currency,from\n0.30,EUR,2025-06-15\n")
    refused = capacity("prices", "import", str(file)).output.replace("\n", " ")
    assert "June 2025 (6.00 EUR becomes 7.60 EUR)" in refused
    assert "Bills recomputed: June 2025." in printed("prices", "import", str(file), "--restate")


def test_days_that_were_not_measured_count_as_the_others_and_days_before_the_server_came_do_not(
    engine: Engine,
) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    add_instances(engine, [4])
    # From the 16th on, every second day.
    add_database_sizes(engine, sizes(4, "c", "2025-06-16", [30 * GIB, None] * 15))

    found = billed("server")

    assert amounts(found) == {"server-1": "30.00", "server-4": "15.00"}
    assert "server days, billed at the average" in printed("bill", "--month", "2025-06")


def test_a_database_of_three_days_pays_three_days(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    printed("labels", "set", "server-1", "team=copy", "--database", "cop*")
    add_database_sizes(engine, sizes(1, "copy", "2025-06-10", [100 * GIB] * 3))

    assert amounts(billed())["copy"] == "10.00"


def test_a_server_of_which_only_totals_are_known_is_named_and_not_billed(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    add_instances(engine, [5])
    add_instance_sizes(
        engine,
        [{"instance_id": 5, "collected_date": MONTH.start, "total_size_mb": 50 * GIB, "database_count": 2}],
    )

    message = printed("bill", "--month", "2025-06", "--by", "server")

    assert "Not billed: 1 server without measured databases, or with impossible sizes (above 8 EiB)." in message
    assert billed("server")["bill"]["billed_days"] == 30


def test_an_empty_month_a_wrong_group_and_a_wrong_month_are_refused_in_a_sentence() -> None:
    assert "Nothing was measured in January 2024" in capacity("bill", "--month", "2024-01").output
    assert "known are engine, server, team" in capacity("bill", "--month", "2025-06", "--by", "colour").output
    assert "is not a month" in capacity("bill", "--month", "2025-13").output
    assert "There is no bill of June 2025" in capacity("bill", "--month", "2025-06", "--issue", "7").output
    printed("bill", "--month", "2025-06")
    unknown = capacity("bill", "--month", "2025-06", "--issue", "7")
    assert "The bill of June 2025 has no version 7; it has 1." in unknown.output


NO_PRICES = [
    (["abc", "--currency", "EUR"], "is not a price"),
    (["-1", "--currency", "EUR"], "No such option"),
    (["0.1234567", "--currency", "EUR"], "at most 6 decimals"),
    (["0.1", "--currency", "euro"], "is not a currency"),
    (["0.1", "--currency", "USD"], "EUR and USD"),
    (["0.1", "--currency", "EUR", "--label", "taem=x"], "Did you mean 'team'?"),
]


def test_invalid_prices_are_refused() -> None:
    printed("prices", "set", "0.2", "--currency", "EUR", "--always")
    for arguments, problem in NO_PRICES:
        refused = capacity("prices", "set", *arguments)

        assert refused.exit_code == 2, arguments
        assert problem in refused.output, arguments
        assert [one["price"] for one in json.loads(printed("prices", "list", "--json"))] == ["0.200000"], arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "postgres"], "No registered server has the engine 'postgres'. Did you mean 'postgresql'?"),
        (["--label", "team=payment"], "Nothing has the label team=payment. Did you mean 'team=payments'?"),
    ],
)
def test_a_price_that_nothing_has_yet_is_kept_with_a_note(arguments: list[str], said: str) -> None:
    printed("labels", "set", "server-1", "team=payments")

    assert f"note: {said}" in printed("prices", "set", "0.2", "--currency", "EUR", *arguments)
    assert len(json.loads(printed("prices", "list", "--json"))) == 1


def test_a_price_list_comes_from_a_file_and_a_price_can_be_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("engine,label,price,currency,from\n,,0.10,EUR,\noracle,team=payments,0.5,EUR,2025-01-01\n")

    assert "2 prices declared" in printed("prices", "import", str(file))
    assert "oracle with team=payments" in printed("prices", "list")
    printed("prices", "remove", "--engine", "oracle", "--label", "team=payments", "--from", "2025-01-01")
    assert len(json.loads(printed("prices", "list", "--json"))) == 1
    assert "There is no price for everything else" in capacity("prices", "remove", "--from", "2025-01-01").output


def test_files_of_a_bill_say_what_the_screen_says(tmp_path: Path) -> None:
    printed("prices", "set", "0.10", "--currency", "EUR", "--always")
    printed("labels", "set", "server-1", "team==SUM(A1)", "--database", "a")
    for ending in ("csv", "json", "html"):
        printed("bill", "--month", "2025-06", "--output", str(tmp_path / f"bill.{ending}"))

    rows = list(csv.DictReader(io.StringIO((tmp_path / "bill.csv").read_text())))
    assert [(row["group"], row["amount"]) for row in rows] == [("", "2.00"), ("'=SUM(A1)", "1.00")]
    assert json.loads((tmp_path / "bill.json").read_text())["bill"]["amount"] == "3.00"
    page = (tmp_path / "bill.html").read_text()
    assert "Bill of June 2025, by team" in page
    assert "<td>=SUM(A1)</td>" in page


def naive(samples: Iterable[tuple[str, date, int]], labels: Any, prices: Any) -> dict[str | None, Fraction]:
    """What each team has to pay, database by database and day by day; server-1 is measured every day."""
    totals: dict[str | None, Fraction] = defaultdict(Fraction)
    for database, day, size_mb in samples:
        held = [value for name, since, value in labels if name == database and since <= day]
        team = held[-1] if held else None
        found = [(bool(of), price) for of, since, price in prices if since <= day and of in {"", team or "-"}]
        exact = [price for is_exact, price in found if is_exact] or [price for is_exact, price in found]
        if exact:
            totals[team] += Fraction(size_mb, 1024) / MONTH.days * Fraction(exact[-1])
    return totals


JUNE = st.integers(-3, 31).map(lambda days: MONTH.start + timedelta(days=days))
PRICES = st.decimals("0", "9", places=6)


@given(
    sizes_mb=st.lists(st.integers(0, 10**7), min_size=60, max_size=60),
    labels=st.lists(st.tuples(st.sampled_from("ab"), JUNE, st.sampled_from(["red", "blue"])), max_size=6),
    prices=st.lists(st.tuples(st.sampled_from(["", "red", "blue"]), JUNE, PRICES), max_size=5),
)
@settings(max_examples=max(5, HISTORIES // 5), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bill_is_exact_and_its_groups_add_up_to_the_cent(
    engine: Engine, sizes_mb: list[int], labels: list[tuple[str, date, str]], prices: list[tuple[str, date, Decimal]]
) -> None:
    labels = sorted({one[:2]: one for one in labels}.values(), key=lambda one: one[1])
    prices = sorted({one[:2]: one for one in prices}.values(), key=lambda one: one[1])
    days = [MONTH.start + timedelta(days=number) for number in range(30)]
    samples = [(name, day, sizes_mb[2 * n + k]) for n, day in enumerate(days) for k, name in enumerate("ab")]
    with engine.begin() as connection:
        for table in ("capacity_labels", "capacity_prices", "capacity_bills", "capacity_bill_lines"):
            connection.execute(text(f"DELETE FROM {table}"))
        of_june = "DELETE FROM database_size_stats WHERE collected_date BETWEEN :start AND :end"
        connection.execute(text(of_june), {"start": MONTH.start, "end": MONTH.end})
    add_database_sizes(
        engine,
        [
            {"instance_id": 1, "database_name": name, "collected_date": day, "size_mb": size}
            for name, day, size in samples
        ],
    )
    for name, day, team in labels:
        declare_labels(engine, [Label("server-1", name, "team", team, day)], TODAY)
    declare_prices(engine, [Price(price, "EUR", "", "team" if of else "", of, day) for of, day, price in prices], TODAY)

    issue_bill(engine, MONTH, fixed_clock(), KEYS)
    found = read_bill(engine, MONTH, "team")
    with engine.connect() as connection:
        charges = connection.exec_driver_sql(charges_of_bill(MONTH.start, found.bill.issue, "team", "us")).all()

    assert sum(charge.BilledCost for charge in charges) == (found.bill.amount or 0), "in FOCUS as well"
    expected = naive(samples, labels, prices)
    exact = sum(expected.values(), Fraction())
    total = (Decimal(exact.numerator) / Decimal(exact.denominator)).quantize(Decimal("0.01"), ROUND_HALF_UP)
    assert sum((group.amount or Decimal(0)) for group in found.groups) == (found.bill.amount or 0)
    assert (found.bill.amount or 0) == total
    for group in found.groups:
        assert abs(Fraction(group.amount or 0) - expected.get(group.name, Fraction())) < Fraction(1, 100)


def test_late_samples_give_the_same_bill_as_a_first_issue_over_all_of_them(engine: Engine) -> None:
    printed("prices", "set", "0.37", "--currency", "EUR", "--always")
    billed()
    add_database_sizes(engine, sizes(1, "late", "2025-06-05", [777] * 9))
    add_instance_sizes(
        engine,
        [{"instance_id": 1, "collected_date": date(2025, 6, 1), "total_size_mb": 30 * GIB, "database_count": 2}],
    )
    restated = billed("server")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_bills"))
        connection.execute(text("DELETE FROM capacity_bill_lines"))

    assert amounts(billed("server")) == amounts(restated)
    assert restated["bill"]["issue"] == 2
