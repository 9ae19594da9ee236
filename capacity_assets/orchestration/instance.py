"""The environment of Dagster: running databases, a home with the shipped configuration, and its processes.

`capacity up` runs code server, web server, daemon and the pages as one process group: not `dagster dev`, whose web
server answers requests from pages of any site; see `orchestration.webserver`.

Commands that only read import this module, so it imports Dagster inside functions.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import NoSuchTableError

from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, reason_of
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import CAPACITY_DRIVER, DAGSTER_DRIVER, Settings, env_file_values
from capacity_assets.database.embedded import FolderRefusedError, own_folder, socket_folder
from capacity_assets.database.engine import CONNECT_TIMEOUT_SECONDS, UnreachableError, disposed, ensure_reachable
from capacity_assets.runtime import open_dagster_database

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster_postgres import DagsterPostgresStorage

# Events, not SQL, dominate a long backfill: writing them in batches halves that share.
EVENT_BATCH_SIZE = "100"


@contextmanager
def dagster_environment(
    settings: Settings, *, home: Path | None = None, sql_port: int | None = None
) -> Iterator[dict[str, str]]:
    """Yield the environment for Dagster processes; if needed, the embedded server runs during the block.

    `home` is a temporary folder for Dagster's files, if they are not to be kept; `sql_port` as for `embedded_server`.

    Raises:
        CapacityError: other users can write to the folder of the data, or Dagster's.
        EmbeddedServerError: the embedded server did not start.
        UnreachableError: the server named in DAGSTER_POSTGRES_URL does not answer.
    """
    with ExitStack() as stack:
        capacity_url, dagster_url = settings.capacity_url, settings.dagster_url
        if dagster_url is not None:
            _ensure_dagster_storage(dagster_url)
        if capacity_url is None or dagster_url is None:
            from capacity_assets.database.embedded import CAPACITY_DATABASE, DAGSTER_DATABASE, embedded_server

            server = stack.enter_context(embedded_server(settings.postgres_data, sql_port))
            capacity_url = capacity_url or server.url(CAPACITY_DATABASE, CAPACITY_DRIVER)
            dagster_url = dagster_url or server.url(DAGSTER_DATABASE, DAGSTER_DRIVER)
        home = home or kept_home(settings)
        shutil.copyfile(shipped_file("dagster.yaml"), home / "dagster.yaml")
        yield {
            # It may contain passwords of servers under any name; the child is started in another folder.
            **env_file_values(),
            **os.environ,
            **settings.as_environment(),
            "CAPACITY_DATABASE_URL": _plain(capacity_url),
            "DAGSTER_POSTGRES_URL": _plain(dagster_url),
            "DAGSTER_HOME": str(home),
            # Processes import nothing from their working directory.
            "PYTHONSAFEPATH": "1",
            "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", EVENT_BATCH_SIZE),
        }


@contextmanager
def dagster_instance(environment: dict[str, str]) -> Iterator[DagsterInstance]:
    """Yield Dagster's instance for an environment, its tables created and each pool's limit set.

    The instance reads its storage from the process's environment, which has these values for the length of the block.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with _open_instance(environment["DAGSTER_HOME"]) as instance:
            yield instance
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def dagster_storage(settings: Settings) -> Iterator[DagsterPostgresStorage]:
    """Yield Dagster's storage for looking: it is opened without creating tables.

    Raises:
        EmbeddedServerError: the embedded server did not start.
        UnreachableError: the server named in DAGSTER_POSTGRES_URL does not answer, or Dagster has no tables there yet.
    """
    from capacity_assets.orchestration.private import PooledPostgresStorage

    with open_dagster_database(settings) as url:
        _ensure_dagster_storage(url)
        storage = PooledPostgresStorage(_plain(url), should_autocreate_tables=False)
        try:
            yield storage
        except NoSuchTableError:
            raise UnreachableError("Dagster has no tables here yet: `capacity up` creates them.") from None
        finally:
            storage.run_storage.dispose()


def _open_instance(home: str) -> DagsterInstance:
    from alembic.util import CommandError
    from dagster import DagsterInstance

    from capacity_assets.orchestration.graph import set_pool_limits

    try:
        instance = DagsterInstance.from_config(home)
        set_pool_limits(instance.event_log_storage, PERIODS.values(), len(Settings().collection_shares))
    except CommandError:
        raise CapacityError(
            "The database named in DAGSTER_POSTGRES_URL holds the alembic version of another application, which "
            "Dagster takes for its own. The capacity tables were not touched. Give Dagster a database of its own."
        ) from None
    except DATABASE_FAILURES as error:
        raise CapacityError(
            f"Dagster's tables cannot be created in the database named in DAGSTER_POSTGRES_URL: {reason_of(error)}. "
            "The capacity tables were not touched. Its role must own that database, or may create tables there."
        ) from None
    return instance


def _ensure_dagster_storage(url: URL) -> None:
    """Report an unreachable server before Dagster reports it with a traceback."""
    with disposed(create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})) as engine:
        ensure_reachable(engine, "DAGSTER_POSTGRES_URL")


def kept_home(settings: Settings) -> Path:
    """Return Dagster's home, created if missing; raises CapacityError if other users can write to it."""
    try:
        for folder in (settings.home.resolve(), settings.dagster_home):
            own_folder(folder)
    except FolderRefusedError as error:
        raise CapacityError(str(error)) from None
    return settings.dagster_home


def shipped_file(name: str) -> Path:
    """Return `dagster.yaml` or `workspace.yaml`, in a checkout or a wheel; raises CapacityError if it is missing."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "shipped" / name, package.parent / name):
        if candidate.is_file():
            return candidate
    raise CapacityError(f"This installation lacks its {name}. Install capacity_assets again.")


def _plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


# Runs a module with rare garbage collection.
STARTER = "capacity_assets.base.process"
LOCATION, DEFINITIONS = "capacity_assets", "capacity_assets.definitions"
CODE_SOCKET = "code.sock"
CODE_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30
POLL_SECONDS = 0.5
STOP_POLL_SECONDS = 0.1
KILLED_SECONDS = 5
"""How long killed processes may take to end and to release their resources."""
REPORT_SECONDS = 3


class ProcessesError(CapacityError):
    """The processes cannot be started in this folder; the text says why and what to do."""


@dataclass
class Processes:
    """Code server, web server, daemon and pages in a separate process group: Ctrl-C reaches only `capacity up`."""

    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], lock: IO[str]
    ) -> None:
        """Start a process; the first one leads the group."""
        process = subprocess.Popen(  # noqa: S603 -- fixed program and arguments
            [sys.executable, "-m", STARTER, *arguments],
            # In another folder Dagster might read a .env file, which overrides the environment.
            cwd=environment["DAGSTER_HOME"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=self.group if self.running else 0,
            pass_fds=[lock.fileno()],
        )
        self.running[name] = process

    @property
    def group(self) -> int:
        """The number of the process group."""
        return next(iter(self.running.values())).pid

    @property
    def ended(self) -> str | None:
        """The first process that has ended, as `The daemon ended with code 1.`; None: all are running."""
        for name, process in self.running.items():
            if (code := process.poll()) is not None:
                how = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
                return f"{name[0].upper()}{name[1:]} {how}."
        return None

    def end(self, report: Callable[[str], None]) -> None:
        """Interrupt each process, the code server last, then end the group; `report` gets a text if that takes long."""
        for process in reversed(self.running.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        self._wait(report)
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal_group(number)
        for process in self.running.values():
            process.wait()

    def _wait(self, report: Callable[[str], None]) -> None:
        started = time.monotonic()
        report_at = REPORT_SECONDS
        while (waited := time.monotonic() - started) < STOP_TIMEOUT_SECONDS:
            names = [name for name, process in self.running.items() if process.poll() is None]
            if not names:
                return
            if waited >= report_at:
                # The terminal may be closed; the processes must still end.
                with suppress(OSError):
                    report(f"Waiting for {', '.join(names)}: {STOP_TIMEOUT_SECONDS - waited:.0f} s at most ...")
                report_at += REPORT_SECONDS
            time.sleep(STOP_POLL_SECONDS)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.group, number)
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while _group_remains(self.group) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            self.ended  # noqa: B018 -- collects processes that ended, which would remain as zombies


def _open_no_link(path: Path, mode: str) -> IO[Any]:
    """Open a file in the data folder; raises ProcessesError if it is a symbolic link."""
    try:
        return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ProcessesError(f"{path} is a symbolic link. Remove the link.") from None


@contextmanager
def folder_lock(settings: Settings) -> Iterator[IO[str]]:
    """Refuse a second `capacity up` on the same folder: two daemons would launch every run twice.

    Dagster's processes inherit the lock and hold it until they end, even if this process is killed.
    """
    home = kept_home(settings)
    with _open_no_link(home / "up.lock", "a+") as lock:
        deadline = time.monotonic() + KILLED_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().split()
                if _is_up(*holder[:1]) or time.monotonic() > deadline:
                    raise ProcessesError(_holder_text(home, holder)) from None
            time.sleep(POLL_SECONDS)
        lock.truncate(0)
        # The process group of Dagster is appended when it has started.
        lock.write(f"{os.getpid()} ")
        lock.flush()
        yield lock


def _holder_text(home: Path, words: Sequence[str]) -> str:
    """Describe the holder of the lock: its process, Dagster's process group and, once it serves, its address."""
    process, group, *address = (*words, "unknown", "unknown")[: max(len(words), 2)]
    at = f", at {address[0]}" if address else ""
    if _is_up(process):
        return (
            f"Another `capacity up` (process {process}) serves {home.parent} already. Use that one{at}, or "
            "set CAPACITY_HOME to another folder."
        )
    return (
        f"An earlier `capacity up` was killed, and its Dagster processes (group {group}) are still running. End them "
        f"with `kill -- -{group}`, wait ten seconds, and run this command again."
    )


def _is_up(process: str = "unknown") -> bool:
    try:
        return b"\0up" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def dagster_processes(  # noqa: PLR0913, PLR0917 -- what the processes need
    workspace: Path,
    environment: Mapping[str, str],
    others: Mapping[str, Sequence[str]],
    log: Path,
    lock: IO[str],
    report: Callable[[str], None],
) -> Iterator[Processes]:
    """Run a code server and the `others`, each a module with its arguments, and end them in order.

    `workspace` is the file in Dagster's home that names the code server, `log` the file of all output. The number of
    the process group is appended to `lock`. `report` gets a text if ending takes long.
    """
    code = socket_folder(workspace.parent, CODE_SOCKET) / CODE_SOCKET
    code.unlink(missing_ok=True)
    target = {"socket": str(code), "location_name": LOCATION}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": target}]}), encoding="utf-8")
    # Not `code-server start`: its inner server exits if a pause, such as a sleeping laptop, delays its heartbeat, and
    # is not restarted.
    code_server = ["dagster", "api", "grpc", "--socket", str(code), "--location-name", LOCATION, "-m", DEFINITIONS]
    processes = Processes()
    with _open_no_link(log, "wb") as output:
        try:
            processes.start("the code server", code_server, environment, output, lock)
            lock.write(str(processes.group))
            lock.flush()
            _wait_for_code(processes, code)
            # The group of a code server that has ended cannot be joined; waiting for the web server reports why.
            for name, arguments in others.items() if not processes.ended else ():
                processes.start(name, arguments, environment, output, lock)
            yield processes
        finally:
            if processes.running:
                processes.end(report)
            # Later commands must not contact a code location that is no longer served.
            workspace.unlink(missing_ok=True)


def _wait_for_code(processes: Processes, code: Path) -> None:
    """Wait for the code server: without it the web server first shows a page without assets.

    Returns also if it has ended or takes too long; waiting for the web server reports that.
    """
    from capacity_assets.orchestration.private import DagsterGrpcClient, DagsterUserCodeUnreachableError

    client = DagsterGrpcClient(socket=str(code))
    deadline = time.monotonic() + CODE_TIMEOUT_SECONDS
    while not processes.ended and time.monotonic() < deadline:
        try:
            client.ping("")
        except DagsterUserCodeUnreachableError:
            time.sleep(POLL_SECONDS)
        else:
            return


def _group_remains(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
