"""Fixtures that several files of this folder begin with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.clock import Clock
from capacity_assets.collection.engines.installed import engine_named
from capacity_assets.collection.registry import register
from capacity_assets.collection.servers import Server
from capacity_assets.settings import Settings
from tests.clocks import TODAY
from tests.collecting import PASSWORD
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import Pages, served_pages
from tests.runways import FIRST, GROWING
from tests.servers import PostgresServer


@pytest.fixture
def every_kind(engine: Engine, service: AggregationService) -> Engine:
    """January and February with one database of each kind; server 3 was not measured in January, 4 not in February."""
    add_instances(engine, [1, 3, 4])
    add_instances(engine, [2], db_type="mysql")
    add_instances(engine, [5], is_active=False)
    histories = {
        (1, "grows"): (100, 150),
        (1, "shrinks"): (80, 50),
        (1, "stays"): (7, 7),
        (2, "new"): (None, 30),
        (2, "gone"): (20, None),
        (2, "kept"): (1, 1),
        (3, "appeared"): (None, 500),
        (4, "missing"): (60, None),
    }
    for (instance_id, name), (january, february) in histories.items():
        add_database_sizes(engine, sizes(instance_id, name, "2025-01-01", [january] * 31 + [february] * 28))
    for instance_id, january, february in ((1, (187, 3), (207, 3)), (2, (21, 2), (31, 2))):
        measured: list[tuple[int, int] | None] = [january] * 31 + [february] * 28
        measured[40] = None
        add_instance_sizes(engine, totals(instance_id, "2025-01-01", measured))
    service.calculate_period_aggregations("monthly", date(2025, 1, 1), date(2025, 2, 28))
    return engine


@pytest.fixture(scope="module")
def collection_login(measured_postgres: PostgresServer) -> None:
    """The login of the collection, made by the very statements that are documented."""
    measured_postgres.execute(engine_named("postgresql").grants.replace("'...'", f"'{PASSWORD}'"))


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
def growing_servers(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers: `orders` grows by ten MiB per day, `still` does not; server-2 has one young database."""
    assert settings
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * 200))
    add_database_sizes(engine, sizes(2, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size + 500, 2) for size in GROWING]))
    add_instance_sizes(engine, totals(2, (TODAY - timedelta(days=9)).isoformat(), [(100, 1)] * 10))


@pytest.fixture
def pages(database: URL) -> Iterator[Pages]:
    with served_pages(database) as served:
        yield served


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
    register(
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
