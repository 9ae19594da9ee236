"""Oracle Database: bytes of the data files of each tablespace.

Not verified: written from the vendor's documentation and tested on recorded results, not on a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from capacity_assets.base.units import BYTES_PER_MB, counted
from capacity_assets.collection.engines.base import (
    CANDIDATES,
    INDEX,
    PROGRAM,
    TABLE,
    TLS_OFF,
    TLS_VERIFY_FULL,
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
    Volume,
    first_line,
    is_excluded,
    rows_of,
    without_driver,
)
from capacity_assets.database.measures import ARCHIVED_LOG, RECOVERY_AREA, REDO, TEMPORARY

# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_DATA_FILES.html
QUERY = "SELECT tablespace_name, SUM(bytes), COUNT(*), COUNT(bytes) FROM dba_data_files GROUP BY tablespace_name"
# maxbytes is 0 where a file does not extend, and may be less than what a file was resized to by hand. The view of usage
# metrics is not taken: from 18 on its size is bounded by what the file system has free, before it was not.
CEILINGS = """
SELECT tablespace_name, SUM(CASE WHEN autoextensible = 'YES' THEN GREATEST(bytes, maxbytes) ELSE bytes END)
FROM dba_data_files GROUP BY tablespace_name
"""
GROUPS_OF_TABLESPACES = """
SELECT DISTINCT tablespace_name, REGEXP_SUBSTR(file_name, '^\\+([^/.]+)', 1, 1, NULL, 1)
FROM dba_data_files WHERE autoextensible = 'YES'
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-ASM_DISKGROUP_STAT.html: sizes in MiB before
# mirroring, but for usable_file_mb, which may be negative, and is 0 for groups of the types FLEX and EXTEND.
DISK_GROUPS = (
    "SELECT name, type, total_mb, usable_file_mb, free_mb FROM v$asm_diskgroup_stat WHERE state <> 'DISMOUNTED'"
)
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-LOGFILE.html, V-LOG.html, V-STANDBY_LOG.html:
# each member of a group has the size of the group.
REDO_LOGS = """
SELECT SUM(l.bytes), COUNT(*), MIN(m.member)
FROM v$logfile m JOIN (SELECT group#, bytes FROM v$log UNION ALL SELECT group#, bytes FROM v$standby_log) l
    ON l.group# = m.group#
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-ARCHIVED_LOG.html
ARCHIVED_LOGS = """
SELECT SUM(blocks * block_size), COUNT(*), MIN(name) FROM v$archived_log
WHERE deleted = 'NO' AND status = 'A' AND standby_dest = 'NO' AND name IS NOT NULL
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-RECOVERY_AREA_USAGE.html: in percent of
# the limit.
RECOVERY = """
SELECT u.file_type, u.percent_space_used * d.space_limit / 100, u.number_of_files, d.name
FROM v$recovery_area_usage u CROSS JOIN v$recovery_file_dest d
WHERE u.file_type NOT IN ('REDO LOG', 'ARCHIVED LOG') AND u.number_of_files > 0
"""
TEMPORARY_FILES = (
    "SELECT tablespace_name, SUM(bytes), COUNT(*), MIN(file_name) FROM dba_temp_files GROUP BY tablespace_name"
)
OUTSIDE_ASM = "file system"


def redo_logs_of(connection: Any, scope: PartScope) -> list[ServerPart]:  # noqa: ARG001 -- a file says its disk group
    """Return the size of the online and standby redo logs."""
    return [_part(REDO, "", *row) for row in rows_of(connection, REDO_LOGS)]


def archived_logs_of(connection: Any, scope: PartScope) -> list[ServerPart]:  # noqa: ARG001 -- as above
    """Return the size of the archived logs that were not deleted."""
    return [_part(ARCHIVED_LOG, "", *row) for row in rows_of(connection, ARCHIVED_LOGS)]


def recovery_area_of(connection: Any, scope: PartScope) -> list[ServerPart]:  # noqa: ARG001 -- as above
    """Return what the fast recovery area holds beside redo and archived logs, by type of file."""
    return [_part(RECOVERY_AREA, str(kind).lower(), *row) for kind, *row in rows_of(connection, RECOVERY)]


def temporary_files_of(connection: Any, scope: PartScope) -> list[ServerPart]:  # noqa: ARG001 -- as above
    """Return the size of the temporary tablespaces."""
    return [_part(TEMPORARY, str(name), *row) for name, *row in rows_of(connection, TEMPORARY_FILES)]


def _part(kind: str, name: str, size_bytes: Any, files: int, path: str | None) -> ServerPart:
    """Return a part; its volume is the disk group that the path of one of its files begins with."""
    group = str(path).removeprefix("+").partition("/")[0] if str(path).startswith("+") else OUTSIDE_ASM
    return ServerPart(kind, name, int(size_bytes or 0), counted(int(files), "file"), group if path else None)


COPIES = {"EXTERN": 1, "NORMAL": 2, "HIGH": 3}
# The root of a container database shows its own files only, and says nothing of the others.
# https://docs.oracle.com/en/database/oracle/oracle-database/23/sqlrf/SYS_CONTEXT.html
CONTAINER = "SELECT SYS_CONTEXT('USERENV', 'CON_NAME') FROM dual"
ROOT = "CDB$ROOT"
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_SEGMENTS.html: one row per segment, partitions
# apart. LOBs and their indexes belong to the table that dba_lobs names.
OBJECTS = f"""
WITH owned AS (
    SELECT s.tablespace_name, s.owner, COALESCE(l.table_name, x.table_name, s.segment_name) AS object_name,
           CASE WHEN s.segment_type LIKE 'INDEX%' THEN 'index' ELSE 'table' END AS kind, s.bytes
    FROM dba_segments s
    LEFT JOIN dba_lobs l ON l.owner = s.owner AND l.segment_name = s.segment_name AND s.segment_type LIKE 'LOB%'
    LEFT JOIN dba_lobs x ON x.owner = s.owner AND x.index_name = s.segment_name AND s.segment_type = 'LOBINDEX'
), sized AS (
    SELECT tablespace_name, owner, object_name, kind, SUM(bytes) AS bytes FROM owned
    GROUP BY tablespace_name, owner, object_name, kind
), ranked AS (
    SELECT z.*, ROW_NUMBER() OVER (PARTITION BY tablespace_name ORDER BY bytes DESC, owner, object_name, kind) AS place,
           COUNT(*) OVER (PARTITION BY tablespace_name) AS all_count,
           SUM(bytes) OVER (PARTITION BY tablespace_name) AS all_bytes
    FROM sized z
)
SELECT r.tablespace_name, r.owner, r.object_name, r.kind, i.table_name, r.bytes, t.num_rows, r.all_count, r.all_bytes
FROM ranked r
LEFT JOIN dba_indexes i ON r.kind = 'index' AND i.owner = r.owner AND i.index_name = r.object_name
LEFT JOIN dba_tables t ON r.kind = 'table' AND t.owner = r.owner AND t.table_name = r.object_name
WHERE r.place <= {CANDIDATES} ORDER BY r.tablespace_name, r.place
"""  # noqa: S608 -- a number of our own
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
        "GRANT SELECT ON sys.dba_data_files TO capacity_probe;\n"
        "-- for redo and archived logs, the recovery area and temporary tablespaces:\n"
        "-- GRANT SELECT ON sys.v_$log TO capacity_probe;\n-- GRANT SELECT ON sys.v_$standby_log TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$logfile TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$archived_log TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$recovery_area_usage TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$recovery_file_dest TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.dba_temp_files TO capacity_probe;\n"
        "-- for limits by ASM disk group:\n"
        "-- GRANT SELECT ON sys.v_$asm_diskgroup_stat TO capacity_probe;\n"
        "-- for tables and indexes, with CAPACITY_OBJECTS, each of:\n"
        "-- GRANT SELECT ON sys.dba_segments TO capacity_probe; -- dba_lobs, dba_indexes, dba_tables"
    )
    definition: ClassVar[str] = (
        "bytes of the data files in `dba_data_files` of each tablespace, rounded down, whatever ASM mirrors. "
        "Temporary tablespaces, redo and archived logs are not counted. Each pluggable database is registered by its "
        "own service; the root of a container database is refused"
    )
    limits_definition: ClassVar[str] = (
        "what the data files of each tablespace may extend to, and the ASM disk groups they lie on with what is usable "
        "after mirroring, by `v$asm_diskgroup_stat`. File systems outside ASM are not reported"
    )
    part_sources: ClassVar[Mapping[str, PartSource]] = {
        REDO: PartSource(redo_logs_of, "SELECT on v_$log, v_$standby_log and v_$logfile"),
        ARCHIVED_LOG: PartSource(archived_logs_of, "SELECT on v_$archived_log"),
        RECOVERY_AREA: PartSource(recovery_area_of, "SELECT on v_$recovery_area_usage and v_$recovery_file_dest"),
        TEMPORARY: PartSource(temporary_files_of, "SELECT on dba_temp_files"),
    }
    parts_definition: ClassVar[str] = (
        "online and standby redo logs; archived logs that were not deleted; what the fast recovery area holds beside "
        "these, to a hundredth of a percent of its limit; temporary tablespaces. Of a pluggable database, redo and "
        "archived logs are those of the whole container database"
    )
    objects_definition: ClassVar[str] = (
        "tables with their LOBs, and indexes, partitions together, of each tablespace: bytes in `dba_segments`. What "
        "data files hold beside segments is unexplained"
    )

    def connect(self, access: Access) -> Any:
        """Connect; needs the extra `oracle` and a service name."""
        try:
            import oracledb
        except ImportError:
            raise without_driver("oracle") from None
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
        [(container,)] = rows_of(connection, CONTAINER)
        if container == ROOT:
            raise MeasureError(
                FailureKind.SETUP,
                "its service leads to the root of a container database, which does not show the pluggable ones: "
                "register the service of each pluggable database",
            )
        return measurement_of(rows_of(connection, QUERY), excluded)

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002 -- asked the same way
        ceilings = dict(rows_of(connection, CEILINGS))
        places = rows_of(connection, GROUPS_OF_TABLESPACES)
        unknown = None
        try:
            groups = rows_of(connection, DISK_GROUPS) if any(group for _, group in places) else []
        except Exception as error:
            if not self.is_refusal(error):
                raise
            groups, unknown = [], "its login may not see the disk groups: SELECT on v_$asm_diskgroup_stat is missing"
        return limits_from(ceilings, places, groups, names, unknown)

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:  # noqa: ARG002 -- asked the same way
        return objects_from(rows_of(connection, OBJECTS), names)

    def facts(self, connection: Any) -> ServerFacts:
        [(version,)] = rows_of(connection, VERSION)
        return ServerFacts(f"Oracle Database {version}", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:
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


def objects_from(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> Objects:
    """Turn rows into the objects of each tablespace that was measured.

    Shape of a row: tablespace, owner, name, kind, table of an index, bytes, rows, number and bytes of all objects of
    the tablespace.
    """
    databases = []
    for name in names:
        own = [row for row in rows if row[0] == name]
        objects = [
            ObjectSize(
                owner,
                segment,
                INDEX if kind == INDEX else TABLE,
                int(size_bytes),
                table or "",
                estimated_rows=None if estimated is None else int(estimated),
                is_exact=True,
            )
            for _, owner, segment, kind, table, size_bytes, estimated, *_ in own
        ]
        all_count, all_bytes = own[0][7:] if own else (0, 0)
        known = sum(one.size_bytes for one in objects)
        databases.append(DatabaseObjects(name, tuple(objects), int(all_count) - len(objects), int(all_bytes) - known))
    return Objects(tuple(databases))


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


def limits_from(
    ceilings: Mapping[str, int],
    places: Sequence[tuple[Any, ...]],
    groups: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    unknown: str | None,
) -> Limits:
    """Combine bytes by tablespace, pairs of tablespace and disk group (None: a file system), and disk groups.

    A disk group has: name, type, MiB before mirroring, usable MiB, free MiB before mirroring.
    """
    volumes = tuple(
        Volume(
            name,
            int(total) // COPIES[kind] * BYTES_PER_MB,
            max(int(usable), 0) * BYTES_PER_MB,
            (int(total) - int(free)) // COPIES[kind] * BYTES_PER_MB,
        )
        for name, kind, total, usable, free in groups
        if kind in COPIES
    )
    known = {volume.name for volume in volumes}
    on: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for held, group in sorted((held, str(group)) for held, group in places):
        if held in on:
            on[held] = (*on[held], group)
    return Limits(
        volumes,
        tuple(
            Ceiling(name, int(ceilings[name]), volumes=on[name] if on[name] and set(on[name]) <= known else None)
            for name in names
            if name in ceilings
        ),
        unknown,
    )
