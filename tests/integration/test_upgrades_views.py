"""Views of others that read a table to be upgraded: put back as they were, or named."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from capacity_assets.database.schema import SchemaProblemsError, initialise, schema_state
from tests.legacy import SHAPES, create_legacy_tables

LEGACY_VIEW = """
CREATE VIEW v_database_size_aggregations_recent AS
SELECT dsa.*, i.name AS instance_name FROM database_size_aggregations dsa JOIN instances i ON dsa.instance_id = i.id
WHERE dsa.period_start >= current_date - interval '12 months'
"""
FURTHER_VIEWS = (
    LEGACY_VIEW,
    'CREATE SCHEMA "Office"',
    'CREATE VIEW "Office"."Top 100%" WITH (security_barrier = true) AS '
    "SELECT database_name, growth_rate FROM v_database_size_aggregations_recent WHERE growth_rate > 100",
    "COMMENT ON VIEW v_database_size_aggregations_recent IS 'It''s read by a page'",
    'COMMENT ON COLUMN "Office"."Top 100%".growth_rate IS \'fast\'',
    "CREATE ROLE reader_of_views",
    'GRANT SELECT ON v_database_size_aggregations_recent, "Office"."Top 100%" TO reader_of_views WITH GRANT OPTION',
    "GRANT UPDATE (growth_rate) ON v_database_size_aggregations_recent TO reader_of_views",
    "REVOKE INSERT, DELETE ON v_database_size_aggregations_recent FROM CURRENT_USER",
)
DEFINITIONS = text(
    "SELECT c.oid::regclass::text, pg_get_viewdef(c.oid), obj_description(c.oid, 'pg_class'), c.relacl::text, "
    "c.reloptions::text, array_agg(concat_ws('|', a.attname, a.attacl, col_description(c.oid, a.attnum)) "
    "ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
    "WHERE c.oid IN (to_regclass('v_database_size_aggregations_recent'), to_regclass('\"Office\".\"Top 100%\"')) "
    "GROUP BY c.oid ORDER BY 1"
)


def test_views_of_others_that_read_a_widened_column_are_put_back_as_they_were(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, SHAPES["plain"])
    with empty_engine.begin() as connection:
        for statement in FURTHER_VIEWS:
            connection.exec_driver_sql(statement.replace("%", "%%"))
        before = connection.execute(DEFINITIONS).all()

    foreseen = schema_state(empty_engine).shortcomings
    done = initialise(empty_engine)

    with empty_engine.begin() as connection:
        after = connection.execute(DEFINITIONS).all()
        connection.exec_driver_sql('DROP SCHEMA "Office" CASCADE')
        connection.exec_driver_sql("DROP OWNED BY reader_of_views")
        connection.exec_driver_sql("DROP ROLE reader_of_views")
    assert len(before) == 2
    assert after == before
    for view in ("v_database_size_aggregations_recent", '"Office"."Top 100%"'):
        assert f"dropped and restored: view {view}" in done
        assert f"view {view} reads a column that is widened: it is dropped and restored" in (foreseen)


def test_a_function_on_the_row_of_such_a_view_is_named_too(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, SHAPES["plain"])
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(LEGACY_VIEW)
        connection.exec_driver_sql(
            "CREATE FUNCTION fast(v_database_size_aggregations_recent) RETURNS numeric LANGUAGE sql "
            "AS 'SELECT $1.growth_rate'"
        )

    with pytest.raises(
        SchemaProblemsError, match=r"function fast\(v_database_size_aggregations_recent\) reads a column"
    ):
        initialise(empty_engine)


def test_a_materialised_view_on_a_widened_column_is_named_and_nothing_is_changed(empty_engine: Engine) -> None:
    create_legacy_tables(empty_engine, SHAPES["plain"])
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE MATERIALIZED VIEW fast AS SELECT growth_rate FROM database_size_aggregations"
        )

    foreseen = schema_state(empty_engine).shortcomings
    with pytest.raises(SchemaProblemsError, match="materialized view fast reads a column that has to be widened"):
        initialise(empty_engine)

    assert any(line.startswith("materialized view fast reads a column") for line in foreseen)
    assert schema_state(empty_engine).revision is None
