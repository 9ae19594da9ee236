"""Tables are distributed by a command that says what it does, and everything goes on afterwards."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, inspect, select, text

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.collection.volumes import VolumeDay, store_volumes
from capacity_assets.database import cluster, distributing
from capacity_assets.database.distributing import distribute, distribution_problem, placements
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.partitions import UNREAD
from capacity_assets.database.schema import VERSION_TABLE, initialise, schema_state
from capacity_assets.database.tables import CAPACITY_TABLES
from capacity_assets.forecast.issuing import issue_runways, update_forecasts
from capacity_assets.forecast.limits import Limit, declare_limits, forget_limit
from capacity_assets.forecast.runway import compute_runways
from capacity_assets.history.retention import Retention, TableMaintenance
from tests import citus
from tests.citus_fleet import FIRST, LAST, SERVERS, SHARDS, compute_everything, everything, service
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import execute
from tests.former_revisions import ADDED_LATER

MANY_SHARDS = 16


def test_distributing_keeps_every_row_and_the_figures_are_those_of_a_single_server(
    undistributed: Engine, plain: Engine
) -> None:
    compute_windows(service(undistributed), "monthly", FIRST, LAST)

    assert distribute(undistributed, shards=SHARDS) == [
        "database_size_stats", "instance_size_stats", "database_size_aggregations", "instance_size_aggregations",
        "volume_size_stats", "database_limit_stats", "server_part_stats", "object_size_stats", "capacity_runways",
    ]  # fmt: skip

    assert service(undistributed).ledger.outdated() == [], "no row changed"
    compute_everything(undistributed)
    compute_everything(plain)
    assert everything(undistributed) == everything(plain)
    assert len(everything(plain)) > 2_000
    assert {(one.shards, one.nodes) for one in placements(undistributed)} == {(SHARDS, 2)}
    assert schema_state(undistributed).fit
    assert initialise(undistributed) == ()
    assert service(undistributed).ledger.stale() == []


def test_keys_of_a_version_before_are_replaced_on_the_nodes_too(distributed: Engine) -> None:
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    before = everything(distributed)
    with distributed.begin() as connection:
        cluster.change_shards_in_turn(connection)
        for statement in (*ADDED_LATER["0013"], f"UPDATE {VERSION_TABLE} SET version_num = '0013'"):
            connection.exec_driver_sql(statement)
    assert not schema_state(distributed).fit

    initialise(distributed)

    assert schema_state(distributed).fit
    assert everything(distributed) == before
    key = inspect(distributed).get_pk_constraint("database_size_aggregations")
    assert (key["name"], key["constrained_columns"][:2]) == (
        "uq_database_size_aggregation",
        ["period_type", "period_start"],
    )
    compute_everything(distributed)
    assert service(distributed).ledger.stale() == []


def test_tables_of_several_shards_per_node_are_distributed_and_get_further_partitions(undistributed: Engine) -> None:
    """The indexes of their partitions are of one name, cut to what PostgreSQL allows; only several collide."""
    before = counted(undistributed)
    # Each shard has a connection of its own at once, as on nodes that take their time.
    eager = "SET citus.force_max_query_parallelization = on"
    execute(undistributed, f"ALTER DATABASE {undistributed.url.database} {eager}")
    undistributed.dispose()

    distribute(undistributed, shards=MANY_SHARDS)
    report = TableMaintenance(undistributed, FIRST, Retention({})).prepare(TODAY + timedelta(days=62))

    assert {(one.shards, one.nodes) for one in placements(undistributed)} == {(MANY_SHARDS, 2)}
    assert counted(undistributed) == before
    assert len(report.created) >= 2 * len(SERVER_LEVELS)
    assert report.notes == []


def counted(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        tables = [table for level in SERVER_LEVELS.values() for table in (level.source, level.target)]
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]


def test_the_command_says_what_it_would_do_does_it_and_says_where_everything_lies(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", undistributed.url.render_as_string(hide_password=False))

    would = capacity("distribute", "--dry-run", "--shards", str(SHARDS))
    assert "Would distribute database_size_stats, instance_size_stats" in would.output
    assert {one.is_distributed for one in placements(undistributed)} == {False}

    done = json.loads(capacity("distribute", "--shards", str(SHARDS), "--json").output)
    assert len(done["done"]) == len(distributing.BY_SERVER)
    assert {table["shards"] for table in done["tables"]} == {SHARDS}
    again = capacity("distribute", "--shards", str(SHARDS))
    assert "All tables are distributed already." in again.output
    assert f"{SHARDS} shards on 2 nodes" in again.output


def test_an_interrupted_distribution_goes_on_where_it_stopped(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_table: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distribute(undistributed, shards=SHARDS, on_table=stop)
    assert [one.is_distributed for one in placements(undistributed)] == [True] + 8 * [False]
    monkeypatch.setenv("CAPACITY_DATABASE_URL", undistributed.url.render_as_string(hide_password=False))
    left = ", ".join(table.name for table in distributing.BY_SERVER[1:])
    assert distribution_found() == (
        "bad",
        f"{left}: still on the coordinator; nothing is computed until `capacity distribute` has run again",
    )

    assert len(distribute(undistributed, shards=SHARDS)) == 8
    found, text_of = distribution_found()
    assert (found, text_of.startswith("database_size_stats, ")) == ("ok", True)
    assert text_of.endswith(f": {SHARDS} shards each on 2 nodes; all other tables are on the coordinator")
    assert f"Distributed: {text_of}." in printed("status")
    compute_everything(undistributed)
    assert service(undistributed).ledger.stale() == []


def test_limits_and_forecasts_are_those_of_a_single_server(distributed: Engine, plain: Engine) -> None:
    today = LAST + timedelta(days=1)
    for written in (True, False):
        answers: list[dict[str, Any]] = []
        for engine in (distributed, plain):
            days = [VolumeDay("server-2", name, LAST, 900 << 30, 5 << 30) for name in ("/data", "/log")]
            volumes = store_volumes(engine, days)
            past = issue_runways(engine, LAST - timedelta(days=60), today)
            runways = issue_runways(engine, today, today)
            assert volumes == (2 if written else 0)
            assert runways.to_dict()["written_records"] == (2 * len(SERVERS) + 2 if written else 0)
            answers.append({"issued": runways.to_dict(), "past": past.to_dict()})
            answers[-1]["rows"] = compute_runways(engine, today, server="server-2").rows
            declare_limits(engine, [Limit("server-2", None, 10_000)])
            assert update_forecasts(engine, {"server-2"}, fixed_clock(today)).updated == ["server-2"]
            with engine.connect() as connection:
                query = "SELECT count(*) FROM capacity_runway WHERE server = 'server-2' AND is_outdated"
                assert connection.execute(text(query)).scalar() == 0
            forget_limit(engine, "server-2", None)
            assert update_forecasts(engine, {"server-2"}, fixed_clock(today)).updated == ["server-2"]
        assert answers[0] == answers[1]
        for table in UNREAD:
            assert stored_of(distributed, table.name) == stored_of(plain, table.name)
        scored = "capacity_runways WHERE actual_30_mb IS NOT NULL"
        assert len(stored_of(plain, scored)) > len(SERVERS)


def distribution_found() -> tuple[str, str]:
    """What `capacity check` says of it, and how bad that is."""
    lines = json.loads(capacity("check", "--json").stdout)
    [found] = [(line["verdict"], line["text"]) for line in lines if line["subject"] == "distribution"]
    return found


def stored_of(engine: Engine, table: str) -> set[str]:
    """The rows of a table, but when they were written."""
    with engine.connect() as connection:
        rows = connection.execute(text(f"SELECT * FROM {table}")).mappings()
        return {
            str([value for name, value in row.items() if name not in {"issued_at", "collected_at"}]) for row in rows
        }


def test_what_stands_in_the_way_is_said_with_what_to_do(
    databases: citus.CitusDatabases, plain: Engine, distributed: Engine, nodes: citus.CitusServer
) -> None:
    assert "The database has no extension citus." in str(distribution_problem(plain))
    assert distribution_problem(distributed) is None
    on_a_worker = capacity_engine(nodes.url(str(distributed.url.database), CAPACITY_DRIVER, nodes.ports[1]))
    assert "CAPACITY_DATABASE_URL must name the coordinator" in str(distribution_problem(on_a_worker))
    on_a_worker.dispose()
    with databases.copy("template1") as url:
        nodes.join(str(url.database))
        empty = capacity_engine(url)
        assert "run `capacity init` first" in str(distribution_problem(empty))
        initialise(empty)
        # For a moment no node may take shards; this record is the database's own.
        execute(empty, "UPDATE pg_dist_node SET shouldhaveshards = false")
        assert "No node of the cluster takes shards" in str(distribution_problem(empty))
        execute(empty, "UPDATE pg_dist_node SET shouldhaveshards = true WHERE noderole = 'primary' AND groupid > 0")
        execute(empty, "DROP TABLE volume_size_stats CASCADE", "CREATE TABLE volume_size_stats (day date)")
        assert (
            "volume_size_stats: not partitioned. Run `capacity copy` to an empty database, and this command there."
            in str(distribution_problem(empty))
        )
        empty.dispose()


def test_changes_are_gathered_while_a_distribution_is_unfinished(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_everything(undistributed)
    monkeypatch.setattr(distributing, "BY_SERVER", CAPACITY_TABLES[:1])
    assert distribute(undistributed, shards=SHARDS) == ["database_size_stats"]
    assert not cluster.is_distributed(undistributed)

    execute(undistributed, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-02-12'")

    stale = {(found.period_type, found.window.key) for found in service(undistributed).ledger.stale()}
    assert ("daily", "2025-02-12") in stale


def test_groups_are_read_as_soon_as_what_is_computed_is_distributed_although_the_rest_is_not(
    undistributed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_everything(undistributed)

    def stop(table: str) -> None:
        if table == CAPACITY_TABLES[-1].name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distribute(undistributed, shards=SHARDS, on_table=stop)
    assert [one.is_distributed for one in placements(undistributed)] == [True] * 4 + [False] * 5

    monkeypatch.setenv("CAPACITY_DATABASE_URL", undistributed.url.render_as_string(hide_password=False))
    assert "postgresql" in printed("groups", "--by", "engine", "--window", "2025-05-01")
    cluster.forget_distribution(undistributed)


def test_roles_of_any_name_may_do_on_the_nodes_what_they_may_on_the_coordinator(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    database = str(distributed.url.database)
    # It goes with the cluster.
    execute(distributed, 'CREATE ROLE "odd-Role\'s $do$" LOGIN')
    execute(distributed, 'GRANT SELECT, DELETE ON capacity_changes TO "odd-Role\'s $do$"')
    execute(distributed, "GRANT SELECT ON capacity_changes TO PUBLIC")

    for _ in range(2):
        assert distribute(distributed, shards=SHARDS) == []

    granted = (
        "SELECT grantee, privilege_type FROM information_schema.table_privileges "
        "WHERE table_name = 'capacity_changes' AND grantee <> 'postgres' ORDER BY 1, 2"
    )
    for port in nodes.ports:
        assert nodes.on_node(port, granted, database) == [
            ("PUBLIC", "SELECT"),
            ("odd-Role's $do$", "DELETE"),
            ("odd-Role's $do$", "SELECT"),
        ]
