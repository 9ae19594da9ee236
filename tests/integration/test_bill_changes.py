"""What a bill changed by against the month before, split into growth, prices and moves that add up exactly."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.base.periods import PERIODS
from capacity_assets.ownership.bills import BillByGroup, groups_of_bill, issue_bill, read_bill, store_groups
from tests.bills import GIB, fill_two_months_to_bill
from tests.clocks import TODAY, fixed_clock
from tests.command import printed
from tests.fleet import add_database_sizes, sizes
from tests.profiles import HISTORIES

MONTHLY = PERIODS["monthly"]
MAY, JUNE, JULY = (MONTHLY.window_of(date(2025, month, 1)) for month in (5, 6, 7))
KEYS = ("team", "environment")


@pytest.fixture(autouse=True)
def two_billed_months(today: None, engine: Engine) -> None:
    """Two months to compare; copied."""


PREPARED = {"two_billed_months": fill_two_months_to_bill}


def issued(engine: Engine, by: str = "team") -> BillByGroup:
    for month in (MAY, JUNE):
        issue_bill(engine, month, fixed_clock(), KEYS)
    return read_bill(engine, JUNE, by)


def changes(found: BillByGroup) -> dict[str | None, tuple[str, ...]]:
    """The change of each group, and its parts: by growth, by prices and by moves."""
    return {
        group.name: tuple(
            str(part) for part in (group.change, group.change_growth, group.change_price, group.change_moves)
        )
        for group in (*found.groups, *found.former_groups)
    }


def test_growth_is_what_grew_came_or_went_at_the_price_before(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")

    found = issued(engine)

    # search: a grew by 2 GiB, c of 4 went, d of 6 came.
    assert changes(found) == {"search": ("2.00", "2.00", "0.00", "0.00"), "payments": ("0.00", "0.00", "0.00", "0.00")}
    assert {group.name: group.amount_before for group in found.groups} == {"payments": 10, "search": 7}
    assert (found.total.change, found.total.amount_before, found.compared_issue) == (Decimal(2), Decimal(17), 1)


def test_a_price_counts_for_the_quantity_now_and_growth_at_the_price_before(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("prices", "set", "0.75", "--currency", "EUR", "--from", "2025-06-01")

    # a: 2 GiB more at 0.50, and 12 GiB at 0.25 more; c: 4 GiB fewer at 0.50; d: 6 GiB at 0.75, new; b: 20 at 0.25 more.
    assert changes(issued(engine)) == {
        "payments": ("5.00", "0.00", "5.00", "0.00"),
        "search": ("6.50", "3.50", "3.00", "0.00"),
    }


def test_a_price_that_changes_within_the_month_counts_for_its_days(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("prices", "set", "0.80", "--currency", "EUR", "--from", "2025-06-11")

    # b: 20 GiB on twenty of thirty days at 0.30 more.
    found = issued(engine)
    assert changes(found)["payments"] == ("4.00", "0.00", "4.00", "0.00")
    [payments] = [group for group in found.groups if group.name == "payments"]
    assert (payments.lowest_price, payments.highest_price, payments.amount_per_gib) == (
        Decimal("0.5"),
        Decimal("0.8"),
        Decimal("0.7"),
    )


def test_a_database_that_changes_hands_moves_at_what_it_cost_before_and_grows_with_its_new_owner(
    engine: Engine,
) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("prices", "set", "1.00", "--currency", "EUR", "--label", "team=ads", "--always")
    printed("labels", "set", "server-1", "team=ads", "--database", "a", "--from", "2025-06-01")

    # a cost 5.00; now it has 2 GiB more at 0.50, and all of its 12 GiB cost 0.50 more.
    found = issued(engine)
    assert changes(found) == {
        "ads": ("12.00", "1.00", "6.00", "5.00"),
        "payments": ("0.00", "0.00", "0.00", "0.00"),
        "search": ("-4.00", "1.00", "0.00", "-5.00"),
    }
    assert changes(read_bill(engine, JUNE, "engine")) == {"postgresql": ("8.00", "2.00", "6.00", "0.00")}


def test_a_database_that_changes_hands_within_the_month_moves_with_its_days(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("labels", "set", "server-1", "team=ads", "--database", "b", "--from", "2025-06-11")

    # b cost payments 10.00; now ads pays for twenty of thirty days.
    found = issued(engine)
    assert {name: parts[3] for name, parts in changes(found).items()} == {
        "ads": "6.67",
        "payments": "-6.67",
        "search": "0.00",
    }
    assert found.total.change_moves == 0


def test_a_group_that_has_nothing_any_more_is_listed_with_what_it_lost(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("labels", "set", "server-1", "team=search", "--database", "b", "--from", "2025-06-01")

    found = issued(engine)

    assert [(group.name, group.databases, group.amount, group.change) for group in found.former_groups] == [
        ("payments", 0, Decimal("0.00"), Decimal("-10.00"))
    ]
    assert [group.name for group in found.groups] == ["search"]
    assert sum((group.change or Decimal()) for group in (*found.groups, *found.former_groups)) == found.total.change


def test_a_bill_on_the_screen_and_in_files_has_its_version_its_prices_and_what_changed(
    engine: Engine, tmp_path: Path
) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    printed("prices", "set", "0.75", "--currency", "EUR", "--from", "2025-06-01")
    issued(engine)

    shown = printed("bill", "--month", "2025-06")
    running = printed("bill", "--month", "2025-07")
    printed("bill", "--month", "2025-06", "--output", str(tmp_path / "bill.csv"))
    printed("bill", "--month", "2025-06", "--output", str(tmp_path / "bill.html"))

    assert re.search(r"search +2 +18.0 +0.75 +13.50 +\+6.50\nTotal +3 +38.0 +0.75 +28.50 +\+11.50\n", shown)
    assert "Version 1 of this bill, of " in shown
    assert "Change since May 2025 (version 1): +11.50 EUR, +3.50 by growth and +8.00 by prices." in shown
    assert re.search(r"Amount, EUR Projected\n", running)
    assert re.search(r"Total +3 +24.5 +0.75 +18.39 +28.50\n", running)
    assert "Projected: the daily average of the first 20 days" in running
    [_, search] = csv.DictReader(io.StringIO((tmp_path / "bill.csv").read_text()))
    assert [search[name] for name in ("change", "change_growth", "change_price", "change_moves", "servers")] == [
        "6.50", "3.50", "3.00", "0.00", "2",
    ]  # fmt: skip
    page = (tmp_path / "bill.html").read_text()
    assert "Version 1, issued on " in page
    assert "<td>Total</td>" in page


def test_only_whole_months_of_one_currency_are_compared(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    issued(engine)

    assert issue_bill(engine, JULY, fixed_clock(), KEYS).days_so_far == TODAY.day
    so_far = read_bill(engine, JULY, "team")

    assert (so_far.compared_issue, so_far.total.change, so_far.total.amount_before) == (None, None, None)
    # 12, 20 and 6 GiB, on 20 of 31 days.
    assert (so_far.total.amount, so_far.total.projected_amount) == (Decimal("12.26"), Decimal("19.00"))
    assert [group.projected_amount for group in so_far.groups] == [Decimal("10.00"), Decimal("9.00")]
    with engine.begin() as connection:
        connection.execute(text("UPDATE capacity_bills SET currency = 'USD' WHERE month = '2025-05-01'"))
        store_groups(connection, JUNE, 1)
    assert read_bill(engine, JUNE, "team").total.change is None


def test_a_restated_month_is_compared_anew_with_the_month_after_it(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    assert issued(engine).total.change == Decimal("2.00")
    add_database_sizes(engine, sizes(1, "late", "2025-05-01", [2 * GIB] * 31))

    issue_bill(engine, MAY, fixed_clock(), KEYS)

    found = read_bill(engine, JUNE, "team")
    assert (found.compared_issue, found.total.change, found.total.amount_before) == (2, Decimal(1), Decimal(18))


def test_bills_of_a_former_version_get_their_groups_with_the_upgrade(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--always")
    before = [changes(issued(engine, by)) for by in ("team", "engine", "server")]
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_bill_groups"))

    printed("init")

    assert [changes(read_bill(engine, JUNE, by)) for by in ("team", "engine", "server")] == before


def test_units_cost_what_the_amount_is_divided_by_them(engine: Engine) -> None:
    printed("prices", "set", "0.50", "--currency", "EUR", "--label", "team=search", "--always")

    found = issued(engine)

    # search pays for 12 GiB on one server and 6 on the other; payments has no price.
    assert [(group.name, group.servers, group.amount_per_gib, group.amount_per_server) for group in found.groups] == [
        ("search", 2, Decimal("0.5"), Decimal("4.50")),
        ("payments", 1, None, None),
    ]
    total = found.total
    assert (total.servers, total.amount_per_gib, total.amount_per_server) == (2, Decimal("0.5"), Decimal("4.50"))


LINES = st.dictionaries(
    st.tuples(st.integers(1, 2), st.sampled_from("abc"), st.sampled_from(["red", "blue", None])),
    st.tuples(
        st.one_of(st.just(Decimal()), st.decimals("0", "5000", places=12)),
        st.one_of(st.none(), st.sampled_from([Decimal("0.1"), Decimal("0.333333"), Decimal(2)])),
    ),
    max_size=9,
)
INSERT_LINE = """
INSERT INTO capacity_bill_lines
    (month, issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount)
SELECT :month, 1, :line, :instance, 'server-' || :instance, 'mysql', :database,
       json_strip_nulls(json_build_object('team', CAST(:team AS text))), 1, :gib, CAST(:price AS numeric),
       round(:gib * CAST(:price AS numeric), 12)
"""
INSERT_BILL = """
INSERT INTO capacity_bills (month, issue, is_final, currency, amount, gib_months, unpriced_gib_months, measured_days,
                            billed_days, unbilled_servers, label_keys)
VALUES (:month, 1, true, 'EUR', 0, 0, 0, 0, 0, 0, '["team"]')
"""
STORED = """
SELECT group_name, coalesce(amount, 0) - coalesce(amount_before, 0) AS change, change_growth, change_price, change_moves
FROM capacity_bill_groups WHERE month = :month AND issue = 1 AND grouped_by = :by
"""


def naive(before: dict[Any, Any], now: dict[Any, Any]) -> dict[str, tuple[Fraction, Fraction]]:
    """What each team's amount changed by because of prices and of moves, in fractions."""
    found: dict[str, list[Fraction]] = defaultdict(lambda: [Fraction(), Fraction()])
    for database in {key[:2] for key in now}:
        old = {key[2]: value for key, value in before.items() if key[:2] == database}
        new = {key[2]: value for key, value in now.items() if key[:2] == database}
        quantity = sum(Fraction(gib) for gib, _price in new.values())
        if not quantity:
            continue
        cost = {team: Fraction(gib) * Fraction(price or 0) for team, (gib, price) in old.items()}
        quantity_before = sum(Fraction(gib) for gib, _price in old.values())
        for team, (gib, price) in new.items():
            if quantity_before:
                price_before = sum(cost.values()) / quantity_before
                found[team or ""][0] += Fraction(gib) * (Fraction(price or 0) - price_before)
            found[team or ""][1] += sum(cost.values()) * Fraction(gib) / quantity
        for team, amount in cost.items():
            found[team or ""][1] -= amount
    return {team: (price, moved) for team, (price, moved) in found.items()}


@given(before=LINES, now=LINES)
# What moves to a group without any price.
@example(before={(1, "b", "red"): (Decimal("0.0025"), Decimal(2))}, now={(1, "b", "blue"): (Decimal("1E-12"), None)})
@settings(max_examples=HISTORIES, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_parts_of_any_change_add_up_to_it_exactly_and_moves_to_nothing(
    engine: Engine, before: dict[Any, Any], now: dict[Any, Any]
) -> None:
    with engine.begin() as connection:
        for table in ("capacity_bills", "capacity_bill_lines", "capacity_bill_groups"):
            connection.execute(text(f"DELETE FROM {table}"))
        for month, lines in ((MAY, before), (JUNE, now)):
            connection.execute(text(INSERT_BILL), {"month": month.start})
            for line, ((instance, database, team), (gib, price)) in enumerate(lines.items()):
                of_line = {"month": month.start, "line": line, "instance": instance, "database": database}
                connection.execute(text(INSERT_LINE), {**of_line, "team": team, "gib": gib, "price": price})
        store_groups(connection, MAY, 1)
        store_groups(connection, JUNE, 1)

        for by in ("team", "server", "engine"):
            rows = connection.execute(text(STORED), {"month": JUNE.start, "by": by}).all()
            assert all(row.change == row.change_growth + row.change_price + row.change_moves for row in rows)
            assert sum(row.change_moves for row in rows) == 0
            groups = groups_of_bill(connection, JUNE, 1, by)
            known = [group for group in groups if group.change is not None]
            for group in known:
                parts = (group.change_growth, group.change_price, group.change_moves)
                assert group.change == sum(part for part in parts if part is not None)
                assert group.change == (group.amount or 0) - (group.amount_before or 0)
            assert sum(group.change_moves or 0 for group in known) == 0
            shown = {group.name: group.amount for group in groups_of_bill(connection, MAY, 1, by)}
            assert {group.name: group.amount_before for group in groups if group.amount_before is not None} == {
                name: amount for name, amount in shown.items() if amount is not None
            }
        stored = {row.group_name: row for row in connection.execute(text(STORED), {"month": JUNE.start, "by": "team"})}
    for team, (price, moved) in naive(before, now).items():
        assert abs(Fraction(stored[team].change_price) - price) < Fraction(1, 10**9)
        assert abs(Fraction(stored[team].change_moves) - moved) < Fraction(1, 10**9)
