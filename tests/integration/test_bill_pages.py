"""The pages of money: a bill with its months and causes, what a team costs, and both in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.ownership.bills import issue_bill
from tests.bills import GIB, fill_two_months_to_bill
from tests.clocks import TODAY, fixed_clock
from tests.command import printed
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, sizes
from tests.pages import KEYS, Pages, served_pages, values_of

MAY, JUNE, JULY = (PERIODS["monthly"].window_of(date(2025, month, 1)) for month in (5, 6, 7))


def fill_bills(engine: Engine) -> None:
    """Two billed months and a part of the third; the price rose in June."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
        # Months before it are over.
        patched.setattr(Clock, "today", lambda _self: TODAY)
        fill_two_months_to_bill(engine)
        printed("prices", "set", "0.50", "--currency", "EUR", "--always")
        printed("prices", "set", "0.75", "--currency", "EUR", "--from", "2025-06-01")
        compute_windows(AggregationService(engine, fixed_clock()), "monthly", MAY.start, JUNE.start)
        printed("groups", "--now")
        for month in (MAY, JUNE, JULY):
            issue_bill(engine, month, fixed_clock(), KEYS)


PREPARED = {"pages": fill_bills}


def test_a_bill_says_what_it_changed_by_and_why(pages: Pages) -> None:
    bill = pages.document("/bill?by=team")

    assert (bill["month"], bill["compared_month"], bill["is_final"]) == ("2025-06-01", "2025-05-01", True)
    parts = ("name", "amount", "amount_before", "change", "change_growth", "change_price", "change_moves")
    assert [[one[name] for name in parts] for one in [*bill["groups"], bill["total"]]] == [
        ["payments", "15.00", "10.00", "5.00", "0.00", "5.00", "0.00"],
        ["search", "13.50", "7.00", "6.50", "3.50", "3.00", "0.00"],
        [None, "28.50", "17.00", "11.50", "3.50", "8.00", "0.00"],
    ]
    assert (bill["total"]["amount_per_gib"], bill["total"]["amount_per_server"]) == ("0.750000", "14.25")
    page = pages.ask("/bill?by=team").text
    assert "Change since May 2025" in page
    assert "growth +3.50, prices +8.00" in page


def test_the_month_is_chosen_in_a_list_that_works_without_a_script(pages: Pages) -> None:
    page = pages.ask("/bill?by=team&month=2025-06&issue=1").text

    assert re.findall(r'<option value="([^"]+)"( selected)?>([^<]+)</option>', page) == [
        ("2025-07", "", "July 2025 (so far)"),
        ("2025-06", " selected", "June 2025"),
        ("2025-05", "", "May 2025"),
    ]
    assert '<input type="hidden" name="by" value="team">' in page
    # The version belongs to the month.
    assert 'name="issue"' not in page
    assert '<a rel="prev" href="/bill?by=team&amp;month=2025-05">← May 2025</a>' in page
    assert '<a rel="next" href="/bill?by=team&amp;month=2025-07">July 2025 (so far) →</a>' in page


def test_a_month_so_far_is_projected_to_its_end_and_compared_with_no_whole_month(pages: Pages) -> None:
    bill = pages.document("/bill?by=team&month=2025-07")

    # 38 GiB at 0.75 on twenty of 31 days.
    assert (bill["amount"], bill["total"]["projected_amount"], bill["total"]["change"]) == ("18.39", "28.50", None)
    assert sum(float(one["projected_amount"]) for one in bill["groups"]) == 28.5
    assert max(values_of(bill["history"], "month")) == "2025-06-01"
    page = pages.ask("/bill?by=team&month=2025-07").text
    assert "So far, to 20 Jul 2025" in page
    assert "Projected for all of July 2025" in page
    assert "Change since" not in page


def test_on_its_last_day_a_month_so_far_has_nothing_left_to_project(pages: Pages, engine: Engine) -> None:
    last = date(2025, 7, 31)
    add_database_sizes(engine, sizes(1, "late", "2025-07-21", [GIB, None, *[GIB] * 9]))
    issue_bill(engine, PERIODS["monthly"].window_of(last), fixed_clock(last), KEYS)

    page = pages.ask("/bill?by=team&month=2025-07").text

    assert "So far, to 31 Jul 2025" in page
    assert "rojected" not in page
    assert "Days after the last measured day of a server are not counted yet." in page


def test_a_year_of_bills_has_the_newest_versions_and_gaps_where_there_is_none(pages: Pages, engine: Engine) -> None:
    add_database_sizes(engine, sizes(1, "late", "2025-05-01", [2 * GIB] * 31))
    issue_bill(engine, MAY, fixed_clock(), KEYS)

    bill = pages.document("/bill?by=team")

    assert (bill["history_months"][0], bill["history_months"][-1]) == ("2024-07-01", "2025-06-01")
    assert [(one["month"], one["group"], one["amount"]) for one in bill["history"]] == [
        ("2025-05-01", "payments", "10.00"),
        ("2025-05-01", "search", "8.00"),
        ("2025-06-01", "payments", "15.00"),
        ("2025-06-01", "search", "13.50"),
    ]
    page = pages.ask("/bill?by=team").text
    assert "search, May 2025: 8.00 EUR" in page
    assert re.search(r'May 2025</a></td>\s*<td class="number">18.00</td>', page)
    assert re.search(r'April 2025</td>\s*<td class="number"><span class="unknown">no bill</span></td>', page)
    assert re.search(r"<tspan[^>]*>no</tspan><tspan[^>]*>bill</tspan>", page)


@pytest.mark.nightly("bills a year")
@pytest.mark.usefixtures("today")
def test_small_groups_of_a_year_are_one_series_and_every_month_adds_up(pages: Pages, engine: Engine) -> None:
    for number in range(10):
        add_database_sizes(engine, sizes(1, f"extra-{number}", "2025-06-01", [GIB * (number + 1)] * 30))
        printed("labels", "set", "server-1", f"team=team-{number}", "--database", f"extra-{number}", "--always")
    issue_bill(engine, JUNE, fixed_clock(), KEYS)

    bill = pages.document("/bill?by=team")

    june = [one for one in bill["history"] if one["month"] == "2025-06-01"]
    assert [one["group"] for one in june if not one["is_others"]] == [
        "payments", "search", "team-9", "team-8", "team-7", "team-6", "team-5",
    ]  # fmt: skip
    assert [one["amount"] for one in june if one["is_others"]] == ["11.25"]
    assert f"{sum(float(one['amount']) for one in june):.2f}" == bill["amount"]


def test_a_bill_in_a_spreadsheet_has_one_value_per_cell_and_says_of_which_month(pages: Pages) -> None:
    written = pages.ask("/bill?by=team&format=csv").text

    assert written.startswith("\ufeffmonth,currency,issue,is_final,grouped_by,name,databases,gib_months,")
    rows = list(csv.DictReader(io.StringIO(written.removeprefix("\ufeff"))))
    [payments] = [row for row in rows if row["name"] == "payments"]
    assert payments == {
        "month": "2025-06-01", "currency": "EUR", "issue": "1", "is_final": "True", "grouped_by": "team",
        "name": "payments", "databases": "1", "gib_months": "20.000000000000",
        "unpriced_gib_months": "0.000000000000", "amount": "15.00", "exact_amount": "15.000000000000", "servers": "1",
        "lowest_price": "0.750000", "highest_price": "0.750000", "projected_amount": "", "amount_before": "10.00",
        "change": "5.00", "change_growth": "0.00", "change_price": "5.00", "change_moves": "0.00",
        "amount_per_gib": "0.750000", "amount_per_server": "15.00", "budget": "", "budget_difference": "",
    }  # fmt: skip


def test_every_file_for_a_spreadsheet_is_marked_as_utf_8_and_splits_labels(pages: Pages) -> None:
    lists = ("/servers?period=monthly", "/databases?period=monthly", "/groups?period=monthly", "/bill?by=team")
    for path in lists:
        assert pages.ask(f"{path}&format=csv").text.startswith("\ufeff"), path
    rows = csv.DictReader(io.StringIO(pages.ask("/databases?format=csv&period=monthly").text.removeprefix("\ufeff")))
    assert {row["database"]: row["labels_team"] for row in rows} == {"a": "search", "b": "payments", "d": "search"}


def test_the_page_of_a_team_has_what_it_costs_and_of_which_databases(pages: Pages) -> None:
    team = pages.document("/group?by=team&name=search")

    cost = team["cost"]
    assert (cost["month"], cost["bill"]["amount"], cost["bill"]["change"]) == ("2025-06-01", "13.50", "6.50")
    assert [(one["month"], one["amount"]) for one in cost["history"]] == [
        ("2025-05-01", "7.00"),
        ("2025-06-01", "13.50"),
    ]
    # 12 of 18 GiB, and 6.
    assert {row["database"]: (row["amount"], round(row["amount_percent"], 1)) for row in team["members"]} == {
        "a": ("9.00", 66.7)
    }
    page = pages.ask("/group?by=team&name=search").text
    assert "Cost, June 2025" in page
    assert "growth +3.50, prices +3.00, moves 0.00" in page
    assert "Cost of search by month, EUR" in page


def test_a_team_without_a_bill_has_a_page_without_costs(pages: Pages, engine: Engine) -> None:
    with engine.begin() as connection:
        for table in ("capacity_bills", "capacity_bill_groups", "capacity_bill_lines"):
            connection.execute(text(f"DELETE FROM {table}"))

    assert pages.document("/group?by=team&name=search")["cost"] is None
    assert "Cost" not in pages.ask("/group?by=team&name=search").text


def test_groups_have_shares_that_add_up_and_a_total(pages: Pages) -> None:
    listed = pages.document("/groups?by=team")

    assert [(one["name"], one["share_percent"], one["change_percent"]) for one in listed["groups"]] == [
        ("payments", 52.6, 0.0),
        ("search", 47.4, 28.6),
    ]
    assert (listed["size_mb"], listed["change_mb"]) == (38 * GIB, 4 * GIB)
    page = pages.ask("/groups?by=team").text
    assert "<td>Total</td>" in page
    assert "100.0 %" in page


def test_a_bill_says_what_databases_cost_that_did_not_change_for_three_months(pages: Pages, engine: Engine) -> None:
    add_database_sizes(engine, sizes(1, "b", "2025-04-01", [20 * GIB] * 30))
    add_database_sizes(engine, sizes(1, "a", "2025-04-01", [12 * GIB] * 30))
    # Nothing of May.
    add_database_sizes(engine, sizes(2, "d", "2025-04-01", [6 * GIB] * 30))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 4, 1), JUNE.start)

    unchanged = pages.document("/bill?by=team")["unchanged"]

    assert (unchanged["databases"], unchanged["size_mb"], unchanged["amount"]) == (1, 20 * GIB, "15.00")
    assert [(row["server"], row["database"], row["amount"]) for row in unchanged["costliest"]] == [
        ("server-1", "b", "15.00")
    ]
    assert '<a href="#unchanged">1 database</a>' in pages.ask("/bill?by=team").text
    assert pages.document("/bill?by=team&month=2025-05")["unchanged"] is None


def test_a_database_of_which_the_used_space_changed_is_not_called_unchanged(pages: Pages, engine: Engine) -> None:
    add_database_sizes(engine, sizes(1, "b", "2025-04-01", [20 * GIB] * 30))
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET used_size_mb = 9 * 1024 WHERE database_name = 'b'"))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 4, 1), JUNE.start)
    assert pages.document("/bill?by=team")["unchanged"]["databases"] == 1

    with engine.begin() as connection:
        grown = "UPDATE database_size_stats SET used_size_mb = 8 * 1024 WHERE collected_date < '2025-05-01'"
        connection.execute(text(grown))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 4, 1), JUNE.start)
    with served_pages(engine.url) as again:
        assert again.document("/bill?by=team")["unchanged"]["databases"] == 0


OBJECTS = """
INSERT INTO object_size_stats (collected_date, instance_id, database_name, kind, schema_name, table_name, object_name,
                               size_bytes, free_bytes, is_exact)
VALUES ('2025-06-02', 1, 'b', 'table', 'public', '', 'audit', 10 * 1073741824::bigint, 9 * 1073741824::bigint, true),
       ('2025-06-23', 1, 'b', 'table', 'public', '', 'audit', 10 * 1073741824::bigint, 4 * 1073741824::bigint, true),
       ('2025-06-23', 1, 'b', 'table', 'public', '', 'orders', 6 * 1073741824::bigint, 1073741824, true),
       ('2025-06-23', 1, 'b', 'table', 'public', '', 'full', 1073741824, 0, true),
       ('2025-06-23', 1, 'b', 'others', '', '', '', 1073741824, NULL, true),
       ('2025-06-09', 1, 'a', 'table', 'public', '', 'events', 2 * 1073741824::bigint, NULL, true),
       ('2025-07-07', 1, 'a', 'table', 'public', '', 'events', 2 * 1073741824::bigint, 1073741824, true),
       ('2025-06-02', 1, 'b', 'unexplained', '', '', '', 0, NULL, true),
       ('2025-06-23', 1, 'b', 'unexplained', '', '', '', 0, NULL, true),
       ('2025-06-09', 1, 'a', 'unexplained', '', '', '', 0, NULL, true),
       ('2025-07-07', 1, 'a', 'unexplained', '', '', '', 0, NULL, true)
"""


def test_a_bill_and_a_team_say_what_dead_and_free_space_in_tables_costs(pages: Pages, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(OBJECTS))

    for address in ("/bill?by=engine", "/group?by=team&name=payments"):
        found, page = pages.document(address)["free_space"], pages.ask(address).text

        assert (found["databases"], found["tables"], found["free_bytes"], found["amount"]) == (1, 2, 5 << 30, "3.75")
        assert [(one["database"], one["table"], one["free_bytes"], one["amount"]) for one in found["costliest"]] == [
            ("b", "public.audit", 4 << 30, "3.00"),
            ("b", "public.orders", 1 << 30, "0.75"),
        ]
        assert "</data> of the tables measured in 1 database are dead rows or free pages: 3.75 EUR a month." in page
        place = "/table?server=1&amp;database=b&amp;schema=public&amp;name=audit"
        assert f'<a href="{place}">public.audit</a>' in page
    assert pages.document("/group?by=team&name=search")["free_space"] is None
    assert pages.document("/bill?by=team&month=2025-05")["free_space"] is None, "of the last final bill only"


def test_a_page_beyond_the_end_says_so(pages: Pages) -> None:
    for path in ("/bill", "/groups"):
        page = pages.ask(f"{path}?by=team&page=9").text
        assert "No groups on page 9." in page, path
        assert f'<a href="{path}?by=team">First page</a>' in page, path
