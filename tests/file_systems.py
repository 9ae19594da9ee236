"""File systems that are read-only or full, really: mounted where the tests run as root, by modes elsewhere."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder in which nothing can be written while the block lasts."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield folder
        finally:
            folder.chmod(0o755)
        return
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def small_device(size_mb: int) -> Iterator[Path]:
    """A folder on a device of its own, which is soon full; its path is short enough for a socket."""
    if os.geteuid() != 0:
        pytest.skip("mounting a device needs root")
    folder = Path(tempfile.mkdtemp(prefix="device-"))
    try:
        _mount("-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(folder))
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        folder.rmdir()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["/bin/mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)
