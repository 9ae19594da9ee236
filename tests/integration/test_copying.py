"""`capacity copy`: everything of one capacity database in another, on a server of another version too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, inspect, text

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.collection.servers import Server, register_servers, registered_servers
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise, schema_state
from capacity_assets.database.tables import CAPACITY_TABLES, metadata
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, figures, load_sample, sizes, stored
from tests.ledger import recorded
from tests.legacy import LegacyShape, create_legacy_tables, load_legacy_aggregates
from tests.partitions import everything, rows_by_partition
from tests.servers import ADMIN_PASSWORD, PostgresServer


@pytest.fixture
def target(measured_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An empty database on a server of its own, whose address is in a variable."""
    measured_postgres.execute("DROP DATABASE IF EXISTS moved", "CREATE DATABASE moved")
    url = URL.create(CAPACITY_DRIVER, "postgres", ADMIN_PASSWORD, "127.0.0.1", measured_postgres.port, "moved")
    monkeypatch.setenv("NEW_URL", url.render_as_string(hide_password=False))
    engine = capacity_engine(url)
    yield engine
    engine.dispose()
    measured_postgres.execute("DROP DATABASE moved WITH (FORCE)")


@pytest.fixture
def filled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The sample, a registered server, and a computed month."""
    load_sample(engine)
    execute(engine, "SELECT setval('instances_id_seq', 1000)")
    register_servers(
        engine,
        [Server("db-7", "postgresql", "db-7.example", username="probe", password_from="env:DB_7_PASSWORD")],  # noqa: S106 -- a place
    )
    monkeypatch.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    assert capacity("aggregate", "--period", "monthly", "--from", "2025-03-01", "--to", "2025-04-30").exit_code == 0
    return engine


def rows(engine: Engine, table: str) -> list[str]:
    names = ", ".join(column.name for column in metadata.tables[table].columns)
    with engine.connect() as connection:
        query = text(f"SELECT t::text FROM (SELECT {names} FROM {table}) AS t ORDER BY 1")
        return list(connection.execute(query).scalars())


@pytest.mark.nightly("copies three databases")
def test_every_row_is_there_a_target_with_rows_is_left_alone_and_the_work_goes_on_where_it_was(
    filled: Engine, target: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = capacity("copy", "env:NEW_URL")

    assert done.exit_code == 0, done.output
    assert ADMIN_PASSWORD not in done.output
    for table in set(metadata.tables) - {"capacity_settings", "capacity_locks"}:
        assert rows(target, table) == rows(filled, table), table
    assert [one.server for one in registered_servers(target, ["db-7"])] == [
        one.server for one in registered_servers(filled, ["db-7"])
    ]
    refused = capacity("copy", "env:NEW_URL")
    assert refused.exit_code == 2
    assert "The target holds rows in" in refused.output
    assert rows(target, "database_size_stats") == rows(filled, "database_size_stats")

    monkeypatch.setenv("CAPACITY_DATABASE_URL", target.url.render_as_string(hide_password=False))
    before = {level: stored(target, LEVELS[level]) for level in LEVELS}
    again = capacity("aggregate", "--period", "monthly", "--from", "2025-03-01", "--to", "2025-04-30")
    assert again.exit_code == 0, again.output
    assert {level: stored(target, LEVELS[level]) for level in LEVELS} == before
    assert schema_state(target).fit
    add_database_sizes(target, sizes(1, "new", "2025-04-01", [7]))
    register_servers(target, [Server("db-8", "postgresql", "db-8.example")])
    assert ("database_size_stats", date(2025, 4, 1)) in recorded(target), "the triggers are on again"


@pytest.mark.nightly("computes two databases")
def test_a_legacy_database_becomes_partitioned_and_its_figures_are_those_of_a_new_one(
    empty_engine: Engine, engine: Engine, target: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_legacy_tables(empty_engine, LegacyShape())
    load_sample(empty_engine)
    load_legacy_aggregates(empty_engine)
    initialise(empty_engine)
    before = everything(empty_engine)
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_engine.url.render_as_string(hide_password=False))

    done = capacity("copy", "env:NEW_URL")

    assert done.exit_code == 0, done.output
    assert everything(target) == before == everything(empty_engine)
    assert rows_by_partition(target, "database_size_stats")["database_size_stats_2025_01"] == 554
    for table in CAPACITY_TABLES:
        assert not any("default" in name for name in rows_by_partition(target, table.name)), table.name
    assert schema_state(target).fit
    load_sample(engine)
    for one in (target, engine):
        service = AggregationService(one, fixed_clock())
        for period in ("daily", "monthly", "yearly"):
            compute_windows(service, period, date(2025, 1, 1), TODAY)
    for level in LEVELS.values():
        computed = figures(engine, level)
        assert computed
        assert {key: row for key, row in figures(target, level).items() if key in computed} == computed


@pytest.fixture
def ordinary_owner(measured_postgres: PostgresServer) -> Iterator[str]:
    """A role that may create no roles."""
    measured_postgres.execute(f"CREATE ROLE ordinary LOGIN PASSWORD '{ADMIN_PASSWORD}'")
    yield "ordinary"
    measured_postgres.execute("DROP ROLE ordinary")


@pytest.mark.single_server("starts an embedded server of its own")
def test_the_embedded_database_is_copied_by_an_ordinary_owner_and_a_target_with_rows_is_not_touched(
    ordinary_owner: str,
    target: Engine,
    measured_postgres: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path / "home"))
    measured_postgres.execute(f"ALTER DATABASE moved OWNER TO {ordinary_owner}")
    there = target.url.set(username=ordinary_owner)
    monkeypatch.setenv("NEW_URL", there.render_as_string(hide_password=False))
    execute(target, f"CREATE TABLE instances (id integer); ALTER TABLE instances OWNER TO {ordinary_owner}")
    execute(target, "INSERT INTO instances VALUES (1)")
    assert capacity("init").exit_code == 0

    refused = capacity("copy", "env:NEW_URL")

    assert refused.exit_code == 2
    assert "The target holds rows in instances. Name an empty database." in refused.output
    assert inspect(target).get_table_names() == ["instances"]

    execute(target, "DROP TABLE instances")
    done = capacity("copy", "env:NEW_URL")

    assert done.exit_code == 0, done.output
    assert schema_state(target).fit


@pytest.mark.usefixtures("filled")
def test_a_target_that_is_away_or_named_with_its_password_is_a_sentence() -> None:
    away = capacity("copy", "postgresql://nobody@127.0.0.1:1/nowhere")
    shown = capacity("copy", "postgresql://nobody:hunter2@127.0.0.1:1/nowhere")

    assert (away.exit_code, shown.exit_code) == (1, 2)
    assert "Cannot reach PostgreSQL at postgresql://nobody@127.0.0.1:1/nowhere" in away.output
    assert "The address contains a password" in shown.output
    assert "hunter2" not in shown.output
