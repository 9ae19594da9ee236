"""SQL Server: data files of each database, and its log files as log size.

Not verified: written from the vendor's documentation and tested on recorded results, not on a server.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from capacity_assets.collection.engines.base import (
    PROGRAM,
    TLS_OFF,
    Access,
    Allowance,
    DatabaseSize,
    EngineAdapter,
    Measurement,
    ServerFacts,
    first_line,
    is_excluded,
    is_loopback,
    refuse_without_rights,
    rows_of,
)
from capacity_assets.collection.engines.failures import FailureKind, MeasureError, without_driver
from capacity_assets.collection.engines.limits import Limits
from capacity_assets.collection.engines.sqlserver_limits import AZURE_SQL_DATABASE, limits_of

# https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-master-files-transact-sql: sizes are in
# pages of 8 KB; without VIEW ANY DEFINITION its rows are left out without a word, hence the outer join. Containers of
# FILESTREAM and memory-optimized data (type 2) say 0, and a snapshot the most that it could ever take.
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
EDITION = "SELECT CAST(SERVERPROPERTY('EngineEdition') AS int), DB_NAME()"
# https://learn.microsoft.com/sql/t-sql/functions/serverproperty-transact-sql, EngineEdition.
WITHOUT_FILES = {6: "Azure Synapse (dedicated)", 11: "Azure Synapse (serverless)", 12: "Microsoft Fabric"}


class SQLServer(EngineAdapter):
    """Sizes by `sys.master_files`; of Azure SQL Database by `sys.database_files` of the database connected to."""

    name: ClassVar[str] = "sqlserver"
    default_port: ClassVar[int] = 1433
    default_database: ClassVar[str | None] = "master"
    system_databases: ClassVar[tuple[str, ...]] = ("master", "model", "msdb", "tempdb", "rdsadmin")
    verified: ClassVar[bool] = False
    grants: ClassVar[str] = (
        "CREATE LOGIN capacity_probe WITH PASSWORD = '...';\nGRANT VIEW ANY DEFINITION TO capacity_probe;\n"
        "-- Without it, databases that are offline are not seen at all:\n"
        "-- GRANT ALTER ANY DATABASE TO capacity_probe;\n"
        "-- for limits by volume (VIEW SERVER PERFORMANCE STATE from 2022 on):\n"
        "-- GRANT VIEW SERVER STATE TO capacity_probe;"
    )
    definition: ClassVar[str] = (
        "data files in `sys.master_files`, rounded down; log files as log size. Containers of FILESTREAM and "
        "memory-optimized data are not counted, and named; database snapshots are left out, and named. Azure SQL "
        "Database: `sys.database_files` of the one database that is registered; elastic pools, Synapse and Fabric are "
        "not measured"
    )
    limits_definition: ClassVar[str] = (
        "what the data files in `sys.master_files` may grow to, at most 10 GiB in the Express edition (50 from 2025 "
        "on), and the volumes they lie on, by `sys.dm_os_volume_stats`. Managed instances: the reserved storage, by "
        "`master.sys.server_resource_stats`. Azure SQL Database: `MaxSizeInBytes`, but for Hyperscale, and the elastic "
        "pool, by `sys.dm_elastic_pool_resource_stats`"
    )

    def connect(self, access: Access) -> Any:
        """Connect; needs the extra `sqlserver`."""
        try:
            import pytds
        except ImportError:
            raise without_driver("sqlserver") from None
        if access.tls != TLS_OFF and not access.tls_ca:
            raise MeasureError(
                FailureKind.SETUP, f"its driver encrypts only what it can verify: {access.tls} needs `tls_ca`"
            )
        if access.tls == TLS_OFF and access.password and not is_loopback(access.host):
            raise MeasureError(
                FailureKind.SETUP,
                "without TLS its password would cross the network in clear: register `tls` and `tls_ca`",
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

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:  # noqa: ARG002 -- one way of sizing
        """Measure."""
        [(edition, database)] = rows_of(connection, EDITION)
        return measurement_of(rows_of(connection, query_for(int(edition), str(database))), excluded)

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002 -- asked the same way
        """Return the ceilings of the files and the volumes they lie on."""
        [(edition, _)] = rows_of(connection, EDITION)
        return limits_of(lambda query: rows_of(connection, query), int(edition), names, self._is_refusal)

    def _is_refusal(self, error: Exception) -> bool:
        known = self.explained(error)
        return known is not None and known.kind is FailureKind.RIGHTS

    def facts(self, connection: Any) -> ServerFacts:
        """Read the version, and whether the connection is encrypted (visible with VIEW SERVER STATE only)."""
        [(version,)] = rows_of(connection, "SELECT CAST(SERVERPROPERTY('ProductVersion') AS varchar(64))")
        return ServerFacts(f"SQL Server {version}", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:
        """Tell by SQL Server's error number."""
        if isinstance(error, TimeoutError):
            return MeasureError(FailureKind.TIMEOUT, first_line(error))
        module = type(error).__module__.partition(".")[0]
        # The driver raises a bare Exception where a server insists on TLS that was not asked for.
        if module == "OpenSSL" or "tls_ctx" in str(error):
            return MeasureError(FailureKind.TLS, first_line(error))
        if module != "pytds":
            return None
        number = getattr(error, "msg_no", 0)
        # The text of the exception is a tuple of what the server said and what caused it.
        said = error.args[0] if error.args else error
        kind = FailureKind.TLS if "Certificate" in str(said) else FailureKind.UNEXPECTED
        return MeasureError(KINDS.get(number, kind), first_line(said))


# https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
KINDS = {
    18456: FailureKind.LOGIN,
    18452: FailureKind.LOGIN,
    4060: FailureKind.LOGIN,
    229: FailureKind.RIGHTS,
    297: FailureKind.RIGHTS,
    300: FailureKind.RIGHTS,
    6005: FailureKind.BROKEN_OFF,
}


class BoundedSocket(socket.socket):
    """A socket that aborts if the server sends too much or too slowly; the driver has no limit."""

    def __init__(self, access: Access) -> None:
        """Connect, and begin to wait for the login as a whole; raises OSError."""
        opened = socket.create_connection((access.host, access.port), access.connect_seconds)
        super().__init__(fileno=opened.detach())
        self.settimeout(access.connect_seconds)
        self.answer_seconds: float | None = None
        self._allowance = Allowance()
        self._allowance.begin(access.connect_seconds)

    def sendall(self, *arguments: Any) -> None:
        """Send, and once the login is over begin to wait for the answer."""
        if self.answer_seconds is not None:
            self._allowance.begin(self.answer_seconds)
        super().sendall(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        """Receive and count; raises MeasureError like the allowance."""
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
    names = [str(one.value).lower() for one in common[:1]]
    with suppress(x509.ExtensionNotFound):
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += [one.lower() for one in alternatives.get_values_for_type(x509.DNSName)]
        names += [str(one) for one in alternatives.get_values_for_type(x509.IPAddress)]
        if f"*.{host.partition('.')[2]}" in names[1:] and "." in host.partition(".")[2]:
            return True
    return host in names


def query_for(edition: int, database: str) -> str:
    """Return the statement that an edition understands; raises MeasureError where it does not report all sizes."""
    if edition in WITHOUT_FILES:
        raise MeasureError(FailureKind.SETUP, f"{WITHOUT_FILES[edition]} reports no sizes of files")
    if edition != AZURE_SQL_DATABASE:
        return QUERY
    if database == "master":
        raise MeasureError(
            FailureKind.SETUP, "Azure SQL Database shows one database per connection: register each with its `database`"
        )
    return ONE_DATABASE


def measurement_of(rows: Sequence[tuple[Any, ...]], excluded: Sequence[str]) -> Measurement:
    """Turn the rows of the query into sizes.

    Shape of a row: name, data bytes, log bytes, files seen, containers, files without a size, whether it is a snapshot.

    Raises:
        MeasureError: of a database no file may be seen, or a file has no size.
    """
    left_out = tuple(row[0] for row in rows if is_excluded(row[0], excluded))
    wanted = [row for row in rows if row[0] not in left_out and not row[6]]
    refuse_without_rights([row[0] for row in wanted if not row[3]], "VIEW ANY DEFINITION")
    unknown = [row[0] for row in wanted if row[5] or row[1] is None]
    if unknown:
        raise MeasureError(FailureKind.UNEXPECTED, f"of {unknown[0]} the size of a file is not known")
    not_counted = [f"{row[0]}: {row[4]} containers of FILESTREAM or memory-optimized data" for row in wanted if row[4]]
    snapshots = [f"{row[0]}: a database snapshot" for row in rows if row[6]]
    sizes = [DatabaseSize.of_bytes(row[0], row[1], data_size=row[1], log_size=row[2]) for row in wanted]
    return Measurement(tuple(sizes), (*not_counted, *snapshots), left_out)
