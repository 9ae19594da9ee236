"""Atomic writing of files, and who may read new ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is kept is for its owner alone; what a file that somebody names is for, says the umask of who called.
PRIVATE_UMASK = 0o077
# Under this name the context of a command has the other one.
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
