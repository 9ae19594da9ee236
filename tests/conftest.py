"""Real servers for the tests: a PostgreSQL per test process, a fresh database per test, a fixed day."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService, PartitionRange
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import CAPACITY_DRIVER, Settings, variable_names
from capacity_assets.database.distributing import distribute
from capacity_assets.database.embedded import EmbeddedServer, embedded_server
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise
from capacity_assets.database.views import READER_ROLE, ensure_reader_role
from capacity_assets.history.retention import Retention, TableMaintenance
from tests import (
    citus,
    compiled,
    other_postgres,
    profiles,
)
from tests.bills import fill_to_bill
from tests.clocks import SHANGHAI, TODAY, fixed_clock
from tests.databases import TEMPLATE, Databases, fixed_name, template_name
from tests.fleet import load_sample
from tests.folders import remove_folders, work_in_memory
from tests.labels import fill_to_label
from tests.mysql_servers import MariaDBServer, mariadb_server
from tests.redis_server import RedisServer
from tests.report_pages import fill_with_every_kind
from tests.runways import fill_with_forecasts, fill_with_growing_servers, fill_with_limits
from tests.servers import PostgresServer, postgres_server, shared_data_folders

# Fixtures with Dagster in them.
pytest_plugins = ["tests.dagster_fixtures"]

# A shell's background jobs ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put the folders of tests into memory, unless their place is configured.

    Each run has folders of its own: pytest closes the one that all runs of a user share when the next one begins.
    """
    if hasattr(config, "workerinput"):
        return
    work_in_memory(config)
    if getattr(config.option, "numprocesses", None):
        compiled.compile_test_files(config)
    shared = ExitStack()
    shared.enter_context(shared_data_folders())
    config.add_cleanup(shared.close)


TESTS_MEANWHILE = 400
"""While the demo is computed, which takes a minute, other files run, instead of processes that wait for it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests by their marks, which give the reason: long ones by day, and those of a single server on a cluster."""
    left_out = {
        "nightly": None if profiles.PROFILE.long_tests else "in the profiles full and nightly only",
        "single_server": "on a single server only" if os.environ.get(citus.VARIABLE) else None,
    }
    for item in items:
        for name, where in left_out.items():
            mark = item.get_closest_marker(name)
            if mark and where:
                item.add_marker(pytest.mark.skip(reason=f"{where}: {mark.args[0]}"))
    files = [item.path for item in items if "demo" in getattr(item, "fixturenames", ()) and not _is_skipped(item)]
    later = set(files) - set(files[:1])
    others, waiting = ([item for item in items if (item.path in later) is waits] for waits in (False, True))
    items[:] = others[:TESTS_MEANWHILE] + waiting + others[TESTS_MEANWHILE:]


def _is_skipped(item: pytest.Item) -> bool:
    return item.get_closest_marker("skip") is not None


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove files that embedded servers left in their system user's folders, and folders in memory."""
    # pytest searches for garbage five times afterwards, for what fails while it is collected; once finds it here.
    gc.collect()
    gc.freeze()
    # Where there are several processes, the first one does it, when all are done.
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None and not hasattr(session.config, "workerinput"):
        remove_folders(factory.getbasetemp(), failed=exitstatus != pytest.ExitCode.OK)


@pytest.fixture(scope="session", autouse=True)
def passable_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the embedded server's system user pass through the folder of the tests; the product opens no folder."""
    base = tmp_path_factory.getbasetemp()
    for folder in (base, *base.parents):
        if folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o711)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder of the test, which the embedded server's system user may pass through."""
    tmp_path.chmod(0o711)
    return tmp_path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the user who runs the tests."""
    for name in (*variable_names(), "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")
    # Unset, it would be that of the machine, and days would depend on where the tests run.
    monkeypatch.setenv("CAPACITY_TIMEZONE", SHANGHAI.key)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer | citus.CitusServer]:
    """A PostgreSQL of this test process."""
    if os.environ.get(citus.VARIABLE):
        with citus.citus_cluster(Path(os.environ[citus.VARIABLE])) as nodes:
            yield nodes
        return
    programs = os.environ.get(other_postgres.VARIABLE)
    folder = tmp_path_factory.mktemp("postgres")
    folder.chmod(0o711)
    started = other_postgres.other_postgres(Path(programs)) if programs else embedded_server(folder / "postgres")
    with started as running:
        yield running


@pytest.fixture(scope="session")
def cluster(server: EmbeddedServer | citus.CitusServer) -> Iterator[Databases]:
    """The databases of this test process, with a template that holds the schema."""
    distributed = isinstance(server, citus.CitusServer)
    found = citus.CitusDatabases(server) if distributed else Databases(server)
    # Nothing here has to outlive a crash of the machine, or lives long enough to be vacuumed.
    for setting in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum"):
        found.execute(f"ALTER SYSTEM SET {setting} = off")
    found.execute("SELECT pg_reload_conf()")
    found.execute(f"CREATE DATABASE {TEMPLATE}")
    if isinstance(server, citus.CitusServer):
        server.join(TEMPLATE)
    engine = capacity_engine(server.url(TEMPLATE, CAPACITY_DRIVER))
    initialise(engine)
    # Partitions as on the day that the tests take for today, so that their samples and windows lie in several.
    TableMaintenance(engine, date(2025, 1, 1), Retention({})).prepare(TODAY)
    if distributed:
        distribute(engine, shards=citus.SHARDS)
    engine.dispose()
    yield found
    found.close()


# How the database of a fixture is filled; a module may name further ones in `PREPARED`.
EVERYWHERE: dict[str, Callable[[Engine], object]] = {
    "sample": load_sample,
    "every_kind": fill_with_every_kind,
    "labelled_fleet": fill_to_label,
    "issued_today": fill_with_forecasts,
    "fleet_with_limits": fill_with_limits,
    "growing_servers": fill_with_growing_servers,
    "billed_fleet": fill_to_bill,
}


def _template(request: pytest.FixtureRequest, cluster: Databases) -> str:
    """Return the template of a test's database."""
    prepared: dict[str, Callable[[Engine], object]] = getattr(request.module, "PREPARED", {})
    for fixture, fill in (*prepared.items(), *EVERYWHERE.items()):
        if fixture in request.fixturenames:
            return cluster.filled(template_name(fill), fill)
    return TEMPLATE


@pytest.fixture
def database(cluster: Databases, request: pytest.FixtureRequest) -> Iterator[URL]:
    """A fresh database with the capacity schema; in a module with `PREPARED`, with the rows of a fixture's name."""
    template = _template(request, cluster)
    name = fixed_name(request, "daemon_capacity")
    with cluster.copy(template, name) if name else cluster.fresh(template) as url:
        yield url


@pytest.fixture
def empty_database(cluster: Databases) -> Iterator[URL]:
    """A fresh database with nothing in it."""
    with cluster.copy("template1") as url:
        yield url


@pytest.fixture
def engine(database: URL, cluster: Databases) -> Iterator[Engine]:
    """An engine on a fresh database with the capacity schema."""
    with cluster.engine(database) as found:
        yield found


@pytest.fixture
def empty_engine(empty_database: URL) -> Iterator[Engine]:
    """An engine on an empty database."""
    created = capacity_engine(empty_database)
    yield created
    created.dispose()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for this test only."""
    running = RedisServer(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def clock() -> Clock:
    """Noon of 2025-07-20 in Shanghai."""
    return fixed_clock()


@pytest.fixture
def service(engine: Engine, clock: Clock) -> AggregationService:
    """The service on a fresh database, on 2025-07-20."""
    return AggregationService(engine, clock)


@pytest.fixture
def runner(engine: Engine, clock: Clock) -> AggregationTaskRunner:
    """The task runner on a fresh database, on 2025-07-20; the first partition contains 2025-01-01."""
    partitions = PartitionRange(clock, date(2025, 1, 1))
    return AggregationTaskRunner(AggregationService(engine, clock, partitions=partitions))


@pytest.fixture
def settings(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a fresh database, set by environment variables."""
    monkeypatch.setenv("CAPACITY_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path / "home"))
    return Settings()


@pytest.fixture
def sample(settings: Settings) -> Settings:
    """Settings of a database with the rows of the sample; see EVERYWHERE."""
    return settings


@pytest.fixture(scope="module")
def measured_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL to be measured, over TCP with passwords."""
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def measured_mariadb() -> Iterator[MariaDBServer]:
    """A MariaDB to be measured."""
    with mariadb_server() as running:
        yield running


@pytest.fixture
def reader_role(engine: Engine) -> Iterator[None]:
    """The role of the pages; it is dropped again, because roles belong to the whole server."""
    with engine.begin() as connection:
        ensure_reader_role(connection)
    yield
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {READER_ROLE}"))
        connection.execute(text(f"DROP ROLE {READER_ROLE}"))
