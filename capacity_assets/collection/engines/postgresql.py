"""PostgreSQL: sizes by `pg_database_size`, also of databases that refuse connections; volumes by an extension.

PostgreSQL reports no volume; the extensions pgnodemx (https://github.com/CrunchyData/pgnodemx) and system_stats
(https://github.com/EnterpriseDB/system_stats) do, in bytes. Only functions that belong to these extensions are called,
because anybody could create others of the same name. A relative path begins in the data folder. Only pgnodemx follows
links.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from capacity_assets.base.units import counted, human_day
from capacity_assets.collection.engines.base import (
    CANDIDATES,
    FILES,
    INDEX,
    MOST_ROWS,
    PROGRAM,
    STATISTICS,
    TABLE,
    TLS_VERIFY_FULL,
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
    Volume,
    closed_on_failure,
    first_line,
    is_excluded,
    objects_by_database,
    refuse_without_rights,
    too_much,
    volume_of,
)
from capacity_assets.database.measures import ARCHIVER, ARCHIVING_FAILS, DISCONNECTED, SLOT, TEMPORARY, WAL
from capacity_assets.database.sql import quoted

if TYPE_CHECKING:
    import psycopg


Read = Callable[[str], Sequence[tuple[Any, ...]]]
"""Runs a query and returns its rows."""
DATA_FOLDER, WAL_FOLDER = "data directory", "pg_wal"
PGNODEMX, SYSTEM_STATS = "pgnodemx", "system_stats"
FUNCTIONS = """
SELECT e.extname, n.nspname, has_function_privilege(p.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')
FROM pg_extension e
JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                AND d.classid = 'pg_proc'::regclass
JOIN pg_proc p ON p.oid = d.objid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE (e.extname, p.proname) IN (('pgnodemx', 'fsinfo'), ('system_stats', 'pg_sys_disk_info'))
"""
# The shared catalogue in pg_global belongs to no database.
TABLESPACES = """
SELECT d.datname, t.oid::bigint, pg_tablespace_location(t.oid)
FROM pg_tablespace t CROSS JOIN LATERAL pg_tablespace_databases(t.oid) AS held (oid)
JOIN pg_database d ON d.oid = held.oid
WHERE t.spcname <> 'pg_global' ORDER BY t.oid
"""
FSINFO = (
    "SELECT major_number, minor_number, total_bytes, available_bytes, total_bytes - free_bytes "
    "FROM {schema}.fsinfo('{path}')"
)
DISKS = (
    "SELECT mount_point, max(total_space), min(free_space), max(used_space) FROM {schema}.pg_sys_disk_info() "
    "WHERE mount_point IS NOT NULL GROUP BY mount_point"
)
SETTING = "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
NO_EXTENSION = "PostgreSQL reports its file systems with the extension pgnodemx or system_stats only"
NO_RIGHT = {
    PGNODEMX: "its login may not call fsinfo of pgnodemx",
    SYSTEM_STATS: "its login may not call pg_sys_disk_info: monitor_system_stats is missing",
}
NO_SETTING = "its login may not see where the data folder is: pg_read_all_settings is missing"
NOT_LISTED = "system_stats does not list the file system of {}"


def limits_by_extension(read: Read, names: Sequence[str]) -> Limits:
    """Return the volumes of the tablespaces of each database."""
    functions = {name: (schema, bool(allowed)) for name, schema, allowed in read(FUNCTIONS)}
    usable = next((name for name in (PGNODEMX, SYSTEM_STATS) if functions.get(name, ("", False))[1]), None)
    if usable is None:
        return Limits(unknown=NO_RIGHT[sorted(functions)[0]] if functions else NO_EXTENSION)
    held = [(str(name), str(oid), str(location)) for name, oid, location in read(TABLESPACES)]
    # Tablespaces by number, and the WAL. The default tablespace has no location: it is in the data folder.
    folders = {**{oid: location for _, oid, location in held}, WAL_FOLDER: WAL_FOLDER}
    schema = quoted(functions[usable][0])
    on_volumes = _by_fsinfo(read, schema, folders) if usable == PGNODEMX else _by_disks(read, schema, folders)
    if isinstance(on_volumes, str):
        return Limits(unknown=on_volumes)
    lies_on: dict[str, set[str]] = defaultdict(set)
    for name, oid, _ in held:
        lies_on[name].add(on_volumes[oid].name)
    ceilings = (
        Ceiling(name, is_unlimited=True, volumes=tuple(sorted(lies_on[name]))) for name in names if name in lies_on
    )
    volumes = {volume.name: volume for volume in on_volumes.values()}
    places = {folder: volume.name for folder, volume in on_volumes.items()}
    return Limits(tuple(volumes.values()), tuple(ceilings), places=places)


def _by_fsinfo(read: Read, schema: str, folders: Mapping[str, str]) -> Mapping[str, Volume]:
    """Return the volume of each folder by its device, named after the first folder on it."""
    by_device: dict[tuple[object, object], Volume] = {}
    volumes = {}
    for key, location in folders.items():
        path = key if key == WAL_FOLDER else f"pg_tblspc/{key}" if location else "."
        [(major, minor, *sizes)] = read(FSINFO.format(schema=schema, path=path))
        volumes[key] = by_device.setdefault((major, minor), Volume(location or DATA_FOLDER, *map(int, sizes)))
    return volumes


def _by_disks(read: Read, schema: str, folders: Mapping[str, str]) -> Mapping[str, Volume] | str:
    """Return the volume of each folder by its path, or why it is unknown."""
    setting = read(SETTING)
    if not setting:
        return NO_SETTING
    disks = {str(path): tuple(map(int, sizes)) for path, *sizes in read(DISKS.format(schema=schema))}
    volumes = {}
    for key, location in folders.items():
        path = str(PurePosixPath(str(setting[0][0])) / location)
        mount = volume_of(path, disks)
        if mount is None:
            return NOT_LISTED.format(path)
        volumes[key] = Volume(mount, *disks[mount])
    return volumes


# https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-GENFILE: pg_monitor may call it.
WAL_SIZE = "SELECT sum(size)::bigint, count(*) FROM pg_ls_waldir()"
# Some columns are read as JSON, because older servers lack them. A slot without a position retains nothing.
# https://www.postgresql.org/docs/current/view-pg-replication-slots.html
SLOTS = """
SELECT s.slot_name, s.active, coalesce(greatest(pg_wal_lsn_diff(here.lsn, s.restart_lsn), 0), 0)::bigint,
       s.slot_type, to_jsonb(s) ->> 'wal_status', (to_jsonb(s) ->> 'inactive_since')::date
FROM pg_replication_slots s
CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                        ELSE pg_current_wal_lsn() END AS lsn) AS here
ORDER BY s.slot_name
"""
ARCHIVE_MODE = "SELECT setting FROM pg_settings WHERE name = 'archive_mode' AND setting <> 'off'"
# Segments that wait to be archived. It fails if its last attempt did.
# https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ARCHIVER-VIEW
ARCHIVING = """
SELECT waiting.files, waiting.files * pg_size_bytes(current_setting('wal_segment_size')),
       coalesce(a.last_failed_time > coalesce(a.last_archived_time, '-infinity'), false),
       coalesce(a.last_archived_time, a.stats_reset)::date
FROM pg_stat_archiver a
CROSS JOIN (SELECT count(*) AS files FROM pg_ls_archive_statusdir()
            WHERE name ~ '^[0-9A-F]{24}(\\.partial)?\\.ready$') AS waiting
"""
# pg_global would list the files of pg_default again.
TEMPORARY_FILES = """
SELECT t.oid::bigint, t.spcname, coalesce(sum(f.size), 0)::bigint, count(f.name)
FROM pg_tablespace t LEFT JOIN LATERAL pg_ls_tmpdir(t.oid) AS f ON true
WHERE t.spcname <> 'pg_global' GROUP BY t.oid, t.spcname ORDER BY t.spcname
"""


def wal_of(connection: psycopg.Connection, scope: PartScope) -> list[ServerPart]:
    """Return the size of all WAL segments."""
    [(size_bytes, files)] = _rows(connection, WAL_SIZE)
    volume = scope.limits.places.get(WAL_FOLDER)
    return [ServerPart(WAL, size_bytes=int(size_bytes or 0), detail=counted(files, "segment"), volume=volume)]


def slots_of(connection: psycopg.Connection, scope: PartScope) -> list[ServerPart]:
    """Return each replication slot with the WAL that it retains, and whether its consumer is connected."""
    volume = scope.limits.places.get(WAL_FOLDER)
    parts = []
    for name, is_active, retained_bytes, kind, status, inactive_since in _rows(connection, SLOTS):
        since = f" since {human_day(inactive_since)}" if inactive_since and not is_active else ""
        consumer = f"{kind}, its consumer is connected" if is_active else f"{kind}, {DISCONNECTED}{since}"
        detail = consumer if status in {None, "reserved"} else f"{consumer}; wal_status {status}"
        # A lost slot retains nothing: the WAL that it needs has been removed.
        parts.append(ServerPart(SLOT, name, 0 if status == "lost" else retained_bytes, detail, volume))
    return parts


def archiver_of(connection: psycopg.Connection, scope: PartScope) -> list[ServerPart]:
    """Return the archiver with the WAL that it has not archived yet, and whether it fails; none if it is off."""
    if not _rows(connection, ARCHIVE_MODE):
        return []
    [(files, retained_bytes, is_failing, archived_on)] = _rows(connection, ARCHIVING)
    state = ARCHIVING_FAILS if is_failing else "archiving does not fail"
    since = f", none archived since {human_day(archived_on)}" if archived_on and files else ""
    detail = f"{counted(files, 'segment')} not archived; {state}{since}"
    return [ServerPart(ARCHIVER, "", retained_bytes, detail, scope.limits.places.get(WAL_FOLDER))]


def temporary_files_of(connection: psycopg.Connection, scope: PartScope) -> list[ServerPart]:
    """Return the temporary files of queries by tablespace, except those that parallel workers share."""
    return [
        ServerPart(TEMPORARY, name, size_bytes, counted(files, "file"), scope.limits.places.get(str(oid)))
        for oid, name, size_bytes, files in _rows(connection, TEMPORARY_FILES)
    ]


# https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-DBSIZE: CONNECT on the database or
# pg_read_all_stats is needed. The query checks it, because the function would fail for all databases together.
QUERY = """
SELECT d.datname, readable, CASE WHEN readable THEN pg_database_size(d.oid) END, d.datallowconn
FROM pg_database d
CROSS JOIN LATERAL (SELECT has_database_privilege(d.oid, 'CONNECT')
                        OR pg_has_role('pg_read_all_stats', 'USAGE') AS readable) AS r
WHERE d.datname = ANY (%s::text[])
"""
NAMES = "SELECT datname, datallowconn, has_database_privilege(oid, 'CONNECT') FROM pg_database ORDER BY datname"
# The pages that VACUUM and ANALYZE counted last: of tables, indexes, TOAST, materialized views and sequences.
PAGES = """
SELECT coalesce(sum(relpages::bigint), 0) * current_setting('block_size')::bigint
FROM pg_class WHERE relkind IN ('r', 'i', 't', 'm', 'S')
"""
# By the pages that VACUUM and ANALYZE counted last, without locks or rights on the tables. Objects that they have not
# counted yet are ranked by their rows, and then measured. TOAST and its index belong to their table, partitions to the
# topmost parent. reltuples is -1 before the first ANALYZE.
# https://www.postgresql.org/docs/current/catalog-pg-class.html
OBJECTS = """
WITH stored AS (
    SELECT coalesce(own.oid, c.oid) AS oid, coalesce(own.relkind, c.relkind) AS relkind,
           coalesce(own.relispartition, c.relispartition) AS relispartition,
           i.indrelid, own.oid IS NULL AS is_own, c.relpages::bigint AS pages, c.reltuples AS tuples,
           CASE WHEN c.relpages > 1 THEN 0
                WHEN c.relkind = 't' THEN 2000 * pg_stat_get_live_tuples(c.oid)
                WHEN c.relkind = 'i' THEN 20 * pg_stat_get_live_tuples(i.indrelid)
                ELSE 100 * pg_stat_get_live_tuples(c.oid) END AS guessed_bytes,
           CASE WHEN c.relkind IN ('r', 'm') THEN pg_stat_get_tuples_inserted(c.oid)
                + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid) END AS written
    FROM pg_class c
    LEFT JOIN pg_index i ON i.indexrelid = c.oid
    LEFT JOIN pg_class own ON own.reltoastrelid = CASE c.relkind WHEN 't' THEN c.oid WHEN 'i' THEN i.indrelid END
    WHERE c.relkind IN ('r', 'i', 't', 'm', 'S')
), rooted AS (
    SELECT CASE WHEN relispartition THEN coalesce(pg_partition_root(oid)::oid, oid) ELSE oid END AS root,
           relkind = 'i' AS is_index, is_own, oid, indrelid, pages, tuples, guessed_bytes, written,
           CASE WHEN relkind = 'i' AND relispartition
                THEN coalesce(pg_partition_root(indrelid)::oid, indrelid) ELSE indrelid END AS table_root
    FROM stored
), grouped AS (
    SELECT root, is_index, sum(pages) * current_setting('block_size')::bigint AS size_bytes,
           sum(pages) * current_setting('block_size')::bigint + sum(guessed_bytes) AS order_bytes,
           CASE WHEN is_index THEN max(table_root) END AS table_root,
           CASE WHEN NOT is_index AND bool_and(tuples >= 0) FILTER (WHERE is_own)
                THEN sum(tuples) FILTER (WHERE is_own) END AS estimated_rows,
           sum(written) AS written_rows
    FROM rooted GROUP BY root, is_index
), of_tables AS (
    SELECT table_root, sum(size_bytes) AS index_bytes FROM grouped WHERE is_index GROUP BY table_root
), sized AS (
    SELECT g.*, count(*) OVER () AS all_count, sum(g.size_bytes) OVER () AS all_bytes
    FROM grouped g ORDER BY g.order_bytes DESC, g.root LIMIT %s
)
SELECT s.root::bigint, n.nspname, c.relname, s.is_index, coalesce(t.relname, ''), s.size_bytes::bigint,
       CASE WHEN NOT s.is_index THEN coalesce(o.index_bytes, 0)::bigint END,
       CASE WHEN c.relkind IN ('r', 'm') AND pg_stat_get_live_tuples(s.root) + pg_stat_get_dead_tuples(s.root) > 0
            THEN (s.size_bytes * pg_stat_get_dead_tuples(s.root)
                  / (pg_stat_get_live_tuples(s.root) + pg_stat_get_dead_tuples(s.root)))::bigint END,
       s.estimated_rows::bigint, s.written_rows::bigint, s.all_count, s.all_bytes::bigint
FROM sized s JOIN pg_class c ON c.oid = s.root JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class t ON t.oid = s.table_root LEFT JOIN of_tables o ON o.table_root = s.root AND NOT s.is_index
ORDER BY s.order_bytes DESC, s.root
"""
# All forks, and TOAST with its index. The function waits for a locked table.
EXACT = """
SELECT CASE WHEN c.relkind IN ('p', 'I')
            THEN (SELECT sum(pg_table_size(p.relid))::bigint FROM pg_partition_tree(c.oid) p WHERE p.isleaf)
            ELSE pg_table_size(c.oid) END
FROM pg_class c WHERE c.oid = %s
"""
# The objects that are likely to be listed. Locked ones, and those after the time limit, keep their estimate.
MOST_EXACT, EXACT_SECONDS, LOCK_MILLISECONDS = 100, 10.0, 100
# A lost network is noticed after 10 + 3 x 5 seconds.
KEEPALIVES: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
SSLMODES = {"off": "disable"}


class PostgreSQL(EngineAdapter):
    """Sizes by `pg_database_size`; with `statistics`, by the pages in the catalogue of each database."""

    name: ClassVar[str] = "postgresql"
    default_port: ClassVar[int] = 5432
    default_database: ClassVar[str | None] = "postgres"
    # Including those of cloud providers, whose size customers may not read.
    system_databases: ClassVar[tuple[str, ...]] = (
        *("postgres", "template0", "template1"),
        *("rdsadmin", "cloudsqladmin", "alloydbadmin", "alloydbmetadata", "azure_maintenance", "azure_sys"),
    )
    sizings: ClassVar[tuple[str, ...]] = (FILES, STATISTICS)
    verified: ClassVar[bool] = True
    grants: ClassVar[str] = (
        "CREATE ROLE capacity_probe LOGIN PASSWORD '...';\nGRANT pg_read_all_stats TO capacity_probe;\n"
        "-- for sizing = statistics, where CONNECT was revoked from PUBLIC, on each database:\n"
        "-- GRANT CONNECT ON DATABASE ... TO capacity_probe;\n"
        "-- for WAL, archiving and temporary files:\n-- GRANT pg_monitor TO capacity_probe;\n"
        "-- for limits by the extension system_stats (pgnodemx needs no right):\n"
        "-- GRANT monitor_system_stats, pg_read_all_settings TO capacity_probe;"
    )
    definition: ClassVar[str] = (
        "`pg_database_size`, rounded down: all tablespaces and temporary tables. WAL, temporary files of queries and "
        "the shared catalogue belong to no database. `statistics`: pages in `pg_class`, by one short connection to "
        "each database; databases that refuse connections by `pg_database_size`"
    )
    limits_definition: ClassVar[str] = (
        "the file systems of all tablespaces of a database and of the WAL, by `fsinfo` of the extension pgnodemx or "
        "`pg_sys_disk_info` of system_stats, installed in the connected database; none without an extension"
    )
    part_sources: ClassVar[Mapping[str, PartSource]] = {
        WAL: PartSource(wal_of, "pg_monitor"),
        SLOT: PartSource(slots_of, "SELECT on pg_replication_slots"),
        ARCHIVER: PartSource(archiver_of, "pg_monitor"),
        TEMPORARY: PartSource(temporary_files_of, "pg_monitor"),
    }
    parts_definition: ClassVar[str] = (
        "WAL by `pg_ls_waldir`; parts of it: for each replication slot the WAL from its `restart_lsn` on, and the "
        "segments that wait to be archived, by `pg_ls_archive_statusdir` (PostgreSQL 12 and later); "
        "temporary files by `pg_ls_tmpdir` (PostgreSQL 12 and later), except those that parallel workers share"
    )
    objects_definition: ClassVar[str] = (
        "tables with TOAST, materialized views, and indexes, partitions under their topmost parent: pages in "
        "`pg_class`, and exact by `pg_table_size` for the 100 largest that are not locked. Free: dead rows by the "
        "statistics collector. Takes one short connection to each database, which needs CONNECT"
    )

    def connect(self, access: Access) -> psycopg.Connection:
        from capacity_assets.collection.engines.postgresql_connection import BoundedConnection

        connection = BoundedConnection.connect(
            host=access.host,
            port=access.port,
            user=access.username,
            password=access.password,
            dbname=access.database or self.default_database,
            # libpq takes whole seconds, and waits forever at 0.
            connect_timeout=max(round(access.connect_seconds), 2),
            sslmode=SSLMODES.get(access.tls, access.tls),
            sslrootcert=access.tls_ca or ("system" if access.tls == TLS_VERIFY_FULL else None),
            sslcert=access.tls_certificate,
            sslkey=access.tls_key,
            # Only a socket or a verified certificate proves who answers. Any other server does not get the password
            # itself; trust, certificates, SCRAM and MD5 work.
            require_auth=None if access.socket or access.is_own or access.tls in VERIFIED_TLS else "!password",
            # From a database in SQL_ASCII, names would arrive as bytes.
            client_encoding="UTF8",
            application_name=PROGRAM,
            autocommit=True,
            **KEEPALIVES,
        )
        connection.statement_seconds = access.statement_seconds
        with closed_on_failure(connection):
            connection.allowance.begin(access.statement_seconds)
            # Poolers refuse these as startup options.
            connection.execute("SET default_transaction_read_only = on")
            # Otherwise operators and functions that others create in public could run with the rights of this login.
            connection.execute("SET search_path = pg_catalog")
            connection.execute(f"SET statement_timeout = {round(access.statement_seconds * 1000)}".encode())
        opened: psycopg.Connection = connection
        return opened

    def sizes(self, connection: psycopg.Connection, access: Access, excluded: Sequence[str]) -> Measurement:
        """Measure; a database that was dropped in the meantime has no size, and is left out."""
        names = _rows(connection, NAMES)
        left_out = tuple(name for name, *_ in names if is_excluded(name, excluded))
        wanted = [row for row in names if row[0] not in left_out]
        if access.sizing == STATISTICS:
            closed = [name for name, allows_connections, _ in wanted if not allows_connections]
            sizes = self._by_statistics(access, [row for row in wanted if row[1]]) + _by_files(connection, closed)
        else:
            sizes = _by_files(connection, [name for name, *_ in wanted])
        return Measurement(tuple(sizes), left_out=left_out)

    def limits(self, connection: psycopg.Connection, access: Access, names: Sequence[str]) -> Limits:
        return limits_by_extension(lambda query: _rows(connection, query), names)

    def _connected_to(self, access: Access, name: str) -> psycopg.Connection | None:
        """Connect to another database of the server; None: it was dropped in the meantime."""
        import psycopg

        try:
            return self.connect(replace(access, database=name))
        except psycopg.OperationalError as error:
            # A refused login has no code.
            if f'database "{name}" does not exist' in str(error):
                return None
            raise

    def _by_statistics(self, access: Access, databases: Sequence[tuple[Any, ...]]) -> list[DatabaseSize]:
        """Measure one database after another, so that the server has at most two of our connections."""
        refuse_without_rights([name for name, _, readable in databases if not readable], "CONNECT on each database")
        sizes = []
        for name, *_ in databases:
            there = self._connected_to(access, name)
            if there is not None:
                with there:
                    [(size_bytes,)] = _rows(there, PAGES)
                sizes.append(DatabaseSize.of_bytes(name, size_bytes, data_size=size_bytes))
        return sizes

    def objects(self, connection: psycopg.Connection, access: Access, names: Sequence[str]) -> Objects:
        return objects_by_database(names, lambda name: self._objects_in(access, name), self.failure)

    def _objects_in(self, access: Access, name: str) -> DatabaseObjects | None:
        there = self._connected_to(access, name)
        if there is None:
            return None
        with there:
            there.execute(b"SELECT set_config(name, 'off', false) FROM pg_settings WHERE name = 'jit'")
            there.execute(f"SET lock_timeout = {LOCK_MILLISECONDS}".encode())
            rows = _rows(there, OBJECTS, [CANDIDATES])
            # Exact sizes would not add up to a database size that is a sum of estimates.
            looked_at = () if access.sizing == STATISTICS else rows[:MOST_EXACT]
            exact = _exact_sizes(there, [row[0] for row in looked_at])
        more_of_indexes: dict[tuple[str, str], int] = defaultdict(int)
        for oid, schema, _, is_index, table, size_bytes, *_ in rows:
            if is_index:
                more_of_indexes[schema, table] += exact.get(oid, size_bytes) - size_bytes
        objects, more = [], 0
        for oid, schema, named, is_index, table, size_bytes, index_bytes, free, estimated, written, *_ in rows:
            size = exact.get(oid, size_bytes)
            more += size - size_bytes
            indexes = None if is_index else index_bytes + more_of_indexes[schema, named]
            free_bytes = None if free is None else min(free, size)
            kind = INDEX if is_index else TABLE
            known = (free_bytes, estimated, oid in exact, written)
            objects.append(ObjectSize(schema, named, kind, size, table, indexes, *known))
        all_count, all_bytes = rows[0][10:] if rows else (0, 0)
        return DatabaseObjects.among(name, objects, int(all_count), int(all_bytes) + more)

    def facts(self, connection: psycopg.Connection) -> ServerFacts:
        [(version,)] = _rows(connection, "SHOW server_version")
        return ServerFacts(f"PostgreSQL {version}", bool(connection.pgconn.ssl_in_use))

    def explained(self, error: Exception) -> MeasureError | None:
        """Classify by SQLSTATE; a refused login has none, and is classified by the text."""
        import psycopg

        if not isinstance(error, psycopg.Error):
            return None
        # Further lines list every address that libpq tried.
        return MeasureError(_kind(error), first_line(str(error).strip().replace("connection failed: ", "")))


def _by_files(connection: psycopg.Connection, names: Sequence[str]) -> list[DatabaseSize]:
    databases = _rows(connection, QUERY, [list(names)]) if names else []
    refuse_without_rights([name for name, readable, *_ in databases if not readable], "pg_read_all_stats")
    return [DatabaseSize.of_bytes(row[0], row[2], data_size=row[2]) for row in databases if row[2] is not None]


def _rows(
    connection: psycopg.Connection, query: str, parameters: Sequence[object] | None = None
) -> list[tuple[Any, ...]]:
    """As `query_server`, but row by row: libpq would otherwise keep an endless answer before its first row."""
    rows: list[tuple[Any, ...]] = []
    connection.allowance.begin(connection.statement_seconds)  # type: ignore[attr-defined]  # of `BoundedConnection`
    with connection.cursor() as cursor:
        for row in cursor.stream(query.encode(), parameters):
            rows.append(tuple(row))
            if len(rows) > MOST_ROWS:
                connection.close()  # the rest is not read
                raise too_much()
    return rows


def _exact_sizes(connection: psycopg.Connection, oids: Sequence[int]) -> dict[int, int]:
    """Return the exact bytes of objects that are neither locked nor dropped, until the time limit."""
    import psycopg

    sizes, began = {}, time.monotonic()
    for oid in oids:
        if time.monotonic() - began > EXACT_SECONDS:
            break
        with suppress(psycopg.errors.LockNotAvailable):
            for (size_bytes,) in _rows(connection, EXACT, [oid]):
                if size_bytes is not None:
                    sizes[oid] = int(size_bytes)
    return sizes


# Parts of the text of the server or libpq, for errors without SQLSTATE; the first match counts.
TEXTS = {
    **dict.fromkeys(("certificate file", "private key file"), FailureKind.SETUP),
    **dict.fromkeys(("authentication failed", "no password supplied", "no pg_hba.conf entry"), FailureKind.LOGIN),
    **dict.fromkeys(("certificate", "SSL"), FailureKind.TLS),
    **dict.fromkeys(("requires auth", "auth method", "authentication method requirement"), FailureKind.LOGIN),
    **dict.fromkeys(("does not exist", "not permitted to log in"), FailureKind.LOGIN),
    "permission denied": FailureKind.RIGHTS,
    "timeout expired": FailureKind.TIMEOUT,
    "starting up": FailureKind.UNREACHABLE,
    "server closed the connection unexpectedly": FailureKind.BROKEN_OFF,
}
STATES = {
    **dict.fromkeys(("28", "3D"), FailureKind.LOGIN),
    **dict.fromkeys(("08", "57P01", "57P02"), FailureKind.BROKEN_OFF),
    **dict.fromkeys(("53300", "57P03"), FailureKind.UNREACHABLE),
    "42501": FailureKind.RIGHTS,
    "57014": FailureKind.TIMEOUT,
}


def _kind(error: psycopg.Error) -> FailureKind:
    import psycopg

    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return FailureKind.TIMEOUT
    if error.sqlstate:
        return STATES.get(error.sqlstate) or STATES.get(error.sqlstate[:2]) or FailureKind.UNEXPECTED
    otherwise = FailureKind.UNREACHABLE if isinstance(error, psycopg.OperationalError) else FailureKind.UNEXPECTED
    return next((kind for part, kind in TEXTS.items() if part in str(error)), otherwise)
