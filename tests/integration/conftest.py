"""Fixtures that several files of this folder begin with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.collection.servers import Server, register_servers
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.database.schema import initialise
from capacity_assets.digest import Digest, read_digest
from tests.clocks import TODAY
from tests.collecting import PASSWORD, Collection, granting
from tests.databases import Databases, template_name
from tests.digests import WEEK
from tests.legacy import LegacyShape, create_legacy_tables
from tests.mail_server import Inbox, mail_server
from tests.mysql_servers import MySQLServer, mysql_server
from tests.pages import Pages, served_pages
from tests.partitions import add_two_servers
from tests.redis_server import RedisServer
from tests.servers import PostgresServer


@pytest.fixture
def every_kind(engine: Engine) -> Engine:
    """January and February with one database of each kind, computed; its database is copied."""
    return engine


@pytest.fixture(scope="module")
def collection_login(measured_postgres: PostgresServer) -> None:
    """The login of the collection, made by the very statements that are documented."""
    measured_postgres.execute(*granting("postgresql"))


@pytest.fixture
def measured_databases(measured_postgres: PostgresServer) -> Iterator[None]:
    """Two databases, as the server's users would have them."""
    measured_postgres.execute('CREATE DATABASE "orders"', 'CREATE DATABASE "Ünïcødé; --"')
    yield
    with measured_postgres.admin() as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'")
        names = [row[0] for row in rows]
    measured_postgres.execute(*(f'DROP DATABASE "{name}" WITH (FORCE)' for name in names))


@pytest.fixture
def growing_servers(today: None, engine: Engine) -> None:
    """Two servers: `orders` grows by ten MiB per day, `still` does not; server-2 has one young database; copied."""


@pytest.fixture
def upgraded(cluster: Databases) -> Iterator[Engine]:
    """A legacy database without partitions, upgraded."""

    def fill(engine: Engine) -> None:
        create_legacy_tables(engine, LegacyShape())
        initialise(engine)

    with cluster.copy(cluster.filled("upgraded", fill, basis="template1")) as url, cluster.engine(url) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared_pages(cluster: Databases, request: pytest.FixtureRequest) -> Iterator[Pages]:
    fill = request.module.PREPARED["pages"]
    with cluster.copy(cluster.filled(template_name(fill), fill)) as database, served_pages(database) as served:
        yield served


@pytest.fixture
def own_pages(database: URL) -> Iterator[Pages]:
    with served_pages(database) as served:
        yield served


@pytest.fixture
def pages(request: pytest.FixtureRequest) -> Pages:
    """The pages. Tests of a module that use no other fixture only read, and share them."""
    asked = inspect.signature(request.function).parameters
    reads = list(asked) == ["pages"] and "pages" in getattr(request.module, "PREPARED", {})
    served: Pages = request.getfixturevalue("shared_pages" if reads else "own_pages")
    return served


@pytest.fixture(scope="module")
def orders_to_measure(
    measured_postgres: PostgresServer,
    collection_login: None,  # noqa: ARG001 -- measures it
) -> None:
    """A database, and the login that measures it."""
    measured_postgres.execute("CREATE DATABASE orders")


@pytest.fixture
def registered(engine: Engine, measured_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A server that can be measured and one whose password is wrong."""
    monkeypatch.setenv("RIGHT_PASSWORD", PASSWORD)
    monkeypatch.setenv("WRONG_PASSWORD", "guess-W0rd")
    port = measured_postgres.port
    login: dict[str, Any] = {"engine": "postgresql", "host": "127.0.0.1", "port": port, "username": "capacity_probe"}
    register_servers(
        engine,
        [
            Server("pg", **login, password_from="env:RIGHT_PASSWORD"),  # noqa: S106
            Server("shut", **login, password_from="env:WRONG_PASSWORD"),  # noqa: S106
        ],
    )
    return engine


@pytest.fixture
def alpha_and_beta(engine: Engine) -> None:
    """Two servers that files of samples name."""
    with engine.begin() as connection:
        query = "INSERT INTO instances (name, db_type, host, port) VALUES (:name, 'mysql', 'h', 1)"
        connection.execute(text(query), [{"name": "alpha"}, {"name": "beta"}])


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with mail_server() as running:
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtp://127.0.0.1:{running.port}")
        monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
        yield running


@pytest.fixture
def receivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the file of receivers."""

    def write(content: str) -> None:
        file = tmp_path / "receivers.toml"
        file.write_text(content)
        monkeypatch.setenv("CAPACITY_RECEIVERS", str(file))

    return write


@pytest.fixture(params=["redis", "postgresql"])
def locks(request: pytest.FixtureRequest, engine: Engine) -> CapacityLockManager:
    """A lock manager on each of the two services."""
    if request.param == "postgresql":
        return CapacityLockManager(engine)
    return CapacityLockManager(engine, request.getfixturevalue("redis_server").url)


@pytest.fixture
def redis_locks(engine: Engine, redis_server: RedisServer) -> CapacityLockManager:
    """A lock manager on Redis with a time to live of three seconds, renewed each second, also under load."""
    return CapacityLockManager(engine, redis_server.url, time_to_live_seconds=3)


@pytest.fixture
def today(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day that commands take for today: 2025-07-20."""
    assert settings
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)


@pytest.fixture
def fleet_with_limits(settings: Settings, engine: Engine) -> None:
    """`orders` grows by ten MiB per day and is full in twenty days, `still` does not, `young` is young; copied."""


@pytest.fixture
def issued_today(fleet_with_limits: None) -> None:
    """`fleet_with_limits` with the forecasts of today; copied."""


@pytest.fixture
def labelled_fleet(today: None, engine: Engine) -> None:
    """March and April: server-1 with pay_a, pay_b and other, server-2 with pay_a, and its replica server-3; copied."""


@pytest.fixture
def billed_fleet(today: None, engine: Engine) -> None:
    """June: server-1 with a (10 GiB) and b (20 GiB), measured from May to July; server-2 is its replica; copied."""


@pytest.fixture
def week(engine: Engine, request: pytest.FixtureRequest) -> Digest:
    """The digest of the last week, which the module is prepared with."""
    assert "week" in request.module.PREPARED
    return read_digest(engine, WEEK)


@pytest.fixture
def computed(service: AggregationService, request: pytest.FixtureRequest) -> AggregationService:
    """The service over what the module is prepared with, every window computed."""
    assert "computed" in request.module.PREPARED
    return service


@pytest.fixture
def two_servers(engine: Engine) -> Engine:
    """Two servers with samples from 2025-01-01 to 2025-07-20, in partitions."""
    return add_two_servers(engine)


@pytest.fixture(scope="module")
def measured_mysql() -> Iterator[MySQLServer]:
    """A MySQL to be measured."""
    with mysql_server() as running:
        yield running


@pytest.fixture
def collection(engine: Engine, tmp_path: Path) -> Collection:
    return Collection(engine, tmp_path / "secrets")
