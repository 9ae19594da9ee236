"""A legacy database is imported with its servers, samples and aggregates."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, SERVER_LEVELS
from capacity_assets.database.engine import capacity_engine, safe_url
from tests.command import capacity
from tests.databases import Databases, execute, rows
from tests.fleet import load_sample, stored
from tests.importing import samples, totals
from tests.legacy import LegacyShape, create_legacy_tables

pytestmark = pytest.mark.usefixtures("settings", "alpha_and_beta")


@pytest.fixture
def legacy(cluster: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Another database as the legacy application left it: its tables, the sample, and an aggregate of older days."""
    with cluster.copy("template1") as url:
        there = capacity_engine(url)
        create_legacy_tables(there, LegacyShape())
        load_sample(there)
        execute(
            there,
            "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
            "period_end, avg_size_mb, max_size_mb, min_size_mb, data_count) VALUES "
            "(1, 'gone', 'monthly', '2020-01-01', '2020-01-31', 5, 6, 4, 31)",
        )
        monkeypatch.setenv("LEGACY", url.render_as_string(hide_password=False))
        yield there
        there.dispose()


def test_a_legacy_database_comes_over_with_servers_samples_and_aggregates(engine: Engine, legacy: Engine) -> None:
    done = capacity("import", "env:LEGACY", "--json")

    assert done.exit_code == 0, done.output
    assert samples(engine) == samples(legacy)
    assert totals(engine) == totals(legacy)
    assert rows(
        engine, "SELECT name, db_type, is_active FROM instances WHERE name NOT IN ('alpha', 'beta') ORDER BY 1"
    ) == rows(legacy, "SELECT name, db_type, is_active FROM instances ORDER BY 1")
    [copied] = stored(engine, DATABASE)
    assert (copied["database_name"], copied["avg_size_mb"], copied["data_count"]) == ("gone", 5, 31)
    again = json.loads(capacity("import", "env:LEGACY", "--json").output)
    assert again["servers"] == 0
    for level in SERVER_LEVELS.values():
        report = again[level.source.name]["counts"]
        assert report["read"] == report["present"] > 0
    assert again["database_size_aggregations"] == {"read": 1, "written": 0, "present": 1}


def test_a_dry_run_of_a_legacy_database_writes_nothing(
    engine: Engine,
    legacy: Engine,  # noqa: ARG001 -- what is imported
) -> None:
    done = capacity("import", "env:LEGACY", "--dry-run")

    assert done.exit_code == 0
    assert "6 servers would be registered, 0 already known by name." in done.output
    assert "3,561 new samples" in " ".join(done.output.split())
    assert "database_size_aggregations: 1 read, 1 new." in done.output
    assert stored(engine, DATABASE) == []
    assert samples(engine) == []
    assert rows(engine, "SELECT count(*) FROM instances") == [(2,)]


NO_ADDRESSES = [
    ("postgresql://user:hunter2@host/db", 2, "The address contains a password"),
    ("postgresql://user@host/db?password=hunter2", 2, "The address contains a password"),
    ("mysql://host/db", 2, "is not a PostgreSQL database"),
    ("env:NOT_THERE", 2, "The variable NOT_THERE is empty"),
    ("postgresql://nobody@127.0.0.1:1/db", 1, "cannot be read"),
]


def test_an_address_that_cannot_be_used_is_refused_and_no_password_repeated() -> None:
    for source, code, reason in NO_ADDRESSES:
        refused = capacity("import", source)

        assert (refused.exit_code, reason in refused.output) == (code, True), refused.output
        assert "hunter2" not in refused.output, source


OPTIONS_FOR_FILES = [
    ["--server", "alpha"],
    ["--unit", "gb"],
    ["--map", "day=x"],
    ["--level", "instance"],
    ["--register-as", "mysql"],
]


def test_options_for_files_are_refused_for_a_database() -> None:
    for option in OPTIONS_FOR_FILES:
        refused = capacity("import", "postgresql://nobody@127.0.0.1:1/db", *option)

        assert refused.exit_code == 2, option
        assert f"{option[0]} is for files" in refused.output, option


def test_a_password_that_cannot_be_looked_up_is_a_sentence() -> None:
    refused = capacity("import", "postgresql://nobody@127.0.0.1:1/db", "--password-from", "env:NO_SUCH_PASSWORD")

    assert refused.exit_code == 1
    assert "the variable NO_SUCH_PASSWORD is missing or empty" in refused.output
    assert "Traceback" not in refused.output


LACKING = [
    ("instances", "deleted_at", ' cannot be read: column "deleted_at" does not exist.'),
    ("database_size_stats", "id", ", database_size_stats cannot be read: column database_size_stats.id does not exist"),
    ("database_size_aggregations", "id", " cannot be read: column database_size_aggregations.id does not exist."),
]


def test_a_legacy_database_that_lacks_a_column_is_named_without_advice_for_another_database(legacy: Engine) -> None:
    for table, column, reason in LACKING:
        execute(legacy, f"ALTER TABLE {table} RENAME {column} TO other")

        failed = capacity("import", "env:LEGACY", columns=200)

        assert failed.exit_code == 1
        assert f"{safe_url(legacy.url)}{reason}" in failed.output, table
        assert "capacity init" not in failed.output, table
        execute(legacy, f"ALTER TABLE {table} RENAME other TO {column}")


def test_legacy_samples_of_a_server_that_is_registered_no_more_are_counted_as_unknown(
    engine: Engine, legacy: Engine
) -> None:
    execute(
        legacy,
        "INSERT INTO database_size_stats (id, instance_id, database_name, size_mb, collected_date) "
        "VALUES (9999, 99, 'orphan', 1, '2025-01-01')",
    )

    done = capacity("import", "env:LEGACY")

    assert done.exit_code == 1
    assert "unknown: number 99 there: 1 row" in done.output
    assert len(samples(engine)) == 3561
