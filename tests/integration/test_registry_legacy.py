"""A registry that another application or the demo has filled: which servers are whose, and which are measured."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.settings import Settings
from capacity_assets.collection.servers import Server, register_servers, registered_servers
from capacity_assets.demo import (
    holds_sample_fleet,
    load_sample_fleet,
    other_instances,
    remove_sample_fleet,
)
from tests.command import capacity, printed
from tests.databases import execute
from tests.fleet import add_instances, load_sample
from tests.legacy import LegacyShape, create_legacy_tables
from tests.profiles import nightly_except
from tests.registry import names

pytestmark = pytest.mark.usefixtures("settings")


def test_a_server_that_the_legacy_application_registered_is_measured_once_it_is_added(engine: Engine) -> None:
    add_instances(engine, [7], name="legacy", host="db-7", port=5433)
    assert names(engine) == {"legacy": "filled elsewhere"}

    added = capacity("instances", "add", "legacy", "--username", "u", "--password-from", "env:A")

    assert added.exit_code == 0, added.output
    [one] = registered_servers(engine)
    assert (one.id, one.state) == (7, "measured here")
    assert (one.server.host, one.server.port, one.server.engine) == ("db-7", 5433, "postgresql")


def test_the_demo_knows_every_server_that_is_not_its_own_also_by_its_history_only(
    engine: Engine, settings: Settings
) -> None:
    assert other_instances(engine) == 0
    measured = json.loads(printed("collect", "--own", "--json"))
    assert list(settings.reports.glob(f"growth-daily-{measured['collected_date']}-*")), "with --json too"
    assert other_instances(engine) == 1

    execute(engine, "DELETE FROM instances")
    assert other_instances(engine) == 1, "its samples are still there"


@pytest.mark.nightly("computes a further fleet")
def test_the_own_server_is_not_measured_into_the_sample_fleet_and_the_fleet_can_be_taken_away(
    engine: Engine, tmp_path: Path
) -> None:
    load_sample_fleet(engine, date(2025, 1, 1), date(2025, 1, 3))

    refused = capacity("collect", "--own")

    registered_too = capacity("instances", "add", "db-7", "--engine", "mysql", "--host", "h")
    file = tmp_path / "sizes.csv"
    file.write_text("server,database,day,size_mb\nmysql-orders-01,shop,2025-01-02,7\n")
    imported = capacity("import", str(file))

    for done in (refused, registered_too, imported):
        assert done.exit_code == 1
        assert "holds the sample fleet of `capacity demo`" in done.output
    assert other_instances(engine) == 0
    assert holds_sample_fleet(engine)
    with engine.connect() as connection:
        samples = connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar_one()
    assert remove_sample_fleet(engine) == samples > 0
    assert not holds_sample_fleet(engine)
    assert capacity("collect", "--own").exit_code == 0


def test_a_registry_that_another_application_fills_further_is_told_apart_and_its_servers_can_be_measured(
    engine: Engine,
) -> None:
    add_instances(engine, [1], name="theirs")
    execute(
        engine,
        "ALTER TABLE instances ADD COLUMN credential text",
        "UPDATE instances SET credential = 'x'",
        "ALTER TABLE instances ALTER COLUMN credential SET NOT NULL",
    )

    refused = capacity("instances", "add", "new", "--engine", "mysql", "--host", "h")
    added = capacity("instances", "add", "theirs", "--username", "u")

    assert refused.exit_code == 1
    assert 'null value in column "credential"' in refused.output
    assert "Register the server there; `capacity instances add NAME`" in refused.output
    assert added.exit_code == 0, added.output


@pytest.mark.parametrize("partitioned", nightly_except([False, True]))
def test_a_legacy_database_that_was_upgraded_in_place_is_measured_into(
    empty_engine: Engine, monkeypatch: pytest.MonkeyPatch, partitioned: bool
) -> None:
    create_legacy_tables(empty_engine, LegacyShape(partitioned=partitioned))
    load_sample(empty_engine)
    execute(empty_engine, "SELECT setval('instances_id_seq', 100)")
    url = empty_engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPACITY_DATABASE_URL", url)
    assert capacity("init").exit_code == 0
    before = len(_sizes(empty_engine))

    for again in ((), ("--again",)):
        done = capacity("collect", "--own", *again)
        assert done.exit_code == 0, done.output

    assert len(_sizes(empty_engine)) > before
    with empty_engine.connect() as connection:
        assert connection.execute(
            text(
                "SELECT sum(d.size_bytes) = max(t.total_size_bytes) "
                "AND div(sum(d.size_bytes), 1048576) = max(t.total_size_mb) "
                "FROM database_size_stats d JOIN instance_size_stats t USING (instance_id, collected_date) "
                "JOIN instances i ON i.id = instance_id "
                "WHERE i.name = 'capacity-database'"
            )
        ).scalar_one()


def _sizes(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT size_mb FROM database_size_stats")).scalars())


def test_with_the_collection_off_nothing_is_measured_into_the_tables_of_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_servers(engine, [Server("a", "mysql", "127.0.0.1", port=1)])
    monkeypatch.setenv("CAPACITY_COLLECTION", "off")

    refused = capacity("collect")

    assert refused.exit_code == 2
    assert "CAPACITY_COLLECTION is off" in refused.output
