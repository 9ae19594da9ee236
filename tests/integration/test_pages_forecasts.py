"""What the pages say of forecasts that are missing, or older than what was declared."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.runway.steps import SizeStep, declare_steps
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.fleet import add_instance_sizes, add_instances, totals
from tests.pages import Pages, served_pages
from tests.pages_fleet import filled

PREPARED = {"pages": filled}


def test_forecasts_say_that_limits_or_steps_of_their_servers_were_declared_since(pages: Pages, engine: Engine) -> None:
    addresses = (
        "/filling",
        "/server?server=1",
        "/database?server=1&name=orders",
        "/group?by=server&name=server-2",
        "/",
    )
    said = "Limits or steps of server-1 changed after the newest forecast"
    with served_pages(engine.url) as before:
        assert not [address for address in addresses if said in before.ask(address).text]

    declare_steps(engine, [SizeStep("server-1", "orders", TODAY, "purged")])

    assert [address for address in addresses if said in pages.ask(address).text] == list(addresses)
    outdated = {row["server"]: row["is_outdated"] for row in pages.document("/filling")["runways"]}
    assert outdated.pop("server-1")
    assert not any(outdated.values())


def test_without_any_forecast_what_fills_is_unknown_and_not_nothing(engine: Engine) -> None:
    add_instances(engine, [1])
    add_instance_sizes(engine, totals(1, str(TODAY - timedelta(days=1)), [(100, 1), (110, 1)]))
    compute_windows(AggregationService(engine, fixed_clock()), "daily", TODAY - timedelta(days=1), TODAY)

    with served_pages(engine.url) as pages:
        text = pages.ask("/").text

    assert "No forecast was issued yet, so what fills is not known" in text
    assert text.count("no forecast yet") == 2
    assert "every limit is known" not in text
    assert "Nothing that has a known limit fills" not in text
