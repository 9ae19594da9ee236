"""`capacity init` on what is there: former revisions, a legacy database of any shape, duplicates in the way."""

from __future__ import annotations

import re
from datetime import date

import pytest
from sqlalchemy import Engine, inspect, text

from capacity_assets.aggregates.explanation import explanation_of, find_subjects
from capacity_assets.aggregates.levels import DATABASE, INSTANCE, SERVER_LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.database.schema import VERSION_TABLE, SchemaProblemsError, initialise, schema_state
from tests import oracle
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import Databases, execute, rows
from tests.fleet import figures, load_sample, raw_rows, stored
from tests.former_revisions import ADDED_LATER
from tests.ledger import LAST, compute_everything, half_a_year_of_two_servers, redo, stale
from tests.legacy import SHAPES, LegacyShape, create_legacy_tables, load_legacy_aggregates, row_counts
from tests.profiles import nightly_except
from tests.unchanged import months_read


@pytest.mark.single_server("has a revision of a single server")
@pytest.mark.parametrize("former", nightly_except(["0016", "0013"]))
def test_a_database_of_each_former_revision_becomes_the_same_as_a_new_one_and_keeps_its_rows(
    former: str, engine: Engine, clock: Clock
) -> None:
    load_sample(engine)
    AggregationService(engine, clock).aggregate("yearly", [PERIODS["yearly"].window_of(date(2025, 1, 1))])
    functions = "SELECT proname FROM pg_proc WHERE proname LIKE 'capacity%' ORDER BY 1"
    computed = "SELECT level, period_type, period_start FROM capacity_computed_windows ORDER BY level"
    # Partitions come with the groups that are computed, and with maintenance.
    tables = (
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
        "AND relname !~ '^(group_size|server_part|object_size).*_[0-9]'"
    )
    kept = [
        sorted(found) for found in (row_counts(engine), *(rows(engine, one) for one in (computed, functions, tables)))
    ]
    for revision, statements in ADDED_LATER.items():
        if revision >= former:
            execute(engine, *statements)
    execute(engine, f"UPDATE {VERSION_TABLE} SET version_num = '{former}'")

    initialise(engine)

    assert schema_state(engine).fit
    found = row_counts(engine), *(rows(engine, one) for one in (computed, functions, tables))
    assert [sorted(one) for one in found] == kept
    assert initialise(engine) == ()


def test_a_revision_older_than_version_0_3_0_is_refused(engine: Engine) -> None:
    execute(engine, f"UPDATE {VERSION_TABLE} SET version_num = '0012'")

    with pytest.raises(
        SchemaProblemsError, match=r"revision 0012, which is older than version 0.3.0. Run 0.3.0's `capacity init`"
    ):
        initialise(engine)

    assert rows(engine, f"SELECT version_num FROM {VERSION_TABLE}") == [("0012",)]


def fill_as_of_0_3_0(engine: Engine) -> None:
    """Two servers with samples of half a year, everything computed, in a database of version 0.3.0."""
    half_a_year_of_two_servers(engine)
    execute(
        engine,
        *ADDED_LATER["0016"],
        *ADDED_LATER["0015"],
        *ADDED_LATER["0014"],
        *ADDED_LATER["0013"],
        f"UPDATE {VERSION_TABLE} SET version_num = '0013'",
    )


def fill_as_of_0021(engine: Engine) -> None:
    """The same in a database of the revision before used space was measured."""
    half_a_year_of_two_servers(engine)
    execute(engine, *ADDED_LATER["0022"], *ADDED_LATER["0021"], f"UPDATE {VERSION_TABLE} SET version_num = '0021'")


PREPARED = {"as_of_0_3_0": fill_as_of_0_3_0, "as_of_0021": fill_as_of_0021}


@pytest.fixture
def as_of_0_3_0(engine: Engine) -> None:
    """The copy is the database in which the windows were computed."""
    execute(engine, "UPDATE capacity_computed_windows SET database_oid = DEFAULT")


CHANGE = "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'"


@pytest.mark.single_server("has a revision of before tables could be distributed")
@pytest.mark.usefixtures("as_of_0_3_0")
@pytest.mark.nightly("computes every window of release 0.3.0")
def test_windows_that_were_up_to_date_in_0_3_0_stay_so_and_are_skipped(engine: Engine) -> None:
    # One that every window has seen, and that was not forgotten yet.
    execute(engine, "INSERT INTO capacity_sample_changes VALUES ('database_size_stats', '2025-03-31')")
    execute(engine, "UPDATE capacity_computed_windows SET snapshot = CAST(pg_current_snapshot() AS text)")

    initialise(engine)

    service = AggregationService(engine, fixed_clock())
    groups = rows(engine, "SELECT 'group', period_type, CAST(period_start AS text) FROM capacity_computed_windows")
    assert stale(service) == set(groups), "each is to be computed, and nothing else"
    assert {one.level for one in service.ledger.outdated()} == {"group"}
    assert months_read(engine, service) == {}


@pytest.mark.single_server("has a revision of before tables could be distributed")
@pytest.mark.usefixtures("as_of_0_3_0")
@pytest.mark.parametrize(
    "elsewhere",
    nightly_except(
        ["", "system_identifier = 4711", "database_oid = 4711", "snapshot = '900000000:900000000:'"],
        "system_identifier = 4711",
    ),
    ids=["here", "of another server", "of another database", "of transactions to come"],
)
def test_windows_that_were_stale_in_0_3_0_stay_so(engine: Engine, elsewhere: str) -> None:
    execute(engine, CHANGE)
    if elsewhere:
        execute(engine, f"UPDATE capacity_computed_windows SET {elsewhere}")

    initialise(engine)

    service = AggregationService(engine, fixed_clock())
    assert {found for found in stale(service) if found[0] != "group"} == {
        ("database", period, start)
        for period, starts in {
            "daily": ["2025-03-31", "2025-04-01"],
            "weekly": ["2025-03-31", "2025-04-07"],
            "monthly": ["2025-03-01", "2025-04-01"],
            "quarterly": ["2025-01-01", "2025-04-01"],
            "yearly": ["2025-01-01"],
        }.items()
        for start in starts
    }


@pytest.mark.nightly("upgrades a further shape")
@pytest.mark.single_server("has a revision of before tables could be distributed")
@pytest.mark.usefixtures("as_of_0_3_0")
def test_foreign_writes_and_servers_that_0_3_0_had_recorded_are_known_afterwards(engine: Engine) -> None:
    execute(engine, CHANGE)
    execute(engine, "UPDATE database_size_aggregations SET min_size_mb = 7 WHERE period_start = '2025-05-01'")
    execute(engine, "DELETE FROM instances WHERE id = 2", "DELETE FROM capacity_activations")
    execute(engine, "INSERT INTO instances (id, name, db_type, host, port) VALUES (2, 'two', 'mysql', 'two', 1)")

    initialise(engine)

    service = AggregationService(engine, fixed_clock())
    with engine.connect() as connection:
        changed = "SELECT kind, instance_id FROM capacity_changes"
        assert [tuple(row) for row in connection.execute(text(changed))] == [("server", 2)]
        unread = "SELECT count(*) FROM capacity_stale_windows WHERE newest_change IS NULL"
        assert connection.execute(text(unread)).scalar_one() == 0, "every window holds days of the server"
    assert ("instance", "monthly", "2025-03-01") in stale(service)
    redo(service)
    assert stale(service) == set()
    assert compute_everything(service) == 0
    assert service.ledger.outdated() == []


@pytest.fixture
def as_of_0021() -> None:
    """The database has no used space; `tests/unit/test_figures.py` has the fingerprints of its windows."""


@pytest.mark.nightly("computes every window before and after")
@pytest.mark.usefixtures("as_of_0021")
def test_a_further_size_makes_no_window_of_before_be_computed_again_and_changes_no_row(engine: Engine) -> None:
    initialise(engine)

    service = AggregationService(engine, fixed_clock())
    assert service.ledger.outdated() == []
    assert months_read(engine, service) == {}
    assert compute_everything(service) == compute_everything(service, recompute=True) == 0
    march = PERIODS["monthly"].window_of(date(2025, 3, 1))
    explained = explanation_of(engine, find_subjects(engine, "orders", "server-1")[0], PERIODS["monthly"], march, LAST)
    assert explained.verdict == "Every stored figure is what its samples give."

    execute(
        engine,
        "UPDATE database_size_stats SET used_size_mb = 7, used_size_bytes = 7 * 1024 * 1024 "
        "WHERE instance_id = 1 AND collected_date BETWEEN '2025-06-30' AND '2025-07-01'",
    )
    redo(service)
    used = (
        "SELECT period_type, period_start, avg_used_size_mb, sum_used_size_mb, count_used_size_mb, data_count "
        "FROM database_size_aggregations WHERE avg_used_size_mb IS NOT NULL ORDER BY period_start, data_count"
    )
    assert rows(engine, used) == [
        ("yearly", date(2025, 1, 1), 7, 14, 2, 201),
        ("quarterly", date(2025, 4, 1), 7, 7, 1, 91),
        ("monthly", date(2025, 6, 1), 7, 7, 1, 30),
        ("daily", date(2025, 6, 30), 7, None, None, 1),
        ("weekly", date(2025, 6, 30), 7, 14, 2, 7),
        ("daily", date(2025, 7, 1), 7, None, None, 1),
        ("monthly", date(2025, 7, 1), 7, 7, 1, 20),
        ("quarterly", date(2025, 7, 1), 7, 7, 1, 20),
    ]
    assert compute_everything(service, recompute=True) == 0


@pytest.fixture(scope="module")
def exact(cluster: Databases) -> dict[str, dict[tuple[object, ...], oracle.Figures | None]]:
    """The figures of the sample by the exact oracle, by level and key; computed once for all shapes."""
    found: dict[str, dict[tuple[object, ...], oracle.Figures | None]] = {}
    with cluster.copy(cluster.filled("fleet_sample", load_sample)) as url, cluster.engine(url) as engine:
        for level, figures_of in ((DATABASE, oracle.database_figures), (INSTANCE, oracle.instance_figures)):
            found[level.name] = {
                (*own, period, bounds[0]): figures_of(samples, period, bounds)
                for own, samples in raw_rows(engine, level).items()
                for period in PERIODS
                for bounds in oracle.windows(period, [row["collected_date"] for row in samples])  # type: ignore[misc]
            }
    return found


@pytest.mark.parametrize("shape", nightly_except(SHAPES, "plain"))
def test_a_legacy_database_is_upgraded_in_place_without_losing_a_row_and_then_aggregated_exactly(
    empty_engine: Engine, shape: str, exact: dict[str, dict[tuple[object, ...], oracle.Figures | None]]
) -> None:
    create_legacy_tables(empty_engine, SHAPES[shape])
    load_sample(empty_engine)
    loaded = load_legacy_aggregates(empty_engine)
    before = row_counts(empty_engine)
    ids = {
        level.name: [row["id"] for row in legacy_rows(empty_engine, level.target.name)]
        for level in SERVER_LEVELS.values()
    }

    initialise(empty_engine)

    assert row_counts(empty_engine) == before
    assert {name: before[name] for name in loaded} == loaded
    assert schema_state(empty_engine).fit
    with empty_engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "legacy-head"

    service = AggregationService(empty_engine, fixed_clock())
    for period in PERIODS:
        run = compute_windows(service, period, date(2025, 1, 1), date(2025, 7, 20))
        assert run.total("failed_instances") == run.total("protected_records") == 0
    for level in SERVER_LEVELS.values():
        ours = figures(empty_engine, level)
        assert ours == {key: exact[level.name].get(key) for key in ours}
        kept = {row["id"] for row in stored(empty_engine, level)}
        assert kept.issuperset(ids[level.name]), "rows were updated, not replaced"


def legacy_rows(engine: Engine, table: str) -> list[dict[str, object]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(f"SELECT id FROM {table}")).mappings()]


def test_totals_beyond_two_petabytes_fit_after_the_upgrade(upgraded: Engine) -> None:
    execute(
        upgraded,
        "INSERT INTO instances (id, name, db_type, host, port) VALUES (1, 'a', 'b', 'c', 1)",
        "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
        "VALUES (1, 3000000000, 2, '2025-03-01')",
    )
    compute_windows(AggregationService(upgraded, fixed_clock()), "daily", date(2025, 3, 1), date(2025, 3, 1))

    assert [row["total_size_mb"] for row in stored(upgraded, INSTANCE)] == [3_000_000_000]


@pytest.mark.parametrize("partitioned", nightly_except([False, True], False), ids=["plain", "partitioned"])
def test_duplicates_are_reported_with_what_to_do_and_the_given_statement_mends_them(
    empty_engine: Engine, *, partitioned: bool
) -> None:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=partitioned, unique_key=False))
    load_sample(empty_engine)
    load_legacy_aggregates(empty_engine)
    with empty_engine.begin() as connection:
        columns = (
            "instance_id, database_name, period_type, period_start, period_end, max_size_mb, min_size_mb, data_count"
        )
        connection.execute(
            text(
                f"INSERT INTO database_size_aggregations ({columns}, avg_size_mb, calculated_at) "
                f"SELECT {columns}, 4711, now() + interval '1 day' FROM database_size_aggregations "
                "WHERE period_type = 'monthly' AND database_name = 'crm'"
            )
        )
    before = row_counts(empty_engine)

    with pytest.raises(SchemaProblemsError) as caught:
        initialise(empty_engine)

    [problem] = caught.value.problems
    assert "holds 7 keys (period_type, period_start, instance_id, database_name) with more than one row" in problem
    assert "7 rows too many" in problem
    assert row_counts(empty_engine) == before
    assert schema_state(empty_engine).revision is None, "nothing else was changed either"
    types = {column["name"]: str(column["type"]) for column in inspect(empty_engine).get_columns("instance_size_stats")}
    assert types["total_size_mb"] == "INTEGER"

    delete = problem.split("keep the newest row of each key: ")[1].split("; -- Then")[0]
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(delete)
    initialise(empty_engine)

    after = row_counts(empty_engine)
    assert after["database_size_aggregations"] == before["database_size_aggregations"] - 7
    newest = [row["avg_size_mb"] for row in stored(empty_engine, DATABASE, "monthly") if row["database_name"] == "crm"]
    assert newest == [4711] * 7


def test_duplicate_raw_rows_are_reported_too_and_all_problems_at_once(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape(unique_key=False))
    with empty_engine.begin() as connection:
        for _ in range(2):
            connection.execute(
                text(
                    "INSERT INTO instances (name, db_type, host, port) VALUES ('a', 'b', 'c', 1) ON CONFLICT DO NOTHING"
                )
            )
            connection.execute(
                text("INSERT INTO instance_size_stats (instance_id, collected_date) VALUES (1, '2025-03-01')")
            )
            connection.execute(
                text(
                    "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
                    "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) "
                    "VALUES (1, 'a', 'daily', '2025-03-01', '2025-03-01', 1, 1, 1, 1)"
                )
            )

    with pytest.raises(SchemaProblemsError) as caught:
        initialise(empty_engine)

    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "database_size_aggregations",
        "instance_size_stats",
    ]


def test_a_missing_required_column_is_reported(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape())
    execute(empty_engine, "ALTER TABLE database_size_aggregations DROP COLUMN data_count")

    with pytest.raises(SchemaProblemsError, match=r"database_size_aggregations\.data_count is missing"):
        initialise(empty_engine)


def test_what_a_database_still_needs_is_told_without_changing_it(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=True, unique_key=False, period_check=True))

    state = schema_state(empty_engine)

    assert not state.fit
    message = "\n".join(state.shortcomings)
    for expected in (
        "instance_size_stats.total_size_mb is INTEGER, too narrow: BIGINT is needed",
        "database_size_aggregations.growth_rate is NUMERIC(10, 2), too narrow: NUMERIC(30, 2) is needed",
        "database_size_aggregations.size_change_mb must allow null",
        "database_size_aggregations.trend_direction is missing",
        "database_size_aggregations accepts only the periods listed in its check",
        "database_size_aggregations is partitioned and refuses rows outside its partitions",
        "database_size_aggregations has no key on (period_type, period_start, instance_id, database_name)",
        "instance_size_stats has no unique key on (instance_id, collected_date)",
    ):
        assert expected in message
    assert state == schema_state(empty_engine)


CELLS_OF_0_3_0 = (
    "CREATE FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE SERVER cell_eu FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE SCHEMA cell_eu",
    "CREATE FOREIGN TABLE cell_eu.instances (id integer, name text) SERVER cell_eu",
    "CREATE VIEW instances AS SELECT 'eu' AS cell, id, CAST('eu/' || name AS varchar(255)) AS name "
    "FROM cell_eu.instances",
    "CREATE VIEW capacity_servers AS SELECT id AS server_id, name AS server FROM instances",
    "COMMENT ON VIEW capacity_servers IS 'The registered servers. (definition 012345678901)'",
    "CREATE TABLE capacity_settings (name varchar(50) PRIMARY KEY, value text NOT NULL)",
    "INSERT INTO capacity_settings VALUES ('timezone', 'Europe/Paris')",
    "CREATE TABLE capacity_cells (name text PRIMARY KEY, first_number integer NOT NULL)",
    "INSERT INTO capacity_cells VALUES ('eu', 0)",
)


@pytest.mark.single_server("has foreign tables of other databases")
def test_a_database_that_reads_cells_is_left_alone_until_the_given_statements_took_them_away(
    empty_engine: Engine,
) -> None:
    execute(empty_engine, *CELLS_OF_0_3_0)

    with pytest.raises(SchemaProblemsError, match="This database reads cells") as refused:
        initialise(empty_engine)

    assert rows(empty_engine, "SELECT name FROM capacity_cells") == [("eu",)]
    [statements] = re.findall(r" run: (DROP .*;) -- ", str(refused.value))
    execute(empty_engine, statements)
    initialise(empty_engine)
    assert schema_state(empty_engine).fit
    assert rows(empty_engine, "SELECT value FROM capacity_settings") == [("Europe/Paris",)]
    assert rows(empty_engine, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'cell%'") == []
