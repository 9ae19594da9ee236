"""What stands in the way of `capacity partition` is named and nothing is changed; what reads the tables goes on."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.storage.partitions import CAPACITY_TABLES, layout_of
from capacity_assets.storage.schema import SchemaProblemsError, schema_state
from tests.clocks import TODAY
from tests.conversion import LEGACY, is_partitioned, upgraded
from tests.databases import execute
from tests.fleet import figures
from tests.legacy import LegacyShape
from tests.partitions import everything, keeper

PREPARED_FROM_NOTHING = LEGACY
ADVICE = "Drop it, run `capacity partition`, and create it again."


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
