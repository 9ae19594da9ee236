"""What measured imported samples, kept for each of them: per import, server and database, its days as a multirange.

A sample that no import claims was measured here. Samples that another import, or a measurement, replaces are no longer
claimed by the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Origin:
    """What measured samples: the name that is stored, and how people call it."""

    name: str
    label: str
    suffix: str = ""
    """Of the server that gets them, where their sizes mean another thing than those of its databases."""


FILE = Origin("file", "a file")
LEGACY = Origin("legacy", "the legacy database")
PROMETHEUS = Origin("prometheus", "Prometheus")
ZABBIX = Origin("zabbix", "trends of Zabbix")
ORACLE_AWR = Origin("oracle-awr", "the workload repository of Oracle")
SQLSERVER_BACKUPS = Origin("sqlserver-backups", "sizes of backups of SQL Server", suffix=" backups")
ORIGINS = {one.name: one for one in (FILE, LEGACY, PROMETHEUS, ZABBIX, ORACLE_AWR, SQLSERVER_BACKUPS)}
ORIGINS_OF_FILES = tuple(one.name for one in (FILE, ZABBIX, ORACLE_AWR, SQLSERVER_BACKUPS))
"""Those whose samples a file may hold."""

_DAYS = """
SELECT instance_id, coalesce(database_name, '') AS database_name,
       range_agg(daterange(collected_date, collected_date, '[]')) AS days
FROM compared WHERE taken GROUP BY 1, 2
"""
_CLAIM = f"""
INSERT INTO capacity_imported_days AS t (instance_id, database_name, fingerprint, days)
SELECT n.instance_id, n.database_name, :fingerprint, n.days FROM ({_DAYS}) AS n
ON CONFLICT (instance_id, database_name, fingerprint) DO UPDATE SET days = t.days + excluded.days
"""  # noqa: S608 -- one literal in another
_REPLACE = f"""
UPDATE capacity_imported_days t SET days = t.days - n.days FROM ({_DAYS}) AS n
WHERE t.instance_id = n.instance_id AND t.database_name = n.database_name AND t.fingerprint <> :fingerprint
  AND t.days && n.days
"""  # noqa: S608 -- as above


def claim_samples(connection: Connection, fingerprint: str, *, replaced: bool) -> None:
    """Note that the rows taken of `compared` are of an import; `replaced`: they may have been of another one."""
    connection.execute(text(_CLAIM), {"fingerprint": fingerprint})
    if replaced:
        connection.execute(text(_REPLACE), {"fingerprint": fingerprint})
