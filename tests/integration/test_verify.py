"""deploy/verify compares what is measured with known sizes: here on the servers of the tests instead of Docker's."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import sqlglot
import yaml
from sqlalchemy import URL

from capacity_assets.collection.engines.base import engine_named, engine_names
from tests.documents import ROOT
from tests.forked import run_forked
from tests.mysql_servers import MariaDBServer, MySQLServer
from tests.servers import ADMIN_PASSWORD, PostgresServer

FOLDER = ROOT / "deploy" / "verify"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())


@pytest.fixture
def verify(database: URL, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, on a capacity database of the tests. Settings of an installation would make it fail."""
    spec = importlib.util.spec_from_file_location("verify", FOLDER / "verify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "verify", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        module, "command", lambda *arguments: run_forked(*arguments, environment=os.environ, timeout=60)
    )
    monkeypatch.setenv("CAPACITY_VERIFY_PASSWORD", ADMIN_PASSWORD)
    monkeypatch.setenv("CAPACITY_VERIFY_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/fleet")
    monkeypatch.setenv("CAPACITY_COLLECTION", "off")
    return module


@pytest.mark.nightly("creates databases on three servers")
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


@pytest.mark.nightly("creates databases on a further server")
def test_a_database_that_is_not_of_the_known_size_makes_it_fail(
    verify: ModuleType,
    measured_postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = verify.RECIPES["postgresql"]
    monkeypatch.setitem(verify.RECIPES, "postgresql", replace(recipe, fill=recipe.fill[:1]))

    status = verify.main([f"postgresql://postgres@127.0.0.1:{measured_postgres.port}/postgres"])

    printed = capsys.readouterr().out
    assert status == 1
    assert re.search(r"│ size +│ 42.5 MiB +│ [78].\d MiB +│ 10 % +│ WRONG │", printed)
    assert re.search(r"│ table +│ 32.0 MiB +│ unknown +│ 20 % +│ WRONG │", printed)
    assert re.search(r"│ index +│ 3.0 MiB +│ unknown +│ 40 % +│ WRONG │", printed)
    assert re.search(r"\n[45] of 5 figures wrong.", printed)


def test_without_docker_it_says_what_to_install_and_what_works_without(tmp_path: Path) -> None:
    shell, dirname = shutil.which("sh"), shutil.which("dirname")
    assert shell is not None
    assert dirname is not None
    (tmp_path / "dirname").symlink_to(dirname)
    done = subprocess.run(
        [shell, FOLDER / "run", "mysql-9"],
        env={"PATH": str(tmp_path), "PYTHON": "venv/python"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "Docker with Compose was not found." in done.stderr
    assert f"venv/python {FOLDER}/verify.py ENGINE://ADMINISTRATOR@HOST:PORT/DATABASE" in done.stderr


@pytest.mark.parametrize(
    ("known", "measured", "right"),
    [
        ((33, 2), 32, False),
        ((33, 4), 32, True),
        ((28, None), 27.9, False),
        ((28, None), 28, True),
        ((0, None), None, True),
    ],
)
def test_a_figure_is_right_within_its_tolerance(
    verify: ModuleType, known: tuple[float, float | None], measured: float | None, *, right: bool
) -> None:
    assert verify.fits(verify.Known(*known), measured) is right


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
    dialects = {"clickhouse": "clickhouse", "sqlserver": "tsql", "oracle": "oracle"}
    for engine, dialect in dialects.items():
        recipe = verify.RECIPES[engine]
        for statement in (*recipe.fill, *recipe.asked.values()):
            sqlglot.parse_one(statement, dialect=dialect, error_level=sqlglot.ErrorLevel.RAISE)
        granted = list(verify.grants(engine, ADMIN_PASSWORD))
        assert all("capacity_verify" in one and "..." not in one for one in granted)
    assert "GRANT SELECT ON sys.dba_tables TO capacity_verify" in granted
