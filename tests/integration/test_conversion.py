"""`capacity partition`: a database in use becomes partitioned, loses nothing, and can be stopped anywhere."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import pytest
from sqlalchemy import Engine, event, inspect, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.levels import DATABASE, INSTANCE, LEVELS
from capacity_assets.periods import PERIODS
from capacity_assets.storage.conversion import NEW_KEY
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.partitions import CAPACITY_TABLES, layout_of
from capacity_assets.storage.schema import SchemaProblemsError, initialise, schema_state
from tests.clocks import TODAY, fixed_clock
from tests.fleet import add_database_sizes, figures, load_sample, sizes
from tests.forked import run_forked
from tests.legacy import LegacyShape, create_legacy_tables, load_legacy_aggregates
from tests.partitions import everything, keeper, rows_by_partition
from tests.profiles import PROFILE

ADVICE = "Drop it, run `capacity partition`, and create it again."


def upgraded(engine: Engine, shape: LegacyShape) -> Engine:
    create_legacy_tables(engine, shape)
    load_sample(engine)
    load_legacy_aggregates(engine)
    initialise(engine)
    # The sample brings its row numbers with it.
    execute(engine, "SELECT setval('database_size_stats_id_seq', 100000)")
    return engine


PREPARED_FROM_NOTHING = {
    "legacy": lambda engine: upgraded(engine, LegacyShape()),
    "few_rows": lambda engine: keep_few_rows(upgraded(engine, LegacyShape())),
}


@pytest.fixture
def legacy(empty_engine: Engine) -> Engine:
    """A legacy database without partitions, upgraded, with the sample and what the legacy system made of it."""
    return empty_engine


@pytest.fixture
def few_rows(empty_engine: Engine) -> Engine:
    """The same, with three months of two servers, where a conversion is begun many times."""
    return empty_engine


def keep_few_rows(engine: Engine) -> None:
    for table in CAPACITY_TABLES:
        day = "collected_date" if "collected_date" in table.columns else "period_start"
        execute(engine, f"DELETE FROM {table.name} WHERE instance_id > 2 OR {day} >= '2025-04-01'")


def is_partitioned(engine: Engine) -> list[bool]:
    with engine.connect() as connection:
        return [layout_of(connection, table).by_period for table in CAPACITY_TABLES[2:]]


def rows_in_default(engine: Engine) -> int:
    counts = [rows_by_partition(engine, table.name) for table in CAPACITY_TABLES]
    return sum(rows for found in counts for name, rows in found.items() if "default" in name)


def execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def identifiers(engine: Engine, table: str) -> set[str]:
    return {str(index["name"]) for index in inspect(engine).get_indexes(table)}


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


@pytest.mark.parametrize(
    "shape",
    [LegacyShape(), LegacyShape(unique_key=False), LegacyShape(period_check=True)],
    ids=["plain", "without a unique key", "with a check on periods"],
)
def test_every_row_is_there_unchanged_and_lies_in_its_partition(empty_engine: Engine, shape: LegacyShape) -> None:
    upgraded(empty_engine, shape)
    before = everything(empty_engine)

    report = keeper(empty_engine).convert(TODAY)

    assert report.converted == [table.name for table in CAPACITY_TABLES]
    assert report.moved_records == sum(map(len, before.values()))
    assert everything(empty_engine) == before
    for table in CAPACITY_TABLES:
        assert not any("default" in name for name in rows_by_partition(empty_engine, table.name))
    assert schema_state(empty_engine).fit
    assert initialise(empty_engine) == (), "nothing is left to fix"
    assert keeper(empty_engine).convert(TODAY).converted == [], "once is enough"


def test_figures_after_a_conversion_are_those_of_a_new_database(legacy: Engine, engine: Engine) -> None:
    keeper(legacy).convert(TODAY)
    load_sample(engine)

    for one in (legacy, engine):
        service = AggregationService(one, fixed_clock())
        for period in PERIODS:
            service.calculate_period_aggregations(period, date(2025, 1, 1), TODAY)

    for level in LEVELS.values():
        computed = figures(engine, level)
        assert computed
        assert {key: row for key, row in figures(legacy, level).items() if key in computed} == computed


def test_a_conversion_stopped_before_any_of_its_statements_continues_and_ends_equal(few_rows: Engine) -> None:
    legacy = few_rows
    before = everything(legacy)
    for number in itertools.count(1, PROFILE.stride):
        try:
            with failing_at(legacy, number):
                keeper(legacy).convert(TODAY)
        except KeyboardInterrupt:
            assert everything(legacy) == before, f"after a stop before statement {number}"
        else:
            break

    assert number > 60
    assert is_partitioned(legacy) == [True, True]
    for table in CAPACITY_TABLES:
        assert not any("default" in name for name in rows_by_partition(legacy, table.name))


def test_a_stopped_conversion_is_continued_by_the_next_maintenance(legacy: Engine) -> None:
    before = everything(legacy)
    told = []

    def stop_while_rows_move(step: str) -> None:
        told.append(step)
        if "rows moved" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeper(legacy, tell=stop_while_rows_move).convert(TODAY)
    assert told[-1] == "database_size_stats: 554 rows moved to the partition of 2025-01-01 to 2025-01-31"

    keeper(legacy).run(TODAY)

    assert everything(legacy) == before
    assert is_partitioned(legacy) == [True, True]
    assert rows_by_partition(legacy, "database_size_stats")["database_size_stats_2025_01"] == 554


@pytest.mark.parametrize(
    "step",
    [
        "database_size_stats: building the key",
        "instance_size_stats: partitioned",
        "database_size_stats: 554 rows moved",
        "database_size_aggregations: 1",
    ],
)
def test_a_killed_command_leaves_every_row_and_the_next_one_finishes(legacy: Engine, step: str) -> None:
    before = everything(legacy)
    url = legacy.url.render_as_string(hide_password=False)
    environment = {**os.environ, "CAPACITY_DATABASE_URL": url, "CAPACITY_RETENTION_DAYS": "raw=forever,daily=forever"}
    command = [sys.executable, "-m", "capacity_assets.cli", "partition"]

    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = next((line for line in process.stderr if line.startswith(step)), None)
        process.kill()
    assert told, "it was killed right after that step"
    assert process.returncode == -signal.SIGKILL
    assert everything(legacy) == before
    assert is_partitioned(legacy) != [True, True] or rows_in_default(legacy), "in the middle of the work"

    # The killed one's session may hold its locks until the server notices.
    for _ in range(3):
        finished = run_forked("partition", environment=environment, timeout=120)
        if finished.returncode == 0:
            break
    assert finished.returncode == 0, finished.stderr
    assert everything(legacy) == before
    assert is_partitioned(legacy) == [True, True]
    assert not any("default" in name for name in rows_by_partition(legacy, "database_size_stats"))


def test_a_half_built_key_of_a_killed_conversion_is_built_again(legacy: Engine) -> None:
    name = NEW_KEY.format("database_size_stats")
    execute(legacy, f"CREATE UNIQUE INDEX {name} ON database_size_stats (collected_date, instance_id, id)")
    execute(legacy, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")

    keeper(legacy).convert(TODAY)

    assert is_partitioned(legacy) == [True, True]


def test_samples_written_meanwhile_are_all_there_and_noted(legacy: Engine) -> None:
    written: list[int] = []
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            add_database_sizes(legacy, sizes(number + 100, "busy", f"2025-0{1 + number % 7}-05", [number]))
            written.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        keeper(legacy).convert(TODAY)
    finally:
        stop.set()
        thread.join()

    with legacy.connect() as connection:
        query = "SELECT size_mb FROM database_size_stats WHERE database_name = 'busy' ORDER BY 1"
        assert list(connection.execute(text(query)).scalars()) == written
    assert len(written) > 10
    add_database_sizes(legacy, sizes(1, "after", "2025-03-03", [1]))
    with legacy.connect() as connection:
        recorded = connection.execute(text("SELECT DISTINCT collected_date FROM capacity_sample_changes")).scalars()
        assert date(2025, 3, 3) in set(recorded)


def test_rights_foreign_keys_row_numbers_and_further_indexes_are_kept(legacy: Engine) -> None:
    role = f"reader_{legacy.url.database}"
    execute(legacy, f"CREATE ROLE {role}")
    execute(legacy, f"GRANT SELECT ON database_size_stats TO {role} WITH GRANT OPTION")
    execute(legacy, "GRANT SELECT ON database_size_stats TO PUBLIC")
    execute(legacy, "CREATE INDEX by_size ON database_size_stats (size_mb DESC) WHERE size_mb > 100")
    execute(legacy, "CREATE INDEX by_day ON database_size_stats (collected_date)")
    columns = "database_name, collected_date, instance_id, id"
    execute(legacy, f"CREATE UNIQUE INDEX by_name ON database_size_stats ({columns})")
    add_database_sizes(legacy, sizes(1, "new", "2025-07-01", [1]))

    keeper(legacy).convert(TODAY)

    with legacy.connect() as connection:
        query = "SELECT has_table_privilege(:role, 'database_size_stats', 'SELECT WITH GRANT OPTION')"
        assert connection.execute(text(query), {"role": role}).scalar()
    add_database_sizes(legacy, sizes(1, "new", "2025-07-02", [1]))
    with legacy.connect() as connection:
        query = "SELECT id FROM database_size_stats WHERE database_name = 'new' ORDER BY collected_date"
        before, after = connection.execute(text(query)).scalars()
        assert after == before + 1
    [key] = inspect(legacy).get_foreign_keys("instance_size_stats")
    assert (key["constrained_columns"], key["referred_table"]) == (["instance_id"], "instances")
    names = identifiers(legacy, "database_size_stats")
    assert {"by_size", "by_name"} <= names
    assert "by_day" not in names, "the primary key begins with that day"
    execute(legacy, f"DROP OWNED BY {role}")
    execute(legacy, f"DROP ROLE {role}")


def test_an_identity_column_goes_on_counting_for_the_owner_and_for_who_may_only_insert(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape())
    owner, collector = f"owner_{empty_engine.url.database}", f"collector_{empty_engine.url.database}"
    for role in (owner, collector):
        execute(empty_engine, f"CREATE ROLE {role} LOGIN")
    execute(empty_engine, f"ALTER TABLE database_size_stats OWNER TO {owner}")
    execute(empty_engine, f"GRANT INSERT, SELECT ON database_size_stats TO {collector}")
    execute(empty_engine, f"GRANT SELECT ON instances TO {owner}")
    execute(empty_engine, "ALTER TABLE database_size_stats ALTER id DROP DEFAULT")
    execute(empty_engine, "ALTER TABLE database_size_stats ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 5000)")
    initialise(empty_engine)
    add_database_sizes(empty_engine, sizes(1, "orders", "2025-03-01", [1, 2]))

    keeper(empty_engine).convert(TODAY)
    for role, day in ((owner, "2025-03-03"), (collector, "2025-03-04")):
        theirs = capacity_engine(empty_engine.url.set(username=role))
        try:
            add_database_sizes(theirs, sizes(1, "orders", day, [3]))
        finally:
            theirs.dispose()

    ids = [row[0] for row in everything(empty_engine)["database_size_stats"]]
    for role in (owner, collector):
        execute(empty_engine, f"REASSIGN OWNED BY {role} TO postgres")
        execute(empty_engine, f"DROP OWNED BY {role}")
        execute(empty_engine, f"DROP ROLE {role}")
    assert sorted(ids) == [5000, 5001, 5002, 5003]


def test_the_key_waits_for_a_long_transaction_however_long_other_locks_are_waited_for(legacy: Engine) -> None:
    impatient = capacity_engine(legacy.url.update_query_dict({"options": "-clock_timeout=500ms"}))
    reports = []
    with legacy.connect() as report:
        report.execute(text("SELECT * FROM database_size_stats")).all()
        thread = threading.Thread(target=lambda: reports.append(keeper(impatient).convert(TODAY)))
        thread.start()
        thread.join(2)
        assert thread.is_alive(), "the index is built, and waits for the report to end"
    thread.join()
    impatient.dispose()

    assert reports[0].converted == [table.name for table in CAPACITY_TABLES]


def test_a_key_is_still_called_by_its_old_name(legacy: Engine) -> None:
    [key] = inspect(legacy).get_unique_constraints("database_size_stats")
    assert key["name"] == "database_size_stats_instance_id_database_name_collected_dat_key"

    keeper(legacy).convert(TODAY)

    row = "(instance_id, database_name, size_mb, collected_date) VALUES (1, 'twice', 1, '2025-03-03')"
    for _ in range(2):
        execute(legacy, f"INSERT INTO database_size_stats {row} ON CONFLICT ON CONSTRAINT {key['name']} DO NOTHING")
    assert initialise(legacy) == ()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE VIEW newest AS SELECT max(size_mb) FROM database_size_stats", "rule _RETURN on view newest"),
        (
            "CREATE TABLE notes (id bigint, day date, FOREIGN KEY (id, day) "
            "REFERENCES database_size_stats (id, collected_date))",
            "constraint notes_id_day_fkey on table notes",
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
            "CREATE TRIGGER own BEFORE INSERT ON database_size_stats FOR EACH ROW EXECUTE FUNCTION f()",
            "trigger own on table database_size_stats",
        ),
        (
            "CREATE FUNCTION g(database_size_stats) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function g(database_size_stats)",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE database_size_stats",
            "publication of table database_size_stats in publication p",
        ),
        ("ALTER TABLE database_size_stats ENABLE ROW LEVEL SECURITY", "row level security"),
        ("GRANT SELECT (size_mb) ON database_size_stats TO PUBLIC", "a privilege on column size_mb"),
    ],
)
def test_what_would_be_left_behind_with_the_old_rows_is_named_and_nothing_is_changed(
    legacy: Engine, statement: str, named: str
) -> None:
    execute(legacy, statement)
    before = everything(legacy)

    with pytest.raises(SchemaProblemsError) as caught:
        keeper(legacy).convert(TODAY)

    assert caught.value.problems == [
        f"database_size_stats: {named} belongs to it and would be left behind with the old rows. {ADVICE}"
    ]
    assert everything(legacy) == before
    with legacy.connect() as connection:
        assert [layout_of(connection, table).is_partitioned for table in CAPACITY_TABLES] == [False] * 4


def test_a_unique_index_that_a_partitioned_table_cannot_have_is_named(legacy: Engine) -> None:
    execute(legacy, "CREATE UNIQUE INDEX own ON instance_size_aggregations (id)")

    with pytest.raises(SchemaProblemsError, match="its unique index own lacks period_type or period_start"):
        keeper(legacy).convert(TODAY)


def test_a_dry_run_says_what_would_be_converted_and_changes_nothing(legacy: Engine) -> None:
    before = everything(legacy)

    report = keeper(legacy).convert(TODAY, dry_run=True)

    assert report.converted == [table.name for table in CAPACITY_TABLES]
    assert report.notes == []
    assert everything(legacy) == before
    assert is_partitioned(legacy) == [False, False]


def test_tables_cut_by_month_stay_as_they_are(empty_engine: Engine) -> None:
    upgraded(empty_engine, LegacyShape(partitioned=True))
    before = everything(empty_engine)

    assert keeper(empty_engine).convert(TODAY).converted == []
    assert everything(empty_engine) == before
    assert sum(row["data_count"] for row in figures(empty_engine, INSTANCE).values()) > 0
    assert len(figures(empty_engine, DATABASE)) == len(before["database_size_aggregations"])


def test_the_views_follow_the_new_tables_with_their_grants(legacy: Engine) -> None:
    execute(legacy, "CREATE ROLE follower")
    try:
        execute(legacy, "GRANT SELECT ON capacity_growth TO follower")
        execute(legacy, "GRANT SELECT (server, size_mb) ON capacity_latest TO follower")
        execute(legacy, "ALTER VIEW capacity_latest SET (security_barrier = true)")
        with legacy.connect() as connection:
            before = connection.execute(text("SELECT count(*), sum(size_mb) FROM capacity_growth")).one()

        keeper(legacy).convert(TODAY)

        with legacy.connect() as connection:
            assert connection.execute(text("SELECT count(*), sum(size_mb) FROM capacity_growth")).one() == before
            granted = "SELECT has_table_privilege('follower', 'capacity_growth', 'SELECT')"
            assert connection.execute(text(granted)).scalar_one()
            by_column = "SELECT has_column_privilege('follower', 'capacity_latest', 'size_mb', 'SELECT')"
            assert connection.execute(text(by_column)).scalar_one()
            options = "SELECT reloptions FROM pg_class WHERE oid = 'capacity_latest'::regclass"
            assert connection.execute(text(options)).scalar_one() == ["security_barrier=true"]
            read = (
                "SELECT DISTINCT d.refobjid::regclass::text FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid "
                "WHERE w.ev_class = 'capacity_growth'::regclass AND d.refobjid::regclass::text LIKE '%aggregations%'"
            )
            assert connection.execute(text(read)).scalars().all() == ["database_size_aggregations"]
        assert schema_state(legacy).fit
    finally:
        execute(legacy, "DROP OWNED BY follower")
        execute(legacy, "DROP ROLE follower")


def test_a_view_that_somebody_built_on_ours_stands_in_the_way_and_is_named(legacy: Engine) -> None:
    execute(legacy, "CREATE VIEW theirs AS SELECT * FROM capacity_growth")

    with pytest.raises(SchemaProblemsError) as refused:
        keeper(legacy).convert(TODAY)

    assert f"view theirs depends on one of our views, which has to be created again. {ADVICE}" in str(refused.value)
    assert not any(is_partitioned(legacy))
