"""SQL Server and Azure SQL: the data files of each database, the log files as log size, and the maximum size of files.

A database is full when its data files are full, so logs are not part of its size. This was written from the vendor's
documentation and is tested on recorded results, not on a server.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import Any, ClassVar

from capacity_assets.base.units import BYTES_PER_MB
from capacity_assets.collection.engines.base import (
    CANDIDATES,
    INDEX,
    PROGRAM,
    TABLE,
    TLS_OFF,
    Access,
    Allowance,
    Ceiling,
    DatabaseObjects,
    DatabaseSize,
    EngineAdapter,
    FailureKind,
    Limits,
    MeasureError,
    Measurement,
    Objects,
    ObjectSize,
    PartScope,
    PartSource,
    ServerFacts,
    ServerPart,
    UsedSpace,
    Volume,
    first_line,
    is_excluded,
    is_loopback,
    objects_by_database,
    query_server,
    refuse_setup,
    refuse_without_rights,
    used_by_database,
    without_driver,
)
from capacity_assets.database.measures import TEMPORARY, TRANSACTION_LOG

# The most that the data files of a database may take in the Express edition, by major version; 17 is SQL Server 2025.
# https://learn.microsoft.com/sql/sql-server/editions-and-components-of-sql-server-2022 and -2025
EXPRESS_GB, EXPRESS_GB_BEFORE = {17: 50}, 10
MAJOR_VERSION = "SELECT CAST(SERVERPROPERTY('ProductMajorVersion') AS int)"

# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-master-files-transact-sql: pages of
# 8 KB; max_size -1: until the disk is full, 0: no growth; growth 0: a fixed size. Only data files count.
FILES = """
SELECT d.name,
       SUM(CASE WHEN f.growth = 0 OR f.max_size = 0 THEN CAST(f.size AS bigint) ELSE CAST(f.max_size AS bigint) END)
           * 8192,
       SUM(CASE WHEN f.growth <> 0 AND f.max_size = -1 THEN 1 ELSE 0 END)
FROM sys.databases d JOIN sys.master_files f ON f.database_id = d.database_id
WHERE f.type IN (0, 4) GROUP BY d.name
"""
# https://learn.microsoft.com/sql/relational-databases/system-dynamic-management-views/sys-dm-os-volume-stats-transact-sql
# On Linux a volume has no name. Two files on one volume may report different free space.
VOLUMES = """
SELECT d.name, COALESCE(v.volume_mount_point, CONCAT('volume of ', v.total_bytes / 1048576, ' MiB')),
       MAX(v.total_bytes), MIN(v.available_bytes)
FROM sys.databases d JOIN sys.master_files f ON f.database_id = d.database_id
CROSS APPLY sys.dm_os_volume_stats(f.database_id, f.file_id) v
WHERE f.type IN (0, 4) AND f.growth <> 0
GROUP BY d.name, COALESCE(v.volume_mount_point, CONCAT('volume of ', v.total_bytes / 1048576, ' MiB'))
"""
# For a managed instance, the function above reports the used size as the total.
# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-server-resource-stats-azure-sql-database
INSTANCE_STORAGE = """
SELECT TOP (1) reserved_storage_mb, storage_space_used_mb FROM master.sys.server_resource_stats ORDER BY end_time DESC
"""
# https://learn.microsoft.com/sql/t-sql/functions/databasepropertyex-transact-sql: only the connected database.
AZURE_DATABASE = """
SELECT DB_NAME(), CAST(DATABASEPROPERTYEX(DB_NAME(), 'MaxSizeInBytes') AS bigint),
       CAST(DATABASEPROPERTYEX(DB_NAME(), 'Edition') AS varchar(64))
"""
# https://learn.microsoft.com/sql/relational-databases/system-dynamic-management-views
# /sys-dm-elastic-pool-resource-stats-azure-sql-database: in the user database, and empty outside a pool.
POOL = """
SELECT TOP (1) storage_limit_mb, allocated_storage_mb FROM sys.dm_elastic_pool_resource_stats ORDER BY end_time DESC
"""
HYPERSCALE = "Hyperscale"
NO_VOLUMES = "its login may not see the volumes: VIEW SERVER STATE, from 2022 on VIEW SERVER PERFORMANCE STATE"


def ceilings_of(rows: Sequence[tuple[Any, ...]], most_gb: int | None, names: Sequence[str]) -> tuple[Ceiling, ...]:
    """Return ceilings for rows of name, bytes that files may grow to, and number of files without a limit."""
    most = [] if most_gb is None else [most_gb * 1024 * BYTES_PER_MB]
    limits = {
        name: min([*([] if endless else [int(grows_to)]), *most], default=None) for name, grows_to, endless in rows
    }
    return tuple(Ceiling(name, limit, is_unlimited=limit is None) for name, limit in limits.items() if name in names)


def azure_ceiling(database: str, most: int | None, edition: str) -> tuple[Ceiling, ...]:
    """Return the ceiling of an Azure SQL Database; that of Hyperscale is unknown."""
    known = edition != HYPERSCALE and most is not None and int(most) > 0
    return (Ceiling(database, int(most) if known and most is not None else None),)


# The log of each database, which may be larger than its data, and the reason why it is not truncated.
# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-databases-transact-sql
LOGS = """
SELECT d.name, SUM(CAST(f.size AS bigint)) * 8192, MIN(f.physical_name), MIN(d.log_reuse_wait_desc)
FROM sys.databases d JOIN sys.master_files f ON f.database_id = d.database_id
WHERE f.type = 1 AND d.name <> 'tempdb' GROUP BY d.name
"""
AZURE_LOG = """
SELECT DB_NAME(), SUM(CAST(size AS bigint)) * 8192, NULL, NULL FROM sys.database_files WHERE type = 1
"""
# For tempdb, sys.master_files has the sizes at the last start.
# https://learn.microsoft.com/sql/relational-databases/databases/tempdb-database
TEMPDB = "SELECT SUM(CAST(size AS bigint)) * 8192, MIN(physical_name) FROM tempdb.sys.database_files"


def logs_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the transaction log of each database."""
    parts = []
    for name, size_bytes, path, waits_for in query_server(connection, AZURE_LOG if is_azure(connection) else LOGS):
        detail = None if waits_for in {None, "NOTHING"} else f"not truncated: {waits_for}"
        if size_bytes is not None:
            parts.append(ServerPart(TRANSACTION_LOG, name, int(size_bytes), detail, _place(scope, path)))
    return parts


def tempdb_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the size of tempdb, unless it is measured as a database; nothing on Azure SQL Database."""
    if is_azure(connection) or "tempdb" in scope.databases:
        return []
    [(size_bytes, path)] = query_server(connection, TEMPDB)
    return [ServerPart(TEMPORARY, "tempdb", int(size_bytes), volume=_place(scope, path))]


def _place(scope: PartScope, path: object) -> str | None:
    """Return the volume of a file, or its drive if no database grows there."""
    drive = PureWindowsPath(str(path or "")).drive
    return scope.volume_of(path) or (f"{drive}\\" if drive else None)


# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-master-files-transact-sql: sizes are in
# pages of 8 KB. Without VIEW ANY DEFINITION rows are missing without an error, hence the outer join. Containers of
# FILESTREAM and memory-optimized data (type 2) report 0, and a snapshot reports the most that it may take.
QUERY = """
SELECT d.name,
       SUM(CASE WHEN f.type IN (0, 4) THEN CAST(f.size AS bigint) END) * 8192,
       SUM(CASE WHEN f.type = 1 THEN CAST(f.size AS bigint) END) * 8192,
       COUNT(f.file_id),
       SUM(CASE WHEN f.type NOT IN (0, 1, 4) THEN 1 ELSE 0 END),
       SUM(CASE WHEN f.type IN (0, 1, 4) AND f.size IS NULL THEN 1 ELSE 0 END),
       MAX(CASE WHEN d.source_database_id IS NULL THEN 0 ELSE 1 END)
FROM sys.databases d LEFT JOIN sys.master_files f ON f.database_id = d.database_id
GROUP BY d.name
"""
# Azure SQL Database has no sys.master_files; one connection sees the files of one database.
# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-database-files-transact-sql
ONE_DATABASE = """
SELECT DB_NAME(),
       SUM(CASE WHEN type IN (0, 2, 4) THEN CAST(size AS bigint) END) * 8192,
       SUM(CASE WHEN type = 1 THEN CAST(size AS bigint) END) * 8192, COUNT(*), 0,
       SUM(CASE WHEN size IS NULL THEN 1 ELSE 0 END), 0
FROM sys.database_files
"""
# https://learn.microsoft.com/sql/relational-databases/system-dynamic-management-views
# /sys-dm-db-partition-stats-transact-sql: one row per partition and index; 0, the heap, and 1, the clustered index, are
# the table. Row-overflow and LOB pages are counted with their index.
OBJECTS = """
SELECT TOP (%s) s.name, o.name, i.name, p.index_id, SUM(p.reserved_page_count) * 8192,
       SUM(p.reserved_page_count - p.used_page_count) * 8192, SUM(p.row_count),
       SUM(CASE WHEN p.index_id > 1 THEN SUM(p.reserved_page_count) ELSE 0 END) OVER (PARTITION BY o.object_id) * 8192,
       COUNT(*) OVER (), SUM(SUM(p.reserved_page_count)) OVER () * 8192
FROM {database}sys.dm_db_partition_stats p
JOIN {database}sys.objects o ON o.object_id = p.object_id
JOIN {database}sys.schemas s ON s.schema_id = o.schema_id
LEFT JOIN {database}sys.indexes i ON i.object_id = p.object_id AND i.index_id = p.index_id
GROUP BY s.name, o.name, o.object_id, i.name, p.index_id
ORDER BY SUM(p.reserved_page_count) DESC, o.object_id, p.index_id
"""
# https://learn.microsoft.com/sql/relational-databases/system-dynamic-management-views
# /sys-dm-db-file-space-usage-transact-sql: from 2012 on for every database. Containers of FILESTREAM are no part of it.
USED = "SELECT SUM(allocated_extent_page_count) * 8192 FROM {database}sys.dm_db_file_space_usage"
EDITION = "SELECT CAST(SERVERPROPERTY('EngineEdition') AS int), DB_NAME()"
# https://learn.microsoft.com/sql/t-sql/functions/serverproperty-transact-sql, EngineEdition.
EXPRESS, AZURE_SQL_DATABASE, MANAGED_INSTANCE = 4, 5, 8
WITHOUT_FILES = {6: "Azure Synapse (dedicated)", 11: "Azure Synapse (serverless)", 12: "Microsoft Fabric"}
# Editions whose databases share one storage: its name and query.
SHARED = {AZURE_SQL_DATABASE: ("elastic pool", POOL), MANAGED_INSTANCE: ("reserved storage", INSTANCE_STORAGE)}


def edition_of(connection: Any) -> int:
    """Return the number of the edition of the server."""
    return int(query_server(connection, EDITION)[0][0])


def is_azure(connection: Any) -> bool:
    """Whether the server is an Azure SQL Database, where a connection sees one database."""
    return edition_of(connection) == AZURE_SQL_DATABASE


class SQLServer(EngineAdapter):
    """Sizes by `sys.master_files`; of Azure SQL Database by `sys.database_files` of the database connected to."""

    name: ClassVar[str] = "sqlserver"
    default_port: ClassVar[int] = 1433
    default_database: ClassVar[str | None] = "master"
    system_databases: ClassVar[tuple[str, ...]] = ("master", "model", "msdb", "tempdb", "rdsadmin")
    verified: ClassVar[bool] = False
    fills_files: ClassVar[bool] = True
    grants: ClassVar[str] = (
        "CREATE LOGIN capacity_probe WITH PASSWORD = '...';\nGRANT VIEW ANY DEFINITION TO capacity_probe;\n"
        "-- Without it, databases that are offline are not seen at all:\n"
        "-- GRANT ALTER ANY DATABASE TO capacity_probe;\n"
        "-- for limits by volume (VIEW SERVER PERFORMANCE STATE from 2022 on):\n"
        "-- GRANT VIEW SERVER STATE TO capacity_probe;\n"
        "-- for used space, and for tables and indexes with CAPACITY_OBJECTS, in addition to the previous one:\n"
        "-- GRANT CONNECT ANY DATABASE TO capacity_probe;"
    )
    definition: ClassVar[str] = (
        "data files in `sys.master_files`, rounded down; log files as log size. Containers of FILESTREAM and "
        "memory-optimized data, and database snapshots, are not counted, but named. Azure SQL Database: "
        "`sys.database_files` of the one database that is registered; elastic pools, Synapse and Fabric are not "
        "measured"
    )
    used_definition: ClassVar[str] = "pages in allocated extents of the data files, by `sys.dm_db_file_space_usage`"
    limits_definition: ClassVar[str] = (
        "the maximum size of the data files in `sys.master_files`, at most 10 GiB in the Express edition (50 from 2025 "
        "on), and their volumes, by `sys.dm_os_volume_stats`. Managed instances: the reserved storage, by "
        "`master.sys.server_resource_stats`. Azure SQL Database: `MaxSizeInBytes`, except for Hyperscale, and the "
        "elastic pool, by `sys.dm_elastic_pool_resource_stats`"
    )
    part_sources: ClassVar[Mapping[str, PartSource]] = {
        TRANSACTION_LOG: PartSource(logs_of, "VIEW ANY DEFINITION"),
        TEMPORARY: PartSource(tempdb_of, "access to tempdb"),
    }
    parts_definition: ClassVar[str] = (
        "the transaction log of each database, by the log files in `sys.master_files`, with the reason why it is not "
        "truncated; tempdb, by its `sys.database_files`"
    )
    objects_definition: ClassVar[str] = (
        "heaps and clustered indexes as tables, and other indexes, partitions together: reserved pages in "
        "`sys.dm_db_partition_stats`. Free: reserved pages that are not used. Other space in files is unexplained"
    )

    def connect(self, access: Access) -> Any:
        """Connect; a connection that the driver cannot encrypt is refused first."""
        try:
            import pytds
        except ImportError:
            raise without_driver("sqlserver") from None
        refuse_setup(
            (
                access.tls != TLS_OFF and not access.tls_ca,
                f"its driver encrypts only if it can verify the server: {access.tls} needs `tls_ca`",
            ),
            (
                access.tls == TLS_OFF and access.password and not is_loopback(access.host),
                "without TLS, its password would be sent unencrypted: register `tls` and `tls_ca`",
            ),
        )
        pytds.tls.validate_host = is_issued_for
        opened = BoundedSocket(access)
        connection = pytds.connect(
            server=access.host,
            port=access.port,
            sock=opened,
            database=access.database or self.default_database,
            user=access.username,
            password=access.password,
            login_timeout=access.connect_seconds,
            timeout=access.statement_seconds,
            appname=PROGRAM,
            readonly=True,
            autocommit=True,
            cafile=None if access.tls == TLS_OFF else access.tls_ca,
            validate_host=access.tls == "verify-full",
            disable_connect_retry=True,
        )
        opened.answer_seconds = access.statement_seconds
        return connection

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        [(edition, database)] = query_server(connection, EDITION)
        return measurement_of(query_server(connection, query_for(int(edition), str(database))), excluded)

    def used(self, connection: Any, access: Access, sizes: Sequence[DatabaseSize]) -> UsedSpace:
        is_one = is_azure(connection)

        def read(name: str) -> int | None:
            [(used,)] = query_server(connection, USED.format(database=prefix_of(None if is_one else name)))
            return None if used is None else int(used)

        return used_by_database([size.name for size in sizes], read, self.failure)

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:
        edition, most_gb = edition_of(connection), None
        if edition == EXPRESS:
            [(version,)] = query_server(connection, MAJOR_VERSION)
            most_gb = EXPRESS_GB.get(int(version), EXPRESS_GB_BEFORE)
        if edition == AZURE_SQL_DATABASE:
            ceilings = azure_ceiling(*query_server(connection, AZURE_DATABASE)[0])
        else:
            ceilings = ceilings_of(query_server(connection, FILES), most_gb, names)
        shared, query = SHARED.get(edition, (None, VOLUMES))
        rows = self.rows_if_allowed(connection, query)
        if rows is None:
            return Limits((), ceilings, NO_VOLUMES)
        places: dict[str, tuple[str, ...]] = defaultdict(tuple)
        if shared is None:
            # The least free space that the files of a volume report.
            by_name = {
                name: Volume(name, int(total), int(free))
                for _, name, total, free in sorted(rows, key=lambda row: -row[3])
            }
            volumes = tuple(by_name[name] for name in sorted(by_name))
            for database, name, *_ in rows:
                places[database] += (name,)
        else:
            free = ((int(limit), max(int(limit) - int(used), 0)) for limit, used in rows)
            volumes = tuple(
                Volume(shared, total_mb * BYTES_PER_MB, free_mb * BYTES_PER_MB) for total_mb, free_mb in free
            )
            places |= {ceiling.database: (shared,) for ceiling in ceilings if volumes}
        # A database whose files all have a fixed size grows on no volume, but has a ceiling.
        return Limits(volumes, tuple(replace(ceiling, volumes=places.get(ceiling.database)) for ceiling in ceilings))

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:
        is_one = is_azure(connection)

        def read(name: str) -> DatabaseObjects:
            return objects_from(name, query_server(connection, objects_query(None if is_one else name), [CANDIDATES]))

        return objects_by_database(names, read, self.failure)

    def facts(self, connection: Any) -> ServerFacts:
        """Return the version; only VIEW SERVER STATE shows whether the connection is encrypted."""
        [(version,)] = query_server(connection, "SELECT CAST(SERVERPROPERTY('ProductVersion') AS varchar(64))")
        return ServerFacts(f"SQL Server {version}", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:
        module = type(error).__module__.partition(".")[0]
        # The driver raises a bare Exception if a server insists on TLS.
        if module == "OpenSSL" or "tls_ctx" in str(error):
            return MeasureError(FailureKind.TLS, first_line(error))
        if module != "pytds":
            return None
        number = getattr(error, "msg_no", 0)
        # The text of the exception is a tuple of the message and its cause.
        reason = error.args[0] if error.args else error
        kind = FailureKind.TLS if "Certificate" in str(reason) else FailureKind.UNEXPECTED
        return MeasureError(KINDS.get(number, kind), first_line(reason))


# https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
KINDS = {
    **dict.fromkeys((4060, 18452, 18456), FailureKind.LOGIN),
    **dict.fromkeys((229, 297, 300, 916), FailureKind.RIGHTS),
    6005: FailureKind.BROKEN_OFF,
}


class BoundedSocket(socket.socket):
    """A socket that aborts if the server sends too much or too slowly; the driver has no limit."""

    def __init__(self, access: Access) -> None:
        opened = socket.create_connection((access.host, access.port), access.connect_seconds)
        super().__init__(fileno=opened.detach())
        self.settimeout(access.connect_seconds)
        self.answer_seconds: float | None = None
        self._allowance = Allowance()
        self._allowance.begin(access.connect_seconds)

    def sendall(self, *arguments: Any) -> None:
        """Send; after the login, the time limit of the answer begins."""
        if self.answer_seconds is not None:
            self._allowance.begin(self.answer_seconds)
        super().sendall(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        """Receive and count; raises MeasureError as the allowance."""
        received = super().recv(*arguments)
        self._allowance.take(len(received))
        return received

    def recv_into(self, *arguments: Any) -> int:
        """As `recv`."""
        received = super().recv_into(*arguments)
        self._allowance.take(received)
        return received


def is_issued_for(cert: Any, name: bytes) -> bool:
    """Whether a pyOpenSSL certificate names a host.

    Replaces the driver's function with the same parameters, which calls a function that pyOpenSSL removed in 26.2.
    """
    from cryptography import x509

    certificate, host = cert.to_cryptography(), name.decode("ascii").lower()
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    names = [str(name.value).lower() for name in common[:1]]
    with suppress(x509.ExtensionNotFound):
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns_names = [name.lower() for name in alternatives.get_values_for_type(x509.DNSName)]
        names += [*dns_names, *map(str, alternatives.get_values_for_type(x509.IPAddress))]
        if f"*.{host.partition('.')[2]}" in dns_names and "." in host.partition(".")[2]:
            return True
    return host in names


def query_for(edition: int, database: str) -> str:
    """Return the statement for an edition; raises MeasureError if it does not report all sizes."""
    if edition in WITHOUT_FILES:
        raise MeasureError(FailureKind.SETUP, f"{WITHOUT_FILES[edition]} reports no sizes of files")
    if edition != AZURE_SQL_DATABASE:
        return QUERY
    if database == "master":
        raise MeasureError(
            FailureKind.SETUP, "Azure SQL Database shows one database per connection: register each with its `database`"
        )
    return ONE_DATABASE


def prefix_of(database: str | None) -> str:
    """Return the prefix of the name of a view of a database; None: the connected one."""
    return "" if database is None else f"[{database.replace(']', ']]')}]."


def objects_query(database: str | None) -> str:
    """Return the statement for the objects of a database; None: the connected one."""
    # The statement has a parameter, so a percent sign is doubled.
    return OBJECTS.format(database=prefix_of(database).replace("%", "%%"))


def objects_from(database: str, rows: Sequence[tuple[Any, ...]]) -> DatabaseObjects:
    """Return the objects of a database.

    A row is: schema, table, index or None, its number, bytes, free bytes, rows, bytes of all indexes of the table,
    number and bytes of all objects of the database.
    """
    objects = []
    for schema, table, index, number, size_bytes, free, estimated, of_indexes, *_ in rows:
        known = (int(free), int(estimated), True)
        if number <= 1:
            objects.append(ObjectSize(schema, table, TABLE, int(size_bytes), "", int(of_indexes), *known))
        else:
            objects.append(ObjectSize(schema, index or f"index {number}", INDEX, int(size_bytes), table, None, *known))
    all_count, all_bytes = rows[0][8:] if rows else (0, 0)
    return DatabaseObjects.among(database, objects, int(all_count), int(all_bytes))


def measurement_of(rows: Sequence[tuple[Any, ...]], excluded: Sequence[str]) -> Measurement:
    """Return the sizes of databases.

    A row is: name, data bytes, log bytes, files seen, containers, files without a size, whether it is a snapshot.

    Raises MeasureError: the login sees no file of a database, or a file has no size.
    """
    left_out = tuple(row[0] for row in rows if is_excluded(row[0], excluded))
    wanted = [row for row in rows if row[0] not in left_out and not row[6]]
    refuse_without_rights([row[0] for row in wanted if not row[3]], "VIEW ANY DEFINITION")
    unknown = [row[0] for row in wanted if row[5] or row[1] is None]
    if unknown:
        raise MeasureError(FailureKind.UNEXPECTED, f"the size of a file of {unknown[0]} is unknown")
    not_counted = [f"{row[0]}: {row[4]} containers of FILESTREAM or memory-optimized data" for row in wanted if row[4]]
    snapshots = [f"{row[0]}: a database snapshot" for row in rows if row[6]]
    sizes = [DatabaseSize.of_bytes(row[0], row[1], data_size=row[1], log_size=row[2]) for row in wanted]
    return Measurement(tuple(sizes), (*not_counted, *snapshots), left_out)
