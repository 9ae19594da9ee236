"""Limits as real servers report them, held against what the operating system says of the same file systems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from capacity_assets.collection.engines.base import DatabaseSize, Limits, Volume
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.collection.servers import Server, register_servers
from capacity_assets.collection.storing import store_each
from tests.clocks import TODAY
from tests.collecting import PASSWORD, Collection, granting
from tests.databases import execute
from tests.fleet import add_instances
from tests.mysql_servers import MARIADB_PLUGINS, MariaDBServer, mariadb_server
from tests.servers import PostgresServer, give_away, pgnodemx_programs, postgres_server

MIB = 1024 * 1024
# Other processes write to the same disk meanwhile.
TOLERANCE_MB = 512


def on_disk(path: Path) -> tuple[int, int, int]:
    """Total, available and used MiB of the file system that holds a path, as `df` reports them."""
    found = os.statvfs(path)
    blocks = (found.f_blocks, found.f_bavail, found.f_blocks - found.f_bfree)
    return tuple(one * found.f_frsize // MIB for one in blocks)  # type: ignore[return-value]


def is_as_on_disk(row: tuple[object, ...], path: Path) -> bool:
    total, *others = on_disk(path)
    found = [int(str(one)) for one in row[1:3]]
    return row[0] == total and all(abs(one - there) <= TOLERANCE_MB for one, there in zip(found, others, strict=True))


def volumes(collection: Collection) -> dict[str, tuple[object, ...]]:
    rows = collection.rows(
        "SELECT i.name || ':' || v.volume_name, v.total_mb, v.free_mb, v.used_mb, v.source, v.collected_date "
        "FROM volume_size_stats v JOIN instances i ON i.id = v.instance_id"
    )
    return {str(name): tuple(rest) for name, *rest in rows}


def ceilings(collection: Collection) -> dict[str, tuple[object, ...]]:
    rows = collection.rows("SELECT database_name, limit_mb, is_unlimited, volumes, source FROM database_limit_stats")
    return {str(name): tuple(rest) for name, *rest in rows}


def register_probed(collection: Collection, name: str, engine: str, port: int) -> None:
    password = collection.password(name, PASSWORD)
    server = Server(name, engine, "127.0.0.1", port=port, username="capacity_probe", password_from=password, tls="off")
    register_servers(collection.engine, [server])


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    if not MARIADB_PLUGINS.exists():
        pytest.skip("no plugin of MariaDB here; see tests/install_servers.sh")
    with mariadb_server(tls=False) as server:
        server.execute(*granting("mariadb"), "CREATE DATABASE orders")
        yield server


def test_mariadb_says_which_file_system_holds_its_data_and_why_it_says_nothing(
    mariadb: MariaDBServer, collection: Collection
) -> None:
    register_probed(collection, "shop", "mariadb", mariadb.port)
    without_plugin = collection.collect()
    mariadb.execute("INSTALL SONAME 'disks'")
    without_right = collection.collect(again=True)
    assert volumes(collection) == ceilings(collection) == {}

    mariadb.execute("GRANT FILE ON *.* TO 'capacity_probe'@'%'")
    done = collection.collect(again=True)
    mariadb.execute("REVOKE FILE ON *.* FROM 'capacity_probe'@'%'")
    kept = volumes(collection)
    collection.collect(again=True)

    assert without_plugin.unknown_limits == (
        "shop: MariaDB reports its file systems with the plugin `disks` only: INSTALL SONAME 'disks'",
    )
    assert without_right.unknown_limits == ("shop: its login may not see the file systems: FILE on *.* is missing",)
    assert (without_right.failed_instances, without_right.measured_databases) == (0, 1), (
        "sizes are measured all the same"
    )
    assert done.unknown_limits == ()
    [(name, row)] = kept.items()
    assert is_as_on_disk(row, mariadb.folder)
    assert row[3:] == ("measured", TODAY)
    assert ceilings(collection) == {"orders": (None, True, [name.removeprefix("shop:")], "measured")}
    assert volumes(collection) == kept, "what was said earlier on this day stays"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    options = ("shared_preload_libraries=pgnodemx", "jit=off")
    with postgres_server(tls=False, programs=pgnodemx_programs(), options=options) as server:
        server.execute(*granting("postgresql"), "CREATE DATABASE orders")
        yield server


def other_file_system(folder: Path) -> Path:
    """A folder for everybody on another file system."""
    others = (Path("/dev/shm"), Path("/var/tmp"))  # noqa: S108 -- file systems, not files
    return next(other for other in others if other.stat().st_dev != folder.stat().st_dev)


def test_postgresql_says_on_which_file_systems_the_tablespaces_of_a_database_lie(
    postgres: PostgresServer, collection: Collection
) -> None:
    register_probed(collection, "core", "postgresql", postgres.port)
    without = collection.collect()
    elsewhere = other_file_system(postgres.folder) / postgres.folder.name
    elsewhere.mkdir()
    give_away(elsewhere)
    try:
        postgres.execute(
            # A function of the same name that belongs to nobody is not called.
            "CREATE FUNCTION fsinfo(text, OUT major_number numeric) LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END'",
            "CREATE FUNCTION spy(numeric, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''called''; END'",
            "CREATE OPERATOR public.|| (FUNCTION = spy, LEFTARG = numeric, RIGHTARG = text)",
            'CREATE SCHEMA "Mon itor"',
            f"CREATE TABLESPACE fast LOCATION '{elsewhere}'",
        )
        misled = collection.collect(again=True)
        postgres.execute('CREATE EXTENSION pgnodemx SCHEMA "Mon itor"')
        hidden = collection.collect(again=True)
        postgres.execute('GRANT USAGE ON SCHEMA "Mon itor" TO PUBLIC', "CREATE DATABASE billing TABLESPACE fast")
        postgres.execute("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS n", database="orders")
        done = collection.collect(again=True)
        found, sizes = volumes(collection), ceilings(collection)
        spaces = on_disk(elsewhere)
    finally:
        postgres.execute("DROP DATABASE IF EXISTS billing", "DROP DATABASE orders", "DROP TABLESPACE fast")
        elsewhere.rmdir()

    reason = "core: PostgreSQL reports its file systems with the extension pgnodemx or system_stats only"
    assert without.unknown_limits == misled.unknown_limits == (reason,)
    assert hidden.unknown_limits == ("core: its login may not call fsinfo of pgnodemx",)
    assert done.unknown_limits == ()
    assert set(found) == {"core:data directory", f"core:{elsewhere}"}
    assert is_as_on_disk(found["core:data directory"], postgres.folder)
    assert found[f"core:{elsewhere}"][0] == spaces[0]
    assert sizes == {
        "billing": (None, True, [str(elsewhere)], "measured"),
        "orders": (None, True, [str(elsewhere), "data directory"], "measured"),
    }


def test_limits_that_the_tables_refuse_cost_no_size_of_any_server(collection: Collection) -> None:
    add_instances(collection.engine, [1, 2])
    refused = Limits((Volume("x" * 300, 1, 1),))
    outcomes = [
        ProbeOutcome(
            sizes,
            limits=limits,
            instance_id=number,
            server=f"server-{number}",
            ended_at=datetime(2025, 7, 20, 4, tzinfo=UTC),
        )
        for number, limits in ((1, refused), (2, Limits((Volume("/data", 4 * MIB, 3 * MIB),))))
        for sizes in [(DatabaseSize("orders", number),)]
    ]

    stored = store_each(collection.engine, TODAY, outcomes)

    assert [outcome.collected for outcome in stored] == [True, True]
    assert "cannot be stored" in str(stored[0].limits.unknown)
    assert [collection.sizes(f"server-{number}") for number in (1, 2)] == [{"orders": 1}, {"orders": 2}]
    assert set(volumes(collection)) == {"server-2:/data"}


def test_a_measured_volume_takes_the_place_of_an_imported_one_and_of_who_imported_it(collection: Collection) -> None:
    add_instances(collection.engine, [1])
    execute(
        collection.engine,
        "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source, "
        f"declared_by) VALUES ('{TODAY}', 1, '/data', 9, 8, 'imported', 'anna')",
    )

    measured = Limits((Volume("/data", 4 * MIB, 3 * MIB),))
    moment = datetime(2025, 7, 20, 4, tzinfo=UTC)
    store_each(
        collection.engine,
        TODAY,
        [
            ProbeOutcome(
                (DatabaseSize("orders", 1),), limits=measured, instance_id=1, server="server-1", ended_at=moment
            )
        ],
    )

    assert list(collection.rows("SELECT source, declared_by FROM volume_size_stats")) == [("measured", None)]
