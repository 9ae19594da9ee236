"""Issued bills: final once a month is over, kept when samples go, and restated visibly when figures change."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import Clock
from capacity_assets.database.engine import record_zone
from tests.bills import GIB, amounts, billed
from tests.clocks import SHANGHAI, TODAY, fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, sizes, totals
from tests.pages import served_pages
from tests.partitions import keeper

pytestmark = pytest.mark.usefixtures("billed_fleet")


def test_late_samples_restate_a_month_that_was_billed_and_both_versions_are_kept(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
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
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    monkeypatch.setattr(Clock, "today", lambda _self: date(2025, 6, 20))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date > '2025-06-15'"))
    so_far = billed()
    assert (so_far["bill"]["is_final"], so_far["bill"]["amount"]) == (False, "15.00")
    add_database_sizes(engine, sizes(1, "a", "2025-06-16", [10 * GIB] * 20))
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)

    final = billed()

    assert (final["bill"]["issue"], final["bill"]["is_final"], final["bill"]["amount"]) == (1, True, "20.00")


def kept(before: dict[str, Any]) -> bool:
    """Whether the bill is unchanged, except for the remark that it is frozen."""
    now = billed()
    assert now["bill"].pop("samples_dropped_at") is not None
    del before["bill"]["samples_dropped_at"]
    return bool(now == before)


def test_a_month_whose_oldest_samples_somebody_took_away_keeps_its_bill(engine: Engine) -> None:
    compute_windows(AggregationService(engine, fixed_clock()), "daily", date(2025, 6, 1), date(2025, 6, 30))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 6, 1), date(2025, 6, 30))
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    before = billed()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-06-20'"))

    assert kept(before)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_bills"))
    refused = capacity("bill", "--month", "2025-06")
    assert refused.exit_code == 2
    assert "Samples of June 2025 were dropped by retention" in refused.output


def test_no_dropped_sample_makes_an_issued_bill_smaller(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    before = billed()
    with engine.begin() as connection:
        connection.execute(text(AGGREGATES))
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-06-01'"))
    assert billed() == before, "the month before is gone, and the server was there then"
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date < '2025-07-01'"))
        connection.execute(text("DELETE FROM database_size_aggregations"))
    assert kept(billed()), "nothing at all is left of the month"


def test_what_retention_dropped_keeps_a_bill_and_the_command_and_the_page_say_so(database: URL, engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    before = billed()
    keeper(engine, "raw=15", {}).run(TODAY)
    add_database_sizes(engine, sizes(1, "a", "2025-05-31", [1, None, None, 1]))
    printed("prices", "set", "2", "--currency", "EUR", "--always")

    assert kept(before), "also where old days were imported again"
    said = "Retention dropped samples of this month"
    assert said in printed("bill", "--month", "2025-06")
    with served_pages(database) as pages:
        page = pages.document("/bill?by=team&month=2025-06")
    assert not page["is_outdated"], "nothing issues it again"
    assert any(said in note for note in page["notes"])


def test_a_void_total_and_a_deleted_sample_freeze_nothing(database: URL, engine: Engine) -> None:
    add_instance_sizes(engine, totals(1, "2025-05-20", [(30 * GIB, 2)] * 60))
    for period in ("daily", "monthly"):
        compute_windows(AggregationService(engine, fixed_clock()), period, date(2025, 5, 20), date(2025, 6, 30))
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    printed("bill", "--month", "2025-06")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instance_size_stats SET is_deleted = true WHERE collected_date = '2025-06-15'"))
    printed("prices", "set", "2", "--currency", "EUR", "--from", "2025-06-01", "--restate")

    assert billed()["bill"]["amount"] == "60.00"
    with served_pages(database) as pages:
        assert not pages.document("/bill?by=team&month=2025-06")["is_outdated"]
    assert capacity("bill", "--month", "2025-05").exit_code == 0, "it was never billed before"
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date = '2025-06-15'"))
    again = billed()
    assert (again["bill"]["issue"], again["bill"]["measured_days"]) == (3, 29)
    assert "Since then: 2 samples deleted." in again["restated"]


def test_a_bill_that_is_replaced_calls_servers_by_their_names_of_now(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "today", lambda _self: date(2025, 6, 20))
    billed("server")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET name = 'renamed' WHERE id = 1"))

    assert list(amounts(billed("server"))) == ["renamed"]


@pytest.mark.parametrize(
    ("local", "by_postgres"), [("2025-07-01 06:00", "2025-06-30 23:00"), ("2026-01-01", "2026-01-01")]
)
def test_a_month_is_not_closed_by_a_clock_that_may_be_wrong(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, local: str, by_postgres: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date > '2025-06-30'"))
    set_clocks(monkeypatch, local, by_postgres)

    found = billed()

    assert not found["bill"]["is_final"]
    assert found["bill"]["clock_doubt"] in printed("bill", "--month", "2025-06")
    set_clocks(monkeypatch, "2025-07-01 06:00", "2025-07-01 06:00")
    assert billed()["bill"]["is_final"]
    set_clocks(monkeypatch, local, by_postgres)
    assert billed()["bill"]["is_final"], "what was final stays final"


def test_a_month_is_not_closed_by_samples_that_a_wrong_clock_wrote(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both clocks are wrong, as on one machine, and the nightly collection already ran by them."""
    add_database_sizes(engine, sizes(1, "orders", "2026-01-01", [GIB]))
    set_clocks(monkeypatch, "2026-01-01", "2026-01-01")

    found = billed()

    assert not found["bill"]["is_final"]
    assert "There are no samples between" in found["bill"]["clock_doubt"]


def set_clocks(monkeypatch: pytest.MonkeyPatch, local: str, by_postgres: str) -> None:
    here, there = (datetime.fromisoformat(moment).replace(tzinfo=SHANGHAI) for moment in (local, by_postgres))
    monkeypatch.setattr(Clock, "today", lambda _self: here.date())
    monkeypatch.setattr(Clock, "local_now", lambda _self: here)
    monkeypatch.setattr(Clock, "local_database_now", lambda _self, _connection: there)


def test_a_month_is_not_closed_in_another_time_zone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Kiritimati, six hours ahead of Shanghai, it is already tomorrow."""
    record_zone(engine, SHANGHAI.key, chosen=True)
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Pacific/Kiritimati")

    refused = capacity("bill", "--month", "2025-06")

    assert refused.exit_code == 2
    assert "Set CAPACITY_TIMEZONE=Asia/Shanghai" in refused.output


AGGREGATES = """
INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, avg_size_mb,
                                        max_size_mb, min_size_mb, data_count)
VALUES (1, 'a', 'monthly', '2025-05-01', '2025-05-31', 1, 1, 1, 12)
"""


def test_a_server_that_turns_out_to_be_a_replica_is_taken_off_a_bill(engine: Engine) -> None:
    printed("prices", "set", "0.10", "--currency", "EUR", "--always")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET counted_by = NULL WHERE id = 2"))
    assert billed()["bill"]["amount"] == "6.00"
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET counted_by = 1 WHERE id = 2"))

    restated = billed()

    assert (restated["bill"]["issue"], restated["bill"]["amount"]) == (2, "3.00")
    assert "are counted differently" in restated["restated"]


def test_a_server_that_is_renamed_or_gone_costs_what_it_did_and_another_currency_restates(engine: Engine) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--engine", "postgresql", "--always")
    first = billed("engine")
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET name = 'renamed' WHERE id = 1"))
    assert billed("engine") == first
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM instances WHERE id = 1"))
    assert billed("engine")["bill"]["amount"] == first["bill"]["amount"]
    printed("prices", "remove", "--engine", "postgresql", "--restate")
    printed("prices", "set", "1", "--currency", "USD", "--engine", "postgresql", "--always")
    dollars = billed("engine")
    assert (dollars["bill"]["issue"], dollars["bill"]["currency"]) == (3, "USD")


def test_a_restatement_names_labels_and_what_only_rounding_moved() -> None:
    printed("prices", "set", "0.333333", "--currency", "EUR", "--always")
    billed()
    printed("labels", "set", "server-1", "team=search", "--database", "a", "--always", "--by", "anna")

    message = printed("bill", "--month", "2025-06")

    assert "Since then: labels declared: team=search of a on server-1 by anna." in message
    printed("prices", "set", "0.4", "--currency", "EUR", "--label", "team=nobody", "--always")
    printed("prices", "set", "0.5", "--currency", "EUR", "--label", "team=search", "--always", "--by", "ben")
    assert "prices declared: 0.5 EUR for team=search by ben." in printed("bill", "--month", "2025-06")
    printed("prices", "remove", "--label", "team=search", "--restate")
    printed("prices", "set", "none", "--currency", "EUR", "--always")
    nothing = printed("bill", "--month", "2025-06")
    assert "(no team): 6.67 before, no price now" in nothing
    assert "became no amount" in nothing


def test_a_removal_is_noticed_and_named_and_what_changes_nothing_is_noticed_once(database: URL) -> None:
    printed("prices", "set", "1", "--currency", "EUR", "--always")
    printed("prices", "set", "2", "--currency", "EUR", "--engine", "postgresql", "--always")
    printed("labels", "set", "server-1", "team=search")
    printed("bill", "--month", "2025-06")

    def is_outdated() -> bool:
        with served_pages(database) as pages:
            return bool(pages.document("/bill?by=team&month=2025-06")["is_outdated"])

    assert not is_outdated()
    printed("labels", "remove", "server-1", "team", "--always")
    assert is_outdated()
    assert "Since then: labels removed." in printed("bill", "--month", "2025-06")
    printed("prices", "remove", "--engine", "postgresql", "--restate")
    assert not is_outdated()
    assert "Since then: prices removed." in printed("bill", "--month", "2025-06")
    printed("prices", "set", "3", "--currency", "EUR", "--label", "team=nobody", "--always")
    assert is_outdated()
    printed("bill", "--month", "2025-06")
    assert not is_outdated()
