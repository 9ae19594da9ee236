"""Issued runways: what a day's partition stores and shows, whom its check calls, and how forecasts are scored."""

from __future__ import annotations

import csv
import json
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from pyarrow.parquet import read_table
from sqlalchemy import Engine, text

from capacity_assets.clock import Clock
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.jobs import range_tags
from capacity_assets.orchestration.runways import RUNWAY_JOB
from capacity_assets.periods import PERIODS
from capacity_assets.runway.issued import newest_issue
from capacity_assets.runway.issuing import issue
from capacity_assets.runway.limits import Limit, declare
from capacity_assets.runway.service import RunwayService
from capacity_assets.settings import Settings
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.runs import QUICK_RETRIES, QUIET

FIRST = TODAY - timedelta(days=199)
GROWING = [1024 + 10 * day for day in range(200)]


@pytest.fixture(autouse=True)
def fleet(settings: Settings, engine: Engine) -> None:
    """`orders` grows by ten MiB per day and is full in twenty days, `still` does not grow, `young` has no history."""
    assert settings
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * 200))
    add_database_sizes(engine, sizes(1, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size + 500, 2) for size in GROWING]))
    declare(engine, [Limit("server-1", "orders", 3214), Limit("server-1", "young", 1000)])


def stored(engine: Engine, as_of: date = TODAY) -> dict[str, dict[str, object]]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM capacity_runways WHERE as_of = :day"), {"day": as_of})
        return {str(row["name"]): dict(row) for row in rows.mappings()}


def add_day(engine: Engine, day: date, orders_mb: int) -> None:
    add_database_sizes(engine, sizes(1, "orders", day.isoformat(), [orders_mb]))
    add_database_sizes(engine, sizes(1, "still", day.isoformat(), [500]))
    add_instance_sizes(engine, totals(1, day.isoformat(), [(orders_mb + 500, 2)]))


def test_every_server_and_database_has_a_row_with_its_forecast_whether_its_limit_is_known_or_not(
    engine: Engine,
) -> None:
    issued = issue(engine, TODAY, TODAY)

    rows = stored(engine)
    assert {name: row["state"] for name, row in rows.items()} == {
        "": "limit unknown",
        "orders": "forecast",
        "still": "limit unknown",
        "young": "too little history",
    }
    orders = rows["orders"]
    days = TODAY + timedelta(days=20)
    assert (orders["early_day"], orders["middle_day"], orders["late_day"]) == (days, days, days)
    assert (orders["size_mb"], orders["limit_mb"], orders["binds"]) == (3014, 3214, "own limit")
    assert [orders[f"forecast_{days}_mb"] for days in (7, 30, 90, 365)] == [3084, 3314, 3914, 6664]
    assert [orders[f"lower_{days}_mb"] for days in (7, 30, 90)] == [3084, 3314, 3914]
    assert [orders[f"probability_{days}"] for days in (7, 30, 90, 365)] == [0, 1, 1, 1]
    assert (rows["still"]["forecast_30_mb"], rows["still"]["probability_30"]) == (500, None)
    assert (rows["young"]["forecast_7_mb"], rows["young"]["middle_day"]) == (None, None)
    assert issued.issue is not None
    assert (issued.written, issued.issue.unknown_limits, issued.states["too little history"]) == (4, 1, 1)
    assert [risk.outlook.database for risk in issued.issue.risks] == ["orders"]


def test_the_same_again_writes_nothing_and_a_changed_day_is_replaced_while_it_lasts(engine: Engine) -> None:
    issue(engine, TODAY, TODAY)
    again = issue(engine, TODAY, TODAY)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE database_name = 'young'"))
    declare(engine, [Limit("server-1", "orders", 9000)])
    changed = issue(engine, TODAY, TODAY)

    assert (again.written, changed.written) == (0, 2), "one replaced, one removed"
    assert stored(engine)["orders"]["limit_mb"] == 9000
    assert "young" not in stored(engine)


def test_what_was_issued_in_time_stays_whatever_is_corrected_later_unless_it_is_overwritten(engine: Engine) -> None:
    issue(engine, TODAY, TODAY)
    before = stored(engine)
    later = TODAY + timedelta(days=2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = size_mb + 7 WHERE database_name = 'orders'"))

    kept = issue(engine, TODAY, later)
    assert (kept.written, stored(engine)) == (0, before)
    replaced = issue(engine, TODAY, later, overwrite=True)

    assert (replaced.written, stored(engine)["orders"]["size_mb"]) == (1, 3021)


def test_a_forecast_is_scored_on_the_day_for_which_it_was_made(engine: Engine) -> None:
    issue(engine, TODAY, TODAY)
    due = TODAY + timedelta(days=7)
    for day in range(1, 8):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
    add_day_volume = text(
        "UPDATE database_size_stats SET size_mb = 600 WHERE database_name = 'still' AND collected_date = :day"
    )
    with engine.begin() as connection:
        connection.execute(add_day_volume, {"day": due})

    issued = issue(engine, due, due)

    rows = stored(engine)
    assert {name: row["actual_7_mb"] for name, row in rows.items()} == {
        "": 3584,
        "orders": 3084,
        "still": 600,
        "young": None,
    }
    assert rows["orders"]["actual_30_mb"] is None
    assert issued.issue is not None
    [score] = issued.issue.scores
    # `still` was forecast at 500: 100 of 600 MiB, or a third of a sixth over the three; the last size would have been
    # off by 70, 70 and 100.
    assert (score.horizon_days, score.forecasts) == (7, 3)
    assert (score.error_percent, score.relative_error, score.covered_percent) == (5.56, round(100 / 240, 3), 66.7)
    assert issued.to_dict()["error_7_days_percent"] == 5.56


def test_forecasts_that_came_due_while_no_run_was_made_are_scored_by_the_next_one(engine: Engine) -> None:
    issue(engine, TODAY, TODAY)
    for day in range(1, 61):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)

    late = TODAY + timedelta(days=60)
    issued = issue(engine, late, late)

    orders = stored(engine)["orders"]
    assert (orders["actual_7_mb"], orders["actual_30_mb"], orders["actual_90_mb"]) == (3084, 3314, None)
    assert issued.issue is not None
    assert issued.issue.scores == []


def test_past_days_that_are_issued_in_hindsight_are_scored_at_once_in_whatever_order(engine: Engine) -> None:
    days = [TODAY - timedelta(days=ago) for ago in (10, 40, 20)]
    for day in days:
        issue(engine, day, TODAY)

    assert [stored(engine, day)["orders"]["actual_7_mb"] for day in days] == [2984, 2684, 2884]
    assert {row["in_time"] for day in days for row in stored(engine, day).values()} == {False}


def test_samples_that_lag_behind_the_day_of_the_issue_are_scored_too(engine: Engine) -> None:
    for day in range(9):
        if day:
            add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
        last = issue(engine, TODAY + timedelta(days=day + 1), TODAY + timedelta(days=day + 1))

    assert stored(engine, TODAY + timedelta(days=1))["orders"]["actual_7_mb"] == 3084
    assert last.issue is not None


def test_a_forecast_that_is_overwritten_from_another_day_loses_what_was_measured_for_the_former(engine: Engine) -> None:
    past = TODAY - timedelta(days=20)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date = :day"), {"day": past})
    issue(engine, past, TODAY)
    before = stored(engine, past)["orders"]
    add_database_sizes(engine, sizes(1, "orders", past.isoformat(), [2814]))
    issue(engine, past, TODAY, overwrite=True)
    after = stored(engine, past)["orders"]

    assert (before["last_day"], before["actual_7_mb"]) == (past - timedelta(days=1), 2874)
    assert (after["last_day"], after["actual_7_mb"]) == (past, 2884)


def test_more_databases_than_are_told_on_one_full_volume_hide_nothing_else(engine: Engine) -> None:
    add_instances(engine, [2])
    for n in range(30):
        add_database_sizes(engine, sizes(2, f"db-{n}", (TODAY - timedelta(days=1)).isoformat(), [10, 10]))
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, 2, '/full', 900, 0, 'measured')"
            ),
            {"day": TODAY},
        )
        connection.execute(
            text(
                "INSERT INTO database_limit_stats "
                "(collected_date, instance_id, database_name, is_unlimited, volumes, source) "
                "SELECT :day, 2, 'db-' || n, true, ARRAY['/full'], 'measured' FROM generate_series(0, 29) n"
            ),
            {"day": TODAY},
        )
    issue(engine, TODAY, TODAY)

    with engine.connect() as connection:
        shown = newest_issue(connection, TODAY, TODAY, shown=5)

    assert shown is not None
    assert [(risk.outlook.server, risk.outlook.told) for risk in shown.risks] == [
        ("server-2", "volume /full"),
        ("server-1", "orders"),
    ]


def service(engine: Engine, today: date = TODAY) -> RunwayService:
    return RunwayService(engine, fixed_clock(today))


def test_the_view_has_the_newest_day_and_the_error_view_every_month(engine: Engine) -> None:
    issue(engine, TODAY, TODAY)
    for day in range(1, 8):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
    due = TODAY + timedelta(days=7)
    issue(engine, due, due)

    with engine.connect() as connection:
        newest = connection.execute(
            text(
                "SELECT server, subject, name, as_of, full_middle, probability_30_days FROM capacity_runway "
                "WHERE state = 'forecast'"
            )
        ).all()
        errors = connection.execute(
            text(
                "SELECT month, subject, horizon_days, issued_in_time, forecasts, error_percent, covered_percent "
                "FROM capacity_forecast_errors ORDER BY subject"
            )
        ).all()

    assert newest == [("server-1", "database", "orders", due, due + timedelta(days=13), 1.0)]
    month = due.replace(day=1)
    # The test's clock is not that of the database.
    assert [(row[0], row[1], row[2], row[4], float(row[5]), float(row[6])) for row in errors] == [
        (month, "database", 7, 2, 0, 100),
        (month, "server", 7, 1, 0, 100),
    ]


def materialise(days: list[date], today: date = TODAY, **config: object) -> dg.ExecuteInProcessResult:
    definitions = build_definitions(Settings(), clock=fixed_clock(today), retries=QUICK_RETRIES)
    windows = [PERIODS["daily"].window_of(day) for day in days]
    partition = {"partition_key": windows[0].key} if len(windows) == 1 else {}
    return definitions.resolve_job_def(RUNWAY_JOB).execute_in_process(
        run_config=QUIET | ({"ops": {"runway": {"config": config}}} if config else {}),
        tags=range_tags(windows) if len(windows) > 1 else None,
        raise_on_error=False,
        **partition,
    )


def test_the_partition_of_a_day_shows_what_fills_first_and_its_check_says_when_and_how_sure() -> None:
    result = materialise([TODAY])

    [event] = result.get_asset_materialization_events()
    metadata = {key: value.value for key, value in event.materialization.metadata.items()}
    [check] = result.get_asset_check_evaluations()
    day = TODAY + timedelta(days=20)
    assert list(metadata)[:2] == ["Fills first", "Fills soon"]
    assert f"| server-1 | orders | 2.9 GiB | 3.1 GiB | own limit | {day} | {day} | {day} | 100% |" in str(
        metadata["Fills first"]
    )
    assert (metadata["Fills soon"], metadata["subjects"], metadata["unknown_limits"]) == (1, 4, 1)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert str(check.description) == (
        f"As of {TODAY}:\n\n- orders on server-1: full within 30 days with 100% (early {day}, middle {day}, "
        f"late {day}). 2.9 GiB of 3.1 GiB, own limit, declared. Assumed: it goes on by +10 MiB per day, "
        "and past errors of such forecasts."
    )
    assert check.metadata["incident"].value == "server-1/orders"


def test_the_horizon_and_the_severity_of_the_check_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_FILLS_SOON_DAYS", "7")
    monkeypatch.setenv("CAPACITY_FILLS_SOON_SEVERITY", "warn")

    [check] = materialise([TODAY]).get_asset_check_evaluations()

    assert (check.passed, check.severity) == (True, dg.AssetCheckSeverity.WARN)
    assert (
        check.description == f"As of {TODAY}: Nothing is full within 7 days with a probability of 50 percent or more."
    )


def test_a_range_of_days_issues_each_from_the_samples_up_to_it(engine: Engine) -> None:
    days = [TODAY - timedelta(days=1), TODAY]

    result = materialise(days)

    by_day = {
        event.partition: event.materialization.metadata["as_of"].value
        for event in result.get_asset_materialization_events()
    }
    assert by_day == {day.isoformat(): day.isoformat() for day in days}
    assert [stored(engine, day)["orders"]["size_mb"] for day in days] == [3004, 3014]


def test_a_day_that_lies_ahead_is_refused(engine: Engine) -> None:
    result = materialise([TODAY], today=TODAY - timedelta(days=1))

    assert not result.success
    [failure] = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data is not None
    assert "lies ahead: there is nothing to forecast from." in str(
        failure.step_failure_data.user_failure_data.description
    )
    assert stored(engine) == {}


def test_a_day_without_any_sample_issues_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            connection.execute(text(f"DELETE FROM {table}"))

    issued = service(engine).issue(TODAY)

    assert (issued.issue, issued.to_dict()["subjects"], issued.to_dict()["written_records"]) == (None, 0, 0)


def test_the_headroom_of_a_server_is_that_of_its_volumes_where_they_are_measured(engine: Engine) -> None:
    declare(engine, [Limit("server-1", None, 9999)])
    declared = issue(engine, TODAY, TODAY).to_dict()["headroom_mb"]
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, 1, '/a', 1000, 300, 'measured'), (:day, 1, '/b', 1000, 40, 'measured')"
            ),
            {"day": TODAY},
        )

    assert (declared, issue(engine, TODAY, TODAY).to_dict()["headroom_mb"]) == (9999 - 3514, 340)


def test_status_and_exports_have_the_newest_runways(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)
    before = capacity("status", columns=200)
    issue(engine, TODAY, TODAY)

    shown = capacity("status", columns=200)
    document = json.loads(capacity("status", "--json").output)
    exported = capacity("export", "--runway").output.splitlines()
    parquet = tmp_path / "runways.parquet"
    written = capacity("export", "--runway", "--output", str(parquet))
    unclear = [capacity("export"), capacity("export", "--runway", "--period", "daily")]

    full = TODAY + timedelta(days=20)
    assert "Fills first: no runway was issued within the last month." in before.output
    lines = shown.output.splitlines()
    place = lines.index(f"Fills first, as of {TODAY}")
    assert lines[place + 2].split() == ["server-1", "orders", *[str(full)] * 3]
    assert "Limit unknown: 1 database." in lines
    assert document["runways"]["risks"][0]["outlook"]["middle_day"] == str(full)
    rows = list(csv.DictReader(exported))
    assert [(row["subject"], row["name"]) for row in rows] == [
        ("database", "orders"),
        ("database", "still"),
        ("database", "young"),
        ("server", ""),
    ]
    assert (rows[0]["full_middle"], rows[0]["probability_30_days"], rows[1]["limit_mb"]) == (str(full), "1", "")
    assert written.output == f"4 rows of capacity_runway written to {parquet}\n"
    table = read_table(parquet)
    assert str(table.schema.field("probability_30_days").type) == "double"
    assert table.column("full_middle").to_pylist()[0] == full
    assert {refused.exit_code for refused in unclear} == {2}
    assert all("Say what to write: either --period or --runway." in refused.output for refused in unclear)


def test_a_past_day_that_is_materialised_again_shows_what_is_stored_and_changes_no_verdict_on_today(
    engine: Engine,
) -> None:
    past = TODAY - timedelta(days=25)
    issue(engine, past, past)
    materialise([TODAY])
    declare(engine, [Limit("server-1", "still", 501), Limit("server-1", "orders", 9000)])

    result = materialise([past])

    [event] = result.get_asset_materialization_events()
    [check] = result.get_asset_check_evaluations()
    assert event.materialization.metadata["written_records"].value == 0
    assert "3.1 GiB" in str(event.materialization.metadata["Fills first"].value), "as it was issued"
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert str(check.description).startswith(f"As of {TODAY}:\n\n- orders on server-1: full within 30 days")


def test_status_says_when_limits_are_newer_than_the_runways(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)
    issue(engine, TODAY, TODAY)
    before = capacity("status", columns=200).output
    declare(engine, [Limit("server-1", "still", 501)])

    assert "were declared after" not in before
    assert "UTC: `capacity runway` has them." in capacity("status", columns=200).output


def test_an_explanation_says_what_was_said_before_and_what_became_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ago in (30, 7):
        issue(engine, TODAY - timedelta(days=ago), TODAY)
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)

    told = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    document = json.loads(capacity("explain", "orders", "--runway", "--json").output)

    place = told.index("What was said before")
    full = str(TODAY + timedelta(days=20))
    assert [line.split() for line in told[place + 2 : place + 4]] == [
        [str(TODAY - timedelta(days=7)), full, "7", "days", "2.9", "GiB", "2.9", "GiB", "+0.0%"],
        [str(TODAY - timedelta(days=30)), full, "30", "days", "2.9", "GiB", "2.9", "GiB", "+0.0%"],
    ]
    assert [(one["forecast_mb"], one["actual_mb"]) for one in document["said_before"]] == [(3014, 3014)] * 2
