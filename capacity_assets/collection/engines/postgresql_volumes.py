"""The volumes of a PostgreSQL server, by the extensions pgnodemx or system_stats. The server itself reports none.

Only functions that belong to these extensions are called: anybody could create one of the same name.
https://github.com/CrunchyData/pgnodemx and https://github.com/EnterpriseDB/system_stats: sizes are in bytes. A path
that begins without a slash is taken from the data folder, and links are followed by the former only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capacity_assets.collection.engines.limits import Ceiling, Limits, Volume, volume_of
from capacity_assets.storage.steps import quoted

Read = Callable[[str], Sequence[tuple[Any, ...]]]

DATA_FOLDER = "data directory"
PGNODEMX, SYSTEM_STATS = "pgnodemx", "system_stats"
FUNCTIONS = """
SELECT e.extname, n.nspname, has_function_privilege(p.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')
FROM pg_extension e
JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                AND d.classid = 'pg_proc'::regclass
JOIN pg_proc p ON p.oid = d.objid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE (e.extname, p.proname) IN (('pgnodemx', 'fsinfo'), ('system_stats', 'pg_sys_disk_info'))
"""
# The shared catalogue lies in pg_global, and belongs to no database.
TABLESPACES = """
SELECT d.datname, t.oid::bigint, pg_tablespace_location(t.oid)
FROM pg_tablespace t CROSS JOIN LATERAL pg_tablespace_databases(t.oid) AS held (oid)
JOIN pg_database d ON d.oid = held.oid
WHERE t.spcname <> 'pg_global' ORDER BY t.oid
"""
FSINFO = (
    "SELECT major_number, minor_number, total_bytes, available_bytes, total_bytes - free_bytes "
    "FROM {schema}.fsinfo('{path}')"
)
DISKS = (
    "SELECT mount_point, max(total_space), min(free_space), max(used_space) FROM {schema}.pg_sys_disk_info() "
    "WHERE mount_point IS NOT NULL GROUP BY mount_point"
)
SETTING = "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
NO_EXTENSION = "PostgreSQL reports its file systems with the extension pgnodemx or system_stats only"
NO_RIGHT = {
    PGNODEMX: "its login may not call fsinfo of pgnodemx",
    SYSTEM_STATS: "its login may not call pg_sys_disk_info: monitor_system_stats is missing",
}
NO_SETTING = "its login may not see where the data folder is: pg_read_all_settings is missing"
NOT_LISTED = "system_stats does not list the file system of {}"


def limits_by_extension(read: Read, names: Sequence[str]) -> Limits:
    """Return the volumes on which the tablespaces of each database lie."""
    found = {name: (schema, bool(allowed)) for name, schema, allowed in read(FUNCTIONS)}
    usable = next((name for name in (PGNODEMX, SYSTEM_STATS) if found.get(name, ("", False))[1]), None)
    if usable is None:
        return Limits(unknown=NO_RIGHT[sorted(found)[0]] if found else NO_EXTENSION)
    held = [(str(name), int(oid), str(location)) for name, oid, location in read(TABLESPACES)]
    folders = {oid: location for _, oid, location in held}
    schema = quoted(found[usable][0])
    by_tablespace = _by_fsinfo(read, schema, folders) if usable == PGNODEMX else _by_disks(read, schema, folders)
    if isinstance(by_tablespace, str):
        return Limits(unknown=by_tablespace)
    lies_on: dict[str, set[str]] = {name: set() for name in names}
    for name, oid, _ in held:
        if name in lies_on:
            lies_on[name].add(by_tablespace[oid].name)
    ceilings = (Ceiling(name, is_unlimited=True, volumes=tuple(sorted(on))) for name, on in lies_on.items() if on)
    return Limits(tuple({volume.name: volume for volume in by_tablespace.values()}.values()), tuple(ceilings))


def _by_fsinfo(read: Read, schema: str, folders: Mapping[int, str]) -> Mapping[int, Volume]:
    """Volumes are told apart by their device; each has the name of the first folder on it."""
    by_device: dict[tuple[object, object], Volume] = {}
    found = {}
    for oid, location in folders.items():
        path = f"pg_tblspc/{oid}" if location else "."
        [(major, minor, *sizes)] = read(FSINFO.format(schema=schema, path=path))
        found[oid] = by_device.setdefault((major, minor), Volume(location or DATA_FOLDER, *map(int, sizes)))
    return found


def _by_disks(read: Read, schema: str, folders: Mapping[int, str]) -> Mapping[int, Volume] | str:
    """Return the volumes, or why they are not known."""
    setting = read(SETTING)
    if not setting:
        return NO_SETTING
    disks = {str(path): tuple(map(int, sizes)) for path, *sizes in read(DISKS.format(schema=schema))}
    found = {}
    for oid, location in folders.items():
        folder = location or str(setting[0][0])
        mount = volume_of(folder, disks)
        if mount is None:
            return NOT_LISTED.format(folder)
        found[oid] = Volume(mount, *disks[mount])
    return found
