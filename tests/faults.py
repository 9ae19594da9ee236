"""Faults of the environment, and what commands say then. The table of docs/faults.md is made of them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.forked import run_forked

ROOT = Path(__file__).resolve().parents[1]


# Enough for what starts a server and refuses.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    output: str
    error: str


def new_interpreter(
    folder: Path,
    *arguments: str,
    limit: tuple[int, int] | None = None,
    stdout: int = subprocess.PIPE,
    **variables: str,
) -> Answer:
    """Run a command by a new interpreter in a folder, with a data folder there and a limit of the operating system."""

    def limited() -> None:
        if limit:
            number, most = limit
            resource.setrlimit(number, (most, most))

    done = subprocess.run(
        [sys.executable, "-m", "capacity_assets.cli", *arguments],
        cwd=folder,
        env=environment(folder, variables),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
        preexec_fn=limited,
        check=False,
    )
    return Answer(done.returncode, done.stdout or "", done.stderr)


def environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    # Fixtures of a module begin before a test's own variables are set.
    return {
        "CAPACITY_TIMEZONE": "Asia/Shanghai",
        "CAPACITY_HOME": str(folder / "home"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **variables,
    }


def capacity(folder: Path, *arguments: str, output: Path | None = None, umask: int = 0o022, **variables: str) -> Answer:
    """Run a command in a folder, with a data folder there."""
    done = run_forked(
        *arguments,
        environment=environment(folder, variables),
        timeout=PATIENCE_SECONDS,
        folder=folder,
        output=output,
        umask=umask,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


Breaking = Callable[[Path, Path], Answer]


@dataclass(frozen=True)
class Fault:
    """A fault: how it comes about, what is said, and the exit code."""

    name: str
    says: str
    code: int
    breaking: Breaking


FAULTS: list[Fault] = []


def fault(name: str, *, says: str, code: int) -> Callable[[Breaking], Breaking]:
    """Enter a function that breaks something in a folder, given a data folder with a server, and returns the answer."""

    def entered(breaking: Breaking) -> Breaking:
        FAULTS.append(Fault(name, says, code, breaking))
        return breaking

    return entered
