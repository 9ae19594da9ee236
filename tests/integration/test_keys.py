"""Keys that begin with the window: what an upgrade does to the former ones, while others read and write."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, inspect, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.database.adoption import existing_tables, index_steps
from capacity_assets.database.schema import VERSION_TABLE, initialise, schema_state
from capacity_assets.database.tables import CAPACITY_TABLES
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import Databases, count, execute, rows
from tests.fleet import add_database_sizes, load_sample, sizes
from tests.former_revisions import ADDED_LATER
from tests.legacy import LegacyShape, create_legacy_tables, load_legacy_aggregates
from tests.partitions import FIRST, everything, keeper
from tests.profiles import nightly_except


@contextmanager
def failing_at(engine: Engine, number: int) -> Iterator[None]:
    """Let the statement with that number not happen, as when the process is killed before it."""
    numbers = itertools.count(1)

    def stop(*_arguments: object) -> None:
        if next(numbers) == number:
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", stop)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", stop)


KEYS = {
    "database_size_stats": ("uq_daily_database_size", ["collected_date", "instance_id", "database_name"]),
    "instance_size_stats": ("instance_size_stats_pkey", ["collected_date", "instance_id", "id"]),
    "database_size_aggregations": (
        "uq_database_size_aggregation",
        ["period_type", "period_start", "instance_id", "database_name"],
    ),
    "instance_size_aggregations": ("uq_instance_size_aggregation", ["period_type", "period_start", "instance_id"]),
}
IN_LEGACY = "database_size_stats_instance_id_database_name_collected_dat_key"
FURTHER = {
    "database_size_stats": set(),
    "instance_size_stats": set(),
    "database_size_aggregations": {
        f"ix_database_size_aggregations_{name}" for name in ("change", "size", "impossible")
    },
    "instance_size_aggregations": {"ix_instance_size_aggregations_impossible"},
}
NAMES_IN_LEGACY = {"database_size_stats": IN_LEGACY, "instance_size_stats": "instance_size_stats_pkey_capacity"}


def former(engine: Engine) -> None:
    """Rows of every kind in a database of version 0.3.0, partitioned."""
    initialise(engine)
    load_sample(engine)
    keeper(engine).run(TODAY)
    service = AggregationService(engine, fixed_clock())
    for period in ("daily", "monthly"):
        compute_windows(service, period, FIRST, TODAY)
    execute(engine, *ADDED_LATER["0014"], *ADDED_LATER["0013"], f"UPDATE {VERSION_TABLE} SET version_num = '0013'")


def legacy(shape: LegacyShape) -> Callable[[Engine], None]:
    def fill(engine: Engine) -> None:
        create_legacy_tables(engine, shape)
        load_sample(engine)
        load_legacy_aggregates(engine)

    return fill


def legacy_of_030(engine: Engine) -> None:
    """A legacy database as 0.3.0 left it: with the indexes that looks by day and window, and lists, relied on."""
    legacy(LegacyShape())(engine)
    for table in CAPACITY_TABLES:
        first = ["collected_date"] if "collected_date" in table.columns else ["period_type", "period_start"]
        columns = ", ".join([*first, "instance_id"])
        execute(engine, f"CREATE INDEX ix_{table.name}_{first[0]}_instance_id ON {table.name} ({columns})")
    for name, column in (("change", "size_change_mb"), ("size", "avg_size_mb")):
        table = "database_size_aggregations"
        execute(engine, f"CREATE INDEX ix_{table}_{name} ON {table} (period_type, period_start, {column})")


BEFORE = {
    "of 0.3.0": former,
    "legacy, of 0.3.0": legacy_of_030,
    "legacy": legacy(LegacyShape()),
    "legacy, partitioned": legacy(LegacyShape(partitioned=True)),
}


@contextmanager
def database_of(cluster: Databases, kind: str) -> Iterator[Engine]:
    template = cluster.filled(re.sub(r"\W+", "_", kind), BEFORE[kind], basis="template1")
    with cluster.copy(template) as url, cluster.engine(url) as engine:
        yield engine


@pytest.fixture
def former_database(cluster: Databases) -> Iterator[Engine]:
    with database_of(cluster, "of 0.3.0") as engine:
        yield engine


def unique_indexes(engine: Engine, table: str) -> list[tuple[object, ...]]:
    query = "SELECT indexrelid::regclass::text FROM pg_index WHERE indisunique AND indrelid = "
    return rows(engine, f"{query}'{table}'::regclass ORDER BY 1")


def keys_of(engine: Engine, table: str) -> list[tuple[object, ...]]:
    """Name and columns of primary key and unique constraints."""
    query = (
        "SELECT conname, ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k (number, place) "
        "JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = k.number ORDER BY place) "
        "FROM pg_constraint WHERE contype IN ('p', 'u') AND conrelid = "
    )
    return rows(engine, f"{query}'{table}'::regclass")


def numbered(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Every row, by columns that each of the databases has."""
    names = "id, instance_id, created_at"
    return {table.name: rows(engine, f"SELECT {names} FROM {table.name} ORDER BY 1, 2") for table in CAPACITY_TABLES}


@pytest.mark.parametrize("kind", nightly_except(BEFORE, "legacy, of 0.3.0"))
def test_one_key_by_window_replaces_former_ones_under_their_name_and_serves_statements_that_name_them(
    cluster: Databases, kind: str
) -> None:
    with database_of(cluster, kind) as engine:
        assert_one_key_by_window(engine, is_former=kind == "of 0.3.0")
        assert_writers_are_served(engine, IN_LEGACY if kind != "of 0.3.0" else "uq_daily_database_size")


def assert_one_key_by_window(engine: Engine, *, is_former: bool) -> None:
    before = numbered(engine)
    built: list[str] = []
    in_the_transaction: list[set[Any]] = []

    def note(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if "ADD CONSTRAINT" in statement or "USING INDEX" in statement:
            in_the_transaction.append({*connection.exec_driver_sql(_INDEX_FILES).scalars()})

    event.listen(engine, "before_cursor_execute", note)
    initialise(engine, built.append)
    event.remove(engine, "before_cursor_execute", note)

    assert numbered(engine) == before
    assert schema_state(engine).fit
    for table, (given, columns) in KEYS.items():
        name = {**dict.fromkeys(KEYS, given), **({} if is_former else NAMES_IN_LEGACY)}[table]
        [key] = [found for found in keys_of(engine, table) if found[0] == name]
        assert key == (name, columns)
        others = [("uq_instance_size_stats_instance_date",)] if table == "instance_size_stats" else []
        # The legacy application looks rows up by their number.
        others += [] if is_former else [(f"{table}_pkey",)]
        assert unique_indexes(engine, table) == sorted([(name,), *others])
        further = {str(index["name"]) for index in inspect(engine).get_indexes(table) if not index["unique"]}
        assert further == FURTHER[table]
        [number] = [column for column in inspect(engine).get_columns(table) if column["name"] == "id"]
        assert not number["nullable"]
        assert "nextval" in str(number["default"])
    assert all("without locking the table" in line for line in built)
    assert len(built) >= 4, "each table's key, and of partitions each one's"
    kept = {*rows(engine, _KEY_FILES)}
    assert {file for (file,) in kept} <= in_the_transaction[0], "no key of a filled table was built under a lock"
    assert initialise(engine) == ()


_INDEX_FILES = "SELECT pg_relation_filenode(indexrelid) FROM pg_index WHERE pg_relation_size(indrelid) > 0"
_KEY_FILES = """
SELECT pg_relation_filenode(i.indexrelid) FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
WHERE i.indisunique AND i.indkey[0] <> 1 AND t.relname ~ '^(database|instance)_size_' AND pg_relation_size(t.oid) > 0
  AND NOT t.relname ~ '^instance_size_(stats|aggregations)'
"""


def assert_writers_are_served(engine: Engine, sample: str) -> None:
    """Statements work that name a key's columns in their order, or the key itself; `sample` is that of samples."""
    for conflict in (
        "(instance_id, database_name, collected_date) DO UPDATE SET size_mb = excluded.size_mb + 1",
        f"ON CONSTRAINT {sample} DO UPDATE SET size_mb = excluded.size_mb + 2",
    ):
        execute(
            engine,
            "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
            f"VALUES (1, 'theirs', 5, '2025-03-03') ON CONFLICT {conflict}",
        )
    for conflict in (
        "(instance_id, database_name, period_type, period_start) DO NOTHING",
        "ON CONSTRAINT uq_database_size_aggregation DO UPDATE SET avg_size_mb = excluded.avg_size_mb + 1",
        "(period_type, period_start, instance_id, database_name) DO UPDATE SET max_size_mb = excluded.max_size_mb + 1",
    ):
        execute(
            engine,
            "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
            "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) "
            f"VALUES (1, 'theirs', 'weekly', '2025-03-03', '2025-03-09', 5, 5, 5, 7) ON CONFLICT {conflict}",
        )
    for _ in range(2):
        execute(
            engine,
            "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
            "VALUES (1, 5, 1, '2026-03-03') ON CONFLICT (instance_id, collected_date) WHERE is_deleted = false "
            "DO UPDATE SET total_size_mb = instance_size_stats.total_size_mb + 1",
        )
        execute(
            engine,
            "INSERT INTO instance_size_aggregations (instance_id, period_type, period_start, period_end, "
            "total_size_mb, avg_size_mb, max_size_mb, min_size_mb, data_count, database_count) VALUES "
            "(1, 'weekly', '2026-03-02', '2026-03-08', 5, 5, 5, 5, 7, 1) ON CONFLICT (instance_id, period_type, "
            "period_start) DO UPDATE SET total_size_mb = instance_size_aggregations.total_size_mb + 1",
        )

    assert rows(engine, "SELECT size_mb FROM database_size_stats WHERE database_name = 'theirs'") == [(7,)]
    stored = "SELECT avg_size_mb, max_size_mb FROM database_size_aggregations WHERE database_name = 'theirs'"
    assert rows(engine, stored) == [(6, 6)]
    for table, day in (("instance_size_stats", "collected_date"), ("instance_size_aggregations", "period_start")):
        assert rows(engine, f"SELECT total_size_mb FROM {table} WHERE {day} >= '2026-03-01'") == [(6,)]


@pytest.mark.nightly("upgrades a further shape")
def test_a_later_migration_of_the_legacy_application_finds_its_constraint(empty_engine: Engine) -> None:
    BEFORE["legacy"](empty_engine)
    initialise(empty_engine)

    execute(
        empty_engine,
        "ALTER TABLE database_size_aggregations RENAME CONSTRAINT uq_database_size_aggregation TO theirs",
        "ALTER TABLE instance_size_aggregations DROP CONSTRAINT uq_instance_size_aggregation",
        "ALTER TABLE instance_size_aggregations ADD CONSTRAINT uq_instance_size_aggregation "
        "UNIQUE (instance_id, period_type, period_start)",
    )
    expected = [("instance_size_aggregations_pkey",), ("uq_instance_size_aggregation",)]

    assert schema_state(empty_engine).shortcomings == (
        "instance_size_aggregations has no key on (period_type, period_start, instance_id)",
    )
    initialise(empty_engine)
    assert ("theirs",) in unique_indexes(empty_engine, "database_size_aggregations")
    assert unique_indexes(empty_engine, "instance_size_aggregations") == expected
    assert schema_state(empty_engine).fit


@pytest.mark.nightly("upgrades a further shape")
def test_a_key_that_a_foreign_key_of_others_refers_to_stays(empty_engine: Engine) -> None:
    BEFORE["legacy"](empty_engine)
    columns = "instance_id, database_name, collected_date"
    execute(
        empty_engine,
        "CREATE TABLE notes (instance_id int, database_name varchar(255), collected_date date, "
        f"FOREIGN KEY ({columns}) REFERENCES database_size_stats ({columns}))",
    )

    initialise(empty_engine)

    [reference] = inspect(empty_engine).get_foreign_keys("notes")
    assert reference["referred_columns"] == columns.split(", ")
    assert unique_indexes(empty_engine, "database_size_stats") == [
        (IN_LEGACY,),
        ("database_size_stats_pkey",),
        ("uq_daily_database_size",),
    ]
    assert schema_state(empty_engine).fit
    assert initialise(empty_engine) == ()


@pytest.mark.nightly("stops an upgrade before each of its statements")
def test_an_upgrade_stopped_before_any_of_its_statements_leaves_every_row_and_continues(
    former_database: Engine,
) -> None:
    before = everything(former_database)
    stopped = 0
    for number in itertools.count(1, 193):
        try:
            with failing_at(former_database, number):
                initialise(former_database)
        except KeyboardInterrupt:
            stopped += 1
            assert everything(former_database) == before, f"after a stop before statement {number}"
        else:
            break

    assert stopped > 2, stopped
    assert schema_state(former_database).fit
    assert {name for table in KEYS for (name,) in unique_indexes(former_database, table)} == {
        *(name for name, _ in KEYS.values()),
        "uq_instance_size_stats_instance_date",
    }


@pytest.mark.nightly("kills an upgrade of many rows")
def test_a_killed_init_leaves_every_row_and_the_next_one_builds_only_what_is_left(former_database: Engine) -> None:
    before = everything(former_database)
    url = former_database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "capacity_assets.cli", "init"]

    with subprocess.Popen(
        command, env={**os.environ, "CAPACITY_DATABASE_URL": url}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = list(itertools.islice((line for line in process.stderr if "building" in line), 10))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(said) == 10
    assert everything(former_database) == before
    assert schema_state(former_database).revision == "0013"

    left: list[str] = []
    initialise(former_database, left.append)

    assert not {line.strip() for line in said[:9]} & set(left), "what was built is built no more"
    assert left
    assert everything(former_database) == before
    assert schema_state(former_database).fit


@pytest.mark.nightly("upgrades a further shape")
def test_an_index_left_half_built_is_built_again(former_database: Engine) -> None:
    columns = "period_type, period_start, instance_id, database_name"
    partition = "database_size_aggregations_monthly_2025"
    execute(former_database, f"CREATE UNIQUE INDEX half ON {partition} ({columns})")
    execute(former_database, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass")

    initialise(former_database)

    assert rows(former_database, "SELECT to_regclass('half') IS NULL") == [(True,)]
    assert schema_state(former_database).fit


@pytest.mark.nightly("upgrades beside a writer")
def test_samples_written_while_the_keys_are_replaced_are_all_there_once(former_database: Engine) -> None:
    written: list[int] = []
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            add_database_sizes(former_database, sizes(number + 100, "busy", f"2025-0{1 + number % 7}-05", [number]))
            written.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        initialise(former_database)
    finally:
        stop.set()
        thread.join()

    found = rows(former_database, "SELECT size_mb FROM database_size_stats WHERE database_name = 'busy' ORDER BY 1")
    assert [size for (size,) in found] == written
    assert len(written) > 10


@pytest.mark.nightly("upgrades beside a reader")
def test_a_report_is_waited_for_while_indexes_are_built_and_others_go_on_meanwhile(former_database: Engine) -> None:
    done: list[tuple[str, ...]] = []
    with former_database.connect() as report:
        report.execute(text("SELECT count(*) FROM database_size_stats")).all()
        report.execute(text("DECLARE c CURSOR FOR SELECT * FROM database_size_stats"))
        thread = threading.Thread(target=lambda: done.append(initialise(former_database)))
        thread.start()
        thread.join(1)
        assert thread.is_alive(), "the index waits for the report to end"
        add_database_sizes(former_database, sizes(1, "meanwhile", "2025-03-03", [1]))
    thread.join()

    assert any("has no key on" in line for line in done[0])
    assert count(former_database, "database_size_stats WHERE database_name = 'meanwhile'") == 1


@pytest.mark.nightly("upgrades a further shape")
def test_two_upgrades_at_once_both_succeed(former_database: Engine) -> None:
    outcomes: list[tuple[str, ...]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(initialise(former_database))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [bool(done) for done in sorted(outcomes, key=len)] == [False, True]
    assert schema_state(former_database).fit


@pytest.mark.single_server("looks into its own indexes")
def test_indexes_of_lists_hold_no_row_of_a_day(engine: Engine) -> None:
    load_sample(engine)
    keeper(engine).run(TODAY)
    service = AggregationService(engine, fixed_clock())
    for period in ("daily", "monthly"):
        compute_windows(service, period, FIRST, TODAY)
    execute(engine, "ANALYZE database_size_aggregations")

    held = rows(
        engine,
        "SELECT DISTINCT t.relname ~ '_daily_', c.reltuples > 0 FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid "
        "WHERE pg_get_indexdef(i.indexrelid) ~ 'period_start, (avg_size_mb|size_change_mb)' AND t.relkind = 'r' "
        "AND t.reltuples > 0 ORDER BY 1",
    )

    assert held == [(False, True), (True, False)]
    with engine.connect() as connection:
        assert [
            step for table in existing_tables(connection, CAPACITY_TABLES) for step in index_steps(connection, table)
        ] == []
