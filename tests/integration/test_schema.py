"""`capacity init`: an empty database, what it repairs, what it leaves alone."""

from __future__ import annotations

import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, select

from capacity_assets.aggregates.ledger import Ledger
from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.database.adoption import indexes_of, is_by_number, wanted_indexes
from capacity_assets.database.partitions import CAPACITY_TABLES
from capacity_assets.database.schema import (
    NOT_RECORDED_MEANWHILE,
    VERSION_TABLE,
    SchemaProblemsError,
    initialise,
    schema_state,
)
from capacity_assets.database.tables import SCHEMA_REVISION, computed_windows, metadata
from capacity_assets.database.views import VIEWS
from tests.databases import execute
from tests.fleet import load_sample, stored
from tests.legacy import LegacyShape, create_legacy_tables, load_legacy_aggregates

NOT_RECORDED = "changes of {} are not recorded: a trigger is missing, old or disabled"


def test_an_empty_database_gets_exactly_the_tables_of_the_definitions_with_comments_on_columns(
    empty_engine: Engine,
) -> None:
    done = initialise(empty_engine)

    created = [f"created table {table.name}" for table in metadata.sorted_tables]
    created += [f"created or renewed view {view.name}" for view in VIEWS]
    assert sorted(done) == sorted(created)
    with empty_engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _parents: kind != "table" or name in metadata.tables,
            },
        )
        assert compare_metadata(context, metadata) == []
    columns = {column["name"]: column for column in inspect(empty_engine).get_columns("database_size_aggregations")}
    assert columns["avg_size_mb"]["comment"] == "Mean total size, rounded down, MiB"
    assert schema_state(empty_engine).fit
    assert initialise(empty_engine) == (), "once is enough"


@pytest.mark.single_server("drops a table, which a cluster has to distribute again")
def test_init_mends_what_was_dropped_after_it_ran(engine: Engine) -> None:
    execute(
        engine,
        "DROP TABLE instance_size_stats CASCADE",
        "ALTER TABLE database_size_aggregations DROP CONSTRAINT uq_database_size_aggregation",
        "ALTER TABLE database_size_aggregations DROP COLUMN trend_direction CASCADE",
    )
    assert not schema_state(engine).fit

    done = initialise(engine)

    assert sorted(done) == [
        "changed: database_size_aggregations has no key on (period_type, period_start, instance_id, database_name)",
        "changed: database_size_aggregations.trend_direction is missing",
        *(
            f"created or renewed view capacity_{name}"
            for name in ("coverage", "growth", "latest", "server_samples", "stale_windows")
        ),
        "created table instance_size_stats",
        f"fixed: {NOT_RECORDED.format('instance_size_stats')}; {NOT_RECORDED_MEANWHILE}",
    ]
    assert schema_state(engine).fit


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TRIGGER capacity_track_database_size_stats_update ON database_size_stats",
        "ALTER TABLE database_size_stats DISABLE TRIGGER capacity_track_database_size_stats_insert",
        "DROP FUNCTION capacity_track_database_size_stats CASCADE",
        "CREATE OR REPLACE FUNCTION capacity_track_database_size_stats() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN NULL; END'",
        "ALTER FUNCTION capacity_track_database_size_stats SET search_path = elsewhere",
        "ALTER TABLE database_size_stats ENABLE REPLICA TRIGGER capacity_track_database_size_stats_insert",
    ],
)
def test_init_mends_the_triggers_that_note_changes_and_check_tells_before(engine: Engine, damage: str) -> None:
    execute(engine, damage)
    missing = NOT_RECORDED.format("database_size_stats")
    assert schema_state(engine).shortcomings == (missing,)

    assert initialise(engine) == (f"fixed: {missing}; {NOT_RECORDED_MEANWHILE}",)
    assert schema_state(engine).fit


def test_a_legacy_database_gets_the_indexes_that_looks_rely_on(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape())

    initialise(empty_engine)

    with empty_engine.connect() as connection:
        for table in CAPACITY_TABLES:
            found = [index for index in indexes_of(connection, [table.name])[table.name] if not is_by_number(index)]
            assert len(found) == len([wanted for wanted in wanted_indexes(table) if any(map(wanted.is_like, found))])
    assert initialise(empty_engine) == ()


def test_init_makes_the_indexes_of_lists_where_they_are_missing_and_check_tells_before(engine: Engine) -> None:
    names = [f"ix_database_size_aggregations_{name}" for name in ("change", "size")]
    for name in names:
        execute(engine, f"DROP INDEX {name}")
        execute(engine, f"CREATE TABLE {name} (id integer)")  # the name is taken
    needed = tuple(
        f"database_size_aggregations has no index on (period_type, period_start, {column}) "
        "WHERE (period_type)::text <> 'daily'::text"
        for column in ("size_change_mb", "avg_size_mb")
    )
    assert schema_state(engine).shortcomings == needed

    done = initialise(engine)

    assert done == tuple(f"changed: {step}" for step in needed)
    assert schema_state(engine).fit
    found = {str(index["name"]) for index in inspect(engine).get_indexes("database_size_aggregations")}
    assert found >= {f"{name}_capacity" for name in names}
    assert initialise(engine) == ()


def test_a_schema_that_was_renamed_is_mended_before_a_collection_fails(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER SCHEMA public RENAME TO capacity")
        connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET search_path = capacity")
    engine.dispose()
    assert not schema_state(engine).fit

    initialise(engine)

    load_sample(engine)
    assert schema_state(engine).fit


def test_windows_that_have_rows_already_are_entered_as_computed_by_the_upgrade(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, LegacyShape())
    load_sample(empty_engine)
    load_legacy_aggregates(empty_engine)

    initialise(empty_engine)

    for level in SERVER_LEVELS.values():
        windows = {(row["period_type"], row["period_start"]) for row in stored(empty_engine, level)}
        with empty_engine.connect() as connection:
            entered = select(computed_windows.c.period_type, computed_windows.c.period_start).where(
                computed_windows.c.level == level.name, computed_windows.c.computed.is_not(None)
            )
            assert {tuple(row) for row in connection.execute(entered)} == windows
    # Groups of history are computed by whoever looks next.
    assert {found.level for found in Ledger(empty_engine).stale()} == {"group"}


def test_a_schema_newer_than_this_version_is_left_alone(engine: Engine) -> None:
    execute(engine, f"UPDATE {VERSION_TABLE} SET version_num = '0999'")

    with pytest.raises(
        SchemaProblemsError,
        match=f"0999, created by a newer version; .* supports {SCHEMA_REVISION}",
    ):
        initialise(engine)


def test_a_foreign_column_that_must_be_filled_is_reported(engine: Engine) -> None:
    execute(engine, "ALTER TABLE instance_size_aggregations ADD COLUMN batch int NOT NULL")

    with pytest.raises(SchemaProblemsError, match=r"instance_size_aggregations\.batch is an unknown column"):
        initialise(engine)


def test_a_check_of_the_users_own_on_periods_is_kept(engine: Engine) -> None:
    execute(
        engine,
        "ALTER TABLE database_size_aggregations ADD CHECK (period_type <> '')",
        "ALTER TABLE database_size_aggregations ADD CHECK (period_type <> 'daily' OR period_start = period_end)",
    )

    assert initialise(engine) == ()


def test_two_inits_at_once_both_succeed(empty_engine: Engine) -> None:
    outcomes: list[tuple[str, ...]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(initialise(empty_engine))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(map(len, outcomes)) == [0, len(metadata.sorted_tables) + len(VIEWS)]
