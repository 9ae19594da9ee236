"""Which program measured imported samples, the queries that read their history there, and the record of each sample.

Per import, server and database, the days of its samples are kept as a multirange. A sample that no import claims was
measured here. Samples that another import, or a measurement, replaces are no longer claimed by the first one.

A query gives `server`, `database`, `day` and `size_bytes`, one row per database and day. It runs in that program, and
its result is imported as CSV with `--origin`. A named parameter begins with a colon; the time zone is that of
CAPACITY_TIMEZONE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from capacity_assets.database.sql import with_parts

# Items of the templates "PostgreSQL by Zabbix agent", "... agent 2", and those of MySQL. The last parameter of their
# keys is the database; others may be passwords. Trends are hourly: the last hour of a day counts, by its mean.
# https://www.zabbix.com/documentation/7.0/en/manual/appendix/config/trends
ZABBIX_POSTGRESQL = r"""
SELECT s.server, s.database, s.day, CAST(trunc(s.value) AS bigint) AS size_bytes
FROM (
    SELECT h.host AS server, substring(i.key_ from '"?([^",\[]*)"?\s*\]$') AS database, t.day, t.value,
           row_number() OVER (PARTITION BY i.itemid, t.day ORDER BY t.clock DESC) AS turn
    FROM hosts h
    JOIN items i ON i.hostid = h.hostid
    JOIN (
        SELECT itemid, clock, CAST(value_avg AS numeric) AS value,
               CAST(to_timestamp(clock) AT TIME ZONE CAST(:zone AS text) AS date) AS day
        FROM trends_uint
        UNION ALL
        SELECT itemid, clock, CAST(value_avg AS numeric),
               CAST(to_timestamp(clock) AT TIME ZONE CAST(:zone AS text) AS date)
        FROM trends
    ) t ON t.itemid = i.itemid
    WHERE (i.key_ LIKE 'pgsql.db.size[%' OR i.key_ LIKE 'mysql.db.size[%' OR i.key_ LIKE 'mysql.dbsize[%')
      AND t.clock >= extract(epoch FROM CAST(:first AS date)) - 86400
      AND t.clock < extract(epoch FROM CAST(:last AS date)) + 2 * 86400
) s
WHERE s.turn = 1 AND s.day BETWEEN CAST(:first AS date) AND CAST(:last AS date)
ORDER BY s.day, s.server, s.database
"""
# The session's zone decides which day it is: SET time_zone = 'Europe/Berlin', where the server has tables of zones.
ZABBIX_MYSQL = r"""
SELECT s.server, s.name AS `database`, s.day, CAST(FLOOR(s.value) AS SIGNED) AS size_bytes
FROM (
    SELECT h.host AS server, TRIM(BOTH '"' FROM TRIM(SUBSTRING_INDEX(
               SUBSTRING_INDEX(TRIM(TRAILING ']' FROM i.key_), ',', -1), '[', -1))) AS name,
           DATE(FROM_UNIXTIME(t.clock)) AS day, t.value,
           ROW_NUMBER() OVER (PARTITION BY i.itemid, DATE(FROM_UNIXTIME(t.clock)) ORDER BY t.clock DESC) AS turn
    FROM hosts h
    JOIN items i ON i.hostid = h.hostid
    JOIN (
        SELECT itemid, clock, value_avg AS value FROM trends_uint
        UNION ALL
        SELECT itemid, clock, value_avg FROM trends
    ) t ON t.itemid = i.itemid
    WHERE i.key_ LIKE 'pgsql.db.size[%' OR i.key_ LIKE 'mysql.db.size[%' OR i.key_ LIKE 'mysql.dbsize[%'
) s
WHERE s.turn = 1 AND s.day < CURRENT_DATE
ORDER BY s.day, s.server, s.name
"""
# The last full backup of each database that ended on a day, by the server's clock. Its size is that of the used pages
# before compression, which is not that of the files.
# https://learn.microsoft.com/en-us/sql/relational-databases/system-tables/backupset-transact-sql
SQLSERVER_BACKUPS = """
SELECT s.server, s.database_name AS [database], s.day, s.size_bytes
FROM (
    SELECT b.server_name AS server, b.database_name, CAST(b.backup_finish_date AS date) AS day,
           CAST(b.backup_size AS bigint) AS size_bytes,
           ROW_NUMBER() OVER (PARTITION BY b.server_name, b.database_name, CAST(b.backup_finish_date AS date)
                              ORDER BY b.backup_finish_date DESC, b.backup_set_id DESC) AS turn
    FROM msdb.dbo.backupset AS b
    WHERE b.server_name = @@SERVERNAME AND b.type = 'D' AND b.backup_size IS NOT NULL
      AND b.database_name NOT IN ('master', 'model', 'msdb')
) AS s
WHERE s.turn = 1
ORDER BY s.day, s.server, s.database_name
"""
# Hourly snapshots, kept for eight days unless the retention was raised; using the view takes a licence of the
# Diagnostics Pack. Sizes are in blocks of the tablespace, the time is a text of the server's clock.
# https://docs.oracle.com/en/database/oracle/oracle-database/23/refrn/DBA_HIST_TBSPC_SPACE_USAGE.html
ORACLE_AWR = """
SELECT :server AS "server", s.tablespace_name AS "database", TO_CHAR(s.day, 'YYYY-MM-DD') AS "day",
       s.size_bytes AS "size_bytes"
FROM (
    SELECT n.name AS tablespace_name, TRUNC(TO_DATE(u.rtime, 'MM/DD/YYYY HH24:MI:SS')) AS day,
           u.tablespace_size * t.block_size AS size_bytes,
           ROW_NUMBER() OVER (PARTITION BY n.name, TRUNC(TO_DATE(u.rtime, 'MM/DD/YYYY HH24:MI:SS'))
                              ORDER BY TO_DATE(u.rtime, 'MM/DD/YYYY HH24:MI:SS') DESC, u.snap_id DESC) AS turn
    FROM dba_hist_tbspc_space_usage u
    JOIN v$tablespace n ON n.ts# = u.tablespace_id
    JOIN dba_tablespaces t ON t.tablespace_name = n.name
    WHERE t.contents <> 'TEMPORARY' AND u.dbid = (SELECT dbid FROM v$database)
) s
WHERE s.turn = 1
ORDER BY s.day, s.tablespace_name
"""


@dataclass(frozen=True)
class Origin:
    """What measured samples: the name that is stored, and how people call it."""

    name: str
    label: str
    suffix: str = ""
    """Of the server that gets them, where their sizes mean something else than those of its databases."""
    queries: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By the program to run it in: the dialect of SQL, and the query."""


FILE = Origin("file", "a file")
LEGACY = Origin("legacy", "the legacy database")
PROMETHEUS = Origin("prometheus", "Prometheus")
ZABBIX = Origin(
    "zabbix",
    "trends of Zabbix",
    queries={"Zabbix on PostgreSQL": ("postgres", ZABBIX_POSTGRESQL), "Zabbix on MySQL": ("mysql", ZABBIX_MYSQL)},
)
BACKUPS = Origin(
    "sqlserver-backups",
    "sizes of backups of SQL Server",
    suffix=" backups",
    queries={"SQL Server": ("tsql", SQLSERVER_BACKUPS)},
)
AWR = Origin("oracle-awr", "the workload repository of Oracle", queries={"Oracle": ("oracle", ORACLE_AWR)})
ORIGINS = {one.name: one for one in (FILE, LEGACY, PROMETHEUS, ZABBIX, BACKUPS, AWR)}
ORIGINS_OF_FILES = tuple(one.name for one in (FILE, ZABBIX, AWR, BACKUPS))
"""Those whose samples a file may hold."""

_IMPORTED = """
SELECT instance_id, coalesce(database_name, '') AS database_name,
       range_agg(daterange(collected_date, collected_date, '[]')) AS days
FROM compared WHERE taken GROUP BY 1, 2
"""
_CLAIM = """
INSERT INTO capacity_imported_days AS t (instance_id, database_name, fingerprint, days)
SELECT n.instance_id, n.database_name, :fingerprint, n.days FROM imported AS n
ON CONFLICT (instance_id, database_name, fingerprint) DO UPDATE SET days = t.days + excluded.days
"""
_TAKE_FROM_OTHERS = """
UPDATE capacity_imported_days t SET days = t.days - n.days FROM imported AS n
WHERE t.instance_id = n.instance_id AND t.database_name = n.database_name AND t.fingerprint <> :fingerprint
  AND t.days && n.days
"""


def claim_samples(connection: Connection, fingerprint: str, *, replaced: bool) -> None:
    """Record that the rows taken of `compared` are of an import; `replaced`: they may have been of another one."""
    for statement in (_CLAIM, _TAKE_FROM_OTHERS) if replaced else (_CLAIM,):
        connection.execute(with_parts(statement, imported=_IMPORTED), {"fingerprint": fingerprint})
