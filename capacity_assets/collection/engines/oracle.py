"""Oracle Database: bytes of the data files of each tablespace.

Not verified: written from the vendor's documentation and tested on recorded results, not on a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from capacity_assets.collection.engines.base import (
    PROGRAM,
    TLS_OFF,
    TLS_VERIFY_FULL,
    Access,
    DatabaseSize,
    EngineAdapter,
    Measurement,
    ServerFacts,
    first_line,
    is_excluded,
    rows_of,
)
from capacity_assets.collection.engines.failures import FailureKind, MeasureError

# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_DATA_FILES.html
QUERY = "SELECT tablespace_name, SUM(bytes), COUNT(*), COUNT(bytes) FROM dba_data_files GROUP BY tablespace_name"
# The root of a container database shows its own files only, and says nothing of the others.
# https://docs.oracle.com/en/database/oracle/oracle-database/23/sqlrf/SYS_CONTEXT.html
CONTAINER = "SELECT SYS_CONTEXT('USERENV', 'CON_NAME') FROM dual"
ROOT = "CDB$ROOT"
VERSION = "SELECT version FROM product_component_version WHERE ROWNUM = 1"


class Oracle(EngineAdapter):
    """Sizes by `dba_data_files`; the database to connect to is the service name."""

    name: ClassVar[str] = "oracle"
    default_port: ClassVar[int] = 1521
    system_databases: ClassVar[tuple[str, ...]] = ()
    verified: ClassVar[bool] = False
    grants: ClassVar[str] = (
        'CREATE USER capacity_probe IDENTIFIED BY "...";\n'
        "GRANT CREATE SESSION TO capacity_probe;\n"
        "GRANT SELECT ON sys.dba_data_files TO capacity_probe;"
    )
    definition: ClassVar[str] = (
        "bytes of the data files in `dba_data_files` of each tablespace, rounded down, whatever ASM mirrors. "
        "Temporary tablespaces, redo and archived logs are not counted. Each pluggable database is registered by its "
        "own service; the root of a container database is refused"
    )

    def connect(self, access: Access) -> Any:
        """Connect; needs the extra `oracle` and a service name."""
        try:
            import oracledb
        except ImportError:
            raise MeasureError(
                FailureKind.SETUP, "its driver is not installed: pip install 'capacity_assets[oracle]'"
            ) from None
        if not access.username:
            raise MeasureError(FailureKind.SETUP, "it needs a login: register `username` and `password_from`")
        if not access.database:
            raise MeasureError(FailureKind.SETUP, "it needs its service name: register `database`")
        connection = oracledb.connect(
            user=access.username,
            password=access.password,
            host=access.host,
            port=access.port,
            service_name=access.database,
            protocol="tcp" if access.tls == TLS_OFF else "tcps",
            ssl_server_dn_match=access.tls == TLS_VERIFY_FULL,
            wallet_location=access.tls_ca,
            tcp_connect_timeout=access.connect_seconds,
            program=PROGRAM,
        )
        connection.call_timeout = round(access.statement_seconds * 1000)
        return connection

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:  # noqa: ARG002 -- one way of sizing
        """Measure."""
        [(container,)] = rows_of(connection, CONTAINER)
        if container == ROOT:
            raise MeasureError(
                FailureKind.SETUP,
                "its service leads to the root of a container database, which does not show the pluggable ones: "
                "register the service of each pluggable database",
            )
        return measurement_of(rows_of(connection, QUERY), excluded)

    def facts(self, connection: Any) -> ServerFacts:
        """Read the version."""
        [(version,)] = rows_of(connection, VERSION)
        return ServerFacts(f"Oracle Database {version}", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:
        """Tell by the ORA- and DPY- numbers."""
        if type(error).__module__.partition(".")[0] != "oracledb":
            return None
        code = str(getattr(error.args[0] if error.args else None, "full_code", ""))
        return MeasureError(KINDS.get(code, FailureKind.UNEXPECTED), first_line(error))


# https://docs.oracle.com/error-help/db/ and
# https://python-oracledb.readthedocs.io/en/latest/user_guide/troubleshooting.html
KINDS = {
    "ORA-01017": FailureKind.LOGIN,
    "ORA-28000": FailureKind.LOGIN,
    "ORA-28001": FailureKind.LOGIN,
    "ORA-00942": FailureKind.RIGHTS,
    "ORA-01031": FailureKind.RIGHTS,
    "ORA-01045": FailureKind.RIGHTS,
    "ORA-12514": FailureKind.LOGIN,
    "DPY-6001": FailureKind.LOGIN,
    "DPY-6005": FailureKind.UNREACHABLE,
    "DPY-4011": FailureKind.BROKEN_OFF,
    "DPY-4024": FailureKind.TIMEOUT,
}


def measurement_of(rows: Sequence[tuple[Any, ...]], excluded: Sequence[str]) -> Measurement:
    """Turn the rows of the query (tablespace, bytes, files, files with a size) into sizes.

    Raises:
        MeasureError: the size of a file is not known, which is not 0.
    """
    left_out = tuple(row[0] for row in rows if is_excluded(row[0], excluded))
    wanted = [row for row in rows if row[0] not in left_out]
    unknown = [row[0] for row in wanted if row[2] != row[3]]
    if unknown:
        raise MeasureError(
            FailureKind.UNEXPECTED,
            f"the size of a data file of {unknown[0]} is not known: the file is offline, or its wallet closed",
        )
    return Measurement(
        tuple(DatabaseSize.of_bytes(row[0], row[1], data_size=row[1]) for row in wanted), left_out=left_out
    )
