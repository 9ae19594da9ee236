"""Issued bills: final once a month is over, kept when samples go, and restated visibly when figures change."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.clock import Clock
from tests.bills import GIB, amounts, billed
from tests.clocks import TODAY
from tests.command import capacity, printed
from tests.fleet import add_database_sizes, sizes
from tests.pages import served_pages

pytestmark = pytest.mark.usefixtures("billed_fleet")


def test_late_samples_restate_a_month_that_was_billed_and_both_versions_are_kept(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR")
    printed("labels", "set", "server-1", "team=payments", "--database", "b")
    first = billed()
    assert billed() == first, "nothing changed, so nothing is issued again"
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE database_size_stats SET size_mb = 50 * 1024, updated_at = now() + interval '1 second' "
                "WHERE instance_id = 1 AND database_name = 'b' AND collected_date = '2025-06-30'"
            )
        )

    second = billed()

    assert (first["bill"]["issue"], second["bill"]["issue"]) == (1, 2)
    assert (first["bill"]["amount"], second["bill"]["amount"], second["difference"]) == ("30.00", "31.00", "1.00")
    assert amounts(second) == {"payments": "21.00", None: "10.00"}
    message = printed("bill", "--month", "2025-06")
    assert "30.00 EUR became 31.00 EUR. Since then: 1 sample corrected." in message
    assert "payments: 20.00 before, 21.00 now" in message
    assert amounts(billed("team", "--issue", "1")) == amounts(first)


def test_a_month_that_is_not_over_is_replaced_and_final_afterwards(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed("prices", "set", "1", "--currency", "EUR")
    monkeypatch.setattr(Clock, "today", lambda _self: date(2025, 6, 20))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date > '2025-06-15'"))
    so_far = billed()
    assert (so_far["bill"]["is_final"], so_far["bill"]["amount"]) == (False, "15.00")
    add_database_sizes(engine, sizes(1, "a", "2025-06-16", [10 * GIB] * 20))
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)

    final = billed()

    assert (final["bill"]["issue"], final["bill"]["is_final"], final["bill"]["amount"]) == (1, True, "20.00")


def test_a_month_whose_samples_are_gone_keeps_its_bill(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR")
    before = billed()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-06-20'"))
        connection.execute(
            text(
                "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
                "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) "
                "VALUES (1, 'a', 'monthly', '2025-06-01', '2025-06-30', 1, 1, 1, 30)"
            )
        )

    assert billed() == before
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_bills"))
    refused = capacity("bill", "--month", "2025-06")
    assert refused.exit_code == 2
    assert "Samples of June 2025 were dropped by retention" in refused.output


def test_no_dropped_sample_makes_an_issued_bill_smaller(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR")
    before = billed()
    with engine.begin() as connection:
        connection.execute(text(AGGREGATES))
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-06-01'"))
    assert billed() == before, "the month before is gone, and the server was there then"
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-07-01'"))
        connection.execute(text("DELETE FROM database_size_aggregations"))
    assert billed() == before, "nothing at all is left of the month"
    add_database_sizes(engine, sizes(1, "a", "2025-06-03", [1]))
    assert billed() == before, "an old day was imported again"


AGGREGATES = """
INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, avg_size_mb,
                                        max_size_mb, min_size_mb, data_count)
VALUES (1, 'a', 'monthly', '2025-05-01', '2025-05-31', 1, 1, 1, 12)
"""


def test_a_server_that_turns_out_to_be_a_replica_is_taken_off_a_bill(engine: Engine) -> None:
    printed("prices", "set", "0.10", "--currency", "EUR")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET counted_by = NULL WHERE id = 2"))
    assert billed()["bill"]["amount"] == "6.00"
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET counted_by = 1 WHERE id = 2"))

    restated = billed()

    assert (restated["bill"]["issue"], restated["bill"]["amount"]) == (2, "3.00")
    assert "count otherwise" in restated["restated"]


def test_a_server_that_is_renamed_or_gone_costs_what_it_did_and_another_currency_restates(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--engine", "postgresql")
    first = billed("engine")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET name = 'renamed' WHERE id = 1"))
    assert billed("engine") == first
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM instances WHERE id = 1"))
    assert billed("engine")["bill"]["amount"] == first["bill"]["amount"]
    printed("prices", "remove", "--engine", "postgresql")
    printed("prices", "set", "1", "--currency", "USD", "--engine", "postgresql")
    dollars = billed("engine")
    assert (dollars["bill"]["issue"], dollars["bill"]["currency"]) == (2, "USD")


def test_a_restatement_names_labels_and_what_only_rounding_moved() -> None:
    printed("prices", "set", "0.333333", "--currency", "EUR")
    billed()
    printed("labels", "set", "server-1", "team=search", "--database", "a", "--always")

    message = printed("bill", "--month", "2025-06")

    assert "Since then: labels declared: team=search of a on server-1." in message
    printed("prices", "set", "0.4", "--currency", "EUR", "--label", "team=nobody")
    printed("prices", "set", "0.5", "--currency", "EUR", "--label", "team=search")
    assert "prices declared: 0.5 EUR for team=search." in printed("bill", "--month", "2025-06")
    printed("prices", "remove", "--label", "team=search")
    printed("prices", "set", "none", "--currency", "EUR")
    nothing = printed("bill", "--month", "2025-06")
    assert "(no team): 6.67 before, no price now" in nothing
    assert "became no amount" in nothing


def test_a_removal_is_noticed_and_named_and_what_changes_nothing_is_noticed_once(database: URL) -> None:
    printed("prices", "set", "1", "--currency", "EUR")
    printed("prices", "set", "2", "--currency", "EUR", "--engine", "postgresql")
    printed("labels", "set", "server-1", "team=search")
    printed("bill", "--month", "2025-06")

    def is_outdated() -> bool:
        with served_pages(database) as pages:
            return bool(pages.document("/bill?by=team&month=2025-06")["is_outdated"])

    assert not is_outdated()
    printed("labels", "remove", "server-1", "team", "--always")
    assert is_outdated()
    assert "Since then: labels removed." in printed("bill", "--month", "2025-06")
    printed("prices", "remove", "--engine", "postgresql")
    assert is_outdated()
    assert "Since then: prices removed." in printed("bill", "--month", "2025-06")
    printed("prices", "set", "3", "--currency", "EUR", "--label", "team=nobody")
    assert is_outdated()
    printed("bill", "--month", "2025-06")
    assert not is_outdated()
