"""MySQL and MariaDB: the bytes of every table of each schema, of any storage engine.

An InnoDB table has the size of its file; in a shared tablespace (`ibdata1`, general ones), it has the size in InnoDB's
statistics. A table of another engine has the size that the engine reports; tables without a reported size are named.
The two servers have these data in different tables, with different spellings of names.

The volumes of MariaDB come from its plugin `disks`; MySQL has none.
https://mariadb.com/docs/server/reference/plugins/other-plugins/disks-plugin: sizes are in KiB. Without the privilege
FILE the table is empty, without an error (seen on 11.8).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from capacity_assets.base.units import counted
from capacity_assets.collection.engines.base import (
    ALLOCATED,
    FILES,
    INDEX,
    NO_USED_SPACE,
    PROGRAM,
    ROWS_AT_A_TIME,
    STATISTICS,
    TABLE,
    TLS_OFF,
    VERIFIED_TLS,
    Access,
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
    ceiling_mb,
    closed_on_failure,
    first_line,
    is_excluded,
    objects_by_database,
    objects_of,
    query_server,
    refuse_without_rights,
    tls_context,
    used_by_database,
    volume_of,
)
from capacity_assets.database.measures import BINARY_LOG, REDO, RELAY_LOG, TEMPORARY, UNDO
from capacity_assets.database.sql import sql_text, with_queries

if TYPE_CHECKING:
    import pymysql


NO_PACKAGE = (
    "its login method needs a package that is not installed: pip install 'capacity_assets[mysql]'. Over verified TLS "
    "(`tls = verify-full` or `verify-ca`), caching_sha2_password and sha256_password do not need it"
)
CANNOT_CONNECT, LOST = 2003, 2013
# https://mariadb.com/docs/server/reference/error-codes/mariadb-error-code-reference; 2xxx are errors of the client.
KINDS = {
    **dict.fromkeys((1040, 2003), FailureKind.UNREACHABLE),
    **dict.fromkeys((1044, 1045, 1049, 1698, 2059), FailureKind.LOGIN),
    **dict.fromkeys((1142, 1227), FailureKind.RIGHTS),
    **dict.fromkeys((1317, 1927, 2006, 2013), FailureKind.BROKEN_OFF),
    **dict.fromkeys((1969, 3024), FailureKind.TIMEOUT),
    **dict.fromkeys((2026, 3159), FailureKind.TLS),
}


def _number_and_text(error: pymysql.err.Error) -> tuple[int, str]:
    number, *rest = error.args or (0,)
    return (number, str(rest[0]) if rest else str(error)) if isinstance(number, int) else (0, str(error))


def _tls(access: Access) -> dict[str, Any]:
    if access.tls == TLS_OFF or access.socket:
        return {"ssl_disabled": True}
    # Without a context, the driver would continue unencrypted if the server offers no TLS.
    return {"ssl": tls_context(access)}


# A mount over another one is listed twice, with the same figures.
DISKS = "SELECT Path, MAX(Total), MIN(Available), MAX(Used) FROM information_schema.DISKS GROUP BY Path"
HAS_DISKS = (
    "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'information_schema' AND TABLE_NAME = 'DISKS'"
)
FOLDERS = (
    "SELECT @@datadir, @@log_bin_basename, @@relay_log_basename, @@innodb_log_group_home_dir, @@innodb_undo_directory"
)
NO_PLUGIN = "MariaDB reports its file systems with the plugin `disks` only: INSTALL SONAME 'disks'"
NO_RIGHT = "its login may not see the file systems: FILE on *.* is missing"
NOT_LISTED = "the plugin `disks` does not list the file system of {}"
BYTES_PER_KIB = 1024


def limits_by_disks(connection: Any, names: Sequence[str]) -> Limits:
    """Return the volume of the data folder, on which every schema may grow, and those of logs."""
    [(there,)] = query_server(connection, HAS_DISKS)
    if not there:
        return Limits(unknown=NO_PLUGIN)
    disks = {str(path): tuple(map(int, sizes)) for path, *sizes in query_server(connection, DISKS)}
    if not disks:
        return Limits(unknown=NO_RIGHT)
    [(folder, *others)] = query_server(connection, FOLDERS)
    path = volume_of(str(folder), disks)
    if path is None:
        return Limits(unknown=NOT_LISTED.format(folder))
    # Folders may be relative to the data folder; a log that is not written has none.
    folders = {TEMPORARY: folder, **dict(zip((BINARY_LOG, RELAY_LOG, REDO, UNDO), others, strict=True))}
    mount_of = {kind: volume_of(str(PurePosixPath(folder) / place), disks) for kind, place in folders.items() if place}
    places = {kind: mount for kind, mount in mount_of.items() if mount}
    mounts = dict.fromkeys((path, *places.values()))
    volumes = tuple(Volume(mount, *(size * BYTES_PER_KIB for size in disks[mount])) for mount in mounts)
    ceilings = tuple(Ceiling(name, is_unlimited=True, volumes=(path,)) for name in names)
    return Limits(volumes, ceilings, places=places)


# https://dev.mysql.com/doc/refman/9.0/en/show-binary-logs.html and
# https://mariadb.com/docs/server/reference/sql-statements/administrative-sql-statements/show/show-binary-logs
BINARY_LOGS, NO_BINARY_LOG = "SHOW BINARY LOGS", 1381
# From 8.0.30 on, the files take the maximum of the redo log; before, and in MariaDB, their size and number are fixed.
# https://dev.mysql.com/doc/refman/9.0/en/innodb-redo-log.html
REDO_CAPACITY = "SHOW GLOBAL STATUS LIKE 'Innodb\\_redo\\_log\\_capacity\\_resized'"
REDO_FILES = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('innodb_log_file_size', 'innodb_log_files_in_group')"


def binary_logs_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the size of all binary logs; nothing if the server writes none."""
    import pymysql

    try:
        logs = query_server(connection, BINARY_LOGS)
    except pymysql.err.Error as error:
        if _number_and_text(error)[0] == NO_BINARY_LOG:
            return []
        raise
    return [_part(BINARY_LOG, scope, (log[1] for log in logs), counted(len(logs), "file"))]


def relay_logs_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the relay logs by source of replication."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(connection.dialect.replicas)
        columns = [column[0] for column in cursor.description or ()]
        replicas = [dict(zip(columns, row, strict=True)) for row in cursor.fetchmany(ROWS_AT_A_TIME)]
    named = (
        (str(replica.get("Channel_Name") or replica.get("Connection_name") or ""), replica) for replica in replicas
    )
    return [_part(RELAY_LOG, scope, [status["Relay_Log_Space"]], name=name) for name, status in named]


def undo_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the size of the undo tablespaces; nothing if undo logs are in the shared tablespace."""
    sizes = [size for (size,) in query_server(connection, connection.dialect.undo)]
    return [_part(UNDO, scope, sizes, counted(len(sizes), "tablespace"))] if sizes else []


def redo_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the size of the redo log files."""
    capacity = query_server(connection, REDO_CAPACITY)
    files = dict(query_server(connection, REDO_FILES))
    fixed = int(files.get("innodb_log_file_size", 0)) * int(files.get("innodb_log_files_in_group", 1))
    return [_part(REDO, scope, [capacity[0][1] if capacity else fixed])]


def temporary_of(connection: Any, scope: PartScope) -> list[ServerPart]:
    """Return the size of InnoDB's temporary tablespaces; no server reports the files in `@@tmpdir`."""
    return [_part(TEMPORARY, scope, (size for (size,) in query_server(connection, connection.dialect.temporary)))]


def _part(kind: str, scope: PartScope, sizes: Iterable[Any], detail: str | None = None, name: str = "") -> ServerPart:
    size_bytes = sum(int(size or 0) for size in sizes)
    return ServerPart(kind, name, size_bytes, detail, scope.limits.places.get(kind))


@dataclass(frozen=True)
class Dialect:
    """The statements for one of the two servers.

    `files` returns the file of each table or partition: schema, table, bytes, bytes on disk. `shared` counts the tables
    in shared tablespaces by schema; `shared_sizes` counts those with statistics, and adds up their bytes.
    """

    files: str
    shared: str
    shared_sizes: str
    undo: str
    temporary: str
    replicas: str


# No statement reads INNODB_TABLES, which opens every table that is not in the definition cache: 20 s and more for
# 10,000 tables. MySQL decodes the names of tablespaces, so `a/b/t` may be table `t` of schema `a/b` or `b/t` of `a`:
# the encoded folder of the file shows how many slashes (`@002f`) belong to the schema.
# https://dev.mysql.com/doc/refman/9.0/en/information-schema-innodb-tablespaces-table.html
_MYSQL_OWN = """
SELECT s.NAME AS full_name, 0 AS slashes, s.FILE_SIZE AS file_size, s.ALLOCATED_SIZE AS allocated_size
FROM information_schema.INNODB_TABLESPACES AS s
WHERE s.SPACE_TYPE = 'Single' AND SUBSTRING_INDEX(s.NAME, '/', 2) = s.NAME
UNION ALL
SELECT s.NAME, (LENGTH(d.folder) - LENGTH(REPLACE(d.folder, '@002f', ''))) DIV 5, s.FILE_SIZE, s.ALLOCATED_SIZE
FROM information_schema.INNODB_TABLESPACES AS s
JOIN (SELECT CAST(SPACE AS UNSIGNED) AS space_id, SUBSTRING_INDEX(SUBSTRING_INDEX(PATH, '/', -2), '/', 1) AS folder
      FROM information_schema.INNODB_DATAFILES) AS d ON d.space_id = s.SPACE
WHERE s.SPACE_TYPE = 'Single' AND SUBSTRING_INDEX(s.NAME, '/', 2) <> s.NAME
"""
# The suffix of a partition is cut off; so a table named `a#p#b` counts as a partition of `a`.
_MYSQL_FILES = """
SELECT CONVERT(SUBSTRING_INDEX(full_name, '/', 1 + slashes) USING utf8mb4) COLLATE utf8mb4_bin AS schema_name,
       CONVERT(SUBSTRING_INDEX(
           SUBSTRING(full_name, CHAR_LENGTH(SUBSTRING_INDEX(full_name, '/', 1 + slashes)) + 2), '#p#', 1)
           USING utf8mb4) COLLATE utf8mb4_bin AS table_name, file_size, allocated_size
FROM own
"""
# Tables and partitions.
_MYSQL_SHARED = """
SELECT CONVERT(p.TABLE_SCHEMA USING utf8mb4) COLLATE utf8mb4_bin AS schema_name, COUNT(*)
FROM (SELECT TABLE_SCHEMA, CONCAT(TABLE_NAME, COALESCE(CONCAT('#p#', LOWER(PARTITION_NAME)), ''),
                                  COALESCE(CONCAT('#sp#', LOWER(SUBPARTITION_NAME)), '')) AS part_name, TABLE_NAME
      FROM information_schema.PARTITIONS) AS p
JOIN information_schema.TABLES AS t ON t.TABLE_SCHEMA = p.TABLE_SCHEMA AND t.TABLE_NAME = p.TABLE_NAME
LEFT JOIN own ON own.full_name COLLATE utf8mb3_bin = CONCAT(p.TABLE_SCHEMA, '/', p.part_name)
    AND own.slashes = LENGTH(p.TABLE_SCHEMA) - LENGTH(REPLACE(p.TABLE_SCHEMA, '/', ''))
WHERE t.ENGINE = 'InnoDB' AND own.full_name IS NULL GROUP BY schema_name
"""
_MYSQL_SHARED_SIZES = """
SELECT CONVERT(p.database_name USING utf8mb4) COLLATE utf8mb4_bin, COUNT(*),
       CAST(SUM(p.clustered_index_size + p.sum_of_other_index_sizes) * @@innodb_page_size AS UNSIGNED)
FROM mysql.innodb_table_stats AS p
LEFT JOIN own ON own.full_name COLLATE utf8mb3_bin = CONCAT(p.database_name, '/', p.table_name)
    AND own.slashes = LENGTH(p.database_name) - LENGTH(REPLACE(p.database_name, '/', ''))
WHERE own.full_name IS NULL GROUP BY p.database_name
"""
# The global temporary tablespace, and those of sessions.
_MYSQL_TEMPORARY = """
SELECT CAST(SUM(FILE_SIZE) AS UNSIGNED) FROM information_schema.INNODB_TABLESPACES WHERE NAME = 'innodb_temporary'
UNION ALL SELECT CAST(SUM(SIZE) AS UNSIGNED) FROM information_schema.INNODB_SESSION_TEMP_TABLESPACES
"""
MYSQL = Dialect(
    files=sql_text(with_queries(_MYSQL_FILES, own=_MYSQL_OWN)),
    shared=sql_text(with_queries(_MYSQL_SHARED, own=_MYSQL_OWN)),
    shared_sizes=sql_text(with_queries(_MYSQL_SHARED_SIZES, own=_MYSQL_OWN)),
    undo="SELECT FILE_SIZE FROM information_schema.INNODB_TABLESPACES WHERE SPACE_TYPE = 'Undo'",
    temporary=_MYSQL_TEMPORARY,
    replicas="SHOW REPLICA STATUS",
)
# Needed before 8.0.22; later versions of 8.0 accept both.
FORMER_MYSQL = replace(MYSQL, replicas="SHOW SLAVE STATUS")
# MariaDB keeps names encoded as file names, which the server itself can decode; folders from before 5.1 are plain.
# https://mariadb.com/docs/server/reference/system-tables/information-schema/information-schema-tables/
# information-schema-innodb-tables/information-schema-innodb_sys_tablespaces-table
_MARIADB_FILES = """
SELECT IF(folder REGEXP '^[0-9A-Za-z_@]*$', CONVERT(CONVERT(CAST(folder AS BINARY) USING filename) USING utf8mb4),
          CONCAT('#mysql50#', CONVERT(folder USING utf8mb4))) COLLATE utf8mb4_bin AS schema_name,
       IF(file REGEXP '^[0-9A-Za-z_@]*$', CONVERT(CONVERT(CAST(file AS BINARY) USING filename) USING utf8mb4),
          CONCAT('#mysql50#', CONVERT(file USING utf8mb4))) COLLATE utf8mb4_bin AS table_name, file_size, allocated_size
FROM (SELECT SUBSTRING_INDEX(NAME, '/', 1) AS folder,
             SUBSTRING_INDEX(SUBSTRING_INDEX(SUBSTRING_INDEX(NAME, '/', -1), '#P#', 1), '#p#', 1) AS file,
             FILE_SIZE AS file_size, ALLOCATED_SIZE AS allocated_size
      FROM information_schema.INNODB_SYS_TABLESPACES WHERE INSTR(NAME, '/') > 0) AS f
"""
# By the encoded folder.
_MARIADB_SHARED = """
SELECT SUBSTRING_INDEX(NAME, '/', 1) AS folder, COUNT(*) FROM information_schema.INNODB_SYS_TABLES
WHERE SPACE = 0 AND INSTR(NAME, '/') > 0 GROUP BY folder
"""
_MARIADB_SHARED_SIZES = """
SELECT CONVERT(CONVERT(t.folder USING filename) USING utf8mb4) COLLATE utf8mb4_bin AS schema_name, COUNT(p.table_name),
       CAST(SUM(p.clustered_index_size + p.sum_of_other_index_sizes) * @@innodb_page_size AS UNSIGNED)
FROM (SELECT CAST(SUBSTRING_INDEX(NAME, '/', 1) AS BINARY) AS folder,
             CAST(REPLACE(SUBSTRING_INDEX(NAME, '/', -1), '#', '@0023') AS BINARY) AS file
      FROM information_schema.INNODB_SYS_TABLES WHERE SPACE = 0 AND INSTR(NAME, '/') > 0) AS t
LEFT JOIN mysql.innodb_table_stats AS p
    ON p.database_name = CONVERT(CONVERT(t.folder USING filename) USING utf8mb3) COLLATE utf8mb3_bin
   AND p.table_name = CONVERT(CONVERT(t.file USING filename) USING utf8mb3) COLLATE utf8mb3_bin
GROUP BY schema_name
"""
MARIADB = Dialect(
    files=_MARIADB_FILES,
    shared=_MARIADB_SHARED,
    shared_sizes=_MARIADB_SHARED_SIZES,
    undo="SELECT FILE_SIZE FROM information_schema.INNODB_SYS_TABLESPACES WHERE LEFT(NAME, 11) = 'innodb_undo'",
    temporary="SELECT FILE_SIZE FROM information_schema.INNODB_SYS_TABLESPACES WHERE NAME = 'innodb_temporary'",
    replicas="SHOW ALL SLAVES STATUS",
)

SCHEMAS = "SELECT CONVERT(SCHEMA_NAME USING utf8mb4) COLLATE utf8mb4_bin FROM information_schema.SCHEMATA"
FILES_BY_SCHEMA = """
SELECT schema_name, CAST(SUM(file_size) AS UNSIGNED), CAST(SUM(allocated_size) AS UNSIGNED)
FROM files GROUP BY schema_name
"""
FILES_BY_TABLE = """
SELECT schema_name, table_name, file_size, allocated_size FROM files ORDER BY file_size DESC LIMIT %s
"""
# The pages in InnoDB's persistent statistics; no file is read.
STATISTICS_BY_SCHEMA = """
SELECT CONVERT(database_name USING utf8mb4) COLLATE utf8mb4_bin AS schema_name,
       CAST(SUM(clustered_index_size + sum_of_other_index_sizes) * @@innodb_page_size AS UNSIGNED),
       CAST(SUM(clustered_index_size) * @@innodb_page_size AS UNSIGNED)
FROM mysql.innodb_table_stats GROUP BY schema_name
"""
MOST_TABLES, MOST_STATISTICS = 100_000, 20_000
STATISTICS_BY_TABLE = """
SELECT CONVERT(database_name USING utf8mb4) COLLATE utf8mb4_bin, CONVERT(table_name USING utf8mb4) COLLATE utf8mb4_bin,
       n_rows, clustered_index_size * @@innodb_page_size, sum_of_other_index_sizes * @@innodb_page_size
FROM mysql.innodb_table_stats ORDER BY clustered_index_size + sum_of_other_index_sizes DESC LIMIT %s
"""
# A table that was not opened since the start has no row, nor has one of a schema for which counting was switched off.
# In MariaDB, performance_schema is off by default.
# https://dev.mysql.com/doc/refman/9.0/en/performance-schema-table-wait-summary-tables.html
COUNTS_WRITES = """
SELECT COUNT(*) FROM performance_schema.setup_instruments
WHERE NAME = 'wait/io/table/sql/handler' AND ENABLED = 'YES' AND @@performance_schema
AND NOT EXISTS (
    SELECT 1 FROM performance_schema.setup_consumers WHERE NAME = 'global_instrumentation' AND ENABLED = 'NO'
)
AND NOT EXISTS (
    SELECT 1 FROM performance_schema.setup_objects WHERE OBJECT_TYPE = 'TABLE' AND ENABLED = 'NO'
    AND OBJECT_SCHEMA NOT IN ('mysql', 'performance_schema', 'information_schema')
)
"""
SINCE_START = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Performance_schema_table_instances_lost', 'Uptime')"
WRITTEN = """
SELECT CONVERT(OBJECT_SCHEMA USING utf8mb4), CONVERT(OBJECT_NAME USING utf8mb4), COUNT_WRITE
FROM performance_schema.table_io_waits_summary_by_table WHERE OBJECT_TYPE = 'TABLE' AND COUNT_WRITE > 0
"""
# Without a primary key, the clustered index is named GEN_CLUST_INDEX, or like the first unique key without nulls, which
# is recognized by its size.
STATISTICS_BY_INDEX = """
SELECT CONVERT(i.database_name USING utf8mb4) COLLATE utf8mb4_bin,
       CONVERT(i.table_name USING utf8mb4) COLLATE utf8mb4_bin,
       CONVERT(i.index_name USING utf8mb4) COLLATE utf8mb4_bin, i.stat_value * @@innodb_page_size,
       i.stat_value = t.clustered_index_size
FROM mysql.innodb_index_stats AS i
JOIN mysql.innodb_table_stats AS t ON t.database_name = i.database_name AND t.table_name = i.table_name
WHERE i.stat_name = 'size' ORDER BY i.stat_value DESC LIMIT %s
"""
CLUSTERED = ("PRIMARY", "GEN_CLUST_INDEX")
# The tables of schema `mysql` that the documented grants name.
TABLE_STATS, INDEX_STATS = GRANTED_TABLES = ("innodb_table_stats", "innodb_index_stats")
NO_STATISTICS = "indexes are part of their tables: SELECT on mysql.{} is missing"
MORE_TABLES = f"of more than {MOST_TABLES:,} tables, the smallest are unexplained"
_PARTITION = re.compile("#[pP]#")

# This opens no table.
TABLES_BY_ENGINE = """
SELECT CONVERT(TABLE_SCHEMA USING utf8mb4) COLLATE utf8mb4_bin, UPPER(ENGINE), COUNT(*) FROM information_schema.TABLES
WHERE TABLE_TYPE NOT IN ('VIEW', 'SYSTEM VIEW') GROUP BY 1, 2
"""
OTHER_ENGINES = """
SELECT UPPER(ENGINE), CAST(SUM(DATA_LENGTH + INDEX_LENGTH) AS UNSIGNED), CAST(SUM(DATA_LENGTH) AS UNSIGNED)
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND ENGINE <> 'InnoDB' GROUP BY 1
"""
OTHER_ENGINES_BY_TABLE = """
SELECT UPPER(ENGINE), CONVERT(TABLE_NAME USING utf8mb4) COLLATE utf8mb4_bin, CAST(DATA_LENGTH AS UNSIGNED),
       CAST(INDEX_LENGTH AS UNSIGNED), CAST(DATA_FREE AS UNSIGNED), TABLE_ROWS
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND ENGINE <> 'InnoDB'
"""
# This opens only the named tables. MySQL 8 would report figures that may be a day old.
MOST_FREE, MOST_USED, LEAST_USED_BYTES = 50, 1000, 10 * 1024**2
FRESH = "SET SESSION information_schema_stats_expiry = 0"
FREE = """
SELECT CONVERT(TABLE_NAME USING utf8mb4) COLLATE utf8mb4_bin, CAST(DATA_FREE AS UNSIGNED)
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME IN %s
"""
INNODB, UNKNOWN = "INNODB", "unknown"
# Engines without bytes on this server: in memory, on another server, or in tables that are counted separately.
WITHOUT_BYTES = {
    "MEMORY", "BLACKHOLE", "MRG_MYISAM", "FEDERATED", "SPIDER", "CONNECT", "PERFORMANCE_SCHEMA", "SEQUENCE",
}  # fmt: skip
# The engine always reports 0 for these.
WITHOUT_REPORTED_SIZES = {"CSV"}


def dialect_of(version: str) -> Dialect:
    """Return the statements for a version, which distinguishes MySQL from MariaDB, whichever is registered."""
    if "MariaDB" in version:
        return MARIADB
    return FORMER_MYSQL if version.startswith(("5.", "8.0.")) else MYSQL


def files_of(connection: Any, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query on `files`; raises MeasureError for a version that does not list them."""
    version = connection.version
    if "MariaDB" not in version and (version.startswith("5.") or "TiDB" in version):
        raise MeasureError(
            FailureKind.SETUP, f"version {version} cannot be measured by its files: register `sizing = statistics`"
        )
    return query_server(connection, sql_text(with_queries(query, files=connection.dialect.files)), parameters or None)


@dataclass
class _Table:
    """An InnoDB table, all of its partitions together."""

    file_bytes: int = 0
    rows: int | None = None
    clustered_bytes: int = 0
    others_bytes: int = 0
    indexes: dict[str, int] = field(default_factory=dict)

    def objects(self, name: str) -> Iterator[ObjectSize]:
        """Yield the table, and its indexes as parts of the file unless they exceed it."""
        whole = self.file_bytes or self.clustered_bytes + self.others_bytes
        indexes = self.indexes if sum(self.indexes.values()) <= whole else {}
        apart = sum(indexes.values())
        is_exact = bool(self.file_bytes) and not indexes
        known = self.others_bytes if self.rows is not None else None
        yield ObjectSize("", name, TABLE, whole - apart, "", known, None, self.rows, is_exact)
        yield from (ObjectSize("", index, INDEX, size_bytes, name) for index, size_bytes in indexes.items())


class MySQL(EngineAdapter):
    """Sizes by tablespace files; `allocated`: by their space on disk; `statistics`: without reading files."""

    name: ClassVar[str] = "mysql"
    default_port: ClassVar[int] = 3306
    system_databases: ClassVar[tuple[str, ...]] = ("information_schema", "mysql", "performance_schema", "sys")
    sizings: ClassVar[tuple[str, ...]] = (FILES, ALLOCATED, STATISTICS)
    verified: ClassVar[bool] = True
    grants: ClassVar[str] = (
        "CREATE USER 'capacity_probe'@'%' IDENTIFIED BY '...';\n"
        "-- SHOW VIEW shows that tables exist, and nothing that is in them:\n"
        "GRANT PROCESS, SHOW DATABASES, SHOW VIEW ON *.* TO 'capacity_probe'@'%';\n"
        "-- for tables in shared tablespaces, and for sizing = statistics:\n"
        "GRANT SELECT ON mysql.innodb_table_stats TO 'capacity_probe'@'%';\n"
        "-- for binary logs, and for relay logs; of MariaDB, for relay logs, REPLICA MONITOR:\n"
        "-- GRANT REPLICATION CLIENT ON *.* TO 'capacity_probe'@'%';\n"
        "-- for indexes apart from their tables, with CAPACITY_OBJECTS:\n"
        "GRANT SELECT ON mysql.innodb_index_stats TO 'capacity_probe'@'%';\n"
        "-- for tables that were not written to, with CAPACITY_OBJECTS and performance_schema:\n"
        "-- GRANT SELECT ON performance_schema.setup_instruments TO 'capacity_probe'@'%';\n"
        "-- GRANT SELECT ON performance_schema.setup_consumers TO 'capacity_probe'@'%';\n"
        "-- GRANT SELECT ON performance_schema.setup_objects TO 'capacity_probe'@'%';\n"
        "-- GRANT SELECT ON performance_schema.table_io_waits_summary_by_table TO 'capacity_probe'@'%';\n"
        "-- for the limits of a MariaDB server with the plugin disks; it also allows to read and write files of the "
        "server below secure_file_priv:\n"
        "-- GRANT FILE ON *.* TO 'capacity_probe'@'%';"
    )
    definition: ClassVar[str] = (
        "all tables of each schema, rounded up. InnoDB: the tablespace files; tables in shared tablespaces by "
        "`mysql.innodb_table_stats`. MyISAM, Aria, ARCHIVE and others: data and indexes as the engine reports them. "
        "CSV tables are not counted, and named. `allocated`: the disk space of the files, which is less if pages are "
        "compressed. `statistics`: InnoDB by `mysql.innodb_table_stats`, with clustered indexes as data. "
        "Undo, redo, binary logs and temporary tablespaces belong to no schema"
    )
    used_definition: ClassVar[str] = (
        "with `files`: the size without `DATA_FREE` of InnoDB tables with their own files, for the 1,000 largest "
        "files of a server, from 10 MiB on. Only the table itself can use the free space in its file"
    )
    limits_definition: ClassVar[str] = (
        "MariaDB: the file system of `@@datadir` and those of logs, links in paths taken as written, by the plugin "
        "`disks`. MySQL: none"
    )
    part_sources: ClassVar[Mapping[str, PartSource]] = {
        BINARY_LOG: PartSource(binary_logs_of, "REPLICATION CLIENT"),
        RELAY_LOG: PartSource(relay_logs_of, "REPLICATION CLIENT (MariaDB: REPLICA MONITOR)"),
        REDO: PartSource(redo_of, "PROCESS"),
        UNDO: PartSource(undo_of, "PROCESS"),
        TEMPORARY: PartSource(temporary_of, "PROCESS"),
    }
    parts_definition: ClassVar[str] = (
        "binary logs by `SHOW BINARY LOGS`; relay logs by the status of replicas; redo logs by the size of their "
        "files; undo tablespaces; the temporary tablespaces of InnoDB. Files in `@@tmpdir`, the shared tablespace and "
        "the doublewrite buffer are not reported"
    )
    objects_definition: ClassVar[str] = (
        "tables, partitions under their parent, by the files of their tablespaces, without secondary indexes, which "
        "have the sizes in `mysql.innodb_index_stats`; without the right on it, and beyond the 20,000 "
        "largest, indexes are part of their tables. Tables in shared tablespaces by `mysql.innodb_table_stats`, of "
        "other engines as they report it. Free: `DATA_FREE` of the 50 largest tables of a schema. Written rows: "
        "`COUNT_WRITE` in `performance_schema.table_io_waits_summary_by_table`"
    )

    def connect(self, access: Access) -> Any:
        from capacity_assets.collection.engines.mysql_connection import BoundedConnection, ProvingLogins

        connection = BoundedConnection(
            defer_connect=True,
            host=None if access.socket else access.host,
            unix_socket=access.socket,
            port=access.port,
            user=access.username,
            password=access.password or "",
            database=access.database,
            charset="utf8mb4",
            connect_timeout=max(round(access.connect_seconds), 1),
            # This also bounds the wait for the greeting, which a server that accepts and stays silent never sends.
            read_timeout=max(round(access.connect_seconds), 1),
            write_timeout=max(round(access.statement_seconds), 1),
            program_name=PROGRAM,
            autocommit=True,
            # A socket or a verified certificate proves who answers.
            auth_plugin_map=None
            if access.socket or access.tls in VERIFIED_TLS
            else ProvingLogins(access.server_public_key),
            **_tls(access),
        )
        connection.statement_seconds = access.connect_seconds
        connection.allowance.begin(access.connect_seconds)
        connection.connect()
        with closed_on_failure(connection):
            connection.statement_seconds = access.statement_seconds
            # The time limit of statements; the driver has no public way to set it.
            connection._read_timeout = access.statement_seconds  # noqa: SLF001
            [(connection.version,)] = query_server(connection, "SELECT VERSION()")
            connection.dialect = dialect_of(connection.version)
            # MariaDB takes seconds, and bounds every statement; MySQL takes milliseconds, and bounds only SELECT.
            is_mariadb, seconds = "MariaDB" in connection.version, access.statement_seconds
            limit = f"statement_time = {seconds:.3f}" if is_mariadb else f"execution_time = {round(seconds * 1000)}"
            query_server(connection, f"SET SESSION max_{limit}")
            query_server(connection, "SET SESSION TRANSACTION READ ONLY")
        return connection

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        schemas = [str(name) for (name,) in query_server(connection, SCHEMAS)]
        wanted = [name for name in schemas if not is_excluded(name, excluded)]
        total: Counter[str] = Counter()
        data = total
        not_counted: list[str] = []
        visible = _tables_by_engine(connection)
        if access.sizing == STATISTICS:
            data = Counter()
            for name, size_bytes, data_bytes in query_server(connection, STATISTICS_BY_SCHEMA):
                total[name] += int(size_bytes)
                data[name] += int(data_bytes)
        else:
            rows = files_of(connection, FILES_BY_SCHEMA)
            total.update(
                {str(name): int(allocated if access.sizing == ALLOCATED else size) for name, size, allocated in rows}
            )
            # If a schema with files is not listed, others may be hidden as well.
            refuse_without_rights(sorted(set(total) - set(schemas)), "SHOW DATABASES")
            refuse_without_rights(sorted(set(total) - set(visible)), "SHOW VIEW on *.*, without a partial revoke,")
            not_counted += _add_shared(connection, total, excluded)
        for name in wanted:
            for engine, tables in visible.get(name, {}).items():
                if engine in WITHOUT_REPORTED_SIZES | {UNKNOWN}:
                    not_counted.append(f"{name}: {counted(tables, 'table')} of engine {engine}")
            for _, size_bytes, data_bytes in _of_other_engines(connection, OTHER_ENGINES, name, visible):
                total[name] += int(size_bytes or 0)
                if data is not total:
                    data[name] += int(data_bytes or 0)
        sizes = (
            DatabaseSize.of_bytes(name, total[name], data_size=data[name], whole_mb=self.whole_mb) for name in wanted
        )
        return Measurement(tuple(sizes), tuple(not_counted), tuple(sorted(set(schemas) - set(wanted))))

    def whole_mb(self, size_bytes: int) -> int:
        return ceiling_mb(size_bytes)

    def used(self, connection: Any, access: Access, sizes: Sequence[DatabaseSize]) -> UsedSpace:
        if access.sizing != FILES:
            return NO_USED_SPACE
        if connection.dialect is not MARIADB:
            query_server(connection, FRESH)
        large: dict[str, set[str]] = defaultdict(set)
        for schema, table, size_bytes, _ in files_of(connection, FILES_BY_TABLE, MOST_USED):
            if size_bytes >= LEAST_USED_BYTES:
                large[str(schema)].add(str(table))

        def read(name: str) -> int:
            return sum(int(free or 0) for _, free in query_server(connection, FREE, [name, sorted(large[name])]))

        free = used_by_database([database.name for database in sizes if database.name in large], read, self.failure)
        failed = large.keys() - free.used_bytes.keys()
        used = {
            database.name: (database.size_bytes or 0) - free.used_bytes.get(database.name, 0)
            for database in sizes
            if database.name not in failed
        }
        return UsedSpace(used, free.unknown)

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:
        if connection.dialect is MARIADB:
            return limits_by_disks(connection, names)
        return Limits(unknown="MySQL reports no file systems")

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:
        tables, unknown = self._innodb_tables(connection, access)
        visible = _tables_by_engine(connection)

        def read(name: str) -> DatabaseObjects:
            objects = [item for table, known in tables.get(name, {}).items() for item in known.objects(table)]
            for _, table, data, indexes, free, estimated in _of_other_engines(
                connection, OTHER_ENGINES_BY_TABLE, name, visible
            ):
                whole, known = int(data or 0) + int(indexes or 0), None if estimated is None else int(estimated)
                objects.append(
                    ObjectSize("", str(table), TABLE, whole, "", None, min(int(free or 0), whole), known, is_exact=True)
                )
            return _with_written_rows(written, _with_free_bytes(connection, objects_of(name, objects)))

        written = self._write_counts(connection)
        measured = objects_by_database(names, read, self.failure)
        return replace(measured, unknown=(*unknown, *measured.unknown))

    def _write_counts(self, connection: Any) -> _WriteCounts | None:
        """Return the rows written since the server was started; None: it does not count them, or hides them."""
        began = datetime.now(UTC)
        try:
            [(is_counting,)] = query_server(connection, COUNTS_WRITES)
            status = dict(query_server(connection, SINCE_START))
            if not is_counting or int(status["Performance_schema_table_instances_lost"]):
                return None
            rows = query_server(connection, WRITTEN)
        except Exception as error:
            if not self.is_refusal(error):
                raise
            return None
        since = began - timedelta(seconds=int(status["Uptime"]))
        return _WriteCounts({(str(schema), str(table)): int(written) for schema, table, written in rows}, since)

    def _innodb_tables(
        self, connection: Any, access: Access
    ) -> tuple[Mapping[str, Mapping[str, _Table]], tuple[str, ...]]:
        """Return the InnoDB tables by schema and name, and the unknown parts."""
        tables: dict[str, dict[str, _Table]] = defaultdict(lambda: defaultdict(_Table))
        unknown: tuple[str, ...] = ()
        if access.sizing != STATISTICS:
            files = files_of(connection, FILES_BY_TABLE, MOST_TABLES)
            unknown = (MORE_TABLES,) if len(files) == MOST_TABLES else ()
            for schema, name, file_bytes, allocated_bytes in files:
                table = tables[str(schema)][str(name)]
                table.file_bytes += int(allocated_bytes if access.sizing == ALLOCATED else file_bytes)
        stats_table = TABLE_STATS
        try:
            for schema, name, rows, clustered, others in query_server(
                connection, STATISTICS_BY_TABLE, [MOST_STATISTICS]
            ):
                table = tables[str(schema)][_table_of(str(name), tables[str(schema)])]
                table.rows = (table.rows or 0) + int(rows)
                table.clustered_bytes += int(clustered)
                table.others_bytes += int(others)
            stats_table = INDEX_STATS
            _add_indexes(tables, query_server(connection, STATISTICS_BY_INDEX, [MOST_STATISTICS]))
        except Exception as error:
            if not self.is_refusal(error):
                raise
            unknown = (*unknown, NO_STATISTICS.format(stats_table))
        return tables, unknown

    def facts(self, connection: Any) -> ServerFacts:
        named = connection.version if connection.dialect is MARIADB else f"MySQL {connection.version}"
        encrypted = dict(query_server(connection, "SHOW STATUS LIKE 'Ssl_cipher'")).get("Ssl_cipher")
        return ServerFacts(named, bool(encrypted))

    def explained(self, error: Exception) -> MeasureError | None:
        import pymysql

        if not isinstance(error, pymysql.err.Error):
            if isinstance(error, RuntimeError) and "package is required" in str(error):
                return MeasureError(FailureKind.SETUP, NO_PACKAGE)
            # The driver raises these if a server names an unknown login method.
            if isinstance(error, RuntimeError | UnicodeDecodeError | AttributeError):
                return MeasureError(FailureKind.LOGIN, f"it asks for an unknown login method: {error}")
            return None
        number, text = _number_and_text(error)
        kind = KINDS.get(number, FailureKind.UNEXPECTED)
        if number == CANNOT_CONNECT and ("certificate" in text or "SSL" in text):
            kind = FailureKind.TLS
        if number in {CANNOT_CONNECT, LOST} and "timed out" in text:
            kind = FailureKind.TIMEOUT
        return MeasureError(kind, first_line(text))


class MariaDB(MySQL):
    """The same as MySQL; the version shows which of the two responds."""

    name: ClassVar[str] = "mariadb"


def _tables_by_engine(connection: Any) -> Mapping[str, Mapping[str, int]]:
    """Return the number of tables by schema and engine; raises MeasureError if the login does not see them."""
    tables_by_schema: dict[str, dict[str, int]] = defaultdict(dict)
    for schema, engine, tables in query_server(connection, TABLES_BY_ENGINE):
        tables_by_schema[str(schema)][engine or UNKNOWN] = int(tables)
    # Every server has more tables here than the documented grants name.
    if sum(tables_by_schema.get("mysql", {}).values()) <= len(GRANTED_TABLES):
        raise MeasureError(FailureKind.RIGHTS, "its login does not see which tables exist: SHOW VIEW on *.* is missing")
    return tables_by_schema


def _of_other_engines(
    connection: Any, query: str, schema: str, visible: Mapping[str, Mapping[str, int]]
) -> list[tuple[Any, ...]]:
    """Return rows, which begin with the engine, for engines that report sizes; without any, run no query."""
    without = WITHOUT_BYTES | WITHOUT_REPORTED_SIZES
    if not set(visible.get(schema, {})) - without - {INNODB, UNKNOWN}:
        return []
    return [row for row in query_server(connection, query, [schema]) if row[0] not in without]


def _add_shared(connection: Any, total: Counter[str], excluded: Sequence[str]) -> list[str]:
    """Add the tables in shared tablespaces by their statistics; return a sentence about tables without statistics."""
    shared = query_server(connection, connection.dialect.shared)
    missing = sum(int(tables) for folder, tables in shared if not is_excluded(str(folder), excluded))
    for name, tables, size_bytes in query_server(connection, connection.dialect.shared_sizes) if missing else ():
        if not is_excluded(str(name), excluded):
            missing -= int(tables)
            total[str(name)] += int(size_bytes or 0)
    return [f"{counted(missing, 'table')} in shared tablespaces without statistics"] if missing > 0 else []


def _table_of(name: str, tables: Mapping[str, _Table]) -> str:
    """Return the table for a name in statistics: that table, or the parent of the partition."""
    return name if name in tables else _PARTITION.split(name)[0]


def _add_indexes(tables: dict[str, dict[str, _Table]], rows: Sequence[tuple[Any, ...]]) -> None:
    """Add the indexes other than the clustered one to their tables."""
    by_part: dict[tuple[str, str], list[tuple[str, int, bool]]] = defaultdict(list)
    for schema, name, index, size_bytes, is_size_of_clustered in rows:
        by_part[str(schema), str(name)].append((str(index), int(size_bytes), bool(is_size_of_clustered)))
    for (schema, name), of_part in by_part.items():
        named = [index for index, *_ in of_part if index in CLUSTERED]
        clustered = named or sorted(index for index, _, fits in of_part if fits)
        indexes = tables[schema][_table_of(name, tables[schema])].indexes
        for index, size_bytes, _ in of_part:
            if index not in clustered[:1]:
                indexes[index] = indexes.get(index, 0) + size_bytes


@dataclass(frozen=True)
class _WriteCounts:
    """Rows written since the server was started, by schema and table, without tables to which nothing was written."""

    rows: Mapping[tuple[str, str], int]
    since: datetime


def _with_written_rows(written: _WriteCounts | None, database: DatabaseObjects) -> DatabaseObjects:
    if written is None:
        return database
    largest = (
        replace(item, written_rows=written.rows.get((database.database, item.name), 0), counted_since=written.since)
        if item.kind == TABLE
        else item
        for item in database.largest
    )
    return replace(database, largest=tuple(largest))


def _with_free_bytes(connection: Any, database: DatabaseObjects) -> DatabaseObjects:
    names = [item.name for item in database.largest if item.kind == TABLE and item.free_bytes is None][:MOST_FREE]
    if not names:
        return database
    free = {str(name): int(size) for name, size in query_server(connection, FREE, [database.database, names]) if size}
    largest = (
        replace(item, free_bytes=min(free[item.name], item.size_bytes))
        if item.kind == TABLE and item.name in free
        else item
        for item in database.largest
    )
    return replace(database, largest=tuple(largest))
