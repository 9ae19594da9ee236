"""Groups and the fleet have forecasts from their stored daily sums, issued and scored like those of databases."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import TODAY
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import served_pages
from tests.profiles import nightly_except
from tests.runways import FIRST

pytestmark = pytest.mark.usefixtures("growing_servers")

FLEET = "(fleet)=(fleet)"


def group_forecasts(engine: Engine, as_of: date = TODAY) -> dict[str, dict[str, object]]:
    """The stored forecasts of groups as of a day, by key and value, without the moment of their issue."""
    query = text("SELECT * FROM capacity_runways WHERE as_of = :day AND subject = 'group'")
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query, {"day": as_of}).mappings()]
    return {str(row["name"]): {name: row[name] for name in row if name != "issued_at"} for row in rows}


def test_groups_are_forecast_from_their_sums_and_a_change_of_hands_is_a_step(
    engine: Engine, service: AggregationService
) -> None:
    declare_labels(engine, [Label("server-1", None, "team", "shop", FIRST)], TODAY)
    moved_on = TODAY - timedelta(days=20)
    declare_labels(engine, [Label("server-1", "still", "team", "archive", moved_on)], TODAY)
    compute_windows(service, "daily", FIRST, TODAY)

    issued = issue_runways(engine, TODAY, TODAY)

    found = group_forecasts(engine)
    assert {name: row["change_mb_per_day"] for name, row in found.items() if name != "team="} == {
        FLEET: 10,
        "engine=postgresql": 10,
        "team=shop": 10,
        "team=archive": 0,
    }
    shop, fleet = found["team=shop"], found[FLEET]
    assert (shop["size_mb"], shop["forecast_365_mb"], shop["instance_id"]) == (3014, 3014 + 3650, 0)
    assert shop["upper_365_mb"] == 6664
    assert shop["lower_365_mb"] == 6664 - 29, "what moved away is no error of the past, but for the growth of its day"
    assert (fleet["size_mb"], fleet["forecast_90_mb"]) == (3614, 4514)
    assert sum(issued.states.values()) == 5, "groups are not counted among what can be full"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM capacity_runway WHERE subject = 'group'")).scalar() == 0


def test_the_page_of_a_group_draws_its_forecast_without_a_limit(engine: Engine, service: AggregationService) -> None:
    declare_labels(engine, [Label("server-1", None, "team", "shop", FIRST)], TODAY)
    compute_windows(service, "daily", FIRST, TODAY)
    compute_windows(service, "monthly", FIRST, TODAY)
    issue_runways(engine, TODAY, TODAY)

    with served_pages(engine.url) as pages:
        shop = pages.document("/group?by=team&name=shop")
        html = pages.ask("/group?by=team&name=shop").text
        past = pages.ask("/group?by=team&name=shop&period=daily&first=2025-05-01&last=2025-06-01").text
        of_server = pages.document("/group?by=server&name=server-1")

    forecast = shop["forecast"]
    assert (forecast["last_day"], forecast["size_mb"], forecast["change_mb_per_day"]) == (str(TODAY), 3514, 10)
    assert [one["size_mb"] for one in forecast["ahead"]] == [3514 + 10 * days for days in (7, 30, 90, 365)]
    assert html.count('class="forecast"') == html.count('class="middle"') == 1
    assert "Shaded: 80 % range" in html
    assert 'class="limit"' not in html
    assert 'class="forecast"' not in past, "a chart that ends in the past has none"
    assert of_server["forecast"] is None


def test_days_on_which_a_server_is_missing_are_not_a_drop_and_no_forecast_begins_on_one(
    engine: Engine, service: AggregationService
) -> None:
    add_database_sizes(engine, sizes(2, "old", FIRST.isoformat(), [5000] * 190))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(5000, 1)] * 190))
    for first, last in ((60, 58), (2, 0)):
        for table in ("database_size_stats", "instance_size_stats"):
            days = f"BETWEEN '{TODAY - timedelta(days=first)}' AND '{TODAY - timedelta(days=last)}'"
            execute(engine, f"DELETE FROM {table} WHERE instance_id = 1 AND collected_date {days}")
    compute_windows(service, "daily", FIRST, TODAY)

    issue_runways(engine, TODAY, TODAY)
    missing = group_forecasts(engine)[FLEET]
    execute(engine, "UPDATE instances SET is_active = false WHERE id = 1")
    issue_runways(engine, TODAY, TODAY)
    retired = group_forecasts(engine)[FLEET]

    assert (missing["last_day"], missing["change_mb_per_day"]) == (TODAY - timedelta(days=3), 10)
    assert retired["last_day"] == TODAY, "a server out of service is not missing"
    assert (retired["size_mb"], retired["change_mb_per_day"]) == (100, 0), "its growth left with it"


@pytest.mark.parametrize("is_sampled", nightly_except([True, False], True), ids=["samples", "daily aggregates only"])
def test_a_server_that_left_is_not_in_the_history_of_its_groups_as_if_it_had_never_been_there(
    engine: Engine, service: AggregationService, is_sampled: bool
) -> None:
    days, last = 190, FIRST + timedelta(days=189)
    add_instances(engine, [3, 4])
    add_database_sizes(engine, sizes(3, "shop", FIRST.isoformat(), [1000 + 40 * day for day in range(days)]))
    add_database_sizes(engine, sizes(3, "shop_old", FIRST.isoformat(), [700 + 3 * day for day in range(days)]))
    add_instance_sizes(engine, totals(3, FIRST.isoformat(), [(1700 + 43 * day, 2) for day in range(days)]))
    add_database_sizes(engine, sizes(4, "untotalled", FIRST.isoformat(), [90 + day for day in range(days)]))
    labels = [
        Label("server-1", None, "team", "shop", FIRST),
        Label("server-1", "still", "team", "archive", FIRST),
        Label("server-3", None, "team", "shop", FIRST),
        Label("server-3", "*_old", "team", "archive", FIRST + timedelta(days=50)),
        Label("server-4", None, "team", "events", FIRST),
    ]
    declare_labels(engine, labels, TODAY)
    compute_windows(service, "daily", FIRST, TODAY)
    execute(engine, "UPDATE instances SET is_active = false WHERE id IN (3, 4)")
    if not is_sampled:
        for table in ("database_size_stats", "instance_size_stats"):
            execute(engine, f"DELETE FROM {table} WHERE collected_date <= '{last}'")

    issue_runways(engine, last, TODAY)
    on_its_last_day = group_forecasts(engine, last)
    missed = last - timedelta(days=3)
    if is_sampled:
        for level in ("database", "instance"):
            execute(engine, f"DELETE FROM {level}_size_stats WHERE instance_id = 3 AND collected_date = '{missed}'")
        issue_runways(engine, missed, TODAY)
    on_a_missed_day = group_forecasts(engine, missed)
    issue_runways(engine, TODAY, TODAY)
    afterwards = group_forecasts(engine)
    for table in ("size_aggregations", "size_stats"):
        for level in ("database", "instance"):
            execute(engine, f"DELETE FROM {level}_{table} WHERE instance_id IN (3, 4)")
    execute(engine, "DELETE FROM group_size_aggregations")
    execute(engine, "DELETE FROM capacity_labels WHERE instance_id IN (3, 4)")
    execute(engine, "DELETE FROM instances WHERE id IN (3, 4)")
    compute_windows(service, "daily", FIRST, TODAY, overwrite=True)
    issue_runways(engine, TODAY, TODAY)

    if is_sampled:
        assert on_its_last_day[FLEET]["change_mb_per_day"] == 54
        assert "team=events" in on_its_last_day
        assert on_a_missed_day[FLEET]["change_mb_per_day"] == 54, "it was measured again later"
    assert afterwards["team=shop"]["change_mb_per_day"] == 10
    assert afterwards == group_forecasts(engine)


def test_a_forecast_of_a_group_is_scored_by_the_sum_of_its_due_day(engine: Engine, service: AggregationService) -> None:
    compute_windows(service, "daily", FIRST, TODAY)
    past = TODAY - timedelta(days=30)
    issue_runways(engine, past, TODAY)

    with engine.connect() as connection:
        [fleet] = connection.execute(
            text("SELECT * FROM capacity_runways WHERE as_of = :day AND name = :name"), {"day": past, "name": FLEET}
        ).all()

    assert (fleet.size_mb, fleet.forecast_30_mb) == (3214, 3514)
    assert (fleet.actual_7_mb, fleet.actual_30_mb, fleet.actual_90_mb) == (3284, 3614, None)
