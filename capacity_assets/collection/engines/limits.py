"""What a server says of its limits: volumes, and the ceilings of its databases. How each engine is asked is its own.

Nothing here is needed for sizes: a server that says nothing of its limits is measured all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Volume:
    """A file system, disk group, pool or quota: its total size, and the space that the server can still use.

    `used_bytes` is the used space if it is less than the remainder: a file system keeps a reserve for root, a disk
    group for mirrors. None: the whole remainder is used.
    """

    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int | None = None


@dataclass(frozen=True)
class Ceiling:
    """How much one database may hold: `limit_bytes`, or `is_unlimited`, or neither, which is unknown.

    `volumes` names those on which it grows; None: unknown.
    """

    database: str
    limit_bytes: int | None = None
    is_unlimited: bool = False
    volumes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """What is known of a server's limits, and in words why the rest is not."""

    volumes: tuple[Volume, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    unknown: str | None = None


NOTHING_KNOWN = Limits()


def without_ceilings(names: Iterable[str], volumes: Iterable[str]) -> tuple[Ceiling, ...]:
    """Return the ceilings of an engine that has none: every database may fill the volumes it lies on."""
    on = tuple(sorted(volumes))
    return tuple(Ceiling(name, is_unlimited=True, volumes=on) for name in names)


def volume_of(folder: str, mounts: Iterable[str]) -> str | None:
    """Return the longest mount point that `folder` lies below, links taken as they are written; None: none of them."""
    inside = folder.rstrip("/") + "/"
    above = [mount for mount in mounts if inside.startswith(mount.rstrip("/") + "/")]
    return max(above, key=len, default=None)
