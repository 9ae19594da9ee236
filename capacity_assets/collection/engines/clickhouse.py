"""ClickHouse over HTTP: the active parts of MergeTree tables, and the disk space of tables of the Log family.

Queries are sent by GET, so the server does not let them write. It was tested on a server of version 18.16, and the
statements for later versions on chDB 26.9, the same engine in a process.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import ssl
from base64 import b64encode
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlencode

from capacity_assets.base.units import counted
from capacity_assets.collection.engines.base import (
    TABLE,
    TLS_OFF,
    VERIFIED_TLS,
    Access,
    Allowance,
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
    ServerFacts,
    Volume,
    closed_on_failure,
    first_line,
    is_excluded,
    is_loopback,
    query_server,
    refuse_setup,
    tls_context,
)

# https://clickhouse.com/docs/operations/system-tables/databases
DATABASES = "SELECT name, engine FROM system.databases"
# Their tables are elsewhere. https://clickhouse.com/docs/engines/database-engines
ELSEWHERE = ("MySQL", "PostgreSQL", "SQLite", "MongoDB", "S3", "HDFS", "Filesystem", "DataLakeCatalog", "Iceberg")
# Parts that were merged into others stay on disk for some minutes, and would be counted twice.
# https://clickhouse.com/docs/operations/system-tables/parts
PARTS = """
SELECT database, sum(bytes_on_disk), sum(data_compressed_bytes) FROM system.parts WHERE active GROUP BY database
"""
# https://clickhouse.com/docs/operations/system-tables/tables
LOGS = f"""
SELECT database, name, total_bytes FROM system.tables WHERE engine IN ('Log', 'TinyLog', 'StripeLog')
AND database IN (SELECT name FROM system.databases WHERE engine NOT IN {ELSEWHERE})
"""  # noqa: S608 -- a list of this module
# Before WITH_DISKS, `system.tables` has no sizes.
LOGS_BEFORE = f"""
SELECT database, name, NULL FROM system.tables WHERE engine IN ('Log', 'TinyLog', 'StripeLog')
AND database IN (SELECT name FROM system.databases WHERE engine NOT IN {ELSEWHERE})
"""  # noqa: S608 -- a list of this module
# In one statement, because parts are merged and written all the time: the largest tables are a part of the sum.
OBJECTS = """
SELECT database, count(), sum(size), arraySlice(arrayReverseSort(groupArray((size, table, found_rows))), 1, 1000)
FROM (
    SELECT database, table, sum(bytes_on_disk) AS size, sum(rows) AS found_rows FROM system.parts WHERE active
    GROUP BY database, table
) GROUP BY database
"""
# https://clickhouse.com/docs/operations/system-tables/disks
DISKS = "SELECT name, path, total_space, free_space, keep_free_space FROM system.disks"
# A database without parts grows on the disks of the default policy; other disks, for example for backups, contain none.
PLACES = """
SELECT database, groupUniqArray(disk_name) FROM system.parts WHERE active GROUP BY database
UNION ALL SELECT '', groupUniqArray(disk) FROM (
    SELECT arrayJoin(disks) AS disk FROM system.storage_policies WHERE policy_name = 'default'
)
"""
VERSION = "SELECT version()"
# The versions from which the statements above have all their columns, and from which a login may query its rights.
WITH_DISKS, WITH_CHECK = (20, 4), (24, 11)
SEES_ALL = "CHECK GRANT SHOW TABLES ON *.*"
TOO_OLD = f"ClickHouse reports its disks from {'.'.join(map(str, WITH_DISKS))} on"
# Object storage reports more, or nothing.
LARGEST_DISK_BYTES = 2**60
CHUNK_BYTES = 65_536
SYNTAX_ERROR = 62
NOT_CLICKHOUSE = "its answer is not that of ClickHouse: check that its HTTP interface is on this host and port"
# https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
KINDS = {
    **dict.fromkeys((192, 193, 194, 195, 516), FailureKind.LOGIN),
    **dict.fromkeys((164, 291, 497), FailureKind.RIGHTS),
    159: FailureKind.TIMEOUT,
}


class ServerError(Exception):
    """The server's error."""

    def __init__(self, status: int, body: str) -> None:
        code = re.search(r"Code: (\d+)", body)
        self.code = int(code[1]) if code else 0
        # Without a code, the response is not the server's, for example the page of a proxy.
        super().__init__(first_line(body).partition(", e.what()")[0] if code else f"status {status}; {NOT_CLICKHOUSE}")


class Session:
    """The client of one server: it opens a connection for each query, because the server soon closes idle ones."""

    def __init__(self, access: Access) -> None:
        self._access, self._allowance, self.is_encrypted = access, Allowance(), access.tls != TLS_OFF
        self._context = tls_context(access) if self.is_encrypted else None

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the answer to a query; raises ServerError, MeasureError, OSError and http.client.HTTPException."""
        login = b64encode(f"{self._access.username or ''}:{self._access.password or ''}".encode()).decode()
        # Without waiting, an error may follow a half answer with status 200.
        query_string = urlencode({"query": query, "default_format": "JSONCompact", "wait_end_of_query": 1})
        headers = {"Authorization": f"Basic {login}", "Connection": "close"}
        with closing(self._connection()) as connection:
            self._allowance.begin(self._access.statement_seconds)
            connection.request("GET", f"/?{query_string}", headers=headers)
            status, body = _read(connection.getresponse())
        if status != http.client.OK:
            raise ServerError(status, body)
        try:
            return [tuple(row) for row in json.loads(body)["data"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise MeasureError(FailureKind.UNEXPECTED, NOT_CLICKHOUSE) from None

    def _connection(self) -> http.client.HTTPConnection:
        address, seconds = (self._access.host, self._access.port), self._access.connect_seconds
        connection = (
            http.client.HTTPConnection(*address, timeout=seconds)
            if self._context is None
            else http.client.HTTPSConnection(*address, timeout=seconds, context=self._context)
        )
        connection.response_class = partial(_BoundedResponse, self._allowance)  # type: ignore[assignment]  # is called
        with closed_on_failure(connection):
            connection.connect()
        connection.sock.settimeout(self._access.statement_seconds)
        return connection

    def cursor(self) -> Cursor:
        """Return a cursor, for `query_server`."""
        return Cursor(self)

    def close(self) -> None:
        """Do nothing; no connection stays open."""


class _BoundedResponse(http.client.HTTPResponse):
    """A response that counts every byte, also of its headers: the library accepts any number of interim responses."""

    def __init__(self, allowance: Allowance, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp = io.BufferedReader(_CountingStream(self.fp.detach(), allowance))


class _CountingStream(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, allowance: Allowance) -> None:
        self._raw, self._allowance = raw, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        received = self._raw.readinto(buffer)
        self._allowance.take(received or 0)
        return int(received)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _read(answer: http.client.HTTPResponse) -> tuple[int, str]:
    """Return the status and the body of an answer; raises IncompleteRead if it breaks off."""
    body = bytearray()
    while chunk := answer.read(CHUNK_BYTES):
        body += chunk
    if answer.length:
        raise http.client.IncompleteRead(bytes(body), answer.length)
    return answer.status, body.decode("utf-8", "replace")


class Cursor:
    """The rows of one query."""

    def __init__(self, session: Session) -> None:
        self._session, self._rows = session, list[tuple[Any, ...]]()

    def execute(self, query: str) -> None:
        """Send a query, and read its answer."""
        self._rows = self._session.rows(query)

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        """Return the next rows."""
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    def close(self) -> None:
        """Do nothing; the session stays open."""


def version_of(connection: Any) -> tuple[int, ...]:
    """Return the version of the server as numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", str(query_server(connection, VERSION)[0][0])))


class ClickHouse(EngineAdapter):
    """Sizes by `system.parts`; the server shows a login only the tables that it may see."""

    name: ClassVar[str] = "clickhouse"
    default_port: ClassVar[int] = 8123
    # The logs in `system` often grow most.
    system_databases: ClassVar[tuple[str, ...]] = ("INFORMATION_SCHEMA", "information_schema")
    verified: ClassVar[bool] = True
    grants: ClassVar[str] = (
        "CREATE USER capacity_probe IDENTIFIED WITH sha256_password BY '...';\n"
        "GRANT SHOW TABLES ON *.* TO capacity_probe;\n"
        "GRANT SELECT ON system.parts TO capacity_probe;\n"
        "-- for limits by disk:\n"
        "-- GRANT SELECT ON system.disks TO capacity_probe;\n"
        "-- GRANT SELECT ON system.storage_policies TO capacity_probe;"
    )
    definition: ClassVar[str] = (
        "active parts of MergeTree tables in `system.parts`, on all disks; compressed columns as data size. Tables "
        "of the Log family by `system.tables`, before 20.4 named as not counted. Parts that were merged or detached, "
        "queues of distributed tables and tables in memory are not counted; databases whose tables are on another "
        "server are named. The database `system` is measured. Whether the login sees every table is checked from "
        "24.11 on"
    )
    limits_definition: ClassVar[str] = (
        "from 20.4 on, the local disks in `system.disks`, by the disks on which a database has parts, otherwise those "
        "of the default policy; `keep_free_space` is not free"
    )
    objects_definition: ClassVar[str] = (
        "MergeTree tables: active parts in `system.parts`, with their indexes; sizes and rows are exact"
    )

    def connect(self, access: Access) -> Session:
        refuse_setup(
            (access.socket, "it is reached by HTTP, not by a socket: register a host"),
            (
                access.password and access.tls not in VERIFIED_TLS and not is_loopback(access.host),
                "HTTP transmits the password itself, so the server must be verified: register `tls = verify-full` or "
                "`verify-ca`, and the port of HTTPS",
            ),
        )
        session = Session(access)
        # The login is checked by a query only.
        session.rows("SELECT 1")
        return session

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        version = version_of(connection)
        if version >= WITH_CHECK and not self._sees_all(connection):
            raise MeasureError(FailureKind.RIGHTS, "its login may not see all tables: SHOW TABLES on *.* is missing")
        databases = query_server(connection, DATABASES)
        # A database may be created between two statements.
        sizes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        sizes |= {str(name): [0, 0] for name, engine in databases if engine not in ELSEWHERE}
        elsewhere = [
            f"{name}: its tables are on another server ({engine})"
            for name, engine in databases
            if engine in ELSEWHERE and not is_excluded(name, excluded)
        ]
        for name, size, data in query_server(connection, PARTS):
            sizes[name] = [int(size), int(data)]
        unknown: dict[str, int] = defaultdict(int)
        for name, _, size in query_server(connection, LOGS if version >= WITH_DISKS else LOGS_BEFORE):
            if size is None:
                unknown[name] += 1
            else:
                sizes[name][0] += int(size)
        left_out = tuple(name for name in sizes if is_excluded(name, excluded))
        not_counted = [
            f"{name}: {counted(tables, 'table')} of the Log family"
            for name, tables in unknown.items()
            if name not in left_out
        ]
        measured = [
            DatabaseSize.of_bytes(name, size, data_size=data)
            for name, (size, data) in sizes.items()
            if name not in left_out
        ]
        return Measurement(tuple(measured), (*not_counted, *elsewhere), left_out)

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:
        if version_of(connection) < WITH_DISKS:
            return Limits(unknown=TOO_OLD)
        disks = {
            name: Volume(path.rstrip("/") or "/", int(total), max(int(free) - int(reserved), 0), int(total) - int(free))
            for name, path, total, free, reserved in query_server(connection, DISKS)
            if 0 < int(total) < LARGEST_DISK_BYTES and int(free) <= int(total)
        }
        places = {database: [disk for disk in on if disk in disks] for database, on in query_server(connection, PLACES)}
        used = {name: places.get(name) or places.get("", []) for name in names}
        volumes = {disks[disk].name: disks[disk] for on in used.values() for disk in on}
        ceilings = (
            Ceiling(name, is_unlimited=bool(on), volumes=tuple(dict.fromkeys(disks[disk].name for disk in on)))
            for name, on in used.items()
        )
        return Limits(tuple(volumes.values()), tuple(ceilings))

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:
        by_database = {}
        for database, count, size, tables in query_server(connection, OBJECTS):
            largest = [
                ObjectSize("", table, TABLE, int(table_bytes), estimated_rows=int(rows), is_exact=True)
                for table_bytes, table, rows in tables
            ]
            by_database[database] = DatabaseObjects.among(database, largest, int(count), int(size))
        return Objects(tuple(by_database.get(name) or DatabaseObjects(name, ()) for name in names))

    def facts(self, connection: Any) -> ServerFacts:
        """Return the version; the encryption is known without a query."""
        [(version,)] = query_server(connection, VERSION)
        return ServerFacts(f"ClickHouse {version}", encrypted=connection.is_encrypted)

    def explained(self, error: Exception) -> MeasureError | None:
        if isinstance(error, ServerError):
            return MeasureError(KINDS.get(error.code, FailureKind.UNEXPECTED), first_line(error))
        if isinstance(error, ssl.SSLError):
            return MeasureError(FailureKind.TLS, first_line(error))
        if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | http.client.IncompleteRead):
            return MeasureError(FailureKind.BROKEN_OFF, first_line(error))
        if isinstance(error, http.client.HTTPException | ValueError | TypeError | LookupError | OverflowError):
            # Without its text, which may repeat the login that was sent.
            return MeasureError(FailureKind.UNEXPECTED, NOT_CLICKHOUSE)
        return None

    def _sees_all(self, connection: Any) -> bool:
        try:
            return bool(int(query_server(connection, SEES_ALL)[0][0]))
        except ServerError as error:
            if error.code == SYNTAX_ERROR:
                return True
            raise
