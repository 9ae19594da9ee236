"""Issued runways: what the partition of a day stores and shows, and whom its check calls."""

from __future__ import annotations

from datetime import date, timedelta

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_day
from capacity_assets.forecast.decisions import Decision, decide
from capacity_assets.forecast.issuing import RunwayService, issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.partitions import range_tags
from capacity_assets.orchestration.runways import RUNWAY_JOB
from capacity_assets.reading.forecasts import issue_of
from tests.clocks import TODAY, fixed_clock
from tests.runs import QUICK_RETRIES, QUIET
from tests.runways import stored_runways

pytestmark = pytest.mark.usefixtures("fleet_with_limits")


def test_every_server_and_database_has_a_row_with_its_forecast_whether_its_limit_is_known_or_not(
    engine: Engine,
) -> None:
    issued = issue_runways(engine, TODAY, TODAY)

    rows = stored_runways(engine)
    assert {name: row["state"] for name, row in rows.items()} == {
        "": "limit unknown",
        "orders": "forecast",
        "still": "limit unknown",
        "young": "too little history",
    }
    orders = rows["orders"]
    assert [(orders[f"{which}_day"] - TODAY).days for which in ("early", "middle", "late")] == [13, 20, 73]
    assert (orders["size_mb"], orders["limit_mb"], orders["binds"]) == (3014, 3214, "own limit")
    assert [orders[f"forecast_{days}_mb"] for days in (7, 30, 90, 365)] == [3084, 3314, 3914, 6664]
    assert [orders[f"lower_{days}_mb"] for days in (7, 30, 90)] == [3084, 3314, 3914]
    assert [orders[f"probability_{days}"] for days in (7, 30, 90, 365)] == [0.046, 0.793, 0.917, 0.97]
    assert (rows["still"]["forecast_30_mb"], rows["still"]["probability_30"]) == (500, None)
    assert (rows["young"]["forecast_7_mb"], rows["young"]["middle_day"]) == (None, None)
    stored = issue_of(engine, TODAY, TODAY)
    assert stored is not None
    assert (issued.written, stored.unknown_limits, issued.states["too little history"]) == (4, 1, 1)
    assert [risk.key for risk in stored.risks] == [(1, "database", "orders")]


def test_the_same_again_writes_nothing_and_a_changed_day_is_replaced_while_it_lasts(engine: Engine) -> None:
    issue_runways(engine, TODAY, TODAY)
    again = issue_runways(engine, TODAY, TODAY)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE database_name = 'young'"))
    declare_limits(engine, [Limit("server-1", "orders", 9000)])
    changed = issue_runways(engine, TODAY, TODAY)

    assert (again.written, changed.written) == (0, 2), "one replaced, one removed"
    assert stored_runways(engine)["orders"]["limit_mb"] == 9000
    assert "young" not in stored_runways(engine)


def service(engine: Engine, today: date = TODAY) -> RunwayService:
    return RunwayService(engine, fixed_clock(today))


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
    early, day, late = (human_day(TODAY + timedelta(days=days)) for days in (13, 20, 73))
    assert list(metadata)[:2] == ["Fills first", "Fills soon"]
    assert f"| server-1 | orders | 2.9 GiB | 3.1 GiB | own limit | {early} | {day} | {late} | 79 % |" in str(
        metadata["Fills first"]
    )
    assert (metadata["Fills soon"], metadata["subjects"], metadata["unknown_limits"]) == (1, 4, 1)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert str(check.description) == (
        f"As of {human_day(TODAY)}:\n\n- orders on server-1: full by {day} (80 % range: 2 Aug to 1 Oct 2025), within "
        "30 days with a probability of 79 %. 2.9 GiB of 3.1 GiB (own limit, declared). "
        "Forecast growth: +10 MiB per day."
    )


def test_the_check_leaves_out_what_was_decided_on_until_its_risk_grows_past_that(engine: Engine) -> None:
    declare_limits(engine, [Limit("server-1", "orders", 3514)])
    issue_runways(engine, TODAY, TODAY)
    until = TODAY + timedelta(days=30)
    noted = Decision("server-1", "orders", None, "acknowledged", until, "purge *runs* soon")
    decide(engine, [noted], by="anna")
    declare_limits(engine, [Limit("server-1", "orders", 3094)])
    [grown] = materialise([TODAY]).get_asset_check_evaluations()
    decide(engine, [noted], by="anna")
    [decided] = materialise([TODAY]).get_asset_check_evaluations()

    said = f"Acknowledged until {human_day(until)}, by anna: purge \\*runs\\* soon."
    assert (grown.passed, grown.metadata["decided"].value) == (False, 0)
    assert said in str(grown.description)
    assert "The risk has grown: " in str(grown.description)
    assert (decided.passed, decided.metadata["decided"].value) == (True, 1)
    assert ": Nothing else is full within 30 days" in str(decided.description)
    assert f"Left out by decisions:\n\n- orders on server-1: {said}" in str(decided.description)


def test_the_horizon_and_the_severity_of_the_check_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_FILLS_SOON_DAYS", "7")
    monkeypatch.setenv("CAPACITY_FILLS_SOON_SEVERITY", "warn")

    [check] = materialise([TODAY]).get_asset_check_evaluations()

    assert (check.passed, check.severity) == (True, dg.AssetCheckSeverity.WARN)
    assert (
        check.description
        == f"As of {human_day(TODAY)}: Nothing is full within 7 days with a probability of 50 percent or more."
    )


def test_a_range_of_days_issues_each_from_the_samples_up_to_it(engine: Engine) -> None:
    days = [TODAY - timedelta(days=1), TODAY]

    result = materialise(days)

    by_day = {
        event.partition: event.materialization.metadata["as_of"].value
        for event in result.get_asset_materialization_events()
    }
    assert by_day == {day.isoformat(): day.isoformat() for day in days}
    assert [stored_runways(engine, day)["orders"]["size_mb"] for day in days] == [3004, 3014]


def test_a_day_that_lies_ahead_is_refused(engine: Engine) -> None:
    result = materialise([TODAY], today=TODAY - timedelta(days=1))

    assert not result.success
    [failure] = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data is not None
    assert "is in the future: there is nothing to forecast from." in str(
        failure.step_failure_data.user_failure_data.description
    )
    assert stored_runways(engine) == {}


def test_a_day_without_any_sample_issues_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in ("database_size_stats", "instance_size_stats"):
            connection.execute(text(f"DELETE FROM {table}"))

    issued = service(engine).issue(TODAY)

    assert (issue_of(engine, TODAY, TODAY), issued.to_dict()["subjects"], issued.written) == (None, 0, 0)


def test_a_past_day_that_is_materialised_again_shows_what_is_stored_and_changes_no_verdict_on_today(
    engine: Engine,
) -> None:
    past = TODAY - timedelta(days=25)
    issue_runways(engine, past, past)
    materialise([TODAY])
    declare_limits(engine, [Limit("server-1", "still", 501), Limit("server-1", "orders", 9000)])

    result = materialise([past])

    [event] = result.get_asset_materialization_events()
    [check] = result.get_asset_check_evaluations()
    assert event.materialization.metadata["written_records"].value == 0
    assert "3.1 GiB" in str(event.materialization.metadata["Fills first"].value), "as it was issued"
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert str(check.description).startswith(f"As of {human_day(TODAY)}:\n\n- orders on server-1: full by ")
