"""When the collection runs: its schedule, and the daemon with what follows."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.collection import QUEUE_TAG, SHARE_TAG
from tests.clocks import SHANGHAI
from tests.collecting import PASSWORD
from tests.daemon import Daemon
from tests.runs import run_job

pytestmark = pytest.mark.usefixtures("orders_to_measure")


def tick(settings: Settings, moment: str, now: str | None = None) -> dg.RunRequest | dg.SkipReason:
    """Evaluate one tick that asks for one run; both moments are local time, and the clock stands at the second."""
    found = ticks(settings, moment, now)
    if isinstance(found, dg.SkipReason):
        return found
    [request] = found
    return request


def ticks(settings: Settings, moment: str, now: str | None = None) -> list[dg.RunRequest] | dg.SkipReason:
    at = datetime.fromisoformat(moment).replace(tzinfo=SHANGHAI)
    clock = datetime.fromisoformat(now or moment).replace(tzinfo=SHANGHAI).astimezone(UTC)
    definitions = build_definitions(settings, clock=Clock(SHANGHAI, now=lambda: clock))
    schedule = definitions.get_repository_def().get_schedule_def("collection_schedule")
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=at.astimezone(UTC),
            repository_def=definitions.get_repository_def(),
            resources=definitions.get_repository_def().get_top_level_resources(),
        ) as context,
    ):
        found = schedule.evaluate_tick(context)
    if found.skip_message:
        return dg.SkipReason(found.skip_message)
    return list(found.run_requests or [])


@pytest.mark.nightly("executes two collections")
def test_the_schedule_asks_for_today_and_half_an_hour_later_only_if_a_server_is_left(
    settings: Settings,
    registered: Engine,  # noqa: ARG001 -- the servers
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = tick(settings, "2025-07-20T03:00")
    run_job(settings, "collection_job")
    second = tick(settings, "2025-07-20T03:30")
    monkeypatch.setenv("WRONG_PASSWORD", PASSWORD)
    run_job(settings, "collection_job")
    third = tick(settings, "2025-07-20T03:30")

    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert (first.partition_key, second.partition_key) == ("2025-07-20", "2025-07-20")
    assert first.run_key != second.run_key
    assert isinstance(third, dg.SkipReason)
    assert "No registered server is left to measure on 20 Jul 2025" in str(third.skip_message)


def test_with_shares_the_schedule_asks_for_a_run_of_each_that_has_a_server_left(
    settings: Settings,
    registered: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with registered.begin() as connection:
        [first, *_] = connection.execute(text("SELECT id FROM instances ORDER BY id")).scalars().all()
        connection.execute(
            text(
                "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
                "VALUES (:id, '', 'zone', '0001-01-01', 'eu')"
            ),
            {"id": first},
        )
    monkeypatch.setenv("CAPACITY_COLLECTION_SHARES", "zone=eu, zone=us, zone=")

    requests = ticks(Settings(), "2025-07-20T03:00")

    assert isinstance(requests, list)
    assert [request.tags[SHARE_TAG] for request in requests] == ["zone=eu", "zone="]
    assert [request.run_key for request in requests] == ["2025-07-20T03:00 zone=eu", "2025-07-20T03:00 zone="]
    assert [request.run_config["ops"]["collection"]["config"]["share"] for request in requests] == ["zone=eu", "zone="]
    assert settings.collection_shares == ()
    assert not any(QUEUE_TAG in request.tags for request in requests)
    monkeypatch.setenv("CAPACITY_SHARE_QUEUES", "on")
    requests = ticks(Settings(), "2025-07-20T03:00")
    assert isinstance(requests, list)
    assert [request.tags.get(QUEUE_TAG) for request in requests] == ["zone-eu", None]
    monkeypatch.setenv("CAPACITY_COLLECTION_SHARES", "3")
    assert Settings().collection_shares == ("1/3", "2/3", "3/3")


def test_a_tick_that_comes_a_day_late_is_skipped_because_the_day_is_over(
    settings: Settings,
    registered: Engine,  # noqa: ARG001
) -> None:
    late = tick(settings, "2025-07-20T03:30", now="2025-07-21T01:00")

    assert isinstance(late, dg.SkipReason)
    assert "20 Jul 2025 is over" in str(late.skip_message)


def test_a_tick_while_the_database_is_away_asks_all_the_same_because_the_run_waits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")

    asked = tick(Settings(), "2025-07-20T03:00")

    assert isinstance(asked, dg.RunRequest)
    assert settings.collection == "on"


def test_the_daemon_runs_the_collection_and_the_aggregates_of_the_day_follow(
    registered: Engine, daemon: Daemon
) -> None:
    today = datetime.now(tz=SHANGHAI).date()
    daemon.tick_schedules(f"{today}T02:00")

    daemon.tick_schedules(f"{today}T03:00")
    [run] = daemon.runs("collection_job")
    assert daemon.launch(run).status is dg.DagsterRunStatus.SUCCESS

    assert daemon.requested("collection_job") == [(today.isoformat(), today.isoformat())]
    with registered.connect() as connection:
        stored = connection.execute(
            text("SELECT database_name FROM database_size_aggregations WHERE period_type = 'daily'")
        ).scalars()
        assert list(stored) == ["orders"]
