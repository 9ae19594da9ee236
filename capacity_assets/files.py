"""Atomic writing of files, and the permissions of new files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Files in the data folder are accessible to their owner only; files that a user names follow the caller's umask.
PRIVATE_UMASK = 0o077
# Key of the caller's umask in the context of a command.
UMASK = f"{__name__}.umask"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to be written, which takes its place when the block ends well.

    Any number of writers may do this at once: the last one to end wins, and a reader never sees half a file.

    Raises:
        OSError: the folder cannot be written, or `path` is a folder, a device or the like; what was there is kept.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(0, "it exists and is not an ordinary file")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        # Inside a folder of its own, the file gets the rights that any new file gets, or those of the one it replaces.
        begun = Path(folder) / "file"
        yield begun
        if path.exists():
            shutil.copymode(path, begun)
        begun.replace(path)
