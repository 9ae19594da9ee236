"""`capacity up`: pages, web server, daemon and code location as one foreground process.

This module starts them, gives them databases and a home, waits until the UI answers, and takes everything
down again. Their output goes to a log file, so that the screen says what matters.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import IO

import click

from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, ValidationError, reason_of
from capacity_assets.base.network import UnansweredError, ask
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import CommandFailedError, command, say
from capacity_assets.cli.processes import (
    HOST,
    POLL_SECONDS,
    Processes,
    dagster_processes,
    open_no_link,
    pages_options,
    web_options,
)
from capacity_assets.cli.serve import refuse_a_taken_port
from capacity_assets.cli.status import (
    ActiveRun,
    LateWindows,
    active_runs,
    activity_text,
    has_failed,
    late_windows,
    silent_location,
)
from capacity_assets.database.embedded import EmbeddedServerError, start_again
from capacity_assets.database.engine import UnreachableError, safe_url
from capacity_assets.database.locks import LockUnavailableError, ask_redis
from capacity_assets.database.schema import SCHEMA_REVISION, schema_revision
from capacity_assets.history.retention import parse_retention
from capacity_assets.orchestration.instance import (
    dagster_environment,
    dagster_instance,
    dagster_storage,
    kept_home,
)
from capacity_assets.orchestration.private.postgres import DagsterPostgresException
from capacity_assets.runtime import open_engine, open_reading_engine, open_task_runner, prepare_database

START_TIMEOUT_SECONDS = 120
READING_SECONDS = 2
READINGS_PER_CHECK_FOR_LATE = 15
LOG_LINES_SHOWN = 15
MOST_RESTARTS, RESTARTS_WITHIN_SECONDS = 3, 3600
# The last of them when the terminal is closed or the connection to it lost.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ANSWER_SECONDS = 5


class StopRequestedError(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived; like `KeyboardInterrupt` no `Exception`, which libraries would wrap."""


@click.command()
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65534), help="Port of the UI.")
@click.option("--pages-port", type=click.IntRange(1, 65535), help="Port of the pages. Default: the next one.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST:PORT",
    help="Host and port by which browsers also reach it, for example behind a proxy.",
)
@command
def up(settings: Settings, /, *, port: int, pages_port: int | None, names: Sequence[str]) -> None:
    """Serve the pages and Dagster, its UI and daemon, until Ctrl-C.

    Everything listens on 127.0.0.1. The embedded server is started too, unless CAPACITY_DATABASE_URL names another.
    """
    parse_retention(settings.retention_days)  # else the code location would not load
    with _stop_signals() as stop, _only_one(settings) as lock:
        pages_port = pages_port or port + 1
        if port == pages_port:
            raise ValidationError(f"--port and --pages-port are both {port}. Nothing was started.")
        refuse_a_taken_port(port)
        refuse_a_taken_port(pages_port, option="--pages-port")
        _ask_redis(settings)
        with dagster_environment(settings) as environment:
            _ensure_schema(settings)
            with dagster_instance(environment):
                # Opened once before anything runs: creates Dagster's tables and sets the limits of the pools.
                pass
            ui_address, pages_address = f"http://{HOST}:{port}", f"http://{HOST}:{pages_port}"
            # By these the two link to each other, unless somebody else says where they are.
            environment["CAPACITY_DAGSTER_URL"] = settings.dagster_url_of_people or ui_address
            environment["CAPACITY_PAGES_URL"] = settings.pages_url or pages_address
            pages = pages_options(pages_port, names) if _can_read_only(settings) else []
            web = web_options(settings, port, names)
            _serve_until_stopped(settings, environment, ui_address, pages_address, web, pages, lock, stop)
            if settings.capacity_url is None:
                say("Stopping the embedded PostgreSQL ...")
    say("Stopped. All data was kept; `capacity up` continues where it was.")


def _serve_until_stopped(  # noqa: PLR0913, PLR0917 -- what the three processes need, and what tells us to stop
    settings: Settings,
    environment: dict[str, str],
    ui_address: str,
    pages_address: str,
    web: Sequence[str],
    pages: Sequence[str],
    lock: IO[str],
    stop: threading.Event,
) -> None:
    log = settings.dagster_home / "up.log"
    with dagster_processes(settings.dagster_home, environment, web, pages, log, lock) as processes:
        try:
            _wait_until_served(processes, f"{ui_address}/server_info", log, stop)
            if pages:
                _wait_until_served(processes, f"{pages_address}/static/style.css", log, stop)
                say(f"Pages: {pages_address}")
            say(f"Dagster UI: {ui_address}")
            if settings.capacity_url is None:
                say(f'SQL: psql "host={settings.postgres_data} user=postgres dbname=capacity"')
            say(f"Log: {log}. Ctrl-C stops everything, the embedded server included.")
            ended = _report_until_one_exits(processes, settings, stop)
            raise CommandFailedError(
                f"Dagster stopped by itself with code {ended.returncode}. The end of {log}:\n{_tail(log)}"
            )
        except StopRequestedError:
            say("Stopping ...")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn the signals that ask to stop into an exception, once; a second one is ignored.

    Yields an event that says the same, because an exception that is raised in a destructor is swallowed.
    """
    requested = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        requested.set()
        raise StopRequestedError

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield requested
    except StopRequestedError:
        # Arrived before the UI was served: nothing but the databases was running.
        say("Stopping ...")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _only_one(settings: Settings) -> Iterator[IO[str]]:
    """Refuse a second `capacity up` on the same folder: two daemons would launch everything twice.

    Dagster inherits the lock and keeps it as long as it lives, also when this process is killed.
    """
    home = kept_home(settings)
    with open_no_link(home / "up.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CommandFailedError(_who_holds(home, lock.read().split())) from None
        lock.truncate(0)
        # The group of what this process starts comes behind it.
        lock.write(f"{os.getpid()} ")
        lock.flush()
        yield lock


def _who_holds(home: Path, held: Sequence[str]) -> str:
    """Say who serves a folder; `held` has the process that started Dagster, and the group of what it started."""
    starter, group = (*held, "unknown", "unknown")[:2]
    if _is_up(starter):
        return (
            f"Another `capacity up` (process {starter}) serves {home.parent} already. Nothing was started. Use that "
            "one, or give this one a folder of its own with CAPACITY_HOME."
        )
    return (
        f"Dagster is left over from a `capacity up` that was killed (process group {group}), and does not work any "
        f"more. Nothing was started. End it with `kill -- -{group}`, wait ten seconds, and run this again."
    )


def _is_up(process: str) -> bool:
    """Whether a process is there, and still a `capacity up`."""
    try:
        return b"\0up" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _ask_redis(settings: Settings) -> None:
    """Say at the start what every run would say: Redis is away, or refuses us for good.

    Raises CommandFailedError where it refuses the login or lacks rights: waiting does not fix that.
    """
    if settings.redis_url is None:
        return
    try:
        ask_redis(settings.redis_url.get_secret_value())
    except LockUnavailableError as error:
        if not error.transient:
            raise CommandFailedError(f"{error} Nothing was started.") from None
        say(f"Warning: {error} Runs wait for it and then fail.")


def _can_read_only(settings: Settings) -> bool:
    """Whether the pages can be served; if not, say why: the rest is served all the same."""
    try:
        with open_reading_engine(settings):
            return True
    except (ValidationError, UnreachableError) as error:
        say(f"Warning: {error}")
        return False


def _ensure_schema(settings: Settings) -> None:
    """Create the schema on the embedded server; on a server of the user's own that is their decision."""
    with open_engine(settings) as engine:
        if settings.capacity_url is None:
            prepare_database(engine, settings)
        elif schema_revision(engine) != SCHEMA_REVISION:
            raise CommandFailedError(
                f"The capacity schema at {safe_url(engine.url)} is missing or too old. Nothing was started. "
                "Run `capacity init`, then `capacity up` again."
            )


def _wait_until_served(processes: Processes, address: str, log: Path, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not answers(address):
        if stop.is_set():
            raise StopRequestedError
        if processes.ended:
            raise CommandFailedError(f"Dagster stopped while starting. The end of {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise CommandFailedError(
                f"{address} did not answer within {START_TIMEOUT_SECONDS} s. The end of {log}:\n{_tail(log)}"
            )
        time.sleep(POLL_SECONDS)


def answers(address: str) -> bool:
    """Whether a web server answers at an address; the request for a login counts."""
    try:
        # Our own address, so without any proxy from the environment.
        status = ask(address, seconds=ANSWER_SECONDS, by_proxy=False).status
    except UnansweredError:
        return False
    # The pages may require a login.
    return status in {HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


def _report_until_one_exits(processes: Processes, settings: Settings, stop: threading.Event) -> subprocess.Popen[bytes]:
    """Print a line whenever what runs, waits or is late has changed; return the process that ended."""
    shown, runs = "", list[ActiveRun]()
    late: list[LateWindows] | None = None
    readings, restarts = itertools.count(), _Restarts(settings)
    with dagster_storage(settings) as storage, open_task_runner(settings, connect=False) as runner:
        while not (ended := processes.ended):
            if stop.is_set():
                raise StopRequestedError
            try:
                before, runs = runs, active_runs(storage)
                if next(readings) % READINGS_PER_CHECK_FOR_LATE == 0 or len(runs) < len(before):
                    late = None
                    late = late_windows(runner, followed=not has_failed(runs))
                text = silent_location(settings) or activity_text(runs, late)
            except (*DATABASE_FAILURES, DagsterPostgresException) as error:
                reason = error if isinstance(error, DagsterPostgresException) else reason_of(error)
                text = restarts.start_again_if_ended() or f"the list of runs cannot be read: {reason}"
            except CapacityError:
                text = activity_text(runs, None)
            if text != shown:
                say(f"{datetime.now(tz=settings.zone):%H:%M:%S %z} {text}")
                shown = text
            stop.wait(READING_SECONDS)
    return ended


class _Restarts:
    """Restarts the embedded server when it has ended, a limited number of times per hour."""

    def __init__(self, settings: Settings) -> None:
        self._data = settings.postgres_data
        self._is_used = settings.capacity_url is None or settings.dagster_url is None
        self._begun = deque[float](maxlen=MOST_RESTARTS)

    def start_again_if_ended(self) -> str:
        """Return what was done, "" if the server runs; raises CommandFailedError after too many restarts."""
        if not self._is_used:
            return ""
        began = time.monotonic()
        try:
            if not start_again(self._data):
                return ""
            said = f"the embedded PostgreSQL had ended and was restarted; for the reason, see {self._data / 'log'}"
        except EmbeddedServerError as error:
            said = f"the embedded PostgreSQL has ended. {error}"
        if len(self._begun) == MOST_RESTARTS and began - self._begun[0] < RESTARTS_WITHIN_SECONDS:
            raise CommandFailedError(
                f"The embedded PostgreSQL ended or failed to start {MOST_RESTARTS + 1} times within an hour. All "
                f"processes were stopped; its data is kept. Read the end of {self._data / 'log'}, then run "
                "`capacity up` again."
            )
        self._begun.append(began)
        return said


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
