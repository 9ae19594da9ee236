"""`/metrics`: the figures as Prometheus reads them, and the rules that alert on them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo
from sqlalchemy import URL, Engine, make_url, text

from capacity_assets.base.settings import Settings
from capacity_assets.forecast.decisions import Decision, decide
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.orchestration.private import IMPLICIT_ASSET_JOB_NAME
from capacity_assets.reading import accuracy
from capacity_assets.reading.runs import job_runs
from capacity_assets.runtime import open_runs_engine
from capacity_assets.web import app, forecasts, metrics
from capacity_assets.web.metrics import DESCRIPTIONS, OPENMETRICS, PLAIN
from tests.clocks import SHANGHAI, TODAY
from tests.databases import execute
from tests.documents import ROOT
from tests.pages import Pages, header, served_pages
from tests.pages_fleet import DAYS, FIRST, GROWING, HOSTILE, filled
from tests.prometheus import prometheus, promtool, queried, wait_for

PREPARED = {"pages": filled}
RULES = ROOT / "deploy" / "prometheus" / "capacity.rules.yaml"
MIB = 1024**2


def measured(pages: Pages) -> dict[str, float]:
    """The value of each series."""
    lines = pages.ask("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=SHANGHAI).timestamp()


def test_figures_of_servers_and_volumes_are_those_of_the_pages_in_base_units(pages: Pages) -> None:
    found = measured(pages)

    fleet, volume = pages.document("/"), pages.document("/volume?server=1&name=%2Fdata")["runway"]
    assert found["capacity_fleet_size_bytes"] == fleet["now"]["size_mb"] * MIB
    assert found['capacity_server_size_bytes{server="server-1"}'] == (GROWING[-1] + 600) * MIB
    assert found['capacity_server_databases{server="server-1"}'] == 3
    assert found['capacity_server_sample_timestamp_seconds{server="server-1"}'] == seconds(TODAY)
    assert found['capacity_server_sample_timestamp_seconds{server="server-2"}'] == seconds(TODAY - timedelta(days=1))
    data = 'server="server-1",volume="/data"'
    assert found[f"capacity_volume_limit_bytes{{{data}}}"] == 40_000 * MIB
    assert found[f"capacity_volume_headroom_bytes{{{data}}}"] == (20_000 - 50 * (DAYS - 1)) * MIB
    assert found[f"capacity_volume_size_bytes{{{data}}}"] == (20_000 + 50 * (DAYS - 1)) * MIB
    for days in (7, 30, 90, 365):
        probability = found[f'capacity_volume_full_probability_ratio{{{data},horizon_days="{days}"}}']
        assert probability == pytest.approx(volume[f"probability_{days}_days"])
    full_by = found[f'capacity_volume_full_timestamp_seconds{{{data},probability="0.5"}}']
    assert full_by == seconds(date.fromisoformat(volume["full_middle"]))
    info = 'server="server-1",server_id="1",engine="postgresql",label_team="payments"'
    assert found[f"capacity_server_info{{{info}}}"] == 1


def test_what_failed_and_what_is_late_is_said(pages: Pages) -> None:
    found = measured(pages)

    assert {name: value for name, value in found.items() if name.startswith("capacity_server_measured")} == {
        'capacity_server_measured{server="server-1"}': 1,
        'capacity_server_measured{server="server-2"}': 0,
        'capacity_server_measured{server="server-3"}': 1,
    }
    assert found['capacity_window_timestamp_seconds{period="daily"}'] == seconds(TODAY)
    assert 'capacity_window_timestamp_seconds{period="weekly"}' not in found, "none was computed"
    stale = [value for name, value in found.items() if name.startswith("capacity_stale_windows")]
    assert (len(stale), sum(stale)) == (15, 0)
    assert found["capacity_forecast_timestamp_seconds"] == seconds(TODAY)


@pytest.mark.single_server("sees a change that no run has gathered from the nodes")
def test_a_changed_sample_makes_windows_stale_and_a_decision_ends_the_need_for_action(
    pages: Pages, engine: Engine
) -> None:
    needs = 'capacity_volume_needs_action{server="server-1",volume="/data"}'
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE volume_size_stats SET free_mb = 900 WHERE collected_date = :day"), {"day": TODAY}
        )
    issue_runways(engine, TODAY, TODAY)
    assert measured(pages)[needs] == 1
    with engine.begin() as connection:
        changed = "UPDATE database_size_stats SET size_mb = size_mb + 1 WHERE collected_date = :day"
        connection.execute(text(changed), {"day": FIRST})
    decide(engine, [Decision("server-1", None, "/data", "excluded", TODAY + timedelta(days=9), "moved next week")])

    found = measured_again(pages, needs, 0)

    assert found['capacity_stale_windows{period="daily",level="database"}'] == 2, "the next day compares with it"
    assert found['capacity_stale_windows{period="monthly",level="database"}'] == 2
    assert found['capacity_stale_windows{period="weekly",level="database"}'] == 0


def measured_again(pages: Pages, name: str, value: float) -> dict[str, float]:
    """The metrics once a series has a value: the revision of forecasts is looked for every two seconds."""
    deadline = time.monotonic() + 30
    while (found := measured(pages)).get(name) != value:
        assert time.monotonic() < deadline, f"{name} stays {found.get(name)}"
        time.sleep(0.2)
    return found


def test_databases_have_metrics_where_a_label_is_named_the_largest_first(
    database: URL, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name in measured(pages) if name.startswith("capacity_database_")] == []

    def named(*words: str) -> list[str]:
        with served_pages(database, metrics_databases=words) as chosen:
            found = measured(chosen)
        series = sorted(name for name in found if name.startswith("capacity_database_size_bytes"))
        return [name.removeprefix("capacity_database_size_bytes") for name in series]

    escaped = HOSTILE.replace('"', r"\"")
    still, orders = '{server="server-1",database="still"}', '{server="server-1",database="orders"}'
    hostile = f'{{server="server-1",database="{escaped}"}}'
    assert named("team=archive") == [still]
    assert named("team") == sorted([hostile, orders, still])
    assert named("team=nobody", "environment") == []
    monkeypatch.setattr(metrics, "MOST_DATABASES", 1)
    assert named("team") == [orders]


@contextmanager
def reading(instance: DagsterInstance) -> Iterator[Engine]:
    """The engine of `capacity serve` on the storage of an instance, whose fixture has set its address."""
    with open_runs_engine(Settings()) as engine:
        assert engine is not None
        assert str(engine.url.database) in str(instance.run_storage.postgres_url)  # type: ignore[attr-defined]
        yield engine


def test_runs_are_counted_by_job_with_the_last_success_and_failure_from_the_tables_of_dagster(
    database: URL, shipped_instance: DagsterInstance
) -> None:
    day, week, assets = "daily_aggregation_job", "weekly_aggregation_job", IMPLICIT_ASSET_JOB_NAME

    def run(job: str, status: DagsterRunStatus = DagsterRunStatus.STARTED) -> DagsterRun:
        return create_run_for_test(shipped_instance, job, status=status)

    with shipped_instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        old = run(day)
        shipped_instance.report_run_failed(old)
        ended_last_week = """UPDATE runs SET end_time = end_time - 604800,
            update_timestamp = update_timestamp - interval '7 days' WHERE run_id = :id"""
        connection.execute(text(ended_last_week), {"id": old.run_id})
    for _ in range(2):
        run(day, DagsterRunStatus.NOT_STARTED)
    run(day)
    shipped_instance.report_run_failed(run(day))
    shipped_instance.report_run_canceled(run(week))
    for succeeded in (run(day), run(assets)):
        success = dg.DagsterEvent("PIPELINE_SUCCESS", succeeded.job_name)
        shipped_instance.report_dagster_event(success, succeeded.run_id)
    complaint = SerializableErrorInfo('{"timestamp": 1999000000}', [], None)
    for daemon, seconds in (("SENSOR", 1_753_000_000.5), ("SCHEDULER", 1_752_000_000.0), ("BACKFILL", 1_754_000_000.0)):
        shipped_instance.add_daemon_heartbeat(DaemonHeartbeat(seconds, daemon, "daemon", [complaint]))
    with shipped_instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(text("UPDATE daemon_heartbeats SET body = '' WHERE daemon_type = 'BACKFILL'"))
    with reading(shipped_instance) as dagster, served_pages(database, dagster=dagster) as pages:
        found = {name.removeprefix("capacity_"): value for name, value in measured(pages).items()}

    assert found["dagster_readable"] == 1
    assert found["daemon_heartbeat_timestamp_seconds"] == 1_753_000_000.5, "of those that can be read"
    counted = {
        (job, kind): found[f'{name}{{dagster_job="{job}",{label}="{kind}"}}']
        for job in (day, week, "assets")
        for name, label, kinds in (
            ("unfinished_runs", "state", ("waiting", "running")),
            ("ended_runs", "outcome", ("succeeded", "failed", "canceled")),
        )
        for kind in kinds
    }
    assert {key: value for key, value in counted.items() if value} == {
        (day, "waiting"): 2,
        (day, "running"): 1,
        (day, "succeeded"): 1,
        (day, "failed"): 1,
        (week, "canceled"): 1,
        ("assets", "succeeded"): 1,
    }
    now, ended = time.time(), {name: value for name, value in found.items() if name.startswith("run_")}
    assert set(ended) == {
        f'run_success_timestamp_seconds{{dagster_job="{day}"}}',
        'run_success_timestamp_seconds{dagster_job="assets"}',
        f'run_failure_timestamp_seconds{{dagster_job="{day}"}}',
    }
    assert all(now - 300 < value <= now for value in ended.values())
    run("assets")
    with reading(shipped_instance) as dagster, dagster.connect() as connection:
        assert sorted(one.job for one in job_runs(connection)) == [IMPLICIT_ASSET_JOB_NAME, "assets", day, week]


@pytest.mark.usefixtures("pages")
def test_dagster_that_is_away_is_said_and_takes_nothing_else_away(
    database: URL, shipped_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "capacity_dagster_readable" not in measured_of(database, None), "its address is not known"
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://nobody@127.0.0.1:1/dagster")
    with open_runs_engine(Settings()) as absent:
        found = measured_of(database, absent)
    # The tables of another program of that name.
    with shipped_instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(text("ALTER TABLE runs RENAME COLUMN pipeline_name TO job_name"))

    assert found["capacity_dagster_readable"] == 0
    assert found["capacity_fleet_size_bytes"] > 0
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", shipped_instance.run_storage.postgres_url)  # type: ignore[attr-defined]
    with reading(shipped_instance) as changed:
        assert measured_of(database, changed)["capacity_dagster_readable"] == 0


@pytest.mark.usefixtures("pages")
def test_the_pages_read_runs_with_a_role_of_their_own_that_may_read_two_tables(
    database: URL, shipped_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_url(shipped_instance.run_storage.postgres_url)  # type: ignore[attr-defined]
    with shipped_instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(text("CREATE ROLE run_reader LOGIN PASSWORD 'r'"))
        connection.execute(text("GRANT SELECT ON runs, daemon_heartbeats TO run_reader"))
    own = whole.set(username="run_reader", password="r")  # noqa: S106 -- of a database of the tests
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://nobody@127.0.0.1:1/dagster")
    monkeypatch.setenv("CAPACITY_WEB_DAGSTER_POSTGRES_URL", own.render_as_string(hide_password=False))
    try:
        with reading(shipped_instance) as dagster:
            found = measured_of(database, dagster)
            with dagster.connect() as connection:
                assert connection.execute(text("SELECT current_user")).scalar_one() == "run_reader"
    finally:
        with shipped_instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
            connection.execute(text("DROP OWNED BY run_reader"))
            connection.execute(text("DROP ROLE run_reader"))

    assert found["capacity_dagster_readable"] == 1


def measured_of(database: URL, dagster: Engine | None) -> dict[str, float]:
    with served_pages(database, dagster=dagster) as pages:
        return measured(pages)


@pytest.mark.usefixtures("pages")
def test_the_text_is_that_of_prometheus_and_of_openmetrics(
    database: URL, engine: Engine, shipped_instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped_instance.report_run_failed(
        create_run_for_test(shipped_instance, 'a "job"', status=DagsterRunStatus.STARTED)
    )
    succeeded = create_run_for_test(shipped_instance, 'a "job"', status=DagsterRunStatus.STARTED)
    shipped_instance.report_dagster_event(dg.DagsterEvent("PIPELINE_SUCCESS", 'a "job"'), succeeded.run_id)
    shipped_instance.add_daemon_heartbeat(DaemonHeartbeat(1_753_000_000.0, "SENSOR", "daemon", []))
    monkeypatch.setattr(accuracy, "LEAST_CASES", 1)
    declare_limits(engine, [Limit("server-1", None, GROWING[-1] + 2_000)])
    issue_runways(engine, TODAY, TODAY)
    with (
        reading(shipped_instance) as dagster,
        served_pages(database, metrics_databases=["team"], dagster=dagster) as pages,
    ):
        plain, strict = pages.ask("/metrics"), pages.ask("/metrics", Accept=f"{OPENMETRICS};q=0.6,text/plain;q=0.5")
        judged = {one["horizon_days"]: one for one in pages.document("/accuracy")["horizons"]}[7]
        found = measured(pages)

    assert (header(plain, "content-type"), header(strict, "content-type")) == (PLAIN, OPENMETRICS)
    assert plain.text == strict.text
    assert plain.text.endswith("\n# EOF\n")
    assert promtool("check", "metrics", given=plain.text) == "", "it has nothing to complain about"
    families = set(re.findall("^# TYPE capacity_(\\S+) gauge$", plain.text, re.MULTILINE))
    assert families == set(DESCRIPTIONS), "every metric has a value here"
    assert found['capacity_forecast_median_error_ratio{horizon_days="7"}'] == judged["median_error_percent"] / 100
    assert found['capacity_forecast_covered_ratio{horizon_days="7"}'] == judged["covered_percent"] / 100


@pytest.mark.usefixtures("pages")
def test_a_real_prometheus_scrapes_the_pages_and_the_rules_alert(database: URL, tmp_path: Path) -> None:
    with (
        served_pages(database, metrics_databases=["team"]) as pages,
        prometheus(tmp_path, pages.address.removeprefix("http://"), "capacity_build_info", rules=(str(RULES),)) as its,
    ):
        [target] = queried(its, 'up{job="capacity"}')
        sizes = queried(its, 'capacity_server_size_bytes{server="server-1"}')
        [hostile] = queried(its, f"capacity_database_size_bytes{{database={json.dumps(HOSTILE)}}}")
        wait_for(its, 'ALERTS{alertname="CapacityServerNotMeasured",alertstate="pending"}')
        wait_for(its, 'ALERTS{alertname="CapacityNothingMeasured"}')
        wait_for(its, 'ALERTS{alertname="CapacityDatabaseFillsSoon",database="orders"}')
        scraped = queried(its, 'scrape_samples_scraped{job="capacity"}')

    assert target["value"][1] == "1"
    assert float(sizes[0]["value"][1]) == (GROWING[-1] + 600) * MIB
    assert float(hostile["value"][1]) == 100 * MIB
    assert 0 < float(scraped[0]["value"][1]) < 500


@pytest.mark.nightly("runs the programs of Prometheus")
def test_the_rules_and_the_configuration_are_sound() -> None:
    assert "SUCCESS" in promtool("check", "config", str(RULES.with_name("prometheus.yaml")))
    assert "SUCCESS" in promtool("test", "rules", str(ROOT / "tests" / "prometheus_rules.yaml"))
    written = set(re.findall("capacity_([a-z_]+)(?=[ {)=])", RULES.read_text()))
    assert written - set(DESCRIPTIONS) == {"assets"}, "rules name metrics that exist"


def test_metrics_ask_for_the_token_and_say_in_plain_text_why_there_are_none(database: URL, engine: Engine) -> None:
    with served_pages(database, token="a-secret-of-readers") as pages:  # noqa: S106 -- of this test
        assert pages.ask("/metrics").status == 401
        assert pages.ask("/metrics", Authorization="Bearer a-secret-of-readers").status == 200
    execute(engine, "UPDATE capacity_alembic_version SET version_num = '9999'")
    with served_pages(database) as pages:
        refused = pages.ask("/metrics")

    assert (refused.status, header(refused, "content-type")) == (503, "text/plain; charset=utf-8")
    assert "newer" in refused.text


def test_metrics_that_take_too_long_are_a_sentence_in_plain_text(
    engine: Engine, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ANSWER_SECONDS", 1)
    with served_pages(database) as pages, engine.begin() as connection:
        connection.execute(text("LOCK TABLE instance_size_stats, capacity_runways IN ACCESS EXCLUSIVE MODE"))
        slow = pages.ask("/metrics")

    assert (slow.status, header(slow, "content-type")) == (503, "text/plain; charset=utf-8")
    assert slow.text.startswith("The database did not answer within 1 second.")


@pytest.mark.usefixtures("pages")
def test_while_the_accuracy_is_read_the_other_metrics_are_there(database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def slowly_read(*arguments: Any, **named: Any) -> accuracy.FleetAccuracy:
        ended.wait(30)
        return accuracy.accuracy_of(*arguments, **named)

    monkeypatch.setattr(forecasts, "accuracy_of", slowly_read)
    monkeypatch.setattr(metrics, "METRICS_SECONDS", 0)
    monkeypatch.setattr(accuracy, "LEAST_CASES", 1)
    monkeypatch.setattr(app, "ANSWER_SECONDS", 3)
    covered = 'capacity_forecast_covered_ratio{horizon_days="7"}'
    with served_pages(database) as pages:
        meanwhile = pages.ask("/metrics")
        ended.set()
        later = measured(pages)

    assert (meanwhile.status, "capacity_fleet_size_bytes" in meanwhile.text) == (200, True)
    assert (covered in meanwhile.text, covered in later) == (False, True)
