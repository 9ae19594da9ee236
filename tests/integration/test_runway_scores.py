"""Forecasts are scored on the day for which they were made, and what was issued in time stays."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.database.changes import gather_records
from capacity_assets.forecast.issuing import changed_spans, issue_runways
from capacity_assets.reading import accuracy
from capacity_assets.reading.forecasts import figures_of, issue_of
from tests.clocks import TODAY
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, sizes
from tests.profiles import nightly_except
from tests.runways import add_day, add_volume, stored_runways

pytestmark = pytest.mark.usefixtures("fleet_with_limits")


@pytest.mark.usefixtures("issued_today")
def test_what_was_issued_in_time_stays_whatever_is_corrected_later_unless_it_is_overwritten(engine: Engine) -> None:
    before = stored_runways(engine)
    later = TODAY + timedelta(days=2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = size_mb + 7 WHERE database_name = 'orders'"))

    kept = issue_runways(engine, TODAY, later)
    assert (kept.written, stored_runways(engine)) == (0, before)
    replaced = issue_runways(engine, TODAY, later, overwrite=True)

    assert (replaced.written, stored_runways(engine)["orders"]["size_mb"]) == (1, 3021)


@pytest.mark.usefixtures("issued_today")
def test_a_forecast_is_scored_on_the_day_for_which_it_was_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    due = TODAY + timedelta(days=7)
    for day in range(1, 8):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
    add_day_volume = text(
        "UPDATE database_size_stats SET size_mb = 600 WHERE database_name = 'still' AND collected_date = :day"
    )
    with engine.begin() as connection:
        connection.execute(add_day_volume, {"day": due})

    issue_runways(engine, due, due)

    rows = stored_runways(engine)
    assert {name: row["actual_7_mb"] for name, row in rows.items()} == {
        "": 3584,
        "orders": 3084,
        "still": 600,
        "young": None,
    }
    assert rows["orders"]["actual_30_mb"] is None
    too_few = figures_of(issue_of(engine, due, due))
    assert {name: value for name, value in too_few.items() if "7_days" in name} == {"scored_7_days": 3}
    monkeypatch.setattr(accuracy, "LEAST_CASES", 3)
    stored = issue_of(engine, due, due)
    assert stored is not None
    [score] = stored.scores
    # `still` was forecast at 500: 100 of 600 MiB, or a third of a sixth over the three; the last size would have been
    # off by 70, 70 and 100.
    assert (score.horizon_days, score.forecasts) == (7, 3)
    assert (score.error_percent, score.relative_error, score.covered_percent) == (5.56, round(100 / 240, 3), 66.7)
    assert figures_of(stored)["mean_error_7_days_percent"] == 5.56


@pytest.mark.usefixtures("issued_today")
def test_forecasts_that_came_due_while_no_run_was_made_are_scored_by_the_next_one(engine: Engine) -> None:
    for day in range(1, 61):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)

    late = TODAY + timedelta(days=60)
    issue_runways(engine, late, late)

    orders = stored_runways(engine)["orders"]
    assert (orders["actual_7_mb"], orders["actual_30_mb"], orders["actual_90_mb"]) == (3084, 3314, None)
    stored = issue_of(engine, late, late)
    assert stored is not None
    assert stored.scores == []


def test_past_days_that_are_issued_in_hindsight_are_scored_at_once_in_whatever_order(engine: Engine) -> None:
    days = [TODAY - timedelta(days=ago) for ago in (10, 40, 20)]
    for day in days:
        issue_runways(engine, day, TODAY)

    assert [stored_runways(engine, day)["orders"]["actual_7_mb"] for day in days] == [2984, 2684, 2884]
    assert {row["in_time"] for day in days for row in stored_runways(engine, day).values()} == {False}


def test_samples_that_lag_behind_the_day_of_the_issue_are_scored_too(engine: Engine) -> None:
    for day in range(9):
        if day:
            add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
        issue_runways(engine, TODAY + timedelta(days=day + 1), TODAY + timedelta(days=day + 1))

    assert stored_runways(engine, TODAY + timedelta(days=1))["orders"]["actual_7_mb"] == 3084
    assert issue_of(engine, TODAY + timedelta(days=9), TODAY + timedelta(days=9)) is not None


def test_a_forecast_that_is_overwritten_from_another_day_loses_what_was_measured_for_the_former(engine: Engine) -> None:
    past = TODAY - timedelta(days=20)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date = :day"), {"day": past})
    issue_runways(engine, past, TODAY)
    before = stored_runways(engine, past)["orders"]
    add_database_sizes(engine, sizes(1, "orders", past.isoformat(), [2814]))
    issue_runways(engine, past, TODAY, overwrite=True)
    after = stored_runways(engine, past)["orders"]

    assert (before["last_day"], before["actual_7_mb"]) == (past - timedelta(days=1), 2874)
    assert (after["last_day"], after["actual_7_mb"]) == (past, 2884)


@pytest.mark.parametrize(("used_then", "used_mb"), [(None, None), ("used_mb", 5100), (None, 5100)])
def test_a_forecast_of_a_volume_is_held_against_the_same_measure_of_use(
    engine: Engine, used_then: str | None, used_mb: int | None
) -> None:
    """Before the used size was known, a reserve counted as used; the difference is not an error of the forecast."""
    due = TODAY + timedelta(days=7)
    for day in (*(TODAY - timedelta(days=back) for back in range(120)), due):
        add_volume(engine, 1, "/data", day, 10_000, 4000)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE volume_size_stats SET used_mb = :mb WHERE collected_date = :day"), {"mb": used_mb, "day": due}
        )
        if used_then:
            connection.execute(
                text("UPDATE volume_size_stats SET used_mb = 5000 WHERE collected_date < :day"), {"day": due}
            )
    issue_runways(engine, TODAY, TODAY)
    issue_runways(engine, due, due)

    expected = {(None, None): 6000, ("used_mb", 5100): 5100, (None, 5100): None}[used_then, used_mb]
    assert stored_runways(engine)["/data"]["actual_7_mb"] == expected


@pytest.mark.parametrize("aggregated", nightly_except([True, False], True))
def test_a_forecast_is_scored_by_the_sample_of_its_due_day_whenever_that_comes_or_is_corrected(
    engine: Engine, service: AggregationService, aggregated: bool
) -> None:
    add_volume(engine, 1, "/data", TODAY, 9_000, 4_000)
    columns = "instance_id, volume_name, total_mb, free_mb, used_mb, source"
    execute(
        engine,
        f"INSERT INTO volume_size_stats (collected_date, {columns}) "
        f"SELECT collected_date - n, {columns} FROM volume_size_stats, generate_series(1, 79) n",
    )
    due = TODAY + timedelta(days=7)

    def next_day(day: int) -> dict[str, object]:
        """Issue the next day; beforehand, compute the windows of all days or not."""
        as_of = TODAY + timedelta(days=day)
        add_day(engine, as_of, 3014 + 10 * day)
        if aggregated:
            compute_windows(service, "daily", TODAY, as_of)
        issue_runways(engine, as_of, as_of)
        return {name: row["actual_7_mb"] for name, row in stored_runways(engine).items()}

    issue_runways(engine, TODAY, TODAY)
    for day in (1, 6, 8):
        next_day(day)
    none = {"": None, "orders": None, "still": None, "young": None, "/data": None}
    assert next_day(14) == none, "the due day was not measured"

    add_day(engine, due, 3084)
    add_volume(engine, 1, "/data", due, 9_000, 3_900)
    late = {**none, "": 3584, "orders": 3084, "still": 500, "/data": 5_100}
    assert next_day(16) == late, "nine days after"

    execute(
        engine,
        f"UPDATE database_size_stats SET size_mb = 3000 WHERE database_name = 'orders' AND collected_date = '{due}'",
    )
    assert next_day(38) == {**late, "orders": 3000}, "corrected a month after"

    execute(engine, f"UPDATE instance_size_stats SET is_deleted = true WHERE collected_date = '{due}'")
    assert next_day(45) == {**late, "orders": 3000, "": None}, "void"
    execute(engine, f"DELETE FROM database_size_stats WHERE collected_date = '{due}'")
    assert next_day(46)["orders"] == 3000, "retention takes no score along"


def test_only_days_that_changed_since_the_issue_before_are_compared_again(
    engine: Engine, service: AggregationService
) -> None:
    for day in range(1, 60):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
    last = TODAY + timedelta(days=59)
    compute_windows(service, "daily", TODAY, last)
    issue_runways(engine, last, last)
    execute(engine, "UPDATE capacity_computed_windows SET computed_at = CAST(period_start AS timestamptz)")

    def spans(as_of: date) -> list[tuple[date, date]]:
        with engine.connect() as connection:
            return changed_spans(connection, as_of, as_of)

    tomorrow = last + timedelta(days=1)
    assert spans(tomorrow) == [(last - timedelta(days=1), tomorrow)]
    execute(engine, f"UPDATE database_size_stats SET size_mb = 1 WHERE collected_date = '{TODAY}'")
    gather_records(engine)  # else nodes of a cluster keep them until the next run
    assert spans(tomorrow) == [(TODAY, TODAY), (last - timedelta(days=1), tomorrow)]
    compute_windows(service, "daily", TODAY, TODAY)
    assert spans(tomorrow) == [(TODAY, TODAY), (last - timedelta(days=1), tomorrow)]
