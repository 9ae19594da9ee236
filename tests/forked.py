"""Programs that run to their end in a process forked from one that has loaded the other packages already.

Dagster and SQLAlchemy take a new interpreter a second of processor time, which most tests of a command learn nothing
from. Each program is a process of its own here too, with its own environment, folder and exit code, and loads the
product's modules itself. What depends on how an interpreter starts is not for this: locales, encodings, memory.

This module is loaded by each such process first, so it imports nothing but the standard library.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

FORKING = multiprocessing.get_context("forkserver")
# What the product imports, by those that bring the rest; nothing of the product.
FORKING.set_forkserver_preload(["dagster_postgres", "pydantic_settings", "psycopg", "alembic.command", "rich.table"])


class _Started(NamedTuple):
    """What a process begins with."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    output: Path
    errors: Path
    umask: int


COMMAND = """
from runpy import run_module
run_module("capacity_assets.cli", run_name="__main__", alter_sys=True)
"""


def run_forked(
    *arguments: str,
    environment: Mapping[str, str],
    timeout: float,
    folder: Path | None = None,
    program: str = COMMAND,
    output: Path | None = None,
    umask: int = 0o022,
) -> subprocess.CompletedProcess[str]:
    """Run the `capacity` command, or another program as `python -c` does, and return what it printed.

    Output goes into the file `output` if there is one, and is not returned then. A process that outlives its `timeout`
    is killed.
    """
    with TemporaryDirectory() as printed:
        texts = output or Path(printed, "output"), Path(printed, "errors")
        process = _start(_Started(program, arguments, dict(environment), folder or Path.cwd(), *texts, umask))
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        read = ["" if text == output else text.read_text() for text in texts]
        return subprocess.CompletedProcess(arguments, process.exitcode, *read)


class Forked:
    """A program that goes on until it is killed; nobody reads what it prints."""

    def __init__(self, *arguments: str, program: str, folder: Path) -> None:
        silent = Path(os.devnull)
        self._process = _start(_Started(program, arguments, dict(os.environ), folder, silent, silent, 0o022))

    @property
    def returncode(self) -> int | None:
        """The exit code, once there is one; named as that of a `subprocess.Popen`."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _start(started: _Started) -> ForkServerProcess:
    process = FORKING.Process(target=_run, args=(started,))
    process.start()
    return process


def _run(started: _Started) -> None:
    os.environ.clear()
    os.environ.update(started.environment)
    for number, path in ((1, started.output), (2, started.errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.umask(started.umask)
    os.chdir(started.folder)
    sys.argv = ["capacity", *started.arguments]
    exec(started.program, {"__name__": "__main__"})  # noqa: S102 -- what a test gives
