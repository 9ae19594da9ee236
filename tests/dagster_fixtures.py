"""Fixtures of Dagster: databases with its tables, the shipped instance, and its daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance
from sqlalchemy import URL

from capacity_assets.base.settings import CAPACITY_DRIVER, DAGSTER_DRIVER, Settings
from capacity_assets.orchestration.instance import dagster_environment, dagster_instance
from tests.clocks import SHANGHAI
from tests.daemon import CodeServers, Daemon, daemon_over
from tests.databases import TEMPLATE, Databases, fixed_name


@pytest.fixture(scope="session")
def dagster_template(cluster: Databases, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a template with Dagster's tables, because creating them takes seconds."""
    name = "dagster_template"
    cluster.execute(f"CREATE DATABASE {name}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAPACITY_TIMEZONE", SHANGHAI.key)
        patched.setenv("CAPACITY_HOME", str(tmp_path_factory.mktemp("home")))
        for variable, database in (("CAPACITY_DATABASE_URL", TEMPLATE), ("DAGSTER_POSTGRES_URL", name)):
            url = cluster.server.url(database, CAPACITY_DRIVER if database == TEMPLATE else DAGSTER_DRIVER)
            patched.setenv(variable, url.render_as_string(hide_password=False))
        with dagster_environment(Settings()) as environment, dagster_instance(environment):
            pass
    return name


@pytest.fixture
def dagster_databases(cluster: Databases, dagster_template: str) -> Iterator[tuple[URL, URL]]:
    """Two databases with empty tables of Dagster."""
    with cluster.copy(dagster_template) as one, cluster.copy(dagster_template) as other:
        yield one.set(drivername=DAGSTER_DRIVER), other.set(drivername=DAGSTER_DRIVER)


@pytest.fixture
def shipped_instance(
    settings: Settings,  # noqa: ARG001 -- sets the environment that code servers inherit
    cluster: Databases,
    dagster_template: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[DagsterInstance]:
    """The instance of the shipped dagster.yaml on a separate PostgreSQL database."""
    with cluster.copy(dagster_template, fixed_name(request, "daemon_dagster")) as url:
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.render_as_string(hide_password=False))
        with dagster_environment(Settings()) as environment, dagster_instance(environment) as instance:
            yield instance


@pytest.fixture(scope="session")
def code_servers() -> Iterator[CodeServers]:
    """Code servers, shared by tests with the same variables."""
    with CodeServers() as started:
        yield started


@pytest.fixture
def daemon(shipped_instance: DagsterInstance, code_servers: CodeServers) -> Iterator[Daemon]:
    """Dagster's daemon of the shipped instance, one iteration at a time."""
    with daemon_over(shipped_instance, code_servers.target()) as running:
        yield running
