"""What lies outside databases, on recorded rows of servers that do not run here; and what no table could hold."""

from __future__ import annotations

import pytest

from capacity_assets.base.units import LARGEST_BYTES
from capacity_assets.collection.engines import oracle, sqlserver
from capacity_assets.collection.engines.base import Limits, PartScope, ServerPart, Volume, engine_named
from capacity_assets.collection.measuring import possible_parts
from tests.recorded import Answers, Recorded

GIB = 1024**3


def asked(engine: str, answers: Answers, scope: PartScope) -> list[ServerPart]:
    sources = engine_named(engine).part_sources.values()
    return [part for source in sources for part in source.ask(Recorded(answers), scope)]


LOGS = [
    ("orders", 5 * GIB, "L:\\log\\orders.ldf", "LOG_BACKUP"),
    ("erp", GIB, "d:\\log\\erp.ldf", "NOTHING"),
    ("linux", 1, "/var/opt/mssql/data/linux.ldf", "NOTHING"),
]


def test_a_log_of_sql_server_says_what_keeps_it_and_lies_on_the_volume_of_its_file() -> None:
    answers = {
        sqlserver.EDITION: [(3, "master")],
        sqlserver.LOGS: LOGS,
        sqlserver.TEMPDB: [(2 * GIB, "D:\\tempdb.mdf")],
    }
    scope = PartScope(("orders", "erp"), Limits((Volume("D:\\", GIB, 1),)))

    assert asked("sqlserver", answers, scope) == [
        ServerPart("transaction_log", "orders", 5 * GIB, "not truncated: LOG_BACKUP", "L:\\"),
        ServerPart("transaction_log", "erp", GIB, None, "D:\\"),
        ServerPart("transaction_log", "linux", 1, None, None),
        ServerPart("temporary", "tempdb", 2 * GIB, None, "D:\\"),
    ]


def test_tempdb_that_is_measured_as_a_database_is_no_part_too() -> None:
    answers = {sqlserver.EDITION: [(3, "master")], sqlserver.LOGS: []}

    assert asked("sqlserver", answers, PartScope(("tempdb",))) == []


def test_of_azure_sql_database_only_its_own_log_is_seen() -> None:
    answers = {sqlserver.EDITION: [(5, "crm")], sqlserver.AZURE_LOG: [("crm", GIB, None, None)]}

    assert asked("sqlserver", answers, PartScope(("crm",))) == [ServerPart("transaction_log", "crm", GIB)]


def test_oracle_has_redo_and_archived_logs_and_what_else_the_recovery_area_holds() -> None:
    answers = {
        oracle.REDO_LOGS: [(None, 6 * GIB, 6, "+DATA/ORCL/ONLINELOG/group_1.257.1")],
        oracle.ARCHIVED_LOGS: [(None, None, 0, None)],
        oracle.RECOVERY: [("backup piece", 12.5 * GIB, 31, "+FRA"), ("flashback log", GIB, 2, "/u01/fra")],
        oracle.BACKUPS: [(None, 40 * GIB, 12, "+BACKUP/ORCL/BACKUPSET/2025_06_01/piece.1")],
        oracle.TEMPORARY_FILES: [("TEMP", GIB, 1, "+DATA/ORCL/TEMPFILE/temp.263.1")],
    }

    assert asked("oracle", answers, PartScope()) == [
        ServerPart("redo", "", 6 * GIB, "6 files", "DATA"),
        ServerPart("archived_log", "", 0, "0 files", None),
        ServerPart("recovery_area", "backup piece", int(12.5 * GIB), "31 files", "FRA"),
        ServerPart("recovery_area", "flashback log", GIB, "2 files", "file system"),
        ServerPart("backup", "", 40 * GIB, "12 files", "BACKUP"),
        ServerPart("temporary", "TEMP", GIB, "1 file", "DATA"),
    ]


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        (ServerPart("wal", size_bytes=LARGEST_BYTES), (ServerPart("wal", size_bytes=LARGEST_BYTES),)),
        (ServerPart("wal", size_bytes=-1), (ServerPart("wal", detail="it reported an impossible size or volume"),)),
        (ServerPart("wal", volume="\0"), (ServerPart("wal", detail="it reported an impossible size or volume"),)),
        (ServerPart("wal", detail="a\0" + "b" * 600), (ServerPart("wal", detail="a\\x00" + "b" * 495),)),
        (ServerPart("heap", size_bytes=1), ()),
        (ServerPart("slot", "x" * 256, 1), ()),
    ],
)
def test_a_part_that_no_table_could_hold_has_no_size_or_is_none(part: ServerPart, kept: tuple[ServerPart, ...]) -> None:
    assert possible_parts([part]) == kept
