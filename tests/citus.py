"""A Citus cluster for the tests, one coordinator and two workers: `CAPACITY_TEST_CITUS_BIN=/path/to/bin`.

The folder is that of the programs of a PostgreSQL that has the extension. Databases have the same name on each node, so
that copying one on every node gives a cluster of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import URL

from tests.databases import TEMPLATE, Databases
from tests.other_postgres import USER
from tests.servers import free_port

VARIABLE = "CAPACITY_TEST_CITUS_BIN"
NODES = 3
SHARDS = 4
SETTINGS = {
    "shared_preload_libraries": "citus",
    "citus.node_conninfo": "sslmode=disable",
    # A kept connection would keep a test's database from being dropped or copied.
    "citus.max_cached_conns_per_worker": "0",
    "citus.recover_2pc_interval": "-1",
    # Shards are moved while they are written to.
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "autovacuum": "off",
    "max_connections": "300",
    "max_prepared_transactions": "200",
    "max_worker_processes": "80",
    "max_locks_per_transaction": "256",
    "shared_buffers": "128MB",
}


@dataclass(frozen=True)
class CitusServer:
    """A running cluster; the first port is the coordinator's."""

    ports: tuple[int, ...]
    folder: Path
    programs: Path

    def control(self, port: int, *command: str) -> None:
        """Start or stop a node by `pg_ctl`."""
        data = self.folder / str(port)
        pg_ctl = [self.programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", *command]
        subprocess.run(pg_ctl, check=True, capture_output=True, user=USER)

    def url(self, database: str, driver: str, port: int | None = None) -> URL:
        return URL.create(driver, "postgres", host="127.0.0.1", port=port or self.ports[0], database=database)

    def on_every_node(self, statement: str, database: str = "postgres") -> None:
        for port in self.ports:
            self.on_node(port, statement, database)

    def on_node(self, port: int, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(
            host="127.0.0.1", port=port, user="postgres", dbname=database, autocommit=True
        ) as connection:
            found = connection.execute(statement.encode())
            return list(found) if found.description else []

    def join(self, database: str) -> None:
        """Make the databases of that name, one per node, a cluster."""
        self.on_every_node("CREATE EXTENSION IF NOT EXISTS citus", database)
        first, *others = self.ports
        self.on_node(first, f"SELECT citus_set_coordinator_host('127.0.0.1', {first})", database)
        for port in others:
            self.on_node(first, f"SELECT citus_add_node('127.0.0.1', {port})", database)


@contextmanager
def citus_cluster(programs: Path) -> Iterator[CitusServer]:
    """Run the cluster until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="citus-"))
    folder.chmod(0o755)
    ports = tuple(free_port() for _ in range(NODES))
    started: list[Path] = []
    try:
        for port in ports:
            data = folder / str(port)
            data.mkdir()
            if USER:
                shutil.chown(data, USER)
            initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
            subprocess.run(initdb, check=True, capture_output=True, user=USER)
            lines = [f"{name} = '{value}'\n" for name, value in SETTINGS.items()]
            lines += [f"port = {port}\n", f"unix_socket_directories = '{data}'\n"]
            with (data / "postgresql.conf").open("a") as configuration:
                configuration.writelines(lines)
            command = [programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", "start"]
            subprocess.run(command, check=True, capture_output=True, user=USER)
            started.append(data)
        yield CitusServer(ports, folder, programs)
    finally:
        for data in started:
            stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
            subprocess.run(stop, check=False, capture_output=True, user=USER)  # a test may have stopped it
        shutil.rmtree(folder)


class CitusDatabases(Databases):
    """The databases of a cluster: each is one database per node, of the same name; only the coordinator's is used."""

    server: CitusServer  # type: ignore[assignment]

    def execute(self, statement: str, **parameters: object) -> None:
        if parameters:
            super().execute(statement, **parameters)
        else:
            self.server.on_every_node(statement)

    def _create(self, name: str, template: str) -> None:
        # Citus keeps a connection of its own to each of its databases, and such a one cannot be copied.
        for port in self.server.ports:
            closed = template not in ("template0", "template1")
            if closed:
                self.server.on_node(port, f"ALTER DATABASE {template} ALLOW_CONNECTIONS false")
                self.server.on_node(port, _OTHERS.format(name=template))
            self.server.on_node(port, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
            if closed:
                self.server.on_node(port, f"ALTER DATABASE {template} ALLOW_CONNECTIONS true")

    @contextmanager
    def fresh(self, template: str = TEMPLATE) -> Iterator[URL]:
        with self.copy(template) as url:
            yield url


_OTHERS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
