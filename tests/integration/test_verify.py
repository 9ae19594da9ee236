"""deploy/verify compares what is measured with known sizes: here on the servers of the tests instead of Docker's."""

from __future__ import annotations

import importlib.util
import os
import re
from types import ModuleType

import pytest
import sqlglot
import yaml

from capacity_assets.base.settings import Settings
from capacity_assets.collection.engines.base import engine_named, engine_names
from tests.documents import ROOT
from tests.forked import run_forked
from tests.mysql_servers import MariaDBServer, MySQLServer
from tests.servers import ADMIN_PASSWORD, PostgresServer

FOLDER = ROOT / "deploy" / "verify"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())


@pytest.fixture
def verify(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, on a capacity database of the tests."""
    assert settings
    spec = importlib.util.spec_from_file_location("verify", FOLDER / "verify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "verify", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        module, "command", lambda *arguments: run_forked(*arguments, environment=os.environ, timeout=60)
    )
    monkeypatch.setenv("CAPACITY_VERIFY_PASSWORD", ADMIN_PASSWORD)
    monkeypatch.setenv("CAPACITY_OBJECTS", "")
    return module


def test_databases_of_known_size_on_real_servers_are_measured_right_and_removed_again(
    verify: ModuleType,
    measured_postgres: PostgresServer,
    measured_mariadb: MariaDBServer,
    measured_mysql: MySQLServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured_mariadb.execute("INSTALL SONAME 'disks'")
    for server in (measured_mariadb, measured_mysql):
        server.execute(
            f"CREATE USER boss@'%' IDENTIFIED BY '{ADMIN_PASSWORD}'", "GRANT ALL ON *.* TO boss@'%' WITH GRANT OPTION"
        )

    status = verify.main(
        [
            f"--disk={measured_mariadb.folder}",
            f"postgresql://postgres@127.0.0.1:{measured_postgres.port}/postgres",
            f"mariadb://boss@127.0.0.1:{measured_mariadb.port}/",
            f"mysql://boss@127.0.0.1:{measured_mysql.port}/",
        ]
    )

    printed = capsys.readouterr().out
    assert status == 0, printed
    assert re.search(r"│ postgresql 127.* │ table +│ 32.0 MiB +│ 32.0 MiB ", printed)
    assert re.search(r"│ mysql 127.* │ binary log +│ at least 28.0 MiB +│ [23]\d.\d MiB ", printed)
    assert re.search(r"│ mariadb 127.* │ volume +│ ([\d,]+)\.\d MiB +│ \1\.0 MiB ", printed), "of this machine's disk"
    assert "All 19 figures are right." in printed
    assert not any(name.startswith("capacity") for name in measured_postgres.sizes())
    with measured_mysql.admin() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'capacity%'")
        assert cursor.fetchall() == ()


def test_a_figure_that_is_not_the_known_one_or_not_measured_makes_it_fail(
    verify: ModuleType,
    measured_postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(verify.RECIPES["postgresql"].known, "known", verify.Known(33, 2))
    address = f"postgresql://postgres@127.0.0.1:{measured_postgres.port}/postgres"
    monkeypatch.setenv("CAPACITY_SYSTEM_DATABASES", "postgresql=capacity_known")

    status = verify.main([address])

    printed = capsys.readouterr().out
    assert status == 1
    assert re.search(r"│ size +│ 42.5 MiB +│ unknown +│ 10 % +│ WRONG │", printed)
    assert "3 of 5 figures wrong." in printed
    assert not verify.fits(verify.Known(33, 2), 32)
    assert verify.fits(verify.Known(33, 4), 32)
    assert not verify.fits(verify.Known(28, None), 27.9)


def test_every_engine_has_a_container_and_statements_of_its_own_language(verify: ModuleType) -> None:
    services = COMPOSE["services"]
    engines = {service["x-admin"].partition(":")[0] for service in services.values()}
    assert engines == set(verify.RECIPES) == set(engine_names())
    addresses = verify.chosen([])
    assert len({one.port for one in addresses}) == len(services) == len(addresses)
    assert all(service["ports"][0].startswith("127.0.0.1:") for service in services.values())
    assert {engine_named(one.engine).default_port for one in addresses} == {
        int(service["ports"][0].rpartition(":")[2]) for service in services.values()
    }
    dialects = {"sqlserver": "tsql", "oracle": "oracle"}
    for engine, dialect in dialects.items():
        recipe = verify.RECIPES[engine]
        for statement in (*recipe.fill, *recipe.asked.values()):
            sqlglot.parse_one(statement, dialect=dialect, error_level=sqlglot.ErrorLevel.RAISE)
        granted = list(verify.grants(engine, ADMIN_PASSWORD))
        assert all("capacity_verify" in one and "..." not in one for one in granted)
    assert "GRANT SELECT ON sys.dba_tables TO capacity_verify" in granted
