"""Engines: how they are found, what their results become, what their errors mean."""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import cast

import pytds
import pytest
import sqlglot
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from capacity_assets.base.errors import ValidationError
from capacity_assets.collection import measuring
from capacity_assets.collection.engines import oracle, postgresql, sqlserver
from capacity_assets.collection.engines.base import (
    LONGEST_REASON,
    Access,
    DatabaseObjects,
    DatabaseSize,
    EngineAdapter,
    FailureKind,
    MeasureError,
    Measurement,
    Objects,
    ObjectSize,
    UsedSpace,
    ceiling_mb,
    engine_named,
    engines,
    excluded_databases,
    floor_mb,
    is_excluded,
    objects_by_database,
    objects_of,
)
from capacity_assets.collection.measuring import IMPOSSIBLE_OBJECTS, ProbeOutcome, possible_objects
from capacity_assets.collection.service import CollectionSummary
from tests.recorded import Answers, Recorded

MB, GB = 1024**2, 1024**3


def test_engines_are_found_by_their_entry_points() -> None:
    found = {name: (type(engine).__name__, engine.default_port, engine.verified) for name, engine in engines().items()}

    assert found == {
        "clickhouse": ("ClickHouse", 8123, True),
        "mariadb": ("MariaDB", 3306, True),
        "mysql": ("MySQL", 3306, True),
        "oracle": ("Oracle", 1521, False),
        "postgresql": ("PostgreSQL", 5432, True),
        "sqlserver": ("SQLServer", 1433, False),
    }
    with pytest.raises(
        ValidationError, match=r"'db2' is not an engine that can be measured; known are clickhouse, mariadb"
    ):
        engine_named("db2")
    with pytest.raises(ValidationError, match="Did you mean 'postgresql'"):
        engine_named("postgres")


def test_a_run_adds_up_bytes_as_its_stored_total_does_and_names_servers_without_an_address() -> None:
    sizes = (DatabaseSize.of_bytes("a", MB * 3 // 2), DatabaseSize.of_bytes("b", MB * 3 // 2), DatabaseSize("c", 4))
    outcome = ProbeOutcome(sizes, instance_id=1, server="one", ended_at=datetime(2025, 7, 20, tzinfo=UTC))

    summary = CollectionSummary(date(2025, 7, 20), filled_elsewhere=["x", "y"]).with_outcomes([outcome])

    assert summary.measured_size_mb == 3 + 4
    assert "Not measured from here, because no connection is registered: x, y." in summary.message


@pytest.mark.parametrize(
    ("size_bytes", "down", "up"),
    [(0, 0, 0), (1, 0, 1), (MB - 1, 0, 1), (MB, 1, 1), (MB + 1, 1, 2), (2**53, 2**33, 2**33)],
)
def test_bytes_become_whole_megabytes(size_bytes: int, down: int, up: int) -> None:
    assert (floor_mb(size_bytes), ceiling_mb(size_bytes)) == (down, up)


def test_recorded_rows_of_sql_server_become_data_and_log_sizes() -> None:
    rows = [("ERP_Main", 512 * MB + 5, 128 * MB, 3, 0, 0, 0), ("HR", 8 * MB, 8 * MB - 1, 2, 0, 0, 0)]

    assert sqlserver.measurement_of(rows, ()).sizes == (
        DatabaseSize(
            "ERP_Main",
            512,
            512 * MB + 5,
            {"data_size": 512, "log_size": 128},
            {"data_size": 512 * MB + 5, "log_size": 128 * MB},
        ),
        DatabaseSize("HR", 8, 8 * MB, {"data_size": 8, "log_size": 7}, {"data_size": 8 * MB, "log_size": 8 * MB - 1}),
    )


def test_a_snapshot_of_sql_server_is_no_database_and_containers_without_a_size_are_named() -> None:
    rows = [
        ("ERP", 3 * MB, MB, 3, 2, 0, 0),
        ("ERP_snapshot", 3 * MB, None, 2, 0, 0, 1),
        ("tempdb", MB, MB, 2, 0, 0, 0),
    ]

    found = sqlserver.measurement_of(rows, ("tempdb",))

    assert [size.name for size in found.sizes] == ["ERP"]
    assert found.not_counted == (
        "ERP: 2 containers of FILESTREAM or memory-optimized data",
        "ERP_snapshot: a database snapshot",
    )
    assert found.left_out == ("tempdb",)


def test_databases_of_sql_server_whose_files_may_not_be_seen_fail_the_server() -> None:
    with pytest.raises(MeasureError, match="may not measure hidden: VIEW ANY DEFINITION is missing") as failed:
        sqlserver.measurement_of([("seen", MB, MB, 2, 0, 0, 0), ("hidden", None, None, 0, 0, 0, 0)], ())

    assert failed.value.kind is FailureKind.RIGHTS


def oracle_sizes(*rows: tuple[object, ...], excluded: Sequence[str] = ()) -> Measurement:
    connection = Recorded({oracle.CONTAINER: [("SHOP",)], oracle.QUERY: rows})
    return engine_named("oracle").sizes(connection, Access("db", 1521, "probe", "shop"), excluded)


def test_a_file_without_a_size_fails_the_server_instead_of_counting_as_nothing() -> None:
    with pytest.raises(MeasureError, match="the size of a file of ERP is unknown"):
        sqlserver.measurement_of([("ERP", None, MB, 2, 0, 1, 0)], ())
    with pytest.raises(MeasureError, match="the size of a data file of USERS is not known"):
        oracle_sizes(("USERS", None, 2, 0))


@pytest.mark.parametrize(
    ("edition", "database", "reason"),
    [
        (5, "master", "Azure SQL Database shows one database per connection"),
        (6, "master", r"Azure Synapse \(dedicated\) reports no sizes"),
        (12, "x", "Microsoft Fabric reports no sizes"),
    ],
)
def test_editions_that_show_no_files_are_refused_with_what_to_do(edition: int, database: str, reason: str) -> None:
    with pytest.raises(MeasureError, match=reason):
        sqlserver.query_for(edition, database)
    assert sqlserver.query_for(5, "shop") == sqlserver.ONE_DATABASE
    assert sqlserver.query_for(8, "master") == sqlserver.QUERY


def test_recorded_rows_of_oracle_become_tablespaces() -> None:
    found = oracle_sizes(("USERS", 104857600, 1, 1), ("SYSTEM", 943718399, 2, 2), excluded=("SYSTEM",))

    assert found.sizes == (DatabaseSize("USERS", 100, 104857600, {"data_size": 100}, {"data_size": 104857600}),)
    assert found.left_out == ("SYSTEM",)


ACCESS = Access("db", 1433, "probe", None)


def used_of(engine: str, answers: Answers, *names: str) -> UsedSpace:
    sizes = [DatabaseSize.of_bytes(name, GB) for name in names]
    return engine_named(engine).used(Recorded(answers), ACCESS, sizes)


def test_the_used_space_of_sql_server_is_asked_of_each_database_and_one_that_fails_is_named() -> None:
    offline = pytds.OperationalError("Database 'old' cannot be opened because it is offline.")
    refused = [pytds.OperationalError("not able to access the database") for _ in range(2)]
    for error in refused:
        error.msg_no = 916
    found = used_of(
        "sqlserver",
        {
            sqlserver.EDITION: [(3, "master")],
            sqlserver.USED.format(database="[ERP]."): [(200 * MB,)],
            sqlserver.USED.format(database="[a]]b]."): [(MB,)],
            sqlserver.USED.format(database="[old]."): offline,
            sqlserver.USED.format(database="[x]."): refused[0],
            sqlserver.USED.format(database="[y]."): refused[1],
        },
        *("ERP", "a]b", "old", "x", "y"),
    )

    assert found.used_bytes == {"ERP": 200 * MB, "a]b": MB}
    assert found.unknown == (
        "old: Database 'old' cannot be opened because it is offline",
        "x, y: not able to access the database",
    )


def test_the_used_space_of_azure_sql_database_is_that_of_the_connected_one() -> None:
    answers = {sqlserver.EDITION: [(5, "crm")], sqlserver.USED.format(database=""): [(5 * MB,)]}

    assert used_of("sqlserver", answers, "crm") == UsedSpace({"crm": 5 * MB})


def test_of_a_tablespace_of_oracle_with_a_file_offline_the_used_space_is_unknown() -> None:
    found = used_of(
        "oracle", {oracle.USED: [("USERS", 70 * MB, 0), ("OLD", 9 * MB, 1), ("LEFT_OUT", 1, 1)]}, "USERS", "OLD"
    )

    assert found == UsedSpace({"USERS": 70 * MB}, ("OLD: a data file is offline",))


def test_a_used_space_is_never_more_than_its_files() -> None:
    size = DatabaseSize.of_bytes("ERP", 10 * MB, data_size=10 * MB)

    assert size.with_used(11 * MB, floor_mb).parts_bytes == {"data_size": 10 * MB, "used_size": 10 * MB}
    assert size.with_used(3 * MB + 1, ceiling_mb).parts_mb["used_size"] == 4
    assert DatabaseSize("ERP", 10).with_used(MB, floor_mb) == DatabaseSize("ERP", 10)


def test_recorded_rows_of_sql_server_become_tables_indexes_and_the_sum_of_the_others() -> None:
    rows = [
        ("dbo", "Audit", "PK_Audit", 1, 80 * MB, 3 * MB, 1000, 20 * MB, 7, 130 * MB),
        ("dbo", "Audit", "IX_When", 2, 20 * MB, 0, 1000, 20 * MB, 7, 130 * MB),
        ("sys", "heap", None, 0, 8 * MB, 0, 5, 0, 7, 130 * MB),
    ]

    found = sqlserver.objects_from("ERP", rows)

    assert (found.other_count, found.other_bytes) == (4, 22 * MB)
    assert found.largest == (
        ObjectSize("dbo", "Audit", "table", 80 * MB, "", 20 * MB, 3 * MB, 1000, is_exact=True),
        ObjectSize("dbo", "IX_When", "index", 20 * MB, "Audit", None, 0, 1000, is_exact=True),
        ObjectSize("sys", "heap", "table", 8 * MB, "", 0, 0, 5, is_exact=True),
    )
    assert sqlserver.objects_from("empty", []) == DatabaseObjects("empty", ())


def test_recorded_rows_of_oracle_become_objects_of_the_tablespaces_that_were_measured() -> None:
    rows = [
        ("DATA", "SHOP", "ORDERS", "table", None, 64 * MB, 1000, 3, 80 * MB),
        ("DATA", "SHOP", "ORDERS_PK", "index", "ORDERS", 8 * MB, None, 3, 80 * MB),
        ("SYSTEM", "SYS", "OBJ$", "table", None, MB, None, 1, MB),
    ]

    connection, access = Recorded({oracle.OBJECTS: rows}), Access("db", 1521, "probe", "shop")
    data, users = engine_named("oracle").objects(connection, access, ["DATA", "USERS"]).databases

    assert (data.database, data.other_count, data.other_bytes) == ("DATA", 1, 8 * MB)
    assert data.largest == (
        ObjectSize("SHOP", "ORDERS", "table", 64 * MB, "", None, None, 1000, is_exact=True),
        ObjectSize("SHOP", "ORDERS_PK", "index", 8 * MB, "ORDERS", None, None, None, is_exact=True),
    )
    assert users == DatabaseObjects("USERS", ())


@pytest.mark.parametrize(
    ("statement", "dialect"),
    [
        (sqlserver.objects_query("a]b%; --") % "@P0", "tsql"),
        (sqlserver.objects_query(None) % "@P0", "tsql"),
        (sqlserver.USED.format(database="[a]]b%; --]."), "tsql"),
        (oracle.OBJECTS, "oracle"),
        (oracle.BACKUPS, "oracle"),
        (postgresql.OBJECTS, "postgres"),
    ],
)
def test_statements_about_one_database_are_one_statement_of_their_dialect(statement: str, dialect: str) -> None:
    [parsed] = sqlglot.parse(statement, dialect=dialect, error_level=sqlglot.ErrorLevel.RAISE)

    assert isinstance(parsed, sqlglot.exp.Select)
    if "a]b" in statement or "a]]b" in statement:
        assert {table.catalog for table in parsed.find_all(sqlglot.exp.Table)} == {"a]b%; --"}


@pytest.mark.parametrize(
    "wrong",
    [
        ObjectSize("s", "t", "table", -1),
        ObjectSize("s", "", "table", 1),
        ObjectSize("s", "t" * 256, "table", 1),
        ObjectSize("s", "t\0", "table", 1),
        ObjectSize("s", "t", "table", 2**63),
        ObjectSize("s", "t", "table", 1, free_bytes=-1),
        ObjectSize("s", "t", "table", 1, written_rows=-1),
    ],
)
def test_objects_that_no_table_could_hold_are_unknown(wrong: ObjectSize) -> None:
    right = ObjectSize("s", "t", "table", 1)

    assert possible_objects(Objects((DatabaseObjects("d", (right,)),))).unknown == ()
    for objects in ((wrong,), (right, right)):
        assert possible_objects(Objects((DatabaseObjects("d", objects),))) == IMPOSSIBLE_OBJECTS


def test_beyond_the_candidates_objects_are_added_up() -> None:
    found = objects_of("d", [ObjectSize("s", f"t{number}", "table", number) for number in range(1100)])

    assert (len(found.largest), found.largest[0].name) == (1000, "t1099")
    assert (found.other_count, found.other_bytes) == (100, sum(range(100)))


def test_errors_of_the_unverified_engines_are_told_by_their_numbers() -> None:
    import oracledb
    import pytds

    login = pytds.LoginError("Login failed for user 'x'.")
    login.msg_no = 18456
    explained = engine_named("sqlserver").explained(login)
    assert explained is not None
    assert (explained.kind, str(explained)) == (FailureKind.LOGIN, "Login failed for user 'x'")
    assert engine_named("sqlserver").explained(ValueError()) is None

    class Recorded:
        full_code = "ORA-01017"

        def __str__(self) -> str:
            return "ORA-01017: invalid credential or not authorized; logon denied"

    explained = engine_named("oracle").explained(oracledb.DatabaseError(Recorded()))
    assert explained is not None
    assert explained.kind is FailureKind.LOGIN
    assert str(explained).startswith("ORA-01017: invalid credential")
    assert engine_named("oracle").explained(ValueError()) is None


@pytest.mark.parametrize(
    ("host", "is_named"),
    [
        ("db.example", True),
        ("DB.example", True),
        ("one.of.example", True),
        ("10.0.0.7", True),
        ("b.example", False),
        ("of.example", False),
        ("two.one.of.example", False),
        ("10.0.0.8", False),
        ("example", False),
    ],
)
@pytest.mark.parametrize("subject", ["CN=common.example", ""])
def test_a_certificate_of_sql_server_names_its_host(host: str, is_named: bool, subject: str) -> None:
    """With the driver's own function, which needs a removed pyOpenSSL function, verify-full would always fail."""

    class OfPyOpenSSL:
        def to_cryptography(self) -> x509.Certificate:
            return certificate

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string(subject)
    alternatives: list[x509.GeneralName] = [x509.DNSName(one) for one in ("*.of.example", "db.example")]
    alternatives.append(x509.IPAddress(ipaddress.ip_address("10.0.0.7")))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2025, 1, 1), datetime(2026, 1, 1))  # noqa: DTZ001
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )

    assert sqlserver.is_issued_for(OfPyOpenSSL(), host.encode()) is is_named
    assert sqlserver.is_issued_for(OfPyOpenSSL(), b"common.example") is bool(subject)


def test_the_driver_of_sql_server_asks_for_the_name_by_the_function_that_is_replaced() -> None:
    from pytds import tls

    assert list(inspect.signature(tls.validate_host).parameters) == ["cert", "name"]
    assert "if not validate_host(cert=conn.get_peer_certificate(), name=bhost):" in inspect.getsource(tls)


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

    assert failed.value.kind is FailureKind.SETUP


@pytest.mark.parametrize("name", ["oracle", "sqlserver"])
def test_a_server_that_refuses_the_connection_fails_by_the_real_driver(name: str) -> None:
    engine = engine_named(name)
    access = Access("127.0.0.1", 1, "u", "service", password="secret-Pa55", connect_seconds=2)  # noqa: S106

    with pytest.raises(Exception) as failed:  # noqa: PT011 -- each driver has its own
        engine.connect(access)

    explained = engine.explained(failed.value)  # type: ignore[arg-type]
    assert explained is None or explained.kind in {FailureKind.UNREACHABLE, FailureKind.UNEXPECTED}
    assert "secret-Pa55" not in f"{failed.value} {explained} {access}"


def test_system_databases_are_the_engines_unless_the_setting_says_otherwise() -> None:
    assert excluded_databases("")["mysql"] == ("information_schema", "mysql", "performance_schema", "sys")
    assert excluded_databases("")["oracle"] == ()

    said = excluded_databases(" postgresql= , mysql = mysql|sys ")
    assert (said["postgresql"], said["mysql"]) == ((), ("mysql", "sys"))
    assert said["sqlserver"] == ("master", "model", "msdb", "tempdb", "rdsadmin")


@pytest.mark.parametrize(
    ("name", "patterns", "left_out"),
    [
        ("tmp_1", ("tmp_*",), True),
        ("atmp_1", ("tmp_*",), False),
        ("#sql-ib1", ("#sql*",), True),
        ("a.b\nc", ("a*c",), True),
        ("x[1]", ("x[1]",), True),
        ("x1", ("x[1]",), False),
        ("TMP_1", ("tmp_*",), False),
    ],
)
def test_databases_are_left_out_by_name_or_by_a_pattern_with_a_star(
    name: str, patterns: tuple[str, ...], left_out: bool
) -> None:
    assert is_excluded(name, patterns) is left_out


def test_a_secret_is_hidden_before_a_long_reason_is_cut() -> None:
    secret = "S3cret-Pa55word"  # noqa: S105 -- made up
    error = MeasureError(FailureKind.UNEXPECTED, "x" * 995 + secret).without(secret)

    assert "S3cre" not in error.reason
    assert error.reason.startswith("x" * 995 + "***")


class _Refusing:
    """An adapter by whose driver each database is refused with an error that repeats the password."""

    def objects(self, connection: object, access: Access, names: Sequence[str]) -> Objects:  # noqa: ARG002 -- as adapters
        def read(name: str) -> DatabaseObjects:
            raise MeasureError(FailureKind.LOGIN, f"{name} with {access.password} {'x' * 2000}")

        return objects_by_database(names, read, engine_named("mysql").failure)


def test_reasons_for_unknown_objects_of_one_database_hide_the_password_and_are_cut() -> None:
    access = Access("db", 1, "probe", None, "S3cret-Pa55word")

    session = measuring._Session(cast("EngineAdapter", _Refusing()), access, connection=object())
    found = measuring._objects_of(session, ["orders", "shop"])

    assert [reason[:23] for reason in found.unknown] == ["orders: orders with ***", "shop: shop with *** xxx"]
    assert [len(reason) for reason in found.unknown] == [LONGEST_REASON + len(" ...")] * 2


@pytest.mark.parametrize("setting", ["db2=x", "mysql", "postgresql:x"])
def test_a_setting_that_names_no_engine_is_refused(setting: str) -> None:
    with pytest.raises(ValidationError, match="CAPACITY_SYSTEM_DATABASES: '"):
        excluded_databases(setting)


def test_every_engine_documents_what_it_measures_and_needs() -> None:
    for engine in engines().values():
        assert engine.grants
        assert engine.definition
