"""The page that says how good the forecasts were: errors, ranges, probabilities, misses, and one sentence."""

from __future__ import annotations

import csv
import io
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.reading import accuracy
from capacity_assets.reading.accuracy import accuracy_of, headline
from tests.clocks import TODAY
from tests.fleet import add_instances
from tests.pages import served_pages
from tests.runways import fill_with_limits, stored_runways

STORE = text("""
INSERT INTO capacity_runways
    (as_of, instance_id, subject, name, state, last_day, size_mb, limit_mb, change_mb_per_day, history_days, in_time,
     forecast_30_mb, lower_30_mb, upper_30_mb, probability_30, actual_7_mb, actual_30_mb, middle_day)
VALUES (:as_of, :server, :subject, :name, 'forecast', :as_of, :size, :limit, 0, 400, :in_time,
        :forecast, :lower, :upper, :probability, :actual_7, :actual, :middle)
""")


def forecast_of(as_of: date, name: str, **values: Any) -> dict[str, Any]:
    """A stored 30-day forecast of 1,000 MiB from 900 MiB, 950 to 1,050, that was right."""
    usual = {"server": 1, "subject": "database", "size": 900, "limit": None, "in_time": True, "forecast": 1000}
    measured = {"lower": 950, "upper": 1050, "probability": None, "actual_7": None, "actual": 1000, "middle": None}
    return {"as_of": as_of, "name": name, **usual, **measured, **values}


def store(engine: Engine, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(STORE, rows)


DUE_TODAY = TODAY - timedelta(days=30)


def test_errors_ranges_and_misses_are_those_of_the_forecasts_that_came_due_lately(engine: Engine) -> None:
    add_instances(engine, [1])
    right = [forecast_of(DUE_TODAY, f"right-{n}") for n in range(15)]
    low = [forecast_of(DUE_TODAY, f"low-{n}", actual=1250) for n in range(4)]
    worst = [forecast_of(DUE_TODAY - timedelta(days=n), "worst", actual=2000 - n, in_time=False) for n in range(2)]
    not_measured = [forecast_of(DUE_TODAY, "gone", actual=None)]
    volume = [forecast_of(DUE_TODAY, "/data", subject="volume", actual=500)]
    long_ago = [forecast_of(TODAY - timedelta(days=120), "old", actual=9000)]
    not_yet = [forecast_of(DUE_TODAY + timedelta(days=1), "young", actual=None)]
    store(engine, [*right, *low, *worst, *not_measured, *volume, *long_ago, *not_yet])

    with served_pages(engine.url) as pages:
        page, html = pages.document("/accuracy"), pages.ask("/accuracy").text
        rows = list(csv.DictReader(io.StringIO(pages.ask("/accuracy?format=csv").text)))
        refused = pages.ask("/accuracy?horizon=8")

    sentence = (
        "Over the last 90 days, 30-day forecasts were off by 0.0 % (median); 68 % of sizes fell within the range "
        "(promised: 80 %). Forecasting no change would have been off by 10.0 %. No fill date has come due yet, so "
        "dates cannot be judged."
    )
    assert (page["headline"], page["horizon_days"], page["sampled"]) == (sentence, 30, "")
    [by_horizon] = page["horizons"]
    assert (by_horizon["forecasts"], by_horizon["not_measured"], by_horizon["in_hindsight"]) == (22, 1, 2)
    assert (by_horizon["median_error_percent"], by_horizon["unchanged_error_percent"]) == (0, 10)
    # 15 of 22 within; the 4 low ones and the worst two above, the volume below.
    assert (by_horizon["covered_percent"], by_horizon["above_percent"]) == (68.2, 27.3)
    kinds = {one["subject"]: (one["forecasts"], one["covered_percent"]) for one in page["kinds"]}
    assert kinds == {"database": (21, 71.4), "volume": (1, None)}, "one volume makes no percentage"
    misses = [(one["name"], one["forecast_mb"], one["actual_mb"], one["error_mb"]) for one in page["misses"]]
    assert misses[:3] == [("worst", 1000, 2000, 1000), ("/data", 1000, 500, -500), ("low-0", 1000, 1250, 250)]
    assert len(misses) == 6, "one of each subject"
    assert '<a href="/database?server=1&amp;name=worst">worst</a>' in html
    assert '<a href="/volume?server=1&amp;name=%2Fdata">disk /data</a>' in html
    months = {row["month"]: (row["forecasts"], row["not_measured"]) for row in rows}
    assert months == {"2025-06-01": ("22", "1"), "2025-03-01": ("1", "0")}
    assert "horizon must be one of 7, 30," in refused.text


def test_probabilities_are_held_against_what_was_full_by_the_due_day(engine: Engine) -> None:
    add_instances(engine, [1])
    limited = {"limit": 1000}
    likely = [
        forecast_of(DUE_TODAY, f"l{n}", **limited, probability=0.85, actual=1000 if n < 17 else 999) for n in range(20)
    ]
    purged = [forecast_of(DUE_TODAY, f"p{n}", **limited, probability=0.31, actual_7=1100, actual=10) for n in range(3)]
    never = [forecast_of(DUE_TODAY, f"n{n}", **limited, probability=0, actual=100) for n in range(40)]
    unknown = [forecast_of(DUE_TODAY, "unknown", probability=None)]
    store(engine, [*likely, *purged, *never, *unknown])

    with served_pages(engine.url) as pages:
        calibration = pages.document("/accuracy")["calibration"]

    of_tenths = [
        (one["from_percent"], one["to_percent"], one["forecasts"], one["filled"], one["filled_percent"])
        for one in calibration
    ]
    assert of_tenths == [(0, 10, 40, 0, 0), (30, 40, 3, 3, None), (80, 90, 20, 17, 85)]
    assert calibration[2]["mean_percent"] == pytest.approx(85)


def test_thresholds_and_fill_dates_are_held_against_the_first_day_on_which_it_was_full(engine: Engine) -> None:
    """Forecasts of ten disks with a limit of 1,000 MiB: five fill after ten days, and are purged before day 30."""
    add_instances(engine, [1])
    disks = [
        forecast_of(
            DUE_TODAY + timedelta(days=day),
            f"{kind}{number}",
            subject="volume",
            limit=1000,
            size=1000 if kind == "fills" and 10 <= day < 20 else 900,
            probability=0.6 if kind == "fills" and number < 3 else 0.3,
            actual=900,
            middle=DUE_TODAY + timedelta(days=14),
        )
        for kind in ("fills", "stays")
        for number in range(5)
        for day in range(0, 31, 5)
    ]
    store(engine, disks)
    # As often as is enough for percentages.
    store(engine, [one | {"as_of": DUE_TODAY - timedelta(days=ago)} for ago in (1, 2, 3) for one in disks[::7]])

    with served_pages(engine.url) as pages:
        page, html = pages.document("/accuracy"), pages.ask("/accuracy").text

    names = ("word", "from_percent", "filled", "named", "alarms", "days_of_warning", "named_percent", "right_percent")
    assert [tuple(one[name] for name in names) for one in page["alarms"]] == [
        ("watch", 20, 20, 20, 40, 11.5, 100, 50),
        ("act", 50, 20, 12, 12, 11.5, 60, None),
    ]
    [dates] = page["fill_dates"]
    assert (dates["forecasts"], dates["filled"], dates["not_filled"], dates["undated"]) == (40, 20, 20, 0)
    assert (dates["median_error_days"], dates["sooner"]) == (4, 20)
    assert (
        "Judged: 40 forecasts whose fill date has passed or that filled. The date was off by 4 days (median). "
        "20 filled earlier than forecast, 20 had not filled by the due day."
    ) in html
    assert " 40 fill dates came due; where something filled, the date was off by 4 days (median)." in page["headline"]
    assert '<span class="chip act">Act</span> from 50 %' in html


def test_before_enough_forecasts_came_due_the_page_says_when_the_first_does(engine: Engine) -> None:
    def said() -> str:
        with engine.connect() as connection:
            return headline(accuracy_of(connection, TODAY), 30, TODAY)

    assert said() == "No forecast was issued yet, so there is nothing to judge."
    fill_with_limits(engine)
    issue_runways(engine, TODAY, TODAY)
    assert said() == "Too few forecasts have come due to judge: the first comes due on 19 Aug 2025."
    with served_pages(engine.url) as pages:
        page = pages.document("/accuracy")
        assert (page["horizon_days"], page["horizons"], page["misses"]) == (7, [], [])
        assert "the first comes due on 27 Jul 2025." in pages.ask("/accuracy").text
        assert '<a href="/accuracy">' in pages.ask("/server?server=1").text
    store(engine, [forecast_of(DUE_TODAY, f"d{n}") for n in range(19)])
    assert said() == (
        "Too few forecasts have come due to judge: only 19 of the 20 needed 30-day forecasts in the last 90 days."
    )
    store(engine, [forecast_of(DUE_TODAY, "d19")])
    assert "100 % of sizes fell within the range (promised: 80 %)." in said()


def test_forecasts_that_were_computed_in_hindsight_are_said_to_be(engine: Engine) -> None:
    fill_with_limits(engine)
    for ago in range(40, 33, -1):
        issue_runways(engine, TODAY - timedelta(days=ago), TODAY)

    with engine.connect() as connection:
        found = accuracy_of(connection, TODAY)

    assert stored_runways(engine, TODAY - timedelta(days=40))["orders"]["actual_30_mb"] == 2914
    # The server, orders and still, seven days each; a straight line is forecast exactly.
    [seven, thirty] = found.horizons
    assert (thirty.forecasts, thirty.median_error_percent, thirty.covered_percent) == (21, 0, 100)
    assert thirty.unchanged_error_percent == pytest.approx(100 * 300 / 3414, abs=2)
    afterwards = "All these forecasts were computed afterwards, using only earlier samples."
    assert headline(found, 30, TODAY).endswith(afterwards)
    assert (seven.horizon_days, seven.in_hindsight) == (7, 21)


def test_of_a_large_fleet_some_days_and_servers_are_looked_at_and_the_page_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_instances(engine, [1, 2])
    every = [
        forecast_of(TODAY - timedelta(days=ago), f"d{n}", server=server)
        for ago in range(30, 100)
        for server in (1, 2)
        for n in range(5)
    ]
    store(engine, every)

    def looked_at(most: int) -> tuple[int, str, str]:
        monkeypatch.setattr(accuracy, "MOST_ROWS", most)
        with served_pages(engine.url) as pages:
            page = pages.document("/accuracy")
        return page["horizons"][0]["forecasts"], page["sampled"], page["sampled_months"]

    # 10 subjects on 70 days of issue.
    assert looked_at(700) == (700, "", "")
    assert looked_at(300) == (100, "one day of issue in 7", "one day of issue in 7")
    forecasts, sampled, _ = looked_at(20)
    assert (forecasts, sampled) == (15, "one day of issue in 28 and one server in 2")
