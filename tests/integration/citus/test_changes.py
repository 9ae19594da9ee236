"""Whatever happens to samples, servers and nodes, rows end as on a single server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import cycle

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import InternalError

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, Level
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import DatabaseError
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import VERSION_TABLE, initialise
from tests import citus
from tests.citus_fleet import FIRST, LAST, compute_everything, everything, opened, service
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, sizes
from tests.former_revisions import ADDED_LATER
from tests.profiles import HISTORIES


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


def test_what_the_nodes_had_recorded_of_0_3_0_is_followed_after_the_upgrade(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    compute_everything(distributed)
    service(distributed).ledger.gather()
    execute(
        distributed,
        # Names of indexes of shards are cut to the same.
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
        *ADDED_LATER["0016"],
        *ADDED_LATER["0015"],
        *ADDED_LATER["0014"],
        *ADDED_LATER["0013"],
        f"UPDATE {VERSION_TABLE} SET version_num = '0013'",
    )
    for table, day in (("capacity_sample_changes", "collected_date date NOT NULL, "), ("capacity_invalidations", "")):
        for port in nodes.ports[1:]:
            nodes.on_node(
                port,
                f"CREATE TABLE {table} (table_name varchar(63) NOT NULL, {day}transaction_id bigint NOT NULL "
                "DEFAULT (pg_current_xact_id()::text)::bigint, changed_at timestamptz NOT NULL DEFAULT now())",
                str(distributed.url.database),
            )
    execute(distributed, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-09'")
    execute(distributed, "UPDATE instance_size_aggregations SET min_size_mb = 7 WHERE period_start = '2025-05-01'")

    initialise(distributed)

    ledger = service(distributed).ledger
    found = {(one.level, one.period_type, one.window.key) for one in ledger.stale()}
    assert ("database", "daily", "2025-03-09") in found
    assert {level for level, _, _ in found} == {"database", "group"}, "no group was computed by 0.3.0"
    assert ("monthly", "instance") in {(one.period_type, one.level) for one in ledger.outdated()}
    compute_everything(distributed)
    assert ledger.stale() == []
    add_database_sizes(distributed, sizes(5, "late", "2025-05-02", [1]))
    assert ("daily", "2025-05-02") in {(one.period_type, one.window.key) for one in ledger.stale()}


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
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    execute(distributed, statement)

    again = compute_windows(service(distributed), "monthly", FIRST, LAST)

    database = [part for part in again.summaries if part.level == "database"]
    assert sum(part.written_records + part.protected_records for part in database) > 0


def test_a_server_that_fails_fails_alone(distributed: Engine) -> None:
    execute(distributed, "ALTER TABLE database_size_aggregations ADD CONSTRAINT sane CHECK (avg_size_mb < 500000)")
    add_database_sizes(distributed, sizes(4, "huge", "2025-03-01", [10**6]))

    run = service(distributed).aggregate(
        "monthly", PERIODS["monthly"].windows_between(date(2025, 3, 1), date(2025, 3, 1))
    )

    [database] = [part for part in run.summaries if part.level == "database"]
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
                for part in run.summaries
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

    slices = AggregationService(distributed, fixed_clock(), instances_per_slice=2, parallel_slices=1)
    event.listen(distributed, "before_cursor_execute", kill)
    with pytest.raises(DatabaseError, match="Completed slices were kept") as failed:
        compute_windows(slices, "monthly", FIRST, LAST)
    event.remove(distributed, "before_cursor_execute", kill)
    nodes.control(worker, "start")

    assert failed.value.transient
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    compute_windows(service(plain), "monthly", FIRST, LAST)
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


def move_a_shard(engine: Engine, nodes: citus.CitusServer, mode: str) -> bool:
    """Move a shard, and those that lie beside it, to the other worker, with writers waiting or by replication.

    Citus refuses while somebody still reads what the move before left behind; then nothing is moved.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        shard, port = connection.execute(
            text(
                "SELECT shardid, nodeport FROM citus_shards WHERE table_name = 'database_size_stats'::regclass "
                "ORDER BY random() LIMIT 1"
            )
        ).one()
        [other] = {*nodes.ports[1:]} - {port}
        move = "SELECT citus_move_shard_placement(:shard, '127.0.0.1', :port, '127.0.0.1', :other, :mode)"
        try:
            connection.execute(text(move), {"shard": shard, "port": port, "other": other, "mode": mode})
        except InternalError as error:
            if "leftover from the previous move could not be cleaned up" not in str(error):
                raise
            return False
        return True


def test_shards_may_move_and_samples_arrive_while_windows_are_computed(
    nodes: citus.CitusServer, distributed: Engine, plain: Engine
) -> None:
    days = iter(range(170))
    modes = cycle(["block_writes", "force_logical"])
    moved: list[str] = []
    # As processes of their own, which wait for no connection of ours.
    mover, gatherer = (capacity_engine(distributed.url) for _ in range(2))

    def move() -> None:
        mode = next(modes)
        if move_a_shard(mover, nodes, mode):
            moved.append(mode)

    def correct() -> None:
        day = FIRST + timedelta(days=next(days, 0))
        change = f"UPDATE database_size_stats SET size_mb = 77 WHERE collected_date = '{day}' AND instance_id = 2"
        for engine in (mover, plain):
            execute(engine, change)

    def gather() -> None:
        service(gatherer).ledger.stale()

    with meanwhile(move, correct, gather, gather):
        for _ in range(4):
            for period in ("daily", "monthly"):
                compute_windows(service(distributed), period, FIRST, LAST)

    for engine in (mover, gatherer):
        engine.dispose()
    assert set(moved) == {"block_writes", "force_logical"}
    follow(distributed)
    for period in ("daily", "monthly"):
        compute_windows(service(plain), period, FIRST, LAST)
    assert everything(distributed) == everything(plain)


def follow(engine: Engine) -> None:
    """Compute what the ledger says is stale, until nothing is."""
    while stale := service(engine).ledger.stale():
        for one in stale:
            service(engine).aggregate(one.period_type, [one.window], RunOptions((one.level,)))
