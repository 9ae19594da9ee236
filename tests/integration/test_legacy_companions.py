"""What else lives in a database of the legacy application: its row triggers, and the table that its pages join."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.database.schema import initialise, schema_state
from tests.command import capacity
from tests.databases import execute
from tests.fleet import add_database_sizes, sizes
from tests.legacy import LegacyShape, create_legacy_tables

MAKES_PARTITIONS = """
CREATE FUNCTION {table}_partition_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    first date := date_trunc('month', NEW.collected_date);
    child text := '{table}_' || to_char(first, 'YYYY_MM');
BEGIN
    IF NOT EXISTS (SELECT FROM pg_tables WHERE tablename = child) THEN
        EXECUTE format('CREATE TABLE %%I PARTITION OF {table} FOR VALUES FROM (%%L) TO (%%L)',
                       child, first, (first + interval '1 month')::date);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER {table}_partition_trigger BEFORE INSERT ON {table}
    FOR EACH ROW EXECUTE FUNCTION {table}_partition_trigger();
"""
KNOWN_DATABASES = """
CREATE TABLE instance_databases (
    id serial PRIMARY KEY, instance_id integer NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    database_name varchar(255) NOT NULL, is_active boolean NOT NULL DEFAULT true,
    first_seen_date date NOT NULL DEFAULT current_date, last_seen_date date NOT NULL DEFAULT current_date,
    deleted_at timestamptz, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
    UNIQUE (instance_id, database_name)
);
CREATE FUNCTION update_instance_database_last_seen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE instance_databases d SET last_seen_date = NEW.collected_date, is_active = true, deleted_at = NULL
    WHERE d.instance_id = NEW.instance_id AND d.database_name = NEW.database_name;
    RETURN NEW;
END $$;
CREATE TRIGGER trg_update_instance_database_last_seen AFTER INSERT ON database_size_stats
    FOR EACH ROW EXECUTE FUNCTION update_instance_database_last_seen();
"""


@pytest.fixture
def legacy(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=True))
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(MAKES_PARTITIONS.format(table="instance_size_stats"))
        connection.exec_driver_sql(KNOWN_DATABASES.replace("%", "%%"))
        connection.exec_driver_sql("INSERT INTO instances (name, db_type, host, port) VALUES ('a', 'mysql', 'h', 1)")
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_engine.url.render_as_string(hide_password=False))
    return empty_engine


def known(engine: Engine) -> list[tuple[object, ...]]:
    query = text(
        "SELECT d.database_name, d.is_active, d.first_seen_date::text, d.last_seen_date::text, "
        "d.deleted_at IS NOT NULL FROM instance_databases d JOIN instances i ON i.id = d.instance_id "
        "WHERE i.name = 'a' ORDER BY 1"
    )
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_a_trigger_that_makes_partitions_in_mid_insert_is_switched_off_so_that_no_row_is_refused(
    legacy: Engine,
) -> None:
    [foreseen] = [line for line in schema_state(legacy).shortcomings if "partition_trigger" in line]
    done = initialise(legacy)

    execute(
        legacy,
        "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
        "VALUES (1, 5, 1, '2024-02-29')",
    )
    assert foreseen.endswith("it is disabled, not dropped")
    assert f"changed: {foreseen}" in done
    assert schema_state(legacy).fit


def test_importing_old_history_leaves_the_last_day_a_database_was_seen(legacy: Engine, tmp_path: Path) -> None:
    initialise(legacy)
    add_database_sizes(legacy, sizes(1, "orders", "2025-07-19", [10]))
    with legacy.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO instance_databases (instance_id, database_name, first_seen_date, last_seen_date) "
            "VALUES (1, 'orders', '2025-07-19', '2025-07-19')"
        )
    file = tmp_path / "old.csv"
    file.write_text("server,database,day,size_mb\na,orders,2024-02-29,7\na,dropped,2024-02-29,9\n")

    done = capacity("import", str(file))

    assert done.exit_code == 0, done.output
    assert known(legacy) == [
        ("dropped", False, "2024-02-29", "2024-02-29", True),
        ("orders", True, "2024-02-29", "2025-07-19", False),
    ]


@pytest.mark.nightly("measures a further server")
def test_what_is_measured_here_is_known_to_the_legacy_pages(legacy: Engine) -> None:
    """The server that holds the tables: measured for real, whose dropped database becomes inactive."""
    initialise(legacy)

    assert capacity("collect", "--own").exit_code == 0

    with legacy.begin() as connection:
        rows = connection.execute(
            text(
                "SELECT k.is_active, d.database_name = k.database_name FROM database_size_stats d "
                "LEFT JOIN instance_databases k USING (instance_id, database_name)"
            )
        ).all()
        own = connection.execute(text("SELECT id FROM instances WHERE name = 'capacity-database'")).scalar_one()
        connection.execute(
            text(
                "INSERT INTO instance_databases (instance_id, database_name, first_seen_date, last_seen_date) "
                "VALUES (:own, 'gone', '2025-01-01', '2025-01-02')"
            ),
            {"own": own},
        )
    assert len(rows) > 1
    assert set(rows) == {(True, True)}
    assert capacity("collect", "--own", "--again").exit_code == 0
    with legacy.connect() as connection:
        gone = connection.execute(
            text("SELECT is_active, deleted_at IS NOT NULL FROM instance_databases WHERE database_name = 'gone'")
        ).one()
    assert tuple(gone) == (False, True)


@pytest.mark.nightly("measures two further servers")
def test_what_the_legacy_table_refuses_does_not_take_the_samples_with_it(
    legacy: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    initialise(legacy)
    with legacy.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE instance_databases ADD COLUMN owner text NOT NULL")

    done = capacity("collect", "--own")

    assert done.exit_code == 0, done.output
    with legacy.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar_one() > 0
        assert connection.execute(text("SELECT count(*) FROM instance_databases")).scalar_one() == 0
    assert "instance_databases was not updated: null value in column" in caplog.text


def test_check_counts_rows_whose_trend_another_application_left_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    with engine.begin() as connection:
        for start, growth, trend in (
            ("date_trunc('month', current_date)", 96.72, "shrinking"),
            ("date_trunc('month', current_date) - interval '1 month'", 3, "growing"),
            ("date_trunc('month', current_date) - interval '2 years'", -9, "growing"),
        ):
            connection.exec_driver_sql(
                "INSERT INTO instance_size_aggregations (instance_id, period_type, period_start, period_end, "
                "total_size_mb, avg_size_mb, max_size_mb, min_size_mb, data_count, database_count, growth_rate, "
                f"trend_direction) VALUES (1, 'monthly', {start}, {start}, 1, 1, 1, 1, 1, 1, {growth}, '{trend}')"
            )

    words = " ".join(capacity("check").output.replace("│", " ").split())

    assert re.search(r"instance_size_aggregations note a trend that contradicts the growth: 1 row since \S+", words)
    assert "database_size_aggregations note" not in words
