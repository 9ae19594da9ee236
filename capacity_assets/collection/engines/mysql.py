"""MySQL and MariaDB: the bytes of every table of each schema, whatever its engine.

InnoDB tables with a file of their own count with that file. Those in a shared tablespace (`ibdata1`, general ones) have
none, and count with InnoDB's own statistics; tables of other engines with what the engine reports. What no engine
reports is named. The two servers hold the same facts in tables of other names, and other spellings of the schema.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from capacity_assets.collection.engines import mysql_protocol
from capacity_assets.collection.engines.base import (
    ALLOCATED,
    FILES,
    STATISTICS,
    Access,
    DatabaseSize,
    EngineAdapter,
    Measurement,
    ServerFacts,
    ceiling_mb,
    is_excluded,
    refuse_without_rights,
    rows_of,
)
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.limits import Limits
from capacity_assets.collection.engines.mariadb_disks import limits_by_disks
from capacity_assets.units import counted

if TYPE_CHECKING:
    from pymysql.connections import Connection

SCHEMAS = "SELECT CONVERT(SCHEMA_NAME USING utf8mb4) COLLATE utf8mb4_bin FROM information_schema.SCHEMATA"
# The tablespaces of single tables. No statement reads INNODB_TABLES, which opens every table that is not in the
# definition cache: 20 s and more for 10,000 tables. MySQL decodes the names of its tablespaces, so `a/b/t` may be
# table `t` of schema `a/b` or `b/t` of `a`: there, the encoded folder of the file says how many slashes (`@002f`)
# belong to the schema. {size} is FILE_SIZE or ALLOCATED_SIZE.
# https://dev.mysql.com/doc/refman/9.0/en/information-schema-innodb-tablespaces-table.html
_MYSQL_OWN = """
    SELECT s.NAME AS full_name, 0 AS slashes, s.{size} AS size_bytes FROM information_schema.INNODB_TABLESPACES AS s
    WHERE s.SPACE_TYPE = 'Single' AND s.NAME NOT LIKE '%/%/%'
    UNION ALL
    SELECT s.NAME, (LENGTH(d.folder) - LENGTH(REPLACE(d.folder, '@002f', ''))) DIV 5, s.{size}
    FROM information_schema.INNODB_TABLESPACES AS s
    JOIN (SELECT CAST(SPACE AS UNSIGNED) AS space_id, SUBSTRING_INDEX(SUBSTRING_INDEX(PATH, '/', -2), '/', 1) AS folder
          FROM information_schema.INNODB_DATAFILES) AS d ON d.space_id = s.SPACE
    WHERE s.SPACE_TYPE = 'Single' AND s.NAME LIKE '%/%/%'
"""
_MYSQL_IS_OWN = """own.full_name COLLATE utf8mb3_bin = CONCAT({schema}, '/', {table})
      AND own.slashes = LENGTH({schema}) - LENGTH(REPLACE({schema}, '/', ''))"""
MYSQL_FILES = f"""
SELECT CONVERT(SUBSTRING_INDEX(full_name, '/', 1 + slashes) USING utf8mb4) COLLATE utf8mb4_bin AS schema_name,
       CAST(SUM(size_bytes) AS UNSIGNED), COUNT(*)
FROM ({_MYSQL_OWN}) AS own GROUP BY schema_name
"""  # noqa: S608 -- statements of our own
# MariaDB keeps them encoded as file names, which the server itself decodes; a folder of before 5.1 is plain.
# https://mariadb.com/docs/server/reference/system-tables/information-schema/information-schema-tables/
# information-schema-innodb-tables/information-schema-innodb_sys_tablespaces-table
MARIADB_FILES = """
SELECT IF(folder REGEXP '^[0-9A-Za-z_@]*$', CONVERT(CONVERT(CAST(folder AS BINARY) USING filename) USING utf8mb4),
          CONCAT('#mysql50#', CONVERT(folder USING utf8mb4))) COLLATE utf8mb4_bin AS schema_name,
       CAST(SUM(size_bytes) AS UNSIGNED), COUNT(*)
FROM (SELECT SUBSTRING_INDEX(NAME, '/', 1) AS folder, {size} AS size_bytes
      FROM information_schema.INNODB_SYS_TABLESPACES WHERE NAME LIKE '%/%') AS f
GROUP BY schema_name
"""
# Tables and partitions in shared tablespaces.
MYSQL_SHARED = f"""
SELECT CONVERT(p.TABLE_SCHEMA USING utf8mb4) COLLATE utf8mb4_bin AS schema_name, COUNT(*)
FROM (SELECT TABLE_SCHEMA, CONCAT(TABLE_NAME, COALESCE(CONCAT('#p#', LOWER(PARTITION_NAME)), ''),
                                  COALESCE(CONCAT('#sp#', LOWER(SUBPARTITION_NAME)), '')) AS part_name, TABLE_NAME
      FROM information_schema.PARTITIONS) AS p
JOIN information_schema.TABLES AS t ON t.TABLE_SCHEMA = p.TABLE_SCHEMA AND t.TABLE_NAME = p.TABLE_NAME
LEFT JOIN ({_MYSQL_OWN.format(size="FILE_SIZE")}) AS own
    ON {_MYSQL_IS_OWN.format(schema="p.TABLE_SCHEMA", table="p.part_name")}
WHERE t.ENGINE = 'InnoDB' AND own.full_name IS NULL GROUP BY schema_name
"""  # noqa: S608 -- as above
# By the encoded folder of the file.
MARIADB_SHARED = """
SELECT SUBSTRING_INDEX(NAME, '/', 1) AS folder, COUNT(*) FROM information_schema.INNODB_SYS_TABLES
WHERE SPACE = 0 AND NAME LIKE '%/%' GROUP BY folder
"""
MYSQL_SHARED_SIZES = f"""
SELECT CONVERT(p.database_name USING utf8mb4) COLLATE utf8mb4_bin, COUNT(*),
       CAST(SUM(p.clustered_index_size + p.sum_of_other_index_sizes) * @@innodb_page_size AS UNSIGNED)
FROM mysql.innodb_table_stats AS p
LEFT JOIN ({_MYSQL_OWN.format(size="FILE_SIZE")}) AS own
    ON {_MYSQL_IS_OWN.format(schema="p.database_name", table="p.table_name")}
WHERE own.full_name IS NULL GROUP BY p.database_name
"""  # noqa: S608 -- as above
MARIADB_SHARED_SIZES = """
SELECT CONVERT(CONVERT(t.folder USING filename) USING utf8mb4) COLLATE utf8mb4_bin AS schema_name, COUNT(p.table_name),
       CAST(SUM(p.clustered_index_size + p.sum_of_other_index_sizes) * @@innodb_page_size AS UNSIGNED)
FROM (SELECT CAST(SUBSTRING_INDEX(NAME, '/', 1) AS BINARY) AS folder,
             CAST(REPLACE(SUBSTRING_INDEX(NAME, '/', -1), '#', '@0023') AS BINARY) AS file
      FROM information_schema.INNODB_SYS_TABLES WHERE SPACE = 0 AND NAME LIKE '%/%') AS t
LEFT JOIN mysql.innodb_table_stats AS p
    ON p.database_name = CONVERT(CONVERT(t.folder USING filename) USING utf8mb3) COLLATE utf8mb3_bin
   AND p.table_name = CONVERT(CONVERT(t.file USING filename) USING utf8mb3) COLLATE utf8mb3_bin
GROUP BY schema_name
"""
# Pages as InnoDB's persistent statistics count them; no file is looked at.
STATISTICS_QUERY = """
SELECT CONVERT(database_name USING utf8mb4) COLLATE utf8mb4_bin AS schema_name,
       CAST(SUM(clustered_index_size + sum_of_other_index_sizes) * @@innodb_page_size AS UNSIGNED),
       CAST(SUM(clustered_index_size) * @@innodb_page_size AS UNSIGNED)
FROM mysql.innodb_table_stats GROUP BY schema_name
"""
# Which engines hold tables; no table is opened for it.
TABLES_BY_ENGINE = """
SELECT CONVERT(TABLE_SCHEMA USING utf8mb4) COLLATE utf8mb4_bin, UPPER(ENGINE), COUNT(*) FROM information_schema.TABLES
WHERE TABLE_TYPE NOT IN ('VIEW', 'SYSTEM VIEW') GROUP BY 1, 2
"""
REPORTED_SIZES = """
SELECT UPPER(ENGINE), CAST(SUM(DATA_LENGTH + INDEX_LENGTH) AS UNSIGNED), CAST(SUM(DATA_LENGTH) AS UNSIGNED)
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND ENGINE <> 'InnoDB' GROUP BY 1
"""
INNODB = "INNODB"
# These hold no bytes of their own on this server: in memory, elsewhere, or in tables that are counted themselves.
WITHOUT_BYTES = {
    "MEMORY",
    "BLACKHOLE",
    "MRG_MYISAM",
    "FEDERATED",
    "SPIDER",
    "CONNECT",
    "PERFORMANCE_SCHEMA",
    "SEQUENCE",
}
# The engine says 0 for these, whatever they hold.
WITHOUT_REPORTED_SIZES = {"CSV"}


class MySQL(EngineAdapter):
    """Sizes by tablespace files; `allocated` by what they take on disk; `statistics` without looking at files."""

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
        "-- for the limits of a MariaDB server with the plugin disks; it also allows to read and write files of the "
        "server below secure_file_priv:\n"
        "-- GRANT FILE ON *.* TO 'capacity_probe'@'%';"
    )
    definition: ClassVar[str] = (
        "all tables of each schema, rounded up. InnoDB: the tablespace files; tables in shared tablespaces by "
        "`mysql.innodb_table_stats`. MyISAM, Aria, ARCHIVE and others: data and indexes as the engine reports them. "
        "CSV tables are not counted, and named. `allocated`: what the files take on disk, which is less where pages "
        "are compressed. `statistics`: InnoDB by `mysql.innodb_table_stats`, of which clustered indexes are data. "
        "Undo, redo, binary logs and temporary tablespaces belong to no schema"
    )
    limits_definition: ClassVar[str] = (
        "MariaDB: the file system of `@@datadir`, links in it taken as written, by the plugin `disks`. MySQL: none"
    )

    def connect(self, access: Access) -> Connection[Any]:
        """Connect and set the limits of the session."""
        return mysql_protocol.connected(access)

    def sizes(self, connection: Connection[Any], access: Access, excluded: Sequence[str]) -> Measurement:
        """Measure."""
        schemas = [str(name) for (name,) in rows_of(connection, SCHEMAS)]
        wanted = [name for name in schemas if not is_excluded(name, excluded)]
        total: dict[str, int] = dict.fromkeys(wanted, 0)
        data: dict[str, int] | None = None
        not_counted: list[str] = []
        visible = self._tables_by_engine(connection)
        if access.sizing == STATISTICS:
            data = dict.fromkeys(wanted, 0)
            for name, size_bytes, data_bytes in rows_of(connection, STATISTICS_QUERY):
                _add(total, name, size_bytes)
                _add(data, name, data_bytes)
        else:
            statements = _statements_for(mysql_protocol.version_of(connection))
            files = self._file_sizes(connection, statements.files, access.sizing, schemas, visible)
            for name, size_bytes in files.items():
                _add(total, name, size_bytes)
            not_counted += self._add_shared(connection, statements, total, excluded)
        not_counted += _add_other_engines(connection, total, data, visible)
        sizes = [
            DatabaseSize.of_bytes(name, size, data_size=size if data is None else data[name], whole_mb=ceiling_mb)
            for name, size in total.items()
        ]
        return Measurement(tuple(sizes), tuple(not_counted), tuple(sorted(set(schemas) - set(wanted))))

    def limits(self, connection: Connection[Any], access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002 -- asked the same way
        """Return the volume of the data folder; MySQL reports none."""
        if "MariaDB" in mysql_protocol.version_of(connection):
            return limits_by_disks(connection, names)
        return Limits(unknown="MySQL reports no file systems")

    def _tables_by_engine(self, connection: Connection[Any]) -> Mapping[str, Mapping[str | None, int]]:
        """Count the tables of each schema by engine, and refuse a login that does not see them."""
        found: dict[str, dict[str | None, int]] = defaultdict(dict)
        for schema, engine, tables in rows_of(connection, TABLES_BY_ENGINE):
            found[str(schema)][engine] = int(tables)
        # Every server has tables here beside the one that the documented grant names.
        if sum(found.get("mysql", {}).values()) <= 1:
            raise MeasureError(
                FailureKind.RIGHTS, "its login does not see which tables there are: SHOW VIEW on *.* is missing"
            )
        return found

    def _file_sizes(
        self,
        connection: Connection[Any],
        query: str,
        sizing: str,
        schemas: Iterable[str],
        visible: Mapping[str, Mapping[str | None, int]],
    ) -> dict[str, int]:
        size = "ALLOCATED_SIZE" if sizing == ALLOCATED else "FILE_SIZE"
        files = {str(row[0]): int(row[1]) for row in rows_of(connection, query.format(size=size))}
        # A schema that has files and is not listed: others are not listed either.
        refuse_without_rights(sorted(set(files) - set(schemas)), "SHOW DATABASES")
        hidden = [name for name in files if name not in visible]
        refuse_without_rights(hidden, "SHOW VIEW on *.*, without a partial revoke,")
        return files

    def _add_shared(
        self, connection: Connection[Any], statements: _Statements, total: dict[str, int], excluded: Sequence[str]
    ) -> Iterable[str]:
        """Add the tables in shared tablespaces by their statistics; name what has none."""
        there = sum(
            int(tables)
            for folder, tables in rows_of(connection, statements.shared)
            if not is_excluded(str(folder), excluded)
        )
        if not there:
            return ()
        known = 0
        for name, tables, size_bytes in rows_of(connection, statements.shared_sizes):
            if not is_excluded(str(name), excluded):
                known += int(tables)
                _add(total, str(name), size_bytes)
        missing = there - known
        return (f"{counted(missing, 'table')} in shared tablespaces without statistics",) if missing > 0 else ()

    def facts(self, connection: Connection[Any]) -> ServerFacts:
        """Read the version, and whether the connection is encrypted."""
        version = mysql_protocol.version_of(connection)
        named = version if "MariaDB" in version else f"MySQL {version}"
        return ServerFacts(named, mysql_protocol.is_encrypted(connection))

    def explained(self, error: Exception) -> MeasureError | None:
        """Tell by MySQL's error number."""
        return mysql_protocol.explained(error)


class MariaDB(MySQL):
    """As MySQL: the version says which of the two answers, whatever was registered."""

    name: ClassVar[str] = "mariadb"


class _Statements(NamedTuple):
    files: str
    shared: str
    shared_sizes: str


def _statements_for(version: str) -> _Statements:
    """Return the statements of the server that answers; raises MeasureError if it reports no sizes of files."""
    if "MariaDB" in version:
        return _Statements(MARIADB_FILES, MARIADB_SHARED, MARIADB_SHARED_SIZES)
    if version.startswith("5.") or "TiDB" in version:
        raise MeasureError(
            FailureKind.SETUP, f"version {version} is not measured by its files: register `sizing = statistics` for it"
        )
    return _Statements(MYSQL_FILES, MYSQL_SHARED, MYSQL_SHARED_SIZES)


def _add(total: dict[str, int], name: str, size_bytes: int | None) -> None:
    """Add to a schema that is wanted."""
    if name in total:
        total[name] += int(size_bytes or 0)


def _add_other_engines(
    connection: Connection[Any],
    total: dict[str, int],
    data: dict[str, int] | None,
    visible: Mapping[str, Mapping[str | None, int]],
) -> Iterable[str]:
    """Add tables of other engines than InnoDB, schema by schema that has any; name what is not reported."""
    for name in total:
        engines = visible.get(name, {})
        without_sizes = {
            engine or "unknown": tables
            for engine, tables in engines.items()
            if engine is None or engine in WITHOUT_REPORTED_SIZES
        }
        for engine, tables in without_sizes.items():
            yield f"{name}: {counted(tables, 'table')} of engine {engine}"
        if not set(engines) - {INNODB, None} - WITHOUT_REPORTED_SIZES - WITHOUT_BYTES:
            continue
        for engine, size_bytes, data_bytes in rows_of(connection, REPORTED_SIZES, [name]):
            if engine not in WITHOUT_BYTES | WITHOUT_REPORTED_SIZES:
                _add(total, name, size_bytes)
                if data is not None:
                    _add(data, name, data_bytes)
