"""MySQL and MariaDB to be measured: real ones that a test may load, freeze and kill."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pymysql
import pytest
from fasteners import InterProcessLock

from tests.certificates import Certificates
from tests.servers import (
    BUILD,
    TEMPLATES,
    USER,
    certificates_in,
    free_port,
    own_folder,
    wait_for_server,
)


@dataclass
class MariaDBServer:
    """A MariaDB on loopback; root has no password."""

    folder: Path
    port: int
    certificates: Certificates
    tls: bool = True
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = field(default=None)

    def command(self) -> list[str]:
        return [
            *[_mariadb_program("mariadbd"), "--no-defaults", f"--datadir={self.folder / 'data'}"],
            *[f"--socket={self.folder / 'socket'}", f"--port={self.port}", "--bind-address=127.0.0.1"],
            *["--innodb-buffer-pool-size=16M", f"--pid-file={self.folder / 'pid'}", *self._tls()],
            *self.options,
            *([f"--plugin-dir={MARIADB_PLUGINS}"] if MARIADB_PLUGINS.exists() else []),
        ]

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command(),
            user=USER,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # The driver leaves a socket open that was refused, so it is not asked before somebody listens.
        wait_for_server(lambda: socket.create_connection(("127.0.0.1", self.port)).close(), ConnectionError)
        wait_for_server(lambda: self.admin().close(), pymysql.err.Error)

    def _tls(self) -> list[str]:
        files = self.certificates
        return [f"--ssl-cert={files.certificate}", f"--ssl-key={files.key}"] if self.tls else ["--skip-ssl"]

    def admin(self) -> pymysql.connections.Connection:
        return pymysql.connect(unix_socket=str(self.folder / "socket"), user="root", autocommit=True, charset="utf8mb4")

    def execute(self, *statements: str) -> None:
        with self.admin() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def file_sizes(self, *endings: str, allocated: bool = False) -> dict[str, int]:
        """Bytes of the files by folder, those of InnoDB unless told otherwise, read from the disk."""
        return {
            folder.name: sum(
                file.stat().st_blocks * 512 if allocated else file.stat().st_size
                for ending in endings or ("ibd",)
                for file in folder.glob(f"*.{ending}")
            )
            for folder in (self.folder / "data").iterdir()
            if folder.is_dir()
        }

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)


@dataclass
class MySQLServer(MariaDBServer):
    """A MySQL on loopback, from the folder that tests/fetch_server.sh filled; root has no password."""

    def command(self) -> list[str]:
        return [
            *[str(_mysql_program()), f"--datadir={self.folder / 'data'}", "--bind-address=127.0.0.1"],
            *[f"--socket={self.folder / 'socket'}", f"--port={self.port}", f"--pid-file={self.folder / 'pid'}"],
            *["--mysqlx=OFF", "--innodb-buffer-pool-size=64M", "--innodb-redo-log-capacity=16M"],
            *(["--user=root"] if os.geteuid() == 0 and USER is None else []),
            *self._tls(),
        ]

    def _tls(self) -> list[str]:
        files = self.certificates
        return [f"--ssl-cert={files.certificate}", f"--ssl-key={files.key}"] if self.tls else ["--tls-version="]


Kind = TypeVar("Kind", bound=MariaDBServer)


MYSQL_FOLDER = BUILD / "mysql"


MARIADB_PLUGINS = BUILD / "mariadb" / "usr" / "lib" / "mysql" / "plugin"


def _mysql_program() -> Path:
    program = MYSQL_FOLDER / "mysqld"
    if not program.exists():
        pytest.skip("no MySQL here; see tests/install_servers.sh")
    return program


@contextmanager
def mysql_server(*, tls: bool = True) -> Iterator[MySQLServer]:
    program = _mysql_program()
    with _initialised(MySQLServer, [program, "--initialize-insecure"], tls=tls) as server:
        yield server


def _mariadb_program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.skip("no MariaDB here; see tests/install_servers.sh")
    return found


@contextmanager
def mariadb_server(*arguments: str, tls: bool = True) -> Iterator[MariaDBServer]:
    install = _mariadb_program("mariadb-install-db")
    _mariadb_program("mariadbd")
    options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
    with _initialised(MariaDBServer, [install, *options], tls=tls, options=arguments) as server:
        yield server


@contextmanager
def _initialised(
    kind: type[Kind], command: list[str | Path], *, tls: bool, options: Sequence[str] = ()
) -> Iterator[Kind]:
    """A server of MariaDB's family whose data folder the command makes; stopped and removed at the end."""
    folder = own_folder(f"measured-{kind.__name__.lower()}-")
    try:
        certificates = certificates_in(folder)
        subprocess.run(["cp", "-a", _data_folder(kind.__name__.lower(), command), folder / "data"], check=True)  # noqa: S607
        server = kind(folder, free_port(), certificates, tls, options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)


def _data_folder(name: str, command: list[str | Path]) -> Path:
    """A data folder to copy: the first of the test processes makes it, which takes seconds."""
    templates = Path(os.environ[TEMPLATES])
    with InterProcessLock(templates / f"{name}.lock"):
        if not (templates / name).exists():
            made = templates / f"{name}-unfinished"
            making = [*command, f"--datadir={made}"]
            subprocess.run(making, check=True, capture_output=True, user=USER, cwd=templates)
            # By it, two servers would be taken for one.
            (made / "auto.cnf").unlink(missing_ok=True)
            made.rename(templates / name)
    return templates / name
