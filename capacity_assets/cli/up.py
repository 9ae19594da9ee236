"""`capacity up`: the pages and Dagster in the foreground.

It starts the processes with their databases and home, waits until the UI answers, reports runs and late
windows, and stops everything. The output of the processes goes to a log file.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, tzinfo
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import click

from capacity_assets.aggregates.ledger import IncompleteWindow
from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, DatabaseError, ValidationError, reason_of
from capacity_assets.base.network import UnansweredError, ask
from capacity_assets.base.settings import Settings
from capacity_assets.cli import status
from capacity_assets.cli.options import CommandFailedError, command, is_ignored, say
from capacity_assets.cli.serve import HOST, refuse_a_taken_port
from capacity_assets.cli.status import ActiveRun
from capacity_assets.database import embedded
from capacity_assets.database.embedded import CAPACITY_DATABASE, EmbeddedServerError
from capacity_assets.database.engine import UnreachableError, safe_url
from capacity_assets.database.locks import LockUnavailableError, ask_redis
from capacity_assets.database.schema import schema_revision
from capacity_assets.database.tables import SCHEMA_REVISION
from capacity_assets.database.views import READER_ROLE
from capacity_assets.history.retention import parse_retention
from capacity_assets.orchestration.instance import (
    POLL_SECONDS,
    Processes,
    dagster_environment,
    dagster_instance,
    dagster_processes,
    dagster_storage,
    folder_lock,
)
from capacity_assets.orchestration.private import DagsterPostgresException
from capacity_assets.runtime import open_engine, open_reading_engine, open_task_runner, prepare_database

START_TIMEOUT_SECONDS = 120
READING_SECONDS = 2
READINGS_PER_CHECK_FOR_LATE = 15
LOG_LINES_SHOWN = 15
MOST_RESTARTS, RESTARTS_WITHIN_SECONDS = 3, 3600
# SIGHUP arrives when the terminal is closed or its connection lost.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ANSWER_SECONDS = 5
PROBED_PATHS = {"Dagster UI": "server_info", "Pages": "static/style.css"}


class StopRequestedError(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived; not an `Exception`, which libraries would wrap."""


@click.command()
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65534), help="Port of the UI.")
@click.option("--pages-port", type=click.IntRange(1, 65535), help="Port of the pages. Default: the next one.")
@click.option(
    "--sql-port",
    type=click.IntRange(1024, 65535),
    help="Port on which BI tools read the embedded server, on this machine and with a password. Default: none.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST:PORT",
    help="Additional host and port in browsers, for example of a proxy.",
)
@click.option(
    "--workspace",
    "further",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Workspace file of your own code locations, which are also served.",
)
@command
def up(
    settings: Settings,
    /,
    *,
    port: int,
    pages_port: int | None,
    sql_port: int | None,
    names: Sequence[str],
    further: Path | None,
) -> None:
    """Serve the pages and Dagster (UI and daemon) until Ctrl-C.

    Everything listens on 127.0.0.1. Also starts the embedded server, unless CAPACITY_DATABASE_URL is set; --sql-port
    opens it to the role capacity_reader, which can only read.
    """
    parse_retention(settings.retention_days)  # with a wrong rule, the code location would not load
    with _stop_signals() as stop, folder_lock(settings) as lock:
        pages_port = pages_port or port + 1
        _refuse_impossible_ports(settings, {"--port": port, "--pages-port": pages_port, "--sql-port": sql_port})
        _check_redis(settings)
        with dagster_environment(settings, sql_port=sql_port) as environment, ExitStack() as opened:
            _ensure_schema(settings)
            sql_login = None if sql_port is None else opened.enter_context(_opened_to_sql(settings, sql_port))
            with dagster_instance(environment):
                pass  # creates Dagster's tables and sets the limits of the pools
            # Opened before anything is served: from then on, a server that ends is restarted.
            read_activity = opened.enter_context(_opened_activity(settings, sql_port))
            ui_address, pages_address = f"http://{HOST}:{port}", f"http://{HOST}:{pages_port}"
            # The UI and the pages link to each other by these addresses.
            environment["CAPACITY_DAGSTER_URL"] = settings.dagster_url_of_people or ui_address
            environment["CAPACITY_PAGES_URL"] = settings.pages_url or pages_address
            workspace, log = settings.dagster_home / status.WORKSPACE, settings.dagster_home / "up.log"
            addresses = {"Dagster UI": ui_address}
            workspaces = [workspace, *([further] if further else [])]
            others = processes_of_dagster(settings, workspaces, port, names)
            if _pages_can_be_served(settings):
                addresses = {"Pages": pages_address, **addresses}
                others["the pages"] = _pages_arguments(pages_port, names)
            with dagster_processes(workspace, environment, others, log, lock, say) as processes:
                try:
                    for name, address in addresses.items():
                        _wait_until_served(processes, f"{address}/{PROBED_PATHS[name]}", log, stop)
                        say(f"{name}: {address}")
                    # For a second `capacity up` on this folder.
                    lock.write(f" {next(iter(addresses.values()))}")
                    lock.flush()
                    if settings.capacity_url is None:
                        say(f'SQL: psql "host={settings.postgres_data} user=postgres dbname=capacity"')
                    if sql_login is not None:
                        say(sql_login)
                    say(f"Log: {log}. Ctrl-C stops everything, including the embedded server.")
                    ended = _report_until_one_exits(processes, read_activity, settings.zone, stop)
                    raise CommandFailedError(f"{ended} {_end_of(log)}")
                except StopRequestedError:
                    say("Stopping ...")
            if settings.capacity_url is None:
                say("Stopping the embedded PostgreSQL ...")
    say("Stopped. All data was kept; `capacity up` continues.")


def _refuse_impossible_ports(settings: Settings, ports: Mapping[str, int | None]) -> None:
    if ports["--sql-port"] is not None and settings.capacity_url is not None:
        raise ValidationError(
            "--sql-port works only with the embedded server, but CAPACITY_DATABASE_URL is set: connect your tools "
            "there, with a member of capacity_reader."
        )
    options: dict[int, str] = {}
    for option, port in ports.items():
        if port is None:
            continue
        if port in options:
            raise ValidationError(f"{options[port]} and {option} are both {port}.")
        options[port] = option
        if option != "--sql-port" or not embedded.is_open_on(settings.postgres_data, port):
            refuse_a_taken_port(port, option=option)


@contextmanager
def _opened_to_sql(settings: Settings, sql_port: int) -> Iterator[str]:
    """Let BI tools log in on the port until the block ends; yields a sentence on how, without the password."""
    given = settings.sql_password
    password = embedded.sql_password(settings.home.resolve(), None if given is None else given.get_secret_value())
    with open_engine(settings) as engine:
        embedded.let_reader_log_in(engine, password.value)
        try:
            login = f"host={HOST} port={sql_port} user={READER_ROLE} dbname={CAPACITY_DATABASE}"
            yield f'SQL for BI tools: psql "{login}", with the password in {password.found_in}'
        finally:
            with suppress(DatabaseError):
                embedded.lock_reader_out(engine)


def processes_of_dagster(
    settings: Settings, workspaces: Sequence[Path], port: int, names: Sequence[str]
) -> dict[str, list[str]]:
    """Return the module and arguments of each; all of them serve the code locations of the workspaces."""
    further = [word for name in names for word in ("--name", name)]
    web = ["--host", HOST, "--port", str(port), "--reports", str(settings.reports), *further]
    served = [word for workspace in workspaces for word in ("--workspace", str(workspace))]
    return {
        "the web server": ["capacity_assets.orchestration.webserver", *served, *web],
        "the daemon": ["dagster._daemon", "run", *served],
    }


def _pages_arguments(port: int, names: Sequence[str]) -> list[str]:
    """Return the module and arguments that serve the pages, under the same host names as the UI."""
    hosts = dict.fromkeys(name.rpartition(":")[0] or name for name in names)
    return ["capacity_assets.cli", "serve", "--port", str(port), *(word for host in hosts for word in ("--name", host))]


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Raise StopRequestedError at the first signal to stop; ignore further ones.

    Yields an event that is set at the same time, because Python ignores an exception that a destructor raises.
    """
    requested = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        requested.set()
        raise StopRequestedError

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if not is_ignored(number)}
    try:
        yield requested
    except StopRequestedError:
        say("Stopping ...")  # before any process was started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_redis(settings: Settings) -> None:
    """Warn if Redis cannot be reached; raises CommandFailedError if it refuses the login or a right is missing."""
    if settings.redis_url is None:
        return
    try:
        ask_redis(settings.redis_url.get_secret_value())
    except LockUnavailableError as error:
        if not error.transient:
            raise CommandFailedError(str(error)) from None
        say(f"Warning: {error} Runs will wait for Redis for a few minutes and then fail.")


def _pages_can_be_served(settings: Settings) -> bool:
    """Whether the pages can be served; if not, print why. Dagster is served anyway."""
    try:
        with open_reading_engine(settings):
            return True
    except (ValidationError, UnreachableError) as error:
        say(f"Warning: {error}")
        return False


def _ensure_schema(settings: Settings) -> None:
    """Create the schema on the embedded server; refuse a server of the user's own that lacks it."""
    with open_engine(settings) as engine:
        if settings.capacity_url is None:
            prepare_database(engine, settings)
        elif schema_revision(engine) != SCHEMA_REVISION:
            raise CommandFailedError(
                f"The capacity schema at {safe_url(engine.url)} is missing or too old. Run `capacity init`, then "
                "`capacity up` again."
            )


def _wait_until_served(processes: Processes, address: str, log: Path, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_served(address):
        if stop.is_set():
            raise StopRequestedError
        if ended := processes.ended:
            raise CommandFailedError(f"{ended} {_end_of(log)}")
        if time.monotonic() > deadline:
            raise CommandFailedError(f"{address} did not answer within {START_TIMEOUT_SECONDS} s. {_end_of(log)}")
        time.sleep(POLL_SECONDS)


def is_served(address: str) -> bool:
    """Whether a web server answers at an address; a request for a login counts."""
    try:
        # A local address, so proxies of the environment do not apply.
        status = ask(address, seconds=ANSWER_SECONDS, by_proxy=False).status
    except UnansweredError:
        return False
    return status in {HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


@contextmanager
def _opened_activity(settings: Settings, sql_port: int | None) -> Iterator[Callable[[], str]]:
    """Yield a function that returns a line on runs and late windows; it restarts an embedded server that ended."""
    runs = list[ActiveRun]()
    late: list[IncompleteWindow] | None = None
    readings = itertools.count()
    restarts = _Restarts(settings, sql_port)

    with dagster_storage(settings) as storage, open_task_runner(settings, connect=False) as runner:

        def read() -> str:
            nonlocal runs, late
            if restart := restarts.start_again_if_ended():
                return restart
            try:
                before, runs = runs, status.active_runs(storage)
                if next(readings) % READINGS_PER_CHECK_FOR_LATE == 0 or len(runs) < len(before):
                    late = None
                    late = status.late_windows(runner, followed=not status.has_failed(runs))
                return status.silent_location(settings) or status.activity_text(runs, late)
            except (*DATABASE_FAILURES, DagsterPostgresException) as error:
                return f"the list of runs cannot be read: {reason_of(error)}"
            except CapacityError:
                return status.activity_text(runs, None)

        yield read


def _report_until_one_exits(
    processes: Processes, read_activity: Callable[[], str], zone: tzinfo, stop: threading.Event
) -> str:
    """Print a line whenever the activity changes, until a process ends; return which one and how."""
    shown = ""
    while not (ended := processes.ended):
        if stop.is_set():
            raise StopRequestedError
        text = read_activity()
        if text != shown:
            say(f"{datetime.now(tz=zone):%H:%M:%S %z} {text}")
            shown = text
        stop.wait(READING_SECONDS)
    return ended


class _Restarts:
    """Restarts the embedded server when it has ended, a limited number of times per hour."""

    def __init__(self, settings: Settings, sql_port: int | None) -> None:
        self._data, self._sql_port = settings.postgres_data, sql_port
        self._is_used = settings.capacity_url is None or settings.dagster_url is None
        self._begun = deque[float](maxlen=MOST_RESTARTS)

    def start_again_if_ended(self) -> str:
        """Return what was done, "" if the server runs; raises CommandFailedError after too many restarts."""
        if not self._is_used:
            return ""
        began = time.monotonic()
        try:
            if not embedded.start_again(self._data, self._sql_port):
                return ""
            text = f"the embedded PostgreSQL had ended and was restarted; for the reason, see {self._data / 'log'}"
        except EmbeddedServerError as error:
            text = f"the embedded PostgreSQL has ended. {error}"
        if len(self._begun) == MOST_RESTARTS and began - self._begun[0] < RESTARTS_WITHIN_SECONDS:
            raise CommandFailedError(
                f"The embedded PostgreSQL ended or failed to start {MOST_RESTARTS + 1} times within an hour. All "
                f"processes were stopped; its data is kept. Read the end of {self._data / 'log'}, then run "
                "`capacity up` again."
            )
        self._begun.append(began)
        return text


def _end_of(log: Path) -> str:
    """Return the last lines of the log, below a sentence that names it."""
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return "\n".join([f"The end of {log}:", *lines])
