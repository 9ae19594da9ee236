"""Engines: how they are found, what their results become, what their errors mean."""

from __future__ import annotations

import pytest

from capacity_assets.aggregation.errors import ValidationError
from capacity_assets.collection.engines import oracle, sqlserver
from capacity_assets.collection.engines.base import (
    Access,
    DatabaseSize,
    Kind,
    MeasureError,
    ceiling_mb,
    engine_named,
    engines,
    excluded_databases,
    floor_mb,
)

MB = 1024 * 1024


def test_engines_are_found_by_their_entry_points() -> None:
    found = {name: (type(engine).__name__, engine.default_port, engine.verified) for name, engine in engines().items()}

    assert found == {
        "mariadb": ("MariaDB", 3306, True),
        "mysql": ("MySQL", 3306, False),
        "oracle": ("Oracle", 1521, False),
        "postgresql": ("PostgreSQL", 5432, True),
        "sqlserver": ("SQLServer", 1433, False),
    }
    with pytest.raises(ValidationError, match=r"'db2' is no engine that can be measured; known are mariadb, mysql"):
        engine_named("db2")


@pytest.mark.parametrize(
    ("size_bytes", "down", "up"),
    [(0, 0, 0), (1, 0, 1), (MB - 1, 0, 1), (MB, 1, 1), (MB + 1, 1, 2), (2**53, 2**33, 2**33)],
)
def test_bytes_become_whole_megabytes(size_bytes: int, down: int, up: int) -> None:
    assert (floor_mb(size_bytes), ceiling_mb(size_bytes)) == (down, up)


def test_recorded_rows_of_sql_server_become_data_and_log_sizes() -> None:
    rows = [("ERP_Main", 512 * MB + 5, 128 * MB, 3), ("HR", 8 * MB, 8 * MB - 1, 2)]

    assert sqlserver.sizes_of(rows) == [
        DatabaseSize("ERP_Main", 512, data_size_mb=512, log_size_mb=128),
        DatabaseSize("HR", 8, data_size_mb=8, log_size_mb=7),
    ]


def test_databases_of_sql_server_whose_files_may_not_be_seen_fail_the_server() -> None:
    with pytest.raises(MeasureError, match="may not measure hidden: VIEW ANY DEFINITION is missing") as failed:
        sqlserver.sizes_of([("seen", MB, MB, 2), ("hidden", 0, 0, 0)])

    assert failed.value.kind is Kind.RIGHTS


def test_recorded_rows_of_oracle_become_tablespaces() -> None:
    assert oracle.sizes_of([("USERS", 104857600), ("SYSTEM", 943718399)]) == [
        DatabaseSize("USERS", 100, data_size_mb=100),
        DatabaseSize("SYSTEM", 899, data_size_mb=899),
    ]


def test_errors_of_the_unverified_engines_are_told_by_their_numbers() -> None:
    import oracledb
    import pytds

    login = pytds.LoginError("Login failed for user 'x'.")
    login.msg_no = 18456
    told = engine_named("sqlserver").explained(login)
    assert told is not None
    assert (told.kind, str(told)) == (Kind.LOGIN, "Login failed for user 'x'")
    assert engine_named("sqlserver").explained(ValueError()) is None

    class Recorded:
        full_code = "ORA-01017"

        def __str__(self) -> str:
            return "ORA-01017: invalid credential or not authorized; logon denied"

    told = engine_named("oracle").explained(oracledb.DatabaseError(Recorded()))
    assert told is not None
    assert told.kind is Kind.LOGIN
    assert str(told).startswith("ORA-01017: invalid credential")
    assert engine_named("oracle").explained(ValueError()) is None


@pytest.mark.parametrize(
    ("name", "access", "reason"),
    [
        ("oracle", Access("127.0.0.1", 1, "u", None), "needs its service name"),
        ("sqlserver", Access("127.0.0.1", 1, "u", None, tls="require"), "require needs `tls_ca`"),
        ("sqlserver", Access("127.0.0.1", 1, "u", None, tls="verify-full"), "verify-full needs `tls_ca`"),
    ],
)
def test_what_a_driver_cannot_do_is_told_before_it_is_tried(name: str, access: Access, reason: str) -> None:
    with pytest.raises(MeasureError, match=reason) as failed:
        engine_named(name).connect(access)

    assert failed.value.kind is Kind.SETUP


@pytest.mark.parametrize("name", ["oracle", "sqlserver"])
def test_a_server_that_refuses_the_connection_fails_by_the_real_driver(name: str) -> None:
    engine = engine_named(name)
    access = Access("127.0.0.1", 1, "u", "service", password="secret-Pa55", connect_seconds=2)  # noqa: S106

    with pytest.raises(Exception) as failed:  # noqa: PT011 -- each driver has its own
        engine.connect(access)

    told = engine.explained(failed.value)  # type: ignore[arg-type]
    assert told is None or told.kind in {Kind.UNREACHABLE, Kind.UNEXPECTED}
    assert "secret-Pa55" not in f"{failed.value} {told} {access}"


def test_system_databases_are_the_engines_unless_the_setting_says_otherwise() -> None:
    assert excluded_databases("")["mysql"] == ("information_schema", "mysql", "performance_schema", "sys")
    assert excluded_databases("")["oracle"] == ()

    said = excluded_databases(" postgresql= , mysql = mysql|sys ")
    assert (said["postgresql"], said["mysql"]) == ((), ("mysql", "sys"))
    assert said["sqlserver"] == ("master", "model", "msdb", "tempdb")


@pytest.mark.parametrize("setting", ["db2=x", "mysql", "postgresql:x"])
def test_a_setting_that_names_no_engine_is_refused(setting: str) -> None:
    with pytest.raises(ValidationError, match="CAPACITY_SYSTEM_DATABASES: '"):
        excluded_databases(setting)


def test_every_engine_documents_what_it_measures_and_needs() -> None:
    for engine in engines().values():
        assert engine.grants
        assert engine.definition
