"""Limits of SQL Server and Azure SQL: what files may grow to, and the volumes, pool or quota they lie on.

A database is full when its data files are; logs are no part of its size. Not verified on a server, as its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capacity_assets.collection.engines.limits import Ceiling, Limits, Volume
from capacity_assets.units import BYTES_PER_MB

Read = Callable[[str], Sequence[tuple[Any, ...]]]

EXPRESS, AZURE_SQL_DATABASE, MANAGED_INSTANCE = 4, 5, 8
EXPRESS_GB = {17: 50}
EXPRESS_GB_BEFORE = 10
"""What the data files of one database of the Express edition may hold, by major version; 17 is SQL Server 2025.

https://learn.microsoft.com/sql/sql-server/editions-and-components-of-sql-server-2022 and -2025
"""
MAJOR_VERSION = "SELECT CAST(SERVERPROPERTY('ProductMajorVersion') AS int)"

# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-master-files-transact-sql: pages of
# 8 KB; max_size -1: until the disk is full, 0: no growth; growth 0: a fixed size. As its size, that of data files.
FILES = """
SELECT d.name,
       SUM(CASE WHEN f.growth = 0 OR f.max_size = 0 THEN CAST(f.size AS bigint) ELSE CAST(f.max_size AS bigint) END)
           * 8192,
       SUM(CASE WHEN f.growth <> 0 AND f.max_size = -1 THEN 1 ELSE 0 END)
FROM sys.databases d JOIN sys.master_files f ON f.database_id = d.database_id
WHERE f.type IN (0, 4) GROUP BY d.name
"""
# https://learn.microsoft.com/sql/relational-databases/system-dynamic-management-views/sys-dm-os-volume-stats-transact-sql
# On Linux a volume has no name. Free space may be reported differently by two files of one volume.
VOLUMES = """
SELECT d.name, COALESCE(v.volume_mount_point, CONCAT('volume of ', v.total_bytes / 1048576, ' MiB')),
       MAX(v.total_bytes), MIN(v.available_bytes)
FROM sys.databases d JOIN sys.master_files f ON f.database_id = d.database_id
CROSS APPLY sys.dm_os_volume_stats(f.database_id, f.file_id) v
WHERE f.type IN (0, 4) AND f.growth <> 0
GROUP BY d.name, COALESCE(v.volume_mount_point, CONCAT('volume of ', v.total_bytes / 1048576, ' MiB'))
"""
# Of a managed instance the function above reports what is used as the total.
# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-server-resource-stats-azure-sql-database
INSTANCE_STORAGE = """
SELECT TOP (1) reserved_storage_mb, storage_space_used_mb FROM master.sys.server_resource_stats ORDER BY end_time DESC
"""
# https://learn.microsoft.com/sql/t-sql/functions/databasepropertyex-transact-sql: of the connected database only.
AZURE_DATABASE = """
SELECT DB_NAME(), CAST(DATABASEPROPERTYEX(DB_NAME(), 'MaxSizeInBytes') AS bigint),
       CAST(DATABASEPROPERTYEX(DB_NAME(), 'Edition') AS varchar(64))
"""
# https://learn.microsoft.com/sql/relational-databases/system-dynamic-management-views
# /sys-dm-elastic-pool-resource-stats-azure-sql-database: in the user database, and empty outside a pool.
POOL = """
SELECT TOP (1) storage_limit_mb, allocated_storage_mb FROM sys.dm_elastic_pool_resource_stats ORDER BY end_time DESC
"""
STORAGE_NAME, POOL_NAME = "reserved storage", "elastic pool"
SHARED = {AZURE_SQL_DATABASE: (POOL_NAME, POOL), MANAGED_INSTANCE: (STORAGE_NAME, INSTANCE_STORAGE)}
"""Editions whose databases share one storage: its name, and how it is asked for."""
HYPERSCALE = "Hyperscale"
NO_VOLUMES = "its login may not see the volumes: VIEW SERVER STATE, from 2022 on VIEW SERVER PERFORMANCE STATE"


def limits_of(read: Read, edition: int, names: Sequence[str], is_refusal: Callable[[Exception], bool]) -> Limits:
    """Return the limits that an edition reports; `is_refusal` tells a missing right from other errors of the driver."""
    most_gb = None
    if edition == EXPRESS:
        [(version,)] = read(MAJOR_VERSION)
        most_gb = EXPRESS_GB.get(int(version), EXPRESS_GB_BEFORE)
    ceilings = _azure_ceiling(read) if edition == AZURE_SQL_DATABASE else ceilings_of(read(FILES), most_gb, names)
    shared = SHARED.get(edition)
    try:
        rows = read(VOLUMES if shared is None else shared[1])
    except Exception as error:
        if is_refusal(error):
            return Limits((), ceilings, NO_VOLUMES)
        raise
    if shared is None:
        return Limits(volumes_of(rows), _on_volumes(ceilings, _places(rows)))
    volumes = shared_storage(shared[0], rows)
    names_of = tuple(volume.name for volume in volumes) or None
    return Limits(volumes, _on_volumes(ceilings, dict.fromkeys((one.database for one in ceilings), names_of)))


def ceilings_of(rows: Sequence[tuple[Any, ...]], most_gb: int | None, names: Sequence[str]) -> tuple[Ceiling, ...]:
    """Turn rows (name, bytes that files may grow to, files without an end) into ceilings, cut at the edition's."""
    wanted = set(names)
    most = None if most_gb is None else most_gb * 1024 * BYTES_PER_MB
    found = []
    for name, grows_to, endless in rows:
        known = [limit for limit in (None if endless else int(grows_to), most) if limit is not None]
        if name in wanted:
            found.append(Ceiling(name, min(known, default=None), is_unlimited=not known))
    return tuple(found)


def volumes_of(rows: Sequence[tuple[Any, ...]]) -> tuple[Volume, ...]:
    """Turn rows (database, volume, total, free) into volumes, each with the least that is reported free."""
    totals = {volume: (int(total), int(free)) for _, volume, total, free in sorted(rows, key=lambda row: -row[3])}
    return tuple(Volume(name, total, free) for name, (total, free) in sorted(totals.items()))


def shared_storage(name: str, rows: Sequence[tuple[Any, ...]]) -> tuple[Volume, ...]:
    """Turn a row (limit, used; MiB) into the one volume that all databases share."""
    return tuple(
        Volume(name, int(limit) * BYTES_PER_MB, max(int(limit) - int(used), 0) * BYTES_PER_MB) for limit, used in rows
    )


def _azure_ceiling(read: Read) -> tuple[Ceiling, ...]:
    [(name, most, edition)] = read(AZURE_DATABASE)
    known = edition != HYPERSCALE and most is not None and int(most) > 0
    return (Ceiling(name, int(most) if known else None),)


def _places(rows: Sequence[tuple[Any, ...]]) -> dict[str, tuple[str, ...]]:
    places: dict[str, tuple[str, ...]] = {}
    for database, volume, *_ in rows:
        places[database] = (*places.get(database, ()), volume)
    return places


def _on_volumes(ceilings: Sequence[Ceiling], places: Mapping[str, tuple[str, ...] | None]) -> tuple[Ceiling, ...]:
    """Say where each database grows; one whose files are all of a fixed size grows nowhere, and has its ceiling."""
    return tuple(Ceiling(one.database, one.limit_bytes, one.is_unlimited, places.get(one.database)) for one in ceilings)
