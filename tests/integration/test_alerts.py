"""Alerts on a real instance and a real receiver on loopback: exactly the expected messages, none lost, none twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from capacity_assets.base.settings import Settings
from capacity_assets.database.tables import SCHEMA_REVISION
from capacity_assets.forecast.decisions import Decision, decide
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.orchestration.aggregates import COMPUTED_WINDOWS_SENSOR, LATE_DATA_SENSOR
from capacity_assets.orchestration.alerts import ALERT_SENSOR, ReceiverError, alert_definitions
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.collection import SAMPLE_DAYS_SENSOR
from capacity_assets.orchestration.graph import Graph
from capacity_assets.ownership.labels import Label, declare_labels
from tests.alerted_fleet import clock_at
from tests.clocks import fixed_clock
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, add_overflowing_instance, sizes, totals
from tests.profiles import nightly_except
from tests.receiver import Receiver, receiving
from tests.runs import QUICK_RETRIES, QUIET

DATABASES = [dg.AssetKey("daily_database_aggregations")]
SERVERS = [*DATABASES, dg.AssetKey("daily_instance_aggregations")]


class House:
    """An instance, its sensor and its jobs."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, url: str) -> None:
        self.clock = fixed_clock(date(2026, 7, 1))
        self.definitions = build_definitions(settings, clock=self.clock, retries=QUICK_RETRIES)
        self.instance = instance
        self.send_to(url, settings)
        self.cursor: str | None = None

    def send_to(self, url: str, settings: Settings) -> None:
        """Replace the sensor by one with another receiver or other links."""
        with_webhook = settings.model_copy(update={"alert_webhook_url": SecretStr(url)})
        [self.sensor] = alert_definitions(Graph(with_webhook, self.clock)).sensors or ()

    def tick(self) -> None:
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            try:
                self.sensor(context)
            finally:
                self.cursor = context.cursor

    def run(self, day: str, job: str = "daily_aggregation_job", **options: Any) -> None:
        self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=day, run_config=QUIET, raise_on_error=False, **options
        )

    def run_databases(self, day: str) -> None:
        """Of the daily run what computes the level of databases."""
        self.run(day, asset_selection=DATABASES)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def house(settings: Settings, receiver: Receiver, shipped_instance: dg.DagsterInstance) -> House:
    """A house whose sensor has begun."""
    begun = House(settings, shipped_instance, receiver.url)
    begun.tick()
    return begun


def test_runs_that_fail_alike_are_told_once_without_their_retries_and_without_a_statement(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    add_instances(engine, [1])
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE capacity_alembic_version"))
    for day in ("2025-03-01", "2025-03-02", "2025-03-03"):
        house.run_databases(day)

    house.tick()
    house.tick()

    [message] = receiver.texts
    assert message.startswith("Run failed (")
    assert message.count(", ") >= 2
    assert "daily_aggregation_job: The capacity schema is missing" in message
    assert "Run `capacity init`" in message
    assert "SELECT" not in message


def test_failures_of_other_code_locations_of_the_instance_are_told_too(house: House, receiver: Receiver) -> None:
    @dg.op
    def load() -> None:
        raise dg.Failure("No space left")

    @dg.job
    def nightly_load() -> None:
        load()

    nightly_load.execute_in_process(instance=house.instance, raise_on_error=False)

    house.tick()

    [message] = receiver.texts
    assert message.startswith("Run failed (")
    assert "nightly_load: No space left" in message


def test_runs_of_a_backfill_that_fail_are_told_with_their_assets_partitions_and_a_link(
    settings: Settings, receiver: Receiver, engine: Engine, shipped_instance: dg.DagsterInstance
) -> None:
    house = House(settings, shipped_instance, receiver.url)
    links = {"dagster_url_of_people": "https://dagster.example/", "pages_url": "https://pages.example"}
    house.send_to(receiver.url, settings.model_copy(update=links))
    house.tick()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE capacity_alembic_version"))
    job = house.definitions.get_repository_def().get_implicit_job_def_for_assets(SERVERS)
    assert job is not None

    def backfilled(first: str, last: str) -> dg.ExecuteInProcessResult:
        ends = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return job.execute_in_process(
            instance=shipped_instance,
            asset_selection=SERVERS,
            tags={**ends, "dagster/backfill": "hvqmxkzt"},
            run_config=QUIET,
            raise_on_error=False,
        )

    backfilled("2025-03-01", "2025-03-31")
    backfilled("2025-04-01", "2025-04-10")
    house.tick()
    house.run("2025-03-01")
    house.tick()

    backfill, single = (message.splitlines() for message in receiver.texts)
    assert "). daily_database_aggregations, daily_instance_aggregations: The capacity schema is missing" in backfill[0]
    assert backfill[1:] == ["41 partitions, 2025-03-01 to 2025-04-10", "https://dagster.example/runs/b/hvqmxkzt"]
    [run] = house.instance.get_runs(limit=1)
    assert single[1:] == ["Partition: 2025-03-01", f"https://dagster.example/runs/{run.run_id}"]


@pytest.mark.nightly("executes further runs")
def test_a_failed_check_links_to_the_pages_of_what_it_found_or_of_its_asset(
    settings: Settings, receiver: Receiver, engine: Engine, shipped_instance: dg.DagsterInstance
) -> None:
    """Today is 2026-07-01."""
    of_dagster = settings.model_copy(update={"dagster_url_of_people": "https://dagster.example/"})
    house = House(of_dagster.model_copy(update={"pages_url": "https://pages.example/"}), shipped_instance, receiver.url)
    house.tick()
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "or ders", "2026-03-04", [1000 + 10 * day for day in range(120)]))
    add_database_sizes(engine, sizes(1, "bad", "2026-07-01", [-5]))
    declare_limits(engine, [Limit("server-1", "or ders", 2290)])
    house.run("2026-07-01", "runway_job")
    house.run_databases("2026-07-01")
    house.tick()

    fills, impossible = sorted(receiver.texts, key=lambda message: "values_possible" in message)
    assert "\n  https://pages.example/database?server=1&name=or+ders\n" in fills
    assert impossible.splitlines()[-1] == "https://pages.example/databases?period=daily"

    house.send_to(receiver.url, of_dagster)
    for size_mb in (7, -7):
        with engine.begin() as connection:
            changed = {"size_mb": size_mb}
            connection.execute(
                text("UPDATE database_size_stats SET size_mb = :size_mb WHERE database_name = 'bad'"), changed
            )
        house.run_databases("2026-07-01")
        house.tick()
    dagster_page = "https://dagster.example/assets/daily_database_aggregations?view=checks"
    assert receiver.texts[2].splitlines()[-1] == dagster_page


def test_a_failed_check_is_told_once_with_names_as_they_are_until_it_passes_or_finds_something_else(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    add_instances(engine, [1])
    name = "<b>a_b*c</b> [d](e) | f\\g"
    add_database_sizes(engine, sizes(1, name, "2025-03-01", [-5]))
    for _ in range(2):
        house.run_databases("2025-03-01")
        house.tick()
    assert len(receiver.texts) == 1
    assert receiver.texts[0].startswith(
        "Check failed. daily_database_aggregations: values_possible\nPartition: 2025-03-01\n1 found."
    )
    assert name in receiver.texts[0]

    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 5"))
    house.run_databases("2025-03-01")
    house.tick()
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = -7"))
    house.run_databases("2025-03-01")
    house.tick()

    assert len(receiver.texts) == 2


def test_what_fills_soon_is_told_once_to_whom_it_concerns_and_not_again_by_its_check(
    house: House, receiver: Receiver, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """The house's today is 2026-07-01."""
    (tmp_path / "receivers.toml").write_text(
        '[[receivers]]\nname = "payments"\nlabel = "team=payments"\nwebhook = true\ngets = ["alerts"]\n'
    )
    house.send_to(receiver.url, settings.model_copy(update={"receivers": tmp_path / "receivers.toml"}))
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2026-03-04", [1000 + 10 * day for day in range(120)]))
    add_database_sizes(engine, sizes(1, "log", "2026-03-04", [500 + day for day in range(120)]))
    declare_limits(engine, [Limit("server-1", "orders", 2290)])
    declare_labels(engine, [Label("server-1", "log", "team", "payments")], date(2026, 7, 1))
    for day in ("2026-06-30", "2026-07-01", "2026-06-15"):
        house.run(day, "runway_job")
        house.tick()

    [message] = receiver.texts
    assert message.startswith("orders on server-1 is likely full by ")
    assert "- Forecast growth: +10 MiB per day" in message
    declare_limits(engine, [Limit("server-1", "log", 630)])
    house.run("2026-07-01", "runway_job")
    house.tick()
    assert [text.partition(" is likely full")[0] for text in receiver.texts[1:]] == ["log on server-1"] * 2, (
        "all, and its team"
    )
    declare_limits(engine, [Limit("server-1", "orders", 90_000), Limit("server-1", "log", 90_000)])
    house.run("2026-07-01", "runway_job")
    house.tick()
    resolved = ["Resolved: log on server-1", "Resolved: log on server-1, and 1 more"]
    assert sorted(text.partition("\n")[0] for text in receiver.texts[3:]) == resolved


def test_quiet_hours_hold_everything_back_and_a_wrong_file_holds_no_failed_run_back(
    house: House, receiver: Receiver, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """The house's now is noon of 2026-07-01."""
    file = tmp_path / "receivers.toml"
    file.write_text('[[receivers]]\nname = "default"\nwebhook = true\ngets = ["alerts"]\nquiet = "11:00-13:00"\n')
    with_file = settings.model_copy(update={"receivers": file})
    house.send_to(receiver.url, with_file)
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2026-03-04", [1000 + 10 * day for day in range(120)]))
    add_database_sizes(engine, sizes(1, "bad", "2026-07-01", [-5]))
    declare_limits(engine, [Limit("server-1", "orders", 2290)])
    house.run("2026-07-01", "runway_job")
    house.run_databases("2026-07-01")
    house.tick()
    assert receiver.texts == []

    house.clock = clock_at(date(2026, 7, 1), 13)
    house.send_to(receiver.url, with_file)
    receiver.status = 500
    with pytest.raises(ReceiverError):
        house.tick()
    receiver.status = 200
    house.tick()
    house.tick()
    fails, fills = sorted(receiver.texts)
    assert fills.startswith("orders on server-1 is likely full by ")
    assert fails.startswith("Check failed. daily_database_aggregations: values_possible\n")

    file.write_text("[[receivers]]\n")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE capacity_alembic_version"))
    house.run_databases("2026-06-01")
    house.tick()
    assert receiver.texts[2].startswith("Run failed (")


def test_a_failed_run_is_held_while_the_file_that_names_its_only_receiver_cannot_be_read(
    house: House,
    receiver: Receiver,
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAT", receiver.url)
    file = tmp_path / "receivers.toml"
    file.write_text("[[receivers]]\n")
    graph = Graph(settings.model_copy(update={"receivers": file}), house.clock)
    [house.sensor] = alert_definitions(graph).sensors or ()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE capacity_alembic_version"))
    house.run_databases("2026-06-01")
    house.tick()
    assert receiver.texts == []

    file.write_text('[[receivers]]\nname = "default"\nwebhook = "env:CHAT"\ngets = ["alerts"]\n')
    house.tick()
    house.tick()
    [message] = receiver.texts
    assert message.startswith("Run failed (")


def test_owners_are_told_although_the_default_receiver_is_away(
    house: House,
    receiver: Receiver,
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAT", receiver.url)
    file = tmp_path / "receivers.toml"
    file.write_text('[[receivers]]\nname = "dba"\nwebhook = "env:CHAT"\ngets = ["alerts"]\n')
    house.send_to("http://127.0.0.1:9/services/secret-path", settings.model_copy(update={"receivers": file}))
    fill_two_databases(house, engine)
    add_database_sizes(engine, sizes(1, "bad", "2026-07-01", [-5]))
    house.run_databases("2026-07-01")

    for _ in range(2):
        with pytest.raises(ReceiverError, match="does not answer"):
            house.tick()

    [message] = receiver.texts
    assert message.startswith("log on server-1 is likely full by ")


def test_a_decision_and_alerts_switched_off_resolve_what_is_open_without_a_new_forecast(
    house: House, receiver: Receiver, engine: Engine, settings: Settings
) -> None:
    fill_two_databases(house, engine)
    house.tick()
    decide(engine, [Decision("server-1", "orders", None, "acknowledged", date(2026, 8, 1), "purge")], by="anna")
    house.tick()
    house.send_to(receiver.url, settings.model_copy(update={"fills_soon_severity": "warn"}))
    house.tick()
    house.tick()

    told, decided, off = receiver.texts
    assert told.partition("\n")[0].endswith(", and 1 more")
    assert decided.startswith("Resolved: orders on server-1\n- Why: Acknowledged until 1 Aug 2026, by anna: purge.")
    assert off.startswith(
        "Resolved: log on server-1\n- Why: alerts are switched off by CAPACITY_FILLS_SOON_SEVERITY=warn\n"
    )


def fill_two_databases(house: House, engine: Engine) -> None:
    """`orders` and `log` of server 1 are full soon, by a forecast of the house's today."""
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2026-03-04", [1000 + 10 * day for day in range(120)]))
    add_database_sizes(engine, sizes(1, "log", "2026-03-04", [500 + day for day in range(120)]))
    declare_limits(engine, [Limit("server-1", "orders", 2290), Limit("server-1", "log", 630)])
    house.run("2026-07-01", "runway_job")


def test_a_run_whose_worker_died_is_told_once_dagster_starts_it_no_more(house: House, receiver: Receiver) -> None:
    job = house.definitions.resolve_job_def("daily_aggregation_job")
    first = house.instance.create_run_for_job(job)
    house.instance.report_run_failed(first)
    house.tick()
    assert receiver.texts == [], "it is started again"

    again = {"dagster/root_run_id": first.run_id, "dagster/parent_run_id": first.run_id}
    for _ in range(2):
        last = house.instance.create_run_for_job(job, tags=again, root_run_id=first.run_id, parent_run_id=first.run_id)
        house.instance.report_run_failed(last)
    house.tick()

    [message] = receiver.texts
    assert message.startswith(f"Run failed ({last.run_id[:8]}). daily_aggregation_job: It ended without a reason")


def test_a_run_that_dagster_could_not_start_again_is_told_late(house: House, receiver: Receiver) -> None:
    job = house.definitions.resolve_job_def("daily_aggregation_job")
    lost, begun = (house.instance.create_run_for_job(job) for _ in range(2))
    for run in (lost, begun):
        house.instance.report_run_failed(run)
    house.tick()
    assert receiver.texts == []

    house.instance.add_run_tags(lost.run_id, {"dagster/will_retry": "false"})
    house.instance.add_run_tags(begun.run_id, {"dagster/auto_retry_run_id": "another"})
    house.tick()
    house.tick()

    [message] = receiver.texts
    assert message.startswith(f"Run failed ({lost.run_id[:8]}).")


def test_a_run_that_fails_again_for_the_same_reason_is_not_told_again_until_one_succeeded(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    add_instances(engine, [1])

    def take_schema(revision: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE capacity_alembic_version SET version_num = '{revision}'"))

    take_schema("0000")
    for _ in range(3):
        house.run_databases("2025-03-01")
        house.tick()
    assert len(receiver.texts) == 1

    take_schema(SCHEMA_REVISION)
    house.run_databases("2025-03-01")
    house.tick()
    take_schema("0000")
    house.run_databases("2025-03-01")
    house.tick()
    assert len(receiver.texts) == 2


@pytest.mark.nightly("executes further runs")
def test_partitions_that_are_left_call_a_person_once_a_day_and_not_after_each_run_of_a_backfill(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", range(100, 110)))
    house.run_databases("2025-03-02")
    house.run_databases("2025-03-05")
    house.tick()
    assert receiver.texts == []

    standing_check(house, "daily_partitions_complete")
    house.tick()
    standing_check(house, "daily_partitions_complete")
    house.run_databases("2025-03-05")
    standing_check(house, "daily_partitions_complete")
    house.tick()

    daily = [message for message in receiver.texts if "daily_database_aggregations" in message]
    assert len(daily) == 1
    assert "partitions_complete" in daily[0]
    assert "2025-03-03 to 2025-03-04, 2 windows: has samples, but was never computed" in daily[0]
    assert "materialise these partitions" in daily[0]
    assert not any("instance" in message for message in receiver.texts), "there are no samples of that level"


@pytest.mark.nightly("executes further runs")
def test_a_check_that_failed_is_not_forgotten_by_a_run_of_another_partition(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [-5, 5, 5]))
    add_instance_sizes(engine, totals(1, "2025-03-01", [(5, 1)] * 3))
    add_overflowing_instance(engine, 2, date(2025, 3, 1))
    # Not the day after it, which compares with it and fails too.
    for day in ("2025-03-01", "2025-03-03", "2025-03-01"):
        house.run(day, asset_selection=SERVERS)
        house.tick()

    first_lines = [message.partition("\n")[0] for message in receiver.texts]
    assert sorted(first_lines) == [
        "Check failed. daily_database_aggregations: values_possible",
        "Check failed. daily_instance_aggregations: servers_stored",
    ]


@pytest.mark.nightly("executes further runs")
def test_partitions_that_fail_together_are_one_message_and_each_is_told_again_on_its_own(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    def run(first: str, last: str) -> None:
        house.definitions.resolve_job_def("daily_aggregation_job").execute_in_process(
            instance=house.instance,
            asset_selection=DATABASES,
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
            run_config=QUIET,
        )
        house.tick()

    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [5, -6, 7, -8]))
    run("2025-03-01", "2025-03-04")
    run("2025-03-03", "2025-03-04")
    [together] = receiver.texts
    place = "- server-1, orders: an impossible size or count in the window from 2025-03-0"
    assert together.splitlines()[:2] == [
        "Check failed. daily_database_aggregations: values_possible",
        "2 partitions, 2025-03-02 to 2025-03-04",
    ]
    assert together.splitlines()[-2:] == [f"{place}2", f"{place}4"]

    for size in (6, -6):
        with engine.begin() as connection:
            changed = "UPDATE database_size_stats SET size_mb = :size WHERE collected_date = '2025-03-02'"
            connection.execute(text(changed), {"size": size})
        run("2025-03-02", "2025-03-02")
    [_, again] = receiver.texts
    assert again.splitlines()[1] == "Partition: 2025-03-02"


@pytest.mark.parametrize("collection", nightly_except(["on", "off"], "on"))
def test_samples_that_stop_arriving_call_a_person_once_whoever_should_write_them(
    house: House, receiver: Receiver, engine: Engine, monkeypatch: pytest.MonkeyPatch, collection: str
) -> None:
    """Today is 2026-07-01; totals of the server were measured yesterday."""
    monkeypatch.setenv("CAPACITY_COLLECTION", collection)
    house.definitions = House(Settings(), house.instance, receiver.url).definitions
    add_instances(engine, [1])
    standing_check(house, "samples_recent")
    add_database_sizes(engine, [*sizes(1, "orders", "2026-06-28", [5]), *sizes(1, "orders", "2026-08-09", [5])])
    add_instance_sizes(engine, totals(1, "2026-06-30", [(5, 1)]))
    for _ in range(2):
        standing_check(house, "samples_recent")
        house.tick()

    def told() -> list[str]:
        return [message for message in receiver.texts if "samples_recent" in message]

    [message] = told()
    assert message.startswith(
        "Check failed. database_size_stats: samples_recent\nThe newest sample is from 28 Jun 2026, 3 days ago. Check"
    )
    add_database_sizes(engine, sizes(1, "orders", "2026-06-30", [5]))
    standing_check(house, "samples_recent")
    house.tick()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date = '2026-06-30'"))
    standing_check(house, "samples_recent")
    house.tick()
    assert len(told()) == 2, "again after they had come"


def standing_check(house: House, check: str) -> None:
    job = house.definitions.resolve_job_def("standing_check_job")
    assert job.execute_in_process(instance=house.instance, run_config=QUIET, op_selection=[check]).success


def test_a_failing_server_is_named_and_warnings_stay_in_the_house(
    house: House, receiver: Receiver, engine: Engine
) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-02-01", [1, 1000]))
    add_instance_sizes(engine, totals(1, "2025-02-02", [(1000, 1)]))
    add_overflowing_instance(engine, 2, date(2025, 2, 2))
    house.run("2025-02-02", asset_selection=SERVERS)

    house.tick()

    message = "\n".join(receiver.texts)
    assert "daily_instance_aggregations: servers_stored" in message
    assert "server 2 (server-2): bigint out of range" in message
    assert "jumps_named" not in message
    assert "samples_complete" not in message


def test_a_receiver_that_refuses_or_is_away_loses_no_alert_and_its_address_is_not_shown(
    house: House, receiver: Receiver, engine: Engine, settings: Settings
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [-5]))
    house.run_databases("2025-03-01")

    def refused(reason: str) -> None:
        with pytest.raises(ReceiverError, match=reason) as caught:
            house.tick()
        assert "secret-path" not in str(caught.value)

    for receiver.status in (500, 404):
        refused(f"answered {receiver.status}. Nothing is lost")
    receiver.status = 200
    house.send_to("http://127.0.0.1:9/services/secret-path", settings)
    refused("does not answer")
    house.send_to(receiver.url, settings)
    house.tick()

    assert len(receiver.texts) == 1


def test_what_failed_before_the_sensor_began_is_not_sent(
    settings: Settings, receiver: Receiver, engine: Engine, shipped_instance: dg.DagsterInstance
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [-5]))
    late = House(settings, shipped_instance, receiver.url)
    late.run_databases("2025-03-01")
    late.tick()
    late.tick()

    assert receiver.texts == []


def test_without_a_receiver_there_is_no_sensor_and_with_one_its_address_is_not_in_the_definitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [sensor.name for sensor in build_definitions(Settings()).get_repository_def().sensor_defs]
    assert names == [
        COMPUTED_WINDOWS_SENSOR,
        "growth_report_sensor",
        LATE_DATA_SENSOR,
        SAMPLE_DAYS_SENSOR,
        "showback_sensor",
    ]

    monkeypatch.setenv("CAPACITY_ALERT_WEBHOOK_URL", "https://hooks.example/services/secret-path")
    sensor = build_definitions(Settings()).get_repository_def().get_sensor_def(ALERT_SENSOR)

    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert "secret-path" not in str(sensor.description)
