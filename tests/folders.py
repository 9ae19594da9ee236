"""Folders of tests, in memory while the tests run."""

from __future__ import annotations

import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from capacity_assets.database.embedded import PRIVATE

# Databases are made and dropped by the hundred: on a disk, a tenth of the suite's time goes into finding free inodes.
MEMORY, MEMORY_MB = Path("/dev/shm"), 4096  # noqa: S108 -- a file system, not a file


def work_in_memory(config: pytest.Config) -> None:
    """Put the folders of tests into memory, unless their place is configured or memory is short."""
    if config.option.basetemp or not os.access(MEMORY, os.W_OK):
        return
    if shutil.disk_usage(MEMORY).free >= MEMORY_MB << 20:
        for left in MEMORY.glob("pytest-*[0-9]"):
            if not Path("/proc", left.name.rpartition("-")[2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        # Short, because the path of a socket has 107 characters at most.
        config.option.basetemp = MEMORY / f"pytest-{os.getpid()}"
        others = MEMORY / f"pytest-tmp-{os.getpid()}"
        others.mkdir()
        others.chmod(0o1777)
        tempfile.tempdir = os.environ["TMPDIR"] = str(others)
        # After multiprocessing has removed its own folder in there, which it does with priority -100.
        Finalize(None, shutil.rmtree, args=(others,), kwargs={"ignore_errors": True}, exitpriority=-200)


def remove_folders(base: Path, *, failed: bool) -> None:
    """Remove files of embedded servers outside the folder of tests, and the folder in memory unless tests failed."""
    for link in base.rglob("postgres"):
        if link.is_symlink() and link.readlink().parent == PRIVATE:
            shutil.rmtree(link.readlink(), ignore_errors=True)
    if MEMORY in base.parents and not failed:
        shutil.rmtree(base, ignore_errors=True)
