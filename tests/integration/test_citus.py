"""The same figures on Citus: a coordinator and two workers, each a real PostgreSQL; skipped without one.

`CAPACITY_TEST_CITUS_BIN` is the folder of a PostgreSQL's programs that has the extension. With it the other tests of
this folder run on distributed tables too.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, func, select, text

from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.collection.imported_volumes import VolumeDay, store_volumes
from capacity_assets.foundation.errors import DatabaseError
from capacity_assets.foundation.levels import DATABASE, INSTANCE, LEVELS, Level
from capacity_assets.periods import PERIODS
from capacity_assets.retention.maintenance import TableMaintenance
from capacity_assets.retention.report import MaintenanceError
from capacity_assets.retention.rules import Retention, parse_retention
from capacity_assets.runway.forecasting import outlooks
from capacity_assets.runway.issuing import issue
from capacity_assets.settings import CAPACITY_DRIVER
from capacity_assets.storage import distributing, distribution
from capacity_assets.storage.distributing import distribute, placements, what_stands_in_the_way
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.partitions import PARTITIONED
from capacity_assets.storage.schema import initialise, schema_state
from capacity_assets.storage.tables import SAMPLES
from tests import citus
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.databases import execute
from tests.fleet import Row, add_database_sizes, add_instance_sizes, add_instances, figures, sizes, totals
from tests.profiles import HISTORIES

PROGRAMS = os.environ.get(citus.VARIABLE)
pytestmark = pytest.mark.skipif(not PROGRAMS, reason=f"{citus.VARIABLE} names no PostgreSQL with the extension citus")
FIRST, LAST = date(2025, 1, 1), date(2025, 7, 1)
SHARDS = 4
MANY_SHARDS = 16
SERVERS = range(1, 7)


def prepare(engine: Engine) -> None:
    initialise(engine)
    TableMaintenance(engine, FIRST, Retention({})).prepare(TODAY)


def fill(engine: Engine) -> None:
    """Servers whose rows lie on different nodes, one that was measured with gaps, one database that goes."""
    add_instances(engine, SERVERS)
    for number in SERVERS:
        days = [None if day % 30 < number - 4 else 100 * number + day for day in range(170)]
        add_database_sizes(engine, sizes(number, "orders", str(FIRST), days, data_size_mb=7))
        add_instance_sizes(engine, totals(number, str(FIRST), [None if d is None else (d, 1) for d in days]))
    add_database_sizes(engine, sizes(2, "archive", "2025-02-10", range(500, 540)))


@pytest.fixture(scope="module")
def nodes() -> Iterator[citus.CitusServer]:
    with citus.citus_cluster(Path(str(PROGRAMS))) as started:
        yield started


@pytest.fixture(scope="module")
def databases(nodes: citus.CitusServer) -> Iterator[citus.CitusDatabases]:
    found = citus.CitusDatabases(nodes)
    for name in ("template_empty", "template_distributed"):
        found.execute(f"CREATE DATABASE {name}")
        nodes.join(name)
        engine = capacity_engine(nodes.url(name, CAPACITY_DRIVER))
        prepare(engine)
        fill(engine)
        if name == "template_distributed":
            distribute(engine, shards=SHARDS)
        engine.dispose()
    found.filled("plain", lambda engine: (prepare(engine), fill(engine)), basis="template1")
    yield found
    found.close()


@contextmanager
def opened(databases: citus.CitusDatabases, template: str) -> Iterator[Engine]:
    with databases.copy(template) as url:
        engine = capacity_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def undistributed(databases: citus.CitusDatabases) -> Iterator[Engine]:
    """A database of the cluster whose tables lie on the coordinator."""
    with opened(databases, "template_empty") as engine:
        yield engine


@pytest.fixture
def distributed(databases: citus.CitusDatabases) -> Iterator[Engine]:
    with opened(databases, "template_distributed") as engine:
        yield engine


@pytest.fixture
def plain(databases: citus.CitusDatabases) -> Iterator[Engine]:
    """A database of the coordinator without the extension."""
    with opened(databases, "template_plain") as engine:
        yield engine


def service(engine: Engine) -> AggregationService:
    return AggregationService(engine, fixed_clock())


def compute_everything(engine: Engine) -> None:
    for period in PERIODS:
        service(engine).calculate_period_aggregations(period, FIRST, LAST)


def everything(engine: Engine) -> dict[object, Row]:
    return {(level.name, *key): row for level in LEVELS.values() for key, row in figures(engine, level).items()}


def test_distributing_keeps_every_row_and_the_figures_are_those_of_a_single_server(
    undistributed: Engine, plain: Engine
) -> None:
    service(undistributed).calculate_period_aggregations("monthly", FIRST, LAST)

    assert distribute(undistributed, shards=SHARDS) == [
        "database_size_stats", "instance_size_stats", "database_size_aggregations", "instance_size_aggregations",
        "volume_size_stats", "database_limit_stats", "capacity_runways",
    ]  # fmt: skip

    compute_everything(undistributed)
    compute_everything(plain)
    assert everything(undistributed) == everything(plain)
    assert len(everything(plain)) > 2_000
    assert {(one.shards, one.nodes) for one in placements(undistributed)} == {(SHARDS, 2)}
    assert schema_state(undistributed).fit
    assert initialise(undistributed) == ()
    assert service(undistributed).ledger.stale() == []


def test_tables_of_several_shards_per_node_are_distributed_and_get_further_partitions(undistributed: Engine) -> None:
    """The indexes of their partitions are of one name, cut to what PostgreSQL allows; only several collide."""
    before = counted(undistributed)
    # Each shard has a connection of its own at once, as on nodes that take their time.
    eager = "SET citus.force_max_query_parallelization = on"
    execute(undistributed, f"ALTER DATABASE {undistributed.url.database} {eager}")
    undistributed.dispose()

    distribute(undistributed, shards=MANY_SHARDS)
    report = TableMaintenance(undistributed, FIRST, Retention({})).prepare(TODAY + timedelta(days=62))

    assert {(one.shards, one.nodes) for one in placements(undistributed)} == {(MANY_SHARDS, 2)}
    assert counted(undistributed) == before
    assert len(report.created) >= 2 * len(LEVELS)
    assert report.notes == []


def counted(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        tables = [table for level in LEVELS.values() for table in (level.source, level.target)]
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]


def test_groups_add_up_to_the_same_as_on_a_single_server(distributed: Engine, plain: Engine) -> None:
    labels = (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) VALUES "
        "(1, '', 'team', '0001-01-01', 'shop'), (2, '', 'team', '2025-03-01', 'books'), "
        "(2, 'arch*', 'team', '2025-02-01', 'archive'), (3, 'orders', 'team', '2025-04-01', 'shop')"
    )
    found = []
    for engine in (distributed, plain):
        execute(engine, labels)
        compute_everything(engine)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM capacity_groups ORDER BY 1, 2, 3, 4, 5"))
            found.append([tuple(row) for row in rows])

    assert found[0] == found[1]
    assert {row[3] for row in found[0]} == {"engine", "server", "team"}


OURS = ("SELECT by_server", "INSERT INTO", "DELETE FROM", "SELECT database_size", "SELECT instance_size")
Plan = dict[str, object]


@contextmanager
def explained(engine: Engine) -> Iterator[dict[str, Plan]]:
    """The plan of every statement of a slice that the block executes."""
    plans: dict[str, Plan] = {}

    def explain(connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith(OURS) and "capacity_" not in statement.split("(", maxsplit=1)[0]:
            found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)  # type: ignore[attr-defined]
            plans[statement] = found.scalar_one()[0]["Plan"]

    event.listen(engine, "before_cursor_execute", explain)
    yield plans
    event.remove(engine, "before_cursor_execute", explain)


def assert_that_nodes_do_all(engine: Engine, plans: dict[str, Plan]) -> None:
    """One scan each, with as many tasks as there are shards, and no row through the coordinator."""
    with engine.connect() as connection:
        shard = "get_shard_id_for_distribution_column('database_size_stats', id)"
        used = connection.execute(text(f"SELECT count(DISTINCT {shard}) FROM instances")).scalar_one()
    assert used > 2
    for statement, plan in plans.items():
        queries = [node["Distributed Query"] for node in nodes_of(plan) if "Distributed Query" in node]
        tasks = [query["Job"]["Task Count"] for query in queries]  # type: ignore[index]
        assert tasks in ([used], [SHARDS]), statement[:200]
    written = [plan for statement, plan in plans.items() if statement.startswith("INSERT INTO")]
    assert written
    assert {plan["Custom Plan Provider"] for plan in written} == {"Citus Adaptive"}


EXPLAINED = [(period, level, overwrite) for period in PERIODS for level in LEVELS for overwrite in (False, True)]


@pytest.mark.parametrize(("period", "level", "overwrite"), EXPLAINED)
def test_every_statement_of_a_slice_is_handed_to_the_nodes_whole(
    distributed: Engine, period: str, level: str, *, overwrite: bool
) -> None:
    options = RunOptions((level,), overwrite=overwrite, recompute=True)
    with explained(distributed) as plans:
        for last in (FIRST, LAST):  # one window, and several
            with distributed.begin() as connection:
                connection.execute(text("TRUNCATE database_size_aggregations, instance_size_aggregations"))
            service(distributed).aggregate(period, PERIODS[period].windows_between(FIRST, last), options)

    assert_that_nodes_do_all(distributed, plans)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("period", ["quarterly", "yearly"])
def test_stored_windows_are_read_on_the_nodes_where_they_cover_everything(
    distributed: Engine, plain: Engine, period: str, level: str
) -> None:
    options = RunOptions((level,), recompute=True)
    for engine in (distributed, plain):
        # A year and more before, so that the months between are known to hold nothing.
        add_database_sizes(engine, sizes(1, "orders", "2023-12-01", [5]))
        add_instance_sizes(engine, totals(1, "2023-12-01", [(5, 1)]))
        service(engine).aggregate("monthly", PERIODS["monthly"].windows_between(date(2023, 12, 1), date(2025, 12, 1)))
    window = PERIODS[period].window_of(date(2025, 4, 1))

    with explained(distributed) as plans:
        service(distributed).aggregate(period, [window], options)
    service(plain).aggregate(period, [window], options)

    assert_that_nodes_do_all(distributed, plans)
    [counted] = [statement for statement in plans if statement.startswith("SELECT by_server")]
    assert LEVELS[level].source.name not in counted, "no sample is read"
    assert figures(distributed, LEVELS[level]) == figures(plain, LEVELS[level])


def nodes_of(plan: dict[str, object]) -> Iterator[dict[str, object]]:
    yield plan
    for below in plan.get("Plans", ()):  # type: ignore[attr-defined]
        yield from nodes_of(below)


def test_samples_that_change_on_a_node_make_their_windows_stale(distributed: Engine) -> None:
    compute_everything(distributed)
    assert service(distributed).ledger.stale() == []

    execute(distributed, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-09'")
    add_database_sizes(distributed, sizes(5, "late", "2025-05-02", [1]))

    stale = {(one.period_type, one.window.key) for one in service(distributed).ledger.stale()}
    assert {("daily", "2025-03-09"), ("daily", "2025-03-10"), ("monthly", "2025-03-01")} <= stale
    assert {("daily", "2025-05-02"), ("monthly", "2025-05-01"), ("monthly", "2025-06-01")} <= stale
    assert ("monthly", "2025-01-01") not in stale
    compute_everything(distributed)
    assert service(distributed).ledger.stale() == []


def test_a_change_that_is_committed_after_the_look_is_found_by_the_next_one(distributed: Engine) -> None:
    compute_everything(distributed)
    with distributed.connect() as late:
        late.execute(
            text("UPDATE database_size_stats SET size_mb = 9 WHERE instance_id = 3 AND collected_date = '2025-02-03'")
        )
        assert service(distributed).ledger.stale() == []
        late.commit()

    assert ("monthly", "2025-02-01") in {(s.period_type, s.window.key) for s in service(distributed).ledger.stale()}


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM database_size_stats WHERE instance_id = 1 AND collected_date = '2025-03-09'",
        "UPDATE database_size_aggregations SET avg_size_mb = 7 WHERE period_start = '2025-03-01'",
    ],
)
def test_rows_that_others_delete_or_write_are_noticed(distributed: Engine, statement: str) -> None:
    service(distributed).calculate_period_aggregations("monthly", FIRST, LAST)
    execute(distributed, statement)

    again = service(distributed).calculate_period_aggregations("monthly", FIRST, LAST)

    database = [part for part in again.parts if part.level == "database"]
    assert sum(part.written_records + part.protected_records for part in database) > 0


def test_a_server_that_fails_fails_alone(distributed: Engine) -> None:
    execute(distributed, "ALTER TABLE database_size_aggregations ADD CONSTRAINT sane CHECK (avg_size_mb < 500000)")
    add_database_sizes(distributed, sizes(4, "huge", "2025-03-01", [10**6]))

    run = service(distributed).aggregate(
        "monthly", PERIODS["monthly"].windows_between(date(2025, 3, 1), date(2025, 3, 1))
    )

    [database] = [part for part in run.parts if part.level == "database"]
    assert (database.processed_instances, database.failed_instances) == (5, 1)
    assert "sane" in str(database.errors[0])


CHANGES = {
    "late": "INSERT INTO {raw} ({keys}, {values}, collected_date) SELECT {keys}, {values}, date '{day}' FROM {raw} "
    "WHERE instance_id = {server} ORDER BY collected_date LIMIT 1 ON CONFLICT DO NOTHING",
    "corrected": "UPDATE {raw} SET {headline} = {headline} + 5 "
    "WHERE collected_date = '{day}' AND instance_id = {server}",
    "deleted": "DELETE FROM {raw} WHERE collected_date >= '{day}' AND instance_id = {server}",
    "written": "UPDATE {target} SET data_count = data_count + 1 "
    "WHERE period_start <= '{day}' AND instance_id = {server}",
    "out": "UPDATE instances SET is_active = false WHERE id = {server}",
    "in": "UPDATE instances SET is_active = true",
}  # fmt: skip
actions = st.lists(
    st.tuples(st.sampled_from([*CHANGES, *PERIODS]), st.integers(0, 169), st.sampled_from([1, 2, 5]), st.booleans()),
    min_size=1,
    max_size=5,
)


def _apply(engine: Engine, level: Level, action: tuple[str, int, int, bool]) -> None:
    name, offset, server, overwrite = action
    day = FIRST + timedelta(days=offset)
    if name in PERIODS:
        last = min(day + timedelta(days=90), LAST)
        options = RunOptions((level.name,), overwrite=overwrite)
        service(engine).aggregate(name, PERIODS[name].windows_between(day, last), options)
        return
    words = {
        "raw": level.source.name, "target": level.target.name, "day": day, "server": server,
        "keys": ", ".join(level.keys), "values": ", ".join(level.values), "headline": level.headline.source,
    }  # fmt: skip
    execute(engine, CHANGES[name].format(**words))


@given(history=actions, level=st.sampled_from([DATABASE, INSTANCE]))
@hypothesis_settings(max_examples=HISTORIES, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happened_rows_and_counts_are_those_of_a_single_server(
    databases: citus.CitusDatabases, history: list[tuple[str, int, int, bool]], level: Level
) -> None:
    found = []
    for template in ("template_distributed", "template_plain"):
        with opened(databases, template) as engine:
            for action in history:
                _apply(engine, level, action)
            run = service(engine).aggregate("monthly", PERIODS["monthly"].windows_between(FIRST, LAST))
            counts = [
                (part.level, part.period_start, part.processed_instances, part.total_records, part.written_records,
                 part.unchanged_records, part.protected_records, part.unsampled_records)
                for part in run.parts
            ]  # fmt: skip
            found.append((everything(engine), counts))
    assert found[0] == found[1]


def test_a_worker_that_dies_in_mid_run_loses_nothing(
    nodes: citus.CitusServer, distributed: Engine, plain: Engine
) -> None:
    worker = nodes.ports[1]
    seen = 0

    def kill(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal seen
        if statement.startswith("INSERT INTO database_size_aggregations"):
            seen += 1
            if seen == 2:
                nodes.control(worker, "-m", "immediate", "stop")

    slices = AggregationService(distributed, fixed_clock(), instances_per_slice=2)
    event.listen(distributed, "before_cursor_execute", kill)
    with pytest.raises(DatabaseError, match="What was committed before was kept") as failed:
        slices.calculate_period_aggregations("monthly", FIRST, LAST)
    event.remove(distributed, "before_cursor_execute", kill)
    nodes.control(worker, "start")

    assert failed.value.transient
    service(distributed).calculate_period_aggregations("monthly", FIRST, LAST)
    service(plain).calculate_period_aggregations("monthly", FIRST, LAST)
    assert everything(distributed) == everything(plain)


@contextmanager
def meanwhile(*works: Callable[[], None]) -> Iterator[None]:
    """Do work over and over in threads of its own while the block runs; what fails there fails the test."""
    done = threading.Event()
    troubles: list[BaseException] = []

    def loop(work: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 -- asserted below
            troubles.append(error)

    threads = [threading.Thread(target=loop, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert troubles == []


def move_a_shard(engine: Engine, nodes: citus.CitusServer) -> None:
    """Move a shard, and those that lie beside it, to the other worker."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        shard, port = connection.execute(
            text(
                "SELECT shardid, nodeport FROM citus_shards WHERE table_name = 'database_size_stats'::regclass "
                "ORDER BY random() LIMIT 1"
            )
        ).one()
        [other] = {*nodes.ports[1:]} - {port}
        move = "SELECT citus_move_shard_placement(:shard, '127.0.0.1', :port, '127.0.0.1', :other, 'block_writes')"
        connection.execute(text(move), {"shard": shard, "port": port, "other": other})


def test_shards_may_move_and_samples_arrive_while_windows_are_computed(
    nodes: citus.CitusServer, distributed: Engine, plain: Engine
) -> None:
    days = iter(range(170))

    def correct() -> None:
        day = FIRST + timedelta(days=next(days, 0))
        change = f"UPDATE database_size_stats SET size_mb = 77 WHERE collected_date = '{day}' AND instance_id = 2"
        for engine in (distributed, plain):
            execute(engine, change)

    with meanwhile(lambda: move_a_shard(distributed, nodes), correct):
        for _ in range(4):
            for period in ("daily", "monthly"):
                service(distributed).calculate_period_aggregations(period, FIRST, LAST)

    follow(distributed)
    for period in ("daily", "monthly"):
        service(plain).calculate_period_aggregations(period, FIRST, LAST)
    assert everything(distributed) == everything(plain)


def follow(engine: Engine) -> None:
    """Compute what the ledger says is stale, until nothing is."""
    while stale := service(engine).ledger.stale():
        for one in stale:
            service(engine).aggregate(one.period_type, [one.window], RunOptions((one.level,)))


def test_the_command_says_what_it_would_do_does_it_and_says_where_everything_lies(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", undistributed.url.render_as_string(hide_password=False))

    would = capacity("distribute", "--dry-run", "--shards", str(SHARDS))
    assert "Would distribute database_size_stats, instance_size_stats" in would.output
    assert {one.is_distributed for one in placements(undistributed)} == {False}

    done = json.loads(capacity("distribute", "--shards", str(SHARDS), "--json").output)
    assert len(done["done"]) == 7
    assert {table["shards"] for table in done["tables"]} == {SHARDS}
    again = capacity("distribute", "--shards", str(SHARDS))
    assert "Everything was distributed already. Nothing was changed." in again.output
    assert f"{SHARDS} shards on 2 nodes" in again.output


def test_an_interrupted_distribution_goes_on_where_it_stopped(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_table: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distribute(undistributed, shards=SHARDS, tell=stop)
    assert [one.is_distributed for one in placements(undistributed)] == [True] + 6 * [False]
    monkeypatch.setenv("CAPACITY_DATABASE_URL", undistributed.url.render_as_string(hide_password=False))
    left = ", ".join(table.name for table in PARTITIONED[1:])
    assert distribution_found() == (
        "bad",
        f"{left}: still on the coordinator; run `capacity distribute` again, nothing is computed before",
    )

    assert len(distribute(undistributed, shards=SHARDS)) == 6
    assert distribution_found() == ("ok", f"what grows with the fleet lies in {SHARDS} shards each on 2 nodes")
    compute_everything(undistributed)
    assert service(undistributed).ledger.stale() == []


def test_what_retention_frees_on_the_nodes_is_counted(distributed: Engine) -> None:
    execute(
        distributed,
        "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
        "SELECT '2025-01-05', 1 + n % 6, 'volume ' || n, 100, 50, 'imported' FROM generate_series(1, 20000) n",
    )

    report = TableMaintenance(distributed, FIRST, parse_retention("volume_size_stats=30")).run(TODAY)

    assert len(report.dropped) == 1
    assert report.dropped_records == 20_000
    assert 2 <= report.freed_mb <= 6
    assert stored_rows(distributed, "volume_size_stats") == 0


def test_limits_and_forecasts_that_a_version_before_left_on_the_coordinator_work_there_and_are_distributed_later(
    undistributed: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = LAST + timedelta(days=1)

    def import_and_issue() -> dict[str, Any]:
        """What is told of everything that was stored, the same as on a single server."""
        told: list[dict[str, Any]] = []
        for engine in (undistributed, plain):
            days = [VolumeDay("server-2", name, LAST, 900 << 30, 5 << 30) for name in ("/data", "/log")]
            volumes = store_volumes(engine, days)
            past = issue(engine, LAST - timedelta(days=60), today)
            runways = issue(engine, today, today)
            assert runways.issue is not None
            told.append({"volumes": volumes, "issued": runways.to_dict(), "past": past.to_dict()})
            told[-1]["rows"] = outlooks(engine, today, server="server-2").rows
        assert told[0] == told[1]
        for table in distribution.ALONGSIDE:
            assert stored_of(undistributed, table.name) == stored_of(plain, table.name)
        scored = "capacity_runways WHERE actual_30_mb IS NOT NULL"
        assert len(stored_of(plain, scored)) > len(SERVERS)
        return told[0]

    with monkeypatch.context() as before:
        before.setattr(distributing, "PARTITIONED", distribution.DISTRIBUTED)
        distribute(undistributed, shards=SHARDS)
    first = import_and_issue()
    assert (first["volumes"], first["issued"]["written_records"]) == (2, 2 * len(SERVERS) + 2)
    monkeypatch.setenv("CAPACITY_DATABASE_URL", undistributed.url.render_as_string(hide_password=False))
    left = "volume_size_stats, database_limit_stats, capacity_runways: still on the coordinator"
    told = f"{left}; run `capacity distribute` again, because they grow with the fleet"
    assert distribution_found() == ("note", told)

    assert distribute(undistributed, shards=SHARDS) == [table.name for table in distribution.ALONGSIDE]

    again = import_and_issue()
    assert (again["volumes"], again["issued"]["written_records"]) == (0, 0)
    assert again["rows"] == first["rows"]


def distribution_found() -> tuple[str, str]:
    """What `capacity check` says of it, and how bad that is."""
    lines = json.loads(capacity("check", "--json").stdout)
    [found] = [(line["verdict"], line["text"]) for line in lines if line["subject"] == "distribution"]
    return found


def stored_of(engine: Engine, table: str) -> set[str]:
    """The rows of a table, but when they were written."""
    with engine.connect() as connection:
        rows = connection.execute(text(f"SELECT * FROM {table}")).mappings()
        return {
            str([value for name, value in row.items() if name not in {"issued_at", "collected_at"}]) for row in rows
        }


def test_what_stands_in_the_way_is_said_with_what_to_do(
    databases: citus.CitusDatabases, plain: Engine, distributed: Engine, nodes: citus.CitusServer
) -> None:
    assert "The database has no extension citus." in str(what_stands_in_the_way(plain))
    assert what_stands_in_the_way(distributed) is None
    on_a_worker = capacity_engine(nodes.url(str(distributed.url.database), CAPACITY_DRIVER, nodes.ports[1]))
    assert "CAPACITY_DATABASE_URL must name the coordinator" in str(what_stands_in_the_way(on_a_worker))
    on_a_worker.dispose()
    with databases.copy("template1") as url:
        nodes.join(str(url.database))
        empty = capacity_engine(url)
        assert "run `capacity init` first" in str(what_stands_in_the_way(empty))
        empty.dispose()


def test_what_people_ask_is_answered_as_on_a_single_server(
    distributed: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    june = ("--period", "monthly", "--window", "2025-05-01")
    asked = (
        ("status", "--json"),
        ("top", *june, "--json"),
        ("groups", *june, "--json"),
        ("explain", "orders", "--server", "server-2", *june, "--json"),
        ("plan", "--period", "monthly", "--json"),
        ("limits", "set", "server-1", "--gb", "900"),
        ("runway", "--json"),
        ("prices", "set", "2", "--currency", "EUR"),
        ("bill", "--month", "2025-05", "--json"),
        ("report", *june, "--output", str(tmp_path / "report.html")),
    )
    answers = []
    for engine in (distributed, plain):
        compute_everything(engine)
        monkeypatch.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
        found = {}
        for command in asked:
            done = capacity(*command)
            assert done.exit_code in (0, 1), (command, done.output)
            assert "not supported" not in done.output, command
            found[command] = done.output if command[-1] == "--json" else str(done.exit_code)
        answers.append(found)

    timed = ("status", "plan", "bill", "runway")
    for command in asked:
        if command[0] not in timed:
            assert answers[0][command] == answers[1][command], command


def test_a_node_that_lacks_the_tables_of_changes_is_named_and_distributing_again_prepares_it(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    port, database = nodes.ports[2], str(distributed.url.database)
    nodes.on_node(port, "DROP TABLE capacity_sample_changes", database)

    with pytest.raises(DatabaseError, match=rf"Node 127.0.0.1:{port} does not say what was changed there") as failed:
        service(distributed).ledger.stale()

    assert not failed.value.transient
    assert "run `capacity distribute`, which prepares nodes that were added" in str(failed.value)
    assert distribute(distributed, shards=SHARDS) == []
    assert service(distributed).ledger.stale() == []


def test_a_node_that_does_not_answer_keeps_samples_and_nothing_else_from_being_maintained(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    compute_everything(distributed)
    nodes.on_node(nodes.ports[2], "DROP TABLE capacity_sample_changes", str(distributed.url.database))
    rows = {table.name: stored_rows(distributed, table.name) for table in SAMPLES}
    maintenance = TableMaintenance(distributed, FIRST, parse_retention("raw=400"))

    with pytest.raises(MaintenanceError, match="no further sample was dropped") as failed:
        maintenance.run(date(2027, 3, 1))

    assert {name: stored_rows(distributed, name) for name in rows} == rows
    created = {line.split(":")[0] for line in failed.value.report.created}
    assert created == {table.name for table in PARTITIONED}


def stored_rows(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_changes_are_gathered_while_a_distribution_is_unfinished(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_everything(undistributed)
    monkeypatch.setattr(distributing, "PARTITIONED", distribution.DISTRIBUTED[:1])
    assert distribute(undistributed, shards=SHARDS) == ["database_size_stats"]
    assert not distribution.is_distributed(undistributed)

    execute(undistributed, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-02-12'")

    stale = {(found.period_type, found.window.key) for found in service(undistributed).ledger.stale()}
    assert ("daily", "2025-02-12") in stale


def test_roles_of_any_name_may_do_on_the_nodes_what_they_may_on_the_coordinator(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    database = str(distributed.url.database)
    # It goes with the cluster.
    execute(distributed, 'CREATE ROLE "odd-Role\'s $do$" LOGIN')
    execute(distributed, 'GRANT SELECT, DELETE ON capacity_sample_changes TO "odd-Role\'s $do$"')
    execute(distributed, 'GRANT UPDATE (changed_at) ON capacity_sample_changes TO "odd-Role\'s $do$"')
    execute(distributed, "GRANT SELECT ON capacity_invalidations TO PUBLIC")

    for _ in range(2):
        assert distribute(distributed, shards=SHARDS) == []

    granted = (
        "SELECT grantee, table_name::text, privilege_type FROM information_schema.column_privileges "
        "WHERE table_name IN ('capacity_sample_changes', 'capacity_invalidations') AND column_name = 'changed_at' "
        "AND grantee <> 'postgres' ORDER BY 1, 2, 3"
    )
    for port in nodes.ports:
        assert nodes.on_node(port, granted, database) == [
            ("PUBLIC", "capacity_invalidations", "SELECT"),
            ("odd-Role's $do$", "capacity_sample_changes", "SELECT"),
            ("odd-Role's $do$", "capacity_sample_changes", "UPDATE"),
        ]
        deletes = "SELECT has_table_privilege('odd-Role''s $do$', 'capacity_sample_changes', 'DELETE')"
        assert nodes.on_node(port, deletes, database) == [(True,)]
