"""Limits as engines report them: recorded rows of servers that do not run here, and statements that parse."""

from __future__ import annotations

from typing import Any

import pytds
import pytest
import sqlglot

from capacity_assets.collection.engines import clickhouse, oracle, postgresql, sqlserver
from capacity_assets.collection.engines.base import (
    Access,
    Ceiling,
    Limits,
    MeasureError,
    Volume,
    engine_named,
    volume_of,
)
from capacity_assets.collection.engines.postgresql import limits_by_extension
from capacity_assets.collection.engines.sqlserver import NO_VOLUMES
from capacity_assets.collection.measuring import LARGEST_BYTES, possible_limits
from tests.recorded import Answers, Recorded

GIB = 1024**3
MIB = 1024**2


def sql_server(edition: int, answers: Answers, *names: str) -> Limits:
    connection = Recorded({sqlserver.EDITION: [(edition, "master")], **answers})
    return engine_named("sqlserver").limits(connection, Access("db", 1433, "probe", None), names)


DIALECTS = {clickhouse: "clickhouse", sqlserver: "tsql", oracle: "oracle", postgresql: "postgres"}
STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": (dialect, statement)
    for module, dialect in DIALECTS.items()
    for name, statement in vars(module).items()
    if isinstance(statement, str) and statement.strip().startswith("SELECT") and "{" not in statement
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_catalogue_statement_is_one_statement_of_its_dialect(name: str) -> None:
    dialect, statement = STATEMENTS[name]

    [parsed] = sqlglot.parse(statement, dialect=dialect, error_level=sqlglot.ErrorLevel.RAISE)

    assert isinstance(parsed, sqlglot.exp.Query)


def test_the_statements_that_are_parsed_are_those_of_sizes_and_limits() -> None:
    limits = {f"sqlserver.{name}" for name in ("FILES", "VOLUMES", "INSTANCE_STORAGE", "AZURE_DATABASE", "POOL")}

    assert limits | {"oracle.QUERY", "oracle.CEILINGS", "oracle.DISK_GROUPS", "sqlserver.QUERY"} <= set(STATEMENTS)


@pytest.mark.parametrize(
    ("folder", "mounts", "found"),
    [
        ("/var/lib/mysql/", ["/", "/var", "/var/lib"], "/var/lib"),
        ("/var/lib/mysql/", ["/", "/var/lib/mysql"], "/var/lib/mysql"),
        ("/data2/pg", ["/data", "/"], "/"),
        ("/data2/pg", ["/data"], None),
        ("/data", ["/data/"], "/data/"),
    ],
)
def test_a_folder_lies_on_the_mount_whose_path_is_the_longest_part_of_its_own(
    folder: str, mounts: list[str], found: str | None
) -> None:
    assert volume_of(folder, mounts) == found


# As chDB 26.9 answered on this machine, with a second disk, object storage, and a database without parts.
CLICKHOUSE: Answers = {
    clickhouse.VERSION: [("26.9.2.1",)],
    clickhouse.SEES_ALL: [(1,)],
    clickhouse.DATABASES: [("INFORMATION_SCHEMA", "Memory"), ("known", "Atomic"), ("new", "Atomic"), ("crm", "MySQL")],
    clickhouse.PARTS: [("known", 24181286, 24160000)],
    clickhouse.LOGS: [("known", "l", 1052876), ("known", "old", None)],
    clickhouse.DISKS: [
        ("default", "/var/lib/clickhouse/", "270553174016", "71199236096", "1000"),
        ("cold", "/mnt/cold/", 4 * GIB, GIB, 0),
        ("backups", "/mnt/backups/", 4 * GIB, GIB, 0),
        ("s3", "/var/lib/clickhouse/disks/s3/", 2**64 - 1, 2**64 - 1, 0),
    ],
    clickhouse.PLACES: [("known", ["default", "cold", "s3"]), ("", ["default"])],
}


def test_clickhouse_grows_on_the_local_disks_on_which_its_parts_are() -> None:
    engine, access = engine_named("clickhouse"), Access("db", 8123, "probe", None)

    measurement = engine.sizes(Recorded(CLICKHOUSE), access, engine.system_databases)
    limits = engine.limits(Recorded(CLICKHOUSE), access, ["known", "new"])

    assert {one.name: one.size_bytes for one in measurement.sizes} == {"known": 24181286 + 1052876, "new": 0}
    assert measurement.left_out == ("INFORMATION_SCHEMA",)
    assert measurement.not_counted == (
        "known: 1 table of the Log family",
        "crm: its tables are on another server (MySQL)",
    )
    assert all(f"'{engine}'" in clickhouse.LOGS for engine in clickhouse.ELSEWHERE)
    used = 270553174016 - 71199236096
    assert limits == Limits(
        (
            Volume("/var/lib/clickhouse", 270553174016, 71199236096 - 1000, used),
            Volume("/mnt/cold", 4 * GIB, GIB, 3 * GIB),
        ),
        (
            Ceiling("known", is_unlimited=True, volumes=("/var/lib/clickhouse", "/mnt/cold")),
            Ceiling("new", is_unlimited=True, volumes=("/var/lib/clickhouse",)),
        ),
    )
    assert possible_limits(limits) == limits


@pytest.mark.parametrize(("version", "answer", "is_refused"), [("26.9", [(0,)], True), ("24.8", [(0,)], False)])
def test_a_login_of_clickhouse_that_may_not_see_all_tables_is_refused_where_it_can_be_asked(
    version: str, answer: list[tuple[int]], *, is_refused: bool
) -> None:
    engine, access = engine_named("clickhouse"), Access("db", 8123, "probe", None)
    connection = Recorded({**CLICKHOUSE, clickhouse.VERSION: [(version,)], clickhouse.SEES_ALL: answer})

    if is_refused:
        with pytest.raises(MeasureError, match="SHOW TABLES on"):
            engine.sizes(connection, access, ())
    else:
        assert engine.sizes(connection, access, ()).sizes


def test_files_of_sql_server_that_may_grow_to_an_end_are_a_ceiling_and_others_fill_their_volumes() -> None:
    found = sql_server(
        3,
        {
            sqlserver.FILES: [("orders", 50 * GIB, 0), ("archive", 7, 1), ("master", 1, 0)],
            sqlserver.VOLUMES: [
                ("archive", "D:\\", 100 * GIB, 30 * GIB),
                ("orders", "D:\\", 100 * GIB, 31 * GIB),
                ("orders", "E:\\", 200 * GIB, 5 * GIB),
            ],
        },
        "orders",
        "archive",
    )

    assert found.volumes == (Volume("D:\\", 100 * GIB, 30 * GIB), Volume("E:\\", 200 * GIB, 5 * GIB))
    assert found.ceilings == (
        Ceiling("orders", 50 * GIB, volumes=("D:\\", "E:\\")),
        Ceiling("archive", is_unlimited=True, volumes=("D:\\",)),
    )
    assert found.unknown is None


@pytest.mark.parametrize(("version", "limit"), [(13, 10 * GIB), (16, 10 * GIB), (17, 50 * GIB)])
def test_the_express_edition_has_a_ceiling_whatever_its_files_may_grow_to(version: int, limit: int) -> None:
    answers = {
        sqlserver.FILES: [("a", 0, 1), ("b", 3 * GIB, 0), ("c", 99 * GIB, 0)],
        sqlserver.VOLUMES: [],
        sqlserver.MAJOR_VERSION: [(version,)],
    }

    found = sql_server(4, answers, "a", "b", "c")

    assert [one.limit_bytes for one in found.ceilings] == [limit, 3 * GIB, limit]


def test_ceilings_stay_known_where_volumes_may_not_be_seen() -> None:
    refused = pytds.OperationalError("VIEW SERVER STATE permission was denied")
    refused.msg_no = 300
    found = sql_server(3, {sqlserver.FILES: [("orders", GIB, 0)], sqlserver.VOLUMES: refused}, "orders")

    assert found == Limits((), (Ceiling("orders", GIB),), NO_VOLUMES)


def test_a_managed_instance_has_its_reserved_storage() -> None:
    found = sql_server(
        8,
        {sqlserver.FILES: [("orders", 0, 1)], sqlserver.INSTANCE_STORAGE: [(262144, 100000.5)]},
        "orders",
    )

    assert found.volumes == (Volume("reserved storage", 262144 * MIB, 162144 * MIB),)
    assert found.ceilings == (Ceiling("orders", is_unlimited=True, volumes=("reserved storage",)),)


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        (("orders", 250 * GIB, "Standard"), 250 * GIB),
        (("orders", -1, "Hyperscale"), None),
        (("orders", None, "Basic"), None),
    ],
)
def test_an_azure_database_has_the_size_that_was_bought_and_hyperscale_an_unknown_one(
    row: tuple[Any, ...], limit: int | None
) -> None:
    alone = sql_server(5, {sqlserver.AZURE_DATABASE: [row], sqlserver.POOL: []}, "orders")
    pooled = sql_server(5, {sqlserver.AZURE_DATABASE: [row], sqlserver.POOL: [(51200, 51300)]}, "orders")

    assert alone == Limits((), (Ceiling("orders", limit),))
    assert pooled.volumes == (Volume("elastic pool", 51200 * MIB, 0),)
    assert pooled.ceilings == (Ceiling("orders", limit, volumes=("elastic pool",)),)


def test_a_tablespace_of_oracle_has_what_its_files_extend_to_and_what_is_usable_of_its_disk_group() -> None:
    groups = [("DATA", "NORMAL", 4096, 700, 1500), ("FAST", "EXTERN", 1024, -20, 4), ("FLEXY", "FLEX", 1024, 0, 0)]
    answers = {
        oracle.CEILINGS: [("USERS", 32 * GIB), ("DATA", 64 * GIB), ("FLEX", GIB), ("OLD", 2 * GIB), ("OTHER", GIB)],
        oracle.GROUPS_OF_TABLESPACES: [
            ("USERS", "DATA"),
            ("DATA", "FAST"),
            ("DATA", "DATA"),
            ("FLEX", "FLEXY"),
            ("OLD", None),
        ],
        oracle.DISK_GROUPS: groups,
    }
    names = ["USERS", "DATA", "FLEX", "OLD"]

    found = engine_named("oracle").limits(Recorded(answers), Access("db", 1521, "probe", "orcl"), names)

    # What is neither free nor used is kept for mirrors.
    assert found.volumes == (
        Volume("DATA", 2048 * MIB, 700 * MIB, 1298 * MIB),
        Volume("FAST", 1024 * MIB, 0, 1020 * MIB),
    )
    assert [(one.database, one.limit_bytes, one.volumes) for one in found.ceilings] == [
        ("USERS", 32 * GIB, ("DATA",)),
        ("DATA", 64 * GIB, ("DATA", "FAST")),
        ("FLEX", GIB, None),
        ("OLD", 2 * GIB, None),
    ]


def disks(*rows: tuple[str, int, int, int]) -> Any:
    """What answers each statement with its recorded rows."""
    return {
        postgresql.FUNCTIONS: [("system_stats", "public", True)],
        postgresql.TABLESPACES: [("orders", 1663, ""), ("billing", 16400, "/fast/ts")],
        postgresql.SETTING: [("/var/lib/postgresql/17/main",)],
        postgresql.DISKS.format(schema="public"): rows,
    }.__getitem__


def test_system_stats_names_file_systems_by_where_they_are_mounted() -> None:
    """Rows as version 4.0 gave them on PostgreSQL 17.12."""
    found = limits_by_extension(
        disks(("/", 270553174016, 83579121664, 26843545600), ("/fast", GIB, 1000, GIB - 1000)), ["orders", "billing"]
    )

    assert found.volumes == (
        Volume("/", 270553174016, 83579121664, 26843545600),
        Volume("/fast", GIB, 1000, GIB - 1000),
    )
    assert [one.volumes for one in found.ceilings] == [("/",), ("/fast",)]


def test_a_file_system_that_system_stats_leaves_out_is_unknown_and_no_other_one_stands_for_it() -> None:
    found = limits_by_extension(disks(("/fast", GIB, 1000, 0)), ["orders"])

    assert found == Limits(unknown="system_stats does not list the file system of /var/lib/postgresql/17/main")


GOOD = Volume("a", 2, 1)


@pytest.mark.parametrize(
    "limits",
    [
        None,
        Limits((Volume("x" * 256, 1, 1),)),
        Limits((Volume("a\0b", 1, 1),)),
        Limits((Volume("\ud800", 1, 1),)),
        Limits((Volume("a", -1, 0),)),
        Limits((Volume("a", 1, 2),)),
        Limits((Volume("a", 1, 1, 2),)),
        Limits((Volume("a", LARGEST_BYTES + 1, 1),)),
        Limits((Volume("a", 1, None),)),  # type: ignore[arg-type]
        Limits((Volume(7, 1, 1),)),  # type: ignore[arg-type]
        Limits((GOOD, GOOD)),
        Limits((GOOD,), (Ceiling("d"), Ceiling("d"))),
        Limits((GOOD,), (Ceiling("d", volumes=("x" * 256,)),)),
        Limits((GOOD,), (Ceiling("d", LARGEST_BYTES + 1),)),
    ],
)
def test_limits_that_no_table_could_hold_are_unknown(limits: object) -> None:
    assert possible_limits(limits).unknown == "it reported an impossible limit or name of a volume"
    assert possible_limits(Limits((GOOD,), (Ceiling("d", 5, volumes=("a",)),))).unknown is None
