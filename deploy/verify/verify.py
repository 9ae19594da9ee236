"""Measures databases of known size on real servers with the `capacity` command, and compares.

A server is an address, `ENGINE://ADMINISTRATOR@HOST:PORT/DATABASE`, or a name in compose.yaml beside this file. The
password of the administrators is in CAPACITY_VERIFY_PASSWORD. On each server a database, for Oracle a tablespace,
`capacity_known` and a login `capacity_verify` with the documented rights are made, and removed again. Samples go to an
embedded server in a temporary folder, or to the database of CAPACITY_VERIFY_DATABASE_URL; other settings do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import yaml
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from capacity_assets.base.network import ask
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import BYTES_PER_MB
from capacity_assets.collection.engines.base import engine_named
from capacity_assets.runtime import open_engine

PASSWORD = "CAPACITY_VERIFY_PASSWORD"  # noqa: S105 -- the name of a variable
DATABASE = "CAPACITY_VERIFY_DATABASE_URL"
LOGIN, NAME = "capacity_verify", "capacity_known"
START_SECONDS, PAUSE_SECONDS = 300, 3

# 4,096 rows, of which one fits a page of 8 KiB and two fit one of 16 KiB: a table of 32 MiB on every engine, and an
# index of some 3 MiB. Inserting the table into itself doubles it.
ROW = "INSERT INTO known VALUES (1, 'NOTE', 'FILLER', 'FILLER')".replace("NOTE", "n" * 700).replace(
    "FILLER", "f" * 3350
)
DOUBLE = "INSERT INTO known SELECT n + (SELECT COUNT(*) FROM known), note, filler, more FROM known"
COLUMNS = "(n int, note varchar(700), filler varchar(3350), more varchar(3350))"
ROWS = (ROW, *[DOUBLE] * 12, "CREATE INDEX known_note ON known (n, note)")
TABLE_MB, INDEX_MB, ROWS_MB = 32, 3, 28

# What was stored of a server, in bytes, by the words of `Recipe.known` and `Recipe.asked`.
MEASURED = """
SELECT f.what, CAST(sum(f.bytes) AS bigint) AS bytes
FROM (
    SELECT instance_id, 'database' AS what, size_bytes AS bytes
    FROM database_size_stats WHERE lower(database_name) = :name
    UNION ALL
    SELECT instance_id, 'used', used_size_bytes FROM database_size_stats WHERE lower(database_name) = :name
    UNION ALL
    SELECT instance_id, 'most', limit_mb * 1048576 FROM database_limit_stats WHERE lower(database_name) = :name
    UNION ALL
    SELECT instance_id, lower(object_name), size_bytes FROM object_size_stats
    WHERE lower(database_name) = :name AND lower(object_name) IN ('known', 'known_note')
    UNION ALL
    SELECT instance_id, part_kind, size_bytes FROM server_part_stats
    WHERE part_kind NOT IN ('slot', 'transaction_log') OR part_name = :name
    UNION ALL
    SELECT instance_id, 'volume', max(total_mb) * 1048576 FROM volume_size_stats GROUP BY instance_id
    UNION ALL
    SELECT instance_id, 'free', max(free_mb) * 1048576 FROM volume_size_stats GROUP BY instance_id
) f JOIN instances i ON i.id = f.instance_id
WHERE i.name = :server GROUP BY f.what
"""
TITLES = {
    "database": "size",
    "used": "used space",
    "most": "may grow to",
    "known": "table",
    "known_note": "index",
    "volume": "volume",
    "free": "free on the volume",
}


@dataclass(frozen=True)
class Known:
    """A figure in MiB that is known beforehand, and by how much the measured one may differ; None: be larger."""

    size_mb: float
    tolerance_percent: float | None = 20


OBJECTS = {"known": Known(TABLE_MB), "known_note": Known(INDEX_MB, 40)}
FILES = {"database": Known(128, 0), "used": Known(TABLE_MB + INDEX_MB), "most": Known(256, 0)}


@dataclass(frozen=True)
class Address:
    """Where a server is, and who may create databases there."""

    name: str
    engine: str
    username: str
    host: str
    port: int
    database: str

    @staticmethod
    def of(name: str, written: str) -> Address:
        """Read an address; `name` stands in tables."""
        url = urlsplit(written)
        return Address(
            name, url.scheme, url.username or "", url.hostname or "127.0.0.1", url.port or 0, url.path.lstrip("/")
        )


@dataclass(frozen=True)
class Recipe:
    """How an engine gets a database of known size, and what is to be measured of it.

    `fill` runs in the new database, `create` and `drop` beside it, where FOLDER is the answer to `folder`; `asked`
    are questions for bytes to the server itself. Documented rights that match `unfit` are not granted.
    """

    connect: Callable[[Address, str, str, str], Any]
    create: Sequence[str]
    fill: Sequence[str]
    drop: Sequence[str]
    known: Mapping[str, Known]
    asked: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    unfit: str = "$^"
    volume: bool = False


def connect_postgresql(address: Address, username: str, password: str, database: str) -> Any:
    """Connect, without transactions."""
    import psycopg

    return psycopg.connect(
        host=address.host, port=address.port, user=username, password=password, dbname=database, autocommit=True
    )


def connect_mysql(address: Address, username: str, password: str, database: str) -> Any:
    """Connect, without transactions; the password is encrypted with the key that the server sends."""
    import pymysql

    return pymysql.connect(
        host=address.host,
        port=address.port,
        user=username,
        password=password,
        database=database or None,
        autocommit=True,
    )


def connect_sqlserver(address: Address, username: str, password: str, database: str) -> Any:
    """Connect, without transactions."""
    import pytds

    return pytds.connect(
        server=address.host, port=address.port, user=username, password=password, database=database, autocommit=True
    )


def connect_oracle(address: Address, username: str, password: str, _database: str) -> Any:
    """Connect to the service, as SYSDBA where it is SYS, without transactions."""
    import oracledb

    mode = oracledb.AUTH_MODE_SYSDBA if username == "sys" else oracledb.AUTH_MODE_DEFAULT
    connection = oracledb.connect(
        user=username,
        password=password,
        host=address.host,
        port=address.port,
        service_name=address.database,
        mode=mode,
    )
    connection.autocommit = True
    return connection


class ClickHouseAdministrator:
    """A connection of which `rows_of` makes use: each statement is a request, which may write."""

    description: Any = None

    def __init__(self, address: Address, username: str, password: str, database: str) -> None:
        self._url = f"http://{address.host}:{address.port}/?database={database or 'default'}"
        self._login = {"X-ClickHouse-User": username, "X-ClickHouse-Key": password}
        self.execute("SELECT 1")

    def cursor(self) -> ClickHouseAdministrator:
        """Return itself, which is never closed."""
        return self

    def execute(self, statement: str) -> None:
        """Run a statement, and forget its answer."""
        answer = ask(self._url, seconds=60, body=statement.encode(), headers=self._login, most_bytes=1000)
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(answer.body.decode())

    def close(self) -> None:
        """Do nothing."""


MYSQL = Recipe(
    connect_mysql,
    create=["CREATE DATABASE capacity_known"],
    fill=[f"CREATE TABLE known {COLUMNS} CHARACTER SET latin1", *ROWS, "ANALYZE TABLE known"],
    drop=["DROP DATABASE IF EXISTS capacity_known", "DROP USER IF EXISTS 'capacity_verify'@'%'"],
    # Files grow by up to 4 MiB, and pages are filled to some 90 %.
    known={
        "database": Known(39, 25),
        "used": Known(37, 20),
        "known": Known(36, 20),
        "known_note": Known(INDEX_MB, 40),
    },
    asked={"redo": "SELECT @@innodb_redo_log_capacity", "binary_log": f"SELECT @@log_bin * {ROWS_MB} * 1048576"},
)
RECIPES = {
    "mysql": MYSQL,
    "mariadb": replace(
        MYSQL,
        create=[*MYSQL.create, "GRANT REPLICA MONITOR ON *.* TO 'capacity_verify'@'%'"],
        # As MySQL does; by default the log has the statements.
        fill=["SET SESSION binlog_format = 'ROW'", *MYSQL.fill],
        asked={**MYSQL.asked, "redo": "SELECT @@innodb_log_file_size"},
        volume=True,
    ),
    "postgresql": Recipe(
        connect_postgresql,
        # The slot retains the WAL of what is filled in.
        create=["SELECT pg_create_physical_replication_slot('capacity_known', true)", "CREATE DATABASE capacity_known"],
        fill=[
            f"CREATE TABLE known {COLUMNS}",
            "ALTER TABLE known ALTER note SET STORAGE PLAIN, ALTER filler SET STORAGE PLAIN, "
            "ALTER more SET STORAGE PLAIN",
            *ROWS,
            "ANALYZE known",
        ],
        drop=[
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'capacity_known'",
            "DROP DATABASE IF EXISTS capacity_known",
            "DROP ROLE IF EXISTS capacity_verify",
        ],
        # An empty database takes between 7 and 8.
        known={
            "database": Known(7.5 + TABLE_MB + INDEX_MB, 10),
            "slot": Known(ROWS_MB, None),
            "wal": Known(ROWS_MB, None),
            **OBJECTS,
        },
        unfit="ON DATABASE|system_stats",
    ),
    "clickhouse": Recipe(
        ClickHouseAdministrator,
        create=["CREATE DATABASE capacity_known"],
        # Random numbers, which cannot be compressed.
        fill=[
            "CREATE TABLE known (v UInt64) ENGINE = MergeTree ORDER BY tuple()",
            "INSERT INTO known SELECT rand64() FROM numbers(4194304)",
        ],
        drop=["DROP DATABASE IF EXISTS capacity_known SYNC", "DROP USER IF EXISTS capacity_verify"],
        known={"database": Known(TABLE_MB, 5), "known": Known(TABLE_MB, 5)},
        volume=True,
    ),
    "sqlserver": Recipe(
        connect_sqlserver,
        create=[
            "CREATE DATABASE capacity_known",
            "ALTER DATABASE capacity_known MODIFY FILE (NAME = capacity_known, SIZE = 128MB, MAXSIZE = 256MB)",
            "ALTER DATABASE capacity_known MODIFY FILE (NAME = capacity_known_log, SIZE = 256MB)",
        ],
        fill=[f"CREATE TABLE known {COLUMNS}", *ROWS],
        drop=["DROP DATABASE IF EXISTS capacity_known", "DROP LOGIN capacity_verify"],
        known={**FILES, **OBJECTS, "transaction_log": Known(256, 0), "temporary": Known(1, None)},
        volume=True,
    ),
    "oracle": Recipe(
        connect_oracle,
        create=[
            "CREATE TABLESPACE capacity_known DATAFILE 'FOLDERcapacity_known.dbf' SIZE 128M "
            "AUTOEXTEND ON NEXT 16M MAXSIZE 256M",
            "CREATE USER capacity_known NO AUTHENTICATION QUOTA UNLIMITED ON capacity_known",
        ],
        fill=[
            "ALTER SESSION SET CURRENT_SCHEMA = capacity_known",
            f"CREATE TABLE known {COLUMNS} TABLESPACE capacity_known PCTFREE 0",
            *ROWS[:-1],
            f"{ROWS[-1]} TABLESPACE capacity_known",
        ],
        drop=[
            "DROP USER capacity_known CASCADE",
            "DROP TABLESPACE capacity_known INCLUDING CONTENTS AND DATAFILES",
            "DROP USER capacity_verify",
        ],
        known={**FILES, **OBJECTS, "temporary": Known(1, None)},
        asked={"redo": "SELECT SUM(bytes * members) FROM v$log"},
        folder="SELECT REGEXP_SUBSTR(MIN(file_name), '^.*/') FROM dba_data_files",
    ),
}


def grants(engine: str, password: str) -> Iterator[str]:
    """Yield the documented statements that make the login, those for further rights included."""
    for line in engine_named(engine).grants.replace("capacity_probe", LOGIN).replace("...", password).split("\n"):
        statement, _, rest = line.removeprefix("-- ").partition(";")
        if statement.startswith(("CREATE ", "GRANT ")) and not re.search(RECIPES[engine].unfit, statement):
            yield statement
            yield from (statement.replace("dba_segments", also) for also in re.findall(r"dba_\w+", rest))


def rows_of(connection: Any, statement: str) -> list[Any]:
    """Run a statement, and return its rows, if it has any."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def opened(address: Address, password: str) -> Any:
    """Connect as the administrator, once the server has started."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return RECIPES[address.engine].connect(address, address.username, password, address.database)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)


def dropped(connection: Any, recipe: Recipe) -> None:
    """Remove what may have been made; what is not there is no error."""
    for statement in recipe.drop:
        with suppress(Exception):
            rows_of(connection, statement)


@contextmanager
def filled(address: Address, password: str) -> Iterator[dict[str, Known]]:
    """Make the database and the login; yields the figures to be measured, and removes both afterwards."""
    recipe = RECIPES[address.engine]
    with closing(opened(address, password)) as connection:
        dropped(connection, recipe)
        try:
            [[folder]] = rows_of(connection, recipe.folder) if recipe.folder else [[""]]
            for statement in [*grants(address.engine, password), *recipe.create]:
                rows_of(connection, statement.replace("FOLDER", folder or ""))
            with closing(recipe.connect(address, address.username, password, NAME)) as inside:
                for statement in recipe.fill:
                    rows_of(inside, statement)
            # MySQL asks for the password itself at the first login, which the collection refuses without TLS.
            recipe.connect(
                address, LOGIN, password, "" if recipe.connect is connect_mysql else address.database
            ).close()
            asked = {what: float(rows_of(connection, query)[0][0]) for what, query in recipe.asked.items()}
            yield {
                **recipe.known,
                **{
                    what: Known(answer / BYTES_PER_MB, None if what == "binary_log" else 5)
                    for what, answer in asked.items()
                },
            }
        finally:
            dropped(connection, recipe)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `capacity`."""
    run = [sys.executable, "-m", "capacity_assets.cli", *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=False)  # noqa: S603 -- our own program


def measured(addresses: Sequence[Address], folder: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Register and measure the servers; return what was stored of each in MiB, and what the command says is unknown."""
    listed = folder / "servers.toml"
    listed.write_text(
        "".join(
            f'[[servers]]\nname = "{one.name}"\nengine = "{one.engine}"\nhost = "{one.host}"\nport = {one.port}\n'
            f'username = "{LOGIN}"\npassword_from = "env:{PASSWORD}"\n'
            + (f'database = "{one.database}"\n' if one.database else "")
            for one in addresses
        )
    )
    for arguments in (["init"], ["instances", "import", str(listed)]):
        done = command(*arguments)
        if done.returncode:
            sys.exit(f"capacity {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    done = command("collect", "--again", "--json", *(one.name for one in addresses))
    try:
        said = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"capacity collect failed:\n{done.stdout}{done.stderr}")
    lists = ("errors", "unknown_used", "unknown_limits", "unknown_parts", "unknown_objects")
    notes = [note for name in lists for note in said[name]]
    with open_engine(Settings()) as engine, engine.connect() as connection:
        return {
            one.name: {
                what: size_bytes / BYTES_PER_MB
                for what, size_bytes in connection.execute(text(MEASURED), {"server": one.name, "name": NAME})
                if size_bytes is not None
            }
            for one in addresses
        }, notes


def fits(known: Known, found: float | None) -> bool:
    """Whether a measured figure is the known one."""
    if found is None:
        return known.size_mb == 0
    if known.tolerance_percent is None:
        return found >= known.size_mb
    # The legacy columns are whole MiB.
    return abs(found - known.size_mb) <= known.size_mb * known.tolerance_percent / 100 + 1 / 1024


def chosen(names: Iterable[str]) -> list[Address]:
    """Return the servers by address or by name of a service; all services without any."""
    services = yaml.safe_load((Path(__file__).parent / "compose.yaml").read_text())["services"]
    addresses = []
    for name in names or services:
        if "://" in name:
            url = urlsplit(name)
            addresses.append(Address.of(f"{url.scheme} {url.hostname}:{url.port}", name))
            continue
        if name not in services:
            sys.exit(f"No server {name!r} in compose.yaml. There are {', '.join(services)}.")
        host, port, _ = services[name]["ports"][0].split(":")
        addresses.append(Address.of(name, services[name]["x-admin"].replace("@", f"@{host}:{port}")))
    return addresses


def own_settings(folder: str) -> dict[str, str]:
    """Return the variables of this process with settings of its own: never those of an installation."""
    foreign = re.compile("CAPACITY_(?!VERIFY_|TEST_)")
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    database = {"CAPACITY_DATABASE_URL": kept[DATABASE]} if DATABASE in kept else {}
    return {**kept, **database, "CAPACITY_HOME": folder, "CAPACITY_OBJECTS": "all"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, measure, compare; return 0 if every figure fits, otherwise 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="*", metavar="SERVER")
    parser.add_argument("--disk", type=Path, help="a folder here on the file system where the servers have their data")
    options = parser.parse_args(arguments)
    disk = options.disk and disk_usage(options.disk).total / BYTES_PER_MB
    addresses, password = chosen(options.servers), os.environ.get(PASSWORD)
    if not password:
        parser.error(f"{PASSWORD} is not set: the password of the administrators")
    with TemporaryDirectory(prefix="capacity-verify-") as folder, ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, own_settings(folder), clear=True))
        # A file .env in the folder of the caller would count.
        stack.enter_context(chdir(folder))
        expected = {one.name: stack.enter_context(filled(one, password)) for one in addresses}
        found, notes = measured(addresses, Path(folder))
    table = Table("Server", "Figure", "Known", "Measured", "Tolerance", "")
    wrong = 0
    for one in addresses:
        figures = dict(expected[one.name])
        if RECIPES[one.engine].volume:
            figures["volume"] = Known(disk, 1) if disk else Known(1, None)
            figures["free"] = Known(1, None)
        for what, known in figures.items():
            mb = found[one.name].get(what)
            right = fits(known, mb)
            wrong += not right
            least = known.tolerance_percent is None
            table.add_row(
                one.name,
                TITLES.get(what, what.replace("_", " ")),
                f"{'at least ' if least else ''}{known.size_mb:,.1f} MiB",
                "unknown" if mb is None else f"{mb:,.1f} MiB",
                "" if least else f"{known.tolerance_percent:g} %",
                "ok" if right else "WRONG",
            )
    console = Console(width=120, markup=False)
    console.print(table)
    for note in notes:
        console.print(note)
    print(f"{wrong} of {table.row_count} figures wrong." if wrong else f"All {table.row_count} figures are right.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
