"""The statements for newer ClickHouse servers, run by chDB: the same engine inside a Python process, and no server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from capacity_assets.collection.engines import clickhouse
from capacity_assets.collection.engines.base import Access, MeasureError, engine_named
from tests.servers import BUILD

PYTHON = BUILD / "chdb" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="`make test-clickhouse` installs chDB and runs this")
ANSWERING = """
import json, sys
from chdb.session import Session
session = Session(sys.argv[1])
for line in sys.stdin:
    try:
        rows = str(session.query(json.loads(line), "JSONCompactEachRow")).splitlines()
        answer = {"rows": [json.loads(row) for row in rows]}
    except Exception as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""
# A second disk, and a login that has rights of its own, or all.
CONFIGURATION = """<clickhouse>
<users><default><password/><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
{rights}</default></users>
<profiles><default/></profiles><quotas><default/></quotas>
<user_directories><users_xml><path>{file}</path></users_xml></user_directories>
<storage_configuration>
<disks><cold><path>{cold}/</path><keep_free_space_bytes>1048576</keep_free_space_bytes></cold></disks>
<policies><on_cold><volumes><main><disk>cold</disk></main></volumes></on_cold></policies>
</storage_configuration>
</clickhouse>"""
ENGINE = engine_named("clickhouse")
ACCESS = Access("127.0.0.1", 8123, "default", None)


class Library:
    """Answers statements as `clickhouse.Session` does."""

    is_encrypted = False

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(query), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise clickhouse.ServerError(500, answer["error"])
        return [tuple(row) for row in answer["rows"]]

    def cursor(self) -> clickhouse.Cursor:
        return clickhouse.Cursor(self)  # type: ignore[arg-type]


@contextmanager
def library(folder: Path, rights: list[str] | None = None) -> Iterator[Library]:
    """The engine on the data in a folder, for a login with these rights, or with all."""
    (folder / "cold").mkdir(exist_ok=True)
    file = folder / "config.xml"
    given = "".join(f"<query>{right}</query>" for right in rights or ())
    file.write_text(
        CONFIGURATION.format(rights=f"<grants>{given}</grants>" if given else "", file=file, cold=folder / "cold")
    )
    command = [str(PYTHON), "-c", ANSWERING, f"{folder / 'data'}?config-file={file}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Library(process)
        finally:
            process.kill()


def documented_rights() -> list[str]:
    """The documented statements that give rights, those for limits included, without the name of the login."""
    lines = (line.removeprefix("-- ").partition(" TO ")[0] for line in ENGINE.grants.splitlines())
    return [line for line in lines if line.startswith("GRANT ")]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables on two disks, one of the Log family, and databases without tables of their own."""
    folder = tmp_path_factory.mktemp("chdb")
    with library(folder) as admin:
        for statement in (
            *(f"CREATE DATABASE {name}" for name in ("orders", "new")),
            "CREATE DATABASE files ENGINE = Filesystem('/tmp')",
            "CREATE TABLE orders.t (v UInt64) ENGINE = MergeTree ORDER BY tuple()",
            "INSERT INTO orders.t SELECT rand64() FROM numbers(1000000)",
            "CREATE TABLE orders.old (v UInt64) ENGINE = MergeTree ORDER BY v SETTINGS storage_policy = 'on_cold'",
            "INSERT INTO orders.old SELECT number FROM numbers(100000)",
            "CREATE TABLE orders.log (v UInt64) ENGINE = Log",
            "INSERT INTO orders.log SELECT rand64() FROM numbers(100000)",
        ):
            admin.rows(statement)
    return folder


def test_a_newer_clickhouse_is_measured_with_the_documented_rights(filled: Path) -> None:
    with library(filled, documented_rights()) as connection:
        with pytest.raises(clickhouse.ServerError, match="Not enough privileges"):
            connection.rows("SELECT count() FROM orders.t")
        measurement = ENGINE.sizes(connection, ACCESS, ENGINE.system_databases)
        limits = ENGINE.limits(connection, ACCESS, ["orders", "new"])
        objects = ENGINE.objects(connection, ACCESS, ["orders", "new"])
        facts = ENGINE.facts(connection)

    def on_disk(table: str) -> int:
        """Bytes of the files of a table on whatever disk; parts are folders, the Log family has files only."""
        return sum(file.stat().st_size for file in tables[table].rglob("*") if file.is_file())

    tables = {
        "t": next(path.parent for path in filled.glob("data/store/*/*/all_1_1_0")),
        "old": next(path.parent for path in filled.glob("cold/store/*/*/all_1_1_0")),
        "log": next(path.parent for path in filled.glob("data/store/*/*/v.bin")),
    }
    sizes = {one.name: one.size_bytes for one in measurement.sizes}
    assert facts.version.startswith("ClickHouse 2")
    # Some small files that only describe a part are not counted.
    assert sizes["orders"] == pytest.approx(sum(map(on_disk, tables)), abs=1_000)
    assert sizes["new"] == 0
    assert measurement.not_counted == ("files: its tables are on another server (Filesystem)",)
    [in_orders, in_new] = objects.databases
    assert {one.name: one.estimated_rows for one in in_orders.largest} == {"t": 1_000_000, "old": 100_000}
    assert in_new.largest == ()
    data, cold = str(filled / "data"), str(filled / "cold")
    total, _, free = shutil.disk_usage(filled)
    volumes = {one.name: one for one in limits.volumes}
    assert {one.database: set(one.volumes or ()) for one in limits.ceilings} == {"orders": {cold, data}, "new": {data}}
    assert volumes[data].total_bytes == total
    assert volumes[cold].total_bytes == total - 2**20
    assert volumes[cold].free_bytes == pytest.approx(free - 2**21, abs=2**28)


def test_a_login_that_does_not_see_all_tables_is_refused(filled: Path) -> None:
    rights = [right for right in documented_rights() if "SHOW TABLES" not in right]

    with (
        library(filled, [*rights, "GRANT SHOW TABLES ON orders.*"]) as connection,
        pytest.raises(MeasureError, match=r"SHOW TABLES on \*\.\* is missing"),
    ):
        ENGINE.sizes(connection, ACCESS, ENGINE.system_databases)
