"""What the operating system refuses, as sentences: what it was, why, and what to do.

Only what follows from the machine is known here; any other error is a bug and keeps its traceback. Who shows the
sentences is decided in `cli.errors`.
"""

from __future__ import annotations

import errno
import os

_NO_RIGHT = "Give the user that runs capacity the right to it, or choose another place"
_OTHER_PLACE = "Choose another place"
_SPACE = "Free some space"
_OPEN_FILES = "Raise the limit of open files (`ulimit -n`, LimitNOFILE of a unit)"
_MEMORY = "Free memory, or raise the limit (`ulimit -v`, MemoryMax of a unit, the memory of the container)"
_REMEDIES = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: "Make the file system writable, or choose another place",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "Raise the limit of the size of files (`ulimit -f`)",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ENOTDIR: _OTHER_PLACE,
    errno.EISDIR: _OTHER_PLACE,
    errno.ELOOP: _OTHER_PLACE,
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "Raise the limit of processes (`ulimit -u`, TasksMax of a unit)",
    errno.EIO: "Look into the log of the machine: the disk may be failing",
}


def sentence_of(error: OSError | MemoryError) -> str | None:
    """Return what people read of an error; None where it says nothing of the machine."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    remedy = _REMEDIES.get(number or 0)
    if remedy is None:
        return None
    what = getattr(error, "filename", None)
    reason = os.strerror(number or 0)
    named = os.fsdecode(what) if isinstance(what, str | bytes) else "The operating system refused the work"
    return f"{named}: {reason}. {remedy}."
