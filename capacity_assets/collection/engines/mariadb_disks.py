"""The volume of a MariaDB server, by its plugin `disks`. MySQL has nothing of the kind.

https://mariadb.com/docs/server/reference/plugins/other-plugins/disks-plugin: sizes are in KiB. Without the privilege
FILE the table has no rows, and says nothing of it (seen on 11.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capacity_assets.collection.engines.base import rows_of
from capacity_assets.collection.engines.limits import Limits, Volume, volume_of, without_ceilings

BYTES_PER_KIB = 1024
HAS_DISKS = (
    "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'information_schema' AND TABLE_NAME = 'DISKS'"
)
# A mount that lies over another one is listed twice, with its own figures both times.
DISKS = "SELECT Path, MAX(Total), MIN(Available), MAX(Used) FROM information_schema.DISKS GROUP BY Path"
DATA_FOLDER = "SELECT @@datadir"
NO_PLUGIN = "MariaDB reports its file systems with the plugin `disks` only: INSTALL SONAME 'disks'"
NO_RIGHT = "its login may not see the file systems: FILE on *.* is missing"
NOT_LISTED = "the plugin `disks` does not list the file system of {}"


def limits_by_disks(connection: Any, names: Sequence[str]) -> Limits:
    """Return the volume that holds the data folder, on which every schema may grow."""
    [(there,)] = rows_of(connection, HAS_DISKS)
    if not there:
        return Limits(unknown=NO_PLUGIN)
    disks = {str(path): tuple(map(int, sizes)) for path, *sizes in rows_of(connection, DISKS)}
    if not disks:
        return Limits(unknown=NO_RIGHT)
    [(folder,)] = rows_of(connection, DATA_FOLDER)
    path = volume_of(str(folder), disks)
    if path is None:
        return Limits(unknown=NOT_LISTED.format(folder))
    volume = Volume(path, *(size * BYTES_PER_KIB for size in disks[path]))
    return Limits((volume,), without_ceilings(names, [path]))
