"""MySQL and MariaDB: the sizes of the InnoDB tablespace files of each schema.

MariaDB is what the tests run. MySQL has the same driver, the same tables under one other name and another name for the
limit of a statement; it was never run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from capacity_assets.collection.engines.base import (
    PROGRAM,
    SIZINGS,
    STATISTICS,
    TLS_OFF,
    TLS_VERIFY_CA,
    TLS_VERIFY_FULL,
    Access,
    DatabaseSize,
    Engine,
    Kind,
    MeasureError,
    ServerFacts,
    ceiling_mb,
    closed_on_failure,
    first_line,
    refuse_without_rights,
    rows_of,
)

if TYPE_CHECKING:
    import pymysql
    from pymysql.connections import Connection

# A tablespace is named `schema/table`, both parts in the encoding of file names, which the server itself decodes.
# Those without a slash (system, undo, temporary, general ones) belong to no schema. A schema without tables has no
# tablespace and is listed with 0.
# https://mariadb.com/docs/server/reference/system-tables/information-schema/information-schema-tables/
# information-schema-innodb-tables/information-schema-innodb_sys_tablespaces-table
FILES_QUERY = """
SELECT name, CAST(SUM(size_bytes) AS UNSIGNED), NULL, MAX(is_listed) FROM (
    SELECT CONVERT(CONVERT(CAST(SUBSTRING_INDEX(NAME, '/', 1) AS BINARY) USING filename) USING utf8mb4)
               COLLATE utf8mb4_bin AS name, FILE_SIZE AS size_bytes, 0 AS is_listed
    FROM information_schema.{tablespaces} WHERE NAME LIKE '%/%'
    UNION ALL
    SELECT CONVERT(SCHEMA_NAME USING utf8mb4) COLLATE utf8mb4_bin, 0, 1 FROM information_schema.SCHEMATA
) AS found GROUP BY name
"""
# Pages as InnoDB's persistent statistics count them; no file is looked at.
STATISTICS_QUERY = """
SELECT name, CAST(SUM(pages) * @@innodb_page_size AS UNSIGNED), CAST(SUM(data_pages) * @@innodb_page_size AS UNSIGNED),
       MAX(is_listed)
FROM (
    SELECT CONVERT(database_name USING utf8mb4) COLLATE utf8mb4_bin AS name,
           clustered_index_size + sum_of_other_index_sizes AS pages, clustered_index_size AS data_pages, 0 AS is_listed
    FROM mysql.innodb_table_stats
    UNION ALL
    SELECT CONVERT(SCHEMA_NAME USING utf8mb4) COLLATE utf8mb4_bin, 0, 0, 1 FROM information_schema.SCHEMATA
) AS found GROUP BY name
"""
TABLESPACES = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'information_schema' AND TABLE_NAME IN ('INNODB_TABLESPACES', 'INNODB_SYS_TABLESPACES')"  # noqa: E501


class MySQL(Engine):
    """Sizes by tablespace files; with `statistics` by InnoDB's persistent statistics."""

    name: ClassVar[str] = "mysql"
    default_port: ClassVar[int] = 3306
    system_databases: ClassVar[tuple[str, ...]] = ("information_schema", "mysql", "performance_schema", "sys")
    sizings: ClassVar[tuple[str, ...]] = SIZINGS
    verified: ClassVar[bool] = False
    grants: ClassVar[str] = (
        "CREATE USER 'capacity_probe'@'%' IDENTIFIED BY '...';\n"
        "GRANT PROCESS, SHOW DATABASES ON *.* TO 'capacity_probe'@'%';\n"
        "-- for sizing = statistics:\n"
        "GRANT SELECT ON mysql.innodb_table_stats TO 'capacity_probe'@'%';"
    )
    definition: ClassVar[str] = (
        "sum of the InnoDB tablespace files of each schema, rounded up. "
        "`statistics`: pages in `mysql.innodb_table_stats`, of which those of the clustered indexes are data"
    )

    def connect(self, access: Access) -> Connection[Any]:
        """Connect and set the limits of the session."""
        import pymysql

        connection = pymysql.connect(
            host=None if access.socket else access.host,
            unix_socket=access.socket,
            port=access.port,
            user=access.username,
            password=access.password or "",
            database=access.database,
            charset="utf8mb4",
            connect_timeout=max(round(access.connect_seconds), 1),
            # It also bounds the greeting, which a server that accepts and stays silent never sends.
            read_timeout=max(round(access.connect_seconds), 1),
            write_timeout=max(round(access.statement_seconds), 1),
            program_name=PROGRAM,
            autocommit=True,
            **_tls(access),
        )
        with closed_on_failure(connection):
            # Connected, it may take its time; the driver has no public way to say so.
            connection._read_timeout = access.statement_seconds  # type: ignore[attr-defined]  # noqa: SLF001
            [(version,)] = rows_of(connection, "SELECT VERSION()")
            for statement in _limits(str(version), access.statement_seconds):
                rows_of(connection, statement)
        return connection

    def sizes(self, connection: Connection[Any], access: Access, excluded: Sequence[str]) -> list[DatabaseSize]:
        """Measure."""
        if access.sizing == STATISTICS:
            query = STATISTICS_QUERY
        else:
            [(tablespaces,)] = rows_of(connection, TABLESPACES)
            query = FILES_QUERY.format(tablespaces=tablespaces)
        found = rows_of(connection, query)
        # A schema of the server itself that has tables and is not listed: others are not listed either.
        hidden = [name for name, _, _, is_listed in found if name in self.system_databases and not is_listed]
        refuse_without_rights(hidden, "SHOW DATABASES")
        return [_size(*row[:3]) for row in found if row[0] not in excluded]

    def facts(self, connection: Connection[Any]) -> ServerFacts:
        """Read the version, and whether the connection is encrypted."""
        [(version,)] = rows_of(connection, "SELECT VERSION()")
        cipher = dict(rows_of(connection, "SHOW STATUS LIKE 'Ssl_cipher'")).get("Ssl_cipher")
        named = version if "MariaDB" in version else f"MySQL {version}"
        return ServerFacts(str(named), bool(cipher))

    def explained(self, error: Exception) -> MeasureError | None:
        """Tell by MySQL's error number."""
        import pymysql

        if not isinstance(error, pymysql.err.Error):
            return None
        number, text = _number_and_text(error)
        kind = KINDS.get(number, Kind.UNEXPECTED)
        if number == CANNOT_CONNECT and ("certificate" in text or "SSL" in text):
            kind = Kind.TLS
        if number in {CANNOT_CONNECT, LOST} and "timed out" in text:
            kind = Kind.TIMEOUT
        return MeasureError(kind, first_line(text))


class MariaDB(MySQL):
    """As MySQL, and tested on a real server."""

    name: ClassVar[str] = "mariadb"
    verified: ClassVar[bool] = True


CANNOT_CONNECT, LOST = 2003, 2013
# https://mariadb.com/docs/server/reference/error-codes/mariadb-error-code-reference; 2003 and above are the client's.
KINDS = {
    1040: Kind.UNREACHABLE,
    1044: Kind.LOGIN,
    1045: Kind.LOGIN,
    1049: Kind.LOGIN,
    1142: Kind.RIGHTS,
    1227: Kind.RIGHTS,
    1317: Kind.BROKEN_OFF,
    1698: Kind.LOGIN,
    1927: Kind.BROKEN_OFF,
    1969: Kind.TIMEOUT,
    2003: Kind.UNREACHABLE,
    2006: Kind.BROKEN_OFF,
    2013: Kind.BROKEN_OFF,
    2026: Kind.TLS,
    3024: Kind.TIMEOUT,
    3159: Kind.TLS,
}


def _number_and_text(error: pymysql.err.Error) -> tuple[int, str]:
    number, *rest = error.args or (0,)
    return (number, str(rest[0]) if rest else str(error)) if isinstance(number, int) else (0, str(error))


def _size(name: str, size_bytes: int, data_bytes: int | None) -> DatabaseSize:
    size_mb = ceiling_mb(size_bytes)
    return DatabaseSize(name, size_mb, data_size_mb=size_mb if data_bytes is None else ceiling_mb(data_bytes))


def _limits(version: str, seconds: float) -> list[str]:
    """MariaDB counts in seconds and for every statement, MySQL in milliseconds and for SELECT only."""
    limit = (
        f"SET SESSION max_statement_time = {seconds:.3f}"
        if "MariaDB" in version
        else f"SET SESSION max_execution_time = {round(seconds * 1000)}"
    )
    return [limit, "SET SESSION TRANSACTION READ ONLY"]


def _tls(access: Access) -> dict[str, Any]:
    if access.tls == TLS_OFF or access.socket:
        return {"ssl_disabled": True}
    # Without a context of its own the driver would go on unencrypted where the server offers nothing.
    return {"ssl": _context(access)}


def _context(access: Access) -> object:
    import ssl

    verifies = access.tls in {TLS_VERIFY_CA, TLS_VERIFY_FULL}
    context = ssl.create_default_context(cafile=access.tls_ca)
    context.check_hostname = access.tls == TLS_VERIFY_FULL
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if access.tls_certificate:
        context.load_cert_chain(access.tls_certificate, access.tls_key)
    return context
