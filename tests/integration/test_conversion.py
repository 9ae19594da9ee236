"""`capacity partition`: a database in use becomes partitioned, loses nothing, and can be stopped anywhere."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from datetime import date

import pytest
from sqlalchemy import Engine, inspect, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.periods import PERIODS
from capacity_assets.storage.conversion import NEW_KEY
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.partitions import CAPACITY_TABLES
from capacity_assets.storage.schema import initialise, schema_state
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.conversion import LEGACY, failing_at, is_partitioned, keep_few_rows, upgraded
from tests.databases import execute
from tests.fleet import add_database_sizes, figures, load_sample, sizes
from tests.forked import run_forked
from tests.legacy import LegacyShape, create_legacy_tables
from tests.partitions import everything, keeper, rows_by_partition
from tests.profiles import PROFILE

PREPARED_FROM_NOTHING = {
    **LEGACY,
    "few_rows": lambda engine: keep_few_rows(upgraded(engine, LegacyShape())),
}


@pytest.fixture
def few_rows(empty_engine: Engine) -> Engine:
    """The same, with three months of two servers, where a conversion is begun many times."""
    return empty_engine


def rows_in_default(engine: Engine) -> int:
    counts = [rows_by_partition(engine, table.name) for table in CAPACITY_TABLES]
    return sum(rows for found in counts for name, rows in found.items() if "default" in name)


def identifiers(engine: Engine, table: str) -> set[str]:
    return {str(index["name"]) for index in inspect(engine).get_indexes(table)}


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
            compute_windows(service, period, date(2025, 1, 1), TODAY)

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
    done_steps = []

    def stop_while_rows_move(step: str) -> None:
        done_steps.append(step)
        if "rows moved" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeper(legacy, on_step=stop_while_rows_move).convert(TODAY)
    assert done_steps[-1] == "database_size_stats: 554 rows moved to the partition of 2025-01-01 to 2025-01-31"

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
        line_said = next((line for line in process.stderr if line.startswith(step)), None)
        process.kill()
    assert line_said, "it was killed right after that step"
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
    execute(empty_engine, f"ALTER DATABASE {empty_engine.url.database} OWNER TO {owner}")
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
