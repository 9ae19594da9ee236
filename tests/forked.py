"""Runs programs in processes forked from one that has already loaded the product and its packages.

Loading them takes a new interpreter two seconds of processor time, which most tests of a command learn nothing from.
Each program is a process of its own here too, with its own environment, folder and exit code. What depends on how an
interpreter starts is not for this: locales, encodings, memory.

This module is loaded by each such process first, so it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple


class HeirProcess(ForkServerProcess):
    """A process with the variables and the folder of its parent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._variables, self._folder = dict(os.environ), Path.cwd()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._variables)
        os.chdir(self._folder)
        super().run()


class Forking(ForkServerContext):
    """Processes forked from one, including those that a forked process starts."""

    Process = HeirProcess


FORKING = Forking()
PRODUCT = "capacity_assets"
# By those that bring the rest; the first has garbage collected rarely.
FORKING.set_forkserver_preload(
    [f"{PRODUCT}.cli.main", "alembic.command", f"{PRODUCT}.cli.check", f"{PRODUCT}.cli.demo", f"{PRODUCT}.cli.up"]
)


class _Started(NamedTuple):
    """The arguments of a started process."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    output: Path
    errors: Path
    umask: int
    anew: bool
    key: bytes | None = None
    """Of the process that forks, from Python 3.14 on."""


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
    anew: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run the `capacity` command, or another program as `python -c` does, and return what it printed.

    Output goes into the file `output` if there is one, and is not returned then. A process that outlives its `timeout`
    is killed. `anew`, it loads the product's modules itself, because it changes some before others read them.
    """
    with TemporaryDirectory() as printed:
        texts = output or Path(printed, "output"), Path(printed, "errors")
        process = _start(
            _Started(program, arguments, dict(environment), folder or Path.cwd(), *texts, umask, anew, _key())
        )
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        read = ["" if text == output else text.read_text() for text in texts]
        return subprocess.CompletedProcess(arguments, process.exitcode, *read)


class Forked:
    """A program that runs until it is killed; its output goes into a file if there is one."""

    def __init__(self, *arguments: str, program: str, folder: Path, log: Path | None = None) -> None:
        printed = log or Path(os.devnull)
        self._process = _start(
            _Started(program, arguments, dict(os.environ), folder, printed, printed, 0o022, anew=False, key=_key())
        )

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, once there is one; named as that of a `subprocess.Popen`."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _key() -> bytes | None:
    forkserver.ensure_running()
    key: bytes | None = getattr(forkserver._forkserver, "_forkserver_authkey", None)  # type: ignore[attr-defined]
    return key


def _start(started: _Started) -> ForkServerProcess:
    process = FORKING.Process(target=_run, args=(started,))
    process.start()
    return process


def _run(started: _Started) -> None:
    # It lives as long as the tests, and this process knows its address.
    ours = forkserver._forkserver  # type: ignore[attr-defined]
    ours.ensure_running, ours._forkserver_authkey = lambda: None, started.key
    os.environ.clear()
    os.environ.update(started.environment)
    for number, path in ((1, started.output), (2, started.errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.umask(started.umask)
    os.chdir(started.folder)
    if started.anew:
        for name in [name for name in sys.modules if name.partition(".")[0] == PRODUCT]:
            del sys.modules[name]
    sys.argv = ["capacity", *started.arguments]
    exec(started.program, {"__name__": "__main__"})  # noqa: S102 -- what a test gives
