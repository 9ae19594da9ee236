"""The pages where this machine's clock is far behind or ahead of the samples and forecasts."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import URL, Engine

from capacity_assets.base.units import human_day
from tests.clocks import TODAY, fixed_clock
from tests.databases import execute
from tests.fleet import add_database_sizes, sizes
from tests.pages import served_pages
from tests.pages_fleet import ADDRESSES, filled
from tests.profiles import nightly_except

SCENARIOS = (
    "/scenario?growth_factor=1.2",
    "/scenario?growth_factor=1.2&growth_label=team%3Dpayments&by=engine",
    "/scenario?purge_gb=1&purge_server=server-1&purge_database=orders",
    "/scenario?limit_add_gb=10",
    "/scenario?new_database_gb=10",
    "/scenario?new_database_gb=10&new_database_server=server-1",
)
MORE = (
    *(f"{path}?period={period}" for path in ("/", "/changes", "/groups", "/servers") for period in ("daily", "yearly")),
    *(f"/server?server=1&range={name}" for name in ("30d", "1y", "all")),
    *(f"/group?by=engine&name=postgresql&range={name}&period=daily" for name in ("30d", "1y", "all")),
    "/group?by=team&name=payments&period=daily&compare=year",
    "/volume?server=1&name=%2Fdata&range=1y",
    "/budget?months=1",
    "/budget?by=engine",
    "/bill?month=2025-06",
    "/accuracy?horizon=7",
    "/metrics",
)


PREPARED = {"database": filled}


@pytest.mark.parametrize("days", nightly_except([-1000, -40, 400]))
def test_no_page_fails_by_a_clock_far_behind_or_ahead(database: URL, days: int) -> None:
    with served_pages(database, clock=fixed_clock(TODAY + timedelta(days=days))) as pages:
        answers = {address: pages.ask(address) for address in (*ADDRESSES, *SCENARIOS, *MORE)}

    assert {address: one.text for address, one in answers.items() if one.status not in {200, 202, 404}} == {}
    today = human_day(TODAY + timedelta(days=days))
    behind = f"The newest forecasts are of 20 Jul 2025, but today is {today} by the clock of this machine."
    assert [behind in answers[address].text for address in ("/", "/servers")] == [days < 0] * 2
    assert ("Newest measurement: " in answers["/"].text) == (days > 0)


@pytest.mark.single_server("has pages compute scenarios")
def test_what_if_by_a_clock_a_year_behind_says_why_it_has_no_budget(database: URL, engine: Engine) -> None:
    """The last day of the coming twelve months is then the last measured one."""
    add_database_sizes(engine, sizes(1, "orders", "2024-06-01", [5000] * 30))
    execute(engine, "DELETE FROM capacity_runways WHERE as_of > '2025-06-30'")
    last = date(2025, 6, 30)
    with served_pages(database, clock=fixed_clock(last.replace(year=2024))) as pages:
        budget = pages.document("/budget")
        scenario = pages.document("/scenario?growth_factor=1.2")

    said = (
        "The newest forecasts are based on samples up to 30 Jun 2025, but the clock of this machine says 30 Jun 2024."
    )
    assert budget["message"].startswith(said)
    assert scenario["result"]["without_budget"].startswith(said)
