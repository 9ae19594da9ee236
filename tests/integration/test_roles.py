"""The GRANTs of the operations page: each role can do its work with them, and nothing beyond."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import ProgrammingError

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import PERIODS
from capacity_assets.collection.servers import Server, register_servers
from capacity_assets.database.cluster import is_distributed
from capacity_assets.database.distributing import distribute
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.database.schema import initialise
from capacity_assets.database.views import FORECAST_TABLES
from capacity_assets.digest import DigestDeliveries, SendingSettings, read_digest, send_digests
from capacity_assets.forecast.issuing import RunwayService
from capacity_assets.history.exporting import write_window
from capacity_assets.history.retention import Retention, TableMaintenance
from capacity_assets.ownership.bills import issue_bill
from capacity_assets.reading.changes import window_sizes
from capacity_assets.report.page import read_report
from tests.clocks import fixed_clock
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, load_sample, sizes, stored, totals
from tests.ledger import recorded
from tests.roles import DOCS, ROLES, documented

# Keys of the former advisory locks: one per period, and one per kind of work.
FORMER_KEYS = (
    *(f"1667330145, {zlib.crc32(period.encode()) & 0x7FFFFFFF}" for period in (*PERIODS, "samples")),
    *(str(int.from_bytes(name)) for name in (b"capa", b"grps", b"part", b"runw", b"bill", b"dige")),
)
MARCH = PERIODS["monthly"].windows_between(date(2025, 3, 1), date(2025, 3, 31))


@pytest.fixture
def granted(engine: Engine) -> Iterator[Engine]:
    """The roles, as the page makes them."""
    with engine.begin() as connection:
        connection.exec_driver_sql(documented())
    if is_distributed(engine):
        [further] = re.findall(r"  ```sql\n(.*?)```", (DOCS / "scale.md").read_text(), re.DOTALL)
        with engine.begin() as connection:
            connection.exec_driver_sql(further)
        distribute(engine)
    yield engine
    with engine.begin() as connection:
        for role in ROLES:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@contextmanager
def as_role(database: URL, role: str) -> Iterator[Engine]:
    engine = capacity_engine(database.update_query_dict({"options": f"-c role={role}"}))
    yield engine
    engine.dispose()


def test_the_runner_computes_checks_writes_and_rebuilds_and_cannot_touch_samples(
    granted: Engine, database: URL, tmp_path: Path
) -> None:
    load_sample(granted)
    with as_role(database, "capacity_runner") as engine:
        service = AggregationService(engine, fixed_clock())
        runner = AggregationTaskRunner(service)
        run = runner.run_period("monthly", MARCH)
        for level in LEVELS:
            runner.run_checks(run, level)
            window_sizes(engine, PERIODS["monthly"], LEVELS[level], MARCH)
            runner.incomplete_windows(PERIODS["monthly"], level)
            assert write_window(engine, str(tmp_path), LEVELS[level], PERIODS["monthly"], MARCH[0]).rows > 0
        runner.stale_windows()
        again = runner.run_period("monthly", MARCH, RunOptions(overwrite=True))
        read_report(engine, PERIODS["monthly"], MARCH[0], by="team")
        bill = issue_bill(engine, MARCH[0], fixed_clock(date(2025, 4, 2)), ("team",))
        digest = read_digest(engine, PERIODS["weekly"].window_of(date(2025, 3, 10)))
        issued = [RunwayService(engine, fixed_clock(day)).issue(day) for day in (date(2025, 3, 1), date(2025, 3, 8))]

        assert run.total("written_records") == sum(len(stored(granted, level)) for level in LEVELS.values()) > 0
        assert again.total("written_records") == 0
        assert issued[0].states
        assert bill.gib_months > 0
        assert digest.size_mb == 0, "no week was computed"
        for statement in (
            "DELETE FROM database_size_stats",
            "UPDATE instances SET is_active = false",
            "DROP TABLE database_size_aggregations CASCADE",
            "TRUNCATE instance_size_aggregations",
        ):
            with (
                engine.connect() as connection,
                pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
            ):
                connection.execute(text(statement))


def test_the_collector_adds_and_corrects_samples_which_are_noted_and_reads_no_figure(
    granted: Engine, database: URL
) -> None:
    add_instances(granted, [1])
    with as_role(database, "capacity_collector") as engine:
        add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100]))
        add_instance_sizes(engine, totals(1, "2025-03-01", [(100, 1)]))
        with engine.begin() as connection:
            connection.execute(text("UPDATE database_size_stats SET size_mb = 101 WHERE database_name = 'orders'"))
            assert connection.execute(text("SELECT name FROM instances")).scalar_one() == "server-1"
        for statement in ("SELECT * FROM database_size_aggregations", "UPDATE instances SET host = 'elsewhere'"):
            with engine.connect() as connection, pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text(statement))
    assert {table for table, _ in recorded(granted)} == {"database_size_stats", "instance_size_stats"}


def test_the_collector_measures_and_imports(
    granted: Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = granted.url
    host = str(url.host or url.query["host"])
    register_servers(granted, [Server("own", "postgresql", host, url.port, password_from="own")])  # noqa: S106 -- where
    as_collector = database.update_query_dict({"options": "-c role=capacity_collector"})
    (tmp_path / "backups.csv").write_text("server,database,day,size_mb\nown,before,2025-01-01,5\n")
    backups = ("import", str(tmp_path / "backups.csv"), "--origin", "sqlserver-backups")
    monkeypatch.setenv("CAPACITY_DATABASE_URL", database.render_as_string(hide_password=False))
    registered_by_owner = capacity(*backups)
    (tmp_path / "backups.csv").write_text("server,database,day,size_mb\nown,before,2025-01-02,5\n")
    monkeypatch.setenv("CAPACITY_DATABASE_URL", as_collector.render_as_string(hide_password=False))
    (tmp_path / "x.csv").write_text("server,database,day,size_mb\nown,before,2025-01-01,7\n")
    (tmp_path / "volumes.csv").write_text("server,volume,day,total_gb,free_gb\nown,/data,2025-01-01,4,1\n")

    done = [
        capacity("collect"),
        capacity("import", str(tmp_path / "x.csv")),
        capacity("volumes", "import", str(tmp_path / "volumes.csv")),
        registered_by_owner,
        capacity(*backups),
    ]

    assert [one.exit_code for one in done] == [0] * 5, "".join(one.output for one in done)
    assert "`capacity aggregate --period daily` computes them now." in done[0].stdout
    assert "The forecasts of own are not updated yet" in done[2].stdout
    with granted.connect() as connection:
        found = connection.execute(text("SELECT count(*), min(collected_date)::text FROM database_size_stats")).one()
    assert found[0] > 1
    assert found[1] == "2025-01-01"


@pytest.mark.usefixtures("granted")
def test_the_runner_checks_what_it_may_read_and_says_who_can_check_the_rest(
    database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_runner = database.update_query_dict({"options": "-c role=capacity_runner"})
    monkeypatch.setenv("CAPACITY_DATABASE_URL", as_runner.render_as_string(hide_password=False))

    found = {one["subject"]: (one["verdict"], one["text"]) for one in json.loads(capacity("check", "--json").output)}

    assert found["capacity database"][0] == found["schema"][0] == found["limits"][0] == "ok"
    unchecked = {name for name, (_, said) in found.items() if said.startswith("not checked: this role may not")}
    assert unchecked == {"partitions", "collection"}


@pytest.mark.usefixtures("granted")
def test_the_reader_sees_the_views_and_what_forecasts_are_made_of_and_nothing_else(database: URL) -> None:
    with as_role(database, "capacity_reader") as engine:
        with engine.connect() as connection:
            for view in re.findall(r"capacity_\w+", documented().split("GRANT SELECT ON capacity_growth")[-1]):
                if view not in ROLES:
                    connection.execute(text(f"SELECT * FROM {view}"))
            assert connection.execute(text("SELECT count(*) FROM capacity_growth")).scalar_one() == 0
            for table in FORECAST_TABLES:
                connection.execute(text(f"SELECT * FROM {table}"))
        denied = ["SELECT * FROM capacity_collection_targets", "DELETE FROM database_size_stats"]
        if not is_distributed(engine):
            below = ("instances", "object_size_stats", "capacity_runways", "capacity_labels")
            denied += [f"SELECT * FROM {table}" for table in below]
        for statement in denied:
            with engine.connect() as connection, pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text(statement))


@pytest.mark.usefixtures("granted")
def test_the_reader_cannot_hold_a_lock_and_no_lock_that_it_can_hold_stops_the_work(
    engine: Engine, database: URL
) -> None:
    load_sample(engine)
    with CapacityLockManager(engine).job_lock("monthly"):
        pass
    with as_role(database, "capacity_reader") as reading:
        for statement in (
            "SELECT FROM capacity_locks FOR UPDATE",
            "LOCK TABLE capacity_locks IN ACCESS SHARE MODE",
            "INSERT INTO capacity_locks (name) VALUES ('monthly')",
        ):
            with reading.connect() as connection, pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text(statement))
        with reading.connect() as connection:
            for keys in FORMER_KEYS:
                connection.execute(text(f"SELECT pg_advisory_lock({keys})"))
            service = AggregationService(engine, fixed_clock())
            assert AggregationTaskRunner(service).run_period("monthly", MARCH).total("written_records") > 0
            limited = capacity_engine(database.update_query_dict({"options": "-c lock_timeout=5s"}))
            assert issue_bill(limited, MARCH[0], fixed_clock(date(2025, 4, 2)), ()).gib_months > 0
            assert RunwayService(limited, fixed_clock()).issue(date(2025, 3, 1)).states
            assert send_digests(
                limited, PERIODS["weekly"].window_of(date(2025, 3, 10)), (), SendingSettings()
            ) == DigestDeliveries([], [], ())
            TableMaintenance(limited, date(2025, 1, 1), Retention({})).prepare(date(2025, 7, 20))
            assert initialise(limited) == ()
            limited.dispose()
