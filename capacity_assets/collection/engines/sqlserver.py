"""SQL Server: data files of each database, and its log files as log size.

Not verified: written from the vendor's documentation and tested on recorded results, not on a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from capacity_assets.collection.engines.base import (
    PROGRAM,
    TLS_OFF,
    Access,
    DatabaseSize,
    Engine,
    Kind,
    MeasureError,
    ServerFacts,
    first_line,
    floor_mb,
    refuse_without_rights,
    rows_of,
)

# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-master-files-transact-sql: sizes are in
# pages of 8 KB; without VIEW ANY DEFINITION its rows are left out without a word, hence the outer join.
QUERY = """
SELECT d.name,
       SUM(CASE WHEN f.type_desc = 'ROWS' THEN CAST(f.size AS bigint) ELSE 0 END) * 8192,
       SUM(CASE WHEN f.type_desc = 'LOG' THEN CAST(f.size AS bigint) ELSE 0 END) * 8192,
       COUNT(f.file_id)
FROM sys.databases d LEFT JOIN sys.master_files f ON f.database_id = d.database_id
GROUP BY d.name
"""


class SQLServer(Engine):
    """Sizes by `sys.master_files`."""

    name: ClassVar[str] = "sqlserver"
    default_port: ClassVar[int] = 1433
    default_database: ClassVar[str | None] = "master"
    system_databases: ClassVar[tuple[str, ...]] = ("master", "model", "msdb", "tempdb")
    verified: ClassVar[bool] = False
    grants: ClassVar[str] = (
        "CREATE LOGIN capacity_probe WITH PASSWORD = '...';\nGRANT VIEW ANY DEFINITION TO capacity_probe;"
    )
    definition: ClassVar[str] = "data files (`ROWS`) in `sys.master_files`, rounded down; its log files as log size"

    def connect(self, access: Access) -> Any:
        """Connect; needs the extra `sqlserver`."""
        try:
            import pytds
        except ImportError:
            raise MeasureError(
                Kind.SETUP, "its driver is not installed: pip install 'capacity_assets[sqlserver]'"
            ) from None
        if access.tls != TLS_OFF and not access.tls_ca:
            raise MeasureError(Kind.SETUP, f"its driver encrypts only what it can verify: {access.tls} needs `tls_ca`")
        return pytds.connect(
            server=access.host,
            port=access.port,
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

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> list[DatabaseSize]:  # noqa: ARG002 -- one way of sizing
        """Measure."""
        return sizes_of([row for row in rows_of(connection, QUERY) if row[0] not in excluded])

    def facts(self, connection: Any) -> ServerFacts:
        """Read the version, and whether the connection is encrypted (told to those with VIEW SERVER STATE only)."""
        [(version,)] = rows_of(connection, "SELECT CAST(SERVERPROPERTY('ProductVersion') AS varchar(64))")
        return ServerFacts(f"SQL Server {version}", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:
        """Tell by SQL Server's error number."""
        if isinstance(error, TimeoutError):
            return MeasureError(Kind.TIMEOUT, first_line(error))
        if type(error).__module__.partition(".")[0] != "pytds":
            return None
        number = getattr(error, "msg_no", 0)
        # The text of the exception is a tuple of what the server said and what caused it.
        said = error.args[0] if error.args else error
        return MeasureError(KINDS.get(number, Kind.UNEXPECTED), first_line(said))


# https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
KINDS = {
    18456: Kind.LOGIN,
    18452: Kind.LOGIN,
    4060: Kind.LOGIN,
    229: Kind.RIGHTS,
    297: Kind.RIGHTS,
    300: Kind.RIGHTS,
    6005: Kind.BROKEN_OFF,
}


def sizes_of(rows: Sequence[tuple[Any, ...]]) -> list[DatabaseSize]:
    """Turn the rows of the query (name, data bytes, log bytes, files seen) into sizes.

    Raises:
        MeasureError: of a database no file may be seen.
    """
    refuse_without_rights([name for name, _, _, files in rows if not files], "VIEW ANY DEFINITION")
    return [
        DatabaseSize(name, floor_mb(data), data_size_mb=floor_mb(data), log_size_mb=floor_mb(log))
        for name, data, log, _ in rows
    ]
