"""A database that moves (a dump, pg_upgrade, logical replication) goes on with the changes that it had."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import EmbeddedServer
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise, schema_state
from tests.clocks import fixed_clock
from tests.databases import execute, rows
from tests.fleet import add_database_sizes, sizes
from tests.ledger import compute_everything, half_a_year_of_two_servers, recorded, redo, stale
from tests.other_postgres import USER, other_postgres

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
VERSIONS = [path.parent for path in INSTALLED if int(path.parts[-3]) >= 14]
pytestmark = [
    pytest.mark.single_server("starts servers of its own"),
    pytest.mark.skipif(not VERSIONS, reason="needs a PostgreSQL with pg_dump in /usr/lib/postgresql"),
]
GATHERED = {("daily", "2025-03-31"), ("daily", "2025-04-01")}
UNREAD = {("daily", "2025-05-05"), ("daily", "2025-05-06")}


Servers = tuple[EmbeddedServer, EmbeddedServer]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Two servers, the first of which replicates."""
    with other_postgres(VERSIONS[-1], "wal_level=logical") as first, other_postgres(VERSIONS[-1]) as second:
        yield first, second


def database_of(server: EmbeddedServer, name: str = "postgres") -> Engine:
    engine = capacity_engine(server.url("postgres", CAPACITY_DRIVER))
    if name != "postgres":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
    return capacity_engine(server.url(name, CAPACITY_DRIVER))


def with_changes(engine: Engine) -> None:
    """Everything computed, then one change that was gathered and one that nobody has read."""
    initialise(engine)
    half_a_year_of_two_servers(engine)
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-03-31'")
    stale(AggregationService(engine, fixed_clock()))
    execute(engine, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-05-05'")


def goes_on(engine: Engine) -> None:
    """Nothing was lost on the way, nothing else counts as changed, and later changes are followed."""
    service = AggregationService(engine, fixed_clock())
    assert schema_state(engine).fit
    assert dailies(service) == GATHERED | UNREAD
    add_database_sizes(engine, sizes(1, "late", "2025-06-02", [5]))
    assert dailies(service) == GATHERED | UNREAD | {("daily", "2025-06-02"), ("daily", "2025-06-03")}
    redo(service)
    assert stale(service) == set()
    assert recorded(engine) == []
    assert service.ledger.outdated() == []
    assert compute_everything(service) == 0
    assert compute_everything(service, recompute=True) == 0


def dailies(service: AggregationService) -> set[tuple[str, str]]:
    return {(period, key) for _, period, key in stale(service) if period == "daily"}


def dumped(source: Engine, *options: str) -> bytes:
    return subprocess.run([VERSIONS[-1] / "pg_dump", address(source), *options], check=True, capture_output=True).stdout


def loaded(dump: bytes, target: Engine) -> None:
    psql = [VERSIONS[-1] / "psql", address(target), "-q", "-v", "ON_ERROR_STOP=1"]
    subprocess.run(psql, input=dump, check=True, capture_output=True)


def address(database: Engine) -> str:
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.nightly("starts further servers")
def test_a_dump_that_is_loaded_into_another_server_goes_on_there(servers: Servers) -> None:
    source, restored = (database_of(server, "dumped") for server in servers)
    with_changes(source)
    loaded(dumped(source), restored)
    source.dispose()

    goes_on(restored)

    restored.dispose()


@contextmanager
def running(programs: Path, folder: Path) -> Iterator[EmbeddedServer]:
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    pg_ctl = [programs / "pg_ctl", "-D", folder / programs.parent.name, "-w"]
    subprocess.run([*pg_ctl, "-l", folder / "log", "-o", options, "start"], check=True, user=USER)
    try:
        yield EmbeddedServer(str(folder))
    finally:
        subprocess.run([*pg_ctl, "stop"], check=True, user=USER)


@pytest.mark.skipif(len(VERSIONS) < 2, reason="needs two versions of PostgreSQL in /usr/lib/postgresql")
def test_a_server_that_is_upgraded_by_pg_upgrade_goes_on() -> None:
    old, new = VERSIONS[0], VERSIONS[-1]
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if USER:
        shutil.chown(folder, USER)
    try:
        for programs in (old, new):
            initdb = [programs / "initdb", "-D", folder / programs.parent.name, "-U", "postgres", "-A", "trust"]
            checksums = ["--no-data-checksums"] if int(programs.parent.name) >= 18 else []
            subprocess.run(
                [*initdb, "-E", "UTF8", "--locale=C", *checksums], check=True, capture_output=True, user=USER
            )
        with running(old, folder) as server:
            before = database_of(server)
            with_changes(before)
            before.dispose()
        upgrade = [
            new / "pg_upgrade",
            "-b",
            old,
            "-B",
            new,
            "-d",
            folder / old.parent.name,
            "-D",
            folder / new.parent.name,
        ]
        done = subprocess.run(
            [*upgrade, "-U", "postgres", "-s", folder],
            cwd=folder,
            capture_output=True,
            text=True,
            user=USER,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with running(new, folder) as server:
            after = database_of(server)
            goes_on(after)
            after.dispose()
    finally:
        shutil.rmtree(folder)


SEQUENCES = "SELECT quote_ident(sequencename), coalesce(last_value, start_value) FROM pg_sequences"


@pytest.mark.nightly("starts further servers")
def test_a_database_that_is_replicated_and_switched_to_goes_on_there(servers: Servers) -> None:
    source, target = (database_of(server, "replicated") for server in servers)
    initialise(source)
    loaded(dumped(source, "--schema-only"), target)
    execute(target, "TRUNCATE capacity_alembic_version")
    execute(source, "CREATE PUBLICATION everything FOR ALL TABLES")
    publisher = f"host={source.url.query['host']} user=postgres dbname=replicated"
    with target.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        subscription = f"CREATE SUBSCRIPTION everything CONNECTION '{publisher}' PUBLICATION everything"
        connection.execute(text(subscription))
    with_changes(source)

    [(end,)] = rows(source, "SELECT CAST(pg_current_wal_lsn() AS text)")
    replayed = (
        f"SELECT confirmed_flush_lsn >= CAST('{end}' AS pg_lsn) AND NOT EXISTS (SELECT FROM pg_replication_slots "
        "WHERE slot_name LIKE '%_sync_%') FROM pg_replication_slots WHERE slot_name = 'everything'"
    )
    deadline = time.monotonic() + 120
    ready = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"
    while rows(source, replayed) != [(True,)] or rows(target, ready) != [(0,)]:
        assert time.monotonic() < deadline, "the target does not catch up"
        time.sleep(0.5)
    with target.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP SUBSCRIPTION everything"))
    for sequence, last in rows(source, SEQUENCES):
        execute(target, f"SELECT setval('{sequence}', {last})")
    source.dispose()

    goes_on(target)

    target.dispose()
