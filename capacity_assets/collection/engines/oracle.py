"""Oracle Database: the bytes of the data files of each tablespace.

This was written from the vendor's documentation and is tested on recorded results, not on a server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from capacity_assets.base.units import BYTES_PER_MB, counted, first_of
from capacity_assets.collection.engines.base import (
    CANDIDATES,
    NAMED,
    PROGRAM,
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
    UsedSpace,
    Volume,
    first_line,
    is_excluded,
    query_server,
    refuse_setup,
    without_driver,
)
from capacity_assets.database.measures import ARCHIVED_LOG, BACKUP, RECOVERY_AREA, REDO, TEMPORARY

# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_DATA_FILES.html
QUERY = "SELECT tablespace_name, SUM(bytes), COUNT(*), COUNT(bytes) FROM dba_data_files GROUP BY tablespace_name"
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_FREE_SPACE.html: a file without free space has
# no row; an offline file has no row either, and its free space is unknown.
USED = """
SELECT d.tablespace_name, SUM(d.bytes) - COALESCE(MAX(f.bytes), 0),
       COUNT(CASE WHEN d.online_status IN ('ONLINE', 'SYSTEM') THEN NULL ELSE 1 END)
FROM dba_data_files d
LEFT JOIN (SELECT tablespace_name, SUM(bytes) AS bytes FROM dba_free_space GROUP BY tablespace_name) f
    ON f.tablespace_name = d.tablespace_name
GROUP BY d.tablespace_name
"""
# maxbytes is 0 for a file that does not extend, and may be less than the size of a file that was resized by hand. The
# view of usage metrics is not used, because from 18 on its sizes are limited by the free space of the file system.
CEILINGS = """
SELECT tablespace_name, SUM(CASE WHEN autoextensible = 'YES' THEN GREATEST(bytes, maxbytes) ELSE bytes END)
FROM dba_data_files GROUP BY tablespace_name
"""
GROUPS_OF_TABLESPACES = """
SELECT DISTINCT tablespace_name, REGEXP_SUBSTR(file_name, '^\\+([^/.]+)', 1, 1, NULL, 1)
FROM dba_data_files WHERE autoextensible = 'YES'
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-ASM_DISKGROUP_STAT.html: sizes are in MiB
# before mirroring, except usable_file_mb, which may be negative, and is 0 for groups of the types FLEX and EXTEND.
DISK_GROUPS = (
    "SELECT name, type, total_mb, usable_file_mb, free_mb FROM v$asm_diskgroup_stat WHERE state <> 'DISMOUNTED'"
)
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-LOGFILE.html, V-LOG.html, V-STANDBY_LOG.html:
# each member of a group has the size of the group. Rows of parts are name, bytes, number of files, and one path.
REDO_LOGS = """
SELECT NULL, SUM(l.bytes), COUNT(*), MIN(m.member)
FROM v$logfile m JOIN (SELECT group#, bytes FROM v$log UNION ALL SELECT group#, bytes FROM v$standby_log) l
    ON l.group# = m.group#
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-ARCHIVED_LOG.html
ARCHIVED_LOGS = """
SELECT NULL, SUM(blocks * block_size), COUNT(*), MIN(name) FROM v$archived_log
WHERE deleted = 'NO' AND status = 'A' AND standby_dest = 'NO' AND name IS NOT NULL
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-RECOVERY_AREA_USAGE.html: percent of the limit.
RECOVERY = """
SELECT LOWER(u.file_type), u.percent_space_used * d.space_limit / 100, u.number_of_files, d.name
FROM v$recovery_area_usage u CROSS JOIN v$recovery_file_dest d
WHERE u.file_type NOT IN ('REDO LOG', 'ARCHIVED LOG') AND u.number_of_files > 0
"""
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/V-BACKUP_PIECE.html: A means available, as of
# RMAN's last deletion or crosscheck. Pieces in the recovery area are part of the recovery area.
BACKUPS = """
SELECT NULL, SUM(bytes), COUNT(*), MIN(handle) FROM v$backup_piece
WHERE status = 'A' AND device_type = 'DISK' AND is_recovery_dest_file = 'NO'
"""
TEMPORARY_FILES = (
    "SELECT tablespace_name, SUM(bytes), COUNT(*), MIN(file_name) FROM dba_temp_files GROUP BY tablespace_name"
)
OUTSIDE_ASM = "file system"


def parts_by(query: str, kind: str, connection: Any, _scope: PartScope) -> list[ServerPart]:
    """Return the parts of a kind; their volume is the disk group at the beginning of a path."""
    parts = []
    for name, size_bytes, files, path in query_server(connection, query):
        group = str(path).removeprefix("+").partition("/")[0] if str(path).startswith("+") else OUTSIDE_ASM
        detail = counted(int(files), "file")
        parts.append(ServerPart(kind, str(name or ""), int(size_bytes or 0), detail, group if path else None))
    return parts


COPIES = {"EXTERN": 1, "NORMAL": 2, "HIGH": 3}
# The root of a container database shows only its own files.
# https://docs.oracle.com/en/database/oracle/oracle-database/23/sqlrf/SYS_CONTEXT.html
CONTAINER = "SELECT SYS_CONTEXT('USERENV', 'CON_NAME') FROM dual"
ROOT = "CDB$ROOT"
NO_GROUPS = "its login may not see the disk groups: SELECT on v_$asm_diskgroup_stat is missing"
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_SEGMENTS.html: one row per segment or
# partition. LOBs and their indexes belong to the table in dba_lobs.
OBJECTS = """
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
WHERE r.place <= :most ORDER BY r.tablespace_name, r.place
"""
VERSION = "SELECT version FROM product_component_version WHERE ROWNUM = 1"


class Oracle(EngineAdapter):
    """Sizes by `dba_data_files`; the database to connect to is the service name."""

    name: ClassVar[str] = "oracle"
    default_port: ClassVar[int] = 1521
    system_databases: ClassVar[tuple[str, ...]] = ()
    verified: ClassVar[bool] = False
    fills_files: ClassVar[bool] = True
    grants: ClassVar[str] = (
        'CREATE USER capacity_probe IDENTIFIED BY "...";\n'
        "GRANT CREATE SESSION TO capacity_probe;\n"
        "GRANT SELECT ON sys.dba_data_files TO capacity_probe;\n"
        "-- for redo and archived logs, the recovery area, backups and temporary tablespaces:\n"
        "-- GRANT SELECT ON sys.v_$log TO capacity_probe;\n-- GRANT SELECT ON sys.v_$standby_log TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$logfile TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$archived_log TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$recovery_area_usage TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$recovery_file_dest TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.v_$backup_piece TO capacity_probe;\n"
        "-- GRANT SELECT ON sys.dba_temp_files TO capacity_probe;\n"
        "-- for used space:\n"
        "-- GRANT SELECT ON sys.dba_free_space TO capacity_probe;\n"
        "-- for limits by ASM disk group:\n"
        "-- GRANT SELECT ON sys.v_$asm_diskgroup_stat TO capacity_probe;\n"
        "-- for tables and indexes, with CAPACITY_OBJECTS, each of:\n"
        "-- GRANT SELECT ON sys.dba_segments TO capacity_probe; -- dba_lobs, dba_indexes, dba_tables"
    )
    definition: ClassVar[str] = (
        "bytes of the data files in `dba_data_files` of each tablespace, rounded down, without mirrors of ASM. "
        "Temporary tablespaces, redo and archived logs are not counted. Register each pluggable database by its own "
        "service; the root of a container database is refused"
    )
    used_definition: ClassVar[str] = (
        "those bytes without the free space in `dba_free_space`, which includes the recycle bin; unknown if a file is "
        "offline"
    )
    limits_definition: ClassVar[str] = (
        "the maximum size of the data files of each tablespace, and their ASM disk groups with the usable space after "
        "mirroring, by `v$asm_diskgroup_stat`. File systems outside ASM are not reported"
    )
    part_sources: ClassVar[Mapping[str, PartSource]] = {
        REDO: PartSource(partial(parts_by, REDO_LOGS, REDO), "SELECT on v_$log, v_$standby_log and v_$logfile"),
        ARCHIVED_LOG: PartSource(partial(parts_by, ARCHIVED_LOGS, ARCHIVED_LOG), "SELECT on v_$archived_log"),
        RECOVERY_AREA: PartSource(
            partial(parts_by, RECOVERY, RECOVERY_AREA), "SELECT on v_$recovery_area_usage and v_$recovery_file_dest"
        ),
        BACKUP: PartSource(partial(parts_by, BACKUPS, BACKUP), "SELECT on v_$backup_piece"),
        TEMPORARY: PartSource(partial(parts_by, TEMPORARY_FILES, TEMPORARY), "SELECT on dba_temp_files"),
    }
    parts_definition: ClassVar[str] = (
        "online and standby redo logs; archived logs that were not deleted; other files in the fast recovery area, to "
        "a hundredth of a percent of its limit; RMAN's backups on disk outside it that RMAN knows to be available; "
        "temporary tablespaces. Logs and backups are those of the whole container database"
    )
    objects_definition: ClassVar[str] = (
        "tables with their LOBs, and indexes, partitions together, of each tablespace: bytes in `dba_segments`. Other "
        "space in data files is unexplained"
    )

    def connect(self, access: Access) -> Any:
        """Connect by the service name."""
        try:
            import oracledb
        except ImportError:
            raise without_driver("oracle") from None
        refuse_setup(
            (not access.username, "it needs a login: register `username` and `password_from`"),
            (not access.database, "it needs its service name: register `database`"),
        )
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

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        [(container,)] = query_server(connection, CONTAINER)
        if container == ROOT:
            raise MeasureError(
                FailureKind.SETUP,
                "its service is the root of a container database, which does not show the pluggable ones: register the "
                "service of each pluggable database",
            )
        sizes, left_out = [], []
        for name, size_bytes, files, sized_files in query_server(connection, QUERY):
            if is_excluded(name, excluded):
                left_out.append(name)
            elif files != sized_files:
                raise MeasureError(
                    FailureKind.UNEXPECTED,
                    f"the size of a data file of {name} is not known: the file is offline, or its wallet closed",
                )
            else:
                sizes.append(DatabaseSize.of_bytes(name, size_bytes, data_size=size_bytes))
        return Measurement(tuple(sizes), left_out=tuple(left_out))

    def used(self, connection: Any, access: Access, sizes: Sequence[DatabaseSize]) -> UsedSpace:
        rows = self.rows_if_allowed(connection, USED)
        if rows is None:
            return UsedSpace(unknown=("its login may not see it: SELECT on dba_free_space is missing",))
        names = {size.name for size in sizes}
        offline = [name for name, _, files in rows if files and name in names]
        unknown = (f"{first_of(offline, NAMED)}: a data file is offline",) if offline else ()
        return UsedSpace({name: int(used) for name, used, files in rows if not files}, unknown)

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:
        limits = dict(query_server(connection, CEILINGS))
        places = query_server(connection, GROUPS_OF_TABLESPACES)
        disk_groups = self.rows_if_allowed(connection, DISK_GROUPS) if any(group for _, group in places) else []
        volumes = {
            name: Volume(
                name,
                int(total) // COPIES[kind] * BYTES_PER_MB,
                max(int(usable), 0) * BYTES_PER_MB,
                (int(total) - int(free)) // COPIES[kind] * BYTES_PER_MB,
            )
            for name, kind, total, usable, free in disk_groups or ()
            if kind in COPIES
        }
        grows_on: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for held, group in sorted((held, str(group)) for held, group in places):
            grows_on[held] += (group,)
        # The maximum size of a file is unknown on a file system, and on a group whose usable size is not reported.
        on = {name: groups if set(groups) <= volumes.keys() else None for name, groups in grows_on.items()}
        ceilings = (Ceiling(name, int(limits[name]), volumes=on.get(name)) for name in names if name in limits)
        return Limits(tuple(volumes.values()), tuple(ceilings), NO_GROUPS if disk_groups is None else None)

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:
        rows: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for tablespace, *row in query_server(connection, OBJECTS, [CANDIDATES]):
            rows[tablespace].append(tuple(row))
        return Objects(tuple(objects_in(name, rows[name]) for name in names))

    def facts(self, connection: Any) -> ServerFacts:
        [(version,)] = query_server(connection, VERSION)
        return ServerFacts(f"Oracle Database {version}", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:
        if type(error).__module__.partition(".")[0] != "oracledb":
            return None
        code = str(getattr(error.args[0] if error.args else None, "full_code", ""))
        return MeasureError(KINDS.get(code, FailureKind.UNEXPECTED), first_line(error))


# https://docs.oracle.com/error-help/db/ and
# https://python-oracledb.readthedocs.io/en/latest/user_guide/troubleshooting.html
KINDS = {
    **dict.fromkeys(("DPY-6001", "ORA-01017", "ORA-12514", "ORA-28000", "ORA-28001"), FailureKind.LOGIN),
    **dict.fromkeys(("ORA-00942", "ORA-01031", "ORA-01045"), FailureKind.RIGHTS),
    "DPY-6005": FailureKind.UNREACHABLE,
    "DPY-4011": FailureKind.BROKEN_OFF,
    "DPY-4024": FailureKind.TIMEOUT,
}


def objects_in(tablespace: str, rows: Sequence[tuple[Any, ...]]) -> DatabaseObjects:
    """Return the objects of a tablespace.

    A row is: owner, name, kind, table of an index, bytes, rows, number and bytes of all objects.
    """
    objects = []
    for owner, name, kind, table, size_bytes, estimated, *_ in rows:
        known = None if estimated is None else int(estimated)
        objects.append(ObjectSize(owner, name, kind, int(size_bytes), table or "", None, None, known, is_exact=True))
    all_count, all_bytes = rows[0][6:] if rows else (0, 0)
    return DatabaseObjects.among(tablespace, objects, int(all_count), int(all_bytes))
